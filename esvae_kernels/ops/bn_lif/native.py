"""Calls what batch norm adds to the LIF (csrc/cpu/bn_lif.cpp, csrc/cuda/bn_lif.cu)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ... import native


def statistics(backend: str, y: Tensor, channel: int, channels_last: bool) -> tuple[Tensor, Tensor]:
    """Mean and biased variance (C), fp64, of a y in one of the two layouts."""
    channels = y.shape[channel]
    if not y.numel():  # the kernel takes each channel's first value for granted
        nothing = y.new_full((channels,), math.nan, dtype=torch.float64)
        return nothing, nothing.clone()
    mean, variance = (y.new_empty(channels, dtype=torch.float64) for _ in range(2))
    values = _common(y, channel, channels_last) | {"mean": mean.data_ptr(), "variance": variance.data_ptr()}
    where = backend, y, y.numel()
    workspace = y.new_empty(native.call("batch_statistics_workspace", *where, values), dtype=torch.float64)
    native.call("batch_statistics", *where, values | {"workspace": workspace.data_ptr()})
    return mean, variance


def correct(
    backend: str, dx: Tensor, y: Tensor, factors: Tensor, dy: Tensor, channel: int, channels_last: bool
) -> None:
    """dy = dx + (factors[0] * y + factors[1]), with factors (2, C) in the state's type."""
    if y.numel():
        addresses = {"dx": dx.data_ptr(), "factors": factors.data_ptr(), "dy": dy.data_ptr()}
        values = _common(y, channel, channels_last) | addresses
        native.call("batch_correction", backend, y, y.numel(), values)


def _common(y: Tensor, channel: int, channels_last: bool) -> dict[str, Any]:
    channels = y.shape[channel]
    return {
        "dtype": native.DTYPES[y.dtype],
        "y": y.data_ptr(),
        "size": y.numel(),
        "channels": channels,
        "inner": y.numel() if channels == 1 else 1 if channels_last else math.prod(y.shape[channel + 1 :]),
    }
