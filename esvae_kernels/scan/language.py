"""What the kernels of neurons from equations call beside Triton's own: operations as the specification has them."""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra import libdevice

__all__ = [
    "divided",
    "exponent",
    "larger",
    "libdevice",
    "mantissa",
    "power_of_two",
    "signed",
    "smaller",
    "square_root",
]

_SMALLEST = tl.constexpr(2.0**-126)  # below it a number of fp32 is subnormal


@triton.jit
def divided(a, b):
    """a / b, rounded correctly: in fp32 `/` is not."""
    if a.dtype == tl.float32:
        return tl.div_rn(a, b)
    else:
        return a / b


@triton.jit
def square_root(a):
    """Rounded correctly."""
    if a.dtype == tl.float32:
        return tl.sqrt_rn(a)
    else:
        return tl.sqrt(a)


@triton.jit
def smaller(a, b):
    """NaN if either is, b where they are equal."""
    return tl.where((a < b) | (a != a), a, b)


@triton.jit
def larger(a, b):
    """NaN if either is, b where they are equal."""
    return tl.where((b < a) | (a != a), a, b)


@triton.jit
def signed(a):
    """-1, 0 or 1; 0 of NaN."""
    return (a > 0).to(a.dtype) - (a < 0).to(a.dtype)


@triton.jit
def power_of_two(a, n):
    """a * 2^n in fp32, rounded once: the product is exact in fp64."""
    bits = (n.to(tl.int64) + 1023) << 52
    return (a.to(tl.float64) * bits.to(tl.float64, bitcast=True)).to(tl.float32)


@triton.jit
def mantissa(a):
    """m of a = m * 2^e with |m| in [0.5, 1), fp32; of 0, infinity and NaN a itself."""
    size = tl.abs(a)
    scaled = tl.where(size < _SMALLEST, a * 16777216.0, a)
    bits = scaled.to(tl.int32, bitcast=True)
    m = ((bits & -2139095041) | 1056964608).to(tl.float32, bitcast=True)
    return tl.where((size > 0) & (size < float("inf")), m, a)


@triton.jit
def exponent(a):
    """e of it; of 0, infinity and NaN 0."""
    size = tl.abs(a)
    small = size < _SMALLEST
    bits = tl.where(small, size * 16777216.0, size).to(tl.int32, bitcast=True)
    e = (bits >> 23) - 126 - tl.where(small, 24, 0)
    return tl.where((size > 0) & (size < float("inf")), e.to(tl.float32), 0.0)
