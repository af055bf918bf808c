"""What all benchmarks share: options, the size of the problem, and `measure`, which times one entry of one group.

`pytest bench/` times; `pytest bench/ --benchmark-disable` only checks that everything runs, at a tiny size and with
nothing compiled. A benchmark belongs to a group, and in it goes by its entry's name: "ours", a peer's, or "ReLU twin"
(a yardstick, as is the copy that each entry of an op is timed in turn with). A ratio is always one of two medians of
the same process.

`pytest bench/ --device cuda` times on a GPU, by events on its stream (gpu.py); `--device cpu:0` does all of the same
at a tiny size where there is none. An op of ours is then an entry per backend, and a peer that fails is reported, no
error.
`--json` writes what was measured, also for a run that is stopped. What is skipped stands in the table with the reason.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import NamedTuple

import gpu
import pytest
import torch
from _pytest.outcomes import Skipped
from memory import peak_bytes, saved_bytes, settle
from table import Row, Skip, markdown, of_model

import esvae_kernels

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))  # appended: bench's own conftest comes first
from stand_in import StandIn

_ROWS = pytest.StashKey[list[Row]]()
_SKIPPED = pytest.StashKey[list[Skip]]()
_GPU = pytest.StashKey[gpu.Results | None]()


class Size(NamedTuple):
    """T time steps of N neurons."""

    steps: int
    neurons: int


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("esvae benchmarks")
    group.addoption("--untuned", action="store_true", help="leave the C library's allocator at its defaults")
    group.addoption("--rounds", type=int, default=7, help="timed rounds per benchmark (default: 7)")
    group.addoption(
        "--cases",
        choices=("base", "matrix", "growth"),
        default="base",
        help="of the whole model: some, every size, T and batch, or what the plot of its growth takes (default: base)",
    )
    group.addoption("--json", type=Path, help="with --device cuda: the file for the results")
    with suppress(ValueError):  # tests/conftest.py has it too, where both are run
        parser.addoption("--device", default="cpu", choices=("cpu", "cuda", "cpu:0"), help="what tensors are made on")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("python_files", "bench_*.py")
    config.stash[_ROWS] = []
    config.stash[_SKIPPED] = []
    config.stash[_GPU] = None
    torch.set_num_threads(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    if config.getoption("--benchmark-disable") or config.getoption("--device") == "cpu:0":
        torch.compiler.set_stance("force_eager")  # to compile takes longer than all else of a smoke run
    if not config.getoption("--untuned"):
        esvae_kernels.tune_allocator()
    if config.getoption("--device") != "cpu":
        _configure_gpu(config, torch.device(config.getoption("--device")))


def _configure_gpu(config: pytest.Config, device: torch.device) -> None:
    if device.type == "cuda" and not torch.cuda.is_available():
        raise pytest.UsageError("--device: got cuda, but torch sees no GPU")
    if device.type == "cuda":
        device = torch.device("cuda", torch.cuda.current_device())
    torch.set_default_device(device)
    config.stash[_GPU] = gpu.Results(config.getoption("--json"), gpu.machine(device))
    if device.type == "cpu":
        StandIn(device).__enter__()


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """The benchmarks of the drop-in layers, small calls and neurons from equations are of the CPU. That
    of reading images is a program, and needs more packages."""
    of_cpu = collection_path.name.startswith(("bench_dropin", "bench_calls", "bench_images", "bench_neuron"))
    return True if config.stash[_GPU] is not None and of_cpu else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """On a GPU ours and the whole model come first, what compiles for long last: a run may be stopped in between."""
    if config.stash[_GPU] is not None:
        items.sort(key=_rank)


def _rank(item: pytest.Item) -> tuple[bool, bool]:
    case, entry = item.callspec.params["case"], item.callspec.params["entry"]
    return entry.startswith("compiled"), not (gpu.is_ours(entry) or of_model(case.group))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo) -> Iterator[None]:
    """What is skipped is reported in the table, on a GPU what fails too; a peer's failure is no more than that."""
    report = yield
    results = item.config.stash[_GPU]
    reported = Skipped if results is None else Exception | Skipped
    params = item.callspec.params if hasattr(item, "callspec") else {}
    if "case" in params and call.excinfo is not None and isinstance(call.excinfo.value, reported):
        case, entry = params["case"], params["entry"]
        why = str(call.excinfo.value).strip().split("\n")[0][:120]
        if results is None:
            item.config.stash[_SKIPPED].append(Skip(case.group, entry, why))
            return report
        results.fail(case.group, entry, why)
        if not gpu.is_ours(entry):
            report.outcome, report.longrepr = "skipped", (str(item.path), 0, f"Skipped: {why}")
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if (results := config.stash[_GPU]) is not None:
        terminalreporter.section(results.machine["name"])
        terminalreporter.write_line(gpu.markdown(results.contents()))
    elif rows := config.stash[_ROWS]:
        terminalreporter.section("medians and ratios")
        terminalreporter.write_line(markdown([rows], every_group=False, skipped=config.stash[_SKIPPED]))


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_json(config: pytest.Config, output_json: dict) -> None:
    output_json["skipped"] = [skip._asdict() for skip in config.stash[_SKIPPED]]


@pytest.fixture(scope="session")
def smoke(pytestconfig: pytest.Config) -> bool:
    """Whether nothing is timed, or not in earnest, so that everything should be small."""
    return bool(pytestconfig.getoption("--benchmark-disable")) or gpu.dry()


@pytest.fixture(scope="session")
def elements(smoke: bool) -> int:
    """How many elements, all time steps counted, the tensors have; the same at every T."""
    if smoke:
        return (16 if gpu.dry() else 20) << 14
    return 1 << 26 if torch.get_default_device().type == "cuda" else 1 << 25


@pytest.fixture(scope="session")
def size(smoke: bool, elements: int) -> Size:
    return Size(4, 1 << 12) if smoke else Size(16, elements // 16)


@pytest.fixture
def measure(request: pytest.FixtureRequest, pytestconfig: pytest.Config) -> Callable[..., None]:
    """measure(group, entry, run, forward=None, ..., **info): times `run`, and counts the bytes it needs at its peak.

    `forward`, where given, builds the graph whose saved tensors are counted, and `peak` counts otherwise than here and
    now. `against` is timed in turn with `run`, round by round, so that their ratio is one of the same seconds, whatever
    else the machine does; its median is recorded as "copy_median". `rounds` are for what takes long: fewer than asked
    for. `info` is recorded too; what the summary and the plot need of it is in table.py's `Row`.
    """
    if (results := pytestconfig.stash[_GPU]) is not None:
        return results.measurer(1 if gpu.dry() else pytestconfig.getoption("--rounds"))
    benchmark = request.getfixturevalue("benchmark")

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


def _surroundings() -> dict[str, object]:
    return {"device": _processor(), "threads": torch.get_num_threads(), "torch": torch.__version__}


@cache
def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )
