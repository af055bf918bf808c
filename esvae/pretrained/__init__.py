"""Models that come with the package: a folder each, that of a run without its checkpoints, with a model card, what was
measured, and a few test images. Written by bench/ship.py."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError

if TYPE_CHECKING:
    from numpy import ndarray

FOLDER = Path(__file__).parent
EVALUATION = "evaluation.json"
TEST_IMAGES = "test-images.png"  # grey, side by side without gaps
TEST_COLUMNS, TEST_SIDE = 8, 28


def names() -> list[str]:
    """Of all models that come with the package."""
    return sorted(path.parent.name for path in FOLDER.glob("*/config.json"))


def find(name: Path | str) -> Path | None:
    """The folder of the model of that name; None where there is none, or something of that name where one is."""
    return FOLDER / name if str(name) in names() and not os.path.lexists(name) else None


def test_images(name: str) -> ndarray:
    """The first images of the test set that the model of this name was measured on, uint8 (N, 28, 28).

    Raises:
        InputError: the file is missing or damaged.
    """
    import numpy as np
    from PIL import Image

    path = FOLDER / name / TEST_IMAGES
    try:
        with Image.open(path, formats=["PNG"]) as grid:
            pixels = np.asarray(grid)
        tiles = pixels.reshape(-1, TEST_SIDE, TEST_COLUMNS, TEST_SIDE)
    except (OSError, SyntaxError, ValueError) as error:  # Pillow's of a damaged file
        raise InputError(f"{path}: cannot be read: {error}") from None
    return tiles.transpose(0, 2, 1, 3).reshape(-1, TEST_SIDE, TEST_SIDE)
