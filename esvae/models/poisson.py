"""The explicit latent of ESVAE: spikes that are Poisson processes of rates, and the bottleneck prior over the rates."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from esvae_kernels import poisson

from ..layers import make_surrogate
from ..noise import Stream, normal
from .backbone import SpikingDecoder


class PoissonLatent(SpikingDecoder):
    """Sampler and bottleneck, in front of the layers of a `SpikingDecoder` or, mixed in, of one with an encoder too."""

    priors = ("bottleneck",)

    def __init__(self, **options) -> None:
        super().__init__(**options)
        c = self.config
        layers = [nn.Linear(c.latent, c.latent) for _ in range(c.bottleneck_layers)]
        between = [module for layer in layers[1:] for module in (nn.LeakyReLU(0.2), layer)]
        self.bottleneck = nn.Sequential(layers[0], *between) if between else layers[0]
        self.sampler_surrogate = make_surrogate(c.sampler_surrogate, c.sampler_shape)

    def sample(
        self,
        rates: Tensor,
        *,
        seed: int | Tensor | None = None,
        stream: int = Stream.POSTERIOR,
        sample_ids: Tensor | None = None,
    ) -> Tensor:
        """rates (N, d) -> Poisson spikes z (T, N, d) (eq. 7). `stream`: of the seed's noise; `sample_ids`: positions in
        the whole batch."""
        surrogate = self.sampler_surrogate
        return poisson(rates, self.steps, seed=seed, stream=stream, sample_ids=sample_ids, surrogate=surrogate)

    def prior_rates(self, noise: Tensor) -> Tensor:
        """z_n (N, d), standard normal -> rates r_q (N, d) of the bottleneck prior."""
        return torch.sigmoid(self.bottleneck(noise.to(self.to_image.weight.dtype)))

    def drawn_rates(self, ids: Tensor, seed: int | Tensor, prior: str) -> Tensor:
        """Rates (N, d) of the images `ids` of the sequence that `seed` names, from one of `priors`."""
        return self.prior_rates(normal(ids, self.config.latent, seed, Stream.PRIOR))

    def prior_spikes(self, n: int, *, seed: int | Tensor, start: int | Tensor = 0, prior: str | None = None) -> Tensor:
        ids = start + torch.arange(n, device=self.to_image.weight.device)
        rates = self.drawn_rates(ids, seed, self.chosen_prior(prior))
        return self.sample(rates, seed=seed, stream=Stream.PRIOR_SPIKES, sample_ids=ids)
