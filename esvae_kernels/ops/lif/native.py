"""Calls the compiled LIF (csrc/cpu/lif.cpp). Arguments are validated and in one of the two layouts."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ... import native
from .reference import AFFINE, PARAMETERS, Neuron

CHUNK = 16  # kChunk in csrc/cpu/lif.cpp: the backward starts again from the potential stored every 16th step
_NONE, _AFFINE, _ALL = range(3)  # esvae::PerChannel


class Wanted(NamedTuple):
    """What a backward has to compute: gradients of x, v and readout weights, and a bit per row of the parameters."""

    x: bool
    v: bool
    weights: bool
    parameters: int


def _common(
    x: Tensor, v: Tensor | None, parameters: Tensor | None, weights: Tensor | None, channels_last: bool, p: Neuron
) -> dict[str, Any]:
    """The arguments that forward and backward share. `parameters`: (2 or 5, C) in the state's type, contiguous."""
    size = x.numel() if p.constant else x.numel() // p.steps
    per_channel, numbers, address, channels, inner = _NONE, list(p.numbers()), 0, 1, max(size, 1)
    if parameters is not None:
        channels = parameters.shape[1]
        first = AFFINE.start if len(parameters) == 2 else 0
        if channels == 1:
            numbers[first : first + len(parameters)] = parameters[:, 0].tolist()
        else:
            per_channel = _AFFINE if len(parameters) == 2 else _ALL
            address = parameters.data_ptr() - first * channels * parameters.element_size()
            inner = 1 if channels_last else max(math.prod(x.shape[2 if p.constant else 3 :]), 1)  # it divides, 0 or not
    return {
        "x_dtype": native.DTYPES[x.dtype],
        "out_dtype": native.OUT_DTYPES[p.dtype],
        "x": x.data_ptr(),
        "x_stride": 0 if p.constant else size,
        "v0": native.address(v),
        "numbers": numbers,
        "parameters": address,
        "per_channel": per_channel,
        "channels": channels,
        "inner": inner,
        "weights": native.address(weights),
        "steps": p.steps,
        "size": size,
        "reset": p.reset,
        "strict": p.strict,
        "detach_reset": p.detach_reset,
        "surrogate": p.surrogate,
        "shape": p.shape,
        "scale": p.scale,
        "center": p.center,
        "smooth": p.smooth,
        "readout": p.readout,
        "threads": native.threads(size * p.steps),
    }


def lif(
    x: Tensor,
    v: Tensor | None,
    parameters: Tensor | None,
    weights: Tensor | None,
    outputs: dict[str, Tensor],
    channels_last: bool,
    p: Neuron,
) -> None:
    """Fills `outputs`: out, v, and where they have elements membrane and saved."""
    common = _common(x, v, parameters, weights, channels_last, p)
    native.module.lif_forward(**common, **_addresses(outputs))  # type: ignore[union-attr]


def lif_backward(
    x: Tensor,
    v: Tensor | None,
    parameters: Tensor | None,
    weights: Tensor | None,
    inputs: dict[str, Tensor | None],
    outputs: dict[str, Tensor],
    channels_last: bool,
    wanted: Wanted,
    p: Neuron,
) -> tuple[Tensor, Tensor]:
    """Fills `outputs` (dx, dv0, where they have elements) and returns dparameters (2 or 5, C) and dweights (T), fp64.

    `inputs`: saved, dout, dv, dmembrane, center_of_x (see csrc/cpu/kernels.h).
    """
    arguments = _common(x, v, parameters, weights, channels_last, p)
    affine = parameters is not None and len(parameters) == 2
    bits = wanted.parameters << AFFINE.start if affine else wanted.parameters
    dparameters = torch.zeros(len(PARAMETERS), arguments["channels"] if bits else 0, dtype=torch.float64)
    dweights = torch.zeros(p.steps if wanted.weights else 0, dtype=torch.float64)
    sums = {"dparameters": dparameters, "dweights": dweights}
    arguments |= {k: native.address(t) for k, t in inputs.items()} | _addresses(outputs | sums) | {"wanted": bits}
    if bits or wanted.weights:
        sums["workspace"] = torch.empty(native.module.lif_workspace(**arguments), dtype=torch.float64)  # type: ignore
        arguments["workspace"] = sums["workspace"].data_ptr()
    native.module.lif_backward(**arguments)  # type: ignore[union-attr]
    return dparameters[AFFINE].clone() if affine else dparameters, dweights  # a view would differ from the fake


def _addresses(tensors: dict[str, Tensor]) -> dict[str, int]:
    return {name: tensor.data_ptr() for name, tensor in tensors.items() if tensor.numel()}
