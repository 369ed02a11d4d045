"""This library's models as nflows' distributions, transforms and flows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from nflows.distributions.base import Distribution as NflowsDistribution
from nflows.flows.base import Flow as NflowsFlow
from nflows.transforms.base import Transform as NflowsTransform
from torch import Tensor, nn

from made_flows._checks import expect, expect_type
from made_flows.models.base import check_model
from made_flows.models.flows import Flow
from made_flows.nflows.flows import CheckedFlow, InBatches
from made_flows.transforms.base import Transform
from made_flows.transforms.chain import Chain
from made_flows.transforms.units import Units


class AsDistribution(InBatches, NflowsDistribution):
    r"""A density model or flow of this library as an nflows distribution.

    It can stand alone or be the base of an nflows flow. A model without a context takes that of
    the flow as the number of its samples only, as nflows' own unconditional bases do.

    Args:
        model: a module that is called with its context to give a distribution of (D,), such as
            :class:`~made_flows.GaussianMADE` or :class:`~made_flows.MAF`.

    Shapes:
        log_prob of (rows, D) with context (rows, C): (rows,). sample(n): (n, D), or (rows, n, D)
        with a context.

    Raises:
        TypeError: for anything that is not such a module.
        ValueError: for a context that is missing.

    Example:
        >>> import made_flows as mf
        >>> distribution = AsDistribution(mf.GaussianMixtureMADE(3))
        >>> distribution.log_prob(distribution.sample(5)).shape
        torch.Size([5])
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = check_model(model, "model")

    def _given(self, context: Tensor | None) -> Any:
        return self.model(context if self.model.context else None)

    def _log_prob(self, inputs: Tensor, context: Tensor | None) -> Tensor:
        return cast(Tensor, self._given(context).log_prob(inputs))

    def _sample(self, num_samples: int, context: Tensor | None) -> Tensor:
        distribution = self._given(context)
        carries = torch.is_grad_enabled() and distribution.has_rsample
        draw = distribution.rsample if carries else distribution.sample
        if context is None:
            samples: Tensor = draw((num_samples,))
        elif distribution.batch_shape:
            samples = draw((num_samples,)).transpose(0, 1)
        else:
            samples = draw((len(context), num_samples))
        return samples


class _AsBase(AsDistribution):
    """The base of a flow: it takes contexts in the units of the flow's networks."""

    def __init__(self, flow: Flow) -> None:
        super().__init__(flow.base)
        self._units = (flow.units,)  # no module of this one's, but of the transform's

    def _given(self, context: Tensor | None) -> Any:
        return super()._given(self._units[0].standardize_context(context))


class AsTransform(NflowsTransform):
    r"""A transform or flow of this library as an nflows transform, from data to noise.

    .. math:: z = f_K \circ \dots \circ f_1(x; c)

    Args:
        transforms: a transform, a sequence of transforms from data to noise, or a flow, of which
            the transforms are taken.

    Raises:
        TypeError: for anything else.

    Example:
        >>> import made_flows as mf
        >>> transform = AsTransform(mf.MAF(3, transforms=2))
        >>> noise, log_det = transform(torch.zeros(5, 3))
        >>> noise.shape, log_det.shape
        (torch.Size([5, 3]), torch.Size([5]))
    """

    def __init__(self, transforms: Transform | Sequence[Transform] | Flow) -> None:
        super().__init__()
        given: Any = transforms
        self.units = None
        if isinstance(given, Flow):
            self.units, given = given.units, given.transforms
        elif isinstance(given, Transform):
            given = [given]
        known = isinstance(given, Sequence | nn.ModuleList) and all(
            isinstance(transform, Transform) for transform in given
        )
        expect_type(known, "transforms", "to be transforms or a flow of this library", transforms)
        expect(len(given) > 0, "transforms", "to be at least one", "none")
        self.transforms = nn.ModuleList(given)

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map data (rows, D) to noise (rows, D), and return log-determinants (rows,)."""
        return self._chain().to_noise(inputs, self._reduced(context))

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map noise (rows, D) to data (rows, D), and return log-determinants (rows,)."""
        return self._chain().to_data(inputs, self._reduced(context))

    def made_flows_generate(self, inputs: Tensor, context: Tensor | None = None) -> Tensor:
        """Map noise (rows, D) to data (rows, D), without log-determinants."""
        return self._chain().generate(inputs, self._reduced(context))

    def _chain(self) -> Chain:
        active = self.units is not None and self.units.location is not None
        transforms: list[Any] = list(self.transforms)
        if active:
            transforms.insert(len(cast(Units, self.units).before), self.units)
        return Chain(transforms)

    def _reduced(self, context: Tensor | None) -> Tensor | None:
        """Return the context in the units of the flow's networks."""
        return context if self.units is None else self.units.standardize_context(context)


class AsFlow(CheckedFlow, NflowsFlow):
    r"""A flow of this library, such as an MAF or IAF, as an nflows flow.

    Args:
        flow: the flow. Its transforms and base are shared, not copied.
        embedding_net: what turns a context into the flow's context variables, or None.

    Shapes:
        log_prob of (rows, D) with context (rows, ...): (rows,). sample(n): (n, D), or (rows, n, D)
        with a context.

    Raises:
        TypeError: if ``flow`` is no flow of this library.
        ValueError: for a context that is missing.

    Example:
        >>> import made_flows as mf
        >>> flow = AsFlow(mf.IAF(3, context=2))
        >>> flow.sample(5, torch.zeros(4, 2)).shape
        torch.Size([4, 5, 3])
    """

    def __init__(self, flow: Flow, embedding_net: nn.Module | None = None) -> None:
        expect_type(isinstance(flow, Flow), "flow", "to be a made_flows.Flow", flow)
        super().__init__(AsTransform(flow), _AsBase(flow), embedding_net)
