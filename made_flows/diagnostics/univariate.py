"""Checks of bijections and heads by numbers: what a user's own says of itself is what it does."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.distributions import constraints

from made_flows._checks import (
    as_numbers,
    check_generator,
    expect,
    expect_type,
    positive_integer,
    real_number,
)
from made_flows.univariate.bijections import Bijection
from made_flows.univariate.heads import Head, value_support

M = TypeVar("M", bound=nn.Module)

_Pair: TypeAlias = tuple[Tensor, Tensor]
"""Derivatives with respect to values (...) and to parameters (..., K)."""

_GRID = 20_001
_REACH = 12.0
_DRAWS = 20_000
_DISTANCE = 2.7 / _DRAWS**0.5
"""The Kolmogorov-Smirnov distance that draws of the right distribution exceed once in a million."""

_OF_A_SEARCH = ". (A search for the value has none of use: end it with a step of Newton's)"


@dataclass(frozen=True)
class BijectionReport:
    """The largest errors that :func:`check_bijection` met.

    Args:
        round_trip: of the inverse of the image, relative to the value where that is above 1.
        log_derivative: of the logarithms of both derivatives.
    """

    round_trip: float
    log_derivative: float


@dataclass(frozen=True)
class HeadReport:
    """The largest errors that :func:`check_head` met.

    Args:
        total: of the total probability, which is to be 1.
        samples: the largest distance between the distribution functions of samples and of scores.
    """

    total: float
    samples: float


def check_bijection(
    bijection: Bijection,
    parameters: Any = None,
    *,
    points: int = 200,
    tolerance: float = 1e-6,
    generator: torch.Generator | None = None,
) -> BijectionReport:
    r"""Check a bijection's inverse, and its logarithms of derivatives against autograd.

    .. math:: f^{-1}(f(x)) = x, \qquad \ell(x) = \log f'(x), \qquad
        \ell^{-1}(f(x)) = -\log f'(x)

    in float64, at random values and parameters, and the gradients of the inverse, by which a MAF is
    trained, against those of the implicit function theorem (bisection alone has none of use: end it
    with a step of Newton's).

    Args:
        bijection: the bijection.
        parameters: (..., K); by default standard normal numbers around its initial parameters.
        points: number of values, each with parameters of its own.
        tolerance: the largest error that passes.
        generator: source of values and parameters.

    Returns:
        The largest errors.

    Raises:
        ValueError: for an error above the tolerance, a derivative that is not positive, a number
            without an inverse, and shapes other than those of the values, naming the value and
            parameters.

    Example:
        >>> import made_flows as mf
        >>> check_bijection(mf.RationalQuadraticSpline()).round_trip < 1e-9
        True
    """
    expect_type(isinstance(bijection, Bijection), "bijection", "to be a Bijection", bijection)
    points = positive_integer(points, "points")
    tolerance = real_number(tolerance, "tolerance", above=0)
    check_generator(generator)
    bijection = _doubled(bijection)
    like = torch.empty(0, dtype=torch.float64)
    given = _parameters(bijection, (bijection.outputs,), parameters, points, generator)
    x = 3 * torch.randn(given.shape[:-1], generator=generator).to(like)
    compared = _Comparison(x, given, tolerance)
    leaf, wanted = x.clone().requires_grad_(), given.clone().requires_grad_()
    with torch.enable_grad():
        y, log_slope = _pair(bijection.forward(leaf, wanted), x, "forward")
        expect(y.requires_grad, "values of forward", "to depend on x by a gradient", "constants")
        slopes, bends = (_gradients(each, leaf, wanted) for each in (y, log_slope))
        image, known = y.detach().requires_grad_(), given.clone().requires_grad_()
        back, log_inverse = _pair(bijection.inverse(image, known), x, "inverse")
        back_slopes, back_bends = (_gradients(each, image, known) for each in (back, log_inverse))
    with torch.no_grad():
        rising = torch.where(slopes[0] > 0, 0.0, torch.inf)
        compared.largest(rising, "the derivative of forward", "above 0", slopes[0])
        exact, error = slopes[0].log(), (back - x).abs() / x.abs().clamp(min=1)
        trip = compared.largest(error, "inverse(forward(x))", x, back)
        # Noise may be any number, and so may data: nothing is outside the image.
        y = x.flip(0)
        again = bijection.forward(bijection.inverse(y, given)[0], given)[0]
        error = (again - y).abs() / y.abs().clamp(min=1)
        compared.largest(error, "forward(inverse(y)), whatever the number y,", y, again, y, "y")
        error = (log_slope - exact).abs()
        of_forward = compared.largest(error, "forward's log-derivative", exact, log_slope)
        error = (log_inverse + exact).abs()
        of_inverse = compared.largest(error, "inverse's log-derivative", -exact, log_inverse)
        exact_slopes, exact_bends = _of_inverse(slopes, bends)
        compared.gradients("inverse", exact_slopes, back_slopes, _OF_A_SEARCH)
        compared.gradients("inverse's log-derivative", exact_bends, back_bends)
    return BijectionReport(trip, max(of_forward, of_inverse))


def check_head(
    head: Head,
    parameters: Any = None,
    *,
    points: int = 3,
    tolerance: float = 1e-4,
    generator: torch.Generator | None = None,
) -> HeadReport:
    r"""Check that a head's probabilities sum to one, and that its samples follow them.

    .. math:: \int p(x)\, dx = 1, \qquad \sup_t |F_n(t) - F(t)| < 2.7 / \sqrt n

    by quadrature or, where values are integers, by enumeration; in float64, under random
    parameters. Samples are drawn from torch's global generator, 20000 of each feature.

    Args:
        head: the head. Its values are real, bounded below or on both sides, or integers with a
            least one (which 20000 hold nearly all of the probability of).
        parameters: (..., D, K); by default standard normal numbers around its initial parameters.
        points: number of random parameters.
        tolerance: the largest error of a sum that passes.
        generator: source of random parameters.

    Returns:
        The largest errors.

    Raises:
        ValueError: for a sum that is not one and for samples of another distribution, naming the
            feature and its parameters.
        TypeError: for a head with another support.

    Example:
        >>> import made_flows as mf
        >>> check_head(mf.GaussianMixtureMADE(3).head).total < 1e-6
        True
    """
    expect_type(isinstance(head, Head), "head", "to be a Head", head)
    points = positive_integer(points, "points")
    tolerance = real_number(tolerance, "tolerance", above=0)
    check_generator(generator)
    head = _doubled(head)
    outputs = head.outputs if isinstance(head.outputs, tuple) else (head.outputs,)
    given = _parameters(head, outputs, parameters, points, generator)
    features = given.shape[-2]
    largest = HeadReport(0.0, 0.0)
    for each in given.reshape(-1, *given.shape[-2:]):
        x, weights = _places(head.support, features)
        with torch.no_grad():
            mass = (head.log_prob(x, each).exp() * weights).nan_to_num(nan=torch.inf)
            noise = head.noise((_DRAWS, features), each)
            of_features = torch.arange(features).expand(_DRAWS, -1)
            drawn = head.step_at(noise, each.expand(_DRAWS, -1, -1), of_features).double()
        totals = mass.sum(dim=0)
        for d in range(features):
            total, where = float(totals[d]), f"of feature {d} with parameters {each[d].tolist()}"
            right = abs(total - 1) <= tolerance
            expect(right, f"probabilities {where}", "to sum to 1", f"{total:.6g}")
            values, places = drawn[:, d].contiguous(), x[:, d].double().contiguous()
            distance = _distance(values, places, mass[:, d], discrete=head.support.is_discrete)
            right, got = distance <= _DISTANCE + tolerance, f"functions {distance:.3g} apart"
            wanted = "to follow its probabilities"
            expect(right, f"samples {where}", wanted, f"distribution {got}")
            largest = HeadReport(max(largest.total, abs(total - 1)), max(largest.samples, distance))
    return largest


@dataclass(frozen=True)
class _Comparison:
    """What is compared at values x (...) under parameters (..., K), up to a tolerance."""

    x: Tensor
    parameters: Tensor
    tolerance: float

    def largest(
        self, error: Tensor, name: str, expected: Tensor | str, got: Tensor,
        at: Tensor | None = None, of: str = "x", advice: str = "",
    ) -> float:  # fmt: skip
        """Return the largest error, or raise a ValueError that names where one is too large."""
        wrong = ~(error <= self.tolerance)
        if bool(wrong.any()):
            i = tuple(wrong.nonzero()[0].tolist())
            words = expected if isinstance(expected, str) else f"{float(expected[i]):.6g}"
            value = float((self.x if at is None else at)[i])
            place = f"at {of}={value:.6g} with parameters {self.parameters[i].tolist()}"
            expect(False, name, f"to be {words} {place}", f"{float(got[i]):.6g}{advice}")
        return float(error.max())

    def gradients(self, name: str, exact: _Pair, found: _Pair, advice: str = "") -> None:
        """Compare the gradients of a map with respect to its values and its parameters."""
        for of, expected, got in zip(("y", "a parameter"), exact, found, strict=True):
            error = (got - expected).abs() / expected.abs().clamp(min=1)
            if got.dim() > self.x.dim():  # the worst parameter of each value stands for all
                error, worst = error.max(dim=-1)
                expected, got = (t.gather(-1, worst[..., None])[..., 0] for t in (expected, got))
            gradient = f"the gradient of {name} with respect to {of}"
            self.largest(error, gradient, expected, got, advice=advice)


def _of_inverse(slopes: _Pair, bends: _Pair) -> tuple[_Pair, _Pair]:
    """Return the derivatives of the inverse, and of its log-derivative, by those of the map.

    x(y, p) has derivatives 1 / f' and -(df/dp) / f'; log f' at it follows by the chain rule.
    """
    (slope, by_parameter), (bend, bend_by_parameter) = slopes, bends
    shift = -by_parameter / slope.unsqueeze(-1)
    return (1 / slope, shift), (-bend / slope, -bend_by_parameter - bend.unsqueeze(-1) * shift)


def _gradients(of: Tensor, x: Tensor, parameters: Tensor) -> _Pair:
    """Return the derivatives of values (...) with respect to x (...) and parameters (..., K)."""
    if not of.requires_grad:
        return torch.zeros_like(x), torch.zeros_like(parameters)
    return torch.autograd.grad(  # type: ignore[return-value]
        of.sum(), (x, parameters), retain_graph=True, materialize_grads=True
    )


def _doubled(module: M) -> M:
    return copy.deepcopy(module).double().eval()


def _pair(got: Any, x: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """Return values and log-derivatives that a map gave, if that is what they are."""
    pair = isinstance(got, tuple) and len(got) == 2
    expect_type(pair, name, "to return a pair: values and log-derivatives", got)
    for each, words in zip(got, ("values", "log-derivatives"), strict=True):
        expect_type(isinstance(each, Tensor), f"{words} of {name}", "to be a tensor", each)
        shape = f"of shape {tuple(x.shape)}"
        expect(each.shape == x.shape, f"{words} of {name}", shape, tuple(each.shape))
    return cast("tuple[Tensor, Tensor]", got)


def _parameters(
    module: Bijection | Head,
    outputs: tuple[int, ...],
    given: Any,
    points: int,
    generator: torch.Generator | None,
) -> Tensor:
    """Make parameters (points, K) of a bijection or (points, D, K) of a head, given or random."""
    largest = max(outputs)
    if given is not None:
        checked = as_numbers(given, "parameters").double()
        right = checked.dim() > 0 and checked.shape[-1] == largest
        expect(right, "parameters", f"of shape (..., {largest})", tuple(checked.shape))
        if isinstance(module, Head):
            checked = checked if checked.dim() > 1 else checked.unsqueeze(0)
        return checked
    rows = (points, len(outputs)) if isinstance(module, Head) else (points,)
    drawn = torch.randn(*rows, largest, generator=generator, dtype=torch.float64)
    start = module.initial_parameters()
    if start is not None:
        drawn = drawn + start.double().reshape(*rows[1:], largest)
    if isinstance(module, Head):
        own = torch.arange(largest) < torch.tensor(outputs).unsqueeze(1)
        drawn = drawn.masked_fill(~own, -torch.inf)
    return drawn


def _places(support: Any, features: int) -> tuple[Tensor, Tensor]:
    """Spread values (N, D) over a support, with the length or number (N, D) of each."""
    support = value_support(support)
    if isinstance(support, type(constraints.boolean)):
        x = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
        return x.expand(-1, features), torch.ones(2, features)
    bounds = (getattr(support, f"{end}_bound", None) for end in ("lower", "upper"))
    low, high = (None if e is None else torch.as_tensor(e).expand(features) for e in bounds)
    if isinstance(support, type(constraints.nonnegative_integer)) and low is not None:
        x = low + torch.arange(_GRID, dtype=torch.float64).unsqueeze(1)
        return x, torch.ones_like(x)
    if isinstance(support, type(constraints.integer_interval(0, 1))) and low is not None:
        above = cast(Tensor, high).long()
        x = low.long() + torch.arange(int((above - low).max()) + 1).unsqueeze(1)
        return torch.minimum(x, above), (x <= above).double()
    # A step of t moves x in proportion to its distance from where the support, or its middle, is.
    real = isinstance(support, type(constraints.real))
    # Beside one end a density may be as x ** -0.7, and far out as that of logarithms.
    reach = _REACH if real or high is not None else 3 * _REACH
    t = torch.linspace(-reach, reach, _GRID, dtype=torch.float64).unsqueeze(1)
    t, step = t.expand(-1, features), 2 * reach / (_GRID - 1)
    if real:
        return torch.sinh(t), torch.cosh(t) * step
    kinds = (constraints.greater_than, constraints.greater_than_eq, constraints.interval,
             constraints.half_open_interval)  # fmt: skip
    wanted = "to be real, bounded, boolean or integers with a least one"
    expect_type(isinstance(support, kinds), "support", wanted, support)
    start = cast(Tensor, low)
    if high is None:
        return start + t.exp(), t.exp() * step
    share, length = torch.sigmoid(2 * t), high - start
    return start + length * share, 2 * length * share * (1 - share) * step


def _distance(drawn: Tensor, x: Tensor, mass: Tensor, *, discrete: bool) -> float:
    """Compare the distribution function of draws with that of masses: largest distance."""
    order = x.argsort()
    places, ordered = x[order], drawn.sort().values
    until = torch.searchsorted(ordered, places, right=True) / len(drawn)
    upper = mass[order].cumsum(0)
    if discrete:
        return float((until - upper).abs().max())
    # Where values are continuous, a place stands for those around it: its own mass is no distance.
    before = torch.searchsorted(ordered, places, right=False) / len(drawn)
    return float(torch.maximum(before - upper, upper - mass[order] - until).max())
