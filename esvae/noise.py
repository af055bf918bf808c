"""Noise that is keyed by seed, stream and sample: the same for a sample wherever it stands in whichever batch.

Each thing that draws has a stream of the seed to itself. Nothing draws by `seed + 1`, which is somebody's seed. First
weights, the order of the images and the mixture's fit come from other generators, of torch, NumPy and scikit-learn.
"""

from __future__ import annotations

import math
from enum import IntEnum

import torch
from torch import Tensor

from esvae_kernels.ops.poisson.reference import uniforms

VERSION = 2  # of which stream is whose, as checkpoints say; up to 1 the spikes of a prior were drawn by seed + 1


class Stream(IntEnum):
    """Who draws from which stream of a seed (`stream` of `esvae_kernels.poisson`)."""

    POSTERIOR = 0  # spikes of the encoder's rates; FSVAE's J, the VAE's normal noise
    PRIOR = 1  # the noise that a bottleneck, mixture or decoder makes rates or images of
    PRIOR_SPIKES = 2  # spikes of the prior's rates; FSVAE's J
    SCHEDULE = 3  # which steps scheduled sampling replaces
    CRITIC_IMAGES = 4  # the noise through which a critic sees images,
    CRITIC_FAKES = 5  # and what the generator drew
    TIME_SHUFFLE = 6  # the disturbances of esvae/robustness.py, from here
    TIME_SHUFFLE_NEURONS = 7
    LENGTH_SHUFFLE = 8
    FLIPS = 9
    NOISE = 10  # which spikes are noisy,
    NOISE_ADDED = 11  # and the noise, to here
    PREDICTION = 1 << 16  # and those behind it: one for each time step that scheduled sampling predicts


def normal(sample_ids: Tensor, length: int, seed: int | Tensor, stream: int) -> Tensor:
    """Standard normal noise (N, length), fp32, from the sampler's uniforms by the inverse of the normal distribution
    function. `stream`: of `Stream`."""
    u = uniforms(sample_ids, length, 1, seed, torch.float64, stream)[0] + 2.0**-25  # in the open interval (0, 1)
    return (math.sqrt(2) * torch.erfinv(2 * u - 1)).float()
