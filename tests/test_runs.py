"""A run's folder: refuses what is no run, survives a crash at any instant."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from esvae import checkpoint, runs
from esvae.errors import InputError
from esvae.runs import Run, atomic_write

CONFIG = {"model": "paper", "steps": 16, "lr": 0.003}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.create(tmp_path / "run", CONFIG)


def save(run: Run, step: int, **kwargs) -> None:
    run.save(step, {"model": {"w": torch.full((64,), float(step))}}, {"note": f"at {step}"}, **kwargs)


def damage(run: Run, step: int) -> None:
    path = run.path(step) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")


def fails(match: str, call, *args, **kwargs) -> str:
    with pytest.raises(InputError, match=match) as caught:
        call(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def full_disk(*_args) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


# ------------------------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize(
    ("content", "on_disk"), [("é\n", "é\n".encode()), (b"\0\xff", b"\0\xff")], ids=["str", "bytes"]
)
def test_atomic_write(tmp_path: Path, content: str | bytes, on_disk: bytes) -> None:
    atomic_write(tmp_path / "f", b"old")
    atomic_write(tmp_path / "f", content)
    assert (tmp_path / "f").read_bytes() == on_disk
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    atomic_write(tmp_path / "f", "old")
    monkeypatch.setattr(os, call, full_disk)
    fails("f: cannot be written: No space left on device", atomic_write, tmp_path / "f", "new")
    assert (tmp_path / "f").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_write_into_a_missing_folder(tmp_path: Path) -> None:
    fails("No such file or directory", atomic_write, tmp_path / "no" / "f", "x")


# -------------------------------------------------------------------------------------------------- create and open


def test_create_and_open(run: Run) -> None:
    assert sorted(path.name for path in run.folder.iterdir()) == ["checkpoints", "config.json", "events", "images"]
    opened = Run.open(run.folder)
    assert run.config == opened.config == CONFIG
    assert opened.metrics() == []
    fails("has no checkpoint yet", opened.latest)


def test_create_in_an_empty_folder(tmp_path: Path) -> None:
    assert Run.create(tmp_path, CONFIG).config == CONFIG


def test_create_where_a_run_is(run: Run) -> None:
    fails("use --resume or another --out", Run.create, run.folder, {})
    assert Run.open(run.folder).config == CONFIG


def test_create_in_a_foreign_folder(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    fails("is not empty and no run .it holds thesis.tex.; use another --out", Run.create, tmp_path, CONFIG)
    fails("thesis.tex: is no folder", Run.create, tmp_path / "thesis.tex", CONFIG)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_create_after_a_crash_in_create(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "replace", full_disk)
    fails("config.json: cannot be written: No space left", Run.create, tmp_path / "run", CONFIG)
    fails("is no run", Run.open, tmp_path / "run")
    monkeypatch.undo()
    assert Run.create(tmp_path / "run", CONFIG).config == CONFIG


def test_config_must_be_json(tmp_path: Path) -> None:
    fails("config: cannot be written as JSON", Run.create, tmp_path / "run", {"x": torch.ones(1)})
    assert list(tmp_path.iterdir()) == []


def test_open_what_is_no_run(tmp_path: Path) -> None:
    fails("no such folder; a run's folder", Run.open, tmp_path / "no")
    fails("is no run: it has no config.json", Run.open, tmp_path)


@pytest.mark.parametrize("text", ["", '{"a": 1', "[1]", "\ud800"], ids=["empty", "torn", "list", "no-utf8"])
def test_broken_config(run: Run, text: str) -> None:
    (run.folder / "config.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    fails("config.json: .*the config.json of a run is expected", Run.open, run.folder)


# ----------------------------------------------------------------------------------------------------------- metrics


def test_records_are_there_at_once(run: Run) -> None:
    records = [{"step": 1, "mse": 0.1 + 0.2}, {"step": 2, "mse": 1e-9, "note": "a\nb"}]
    for record in records:
        run.log(record)
    assert Run.open(run.folder).metrics() == records
    assert len(run.metrics_file.read_text().splitlines()) == 2


@pytest.mark.parametrize("record", [{}, {"step": 1.5}, {"step": True}, {"step": -1}], ids=str)
def test_record_without_a_step(run: Run, record: dict) -> None:
    fails("record: step", run.log, record)
    fails("record: cannot be written as JSON", run.log, {"step": 1, "x": torch.ones(1)})
    assert run.metrics() == []


@pytest.mark.parametrize(
    "torn", ['{"step": 2, "ms', '{"step": 2}', '{"st\n', "\0" * 9000], ids=["half", "no-newline", "junk", "zeros"]
)
def test_torn_last_line(run: Run, torn: str) -> None:
    run.log({"step": 1})
    with run.metrics_file.open("a") as file:
        file.write(torn)
    assert run.metrics() == [{"step": 1}]
    if not torn.endswith("\n"):
        run.log({"step": 3})
        assert run.metrics() == [{"step": 1}, {"step": 3}]


def test_torn_first_line(run: Run) -> None:
    run.metrics_file.write_text('{"step"')
    assert run.metrics() == []
    run.log({"step": 0})
    assert run.metrics_file.read_text() == '{"step": 0}\n'


def test_broken_line_in_the_middle(run: Run) -> None:
    run.metrics_file.write_text('{"step": 1}\n{"step": }\n{"step": 3}\n')
    fails("metrics.jsonl: line 2", run.metrics)


def test_metrics_beyond_their_size_limit(run: Run) -> None:
    run.metrics_file.touch()
    os.truncate(run.metrics_file, runs.MAX_METRICS_BYTES + 1)
    fails("larger than 256 MiB", run.metrics)


def test_full_disk_while_logging(run: Run) -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full on this system")
    run.metrics_file.symlink_to("/dev/full")
    fails("metrics.jsonl: cannot be written", run.log, {"step": 1})


def test_cut_goes_back_to_the_checkpoint(run: Run) -> None:
    for step in range(1, 7):
        run.log({"step": step})
        if step in (1, 2, 4, 6):
            save(run, step, keep=4)
    with run.metrics_file.open("a") as file:
        file.write('{"step": 7')
    fails("no checkpoint of step 3 to go back to; it has checkpoints of step 1, 2, 4, 6", run.cut, 3)
    run.cut(4)
    assert [record["step"] for record in run.metrics()] == [1, 2, 3, 4]
    assert run.steps() == [2, 4]  # step 1: as if the process had died before `save` deleted it
    run.log({"step": 5})
    save(run, 6, keep=3)
    assert run.metrics_file.read_text().splitlines()[-1] == '{"step": 5}'
    run.cut(-1)
    assert (run.metrics(), run.steps(), run.metrics_file.read_text()) == ([], [], "")


def test_failed_cut_leaves_the_metrics(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    save(run, 1)
    for step in (1, 2):
        run.log({"step": step})
    monkeypatch.setattr(os, "replace", full_disk)
    fails("metrics.jsonl: cannot be written", run.cut, 1)
    assert [record["step"] for record in run.metrics()] == [1, 2]


# ------------------------------------------------------------------------------------------------------- checkpoints


def test_save_keeps_the_newest(run: Run) -> None:
    for step in (5, 10, 100_000_000, 100_000_001):
        save(run, step)
    assert sorted(path.name for path in run.checkpoints.iterdir()) == ["step-100000000", "step-100000001"]
    assert run.latest() == run.checkpoints / "step-100000001"
    save(run, 100_000_002, keep=1)
    assert run.steps() == [100_000_002]


def test_load_newest_and_by_step(run: Run) -> None:
    save(run, 1)
    save(run, 2)
    parts, state = run.load()
    assert state == {"note": "at 2", "step": 2}
    assert torch.equal(parts["model"]["w"], torch.full((64,), 2.0))
    assert run.load(1)[1]["note"] == "at 1"
    fails("no checkpoint of step 3; it has checkpoints of step 1, 2", run.load, 3)


def test_partial_and_foreign_folders_do_not_count(run: Run) -> None:
    save(run, 1)
    for name in (f".step-00000002.partial-{os.getppid()}", "step-3", "step-000000004", "best"):
        (run.checkpoints / name).mkdir()
    (run.checkpoints / "step-00000009").write_text("a file")
    assert run.steps() == [1]
    assert run.latest().name == "step-00000001"


def test_failed_save_keeps_the_old_ones(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    save(run, 1)
    save(run, 2)
    monkeypatch.setattr(checkpoint.os, "replace", full_disk)
    fails("step-00000003: .*No space left on device", save, run, 3)
    assert sorted(path.name for path in run.checkpoints.iterdir()) == ["step-00000001", "step-00000002"]
    assert run.load()[1]["step"] == 2


@pytest.mark.parametrize("step", [2, 1, -1, 2.0], ids=str)
def test_step_must_go_on(run: Run, step: int) -> None:
    save(run, 2)
    fails(f"step: {step};", save, run, step)
    assert run.steps() == [2]


def test_keep_nothing(run: Run) -> None:
    fails("keep: 0", save, run, 1, keep=0)
    assert run.steps() == []


def test_damaged_newest_offers_the_good_one_before(run: Run) -> None:
    for step in (1, 2, 3):
        save(run, step, keep=3)
    damage(run, 3)
    offer = "step-00000003/model.safetensors: .*of step {} before it is good: to go on from there, delete {}$"
    fails(offer.format(2, "step-00000003"), run.load)
    damage(run, 2)
    fails(offer.format(1, "step-00000003 and step-00000002"), run.load)
    assert run.load(1)[1]["step"] == 1
    damage(run, 1)
    fails("there is no good checkpoint before it", run.load)


def test_leftovers_of_a_dead_process_go_with_the_cut(run: Run) -> None:
    """As after a death within `_delete`, when no further checkpoint is to come."""
    save(run, 1)
    (run.checkpoints / f".step-00000000.partial-{os.getpid()}").mkdir()
    run.cut(1)
    assert [path.name for path in run.checkpoints.iterdir()] == ["step-00000001"]


def test_newest_without_its_state_is_damaged_not_ignored(run: Run) -> None:
    save(run, 1)
    save(run, 2)
    (run.path(2) / "state.json").unlink()
    fails("step-00000002/state.json: no such file; the checkpoint of step 1 before it is good", run.load)


def test_config_on_disk_is_plain_json(run: Run) -> None:
    assert json.loads((run.folder / "config.json").read_text()) == CONFIG


# The lock


HOLD = """
import sys
sys.modules.update({name: None for name in sys.argv[2:]})
from esvae import data, train
from esvae.cli import commands
from esvae.runs import Run

with Run.open(sys.argv[1]).alone():
    print("held", flush=True)
    sys.stdin.read()
"""


def holder(run: Run, *blocked: str) -> subprocess.Popen:
    """A process that holds the lock of a run until its stdin ends, where some modules are not to be had."""
    command = [sys.executable, "-c", HOLD, str(run.folder), *blocked]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    process = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


def test_the_lock_ends_with_its_process(run: Run) -> None:
    process = holder(run)
    try:
        fails("another process trains in it", run.alone().__enter__)
    finally:
        process.kill()
        process.communicate()
    with run.alone():
        fails("another process trains in it", Run.open(run.folder).alone().__enter__)
    with run.alone():
        pass


def test_nothing_needs_what_windows_lacks(run: Run) -> None:
    process = holder(run, "fcntl", "resource", "pwd", "grp", "termios")
    assert process.communicate("")[0] == ""
    assert process.returncode == 0


def test_a_file_system_without_locks(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(runs.FileLock, "acquire", refuse)
    with run.alone():
        pass
