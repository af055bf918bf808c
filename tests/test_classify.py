"""Classifiers on frozen rates: they learn what is in the rates, and nothing else."""

from __future__ import annotations

import json
import statistics
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from analysis_helpers import Encoderless, lively_model, one_line_error, saved
from torch import Tensor, nn

from esvae import classify, data
from esvae.cli import main
from esvae.errors import InputError


class Pixels(nn.Module):
    """An encoder whose rates are the images' own pixels."""

    kind, steps = "toy", 4

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def encode(self, images: Tensor) -> Tensor:
        return (images.flatten(1) + 1) / 2


def told(n: int, seed: int, known: bool = True) -> data.ImageSet:
    """Random images of 4x4 pixels in three classes; the first three pixels tell the class, if it can be known."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 100, (n, 1, 4, 4), generator=generator).byte()
    labels = torch.arange(n) % 3
    if known:
        pixels[torch.arange(n), 0, 0, labels] = 255
    return data.ImageSet("told", pixels, flip=False, labels=labels)


@pytest.fixture(scope="module")
def sets() -> dict[str, data.ImageSet]:
    return {"train": told(600, 0), "test": told(90, 1)}


@pytest.fixture(scope="module")
def found(sets: dict[str, data.ImageSet]) -> dict[str, Any]:
    return classify.classify(Pixels(), **sets, seeds=2, epochs=60)


def test_what_the_rates_tell_is_learnt(found: dict[str, Any]) -> None:
    assert found["classifier"]["accuracy"] == [100.0, 100.0]
    assert (found["classifier"]["mean"], found["classifier"]["sd"]) == (100, 0)
    assert found["linear_probe"] == {"accuracy": 100.0, "converged": True}
    assert found["majority"] == pytest.approx(100 / 3)


def test_what_the_rates_do_not_tell_is_not(sets: dict[str, data.ImageSet]) -> None:
    test = told(900, 1, known=False)
    result = classify.classify(Pixels(), told(900, 0, known=False), test, seeds=2, epochs=2)
    for accuracy in (*result["classifier"]["accuracy"], result["linear_probe"]["accuracy"]):
        assert 25 < accuracy < 42


def test_what_is_measured_with_is_said(found: dict[str, Any]) -> None:
    assert {key: found[key] for key in ("data", "train_images", "test_images", "classes", "latent", "steps")} == {
        "data": "told",
        "train_images": 600,
        "test_images": 90,
        "classes": 3,
        "latent": 16,
        "steps": 4,
    }
    assert found["classifier"]["layers"] == [16, 512, 256, 128, 3]
    assert [found["classifier"][key] for key in ("epochs", "lr", "batch_size")] == [60, 0.01, 128]


def test_seeds_spread_and_the_same_seed_gives_the_same(sets: dict[str, data.ImageSet]) -> None:
    small = {name: part.part(0, 60) for name, part in sets.items()}
    accuracies = []
    for seed in (5, 5, 6):
        state = torch.random.get_rng_state()
        result = classify.classify(Pixels(), **small, seeds=3, epochs=6, seed=seed)["classifier"]
        assert torch.equal(state, torch.random.get_rng_state())
        assert result["mean"] == pytest.approx(statistics.mean(result["accuracy"]))
        assert result["sd"] == pytest.approx(statistics.stdev(result["accuracy"]))
        accuracies.append(result["accuracy"])
    assert accuracies[0] == accuracies[1]
    assert accuracies[0][1:] == accuracies[2][:2]  # of seeds 6 and 7
    assert len(set(accuracies[0])) > 1


def test_training_is_sgd_as_written_out() -> None:
    rates, labels = torch.rand(8, 5), torch.arange(8) % 2
    trained = classify._train(rates, labels, 2, seed=1, epochs=3, track=lambda it, **_: it)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        sizes = (5, 512, 256, 128, 2)
        layers = [nn.Linear(a, b) for a, b in pairwise(sizes)]
    for _ in range(3):
        x = rates
        for layer in layers[:-1]:
            x = layer(x).relu()
        F.cross_entropy(layers[-1](x), labels).backward()
        with torch.no_grad():
            for layer in layers:
                for p in layer.parameters():
                    p -= 0.01 * p.grad
                    p.grad = None
    for ours, theirs in zip(trained[::2], layers, strict=True):
        torch.testing.assert_close(ours.weight, theirs.weight)


def test_rates_are_those_of_the_encoder_in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    images, model = data.load("digits", "test").part(0, 11), lively_model()
    with torch.no_grad():
        expected = model.encode(data.normalize(images.pixels))
    monkeypatch.setattr(classify, "BATCH", 4)
    found = classify._rates(model.train(), images, "fp32", lambda it, **_: it)
    assert not model.training
    assert found.shape == (11, 6)
    assert (found == expected).float().mean() > 0.95  # a potential at the threshold may round the other way


# --- mistakes and the command line -------------------------------------------------------------------------------


def relabelled(images: data.ImageSet, labels: Tensor | None) -> data.ImageSet:
    return data.ImageSet(images.name, images.pixels, images.flip, labels)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"seeds": 1}, "seeds: got 1, accepted are 2 to 10000"),
        ({"epochs": 0}, "epochs: got 0, accepted are 1 to 10000"),
        ({"test": relabelled(told(3, 0), None)}, "labels of told: got none, need one per image"),
        ({"train": relabelled(told(3, 0), torch.zeros(3).long())}, "labels of told: need two or more classes"),
        ({"test": relabelled(told(3, 0), torch.tensor([0, 1, 3]))}, "each of them in the training images"),
        ({"train": relabelled(told(3, 0), torch.tensor([0, 1, 3]))}, "each of them in the training images"),
    ],
    ids=["seeds", "epochs", "no-labels", "one-class", "unknown-class", "gap"],
)
def test_arguments_are_checked(sets: dict[str, data.ImageSet], changes: dict[str, Any], line: str) -> None:
    with pytest.raises(InputError, match=line):
        classify.classify(Pixels(), **sets | changes)


def test_a_model_without_encoder_is_refused(sets: dict[str, data.ImageSet]) -> None:
    with pytest.raises(InputError, match=r"kind: got 'toy', accepted by classify are esvae, fsvae, vae: "):
        classify.classify(Encoderless(), **sets)


def test_rates_that_are_not_finite_are_refused(sets: dict[str, data.ImageSet]) -> None:
    class Broken(Pixels):
        def encode(self, images: Tensor) -> Tensor:
            return super().encode(images) / 0

    with pytest.raises(InputError, match="rates: got values that are not finite"):
        classify.classify(Broken(), **sets)


def test_json_and_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = saved(tmp_path / "model")
    capsys.readouterr()
    arguments = ["classify", str(folder), "--data", "digits", "--seeds", "2", "--epochs", "1", "--steps", "1"]
    assert main([*arguments, "--json"]) == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    result = json.loads(out)
    assert result["weights"] == str(folder / "model.safetensors")
    assert (result["train_images"], result["test_images"], result["classes"]) == (1437, 360, 10)
    assert result["linear_probe"]["accuracy"] > result["majority"]
    assert main(arguments) == 0
    table = capsys.readouterr().out
    assert f"{result['classifier']['mean']:.2f} ± {result['classifier']['sd']:.2f}" in table
    assert f"{result['linear_probe']['accuracy']:.2f}" in table
    assert "6-512-256-128-10, 1 epochs, 2 seeds" in table


def test_mistakes_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    failed, folder = one_line_error(capsys), saved(tmp_path / "model")
    assert "data: got celeba, which has no labels, accepted are fashion-mnist, mnist, cifar10, digits" in failed(
        "classify", folder, "--data", "celeba"
    )
    assert "seeds: got 1" in failed("classify", folder, "--data", "digits", "--seeds", 1)
