"""Calls what batch norm adds to the LIF (csrc/cpu/bn_lif.cpp)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ... import native


def statistics(y: Tensor, channel: int, channels_last: bool) -> tuple[Tensor, Tensor]:
    """Mean and biased variance (C), fp64, of a y in one of the two layouts."""
    channels = y.shape[channel]
    if not y.numel():  # the kernel takes each channel's first value for granted
        nothing = torch.full((channels,), math.nan, dtype=torch.float64)
        return nothing, nothing.clone()
    mean, variance = (torch.empty(channels, dtype=torch.float64) for _ in range(2))
    arguments = _common(y, channel, channels_last) | {"mean": mean.data_ptr(), "variance": variance.data_ptr()}
    numbers = native.module.batch_statistics_workspace(**arguments)  # type: ignore[union-attr]
    workspace = torch.empty(numbers, dtype=torch.float64)
    native.module.batch_statistics(**arguments, workspace=workspace.data_ptr())  # type: ignore[union-attr]
    return mean, variance


def correct(dx: Tensor, y: Tensor, factors: Tensor, dy: Tensor, channel: int, channels_last: bool) -> None:
    """dy = dx + (factors[0] * y + factors[1]), with factors (2, C) in the state's type."""
    if y.numel():
        addresses = {"dx": dx.data_ptr(), "factors": factors.data_ptr(), "dy": dy.data_ptr()}
        native.module.batch_correction(**_common(y, channel, channels_last), **addresses)  # type: ignore[union-attr]


def _common(y: Tensor, channel: int, channels_last: bool) -> dict[str, int]:
    channels = y.shape[channel]
    return {
        "dtype": native.DTYPES[y.dtype],
        "y": y.data_ptr(),
        "size": y.numel(),
        "channels": channels,
        "inner": y.numel() if channels == 1 else 1 if channels_last else math.prod(y.shape[channel + 1 :]),
        "threads": native.threads(y.numel()),
    }
