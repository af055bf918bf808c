"""Validation of what the models and analyses are called with: one line, naming the argument, what came and what is
accepted.

Types, shapes and devices are looked at always. Values are looked at on the CPU alone: on a GPU that would wait for the
device, which a CUDA graph forbids.
"""

from __future__ import annotations

from numbers import Integral

import torch
from torch import Tensor

from .errors import InputError


def integer(name: str, value: object, least: int, most: int | None = None) -> int:
    """A Python int of an integer, NumPy's too, from `least` to `most`, or an InputError."""
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    if whole and least <= value and (most is None or value <= most):
        return int(value)
    span = f"of at least {least}" if most is None else f"{least} to {most}"
    raise InputError(f"{name}: got {_shown(value)}, accepted are {'' if whole and most else 'integers '}{span}")


def seed_of(value: object, name: str = "seed") -> int | Tensor:
    """The seed as noise is drawn by it: an int of 64 bits, or an int64 tensor of one element as it is; for None one
    from torch's generator."""
    if value is None:
        return int(torch.randint(2**62, ()))
    if isinstance(value, Tensor):
        if value.dtype != torch.int64 or value.numel() != 1:
            raise InputError(f"{name}: got {_shown(value)}, accepted is an int64 tensor of one element")
        return value
    return integer(name, value, -(2**63), 2**64 - 1)


def start_of(value: object) -> int | Tensor:
    """The number of a first image: an int, or an int64 tensor of one element as it is."""
    if isinstance(value, Tensor):
        return seed_of(value, "start")
    return integer("start", value, 0, 2**62)


def ids_of(value: object, count: int, device: torch.device) -> Tensor:
    """Positions (count) of images in a whole batch; by default 0, 1, .."""
    if value is None:
        return torch.arange(count, device=device)
    if not isinstance(value, Tensor) or value.dtype != torch.int64 or value.shape != (count,):
        raise InputError(f"sample_ids: got {_shown(value)}, accepted is an int64 tensor of shape ({count},)")
    return value


def check_tensor(
    name: str,
    value: object,
    shape: tuple[int | str, ...],
    like: Tensor | None = None,
    low: float = -float("inf"),
    high: float = float("inf"),
    *,
    values: bool = True,
) -> None:
    """That it is a floating-point tensor of this shape and of finite values from `low` to `high`, or an InputError.

    Args:
        shape: a number, or a letter for any.
        like: a weight, whose dtype and device it must have; under autocast the dtype may be another one that autocast
            computes in. Without: any floating-point dtype.
        values: look at them, where they are on the CPU.
    """
    accepted = f"({', '.join(map(str, shape))}{',' * (len(shape) == 1)})"
    if not isinstance(value, Tensor):
        raise InputError(f"{name}: got {type(value).__name__}, accepted is a tensor {accepted}")
    found = tuple(value.shape)
    if len(found) != len(shape) or any(isinstance(n, int) and m != n for m, n in zip(found, shape, strict=True)):
        raise InputError(f"{name}: got shape {found}, accepted is {accepted}")
    if like is not None and value.device != like.device:
        raise InputError(f"{name}: got device {value.device}, accepted is the model's, {like.device}")
    _check_dtype(name, value, like)
    if values and value.numel() and _may_look(value):
        least, most = (float(end) for end in value.detach().aminmax())
        if not (low <= least and most <= high and least > -float("inf") and most < float("inf")):  # not of NaN either
            got = "NaN" if least != least else f"values from {least:g} to {most:g}"
            inside = f" from {low:g} to {high:g}" if high < float("inf") else ""
            raise InputError(f"{name}: got {got}, accepted are finite values{inside}")


def _check_dtype(name: str, value: Tensor, like: Tensor | None) -> None:
    if like is None:
        wanted = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
    elif torch.is_autocast_enabled(value.device.type):
        wanted = list(dict.fromkeys([like.dtype, torch.float32, torch.bfloat16, torch.float16]))
    else:
        wanted = [like.dtype]
    if value.dtype not in wanted:
        accepted = f"{'is' if len(wanted) == 1 else 'are'} {', '.join(map(_dtype, wanted))}"
        pixels = name == "images" and value.dtype == torch.uint8
        how = "; esvae.data.normalize makes it of uint8 pixels" if pixels else ""
        raise InputError(f"{name}: got dtype {_dtype(value.dtype)}, accepted {accepted}{how}")


def _may_look(value: Tensor) -> bool:
    """Whether the values are at hand: on the CPU, and not while a graph is made of the operations on them."""
    transformed = torch._C._functorch.peek_interpreter_stack() is not None
    return value.device.type == "cpu" and not (torch.compiler.is_compiling() or torch.jit.is_tracing() or transformed)


def _dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _shown(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)} of {_dtype(value.dtype)}"
    return f"{value!r:.80}"
