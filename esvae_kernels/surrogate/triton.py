"""The surrogate gradients in Triton, by the ids of `reference.py`: the formulas of csrc/math/surrogate.h."""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra import libdevice

_HALF_PI = tl.constexpr(1.5707963267948966)
_OVER_PI = tl.constexpr(0.3183098861837907)
_SQRT_HALF = tl.constexpr(0.7071067811865476)
_OVER_SQRT_2_PI = tl.constexpr(0.3989422804014327)


@triton.jit
def _over(a, b):
    """a / b for b >= 1, in two instructions in fp32, where `/` takes nine to serve every b."""
    if b.dtype == tl.float32:
        return libdevice.fast_dividef(a, b)
    else:
        return a / b


@triton.jit
def slope(u, ID: tl.constexpr, shape, scale):
    """The derivative in u = m - (threshold + center), with the numbers shape and scale. Returns u's shape and dtype."""
    tl.static_assert(ID >= 0 and ID <= 7, "unknown surrogate")
    shape, scale = tl.cast(shape, u.dtype), tl.cast(scale, u.dtype)
    if ID == 0:
        return tl.where(tl.abs(u) < shape * 0.5, scale / shape, 0.0)
    elif ID == 1:
        return tl.zeros_like(u) + scale
    elif ID == 2:
        s = _over(tl.cast(1, u.dtype), 1 + tl.exp(-shape * u))
        return shape * scale * s * (1 - s)
    elif ID == 3:
        w = shape * _HALF_PI * u
        return _over(shape * scale * 0.5, 1 + w * w)
    elif ID == 4:
        y = scale / shape - tl.abs(u) * (scale / shape / shape)
        return tl.where(y < 0, 0.0, y)  # NaN stays
    elif ID == 5:
        d = 1 + shape * tl.abs(u)
        return _over(scale, d * d)
    elif ID == 6:
        w = u * (1 / shape * _SQRT_HALF)
        return scale / shape * _OVER_SQRT_2_PI * tl.exp(-w * w)
    else:
        return shape * scale * 0.5 * tl.exp(-shape * tl.abs(u))


@triton.jit
def smooth(u, ID: tl.constexpr, shape, scale):
    """The function whose derivative `slope` is."""
    tl.static_assert(ID >= 0 and ID <= 7, "unknown surrogate")
    shape, scale = tl.cast(shape, u.dtype), tl.cast(scale, u.dtype)
    half = scale * 0.5
    if ID == 0:
        inside = u * (scale / shape) + half
        return tl.where(tl.abs(u) < shape * 0.5, inside, tl.where(u > 0, scale, 0.0))
    elif ID == 1:
        return scale * u
    elif ID == 2:
        return _over(scale, 1 + tl.exp(-shape * u))
    elif ID == 3:
        return scale * _OVER_PI * libdevice.atan(shape * _HALF_PI * u) + half
    elif ID == 4:
        w = u / shape
        w = tl.where(w < -1, -1.0, tl.where(w > 1, 1.0, w))
        return half + scale * (w - w * tl.abs(w) * 0.5)
    elif ID == 5:
        tail = _over(tl.cast(1, u.dtype), 1 + shape * tl.abs(u))
        return scale / shape * tl.where(u > 0, 2 - tail, tail)
    elif ID == 6:
        return half + half * tl.erf(u * (1 / shape * _SQRT_HALF))
    else:
        tail = tl.exp(-shape * tl.abs(u))
        return half * tl.where(u > 0, 2 - tail, tail)
