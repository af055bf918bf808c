"""The Efficient Spiking Variational Autoencoder (arXiv 2310.14839): encoder, Poisson latent, decoder, prior."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import distributed
from ..arguments import ids_of, seed_of
from ..config import TrainConfig
from ..layers import at_least_fp32, mean_rate
from ..losses import DISTANCES
from ..noise import Stream, normal
from ..prior import MixturePrior
from .backbone import Backbone
from .poisson import PoissonLatent


class Reconstruction(NamedTuple):
    """What the training forward returns, and the loss needs."""

    images: Tensor  # (N, C, H, W), in [-1, 1]
    rates: Tensor  # r_p (N, d), of the posterior
    prior_rates: Tensor  # r_q (N, d)


class ESVAE(PoissonLatent, Backbone):
    """Encoder, sampler, decoder and prior.

    Shapes: images (N, C, H, W) in [-1, 1], rates (N, d), spikes (T, N, d). `encode`, `sample`, `decode`, `reconstruct`
    and `generate` work with gradients: call them under `torch.inference_mode()` where none are needed.

    Args:
        options: of `esvae.config.ModelConfig`, whose defaults are the paper's: `latent` (d, 128), `steps` (T, 16),
            `channels` (1 or 3), `size` (32 or 64), `decay`, `threshold`, `reset`, `lif_surrogate`, `sampler_surrogate`,
            `readout`, `attention`, `wide_kernels`, `prior`, ...: `esvae train --help` explains all, under `model`.

    Raises:
        InputError: an option is unknown, or its value not accepted.
    """

    kind = "esvae"

    def __init__(self, **options) -> None:
        super().__init__(**options)
        c = self.config
        self.mixture = MixturePrior(c.mixture_components, c.latent) if c.prior == "mixture" else None
        self.to(memory_format=torch.channels_last)

    @property
    def priors(self) -> tuple[str, ...]:
        return ("bottleneck",) if self.mixture is None else ("bottleneck", "mixture")

    @property
    def default_prior(self) -> str:
        return self.config.prior

    def latent_spikes(
        self, images: Tensor, *, seed: int | Tensor | None = None, sample_ids: Tensor | None = None
    ) -> Tensor:
        rates = self.encode(images)
        return self._sampled(rates, seed_of(seed), Stream.POSTERIOR, ids_of(sample_ids, len(rates), rates.device))

    def drawn_rates(self, ids: Tensor, seed: int | Tensor, prior: str) -> Tensor:
        return self.mixture(ids, seed) if prior == "mixture" else super().drawn_rates(ids, seed, prior)

    def forward(
        self, images: Tensor, *, seed: int | Tensor, start: int = 0, progress: float | Tensor = 0.0
    ) -> Reconstruction:
        """The training forward. `seed` is this step's: noise of sampler and prior are keyed by it and the position.

        A seed that is an int64 tensor (1) on the images' device is read there, at each replay of a CUDA graph anew.
        `start`: the position of the first image in the whole batch, of which `images` may be a part. `progress` changes
        nothing here.
        """
        rates, seed = self.encode(images), seed_of(seed)
        ids = torch.arange(start, start + len(images), device=images.device)
        noise = normal(ids, self.config.latent, seed, Stream.PRIOR)
        images = self._decoded(self._sampled(rates, seed, Stream.POSTERIOR, ids))
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
