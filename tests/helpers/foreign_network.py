"""A masked network as other libraries build them: units in any order, gates, norms, anything."""

from __future__ import annotations

from dataclasses import dataclass

import hypothesis.strategies as st
import torch
from torch import Tensor, nn

from made_flows.nn.activations import activation_name, make_activation
from made_flows.nn.spec import LayerSpec, NetworkSpec


@dataclass(frozen=True)
class ForeignDesign:
    """What a foreign network is made of; printed whole when a test fails."""

    features: int
    parameters: int
    widths: tuple[int, ...]
    activations: tuple[str, ...]
    residual: bool
    gates: bool
    norms: bool
    biases: bool
    direct: bool
    context: int
    sparse: bool
    parameter_major: bool
    transposed: bool
    seed: int


class Foreign(nn.Module):
    """A network that keeps its units unsorted and is described by its masks alone.

    Layer l computes z = [z of layer l - 2] + gate * (W a + b + base), where gate and base come from
    the context, and passes on a = activation(norm_scale * z + norm_shift).
    """

    ranks: Tensor

    def __init__(self, design: ForeignDesign) -> None:
        super().__init__()
        self.design = design
        self.features, self.context = design.features, design.context
        generator = torch.Generator().manual_seed(design.seed)

        def normal(*shape: int) -> nn.Parameter:
            scale = max(shape[-1], 1) ** -0.5 if len(shape) > 1 else 0.5
            drawn = scale * torch.randn(*shape, generator=generator, dtype=torch.float64)
            transposed = design.transposed and drawn.dim() == 2
            return nn.Parameter(drawn.T.contiguous().T if transposed else drawn)

        D, K = design.features, design.parameters
        self.register_buffer("ranks", torch.randperm(D, generator=generator))
        of_row = torch.arange(D).repeat_interleave(K)
        if design.parameter_major:
            of_row = torch.arange(D * K) % D
        below = self.ranks + 1
        degrees: list[Tensor] = []
        masks = []
        for layer, width in enumerate(design.widths):
            degree = torch.randint(0, D + 1, (width,), generator=generator)
            if self.adds_to(layer) >= 0:
                degree = degrees[layer - 2]
            mask = degree[:, None] >= below
            if design.sparse:
                mask &= torch.rand(mask.shape, generator=generator) < 0.6
            masks.append(mask)
            degrees.append(degree)
            below = degree
        after = self.ranks[of_row][:, None]
        masks.append(after + 1 > below if design.widths else after > self.ranks)
        self.masks = nn.ParameterList([nn.Parameter(m, requires_grad=False) for m in masks])
        self.weights = nn.ParameterList([normal(*mask.shape) for mask in masks])
        self.direct_mask = nn.Parameter(after > self.ranks, requires_grad=False)
        self.direct_weight = normal(D * K, D) if design.direct else None
        rows = [len(mask) for mask in masks]
        self.biases = nn.ParameterList([normal(n) for n in rows] if design.biases else [])
        self.scales = nn.ParameterList([normal(n) for n in rows[:-1]] if design.norms else [])
        self.shifts = nn.ParameterList([normal(n) for n in rows[:-1]] if design.norms else [])
        C = design.context
        gated = rows[:-1] if design.gates and C else []  # hidden layers only
        self.gates = nn.ParameterList([normal(n, C) for n in gated])
        self.bases = nn.ParameterList([normal(n, C) for n in rows] if C else [])
        self.activations = [
            make_activation(torch.sin if name == "sin" else name) for name in design.activations
        ]

    @property
    def dtype(self) -> torch.dtype:
        return self.weights[0].dtype

    def adds_to(self, layer: int) -> int:
        widths = self.design.widths
        if not self.design.residual or layer < 2 or widths[layer] != widths[layer - 2]:
            return -1
        return layer - 2

    def as_called(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        a, zs = x, []
        for index, (weight, mask) in enumerate(zip(self.weights, self.masks, strict=True)):
            z = a @ (weight * mask).T
            if len(self.biases):
                z = z + self.biases[index]
            if len(self.bases):
                z = z + context @ self.bases[index].T
            if index < len(self.gates):
                z = z * torch.sigmoid(context @ self.gates[index].T)
            if index == len(self.weights) - 1:
                if self.direct_weight is not None:
                    z = z + x @ (self.direct_weight * self.direct_mask).T
                if self.design.parameter_major:
                    return z.unflatten(-1, (-1, self.features)).transpose(-1, -2)
                return z.unflatten(-1, (self.features, -1))
            if self.adds_to(index) >= 0:
                z = z + zs[self.adds_to(index)]
            zs.append(z)
            normed = z * self.scales[index] + self.shifts[index] if len(self.scales) else z
            a = self.activations[index](normed)
        raise RuntimeError("Expected an output layer; got none")

    def spec(self, context: Tensor | None = None) -> NetworkSpec:
        layers = [
            LayerSpec(
                self.weights[index],
                self.masks[index],
                bias=self.biases[index] if len(self.biases) else None,
                norm_scale=self.scales[index] if len(self.scales) and hidden else None,
                norm_shift=self.shifts[index] if len(self.scales) and hidden else None,
                base=context @ self.bases[index].T if len(self.bases) else None,
                gate=(
                    torch.sigmoid(context @ self.gates[index].T)
                    if index < len(self.gates)
                    else None
                ),
                activation=activation_name(self.activations[index]) if hidden else "identity:0.0",
                adds_to=self.adds_to(index) if hidden else -1,
            )
            for index, hidden in enumerate([True] * len(self.activations) + [False])
        ]
        direct = None
        if self.direct_weight is not None:
            direct = LayerSpec(self.direct_weight, self.direct_mask)
        D, K = self.features, self.design.parameters
        return NetworkSpec.of_layers(
            self.ranks, layers, direct, (1,) * D, (K,) * D, self.design.parameter_major
        )


@st.composite
def foreign_designs(draw: st.DrawFn, parameters: int = 2) -> ForeignDesign:
    widths = tuple(draw(st.lists(st.integers(1, 9), max_size=5)))
    residual = draw(st.booleans())
    if residual:  # layers of the same width, two apart, can be added up
        widths = tuple(widths[layer % 2] for layer in range(len(widths)))
    names = st.sampled_from(["relu", "elu", "tanh", "silu", "gelu", "leaky_relu", "sin"])
    return ForeignDesign(
        features=draw(st.integers(1, 6)),
        parameters=parameters,
        widths=widths,
        activations=tuple(draw(names) for _ in widths),
        residual=residual,
        gates=draw(st.booleans()),
        norms=draw(st.booleans()),
        biases=draw(st.booleans()),
        direct=draw(st.booleans()),
        context=draw(st.integers(0, 2)),
        sparse=draw(st.booleans()),
        parameter_major=draw(st.booleans()),
        transposed=draw(st.booleans()),
        seed=draw(st.integers(0, 2**16)),
    )
