"""All that needs a GPU, in one go and offline: `make gpu`. Where there is none, `make gpu DRY=1` walks the same way on
the CPU, at tiny sizes, to find mistakes in it.

In this order: the build; a smoke test of each op on either backend; the benchmarks of the ops; those of the model; the
kernel tests; graphs, streams and memory; compute-sanitizer. `--only` (ONLY= of make) leaves the build, the smoke test
and one part. A step that fails does not keep the next ones from running. None takes more than its share of the time
that is left, so that one which hangs costs no more than that; when the time is out, the rest is skipped.

    TIME_LIMIT        seconds for everything, by default 560
    OUT               the folder for the results, by default build/gpu/results: summary.json, ops.json, model.json,
                      results.md and four logs, each written as its part ends; those of an earlier run go
    TRITON_CACHE_DIR  compiled Triton kernels, by default build/gpu/triton; what is there already is taken

It needs torch, Triton, numpy, pytest, pytest-benchmark, hypothesis, scipy, scikit-learn, pybind11, cmake, ninja, pip,
setuptools, g++ and nvcc, and no package of the extra `model`. The exit status is 1 if any step failed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from contextlib import suppress
from pathlib import Path

from sampling import COMPARISONS

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "gpu"
CUDA = Path("/usr/local/cuda/bin")  # where CMake looks too
OPS = ("lif", "bn_lif", "poisson")
KERNEL_TESTS = [f"tests/test_{name}.py" for name in (*OPS, "surrogate", "kernels_nn")]
WITH_TRITON = ("--sets", "2", "-m", "not slow", "-k", COMPARISONS)  # of the kernel tests: under 400 different kernels
RESULTS = ("summary.json", "ops.json", "model.json", "results.md")
RESULTS += ("build.log", "bench.log", "tests.log", "sanitize.log")
PARTS = ("bench", "model", "tests", "sanitize")
SMOKE = "each_op"
LOG_BYTES = 1 << 20  # that are kept of a log
REPORT = re.compile(r"^========= (?!COMPUTE-SANITIZER|ERROR SUMMARY|LEAK SUMMARY|Target|\s)(\S.*)$")


class Step:
    """A command that runs, with its log."""

    def __init__(self, name: str, command: list[str], environment: dict[str, str]) -> None:
        self.name, self.log = name, BUILD / "logs" / f"{name}.log"
        self.began, self.result, self.seconds = time.monotonic(), "", 0.0
        with self.log.open("w") as out:  # a session of its own: what it starts ends with it
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
            )

    def wait(self, until: float) -> None:
        try:
            status = self.process.wait(max(1.0, until - time.monotonic()))
            self.result = "passed" if status == 0 else f"FAILED, exit status {status}"
        except subprocess.TimeoutExpired:
            self.result = "FAILED, out of time"
            self.end()
        with suppress(ProcessLookupError):  # what it left running, such as processes that compile
            os.killpg(self.process.pid, signal.SIGKILL)
        self.seconds = time.monotonic() - self.began

    def end(self) -> None:
        """pytest reports what it has when it is interrupted."""
        for number, seconds in ((signal.SIGINT, 4), (signal.SIGKILL, None)):
            os.killpg(self.process.pid, number)
            try:
                self.process.wait(seconds)
                return
            except subprocess.TimeoutExpired:
                continue

    def text(self) -> str:
        return self.log.read_text(errors="replace")


class Run:
    """The steps one after the other, and how they ended."""

    def __init__(self, dry: bool) -> None:
        self.dry, self.start = dry, time.monotonic()
        self.device = "cpu:0" if dry else "cuda"
        self.limit = float(os.environ.get("TIME_LIMIT") or 560)
        self.out = Path(os.environ.get("OUT") or BUILD / "results").absolute()
        self.cache = Path(os.environ.get("TRITON_CACHE_DIR") or BUILD / "triton").absolute()
        self.without: list[str] = []  # backends that are not there
        self.summary: dict = {"dry": dry, "limit": self.limit, "steps": {}}
        path = [str(BUILD / "package"), str(ROOT), os.environ.get("PYTHONPATH", "")]
        tools = [os.environ.get("PATH", ""), sysconfig.get_path("scripts"), str(CUDA)]
        self.environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(p for p in path if p),
            "PATH": os.pathsep.join(t for t in tools if t),
            "TRITON_CACHE_DIR": str(self.cache),
            "PYTHONUNBUFFERED": "1",
        }

    def left(self) -> float:
        return self.limit - 10 - (time.monotonic() - self.start)  # 10 s to end what runs, and to write

    def which(self, tool: str) -> str | None:
        return shutil.which(tool, path=self.environment["PATH"])

    def python(self, *arguments: str) -> list[str]:
        return [sys.executable, *arguments]

    def pytest(self, *arguments: str) -> list[str]:
        device = ["--device", self.device]
        return self.python("-m", "pytest", "-q", "-p", "no:cacheprovider", *device, *arguments)

    def kernel_tests(self, *arguments: str) -> list[str]:
        without = [f"--without={name}" for name in self.without]
        return self.pytest(*without, *arguments)

    def steps(
        self, log: str, commands: dict[str, list[str]], share: float = 1.0, most: float = 1e9, **environment: str
    ) -> list[Step]:
        """Runs commands side by side, by their names, for at most a share of what is left and so many seconds."""
        if self.left() < 5:
            for name in commands:
                self.say(name, "skipped: out of time")
            return []
        until = time.monotonic() + min(self.left() * share, most)
        begun = [Step(name, command, self.environment | environment) for name, command in commands.items()]
        for step in begun:
            step.wait(until)
            self.keep(log, step)
            self.say(step.name, step.result, step.seconds)
        return begun

    def step(self, log: str, name: str, command: list[str], share: float = 1.0, most: float = 1e9) -> Step | None:
        return next(iter(self.steps(log, {name: command}, share, most)), None)

    def say(self, name: str, result: str, seconds: float = 0.0) -> None:
        self.summary["steps"][name] = {"result": result, "seconds": round(seconds, 1)}
        print(f"==== {name}: {result} ({seconds:.0f} s)", flush=True)
        self.write()

    def write(self) -> None:
        self.summary["seconds"] = round(time.monotonic() - self.start, 1)
        (self.out / "summary.json").write_text(json.dumps(self.summary, indent=1))

    def keep(self, log: str, step: Step) -> None:
        """Adds a step's log to one in the results, of which the end is kept."""
        path, text = self.out / f"{log}.log", step.text()
        before = path.read_bytes() if path.exists() else b""
        after = before + f"\n==== {step.name}: {step.result}\n{text}".encode()
        if len(after) > LOG_BYTES:
            after = b"(the beginning is left out: this is the last MiB)\n" + after[-LOG_BYTES:]
        path.write_bytes(after)
        if "FAILED" in step.result:
            print("\n".join(line[:400] for line in text.splitlines()[-15:]), flush=True)

    def compiled(self) -> int:
        """Our Triton kernels in the cache."""
        return len({path.parent for name in OPS for path in self.cache.glob(f"*/_{name.removesuffix('_lif')}_*.cubin")})


# --------------------------------------------------------------------------------------------------------- the parts


def build(run: Run) -> None:
    missing = [name for name in ("pip", "pybind11", "setuptools") if importlib.util.find_spec(name) is None]
    missing += [name for name in ("cmake", "ninja", "g++") if run.which(name) is None]
    if missing:
        run.say("build", f"FAILED, missing: {', '.join(missing)}; nothing is downloaded here, install them first")
        return
    shutil.rmtree(BUILD / "package", ignore_errors=True)
    pip = ["-m", "pip", "install", "--no-build-isolation", "--no-deps", "--no-index", "--disable-pip-version-check"]
    # For this GPU alone: a third of the time that every architecture takes.
    only = {} if "CUDAARCHS" in os.environ else architecture()
    run.steps("build", {"build": run.python(*pip, "-v", "--target", str(BUILD / "package"), ".")}, 0.5, **only)


def architecture() -> dict[str, str]:
    query = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        found = subprocess.run(query, capture_output=True, text=True, timeout=30).stdout.split()
    except (OSError, subprocess.TimeoutExpired):
        return {}
    return {"CUDAARCHS": ";".join(sorted({f"{one.replace('.', '')}-real" for one in found}))} if found else {}


def describe(run: Run) -> None:
    """The machine, and which backends there are."""
    script = (
        "import sys, json; sys.path.insert(0, 'bench'); import gpu, torch; from esvae_kernels import backends; "
        f"print(json.dumps([gpu.machine(torch.device('{run.device}')), backends.why_not()]))"
    )
    step = run.step("build", "device", run.python("-c", script), 0.5, 60)
    if step is None or step.result != "passed":
        return
    run.summary["machine"], why = json.loads(step.text().splitlines()[-1])
    if not run.dry:
        run.without = [name for name in ("triton", "cuda") if why[name]]
        for name in run.without:
            run.say(f"backend {name}", f"FAILED, {why[name]}")


def smoke(run: Run) -> None:
    run.step("build", "smoke", run.kernel_tests("tests/test_gpu.py", "-k", SMOKE), 0.5, 30)


def benchmark(run: Run, part: str, names: tuple[str, ...], shares: tuple[float, ...]) -> None:
    """Each in a process of its own: after a kernel that writes out of bounds a process can use its GPU no more."""
    results = run.out / f"{part}.json"
    parts = []
    for name, share in zip(names, shares, strict=True):
        path = BUILD / f"{name}.json"
        path.unlink(missing_ok=True)
        arguments = ("--rounds", "7", "--json", str(path), f"bench/bench_{name}.py")
        run.step("bench", f"bench {name}", run.pytest(*arguments), share)
        if path.exists():  # also of one that was stopped
            parts.append(json.loads(path.read_text()))
            merged = parts[0] | {key: [row for one in parts for row in one[key]] for key in ("rows", "failed")}
            results.write_text(json.dumps(merged, indent=1))
            tables(run)


def tables(run: Run) -> None:
    """results.md, of what there is so far."""
    text = ""
    for part in ("ops", "model"):
        if (path := run.out / f"{part}.json").exists():
            done = subprocess.run(
                run.python("bench/gpu.py", str(path)), cwd=ROOT, env=run.environment, capture_output=True, text=True
            )
            text += done.stdout + done.stderr + "\n"
    (run.out / "results.md").write_text(text)


def tests(run: Run) -> None:
    """Processes side by side: Triton compiles a kernel for a second, on one core. Those of the backend `cuda` are
    compiled already, so that it has the larger sample of the tests."""
    before = run.compiled()
    parts = {"triton": max(1, min(8, (os.cpu_count() or 1) - 3)), "cuda": 2}
    chosen = {"triton": WITH_TRITON, "cuda": ("-m", "not slow")}
    if run.dry:  # some of each file: they all run on the CPU anyway
        some = "by_hand or by_definition or compute_the_formulas and f32 or li_is_a_loop or one_input_alone"
        parts, chosen = {"cpu": 2}, {"cpu": ("-k", some)}
    commands = {}
    for backend, n in parts.items():
        others = [f"--without={name}" for name in parts if name != backend]
        for k in range(n if backend not in run.without else 0):
            command = run.pytest(*others, "--part", f"{k + 1}/{n}", *chosen[backend], *KERNEL_TESTS)
            commands[f"kernel tests, {backend} {k + 1} of {n}"] = command
    run.steps("tests", commands, 0.5, OMP_NUM_THREADS="1")
    run.summary["triton kernels"] = {"there before": before, "compiled by the kernel tests": run.compiled() - before}
    print(f"==== Triton kernels compiled by the kernel tests: {run.compiled() - before}, there before: {before}")
    run.step("tests", "gpu tests", run.kernel_tests("tests/test_gpu.py"), 0.6)
    if not run.dry:
        large = ("-m", "slow", "-k", "two_to_the_31", "tests/test_lif.py")
        run.step("tests", "large tensors", run.kernel_tests(*large), 0.5)


def sanitize(run: Run) -> None:
    """All at once. The allocator's cache would hide what is out of a tensor's bounds."""
    script = run.python("tests/sanitize_cuda.py", "--device", run.device)
    if run.dry:
        run.step("sanitize", "calls", [*script, "--backend", "cpu", "--seconds", "3"], 0.5)
        return
    tool = run.which("compute-sanitizer")
    if tool is None:
        run.say("sanitize", "skipped: there is no compute-sanitizer")
        return
    seconds = str(max(5.0, run.left() - 40))
    knows = subprocess.run([tool, "--help"], capture_output=True, text=True).stdout
    only_ours = ["--kernel-regex", "kns=esvae"] if "--kernel-regex" in knows else []
    fails = ["--error-exitcode", "9"]
    commands = {}
    if "cuda" not in run.without:
        calls = [*script, "--backend", "cuda", "--seconds", seconds]
        commands = {name: [tool, "--tool", name, *fails, *only_ours, *calls] for name in ("memcheck", "racecheck")}
        # Here all kernels are looked at, as what torch's have written is initialised; `reports` tells whose it is.
        commands["initcheck"] = [tool, "--tool", "initcheck", "--print-limit", "10000", *calls]
    if "triton" not in run.without:  # few: each is compiled
        calls = [*script, "--backend", "triton", "--seconds", seconds, "--calls", "12"]
        commands["memcheck triton"] = [tool, "--tool", "memcheck", *fails, *calls]
    for step in run.steps("sanitize", commands, PYTORCH_NO_CUDA_MEMORY_CACHING="1"):
        if step.name == "initcheck" and step.result == "passed" and (found := reports(step.text())):
            run.say("initcheck", f"FAILED, {len(found)} reports, the first: {found[0][:200]}", step.seconds)


def reports(log: str, ours: str = "esvae") -> list[str]:
    """compute-sanitizer's reports whose kernel's name has `ours` in it; the host's frames, below it, do not count."""
    found: list[list[str]] = []
    for line in log.splitlines():
        if match := REPORT.match(line):
            found.append([match[1]])
        elif found and line.startswith("=========  "):
            found[-1].append(line.removeprefix("=========").strip())
    kernels = [(report[0], next((line for line in report[1:] if line.startswith("at ")), "")) for report in found]
    return [f"{what} {kernel}" for what, kernel in kernels if ours in kernel]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, with what is installed")
    parser.add_argument("--only", choices=PARTS, help="after the build and the smoke test this part alone")
    arguments = parser.parse_args()
    run = Run(arguments.dry_run)
    wanted = [part for part in PARTS if arguments.only in (None, part)]
    (BUILD / "logs").mkdir(parents=True, exist_ok=True)
    run.out.mkdir(parents=True, exist_ok=True)
    for name in RESULTS:
        (run.out / name).unlink(missing_ok=True)
    if run.dry:
        run.say("build", "skipped: a dry run takes what is installed")
    else:
        build(run)
    describe(run)
    smoke(run)
    if "bench" in wanted:
        benchmark(run, "ops", OPS, (0.3, 0.3, 0.25))
    if "model" in wanted:
        benchmark(run, "model", ("model",), (0.5,))
    if "tests" in wanted:
        tests(run)
    if "sanitize" in wanted:
        sanitize(run)
    run.write()
    ended = {name: step["result"] for name, step in run.summary["steps"].items()}
    print(f"\n==== {run.summary['seconds']:.0f} s in all; results in {run.out}")
    for name, result in ended.items():
        print(f"{name:28}{result}")
    sys.exit(any("FAILED" in result for result in ended.values()))


if __name__ == "__main__":
    main()
