"""The Frechet Inception Distance (Heusel et al. 2017, arXiv 1706.08500) and what it is measured on, for any network
that maps images in [-1, 1] to (features, logits): `esvae.metrics.inception`, or another in its place.

Named by its implementation, for resizing and weights move it: this one is pytorch-fid's. Table I of the paper has
clean-fid's, which resizes by a bicubic filter.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from esvae.data import normalize
from esvae.errors import InputError
from esvae.metrics.frechet import feature_statistics, frechet_distance
from esvae.metrics.inception_score import inception_score

IMPLEMENTATION = "pytorch-fid"
IMAGES = 5000  # generated ones, as published
CHUNK = 32  # images at a time: at 299x299 each takes 12 MB


@torch.no_grad()
def outputs(network: nn.Module, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Features (N, D) and logits (N, classes), fp32 on the CPU, of images (N, C, H, W) in uint8, as files have them."""
    device = next(network.parameters()).device
    with torch.autocast(device.type, enabled=False):
        found = [network(normalize(some.to(device))) for some in pixels.split(CHUNK)]
    features, logits = (torch.cat(parts).float().cpu() for parts in zip(*found, strict=True))
    return features, logits


def summary(features: Tensor, logits: Tensor) -> dict[str, Tensor]:
    """What distance and score need to know of a set of images, fp64: `score` (2), its Inception Score with the standard
    deviation, and where there are as many images as features `mu` (D) and `sigma` (D, D)."""
    found = {"score": torch.tensor(inception_score(logits), dtype=torch.float64)}
    if len(features) >= features.shape[1]:
        found["mu"], found["sigma"] = feature_statistics(features)
    return found


def fid(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """The distance of two sets of images by their summaries."""
    if "mu" not in a or "mu" not in b:
        raise InputError("no FID: it needs at least as many images on both sides as the network has features (2,048)")
    return frechet_distance(a["mu"], a["sigma"], b["mu"], b["sigma"])
