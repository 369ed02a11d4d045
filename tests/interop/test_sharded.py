"""Networks whose weights are sharded by torch's ``fully_shard``, as own and accelerated models."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard

import made_flows as mf
from made_flows.inverse.d_pass import SlowInverseWarning
from tests.helpers.foreign_layers import LAYERS, make

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not dist.is_gloo_available(), reason="needs torch's gloo"),
    pytest.mark.filterwarnings("ignore"),  # torch's own, of a process group of one
]

MODELS = {
    "GaussianMADE": lambda: mf.GaussianMADE(4),
    "MAF": lambda: mf.MAF(4, transforms=2),
    "IAF": lambda: mf.IAF(4, transforms=2),
}


@pytest.fixture(scope="module")
def mesh() -> Iterator[DeviceMesh]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def _networks(model: Any) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, mf.MADE)]


@pytest.mark.parametrize("name", MODELS)
def test_own_models_train_and_sample(name: str, mesh: DeviceMesh) -> None:
    whole = MODELS[name]()
    sharded = copy.deepcopy(whole)
    for model in (whole, sharded):
        model().log_prob(torch.zeros(2, 4))
        model().sample((2,))
    for network in _networks(sharded):
        fully_shard(network, mesh=mesh)
    x = torch.randn(8, 4)
    trained = [(m, torch.optim.SGD(m.parameters(), lr=0.1)) for m in (whole, sharded)]
    for _ in range(2):
        results = []
        for model, optimizer in trained:
            loss = -model().log_prob(x).mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            torch.manual_seed(1)
            results.append((loss.detach(), model().sample((5,))))
        torch.testing.assert_close(*results)


@pytest.mark.parametrize("name", ["nflows", "normflows", "zuko"])
def test_accelerated_networks_compute_what_they_did(name: str, mesh: DeviceMesh) -> None:
    row = LAYERS[name]
    layer = make(row)
    sharded = mf.accelerate(copy.deepcopy(layer))
    u = row.values(4, torch.float64)
    row.slow(sharded, u.clone(), None)
    net = next(m for m in sharded.children() if any(True for _ in m.parameters()))
    fully_shard(net, mesh=mesh)
    for _ in range(2):
        torch.testing.assert_close(row.slow(sharded, u, None), row.slow(layer, u, None))
        row.slow(sharded, u, None)[0].square().sum().backward()


def test_hooks_of_sharding_are_said_to_be_slow(mesh: DeviceMesh) -> None:
    model = mf.MAF(3)
    for network in _networks(model):
        fully_shard(network, mesh=mesh)
    with pytest.warns(SlowInverseWarning, match="hooks|forward"):
        model().sample((2,))


def test_a_model_sharded_as_a_whole_would_not_train_and_is_refused(mesh: DeviceMesh) -> None:
    model = mf.MAF(3)
    fully_shard(model, mesh=mesh)
    with pytest.raises(TypeError, match="Expected the model to be sharded by networks"):
        model()


def test_networks_and_then_the_whole_are_sharded(mesh: DeviceMesh) -> None:
    model = mf.GaussianMADE(3)
    fully_shard(model.made, mesh=mesh)
    fully_shard(model, mesh=mesh)
    x, before = torch.randn(5, 3), [p.to_local().clone() for p in model.made.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    (-model().log_prob(x).mean()).backward()
    optimizer.step()
    after = [p.to_local() for p in model.made.parameters()]
    assert not any(torch.equal(*pair) for pair in zip(before, after, strict=True))
