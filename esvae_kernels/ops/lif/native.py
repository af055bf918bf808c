"""Calls the compiled LIF (csrc/cpu/lif.cpp, csrc/cuda/lif.cu). Arguments are validated, in one of the two layouts."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ... import backends, native
from .reference import AFFINE, PARAMETERS, Neuron, Wanted

_NONE, _AFFINE, _ALL = range(3)  # esvae::PerChannel


def _common(
    x: Tensor,
    v: Tensor | None,
    i: Tensor | None,
    parameters: Tensor | None,
    weights: Tensor | None,
    channels_last: bool,
    p: Neuron,
) -> dict[str, Any]:
    """The arguments that forward and backward share. `parameters`: (2 or 6, C) in the state's type, contiguous."""
    backend = backends.pick(x.device)
    size = x.numel() if p.constant else x.numel() // p.steps
    per_channel, numbers, address, channels, inner = _NONE, list(p.numbers()), 0, 1, max(size, 1)
    if parameters is not None:
        channels = parameters.shape[1]
        first = AFFINE.start if len(parameters) == 2 else 0
        if channels == 1 and backend == "cpu":  # on a GPU one would have to wait for them
            numbers[first : first + len(parameters)] = parameters[:, 0].tolist()
        else:
            per_channel = _AFFINE if len(parameters) == 2 else _ALL
            address = parameters.data_ptr() - first * channels * parameters.element_size()
            if channels > 1:  # inner divides, 0 or not
                inner = 1 if channels_last else max(math.prod(x.shape[1 if p.constant else 2 :]) // channels, 1)
    return {
        "backend": backend,
        "tensor": x,
        "work": size * p.steps,
        "x_dtype": native.DTYPES[x.dtype],
        "out_dtype": native.OUT_DTYPES[p.dtype],
        "x": x.data_ptr(),
        "x_stride": 0 if p.constant else size,
        "v0": native.address(v),
        "i0": native.address(i),
        "numbers": numbers,
        "parameters": address,
        "per_channel": per_channel,
        "channels": channels,
        "inner": inner,
        "weights": native.address(weights),
        "steps": p.steps,
        "size": size,
        "synaptic": p.synaptic,
        "v_min": p.v_min,
        "reset": p.reset,
        "strict": p.strict,
        "several": p.several,
        "detach_reset": p.detach_reset,
        "surrogate": p.surrogate,
        "shape": p.shape,
        "scale": p.scale,
        "center": p.shift,
        "smooth": p.smooth,
        "readout": p.readout,
    }


def lif(
    x: Tensor,
    v: Tensor | None,
    i: Tensor | None,
    parameters: Tensor | None,
    weights: Tensor | None,
    outputs: dict[str, Tensor],
    channels_last: bool,
    p: Neuron,
) -> None:
    """Fills `outputs`: out, v, and where they have elements i, membrane and saved."""
    common = _common(x, v, i, parameters, weights, channels_last, p)
    native.call("lif_forward", **common, **_addresses(outputs))


def lif_backward(
    x: Tensor,
    v: Tensor | None,
    i: Tensor | None,
    parameters: Tensor | None,
    weights: Tensor | None,
    inputs: dict[str, Tensor | None],
    outputs: dict[str, Tensor],
    channels_last: bool,
    wanted: Wanted,
    p: Neuron,
) -> tuple[Tensor, Tensor]:
    """Fills `outputs` (dx, dv0, di0, where they have elements), returns dparameters (2 or 6, C) and dweights (T), fp64.

    `inputs`: saved, dout, dv, di, dmembrane, center_of_x (see csrc/calls.h).
    """
    arguments = _common(x, v, i, parameters, weights, channels_last, p)
    affine = parameters is not None and len(parameters) == 2
    bits = wanted.parameters << AFFINE.start if affine else wanted.parameters
    numbers = {"dtype": torch.float64, "device": x.device}
    dparameters = torch.zeros(len(PARAMETERS), arguments["channels"] if bits else 0, **numbers)
    dweights = torch.zeros(p.steps if wanted.weights else 0, **numbers)
    sums = {"dparameters": dparameters, "dweights": dweights}
    arguments |= {k: native.address(t) for k, t in inputs.items()} | _addresses(outputs | sums) | {"wanted": bits}
    if bits or wanted.weights:
        workspace = torch.empty(native.call("lif_workspace", **arguments), **numbers)
        arguments["workspace"] = workspace.data_ptr()
    native.call("lif_backward", **arguments)
    return dparameters[AFFINE].clone() if affine else dparameters, dweights  # a view would differ from the fake


def _addresses(tensors: dict[str, Tensor]) -> dict[str, int]:
    return {name: tensor.data_ptr() for name, tensor in tensors.items() if tensor.numel()}
