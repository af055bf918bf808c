"""Benchmarks on a GPU: timing by events on its stream, what is recorded of the machine, and the table.

`python bench/gpu.py ops.json` prints the table of a file that `pytest bench/ --device cuda --json` wrote.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import platform
import subprocess
import sys
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from statistics import median
from time import perf_counter

import torch
from memory import peak_bytes, saved_bytes
from table import OURS, PEERS, Skip, Speed, aligned, model_table, of_model

AIM = 1.1  # copies of its bytes that an op may take
AHEAD_MS = 20  # for so long the GPU is kept busy, while the CPU queues what is timed
WARM = 5  # runs of what has no copy beside it: more than a CUDA graph takes before it is there


def ours(device: torch.device) -> tuple[str, ...]:
    """The entries that are ours, one for each backend of the device; cpu:0 stands in for a GPU."""
    return ("triton", "cuda") if device.type == "cuda" else ("cpu", "reference")


def is_ours(entry: str) -> bool:
    """One of those, or of the whole model "ours", or that with an option, as in "ours, graph"."""
    return entry in ours(torch.get_default_device()) or entry.split(",")[0] == OURS


def dry() -> bool:
    """Whether a part of the CPU stands in for the GPU, to see that everything runs."""
    return torch.get_default_device() == torch.device("cpu:0")


# --------------------------------------------------------------------------------------------------------- machine


def machine(device: torch.device) -> dict[str, str]:
    """Names and versions, which stand above the table."""
    libraries = {name: _version(name) for name in ("torch", "triton", "spikingjelly", "snntorch")}
    gpu = device.type == "cuda"
    return {
        "name": torch.cuda.get_device_name(device) if gpu else f"dry run on {platform.machine()}, no GPU",
        "driver": _driver() if gpu else "",
        "cuda": torch.version.cuda or "",
        **libraries,
        "spikingjelly_runs": _spikingjelly(device) if gpu else "",
        "date": datetime.date.today().isoformat(),
    }


def _version(library: str) -> str:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def _driver() -> str:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return "unknown"


def _spikingjelly(device: torch.device) -> str:
    """What runs its LIF in fp32 if nothing is asked for; in bf16 it is always a loop over time."""
    try:
        from spikingjelly.activation_based.functional import neuron_implementation

        return neuron_implementation("lif", device)["implementation"]
    except Exception as error:  # another library's
        return f"unknown ({type(error).__name__})"


# --------------------------------------------------------------------------------------------------------- timing


def seconds(run: Callable[[], object], against: Callable[[], object], rounds: int) -> tuple[float, float]:
    """Medians of `run` and of `against`, which are done in turn, so that neither finds its data in the cache.

    The first event waits until the CPU has queued a good part of the work: kernels are timed, not their launches,
    unless the CPU is too slow to keep the GPU busy.
    """
    if torch.get_default_device().type != "cuda":
        return _wall_seconds(run, against, rounds)
    run(), against()
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(3)] for _ in range(rounds)]
    torch.cuda.synchronize()
    torch.cuda._sleep(AHEAD_MS * 2_000_000)  # cycles
    for first, second, third in events:
        first.record()
        against()
        second.record()
        run()  # the result is freed at once
        third.record()
    torch.cuda.synchronize()
    copies = median(first.elapsed_time(second) for first, second, _ in events)
    return median(second.elapsed_time(third) for _, second, third in events) / 1e3, copies / 1e3


def step_seconds(run: Callable[[], object], rounds: int) -> float:
    """Median of `run`, one after the other: where the GPU waits for the CPU to launch, that counts, as in training."""
    if torch.get_default_device().type != "cuda":
        return _wall_seconds(run, lambda: None, rounds)[0]
    for _ in range(WARM):
        run()
    events = [torch.cuda.Event(enable_timing=True) for _ in range(rounds + 1)]
    events[0].record()
    for event in events[1:]:
        run()
        event.record()
    torch.cuda.synchronize()
    return median(first.elapsed_time(second) for first, second in pairwise(events)) / 1e3


def _wall_seconds(run: Callable[[], object], against: Callable[[], object], rounds: int) -> tuple[float, float]:
    times = []
    for _ in range(rounds):
        start = perf_counter()
        against()
        between = perf_counter()
        run()
        times.append((perf_counter() - between, between - start))
    return median(time for time, _ in times), median(copy for _, copy in times)


class Results:
    """What was measured so far, written to `path` after each entry."""

    def __init__(self, path: Path | None, machine: dict[str, str]) -> None:
        self.path, self.machine = path, machine
        self.rows: list[dict] = []
        self.failed: list[dict[str, str]] = []

    def measurer(self, rounds: int) -> Callable[..., None]:
        """conftest's `measure` for a GPU."""

        def measure(
            group: str,
            entry: str,
            run: Callable[[], object],
            forward: Callable[[], object] | None = None,
            *,
            against: Callable[[], object] | None = None,
            **info: object,
        ) -> None:
            run()  # compiles
            saved = None if forward is None else saved_bytes(forward)
            peak = peak_bytes(run)
            several = (3 if is_ours(entry) else 1) * rounds
            time, copy = seconds(run, against, several) if against else (step_seconds(run, several), None)
            row = {"group": group, "entry": entry, "seconds": time, "copy_seconds": copy}
            self.rows.append(row | {"saved_bytes": saved, "peak_bytes": peak} | info)
            self.write()

        return measure

    def fail(self, group: str, entry: str, why: str) -> None:
        self.failed.append({"group": group, "entry": entry, "why": why})
        self.write()

    def contents(self) -> dict:
        return {"machine": self.machine, "rows": self.rows, "failed": self.failed}

    def write(self) -> None:
        if self.path:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            partial = self.path.with_suffix(".partial")  # a run may be stopped while it writes
            partial.write_text(json.dumps(self.contents(), indent=1))
            partial.replace(self.path)


# ---------------------------------------------------------------------------------------------------------- table


def markdown(contents: Mapping) -> str:
    m = contents["machine"]
    head = f"{m['name']}, driver {m['driver']}, torch {m['torch']}, Triton {m['triton']}, {m['date']}. "
    head += f"SpikingJelly {m['spikingjelly']} ({m['spikingjelly_runs']}), snnTorch {m['snntorch']}."
    text = (
        f'"/ copy" is the time over that of a copy of the same bytes, done in turn; above {AIM} it is bold. A peer\'s '
        "column is its time over ours. Saved: bytes per element and step kept for the backward; peak: MB at once."
    )
    rows, failed = contents["rows"], contents["failed"]
    ops = [row for row in rows if not of_model(row["group"])]
    models = [row for row in rows if of_model(row["group"])]
    parts = [head]
    if ops:
        parts += [text, _table(ops)]
    if models:
        parts += [_models(models, [f for f in failed if of_model(f["group"])])]
    parts += _failures([f for f in failed if not (models and of_model(f["group"]))])
    return "\n\n".join(parts)


def _models(rows: list[dict], failed: list[dict[str, str]]) -> str:
    text = (
        "The whole model, preset `paper`, d = 128, grey images: images per second of a training step (forward, loss, "
        "backward, AdamW) and of generation, and in brackets the MB that it takes at its peak beside weights, "
        "gradients and AdamW's state. fp32 convolutions are torch's, with TF32 where it takes that."
    )
    speeds = [(r["group"], r["entry"], Speed(r["images"], r["seconds"], r["peak_bytes"])) for r in rows]
    return f"{text}\n\n{model_table(speeds, [Skip(**f) for f in failed])}"


def _table(rows: list[dict]) -> str:
    groups: dict[str, dict[str, dict]] = {}
    for row in rows:
        groups.setdefault(row["group"], {})[row["entry"]] = row
    lines = [
        _line(row, {entry: group[entry] for entry in group if entry in PEERS})
        for group in groups.values()
        for row in group.values()
        if row["entry"] not in PEERS
    ]
    columns = [column for column in (lines[0] if lines else ()) if any(line[column] for line in lines)]
    return aligned({column: [line[column] for line in lines] for column in columns}, ("op", "dtype", "backend"))


def _line(row: Mapping, peers: Mapping[str, Mapping]) -> dict[str, str]:
    ratio = row["seconds"] / row["copy_seconds"]
    what = " ".join(filter(None, [f"`{row['op']}`", row.get("variant")]))
    op = ", ".join(filter(None, [what, row.get("layout"), row["passes"].replace("+", " + "), row.get("surrogate")]))
    line = {
        "op": op,
        "T": str(row["T"]),
        "dtype": row["dtype"],
        "backend": row["entry"],
        "ms": f"{row['seconds'] * 1e3:.3f}",
        "/ copy": f"**{ratio:.2f}**" if ratio > AIM else f"{ratio:.2f}",
        **{column: f"{peers[peer]['seconds'] / row['seconds']:.1f}" if peer in peers else ""
           for peer, column in PEERS.items()},
        "saved": _saved(row),
        "saved, SpikingJelly": _saved(peers.get("SpikingJelly", {})),
        "peak, MB": _peak(row),
    }  # fmt: skip
    return line | {f"peak, {peer}": _peak(peers.get(peer, {})) for peer in PEERS}


def _saved(row: Mapping) -> str:
    return "" if row.get("saved_bytes") is None else f"{row['saved_bytes'] / row['elements']:.2f}"


def _peak(row: Mapping) -> str:
    return "" if row.get("peak_bytes") is None else f"{row['peak_bytes'] / 1e6:.0f}"


def _failures(failed: list[dict[str, str]]) -> list[str]:
    """Per entry and reason the groups that were not measured."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for f in failed:
        reasons.setdefault((f["entry"], f["why"]), []).append(f["group"])
    lines = [f"- {entry}: {why} ({len(groups)}: {'; '.join(groups[:3])}{' ...' * (len(groups) > 3)})"
             for (entry, why), groups in reasons.items()]  # fmt: skip
    return ["Not measured:\n" + "\n".join(lines)] if lines else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="JSON that `pytest bench/ --device cuda --json` wrote")
    path = parser.parse_args().results
    try:
        print(markdown(json.loads(path.read_text())))
    except (OSError, ValueError, KeyError, TypeError) as error:
        sys.exit(f"{path}: not a file that `pytest bench/ --device cuda --json` wrote ({error!r})")


if __name__ == "__main__":
    main()
