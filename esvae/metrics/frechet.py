"""The Frechet distance of two Gaussians, which every distance of features (FAD, FID) is.

|mu_a - mu_b|^2 + tr(A + B - 2 (A B)^(1/2))
"""

from __future__ import annotations

import torch
from torch import Tensor

from esvae.errors import InputError


def feature_statistics(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (D,) and covariance (D, D), divided by N - 1, of features (N, D); fp64.

    Raises `InputError` for fewer images than features: such a covariance says little.
    """
    if features.ndim != 2 or features.shape[0] < features.shape[1]:
        need = f" (at least {features.shape[1]} are needed)" if features.ndim == 2 else ""
        raise InputError(
            f"features: shape (images, features) with images >= features, not {tuple(features.shape)}{need}"
        )
    features = features.double()
    return features.mean(0), torch.cov(features.T)


def frechet_distance(mu_a: Tensor, sigma_a: Tensor, mu_b: Tensor, sigma_b: Tensor) -> float:
    """Frechet distance of two Gaussians with means (D,) and covariances (D, D), in fp64; never negative.

    Equivalent to: |mu_a - mu_b|^2 + tr(A + B - 2 (A B)^(1/2)), where tr (A B)^(1/2) is the sum of the singular values
    of A^(1/2) B^(1/2): real for any pair of covariances, singular ones included. Raises `InputError` for shapes that do
    not fit, values that are not finite, and matrices that are no covariances.
    """
    mu_a, root_a, trace_a = _gaussian("a", mu_a, sigma_a)
    mu_b, root_b, trace_b = _gaussian("b", mu_b, sigma_b)
    if mu_a.shape != mu_b.shape:
        raise InputError(f"mu_b: shape {tuple(mu_b.shape)}, but mu_a has {tuple(mu_a.shape)}")
    overlap = torch.linalg.svdvals(root_a @ root_b).sum()
    distance = (mu_a - mu_b).square().sum() + trace_a + trace_b - 2 * overlap
    return max(0.0, distance.item())


def _gaussian(side: str, mu: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, symmetric square root of the covariance, and its trace."""
    mu = torch.as_tensor(mu).detach().to("cpu", torch.float64)
    sigma = torch.as_tensor(sigma).detach().to("cpu", torch.float64)
    if mu.ndim != 1 or sigma.shape != (len(mu), len(mu)):
        shapes = f"{tuple(mu.shape)} and {tuple(sigma.shape)}"
        raise InputError(f"mu_{side}, sigma_{side}: shapes (D,) and (D, D) are wanted, not {shapes}")
    if not (torch.isfinite(mu).all() and torch.isfinite(sigma).all()):
        raise InputError(f"mu_{side}, sigma_{side}: some values are not finite")
    values, vectors = torch.linalg.eigh((sigma + sigma.T) / 2)
    tolerance = 1e-5 * sigma.abs().amax()
    if (sigma - sigma.T).abs().amax() > tolerance or values.amin() < -tolerance * len(mu):
        raise InputError(f"sigma_{side}: a symmetric matrix without negative eigenvalues is wanted")
    values = values.clamp(min=0)
    return mu, (vectors * values.sqrt()) @ vectors.T, values.sum()
