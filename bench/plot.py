"""The benchmarks' results as a picture: `python bench/plot.py results.json [more.json ...] --out picture.png`.

Per op and dtype, how many copies of its bytes the op takes, over the number of time steps; beside that, how many times
as long as ours the other libraries take at T = 16. The files are those that `table.py` reads.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import matplotlib
from table import OURS, Group, Placed, Row, against_copy, best, read

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

OPS, DTYPES = ("lif", "bn_lif", "poisson"), ("fp32", "bf16")
STEPS = 16  # of the bars
AIM, MOST = 1.5, 4.0  # copies; what takes more is drawn at the upper edge, with its number
GREY = "0.45"
# Okabe and Ito's colours, told apart by whoever does not see red or green; the markers say the same once more.
PASSES = {"forward": ("#0072B2", "o"), "backward": ("#D55E00", "s")}
LINES = {"": "-", "channels-last": "-", "contiguous": "--"}
PEERS = {
    "SpikingJelly": "#E69F00",
    "snnTorch": "#009E73",
    "loop": "#999999",
    "compiled loop": "#56B4E9",
    "unfused": "#CC79A7",
}
LABELS = {"loop": "PyTorch loop", "compiled loop": "torch.compile of it", "unfused": "batch norm, then ours"}


def draw(runs: list[list]) -> Figure:
    """A line of panels per op that there is."""
    groups = [group for group in best(runs).values() if OURS in group and group[OURS].row.op and against_copy(group)]
    ops = [op for op in OPS if any(group[OURS].row.op == op for group in groups)]
    if not ops:
        raise ValueError("no op with a copy beside it is in these results")
    figure, axes = plt.subplots(
        len(ops),
        3,
        figsize=(16, 3.4 * len(ops) + 1.1),
        layout="constrained",
        squeeze=False,
        width_ratios=(1, 1, 1.25),
    )
    for op, line in zip(ops, axes, strict=True):
        of_op = [group for group in groups if group[OURS].row.op == op and not group[OURS].row.variant]
        for dtype, panel in zip(DTYPES, line, strict=False):
            _over_steps(panel, [group[OURS] for group in of_op if group[OURS].row.dtype == dtype])
            panel.set_title(f"{op}, {dtype}", loc="left", fontweight="bold")
        _bars(line[2], [group for group in of_op if group[OURS].row.steps == STEPS and len(group) > 1])
        line[2].set_title(f"{op}: other libraries at T = {STEPS}", loc="left", fontweight="bold")
    machines = dict.fromkeys(row.machine for rows in runs for row in rows)
    title = figure.suptitle("Time over memory traffic: 1 is a copy of the bytes that must be moved\n", fontsize=15)
    below = axes[0, 0].annotate(
        "; ".join(machines), (0.5, 0.1), xycoords=title, ha="center", fontsize=9, color=GREY, annotation_clip=False
    )
    below.set_in_layout(False)  # it stands in the title's empty second line, and is no part of the panel
    return figure


def _over_steps(panel: Axes, placed: list[Placed]) -> None:
    """Time / copy over T."""
    every = sorted({p.row.steps for p in placed})
    surrogates = {}  # one line per direction and layout: of several surrogates the one measured at most T
    for p in placed:
        key = (p.row.passes, p.row.layout)
        surrogates.setdefault(key, {}).setdefault(p.row.surrogate, []).append(p)
    for (passes, layout), found in surrogates.items():
        if passes not in PASSES:
            continue
        points = sorted(max(found.values(), key=len), key=lambda p: p.row.steps)
        color, marker = PASSES[passes]
        label = ", ".join(filter(None, [passes, layout]))
        steps, costs = [p.row.steps for p in points], [p.cost for p in points]
        hollow = "white" if layout == "contiguous" else color
        shown = [min(cost, MOST) for cost in costs]
        panel.plot(steps, shown, color=color, marker=marker, mfc=hollow, ls=LINES[layout], lw=1.8, label=label)
        for t, cost in zip(steps, costs, strict=True):
            if cost > MOST:
                panel.annotate(f"{cost:.1f}", (t, MOST), (0, -14), textcoords="offset points", ha="center", color=color)
    panel.axhspan(0, AIM, color="#009E73", alpha=0.08, lw=0)
    panel.axhline(1, color="black", lw=1)
    panel.axhline(AIM, color="#009E73", lw=1, ls=":")
    for y, text in ((1, "the copy"), (AIM, "aim")):
        place = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "annotation_clip": False}
        panel.annotate(text, (1, y), (3, 0), va="center", fontsize=8, color=GREY, **place)
    panel.set_xscale("log", base=2)
    panel.xaxis.set_major_locator(FixedLocator(every))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.xaxis.set_major_formatter(StrMethodFormatter("{x:.0f}"))
    panel.set(ylim=(0, MOST * 1.02), xlabel="time steps T", ylabel="time / copy")
    panel.spines[["top", "right"]].set_visible(False)
    if placed:
        panel.legend(fontsize=8, frameon=False, loc="lower left", ncols=2, columnspacing=1, handlelength=1.5)
    else:
        panel.set_xticks([])
        panel.text(0.5, 0.6, "not measured", transform=panel.transAxes, ha="center", color=GREY)


def _bars(panel: Axes, groups: list[Group]) -> None:
    """How many times as long as ours each peer takes; of several surrogates or layouts, those with most peers."""
    chosen: dict[tuple[str, str], Group] = {}
    for group in groups:
        row = group[OURS].row
        key = (row.dtype, row.passes)
        if len(group) > len(chosen.get(key, ())):
            chosen[key] = group
    y, ticks = 0.0, {}
    for (dtype, passes), group in chosen.items():
        top = y
        for peer, color in PEERS.items():
            if peer in group:
                ratio = group[peer].cost / group[OURS].cost
                panel.barh(y, ratio, 0.9, color=color)
                panel.text(ratio, y, f" {ratio:.1f}", va="center", fontsize=8)
                y += 1
        ticks[(top + y - 1) / 2] = f"{passes}, {dtype}".replace("+", " +\n")
        y += 0.8
    panel.axvline(1, color="black", lw=1)
    panel.set_yticks(list(ticks), list(ticks.values()), fontsize=8)
    panel.invert_yaxis()
    panel.set(xlabel="time / time of ours (the line: as fast as ours)")
    panel.tick_params(axis="y", length=0)
    panel.spines[["top", "right", "left"]].set_visible(False)
    panel.margins(x=0.12)  # for the numbers
    present = [peer for peer in PEERS if any(peer in group for group in chosen.values())]
    handles = [plt.Rectangle((0, 0), 1, 1, color=PEERS[peer]) for peer in present]
    if present:
        labels = [LABELS.get(peer, peer) for peer in present]
        panel.legend(handles, labels, fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    else:
        panel.set_axis_off()
        panel.text(0.5, 0.5, "not measured", transform=panel.transAxes, ha="center", color=GREY)


def command(description: str | None, draw: Callable[[list[list[Row]]], Figure]) -> None:
    """The command line of a script that draws results."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="+", type=Path, help="JSON files of pytest-benchmark")
    parser.add_argument("--out", type=Path, required=True, help="the picture, a .png, .svg or .pdf")
    arguments = parser.parse_args()
    try:
        figure = draw([read(path) for path in arguments.results])
        figure.savefig(arguments.out, dpi=130, bbox_inches="tight")
    except (ValueError, OSError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    command(__doc__, draw)
