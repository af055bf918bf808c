"""What the kernels are compared with: a copy, loops of plain PyTorch, torch.compile of those, SpikingJelly, snnTorch.

Every LIF here is m_t = DECAY v_{t-1} + x_t, s_t = [m_t >= THRESHOLD], v_t = m_t (1 - s_t), from v = 0, over (T, N).
SpikingJelly 2.0.0 has a fast path for ATan but none for a rectangle, and snnTorch's default is ATan: only with that
surrogate are they asked for gradients.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache, partial
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from esvae_kernels import Hard, lif, poisson
from esvae_kernels.surrogate import (
    ATan,
    FastSigmoid,
    Gaussian,
    PiecewiseExp,
    Rectangular,
    Sigmoid,
    StraightThrough,
    Triangular,
)

DECAY, THRESHOLD = 0.25, 0.2
SURROGATES = {
    "Rectangular(0.5)": Rectangular(0.5),
    "ATan(2)": ATan(2.0),
    "Sigmoid(4)": Sigmoid(4.0),
    "Triangular(1)": Triangular(1.0),
    "FastSigmoid(25)": FastSigmoid(25.0),
    "Gaussian(0.5)": Gaussian(0.5),
    "PiecewiseExp(1)": PiecewiseExp(1.0),
    "StraightThrough": StraightThrough(),
}


@lru_cache(maxsize=1)  # the entries of a group follow each other
def copy_of(bytes_total: int) -> Callable[[], object]:
    """A copy that reads and writes `bytes_total` bytes in all, into memory that is there already."""
    x = torch.ones(bytes_total // 2, dtype=torch.uint8)  # ones: a page never written may not be memory at all
    return partial(torch.zeros_like(x).fill_(2).copy_, x)


class Spike(torch.autograd.Function):
    """[u >= 0], with the named surrogate's derivative."""

    @staticmethod
    def forward(ctx, u: Tensor, surrogate: str) -> Tensor:
        ctx.save_for_backward(u)
        ctx.surrogate = surrogate
        return (u >= 0).to(u.dtype)

    @staticmethod
    def backward(ctx, ds: Tensor):
        (u,) = ctx.saved_tensors
        if ctx.surrogate == "Rectangular(0.5)":
            return ds * 2.0 * (u.abs() < 0.25), None
        if ctx.surrogate == "ATan(2)":
            return ds / (1 + (math.pi * u) ** 2), None
        return ds, None


def _read_out(spikes: list[Tensor], readout: str | None) -> Tensor:
    return torch.stack(spikes) if readout is None else sum(spikes) / len(spikes)  # type: ignore[return-value]


def lif_loop(x: Tensor, surrogate: str, readout: str | None) -> Tensor:
    v, spikes = torch.zeros_like(x[0], dtype=torch.float32), []
    for x_t in x:
        m = DECAY * v + x_t
        s = Spike.apply(m - THRESHOLD, surrogate)
        v = m * (1 - s)
        spikes.append(s.to(x.dtype))
    return _read_out(spikes, readout)


class Contender(NamedTuple):
    """A function to time, and what it takes for `lif` to return the same."""

    call: Callable[[Tensor], Tensor]
    ours: dict[str, bool] = {}  # noqa: RUF012 - never written
    flips: float = 1e-5  # share of spikes that may differ, where rounding decides at the threshold


def lif_ours(surrogate: str, readout: str | None, **options: bool) -> Callable[[Tensor], Tensor]:
    options = {
        "decay": DECAY,
        "threshold": THRESHOLD,
        "surrogate": SURROGATES[surrogate],
        "readout": readout,
        **options,
    }
    return lambda x: lif(x, **options)[0]


def lif_contender(entry: str, surrogate: str, readout: str | None) -> Contender:
    """The LIF that goes by that name; skips the test where its library is missing."""
    if entry == "ours":
        return Contender(lif_ours(surrogate, readout), flips=0)
    if entry == "loop":
        return Contender(partial(lif_loop, surrogate=surrogate, readout=readout), flips=0)
    if entry == "compiled loop":
        return Contender(partial(compiled(lif_loop), surrogate=surrogate, readout=readout))
    return {"SpikingJelly": _spikingjelly, "snnTorch": _snntorch}[entry](readout)


def compiled(function: Callable) -> Callable:
    torch.compiler.reset()  # no entry may run what was compiled for another one's shapes
    return torch.compile(function, fullgraph=True, dynamic=False)


def _spikingjelly(readout: str | None) -> Contender:
    neuron = pytest.importorskip("spikingjelly.activation_based.neuron")
    surrogate = pytest.importorskip("spikingjelly.activation_based.surrogate")
    node = neuron.LIFNode(
        tau=1 / (1 - DECAY),
        decay_input=False,
        v_threshold=THRESHOLD,
        v_reset=0.0,
        surrogate_function=surrogate.ATan(2.0),
        step_mode="m",
    )

    def call(x: Tensor) -> Tensor:
        spikes = node(x)
        node.reset()  # else the node holds the graph
        return spikes if readout is None else spikes.mean(0)

    return Contender(call)


def _snntorch(readout: str | None) -> Contender:
    """A reset to zero one step later is the same as one at once, but never has a gradient; it fires above, not at."""
    snntorch = pytest.importorskip("snntorch")
    leaky = snntorch.Leaky(beta=DECAY, threshold=THRESHOLD, reset_mechanism="zero")

    def call(x: Tensor) -> Tensor:
        mem, spikes = torch.zeros_like(x[0]), []
        for x_t in x:
            s, mem = leaky(x_t, mem)
            spikes.append(s)
        leaky.mem = leaky.mem.detach()  # else the module holds the graph
        return _read_out(spikes, readout)

    return Contender(call, ours={"fire": ">", "reset": Hard(detach=True)})


def batch_norm(y: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """torch's, over T, N and space of y (T, N, C, *), updating the running statistics."""
    return F.batch_norm(y.flatten(0, 1), mean, variance, weight, bias, training=True).unflatten(0, y.shape[:2])


def batch_norm_contender(
    entry: str, surrogate: str, mean: Tensor, variance: Tensor
) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """(y, weight, bias) -> spikes: `batch_norm`, then the LIF of that name ("unfused": ours)."""
    lif_entry = {"unfused": "ours", "compiled loop": "loop"}.get(entry, entry)
    neuron = lif_contender(lif_entry, surrogate, None).call

    def call(y: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return neuron(batch_norm(y, weight, bias, mean, variance))

    return compiled(call) if entry == "compiled loop" else call


def poisson_loop(rate: Tensor, steps: int, surrogate: str) -> Tensor:
    return torch.stack([Spike.apply(rate - torch.rand_like(rate), surrogate) for _ in range(steps)])


def poisson_contender(entry: str, steps: int, surrogate: str) -> Callable[[Tensor], Tensor]:
    """The sampler of that name, from rates (N, *) to spikes (T, N, *); skips the test where its library is missing."""
    if entry == "ours":
        return lambda rate: poisson(rate, steps, surrogate=SURROGATES[surrogate])
    if entry == "loop":
        return partial(poisson_loop, steps=steps, surrogate=surrogate)
    if entry == "compiled loop":
        return partial(compiled(poisson_loop), steps=steps, surrogate=surrogate)
    if entry == "SpikingJelly":
        encoder = pytest.importorskip("spikingjelly.activation_based.encoding").PoissonEncoder()
        return lambda rate: torch.stack([encoder(rate) for _ in range(steps)])
    return partial(pytest.importorskip("snntorch.spikegen").rate, num_steps=steps)
