"""Autoregressive transforms: a conditioner and a bijection, read from data or from noise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor

from made_flows._checks import check_event, expect, expect_type, expect_word
from made_flows._registry import saveable
from made_flows.inverse.parallel import parallel_pass
from made_flows.inverse.plans import Stage, map_all
from made_flows.inverse.problem import Conditioner
from made_flows.inverse.sequential import sequential_inverse
from made_flows.inverse.steps import BijectionStep
from made_flows.nn.made import MADE
from made_flows.transforms.base import Transform
from made_flows.univariate.bijections import Bijection

Way = Literal["to_noise", "to_data", "generate"]
"""The methods by which a transform maps values."""


@saveable
class AutoregressiveTransform(Transform):
    r"""A conditioner and a bijection: every feature is mapped by parameters from those before it.

    .. math:: x_i = g(z_i; \theta_i(x_{<i}, c)) \quad \text{(reads data)}, \qquad
        x_i = g(z_i; \theta_i(z_{<i}, c)) \quad \text{(reads noise)}

    with g the bijection's forward map. The direction in which the conditioner's input is known
    is one pass of the network; the other is one sequential inverse, followed by a pass at the
    solution for the log-determinant. Sequential directions never drop units.

    Args:
        conditioner: a :class:`~made_flows.MADE` with the bijection's number of parameters.
        bijection: the one-dimensional map.
        reads: ``"data"`` (MAF: density in one pass) or ``"noise"`` (IAF: samples in one pass).

    Raises:
        TypeError: for a conditioner or bijection of another kind.
        ValueError: for an unknown ``reads``, or a conditioner of another number of parameters
            or more than one input per feature.

    References:
        Papamakarios et al. 2017, *Masked Autoregressive Flow*, equations 3-6; Kingma et al. 2016,
        *Improved Variational Inference with Inverse Autoregressive Flow*, equations 9-11.

    Example:
        >>> import torch, made_flows as mf
        >>> transform = AutoregressiveTransform(mf.MADE(3, parameters=2), mf.Affine())
        >>> z, log_det = transform.to_noise(torch.zeros(10, 3))
        >>> z.shape, log_det.shape
        (torch.Size([10, 3]), torch.Size([10]))
    """

    unit_free = True

    def __init__(
        self, conditioner: MADE, bijection: Bijection, reads: Literal["data", "noise"] = "data"
    ) -> None:
        super().__init__()
        expect_type(isinstance(conditioner, MADE), "conditioner", "to be a MADE", conditioner)
        expect_type(isinstance(bijection, Bijection), "bijection", "to be a Bijection", bijection)
        expect_word(reads, ("data", "noise"), "reads", "to be 'data' or 'noise'")
        for argument, got, wanted in (
            ("parameters", conditioner.outputs, bijection.outputs),
            ("inputs", conditioner.inputs, 1),
        ):
            needed = f"to have {argument}={wanted}, as {type(bijection).__name__} needs"
            shown_got = got[0] if len(set(got)) == 1 else got
            expect(set(got) == {wanted}, "conditioner", needed, shown_got)
        self.features, self.context = conditioner.features, conditioner.context
        self.conditioner = conditioner
        self.bijection = bijection
        self.reads = reads
        if reads == "data":
            self.data_pass = "sequential"
        else:
            self.noise_pass = "sequential"
        conditioner.start_at(bijection.initial_parameters())

    @property
    def random_part(self) -> str:
        made: Any = self._modules["conditioner"]  # as an attribute it takes longer
        return cast(str, made.random_part)

    def to_noise(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        step = BijectionStep(self.bijection, "inverse")
        return self._map(step, x, context, parallel=self.reads == "data")

    def to_data(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        step = BijectionStep(self.bijection, "forward")
        return self._map(step, z, context, parallel=self.reads == "noise")

    def generate(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        step = BijectionStep(self.bijection, "forward")
        if self.reads == "noise":
            return self._map(step, z, context, parallel=True)[0]
        return self._solve(step, z, context)

    def _map(
        self, step: BijectionStep, known: Tensor, context: Tensor | None, *, parallel: bool
    ) -> tuple[Tensor, Tensor]:
        """Map known values; in the parallel direction they are what the network reads."""
        if parallel:
            found = parallel_pass(self.conditioner, step, known, context)
            return cast(tuple[Tensor, Tensor], found)
        solution = self._solve(step, known, context)
        each = step.mapped(known, self.conditioner.as_called(solution, context))[1]
        return solution, each.sum(dim=-1)

    def _solve(self, step: BijectionStep, known: Tensor, context: Tensor | None) -> Tensor:
        """Find the values that the network reads where the step makes the known ones of them."""
        check_event(known, "values", self.features, self.conditioner.dtype)
        context = self.conditioner.check_context(context)
        conditioner = cast(Conditioner, self.conditioner)
        return sequential_inverse(conditioner, step, known.unsqueeze(-1), context)

    def extra_repr(self) -> str:
        return f"reads={self.reads!r}"


def map_together(
    transforms: Sequence[Any], way: Way, values: Tensor, context: Tensor | None
) -> tuple[int, Tensor, Tensor | None] | None:
    """Take the first of some transforms in one compiled call, without gradients.

    Returns:
        How many, values (..., D), and log-determinants (...), which ``generate`` may leave out.
        None where the first is to be taken by itself.
    """
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return None
    first = transforms[0]
    made = first._modules.get("conditioner") if type(first) is AutoregressiveTransform else None
    if not isinstance(made, MADE):
        return None
    return map_all(made, lambda: _stages(transforms, way), transforms, way, values, context)


def _stages(transforms: Sequence[Any], way: Way) -> list[Stage]:
    """Name the networks and maps of the first of some transforms, those that go together."""
    direction: Any = "inverse" if way == "to_noise" else "forward"
    known = "data" if way == "to_noise" else "noise"
    stages: list[Stage] = []
    for each in transforms:
        if type(each) is not AutoregressiveTransform or way in vars(each):
            break
        sequential, made = each.reads != known, each._modules["conditioner"]
        # The log-determinant of a sequential map is a pass of its own.
        if not isinstance(made, MADE) or (sequential and way != "generate"):
            break
        stages.append(Stage(made, BijectionStep(each.bijection, direction), sequential))
    return stages
