"""Path gradients: samples of a flow, with the gradient of their log-density at the sample.

The gradient of an ELBO has a part of mean zero, by which log q depends on its parameters where the
sample stays. Without it, noise vanishes where q is the posterior. What remains needs the gradient
of log q with respect to the sample.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from made_flows.inverse.problem import Conditioner
from made_flows.inverse.sequential import pull_back
from made_flows.inverse.steps import BijectionStep
from made_flows.models.bases import StandardNormal
from made_flows.models.flows import Flow
from made_flows.models.variational import DampedAffine, TriangularAffine
from made_flows.nn.made import MADE
from made_flows.nn.validation import NotUnderstoodError
from made_flows.transforms.autoregressive import AutoregressiveTransform
from made_flows.transforms.base import Transform

_JACOBIAN_UP_TO = 32
"""Features up to which the Jacobian of an affine transform takes less time than a sweep."""


class ScoredSample(NamedTuple):
    """Samples of a flow.

    Args:
        x: the samples (..., D), with a gradient to the weights.
        log_det: log |det dx/dz| (...), likewise.
        score: gradient of log q at x with respect to x (..., D), a constant.
    """

    x: Tensor
    log_det: Tensor
    score: Tensor


def sample_with_score(flow: Flow, noise: Tensor) -> ScoredSample:
    r"""Draw samples from noise, with the gradient of their log-density in the sample.

    .. math:: \nabla_x \log q(x) = J^{-\top} \nabla_z \bigl(\log p_0(z) - \log |\det J|\bigr),
        \qquad J = \partial x / \partial z

    transform by transform, so that no Jacobian is the product of many. The transposed system of an
    autoregressive transform is solved by one sweep over its network; where there are few features,
    or the network is not known in its parts, the Jacobian is computed in full.

    Args:
        flow: a flow without a context, whose samples are a parallel pass.
        noise: z (..., D).

    Returns:
        samples, log-determinants and scores; scores are not finite where a Jacobian is singular.

    References:
        Roeder, Wu & Duvenaud 2017, *Sticking the Landing*; Vaitl, Nicoli, Nakajima & Kessel 2022,
        *Gradients should stay on Path*, section 4.

    Example:
        >>> import made_flows as mf
        >>> flow = mf.IAF(2, transforms=1)
        >>> x, _, score = sample_with_score(flow, torch.randn(5, 2))
        >>> x = x.detach().requires_grad_()
        >>> (exact,) = torch.autograd.grad(flow().log_prob(x).sum(), x)
        >>> torch.allclose(score, exact, atol=1e-4)
        True
    """
    z = noise.reshape(-1, noise.shape[-1])
    if isinstance(flow.base, StandardNormal):
        score = -z.detach()
    else:
        with torch.enable_grad():
            leaf = z.detach().clone().requires_grad_()
            density = flow.base_distribution().log_prob(leaf).sum()
            (score,) = torch.autograd.grad(density, leaf)
    total: Tensor | None = None
    for transform in reversed(flow._chain()):
        z, log_det, score = _past(transform, z, score)
        total = log_det if total is None else total + log_det
    total = z.new_zeros(len(z)) if total is None else total
    shape = noise.shape
    return ScoredSample(z.reshape(shape), total.reshape(shape[:-1]), score.reshape(shape))


def _past(transform: Transform, z: Tensor, score: Tensor) -> ScoredSample:
    """Take noise and its score past one transform: from noise (N, D) and its score to data."""
    if isinstance(transform, TriangularAffine):
        x, log_det = transform.to_data(z)
        return ScoredSample(x, log_det, transform.pull_back(score))
    if type(transform) is AutoregressiveTransform and transform.reads == "noise":
        made, bijection = transform.conditioner, transform.bijection
        if (
            transform.features <= _JACOBIAN_UP_TO
            and type(bijection) is DampedAffine
            and bijection.scale.rule == "bounded"
            and _plain(made)
        ):
            return _past_affine(made, bijection, z, score)
        try:
            return _by_sweep(transform, z, score)
        except NotUnderstoodError:
            pass  # a network with hooks, say, which a sweep over its layers would leave out
    x, log_det = transform.to_data(z)
    jacobian, of_log_det = _by_autograd(transform, z.detach())
    return ScoredSample(x, log_det, _solved(jacobian, score - of_log_det))


def _by_sweep(transform: AutoregressiveTransform, z: Tensor, score: Tensor) -> ScoredSample:
    """Carry samples past an autoregressive transform of any kind, in the work of a pass or two.

    The sample x is known and z solves the sequential inverse at x, so that the transposed system
    of the Jacobian is the one that this inverse's gradient solves.
    """
    with torch.enable_grad():
        start = z if z.requires_grad else z.detach().requires_grad_()
        x, log_det = transform.to_data(start)
        (of_log_det,) = torch.autograd.grad(log_det.sum(), start, retain_graph=True)
    step = BijectionStep(transform.bijection, "inverse")
    conditioner = cast(Conditioner, transform.conditioner)
    wanted = score - of_log_det
    score = pull_back(conditioner, step, x.detach().unsqueeze(-1), z.detach(), wanted)
    return ScoredSample(x, log_det, score)


def _solved(jacobian: Tensor, wanted: Tensor, ranks: Tensor | None = None) -> Tensor:
    """Solve the transposed system, which may be triangular in the order of ranks."""
    order = [] if ranks is None else ranks.tolist()
    columns = wanted.unsqueeze(-1)
    if order and order in (sorted(order), sorted(order, reverse=True)):
        upper = order[0] == 0
        solution: Tensor = torch.linalg.solve_triangular(jacobian.mT, columns, upper=upper)
    else:
        solution = torch.linalg.solve_ex(jacobian.mT, columns).result
    return solution.squeeze(-1)


def _by_autograd(transform: Transform, z: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the Jacobian (N, D, D) of the data and the gradient (N, D) of its log-determinant.

    From one pass with every row D + 1 times: copy i is asked for feature i, the last one for the
    log-determinant.
    """
    with torch.enable_grad():
        copies = z.expand(z.shape[-1] + 1, *z.shape).clone().requires_grad_()
        x, log_det = transform.to_data(copies)
        asked = x[:-1].diagonal(dim1=0, dim2=2).sum() + log_det[-1].sum()
        (gradient,) = torch.autograd.grad(asked, copies)
    return gradient[:-1].movedim(0, 1), gradient[-1]


# ---------------------------------------------------------------------- by products of matrices

# The same as by autograd, in a third of the calls: at the size of most posteriors a step of
# training is as long as its calls are many.

_DERIVATIVES: dict[type, Callable[[Tensor], Tensor]] = {
    nn.Tanh: lambda a: 1 - a.square(),
    nn.ReLU: lambda a: (a > 0).to(a.dtype),
    nn.Sigmoid: lambda a: a * (1 - a),
}
"""Derivatives of activations, from their results."""


def _plain(made: MADE) -> bool:
    """Say whether a network is made of masked layers, activations and direct connections alone."""
    try:
        made.expect_understood()
    except NotUnderstoodError:
        return False
    layers = made.masked_layers() + ([] if made.direct is None else [made.direct])
    return (
        type(made.activation) in _DERIVATIVES
        and not (made.residual or made.dropout or made.context)
        and not any(layer.has_mask_weights for layer in layers)
    )


def _past_affine(made: MADE, bijection: DampedAffine, z: Tensor, score: Tensor) -> ScoredSample:
    """Take noise and its score past an affine transform of a plain network."""
    layers = made.masked_layers()
    derivative = _DERIVATIVES[type(made.activation)]
    hidden: list[Tensor] = []
    outputs = made.compute(z, None, record=hidden)
    rows, features = z.shape
    shift, raw = (bijection.gain * outputs).unbind(-1)
    bounded = torch.tanh(raw / bijection.scale.bound)
    log_scale = bijection.scale.bound * bounded
    scale = torch.exp(log_scale)
    x = torch.addcmul(shift, scale, z)

    with torch.no_grad():
        weights = [layer.weight * layer.mask for layer in layers]
        direct = None if made.direct is None else made.direct.weight * made.direct.mask
        jacobian = (bijection.gain * weights[-1]).unsqueeze(0)
        for weight, values in zip(weights[-2::-1], reversed(hidden), strict=True):
            jacobian = jacobian * derivative(values).unsqueeze(1)
            jacobian = (jacobian.flatten(0, 1) @ weight).unflatten(0, (rows, -1))
        if direct is not None:
            jacobian = torch.add(jacobian, direct, alpha=bijection.gain)
        of_shift, of_raw = jacobian.unflatten(1, (features, 2)).unbind(2)
        of_log_scale = (1 - bounded.square()).unsqueeze(-1) * of_raw
        of_x = torch.addcmul(of_shift, (scale * z).unsqueeze(-1), of_log_scale)
        of_x.diagonal(dim1=1, dim2=2).copy_(scale)
        score = _solved(of_x, score - of_log_scale.sum(dim=1), made.ranks)
    return ScoredSample(x, log_scale.sum(dim=-1), score)
