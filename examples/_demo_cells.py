"""Part (b): thirty measurements of cell nuclei, as densities of a table of real numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
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
from sklearn.datasets import load_breast_cancer
from sklearn.neighbors import KernelDensity
from torch import Tensor, nn
from torch.distributions import Distribution, MultivariateNormal

import made_flows as mf

EPOCHS = 2 if QUICK else 100
BATCH = 64


class Cells(NamedTuple):
    """Standardised rows, (N, 30) each, and the names of the columns."""

    train: Tensor
    validation: Tensor
    test: Tensor
    names: list[str]


def load(seed: int = 0) -> Cells:
    """scikit-learn's breast-cancer table, standardised by the training rows."""
    table = load_breast_cancer()
    rows = torch.from_numpy(table.data)
    rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))]
    train, validation, test = rows[200:], rows[114:200], rows[:114]
    mean, scale = train.mean(dim=0), train.std(dim=0)
    parts = [((part - mean) / scale).float() for part in (train, validation, test)]
    return Cells(*parts, [str(name) for name in table.feature_names])


class Density(Protocol):
    """What every row of the table can do."""

    def log_prob(self, x: Tensor) -> Tensor: ...

    def sample(self, sample_shape: tuple[int, ...]) -> Tensor: ...


class Kernels:
    """A kernel density estimate whose bandwidth is best on the validation rows."""

    def __init__(self, cells: Cells) -> None:
        widths = np.geomspace(0.1, 2.0, 25)
        fits = [KernelDensity(bandwidth=width).fit(cells.train.numpy()) for width in widths]
        self.best = max(fits, key=lambda fit: fit.score(cells.validation.numpy()))

    def log_prob(self, x: Tensor) -> Tensor:
        return torch.from_numpy(self.best.score_samples(x.numpy()))

    def sample(self, sample_shape: tuple[int, ...]) -> Tensor:
        return torch.from_numpy(self.best.sample(*sample_shape, random_state=0)).float()


def full_gaussian(cells: Cells) -> Distribution:
    """The normal distribution of the training rows' mean and covariance."""
    rows = cells.train.double()
    normal = MultivariateNormal(rows.mean(dim=0), torch.cov(rows.T))
    return MultivariateNormal(normal.mean.float(), scale_tril=normal.scale_tril.float())


class AsModule(nn.Module):
    """An nflows flow, called as ours and zuko's are: ``model()`` is a distribution."""

    def __init__(self, flow: nn.Module) -> None:
        super().__init__()
        self.flow = flow

    def forward(self, context: Tensor | None = None) -> AsModule:
        return self

    def log_prob(self, x: Tensor) -> Tensor:
        return self.flow.log_prob(x)

    def sample(self, sample_shape: tuple[int, ...]) -> Tensor:
        return self.flow.sample(*sample_shape)


def nflows_maf(features: int) -> nn.Module:
    from nflows.flows import MaskedAutoregressiveFlow

    # Its first layer has no activation of its own: one block makes two hidden layers.
    return AsModule(
        MaskedAutoregressiveFlow(
            features,
            hidden_features=64,
            num_layers=3,
            num_blocks_per_layer=1,
            use_residual_blocks=False,
            activation=F.elu,
            dropout_probability=0.2,
            batch_norm_within_layers=False,
        )
    )


def zuko_maf(features: int) -> nn.Module:
    import zuko

    return zuko.flows.MAF(features, transforms=3, hidden_features=(64, 64), activation=nn.ELU)


def networks(features: int) -> Iterator[tuple[str, Callable[[], nn.Module]]]:
    """Everything that is trained, all for the same number of steps: a row is a line.

    Flows of all libraries have three transforms of two hidden layers of 64 ELU units, and a
    dropout of 0.2 where the library has dropout; direct connections are ours alone.
    """
    wide = {"hidden_features": (128, 128), "activation": "elu", "direct": True, "dropout": 0.4}
    flow = {"hidden_features": (64, 64), "activation": "elu", "direct": True, "dropout": 0.2}
    yield "GaussianMADE", lambda: mf.GaussianMADE(features, **wide)
    yield "GaussianMixtureMADE", lambda: mf.GaussianMixtureMADE(features, components=8, **wide)
    yield "MAF", lambda: mf.MAF(features, transforms=3, **flow)
    yield "MAF, splines", lambda: mf.MAF(features, transforms=3, bijection="spline", **flow)
    if find_spec("nflows"):
        yield "nflows MAF", lambda: nflows_maf(features)
    if find_spec("zuko"):
        yield "zuko MAF", lambda: zuko_maf(features)


def fit_network(name: str, make: Callable[[], nn.Module], cells: Cells) -> nn.Module:
    """A network, its weights those of the epoch that was best on the validation rows."""
    torch.manual_seed(0)
    model = make()
    mf.fit(
        model,
        cells.train,
        validation=cells.validation,
        batch_size=BATCH,
        learning_rate=3e-3,
        schedule="cosine",
        max_epochs=EPOCHS,
        patience=None,
        progress=f"{name:20}",
        seed=0,
    )
    return model.eval()


@torch.no_grad()
def row(name: str, density: Density, seconds: float | None, cells: Cells) -> Row:
    scores = density.log_prob(cells.test)
    return Row(name, scores, seconds, sampling_seconds(lambda: density.sample((SAMPLES,))))


PAIRS = (
    ("mean radius", "mean area"),
    ("mean concavity", "mean concave points"),
    ("area error", "worst area"),
)


@torch.no_grad()
def draw(cells: Cells, densities: dict[str, Density], path: Path) -> None:
    """Three pairs of columns: all rows, and as many samples of each density."""
    from matplotlib.figure import Figure

    torch.manual_seed(0)
    clouds = {"all data": torch.cat([cells.train, cells.validation, cells.test])}
    count = len(clouds["all data"])
    clouds |= {name: density.sample((count,)) for name, density in densities.items()}
    figure = Figure(figsize=(2.5 * len(clouds), 7.2), dpi=120, layout="constrained")
    axes = figure.subplots(len(PAIRS), len(clouds), squeeze=False)
    for line, pair in zip(axes, PAIRS, strict=True):
        columns = [cells.names.index(name) for name in pair]
        data = clouds["all data"][:, columns]
        low = (data.quantile(0.005, dim=0) - 0.6).tolist()
        high = (data.quantile(0.995, dim=0) + 0.6).tolist()
        for ax, (name, cloud) in zip(line, clouds.items(), strict=True):
            colour = "#d9741a" if name == "all data" else "#1f5a96"
            ax.scatter(*cloud[:, columns].T.numpy(), s=5, color=colour, alpha=0.45, lw=0)
            ax.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]))
            ax.set_xlabel(pair[0], fontsize=8)
            ax.tick_params(labelsize=7)
            ax.spines[["top", "right"]].set_visible(False)
        line[0].set_ylabel(pair[1], fontsize=8)
    for ax, name in zip(axes[0], clouds, strict=True):
        score = (
            f"\n{densities[name].log_prob(cells.test).mean():.1f} nats"
            if name in densities
            else f"\n{count} rows"
        )
        ax.set_title(name + score, fontsize=9)
    figure.savefig(path)


def run(folder: Path) -> Part:
    """Fit, score, sample; then make the flows of other libraries fast, and sample them again."""
    cells = load()
    features = cells.train.shape[1]
    say(f"cells: {len(cells.train)} rows to train, {len(cells.test)} held out, {features} columns")
    normal, seconds = timed(lambda: full_gaussian(cells))
    rows = [row("full-covariance Gaussian", normal, seconds, cells)]
    kernels, seconds = timed(lambda: Kernels(cells))
    rows.append(row("kernel density estimate", kernels, seconds, cells))
    densities: dict[str, Density] = {"Gaussian": normal, "kernel density estimate": kernels}
    gains = []
    for name, make in networks(features):
        model, seconds = timed(lambda name=name, make=make: fit_network(name, make, cells))
        rows.append(row(name, model(), seconds, cells))
        if name == "MAF":
            densities[name] = model()
        if name.startswith(("nflows", "zuko")):
            before = rows[-1].sample_seconds
            rows.append(row(f"{name}, accelerated", mf.accelerate(model)(), None, cells))
            gains.append(f"the {name} {before / rows[-1].sample_seconds:.0f}x faster")
    picture = folder / "cells.png"
    draw(cells, densities, picture)
    steps = EPOCHS * -(-len(cells.train) // BATCH)
    finding = f"Best: {best_names(rows)}"
    if gains:
        finding += f". `accelerate` makes sampling of {' and of '.join(gains)}, weights unchanged"
    return Part(
        f"Breast cancer: {features} standardised columns (networks: {steps} steps each)",
        table(rows),
        finding,
        picture,
    )
