"""Checks that a network is what it claims to be."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from made_flows._checks import check_generator, expect, expect_type, positive_integer, shown
from made_flows._keywords import helpful
from made_flows.nn import masks as mk
from made_flows.nn.made import MADE


class AutoregressiveError(ValueError):
    """A feature's parameters depend on a feature that does not come before it.

    Attributes:
        output: the feature whose parameters are at fault.
        input: the feature that they depend on.
    """

    def __init__(self, output: int, source: int, how: str) -> None:
        self.output, self.input = output, source
        super().__init__(
            f"Expected the parameters of feature {output} to depend only on features that come "
            f"before it; got a dependence on feature {source} ({how})"
        )


@dataclass(frozen=True)
class AutoregressiveReport:
    """What was checked, and which allowed dependencies are missing.

    Args:
        features: number of features D.
        missing: pairs (feature, earlier feature) that are allowed but not connected.
        checked: the ways in which it was checked.
    """

    features: int
    missing: list[tuple[int, int]] = field(default_factory=list)
    checked: tuple[str, ...] = ("autograd",)

    def __str__(self) -> str:
        said = f"autoregressive in {self.features} features (by {' and '.join(self.checked)})"
        if not self.missing:
            return f"{said}, fully connected"
        count, (i, j) = len(self.missing), self.missing[0]
        return f"{said}; {count} allowed dependencies are missing, first: feature {i} on {j}"


@helpful
def check_autoregressive(
    conditioner: Callable[..., Any],
    features: int | None = None,
    context: Tensor | None = None,
    *,
    order: Any = "natural",
    points: int = 4,
    generator: torch.Generator | None = None,
) -> AutoregressiveReport:
    r"""Check that a network is autoregressive: by its masks where it has masks, and by autograd.

    .. math:: \partial\, \theta_i / \partial x_j = 0 \quad \text{unless } j \text{ comes before } i

    Args:
        conditioner: a :class:`~made_flows.MADE`, or any function from x (..., D) (and a context)
            to parameters of shape (..., D, K), (..., D) or a tuple of (..., D).
        features: number of features D; read off a MADE.
        context: the context to check under, where the network needs one.
        order: the order of a function's features: a name or permutation as for a MADE.
        points: number of random points at which derivatives are taken.
        generator: source of the points.

    Returns:
        A report; its ``missing`` lists allowed dependencies that are not there. (By autograd
        alone, a dependency may also seem missing because its derivative vanished at every point.)

    Raises:
        AutoregressiveError: naming the offending (output, input) pair.
        ValueError: for a function without ``features``, or outputs of another shape.

    Example:
        >>> import made_flows as mf
        >>> print(check_autoregressive(mf.MADE(3)))
        autoregressive in 3 features (by masks and autograd), fully connected
    """
    points = positive_integer(points, "points")
    check_generator(generator)
    expect_type(callable(conditioner), "conditioner", "to be a MADE or a function", conditioner)
    if isinstance(conditioner, MADE):
        same = features is None or features == conditioner.features
        expect(same, "features", f"to be {conditioner.features}, as the MADE has them", features)
        plain = isinstance(order, str) and order == "natural"
        expect(plain, "order", "to be left out for a MADE, which has its own", shown(order))
        if context is not None:
            conditioner.check_context(context)
        features, ranks = conditioner.features, conditioner.ranks.cpu()
        function, columns = conditioner.as_called, conditioner.input_features.cpu()
        like = conditioner.ranks.new_empty(0, dtype=conditioner.dtype)
        if conditioner.context and context is None:
            context = torch.randn(conditioner.context, generator=generator).to(like)
        reach, allowed = conditioner.reach().cpu(), conditioner.allowed.cpu()
        _raise_first(reach & ~allowed, "by its masks")
        dependent = _dependence(function, features, columns, like, context, points, generator)
        checked: tuple[str, ...] = ("masks", "autograd")
    else:
        if features is None:
            parts = conditioner.named_modules() if isinstance(conditioner, nn.Module) else ()
            inside = [name for name, part in parts if isinstance(part, MADE)]
            words = f"to be a MADE, such as model.{', model.'.join(inside[:2])}"
            expect_type(not inside, "conditioner", words, conditioner)
            raise ValueError("Expected features, the number of them, for a function; got none")
        features = positive_integer(features, "features")
        ranks = mk.ranks_from_order(mk.make_order(features, order))
        allowed = ranks[:, None] > ranks
        columns, like = torch.arange(features), torch.empty(0, device="cpu")
        dependent = _dependence(conditioner, features, columns, like, context, points, generator)
        reach, checked = dependent, ("autograd",)
    _raise_first(dependent & ~allowed, "by autograd")
    return AutoregressiveReport(features, mk.lost_dependencies(reach, ranks, allowed), checked)


def _raise_first(wrong: Tensor, how: str) -> None:
    pairs: Sequence[Sequence[int]] = wrong.nonzero().tolist()
    if pairs:
        raise AutoregressiveError(pairs[0][0], pairs[0][1], how)


def _dependence(
    function: Callable[..., Any],
    features: int,
    columns: Tensor,
    like: Tensor,
    context: Tensor | None,
    points: int,
    generator: torch.Generator | None,
) -> Tensor:
    """Tell whether outputs of feature i have a non-zero derivative in feature j at any point.

    Input columns belong to the features ``columns``, and are of the kind of ``like``.
    """

    def outputs(x: Tensor) -> Tensor:
        result = function(x) if context is None else function(x, context)
        result = torch.stack(list(result), dim=-1) if isinstance(result, tuple) else result
        expect_type(isinstance(result, Tensor), "outputs", "to be a tensor", result)
        if result.dim() == 1:
            result = result.unsqueeze(-1)
        right = result.dim() == 2 and result.shape[0] == features
        expect(right, "outputs", f"of shape (..., {features}, K)", tuple(result.shape))
        return result.masked_fill(result == -torch.inf, 0)

    dependent = torch.zeros(features, features, dtype=torch.bool)
    for _ in range(points):
        x = torch.randn(len(columns), generator=generator).to(like)
        jacobian = torch.autograd.functional.jacobian(outputs, x)
        by_column = (torch.as_tensor(jacobian) != 0).any(dim=1).cpu()
        dependent |= (by_column.float() @ torch.eye(features)[columns]) > 0
    return dependent
