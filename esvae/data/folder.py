"""Folders of image files: any folder of one's own, and CelebA's aligned faces."""

from __future__ import annotations

import hashlib
import os
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from esvae.data import cache, places
from esvae.data.images import resize
from esvae.errors import InputError

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp"}
FORMATS = ["PNG", "JPEG", "BMP", "WEBP"]  # by content: a file that merely ends in .png is opened by no other decoder
TEST_SHARE = 10  # one image in ten
CHANNELS = {"1": 1, "L": 1, "LA": 3, "P": 3, "RGB": 3, "RGBA": 3}  # of Pillow's modes; alpha is dropped

CELEBA_FOLDER = "img_align_celeba"
CELEBA_LIST = "list_eval_partition.txt"
CELEBA_PARTITIONS = {"train": "0", "test": "2"}  # 1 is the validation set
CELEBA_SIZE = (178, 218)
CELEBA_CROP = 148
CELEBA_LIST_MAX_BYTES = 1 << 26


def read(name: str, split: str, size: int, download: bool) -> np.ndarray:
    """The image files below the folder `name` as uint8 (N, C, size, size), in the order of their paths.

    If the folder has `train` and `test` folders, these are the splits; otherwise a tenth of the images, chosen by a
    hash of their relative paths, is the test set. Images are cropped to their centered square and resized bilinearly;
    C is 1 if all are grey, else 3. Hidden files and folders are left out. `download` does not matter here.

    Raises:
        InputError: no folder, no images, images of several sizes or both grey and color, or a file that is no image.
    """
    if not os.path.isdir(name):
        raise InputError(f"folder: {name} is not a folder")
    root = Path(name).absolute()
    splits = _splits(root)
    files = splits["train"] + splits["test"]
    if not files:
        raise InputError(f"{root}: no images, accepted are {', '.join(sorted(SUFFIXES))}")
    if not splits[split]:
        raise InputError(
            f"{root}: none of its {len(files)} images is in the {split} split; make train and test folders"
        )
    # Of both splits: what does not fit is found before any image is decoded.
    return _decoded(root, split, size, splits[split], channels=lambda: _common_form(files)[1], crop=None)


def labels(name: str, split: str, download: bool) -> np.ndarray:
    """The number of each image's class, int64 (N): classes are the subfolders of the folder, or of its `train` and
    `test` folders, in the order of their names.

    Raises:
        InputError: an image lies in no subfolder, or no folder, as in `read`.
    """
    root = Path(name).absolute()
    classes = {part: [_class(file, root) for file in files] for part, files in _splits(root).items()}
    numbers = {folder: number for number, folder in enumerate(sorted({*classes["train"], *classes["test"]}))}
    return np.array([numbers[folder] for folder in classes[split]], np.int64)


def _class(file: Path, root: Path) -> str:
    folders = file.relative_to(root).parts[:-1]
    own = folders[1:] if _has_splits(root) else folders
    if not own:
        raise InputError(f"{file}: lies in no subfolder, so it has no label; accepted is a subfolder for each class")
    return own[0]


def _splits(root: Path) -> dict[str, list[Path]]:
    if _has_splits(root):
        return {split: _images_below(root / split) for split in ("train", "test")}
    files = _images_below(root)
    return {
        "train": [file for file in files if not _in_test(file, root)],
        "test": [file for file in files if _in_test(file, root)],
    }


def _has_splits(root: Path) -> bool:
    return os.path.isdir(root / "train") and os.path.isdir(root / "test")


def _images_below(root: Path) -> list[Path]:
    found = []
    for folder, below, names in os.walk(root, onerror=_unreadable):
        below[:] = [name for name in below if not name.startswith(".")]
        found += [Path(folder, name) for name in names if not name.startswith(".")]
    images = [path for path in found if path.suffix.lower() in SUFFIXES]
    return sorted(images, key=lambda path: path.relative_to(root).as_posix())


def _unreadable(error: OSError) -> None:
    raise InputError(f"{error.filename}: cannot be read: {error}") from error


def _in_test(file: Path, root: Path) -> bool:
    relative = file.relative_to(root).as_posix().encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.blake2b(relative, digest_size=8).digest(), "little") % TEST_SHARE == 0


def read_celeba(name: str, split: str, size: int, download: bool) -> np.ndarray:
    """CelebA's aligned faces as uint8 (N, 3, size, size): the centered 148x148 pixels of each, resized bilinearly.

    Read from ESVAE_DATA_DIR/celeba: `img_align_celeba/*.jpg` and, beside that folder, `list_eval_partition.txt`.

    Raises:
        InputError: one of them was not found, the list is malformed, or an image is not 178x218 in color.
    """
    folders, root = where_celeba(name)
    if root is None:
        looked = folders[0] if folders else "ESVAE_DATA_DIR/celeba (ESVAE_DATA_DIR is not set)"
        raise InputError(
            f"{name}: no {CELEBA_FOLDER} with {CELEBA_LIST} beside it in {looked}; "
            "get both from CelebA's own page (no download is offered here) and set ESVAE_DATA_DIR to celeba's parent"
        )
    files = [root / CELEBA_FOLDER / file for file in _celeba_files(root / CELEBA_LIST, CELEBA_PARTITIONS[split])]
    if not files:
        raise InputError(f"{root / CELEBA_LIST}: lists no image of partition {CELEBA_PARTITIONS[split]} ({split})")
    return _decoded(root, split, size, files, channels=lambda: _celeba_channels(files), crop=CELEBA_CROP)


def where_celeba(name: str) -> tuple[list[Path], Path | None]:
    """The folders that are looked in, one or none, and the one that CelebA is found in, or None."""
    own = places.data_dir()
    folders = [own / "celeba"] if own else []
    found = [f for f in folders if os.path.isdir(f / CELEBA_FOLDER) and os.path.isfile(f / CELEBA_LIST)]
    return folders, found[0] if found else None


def _celeba_channels(files: list[Path]) -> int:
    form, channels = _common_form(files)
    if form != CELEBA_SIZE or channels != 3:
        kind = "color" if channels == 3 else "grey"
        raise InputError(f"{files[0]}: {form[0]}x{form[1]} {kind}, need 178x218 color (the aligned images)")
    return channels


def _celeba_files(path: Path, partition: str) -> list[str]:
    if path.stat().st_size > CELEBA_LIST_MAX_BYTES:
        raise InputError(f"{path}: {path.stat().st_size} bytes, need at most {CELEBA_LIST_MAX_BYTES}")
    files = []
    for number, line in enumerate(path.read_text(encoding="ascii", errors="replace").splitlines(), 1):
        words = line.split()
        if not words:
            continue
        if len(words) != 2 or words[1] not in {"0", "1", "2"} or Path(words[0]).name != words[0]:
            raise InputError(f"{path}, line {number}: got {line[:80]!r}, need a file name and 0, 1 or 2")
        if words[1] == partition:
            files.append(words[0])
    return files


def _common_form(files: list[Path]) -> tuple[tuple[int, int], int]:
    """The (width, height) and the number of channels that all the files share, from their headers alone."""
    first: tuple[tuple[int, int], int] | None = None
    for file in cache.track(files, "checking images"):
        with _open(file) as image:
            form, mode = image.size, image.mode
        if mode not in CHANNELS:
            raise InputError(f"{file}: mode {mode}, accepted are {', '.join(CHANNELS)}")
        if first is None:
            first = form, CHANNELS[mode]
        if (form, CHANNELS[mode]) != first:
            raise InputError(
                f"images differ: {files[0]} is {_describe(*first)}, {file} is {_describe(form, CHANNELS[mode])}; "
                "all must have one size and be all grey or all color"
            )
    return first


def _describe(form: tuple[int, int], channels: int) -> str:
    return f"{form[0]}x{form[1]} {'grey' if channels == 1 else 'color'}"


def _decoded(
    root: Path, split: str, size: int, files: list[Path], channels: Callable[[], int], crop: int | None
) -> np.ndarray:
    """The images from the cache: one file per folder, split, size and crop, whatever the folder holds."""
    where = root.resolve()
    key = hashlib.blake2b(os.fsencode(where) + b"%d" % (crop or 0), digest_size=8).hexdigest()
    name = re.sub(r"[^A-Za-z0-9_-]", "_", where.name)[:40]
    path = places.cache_dir("images") / f"{name}-{key}-{split}-{size}.pixels"
    return cache.images(path, files, root, size, channels, lambda file, c: _decode(file, c, size, crop))


def _decode(file: Path, channels: int, size: int, crop: int | None) -> np.ndarray:
    """One image as uint8 (channels, size, size)."""
    with _open(file) as image:
        pixels = image.convert("L" if channels == 1 else "RGB")
    if crop is not None:
        left, top = (pixels.width - crop) // 2, (pixels.height - crop) // 2
        pixels = pixels.crop((left, top, left + crop, top + crop))
    planes = np.asarray(resize(pixels, size)).reshape(size, size, channels).transpose(2, 0, 1)
    return np.ascontiguousarray(planes)


@contextmanager
def _open(file: Path) -> Iterator[Image.Image]:
    """The image with its header read; whatever is wrong with the file, then or on decoding, is one InputError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file, formats=FORMATS) as image:
                yield image
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise InputError(f"{file}: too many pixels for an image of a data set: {error}") from error
    except Exception as error:  # Pillow's decoders raise many kinds on broken files
        raise InputError(f"{file}: cannot be read as PNG, JPEG, BMP or WebP: {error}") from error
