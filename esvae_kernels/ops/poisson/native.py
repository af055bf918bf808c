"""Calls the compiled sampler (csrc/cpu/poisson.cpp, csrc/cuda/poisson.cu). Arguments are validated and contiguous."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ... import backends, native
from ...surrogate import Surrogate


def _arguments(
    rate: Tensor, ids: Tensor, seed: Tensor, stream: int, spikes: Tensor, surrogate: Surrogate
) -> dict[str, Any]:
    return {
        "backend": backends.pick(rate.device),
        "tensor": rate,
        "work": spikes.numel(),
        "dtype": native.DTYPES[rate.dtype],
        "spikes_dtype": native.OUT_DTYPES[spikes.dtype],
        "rate": rate.data_ptr(),
        "ids": ids.data_ptr(),
        "steps": len(spikes),
        "samples": len(rate),
        "elements": rate.numel() // max(len(rate), 1),
        "seed": seed.data_ptr(),  # read where the kernel runs: a captured graph draws new noise
        "noise_stream": stream,
        "surrogate": surrogate.id,
        "shape": surrogate.shape,
        "scale": float(surrogate.scale),
        "center": float(surrogate.center),
        "smooth": surrogate.smooth,
    }


def poisson(rate: Tensor, ids: Tensor, seed: Tensor, stream: int, out: Tensor, surrogate: Surrogate) -> None:
    arguments = _arguments(rate, ids, seed, stream, out, surrogate)
    native.call("poisson_forward", **arguments, dspikes=0, out=out.data_ptr())


def poisson_backward(
    rate: Tensor, ids: Tensor, seed: Tensor, stream: int, dspikes: Tensor, drate: Tensor, surrogate: Surrogate
) -> None:
    arguments = _arguments(rate, ids, seed, stream, dspikes, surrogate)
    native.call("poisson_backward", **arguments, dspikes=dspikes.data_ptr(), out=drate.data_ptr())
