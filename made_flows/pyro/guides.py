"""AutoIAF: a guide whose posterior is an inverse autoregressive flow."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, cast

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoContinuous
from pyro.params.param_store import param_with_module_name
from pyro.poutine.runtime import _PYRO_STACK
from pyro.poutine.trace_messenger import TraceMessenger
from torch import Tensor
from torch.distributions import biject_to

from made_flows._checks import (
    check_broadcast,
    check_event,
    check_finite,
    expect,
    expect_type,
    positive_integer,
    real_number,
)
from made_flows._keywords import helpful
from made_flows._torch import is_traced
from made_flows.models.bases import StandardNormal
from made_flows.models.flows import Flow
from made_flows.models.variational import posterior_flow
from made_flows.pyro.diagnosing import diagnose
from made_flows.pyro.diagnosis import Diagnosis
from made_flows.pyro.draws import quantile_levels
from made_flows.pyro.flat_flow import FlatFlow
from made_flows.pyro.gradient_guard import GradientGuard
from made_flows.pyro.layout import expect_whole, naming_supports, unconstrained, warn_of_angles
from made_flows.pyro.matching import KnownData
from made_flows.pyro.posterior import FlowPosterior, SiteMessenger, even_noise, normal_noise
from made_flows.pyro.refinement import Refinement, refine
from made_flows.pyro.starts import init_to_prior_median
from made_flows.univariate.bijections import Bijection
from made_flows.univariate.scales import ScaleRule


class AutoIAF(AutoContinuous):
    r"""A guide with an inverse autoregressive flow over all continuous latent variables.

    .. math:: z \sim N(0, I), \qquad u = m + e^s \odot (f_1 \circ \dots \circ f_K)(z)

    where u holds the unconstrained latent variables, in the order of the model's sites. It starts
    near a normal distribution with mean ``init_loc_fn`` and standard deviation ``init_scale``. Of
    one latent dimension it is a single spline.

    Gradients of the ELBO are *path gradients*: those of :math:`\log q(u)` with respect to the
    sample u alone, since the rest has mean zero. Their noise vanishes as the guide approaches the
    posterior. The density itself has all its gradients. (``JitTrace_ELBO`` gets those, and so do
    steps in which the flow's slope would drown the model's, as where a rate is large.) The
    gradient of a single draw that is no number, or a hundred times what is usual, is limited, so
    that no draw ends a run.

    Args:
        model: a Pyro model.
        transforms: number of transforms, the last's conditioner linear; all run in every step.
        hidden_features: widths of the hidden layers of every conditioner; None for two of as many
            units as there are latent dimensions, and at least 64.
        init_loc_fn: where the guide starts, one of Pyro's initialisation functions; by default the
            median of the prior, exact where the prior has a quantile function.
        init_scale: standard deviation of the unconstrained variables at the start.
        path_gradient: whether ELBOs get path gradients. Objectives other than the ELBO that
            differentiate through samples (``RenyiELBO``) need ``False``: there the rest has
            another mean.
        bijection: of the transforms with hidden layers; by default an affine one that steps of
            training move slowly, see :func:`~made_flows.models.variational.posterior_flow`.
        order, scale, degrees, activation, residual, direct, dropout, generator: as for
            :class:`made_flows.IAF`.

    Raises:
        TypeError, ValueError: for arguments out of range.

    References:
        Kingma et al. 2016, *Improved Variational Inference with Inverse Autoregressive Flow*;
        Roeder, Wu & Duvenaud 2017, *Sticking the Landing*.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> from pyro.infer import SVI, Trace_ELBO
        >>> def model(y):
        ...     scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        ...     with pyro.plate("rows", len(y)):
        ...         pyro.sample("y", dist.Normal(0.0, scale), obs=y)
        >>> guide = AutoIAF(model)
        >>> svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.005}), Trace_ELBO())
        >>> loss = svi.step(torch.randn(20))
        >>> guide.median()["scale"].shape
        torch.Size([])
    """

    _pieces: Any = None  # shapes of the last samples, and of their parts

    @helpful
    def __init__(
        self,
        model: Callable[..., Any],
        transforms: int = 3,
        hidden_features: Sequence[int] | None = None,
        init_loc_fn: Callable[..., Any] = init_to_prior_median,
        init_scale: float = 0.1,
        *,
        path_gradient: bool = True,
        order: Any = "reverse",
        bijection: Literal["affine", "spline", "gated"] | Bijection | None = None,
        scale: str | ScaleRule | None = None,
        degrees: Literal["even", "random"] = "even",
        activation: Any = "tanh",
        residual: bool = False,
        direct: bool = True,
        dropout: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        expect_type(callable(model), "model", "to be a function or module", model)
        expect_type(callable(init_loc_fn), "init_loc_fn", "to be a function", init_loc_fn)
        positive_integer(transforms, "transforms")
        start = real_number(init_scale, "init_scale", above=0)
        flow = {
            "order": order, "bijection": bijection, "scale": scale, "degrees": degrees,
            "activation": activation, "residual": residual, "direct": direct, "dropout": dropout,
            "generator": generator,
        }  # fmt: skip
        _check_flow(start, transforms, hidden_features, flow)  # at once, not when the model runs
        super().__init__(model, init_loc_fn=init_loc_fn)
        self._given_model = (model,)
        self._path_gradient = path_gradient
        self._guard, self._claimed, self._data = GradientGuard(), False, KnownData()
        self._arguments = (start, transforms, hidden_features)
        self._flow_arguments = flow

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        with naming_supports():
            super()._setup_prototype(*args, **kwargs)
        expect_whole(self.prototype_trace)
        warn_of_angles(self.prototype_trace)
        self._pieces = None
        location = self._init_loc()
        flow = posterior_flow(location.cpu(), *self._arguments, **self._flow_arguments)
        self.transform = FlatFlow(flow.to(location.device, location.dtype))

    def model_given(self) -> Callable[..., Any]:
        """Return the model.

        Raises:
            ValueError: for a guide that was unpickled, which is without its model.
        """
        hint = "with its model (made_flows.pyro.diagnose and refine take one)"
        expect(self._given_model is not None, "guide", hint, "an unpickled one")
        (model,) = self._given_model
        return model

    def extra_repr(self) -> str:
        trace: Any = self.prototype_trace
        if trace is None:
            return "latent variables are found in the first call"
        sites = trace.iter_stochastic_nodes()
        return ", ".join(f"{name}={tuple(site['value'].shape)}" for name, site in sites)

    def restart(self, origin: Tensor, units: Tensor) -> None:
        """Begin anew at a normal distribution, in whose units the flow then works.

        Args:
            origin: its mean (latent_dim,), of the unconstrained variables.
            units: lower triangular factor of its covariance (latent_dim, latent_dim).
        """
        zero, size = self._base.zero, len(origin)
        self._guard = GradientGuard()  # which knows the gradients of other units
        flow = posterior_flow(
            torch.zeros(size),
            1.0,
            *self._arguments[1:],
            origin=origin.detach().cpu().to(torch.get_default_dtype()),
            units=units.detach().cpu().to(torch.get_default_dtype()),
            **self._flow_arguments,
        )
        self.transform = FlatFlow(flow.to(zero.device, zero.dtype))

    def get_base_dist(self) -> dist.Distribution:
        """Return standard normal noise."""
        return cast(dist.Distribution, normal_noise(self._base))

    def get_transform(self, *args: Any, **kwargs: Any) -> FlatFlow:
        """Return the flow, from noise to unconstrained variables: also for ``NeuTraReparam``."""
        found = self._built()
        if any(type(handler) is TraceMessenger and handler.param_only for handler in _PYRO_STACK):
            self._claim_names(found)
        return self.transform  # registers it with Pyro

    def _built(self) -> FlatFlow:
        found = self.__dict__["_modules"].get("transform")
        known = "that was called once, to know the model"
        expect(found is not None, "guide", known, "a new one")
        return cast(FlatFlow, found)

    @property
    def _base(self) -> StandardNormal:
        return cast(StandardNormal, self._built().flow.base)

    def _claim_names(self, transform: FlatFlow) -> None:
        """Give the parameter store this guide's weights: Pyro would train those of one before."""
        store, prefix, taken = pyro.get_param_store(), self._pyro_get_fullname("transform"), False
        for short, weight in transform.named_parameters():
            name = param_with_module_name(prefix, short)
            if store._params.get(name) is weight:  # then all of them are there
                return
            if name in store._params:
                taken = True
                del store[name]
        if taken and not self._claimed:
            self._claimed = True
            logging.getLogger("made_flows").warning(
                "AutoIAF: Pyro's parameter store had other weights by the names of this guide's, "
                "as of a guide before it, or loaded. They leave the store, so that SVI trains this "
                "guide; pyro.clear_param_store() says the same, guide.load_state_dict loads weights"
            )

    def get_posterior(self, *args: Any, **kwargs: Any) -> FlowPosterior:
        """Return the distribution of the unconstrained latent variables (latent_dim,)."""
        posterior = FlowPosterior(self._base, [self.get_transform()])
        posterior.path_gradient = self._path_gradient
        posterior.guard = self._guard
        return posterior

    @property
    def flow(self) -> Flow:
        """The flow as one of this library: for ``made_flows.save``, ``summary()`` and others.

        Raises:
            ValueError: before the guide was called for the first time.
        """
        return self._built().shared()

    def _unpack_latent(self, latent: Tensor) -> Iterable[tuple[Any, Tensor]]:
        """Pair each site with its part of samples: as Pyro does, which finds shapes every time."""
        if is_traced():
            return cast(Iterable[tuple[Any, Tensor]], super()._unpack_latent(latent))
        if self._pieces is None or self._pieces[0] != latent.shape:
            parts = list(super()._unpack_latent(latent))
            sizes = [math.prod(self._unconstrained_shapes[site["name"]]) for site, _ in parts]
            self._pieces = latent.shape, [(site, u.shape) for site, u in parts], sizes
        _, shapes, sizes = self._pieces
        pairs = zip(shapes, latent.split(sizes, dim=-1), strict=True)
        return ((site, u.view(shape)) for (site, shape), u in pairs)

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Sample the latent variables, with the arguments of the model; a dict by site."""
        model = self.model if cast(Any, self._given_model) else None  # unpickled without
        self._data.expect_same(model, self.prototype_trace, args, kwargs)
        with SiteMessenger():
            return cast(dict[str, Tensor], super().forward(*args, **kwargs))

    # ------------------------------------------------------------------ densities

    def log_prob(self, values: Tensor | Mapping[str, Tensor]) -> Tensor:
        r"""Score given points, from wherever: one sequential inverse per transform.

        Args:
            values: unconstrained latent variables (..., latent_dim); or values of all sites, each
                (..., *its shape in the model), whose density has the Jacobians of the constraints.

        Returns:
            (...).

        Raises:
            TypeError: for another dtype, and what is no tensor.
            ValueError: for other shapes or sites, and values that are not finite or not in a site's
                support. At the end of a support the density is zero.

        Example:
            >>> import pyro, pyro.distributions as dist
            >>> def model():
            ...     return pyro.sample("x", dist.LogNormal(0.0, 1.0))
            >>> guide = AutoIAF(model)
            >>> x = guide()["x"].detach()
            >>> bool((guide.log_prob({"x": x}) + x.log()).isclose(guide.log_prob(x.log()[None])))
            True
        """
        posterior: Any = self.get_posterior()
        dtype = self._base.zero.dtype
        if isinstance(values, Tensor):
            check_event(values, "values", self.latent_dim, dtype)
            check_finite(values, "values")
            return cast(Tensor, posterior.log_prob(values))
        expect_type(isinstance(values, Mapping), "values", "to be a tensor or a dict", values)
        trace: Any = self.prototype_trace
        sites: dict[str, Any] = dict(trace.iter_stochastic_nodes())
        expect(set(values) == set(sites), "values", f"of sites {list(sites)}", list(values))
        each = [
            unconstrained(site["fn"], values[name], f"values[{name!r}]", site["value"].shape, dtype)
            for name, site in sites.items()
        ]
        batch = check_broadcast(**{n: e[1].shape[:-1] for n, e in zip(sites, each, strict=True)})
        u = torch.cat([part.expand(*batch, -1) for part, _ in each], dim=-1)
        log_det = sum(log_det.sum(dim=-1) for _, log_det in each)
        # The density of an unconstrained value falls faster at infinity than a Jacobian grows.
        ends = ~u.isfinite().all(dim=-1)
        found = posterior.log_prob(torch.where(ends.unsqueeze(-1), 0.0, u)) - log_det
        return torch.where(ends, -torch.inf, found)

    # ------------------------------------------------------------------ summaries

    @torch.no_grad()
    def median(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Return the median of every latent variable alone, as :meth:`quantiles` finds it."""
        return {name: value[0] for name, value in self.quantiles([0.5]).items()}

    @torch.no_grad()
    def quantiles(
        self, quantiles: Sequence[float] | Tensor, *args: Any, **kwargs: Any
    ) -> dict[str, Tensor]:
        """Return quantiles of every latent variable alone, of 8192 samples.

        A flow has no closed form for them. The samples come from a scrambled Sobol sequence of
        fixed seed: the same answer every time, and less noise than independent draws have. They are
        quantiles of the unconstrained variables, constrained, as in Pyro's other guides.

        Args:
            quantiles: probabilities (Q,), between 0 and 1.
            args, kwargs: of the model; not needed.

        Returns:
            By the names of the sites, (Q, *shape of the site).

        Raises:
            ValueError: for probabilities outside [0, 1].
        """
        zero = self._base.zero
        wanted = quantile_levels(quantiles).to(zero)
        drawn, _ = self._built().to_data(even_noise(self.latent_dim).to(zero))
        draws = drawn.sort(dim=0).values
        place = wanted * (len(draws) - 1)
        low = place.floor().long()
        high = place.ceil().long()
        found = torch.lerp(draws[low], draws[high], (place - low).unsqueeze(-1))
        result: dict[str, list[Tensor]] = {}
        for latent in found:
            for site, u in self._unpack_latent(latent):
                result.setdefault(site["name"], []).append(biject_to(site["fn"].support)(u))
        return {name: torch.stack(values) for name, values in result.items()}

    def diagnose(
        self,
        *args: Any,
        samples: int = 1000,
        vectorize: bool = True,
        probe: bool = True,
        **kwargs: Any,
    ) -> Diagnosis:
        """Judge the guide: k-hat, effective sample size, evidence, a probe, and a sentence.

        Args:
            args, kwargs: of the model: its data.
            samples, vectorize, probe: as for :func:`made_flows.pyro.diagnose`.

        Raises:
            ValueError: as there, and for a guide that was unpickled, which is without its model.

        Example:
            >>> import pyro, pyro.distributions as dist
            >>> def model():
            ...     pyro.sample("x", dist.Normal(0.0, 1.0))
            >>> print(AutoIAF(model, init_scale=1.0).diagnose())  # doctest: +ELLIPSIS
            Diagnosis of a guide by 1000 samples
              Pareto k-hat ...
        """
        model = self.model_given()
        return diagnose(
            model, self, *args, samples=samples, vectorize=vectorize, probe=probe, **kwargs
        )

    def refine(
        self,
        *args: Any,
        draws: int = 500,
        warmup: int = 300,
        chains: int = 2,
        progress: bool = True,
        **kwargs: Any,
    ) -> Refinement:
        """Draw from the posterior by NUTS in this guide's noise, where :meth:`diagnose` says no.

        Args:
            args, kwargs: of the model: its data.
            draws, warmup, chains, progress: as for :func:`made_flows.pyro.refine`.

        Raises:
            ValueError: as there, and for a guide that was unpickled, which is without its model.

        Example:
            >>> import pyro, pyro.distributions as dist
            >>> def model():
            ...     pyro.sample("x", dist.Normal(3.0, 1.0))
            >>> guide = AutoIAF(model)
            >>> _ = guide()
            >>> guide.refine(draws=10, warmup=10, progress=False).samples["x"].shape
            torch.Size([2, 10])
        """
        given: Any = {"draws": draws, "warmup": warmup, "chains": chains, "progress": progress}
        return refine(self.model_given(), self, *args, **given, **kwargs)

    # ------------------------------------------------------------------ copies

    def __getstate__(self) -> dict[str, Any]:
        # Models are functions, often local ones. Pyro takes them from the guide itself.
        model = self._model
        state = dict(super().__getstate__())
        self._model = model
        return {**state, "_model": None, "_given_model": None, "_pieces": None}

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Take the weights of another guide of the same model.

        Raises:
            ValueError: before the guide was called for the first time: only then has it weights.
        """
        self._built()
        return super().load_state_dict(state_dict, *args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> AutoIAF:
        new = self.__class__.__new__(self.__class__)
        memo[id(self)] = new
        new.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        new._model, new._given_model = self._model, self._given_model
        return new


def _check_flow(
    scale: float,
    transforms: int,
    hidden_features: Sequence[int] | None,
    flow: Mapping[str, Any],
) -> None:
    """Make a small flow of these arguments, which raises what is wrong with them."""
    order = flow["order"]
    size = len(order) if hasattr(order, "__len__") and not isinstance(order, str) else 2
    # Not of the generator given, whose numbers are for the guide's own flow.
    posterior_flow(
        torch.zeros(size), scale, transforms, hidden_features, **{**flow, "generator": None}
    )
