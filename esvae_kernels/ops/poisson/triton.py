"""The Poisson sampler in Triton: uniforms are drawn in registers, compared and forgotten; the backward draws them anew.

Seen as a matrix, a row of neurons has a row per sample and a column per element within it.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ... import tiles
from ...surrogate import Surrogate
from ...surrogate.triton import slope, smooth
from ...tiles import Tiles, aligned, tile

_LANES = tl.constexpr(4)  # time steps that one counter serves
_WARPS = 4
# Per thread in the backward, at most, by the rates' dtype; ptxas by itself takes less now and then, and spills.
_REGISTERS = {torch.float64: 168, torch.float32: 128, torch.bfloat16: 128, torch.float16: 128}
_FP32_REGISTERS = 80  # where all is fp32, accessed 16 bytes at a time
_PER_THREAD = 8  # elements in the forward: more cost registers, fewer do what is per thread more often
_UNALIGNED = 4  # elements per thread where each has an address of its own
_PROGRAMS = 4096  # in the forward, below which time is shared among programs too: several waves on any GPU
_SHARE = 4  # counters, at least, that a program then draws for each element: they share what does not depend on time


@triton.jit
def _product(constant: tl.constexpr, word):
    """High and low half, in one instruction; `tl.philox` takes two, and slower ones."""
    product = word.to(tl.uint64) * constant
    return (product >> 32).to(tl.uint32), product.to(tl.uint32)


@triton.jit
def _philox(key, c0, c1, c2, c3):
    """Four words per counter, in the shape that the counters broadcast to."""
    k0, k1 = key.to(tl.uint32), (key >> 32).to(tl.uint32)
    for _ in tl.static_range(10):
        high0, low0 = _product(0xD2511F53, c0)
        high1, low1 = _product(0xCD9E8D57, c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = k0 + 0x9E3779B9, k1 + 0xBB67AE85
    return c0, c1, c2, c3


@triton.jit
def _key(seed, stream):
    """The stream's key: the seed itself in stream 0, else as SplitMix64 mixes it."""
    first = tl.load(seed).to(tl.uint64)
    z = first + stream.to(tl.uint64) * 0x9E3779B97F4A7C15
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB
    return tl.where(stream == 0, first, z ^ (z >> 31))


@triton.jit
def _uniform(word, R: tl.constexpr):
    """In [0, 1): the word's upper 24 bits, exact in fp32."""
    return (word >> 8).to(tl.int32).to(R) * 5.9604644775390625e-08


@triton.jit
def _load(rate, ids, at, mask, row, rows, column):
    """The tile's rates, and what of its counters does not depend on time: element and both halves of the id."""
    R: tl.constexpr = tl.float64 if rate.dtype.element_ty == tl.float64 else tl.float32
    r = tl.load(rate + at, mask=mask, other=0).to(R)
    id = tl.load(ids + row, mask=row < rows, other=0)[:, None]
    # A NaN never fires, whatever is drawn for it. But so the counters take the layout among threads that the rates are
    # loaded in, and what is drawn need not change it, through shared memory, before every store.
    element = tl.where(r == r, column.to(tl.uint32)[None, :], 0)
    return r, element, id.to(tl.uint32), (id >> 32).to(tl.uint32)


@tiles.jit
def _poisson_forward(
    rate, ids, seed, stream: tl.int64, out, rows: tl.int64, columns: tl.int64, steps: tl.int64, share: tl.int64,
    shape: tl.float64, scale: tl.float64, shift: tl.float64,
    ALIGNED: tl.constexpr, TILE_ROWS: tl.constexpr, TILE_COLUMNS: tl.constexpr,
    SURROGATE: tl.constexpr, SMOOTH: tl.constexpr,
):  # fmt: skip
    """One tile of neurons, for `share` counters of each."""
    S: tl.constexpr = out.dtype.element_ty
    columns = aligned(columns, ALIGNED)
    at, mask, row, column = tile(rows, columns, ALIGNED, TILE_ROWS, TILE_COLUMNS)
    r, element, low, high = _load(rate, ids, at, mask, row, rows, column)
    # u = k 2^-24 is below r where k is below r 2^24, rounded up: where the word, 2^8 k and some bits more, is at most:
    limit = tl.ceil(tl.where(r < 1, tl.where(r > 0, r, 1.0), 1.0) * 16777216.0).to(tl.int32).to(tl.uint32) * 256 - 1
    spike = (r > 0).to(tl.float32).to(S)  # 0 where it never fires
    key, first = _key(seed, stream), tl.program_id(1) * share
    for group in range(first, min(first + share, tl.cdiv(steps, _LANES))):
        words = _philox(key, element, tl.cast(group, tl.uint32), low, high)
        for lane in tl.static_range(_LANES):
            t = group * _LANES + lane
            if SMOOTH:
                u = _uniform(words[lane], r.dtype)
                s = smooth(r - u - tl.cast(shift, r.dtype), SURROGATE, shape, scale).to(S)
            else:
                s = tl.where(words[lane] <= limit, spike, 0)
            tl.store(out + t * rows * columns + at, s, mask=mask & (t < steps))


@tiles.jit
def _poisson_backward(
    rate, ids, seed, stream: tl.int64, dspikes, drate, rows: tl.int64, columns: tl.int64, steps: tl.int64,
    shape: tl.float64, scale: tl.float64, shift: tl.float64,
    ALIGNED: tl.constexpr, TILE_ROWS: tl.constexpr, TILE_COLUMNS: tl.constexpr, SURROGATE: tl.constexpr,
):  # fmt: skip
    """One tile of neurons. Where the slope is the same everywhere, the compiler drops the draws."""
    columns = aligned(columns, ALIGNED)
    at, mask, row, column = tile(rows, columns, ALIGNED, TILE_ROWS, TILE_COLUMNS)
    r, element, low, high = _load(rate, ids, at, mask, row, rows, column)
    key, total = _key(seed, stream), tl.zeros_like(r)
    for group in range(tl.cdiv(steps, _LANES)):
        ds = ()
        for lane in tl.static_range(_LANES):
            t = group * _LANES + lane
            row_t = tl.load(dspikes + t * rows * columns + at, mask=mask & (t < steps), other=0)
            ds = ds + (row_t.to(r.dtype),)  # noqa: RUF005 - Triton knows no stars
        words = _philox(key, element, tl.cast(group, tl.uint32), low, high)
        for lane in tl.static_range(_LANES):
            u = _uniform(words[lane], r.dtype)
            total += ds[lane] * slope(r - u - tl.cast(shift, r.dtype), SURROGATE, shape, scale)
    tl.store(drate + at, total.to(drate.dtype.element_ty), mask=mask)


def _tiles(rate: Tensor, per_thread: int) -> Tiles:
    """Columns of a tile beyond the last one are drawn for as well: not too many, in tiles that stay wide enough."""
    columns = rate.numel() // len(rate)
    elements = 32 * _WARPS * (min(per_thread, _UNALIGNED) if columns % tiles.VECTOR.value else per_thread)
    geometry = tiles.tiles(rate.numel(), 1, columns, elements)
    width = geometry.TILE_COLUMNS
    while width > 32 and -columns % width > columns // 8:
        width //= 2
    return geometry._replace(TILE_COLUMNS=width, TILE_ROWS=elements // width)


def _arguments(
    geometry: Tiles, rate: Tensor, ids: Tensor, seed: Tensor, stream: int, spikes: Tensor, surrogate: Surrogate
) -> dict[str, Any]:
    return {
        "rate": rate,
        "ids": ids,
        "seed": seed,
        "stream": stream,
        "rows": geometry.rows,
        "columns": geometry.columns,
        "steps": len(spikes),
        "shape": float(surrogate.parameter),
        "scale": float(surrogate.scale),
        "shift": float(surrogate.shift),
        "ALIGNED": geometry.ALIGNED,
        "TILE_ROWS": geometry.TILE_ROWS,
        "TILE_COLUMNS": geometry.TILE_COLUMNS,
        "SURROGATE": surrogate.id,
    }


def poisson(
    backend: str, rate: Tensor, ids: Tensor, seed: Tensor, stream: int, out: Tensor, surrogate: Surrogate
) -> None:
    """Spikes (T, N, *) into `out`, of `rate` (N, *), which is not empty."""
    geometry = _tiles(rate, _PER_THREAD)
    groups, programs = triton.cdiv(len(out), _LANES.value), geometry.grid[0]
    shares = triton.cdiv(groups, max(_SHARE, triton.cdiv(groups * programs, _PROGRAMS)))
    arguments = _arguments(geometry, rate, ids, seed, stream, out, surrogate)
    arguments |= {"out": out, "share": triton.cdiv(groups, shares), "SMOOTH": not surrogate.spiking}
    tiles.launch(_poisson_forward, (programs, shares), num_warps=_WARPS, **arguments)


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
    """The gradient of `rate` into `drate`, from that of the spikes (T, N, *)."""
    geometry = _tiles(rate, min(16 // dspikes.element_size(), 32 // rate.element_size()))
    only_fp32 = geometry.ALIGNED and rate.dtype == dspikes.dtype == torch.float32
    arguments = _arguments(geometry, rate, ids, seed, stream, dspikes, surrogate)
    arguments |= {
        "dspikes": dspikes,
        "drate": drate,
        "maxnreg": _FP32_REGISTERS if only_fp32 else _REGISTERS[rate.dtype],
    }
    tiles.launch(_poisson_backward, geometry.grid, num_warps=_WARPS, **arguments)
