"""CIFAR10, binary version: records of one label byte and 3 x 32 x 32 pixels, 10,000 to a file."""

from __future__ import annotations

import gzip
import os
import tarfile
import zlib
from pathlib import Path

import numpy as np

from esvae.data import places
from esvae.data.images import resize_all
from esvae.errors import InputError

FOLDER = "cifar-10-batches-bin"
FILES = {"train": [f"data_batch_{number}.bin" for number in range(1, 6)], "test": ["test_batch.bin"]}
URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
MD5 = "c32a1d4ab5d03f1284b67883e8d87530"

SIDE = 32
RECORD_BYTES = 1 + 3 * SIDE * SIDE
CLASSES = 10
MAX_FILE_BYTES = 10_000 * RECORD_BYTES


def read(name: str, split: str, size: int, download: bool) -> np.ndarray:
    """The images as uint8 (N, 3, size, size).

    Looked for in ESVAE_DATA_DIR/cifar-10-batches-bin, ESVAE_DATA_DIR and the user's cache, in this order; downloaded
    into the cache if none has them and `download` is true.

    Raises:
        InputError: the files were not found, or one of them does not consist of whole records.
    """
    images = np.concatenate([read_images(path) for path in _files(name, split, download)])
    return resize_all(images, size)


def labels(name: str, split: str, download: bool) -> np.ndarray:
    """The classes, int64 (N); files and errors are those of `read`."""
    found = [_records(path)[:, 0] for path in _files(name, split, download)]
    return np.concatenate(found).astype(np.int64)


def _files(name: str, split: str, download: bool) -> list[Path]:
    folder = _find(split)
    if folder is None and download:
        folder = _download(places.cache_dir(name))
    if folder is None:
        raise InputError(
            f"{name} ({split}): none of {places.listing(_folders())} holds {', '.join(FILES[split])}; "
            "set ESVAE_DATA_DIR to a folder that does (the binary version), or pass --download"
        )
    return [folder / file for file in FILES[split]]


def where(name: str) -> tuple[list[Path], Path | None]:
    """The folders that are looked in, and the one that both splits are found in, or None."""
    train, test = (_find(split) for split in FILES)
    return _folders(), train if test else None


def _folders() -> list[Path]:
    own = places.data_dir()
    first = [own / FOLDER, own] if own else []
    return [*first, places.cache_dir("cifar10") / FOLDER]


def _find(split: str) -> Path | None:
    for folder in _folders():
        if all(os.path.isfile(folder / file) for file in FILES[split]):
            return folder
    return None


def read_images(path: Path) -> np.ndarray:
    """The images of one file as uint8 (N, 32, 32, 3).

    Raises:
        InputError: the file cannot be read, is not 1 to 10,000 whole records, or a label is above 9.
    """
    pixels = _records(path)[:, 1:]
    return np.ascontiguousarray(pixels.reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1))


def _records(path: Path) -> np.ndarray:
    try:
        length = path.stat().st_size
        if length % RECORD_BYTES or not RECORD_BYTES <= length <= MAX_FILE_BYTES:
            raise InputError(f"{path}: {length} bytes, need 1 to 10000 records of {RECORD_BYTES} (CIFAR10 binary)")
        records = np.fromfile(path, np.uint8, count=length).reshape(-1, RECORD_BYTES)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error}") from error
    if records[:, 0].max() >= CLASSES:
        raise InputError(f"{path}: not CIFAR10, label {records[:, 0].max()}, accepted are 0 to {CLASSES - 1}")
    return records


def _download(cache: Path) -> Path:
    archive = places.fetch(URL, MD5, cache)
    try:
        unpack(archive, cache / FOLDER)
    except InputError:
        raise
    except (OSError, EOFError, ValueError, zlib.error, tarfile.TarError) as error:
        raise InputError(f"{archive}: cannot be unpacked into {cache / FOLDER}: {error}") from error
    return cache / FOLDER


class _BoundedGzip(gzip.GzipFile):
    """tarfile asks for as many bytes at once as a header says, and Python sets memory aside for all of them."""

    def read(self, size: int | None = -1) -> bytes:
        if size is None or not 0 <= size <= MAX_FILE_BYTES + tarfile.BLOCKSIZE:
            raise tarfile.ReadError(f"a header asks for {size} bytes")
        return super().read(size)


def unpack(archive: Path, folder: Path) -> None:
    """Write the six data files of the archive into `folder`; nothing else of it, and nowhere else.

    Raises:
        InputError: a data file is missing in the archive, or is not a plain file of the expected size.
        OSError, EOFError, ValueError, zlib.error, tarfile.TarError: the archive is damaged, or a file not written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    missing = {file for files in FILES.values() for file in files}
    with _BoundedGzip(archive) as stream, tarfile.open(fileobj=stream, mode="r:") as tar:
        for member in tar:
            directory, _, file = member.name.rpartition("/")
            if directory != FOLDER or file not in missing:
                continue
            if not member.isreg() or member.size > MAX_FILE_BYTES:
                raise InputError(f"{archive}: {member.name} is not a file of at most {MAX_FILE_BYTES} bytes")
            # Written aside and renamed, so that an interrupted unpacking leaves no half file to be found later.
            unfinished = folder / f"{file}.part"
            unfinished.write_bytes(tar.extractfile(member).read())
            unfinished.replace(folder / file)
            missing.discard(file)
    if missing:
        raise InputError(f"{archive}: lacks {', '.join(sorted(missing))}")
