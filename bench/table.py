"""The benchmarks' results as Markdown: `python bench/table.py results.json [more.json ...]`.

The files are what `pytest bench/ --benchmark-json=results.json` writes. First comes a summary, a line per group of an
op; then, but with `--summary`, a table per group. Of several files (one with the tuned allocator, one with `--untuned`)
each entry's best counts: the one that is fastest relative to the copy timed in turn with it, or just the fastest where
there is no copy. What was not measured stands in its place with the reason. The groups of the whole model have a table
of their own.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

COPY, TWIN, OURS = "copy", "ReLU twin", "ours"
PEERS = {  # entry -> its column in the summary
    "SpikingJelly": "SpikingJelly / ours",
    "snnTorch": "snnTorch / ours",
    "loop": "loop / ours",
    "compiled loop": "compiled / ours",
    "unfused": "unfused / ours",
}
TRAINING, GENERATION = "training step", "generation"  # what groups of the whole model begin with


@dataclass(frozen=True)
class Row:
    """One entry of one group, times in seconds. What is None or "" does not apply."""

    group: str
    entry: str
    median: float
    copy: float | None  # the median of the copy timed in turn with it
    allocator: str
    machine: str
    saved: int | None  # bytes in all, as is `peak`
    peak: int | None
    elements: int | None  # all time steps counted
    images: int | None
    op: str
    variant: str  # an option
    layout: str
    passes: str  # forward, backward or forward+backward
    surrogate: str
    steps: int | None
    dtype: str  # fp32 or bf16
    bytes: float | None  # that the copy moves, per element and time step
    size: int | None  # side of the images in pixels
    width: float | None  # of the model's layers, relative to the preset's

    @classmethod
    def of(cls, group: str, median: float, info: Mapping) -> Row:
        return cls(
            group=group,
            entry=info["entry"],
            median=median,
            copy=info.get("copy_median"),
            allocator=info["allocator"],
            machine=f"{info['device']}, {info['threads']} threads, torch {info['torch']}",
            saved=info.get("saved_bytes"),
            peak=info.get("peak_bytes"),
            elements=info.get("elements"),
            images=info.get("images"),
            op=info.get("op", ""),
            variant=info.get("variant", ""),
            layout=info.get("layout", ""),
            passes=info.get("passes", ""),
            surrogate=info.get("surrogate", ""),
            steps=info.get("T"),
            dtype=info.get("dtype", ""),
            bytes=info.get("bytes"),
            size=info.get("size"),
            width=info.get("width"),
        )


class Skip(NamedTuple):
    """An entry of a group that was not measured."""

    group: str
    entry: str
    why: str


@dataclass(frozen=True)
class Placed:
    """A row, and its median divided by that of the copy of the same run (by one second where there is no copy)."""

    row: Row
    cost: float


Group = dict[str, Placed]  # by entry


def read(path: Path) -> list[Row]:
    return _read(path)[0]


def _read(path: Path) -> tuple[list[Row], list[Skip]]:
    try:
        contents = json.loads(path.read_text())
        rows = [Row.of(b["group"], b["stats"]["median"], b["extra_info"]) for b in contents["benchmarks"]]
        return rows, [Skip(**skip) for skip in contents.get("skipped", ())]
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path}: not a file that `pytest bench/ --benchmark-json` wrote") from None


def best(runs: Iterable[list[Row]]) -> dict[str, Group]:
    """By group and entry, the cheapest row of all runs."""
    groups: dict[str, Group] = {}
    for rows in runs:
        copies = {row.group: row.median for row in rows if row.entry == COPY}
        for row in rows:
            placed = Placed(row, row.median / (row.copy or copies.get(row.group, 1.0)))
            group = groups.setdefault(row.group, {})
            if row.entry not in group or placed.cost < group[row.entry].cost:
                group[row.entry] = placed
    return groups


def against_copy(group: Group) -> bool:
    """Whether costs are multiples of a copy's time."""
    return COPY in group or all(placed.row.copy for placed in group.values())


def markdown(runs: Iterable[list[Row]], every_group: bool = True, skipped: Iterable[Skip] = ()) -> str:
    """The machine, the summaries, and a table per group, or only per group that the summaries have no line for."""
    runs, skipped = list(runs), list(skipped)
    machines = dict.fromkeys(row.machine for rows in runs for row in rows)
    groups = best(runs)
    summed = {name: group for name, group in groups.items() if OURS in group and group[OURS].row.bytes}
    whole = [placed.row for name, group in groups.items() if of_model(name) for placed in group.values()]
    speeds = [(row.group, row.entry, Speed(row.images, row.median, row.peak)) for row in whole]
    missing = [skip for skip in skipped if of_model(skip.group) and skip.entry not in groups.get(skip.group, ())]
    tables = [summary(summed.values())] if summed else []
    tables += [model_table(speeds, missing)] if speeds else []
    lines = {*summed, *(row.group for row in whole)}
    tables += [f"**{name}**\n\n{_table(groups[name])}" for name in groups if every_group or name not in lines]
    return "\n\n".join([*machines, *tables])


def summary(groups: Iterable[Group]) -> str:
    """A line per group: how many copies of its bytes ours takes, and how many times as long as ours the peers take."""
    lines = []
    for group in groups:
        ours = group[OURS]
        row = ours.row
        what = " ".join(filter(None, [f"`{row.op}`", row.variant]))
        line = {
            "op": ", ".join(filter(None, [what, row.layout, row.passes.replace("+", " + "), row.surrogate])),
            "T": str(row.steps),
            "dtype": row.dtype,
            "bytes": f"{row.bytes:.4g}",
            "/ copy": f"{ours.cost:.2f}" if against_copy(group) else "",
        }
        line |= {column: f"{group[peer].cost / ours.cost:.1f}" for peer, column in PEERS.items() if peer in group}
        lines.append(line)
    columns = ["op", "T", "dtype", "bytes", "/ copy", *PEERS.values()]
    columns = [column for column in columns if any(line.get(column) for line in lines)]
    return aligned({column: [line.get(column, "") for line in lines] for column in columns}, ("op", "dtype"))


class Speed(NamedTuple):
    """Of one entry of the whole model."""

    images: int
    seconds: float
    peak: int | None  # bytes

    def __str__(self) -> str:
        peak = "" if self.peak is None else f" ({self.peak / 1e6:.0f})"
        return f"{self.images / self.seconds:.{0 if self.images >= 10 * self.seconds else 1}f}{peak}"


def of_model(group: str) -> bool:
    return group.startswith((TRAINING, GENERATION))


def model_table(speeds: Iterable[tuple[str, str, Speed]], skipped: Iterable[Skip]) -> str:
    """A line per group: images per second of each entry and the MB that it takes, or why it was not measured; ours over
    the twin, the others over ours."""
    cells: dict[str, dict[str, Speed | str]] = {}
    for group, entry, cell in (*speeds, *skipped):
        cells.setdefault(group, {})[entry] = cell
    order = {OURS: 0, TWIN: 1}
    entries = sorted({entry: None for group in cells.values() for entry in group}, key=lambda e: order.get(e, 2))
    others = [entry for entry in entries if entry not in order]
    columns: dict[str, list[str]] = {"images/s (peak, MB)": sorted(cells, key=_by_number)}
    lines = [cells[name] for name in columns["images/s (peak, MB)"]]
    columns |= {entry: [str(line.get(entry, "")) for line in lines] for entry in entries}
    columns[f"time / {TWIN}"] = [_ratio(line, OURS, TWIN) for line in lines]
    columns |= {f"{entry} / {OURS}": [_ratio(line, entry, OURS) for line in lines] for entry in others}
    return aligned({name: column for name, column in columns.items() if any(column)}, ("images/s (peak, MB)",))


def _ratio(line: Mapping[str, Speed | str], entry: str, to: str) -> str:
    one, other = line.get(entry), line.get(to)
    return f"{one.seconds / other.seconds:.2f}" if isinstance(one, Speed) and isinstance(other, Speed) else ""


def _by_number(name: str) -> list[tuple[float, str]]:
    """Sorts T = 4 before T = 16."""
    return [(float(part), "") if part.isdigit() else (0.0, part) for part in re.split(r"(\d+)", name)]


def _table(group: Group) -> str:
    """Medians, ratios to the yardstick, and how many times faster and smaller ours is."""
    order = {COPY: 0, TWIN: 0, OURS: 1}
    placed = sorted(group.values(), key=lambda p: (order.get(p.row.entry, 2), p.cost))
    ours = group.get(OURS)
    columns = {"": [p.row.entry for p in placed], "median, ms": [f"{p.row.median * 1e3:.1f}" for p in placed]}
    if all(p.row.images for p in placed):
        columns["images/s"] = [f"{p.row.images / p.row.median:.0f}" for p in placed]
    if any(p.row.copy for p in placed):
        columns["copy, ms"] = [f"{p.row.copy * 1e3:.1f}" if p.row.copy else "" for p in placed]
    if against_copy(group):
        columns["/ copy"] = [f"{p.cost:.2f}" for p in placed]
    elif TWIN in group:
        columns[f"/ {TWIN}"] = [f"{p.cost / group[TWIN].cost:.2f}" for p in placed]
    if ours:
        columns["/ ours"] = [f"{p.cost / ours.cost:.2f}" for p in placed]
    if any(p.row.saved is not None for p in placed):
        columns["saved, MB (B/element)"] = [_saved(p.row) for p in placed]
    columns["peak, MB"] = ["" if p.row.peak is None else f"{p.row.peak / 1e6:.0f}" for p in placed]
    if ours and ours.row.images and ours.row.peak:
        columns["peak / ours"] = ["" if p.row.peak is None else f"{p.row.peak / ours.row.peak:.2f}" for p in placed]
    columns["allocator"] = [p.row.allocator for p in placed]
    return aligned(columns, ("", "allocator"))


def aligned(columns: Mapping[str, list[str]], left: tuple[str, ...]) -> str:
    """Of these columns, those `left` are aligned left, the others right."""
    rules = ["---" if name in left else "---:" for name in columns]
    lines = [list(columns), rules, *zip(*columns.values(), strict=True)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _saved(row: Row) -> str:
    if row.saved is None:
        return ""
    return f"{row.saved / 1e6:.0f}" + (f" ({row.saved / row.elements:.2f})" if row.elements else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="+", type=Path, help="JSON files of pytest-benchmark")
    parser.add_argument("--summary", action="store_true", help="no tables of the groups that the summary has")
    arguments = parser.parse_args()
    try:
        runs = [_read(path) for path in arguments.results]
        skipped = [skip for _, skips in runs for skip in skips]
        print(markdown([rows for rows, _ in runs], not arguments.summary, skipped))
    except ValueError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
