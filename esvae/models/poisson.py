"""The explicit latent of ESVAE: spikes that are Poisson processes of rates, and the bottleneck prior over the rates."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from esvae_kernels import poisson

from ..arguments import check_tensor, ids_of, integer, seed_of
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
        """rates (N, d) in [0, 1], of floating point -> Poisson spikes z (T, N, d) of their dtype (eq. 7).

        Args:
            seed: as in `generate`.
            stream: of the seed's noise, 0 or more.
            sample_ids: int64 (N), positions in the whole batch; default: 0, 1, ..

        Raises:
            InputError: an argument is none of these, or rates lie outside.
        """
        check_tensor("rates", rates, ("N", self.config.latent), None, 0, 1)
        ids = ids_of(sample_ids, len(rates), rates.device)
        return self._sampled(rates, seed_of(seed), integer("stream", stream, 0, 2**63 - 1), ids)

    def _sampled(self, rates: Tensor, seed: int | Tensor, stream: int, sample_ids: Tensor) -> Tensor:
        """`sample` of rates that the model made itself."""
        surrogate = self.sampler_surrogate
        return poisson(rates, self.steps, seed=seed, stream=stream, sample_ids=sample_ids, surrogate=surrogate)

    def prior_rates(self, noise: Tensor) -> Tensor:
        """z_n (N, d), standard normal, of floating point -> rates r_q (N, d) of the bottleneck prior, in [0, 1].

        Raises:
            InputError: it is of another shape or dtype.
        """
        check_tensor("noise", noise, ("N", self.config.latent), values=False)
        return torch.sigmoid(self.bottleneck(noise.to(self.to_image.weight.dtype)))

    def drawn_rates(self, ids: Tensor, seed: int | Tensor, prior: str) -> Tensor:
        """Rates (N, d) of the images `ids` of the sequence that `seed` names, from one of `priors`."""
        return self.prior_rates(normal(ids, self.config.latent, seed, Stream.PRIOR))

    def prior_spikes(
        self, n: int, *, seed: int | Tensor | None = None, start: int | Tensor = 0, prior: str | None = None
    ) -> Tensor:
        ids, seed = self.drawn_ids(n, start), seed_of(seed)
        rates = self.drawn_rates(ids, seed, self.chosen_prior(prior))
        return self._sampled(rates, seed, Stream.PRIOR_SPIKES, ids)
