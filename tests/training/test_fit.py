"""fit(): what it takes, when it stops, what it leaves."""

from __future__ import annotations

import copy
import math
import signal
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

import made_flows as mf
from made_flows.training.history import History, TrainingError
from made_flows.training.loop import fit
from made_flows.training.rates import Rates

QUIET = {"progress": False, "seed": 0}


class Line(nn.Module):
    """A Gaussian whose mean is linear in the context: a model of a few numbers."""

    def __init__(self, features: int = 2, context: int = 0, dropout: float = 0.0) -> None:
        super().__init__()
        self.features, self.context = features, context
        self.mean = nn.Parameter(torch.zeros(features))
        self.slope = nn.Parameter(torch.zeros(features, context))
        self.log_scale = nn.Parameter(torch.zeros(features))
        self.dropout = nn.Dropout(dropout)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("expanded", torch.ones(1).expand(3))

    def forward(self, context: Tensor | None = None) -> Distribution:
        if self.training:
            self.calls.add_(1)
        mean = self.dropout(self.mean)
        if context is not None:
            mean = mean + context @ self.slope.T
        return Independent(Normal(mean, self.log_scale.exp(), validate_args=False), 1)


def rows(n: int = 200, features: int = 2, seed: int = 0) -> Tensor:
    return torch.randn(n, features, generator=torch.Generator().manual_seed(seed)) * 2 + 1


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_same(model: nn.Module, values: dict[str, Tensor]) -> None:
    for name, value in model.state_dict().items():
        assert torch.equal(value, values[name]), name


class Again:
    """An iterable that can be read again, and is no sequence."""

    def __init__(self, batches: list) -> None:
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)


class Items(Dataset):
    def __init__(self, *tensors: Tensor) -> None:
        self.tensors = tensors

    def __len__(self) -> int:
        return len(self.tensors[0])

    def __getitem__(self, i: int):
        return self.tensors[0][i] if len(self.tensors) == 1 else tuple(t[i] for t in self.tensors)


class Flowing(IterableDataset):
    def __init__(self, x: Tensor) -> None:
        self.x = x

    def __iter__(self):
        return iter(self.x)


# ------------------------------------------------------------------ fitting


def test_finds_the_maximum_likelihood_estimate():
    x = rows(2000)
    model = Line()
    options = {"learning_rate": 0.05, "batch_size": 256, "max_epochs": 60, "schedule": "cosine"}
    history = fit(model, x, **options, **QUIET)
    torch.testing.assert_close(model.mean.detach(), x.mean(0), atol=0.1, rtol=0)
    torch.testing.assert_close(model.log_scale.detach().exp(), x.std(0), atol=0.1, rtol=0)
    best = Independent(Normal(x.mean(0), x.std(0)), 1)
    # The held-out rows are a sample of 200: their mean NLL is within a few standard errors.
    assert abs(history.best + float(best.log_prob(x).mean())) < 0.25


def test_finds_the_dependence_on_the_context():
    context = rows(1000, 3, seed=1)
    slope = torch.tensor([[1.0, 0.0, -1.0], [0.5, 0.5, 0.0]])
    x = context @ slope.T + 0.1 * rows(1000, seed=2)
    model = Line(2, 3)
    fit(model, x, context, learning_rate=0.02, max_epochs=100, patience=None, **QUIET)
    torch.testing.assert_close(model.slope.detach(), slope, atol=0.05, rtol=0)


def test_history_reports_what_the_model_scores():
    x, held_out = rows(101), rows(57, seed=1)
    model = Line()
    history = fit(model, x, validation=held_out, max_epochs=3, batch_size=16, **QUIET)
    assert history.epochs == len(history.validation) == 3
    expected = -model().log_prob(held_out).mean().item()
    assert history.best == pytest.approx(expected, rel=1e-5)
    assert history.best == min(history.validation) == history.validation[history.best_epoch - 1]
    assert history.seconds > 0


@pytest.mark.parametrize("source", ["rows", "batches"])
def test_mean_is_over_rows_not_over_batches(source: str):
    """Batches of unequal size: with a rate of nearly zero, the mean NLL is that of all rows."""
    x = torch.cat([rows(96), 50 + rows(4)])
    data = x if source == "rows" else Again([x[:96], x[96:]])
    model = Line()
    expected = -model().log_prob(x).mean().item()
    validation = Again([x[:90], x[90:97], x[97:]])
    history = fit(
        model,
        data,
        validation=validation,
        batch_size=33,
        max_epochs=1,
        optimizer=lambda p: torch.optim.SGD(p, lr=1e-12),
        **QUIET,
    )
    assert history.train == pytest.approx([expected], rel=1e-5)
    assert history.validation == pytest.approx([expected], rel=1e-5)


def test_batches_are_of_equal_size_and_hold_every_row_once():
    seen: list[Tensor] = []

    class Spy(Line):
        def forward(self, context: Tensor | None = None) -> Distribution:
            outer = super().forward(context)
            log_prob = outer.log_prob
            outer.log_prob = lambda x: (seen.append(x), log_prob(x))[1]
            return outer

    x = torch.arange(101.0)[:, None]
    fit(Spy(1), x, validation=None, batch_size=25, max_epochs=2, clip_norm=None, **QUIET)
    assert [len(batch) for batch in seen] == [21, 20, 20, 20, 20] * 2
    first, second = torch.cat(seen[:5]), torch.cat(seen[5:])
    assert not torch.equal(first, x)
    assert not torch.equal(first, second)
    assert torch.equal(first.sort(0).values, x)
    assert torch.equal(second.sort(0).values, x)


# ------------------------------------------------------------------ kinds of data

X, C = rows(60), rows(60, 3, seed=1)

DATA = {
    "tensor": lambda: X,
    "float64 tensor": X.double,
    "integer tensor": lambda: X.round().long(),
    "bytes": lambda: X.abs().round().byte(),
    "bool tensor": lambda: X > 0,
    "array": X.numpy,
    "float64 array": lambda: X.double().numpy(),
    "integer array": lambda: X.round().numpy().astype(np.int32),
    "unsigned array": lambda: X.abs().round().numpy().astype(np.uint16),
    "reversed view": lambda: X.numpy()[::-1, ::-1],
    "big-endian array": lambda: X.numpy().astype(">f8"),
    "read-only array": lambda: np.broadcast_to(X.numpy()[:1], (60, 2)),
    "long double array": lambda: X.numpy().astype(np.longdouble),
    "lists": X.tolist,
    "tuples": lambda: tuple(tuple(row) for row in X.tolist()),
    "list of rows": lambda: list(X),
    "list of array rows": lambda: list(X.numpy()),
    "two tensor rows": lambda: (X[0], X[1], X[2]),
    "TensorDataset": lambda: TensorDataset(X),
    "Dataset": lambda: Items(X),
    "iterable Dataset": lambda: Flowing(X),
    "DataLoader": lambda: DataLoader(TensorDataset(X), batch_size=16),
    "shuffling DataLoader": lambda: DataLoader(Items(X), batch_size=16, shuffle=True),
    "list of batches": lambda: list(X.split(16)),
    "list of array batches": lambda: [b.numpy() for b in X.split(16)],
    "list of 1-tuples": lambda: [(b,) for b in X.split(16)],
    "generator": lambda: (b for b in X.split(16)),
    "iterable": lambda: Again(list(X.split(16))),
    "iterable of nested lists": lambda: Again([b.tolist() for b in X.split(16)]),
}

WITH_CONTEXT = {
    "pair": lambda: (X, C),
    "pair of arrays": lambda: (X.numpy(), C.numpy()),
    "TensorDataset": lambda: TensorDataset(X, C),
    "Dataset": lambda: Items(X, C),
    "DataLoader": lambda: DataLoader(TensorDataset(X, C), batch_size=16),
    "list of pairs": lambda: list(zip(X.split(16), C.split(16), strict=True)),
    "generator": lambda: zip(X.split(16), C.split(16), strict=True),
    "iterable": lambda: Again(list(zip(X.split(16), C.split(16), strict=True))),
}


@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize("validation", [None, 0.25, "data"])
def test_kinds_of_data(name: str, validation):
    model = Line()
    validation = DATA[name]() if validation == "data" else validation
    streams = {"iterable", "iterable of nested lists", "iterable Dataset"}
    options = {"validation": validation, "max_epochs": 4, "learning_rate": 0.05, **QUIET}
    if name in streams and isinstance(validation, float):
        with pytest.warns(UserWarning, match="kept in memory"):
            history = fit(model, DATA[name](), **options)
    else:
        history = fit(model, DATA[name](), **options)
    assert history.epochs == 4
    assert history.train[-1] < history.train[0]
    assert len(history.validation) == (0 if validation is None else 4)


@pytest.mark.parametrize("name", WITH_CONTEXT)
@pytest.mark.parametrize("validation", [None, 0.25, "data"])
def test_kinds_of_data_with_context(name: str, validation):
    model = Line(2, 3)
    validation = WITH_CONTEXT[name]() if validation == "data" else validation
    options = {"validation": validation, "max_epochs": 4, "learning_rate": 0.05, **QUIET}
    if name == "iterable" and isinstance(validation, float):
        with pytest.warns(UserWarning, match="kept in memory"):
            history = fit(model, WITH_CONTEXT[name](), **options)
    else:
        history = fit(model, WITH_CONTEXT[name](), **options)
    assert history.train[-1] < history.train[0]
    assert model.slope.abs().max() > 0


@pytest.mark.parametrize("name", ["generator", "list of batches", "TensorDataset", "lists"])
def test_rows_in_memory_are_the_same_rows_however_given(name: str):
    reference, model = Line(), Line()
    fit(reference, X, max_epochs=3, batch_size=16, **QUIET)
    fit(model, DATA[name](), max_epochs=3, batch_size=16, **QUIET)
    assert_same(model, state(reference))


def test_rows_and_contexts_stay_together():
    x = torch.arange(50.0)[:, None]
    pairs = []

    class Spy(Line):
        def forward(self, context: Tensor | None = None) -> Distribution:
            outer = super().forward(context)
            log_prob = outer.log_prob
            outer.log_prob = lambda x: (pairs.append((x, context)), log_prob(x))[1]
            return outer

    fit(Spy(1, 1), x, -x, max_epochs=2, batch_size=7, **QUIET)
    assert len(pairs) == 2 * (7 + 1)
    for x, context in pairs:
        assert torch.equal(x, -context)


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_loader_is_split_by_its_items(shuffle: bool):
    """No row is both trained on and validated on, and no row is left out."""
    x = torch.arange(40.0)[:, None]
    seen: dict[bool, set[float]] = {True: set(), False: set()}

    class Spy(Line):
        def forward(self, context: Tensor | None = None) -> Distribution:
            outer = super().forward(context)
            log_prob = outer.log_prob
            outer.log_prob = lambda x: (
                seen[self.training].update(x.flatten().tolist()),
                log_prob(x),
            )[1]
            return outer

    loader = DataLoader(Items(x), batch_size=7, shuffle=shuffle)
    fit(Spy(1), loader, validation=0.25, max_epochs=3, **QUIET)
    assert len(seen[True]) == 30
    assert len(seen[False]) == 10
    assert not seen[True] & seen[False]


@pytest.mark.parametrize(
    ("given", "average"),
    [({}, 0.99), ({"learning_rate": 3e-3}, 0), ({"optimizer": torch.optim.Adam}, 0)],
    ids=["its own rate", "a given rate", "a given optimizer"],
)
def test_weights_are_averaged_where_few_rows_have_their_own_rate(given, average: float):
    model, reference = Line(), Line()
    fit(model, rows(100), max_epochs=3, **given, **QUIET)
    fit(reference, rows(100), max_epochs=3, average=average, **given, **QUIET)
    assert_same(model, state(reference))


@pytest.mark.parametrize("name", ["tensor", "array", "list of rows"])
def test_the_default_device_does_not_matter(name: str):
    """The rows and the random numbers stay where they are, the model decides where they go."""
    reference, model = Line(), Line()
    fit(reference, DATA[name](), max_epochs=2, average=0.9, **QUIET)
    with torch.device("meta"):
        fit(model, DATA[name](), max_epochs=2, average=0.9, **QUIET)
    assert_same(model, state(reference))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("data_device", ["cpu", "cuda"])
def test_cuda(data_device: str):
    x = rows(500).to(data_device)
    before = torch.cuda.get_rng_state()
    runs = []
    for _ in range(2):
        model = Line(dropout=0.2).cuda()
        history = fit(model, x, max_epochs=5, learning_rate=0.05, average=0.9, **QUIET)
        runs.append(state(model))
    assert history.train[-1] < history.train[0]
    assert all(torch.equal(runs[0][k], runs[1][k]) for k in runs[0])
    assert torch.equal(torch.cuda.get_rng_state(), before)


def test_float64_model():
    model = Line().double()
    fit(model, rows(), max_epochs=2, **QUIET)
    assert model.mean.dtype == torch.float64


# ------------------------------------------------------------------ the library's models


def chain(n: int, flip: float, seed: int) -> Tensor:
    """Bits of a Markov chain: each differs from the one before with a probability."""
    generator = torch.Generator().manual_seed(seed)
    flips = torch.rand(n, 6, generator=generator) < flip
    flips[:, 0] = torch.rand(n, generator=generator) < 0.5
    return (flips.long().cumsum(1) % 2).float()


def test_gaussian_made_reaches_the_entropy_of_a_gaussian():
    factor = torch.tensor([[1.0, 0.0, 0.0], [2.0, 0.5, 0.0], [-1.0, 1.0, 0.2]])
    x, test = (torch.randn(n, 3) @ factor.T + 3 for n in (4000, 4000))
    model = mf.GaussianMADE(3, hidden_features=(16,), direct=True)
    fit(model, x, learning_rate=0.02, batch_size=50, max_epochs=15, schedule="cosine", **QUIET)
    entropy = 1.5 * math.log(2 * math.pi * math.e) + float(factor.diagonal().log().sum())
    # The NLL of 4000 rows has a standard error of sqrt(3 / 2 / 4000) = 0.02.
    assert -model().log_prob(test).mean().item() == pytest.approx(entropy, abs=0.1)


def test_bernoulli_made_reaches_the_entropy_of_a_chain():
    model = mf.BernoulliMADE(6, hidden_features=(32,))
    fit(model, chain(4000, 0.1, 1), learning_rate=0.02, max_epochs=20, **QUIET)
    entropy = math.log(2) - 5 * (0.1 * math.log(0.1) + 0.9 * math.log(0.9))
    nll = -model().log_prob(chain(4000, 0.1, 2)).mean().item()
    assert nll == pytest.approx(entropy, abs=0.1)
    assert nll < 0.6 * 6 * math.log(2), "what independent bits would give"


MODELS = {
    "gaussian": lambda c: mf.GaussianMADE(6, c, hidden_features=(16,)),
    "mixture": lambda c: mf.GaussianMixtureMADE(6, c, hidden_features=(16,), components=3),
    "bernoulli": lambda c: mf.BernoulliMADE(6, c, hidden_features=(16,)),
    "categorical": lambda c: mf.CategoricalMADE(6, c, hidden_features=(16,), categories=(2, 3) * 3),
    "dropout": lambda c: mf.GaussianMADE(6, c, hidden_features=(16, 16), dropout=0.2),
    "residual": lambda c: mf.GaussianMADE(6, c, hidden_features=(16, 16), residual=True),
}


@pytest.mark.parametrize("context", [0, 2])
@pytest.mark.parametrize("name", MODELS)
def test_models_of_the_library(name: str, context: int):
    contexts = torch.randn(400, context) if context else None
    x = chain(400, 0.2, 3).double().numpy()

    def run() -> tuple[dict[str, Tensor], History]:
        torch.manual_seed(4)
        model = MODELS[name](context)
        options = {"max_epochs": 8, "batch_size": 32, "learning_rate": 0.01, **QUIET}
        history = fit(model, x, contexts, **options)
        with torch.no_grad():
            rows = torch.as_tensor(x).float()
            nll = -model.eval()(contexts).log_prob(rows).mean().item()
        assert nll == pytest.approx(history.train[history.best_epoch - 1], abs=1.0)
        return state(model), history

    first, history = run()
    second, _ = run()
    assert history.validation[-1] < history.validation[0]
    assert all(torch.equal(first[k], second[k]) for k in first)


def test_values_outside_the_support_are_named_by_their_row_in_the_data():
    x = chain(300, 0.2, 3)
    x[217, 4] = 2
    for model in (mf.BernoulliMADE(6), mf.CategoricalMADE(6, categories=2)):
        with pytest.raises(ValueError, match="got 2 in row 217, column 4 of data"):
            fit(model, x, **QUIET)


def test_masks_may_be_drawn_anew_while_training():
    """Order-agnostic training: whatever draws masks between batches, fit does not mind."""
    model = mf.BernoulliMADE(6, hidden_features=(32,))
    generator = torch.Generator().manual_seed(0)

    class Resampling:
        def __iter__(self):
            for batch in chain(400, 0.2, 3).split(50):
                model.made.resample_masks(generator)
                yield batch

    history = fit(model, Resampling(), validation=None, max_epochs=6, learning_rate=0.02, **QUIET)
    assert history.train[-1] < history.train[0]
    mf.check_autoregressive(model.made)


# ------------------------------------------------------------------ reproducibility


@pytest.mark.parametrize("name", ["tensor", "shuffling DataLoader", "Dataset"])
def test_same_seed_same_weights(name: str):
    def run(seed: int) -> dict[str, Tensor]:
        model = Line(dropout=0.3)
        fit(model, DATA[name](), max_epochs=3, batch_size=8, seed=seed, progress=False)
        return state(model)

    torch.manual_seed(1)
    first = run(5)
    torch.manual_seed(2)
    second, other = run(5), run(6)
    assert all(torch.equal(first[k], second[k]) for k in first)
    assert not torch.equal(first["mean"], other["mean"])


def test_without_a_seed_the_global_generator_decides():
    def run() -> dict[str, Tensor]:
        model = Line(dropout=0.3)
        fit(model, X, max_epochs=2, batch_size=8, progress=False)
        return state(model)

    torch.manual_seed(3)
    first, second = run(), run()
    torch.manual_seed(3)
    third = run()
    assert all(torch.equal(first[k], third[k]) for k in first)
    assert not torch.equal(first["mean"], second["mean"])


@pytest.mark.parametrize("name", ["tensor", "shuffling DataLoader", "Dataset"])
def test_a_seed_leaves_the_global_generators_alone(name: str):
    torch.manual_seed(7)
    np.random.seed(7)  # noqa: NPY002 (the generator that must not be touched)
    before, before_numpy = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    fit(Line(dropout=0.5), DATA[name](), max_epochs=2, **QUIET)
    assert torch.equal(torch.get_rng_state(), before)
    assert (np.random.get_state()[1] == before_numpy).all()  # noqa: NPY002


# ------------------------------------------------------------------ stopping


class Scripted(nn.Module):
    """A model whose NLL is given for every epoch; its weight and buffers count the epochs."""

    features, context = 1, 0

    def __init__(self, validation: list[float], train: float = 1.0) -> None:
        super().__init__()
        self.script, self.train_nll = validation, train
        self.epochs = 0  # also where weights and buffers go back
        self.weight = nn.Parameter(torch.zeros(1))
        self.register_buffer("epoch", torch.zeros(()))
        self.register_buffer("hidden", torch.zeros(()), persistent=False)

    def forward(self) -> Scripted:
        return self

    def log_prob(self, x: Tensor) -> Tensor:
        if self.training:
            self.epochs += 1
            self.epoch += 1
            self.hidden += 1
            # A gradient of one: SGD at rate 1 moves the weight by -1 in every step.
            return -(self.weight - self.weight.detach() + self.train_nll).expand(len(x))
        return torch.full((len(x),), -self.script[self.epochs - 1])


def run_script(values: list[float], **options) -> tuple[Scripted, History]:
    model = Scripted(values)
    one = torch.zeros(4, 1)
    options = {"max_epochs": len(values), "optimizer": sgd, "validation": one} | QUIET | options
    return model, fit(model, one, **options)


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=1.0)


@pytest.mark.parametrize(
    ("values", "patience", "epochs", "best", "reason"),
    [
        ([3, 2, 1, 2, 3, 4, 0], 3, 6, 3, "patience"),
        ([3, 2, 1, 2, 3, 4, 0], 4, 7, 7, "max_epochs"),
        ([3, 2, 1, 2, 3, 4, 0], None, 7, 7, "max_epochs"),
        ([1, 1, 1, 1], 2, 3, 1, "patience"),
        ([1, 2, 3], 1, 2, 1, "patience"),
        ([-1, -2, -3], 1, 3, 3, "max_epochs"),
    ],
)
def test_early_stopping_puts_the_best_weights_back(values, patience, epochs, best, reason):
    model, history = run_script(values, patience=patience)
    assert (history.epochs, history.best_epoch, history.stop_reason) == (epochs, best, reason)
    assert model.weight.item() == -best
    assert model.epoch.item() == best
    assert model.hidden.item() == best, "a buffer outside the state dict too"
    assert history.best == values[best - 1]


def test_without_validation_training_decides():
    model = Line()
    history = fit(
        model, rows(), validation=None, max_epochs=30, learning_rate=0.5, patience=3, **QUIET
    )
    assert history.validation == []
    assert history.best == min(history.train)
    assert history.stop_reason == "patience"


def test_no_epochs_no_change():
    model = Line()
    before = state(model)
    history = fit(model, rows(), max_epochs=0, **QUIET)
    assert_same(model, before)
    assert (history.epochs, history.best_epoch) == (0, 0)
    assert math.isnan(history.best)
    assert "epochs=0" in repr(history)


def test_modes_while_training_and_afterwards():
    model = nn.ModuleDict({"line": Line(), "frozen": nn.BatchNorm1d(2).eval()})

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = model
            self.seen: list[bool] = []

        def forward(self) -> Distribution:
            self.seen.append(self.parts["line"].training)
            return self.parts["line"]()

    both = Both()
    options = {"max_epochs": 2, "batch_size": 18, "validation": 4 / 40, **QUIET}
    fit(both, rows(40), **options, keep_training_mode=True)
    assert both.seen == [True, True, False] * 2
    assert both.training
    assert not model["frozen"].training
    fit(both, rows(40), **options)
    assert not any(module.training for module in both.modules())
    both.eval()
    fit(both, rows(40), **options, keep_training_mode=True)
    assert not any(module.training for module in both.modules())


def test_scores_after_training_are_not_random():
    """Drawn orders, dropout and batch normalisation are of training alone."""
    x = rows(60, 3)
    drawn = mf.GaussianMADE(3, hidden_features=(8,), orders="all", dropout=0.3)
    normalized = mf.MAF(3, transforms=2, hidden_features=(8,), normalize="batch", dropout=0.3)
    for model in (drawn, normalized):
        fit(model, x, max_epochs=2, **QUIET)
        assert torch.equal(model().log_prob(x[:1]), model().log_prob(x)[:1])


def test_gradients_and_rates_are_left_clean():
    model = Line()
    adam = torch.optim.Adam(model.parameters(), lr=0.02)
    fit(model, rows(), optimizer=adam, schedule="cosine", max_epochs=3, **QUIET)
    assert all(p.grad is None for p in model.parameters())
    assert adam.param_groups[0]["lr"] == 0.02


@pytest.mark.parametrize("n", [2, 3, 5, 7, 100])
def test_no_batch_of_one_row_meets_a_batch_normalisation(n: int):
    model = mf.MAF(2, transforms=1, hidden_features=(4,), normalize="batch")
    options = {"batch_size": 2, "validation": None, "max_epochs": 2, **QUIET}
    assert fit(model, rows(n), **options).epochs == 2


class Batches(IterableDataset):
    """A dataset whose items are batches, the last one smaller."""

    def __init__(self, *tensors: Tensor) -> None:
        self.tensors = tensors

    def __iter__(self):
        parts = [tensor.split(16) for tensor in self.tensors]
        return iter(parts[0] if len(parts) == 1 else zip(*parts, strict=True))


@pytest.mark.parametrize("validation", [None, "data"])
def test_a_dataset_of_batches_whose_last_is_smaller(validation):
    x, c = rows(50), rows(50, 3, seed=1)
    for parts in ((x,), (x, c)):
        model, reference = Line(2, 3 * (len(parts) > 1)), Line(2, 3 * (len(parts) > 1))
        options = {"max_epochs": 3, "learning_rate": 0.05, **QUIET}
        given = Batches(*parts) if validation else None
        fit(model, Batches(*parts), validation=given, **options)
        held_out = (list(Batches(*parts))) if validation else None
        fit(reference, Again(list(Batches(*parts))), validation=held_out, **options)
        assert_same(model, state(reference))


@pytest.mark.parametrize(
    "sampler",
    [
        lambda x: WeightedRandomSampler(torch.ones(len(x)), len(x)),
        lambda x: RandomSampler(x, replacement=True),
        lambda x: RandomSampler(x, num_samples=2 * len(x)),
    ],
)
def test_no_row_is_held_out_that_a_sampler_may_give_again(sampler):
    x = rows(30)
    loader = DataLoader(TensorDataset(x), batch_size=10, sampler=sampler(x))
    with pytest.raises(ValueError, match=r"validation to be rows of their own.*RandomSampler"):
        fit(Line(), loader, **QUIET)
    assert fit(Line(), loader, validation=rows(9), max_epochs=2, **QUIET).epochs == 2


# ------------------------------------------------------------------ Ctrl-C


class Interrupted(Again):
    """An iterable during whose k-th batch Ctrl-C is pressed."""

    def __init__(self, batches: list, at: int) -> None:
        super().__init__(batches)
        self.at, self.given = at, 0

    def __iter__(self):
        for batch in self.batches:
            self.given += 1
            if self.given == self.at:
                signal.raise_signal(signal.SIGINT)
            yield batch


@pytest.mark.parametrize(("at", "epochs", "best"), [(11, 3, 2), (8, 2, 2), (2, 0, 0)])
def test_ctrl_c_returns_the_best_so_far(at: int, epochs: int, best: int):
    # A shell's background jobs ignore the signal, and so would everything that they start.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        _check_ctrl_c(at, epochs, best)
    finally:
        signal.signal(signal.SIGINT, before)


def _check_ctrl_c(at: int, epochs: int, best: int) -> None:
    model = Scripted([3, 1, 2, 0])
    batches = [torch.zeros(2, 1)] * 3
    model.script = [v for v in model.script for _ in range(3)]  # three steps an epoch
    history = fit(
        model,
        Interrupted(batches, at),
        validation=torch.zeros(2, 1),
        optimizer=sgd,
        max_epochs=4,
        **QUIET,
    )
    assert history.stop_reason == "interrupted"
    assert (history.epochs, history.best_epoch) == (epochs, best)
    assert model.weight.item() == -3 * best
    assert not model.training


# ------------------------------------------------------------------ not finite


class Breaking(Line):
    """A model that breaks in its n-th training step."""

    def __init__(self, at: int, value: float = math.nan, gradient: bool = False) -> None:
        super().__init__()
        self.at, self.value, self.gradient = at, value, gradient

    def forward(self, context: Tensor | None = None) -> Distribution:
        outer = super().forward(context)
        if self.training and self.calls == self.at:
            log_prob = outer.log_prob
            if self.gradient:  # the square root of zero: finite, with an infinite slope
                outer.log_prob = lambda x: log_prob(x) + (self.mean - self.mean).sum().sqrt()
            else:
                outer.log_prob = lambda x: log_prob(x) * self.value
        return outer


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("at", [1, 3, 7])
def test_a_loss_that_is_not_finite_stops(at: int, value: float):
    model, reference = Breaking(at, value), Line()
    x = rows(100)
    options = {"validation": 0.25, "batch_size": 25, "max_epochs": 5, **QUIET}
    options["schedule"] = "constant"  # the same in a shorter run
    with pytest.raises(TrainingError, match="Expected a finite training loss") as caught:
        fit(model, x, **options)
    error = caught.value
    epoch, step = (at - 1) // 3 + 1, (at - 1) % 3 + 1
    assert (error.epoch, error.step) == (epoch, step)
    assert f"step {step} of epoch {epoch}" in str(error)
    assert error.history.epochs == epoch - 1
    assert error.history.stop_reason == "failed"
    if at == 1:
        assert error.last_finite is None
        assert "no finite value before it" in str(error)
    else:
        assert f"last finite loss {error.last_finite:.6g}" in str(error)
    # The weights are those of the finished epochs, as a run that never broke has them.
    fit(reference, x, **(options | {"max_epochs": epoch - 1}))
    assert_same(model, state(reference))
    assert not model.training


def test_a_gradient_that_is_not_finite_stops():
    model = Breaking(4, gradient=True)
    with pytest.raises(TrainingError, match=r"gradient norm.*step 1 of epoch 2"):
        fit(model, rows(100), validation=0.25, batch_size=25, **QUIET)
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_a_validation_loss_that_is_not_finite_stops():
    with pytest.raises(
        TrainingError, match=r"validation NLL; got nan in the validation after"
    ) as e:
        run_script([2, 1, math.nan, 0])
    assert (e.value.epoch, e.value.step, e.value.history.best_epoch) == (3, 0, 2)


def test_the_first_loss_that_was_not_finite_is_named_though_a_later_step_raises():
    """Weights that became NaN fail in the next step; the step that made them is at fault."""

    class Strict(Breaking):
        def forward(self, context: Tensor | None = None) -> Distribution:
            Normal(self.mean, 1.0, validate_args=True)  # refuses a mean of NaN
            return super().forward(context)

    with pytest.raises(TrainingError, match="step 2 of epoch 1") as caught:
        fit(Strict(2), rows(100), batch_size=10, **QUIET)
    assert isinstance(caught.value.__context__, ValueError)


def test_an_error_of_the_model_is_its_own_and_leaves_the_best_weights():
    model = Scripted([3, 1])  # a third epoch has no entry
    with pytest.raises(IndexError):
        fit(
            model, torch.zeros(2, 1), validation=torch.zeros(2, 1), optimizer=sgd, max_epochs=3,
            **QUIET,
        )  # fmt: skip
    assert model.weight.item() == -2


# ------------------------------------------------------------------ options


def test_gradients_are_clipped():
    def moved(clip_norm: float | None) -> float:
        model = Line()
        fit(
            model, 100 + rows(), clip_norm=clip_norm, optimizer=sgd, max_epochs=1, batch_size=1000,
            validation=None, **QUIET,
        )  # fmt: skip
        return torch.cat([p.detach().flatten() for p in model.parameters()]).norm().item()

    assert moved(0.5) == pytest.approx(0.5, rel=1e-4)
    assert moved(None) > 100


def test_weight_decay_shrinks():
    def norm(weight_decay: float) -> float:
        model = Line()
        fit(model, 5 + rows(), weight_decay=weight_decay, learning_rate=0.1, max_epochs=40, **QUIET)
        return model.mean.norm().item()

    assert norm(1.0) < 0.9 * norm(0.0)


@pytest.mark.parametrize("given", [{}, {"learning_rate": 3e-3}], ids=["own rate", "given rate"])
def test_weights_of_masked_networks_decay_where_few_rows_have_their_own_rate(given):
    """As by AdamW of two groups; biases, direct connections and what else is learned do not."""
    torch.manual_seed(0)
    flow = mf.MAF(2, transforms=2, hidden_features=(8,), direct="first")
    reference = copy.deepcopy(flow)
    few = {"max_epochs": 3, "dropout": 0.0, "schedule": "constant", **QUIET}
    fit(flow, rows(100), **given, **few)
    decays = {n: ".layers." in n and n.endswith("weight") for n, _ in reference.named_parameters()}
    groups = [
        {
            "params": [p for n, p in reference.named_parameters() if not decays[n]],
            "weight_decay": 0,
        },
        {"params": [p for n, p in reference.named_parameters() if decays[n]]},
    ]
    adam = torch.optim.AdamW(groups, lr=3e-3, weight_decay=0.0 if given else 0.3)
    fit(reference, rows(100), optimizer=adam, average=0.0 if given else 0.99, **few)
    for p, q in zip(flow.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)


def test_direct_connections_of_discrete_values_are_sparse():
    generator = torch.Generator().manual_seed(1)
    x = (torch.rand(400, 6, generator=generator) < 0.5).float()
    x[:, 1] = x[:, 0]
    zeros = {}
    for sparsity in (None, 0.0):
        torch.manual_seed(0)
        model = mf.BernoulliMADE(6, hidden_features=(4,))
        mf.fit(model, x, sparsity=sparsity, progress=False, seed=0, max_epochs=60)
        allowed = model.made.direct.mask.bool()
        weight = model.made.direct.weight.detach()
        zeros[sparsity] = int((weight[allowed] == 0).sum())
        assert sparsity == 0.0 or weight[1, 0] > 3
    assert zeros[0.0] == 0 < zeros[None]


def test_cosine_schedule_ends_near_zero():
    rates: list[float] = []

    class Spy(torch.optim.SGD):
        def step(self, closure=None):
            rates.append(self.param_groups[0]["lr"])
            return super().step(closure)

    options = {"schedule": "cosine", "max_epochs": 5, "batch_size": 50, "validation": None, **QUIET}
    fit(Line(), rows(200), optimizer=lambda p: Spy(p, lr=0.1), **options)
    steps = np.arange(20)
    assert rates == pytest.approx(0.05 * (1 + np.cos(np.pi * steps / 20)))
    # Batches that cannot be counted: the first epoch is taken as one step, the others follow.
    rates.clear()
    fit(Line(), Again(list(rows(200).split(50))), optimizer=lambda p: Spy(p, lr=0.1), **options)
    assert rates[4:] == pytest.approx(0.05 * (1 + np.cos(np.pi * steps[4:] / 20)))


@pytest.mark.parametrize(
    ("values", "epochs", "powers"),
    [  # patience 4: four epochs that are no better lower the rate, then two
        (
            [3, 2, 2, 3, 2, 2, 1, 2, 1, 1, 1, 0, 2, 2] + 20 * [1],
            14,
            6 * [0] + 3 * [1] + 2 * [2] + 3 * [3],
        ),
        (list(range(10, 0, -1)), 10, [0] * 7 + [1, 2, 3]),
    ],
)
def test_plateaus_lower_the_rate_and_end_training(values, epochs, powers):
    rates: list[float] = []

    class Spy(torch.optim.SGD):
        def step(self, closure=None):
            rates.append(self.param_groups[0]["lr"])
            self.param_groups[0]["lr"] = 1.0  # a script counts whole steps
            super().step(closure)
            self.param_groups[0]["lr"] = rates[-1]

    options = {"schedule": "plateau", "patience": 4}
    history = run_script(values, optimizer=lambda p: Spy(p, lr=1.0), **options)[1]
    assert history.epochs == epochs
    assert history.stop_reason == ("max_epochs" if epochs == len(values) else "patience")
    assert rates == pytest.approx([0.3**power for power in powers])


@pytest.mark.parametrize(
    ("average", "trained"),  # the epochs of training that the weights have behind them
    [(0.0, [1, 2, 3, 4, 3, 4, 4, 5]), (1e-9, [1, 2, 3, 4, 5, 6, 7, 8])],
)
def test_after_plateaus_training_goes_on_from_the_best_weights(average, trained):
    weights: list[float] = []

    class Whole(torch.optim.SGD):
        def step(self, closure=None):
            rate, self.param_groups[0]["lr"] = self.param_groups[0]["lr"], 1.0
            super().step(closure)
            self.param_groups[0]["lr"] = rate

    # With a patience of 2 the rate falls after epochs 4 and 6; the best ones are 2 and 5.
    model, history = run_script(
        [3.0, 2.0, 2.1, 2.1, 1.9, 2.0, 1.8, 1.7], optimizer=lambda p: Whole(p, lr=1.0),
        schedule="plateau", patience=2, average=average,
        callbacks=lambda model, _: weights.append(model.weight.item()),
    )  # fmt: skip
    assert (history.epochs, history.best_epoch) == (8, 8)
    assert weights == pytest.approx([-epochs for epochs in trained], abs=1e-5)
    assert model.weight.item() == weights[-1]


def test_rates_fall_before_the_time_is_over(monkeypatch):
    rates: list[float] = []

    class Spy(torch.optim.SGD):
        def step(self, closure=None):
            rates.append(self.param_groups[0]["lr"])
            super().step(closure)

    # A clock that goes on by a second from epoch to epoch.
    monkeypatch.setattr("time.perf_counter", lambda: float(len(rates)))
    options = {"schedule": "plateau", "max_seconds": 10.5, "max_epochs": 100}
    history = fit(
        Line(), rows(), optimizer=lambda p: Spy(p, 1e-3), batch_size=200, **QUIET | options
    )
    assert (history.epochs, history.stop_reason) == (11, "max_seconds")
    assert rates == pytest.approx([1e-3 * 0.3**power for power in [0] * 8 + [1, 2, 3]])
    assert (history.rates, history.falls) == (rates, [9, 10, 11])
    assert "falls=[9, 10, 11]" in repr(history)
    assert float(history.latest()["rate"]) == pytest.approx(rates[-1], rel=0.05)


SCHEDULES = {
    "rows": (rows, {}, "plateau"),
    "bits": (lambda: torch.eye(2).repeat(10, 1), {}, "plateau"),
    "a stream": (lambda: Again(list(rows().split(50))), {"validation": rows()}, "constant"),
    "a rate": (rows, {"learning_rate": 1e-3}, "constant"),
    "an optimizer": (rows, {"optimizer": sgd}, "constant"),
    "no patience": (rows, {"patience": None}, "constant"),
    "none wanted": (rows, {"schedule": "constant"}, "constant"),
    "wanted": (rows, {"schedule": "plateau", "optimizer": sgd}, "plateau"),
    "a cosine": (rows, {"schedule": "cosine"}, "cosine"),
}


class Signs(torch.optim.Optimizer):
    """Steps of one size: an optimizer without a learning rate."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter -= 1e-3 * parameter.grad.sign()


def test_an_optimizer_may_have_no_rate() -> None:
    model, options = mf.GaussianMADE(2, hidden_features=(4,)), {"optimizer": Signs, **QUIET}
    history = mf.fit(model, X, max_epochs=2, **options)
    assert history.train[1] < history.train[0]
    with pytest.raises(ValueError, match="to have learning rates with schedule='cosine'; got Sig"):
        mf.fit(model, X, schedule="cosine", **options)


@pytest.mark.parametrize("schedule", ["plateau", "cosine", "constant"])
@pytest.mark.parametrize("kind", ["a number", "a tensor"])
def test_rates_that_a_callback_changes_are_not_lost(schedule: str, kind: str) -> None:
    rate = 1e-3 if kind == "a number" else torch.tensor(1e-3)
    model = mf.GaussianMADE(2, hidden_features=(4,))
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)

    def halve(*_: Any) -> None:
        optimizer.param_groups[0]["lr"] = optimizer.param_groups[0]["lr"] / 2

    options: dict[str, Any] = {"optimizer": optimizer, "schedule": schedule, "max_epochs": 3}
    options |= {"callbacks": halve, "progress": False, "seed": 0}
    if schedule == "constant":
        mf.fit(model, X, **options)
        assert float(optimizer.param_groups[0]["lr"]) == pytest.approx(1e-3 / 8)
        return
    with pytest.raises(ValueError, match=rf"rates of group 0 to be left to schedule='{schedule}'"):
        mf.fit(model, X, **options)
    assert float(optimizer.param_groups[0]["lr"]) == pytest.approx(1e-3)


@pytest.mark.parametrize("name", SCHEDULES)
def test_rates_fall_by_default(name, monkeypatch):
    data, options, expected = SCHEDULES[name]
    model = mf.BernoulliMADE(2, hidden_features=(4,)) if name == "bits" else Line()
    seen = []

    class Spy(Rates):
        def __init__(self, optimizer, schedule, patience):
            seen.append(schedule)
            super().__init__(optimizer, schedule, patience)

    monkeypatch.setattr("made_flows.training.loop.Rates", Spy)
    fit(model, data(), max_epochs=0, **QUIET | options)
    assert seen == [expected]


def test_average_of_the_weights():
    """Against the recursion written out, for a weight that moves by -1 in every step."""
    values = [float(i) for i in range(30, 0, -1)]
    model, history = run_script(values, average=0.6)
    expected = 0.0
    for step in range(1, 31):
        decay = min(0.6, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * -step
    assert history.best_epoch == 30
    assert model.weight.item() == pytest.approx(expected, rel=1e-5)


def test_frozen_parameters_stay():
    model = Line()
    model.log_scale.requires_grad_(False)
    fit(model, rows(), max_epochs=3, **QUIET)
    assert model.log_scale.abs().max() == 0
    assert model.mean.abs().min() > 0


def test_tied_parameters_stay_tied():
    model = Line()
    model.log_scale = model.mean
    fit(model, rows(), max_epochs=3, **QUIET)
    assert model.log_scale is model.mean


def test_progress_bar_shows_both_likelihoods(capsys):
    fit(Line(), rows(), max_epochs=2, progress=True, seed=0)
    shown = capsys.readouterr().err
    for word in ("Line", "train=", "validation=", "best=", "2/2"):
        assert word in shown
    fit(Line(), rows(), max_epochs=2, progress="a name of its own", seed=0)
    shown = capsys.readouterr().err
    assert "a name of its own" in shown
    assert "Line" not in shown
    with pytest.raises(TypeError, match="Expected progress to be a bool or a text; got int 1"):
        fit(Line(), rows(), max_epochs=2, progress=1, seed=0)
    fit(Line(), rows(), max_epochs=2, progress=False, seed=0)
    assert capsys.readouterr().err == ""


def test_repr_of_a_history():
    history = History([1.5, 1.25], [1.75, 1.5], 2, 1.234, "patience")
    assert repr(history) == (
        "History(epochs=2, best_epoch=2, train=1.25, validation=1.5, seconds=1.23, "
        "stop_reason='patience')"
    )


# ------------------------------------------------------------------ bad inputs


def with_value(value: float, row: int = 5, column: int = 1) -> Tensor:
    x = rows(20)
    x[row, column] = value
    return x


class Spent:
    """An iterable that can be read once only."""

    def __init__(self) -> None:
        self.iterator = iter([rows(10)])

    def __iter__(self):
        return self.iterator


class PerFeature(Line):
    def forward(self, context: Tensor | None = None) -> Distribution:
        return super().forward(context).base_dist


class OfItsOwn(Line):
    """A flow as nflows has them, whose forward is none."""

    def forward(self, *args: Any) -> Distribution:
        raise RuntimeError("Forward method cannot be called")

    def log_prob(self, x: Tensor) -> Tensor:
        return super().forward().log_prob(x)


BAD = {
    # name: (model, data, options, error, message)
    "no module": (None, rows(), {}, TypeError, "model"),
    "a layer": (lambda: nn.Linear(2, 2), rows(), {}, TypeError, r"distribution.*got a Linear"),
    "a layer and a context": (
        lambda: nn.Linear(2, 2), rows(), {"context": rows()}, TypeError, "to give a distribution",
    ),
    "made in inference mode": (
        torch.inference_mode()(lambda: mf.GaussianMADE(2)), rows(), {}, ValueError,
        r"outside of torch.inference_mode\(\); got one made in it",
    ),
    "on meta": (lambda: mf.MAF(2).to("meta"), rows(), {}, ValueError, "numbers; got .*on meta"),
    "a log_prob of its own": (
        OfItsOwn, rows(), {}, TypeError, "got a OfItsOwn, which has a log_prob of its own",
    ),
    "a bare network": (lambda: mf.MADE(2), rows(), {}, TypeError, r"distribution.*got a MADE"),
    "a seed of too many bits": (Line, rows(), {"seed": 2**70}, ValueError, r"below 2\*\*64"),
    "an optimizer that asks for the loss": (
        Line, rows(), {"optimizer": torch.optim.LBFGS}, ValueError, "optimizer.*got LBFGS",
    ),
    "no parameters": (nn.Identity, rows(), {}, ValueError, "model to have parameters"),
    "text": (Line, "rows", {}, TypeError, "data"),
    "a number": (Line, 3.0, {}, TypeError, "data"),
    "a dict": (Line, {"x": rows()}, {}, TypeError, "data"),
    "words": (Line, [["a", "b"]], {}, TypeError, "hold numbers"),
    "complex": (Line, rows() + 1j, {}, TypeError, "real"),
    "sparse": (Line, rows().to_sparse(), {}, TypeError, "dense"),
    "no rows": (Line, rows(0), {}, ValueError, "at least one row"),
    "an empty list": (Line, [], {}, ValueError, "data of shape"),
    "one dimension": (Line, rows()[:, 0], {}, ValueError, r"data of shape \(N, 2\); got \(200,\)"),
    "three dimensions": (Line, rows()[None], {}, ValueError, r"got \(1, 200, 2\)"),
    "another width": (Line, rows(9, 3), {}, ValueError, r"data of shape \(N, 2\); got \(9, 3\)"),
    "ragged rows": (Line, [[1.0, 2.0], [1.0]], {}, ValueError, "of one length"),
    "ragged tensors": (Line, [torch.ones(2), torch.ones(1)], {}, ValueError, "of one shape"),
    "NaN": (Line, with_value(math.nan), {}, ValueError, "got nan in row 5, column 1"),
    "infinity": (Line, with_value(-math.inf, 0, 0), {}, ValueError, "got -inf in row 0, column 0"),
    "NaN in an array": (Line, with_value(math.nan).numpy(), {}, ValueError, "row 5, column 1"),
    "too large for the dtype": (
        Line, with_value(1.0).double() * 1e300, {}, ValueError, "data to be finite",
    ),
    "NaN in a batch": (
        Line, Again([rows(4), with_value(math.nan)]), {"validation": None}, ValueError,
        "batch 2 of data to be finite; got nan in row 5, column 1",
    ),
    "NaN in the context": (
        lambda: Line(2, 2), rows(20), {"context": with_value(math.nan)}, ValueError,
        "context of data to be finite; got nan in row 5, column 1",
    ),
    "NaN in the validation": (
        Line, rows(), {"validation": with_value(math.nan)}, ValueError, "validation to be finite",
    ),
    "no context": (lambda: Line(2, 3), rows(), {}, ValueError, r"context of shape \(N, 3\)"),
    "a needless context": (Line, rows(), {"context": rows()}, ValueError, "takes none"),
    "a narrow context": (
        lambda: Line(2, 3), rows(), {"context": rows()}, ValueError, r"\(N, 3\); got \(200, 2\)",
    ),
    "a short context": (
        lambda: Line(2, 2), rows(), {"context": rows(9)}, ValueError, "200 rows.*got 9",
    ),
    "a context beside batches": (
        lambda: Line(2, 2), Again([rows()]), {"context": rows()}, ValueError, "context to be None",
    ),
    "a context beside a pair": (
        lambda: Line(2, 2), (rows(), rows()), {"context": rows()}, ValueError, "context to be None",
    ),
    "validation without context": (
        lambda: Line(2, 2), rows(), {"context": rows(), "validation": rows()}, ValueError,
        "validation to come with a context",
    ),
    "triples": (Line, [(rows(), rows(), rows())], {}, ValueError, "3 parts"),
    "contexts in some batches": (
        Line, [(rows(), rows()), rows()], {}, ValueError, "takes none|all batches",
    ),
    "an empty iterable": (Line, Again([]), {"validation": None}, ValueError, "at least one row"),
    "a spent iterable": (Line, Spent(), {"validation": None}, ValueError, "read only once"),
    "all rows held out": (Line, rows(1), {}, ValueError, "leave rows to train on"),
    "a fraction of one": (Line, rows(), {"validation": 1.0}, ValueError, "validation"),
    "a negative fraction": (Line, rows(), {"validation": -0.1}, ValueError, "validation"),
    "validation=True": (Line, rows(), {"validation": True}, TypeError, "validation"),
    "validation as text": (Line, rows(), {"validation": "x"}, TypeError, "validation"),
    "no batch": (Line, rows(), {"batch_size": 0}, ValueError, "batch_size"),
    "half a batch": (Line, rows(), {"batch_size": 2.5}, TypeError, "batch_size"),
    "no rate": (Line, rows(), {"learning_rate": 0.0}, ValueError, "learning_rate"),
    "a rate of NaN": (Line, rows(), {"learning_rate": math.nan}, ValueError, "learning_rate"),
    "negative epochs": (Line, rows(), {"max_epochs": -1}, ValueError, "max_epochs"),
    "no patience": (Line, rows(), {"patience": 0}, ValueError, "patience"),
    "no norm": (Line, rows(), {"clip_norm": 0.0}, ValueError, "clip_norm"),
    "negative decay": (Line, rows(), {"weight_decay": -1.0}, ValueError, "weight_decay"),
    "negative sparsity": (Line, rows(), {"sparsity": -1.0}, ValueError, "sparsity"),
    "average of one": (Line, rows(), {"average": 1.0}, ValueError, "average"),
    "another schedule": (Line, rows(), {"schedule": "linear"}, ValueError, "schedule"),
    "plateaus without end": (
        Line, rows(), {"schedule": "plateau", "patience": None}, ValueError, "patience to be a num",
    ),
    "a seed as text": (Line, rows(), {"seed": "a"}, TypeError, "seed"),
    "an array as schedule": (Line, rows(), {"schedule": np.ones(3)}, ValueError, "Expected schedu"),
    "standardize as text": (
        Line, rows(), {"standardize": "no"}, TypeError, "standardize to be True or False",
    ),
    "modes as an array": (
        Line, rows(), {"keep_training_mode": np.ones(3)}, TypeError, "keep_training_mode to be Tr",
    ),
    "another model's optimizer": (
        Line, rows(), {"optimizer": torch.optim.Adam(Line().parameters())}, ValueError, "optimizer",
    ),
    "an optimizer by name": (Line, rows(), {"optimizer": "adam"}, TypeError, "optimizer"),
    "a density of each feature": (PerFeature, rows(), {}, ValueError, "one number per row"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name: str):
    make, data, options, error, message = BAD[name]
    model = make() if make else "model"
    with pytest.raises(error, match=message):
        fit(model, data, **{"progress": False, "seed": 0, "max_epochs": 2} | options)
