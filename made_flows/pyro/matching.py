"""Whether a model has the latent variables that its guide was made for: data may have changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from pyro.poutine.trace_struct import Trace

from made_flows._checks import expect


def samples(trace: Trace) -> list[tuple[str, Any]]:
    """Return the sample sites of a trace, by name."""
    nodes: Any = trace.nodes
    return [(name, site) for name, site in nodes.items() if site["type"] == "sample"]


class Matching(Messenger):
    """Compares a model, as it runs, with what a guide samples.

    Args:
        trace: of the guide, or of the model when the guide was made.
        guided: the guide's variables.

    Raises:
        ValueError: within the model, at a plate of another size and at a variable of the guide's
            that is observed. Pyro would take values of other rows, or count those of none.
    """

    def __init__(self, trace: Trace, guided: Sequence[str]) -> None:
        super().__init__()
        frames = [frame for _, site in samples(trace) for frame in site["cond_indep_stack"]]
        self._sizes = {frame.name: frame.full_size or frame.size for frame in frames}
        self._guided = guided
        self.differs = False

    def _pyro_sample(self, msg: Any) -> None:
        name, fn = msg["name"], msg["fn"]
        if isinstance(fn, _Subsample):  # a plate, which says its size
            known = self._sizes.get(name, fn.size)
            self._expect(known == fn.size, f"plate {name!r} of {fn.size}, which had {known}")
        elif name in self._guided:
            self._expect(not msg["is_observed"], f"{name!r} observed, which the guide samples")

    def _expect(self, same: bool, got: str) -> None:
        self.differs = self.differs or not same
        new = f"{got}. Make a new guide for other data than those it was first called with"
        expect(same, "model", "to have the latent variables that its guide has", new)


class KnownData:
    """Looks at a model again where its data have other sizes than in the call before.

    Example:
        >>> KnownData().expect_same(None, None, (torch.zeros(3),), {})  # whatever comes first
    """

    def __init__(self) -> None:
        self._sizes: Any = None

    def expect_same(
        self,
        model: Callable[..., Any] | None,
        trace: Trace | None,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        """Raise a ValueError for data by which a model has other latent variables in plates.

        Models that cannot be run by these arguments alone are not asked.

        Args:
            model: the model, which is run once where sizes differ; None for a guide without one.
            trace: of the latent variables when the guide was made; None before.
            args, kwargs: of the model.
        """
        sizes = _sizes((args, kwargs))
        known, self._sizes = self._sizes, sizes
        if model is None or trace is None or known in (None, sizes):
            return
        latent = dict(trace.iter_stochastic_nodes())
        if not any(site["cond_indep_stack"] for site in latent.values()):
            return
        matching = Matching(trace, list(latent))
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=()), poutine.block(), matching:
                model(*args, **kwargs)
        except Exception:
            if matching.differs:
                self._sizes = known
                raise


def _sizes(value: Any) -> Any:
    """Return what sizes of plates can depend on: shapes of arrays in arguments, and numbers."""
    if isinstance(value, Mapping):
        return {key: _sizes(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_sizes(item) for item in value]
    simple = value is None or isinstance(value, (int, str))
    return value if simple else tuple(getattr(value, "shape", ()))
