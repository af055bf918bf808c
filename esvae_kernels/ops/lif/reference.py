"""The leaky integrate-and-fire neuron: the specification.

For each neuron and t = 0 .. T-1 (paper, eq. 1-3, with decay in the place of 1/tau):

    m_t = decay * v_{t-1} + gain * x_t + rest
    s_t = [m_t >= threshold]                                (m_t > threshold if strict)
    v_t = m_t * (1 - s_t) + v_reset * s_t                   reset="hard"
    v_t = m_t - threshold * s_t                             reset="soft"

in this order of operations, each rounded by itself (no fused multiply-add), in fp32 (fp64 for fp64 inputs).
Derivatives: ds_t/dm_t is the surrogate's derivative at m_t - (threshold + center); with detach_reset the s_t in the
equations of v_t counts as a constant. Readout: sum_t c_t s_t with c_t = 1/T ("rate", counted first, divided once) or
given weights, summed in the order of t.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ...surrogate.reference import Surrogate, from_arguments, spike

RESETS = ("hard", "soft")  # by their number in csrc/math/lif.h
READOUTS = (None, "rate", "weights")  # by their number in csrc/cpu/kernels.h


class Neuron(NamedTuple):
    """The options of one call, in the order of the raw ops' arguments."""

    steps: int
    constant: bool
    reset: int
    decay: float
    gain: float
    rest: float
    threshold: float
    v_reset: float
    strict: bool
    detach_reset: bool
    surrogate: int
    shape: float
    center: float
    smooth: bool
    readout: int

    def surrogate_object(self) -> Surrogate:
        return from_arguments(self.surrogate, self.shape, self.center, self.smooth)


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type of v and of all arithmetic: fp64 for fp64 inputs, else fp32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _inputs(x: Tensor, v: Tensor | None, p: Neuron) -> tuple[list[Tensor], Tensor]:
    state = state_dtype(x.dtype)
    rows = [x.to(state)] * p.steps if p.constant else list(x.to(state).unbind(0))
    return rows, torch.zeros_like(rows[0]) if v is None else v


def fire(m: Tensor, p: Neuron) -> Tensor:
    fired = m > p.threshold if p.strict else m >= p.threshold
    return spike(m - (p.threshold + p.center), fired, p.surrogate_object())


def lif(x: Tensor, v: Tensor | None, weights: Tensor | None, p: Neuron) -> tuple[Tensor, Tensor]:
    """x (T, N, *), or (N, *) if constant; v (N, *). Returns spikes (T, N, *), or the readout (N, *), and the last v."""
    rows, v = _inputs(x, v, p)
    spikes = []
    for x_t in rows:
        m = p.decay * v + p.gain * x_t + p.rest
        s = fire(m, p)
        r = s.detach() if p.detach_reset else s
        v = m * (1 - r) + p.v_reset * r if RESETS[p.reset] == "hard" else m - p.threshold * r
        spikes.append(s)
    return _read_out(spikes, weights, p).to(x.dtype), v


def _read_out(spikes: list[Tensor], weights: Tensor | None, p: Neuron) -> Tensor:
    if READOUTS[p.readout] is None:
        return torch.stack(spikes)
    total = torch.zeros_like(spikes[0])
    for t, s in enumerate(spikes):
        total = total + (s if weights is None else weights[t].to(s.dtype) * s)
    return total / p.steps if READOUTS[p.readout] == "rate" else total


def lif_backward(
    x: Tensor, v: Tensor | None, weights: Tensor | None, dout: Tensor, dv: Tensor | None, p: Neuron
) -> tuple[Tensor, Tensor]:
    """The gradients of x and v, from those of the output and of the last v: the adjoint of `lif`, written out.

    Kernels follow it; that it is the derivative of `lif` is tested.
    """
    rows, v = _inputs(x, v, p)
    surrogate = p.surrogate_object()
    membrane = []
    for x_t in rows:
        m = p.decay * v + p.gain * x_t + p.rest
        s = fire(m, p)
        v = m * (1 - s) + p.v_reset * s if RESETS[p.reset] == "hard" else m - p.threshold * s
        membrane.append(m)
    dv = torch.zeros_like(v) if dv is None else dv
    dx: list[Tensor] = []
    for t in reversed(range(p.steps)):
        m = membrane[t]
        s = fire(m, p)
        ds = (dout[t] if READOUTS[p.readout] is None else dout).to(m.dtype)
        if READOUTS[p.readout] is not None:
            ds = ds * (1 / p.steps if weights is None else weights[t].to(m.dtype))
        hard = RESETS[p.reset] == "hard"
        if not p.detach_reset:
            ds = ds + dv * (p.v_reset - m if hard else -p.threshold)
        dm = ds * surrogate.derivative(m - (p.threshold + p.center)) + (dv * (1 - s) if hard else dv)
        dx.append(p.gain * dm)
        dv = p.decay * dm
    return (torch.stack(dx[::-1]) if not p.constant else sum(dx)).to(x.dtype), dv  # type: ignore[union-attr]
