"""A run is a folder:

    config.json                  what was asked for
    checkpoints/step-00000123/   see `esvae.checkpoint`
    metrics.jsonl                one JSON object per line, each with `step`
    events/                      TensorBoard
    images/                      grids and curves
    .lock                        empty; locked by the process that trains
    diverged                     there if the training ended so: why

Killed at any instant, it can be opened and gone on with: config and checkpoints are replaced as a whole, and
metrics.jsonl is cut back to the checkpoint's step.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from torch import Tensor

from esvae import checkpoint
from esvae.errors import InputError

CONFIG = "config.json"
DIVERGED = "diverged"
LOCK = ".lock"  # stays, empty: without it, two could each hold a lock on a file of that name
MAX_METRICS_BYTES = 1 << 28  # 256 MiB, about a million records


def atomic_write(path: Path | str, content: bytes | str) -> None:
    """Write a file so that `path` holds either its old content or all of the new one, on disk (text as UTF-8).

    Raises:
        InputError: the disk refuses (full, read-only, no such folder); `path` is as before, nothing else is left.
    """
    path = Path(path)
    partial = checkpoint.partial_path(path)
    try:
        checkpoint.remove_stale(path.parent, path.name)
        checkpoint.write_synced(partial, content.encode() if isinstance(content, str) else content)
        os.replace(partial, path)
        checkpoint.sync_folder(path.parent)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        if os.path.lexists(partial):
            partial.unlink()


def make_folder(out: Path) -> None:
    """The folder that `--out` names, where it is not there yet, or an InputError."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"out: got {out}, a folder that cannot be made: {error.strerror or error}") from error


class Run:
    """A run's folder; made by `Run.create` or `Run.open`.

    Attributes:
        folder, config, checkpoints, metrics_file, events, images: its paths, and the content of config.json.
    """

    def __init__(self, folder: Path | str, config: dict[str, Any]) -> None:
        self.folder = Path(folder)
        self.config = config
        self.checkpoints = self.folder / "checkpoints"
        self.metrics_file = self.folder / "metrics.jsonl"
        self.events = self.folder / "events"
        self.images = self.folder / "images"

    @classmethod
    def create(cls, folder: Path | str, config: dict[str, Any]) -> Run:
        """Begin a run in a folder that is new or empty. One that holds a run that diverged is moved aside, with a
        warning that says where to: begun anew by a lower learning rate, the run has the same name.

        Raises:
            InputError: the folder holds a run or something else, cannot be made, or `config` is no JSON.
        """
        run = cls(folder, config)
        try:
            text = json.dumps(config, indent=2) + "\n"
        except (TypeError, ValueError) as error:
            raise InputError(f"config: cannot be written as JSON: {error}") from error
        try:
            _move_diverged(run.folder)
            _require_unused(run.folder)
            for made in (run.folder, run.checkpoints, run.events, run.images):
                made.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{folder}: cannot make the run's folder: {error.strerror or error}") from error
        atomic_write(run.folder / CONFIG, text)  # last: a folder with a config.json is a run
        return cls(folder, json.loads(text))

    @classmethod
    def open(cls, folder: Path | str) -> Run:
        """Open a run; writes nothing.

        Raises:
            InputError: the folder is missing, is no run, or its config.json is damaged.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder; a run's folder (with a {CONFIG}) is expected")
        if not os.path.lexists(folder / CONFIG):
            raise InputError(f"{folder}: is no run: it has no {CONFIG}")
        return cls(folder, checkpoint.read_json(folder / CONFIG, "the config.json of a run"))

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Meanwhile no other process can go on with the run, which would take records and checkpoints from under this
        one. The lock ends with the process, however that ends.

        Raises:
            InputError: another process has it.
        """
        lock = FileLock(self.folder / LOCK)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise InputError(f"{self.folder}: another process trains in it; wait for its end, or end it") from None
        except (OSError, NotImplementedError):  # file systems of networks may know no locks
            pass
        try:
            yield
        finally:
            lock.release()

    def set_diverged(self, why: str | None) -> None:
        """Note that the training diverged, or with None that it goes on."""
        if why is None:
            (self.folder / DIVERGED).unlink(missing_ok=True)
        else:
            atomic_write(self.folder / DIVERGED, why + "\n")

    # ----------------------------------------------------------------------------------------- metrics

    def log(self, record: dict[str, Any]) -> None:
        """Append one record to metrics.jsonl, at once.

        Args:
            record: JSON values; `step` (int) is required.
        """
        if not _is_step(record.get("step")):
            raise InputError(f"record: step is {record.get('step')!r}; an integer of at least 0 is expected")
        try:
            line = json.dumps(record).encode() + b"\n"
        except (TypeError, ValueError) as error:
            raise InputError(f"record: cannot be written as JSON: {error}") from error
        try:
            with self.metrics_file.open("a+b") as file:
                _drop_torn_end(file)
                file.write(line)
        except OSError as error:
            raise InputError(f"{self.metrics_file}: cannot be written: {error.strerror or error}") from error

    def metrics(self) -> list[dict[str, Any]]:
        """All records, in the order of writing; a last line that was torn by a crash is dropped.

        Raises:
            InputError: another line is no record (the message has its number), or the file is beyond 256 MiB.
        """
        return [record for _, record in self._lines()]

    def cut(self, step: int, keep: int = 2) -> None:
        """Go back to the checkpoint of `step`: drop the records and the checkpoints beyond it. -1 drops all of them.

        Of the others the newest `keep` stay, as after `save`, and what it left half-written goes.

        Raises:
            InputError: there is no checkpoint of that step, or the disk refuses; metrics.jsonl is then as it was.
        """
        if step != -1 and step not in self.steps():
            raise InputError(f"{self.folder}: no checkpoint of step {step} to go back to; it has {self._listed()}")
        # The checkpoints first: should the process die in between, the next cut drops the records too.
        self._delete([other for other in self.steps() if other > step])
        self._delete(self.steps()[:-keep])
        try:
            if self.checkpoints.is_dir():
                checkpoint.remove_stale(self.checkpoints)
        except OSError as error:
            raise InputError(f"{self.checkpoints}: cannot be written: {error.strerror or error}") from error
        if self.metrics_file.exists():
            atomic_write(self.metrics_file, b"".join(line for line, record in self._lines() if record["step"] <= step))

    def _lines(self) -> Iterator[tuple[bytes, dict[str, Any]]]:
        if not self.metrics_file.exists():
            return
        try:
            size = self.metrics_file.stat().st_size
            if size > MAX_METRICS_BYTES:
                raise InputError(f"{self.metrics_file}: larger than {MAX_METRICS_BYTES >> 20} MiB")
            lines = self.metrics_file.read_bytes().splitlines(keepends=True)
        except OSError as error:
            raise InputError(f"{self.metrics_file}: cannot be read: {error.strerror or error}") from error
        for number, line in enumerate(lines, start=1):
            record = _parse(line)
            if record is not None:
                yield line, record
            elif number < len(lines):
                raise InputError(f"{self.metrics_file}: line {number} is no JSON object with an integer step")

    # ------------------------------------------------------------------------------------- checkpoints

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, ascending; half-written ones do not count."""
        if not self.checkpoints.is_dir():
            return []
        names = [path.name for path in self.checkpoints.iterdir() if path.is_dir()]
        return sorted(int(name[5:]) for name in names if re.fullmatch(r"step-([0-9]{8}|[1-9][0-9]{8,17})", name))

    def path(self, step: int) -> Path:
        """The folder of a step's checkpoint."""
        return self.checkpoints / f"step-{step:08d}"

    def save(self, step: int, parts: dict[str, dict[str, Tensor]], state: dict[str, Any], keep: int = 2) -> None:
        """Write the checkpoint of a step; once it is whole, delete all but the newest `keep`.

        Args:
            step: beyond that of every checkpoint there is.
            parts, state: as in `esvae.checkpoint.save`; `state["step"]` is set to `step`.
            keep: at least 1.
        """
        if keep < 1:
            raise InputError(f"keep: {keep}; at least 1 checkpoint must be kept")
        if not _is_step(step):
            raise InputError(f"step: {step!r}; an integer of at least 0 is expected")
        if step <= max(self.steps(), default=-1):
            raise InputError(f"step: {step}; {self.folder} has {self._listed()}; a later step is expected")
        try:
            self.checkpoints.mkdir(exist_ok=True)
            if self.metrics_file.exists():  # a power cut must not take records that are older than the checkpoint
                with self.metrics_file.open("ab") as file:
                    os.fsync(file.fileno())
        except OSError as error:
            raise InputError(f"{self.folder}: cannot be written: {error.strerror or error}") from error
        checkpoint.save(self.path(step), parts, {**state, "step": step})
        self._delete(self.steps()[:-keep])

    def latest(self) -> Path:
        """The folder of the newest complete checkpoint.

        Raises:
            InputError: there is none yet.
        """
        steps = self.steps()
        if not steps:
            raise InputError(f"{self.folder}: has no checkpoint yet")
        return self.path(steps[-1])

    def load(self, step: int | None = None) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
        """Read and verify a checkpoint, the newest by default: `(parts, state)`; `state["step"]` is its step.

        Raises:
            InputError: there is none, or it is damaged: the message then offers the newest good one before it.
        """
        if step is not None and step not in self.steps():
            raise InputError(f"{self.folder}: no checkpoint of step {step}; it has {self._listed()}")
        folder = self.latest() if step is None else self.path(step)
        with self.offering_the_one_before(folder):
            return checkpoint.load(folder)

    @contextmanager
    def offering_the_one_before(self, folder: Path) -> Iterator[None]:
        """An InputError on what is in a checkpoint also says from which earlier one the run can go on, and how.

        Nothing goes back to it by itself: what took hours would be lost without a word.
        """
        try:
            yield
        except InputError as error:
            raise InputError(f"{error}; {self._good_before(int(folder.name[5:]))}") from error

    def _good_before(self, step: int) -> str:
        bad = [step]
        for earlier in reversed([other for other in self.steps() if other < step]):
            try:
                checkpoint.load(self.path(earlier))
            except InputError:
                bad.append(earlier)
                continue
            names = " and ".join(self.path(other).name for other in bad)
            return f"the checkpoint of step {earlier} before it is good: to go on from there, delete {names}"
        return "there is no good checkpoint before it"

    def _listed(self) -> str:
        return "checkpoints of step " + ", ".join(map(str, self.steps())) if self.steps() else "no checkpoint"

    def _delete(self, steps: list[int]) -> None:
        """Delete checkpoints; each is renamed first, so that none is ever seen half-deleted."""
        for step in steps:
            hidden = checkpoint.partial_path(self.path(step))
            try:
                os.replace(self.path(step), hidden)
                shutil.rmtree(hidden)
            except OSError as error:
                raise InputError(f"{self.path(step)}: cannot be deleted: {error.strerror or error}") from error


def _move_diverged(folder: Path) -> None:
    if not (folder / CONFIG).is_file() or not (folder / DIVERGED).is_file():
        return
    number, aside = 1, folder.with_name(f"{folder.name}-diverged")
    while os.path.lexists(aside):
        number += 1
        aside = folder.with_name(f"{folder.name}-diverged-{number}")
    os.replace(folder, aside)
    warnings.warn(f"{folder}: the run there diverged; it is now {aside}", stacklevel=2)


def _require_unused(folder: Path) -> None:
    if not os.path.lexists(folder):
        return
    if not folder.is_dir():
        raise InputError(f"{folder}: is no folder; use another --out")
    if os.path.lexists(folder / CONFIG):
        raise InputError(f"{folder}: holds a run already; use --resume or another --out")
    checkpoint.remove_stale(folder)
    for path in folder.iterdir():  # the empty folders of a run that died before its config.json was there are fine
        if not (path.is_dir() and path.name in ("checkpoints", "events", "images") and not any(path.iterdir())):
            raise InputError(f"{folder}: is not empty and no run (it holds {path.name}); use another --out")


def _is_step(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _parse(line: bytes) -> dict[str, Any] | None:
    """A record, or None where the line is no whole record."""
    try:
        record = json.loads(line) if line.endswith(b"\n") else None
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) and _is_step(record.get("step")) else None


def _drop_torn_end(file: Any) -> None:
    """Cut a file, open for reading and appending, behind its last newline."""
    end = file.seek(0, os.SEEK_END)
    while end > 0:
        start = max(0, end - 4096)
        file.seek(start)
        newline = file.read(end - start).rfind(b"\n")
        if newline >= 0:
            end = start + newline + 1
            break
        end = start
    file.truncate(end)
