"""What all transforms for Pyro share: a memory that is true, an inverse that is kept, copies."""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from pyro.distributions.torch_transform import TransformModule
from torch import Tensor, nn
from torch.distributions import constraints

from made_flows.pyro.cache import Memory, Pair


class VectorTransform(TransformModule):
    r"""A transform of vectors for Pyro, from noise x to data y.

    It defines the two directions and the log-determinant; this class remembers the last pair
    (:mod:`made_flows.pyro.cache`), and makes pickles, copies, hooks and ``.inv`` work.

    Args:
        cache_size: 1 to remember the last pair, 0 not to.

    Attributes:
        features: number of features D.
    """

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True
    sign = +1
    features: int

    def __init__(self, cache_size: int = 1) -> None:
        super().__init__(cache_size=cache_size)
        self._memory = Memory(self)

    # ------------------------------------------------------------------ to be defined

    def to_data(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Map noise x (..., D) to data y (..., D), and log |dy/dx| (...) if it comes along."""
        raise NotImplementedError

    def to_noise(self, y: Tensor) -> tuple[Tensor, Tensor | None]:
        """Map data y (..., D) to noise x (..., D), and log |dy/dx| (...) if it comes along."""
        raise NotImplementedError

    def log_det(self, x: Tensor, y: Tensor) -> Tensor:
        """Return log |dy/dx| (...) at a pair, by a parallel pass."""
        raise NotImplementedError

    # ------------------------------------------------------------------ what Pyro calls

    def forward(self, x: Tensor) -> Tensor:
        """Map noise x (..., D) to data y (..., D)."""
        known = self._recall(x=x)
        known_y = None if known is None else known.y()
        if known_y is not None:
            return known_y
        y, log_det = self.to_data(x)
        if self._cache_size:
            self._memory.store(x, y, log_det, made=y)
        return y

    # nn.Module's call, for hooks; Transform's comes first in the order of base classes.
    __call__ = nn.Module.__call__
    __repr__ = nn.Module.__repr__

    def _inv_call(self, y: Tensor) -> Tensor:
        known = self._recall(y=y)
        if known is not None and known.x is not None:
            return known.x
        x, log_det = self.to_noise(y)
        if self._cache_size:
            self._memory.store(x, y, log_det, made=x)
        return x

    def _call(self, x: Tensor) -> Tensor:
        return self.to_data(x)[0]

    def _inverse(self, y: Tensor) -> Tensor:
        return self.to_noise(y)[0]

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Return log |dy/dx| (...), of the batch shape of x and y."""
        known = self._recall(x=x, y=y)
        if known is not None and known.along is not None:
            return known.along
        return self.log_det(x, y)

    def _recall(self, x: Tensor | None = None, y: Tensor | None = None) -> Pair | None:
        return self._memory.recall(x, y) if self._cache_size else None

    def clear_cache(self) -> None:
        """Forget the last pair."""
        self._memory.forget()

    @property
    def inv(self) -> InverseTransformModule:
        """The inverse: a module too, which can be pickled and copied."""
        inverse = self.__dict__.get("_inv")
        if inverse is None:
            inverse = InverseTransformModule(self)
            self.__dict__["_inv"] = inverse  # not a submodule: it holds this one
        return cast(InverseTransformModule, inverse)

    def with_cache(self, cache_size: int = 1) -> VectorTransform:
        """Share the transform's modules, with a memory of one's own or without one."""
        if cache_size not in (0, 1):
            raise ValueError(f"Expected cache_size to be 0 or 1; got {cache_size}")
        if cache_size == self._cache_size:
            return self
        new = copy.copy(self)
        new._cache_size = cache_size
        return new

    def __getstate__(self) -> dict[str, Any]:
        # What is remembered belongs to this object at this moment.
        return {k: v for k, v in self.__dict__.items() if k not in ("_memory", "_inv")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        nn.Module.__setstate__(self, state)
        self.__dict__["_inv"] = None
        self._memory = Memory(self)


class InverseTransformModule(TransformModule):
    """The inverse of a transform, from data to noise, as a module.

    Unlike torch's own it keeps its transform when it is pickled or copied.

    Args:
        transform: the transform.
    """

    bijective = True
    sign = +1

    def __init__(self, transform: VectorTransform) -> None:
        super().__init__(cache_size=transform._cache_size)
        self.transform = transform

    @property
    def features(self) -> int:
        """Number of features D."""
        return self.transform.features

    @property
    def domain(self) -> constraints.Constraint:  # type: ignore[override]
        """Where data live."""
        return self.transform.codomain

    @property
    def codomain(self) -> constraints.Constraint:  # type: ignore[override]
        """Where noise lives."""
        return self.transform.domain

    def forward(self, y: Tensor) -> Tensor:
        """Map data to noise."""
        return self.transform._inv_call(y)

    __call__ = nn.Module.__call__
    __repr__ = nn.Module.__repr__

    def _inv_call(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.transform(x))

    def _call(self, y: Tensor) -> Tensor:
        return self.transform._inverse(y)

    def _inverse(self, x: Tensor) -> Tensor:
        return self.transform._call(x)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the log-determinant of this direction."""
        return -self.transform.log_abs_det_jacobian(y, x)

    @property
    def inv(self) -> VectorTransform:
        """The transform itself."""
        return self.transform

    def with_cache(self, cache_size: int = 1) -> InverseTransformModule:
        """Return the inverse of the transform with or without a memory."""
        if cache_size == self.transform._cache_size:
            return self
        return InverseTransformModule(self.transform.with_cache(cache_size))

    def forward_shape(self, shape: torch.Size) -> torch.Size:
        return cast(torch.Size, self.transform.inverse_shape(shape))

    def inverse_shape(self, shape: torch.Size) -> torch.Size:
        return cast(torch.Size, self.transform.forward_shape(shape))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, InverseTransformModule) and self.transform is other.transform

    def __hash__(self) -> int:
        return hash((InverseTransformModule, id(self.transform)))
