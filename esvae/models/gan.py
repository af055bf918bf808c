"""A spiking generative adversarial network on ESVAE's layers, the kind of baseline that SGAD and SWGAN are.

Generator: bottleneck, Poisson sampler and decoder. Critic: ESVAE's encoder with spectral norm in the place of tdBN,
which would undo it, and the firing rates of the last layer read out by a linear map. Trained by the hinge loss with
spectral norm (Miyato et al., 2018); see esvae/adversarial.py.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from esvae_kernels.nn import LIF

from ..config import ModelConfig, TrainConfig
from ..layers import at_least_fp32, neuron_options
from .poisson import PoissonLatent


class GAN(PoissonLatent):
    """Generator and critic; see `ModelConfig` for the options. Training alone needs the critic."""

    kind = "gan"
    outer = (*PoissonLatent.outer, "critic.convolutions.0.", "critic.to_score.")

    def __init__(self, **options) -> None:
        super().__init__(**options)
        self.critic = Critic(self.config)
        self.to(memory_format=torch.channels_last)

    def criticise(self, images: Tensor) -> Tensor:
        """images (N, C, H, W) in [-1, 1] -> scores (N), high where they look real."""
        return at_least_fp32(self.critic(images, self.steps))

    def parameter_groups(self, config: TrainConfig) -> list[dict[str, Any]]:
        """The generator's."""
        return [{"params": [p for n, p in self.named_parameters() if not n.startswith("critic.")], "lr": config.lr}]

    def critic_groups(self, config: TrainConfig) -> list[dict[str, Any]]:
        return [{"params": list(self.critic.parameters()), "lr": config.critic_lr}]


class Critic(nn.Module):
    """Convolutions with LIF neurons, and a linear map of the last firing rates; all maps of spectral norm 1.

    No batch statistics: an image's score is its own. The neurons' decay is not learnt.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        widths, neuron = config.widths, neuron_options(config)
        del neuron["learn_decay"]
        self.convolutions = nn.ModuleList(
            spectral_norm(nn.Conv2d(i, o, 3, stride=2, padding=1))
            for i, o in zip((config.channels, *widths), widths, strict=False)
        )
        self.neurons = nn.ModuleList(LIF(**neuron) for _ in widths[1:])
        self.last = LIF(**neuron, readout="mean")
        self.to_score = spectral_norm(nn.Linear(config.features, 1))

    def forward(self, images: Tensor, steps: int) -> Tensor:
        """images (N, C, H, W), the same at each of `steps` -> scores (N)."""
        first, *rest = self.convolutions
        spikes = self.neurons[0](first(images.contiguous(memory_format=torch.channels_last)), steps=steps)
        for convolution, neurons in zip(rest, (*self.neurons[1:], self.last), strict=True):
            spikes = neurons(convolution(spikes.flatten(0, 1)).unflatten(0, spikes.shape[:2]))
        return self.to_score(spikes.flatten(1)).squeeze(1)
