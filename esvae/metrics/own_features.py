"""A feature network of our own, for data sets without a published one: `fad_own`, never to be set beside Table I.

An autoencoder of the published architecture (the feature encoder of `esvae.metrics.fad`, and its mirror), trained on
the training images for the mean squared error; 64 features for grey images, 128 for colour ones, as published. It
depends on the images, a seed and the machine alone, and is kept in ESVAE_CACHE_DIR. Distances can be compared where
`weights` is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice, pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from esvae import data
from esvae.errors import InputError
from esvae.metrics import cache
from esvae.metrics.fad import FeatureNetwork, Reference, image_features, load_exactly
from esvae.metrics.frechet import feature_statistics

STEPS = 3000  # at most: some minutes on two cores at 32x32
EPOCHS = 100  # at most
BATCH = 64
LR = 3e-3
SEED = 0


class OwnReference(NamedTuple):
    """What `fad_own` compares with."""

    reference: Reference  # the network, on the CPU; statistics of the test images with running batch statistics
    weights: str  # which network it is: the start of its SHA-256
    error: float  # mean squared error of the autoencoder on the test images, scale [-1, 1]


class Autoencoder(nn.Module):
    """The feature network, and a decoder that mirrors it: Linear, transposed convolutions 3x3 of stride 2, one of 1."""

    def __init__(self, channels: int, size: int, features: int) -> None:
        super().__init__()
        self.encode = FeatureNetwork(channels, size, features)
        widths = (*self.encode.widths[::-1], self.encode.widths[0])
        self.decode = nn.Sequential(
            nn.Linear(features, widths[0] * 4),
            nn.Unflatten(1, (widths[0], 2, 2)),
            *(_upsample(i, o) for i, o in pairwise(widths)),
            nn.ConvTranspose2d(widths[-1], channels, 3, padding=1),
            nn.Tanh(),
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.decode(self.encode(images))


def _upsample(inputs: int, outputs: int) -> nn.Sequential:
    conv = nn.ConvTranspose2d(inputs, outputs, 3, stride=2, padding=1, output_padding=1)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.LeakyReLU(0.01))


def own_reference(
    train: data.ImageSet,
    test: data.ImageSet,
    track: Callable[..., Iterable],
    device: str | torch.device = "cpu",
) -> OwnReference:
    """The network for a data set, trained now unless it is in the cache, and the statistics of its test images.

    Args:
        train, test: uint8 images of one shape, 32x32 or 64x64; at least as many test images as features.
        track: shows the progress of the training, as `rich.progress.track`.
        device: where to train.

    Raises:
        InputError: the images are too few or of another size, or the cache cannot be written.
    """
    channels, size = train.pixels.shape[1:3]
    features = 64 if channels == 1 else 128
    if train.pixels.shape[1:] != test.pixels.shape[1:] or size not in (32, 64):
        got = f"{tuple(train.pixels.shape[1:])} and {tuple(test.pixels.shape[1:])}"
        raise InputError(f"no fad_own: got training and test images of {got}, accepted are 32x32 or 64x64, all alike")
    if len(test) < features or len(train) < 2:
        raise InputError(
            f"no fad_own: {len(train)} training and {len(test)} test images of {test.name}, needed are at least 2 and "
            f"{features}, the number of features"
        )
    batch = min(BATCH, len(train))
    steps = min(STEPS, EPOCHS * data.batch_count(len(train), batch))
    identity = {
        "kind": "features",
        "version": 1,
        "images": cache.digest([train.pixels]),
        "flip": train.flip,
        "network": [channels, size, features],
        "training": {"steps": steps, "batch": batch, "lr": LR, "seed": SEED},
    }
    found = cache.read(identity)
    if found:
        tensors = found[0]
    else:
        cache.require_writable(identity)
        tensors = _train(train, channels, features, batch, steps, track, torch.device(device)).cpu().state_dict()
        cache.write(identity, tensors)
    # A fresh one either way: a trained one has another memory layout, and rounds differently.
    with torch.device("meta"):
        model = Autoencoder(channels, size, features)
    load_exactly(model, tensors, "the cached feature network")
    model.eval()
    network = model.encode
    statistics = feature_statistics(image_features(network, test.pixels))
    weights = cache.digest(network.state_dict().values())[:16]
    return OwnReference(Reference(test.name, network, *statistics), weights, _error(model, test))


def _train(
    images: data.ImageSet,
    channels: int,
    features: int,
    batch: int,
    steps: int,
    track: Callable[..., Iterable],
    device: torch.device,
) -> Autoencoder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = Autoencoder(channels, images.pixels.shape[2], features)
    model = model.to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=steps)
    batches = (
        some for epoch in range(EPOCHS) for some in data.batches(images, batch, seed=SEED, epoch=epoch, device=device)
    )
    for some in track(islice(batches, steps), description="training a feature network", total=steps):
        loss = F.mse_loss(model(some), some)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model


@torch.no_grad()
def _error(model: Autoencoder, test: data.ImageSet) -> float:
    total = 0.0
    for images in data.ordered_batches(test, BATCH):
        total += float((model(images) - images).square().sum(dtype=torch.float64))
    return total / test.pixels.numel()
