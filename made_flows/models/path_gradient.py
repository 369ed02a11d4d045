"""Path gradients: samples of a flow, with the gradient of their log-density at the sample.

The gradient of an ELBO has a part of mean zero, by which log q depends on its parameters where the
sample stays. Without it, noise vanishes where q is the posterior. What remains needs the gradient
of log q with respect to the sample.
"""

from __future__ import annotations

import torch
from torch import Tensor

from made_flows.models.affine_path import sample_plain
from made_flows.models.affine_steps import ScoredSample, pull_score, solve
from made_flows.models.bases import StandardNormal
from made_flows.models.flows import Flow
from made_flows.models.variational import TriangularAffine
from made_flows.nn.validation import NotUnderstoodError
from made_flows.transforms.autoregressive import AutoregressiveTransform
from made_flows.transforms.base import Transform


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
    plain = sample_plain(flow, noise, list(flow.parameters()))
    if plain is not None:
        return plain
    z = noise.reshape(-1, noise.shape[-1])
    if isinstance(flow.base, StandardNormal):
        score = -z.detach()
    else:
        with torch.enable_grad():
            leaf = z.detach().clone().requires_grad_()
            density = flow.base_distribution().log_prob(leaf).sum()
            (score,) = torch.autograd.grad(density, leaf)
    total = z.new_zeros(len(z))
    for transform in reversed(flow._chain()):
        z, log_det, score = _past(transform, z, score)
        total = total + log_det
    shape = noise.shape
    return ScoredSample(z.reshape(shape), total.reshape(shape[:-1]), score.reshape(shape))


def _past(transform: Transform, z: Tensor, score: Tensor) -> ScoredSample:
    """Take noise and its score past one transform: from noise (N, D) and its score to data."""
    if isinstance(transform, TriangularAffine):
        x, log_det = transform.to_data(z)
        return ScoredSample(x, log_det, transform.pull_back(score))
    if type(transform) is AutoregressiveTransform and transform.reads == "noise":
        try:
            return _by_sweep(transform, z, score)
        except NotUnderstoodError:
            pass  # a network with hooks, say, which a sweep over its layers would leave out
    x, log_det = transform.to_data(z)
    jacobian, of_log_det = _by_autograd(transform, z.detach())
    return ScoredSample(x, log_det, solve(jacobian.mT, score - of_log_det))


def _by_sweep(transform: AutoregressiveTransform, z: Tensor, score: Tensor) -> ScoredSample:
    """Carry samples past an autoregressive transform of any kind, in the work of a pass or two.

    The sample x is known and z solves the sequential inverse at x, so that the transposed system
    of the Jacobian is the one that this inverse's gradient solves.
    """
    with torch.enable_grad():
        start = z if z.requires_grad else z.detach().requires_grad_()
        x, log_det = transform.to_data(start)
        (of_log_det,) = torch.autograd.grad(log_det.sum(), start, retain_graph=True)
    score = pull_score(transform, x.detach(), z.detach(), score - of_log_det)
    return ScoredSample(x, log_det, score)


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
