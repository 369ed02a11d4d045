"""Part (a): handwritten digits as binary pixels, and their lower halves from their upper ones."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from _demo_report import (
    QUICK,
    SAMPLES,
    Part,
    Row,
    best_names,
    sampling_seconds,
    say,
    table,
    timed,
)
from sklearn.datasets import load_digits
from torch import Tensor

import made_flows as mf
from made_flows.inverse import HeadStep, sequential_inverse
from made_flows.plotting import image_grid

SIDE = 8
PIXELS = SIDE * SIDE
HALF = PIXELS // 2
"""Pixels of the upper half: in the natural order, the first ranks."""


class Digits(NamedTuple):
    """Binary images, (N, 64) each."""

    train: Tensor
    validation: Tensor
    test: Tensor


def load(seed: int = 0) -> Digits:
    """scikit-learn's 1797 digits, a pixel being one where it is at least half as dark as can be."""
    images = torch.from_numpy(load_digits().data >= 8).float()
    images = images[torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))]
    return Digits(images[600:], images[400:600], images[:400])


class BernoulliMixture:
    r"""A mixture of products of Bernoullis, fitted by expectation maximisation.

    .. math:: p(x) = \sum_k w_k \prod_i p_{ki}^{x_i} (1 - p_{ki})^{1 - x_i}

    With one component: independent Bernoullis. Counts start at a tenth of a zero and a tenth of
    a one, so that no probability is exactly zero.
    """

    def __init__(self, x: Tensor, components: int, iterations: int = 100, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(len(x), generator=generator)[:components]
        self.weights = torch.full((components,), 1 / components)
        self.means = 0.25 + 0.5 * x[chosen]
        for _ in range(iterations if components > 1 else 1):
            share = self.joint(x).softmax(dim=1)
            counts = share.sum(dim=0)
            self.weights = (counts / len(x)).clamp(min=1e-6)
            self.means = (share.T @ x + 0.1) / (counts[:, None] + 0.2)

    def joint(self, x: Tensor) -> Tensor:
        """Log p(component, x) up to the pixels that x has: (N, components)."""
        means = self.means[:, : x.shape[1]]
        return x @ means.log().T + (1 - x) @ (1 - means).log().T + self.weights.log()

    def log_prob(self, x: Tensor) -> Tensor:
        """Log p of the first pixels of images, however many are given."""
        return self.joint(x).logsumexp(dim=1) - self.weights.sum().log()

    def sample(self, count: int) -> Tensor:
        """Images, (count, 64)."""
        component = torch.multinomial(self.weights, count, replacement=True)
        return torch.bernoulli(self.means[component])


def best_mixture(digits: Digits, components: tuple[int, ...]) -> BernoulliMixture:
    """The mixture whose number of components is best on the validation rows."""
    mixtures = [BernoulliMixture(digits.train, k) for k in components]
    return max(mixtures, key=lambda mixture: float(mixture.log_prob(digits.validation).mean()))


def fit_made(digits: Digits, epochs: int, hidden: int = 400) -> mf.BernoulliMADE:
    """A BernoulliMADE, its weights those of the epoch that was best on the validation rows."""
    torch.manual_seed(0)
    model = mf.BernoulliMADE(PIXELS, hidden_features=(hidden,), direct=True, dropout=0.6)
    mf.fit(
        model,
        digits.train,
        validation=digits.validation,
        batch_size=100,
        learning_rate=6e-3,
        schedule="cosine",
        max_epochs=epochs,
        patience=None,
        progress=f"{'BernoulliMADE':20}",
        seed=0,
    )
    return model.eval()


@torch.no_grad()
def complete(model: mf.BernoulliMADE, known: Tensor, prefix: int, draws: int = 1) -> Tensor:
    """Samples of the pixels after the first ``prefix`` ones, given those: (draws, N, 64)."""
    noise = model.head.noise((draws, *known.shape), known)
    return sequential_inverse(model.made, HeadStep(model.head), noise, known=known, prefix=prefix)


@torch.no_grad()
def lower_half(model: mf.BernoulliMADE, x: Tensor) -> Tensor:
    """Log p(lower half | upper half): the last factors of the chain rule."""
    return model.head.log_prob(x, model.made(x))[:, HALF:].sum(dim=1)


@torch.no_grad()
def draw(
    digits: Digits,
    models: dict[str, BernoulliMixture | mf.BernoulliMADE],
    made: mf.BernoulliMADE,
    path: Path,
    columns: int = 16,
) -> None:
    """Held-out digits completed from their upper halves; below, samples of every model."""
    torch.manual_seed(1)
    test = digits.test[:columns]
    draws = complete(made, test, HALF, draws=500)
    blocks = {"held-out digit": test}
    blocks |= {f"lower half, draw {i + 1}": draws[i] for i in range(3)}
    blocks["mean of 500 draws"] = draws.mean(dim=0)
    completed = len(blocks)
    for name, model in models.items():
        mixture = isinstance(model, BernoulliMixture)
        score = (model if mixture else model()).log_prob(digits.test).mean()
        samples = model.sample(columns) if mixture else model().sample((columns,))
        blocks[f"{name}: {score:.1f} nats"] = samples
    figure = image_grid(
        torch.cat(list(blocks.values())), (SIDE, SIDE), columns=columns, titles=list(blocks)
    )
    ax = figure.axes[0]
    for row in range(completed):
        # Images are a pixel apart: the middle of the row, between the known and the unknown.
        middle = row * (SIDE + 1) + 1 + SIDE / 2 - 0.5
        ax.axhline(middle, color="#d9741a", lw=1.2)
    figure.savefig(path)


@torch.no_grad()
def run(folder: Path) -> Part:
    """Fit, score, sample, complete."""
    digits = load()
    say(f"digits: {len(digits.train)} to train, {len(digits.test)} held out, {PIXELS} pixels")
    epochs, components = (3, (10,)) if QUICK else (120, (20, 40, 80))
    independent, seconds_1 = timed(lambda: BernoulliMixture(digits.train, 1))
    say(f"digits: mixtures of {', '.join(map(str, components))} Bernoullis by EM ...")
    mixture, seconds_k = timed(lambda: best_mixture(digits, components))
    with torch.enable_grad():
        made, seconds_made = timed(lambda: fit_made(digits, epochs))

    rows = []
    name = f"mixture of {len(mixture.weights)} Bernoullis"
    for title, model, seconds in (
        ("independent Bernoullis", independent, seconds_1),
        (name, mixture, seconds_k),
    ):
        scores = model.log_prob(digits.test)
        half = float((scores - model.log_prob(digits.test[:, :HALF])).mean())
        sampling = sampling_seconds(lambda model=model: model.sample(SAMPLES))
        rows.append(Row(title, scores, seconds, sampling, half))
    scores, half = made().log_prob(digits.test), float(lower_half(made, digits.test).mean())
    sampling = sampling_seconds(lambda: made().sample((SAMPLES,)))
    rows.append(Row("BernoulliMADE", scores, seconds_made, sampling, half))

    picture = folder / "digits.png"
    draw(digits, {"independent": independent, name: mixture, "BernoulliMADE": made}, made, picture)
    return Part(
        f"Digits: {PIXELS} binary pixels (lower half: given the upper one)",
        table(rows),
        f"Best: {best_names(rows)}",
        picture,
    )
