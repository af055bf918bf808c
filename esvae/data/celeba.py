"""CelebA's aligned faces."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from esvae.data import cache, files, places
from esvae.errors import InputError

FOLDER = "img_align_celeba"
LIST = "list_eval_partition.txt"
PARTITIONS = {"train": "0", "test": "2"}  # 1 is the validation set
SIZE = (178, 218)
CROP = 148
LIST_MAX_BYTES = 1 << 26


def read(name: str, split: str, size: int, download: bool) -> np.ndarray:
    """CelebA's aligned faces as uint8 (N, 3, size, size): the centered 148x148 pixels of each, resized bilinearly.

    Read from ESVAE_DATA_DIR/celeba: `img_align_celeba/*.jpg` and, beside that folder, `list_eval_partition.txt`.

    Raises:
        InputError: one of them was not found, the list is malformed, or an image is not 178x218 in color.
    """
    folders, root = where(name)
    if root is None:
        looked = folders[0] if folders else "ESVAE_DATA_DIR/celeba (ESVAE_DATA_DIR is not set)"
        raise InputError(
            f"{name}: no {FOLDER} with {LIST} beside it in {looked}; "
            "get both from CelebA's own page (no download is offered here) and set ESVAE_DATA_DIR to celeba's parent"
        )
    images = [root / FOLDER / file for file in _listed(root / LIST, PARTITIONS[split])]
    if not images:
        raise InputError(f"{root / LIST}: lists no image of partition {PARTITIONS[split]} ({split})")
    return cache.images(
        cache.path(root, b"%d" % CROP, split, size),
        images,
        cache.listing_digest(images, root),
        size,
        channels=lambda: _checked(images),
        decode=lambda file, channels: files.decode(file, channels, size, crop=CROP),
    )


def where(name: str) -> tuple[list[Path], Path | None]:
    """The folders that are looked in, one or none, and the one that CelebA is found in, or None."""
    own = places.data_dir()
    folders = [own / "celeba"] if own else []
    found = [f for f in folders if os.path.isdir(f / FOLDER) and os.path.isfile(f / LIST)]
    return folders, found[0] if found else None


def _checked(images: list[Path]) -> int:
    """The number of channels, once all images are known to be the aligned ones."""
    for file in cache.track(images, "checking images"):
        form = files.form(file)
        if form.size != SIZE or not form.color:
            kind = "color" if form.color else "grey"
            got = f"{form.size[0]}x{form.size[1]} {kind}"
            raise InputError(f"{file}: {got}, need {SIZE[0]}x{SIZE[1]} color (the aligned images)")
    return 3


def _listed(path: Path, partition: str) -> list[str]:
    if path.stat().st_size > LIST_MAX_BYTES:
        raise InputError(f"{path}: {path.stat().st_size} bytes, need at most {LIST_MAX_BYTES}")
    names = []
    for number, line in enumerate(path.read_text(encoding="ascii", errors="replace").splitlines(), 1):
        words = line.split()
        if not words:
            continue
        if len(words) != 2 or words[1] not in {"0", "1", "2"} or Path(words[0]).name != words[0]:
            raise InputError(f"{path}, line {number}: got {line[:80]!r}, need a file name and 0, 1 or 2")
        if words[1] == partition:
            names.append(words[0])
    return names
