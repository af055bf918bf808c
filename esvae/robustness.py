"""Robustness of a spiking autoencoder against disturbed latent spikes (paper, sections II-B, IV-D; Table II, Fig. 5).

The spikes z of the posterior, (T, N, d), are disturbed and decoded, and the image is compared with the original and
with the vanilla reconstruction, that of the undisturbed z. The paper describes each disturbance in a sentence, so what
is done here is said with the figures (`PROTOCOL`):

    time_shuffle           the T time steps of an image in another order, the same one for all its latent neurons
    time_shuffle_neurons   an order of its own for every neuron: nothing but the firing rates is left
    length_shuffle         the d spike trains of an image in another order
    flips                  every spike flips with probability a: z becomes 1 - z
    noise                  with probability a Gaussian noise is added to a spike, and [z + n >= 1/2] is the new spike
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from esvae_kernels.ops.poisson.reference import uniforms

from . import data
from .arguments import integer
from .errors import InputError
from .evaluate import BATCH, SEED, Track, autocast, batch_at, device_of, untracked
from .models import Model, require
from .noise import Stream, normal

PROBABILITIES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5)  # a, the horizontal axis of Fig. 5
SEEDS = 3

PROTOCOL = {
    "time_shuffle": "one permutation of the time steps per image, the same for all its neurons; the paper does not say "
    "whether it draws one per run, image or neuron",
    "time_shuffle_neurons": "a permutation of the time steps per image and neuron, which leaves nothing but the firing "
    "rates",
    "length_shuffle": "one permutation of the neurons per image, the same at all time steps (Fig. 1)",
    "flips": "every latent spike flips with probability a",
    "noise": "with probability a, n ~ N(0, 1) is added to a latent spike and the sum is a spike again where it is at "
    "least 1/2, so that spikes disappear and appear as section IV-D says; the paper gives neither the standard "
    "deviation nor the threshold. This is the same as flipping with probability 0.309 a",
    "vanilla": "the reconstruction of the undisturbed spikes; `original` and `vanilla` are mean squared errors on the "
    "scale [-1, 1] against the original images and against it",
    "spread": "mean and standard deviation (n - 1) over the seeds; each draws its own spikes and disturbances",
}


@torch.no_grad()
def robustness(
    model: Model,
    images: data.ImageSet,
    *,
    probabilities: Sequence[float] = PROBABILITIES,
    seeds: int = SEEDS,
    seed: int = SEED,
    precision: str = "fp32",
    track: Track = untracked,
) -> dict[str, Any]:
    """Reconstruction errors of a spiking autoencoder whose latent spikes are disturbed.

    Noise is keyed by seed and the image's position in `images`, so that batches do not matter. It is the same for all
    probabilities of a curve: a spike that flips at a flips at every larger one.

    Args:
        model: with `latent_spikes` and `decode`.
        images: all of them are used.
        probabilities: a of `flips` and `noise`, each in (0, 1].
        seeds: how many, at least 2: `seed`, `seed + 1`, ..
        precision: "fp32" or "bf16".

    Returns:
        `data`, `images` (their number), `steps` (T), `seed`, `seeds`, `precision`, `device`, `batch_size`, `protocol`;
        `vanilla` with its error against the `original`, {"mean", "sd"}; `time_shuffle`, `time_shuffle_neurons` and
        `length_shuffle`, each with `original`, `vanilla` and `changed`, the share of the spikes that it changed; the
        curves `flips` and `noise`, lists of the same with `a`, from a = 0 (vanilla) on.

    Raises:
        InputError: the model has no spiking latent, an argument is not accepted, or an error is not finite.
    """
    require(model, "latent_spikes", "robustness")
    seeds, seed = check_arguments(probabilities, seeds, seed)
    model.eval()
    probabilities = sorted({float(a) for a in probabilities})
    device = device_of(model)
    sums: dict[tuple[str, float], list[list[float]]] = {}  # by disturbance and a: [original, vanilla, changed] per seed
    work = [(k, start) for k in range(seeds) for start in range(0, len(images), BATCH)]
    for k, start in track(work, description="disturbing", total=len(work)):
        originals, ids = batch_at(images, start, BATCH, device)
        with autocast(device, precision):
            z = model.latent_spikes(originals, seed=seed + k, sample_ids=ids)
            vanilla = model.decode(z).float()
        for key, disturbed in disturbances(z, ids, seed + k, probabilities):
            with autocast(device, precision):
                again = vanilla if disturbed is z else model.decode(disturbed).float()
            found = (_squares(again - originals), _squares(again - vanilla), float((disturbed != z).sum()))
            total = sums.setdefault(key, [[0.0] * 3 for _ in range(seeds)])[k]
            total[:] = [a + b for a, b in zip(total, found, strict=True)]
    pixels, spikes = images.pixels.numel(), z[:, 0].numel() * len(images)

    def entry(name: str, a: float = 0.0) -> dict[str, Any]:
        original, against, changed = zip(*sums[name, a], strict=True)
        result = {"original": _spread(original, pixels), "vanilla": _spread(against, pixels)}
        return result | {"changed": statistics.mean(changed) / spikes}

    vanilla_error = entry("vanilla")
    return {
        "data": images.name,
        "images": len(images),
        "steps": model.steps,
        "seed": seed,
        "seeds": seeds,
        "precision": precision,
        "device": device.type,
        "batch_size": BATCH,
        "protocol": PROTOCOL,
        "vanilla": {"original": vanilla_error["original"]},
        **{name: entry(name) for name in ("time_shuffle", "time_shuffle_neurons", "length_shuffle")},
        **{
            name: [{"a": 0.0, **vanilla_error}, *({"a": a, **entry(name, a)} for a in probabilities)]
            for name in ("flips", "noise")
        },
    }


def check_arguments(probabilities: Sequence[float], seeds: int, seed: int) -> tuple[int, int]:
    """Refuse what `robustness` would refuse, before a model is loaded; `seeds` and `seed` as ints.

    Raises:
        InputError: an argument is not accepted.
    """
    seeds = integer("seeds", seeds, 2, 1000)  # a spread needs two
    if not probabilities or not all(0 < a <= 1 for a in probabilities):
        got = ", ".join(f"{a:g}" for a in probabilities) or "none"
        raise InputError(f"probabilities: got {got}, accepted are numbers above 0 and at most 1")
    return seeds, integer("seed", seed, 0, 2**63 - 1)


def disturbances(
    z: Tensor, ids: Tensor, seed: int, probabilities: Sequence[float]
) -> Iterator[tuple[tuple[str, float], Tensor]]:
    """Latent spikes z (T, N, d) disturbed in each way, with its name and a; the first is z itself, "vanilla".

    `ids`: the images' positions (N,), which noise is keyed by; `probabilities`: a of `flips` and of `noise`.
    """
    steps, _, length = z.shape

    def drawn(stream: Stream, elements: int, times: int) -> Tensor:  # (times, N, elements), uniform in [0, 1)
        return uniforms(ids, elements, times, seed, torch.float32, stream)

    yield ("vanilla", 0.0), z
    order = drawn(Stream.TIME_SHUFFLE, 1, steps).argsort(dim=0, stable=True)
    yield ("time_shuffle", 0.0), z.gather(0, order.expand_as(z))
    order = drawn(Stream.TIME_SHUFFLE_NEURONS, length, steps).argsort(dim=0, stable=True)
    yield ("time_shuffle_neurons", 0.0), z.gather(0, order)
    order = drawn(Stream.LENGTH_SHUFFLE, length, 1).argsort(dim=2, stable=True)
    yield ("length_shuffle", 0.0), z.gather(2, order.expand_as(z))
    u = drawn(Stream.FLIPS, length, steps)
    for a in probabilities:
        yield ("flips", a), torch.where(u < a, 1 - z, z)
    u, n = drawn(Stream.NOISE, length, steps), normal(ids, steps * length, seed, Stream.NOISE_ADDED)
    noised = (z + n.unflatten(1, (steps, length)).transpose(0, 1) >= 0.5).to(z.dtype)
    for a in probabilities:
        yield ("noise", a), torch.where(u < a, noised, z)


def _squares(x: Tensor) -> float:
    return float(x.square().sum(dtype=torch.float64))


def _spread(totals: Sequence[float], count: int) -> dict[str, float]:
    means = [total / count for total in totals]
    if not all(map(math.isfinite, means)):
        raise InputError(f"mse: is {means[0]}; the model's weights give no images")
    return {"mean": statistics.mean(means), "sd": statistics.stdev(means)}
