"""The variational autoencoder without spikes: FSVAE's yardstick, of the same widths."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..arguments import check_tensor, ids_of, seed_of
from ..config import TrainConfig
from ..layers import at_least_fp32
from ..losses import gaussian_divergence
from ..noise import Stream, normal
from .base import Model


class Gaussians(NamedTuple):
    """What the training forward returns, and the loss needs."""

    images: Tensor  # (N, C, H, W), in [-1, 1]
    mean: Tensor  # (N, d)
    log_variance: Tensor  # (N, d)


class VAE(Model):
    """Convolutions with batch norm and leaky ReLU on both sides of a Gaussian latent; see `ModelConfig`."""

    kind = "vae"
    priors = ("normal",)

    def __init__(self, **options) -> None:
        super().__init__(**{"steps": 1} | options)
        c = self.config
        self.encoder = nn.Sequential(
            *(
                _block(nn.Conv2d(i, o, 3, stride=2, padding=1, bias=False), o)
                for i, o in zip((c.channels, *c.widths), c.widths, strict=False)
            ),
            nn.Flatten(),
        )
        self.to_mean = nn.Linear(c.features, c.latent)
        self.to_log_variance = nn.Linear(c.features, c.latent)
        self.from_latent = nn.Sequential(nn.Linear(c.latent, c.features), nn.Unflatten(1, (c.widths[-1], 2, 2)))
        self.decoder = nn.Sequential(
            *(
                _block(nn.ConvTranspose2d(i, o, 3, stride=2, padding=1, output_padding=1, bias=False), o)
                for i, o in pairwise((*c.widths[::-1], c.widths[0]))
            )
        )
        self.to_image = nn.ConvTranspose2d(c.widths[0], c.channels, 3, padding=1)
        self.to(memory_format=torch.channels_last)

    def distribution(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """images (N, C, H, W) in [-1, 1] -> mean and logarithm of the variance of the posterior, (N, d)."""
        self.check_images(images)
        features = self.encoder(images.contiguous(memory_format=torch.channels_last))
        return at_least_fp32(self.to_mean(features)), at_least_fp32(self.to_log_variance(features))

    def encode(self, images: Tensor) -> Tensor:
        """images (N, C, H, W) in [-1, 1], of the weights' dtype -> the mean of the posterior (N, d).

        Raises:
            InputError: they are of another shape, dtype or device, or have values outside.
        """
        return self.distribution(images)[0]

    def sample(
        self,
        mean: Tensor,
        log_variance: Tensor,
        *,
        seed: int | Tensor | None = None,
        sample_ids: Tensor | None = None,
    ) -> Tensor:
        """A latent (N, d) of the posterior with this mean and logarithm of the variance, both (N, d) of floating point.

        Args:
            seed: as in `generate`.
            sample_ids: int64 (N), positions in the whole batch; default: 0, 1, ..

        Raises:
            InputError: an argument is none of these.
        """
        for name, value in (("mean", mean), ("log_variance", log_variance)):
            check_tensor(name, value, ("N", self.config.latent))
        return self._sampled(mean, log_variance, seed_of(seed), ids_of(sample_ids, len(mean), mean.device))

    def _sampled(self, mean: Tensor, log_variance: Tensor, seed: int | Tensor, sample_ids: Tensor) -> Tensor:
        """`sample` of what the model made itself."""
        noise = normal(sample_ids, self.config.latent, seed, Stream.POSTERIOR)
        return mean + (0.5 * log_variance).exp() * noise.to(mean.dtype)

    def decode(self, latent: Tensor) -> Tensor:
        """z (N, d), of the weights' dtype -> images (N, C, H, W) in [-1, 1].

        Raises:
            InputError: it is of another shape, dtype or device, or not finite.
        """
        check_tensor("latent", latent, ("N", self.config.latent), self.to_image.weight)
        return self._decoded(latent)

    def _decoded(self, latent: Tensor) -> Tensor:
        """`decode` of a latent that the model drew itself."""
        features = self.from_latent(latent).contiguous(memory_format=torch.channels_last)
        return torch.tanh(at_least_fp32(self.to_image(self.decoder(features))))

    def reconstruct(
        self, images: Tensor, *, seed: int | Tensor | None = None, sample_ids: Tensor | None = None
    ) -> Tensor:
        """images (N, C, H, W) in [-1, 1] -> their reconstructions from a sample of the posterior, as in training.

        Args:
            seed: as in `generate`.
            sample_ids: int64 (N), the images' positions in the whole batch; default: 0, 1, ..

        Raises:
            InputError: an argument is none of these.
        """
        distribution = self.distribution(images)
        ids = ids_of(sample_ids, len(images), images.device)
        return self._decoded(self._sampled(*distribution, seed_of(seed), ids))

    def generate(
        self, n: int, *, seed: int | Tensor | None = None, start: int | Tensor = 0, prior: str | None = None
    ) -> Tensor:
        self.chosen_prior(prior)
        ids = self.drawn_ids(n, start)
        noise = normal(ids, self.config.latent, seed_of(seed), Stream.PRIOR)
        return self._decoded(noise.to(self.to_image.weight.dtype))

    def forward(
        self, images: Tensor, *, seed: int | Tensor, start: int = 0, progress: float | Tensor = 0.0
    ) -> Gaussians:
        """The training forward, as in `ESVAE`."""
        ids = torch.arange(start, start + len(images), device=images.device)
        mean, log_variance = self.distribution(images)
        images = self._decoded(self._sampled(mean, log_variance, seed_of(seed), ids))
        return Gaussians(images, mean, log_variance)

    def loss(self, out: Gaussians, images: Tensor, config: TrainConfig) -> dict[str, Tensor]:
        """MSE(x, x_hat) + the weighted divergence of the posterior from the standard normal distribution."""
        mse, divergence = F.mse_loss(out.images, images), gaussian_divergence(out.mean, out.log_variance)
        return {"loss": mse + config.kl_weight * divergence, "mse": mse, "kl": divergence}


def _block(transform: nn.Module, channels: int) -> nn.Sequential:
    return nn.Sequential(transform, nn.BatchNorm2d(channels), nn.LeakyReLU())
