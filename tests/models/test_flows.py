"""Flows as distributions: densities, samples, shapes, copies, compilation, training."""

from __future__ import annotations

import copy
import io
import math
import pickle

import pytest
import scipy.stats
import torch
from torch import Tensor
from torch.distributions import Independent, MixtureSameFamily, Normal

import made_flows as mf
from tests.helpers.flow_models import FLOWS, SinhArcsinh, context_of, data_of, shaken

every = pytest.mark.parametrize("name", FLOWS)
REPARAMETERIZED = [name for name in FLOWS if name != "MAF-MoG"]


# ---------------------------------------------------------------------- densities


@every
def test_round_trip_and_log_determinant(name: str) -> None:
    flow = FLOWS[name]()
    x, context = data_of(flow, 5), context_of(flow, 5)
    with torch.no_grad():
        z, log_det = flow.to_noise(x, context)
        back, log_det_back = flow.to_data(z, context)
        generated = flow.generate(z, context)
    torch.testing.assert_close(back, x, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(generated, x, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(log_det_back, -log_det, rtol=1e-6, atol=1e-6)
    row = None if context is None else context[0]
    jacobian = torch.autograd.functional.jacobian(lambda x: flow.to_noise(x, row)[0], x[0])
    torch.testing.assert_close(log_det[0], torch.linalg.slogdet(jacobian).logabsdet)


def _plane(points: int = 400) -> tuple[Tensor, Tensor]:
    """Points (points^2, 2) that cover the plane out to 500, and the area that each stands for."""
    t = torch.linspace(-6.9, 6.9, points, dtype=torch.float64)
    places, lengths = t.sinh(), t.cosh() * (t[1] - t[0])
    return torch.cartesian_prod(places, places), torch.outer(lengths, lengths).flatten()


@torch.no_grad()
def _cell_masses(flow: mf.Flow, context: Tensor | None) -> tuple[Tensor, Tensor]:
    """Points all over the support, and the probability of the small cell around each.

    Points are chosen in the plane; where data live in intervals, maps written here take them
    there.
    """
    plane, area = _plane()
    first = flow.transforms[0] if len(flow.transforms) else None
    x, jacobian = plane, torch.ones_like(area)
    if isinstance(first, mf.Logit):
        x = first.low + (first.high - first.low) * torch.sigmoid(plane)
        slope = (first.high - first.low) * torch.sigmoid(plane) * torch.sigmoid(-plane)
        kept = ((x > first.low) & (x < first.high)).all(dim=1)
        x, jacobian, area = x[kept], slope.prod(dim=1)[kept], area[kept]
    if isinstance(first, mf.Log):
        plane = torch.where(first.chosen, plane.clamp(-300, 300), plane)
        x = torch.where(first.chosen, plane.exp(), plane)
        jacobian = torch.where(first.chosen, x, 1.0).prod(dim=1)
    density = torch.cat([flow(context).log_prob(part) for part in x.split(20000)]).exp()
    return x, density * jacobian * area


@every
def test_density_integrates_to_one(name: str) -> None:
    flow = FLOWS[name](2)
    _, mass = _cell_masses(flow, context_of(flow))
    torch.testing.assert_close(float(mass.sum()), 1.0, rtol=0, atol=2e-3)


@every
def test_one_feature(name: str) -> None:
    """With one feature there is nothing to condition on but the context."""
    flow = FLOWS[name](1)
    context = context_of(flow)
    t = torch.linspace(-6.9, 6.9, 4001, dtype=torch.float64)
    x, weight = t.sinh(), t.cosh() * (t[1] - t[0])
    if len(flow.transforms) and isinstance(flow.transforms[0], (mf.Logit, mf.Log)):
        low, high = (-1.0, 2.0) if isinstance(flow.transforms[0], mf.Logit) else (0.0, 50.0)
        x = torch.linspace(low, high, 20002, dtype=torch.float64)[1:-1]
        weight = x[1] - x[0]
    with torch.no_grad():
        total = (flow(context).log_prob(x[:, None]).exp() * weight).sum()
    torch.testing.assert_close(float(total), 1.0, rtol=0, atol=1e-3)
    assert flow(context).sample((3,)).shape == (3, 1)


@every
def test_samples_follow_the_density(name: str) -> None:
    """A chi-square test on 36 cells; for a right sampler it fails for one seed in a million."""
    flow = FLOWS[name](2)
    context = context_of(flow)
    pilot = flow(context).sample((2000,))
    levels = torch.linspace(0, 1, 7, dtype=torch.float64)[1:-1]
    cuts = [torch.quantile(column, levels) for column in pilot.unbind(dim=1)]

    def cells(x: Tensor) -> Tensor:
        first, second = (torch.bucketize(x[:, i].contiguous(), cut) for i, cut in enumerate(cuts))
        return 6 * first + second

    x, mass = _cell_masses(flow, context)
    expected = torch.zeros(36, dtype=torch.float64).index_add(0, cells(x), mass)
    rows = 3000
    observed = torch.bincount(cells(flow(context).sample((rows,))), minlength=36)
    # The grid places the borders of cells with an error of its own: half a per cent of a cell.
    error = 0.005 * rows / 36
    deviation = ((observed - rows * expected).abs() - error).clamp(min=0)
    statistic = float((deviation**2 / (rows * expected).clamp(min=1e-9))[expected > 1e-6].sum())
    assert observed[expected <= 1e-6].sum() == 0
    # The upper 1e-6 point of chi-square with 35 degrees of freedom.
    assert statistic < 90.8


@pytest.mark.parametrize("scale", ["bounded", "softplus", "exp", "sigmoid", "clamp", "softsign"])
@pytest.mark.parametrize("context", [0, 3])
def test_one_affine_transform_is_a_gaussian_made(scale: str, context: int) -> None:
    flow = mf.MAF(5, context, transforms=1, scale=scale, base=None, direct=False).double()
    model = mf.GaussianMADE(5, context, scale=scale).double()
    with torch.no_grad():
        for weight in model.made.parameters():
            weight.add_(0.2 * torch.randn_like(weight))
    flow.transforms[0].conditioner.load_state_dict(model.made.state_dict())
    x, c = torch.randn(20, 5).double(), context_of(flow, 20)
    torch.testing.assert_close(flow(c).log_prob(x), model(c).log_prob(x), rtol=1e-13, atol=1e-13)
    torch.manual_seed(7)
    ours = flow(c).sample((3,))
    torch.manual_seed(7)
    torch.testing.assert_close(ours, model(c).sample((3,)), rtol=1e-12, atol=1e-12)


# ---------------------------------------------------------------------- samples


@pytest.mark.parametrize("name", REPARAMETERIZED)
def test_rsample_and_log_prob_is_the_log_prob_of_its_samples(name: str) -> None:
    flow = FLOWS[name]()
    distribution = flow(context_of(flow, 3))
    shape = (3,) if flow.context else ()
    torch.manual_seed(3)
    x, log_prob = distribution.rsample_and_log_prob((6,))
    assert x.shape == (6, *shape, 4)
    assert log_prob.shape == (6, *shape)
    torch.testing.assert_close(log_prob, distribution.log_prob(x), rtol=1e-7, atol=1e-7)
    torch.manual_seed(3)
    torch.testing.assert_close(distribution.rsample((6,)), x)
    torch.manual_seed(3)
    torch.testing.assert_close(distribution.sample((6,)), x.detach())


@pytest.mark.parametrize("name", REPARAMETERIZED)
def test_every_parameter_has_a_gradient(name: str) -> None:
    flow = FLOWS[name]()
    distribution = flow(context_of(flow, 30))
    x, log_prob = distribution.rsample_and_log_prob((30,) if not flow.context else ())
    weight = torch.randn_like(x)
    for loss in ((x * weight).sum() + log_prob.sum(), distribution.log_prob(x.detach()).sum()):
        flow.zero_grad()
        if loss.requires_grad:
            loss.backward()
        for parameter in flow.parameters():
            assert parameter.grad is not None
            assert torch.isfinite(parameter.grad).all()
            assert parameter.grad.abs().sum() > 0


@pytest.mark.parametrize("kind", [mf.MAF, mf.IAF])
def test_sample_log_prob_has_the_gradient_of_its_parts(kind) -> None:
    """d/dw log q(x(w); w) by central differences, the noise held fixed."""
    flow = kind(3, transforms=2, hidden_features=(8,), activation="tanh").double().eval()
    with torch.no_grad():
        for weight in flow.parameters():
            weight.add_(0.3 * torch.randn_like(weight))

    def loss() -> Tensor:
        torch.manual_seed(11)
        x, log_prob = flow().rsample_and_log_prob((4,))
        return (log_prob + x.sin().sum(-1)).sum()

    weight = flow.transforms[0].conditioner.layers[0].weight
    loss().backward()
    row, column = weight.grad.abs().argmax().item() // 3, weight.grad.abs().argmax().item() % 3
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            weight[row, column] += sign * 1e-6
            values.append(float(loss()))
            weight[row, column] -= sign * 1e-6
    difference = (values[0] - values[1]) / 2e-6
    torch.testing.assert_close(float(weight.grad[row, column]), difference, rtol=1e-5, atol=1e-6)


def test_samples_without_gradients_say_so() -> None:
    distribution = FLOWS["MAF-MoG"]()(torch.zeros(2).double())
    assert not distribution.has_rsample
    with pytest.raises(NotImplementedError, match=r"use sample\(\)"):
        distribution.rsample()
    with pytest.raises(NotImplementedError, match=r"use sample\(\)"):
        distribution.rsample_and_log_prob()
    assert not FLOWS["MAF"]()().sample().requires_grad
    assert FLOWS["MAF"]()().rsample().requires_grad


# ---------------------------------------------------------------------- shapes


@every
def test_shapes(name: str) -> None:
    flow = FLOWS[name]()
    batch = (3, 2) if flow.context else ()
    distribution = flow(context_of(flow, *batch))
    assert distribution.batch_shape == batch
    assert distribution.event_shape == (4,)
    assert distribution.sample().shape == (*batch, 4)
    assert distribution.sample((5, 1)).shape == (5, 1, *batch, 4)
    assert distribution.log_prob(data_of(flow)).shape == batch
    assert distribution.log_prob(data_of(flow, 5, 1, *batch)).shape == (5, 1, *batch)
    wide = distribution.expand((7, *batch))
    assert wide.batch_shape == (7, *batch)
    assert wide.sample((2,)).shape == (2, 7, *batch, 4)
    x = data_of(flow, 7, *batch)
    torch.testing.assert_close(wide.log_prob(x), distribution.log_prob(x))
    assert wide.log_prob(data_of(flow)).shape == (7, *batch)
    assert wide.log_prob(data_of(flow, 5, 1, *[1] * len(batch))).shape == (5, 7, *batch)
    with pytest.raises(ValueError, match="broadcast together"):
        wide.log_prob(data_of(flow, 6, *batch))
    assert "batch_shape" in repr(wide)
    nothing = distribution.log_prob(data_of(flow, 2, 0, *batch).requires_grad_())
    assert nothing.shape == (2, 0, *batch)
    nothing.sum().backward()  # of no rows there are gradients, of no numbers
    assert distribution.sample((0,)).shape == (0, *batch, 4)
    if distribution.has_rsample:
        assert distribution.rsample_and_log_prob((0, 2))[1].shape == (0, 2, *batch)


def test_expand_refuses_what_does_not_broadcast() -> None:
    distribution = mf.MAF(3, 2)(torch.zeros(4, 2))
    with pytest.raises(ValueError, match=r"batch_shape \(4,\) broadcasts to; got \(\)"):
        distribution.expand(())
    with pytest.raises(ValueError, match=r"broadcast together; got expanded \(5,\)"):
        distribution.expand((5,))


def test_batches_of_base_and_context_broadcast() -> None:
    base = Independent(Normal(torch.zeros(2, 3), torch.ones(2, 3)), 1)
    flow = mf.MAF(3, 4, transforms=1, base=base)
    distribution = flow(torch.randn(5, 1, 4))
    assert distribution.batch_shape == (5, 2)
    assert distribution.sample((6,)).shape == (6, 5, 2, 3)
    assert distribution.log_prob(torch.zeros(3)).shape == (5, 2)
    assert distribution.rsample_and_log_prob((6,))[1].shape == (6, 5, 2)
    with pytest.raises(ValueError, match=r"broadcast together; got base \(2,\), context \(3,\)"):
        flow(torch.randn(3, 4))


def test_heavy_tailed_noise_is_students():
    flow = mf.Flow([mf.Permutation(3)], base="student")
    student = torch.distributions.StudentT(torch.tensor(8.0, dtype=torch.float64))
    z = 30 * torch.randn(50, 3, dtype=torch.float64)
    scores = flow.double()().log_prob(z)
    torch.testing.assert_close(scores, student.log_prob(z).sum(-1))
    drawn = flow().sample((20_000,)).flatten()
    # False alarms: one in ten thousand.
    assert scipy.stats.kstest(drawn.numpy(), scipy.stats.t(8).cdf).pvalue > 1e-4
    context = mf.MAF(3, 2, transforms=1)(torch.zeros(4, 2))
    x, log_prob = context.rsample_and_log_prob((5,))
    assert x.shape == (5, 4, 3)
    torch.testing.assert_close(log_prob, context.log_prob(x))


@every
def test_rows_do_not_see_one_another(name: str) -> None:
    flow = FLOWS[name]()
    x, context = data_of(flow, 6), context_of(flow, 6)
    whole = flow(context).log_prob(x)
    for i in range(6):
        row = flow(None if context is None else context[i]).log_prob(x[i])
        torch.testing.assert_close(whole[i], row)


# ---------------------------------------------------------------------- copies and moves


@every
def test_copies_give_the_same_numbers(name: str, tmp_path) -> None:
    flow = FLOWS[name]()
    x, context = data_of(flow, 4), context_of(flow, 4)
    expected = flow(context).log_prob(x)
    stored = io.BytesIO()
    torch.save(flow.state_dict(), stored)
    stored.seek(0)
    renewed = copy.deepcopy(flow)
    with torch.no_grad():
        for weight in renewed.parameters():
            weight.zero_()
    renewed.load_state_dict(torch.load(stored))
    copies = [copy.deepcopy(flow), pickle.loads(pickle.dumps(flow)), renewed]
    if name != "MAF, torch base":
        mf.save(flow, tmp_path / "flow.safetensors")
        copies.append(mf.load(tmp_path / "flow.safetensors"))
    for other in copies:
        assert type(other) is type(flow)
        torch.testing.assert_close(other(context).log_prob(x), expected, rtol=0, atol=0)
        torch.manual_seed(5)
        samples = flow(context).sample((2,))
        torch.manual_seed(5)
        torch.testing.assert_close(other(context).sample((2,)), samples, rtol=0, atol=0)


def test_a_flow_over_a_torch_distribution_says_why_it_cannot_be_saved(tmp_path) -> None:
    with pytest.raises(TypeError, match=r"MAF\.base to be one that can be saved"):
        mf.save(FLOWS["MAF, torch base"](), tmp_path / "flow.safetensors")


@every
def test_moves_to_float32(name: str) -> None:
    flow = FLOWS[name]()
    x, context = data_of(flow, 20), context_of(flow, 20)
    expected = flow(context).log_prob(x)
    flow.float()
    context = None if context is None else context.float()
    got = flow(context).log_prob(x.float())
    assert got.dtype == flow(context).sample().dtype == torch.float32
    torch.testing.assert_close(got.double(), expected, rtol=1e-3, atol=1e-2)


def test_torch_bases_move_with_the_flow() -> None:
    def mixture() -> MixtureSameFamily:
        parts = Independent(Normal(torch.randn(2, 3), torch.ones(2, 3)), 1)
        return MixtureSameFamily(torch.distributions.Categorical(torch.tensor([0.2, 0.8])), parts)

    for base in (
        mixture(),
        torch.distributions.MultivariateNormal(torch.zeros(3), torch.eye(3)),
        torch.distributions.TransformedDistribution(
            Independent(Normal(torch.zeros(3), torch.ones(3)), 1),
            [torch.distributions.AffineTransform(torch.ones(3), 2.0, event_dim=1)],
        ),
    ):
        x = torch.randn(7, 3)
        flow = mf.MAF(3, transforms=1, base=base)
        expected = flow().log_prob(x)
        flow.double()
        got = flow().log_prob(x.double())
        assert got.dtype == flow().sample().dtype == torch.float64
        torch.testing.assert_close(got.float(), expected)
        assert base.sample().dtype == torch.float32  # the one given stays as it was


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@every
def test_moves_to_a_gpu(name: str) -> None:
    flow = FLOWS[name]()
    x, context = data_of(flow, 20), context_of(flow, 20)
    expected = flow(context).log_prob(x)
    flow.cuda()
    context = None if context is None else context.cuda()
    torch.testing.assert_close(flow(context).log_prob(x.cuda()).cpu(), expected)
    samples = flow(context).sample((3,))
    assert samples.device.type == "cuda"
    z, _ = flow.to_noise(samples, context)
    torch.testing.assert_close(flow.to_data(z, context)[0], samples)


# ---------------------------------------------------------------------- compile and vmap

_ONE = {"transforms": 1, "hidden_features": (12,)}
COMPILED = {
    "MAF, spline": (lambda: shaken(mf.MAF(4, 2, **_ONE, bijection="spline")), (8,)),
    "MAF, batch norm": (lambda: shaken(mf.MAF(4, **_ONE, normalize="batch")), (8, 5)),
    "IAF, gated": (FLOWS["IAF, gated"], (8,)),
}
"""Flows and numbers of rows: at a second one torch compiles for any number, which takes it long."""


# The compiler makes an instance of a function, against torch's own advice.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("name", COMPILED)
def test_compiles_without_a_graph_break(name: str) -> None:
    make, numbers = COMPILED[name]
    flow = make()

    def score(x: Tensor, context: Tensor | None) -> Tensor:
        return flow(context).log_prob(x)

    def there_and_back(x: Tensor, context: Tensor | None) -> Tensor:
        return flow.to_data(flow.to_noise(x, context)[0], context)[0]

    torch.compiler.reset()
    returned = torch.compile(there_and_back, fullgraph=True, backend="eager")  # no gradients
    compiled = torch.compile(score, fullgraph=True, backend="aot_eager")
    for rows in numbers:
        x, context = data_of(flow, rows), context_of(flow, rows)
        with torch.no_grad():
            torch.testing.assert_close(returned(x, context), x)
        results = []
        for function in (score, compiled):
            scores = function(x, context)
            results.append((scores, *torch.autograd.grad(scores.sum(), list(flow.parameters()))))
        for one, other in zip(*results, strict=True):
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("context", [0, 2])
def test_exports_for_any_number_of_rows(strict: bool, gradient: bool, context: int) -> None:
    class Score(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.flow = shaken(mf.IAF(4, context, **_ONE))

        def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
            return self.flow(context).log_prob(x)

    score = Score()
    few, many = (
        tuple(t for t in (data_of(score.flow, n), context_of(score.flow, n)) if t is not None)
        for n in (5, 9)
    )
    rows = torch.export.Dim("rows")
    with torch.set_grad_enabled(gradient):
        exported = torch.export.export(
            score, few, dynamic_shapes=tuple({0: rows} for _ in few), strict=strict
        ).module()
        found, expected = exported(*many), score(*many)
        torch.testing.assert_close(found, expected)
        if gradient:
            weights = dict(exported.named_parameters()), dict(score.named_parameters())
            ours, theirs = (
                torch.autograd.grad(value.sum(), [weight[name] for name in sorted(weight)])
                for value, weight in zip((found, expected), weights, strict=True)
            )
            for one, other in zip(ours, theirs, strict=True):
                torch.testing.assert_close(one, other)


@every
def test_vmap_over_rows_equals_the_batch(name: str) -> None:
    flow = FLOWS[name]()
    x, context = data_of(flow, 6), context_of(flow, 6)
    with torch.no_grad():
        z, _ = flow.to_noise(x, context)
        for function, first in (
            (lambda x, c=None: flow(c).log_prob(x), x),
            (lambda z, c=None: flow.to_data(z, c)[1], z),
        ):
            arguments = (first,) if context is None else (first, context)
            torch.testing.assert_close(torch.vmap(function)(*arguments), function(*arguments))


# ---------------------------------------------------------------------- structure


def test_orders_of_the_transforms() -> None:
    def orders(**arguments) -> list[list[int]]:
        flow = mf.MAF(4, transforms=3, **arguments)
        return [t.conditioner.order.tolist() for t in flow.transforms]

    assert orders() == [[0, 1, 2, 3], [3, 2, 1, 0], [0, 1, 2, 3]]
    assert orders(order=[1, 3, 0, 2]) == [[1, 3, 0, 2], [2, 0, 3, 1], [1, 3, 0, 2]]
    one, two = (
        orders(order="random", generator=torch.Generator().manual_seed(2)) for _ in range(2)
    )
    assert one == two
    assert len({tuple(order) for order in one}) > 1


def test_one_transform_of_a_graph_is_a_bayesian_network() -> None:
    """In the chain 0 -> 1 -> 2, log p has no term of 0 and 2; with two transforms it does."""
    chain = torch.tensor([[0, 0, 0], [1, 0, 0], [0, 1, 0]])
    for transforms, independent in ((None, True), (2, False)):
        flow = mf.MAF(3, transforms=transforms, adjacency=chain, activation="tanh").double()
        with torch.no_grad():
            for weight in flow.parameters():
                weight.add_(0.3 * torch.randn_like(weight))
        x = torch.randn(3, dtype=torch.float64)
        hessian = torch.autograd.functional.hessian(lambda x, f=flow: f().log_prob(x), x)
        assert (abs(float(hessian[0, 2])) < 1e-12) is independent
        assert abs(float(hessian[0, 1])) > 1e-6


def test_levels_of_a_graph_are_solved_together() -> None:
    star = torch.zeros(6, 6)
    star[1:, 0] = 1
    flow = mf.MAF(6, adjacency=star)
    assert flow.transforms[0].conditioner.ranks.tolist() == [0, 1, 1, 1, 1, 1]
    assert "graph of 2 levels" in flow.summary()


def test_summary_says_what_is_sequential() -> None:
    maf, iaf = mf.MAF(3, 2, transforms=4), mf.IAF(3, transforms=3, bijection="spline")
    assert maf.summary().startswith("MAF: 3 features, context 2, ")
    assert "log_prob: parallel" in maf.summary()
    assert "sample: 4 sequential inverses" in maf.summary()
    assert "sample: parallel" in iaf.summary()
    assert "log_prob: 3 sequential inverses" in iaf.summary()
    assert iaf.summary().count("RationalQuadraticSpline, MADE (64, 64)") == 3
    assert str(sum(p.numel() for p in maf.parameters())) in maf.summary()
    nested = mf.Flow([mf.Standardize([0.0] * 3, [1.0] * 3)], base=maf)
    assert "Standardize" in nested.summary()
    assert "sample: 4 sequential inverses" in nested.summary()
    mixture = mf.MAF(3, transforms=4, base=mf.GaussianMixtureMADE(3))
    assert "sample: 5 sequential inverses" in mixture.summary()


EDGE = torch.tensor([[0, 0], [1, 0]])
LINEAR = {
    "default": (lambda: mf.MAF(3, bijection="spline"), "RARRR"),
    "two": (lambda: mf.MAF(3, transforms=2, bijection="spline"), "RA"),
    "said": (lambda: mf.MAF(3, 1, bijection=mf.RationalQuadraticSpline(4), linear=True), "RARRR"),
    "one transform": (lambda: mf.MAF(3, transforms=1, bijection="spline"), "R"),
    "one column": (lambda: mf.MAF(1, bijection="spline"), "RRRRR"),
    "a bijection": (lambda: mf.MAF(3, bijection=mf.RationalQuadraticSpline(4)), "RRRRR"),
    "a context": (lambda: mf.MAF(3, 1, bijection="spline"), "RRRRR"),
    "direct": (lambda: mf.MAF(3, bijection="spline", direct=True), "RRRRR"),
    "a graph": (lambda: mf.MAF(2, transforms=2, bijection="spline", adjacency=EDGE), "RR"),
    "many columns": (lambda: mf.MAF(101, bijection="spline", hidden_features=(128,)), "RRRRR"),
    "affine": (lambda: mf.MAF(3), "AAAAA"),
    "of noise": (lambda: mf.IAF(3, bijection="spline"), "RRRRR"),
}


@pytest.mark.parametrize("name", LINEAR)
def test_which_splines_give_way_to_a_linear_transform(name: str) -> None:
    make, kinds = LINEAR[name]
    flow = make()
    assert "".join(type(one.bijection).__name__[0] for one in flow.transforms) == kinds
    if "R" in kinds:
        linear = [one.conditioner.shape.direct_first for one in flow.transforms]
        assert linear == [kind == "A" for kind in kinds]


def test_repr_shows_the_structure() -> None:
    shown = repr(mf.MAF(3, transforms=2, normalize="batch", bijection="spline"))
    for part in ("order=natural", "order=reversed", "BatchNorm", "bins=8", "StudentT"):
        assert part in shown


# ---------------------------------------------------------------------- errors

MADE_CYCLE = torch.tensor([[0, 1], [1, 0]])


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: mf.MAF(0), ValueError, "features to be a positive integer; got 0"),
        (lambda: mf.MAF(3, transforms=0), ValueError, "transforms to be a positive integer"),
        (lambda: mf.MAF(3, transforms=2.5), TypeError, "transforms to be a positive integer"),
        (lambda: mf.MAF(3, order="sorted"), ValueError, "order to be 'reverse', 'random' or"),
        (lambda: mf.MAF(3, order=[0, 0, 1]), ValueError, "order to be a permutation of 0..2"),
        (lambda: mf.MAF(3, normalize="layer"), ValueError, "normalize to be None, 'batch' or"),
        (lambda: mf.IAF(3, bijection="cubic"), ValueError, "bijection to be a Bijection or one of"),
        (lambda: mf.IAF(3, bijection=7), ValueError, "bijection to be a Bijection or one of"),
        (lambda: mf.MAF(3, bijection="spline", scale="exp"), ValueError, "scale to be left out"),
        (lambda: mf.MAF(3, bijection=SinhArcsinh(), scale="exp"), ValueError, "scale to be left"),
        (lambda: mf.MAF(2, adjacency=MADE_CYCLE), ValueError, "adjacency to have no cycle; got on"),
        (
            lambda: mf.MAF(2, order="random", adjacency=torch.zeros(2, 2)),
            ValueError,
            "order to be left out when adjacency is given",
        ),
        (lambda: mf.MAF(3, base=Normal(0.0, 1.0)), ValueError, r"base with event_shape \(D,\)"),
        (
            lambda: mf.MAF(3, base=Independent(Normal(torch.zeros(2), 1.0), 1)),
            ValueError,
            "base to have 3 features; got 2",
        ),
        (lambda: mf.MAF(3, base=torch.nn.Linear(3, 3)), TypeError, "base to be None, a torch Dis"),
        (lambda: mf.MAF(3, base="normal"), TypeError, "base to be None, a torch Distribution"),
        (
            lambda: mf.MAF(3, 2, base=mf.GaussianMADE(3, 4)),
            ValueError,
            r"transforms and base to take one context; got \[2",
        ),
        (lambda: mf.Flow([]), ValueError, "base to be given to a flow without transforms"),
        (lambda: mf.Flow([torch.nn.ReLU()]), TypeError, r"transforms\[0\] to be a Transform"),
        (
            lambda: mf.Flow([mf.Permutation(3), mf.Permutation(4)]),
            ValueError,
            r"transforms\[1\] to have 3 features, as the first has; got 4",
        ),
    ],
)
def test_bad_arguments(make, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"Expected {message}"):
        make()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_named(value: float) -> None:
    x = torch.zeros(4, 3)
    x[2, 1] = value
    for kind in (mf.MAF, mf.IAF):
        with pytest.raises(ValueError, match=r"value to be finite; got .* in row 2, column 1"):
            kind(3)().log_prob(x)


def test_context_and_shape_errors() -> None:
    with pytest.raises(ValueError, match=r"Expected no context.*context=0; got one of shape"):
        mf.MAF(3)(torch.zeros(2))
    with pytest.raises(ValueError, match=r"context of shape \(\.\.\., 2\).*got none"):
        mf.MAF(3, 2)()
    with pytest.raises(ValueError, match=r"context of shape \(\.\.\., 2\); got \(5, 3\)"):
        mf.MAF(3, 2)(torch.zeros(5, 3))
    with pytest.raises(ValueError, match=r"value of shape \(\.\.\., 3\); got \(4,\)"):
        mf.MAF(3)().log_prob(torch.zeros(4))
    with pytest.raises(ValueError, match=r"broadcast together; got value \(4,\), batch_shape"):
        mf.MAF(3, 2)(torch.zeros(5, 2)).log_prob(torch.zeros(4, 3))
    with pytest.raises(TypeError, match=r"of dtype torch\.float32, that of the model"):
        mf.MAF(3)().log_prob(torch.zeros(3, dtype=torch.float64))


# ---------------------------------------------------------------------- numerics and training


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-3), (torch.float64, 1e-8)], ids=str
)
def test_twenty_layers_round_trip(dtype: torch.dtype, tolerance: float) -> None:
    """On data with strong dependence, after training has moved the weights."""
    x = torch.randn(1024, 8, dtype=dtype)
    x = torch.cat([x[:, :4], x[:, :4] ** 2 + 0.1 * x[:, 4:]], dim=1)
    flow = mf.MAF(8, transforms=20, hidden_features=(32,)).to(dtype)
    history = mf.fit(flow, x[:512], max_epochs=8, learning_rate=3e-3, progress=False, seed=0)
    assert history.train[-1] < history.train[0] - 1
    flow.eval()
    with torch.no_grad():
        z, log_det = flow.to_noise(x)
        back, log_det_back = flow.to_data(z)
        assert float((back - x).abs().max()) < tolerance
        assert float((log_det + log_det_back).abs().max()) < tolerance
        # Samples too, but for the few that 20 layers throw far out, where numbers are sparse.
        x, log_prob = flow().rsample_and_log_prob((512,))
        near = x.abs().amax(dim=1) < 20
        assert near.float().mean() > 0.9
        z, _ = flow.to_noise(x)
        assert float((flow.to_data(z)[0] - x)[near].abs().max()) < tolerance
        error = (flow().log_prob(x) - log_prob)[near].abs().max()
        assert float(error) < tolerance


@pytest.mark.parametrize("scale", ["bounded", "exp"])
@pytest.mark.parametrize("rate", [0.05, 1.0, 100.0])
def test_learning_rates_far_too_high_never_leave_nan_weights(scale: str, rate: float) -> None:
    x = torch.randn(300, 3).exp() * torch.tensor([1.0, 10.0, 0.1])
    flow = mf.MAF(3, transforms=5, hidden_features=(16,), scale=scale)
    failed = False
    try:
        mf.fit(flow, x, max_epochs=15, batch_size=50, learning_rate=rate, progress=False, seed=0)
    except mf.TrainingError:
        failed = True
    assert failed or rate < 100 or scale == "bounded"
    for weight in flow.parameters():
        assert torch.isfinite(weight).all()
    # Finite scores too: the weights kept are those of the best epoch.
    assert torch.isfinite(flow.eval()().log_prob(x)).all()


@pytest.mark.parametrize(
    ("bijection", "normalize"),
    [("affine", None), ("affine", "batch"), ("affine", "actnorm"), ("spline", None)],
)
def test_maf_learns_what_a_gaussian_cannot(bijection: str, normalize: str | None) -> None:
    """y = x^2 + noise: the best Gaussian scores 2.6 nats worse than the truth."""
    noise = torch.randn(2000, 2)
    x = torch.stack([noise[:, 0], noise[:, 0] ** 2 + 0.1 * noise[:, 1]], dim=1)
    truth = 0.5 * (noise**2).sum(1).mean() + math.log(2 * math.pi) + math.log(0.1)
    flow = mf.MAF(2, transforms=3, hidden_features=(32,), normalize=normalize, bijection=bijection)
    mf.fit(flow, x, max_epochs=25, learning_rate=5e-3, batch_size=200, progress=False, seed=0)
    with torch.no_grad():
        nll = -flow.eval()().log_prob(x).mean()
    assert float(nll) < float(truth) + 1
    # And samples show it: their second feature is the square of the first.
    samples = flow().sample((1000,))
    left = samples[:, 1] - samples[:, 0] ** 2
    assert float(left.abs().median()) < 0.3


def test_iaf_learns_a_posterior_through_its_samples() -> None:
    """The reverse Kullback-Leibler divergence from a curved target, whose best value is 0."""
    torch.manual_seed(0)
    flow = mf.IAF(2, transforms=2, hidden_features=(32,))
    optimizer = torch.optim.Adam(flow.parameters(), lr=1e-2)

    def divergence(rows: int) -> Tensor:
        x, log_q = flow().rsample_and_log_prob((rows,))
        target = Normal(0.0, 1.0).log_prob(x[:, 0])
        target = target + Normal(x[:, 0] ** 2, 0.5).log_prob(x[:, 1])
        return (log_q - target).mean()

    with torch.no_grad():
        start = float(divergence(1000))
    for _ in range(300):
        optimizer.zero_grad()
        divergence(64).backward()
        optimizer.step()
    with torch.no_grad():
        assert float(divergence(5000)) < min(0.1, start / 5)
