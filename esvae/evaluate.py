"""Evaluation of a model on a data set: reconstruction error, and the Frechet autoencoder distance of its samples."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from . import data, distributed
from .errors import InputError
from .graph import Replay
from .metrics.fad import IMAGE_SIZE, PUBLISHED, Reference, fad, floors, load_reference, reference_folder
from .models import Model

BATCH = 128
GENERATED = 5120  # images that a distance is measured on: 40 batches of 128 (spec of the published metric)
SEED = 2024  # of the noise of every evaluation

Track = Callable[..., Iterable]  # as rich.progress.track: (iterable, description, total)


def _untracked(iterable: Iterable, description: str, total: int) -> Iterable:
    return iterable


def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def reconstruct_by(
    model: Model, precision: str = "fp32", seed: int = SEED, graphs: bool = True
) -> Callable[[Tensor, Tensor], Tensor]:
    """A function of images (N, C, H, W) and their positions in the sequence (N), which noise is keyed by: the images'
    reconstructions, fp32. On a GPU, unless `graphs` is false, a CUDA graph, whose results the next call overwrites."""

    @torch.no_grad()
    def function(images: Tensor, ids: Tensor) -> Tensor:
        with autocast(images.device, precision):
            return model.reconstruct(images, seed=seed, sample_ids=ids).float()

    return Replay(function) if graphs else function


def reconstructions(
    model: Model, batches: Iterable[Tensor], precision: str = "fp32", seed: int = SEED, graphs: bool = True
) -> Iterator[Tensor]:
    """The reconstruction of each batch (N, C, H, W), fp32. Noise is keyed by the image's position in the sequence."""
    reconstruct, start = reconstruct_by(model, precision, seed, graphs), 0
    for images in batches:
        again = reconstruct(images, torch.arange(start, start + len(images), device=images.device))
        start += len(images)
        yield again.clone()


def mean_squared_error(model: Model, images: data.ImageSet, precision: str = "fp32") -> float:
    """The mean over all images and pixels of (x - x_hat)^2, on the scale [-1, 1]."""
    return _reconstruct_all(reconstruct_by(model, precision, graphs=False), images, _device(model), _untracked, keep=0)[
        0
    ]


def _device(model: Model) -> torch.device:
    return next(model.parameters()).device


def _reconstruct_all(
    reconstruct: Callable[[Tensor, Tensor], Tensor],
    images: data.ImageSet,
    device: torch.device,
    track: Track,
    keep: int,
) -> tuple[float, Tensor]:
    """The mean squared error over all images, and the reconstructions of the first `keep` (fp32, on the CPU)."""

    def one_batch(start: int) -> tuple[float, Tensor]:
        some = dataclasses.replace(images, pixels=images.pixels[start : start + BATCH])
        (original,) = data.ordered_batches(some, BATCH, device)
        again = reconstruct(original, torch.arange(start, start + len(original), device=device))
        return float((original - again).square().sum(dtype=torch.float64)), again[: max(keep - start, 0)].cpu().clone()

    found = _share_batches(len(images), one_batch, track, "reconstructing")
    total = 0.0
    for error, _ in found:  # not by `sum`, which newer Pythons round differently
        total += error
    return total / images.pixels.numel(), torch.cat([again for _, again in found])


def _share_batches(count: int, function: Callable[[int], Any], track: Track, description: str) -> list:
    """`function` of the position that each batch of `count` images starts at, shared among the ranks."""
    starts = range(0, count, BATCH)
    own = -(-len(starts) // distributed.ranks())
    return distributed.share(starts, function, partial(track, description=description, total=own))


@torch.no_grad()
def generated(
    model: Model,
    count: int,
    *,
    seed: int = SEED,
    precision: str = "fp32",
    prior: str | None = None,
    graphs: bool = True,
    track: Track = _untracked,
) -> Tensor:
    """`count` generated images (count, C, H, W), fp32 on the CPU: the same for a seed, however many come after them.

    On a GPU, unless `graphs` is false, by a CUDA graph.
    """
    device = _device(model)

    def draw(ids: Tensor) -> Tensor:
        with autocast(device, precision):
            return model.generate(len(ids), seed=seed, start=ids[:1], prior=prior).float()

    replay = Replay(draw) if graphs else draw

    def one_batch(start: int) -> Tensor:
        return replay(torch.arange(start, min(start + BATCH, count), device=device)).cpu()

    return torch.cat(_share_batches(count, one_batch, track, "generating"))


def load_for(model: Model, name: str, split: str, download: bool = False) -> data.ImageSet:
    """A split of a data set in the model's size; other channels than the model's are an InputError."""
    images = data.load(name, split, size=model.config.size, download=download)
    if images.pixels.shape[1] != model.config.channels:
        got = f"{name} with {images.pixels.shape[1]} channels"
        raise InputError(f"data: got {got}, accepted are images of {model.config.channels}, those of the model")
    return images


def evaluate(
    model: Model,
    name: str,
    *,
    prior: str,
    precision: str = "fp32",
    seed: int = SEED,
    download: bool = False,
    graphs: bool = True,
    track: Track = _untracked,
) -> dict[str, Any]:
    """Every figure of a model on the data set `name`, and what it takes to measure them again.

    The ranks of `torchrun` share the work, and all return the same.

    Returns:
        `data`, `images` (of the test set: all), `prior`, `steps` (T), `seed`, `precision`, `device`, `batch_size`,
        `mse` (scale [-1, 1]), `generated` (images drawn; 0 without a reference). With a reference (`find_reference`):
        `fad_paper`, `fad_eval` of the generated images, `fad_paper_floor`, `fad_eval_floor` of real training images,
        `fad_paper_reconstructions` and `fad_eval_reconstructions` of the first 5,120 test images' reconstructions.

    Raises:
        InputError: the data set is not there or does not fit the model; the reference is damaged; a figure is NaN.
    """
    model.eval()
    test = distributed.in_turn(lambda: load_for(model, name, "test", download))
    reference, _ = find_reference(name)
    if reference and tuple(test.pixels.shape[1:]) != (reference.network.channels, IMAGE_SIZE, IMAGE_SIZE):
        reference = None
    keep = min(GENERATED, len(test)) if reference else 0
    reconstruct = reconstruct_by(model, precision, seed, graphs)
    error, again = _reconstruct_all(reconstruct, test, _device(model), track, keep)
    result = {
        "data": name,
        "images": len(test),
        "prior": prior,
        "steps": model.steps,
        "seed": seed,
        "precision": precision,
        "device": _device(model).type,
        "batch_size": BATCH,
        "generated": GENERATED if reference else 0,
        "mse": error,
    }
    if reference:
        images = generated(model, GENERATED, seed=seed, precision=precision, prior=prior, graphs=graphs, track=track)
        result |= distributed.first(lambda: _distances(reference, name, images, again, download))
    for key, value in result.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"{key}: is {value}; the model's weights give no images")
    return result


def _distances(reference: Reference, name: str, images: Tensor, again: Tensor, download: bool) -> dict[str, float]:
    """Of generated images, real ones and reconstructions."""
    result = fad(reference, images, BATCH) | floors(reference, data.load(name, "train", download=download).pixels)
    return result | {f"{key}_reconstructions": value for key, value in fad(reference, again, BATCH).items()}


def real(name: str, download: bool = False) -> dict[str, Any]:
    """The distances of real images alone: what a perfect model would score, and a check of the whole measurement.

    Returns:
        `fad_paper_floor`, `fad_eval_floor` (5,120 training images); `test_fad_paper_256`, the test set in batches of
        256 against its own published statistics: below 0.001 where data, network and distance are the published ones.

    Raises:
        InputError: there is no reference for the data set, or one of both cannot be read.
    """
    reference, note = find_reference(name)
    if reference is None:
        raise InputError(note)
    test = data.load(name, "test", download=download).pixels
    check = fad(reference, test, 256)["fad_paper"]
    found = floors(reference, data.load(name, "train", download=download).pixels)
    return {"data": name, "real_images": GENERATED, "batch_size": BATCH, **found, "test_fad_paper_256": check}


def find_reference(name: str) -> tuple[Reference | None, str]:
    """The published feature network for `name`, or None and a line that says how to get it."""
    if name not in PUBLISHED:
        return None, f"no FAD: no feature network is published for {name}, only for {', '.join(PUBLISHED)}"
    files = " and ".join(PUBLISHED[name])
    folder = reference_folder()
    if folder is None:
        return None, f"no FAD: set ESVAE_FAD_DIR to the folder with the published {files}"
    if not any((folder / file).exists() for file in PUBLISHED[name]):
        return None, f"no FAD: ESVAE_FAD_DIR={folder} has no {files}"
    return load_reference(name), ""
