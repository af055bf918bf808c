"""Batches of an image set: the one path from bytes to float images, for training and for evaluation."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import torch

from esvae.data.images import ImageSet, normalize
from esvae.errors import InputError


def epoch_order(n: int, seed: int, epoch: int) -> torch.Tensor:
    """The order of the images in one epoch: a permutation of 0..n-1 (int64) that depends on (n, seed, epoch) alone."""
    return torch.randperm(n, generator=_generator("order", seed, epoch))


def batch_count(n: int, batch_size: int, *, drop_last: bool = True) -> int:
    """How many batches `batches` gives in one epoch."""
    return n // batch_size if drop_last else -(-n // batch_size)


def batches(
    image_set: ImageSet,
    batch_size: int,
    *,
    seed: int,
    epoch: int,
    start: int = 0,
    device: str | torch.device = "cpu",
    drop_last: bool = True,
    rank: int = 0,
    ranks: int = 1,
) -> Iterator[torch.Tensor]:
    """One epoch of training batches, shuffled and, where the set says so, randomly flipped.

    Order and flips depend on (seed, epoch) and the image alone, so starting at batch k gives the very images that
    an uninterrupted epoch gives from there.

    Args:
        image_set: where the images come from; its pixels may lie on any device.
        batch_size: images per batch.
        seed: the run's seed.
        epoch: the epoch's number.
        start: how many batches to skip.
        device: where the batches go.
        drop_last: leave out a last batch that is not full.
        rank, ranks: give only part number `rank` of each batch, cut into `ranks` equal ones.

    Returns:
        an iterator of float32 (batch_size / ranks, C, S, S) in [-1, 1], channels-last.

    Raises:
        InputError: batch_size or start is out of range.
    """
    total = _checked_count(image_set, batch_size, drop_last)
    if not 0 <= start <= total:
        raise InputError(f"start: got {start}, need 0 to {total}, the number of batches of {image_set.name}")
    n = len(image_set)
    order = epoch_order(n, seed, epoch).split(batch_size)[start:total]
    flips = torch.rand(n, generator=_generator("flip", seed, epoch)) < 0.5 if image_set.flip else None
    return (_batch(image_set.pixels, indices.tensor_split(ranks)[rank], flips, device) for indices in order)


def ordered_batches(image_set: ImageSet, batch_size: int, device: str | torch.device = "cpu") -> Iterator[torch.Tensor]:
    """Every image once, in order and unflipped, for evaluation; the last batch may be smaller.

    Returns:
        an iterator of float32 (at most batch_size, C, S, S) in [-1, 1], channels-last.

    Raises:
        InputError: batch_size is below 1.
    """
    _checked_count(image_set, batch_size, drop_last=False)
    return (
        _batch(image_set.pixels, indices, None, device) for indices in torch.arange(len(image_set)).split(batch_size)
    )


def _checked_count(image_set: ImageSet, batch_size: int, drop_last: bool) -> int:
    if batch_size < 1:
        raise InputError(f"batch_size: got {batch_size}, need at least 1")
    total = batch_count(len(image_set), batch_size, drop_last=drop_last)
    if total == 0:
        raise InputError(f"batch_size: got {batch_size}, need at most {len(image_set)}, the size of {image_set.name}")
    return total


def _batch(
    pixels: torch.Tensor, indices: torch.Tensor, flips: torch.Tensor | None, device: str | torch.device
) -> torch.Tensor:
    images = pixels[indices.to(pixels.device)]
    if images.is_cpu and torch.device(device).type == "cuda":
        images = images.pin_memory()  # so that the copy does not wait for what the GPU is doing
    images = images.to(device, non_blocking=True)
    if flips is not None:
        images = torch.where(flips[indices].to(device)[:, None, None, None], images.flip(-1), images)
    return normalize(images).contiguous(memory_format=torch.channels_last)


def _generator(purpose: str, seed: int, epoch: int) -> torch.Generator:
    # Hashed, because seed + epoch would give epoch 1 of seed 0 and epoch 0 of seed 1 the same order. torch's CPU
    # generator uses only the lowest 32 bits of a seed.
    digest = hashlib.blake2b(f"{purpose} {seed} {epoch}".encode(), digest_size=4).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little"))
