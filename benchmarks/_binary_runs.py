"""Training and scoring of one candidate on one binary table, kept in files once done."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

import made_flows as mf
from benchmarks._binary_data import Table
from made_flows.training.optimization import SparseAdam

__all__ = ["Candidate", "Scores", "SparseAdam", "average", "make_model", "run"]


@dataclass(frozen=True)
class Candidate:
    """A network and how it is trained.

    Args:
        orders: ``"all"`` for a fresh order in every part of a batch, a number of random ones that
            are taken in turn, None for the table's own alone.
        order: the order of the network itself, ``"natural"`` or ``"random"``.
        seed: of the start, a random order, and the training.
        hidden: widths of the hidden layers.
        dropout: of hidden units.
        orders_per_batch: parts that a batch is cut into, each with an order of its own.
        batch_size: rows of a step.
        rate: learning rate at the start; it is lowered to zero as a cosine.
        direct_rate: that of the direct connections. Most of a table's structure is there, and
            their gradients are small.
        sparsity: by which share of the rate direct connections shrink towards zero in a step.
        effort: factor on the number of steps.
        decay: of the other weights, as AdamW's.
    """

    orders: Literal["all"] | int | None = "all"
    order: str = "natural"
    seed: int = 0
    hidden: tuple[int, ...] = (500, 500)
    dropout: float = 0.5
    orders_per_batch: int = 5
    batch_size: int = 100
    rate: float = 1e-3
    direct_rate: float = 0.03
    sparsity: float = 0.1
    effort: float = 1.0
    decay: float = 0.0


@dataclass
class Scores:
    """Log-probabilities of rows under every order of a trained candidate.

    Args:
        valid, test: (N, orders), one column where there is one order.
        seconds: of training.
        steps: of training.
        parameters: of the network.
    """

    valid: Tensor
    test: Tensor
    seconds: float
    steps: int
    parameters: int


def make_model(train: Tensor, candidate: Candidate) -> mf.BernoulliMADE:
    """The network, its outputs starting at the marginal logits."""
    over_orders: dict[str, Any] = {}
    if candidate.orders is not None:
        over_orders = {
            "orders": candidate.orders,
            "orders_per_batch": candidate.orders_per_batch,
            "mask_weights": "order",
        }
    model = mf.BernoulliMADE(
        train.shape[1],
        hidden_features=candidate.hidden,
        dropout=candidate.dropout,
        order=candidate.order,
        direct=True,
        **over_orders,
    )
    ones = (train.sum(dim=0) + 0.5) / (len(train) + 1)
    with torch.no_grad():
        bias = model.made.layers[-1].bias
        bias.copy_(ones.logit())  # type: ignore[operator, union-attr]
    return model


def make_optimizer(model: mf.BernoulliMADE, candidate: Candidate) -> SparseAdam:
    """Direct connections at a rate of their own, with a threshold."""
    direct = [] if model.made.direct is None else list(model.made.direct.parameters())
    chosen = {id(weight) for weight in direct}
    others = [weight for weight in model.parameters() if id(weight) not in chosen]
    groups: list[dict[str, Any]] = [
        {"params": others, "lr": candidate.rate, "weight_decay": candidate.decay}
    ]
    if direct:
        groups.append(
            {
                "params": direct,
                "lr": candidate.direct_rate,
                "sparsity": candidate.sparsity,
            }
        )
    return SparseAdam(groups, weight_decay=0.0, fused=True)


def run(
    name: str,
    candidate: Candidate,
    table: Table,
    steps: int,
    orders: int,
    folder: Path,
    *,
    train: bool = True,
) -> Scores | None:
    """Train a candidate and score the rows, or read what an earlier call left.

    Args:
        name: of the candidate, for its files.
        candidate: what to train.
        table: the data.
        steps: of training, before the candidate's own factor.
        orders: how many orders to score under.
        folder: of the files.
        train: whether to train what is not there yet; otherwise None is returned for it.
    """
    steps = max(1, round(steps * candidate.effort))
    settings = {
        **asdict(candidate),
        "steps": steps,
        "scored": orders,
        "hidden": [*candidate.hidden],
    }
    path = folder / f"{table.name}-{name}.npz"
    if path.exists():
        with np.load(path) as saved:
            about = json.loads(str(saved["about"]))
            if about.pop("settings") == settings:
                parts = (torch.from_numpy(saved[part]) for part in ("valid", "test"))
                return Scores(*parts, **about)
    if not train:
        return None
    start = time.perf_counter()
    model = _train(candidate, table, steps)
    seconds = time.perf_counter() - start
    valid, test = (_score(model, candidate, rows, orders) for rows in (table.valid, table.test))
    parameters = sum(weight.numel() for weight in model.parameters())
    about = {"seconds": seconds, "steps": steps, "parameters": parameters}
    folder.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.stem}-unfinished.npz")
    np.savez(
        temporary,
        valid=valid.numpy(),
        test=test.numpy(),
        about=np.array(json.dumps({**about, "settings": settings})),
    )
    temporary.replace(path)
    scores = Scores(valid, test, seconds, steps, parameters)
    print(
        f"{table.name}, {name}: {seconds / 60:.1f} min, "
        f"one order {-valid.mean():.3f}, mixture {-average(valid).mean():.3f} (validation NLL)",
        flush=True,
    )
    return scores


def _train(candidate: Candidate, table: Table, steps: int) -> mf.BernoulliMADE:
    torch.manual_seed(candidate.seed)
    model = make_model(table.train, candidate)
    in_epoch = -(-len(table.train) // candidate.batch_size)
    mf.fit(
        model,
        table.train,
        validation=table.valid,
        batch_size=candidate.batch_size,
        optimizer=make_optimizer(model, candidate),
        schedule="cosine",
        average=0.999,
        max_epochs=max(1, round(steps / in_epoch)),
        patience=None,
        clip_norm=5.0 * math.sqrt(table.features),
        seed=candidate.seed,
    )
    return model.eval()


@torch.no_grad()
def _score(model: mf.BernoulliMADE, candidate: Candidate, rows: Tensor, orders: int) -> Tensor:
    if candidate.orders is None:
        parts: Iterable[Tensor] = (model().log_prob(part) for part in rows.split(2000))
        return torch.cat(list(parts)).unsqueeze(1)
    generator = torch.Generator().manual_seed(0)
    count = orders if candidate.orders == "all" else candidate.orders
    mixture = mf.OrderMixture(model, count, generator=generator)
    return mixture.component_log_probs(rows)


def average(scores: Tensor, weights: Tensor | None = None) -> Tensor:
    """Log-probabilities (N,) of a mixture of the columns, equally weighted if not told."""
    scores = scores.double()
    if weights is None:
        return scores.logsumexp(dim=1) - math.log(scores.shape[1])
    return (scores + weights.to(scores).log()).logsumexp(dim=1)
