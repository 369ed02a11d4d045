"""The sequential inverse under compilers, transforms, threads, forks, and without llvmlite."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint

import made_flows as mf
from made_flows.inverse import HeadStep, Step, ops, sequential_inverse
from made_flows.inverse.dispatch import backend
from tests.helpers.d_pass import d_pass_inverse
from tests.helpers.density_models import MODELS, any_order_model, context_of, made_of, scatter
from tests.helpers.flow_models import shaken
from tests.helpers.inverse_checks import (
    STEPS,
    check_gradients,
    check_values,
    each_backend,
    noise_of,
    same,
)

F64 = torch.float64

# ---------------------------------------------------------------------- compilers and transforms


def call_of(model: Any) -> Callable[[Tensor, Tensor | None], Tensor]:
    step = HeadStep(model.head)
    return lambda noise, context: sequential_inverse(model.made, step, noise, context)


# Dynamo makes objects of autograd functions, and torch warns of that.
pytestmark = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")

TRANSFORMED = ["Gaussian | plain", "Gaussian | context, residual, direct", "Gaussian | graph"]


@pytest.mark.parametrize("name", TRANSFORMED)
def test_it_compiles_whole(name: str) -> None:
    torch.compiler.reset()
    model = MODELS[name]()
    call = call_of(model)
    noise, context = noise_of(HeadStep(model.head), 6, 4).requires_grad_(), context_of(model, 6)
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    same(compiled(noise, context), call(noise, context))
    leaves = [noise, *model.parameters()]
    ours = torch.autograd.grad(compiled(noise, context).pow(2).sum(), leaves)
    for mine, reference in zip(
        ours, torch.autograd.grad(call(noise, context).pow(2).sum(), leaves), strict=True
    ):
        torch.testing.assert_close(mine, reference, rtol=1e-10, atol=1e-12)
    scatter(model)
    same(compiled(noise, context), d_pass_inverse(model.made, HeadStep(model.head), noise, context))


@pytest.mark.parametrize("head", ["Gaussian", "mixture", "Bernoulli", "categorical, various"])
def test_sampling_compiles_whole(head: str) -> None:
    torch.compiler.reset()
    model = MODELS[f"{head} | context, residual, direct"]()
    context = context_of(model, 3)

    def draw(context: Tensor) -> Tensor:
        return model(context).sample((5,))

    x = torch.compile(draw, fullgraph=True, backend="aot_eager")(context)
    assert x.shape == (5, 3, 4)
    assert x.dtype == draw(context).dtype
    assert model(context).support.check(x).all()


def test_it_compiles_with_inductor() -> None:
    torch.compiler.reset()
    model = MODELS["Gaussian | context, residual, direct"]()
    call = call_of(model)
    noise, context = noise_of(HeadStep(model.head), 6, 4), context_of(model, 6)
    # Neither other processes to compile in, nor a look at what vectors the machine has.
    quick = {"compile_threads": 1, "cpp.vec_isa_ok": False}
    compiled = torch.compile(call, fullgraph=True, options=quick)
    same(compiled(noise, context), call(noise, context))


@pytest.mark.parametrize("make", [
    MODELS["Gaussian | context, residual, direct"], any_order_model,
    lambda: shaken(mf.MAF(4, 2, transforms=2)),
])  # fmt: skip
def test_recorded_and_of_fake_tensors(make: Callable[[], Any]) -> None:
    model = make()
    context = context_of(model, 3)
    x = model(context).sample((2,))

    def score(x: Tensor) -> Tensor:
        result: Tensor = model(context).log_prob(x)
        return result

    for mode in ("real", "symbolic"):
        recorded = make_fx(score, tracing_mode=mode, _allow_non_fake_inputs=True)(x.flip(0))
        same(recorded(x), score(x))
    with FakeTensorMode(allow_non_fake_inputs=True):
        shapes = model(context).sample((2,)).shape, score(x).shape
    assert shapes == (x.shape, x.shape[:-1])


@pytest.mark.parametrize("name", TRANSFORMED)
@each_backend
def test_vmap(choice: str, name: str) -> None:
    model = MODELS[name]()
    call = call_of(model)
    noise = noise_of(HeadStep(model.head), 5, 3, 4)
    context = context_of(model, 3)
    if context is None:
        with backend(choice):
            expected = call(noise, None)
            same(torch.vmap(lambda u: call(u, None))(noise), expected)
            twice = torch.vmap(torch.vmap(lambda u: call(u, None)), in_dims=1, out_dims=1)
            same(twice(noise), expected)
        return
    with backend(choice):
        expected = call(noise, context)
        same(torch.vmap(call, (0, None))(noise, context), expected)
        same(torch.vmap(call, (1, 0), 1)(noise, context), expected)
        same(torch.vmap(call, (0, None))(noise, context[0]), call(noise, context[0]))
        same(torch.vmap(torch.vmap(call), (0, None))(noise, context), expected)
        first = noise[:, :1]
        same(
            torch.vmap(torch.vmap(call, (None, 0)), (0, None))(first[:, 0], context),
            call(first.expand(-1, 3, -1, -1), context),
        )
        same(
            torch.vmap(call, (None, 0))(first[:, 0], context),
            call(first.transpose(0, 1).expand(3, -1, -1, -1), context[:, None]),
        )


@each_backend
def test_vmap_over_batches_with_a_context_for_each_row(choice: str) -> None:
    model = MODELS["Gaussian | context, residual, direct"]()
    call = call_of(model)
    noise, context = noise_of(HeadStep(model.head), 2, 5, 3, 4), context_of(model, 2, 3)
    with backend(choice):
        same(torch.vmap(call)(noise, context), call(noise, context.unsqueeze(1)))
        same(torch.vmap(call, (None, 0))(noise[0], context), call(noise[0], context.unsqueeze(1)))
        leaf = context.clone().requires_grad_()
        [expected] = torch.autograd.grad(call(noise, leaf.unsqueeze(1)).pow(2).sum(), leaf)
        gradient = torch.func.grad(lambda c, u: call(u, c).pow(2).sum())
        torch.testing.assert_close(torch.vmap(gradient)(context, noise), expected)


@each_backend
def test_vmap_over_samples_and_gradients(choice: str) -> None:
    model = MODELS["Gaussian | context, residual, direct"]()
    call, context = call_of(model), context_of(model, 3)
    noise = noise_of(HeadStep(model.head), 3, 4)
    with backend(choice):
        loss = torch.func.grad(lambda u, c: call(u, c).pow(2).sum(), argnums=(0, 1))
        together = torch.vmap(loss)(noise, context)
        leaves = [noise.clone().requires_grad_(), context.clone().requires_grad_()]
        expected = torch.autograd.grad(call(*leaves).pow(2).sum(), leaves)
        for mine, reference in zip(together, expected, strict=True):
            torch.testing.assert_close(mine, reference, rtol=1e-10, atol=1e-12)
        draws = torch.vmap(lambda c: model(c).rsample((7,)), randomness="different")(context)
        assert draws.shape == (3, 7, 4)
        assert len(draws.flatten().unique()) == draws.numel()


@pytest.mark.parametrize("name", TRANSFORMED)
@each_backend
def test_jacobians(choice: str, name: str) -> None:
    model = MODELS[name]()
    step, context = HeadStep(model.head), context_of(model)
    noise = noise_of(step, 4)
    with backend(choice):
        ours = torch.func.jacrev(lambda u: call_of(model)(u, context))(noise)
        theirs = torch.autograd.functional.jacobian(
            lambda u: d_pass_inverse(model.made, step, u, context), noise
        )
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)
    order = model.made.order
    assert torch.equal(ours[order][:, order, 0].triu(1), torch.zeros(4, 4, dtype=F64))


@each_backend
def test_an_ensemble_of_networks(choice: str) -> None:
    models = [scatter(MODELS["Gaussian | residual"]()) for _ in range(3)]
    noise = noise_of(HeadStep(models[0].head), 5, 4)

    class Sampler(nn.Module):
        def __init__(self, model: Any) -> None:
            super().__init__()
            self.model = model

        def forward(self, noise: Tensor) -> Tensor:
            return call_of(self.model)(noise, None)

    samplers = [Sampler(model) for model in models]
    parameters, buffers = torch.func.stack_module_state(samplers)

    def loss(parameters: Any, buffers: Any, noise: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.func.functional_call(samplers[0], (parameters, buffers), (noise,))
        return x.pow(2).sum(), x

    with backend(choice):
        gradients, x = torch.vmap(torch.func.grad(loss, has_aux=True), (0, 0, None))(
            parameters, buffers, noise
        )
        for index, sampler in enumerate(samplers):
            same(x[index], sampler(noise))
            sampler(noise).pow(2).sum().backward()
            for name, parameter in sampler.named_parameters():
                torch.testing.assert_close(gradients[name][index], parameter.grad)


# torch takes some derivatives in forward mode through its own, deprecated, TorchScript.
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_forward_mode_through_a_backward_pass_is_refused() -> None:
    model = MODELS["Gaussian | plain"]()
    noise = noise_of(HeadStep(model.head), 4)
    _, pull = torch.func.vjp(lambda u: call_of(model)(u, None), noise)
    cotangent = torch.ones(4, dtype=F64)
    with pytest.raises(NotImplementedError, match="got forward mode"):
        torch.func.jvp(lambda g: pull(g)[0], (cotangent,), (cotangent,))


@pytest.mark.filterwarnings("ignore::made_flows.inverse.d_pass.SlowInverseWarning")
def test_second_derivatives_go_through_whole_passes() -> None:
    model = MODELS["Gaussian | plain"]()
    step = HeadStep(model.head)
    noise = noise_of(step, 4).requires_grad_()
    weights = list(model.parameters())
    found = []
    for solve in (
        lambda: call_of(model)(noise, None),
        lambda: d_pass_inverse(model.made, step, noise),
    ):
        first = torch.autograd.grad(solve().pow(2).sum(), [noise, *weights], create_graph=True)
        penalty = sum(gradient.pow(2).sum() for gradient in first)
        found.append([*first, *torch.autograd.grad(penalty, [noise, *weights])])
    torch.testing.assert_close(found[0], found[1])


def test_the_operators_pass_the_checks_of_torch() -> None:
    model = MODELS["Gaussian | context, residual, direct"]()
    context = context_of(model, 3)
    network = model.made.spec(context.detach())
    tensors = [t.detach() for t in network.tensors]
    bases = [b.detach() for b in network.bases]
    step = HeadStep(model.head)
    noise = noise_of(step, 6, 4)
    arguments = (noise, None, tensors, bases, network.structure.key, step.name, 0)
    torch.library.opcheck(ops.sequential_inverse, arguments)
    known = torch.zeros(6, 4, dtype=F64)
    torch.library.opcheck(ops.sequential_inverse, (noise, known, *arguments[2:6], 2))
    x = ops.sequential_inverse(*arguments)
    slopes = torch.randn(6, 4, 2, dtype=F64)
    arguments = (torch.randn_like(x), slopes, x, tensors, bases, network.structure.key)
    torch.library.opcheck(ops.adjoint_sweep, arguments)


@each_backend
@pytest.mark.parametrize("head", ["Gaussian", "mixture", "Bernoulli", "categorical, various"])
def test_values_are_of_the_networks_dtype_whatever_that_of_the_noise(
    head: str, choice: str
) -> None:
    every = (torch.bfloat16, torch.float32, F64)
    for of_network, of_noise in product(every, every):
        model = MODELS[f"{head} | plain"]().to(of_network)
        step, spec = HeadStep(model.head), model.made.spec(None)
        noise, tensors = noise_of(step, 6, 4).to(of_noise), [t.detach() for t in spec.tensors]
        expected = torch.int64 if head.startswith("cat") else of_network
        arguments = (noise, None, tensors, [], spec.structure.key, step.name, 0)
        with backend(choice):
            assert call_of(model)(noise, None).dtype == expected
            torch.library.opcheck(ops.sequential_inverse, arguments, test_utils="test_faketensor")
            if model().has_rsample:  # and so is what the gradient's sweep is given
                found = call_of(model)(noise.requires_grad_(), None)
                assert found.dtype == expected
                found.sum().backward()
                assert noise.grad is not None
                assert noise.grad.dtype == of_noise


# ---------------------------------------------------------------------- memory


def _saved_numbers(call: Callable[[], Tensor]) -> int:
    """How many numbers autograd keeps for a backward pass, each tensor once."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes() // 8
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        call()
    return sum(kept.values())


@each_backend
def test_gradients_under_checkpoints_and_hooks(choice: str) -> None:
    model = MODELS["Gaussian | context, residual, direct"]()
    call, context = call_of(model), context_of(model, 3)
    noise = noise_of(HeadStep(model.head), 3, 4).requires_grad_()
    leaves = [noise, *model.parameters()]
    with backend(choice):
        expected = torch.autograd.grad(call(noise, context).pow(2).sum(), leaves)
        saved = checkpoint(call, noise, context, use_reentrant=False).pow(2).sum()
        with torch.autograd.graph.save_on_cpu():
            moved = call(noise, context).pow(2).sum()
        for loss in (saved, moved):
            for mine, reference in zip(torch.autograd.grad(loss, leaves), expected, strict=True):
                torch.testing.assert_close(mine, reference, rtol=1e-10, atol=1e-12)


class _OldTanh(torch.autograd.Function):
    """As functions of autograd were written before there was torch.func, which refuses them."""

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        ctx.save_for_backward(z)
        return z.tanh()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        [z] = ctx.saved_tensors
        return gradient / z.cosh().square()


@each_backend
@pytest.mark.parametrize("activation", ["tanh", torch.sin, _OldTanh.apply])
@pytest.mark.parametrize("create_graph", [False, True])
def test_backward_passes_under_hooks(choice: str, activation: Any, create_graph: bool) -> None:
    """As where a whole step of training keeps what it saves elsewhere."""
    model = MODELS["Gaussian | plain"](activation=activation)
    leaves, noise = [*model.parameters()], noise_of(HeadStep(model.head), 3, 4)
    expected = torch.autograd.grad(
        d_pass_inverse(model.made, HeadStep(model.head), noise).pow(2).sum(), leaves
    )
    for around in (nullcontext(), torch.autograd.graph.save_on_cpu()):
        with backend(choice), around:
            loss = call_of(model)(noise, None).pow(2).sum()
            ours = torch.autograd.grad(loss, leaves, create_graph=create_graph)
        for mine, reference in zip(ours, expected, strict=True):
            torch.testing.assert_close(mine.detach(), reference, rtol=1e-10, atol=1e-12)


def test_memory_of_the_gradient_is_that_of_about_one_pass() -> None:
    model = scatter(MODELS["Gaussian | plain"](40), 0.5)
    step = HeadStep(model.head)
    noise = noise_of(step, 256, 40)
    x = torch.randn(256, 40, dtype=F64)
    one_pass = _saved_numbers(lambda: model().log_prob(x))
    ours = _saved_numbers(lambda: sequential_inverse(model.made, step, noise))
    all_passes = _saved_numbers(lambda: d_pass_inverse(model.made, step, noise))
    assert ours < 3 * one_pass
    assert all_passes > 10 * one_pass  # what is avoided


# ---------------------------------------------------------------------- threads and processes


@pytest.fixture
def four_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def _large() -> tuple[mf.MADE, Step, Tensor]:
    torch.manual_seed(0)
    step = STEPS["sampling, Gaussian"](24)
    made = scatter(made_of(features=24, hidden_features=(96, 96)), 0.7)
    return made, step, noise_of(step, 600, 24)


@pytest.mark.usefixtures("four_threads")
def test_many_threads_give_what_one_gives() -> None:
    made, step, noise = _large()
    check_values(made, step, noise, None)
    with torch.no_grad():
        ours = sequential_inverse(made, step, noise)
        rows = torch.cat([sequential_inverse(made, step, row) for row in noise[:20].split(1)])
    same(ours[:20], rows, 1e-12)
    check_gradients(made, step, noise[:100], None)


@pytest.mark.usefixtures("four_threads")
@each_backend
def test_calls_from_several_threads_at_once(choice: str) -> None:
    made, step, noise = _large()
    others = [made_of(features=24, hidden_features=(32,)) for _ in range(3)]
    networks = [made, *others, made]
    expected = [d_pass_inverse(network, step, noise[:50]).detach() for network in networks]

    def work(index: int) -> None:
        network = networks[index % 5]
        for _ in range(2):
            with torch.no_grad():
                same(sequential_inverse(network, step, noise)[:50], expected[index % 5])
            leaf = noise[:50].clone().requires_grad_()
            sequential_inverse(network, step, leaf).sum().backward(inputs=[leaf])

    with backend(choice), ThreadPoolExecutor(10) as pool:
        list(pool.map(work, range(20)))


def _in_child(
    made: mf.MADE, step: Step, noise: Tensor, expected: Tensor, threads: int, answers: Any
) -> None:
    # Torch's own pool of threads does not survive a fork: only the compiled inverse may use two.
    torch.set_num_threads(1)
    try:
        for _ in range(2):
            with torch.no_grad():
                torch.set_num_threads(threads)
                result = sequential_inverse(made, step, noise)
                torch.set_num_threads(1)
                same(result, expected)
            scatter(made)
            expected = d_pass_inverse(made, step, noise).detach()
        answers.put("as in the parent")
    except BaseException as error:
        answers.put(repr(error))
        raise


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@each_backend
def test_forked_processes_after_a_first_call(choice: str) -> None:
    made, step, noise = _large()
    threads = 2 if choice == "auto" else 1
    with backend(choice), torch.no_grad():
        expected = sequential_inverse(made, step, noise)
        context = multiprocessing.get_context("fork")
        answers = context.Queue()
        children = [
            context.Process(target=_in_child, args=(made, step, noise, expected, threads, answers))
            for _ in range(2)
        ]
        for child in children:
            child.start()
        try:
            assert [answers.get(timeout=120) for _ in children] == ["as in the parent"] * 2
        finally:
            for child in children:
                child.join(10)
                child.kill()
        same(sequential_inverse(made, step, noise), expected)


# ---------------------------------------------------------------------- without llvmlite

WITHOUT_LLVMLITE = """
import sys
sys.modules["llvmlite"] = None
import torch, made_flows as mf
torch.manual_seed(0)
for model in (mf.GaussianMADE(5, context=2), mf.CategoricalMADE(5, categories=3), mf.MAF(5)):
    context = torch.zeros(3, 2) if model.context else None
    x = model(context).sample((4,))
    print(tuple(x.shape), bool(model(context).log_prob(x).isfinite().all()))
mf.GaussianMADE(5)().rsample((4,)).sum().backward()
"""


def test_everything_works_without_llvmlite() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", WITHOUT_LLVMLITE],
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:3] == ["(4, 3, 5) True", "(4, 5) True", "(4, 5) True"]
    # Said once, with what to install.
    assert done.stderr.count("pip install 'made-flows[fast]'") == 1
