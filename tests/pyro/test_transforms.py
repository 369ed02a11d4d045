"""What Pyro checks of its transforms, of ours: both directions, Jacobians, orders, shapes."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils import parametrizations, prune

pyro = pytest.importorskip("pyro")
import pyro.distributions as dist  # noqa: E402

import made_flows as mf  # noqa: E402
import made_flows.pyro as mp  # noqa: E402
from made_flows.inverse.dispatch import backend  # noqa: E402
from tests.helpers.flow_models import shaken  # noqa: E402
from tests.helpers.pyro_layers import (  # noqa: E402
    AUTOREGRESSIVE,
    CONDITIONAL,
    CONTEXT,
    TRANSFORMS,
    conditional,
    transform,
)

F64 = torch.float64
SIZES = [1, 4]

both = pytest.mark.parametrize("features", SIZES)
every = pytest.mark.parametrize("name", TRANSFORMS)
every_conditional = pytest.mark.parametrize("name", CONDITIONAL)


def points(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=F64)


def normal(features: int, *batch: int) -> Any:
    shape = (*batch, features)
    return dist.Normal(torch.zeros(shape, dtype=F64), torch.ones(shape, dtype=F64)).to_event(1)


def under_context(name: str, features: int = 4, *batch: int) -> Any:
    return conditional(name, features).condition(points(*batch, CONTEXT))


# ---------------------------------------------------------------------- both directions


def check_directions(t: Any, x: Tensor) -> None:
    """Round trips from either side, through tensors that no memory knows."""
    torch.testing.assert_close(t.inv(t(x).clone()), x, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(t(t.inv(x).clone()), x, rtol=1e-8, atol=1e-8)


def check_log_determinant(t: Any, x: Tensor) -> None:
    """Against autograd, for the transform and for its inverse."""
    y = t(x)
    for direction, at, image in ((t, x, y), (t.inv, y.clone(), x.clone())):
        jacobian = torch.autograd.functional.jacobian(direction, at)
        expected = torch.linalg.slogdet(jacobian).logabsdet
        torch.testing.assert_close(direction.log_abs_det_jacobian(at, image), expected)


@both
@every
def test_inverse_undoes_the_transform(name: str, features: int) -> None:
    check_directions(transform(name, features), points(7, features))


@pytest.mark.parametrize("name", [*TRANSFORMS, *(f"given a context, {n}" for n in CONDITIONAL)])
def test_slow_directions_are_compiled(name: str) -> None:
    pytest.importorskip("llvmlite")
    of_context = name.removeprefix("given a context, ")
    t = transform(name, 4) if name in TRANSFORMS else under_context(of_context)
    with torch.no_grad(), backend("compiled"):  # or it raises
        t.inv(points(7, 4))
        t(points(7, 4))


@both
@every
def test_log_determinant_is_that_of_the_jacobian(name: str, features: int) -> None:
    check_log_determinant(transform(name, features), points(features))


@both
@every_conditional
def test_inverse_undoes_the_transform_under_a_context(name: str, features: int) -> None:
    check_directions(under_context(name, features, 7), points(7, features))


@both
@every_conditional
def test_log_determinant_under_a_context(name: str, features: int) -> None:
    check_log_determinant(under_context(name, features), points(features))


@both
@every
def test_gradients_are_those_of_finite_differences(name: str, features: int) -> None:
    t = transform(name, features).with_cache(0)
    x = points(2, features).requires_grad_()
    torch.autograd.gradcheck(t, (x,))
    torch.autograd.gradcheck(t.inv, (x,))


# ---------------------------------------------------------------------- order


def check_order(t: Any, order: Tensor) -> None:
    """Every feature of the image depends on all those up to its own place, and on no other."""
    size = len(order)
    found = torch.zeros(size, size, dtype=torch.bool)
    for x in points(10, size).clamp(-2, 2):  # splines are the identity far out
        jacobian = torch.autograd.functional.jacobian(t, x)
        found |= jacobian[order][:, order] != 0
    assert torch.equal(found, torch.ones_like(found).tril())


@pytest.mark.parametrize("name", AUTOREGRESSIVE)
def test_autoregressive_in_the_order_of_the_network(name: str) -> None:
    t = transform(name, 5)
    assert t.autoregressive
    check_order(t, t.arn.get_permutation())


@pytest.mark.parametrize("kind", [mp.IAF, mp.MAF])
@pytest.mark.parametrize("order", [[0, 1, 2, 3], [2, 0, 3, 1]])
def test_flows_are_autoregressive_in_the_order_given(kind: Any, order: list[int]) -> None:
    check_order(
        shaken(kind(4, transforms=1, hidden_features=(12,), order=order)), torch.tensor(order)
    )


@pytest.mark.parametrize("kind", ["IAF", "MAF"])
def test_flows_mean_the_same_here_and_in_the_library(kind: str) -> None:
    with pytest.raises(TypeError, match="positional"):
        getattr(mp, kind)(4, 2)  # a context there
    ours, theirs = getattr(mp, kind)(4).flow, getattr(mf, kind)(4)
    assert [type(t) for t in ours.transforms] == [type(t) for t in theirs.transforms]
    with pytest.raises(TypeError, match="Did you mean transforms"):
        getattr(mp, kind)(4, transform=2)


# ---------------------------------------------------------------------- shapes


@both
@every
def test_shapes_of_samples_and_scores(name: str, features: int) -> None:
    t = transform(name, features)
    for batch in ((), (3,), (2, 3)):
        flow = dist.TransformedDistribution(normal(features, *batch), [t])
        assert (flow.batch_shape, flow.event_shape) == (batch, (features,))
        for sample in ((), (5,), (2, 5)):
            x = flow.rsample(sample)
            assert x.shape == (*sample, *batch, features)
            assert flow.log_prob(x).shape == (*sample, *batch)
            assert flow.log_prob(x.clone()).shape == (*sample, *batch)
        assert t.log_abs_det_jacobian(x, t(x)).shape == x.shape[:-1]


CONTEXTS = [((), ()), ((3,), ()), ((), (3,)), ((2, 3), (3,)), ((2, 1), (3,)), ((1,), (4, 3))]


PYROS = ("affine", "spline", "spline, quadratic")
"""Names of Pyro's own conditional transforms."""


@both
@pytest.mark.parametrize("name", PYROS)
def test_shapes_of_contexts_are_what_pyros_users_rely_on(name: str, features: int) -> None:
    """A single base under a batch of contexts: as many samples as contexts give one for each."""
    base = dist.Normal(torch.zeros(features, dtype=F64), torch.ones(features, dtype=F64))
    module, contexts = conditional(name, features), points(6, CONTEXT)
    flow = dist.ConditionalTransformedDistribution(base, [module]).condition(contexts)
    assert flow.batch_shape == ()
    x = flow.rsample((6,))
    assert x.shape == (6, features)
    expected = module.condition(contexts[2]).inv(x[2].clone())
    torch.testing.assert_close(flow.transforms[0].inv(x.clone())[2], expected)
    assert flow.log_prob(x).shape == (6,)


@both
@every_conditional
@pytest.mark.parametrize(("context", "base"), CONTEXTS, ids=str)
def test_shapes_of_contexts_and_bases_broadcast(
    name: str, features: int, context: tuple[int, ...], base: tuple[int, ...]
) -> None:
    if name in PYROS:
        base = torch.broadcast_shapes(context, base)
    batch = torch.broadcast_shapes(context, base)
    flow = dist.ConditionalTransformedDistribution(
        normal(features, *base), [conditional(name, features)]
    ).condition(points(*context, CONTEXT))
    assert (flow.batch_shape, flow.event_shape) == (batch, (features,))
    for sample in ((), (5,)):
        x = flow.rsample(sample)
        assert x.shape == (*sample, *batch, features)
        assert flow.log_prob(x).shape == (*sample, *batch)
        torch.testing.assert_close(flow.log_prob(x), flow.log_prob(x.clone()))
    larger = flow.expand((2, *batch))
    assert larger.rsample().shape == (2, *batch, features)
    assert larger.log_prob(larger.rsample()).shape == (2, *batch)
    assert flow.log_prob(points(features)).shape == batch


@every_conditional
def test_rows_of_a_batch_of_contexts_are_those_of_single_contexts(name: str) -> None:
    module, contexts, x = conditional(name), points(3, CONTEXT), points(3, 4)
    together = module.condition(contexts)
    y, inverse = together(x), together.inv(x.clone())
    for i in range(3):
        alone = module.condition(contexts[i])
        torch.testing.assert_close(y[i], alone(x[i]))
        torch.testing.assert_close(inverse[i], alone.inv(x[i].clone()))
    assert not torch.allclose(y[0], module.condition(contexts[1])(x[0]))


# ---------------------------------------------------------------------- as a density


@every
def test_scores_are_those_of_the_change_of_variables(name: str) -> None:
    t = transform(name)
    flow = dist.TransformedDistribution(normal(4), [t])
    plain = t.with_cache(0)
    for y in (points(6, 4), flow.rsample((6,))):
        x = plain.inv(y)
        expected = normal(4).log_prob(x) - plain.log_abs_det_jacobian(x, y)
        torch.testing.assert_close(flow.log_prob(y), expected)


@every
def test_densities_integrate_to_one(name: str) -> None:
    flow = dist.TransformedDistribution(normal(1), [transform(name, 1)])
    grid = torch.linspace(-40, 40, 40_001, dtype=F64).unsqueeze(-1)
    total = torch.trapezoid(flow.log_prob(grid).exp(), grid[:, 0])
    torch.testing.assert_close(total, torch.ones((), dtype=F64), rtol=1e-4, atol=1e-4)


@every
def test_samples_carry_gradients_to_all_weights(name: str) -> None:
    t = transform(name)
    flow = dist.TransformedDistribution(normal(4), [t])
    x = flow.rsample((50,))
    (flow.log_prob(x) + (x**2).sum(dim=-1)).sum().backward()
    assert all(bool((p.grad != 0).any()) for p in t.parameters())


# ---------------------------------------------------------------------- as an object


@every
def test_copies_and_pickles_compute_the_same_after_use(name: str) -> None:
    t = transform(name)
    x = points(3, 4).requires_grad_()
    y = t(x)
    t.log_abs_det_jacobian(x, y).sum().backward()
    for again in (copy.deepcopy(t), pickle.loads(pickle.dumps(t))):
        assert type(again) is type(t)
        torch.testing.assert_close(again(x.detach()), y)
        torch.testing.assert_close(again.inv(y.detach()), x.detach(), rtol=1e-8, atol=1e-8)
        assert not {id(p) for p in again.parameters()} & {id(p) for p in t.parameters()}


@every_conditional
def test_conditional_copies_and_pickles_compute_the_same_after_use(name: str) -> None:
    module, context, x = conditional(name), points(3, CONTEXT).requires_grad_(), points(3, 4)
    y = module.condition(2 * context)(x)
    y.sum().backward()
    for again in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        torch.testing.assert_close(again.condition(2 * context)(x), y)


@every
def test_cache_size_changes_no_value(name: str) -> None:
    t = transform(name)
    x = points(3, 4)
    plain, again = t.with_cache(0), t.with_cache(0).with_cache(1)
    assert t.with_cache(1) is t
    assert [id(p) for p in plain.parameters()] == [id(p) for p in t.parameters()]
    y = t(x)
    for other in (plain, again):
        torch.testing.assert_close(other(x), y)
        torch.testing.assert_close(other.log_abs_det_jacobian(x, y), t.log_abs_det_jacobian(x, y))
    assert again.inv(again(x)) is not None
    assert plain.inv(plain(x)) is not x  # nothing is remembered
    with pytest.raises(ValueError, match="Expected cache_size to be 0 or 1; got 2"):
        t.with_cache(2)


@pytest.mark.parametrize("kind", ["weight norm", "pruned"])
@pytest.mark.parametrize("context", [False, True])
def test_weights_that_are_computed(kind: str, context: bool) -> None:
    made = (
        mp.ConditionalAutoRegressiveNN(4, CONTEXT, [16], skip_connections=True)
        if context
        else (mp.AutoRegressiveNN(4, [16], skip_connections=True))
    )
    made = shaken(made.double())
    for layer in (*made.layers, made.skip_layer):
        if kind == "pruned":
            prune.random_unstructured(layer, "weight", 0.3)
        else:
            parametrizations.weight_norm(layer)
    t: Any = mp.ConditionalAffineAutoregressive(made) if context else mp.AffineAutoregressive(made)
    t = t.condition(points(3, CONTEXT)) if context else t
    x = points(3, 4)
    for _ in range(2):
        back = t.inv(x.clone())  # at once after a change, before a forward pass
        torch.testing.assert_close(t(back.clone()), x, rtol=1e-8, atol=1e-8)
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.mul_(1.2)


@every
def test_the_inverse_of_the_inverse_is_the_transform(name: str) -> None:
    t = transform(name)
    assert t.inv.inv is t
    assert t.inv.inv == t
    assert t.bijective
    assert t.domain.event_dim == t.codomain.event_dim == t.inv.domain.event_dim == 1


def test_transforms_compose_as_pyros_do() -> None:
    parts = [transform("affine"), dist.transforms.Permute(torch.tensor([1, 3, 0, 2])),
             transform("MAF"), transform("inverse of affine")]  # fmt: skip
    flow = dist.TransformedDistribution(normal(4), parts)
    x = flow.rsample((6,))
    torch.testing.assert_close(flow.log_prob(x), flow.log_prob(x.clone()))
    composed = dist.transforms.ComposeTransformModule(parts)
    assert len(list(composed.parameters())) == sum(
        len(list(t.parameters())) for t in (parts[0], parts[2], parts[3])
    )
    z = points(6, 4)
    torch.testing.assert_close(composed.inv(composed(z)), z, rtol=1e-8, atol=1e-8)


@every_conditional
def test_the_inverse_of_a_conditional_transform_is_conditional(name: str) -> None:
    module, context, x = conditional(name), points(3, CONTEXT), points(3, 4)
    backwards = module.inv.condition(context)
    torch.testing.assert_close(
        backwards(x), module.condition(context).inv(x.clone()), rtol=1e-8, atol=1e-8
    )
    torch.testing.assert_close(
        backwards.log_abs_det_jacobian(x, backwards(x)),
        -module.condition(context).log_abs_det_jacobian(backwards(x), x),
    )
