"""Calls the compiled LIF (csrc/cpu/lif.cpp, csrc/cuda/lif.cu). Arguments are validated, in one of the two layouts."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ... import native
from .plan import Plan
from .reference import AFFINE, PARAMETERS, Wanted

_NONE, _AFFINE, _ALL = range(3)  # esvae::PerChannel
_INPUTS = ("x", "v0", "i0", "weights")
_FORWARD = (*_INPUTS, "out", "v", "i", "membrane", "saved")
_BACKWARD = (*_INPUTS, "saved", "dout", "dv", "di", "dmembrane", "center_of_x", "dx", "dv0", "di0")


def _call(function: str, backend: str, plan: Plan, tensors: tuple[str, ...]) -> native.Call:
    """Of the plan alone, for which it is kept."""
    kept: native.Call | None = plan.kept.get((function, backend))
    if kept is None:
        p, size = plan.p, plan.size()
        values = {name: value for name, value in p._asdict().items() if name not in ("constant", "dtype", "record")}
        values |= {
            "x_dtype": native.DTYPES[plan.x_dtype],
            "out_dtype": native.OUT_DTYPES[p.dtype],
            "x_stride": 0 if p.constant else size,
            "size": size,
            "per_channel": _NONE,
            "channels": 1,
            "inner": size or 1,
            "wanted": 0,
        }
        kept = native.Call(function, backend, plan.device, size * p.steps, values, tensors)
        plan.kept[function, backend] = kept
    return kept


def _per_channel(backend: str, plan: Plan, parameters: Tensor | None) -> dict[str, Any]:
    """What a call adds for parameters (2 or 6, C) in the state's type, contiguous."""
    if parameters is None:
        return {}
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
        values["inner"] = 1 if plan.channels_last else max(math.prod(plan.inner[1:]) // channels, 1)
    return values


def lif(
    backend: str,
    plan: Plan,
    x: Tensor,
    v: Tensor | None,
    i: Tensor | None,
    parameters: Tensor | None,
    weights: Tensor | None,
    *outputs: Tensor | None,
) -> None:
    """Fills `outputs`: out, v, and where they are there i, membrane and saved."""
    call = _call("lif_forward", backend, plan, _FORWARD)
    call((x, v, i, weights, *outputs), _per_channel(backend, plan, parameters))


def lif_backward(
    backend: str,
    plan: Plan,
    x: Tensor,
    v: Tensor | None,
    i: Tensor | None,
    parameters: Tensor | None,
    weights: Tensor | None,
    saved: Tensor | None,
    dout: Tensor | None,
    dv: Tensor | None,
    di: Tensor | None,
    dmembrane: Tensor | None,
    center_of_x: Tensor | None,
    wanted: Wanted,
    *gradients: Tensor | None,
) -> tuple[Tensor | None, Tensor | None]:
    """Fills `gradients` (dx, dv0, di0, where they are there), returns dparameters (2 or 6, C) and dweights (T), fp64,
    where they are wanted. See csrc/calls.h."""
    tensors = (x, v, i, weights, saved, dout, dv, di, dmembrane, center_of_x, *gradients)
    values = _per_channel(backend, plan, parameters)
    call = _call("lif_backward", backend, plan, _BACKWARD)
    if not wanted.parameters and not wanted.weights:
        call(tensors, values)
        return None, None
    affine = parameters is not None and len(parameters) == 2
    bits = wanted.parameters << AFFINE.start if affine else wanted.parameters
    channels = values.get("channels", 1)
    dparameters = x.new_zeros((len(PARAMETERS), channels if bits else 0), dtype=torch.float64)
    dweights = x.new_zeros(plan.p.steps if wanted.weights else 0, dtype=torch.float64)
    values |= {"dparameters": dparameters.data_ptr(), "dweights": dweights.data_ptr(), "wanted": bits}
    numbers = _call("lif_workspace", backend, plan, _BACKWARD)(tensors, values)
    workspace = x.new_empty(numbers, dtype=torch.float64)
    call(tensors, values | {"workspace": workspace.data_ptr()})
    return dparameters[AFFINE].clone() if affine else dparameters, dweights  # a view would differ from the fake
