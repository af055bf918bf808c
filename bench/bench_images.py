"""Reading shuffled batches from the cache of an image folder, in images per second, against what training needs.

    python bench/bench_images.py                 200,000 images of 64x64x3 (2.3 GiB), in memory and then not
    python bench/bench_images.py --smoke         the same with 500

The images are synthetic, written as a cache file (`esvae.data.cache`) by the code that builds one; how fast image files
become one is measured on 2,000, as PNG and as JPEG of CelebA's size. "cold" begins with nothing of the file in memory
(the pages are dropped by posix_fadvise), and reads as many batches as fit `--seconds`.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from esvae import data
from esvae.data import cache

COUNT, SIDE, BATCH = 200_000, 64, 256


def write_images(folder: Path, count: int, suffix: str, size: tuple[int, int]) -> None:
    random = np.random.default_rng(0)
    for split in ("train", "test"):
        (folder / split).mkdir(parents=True)
    for i in range(count):
        coarse = Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        coarse.resize(size, Image.Resampling.BICUBIC).save(folder / ("test" if i == 0 else "train") / f"{i:06}{suffix}")


def build_rate(folder: Path, count: int, suffix: str, size: tuple[int, int]) -> dict[str, float]:
    """Images per second of the first loading, and of the second, which only looks whether the files have changed."""
    write_images(folder, count, suffix, size)
    rates = {}
    for name in ("first", "again"):
        start = time.perf_counter()
        data.load(f"folder:{folder}", "train", size=SIDE)
        rates[f"{suffix[1:]} {size[0]}x{size[1]} {name}"] = count / (time.perf_counter() - start)
    return rates


def synthetic(path: Path, count: int) -> data.ImageSet:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 3, SIDE, SIDE), dtype=np.uint8)
    files = [Path(f"{i}") for i in range(count)]
    cache._build(path, files, SIDE, bytes(32), lambda: 3, lambda file, channels: pixels[int(file.name) % 16])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the array is not writable
        return data.ImageSet("synthetic", torch.from_numpy(cache.read(path)[1]), flip=True)


def rate(batches: Iterator[torch.Tensor], seconds: float) -> float:
    """Images per second."""
    images, start = 0, time.perf_counter()
    for batch in batches:
        images += len(batch)
        if time.perf_counter() - start > seconds:
            break
    return images / (time.perf_counter() - start)


def indexed(images: data.ImageSet, epoch: int) -> Iterator[torch.Tensor]:
    """The bytes alone, as they are read before they become floats."""
    for indices in data.epoch_order(len(images), 0, epoch).split(BATCH):
        yield images.pixels[indices]


def drop(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--smoke", action="store_true", help="small, and for a moment")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each measurement (default: 20)")
    parser.add_argument("--folder", type=Path, help="where the files go for the while; by default the system's")
    options = parser.parse_args()
    count, files, seconds = (500, 20, 0.1) if options.smoke else (COUNT, 2000, options.seconds)
    with tempfile.TemporaryDirectory(dir=options.folder) as place:
        os.environ["ESVAE_CACHE_DIR"] = f"{place}/cache"
        found: dict[str, float] = build_rate(Path(place, "png"), files, ".png", (SIDE, SIDE))
        found |= build_rate(Path(place, "jpg"), files, ".jpg", (178, 218))
        path = Path(place, "synthetic.pixels")
        start = time.perf_counter()
        images = synthetic(path, count)
        found["writing the cache"] = count / (time.perf_counter() - start)
        before = resource.getrusage(resource.RUSAGE_SELF)
        drop(path)
        found["bytes, cold"] = rate(indexed(images, 0), seconds)
        read = resource.getrusage(resource.RUSAGE_SELF).ru_inblock - before.ru_inblock
        found["512-byte blocks read from disk, cold"] = read
        drop(path)
        found["batches, cold"] = rate(data.batches(images, BATCH, seed=0, epoch=1), seconds)
        images.pixels.sum()  # all of it in memory
        found["bytes, in memory"] = rate(indexed(images, 2), seconds)
        found["batches, in memory"] = rate(data.batches(images, BATCH, seed=0, epoch=3), seconds)
        copied = data.ImageSet("copy", images.pixels.clone(), flip=True)
        found["bytes, of a plain tensor"] = rate(indexed(copied, 2), seconds)
        found["batches, of a plain tensor"] = rate(data.batches(copied, BATCH, seed=0, epoch=3), seconds)
    print(json.dumps({name: round(value) for name, value in found.items()}, indent=1))


if __name__ == "__main__":
    main()
