"""A masked network as the sequential inverse sees it: its structure, and a list of tensors.

The structure says how the layers hang together; the tensors are ranks, weights, masks and biases,
and the contributions of the context. Nothing else is needed, so that the inverse takes a network
of any library that is described this way.
"""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from made_flows.nn.activations import keyed_activation


@dataclass(frozen=True, eq=False)
class Structure:
    """How the layers of a masked network hang together.

    Hidden layer l computes z = [z of ``adds_to``] + gate * (W a + b + base), and passes on
    a = activation(norm_scale * z + norm_shift); the output reads the last a, and the inputs
    where there are direct connections. Gate, base and norm are optional.

    Structures are made by :meth:`intern` only. There is one object for each value, so that they
    are compared by identity, and each has a key that stands for it where only plain values can
    go.

    Args:
        features: number of features D.
        inputs: input columns of every feature.
        parameters: output rows of every feature.
        activations: a word for the activation of every hidden layer.
        adds_to: for every hidden layer, the earlier layer whose z it adds to, or -1.
        flags: for every layer (the output last), a subset of the letters "b" (has a bias),
            "c" (has a base: the context's contribution), "g" (has a gate), "n" (has a norm).
        direct: whether inputs are connected to outputs directly.
        parameter_major: whether output rows are sorted by parameter and then feature (as Pyro
            has them), not by feature and then parameter.
    """

    features: int
    inputs: tuple[int, ...]
    parameters: tuple[int, ...]
    activations: tuple[str, ...]
    adds_to: tuple[int, ...]
    flags: tuple[str, ...]
    direct: bool
    parameter_major: bool

    _by_value: ClassVar[dict[tuple[object, ...], Structure]] = {}
    _by_key: ClassVar[dict[int, Structure]] = {}

    @staticmethod
    def intern(*value: Any) -> Structure:
        """Return the one structure with these values, which are those of its fields in order."""
        structure = Structure._by_value.get(value)
        if structure is None:
            # Several threads may come here at once: one of their objects becomes the one.
            structure = Structure._by_value.setdefault(value, Structure(*value))
            Structure._by_key[structure.key] = structure
            for owner in filter(None, map(keyed_activation, structure.activations)):
                weakref.finalize(owner, Structure._forget, structure).atexit = False
        return structure

    # A compiler does not look inside, but takes the object, which is the same in every call. This
    # is what torch.compiler.assume_constant_result says, which imports the compiler to say it:
    # the import of this library would take twice as long.
    vars()["intern"].__func__._dynamo_marked_constant = True

    @staticmethod
    def _forget(structure: Structure) -> None:
        """Forget a structure of which an activation is gone that was one model's own."""
        Structure._by_value.pop(structure._value, None)
        Structure._by_key.pop(structure.key, None)

    @staticmethod
    def of_key(key: int) -> Structure:
        """Return the structure with a key.

        Raises:
            KeyError: if this process has none, as for a graph that another process compiled.
        """
        return Structure._by_key[key]

    @cached_property
    def key(self) -> int:
        """A number that stands for this structure.

        It is made of the values alone. A graph that was compiled in another process, or kept
        on disk, therefore finds the same structure under it or none, but never another one.
        """
        digest = hashlib.sha256(repr(self._value).encode()).digest()
        return int.from_bytes(digest[:8], "big") >> 1  # operators take signed numbers of 64 bits

    @property
    def _value(self) -> tuple[object, ...]:
        return tuple(getattr(self, entry.name) for entry in fields(self))

    def __reduce__(self) -> tuple[object, ...]:
        return Structure.intern, self._value  # copies and unpickled objects are the object itself

    @property
    def depth(self) -> int:
        """Number of hidden layers."""
        return len(self.activations)

    @cached_property
    def mask_places(self) -> tuple[int, ...]:
        """Which of a network's tensors say who reads whom: the ranks, then the masks."""
        places, at = [0], 1
        for letters in self.flags:
            places.append(at + 1)
            at += 2 + ("b" in letters) + 2 * ("n" in letters)
        return (*places, at + 1) if self.direct else tuple(places)

    def unpack(
        self, tensors: Sequence[Tensor], bases: Iterable[Tensor] = ()
    ) -> tuple[Tensor, list[LayerSpec], LayerSpec | None]:
        """Make ranks, layers and direct connection of a :class:`NetworkSpec`'s tensors."""
        of_weights, of_context = iter(tensors), iter(bases)
        ranks = next(of_weights)
        layers = []
        for index, letters in enumerate(self.flags):
            weight, mask = next(of_weights), next(of_weights)
            hidden = index < self.depth
            layers.append(
                LayerSpec(
                    weight,
                    mask,
                    bias=next(of_weights) if "b" in letters else None,
                    norm_scale=next(of_weights) if "n" in letters else None,
                    norm_shift=next(of_weights) if "n" in letters else None,
                    base=next(of_context, None) if "c" in letters else None,
                    gate=next(of_context, None) if "g" in letters else None,
                    activation=self.activations[index] if hidden else "identity:0.0",
                    adds_to=self.adds_to[index] if hidden else -1,
                )
            )
        direct = LayerSpec(next(of_weights), next(of_weights)) if self.direct else None
        return ranks, layers, direct

    def taint(self, tensors: Sequence[Tensor]) -> Tensor:
        """Return what a sweep adds to the outputs: zero, or NaN where a weight is not finite.

        In a forward pass, which multiplies by masks, such a weight reaches units that do not read
        it, or none where an activation has a limit. In a sweep nothing finite is to come of it.
        """
        sums = [weight.detach().sum(dtype=torch.float64) for weight in self.tainting(tensors)]
        return torch.stack(sums).mul(0).sum()

    def tainting(self, tensors: Sequence[Any]) -> list[Any]:
        """Return those of a network's tensors of which :meth:`taint` speaks."""
        _, layers, direct = self.unpack(tensors)
        parts = [layer.weight for layer in (*layers, *([] if direct is None else [direct]))]
        return parts + [layer.bias for layer in layers[:-1] if layer.bias is not None]


class LayerSpec(NamedTuple):
    """The tensors of one layer; None where it has no such thing."""

    weight: Tensor
    mask: Tensor
    bias: Tensor | None = None
    norm_scale: Tensor | None = None
    norm_shift: Tensor | None = None
    base: Tensor | None = None
    gate: Tensor | None = None
    activation: str = "identity:0.0"
    adds_to: int = -1


@dataclass(frozen=True)
class NetworkSpec:
    """A masked network at this moment.

    Args:
        structure: how its layers hang together.
        tensors: ranks; then weight, mask, bias, norm scale and shift of every layer; then weight
            and mask of the direct connection; those that exist.
        bases: contributions of the context, base and gate of every layer, each (rows, units).
    """

    structure: Structure
    tensors: list[Tensor]
    bases: list[Tensor] = field(default_factory=list)

    @staticmethod
    def of_layers(
        ranks: Tensor,
        layers: Sequence[LayerSpec],
        direct: LayerSpec | None = None,
        inputs: Sequence[int] = (1,),
        parameters: Sequence[int] = (1,),
        parameter_major: bool = False,
    ) -> NetworkSpec:
        """Return the network of these layers (hidden ones, then the output).

        ``inputs`` and ``parameters`` have one number for each feature, or one for all.
        """
        tensors, bases, flags = [ranks], [], []
        for layer in layers:
            tensors += [layer.weight, layer.mask]
            letters = ""
            if layer.bias is not None:
                letters += "b"
                tensors.append(layer.bias)
            if layer.norm_scale is not None and layer.norm_shift is not None:
                letters += "n"
                tensors += [layer.norm_scale, layer.norm_shift]
            if layer.base is not None:
                letters += "c"
                bases.append(layer.base)
            if layer.gate is not None:
                letters += "g"
                bases.append(layer.gate)
            flags.append(letters)
        if direct is not None:
            tensors += [direct.weight, direct.mask]
        features = len(ranks)
        structure = Structure.intern(
            features,
            tuple(inputs) * features if len(inputs) == 1 else tuple(inputs),
            tuple(parameters) * features if len(parameters) == 1 else tuple(parameters),
            tuple(layer.activation for layer in layers[:-1]),
            tuple(layer.adds_to for layer in layers[:-1]),
            tuple(flags),
            direct is not None,
            parameter_major,
        )
        return NetworkSpec(structure, tensors, bases)
