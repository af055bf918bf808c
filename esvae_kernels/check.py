"""Validation that the public functions share: one line, naming the argument, what came and what is accepted."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any, NoReturn

import torch
from torch import Tensor

from .native import DTYPES, OUT_DTYPES
from .surrogate import SURROGATES, Surrogate
from .surrogate.reference import real


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
    if isinstance(value, Tensor) and torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
        value = int(value)  # a size of a tensor is one, there
    if isinstance(value, bool) or not isinstance(value, Integral | torch.SymInt) or value < 1:
        raise ValueError(f"{name}: got {value!r}, accepted is an integer of at least 1")
    return value if isinstance(value, torch.SymInt) else int(value)  # type: ignore[return-value]


def like(name: str, tensor: object, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name}: got {type(tensor).__name__}, accepted is a tensor of shape {tuple(shape)}")
    if tuple(tensor.shape) != tuple(shape):
        raise ValueError(f"{name}: got shape {tuple(tensor.shape)}, accepted is {tuple(shape)}")
    if tensor.dtype != dtype:
        raise TypeError(f"{name}: got dtype {tensor.dtype}, accepted is {dtype}")
    if tensor.device != device:
        raise ValueError(f"{name}: got device {tensor.device}, accepted is {device}")


def parameter(name: str, value: Tensor, inner: Sequence[int], device: torch.device) -> None:
    """A tensor of one element, one per channel, or one per neuron of (N, *) = `inner`; its values are not looked at."""
    floating(name, value, 0, "of floating point")
    channels = inner[1] if len(inner) > 1 else 1
    # Not `in (1, channels)`: torch.compile takes that for identity where channels is a symbol.
    one_or_per_channel = value.dim() < 2 and (value.numel() == 1 or value.numel() == channels)
    if not one_or_per_channel and (len(inner) < 2 or tuple(value.shape) != tuple(inner[1:])):
        per_channel = f", ({channels},)" if len(inner) > 1 and channels != 1 else ""
        per_neuron = f" or {tuple(inner[1:])}" if len(inner) > 2 else ""
        raise ValueError(
            f"{name}: got shape {tuple(value.shape)}, accepted are a number, (1,){per_channel}{per_neuron}"
        )
    if value.device != device:
        raise ValueError(f"{name}: got device {value.device}, accepted is {device}")


def number(
    name: str, value: object, accepted: str = "are a finite number and a tensor", dtype: torch.dtype = torch.float64
) -> float:
    """A number that is finite in `dtype`, in which it is computed with."""
    if abs(found := real(value)) <= torch.finfo(dtype).max:
        return found
    in_dtype = f" (in {str(dtype).removeprefix('torch.')})" if math.isfinite(found) else ""
    raise ValueError(f"{name}: got {str(value)[:80]}, accepted {accepted}{in_dtype}")


def spikes_dtype(dtype: object, source: torch.dtype, integers: bool, learns: bool) -> torch.dtype:
    """The dtype of what comes out, by default `source`. `integers`: whether it is spikes, 0 or 1. `learns`: whether
    what comes in needs a gradient through it."""
    if dtype is None:
        return source
    if dtype == torch.uint8:
        if not integers:
            raise ValueError("dtype: got torch.uint8, which holds spikes; accepted here is a floating-point dtype")
        if learns:
            raise ValueError(
                "dtype: got torch.uint8, through which no gradient flows; accepted here is a floating-point dtype "
                "(or call under torch.no_grad())"
            )
    elif not isinstance(dtype, torch.dtype) or dtype not in DTYPES:
        accepted = ", ".join(str(d).removeprefix("torch.") for d in OUT_DTYPES)
        raise TypeError(f"dtype: got {dtype!r}, accepted are {accepted}")
    return dtype


def renamed(function: str, options: Mapping[str, object], names: Mapping[str, str]) -> NoReturn:
    """A keyword that is not known; `names`: those of before, and what they are now."""
    for name in options.keys() & names.keys():
        raise TypeError(f"{function}: got the keyword {name}, accepted in its place is {names[name]}")
    raise TypeError(f"{function}: got the unknown keyword {next(iter(options))}")


def surrogate(value: Any) -> Surrogate:
    if type(value) not in SURROGATES.values():  # the kernels would pass by what a subclass changes
        hint = " (an instance, not the class)" if isinstance(value, type) else ""
        raise TypeError(f"surrogate: got {value!r}, accepted is one of esvae_kernels.surrogate{hint}")
    checked: Surrogate = value
    return checked
