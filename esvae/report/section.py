"""What a report is made of: figures over runs, tables of them, sections with text, tables and a drawing; as Markdown
and as JSON. The page (HTML) is made from the same, in `page`."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NOTHING = "-"  # in a cell without a figure


@dataclass(frozen=True)
class Value:
    """One figure, over the runs of a system.

    Attributes:
        values: one per run.
        form: how it is printed, a format specification.
        repeats: of one run, the standard deviation over repetitions on it, and of what they are.
        note: behind the figure, in brackets.
    """

    values: tuple[float, ...]
    form: str
    repeats: tuple[float, str] | None = None
    note: str = ""

    @property
    def mean(self) -> float:
        return statistics.mean(self.values)

    @property
    def sd(self) -> float | None:
        """Over runs; None of one."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    def __str__(self) -> str:
        text, brackets = format(self.mean, self.form), [self.note] if self.note else []
        if self.sd is not None:
            text += f" ± {self._spread(self.sd)}"
            brackets.append(f"{len(self.values)} runs")
        elif self.repeats is not None:
            text += f" ± {self._spread(self.repeats[0])}"
            brackets.append(self.repeats[1])
        return f"{text} ({', '.join(brackets)})" if brackets else text

    def _spread(self, sd: float) -> str:
        """Like the value, but for one that would then be 0 and is not."""
        text = format(sd, self.form)
        return text if sd == 0 or text.strip("0.,") else format(sd, ".0e")

    def to_json(self) -> dict[str, Any]:
        found = {"mean": self.mean, "sd": self.sd, "n": len(self.values), "values": list(self.values)}
        if self.repeats:
            found["sd_within_run"], found["repetitions"] = self.repeats
        return found | ({"note": self.note} if self.note else {})


Cell = str | Value | None


@dataclass
class Table:
    """Rows of cells; `ours` tells for each row whether it was measured here."""

    title: str
    columns: list[str]
    rows: list[list[Cell]] = field(default_factory=list)
    ours: list[bool] = field(default_factory=list)

    def add(self, cells: list[Cell], ours: bool = True) -> None:
        self.rows.append(cells)
        self.ours.append(ours)

    def without_empty_columns(self) -> Table:
        keep = [i for i in range(len(self.columns)) if any(row[i] is not None for row in self.rows)]
        rows = [[row[i] for i in keep] for row in self.rows]
        return Table(self.title, [self.columns[i] for i in keep], rows, self.ours)

    def texts(self) -> list[list[str]]:
        return [[NOTHING if cell is None else str(cell) for cell in row] for row in self.rows]

    def to_json(self) -> dict[str, Any]:
        rows = [
            {
                column: cell.to_json() if isinstance(cell, Value) else cell
                for column, cell in zip(self.columns, row, strict=True)
            }
            for row in self.rows
        ]
        return {"title": self.title, "rows": rows, "measured_here": self.ours}


@dataclass
class Section:
    """One of the report's parts.

    Attributes:
        what: its name on the command line, which its files are called by.
        about: paragraphs for a reader who does not know the paper.
        notes: what must be known to read the figures.
        missing: what was not measured -> why.
        figure: drawn, or None; `caption` says what is on it.
        data: what is drawn, for the JSON file.
    """

    what: str
    title: str
    about: list[str]
    tables: list[Table] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
    figure: Figure | None = None
    caption: str = ""
    data: dict[str, Any] = field(default_factory=dict)

    @property
    def alternative(self) -> str:
        """What stands for the figure where it is not seen."""
        return f"{self.title}. {self.caption}"

    def to_json(self) -> dict[str, Any]:
        return {
            "what": self.what,
            "title": self.title,
            "tables": [table.to_json() for table in self.tables],
            "data": self.data,
            "notes": self.notes,
            "not_measured": self.missing,
        }

    def markdown(self) -> str:
        parts = [f"# {_plain(self.title)}", *map(_plain, self.about)]
        if self.figure is not None:
            parts.append(f"![{_plain(self.alternative)}]({self.what}.png)\n\n{_plain(self.caption)}")
        for table in self.tables:
            parts += [f"## {_plain(table.title)}", _markdown_table(table)]
        if self.notes:
            parts.append("\n".join(f"- {_plain(note)}" for note in self.notes))
        if self.missing:
            lines = [f"- not measured: {_plain(what)}: {_plain(why)}" for what, why in self.missing.items()]
            parts.append("\n".join(lines))
        return "\n\n".join(parts) + "\n"


def _markdown_table(table: Table) -> str:
    lines = [table.columns, ["---"] * len(table.columns)]
    for texts, ours in zip(table.texts(), table.ours, strict=True):
        lines.append([f"**{_plain(texts[0])}**" if ours else _plain(texts[0]), *map(_plain, texts[1:])])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _plain(text: str) -> str:
    """Text that comes from outside, as text: no table cells, no tags, no emphasis, one line."""
    text = " ".join(text.split()).replace("\\", "\\\\").replace("<", "&lt;")
    for mark in "|*`":
        text = text.replace(mark, f"\\{mark}")
    return text
