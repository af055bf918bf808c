"""What a user writes, and with which types: `make lint` runs mypy over it, tests/test_typing.py runs it."""

from __future__ import annotations

from typing import Literal, assert_type

import torch
from torch import Tensor

from esvae_kernels import (
    Delayed,
    Hard,
    Reset,
    Soft,
    available_backends,
    bn_lif,
    dropin,
    lif,
    nn,
    poisson,
    surrogate,
    use_backend,
)

Two = tuple[Tensor, Tensor]
Three = tuple[Tensor, Tensor, Tensor]
Four = tuple[Tensor, Tensor, Tensor, Tensor]

x = torch.rand(4, 2, 3)  # (T, N, C)
v = torch.zeros(2, 3)
learnt = torch.nn.Parameter(torch.full((3,), 0.9))

# ----------------------------------------------------------------------------------------------------- lif, its outputs

assert_type(lif(x, decay=0.5, threshold=1.0), Two)
assert_type(lif(x, v, None, decay=0.5, threshold=1, synaptic_decay=None, record=None), Two)
assert_type(lif(x, decay=0.5, threshold=1.0, record="membrane"), Three)
assert_type(lif(x, decay=0.5, threshold=1.0, synaptic_decay=0.8), Three)
assert_type(lif(x, v, v, decay=0.5, threshold=1.0, synaptic_decay=learnt), Three)
assert_type(lif(x, v, i=v, decay=0.5, threshold=1.0, synaptic_decay=0.8, record="membrane"), Four)
assert_type(lif(x, v=None, i=None, decay=0.5, threshold=1.0, synaptic_decay=0.8), Three)


def of_options(record: Literal["membrane"] | None, synaptic_decay: float | None, reset: Reset | None) -> int:
    """Options that only the run knows."""
    outputs = lif(x, decay=0.5, threshold=1.0, record=record, synaptic_decay=synaptic_decay, reset=reset)
    return len(outputs)


assert [of_options(None, None, None), of_options("membrane", None, Soft()), of_options(None, 0.8, Hard())] == [2, 3, 3]

# ------------------------------------------------------------------------------------------------------------- options

lif(x, decay=learnt, threshold=torch.tensor(0.4), gain=2, bias=torch.zeros(3), dtype=torch.float64, v_min=-1.0)
lif(x, decay=0.5, threshold=1.0, readout="mean")
lif(x, decay=0.5, threshold=1.0, readout=[0.1, 0.2, 0.3, 0.4])
lif(x, decay=0.5, threshold=1.0, readout=torch.ones(4))
lif(x, decay=0.5, threshold=1.0, fire=">")
lif(x, decay=0.5, threshold=1.0, fire="multi_spike", reset=Soft())
lif(x[0], decay=0.5, threshold=1.0, steps=4)
for reset in (
    Hard(),
    Hard(-0.1),
    Hard(torch.tensor(0.1)),
    Hard(learnt, detach=True),
    Soft(detach=True),
    Delayed(),
    None,
):
    lif(x, decay=0.5, threshold=1.0, reset=reset)
Delayed(detach=True, corrected=True)

# ---------------------------------------------------------------------------------------------------------- surrogates

surrogates: list[surrogate.Surrogate] = [
    surrogate.ATan(),
    surrogate.ATan(4.0, shift=0.1, scale=0.5, spiking=True),
    surrogate.ATan(alpha=torch.tensor(2.0)),
    surrogate.Rectangular(width=0.5),
    surrogate.StraightThrough(),
    surrogate.FastSigmoid(slope=25),
    surrogate.PiecewiseQuadratic(2.0, scale=0.5, shift=0.1),
    surrogate.Erf(alpha=2.0),
    surrogate.SoftSign(2.0, 0.5, spiking=True),
    surrogate.SuperSpike(100.0),
    surrogate.SingleExponential(grad_width=0.5, threshold=2.0),
]
for each in surrogates:
    lif(x, decay=0.5, threshold=1.0, surrogate=each)
assert_type(surrogate.PiecewiseQuadratic(), surrogate.Triangular)
assert_type(surrogate.Erf(), surrogate.Gaussian)
assert_type(surrogate.SuperSpike(), surrogate.FastSigmoid)
assert_type(surrogate.ATan().derivative(v), Tensor)

# ----------------------------------------------------------------------------------------------------- bn_lif, poisson

weight, bias, mean, var = torch.ones(3), torch.zeros(3), torch.zeros(3), torch.ones(3)
assert_type(bn_lif(x, weight, bias, mean, var, training=True, decay=0.5, threshold=1.0), Two)
assert_type(
    bn_lif(x, weight, bias, mean, var, training=False, decay=0.5, threshold=1.0, v=v, fire=">", record="membrane"),
    Three,
)
assert_type(poisson(v, 4), Tensor)
poisson(v, 4, seed=1, sample_ids=torch.arange(2), surrogate=surrogate.Sigmoid(), dtype=torch.float32, check_rates=True)
poisson(v, 4, generator=torch.Generator().manual_seed(0), stream=2)

# ------------------------------------------------------------------------------------------------------------- modules

model = torch.nn.Sequential(
    torch.nn.Linear(3, 3),
    nn.LIF(decay=learnt, threshold=1.0, reset=Hard(torch.tensor(0.1)), surrogate=surrogate.ATan(), device="cpu"),
    torch.nn.Linear(3, 3),
    nn.BNLIF(3, decay=0.5, threshold=1.0, reset=Soft(), fire=">", dtype=torch.float32),
    nn.LI(decay=0.9, readout="last"),
)
model(x).sum().backward()
neuron = nn.LIF(decay=0.5, threshold=1.0, readout=None, record="membrane", return_state=True, stateful=True)
neuron(x)
neuron.detach_state()
neuron.reset()
nn.reset(model)
assert_type(nn.Poisson(4, surrogate=surrogate.Rectangular(1.0)).forward(v, seed=1), Tensor)
assert_type(dropin.convert(model, strict=True).replaced, tuple[dropin.Entry, ...])
dropin.revert(model)

# ------------------------------------------------------------------------------------------------------------ backends


@use_backend("reference")
def on_the_reference(count: int) -> list[Tensor]:
    return [lif(x, decay=0.5, threshold=1.0)[0] for _ in range(count)]


assert_type(on_the_reference(2), list[Tensor])
with use_backend("reference"):
    spikes, last = lif(x, decay=0.5, threshold=1.0)
spikes, last, current, membrane = lif(x, decay=0.5, threshold=1.0, synaptic_decay=0.8, record="membrane")
assert_type(available_backends(), list[str])
