"""Pictures: that what is drawn is what was given."""

from __future__ import annotations

import io
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from made_flows import MADE, plotting
from made_flows.training.history import History

pytest.importorskip("matplotlib")

HISTORY = History([3.0, 2.0, 1.5], [3.5, 2.5, 2.75], 2, 1.0, "patience")

NETWORKS = {
    "plain": lambda: MADE(5, hidden_features=(16, 12)),
    "random": lambda: MADE(5, hidden_features=(16, 12), order="random", degrees="random"),
    "context": lambda: MADE(5, 3, hidden_features=(16,), order="reversed"),
    "direct": lambda: MADE(5, hidden_features=(8,), direct=True),
    "linear": lambda: MADE(4, hidden_features=()),
    "residual": lambda: MADE(5, hidden_features=(16, 12), residual=True, order=[3, 1, 0, 4, 2]),
    "one feature": lambda: MADE(1, 2, hidden_features=(3,)),
    "inside a model": lambda: nn.Sequential(nn.Identity(), MADE(4, hidden_features=(8,))),
    "wide": lambda: MADE(60, hidden_features=(100,)),
    "resampled": lambda: resampled(MADE(5, hidden_features=(16, 12))),
}


def resampled(made: MADE) -> MADE:
    made.resample_masks(torch.Generator().manual_seed(0))
    return made


COLUMNS = {
    "pit": plotting.pit_histogram,
    "coverage": plotting.coverage,
    "intervals": plotting.intervals,
    "scores": lambda x, _: plotting.column_scores(
        {f"column {i}": column for i, column in enumerate(x.T)}, 3
    ),
}

PICTURES = {
    "curve": lambda: plotting.training_curve(HISTORY),
    "curve without validation": lambda: plotting.training_curve(History([3.0, 2.0], [], 2)),
    "curve of one epoch": lambda: plotting.training_curve(History([3.0], [2.0], 1)),
    "curve of no epoch": lambda: plotting.training_curve(History()),
    "curve of many epochs": lambda: plotting.training_curve(
        History([1e4, 10.0, *np.linspace(3, 1, 20)], [1e5, 9.0, *np.linspace(3, 2, 20)], 22)
    ),
    **{
        f"masks, {name}": lambda make=make: plotting.masks(make())
        for name, make in NETWORKS.items()
    },
    "pairs": lambda: plotting.pair_plot(torch.randn(100, 3)),
    "pairs of two sets": lambda: plotting.pair_plot(torch.randn(100, 3), torch.randn(50, 3)),
    "one feature": lambda: plotting.pair_plot(torch.randn(100, 1)),
    "one row": lambda: plotting.pair_plot(torch.zeros(1, 2)),
    "constant column": lambda: plotting.pair_plot(torch.tensor([[0.0, 1.0]]).expand(50, 2)),
    "binary columns": lambda: plotting.pair_plot(torch.randint(2, (50, 3))),
    "apart": lambda: plotting.pair_plot(torch.randn(50, 2), torch.randn(5000, 2) + 1000),
    **{f"connections, {name}": lambda make=make: plotting.connections(make(), 0)
       for name, make in NETWORKS.items()},
    **{f"{kind}, {D}": lambda kind=kind, D=D: COLUMNS[kind](torch.randn(60, D), torch.randn(40, D))
       for kind in ("pit", "coverage", "intervals", "scores") for D in (1, 2, 30)},
    "images": lambda: plotting.image_grid(torch.rand(23, 12), (3, 4)),
    "titled images": lambda: plotting.image_grid(torch.rand(6, 12), (3, 4), 3, ["a", "b"]),
    "one image": lambda: plotting.image_grid(torch.eye(1, 12), (3, 4)),
    "coloured images": lambda: plotting.image_grid(torch.rand(3, 36), (3, 4, 3)),
    "images with holes": lambda: plotting.image_grid(
        torch.rand(3, 12).index_fill(1, torch.arange(4), math.nan), (3, 4)
    ),
    "nothing but holes": lambda: plotting.image_grid(torch.full((3, 12), math.nan), (3, 4)),
}  # fmt: skip


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_can_be_drawn(name: str):
    """Without a warning (of missing room, of empty data), and with something on it."""
    file = io.BytesIO()
    PICTURES[name]().savefig(file, format="rgba")
    shades = np.frombuffer(file.getvalue(), np.uint8)
    assert shades.min() < 150
    assert shades.max() == 255


def test_curves_are_those_of_the_history():
    figure = HISTORY.plot()
    training, validation, best = figure.axes[0].get_lines()
    assert (training.get_label(), validation.get_label()) == ("training", "validation")
    assert list(training.get_xdata()) == list(validation.get_xdata()) == [1, 2, 3]
    assert list(training.get_ydata()) == HISTORY.train
    assert list(validation.get_ydata()) == HISTORY.validation
    assert list(best.get_xydata()[0]) == [2, 2.5]
    assert "2.5 (epoch 2)" in best.get_label()


def test_falls_of_the_rate_are_marked_between_epochs():
    history = History([3.0, 2.0, 1.5, 1.4], [], 4, rates=[0.3, 0.3, 0.1, 0.03])
    _, *falls, _ = history.plot().axes[0].get_lines()
    assert [line.get_xdata()[0] for line in falls] == [2.5, 3.5]
    assert falls[0].get_label() == "learning rate falls"


def test_curves_on_axes_of_ones_own():
    from matplotlib.figure import Figure

    figure = Figure()
    ax = figure.subplots(1, 2)[1]
    assert plotting.training_curve(HISTORY, ax) is figure
    assert len(ax.get_lines()) == 3


def test_the_best_epoch_stays_in_view_when_the_first_ones_do_not():
    falling = [1e6, 1e3, *np.linspace(5, 1, 20)]
    low, high = plotting.training_curve(History(falling, [], 22)).axes[0].get_ylim()
    assert low < 1 < 5 < high < 10
    rising = [1.0, 1.1, *np.linspace(5, 50, 20)]
    low, high = plotting.training_curve(History(rising, [], 1)).axes[0].get_ylim()
    assert low < 1 < 50 < high


def panels(figure) -> dict[str, np.ndarray]:
    images = {ax.get_title(): ax.get_images()[0].get_array() for ax in figure.axes}
    return {title: ~np.ma.getmaskarray(image) for title, image in images.items()}


@pytest.mark.parametrize("name", NETWORKS)
def test_masks_are_those_of_the_network(name: str):
    model = NETWORKS[name]()
    made = next(m for m in model.modules() if isinstance(m, MADE))
    shown = panels(plotting.masks(model))
    layers = [layer.mask for layer in made.layers] + (
        [] if made.direct is None else [made.direct.mask]
    )
    assert len(shown) == len(layers) + 1
    for (title, image), mask in zip(shown.items(), layers, strict=False):
        assert image.shape == mask.shape, title
        assert image.sum() == mask.sum(), title
        # Sorted by degree, every reader reads a first part of what there is to read,
        # and a later one no less: a block.
        assert (np.diff(image.astype(int), axis=1) <= 0).all(), title
        assert (np.diff(image.astype(int), axis=0) >= 0).all(), title
    whole = shown["all together"]
    if made.order.tolist() == sorted(made.order.tolist()):
        assert (whole == np.tril(np.ones_like(whole), -1)).all()
    assert not np.triu(whole).any()


def test_pairs_are_in_their_places():
    x = torch.randn(300, 4) * torch.tensor([1.0, 10.0, 100.0, 1000.0])
    figure = plotting.pair_plot(x, -x + 1, names=list("abcd"), max_features=3, labels=("p", "q"))
    assert len(figure.axes) == 6
    labels = {(ax.get_xlabel(), ax.get_ylabel()) for ax in figure.axes}
    assert {("a", "c"), ("b", ""), ("c", ""), ("", "b"), ("", "")} == labels
    corner = next(ax for ax in figure.axes if (ax.get_xlabel(), ax.get_ylabel()) == ("a", "c"))
    ours, theirs = (c.get_offsets() for c in corner.collections if c.get_offsets().shape[0] == 300)
    np.testing.assert_allclose(ours, x[:, [0, 2]], rtol=1e-6)
    np.testing.assert_allclose(theirs, (1 - x)[:, [0, 2]], rtol=1e-6)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["p", "q"]


def test_contours_hold_the_mass_they_say():
    """Of a normal distribution 50% and 90% lie within radius sqrt(2 log 2) and sqrt(2 log 10)."""
    x = torch.randn(200_000, 2)
    ax = plotting.pair_plot(x).axes[1]
    paths = [p for c in ax.collections for p in c.get_paths() if len(p.vertices) > 20]
    radii = sorted(float(np.linalg.norm(p.vertices, axis=1).mean()) for p in paths[-2:])
    wanted = [math.sqrt(2 * math.log(2)), math.sqrt(2 * math.log(10))]
    np.testing.assert_allclose(radii, wanted, rtol=0.1)


def test_images_are_in_their_places():
    images = torch.arange(5 * 6.0).reshape(5, 6)
    figure = plotting.image_grid(images, (2, 3), columns=3)
    canvas = figure.axes[0].get_images()[0].get_array()
    assert canvas.shape == (7, 13)
    np.testing.assert_array_equal(canvas[1:3, 1:4], images[0].reshape(2, 3))
    np.testing.assert_array_equal(canvas[1:3, 9:12], images[2].reshape(2, 3))
    np.testing.assert_array_equal(canvas[4:6, 5:8], images[4].reshape(2, 3))
    assert np.ma.getmaskarray(canvas).sum() == 7 * 13 - 30


def test_missing_pixels_are_marked():
    images = torch.rand(2, 6)
    images[1, 2] = math.nan
    values, holes = plotting.image_grid(images, (2, 3)).axes[0].get_images()
    assert np.ma.getmaskarray(values.get_array())[1, 7]
    assert np.argwhere(~np.ma.getmaskarray(holes.get_array())).tolist() == [[1, 7]]
    assert values.get_clim() == (0, 1)


@pytest.mark.parametrize("columns", [2, 4, 10])
def test_titles_of_images_are_in_the_picture(columns: int):
    titles = ["a", "completion 12", "WWWWWWWW"]
    figure = plotting.image_grid(torch.rand(30, 64), (8, 8), columns, titles)
    figure.savefig(io.BytesIO())
    for text in figure.axes[0].texts:
        box = text.get_window_extent()
        assert 0 <= box.x0 < box.x1 <= figure.bbox.width


BAD = {
    "draws of other columns": (
        lambda: plotting.coverage(torch.zeros(5, 2), torch.zeros(3, 4)),
        ValueError, r"draws of shape \(S, 2\)",
    ),
    "NaN among values": (
        lambda: plotting.pit_histogram(torch.tensor([[0.0, math.nan]]), torch.zeros(3, 2)),
        ValueError, "values.*row 0, column 1",
    ),
    "a constant reference": (
        lambda: plotting.intervals(torch.randn(5, 2), torch.zeros(5, 2)),
        ValueError, "reference to vary",
    ),
    "no such row": (
        lambda: plotting.column_scores({"a": [1.0]}, 1), ValueError, "row to be one of 1",
    ),
    "columns of two lengths": (
        lambda: plotting.column_scores({"a": [1.0], "b": [1.0, 2.0]}, 0),
        ValueError, "scores to be of one length",
    ),
    "no such feature": (
        lambda: plotting.connections(MADE(3, hidden_features=(4,)), 3), ValueError, "0..2; got 3",
    ),
    "infinite pixels": (
        lambda: plotting.image_grid(torch.full((1, 4), math.inf), (2, 2)), ValueError, "row 0, col"
    ),
    "no MADE": (lambda: plotting.masks(nn.Linear(2, 2)), TypeError, "MADE"),
    "no module": (lambda: plotting.masks("made"), TypeError, "MADE"),
    "a vector": (lambda: plotting.pair_plot(torch.randn(5)), ValueError, r"shape \(N, D"),
    "no rows": (lambda: plotting.pair_plot(torch.randn(0, 5)), ValueError, "samples of shape"),
    "NaN": (
        lambda: plotting.pair_plot(torch.tensor([[0.0, math.nan]])), ValueError, "row 0, column 1",
    ),
    "other features": (
        lambda: plotting.pair_plot(torch.randn(5, 2), torch.randn(5, 3)), ValueError, "other",
    ),
    "few names": (lambda: plotting.pair_plot(torch.randn(5, 2), names=["a"]), ValueError, "names"),
    "no features": (
        lambda: plotting.pair_plot(torch.randn(5, 2), max_features=0), ValueError, "max_features",
    ),
    "pixels": (
        lambda: plotting.image_grid(torch.rand(2, 9), (2, 4)), ValueError, "shape of 9 pixels",
    ),
    "channels": (
        lambda: plotting.image_grid(torch.rand(2, 8), (2, 2, 2)), ValueError, r"\(height, width",
    ),
    "columns": (
        lambda: plotting.image_grid(torch.rand(2, 9), (3, 3), 0), ValueError, "columns",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name: str):
    call, error, message = BAD[name]
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("name", ["curve", "masks, plain", "pairs", "images"])
def test_without_matplotlib_the_error_says_what_to_install(
    name: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install 'made-flows\[plot\]'"):
        PICTURES[name]()


def test_neither_import_nor_drawing_touches_pyplot():
    code = (
        "import sys, torch; from made_flows import plotting; "
        "print('matplotlib' in sys.modules, end=' '); "
        "plotting.pair_plot(torch.randn(30, 2)); print('matplotlib.pyplot' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


# Under a right model 99% of the bars are in the band. Of 300 independent bars, 3 are expected
# outside; 13 or more are met about once in 10^5 times.
@pytest.mark.parametrize("kind", ["context", "shared", "counts"])
def test_the_band_holds_the_bars_of_a_right_model(kind: str):
    def drawn(*shape: int) -> torch.Tensor:
        x = torch.randn(*shape)
        return x.mul(1.5).round() if kind == "counts" else x

    values = drawn(500, 30)
    draws = drawn(400, 30) if kind == "shared" else drawn(99, 500, 30)
    outside = 0
    for ax in plotting.pit_histogram(values, draws).axes:
        band, bars = ax.patches
        # A polygon before matplotlib 3.9, a rectangle since.
        ends = band.get_patch_transform().transform(band.get_path().vertices)[:, 1]
        low, high = ends.min(), ends.max()
        heights = bars.get_data().values
        outside += int(((heights < low) | (heights > high)).sum())
    assert outside < 13


def test_coverage_is_that_of_intervals():
    from scipy.stats import norm

    figure = plotting.coverage(2 * torch.randn(20000, 1), torch.randn(20000, 1))
    line = figure.axes[0].get_lines()[-1]
    level, share = np.array(line.get_xydata())[1:-1].T
    right = 2 * norm.cdf(norm.ppf(0.5 + level / 2) / 2) - 1
    assert np.abs(share - right).max() < 0.02


def test_intervals_are_quantiles_in_units_of_the_reference():
    reference = torch.randn(4000, 2) * 3 + 7
    figure = plotting.intervals(reference * 2 - 7, reference, ["a", "b"])
    centres = [line.get_xdata() for line in figure.axes[0].get_lines()]
    median = reference.median(dim=0).values
    expected = (2 * median - 7 - median) / reference.std(dim=0)
    np.testing.assert_allclose(centres[0], expected, atol=0.01)
    np.testing.assert_allclose(centres[1], 0, atol=1e-6)


@pytest.mark.parametrize("factor", [1e-200, 1e200])
def test_intervals_of_any_size(factor: float):
    reference = torch.randn(400, 2, dtype=torch.float64) * factor
    figure = plotting.intervals(2 * reference, reference)
    low, high = figure.axes[0].get_xlim()
    assert -10 < low < -2
    assert 2 < high < 10


def test_long_names_leave_room():
    figure = plotting.column_scores({"x" * 200: [-1.0], "b": [-2.0]}, 0)
    figure.draw_without_rendering()
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert set(names) == {"b", "x" * 39 + "…"}


def test_the_oddest_column_comes_first_and_missing_ones_are_left_out():
    scores = {"a": [-1.0, -2.0, -3.0], "b": [-9.0, -1.0, -2.0], "c": [math.nan, -1.0, -1.0]}
    names = [t.get_text() for t in plotting.column_scores(scores, 0).axes[0].get_yticklabels()]
    assert names == ["b", "a"]


def test_connections_are_those_of_the_masks():
    made = MADE(6, hidden_features=(10, 8), order="random")
    reached = made.reach().sum(dim=1)
    for feature in range(6):
        ax = plotting.connections(made, feature).axes[0]
        inputs = ax.collections[3].get_facecolor()  # after the lines of three layers
        lit = (inputs[:, :3] != 0.87).any(axis=1).sum()
        assert lit == int(reached[feature])
