"""How the Triton kernels are laid over a tensor and launched: pure functions of its shape, without autotuning.

A kernel sees one row of neurons (one time step) as a matrix whose columns lie next to each other in memory; each
program takes one tile of it through time. Channels, where there are any, are an axis of that matrix: of a contiguous
row (N, C, *) row r of the matrix is of channel r % C, and has a column per place in *; of a channels-last row the
columns are the channels. So a program's parameters are a vector along one axis, and its sums over neurons of equal
channels are sums along the other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

NO_CHANNELS, CHANNEL_PER_ROW, CHANNEL_PER_COLUMN = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
VECTOR = tl.constexpr(8)  # columns that come in multiples of it can be accessed 16 bytes at a time, in any dtype
_WIDEST = 128  # columns of a tile with sums along the rows: long enough for whole cache lines, and several rows


class Tiles(NamedTuple):
    """A row of neurons as a matrix, in tiles of powers of two; field names in capitals are known when compiling."""

    rows: int
    columns: int
    channels: int
    CHANNELS: int  # NO_CHANNELS, CHANNEL_PER_ROW or CHANNEL_PER_COLUMN
    ALIGNED: bool
    TILE_ROWS: int
    TILE_COLUMNS: int

    @property
    def grid(self) -> tuple[int]:
        return (triton.cdiv(self.rows, self.TILE_ROWS) * triton.cdiv(self.columns, self.TILE_COLUMNS),)

    def partial_sums(self, sums: int, like: Tensor) -> Tensor:
        """The workspace of `store_sums` for so many sums per channel, fp64: (parts, sums, rows or columns)."""
        parts, kept = (self.columns, self.TILE_COLUMNS), self.rows
        if CHANNEL_PER_COLUMN.value == self.CHANNELS:
            parts, kept = (self.rows, self.TILE_ROWS), self.columns
        return like.new_empty((triton.cdiv(*parts), sums, kept), dtype=torch.float64)

    def finish(self, partial: Tensor) -> Tensor:
        """The second stage: (sums, channels) from what the programs left in `partial_sums`."""
        total = partial.sum(0)
        return total.view(len(total), -1, self.channels).sum(1)


def tiles(size: int, channels: int, inner: int, elements: int) -> Tiles:
    """For rows of `size` neurons, neuron i of channel (i / inner) % channels, or for `channels` = 0 without any;
    `elements` per program, a power of two."""
    if not channels:
        rows, columns, kind = 1, size, NO_CHANNELS
    elif inner == 1 and channels > 1:
        rows, columns, kind = size // channels, channels, CHANNEL_PER_COLUMN
    else:
        rows, columns, kind = size // inner, inner, CHANNEL_PER_ROW
    tile_columns = elements  # without channels the same tile for every size: it is compiled once
    if channels:
        widest = min(elements, _WIDEST) if kind is CHANNEL_PER_COLUMN else elements
        tile_columns = min(triton.next_power_of_2(max(columns, 1)), widest)
    aligned = columns % VECTOR.value == 0
    return Tiles(rows, columns, channels, kind.value, aligned, elements // tile_columns, tile_columns)


def launch(kernel: Any, grid: tuple[int, ...], *, num_warps: int, maxnreg: int | None = None, **arguments: Any) -> None:
    """Runs a kernel on the device of its tensors, on torch's current stream. Without fused multiply-adds: spikes are
    the same, bit for bit, on every backend. `num_warps`: of 32 threads; `maxnreg`: registers a thread, on NVIDIA."""
    if grid[0]:
        options = {"num_warps": num_warps, "enable_fp_fusion": False}
        if torch.version.hip:
            options["num_warps"] = max(1, num_warps // 2)  # of 64 threads
        elif maxnreg is not None:
            options["maxnreg"] = maxnreg
        tensor = next(a for a in arguments.values() if isinstance(a, Tensor))
        with torch.cuda.device_of(tensor):
            kernel[grid](**arguments, **options)


def jit(function: Callable) -> Any:
    """`triton.jit` that compiles nothing anew for another size: what is annotated as a number is never specialised."""
    numbers = [name for name, kind in function.__annotations__.items() if kind in ("tl.int64", "tl.float64")]
    return triton.jit(function, do_not_specialize=numbers)


@triton.jit
def aligned(columns, ALIGNED: tl.constexpr):
    """The number of columns itself, so written that the compiler sees what it is a multiple of."""
    if ALIGNED:
        return columns // VECTOR * VECTOR
    else:
        return columns


@triton.jit
def tile(rows, columns, ALIGNED: tl.constexpr, TILE_ROWS: tl.constexpr, TILE_COLUMNS: tl.constexpr):
    """This program's tile: offsets in the row (int64) and the mask of those that exist, both (rows, columns), and the
    indices along either axis."""
    columns = aligned(columns, ALIGNED)
    across = tl.cdiv(columns, TILE_COLUMNS)
    program = tl.program_id(0).to(tl.int64)
    row = program // across * TILE_ROWS + tl.arange(0, TILE_ROWS)
    column = program % across * TILE_COLUMNS + tl.arange(0, TILE_COLUMNS)
    mask = (row < rows)[:, None] & (column < columns)[None, :]
    return row[:, None] * columns + column[None, :], mask, row, column


@triton.jit
def per_channel(values, number, row, column, channels, CHANNELS: tl.constexpr):
    """A parameter of the tile's neurons: `values` (channels) along the axis that the channels are on, or a number."""
    if CHANNELS == CHANNEL_PER_ROW:
        return tl.load(values + row % channels)[:, None]
    elif CHANNELS == CHANNEL_PER_COLUMN:
        return tl.load(values + column, mask=column < channels, other=0)[None, :]
    else:
        return number


@triton.jit
def store_sums(
    partial, sum, SUMS: tl.constexpr, value, mask, row, column, rows, columns, CHANNELS: tl.constexpr,
    TILE_ROWS: tl.constexpr, TILE_COLUMNS: tl.constexpr
):  # fmt: skip
    """The first stage of a sum over neurons of equal channels: the program's own part of sum number `sum`. No two
    programs write to the same place, so the result is the same in every run."""
    value = tl.where(mask, value, 0).to(tl.float64)
    program, across = tl.program_id(0).to(tl.int64), tl.cdiv(columns, TILE_COLUMNS)
    if CHANNELS == CHANNEL_PER_COLUMN:
        at = (program // across * SUMS + sum) * columns + column
        tl.store(partial + at, tl.sum(value, 0), mask=column < columns)
    else:
        at = (program % across * SUMS + sum) * rows + row
        tl.store(partial + at, tl.sum(value, 1), mask=row < rows)
