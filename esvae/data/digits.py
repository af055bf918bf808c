"""The 1,797 handwritten digits of 8x8 pixels that ship with scikit-learn: no file, no download."""

from __future__ import annotations

from typing import Any

import numpy as np

from esvae.data.images import resize_all

TRAIN_COUNT = 1437  # 80 %


def read(name: str, split: str, size: int, download: bool) -> np.ndarray:
    """The digits as uint8 (N, 1, size, size): the first 1,437 are the training set, the other 360 the test set.

    Values 0..16 are scaled to 0..255, then resized bilinearly. `name` and `download` do not matter here.
    """
    images = np.rint(_loaded().images * (255 / 16)).astype(np.uint8)
    return resize_all(images[_rows(split)], size)


def labels(name: str, split: str, download: bool) -> np.ndarray:
    """The digits' values, int64 (N)."""
    return _loaded().target[_rows(split)].astype(np.int64)


def _loaded() -> Any:
    from sklearn.datasets import load_digits  # takes a second, which every command would wait

    return load_digits()


def _rows(split: str) -> slice:
    return slice(TRAIN_COUNT) if split == "train" else slice(TRAIN_COUNT, None)
