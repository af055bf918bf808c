"""Who draws from which stream of a seed: nothing that is drawn together is the same noise, or looks like it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import pytest
import torch
from model_helpers import random_images
from torch import Tensor

import esvae.models.fsvae
import esvae.models.poisson
import esvae.noise
from esvae import robustness
from esvae.models import MODELS, Model
from esvae.noise import Stream
from esvae_kernels import poisson
from esvae_kernels.ops.poisson.reference import uniforms

N, D, T = 64, 32, 8
SEEDS = range(5, 9)
IDS = torch.arange(N)


class Drawn(NamedTuple):
    """What was drawn by a call of the sampler or of its uniforms."""

    seed: int
    stream: int
    u: Tensor  # (T or 1, N, elements)


@contextmanager
def recorded() -> Iterator[list[Drawn]]:
    """All noise that the models and their disturbances draw meanwhile."""
    drawn: list[Drawn] = []

    def record_uniforms(ids: Tensor, elements: int, steps: int, seed: int, dtype: torch.dtype, stream: int = 0):
        drawn.append(Drawn(int(seed), int(stream), uniforms(ids, elements, steps, seed, torch.float64, stream)))
        return drawn[-1].u.to(dtype)

    def record_poisson(rate: Tensor, steps: int, *, seed: int, stream: int = 0, sample_ids: Tensor, **options):
        record_uniforms(sample_ids, rate.shape[1], steps, seed, torch.float64, stream)
        return poisson(rate, steps, seed=seed, stream=stream, sample_ids=sample_ids, **options)

    with pytest.MonkeyPatch.context() as patch:
        for module in (esvae.noise, esvae.models.fsvae, robustness):
            patch.setattr(module, "uniforms", record_uniforms)
        patch.setattr(esvae.models.poisson, "poisson", record_poisson)
        yield drawn


def model(kind: str) -> Model:
    torch.manual_seed(0)
    options = {} if kind == "vae" else {"steps": T}
    made = MODELS[kind](latent=D, **options | ({"prior": "mixture"} if kind == "esvae" else {})).eval()
    if kind == "esvae":
        made.mixture.fit(torch.rand(200, D), 0)
    return made


def generated(made: Model, seed: int) -> None:
    made.generate(N, seed=seed)


def reconstructed(made: Model, seed: int) -> None:
    if hasattr(made, "reconstruct"):
        made.reconstruct(random_images(N, 1, 32).float(), seed=seed, sample_ids=IDS)


def disturbed(made: Model, seed: int) -> None:
    if hasattr(made, "latent_spikes"):
        list(robustness.disturbances(torch.zeros(T, N, D), IDS, seed, (0.3,)))


def trained(made: Model, seed: int) -> None:
    if made.kind == "gan":  # tests/test_gan.py has its step
        return
    made.train()
    made(random_images(N, 1, 32).float(), seed=seed, progress=1.0)
    made.eval()


TOGETHER = {"analyses": (generated, reconstructed, disturbed), "a training step": (trained,)}


def noise_of(made: Model, seed: int, calls: tuple[Callable, ...]) -> list[Drawn]:
    with recorded() as drawn, torch.no_grad():
        for call in calls:
            call(made, seed)
    return drawn


@pytest.mark.parametrize("together", TOGETHER)
@pytest.mark.parametrize("kind", MODELS)
def test_nothing_is_drawn_twice(kind: str, together: str) -> None:
    """All by the seed that was given, each from a stream of its own."""
    drawn = noise_of(model(kind), 5, TOGETHER[together])
    assert drawn or (kind, together) == ("gan", "a training step")
    assert {d.seed for d in drawn} <= {5}
    streams = [d.stream for d in drawn]
    assert len(set(streams)) == len(streams)
    assert all(stream in set(Stream) or 0 <= stream - Stream.PREDICTION < T for stream in streams)


def standard_errors(a: Tensor, b: Tensor) -> float:
    """The largest correlation of a time step of a with one of b, (T, N, elements) each, in standard errors. Where
    there are more elements than in the other, the first."""
    elements = min(a.shape[2], b.shape[2])
    a, b = (x[:, :, :elements].flatten(1) for x in (a, b))
    a, b = ((x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True) for x in (a, b))
    return float((a @ b.T).abs().max() / a.shape[1] ** 0.5)


@pytest.mark.parametrize("kind", MODELS)
def test_noise_of_neighbouring_seeds_is_uncorrelated(kind: str) -> None:
    """Whatever a model draws for images and reconstructions by a seed, against all of it, and all by the next seeds.
    The prior's noise by seed 6 and its spikes by seed 5 once correlated by -.8, 36 of these standard errors."""
    made = model(kind)
    every = [d for seed in SEEDS for d in noise_of(made, seed, (generated, reconstructed, disturbed))]
    assert len(every) >= 4
    wide = [d.u for d in every if d.u.shape[2] >= D]
    for a, b in itertools.combinations(wide, 2):
        assert standard_errors(a, b) < 6


def test_streams_are_different_ones() -> None:
    assert len({stream.value for stream in Stream}) == len(Stream.__members__)  # an enum takes a value twice for a name
    assert max(Stream) == Stream.PREDICTION
    assert Stream.POSTERIOR == 0  # the sampler's own default: poisson(rates, T, seed=s) are the model's spikes
