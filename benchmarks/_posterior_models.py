"""The posteriors of benchmarks/posteriors.py: models in Pyro, data, and reference draws.

Two need no data: eight schools in its centred form, and a ten-dimensional funnel. Eight come from
posteriordb, with reference draws of long, checked MCMC runs, and are read from the folder that
the environment variable MADE_FLOWS_DATA names.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

Draws = dict[str, Tensor]


@dataclass
class Posterior:
    """A model, and what is known of its posterior.

    Args:
        name: short name.
        model: a Pyro model without arguments.
        quantities: from values of its sites (n, ...) to the quantities of the reference (n, Q).
        reference: draws of the quantities (n, Q), None where there are none.
    """

    name: str
    model: Callable[[], Any]
    quantities: Callable[[Draws], Tensor]
    reference: Tensor | None


def flat(*shape: int) -> Any:
    """A flat prior over reals (that can be sampled, to begin somewhere)."""
    return dist.Normal(torch.zeros(shape), 1.0).to_event(len(shape)).mask(False)


def flat_positive() -> Any:
    return dist.Exponential(1.0).mask(False)


# ---------------------------------------------------------------------- without data


SCHOOLS_Y = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
SCHOOLS_SIGMA = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


def eight_schools_centred() -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", 8):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, SCHOOLS_SIGMA), obs=SCHOOLS_Y)


def funnel() -> None:
    z = pyro.sample("z", dist.Normal(0.0, 3.0))
    with pyro.plate("nine", 9):
        pyro.sample("x", dist.Normal(0.0, (z / 2).exp()))


def funnel_draws() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    z = 3 * torch.randn(100_000, 1, generator=generator)
    return torch.cat([z, (z / 2).exp() * torch.randn(100_000, 9, generator=generator)], dim=1)


# ---------------------------------------------------------------------- posteriordb


def eight_schools_noncentred(y: Tensor, sigma: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", 8):
        z = pyro.sample("theta_trans", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mu + tau * z, sigma), obs=y)


def autoregression(y: Tensor, lags: int) -> None:
    alpha = pyro.sample("alpha", dist.Normal(0.0, 10.0))
    beta = pyro.sample("beta", dist.Normal(torch.zeros(lags), 10.0).to_event(1))
    sigma = pyro.sample("sigma", dist.HalfCauchy(2.5))
    windows = torch.stack([y[lags - k - 1 : len(y) - k - 1] for k in range(lags)], dim=-1)
    mean = alpha.unsqueeze(-1) + beta @ windows.T
    observe(y[lags:], mean, sigma)


def garch(y: Tensor, sigma1: float) -> None:
    mu = pyro.sample("mu", flat())
    alpha0 = pyro.sample("alpha0", flat_positive())
    alpha1 = pyro.sample("alpha1", dist.Uniform(0.0, 1.0))
    # beta1 is flat below 1 - alpha1: its share of that is, times the length.
    share = pyro.sample("share", dist.Uniform(0.0, 1.0))
    beta1 = (1 - alpha1) * share
    pyro.factor("length", torch.log1p(-alpha1))
    mu, alpha0, alpha1, beta1 = (v.unsqueeze(-1) for v in (mu, alpha0, alpha1, beta1))
    news = alpha0 + alpha1 * (y[:-1] - mu) ** 2
    first = torch.full_like(news[..., :1], sigma1**2)
    observe(y, mu, decaying_sums(torch.cat([first, news], dim=-1), beta1).sqrt())


def decaying_sums(x: Tensor, factor: Tensor) -> Tensor:
    """The recursion s_t = factor * s_{t-1} + x_t, by doubling the number of terms."""
    span = 1
    while span < x.shape[-1]:
        earlier = torch.nn.functional.pad(x[..., :-span], (span, 0))
        x = x + factor * earlier
        factor, span = factor**2, 2 * span
    return x


def gaussian_process(x: Tensor, k: Tensor) -> None:
    rho = pyro.sample("rho", dist.Gamma(25.0, 4.0))
    alpha = pyro.sample("alpha", dist.HalfNormal(2.0))
    z = pyro.sample("f_tilde", dist.Normal(torch.zeros(len(x)), 1.0).to_event(1))
    f = gaussian_process_values(x, rho, alpha, z)
    pyro.sample("k", dist.Poisson(f.exp()).to_event(1), obs=k)


def gaussian_process_values(x: Tensor, rho: Tensor, alpha: Tensor, z: Tensor) -> Tensor:
    # In float64: with a jitter of 1e-10 the matrix has no Cholesky factor in float32.
    x, rho, alpha = x.double(), rho.double()[..., None, None], alpha.double()[..., None, None]
    covariance = alpha**2 * torch.exp(-((x[:, None] - x) ** 2) / (2 * rho**2))
    factor = torch.linalg.cholesky(covariance + 1e-10 * torch.eye(len(x), dtype=x.dtype))
    return (factor @ z.double().unsqueeze(-1)).squeeze(-1).to(z.dtype)


def regression(X: Tensor, y: Tensor) -> None:
    beta = pyro.sample("beta", dist.Normal(torch.zeros(X.shape[1]), 10.0).to_event(1))
    sigma = pyro.sample("sigma", dist.HalfNormal(10.0))
    observe(y, beta @ X.T, sigma)


def flat_regression(X: Tensor, y: Tensor) -> None:
    beta = pyro.sample("beta", flat(X.shape[1]))
    sigma = pyro.sample("sigma", flat_positive())
    observe(y, beta @ X.T, sigma)


def diamonds(X: Tensor, Y: Tensor) -> None:
    b = pyro.sample("b", dist.Normal(torch.zeros(X.shape[1]), 1.0).to_event(1))
    intercept = pyro.sample("Intercept", dist.StudentT(3.0, 8.0, 10.0))
    sigma = pyro.sample("sigma", HalfStudentT(3.0, 10.0))
    observe(Y, intercept.unsqueeze(-1) + b @ X.T, sigma)


class HalfStudentT(dist.FoldedDistribution):
    """The absolute value of a Student t."""

    def __init__(self, df: float, scale: float) -> None:
        super().__init__(dist.StudentT(df, 0.0, scale))


def observe(y: Tensor, mean: Tensor, scale: Tensor) -> None:
    scale = scale.unsqueeze(-1) if scale.dim() == mean.dim() - 1 else scale
    pyro.sample("y", dist.Normal(mean, scale).to_event(1), obs=y)


# ---------------------------------------------------------------------- reading


def columns(draws: Draws, *names: str) -> Tensor:
    """Sites side by side, (n, Q)."""
    parts = [draws[name] for name in names]
    return torch.cat([part.reshape(len(part), -1).double() for part in parts], dim=-1)


def _schools(draws: Draws) -> Tensor:
    return columns(draws, "theta", "mu", "tau")


def _schools_noncentred(draws: Draws) -> Tensor:
    mu, tau = draws["mu"].reshape(-1, 1), draws["tau"].reshape(-1, 1)
    theta = mu + tau * draws["theta_trans"].reshape(len(mu), -1)
    return columns({**draws, "theta": theta}, "theta", "mu", "tau")


def _garch(draws: Draws) -> Tensor:
    beta1 = (1 - draws["alpha1"]) * draws["share"]
    return columns({**draws, "beta1": beta1}, "mu", "alpha0", "alpha1", "beta1")


def _process(x: Tensor, draws: Draws) -> Tensor:
    z = draws["f_tilde"].reshape(-1, len(x))
    rho, alpha = draws["rho"].reshape(-1), draws["alpha"].reshape(-1)
    f = gaussian_process_values(x, rho, alpha, z)
    return columns({"rho": rho, "alpha": alpha, "f": f}, "rho", "alpha", "f")


def posteriors() -> list[Posterior]:
    """All posteriors whose data is at hand."""
    folder = os.environ.get("MADE_FLOWS_DATA")
    files = sorted((Path(folder) / "posteriors").glob("*.npz")) if folder else []
    read = {path.stem.split("-")[0]: _read(path) for path in files}

    schools = read.get("eight_schools")
    found = [
        Posterior("eight schools, centred", eight_schools_centred, _schools,
                  None if schools is None else schools["draws"]),
        Posterior("funnel", funnel, lambda d: columns(d, "z", "x"), funnel_draws()),
    ]  # fmt: skip
    for name, data in read.items():
        model, quantities = _MODELS[name](data)
        found.append(Posterior(name, model, quantities, data["draws"]))
    return found


def _read(path: Path) -> dict[str, Tensor]:
    with np.load(path) as file:
        found = {
            key.removeprefix("data_"): torch.from_numpy(np.asarray(file[key], dtype=np.float64))
            for key in file.files
            if key != "names"
        }
    draws = found.pop("draws")
    found = {key: value.float() for key, value in found.items()}
    return {**found, "draws": draws.reshape(-1, draws.shape[-1])}


def _mesquite(d: dict[str, Tensor]) -> Any:
    logs = ("diam1", "diam2", "canopy_height", "total_height", "density")
    X = torch.stack([torch.ones(len(d["group"])), *(d[k].log() for k in logs), d["group"]], -1)
    return partial(flat_regression, X, d["weight"].log()), _beta_sigma


def _nes(d: dict[str, Tensor]) -> Any:
    ages = [(d["age_discrete"] == age).float() for age in (2, 3, 4)]
    rest = [d[name] for name in ("educ1", "gender", "income")]
    X = torch.stack(
        [torch.ones(len(d["income"])), d["real_ideo"], d["race_adj"], *ages, *rest], dim=-1
    )
    return partial(flat_regression, X, d["partyid7"]), _beta_sigma


def _diamonds(d: dict[str, Tensor]) -> Any:
    X = d["X"][:, 1:]
    order = ("b", "Intercept", "sigma")
    return partial(diamonds, X - X.mean(0), d["Y"]), lambda draws: columns(draws, *order)


def _beta_sigma(draws: Draws) -> Tensor:
    return columns(draws, "beta", "sigma")


_MODELS: dict[str, Callable[[dict[str, Tensor]], tuple[Callable[[], Any], Any]]] = {
    "eight_schools": lambda d: (
        partial(eight_schools_noncentred, d["y"], d["sigma"]),
        _schools_noncentred,
    ),
    "arK": lambda d: (
        partial(autoregression, d["y"], int(d["K"])),
        lambda draws: columns(draws, "alpha", "beta", "sigma"),
    ),
    "garch": lambda d: (
        partial(garch, d["y"], float(d["sigma1"])),
        _garch,
    ),
    "gp_pois_regr": lambda d: (
        partial(gaussian_process, d["x"], d["k"]),
        partial(_process, d["x"]),
    ),
    "sblrc": lambda d: (partial(regression, d["X"], d["y"]), _beta_sigma),
    "mesquite": _mesquite,
    "nes2000": _nes,
    "diamonds": _diamonds,
}
