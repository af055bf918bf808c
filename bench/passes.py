"""Forward, backward, or both, of an op over (T, N, *): its data, its bytes, its results compared, its time taken."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import NamedTuple

import gpu
import pytest
import torch
from peers import copy_of
from table import OURS
from torch import Tensor, nn

from esvae_kernels import use_backend

DEVICE = torch.get_default_device()  # set by conftest.py, before the benchmarks are imported
GPU = torch.device("cpu") != DEVICE  # also where cpu:0 stands in for it
BACKENDS = gpu.ours(DEVICE) if GPU else (OURS,)  # how ours goes by: on a GPU each of its backends is timed
PASSES = ("forward", "forward+backward") if GPU else ("forward", "backward", "forward+backward")
STEPS = ((4, 16, 64, 256) if DEVICE.type == "cuda" else (16,)) if GPU else (4, 16, 64, 256, 1024)
DTYPES = {torch.float32: "fp32", torch.bfloat16: "bf16"}
CHANNELS, SIDE = 64, 16


class Bytes(NamedTuple):
    """What an op has to move per element and time step in fp32: counted are the tensors with a time axis.

    `scans` are the passes of the backward over time; beyond 16 steps each of them reads one fp32 potential per 16
    steps, which the forward then has written.
    """

    forward: float
    backward: float
    scans: int = 1

    def of(self, passes: str, steps: int, dtype: torch.dtype) -> float:
        saved = 4 * ((steps - 1) // 16) / steps if self.scans else 0.0
        forward, backward = self.forward * dtype.itemsize / 4, self.backward * dtype.itemsize / 4
        return {
            "forward": forward,  # timed without gradients: nothing is saved
            "backward": backward + self.scans * saved,
            "forward+backward": forward + backward + (1 + self.scans) * saved,
        }[passes]


def shaped(flat: Tensor, steps: int, layout: str = "") -> Tensor:
    """As (T, N), or with a layout as (T, N, CHANNELS, SIDE, SIDE)."""
    if not layout:
        return flat[: flat.numel() // steps * steps].view(steps, -1)
    n = flat.numel() // (steps * CHANNELS * SIDE * SIDE)
    flat = flat[: n * steps * CHANNELS * SIDE * SIDE]
    if layout == "channels-last":
        return flat.view(steps, n, SIDE, SIDE, CHANNELS).movedim(-1, 2)
    return flat.view(steps, n, CHANNELS, SIDE, SIDE)


def uniform(elements: int, generator: torch.Generator, low: float = -1.0, high: float = 1.0) -> Tensor:
    return torch.empty(elements).uniform_(low, high, generator=generator)


def on_backend(entry: str) -> AbstractContextManager:
    """Forces the backend that an entry is named after; for a peer and for "ours" the fastest is left to run."""
    return use_backend(entry) if entry in BACKENDS and entry != OURS else nullcontext()


class Result(NamedTuple):
    """Spikes or their readout, what else is returned, and gradients, the first of them that of the current."""

    outputs: tuple[Tensor, ...]
    gradients: tuple[Tensor, ...] = ()


def run(call: Callable[..., object], inputs: Sequence[Tensor], dout: Tensor, passes: str) -> Result:
    """What `call(*inputs)` returns, and after a backward the gradients of all inputs; `dout` is every output's."""
    backward = passes != "forward"
    with torch.set_grad_enabled(backward):
        outputs = call(*inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    return Result(outputs, torch.autograd.grad(outputs, inputs, [dout] * len(outputs)) if backward else ())


def assert_agree(name: str, got: Result, wanted: Result, flips: float, relative: float) -> None:
    """The same spikes, but for a share `flips` that rounding decides at the threshold, and the same gradients.

    A flip changes the neuron's gradient at other steps too, and a little the sums that parameters' gradients are.
    """
    for one, other in zip(got.outputs, wanted.outputs, strict=True):
        flipped = share((one.float() - other.float()).abs() > 1e-5)
        assert flipped <= flips, f"{name}: {flipped:.1e} of the outputs differ"
    if not wanted.gradients:
        return
    (dx, *sums), (wanted_dx, *wanted_sums) = got.gradients, wanted.gradients
    typical = wanted_dx.float().square().mean().sqrt()  # a small gradient is the difference of larger ones
    wrong = share((dx - wanted_dx).abs() > relative * (typical + wanted_dx.abs()))
    assert wrong <= 10 * flips, f"{name}: {wrong:.1e} of the gradient differ"
    for one, other in zip(sums, wanted_sums, strict=True):
        error = ((one - other).norm() / other.norm()).item()
        assert error <= relative + 10 * flips, f"{name}: the gradient of a parameter is off by {error:.1e}"


def training_steps(
    networks: dict[str, nn.Module], train_step: Callable[..., float], *arguments: object
) -> dict[str, Callable[[], float]]:
    """A training step of each network, with an Adam of its own. The first ones are done here, and lose the same."""
    steps = {
        name: partial(train_step, network, torch.optim.Adam(network.parameters()), *arguments)
        for name, network in networks.items()
    }
    one, other = (step() for step in steps.values())
    assert one == pytest.approx(other, rel=1e-3)
    return steps


def share(mask: Tensor) -> float:
    return mask.sum().item() / mask.numel()


def measure_passes(
    measure: Callable[..., None],
    group: str,
    entry: str,
    call: Callable[..., object],
    inputs: Sequence[Tensor],
    dout: Tensor,
    **info: object,
) -> None:
    """Times the passes that `info` names, in turn with the copy of its "bytes" per element and step."""
    against = copy_of(round(info["bytes"] * info["elements"]))
    forward = partial(call, *inputs)

    def backward(outputs: object, retain_graph: bool = False) -> object:
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        return torch.autograd.grad(outputs, inputs, [dout] * len(outputs), retain_graph=retain_graph)

    if info["passes"] == "forward":
        measure(group, entry, torch.no_grad()(forward), against=against, **info)
    elif info["passes"] == "backward":
        measure(group, entry, partial(backward, forward(), retain_graph=True), against=against, **info)
    else:
        measure(group, entry, lambda: backward(forward()), forward, against=against, **info)
