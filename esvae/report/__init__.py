"""The paper's tables and figures from trained runs, beside the published ones where there are some: `esvae report`.

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
from . import drawings, published, tables
from .measure import ANALYSES, FOLDER, Results, Settings, Subject, System, data_name, systems
from .page import AGAIN, KEPT, page
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


def _head(members: list[System], missing: dict[str, str]) -> Section:
    """What stands above all sections. It speaks of the kinds, presets and priors that are there."""
    kinds = {system.first.model.kind for system in members}
    presets = {system.first.config.preset for system in members if system.first.config is not None}
    mixture = any("mixture" in system.first.priors for system in members)
    beside = any(published.known(system.data) for system in members)
    about = [
        "A spiking neural network computes with neurons that either fire or stay silent, at each of T time steps, "
        "which costs little energy on hardware that is made for it. ESVAE (arXiv 2310.14839) is such a network that "
        "learns to compress images into spikes and to decode them again; and it can draw new images, by drawing "
        "spikes."
        + " FSVAE is the one that came before it." * (beside or "fsvae" in kinds)
        + " The ANN VAE is the same without spikes." * (beside or "vae" in kinds)
        + " The spiking GAN is another way to draw images." * (beside or "gan" in kinds),
        "This page sets what was measured here, in bold, beside what was published. " * beside
        + "Each row says how its figures came about. The arrows say which way is better.",
        "Look at T and training before comparing: the published models were trained for 150 to 300 epochs, ESVAE's at "
        "T = 16. "
        * beside
        + "A short training shows what a system learns in that time, not what it can learn; and of a single run nobody "
        "knows the spread over seeds, so that small differences between such rows may be chance.",
        "The prior is where the "
        + ("spikes" if kinds != {"vae"} else "latent")
        + " of a new image are drawn from."
        + " ESVAE's bottleneck is a small network that turns noise into firing rates." * ("esvae" in kinds)
        + " A mixture (of Gaussians) is fitted, after training, to the rates that the encoder gives training images."
        * mixture
        + " FSVAE's is autoregressive, each time step drawn after those before it." * ("fsvae" in kinds)
        + " The VAE's is a normal distribution." * ("vae" in kinds)
        + " The posterior is what the encoder makes of an image." * (kinds != {"gan"}),
    ]
    legend = [
        "d: neurons of the latent, the code between encoder and decoder"
        + "; of the VAE without spikes, numbers" * ("vae" in kinds)
        + ". T: time steps; 1@2,1@4,1@8 is one epoch at T = 2, then one at 4, then one at 8. Parameters are those that "
        "are trained"
        + ", with the GAN's critic" * ("gan" in kinds)
        + ", without a mixture's numbers" * mixture
        + ". Weights: the first digits of their checksum.",
    ]
    legend += [text for name, text in _PRESETS.items() if name in presets]
    legend += [text for kind, text in _KINDS.items() if kind in kinds]
    title = "Spiking autoencoders: measured" + ", beside the published figures" * beside
    return Section(ALL, title, about, [_overview(members)], legend, missing)


_PRESETS = {
    "paper": "Preset paper follows the paper's text. Where that leaves a choice it is the published code's, and where "
    "it is not followed, `esvae train --help` says so.",
    "official": "Preset official follows the paper's published code, which differs from its text in places.",
    "best": "Preset best is this project's own variant, with other neurons, optimizer, kernels and prior, and no "
    "reproduction of the paper.",
}
_KINDS = {
    "fsvae": "The FSVAE has the neurons of the ESVAE paper.",
    "gan": "The spiking GAN is this project's own, on ESVAE's layers, and neither SWGAN nor SGAD.",
}


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

    for name in _present(members) if what == "all" else [what]:
        section = SECTIONS[name](members, results)
        sections.append(section)
        if section.figure is not None:
            for suffix, content in drawings.rendered(section.figure).items():
                write(f"{name}.{suffix}", content)
                if suffix == "png":
                    pictures[name] = content
        write(f"{name}.md", section.markdown() + (f"\n[All sections]({ALL}.md)\n" if what == "all" else ""))
        write(f"{name}.json", json.dumps(section.to_json(), indent=1, allow_nan=False) + "\n")
    head, name = _head(members, missing), ALL if what == "all" else what
    commands = "\n".join([*_trainings(members), command])
    if what == "all":
        write(f"{name}.md", _index(head, sections, commands))
    write(f"{name}.html", page(head, sections, commands, pictures))
    return written


def _present(members: list[System]) -> list[str]:
    """The sections that these systems have something for: that of attention modules has not without any."""
    return [name for name in SECTIONS if name != "table5" or any(map(tables.attends, members))]


def _index(head: Section, sections: list[Section], commands: str) -> str:
    """The page's head in Markdown, where its sections are files of their own."""
    links = "\n".join(f"- [{section.title}]({section.what}.md)" for section in sections)
    again = f"## {AGAIN}\n\n{KEPT}\n\n```sh\n{commands}\n```"
    return f"{head.markdown()}\n## Sections\n\n{links}\n\n{again}\n"


def _trainings(members: list[System]) -> list[str]:
    """The commands that the runs were trained by; a model that comes along is there."""
    return [
        f"esvae train {options} --data {shlex.quote(subject.config.data)} --out {shlex.quote(str(subject.folder))}"
        for system in members
        for subject in system.subjects
        if (options := subject.options_text(seed=True)) and not subject.comes_along
    ]


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
    columns = ["system", "data", "d", "T", "parameters", "training", "preset, and options changed from it", "runs"]
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
                system.first.options_text(seed=False).removeprefix("--preset ") or None,
                ", ".join(map(_run_text, system.subjects)),
            ]
        )
    return table.without_empty_columns()


def _run_text(subject: Subject) -> str:
    where = f"{subject.folder}, which comes along" if subject.comes_along else str(subject.folder)
    return f"{where} (weights {subject.weights[:12]})"


def command_line(what: str, runs: Sequence[Path], options: dict[str, Any]) -> str:
    """The command that makes a report again, with what the environment says of data and networks."""
    said = [f"{name}={shlex.quote(os.environ[name])}" for name in ENVIRONMENT if name in os.environ]
    words = ["esvae", "report", what, *map(str, runs)]
    for name, value in options.items():
        flag = f"--{name.replace('_', '-')}"
        words += [flag] if value is True else [flag, str(value)]
    return " ".join([*said, shlex.join(words)])


__all__ = ["ANALYSES", "FOLDER", "SECTIONS", "Settings", "command_line", "report"]
