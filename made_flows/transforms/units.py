"""Units: location and scale of data and contexts, as a part of the model fitted to them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from made_flows._checks import check_event, expect, non_negative_integer, positive_integer
from made_flows.transforms.base import Transform

_NAMES = ("location", "scale", "context_location", "context_scale", "factor")


class Units(Transform):
    r"""The units of a model's data and contexts: those of the network are the standardised ones.

    .. math:: u = L^{-1} \frac{x - m}{s}, \qquad
        \log p(x) = \log p_u(u) - \sum_i (\log s_i + \log L_{ii})

    L is the unit matrix but for flows of columns that are nearly linear in one another: there a
    column that those before it nearly determine is what they leave of it, in units of that.

    Every density model and flow has one. It is the identity, and holds nothing, until
    :func:`made_flows.fit` sets it from training rows. Its numbers stay in double precision
    whatever the dtype of the model, and so does the difference :math:`x - m`: a column of
    :math:`10^9 \pm 1` is no different from one of :math:`0 \pm 1`, as far as its rows tell them
    apart.

    Of discrete data, and of a flow with a :class:`~made_flows.Standardize` or another transform
    that knows its units, contexts alone are standardised. Behind transforms such as a
    :class:`~made_flows.Log` units are those of what comes out of these.

    Args:
        features: number of features D.
        context: number of context variables C.

    Attributes:
        embedded: whether its contexts are embeddings, which are in no units of the data.
        of_data: whether data are standardised, and not their contexts alone.
        before: the fixed transforms of a flow behind which they stand.
        whitens: whether columns may be taken together: the model does not say what each depends on.
        location, scale: m and s, (D,); None where data are not standardised.
        context_location, context_scale: the same of contexts, (C,). The scale of a column that was
            constant in training is infinite: the network sees zero whatever it is.
        factor: L, (D, D); None for the unit matrix.

    Example:
        >>> units = Units(1)
        >>> units.set(torch.tensor([5e4]), torch.tensor([1e4]))
        >>> units.to_noise(torch.tensor([[4e4], [7e4]]))[0]
        tensor([[-1.],
                [ 2.]])
    """

    location: Tensor | None
    scale: Tensor | None
    context_location: Tensor | None
    context_scale: Tensor | None
    factor: Tensor | None
    like: Tensor
    embedded = False
    of_data = True
    before: tuple[Transform, ...] = ()
    whitens = False

    def __init__(self, features: int, context: int = 0) -> None:
        super().__init__()
        self.features = positive_integer(features, "features")
        self.context_features = non_negative_integer(context, "context")
        for name in _NAMES:
            self.register_buffer(name, None)
        # Says in which dtype the network reads: it moves with the model.
        self.register_buffer("like", torch.zeros(()), persistent=False)
        self._settled = False  # not a part of what the model is: files need not say it

    @property
    def active(self) -> bool:
        """Whether data or contexts are standardised."""
        buffers = self._buffers  # not by attributes: every call of a model asks
        return buffers["location"] is not None or buffers["context_location"] is not None

    @property
    def settled(self) -> bool:
        """Whether the weights behind it are those of some training, in these units."""
        return self._settled

    def settle(self) -> None:
        """Note that the weights behind it were trained."""
        self._settled = True

    def set(
        self,
        location: Tensor | None,
        scale: Tensor | None,
        context_location: Tensor | None = None,
        context_scale: Tensor | None = None,
        factor: Tensor | None = None,
    ) -> None:
        """Take locations and scales of data (D,) and of contexts (C,), and a factor (D, D).

        What is None is not standardised.
        """
        given = (location, scale, context_location, context_scale, factor)
        of_data, of_context = (self.features,), (self.context_features,)
        shapes = (of_data, of_data, of_context, of_context, of_data * 2)
        for name, value, shape in zip(_NAMES, given, shapes, strict=True):
            if value is None:
                setattr(self, name, None)
                continue
            expect(tuple(value.shape) == shape, name, f"of shape {shape}", tuple(value.shape))
            if name == "scale":
                valid = bool((torch.isfinite(value) & (value > 0)).all())
                expect(valid, name, "to be positive and finite", value.tolist())
            elif name == "context_scale":
                expect(bool((value > 0).all()), name, "to be positive", value.tolist())
            setattr(self, name, _exact(value.detach().clone(), self.like.device))

    def numbers(self) -> tuple[Tensor | None, ...]:
        """Return what :meth:`set` takes."""
        return tuple(self._buffers[name] for name in _NAMES)

    def clear(self) -> None:
        """Become the identity."""
        for name in _NAMES:
            setattr(self, name, None)

    def to_noise(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        check_event(x, "x", self.features)
        return self.standardize(x), -self.log_scale().sum().expand(x.shape[:-1])

    def to_data(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        check_event(z, "z", self.features)
        return self.restore(z), self.log_scale().sum().expand(z.shape[:-1])

    def standardize(self, x: Tensor) -> Tensor:
        """Convert data (..., D) to the units of the network, in its dtype."""
        return self._reduced(x, self.location, self.scale, self.factor)

    def standardize_context(self, context: Tensor | None) -> Tensor | None:
        """Convert contexts (..., C) to the units of the network, in its dtype."""
        if context is None or self.context_location is None:
            return context
        check_event(context, "context", self.context_features)
        return self._reduced(context, self.context_location, self.context_scale)

    def restore(self, u: Tensor) -> Tensor:
        """Convert values in the units of the network back to data (..., D)."""
        if self.location is None or self.scale is None:
            return u
        location, scale = self.location.to(u.device), self.scale.to(u.device)
        exact = u.to(location.dtype)
        if self.factor is not None:
            exact = exact @ self.factor.to(u.device).mT
        return torch.addcmul(location, exact, scale).to(u.dtype)

    def log_scale(self) -> Tensor:
        """Return the logarithms of the scales (D,), in the dtype of the network; zeros for none."""
        if self.scale is None:
            return self.like.expand(self.features)
        scale = self.scale if self.factor is None else self.scale * self.factor.diagonal()
        return scale.log().to(self.like)

    def _reduced(
        self, x: Tensor, location: Tensor | None, scale: Tensor | None, factor: Tensor | None = None
    ) -> Tensor:
        if location is None or scale is None:
            return x
        location, scale = location.to(x.device), scale.to(x.device)
        u = (x.to(location.dtype) - location) / scale
        if factor is not None:
            rows, upper = u.reshape(-1, self.features), factor.to(u.device).mT
            u = torch.linalg.solve_triangular(upper, rows, upper=True, left=False).reshape(u.shape)
        return u.to(self.like.dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Units:
        before = {name: self._buffers[name] for name in _NAMES}
        super()._apply(fn, recurse)
        for name, value in before.items():
            moved = self._buffers[name]
            if value is not None and moved is not None:
                self._buffers[name] = _exact(value, moved.device, moved)
        return self

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *others: Any, **more: Any
    ) -> None:
        saved = {name: state_dict.get(prefix + name) for name in _NAMES}
        for name, value in saved.items():
            if isinstance(value, Tensor) and self._buffers[name] is None:
                self._buffers[name] = torch.zeros_like(value)
        super()._load_from_state_dict(state_dict, prefix, *others, **more)
        self._settled = True  # weights that come from elsewhere were trained in the units given

    def extra_repr(self) -> str:
        return f"features={self.features}" if self.active else "identity"


def _exact(value: Tensor, device: torch.device, moved: Tensor | None = None) -> Tensor:
    """Return a tensor of constants on a device in double precision, where the device has it."""
    if device.type == "mps":
        return value.to(device, torch.float32)
    if moved is not None and moved.dtype == torch.float64:
        return moved
    return value.to(device, torch.float64)
