"""A table with holes: what a model of every order says of the missing cells.

Ten measurements of cell nuclei (scikit-learn's breast-cancer table, standardised) lose 30 % of
their cells at random, in the rows to train on as well. A density model over all orders is fitted to
what is left; the removed cells of held-out rows, given the observed ones, are then scored beside a
Gaussian fitted by EM and scikit-learn's IterativeImputer and KNNImputer. With MADE_FLOWS_QUICK=1
everything is trained for a moment only, to see that it runs.
"""

from __future__ import annotations

import math
import os
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from sklearn.datasets import load_breast_cancer
from sklearn.experimental import enable_iterative_imputer  # noqa: F401 (it is still experimental)
from sklearn.impute import IterativeImputer, KNNImputer
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal
from tqdm import tqdm

import made_flows as mf

QUICK = bool(os.environ.get("MADE_FLOWS_QUICK"))
OUTPUT = Path("example_output")
REMOVED = 0.3
DRAWS = 10 if QUICK else 200
ORDERS = 2 if QUICK else 16
ROUNDS = 2 if QUICK else 40
"""Of EM."""
RIDGES = (0.1,) if QUICK else (0.1, 1.0)
NEIGHBOURS = (5,) if QUICK else (3, 5, 10, 20)
START_EPOCHS, EPOCHS = (1, 1) if QUICK else (10, 80)
STEPS = 10 if QUICK else 200
"""In an epoch of samples from the Gaussian."""
MODELS: dict[str, tuple[Callable[..., mf.DensityModel], dict[str, Any]]] = {
    "GaussianMADE": (mf.GaussianMADE, {}),
    "GaussianMixtureMADE": (mf.GaussianMixtureMADE, {"components": 4}),
}


class Part(NamedTuple):
    """Some rows: all their values, which are observed, and the values with NaN for the others."""

    x: Tensor
    observed: Tensor
    holes: Tensor


class Table(NamedTuple):
    train: Part
    validation: Part
    test: Part
    names: list[str]


@dataclass
class Result:
    """What a method says of the removed cells of the test rows; (rows, columns) each.

    Entries of observed cells mean nothing.

    Args:
        alone: log-density of every cell by itself, given the observed ones.
        draws: (draws, rows, columns), completed rows; their mean is what is imputed.
        together: (rows,) joint log-density of a row's cells, if the method has one.
    """

    name: str
    alone: Tensor
    draws: Tensor
    together: Tensor | None = None


def load(seed: int = 0) -> Table:
    """Cells are removed first: the means and deviations are those of the observed ones."""
    table = load_breast_cancer()
    generator = torch.Generator().manual_seed(seed)
    rows = torch.from_numpy(table.data[:, :10])
    rows = rows[torch.randperm(len(rows), generator=generator)]
    observed = torch.rand(rows.shape, generator=generator) >= REMOVED
    holes = torch.where(observed, rows, torch.nan)
    ends = (len(rows) // 4, len(rows) // 4 + len(rows) // 7)
    mean = holes[ends[1] :].nanmean(dim=0)
    scale = (holes[ends[1] :] - mean).square().nanmean(dim=0).sqrt()

    def part(start: int, stop: int) -> Part:
        at = slice(start, stop)
        x, known = ((values[at] - mean) / scale for values in (rows, holes))
        return Part(x.float(), observed[at], known.float())

    test, validation, train = part(0, ends[0]), part(*ends), part(ends[1], len(rows))
    return Table(train, validation, test, [str(name) for name in table.feature_names[:10]])


# --- The Gaussian ---------------------------------------------------------------------------------


class FullGaussian:
    """The Gaussian of the observed cells, by expectation maximisation (Dempster et al. 1977).

    Args:
        holes: (N, D), NaN where a value is missing.
        ridge: added to the sum of squares, as so many rows of unit variance would.
    """

    def __init__(self, holes: Tensor, ridge: float) -> None:
        rows = holes.double()
        count, features = rows.shape
        self.mean = torch.zeros(features, dtype=torch.float64)
        self.covariance = torch.eye(features, dtype=torch.float64)
        for _ in tqdm(range(ROUNDS), desc=f"Gaussian by EM, ridge {ridge:g}", unit="round"):
            filled, spread = rows.clone(), ridge * self.covariance.new_ones(features).diag()
            for row in filled:
                missing = torch.isnan(row)
                rest = self.conditional(row)
                row[missing] = rest.mean
                spread[missing.nonzero(), missing] += rest.covariance_matrix
            self.mean = filled.mean(dim=0)
            centred = filled - self.mean
            self.covariance = (centred.T @ centred + spread) / count

    def conditional(self, row: Tensor) -> MultivariateNormal:
        """The missing cells of a row (D,) given the observed ones."""
        missing = torch.isnan(row)
        joint = self.covariance[~missing][:, ~missing]
        cross = self.covariance[~missing][:, missing]
        weights = torch.linalg.solve(joint, cross)
        mean = self.mean[missing] + (row[~missing] - self.mean[~missing]) @ weights
        covariance = self.covariance[missing][:, missing] - cross.T @ weights
        return MultivariateNormal(mean, (covariance + covariance.T) / 2, validate_args=False)

    def log_prob(self, holes: Tensor) -> Tensor:
        """Of the observed cells of rows (N, D): (N,)."""
        scores = []
        for row in holes.double():
            known = ~torch.isnan(row)
            marginal = MultivariateNormal(self.mean[known], self.covariance[known][:, known])
            scores.append(marginal.log_prob(row[known]))
        return torch.stack(scores)

    def sample(self, count: int) -> Tensor:
        return MultivariateNormal(self.mean, self.covariance).sample((count,)).float()

    def result(self, name: str, part: Part) -> Result:
        together, alone = torch.zeros(len(part.x)), torch.zeros_like(part.x)
        draws = part.x.repeat(DRAWS, 1, 1)
        for i, row in enumerate(part.holes.double()):
            missing = ~part.observed[i]
            if bool(missing.any()):
                rest, truth = self.conditional(row), part.x[i, missing].double()
                together[i] = rest.log_prob(truth)
                alone[i, missing] = Normal(rest.mean, rest.stddev).log_prob(truth).float()
                draws[:, i, missing] = rest.sample((DRAWS,)).float()
        return Result(name, alone, draws, together)


def best_gaussian(table: Table) -> FullGaussian:
    """The ridge that is best on the observed cells of the validation rows."""
    found = [FullGaussian(table.train.holes, ridge) for ridge in RIDGES]
    return max(found, key=lambda each: float(each.log_prob(table.validation.holes).mean()))


# --- scikit-learn ---------------------------------------------------------------------------------


def chained_equations(table: Table) -> Result:
    """IterativeImputer (BayesianRidge) with draws from its posterior, not its point estimate.

    A cell is scored under the Gaussian with the mean and deviation of its draws, in which the other
    missing cells vary as well. That is more than the deviation of the last regression alone.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # draws do not converge to a point, as it would like
        imputer = IterativeImputer(sample_posterior=True, max_iter=2 if QUICK else 10,
                                   random_state=0)  # fmt: skip
        imputer.fit(table.train.holes.numpy())
        bar = tqdm(range(DRAWS), desc="IterativeImputer", unit="draw")
        drawn = [torch.from_numpy(imputer.transform(table.test.holes.numpy())) for _ in bar]
    draws = torch.stack(drawn).float()
    scale, mean = torch.std_mean(draws, dim=0)
    normal = Normal(mean, scale.clamp(min=1e-3))  # observed cells do not vary
    return Result("IterativeImputer", normal.log_prob(table.test.x), draws)


def neighbours(table: Table) -> Result:
    """KNNImputer with one Gaussian for every column, of the errors it makes on training cells.

    Those cells are observed ones, hidden from it in turn; their errors say which number of
    neighbours is best as well.
    """
    holes = table.train.holes
    folds = torch.randint(5, holes.shape, generator=torch.Generator().manual_seed(0))
    best: tuple[float, int, Tensor] | None = None
    for count in NEIGHBOURS:
        errors = torch.full_like(holes, torch.nan)
        for fold in range(5):
            hidden = (folds == fold) & table.train.observed
            imputer = KNNImputer(n_neighbors=count, weights="distance")
            shown = torch.where(hidden, torch.nan, holes).numpy()
            filled = torch.from_numpy(imputer.fit_transform(shown)).float()
            errors[hidden] = (filled - holes)[hidden]
        scale = errors.square().nanmean(dim=0).sqrt()
        if best is None or float(scale.log().sum()) < best[0]:
            best = (float(scale.log().sum()), count, scale)
    _, count, scale = best if best is not None else (0.0, 5, torch.ones(holes.shape[1]))
    imputer = KNNImputer(n_neighbors=count, weights="distance").fit(holes.numpy())
    mean = torch.from_numpy(imputer.transform(table.test.holes.numpy())).float()
    # Draws for the intervals; their mean would be the imputed value but for noise.
    draws = mean + scale * _normal_scores()[:, None, None]
    return Result(f"KNNImputer, {count}", Normal(mean, scale).log_prob(table.test.x), draws)


def _normal_scores() -> Tensor:
    """Quantiles of a normal in place of draws, (DRAWS,)."""
    levels = (torch.arange(DRAWS) + 0.5) / DRAWS
    return math.sqrt(2) * torch.erfinv(2 * levels - 1)


# --- Models of every order ------------------------------------------------------------------------


class Samples:
    """Batches of samples of the Gaussian, fresh ones in every epoch."""

    def __init__(self, gaussian: FullGaussian, rows: int = 128) -> None:
        self.gaussian, self.rows = gaussian, rows

    def __len__(self) -> int:
        return STEPS

    def __iter__(self) -> Iterator[Tensor]:
        return (self.gaussian.sample(self.rows) for _ in range(STEPS))


def fit(name: str, table: Table, start: FullGaussian | None) -> tuple[mf.DensityModel, float]:
    """A model of every order, and its NLL on the observed cells of the validation rows.

    A few hundred rows do not teach a network how to answer 2^10 questions. Where there is a
    Gaussian to start from, samples of it do, as there is no end of them, and the rows then
    say where they are not Gaussian.
    """
    torch.manual_seed(0)
    kind, options = MODELS[name]
    model = kind(
        len(table.names), hidden_features=(256, 256), activation="elu", direct=True, orders="all",
        orders_per_batch=8, mask_weights=True, dropout=0.0 if start else 0.4, **options,
    )  # fmt: skip
    common: dict[str, Any] = {
        "validation": table.validation.holes,
        "schedule": "cosine",
        "average": 0.99,
        "patience": None,
        "seed": 0,
    }
    if start is not None:
        mf.fit(model, Samples(start), learning_rate=3e-3, max_epochs=START_EPOCHS, **common)
    rate = 3e-3 if start is None else 7e-4
    history = mf.fit(
        model, table.train.holes, batch_size=64, learning_rate=rate, max_epochs=EPOCHS, **common
    )
    return model.eval(), history.best


@torch.no_grad()
def cells_alone(model: mf.DensityModel, part: Part) -> Tensor:
    """Log p(cell | observed cells) of every cell, as a difference of two marginals.

    In an order that ends with a column, the cell of that column comes after all observed ones,
    and the marginals with and without it differ by its conditional.
    """
    scores, order = torch.zeros_like(part.x), model.made.order.tolist()
    for column in range(model.features):
        arranged = model.arranged([*(i for i in order if i != column), column])
        more = part.observed.clone()
        more[:, column] = True
        scores[:, column] = arranged().log_prob(part.x, observed=more)
        scores[:, column] -= arranged().log_prob(part.x, observed=part.observed)
    return scores


@torch.no_grad()
def results_of(name: str, model: mf.DensityModel, part: Part) -> list[Result]:
    """The model in one order, and a mixture of orders, weighted by what was observed."""
    together = model.conditional(part.holes).log_prob(part.x)
    draws = model.impute(part.holes, samples=DRAWS)
    single = Result(name, cells_alone(model, part), draws, together)
    mixture = mf.OrderMixture(model, orders=ORDERS, generator=torch.Generator().manual_seed(0))
    rest = mixture.conditional(part.holes)
    bar = tqdm(range(len(mixture)), desc="OrderMixture", unit="order")
    each = torch.stack([cells_alone(mixture.component(k), part) for k in bar], dim=-1)
    alone = torch.logsumexp(each + rest.log_weights[:, None], dim=-1)
    draws = rest.sample((DRAWS,))
    return [single, Result(f"  {len(mixture)} orders", alone, draws, rest.log_prob(part.x))]


# --- Report ---------------------------------------------------------------------------------------


def per_cell(of_rows: Tensor, cells: Tensor) -> tuple[float, float]:
    """The mean over cells of sums (N,) over rows of so many cells, with its standard error.

    Cells of a row are not independent, so the error is that of a ratio of means over rows.
    """
    mean = float(of_rows.sum() / cells.sum())
    residuals = (of_rows - mean * cells).double()
    return mean, float(residuals.std() * len(cells) ** 0.5 / cells.sum())


class Line(NamedTuple):
    """A method's figures, each with its standard error."""

    name: str
    together: tuple[float, float] | None
    alone: tuple[float, float]
    rmse: tuple[float, float]
    coverage: tuple[float, float]

    def __str__(self) -> str:
        pairs = [
            "-" if pair is None else f"{pair[0]:.{digits}f} ± {pair[1]:.{digits}f}"
            for pair, digits in zip(self[1:], (2, 2, 3, 3), strict=True)
        ]
        return f"{self.name:28}" + "".join(f"{pair:>18}" for pair in pairs)


def line_of(result: Result, part: Part) -> Line:
    hidden = ~part.observed
    cells = hidden.sum(dim=1)
    together = None if result.together is None else per_cell(result.together, cells)
    alone = per_cell((result.alone * hidden).sum(dim=1), cells)
    squares = (result.draws.mean(dim=0) - part.x).square() * hidden
    mean_square, error = per_cell(squares.sum(dim=1), cells)
    low, high = result.draws.quantile(torch.tensor([0.05, 0.95]), dim=0)
    inside = (part.x >= low) & (part.x <= high) & hidden
    coverage = per_cell(inside.sum(dim=1), cells)
    rmse = mean_square**0.5
    return Line(result.name, together, alone, (rmse, error / (2 * rmse)), coverage)


def draw(table: Table, result: Result, path: Path) -> None:
    """Pairs of columns: rows of which one cell is missing, its truth, and draws of it."""
    from matplotlib.figure import Figure

    part, pairs = table.test, ((0, 3), (5, 6), (6, 7))
    figure = Figure(figsize=(11, 3.9), dpi=120, layout="constrained")
    for ax, (a, b) in zip(figure.subplots(1, len(pairs)), pairs, strict=True):
        whole = table.train.holes[:, [a, b]]
        ax.scatter(*whole.T.numpy(), s=7, color="#c3c9d1", lw=0, label="training rows")
        rows = (part.observed[:, a] & ~part.observed[:, b]).nonzero().flatten()
        # Rows spread over the range of the observed column.
        rows = rows[part.x[rows, a].argsort()]
        rows = rows[torch.linspace(0, len(rows) - 1, 9).long()]
        across = part.x[rows, a].repeat(min(DRAWS, 60), 1).flatten().numpy()
        cloud = result.draws[:60, rows, b].flatten().numpy()
        ax.scatter(across, cloud, s=7, color="#1f5a96", alpha=0.35, lw=0, label="draws")
        ax.scatter(
            part.x[rows, a].numpy(), part.x[rows, b].numpy(),
            s=26, color="#d9741a", lw=0.6, edgecolor="white", label="removed value", zorder=3,
        )  # fmt: skip
        ax.set(xlabel=f"{table.names[a]} (observed)", ylabel=f"{table.names[b]} (missing)")
        ax.spines[["top", "right"]].set_visible(False)
    figure.axes[0].legend(frameon=False, fontsize=8, loc="upper left")
    figure.suptitle("Held-out rows, every draw given all that was observed of its row", fontsize=10)
    figure.savefig(path)


def closing(results: list[Result], lines: list[Line], part: Part) -> str:
    """In which direction it came out: the last method against the first, row by row."""
    ours, gaussian, cells = results[-1], results[0], (~part.observed).sum(dim=1)
    sentences = []
    if ours.together is not None and gaussian.together is not None:
        gain, error = per_cell(ours.together - gaussian.together, cells)
        word = "more" if gain > 0 else "less"
        sentences.append(
            f"removed cells have {abs(gain):.2f} ± {error:.2f} nats each {word} in the mixture of "
            f"orders than in the Gaussian"
        )
    best = min(lines, key=lambda line: line.rmse[0])
    whose = "that mixture" if best is lines[-1] else best.name.strip()
    sentences.append(f"the smallest RMSE is that of {whose}")
    return "; ".join(sentences)


def main() -> None:
    start = time.perf_counter()
    torch.set_num_threads(1)  # networks so small that a second thread costs more than it brings
    OUTPUT.mkdir(exist_ok=True)
    table = load()
    cells = int((~table.test.observed).sum())
    print(
        f"cells: {len(table.train.x)} rows to train, {len(table.validation.x)} to choose by, "
        f"{len(table.test.x)} held out with {cells} of {table.test.x.numel()} cells removed"
    )
    gaussian = best_gaussian(table)
    fits = {
        (name, begin is not None): fit(name, table, begin)
        for begin in (None, gaussian)
        for name in MODELS
    }
    print("\nNLL of the observed cells of a validation row, by which the model is chosen:")
    for (name, started), (_, nll) in fits.items():
        print(f"  {name}, {'from the Gaussian' if started else 'from nothing'}: {nll:.3f}")
    torch.manual_seed(1)
    chosen = min(fits, key=lambda key: fits[key][1])
    direct = min((key for key in fits if not key[1]), key=lambda key: fits[key][1])
    results = [gaussian.result("Gaussian by EM", table.test)]
    results += [chained_equations(table), neighbours(table)]
    if direct != chosen:
        results += results_of(f"{direct[0]}, no start", fits[direct][0], table.test)[:1]
    results += results_of(chosen[0], fits[chosen][0], table.test)

    lines = [line_of(result, table.test) for result in results]
    columns = ("together", "alone", "RMSE", "inside 90 %")
    print(f"\n{'removed cells, nats per cell':28}" + "".join(f"{name:>18}" for name in columns))
    print("\n".join(map(str, lines)))
    print(
        "(together: the joint log-density of a row's removed cells given the observed ones, by\n"
        " their number; alone: of each cell by itself; higher is better. IterativeImputer: a\n"
        f" Gaussian for each cell, of {DRAWS} draws; KNNImputer: one for each column, of its\n"
        " errors. inside: how often the central 90 % of draws hold the removed value. ±: standard\n"
        " errors.)"
    )
    picture = OUTPUT / "missing_values.png"
    draw(table, results[-1], picture)
    found = "trained for a moment only (MADE_FLOWS_QUICK)"
    if not QUICK:
        found = closing(results, lines, table.test)
    print(f"missing_values: {found}. {time.perf_counter() - start:.0f} s. Picture: {picture}")


if __name__ == "__main__":
    main()
