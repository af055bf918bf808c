"""The LIF in Triton: one kernel forward, one backward. A program takes a tile of neurons through the whole sequence.

Time steps are walked in groups: a group's rows are loaded before its first result is stored, so that several loads are
under way at once. The backward goes through the sequence in spans, from the last to the first: it recomputes a span's
membrane potentials from the last stored potential before it, keeps them in registers, and walks back over them. The
formulas are those of csrc/math/lif.h, and so is the order of their operations.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra import libdevice

from ... import tiles
from ...surrogate.triton import slope, smooth
from .plan import Plan
from .reference import AFFINE, CHUNK, COUNTED, PARAMETERS, READOUTS, Wanted, state_dtype

_WARPS = 4
_THREADS = 32 * _WARPS
_GROUP = 4  # time steps whose loads are under way at once
_AHEAD = 8  # of those that the backward walks forward: loads of 8 bytes in bf16
# A thread of the backward: four programs on a multiprocessor of 65536 registers, three where more is kept, or two.
# Without a limit the assembler may spill to fit a program more.
_FEW_REGISTERS, _REGISTERS, _MANY_REGISTERS = 128, 168, 208
_HARD, _SOFT, _DELAYED, _AT_ONCE = (tl.constexpr(k) for k in (0, 1, 3, 4))  # of reference.RESETS
_RATE, _WEIGHTS = tl.constexpr(1), tl.constexpr(2)  # of reference.READOUTS
_DECAY, _GAIN, _REST, _THRESHOLD, _V_RESET, _SYNAPSE = (tl.constexpr(1 << k) for k in range(6))  # bits of `WANTED`
_CHUNK, _COUNTED = tl.constexpr(CHUNK), tl.constexpr(COUNTED)


# ------------------------------------------------------------------------------------------------------ one time step


class _Kind(NamedTuple):
    """What a kernel is compiled for, beside its tensors' types and the layout: its constant argument KIND."""

    RESET: int
    STRICT: bool
    DETACH: bool
    SURROGATE: int
    SMOOTH: bool
    READOUT: int
    COUNTS_ON: bool  # a rate over more steps than a count in the state's type holds
    CONSTANT: bool
    SYNAPTIC: bool
    SEVERAL: bool
    FLOOR: bool  # there is a v_min
    FIRST: int  # the parameters that come per channel: PARAMETERS[FIRST : FIRST + ROWS]
    ROWS: int
    UNIT_GAIN: bool  # the gain is 1 everywhere: a multiplication less, each way
    WANTED: int = 0  # bits: the parameters whose gradients the backward computes


class _Cells(NamedTuple):
    """A tile's neurons: their parameters, to be broadcast with it, and the surrogate's, which hold for all of them."""

    decay: Any
    gain: Any
    bias: Any
    threshold: Any
    v_reset: Any
    synaptic_decay: Any
    v_min: Any
    shift: Any
    shape: Any
    scale: Any


@triton.jit
def _divided(a, b):
    """a / b, rounded correctly: in fp32 `/` is not."""
    if a.dtype == tl.float32:
        return tl.div_rn(a, b)
    else:
        return a / b


@triton.jit
def _fire(n, m, KIND: tl.constexpr):
    """The spike at membrane potential m, or the number of spikes."""
    if KIND.SMOOTH:
        return smooth(m - (n.threshold + n.shift), KIND.SURROGATE, n.shape, n.scale)
    elif KIND.SEVERAL:
        return tl.where(m > 0, libdevice.trunc(_divided(m, n.threshold)), 0)
    elif KIND.STRICT:
        return (m > n.threshold).to(m.dtype)
    else:
        return (m >= n.threshold).to(m.dtype)


@triton.jit
def _slope(n, m, KIND: tl.constexpr):
    return slope(m - (n.threshold + n.shift), KIND.SURROGATE, n.shape, n.scale)


@triton.jit
def _amplify(n, x, KIND: tl.constexpr):
    return x if KIND.UNIT_GAIN else n.gain * x


@triton.jit
def _filter(n, i, x, KIND: tl.constexpr):
    """c_t and i_t from i_{t-1}."""
    if KIND.SYNAPTIC:
        c = i + x
        return c, n.synaptic_decay * c
    else:
        return x, i


@triton.jit
def _membrane(n, v, c, KIND: tl.constexpr):
    """m_t from v_{t-1}."""
    m = n.decay * v + (_amplify(n, c, KIND) + n.bias)
    if KIND.RESET == _DELAYED or KIND.RESET == _AT_ONCE:
        m = m - n.threshold * _fire(n, v, KIND)
    return m


@triton.jit
def _fired(s, KIND: tl.constexpr):
    """Whether a neuron fired: what the hard reset looks at."""
    return tl.minimum(s, 1) if KIND.SEVERAL else s


@triton.jit
def _reset(n, m, s, v, KIND: tl.constexpr):
    """v_t. v = v_{t-1}, which only the reset at once looks at."""
    if KIND.RESET == _HARD:
        r = _fired(s, KIND)
        after = m * (1 - r) + n.v_reset * r
    elif KIND.RESET == _SOFT:
        after = m - n.threshold * s
    elif KIND.RESET == _AT_ONCE:
        after = m - n.threshold * (s - _fire(n, v, KIND))
    else:
        after = m
    return tl.where(after <= n.v_min, n.v_min, after) if KIND.FLOOR else after


@triton.jit
def _spike_adjoint(n, m, ds, dv, later, KIND: tl.constexpr):
    """dL/ds_t in all: from the output (ds) and through the reset, from dv = dL/dv_t, or for the delayed reset from
    later = dL/d(earlier spike) of the next step."""
    if KIND.DETACH:
        return ds
    elif KIND.RESET == _HARD:
        return ds + dv * (n.v_reset - m)
    elif KIND.RESET == _SOFT or KIND.RESET == _AT_ONCE:
        return ds - dv * n.threshold
    elif KIND.RESET == _DELAYED:
        return ds + later
    else:
        return ds


@triton.jit
def _membrane_adjoint(n, s, ds_in_all, slope, dv, KIND: tl.constexpr):
    """dL/dm_t; dL/dv_{t-1} = decay * dL/dm_t, dL/dc_t = gain * dL/dm_t and what comes from i_t."""
    if KIND.RESET == _HARD:
        return ds_in_all * slope + dv * (1 - _fired(s, KIND))
    else:
        return ds_in_all * slope + dv


# ---------------------------------------------------------------------------------------------- a tile and its memory


class _Place(NamedTuple):
    """Where a tile lies: element `at` of a row of `size`, where `mask`."""

    at: Any
    mask: Any
    row: Any
    column: Any
    size: Any
    steps: Any


@triton.jit
def _place(rows, columns, steps, ALIGNED: tl.constexpr, TILE_ROWS: tl.constexpr, TILE_COLUMNS: tl.constexpr):
    at, mask, row, column = tiles.tile(rows, columns, ALIGNED, TILE_ROWS, TILE_COLUMNS)
    return _Place(at, mask, row, column, rows * tiles.aligned(columns, ALIGNED), steps)


@triton.jit
def _load(tensor, t, here):
    """Row t of a tensor, in its own type; anything where there is none."""
    return tl.load(tensor + t * here.size + here.at, mask=here.mask & (t < here.steps))


@triton.jit
def _store(tensor, t, here, value):
    tl.store(tensor + t * here.size + here.at, value.to(tensor.dtype.element_ty), mask=here.mask)


@triton.jit
def _load_group(tensor, first, here, SAME: tl.constexpr, GROUP: tl.constexpr):
    """Rows first .. first + GROUP - 1 of a tensor that may be missing, or SAME row 0 each time."""
    rows = ()
    if tensor is None:
        rows = (tl.zeros(here.at.shape, tl.float32),) * GROUP  # nobody looks at them
    elif SAME:
        rows = (_load(tensor, 0, here),) * GROUP
    else:
        for k in tl.static_range(GROUP):
            rows += (_load(tensor, first + k, here),)
    return rows


@triton.jit
def _state(tensor, here, R: tl.constexpr):
    """A tensor of one row that may be missing, in the state's type."""
    if tensor is None:
        return tl.zeros(here.at.shape, R)
    else:
        return tl.load(tensor + here.at, mask=here.mask).to(R)


@triton.jit
def _cells(
    parameters, channels, decay, gain, bias, threshold, v_reset, synaptic_decay, v_min, shift, shape, scale, here,
    R: tl.constexpr, CHANNELS: tl.constexpr, KIND: tl.constexpr,
):  # fmt: skip
    """The neurons of a tile. `parameters`: (KIND.ROWS, channels), those that come per channel."""
    numbers, values = (decay, gain, bias, threshold, v_reset, synaptic_decay), ()
    for k in tl.static_range(6):
        value = tl.cast(numbers[k], R)
        if k >= KIND.FIRST and k < KIND.FIRST + KIND.ROWS:
            row = parameters + (k - KIND.FIRST) * channels
            value = tiles.per_channel(row, value, here.row, here.column, channels, CHANNELS)
        values += (value,)
    return _Cells(
        values[0], values[1], values[2], values[3], values[4], values[5], tl.cast(v_min, R), tl.cast(shift, R), shape,
        scale,
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------------------ forward


@tiles.jit
def _lif_forward(
    x, v0, i0, parameters, weights, out, v_last, i_last, membrane, saved,
    rows: tl.int64, columns: tl.int64, channels: tl.int64, steps: tl.int64, stored: tl.int64,
    decay: tl.float64, gain: tl.float64, bias: tl.float64, threshold: tl.float64, v_reset: tl.float64,
    synaptic_decay: tl.float64, v_min: tl.float64, shift: tl.float64, shape: tl.float64, scale: tl.float64,
    CHANNELS: tl.constexpr, ALIGNED: tl.constexpr, TILE_ROWS: tl.constexpr, TILE_COLUMNS: tl.constexpr,
    KIND: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    R: tl.constexpr = v_last.dtype.element_ty
    here = _place(rows, columns, steps, ALIGNED, TILE_ROWS, TILE_COLUMNS)
    n = _cells(
        parameters, channels, decay, gain, bias, threshold, v_reset, synaptic_decay, v_min, shift, shape, scale, here,
        R, CHANNELS, KIND,
    )  # fmt: skip
    v, i, total = _state(v0, here, R), _state(i0, here, R), tl.zeros(here.at.shape, R)
    counted = tl.zeros(here.at.shape, tl.float64) if KIND.COUNTS_ON else total
    for first in range(0, steps, GROUP):
        chunk = first // _CHUNK
        if KIND.COUNTS_ON:  # noqa: SIM102 - known when compiling
            if first == first // _COUNTED * _COUNTED:
                counted, total = counted + total, tl.zeros_like(total)
        if (first == chunk * _CHUNK) & (chunk > 0) & (chunk <= stored):
            _store(saved, chunk - 1, here, v)
            if KIND.SYNAPTIC:
                _store(saved, stored + chunk - 1, here, i)
        xs = _load_group(x, first, here, KIND.CONSTANT, GROUP)
        for k in tl.static_range(GROUP):
            t = first + k
            if t < steps:
                c, i = _filter(n, i, xs[k].to(R), KIND)
                m = _membrane(n, v, c, KIND)
                s = _fire(n, m, KIND)
                v = _reset(n, m, s, v, KIND)
                if membrane is not None:
                    _store(membrane, t, here, m)
                if KIND.READOUT == _WEIGHTS:
                    total += tl.load(weights + t).to(R) * s
                elif KIND.READOUT == _RATE:
                    total += s
                else:
                    _store(out, t, here, s)
    if KIND.READOUT:
        if KIND.COUNTS_ON:
            total = ((counted + total) / steps.to(tl.float64)).to(R)
        elif KIND.READOUT == _RATE:
            total = _divided(total, steps.to(R))
        _store(out, 0, here, total)
    _store(v_last, 0, here, v)
    if KIND.SYNAPTIC:
        _store(i_last, 0, here, i)


# ----------------------------------------------------------------------------------------------------------- backward


@triton.jit
def _walk(n, x, v, i, first, here, KIND: tl.constexpr, AHEAD: tl.constexpr, GROUP: tl.constexpr):
    """The membrane potentials of AHEAD steps from v and i on, the potentials before each, and v and i after them. Rows
    are loaded all at once, and walked in groups, so that a short sequence has few steps to walk that do not exist."""
    xs, ms, vs, zero = _load_group(x, first, here, KIND.CONSTANT, AHEAD), (), (), tl.zeros_like(v)
    for g in tl.static_range(AHEAD // GROUP):
        of_group, befores = (zero,) * GROUP, (zero,) * GROUP
        if first + g * GROUP < here.steps:
            of_group, befores = (), ()
            for k in tl.static_range(GROUP):
                c, i = _filter(n, i, xs[g * GROUP + k].to(v.dtype), KIND)
                m = _membrane(n, v, c, KIND)
                of_group += (m,)
                befores += (v,)
                v = _reset(n, m, _fire(n, m, KIND), v, KIND)
        ms, vs = ms + of_group, vs + befores
    return ms, vs, v, i


@triton.jit
def _after(n, m, KIND: tl.constexpr):
    """v_t from m_t alone, where the reset is not at once."""
    return _reset(n, m, _fire(n, m, KIND), m, KIND)


@triton.jit
def _start(first, saved, row, chunk, here, R: tl.constexpr):
    """v or i before a chunk: `first` before the first one, else of the rows of `saved` from `row` on."""
    if chunk > 0:  # noqa: SIM108 - a branch, where `a if b else c` loads both
        value = _load(saved, row + chunk - 1, here)
    else:
        value = _state(first, here, R)
    return value


class _Adjoints(NamedTuple):
    """What the backward carries from a step to the one before: dL/dv, dL/di, dL/d(earlier spike) of the delayed reset,
    and sums over time. What is not asked for stays zero, and costs nothing.

    Behind a synapse the gradient of the gain, the sum of dm_t c_t, is summed over x, so that no c need be known: c_t is
    the sum of synaptic_decay^(t-k) x_k over k <= t, so x_k counts dm_k and synaptic_decay times what x_{k+1} counts.
    The gradient of synaptic_decay, the sum of dL/di_t c_t, likewise."""

    dv: Any
    di: Any
    later: Any
    of_gain: Any  # what x counts in the gradient of the gain
    of_synapse: Any  # and in that of synaptic_decay
    dx: Any  # of a constant input
    decay: Any
    gain: Any
    bias: Any
    threshold: Any
    v_reset: Any
    synaptic_decay: Any


@triton.jit
def _step_back(n, a, m, v, x, ds, recorded, KIND: tl.constexpr):
    """From the adjoints `a` of step t: the spike, dL/dx_t and the adjoints of the step before.

    v is the potential before the step, ds the gradient of its spike as an output, `recorded` that of a recorded m."""
    s, slope, dv = _fire(n, m, KIND), _slope(n, m, KIND), a.dv
    if KIND.FLOOR:
        dv = tl.where(_reset(n, m, s, v, KIND) <= n.v_min, 0, dv)
    in_all = _spike_adjoint(n, m, ds, dv, a.later, KIND)
    dm = _membrane_adjoint(n, s, in_all, slope, dv, KIND)
    if recorded is not None:
        dm += recorded.to(dm.dtype)
    later, dx, decay, gain, bias, threshold, v_reset = a.later, a.dx, a.decay, a.gain, a.bias, a.threshold, a.v_reset
    di, of_gain, of_synapse, synaptic_decay = a.di, a.of_gain, a.of_synapse, a.synaptic_decay
    if _THRESHOLD & KIND.WANTED:
        threshold -= in_all * slope
        if KIND.RESET == _SOFT:
            threshold -= dv * s
        elif KIND.RESET == _DELAYED:
            threshold -= dm * _fire(n, v, KIND)
        elif KIND.RESET == _AT_ONCE:
            earlier = _fire(n, v, KIND)
            threshold -= dm * earlier + dv * (s - earlier)
    if _V_RESET & KIND.WANTED and KIND.RESET == _HARD:
        v_reset += dv * _fired(s, KIND)
    if _DECAY & KIND.WANTED:
        decay += dm * v
    if _GAIN & KIND.WANTED:
        of_gain = dm + n.synaptic_decay * of_gain if KIND.SYNAPTIC else dm
        gain += of_gain * x
    if _REST & KIND.WANTED:
        bias += dm
    if _SYNAPSE & KIND.WANTED and KIND.SYNAPTIC:
        of_synapse = di + n.synaptic_decay * of_synapse
        synaptic_decay += of_synapse * x
    dc = _amplify(n, dm, KIND)
    if KIND.SYNAPTIC:
        dc += n.synaptic_decay * di
        di = dc
    if KIND.CONSTANT:
        dx += dc
    dv = n.decay * dm
    if KIND.RESET == _DELAYED and not KIND.DETACH:
        later = -n.threshold * dm
        if KIND.FLOOR:  # not with the step before: where v is v_min the earlier spike is one at v_min, not at m
            through = later * _slope(n, v, KIND)
            dv, later, threshold = dv + through, a.later, threshold - through
    return s, dc, _Adjoints(
        dv, di, later, of_gain, of_synapse, dx, decay, gain, bias, threshold, v_reset, synaptic_decay
    )  # fmt: skip


@triton.jit
def _group_back(
    n, a, ms, vs, v, x, x_center, weights, dout, dmembrane, dx, dweights, first, here, KIND: tl.constexpr,
    GROUP: tl.constexpr,
):  # fmt: skip
    """The steps of a group from the last to the first, from their membrane potentials and the potential v before, or
    where the reset is at once from the potentials vs before each."""
    R: tl.constexpr = v.dtype
    douts = _load_group(dout, first, here, KIND.READOUT != 0, GROUP)
    recorded = _load_group(dmembrane, first, here, False, GROUP)
    BY_X: tl.constexpr = (_GAIN | _SYNAPSE) & KIND.WANTED  # sums over x are asked for
    xs = _load_group(x if BY_X else None, first, here, KIND.CONSTANT, GROUP)
    for k in tl.static_range(GROUP - 1, -1, -1):
        t = first + k
        if t < here.steps:
            before = v
            if KIND.RESET == _AT_ONCE:
                before = vs[k]
            elif k > 0:
                before = _after(n, ms[k - 1], KIND)
            dout_t = tl.zeros_like(v) if dout is None else douts[k].to(R)
            ds = dout_t
            if KIND.READOUT == _RATE:
                ds = ds * (1 / here.steps.to(R))
            elif KIND.READOUT == _WEIGHTS:
                ds = ds * tl.load(weights + t).to(R)
            x_t = xs[k].to(R) - x_center if BY_X else None
            recorded_t = recorded[k] if dmembrane is not None else None
            s, dx_t, a = _step_back(n, a, ms[k], before, x_t, ds, recorded_t, KIND)
            if dx is not None and not KIND.CONSTANT:
                _store(dx, t, here, dx_t)
            if dweights is not None:
                part = tl.sum(tl.where(here.mask, dout_t * s, 0).to(tl.float64))
                tl.store(dweights + tl.program_id(0).to(tl.int64) * here.steps + t, part)
    return a


@tiles.jit
def _lif_backward(
    x, v0, i0, parameters, weights, saved, dout, dv_last, di_last, dmembrane, center_of_x, dx, dv0, di0, dparameters,
    dweights,
    rows: tl.int64, columns: tl.int64, channels: tl.int64, steps: tl.int64,
    decay: tl.float64, gain: tl.float64, bias: tl.float64, threshold: tl.float64, v_reset: tl.float64,
    synaptic_decay: tl.float64, v_min: tl.float64, shift: tl.float64, shape: tl.float64, scale: tl.float64,
    CHANNELS: tl.constexpr, ALIGNED: tl.constexpr, TILE_ROWS: tl.constexpr, TILE_COLUMNS: tl.constexpr,
    KIND: tl.constexpr, SPAN: tl.constexpr, AHEAD: tl.constexpr, GROUP: tl.constexpr, BACK: tl.constexpr,
):  # fmt: skip
    R: tl.constexpr = saved.dtype.element_ty
    here = _place(rows, columns, steps, ALIGNED, TILE_ROWS, TILE_COLUMNS)
    n = _cells(
        parameters, channels, decay, gain, bias, threshold, v_reset, synaptic_decay, v_min, shift, shape, scale, here,
        R, CHANNELS, KIND,
    )  # fmt: skip
    zero = tl.zeros(here.at.shape, R)
    x_center = zero
    if center_of_x is not None:
        x_center += tiles.per_channel(center_of_x, 0, here.row, here.column, channels, CHANNELS)
    a = _Adjoints(
        _state(dv_last, here, R), _state(di_last, here, R), zero, zero, zero, zero, zero, zero, zero, zero, zero, zero
    )
    last = steps
    while last > 0:  # written so that LLVM sees no regular stride: it would keep a pointer for every row of a span
        first = (last - 1) // SPAN * SPAN
        last = first
        chunk = first // _CHUNK
        v = _start(v0, saved, 0, chunk, here, R)
        i = _start(i0, saved, (steps - 1) // _CHUNK, chunk, here, R) if KIND.SYNAPTIC else zero
        for t in range(chunk * _CHUNK, first, AHEAD):
            _, _, v, i = _walk(n, x, v, i, t, here, KIND, AHEAD, GROUP)
        start, membranes, befores = v, (), ()
        for g in tl.static_range(SPAN // AHEAD):
            ms, vs = (zero,) * AHEAD, (zero,) * AHEAD
            if first + g * AHEAD < steps:
                ms, vs, v, i = _walk(n, x, v, i, first + g * AHEAD, here, KIND, AHEAD, GROUP)
            membranes, befores = membranes + ms, befores + vs
        for g in tl.static_range(SPAN // BACK - 1, -1, -1):
            if first + g * BACK < steps:
                before = start
                if g > 0 and KIND.RESET != _AT_ONCE:
                    before = _after(n, membranes[g * BACK - 1], KIND)
                a = _group_back(
                    n, a, membranes[g * BACK : g * BACK + BACK], befores[g * BACK : g * BACK + BACK], before, x,
                    x_center, weights, dout, dmembrane, dx, dweights, first + g * BACK, here, KIND, BACK,
                )  # fmt: skip
    dv, gain, threshold, synaptic_decay = a.dv, a.gain, a.threshold, a.synaptic_decay
    if KIND.RESET == _DELAYED and not (KIND.DETACH or KIND.FLOOR):  # the first step's earlier spike is that at v0
        through = a.later * _slope(n, _state(v0, here, R), KIND)
        dv, threshold = dv + through, threshold - through
    if i0 is not None:
        i_first = _state(i0, here, R)
        gain, synaptic_decay = gain + a.of_gain * i_first, synaptic_decay + a.of_synapse * i_first
    if KIND.CONSTANT and dx is not None:
        _store(dx, 0, here, a.dx)
    if dv0 is not None:
        _store(dv0, 0, here, dv)
    if di0 is not None:
        _store(di0, 0, here, a.di)
    if dparameters is not None:
        sums = (a.decay, gain, a.bias, threshold, a.v_reset, synaptic_decay)
        for k in tl.static_range(6):
            if k >= KIND.FIRST and k < KIND.FIRST + KIND.ROWS:
                tiles.store_sums(
                    dparameters, k - KIND.FIRST, KIND.ROWS, sums[k], here.mask, here.row, here.column, rows, columns,
                    CHANNELS, TILE_ROWS, TILE_COLUMNS,
                )  # fmt: skip


# ----------------------------------------------------------------------------------------------------------- launchers


def _common(
    x: Tensor,
    v: Tensor | None,
    i: Tensor | None,
    parameters: Tensor | None,
    weights: Tensor | None,
    plan: Plan,
    per_thread: int,
    wanted: int,
) -> tuple[tiles.Tiles, dict[str, Any]]:
    """How a call is laid over the device, and the arguments that forward and backward share."""
    p, size, channels, inner = plan.p, plan.size(), 0, 1
    if parameters is not None:
        channels = parameters.shape[1]
        per_sample = math.prod(plan.inner[1:])
        inner = size if channels == 1 else 1 if plan.channels_last else max(per_sample // channels, 1)
    rows = 0 if parameters is None else len(parameters)
    first = AFFINE.start if rows == 2 else 0
    kind = _Kind(
        RESET=p.reset,
        STRICT=p.strict,
        DETACH=p.detach_reset,
        SURROGATE=p.surrogate,
        SMOOTH=p.smooth,
        READOUT=p.readout,
        COUNTS_ON=READOUTS[p.readout] == "mean" and p.steps > COUNTED,
        CONSTANT=p.constant,
        SYNAPTIC=p.synaptic,
        SEVERAL=p.several,
        FLOOR=p.v_min > -math.inf,
        FIRST=first,
        ROWS=rows,
        UNIT_GAIN=not rows and p.gain == 1,
        WANTED=wanted << first,
    )
    layout = tiles.tiles(size, channels, inner, _THREADS * per_thread)
    if not layout.ALIGNED:  # one by one: more of them than a vector of the state's are only registers
        per_thread = min(per_thread, 16 // state_dtype(x.dtype).itemsize)
        layout = tiles.tiles(size, channels, inner, _THREADS * per_thread)
    numbers = dict(zip(PARAMETERS, p.numbers(), strict=True))
    numbers |= {"v_min": p.v_min, "shift": p.shift, "shape": p.shape, "scale": p.scale, "steps": p.steps}
    tensors = {"x": x, "v0": v, "i0": i, "parameters": parameters, "weights": weights}
    return layout, tensors | layout._asdict() | numbers | {"KIND": kind, "GROUP": _GROUP}


def _per_thread(x: Tensor, *by_step: Tensor | None) -> int:
    """How many neurons a thread gets: 16 bytes of the widest tensor that is walked step by step."""
    return 16 // max(tensor.element_size() for tensor in (x, *by_step) if tensor is not None)


def lif(
    backend: str,
    plan: Plan,
    x: Tensor,
    v: Tensor | None,
    i: Tensor | None,
    parameters: Tensor | None,
    weights: Tensor | None,
    out: Tensor,
    v_last: Tensor,
    i_last: Tensor | None,
    membrane: Tensor | None,
    saved: Tensor | None,
) -> None:
    """Fills out and v, and where they have elements i, membrane and saved."""
    if not x.numel():
        return
    p = plan.p
    membrane = membrane if p.record else None
    if saved is None:  # the kernel takes a tensor
        saved = v_last.new_empty((0, *v_last.shape))
    per_thread = _per_thread(x, None if p.readout else out, membrane)
    layout, arguments = _common(x, v, i, parameters, weights, plan, per_thread, 0)
    arguments |= {
        "out": out,
        "v_last": v_last,
        "i_last": i_last if p.synaptic else None,
        "membrane": membrane,
        "saved": saved,
        "stored": (p.steps - 1) // CHUNK if len(saved) else 0,
    }
    tiles.launch(_lif_forward, layout.grid, num_warps=_WARPS, **arguments)


def lif_backward(
    backend: str,
    plan: Plan,
    x: Tensor,
    v: Tensor | None,
    i: Tensor | None,
    parameters: Tensor | None,
    weights: Tensor | None,
    saved: Tensor | None,
    dout: Tensor | None,
    dv: Tensor | None,
    di: Tensor | None,
    dmembrane: Tensor | None,
    center_of_x: Tensor | None,
    wanted: Wanted,
    dx: Tensor | None,
    dv0: Tensor | None,
    di0: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Fills dx, dv0 and di0, where they are wanted, and returns dparameters (2 or 6, C) and dweights (T), fp64.

    `center_of_x`: the gradient of the gain is that of gain * (x - center_of_x); without a synapse only.
    """
    p = plan.p
    rows, channels = (len(PARAMETERS), 1) if parameters is None else parameters.shape
    dparameters = x.new_zeros((rows, channels if wanted.parameters else 0), dtype=torch.float64)
    dweights = x.new_zeros(p.steps if wanted.weights else 0, dtype=torch.float64)
    if not x.numel():
        return dparameters, dweights
    state = state_dtype(x.dtype).itemsize
    # At most 16 bytes of potentials: those of 16 steps fit in the registers. With the 8 neurons of 16 bytes in bf16
    # those of 8 do, and half of x is walked twice: 42.2 instructions per element and step of bn_lif in place of 39.5.
    per_thread = min(_per_thread(x, None if p.readout else dout, dmembrane), 16 // state)
    many = rows == len(PARAMETERS) and bool(wanted.parameters)  # five or six sums over time, in as many registers
    if many and state == 8:
        per_thread = 1
    layout, arguments = _common(x, v, i, parameters, weights, plan, per_thread, wanted.parameters)
    parameter_sums = layout.partial_sums(rows, x) if wanted.parameters else None
    weight_sums = x.new_empty((*layout.grid, p.steps), dtype=torch.float64) if wanted.weights else None
    kept = layout.TILE_ROWS * layout.TILE_COLUMNS * state  # bytes for each step of a span: m
    if p.reset == _AT_ONCE.value:
        kept *= 2  # and v before it, which m alone does not give
    arguments |= {
        "saved": x.new_empty(0, dtype=plan.state_dtype) if saved is None else saved,
        "dout": dout,
        "dv_last": dv,
        "di_last": di,
        "dmembrane": dmembrane,
        "center_of_x": center_of_x,
        "dx": dx if wanted.x else None,
        "dv0": dv0 if wanted.v else None,
        "di0": di0 if wanted.i else None,
        "dparameters": parameter_sums,
        "dweights": weight_sums,
        "AHEAD": _AHEAD,
        "SPAN": CHUNK if kept <= 16 * _THREADS else CHUNK // 2,
        "BACK": 2 if wanted.parameters or dmembrane is not None else 4,
    }
    registers = _REGISTERS if wanted.parameters or p.several else _FEW_REGISTERS  # a division takes some as well
    if many or wanted.weights or state == 8:
        registers = _MANY_REGISTERS
    tiles.launch(_lif_backward, layout.grid, num_warps=_WARPS, maxnreg=registers, **arguments)
    if parameter_sums is not None:
        dparameters = layout.finish(parameter_sums)
    if weight_sums is not None:
        dweights = weight_sums.sum(0)
    return dparameters, dweights
