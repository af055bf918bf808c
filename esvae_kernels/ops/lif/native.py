"""Calls the compiled LIF (csrc/cpu/lif.cpp, csrc/cuda/lif.cu). Arguments are validated, in one of the two layouts."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ... import native
from .reference import AFFINE, PARAMETERS, Neuron, Wanted

_NONE, _AFFINE, _ALL = range(3)  # esvae::PerChannel


_KEPT: dict[tuple[str, str, int], tuple[Neuron, list[Any]]] = {}


def _of_neuron(backend: str, function: str, p: Neuron) -> list[Any]:
    """All values of a call in order, those that are not the neuron's yet to be filled in. Kept for the neuron itself,
    which is the same object from call to call: to an equal one -0 would be 0. That saves 5 us."""
    key = (backend, function, id(p))
    kept = _KEPT.get(key)
    if kept is not None and kept[0] is p:
        return kept[1]
    if len(_KEPT) >= 4096:
        _KEPT.clear()
    values = {name: value for name, value in p._asdict().items() if name not in ("constant", "dtype", "record")}
    values |= dict.fromkeys(("x_dtype", "x_stride", "size", "wanted"), 0)
    values |= {"out_dtype": native.OUT_DTYPES[p.dtype], "per_channel": _NONE, "channels": 1, "inner": 1}
    row = native.in_order(backend, function, values)
    _KEPT[key] = (p, row)
    return row


def _of_call(
    backend: str,
    x: Tensor,
    v: Tensor | None,
    i: Tensor | None,
    parameters: Tensor | None,
    weights: Tensor | None,
    channels_last: bool,
    p: Neuron,
) -> dict[str, Any]:
    """What forward and backward share beside it. `parameters`: (2 or 6, C) in the state's type, contiguous."""
    size = x.numel() if p.constant else x.numel() // p.steps
    values = {
        "x_dtype": native.DTYPES[x.dtype],
        "x": x.data_ptr(),
        "x_stride": 0 if p.constant else size,
        "v0": native.address(v),
        "i0": native.address(i),
        "inner": size or 1,
        "weights": native.address(weights),
        "size": size,
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
    values = _of_call(backend, x, v, i, parameters, weights, channels_last, p) | _addresses(outputs)
    rest = _of_neuron(backend, "lif_forward", p)
    native.call("lif_forward", backend, x, values["size"] * p.steps, values, rest)


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
    values = _of_call(backend, x, v, i, parameters, weights, channels_last, p)
    values |= _addresses(inputs) | _addresses(outputs)
    where, rest = (backend, x, values["size"] * p.steps), _of_neuron(backend, "lif_backward", p)
    if not wanted.parameters and not wanted.weights:
        native.call("lif_backward", *where, values, rest)
        return None, None
    affine = parameters is not None and len(parameters) == 2
    bits = wanted.parameters << AFFINE.start if affine else wanted.parameters
    channels = values.get("channels", 1)
    dparameters = x.new_zeros((len(PARAMETERS), channels if bits else 0), dtype=torch.float64)
    dweights = x.new_zeros(p.steps if wanted.weights else 0, dtype=torch.float64)
    values |= _addresses({"dparameters": dparameters, "dweights": dweights}) | {"wanted": bits}
    workspace = x.new_empty(native.call("lif_workspace", *where, values, rest), dtype=torch.float64)
    values["workspace"] = workspace.data_ptr()
    native.call("lif_backward", *where, values, rest)
    return dparameters[AFFINE].clone() if affine else dparameters, dweights  # a view would differ from the fake


def _addresses(tensors: dict[str, Tensor | None]) -> dict[str, int]:
    """Null for none, or one without elements."""
    return {name: 0 if tensor is None else tensor.data_ptr() for name, tensor in tensors.items()}
