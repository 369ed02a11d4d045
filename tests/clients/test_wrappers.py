"""Accelerated models under what other libraries wrap models in: as the originals."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.interop.test_life import expect_as_the_original, step

pytestmark = pytest.mark.filterwarnings("ignore")


def _fabric(model: Any, x: Tensor, context: Tensor, folder: Path) -> Any:
    fabric = pytest.importorskip("lightning_fabric").Fabric(accelerator="cpu", devices=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    wrapped, optimizer = fabric.setup(model, optimizer)
    fabric.backward(-wrapped(x, context).mean())
    optimizer.step()
    fabric.save(folder / "fabric.ckpt", {"model": wrapped})
    fabric.load(folder / "fabric.ckpt", {"model": wrapped})
    return wrapped(x, context), wrapped.module.sample(context)


def _hugging_face(model: Any, x: Tensor, context: Tensor, folder: Path) -> Any:
    with pytest.MonkeyPatch.context() as patch:  # an example of ours has the package's name
        patch.setattr(sys, "path", [path for path in sys.path if not path.endswith("examples")])
        patch.delitem(sys.modules, "accelerate", raising=False)
        accelerator = pytest.importorskip("accelerate").Accelerator(cpu=True)
    wrapped = accelerator.prepare(model)
    step(wrapped, x, context)
    accelerator.save_state(folder / "state")
    accelerator.load_state(folder / "state")
    return wrapped(x, context), accelerator.unwrap_model(wrapped).sample(context)


def _onnx(model: Any, x: Tensor, context: Tensor, folder: Path) -> Any:
    pytest.importorskip("onnxscript")
    program = torch.onnx.export(model, (x, context), dynamo=True, verbose=False)
    return torch.tensor(len(list(program.model.graph)))


WRAPPERS: dict[str, Callable[..., Any]] = {
    "Lightning Fabric": _fabric,
    "Hugging Face Accelerate": _hugging_face,
    "ONNX": _onnx,
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("name", ["nflows", "zuko"])
def test_wrapped_as_the_original(name: str, wrapper: str, tmp_path: Path) -> None:
    expect_as_the_original(name, partial(WRAPPERS[wrapper], folder=tmp_path))
