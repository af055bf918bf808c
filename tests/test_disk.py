"""Disks that are full, anywhere in a training, or read-only: one line, and nothing good is lost.

On small file systems of their own, which only root may mount; tests/test_checkpoint.py and others have the same by
limits and by replaced calls.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from training_helpers import TINY, contents, image_folder, mount

from esvae import train
from esvae.cli import main
from esvae.runs import LOCK, Run


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image_folder(tmp_path_factory.mktemp("images") / "images", train=32, test=8)


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "LOG_EVERY", 1)  # so that every step ends with a checkpoint


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], images: Path) -> Callable[..., str]:
    """Train by the command line; returns the line of a failure, or "" after a success."""

    def run(out: Path, *arguments: str) -> str:
        given = ["--resume"] if arguments == ("--resume",) else ["--preset", "best", "--data", f"folder:{images}"]
        code = main(["train", *given, "--out", str(out), "--quiet", "--checkpoint-minutes", "0", *TINY])
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1, lines
        assert code == (2 if lines[0].startswith("esvae: error: ") else 0)
        return lines[0] if code else ""

    return run


def weights(run: Path) -> dict[str, bytes]:
    """What must be equal in the end: the exported model and the last checkpoint's tensors."""
    last = Run(run, {}).latest()
    files = {**contents(run / "model"), **contents(last)}
    return {name: content for name, content in files.items() if name.endswith(".safetensors")}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, images: Path) -> Path:
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    assert main(["train", "--preset", "best", "--data", f"folder:{images}", "--out", str(run), "--quiet", *TINY]) == 0
    return run


def used(disk: Path) -> int:
    found = os.statvfs(disk)
    return (found.f_blocks - found.f_bfree) * found.f_frsize


def test_a_disk_that_is_full_at_any_point_of_a_training(
    disk: Path, command: Callable[..., str], undisturbed: Path
) -> None:
    run, lines = disk / "run", []
    whole = sum(len(content) for content in contents(Run(undisturbed, {}).latest()).values())
    # In the config, the events, the first checkpoint, the second, the third (two are kept).
    for size in (4096, 16 << 10, whole // 2, whole * 3 // 2, whole * 5 // 2):
        mount(disk, f"size={size}")
        before = Run(run, {}).steps()
        lines.append(command(run, *(["--resume"] if (run / "config.json").exists() else [])))
        assert "No space left on device" in lines[-1], size
        after = Run(run, {}).steps()
        assert before == [] or after[-1] >= before[-1]
        for step in after:
            Run.open(run).load(step)
    assert len(set(lines)) >= 4, lines  # at different points
    mount(disk, "size=1g")
    assert command(run, "--resume") == ""
    assert weights(run) == weights(undisturbed)
    assert [path.name for path in run.rglob(".*")] == [LOCK]  # nothing half-written

    shutil.rmtree(run / "model")
    mount(disk, f"size={used(disk) + (64 << 10)}")
    assert "No space left on device" in command(run, "--resume")  # in the exported model
    assert not (run / "model").exists()
    mount(disk, "size=1g")
    assert command(run, "--resume") == ""
    assert weights(run) == weights(undisturbed)


def test_a_read_only_folder(disk: Path, command: Callable[..., str], undisturbed: Path) -> None:
    run = disk / "run"
    subprocess.run(["cp", "-r", undisturbed, run], check=True)
    before = contents(disk)
    mount(disk, "ro")
    for line in (command(run, "--resume"), command(disk / "other")):
        assert "Read-only file system" in line
    assert contents(disk) == before
    assert os.listdir(disk) == ["run"]
