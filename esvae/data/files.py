"""Image files by Pillow: which there are, what their headers say, and their pixels in one form."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageColor, ImageOps

from esvae.data.images import resize
from esvae.errors import InputError

# Of what Pillow opens: EPS is a program that Ghostscript would run, and of the others it reads no pixels by itself.
NOT_READ = {"EPS", "BUFR", "FITS", "GRIB", "HDF5", "MPEG", "WMF"}
GREY = {"1", "L", "LA", "La"}  # of Pillow's modes
COLOR = {"P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr", "LAB", "HSV"}


class Form(NamedTuple):
    """What the header of an image file says."""

    size: tuple[int, int]  # width, height
    color: bool
    alpha: bool  # some of it may be transparent
    several: bool  # pictures: pages, or those of an animation


@functools.cache
def formats() -> tuple[str, ...]:
    """The formats that are read, by Pillow's names."""
    Image.init()
    return tuple(sorted(Image.OPEN.keys() - NOT_READ))


@functools.cache
def suffixes() -> frozenset[str]:
    """Of the names of image files, in lower case: every suffix of `formats`."""
    known = set(formats())
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in known)


def form(file: Path) -> Form:
    """Of an image file, from its header alone.

    Raises:
        InputError: the file cannot be read, or its pixels are of a kind that has no 8 bits per channel.
    """
    with opened(file) as image:
        if image.mode not in GREY | COLOR:
            accepted = ", ".join(sorted(GREY | COLOR))
            raise InputError(f"{file}: mode {image.mode}, accepted are {accepted}: convert it to 8 bits per channel")
        several = getattr(image, "n_frames", 1) > 1
        return Form(image.size, image.mode in COLOR, image.has_transparency_data, several)


def background_color(name: str) -> tuple[int, int, int]:
    """Red, green and blue of a colour as Pillow names it: "white", "#ff8000", "rgb(255, 128, 0)".

    Raises:
        InputError: there is no such colour.
    """
    try:
        return ImageColor.getrgb(name)[:3]
    except ValueError:
        raise InputError(
            f"data_background: got {name!r:.80}, accepted is a colour by name (white, black) or as #rrggbb"
        ) from None


def decode(
    file: Path, channels: int, size: int, *, crop: int | None = None, background: tuple[int, int, int] = (255, 255, 255)
) -> np.ndarray:
    """One image, upright, as uint8 (channels, size, size): its largest centred square, or its centred `crop` x `crop`
    pixels, resized bilinearly. What is transparent shows the `background`; of several pictures the first is taken.

    Raises:
        InputError: the file cannot be read.
    """
    with opened(file) as image:
        pixels = ImageOps.exif_transpose(image)
        if pixels.has_transparency_data:
            behind = Image.new("RGBA", pixels.size, (*background, 255))
            behind.alpha_composite(pixels.convert("RGBA"))
            pixels = behind
        pixels = pixels.convert("L" if channels == 1 else "RGB")
    if crop is not None:
        left, top = (pixels.width - crop) // 2, (pixels.height - crop) // 2
        pixels = pixels.crop((left, top, left + crop, top + crop))
    planes = np.asarray(resize(pixels, size)).reshape(size, size, channels).transpose(2, 0, 1)
    return np.ascontiguousarray(planes)


@contextmanager
def opened(file: Path) -> Iterator[Image.Image]:
    """The image with its header read; whatever is wrong with the file, then or on decoding, is one InputError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of details that Pillow can do without
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file, formats=formats()) as image:
                yield image
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise InputError(f"{file}: too many pixels for an image of a data set: {error}") from error
    except InputError:
        raise
    except Exception as error:  # Pillow's decoders raise many kinds on broken files
        why = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{file}: cannot be read as an image: {why}; repair it, or take it out") from error
