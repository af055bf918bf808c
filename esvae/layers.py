"""Spiking layers, time-first: (T, N, *) in and out, time folded into the batch for everything but the neuron."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from esvae_kernels import lif, surrogate

from .config import ModelConfig

_SURROGATES = {
    "rectangular": surrogate.Rectangular,
    "straight-through": surrogate.StraightThrough,
    "sigmoid": surrogate.Sigmoid,
    "atan": surrogate.ATan,
}


def make_surrogate(name: str, shape: float, center: float = 0.0) -> surrogate.Surrogate:
    cls = _SURROGATES[name]
    return cls(center=center) if cls is surrogate.StraightThrough else cls(shape, center=center)


def at_least_fp32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def neuron_options(config: ModelConfig) -> dict[str, Any]:
    """The arguments of `esvae_kernels.lif` that a model's config stands for."""
    return {
        "decay": config.decay,
        "threshold": config.threshold,
        "strict": config.strict,
        "reset": config.reset,
        "detach_reset": config.detach_reset,
        "surrogate": make_surrogate(config.lif_surrogate, config.lif_shape, config.lif_center),
    }


class TdBN(nn.Module):
    """Threshold-dependent batch norm (Zheng et al., 2021), on tensors with time folded into the batch.

    y = weight * scale * (x - mean) / sqrt(var + eps) + bias per channel; mean and biased variance over batch, time and
    space, the running variance unbiased, momentum 0.1. `scale` is the threshold of the neurons behind it.

    Shapes: x (T*N, C, *). With `repeat=T`, x (N, C, *) stands for T equal time steps: the mean and the variance are the
    same, only the running variance's n/(n-1) counts n = T*N*space.
    """

    def __init__(self, channels: int, scale: float, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.scale, self.eps, self.momentum = scale, eps, momentum
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor, repeat: int = 1) -> Tensor:
        own_update = self.training and repeat > 1
        if own_update:
            self._update(x.detach(), repeat)
        buffers = (None, None) if own_update else (self.running_mean, self.running_var)
        weight = self.weight * self.scale
        return F.batch_norm(x, *buffers, weight, self.bias, self.training, self.momentum, self.eps)

    @torch.no_grad()
    def _update(self, x: Tensor, repeat: int) -> None:
        axes = [a for a in range(x.dim()) if a != 1]
        var, mean = torch.var_mean(at_least_fp32(x), axes, correction=0)
        n = repeat * x.numel() // x.shape[1]
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
        self.running_var.lerp_((var * (n / (n - 1))).to(self.running_var.dtype), self.momentum)

    def extra_repr(self) -> str:
        return f"{len(self.weight)}, scale={self.scale}"


class SpikingLayer(nn.Module):
    """A linear map (convolution, transposed convolution or Linear, without bias), tdBN, LIF.

    The bias that published models have in front of tdBN cancels against the batch's mean; in evaluation mode it is part
    of the running mean.
    """

    def __init__(self, transform: nn.Module, channels: int, neuron: dict[str, Any]) -> None:
        super().__init__()
        self.transform = transform
        self.norm = TdBN(channels, neuron["threshold"])
        self.neuron = neuron

    def forward(self, spikes: Tensor, readout: str | Tensor | None = None) -> Tensor:
        """spikes (T, N, *) -> spikes (T, N, *), or their readout (N, *)."""
        x = self.norm(self.transform(spikes.flatten(0, 1)))
        return lif(x.unflatten(0, spikes.shape[:2]), readout=readout, **self.neuron)[0]

    def repeat(self, x: Tensor, steps: int) -> Tensor:
        """x (N, *), the same at every time step -> spikes (T, N, *). Map and norm run once instead of T times."""
        return lif(self.norm(self.transform(x), repeat=steps), steps=steps, **self.neuron)[0]
