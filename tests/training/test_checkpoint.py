"""checkpoint= and callbacks=: a run that is interrupted ends as one that is not."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.distributions import (
    AffineTransform,
    Categorical,
    Independent,
    MixtureSameFamily,
    Normal,
    TransformedDistribution,
)
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

import made_flows as mf
from made_flows.models.bases import StudentT
from made_flows.training import checkpoint as module
from made_flows.training.run import Run

X = torch.randn(120, 3, generator=torch.Generator().manual_seed(0)) * 3 + 50
BITS = (X > 50).float()
OPTIONS = {"max_epochs": 3, "batch_size": 16, "seed": 1, "progress": False}


def maf(**options: Any) -> mf.MAF:
    return mf.MAF(3, transforms=2, hidden_features=(8,), **options)


def loader(**options: Any) -> DataLoader:
    generator = torch.Generator().manual_seed(5)
    return DataLoader(
        TensorDataset(X), batch_size=16, shuffle=True, **{"generator": generator} | options
    )


def batches() -> BatchSampler:
    rows = RandomSampler(range(len(X)), generator=torch.Generator().manual_seed(5))
    return BatchSampler(rows, 16, drop_last=False)


def momentum(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.01, momentum=0.9)


RUNS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    # name: (model, data, options of fit)
    "dropout": (lambda: maf(dropout=0.3), lambda: X, {}),
    "schedule and average": (maf, lambda: X, {"schedule": "cosine", "average": 0.9}),
    "plateaus": (
        maf, lambda: X,
        {"schedule": "plateau", "patience": 2, "learning_rate": 0.1, "max_epochs": 8},
    ),
    "actnorm": (lambda: maf(normalize="actnorm"), lambda: X, {}),
    "batch normalisation": (lambda: maf(normalize="batch"), lambda: X, {}),
    "all orders": (
        lambda: mf.GaussianMADE(3, orders="all", hidden_features=(8,)), lambda: X, {},
    ),
    "orders in turn": (
        lambda: mf.GaussianMADE(3, orders=5, masks=3, hidden_features=(8,)), lambda: X, {},
    ),
    "sparse": (lambda: mf.BernoulliMADE(3, hidden_features=(8,)), lambda: BITS, {}),
    "momentum, no validation": (maf, lambda: X, {"optimizer": momentum, "validation": None}),
    "float64 rows": (maf, lambda: X.double().numpy(), {"validation": X[:30]}),
    "dataset": (lambda: maf(dropout=0.3), lambda: TensorDataset(X), {}),
    "loader": (lambda: maf(dropout=0.3), loader, {}),
    "sampler of batches": (
        maf, lambda: DataLoader(TensorDataset(X), batch_sampler=batches()), {"validation": X[:30]},
    ),
    "loader of the global generator": (
        lambda: maf(dropout=0.3), lambda: loader(generator=None), {"validation": X[:30]},
    ),
    "patience": (maf, lambda: X, {"patience": 1, "learning_rate": 0.3, "max_epochs": 30}),
}  # fmt: skip


class Killed(BaseException):
    pass


def run(name: str, path: Path | None, **more: Any) -> tuple[dict[str, torch.Tensor], Any]:
    make, data, options = RUNS[name]
    torch.manual_seed(0)
    model = make()
    history = mf.fit(model, data(), checkpoint=path, **(OPTIONS | options | more))
    return model.state_dict(), history


def assert_same(one: tuple[Any, Any], other: tuple[Any, Any]) -> None:
    for name, value in one[0].items():
        assert torch.equal(value, other[0][name]), name
    for each in ("train", "validation", "best_epoch", "stop_reason"):
        assert getattr(one[1], each) == getattr(other[1], each), each


@pytest.mark.parametrize("name", RUNS)
def test_interrupted_runs_end_as_others(name: str, tmp_path: Path, monkeypatch) -> None:
    whole, path = run(name, None), tmp_path / "run"
    monkeypatch.setattr(module, "_SHARE", 1e9)  # write after every step
    step = Run._gradients

    def interrupted_at(count: int) -> None:
        left = [count]

        def dying(*arguments: Any) -> Any:
            left[0] -= 1
            if not left[0]:
                raise Killed
            return step(*arguments)

        monkeypatch.setattr(Run, "_gradients", dying)
        with pytest.raises(Killed):
            run(name, path)
        monkeypatch.setattr(Run, "_gradients", step)

    for count in (1, 3, 12):  # in the first epoch, in it again, and in one of the next
        interrupted_at(count)
    assert_same(run(name, path), whole)
    # Once more, after the end: nothing is trained.
    monkeypatch.setattr(Run, "_epoch", lambda *_: pytest.fail("Expected no epoch"))
    assert_same(run(name, path), whole)
    assert [each.name for each in tmp_path.iterdir()] == ["run"]


def test_without_a_seed_the_file_has_it_and_the_weights(tmp_path: Path) -> None:
    path, models = tmp_path / "run", [maf(), maf()]
    histories = [mf.fit(model, X, checkpoint=path, **OPTIONS | {"seed": None}) for model in models]
    assert histories[0].train == histories[1].train
    first, second = (model.state_dict() for model in models)
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_a_run_is_extended(tmp_path: Path) -> None:
    steady = {"schedule": "constant"}  # others depend on how long the run is to be
    run("dropout", tmp_path / "run", max_epochs=2, **steady)
    assert_same(run("dropout", tmp_path / "run", **steady), run("dropout", None, **steady))
    with pytest.raises(ValueError, match=r"max_epochs to be at least 3.* got 2"):
        run("dropout", tmp_path / "run", max_epochs=2, **steady)


def test_a_run_that_time_ended_says_so_again(tmp_path: Path) -> None:
    options = {"max_seconds": 1e-9, "max_epochs": 5}
    for _ in range(2):
        history = run("dropout", tmp_path / "run", **options)[1]
        assert (history.epochs, history.stop_reason) == (1, "max_seconds")
    history = run("dropout", tmp_path / "run", **options | {"max_seconds": None})[1]
    assert (history.epochs, history.stop_reason) == (5, "max_epochs")
    assert run("dropout", tmp_path / "run", **options)[1].stop_reason == "max_epochs"


def test_files_of_rows_go_on_from_rows_in_memory(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X.numpy())
    of_file = np.load(tmp_path / "x.npy", mmap_mode="r")
    model = maf()
    for data, epochs in ((X, 2), (of_file, 4)):
        history = mf.fit(
            model, data, checkpoint=tmp_path / "run", **OPTIONS | {"max_epochs": epochs}
        )
    assert history.epochs == 4


# ------------------------------------------------------------------ refusals

OTHERS = {
    "another width": (
        {"model": lambda: mf.MAF(3, transforms=2, hidden_features=(9,))},
        "the model",
    ),
    "another class": (
        {"model": lambda: mf.IAF(3, transforms=2, hidden_features=(8,))},
        "the model",
    ),
    "another order": ({"model": lambda: maf(order="random")}, "the model"),
    "another scale rule": ({"model": lambda: maf(scale="exp")}, "the model"),
    "other tails": ({"model": lambda: maf(base=StudentT(3, df=3.0))}, "the model"),
    "one value": ({"data": torch.cat([X[:1] + 1e-3, X[1:]])}, "data"),
    "fewer rows": ({"data": X[1:]}, "data"),
    "other validation rows": ({"validation": X[:9]}, "validation|data"),
    "another seed": ({"seed": 2}, "seed 1, where it is 2"),
    "another rate": ({"learning_rate": 0.1}, "learning_rate 0.003, where it is 0.1"),
    "another batch": ({"batch_size": 8}, "batch_size 16, where it is 8"),
    "another optimizer": ({"optimizer": momentum}, "optimizer Adam"),
    "a schedule": ({"schedule": "cosine"}, "schedule plateau, where it is cosine over 3"),
    "an average": ({"average": 0.9}, "average 0.99, where it is 0.9 now"),
    "dropout": ({"dropout": 0.1}, "dropout"),
    "patience": ({"patience": 3}, "patience 20, where it is 3"),
}


@pytest.fixture(scope="module")
def written(tmp_path_factory: Any) -> bytes:
    path = tmp_path_factory.mktemp("one") / "run"
    torch.manual_seed(0)
    mf.fit(maf(), X, checkpoint=path, **OPTIONS | {"max_epochs": 2})
    return path.read_bytes()


@pytest.mark.parametrize("name", OTHERS)
def test_a_checkpoint_of_another_call_is_refused(name: str, written: bytes, tmp_path: Path) -> None:
    changes, message = OTHERS[name]
    path = tmp_path / "run"
    path.write_bytes(written)
    options = OPTIONS | changes
    model = options.pop("model", maf)()
    with pytest.raises(ValueError, match=f"checkpoint to be of this call; got .*({message})"):
        mf.fit(model, options.pop("data", X), checkpoint=path, **options)
    assert path.read_bytes() == written


def flow(*transforms: mf.Transform) -> mf.Flow:
    return mf.Flow([*transforms, *maf().transforms])


class Power(mf.Transform):
    """A part of one's own, which holds what it is given in attributes alone."""

    changing = ("calls",)

    def __init__(self, exponent: float, scale: float = 1.0) -> None:
        super().__init__()
        self.features, self.exponent, self.scale = 3, exponent, torch.tensor(scale)
        self.calls = 0

    def to_noise(self, x: torch.Tensor, context: Any = None) -> tuple[torch.Tensor, torch.Tensor]:
        self.calls += 1
        z = self.scale * x**self.exponent
        return z, (self.exponent * z / x).abs().log().sum(dim=-1)

    def to_data(self, z: torch.Tensor, context: Any = None) -> tuple[torch.Tensor, torch.Tensor]:
        x = (z / self.scale) ** (1 / self.exponent)
        return x, -(self.exponent * z / x).abs().log().sum(dim=-1)


def base(scale: float, share: float = 0.5) -> Any:
    parts = Independent(Normal(torch.zeros(2, 3), torch.full((2, 3), scale)), 1)
    return MixtureSameFamily(Categorical(probs=torch.tensor([share, 1 - share])), parts)


def affine(loc: float) -> Any:
    return TransformedDistribution(base(1.0), [AffineTransform(loc, 1.0, 1, cache_size=1)])


def spline(**options: float) -> mf.MAF:
    return maf(bijection=mf.RationalQuadraticSpline(4, **options))


def frozen() -> mf.MAF:
    model = maf()
    model.transforms[0].conditioner.layers[0].bias.requires_grad_(False)
    return model


def of_one_mask() -> mf.MAF:
    model = maf()
    model.transforms[0].conditioner.layers[0].mask[3:] = False
    return model


LOW, HIGH = [0.0] * 3, [100.0] * 3

GIVEN: dict[str, tuple[Any, Any]] = {
    # name: two models that differ in what they are given, and in no shape
    "means": (
        lambda: flow(mf.Standardize(LOW, HIGH)), lambda: flow(mf.Standardize([0, 1, 0], HIGH)),
    ),
    "deviations": (
        lambda: flow(mf.Standardize(LOW, HIGH)), lambda: flow(mf.Standardize(LOW, [9, 9, 9.5])),
    ),
    "bounds": (lambda: flow(mf.Logit(LOW, HIGH)), lambda: flow(mf.Logit(LOW, [100, 100, 101]))),
    "margin": (
        lambda: flow(mf.Logit(LOW, HIGH, margin=1e-3)),
        lambda: flow(mf.Logit(LOW, HIGH, margin=1.0000001e-3)),
    ),
    "columns": (lambda: flow(mf.Log(3, [0])), lambda: flow(mf.Log(3, [1]))),
    "base": (lambda: maf(base=base(1.0)), lambda: maf(base=base(2.0))),
    "shares of a base": (lambda: maf(base=base(1.0)), lambda: maf(base=base(1.0, 0.4))),
    "a transformed base": (lambda: maf(base=affine(0.0)), lambda: maf(base=affine(1.0))),
    "widths of bins": (spline, lambda: spline(min_width=0.01)),
    "slopes": (spline, lambda: spline(min_derivative=0.01)),
    "batch normalisation": (
        lambda: flow(mf.BatchNorm(3)), lambda: flow(mf.BatchNorm(3, epsilon=1e-3)),
    ),
    "an activation": (lambda: maf(activation=torch.sin), lambda: maf(activation=torch.cos)),
    "dependencies": (
        lambda: maf(adjacency=torch.ones(3, 3).tril(-1)),
        lambda: maf(adjacency=torch.eye(3).roll(1, 0).tril(-1)),
    ),
    "a mask": (maf, of_one_mask),
    "weights of a mixture": (
        lambda: mf.Mixture([maf(), maf()], [0.5, 0.5]), lambda: mf.Mixture([maf(), maf()], [1, 2]),
    ),
    "what is trained": (maf, frozen),
    "attributes": (lambda: flow(Power(0.5)), lambda: flow(Power(0.4))),
    "tensors": (lambda: flow(Power(0.5)), lambda: flow(Power(0.5, 2.0))),
}  # fmt: skip


def test_rates_of_groups_tell_a_checkpoint(tmp_path: Path) -> None:
    def train(rate: float, **more: Any) -> mf.History:
        def slower_biases(parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
            biases = [p for p in parameters if p.dim() == 1]
            weights = [p for p in parameters if p.dim() > 1]
            return torch.optim.Adam([{"params": weights}, {"params": biases, "lr": rate}], lr=0.01)

        options = OPTIONS | {"optimizer": slower_biases, "max_epochs": 1} | more
        return mf.fit(maf(), X, checkpoint=tmp_path / "run", **options)

    train(1e-3)
    with pytest.raises(
        ValueError, match=r"group 1 .'lr': 0.001., where it is .* group 1 .'lr': 0.002"
    ):
        train(2e-3)
    assert train(1e-3, max_epochs=2).epochs == 2


@pytest.mark.parametrize("name", GIVEN)
def test_what_a_model_is_given_tells_its_checkpoint(name: str, tmp_path: Path) -> None:
    def train(make: Any, **more: Any) -> tuple[Any, Any]:
        torch.manual_seed(0)
        model = make()
        options = OPTIONS | {"max_epochs": 1, "standardize": False} | more
        return model, mf.fit(model, X.abs(), checkpoint=tmp_path / "run", **options)

    one, other = GIVEN[name]
    model, _ = train(one)
    with pytest.raises(ValueError, match=r"of this call; got .* with the model"):
        train(other)
    # The same model goes on, made anew and as it is now.
    assert train(one, max_epochs=2)[1].epochs == 2
    assert train(lambda: model, max_epochs=3)[1].epochs == 3


BAD = {
    "a number": (lambda path: 3, TypeError, "checkpoint to be None or the path of a file; got int"),
    "a folder": (lambda path: path.parent, IsADirectoryError, "file to write"),
    "no folder": (lambda path: path / "none" / "run", FileNotFoundError, "folder of path"),
    "another file": (lambda path: filled(path, b"a letter"), ValueError, "that fit wrote; got ano"),
    "nothing": (lambda path: filled(path, b""), ValueError, "that fit wrote; got another"),
    "half": (lambda path: filled(path, None, 0.5), ValueError, "damaged or cut short"),
    "a changed byte": (lambda path: filled(path, None, 1.0), ValueError, "damaged or cut short"),
}


def filled(path: Path, content: bytes | None, part: float = 1.0) -> Path:
    if content is None:
        mf.fit(maf(), X, checkpoint=path, **OPTIONS | {"max_epochs": 1})
        content = path.read_bytes()
        content = content[: int(part * len(content)) - 9] + bytes(9)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("name", BAD)
def test_bad_checkpoints(name: str, tmp_path: Path) -> None:
    make, error, message = BAD[name]
    model = maf()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(error, match=message):
        mf.fit(model, X, checkpoint=make(tmp_path / "run"), **OPTIONS)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_an_optimizer_that_cannot_be_read_again_is_refused_at_once(tmp_path: Path) -> None:
    class Odd(torch.optim.SGD):
        def state_dict(self) -> Any:
            return super().state_dict() | {"odd": Path()}

    with pytest.raises(ValueError, match="that can be read again"):
        mf.fit(maf(), X, checkpoint=tmp_path / "run", optimizer=lambda p: Odd(p, 0.1), **OPTIONS)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_ends_training_and_leaves_the_file(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "run"
    mf.fit(maf(), X, checkpoint=path, **OPTIONS | {"max_epochs": 1})
    before = path.read_bytes()

    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    model = maf()
    with pytest.raises(OSError, match="No space left"):
        mf.fit(model, X, checkpoint=path, **OPTIONS)
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["run"]
    assert not model.training  # and has its best weights


# ------------------------------------------------------------------ kills, from outside


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_killed_processes_lose_nothing() -> None:
    root = Path(__file__).parents[2]
    call = [sys.executable, "-m", "tools.kill_processes", "both", "2"]
    run = subprocess.run(call, cwd=root, capture_output=True, text=True, check=False, timeout=500)
    assert run.returncode == 0, run.stderr
    assert [line.partition(" kills")[0] for line in run.stdout.splitlines()] == [
        "fit: 2",
        "save: 2",
    ]


# ------------------------------------------------------------------ callbacks


def test_callbacks_see_what_was_validated_and_may_stop() -> None:
    seen = []

    def note(model: Any, history: mf.History) -> None:
        seen.append((history.epochs, mf.score(model, X[:30]), model.training))

    def stop(_: Any, history: mf.History) -> bool:
        return history.epochs == 3

    model = maf(dropout=0.3)
    options = OPTIONS | {"validation": X[:30], "average": 0.9, "max_epochs": 9}
    history = mf.fit(model, X, callbacks=[stop, note], **options)
    assert (history.epochs, history.stop_reason) == (3, "callback")
    assert [epoch for epoch, *_ in seen] == [1, 2, 3]
    assert [-score for _, score, _ in seen] == pytest.approx(history.validation, rel=1e-6)
    assert not any(training for *_, training in seen)
    assert mf.fit(maf(), X, callbacks=stop, **options).epochs == 3
    for wrong in (3, [note, "note"]):
        with pytest.raises(TypeError, match="Expected callbacks to be"):
            mf.fit(maf(), X, callbacks=wrong, **options)


def test_callbacks_may_save_and_copy_what_drops_units_in_training(tmp_path: Path) -> None:
    """Dropout of fit's own is no part of the model: files had been refused, copies had kept it."""
    found: list[tuple[Any, Any]] = []

    def keep(model: Any, history: Any) -> None:
        mf.save(model, tmp_path / "model.safetensors")
        found.append((mf.load(tmp_path / "model.safetensors"), copy.deepcopy(model)))

    model = maf()
    history = mf.fit(model, X, dropout=0.3, callbacks=keep, validation=X, **OPTIONS)
    assert history.epochs == len(found) == 3
    for (loaded, copied), nll in zip(found, history.validation, strict=True):
        assert -mf.score(loaded, X) == pytest.approx(nll)
        assert torch.equal(loaded().log_prob(X), copied().log_prob(X))
        assert not any(isinstance(module, torch.nn.Dropout) for module in copied.modules())


def test_a_callback_that_stopped_is_not_asked_again(tmp_path: Path) -> None:
    for callback in (lambda *_: True, lambda *_: pytest.fail("Expected no epoch")):
        model = maf()
        history = mf.fit(model, X, callbacks=callback, checkpoint=tmp_path / "run", **OPTIONS)
        assert (history.epochs, history.stop_reason) == (1, "callback")
