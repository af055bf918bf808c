"""Validation that the public functions share: one line, naming the argument, what came and what is accepted."""

from __future__ import annotations

import numbers
import sys

import torch
from torch import Tensor

from .native import DTYPES
from .surrogate import Surrogate


def floating(name: str, tensor: object, least_dims: int, shape: str) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name}: got {type(tensor).__name__}, accepted is a tensor {shape}")
    if tensor.layout != torch.strided:
        raise TypeError(f"{name}: got layout {tensor.layout}, accepted is a dense tensor")
    if tensor.dtype not in DTYPES:
        accepted = ", ".join(str(d).removeprefix("torch.") for d in DTYPES)
        raise TypeError(f"{name}: got dtype {str(tensor.dtype).removeprefix('torch.')}, accepted are {accepted}")
    if tensor.dim() < least_dims:
        raise ValueError(f"{name}: got shape {tuple(tensor.shape)}, accepted is {shape}")


def steps(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int | torch.SymInt) or value < 1:
        raise ValueError(f"{name}: got {value!r}, accepted is an integer of at least 1")
    return value  # type: ignore[return-value]


def like(name: str, tensor: object, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name}: got {type(tensor).__name__}, accepted is a tensor of shape {tuple(shape)}")
    if tuple(tensor.shape) != tuple(shape):
        raise ValueError(f"{name}: got shape {tuple(tensor.shape)}, accepted is {tuple(shape)}")
    if tensor.dtype != dtype:
        raise TypeError(f"{name}: got dtype {tensor.dtype}, accepted is {dtype}")
    if tensor.device != device:
        raise ValueError(f"{name}: got device {tensor.device}, accepted is {device}")


def number(name: str, value: object, channels: int) -> float:
    """A finite number; a tensor of 1 or C elements is a signature that later versions will serve."""
    if isinstance(value, Tensor):
        if value.numel() not in (1, channels) or value.dim() > 1:
            raise ValueError(f"{name}: got shape {tuple(value.shape)}, accepted are a number, (1,) or ({channels},)")
        raise NotImplementedError(f"{name}: got a tensor; this version takes a number")
    if not isinstance(value, bool) and isinstance(value, numbers.Real) and abs(value) <= sys.float_info.max:
        return float(value)
    raise ValueError(f"{name}: got {str(value)[:80]}, accepted is a finite number")


def surrogate(value: object) -> Surrogate:
    if not isinstance(value, Surrogate) or type(value) is Surrogate:
        hint = " (an instance, not the class)" if isinstance(value, type) else ""
        raise TypeError(f"surrogate: got {value!r}, accepted is one of esvae_kernels.surrogate{hint}")
    return value
