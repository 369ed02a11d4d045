"""Eight schools in its centred form: AutoIAF beside Pyro's guides, and what each says of itself.

The effects of eight schools share a mean and a standard deviation tau; where tau is small, all
effects are close to the mean, and the posterior is a funnel. Guides are compared by ELBO, Pareto
k-hat and their distance from reference draws: posteriordb's where the environment variable
MADE_FLOWS_DATA names a folder with them, else those of a short run of NUTS on the non-centred form.
With MADE_FLOWS_QUICK=1 everything is trained for a moment only, to see that it runs.
"""

from __future__ import annotations

import os
import pickle
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoIAFNormal, AutoMultivariateNormal, AutoNormal
from torch import Tensor

from made_flows.plotting import pair_plot
from made_flows.pyro import AutoIAF, diagnose

QUICK = bool(os.environ.get("MADE_FLOWS_QUICK"))
OUTPUT = Path("example_output")
STEPS = 20 if QUICK else 3000
DRAWS = 200 if QUICK else 4000
Y = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
SIGMA = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
GUIDES: dict[str, Callable[[Any], Any]] = {
    "AutoNormal": AutoNormal,
    "AutoMultivariateNormal": AutoMultivariateNormal,
    "AutoIAFNormal": AutoIAFNormal,
    "AutoIAF (made_flows)": AutoIAF,
}


def schools() -> None:
    """The centred form."""
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", 8):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, SIGMA), obs=Y)


def schools_noncentred() -> None:
    """The same model in variables that NUTS gets along with."""
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", 8):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mu + tau * z, SIGMA), obs=Y)


def columns(draws: dict[str, Tensor]) -> Tensor:
    """Mu, the logarithm of tau and the eight effects, side by side (N, 10)."""
    rows = len(draws["mu"])
    parts = draws["mu"], draws["tau"].log(), draws["theta"]
    return torch.cat([part.reshape(rows, -1) for part in parts], dim=1).double()


def reference() -> tuple[str, Tensor]:
    """Draws of the posterior, and where they come from."""
    folder = os.environ.get("MADE_FLOWS_DATA")
    files = sorted((Path(folder) / "posteriors").glob("eight_schools-*.npz")) if folder else []
    if files:
        with np.load(files[0]) as file:
            draws = torch.from_numpy(file["draws"]).reshape(-1, 10)  # theta, mu, tau
        mu, tau, theta = draws[:, 8], draws[:, 9], draws[:, :8]
        return "posteriordb", columns({"mu": mu, "tau": tau, "theta": theta})
    pyro.set_rng_seed(0)
    warmup, kept = (20, 50) if QUICK else (500, 2000)
    mcmc = MCMC(NUTS(schools_noncentred), kept, warmup, disable_progbar=True)
    mcmc.run()
    found = mcmc.get_samples()
    found["theta"] = found["mu"][:, None] + found["tau"][:, None] * found["z"]
    return "a short run of NUTS", columns(found)


def train(make: Callable[[Any], Any]) -> tuple[Any, float]:
    """A trained guide, and milliseconds of a step."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    guide = make(schools)
    optimizer = pyro.optim.ClippedAdam({"lr": 5e-3, "lrd": 0.1 ** (1 / STEPS)})
    elbo = Trace_ELBO(16, vectorize_particles=True, max_plate_nesting=1)
    svi = SVI(schools, guide, optimizer, elbo)
    svi.step()
    start = time.perf_counter()
    for _ in range(STEPS - 1):
        svi.step()
    return guide, 1e3 * (time.perf_counter() - start) / (STEPS - 1)


def main() -> None:
    start = time.perf_counter()
    torch.set_num_threads(1)  # networks so small that a second thread costs more than it brings
    OUTPUT.mkdir(exist_ok=True)
    source, truth = reference()
    mean, sd = truth.mean(dim=0), truth.std(dim=0)
    names = ["mu", "log tau", *(f"theta {i + 1}" for i in range(8))]
    print(f"{'':24}{'ELBO':>9}{'k-hat':>8}{'worst mean':>12}{'worst sd':>10}{'ms/step':>9}")
    for name, make in GUIDES.items():
        guide, milliseconds = train(make)
        found = diagnose(schools, guide, samples=DRAWS)
        drawn = columns(Predictive(schools, guide=guide, num_samples=DRAWS, parallel=True)())
        means = ((drawn.mean(dim=0) - mean) / sd).abs().max()
        sds = (drawn.std(dim=0) / sd - 1).abs().max()
        print(
            f"{name:24}{found.elbo:9.2f}{found.k_hat:8.2f}{means:12.2f}{sds:10.2f}"
            f"{milliseconds:9.1f}"
        )
        if isinstance(guide, AutoIAF):
            picture = OUTPUT / "pyro_iaf_guide.png"
            labels = ("AutoIAF", source)
            pair_plot(drawn[:, :5], truth[:, :5], names[:5], labels=labels).savefig(picture)
            ours, diagnosis = guide, found
    print(
        f"(worst mean, worst sd: of {', '.join(names[:3])}, ...; beside {source}, in standard "
        "deviations)\n"
    )
    print(diagnosis)

    # A guide goes on working without its model: pickled, it is sampled and scored at any point.
    copied = pickle.loads(pickle.dumps(ours))
    low, median, high = copied.quantiles([0.05, 0.5, 0.95])["tau"].tolist()
    print(
        f"\nA pickled copy: tau has median {median:.2f}, and 90% between {low:.2f} and {high:.2f}."
    )
    score = copied.log_prob({"mu": torch.tensor(4.0), "tau": torch.tensor(3.0), "theta": Y / 2})
    print(f"Its log-density at mu = 4, tau = 3, theta = y / 2: {score:.2f}")
    trained = "trained for a moment only (MADE_FLOWS_QUICK)" if QUICK else "trained"
    seconds = time.perf_counter() - start
    print(f"pyro_iaf_guide: four guides {trained} in {seconds:.0f} s. Picture: {picture}")


if __name__ == "__main__":
    main()
