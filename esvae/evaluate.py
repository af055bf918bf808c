"""Evaluation of a model on a data set: reconstruction error, and the Frechet autoencoder distance of its samples."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from . import data
from .models import ESVAE

BATCH = 128
GENERATED = 5120  # images that a distance is measured on: 40 batches of 128 (spec of the published metric)
SEED = 2024  # of the noise of every evaluation


def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


@torch.no_grad()
def reconstructions(model: ESVAE, batches: Iterable[Tensor], precision: str = "fp32") -> Iterator[Tensor]:
    """The reconstruction of each batch (N, C, H, W), fp32. Noise is keyed by the image's position in the sequence."""
    start = 0
    for images in batches:
        ids = torch.arange(start, start + len(images), device=images.device)
        with autocast(images.device, precision):
            again = model.reconstruct(images, seed=SEED, sample_ids=ids)
        start += len(images)
        yield again.float()


def mean_squared_error(model: ESVAE, images: data.ImageSet, precision: str = "fp32") -> float:
    """The mean over all images and pixels of (x - x_hat)^2, on the scale [-1, 1]."""
    device = next(model.parameters()).device
    originals = data.ordered_batches(images, BATCH, device)
    total = 0.0
    for original, again in zip(originals, reconstructions(model, data.ordered_batches(images, BATCH, device), precision), strict=True):
        total += float((original - again).square().sum(dtype=torch.float64))
    return total / images.pixels.numel()


@torch.no_grad()
def generated(model: ESVAE, count: int, *, seed: int = SEED, precision: str = "fp32", prior: str | None = None) -> Tensor:
    """`count` generated images (count, C, H, W), fp32 on the CPU."""
    device = next(model.parameters()).device
    parts = []
    for start in range(0, count, BATCH):
        with autocast(device, precision):
            part = model.generate(min(BATCH, count - start), seed=seed, start=start, prior=prior)
        parts.append(part.float().cpu())
    return torch.cat(parts)
