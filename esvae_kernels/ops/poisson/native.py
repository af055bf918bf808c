"""Calls the compiled sampler (csrc/cpu/poisson.cpp, csrc/cuda/poisson.cu). Arguments are validated and contiguous."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ... import native
from ...surrogate import Surrogate


def _values(
    rate: Tensor, ids: Tensor, seed: Tensor, stream: int, spikes: Tensor, surrogate: Surrogate
) -> dict[str, Any]:
    return {
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
        "shape": float(surrogate.parameter),
        "scale": float(surrogate.scale),
        "shift": float(surrogate.shift),
        "smooth": not surrogate.spiking,
    }


def poisson(
    backend: str, rate: Tensor, ids: Tensor, seed: Tensor, stream: int, out: Tensor, surrogate: Surrogate
) -> None:
    values = _values(rate, ids, seed, stream, out, surrogate) | {"out": out.data_ptr()}
    native.call("poisson_forward", backend, rate, out.numel(), values)


def poisson_backward(
    backend: str,
    rate: Tensor,
    ids: Tensor,
    seed: Tensor,
    stream: int,
    dspikes: Tensor,
    drate: Tensor,
    surrogate: Surrogate,
) -> None:
    values = _values(rate, ids, seed, stream, dspikes, surrogate)
    values |= {"dspikes": dspikes.data_ptr(), "out": drate.data_ptr()}
    native.call("poisson_backward", backend, rate, dspikes.numel(), values)
