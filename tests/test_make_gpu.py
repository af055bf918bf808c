"""What `make gpu` runs (gpu.py, sanitize_cuda.py), as far as it can be seen without a GPU."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import re
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path

import pytest
import sanitize_cuda
from sampling import parts

ROOT = Path(__file__).resolve().parent.parent
_spec = importlib.util.spec_from_file_location("make_gpu", ROOT / "tests" / "gpu.py")  # bench/ has a gpu.py too
gpu = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(gpu)
ALLOWED = ["torch", "triton", "numpy", "pytest", "pytest-benchmark", "hypothesis", "scipy", "scikit-learn"]
ALLOWED += ["pybind11", "cmake", "ninja", "setuptools", "pip"]
OWN = "esvae"
HIDE = """
import importlib.metadata, re
from importlib.machinery import PathFinder

HIDDEN, DISTRIBUTIONS = set({modules!r}), set({distributions!r})

find_spec = PathFinder.find_spec

def visible(cls, name, path=None, target=None):
    return None if name.partition(".")[0] in HIDDEN else find_spec(name, path, target)

PathFinder.find_spec = classmethod(visible)
Finder = importlib.metadata.MetadataPathFinder
found = Finder.find_distributions

def of_the_rest(*arguments, **options):
    for distribution in found(*arguments, **options):
        if re.sub(r"[-_.]+", "-", distribution.metadata["Name"]).lower() not in DISTRIBUTIONS:
            yield distribution

Finder.find_distributions = of_the_rest
"""


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def with_dependencies(names: list[str]) -> set[str]:
    """Distributions by their names, and what they need, but for extras."""
    found: set[str] = set()
    left = [normal(name) for name in names]
    while left:
        name = left.pop()
        if name in found:
            continue
        found.add(name)
        try:
            lines = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        left += [normal(re.match(r"[\w.-]+", line)[0]) for line in lines if "extra ==" not in line]
    return found


@pytest.fixture
def bare(tmp_path: Path) -> dict[str, str]:
    """An environment for a Python that has what a bare machine with a GPU has, and our package."""
    allowed = with_dependencies(ALLOWED) | {OWN}
    providers = importlib.metadata.packages_distributions()
    modules = [module for module, names in providers.items() if not {normal(name) for name in names} & allowed]
    distributions = {normal(name) for names in providers.values() for name in names} - allowed
    named = {"pooch", "tyro", "rich", "tensorboard", "safetensors", "huggingface_hub", "PIL", "matplotlib", "xdist"}
    assert named & set(providers) <= set(modules)
    (tmp_path / "sitecustomize.py").write_text(HIDE.format(modules=modules, distributions=sorted(distributions)))
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}


@pytest.mark.slow
def test_everything_is_found_on_a_bare_machine(bare: dict[str, str]) -> None:
    """Every test and benchmark that `make gpu` runs is imported there."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "--device", "cpu:0", "-p", "no:cacheprovider"]
    for paths in ([*gpu.KERNEL_TESTS, "tests/test_gpu.py"], ["bench"]):
        done = subprocess.run([*command, *paths], cwd=ROOT, env=bare, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    for name in (*gpu.OPS, "model"):
        assert f"bench/bench_{name}.py::" in done.stdout
    assert "SKIPPED" not in done.stdout
    assert "bench_images" not in done.stdout


@pytest.mark.slow
def test_a_bare_machine_measures(bare: dict[str, str], tmp_path: Path) -> None:
    """The dry run, without the packages of any extra: each part passes."""
    out = tmp_path / "out"
    command = [sys.executable, "tests/gpu.py", "--dry-run"]
    done = subprocess.run(command, cwd=ROOT, env=bare | {"OUT": str(out)}, capture_output=True, text=True)
    report = done.stdout[-6000:] + done.stderr[-3000:]
    assert done.returncode == 0, report
    summary = json.loads((out / "summary.json").read_text())
    results = {name: step["result"] for name, step in summary["steps"].items()}
    assert {name: result for name, result in results.items() if result != "passed"} == {
        "build": "skipped: a dry run takes what is installed"
    }, report
    assert [name for name in results if name.startswith("bench ")] == [f"bench {op}" for op in (*gpu.OPS, "model")]
    assert sorted(path.name for path in out.iterdir()) == sorted(gpu.RESULTS)
    ops = json.loads((out / "ops.json").read_text())
    assert {row["op"] for row in ops["rows"]} == set(gpu.OPS)
    model = json.loads((out / "model.json").read_text())
    assert {"ours", "ReLU twin", "literal"} <= {row["entry"] for row in model["rows"]}
    assert "`poisson`" in (out / "results.md").read_text()


def test_it_ends_in_time_and_says_what_is_left_out(tmp_path: Path) -> None:
    environment = os.environ | {"OUT": str(tmp_path), "TIME_LIMIT": "11"}
    command = [sys.executable, "tests/gpu.py", "--dry-run", "--only", "sanitize"]
    subprocess.run(command, cwd=ROOT, env=environment, check=True)
    steps = json.loads((tmp_path / "summary.json").read_text())["steps"]
    assert steps["calls"]["result"] == "skipped: out of time"


def test_the_build_needs_no_more() -> None:
    contents = tomllib.loads((ROOT / "pyproject.toml").read_text())
    needed = {re.match(r"[\w.-]+", line)[0] for line in contents["build-system"]["requires"]}
    assert needed <= set(ALLOWED)


@pytest.mark.slow
def test_a_step_that_hangs_is_ended_and_its_log_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUT", str(tmp_path))
    monkeypatch.setattr(gpu, "BUILD", tmp_path)
    (tmp_path / "logs").mkdir()
    run = gpu.Run(dry=True)
    program = "import time; print('x' * (1 << 21), flush=True); print('the end', flush=True); time.sleep(60)"
    step = run.step("tests", "sleeper", [sys.executable, "-c", program], most=2.0)
    assert step is not None
    assert step.result == "FAILED, out of time"
    log = (tmp_path / "tests.log").read_bytes()
    assert log.startswith(b"(the beginning is left out: this is the last MiB)\nxx")
    assert b"the end" in log
    assert len(log) < gpu.LOG_BYTES + 100
    assert json.loads((tmp_path / "summary.json").read_text())["steps"]["sleeper"]["seconds"] < 10


LOG = """\
========= COMPUTE-SANITIZER
========= Uninitialized __global__ memory read of size 4 bytes
=========     at void at::native::vectorized_elementwise_kernel<(int)4, at::native::FillFunctor<float>>(int)+0x160
=========     by thread (0,0,0) in block (0,0,0)
=========     Address 0x7f0000000000
=========     Saved host backtrace up to driver entry point at kernel launch time
=========         Host Frame: esvae::cuda::lif [0x1234] in _esvae_kernels.so
=========
========= Uninitialized __global__ memory read of size 4 bytes
=========     at 0x2a0 in void esvae::<unnamed>::lif_forward<float, (int)4, (bool)0>(esvae::LifForward)
=========     by thread (1,0,0) in block (0,0,0)
=========
========= ERROR SUMMARY: 2 errors
"""


def test_reports_of_the_kernels_of_torch_do_not_count() -> None:
    (found,) = gpu.reports(LOG)
    assert found.startswith("Uninitialized __global__ memory read of size 4 bytes at 0x2a0 in void esvae::")
    assert gpu.reports("1 of 1 calls\n========= ERROR SUMMARY: 0 errors\n") == []


def test_sanitized_calls_take_every_option(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of `lif` in the calls that come first already, a seventh of them; all of them can be made."""
    seen: Counter[tuple[str, object]] = Counter()
    every = {("reset", reset) for reset in sanitize_cuda.RESETS} | {("several", True), ("v_min", -0.3)}
    every |= {("readout", None), ("readout", "mean"), ("record", "membrane"), ("synaptic_decay", 0.6)}

    def record(x, v=None, **options):
        seen.update((name, value) for name, value in options.items() if isinstance(value, str | float | int | None))
        seen["synapse", "per channel"] += options.get("synaptic_decay").__class__.__name__ == "Tensor"
        return original(x, v, **options)

    original = sanitize_cuda.lif
    monkeypatch.setattr(sanitize_cuda, "lif", record)
    todo = list(sanitize_cuda.calls())
    for call in todo[::7]:
        call()
    assert every - set(seen) == set()
    assert seen["synapse", "per channel"] > 0
    assert any(name == "steps" and value for name, value in seen)
    for k, call in enumerate(todo):
        if k % 7:
            call()


def test_parts_hold_every_test_once_and_functions_whole() -> None:
    class Item:
        def __init__(self, nodeid: str) -> None:
            self.nodeid = nodeid

    items = [Item(f"a.py::test_{k}[{n}]") for k in range(10) for n in range(1 + k)]
    found = parts(items, 3)
    assert sorted(item.nodeid for part in found for item in part) == sorted(item.nodeid for item in items)
    functions = [{item.nodeid.partition("[")[0] for item in part} for part in found]
    assert sum(map(len, functions)) == len(set().union(*functions)) == 10
    assert max(map(len, found)) - min(map(len, found)) <= 5


@pytest.mark.slow
def test_few_kernels_of_triton_are_compiled() -> None:
    """By the kernel tests on a GPU; counted without one, where two tests cannot run that ask torch for its GPU."""
    path = os.pathsep.join(filter(None, [str(ROOT / "tests"), os.environ.get("PYTHONPATH")]))
    *options, names = gpu.WITH_TRITON
    names += " and not nothing_of_the_size_of_y and not test_generators"
    command = [sys.executable, "-m", "pytest", "-p", "emulate.launches", "-q", "-p", "no:cacheprovider"]
    command += [*options, names, *gpu.KERNEL_TESTS]
    environment = os.environ | {"PYTHONPATH": path}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    (count,) = re.findall(r"^(\d+) different Triton kernels$", done.stdout, re.MULTILINE)
    assert 200 < int(count) <= 400
