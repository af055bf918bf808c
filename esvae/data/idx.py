"""Fashion-MNIST and MNIST from IDX files, plain or gzipped.

An IDX image file is a header of four big-endian uint32 (magic 0x00000803, N, H, W) and N * H * W bytes; a file of
labels is a header of two (magic 0x00000801, N) and N bytes.
"""

from __future__ import annotations

import gzip
import hashlib
import math
import os
import struct
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np

from esvae.data import places
from esvae.data.images import resize_all
from esvae.errors import InputError

MAGIC = 0x00000803
LABELS_MAGIC = 0x00000801
CLASSES = 10
MAX_SIDE = 1024
MAX_BYTES = 1 << 30
DEFLATE_MAX_RATIO = 1032  # no deflate stream expands by more

FILES = {"train": "train-images-idx3-ubyte", "test": "t10k-images-idx3-ubyte"}
LABEL_FILES = {"train": "train-labels-idx1-ubyte", "test": "t10k-labels-idx1-ubyte"}
SYSTEM_FOLDERS = {"fashion-mnist": [Path("/usr/share/datasets/fashion-mnist")], "mnist": []}
URLS = {
    "fashion-mnist": "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    "mnist": "https://ossci-datasets.s3.amazonaws.com/mnist/",
}
DOWNLOAD_MD5 = {
    ("fashion-mnist", "train"): "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    ("fashion-mnist", "test"): "bef4ecab320f06d8554ea6380940ec79",
    ("mnist", "train"): "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    ("mnist", "test"): "9fb629c4189551a2d022fa330f9573f3",
}
LABELS_MD5 = {
    ("fashion-mnist", "train"): "25c81989df183df01b3e8a0aad5dffbe",
    ("fashion-mnist", "test"): "bb300cfdad3c16e7a12a480ee83cd310",
    ("mnist", "train"): "d53e105ee54ea40749a09fcbcd1e9432",
    ("mnist", "test"): "ec29112dd5afa0611ce80d1b7f02629c",
}
# The published files carry the same names in both data sets; the MD5s of their contents, unpacked, tell them apart.
CONTENT_MD5 = {
    "f4a8712d7a061bf5bd6d2ca38dc4d50a": ("fashion-mnist", "train"),
    "8181f5470baa50b63fa0f6fddb340f0a": ("fashion-mnist", "test"),
    "6bbc9ace898e44ae57da46a324031adb": ("mnist", "train"),
    "2646ac647ad5339dbf082846283269ea": ("mnist", "test"),
}


def read(name: str, split: str, size: int, download: bool) -> np.ndarray:
    """The images of `name` ("fashion-mnist" or "mnist") as uint8 (N, 1, size, size).

    Looked for in ESVAE_DATA_DIR/<name>, ESVAE_DATA_DIR, the Debian package's folder (Fashion-MNIST) and the user's
    cache, in this order; downloaded into the cache if none has it and `download` is true.

    Raises:
        InputError: no file was found, or the one found is not a whole IDX image file or is another data set.
    """
    path = find(name, split)
    if path is None and download:
        path = places.fetch(f"{URLS[name]}{FILES[split]}.gz", DOWNLOAD_MD5[name, split], places.cache_dir(name))
    if path is None:
        raise InputError(_not_found(name, split))
    images = read_images(path)
    published = _published_as(images)
    if published not in (None, (name, split)):
        raise InputError(
            f"{path}: asked for {name} ({split}), but this is {published[0]} ({published[1]}); "
            "keep each data set in a folder of its name"
        )
    return resize_all(images, size)


def labels(name: str, split: str, download: bool) -> np.ndarray:
    """The classes of the images that `read` reads, int64 (N).

    Read from the folder of the images, where the labels of no other data set lie under the same name; downloaded into
    the cache if they are not there and `download` is true.

    Raises:
        InputError: no images or no labels were found, or the file is not a whole IDX file of labels 0 to 9.
    """
    images = find(name, split)
    if images is None:
        raise InputError(_not_found(name, split))
    path = _beside(images.parent, LABEL_FILES[split])
    if path is None and download:
        path = places.fetch(f"{URLS[name]}{LABEL_FILES[split]}.gz", LABELS_MD5[name, split], places.cache_dir(name))
    if path is None:
        where = f"no {LABEL_FILES[split]}[.gz] in {images.parent}, where the images are"
        raise InputError(f"{name} ({split}): {where}; put it there, or pass --download")
    return read_labels(path).astype(np.int64)


def _published_as(images: np.ndarray) -> tuple[str, str] | None:
    digest = hashlib.md5(struct.pack(">4I", MAGIC, *images.shape), usedforsecurity=False)
    digest.update(images)
    return CONTENT_MD5.get(digest.hexdigest())


def where(name: str) -> tuple[list[Path], Path | None]:
    """The folders that are looked in, and the one that both splits are found in, or None."""
    train, test = (find(name, split) for split in FILES)
    return _folders(name), train.parent if train and test else None


def find(name: str, split: str) -> Path | None:
    """The first file of this split, or None."""
    for folder in _folders(name):
        if path := _beside(folder, FILES[split]):
            return path
    return None


def _beside(folder: Path, file: str) -> Path | None:
    """The file in a folder, plain or gzipped, or None."""
    for path in (folder / file, folder / f"{file}.gz"):
        if os.path.isfile(path):
            return path
    return None


def _folders(name: str) -> list[Path]:
    own = places.data_dir()
    first = [own / name, own] if own else []
    return first + SYSTEM_FOLDERS[name] + [places.cache_dir(name)]


def _not_found(name: str, split: str) -> str:
    ways = ["set ESVAE_DATA_DIR to a folder that holds it"]
    if name == "fashion-mnist":
        ways.append("install the Debian package (apt install dataset-fashion-mnist)")
    ways.append("pass --download")
    looked = places.listing(_folders(name))
    return f"{name} ({split}): no {FILES[split]}[.gz] in {looked}; {', '.join(ways[:-1])}, or {ways[-1]}"


def read_images(path: Path) -> np.ndarray:
    """The images of one IDX file as uint8 (N, H, W), H = W; gzipped if the name ends in .gz.

    Memory is bounded by what the file can hold, whatever its header says.

    Raises:
        InputError: the file cannot be read, or is not exactly one header and N * H * W bytes.
    """
    return _read(path, MAGIC)


def read_labels(path: Path) -> np.ndarray:
    """The labels of one IDX file as uint8 (N,); gzipped if the name ends in .gz.

    Raises:
        InputError: the file cannot be read, is not exactly one header and N bytes, or a label is above 9.
    """
    found = _read(path, LABELS_MAGIC)
    if found.max() >= CLASSES:
        raise InputError(f"{path}: label {found.max()}, accepted are 0 to {CLASSES - 1}")
    return found


def _read(path: Path, magic: int) -> np.ndarray:
    packed = path.suffix == ".gz"
    try:
        with gzip.open(path, "rb") if packed else path.open("rb") as stream:
            return _parse(stream, path, magic, DEFLATE_MAX_RATIO if packed else 1)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read{' as gzip' if packed else ''}: {error}") from error


def _parse(stream: BinaryIO, path: Path, magic: int, max_ratio: int) -> np.ndarray:
    fields = 1 + magic % 16  # the magic number ends in the number of dimensions
    header = stream.read(4 * fields)
    if len(header) < 4 * fields:
        raise InputError(f"{path}: truncated, {len(header)} bytes where an IDX header has {4 * fields}")
    found, count, *sides = struct.unpack(f">{fields}I", header)
    kind = "image" if sides else "label"
    if found != magic:
        raise InputError(f"{path}: not an IDX {kind} file, magic number 0x{found:08x} instead of 0x{magic:08x}")
    said = f"header says {count} {kind}s" + (f" of {sides[0]}x{sides[1]}" if sides else "")
    shape = (count, *sides)
    expected = math.prod(shape)
    if (sides and (sides[0] != sides[1] or not 1 <= sides[0] <= MAX_SIDE)) or not 1 <= expected <= MAX_BYTES:
        square = f"square ones of at most {MAX_SIDE}x{MAX_SIDE}, " if sides else ""
        raise InputError(f"{path}: {said}, accepted are {square}1 to {MAX_BYTES} bytes in all")
    wanted = f"{said}, {expected} bytes"
    if expected > path.stat().st_size * max_ratio:
        raise InputError(f"{path}: truncated, {wanted}, more than this file can hold")
    data = stream.read(expected + 1)
    if len(data) < expected:
        raise InputError(f"{path}: truncated, {wanted}, but {len(data)} follow")
    if len(data) > expected:
        raise InputError(f"{path}: oversized, {wanted}, but more follow")
    return np.frombuffer(data, np.uint8).reshape(shape)
