"""Random models, changed and asked in random ways, against the same model written a second time.

A few seconds by default. ``make fuzz`` goes on for an hour, or as many seconds as the variable
``MADE_FLOWS_FUZZ_SECONDS`` says, with other examples in every round.
"""

from __future__ import annotations

import copy
import math
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

import made_flows as mf
from made_flows.inverse.d_pass import SlowInverseWarning
from made_flows.univariate import heads
from tests.helpers.architectures import Architecture, architectures
from tests.helpers.density_models import scatter
from tests.helpers.flow_models import SinhArcsinh
from tests.helpers.plain_reference import ACTIVATIONS, PlainDensity, PlainFlow

SECONDS = float(os.environ.get("MADE_FLOWS_FUZZ_SECONDS", "0"))
EXAMPLES = 25

# ------------------------------------------------------------------ what is drawn

SCALES = ("bounded", "softsign", "exp", "softplus", "sigmoid", "clamp")
HEADS: dict[str, Callable[[int, str], heads.Head]] = {
    "Gaussian": lambda D, scale: heads.Gaussian(scale),
    "mixture": lambda D, scale: heads.GaussianMixture(3, scale),
    "Bernoulli": lambda D, scale: heads.Bernoulli(),
    "categorical": lambda D, scale: heads.Categorical([1 + (i + 1) % 3 for i in range(D)], D),
}
BIJECTIONS: dict[str, Callable[[str], mf.Bijection]] = {
    "affine": mf.Affine,
    "gated": lambda scale: mf.GatedAffine(),
    "spline": lambda scale: mf.RationalQuadraticSpline(bins=3, bound=2.0),
    "own": lambda scale: SinhArcsinh(),
}


@dataclass(frozen=True)
class Case:
    """A model, what is done to it, and how it is asked; printed whole when a test fails."""

    architecture: Architecture
    part: str
    scale: str
    reads: tuple[str, ...]
    mask_weights: bool
    dtype: torch.dtype
    changes: tuple[str, ...]
    way: str
    batch: tuple[int, ...]
    seed: int

    def made(self, outputs: Any, inputs: Any = 1) -> mf.MADE:
        arguments = {**self.architecture.arguments, "mask_weights": self.mask_weights}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", mf.DependencyWarning)
            return mf.MADE(**arguments, parameters=outputs, inputs=inputs)

    def model(self) -> Any:
        torch.manual_seed(self.architecture.seed)
        features = self.architecture.features
        model: nn.Module
        if self.part in HEADS:
            head = HEADS[self.part](features, self.scale)
            model = mf.DensityModel(self.made(head.outputs, head.inputs), head)
        else:
            kind = BIJECTIONS[self.part](self.scale)
            model = mf.Flow(
                [mf.AutoregressiveTransform(self.made(kind.outputs), kind, r) for r in self.reads]
            )
        return scatter(model, 0.7).to(self.dtype).eval()


def networks(model: Any) -> list[mf.MADE]:
    return [module for module in model.modules() if isinstance(module, mf.MADE)]


def layers(model: Any) -> list[Any]:
    return [layer for made in networks(model) for layer in made.layers]


# ------------------------------------------------------------------ ways of changing a model


@torch.no_grad()
def in_place(model: Any) -> None:
    for parameter in model.parameters():
        parameter.mul_(0.8)


def through_data(model: Any) -> None:
    layers(model)[0].bias.data.neg_()
    layers(model)[-1].weight.data.mul_(-1)


def one_row_through_data(model: Any) -> None:
    layers(model)[0].weight.data[-1].neg_()


def data_replaced(model: Any) -> None:
    for parameter in model.parameters():
        parameter.data = parameter.data * 0.9


def data_transposed(model: Any) -> None:
    weight = layers(model)[-1].weight
    weight.data = weight.data.t().contiguous().t() * 0.9


def clipped(model: Any) -> None:
    for parameter in model.parameters():
        parameter.data.clamp_(-0.3, 0.3)


def optimizer(model: Any) -> None:
    steps = torch.optim.SGD(model.parameters(), lr=0.01)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    steps.step()
    steps.zero_grad()


@torch.no_grad()
def averaged(model: Any) -> None:
    for parameter in model.parameters():
        parameter.lerp_(0.5 * torch.randn_like(parameter), 0.3)


def loaded(model: Any, assign: bool = False) -> None:
    trained = dict(model.named_parameters())
    state = {k: 0.8 * v if k in trained else v for k, v in model.state_dict().items()}
    model.load_state_dict(state, assign=assign)


def masks_drawn(model: Any) -> None:
    for made in networks(model):
        if made.graph is None:
            made.resample_masks(torch.Generator().manual_seed(5))


def mask_written(model: Any) -> None:
    mask = layers(model)[0].mask
    mask.data.copy_(mask * (torch.rand(mask.shape) < 0.5))


def mask_assigned(model: Any) -> None:
    for _ in range(2):
        layer = layers(model)[-1]
        layer.mask = layer.mask * (torch.rand(layer.mask.shape) < 0.7)


def replaced(model: Any) -> None:
    layer = layers(model)[0]
    if "weight" in layer._parameters:  # torch lets no other be replaced
        layer.weight = nn.Parameter(layer.weight.detach() * 0.6)


def normalised(model: Any) -> None:
    for layer in layers(model):
        if not parametrize.is_parametrized(layer) and "weight" in layer._parameters:
            parametrizations.weight_norm(layer)
            with torch.no_grad():
                layer.parametrizations.weight.original0.mul_(1.2)


def pruned(model: Any) -> None:
    layer = layers(model)[-1]
    weight = layer._parameters.get("weight")
    if weight is not None and weight.is_contiguous():  # torch prunes no others
        prune.random_unstructured(layer, "weight", amount=0.3)


def hooked(model: Any) -> None:
    layers(model)[0].register_forward_hook(lambda layer, x, y: 0.5 * y)


def copied(model: Any) -> Any:
    try:
        return copy.deepcopy(model)
    except RuntimeError as error:  # torch copies no weights that are computed, as pruned ones are
        if "deepcopy protocol" not in str(error):
            raise
        return model


def saved(model: Any) -> Any:
    path = Path(tempfile.mkdtemp()) / "model.safetensors"
    try:
        mf.save(model, path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", mf.DependencyWarning)
            return mf.load(path)
    except ValueError as error:  # weights that are computed, and hooks
        if "to be what its constructor makes" not in str(error):
            raise
        return model
    finally:
        path.unlink(missing_ok=True)
        path.parent.rmdir()


CHANGES: dict[str, Callable[[Any], Any]] = {
    "in place": in_place,
    "through .data": through_data,
    "one row through .data": one_row_through_data,
    ".data replaced": data_replaced,
    ".data transposed": data_transposed,
    "clipped": clipped,
    "optimizer": optimizer,
    "averaged": averaged,
    "loaded": loaded,
    "loaded, assigned": lambda model: loaded(model, assign=True),
    "masks drawn": masks_drawn,
    "mask written": mask_written,
    "mask assigned": mask_assigned,
    "parameter replaced": replaced,
    "weight norm": normalised,
    "pruned": pruned,
    "hooked": hooked,
    "copied": copied,
    "saved": saved,
}

# ------------------------------------------------------------------ ways of asking

WAYS = ("plain", "inference mode", "gradients", "functional call", "thread", "other rows first")


@st.composite
def cases(draw: st.DrawFn) -> Case:
    part = draw(st.sampled_from([*HEADS, *BIJECTIONS]))
    reads = tuple(draw(st.lists(st.sampled_from(["data", "noise"]), min_size=1, max_size=2)))
    changes = draw(st.lists(st.sampled_from(list(CHANGES)), max_size=3))
    return Case(
        architecture=draw(architectures(max_features=6, max_layers=3)),
        part=part,
        scale=draw(st.sampled_from(SCALES)),
        reads=reads,
        mask_weights=draw(st.booleans()),
        dtype=draw(st.sampled_from([torch.float64, torch.float64, torch.float32, torch.bfloat16])),
        changes=tuple(changes),
        way=draw(st.sampled_from(WAYS)),
        batch=draw(st.sampled_from([(), (1,), (3,), (2, 2)])),
        seed=draw(st.integers(0, 2**16)),
    )


# ------------------------------------------------------------------ the check

ROUNDING = {torch.float64: 2e-15, torch.float32: 1e-6, torch.bfloat16: 4e-3}
"""Relative errors of weights that stand for those of arithmetic."""

NEARLY = {torch.float64: 1e-9, torch.float32: 2e-5, torch.bfloat16: 0.05}
"""What two ways of computing the same thing may differ by, where weights do not matter."""

MARGIN = {torch.float64: 1e-8, torch.float32: 1e-3, torch.bfloat16: 0.1}
"""How near a draw may come to another choice for its row to be looked at."""


class Question(nn.Module):
    """What is asked of a model, as a module, so that ``functional_call`` can ask it."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, case: Case, x: Tensor, context: Tensor | None) -> dict[str, Tensor]:
        distribution = self.model(context)
        answers = {"log_prob": torch.as_tensor(distribution.log_prob(x))}
        torch.manual_seed(case.seed)
        draw = distribution.rsample if distribution.has_rsample else distribution.sample
        shape = case.batch if context is None else ()
        answers["sample"] = torch.as_tensor(draw(shape))
        if case.part in BIJECTIONS:
            torch.manual_seed(case.seed)
            answers["drawn"], answers["its log_prob"] = distribution.rsample_and_log_prob(shape)
            answers["noise"] = self.model.to_noise(x, context)[0]
        return answers


def noise_of(model: Any, case: Case, context: Tensor | None) -> Tensor:
    """The noise that a sample is made of."""
    torch.manual_seed(case.seed)
    if case.part in HEADS:
        shape = (*case.batch, model.features)
        return torch.as_tensor(model.head.noise(shape, torch.empty(0, dtype=case.dtype)))
    base = model.base_distribution(context)
    return torch.as_tensor(base.expand(case.batch).sample())


def expected(
    model: Any, case: Case, x: Tensor, context: Tensor | None, rounding: float = 0.0
) -> tuple[dict[str, Tensor], Tensor]:
    """The answers of the second way, and the smallest margin of every row's draws."""
    activation = ACTIVATIONS[case.architecture.arguments["activation"]]
    noise = noise_of(model, case, context).double()
    rows = x.double().reshape(-1, model.features)
    contexts = None
    if context is not None:
        contexts = context.double().expand(*case.batch, -1).reshape(len(rows), -1)
    answers: dict[str, Tensor] = {}
    margins = torch.ones(len(rows), dtype=torch.float64)
    if case.part in HEADS:
        plain = PlainDensity(model, activation, rounding)
        answers["log_prob"] = plain.log_prob(rows, contexts)
        answers["sample"], margins = plain.sample(noise.reshape(*rows.shape, -1), contexts)
        if not model.head.has_rsample:
            answers["sample"] = answers["sample"].detach()
    else:
        flow = PlainFlow(model, activation, rounding)
        answers["noise"], log_det = flow.to_noise(rows, contexts)
        answers["log_prob"] = flow.of_noise(answers["noise"], log_det)
        z = noise.reshape(rows.shape)
        answers["sample"], log_det = flow.to_data(z, contexts)
        answers["drawn"] = answers["sample"]
        base = -0.5 * (z * z).sum(dim=1) - 0.5 * z.shape[1] * math.log(2 * math.pi)
        answers["its log_prob"] = base - log_det
    shapes = {"log_prob": case.batch, "its log_prob": case.batch}
    full = (*case.batch, model.features)
    return {k: v.reshape(shapes.get(k, full)) for k, v in answers.items()}, margins


def values_of(model: Any, case: Case) -> Tensor:
    shape = (*case.batch, model.features)
    if case.part == "Bernoulli":
        return torch.randint(2, shape).to(case.dtype)
    if case.part == "categorical":
        return (torch.rand(shape) * torch.tensor(model.head.categories)).long()
    return torch.randn(shape).to(case.dtype)


def gradients(answers: dict[str, Tensor], inputs: list[Tensor]) -> dict[str, Tensor]:
    """Gradients of what carries them, all inputs in one vector."""
    found = {}
    for name, answer in answers.items():
        if not answer.requires_grad:
            continue
        weights = torch.linspace(1, 2, answer.numel(), dtype=torch.float64).reshape(answer.shape)
        total = (answer.double() * weights).sum()
        each = torch.autograd.grad(total, inputs, retain_graph=True, allow_unused=True)
        found[f"gradient of {name}"] = torch.cat(
            [
                (torch.zeros_like(i) if g is None else g).double().flatten()
                for g, i in zip(each, inputs, strict=True)
            ]
        )
    return found


def asked(question: Question, case: Case, x: Tensor, context: Tensor | None) -> dict[str, Tensor]:
    if case.way == "inference mode":
        with torch.inference_mode():
            return question(case, x, context)
    if case.way == "thread":
        with ThreadPoolExecutor(2) as pool:
            first = pool.submit(question.model, context)
            answers = pool.submit(question, case, x, context).result()
            first.result()
        return answers
    return question(case, x, context)


def check(case: Case) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SlowInverseWarning)  # slow where need be, and right
        check_quietly(case)


def check_quietly(case: Case) -> None:
    model = case.model()
    x = values_of(model, case)
    context = None
    if model.context:
        context = torch.randn(*case.batch, model.context).to(case.dtype)
    Question(model)(case, x, context)  # so that there is something to be outdated
    for change in case.changes:
        changed = CHANGES[change](model)
        model = model if changed is None else changed
        if case.way == "other rows first":
            model(None if context is None else context + 1).sample((3,))
    question, overrides = Question(model), {}
    if case.way == "functional call":
        overrides = {f"model.{n}": p.detach().clone() for n, p in model.named_parameters()}
        with torch.no_grad():  # so that the model's own are others
            for parameter in model.parameters():
                parameter.mul_(0.7)
    with_gradients = case.way == "gradients" and case.dtype is not torch.bfloat16
    if with_gradients and context is not None:
        context.requires_grad_(True)
    inputs = [p for p in model.parameters() if p.requires_grad]
    inputs += [context] if with_gradients and context is not None else []

    if overrides:
        got = torch.func.functional_call(question, overrides, (case, x, context))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(overrides[f"model.{name}"])
    else:
        got = asked(question, case, x, context)
    right, margins = expected(model, case, x, context)
    others = [expected(model, case, x, context, ROUNDING[case.dtype])[0] for _ in range(2)]
    if with_gradients:
        right |= gradients(right, inputs)
        others = [other | gradients(other, inputs) for other in others]
        got |= gradients(got, inputs)
    assert got.keys() == right.keys()
    sure = (margins > MARGIN[case.dtype]).reshape(case.batch)
    for name, answer in got.items():
        compare(name, case, answer.detach(), right[name], [o[name] for o in others], sure)


def compare(
    name: str, case: Case, got: Tensor, right: Tensor, others: list[Tensor], sure: Tensor
) -> None:
    """Fail where an answer differs by more than rounding explains."""
    right = right.detach()
    assert got.shape == right.shape, f"{name}: {tuple(got.shape)}, not {tuple(right.shape)}"
    spread = torch.stack([(other.detach() - right).abs() for other in others]).amax(dim=0)
    size = right.abs()
    if right.dim() > len(case.batch):  # a sample: errors of a feature reach the others
        spread, size = (t.amax(dim=-1, keepdim=True).expand(t.shape) for t in (spread, size))
    allowed = 50 * spread + NEARLY[case.dtype] * (1 + size)
    wrong = ~((got.double() - right).abs() <= allowed)
    known = torch.isfinite(right) & torch.isfinite(spread) & (right.abs() < 1e6)
    if name == "sample":
        known &= sure.unsqueeze(-1)
    wrong &= known
    if bool(wrong.any()):
        place = tuple(wrong.nonzero()[0].tolist())
        raise AssertionError(
            f"{name}{list(place)}: got {got[place].item():.10g}, expected "
            f"{right[place].item():.10g} give or take {allowed[place].item():.2g}"
        )


# ------------------------------------------------------------------ rounds


def a_round(examples: int) -> None:
    run = settings(
        max_examples=examples,
        deadline=None,
        database=None,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    run(given(case=cases())(check))()


@pytest.mark.skipif(SECONDS > 0, reason="make fuzz asks for more")
def test_random_models_are_what_they_are_written_a_second_time() -> None:
    a_round(EXAMPLES)


@pytest.mark.slow
@pytest.mark.skipif(SECONDS <= 0, reason="make fuzz, or MADE_FLOWS_FUZZ_SECONDS=60")
def test_random_models_for_as_long_as_asked() -> None:
    start, done = time.monotonic(), 0
    while (passed := time.monotonic() - start) < SECONDS:
        line = f"{done} random models agree, {passed / 60:.0f} of {SECONDS / 60:.0f} minutes"
        sys.stderr.write(f"\rfuzz: {line}")
        sys.stderr.flush()
        a_round(200)
        done += 200
    sys.stderr.write(f"\rfuzz: {done} random models agree, in {SECONDS / 60:.0f} minutes\n")


@pytest.mark.parametrize("change", CHANGES)
def test_every_way_of_changing_a_model(change: str) -> None:
    arguments = {
        "features": 5, "context": 2, "hidden_features": (8, 6), "activation": "tanh",
        "residual": False, "direct": True, "order": [2, 0, 1, 4, 3], "degrees": "even",
    }  # fmt: skip
    for part in ("Gaussian", "affine"):
        case = Case(
            Architecture(arguments, 1), part, "bounded", ("data",), True, torch.float64,
            (change,), "plain", (3,), 4,
        )  # fmt: skip
        check(case)
