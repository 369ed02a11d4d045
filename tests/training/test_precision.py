"""device=, autocast= and compile= of fit: the same training, elsewhere, coarser or compiled."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import made_flows as mf

X = torch.randn(300, 3, generator=torch.Generator().manual_seed(0)) @ torch.tensor(
    [[2.0, 1.0, 0.0], [0.0, 1.0, -1.0], [0.0, 0.0, 0.3]]
)
OPTIONS = {"max_epochs": 4, "learning_rate": 1e-2, "batch_size": 64, "progress": False, "seed": 0}
SMALL = {"hidden_features": (16,)}

MODELS = {
    "MAF": lambda: mf.MAF(3, transforms=2, **SMALL),
    "gated": lambda: mf.MAF(3, transforms=2, bijection=mf.GatedAffine(), **SMALL),
    "GaussianMADE": lambda: mf.GaussianMADE(3, **SMALL),
    "mixture": lambda: mf.GaussianMixtureMADE(3, components=2, **SMALL),
    "actnorm": lambda: mf.MAF(3, transforms=2, normalize="actnorm", **SMALL),
    "spline": lambda: mf.MAF(3, transforms=2, bijection="spline", **SMALL),
    "bits": lambda: mf.BernoulliMADE(3, **SMALL),
    "categories": lambda: mf.CategoricalMADE(3, categories=2, **SMALL),
}


def rows_of(name: str) -> Tensor:
    return (X > 0).float() if name in ("bits", "categories") else X


def fitted(name: str, **options: Any) -> mf.History:
    torch.manual_seed(0)
    return mf.fit(MODELS[name](), rows_of(name), **OPTIONS | options)


@pytest.mark.parametrize("name", MODELS)
def test_bfloat16_trains_to_the_same_likelihood(name: str) -> None:
    """Validation is in single precision; its curve differs by the noise of the steps alone."""
    exact, coarse = fitted(name), fitted(name, autocast=True)
    assert exact.validation != coarse.validation
    assert coarse.validation == pytest.approx(exact.validation, abs=0.05)
    assert coarse.validation[-1] < coarse.validation[0]


@pytest.mark.parametrize("order", [None, [2, 0, 1]])
def test_what_products_give_under_autocast_is_read_in_single_precision(order: Any) -> None:
    made = mf.MADE(3, parameters=2, **SMALL)
    with torch.autocast("cpu", torch.bfloat16):
        parameters = made(X, order=order)
    assert parameters.dtype is torch.float32
    assert made.bfloat16()(X.bfloat16()).dtype is torch.bfloat16  # a network of that precision


def test_knots_of_a_spline_are_in_the_precision_of_its_values() -> None:
    spline, parameters = mf.RationalQuadraticSpline(), torch.randn(300, 3, 23).bfloat16()
    exact = spline.forward(X.double(), parameters.double())
    for found, expected in zip(spline.forward(X, parameters), exact, strict=True):
        torch.testing.assert_close(found.double(), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", [*MODELS, "gated, context"])
def test_scores_under_autocast_are_near(name: str) -> None:
    make = MODELS.get(name, lambda: mf.MAF(3, 2, bijection="gated", **SMALL))
    model = make().eval()
    given = (torch.randn(300, 2),) if model.context else ()
    x = rows_of(name)
    with torch.no_grad():
        exact = model(*given).log_prob(x)
        with torch.autocast("cpu", torch.bfloat16):
            coarse = model(*given).log_prob(x)
    torch.testing.assert_close(coarse, exact, atol=0.1, rtol=0.02)


def test_images_are_read_in_bfloat16_too() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    model = mf.Embedded(mf.MAF(3, 2, **SMALL), net, (2, 2))
    history = mf.fit(model, X, torch.randn(300, 2, 2), autocast=True, **OPTIONS)
    assert history.epochs == 4
    assert all(p.dtype == torch.float32 for p in model.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["GaussianMADE", "actnorm"])
def test_compiled_training_is_training(name: str) -> None:
    plain, compiled = fitted(name), fitted(name, compile="eager")
    assert compiled.validation == pytest.approx(plain.validation, abs=2e-3)


def test_device_is_where_the_model_stays() -> None:
    history = fitted("MAF", device="cpu")
    assert history.train == fitted("MAF").train


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("autocast", [False, True])
def test_device_moves_model_and_rows(autocast: bool) -> None:
    model = MODELS["MAF"]()
    history = mf.fit(model, X, device="cuda", autocast=autocast, **OPTIONS)
    assert next(model.parameters()).is_cuda
    assert history.validation == pytest.approx(fitted("MAF").validation, abs=0.3)


BAD = {
    "a device that is not there": ({"device": "cuda:99"}, ValueError, "device to be one of this"),
    "no device": ({"device": "gpu"}, ValueError, "device to be one of this machine.*'gpu'"),
    "meta": ({"device": "meta"}, ValueError, "device to hold numbers"),
    "a number of bits": ({"autocast": 16}, TypeError, "autocast to be True or False; got int 16"),
    "another backend": ({"compile": "fast"}, ValueError, "compile to name one of .*got fast"),
    "compile as a number": ({"compile": 1}, TypeError, "compile to be True, False or a backend"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name: str) -> None:
    options, error, message = BAD[name]
    with pytest.raises(error, match=message):
        fitted("GaussianMADE", **options)


def test_autocast_is_for_single_precision() -> None:
    with pytest.raises(ValueError, match="Expected autocast to be False"):
        mf.fit(mf.GaussianMADE(3, **SMALL).double(), X, autocast=True, **OPTIONS)


def test_compiled_training_names_what_is_missing() -> None:
    model = mf.GaussianMADE(2, hidden_features=(4,), orders="all")
    x = torch.randn(30, 2)
    x[5, 1] = torch.nan
    with pytest.raises(ValueError, match=r"compile=False, .*; got nan in row 5, column 1"):
        mf.fit(model, x, compile="eager", max_epochs=1)


class Moved(mf.GaussianMADE):
    """Notes where it is moved."""

    def to(self, *args: object, **kwargs: object) -> Moved:
        self.__dict__.setdefault("places", []).append(str(args[0]))
        return super().to(*args, **kwargs)  # type: ignore[return-value]


WRONG: dict[str, tuple[dict[str, object], int]] = {  # and how often the model is moved
    "an argument": ({"patience": 0}, 0),
    "a folder that is not there": ({"checkpoint": "nowhere/run"}, 2),
    "a learning rate": ({"learning_rate": -1.0}, 0),
    "autocast": ({"autocast": 3}, 0),
    "rows": ({"data": torch.full((40, 3), torch.inf)}, 2),
    "a constant column": ({"data": torch.zeros(40, 3)}, 2),
    "validation": ({"validation": 1.5}, 2),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_refused_leaves_the_model_where_it_was(name: str) -> None:
    options, times = WRONG[name]
    model = Moved(3, hidden_features=(8,))
    with pytest.raises((ValueError, TypeError, OSError)):
        mf.fit(model, **{"data": torch.randn(40, 3), "device": "cpu", **OPTIONS, **options})
    assert len(vars(model).get("places", [])) == times
    assert not model.units.active


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_an_optimizer_goes_on_where_the_model_is() -> None:
    model = mf.GaussianMADE(3, hidden_features=(8,))
    adam = torch.optim.Adam(model.parameters(), lr=1e-3)
    for device in ("cpu", "cuda", "cpu"):
        mf.fit(model, torch.randn(60, 3), device=device, optimizer=adam, **OPTIONS)
        kept = [each for state in adam.state.values() for each in state.values() if each.dim()]
        assert {each.device.type for each in kept} == {device}
