"""Disturbed latent spikes: each disturbance does what it says, and the errors are those of the decoded images."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
from analysis_helpers import OPTIONS, Encoderless, lively_model, one_line_error, saved
from torch import Tensor, nn

from esvae import ESVAE, data, robustness
from esvae.cli import main
from esvae.errors import InputError
from esvae.robustness import PROBABILITIES, disturbances

T, N, D = 16, 9, 40
NAMES = ("vanilla", "time_shuffle", "time_shuffle_neurons", "length_shuffle")


class Rates(nn.Module):
    """A spiking autoencoder that can be computed by hand: the mean of 64 latent spikes over time is the 8x8 image."""

    kind, steps = "toy", 8

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def latent_spikes(self, images: Tensor, *, seed: int, sample_ids: Tensor) -> Tensor:
        u = robustness.uniforms(sample_ids, 64, self.steps, seed, torch.float32)
        return (u < images.flatten(1).abs()).float()

    def decode(self, spikes: Tensor) -> Tensor:
        return spikes.mean(0).view(-1, 1, 8, 8)


@pytest.fixture(scope="module")
def z() -> Tensor:
    return (torch.rand(T, N, D, generator=torch.Generator().manual_seed(0)) < 0.3).float()


def disturbed(z: Tensor, ids: Tensor, seed: int = 5) -> dict[tuple[str, float], Tensor]:
    return dict(disturbances(z, ids, seed, PROBABILITIES))


def rows_of(z: Tensor, image: int) -> list[tuple[float, ...]]:
    return [tuple(row.tolist()) for row in z[:, image]]


# --- disturbances ------------------------------------------------------------------------------------------------


def test_time_shuffle_moves_whole_time_steps(z: Tensor) -> None:
    found = disturbed(z, torch.arange(N))["time_shuffle", 0.0]
    moved = []
    for image in range(N):
        before, after = rows_of(z, image), rows_of(found, image)
        assert sorted(before) == sorted(after)
        moved.append([before.index(row) for row in after])
    assert len({tuple(order) for order in moved}) == N  # each image has its own order


def test_time_shuffle_of_neurons_keeps_their_rates_alone(z: Tensor) -> None:
    found = disturbed(z, torch.arange(N))["time_shuffle_neurons", 0.0]
    assert torch.equal(found.sum(0), z.sum(0))
    assert all(sorted(rows_of(found, i)) != sorted(rows_of(z, i)) for i in range(N))


def test_length_shuffle_moves_whole_spike_trains(z: Tensor) -> None:
    found = disturbed(z, torch.arange(N))["length_shuffle", 0.0]
    turned, before = found.transpose(0, 2), z.transpose(0, 2)
    assert all(sorted(rows_of(turned, i)) == sorted(rows_of(before, i)) for i in range(N))
    assert all(rows_of(turned, i) != rows_of(before, i) for i in range(N))


@pytest.mark.parametrize(("name", "share"), [("flips", 1.0), ("noise", 0.3085)])  # P(n >= 1/2) of N(0, 1)
def test_a_share_of_the_spikes_changes_and_of_larger_probabilities_more(name: str, share: float) -> None:
    z = (torch.rand(T, 100, D, generator=torch.Generator().manual_seed(1)) < 0.3).float()
    found = disturbed(z, torch.arange(100))
    before = torch.zeros_like(z, dtype=torch.bool)
    for a in PROBABILITIES:
        changed = found[name, a] != z
        assert ((found[name, a] == 0) | (found[name, a] == 1)).all()
        deviation = (a * share / z.numel()) ** 0.5
        assert changed.float().mean().item() == pytest.approx(a * share, abs=4 * deviation)
        assert (changed | ~before).all()  # those of the smaller probability among them
        before = changed
    for value in (0, 1):  # spikes disappear, and new ones appear
        assert before[z == value].float().mean().item() == pytest.approx(PROBABILITIES[-1] * share, rel=0.1)


def test_noise_belongs_to_the_image_the_seed_and_the_disturbance(z: Tensor) -> None:
    found, part = disturbed(z, torch.arange(N)), disturbed(z[:, 2:5], torch.arange(2, 5))
    other = disturbed(z, torch.arange(N), seed=6)
    for key in found:
        assert torch.equal(found[key][:, 2:5], part[key]), key
        if key[0] != "vanilla":
            assert not torch.equal(found[key], other[key]), key
    flipped, noised = (found[name, 0.5] != z for name in ("flips", "noise"))
    assert 0.1 < (flipped & noised).float().mean() / noised.float().mean() < 0.9


# --- errors ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def images() -> data.ImageSet:
    return data.load("digits", "test", size=8).part(0, 11)


def test_errors_of_a_model_that_can_be_computed_by_hand(images: data.ImageSet) -> None:
    found = robustness.robustness(Rates(), images, probabilities=(0.25, 1.0), seeds=2, seed=3)
    assert found["time_shuffle"]["vanilla"] == found["time_shuffle_neurons"]["vanilla"] == {"mean": 0, "sd": 0}
    assert found["time_shuffle"]["original"] == found["vanilla"]["original"]
    assert found["time_shuffle"]["changed"] > 0
    assert found["length_shuffle"]["vanilla"]["mean"] > 0.1
    errors, moved = [], []
    for seed in (3, 4):
        originals = data.normalize(images.pixels)
        rates = Rates().latent_spikes(originals, seed=seed, sample_ids=torch.arange(11)).mean(0).double()
        errors.append(float((rates.view_as(originals) - originals).square().mean()))
        moved.append(float((1 - 2 * rates).square().mean()))  # all spikes flipped: a rate r becomes 1 - r
    original = {"mean": pytest.approx(statistics.mean(errors)), "sd": pytest.approx(statistics.stdev(errors))}
    assert found["vanilla"]["original"] == original
    zero, quarter, one = found["flips"]
    assert zero == {"a": 0.0, "original": original, "vanilla": {"mean": 0, "sd": 0}, "changed": 0}
    assert (quarter["a"], one["a"], one["changed"]) == (0.25, 1.0, 1.0)
    assert one["vanilla"]["mean"] == pytest.approx(statistics.mean(moved))
    assert one["vanilla"]["sd"] == pytest.approx(statistics.stdev(moved))
    assert [entry["a"] for entry in found["noise"]] == [0.0, 0.25, 1.0]


def test_what_is_measured_with_is_said(images: data.ImageSet) -> None:
    found = robustness.robustness(Rates(), images, seeds=2)
    assert {key: found[key] for key in ("data", "images", "steps", "seed", "seeds", "precision", "batch_size")} == {
        "data": "digits",
        "images": 11,
        "steps": 8,
        "seed": 2024,
        "seeds": 2,
        "precision": "fp32",
        "batch_size": 128,
    }
    assert set(found["protocol"]) >= {*NAMES, "flips", "noise"}
    assert [entry["a"] for entry in found["flips"]] == [0.0, *PROBABILITIES]


def test_errors_of_the_model_are_those_of_its_decoded_images() -> None:
    images, model = data.load("digits", "test").part(0, 6), lively_model()
    found = robustness.robustness(model, images, probabilities=[0.2], seeds=2, seed=9)
    originals, errors = data.normalize(images.pixels), []
    with torch.no_grad():
        for seed in (9, 10):
            z = model.latent_spikes(originals, seed=seed, sample_ids=torch.arange(6))
            vanilla = model.reconstruct(originals, seed=seed, sample_ids=torch.arange(6))
            again = model.decode(disturbed(z, torch.arange(6), seed)["flips", 0.2])
            errors.append([float((again - other).square().mean()) for other in (originals, vanilla)])
    for key, values in zip(("original", "vanilla"), zip(*errors, strict=True), strict=True):
        assert found["flips"][1][key]["mean"] == pytest.approx(statistics.mean(values), rel=1e-5)
        assert found["flips"][1][key]["mean"] > 0


def test_batches_do_not_matter(images: data.ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = robustness.robustness(Rates(), images, seeds=2)
    monkeypatch.setattr(robustness, "BATCH", 4)
    parts = robustness.robustness(Rates(), images, seeds=2)
    for name in NAMES[1:]:
        for key in ("original", "vanilla"):
            assert parts[name][key]["mean"] == pytest.approx(whole[name][key]["mean"], rel=1e-6, abs=1e-12)
    assert parts["flips"][3]["changed"] == pytest.approx(whole["flips"][3]["changed"], rel=1e-12)


# --- mistakes and the command line -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"seeds": 1}, "seeds: got 1, accepted are 2 to 1000"),
        ({"probabilities": [0.1, 0.0]}, "probabilities: got 0.1, 0, accepted are numbers above 0 and at most 1"),
        ({"probabilities": [float("nan")]}, "probabilities: got"),
        ({"probabilities": []}, "probabilities: got"),
    ],
    ids=["seeds", "zero", "nan", "none"],
)
def test_arguments_are_checked(images: data.ImageSet, options: dict[str, Any], line: str) -> None:
    with pytest.raises(InputError, match=line):
        robustness.robustness(Rates(), images, **options)


def test_a_model_without_latent_spikes_is_refused(images: data.ImageSet) -> None:
    with pytest.raises(InputError, match=r"kind: got 'toy', accepted by robustness are esvae, fsvae: "):
        robustness.robustness(Encoderless(), images)


def test_weights_that_give_no_images_are_refused() -> None:
    model: ESVAE = lively_model()
    with torch.no_grad():
        model.to_image.bias.fill_(float("nan"))
    with pytest.raises(InputError, match="mse: is nan"):
        robustness.robustness(model, data.load("digits", "test").part(0, 2), probabilities=[0.5], seeds=2)


def test_json_and_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = saved(tmp_path / "model")
    capsys.readouterr()
    arguments = ["robustness", str(folder), "--data", "digits", "--n", "5", "--seeds", "2", "--a", "0.3", "0.1"]
    assert main([*arguments, "--json"]) == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    result = json.loads(out)
    expected = robustness.robustness(
        lively_model(), data.load("digits", "test").part(0, 5), probabilities=[0.1, 0.3], seeds=2
    )
    assert result == {"weights": str(folder / "model.safetensors")} | expected
    assert result["steps"] == OPTIONS["steps"]
    assert main(arguments) == 0
    table = capsys.readouterr().out
    assert sum(line.startswith(("│ flips", "│ noise")) for line in table.splitlines()) == 4
    assert all(name in table for name in NAMES)
    assert f"{result['length_shuffle']['vanilla']['mean']:.4f} ± " in table


def test_mistakes_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    failed, folder = one_line_error(capsys), saved(tmp_path / "model")
    assert "n: got 361, accepted is 1 to 360" in failed("robustness", folder, "--data", "digits", "--n", 361)
    assert "--a: got 1.5, accepted are numbers above 0 and at most 1" in failed(
        "robustness", folder, "--data", "digits", "--a", 1.5
    )
    assert "seeds: got 1" in failed("robustness", folder, "--data", "digits", "--n", 1, "--seeds", 1)
