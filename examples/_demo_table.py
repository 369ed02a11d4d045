"""Part (c): wines, with numbers, a category, and values missing, as one density of a table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from _demo_report import QUICK, SAMPLES, Part, Row, best_names, sampling_seconds, say, table, timed
from sklearn.datasets import load_wine

import made_flows as mf
from made_flows.plotting import column_scores

EPOCHS = 1 if QUICK else 40
HELD_OUT = 45
MISSING = 0.15
Columns = dict[str, np.ndarray]


def load() -> Columns:
    """scikit-learn's wines as they were measured, and the grape each is of."""
    wine = load_wine()
    grape = np.array(wine.target_names)[wine.target].astype(object)
    return {**dict(zip(wine.feature_names, wine.data.T, strict=True)), "grape": grape}


def with_holes(columns: Columns, rng: np.random.Generator) -> Columns:
    """The same with some of the values missing, completely at random."""
    holes = {}
    for name, values in columns.items():
        hidden = rng.random(len(values)) < MISSING
        holes[name] = np.where(hidden, None if values.dtype == object else np.nan, values)
    return holes


def apart(columns: Columns) -> mf.TableMADE:
    """Every column by itself: where training starts, with nothing read of the other columns."""
    model = mf.TableMADE.from_data(columns, direct=False)
    model.made.layers[-1].weight.data.zero_()
    return model.eval()


def fit(columns: Columns) -> mf.TableMADE:
    return mf.fit_table(columns, max_epochs=EPOCHS, progress=f"{'TableMADE':20}", seed=0)


def row(name: str, model: mf.TableMADE, seconds: float, test: Columns) -> Row:
    scores = torch.from_numpy(model.score_samples(test))
    return Row(name, scores, seconds, sampling_seconds(lambda: model.sample(SAMPLES)))


def filling_errors(model: mf.TableMADE, holes: Columns, truth: Columns) -> tuple[float, float]:
    """How far what is filled in is from what was hidden, in standard deviations.

    Of the model, by medians of its draws given the row's other values, and of the column's median.
    """
    filled = model.fill(holes, draws=20)
    errors: list[Any] = [[], []]
    for name, values in holes.items():
        if values.dtype != object:
            hidden, scale = np.isnan(values), truth[name].std()
            for each, guess in zip(errors, (filled[name], np.nanmedian(values)), strict=True):
                guesses = np.broadcast_to(np.asarray(guess, float), values.shape)
                each.append(np.abs(guesses - truth[name])[hidden] / scale)
    ours, simple = (float(np.concatenate(each).mean()) for each in errors)
    return ours, simple


def run(folder: Path) -> Part:
    """Fit with holes, score held-out rows, fill the holes in, and say which row is odd, and why."""
    rng = np.random.default_rng(0)
    columns = load()
    shuffled = rng.permutation(len(columns["grape"]))
    test = {name: values[shuffled[:HELD_OUT]] for name, values in columns.items()}
    train = {name: values[shuffled[HELD_OUT:]] for name, values in columns.items()}
    holes = with_holes(train, rng)
    say(f"table: {len(train['grape'])} wines to train, {HELD_OUT} held out, {len(columns)} columns")
    torch.manual_seed(0)
    rows = []
    for name, make in (("each column by itself", apart), ("TableMADE", fit)):
        model, seconds = timed(lambda make=make: make(holes))
        rows.append(row(name, model, seconds, test))
    ours, simple = filling_errors(model, holes, train)
    odd = int(rows[-1].scores.argmin())
    figure = column_scores(model.score_columns(test), odd)
    title = f"the oddest held-out wine: {rows[-1].scores[odd]:.1f} nats"
    figure.axes[0].set_title(title, fontsize=10)
    picture = folder / "table.png"
    figure.savefig(picture)
    return Part(
        f"Wines: {len(columns)} mixed columns, {MISSING:.0%} of the values missing in training",
        table(rows),
        f"Best: {best_names(rows)}. Hidden numbers are filled in {ours:.2f} standard deviations "
        f"from the truth, {simple:.2f} by the column's median",
        picture,
    )
