"""What other libraries keep as tensors, as `esvae_kernels.lif` takes it: one number, or one per channel."""

from __future__ import annotations

import math
import numbers
from collections.abc import MutableMapping

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

# Of tensors not on the CPU: tensor -> (its version and address, its value).
_NUMBERS: MutableMapping[Tensor, tuple[tuple[int, int], float]] = WeakIdKeyDictionary()


def is_number(value: object) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def number(tensor: Tensor) -> float:
    """The value of a tensor of one element."""
    return float(tensor) if tensor.is_cpu or tensor.is_inference() else _cached(tensor)


def _cached(tensor: Tensor) -> float:
    """Waits for the device once per value, not once per call. What is written in place through `tensor.data`, behind
    autograd's back, goes unnoticed."""
    now = (tensor._version, tensor.data_ptr())
    seen, value = _NUMBERS.get(tensor, (None, 0.0))
    if seen != now:
        value = float(tensor)
        _NUMBERS[tensor] = (now, value)
    return value


def readable(tensor: Tensor) -> bool:
    """Whether `lif` may take it as a number, which is quicker: it has no gradient to take and no device to wait for."""
    learnt = tensor.requires_grad and torch.is_grad_enabled()
    return tensor.numel() == 1 and tensor.is_cpu and not learnt and not torch.compiler.is_compiling()


def as_value(tensor: Tensor, dtype: torch.dtype) -> float | Tensor:
    """As `lif` takes it."""
    if readable(tensor):
        found = number(tensor)
        if math.isfinite(found):
            return found
    return tensor.to(dtype).reshape(-1)


def why_never(name: str, value: Tensor) -> str | None:
    """Why the kernels take `value` with no x at all; None where they do with some."""
    if sum(size != 1 for size in value.shape) > 1:
        return f"{name}: got shape {tuple(value.shape)}, the kernels take one value, or one per channel (axis 1)"
    return None


def why_not(name: str, value: Tensor, x: Tensor, dtype: torch.dtype) -> str | None:
    """Why the kernels take `value` otherwise than torch does, that broadcasts it with x (N, C, *) and computes in
    `dtype`; None where it is the same."""
    if value.numel() != 1 and value.numel() != _channels_of(value, x):
        return f"{name}: got shape {tuple(value.shape)}, not one value per channel (axis 1) of {tuple(x.shape)}"
    if value.dim() > x.dim():
        return f"{name}: got shape {tuple(value.shape)}, of more axes than {tuple(x.shape)}"
    if value.dim() and torch.promote_types(value.dtype, dtype) != dtype:
        return f"{name}: got {value.dtype}, which turns the potentials into it"
    return None


def _channels_of(value: Tensor, x: Tensor) -> int | None:
    """How many channels `value` has that broadcasts with x (N, C, *) along axis 1 alone; None where it does not."""
    at = value.dim() - x.dim() + 1  # axis 1 of x, of whose axes `value` may lack some in front
    if at < 0 or any(size != 1 for k, size in enumerate(value.shape) if k != at):
        return None
    return x.shape[1]
