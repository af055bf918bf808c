"""Calls the compiled sampler (csrc/cpu/poisson.cpp). Arguments are validated and contiguous."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ... import native
from ...surrogate import Surrogate

_DTYPES = native.DTYPES | {torch.uint8: 4}  # spikes may be of one more


def _arguments(rate: Tensor, ids: Tensor, seed: int, spikes: Tensor, surrogate: Surrogate) -> dict[str, Any]:
    return {
        "dtype": _DTYPES[rate.dtype],
        "spikes_dtype": _DTYPES[spikes.dtype],
        "rate": rate.data_ptr(),
        "ids": ids.data_ptr(),
        "steps": len(spikes),
        "samples": len(rate),
        "elements": rate.numel() // max(len(rate), 1),
        "seed": seed,
        "surrogate": surrogate.id,
        "shape": surrogate.shape,
        "scale": float(surrogate.scale),
        "center": float(surrogate.center),
        "smooth": surrogate.smooth,
        "threads": native.threads(spikes.numel()),
    }


def poisson(rate: Tensor, ids: Tensor, seed: int, out: Tensor, surrogate: Surrogate) -> None:
    arguments = _arguments(rate, ids, seed, out, surrogate)
    native.module.poisson_forward(**arguments, dspikes=0, out=out.data_ptr())  # type: ignore[union-attr]


def poisson_backward(
    rate: Tensor, ids: Tensor, seed: int, dspikes: Tensor, drate: Tensor, surrogate: Surrogate
) -> None:
    arguments = _arguments(rate, ids, seed, dspikes, surrogate)
    native.module.poisson_backward(  # type: ignore[union-attr]
        **arguments, dspikes=dspikes.data_ptr(), out=drate.data_ptr()
    )
