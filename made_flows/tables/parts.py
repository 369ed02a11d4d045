"""The parts of a table's head: one for all columns of one form, built of a known head."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from made_flows.tables.columns import ATOM, CategoryColumn, NumberColumn
from made_flows.tables.mixture_fit import fit_mixture
from made_flows.univariate.heads import Categorical, GaussianMixture
from made_flows.univariate.scales import ScaleRule
from made_flows.univariate.splines import RationalQuadraticSpline

_FAR = 1e30
"""Where an edge of a cell is put that is infinitely far out."""

_NARROWEST = 1e-3
"""The least deviation of a normal in a mixture, about, of columns whose own is one."""

_BLUR, _LEAST = 0.2, 0.01
"""Of what is around a frequent number: a deviation, and the weight of a standard normal."""

_KNOTS = (-2.0, -1.2, -0.6, -0.2, 0.2, 0.6, 1.2, 2.0)
"""Ends of the pieces of a number's encoding, about at equal parts of a normal distribution."""


class Part(nn.Module):
    """What columns of one form have in common; vectorised over them.

    Attributes:
        places: which features they are, (n,).
        outputs, inputs: parameters and input columns of each.
    """

    outputs: list[int]
    inputs: list[int]

    def __init__(self, places: Sequence[int]) -> None:
        super().__init__()
        self.places = list(places)

    def start(self, codes: Tensor | None = None) -> list[Tensor]:
        """Return the parameters of an untrained network, one tensor a column.

        Those of the columns' own distributions, as far as codes (N, n), NaN where one is missing,
        tell them.
        """
        raise NotImplementedError

    def encode(self, y: Tensor) -> Tensor:
        """Return what the network reads of codes (..., n), (..., sum of inputs)."""
        raise NotImplementedError

    def log_prob(self, y: Tensor, parameters: Tensor) -> Tensor:
        """Score codes (..., n) by parameters (..., n, K)."""
        raise NotImplementedError

    def step(self, noise: Tensor, parameters: Tensor, which: Tensor) -> Tensor:
        """Turn noise (N, 2), uniform and normal, into codes (N,) by parameters (N, K).

        ``which`` (N,) says of which of the columns each of them is.
        """
        raise NotImplementedError


class Categories(Part):
    """Columns of categories: a softmax, and a fixed probability of what was not seen."""

    def __init__(self, places: Sequence[int], columns: Sequence[CategoryColumn]) -> None:
        super().__init__(places)
        sizes = [len(column.categories) for column in columns]
        self.outputs = self.inputs = sizes
        self.head = Categorical(sizes, len(sizes))
        self._counts = [torch.tensor(column.counts, dtype=torch.float64) for column in columns]
        self._unseen = torch.tensor([column.unseen for column in columns], dtype=torch.float64)

    def start(self, codes: Tensor | None = None) -> list[Tensor]:
        return [(counts / counts.sum()).log() for counts in self._counts]

    def encode(self, y: Tensor) -> Tensor:
        # Another value of a constant column says no more of the others than the one in all rows.
        y = torch.where(self.head.sizes == 1, 0.0, y)
        return self.head.encode(y, y.dtype)

    def log_prob(self, y: Tensor, parameters: Tensor) -> Tensor:
        unseen = y >= self.head.sizes
        logits = parameters[..., : max(self.outputs)]
        each = self.head.log_prob(torch.where(unseen, 0.0, y), logits)
        log_unseen = self._unseen.to(each.device).log().to(each.dtype)
        log_seen = torch.log1p(-self._unseen.to(each.device)).to(each.dtype)
        return torch.where(unseen, log_unseen, each + log_seen)

    def step(self, noise: Tensor, parameters: Tensor, which: Tensor) -> Tensor:
        return self.head.step(noise, parameters).to(torch.float64)


class Numbers(Part):
    """Columns of numbers: a mixture of normals behind the fitted map.

    Its density; where numbers come in steps, the probability of the cell around one. Beside that,
    a probability for zero, where it is inflated, and for each frequent number, by a logit of each;
    the mixture's is 0. To that of a frequent number is added how dense the mixture is around it:
    what is learnt of where numbers are then holds for all of them at once.

    Attributes:
        lean: 1; 0 in files of models whose frequent numbers did not go with the mixture.
        often: which parameters behind those of the mixture are of frequent numbers, (n, M).
    """

    lean: Tensor

    def __init__(
        self, places: Sequence[int], columns: Sequence[NumberColumn], components: int
    ) -> None:
        super().__init__(places)
        # No wider than the whole: behind a logarithm, draws of wider ones would be astronomical.
        self.mixture = GaussianMixture(components, ScaleRule("sigmoid", floor=_NARROWEST))
        first = columns[0]
        self.base, self.inflated, self.periods = first.base, first.inflated, first.periods
        self.cells = first.step > 0
        masses = [torch.from_numpy(column.masses) for column in columns]
        # Codes of values with a probability of their own, NaN behind those of a column.
        self._masses = pad_sequence(masses, True, padding_value=torch.nan)
        self.outputs = [3 * components + len(each) for each in masses]
        width = len(_KNOTS) + 2 * len(self.periods)
        self.inputs = [width + len(each) for each in masses]
        read = torch.ones(len(columns), width + self._masses.shape[1], dtype=torch.bool)
        read[:, len(_KNOTS) : len(_KNOTS) + self._masses.shape[1]] = ~self._masses.isnan()
        self._read = read.flatten().nonzero().squeeze(1)
        rows = [(c.low, c.high, c.center, c.step, *c.shape) for c in columns]
        self._constants = torch.tensor(rows, dtype=torch.float64).T
        self.register_buffer("lean", torch.tensor(1.0))
        near = torch.where(self._masses == ATOM, torch.nan, self._masses)
        self._centers = self._to_normal(near, torch.arange(len(columns))[:, None])[0]
        self.often = ~near.isnan()

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        state_dict.setdefault(prefix + "lean", torch.tensor(0.0))  # which earlier files lack
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def start(self, codes: Tensor | None = None) -> list[Tensor]:
        each = []
        for k in range(len(self.places)):
            start = self.mixture.initial_parameters()
            logits = torch.zeros(self.outputs[k] - len(start))
            if codes is not None:
                y = codes[:, k][~codes[:, k].isnan()]
                place = self._place(y, torch.full(y.shape, k))
                counts = torch.bincount(place + 1, minlength=len(logits) + 1) + 1.0
                logits = (counts[1 : len(logits) + 1] / counts[0]).log()
                y = y[place < 0]
                which = torch.full(y.shape, k)
                z, slope = self._to_normal(y, which)
                if self.cells:  # in a cell, what is narrower than it cannot be told
                    slope = slope + self._base_slope(y, which) + self._of(y, which)[3].log()
                    width = 0.3 * slope.exp().clamp(max=1.0)
                else:
                    width = torch.zeros_like(z)
                weights, means, scales = fit_mixture(z, width, start.chunk(3)[1])
                start = torch.cat([weights.log(), means, raw_scale(scales)])
                around = self._around(start, torch.tensor(k))[: len(logits)]
                logits = logits - around.float()
            each.append(torch.cat([start, logits]).float())
        return each

    def _around(self, mixture: Tensor, which: Tensor | None = None) -> Tensor:
        """Return how dense a mixture (..., 3C) is around each frequent number, (..., M).

        Its normals are made a little wider, and a normal of all numbers is a hundredth of it, so
        that no number is all but impossible.
        """
        centers = self._centers.to(mixture)
        centers = (centers if which is None else centers[which]).unsqueeze(-1)
        logits, means, raw = (part.unsqueeze(-2) for part in mixture.chunk(3, dim=-1))
        known, centers = ~centers.isnan(), centers.nan_to_num()
        variance = (2 * self.mixture.scale(raw)).exp() + _BLUR**2
        each = -0.5 * (variance.log() + (centers - means) ** 2 / variance)
        each = F.log_softmax(logits, dim=-1) + each
        least = (math.log(_LEAST) - 0.5 * centers**2).squeeze(-1)
        return self.lean * known.squeeze(-1) * torch.logaddexp(each.logsumexp(dim=-1), least)

    def _shares(self, mixture: Tensor, logits: Tensor, which: Tensor | None = None) -> Tensor:
        """Return log-probabilities (..., 1 + M) of the mixture, and of values of their own."""
        logits = logits + self._around(mixture, which)[..., : logits.shape[-1]]
        return F.log_softmax(F.pad(logits, (1, 0)), dim=-1)

    def _place(self, y: Tensor, which: Tensor | None = None) -> Tensor:
        """Return which value with a probability of its own a code is, -1 for none."""
        masses = self._masses.to(y.device)
        masses = masses if which is None else masses[which]
        # Codes that were drawn may differ in their last digits from those of numbers.
        same = (y.unsqueeze(-1) - masses).abs() <= 1e-11 * (1 + masses.abs())
        places = torch.arange(1, masses.shape[-1] + 1, device=y.device)
        return (same * places).sum(dim=-1) - 1

    def _of(self, y: Tensor, which: Tensor | None) -> list[Tensor]:
        """Return the constants of the columns of values: low, high, center, step, shape."""
        constants = self._constants.to(y.device)
        return list(constants if which is None else constants[:, which])

    def _to_normal(self, y: Tensor, which: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return z of codes y, and log |dz/dy|."""
        *_, middle, spread, tail, skew, location, scale = self._of(y, which)
        v = (y - middle) / spread
        t = tail * torch.asinh(v) - skew
        log_root = torch.hypot(v, torch.ones_like(v)).log()
        slope = (tail / (spread * scale)).log() + _log_cosh(t) - log_root
        return (torch.sinh(t) - location) / scale, slope

    def _from_normal(self, z: Tensor, which: Tensor) -> Tensor:
        *_, middle, spread, tail, skew, location, scale = self._of(z, which)
        return middle + spread * torch.sinh((torch.asinh(z * scale + location) + skew) / tail)

    def _number(self, y: Tensor, which: Tensor | None = None) -> Tensor:
        """Return the numbers of codes, of bases that come in steps."""
        low, _, center, *_ = self._of(y, which)
        y = y + center
        if self.base == "log":
            return low + y.exp()
        return torch.sinh(y) if self.base == "asinh" else y

    def _code(self, x: Tensor, which: Tensor | None = None) -> Tensor:
        low, _, center, *_ = self._of(x, which)
        if self.base == "log":
            return (x - low).clamp(min=0).log() - center
        return (torch.asinh(x) if self.base == "asinh" else x) - center

    def _base_slope(self, y: Tensor, which: Tensor | None = None) -> Tensor:
        """Return log |dy/dx| at codes."""
        low, high, center, *_ = self._of(y, which)
        y = y + center
        if self.base == "log":
            return -y
        if self.base == "logit":
            return F.softplus(y) + F.softplus(-y) - (high - low).log()
        return -_log_cosh(y) if self.base == "asinh" else torch.zeros_like(y)

    def encode(self, y: Tensor) -> Tensor:
        atom = y == ATOM
        z = self._to_normal(torch.where(atom, 0.0, y) if self.inflated else y)[0]
        z = z.clamp(-_FAR, _FAR)  # what the network reads, not what is scored
        knots = torch.tensor(_KNOTS, dtype=z.dtype, device=z.device)
        low, high = knots[:-1], knots[1:]
        pieces = ((z.unsqueeze(-1) - low) / (high - low)).clamp(0.0, 1.0)
        parts = [torch.asinh(z).unsqueeze(-1), pieces]
        if self.inflated:
            parts = [part * ~atom.unsqueeze(-1) for part in parts]
        masses = torch.arange(self._masses.shape[1], device=z.device)
        parts.append((self._place(y).unsqueeze(-1) == masses).to(z))
        if self.periods:
            periods = torch.tensor(self.periods, dtype=z.dtype, device=z.device)
            angle = 2 * math.pi * (self._number(y).unsqueeze(-1) / periods)
            parts += [angle.sin(), angle.cos()]
        return torch.cat(parts, dim=-1).flatten(-2)[..., self._read.to(z.device)]

    def log_prob(self, y: Tensor, parameters: Tensor) -> Tensor:
        p = parameters[..., : max(self.outputs)]
        given, atom = y, y == ATOM
        if self.inflated:
            y = torch.where(atom, 0.0, y)
        z, slope = self._to_normal(y)
        slope = slope + self._base_slope(y)
        mixture, logits = p.tensor_split([3 * self.mixture.components], dim=-1)
        if self.cells:
            each = self._cell(y, z, slope, mixture).to(p.dtype)
        else:
            each = self.mixture.log_prob(z.to(p.dtype), mixture) + slope.to(p.dtype)
        if not logits.shape[-1]:
            return each
        shares = self._shares(mixture, logits)
        place = self._place(given) + 1
        shape = torch.broadcast_shapes(place.shape, shares.shape[:-1])
        shares, place = shares.expand(*shape, -1), place.expand(shape)
        own = shares.gather(-1, place.unsqueeze(-1)).squeeze(-1)
        each = shares[..., 0] + each
        both = torch.logaddexp(own, each) if self.cells else own
        return torch.where(place == 0, each, torch.where(atom, own, both))

    def _cell(self, y: Tensor, z: Tensor, slope: Tensor, parameters: Tensor) -> Tensor:
        """Return log-probabilities of the cells around codes."""
        half = 0.5 * self._of(y, None)[3]
        ends = [y - half, y + half]
        if self.base != "identity":  # in codes, which are small where numbers are large
            x = self._number(y)
            ends = [self._code(x - half), self._code(x + half)]
        edges = [self._to_normal(end)[0] for end in ends]
        logits, means, raw = parameters.double().chunk(3, dim=-1)
        log_scale = self.mixture.scale(raw)

        def reduced(value: Tensor) -> Tensor:
            return (value.clamp(-_FAR, _FAR).unsqueeze(-1) - means) * torch.exp(-log_scale)

        log_width = (slope + (2 * half).log()).unsqueeze(-1) - log_scale
        each = _log_interval(reduced(edges[0]), reduced(edges[1]), reduced(z), log_width)
        return torch.logsumexp(F.log_softmax(logits, dim=-1) + each, dim=-1)

    def step(self, noise: Tensor, parameters: Tensor, which: Tensor) -> Tensor:
        p = parameters[..., : max(self.outputs)].to(noise.dtype)
        uniform, normal = noise.unbind(-1)
        mixture, logits = p.tensor_split([3 * self.mixture.components], dim=-1)
        # What is left of a uniform number, once it chose between these values and the mixture, is
        # uniform.
        ends = self._shares(mixture, logits, which).exp()[..., 1:].cumsum(dim=-1)
        place = (uniform.unsqueeze(-1) >= ends).sum(dim=-1)
        own = place < ends.shape[-1]
        if ends.shape[-1]:
            rest = (uniform - ends[..., -1]) / (1 - ends[..., -1]).clamp(min=1e-30)
            uniform = torch.where(own, uniform, rest).clamp(0.0, 1.0)
        z = self.mixture.step(torch.stack([uniform, normal], dim=-1), mixture)
        y = self._from_normal(z.double(), which)
        if self.cells:
            low, _, _, step, *_ = self._of(y, which)
            x = torch.round(self._number(y, which) / step) * step
            if self.base == "log":  # rounding may end at the low end itself
                x = torch.maximum(x, low + 0.5 * step)
            y = self._code(x, which)
        masses = F.pad(self._masses.to(y.device), (0, 1))[which]
        place = place.clamp(max=masses.shape[-1] - 1).unsqueeze(-1)
        return torch.where(own, masses.gather(-1, place).squeeze(-1), y)


class Splines(Numbers):
    """Columns of numbers: a monotone spline of a normal value, behind the fitted map."""

    def __init__(
        self, places: Sequence[int], columns: Sequence[NumberColumn], components: int
    ) -> None:
        super().__init__(places, columns, components)
        self.spline = RationalQuadraticSpline(max(components, 2))
        self.outputs = [self.spline.outputs] * len(columns)

    def start(self, codes: Tensor | None = None) -> list[Tensor]:
        return [torch.zeros(count) for count in self.outputs]  # the identity

    def log_prob(self, y: Tensor, parameters: Tensor) -> Tensor:
        p = parameters[..., : self.outputs[0]]
        z, slope = self._to_normal(y)
        normal, stretch = self.spline.inverse(z.to(p.dtype), p)
        density = -0.5 * normal * normal - 0.5 * math.log(2 * math.pi)
        return density + stretch + (slope + self._base_slope(y)).to(p.dtype)

    def step(self, noise: Tensor, parameters: Tensor, which: Tensor) -> Tensor:
        p = parameters[..., : self.outputs[0]].to(noise.dtype)
        return self._from_normal(self.spline.forward(noise[..., 1], p)[0].double(), which)


def _log_cosh(t: Tensor) -> Tensor:
    return t.abs() + torch.log1p(torch.exp(-2 * t.abs())) - math.log(2)


def raw_scale(scale: Tensor) -> Tensor:
    """Return the parameters of scales between 0.001 and 1: the inverse of the rule."""
    return torch.logit(scale - _NARROWEST) - ScaleRule("sigmoid").offset


def _log_interval(a: Tensor, b: Tensor, middle: Tensor, log_width: Tensor) -> Tensor:
    """Return log(Phi(b) - Phi(a)) of a < b, by the density in the middle where they are close."""
    flip = a > 0
    low, high = torch.where(flip, -b, a), torch.where(flip, -a, b)
    log_low, log_high = _log_ndtr(low), _log_ndtr(high)
    difference = log_low - log_high
    narrow = log_width.exp() * middle.abs().clamp(min=1.0) < 1e-3
    difference = torch.where(narrow, -1.0, difference)
    wide = log_high + torch.log(-torch.expm1(difference))
    density = -0.5 * middle * middle - 0.5 * math.log(2 * math.pi) + log_width
    return torch.where(narrow, density, wide)


def _log_ndtr(x: Tensor) -> Tensor:
    """Return log(Phi(x)), whose gradient far below torch has as infinite or wrong."""
    far = x < -1e4
    tail = torch.where(far, x, -1.0)
    asymptote = -0.5 * tail * tail - torch.log(-tail) - 0.5 * math.log(2 * math.pi)
    return torch.where(far, asymptote, torch.special.log_ndtr(torch.where(far, 0.0, x)))
