"""What programs do with whole models, done with accelerated ones: as with the originals."""

from __future__ import annotations

import copy
import io
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nflows.distributions as nd
import nflows.flows as nfl
import nflows.transforms as nt
import pytest
import torch
import torch.distributed as dist
import zuko
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint

import made_flows as mf

D, C, ROWS = 4, 2, 6


class Density(nn.Module):
    """Scores rows as its call, and draws, as programs wrap their flows."""

    def __init__(self, flow: Any) -> None:
        super().__init__()
        self.flow = flow

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        if isinstance(self.flow, nfl.Flow):
            return self.flow.log_prob(x, context)
        return self.flow(context).log_prob(x)

    def sample(self, context: Tensor) -> Tensor:
        torch.manual_seed(3)
        if isinstance(self.flow, nfl.Flow):
            return self.flow.sample(3, context).transpose(0, 1)
        return self.flow(context).sample((3,))


def _nflows() -> Any:
    layers = [nt.MaskedAffineAutoregressiveTransform(D, 10, C), nt.ReversePermutation(D)] * 2
    return nfl.Flow(nt.CompositeTransform(layers), nd.StandardNormal([D]))


FLOWS: dict[str, Callable[[], Any]] = {
    "nflows": _nflows,
    "zuko": lambda: zuko.flows.MAF(D, C, transforms=2, hidden_features=(10,)),
    "zuko, spline": lambda: zuko.flows.NSF(D, C, transforms=1, hidden_features=(10,), bins=4),
}


def step(model: Any, x: Tensor, context: Tensor) -> None:
    """A step of training through whatever wraps the model."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    (-model(x, context).mean()).backward()
    optimizer.step()
    optimizer.zero_grad()


@contextmanager
def group() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def _distributed(model: Any, x: Tensor, context: Tensor) -> Any:
    with group():
        wrapped = nn.parallel.DistributedDataParallel(model)
        step(wrapped, x, context)
        return wrapped(x, context).detach(), wrapped.module.sample(context)


def _data_parallel(model: Any, x: Tensor, context: Tensor) -> Any:
    wrapped = nn.DataParallel(model)
    step(wrapped, x, context)
    return wrapped(x, context), wrapped.module.sample(context)


def _averaged(model: Any, x: Tensor, context: Tensor) -> Any:
    averages = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    for _ in range(2):
        step(model, x, context)
        averages.update_parameters(model)
    return averages(x, context), averages.module.sample(context), model.sample(context)


def _exported(model: Any, x: Tensor, context: Tensor) -> Any:
    return torch.export.export(model, (x, context), strict=False).module()(x, context)


def _saved(model: Any, x: Tensor, context: Tensor) -> Any:
    step(model, x, context)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    fresh = copy.deepcopy(model)
    step(fresh, 2 * x, context)
    file.seek(0)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    return fresh(x, context), fresh.sample(context)


def _changed_in_place(model: Any, x: Tensor, context: Tensor) -> Any:
    found = []
    for _ in range(3):  # weights that change between samples
        step(model, x, context)
        found.append(model.sample(context))
    return found


def _to_double_and_back(model: Any, x: Tensor, context: Tensor) -> Any:
    scores = model.double()(x.double(), context.double())
    return scores, model.float()(x, context), model.sample(context)


def expect_as_the_original(name: str, use: Callable[[Any, Tensor, Tensor], Any]) -> None:
    """Do something with a flow as it is and accelerated: the same comes of it."""
    torch.manual_seed(0)
    model = Density(FLOWS[name]())
    fast = mf.accelerate(copy.deepcopy(model))
    x, context = torch.randn(ROWS, D), torch.randn(ROWS, C)
    results = []
    for each in (model, fast):
        each.sample(context)  # what is read of the layers is there already
        try:
            results.append(use(each, x, context))
        except Exception as error:
            results.append(error)
    if isinstance(results[0], Exception):
        pytest.skip(f"the original fails: {results[0]!s:.60}")
    assert mf.acceleration(fast).fast
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-5)


LIVES: dict[str, Callable[[Any, Tensor, Tensor], Any]] = {
    "averaged models": _averaged,
    "checkpointing": lambda m, x, c: torch.autograd.grad(
        checkpoint(m, x, c, use_reentrant=False).sum(), list(m.parameters())
    ),
    "data parallel": _data_parallel,
    "distributed data parallel": _distributed,
    "double and back": _to_double_and_back,
    "functional call": lambda m, x, c: torch.func.functional_call(
        m, {k: 0.9 * v for k, v in m.named_parameters()}, (x, c)
    ),
    "state dict": _saved,
    "torch.export": _exported,
    "training between samples": _changed_in_place,
}


@pytest.mark.filterwarnings("ignore")  # torch's own: of process groups, and of the compiler
@pytest.mark.parametrize("life", LIVES)
@pytest.mark.parametrize("name", FLOWS)
def test_life_goes_on(name: str, life: str) -> None:
    if "distributed" in life and not dist.is_gloo_available():
        pytest.skip("needs torch's gloo")
    expect_as_the_original(name, LIVES[life])


def test_files_without_this_library(tmp_path: Path) -> None:
    flow = mf.accelerate(zuko.flows.MAF(D, transforms=1, hidden_features=(8,)))
    torch.save(flow.state_dict(), tmp_path / "state.pt")
    torch.save(flow, tmp_path / "fast.pt")
    torch.save(mf.undo_acceleration(copy.deepcopy(flow)), tmp_path / "restored.pt")
    program = f"""
        import sys
        sys.modules["made_flows"] = None
        import torch, zuko
        flow = zuko.flows.MAF({D}, transforms=1, hidden_features=(8,))
        flow.load_state_dict(torch.load("state.pt"))
        print(torch.load("restored.pt", weights_only=False)().sample().shape)
        try:
            torch.load("fast.pt", weights_only=False)
        except ModuleNotFoundError as error:
            print("made_flows" in str(error))
    """
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(program)],
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert run.stdout == f"torch.Size([{D}])\nTrue\n", run.stderr
