"""`poisson` against the copy of its bytes and against its peers.

Other libraries draw other random numbers, so that entries are compared by what the spikes and the gradient are on
average. SpikingJelly's and snnTorch's encoders have no gradient: they run forward only.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import pytest
import torch
from peers import copy_of, poisson_contender
from torch import Tensor

LOOPS = ("loop", "compiled loop")
PEERS = (*LOOPS, "SpikingJelly", "snnTorch")


class Case(NamedTuple):
    """One group. `values`: how many fp32 values the operation has to move per rate and time step."""

    passes: str
    values: int
    peers: tuple[str, ...] = ()
    surrogate: str = "Rectangular(0.5)"

    @property
    def group(self) -> str:
        return f"poisson, {self.passes}" + ("" if self.passes == "forward" else f", {self.surrogate}")


CASES = (
    Case("forward", 1, PEERS),
    Case("backward", 1),
    Case("forward+backward", 2, LOOPS),
    Case("backward", 1, surrogate="StraightThrough"),
    Case("forward+backward", 2, LOOPS, "StraightThrough"),
)
ENTRIES = [
    pytest.param(case, entry, id=f"{case.group}-{entry}") for case in CASES for entry in ("copy", "ours", *case.peers)
]


@pytest.fixture(scope="module")
def noise(size) -> tuple[Tensor, Tensor]:
    """Rates (samples, 1024) and a gradient of the spikes (T, samples, 1024), all in [0, 1)."""
    generator = torch.Generator().manual_seed(0)
    shape = (size.neurons // 1024, 1024)
    return torch.rand(shape, generator=generator), torch.rand(size.steps, *shape, generator=generator)


@pytest.mark.parametrize(("case", "entry"), ENTRIES)
def test_poisson(case: Case, entry: str, noise: tuple[Tensor, Tensor], measure: Callable[..., None]) -> None:
    rate, dspikes = noise
    info = {"T": len(dspikes), "N": rate.numel(), "elements": dspikes.numel(), "dtype": "float32"}
    if entry == "copy":
        measure(case.group, entry, copy_of(case.values * 4 * dspikes.numel()), **info)
        return
    rate = rate.detach().requires_grad_(case.passes != "forward")
    forward = partial(poisson_contender(entry, len(dspikes), case.surrogate), rate)
    assert_fires(forward, case, rate, dspikes)
    if case.passes == "forward":
        measure(case.group, entry, torch.no_grad()(forward), **info)
    elif case.passes == "backward":
        measure(case.group, entry, partial(torch.autograd.grad, forward(), rate, dspikes, retain_graph=True), **info)
    else:
        measure(case.group, entry, lambda: torch.autograd.grad(forward(), rate, dspikes), forward, **info)


def assert_fires(forward: Callable[[], Tensor], case: Case, rate: Tensor, dspikes: Tensor) -> None:
    """Spikes at the rates, and the gradient that the surrogate has on average over the random numbers."""
    torch.manual_seed(1)  # another one than the rates were drawn with
    with torch.set_grad_enabled(case.passes != "forward"):
        spikes = forward()
    assert spikes.shape == dspikes.shape
    assert bool(((spikes == 0) | (spikes == 1)).all())
    error = 2.5 / math.sqrt(dspikes.numel())  # six standard deviations of the mean spike, four of the mean gradient
    r = rate.detach()
    counts = spikes.detach().mean(0)
    assert (counts - r).mean().abs() < error
    assert ((counts - r) * (r - 0.5)).mean().abs() < error / 4
    if case.passes == "forward":
        return
    (drate,) = torch.autograd.grad(spikes, rate, dspikes)
    expected = dspikes.sum(0)
    if case.surrogate == "StraightThrough":
        torch.testing.assert_close(drate, expected)
        return
    expected = expected * 2 * ((r + 0.25).clamp(max=1) - (r - 0.25).clamp(min=0))  # 2 P(|r - u| < 1/4)
    assert (drate - expected).mean().abs() / len(dspikes) < error
    assert ((drate - expected) * (r - 0.5)).mean().abs() / len(dspikes) < error / 4
