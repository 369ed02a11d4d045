"""The head of a table: a distribution for each column, beside that of independent columns."""

from __future__ import annotations

from collections.abc import Sequence
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
from made_flows.univariate.heads import GaussianMixture, Head


class TableSupport(constraints.Constraint):
    """Codes of the columns of a table: finite numbers."""

    def check(self, value: Tensor) -> Tensor:
        return torch.isfinite(value)


class TableHead(Head):
    r"""The head of a table: each column's own distribution.

    .. math:: p(x_i \mid \theta_i) = (1 - w_i)\, q(x_i \mid \theta_i) + w_i\, q(x_i \mid m_i)

    Its values are the codes of columns (:class:`~made_flows.tables.columns.Column`), its densities
    and masses those of the columns' values. The second part is the column's distribution whatever
    the others are: a network of few rows may be worse than that, of a column that repeats some
    values above all, which it has to hit.

    Args:
        columns: the columns.
        components: normals of every mixture; bins of every spline.

    Attributes:
        margin: parameters m of independent columns, (D, K).
        share: weights w of the second part, (D,); zeros at first.
    """

    outputs: tuple[int, ...]
    inputs: tuple[int, ...]
    margin: Tensor
    share: Tensor
    noise_parts = 2
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

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        for name in ("margin", "share"):  # which files of version 0.2 do not have
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
        given = self._log_prob(x, parameters)
        if has_concrete_values(self.share) and not bool(self.share.any()):
            return given  # in training above all
        alone, share = self._log_prob(x, self.margin.to(parameters)), self.share.to(given)
        return torch.logaddexp(given + torch.log1p(-share), alone + share.log())

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

        Args:
            codes: (N, D), NaN where one is missing.
            parameters: (N, D, K) of the network, several times: in several orders.
        """
        observed = ~codes.isnan()
        x = torch.where(observed, codes, self.filler)
        given = torch.stack([self._log_prob(x, each) for each in parameters]).double()
        alone = self._log_prob(x, self.margin.to(parameters[0])).double().expand_as(given)
        scores = torch.stack([given, alone], dim=-1)
        known = observed & torch.isfinite(scores.amax(dim=-1))
        for i in range(codes.shape[1]):
            if bool(known[..., i].any()):
                self.share[i] = mixture_weights(scores[..., i, :][known[..., i]])[1]

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
        # One uniform number chooses whether the network is asked, and what is left of it the value.
        share = self.share.to(noise)[features]
        uniform = noise[..., 0]
        alone = uniform < share
        low, width = torch.where(alone, 0.0, share), torch.where(alone, share, 1 - share)
        left = ((uniform - low) / width.clamp(min=1e-30)).clamp(0.0, 1.0)
        noise = torch.stack([left, noise[..., 1]], dim=-1)
        margin = self.margin.to(parameters)[features, : parameters.shape[-1]]
        parameters = torch.where(alone.unsqueeze(-1), margin, parameters)
        part_of = self._part_of.to(features.device)[features]
        place_in = self._place_in.to(features.device)[features]
        for number, part in enumerate(self._parts):
            at = part_of == number
            if bool(at.any()):
                values[at] = part.step(noise[at], parameters[at], place_in[at])
        return values

    def check_values(self, x: Tensor) -> None:
        check_finite(x, "value")
