"""A guide of several modes: a mixture of the flows of guides that each know one of them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from pyro.infer.autoguide import AutoContinuous
from torch import Tensor, nn
from torch.distributions import biject_to

from made_flows.models.mixtures import Mixture
from made_flows.pyro.diagnosing import diagnose
from made_flows.pyro.diagnosis import Diagnosis
from made_flows.pyro.distributions import ModelDistribution, to_pyro
from made_flows.pyro.guides import AutoIAF

_DRAWS = 1000
"""For every component, to weigh them."""


class FlowMixture(AutoContinuous):
    r"""A guide with a mixture of flows over all continuous latent variables.

    .. math:: q(u) = \sum_k w_k\, q_k(u)

    Made by :func:`~made_flows.pyro.fit_guide` with ``modes``; it is not trained further.

    Args:
        model: a Pyro model.
        guides: guides of this model that were fitted, one for every mode.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> from made_flows.pyro import AutoIAF
        >>> def model():
        ...     pyro.sample("x", dist.Normal(0.0, 1.0))
        >>> guides = [AutoIAF(model, init_scale=scale) for scale in (0.5, 1.0)]
        >>> _ = [guide() for guide in guides]
        >>> FlowMixture(model, guides).weigh().trusted
        True
    """

    def __init__(self, model: Callable[..., Any], guides: Sequence[AutoIAF]) -> None:
        super().__init__(model)
        self._given_model = (model,)
        flows = [copy.deepcopy(guide.flow) for guide in guides]
        self.mixture = Mixture(flows).requires_grad_(False).eval()

    @property
    def weights(self) -> Tensor:
        """The weights of the components (K,)."""
        return self.mixture.weights

    def get_posterior(self, *args: Any, **kwargs: Any) -> ModelDistribution:
        """Return the distribution of the unconstrained latent variables (latent_dim,)."""
        return cast(ModelDistribution, to_pyro(cast(nn.Module, self.mixture))())

    @torch.no_grad()
    def weigh(self, *args: Any, vectorize: bool = True, **kwargs: Any) -> Diagnosis:
        """Weigh the components by how much of the posterior is near each of them.

        Equal shares of draws from all are resampled by importance, which gives draws of the
        posterior; the weights are those under which these are most likely. So components that
        share a mode are not counted twice.

        Args:
            args, kwargs: of the model: its data.
            vectorize: as for :func:`made_flows.pyro.diagnose`.

        Returns:
            the diagnosis of the equal mixture.
        """
        (model,) = self._given_model
        count = len(self.weights)
        self.weights.fill_(1 / count)
        found = diagnose(
            model, self, *args, samples=count * _DRAWS, vectorize=vectorize, probe=False, **kwargs
        )
        drawn, trace = found.resample(), cast(Any, self.prototype_trace)
        parts = [
            biject_to(site["fn"].support).inv(drawn[name]).reshape(count * _DRAWS, -1)
            for name, site in trace.iter_stochastic_nodes()
        ]
        self.mixture.fit_weights(torch.cat(parts, dim=-1))
        return found
