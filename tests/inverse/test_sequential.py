"""The sequential inverse equals D passes of the network: values and gradients, of any network."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

import made_flows as mf
from made_flows.inverse import HeadStep, eager, sequential_inverse
from made_flows.inverse.dispatch import backend, gradients_of
from made_flows.inverse.steps import BijectionStep
from made_flows.univariate.bijections import Affine
from made_flows.univariate.scales import valued_as_named
from made_flows.univariate.splines import RationalQuadraticSpline
from tests.helpers.architectures import Architecture, architectures
from tests.helpers.d_pass import d_pass_inverse
from tests.helpers.density_models import (
    ACTIVATION_NAMES,
    HEADS,
    MODELS,
    NETWORKS,
    context_of,
    made_of,
    scatter,
)
from tests.helpers.foreign_network import Foreign, ForeignDesign, foreign_designs
from tests.helpers.inverse_checks import (
    RACES,
    SMOOTH,
    check_gradients,
    check_values,
    each_backend,
    made_for,
    noise_of,
    owner_of,
)
from tests.helpers.inverse_checks import STEPS as SCORED_STEPS

F64 = torch.float64
STEPS = SCORED_STEPS | RACES

# ---------------------------------------------------------------------- equality with D passes


@pytest.mark.parametrize("name", STEPS)
@settings(max_examples=12)
@given(architectures(), st.sampled_from([(4,), (2, 4)]))
def test_values_of_random_architectures(
    name: str, architecture: Architecture, batch: tuple[int, ...]
) -> None:
    step = STEPS[name](architecture.features)
    made = made_for(step, **architecture.arguments)
    check_values(made, step, noise_of(step, *batch, architecture.features), context_of(made, 4))


@pytest.mark.parametrize("name", SMOOTH)
@settings(max_examples=8)
@given(architectures(max_features=5))
def test_gradients_of_random_architectures(name: str, architecture: Architecture) -> None:
    step = STEPS[name](architecture.features)
    made = made_for(step, **architecture.arguments)
    check_gradients(made, step, noise_of(step, 3, architecture.features), context_of(made, 3))


@pytest.mark.parametrize("option", NETWORKS)
@pytest.mark.parametrize("head", ["Gaussian", "mixture", "categorical, various"])
def test_every_option(head: str, option: str) -> None:
    step = HeadStep(HEADS[head](6).double())
    owner = owner_of(step)
    made = NETWORKS[option](6, parameters=owner.outputs, inputs=owner.inputs)
    noise, context = noise_of(step, 5, 6), context_of(made, 5)
    check_values(made, step, noise, context)
    if step.differentiable:
        check_gradients(made, step, noise, context)


@pytest.mark.parametrize("name", STEPS)
@settings(max_examples=5)
@given(architectures(max_features=5), st.data())
def test_a_known_prefix_is_kept(name: str, architecture: Architecture, data: st.DataObject) -> None:
    step = STEPS[name](architecture.features)
    made = made_for(step, **architecture.arguments)
    noise, context = noise_of(step, 3, architecture.features), context_of(made, 3)
    known = check_values(made, step, noise_of(step, 3, architecture.features), context)
    for prefix in {0, data.draw(st.integers(1, int(made.ranks.max()) + 1))}:
        x = check_values(made, step, noise, context, known=known, prefix=prefix)
        kept = made.ranks < prefix
        assert torch.equal(x[:, kept], known[:, kept])
        if name in SMOOTH:
            check_gradients(made, step, noise, context, known=known, prefix=prefix)


@each_backend
@pytest.mark.parametrize("name", ["sampling, Gaussian", "inverse, affine, exp", "forward, gated"])
@pytest.mark.parametrize("option", ["context, residual, direct", "graph"])
def test_gradcheck(choice: str, name: str, option: str) -> None:
    step = STEPS[name](3)
    made = NETWORKS[option](
        3, parameters=owner_of(step).outputs, activation="tanh", hidden_features=(4, 4)
    )
    noise = noise_of(step, 1, 3).requires_grad_()
    context = context_of(made, 1)
    leaves = [noise, *made.parameters()] + ([] if context is None else [context.requires_grad_()])

    def call(*_: Tensor) -> Tensor:
        return sequential_inverse(made, step, noise, context)

    with backend(choice):
        assert torch.autograd.gradcheck(call, leaves)


# ---------------------------------------------------------------------- shapes and sizes

SHAPES: list[tuple[tuple[int, ...], tuple[int, ...]]] = [
    ((), ()),
    ((1,), ()),
    ((1,), (1,)),
    ((), (1,)),
    ((5,), (5,)),
    ((2, 5), (5,)),
    ((5,), (2, 5)),
    ((2, 1), (1, 3)),
    ((2, 3, 4), (3, 1)),
    ((2, 3, 4), (1, 1, 1)),
    ((2, 3, 4), (2, 1, 1)),
    ((0,), ()),
    ((0,), (0,)),
    ((2, 0), (1,)),
    ((1,), (0,)),
]


@pytest.mark.parametrize(("of_noise", "of_context"), SHAPES, ids=map(str, SHAPES))
def test_noise_and_context_are_broadcast(
    of_noise: tuple[int, ...], of_context: tuple[int, ...]
) -> None:
    step = STEPS["sampling, Gaussian"](4)
    made = NETWORKS["context, residual, direct"](4)
    noise, context = noise_of(step, *of_noise, 4), context_of(made, *of_context)
    x = check_values(made, step, noise, context)
    assert x.shape == (*torch.broadcast_shapes(of_noise, of_context), 4)
    check_gradients(made, step, noise, context)
    check_gradients(made, step, noise, context, known=torch.randn(4, dtype=F64), prefix=2)


@pytest.mark.parametrize("name", STEPS)
@settings(max_examples=2)
@given(architectures())
def test_a_row_by_itself(name: str, architecture: Architecture) -> None:
    # Its units are the lanes of the kernels' vectors, which rows are elsewhere.
    step = STEPS[name](architecture.features)
    made = made_for(step, **architecture.arguments)
    noise, context = noise_of(step, 1, architecture.features), context_of(made, 1)
    check_values(made, step, noise, context)
    if step.differentiable:
        check_gradients(made, step, noise, context)


@pytest.mark.parametrize("rows", [1, 2, 3, 7, 8, 9, 63, 64, 65, 300, 1025])
@pytest.mark.parametrize("name", ["sampling, Gaussian", "sampling, categorical, various"])
def test_any_number_of_rows(name: str, rows: int) -> None:
    step = STEPS[name](5)
    made = made_for(step, features=5, context=2, hidden_features=(33, 17), residual=True)
    noise = noise_of(step, rows, 5)
    check_values(made, step, noise, context_of(made, rows))
    check_values(made, step, noise, context_of(made))
    if step.differentiable:
        check_gradients(made, step, noise, context_of(made, rows))


@pytest.mark.parametrize(
    ("name", "features"), [("sampling, Gaussian", 1000), ("sampling, categorical", 150)]
)
def test_many_features(name: str, features: int) -> None:
    step = STEPS[name](features)
    made = made_for(step, features=features, hidden_features=(48, 32), direct=True)
    check_values(made, step, noise_of(step, 2, features))


def test_gradients_of_two_hundred_features_and_few_units() -> None:
    step = STEPS["sampling, Gaussian"](200)
    made = made_for(step, features=200, hidden_features=(16, 24), context=2, order="random")
    check_gradients(made, step, noise_of(step, 2, 200), context_of(made, 2))


@pytest.mark.parametrize("residual", [False, True])
def test_twenty_hidden_layers(residual: bool) -> None:
    step = STEPS["sampling, Gaussian"](6)
    made = made_of(
        features=6, hidden_features=(24,) * 20, residual=residual, activation="tanh", context=1
    )
    check_values(made, step, noise_of(step, 9, 6), context_of(made, 9))
    check_gradients(made, step, noise_of(step, 9, 6), context_of(made, 9))


@pytest.mark.parametrize("name", STEPS)
def test_one_feature(name: str) -> None:
    step = STEPS[name](1)
    for arguments in ({}, {"context": 2}, {"hidden_features": ()}, {"direct": True}):
        made = made_for(step, features=1, **arguments)
        check_values(made, step, noise_of(step, 5, 1), context_of(made, 5))


@pytest.mark.parametrize("name", ["sampling, Gaussian", "sampling, mixture", "inverse, affine"])
def test_strides_do_not_matter(name: str) -> None:
    step = STEPS[name](5)
    made = made_for(step, features=5, context=2, hidden_features=(16, 16))
    noise, context = noise_of(step, 8, 5), context_of(made, 8)
    assert context is not None
    known = check_values(made, step, noise, context)
    wide = torch.randn(8, 10, noise.shape[-1], dtype=F64)
    wide[:, ::2] = noise
    variants = {
        "columns apart": wide[:, ::2],
        "transposed": noise.permute(2, 1, 0).contiguous().permute(2, 1, 0),
        "one row for all": noise[:1].expand(8, -1, -1),
        "part of a batch": torch.cat([noise, noise])[3:11],
    }
    strange_context, strange_known = context.T.contiguous().T, known.T.contiguous().T
    for strided in variants.values():
        check_values(made, step, strided, context)
        check_values(made, step, strided, strange_context)
        check_values(made, step, strided, strange_context, known=strange_known, prefix=2)
    if name in SMOOTH:
        check_gradients(made, step, variants["transposed"], strange_context)


@each_backend
def test_gradients_may_come_in_any_layout(choice: str) -> None:
    step = STEPS["sampling, Gaussian"](5)
    made = made_for(step, features=5, hidden_features=(16, 16))
    noise, weights = noise_of(step, 8, 5).requires_grad_(), torch.randn(5, 8, dtype=F64)
    readings: list[Callable[[Tensor], Tensor]] = [
        lambda x: (x.T * weights).sum(),
        lambda x: x.sum(),  # one number, expanded
        lambda x: x[:, 1].sum(),
    ]
    for read in readings:
        with backend(choice):
            ours = sequential_inverse(made, step, noise)
            [mine] = torch.autograd.grad(read(ours), noise)
        [reference] = torch.autograd.grad(read(d_pass_inverse(made, step, noise)), noise)
        torch.testing.assert_close(mine, reference, rtol=1e-9, atol=1e-10)


# ---------------------------------------------------------------------- precision


@each_backend
@pytest.mark.parametrize("option", ["plain", "context, residual, direct", "deep", "gelu", "silu"])
@pytest.mark.parametrize("name", ["sampling, Gaussian", "inverse, affine", "sampling, mixture"])
def test_float32_is_as_exact_as_d_passes_in_float32(choice: str, option: str, name: str) -> None:
    step = STEPS[name](24)
    owner = owner_of(step)
    made = NETWORKS[option](24, parameters=owner.outputs, hidden_features=(48, 48, 48))
    noise, context = noise_of(step, 64, 24), context_of(made, 64)
    exact = d_pass_inverse(made, step, noise, context)
    made, owner = made.float(), owner.float()
    low = (noise.float(), None if context is None else context.float())
    with backend(choice), torch.no_grad():
        ours = sequential_inverse(made, step, *low)
        theirs = d_pass_inverse(made, step, *low)
    assert ours.dtype == torch.float32
    # A mixture may draw another component where a uniform number falls on an edge.
    agree = (theirs.double() - exact).abs().amax(dim=1) < 1e-2 * (1 + exact.abs().amax(dim=1))
    assert agree.float().mean() > 0.9
    error = (ours.double() - exact).abs()[agree]
    allowed = (theirs.double() - exact).abs()[agree].max()
    assert error.max() <= 4 * allowed + 1e-5


@each_backend
@pytest.mark.parametrize("option", ["plain", "context, residual, direct", "gelu"])
def test_gradients_in_float32(choice: str, option: str) -> None:
    step = STEPS["sampling, Gaussian"](12)
    made = NETWORKS[option](12)
    noise, context = noise_of(step, 16, 12), context_of(made, 16)
    exact = torch.autograd.grad(
        d_pass_inverse(made, step, noise, context).sum(), list(made.parameters())
    )
    low = copy.deepcopy(made).float()
    with backend(choice):
        context = None if context is None else context.float()
        ours = sequential_inverse(low, HeadStep(step.head.float()), noise.float(), context)
        gradients = torch.autograd.grad(ours.sum(), list(low.parameters()))
    for mine, reference in zip(gradients, exact, strict=True):
        assert mine.dtype == torch.float32
        assert (mine - reference).abs().max() <= 1e-4 * (1 + reference.abs().max())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("head", ["Gaussian", "mixture", "Bernoulli", "categorical, various"])
def test_other_precisions_run(head: str, dtype: torch.dtype) -> None:
    model = MODELS[f"{head} | context, residual, direct"]().to(dtype)
    x = model(context_of(model, 3, dtype=dtype)).sample((5,))
    assert x.shape == (5, 3, 4)
    assert x.dtype == (torch.int64 if head.startswith("cat") else dtype)


# ---------------------------------------------------------------------- what is compiled

COMPILED_STEPS = list(STEPS)
FOLDER = Path(mf.__file__).parent / "inverse" / "compiled" / "steps"
STEP_FILES = [path for path in FOLDER.glob("*.py") if path.stem != "__init__"]


@pytest.fixture
def _no_eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the sweeps in torch operations fail: what works is compiled."""
    pytest.importorskip("llvmlite")

    def fail(*_: Any) -> Tensor:
        raise RuntimeError("the sweep in torch operations")

    monkeypatch.setattr(eager, "solve", fail)
    monkeypatch.setattr(eager, "adjoint", fail)


@pytest.mark.usefixtures("_no_eager")
@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
@pytest.mark.parametrize("name", COMPILED_STEPS)
def test_heads_and_scale_rules_are_compiled(name: str, dtype: torch.dtype) -> None:
    step = STEPS[name](3)
    owner_of(step).to(dtype)
    made = made_for(step, features=3).to(dtype)
    x = sequential_inverse(made, step, noise_of(step, 4, 3).to(dtype))
    if step.differentiable:
        x.sum().backward()


@pytest.mark.usefixtures("_no_eager")
@pytest.mark.parametrize("activation", ACTIVATION_NAMES)
@pytest.mark.parametrize("residual", [False, True])
def test_activations_are_compiled(activation: str, residual: bool) -> None:
    made = made_of(features=3, activation=activation, residual=residual)
    step = STEPS["sampling, Gaussian"](3)
    sequential_inverse(made, step, noise_of(step, 4, 3)).sum().backward()


class OwnKnots(RationalQuadraticSpline):
    """Overrides a part of the map and not its kernel, which is therefore another map's."""

    def knots(self, parameters: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, y, derivatives = super().knots(parameters)
        return 2 * x, 2 * y, derivatives


@mf.saveable
class OwnSupport(mf.heads.Gaussian):
    """Overrides what no step is made of."""

    def __init__(self) -> None:
        super().__init__("exp")

    def check_values(self, x: Tensor) -> None:
        pass


class PlainAffine(Affine):
    pass


class OtherGradient(mf.ScaleRule):
    @valued_as_named
    def forward(self, a: Tensor) -> Tensor:
        return super().forward(2 * a.detach() - a)


class OwnRule(mf.ScaleRule):
    def forward(self, a: Tensor) -> Tensor:
        return 0.5 * super().forward(a)


@pytest.mark.parametrize("kind", sorted(path.stem for path in STEP_FILES))
def test_every_compiled_step_is_in_the_table(kind: str) -> None:
    kernels = [make(3).kernel() for make in STEPS.values()]
    assert kind in {kernel.kind for kernel in kernels if kernel is not None}


@pytest.mark.usefixtures("_no_eager")
@pytest.mark.parametrize("kind", [OwnSupport, PlainAffine])
def test_subclasses_that_change_no_step_are_compiled(kind: Any) -> None:
    step = HeadStep(kind()) if kind is OwnSupport else BijectionStep(kind("exp"), "inverse")
    made = made_for(step, features=3)
    noise = noise_of(step, 4, 3)
    plain = STEPS["sampling, Gaussian" if isinstance(step, HeadStep) else "inverse, affine"](3)
    owner_of(plain).scale = mf.ScaleRule("exp")
    expected = sequential_inverse(made, plain, noise)
    assert torch.equal(sequential_inverse(made, step, noise), expected)


@pytest.mark.usefixtures("_no_eager")
def test_rules_with_another_gradient_are_solved_by_the_kernel_and_not_scored_by_it() -> None:
    step = BijectionStep(Affine(OtherGradient("exp")), "inverse")
    made, noise = made_for(step, features=3), noise_of(step, 4, 3)
    expected = sequential_inverse(made, BijectionStep(Affine("exp"), "inverse"), noise)
    assert torch.equal(sequential_inverse(made, step, noise), expected)
    assert gradients_of(step, made.spec()) is None
    assert gradients_of(BijectionStep(Affine("exp"), "inverse"), made.spec()) is not None


@pytest.mark.usefixtures("_no_eager")
def test_what_is_not_compiled_takes_torch_operations() -> None:
    own = OwnKnots().double()
    for option, step in (
        ("own activation", STEPS["sampling, Gaussian"](3)),
        ("plain", BijectionStep(own, "forward")),
        ("plain", BijectionStep(Affine(OwnRule("exp")), "inverse")),
    ):
        made = NETWORKS[option](3, parameters=owner_of(step).outputs)
        with pytest.raises(RuntimeError, match="the sweep in torch operations"):
            sequential_inverse(made, step, noise_of(step, 4, 3))


# ---------------------------------------------------------------------- networks of others


@settings(max_examples=200)
@given(foreign_designs())
def test_foreign_networks(design: ForeignDesign) -> None:
    network = Foreign(design)
    step = STEPS["sampling, Gaussian"](design.features)
    noise, context = noise_of(step, 4, design.features), context_of(network, 4)
    check_values(network, step, noise, context)
    check_gradients(network, step, noise, context)


@settings(max_examples=40)
@given(foreign_designs(parameters=8), st.integers(0, 3))
def test_foreign_networks_with_a_known_prefix(design: ForeignDesign, prefix: int) -> None:
    network = Foreign(design)
    step = BijectionStep(RationalQuadraticSpline(bins=3).double(), "inverse")
    prefix = min(prefix, design.features)
    noise = noise_of(step, 4, design.features)
    known = torch.randn(4, design.features, dtype=F64)
    check_values(network, step, noise, context_of(network, 4), known=known, prefix=prefix)


@each_backend
@pytest.mark.parametrize("layer", ["output", "direct"])
def test_masks_that_are_not_autoregressive_are_refused(choice: str, layer: str) -> None:
    step = STEPS["sampling, Gaussian"](3)
    made = made_of(features=3, hidden_features=(8,), direct=True)
    {"output": made.layers[-1], "direct": made.direct}[layer].mask.fill_(1)
    message = r"Expected masks that let feature 0 \(rank 0\) read"
    with backend(choice), pytest.raises(ValueError, match=message):
        sequential_inverse(made, step, noise_of(step, 2, 3))


def test_the_spread_of_these_tests_is_one_that_shows_dependencies() -> None:
    """A guard on the checks themselves: values do depend on all the noise before them."""
    step = STEPS["sampling, Gaussian"](5)
    made = scatter(made_for(step, features=5), 0.6)
    noise = noise_of(step, 5)
    jacobian = torch.autograd.functional.jacobian(
        lambda u: mf.inverse.sequential_inverse(made, step, u), noise
    )[:, :, 0]
    assert bool((jacobian.tril().abs() > 1e-4)[torch.ones(5, 5).tril().bool()].all())
