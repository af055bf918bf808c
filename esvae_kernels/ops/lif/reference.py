"""The leaky integrate-and-fire neuron: the specification.

For each neuron and t = 0 .. T-1 (paper, eq. 1-3, with decay in the place of 1/tau):

    m_t = decay * v_{t-1} + (gain * x_t + rest)
    s_t = [m_t >= threshold]                                (m_t > threshold if strict)
    v_t = m_t * (1 - s_t) + v_reset * s_t                   reset="hard"
    v_t = m_t - threshold * s_t                             reset="soft"
    v_t = m_t                                               reset="none"

and with r_t = [v_{t-1} >= threshold], for the subtraction one step later, of which the leak takes nothing, and for
that in both steps, the later one corrected:

    m_t = decay * v_{t-1} + (gain * x_t + rest) - threshold * r_t
    v_t = m_t                                               reset="delayed"
    v_t = m_t - threshold * (s_t - r_t)                     reset="at_once"

With `synaptic` the current is filtered first: c_t takes the place of x_t, where

    c_t = i_{t-1} + x_t
    i_t = synapse * c_t

With `several` a neuron fires as often as its potential holds the threshold, and a hard reset looks at whether it did:

    s_t = trunc(m_t / threshold) where m_t > 0, else 0;     v_t = m_t where s_t = 0, else v_reset     reset="hard"

At last v_t is v_min where it is not above. All in this order of operations, each rounded by itself (no fused
multiply-add), in fp32 (fp64 for fp64 inputs). decay, gain, rest, threshold, v_reset and synapse are numbers, or one per
channel (axis 1 of v).

Derivatives: ds_t/dm_t is the surrogate's derivative at m_t - (threshold + center), ds_t/dthreshold its negative; with
detach_reset, and for "at_once" in r_t, the spike in the equations of v_t and m_t counts as a constant. Where v_t is
v_min, nothing flows. Readout: sum_t c_t s_t with c_t = 1/T ("rate": counted first, each 2^24 steps anew with the counts
added in fp64, and divided once) or given weights, summed in the order of t.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ...surrogate.reference import Surrogate, from_arguments, spike

RESETS = ("hard", "soft", "none", "delayed", "at_once")  # by their number in csrc/math/lif.h
READOUTS = (None, "rate", "weights")  # by their number in csrc/calls.h
PARAMETERS = ("decay", "gain", "rest", "threshold", "v_reset", "synapse")  # in this order everywhere
AFFINE = slice(1, 3)  # gain and rest
CHUNK = 16  # kChunk in csrc/calls.h: a backward starts again from the potential stored every 16th step
COUNTED = 1 << 24  # kCounted in csrc/calls.h: the steps whose spikes a count in fp32 holds exactly


class Neuron(NamedTuple):
    """The options of one call, in the order of the raw ops' arguments.

    The six numbers hold for all neurons; `parameters` (6, C), or (2, C) for gain and rest alone, take their place per
    channel. `synapse` counts with `synaptic` only.
    """

    steps: int
    constant: bool
    decay: float
    gain: float
    rest: float
    threshold: float
    v_reset: float
    synapse: float
    synaptic: bool
    v_min: float  # -inf: none
    reset: int
    strict: bool
    several: bool
    detach_reset: bool
    surrogate: int
    shape: float
    scale: float
    center: float
    smooth: bool
    readout: int
    record: bool
    dtype: torch.dtype

    def surrogate_object(self) -> Surrogate:
        return from_arguments(self.surrogate, self.shape, self.scale, self.center, self.smooth)

    def numbers(self) -> tuple[float, ...]:
        return self.decay, self.gain, self.rest, self.threshold, self.v_reset, self.synapse


class Wanted(NamedTuple):
    """What a backward has to compute: gradients of x, v, i and readout weights, and a bit per row of the parameters."""

    x: bool
    v: bool
    i: bool
    weights: bool
    parameters: int


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type of v and of all arithmetic: fp64 for fp64 inputs, else fp32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _values(parameters: Tensor | None, p: Neuron, like: Tensor) -> list[Tensor]:
    """The six parameters, each to be broadcast with `like` (N, C, *)."""
    values = [torch.tensor(number, dtype=like.dtype, device=like.device) for number in p.numbers()]
    if parameters is not None:
        rows = parameters.unbind(0)
        if parameters.shape[1] != 1:
            rows = tuple(row.view(-1, *(1,) * (like.dim() - 2)) for row in rows)
        values[AFFINE if len(rows) == 2 else slice(None)] = rows
    return values


def lif(
    x: Tensor,
    v: Tensor | None,
    i: Tensor | None,
    parameters: Tensor | None,
    weights: Tensor | None,
    p: Neuron,
    states: list[tuple[Tensor, Tensor | None]] | None = None,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """x (T, N, *), or (N, *) if constant; v and i (N, *). Returns spikes (T, N, *) or the readout (N, *), the last v,
    the last i if there is a synapse, and the membrane potentials m (T, N, *) if they are recorded. To `states`, if it
    is given, v and i are added behind each step."""
    current = x.to(state_dtype(x.dtype))
    rows = [current] * p.steps if p.constant else current.unbind(0)
    v = torch.zeros_like(rows[0]) if v is None else v
    i = torch.zeros_like(rows[0]) if i is None and p.synaptic else i
    decay, gain, rest, threshold, v_reset, synapse = _values(parameters, p, v)
    surrogate, reset = p.surrogate_object(), RESETS[p.reset]

    def fire(m: Tensor) -> Tensor:
        if p.several:
            # By a tensor, rounded once: on a GPU torch divides by a number through its reciprocal.
            fired = torch.where(m > 0, torch.trunc(m / threshold), torch.zeros_like(m))
        else:
            fired = m > threshold if p.strict else m >= threshold
        return spike(m - (threshold + surrogate.center), fired, surrogate)

    spikes, membrane = [], []
    for x_t in rows:
        if p.synaptic:
            c = i + x_t
            i = synapse * c
        else:
            c = x_t
        m = decay * v + (gain * c + rest)
        if reset in ("delayed", "at_once"):
            earlier = fire(v)
            earlier = earlier.detach() if p.detach_reset or reset == "at_once" else earlier
            m = m - threshold * earlier
        s = fire(m)
        r = s.detach() if p.detach_reset else s
        if reset == "hard":
            r = r.clamp(max=1) if p.several else r
            v = m * (1 - r) + v_reset * r
        elif reset == "soft":
            v = m - threshold * r
        elif reset == "at_once":
            v = m - threshold * (r - earlier)
        else:
            v = m
        if p.v_min > -math.inf:
            v = torch.where(v <= p.v_min, torch.full_like(v, p.v_min), v)
        spikes.append(s)
        membrane.append(m)
        if states is not None:
            states.append((v, i))
    return _read_out(spikes, weights, p).to(p.dtype), v, i, torch.stack(membrane) if p.record else None


def _read_out(spikes: list[Tensor], weights: Tensor | None, p: Neuron) -> Tensor:
    if READOUTS[p.readout] is None:
        return torch.stack(spikes)
    if READOUTS[p.readout] == "rate":
        return _rate(spikes)
    total = torch.zeros_like(spikes[0])
    for s, weight in zip(spikes, weights, strict=True):
        total = total + weight.to(s.dtype) * s
    return total


def _rate(spikes: list[Tensor]) -> Tensor:
    counts = []
    for first in range(0, len(spikes), COUNTED):
        count = torch.zeros_like(spikes[0])
        for s in spikes[first : first + COUNTED]:
            count = count + s
        counts.append(count)
    total = counts[0] if len(counts) == 1 else torch.stack(counts).double().sum(0)
    # By a tensor: on a GPU torch divides by a number through its reciprocal, which rounds twice.
    return (total / total.new_full((), len(spikes))).to(spikes[0].dtype)
