"""The leaky integrate-and-fire neuron: the specification.

For each neuron and t = 0 .. T-1 (paper, eq. 1-3, with decay in the place of 1/tau):

    m_t = decay * v_{t-1} + (gain * x_t + bias)
    s_t = [m_t >= threshold]                                (m_t > threshold if strict)
    v_t = m_t * (1 - s_t) + v_reset * s_t                   reset="hard"
    v_t = m_t - threshold * s_t                             reset="soft"
    v_t = m_t                                               reset="none"

and with r_t = [v_{t-1} >= threshold], for the subtraction one step later, of which the leak takes nothing, and for
that in both steps, the later one corrected:

    m_t = decay * v_{t-1} + (gain * x_t + bias) - threshold * r_t
    v_t = m_t                                               reset="delayed"
    v_t = m_t - threshold * (s_t - r_t)                     reset="at_once"

With `synaptic` the current is filtered first: c_t takes the place of x_t, where

    c_t = i_{t-1} + x_t
    i_t = synaptic_decay * c_t

With `several` a neuron fires as often as its potential holds the threshold, and a hard reset looks at whether it did:

    s_t = trunc(m_t / threshold) where m_t > 0, else 0;     v_t = m_t where s_t = 0, else v_reset     reset="hard"

At last v_t is v_min where it is not above. All in this order of operations, each rounded by itself (no fused
multiply-add), in fp32 (fp64 for fp64 inputs). decay, gain, bias, threshold, v_reset and synaptic_decay are numbers, one
per channel (axis 1 of v), or one per neuron (v's axes but the first).

Derivatives: ds_t/dm_t is the surrogate's derivative at m_t - (threshold + shift), ds_t/dthreshold its negative; with
detach_reset, and for "at_once" in r_t, the spike in the equations of v_t and m_t counts as a constant. Where v_t is
v_min, nothing flows. Readout: sum_t c_t s_t with c_t = 1/T ("mean": counted first, each 2^24 steps anew with the counts
added in fp64, and divided once) or given weights, summed in the order of t.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...native import OUT_DTYPES
from ...surrogate.reference import SURROGATES, ATan, Surrogate, from_arguments, spike

RESETS = ("hard", "soft", "none", "delayed", "at_once")  # by their number in csrc/math/lif.h
READOUTS = (None, "mean", "weights")  # by their number in csrc/calls.h
PARAMETERS = ("decay", "gain", "bias", "threshold", "v_reset", "synaptic_decay")  # in this order everywhere
AFFINE = slice(1, 3)  # gain and bias
CHUNK = 16  # kChunk in csrc/calls.h: a backward starts again from the potential stored every 16th step
COUNTED = 1 << 24  # kCounted in csrc/calls.h: the steps whose spikes a count in fp32 holds exactly


class Neuron(NamedTuple):
    """The options of one call. A raw op takes them as `neuron.text()`, beside the number of steps.

    The six numbers hold for all neurons; `parameters` (6, C), or (2, C) for gain and bias alone, take their place per
    channel. `synaptic_decay` counts with `synaptic` only.
    """

    decay: float
    threshold: float
    gain: float = 1.0
    bias: float = 0.0
    v_reset: float = 0.0
    synaptic_decay: float = 0.0
    synaptic: bool = False
    v_min: float = -math.inf  # none
    reset: int = 0
    strict: bool = False
    several: bool = False
    detach_reset: bool = False
    surrogate: int = ATan.id
    shape: float = 2.0
    scale: float = 1.0
    shift: float = 0.0
    smooth: bool = False
    readout: int = 0
    record: bool = False
    constant: bool = False
    dtype: torch.dtype = torch.float32
    steps: int = 0

    def surrogate_object(self) -> Surrogate:
        return from_arguments(self.surrogate, self.shape, self.scale, self.shift, not self.smooth)

    def numbers(self) -> tuple[float, ...]:
        return self.decay, self.gain, self.bias, self.threshold, self.v_reset, self.synaptic_decay

    def text(self) -> str:
        """What is not a default, without the steps: "decay=0.5 threshold=1.0 reset=1"."""
        pairs = zip(self._fields[:-1], self, strict=False)
        words = [f"{k}={v}" for k, v in pairs]
        return " ".join([word for word in words if word not in _USUAL])

    @classmethod
    def from_text(cls, text: str) -> Neuron:
        """`text` undone.

        Raises:
            ValueError: it is not the text of a neuron that there is; a raw op can be called by anyone.
        """
        try:
            words = dict(word.split("=") for word in text.split(" "))
            values: dict[str, Any] = {k: _READ[type(_DEFAULTS.get(k, 0.0))](value) for k, value in words.items()}
            p = cls(**values)
        except (AttributeError, KeyError, TypeError, ValueError):
            raise ValueError(f"neuron: got {text[:200]!r}, accepted is what Neuron.text() returns") from None
        for name, names in (("reset", RESETS), ("surrogate", SURROGATES), ("readout", READOUTS)):
            if not 0 <= getattr(p, name) < len(names):
                raise ValueError(f"neuron: got {name}={getattr(p, name)}, accepted are 0 to {len(names) - 1}")
        return p


_DEFAULTS = Neuron._field_defaults
_USUAL = frozenset(f"{k}={v}" for k, v in _DEFAULTS.items())
_READ: dict[type, Callable[[str], object]] = {float: float, int: int, bool: "True".__eq__}
_READ[torch.dtype] = {str(dtype): dtype for dtype in OUT_DTYPES}.__getitem__


@lru_cache(maxsize=4096)
def decoded(text: str, steps: int) -> Neuron:
    """The neuron of a raw op's arguments."""
    return Neuron.from_text(text)._replace(steps=steps)


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
        columns, per_channel = parameters.shape[1], like.shape[1] if like.dim() > 1 else 1
        if columns != 1:
            shape = (-1, *(1,) * (like.dim() - 2)) if columns == per_channel else like.shape[1:]
            rows = tuple(row.reshape(shape) for row in rows)
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
    the last i if there is a synaptic current, and the membrane potentials m (T, N, *) if they are recorded. To
    `states`, if it is given, v and i are added behind each step."""
    current = x.to(state_dtype(x.dtype))
    rows = [current] * p.steps if p.constant else current.unbind(0)
    v = torch.zeros_like(rows[0]) if v is None else v
    i = torch.zeros_like(rows[0]) if i is None and p.synaptic else i
    decay, gain, bias, threshold, v_reset, synaptic_decay = _values(parameters, p, v)
    surrogate, reset = p.surrogate_object(), RESETS[p.reset]

    def fire(m: Tensor) -> Tensor:
        if p.several:
            # By a tensor, rounded once: on a GPU torch divides by a number through its reciprocal.
            fired = torch.where(m > 0, torch.trunc(m / threshold), torch.zeros_like(m))
        else:
            fired = m > threshold if p.strict else m >= threshold
        return spike(m - (threshold + surrogate.shift), fired, surrogate)

    spikes, membrane = [], []
    for x_t in rows:
        if p.synaptic and i is not None:
            c = i + x_t
            i = synaptic_decay * c
        else:
            c = x_t
        m = decay * v + (gain * c + bias)
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
    return read_out(spikes, weights, READOUTS[p.readout]).to(p.dtype), v, i, torch.stack(membrane) if p.record else None


def read_out(spikes: list[Tensor], weights: Tensor | None, readout: str | None) -> Tensor:
    """The spikes of every step (T, N, *), their mean over time, or their weighted sum."""
    if readout is None:
        return torch.stack(spikes)
    if readout == "mean":
        return _rate(spikes)
    assert weights is not None
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
