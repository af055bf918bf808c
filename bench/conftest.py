"""What all benchmarks share: options, the size of the problem, and `measure`, which times one entry of one group.

`pytest bench/` times; `pytest bench/ --benchmark-disable` only checks that everything runs, at a tiny size. A benchmark
belongs to a group, and in it goes by its entry's name: "copy" or "ReLU twin" (the yardsticks), "ours", or a peer's. A
ratio is always one of two medians of the same process.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from memory import peak_bytes, saved_bytes
from table import Row, markdown

import esvae_kernels

WARMUP_ROUNDS = 2
_ROWS = pytest.StashKey[list[Row]]()


class Size(NamedTuple):
    """T time steps of N neurons."""

    steps: int
    neurons: int


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("esvae benchmarks")
    group.addoption("--untuned", action="store_true", help="leave the C library's allocator at its defaults")
    group.addoption("--rounds", type=int, default=7, help="timed rounds per benchmark (default: 7)")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("python_files", "bench_*.py")
    config.stash[_ROWS] = []
    torch.set_num_threads(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    if not config.getoption("--untuned"):
        esvae_kernels.tune_allocator()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if rows := config.stash[_ROWS]:
        terminalreporter.section("medians and ratios")
        terminalreporter.write_line(markdown([rows]))


@pytest.fixture(scope="session")
def smoke(pytestconfig: pytest.Config) -> bool:
    """Whether nothing is timed, so that everything should be small."""
    return bool(pytestconfig.getoption("--benchmark-disable"))


@pytest.fixture(scope="session")
def size(smoke: bool) -> Size:
    return Size(4, 1 << 12) if smoke else Size(16, 1 << 21)


@pytest.fixture
def measure(benchmark, pytestconfig: pytest.Config) -> Callable[..., None]:
    """measure(group, entry, run, forward=None, ..., **info): times `run`, and counts the bytes it needs at its peak.

    `forward`, where given, builds the graph whose saved tensors are counted, and `peak` counts otherwise than here and
    now. `rounds` are for what takes long: fewer than asked for, after one to warm up. `info` is recorded too.
    """

    def measure(
        group: str,
        entry: str,
        run: Callable[[], object],
        forward: Callable[[], object] | None = None,
        *,
        peak: Callable[[], int | None] | None = None,
        rounds: int | None = None,
        **info: object,
    ) -> None:
        def timed() -> None:
            run()  # the result is freed within the time: it is part of what an allocation costs

        benchmark.group = group
        info |= _surroundings() | {
            "entry": entry,
            "allocator": "default" if pytestconfig.getoption("--untuned") else "tuned",
        }
        if forward is not None:
            info["saved_bytes"] = saved_bytes(forward)
        info["peak_bytes"] = peak() if peak else peak_bytes(timed)
        benchmark.extra_info.update(info)
        most = pytestconfig.getoption("--rounds")
        benchmark.pedantic(timed, rounds=min(rounds or most, most), warmup_rounds=1 if rounds else WARMUP_ROUNDS)
        if benchmark.enabled:
            pytestconfig.stash[_ROWS].append(Row.of(group, benchmark.stats.stats.median, benchmark.extra_info))

    return measure


@cache
def _surroundings() -> dict[str, object]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    model = next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )
    return {"device": model, "threads": torch.get_num_threads(), "torch": torch.__version__}
