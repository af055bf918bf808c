"""The feature network of our own: its training, what it is kept under, and what is done with a damaged one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
from metric_helpers import assert_one_line

from esvae import data
from esvae.errors import InputError
from esvae.metrics import own_features
from esvae.metrics.fad import distance, image_features
from esvae.metrics.frechet import feature_statistics
from esvae.metrics.own_features import Autoencoder, OwnReference, own_reference


@pytest.fixture(autouse=True)
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own, and a training of some steps."""
    monkeypatch.setenv("ESVAE_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(own_features, "STEPS", 3)
    return tmp_path / "cache" / "metrics"


@pytest.fixture(scope="module")
def sets() -> tuple[data.ImageSet, data.ImageSet]:
    train, test = (data.load("digits", split) for split in ("train", "test"))
    return dataclasses.replace(train, pixels=train.pixels[:256]), test


class Track:
    """Counts the steps of the trainings that it follows."""

    def __init__(self) -> None:
        self.trainings: list[int] = []

    def __call__(self, iterable: Iterable, description: str, total: int) -> Iterable:
        self.trainings.append(0)
        for item in iterable:
            self.trainings[-1] += 1
            yield item
        assert self.trainings[-1] == total


def weights(found: OwnReference) -> dict[str, torch.Tensor]:
    return found.reference.network.state_dict()


def test_features_come_from_an_autoencoder_that_has_learnt(
    sets: tuple[data.ImageSet, data.ImageSet], monkeypatch: pytest.MonkeyPatch
) -> None:
    train, test = sets
    monkeypatch.setattr(own_features, "STEPS", 40)
    found = own_reference(train, test, Track())
    pixels = data.normalize(test.pixels)
    spread = (pixels - data.normalize(train.pixels).mean(0)).square().mean().item()
    assert found.error < 0.85 * spread
    assert not found.reference.network.training
    features = image_features(found.reference.network, test.pixels)
    assert features.shape == (360, 64)
    mu, sigma = feature_statistics(features)
    assert torch.equal(mu, found.reference.mu)
    assert torch.equal(sigma, found.reference.sigma)
    distances = [distance(found.reference, images, "eval") for images in (test.pixels, train.pixels, pixels * 0)]
    assert distances[0] < 1e-8 < distances[1] < distances[2]


@pytest.mark.parametrize(("channels", "size", "features", "stages"), [(1, 32, 64, 4), (3, 64, 128, 5)])
def test_decoder_mirrors_the_encoder(channels: int, size: int, features: int, stages: int) -> None:
    model = Autoencoder(channels, size, features)
    images = torch.rand(2, channels, size, size)
    assert model(images).shape == images.shape
    assert model.encode(images).shape == (2, features)
    assert len(model.encode.encoder) == stages
    kernels = [tuple(p.shape) for name, p in model.decode.named_parameters() if p.ndim == 4]
    widths = [32 << stage for stage in range(stages)][::-1]
    assert kernels == [(i, o, 3, 3) for i, o in zip([*widths, 32], [*widths[1:], 32, channels], strict=True)]


def test_is_trained_once_and_found_again(sets: tuple[data.ImageSet, data.ImageSet]) -> None:
    track, before = Track(), torch.random.get_rng_state()
    first, again = (own_reference(*sets, track) for _ in range(2))
    assert track.trainings == [3]
    assert (first.weights, first.error) == (again.weights, again.error)
    assert all(torch.equal(weights(first)[name], tensor) for name, tensor in weights(again).items())
    assert torch.equal(torch.random.get_rng_state(), before)


def test_is_the_same_when_it_is_trained_again(
    sets: tuple[data.ImageSet, data.ImageSet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = own_reference(*sets, Track())
    monkeypatch.setenv("ESVAE_CACHE_DIR", str(tmp_path / "other"))
    torch.manual_seed(5)
    assert own_reference(*sets, Track()).weights == first.weights


@pytest.mark.few(2)
@pytest.mark.parametrize("change", ["pixel", "flip", "steps"])
def test_other_images_or_settings_are_another_network(
    sets: tuple[data.ImageSet, data.ImageSet], change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, test = sets
    own_reference(train, test, Track())
    if change == "pixel":
        pixels = train.pixels.clone()
        pixels[0, 0, 16, 16] ^= 255
        train = dataclasses.replace(train, pixels=pixels)
    elif change == "flip":
        train = dataclasses.replace(train, flip=True)
    else:
        monkeypatch.setattr(own_features, "STEPS", 4)
    track = Track()
    own_reference(train, test, track)
    assert len(track.trainings) == 1


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def turn_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)


@pytest.mark.few(2)
@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json"])
@pytest.mark.parametrize("damage", [cut, turn_a_bit, Path.unlink], ids=["cut", "bit", "gone"])
def test_a_damaged_one_is_trained_again(
    sets: tuple[data.ImageSet, data.ImageSet],
    small: Path,
    name: str,
    damage: Callable[[Path], None],
) -> None:
    first = own_reference(*sets, Track())
    (folder,) = small.iterdir()
    damage(folder / name)
    track = Track()
    assert own_reference(*sets, track).weights == first.weights
    assert track.trainings == [3]
    assert own_reference(*sets, track).weights == first.weights
    assert track.trainings == [3]


def test_a_cache_that_cannot_be_is_told_before_the_training(
    sets: tuple[data.ImageSet, data.ImageSet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("ESVAE_CACHE_DIR", str(tmp_path / "file"))
    track = Track()
    with pytest.raises(InputError) as error:
        own_reference(*sets, track)
    assert_one_line(error, tmp_path / "file", "set ESVAE_CACHE_DIR")
    assert track.trainings == []


def test_images_that_do_not_fit_are_refused(sets: tuple[data.ImageSet, data.ImageSet]) -> None:
    train, test = sets
    with pytest.raises(InputError) as error:
        own_reference(train, dataclasses.replace(test, pixels=test.pixels[:63]), Track())
    assert_one_line(error, "no fad_own", "63 test images", "64")
    with pytest.raises(InputError) as error:
        own_reference(train, data.load("digits", "test", size=64), Track())
    assert_one_line(error, "no fad_own", "(1, 32, 32) and (1, 64, 64)")
    with pytest.raises(InputError) as error:
        own_reference(*(data.load("digits", split, size=8) for split in ("train", "test")), Track())
    assert_one_line(error, "no fad_own", "32x32 or 64x64")
