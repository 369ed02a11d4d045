"""Density models of tables with columns of different kinds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Real
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypedDict, cast

import numpy as np
import torch
from torch import Tensor

from made_flows._checks import (
    boolean,
    checked_device,
    checked_seed,
    expect_type,
    positive_integer,
)
from made_flows._keywords import helpful
from made_flows._registry import saveable
from made_flows._torch import in_groups, modes_kept
from made_flows.distributions.missing import observed_first
from made_flows.models.density import DensityModel
from made_flows.models.mixtures import OrderMixture
from made_flows.nn.linear import MaskedLinear
from made_flows.nn.made import MADE, default_widths
from made_flows.tables.drawing import draw_missing, draw_rows
from made_flows.tables.frames import read
from made_flows.tables.head import ContextCodes, TableHead
from made_flows.tables.schema import Schema
from made_flows.training.convert import as_tensor
from made_flows.training.data import split_rows
from made_flows.training.history import History
from made_flows.training.loop import FitOptions, fit
from made_flows.training.optimization import seeded
from made_flows.transforms.units import Units

if TYPE_CHECKING:
    from typing_extensions import Unpack

_ROWS = 2048
"""Rows that are scored at a time."""

_SHOWN = 9
"""Columns that a model shows of its schema."""

_SPARSITY = 0.1
"""Threshold of direct connections in training, see :func:`made_flows.fit`: most pairs have none."""

_ORDERS = 8
"""Orders in which rows that were left out are scored, for the shares of independent columns."""


class TableOptions(TypedDict, total=False):
    """Arguments of :class:`TableMADE` that functions which make one pass on."""

    hidden_features: Sequence[int] | None
    components: int
    activation: Any
    residual: bool
    direct: bool
    dropout: float
    orders_per_batch: int | Literal["row"]


@saveable
class TableMADE(DensityModel):
    r"""A density of the rows of a table whose columns are of different kinds.

    .. math:: \log p(x) = \sum_i \log p(x_i \mid x_{<i})

    with a density for every continuous column, per unit of the column, and a probability for every
    discrete one. All orders of the columns are trained, so that any columns may be missing, in
    training too: their marginal and conditional are exact under an order that puts the observed
    first. Each conditional is mixed with the column's own distribution, by weights that are fitted
    to the rows held out (:class:`~made_flows.tables.head.TableHead`): on these, in the mean of
    eight orders, training ends no worse than independent columns. Made by :meth:`from_data` or
    :func:`~made_flows.fit_table`; calling it, as any model, gives a distribution of codes
    (:meth:`~made_flows.tables.schema.Schema.encode`).

    Args:
        schema: what the columns are.
        hidden_features: widths of the hidden layers; by default two that grow with the columns.
        components: normals in the mixture of a column of numbers, or bins of its spline.
        activation, residual, dropout: as for :class:`~made_flows.MADE`.
        direct: whether inputs are also connected to outputs directly: columns that say another's
            values in other words are learnt in a few epochs.
        orders_per_batch: as for :class:`~made_flows.DensityModel`.

    References:
        Uria et al. 2014, *A Deep and Tractable Density Estimator*; Papamakarios et al. 2017,
        *Masked Autoregressive Flow*, section 4.1.

    Example:
        >>> import numpy as np, made_flows as mf
        >>> rng = np.random.default_rng(0)
        >>> table = {"age": rng.integers(18, 80, 200), "sex": ["f", "m"] * 100}
        >>> model = mf.TableMADE.from_data(table)
        >>> model.score_samples(table).shape, model.sample(3)["sex"].shape
        ((200,), (3,))
        >>> model
        TableMADE(not trained, hidden_features=(256, 256))
          column  kind    values    missing
          age     count   18 to 79, in steps of 1
          sex     binary  f, m
    """

    _former_defaults: ClassVar[dict[str, Any]] = {"direct": False}

    head: TableHead
    trained_rows: Tensor

    def __init__(
        self,
        schema: Schema,
        hidden_features: Sequence[int] | None = None,
        *,
        components: int = 8,
        activation: Any = "relu",
        residual: bool = False,
        direct: bool = True,
        dropout: float = 0.0,
        orders_per_batch: int | Literal["row"] = 8,
    ) -> None:
        expect_type(isinstance(schema, Schema), "schema", "to be a Schema", schema)
        components = positive_integer(components, "components")
        head = TableHead(schema.columns, components)
        of_context = TableHead(schema.context, 1) if schema.context else None
        # Wider than of numbers alone, as categories take room.
        wide = max(256, default_widths(len(schema.columns))[0])
        made = MADE(
            len(schema.columns), 0 if of_context is None else sum(of_context.inputs),
            hidden_features or (wide, wide), head.outputs, inputs=head.inputs,
            activation=activation, residual=residual, direct=direct, dropout=dropout,
            mask_weights="order",
        )  # fmt: skip
        super().__init__(made, head, orders="all", orders_per_batch=orders_per_batch)
        self.schema, self.context = schema, len(schema.context)
        self.units = ContextCodes(made.features, of_context)
        self.register_buffer("trained_rows", torch.tensor(0))

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        state_dict.setdefault(prefix + "trained_rows", torch.tensor(0))  # earlier files lack it
        super()._load_from_state_dict(state_dict, prefix, *rest)

    @classmethod
    @helpful
    def from_data(
        cls,
        table: Any,
        columns: Mapping[str, Any] | None = None,
        context: Sequence[str] = (),
        **options: Unpack[TableOptions],
    ) -> TableMADE:
        """Make an untrained model for a table's columns.

        Args:
            table: a frame of pandas or polars, an Arrow table, a matrix, or arrays by name; NaN,
                None and their like are missing values.
            columns: what columns are, by name, where it is not what their values look like:
                ``"real"``, ``"spline"``, ``"positive"``, ``"bounded"`` or ``("bounded", low,
                high)``, ``"count"``, ``"amount"`` or ``("amount", step)``, ``"rounded"`` or
                ``("rounded", step)``, ``"zero_inflated"``, ``"date"``, ``"category"``,
                ``"binary"`` or ``"leave_out"``.
            context: names of columns that the others are conditional on.
            options: of the constructor.

        Raises:
            TypeError, ValueError: for what is no table, and for columns that are not what they are
                said to be, by name and row.
        """
        model = cls(Schema.of(table, columns, context), **options)
        model.start_from(table)
        return model

    def start_from(self, table: Any) -> None:
        """Give an untrained network the columns of a table as if they were independent, nearly.

        Training then need not find out what each of them is by itself.
        """
        self.start_from_codes(self.schema.encode(table)[0])

    def start_from_codes(self, x: Tensor) -> None:
        """Do as :meth:`start_from` does with codes (N, D) of rows."""
        last = cast(MaskedLinear, self.made.layers[-1])
        with torch.no_grad():
            margin = self.head.set_margin(x)
            if last.bias is not None:
                last.bias.copy_(margin)
            last.weight.mul_(0.1)

    def standardizable(self) -> list[Units]:
        return []

    @helpful
    def fit(
        self,
        table: Any,
        *,
        validation: Any = 0.1,
        average: float | None = 0.99,
        **options: Unpack[FitOptions],
    ) -> History:
        """Train by maximum likelihood, as :func:`made_flows.fit` does.

        Args:
            table: the rows.
            validation: the fraction to hold out, another table, or None. Shares of independent
                columns are fitted to them after training; without them there are none.
            average: the decay of an average of the weights, which orders that change from batch to
                batch gain from.
            options: of :func:`made_flows.fit`. Without a ``seed``, always the same rows are held
                out.

        Returns:
            The history, whose numbers are those of the network alone.
        """
        checked_device(options.get("device"))  # before a table is read, which may take long
        x, context = self.schema.encode(table)
        if validation is not None and not isinstance(validation, Real):
            validation = self.schema.encode(validation, "validation")
        return self.fit_codes(x, context, validation=validation, average=average, **options)

    @helpful
    def fit_codes(
        self,
        x: Any,
        context: Any = None,
        *,
        validation: Any = None,
        average: float | None = 0.99,
        **options: Unpack[FitOptions],
    ) -> History:
        """Train on codes of rows, which may be mapped from files, as :meth:`fit` does on a table.

        Args:
            x: codes (N, D), see :meth:`~made_flows.tables.schema.Schema.encode`.
            context: those of the context columns (N, C).
            validation: x and context of other rows, as a pair, the fraction to hold out, or None.
            average, options: as for :meth:`fit`.
        """
        if isinstance(validation, Real) and 0 < float(validation) < 1:  # fit tells wrong ones
            generator = torch.Generator().manual_seed(checked_seed(options.get("seed")) or 0)
            parts = split_rows(x, context, float(validation), generator, "the table")
            (x, context), validation = parts
        pair = isinstance(validation, tuple)
        others = validation[0] if pair and not self.context else validation
        if options.get("sparsity") is None and options.get("optimizer") is None:
            options["sparsity"] = _SPARSITY if self.made.direct is not None else 0.0
        options.setdefault("weight_decay", 0.0)  # with direct connections, not tried
        with self.head.left_out(self.made):
            history = fit(self, x, context, validation=others, average=average, **options)
        if history.best_epoch:
            self.trained_rows.fill_(len(x))
        if pair:
            self._set_share(*validation)
        return history

    def _set_share(self, x: Any, context: Any) -> None:
        """Give each column as much of its own distribution as rows that were left out ask for."""
        head, device = self.head, self.made.ranks.device
        some = slice(None, None, -(-len(x) // _ROWS))
        x = as_tensor(x[some], "validation").to(device)
        context = None if context is None else as_tensor(context[some], "validation").to(device)
        missing = x.isnan()
        generator, parameters = torch.Generator().manual_seed(0), []
        with self._evaluating():
            inputs = head.encode(torch.where(missing, head.filler, x), self.made.dtype)
            read = self.units.standardize_context(context)
            for _ in range(_ORDERS):
                places = torch.randperm(self.features, generator=generator).to(device)
                order = observed_first(places, ~missing)
                parameters.append(self.made(inputs, read, order if missing.any() else order[0]))
            head.set_share(x, parameters)

    # ------------------------------------------------------------------ rows of tables

    def score_samples(self, table: Any, *, orders: int = 1) -> np.ndarray:
        """Return the log-likelihood of every row, (N,): that of the values that it has.

        Args:
            table: the rows.
            orders: how many orders to mix, see :class:`~made_flows.OrderMixture`; one is the
                model's own.
        """
        model = self._of_orders(orders)

        def score(x: Tensor, context: Tensor | None) -> Tensor:
            def some(_: int, rows: Tensor) -> Tensor:
                of_rows = None if context is None else context[rows]
                scores: Tensor = model.distribution(of_rows).log_prob(x[rows])
                return scores.double()

            # Rows without missing values are scored together, as they take one order.
            return in_groups(x.isnan().any(dim=1).long(), some)

        return self._in_pieces(table, score).numpy()

    def score_columns(self, table: Any) -> dict[str, np.ndarray]:
        r"""Return how likely each value is, given all others of its row, by column.

        .. math:: \log p(x_i \mid x_{-i})

        The most negative ones say why a row is odd. NaN where a value is missing.
        """

        def score(x: Tensor, context: Tensor | None) -> Tensor:
            observed = ~x.isnan()
            filled = torch.where(observed, x, 0.0)
            inputs = self.head.encode(filled, self.made.dtype)
            read = self.units.standardize_context(context)
            each = []
            for i in range(self.features):
                # In front what is observed, then this column, then what is missing.
                places = self.made.ranks + 2 * self.features * (~observed).to(torch.int64)
                places[:, i] = self.features
                order = places.argsort(dim=1)
                same = bool((order == order[:1]).all())
                parameters = self.made(inputs, read, order[0] if same else order)
                each.append(self.head.log_prob(filled, parameters)[:, i].double())
            return torch.where(observed, torch.stack(each, dim=1), torch.nan)

        scores = self._in_pieces(table, score).numpy()
        return {name: scores[:, i] for i, name in enumerate(self.schema.names)}

    def sample(
        self,
        count: int,
        *,
        context: Any = None,
        orders: int = 1,
        seed: int | None = None,
        progress: bool = True,
    ) -> Any:
        """Draw rows, as a table of the kind that the model was made from.

        Columns are those that are modelled (a matrix has NaN in others); categories, those seen.

        Args:
            count: how many rows; with a context, how many for each of its rows.
            context: a table of the context columns, if the model has some.
            orders: how many orders to mix.
            seed: makes draws repeat; without one, torch's global generator goes on.
            progress: whether to show a bar after two seconds.
        """
        count, progress = positive_integer(count, "count"), boolean(progress, "progress")
        codes = self.schema.encode_context(context)
        with self._evaluating(seed):
            drawn = draw_rows(self._of_orders(orders).distribution, codes, count, progress)
        return self.schema.table(self.schema.decode(drawn))

    def impute(  # type: ignore[override]
        self, table: Any, *, orders: int = 1, seed: int | None = None, progress: bool = True
    ) -> Any:
        """Draw the missing values of a table's rows given the observed ones, and return it filled.

        What is observed, and columns that are not modelled, stay as they are. Called again (with
        another seed), it gives another of multiple imputations.
        """
        return self._filled(table, 1, orders, seed, progress)

    def fill(
        self,
        table: Any,
        *,
        draws: int = 50,
        orders: int = 1,
        seed: int | None = 0,
        progress: bool = True,
    ) -> Any:
        """Put the best guess where a table's values are missing, and return it.

        The median of draws given the observed values, of categories the most frequent. (Of a
        column in steps, such as one of integers, it is rounded to one.)

        Args:
            table: the rows.
            draws: how many values to draw for each missing one.
            orders: how many orders to mix.
            seed: of the draws.
            progress: whether to show a bar after two seconds.
        """
        return self._filled(table, positive_integer(draws, "draws"), orders, seed, progress)

    def __repr__(self) -> str:
        rows = int(self.trained_rows)
        trained = f"trained on {rows} rows" if rows else "not trained"
        head, *columns = str(self.schema).splitlines()
        more = [f"... and {len(columns) - _SHOWN} more"] if len(columns) > _SHOWN else []
        first = f"TableMADE({trained}, hidden_features={self.made.hidden_features})"
        return "\n  ".join([first, head, *columns[:_SHOWN], *more])

    # ------------------------------------------------------------------ how

    def _filled(self, table: Any, draws: int, orders: int, seed: int | None, progress: bool) -> Any:
        progress = boolean(progress, "progress")
        x, context = self.schema.encode(table)
        model = self._of_orders(orders)
        rows = x.isnan().any(dim=1).nonzero().flatten()
        given = None if context is None else context[rows]
        with self._evaluating(seed):
            drawn = draw_missing(model, x[rows], given, draws, progress)
        columns, filled = read(table)[0], {}
        for i, column in enumerate(self.schema.columns):
            missing = x[rows, i].isnan()
            if bool(missing.any()):
                guesses = column.guess(drawn[:, missing, i].numpy())
                filled[column.name] = column.filled(columns[column.name], guesses)
        return self.schema.table(filled, table)

    def _of_orders(self, orders: int) -> Any:
        """Return the model itself, or a mixture over orders, which are always the same."""
        if positive_integer(orders, "orders") == 1:
            return self
        return OrderMixture(self, orders, generator=torch.Generator().manual_seed(0))

    @contextmanager
    def _evaluating(self, seed: int | None = None) -> Iterator[None]:
        seeding = seeded(checked_seed(seed), self.made.ranks.device)
        with modes_kept(self.modules()), torch.no_grad(), seeding:
            self.eval()
            yield

    def _in_pieces(self, table: Any, score: Callable[[Tensor, Tensor | None], Tensor]) -> Tensor:
        """Score a table's rows, so many at a time that memory does not grow with them."""
        x, context = self.schema.encode(table)
        device, parts = self.made.ranks.device, []
        with self._evaluating():
            for rows in torch.arange(len(x)).split(_ROWS):
                given = None if context is None else context[rows].to(device)
                parts.append(score(x[rows].to(device), given).cpu())
        return torch.cat(parts)
