"""A masked network as the sequential inverse sees it: a short text and a list of tensors.

The text (static) says how the layers hang together; the tensors are ranks, weights, masks and
biases, and the contributions of the context. Nothing else is needed, so that an operator can
take a network of any library that is described this way.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

from torch import Tensor

__all__ = ["LayerSpec", "NetworkSpec", "Structure", "mask_places", "parse", "unpack"]


@dataclass(frozen=True)
class Structure:
    """How the layers of a masked network hang together.

    Hidden layer l computes z = [z of ``adds_to``] + gate * (W a + b + base), and passes on
    a = activation(norm_scale * z + norm_shift); the output reads the last a, and the inputs
    where there are direct connections. Gate, base and norm are optional.

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
    parameter_major: bool = False

    @property
    def depth(self) -> int:
        """Number of hidden layers."""
        return len(self.activations)


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
        structure: the text form of a :class:`Structure`.
        tensors: ranks; then weight, mask, bias, norm scale and shift of every layer; then weight
            and mask of the direct connection; those that exist.
        bases: contributions of the context, base and gate of every layer, each (rows, units).
    """

    structure: str
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
        """The network of these layers (hidden ones, then the output)."""
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
        words = [
            str(len(ranks)),
            _run_lengths(inputs),
            _run_lengths(parameters),
            ",".join(layer.activation for layer in layers[:-1]),
            ",".join(str(layer.adds_to) for layer in layers[:-1]),
            ",".join(flags),
            ("d" if direct is not None else "") + ("p" if parameter_major else ""),
        ]
        return NetworkSpec("|".join(words), tensors, bases)


def _run_lengths(counts: Sequence[int]) -> str:
    if len(set(counts)) == 1:
        return str(counts[0])
    return ",".join(map(str, counts))


@lru_cache(maxsize=1024)
def parse(text: str) -> Structure:
    """The structure that a text stands for."""
    features, inputs, parameters, activations, adds_to, flags, layout = text.split("|")
    count = int(features)

    def each(word: str) -> tuple[int, ...]:
        numbers = tuple(int(n) for n in word.split(","))
        return numbers * count if len(numbers) == 1 else numbers

    return Structure(
        features=count,
        inputs=each(inputs),
        parameters=each(parameters),
        activations=_words(activations),
        adds_to=tuple(int(n) for n in _words(adds_to)),
        flags=tuple(flags.split(",")),
        direct="d" in layout,
        parameter_major="p" in layout,
    )


@lru_cache(maxsize=1024)
def mask_places(text: str) -> tuple[int, ...]:
    """Which of a network's tensors say how it is wired: the ranks, then the masks."""
    structure = parse(text)
    places, at = [0], 1
    for letters in structure.flags:
        places.append(at + 1)
        at += 2 + ("b" in letters) + 2 * ("n" in letters)
    return (*places, at + 1) if structure.direct else tuple(places)


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split(",")) if text else ()


def unpack(
    structure: Structure, tensors: Sequence[Tensor], bases: Iterable[Tensor] = ()
) -> tuple[Tensor, list[LayerSpec], LayerSpec | None]:
    """Ranks, layers and direct connection, from the tensors of a :class:`NetworkSpec`."""
    of_weights, context_term = iter(tensors), iter(bases)
    ranks = next(of_weights)
    layers = []
    for index, letters in enumerate(structure.flags):
        weight, mask = next(of_weights), next(of_weights)
        hidden = index < structure.depth
        layers.append(
            LayerSpec(
                weight,
                mask,
                bias=next(of_weights) if "b" in letters else None,
                norm_scale=next(of_weights) if "n" in letters else None,
                norm_shift=next(of_weights) if "n" in letters else None,
                base=next(context_term, None) if "c" in letters else None,
                gate=next(context_term, None) if "g" in letters else None,
                activation=structure.activations[index] if hidden else "identity:0.0",
                adds_to=structure.adds_to[index] if hidden else -1,
            )
        )
    direct = LayerSpec(next(of_weights), next(of_weights)) if structure.direct else None
    return ranks, layers, direct
