"""Images completed from any of their pixels, by models of every order.

Where MADE_FLOWS_DATA names a folder with ``images/olivetti.npz``, the images are the Olivetti
faces, made 16x16 pixels so that training takes minutes on one core; the last two of the forty
people are held out. Otherwise they are scikit-learn's handwritten digits. A BernoulliMADE learns
them in black and white, and a GaussianMADE in grey; both give the lower half from the upper one,
and a random half from the other. With MADE_FLOWS_QUICK=1 everything is trained for a moment only,
to see that it runs.
"""

from __future__ import annotations

import copy
import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor
from torch.distributions import Bernoulli, Distribution, MultivariateNormal, Normal

import made_flows as mf
from made_flows.plotting import image_grid

QUICK = bool(os.environ.get("MADE_FLOWS_QUICK"))
OUTPUT = Path("example_output")
SIDE_OF_FACES = 16
STEPS = 6 if QUICK else 2500
"""Of a model on images; those in grey first take twice as many on samples of a Gaussian."""
ORDERS = 2 if QUICK else 8
DRAWS = 10 if QUICK else 200
SHRINKAGES = (0.003, 0.01, 0.03, 0.1, 0.3)


class Images(NamedTuple):
    """Grey levels (N, pixels), each an integer below ``levels``, dark where small."""

    name: str
    train: Tensor
    validation: Tensor
    test: Tensor
    side: int
    levels: int


def faces(path: Path) -> Images:
    """36 people to train, also in the mirror; two to choose by, and two held out."""
    with np.load(path) as data:
        grey = torch.from_numpy(data["faces"]).float().reshape(400, 1, 64, 64)
    small = F.avg_pool2d(grey, 64 // SIDE_OF_FACES).floor().squeeze(1)
    train = torch.cat([small[:360], small[:360].flip(-1)])
    train, validation, test = (part.flatten(1) for part in (train, small[360:380], small[380:]))
    return Images("faces", train, validation, test, SIDE_OF_FACES, 256)


def digits(seed: int = 0) -> Images:
    """1797 digits at random, inverted: ink is dark."""
    images = 16 - torch.from_numpy(load_digits().data).float()
    images = images[torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))]
    return Images("digits", images[600:], images[400:600], images[:400], 8, 17)


def load() -> Images:
    folder = os.environ.get("MADE_FLOWS_DATA")
    path = Path(folder) / "images" / "olivetti.npz" if folder else None
    return digits() if path is None or not path.exists() else faces(path)


def questions(images: Images) -> dict[str, Tensor]:
    """Which pixels are given, (pixels,) each."""
    pixels = images.side**2
    chosen = torch.randperm(pixels, generator=torch.Generator().manual_seed(1))
    return {
        "lower half": torch.arange(pixels) < pixels // 2,
        "random half": torch.zeros(pixels, dtype=torch.bool).index_fill(
            0, chosen[: pixels // 2], True
        ),
    }


# --- Black and white, and grey --------------------------------------------------------------------


@dataclass
class Task:
    """Images as a model sees them.

    Args:
        train, validation, test: (N, pixels).
        log_volume: (pixels,), what a log-density loses from levels to what the model sees.
        baselines: densities of whole images to compare with, by name.
        start: what a model is trained on first, if anything.
        mean, scale: what makes grey levels between 0 and 1 of what the model sees.
    """

    name: str
    train: Tensor
    validation: Tensor
    test: Tensor
    log_volume: Tensor
    baselines: dict[str, Baseline]
    start: MultivariateNormal | None = None
    mean: Tensor | float = 0.0
    scale: Tensor | float = 1.0

    def pixels(self, x: Tensor) -> Tensor:
        """Brightness between 0 and 1 for each colour, (..., pixels, 3)."""
        return (x * self.scale + self.mean).clamp(0, 1).unsqueeze(-1).expand(*x.shape, 3)


class Baseline:
    """A density of images with known marginals.

    Args:
        joint: of whole images; its batch is a batch of independent pixels, or it is a normal.
    """

    def __init__(self, joint: Distribution) -> None:
        self.joint = joint

    def conditional(self, x: Tensor, observed: Tensor) -> Tensor:
        """Log p(the other pixels | the observed ones), (N,)."""
        if not isinstance(self.joint, MultivariateNormal):
            return torch.as_tensor(self.joint.log_prob(x))[:, ~observed].sum(dim=1)
        covariance = self.joint.covariance_matrix[observed][:, observed]
        given = MultivariateNormal(self.joint.mean[observed], covariance)
        return torch.as_tensor(self.joint.log_prob(x) - given.log_prob(x[:, observed]))


def black_and_white(images: Images) -> Task:
    """A pixel is one where it is brighter than half; of a face, than the face's median."""

    def binary(part: Tensor) -> Tensor:
        face = images.name == "faces"
        middle = part.median(dim=1, keepdim=True).values if face else (images.levels - 1) / 2
        return (part > middle).float()

    train, validation, test = map(binary, (images.train, images.validation, images.test))
    share = (train.sum(dim=0) + 0.5) / (len(train) + 1)
    baselines = {"independent pixels": Baseline(Bernoulli(probs=share))}
    volume = torch.zeros(images.side**2)
    return Task("black and white", train, validation, test, volume, baselines)


def grey(images: Images) -> Task:
    """Levels with uniform noise in [0, 1), so that densities mean something, standardised."""
    generator = torch.Generator().manual_seed(2)
    parts = [
        part + torch.rand(part.shape, generator=generator)
        for part in (images.train, images.validation, images.test)
    ]
    mean, scale = parts[0].mean(dim=0), parts[0].std(dim=0)
    parts = [(part - mean) / scale for part in parts]
    pixels = images.side**2
    covariance, zero = torch.cov(parts[0].double().T), torch.zeros(pixels, dtype=torch.float64)
    one = torch.eye(pixels, dtype=torch.float64)
    normals = [
        MultivariateNormal(zero, (1 - share) * covariance + share * one) for share in SHRINKAGES
    ]
    validation = parts[1].double()
    normal = max(normals, key=lambda each: float(each.log_prob(validation).mean()))
    baselines = {
        "mean image": Baseline(Normal(torch.zeros(pixels), torch.ones(pixels))),
        "shrunk Gaussian": Baseline(normal),
    }
    start = MultivariateNormal(zero.float(), scale_tril=normal.scale_tril.float())
    levels = images.levels
    return Task(
        "grey", parts[0], parts[1], parts[2], -scale.log(), baselines,
        start=start, mean=mean / levels, scale=scale / levels,
    )  # fmt: skip


# --- Models ---------------------------------------------------------------------------------------


class Samples:
    """Batches of samples of a distribution, fresh ones in every epoch."""

    def __init__(self, distribution: Distribution, steps: int, rows: int) -> None:
        self.distribution, self.steps, self.rows = distribution, steps, rows

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Tensor]:
        return (self.distribution.sample((self.rows,)) for _ in range(self.steps))


def fit(task: Task) -> mf.DensityModel:
    """A model of every order; its weights are those of the best epoch on the validation images.

    In grey it starts from samples of the Gaussian, as there is no end of them: a few hundred
    images alone teach a network less of how neighbouring pixels go together.
    """
    torch.manual_seed(0)
    pixels, batch = task.train.shape[1], 60
    common: dict[str, Any] = {
        "validation": task.validation,
        "batch_size": batch,
        "schedule": "cosine",
        "average": 0.9 if QUICK else 0.995,
        "patience": 20,
        "seed": 0,
    }
    options: dict[str, Any] = {"orders": "all", "orders_per_batch": 4, "direct": True}
    epochs = max(1, round(STEPS / math.ceil(len(task.train) / batch)))
    if task.start is None:
        model: mf.DensityModel = mf.BernoulliMADE(
            pixels, hidden_features=(500,), dropout=0.5, **options
        )
        mf.fit(model, task.train, learning_rate=3e-3, max_epochs=epochs, **common)
        return model.eval()
    model = mf.GaussianMADE(
        pixels, hidden_features=(500, 500), activation="elu", mask_weights=True, **options
    )
    rounds = 1 if QUICK else 20
    samples = Samples(task.start, 2 * STEPS // rounds, batch)
    begun = mf.fit(model, samples, learning_rate=2e-3, max_epochs=rounds, **common)
    weights = copy.deepcopy(model.state_dict())
    tuned = mf.fit(model, task.train, learning_rate=2e-4, max_epochs=max(1, epochs // 2), **common)
    if tuned.best > begun.best:
        print("Training on the images themselves made it worse: the model is that of the samples")
        model.load_state_dict(weights)
    return model.eval()


# --- Report ---------------------------------------------------------------------------------------


@dataclass
class Line:
    """Bits per pixel of held-out images, with the standard error over images."""

    name: str
    bits: dict[str, tuple[float, float]]

    def __str__(self) -> str:
        cells = [f"{mean:.3f} ± {error:.3f}" for mean, error in self.bits.values()]
        return f"  {self.name:28}" + "".join(f"{cell:>18}" for cell in cells)


@torch.no_grad()
def lines_of(task: Task, model: mf.DensityModel, asked: dict[str, Tensor]) -> list[Line]:
    generator = torch.Generator().manual_seed(0)
    mixture = mf.OrderMixture(model, orders=ORDERS, generator=generator)
    name, test = type(model).__name__, task.test

    def scores(of: Any, observed: Tensor) -> Tensor:
        if isinstance(of, Baseline):
            return of.conditional(test, observed)
        log_prob: Tensor = of.conditional(test, observed.expand(len(test), -1)).log_prob(test)
        return log_prob

    everything = {**task.baselines, name: model, f"{name}, {ORDERS} orders": mixture}
    lines = []
    for title, density in everything.items():
        line = Line(title, {})
        for question, observed in asked.items():
            log_prob = scores(density, observed) + task.log_volume[~observed].sum()
            bits = -log_prob.double() / math.log(2) / int((~observed).sum())
            line.bits[question] = (float(bits.mean()), float(bits.std() / len(bits) ** 0.5))
        lines.append(line)
    return lines


@torch.no_grad()
def draw(images: Images, task: Task, model: mf.DensityModel, observed: Tensor, path: Path) -> None:
    """Held-out images, what is given of them, completions and their mean."""
    torch.manual_seed(1)
    chosen = torch.linspace(0, len(task.test) - 1, 10).long()
    test = task.test[chosen]
    drawn = task.pixels(model.impute(test, DRAWS, observed.expand(len(test), -1)))
    original = task.pixels(test)
    given = torch.where(observed.unsqueeze(-1), original, torch.nan)  # drawn as missing
    rows = {"held out": original, "given": given}
    rows |= {f"completion {i + 1}": drawn[i] for i in range(4)}
    rows[f"mean of {DRAWS}"] = drawn.mean(dim=0)
    pictures = torch.cat(list(rows.values())).flatten(1)
    grid = image_grid(pictures, (images.side, images.side, 3), titles=list(rows))
    grid.savefig(path, dpi=130)


def main() -> None:
    start = time.perf_counter()
    torch.set_num_threads(1)
    OUTPUT.mkdir(exist_ok=True)
    images = load()
    asked = questions(images)
    print(
        f"{images.name}: {len(images.train)} images to train, {len(images.validation)} to choose "
        f"by, {len(images.test)} held out; {images.side}x{images.side} pixels"
    )
    report, findings = [], []
    for make in (black_and_white, grey):
        task = make(images)
        model = fit(task)
        lines = lines_of(task, model, asked)
        report += [f"{images.name}, {task.name}", *map(str, lines)]
        simple, ours = lines[len(task.baselines) - 1], lines[-1]
        parts = []
        for question, (bits, _) in simple.bits.items():
            mean = ours.bits[question][0]
            word = "better" if mean < bits else "worse"
            parts.append(f"{question} {mean:.2f}, {word} than {bits:.2f}")
        findings.append(f"{task.name}, beside {simple.name}: {'; '.join(parts)}")
        for question, observed in asked.items():
            name = f"{images.name}_{task.name}_{question}".replace(" ", "_")
            draw(images, task, model, observed, OUTPUT / f"complete_{name}.png")
    print(f"\n{'bits per missing pixel':30}" + "".join(f"{name:>18}" for name in asked))
    print("\n".join(report))
    print("(given the other half; lower is better; ±: standard errors over held-out images)")
    found = "trained for a moment only (MADE_FLOWS_QUICK)"
    if not QUICK:
        found = f"bits per missing pixel, {'. '.join(findings)}"
    pictures = OUTPUT / f"complete_{images.name}_*.png"
    print(f"complete_images: {found}. {time.perf_counter() - start:.0f} s. Pictures: {pictures}")


if __name__ == "__main__":
    main()
