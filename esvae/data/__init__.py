"""Data sets as bytes, in memory or mapped into it from a file, and their batches.

A data set is one file with a `read` function, one that reads the labels where there are any, and one row of `SOURCES`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch

from esvae.arguments import integer
from esvae.errors import InputError
from esvae.extras import needed

with needed("model"):
    from esvae.data import celeba, cifar10, digits, folder, idx
    from esvae.data.images import ImageSet, normalize, to_uint8
    from esvae.data.loading import batch_count, batches, epoch_order, ordered_batches

__all__ = [
    "ImageSet",
    "batch_count",
    "batches",
    "epoch_order",
    "load",
    "normalize",
    "ordered_batches",
    "to_uint8",
]

MAX_SIZE = 1024


class Source(NamedTuple):
    read: Callable[[str, str, int, bool], np.ndarray]  # (name or path, split, size, download) -> uint8 (N, C, S, S)
    size: int  # side of the images, unless the caller says otherwise
    flip: bool  # random horizontal flips in training (spec, section 1)
    labels: Callable[[str, str, bool], np.ndarray] | None  # (name or path, split, download) -> int64 (N)
    where: Callable[[str], tuple[list[Path], Path | None]] | None = None  # name -> folders looked in, the one found


SOURCES = {
    "fashion-mnist": Source(idx.read, size=32, flip=False, labels=idx.labels, where=idx.where),
    "mnist": Source(idx.read, size=32, flip=False, labels=idx.labels, where=idx.where),
    "cifar10": Source(cifar10.read, size=32, flip=True, labels=cifar10.labels, where=cifar10.where),
    "celeba": Source(celeba.read, size=64, flip=True, labels=None, where=celeba.where),
    "digits": Source(digits.read, size=32, flip=False, labels=digits.labels),
    "folder": Source(folder.read, size=32, flip=False, labels=folder.labels),
}


def load(
    name: str,
    split: Literal["train", "test"],
    *,
    size: int | None = None,
    download: bool = False,
    labels: bool = False,
) -> ImageSet:
    """Read one split of a data set: image folders and CelebA as a file of decoded images that is mapped into memory
    (built the first time, see `esvae.data.cache`), the others into memory.

    Args:
        name: "fashion-mnist", "mnist", "cifar10", "celeba", "digits", or "folder:PATH" for a folder of images, or for a
            table of them (`esvae.data.folder`); "folder:PATH?background=black" for another colour than white behind
            what is transparent.
        split: "train" or "test".
        size: side S of the images in pixels, 1 to 1024; by default 64 for CelebA, else 32.
        download: fetch a data set that is not on this machine (Fashion-MNIST, MNIST, CIFAR10).
        labels: read the classes of the images as well; of an image folder they are its subfolders.

    Returns:
        the images, uint8 (N, C, S, S); `flip` is set for the training splits of CIFAR10 and CelebA.

    Raises:
        InputError: an argument is not accepted, the data set was not found, a file of it is broken, or it has no
            labels.
    """
    key, colon, path = name.partition(":")
    if key not in SOURCES or (key == "folder") != bool(path) or (colon and not path):
        accepted = ", ".join("folder:PATH" if known == "folder" else known for known in SOURCES)
        raise InputError(f"name: got {name!r}, accepted are {accepted}")
    if split not in ("train", "test"):
        raise InputError(f"split: got {split!r}, accepted are 'train' and 'test'")
    source = SOURCES[key]
    size = source.size if size is None else integer("size", size, 1, MAX_SIZE)
    if labels and source.labels is None:
        able = ", ".join("folder:PATH" if known == "folder" else known for known in SOURCES if SOURCES[known].labels)
        raise InputError(f"data: got {name}, which has no labels, accepted are {able}")
    pixels = source.read(path or key, split, size, download)
    classes = torch.from_numpy(source.labels(path or key, split, download)) if labels and source.labels else None
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # mapped, and never written to
        return ImageSet(name, torch.from_numpy(pixels), flip=source.flip and split == "train", labels=classes)
