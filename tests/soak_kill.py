"""Kills training at random instants and lets it go on: `python tests/soak_kill.py [--trials 50] [--seed S]`.

Each trial trains a tiny model by the command line, kills it (SIGKILL) up to three times, and lets `--resume` end it.
A quarter of the kills falls anywhere; the others into the writing of a checkpoint, of the metrics, of the exported
model: up to a few milliseconds behind a random one of the process's openings, renamings and deletions of files there.

It must hold that every checkpoint in sight after a kill is whole; that the process goes on from the last of them (the
records up to there keep their times of day); and that the end is, byte for byte, that of an undisturbed run with as
many threads: weights, state of the optimizer, exported model, records but for times, images, events.

Processes are forked, so that a trial takes seconds: this one must never compute with torch, whose threads do not
survive a fork. Linux.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import re
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import matplotlib.backends.backend_agg
import matplotlib.figure  # noqa: F401
import torch._dynamo  # noqa: F401 - what training imports late, is imported once for all the processes
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from training_helpers import TINY, contents, image_folder

from esvae import cli, train
from esvae.runs import Run

TARGETS = {  # name -> the paths below the run's folder that belong to it
    "anywhere": None,
    "checkpoint": r"checkpoints/",
    "metrics": r"\.?metrics\.jsonl",
    "export": r"\.?model[/.]|\.?model$",
}
AUDITED = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir"}
LAST_DELAY = 0.02  # seconds behind an event
OPTIONS = ["--checkpoint-minutes", "0", "--quiet", *TINY]


class Child(NamedTuple):
    """A forked process, and the pipe on which it tells which files it is about to touch."""

    pid: int
    events: int

    def lines(self) -> Iterator[str]:
        """Paths below the run's folder, one per event, until the process is gone."""
        rest = b""
        while block := os.read(self.events, 65536):
            *whole, rest = (rest + block).split(b"\n")
            yield from (line.decode() for line in whole)

    def end(self) -> int:
        """The exit code, or minus the signal that ended the process."""
        os.close(self.events)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def fork(work: Callable[[int], int], log: Path) -> Child:
    """Run `work`, given the pipe to write events to, in a process of its own; what it prints goes to `log`."""
    out, into = os.pipe()
    pid = os.fork()
    if pid:
        os.close(into)
        return Child(pid, out)
    code = 70
    try:
        os.close(out)
        printed = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(printed, 1)
        os.dup2(printed, 2)
        code = work(into)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def training(folder: Path, data: Path) -> Callable[[int], int]:
    """Train into `folder`, or go on there if it holds a run, having verified every checkpoint in sight."""

    def work(pipe: int) -> int:
        train.LOG_EVERY = 1  # so that every step ends with a checkpoint
        resume = (folder / "config.json").exists()
        if resume:
            run = Run.open(folder)
            for step in run.steps():
                run.load(step)
        prefix = f"{folder}/"

        def audit(event: str, arguments: tuple) -> None:
            if event in AUDITED and isinstance(arguments[0], str | os.PathLike):
                path = os.fspath(arguments[0])
                if isinstance(path, str) and path.startswith(prefix):
                    os.write(pipe, f"{path[len(prefix) :]}\n".encode())

        sys.addaudithook(audit)
        start = ["--resume"] if resume else ["--preset", "best", "--data", f"folder:{data}"]
        return cli.main(["train", *start, "--out", str(folder), *OPTIONS])

    return work


def kill_at(child: Child, target: str, count: int, delay: float) -> tuple[str, int]:
    """Kill `delay` seconds behind the `count`-th event of a target; the last event before, and the exit code.

    With "anywhere", `delay` seconds behind the start.
    """
    pattern = TARGETS[target]
    deadline = time.monotonic() + delay if pattern is None else None
    last, seen = "-", 0
    while True:
        wait = None if deadline is None else max(0.0, deadline - time.monotonic())
        if not select.select([child.events], [], [], wait)[0]:
            os.kill(child.pid, signal.SIGKILL)
            deadline = None  # what it still had to say
        block = os.read(child.events, 65536)
        if not block:
            return last, child.end()
        for line in block.decode().splitlines():
            last = line
            seen += bool(pattern and re.match(pattern, line))
            if pattern and seen == count and deadline is None:
                deadline, seen = time.monotonic() + delay, seen + 1


def records(folder: Path) -> list[str]:
    """The whole lines of metrics.jsonl."""
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [line for line in lines if line.endswith("\n")]


def kept(folder: Path) -> list[str]:
    """The records up to the last checkpoint, which the next process has to keep as they are."""
    steps = Run(folder, {}).steps()
    return [line for line in records(folder) if steps and json.loads(line)["step"] <= steps[-1]]


def result(folder: Path) -> dict[str, object]:
    """What a finished run left, but for times."""
    untimed = [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in records(folder)]
    files = {name: content for name, content in contents(folder).items() if not name.startswith("events")}
    state = {name: json.loads(files.pop(name)) for name in list(files) if name.endswith("state.json")}
    for content in state.values():
        content.pop("sha256")
        content["state"].pop("seconds")
    for name in ("metrics.jsonl", "learning-curve.png"):  # times are in both
        assert files.pop(name)
    events = EventAccumulator(str(folder / "events")).Reload()
    tags = events.Tags()
    scalars = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in tags["scalars"]}
    pictures = {tag: [e.step for e in events.Images(tag)] for tag in tags["images"]}
    return {"records": untimed, **files, **state, "scalars": scalars, "pictures": pictures}


def differences(found: dict[str, object], expected: dict[str, object]) -> list[str]:
    names = sorted(found.keys() | expected.keys())
    return [name for name in names if name not in found or name not in expected or found[name] != expected[name]]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--trials", type=int, default=50)
    parser.add_argument("--seed", type=int, default=None, help="of the instants; by default another one each time")
    options = parser.parse_args(arguments)
    seed = random.randrange(2**32) if options.seed is None else options.seed
    print(f"seed {seed}", flush=True)
    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # it warns of events that a killed process wrote
    with tempfile.TemporaryDirectory() as place:
        os.environ["ESVAE_CACHE_DIR"] = f"{place}/cache"
        return soak(Path(place), options.trials, random.Random(seed))


def soak(place: Path, trials: int, chance: random.Random) -> int:
    # In a process of its own, because to make the images is to compute.
    made = fork(lambda _: image_folder(place / "data", train=32, test=8) and 0, place / "log")
    assert made.end() == 0, (place / "log").read_text()
    start = time.monotonic()
    undisturbed = fork(training(place / "undisturbed", place / "data"), place / "log")
    events = list(undisturbed.lines())
    assert undisturbed.end() == 0, (place / "log").read_text()
    seconds = time.monotonic() - start
    counts = {name: sum(bool(re.match(p, line)) for line in events) for name, p in TARGETS.items() if p}
    print(f"undisturbed: {seconds:.1f} s, file events {counts}", flush=True)
    expected = result(place / "undisturbed")
    kills: Counter[str] = Counter()
    failed = 0
    for trial in range(trials):
        folder, log = place / "run", place / f"log-{trial}"
        story, wrong = [], []
        for number in range(chance.randint(1, 3)):
            target = list(TARGETS)[(trial + number) % len(TARGETS)]
            count = chance.randint(1, counts.get(target, 1))
            delay = chance.uniform(0, seconds if target == "anywhere" else LAST_DELAY)
            before = kept(folder)
            last, code = kill_at(fork(training(folder, place / "data"), log), target, count, delay)
            wrong += ["did not go on from the last checkpoint"] * (records(folder)[: len(before)] != before)
            wrong += [f"ended with {code}"] * (code not in (0, -signal.SIGKILL))
            if code == -signal.SIGKILL:
                kills[target] += 1
                left = sum(".partial-" in path.name for path in folder.rglob("*"))
                story.append(f"{target} #{count} + {delay * 1000:.0f} ms at {last}{', left a part' * bool(left)}")
        before = kept(folder)
        code = kill_at(fork(training(folder, place / "data"), log), "export", -1, 0)[1]
        wrong += [f"ended with {code}"] * (code != 0)
        if code == 0:
            wrong += ["did not go on from the last checkpoint"] * (records(folder)[: len(before)] != before)
            wrong += differences(result(folder), expected)
        print(f"{trial + 1:3}  {'; '.join(wrong) or 'same'}  <- {' | '.join(story) or 'not killed'}", flush=True)
        if wrong:
            failed += 1
            print(log.read_text(), flush=True)
        shutil.rmtree(folder)
    print(f"{trials} trials, {sum(kills.values())} kills {dict(kills)}, {failed} failed", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
