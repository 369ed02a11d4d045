"""Part (d): the posterior of eight schools by Pyro's guides and ours, each with its verdict."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
from _demo_report import QUICK, Part, announced, say, timed, wrapped

AVAILABLE = find_spec("pyro") is not None
STEPS = 10 if QUICK else 800
DRAWS = 200 if QUICK else 2000
Y = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
SIGMA = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


def schools() -> None:
    """Effects of eight schools, whose spread tau is unknown: the posterior is a funnel."""
    import pyro
    import pyro.distributions as dist

    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", 8):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, SIGMA), obs=Y)


def by_svi(make: Any) -> Any:
    """A guide after some steps of Pyro's own loop."""
    import pyro
    from pyro.infer import SVI, Trace_ELBO

    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    guide = make(schools)
    optimizer = pyro.optim.ClippedAdam({"lr": 0.01, "lrd": 0.1 ** (1 / STEPS)})
    elbo = Trace_ELBO(num_particles=16, vectorize_particles=True, max_plate_nesting=1)
    svi = SVI(schools, guide, optimizer, elbo)
    for _ in range(STEPS):
        svi.step()
    return guide


def by_fit_guide(make: Any) -> Any:
    """A guide that starts at a normal approximation of the posterior, and trains by a schedule."""
    from made_flows.pyro import fit_guide

    guide = make(schools)
    fit_guide(guide, budget="fast", seed=0, progress=False)
    return guide


def run() -> Part:
    """Fit each guide and ask what its samples are worth."""
    from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal

    from made_flows.pyro import AutoIAF, diagnose

    guides = {
        "AutoNormal": (AutoNormal, by_svi),
        "AutoMultivariateNormal": (AutoMultivariateNormal, by_svi),
        "AutoIAF (made_flows)": (AutoIAF, by_svi),
        "AutoIAF by fit_guide": (AutoIAF, by_fit_guide),
    }
    if QUICK:
        del guides["AutoIAF by fit_guide"]  # some seconds, whatever the number of steps
    elbos = {}
    lines = [f"{'':26}{'ELBO':>14}{'k-hat':>9}{'draws':>11}{'fit':>9}"]
    for name, (make, fit) in guides.items():
        say(f"posterior: {name}, {STEPS if fit is by_svi else 'up to 500'} steps ...")
        guide, seconds = timed(lambda make=make, fit=fit: fit(make))
        with announced("drawing from it, and weighing the draws ..."):
            found = diagnose(schools, guide, samples=DRAWS)
        elbo = f"{found.elbo:.2f} ± {found.elbo_error:.2f}"
        line = f"  {name:24}{elbo:>14}{found.k_hat:9.2f}{found.grade:>11}{seconds:7.1f} s"
        lines.append(line)
        elbos[name] = found.elbo
    lines += ["", wrapped(found.verdict)]
    theirs = max(elbos["AutoNormal"], elbos["AutoMultivariateNormal"])
    gain = elbos[name] - theirs
    return Part(
        "The posterior of eight schools in Pyro: 10 latent variables",
        "\n".join(lines),
        f"AutoIAF's ELBO is {abs(gain):.1f} nats {'above' if gain > 0 else 'below'} the better of "
        f"Pyro's guides; may its draws be used? It says: {found.grade}",
    )
