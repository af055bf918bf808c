"""Labelled images to train small networks on: Fashion-MNIST where it is on this machine, else scikit-learn's digits."""

from __future__ import annotations

import gzip

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor

from esvae.data import idx


def images(count: int, side: int = 8, *, first: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Images (count, 1, side, side) in [0, 1] from number `first` on, and their labels."""
    rows, found = slice(first, first + count), idx.find("fashion-mnist", "train")
    file = None if found is None else found.with_name(found.name.replace("images-idx3", "labels-idx1"))
    if file is not None and file.exists():
        pixels = idx.read_images(found)[rows]
        with (gzip.open if file.suffix == ".gz" else open)(file, "rb") as stream:
            labels = np.frombuffer(stream.read(), np.uint8, offset=8)[rows].astype(np.int64)
        tensor = torch.from_numpy(pixels / 255)
    else:
        data = load_digits()
        tensor, labels = torch.from_numpy(data.images[rows] / 16), data.target[rows].astype(np.int64)
    resized = F.interpolate(tensor.unsqueeze(1), size=(side, side), mode="area")
    return resized.to(dtype), torch.from_numpy(labels)
