"""Image sets: uint8 pixels, their float form in [-1, 1], and Pillow's bilinear resize."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image

from esvae.errors import InputError


@dataclass(frozen=True, eq=False)
class ImageSet:
    """One split of a data set, as bytes.

    Attributes:
        name: the name it was loaded under.
        pixels: uint8, (N, C, S, S), 0..255; may be mapped from a file, and must not be written to.
        flip: whether a random horizontal flip is part of training on it.
        labels: the classes, int64 (N,), counted from 0; None where they were not asked for.

    Raises:
        InputError: the pixels have another dtype or shape, or there are none; there are not as many labels.
    """

    name: str
    pixels: torch.Tensor
    flip: bool
    labels: torch.Tensor | None = None

    def __post_init__(self) -> None:
        shape = tuple(self.pixels.shape)
        square = len(shape) == 4 and shape[2] == shape[3]
        if self.pixels.dtype != torch.uint8 or not square or self.pixels.numel() == 0:
            raise InputError(f"pixels of {self.name}: got {self.pixels.dtype} {shape}, need uint8 (N, C, S, S), N >= 1")
        if self.labels is not None and len(self.labels) != len(self.pixels):
            raise InputError(f"labels of {self.name}: got {len(self.labels)}, need {len(self.pixels)}, one per image")

    def __len__(self) -> int:
        return self.pixels.shape[0]

    def part(self, start: int, stop: int | None) -> ImageSet:
        """The images number `start` .. `stop - 1` as a set of their own, with their labels."""
        labels = None if self.labels is None else self.labels[start:stop]
        return replace(self, pixels=self.pixels[start:stop], labels=labels)

    def to(self, device: str | torch.device) -> ImageSet:
        """The same set with its pixels on `device`; `batches` then indexes there, without a transfer per batch.

        Where they would take more than half of a GPU's free memory they stay where they are.
        """
        free = free_bytes(torch.device(device))
        if free is not None and self.pixels.nbytes > free / 2:
            return self
        return replace(self, pixels=self.pixels.to(device))


def free_bytes(device: torch.device) -> int | None:
    """Of a GPU."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None


def normalize(pixels: torch.Tensor) -> torch.Tensor:
    """Bytes to the scale of every loss and metric: x / 255 * 2 - 1 (spec, section 4).

    Args:
        pixels: uint8, any shape.

    Returns:
        float32 of the same shape, in [-1, 1].

    Raises:
        InputError: the dtype is not uint8.
    """
    if pixels.dtype != torch.uint8:
        raise InputError(f"pixels: got {pixels.dtype}, need torch.uint8")
    return pixels.to(torch.float32) / 255 * 2 - 1


def to_uint8(images: torch.Tensor) -> torch.Tensor:
    """The inverse of `normalize`: rounded to the nearest byte, values outside [-1, 1] clamped.

    Args:
        images: floating point, any shape.

    Returns:
        uint8 of the same shape.

    Raises:
        InputError: the dtype is not floating point, or a value is NaN (it has no byte).
    """
    if not images.is_floating_point():
        raise InputError(f"images: got {images.dtype}, need a floating-point tensor in [-1, 1]")
    if images.isnan().any():
        raise InputError("images: got NaN, need values in [-1, 1]")
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def resize(image: Image.Image, size: int) -> Image.Image:
    """The largest centered square of `image`, resized to (size, size) by Pillow's bilinear filter."""
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    if width != height:
        image = image.crop((left, top, left + side, top + side))
    return image if side == size else image.resize((size, size), Image.Resampling.BILINEAR)


def resize_all(images: np.ndarray, size: int) -> np.ndarray:
    """`resize` on every image: uint8 (N, H, W) or (N, H, W, 3) -> uint8 (N, C, size, size)."""
    channels = 1 if images.ndim == 3 else images.shape[3]
    resized = np.empty((len(images), size, size, channels), np.uint8)
    for index, image in enumerate(images):
        resized[index] = np.asarray(resize(Image.fromarray(image), size)).reshape(size, size, channels)
    return np.ascontiguousarray(resized.transpose(0, 3, 1, 2))
