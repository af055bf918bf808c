"""Several processes, started by torchrun, against one; the processes' side is in distributed_worker.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import distributed_worker
import pytest
import torch
from training_helpers import TINY, image_folder

from esvae import train
from esvae.cli import main
from esvae.runs import Run

HERE = Path(__file__).parent
WORKER = str(HERE / "distributed_worker.py")


def torchrun(processes: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    """On one thread per process, as torchrun does; a port is found by itself."""
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    path = os.pathsep.join([str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run([*start, *arguments], env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    """As the processes have: convolutions sum in an order that depends on it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# ---------------------------------------------------------------------------------------------------- as one process


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("alone") / "found.pt"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("esvae.evaluate.BATCH", 8)
        torch.save(distributed_worker.alone(), path)
    return path


@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_is_what_one_process_does(alone: Path, processes: int) -> None:
    """Noise, losses, weights, statistics, metrics; tdBN, MMD and what the ranks exchange on their own."""
    done = torchrun(processes, WORKER, "checks", str(alone))
    assert done.returncode == 0, done.stderr


# ----------------------------------------------------------------------------------------------------- the command line


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Three steps an epoch, two epochs."""
    images = image_folder(tmp_path_factory.mktemp("images") / "digits", train=24, test=10, mode="L")
    return [*("--preset", "best", "--data", f"folder:{images}", "--quiet"), *TINY, "--train.batch-size", "8"]


@pytest.fixture(scope="module")
def undisturbed(options: list[str], tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "LOG_EVERY", 2)
        assert main(["train", "--out", str(folder), *options]) == 0
    return Run.open(folder)


def assert_close(run: Run, other: Run) -> None:
    """Records and tensors within rounding, files of the same names."""
    for record, expected in zip(run.metrics(), other.metrics(), strict=True):
        assert record.keys() == expected.keys()
        for name in record.keys() - {"seconds"}:
            value = expected[name]
            near = value if isinstance(value, str) else pytest.approx(value, rel=1e-4)
            assert record[name] == near, (record["step"], name)
    (parts, _), (expected_parts, _) = run.load(), other.load()
    for name, tensors in expected_parts.items():
        torch.testing.assert_close(parts[name], tensors, rtol=1e-4, atol=1e-4)
    names, expected_names = (
        {
            str(p.relative_to(r.folder))
            for p in r.folder.rglob("*")
            if p.is_file() and p.parent.name not in ("events", f"step-{3:08d}", f"step-{4:08d}")
        }
        for r in (run, other)
    )
    assert names == expected_names


@pytest.mark.slow
@pytest.mark.parametrize("then", [1, 4])
def test_a_dead_rank_ends_the_others_and_the_run_goes_on(
    then: int, options: list[str], undisturbed: Run, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Two processes, one is killed; then another number."""
    start = ["train", "--out", str(tmp_path / "run"), "--checkpoint-minutes", "0", *options]
    done = torchrun(2, WORKER, "dying", "5", *start)
    ended = time.time()
    assert done.returncode != 0
    assert "Signal 9 (SIGKILL)" in done.stderr
    run = Run.open(tmp_path / "run")
    assert run.steps() == [3, 4]
    assert ended - run.latest().stat().st_mtime < 60
    assert len(list(run.events.iterdir())) == 1  # of one writer

    resume = ["train", "--resume", "--out", str(run.folder), "--quiet"]
    if then == 1:
        capfd.readouterr()
        assert main(resume) == 0
        said = capfd.readouterr().err
    else:
        done = torchrun(then, "-m", "esvae", *resume)
        assert done.returncode == 0, done.stderr
        said = done.stderr
    assert said.count(f"{run.folder}: done") == 1
    assert_close(run, undisturbed)


@pytest.mark.slow
def test_evaluate(undisturbed: Run, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ["evaluate", str(undisturbed.folder), "--json"]
    done = torchrun(2, "-m", "esvae", *arguments)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("no FAD") == 1
    capfd.readouterr()
    assert main(arguments) == 0
    assert json.loads(done.stdout) == json.loads(capfd.readouterr().out)  # one object, of one rank


@pytest.mark.parametrize("arguments", [["generate", "RUN"], ["reconstruct", "RUN"], ["demo"]], ids=lambda a: a[0])
def test_commands_for_one_process(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(arguments) == 2
    assert (
        f"command: got '{arguments[0]}' under torchrun, accepted there are train, evaluate" in capsys.readouterr().err
    )


@pytest.mark.parametrize(("device", "line"), [("cuda:1", "accepted under torchrun is 'cuda'"), ("cuda", "has no GPU")])
def test_a_gpu_for_each_process(
    device: str, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], undisturbed: Run
) -> None:
    for name, value in (("TORCHELASTIC_RUN_ID", "none"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert main(["evaluate", str(undisturbed.folder), "--device", device]) == 2
    assert line in capsys.readouterr().err


@pytest.mark.slow
def test_a_rank_that_hangs_ends_the_others() -> None:
    done = torchrun(2, WORKER, "silent")
    assert done.returncode != 0
    assert "InputError: rank 0: another process ended or does not answer (" in done.stderr
