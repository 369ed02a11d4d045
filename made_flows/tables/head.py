"""The head of a table: a distribution for each column, beside that of independent columns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import constraints
from torch.nn.utils.rnn import pad_sequence

from made_flows._checks import check_finite
from made_flows._torch import has_concrete_values
from made_flows.models.mixture_weights import mixture_weights
from made_flows.tables.columns import Column, NumberColumn
from made_flows.tables.parts import Categories, Numbers, Part, Splines
from made_flows.transforms.units import Units
from made_flows.univariate.heads import GaussianMixture, Head

_PRIOR = 5
"""Rows of a column for which the shares that all columns together have count."""

_POOLED = 50_000
"""Values by which these are found, at most."""


class TableSupport(constraints.Constraint):
    """Codes of the columns of a table: finite numbers."""

    is_mixed = True  # of densities and masses

    def check(self, value: Tensor) -> Tensor:
        return torch.isfinite(value)


class TableHead(Head):
    r"""The head of a table: each column's own distribution.

    .. math:: p(x_i \mid \theta_i) = (1 - v_i - w_i)\, q(x_i \mid \theta_i)
        + v_i\, q(x_i \mid \theta_i') + w_i\, q(x_i \mid m_i)

    Its values are the codes of columns (:class:`~made_flows.tables.columns.Column`), its densities
    and masses those of the columns' values. The last part is the column's distribution whatever
    the others are: a network of few rows may be worse than that. The second has the network's
    mixture, and the column's own logits of frequent numbers (of many, a network learns by heart
    which row has which).

    Args:
        columns: the columns.
        components: normals of every mixture; bins of every spline.

    Attributes:
        margin: parameters m of independent columns, (D, K).
        share: weights w of the last part, (D,); zeros at first.
        plain: weights v of the second part, (D,); zeros at first.
    """

    outputs: tuple[int, ...]
    inputs: tuple[int, ...]
    margin: Tensor
    share: Tensor
    plain: Tensor
    noise_parts = 2
    changing = ("share", "plain")
    has_rsample = False
    value_dtype = torch.float64
    support = TableSupport()

    def __init__(self, columns: Sequence[Column], components: int) -> None:
        super().__init__()
        groups: dict[Any, list[int]] = {}
        for i, column in enumerate(columns):
            form: Any = "categories"
            if isinstance(column, NumberColumn):
                spline = column.kind == "spline"
                form = (column.base, column.step > 0, column.inflated, column.cycles, spline)
            groups.setdefault(form, []).append(i)
        parts: list[Part] = []
        for form, features in groups.items():
            of_form: Any = [columns[i] for i in features]
            if form == "categories":
                parts.append(Categories(features, of_form))
            else:
                parts.append((Splines if form[-1] else Numbers)(features, of_form, components))
        self.parts = nn.ModuleList(parts)
        self._parts = parts
        order = [i for part in parts for i in part.places]
        # Where the features that the parts give, one part after the other, belong.
        self._features = torch.tensor(order).argsort()
        places = [(k, j) for k, part in enumerate(parts) for j in range(len(part.places))]
        found = [places[i] for i in self._features.tolist()]
        self._part_of, self._place_in = torch.tensor(found).T
        self.outputs = tuple(parts[k].outputs[j] for k, j in found)
        self.inputs = tuple(parts[k].inputs[j] for k, j in found)
        discrete = torch.tensor([not isinstance(column, NumberColumn) for column in columns])
        self.logits = discrete.repeat_interleave(torch.tensor(self.outputs))
        self._start = self._alone().float()
        read = torch.arange(sum(self.inputs)).split(self.inputs)
        self._columns = torch.cat([read[i] for i in order]).argsort()
        self.register_buffer("margin", self._as_rows(self._start))
        self.register_buffer("share", torch.zeros(len(order)))
        self.register_buffer("plain", torch.zeros(len(order)))
        self._often = torch.zeros(len(order), max(self.outputs), dtype=torch.bool)
        for part in parts:
            if isinstance(part, Numbers):
                wide = part.often.shape[1]
                self._often[part.places, 3 * components : 3 * components + wide] = part.often
        self._repeats = bool(self._often.any())

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        for name in ("margin", "share", "plain"):  # which files of version 0.2 do not have
            state_dict.setdefault(prefix + name, getattr(self, name))
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def initial_parameters(self) -> Tensor:
        return self._start

    def _as_rows(self, flat: Tensor) -> Tensor:
        """Return parameters as rows (D, K): as the network gives them, -inf behind a column's."""
        return pad_sequence(list(flat.split(self.outputs)), True, padding_value=-torch.inf)

    def _alone(self, codes: Tensor | None = None) -> Tensor:
        """Return the parameters of independent columns, as far as codes (N, D) tell them."""
        each: list[Tensor] = []
        for part in self._parts:
            each += part.start(None if codes is None else codes[:, part.places])
        return torch.cat([each[i] for i in self._features.tolist()])

    @torch.no_grad()
    def set_margin(self, codes: Tensor) -> Tensor:
        """Fit independent columns to codes (N, D), NaN where one is missing.

        Returns:
            Their parameters, one column's after the other.
        """
        flat = self._alone(codes)
        self.margin.copy_(self._as_rows(flat))
        return flat

    def log_prob(self, x: Tensor, parameters: Tensor) -> Tensor:
        pooled = torch.stack([self.share, self.plain])
        if has_concrete_values(pooled) and not bool(pooled.any()):
            return self._log_prob(x, parameters)  # in training above all
        given = (1 - pooled.sum(0)).clamp(min=0.0)
        weights = torch.stack([given, self.plain, self.share], dim=-1)
        each = self._scores(x, parameters)
        return torch.logsumexp(each + weights.to(each).log(), dim=-1)

    def _scores(self, x: Tensor, parameters: Tensor) -> Tensor:
        """Score values by the network, by what it says of mixtures alone, and by the column."""
        margin, often = self.margin.to(parameters), self._often.to(parameters.device)
        given = self._log_prob(x, parameters)
        plain = given
        if self._repeats:
            plain = self._log_prob(x, torch.where(often, margin, parameters))
        alone = self._log_prob(x, margin).expand_as(given)
        return torch.stack([given, plain, alone], dim=-1)

    def _log_prob(self, x: Tensor, parameters: Tensor) -> Tensor:
        x = x.double()
        each = [
            part.log_prob(x[..., part.places], parameters[..., part.places, :])
            for part in self._parts
        ]
        return torch.cat(each, dim=-1)[..., self._features.to(x.device)]

    @torch.no_grad()
    def set_share(self, codes: Tensor, parameters: Sequence[Tensor]) -> None:
        """Set the shares under which rows that were not trained on are most likely, by EM.

        Those of a column of which they know nothing are what all columns together have.

        Args:
            codes: (N, D), NaN where one is missing.
            parameters: (N, D, K) of the network, several times: in several orders.
        """
        observed = ~codes.isnan()
        x = torch.where(observed, codes, self.filler)
        scores = torch.stack([self._scores(x, each) for each in parameters]).double()
        scores[:, :, ~self._often.any(dim=1), 1] = -torch.inf  # where they say the same
        known = observed & torch.isfinite(scores.amax(dim=-1))
        if not bool(known.any()):
            return
        # Few rows tell little of a column: what all columns tell counts as some rows of each.
        each = scores[known]
        each[:, 1] = torch.where(torch.isinf(each[:, 1]), each[:, 0], each[:, 1])
        generator = torch.Generator().manual_seed(0)
        some = torch.randperm(len(each), generator=generator, device="cpu")[:_POOLED]
        pooled = mixture_weights(each[some.to(each.device)])
        for i in range(codes.shape[1]):
            weights = pooled
            if not bool(self._often[i].any()):
                weights = torch.stack([pooled[0] + pooled[1], pooled[1] * 0, pooled[2]])
            of_column = scores[..., i, :][known[..., i]]
            if len(of_column):
                prior = _PRIOR * len(parameters) * weights
                weights = mixture_weights(of_column, prior=prior)
            self.plain[i], self.share[i] = weights[1], weights[2]

    @contextmanager
    def left_out(self, network: nn.Module) -> Iterator[None]:
        """Train a network alone, without shares; where it was not changed, they come back."""
        shares = (self.share, self.plain)
        before = [each.clone() for each in shares]
        weights = [p.detach().clone() for p in network.parameters()]
        for each in shares:
            each.zero_()
        try:
            yield
        finally:
            now = zip(network.parameters(), weights, strict=True)
            if all(torch.equal(p.detach(), value.to(p.device)) for p, value in now):
                self.share.copy_(before[0])
                self.plain.copy_(before[1])

    def encode(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        x = x.double()
        each = [part.encode(x[..., part.places]) for part in self._parts]
        return torch.cat(each, dim=-1)[..., self._columns.to(x.device)].to(dtype)

    noise = GaussianMixture.noise  # a uniform and a normal number

    def step(self, noise: Tensor, parameters: Tensor) -> Tensor:
        features = torch.arange(parameters.shape[-2], device=parameters.device)
        return self.step_at(noise, parameters, features)

    def step_at(self, noise: Tensor, parameters: Tensor, features: Tensor) -> Tensor:
        shape = torch.broadcast_shapes(parameters.shape[:-1], noise.shape[:-1])
        features = features.expand(shape)
        parameters = parameters.expand(*shape, -1)
        noise = noise.expand(*shape, -1)
        values = parameters.new_zeros(shape, dtype=torch.float64)
        # One uniform number chooses what draws the value, and what is left of it the value.
        uniform, share = noise[..., 0], self.share.to(noise)[features]
        ends = share + self.plain.to(noise)[features]
        alone, plain = uniform < share, (uniform >= share) & (uniform < ends)
        low = torch.where(alone, 0.0, torch.where(plain, share, ends))
        high = torch.where(alone, share, torch.where(plain, ends, 1.0))
        left = ((uniform - low) / (high - low).clamp(min=1e-30)).clamp(0.0, 1.0)
        noise = torch.stack([left, noise[..., 1]], dim=-1)
        wide = parameters.shape[-1]
        margin = self.margin.to(parameters)[features, :wide]
        often = self._often.to(parameters.device)[features, :wide]
        own = alone.unsqueeze(-1) | (plain.unsqueeze(-1) & often)
        parameters = torch.where(own, margin, parameters)
        part_of = self._part_of.to(features.device)[features]
        place_in = self._place_in.to(features.device)[features]
        for number, part in enumerate(self._parts):
            at = part_of == number
            if bool(at.any()):
                values[at] = part.step(noise[at], parameters[at], place_in[at])
        return values

    def check_values(self, x: Tensor) -> None:
        check_finite(x, "value")


class ContextCodes(Units):
    """Units in which a context of table columns is read: the head's encoding of its codes."""

    def __init__(self, features: int, head: TableHead | None) -> None:
        super().__init__(features)
        self.head = head

    def standardize_context(self, context: Tensor | None) -> Tensor | None:
        if context is None or self.head is None:
            return context
        return self.head.encode(context, self.like.dtype)
