"""`poisson` against the copy of its bytes, over T and the spikes' dtype, and against its peers.

Other libraries draw other random numbers, so that entries are compared by what the spikes and the gradient are on
average. SpikingJelly's and snnTorch's encoders have no gradient: they run forward only.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import pytest
import torch
from passes import BACKENDS, DEVICE, DTYPES, GPU, PASSES, STEPS, Bytes, measure_passes, on_backend, uniform
from peers import SURROGATES, poisson_contender
from torch import Tensor

from esvae_kernels import poisson

LOOPS = ("loop", "compiled loop")
PEERS = (*LOOPS, "SpikingJelly", "snnTorch")


def gpu_peers(passes: str, steps: int, dtype: torch.dtype) -> tuple[str, ...]:
    """They draw in the rates' dtype, fp32; the compiled loop takes long to compile."""
    if dtype == torch.bfloat16:
        return ()
    return tuple(p for p in (PEERS if passes == "forward" else LOOPS) if p != "compiled loop" or steps == 16)


class Case(NamedTuple):
    """One group."""

    passes: str
    peers: tuple[str, ...] = ()
    surrogate: str = "Rectangular(0.5)"
    dtype: torch.dtype = torch.float32
    steps: int = 16

    @property
    def group(self) -> str:
        name = f"poisson, {self.passes}" + ("" if self.passes == "forward" else f", {self.surrogate}")
        return name + (", bf16" if self.dtype == torch.bfloat16 else "") + f", T = {self.steps}" * (self.steps != 16)


ON_CPU = (
    Case("forward", PEERS),
    Case("backward"),
    Case("forward+backward", LOOPS),
    Case("backward", surrogate="StraightThrough"),
    Case("forward+backward", LOOPS, "StraightThrough"),
    *(
        Case(passes, dtype=dtype, steps=steps)
        for steps, dtype, passes in itertools.product(STEPS, (torch.float32, torch.bfloat16), ("forward", "backward"))
        if (steps, dtype) != (16, torch.float32)  # above
    ),
)
ON_GPU = (
    Case(p, gpu_peers(p, t, d), dtype=d, steps=t)
    for d in (torch.float32, torch.bfloat16)
    for t in STEPS
    for p in PASSES
)
CASES = tuple(ON_GPU) if GPU else ON_CPU
ENTRIES = [
    pytest.param(case, entry, id=f"{case.group}-{entry}") for case in CASES for entry in (*BACKENDS, *case.peers)
]


@pytest.fixture(scope="module")
def noise(size) -> tuple[Tensor, Tensor]:
    """Numbers in [0, 1): as many as there are rates at the least T, and as many as spikes at any."""
    generator = torch.Generator(DEVICE).manual_seed(0)
    total = size.steps * size.neurons
    return uniform(total // 4, generator, 0, 1), uniform(total, generator, 0, 1)


@pytest.mark.parametrize(("case", "entry"), ENTRIES)
def test_poisson(case: Case, entry: str, noise: tuple[Tensor, Tensor], measure: Callable[..., None]) -> None:
    size = noise[1].numel() // case.steps
    shape = (size // min(1024, size), min(1024, size))  # samples of 1024 rates
    rate, dspikes = noise[0][:size].view(shape), noise[1].view(case.steps, *shape).to(case.dtype)
    info = {
        "op": "poisson",
        "passes": case.passes,
        "surrogate": "" if case.passes == "forward" else case.surrogate,
        "T": case.steps,
        "N": size,
        "elements": dspikes.numel(),
        "dtype": DTYPES[case.dtype],
        "bytes": Bytes(4, 4, scans=0).of(case.passes, case.steps, case.dtype),
    }
    rate = rate.clone().requires_grad_(case.passes != "forward")  # a storage of its own, to count what is saved
    call = contender(entry, case)
    with on_backend(entry):
        assert_fires(partial(call, rate), case, rate, dspikes)
        measure_passes(measure, case.group, entry, call, (rate,), dspikes, **info)


def contender(entry: str, case: Case) -> Callable[[Tensor], Tensor]:
    if entry in BACKENDS:
        return partial(poisson, steps=case.steps, surrogate=SURROGATES[case.surrogate], dtype=case.dtype)
    return poisson_contender(entry, case.steps, case.surrogate)


def assert_fires(forward: Callable[[], Tensor], case: Case, rate: Tensor, dspikes: Tensor) -> None:
    """Spikes at the rates, and the gradient that the surrogate has on average over the random numbers."""
    torch.manual_seed(1)  # another one than the rates were drawn with
    with torch.set_grad_enabled(case.passes != "forward"):
        spikes = forward()
    assert spikes.shape == dspikes.shape
    assert bool(((spikes == 0) | (spikes == 1)).all())
    error = 2.5 / math.sqrt(dspikes.numel())  # six standard deviations of the mean spike, four of the mean gradient
    r = rate.detach()
    counts = spikes.detach().float().mean(0)
    assert (counts - r).mean().abs() < error
    assert ((counts - r) * (r - 0.5)).mean().abs() < error / 4
    if case.passes == "forward":
        return
    (drate,) = torch.autograd.grad(spikes, rate, dspikes)
    expected = dspikes.float().sum(0)
    if case.surrogate == "StraightThrough":
        torch.testing.assert_close(drate, expected)
        return
    expected = expected * 2 * ((r + 0.25).clamp(max=1) - (r - 0.25).clamp(min=0))  # 2 P(|r - u| < 1/4)
    assert (drate - expected).mean().abs() / len(dspikes) < error
    assert ((drate - expected) * (r - 0.5)).mean().abs() / len(dspikes) < error / 4
