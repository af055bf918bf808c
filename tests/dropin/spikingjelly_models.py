"""Two networks of SpikingJelly's layers, in miniature, and one training step as its tutorials write it."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import Tensor, nn


def lif() -> nn.Module:
    return neuron.LIFNode(tau=2.0, v_threshold=0.5, detach_reset=True, surrogate_function=surrogate.ATan())


def plif() -> nn.Module:
    return neuron.ParametricLIFNode(
        init_tau=2.0, v_threshold=0.5, detach_reset=True, surrogate_function=surrogate.ATan()
    )


def if_() -> nn.Module:
    return neuron.IFNode(detach_reset=True, surrogate_function=surrogate.ATan())


def conv(inputs: int, outputs: int, spiking: Callable[[], nn.Module]) -> nn.Sequential:
    """Convolution, batch norm, neurons."""
    return nn.Sequential(layer.Conv2d(inputs, outputs, 3, padding=1, bias=False), layer.BatchNorm2d(outputs), spiking())


def vgg(width: int = 8, spiking: Callable[[], nn.Module] = lif) -> nn.Sequential:
    """VGG-style: pairs of convolutions, pooled in between, then two linear layers."""
    model = nn.Sequential(
        conv(1, width, spiking),
        conv(width, width, spiking),
        layer.MaxPool2d(2),
        conv(width, 2 * width, spiking),
        conv(2 * width, 2 * width, spiking),
        layer.AdaptiveAvgPool2d((2, 2)),
        layer.Flatten(),
        layer.Linear(8 * width, 4 * width),
        spiking(),
        layer.Linear(4 * width, 10),
    )
    functional.set_step_mode(model, "m")
    return model


class SEWBlock(nn.Module):
    """Spike-element-wise residual block: the spikes of two convolutions, added to the spikes that came in."""

    def __init__(self, channels: int, spiking: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(channels, channels, spiking), conv(channels, channels, spiking))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def sew_resnet(width: int = 8, spiking: Callable[[], nn.Module] = if_) -> nn.Sequential:
    model = nn.Sequential(
        conv(1, width, spiking),
        SEWBlock(width, spiking),
        layer.MaxPool2d(2),
        SEWBlock(width, spiking),
        SEWBlock(width, spiking),
        layer.AdaptiveAvgPool2d((1, 1)),
        layer.Flatten(),
        layer.Linear(width, 10),
    )
    functional.set_step_mode(model, "m")
    return model


def train_step(model: nn.Module, optimiser: torch.optim.Optimizer, images: Tensor, labels: Tensor, steps: int) -> float:
    """The image at every time step; the mean of the last layer's outputs decides."""
    optimiser.zero_grad()
    loss = F.cross_entropy(model(images.expand(steps, *images.shape)).mean(0), labels)
    loss.backward()
    optimiser.step()
    functional.reset_net(model)
    return loss.item()
