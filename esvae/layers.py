"""Spiking layers, time-first: (T, N, *) in and out, time folded into the batch for everything but the neuron."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from esvae_kernels import surrogate
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


def make_surrogate(name: str, shape: float, center: float = 0.0) -> surrogate.Surrogate:
    cls = _SURROGATES[name]
    return cls(center=center) if cls is surrogate.StraightThrough else cls(shape, center=center)


def at_least_fp32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def neuron_options(config: ModelConfig) -> dict[str, Any]:
    """The arguments of `esvae_kernels.nn.BNLIF` that a model's config stands for."""
    return {
        "decay": config.decay,
        "threshold": config.threshold,
        "strict": config.strict,
        "reset": config.reset,
        "detach_reset": config.detach_reset,
        "surrogate": make_surrogate(config.lif_surrogate, config.lif_shape, config.lif_center),
    }


def share_statistics(model: nn.Module) -> None:
    """tdBN by the statistics of the whole batch, of which each rank of torch's process group has a part."""
    for module in model.modules():
        if isinstance(module, BNLIF):
            module.process_group = dist.group.WORLD


class SpikingLayer(nn.Module):
    """A linear map (convolution, transposed convolution or Linear, without bias), then tdBN and LIF neurons in one.

    The bias that published models have in front of tdBN cancels against the batch's mean; in evaluation mode it is part
    of the running mean. Between the map and the spikes nothing is stored but the map's output.
    """

    def __init__(self, transform: nn.Module, channels: int, neuron: dict[str, Any]) -> None:
        super().__init__()
        self.transform = transform
        self.neurons = BNLIF(channels, **neuron)

    def forward(self, spikes: Tensor, readout: str | Tensor | None = None) -> Tensor:
        """spikes (T, N, *) -> spikes (T, N, *), or their readout (N, *)."""
        y = self.transform(spikes.flatten(0, 1))
        return self.neurons(y.unflatten(0, spikes.shape[:2]), readout=readout)

    def repeat(self, x: Tensor, steps: int) -> Tensor:
        """x (N, *), the same at every time step -> spikes (T, N, *). Map and norm run once instead of T times."""
        return self.neurons(self.transform(x), steps=steps)
