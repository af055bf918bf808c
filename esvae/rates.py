"""Firing rates of the latent spikes: of the posterior, z_p of test images, and of the prior, z_q of drawn ones (paper,
section IV-G, Fig. 4, 6 and 7). Where the two are alike, the decoder is given in generation what it was trained on.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import data, distributed
from .arguments import integer
from .evaluate import BATCH, SEED, Track, autocast, batch_at, device_of, untracked
from .models import Model, require


def rate_histograms(
    model: Model, images: data.ImageSet, *, prior: str, precision: str = "fp32", seed: int = SEED
) -> dict[str, list[int]]:
    """How many (image, neuron) pairs fire how often, and as many drawn ones; the ranks of `torchrun` share the work.

    Returns:
        `rate_histogram` and `prior_rate_histogram`, T + 1 counts each: of the rates 0, 1/T, .., 1.
    """
    starts = range(0, len(images), BATCH)
    found = distributed.share(
        starts, lambda start: [_histogram(z) for z in _spikes(model, images, start, prior, precision, seed)]
    )
    posterior, drawn = (torch.stack(parts).sum(0).tolist() for parts in zip(*found, strict=True))
    return {"rate_histogram": posterior, "prior_rate_histogram": drawn}


def rates(
    model: Model,
    images: data.ImageSet,
    *,
    prior: str,
    precision: str = "fp32",
    seed: int = SEED,
    track: Track = untracked,
) -> dict[str, Any]:
    """The firing rates of a spiking autoencoder's latent, and one image's spikes to look at.

    Args:
        model: with `latent_spikes`.
        images: all of them are used, and as many are drawn.
        prior: which of the model's to draw from.
        precision: "fp32" or "bf16".

    Returns:
        `data`, `images` (their number), `latent` (d), `steps` (T), `prior`, `seed`, `precision`; `posterior` and
        `prior_draws`, each with `histogram` (T + 1 counts of the rates 0, 1/T, .., 1 over all images and neurons),
        `means` (d, over the images), and of the first image `single` (d rates) and `raster` (T strings of d spikes,
        "0" or "1").

    Raises:
        InputError: the model has no spiking latent.
    """
    require(model, "latent_spikes", "the rates of the latent spikes")
    seed = integer("seed", seed, 0, 2**63 - 1)
    model.eval()
    steps, length = model.steps, model.config.latent
    names = ("posterior", "prior_draws")
    histograms = {name: torch.zeros(steps + 1, dtype=torch.int64) for name in names}
    sums = {name: torch.zeros(length, dtype=torch.int64) for name in names}
    shown: dict[str, Tensor] = {}
    starts = range(0, len(images), BATCH)
    for start in track(starts, description="rates", total=len(starts)):
        for name, z in zip(names, _spikes(model, images, start, prior, precision, seed), strict=True):
            histograms[name] += _histogram(z)
            sums[name] += z.sum((0, 1), dtype=torch.int64).cpu()
            shown.setdefault(name, z[:, 0].to("cpu", torch.int64))
    return {
        "data": images.name,
        "images": len(images),
        "latent": length,
        "steps": steps,
        "prior": prior,
        "seed": seed,
        "precision": precision,
        **{
            name: {
                "histogram": histograms[name].tolist(),
                "means": (sums[name].double() / (steps * len(images))).tolist(),
                "single": shown[name].double().mean(0).tolist(),
                "raster": ["".join(map(str, row)) for row in shown[name].tolist()],
            }
            for name in names
        },
    }


@torch.no_grad()
def _spikes(
    model: Model, images: data.ImageSet, start: int, prior: str, precision: str, seed: int
) -> tuple[Tensor, Tensor]:
    """z_p of a batch of images that begins at `start`, and z_q of the drawn images of these numbers, (T, N, d)."""
    device = device_of(model)
    batch, ids = batch_at(images, start, BATCH, device)
    with autocast(device, precision):
        posterior = model.latent_spikes(batch, seed=seed, sample_ids=ids)
        return posterior, model.prior_spikes(len(batch), seed=seed, start=start, prior=prior)


def _histogram(z: Tensor) -> Tensor:
    """Spikes (T, N, d) -> how many of the N d neurons have 0, 1, .., T spikes."""
    return torch.bincount(z.sum(0, dtype=torch.int64).flatten(), minlength=len(z) + 1).cpu()
