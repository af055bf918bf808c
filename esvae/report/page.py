"""The report as one HTML page that needs nothing else: no scripts, no fonts, no files beside it."""

from __future__ import annotations

import base64
import re
from html import escape
from string import Template

from .section import NOTHING, Section, Table, Value

AGAIN = "How to make this again"
KEPT = "What was measured is kept beside each run, and taken from there as long as weights and settings are the same."
SHORT = 24  # letters that a cell need not be wide for

PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
:root { color-scheme: light; --ink: #1b1b1b; --grey: #595959; --line: #d0d0d0; --ours: #e8f1f8; --blue: #0072b2; }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: #fff; margin: 0 auto; padding: 1.5rem;
  max-width: 68rem; }
p, li { max-width: 46rem; }
h1 { font-size: 1.8rem; line-height: 1.2; margin: 0 0 .5rem; }
h2 { font-size: 1.35rem; margin: 3rem 0 .5rem; padding-top: .75rem; border-top: 2px solid var(--blue); }
h3 { font-size: 1rem; margin: 1.5rem 0 .25rem; }
nav { margin: 1rem 0; }
nav a { margin-right: 1rem; white-space: nowrap; }
a { color: var(--blue); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85rem; }
th, td { border-bottom: 1px solid var(--line); padding: .3rem .6rem; text-align: left; vertical-align: top; }
th { border-bottom: 2px solid var(--grey); }
td.number { white-space: nowrap; font-variant-numeric: tabular-nums; }
td.about { min-width: 13rem; color: var(--grey); overflow-wrap: anywhere; }
.flag { white-space: nowrap; }
tr.ours { background: var(--ours); }
tr.ours th[scope=row] { font-weight: 700; }
th[scope=row] { font-weight: 400; border-bottom: 1px solid var(--line); min-width: 8rem; }
td small { display: block; color: var(--grey); white-space: normal; }
figure { margin: 1rem 0; }
figure img { max-width: 100%; height: auto; }
figcaption, .notes, .missing { font-size: .9rem; color: var(--grey); }
.missing { border-left: 3px solid #d55e00; padding-left: 1rem; }
code, pre { font-family: ui-monospace, monospace; font-size: .85rem; }
pre { background: #f5f5f5; padding: .75rem; overflow-x: auto; }
</style>
</head>
<body>
<header>
<h1>$title</h1>
$header
</header>
<nav aria-label="Sections">$links <a href="#reproduce">$again</a></nav>
<main>
$sections
</main>
<footer>
<h2 id="reproduce">$again</h2>
<p>$kept</p>
<pre>$commands</pre>
</footer>
</body>
</html>
""")


def page(head: Section, sections: list[Section], commands: str, pictures: dict[str, bytes]) -> str:
    """All text is escaped here; `pictures` are the PNG files of sections, by their `what`."""
    return PAGE.substitute(
        title=escape(head.title),
        header=_content(head, None, "h2"),
        links=" ".join(f'<a href="#{s.what}">{escape(s.title.partition(":")[0])}</a>' for s in sections),
        sections="\n".join(_section(section, pictures.get(section.what)) for section in sections),
        again=escape(AGAIN),
        kept=escape(KEPT),
        commands=escape(commands),
    )


def _section(section: Section, picture: bytes | None) -> str:
    title = f'<h2 id="{section.what}">{escape(section.title)}</h2>'
    return f'<section aria-labelledby="{section.what}">\n{title}\n{_content(section, picture, "h3")}\n</section>'


def _content(section: Section, picture: bytes | None, heading: str) -> str:
    parts = [f"<p>{escape(text)}</p>" for text in section.about]
    if picture is not None:
        image = base64.b64encode(picture).decode()
        parts.append(
            f'<figure><img alt="{escape(section.alternative)}" src="data:image/png;base64,{image}">'
            f"<figcaption>{escape(section.caption)}</figcaption></figure>"
        )
    parts += [_table(table, heading) for table in section.tables]
    if section.notes:
        parts.append(f'<ul class="notes">{"".join(f"<li>{escape(note)}</li>" for note in section.notes)}</ul>')
    parts.append(_missing(section.missing))
    return "\n".join(filter(None, parts))


def _missing(missing: dict[str, str]) -> str:
    if not missing:
        return ""
    lines = "".join(f"<li>{escape(what)}: {escape(why)}</li>" for what, why in missing.items())
    return f'<div class="missing"><p>Not measured:</p><ul>{lines}</ul></div>'


def _table(table: Table, heading: str) -> str:
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in table.columns)
    body = []
    for row, ours in zip(table.rows, table.ours, strict=True):
        first = f'<th scope="row">{escape(str(row[0]))}</th>'
        kind = ' class="ours"' if ours else ""
        body.append(f"<tr{kind}>{first}{''.join(map(_cell, row[1:]))}</tr>")
    content = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"
    title = escape(table.title)  # the region scrolls where it is wider than the page, by keys as well
    region = f'<div class="wide" tabindex="0" role="region" aria-label="{title}">{content}</div>'
    return f"<{heading}>{title}</{heading}>{region}"


def _cell(cell: str | Value | None) -> str:
    if cell is None:
        return f'<td class="number">{NOTHING}</td>'
    if isinstance(cell, str):
        text = re.sub(r"--\S+", r'<span class="flag">\g<0></span>', escape(cell))  # else broken behind its hyphens
        return f"<td{' class=about' if len(cell) > SHORT else ''}>{text}</td>"
    number, bracket, rest = str(cell).partition(" (")
    small = f"<small>{escape(rest.removesuffix(')'))}</small>" if bracket else ""
    return f'<td class="number">{escape(number)}{small}</td>'
