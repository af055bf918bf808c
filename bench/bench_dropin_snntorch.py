"""snnTorch's Leaky and a convolutional network of it, before and after `convert`, and as one call over time.

Each layer over T = 16 steps, forward and backward: snnTorch's loop, the same loop with the converted layer, and its
`sequence` ("ours"). Training steps of the network of the tests on real images: snnTorch's loop, the loop over the
converted network, and `unroll` of it ("ours"). Each entry first has to agree with snnTorch's loop.
"""

from __future__ import annotations

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

pytest.importorskip("snntorch", reason="snnTorch is not installed")
import snntorch

from esvae_kernels.dropin.snntorch import Leaky

# The network is the tests'. Appended: bench's own conftest has to come first.
sys.path.append(str(Path(__file__).resolve().parent.parent / "tests" / "dropin"))
from test_snntorch_models import batch, fused, loop, network, train_step

STEPS, OURS, CONVERTED, THEIRS = 16, "ours", "converted, loop", "snnTorch"
ENTRIES = pytest.mark.parametrize("entry", [OURS, CONVERTED, THEIRS])


class Layer(NamedTuple):
    """One group."""

    name: str = ""
    options: dict[str, object] = {}  # noqa: RUF012 - never written
    record: bool = False  # the potentials of all steps are wanted, with gradients
    dtype: torch.dtype = torch.float32

    @property
    def group(self) -> str:
        name = ", ".join(filter(None, ["Leaky", self.name, "potentials too" if self.record else ""]))
        return f"{name}, T = {STEPS}, {DTYPES[self.dtype]}, forward+backward"


LAYERS = (
    Layer(),
    Layer(record=True),
    Layer(dtype=torch.bfloat16),
    Layer("reset to zero", {"reset_mechanism": "zero"}),
    Layer("reset to zero at once", {"reset_mechanism": "zero", "reset_delay": False}),
    Layer("reset at once", {"reset_delay": False}),
    Layer("beta and threshold learnt", {"learn_beta": True, "learn_threshold": True}),
)


def steps(layer: nn.Module, x: Tensor, record: bool) -> tuple[Tensor, ...]:
    mem, spikes, potentials = torch.zeros_like(x[0], dtype=torch.float32), [], []
    for x_t in x:
        spike, mem = layer(x_t, mem)
        spikes.append(spike), potentials.append(mem)
    layer.mem = layer.mem.detach()  # else the layer holds the graph
    return (torch.stack(spikes), torch.stack(potentials)) if record else (torch.stack(spikes),)


def sequence(layer: Leaky, x: Tensor, record: bool) -> tuple[Tensor, ...]:
    layer.mem = x.new_zeros(0)  # from 0
    spikes, potentials = layer.sequence(x, record=record)
    layer.mem = layer.mem.detach()
    return (spikes, potentials) if record else (spikes,)


@ENTRIES
@pytest.mark.parametrize("case", LAYERS, ids=lambda case: case.group)
def test_layer(case: Layer, entry: str, elements: int, measure: Callable[..., None]) -> None:
    generator = torch.Generator().manual_seed(0)
    x, dspikes = (shaped(torch.randn(elements, generator=generator), STEPS) for _ in range(2))
    x = x.to(case.dtype).requires_grad_()
    layers = {name: snntorch.Leaky(0.9, **case.options) for name in (OURS, CONVERTED, THEIRS)}
    for name in (OURS, CONVERTED):
        convert(layers[name], strict=True)
    calls = {
        name: partial(sequence if name == OURS else steps, layer, record=case.record) for name, layer in layers.items()
    }
    few, dfew = x[:, : 1 << 12].detach().requires_grad_(), dspikes[:, : 1 << 12]
    found, wanted = (run(calls[name], [few], dfew, "forward+backward") for name in (entry, THEIRS))
    assert_agree(entry, found, wanted, flips=0, relative=1e-4 if case.dtype == torch.float32 else 2**-6)
    learnt = [x, *layers[entry].parameters()]

    def forward_and_backward() -> object:
        outputs = calls[entry](x)
        return torch.autograd.grad(outputs, learnt, [dspikes] * len(outputs))

    info = {"elements": x.numel(), "T": STEPS, "dtype": DTYPES[case.dtype], "passes": "forward+backward"}
    measure(case.group, entry, forward_and_backward, partial(calls[entry], x), **info)


@ENTRIES
def test_network(entry: str, smoke: bool, measure: Callable[..., None]) -> None:
    images, width = (4, 4) if smoke else (64, 32)
    data = batch(0, images)
    made = {name: network(width) for name in (entry, THEIRS)}
    if entry != THEIRS:
        convert(made[entry], strict=True)
    trained = {
        name: partial(
            train_step, net, torch.optim.Adam(net.parameters()), fused if name == OURS else loop, *data, time=STEPS
        )
        for name, net in made.items()
    }
    losses = [step() for step in trained.values()]
    assert losses[0] == pytest.approx(losses[-1], rel=1e-3)
    group = f"convolutional snnTorch network, training step, {images} images, T = {STEPS}, fp32"
    measure(group, entry, trained[entry], images=images, T=STEPS, dtype="fp32")
