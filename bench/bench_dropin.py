"""The drop-in layers and networks made of them, before and after `convert`.

SpikingJelly: each layer over T = 16 steps, in one call or step by step as its tutorials do, and training steps of a
VGG-style and a spike-element-wise residual network (those of the tests) on real images. Each entry first has to agree:
the same spikes but where rounding decides, the same loss.
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
from passes import DTYPES, assert_agree, run, shaped, training_steps
from torch import Tensor, nn

from esvae_kernels.dropin import convert

pytest.importorskip("spikingjelly.activation_based", reason="SpikingJelly is not installed")
from spikingjelly.activation_based import encoding, neuron, surrogate

from esvae_kernels.dropin import spikingjelly

# The networks are the tests'. Appended: bench's own conftest has to come first.
sys.path.append(str(Path(__file__).resolve().parent.parent / "tests" / "dropin"))
from real_data import images as real_images
from spikingjelly_models import sew_resnet, train_step, vgg

STEPS, OURS, THEIRS = 16, "ours", "SpikingJelly"
FP32, BF16 = torch.float32, torch.bfloat16
ENTRIES = pytest.mark.parametrize("entry", [OURS, THEIRS])


class Layer(NamedTuple):
    """One group."""

    name: str
    make: Callable[..., nn.Module]
    dtype: torch.dtype = FP32
    options: dict[str, object] = {}  # noqa: RUF012 - never written

    @property
    def group(self) -> str:
        how = {"s": ", step by step"}.get(self.options.get("step_mode"), "")
        stored = ", v_seq stored" if self.options.get("store_v_seq") else ""
        return f"{self.name}{how}{stored}, T = {STEPS}, {DTYPES[self.dtype]}, forward+backward"


LAYERS = (
    Layer("LIFNode", neuron.LIFNode),
    Layer("LIFNode", neuron.LIFNode, options={"store_v_seq": True}),
    Layer("LIFNode", neuron.LIFNode, options={"step_mode": "s"}),
    Layer("LIFNode", neuron.LIFNode, BF16),
    Layer("IFNode", neuron.IFNode),
    Layer("ParametricLIFNode", neuron.ParametricLIFNode),
)


@ENTRIES
@pytest.mark.parametrize("case", LAYERS, ids=lambda case: case.group)
def test_layer(case: Layer, entry: str, elements: int, measure: Callable[..., None]) -> None:
    generator = torch.Generator().manual_seed(0)
    x, dspikes = (shaped(torch.randn(elements, generator=generator), STEPS).to(case.dtype) for _ in range(2))
    x = x.requires_grad_()
    layers = {THEIRS: case.make(**{"step_mode": "m", "surrogate_function": surrogate.ATan()} | case.options)}
    layers[OURS] = copy.deepcopy(layers[THEIRS])
    convert(layers[OURS], strict=True)
    if case.dtype == FP32:  # in bf16 SpikingJelly's potentials are other ones
        # of the gradients, only those of a neuron whose spikes are all the same are
        inputs = [x[:, : 1 << 12].detach().requires_grad_()]
        found, wanted = (
            run(partial(call, layer), inputs, dspikes[:, : 1 << 12], "forward+backward") for layer in layers.values()
        )
        assert_agree(entry, found, wanted, flips=1e-4, relative=1e-3)
    layer = layers[entry]
    learnt = [x, *layer.parameters()]

    def forward_and_backward() -> object:
        return torch.autograd.grad(call(layer, x), learnt, dspikes)

    info = {"elements": x.numel(), "T": STEPS, "dtype": DTYPES[case.dtype], "passes": "forward+backward"}
    measure(case.group, entry, forward_and_backward, partial(call, layer, x), **info)


def call(layer: nn.Module, x: Tensor) -> Tensor:
    spikes = layer(x) if layer.step_mode == "m" else torch.stack([layer(x_t) for x_t in x])
    layer.reset()  # else the layer holds the graph
    return spikes


@ENTRIES
def test_encoder(entry: str, elements: int, measure: Callable[..., None]) -> None:
    rates = shaped(torch.rand(elements, generator=torch.Generator().manual_seed(0)), STEPS)
    encoder = {OURS: spikingjelly, THEIRS: encoding}[entry].PoissonEncoder(step_mode="m")
    assert abs((encoder(rates) - rates).mean().item()) < 0.01
    measure(f"PoissonEncoder, T = {STEPS}, fp32, forward", entry, partial(encoder, rates), elements=rates.numel())


class Network(NamedTuple):
    name: str
    make: Callable[..., nn.Module]
    images: int = 16
    side: int = 32
    width: int = 32


@ENTRIES
@pytest.mark.parametrize("case", [Network("VGG-style", vgg), Network("SEW-ResNet", sew_resnet)], ids=lambda c: c.name)
def test_network(case: Network, entry: str, smoke: bool, measure: Callable[..., None]) -> None:
    case = case._replace(images=2, side=8, width=4) if smoke else case
    images, labels = real_images(case.images, case.side)
    torch.manual_seed(0)
    networks = {THEIRS: case.make(case.width)}
    networks[OURS] = copy.deepcopy(networks[THEIRS])
    convert(networks[OURS], strict=True)
    steps = training_steps(networks, train_step, images, labels, STEPS)
    group = f"{case.name}, training step, {case.images} images of {case.side}x{case.side}, T = {STEPS}, fp32"
    measure(group, entry, steps[entry], images=case.images, T=STEPS, dtype="fp32")
