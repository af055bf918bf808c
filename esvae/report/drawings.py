"""The paper's figures 1 and 4 to 7, and grids of images, drawn from results. Colours are told apart by colour-blind
readers, and never carry a difference alone: markers, line styles or labels do as well."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..figures import BLUE, GREEN, GREY, VERMILION, image_grid, label_log_axis
from .measure import Results, System, by_data, data_name
from .pictures import unpack
from .section import Section
from .tables import Reader

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 10.0  # inches, of a page
COLOURS = (BLUE, VERMILION, GREEN, "#CC79A7", "#E69F00", "#56B4E9", GREY)  # Okabe and Ito's
MARKERS = "osD^vPX"
EPOCHS_SHOWN = 6
SIDE = 64  # pixels that an image takes
LABEL_INCHES = 2.2  # in front of a row of images
GAP = 0.1  # inches, around rows of images


def rendered(figure: Figure) -> dict[str, bytes]:
    """The figure as PNG and SVG files, the same bytes for the same figure."""
    import matplotlib

    found = {}
    with matplotlib.rc_context({"svg.hashsalt": "esvae", "svg.fonttype": "path"}):
        for suffix, metadata in (("png", {"Software": None}), ("svg", {"Date": None, "Creator": None})):
            buffer = io.BytesIO()
            figure.savefig(buffer, format=suffix, dpi=150, metadata=metadata)
            found[suffix] = buffer.getvalue()
    return found


def _new_figure(height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


# ---------------------------------------------------------------------------------------------------------- image rows

SHUFFLED = {
    "originals": "test images",
    "reconstructions": "vanilla reconstruction",
    "time_shuffle": "time shuffle",
    "time_shuffle_neurons": "time shuffle,\nper neuron",
    "length_shuffle": "length shuffle",
}


def fig1(systems: list[System], results: Results) -> Section:
    section = Section(
        "fig1",
        "Figure 1: shuffled latent spikes, decoded",
        [
            "The latent spikes of one image form a table: a row for each time step, a column for each neuron. A time "
            "shuffle puts its rows into another order, or (per neuron) every column's spikes into an order of their "
            "own; a length shuffle puts the columns into another order. If only firing rates matter, the image "
            "survives a time shuffle, since each neuron fires as often as before; a length shuffle gives each neuron "
            "another one's spikes, and destroys it.",
        ],
        caption="Test images, their vanilla reconstructions (from the spikes as they were), and reconstructions from "
        "shuffled spikes. Of each system the run of the lowest seed; the errors over all runs are in Table II.",
    )
    reader, rows = Reader(results, section), []
    for data, members in by_data(systems).items():
        shown = False
        for system in members:
            if not hasattr(system.first.model, "latent_spikes"):
                section.missing[system.name] = "has no spikes of a test image to shuffle"
                continue
            found = reader.get(system.first, "pictures")
            for name, label in SHUFFLED.items() if found else ():
                if name != "originals":
                    rows.append((f"{label}\n{system.name}", found[name]))
                elif not shown:
                    rows.append((f"{data_name(data)}:\n{label}", found[name]))
                    shown = True
    section.figure = _image_rows(rows, most=8)
    return section


def grids(systems: list[System], results: Results) -> Section:
    section = Section(
        "grids",
        "Images, side by side",
        [
            "What the figures of Table I look like: test images, their reconstructions by every system, and images "
            "that every system drew. The drawn ones are the first that were drawn, not picked.",
        ],
        caption="Of each system the run of the lowest seed, drawing from the first of its priors in Table I.",
    )
    reader, rows = Reader(results, section), []
    for data, members in by_data(systems).items():
        found = [(system, reader.get(system.first, "pictures")) for system in members]
        found = [(system, result) for system, result in found if result]
        with_encoder = [(system, result) for system, result in found if "originals" in result]
        if with_encoder:
            rows.append((f"{data_name(data)}:\ntest images", with_encoder[0][1]["originals"]))
        rows += [(f"reconstructed\n{system.name}", result["reconstructions"]) for system, result in with_encoder]
        rows += [(f"drawn\n{system.name}", result["samples"]) for system, result in found]
    section.figure = _image_rows(rows, most=32)
    return section


def _image_rows(rows: Sequence[tuple[str, str]], most: int) -> Figure | None:
    """Packed images, of each row the first `most`, behind its label; more than 16 go on in the next line."""
    if not rows:
        return None
    images = [unpack(packed)[:most] for _, packed in rows]
    columns = min(max(map(len, images)), 16)
    strips = [np.asarray(image_grid(x, columns, scale=max(SIDE // x.shape[-1], 1)).convert("RGB")) for x in images]
    width = max(strip.shape[1] for strip in strips)
    inches = [strip.shape[0] / width * (WIDTH - LABEL_INCHES - GAP) for strip in strips]
    labels = ["\n".join(textwrap.fill(line, 26) for line in label.splitlines()) for label, _ in rows]
    heights = [max(i, 0.19 * len(label.splitlines())) + GAP for i, label in zip(inches, labels, strict=True)]
    total = sum(heights) + GAP
    figure = _new_figure(total)
    figure.set_layout_engine("none")  # rows are placed by hand: images keep their shape, and labels their room
    top = total - GAP
    for label, strip, tall, height in zip(labels, strips, inches, heights, strict=True):
        across = strip.shape[1] / width * (WIDTH - LABEL_INCHES - GAP)
        panel = figure.add_axes((LABEL_INCHES / WIDTH, (top - tall) / total, across / WIDTH, tall / total))
        panel.imshow(strip)
        panel.axis("off")
        beside = (LABEL_INCHES - GAP) / WIDTH, (top - tall / 2) / total
        figure.text(*beside, label, ha="right", va="center", multialignment="right")
        top -= height
    return figure


# -------------------------------------------------------------------------------------------------------------- rasters


def fig4(systems: list[System], results: Results) -> Section:
    section = Section(
        "fig4",
        "Figure 4: latent spikes in training and in generation",
        [
            "What the decoder is given for one image: black is a spike, a row is a time step, a column is a neuron. "
            "Left, the spikes come from a test image, by the encoder (the posterior); right, they are drawn to make a "
            "new image (the prior). A full or empty column is a neuron that fires at every step for this image, or at "
            "none: there the order of the spikes in time can make no difference.",
        ],
        caption="The first test image and the first drawn one; of each system the run of the lowest seed.",
    )
    found = _with_rates(systems, results, section)
    if found:
        section.figure = figure = _new_figure(0.5 + 1.75 * len(found))
        panels = figure.subplots(len(found), 2, squeeze=False)
        for row, (system, result) in zip(panels, found, strict=True):
            titles = "test image", f"drawn image, {result['prior']} prior"
            for panel, key, title in zip(row, SIDES, titles, strict=True):
                raster = np.array([list(line) for line in result[key]["raster"]]) == "1"
                panel.imshow(raster, aspect="auto", cmap="Greys", vmin=0, vmax=1, interpolation="nearest")
                _title(panel, system, systems, title)
                panel.set_xlabel("latent neuron")
                panel.set_ylabel("time step")
                panel.yaxis.get_major_locator().set_params(integer=True)
                panel.xaxis.get_major_locator().set_params(integer=True)
            section.data[f"{system.data}: {system.name}"] = {key: result[key]["raster"] for key in SIDES}
    return section


SIDES = ("posterior", "prior_draws")


def _with_rates(systems: list[System], results: Results, section: Section) -> list[tuple[System, dict[str, Any]]]:
    """The systems whose latent fires, with the rates of their first run."""
    reader, found = Reader(results, section), []
    for system in systems:
        result = reader.get(system.first, "rates")
        if result is not None:
            found.append((system, result))
    return found


def _title(panel: Axes, system: System, systems: list[System], what: str) -> None:
    """The system, with its data set where there are several, and what of it the panel shows."""
    name = system.name if len(by_data(systems)) == 1 else f"{data_name(system.data)}, {system.name}"
    panel.set_title(textwrap.fill(f"{name}: {what}", 58), fontsize="medium")


# --------------------------------------------------------------------------------------------------------------- curves


def fig5(systems: list[System], results: Results) -> Section:
    from ..robustness import PROTOCOL

    section = Section(
        "fig5",
        "Figure 5: noise on the latent spikes",
        [
            "A spike train is disturbed before it is decoded: with probability a each spike gets noise (left), or "
            "flips, so that a spike vanishes or appears (right). The errors are those of the image that is decoded "
            "then: against the original (solid), and against the vanilla reconstruction, that without noise (dashed). "
            "Robust is a system whose dashed curve stays low; a solid one that is flat may mean that the image was "
            "poor before.",
        ],
        notes=[f"noise: {PROTOCOL['noise']}.", f"flips: {PROTOCOL['flips']}."],
    )
    reader = Reader(results, section)
    groups = {}
    for data, members in by_data(systems).items():
        curves = [(s, [r for x in s.subjects if (r := reader.get(x, "robustness"))]) for s in members]
        if curves := [(system, found) for system, found in curves if found]:
            groups[data] = curves
    if not groups:
        return section
    section.caption = (
        "Mean squared errors over the probability a, on two scales. Lines are means and bands standard deviations: "
        "over training seeds where a system has several runs, else over draws of the noise."
    )
    section.figure = figure = _new_figure(0.4 + 3.9 * len(groups))
    panels = figure.subplots(len(groups), 2, squeeze=False)
    names = dict.fromkeys(system.name for curves in groups.values() for system, _ in curves)  # of one legend
    numbers = {name: number for number, name in enumerate(names)}
    for row, (data, curves) in zip(panels, groups.items(), strict=True):
        for panel, kind in zip(row, ("noise", "flips"), strict=True):
            for system, found in curves:
                drawn = _draw_curves(panel, system.name, kind, found, numbers[system.name])
                section.data.setdefault(f"{data}: {system.name}", {})[kind] = drawn
            panel.set_xlabel("probability a")
            panel.set_title(f"{data_name(data)}: {kind}", fontsize="medium")
            panel.grid(color="0.9", linewidth=0.8)
            panel.set_axisbelow(True)
            panel.set_ylim(bottom=0)
            panel.set_ylabel("mean squared error (images in [-1, 1])")
    _legend(figure, panels[:, 0])
    return section


def _draw_curves(
    panel: Axes, name: str, kind: str, results: list[dict[str, Any]], number: int
) -> dict[str, list[float]]:
    colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
    a = [point["a"] for point in results[0][kind]]
    drawn: dict[str, list[float]] = {"a": a}
    for against, style in (("original", "-"), ("vanilla", "--")):
        means = np.array([[point[against]["mean"] for point in result[kind]] for result in results])
        own = np.array([[point[against]["sd"] for point in result[kind]] for result in results])
        mean, sd = means.mean(0), means.std(0, ddof=1) if len(means) > 1 else own[0]
        panel.fill_between(a, mean - sd, mean + sd, color=colour, alpha=0.2, linewidth=0)
        panel.plot(a, mean, style, marker=marker, markersize=5, color=colour, label=f"{name}, vs {against}")
        drawn |= {f"{against}_mean": mean.tolist(), f"{against}_sd": sd.tolist()}
    return drawn


def _legend(figure: Figure, panels: Sequence[Axes]) -> None:
    """One for all panels, below them."""
    entries: dict[str, Any] = {}
    for panel in panels:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    columns = 2 if max(map(len, entries)) < 60 else 1
    figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=columns, frameon=False)


# -------------------------------------------------------------------------------------------------------- distributions


def fig6(systems: list[System], results: Results) -> Section:
    section = Section(
        "fig6",
        "Figure 6: firing rates in training and in generation",
        [
            "The firing rate of a neuron is the share of the time steps at which it spikes. Images can be drawn well "
            "only if the drawn rates (the prior) are spread as those that the decoder was trained on (the posterior, "
            "from test images); that is not enough: the rates must also occur together as in real images. Left, each "
            "neuron's mean rate over all images; right, all neurons of a single image.",
            "The two single images are different ones: compare what kind they are (many neurons at 0 and 1, or not), "
            "and not the bars. Scales differ from panel to panel.",
        ],
        caption="Shares of the latent neurons: left in bins of 1/16, right for each rate that T time steps allow, "
        "0 / T to T / T. Of each system the run of the lowest seed.",
    )
    found = _with_rates(systems, results, section)
    if not found:
        return section
    section.figure = figure = _new_figure(0.5 + 2.9 * len(found))
    panels = figure.subplots(len(found), 2, squeeze=False)
    for row, (system, result) in zip(panels, found, strict=True):
        titles = f"means over {result['images']:,} images, {result['prior']} prior", "one image"
        bins = np.linspace(0, 1, 17), (np.arange(result["steps"] + 2) - 0.5) / result["steps"]
        for panel, key, edges, title in zip(row, ("means", "single"), bins, titles, strict=True):
            posterior, prior = (np.histogram(result[side][key], edges)[0] / result["latent"] for side in SIDES)
            panel.bar(edges[:-1], posterior, np.diff(edges), align="edge", color=BLUE, alpha=0.45, label="posterior")
            panel.stairs(prior, edges, color=VERMILION, linewidth=2, label="prior")
            _title(panel, system, systems, title)
            panel.set_xlabel("firing rate (spikes per time step)")
            panel.set_ylabel("share of neurons")
            panel.set_xlim(edges[0] - 0.02, edges[-1] + 0.02)
        section.data[f"{system.data}: {system.name}"] = {side: result[side] for side in SIDES}
    _legend(figure, panels[0])
    return section


def fig7(systems: list[System], results: Results) -> Section:
    section = Section(
        "fig7",
        "Figure 7: firing rates while the training goes on",
        [
            "How often each firing rate occurs among all neurons and images, at the end of some of the epochs: in "
            "training (left, from test images) and in generation (right, drawn). Good training brings the right "
            "panel's curves to the left panel's, and keeps them there.",
        ],
        notes=[
            "Rates are multiples of 1/T. Density is the share of a rate times T + 1, so that epochs at another T can "
            "be compared: 1 everywhere would mean that all rates are equally frequent.",
        ],
        caption="Of each system the run of the lowest seed, by the prior that was there while it was trained: a "
        "mixture is fitted only afterwards. Scales differ from system to system.",
    )
    found = []
    for system in systems:
        records = _histograms(system)
        if records:
            found.append((system, records))
        else:
            section.missing[system.name] = "its training recorded no firing rates"
    if not found:
        return section
    section.figure = figure = _new_figure(0.3 + 3.2 * len(found))
    panels = figure.subplots(len(found), 2, squeeze=False, sharey="row")
    for row, (system, records) in zip(panels, found, strict=True):
        trained = next(prior for prior in system.first.priors if prior != "mixture")
        for panel, key, title in zip(row, HISTOGRAMS, ("training", f"generation, {trained} prior"), strict=True):
            _draw_histograms(panel, records, key)
            _title(panel, system, systems, title)
            panel.set_xlabel("firing rate (spikes per time step)")
        label_log_axis(row[0])
        row[0].set_ylabel("density")
        row[1].legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
        section.data[f"{system.data}: {system.name}"] = records
    return section


HISTOGRAMS = ("rate_histogram", "prior_rate_histogram")


def _histograms(system: System) -> list[dict[str, Any]]:
    """Of up to six epochs: the first, the last, and those between them that are evenly many times later."""
    records = [r for r in system.first.records() if _has_histograms(r)]
    if not records:
        return []
    last = len(records) - 1
    chosen = sorted({round((last + 1) ** (k / (EPOCHS_SHOWN - 1))) - 1 for k in range(EPOCHS_SHOWN)})
    return [{key: records[i][key] for key in ("epoch", "steps", *HISTOGRAMS)} for i in chosen]


def _has_histograms(record: dict[str, Any]) -> bool:
    """A file that was edited has what it has: counts of each rate, 0 / T to T / T, of some neurons."""

    def counts(value: object) -> bool:
        good = isinstance(value, list) and len(value) > 1 and all(type(n) is int and 0 <= n < 2**53 for n in value)
        return good and any(value)

    numbers = all(type(record.get(key)) is int for key in ("epoch", "steps"))
    return numbers and all(counts(record.get(key)) for key in HISTOGRAMS)


def _draw_histograms(panel: Axes, records: list[dict[str, Any]], key: str) -> None:
    from matplotlib import colormaps

    shades = colormaps["viridis"](np.linspace(0, 0.8, len(records)))
    for shade, marker, record in zip(shades, MARKERS, records, strict=False):
        counts = np.array(record[key])
        rates = np.linspace(0, 1, len(counts))
        density = counts / counts.sum() * len(counts)
        label = f"epoch {record['epoch'] + 1}, T = {record['steps']}"
        panel.plot(rates, density, color=shade, marker=marker, markersize=4, label=label)
    panel.set_yscale("log", nonpositive="mask")
    panel.grid(color="0.9", linewidth=0.8)
    panel.set_axisbelow(True)
