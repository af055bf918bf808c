"""Neurons from their equations: `alif` against the copy of its bytes, an eager loop and `torch.compile` of it, and
`lif` written again as equations beside the kernel written by hand.

Each entry first has to agree with the reference, on a sixteenth of the neurons, or with ours.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from passes import DTYPES, PASSES, Bytes, assert_agree, measure_passes, run, shaped, uniform
from peers import DECAY, SURROGATES, THRESHOLD, Spike, compiled, lif_ours
from table import OURS
from torch import Tensor

from esvae_kernels import neuron, use_backend
from esvae_kernels.dynamics import spike
from esvae_kernels.neurons import alif

ALIF = {"decay": DECAY, "threshold": THRESHOLD, "jump": 0.1, "decay_a": 0.9}
SURROGATE = "ATan(2)"
LOOPS = ("loop", "compiled loop")
HAND_WRITTEN = "lif"


@neuron(states={"v": 0.0})
def lif_equations(x, v, *, decay, threshold):
    m = decay * v + x
    s = spike(m, threshold)
    return s, m * (1 - s)


def alif_loop(x: Tensor) -> Tensor:
    v = a = torch.zeros_like(x[0], dtype=torch.float32)
    spikes = []
    for x_t in x:
        m = DECAY * v + x_t
        s = Spike.apply(m - (THRESHOLD + 0.1 * a), SURROGATE)
        v, a = m * (1 - s), 0.9 * a + s
        spikes.append(s.to(x.dtype))
    return torch.stack(spikes)


def contender(op: str, entry: str) -> Callable[[Tensor], Tensor]:
    if entry == HAND_WRITTEN:
        return lif_ours(SURROGATE, None)
    if entry in LOOPS:
        return alif_loop if entry == "loop" else compiled(alif_loop)
    if op == "lif as equations":
        options = {"decay": DECAY, "threshold": THRESHOLD}
        return lambda x: lif_equations(x, surrogate=SURROGATES[SURROGATE], **options)[0]
    return lambda x: alif(x, surrogate=SURROGATES[SURROGATE], **ALIF)[0]


class Case(NamedTuple):
    """One group."""

    op: str
    passes: str
    dtype: torch.dtype
    peers: tuple[str, ...]

    @property
    def group(self) -> str:
        return f"{self.op}, T = 16, {DTYPES[self.dtype]}, {self.passes}"


CASES = [
    Case(op, passes, dtype, peers if passes != "backward" else ())
    for op, peers in (("alif", LOOPS), ("lif as equations", (HAND_WRITTEN,)))
    for dtype in DTYPES
    for passes in PASSES
]
ENTRIES = [pytest.param(case, e, id=f"{case.group}-{e}") for case in CASES for e in (OURS, *case.peers)]


@pytest.fixture(scope="module")
def noise(elements: int) -> tuple[Tensor, Tensor]:
    """A current under which a good part of the neurons fires at each step, and a gradient of their spikes."""
    generator = torch.Generator().manual_seed(0)
    x, dspikes = (uniform(elements, generator) for _ in range(2))
    return x.mul_(0.5).add_(0.2), dspikes


@pytest.mark.parametrize(("case", "entry"), ENTRIES)
def test_neuron(case: Case, entry: str, noise: tuple[Tensor, Tensor], measure: Callable[..., None]) -> None:
    x, dout = (shaped(tensor, 16).to(case.dtype) for tensor in noise)
    backward = case.passes != "forward"
    call, few = contender(case.op, entry), x.shape[1] // 16 or 1
    part = x[:, :few].contiguous().requires_grad_(backward), dout[:, :few]
    got = run(call, part[:1], part[1], case.passes)
    with use_backend("reference"):
        wanted = run(contender(case.op, OURS), part[:1], part[1], case.passes)
    assert_agree(f"{entry} and the reference", got, wanted, 1e-5, 1e-4 if case.dtype == torch.float32 else 2**-7)
    info = {
        "op": case.op,
        "passes": case.passes,
        "surrogate": SURROGATE if backward else "",
        "T": 16,
        "N": x[0].numel(),
        "dtype": DTYPES[case.dtype],
        "bytes": Bytes(8, 12).of(case.passes, 16, case.dtype),
        "elements": x.numel(),
    }
    measure_passes(measure, case.group, entry, call, (x.detach().requires_grad_(backward),), dout, **info)
