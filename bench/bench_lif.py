"""`lif` against the copy of its bytes and against its peers. Each entry first has to agree with ours, then is timed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import pytest
import torch
from peers import Contender, copy_of, lif_contender, lif_ours
from torch import Tensor

LOOPS = ("loop", "compiled loop")
PEERS = (*LOOPS, "SpikingJelly", "snnTorch")


class Case(NamedTuple):
    """One group. `values`: how many values of x's dtype the operation has to move per neuron and time step."""

    passes: str
    values: int
    peers: tuple[str, ...] = ()
    surrogate: str = "Rectangular(0.5)"
    readout: str | None = None
    dtype: torch.dtype = torch.float32

    @property
    def group(self) -> str:
        parts = ["lif", "rate readout" if self.readout else "", "bf16" if self.dtype == torch.bfloat16 else ""]
        surrogate = "" if self.passes == "forward" else f", {self.surrogate}"
        return " ".join(filter(None, parts)) + f", {self.passes}{surrogate}"


CASES = (
    Case("forward", 2, PEERS, "ATan(2)"),
    Case("backward", 3),
    Case("forward+backward", 5, LOOPS),
    Case("forward+backward", 5, PEERS, "ATan(2)"),
    Case("forward", 1, PEERS, "ATan(2)", readout="rate"),
    Case("backward", 2, readout="rate"),
    Case("forward+backward", 3, LOOPS, readout="rate"),
    Case("forward", 2, LOOPS, dtype=torch.bfloat16),
    Case("backward", 3, dtype=torch.bfloat16),
    Case("forward+backward", 5, LOOPS, dtype=torch.bfloat16),
)
ENTRIES = [
    pytest.param(case, entry, id=f"{case.group}-{entry}") for case in CASES for entry in ("copy", "ours", *case.peers)
]


@pytest.fixture(scope="module")
def noise(size) -> tuple[Tensor, Tensor]:
    """A current x (T, N) under which about half of the neurons fire at each step, and a gradient of their spikes."""
    generator = torch.Generator().manual_seed(0)
    x, dspikes = (torch.empty(*size).uniform_(-1, 1, generator=generator) for _ in range(2))
    return x.mul_(0.5).add_(0.2), dspikes


@pytest.mark.parametrize(("case", "entry"), ENTRIES)
def test_lif(case: Case, entry: str, noise: tuple[Tensor, Tensor], measure: Callable[..., None]) -> None:
    x, dout = (tensor.to(case.dtype) for tensor in noise)
    info = {"T": x.shape[0], "N": x.shape[1], "elements": x.numel(), "dtype": str(case.dtype).removeprefix("torch.")}
    if entry == "copy":
        measure(case.group, entry, copy_of(case.values * x.element_size() * x.numel()), **info)
        return
    x = x.detach().requires_grad_(case.passes != "forward")
    dout = dout if case.readout is None else dout[0]
    contender = lif_contender(entry, case.surrogate, case.readout)
    assert_agrees(entry, contender, case, x, dout)
    forward = partial(contender.call, x)
    if case.passes == "forward":
        measure(case.group, entry, torch.no_grad()(forward), **info)
    elif case.passes == "backward":
        measure(case.group, entry, partial(torch.autograd.grad, forward(), x, dout, retain_graph=True), **info)
    else:
        measure(case.group, entry, lambda: torch.autograd.grad(forward(), x, dout), forward, **info)


def assert_agrees(entry: str, contender: Contender, case: Case, x: Tensor, dout: Tensor) -> None:
    """The same spikes as ours, and the same gradient of x; ours itself is held against the loop."""
    other = "loop" if entry == "ours" else "ours"
    expected = (
        lif_contender(other, case.surrogate, case.readout).call
        if entry == "ours"
        else lif_ours(case.surrogate, case.readout, **contender.ours)
    )
    with torch.set_grad_enabled(case.passes != "forward"):
        got, wanted = contender.call(x), expected(x)
    flipped = share((got - wanted).abs() > 1e-6)
    assert flipped <= contender.flips, f"{entry}: {flipped:.1e} of the spikes differ from {other}"
    if case.passes == "forward":
        return
    (dx,), (wanted_dx,) = (torch.autograd.grad(out, x, dout) for out in (got, wanted))
    relative = 1e-4 if case.dtype == torch.float32 else 2**-7
    wrong = share((dx - wanted_dx).abs() > 1e-5 + relative * wanted_dx.abs())
    assert wrong <= 10 * contender.flips, f"{entry}: {wrong:.1e} of the gradient differ from {other}"


def share(mask: Tensor) -> float:
    return mask.sum().item() / mask.numel()
