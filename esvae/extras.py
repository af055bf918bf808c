"""What an extra of the package asks for, and one line where a part of it is missing. Needs Python alone."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Iterator
from contextlib import contextmanager

PACKAGE = "esvae"
OWN_MODULES = {"esvae", "esvae_kernels", "_esvae_kernels"}  # where one of these is missing, no extra would bring it


class MissingExtra(ImportError):
    """A package of an extra is not installed; the message is one line and says what to install."""


def requirements() -> dict[str, list[str]]:
    """The packages that each extra of the installed esvae asks for, by the names of their distributions."""
    found: dict[str, list[str]] = {}
    try:
        lines = importlib.metadata.requires(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:  # run from its sources
        return found
    for line in lines:
        name = re.match(r"[A-Za-z0-9._-]+", line)
        extra = re.search(r"""extra\s*==\s*["']([^"']+)["']""", line)
        if name and extra and name[0] != PACKAGE:  # an extra may ask for another one
            found.setdefault(extra[1], []).append(name[0])
    return found


def installed(distribution: str) -> str | None:
    """The version of a distribution, or None where it is missing."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def missing(extra: str) -> list[str]:
    """The packages of an extra that are not installed."""
    return [name for name in requirements().get(extra, []) if installed(name) is None]


@contextmanager
def needed(extra: str) -> Iterator[None]:
    """Of a module that cannot be imported within the block one line is told: what is missing, and what to install.

    Raises:
        MissingExtra: in the place of ModuleNotFoundError.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] in OWN_MODULES:
            raise
        names = ", ".join(missing(extra)) or error.name.partition(".")[0]
        raise MissingExtra(f"this needs {names}: pip install '{PACKAGE}[{extra}]'", name=error.name) from None
