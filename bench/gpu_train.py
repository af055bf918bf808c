"""Train a preset on Fashion-MNIST on a GPU for as long as the time goes, offline: `make gpu-train`. The same command
goes on where it stopped. `DRY=1`: on the CPU, with digits and tiny sizes.

While it trains, the run is in OUT/run. In the end OUT has

    samples.png, reconstructions.png, learning-curve.png, metrics.jsonl
    evaluation.json    of `esvae evaluate`, and how far the training came
    run.tar            the run with its newest checkpoint, which the next call goes on with
    model.tar          grids of at most 40 epochs and, once the training has ended, the model

and nothing else, so that it can be copied as it is; no file of the presets `best` and `paper` is above 16 MiB.

The step is a CUDA graph over data on the GPU, in channels-last and in bf16 where the GPU computes in it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import tomllib
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from esvae.extras import installed  # needs Python alone

ROOT = Path(__file__).resolve().parent.parent
SHIFT = 20  # seconds in which a checkpoint is waited for, after which the training is interrupted
PATIENCE = 10  # seconds from Ctrl-C to its end
MINUTES = 0.2  # between two checkpoints: one comes within SHIFT
INTERRUPTED = 130
GRIDS = 40  # epochs whose grids are kept, 0.2 MB each
LARGEST = 16 << 20
_AS_DATA = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # Python before 3.11.4 has no filters
TINY = [  # the preset `best` in seconds
    *("--model.latent", "4", "--model.steps", "2", "--model.mixture-components", "2", "--train.batch-size", "64"),
    *("--train.epochs", "2", "--train.time-steps", "1/2@1,1/2@2"),
]


def missing() -> list[str]:
    """What is not installed of the packages that esvae and its extra `model` ask for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = project["dependencies"] + project["optional-dependencies"]["model"]
    return [name for name in (re.split("[<>=]", line)[0] for line in lines) if installed(name) is None]


class Training:
    """One call: its folders, and the instants by which training, then everything has to be over."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.out, self.run, self.dry = options.out, options.out / "run", options.dry_run
        self.preset, self.more = options.preset, options.more
        self.device = "cpu" if self.dry else "cuda"
        self.end = time.monotonic() + options.time_limit
        self.reserve = 60 if self.dry else 70  # seconds for pictures and evaluation, whose kernels are compiled first
        path = [str(ROOT), os.environ.get("PYTHONPATH", "")]
        self.environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(filter(None, path)),
            "TRITON_CACHE_DIR": os.environ.get("TRITON_CACHE_DIR", str(ROOT / "build" / "gpu" / "triton")),
        }
        if self.dry:  # three processes at once, each with as many threads as there are cores, wait for one another
            self.environment["OMP_NUM_THREADS"] = "1"

    def left(self) -> float:
        return max(self.end - time.monotonic(), 1.0)

    def esvae(self, *arguments: str | Path, **options: Any) -> subprocess.Popen:
        command = [sys.executable, "-m", "esvae", *map(str, arguments), "--device", self.device]
        return subprocess.Popen(command, env=self.environment, **options)

    def unpack(self) -> None:
        if self.run.exists():  # of a call that was killed: newer than what is packed
            return
        for name in ("run.tar", "model.tar"):
            if (self.out / name).exists():
                with tarfile.open(self.out / name) as tar:
                    tar.extractall(self.out, **_AS_DATA)

    def other(self) -> str | None:
        """The preset of the run that is there, where another one is asked for."""
        config = self.run / "config.json"
        found = json.loads(config.read_text())["preset"] if config.exists() else self.preset
        return None if found == self.preset else found

    def train(self) -> bool:
        """Whether there is something to show: the training has ended, or was stopped behind a checkpoint."""
        if (self.run / "config.json").exists():
            new = ["--resume"]
        elif self.dry:
            new = ["--preset", "best", "--data", "digits", *TINY, *self.more]
        else:
            new = ["--preset", self.preset, "--data", "fashion-mnist", *self.more]
        minutes = "0" if self.dry else str(MINUTES)
        process = self.esvae("train", *new, "--out", self.run, "--checkpoint-minutes", minutes, "--quiet")
        status = self.stop(process)
        return self.step() is not None and status in (0, INTERRUPTED)

    def stop(self, process: subprocess.Popen) -> int:
        """Ctrl-C behind the first checkpoint within the last SHIFT seconds, or else at their end."""
        end, seen = self.end - self.reserve, None
        while process.poll() is None and time.monotonic() < end:
            if time.monotonic() > end - SHIFT:
                seen = seen or [self.step()]
                if self.step() not in seen:
                    break
            time.sleep(0.1)
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:  # it waits for a GPU that does not answer; the checkpoint is whole
                process.kill()
                process.wait()
            return INTERRUPTED
        return process.returncode

    def step(self) -> int | None:
        """Of the newest checkpoint; one that is half-written has another name."""
        found = [int(path.name[5:]) for path in self.run.glob("checkpoints/step-*") if path.name[5:].isdigit()]
        return max(found, default=None)

    def progress(self, since: int) -> dict[str, Any]:
        """How far the run is, and how fast it was from step `since` on."""
        config, step = json.loads((self.run / "config.json").read_text()), self.step()
        lines = (self.run / "metrics.jsonl").read_text().splitlines(keepends=True)
        records = [json.loads(line) for line in lines if line.endswith("\n")]
        records = [r for r in records if "lr" in r and r["step"] <= step]
        timed: dict[int, list[float]] = {}
        recent = [r for r in records if r["step"] > since]  # the first, and that of a new T, is slow: kernels, capture
        for a, b in itertools.pairwise(recent):
            if a["steps"] == b["steps"]:
                images, seconds = timed.get(b["steps"], (0, 0))
                timed[b["steps"]] = [images + b["images"] - a["images"], seconds + b["seconds"] - a["seconds"]]
        return {
            "preset": config["preset"],
            "data": config["data"],
            "step": step,
            "epoch": records[-1]["epoch"] + 1,
            "epochs": config["train"]["epochs"],
            "images": records[-1]["images"],
            "seconds": records[-1]["seconds"],
            "images_per_second": {str(t): round(n / s) for t, (n, s) in timed.items() if s > 0},
            "ended": (self.run / "model").is_dir(),
        }

    def show(self, progress: dict[str, Any]) -> bool:
        """Pictures and evaluation, at once; whether all of them are there."""
        begun = {}
        for name, count in (("samples", "64"), ("reconstructions", "32")):
            command = "generate" if name == "samples" else "reconstruct"
            file = self.out / f"{name}.png"
            file.unlink(missing_ok=True)
            begun[command] = self.esvae(command, self.run, "--n", count, "--columns", "16", "--out", file)
        begun["evaluate"] = self.esvae("evaluate", self.run, "--json", stdout=subprocess.PIPE, text=True)
        from esvae import figures
        from esvae.runs import Run

        figures.learning_curve(Run.open(self.run).metrics(), self.out / "learning-curve.png")
        measured, failed = "{}", []
        for name, process in begun.items():
            try:
                measured = process.communicate(timeout=self.left() - 5)[0] or measured
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
            if process.returncode:
                failed.append(name)
        measured = "{}" if "evaluate" in failed else measured
        evaluation = {"training": progress} | json.loads(measured) | {"failed": failed}
        (self.out / "evaluation.json").write_text(json.dumps(evaluation, indent=1) + "\n")
        return not failed

    def pack(self) -> None:
        shutil.copy(self.run / "metrics.jsonl", self.out / "metrics.jsonl")
        checkpoint = Path("checkpoints") / f"step-{self.step():08d}"
        model = ["model", "learning-curve.png"]
        for kind in ("samples", "reconstructions"):
            grids = sorted(self.run.glob(f"images/{kind}-*.png"), reverse=True)
            model += [grid.relative_to(self.run) for grid in grids[:: -(-len(grids) // GRIDS) or 1]]
        parts = {"run.tar": ["config.json", "metrics.jsonl", checkpoint], "model.tar": ["images", *model]}
        for name, inside in parts.items():
            partial = self.out / f"{name}.partial"
            with tarfile.open(partial, "w") as tar:
                for path in filter(lambda path: (self.run / path).exists(), inside):
                    tar.add(self.run / path, Path("run") / path, recursive=path != "images")
            os.replace(partial, self.out / name)
        shutil.rmtree(self.run)


def told(progress: dict[str, Any]) -> str:
    speeds = ", ".join(f"{rate:,} at T = {t}" for t, rate in progress["images_per_second"].items())
    place = f"epoch {progress['epoch']} of {progress['epochs']}, step {progress['step']}"
    after = "it has ended" if progress["ended"] else "the same command goes on"
    name = f"{progress['preset']} on {progress['data']}"
    return f"{name}: {place}; images per second: {speeds or 'too few steps'}; {after}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="best", choices=("best", "paper"))
    parser.add_argument("--out", type=Path, required=True, help="the folder; what is in it is gone on with")
    parser.add_argument("--time-limit", type=float, default=560, help="seconds for everything; default: 560")
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, with digits and tiny sizes")
    parser.add_argument("more", nargs="*", help="behind `--`: options of `esvae train` for a new run")
    training = Training(parser.parse_args())
    if names := missing():
        print(f"this needs {', '.join(names)}: pip install {' '.join(names)}", file=sys.stderr)
        return 2
    training.out.mkdir(parents=True, exist_ok=True)
    training.unpack()
    if (other := training.other()) is not None:
        held = f"but {training.out} holds a run of {other!r}"
        print(f"preset: got {training.preset!r}, {held}; use another --out", file=sys.stderr)
        return 2
    since = training.step() or 0
    if not training.train():
        where = f"what there is of it is in {training.run}"
        print(f"the training failed, or has no checkpoint yet; {where}", file=sys.stderr)
        return 1
    progress = training.progress(since)
    print(told(progress), flush=True)
    complete = training.show(progress)
    training.pack()
    for path in sorted(training.out.iterdir()):
        size = path.stat().st_size
        print(f"{path}  {size:,} bytes" + ("  above 16 MiB" if size > LARGEST else ""))
    return 0 if complete else 1


if __name__ == "__main__":
    sys.exit(main())
