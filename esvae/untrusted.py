"""Reading weights from files that others wrote: nothing in them is run, nothing is allocated beyond their size."""

from __future__ import annotations

import zipfile
from pathlib import Path

import torch

from .errors import InputError

MAX_FILE_BYTES = 64 * 2**20  # the published networks have under 30 MB


def check_archive(path: Path) -> None:
    """Refuse what is not a plain zip archive of at most 64 MiB, before anything in it is read."""
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    if path.stat().st_size > MAX_FILE_BYTES:
        raise InputError(f"{path}: larger than {MAX_FILE_BYTES} bytes")
    if not zipfile.is_zipfile(path):
        raise InputError(f"{path}: not a zip archive, so damaged or of another format")


def read_pth(path: Path) -> dict[object, object]:
    """The dictionary in a file of `torch.save`, its tensors on the CPU and mapped from the file: copy what is kept.

    Only tensors and plain values are unpickled. Keys and values are as the file has them: a tensor may be of any shape,
    also a huge one with strides of 0, and hold NaN. Raises `InputError` for a file that is missing, larger than 64 MiB,
    damaged, compressed, of another format, or carries other objects.
    """
    check_archive(path)
    try:
        with zipfile.ZipFile(path) as archive:
            packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist())
        if packed:  # torch.save never compresses; without compression no entry is larger than the file
            raise ValueError("compressed entries")
        # Mapped, because torch.load reads beyond a record that is shorter than its tensor when it copies.
        state = torch.load(path, weights_only=True, map_location="cpu", mmap=True)
    except Exception as error:  # a hostile file can make the restricted unpickler raise anything
        raise InputError(f"{path}: not a readable file of weights ({type(error).__name__})") from error
    if not isinstance(state, dict):
        raise InputError(f"{path}: holds a {type(state).__name__}, not a dictionary of weights")
    return state
