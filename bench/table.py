"""The benchmarks' results as Markdown: `python bench/table.py results.json [more.json ...]`.

The files are what `pytest bench/ --benchmark-json=results.json` writes. Of several files (one with the tuned allocator,
one with `--untuned`) each entry's best counts: the one that is fastest relative to the copy of its own run, or just the
fastest where there is no copy.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

COPY, TWIN, OURS = "copy", "ReLU twin", "ours"


@dataclass(frozen=True)
class Row:
    """One entry of one group: the median in seconds, and bytes (per element and time step, or in all)."""

    group: str
    entry: str
    median: float
    allocator: str
    saved: int | None
    peak: int | None
    elements: int | None
    images: int | None
    machine: str

    @classmethod
    def of(cls, group: str, median: float, info: Mapping) -> Row:
        return cls(
            group=group,
            entry=info["entry"],
            median=median,
            allocator=info["allocator"],
            saved=info.get("saved_bytes"),
            peak=info.get("peak_bytes"),
            elements=info.get("elements"),
            images=info.get("images"),
            machine=f"{info['device']}, {info['threads']} threads, torch {info['torch']}",
        )


@dataclass(frozen=True)
class Placed:
    """A row, and its median divided by that of the copy of the same run (by one second where there is no copy)."""

    row: Row
    cost: float


def read(path: Path) -> list[Row]:
    try:
        benchmarks = json.loads(path.read_text())["benchmarks"]
        return [Row.of(b["group"], b["stats"]["median"], b["extra_info"]) for b in benchmarks]
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path}: not a file that `pytest bench/ --benchmark-json` wrote") from None


def best(runs: Iterable[list[Row]]) -> dict[str, dict[str, Placed]]:
    """By group and entry, the cheapest row of all runs."""
    groups: dict[str, dict[str, Placed]] = {}
    for rows in runs:
        copies = {row.group: row.median for row in rows if row.entry == COPY}
        for row in rows:
            placed = Placed(row, row.median / copies.get(row.group, 1.0))
            group = groups.setdefault(row.group, {})
            if row.entry not in group or placed.cost < group[row.entry].cost:
                group[row.entry] = placed
    return groups


def markdown(runs: Iterable[list[Row]]) -> str:
    """One table per group: medians, ratios to the yardstick, and how many times faster and smaller ours is."""
    runs = list(runs)
    machines = dict.fromkeys(row.machine for rows in runs for row in rows)
    return "\n\n".join([*machines, *(f"**{name}**\n\n{_table(entries)}" for name, entries in best(runs).items())])


def _table(entries: dict[str, Placed]) -> str:
    order = {COPY: 0, TWIN: 0, OURS: 1}
    placed = sorted(entries.values(), key=lambda p: (order.get(p.row.entry, 2), p.cost))
    ours = entries.get(OURS)
    yardstick = next((name for name in (COPY, TWIN) if name in entries), None)
    columns = {"": [p.row.entry for p in placed], "median, ms": [f"{p.row.median * 1e3:.1f}" for p in placed]}
    if all(p.row.images for p in placed):
        columns["images/s"] = [f"{p.row.images / p.row.median:.0f}" for p in placed]
    if yardstick:
        columns[f"/ {yardstick}"] = [f"{p.cost / entries[yardstick].cost:.2f}" for p in placed]
    if ours:
        columns["/ ours"] = [f"{p.cost / ours.cost:.2f}" for p in placed]
    if any(p.row.saved is not None for p in placed):
        columns["saved, MB (B/element)"] = [_saved(p.row) for p in placed]
    columns["peak, MB"] = ["" if p.row.peak is None else f"{p.row.peak / 1e6:.0f}" for p in placed]
    if ours and ours.row.images and ours.row.peak:
        columns["peak / ours"] = ["" if p.row.peak is None else f"{p.row.peak / ours.row.peak:.2f}" for p in placed]
    columns["allocator"] = [p.row.allocator for p in placed]
    rules = ["---" if name in ("", "allocator") else "---:" for name in columns]
    lines = [list(columns), rules, *zip(*columns.values(), strict=True)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _saved(row: Row) -> str:
    if row.saved is None:
        return ""
    return f"{row.saved / 1e6:.0f}" + (f" ({row.saved / row.elements:.2f})" if row.elements else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="+", type=Path, help="JSON files of pytest-benchmark")
    try:
        print(markdown([read(path) for path in parser.parse_args().results]))
    except ValueError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
