"""sinabs' LIF and IAF and convolutional networks of them, before and after `convert`.

Each layer over T = 16 steps, forward and backward, on (B, T, *) as sinabs takes it: ours copies it to (T, B, *) and its
spikes back, which is timed with it. Training steps of the networks of the tests on real images. Each entry first has to
agree: the same spikes but where rounding decides, the same loss.
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
from passes import DTYPES, assert_agree, run, training_steps
from torch import Tensor, nn

from esvae_kernels.dropin import convert

pytest.importorskip("sinabs", reason="sinabs is not installed")
from sinabs import activation, layers

# The networks are the tests'. Appended: bench's own conftest has to come first.
sys.path.append(str(Path(__file__).resolve().parent.parent / "tests" / "dropin"))
from real_data import images as real_images
from test_sinabs_models import from_ann, leaky, train_step

STEPS, SHAPE, OURS, THEIRS = 16, (64, 16, 16), "ours", "sinabs"
ENTRIES = pytest.mark.parametrize("entry", [OURS, THEIRS])


class Layer(NamedTuple):
    """One group."""

    name: str
    make: Callable[[], nn.Module]
    dtype: torch.dtype = torch.float32

    @property
    def group(self) -> str:
        return f"{self.name}, T = {STEPS}, {DTYPES[self.dtype]}, forward+backward"


LAYERS = (
    Layer("IAF", layers.IAF),
    Layer("IAF", layers.IAF, torch.bfloat16),
    Layer("IAF, min_v_mem", lambda: layers.IAF(min_v_mem=-1.0)),
    Layer("IAF, one spike a step", lambda: layers.IAF(spike_fn=activation.SingleSpike)),
    Layer("IAF, recorded", lambda: layers.IAF(record_states=True)),
    Layer("LIF, tau_mem learnt", lambda: layers.LIF(10.0, norm_input=False)),
    Layer("LIF, tau_mem per channel", lambda: layers.LIF(torch.linspace(5, 20, SHAPE[0]).view(-1, 1, 1))),
    Layer("LIF, tau_mem and tau_syn learnt", lambda: layers.LIF(10.0, tau_syn=5.0)),
)


def call(layer: nn.Module, x: Tensor) -> Tensor:
    layer.reset_states()
    return layer(x)


@ENTRIES
@pytest.mark.parametrize("case", LAYERS, ids=lambda case: case.group)
def test_layer(case: Layer, entry: str, elements: int, measure: Callable[..., None]) -> None:
    generator = torch.Generator().manual_seed(0)
    shape = (elements // (STEPS * torch.Size(SHAPE).numel()), STEPS, *SHAPE)
    x, dspikes = (torch.randn(shape, generator=generator) for _ in range(2))
    x = x.to(case.dtype).requires_grad_()
    made = {THEIRS: case.make()}
    made[OURS] = copy.deepcopy(made[THEIRS])
    convert(made[OURS], strict=True)
    few = x[:1].detach().requires_grad_()
    found, wanted = (run(partial(call, made[name]), [few], dspikes[:1], "forward+backward") for name in (entry, THEIRS))
    assert_agree(entry, found, wanted, flips=1e-4, relative=1e-3 if case.dtype == torch.float32 else 2**-6)
    layer = made[entry]
    learnt = [x, *(p for p in layer.parameters() if p.requires_grad)]

    def forward_and_backward() -> object:
        return torch.autograd.grad(call(layer, x), learnt, dspikes)

    info = {"elements": x.numel(), "T": STEPS, "dtype": DTYPES[case.dtype], "passes": "forward+backward"}
    measure(case.group, entry, forward_and_backward, partial(call, layer, x), **info)


@ENTRIES
@pytest.mark.parametrize("make", [from_ann, leaky], ids=["from_model, IAF", "LIF"])
def test_network(make: Callable[..., nn.Module], entry: str, smoke: bool, measure: Callable[..., None]) -> None:
    count, width = (4, 4) if smoke else (64, 32)
    images, labels = real_images(count)
    networks = {THEIRS: make(count, width), OURS: make(count, width)}
    convert(networks[OURS], strict=True)
    steps = training_steps(networks, train_step, images, labels, STEPS)
    kind = {from_ann: "from_model, IAF", leaky: "LIF"}[make]
    group = f"convolutional sinabs network ({kind}), training step, {count} images, T = {STEPS}, fp32"
    measure(group, entry, steps[entry], images=count, T=STEPS, dtype="fp32")
