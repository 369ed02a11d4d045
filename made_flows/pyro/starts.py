"""Where a guide starts: the prior's median, or a normal approximation on the way to the mode."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from pyro.infer.autoguide.initialization import init_to_median
from torch import Tensor
from torch.distributions import biject_to

from made_flows.pyro.layout import LatentSite, innermost
from made_flows.pyro.whitened import Density

_STEPS = 120
"""Iterations of L-BFGS from every start."""

_LOOKS = 8
"""Places along the way at which a normal approximation is tried."""

_DRAWS = 24
"""Draws by which one is judged."""

_APART = 3.0
"""Distance of modes, in standard deviations of their approximations."""

_DIP, _BETWEEN = 3.0, 15
"""Nats by which a density falls between two modes, and the places where it is looked at."""

_FAR = 1e4
"""How far numbers are moved that a density does not seem to depend on."""

_HESSIAN_UP_TO = 200
"""Dimensions up to which second derivatives are taken, one backward pass for each."""


def init_to_prior_median(site: dict[str, Any]) -> Tensor:
    """Return the median of a site's prior: exact where it has a quantile function.

    Otherwise that of a thousand draws, fewer where these would be very large; of an improper prior
    the middle of its support, where the unconstrained value is zero. (Pyro's
    ``init_to_median`` takes fifteen draws for all, by which it is a third of a standard deviation
    off: too far for posteriors that are much narrower than their priors.)

    Args:
        site: a site of a trace, as Pyro gives it to initialisation functions.

    Example:
        >>> import pyro.distributions as dist
        >>> prior = dist.Normal(3.0, 1.0).expand([2]).to_event(1)
        >>> init_to_prior_median({"fn": prior, "name": "x"})
        tensor([3., 3.])
    """
    fn = site["fn"]
    exact = _exact_median(fn)
    if exact is not None:
        return exact
    size = max(fn.shape().numel(), 1)
    try:
        return cast(Tensor, init_to_median(site, num_samples=min(max(10**6 // size, 15), 1000)))
    except NotImplementedError:  # improper priors, flat on the support, have no draws
        constrain = biject_to(fn.support)
        zeros = torch.zeros(constrain.inverse_shape(fn.shape()))
        return cast(Tensor, constrain(zeros))


def init_point(trace: Any, init_loc_fn: Callable[..., Any]) -> Tensor:
    """Return where an initialisation function would start: unconstrained, (latent_dim,).

    Args:
        trace: of the latent variables.
        init_loc_fn: one of Pyro's initialisation functions.
    """
    parts = []
    for name, site in trace.iter_stochastic_nodes():
        value = init_loc_fn({**site, "name": name})
        value = (value() if callable(value) else value).detach()
        parts.append(biject_to(site["fn"].support).inv(value).reshape(-1))
    return torch.cat(parts)


def _exact_median(fn: Any) -> Tensor | None:
    """Return the median by the quantile function of a distribution of independent numbers."""
    base = innermost(fn)
    if base.event_shape:
        return None
    try:
        median: Tensor = base.icdf(torch.tensor(0.5)).detach().expand(fn.shape()).clone()
        inside = fn.support.check(median) & torch.isfinite(median).reshape(fn.shape()).all()
    except NotImplementedError:
        return None
    return median if bool(inside.all()) else None


class NormalStart(NamedTuple):
    """A normal approximation of a posterior.

    Args:
        location: mean (D,), of the unconstrained variables.
        factor: lower triangular factor of the covariance (D, D).
        elbo: estimated evidence lower bound.
    """

    location: Tensor
    factor: Tensor
    elbo: float


class JointDensity:
    """The logarithm of p(data, u) of a model at one point, for ways to modes.

    In float64 where the model can be run in it: the curvature of a posterior of data in natural
    units is beyond float32.

    Args:
        model: the model.
        sites: its latent variables.
        args, kwargs: of the model.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        sites: Mapping[str, LatentSite],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        self.dtype = torch.float64
        wide = partial(model, *_widened(args), **_widened(kwargs))
        self._density = Density(wide, None, sites, self.dtype)
        try:
            self.value_and_gradient(torch.zeros(self._density.size, dtype=self.dtype))
        except (RuntimeError, TypeError, ValueError):  # data that the model holds itself
            self.dtype = torch.get_default_dtype()
            self._density = Density(partial(model, *args, **kwargs), None, sites, self.dtype)

    def __call__(self, u: Tensor) -> Tensor:
        """Return the density at u (D,), a scalar."""
        with self._arithmetic():
            return self._density(u.unsqueeze(0)).squeeze(0)

    def value_and_gradient(self, u: Tensor) -> tuple[float, Tensor]:
        """Return the density and its gradient; minus infinity and zeros where it is no number."""
        u = u.detach().requires_grad_()
        with torch.enable_grad():
            try:
                value = self(u)
            except ValueError:  # arguments outside a distribution's range, by overflow
                return -math.inf, torch.zeros_like(u)
            (gradient,) = torch.autograd.grad(value, u)
        if not (bool(value.isfinite()) and bool(gradient.isfinite().all())):
            return -math.inf, torch.zeros_like(gradient)
        return float(value.detach()), gradient

    def hessian(self, u: Tensor) -> Tensor:
        """Return second derivatives (D, D), by one backward pass for each dimension."""
        u = u.detach().requires_grad_()
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(self(u), u, create_graph=True)
            rows = [torch.autograd.grad(part, u, retain_graph=True)[0] for part in gradient]
        full = torch.stack(rows)
        return ((full + full.mT) / 2).detach()

    @contextmanager
    def _arithmetic(self) -> Iterator[None]:
        before = torch.get_default_dtype()
        torch.set_default_dtype(self.dtype)
        try:
            yield
        finally:
            torch.set_default_dtype(before)


def expect_proper(density: JointDensity, point: Tensor, sites: Mapping[str, LatentSite]) -> None:
    """Raise a ValueError for latent variables on the real line that a density says nothing of.

    Such a posterior has no end, and an ELBO rises for ever as a guide widens.

    Args:
        density: of the joint distribution.
        point: where to look (D,), off by a little, since slopes may vanish at a median.
        sites: the latent variables.
    """
    off = torch.randn(len(point), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    here = (point.cpu().double() + off).to(point.device, density.dtype)
    value, gradient = density.value_and_gradient(here)
    flat = gradient == 0
    if not (math.isfinite(value) and bool(flat.any())):
        return
    if any(density.value_and_gradient(here + far * flat)[0] != value for far in (-_FAR, _FAR)):
        return
    parts = flat.split([site.unconstrained.numel() for site in sites.values()])
    counts = [
        f"{int(part.sum())} of {len(part)} numbers of {name!r}"
        for name, part in zip(sites, parts, strict=True)
        if bool(part.any())
    ]
    raise ValueError(
        f"Expected model to have a density that falls far out; got {', '.join(counts)} of which it "
        "says nothing: of a flat prior without data, or masked, as by obs_mask, which has a latent "
        "variable for every row. There, poutine.mask(mask=...) with obs= leaves out missing rows"
    )


def _widened(value: Any) -> Any:
    """Return arguments with their float32 tensors in float64."""
    if isinstance(value, Tensor):
        return value.double() if value.dtype == torch.float32 else value
    if type(value) in (list, tuple):
        return type(value)(_widened(item) for item in value)
    if type(value) is dict:
        return {key: _widened(item) for key, item in value.items()}
    return value


def find_starts(
    density: JointDensity, starts: Mapping[str, Tensor], generator: torch.Generator
) -> list[tuple[str, NormalStart]]:
    """Return normal approximations found along the ways from some points to their modes.

    Pathfinder's idea: modes can be far from where the mass is (a funnel has one at its infinitely
    narrow end), but the way there passes it, and an estimate of the ELBO says where.

    Args:
        density: of the joint distribution.
        starts: points (D,) by name.
        generator: source of randomness.

    Returns:
        the name of the point and the approximation, of every way its best one, the best way first.

    Raises:
        ValueError: if the density is no number at all of the points.

    References:
        Zhang, Carpenter, Gelman & Vehtari 2022, *Pathfinder: Parallel Quasi-Newton Variational
        Inference*, sections 2-3.
    """
    best: list[tuple[str, NormalStart]] = []
    for name, point in starts.items():
        ways = list(_along_the_way(density, point.to(density.dtype), generator))
        if ways:
            best.append((name, max(ways, key=lambda start: start.elbo)))
    finite = [(name, start) for name, start in best if start.elbo > -math.inf]
    if best and not finite:
        raise ValueError(
            "Expected model to have a density wherever its latent variables may be; got places "
            "without one beside every start. Tell the sites where they end, as by "
            "Uniform(low, high): no guide learns an edge that only the likelihood knows"
        )
    if not best:
        raise ValueError(
            "Expected model to have a finite density somewhere near its start; got none that is "
            f"a number, from {', '.join(starts)}. Give the guide an init_loc_fn where it has one"
        )
    return sorted(finite, key=lambda found: -found[1].elbo)


def apart(density: JointDensity, first: NormalStart, second: NormalStart) -> bool:
    """Tell whether two normal approximations are of different modes: each far from the other.

    Between modes the density falls, be it that they differ in one variable of many.
    """
    way = (second.location - first.location).unsqueeze(-1)
    distances = [
        float(torch.linalg.solve_triangular(start.factor, way, upper=False).norm())
        for start in (first, second)
    ]

    def heights(points: Tensor) -> Tensor:
        return torch.tensor([density.value_and_gradient(point)[0] for point in points])

    return min(distances) > _APART and falls_between(heights, first.location, second.location)


def falls_between(heights: Callable[[Tensor], Tensor], first: Tensor, second: Tensor) -> bool:
    """Tell whether a log-density (N,) of points (N, D) is lower between two places."""
    steps = torch.linspace(0, 1, _BETWEEN + 2, dtype=first.dtype, device=first.device)
    found = heights(torch.lerp(first, second, steps.unsqueeze(-1)))
    return bool(found[1:-1].min() < torch.minimum(found[0], found[-1]) - _DIP)


def _along_the_way(
    density: JointDensity, point: Tensor, generator: torch.Generator
) -> Iterator[NormalStart]:
    """Return normal approximations on the way from a point to its mode."""
    path = _ascend(density, point)
    if not path:
        return
    places = sorted({round(i * (len(path) - 1) / (_LOOKS - 1)) for i in range(_LOOKS)})
    found = [_judge(density, *path[place], generator) for place in places]
    yield from found
    if len(point) > _HESSIAN_UP_TO:
        return
    top = max(found, key=lambda start: start.elbo)
    for location in (top.location, _newton(density, path[-1][0])):
        covariance = definite_inverse(-density.hessian(location))
        yield _judge(density, location, covariance, generator)


def _ascend(density: JointDensity, point: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Return points on the way of L-BFGS to the mode, with its estimates of the covariance."""
    u = point.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [u], max_iter=1, history_size=10, line_search_fn="strong_wolfe", tolerance_change=0
    )
    last = math.nan

    def closure() -> Tensor:
        nonlocal last
        last, gradient = density.value_and_gradient(u)
        u.grad = -gradient
        # A wall that is no number is a high one for the line search.
        return torch.tensor(-last if math.isfinite(last) else 1e30, dtype=torch.float64)

    path: list[tuple[Tensor, Tensor]] = []
    before, still = -math.inf, 0
    for _ in range(_STEPS):
        optimizer.step(closure)
        here, gradient = density.value_and_gradient(u)
        if not math.isfinite(here):
            break
        path.append((u.detach().clone(), _lbfgs_covariance(optimizer, len(point), u)))
        still = still + 1 if here - before < 1e-4 else 0
        if still == 3 or float(gradient.abs().max()) < 1e-8:
            break
        before = here
    return path


def _lbfgs_covariance(optimizer: torch.optim.LBFGS, size: int, u: Tensor) -> Tensor:
    """Return the inverse Hessian that L-BFGS has found out so far (D, D)."""
    state = optimizer.state[u]
    result: Tensor = torch.eye(size, dtype=u.dtype) * state.get("H_diag", 1.0)
    for y, s, rho in zip(
        state.get("old_dirs") or (),
        state.get("old_stps") or (),
        state.get("ro") or (),
        strict=True,
    ):
        # One update by Broyden, Fletcher, Goldfarb and Shanno: (I - r s y') H (I - r y s') + r s s'
        Hy = result @ y
        result = result - rho * (torch.outer(s, Hy) + torch.outer(Hy, s))
        result = result + (rho * rho * (y @ Hy) + rho) * torch.outer(s, s)
    return result


def _newton(density: JointDensity, u: Tensor) -> Tensor:
    """Find the mode from a point near it: L-BFGS creeps where directions differ in scale."""
    value, gradient = density.value_and_gradient(u)
    for _ in range(15):
        step = definite_inverse(-density.hessian(u)) @ gradient
        for halving in range(8):
            there = u + step / 2**halving
            new, new_gradient = density.value_and_gradient(there)
            if new > value:
                break
        else:
            return u
        gain, u, value, gradient = new - value, there, new, new_gradient
        if gain < 1e-6:
            break
    return u


def definite_inverse(precision: Tensor) -> Tensor:
    """Return the inverse of a symmetric matrix with its eigenvalues made positive."""
    if not bool(precision.isfinite().all()):
        return torch.eye(len(precision), dtype=precision.dtype)
    # Of the matrix in units in which its diagonal is one: scales may differ by ten powers of ten.
    diagonal = precision.diagonal().abs()
    unit = diagonal.clamp(min=max(float(diagonal.max()), 1.0) * 1e-20).rsqrt()
    values, vectors = torch.linalg.eigh(unit[:, None] * precision * unit)
    floor = float(values.abs().max()) * 100 * torch.finfo(values.dtype).eps
    half = vectors * values.abs().clamp(min=floor).rsqrt()
    half = unit[:, None] * half
    inverse: Tensor = half @ half.mT
    return inverse


def _judge(
    density: JointDensity, location: Tensor, covariance: Tensor, generator: torch.Generator
) -> NormalStart:
    """Return a normal approximation with an estimate of its ELBO."""
    factor, failed = torch.linalg.cholesky_ex(covariance)
    if int(failed) or not bool(factor.isfinite().all()):
        factor = torch.diag(covariance.diagonal().clamp(min=1e-12).sqrt())
    log_scale = float(factor.diagonal().log().sum())
    total = 0.0
    with torch.no_grad():
        for _ in range(_DRAWS):
            z = torch.randn(len(location), dtype=torch.float64, generator=generator)
            log_q = float(-0.5 * (z @ z)) - 0.5 * len(z) * math.log(2 * math.pi) - log_scale
            try:
                value = float(density(location + factor @ z.to(factor.dtype)))
            except ValueError:  # arguments outside a distribution's range, by overflow
                value = -math.inf
            total += value - log_q
    elbo = total / _DRAWS
    return NormalStart(location, factor, elbo if math.isfinite(elbo) else -math.inf)
