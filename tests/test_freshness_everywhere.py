"""Every way in which people change weights, crossed with every way to ask a model: never stale.

A model is asked, changed and asked again; a twin takes the same changes without ever having been
asked. Both must give the same numbers.
"""

from __future__ import annotations

import copy
import gc
import math
import pickle
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torch.nn.utils.stateless import _reparametrize_module

import made_flows as mf
import made_flows.nflows as mn
import made_flows.pyro as mp
from made_flows import _cache
from tests.helpers import foreign_layers as foreign

D, C, ROWS = 5, 3, 4

Change = Callable[[nn.Module], AbstractContextManager[Any] | None]
"""Changes a model, for good or within what it returns."""

# ---------------------------------------------------------------------- ways to change weights


def _layers(model: nn.Module) -> list[Any]:
    """The masked layers of a model, of whatever library."""
    return [part for part in model.modules() if "mask" in part._buffers]


def _random(like: Tensor) -> Tensor:
    return torch.randn(like.shape, dtype=like.dtype)


def _changed(model: nn.Module) -> dict[str, Tensor]:
    """Other weights for a model."""
    return {name: p.detach() + 0.1 * _random(p) for name, p in model.named_parameters()}


def _each(change: Callable[[nn.Parameter], Any]) -> Callable[[nn.Module], None]:
    def run(model: nn.Module) -> None:
        for parameter in model.parameters():
            change(parameter)

    return run


def _step(make: Callable[..., torch.optim.Optimizer]) -> Callable[[nn.Module], None]:
    def run(model: nn.Module) -> None:
        for parameter in model.parameters():
            parameter.grad = _random(parameter)
        make(model.parameters(), lr=0.05).step()

    return run


def _data_replaced(p: nn.Parameter) -> None:
    p.data = p.data * 1.1


def _data_swapped(p: nn.Parameter) -> None:
    """As averages of weights are swapped in."""
    average = p.data.clone().mul_(0.9)
    p.data, average = average, p.data


def _transposed(p: nn.Parameter) -> None:
    if p.dim() == 2 and p.shape[0] == p.shape[1]:
        p.data = p.data.t()
    else:
        p.data = p.data * 0.8


def _clipped(p: nn.Parameter) -> None:
    p.data.clamp_(max=float(p.data.max()) * 0.9)


def _through_numpy(p: nn.Parameter) -> None:
    p.detach().numpy()[...] *= 0.9


def _resized(p: nn.Parameter) -> None:
    values, storage = p.detach() * 0.9, p.untyped_storage()
    size = storage.nbytes()
    storage.resize_(0)
    storage.resize_(size)
    p.data.copy_(values)


def _exchanged(p: nn.Parameter) -> None:
    torch.utils.swap_tensors(p, nn.Parameter(p.detach() * 0.9))


def _in_inference_mode(model: nn.Module) -> None:
    with torch.inference_mode():
        for parameter in model.parameters():
            parameter.mul_(0.9)


def _load(model: nn.Module) -> None:
    model.load_state_dict({**model.state_dict(), **_changed(model)})


def _assign(model: nn.Module) -> None:
    model.load_state_dict({**model.state_dict(), **_changed(model)}, assign=True)


def _new_parameters(model: nn.Module) -> None:
    for layer in _layers(model):
        layer.weight = nn.Parameter(layer.weight.detach() * 0.9)
        if layer.bias is not None:
            layer.bias = nn.Parameter(layer.bias.detach() + 0.1)


def _pruned(model: nn.Module) -> None:
    for layer in _layers(model):
        prune.random_unstructured(layer, "weight", 0.2)


def _parametrized(by: Callable[..., Any]) -> Callable[[nn.Module], None]:
    def run(model: nn.Module) -> None:
        for layer in _layers(model):
            if hasattr(layer, "parametrizations"):
                parametrized = layer.parametrizations.weight
                for original in parametrized.parameters():
                    original.data.mul_(torch.rand_like(original) + 0.5)
            else:
                by(layer, "weight")
                for original in layer.parametrizations.weight.parameters():
                    original.data.mul_(torch.rand_like(original) + 0.5)

    return run


def _old_weight_norm(model: nn.Module) -> None:
    for layer in _layers(model):
        if "weight_g" not in layer._parameters:
            nn.utils.weight_norm(layer)
        layer.weight_g.data.mul_(0.9)


def _some_connections(mask: Tensor) -> Tensor:
    return mask * (torch.rand(mask.shape) < 0.7).to(mask.dtype)


def _mask_in_place(model: nn.Module) -> None:
    for layer in _layers(model):
        layer.mask.copy_(_some_connections(layer.mask))


def _mask_through_data(model: nn.Module) -> None:
    for layer in _layers(model):
        layer.mask.data.copy_(_some_connections(layer.mask))


def _mask_assigned(model: nn.Module) -> None:
    for layer in _layers(model):
        layer.mask = _some_connections(layer.mask)


def _mask_data_replaced(model: nn.Module) -> None:
    for layer in _layers(model):
        layer.mask.data = _some_connections(layer.mask)


def _mask_loaded(model: nn.Module) -> None:
    masks = {n: _some_connections(b) for n, b in model.named_buffers() if n.endswith("mask")}
    model.load_state_dict({**model.state_dict(), **masks}, assign=True)


OF_MASKS = (_mask_in_place, _mask_through_data, _mask_assigned, _mask_data_replaced, _mask_loaded)


def _functional(model: nn.Module) -> AbstractContextManager[Any]:
    """What torch.func.functional_call does while the model is called."""
    return _reparametrize_module(model, _changed(model))  # type: ignore[no-any-return]


CHANGES: dict[str, Change] = {
    "SGD": _step(torch.optim.SGD),
    "Adam, fused": _step(lambda p, lr: torch.optim.Adam(p, lr, fused=True)),
    "in place": _each(lambda p: p.detach().mul_(0.9)),
    "through .data": _each(lambda p: p.data.mul_(0.9)),
    "signs through .data": _each(lambda p: p.data.neg_()),
    ".data replaced": _each(_data_replaced),
    ".data swapped": _each(_data_swapped),
    ".data transposed": _each(_transposed),
    "clipped through .data": _each(_clipped),
    "through NumPy": _each(_through_numpy),
    "storage resized": _each(_resized),
    "in inference mode": _in_inference_mode,
    "load_state_dict": _load,
    "load_state_dict, assign": _assign,
    "new parameters": _new_parameters,
    "pruned": _pruned,
    "weight norm": _parametrized(parametrizations.weight_norm),
    "spectral norm": _parametrized(parametrizations.spectral_norm),
    "weight norm, the old one": _old_weight_norm,
    "mask in place": _mask_in_place,
    "mask through .data": _mask_through_data,
    "mask assigned": _mask_assigned,
    "mask's .data replaced": _mask_data_replaced,
    "mask loaded, assign": _mask_loaded,
    "functional_call": _functional,
}

# ---------------------------------------------------------------------- ways to ask


@dataclass(frozen=True)
class Question:
    """A model and what it is asked.

    Args:
        make: makes the model.
        ask: the model's answer.
        other_orders: whether it asks for other orders than the network's own, in which nothing
            says what masks are that were changed by hand.
    """

    make: Callable[[], Any]
    ask: Callable[[Any], Tensor]
    other_orders: bool = False


def _data() -> Tensor:
    return torch.randn(ROWS, D, dtype=torch.float64)


def _context() -> Tensor:
    return torch.randn(ROWS, C, dtype=torch.float64)


def _shaken(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    def shaken() -> nn.Module:
        model = make().double().eval()
        for parameter in model.parameters():
            width = max(parameter.shape[-1], 4) if parameter.dim() else 4
            parameter.data.uniform_(-1, 1).mul_(1.5 / math.sqrt(width))
        return model

    return shaken


_SMALL: dict[str, Any] = {"hidden_features": (12, 10)}


def _impute(model: Any) -> Tensor:
    x = _data()
    observed = torch.rand(x.shape) < 0.5
    return model.impute(x, observed=observed)  # type: ignore[no-any-return]


def _conditional(model: Any) -> Tensor:
    x = _data()
    observed = torch.rand(x.shape) < 0.5
    return model.conditional(x, observed).sample((3,))  # type: ignore[no-any-return]


def _gradient(model: Any) -> Tensor:
    """Of a sample with respect to the context, by the transposed solve."""
    context = _context().requires_grad_()
    (gradient,) = torch.autograd.grad(model(context).rsample().square().sum(), context)
    return gradient


def _layer(layer: Any, values: Tensor) -> Tensor:
    """The slow direction of a layer of nflows."""
    return layer.inverse(values)[0]  # type: ignore[no-any-return]


def _conditional_layer(layer: Any) -> Tensor:
    return layer.inverse(_data(), _context())[0]  # type: ignore[no-any-return]


def _slow(row: foreign.ForeignLayer) -> Question:
    def ask(layer: Any) -> Tensor:
        return row.slow(layer, row.values(ROWS, torch.float64), row.given(ROWS, torch.float64))[0]

    def make() -> nn.Module:
        return mf.accelerate(row.make())

    return Question(_shaken(make), ask)


def _pyro(make: Callable[[], Any], conditional: bool = False) -> Question:
    def ask(transform: Any) -> Tensor:
        if conditional:
            transform = transform.condition(_context())
        return transform.inv(_data())  # type: ignore[no-any-return]

    return Question(_shaken(make), ask)


QUESTIONS: dict[str, Question] = {
    "MADE, log_prob": Question(
        _shaken(lambda: mf.GaussianMADE(D, **_SMALL, residual=True, direct=True)),
        lambda m: m().log_prob(_data()),
    ),
    "MADE, log_prob, large layers": Question(
        _shaken(lambda: mf.GaussianMADE(D, hidden_features=(450, 450))),
        lambda m: m().log_prob(_data()),
    ),
    "MADE, log_prob without gradients": Question(
        _shaken(lambda: mf.GaussianMADE(D, **_SMALL, residual=True, direct=True)),
        torch.no_grad()(lambda m: m().log_prob(_data())),
    ),
    "MAF, log_prob without gradients": Question(
        _shaken(lambda: mf.MAF(D, C, **_SMALL, transforms=2)),
        torch.no_grad()(lambda m: m(_context()).log_prob(_data())),
    ),
    "MADE, sample": Question(
        _shaken(lambda: mf.GaussianMADE(D, **_SMALL)), lambda m: m().sample((ROWS,))
    ),
    "MADE, rsample": Question(
        _shaken(lambda: mf.GaussianMADE(D, C, **_SMALL, direct=True)),
        lambda m: m(_context()).rsample(),
    ),
    "MADE, gradient": Question(_shaken(lambda: mf.GaussianMADE(D, C, **_SMALL)), _gradient),
    "mixture MADE, sample": Question(
        _shaken(lambda: mf.GaussianMixtureMADE(D, **_SMALL, components=3)),
        lambda m: m().sample((ROWS,)),
    ),
    "any order, log_prob": Question(
        _shaken(lambda: mf.GaussianMADE(D, **_SMALL, orders="all")), lambda m: m().log_prob(_data())
    ),
    "any order, impute": Question(
        _shaken(lambda: mf.GaussianMADE(D, **_SMALL, orders="all")), _impute, True
    ),
    "any order, conditional": Question(
        _shaken(lambda: mf.GaussianMADE(D, **_SMALL, orders="all")), _conditional, True
    ),
    "MAF, sample": Question(
        _shaken(lambda: mf.MAF(D, transforms=2, **_SMALL)), lambda m: m().sample((ROWS,))
    ),
    "MAF, spline, sample": Question(
        _shaken(lambda: mf.MAF(D, transforms=1, **_SMALL, bijection="spline")),
        lambda m: m().sample((ROWS,)),
    ),
    "IAF, log_prob": Question(
        _shaken(lambda: mf.IAF(D, C, transforms=2, **_SMALL)),
        lambda m: m(_context()).log_prob(_data()),
    ),
    "nflows, accelerated": _slow(foreign.LAYERS["nflows"]),
    "nflows, batch norm, accelerated": _slow(foreign.LAYERS["nflows, batch norm, feedforward"]),
    "normflows, accelerated": _slow(foreign.LAYERS["normflows, context"]),
    "Pyro, accelerated": _slow(foreign.LAYERS["Pyro, skip, context"]),
    "zuko, accelerated": _slow(foreign.LAYERS["zuko, context"]),
    "nflows, drop-in": Question(
        _shaken(lambda: mn.MaskedAffineAutoregressiveTransform(D, 12, context_features=C)),
        _conditional_layer,
    ),
    "nflows, drop-in spline": Question(
        _shaken(
            lambda: mn.MaskedPiecewiseRationalQuadraticAutoregressiveTransform(
                D, 12, num_bins=4, tails="linear", tail_bound=3.0
            )
        ),
        lambda layer: _layer(layer, _data()),
    ),
    "nflows, drop-in mixture": Question(
        _shaken(lambda: mn.MixtureOfGaussiansMADE(D, 12, num_mixture_components=3)),
        lambda m: m.sample(ROWS),
    ),
    "Pyro, drop-in": _pyro(lambda: mp.affine_autoregressive(D, hidden_dims=[12, 10])),
    "Pyro, drop-in of a context": _pyro(
        lambda: mp.conditional_affine_autoregressive(D, C, hidden_dims=[12, 10]), True
    ),
    "Pyro, drop-in spline": _pyro(
        lambda: mp.SplineAutoregressive(
            D, mp.AutoRegressiveNN(D, [12], param_dims=[4, 4, 3, 4]), count_bins=4
        )
    ),
    "Pyro, MADE in a drop-in": _pyro(
        lambda: mp.AffineAutoregressive(mf.MADE(D, hidden_features=(12, 10), residual=True))
    ),
    "Pyro, network of Pyro's in a drop-in": _pyro(
        lambda: mp.AffineAutoregressive(foreign.AutoRegressiveNN(D, [12, 10]))
    ),
}


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _made(question: Question) -> Any:
    torch.manual_seed(1)
    return question.make()


def _asked(question: Question, model: Any) -> Tensor:
    torch.manual_seed(2)
    with _quiet():
        return question.ask(model).detach()


def _change(change: Change, model: Any, times: int) -> AbstractContextManager[Any]:
    """Change a model some times more; within, it is as it is after the last change."""
    torch.manual_seed(3 + times)
    with _quiet():
        return change(model) or nullcontext()


def _twin_asked(question: Question, change: Change, times: int) -> Tensor:
    """The answer of a model that is asked for the first time after all changes."""
    twin = _made(question)
    for earlier in range(times):
        with _change(change, twin, earlier):
            pass
    with _change(change, twin, times):
        return _asked(question, twin)


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("question", QUESTIONS.values(), ids=QUESTIONS)
def test_an_answer_is_never_of_old_weights(question: Question, change: Change) -> None:
    model = _made(question)
    first = before = _asked(question, model)
    if question.other_orders and change in OF_MASKS:
        change(model)
        for _ in range(2):
            with pytest.raises(ValueError, match=r"the mask of .* changed by hand"):
                _asked(question, model)
        return
    for times in range(2):
        with _change(change, model, times):
            after = _asked(question, model)
            again = _asked(question, model)
        torch.testing.assert_close(
            after, _twin_asked(question, change, times), rtol=1e-9, atol=1e-9
        )
        assert torch.equal(again, after)
        assert not torch.equal(after, before)
        before = after
    if change is _functional:
        assert torch.equal(_asked(question, model), first)


EXCHANGED = (
    "MADE, log_prob, large layers",
    "any order, conditional",
    "MAF, spline, sample",
    "nflows, batch norm, accelerated",
    "zuko, accelerated",
    "nflows, drop-in mixture",
)


@pytest.mark.parametrize("name", EXCHANGED)
def test_tensors_may_be_exchanged_which_torch_refuses_where_they_are_looked_at(name: str) -> None:
    test_an_answer_is_never_of_old_weights(QUESTIONS[name], _each(_exchanged))


COMPARED = ("signs through .data", "mask through .data", "new parameters", "pruned")
IN_TURN = list(zip(QUESTIONS, cycle(COMPARED)))  # the digest knows neither question nor change


@pytest.mark.parametrize(("question", "change"), IN_TURN)
def test_so_it_is_without_the_compiled_digest(
    question: str, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_cache, "_compiled_digest", lambda: None)
    test_an_answer_is_never_of_old_weights(QUESTIONS[question], CHANGES[change])


# ---------------------------------------------------------------------- modes


def _loss(question: Question, model: Any) -> Tensor:
    return question.ask(model).square().sum()


WITHOUT_GRADIENT = {name: q for name, q in QUESTIONS.items() if q.ask is not _gradient}


@pytest.mark.parametrize("question", WITHOUT_GRADIENT.values(), ids=WITHOUT_GRADIENT)
def test_what_is_first_asked_in_inference_mode_can_be_trained(question: Question) -> None:
    model, twin = _made(question), _made(question)
    with torch.inference_mode():
        _asked(question, model)
    gradients = []
    for each in (model, twin):
        torch.manual_seed(2)
        loss = _loss(question, each)
        if loss.requires_grad:  # samples carry none
            loss.backward()
        gradients.append([p.grad for p in each.parameters()])
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("question", WITHOUT_GRADIENT.values(), ids=WITHOUT_GRADIENT)
def test_a_model_made_in_inference_mode_answers_like_any_other(question: Question) -> None:
    expected = _asked(question, _made(question))
    with torch.inference_mode():
        model = _made(question)
        torch.testing.assert_close(_asked(question, model), expected)
    with torch.no_grad():
        torch.testing.assert_close(_asked(question, model), expected)
    with torch.inference_mode():
        twin = _made(question)
        for each in (model, twin):
            _each(lambda p: p.mul_(0.9))(each)  # no version counts this
    with torch.no_grad():
        torch.testing.assert_close(_asked(question, model), _asked(question, twin))


# ---------------------------------------------------------------------- what is kept


def test_nothing_that_is_kept_keeps_a_model() -> None:
    """All models at once, as collecting what nobody uses takes longer than to ask one."""
    tensors = []
    for name, question in QUESTIONS.items():
        model = _made(question)
        _asked(question, model)
        tensors += [(name, weakref.ref(t)) for t in (*model.parameters(), *model.buffers())]
        del model
    for _ in range(2):  # tensors that autograd knew are only let go of by the first
        gc.collect()
    assert not {name for name, tensor in tensors if tensor() is not None}


@pytest.mark.parametrize("question", QUESTIONS.values(), ids=QUESTIONS)
def test_nothing_that_is_kept_is_copied_or_pickled(question: Question) -> None:
    model = _made(question)
    before = len(pickle.dumps(model))
    expected = _asked(question, model)
    assert len(pickle.dumps(model)) == before
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(_asked(question, other), expected)
        _each(lambda p: p.data.neg_())(other)
        assert not torch.equal(_asked(question, other), expected)
        assert torch.equal(_asked(question, model), expected)
