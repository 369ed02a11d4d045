"""The latent variables and plates of a model and its guide, as single runs of both show them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor
from torch.distributions import biject_to
from torch.distributions.transforms import Transform

from made_flows._checks import check_finite, check_values, expect, expect_type
from made_flows._torch import has_concrete_values
from made_flows.pyro.matching import Matching, samples

_ANGLES = (torch.distributions.VonMises, dist.SineBivariateVonMises, dist.SineSkewed)


class LatentSite:
    """What a latent variable of a model looks like, without vectorised particles.

    Args:
        fn: its distribution.
        value: a value of it, whose leading dimensions are those of plates.

    ``centred`` says whether other variables set the scale of its distribution.
    """

    def __init__(self, fn: Any, value: Tensor) -> None:
        self.shape, self.plates = value.shape, len(fn.batch_shape)
        base = innermost(fn)
        self.scale: Any = base.scale if hasattr(base, "loc") and hasattr(base, "scale") else None
        self.centred = False
        self.transform: Transform | None = None
        self.unconstrained = value.shape  # the shape of unconstrained values
        self.middle = value.new_zeros(())  # where unconstrained values are zero
        try:
            self.transform = biject_to(fn.support)
            self.unconstrained = self.transform.inverse_shape(value.shape)
            self.middle = self.transform(value.new_zeros(self.unconstrained))
        except NotImplementedError:  # a discrete one
            pass


def innermost(fn: Any) -> Any:
    """Return the distribution that was expanded, masked or taken as one of vectors."""
    while isinstance(fn, (dist.Independent, dist.MaskedDistribution, dist.ExpandedDistribution)):
        fn = fn.base_dist
    return fn


def traces(model: Callable[[], Any], guide: Callable[[], Any]) -> tuple[Trace, Trace]:
    """Return traces of the model and of the guide that it follows."""
    of_guide = poutine.trace(guide).get_trace()
    of_model = poutine.trace(poutine.replay(model, trace=of_guide)).get_trace()
    return prune_subsample_sites(of_model), prune_subsample_sites(of_guide)


def unconstrained(
    fn: Any, value: Any, argument: str, shape: tuple[int, ...], dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Bring values of a site to where its guide works.

    Args:
        fn: its distribution.
        value: values (..., *shape).
        argument: their name, for errors.
        shape, dtype: of one value, and of the guide.

    Returns:
        the unconstrained values and the log-determinants there, (..., S) each with S of any size.
        Values at an end of the support may be infinite.

    Raises:
        TypeError, ValueError: for what is no tensor of these, and values outside the support.
    """
    expect_type(isinstance(value, Tensor), argument, "to be a torch.Tensor", value)
    got = tuple(value.shape)
    fits = got[len(got) - len(shape) :] == shape
    expect(fits, argument, f"of shape (..., {str(shape)[1:]}", got)
    expect_type(value.dtype == dtype, argument, f"of dtype {dtype}, that of the guide", value.dtype)
    check_finite(value, argument)
    transform = biject_to(fn.support)
    u = transform.inv(value)
    if has_concrete_values(value):
        # There and back, values beyond an end come out within it; sums of many shares may miss one
        # by more than torch's own check lets pass.
        error = 100 * torch.finfo(dtype).eps
        inside = fn.support.check(value)
        same = torch.isclose(transform(u), value, rtol=error, atol=error)
        inside = inside | _as_rows(same, inside.shape).all(dim=-1)
        words = f"to be in {' '.join(str(fn.support).split())}"
        if inside.shape == value.shape:
            check_values(value, inside, argument, words)
        elif not bool(inside.all()):
            expect(False, argument, words, value[~inside][0].tolist())
    batch = got[: len(got) - len(shape)]
    log_det = transform.log_abs_det_jacobian(u, value)
    return _as_rows(u, batch), _as_rows(log_det, batch)


def _as_rows(x: Tensor, batch: tuple[int, ...]) -> Tensor:
    return x.reshape(*batch, math.prod(x.shape[len(batch) :]))


def expect_whole(trace: Any) -> None:
    """Raise a ValueError for latent variables in plates that draw some of their rows.

    A vector of them all would have another row's value in the same place in every run.
    """
    for name, site in trace.iter_stochastic_nodes():
        for frame in site["cond_indep_stack"]:
            got = f"{frame.size} of {frame.full_size} of {name!r}, in plate {frame.name!r}"
            got += ". Guide it by pyro's AutoNormal, beside this guide in an AutoGuideList"
            whole = frame.full_size in (None, frame.size)
            expect(whole, "model", "to have all of a latent variable in every run", got)


def warn_of_angles(trace: Any) -> None:
    """Warn of latent angles: on a line, their density repeats for ever."""
    for name, site in trace.iter_stochastic_nodes():
        if isinstance(innermost(site["fn"]), _ANGLES):
            warnings.warn(
                f"{name!r} is an angle, whose density repeats every 2 pi: to a guide, on a line, "
                f"each turn is another mode, and the evidence counts as many as it covers. Let it "
                f"be c + pyro.sample(name, Uniform(-pi, pi)), with c near its values, and add its "
                f"distribution's log_prob + log(2 pi) by pyro.factor",
                stacklevel=4,
            )


@contextmanager
def naming_supports() -> Iterator[None]:
    """Say what to do where a latent variable's support has no bijection to numbers."""
    try:
        yield
    except NotImplementedError as error:
        if "Cannot transform" not in str(error):
            raise
        why = str(error).splitlines()[0]
        raise ValueError(
            f"Expected latent variables whose supports map to numbers one to one, as those of "
            f"positive numbers and simplices do; got one whose does not ({why}). For a positive "
            f"definite matrix sample scales, and the factor of its correlations by LKJCholesky"
        ) from error


def _nesting(traces: Iterable[Trace]) -> int:
    nodes = [node for trace in traces for node in trace.nodes.values()]
    frames = [frame for node in nodes for frame in (node.get("cond_indep_stack") or ())]
    return -min([frame.dim for frame in frames if frame.dim is not None], default=0)


def _expect_same_density(model: Callable[[], Any], of_guide: Trace) -> None:
    """Raise a ValueError for a model that draws what no guide can see: weights would be noise."""
    with torch.no_grad():
        first, second = (
            float(poutine.trace(poutine.replay(model, trace=of_guide)).get_trace().log_prob_sum())
            for _ in range(2)
        )
    hint = (
        "to have the same density whenever its latent variables are the same, without draws of "
        "its own: hidden by poutine.block (sum discrete ones in it, as dist.MixtureSameFamily "
        "does), or of torch, as by dropout"
    )
    known = math.isfinite(first) and math.isfinite(second)
    same = not known or math.isclose(first, second, rel_tol=1e-4, abs_tol=1e-3)
    expect(same, "model", hint, f"{first:.6g} and {second:.6g}")


def layout(model: Callable[[], Any], guide: Callable[[], Any]) -> tuple[int, dict[str, LatentSite]]:
    """Count the dimensions of plates and list the latent sites, of a checked model.

    Args:
        model, guide: with the data that both take.
    """
    of_model, of_guide = _matched_traces(model, guide)
    sites = {}
    for name, site in samples(of_model):
        if not site["is_observed"]:
            known = name in of_guide.nodes
            expect(known, "guide", "to sample every latent variable of the model", f"no {name!r}")
            sites[name] = LatentSite(site["fn"], cast(Tensor, site["value"]))
    _expect_same_density(model, of_guide)
    nodes: Any = traces(model, guide)[0].nodes  # once more, with other values
    for name, latent in sites.items():
        other = LatentSite(nodes[name]["fn"], nodes[name]["value"])
        latent.centred = latent.scale is not None and not torch.equal(latent.scale, other.scale)
        same = latent.middle.equal(other.middle)
        hint = "to have variables whose supports stay the same, as a share of Uniform(0, 1) does"
        moves = f"{name!r}, whose support changes with the values of others"
        expect(same, "model", hint, moves)
    return _nesting((of_model, of_guide)), sites


def expect_known_density(model: Callable[[], Any], guide: Callable[[], Any]) -> None:
    """Raise a ValueError for a model without a density of what a guide samples, or of other data.

    Latent variables that the guide leaves out may be enumerated.

    Args:
        model, guide: with the data that both take.
    """
    of_model, of_guide = _matched_traces(model, guide)
    if all(site["is_observed"] or name in of_guide.nodes for name, site in samples(of_model)):
        _expect_same_density(model, of_guide)


def _matched_traces(model: Callable[[], Any], guide: Callable[[], Any]) -> tuple[Trace, Trace]:
    """Return traces of a model and its guide, of the same variables in whole plates."""
    of_guide = poutine.trace(guide).get_trace()
    replayed = poutine.trace(poutine.replay(model, trace=of_guide))
    of_guide = prune_subsample_sites(of_guide)
    guided = [name for name, site in samples(of_guide) if not site["infer"].get("is_auxiliary")]
    with Matching(of_guide, guided):
        of_model = prune_subsample_sites(replayed.get_trace())
    for trace in (of_model, of_guide):
        for _, site in samples(trace):
            for frame in site["cond_indep_stack"]:
                whole = frame.full_size in (None, frame.size)
                got = f"plate {frame.name!r} with {frame.size} of {frame.full_size}"
                expect(whole, "model", "without subsampling, whose weights are noise", got)
    for name in guided:
        foreign = f"{name!r} (infer={{'is_auxiliary': True}} says that it is meant)"
        expect(name in of_model.nodes, "guide", "to sample variables of the model alone", foreign)
    return of_model, of_guide
