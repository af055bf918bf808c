"""Training of a generator against a critic: the hinge loss, and an optimizer for each of the two.

    critic      mean(max(0, 1 - D(x))) + mean(max(0, 1 + D(G(z))))
    generator   -mean(D(G(z)))

In a step the critic learns first, then the generator, from the same images, by the critic as it is then. The critic
sees all images through Gaussian noise (`critic_noise`; instance noise, Sonderby et al., 2017, arXiv 1610.04490). Else a
spiking critic is always right within some hundred steps: what bounds its maps does not bound its spikes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from . import distributed
from .evaluate import autocast
from .models import GAN
from .noise import Stream, normal
from .train import Trainer, make_optimizer


class AdversarialTrainer(Trainer):
    """A `Trainer` of a `GAN`."""

    model: GAN

    def _in_parallel(self) -> nn.Module:
        """As it is: DDP knows one loss alone. `_descend` exchanges the gradients."""
        return self.model

    def _make_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        config = self.config.train
        critic = make_optimizer(self.model, config, self.graphs, self.model.critic_groups(config))
        return super()._make_optimizers() | {"critic_optimizer": critic}

    def _learn(self, images: Tensor, seed: int | Tensor, progress: float | Tensor) -> dict[str, Tensor]:
        model = self.model
        start = distributed.rank() * len(images)
        with autocast(self.device, self.precision):
            fakes = model.generate(len(images), seed=seed, start=start)
            images = self._noisy(images, start, seed, Stream.CRITIC_IMAGES)
            fakes = self._noisy(fakes, start, seed, Stream.CRITIC_FAKES)
            real, fake = model.criticise(torch.cat([images, fakes.detach()])).chunk(2)
        loss = torch.relu(1 - real).mean() + torch.relu(1 + fake).mean()
        critic_norm = self._descend(self.optimizers["critic_optimizer"], loss)
        model.critic.requires_grad_(False)
        with autocast(self.device, self.precision):
            generator_loss = -model.criticise(fakes).mean()
        norm = self._descend(self.optimizer, generator_loss)
        model.critic.requires_grad_(True)
        return {
            "loss": loss,
            "generator_loss": generator_loss,
            "gradient_norm": norm,
            "critic_gradient_norm": critic_norm,
        }

    def _noisy(self, images: Tensor, start: int, seed: int | Tensor, stream: Stream) -> Tensor:
        """images (N, C, H, W), those from `start` on in the whole batch -> the same as the critic sees them."""
        deviation = self.config.train.critic_noise
        if deviation == 0:
            return images
        ids = start + torch.arange(len(images), device=images.device)
        return images + deviation * normal(ids, images[0].numel(), seed, stream).view(images.shape)
