"""Norse's LIFBoxCell, LIFCell and LIF and two networks of them, before and after `convert`, and as one call over time.

Each layer over T = 16 steps, forward and backward. Cells: Norse's loop, the same loop with the converted cell, and its
`sequence` ("ours"); LIF: Norse's and the converted layer. Training steps of the networks of the tests: time first
(`Lift` and LIF), and of cells, in a loop, in a loop after `convert`, and by `unroll` ("ours"). Each entry first has to
agree with Norse: the same spikes but where rounding decides, the same loss.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from passes import DTYPES, assert_agree, run, shaped
from torch import Tensor, nn

from esvae_kernels.dropin import convert

pytest.importorskip("norse", reason="Norse is not installed")
import norse.torch as norse

# The networks are the tests'. Appended: bench's own conftest has to come first.
sys.path.append(str(Path(__file__).resolve().parent.parent / "tests" / "dropin"))
from test_norse_models import MODELS, batch, train_step

STEPS, OURS, CONVERTED, THEIRS = 16, "ours", "converted, loop", "Norse"


class Layer(NamedTuple):
    """One group."""

    name: str
    make: Callable[..., nn.Module]
    dtype: torch.dtype = torch.float32
    learnt: bool = False  # all of its parameters

    @property
    def group(self) -> str:
        name = ", ".join(filter(None, [self.name, "parameters learnt" if self.learnt else ""]))
        return f"{name}, T = {STEPS}, {DTYPES[self.dtype]}, forward+backward"


def box(**p: Tensor) -> nn.Module:
    del p["tau_syn_inv"]
    return norse.LIFBoxCell(norse.LIFBoxParameters(**p))


def cell(**p: Tensor) -> nn.Module:
    return norse.LIFCell(norse.LIFParameters(**p))


def in_time(record_states: bool = False, **p: Tensor) -> nn.Module:
    return norse.LIF(norse.LIFParameters(**p), record_states=record_states)


LAYERS = (
    Layer("LIFBoxCell", box),
    Layer("LIFBoxCell", box, torch.bfloat16),
    Layer("LIFBoxCell", box, learnt=True),
    Layer("LIFCell", cell),
    Layer("LIF", in_time),
    Layer("LIF", in_time, torch.bfloat16),
    Layer("LIF", in_time, learnt=True),
    Layer("LIF, states recorded", partial(in_time, record_states=True)),
)
ENTRIES = [
    pytest.param(case, entry, id=f"{case.group}-{entry}")
    for case in LAYERS
    for entry in ((OURS, CONVERTED, THEIRS) if case.make in (box, cell) else (OURS, THEIRS))
]


def parameters(learnt: bool) -> dict[str, Tensor]:
    values = {"tau_mem_inv": 400.0, "tau_syn_inv": 200.0, "v_leak": 0.0, "v_th": 0.5, "v_reset": 0.0}
    return {name: torch.tensor(value, requires_grad=learnt) for name, value in values.items()}


def steps(layer: nn.Module, x: Tensor) -> Tensor:
    spikes, state = [], None
    for x_t in x.unbind(0):
        spike, state = layer(x_t, state)
        spikes.append(spike)
    return torch.stack(spikes)


def sequence(layer: nn.Module, x: Tensor) -> Tensor:
    return layer.sequence(x)[0]


def call(layer: nn.Module, x: Tensor) -> Tensor:
    return layer(x)[0]


@pytest.mark.parametrize(("case", "entry"), ENTRIES)
def test_layer(case: Layer, entry: str, elements: int, measure: Callable[..., None]) -> None:
    generator = torch.Generator().manual_seed(0)
    x, dspikes = (shaped(torch.randn(elements, generator=generator), STEPS).to(case.dtype) for _ in range(2))
    x = x.requires_grad_()
    p = parameters(case.learnt)
    theirs = case.make(**p)
    ours = copy.deepcopy(theirs)
    ours.p = theirs.p
    convert(ours, strict=True)
    in_a_cell = isinstance(theirs, norse.LIFCell | norse.LIFBoxCell)
    calls = {
        OURS: partial(sequence if in_a_cell else call, ours),
        CONVERTED: partial(steps, ours),
        THEIRS: partial(steps if in_a_cell else call, theirs),
    }
    spikes = calls[OURS](x[:, :1])
    dspikes = dspikes.to(spikes.dtype)
    if not (in_a_cell and case.dtype == torch.bfloat16):  # there Norse's potentials are other ones
        few = [x[:, : 1 << 12].detach().requires_grad_()]
        found, wanted = (run(calls[name], few, dspikes[:, : 1 << 12], "forward+backward") for name in (entry, THEIRS))
        assert_agree(entry, found, wanted, flips=1e-4, relative=1e-3 if case.dtype == torch.float32 else 2**-6)
    learnt = [x, *(value for value in p.values() if case.learnt)]

    def forward_and_backward() -> object:
        return torch.autograd.grad(calls[entry](x), learnt, dspikes, allow_unused=True)

    info = {"elements": x.numel(), "T": STEPS, "dtype": DTYPES[case.dtype], "passes": "forward+backward"}
    measure(case.group, entry, forward_and_backward, partial(calls[entry], x), **info)


NETWORKS = {
    "time first, Lift and LIF": {OURS: "in-time", THEIRS: "in-time"},
    "of cells": {OURS: "unroll", CONVERTED: "loop", THEIRS: "loop"},
}


@pytest.mark.parametrize(
    ("name", "entry"), [pytest.param(name, e, id=f"{name}-{e}") for name, entries in NETWORKS.items() for e in entries]
)
def test_network(name: str, entry: str, smoke: bool, measure: Callable[..., None]) -> None:
    images, width = (4, 4) if smoke else (64, 32)
    data = batch(images)
    trained = {}
    for one in dict.fromkeys((entry, THEIRS)):
        make, their_run, our_run = MODELS[NETWORKS[name][one]]
        torch.manual_seed(0)
        net = make(width)
        if one != THEIRS:
            convert(net)
        optimiser = torch.optim.Adam(net.parameters())
        trained[one] = partial(train_step, net, optimiser, their_run if one == THEIRS else our_run, *data, time=STEPS)
    losses = [step() for step in trained.values()]
    assert losses[0] == pytest.approx(losses[-1], rel=1e-3)
    group = f"convolutional Norse network {name}, training step, {images} images, T = {STEPS}, fp32"
    measure(group, entry, trained[entry], images=images, T=STEPS, dtype="fp32")
