"""Threshold-dependent batch norm (tdBN) and the LIF neuron in one: the specification.

Per channel c (axis 2 of y (T, N, C, *); Zheng et al., 2021, eq. 6-8; paper, section III):

    mean_c, var_c = mean and biased variance of y over all axes but the channel (training), or the running ones
    a_c = scale * weight_c / sqrt(var_c + eps)                        fp64
    b_c = bias_c - mean_c * a_c                                       fp64
    m_t = decay * v_{t-1} + (a * y_t + b)                             the LIF with gain = a and bias = b, see ../lif

a and b are rounded once, to the state's type; what follows is the LIF's, bit for bit. With `constant` y (N, C, *)
stands for T equal time steps: mean and variance are the same.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..lif import reference as lif_reference
from ..lif.reference import AFFINE, PARAMETERS, Neuron, state_dtype


def statistics(y: Tensor, channel: int) -> tuple[Tensor, Tensor]:
    """Mean and biased variance (C), fp64, over all axes but `channel`."""
    axes = [axis for axis in range(y.dim()) if axis != channel]
    variance, mean = torch.var_mean(y.double(), axes, correction=0)
    return mean, variance


def affine(mean: Tensor, variance: Tensor, weight: Tensor, bias: Tensor, scale: float, eps: float) -> Tensor:
    """(a, b) as one tensor (2, C), fp64: shared by all backends."""
    a = scale * weight.double() / torch.sqrt(variance + eps)
    return torch.stack([a, bias.double() - mean * a])


def correct(dx: Tensor, y: Tensor, factors: Tensor, channel: int) -> Tensor:
    """dx + (factor * y + offset), with factors (2, C): what mean and variance add to the gradient of y."""
    factor, offset = (row.view(-1, *(1,) * (y.dim() - channel - 1)) for row in factors.unbind())
    return (dx.to(factors.dtype) + (factor * y.to(factors.dtype) + offset)).to(dx.dtype)


def with_affine(parameters: Tensor | None, ab: Tensor) -> Tensor:
    """The LIF's parameters (6, 1 or C or one per neuron) with gain and bias taken from (a, b)."""
    if parameters is None:
        return ab
    columns = max(parameters.shape[1], ab.shape[1])
    rows = list(parameters.expand(len(PARAMETERS), columns).unbind(0))
    rows[AFFINE] = per_neuron(ab, columns).unbind(0)
    return torch.stack(rows)


def per_neuron(values: Tensor, columns: int) -> Tensor:
    """(*, C) -> (*, columns): each channel's value for all of its neurons."""
    return values if values.shape[-1] == columns else values.repeat_interleave(columns // values.shape[-1], -1)


def per_channel(values: Tensor, channels: int) -> Tensor:
    """(*, columns) -> (*, C): the sums over each channel's neurons."""
    return values if values.shape[-1] == channels else values.unflatten(-1, (channels, -1)).sum(-1)


def bn_lif(
    y: Tensor,
    v: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    parameters: Tensor | None,
    weights: Tensor | None,
    scale: float,
    eps: float,
    p: Neuron,
) -> tuple[Tensor | None, ...]:
    """In training: spikes, the last v, and m where it is recorded, with gradients through the statistics too."""
    mean, variance = statistics(y, 1 if p.constant else 2)
    ab = affine(mean, variance, weight, bias, scale, eps).to(state_dtype(y.dtype))
    out, v, _, membrane = lif_reference.lif(y, v, None, with_affine(parameters, ab), weights, p)
    return out, v, membrane
