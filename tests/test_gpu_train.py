"""bench/gpu_train.py on the CPU: it stops in time behind a checkpoint, goes on, and leaves few files."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
from training_helpers import image_folder

sys.path.append(str(Path(__file__).resolve().parent.parent / "bench"))
import gpu_train

FILES = {  # few, so that they can be copied one by one
    *("evaluation.json", "learning-curve.png", "metrics.jsonl", "model.tar", "reconstructions.png", "run.tar"),
    "samples.png",
}
TRAINS = """
import itertools, pathlib, sys, time
for step in itertools.count(1):
    time.sleep(0.4)
    pathlib.Path(sys.argv[1], "checkpoints", f"step-{step:08d}").mkdir(parents=True)
"""
HANGS = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(60)"


def training(out: Path, time_limit: float) -> gpu_train.Training:
    options = {"out": out, "dry_run": True, "preset": "best", "more": [], "time_limit": time_limit}
    return gpu_train.Training(argparse.Namespace(**options))


@pytest.mark.slow
def test_it_stops_behind_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is new, where there is one already; it would go on for ever."""
    monkeypatch.setattr(gpu_train, "SHIFT", 60)
    one = training(tmp_path, time_limit=0)
    one.end = time.monotonic() + one.reserve + 30
    (one.run / "checkpoints" / "step-00000000").mkdir(parents=True)
    process = subprocess.Popen([sys.executable, "-c", TRAINS, one.run], stderr=subprocess.DEVNULL)
    try:
        assert one.stop(process) == gpu_train.INTERRUPTED
    finally:
        process.kill()
    assert one.step() >= 1
    assert time.monotonic() < one.end - one.reserve


def test_it_ends_what_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_train, "PATIENCE", 0.5)
    one = training(tmp_path, time_limit=0)
    process = subprocess.Popen([sys.executable, "-c", HANGS])
    one.end = time.monotonic() + one.reserve + 2  # by then it does not listen any more
    try:
        assert one.stop(process) == gpu_train.INTERRUPTED
        assert process.poll() is not None
    finally:
        process.kill()


def test_how_far_it_came(tmp_path: Path) -> None:
    """Records beyond the checkpoint do not count; neither does, for the speed, the first one of this call or of a T."""
    one = training(tmp_path, time_limit=0)
    (one.run / "checkpoints" / "step-00000500").mkdir(parents=True)
    config = {"preset": "best", "data": "digits", "train": {"epochs": 9}}
    (one.run / "config.json").write_text(json.dumps(config))
    seconds = {50: 90, 100: 95, 150: 96, 200: 97, 250: 107, 300: 109, 500: 111, 550: 999}
    with (one.run / "metrics.jsonl").open("w") as file:
        for step, second in seconds.items():
            record = {"step": step, "images": 64 * step, "seconds": second, "lr": 1.0, "epoch": step // 100}
            file.write(json.dumps(record | {"steps": 2 if step < 250 else 4}) + "\n")
        file.write('{"step": 600, "ima')
    found = one.progress(since=50)
    assert found["images_per_second"] == {"2": 3200, "4": 4000}
    assert [found[key] for key in ("step", "epoch", "epochs", "images", "ended")] == [500, 6, 9, 32000, False]
    assert "epoch 6 of 9, step 500; images per second: 3,200 at T = 2, 4,000 at T = 4" in gpu_train.told(found)


def test_what_is_missing_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu_train, "installed", lambda name: None if name in ("tyro", "pooch") else "1")
    monkeypatch.setattr(sys, "argv", ["gpu_train.py", "--out", str(tmp_path / "out")])
    assert gpu_train.main() == 2
    assert capsys.readouterr().err == "this needs pooch, tyro: pip install pooch tyro\n"
    assert not (tmp_path / "out").exists()


def test_another_preset_goes_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text('{"preset": "best"}')
    monkeypatch.setattr(sys, "argv", ["gpu_train.py", "--out", str(tmp_path), "--preset", "paper"])
    assert gpu_train.main() == 2
    held = f"preset: got 'paper', but {tmp_path} holds a run of 'best'; use another --out\n"
    assert capsys.readouterr().err == held


@pytest.mark.slow
def test_a_stopped_training_goes_on(tmp_path: Path) -> None:
    """It would take an hour; each call stops behind the first checkpoint after 5 seconds."""
    data, out = image_folder(tmp_path / "data", 320, 32, "L"), tmp_path / "out"
    more = ["--data", f"folder:{data}", "--train.batch-size", "16", "--train.epochs", "9000"]
    command = [sys.executable, gpu_train.__file__, "--dry-run", "--out", out, "--time-limit", "85", "--", *more]
    steps = []
    for _ in range(2):
        done = subprocess.run([*command, "--train.time-steps", "1/9000@1,8999/9000@2"], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "the same command goes on" in done.stdout
        assert {path.name for path in out.iterdir()} == FILES
        assert max(path.stat().st_size for path in out.iterdir()) < gpu_train.LARGEST
        evaluation = json.loads((out / "evaluation.json").read_text())
        assert evaluation["mse"] < 2
        steps.append(evaluation["training"]["step"])
        with tarfile.open(out / "run.tar") as tar:
            (newest,) = {name.split("/")[2] for name in tar.getnames() if name.startswith("run/checkpoints/")}
        assert newest == f"step-{steps[-1]:08d}"
        with tarfile.open(out / "model.tar") as tar:
            grids = [name for name in tar.getnames() if name.startswith("run/images/samples")]
        assert 1 <= len(grids) <= gpu_train.GRIDS
        assert max(grids) >= f"run/images/samples-epoch-{steps[-1] // 20:03d}.png"
    assert 0 < steps[0] < steps[1]
