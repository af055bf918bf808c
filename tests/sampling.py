"""A pytest plugin: which tests run without `--all`. None that is marked slow, and of those with many sets of parameters
a sample.

In a sample every two values of any two parameters meet in at least one set, as far as they meet in any. It is the same
in every process and on every machine. Of a test that is marked `few(n)` it has n sets.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from hashlib import sha256
from typing import Any

import pytest

FEW = 12  # sets of parameters that are run in any case
# What tells one kernel from another: not what is the same for every backend, such as derivatives of derivatives.
COMPARISONS = (
    "(equal or last_place or some_parameters or align_with_blocks or batch_norm_and_lif or every_half or alone or "
    "delayed_reset or recorded or comparison_is_exact or thousand_steps or counter_is or formulas)"
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all", action="store_true", help="run slow tests too, and every set of parameters")
    parser.addoption("--sets", type=int, help="of every test so many sets of parameters at most, not on the reference")
    parser.addoption("--part", metavar="K/N", help="of what would run, the K-th of N parts: for N processes at once")


def takes_all(config: pytest.Config) -> bool:
    """Whether that was asked for, or tests by their names."""
    return config.getoption("--all") or any("::" in argument for argument in config.args)


def sample(rows: Sequence[Mapping[str, Any]], names: Sequence[str], most: int | None = None) -> list[int]:
    """The numbers of a few rows in which any two values of two columns meet that meet in a row; at most so many.

    Greedily, the row with most values that are missing, then with most pairs; of two that have as many, by their names.
    """
    values = [set(_values(row)) for row in rows]
    pairs = [{frozenset(pair) for pair in itertools.combinations(row, 2)} or row for row in values]
    missing, apart = set().union(*values), set().union(*pairs)
    left = sorted(range(len(rows)), key=lambda k: sha256(names[k].encode()).digest())
    chosen: list[int] = []
    while apart and len(chosen) != most:
        best = max(left, key=lambda k: (len(values[k] & missing), len(pairs[k] & apart)))
        left.remove(best)
        missing -= values[best]
        apart -= pairs[best]
        chosen.append(best)
    return sorted(chosen)


def _values(row: Mapping[str, Any]) -> Iterator[tuple[str, Hashable]]:
    """What stands in each column; in one of dicts, their entries too."""
    for column, value in row.items():
        yield column, _key(value)
        if isinstance(value, Mapping):
            yield from ((f"{column}.{name}", _key(entry)) for name, entry in value.items())


def _key(value: Any) -> Hashable:
    """What tells the values of a parameter apart; True is not 1."""
    try:
        hash(value)
    except TypeError:
        return id(value)
    return type(value), value


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the items to run, in their order. What `-k` and `-m` select has been selected before."""
    if not takes_all(config):
        _sample(config, items)
    if part := config.getoption("--part"):
        k, n = map(int, part.split("/"))
        _keep(config, items, set(parts(items, n)[k - 1]))


def _sample(config: pytest.Config, items: list[pytest.Item]) -> None:
    slow_wanted = "slow" in config.getoption("markexpr")
    of_function: defaultdict[str, list[pytest.Item]] = defaultdict(list)
    for item in items:
        if slow_wanted or item.get_closest_marker("slow") is None:
            of_function[item.nodeid.partition("[")[0]].append(item)
    kept: set[pytest.Item] = set()
    for several in of_function.values():
        kept.update(_at_most(several, most) if (most := config.getoption("--sets")) else _few(several))
    config.stash[_COUNTS] = len(kept), len(items)
    _keep(config, items, kept)


def _keep(config: pytest.Config, items: list[pytest.Item], kept: set[pytest.Item]) -> None:
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = [item for item in items if item in kept]


def parts(items: Iterable[pytest.Item], n: int) -> list[list[pytest.Item]]:
    """The items in n parts of about as many; those of a function stay together, as they share compiled kernels."""
    functions: defaultdict[str, list[pytest.Item]] = defaultdict(list)
    for item in items:
        functions[item.nodeid.partition("[")[0]].append(item)
    found: list[list[pytest.Item]] = [[] for _ in range(n)]
    for several in sorted(functions.values(), key=len, reverse=True):
        min(found, key=len).extend(several)
    return found


def _few(items: list[pytest.Item]) -> Iterable[pytest.Item]:
    mark = items[0].get_closest_marker("few")
    if len(items) <= (mark.args[0] if mark else FEW):
        return items
    rows = [item.callspec.params for item in items]  # type: ignore[attr-defined]
    return [items[k] for k in sample(rows, [item.nodeid for item in items], *(mark.args if mark else ()))]


def _at_most(items: list[pytest.Item], most: int) -> list[pytest.Item]:
    """For Triton on a GPU, which compiles for about a second of nearly each set."""
    items = [item for item in items if not _on_the_reference(item)] or items
    if len(items) <= most:
        return items
    rows = [item.callspec.params for item in items]  # type: ignore[attr-defined]
    return [items[k] for k in sample(rows, [item.nodeid for item in items], most)]


def _on_the_reference(item: pytest.Item) -> bool:
    params = item.callspec.params if hasattr(item, "callspec") else {}
    return any(isinstance(value, str) and value == "reference" for value in params.values())


_COUNTS = pytest.StashKey[tuple[int, int]]()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A worker of xdist tells the process that reports."""
    output = getattr(session.config, "workeroutput", None)
    if output is not None and _COUNTS in session.config.stash:
        output["sampled"] = session.config.stash[_COUNTS]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """That process; every worker says the same."""
    if "sampled" in (output := getattr(node, "workeroutput", {})):
        node.config.stash[_COUNTS] = tuple(output["sampled"])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    kept, of = config.stash.get(_COUNTS, (0, 0))
    if kept < of:
        terminalreporter.write_line(f"sampled: {kept} of {of} tests; --all runs every one")
