"""Where data sets lie on a machine, and how they get there."""

from __future__ import annotations

import os
from pathlib import Path

import pooch

from esvae.errors import InputError


def data_dir() -> Path | None:
    """The folder that ESVAE_DATA_DIR names, or None where it is not set; the only reader of that variable.

    Raises:
        InputError: it is set to something that is not a folder.
    """
    value = os.environ.get("ESVAE_DATA_DIR")
    if not value:
        return None
    folder = Path(value).expanduser()
    if not os.path.isdir(folder):
        raise InputError(f"ESVAE_DATA_DIR: got {value!r}, which is not a folder")
    return folder


def cache() -> Path:
    """ESVAE_CACHE_DIR, by default the user's cache: for what can be had again."""
    own = os.environ.get("ESVAE_CACHE_DIR")
    return Path(own).expanduser() if own else Path(pooch.os_cache("esvae"))


def cache_dir(name: str) -> Path:
    """The folder `name` of the cache."""
    return cache() / name


def fetch(url: str, md5: str, folder: Path) -> Path:
    """Download `url` into `folder` unless it is there, compare its MD5, and return the file.

    Raises:
        InputError: the download failed, or what came is another file.
    """
    try:
        return Path(pooch.retrieve(url, f"md5:{md5}", fname=url.rsplit("/", 1)[1], path=folder))
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"download of {url} into {folder} failed: {reason}") from error


def listing(folders: list[Path]) -> str:
    """The folders for a message: where something was looked for."""
    unset = "" if data_dir() else " (ESVAE_DATA_DIR is not set)"
    return ", ".join(str(folder) for folder in folders) + unset
