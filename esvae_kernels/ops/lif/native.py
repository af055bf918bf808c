"""Calls the compiled LIF (csrc/cpu/lif.cpp). Arguments are validated and in one of the two layouts."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ... import native
from .reference import Neuron

CHUNK = 16  # kChunk in csrc/cpu/lif.cpp: the backward starts again from the potential stored every 16th step


def _options(p: Neuron) -> Any:
    keys = p._asdict()
    del keys["steps"], keys["constant"]
    return native.module.LifOptions(**keys)  # type: ignore[union-attr]


def _common(x: Tensor, v: Tensor | None, saved: Tensor, weights: Tensor | None, p: Neuron) -> dict[str, Any]:
    size = x.numel() if p.constant else x.numel() // p.steps
    return {
        "dtype": native.DTYPES[x.dtype],
        "x": x.data_ptr(),
        "x_stride": 0 if p.constant else size,
        "v0": native.address(v),
        "weights": native.address(weights),
        "saved": saved.data_ptr() if saved.numel() else 0,
        "steps": p.steps,
        "size": size,
        "options": _options(p),
        "threads": native.threads(size * p.steps),
    }


def lif(x: Tensor, v: Tensor | None, weights: Tensor | None, out: Tensor, last: Tensor, saved: Tensor, p: Neuron):
    common = _common(x, v, saved, weights, p)
    native.module.lif_forward(**common, out=out.data_ptr(), v=last.data_ptr())  # type: ignore[union-attr]


def lif_backward(
    x: Tensor,
    v: Tensor | None,
    saved: Tensor,
    weights: Tensor | None,
    dout: Tensor,
    dv: Tensor | None,
    dx: Tensor,
    dv0: Tensor,
    p: Neuron,
):
    addresses = {"dout": dout.data_ptr(), "dv": native.address(dv), "dx": dx.data_ptr(), "dv0": dv0.data_ptr()}
    native.module.lif_backward(**_common(x, v, saved, weights, p), **addresses)  # type: ignore[union-attr]
