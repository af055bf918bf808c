"""Every kind of model, and every readout and attention: interrupted, saved, loaded, evaluated, refused."""

from __future__ import annotations

import dataclasses
import json
import shutil
from functools import partialmethod
from pathlib import Path

import pytest
import torch
from kinds import CASES, STEPS_PER_EPOCH, config_of, digits
from training_helpers import assert_same, stop_at_call

from esvae import ESVAE, data, train
from esvae.cli import main
from esvae.cli.commands import metrics_table
from esvae.config import PRESETS, preset
from esvae.errors import InputError
from esvae.evaluate import GENERATED
from esvae.generate import choose_prior, load_model
from esvae.metrics import fad
from esvae.models import MODELS
from esvae.models.backbone import Backbone, SpikingDecoder
from esvae.runs import Run
from esvae_kernels.nn import BNLIF

every = pytest.mark.parametrize("case", CASES)
LIKE_OTHERS = ("fsvae", "esvae-learnt-pfa")  # what an interruption finds in them, it finds in others too


@pytest.fixture(scope="module")
def sets() -> dict[str, data.ImageSet]:
    return digits()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, sets: dict[str, data.ImageSet]) -> dict[str, Run]:
    """A finished run of each, made when it is first asked for."""

    class Runs(dict):
        def __missing__(self, case: str) -> Run:
            self[case] = go(tmp_path_factory.mktemp(case) / "run", sets, case)
            return self[case]

    return Runs()


def go(folder: Path, sets: dict[str, data.ImageSet], case: str, resume: bool = False) -> Run:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "LOG_EVERY", 2)
        # tdBN takes over the statistics of each batch at once: after some steps at the usual momentum no neuron fires
        patch.setattr(BNLIF, "__init__", partialmethod(BNLIF.__init__, momentum=1.0))
        patch.setattr(train.figures, "learning_curve", lambda records, path, **about: None)
        return train.train(config_of(case), folder, sets=sets, resume=resume, checkpoint_minutes=0, progress=False)


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[pytest.mark.slow] * (case in LIKE_OTHERS)) for case in CASES]
)
def test_interrupted_run_is_the_undisturbed_one(
    case: str, runs: dict[str, Run], sets: dict[str, data.ImageSet], tmp_path: Path
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train.Trainer, "_step", stop_at_call(STEPS_PER_EPOCH + 2, train.Trainer._step))
        with pytest.raises(KeyboardInterrupt):
            go(tmp_path / "run", sets, case)
    torch.manual_seed(1234)
    assert_same(go(tmp_path / "run", sets, case, resume=True), runs[case])


@pytest.mark.parametrize("resolved", ["fp32", "bf16"])
def test_records_say_what_the_precision_auto_was(
    resolved: str, sets: dict[str, data.ImageSet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "resolve_precision", lambda name, device: resolved if name == "auto" else name)
    run = train.train(config_of("vae", epochs=1, precision="auto"), tmp_path / "run", sets=sets, progress=False)
    assert run.config["train"]["precision"] == "auto"
    assert {record["precision"] for record in run.metrics()} == {resolved}


@every
def test_a_run_leaves_pictures_records_and_the_model(case: str, runs: dict[str, Run]) -> None:
    run = runs[case]
    encodes = case.partition("-")[0] != "gan"
    kinds = ("samples", "reconstructions") if encodes else ("samples",)
    assert {p.name for p in run.images.iterdir()} == {f"{k}-epoch-00{e}.png" for k in kinds for e in (1, 2)}
    records = run.metrics()
    assert [r["step"] for r in records if "loss" in r] == [2, 3, 4, 6]
    assert [r["step"] for r in records if "test_mse" in r] == ([3, 6] if encodes else [])
    expected = {
        "vae": {"mse", "kl"},
        "fsvae-kl-taid-pfa": {"mse", "kl", "rate"},
        "gan": {"generator_loss", "critic_gradient_norm"},
    }.get(case, {"mse", "mmd", "rate"})
    common = {"step", "images", "seconds", "precision", "epoch", "steps", "lr", "loss", "gradient_norm"}
    assert records[0].keys() == expected | common
    average = run.load()[0]["average"]
    for name, tensor in load_model(run.folder).model.state_dict().items():
        assert torch.equal(tensor, average[name]), name


@every
def test_saved_and_loaded_by_kind(case: str, runs: dict[str, Run], tmp_path: Path) -> None:
    model = load_model(runs[case].folder).model
    assert type(model) is MODELS[model.kind]
    model.save_pretrained(tmp_path / "model")
    again = type(model).from_pretrained(str(tmp_path / "model"))
    assert again.config == model.config
    with torch.no_grad():
        assert torch.equal(again.generate(3, seed=1), model.generate(3, seed=1))
    if model.kind != "esvae":
        with pytest.raises(InputError, match=f"kind: got '{model.kind}', accepted by ESVAE is 'esvae'"):
            ESVAE.from_pretrained(str(tmp_path / "model"))


@every
def test_generation_is_keyed_by_seed_and_number(case: str, runs: dict[str, Run]) -> None:
    model = load_model(runs[case].folder).model
    prior, notes = choose_prior(model, None)
    assert (prior, notes) == (model.default_prior, [])
    with torch.no_grad():
        whole = model.generate(4, seed=3, prior=prior)
        assert whole.shape == (4, 1, 32, 32)
        assert whole.abs().max() <= 1
        torch.testing.assert_close(model.generate(2, seed=3, start=2), whole[2:], rtol=0, atol=1e-5)
        torch.testing.assert_close(model.generate(2, seed=3, start=torch.tensor([2])), whole[2:], rtol=0, atol=1e-5)
        assert not torch.allclose(model.generate(4, seed=4), whole)
    with pytest.raises(InputError, match="prior: got 'mixture', accepted are "):
        model.generate(2, seed=0, prior="mixture")


@every
def test_evaluate(case: str, runs: dict[str, Run], capsys: pytest.CaptureFixture[str]) -> None:
    model = load_model(runs[case].folder).model
    if model.kind == "gan":  # whose table was an empty one
        assert main(["evaluate", str(runs[case].folder)]) == 2
        out, err = capsys.readouterr()
        assert (out, err.count("\n")) == ("", 1)
        assert "esvae: error: no FAD: no feature network is published for digits" in err
        assert "; no FID, no Inception Score: set ESVAE_INCEPTION" in err
        return
    assert main(["evaluate", str(runs[case].folder), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["prior"], result["steps"], result["images"]) == (model.default_prior, model.steps, 360)
    assert "mse" in result
    rows = [str(cell) for cell in metrics_table(result).columns[0].cells]
    assert rows == ["mean squared error of 360 test images"]


@every
def test_generate_and_reconstruct(
    case: str, runs: dict[str, Run], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(runs[case].folder)
    assert main(["generate", run, "--n", "4", "--out", str(tmp_path / "s.png")]) == 0
    code = main(["reconstruct", run, "--n", "4", "--out", str(tmp_path / "r.png")])
    assert (tmp_path / "s.png").exists()
    if not case.startswith("gan"):
        assert code == 0
        return
    assert code == 2
    line = "kind: got 'gan', accepted by reconstruct are esvae, fsvae, vae: the others have no 'reconstruct'"
    assert line in capsys.readouterr().err
    assert not (tmp_path / "r.png").exists()


def test_unfinished_run_is_loaded_from_its_checkpoint(runs: dict[str, Run], tmp_path: Path) -> None:
    for case in ("fsvae", "vae", "gan"):
        shutil.copytree(runs[case].folder, tmp_path / case)
        shutil.rmtree(tmp_path / case / "model")
        loaded = load_model(tmp_path / case)
        assert "has not ended" in loaded.notes[0]
        with torch.no_grad():
            expected = load_model(runs[case].folder).model.generate(2, seed=0)
            assert torch.equal(loaded.model.generate(2, seed=0), expected)


@pytest.mark.parametrize("name", PRESETS)
def test_what_a_kind_can_do(name: str) -> None:
    """The interface that analyses build on."""
    config = preset(name, "digits").model
    model = MODELS[config.kind](**dataclasses.asdict(dataclasses.replace(config, latent=3)) | {"latent": 3}).eval()
    images = data.normalize(data.load("digits", "test").pixels[:2])
    assert isinstance(model, SpikingDecoder) == (model.kind != "vae")
    assert isinstance(model, Backbone) == (model.kind in ("esvae", "fsvae"))
    assert model.steps == config.steps
    assert (model.steps == 1) == (model.kind == "vae")
    with torch.no_grad():
        if model.kind != "gan":
            assert model.encode(images).shape == (2, 3)
            first, second = (model.reconstruct(images, seed=1, sample_ids=torch.arange(2)) for _ in range(2))
            assert torch.equal(first, second)
            assert model.reconstruct(images).shape == images.shape
        if isinstance(model, SpikingDecoder):
            prior, _ = choose_prior(model, None)
            z = model.prior_spikes(2, seed=1, prior=prior)
            assert z.shape == (model.steps, 2, 3)
            assert torch.equal(model.decode(z), model.generate(2, seed=1, prior=prior))
        if isinstance(model, Backbone):
            z = model.latent_spikes(images, seed=1, sample_ids=torch.arange(2))
            assert torch.equal(model.decode(z), first)


@pytest.mark.parametrize(
    ("case", "part", "line"),
    [
        ("gan", "encoder", "kind: got 'gan', accepted are esvae, fsvae: the others have no spiking encoder"),
        ("vae", "decoder", "kind: got 'vae', accepted are esvae, fsvae, gan: the others have no spiking decoder"),
        ("fsvae-kl-taid-pfa", "decoder", "readout: got 'taid', accepted is 'decay'"),
        ("esvae-learnt-pfa", "encoder", "attention: got 'pfa', accepted is 'none'"),
    ],
)
def test_export_refuses(
    case: str, part: str, line: str, runs: dict[str, Run], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "x.nir")
    assert main(["export", str(runs[case].folder), "--part", part, "--accept", ">=", "--out", out]) == 2
    assert line in capsys.readouterr().err


@pytest.mark.parametrize(
    ("case", "steps", "line"),
    [("vae", "2", "1: kind 'vae' knows no time"), ("fsvae-kl-taid-pfa", "3", "2, which readout 'taid' is made for")],
)
def test_steps_that_a_model_cannot_take(
    case: str, steps: str, line: str, runs: dict[str, Run], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(runs[case].folder), "--steps", steps]) == 2
    assert f"steps: got {steps}, accepted is {line}" in capsys.readouterr().err


def test_distances_of_a_gan_are_of_its_generated_images(
    runs: dict[str, Run], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a feature network in the published one's place."""
    torch.manual_seed(0)
    reference = fad.Reference("digits", fad.FeatureNetwork(1).eval(), torch.zeros(64).double(), torch.eye(64).double())
    monkeypatch.setattr("esvae.evaluate.find_reference", lambda name: (reference, ""))
    monkeypatch.setattr("esvae.evaluate.GENERATED", 140)
    monkeypatch.setattr(fad, "FLOOR_IMAGES", 64)
    assert main(["evaluate", str(runs["gan"].folder), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["generated"] == 140 != GENERATED
    drawn = load_model(runs["gan"].folder).model.generate(140, seed=2024)
    assert result["fad_paper"] == pytest.approx(fad.fad(reference, drawn)["fad_paper"], rel=1e-6)
    assert not [key for key in result if "reconstruction" in key or key == "mse"]
