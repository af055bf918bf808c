"""Image files, decoded once into one file that is mapped into memory: a batch reads its own images and no others.

The file is a header of 4096 bytes and then the images, uint8 (N, C, S, S). It is written under another name and renamed
when it is whole. Killed before, the next one goes on behind the last images that the header counts: they were on disk
before it did. One process builds, the others that want the same file wait.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import re
import shutil
import struct
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from filelock import FileLock, Timeout
from rich import progress
from rich.console import Console

from esvae.checkpoint import sync_folder
from esvae.data import places
from esvae.errors import InputError

MAGIC = b"ESVAEPIX"
VERSION = 1
HEADER_BYTES = 4096  # a page, so that the images begin at one
FIELDS = struct.Struct("<8sIIIQQ32s")  # magic, version, channels, size, count, done, listing; their SHA-256 follows
BLOCK_BYTES = 1 << 24  # images that are lost at most when a build is killed


class Header(NamedTuple):
    """What a cache file says of itself."""

    channels: int
    size: int  # side S of the images
    count: int  # N
    done: int  # images that are there; N in a whole file
    listing: bytes  # `listing_digest` of the files that the images come from

    @property
    def image_bytes(self) -> int:
        return self.channels * self.size * self.size


def path(root: Path, form: bytes, split: str, size: int) -> Path:
    """Of the cache file: one per folder of images, form that they are decoded into, split and size, whatever the folder
    holds."""
    where = root.resolve()
    key = hashlib.blake2b(os.fsencode(where) + form, digest_size=8).hexdigest()
    name = re.sub(r"[^A-Za-z0-9_-]", "_", where.name)[:40]
    return places.cache_dir("images") / f"{name}-{key}-{split}-{size}.pixels"


def images(
    path: Path,
    files: list[Path],
    listing: bytes,
    size: int,
    channels: Callable[[], int],
    decode: Callable[[Path, int], np.ndarray],
) -> np.ndarray:
    """The images of `files`, mapped from the cache file `path`, which is built where it is not there.

    A file that is damaged, or of which an image has another name, size or time of change by now, is built again.

    Args:
        path: the cache file; its folder is made.
        files: the image files, in the order of the images.
        listing: `listing_digest` of these files, and of what else the pixels depend on.
        size: side S of the images.
        channels: C of the files, after a look at all of them; called once in a build.
        decode: (file, C) -> uint8 (C, S, S).

    Returns:
        uint8 (N, C, S, S), read-only.

    Raises:
        InputError: an image file cannot be read, or the cache file cannot be written.
    """
    pixels = _current(path, size, listing)
    if pixels is None:
        with _alone(path):
            pixels = _current(path, size, listing)  # another process may have built it meanwhile
            if pixels is None:
                _build(path, files, size, listing, channels, decode)
                _, pixels = read(path)
    return pixels


def listing_digest(files: list[Path], root: Path) -> bytes:
    """SHA-256 of the files' names below `root`, their sizes and times of change.

    Raises:
        InputError: a file is not there.
    """
    digest, prefix = hashlib.sha256(), len(os.path.join(root, ""))
    for file in files:
        try:
            found = os.stat(file)
        except OSError as error:
            raise InputError(f"{file}: cannot be read: {error.strerror or error}") from error
        digest.update(os.fsencode(str(file)[prefix:]))
        digest.update(b"\0%d %d\n" % (found.st_size, found.st_mtime_ns))
    return digest.digest()


def read(path: Path) -> tuple[Header, np.ndarray]:
    """The header of a whole cache file, and its images, mapped: uint8 (N, C, S, S), read-only.

    Raises:
        InputError: the file is missing, not whole, damaged or foreign.
    """
    try:
        with path.open("rb") as file:
            header = _parse(file.read(HEADER_BYTES), path)
            length = os.fstat(file.fileno()).st_size
            expected = HEADER_BYTES + header.count * header.image_bytes
            if header.done != header.count or length != expected:
                raise InputError(f"{path}: {header.done} images in {length} bytes, need {header.count} in {expected}")
            # For reading only: Linux refuses to map what could be written to and is larger than the memory.
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    pixels = np.frombuffer(mapped, np.uint8, offset=HEADER_BYTES)
    return header, pixels.reshape(header.count, header.channels, header.size, header.size)


def _parse(page: bytes, path: Path) -> Header:
    fields = page[: FIELDS.size]
    if len(page) < HEADER_BYTES or not fields.startswith(MAGIC):
        raise InputError(f"{path}: no cache of images")
    if page[FIELDS.size :] != hashlib.sha256(fields).digest().ljust(HEADER_BYTES - FIELDS.size, b"\0"):
        raise InputError(f"{path}: the SHA-256 of its header does not match: damaged")
    _, version, *values = FIELDS.unpack(fields)
    header = Header(*values)
    if version != VERSION or not (header.channels in (1, 3) and header.size >= 1 and header.count >= 1):
        raise InputError(f"{path}: version {version}, {header.count} images of {header.channels}x{header.size}")
    return header


def _page(header: Header) -> bytes:
    fields = FIELDS.pack(MAGIC, VERSION, *header)
    return (fields + hashlib.sha256(fields).digest()).ljust(HEADER_BYTES, b"\0")


def _current(path: Path, size: int, listing: bytes) -> np.ndarray | None:
    """The images of a file that is whole and of these image files, or None."""
    try:
        header, pixels = read(path)
    except InputError:
        return None
    return pixels if (header.size, header.listing) == (size, listing) else None


# ----------------------------------------------------------------------------------------------------------- building


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold the lock of a cache file; the system takes it from a process that dies."""
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            print(f"waiting for another process, which builds {path}", file=sys.stderr)
            lock.acquire()
    except OSError as error:
        raise _unwritable(path, error) from error
    try:
        yield
    finally:
        lock.release()


def _build(
    path: Path,
    files: list[Path],
    size: int,
    listing: bytes,
    channels: Callable[[], int],
    decode: Callable[[Path, int], np.ndarray],
) -> None:
    partial = path.with_name(f".{path.name}.partial")
    try:
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0)  # Windows would put \r in front of each \n
        with os.fdopen(os.open(partial, flags, 0o666), "r+b") as file:
            header = _begun(file, partial)
            if header is None or (header.size, header.count, header.listing) != (size, len(files), listing):
                header = Header(channels(), size, len(files), 0, listing)
            _require_room(path, (header.count - header.done) * header.image_bytes)
            file.truncate(HEADER_BYTES + header.done * header.image_bytes)
            _append(file, header, files, decode)
        os.replace(partial, path)
        sync_folder(path.parent)
    except OSError as error:
        raise _unwritable(path, error) from error


def _begun(file: BinaryIO, path: Path) -> Header | None:
    """The header of an interrupted build, or None where there is none to go on with."""
    try:
        header = _parse(file.read(HEADER_BYTES), path)
    except InputError:
        return None
    there = os.fstat(file.fileno()).st_size - HEADER_BYTES
    return header if header.done <= header.count and header.done * header.image_bytes <= there else None


def _append(file: BinaryIO, header: Header, files: list[Path], decode: Callable[[Path, int], np.ndarray]) -> None:
    """Write the images that are missing, block by block: the images, then the header that counts them."""
    per_block = max(1, BLOCK_BYTES // header.image_bytes)
    left = iter(track(files[header.done :], "decoding images"))
    while header.done < header.count:
        file.seek(HEADER_BYTES + header.done * header.image_bytes)
        done = min(header.done + per_block, header.count)
        for _ in range(header.done, done):
            file.write(decode(next(left), header.channels))
        _sync(file)
        header = header._replace(done=done)
        file.seek(0)
        file.write(_page(header))
        _sync(file)


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def track(files: list[Path], description: str) -> Iterable[Path]:
    """The files, with a progress bar where there is a terminal."""
    console = Console(stderr=True)
    return progress.track(files, description, console=console, transient=True, disable=not console.is_terminal)


def _require_room(path: Path, needed: int) -> None:
    free = shutil.disk_usage(path.parent).free
    if needed > free:
        raise InputError(
            f"{path.parent}: {free >> 20} MiB are free, {needed >> 20} MiB are needed for the decoded images; "
            "set ESVAE_CACHE_DIR to a folder with more room"
        )


def _unwritable(path: Path, error: OSError) -> InputError:
    return InputError(
        f"{path}: cannot be written: {error.strerror or error}; set ESVAE_CACHE_DIR to a folder that can be"
    )
