"""Where generated rates come from: the Gaussian mixture prior."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from .arguments import check_tensor
from .errors import InputError
from .extras import needed
from .noise import Stream, normal


class MixturePrior(nn.Module):
    """A Gaussian mixture over rates, fitted to the training images' rates once training is done (full covariances)."""

    def __init__(self, components: int, latent: int) -> None:
        super().__init__()
        self.register_buffer("weights", torch.full((components,), 1 / components))
        self.register_buffer("means", torch.full((components, latent), 0.5))
        self.register_buffer("factors", torch.zeros(components, latent, latent))  # Cholesky, lower

    @property
    def fitted(self) -> bool:
        return bool(self.factors.any())

    @torch.no_grad()
    def fit(self, rates: Tensor, seed: int) -> None:
        """rates (n, d) of floating point, n at least 2.

        Raises:
            InputError: they are something else, or not finite.
        """
        with needed("model"):
            from sklearn.mixture import GaussianMixture

        check_tensor("rates", rates, ("n", self.means.shape[1]))
        if len(rates) < 2:
            raise InputError(f"rates: got {len(rates)} of images, accepted are those of at least 2")
        if not rates.isfinite().all():  # on a GPU as well
            raise InputError("rates: got values that are not finite, accepted are rates in [0, 1]")
        components = min(len(self.weights), len(rates) // 2)
        mixture = GaussianMixture(components, reg_covar=1e-4, max_iter=50, random_state=seed, init_params="k-means++")
        mixture.fit(rates.double().cpu().numpy())
        self.weights.zero_()
        self.factors.zero_()
        for buffer, values in (
            (self.weights, mixture.weights_),
            (self.means, mixture.means_),
            (self.factors, np.linalg.cholesky(mixture.covariances_)),
        ):
            buffer[:components] = torch.as_tensor(values, dtype=buffer.dtype)

    def forward(self, sample_ids: Tensor, seed: int) -> Tensor:
        """Rates (N, d) in [0, 1]."""
        # To look means to wait for the device, which a capture forbids; the calls before it have looked.
        capturing = self.factors.is_cuda and torch.cuda.is_current_stream_capturing()
        if not capturing and not self.fitted:
            raise InputError("prior: the mixture is fitted at the end of training, and is not yet; use 'bottleneck'")
        noise = normal(sample_ids, self.means.shape[1] + 1, seed, Stream.PRIOR).to(self.weights.dtype)
        u = torch.special.ndtr(noise[:, 0])
        component = torch.searchsorted(self.weights.cumsum(0), u)
        component = component.minimum((self.weights > 0).sum() - 1)  # where rounding leaves the sum below u
        rates = self.means[component] + torch.einsum("nij,nj->ni", self.factors[component], noise[:, 1:])
        return rates.clamp(0, 1)
