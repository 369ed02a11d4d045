"""Contexts of any shape (images, sequences, sets), read through a network of one's own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain
from numbers import Integral
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from made_flows._checks import check_finite, expect, expect_real, expect_type, widths
from made_flows._registry import saveable
from made_flows._torch import is_autocast
from made_flows.distributions.conditional import CompletionDistribution
from made_flows.models.base import HasConditionals, Model, check_model
from made_flows.transforms.units import Units

_TOKENS = (nn.Embedding, nn.EmbeddingBag)


def _dtype(module: nn.Module) -> torch.dtype:
    """Return the dtype of a module's first numbers that are no integers."""
    tensors = chain(module.parameters(), module.buffers())
    found = (tensor.dtype for tensor in tensors if tensor.is_floating_point())
    return next(found, torch.get_default_dtype())


@saveable
class Embedded(Model, HasConditionals):
    r"""A conditional model whose contexts are read by an embedding network.

    .. math:: p(x \mid c) = p_\theta(x \mid e_\phi(c))

    Calling the model with contexts (..., \*shape) gives the distribution that ``model`` has for
    the embeddings (..., C). :func:`made_flows.fit` trains both together. Contexts are given to the
    network as they are: scale them as it needs them.

    Args:
        model: a flow or density model with a context of C variables.
        net: contexts (N, \*shape) to embeddings (N, C). Layers of ``torch.nn`` in a ``Sequential``
            are saved with the model, and so is a class decorated with
            :func:`made_flows.saveable`.
        context_shape: the shape of one context, such as (1, 28, 28); a number means one dimension.

    Attributes:
        context_shape: that shape, as a tuple.
        context: the number of values in a context.

    Raises:
        TypeError: for a model or network of another kind, and at a call for contexts of a dtype
            that the network does not read, or embeddings of another than the model's.
        ValueError: for a model without context, and at a call for contexts of another shape, or
            embeddings that are not C for every context.

    Example:
        >>> import torch, made_flows as mf
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 5))
        >>> model = Embedded(mf.MAF(3, context=5), net, context_shape=(1, 8, 8))
        >>> model(torch.zeros(10, 1, 8, 8)).sample((2,)).shape
        torch.Size([2, 10, 3])
    """

    def __init__(self, model: Model, net: nn.Module, context_shape: int | Sequence[int]) -> None:
        super().__init__()
        check_model(model, "model")
        expect(model.context != 0, "model", "to be made with a context", "one that takes none")
        expect_type(isinstance(net, nn.Module), "net", "to be a torch.nn.Module", net)
        shape = (context_shape,) if isinstance(context_shape, Integral) else context_shape
        self.context_shape = widths(shape, "context_shape")
        expect(len(self.context_shape) > 0, "context_shape", "to have a dimension", "none")
        self.model, self.net = model, net
        for units in model.standardizable():
            units.embedded = True
        self.training = model.training
        self.features, self.context = model.features, math.prod(self.context_shape)

    @property
    def head(self) -> Any:
        """The head of the model, None for a flow."""
        return getattr(self.model, "head", None)

    @property
    def takes_missing(self) -> bool | None:
        """Whether NaN stands for a missing value; None for a model that does not know."""
        return getattr(self.model, "takes_missing", None)

    def embed(self, context: Tensor | None) -> Tensor:
        """Return the embeddings (..., C) of contexts (..., shape)."""
        shape, got = self.context_shape, tuple(getattr(context, "shape", ()))
        wanted = f"of shape (..., {', '.join(map(str, shape))})"
        if not isinstance(context, Tensor):
            raise TypeError(f"Expected context to be a torch.Tensor {wanted}; got {context!r:.40}")
        expect(got[-len(shape) :] == shape, "context", wanted, got)
        expect_type(context.layout == torch.strided, "context", "to be dense", context.layout)
        expect_real(context, "context")
        check_finite(context, "context")
        batch = got[: len(got) - len(shape)]
        rows = context.reshape(-1, *shape)
        embedding = self._read(rows)
        size = self.model.context
        expect_type(isinstance(embedding, Tensor), "net", "to give a torch.Tensor", embedding)
        given, needed = tuple(embedding.shape), (len(rows), size)
        wanted = f"to give embeddings of shape {needed}, as the model's context has {size}"
        expect(given == needed, "net", wanted, given)
        dtype = _dtype(self.model)
        if is_autocast(embedding):  # the model is in its own precision
            embedding = embedding.to(dtype)
        wanted = f"to give embeddings of {dtype}, as the model is"
        expect_type(embedding.dtype == dtype, "net", wanted, embedding.dtype)
        return cast(Tensor, embedding.reshape(*batch, size))

    def _read(self, rows: Tensor) -> Any:
        """Call the network, whose errors of dtypes say what it can read."""
        try:
            return self.net(rows)
        except RuntimeError as error:
            own = _dtype(self.net)
            tokens = any(isinstance(each, _TOKENS) for each in self.net.modules())
            fits = rows.dtype in (torch.int64, torch.int32) if tokens else rows.dtype == own
            if fits or isinstance(error, torch.OutOfMemoryError):
                raise
            known = "torch.int64 or torch.int32 for tokens" if tokens else ""
            if rows.dtype != own:  # which it did not read
                known += f"{', ' if known else ''}{own} for numbers"
            raise TypeError(
                f"Expected context of a dtype that net reads, {known}; got {rows.dtype} ({error})"
            ) from error

    def distribution(self, context: Tensor | None = None) -> Distribution:
        """Return the distribution of the features, given contexts (..., shape)."""
        return self.model.distribution(self.embed(context))

    def conditional(
        self, x: Tensor, observed: Tensor | None = None, *, context: Tensor | None = None
    ) -> CompletionDistribution:
        """Return the distribution of the missing features, as the model's ``conditional`` does."""
        wanted, known = "to be one that answers for missing features", self.model
        expect_type(isinstance(known, HasConditionals), "the model that is embedded", wanted, known)
        model = cast(HasConditionals, known)
        return model.conditional(x, observed, context=self.embed(context))

    @property
    def support(self) -> Any:
        """Where values live: a constraint."""
        return self.model.support

    def standardizable(self) -> list[Units]:
        return self.model.standardizable()

    def standardizable_throughout(self) -> bool:
        return self.model.standardizable_throughout()

    def extra_repr(self) -> str:
        return f"context_shape={self.context_shape}"
