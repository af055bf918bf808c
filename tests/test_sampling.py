"""What pytest runs without `--all`: enough, the same everywhere, and all of what is asked for by name."""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from sampling import sample

AXES = {"a": (None, "x", "y"), "b": (True, 1, 1.5, [], []), "c": range(4), "d": range(2)}
ROWS = [dict(zip(AXES, values, strict=True)) for values in itertools.product(*AXES.values())]
NAMES = [str(k) for k in range(len(ROWS))]


def pairs(rows: list[dict]) -> set:
    """By number: True is 1, and a list has no hash."""
    at = [{c: next(k for k, v in enumerate(AXES[c]) if v is row[c]) for c in AXES} for row in rows]
    return {pair for row in at for pair in itertools.combinations(row.items(), 2)}


def test_every_two_values_meet_in_few_sets() -> None:
    found = [ROWS[k] for k in sample(ROWS, NAMES)]
    assert pairs(found) == pairs(ROWS)
    assert 5 * 4 <= len(found) <= 25  # of 120
    hand_made = [row for row in ROWS if row["a"] != "x" or row["c"] == 3]
    assert pairs([hand_made[k] for k in sample(hand_made, NAMES)]) == pairs(hand_made)


def test_values_come_before_pairs() -> None:
    for most in (5, 8):
        found = [ROWS[k] for k in sample(ROWS, NAMES, most)]
        assert len(found) == most
        assert all(any(row[c] is value for row in found) for c, values in AXES.items() for value in values)


def test_entries_of_dicts_are_values() -> None:
    rows = [{"case": row} for row in ROWS]
    found = [ROWS[k] for k in sample(rows, NAMES, 22)]
    assert len(pairs(found)) > 0.9 * len(pairs(ROWS))


def test_the_choice_depends_on_names_alone() -> None:
    chosen = [ROWS[k] for k in sample(ROWS, NAMES)]
    order = sorted(range(len(ROWS)), key=lambda k: (k * 7) % 11)
    again = [ROWS[order[k]] for k in sample([ROWS[k] for k in order], [NAMES[k] for k in order])]
    assert sorted(map(str, chosen)) == sorted(map(str, again))
    assert [ROWS[k] for k in sample(ROWS, NAMES[::-1])] != chosen


TESTS = """
import pytest

@pytest.mark.parametrize("a", range(5))
@pytest.mark.parametrize("b", range(4))
@pytest.mark.parametrize("c", range(3))
def test_many(a, b, c): pass

@pytest.mark.few(2)
@pytest.mark.parametrize("a", range(5))
def test_some(a): pass

@pytest.mark.parametrize("a", range(12))
def test_twelve(a): pass

@pytest.mark.slow
def test_slow(): pass
"""


@pytest.fixture
def collected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """What a pytest without any other plugin would run there, how many of each function, in order."""
    (tmp_path / "test_it.py").write_text(TESTS)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n  slow\n  few\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")

    def collect(*arguments: str) -> str:
        # Not the plugins that collect garbage at the end: all of torch's is here.
        without = [f"-pno:{name}" for name in ("cacheprovider", "unraisableexception", "threadexception")]
        options = ["-p", "sampling", *without, "--import-mode=importlib", "--collect-only", "-q"]
        assert pytest.main([*options, *arguments]) == 0
        said = capsys.readouterr().out
        names = re.findall(r"::test_([a-z]+)", said)
        (counts,) = re.findall(r"sampled: (.*) tests", said) or ("all",)
        return " ".join([counts, *(f"{name}:{len([*group])}" for name, group in itertools.groupby(names))])

    return collect


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("", "34 of 78 many:20 some:2 twelve:12"),
        ("--all", "all many:60 some:5 twelve:12 slow:1"),
        ("test_it.py::test_some test_it.py::test_slow", "all some:5 slow:1"),
        ("-m slow", "all slow:1"),
        ("-m 'not slow' -k some", "2 of 5 some:2"),
        ("-k 0-0-", "all many:5"),
    ],
)
def test_what_is_run(collected: Callable[..., str], arguments: str, expected: str) -> None:
    assert collected(*shlex.split(arguments)) == expected
