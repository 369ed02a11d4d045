"""The compiled parallel pass equals the forward pass in torch operations, and steps aside."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

import made_flows as mf
from made_flows.inverse import HeadStep
from made_flows.inverse.compiled import threads
from made_flows.inverse.dispatch import backend
from made_flows.inverse.parallel import compiled_pass
from made_flows.univariate.heads import Bernoulli, Categorical, Gaussian
from tests.helpers.architectures import Architecture, architectures
from tests.helpers.density_models import context_of, made_of
from tests.helpers.inverse_checks import STEPS, made_for, noise_of, owner_of

pytest.importorskip("llvmlite")
F64 = torch.float64


@pytest.fixture(autouse=True)
def _without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def plain(made: mf.MADE, step: Any, x: Tensor, context: Tensor | None) -> list[Tensor]:
    """Images, none for a head, and densities in torch operations."""
    owner, dtype = owner_of(step), made.dtype
    if isinstance(step, HeadStep):
        parameters = made(owner.encode(x, dtype), context)
        return [owner.log_prob(x, parameters).sum(dim=-1)]
    image, each = getattr(owner, step.direction)(x, made(x, context))
    return [image, each.sum(dim=-1)]


def values_of(step: Any, *shape: int) -> Tensor:
    """Values that a step may score."""
    if not isinstance(step, HeadStep):
        return 2 * torch.randn(*shape, dtype=F64)
    if isinstance(step.head, Categorical | Bernoulli):
        sizes = torch.as_tensor(getattr(step.head, "categories", 2))
        return (torch.rand(*shape) * sizes).long()
    return noise_of(step, *shape)[..., -1]


def check(made: mf.MADE, step: Any, x: Tensor, context: Tensor | None, tolerance: float) -> None:
    found = compiled_pass(made, step, x, context)
    assert found is not None
    ours = [part for part in found if part is not None]
    theirs = plain(made, step, x, context)
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        size = 1 + (b.abs().amax() if b.numel() else 0)
        finite = b.isfinite()
        assert torch.equal(a.isfinite(), finite)
        assert ((a - b)[finite].abs() <= tolerance * size).all()


# ---------------------------------------------------------------------- the same numbers


@pytest.mark.parametrize("name", STEPS)
@settings(max_examples=12)
@given(architectures(), st.sampled_from([(5,), (2, 3), (0,), ()]), st.booleans())
def test_random_architectures(
    name: str, architecture: Architecture, batch: tuple[int, ...], single: bool
) -> None:
    step = STEPS[name](architecture.features)
    made = made_for(step, **architecture.arguments)
    x, context = values_of(step, *batch, architecture.features), context_of(made, *batch[-1:])
    check(made, step, x, context, 1e-12)
    if single:
        owner_of(step).float()
        x = x.float() if x.dtype == F64 else x
        context = None if context is None else context.float()
        check(made.float(), step, x, context, 1e-4)


@pytest.mark.parametrize("rows", [1, 15, 16, 17, 33, 63, 65, 200])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_any_number_of_rows(rows: int, dtype: torch.dtype) -> None:
    step = STEPS["inverse, affine"](7)
    made = made_for(step, features=7, context=2, hidden_features=(70, 90)).to(dtype)
    tolerance = 1e-12 if dtype == F64 else 1e-5
    x, context = torch.randn(rows, 7, dtype=dtype), torch.randn(2, dtype=dtype)
    check(made, step, x, context, tolerance)
    check(made, step, x, torch.randn(3, 1, 2, dtype=dtype), tolerance)
    check(made, step, torch.randn(7, rows, dtype=dtype).t(), context, tolerance)


@pytest.mark.parametrize("name", ["inverse, affine", "inverse, spline", "sampling, mixture"])
@pytest.mark.parametrize("scale", [1e-30, 1e3, 1e30])
def test_extreme_values(name: str, scale: float) -> None:
    step = STEPS[name](4)
    made = made_for(step, features=4, hidden_features=(9,))
    check(made, step, scale * torch.randn(30, 4, dtype=F64), None, 1e-12)


def test_nothing_above_the_diagonal_is_read() -> None:
    step = STEPS["inverse, affine"](5)
    made = made_for(step, features=5, hidden_features=(30, 40), direct=True)
    x = torch.randn(9, 5, dtype=F64)
    expected = plain(made, step, x, None)
    for layer in [*made.masked_layers(), made.direct]:
        assert layer is not None
        layer.weight[layer.mask == 0] = 1e300  # NaN there makes NaN everywhere, as it does in torch
    found = compiled_pass(made, step, x, None)
    assert found is not None
    torch.testing.assert_close(list(found), expected)


# ---------------------------------------------------------------------- gradients


def leaf_of(tensor: Tensor | None) -> Tensor | None:
    if tensor is None or not tensor.is_floating_point():
        return tensor
    return tensor.detach().clone().requires_grad_()


def gradients(result: Any, leaves: Sequence[Tensor], **more: Any) -> list[Tensor]:
    """Of a sum of all results, weighted at random; zeros where there are none."""
    generator = torch.Generator().manual_seed(0)
    parts = [part for part in result if part is not None]
    weights = [torch.randn(p.shape, dtype=F64, generator=generator).to(p.dtype) for p in parts]
    total = torch.stack([(p * w).sum() for p, w in zip(parts, weights, strict=True)]).sum()
    found = torch.autograd.grad(total, leaves, allow_unused=True, **more)
    return [torch.zeros_like(a) if g is None else g for a, g in zip(leaves, found, strict=True)]


@contextmanager
def new_memory_of_nan() -> Iterator[None]:
    """Have torch fill new memory with NaN: what nobody writes is seen."""
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def check_gradients(
    made: mf.MADE, step: Any, x: Tensor, context: Tensor | None, tolerance: float = 1e-12
) -> None:
    with torch.enable_grad():
        given, condition = leaf_of(x), leaf_of(context)
        assert given is not None
        leaves = [
            leaf
            for leaf in (given, condition, *made.parameters())
            if leaf is not None and leaf.requires_grad
        ]
        torch.manual_seed(1)  # both drop the same units
        with new_memory_of_nan():
            found = compiled_pass(made, step, given, condition)
        assert found is not None
        assert found[1].grad_fn is not None
        assert "_Pass" in repr(found[1].grad_fn.next_functions) + repr(found[1].grad_fn)
        torch.manual_seed(1)
        expected = plain(made, step, given, condition)
        for a, b in zip([part for part in found if part is not None], expected, strict=True):
            finite = b.isfinite()
            assert ((a - b)[finite].abs() <= tolerance * (1 + b[finite].abs())).all()
        theirs = gradients(expected, leaves)
        for _ in range(2):  # what is kept for the gradient stays as it is
            with new_memory_of_nan():
                ours = gradients(found, leaves, retain_graph=True)
            for a, b in zip(ours, theirs, strict=True):
                assert (a.shape, a.dtype) == (b.shape, b.dtype)
                assert ((a - b).abs() <= tolerance * (1 + b.abs().max())).all()


@pytest.mark.parametrize("name", STEPS)
@settings(
    max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
@given(
    architectures(),
    st.sampled_from([(5,), (2, 3), ()]),
    st.booleans(),
    st.sampled_from([0.0, 0.4, 1.0]),
)
def test_gradients_of_random_architectures(
    name: str, architecture: Architecture, batch: tuple[int, ...], single: bool, dropped: float
) -> None:
    step = STEPS[name](architecture.features)
    made = made_for(step, **architecture.arguments)
    made.dropout = nn.Dropout(dropped) if dropped else None
    x, context = values_of(step, *batch, architecture.features), context_of(made, *batch[-1:])
    check_gradients(made, step, x, context, 1e-11)
    if single:
        owner_of(step).float()
        x = x.float() if x.dtype == F64 else x
        context = None if context is None else context.float()
        check_gradients(made.float(), step, x, context, 1e-3)


@pytest.mark.parametrize("name", ["forward, spline", "inverse, spline"])
@pytest.mark.parametrize("size", [0.0, 30.0, 300.0])
def test_gradients_of_wild_splines_and_at_their_ends(name: str, size: float) -> None:
    step = STEPS[name](4)
    made = made_for(step, features=4, hidden_features=(9,))
    made.layers[-1].bias.mul_(size).add_(size * torch.randn_like(made.layers[-1].bias))
    bound = owner_of(step).bound
    x = torch.cat([4 * torch.randn(40, 4, dtype=F64), torch.full((1, 4), 3e5, dtype=F64)])
    x[0], x[1] = bound, -bound
    check_gradients(made, step, x, None, 1e-8)


def test_categories_have_no_gradient() -> None:
    model = mf.CategoricalMADE(3, categories=[3, 2, 4], hidden_features=(12,)).double()
    x = torch.tensor([[2.0, 1.0, 3.0], [0.0, 0.0, 0.0]], dtype=F64, requires_grad=True)
    with torch.enable_grad():
        model().log_prob(x).sum().backward()
    assert x.grad is None or not x.grad.any()


@pytest.mark.parametrize("rows", [1, 17, 130])
def test_gradients_of_many_units_and_shared_contexts(rows: int) -> None:
    step = STEPS["inverse, affine"](7)
    made = made_for(
        step, features=7, context=2, hidden_features=(330, 350), mask_weights=True, direct=True
    )
    made.layers[0].weight.requires_grad_(False)
    x = torch.randn(rows, 7, dtype=F64)
    check_gradients(made, step, x, torch.randn(2, dtype=F64))
    check_gradients(made, step, x, torch.randn(2, 1, 2, dtype=F64))
    check_gradients(
        made, step, torch.randn(7, rows, dtype=F64).t(), torch.randn(rows, 2, dtype=F64)
    )
    owner_of(step).float()
    check_gradients(made.float(), step, x.float(), torch.randn(rows, 2), 1e-4)


def test_gradients_where_nothing_reads_a_unit_or_a_unit_nothing() -> None:
    step = STEPS["sampling, Gaussian"](4)
    made = made_for(step, features=4, hidden_features=(9, 9), direct=True)
    first, second, last = made.masked_layers()
    first.mask[[7, 8]] = 1  # of no degree: these read every feature
    second.mask[:, [7, 8]] = 0
    second.mask[[0, 5]] = 0
    last.mask[[2, 3]] = 0
    check_gradients(made, step, torch.randn(5, 4, dtype=F64), None)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("name", ["inverse, affine", "sampling, Gaussian", "sampling, Bernoulli"])
def test_gradients_can_be_differentiated_again(name: str, residual: bool) -> None:
    step, hidden = STEPS[name](3), (6, 5)
    made = made_for(
        step, features=3, context=1, hidden_features=hidden, residual=residual, activation="tanh"
    )
    made.dropout = nn.Dropout(0.3) if residual else None
    x, context = values_of(step, 4, 3).double(), torch.randn(4, 1, dtype=F64)
    with torch.enable_grad():
        leaves = [context.requires_grad_(), *made.parameters()]

        def second(computed: Callable[..., Any]) -> list[Tensor]:
            torch.manual_seed(1)  # both drop the same units
            first = gradients(computed(made, step, x, context), leaves, create_graph=True)
            return gradients([g for g in first if g.requires_grad], leaves)

        for a, b in zip(second(compiled_pass), second(plain), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("context", [0, 2])
def test_gradients_to_be_differentiated_again_count_nothing_twice(context: int) -> None:
    # Values depend on weights and a context that the network of the second pass has, too.
    step = STEPS["inverse, affine"](3)
    made = made_for(step, features=3, context=context, hidden_features=(6,), activation="tanh")
    x, given = torch.randn(4, 3, dtype=F64), context_of(made, 4)
    with torch.enable_grad():
        leaves = [*made.parameters()]
        leaves += [] if given is None else [given.requires_grad_()]

        def result() -> Any:
            first = compiled_pass(made, step, x, given)
            assert first is not None
            assert first[0] is not None
            return compiled_pass(made, step, first[0], given)

        recorded = gradients(result(), leaves, create_graph=True)
        torch.testing.assert_close(recorded, gradients(result(), leaves), rtol=1e-10, atol=1e-10)


def _other_mask(made: mf.MADE, step: Any) -> None:
    made.layers[0].mask = torch.zeros_like(made.layers[0].mask)


def _other_weights(made: mf.MADE, step: Any) -> None:
    made.load_state_dict({k: 2 * v for k, v in made.state_dict().items()}, assign=True)


def _other_activation(made: mf.MADE, step: Any) -> None:
    made.activation = "relu"


def _hook(made: mf.MADE, step: Any) -> None:
    made.layers[0].register_forward_hook(lambda layer, given, result: 2 * result)


def _training(made: mf.MADE, step: Any) -> None:
    made.train()


def _other_scale(made: mf.MADE, step: Any) -> None:
    step.owner.scale = mf.ScaleRule("exp")


def _other_bound(made: Any, step: Any) -> None:
    step.owner.scale.bound = 0.5


LATE = (
    _other_mask,
    _other_weights,
    _other_activation,
    _hook,
    _training,
    _other_scale,
    _other_bound,
)
"""What is done to a network between a pass and its gradient."""


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("change", LATE)
def test_gradients_are_those_of_the_pass_that_was(change: Any, create_graph: bool) -> None:
    step = STEPS["inverse, affine"](3)
    made = made_for(step, features=3, context=2, hidden_features=(6, 6), activation="tanh")
    made.dropout = nn.Dropout(0.5).eval()
    x, context = torch.randn(4, 3, dtype=F64), torch.randn(4, 2, dtype=F64)
    with torch.enable_grad():
        leaves = [x.requires_grad_(), context.requires_grad_(), *made.parameters()]
        expected = gradients(compiled_pass(made, step, x, context), leaves)
        late = compiled_pass(made, step, x, context)
        change(made, step)
        if change in (_other_scale, _other_bound) and create_graph:
            with pytest.raises(RuntimeError, match="what it was in the forward pass"):
                gradients(late, leaves, create_graph=True)
            return
        found = gradients(late, leaves, create_graph=create_graph)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_gradients_under_checkpoints_and_after_changes() -> None:
    model = mf.GaussianMADE(4, hidden_features=(8,)).double()
    x = torch.randn(6, 4, dtype=F64)
    with torch.enable_grad():
        weights = list(model.parameters())
        expected = torch.autograd.grad(model().log_prob(x).sum(), weights)
        again = checkpoint(lambda x: model().log_prob(x), x, use_reentrant=False)
        torch.testing.assert_close(torch.autograd.grad(again.sum(), weights), expected)
        with torch.autograd.graph.save_on_cpu():
            saved = model().log_prob(x)
        torch.testing.assert_close(torch.autograd.grad(saved.sum(), weights), expected)
        late = model().log_prob(x).sum()
        with torch.no_grad():
            weights[0].mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            late.backward()


def test_hooks_on_gradients_are_seen() -> None:
    made = mf.MADE(4, hidden_features=(8,), parameters=2)
    made.layers[0].register_full_backward_hook(lambda *_: None)
    step = STEPS["inverse, affine"](4)
    with torch.enable_grad():
        assert compiled_pass(made, step, torch.randn(5, 4), None) is None


@pytest.mark.parametrize("rows", [1, 31, 130])
def test_units_are_dropped_by_what_torch_draws(rows: int) -> None:
    step = STEPS["inverse, affine"](7)
    made = made_for(step, features=7, context=2, hidden_features=(330, 350), direct=True)
    made.dropout = nn.Dropout(0.5)
    x, context = torch.randn(rows, 7, dtype=F64), torch.randn(rows, 2, dtype=F64)
    check_gradients(made, step, x, context)
    made.dropout.p = 0.1
    check_gradients(made, step, x, context)
    made.dropout.eval()
    with torch.enable_grad():
        kept, again = (compiled_pass(made, step, x, context) for _ in range(2))
    torch.testing.assert_close(kept, again, rtol=0, atol=0)


def _hooked_dropout() -> nn.Module:
    drop = nn.Dropout(0.5)
    drop.register_forward_hook(lambda module, given, result: 2 * result)
    return drop


def _dropout_with_gradient_hook() -> nn.Module:
    drop = nn.Dropout(0.5)
    drop.register_full_backward_hook(lambda *_: None)
    return drop


class _OwnDropout(nn.Dropout):
    pass


@pytest.mark.parametrize(
    "make",
    [_hooked_dropout, _dropout_with_gradient_hook, _OwnDropout, lambda: nn.AlphaDropout(0.5)],
)
def test_dropout_that_is_not_torchs_own_is_called(make: Callable[[], nn.Module]) -> None:
    made, step = mf.MADE(4, hidden_features=(8,), parameters=2), STEPS["inverse, affine"](4)
    values = torch.randn(5, 4)
    with torch.enable_grad():
        for drop, taken in ((nn.Dropout(0.5), True), (make(), False), (None, True)):
            made.dropout = drop
            assert (compiled_pass(made, step, values, None) is not None) == taken


# ---------------------------------------------------------------------- where it steps aside


def _hooked(made: mf.MADE) -> None:
    made.layers[0].register_forward_hook(lambda *_: None)


def _pre_hooked(made: mf.MADE) -> None:
    made.register_forward_pre_hook(lambda *_: None)


def _parametrized(made: mf.MADE) -> None:
    parametrizations.weight_norm(made.layers[0], "weight")


def _dropping(made: mf.MADE) -> None:
    made.dropout = nn.Dropout(0.5).train()


def _half(made: mf.MADE) -> None:
    made.half()


def _computing(made: mf.MADE) -> None:
    made.forward = lambda *a, **k: mf.MADE.forward(made, *a, **k)  # type: ignore[method-assign]


MODULES: dict[str, Callable[[mf.MADE], None]] = {
    "hook": _hooked,
    "pre-hook": _pre_hooked,
    "parametrization": _parametrized,
    "dropout": _dropping,
    "half precision": _half,
    "forward of its own": _computing,
}

MODES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "eager": lambda: backend("eager"),
    "forward mode": torch.autograd.forward_ad.dual_level,
}


@pytest.mark.parametrize("what", [*MODULES, *MODES])
def test_it_steps_aside(what: str) -> None:
    made = mf.MADE(4, hidden_features=(8,), parameters=2)
    step, x = STEPS["inverse, affine"](4), torch.randn(3, 4)
    assert compiled_pass(made, step, x, None) is not None
    MODULES.get(what, lambda _: None)(made)
    with MODES.get(what, nullcontext)():
        assert compiled_pass(made, step, x.to(made.dtype), None) is None


def test_transforms_and_compilers_see_torch_operations() -> None:
    model = mf.GaussianMADE(4, hidden_features=(8,)).eval()
    x = torch.randn(6, 4)
    expected = model().log_prob(x)
    torch.testing.assert_close(torch.func.vmap(lambda row: model().log_prob(row))(x), expected)
    compiled = torch.compile(lambda x: model().log_prob(x), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), expected)


class _Halved(Gaussian):
    """A head that scores otherwise than its parent."""

    def log_prob(self, x: Tensor, parameters: Tensor) -> Tensor:
        return super().log_prob(x, parameters) / 2


class _OwnDensity(mf.Head):
    """A head that samples by the affine kernel, and is no Gaussian."""

    outputs = 2
    support = torch.distributions.constraints.real

    def log_prob(self, x: Tensor, parameters: Tensor) -> Tensor:
        return -(x - parameters[..., 0]).abs()

    def noise(self, shape: Any, like: Tensor) -> Tensor:
        return torch.rand(*shape, 1, dtype=like.dtype)

    def step(self, noise: Tensor, parameters: Tensor) -> Tensor:
        return parameters[..., 0] + torch.exp(parameters[..., 1]) * noise[..., 0]

    def kernel(self) -> Any:
        return STEPS["forward, affine, exp"](2).kernel()


@pytest.mark.parametrize("kind", [_Halved, _OwnDensity])
def test_a_density_of_its_own_is_the_one_that_scores(kind: type[mf.Head]) -> None:
    model = mf.DensityModel(made_of(features=3, parameters=2), kind().double()).eval()
    x = torch.randn(5, 3, dtype=F64)
    expected = model.head.log_prob(x, model.made(x)).sum(dim=-1)
    torch.testing.assert_close(model().log_prob(x), expected)


@pytest.mark.parametrize("gradients", [True, False])
def test_values_elsewhere_are_refused(gradients: bool) -> None:
    """With gradients, what was on another device than the weights ended the process."""
    x, where = torch.randn(5, 3, device="meta"), "on the device of the weights, cpu; got meta"
    iaf = mf.IAF(3, transforms=1)
    with torch.set_grad_enabled(gradients):
        for ask in (mf.MAF(3)().log_prob, mf.GaussianMADE(3)().log_prob, iaf.to_data):
            with pytest.raises(ValueError, match=f"values {where}"):
                ask(x)
        with pytest.raises(ValueError, match=f"context {where}"):
            mf.MAF(3, context=2)(x[:, :2]).log_prob(torch.zeros(5, 3))


def test_values_that_are_no_category_raise_without_checks() -> None:
    model = mf.CategoricalMADE(3, categories=4).eval()
    distribution = model()
    distribution._validate_args = False
    with pytest.raises((RuntimeError, IndexError)):
        distribution.log_prob(torch.full((2, 3), 7))


# ---------------------------------------------------------------------- threads


@pytest.mark.parametrize("forked", [False, True])
def test_threads_change_nothing(forked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    # Of a forked process, then: plain threads, not OpenMP's.
    monkeypatch.setattr("made_flows.inverse.compiled.threads._FORKED", forked)
    step = STEPS["inverse, affine"](9)
    made = made_for(step, features=9, hidden_features=(120, 130))
    x = torch.randn(777, 9, dtype=F64)
    alone, before = compiled_pass(made, step, x, None), torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        for _ in range(20):
            for a, b in zip(compiled_pass(made, step, x, None), alone, strict=True):  # type: ignore[arg-type]
                assert torch.equal(a, b)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("interrupts", [1, 2])
def test_an_interrupted_call_waits_for_its_threads(
    interrupts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They write where it says, which is somebody else's memory once it has returned."""
    caller, begun, going = threading.current_thread(), threading.Event(), threading.Event()
    ended: list[bool] = []

    def work(_: int) -> None:
        if threading.current_thread() is caller:
            assert begun.wait(60)
            raise KeyboardInterrupt
        begun.set()
        assert going.wait(60)
        ended.append(True)

    class Interrupted(threading.Condition):
        """Interrupts the waiting of the one who waits, as signals do, and lets the others go on."""

        def wait(self, timeout: float | None = None) -> bool:
            nonlocal interrupts
            interrupts -= 1
            if interrupts:
                raise KeyboardInterrupt
            going.set()
            return super().wait(timeout)

    monkeypatch.setattr(threads, "_FORKED", True)
    monkeypatch.setattr(threads, "_function", lambda _: work)
    monkeypatch.setattr(threads, "threading", SimpleNamespace(Condition=Interrupted))
    with pytest.raises(KeyboardInterrupt):
        threads.in_threads(0, 0, 2)
    assert ended == [True]


def test_a_pool_that_takes_no_more_leaves_all_to_the_caller(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pool = ThreadPoolExecutor(1)
    pool.shutdown()
    monkeypatch.setattr(threads, "_FORKED", True)
    monkeypatch.setattr(threads, "_POOL", pool)
    calls: list[int] = []
    monkeypatch.setattr(threads, "_function", lambda _: calls.append)
    threads.in_threads(0, 7, 3)
    assert calls == [7]
