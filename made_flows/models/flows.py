"""Flows: transforms between data and the noise of a base, called with a context."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, cast

from torch import Tensor, nn
from torch.distributions import Distribution

from made_flows._checks import check_context, check_event, expect, expect_type
from made_flows._registry import saveable
from made_flows.distributions.flow import FlowDistribution
from made_flows.models.base import Model
from made_flows.models.bases import FixedBase, StandardNormal, StudentT, make_base
from made_flows.models.density import DensityModel
from made_flows.nn.masks import order_name
from made_flows.transforms.autoregressive import AutoregressiveTransform
from made_flows.transforms.base import Transform
from made_flows.transforms.chain import Chain
from made_flows.transforms.data import Standardize
from made_flows.transforms.units import Units


@saveable
class Flow(Model):
    r"""A density from a base by a chain of transforms, listed from data to noise.

    .. math:: \log p(x \mid c) = \log p_0(z \mid c) + \sum_k \log |\det J_k|, \qquad
        z = f_K \circ \dots \circ f_1(x; c)

    Calling the flow with its context gives a :class:`FlowDistribution`. A flow is a base too:
    ``Flow([Standardize.fit(x)], base=MAF(...))``.

    Args:
        transforms: the transforms, the first one next to the data.
        base: the distribution of the noise. None for a standard normal, ``"student"`` for
            Student's t with eight degrees of freedom; a torch distribution with event shape (D,),
            whose tensors follow the flow's dtype and device as constants; or a model that is
            trained with the flow, such as :class:`~made_flows.GaussianMixtureMADE`, which is
            called with the context if it takes one.

    Raises:
        TypeError: for transforms or a base of another kind.
        ValueError: for numbers of features or context variables that differ.

    Example:
        >>> import torch, made_flows as mf
        >>> flow = Flow([mf.InvertibleLinear(3)], base=mf.GaussianMADE(3))
        >>> flow().log_prob(torch.zeros(10, 3)).shape
        torch.Size([10])
    """

    base: Model

    def __init__(self, transforms: Sequence[Transform], base: Any = None) -> None:
        super().__init__()
        given: Any = transforms
        several = isinstance(given, Iterable) and not isinstance(given, (str, Tensor))
        expect_type(several, "transforms", "to be a sequence of transforms", transforms)
        transforms = list(transforms)
        for i, transform in enumerate(transforms):
            name = f"transforms[{i}]"
            expect_type(isinstance(transform, Transform), name, "to be a Transform", transform)
            wanted = transforms[0].features
            got = transform.features
            expect(got == wanted, name, f"to have {wanted} features, as the first has", got)
        self.transforms = nn.ModuleList(transforms)
        self.base = make_base(base, transforms[0].features if transforms else None)
        self.features = self.base.features
        sizes = (*(transform.context for transform in transforms), self.base.context)
        contexts = [size for size in sizes if size]
        expect(len(set(contexts)) <= 1, "transforms and base", "to take one context", contexts)
        self.context = contexts[0] if contexts else 0
        self.units = Units(self.features, self.context)
        made = [
            part.conditioner for part in transforms if isinstance(part, AutoregressiveTransform)
        ]
        self.units.whitens = all(network.graph is None for network in made)
        self._place_units()

    def _place_units(self) -> None:
        """Tell the units behind which transforms they stand."""
        transforms = cast(list[Transform], [*self.transforms])
        fixed = [not each.unit_free for each in transforms]
        before = tuple(transforms[: len(fixed) - fixed[::-1].index(True) if any(fixed) else 0])
        inner = self.base.standardizable()
        known = all(units.of_data and not units.before for units in inner)
        self.units.of_data = known and all(_knows_no_units(each) for each in before)
        self.units.before = before if self.units.of_data else ()

    def _chain(self) -> list[Transform]:
        """List the transforms from data to noise, the units of the data first if there are any."""
        parts: Any = self._modules  # as attributes they take longer, and every call asks
        chain, units = [*parts["transforms"]._modules.values()], parts["units"]
        if units._buffers["location"] is None:
            return chain
        place = len(units.before)
        return [*chain[:place], units, *chain[place:]]

    def standardizable(self) -> list[Units]:
        """Find the flow's units, if its base is not trained yet.

        They are those of its contexts alone where a transform knows the units of its data.
        """
        if not self.units.active:  # transforms may have been exchanged by hand
            self._place_units()
        inner = self.base.standardizable()
        free = isinstance(self.base, (StandardNormal, StudentT, FixedBase)) or bool(inner)
        free = free and not any(units.active or units.settled for units in inner)
        return [self.units] if free and (self.units.of_data or self.context) else []

    def distribution(self, context: Tensor | None = None) -> FlowDistribution:
        """Return the distribution of the data, given the context (..., C)."""
        context = check_context(context, self.context, "flow")
        if context is not None:
            context = self.units.standardize_context(context)
        base, chain = self.base_distribution(context), self._chain()
        return FlowDistribution(Chain(chain) if chain else Chain([], base.support), base, context)

    def base_distribution(self, context: Tensor | None = None) -> Distribution:
        """Return the distribution of the noise, given a checked context in network units."""
        base: Any = self._modules["base"]
        return cast(Distribution, base.distribution(context if base.context else None))

    def to_noise(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map data x (..., D) to noise z (..., D), and return log |det dz/dx| (...)."""
        return Chain(self._chain()).to_noise(x, self._given("x", x, context))

    def to_data(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map noise z (..., D) to data x (..., D), and return log |det dx/dz| (...)."""
        return Chain(self._chain()).to_data(z, self._given("z", z, context))

    def generate(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Map noise to data, without the work for log-determinants."""
        return Chain(self._chain()).generate(z, self._given("z", z, context))

    def _given(self, name: str, values: Tensor, context: Tensor | None) -> Tensor | None:
        """Check values, and a context, which is returned in network units.

        None is left to the transforms: they need none where the base alone does.
        """
        check_event(values, name, self.features)
        if context is not None:
            check_context(context, self.context, "flow")
        return self.units.standardize_context(context)

    def summary(self) -> str:
        """Say what the flow consists of, and which direction of each transform is sequential.

        Example:
            >>> import made_flows as mf
            >>> print(mf.MAF(3, transforms=2, hidden_features=(16,)).summary())
            MAF: 3 features, 368 parameters
                  transform                     data to noise  noise to data
            0     Affine, MADE (16,), natural   parallel       sequential
            1     Affine, MADE (16,), reversed  parallel       sequential
            base  StudentT
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


def _knows_no_units(transform: Transform) -> bool:
    """Tell whether what a transform makes of data can be standardised behind it."""
    if transform.unit_free:
        return True
    trained = any(True for _ in transform.parameters())
    return not (isinstance(transform, Standardize) or trained or transform.context)


def _parts(flow: Flow) -> list[tuple[nn.Module, str, str]]:
    """List transforms and base, through flows that are bases, and how directions go."""
    parts: list[tuple[nn.Module, str, str]] = [
        (transform, transform.noise_pass, transform.data_pass) for transform in flow._chain()
    ]
    if isinstance(flow.base, Flow):
        return parts + _parts(flow.base)
    if isinstance(flow.base, DensityModel):
        return [*parts, (flow.base, "parallel", "sequential")]
    return [*parts, (flow.base, "", "")]


def _short(module: nn.Module) -> str:
    """Return a transform or base in a few words."""
    if not isinstance(module, AutoregressiveTransform):
        return type(module).__name__
    made = module.conditioner
    if made.graph is not None:
        order = f"graph of {int(made.ranks.max()) + 1} levels"
    else:
        order = order_name(made.order.tolist()) or "another order"
    kind = type(module.bijection).__name__
    return f"{kind}, {type(made).__name__} {made.hidden_features}, {order}"
