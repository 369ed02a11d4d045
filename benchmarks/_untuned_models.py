"""Posteriors that no setting was chosen by, of models as people write them, with their references.

Data are simulated from a fixed seed. Reference draws are exact where the posterior is known, and
otherwise of many chains (benchmarks/_reference.py) in whatever form these mix best.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from benchmarks._posterior_models import (
    SCHOOLS_SIGMA,
    SCHOOLS_Y,
    Draws,
    Posterior,
    columns,
    decaying_sums,
)

Model = Callable[..., None]
EXACT = 100_000


@dataclass
class Untuned(Posterior):
    """A posterior, and how draws of it are found that owe nothing to a guide.

    Args:
        args: of the model: its data.
        exact: draws of the quantities (n, Q), from a generator; or of Gibbs' chains (m, n, Q).
        chains_of: the model that chains run in, where it is another one.
        from_chains: from its sites to the quantities.
        mirrored: from its quantities to those of the other half of the posterior.
        modes: as many as a user who knows the model would ask for.
    """

    args: tuple[Tensor, ...] = ()
    exact: Callable[[torch.Generator], Tensor] | None = None
    chains_of: Model | None = None
    from_chains: Callable[[Draws], Tensor] | None = None
    mirrored: Callable[[Tensor], Tensor] | None = None
    modes: int = 1


def _made(name: str, model: Model, quantities: Callable[[Draws], Tensor] | None = None,
          **more: Any) -> Untuned:  # fmt: skip
    every = quantities or (lambda draws: columns(draws, *draws))
    return Untuned(name, model, every, None, **more)


def _logs(*names: str) -> Callable[[Draws], Tensor]:
    """All sites side by side, some by their logarithms."""

    def quantities(draws: Draws) -> Tensor:
        changed = {k: v.log() if k in names else v for k, v in draws.items()}
        return columns(changed, *changed)

    return quantities


def _flat(*shape: int) -> Any:
    return dist.ImproperUniform(constraints.real_vector if shape else constraints.real, (), shape)


def _scale() -> Any:
    return dist.ImproperUniform(constraints.positive, (), ())


def _linear(b: Tensor, X: Tensor) -> Tensor:
    return (b.unsqueeze(-2) @ X.mT).squeeze(-2)


def _last(*values: Tensor) -> tuple[Tensor, ...]:
    return tuple(value.unsqueeze(-1) for value in values)


# ---------------------------------------------------------------------- regressions, natural units


def _people(g: torch.Generator, count: int) -> Tensor:
    """One, age in years, income in dollars a year, blood pressure."""
    age = 20 + 60 * torch.rand(count, generator=g)
    income = 3e4 * torch.exp(0.5 * torch.randn(count, generator=g))
    pressure = 110 + 0.4 * age + 12 * torch.randn(count, generator=g)
    return torch.stack([torch.ones(count), age, income, pressure], dim=-1)


def _logistic(X: Tensor, y: Tensor) -> None:
    b = pyro.sample("b", _flat(X.shape[1]))
    pyro.sample("y", dist.Bernoulli(logits=_linear(b, X)).to_event(1), obs=y)


def logistic(g: torch.Generator) -> Untuned:
    X = _people(g, 250)
    logits = X @ torch.tensor([-9.0, 0.04, -2e-5, 0.05])
    return _made(
        "logistic regression", _logistic, args=(X, torch.bernoulli(logits.sigmoid(), generator=g))
    )


def _poisson(X: Tensor, exposure: Tensor, k: Tensor) -> None:
    b = pyro.sample("b", _flat(X.shape[1]))
    pyro.sample("k", dist.Poisson(exposure * _linear(b, X).exp()).to_event(1), obs=k)


def poisson(g: torch.Generator) -> Untuned:
    X, exposure = _people(g, 100)[:, :3], 0.2 + 5 * torch.rand(100, generator=g)
    rate = exposure * (X @ torch.tensor([-1.0, 0.02, 5e-6])).exp()
    return _made(
        "Poisson regression", _poisson, args=(X, exposure, torch.poisson(rate, generator=g))
    )


def _negative_binomial(X: Tensor, k: Tensor) -> None:
    b = pyro.sample("b", _flat(X.shape[1]))
    shape = pyro.sample("shape", dist.HalfCauchy(5.0))
    logits = _linear(b, X) - shape.log().unsqueeze(-1)
    counts = dist.NegativeBinomial(shape.unsqueeze(-1), logits=logits, validate_args=False)
    pyro.sample("k", counts.to_event(1), obs=k)


def negative_binomial(g: torch.Generator) -> Untuned:
    X = _people(g, 120)[:, [0, 1, 3]]
    mean = (X @ torch.tensor([-1.0, 0.03, 0.005])).exp()
    even = torch._standard_gamma(torch.full((120,), 1.5), generator=g) / 1.5
    k = torch.poisson(mean * even, generator=g)
    return _made("negative binomial regression", _negative_binomial, _logs("shape"), args=(X, k))


def _student(X: Tensor, y: Tensor) -> None:
    b, s = pyro.sample("b", _flat(X.shape[1])), pyro.sample("s", dist.HalfCauchy(25.0))
    freedom = pyro.sample("freedom", dist.Gamma(2.0, 0.1))
    freedom, s = _last(freedom, s)
    pyro.sample("y", dist.StudentT(freedom, _linear(b, X), s).to_event(1), obs=y)


def student(g: torch.Generator) -> Untuned:
    X = _people(g, 70)[:, [0, 1]]
    y = 90 + 0.7 * X[:, 1] + 6 * torch.randn(70, generator=g)
    y[:6] += torch.tensor([120.0, -80.0, 60.0, 200.0, -150.0, 45.0])
    return _made("Student t regression", _student, _logs("s", "freedom"), args=(X, y))


def _horseshoe(X: Tensor, y: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([X.shape[1]]).to_event(1))
    local = pyro.sample("local", dist.HalfCauchy(1.0).expand([X.shape[1]]).to_event(1))
    tau, s = pyro.sample("tau", dist.HalfCauchy(1.0)), pyro.sample("s", dist.HalfCauchy(5.0))
    tau, s = _last(tau, s)
    pyro.sample("y", dist.Normal(_linear(z * local * tau, X), s).to_event(1), obs=y)


def _horseshoe_b(draws: Draws) -> Tensor:
    tau = draws["tau"].reshape(-1, 1)
    b = draws["z"].reshape(len(tau), -1) * draws["local"].reshape(len(tau), -1) * tau
    return columns({"b": b, "tau": tau.log(), "s": draws["s"]}, "b", "tau", "s")


def _horseshoe_gibbs(X: Tensor, y: Tensor, g: torch.Generator) -> Tensor:
    """Chains by Gibbs sampling with auxiliary variables (Makalic & Schmidt 2016)."""
    X, y, (rows, size) = X.double(), y.double(), X.shape

    def inverse_gamma(shape: float, scale: Tensor) -> Tensor:
        return scale / torch._standard_gamma(torch.full_like(scale, shape), generator=g)

    one = torch.ones(64, 1, dtype=torch.float64)
    local, tau, s = one.expand(-1, size), one, one
    kept = []
    for turn in range(2500):
        precision = X.mT @ X / s[..., None] + torch.diag_embed(1 / (local * tau))
        factor = torch.linalg.cholesky(precision)
        noise = torch.randn(64, size, 1, generator=g, dtype=torch.float64)
        middle = torch.cholesky_solve((X.mT @ y / s).unsqueeze(-1), factor)
        b = (middle + torch.linalg.solve_triangular(factor.mT, noise, upper=True)).squeeze(-1)
        squares = b.square() / 2
        local = inverse_gamma(1, 1 / inverse_gamma(1, 1 + 1 / local) + squares / tau)
        shrunk = (squares / local).sum(-1, keepdim=True)
        tau = inverse_gamma((size + 1) / 2, 1 / inverse_gamma(1, 1 + 1 / tau) + shrunk)
        rest = (y - b @ X.mT).square().sum(-1, keepdim=True) / 2
        s = inverse_gamma((rows + 1) / 2, 1 / inverse_gamma(1, 1 / 25 + 1 / s) + rest)
        if turn >= 500:
            kept.append(torch.cat([b, tau.log() / 2, s.sqrt()], dim=-1))
    return torch.stack(kept, 1)


def horseshoe(g: torch.Generator) -> Untuned:
    X = torch.randn(60, 20, generator=g)
    b = torch.tensor([3.0, -2.0, 1.0, 0.5] + [0.0] * 16)
    y = X @ b + torch.randn(60, generator=g)
    gibbs = partial(_horseshoe_gibbs, X, y)
    return _made("horseshoe regression", _horseshoe, _horseshoe_b, args=(X, y), exact=gibbs)


# ---------------------------------------------------------------------- hierarchies


def _schools(y: Tensor, sigma: Tensor) -> None:
    mu, tau = pyro.sample("mu", _flat()), pyro.sample("tau", _scale())
    with pyro.plate("schools", len(y)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


def _schools_decentred(y: Tensor, sigma: Tensor) -> None:
    mu, tau = pyro.sample("mu", _flat()), pyro.sample("tau", _scale())
    with pyro.plate("schools", len(y)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mu + tau * z, sigma), obs=y)


def _schools_values(draws: Draws) -> Tensor:
    mu, tau = draws["mu"].reshape(-1, 1), draws["tau"].reshape(-1, 1)
    theta = draws["theta"] if "theta" in draws else mu + tau * draws["z"].reshape(len(mu), -1)
    return columns({"mu": mu, "tau": tau, "theta": theta}, "mu", "tau", "theta")


def _schools_exact(g: torch.Generator) -> Tensor:
    """By a grid of tau, then normal distributions (Gelman et al., Bayesian Data Analysis, 5.4)."""
    y, variance = SCHOOLS_Y.double(), SCHOOLS_SIGMA.double().square()
    grid = torch.linspace(math.log(1e-4), math.log(2000.0), 40_001, dtype=torch.float64)
    total = variance + grid.exp().square().unsqueeze(-1)
    spread = 1 / (1 / total).sum(-1)
    middle = spread * (y / total).sum(-1)
    fit = total.log() + (y - middle.unsqueeze(-1)).square() / total
    log_p = 0.5 * (spread.log() - fit.sum(-1)) + grid
    at = torch.multinomial((log_p - log_p.max()).exp(), EXACT, True, generator=g)
    tau = grid[at].exp().unsqueeze(-1)
    noise = torch.randn(EXACT, 9, generator=g, dtype=torch.float64)
    mu = (middle[at] + spread[at].sqrt() * noise[:, 0]).unsqueeze(-1)
    precision = 1 / variance + tau**-2
    theta = (y / variance + mu / tau**2) / precision + noise[:, 1:] / precision.sqrt()
    return torch.cat([mu, tau, theta], dim=-1)


def schools(g: torch.Generator) -> Untuned:
    data = (SCHOOLS_Y, SCHOOLS_SIGMA)
    name = "eight schools, centred, flat tau"
    return _made(name, _schools, _schools_values, args=data, exact=_schools_exact)


def schools_decentred(g: torch.Generator) -> Untuned:
    data = (SCHOOLS_Y, SCHOOLS_SIGMA)
    name = "eight schools, decentred, flat tau"
    return _made(name, _schools_decentred, _schools_values, args=data, exact=_schools_exact)


def _answers(y: Tensor) -> None:
    people, items = y.shape
    slope = pyro.sample("slope", dist.LogNormal(0.0, 0.5).expand([items]).to_event(1))
    hard = pyro.sample("hard", dist.Normal(0.0, 2.0).expand([items]).to_event(1))
    able = pyro.sample("able", dist.Normal(0.0, 1.0).expand([people]).to_event(1))
    logits = slope.unsqueeze(-2) * (able.unsqueeze(-1) - hard.unsqueeze(-2))
    pyro.sample("y", dist.Bernoulli(logits=logits).to_event(2), obs=y)


def item_responses(g: torch.Generator) -> Untuned:
    slope, hard = torch.exp(0.4 * torch.randn(12, generator=g)), torch.randn(12, generator=g)
    able = torch.randn(60, 1, generator=g)
    y = torch.bernoulli((slope * (able - hard)).sigmoid(), generator=g)
    return _made("item responses, 2PL", _answers, args=(y,))


# ---------------------------------------------------------------------- series


def _second_order(y: Tensor) -> None:
    b, s = pyro.sample("b", _flat(3)), pyro.sample("s", _scale())
    X = torch.stack([torch.ones_like(y[2:]), y[1:-1], y[:-2]], dim=-1)
    pyro.sample("y", dist.Normal(_linear(b, X), s.unsqueeze(-1)).to_event(1), obs=y[2:])


def second_order(g: torch.Generator) -> Untuned:
    values = [300.0, 300.0]
    for e in torch.randn(80, generator=g).tolist():
        values.append(30 + 1.3 * values[-1] - 0.4 * values[-2] + 12 * e)
    y = torch.tensor(values)

    def exact(generator: torch.Generator) -> Tensor:
        """Of a linear regression with flat priors."""
        Y = y.double()
        X = torch.stack([torch.ones_like(Y[2:]), Y[1:-1], Y[:-2]], dim=-1)
        best = torch.linalg.lstsq(X, Y[2:]).solution
        squares = (Y[2:] - X @ best).square().sum()
        shape = torch.full((EXACT,), (len(X) - 4) / 2, dtype=torch.float64)
        s = (squares / 2 / torch._standard_gamma(shape, generator=generator)).sqrt().unsqueeze(-1)
        noise = torch.randn(EXACT, 3, generator=generator, dtype=torch.float64)
        factor = torch.linalg.cholesky(torch.linalg.inv(X.mT @ X))
        return torch.cat([best + s * (noise @ factor.mT), s], dim=-1)

    return _made("AR(2)", _second_order, args=(y,), exact=exact)


def _volatility(y: Tensor) -> None:
    """With the prior of Kim, Shephard & Chib 1998 for how much of it lasts."""
    mu, s = pyro.sample("mu", dist.Normal(0.0, 10.0)), pyro.sample("s", dist.HalfNormal(1.0))
    phi = 2 * pyro.sample("lasts", dist.Beta(20.0, 1.5)) - 1
    z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([len(y)]).to_event(1))
    mu, phi, s = _last(mu, phi, s)
    first = z[..., :1] / (1 - phi.square()).sqrt()
    h = mu + decaying_sums(s * torch.cat([first, z[..., 1:]], dim=-1), phi)
    pyro.sample("y", dist.Normal(0.0, (h / 2).exp()).to_event(1), obs=y)


def volatility(g: torch.Generator) -> Untuned:
    h, values = 0.0, []
    for e, noise in torch.randn(100, 2, generator=g).tolist():
        h = 0.95 * h + 0.3 * e
        values.append(math.exp((h - 1) / 2) * noise)
    return _made("stochastic volatility", _volatility, _logs("s"), args=(torch.tensor(values),))


def _change(k: Tensor) -> None:
    when = pyro.sample("when", dist.Uniform(0.0, float(len(k))))
    early, late = (pyro.sample(name, dist.Exponential(1.0)) for name in ("early", "late"))
    before = torch.arange(len(k), dtype=when.dtype) < when.unsqueeze(-1)
    rate = torch.where(before, *_last(early, late))
    pyro.sample("k", dist.Poisson(rate).to_event(1), obs=k)


def _change_summed(k: Tensor) -> None:
    early, late = (pyro.sample(name, dist.Exponential(1.0)) for name in ("early", "late"))
    before, after = (dist.Poisson(rate).log_prob(k).cumsum(-1) for rate in _last(early, late))
    pyro.factor("k", (before + after[..., -1:] - after).logsumexp(-1) - math.log(len(k)))


def _counts(g: torch.Generator) -> Tensor:
    return torch.poisson(torch.tensor([3.0] * 40 + [1.2] * 60), generator=g)


def _change_exact(k: Tensor, generator: torch.Generator) -> Tensor:
    """The number of counts before it by enumeration, then Gamma distributions."""
    years = torch.arange(1, len(k) + 1, dtype=torch.float64)
    sums = k.double().cumsum(0)
    shapes = torch.stack([sums + 1, sums[-1] - sums + 1])
    rates = torch.stack([years + 1, len(k) - years + 1])
    log_p = (torch.lgamma(shapes) - shapes * rates.log()).sum(0)
    at = torch.multinomial((log_p - log_p.max()).exp(), EXACT, True, generator=generator)
    when = at + torch.rand(EXACT, generator=generator, dtype=torch.float64)
    each = torch._standard_gamma(shapes[:, at], generator=generator) / rates[:, at]
    return torch.stack([when, *each], dim=-1)


def change_point(g: torch.Generator) -> Untuned:
    k = _counts(g)
    return _made("change point", _change, args=(k,), exact=partial(_change_exact, k))


def change_point_summed(g: torch.Generator) -> Untuned:
    k = _counts(g)

    def exact(generator: torch.Generator) -> Tensor:
        return _change_exact(k, generator)[:, 1:]

    return _made("change point, summed over", _change_summed, args=(k,), exact=exact)


def _ordinal(X: Tensor, y: Tensor) -> None:
    b = pyro.sample("b", dist.Normal(torch.zeros(X.shape[1]), 2.0).to_event(1))
    prior = dist.Normal(torch.zeros(4), 3.0).to_event(1)
    cuts = dist.TransformedDistribution(prior, [dist.transforms.OrderedTransform()])
    c = pyro.sample("c", cuts)
    pyro.sample("y", dist.OrderedLogistic(_linear(b, X), c.unsqueeze(-2)).to_event(1), obs=y)


def ordinal(g: torch.Generator) -> Untuned:
    X = torch.randn(60, 3, generator=g) * torch.tensor([1.0, 10.0, 0.1])
    latent = X @ torch.tensor([1.0, 0.08, -3.0]) + torch.rand(60, generator=g).logit()
    y = torch.bucketize(latent, torch.tensor([-2.0, -0.5, 0.5, 3.0])).float()
    return _made("ordinal regression", _ordinal, args=(X, y))


def _crossed(k: Tensor, centred: bool = True) -> None:
    m = pyro.sample("m", dist.Normal(0.0, 3.0))
    effects = 0.0
    for name, size, dim in (("a", k.shape[0], -2), ("b", k.shape[1], -1)):
        scale = pyro.sample(f"s_{name}", dist.HalfNormal(1.0))
        with pyro.plate(f"of_{name}", size, dim=dim):
            effect = pyro.sample(name, dist.Normal(0.0, scale if centred else 1.0))
        effects = effects + (effect if centred else scale * effect)
    with pyro.plate("rows", k.shape[0], dim=-2), pyro.plate("columns", k.shape[1], dim=-1):
        pyro.sample("k", dist.Poisson((m + effects).exp()), obs=k)


def _crossed_values(draws: Draws) -> Tensor:
    scales = {n: draws[n].reshape(len(draws[n]), 1, 1) for n in ("s_a", "s_b")}
    effects = {n: scales[f"s_{n}"] * draws[n].reshape(len(draws[n]), 1, -1) for n in ("a", "b")}
    return _logs("s_a", "s_b")({**draws, **effects})


def crossed(g: torch.Generator) -> Untuned:
    rate = (0.7 + 0.8 * torch.randn(10, 1, generator=g) + 0.15 * torch.randn(8, generator=g)).exp()
    return _made(
        "Poisson, two crossed effects",
        _crossed,
        _logs("s_a", "s_b"),
        args=(torch.poisson(rate, generator=g),),
        chains_of=partial(_crossed, centred=False),
        from_chains=_crossed_values,
    )


def _predators(y: Tensor) -> None:
    rates = pyro.sample(
        "rates", dist.LogNormal(torch.tensor([-0.7, -3.0, -0.3, -3.5]), 0.7).to_event(1)
    )
    first = pyro.sample("first", dist.LogNormal(torch.tensor([3.0, 2.0]), 1.0).to_event(1))
    s = pyro.sample("s", dist.LogNormal(-1.0, 1.0))
    grow, eaten, die, feed = rates.unbind(-1)
    prey, hunters = first.log().unbind(-1)
    seen = []
    for step in range(41):  # by Euler's method, of logarithms, a quarter of a year each
        if step % 2 == 0:
            seen.append(torch.stack([prey, hunters], dim=-1))
        prey, hunters = (
            prey + (grow - eaten * hunters.exp()) / 4,
            hunters + (feed * prey.exp() - die) / 4,
        )
    path = torch.stack(seen, dim=-2)
    pyro.sample("y", dist.LogNormal(path, s[..., None, None]).to_event(2), obs=y)


def predators(g: torch.Generator) -> Untuned:
    truth = {"rates": torch.tensor([0.55, 0.028, 0.8, 0.024]), "first": torch.tensor([30.0, 6.0])}
    given = {**truth, "s": torch.tensor(0.25)}
    with torch.random.fork_rng():
        torch.manual_seed(int(torch.randint(2**31, (), generator=g)))
        model = pyro.poutine.uncondition(pyro.condition(_predators, data=given))
        trace = pyro.poutine.trace(pyro.condition(model, data=given)).get_trace(torch.ones(21, 2))
    return _made("Lotka-Volterra, by Euler", _predators, args=(trace.nodes["y"]["value"],))


def _process(x: Tensor, y: Tensor) -> None:
    length = pyro.sample("length", dist.InverseGamma(3.0, 3.0))
    height, noise = (pyro.sample(name, dist.HalfNormal(3.0)) for name in ("height", "noise"))
    apart = (x[:, None] - x).square()
    length, height, noise = (v[..., None, None].square() for v in (length, height, noise))
    covariance = height * torch.exp(-apart / (2 * length))
    covariance = covariance + (noise + 1e-5) * torch.eye(len(x), dtype=covariance.dtype)
    pyro.sample("y", dist.MultivariateNormal(torch.zeros_like(x), covariance), obs=y)


def process(g: torch.Generator) -> Untuned:
    x = torch.linspace(0.0, 10.0, 20)
    y = 2 * (x / 1.5).sin() + 0.7 * torch.randn(20, generator=g)
    return _made("Gaussian process regression", _process, args=(x, y))


# ---------------------------------------------------------------------- shapes


def _mixture(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0).expand([2]).to_event(1))
    s = pyro.sample("s", dist.HalfNormal(3.0).expand([2]).to_event(1))
    share = pyro.sample("share", dist.Beta(2.0, 2.0))
    shares = torch.stack([share, 1 - share], dim=-1).log()
    parts = dist.Normal(mu.unsqueeze(-2), s.unsqueeze(-2)).log_prob(y.unsqueeze(-1))
    pyro.factor("y", (parts + shares.unsqueeze(-2)).logsumexp(-1).sum(-1))


def _mixture_ordered(y: Tensor) -> None:
    """The half in which the first is the lower one."""
    low, gap = pyro.sample("low", _flat()), pyro.sample("gap", _scale())
    with pyro.condition(data={"mu": torch.stack([low, low + gap], dim=-1)}):
        _mixture(y)


def _lower_half(draws: Draws) -> Tensor:
    return columns({**draws, "high": draws["low"] + draws["gap"]}, "low", "high", "s", "share")


def _flipped(quantities: Tensor) -> Tensor:
    low, high, s, other, share = quantities.unbind(-1)
    return torch.stack([high, low, other, s, 1 - share], dim=-1)


def mixture(g: torch.Generator) -> Untuned:
    one = torch.rand(150, generator=g) < 0.35
    y = torch.where(one, -2.0, 3.0) + torch.where(one, 0.8, 1.5) * torch.randn(150, generator=g)
    return _made(
        "mixture of two, labels free", _mixture, args=(y,), chains_of=_mixture_ordered,
        from_chains=_lower_half, mirrored=_flipped, modes=2,
    )  # fmt: skip


def _banana() -> None:
    x = pyro.sample("x", dist.Normal(0.0, 5.0))
    pyro.sample("y", dist.Normal(0.1 * x.square(), 1.0))


def banana(g: torch.Generator) -> Untuned:
    def exact(generator: torch.Generator) -> Tensor:
        x, noise = torch.randn(2, EXACT, generator=generator, dtype=torch.float64)
        return torch.stack([5 * x, 2.5 * x.square() + noise], dim=-1)

    return _made("banana", _banana, exact=exact)


def _correlated(covariance: Tensor) -> None:
    mean = covariance.new_zeros(len(covariance))
    pyro.sample("x", dist.MultivariateNormal(mean, covariance))


def correlated(g: torch.Generator) -> Untuned:
    turned = torch.linalg.qr(torch.randn(100, 100, generator=g, dtype=torch.float64)).Q
    factor = turned * torch.logspace(-2, 0, 100, dtype=torch.float64)

    def exact(generator: torch.Generator) -> Tensor:
        noise = torch.randn(EXACT, 100, generator=generator, dtype=torch.float64)
        return noise @ factor.mT

    covariance = (factor @ factor.mT).float()
    name = "normal, 100 dimensions, condition 1e4"
    return _made(name, _correlated, args=(covariance,), exact=exact)


def _wells() -> None:
    x = pyro.sample("x", dist.Normal(torch.zeros(20), 10.0).to_event(1))
    prior = dist.Normal(torch.zeros(20), 10.0).log_prob(x).sum(-1)
    parts = [
        math.log(share) + dist.Normal(place, scale).log_prob(x).sum(-1)
        for share, place, scale in _WELLS
    ]
    pyro.factor("wells", torch.logaddexp(*parts) - prior)


_WELLS = ((0.7, -1.0, 0.5), (0.3, 1.0, 0.4))


def wells(g: torch.Generator) -> Untuned:
    def exact(generator: torch.Generator) -> Tensor:
        second = torch.rand(EXACT, 1, generator=generator, dtype=torch.float64) < _WELLS[1][0]
        (_, *left), (_, *right) = _WELLS
        place, scale = (torch.where(second, b, a) for a, b in zip(left, right, strict=True))
        return place + scale * torch.randn(EXACT, 20, generator=generator, dtype=torch.float64)

    return _made("two wells, 20 dimensions", _wells, exact=exact, modes=2)


MAKERS: Sequence[Callable[[torch.Generator], Untuned]] = (
    logistic, poisson, negative_binomial, student, horseshoe, schools, schools_decentred,
    item_responses, second_order, volatility, change_point, change_point_summed, predators, process,
    mixture, banana, correlated, wells, ordinal, crossed,
)  # fmt: skip


def untuned() -> list[Untuned]:
    """All of them, each with data of its own generator."""
    return [make(torch.Generator().manual_seed(1)) for make in MAKERS]
