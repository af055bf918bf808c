"""`esvae info`: what a bug report begins with. Needs no extra: what is missing is part of the answer."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import NoReturn

from ..errors import InputError
from ..extras import MissingExtra, installed, requirements


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:  # argparse's own prints the usage as well, and ends the program
        raise InputError(f"{message}; see {self.prog} --help")


def info(arguments: list[str]) -> None:
    """Print what esvae_kernels and esvae know of this installation, as lines `label: value` or one JSON object."""
    parser = _Parser(
        "esvae info",
        description="Print versions, backends, data sets and caches: what a bug report begins with.",
        epilog="Example: esvae info --json",
        allow_abbrev=False,
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object, and nothing else, on stdout")
    options = parser.parse_args(arguments)
    from esvae_kernels import info as kernels

    print(kernels.show([*kernels.lines(), *lines()], options.json))


def lines() -> list[tuple[str, str]]:
    """(label, value) of what esvae knows: the packages of each extra, data sets, the cache, its variables."""
    found = [
        (f"extra {extra}", ", ".join(f"{name} {installed(name) or 'missing'}" for name in names))
        for extra, names in requirements().items()
    ]
    found += _places()
    return found + [(name, value) for name, value in sorted(os.environ.items()) if name.startswith("ESVAE_")]


def _places() -> list[tuple[str, str]]:
    """Where each data set and the cache are."""
    try:
        from ..data import SOURCES
        from ..data.places import cache
    except MissingExtra as error:
        return [("data and cache", str(error))]
    found = []
    for name, source in SOURCES.items():
        if source.where is None:
            continue
        try:
            folders, here = source.where(name)
            looked = ", ".join(map(str, folders)) or "ESVAE_DATA_DIR, which is not set"
            found.append((f"data {name}", f"found in {here}" if here else f"not found in {looked}"))
        except InputError as error:
            found.append((f"data {name}", str(error)))
    folder = cache()
    size = f"{_bytes_below(folder) / 2**20:.1f} MiB" if folder.is_dir() else "not there yet"
    return [*found, ("cache", f"{folder}, {size}")]


def _bytes_below(folder: Path) -> int:
    """The size of all files; one that another process deletes meanwhile counts nothing."""
    total = 0
    for below, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(below, name)).st_size
            except OSError:
                continue
    return total
