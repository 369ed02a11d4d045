"""Bad input of the plug-ins and of ``accelerate``: an error that names the argument, at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import made_flows as mf
import made_flows.nflows as mn
import made_flows.pyro as mp

NAN = float("nan")
Spline = mn.MaskedPiecewiseRationalQuadraticAutoregressiveTransform


def _network(*sizes: int) -> Any:
    return mp.AutoRegressiveNN(3, [8], param_dims=sizes or (1, 1))


def _nflows() -> Any:
    return mn.MaskedAffineAutoregressiveTransform(3, 8)


BAD: dict[str, tuple[Callable[[], object], str]] = {
    # made_flows.pyro
    "features": (lambda: mp.AutoRegressiveNN(0, [8]), "input_dim"),
    "width": (lambda: mp.AutoRegressiveNN(3, [0]), "hidden_dims"),
    "widths": (lambda: mp.AutoRegressiveNN(3, 8), "hidden_dims"),
    "sizes": (lambda: mp.AutoRegressiveNN(3, [8], 2), "param_dims"),
    "no sizes": (lambda: mp.AutoRegressiveNN(3, [8], []), "param_dims"),
    "permutation": (lambda: mp.AutoRegressiveNN(3, [8], permutation=[0, 0, 1]), "order"),
    "word for a flag": (lambda: mp.AutoRegressiveNN(3, [8], skip_connections="no"), "skip_conn"),
    "activation": (lambda: mp.AutoRegressiveNN(3, [8], nonlinearity=3), "(nonlinearity|activ)"),
    "activation of all": (
        lambda: mp.AutoRegressiveNN(3, [8], nonlinearity=nn.Softmax(-1)),
        "nonlinearity",
    ),
    "context size": (lambda: mp.ConditionalAutoRegressiveNN(3, -1, [8]), "context_dim"),
    "network": (lambda: mp.AffineAutoregressive(3), "autoregressive_nn"),
    "clips": (lambda: mp.AffineAutoregressive(_network(), 3.0, 1.0), "log_scale_min_clip"),
    "clip": (lambda: mp.AffineAutoregressive(_network(), NAN), "log_scale_min_clip"),
    "stable": (lambda: mp.AffineAutoregressive(_network(), stable="no"), "stable"),
    "scale": (lambda: mp.AffineAutoregressive(_network(), scale="wide"), "(rule|scale)"),
    "parameters": (lambda: mp.AffineAutoregressive(_network(3)), "autoregressive_nn"),
    "order": (lambda: mp.SplineAutoregressive(3, _network(), order="cubic"), "order"),
    "input_dim": (lambda: mp.SplineAutoregressive(4, _network()), "input_dim"),
    "spline's parameters": (lambda: mp.SplineAutoregressive(3, _network()), "autoregressive_nn"),
    "bins": (lambda: mp.spline_autoregressive(3, count_bins=1.5), "count_bins"),
    "bound": (
        lambda: mp.SplineAutoregressive(3, _network(8, 8, 7, 8), bound=-1),
        "bound",
    ),
    "fraction": (lambda: mp.affine_autoregressive(2.5), "input_dim"),
    "no context": (lambda: mp.conditional_affine_autoregressive(3, 0), "context_dim"),
    "no context of a spline": (lambda: mp.conditional_spline_autoregressive(3, 0), "context_dim"),
    "list": (lambda: mp.affine_autoregressive(3)([1.0, 2.0, 3.0]), "x"),
    "shape": (lambda: mp.affine_autoregressive(3).inv(torch.zeros(2, 4)), "y"),
    "dtype": (lambda: mp.affine_autoregressive(3).inv(torch.zeros(3).double()), "y"),
    "missing context": (
        lambda: mp.conditional_affine_autoregressive(3, 2).condition(None),
        "context",
    ),
    "NaN context": (
        lambda: mp.conditional_affine_autoregressive(3, 2).condition(torch.tensor([0.0, NAN])),
        "context",
    ),
    "cache": (lambda: mp.affine_autoregressive(3).with_cache(2), "cache_size"),
    "no MADE": (lambda: mp.MADENetwork(_network()), "made"),
    "sizes of a MADE": (lambda: mp.MADENetwork(mf.MADE(3), 2), "param_dims"),
    "model": (lambda: mp.to_pyro(nn.Linear(2, 2)), "model"),
    "distribution": (lambda: mp.ModelDistribution(3, mf.MAF(3)), "distribution"),
    "distribution's model": (lambda: mp.ModelDistribution(mf.MAF(3)(), None), "model"),
    "flow": (lambda: mp.FlowTransform(_network()), "flow"),
    "flow's context": (lambda: mp.FlowTransform(mf.MAF(3), [1.0, 2.0]), "context"),
    "flow without context": (lambda: mp.ConditionalFlowTransform(mf.MAF(3)), "flow"),
    # made_flows.nflows
    "nflows, features": (lambda: mn.MADE(0, 8), "features"),
    "nflows, widths": (lambda: mn.MADE(3, [8]), "hidden_features"),
    "nflows, blocks": (lambda: mn.MADE(3, 8, num_blocks=-1), "num_blocks"),
    "nflows, dropout": (lambda: mn.MADE(3, 8, dropout_probability=2.0), "dropout_probability"),
    "nflows, activation": (lambda: mn.MADE(3, 8, activation="relu"), "activation"),
    "nflows, softmax": (lambda: mn.MADE(3, 8, activation=nn.Softmax(-1)), "activation"),
    "nflows, residual": (lambda: mn.MADE(3, 8, use_residual_blocks="no"), "use_residual_blocks"),
    "nflows, masks": (lambda: mn.MADE(3, 8, random_mask="no"), "random_mask"),
    "nflows, batch norm": (lambda: mn.MADE(3, 8, use_batch_norm="no"), "use_batch_norm"),
    "nflows, multiplier": (lambda: mn.MADE(3, 8, output_multiplier=0), "output_multiplier"),
    "nflows, epsilon": (lambda: mn.MixtureOfGaussiansMADE(3, 8, epsilon=-1.0), "epsilon"),
    "nflows, word": (lambda: mn.MixtureOfGaussiansMADE(3, 8, epsilon="small"), "epsilon"),
    "nflows, samples": (lambda: mn.MixtureOfGaussiansMADE(3, 8).sample(-1), "num_samples"),
    "nflows, list": (lambda: _nflows()([1.0]), "inputs"),
    "nflows, list back": (lambda: _nflows().inverse([1.0]), "inputs"),
    "nflows, row": (lambda: _nflows().inverse(torch.zeros(3)), "inputs of shape"),
    "nflows, bins": (lambda: Spline(3, 8, num_bins=0), "num_bins"),
    "nflows, tails": (lambda: Spline(3, 8, tails="circular"), "tails"),
    "nflows, bound": (lambda: Spline(3, 8, tails="linear", tail_bound=-1.0), "tail_bound"),
    "nflows, width": (lambda: Spline(3, 8, min_bin_width="small"), "min_bin_width"),
    "nflows, height": (lambda: Spline(3, 8, min_bin_height=-1.0), "min_bin_height"),
    "nflows, derivative": (lambda: Spline(3, 8, min_derivative=-1.0), "min_derivative"),
    "nflows, layers": (lambda: mn.MaskedAutoregressiveFlow(3, 8, -1, 1), "num_layers"),
    "nflows, embedding": (
        lambda: mn.MaskedAutoregressiveFlow(3, 8, 1, 1, embedding_net=3),
        "embedding_net",
    ),
    "nflows, sample": (
        lambda: mn.MaskedAutoregressiveFlow(3, 8, 1, 1).sample(2.5),
        "num_samples",
    ),
    "nflows, batches": (
        lambda: mn.MaskedAutoregressiveFlow(3, 8, 1, 1).sample(2, batch_size=0),
        "batch_size",
    ),
    "nflows, transform": (lambda: mn.Flow(3, mn.StandardNormal([3])), "transform"),
    "nflows, base": (
        lambda: mn.Flow(_nflows(), torch.distributions.Normal(0, 1)),
        "distribution",
    ),
    "nflows, flow's embedding": (
        lambda: mn.Flow(_nflows(), mn.StandardNormal([3]), 3),
        "embedding_net",
    ),
    "nflows, size": (lambda: mn.StandardNormal(3), "shape"),
    "nflows, negative size": (lambda: mn.StandardNormal([-1]), "shape"),
    "nflows, model": (lambda: mn.AsDistribution(nn.Linear(2, 2)), "model"),
    "nflows, transforms": (lambda: mn.AsTransform([nn.Linear(2, 2)]), "transforms"),
    "nflows, no transforms": (lambda: mn.AsTransform([]), "transforms"),
    "nflows, no flow": (lambda: mn.AsFlow(nn.Linear(2, 2)), "flow"),
    # accelerate
    "accelerate": (lambda: mf.accelerate("flow.pt"), "model"),
    "accelerate nothing": (lambda: mf.accelerate(None), "model"),
    "undo_acceleration": (lambda: mf.undo_acceleration(3), "model"),
    "acceleration": (lambda: mf.acceleration(3.0), "model"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(case: str) -> None:
    call, names = BAD[case]
    with pytest.raises((TypeError, ValueError), match=rf"^Expected {names}.*; got "):
        call()
