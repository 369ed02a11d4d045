"""Contexts of any shape through an embedding network: as the model and the network by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import made_flows as mf

SHAPE = (1, 6, 6)
IMAGES = torch.randn(40, *SHAPE, generator=torch.Generator().manual_seed(1))
ROWS = torch.randn(40, 3, generator=torch.Generator().manual_seed(2)) * 5 + 100


@mf.saveable
class Mean(nn.Module):
    """A network of one's own: the mean of a set's points, through a layer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer = nn.Linear(2, width)

    def forward(self, context: Tensor) -> Tensor:
        return self.layer(context).mean(dim=1)


def images() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, stride=2, padding=1, bias=False),
        nn.Sequential(nn.GroupNorm(3, 3), nn.LeakyReLU(0.2), nn.MaxPool2d(3)),
        nn.Flatten(),
        nn.LayerNorm(3),
        nn.SiLU(),
        nn.Linear(3, 4),
    )


HIDDEN = {"hidden_features": (8,)}
MODELS = {
    "MAF": lambda: mf.MAF(3, 4, transforms=2, **HIDDEN),
    "IAF": lambda: mf.IAF(3, 4, transforms=1, **HIDDEN),
    "density": lambda: mf.GaussianMADE(3, 4, orders="all", **HIDDEN),
    "mixture": lambda: mf.Mixture([mf.GaussianMADE(3, 4, **HIDDEN) for _ in range(2)]),
}
NETS = {
    "images": (images, SHAPE, IMAGES),
    "sets": (lambda: Mean(4), (5, 2), torch.randn(40, 5, 2)),
    "tokens": (
        lambda: nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(12, 4)),
        3,
        torch.arange(120).reshape(40, 3) % 9,
    ),
}


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("name", MODELS)
def test_is_the_model_of_the_embeddings(name: str, net: str, tmp_path: Path) -> None:
    make, shape, contexts = NETS[net]
    model = mf.Embedded(MODELS[name](), make(), shape)
    options = {"max_epochs": 1, "progress": False, "seed": 0}
    history = mf.fit(model, ROWS, contexts, **options)
    assert history.epochs == 1
    embeddings = model.net(contexts)
    assert torch.equal(model(contexts).log_prob(ROWS), model.model(embeddings).log_prob(ROWS))
    assert mf.score(model, ROWS, contexts) == pytest.approx(
        model(contexts).log_prob(ROWS).mean().item(), rel=1e-6
    )
    batch = contexts.reshape(4, 10, *contexts.shape[1:])
    scores = model(batch).log_prob(ROWS.reshape(4, 10, 3))
    torch.testing.assert_close(scores.flatten(), model(contexts).log_prob(ROWS))
    for context, expected in ((batch, (2, 4, 10, 3)), (contexts[0], (2, 3))):
        torch.manual_seed(0)
        drawn = model(context).sample((2,))
        torch.manual_seed(0)
        rows = context.reshape(-1, *contexts.shape[1:])
        by_hand = model.net(rows).reshape(*context.shape[: len(expected) - 2], 4)
        assert torch.equal(drawn, model.model(by_hand).sample((2,)))
        assert drawn.shape == expected
    assert model.support is not None
    assert mf.accelerate(model) is model
    mf.save(model, tmp_path / "model.safetensors")
    again = mf.load(tmp_path / "model.safetensors")
    assert torch.equal(again(contexts).log_prob(ROWS), model(contexts).log_prob(ROWS))
    for made in (module for module in model.modules() if isinstance(module, mf.MADE)):
        mf.check_autoregressive(made, context=embeddings[0].detach())


@pytest.mark.parametrize("name", ["MAF", "density", "mixture"])
def test_data_are_standardised_and_embeddings_are_not(name: str) -> None:
    model = mf.Embedded(MODELS[name](), images(), SHAPE)
    mf.fit(model, ROWS, IMAGES, max_epochs=1, validation=None, progress=False, seed=0)
    for units in model.standardizable():
        torch.testing.assert_close(units.location, ROWS.double().mean(0), rtol=1e-4, atol=0)
        assert units.context_location is None


def test_a_context_of_one_size_may_be_a_number_of_numpy(tmp_path: Path) -> None:
    model = mf.Embedded(MODELS["MAF"](), nn.Linear(3, 4), np.int64(3))
    assert model.context_shape == (3,)
    mf.save(model, tmp_path / "model.safetensors")


def test_autocast_and_the_meta_device() -> None:
    model = mf.Embedded(MODELS["MAF"](), images(), SHAPE)
    with torch.autocast("cpu", torch.bfloat16):
        assert model.embed(IMAGES).dtype == torch.float32
    rows = model.to("meta")(IMAGES.to("meta")).log_prob(ROWS.to("meta"))
    assert rows.is_meta
    assert rows.shape == (40,)


def test_missing_features_given_images() -> None:
    model = mf.Embedded(MODELS["density"](), images(), SHAPE).eval()
    x = ROWS[:4].clone()
    x[:, 1] = torch.nan
    filled = model.impute(x, 5, context=IMAGES[:4])
    assert filled.shape == (5, 4, 3)
    assert torch.equal(filled[:, :, [0, 2]], x[:, [0, 2]].expand(5, 4, 2))
    assert torch.equal(
        model(IMAGES[:4]).log_prob(x), model.model(model.net(IMAGES[:4])).log_prob(x)
    )
    with pytest.raises(TypeError, match=r"Expected the model that is embedded .*got MAF"):
        mf.Embedded(MODELS["MAF"](), images(), SHAPE).impute(x, context=IMAGES[:4])


class Pair(nn.Module):
    def forward(self, context: Tensor) -> tuple[Tensor, Tensor]:
        return context, context


MODEL = MODELS["MAF"]
EMBEDDED = mf.Embedded(MODEL(), images(), SHAPE)
with_nan = IMAGES.clone()
with_nan[3, 0, 1, 2] = torch.nan
BAD = {
    # name: (call, error, message)
    "no model": (lambda: mf.Embedded(images(), images(), SHAPE), TypeError, "model to be a model"),
    "no context": (
        lambda: mf.Embedded(mf.MAF(3), images(), SHAPE), ValueError, "made with a context",
    ),
    "no network": (lambda: mf.Embedded(MODEL(), "net", SHAPE), TypeError, "net to be a torch"),
    "no shape": (lambda: mf.Embedded(MODEL(), images(), ()), ValueError, "a dimension; got none"),
    "a size of zero": (
        lambda: mf.Embedded(MODEL(), images(), (1, 0)), ValueError, r"context_shape\[1\] to be a",
    ),
    "called without": (EMBEDDED, TypeError, r"context .*\(\.\.\., 1, 6, 6\); got None"),
    "another shape": (
        lambda: EMBEDDED(IMAGES[..., 1:]), ValueError, r"\(\.\.\., 1, 6, 6\); got \(40, 1, 6, 5\)",
    ),
    "NaN": (lambda: EMBEDDED(with_nan), ValueError, "context to be finite; got nan in row 3, 0, 1"),
    "a narrow embedding": (
        lambda: mf.Embedded(MODEL(), nn.Flatten(), SHAPE)(IMAGES), ValueError,
        r"net to give embeddings of shape \(40, 4\).*got \(40, 36\)",
    ),
    "a pair": (lambda: mf.Embedded(MODEL(), Pair(), 4)(torch.zeros(4)), TypeError, "net to give"),
    "fit: flat contexts": (
        lambda: mf.fit(EMBEDDED, ROWS, IMAGES.flatten(1), progress=False), ValueError,
        r"the context of data of shape \(N, 1, 6, 6\); got \(40, 36\)",
    ),
    "fit: no contexts": (
        lambda: mf.fit(EMBEDDED, ROWS, progress=False), ValueError, r"shape \(N, 1, 6, 6\); got no",
    ),
    "fit: NaN": (
        lambda: mf.fit(EMBEDDED, ROWS, with_nan, progress=False), ValueError,
        "the context of data to be finite; got nan in row 3, 0, 1, column 2",
    ),
    "fit: a flow alone": (
        lambda: mf.fit(MODEL(), ROWS, IMAGES, progress=False), ValueError,
        r"the context of data of shape \(N, 4\); got \(40, 1, 6, 6\)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name: str) -> None:
    call, error, message = BAD[name]
    with pytest.raises(error, match=message):
        call()


def of_fives() -> mf.Embedded:
    return mf.Embedded(MODELS["MAF"](), nn.Linear(5, 4), 5)


def of_tokens() -> mf.Embedded:
    return mf.Embedded(MODELS["MAF"](), NETS["tokens"][0](), 3)


FIVES = torch.ones(40, 5)
NOT_READ = {
    "doubles": (of_fives, FIVES.double(), "torch.float32 for numbers; got torch.float64"),
    "halves": (of_fives, FIVES.half(), r"context .*torch.float32 for numbers; got torch.float16"),
    "integers": (of_fives, FIVES.long(), r"context .*torch.float32 for numbers; got torch.int64"),
    "bytes for tokens": (of_tokens, torch.ones(40, 3).byte(), "torch.int32 for tokens, .*uint8"),
    "numbers for tokens": (of_tokens, torch.ones(40, 3), "int32 for tokens; got torch.float32"),
    "complex": (of_fives, FIVES.cfloat(), "Expected context to be real; got torch.complex64"),
    "sparse": (of_fives, FIVES.to_sparse(), "Expected context to be dense; got .*sparse"),
    "a finer network": (
        lambda: mf.Embedded(MODELS["MAF"](), nn.Linear(5, 4).double(), 5), FIVES.double(),
        "Expected net to give embeddings of torch.float32, .*got .*torch.float64",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NOT_READ)
def test_contexts_of_a_dtype_that_is_not_read_are_refused(name: str) -> None:
    make, context, message = NOT_READ[name]
    with pytest.raises(TypeError, match=message):
        make()(context)


def test_other_errors_of_a_network_are_its_own() -> None:
    model = mf.Embedded(MODELS["MAF"](), nn.Linear(6, 4), 5)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        model(FIVES)
    with pytest.raises(IndexError):
        of_tokens()(torch.full((40, 3), 100))
