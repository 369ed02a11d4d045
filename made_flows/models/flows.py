"""Flows: transforms between data and the noise of a base, called with a context."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, constraints

from made_flows._checks import (
    check_broadcast,
    check_context,
    check_event,
    check_expanded,
    check_finite,
    expect,
    expect_type,
)
from made_flows._registry import saveable
from made_flows.models.bases import make_base
from made_flows.models.density import DensityModel
from made_flows.transforms.autoregressive import AutoregressiveTransform
from made_flows.transforms.base import Transform

__all__ = ["Flow", "FlowDistribution"]


@saveable
class Flow(nn.Module):
    r"""A density from a base by a chain of transforms, listed from data to noise.

    .. math:: \log p(x \mid c) = \log p_0(z \mid c) + \sum_k \log |\det J_k|, \qquad
        z = f_K \circ \dots \circ f_1(x; c)

    Calling the flow with its context gives a :class:`FlowDistribution`. A flow is a base too:
    ``Flow([Standardize.fit(x)], base=MAF(...))``.

    Args:
        transforms: the transforms, the first one next to the data.
        base: the distribution of the noise. None for a standard normal; a torch distribution with
            event shape (D,), whose tensors follow the flow's dtype and device as constants; or a
            model that is trained with the flow, such as
            :class:`~made_flows.GaussianMixtureMADE`, which is called with the context if it
            takes one.

    Raises:
        TypeError: for transforms or a base of another kind.
        ValueError: for numbers of features or context variables that differ.

    Example:
        >>> import made_flows as mf
        >>> flow = Flow([mf.InvertibleLinear(3)], base=mf.GaussianMADE(3))
        >>> flow().log_prob(torch.zeros(10, 3)).shape
        torch.Size([10])
    """

    def __init__(self, transforms: Sequence[Transform], base: Any = None) -> None:
        super().__init__()
        transforms = list(transforms)
        for i, transform in enumerate(transforms):
            name = f"transforms[{i}]"
            expect_type(isinstance(transform, Transform), name, "to be a Transform", transform)
            wanted = transforms[0].features
            got = transform.features
            expect(got == wanted, name, f"to have {wanted} features, as the first has", got)
        self.transforms = nn.ModuleList(transforms)
        self.base = make_base(base, transforms[0].features if transforms else None)
        self.features = int(cast(Any, self.base).features)
        contexts = [module.context for module in self._with_context()]
        expect(len(set(contexts)) <= 1, "transforms and base", "to take one context", contexts)
        self.context = contexts[0] if contexts else 0

    def _with_context(self) -> Iterator[Any]:
        """The transforms and the base as far as they take a context."""
        for module in (*self.transforms, self.base):
            if getattr(module, "context", 0):
                yield module

    def forward(self, context: Tensor | None = None) -> FlowDistribution:
        """The distribution of the data, given the context (..., C)."""
        return FlowDistribution(self, context)

    def check_context(self, context: Tensor | None) -> Tensor | None:
        """The context, checked against what the flow was made for."""
        return check_context(context, self.context, "flow")

    def base_distribution(self, context: Tensor | None = None) -> Distribution:
        """The distribution of the noise, given a context that was checked."""
        takes = getattr(self.base, "context", 0)
        return cast(Distribution, self.base(context) if takes else self.base())

    def to_noise(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Noise z (..., D) from data x (..., D), and log |det dz/dx| (...)."""
        total = x.new_zeros(x.shape[:-1], dtype=None if x.is_floating_point() else torch.float32)
        for transform in self._chain():
            x, log_det = transform.to_noise(x, context if transform.context else None)
            total = total + log_det
        return x, total

    def to_data(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Data x (..., D) from noise z (..., D), and log |det dx/dz| (...)."""
        total = z.new_zeros(z.shape[:-1])
        for transform in reversed(self._chain()):
            z, log_det = transform.to_data(z, context if transform.context else None)
            total = total + log_det
        return z, total

    def generate(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Data from noise alone, without the work for log-determinants."""
        for transform in reversed(self._chain()):
            z = transform.generate(z, context if transform.context else None)
        return z

    def _chain(self) -> list[Transform]:
        return [cast(Transform, transform) for transform in self.transforms]

    def summary(self) -> str:
        """What the flow consists of, and which direction of each transform is sequential.

        Example:
            >>> import made_flows as mf
            >>> print(mf.MAF(3, transforms=2, hidden_features=(16,)).summary())
            MAF: 3 features, 332 parameters
                  transform                     data to noise  noise to data
            0     Affine, MADE (16,), natural   parallel       sequential
            1     Affine, MADE (16,), reversed  parallel       sequential
            base  StandardNormal
            log_prob: parallel
            sample: 2 sequential inverses, each about the work of one pass
        """
        count = sum(parameter.numel() for parameter in self.parameters())
        sizes = f"{self.features} features, " + f"context {self.context}, " * (self.context > 0)
        parts = _parts(self)
        rows: list[tuple[str, ...]] = [("", "transform", "data to noise", "noise to data")]
        rows += [
            (str(number) if isinstance(part, Transform) else "base", _short(part), *passes)
            for number, (part, *passes) in enumerate(parts)
        ]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [f"{type(self).__name__}: {sizes}{count} parameters"]
        for row in rows:
            cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            lines.append("  ".join(cells).rstrip())
        for name, way in (("log_prob", 1), ("sample", 2)):
            sequential = sum(part[way] == "sequential" for part in parts)
            work = f"{sequential} sequential inverses, each about the work of one pass"
            lines.append(f"{name}: {work if sequential else 'parallel'}")
        return "\n".join(lines)


def _parts(flow: Flow) -> list[tuple[nn.Module, str, str]]:
    """The transforms and the base, through flows that are bases, and how their directions go."""
    parts: list[tuple[nn.Module, str, str]] = [
        (transform, transform.noise_pass, transform.data_pass) for transform in flow._chain()
    ]
    if isinstance(flow.base, Flow):
        return parts + _parts(flow.base)
    if isinstance(flow.base, DensityModel):
        return [*parts, (flow.base, "parallel", "sequential")]
    return [*parts, (flow.base, "", "")]


def _short(module: nn.Module) -> str:
    """A transform or base in a few words."""
    if not isinstance(module, AutoregressiveTransform):
        return type(module).__name__
    made = module.conditioner
    if made.graph is not None:
        order = f"graph of {int(made.ranks.max()) + 1} levels"
    else:
        each = made.order.tolist()
        named = {"natural": sorted(each), "reversed": sorted(each, reverse=True)}
        order = next((name for name, order in named.items() if order == each), "another order")
    kind = type(module.bijection).__name__
    return f"{kind}, {type(made).__name__} {made.hidden_features}, {order}"


class FlowDistribution(Distribution):
    """The distribution of a flow under a given context.

    Its event shape is (D,), its batch shape that of context and base broadcast together. Which of
    scoring and sampling is sequential, ``flow.summary()`` says.

    Args:
        flow: the flow.
        context: (..., C), if the flow has one.
        validate_args: whether values are checked before they are scored (torch's default: yes).

    Raises:
        ValueError: for a context that is missing, superfluous or of the wrong shape, and for
            values that are not finite, naming the first row and column.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012 (as torch declares it)

    def __init__(
        self, flow: Flow, context: Tensor | None = None, *, validate_args: bool | None = None
    ) -> None:
        self.flow = flow
        self.context = flow.check_context(context)
        base = flow.base_distribution(self.context)
        shapes = {"base": base.batch_shape}
        if self.context is not None:
            shapes["context"] = self.context.shape[:-1]
        batch_shape = check_broadcast(**shapes)
        self.base = base if batch_shape == base.batch_shape else base.expand(batch_shape)
        super().__init__(batch_shape, torch.Size((flow.features,)), validate_args=validate_args)

    @property
    def support(self) -> Any:
        """Where values live."""
        chain = self.flow._chain()
        return chain[0].support if chain else self.base.support

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        """Whether samples carry gradients."""
        return bool(self.base.has_rsample) and all(t.differentiable for t in self.flow._chain())

    def expand(
        self, batch_shape: Sequence[int], _instance: Distribution | None = None
    ) -> FlowDistribution:
        """The same distribution with a larger batch shape.

        Raises:
            ValueError: for a shape that the batch shape does not broadcast to.
        """
        new: FlowDistribution = cast(Any, self)._get_checked_instance(FlowDistribution, _instance)
        batch_shape = check_expanded(batch_shape, self.batch_shape)
        new.flow = self.flow
        new.context = None if self.context is None else self.context.expand(*batch_shape, -1)
        new.base = self.base.expand(batch_shape)
        Distribution.__init__(new, batch_shape, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def _validate_sample(self, value: Tensor) -> None:
        check_event(value, "value", self.flow.features)
        check_broadcast(value=value.shape[:-1], batch_shape=self.batch_shape)
        check_finite(value, "value")

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density of values (..., D): of shape (...), broadcast with the batch shape.

        It is -inf for a value so far out that its noise overflows.
        """
        if self._validate_args:
            self._validate_sample(value)
        z, log_det = self.flow.to_noise(value, self.context)
        log_prob = self.base.log_prob(z) + log_det
        # Noise that overflows has no density, rather than an undefined one.
        return torch.where(log_prob.isnan(), -torch.inf, log_prob)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Samples of shape (*sample_shape, *batch_shape, D)."""
        with torch.no_grad():
            z = self.base.sample(torch.Size(sample_shape))
            return self.flow.generate(z, self.context)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Samples that carry gradients to weights and context."""
        self._check_rsample()
        return self.flow.generate(self.base.rsample(torch.Size(sample_shape)), self.context)

    def rsample_and_log_prob(self, sample_shape: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
        """Samples that carry gradients, and their log-density, from one way through the flow.

        In evaluation mode the log-density equals ``log_prob`` of the samples, up to rounding.
        """
        self._check_rsample()
        if isinstance(self.base, FlowDistribution):
            z, base_log_prob = self.base.rsample_and_log_prob(sample_shape)
        else:
            z = self.base.rsample(torch.Size(sample_shape))
            base_log_prob = self.base.log_prob(z)
        x, log_det = self.flow.to_data(z, self.context)
        return x, base_log_prob - log_det

    def _check_rsample(self) -> None:
        if not self.has_rsample:
            raise NotImplementedError(
                "Samples of this flow carry no gradients, as its base or one of its transforms "
                "(such as Dequantize) passes none; use sample()"
            )

    def __repr__(self) -> str:
        shapes = f"batch_shape={tuple(self.batch_shape)}, event_shape={tuple(self.event_shape)}"
        return f"FlowDistribution({type(self.flow).__name__}, {shapes})"
