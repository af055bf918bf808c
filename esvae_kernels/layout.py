"""The two memory layouts that the kernels walk: contiguous, and channels-last within each time step.

A time-first tensor (T, N, C, *) is dense either way, and a kernel sees it as T rows of equal size. Channels-last means
that `x.flatten(0, 1)` is what torch calls channels-last, so that it can go straight into a convolution.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def strides(shape: Sequence[int], channels_last: bool, channel: int) -> tuple[int, ...]:
    """Dense strides of `shape`, with axis `channel` innermost if `channels_last`."""
    order = list(range(len(shape)))
    if channels_last:
        order.append(order.pop(channel))
    result, step = [0] * len(shape), 1
    for axis in reversed(order):
        result[axis] = step
        step = step * shape[axis]
    return tuple(result)


def _has(tensor: Tensor, wanted: Sequence[int]) -> bool:
    sizes = zip(tensor.shape, tensor.stride(), wanted, strict=True)
    return all(size == 1 or have == want for size, have, want in sizes)


def is_channels_last(tensor: Tensor, channel: int) -> bool:
    """Whether `tensor` is dense with axis `channel` innermost, and not contiguous as well."""
    if tensor.dim() - channel < 2 or tensor.is_contiguous():
        return False
    return _has(tensor, strides(tensor.shape, True, channel))


def empty(shape: Sequence[int], channels_last: bool, channel: int, like: Tensor, dtype: torch.dtype) -> Tensor:
    if not channels_last:
        return like.new_empty(tuple(shape), dtype=dtype)
    return torch.empty_strided(
        tuple(shape), strides(shape, channels_last, channel), dtype=dtype, device=like.device, requires_grad=False
    )


def as_layout(tensor: Tensor, channels_last: bool, channel: int) -> Tensor:
    """`tensor` itself where it has that layout already, else a copy that does."""
    if not channels_last:
        return tensor.contiguous()
    if _has(tensor, strides(tensor.shape, True, channel)):
        return tensor
    return empty(tensor.shape, True, channel, tensor, tensor.dtype).copy_(tensor)
