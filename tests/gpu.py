"""All that needs a GPU, in one go and offline: `make gpu`. Where there is none, `make gpu DRY=1` walks the same way on
the CPU, at tiny sizes, to find mistakes in it.

A step that fails does not keep the next ones from running. Logs are written to build/gpu/, the benchmarks to
bench/results/<device>/. The exit status is 1 if any step failed.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "gpu"
KERNEL_TESTS = [f"tests/test_{name}.py" for name in ("lif", "bn_lif", "poisson", "surrogate", "kernels_nn")]
TOOLS = ("memcheck", "racecheck", "initcheck")
SECONDS = 470  # for everything; what is left of it goes to the benchmarks


class Run:
    """The steps' commands, their logs and how they ended."""

    def __init__(self, dry: bool) -> None:
        self.dry, self.start = dry, time.monotonic()
        self.device = "cpu:0" if dry else "cuda"
        self.ended: dict[str, str] = {}
        path = [str(BUILD / "package"), str(ROOT), os.environ.get("PYTHONPATH", "")]
        self.environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(p for p in path if p),
            "TRITON_CACHE_DIR": str(BUILD / "triton"),
            "PYTHONUNBUFFERED": "1",
        }

    def left(self) -> float:
        return SECONDS - (time.monotonic() - self.start)

    def begin(self, name: str, command: list[str], **environment: str) -> tuple[str, subprocess.Popen, float]:
        log = BUILD / f"{name}.log"
        with log.open("w") as out:
            process = subprocess.Popen(
                command, cwd=ROOT, env=self.environment | environment, stdout=out, stderr=subprocess.STDOUT
            )
        return name, process, time.monotonic()

    def finish(self, step: tuple[str, subprocess.Popen, float], seconds: float, lines: int = 15) -> bool:
        name, process, began = step
        try:
            status = process.wait(max(1.0, min(seconds - (time.monotonic() - began), self.left())))
            result = "passed" if status == 0 else f"FAILED, exit status {status}"
        except subprocess.TimeoutExpired:
            process.terminate()
            process.wait()
            result = "FAILED, out of time"
        self.ended[name] = f"{result} ({time.monotonic() - began:.0f} s)"
        print(f"==== {name}: {self.ended[name]}", flush=True)
        tail = (BUILD / f"{name}.log").read_text(errors="replace").splitlines()[-lines:]
        print("\n".join(line[:400] for line in tail), flush=True)
        return result == "passed"

    def step(self, name: str, command: list[str], seconds: float, lines: int = 15, **environment: str) -> bool:
        return self.finish(self.begin(name, command, **environment), seconds, lines)

    def python(self, *arguments: str) -> list[str]:
        return [sys.executable, *arguments]

    def pytest(self, *arguments: str) -> list[str]:
        return self.python("-m", "pytest", "-q", "-p", "no:cacheprovider", "--device", self.device, *arguments)


def build(run: Run) -> bool:
    missing = [name for name in ("pybind11", "setuptools") if importlib.util.find_spec(name) is None]
    missing += [name for name in ("cmake", "ninja", "g++", "nvcc") if shutil.which(name) is None]
    if missing:
        run.ended["build"] = f"FAILED, missing: {', '.join(missing)}"
        print(f"==== build: {run.ended['build']}; nothing is downloaded here, install them first")
        return False
    shutil.rmtree(BUILD / "package", ignore_errors=True)
    pip = ["-m", "pip", "install", "--no-build-isolation", "--no-deps", "--no-index", "--disable-pip-version-check"]
    return run.step("build", run.python(*pip, "--target", str(BUILD / "package"), "."), 180, lines=3)


def describe(run: Run) -> None:
    script = "import sys, json; sys.path.insert(0, 'bench'); import gpu, torch; "
    run.step("device", run.python("-c", f"{script}print(json.dumps(gpu.machine(torch.device('{run.device}'))))"), 60)


def sanitizers(run: Run) -> list[tuple[str, subprocess.Popen, float]]:
    """Begins them all; they run beside the tests. The allocator's cache would hide what is out of a tensor's bounds."""
    script = ["tests/sanitize_cuda.py", "--device", run.device, "--seconds", "8" if run.dry else "45"]
    script += ["--backend", "cpu" if run.dry else "cuda"]
    if run.dry:
        return [run.begin("calls", run.python(*script))]
    tool = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if not Path(tool).exists():
        print("==== compute-sanitizer: skipped, it is not installed")
        return []
    knows = subprocess.run([tool, "--help"], capture_output=True, text=True).stdout
    only_ours = ["--kernel-regex", "kns=esvae"] if "--kernel-regex" in knows else []
    begun = []
    for name in TOOLS:
        # For initcheck all kernels count: what torch's have written is initialised.
        filtered = [] if name == "initcheck" else only_ours
        command = [tool, "--tool", name, "--error-exitcode", "9", *filtered, *run.python(*script)]
        begun.append(run.begin(name, command, PYTORCH_NO_CUDA_MEMORY_CACHING="1"))
    return begun


def kernel_tests(run: Run) -> None:
    if run.dry:  # some of each file: they all run on the CPU anyway
        chosen = ["-k", "by_hand or by_definition or compute_the_formulas and f32 or li_is_a_loop or one_input_alone"]
        run.step("kernel-tests", run.pytest(*chosen, *KERNEL_TESTS), 120, lines=3)
        return
    workers = max(1, (os.cpu_count() or 1) - 1)
    parallel = ["-n", str(workers), "--dist", "worksteal"] if importlib.util.find_spec("xdist") else []
    run.step("kernel-tests", run.pytest(*parallel, "-m", "not slow", *KERNEL_TESTS), 200, 60, OMP_NUM_THREADS="1")


def benchmarks(run: Run) -> None:
    sys.path.insert(0, str(ROOT / "bench"))
    import gpu  # after torch's environment is known to be there
    import torch

    name = gpu.machine(torch.device(run.device))["name"]
    folder = (BUILD if run.dry else ROOT / "bench" / "results") / gpu.slug(name)
    results = folder / "gpu.json"
    results.unlink(missing_ok=True)
    run.step("benchmarks", run.pytest("bench", "--rounds", "7", "--json", str(results)), run.left() - 5, 2)
    if results.exists():  # also of a run that was stopped
        table = subprocess.run(run.python("bench/gpu.py", str(results)), cwd=ROOT, capture_output=True, text=True)
        (folder / "table.md").write_text(table.stdout)
        print(f"{table.stdout}{table.stderr}\nwritten: {results.relative_to(ROOT)}, table.md beside it")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, with what is installed")
    run = Run(parser.parse_args().dry_run)
    BUILD.mkdir(parents=True, exist_ok=True)
    if not run.dry:
        build(run)
    describe(run)
    begun = sanitizers(run)
    kernel_tests(run)
    for step in begun:
        run.finish(step, 120, lines=4)
    run.step("gpu-tests", run.pytest("tests/test_gpu.py"), 120, 40)
    if not run.dry:
        run.step("large-tensors", run.pytest("-m", "slow", "-k", "two_to_the_31", "tests/test_lif.py"), 60)
    benchmarks(run)
    print(f"\n==== {time.monotonic() - run.start:.0f} s in all")
    for name, result in run.ended.items():
        print(f"{name:15}{result}")
    sys.exit(any("FAILED" in result for result in run.ended.values()))


if __name__ == "__main__":
    main()
