"""The Efficient Spiking Variational Autoencoder (arXiv 2310.14839): encoder, Poisson latent, decoder, prior."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from esvae_kernels import poisson

from .. import distributed
from ..config import TrainConfig
from ..errors import InputError
from ..layers import at_least_fp32, make_surrogate, mean_rate
from ..losses import DISTANCES
from ..prior import MixturePrior, normal
from .backbone import Backbone
from .base import following


class Reconstruction(NamedTuple):
    """What the training forward returns, and the loss needs."""

    images: Tensor  # (N, C, H, W), in [-1, 1]
    rates: Tensor  # r_p (N, d), of the posterior
    prior_rates: Tensor  # r_q (N, d)


class ESVAE(Backbone):
    """Encoder, sampler, decoder and prior; see `ModelConfig` for the options."""

    kind = "esvae"

    def __init__(self, **options) -> None:
        super().__init__(**options)
        c = self.config
        layers = [nn.Linear(c.latent, c.latent) for _ in range(c.bottleneck_layers)]
        between = [module for layer in layers[1:] for module in (nn.LeakyReLU(0.2), layer)]
        self.bottleneck = nn.Sequential(layers[0], *between) if between else layers[0]
        self.mixture = MixturePrior(c.mixture_components, c.latent) if c.prior == "mixture" else None
        self.sampler_surrogate = make_surrogate(c.sampler_surrogate, c.sampler_shape)
        self.to(memory_format=torch.channels_last)

    def encode(self, images: Tensor) -> Tensor:
        """images (N, C, H, W) in [-1, 1] -> firing rates r_p (N, d) in {0, 1/T, .., 1} (eq. 5)."""
        return self.latent(images, readout="rate")

    def sample(self, rates: Tensor, *, seed: int | Tensor | None = None, sample_ids: Tensor | None = None) -> Tensor:
        """rates (N, d) -> Poisson spikes z (T, N, d) (eq. 7). `sample_ids`: positions in the whole batch."""
        return poisson(rates, self.steps, seed=seed, sample_ids=sample_ids, surrogate=self.sampler_surrogate)

    def prior_rates(self, noise: Tensor) -> Tensor:
        """z_n (N, d), standard normal -> rates r_q (N, d) of the bottleneck prior."""
        return torch.sigmoid(self.bottleneck(noise.to(self.to_image.weight.dtype)))

    def latent_spikes(
        self, images: Tensor, *, seed: int | Tensor | None = None, sample_ids: Tensor | None = None
    ) -> Tensor:
        return self.sample(self.encode(images), seed=seed, sample_ids=sample_ids)

    def prior_spikes(self, n: int, *, seed: int | Tensor, start: int | Tensor = 0, prior: str | None = None) -> Tensor:
        """Spikes z_q (T, n, d) of the images number `start` .. `start + n - 1`.

        `prior`: "bottleneck" or "mixture"; default: the config's.
        """
        ids = start + torch.arange(n, device=self.to_image.weight.device)
        prior = prior or self.config.prior
        if prior not in ("bottleneck", "mixture"):
            raise InputError(f"prior: got {prior!r}, accepted are bottleneck, mixture")
        if prior == "bottleneck":
            rates = self.prior_rates(normal(ids, self.config.latent, seed))
        elif self.mixture is None:
            raise InputError("prior: got 'mixture', but this model was built without one; accepted is 'bottleneck'")
        else:
            rates = self.mixture(ids, seed)
        return self.sample(rates, seed=following(seed), sample_ids=ids)

    def forward(self, images: Tensor, *, seed: int | Tensor, start: int = 0) -> Reconstruction:
        """The training forward. `seed` is this step's: noise of sampler and prior are keyed by it and the position.

        A seed that is an int64 tensor (1) on the images' device is read there, at each replay of a CUDA graph anew.
        `start`: the position of the first image in the whole batch, of which `images` may be a part.
        """
        rates = self.encode(images)
        ids = torch.arange(start, start + len(images), device=images.device)
        noise = normal(ids, self.config.latent, following(seed))
        images = self.decode(self.sample(rates, seed=seed, sample_ids=ids))
        return Reconstruction(images, at_least_fp32(rates), at_least_fp32(self.prior_rates(noise)))

    def loss(self, out: Reconstruction, images: Tensor, config: TrainConfig) -> dict[str, Tensor]:
        """MSE(x, x_hat) + lambda * MMD^2(r_p, r_q) (eq. 10 and 11), or another distance of the rates of all ranks."""
        mse = F.mse_loss(out.images.float(), images)
        distance = DISTANCES[config.distance](distributed.gather(out.rates), distributed.gather(out.prior_rates))
        values = {"mse": mse, "mmd": distance, "rate": out.rates.mean()}
        loss = mse + config.mmd_weight * distance
        if config.rate_weight:
            values["layer_rate"] = mean_rate(self)
            loss = loss + config.rate_weight * values["layer_rate"]
        return {"loss": loss, **values}

    def parameter_groups(self, config: TrainConfig) -> list[dict[str, Any]]:
        own = {id(p) for p in self.bottleneck.parameters()}
        rest = [p for p in self.parameters() if id(p) not in own]
        return [
            {"params": rest, "lr": config.lr},
            {"params": list(self.bottleneck.parameters()), "lr": config.bottleneck_lr},
        ]
