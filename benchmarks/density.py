"""Density estimation on the tables of the MAF paper, beside its published rows.

    MADE_FLOWS_DATA=FOLDER python -m benchmarks.density --data mnist --minutes 60

Training can be interrupted and repeated: every model goes on from its last finished epoch, and the
page is written anew from whatever has been trained. With ``--minutes 0`` it is only written.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

import made_flows as mf
from benchmarks._density_data import LOADERS, PUBLISHED, Table, load_table
from benchmarks._density_runs import Plan, Result, run
from benchmarks.harness import Settings, markdown_table, parse_resumable, write_page

TEXT = """Mean log-likelihood of the test rows in nats, higher is better, with twice its standard
error. Preprocessing, splits and network sizes are those of the MAF paper. Models are trained by
Adam; the learning rate is lowered to a third after {lower} epochs without a better validation
score, and training ends after {patience}; the weights of the best validation score are tested. On
MNIST, the noise of dequantisation is drawn anew for training in every epoch. Where "time" ended
training, the model had not stopped improving. Published rows are as printed in the papers."""

# Hidden layers, activation (Papamakarios et al. 2017, appendix D, and the authors' script).
NETWORKS: dict[str, tuple[tuple[int, ...], str]] = {
    "power": ((100, 100), "relu"),
    "gas": ((100, 100), "tanh"),
    "hepmass": ((512, 512), "relu"),
    "miniboone": ((512, 512), "relu"),
    "bsds300": ((1024, 1024), "relu"),
    "mnist": ((1024, 1024), "relu"),
}
PLANS: dict[str, Plan] = {
    "power": Plan(batch_size=500),
    "gas": Plan(batch_size=500),
    "bsds300": Plan(batch_size=500),
    "miniboone": Plan(rate=5e-4),
    "mnist": Plan(rate=5e-4, batch_size=200),
}

Make = Callable[[int, dict[str, Any]], nn.Module]


def _mixture(features: int, network: dict[str, Any]) -> mf.GaussianMixtureMADE:
    return mf.GaussianMixtureMADE(features, components=10, **network)


def _maf(features: int, network: dict[str, Any], **options: Any) -> mf.MAF:
    """Make a flow as the papers have it: of normal noise, without direct connections."""
    return mf.MAF(features, **{"transforms": 5, "base": None, "direct": False} | network | options)


MODELS: dict[str, Make] = {
    "MADE": lambda D, network: mf.GaussianMADE(D, **network),
    "MADE-MoG": _mixture,
    "MAF(5)": lambda D, network: _maf(D, network, normalize="batch"),
    "MAF(10)": lambda D, network: _maf(D, network, transforms=10, normalize="batch"),
    "MAF-MoG(5)": lambda D, network: _maf(D, network, normalize="batch", base=_mixture(D, network)),
    "RQ-MAF(5)": lambda D, network: _maf(D, network, bijection="spline"),
}
"""Constructors, from the number of features and the arguments of a network."""

DEFAULT = ("MADE", "MADE-MoG", "MAF(5)", "MAF-MoG(5)")


def standardized(make: Make, table: Table, network: dict[str, Any]) -> Callable[[], nn.Module]:
    """The model behind a fixed transform that standardises the training rows."""

    def made() -> nn.Module:
        train = torch.from_numpy(table.train)
        # A column that never changes in a small sample keeps its scale.
        std = train.std(dim=0)
        std = torch.where(std > 0, std, torch.ones_like(std))
        first = mf.Standardize(train.mean(dim=0), std)
        return mf.Flow([first], base=make(table.features, network))

    return made


def section(table: Table, results: dict[str, Result]) -> str:
    """The part of the page for one table."""
    rows = [(row, value, f"{value:g}", *["-"] * 5) for row, value in PUBLISHED[table.name].items()]
    for name, result in results.items():
        if not result.epochs:
            continue
        score = f"{result.test:.2f} ± {result.error:.2f}"
        rows.append(
            (
                f"**{name}, made_flows**",
                result.test,
                f"**{score}**",
                f"{result.valid:.2f}",
                f"{result.best_epoch} / {result.epochs}",
                f"{result.seconds / 60:.0f}",
                str(result.parameters),
                result.finished or "time",
            )
        )
    rows.sort(key=lambda row: -row[1])
    headings = [
        "model", "test", "validation", "best / epochs", "minutes", "parameters", "ended by",
    ]  # fmt: skip
    sizes = ", ".join(str(len(part)) for part in (table.train, table.valid, table.test))
    about = f"{table.features} columns; rows to train, validate and test: {sizes}."
    cells = [[row[0], *row[2:]] for row in rows]
    return f"## {table.name}\n\n{about}\n\n{markdown_table(headings, cells)}"


def parse(arguments: Sequence[str] | None = None) -> tuple[argparse.Namespace, Settings]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", nargs="+", choices=LOADERS, default=list(LOADERS))
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(DEFAULT))
    parser.add_argument("--minutes", type=float, default=60.0, help="for each model and table")
    parser.add_argument("--rate", type=float, help="learning rate at the start")
    return parse_resumable(parser, "density", arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    given, settings = parse(arguments)
    sections = []
    for data in given.data:
        table = load_table(data)
        if table is None:
            continue
        hidden, activation = NETWORKS[data]
        plan = replace(PLANS.get(data, Plan()), minutes=given.minutes)
        if given.rate is not None:
            plan = replace(plan, rate=given.rate)
        if given.quick:
            hidden, plan = (8,), replace(plan, max_epochs=1, batch_size=50)
            parts = (part[:200] for part in (table.train, table.valid, table.test))
            table = Table(table.name, *parts)
        network = {"hidden_features": hidden, "activation": activation, "direct": given.quick}
        results = {
            name: run(name, standardized(MODELS[name], table, network), table, plan, given.runs)
            for name in given.models
        }
        sections.append(section(table, results))
    if not sections:
        print("benchmarks.density: no data, nothing written", flush=True)
        return
    plan = Plan()
    text = TEXT.format(lower=plan.lower_after, patience=plan.patience)
    write_page("density", "Density estimation", [text, *sections], settings)


if __name__ == "__main__":
    main()
