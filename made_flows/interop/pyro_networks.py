"""Pyro's autoregressive networks."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from pyro.nn import auto_reg_nn
from torch import Tensor

from made_flows.interop.conditioner import ForeignConditioner
from made_flows.interop.layers import HostLayer, elementwise
from made_flows.interop.own import OwnConditioner, is_own
from made_flows.interop.validation import NotUnderstoodError, expect_own

__all__ = ["conditioner_of"]


def conditioner_of(arn: Any, sizes: list[int]) -> ForeignConditioner | OwnConditioner:
    """A network of Pyro, perhaps with a context that it is given, as a conditioner.

    Args:
        arn: the network, or a ``functools.partial`` of it with a context.
        sizes: numbers of the parameters that a transform takes.

    Raises:
        NotUnderstoodError: for another network, or one that computes something else.
    """
    net = arn
    if isinstance(arn, partial):
        if arn.args or set(arn.keywords) != {"context"}:
            raise NotUnderstoodError("its network is called with further arguments")
        net = arn.func
    if is_own(net) and list(net.param_dims) == sizes:
        return OwnConditioner(net, sum(sizes))
    unconditional = isinstance(net, auto_reg_nn.AutoRegressiveNN)
    library = (
        auto_reg_nn.AutoRegressiveNN if unconditional else auto_reg_nn.ConditionalAutoRegressiveNN
    )
    expect_own(net, library, ("forward", "_forward"))
    if list(net.param_dims) != sizes:
        raise NotUnderstoodError(f"its network gives {net.param_dims} parameters, not {sizes}")
    context = net.context_dim
    layers = []
    for linear in net.layers:
        expect_own(linear, auto_reg_nn.MaskedLinear)
        units = linear.weight.shape[0]
        layers.append(HostLayer(linear, elementwise(net.f, units, linear.weight)))
    layers[-1] = HostLayer(net.layers[-1])
    direct = None
    if net.skip_layer is not None:
        expect_own(net.skip_layer, auto_reg_nn.MaskedLinear)
        direct = HostLayer(net.skip_layer)
    if context:
        # The context's columns come first.
        layers[0].columns = slice(context, None)
        layers[0].base = layers[0].context_term
        if direct is not None:
            direct.columns = slice(context, None)
            layers[-1].base = direct.context_term

    def call(x: Tensor, given: Tensor | None) -> Tensor:
        outputs = net(x) if given is None else net(x, context=given)
        if net.all_ones:
            return torch.stack(tuple(outputs), dim=-1)
        return torch.cat(outputs, dim=-2).transpose(-1, -2)

    return ForeignConditioner(
        net,
        layers,
        features=net.input_dim,
        parameters=sum(sizes),
        context=context,
        direct=direct,
        parameter_major=True,
        call=call,
    )
