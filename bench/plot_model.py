"""How the cost of a training step grows: `python bench/plot_model.py growth.json [...] --out picture.png`.

Time and peak memory over T, images and width, one of them at a time; below, by how much time is off a straight line
(a fixed part, and one in proportion), fitted to the relative deviations; they are printed too. The files are those that
`pytest bench/bench_model.py --cases growth --benchmark-json=growth.json` wrote (with `--cases matrix`: points fewer).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator
from plot import GREY, command
from table import OURS, TRAINING, TWIN, Row, best, of_model

CENTRE = {"steps": 16, "images": 64, "width": 1.0}  # what the others are while one varies
LABELS = {"steps": "time steps T", "images": "images in a batch", "width": "width of the layers (1: the preset's)"}
LINEAR = ("steps", "images")  # the convolutions' cost is quadratic in the width
WITHIN = 10  # per cent off a line that are still taken for linear
# Okabe and Ito's colours, told apart by whoever does not see red or green; the markers say the same once more.
ENTRIES = {OURS: ("#0072B2", "o"), TWIN: ("#E69F00", "s"), "literal": ("#CC79A7", "^")}


class Series(NamedTuple):
    """One entry over one quantity."""

    x: np.ndarray
    seconds: np.ndarray
    megabytes: np.ndarray  # NaN where it is not known


class Line(NamedTuple):
    """y = fixed + slope x."""

    fixed: float
    slope: float
    off: np.ndarray  # of each point, in per cent of the line


def fitted(x: np.ndarray, y: np.ndarray) -> Line:
    """By least squares of the relative deviations, so that each point counts the same."""
    fixed, slope = np.linalg.lstsq(np.stack([1 / y, x / y], axis=1), np.ones_like(y), rcond=None)[0]
    return Line(fixed, slope, 100 * (y / (fixed + slope * x) - 1))


def series(rows: list[Row], entry: str, over: str) -> Series | None:
    """The rows of an entry in which all but `over` are as in CENTRE; None of fewer than two."""
    rest = {name: value for name, value in CENTRE.items() if name != over}
    found = [row for row in rows if row.entry == entry and all(getattr(row, n) == v for n, v in rest.items())]
    if len(found) < 2:
        return None
    found.sort(key=lambda row: getattr(row, over))
    peaks = [np.nan if row.peak is None else row.peak / 1e6 for row in found]
    return Series(*(np.array(v, float) for v in ([getattr(r, over) for r in found], [r.median for r in found], peaks)))


def training_rows(runs: list[list[Row]]) -> list[Row]:
    """The fastest row of each entry and group, of training in fp32 on 32x32 images."""
    rows = [p.row for name, group in best(runs).items() if of_model(name) for p in group.values()]
    return [r for r in rows if r.group.startswith(TRAINING) and r.dtype == "fp32" and r.size == 32 and r.width]


def draw(rows: list[Row]) -> Figure:
    shape = {"sharex": "col", "sharey": "row", "height_ratios": (3, 3, 2)}
    figure, axes = plt.subplots(3, 3, figsize=(14, 10), layout="constrained", **shape)
    for over, column in zip(CENTRE, axes.T, strict=True):
        for entry in ENTRIES:
            if (points := series(rows, entry, over)) is not None:
                _points(column, entry, points, over in LINEAR)
        _dress(column, over)
    if not any(panel.lines for panel in axes[0]):
        raise ValueError("no training step in fp32 at 32x32 of several T, images or widths is in these results")
    axes[2, 2].set_axis_off()
    handles = [plt.Line2D([], [], color=c, marker=m, lw=1.8, label=e) for e, (c, m) in ENTRIES.items()]
    handles += [plt.Line2D([], [], color=GREY, ls="--", lw=1, label="straight line (fixed part + proportional)")]
    axes[2, 2].legend(handles=handles, frameon=False, loc="center", fontsize=11)
    machines = "; ".join(dict.fromkeys(row.machine for row in rows))
    others = f"32x32 images, fp32; not varied: T = {CENTRE['steps']}, {CENTRE['images']} images, width 1"
    figure.suptitle(f"What a training step costs\n{others}\n{machines}", fontsize=12)
    return figure


def _points(column: np.ndarray, entry: str, points: Series, linear: bool) -> None:
    color, marker = ENTRIES[entry]
    time, memory, off = column
    style = {"color": color, "marker": marker, "lw": 0 if linear else 1.8, "ms": 7}
    time.plot(points.x, points.seconds, **style)
    memory.plot(points.x, points.megabytes, **style)
    if not linear:
        return
    known = ~np.isnan(points.megabytes)
    for panel, x, y in ((time, points.x, points.seconds), (memory, points.x[known], points.megabytes[known])):
        if len(x) >= 2:
            line, dense = fitted(x, y), np.geomspace(x[0], x[-1], 100)
            panel.plot(dense, line.fixed + line.slope * dense, color=color, ls="--", lw=1)
    off.plot(points.x, fitted(points.x, points.seconds).off, color=color, marker=marker, lw=1, ms=6)


def _dress(column: np.ndarray, over: str) -> None:
    time, memory, off = column
    number = FuncFormatter(lambda value, _: f"{value:g}")
    for panel in (time, memory):
        panel.set_xscale("log", base=2)
        panel.set_yscale("log")
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.yaxis.set_minor_locator(NullLocator())
        panel.yaxis.set_major_formatter(number)
        panel.grid(color="0.9", lw=0.6)
    every = sorted({float(x) for line in time.lines for x in line.get_xdata() if line.get_marker() != "None"})
    for panel in column:
        panel.xaxis.set_major_locator(FixedLocator(every))
        panel.xaxis.set_minor_locator(NullLocator())
        panel.xaxis.set_major_formatter(number)
        panel.tick_params(labelbottom=True, labelleft=True)
        panel.spines[["top", "right"]].set_visible(False)
    time.set(ylabel="time per step, s", title=f"over {LABELS[over]}")
    memory.set(ylabel="peak memory, MB", xlabel="" if over in LINEAR else LABELS[over])
    if over in LINEAR:
        _band(off)
        off.set(xlabel=LABELS[over], ylabel="time, off its line, %")


def _band(panel: Axes) -> None:
    """What is taken for linear."""
    panel.axhspan(-WITHIN, WITHIN, color="#009E73", alpha=0.08, lw=0)
    panel.axhline(0, color=GREY, ls="--", lw=1)
    most = max([2.0 * WITHIN, panel.get_ylim()[1], *(1.2 * abs(y) for line in panel.lines for y in line.get_ydata())])
    panel.set_ylim(-most, most)  # the panels of a row share it
    place = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
    panel.annotate(f"within {WITHIN} %", (1, WITHIN), (-2, 3), ha="right", fontsize=8, color=GREY, **place)


def report(rows: list[Row], write: Callable[[str], object] = print) -> None:
    """The lines and how far from them the points are."""
    for over in LINEAR:
        for entry in ENTRIES:
            points = series(rows, entry, over)
            if points is None or len(points.x) < 3:
                continue
            line = fitted(points.x, points.seconds)
            offs = ", ".join(f"{x:g}: {off:+.1f} %" for x, off in zip(points.x, line.off, strict=True))
            verdict = "linear" if np.abs(line.off).max() <= WITHIN else "not linear"
            cost = f"{line.fixed * 1e3:.1f} ms + {line.slope * 1e3:.2f} ms each"
            write(f"time over {LABELS[over]}, {entry}: {cost}; off by {offs}: {verdict} within {WITHIN} %")


def draw_and_report(runs: list[list[Row]]) -> Figure:
    rows = training_rows(runs)
    figure = draw(rows)
    report(rows)
    return figure


if __name__ == "__main__":
    command(__doc__, draw_and_report)
