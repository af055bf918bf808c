"""The paper's tables and figures from trained runs, beside the published ones: `esvae report`.

published   the published figures, as data
measure     what is measured on a run, kept in its folder; runs that differ by their seed alone are one system
tables      tables I to V
drawings    figures 1 and 4 to 7, grids
section     what they are made of; Markdown and JSON
page        HTML
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..evaluate import Track, untracked
from ..runs import atomic_write, make_folder
from . import drawings, tables
from .measure import ANALYSES, FOLDER, Results, Settings, Subject, System, data_name, systems
from .page import page
from .section import Section, Table
from .tables import runs_text

SECTIONS: dict[str, Callable[[list[System], Results], Section]] = {
    "table1": tables.table1,
    "grids": drawings.grids,
    "fig1": drawings.fig1,
    "table2": tables.table2,
    "fig4": drawings.fig4,
    "fig5": drawings.fig5,
    "table3": tables.table3,
    "table4": tables.table4,
    "fig6": drawings.fig6,
    "fig7": drawings.fig7,
    "table5": tables.table5,
}
ALL = "report"  # the name of the page of all sections; that of one is called by it
ENVIRONMENT = ("ESVAE_DATA_DIR", "ESVAE_FAD_DIR", "ESVAE_INCEPTION")

TITLE = "Spiking autoencoders: measured, beside the published figures"
ABOUT = [
    "A spiking neural network computes with neurons that either fire or stay silent, at each of T time steps, which "
    "costs little energy on hardware that is made for it. ESVAE (arXiv 2310.14839) is such a network that learns to "
    "compress images into spikes and to decode them again; and it can draw new images, by drawing spikes. FSVAE is the "
    "one that came before it, the ANN VAE the same without spikes, and the spiking GAN another way to draw images.",
    "This page sets what was measured on trained models (blue rows) beside what was published (white rows). Each row "
    "says how its figures came about, since protocols differ. The arrows say which way is better.",
]


def report(
    what: str,
    runs: Sequence[Path],
    out: Path,
    *,
    command: str,
    settings: Settings,
    data: str | None = None,
    device: str = "cpu",
    say: Callable[[str], None] = print,
    track: Track = untracked,
) -> list[Path]:
    """Measure what is not measured yet, and write `what`, or with "all" all of it, into the folder `out`.

    Args:
        what: a key of `SECTIONS`, or "all".
        runs: folders of runs or models.
        command: what the page says to make it again by.
        data: a data set; default: each run's own.
        say: is given a line for everything that cannot be measured; the report goes on without it.

    Returns:
        the files: `<what>.md`, `<what>.json`, of figures `<what>.png` and `<what>.svg`, the page `<what>.html`; of
        "all" one page for all of it, `report.html`, and `report.md`, which leads to the Markdown files.

    Raises:
        InputError: none of the runs can be loaded, or `out` cannot be written to.
    """
    subjects, missing = _open(runs, data, device, say)
    make_folder(out)
    members = systems(subjects)
    results = Results(settings, say, track)
    written, sections, pictures = [], [], {}

    def write(name: str, content: str | bytes) -> None:
        atomic_write(out / name, content)
        written.append(out / name)

    for name in SECTIONS if what == "all" else [what]:
        section = SECTIONS[name](members, results)
        sections.append(section)
        if section.figure is not None:
            for suffix, content in drawings.rendered(section.figure).items():
                write(f"{name}.{suffix}", content)
                if suffix == "png":
                    pictures[name] = content
        write(f"{name}.md", section.markdown())
        write(f"{name}.json", json.dumps(section.to_json(), indent=1, allow_nan=False) + "\n")
    overview, name = _overview(members), ALL if what == "all" else what
    if what == "all":
        write(f"{name}.md", _index(overview, missing, sections, command))
    write(f"{name}.html", page(TITLE, ABOUT, overview, missing, sections, command, pictures))
    return written


def _index(overview: Table, missing: dict[str, str], sections: list[Section], command: str) -> str:
    """The page's head in Markdown, where its sections are files of their own."""
    links = [f"[{section.title}]({section.what}.md)" for section in sections]
    head = Section("report", TITLE, ABOUT, [overview], notes=links, missing=missing)
    return f"{head.markdown()}\n## How to make this again\n\n```sh\n{command}\n```\n"


def _open(
    runs: Sequence[Path], data: str | None, device: str, say: Callable[[str], None]
) -> tuple[list[Subject], dict[str, str]]:
    """The runs that can be loaded, and why others cannot."""
    subjects: dict[str, Subject] = {}
    missing: dict[str, str] = {}
    for folder in dict.fromkeys(runs):
        try:
            subject = Subject.open(folder, data, device)
        except InputError as error:
            missing[str(folder)] = str(error)
        else:
            if other := subjects.get(subject.weights):
                missing[str(folder)] = f"has the weights of {other.folder}, and counts once"
            else:
                subjects[subject.weights] = subject
    if not subjects:
        raise InputError(next(iter(missing.values()), "RUN: got none, accepted are folders of runs"))
    for folder, why in missing.items():
        say(f"{folder}: not in the report: {why}")
    return list(subjects.values()), missing


def _overview(members: list[System]) -> Table:
    columns = ["system", "data", "d", "T", "parameters", "training", "options beside the preset", "runs"]
    table = Table("Systems", columns)
    for system in members:
        config, model = system.first.model.config, system.first.model
        table.add(
            [
                system.name,
                data_name(system.data),
                str(config.latent),
                str(model.steps),
                f"{sum(p.numel() for p in model.parameters()):,}",
                runs_text(system),
                system.first.changes or None,
                ", ".join(f"{subject.folder} (weights {subject.weights[:12]})" for subject in system.subjects),
            ]
        )
    return table.without_empty_columns()


def command_line(what: str, runs: Sequence[Path], options: dict[str, Any]) -> str:
    """The command that makes a report again, with what the environment says of data and networks."""
    said = [f"{name}={shlex.quote(os.environ[name])}" for name in ENVIRONMENT if name in os.environ]
    words = ["esvae", "report", what, *map(str, runs)]
    for name, value in options.items():
        flag = f"--{name.replace('_', '-')}"
        words += [flag] if value is True else [flag, str(value)]
    return " ".join([*said, shlex.join(words)])


__all__ = ["ANALYSES", "FOLDER", "SECTIONS", "Settings", "command_line", "report"]
