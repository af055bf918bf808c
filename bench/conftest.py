"""What all benchmarks share: options, the size of the problem, and `measure`, which times one entry of one group.

`pytest bench/` times; `pytest bench/ --benchmark-disable` only checks that everything runs, at a tiny size and with
nothing compiled. A benchmark belongs to a group, and in it goes by its entry's name: "ours", a peer's, or "ReLU twin"
(a yardstick, as is the copy that each entry of an op is timed in turn with). A ratio is always one of two medians of
the same process.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from functools import cache
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import NamedTuple

import pytest
import torch
from memory import peak_bytes, saved_bytes, settle
from table import Row, markdown

import esvae_kernels

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
    if config.getoption("--benchmark-disable"):
        torch.compiler.set_stance("force_eager")  # to compile takes longer than all else of a smoke run
    if not config.getoption("--untuned"):
        esvae_kernels.tune_allocator()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if rows := config.stash[_ROWS]:
        terminalreporter.section("medians and ratios")
        terminalreporter.write_line(markdown([rows], every_group=False))


@pytest.fixture(scope="session")
def smoke(pytestconfig: pytest.Config) -> bool:
    """Whether nothing is timed, so that everything should be small."""
    return bool(pytestconfig.getoption("--benchmark-disable"))


@pytest.fixture(scope="session")
def elements(smoke: bool) -> int:
    """How many elements, all time steps counted, the tensors have; the same at every T."""
    return 20 << 14 if smoke else 1 << 25


@pytest.fixture(scope="session")
def size(smoke: bool) -> Size:
    return Size(4, 1 << 12) if smoke else Size(16, 1 << 21)


@pytest.fixture
def measure(benchmark, pytestconfig: pytest.Config) -> Callable[..., None]:
    """measure(group, entry, run, forward=None, ..., **info): times `run`, and counts the bytes it needs at its peak.

    `forward`, where given, builds the graph whose saved tensors are counted, and `peak` counts otherwise than here and
    now. `against` is timed in turn with `run`, round by round, so that their ratio is one of the same seconds, whatever
    else the machine does; its median is recorded as "copy_median". `rounds` are for what takes long: fewer than asked
    for. `info` is recorded too; what the summary and the plot need of it is in table.py's `Row`.
    """

    def measure(
        group: str,
        entry: str,
        run: Callable[[], object],
        forward: Callable[[], object] | None = None,
        *,
        against: Callable[[], object] | None = None,
        peak: Callable[[], int | None] | None = None,
        rounds: int | None = None,
        **info: object,
    ) -> None:
        def timed() -> None:
            run()  # the result is freed within the time: it is part of what an allocation costs

        copies = []

        def copy_first() -> None:
            start = perf_counter()
            against()
            copies.append(perf_counter() - start)

        benchmark.group = group
        untuned = pytestconfig.getoption("--untuned")
        info |= _surroundings() | {"entry": entry, "allocator": "default" if untuned else "tuned"}
        if forward is not None:
            info["saved_bytes"] = saved_bytes(forward)
        info["peak_bytes"] = peak() if peak else peak_bytes(timed)
        most = pytestconfig.getoption("--rounds")
        if benchmark.enabled:
            # By default the allocator gives large tensors back at once: every run needs new memory.
            settle(timed, at_least=1 if rounds else 2, seconds=0.0 if untuned else 2.0)
        benchmark.pedantic(timed, setup=copy_first if against else None, rounds=min(rounds or most, most))
        if against:
            info["copy_median"] = median(copies)
        benchmark.extra_info.update(info)
        if benchmark.enabled:
            pytestconfig.stash[_ROWS].append(Row.of(group, benchmark.stats.stats.median, info))

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
