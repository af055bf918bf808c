"""A small image folder, small options, a disk that is full, runs that are interrupted and compared: what the tests of
training and command line share."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file

from esvae import data
from esvae.runs import Run

TINY = [  # on top of the preset `best`
    *("--model.latent", "4", "--model.steps", "2", "--model.mixture-components", "2"),
    *(
        "--train.batch-size",
        "16",
        "--train.epochs",
        "2",
        "--train.time-steps",
        "1/2@1,1/2@2",
        "--train.precision",
        "fp32",
    ),
]


def image_folder(folder: Path, train: int, test: int, mode: str = "RGB") -> Path:
    """Digits as PNG files, `folder`/train and `folder`/test."""
    for split, count in (("train", train), ("test", test)):
        (folder / split).mkdir(parents=True)
        for index, pixels in enumerate(data.load("digits", split, size=8).pixels[:count]):
            Image.fromarray(pixels[0].numpy()).convert(mode).save(folder / split / f"{index:03d}.png")
    return folder


@contextmanager
def full_disk(largest: int = 4096) -> Iterator[None]:
    """The system refuses to let any file of this process grow beyond `largest` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def mount(disk: Path, options: str) -> None:
    """Give the file system of the fixture `disk` another size, or other rights."""
    subprocess.run(["mount", "-o", f"remount,{options}", disk], check=True)


def run_script(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a script of the tests' in a process of its own, which imports what this one does."""
    tests = Path(__file__).parent
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tests), *filter(None, sys.path)])}
    return subprocess.run(
        [sys.executable, str(tests / name), *arguments], env=environment, capture_output=True, text=True
    )


def records(run: Run) -> list[dict]:
    return [{name: value for name, value in record.items() if name != "seconds"} for record in run.metrics()]


def assert_same(run: Run, other: Run) -> None:
    """Same records, same weights, same state of the optimizer, bit for bit."""
    assert records(run) == records(other)
    (parts, state), (other_parts, other_state) = run.load(), other.load()
    assert state | {"seconds": 0} == other_state | {"seconds": 0}
    exported, other_exported = (load_file(r.folder / "model" / "model.safetensors") for r in (run, other))
    for name, tensors in {**parts, "exported": exported}.items():
        others = other_parts.get(name, other_exported)
        assert tensors.keys() == others.keys()
        for key in tensors:
            assert torch.equal(tensors[key], others[key]), (name, key)


def stop_at_call(count: int, function: Callable) -> Callable:
    """`function`, which Ctrl-C interrupts once it has returned for the `count`-th time."""
    calls = 0

    def wrapped(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        result = function(*arguments, **options)
        calls += 1
        if calls == count:
            raise KeyboardInterrupt
        return result

    return wrapped
