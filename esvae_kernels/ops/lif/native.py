"""Calls the compiled LIF (csrc/cpu/lif.cpp, csrc/cuda/lif.cu). Arguments are validated, in one of the two layouts."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ... import native
from .reference import AFFINE, PARAMETERS, Neuron, Wanted

_NONE, _AFFINE, _ALL = range(3)  # esvae::PerChannel


def _common(
    backend: str,
    x: Tensor,
    v: Tensor | None,
    i: Tensor | None,
    parameters: Tensor | None,
    weights: Tensor | None,
    channels_last: bool,
    p: Neuron,
) -> dict[str, Any]:
    """The values that forward and backward share. `parameters`: (2 or 6, C) in the state's type, contiguous.

    Written out: taking them from `p` one by one is a microsecond in all, and a cache by `p` would take -0 for 0."""
    size = x.numel() if p.constant else x.numel() // p.steps
    values = {
        "x_dtype": native.DTYPES[x.dtype],
        "out_dtype": native.OUT_DTYPES[p.dtype],
        "x": x.data_ptr(),
        "x_stride": 0 if p.constant else size,
        "v0": native.address(v),
        "i0": native.address(i),
        "decay": p.decay,
        "gain": p.gain,
        "bias": p.bias,
        "threshold": p.threshold,
        "v_reset": p.v_reset,
        "synaptic_decay": p.synaptic_decay,
        "parameters": 0,
        "per_channel": _NONE,
        "channels": 1,
        "inner": max(size, 1),
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
        "shift": p.shift,
        "smooth": p.smooth,
        "readout": p.readout,
        "wanted": 0,
    }
    return values if parameters is None else values | _per_channel(backend, x, parameters, channels_last, p)


def _per_channel(backend: str, x: Tensor, parameters: Tensor, channels_last: bool, p: Neuron) -> dict[str, Any]:
    rows, channels = parameters.shape
    of = AFFINE if rows == 2 else slice(0, rows)
    if channels == 1 and backend == "cpu":  # on a GPU one would have to wait for them
        return dict(zip(PARAMETERS[of], parameters[:, 0].tolist(), strict=True))
    values = {
        "parameters": parameters.data_ptr() - of.start * channels * parameters.element_size(),
        "per_channel": _AFFINE if rows == 2 else _ALL,
        "channels": channels,
    }
    if channels > 1:  # inner divides, 0 or not
        per_sample = math.prod(x.shape[1 if p.constant else 2 :])
        values["inner"] = 1 if channels_last else max(per_sample // channels, 1)
    return values


def lif(
    backend: str,
    x: Tensor,
    v: Tensor | None,
    i: Tensor | None,
    parameters: Tensor | None,
    weights: Tensor | None,
    outputs: dict[str, Tensor | None],
    channels_last: bool,
    p: Neuron,
) -> None:
    """Fills `outputs`: out, v, and where they are there i, membrane and saved."""
    values = _common(backend, x, v, i, parameters, weights, channels_last, p) | _addresses(outputs)
    native.call("lif_forward", backend, x, values["size"] * p.steps, values)


def lif_backward(
    backend: str,
    x: Tensor,
    v: Tensor | None,
    i: Tensor | None,
    parameters: Tensor | None,
    weights: Tensor | None,
    inputs: dict[str, Tensor | None],
    outputs: dict[str, Tensor | None],
    channels_last: bool,
    wanted: Wanted,
    p: Neuron,
) -> tuple[Tensor | None, Tensor | None]:
    """Fills `outputs` (dx, dv0, di0, where they are there), returns dparameters (2 or 6, C) and dweights (T), fp64,
    where they are wanted.

    `inputs`: saved, dout, dv, di, dmembrane, center_of_x (see csrc/calls.h).
    """
    values = _common(backend, x, v, i, parameters, weights, channels_last, p)
    values |= _addresses(inputs) | _addresses(outputs)
    where = backend, x, values["size"] * p.steps
    if not wanted.parameters and not wanted.weights:
        native.call("lif_backward", *where, values)
        return None, None
    affine = parameters is not None and len(parameters) == 2
    bits = wanted.parameters << AFFINE.start if affine else wanted.parameters
    dparameters = x.new_zeros((len(PARAMETERS), values["channels"] if bits else 0), dtype=torch.float64)
    dweights = x.new_zeros(p.steps if wanted.weights else 0, dtype=torch.float64)
    values |= _addresses({"dparameters": dparameters, "dweights": dweights}) | {"wanted": bits}
    workspace = x.new_empty(native.call("lif_workspace", *where, values), dtype=torch.float64)
    native.call("lif_backward", *where, values | {"workspace": workspace.data_ptr()})
    return dparameters[AFFINE].clone() if affine else dparameters, dweights  # a view would differ from the fake


def _addresses(tensors: dict[str, Tensor | None]) -> dict[str, int]:
    """Null for none, or one without elements."""
    return {name: 0 if tensor is None else tensor.data_ptr() for name, tensor in tensors.items()}
