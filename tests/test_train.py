"""Training: that an interruption at any instant leaves no trace, and that what goes wrong is one line."""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from training_helpers import assert_same, contents, full_disk, stop_at_call

from esvae import ESVAE, checkpoint, data, evaluate, figures, noise, train
from esvae.config import FLIPPED, Config, ModelConfig, TrainConfig, preset
from esvae.errors import InputError
from esvae.generate import load_model, load_weights
from esvae.losses import DISTANCES
from esvae.prior import MixturePrior
from esvae.runs import Run

MODEL = ModelConfig(latent=4, steps=2, sampler_surrogate="straight-through", prior="mixture", mixture_components=2)
TRAIN = TrainConfig(
    epochs=2,
    batch_size=8,
    optimizer="muon",
    schedule="one-cycle",
    clip=1.0,
    ema=0.9,
    time_steps="1/2@1,1/2@2",
    precision="fp32",
)
CONFIG = Config("digits", "best", MODEL, TRAIN)
STEPS_PER_EPOCH = 5  # and a record after every 2nd step
NEVER = 1e9  # minutes


@pytest.fixture(scope="module")
def sets() -> dict[str, data.ImageSet]:
    counts = {"train": 8 * STEPS_PER_EPOCH + 3, "test": 10}
    loaded = {split: data.load("digits", split) for split in counts}
    # flipped at random, as CIFAR10 is: flips have to be taken up again, too
    return {
        s: dataclasses.replace(loaded[s], pixels=loaded[s].pixels[:n], flip=s == "train") for s, n in counts.items()
    }


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "LOG_EVERY", 2)
    monkeypatch.setattr(
        train.figures, "learning_curve", lambda records, path, **about: None
    )  # a third of the time of a run


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, sets: dict[str, data.ImageSet]) -> Run:
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "LOG_EVERY", 2)
        return train.train(CONFIG, folder, sets=sets, checkpoint_minutes=NEVER, progress=False)


def go(folder: Path, sets: dict[str, data.ImageSet], config: Config = CONFIG, **options: Any) -> Run:
    return train.train(config, folder, sets=sets, **{"checkpoint_minutes": 0, "progress": False} | options)


class TestUndisturbed:
    def test_records(self, undisturbed: Run) -> None:
        found = undisturbed.metrics()
        assert [r["step"] for r in found if "loss" in r] == [2, 4, 5, 6, 8, 10]
        assert [(r["step"], r["images"]) for r in found if "test_mse" in r] == [(5, 40), (10, 80)]
        assert {r["step"]: r["steps"] for r in found} == {2: 1, 4: 1, 5: 1, 6: 2, 8: 2, 10: 2}
        assert [r["seconds"] for r in found] == sorted(r["seconds"] for r in found)

    def test_firing_rates_of_every_epoch(self, undisturbed: Run, sets: dict[str, data.ImageSet]) -> None:
        """Counts of the rates 0, 1/T, .., 1, of test images and of drawn ones."""
        keys = ("rate_histogram", "prior_rate_histogram")
        found = undisturbed.metrics()
        assert [r["step"] for r in found if any(key in r for key in keys)] == [5, 10]
        for record in found:
            for counts in (record[key] for key in keys if key in record):
                assert len(counts) == record["steps"] + 1
                assert sum(counts) == len(sets["test"]) * MODEL.latent

    def test_files(self, undisturbed: Run) -> None:
        assert {p.name for p in undisturbed.images.iterdir()} == {
            f"{kind}-epoch-{epoch:03d}.png" for kind in ("samples", "reconstructions") for epoch in (1, 2)
        }
        assert {p.name for p in undisturbed.folder.iterdir()} == {
            *("config.json", "metrics.jsonl", "checkpoints", "events", "images", "model", ".lock"),
            *("samples.png", "reconstructions.png", "evaluation.json", "learning-curve.png"),
        }
        assert undisturbed.steps() == [5, 10]

    def test_evaluation(self, undisturbed: Run, sets: dict[str, data.ImageSet]) -> None:
        found = json.loads((undisturbed.folder / "evaluation.json").read_text())
        model = load_model(undisturbed.folder).model
        train_images, test = (data.normalize(sets[split].pixels) for split in ("train", "test"))
        assert found.pop("mse") == pytest.approx(evaluate.mean_squared_error(model, sets["test"]))
        mean_error = (test.double() - train_images.double().mean(0)).square().mean()
        assert found.pop("mean_image_mse") == pytest.approx(float(mean_error), rel=1e-6)
        counts = {"train_images": 43, "test_images": 10, "train_steps": 10}
        assert found == {"data": "digits", "prior": "mixture", "T": 2, **counts}

    def test_pictures_have_captions(self, undisturbed: Run) -> None:
        grid = figures.image_grid(torch.zeros(64, 1, 32, 32), columns=16)
        for picture in (undisturbed.folder / "samples.png", undisturbed.images / "samples-epoch-001.png"):
            with Image.open(picture) as opened:
                below = np.asarray(opened)[grid.height :]
            assert below.shape == (below.shape[0], grid.width)
            assert (below < 128).any()

    def test_exported_model_is_the_average_with_a_fitted_mixture(self, undisturbed: Run) -> None:
        model = load_model(undisturbed.folder).model
        average = undisturbed.load()[0]["average"]
        for name, tensor in model.state_dict().items():
            assert name.startswith("mixture.") or torch.equal(tensor, average[name]), name
        assert model.mixture is not None
        assert model.mixture.fitted
        assert model.steps == 2

    def test_weights_moved_and_the_average_followed(self, undisturbed: Run) -> None:
        torch.manual_seed(TRAIN.seed)
        start = ESVAE(**CONFIG.to_dict()["model"]).bottleneck.weight
        parts = undisturbed.load()[0]
        moved, average = (parts[part]["bottleneck.weight"] for part in ("model", "average"))
        assert not torch.equal(start, moved)
        assert not torch.equal(average, moved)


# ------------------------------------------------------------------------------------------------------- interruptions


def interrupt(folder: Path, sets: dict[str, data.ImageSet], owner: Any, name: str, count: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, stop_at_call(count, getattr(owner, name)))
        with pytest.raises(KeyboardInterrupt):
            go(folder, sets)


@pytest.mark.few(4)
@pytest.mark.parametrize(
    ("owner", "name", "count"),
    [
        pytest.param(train.Trainer, "_step", 1, id="before the first checkpoint"),
        pytest.param(train.Trainer, "_step", 3, id="between two records"),
        pytest.param(train.Trainer, "_step", 5, id="last step of an epoch"),
        pytest.param(Run, "log", 3, id="last record of an epoch"),
        pytest.param(train.Trainer, "_end_of_epoch", 1, id="between evaluation and checkpoint"),
        pytest.param(checkpoint, "save", 3, id="behind the checkpoint of an epoch"),
        pytest.param(train.Trainer, "_step", 9, id="second epoch"),
        pytest.param(train.Trainer, "_end_of_epoch", 2, id="before the last checkpoint"),
        pytest.param(MixturePrior, "fit", 1, id="behind the fit of the mixture"),
        pytest.param(train, "export", 1, id="behind the export"),
    ],
)
def test_resumed_run_is_the_undisturbed_one(
    tmp_path: Path,
    sets: dict[str, data.ImageSet],
    undisturbed: Run,
    owner: Any,
    name: str,
    count: int,
) -> None:
    interrupt(tmp_path / "run", sets, owner, name, count)
    torch.manual_seed(1234)  # nothing may depend on where the interrupted process left the global generator
    assert_same(go(tmp_path / "run", sets, resume=True), undisturbed)


def test_frequent_checkpoints_change_nothing(tmp_path: Path, sets: dict[str, data.ImageSet], undisturbed: Run) -> None:
    run = go(tmp_path / "run", sets)
    assert run.steps() == [8, 10]  # of 2, 4, 5, 6, 8, 10 the newest two
    assert_same(run, undisturbed)


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from safetensors.torch import load_file
from esvae import data, train
from test_train import CONFIG

run, pixels, threads = sys.argv[1:]
torch.set_num_threads(int(threads))
replace = os.replace

def die(source, target):
    if Path(target).name == "step-00000004":
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)

os.replace, train.LOG_EVERY = die, 2
sets = {split: data.ImageSet("digits", tensor, split == "train") for split, tensor in load_file(pixels).items()}
train.train(CONFIG, Path(run), sets=sets, checkpoint_minutes=0, progress=False)
"""


def test_killed_while_a_checkpoint_is_written(tmp_path: Path, sets: dict[str, data.ImageSet], undisturbed: Run) -> None:
    """No exception handler runs after SIGKILL: the half-written folder stays behind, and does no harm."""
    save_file({split: images.pixels for split, images in sets.items()}, tmp_path / "sets")
    arguments = [str(tmp_path / "run"), str(tmp_path / "sets"), str(torch.get_num_threads())]
    tests = Path(__file__).parent
    environment = os.environ | {"PYTHONPATH": f"{tests}{os.pathsep}{tests.parent}"}
    done = subprocess.run([sys.executable, "-c", KILLED, *arguments], env=environment, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    left = [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()]
    assert len(left) == 2
    assert "step-00000002" in left  # and a hidden one
    run = go(tmp_path / "run", sets, resume=True)
    assert_same(run, undisturbed)
    assert [path.name for path in run.checkpoints.iterdir() if path.name.startswith(".")] == []


def test_events_of_an_interrupted_run_are_neither_lost_nor_doubled(
    tmp_path: Path, sets: dict[str, data.ImageSet]
) -> None:
    interrupt(tmp_path / "run", sets, Run, "log", 4)  # the evaluation of the first epoch, before its checkpoint
    run = go(tmp_path / "run", sets, resume=True)
    events = EventAccumulator(str(run.events)).Reload()
    assert [event.step for event in events.Scalars("mse")] == [2, 4, 5, 6, 8, 10]
    assert [event.step for event in events.Scalars("test_mse")] == [5, 10]


def test_finished_run_resumed_is_the_same(tmp_path: Path, sets: dict[str, data.ImageSet], undisturbed: Run) -> None:
    run = go(tmp_path / "run", sets)
    before = contents(run.folder / "model")
    go(tmp_path / "run", sets, resume=True)
    assert contents(run.folder / "model") == before
    assert_same(run, undisturbed)


# ---------------------------------------------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"train": {"lr": 1e-3}}, r"train\.lr: got 0\.001, but .*run holds a run with 0\.0006; use another --out"),
        ({"model": {"latent": 5}}, r"model\.latent: got 5, but .* with 4"),
        ({"preset": "paper"}, r"preset: got 'paper', but .* with 'best'"),
    ],
    ids=["learning-rate", "latent", "preset"],
)
def test_run_of_another_config(tmp_path: Path, sets: dict[str, data.ImageSet], change: dict, line: str) -> None:
    run = Run.create(tmp_path / "run", CONFIG.to_dict())
    values = CONFIG.to_dict()
    other = {name: values[name] | part if isinstance(part, dict) else part for name, part in change.items()}
    with pytest.raises(InputError, match=line):
        go(run.folder, sets, Config.from_dict(values | other), resume=True)
    assert run.metrics() == []


def test_other_training_images_than_it_began_with(tmp_path: Path, sets: dict[str, data.ImageSet]) -> None:
    interrupt(tmp_path / "run", sets, train.Trainer, "_step", 9)
    before = contents(tmp_path / "run" / "checkpoints")
    fewer = sets | {"train": sets["train"].part(0, 40)}
    line = "data: got 40 training images of digits, but the run began with 43; bring those back, or begin anew"
    with pytest.raises(InputError, match=line) as error:
        go(tmp_path / "run", fewer, resume=True)
    assert "checkpoint" not in str(error.value)  # none would help
    changed = sets["train"].pixels.clone()
    changed[0, 0, 0, 0] ^= 1
    others = sets | {"train": dataclasses.replace(sets["train"], pixels=changed)}
    with pytest.raises(InputError, match="data: got 43 training images of digits with other pixels") as error:
        go(tmp_path / "run", others, resume=True)
    assert "checkpoint" not in str(error.value)
    assert contents(tmp_path / "run" / "checkpoints") == before


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"train": {"batch_size": 44}}, "batch_size: got 44, accepted is at most the 43 training images"),
        ({"model": {"channels": 3}}, r"channels: got 3, but digits \(train\) has 1"),
    ],
    ids=["batch", "channels"],
)
def test_data_that_do_not_fit(tmp_path: Path, sets: dict[str, data.ImageSet], change: dict, line: str) -> None:
    values = CONFIG.to_dict()
    other = {name: values[name] | part for name, part in change.items()}
    with pytest.raises(InputError, match=line):
        go(tmp_path / "run", sets, Config.from_dict(values | other))
    assert not (tmp_path / "run").exists()


def test_divergence_is_one_line(
    tmp_path: Path, sets: dict[str, data.ImageSet], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(DISTANCES, "mmd", lambda a, b: (a.sum() - b.sum()) * math.nan)
    with pytest.raises(
        InputError, match=r"training diverged before step 2 \(loss nan\); the same command with a lower --train\.lr"
    ):
        go(tmp_path / "run", sets)
    run = Run.open(tmp_path / "run")
    assert run.steps() == []
    assert run.metrics() == []


def test_a_diverged_run_is_begun_anew_by_the_same_command(
    tmp_path: Path, sets: dict[str, data.ImageSet], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it left is kept, beside the new run."""
    lower = dataclasses.replace(CONFIG, train=dataclasses.replace(TRAIN, epochs=1, time_steps="", lr=1e-5))
    with monkeypatch.context() as patch:
        patch.setitem(DISTANCES, "mmd", lambda a, b: (a.sum() - b.sum()) * math.nan)
        with pytest.raises(InputError, match="diverged"):
            go(tmp_path / "run", sets)
        for moved in ("run-diverged", "run-diverged-2"):
            line = f"run: the run there diverged; it is now {tmp_path}/{moved}$"
            with pytest.warns(UserWarning, match=line), pytest.raises(InputError, match="diverged"):
                go(tmp_path / "run", sets, lower)
    with pytest.warns(UserWarning, match="run-diverged-3"):
        run = go(tmp_path / "run", sets, lower)
    assert run.config["train"]["lr"] == 1e-5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", *(f"run-diverged{n}" for n in ("", "-2", "-3"))]
    with pytest.raises(InputError, match="holds a run already"):
        go(run.folder, sets, lower)


def test_a_diverged_run_may_go_on(
    tmp_path: Path, sets: dict[str, data.ImageSet], undisturbed: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setitem(DISTANCES, "mmd", lambda a, b: (a.sum() - b.sum()) * math.nan)
        with pytest.raises(InputError, match="diverged"):
            go(tmp_path / "run", sets)
    assert_same(go(tmp_path / "run", sets, resume=True), undisturbed)
    with pytest.raises(InputError, match="holds a run already"):
        go(tmp_path / "run", sets)


def test_full_disk_while_saving(tmp_path: Path, sets: dict[str, data.ImageSet], undisturbed: Run) -> None:
    run = Run.create(tmp_path / "run", CONFIG.to_dict())
    with (
        full_disk(1 << 19),
        pytest.raises(InputError, match="step-00000002: cannot write the checkpoint: File too large"),
    ):
        go(run.folder, sets, resume=True)
    assert contents(run.checkpoints) == {}
    assert_same(go(run.folder, sets, resume=True), undisturbed)


def test_full_disk_after_a_checkpoint(tmp_path: Path, sets: dict[str, data.ImageSet], undisturbed: Run) -> None:
    interrupt(tmp_path / "run", sets, checkpoint, "save", 1)
    run = Run.open(tmp_path / "run")
    good = contents(run.checkpoints)
    with (
        full_disk(1 << 19),
        pytest.raises(InputError, match="step-00000004: cannot write the checkpoint: File too large"),
    ):
        go(run.folder, sets, resume=True)
    assert contents(run.checkpoints) == good
    assert_same(go(run.folder, sets, resume=True), undisturbed)


def test_full_disk_while_exporting(tmp_path: Path) -> None:
    torch.manual_seed(0)
    first, second = (ESVAE(**CONFIG.to_dict()["model"]) for _ in range(2))
    train.export(first, tmp_path / "model")
    good = contents(tmp_path)
    with full_disk(), pytest.raises(InputError, match="model: cannot be written: "):
        train.export(second, tmp_path / "model")
    assert contents(tmp_path) == good
    train.export(second, tmp_path / "model")
    assert torch.equal(load_model(tmp_path / "model").model.bottleneck.weight, second.bottleneck.weight)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_failed_swap_puts_the_old_model_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = ESVAE(**CONFIG.to_dict()["model"])
    train.export(model, tmp_path / "model")
    good = contents(tmp_path)
    replace, calls = os.replace, []

    def fail_second(source: Path, target: Path) -> None:
        calls.append(target)
        if len(calls) == 2:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail_second)
    with pytest.raises(InputError, match="model: cannot be written: Input/output error"):
        train.export(model, tmp_path / "model")
    assert contents(tmp_path) == good


def test_weights_of_another_network_are_named() -> None:
    model = ESVAE(**CONFIG.to_dict()["model"])
    tensors = model.state_dict() | {"bottleneck.weight": torch.zeros(3, 3)}
    with pytest.raises(InputError, match=r"here: not the weights .* 'bottleneck.weight' should be the shape \(4, 4\)"):
        load_weights(model, tensors, "here")


@pytest.mark.parametrize(
    ("file", "content", "line"),
    [
        ("model.safetensors", lambda good: good[:-9], "model.safetensors: is truncated or damaged"),
        ("average.safetensors", lambda good: b"\x80\x04K\x01.", "average.safetensors: is a pickle"),
        ("optimizer.safetensors", lambda good: good[:-1] + b"?", "SHA-256"),
        ("state.json", lambda good: good.replace(b'"step": 10', b'"step": 11'), "SHA-256"),
    ],
    ids=["truncated", "pickle", "changed", "edited"],
)
def test_damaged_checkpoint(
    tmp_path: Path, sets: dict[str, data.ImageSet], undisturbed: Run, file: str, content: Callable, line: str
) -> None:
    shutil.copytree(undisturbed.folder, tmp_path / "run")
    path = Run.open(tmp_path / "run").latest() / file
    path.write_bytes(content(path.read_bytes()))
    before = contents(tmp_path)
    with pytest.raises(InputError, match=f"{line}.*the checkpoint of step 5 before it is good"):
        go(tmp_path / "run", sets, resume=True)
    assert contents(tmp_path) == before


def test_damaged_checkpoint_deleted_as_the_line_says(
    tmp_path: Path, sets: dict[str, data.ImageSet], undisturbed: Run
) -> None:
    shutil.copytree(undisturbed.folder, tmp_path / "run")
    run = Run.open(tmp_path / "run")
    (run.latest() / "state.json").write_text("")
    with pytest.raises(InputError, match=r"to go on from there, delete step-00000010$"):
        go(run.folder, sets, resume=True)
    shutil.rmtree(run.path(10))
    assert_same(go(run.folder, sets, resume=True), undisturbed)


def test_checkpoint_from_before_streams(tmp_path: Path, sets: dict[str, data.ImageSet], undisturbed: Run) -> None:
    """It says nothing of its noise and its images. It is gone on from, and what comes after says them."""
    shutil.copytree(undisturbed.folder, tmp_path / "run")
    run = Run.open(tmp_path / "run")
    shutil.rmtree(run.path(10))
    parts, state = run.load()
    assert state.pop("noise") == noise.VERSION
    assert len(state.pop("data")) == 64
    shutil.rmtree(run.path(5))
    run.save(5, parts, state)
    assert_same(go(run.folder, sets, resume=True), undisturbed)
    assert run.load()[1]["noise"] == noise.VERSION


def test_step_seeds_are_different_ones() -> None:
    """Of consecutive runs and steps; and none is a number that somebody would give."""
    seeds = {train.step_seed(seed, step) for seed in range(20) for step in range(500)}
    assert len(seeds) == 20 * 500
    assert 2**40 < min(seeds) <= max(seeds) < 2**63


def test_foreign_checkpoint(tmp_path: Path, sets: dict[str, data.ImageSet], undisturbed: Run) -> None:
    """Whole and of the right format, but of something else."""
    shutil.copytree(undisturbed.folder, tmp_path / "run")
    run = Run.open(tmp_path / "run")
    run.save(11, {"model": {"weight": torch.zeros(2)}}, {})
    line = "step-00000011, model: not the weights of this config: 'bottleneck.*of step 10 before it is good"
    with pytest.raises(InputError, match=line):
        go(run.folder, sets, resume=True)


# -------------------------------------------------------------------------------------------------------------- parts


@pytest.mark.parametrize(
    ("count", "expected"), [(60_000, (9, 64)), (637, (67, 64)), (64, (600, 64)), (40, (600, 40)), (1, (600, 2))]
)
def test_small_sets_get_more_epochs(count: int, expected: tuple[int, int]) -> None:
    config = preset("best", "digits")
    found = train.for_images(config, count)
    assert (found.train.epochs, found.train.batch_size) == expected
    assert train.for_images(found, count) == found
    paper = preset("paper", "digits")
    assert train.for_images(paper, count) == paper


def test_short_epochs_are_not_all_evaluated(
    tmp_path: Path, sets: dict[str, data.ImageSet], monkeypatch: pytest.MonkeyPatch
) -> None:
    """T changes within an epoch, which a record tells; an interruption leaves no trace here either."""
    monkeypatch.setattr(train, "EVALUATIONS", 2)
    config = dataclasses.replace(CONFIG, train=dataclasses.replace(TRAIN, epochs=5, time_steps="0.3@1,0.7@2"))
    run = go(tmp_path / "run", sets, config, checkpoint_minutes=NEVER)
    assert [r["step"] for r in run.metrics() if "test_mse" in r] == [15, 25]
    assert [(r["step"], r["steps"]) for r in run.metrics() if "loss" in r][3:6] == [(6, 1), (8, 1), (10, 2)]
    assert run.steps() == [15, 25]
    assert len(list(run.images.iterdir())) == 4
    with monkeypatch.context() as patch:
        patch.setattr(train.Trainer, "_step", stop_at_call(13, train.Trainer._step))
        with pytest.raises(KeyboardInterrupt):
            go(tmp_path / "again", sets, config)
    assert_same(go(tmp_path / "again", sets, config, resume=True), run)


def test_a_training_says_how_long_it_takes(
    tmp_path: Path, sets: dict[str, data.ImageSet], undisturbed: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    """And to find out changes nothing."""
    run = go(tmp_path / "run", sets, progress=True, checkpoint_minutes=NEVER)
    line = "43 training images: 10 steps of 8 images, 2 epochs in all, at T = 1, 2; less than a minute on this machine"
    assert line in capsys.readouterr().err
    assert_same(run, undisturbed)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (3, "less than a minute"),
        (60, "about a minute"),
        (260, "about 4 minutes"),
        (6000, "about 2 hours"),
        (4e5, "about 5 days"),
    ],
)
def test_durations_in_words(seconds: float, words: str) -> None:
    assert train.about(seconds) == words


def test_one_cycle_warms_up_and_ends_at_nothing() -> None:
    config = TrainConfig(schedule="one-cycle", warmup=0.2)
    factors = [train.learning_rate_factor(config, share) for share in (0, 0.1, 0.2, 0.6, 1)]
    assert factors == pytest.approx([0.01, 0.5, 1, 0.5, 0], abs=1e-12)
    assert train.learning_rate_factor(TrainConfig(), 0.5) == 1


def test_schedule_counts_time_steps(tmp_path: Path, sets: dict[str, data.ImageSet]) -> None:
    trainer = train.Trainer(CONFIG, Run(tmp_path, {}), sets, torch.device("cpu"))
    assert [trainer._work(step) for step in (0, 5, 6, 10)] == [0, 5 * 8, 5 * 8 + 16, 5 * 8 + 5 * 16]


@pytest.mark.parametrize("flip", [True, False])
def test_flips_are_an_option(tmp_path: Path, sets: dict[str, data.ImageSet], flip: bool) -> None:
    """Of the training images of a set that has them, off in the preset of the paper."""
    config = dataclasses.replace(CONFIG, train=dataclasses.replace(TRAIN, flip=flip))
    trainer = train.Trainer(config, Run(tmp_path, {}), sets, torch.device("cpu"))
    assert trainer.sets["train"].flip == flip
    assert not trainer.sets["test"].flip
    assert [preset(name, "cifar10").train.flip for name in ("paper", "official", "best")] == [False, True, True]
    assert [name for name, source in data.SOURCES.items() if source.flip] == list(FLIPPED)


def test_average_of_parameters_and_running_statistics() -> None:
    old, new = nn.BatchNorm1d(1), nn.BatchNorm1d(1)
    for module, value in ((old, 1.0), (new, 2.0)):
        for tensor in (module.weight.data, module.running_mean):
            tensor.fill_(value)
    new.num_batches_tracked.fill_(7)
    train.update_average(old, new, 0.75)
    assert (old.weight.item(), old.running_mean.item(), old.num_batches_tracked.item()) == (1.25, 1.25, 0)
    assert (new.weight.item(), new.running_mean.item()) == (2, 2)


def test_bottleneck_has_its_own_learning_rate() -> None:
    model = ESVAE(**CONFIG.to_dict()["model"])
    rest, own = train.make_optimizer(model, dataclasses.replace(TRAIN, optimizer="adamw")).param_groups
    assert [id(p) for p in own["params"]] == [id(p) for p in model.bottleneck.parameters()]
    assert len(rest["params"]) + 2 == len(list(model.parameters()))
    assert (rest["lr"], own["lr"], rest["weight_decay"]) == (6e-4, 6e-3, 1e-3)


def test_noise_differs_between_steps_and_seeds() -> None:
    seeds = {train.step_seed(seed, step) for seed in range(20) for step in range(50)}
    assert len(seeds) == 1000
    assert all(0 <= seed < 2**63 for seed in seeds)
