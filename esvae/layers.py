"""Spiking layers, time-first: (T, N, *) in and out, time folded into the batch for everything but the neuron."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization

from esvae_kernels import Hard, Soft, surrogate
from esvae_kernels.nn import BNLIF

from .config import ModelConfig

_SURROGATES = {
    "rectangular": surrogate.Rectangular,
    "straight-through": surrogate.StraightThrough,
    "sigmoid": surrogate.Sigmoid,
    "atan": surrogate.ATan,
    "triangular": surrogate.Triangular,
    "fast-sigmoid": surrogate.FastSigmoid,
    "gaussian": surrogate.Gaussian,
    "piecewise-exp": surrogate.PiecewiseExp,
}


def make_surrogate(name: str, shape: float, shift: float = 0.0) -> surrogate.Surrogate:
    cls = _SURROGATES[name]
    return cls(shift=shift) if cls is surrogate.StraightThrough else cls(shape, shift=shift)


def at_least_fp32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def neuron_options(config: ModelConfig) -> dict[str, Any]:
    """The neurons of a `SpikingLayer` that a config stands for: options of `esvae_kernels.nn.BNLIF`, and whether the
    decay is learnt."""
    return {
        "learn_decay": config.learn_decay,
        "decay": config.decay,
        "threshold": config.threshold,
        "fire": ">" if config.strict else ">=",
        "reset": Soft(config.detach_reset) if config.reset == "soft" else Hard(detach=config.detach_reset),
        "surrogate": make_surrogate(config.lif_surrogate, config.lif_shape, config.lif_center),
    }


def share_statistics(model: nn.Module) -> None:
    """tdBN by the statistics of the whole batch, of which each rank of torch's process group has a part."""
    for module in model.modules():
        if isinstance(module, BNLIF):
            module.process_group = dist.group.WORLD


def keep_rates(model: nn.Module) -> None:
    """From now on each spiking layer keeps the mean firing rate of its last call, with gradient: see `mean_rate`."""
    for module in model.modules():
        if isinstance(module, SpikingLayer):
            module.keeps_rate = True


def mean_rate(model: nn.Module) -> Tensor:
    """The mean over all spiking layers of the firing rate (spikes per neuron and time step) in their last call; of a
    layer that was read out by weights, learnt ones say, the mean of its spikes by these weights.

    Once: the layers let go of the call's graph.
    """
    layers = [module for module in model.modules() if isinstance(module, SpikingLayer)]
    rates = torch.stack([layer.rate for layer in layers])
    for layer in layers:
        layer.rate = layer.rate.detach()
    return rates.mean()


class SpikingLayer(nn.Module):
    """A linear map (convolution, transposed convolution or Linear, without bias), then tdBN and LIF neurons in one.

    The bias that published models have in front of tdBN cancels against the batch's mean; in evaluation mode it is part
    of the running mean. Between the map and the spikes nothing is stored but the map's output.
    """

    def __init__(self, transform: nn.Module, channels: int, neuron: dict[str, Any]) -> None:
        super().__init__()
        neuron = dict(neuron)
        learn_decay = neuron.pop("learn_decay", False)
        self.transform = transform
        self.neurons = BNLIF(channels, **neuron)
        self.keeps_rate, self.rate = False, torch.zeros(())
        if learn_decay:
            self.neurons.decay = nn.Parameter(torch.full((channels,), float(neuron["decay"])))
            register_parametrization(self.neurons, "decay", Between0And1())

    def forward(
        self, spikes: Tensor, readout: str | Tensor | None = None, v: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """spikes (T, N, *) -> spikes (T, N, *), or their readout (N, *); with the neurons' `return_state` and the last
        potentials (N, *), which v, the ones before the first step, are likewise."""
        y = self.transform(spikes.flatten(0, 1))
        return self._kept(self.neurons(y.unflatten(0, spikes.shape[:2]), v, readout=readout), readout)

    def repeat(self, x: Tensor, steps: int) -> Tensor:
        """x (N, *), the same at every time step -> spikes (T, N, *). Map and norm run once instead of T times."""
        return self._kept(self.neurons(self.transform(x), steps=steps))

    def _kept(
        self, outputs: Tensor | tuple[Tensor, Tensor], readout: str | Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        if self.keeps_rate:
            spikes = outputs if isinstance(outputs, Tensor) else outputs[0]
            total = readout.sum().to(spikes.device, torch.float32) if isinstance(readout, Tensor) else 1.0
            self.rate = spikes.mean(dtype=torch.float32) / total
        return outputs


class Between0And1(nn.Module):
    """The logistic function of what is learnt, so that no step of an optimizer leads out of (0, 1)."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(x)

    def right_inverse(self, value: Tensor) -> Tensor:
        return torch.logit(value)
