"""The Frechet Autoencoder Distance: the distance itself, the files, the two modes, and the published figures."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from metric_helpers import assert_one_line, random_spd

from esvae.data import load, normalize
from esvae.errors import InputError
from esvae.metrics.fad import (
    FEATURES,
    PUBLISHED,
    FeatureNetwork,
    Reference,
    fad,
    features,
    floors,
    load_reference,
)
from esvae.metrics.frechet import feature_statistics, frechet_distance


def random_images(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (count, 1, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def network() -> FeatureNetwork:
    """Random weights, and running statistics that differ from any batch's own."""
    torch.manual_seed(0)
    network = FeatureNetwork()
    for stage in network.encoder:
        stage[1].running_mean.uniform_(-0.2, 0.2)
        stage[1].running_var.uniform_(0.5, 2)
    return network.eval()


@pytest.fixture
def folder(tmp_path: Path, network: FeatureNetwork) -> Path:
    """Files laid out like the published ones."""
    state = network.state_dict() | {"decoder_input.weight": torch.zeros(1024, 64), "decoder.0.0.bias": torch.zeros(128)}
    torch.save(state, tmp_path / "fashion_64.pth")
    mu, sigma = np.arange(FEATURES, dtype=np.float32), random_spd(FEATURES, 0).numpy()
    np.savez(tmp_path / "fashion_test_64.npz", mu=mu, sigma=sigma)
    return tmp_path


# The files


def test_reference_is_read_from_argument_and_environment(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ESVAE_FAD_DIR", raising=False)
    assert load_reference("fashion-mnist") is None
    by_argument = load_reference("fashion-mnist", folder)
    monkeypatch.setenv("ESVAE_FAD_DIR", str(folder))
    by_variable = load_reference("fashion-mnist")
    for reference in (by_argument, by_variable):
        assert reference.dataset == "fashion-mnist"
        assert reference.mu.dtype == reference.sigma.dtype == torch.float64
        assert torch.equal(reference.mu, torch.arange(FEATURES, dtype=torch.float64))
        assert torch.equal(reference.sigma, random_spd(FEATURES, 0))
        assert not reference.network.training
    assert load_reference("digits") is None


@pytest.mark.parametrize(("name", "stages"), [("mnist", 4), ("cifar10", 4), ("celeba", 5)])
def test_each_published_network_has_its_own_shape(tmp_path: Path, name: str, stages: int) -> None:
    """Files laid out like the published ones: 128 features of colour images, a fifth stage at 64x64."""
    known = PUBLISHED[name]
    network = FeatureNetwork(known.channels, known.size, known.features)
    assert len(network.encoder) == stages
    torch.save(network.state_dict(), tmp_path / known.weights)
    mu, sigma = np.arange(known.features, dtype=np.float32), random_spd(known.features, 0).numpy()
    np.savez(tmp_path / known.statistics, mu=mu, sigma=sigma)
    reference = load_reference(name, tmp_path)
    assert reference.network.image_shape == (known.channels, known.size, known.size)
    images = torch.randint(256, (known.features, *reference.network.image_shape), dtype=torch.uint8)
    assert fad(reference, images)["fad_eval"] > 0
    np.savez(tmp_path / known.statistics, mu=mu[1:], sigma=sigma[1:, 1:])
    with pytest.raises(InputError, match=rf"not a file of mu \({known.features},\)"):
        load_reference(name, tmp_path)


def test_network_is_read_exactly_and_decoder_ignored(folder: Path, network: FeatureNetwork) -> None:
    read = FeatureNetwork.from_file(folder / "fashion_64.pth").state_dict()
    assert read.keys() == network.state_dict().keys()
    assert all(torch.equal(read[key], value) for key, value in network.state_dict().items())


@pytest.mark.parametrize("name", ["fashion_64.pth", "fashion_test_64.npz"])
def test_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(InputError) as error:
        load_reference("fashion-mnist", folder)
    assert_one_line(error, folder / name, "no such file")


@pytest.mark.parametrize("name", ["fashion_64.pth", "fashion_test_64.npz"])
@pytest.mark.parametrize("kept", [0.0, 0.5, 0.99], ids=["empty", "half", "almost-whole"])
def test_truncated_file_is_named(folder: Path, name: str, kept: float) -> None:
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[: int(kept * len(data))])
    with pytest.raises(InputError) as error:
        load_reference("fashion-mnist", folder)
    assert_one_line(error, folder / name)


class Payload:
    """Runs code when unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return os.mkdir, (str(self.target),)


def test_pickled_code_is_not_run(folder: Path) -> None:
    path, trace = folder / "fashion_64.pth", folder / "trace"
    torch.save({"encoder.0.0.weight": Payload(trace)}, path)
    with pytest.raises(InputError) as error:
        FeatureNetwork.from_file(path)
    assert_one_line(error, path)
    path.write_bytes(pickle.dumps(Payload(trace)))
    with pytest.raises(InputError) as error:
        FeatureNetwork.from_file(path)
    assert_one_line(error, path)
    np.savez(folder / "fashion_test_64.npz", mu=np.array([Payload(trace)] * FEATURES), sigma=np.eye(FEATURES))
    torch.save(FeatureNetwork().state_dict(), path)
    with pytest.raises(InputError) as error:
        load_reference("fashion-mnist", folder)
    assert_one_line(error, "fashion_test_64.npz")
    assert not trace.exists()


@pytest.mark.parametrize(
    ("change", "word"),
    [
        pytest.param({"latent_layer.weight": torch.zeros(32, 1024)}, "latent_layer.weight", id="other-length"),
        pytest.param({"encoder.0.0.weight": torch.zeros(32, 3, 3, 3)}, "encoder.0.0.weight", id="three-channels"),
        pytest.param({"encoder.1.1.running_var": None}, "encoder.1.1.running_var", id="not-a-tensor"),
        pytest.param({"latent_layer.bias": torch.zeros(64).double()}, "latent_layer.bias", id="other-dtype"),
        pytest.param({"latent_layer.bias": torch.full((64,), torch.nan)}, "latent_layer.bias", id="nan"),
        pytest.param({"encoder.4.0.weight": torch.zeros(512, 256, 3, 3)}, "encoder.4.0.weight", id="deeper"),
    ],
)
def test_foreign_network_is_refused(
    folder: Path, network: FeatureNetwork, change: dict[str, object], word: str
) -> None:
    path = folder / "fashion_64.pth"
    torch.save(network.state_dict() | change, path)
    with pytest.raises(InputError) as error:
        FeatureNetwork.from_file(path)
    assert_one_line(error, path, word)


@pytest.mark.parametrize("content", [{}, {"net": {"a": torch.zeros(1)}}, [1, 2], torch.zeros(3)], ids=str)
def test_file_of_something_else_is_refused(tmp_path: Path, content: object) -> None:
    path = tmp_path / "fashion_64.pth"
    torch.save(content, path)
    with pytest.raises(InputError) as error:
        FeatureNetwork.from_file(path)
    assert_one_line(error, path)


def test_weights_with_a_compressed_entry_are_refused(folder: Path) -> None:
    path = folder / "fashion_64.pth"
    packed = folder / "packed.pth"
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(packed, "w") as target:
        for entry in source.infolist():
            kind = zipfile.ZIP_DEFLATED if entry.filename.endswith(".pkl") else zipfile.ZIP_STORED
            target.writestr(entry.filename, source.read(entry), kind)
    with pytest.raises(InputError) as error:
        FeatureNetwork.from_file(packed)
    assert_one_line(error, packed)


@pytest.mark.parametrize(
    "arrays",
    [
        pytest.param({"mu": np.zeros(64)}, id="no-sigma"),
        pytest.param({"mu": np.zeros(32), "sigma": np.eye(32)}, id="other-length"),
        pytest.param({"mu": np.zeros((64, 1)), "sigma": np.eye(64)}, id="mu-2d"),
        pytest.param({"mu": np.zeros(64, int), "sigma": np.eye(64)}, id="integers"),
        pytest.param({"mu": np.zeros(64), "sigma": np.eye(64) * np.nan}, id="nan"),
    ],
)
def test_foreign_statistics_are_refused(folder: Path, arrays: dict[str, np.ndarray]) -> None:
    path = folder / "fashion_test_64.npz"
    np.savez(path, **arrays)
    with pytest.raises(InputError) as error:
        load_reference("fashion-mnist", folder)
    assert_one_line(error, path, "(64, 64)")


def test_statistics_that_claim_a_huge_array_are_not_allocated(folder: Path) -> None:
    path = folder / "fashion_test_64.npz"
    with zipfile.ZipFile(path, "w") as archive, archive.open("mu.npy", "w") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f8", "fortran_order": False, "shape": (2**33,)})
    with pytest.raises(InputError) as error:
        load_reference("fashion-mnist", folder)
    assert_one_line(error, path, "ValueError")  # not MemoryError


# The two modes


def reference_forward(network: FeatureNetwork, images: torch.Tensor, training: bool) -> torch.Tensor:
    """The network written out with the definition of BatchNorm, in fp64."""
    x = images.double()
    for conv, norm, _ in network.encoder:
        x = torch.nn.functional.conv2d(x, conv.weight.double(), conv.bias.double(), stride=2, padding=1)
        mean = x.mean((0, 2, 3)) if training else norm.running_mean.double()
        var = x.var((0, 2, 3), correction=0) if training else norm.running_var.double()
        x = (x - mean[:, None, None]) / (var[:, None, None] + 1e-5).sqrt()
        x = x * norm.weight.double()[:, None, None] + norm.bias.double()[:, None, None]
        x = torch.where(x > 0, x, 0.01 * x)
    return x.flatten(1) @ network.latent_layer.weight.double().T + network.latent_layer.bias.double()


@pytest.mark.parametrize("mode", ["paper", "eval"])
def test_features_are_those_of_the_definition(network: FeatureNetwork, mode: str) -> None:
    batches = normalize(random_images(24)).split(10)
    found = features(network, batches, mode)
    with torch.no_grad():
        expected = torch.cat([reference_forward(network, batch, mode == "paper") for batch in batches])
    assert found.dtype == torch.float64
    assert not found.requires_grad
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_features_ignore_autocast(network: FeatureNetwork) -> None:
    batches = [normalize(random_images(8))]
    plain = features(network, batches, "eval")
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(features(network, batches, "eval"), plain)


@pytest.mark.parametrize("mode", ["paper", "eval"])
@pytest.mark.parametrize("training", [True, False], ids=["was-train", "was-eval"])
def test_features_leave_the_network_as_it_was(network: FeatureNetwork, mode: str, training: bool) -> None:
    network.train(training)
    network.encoder[2].train(not training)  # a part may be in another mode than the whole
    modes = [module.training for module in network.modules()]
    state = {key: value.clone() for key, value in network.state_dict().items()}
    features(network, [normalize(random_images(8))], mode)
    with pytest.raises(InputError):
        features(network, [torch.zeros(8, 1, 28, 28)], mode)
    assert [module.training for module in network.modules()] == modes
    assert all(torch.equal(network.state_dict()[key], value) for key, value in state.items())


@pytest.mark.parametrize(
    "images",
    [
        pytest.param(torch.zeros(8, 3, 32, 32), id="channels"),
        pytest.param(torch.zeros(8, 1, 28, 28), id="size"),
        pytest.param(torch.zeros(8, 32, 32), id="3d"),
        pytest.param(torch.zeros(8, 1, 32, 32, dtype=torch.int64), id="integers"),
        pytest.param(torch.full((8, 1, 32, 32), 255.0), id="scale"),
        pytest.param(torch.full((8, 1, 32, 32), torch.nan), id="nan"),
    ],
)
def test_images_that_do_not_fit_are_refused(network: FeatureNetwork, images: torch.Tensor) -> None:
    with pytest.raises(InputError) as error:
        features(network, [images], "eval")
    assert_one_line(error, "images:")


def test_single_image_has_no_batch_statistics(network: FeatureNetwork) -> None:
    batch = normalize(random_images(1))
    assert features(network, [batch], "eval").shape == (1, FEATURES)
    with pytest.raises(InputError, match="at least 2"):
        features(network, [batch], "paper")
    with pytest.raises(InputError, match="'train'"):
        features(network, [batch], "train")
    assert features(network, [], "paper").shape == (0, FEATURES)


# The metric


@pytest.fixture
def reference(network: FeatureNetwork) -> Reference:
    images = normalize(random_images(160, seed=7)).split(32)
    return Reference("noise", network, *feature_statistics(features(network, images, "paper")))


def test_fad_is_zero_for_the_images_behind_the_statistics(reference: Reference) -> None:
    pixels = random_images(160, seed=7)
    scores = fad(reference, pixels, batch_size=32)
    assert scores.keys() == {"fad_paper", "fad_eval"}
    assert scores["fad_paper"] < 1e-8
    mu, sigma = feature_statistics(features(reference.network, [normalize(pixels)], "eval"))
    assert scores["fad_eval"] == pytest.approx(frechet_distance(mu, sigma, reference.mu, reference.sigma), rel=1e-4)
    assert scores["fad_eval"] > 1e-3
    assert fad(reference, normalize(pixels), batch_size=32) == scores


@pytest.mark.parametrize(("count", "used_in_paper_mode"), [(96, 96), (97, 96), (98, 98)])
def test_last_batch_of_one_image_is_left_out_in_paper_mode(
    reference: Reference, count: int, used_in_paper_mode: int
) -> None:
    pixels = random_images(count, seed=8)
    scores = fad(reference, pixels, batch_size=32)
    batches = normalize(pixels[:used_in_paper_mode]).split(32)
    for mode, images in (("paper", batches), ("eval", normalize(pixels).split(32))):
        mu, sigma = feature_statistics(features(reference.network, images, mode))
        assert scores[f"fad_{mode}"] == frechet_distance(mu, sigma, reference.mu, reference.sigma)


def test_fad_refuses_too_few_images_and_too_small_batches(reference: Reference) -> None:
    with pytest.raises(InputError, match="64 are needed"):
        fad(reference, random_images(63))
    with pytest.raises(InputError, match="batch_size"):
        fad(reference, random_images(64), batch_size=1)


@pytest.mark.parametrize("pixels", [torch.zeros(5119, 1, 32, 32, dtype=torch.uint8), torch.zeros(5120, 1, 32, 32)])
def test_floors_refuse_too_few_or_normalized_images(reference: Reference, pixels: torch.Tensor) -> None:
    with pytest.raises(InputError) as error:
        floors(reference, pixels)
    assert_one_line(error, "train_pixels", "5120")


# The published figures (spec.md, section 4)


@pytest.fixture(scope="module")
def published() -> Reference:
    beside = Path(__file__).resolve().parents[2] / "shared" / "fad"
    folder = Path(os.environ.get("ESVAE_FAD_DIR") or beside)
    if not folder.is_dir():
        pytest.skip("the published feature networks are not here: ESVAE_FAD_DIR is not set, no ../shared/fad")
    return load_reference("fashion-mnist", folder)


def fashion(split: str) -> torch.Tensor:
    try:
        return load("fashion-mnist", split).pixels
    except InputError as error:
        pytest.skip(f"Fashion-MNIST is not here: {error}")


@pytest.fixture(scope="module")
def held_out_pixels() -> torch.Tensor:
    return fashion("test")


@pytest.fixture(scope="module")
def train_pixels() -> torch.Tensor:
    return fashion("train")


def score(reference: Reference, images: torch.Tensor, batch_size: int, mode: str) -> float:
    found = features(reference.network, images.split(batch_size), mode)
    return frechet_distance(*feature_statistics(found), reference.mu, reference.sigma)


def test_published_statistics_are_reproduced(published: Reference, held_out_pixels: torch.Tensor) -> None:
    assert score(published, normalize(held_out_pixels), 256, "paper") < 1e-3


def test_published_network_in_eval_mode(published: Reference, held_out_pixels: torch.Tensor) -> None:
    assert score(published, normalize(held_out_pixels), 256, "eval") == pytest.approx(0.427, abs=0.01)


def test_contrast_is_seen_in_eval_mode_alone(published: Reference, held_out_pixels: torch.Tensor) -> None:
    images = normalize(held_out_pixels[:5120]) * 0.5
    assert score(published, images, 128, "paper") == pytest.approx(0.30, abs=0.01)
    assert score(published, images[:1024], 128, "eval") > 100


def test_floors_of_the_first_training_images(published: Reference, train_pixels: torch.Tensor) -> None:
    found = floors(published, train_pixels)
    assert found == pytest.approx({"fad_paper_floor": 0.869, "fad_eval_floor": 1.315}, abs=0.01)


def test_floor_of_a_random_draw(published: Reference, train_pixels: torch.Tensor) -> None:
    draw = torch.randperm(len(train_pixels), generator=torch.Generator().manual_seed(0))[:5120]
    assert score(published, normalize(train_pixels[draw]), 128, "paper") == pytest.approx(0.755, abs=0.01)
