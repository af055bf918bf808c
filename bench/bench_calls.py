"""What a small call costs: where a kernel is done in microseconds, the way to it is what takes the time.

`lif` beside a loop of plain PyTorch, which starts some five ops a step, then the modules, `bn_lif` and `poisson`, and
SpikingJelly's LIFNode before and after `convert`. An entry is CALLS calls in a row, so that the milliseconds in the
table are microseconds a call. They are of the clock on the wall, as everywhere here; on a machine that does other
things too, `--benchmark-timer=time.process_time` leaves out what those take. One thread: so small a tensor is not
shared among several.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import pytest
import torch
from passes import assert_agree, run
from peers import Spike, poisson_loop
from table import OURS
from torch import Tensor

from esvae_kernels import bn_lif, lif, nn, poisson

CALLS = 1000
SHAPES = ((1, 1, 10), (4, 1, 10), (1, 32, 128), (4, 32, 128), (4, 64, 512), (16, 32, 128))
NEURON = {"decay": 0.5, "threshold": 0.5}
LOOP, THEIRS, ATAN = "loop", "SpikingJelly", "ATan(2)"
PASSES = ("forward", "forward+backward")


def loop(x: Tensor) -> Tensor:
    v, spikes, learns = 0.0, [], torch.is_grad_enabled()
    for x_t in x.unbind(0):
        m = 0.5 * v + x_t
        s = Spike.apply(m - 0.5, ATAN) if learns else (m >= 0.5).to(m.dtype)
        v = m * (1 - s)
        spikes.append(s)
    return torch.stack(spikes)


def batch_norm(name: str) -> Callable[[Tensor], Tensor]:
    one, other, *statistics = (torch.full((128,), value) for value in (1.0, 0.0, 0.0, 1.0))

    def unfused(x: Tensor) -> Tensor:
        y = torch.nn.functional.batch_norm(x.flatten(0, 1), *statistics, one, other, training=True)
        return loop(y.view(x.shape))

    def ours(x: Tensor) -> Tensor:
        return bn_lif(x, one, other, *statistics, training=True, **NEURON)[0]

    return ours if name == OURS else unfused


def spikingjelly(mode: str, converted: bool) -> Callable[[Tensor], Tensor]:
    neuron = pytest.importorskip("spikingjelly.activation_based.neuron", reason="SpikingJelly is not installed")
    node = neuron.LIFNode(tau=2.0, v_threshold=0.5, step_mode=mode)
    if converted:
        from esvae_kernels.dropin import convert

        node = copy.deepcopy(node)
        convert(node, strict=True)

    def call(x: Tensor) -> Tensor:
        node.v = 0.0  # as after a reset, which would take most of the time
        return node(x if mode == "m" else x[0])

    return call


def entries(op: str) -> dict[str, Callable[[], Callable[[Tensor], Tensor]]]:
    """What makes the function to time, by the entry's name."""
    if op.startswith("LIFNode"):
        mode = "s" if op.endswith("a step") else "m"
        return {OURS: partial(spikingjelly, mode, True), THEIRS: partial(spikingjelly, mode, False)}
    return {
        "lif": {OURS: lambda: lambda x: lif(x, **NEURON)[0], LOOP: lambda: loop},
        "nn.LIF": {OURS: lambda: nn.LIF(**NEURON), LOOP: lambda: loop},
        "bn_lif": {OURS: partial(batch_norm, OURS), LOOP: partial(batch_norm, LOOP)},
        "poisson": {
            OURS: lambda: lambda x: poisson(x[0], len(x)),
            LOOP: lambda: lambda x: poisson_loop(x[0], len(x), ATAN),
        },
    }[op]


class Case(NamedTuple):
    """One group."""

    op: str
    shape: tuple[int, int, int]
    passes: str

    @property
    def group(self) -> str:
        return f"{CALLS} calls of {self.op}, {self.shape}, fp32, {self.passes}"


CASES = (
    *(Case("lif", shape, passes) for shape in SHAPES for passes in PASSES),
    *(Case(op, (4, 32, 128), passes) for op in ("nn.LIF", "bn_lif", "poisson", "LIFNode") for passes in PASSES),
    *(Case("LIFNode, a step", (1, *inner), passes) for inner in ((1, 128), (32, 128), (64, 1024)) for passes in PASSES),
)
ENTRIES = [pytest.param(case, entry, id=f"{case.group}-{entry}") for case in CASES for entry in entries(case.op)]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("case", "entry"), ENTRIES)
def test_calls(case: Case, entry: str, smoke: bool, measure: Callable[..., None]) -> None:
    calls, backward = 2 if smoke else CALLS, case.passes != "forward"
    x = torch.rand(case.shape, generator=torch.Generator().manual_seed(0))
    functions = {name: make() for name, make in entries(case.op).items()}
    if case.op != "poisson":  # other random numbers
        dout = torch.rand(run(functions[OURS], [x], x, "forward").outputs[0].shape)
        found, wanted = (run(f, [x.clone().requires_grad_()], dout, case.passes) for f in functions.values())
        assert_agree(entry, found, wanted, flips=1e-3, relative=1e-3)
    function, x = functions[entry], x.requires_grad_(backward)

    def once() -> None:
        if backward:
            function(x).sum().backward()
            x.grad = None
        else:
            function(x)

    def timed() -> None:
        with torch.set_grad_enabled(backward):
            for _ in range(calls):
                once()

    info = {"op": case.op, "T": case.shape[0], "N": x[0].numel(), "dtype": "fp32", "passes": case.passes}
    measure(case.group, entry, timed, calls=calls, **info)
