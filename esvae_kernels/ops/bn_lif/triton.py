"""What batch norm adds to the LIF, in Triton: mean and variance per channel, and their part of y's gradient.

Both see all of y, time included, as one matrix with the channels along one of its axes (see `tiles.py`).
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ... import tiles
from ...tiles import CHANNEL_PER_COLUMN, Tiles, aligned, per_channel, store_sums, tile

_WARPS = 4
_UNALIGNED = 4  # elements that a thread takes at once where each has an address of its own; else those of 16 bytes
_CORRECTED = 2  # times as many in the correction, which has no loop
_PROGRAMS = 512  # that add up, at least where there is work: all of them run at once on a large GPU
_REGISTERS = 96  # per thread in that stage, at most; ptxas by itself takes less now and then, and spills
_SUMS = tl.constexpr(2)
_AHEAD = tl.constexpr(4)  # loads under way at once
_PARTS, _CHANNELS = tl.constexpr(256), tl.constexpr(4)  # per step of the second stage: whole sectors of memory


@triton.jit
def _fp64(value):
    if value.dtype == tl.float64:
        return value
    else:
        return value.to(tl.float32).to(tl.float64)


@tiles.jit
def _bn_moments(
    y, partial, rows: tl.int64, columns: tl.int64, channels: tl.int64, apart: tl.int64, all_rows: tl.int64,
    stored: tl.int64,
    CHANNELS: tl.constexpr, ALIGNED: tl.constexpr, TILE_ROWS: tl.constexpr, TILE_COLUMNS: tl.constexpr,
):  # fmt: skip
    """The first stage: sums of y - shift and of its square, with each channel's first value as the shift. As exact as
    two passes, in one. Step by step of `rows` rows, in which the tile's channels are the same ones; program_id(1) takes
    some of the steps, and stores its sums in a part of the workspace of `stored` numbers."""
    columns = aligned(columns, ALIGNED)
    at, mask, row, column = tile(rows, columns, ALIGNED, TILE_ROWS, TILE_COLUMNS)
    if CHANNELS == CHANNEL_PER_COLUMN:
        first = tl.load(y + column, mask=column < columns, other=0)[None, :]
    else:
        first = tl.load(y + row % channels * apart)[:, None]
    shift = _fp64(first)
    sum = tl.zeros([TILE_ROWS, TILE_COLUMNS], tl.float64)
    square = tl.zeros([TILE_ROWS, TILE_COLUMNS], tl.float64)
    split, splits = tl.program_id(1).to(tl.int64), tl.num_programs(1)
    for step in range(split, tl.cdiv(all_rows, rows), splits * _AHEAD):
        values = ()
        for ahead in tl.static_range(_AHEAD):
            above = (step + ahead * splits) * rows
            inside = mask & (above + row < all_rows)[:, None]
            value = tl.load(y + above * columns + at, mask=inside, other=first)  # outside it adds nothing
            values = values + (value,)  # noqa: RUF005 - Triton knows no stars
        for ahead in tl.static_range(_AHEAD):
            distance = _fp64(values[ahead]) - shift
            sum += distance
            square += distance * distance
    partial += split * stored
    store_sums(partial, 0, _SUMS, sum, mask, row, column, rows, columns, CHANNELS, TILE_ROWS, TILE_COLUMNS)
    store_sums(partial, 1, _SUMS, square, mask, row, column, rows, columns, CHANNELS, TILE_ROWS, TILE_COLUMNS)


@tiles.jit
def _bn_finish(
    partial, y, mean, variance, parts: tl.int64, kept: tl.int64, channels: tl.int64, apart: tl.int64, count: tl.int64
):  # fmt: skip
    """The second stage, of some channels: partial is (parts, 2, kept), of which each channel has every channels-th."""
    channel = tl.program_id(0).to(tl.int64) * _CHANNELS + tl.arange(0, _CHANNELS)
    exists, repeats = channel < channels, kept // channels
    sum, square = tl.zeros([_PARTS, _CHANNELS], tl.float64), tl.zeros([_PARTS, _CHANNELS], tl.float64)
    for first in range(0, parts * repeats, _PARTS):
        part = first + tl.arange(0, _PARTS)
        at = (part // repeats * _SUMS * kept + part % repeats * channels)[:, None] + channel[None, :]
        mask = (part < parts * repeats)[:, None] & exists[None, :]
        sum += tl.load(partial + at, mask=mask, other=0)
        square += tl.load(partial + at + kept, mask=mask, other=0)
    offset, spread = tl.sum(sum, 0) / count, tl.sum(square, 0) / count
    spread -= offset * offset
    shift = _fp64(tl.load(y + channel * apart, mask=exists, other=0))
    tl.store(mean + channel, shift + offset, mask=exists)
    tl.store(variance + channel, tl.where(spread < 0, 0.0, spread), mask=exists)  # NaN stays


@tiles.jit
def _bn_correct(
    dx, y, factors, dy, rows: tl.int64, columns: tl.int64, channels: tl.int64,
    CHANNELS: tl.constexpr, ALIGNED: tl.constexpr, TILE_ROWS: tl.constexpr, TILE_COLUMNS: tl.constexpr,
):  # fmt: skip
    R: tl.constexpr = factors.dtype.element_ty
    columns = aligned(columns, ALIGNED)
    at, mask, row, column = tile(rows, columns, ALIGNED, TILE_ROWS, TILE_COLUMNS)
    if CHANNELS == CHANNEL_PER_COLUMN:
        channels = columns  # the same number, of known alignment
    factor = per_channel(factors, 0, row, column, channels, CHANNELS)
    offset = per_channel(factors + channels, 0, row, column, channels, CHANNELS)
    d, x = tl.load(dx + at, mask=mask).to(R), tl.load(y + at, mask=mask).to(R)
    tl.store(dy + at, (d + (factor * x + offset)).to(dy.dtype.element_ty), mask=mask)


def _tiles(y: Tensor, channel: int, channels_last: bool, times: int = 1) -> Tiles:
    inner = 1 if channels_last else math.prod(y.shape[channel + 1 :])
    per_thread = times * 16 // y.element_size()
    if (y.shape[channel] if inner == 1 else inner) % tiles.VECTOR.value:
        per_thread = min(per_thread, _UNALIGNED)
    elements = 32 * _WARPS * per_thread
    if y.shape[channel] == 1:  # then any number of columns will do
        inner = math.gcd(y.numel(), elements)
    return tiles.tiles(y.numel(), y.shape[channel], inner, elements)


def _step(all: Tiles) -> Tiles:
    """As many of the rows as one step of the sums takes: each tile of them has its channels at every step."""
    if CHANNEL_PER_COLUMN.value == all.CHANNELS:
        return all._replace(rows=all.TILE_ROWS)
    return all._replace(rows=max(1, all.TILE_ROWS // all.channels) * all.channels)


def statistics(backend: str, y: Tensor, channel: int, channels_last: bool) -> tuple[Tensor, Tensor]:
    """Mean and biased variance (C), fp64, of a y in one of the two layouts."""
    channels = y.shape[channel]
    mean, variance = (y.new_empty(channels, dtype=torch.float64) for _ in range(2))
    if not y.numel():
        return mean.fill_(math.nan), variance.fill_(math.nan)
    geometry = _tiles(y, channel, channels_last)
    step = _step(geometry)
    (programs,) = step.grid
    splits = min(triton.cdiv(geometry.rows, step.rows), triton.cdiv(_PROGRAMS, programs))
    if CHANNEL_PER_COLUMN.value == step.CHANNELS:
        apart, parts, kept = 1, splits, channels
    else:
        apart, parts, kept = step.columns, splits * triton.cdiv(step.columns, step.TILE_COLUMNS), step.rows
    partial = y.new_empty((parts, _SUMS.value, kept), dtype=torch.float64)
    arguments = {"y": y, "partial": partial, "apart": apart, "num_warps": _WARPS}
    of_step = step._asdict() | {"all_rows": geometry.rows, "stored": partial.numel() // splits}
    tiles.launch(_bn_moments, (programs, splits), maxnreg=_REGISTERS, **arguments, **of_step)
    of_sums = {"parts": parts, "kept": kept, "channels": channels, "count": y.numel() // channels}
    tiles.launch(
        _bn_finish, (triton.cdiv(channels, _CHANNELS.value),), **arguments, **of_sums, mean=mean, variance=variance
    )
    return mean, variance


def correct(
    backend: str, dx: Tensor, y: Tensor, factors: Tensor, dy: Tensor, channel: int, channels_last: bool
) -> None:
    """dy = dx + (factors[0] * y + factors[1]), with factors (2, C) in the state's type."""
    if y.numel():
        geometry = _tiles(y, channel, channels_last, _CORRECTED)
        tiles.launch(
            _bn_correct, geometry.grid, dx=dx, y=y, factors=factors, dy=dy, num_warps=_WARPS, **geometry._asdict()
        )
