"""The model that comes along: what its card says is what was measured, by its name every command takes it."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from esvae import ESVAE, data, pretrained
from esvae.cli import main
from esvae.config import preset
from esvae.errors import InputError
from esvae.evaluate import mean_squared_error
from esvae.generate import load_model, run_config
from esvae.metrics.cache import digest
from esvae.runs import Run

sys.path.append(str(Path(__file__).resolve().parent.parent / "bench"))
import ship

NAME = "fashion-mnist"
FOLDER = pretrained.FOLDER / NAME


@pytest.fixture(scope="module")
def found() -> dict:
    return json.loads((FOLDER / ship.EVALUATION).read_text())


@pytest.fixture(scope="module")
def model() -> ESVAE:
    return ESVAE.from_pretrained(NAME)


def test_it_is_the_preset(model: ESVAE, found: dict) -> None:
    assert pretrained.names() == [NAME]
    config = run_config(Run.open(FOLDER))
    least = {"min_steps": 0}  # which it was trained before; 60,000 images take more steps anyway
    today = preset("best", NAME)
    assert config == dataclasses.replace(today, train=dataclasses.replace(today.train, **least))
    assert model.config == config.model
    assert not model.training
    assert model.mixture.fitted
    assert sum(p.numel() for p in model.parameters()) == found["parameters"] <= 1_070_000
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) < 8e6


def test_the_card_is_what_was_measured_on_these_weights(model: ESVAE, found: dict) -> None:
    assert digest(tensor for _, tensor in sorted(model.state_dict().items())) == found["weights"]
    assert (FOLDER / "model" / "README.md").read_text() == ship.card(found, Run.open(FOLDER))


def test_the_test_images_that_come_along(tmp_path: Path) -> None:
    """They are those of the data set, byte for byte, with their licence; a damaged file is one line."""
    images = pretrained.test_images(NAME)
    assert (images.shape, images.dtype) == ((ship.TEST_IMAGES, 28, 28), np.uint8)
    assert (FOLDER / pretrained.TEST_IMAGES).stat().st_size < 30_000
    assert "Copyright (c) 2017 Zalando SE" in (FOLDER / ship.NOTICE).read_text() == ship.LICENCE
    try:
        expected = data.load(NAME, "test", size=28).pixels[: ship.TEST_IMAGES, 0]
    except InputError as error:
        pytest.skip(f"no Fashion-MNIST here: {error}")
    assert np.array_equal(images, expected)
    ship.write_test_images(NAME, tmp_path)
    assert np.array_equal(Image.open(tmp_path / pretrained.TEST_IMAGES), Image.open(FOLDER / pretrained.TEST_IMAGES))


@pytest.mark.parametrize("content", [None, b"", b"GIF89a", (FOLDER / pretrained.TEST_IMAGES).read_bytes()[:5000]])
def test_damaged_test_images(content: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrained, "FOLDER", tmp_path)
    (tmp_path / NAME).mkdir()
    if content is not None:
        (tmp_path / NAME / pretrained.TEST_IMAGES).write_bytes(content)
    with pytest.raises(InputError, match=r"test-images\.png: cannot be read"):
        pretrained.test_images(NAME)


def test_the_readme_has_what_was_measured(found: dict) -> None:
    """Its table: the paper's prior beside the published figure, the energy without and with the neurons' updates."""
    text = (Path(__file__).parents[1] / "README.md").read_text()
    rows = {
        line.split("|")[1].strip(): line.split("|")[2].strip() for line in text.splitlines() if line.startswith("| ")
    }
    by_prior = found["evaluate"]
    assert rows["FAD_paper, generated, the paper's bottleneck prior"] == f"{by_prior['bottleneck']['fad_paper']:.1f}"
    assert rows["FAD_paper, generated, mixture prior"] == f"{by_prior['mixture']['fad_paper']:.2f}"
    lines = text.splitlines()
    for name, part in (("generated", "generate"), ("encoded", "encode")):
        spent = found["energy"][part]
        at = next(i for i, line in enumerate(lines) if line.startswith(f"| energy per {name} image, synapses alone"))
        for line, energy, ratio in (
            (lines[at], spent["energy_uj"], spent["energy_ratio"]),
            (lines[at + 1], spent["energy_uj"] + spent["neuron_updates_uj"], spent["energy_ratio_with_updates"]),
        ):
            assert f" {energy:.1f} µJ, {ratio:.2f} of the ANN twin's".replace(" 0.", " .") in line
    assert "Table I has not been reproduced" in text


def test_it_is_better_than_the_published_one(found: dict) -> None:
    measured = found["evaluate"]["mixture"]
    assert (measured["images"], measured["generated"], measured["steps"]) == (10_000, 5120, 8)
    assert measured["mse"] <= 0.019
    assert measured["fad_paper"] <= 11.13
    assert all(found["energy"][part]["energy_ratio"] < 1 for part in ("encode", "generate"))


def test_the_figures_are_those_of_the_weights(model: ESVAE, found: dict) -> None:
    try:
        images = data.load(NAME, "test")
    except InputError as error:
        pytest.skip(f"no Fashion-MNIST here: {error}")
    with torch.no_grad():
        error = mean_squared_error(model, images.part(0, 512))
    assert error == pytest.approx(found["evaluate"]["mixture"]["mse"], rel=0.1)


def test_by_its_name(tmp_path: Path, model: ESVAE, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["generate", NAME, "--n", "4", "--out", "four.npz"]) == 0
    with torch.no_grad():
        expected = data.to_uint8(model.generate(4, seed=0)).numpy()
    assert np.array_equal(np.load("four.npz")["images"], expected)
    loaded = load_model(NAME)
    assert (loaded.data, loaded.notes) == (NAME, [])


def test_a_folder_of_that_name_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    ESVAE(latent=4, steps=2).save_pretrained(NAME)
    assert ESVAE.from_pretrained(NAME).config.latent == 4
    assert load_model(NAME).model.config.latent == 4
    assert main(["generate", "fashion", "--out", "x.png"]) == 2
    assert "or the name of a model that comes with esvae (fashion-mnist) is expected" in capsys.readouterr().err


def test_the_report_of_it_is_written_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And what is measured is kept in the cache: the package's folder is not ours to write in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ESVAE_CACHE_DIR", str(tmp_path / "cache"))
    images = tmp_path / "images"
    for split in ("train", "test"):
        (images / split).mkdir(parents=True)
        for k in range(3):
            Image.fromarray(np.full((32, 32), 40 * k, np.uint8)).save(images / split / f"{k}.png")
    before = sorted(FOLDER.rglob("*"))
    assert main(["report", "table3", NAME, "--data", f"folder:{images}", "--images", "2"]) == 0
    files = ("table3.md", "table3.json", "table3.html")
    assert capsys.readouterr().out.split() == [f"report/{name}" for name in files]
    assert (tmp_path / "cache" / "report" / NAME / "energy.json").is_file()
    assert sorted(FOLDER.rglob("*")) == before


def test_a_run_is_copied_without_what_it_can_do_without(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", preset("best", NAME).to_dict())
    for step in range(100, 1500, 100):
        run.log({"step": step, **({"test_mse": 0.1} if step == 1400 else {})})
    model = run.folder / "model"
    model.mkdir()
    for name in ("model.safetensors", "config.json", "README.md"):
        (model / name).touch()
    copy = ship.copy(run.folder, tmp_path / "copy")
    assert [record["step"] for record in copy.metrics()] == [500, 1000, 1400]
    assert sorted(p.name for p in (tmp_path / "copy").rglob("*") if p.is_file()) == [
        *("config.json", "config.json", "metrics.jsonl", "model.safetensors")
    ]


def test_another_run_is_not_shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Run.create(tmp_path / "run", preset("paper", NAME).to_dict())
    monkeypatch.setattr(sys, "argv", ["ship.py", str(tmp_path / "run"), "--machine", "this one"])
    with pytest.raises(SystemExit, match="not the preset 'best'"):
        ship.main()
