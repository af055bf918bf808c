"""Image grids (Pillow) and learning curves (matplotlib), written as PNG files that are whole or absent."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from esvae.errors import InputError
from esvae.extras import needed
from esvae.runs import atomic_write

with needed("model"):
    from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BACKGROUND, FRAME = 255, 160  # white, and a grey that is seen beside white images and beside black ones
MAX_PIXELS = 1 << 28  # of one grid
SCALE, PAD = 2, 2  # of a grid: pixels per pixel of an image, and between images
CAPTION_PAD = 4  # pixels around the text
BLUE, VERMILION, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#595959"  # Okabe and Ito's, told apart by colour-blind


def image_grid(images: Tensor, columns: int, scale: int = SCALE, pad: int = PAD) -> Image.Image:
    """Images side by side, row by row, enlarged without interpolation.

    Args:
        images: (N, C, H, W), N >= 1, C = 1 (grey) or 3 (RGB); floating point in [-1, 1], or uint8.
        columns: images per row; with fewer images than that the grid is narrower.
        scale: pixels of the grid per pixel of an image.
        pad: width in pixels of the white lines around the images, of which a grey frame of one pixel around each image
            is a part; 0: neither.

    Returns:
        An image of mode "L" or "RGB", `pad + columns * (W * scale + pad)` pixels wide, the height likewise.

    Raises:
        InputError: another shape or dtype, values outside [-1, 1] or NaN, or a number that is too small.
    """
    pixels = _to_uint8(images, "images")
    _require_positive(columns=columns, scale=scale)
    rows = [pixels[start : start + columns] for start in range(0, len(pixels), columns)]
    return _paste(rows, scale, pad)


def reconstruction_grid(
    originals: Tensor, reconstructions: Tensor, columns: int, scale: int = SCALE, pad: int = PAD
) -> Image.Image:
    """Pairs: a row of originals, below it the row of their reconstructions, a wider gap, the next two rows ...

    Args:
        originals, reconstructions: of one shape; the rest is as for `image_grid`.

    Raises:
        InputError: as for `image_grid`, and where the shapes differ.
    """
    if originals.shape != reconstructions.shape:
        raise InputError(
            f"reconstructions: shape {_shape(reconstructions)}; that of the originals is {_shape(originals)}"
        )
    above, below = _to_uint8(originals, "originals"), _to_uint8(reconstructions, "reconstructions")
    _require_positive(columns=columns, scale=scale)
    starts = range(0, len(above), columns)
    rows = [half[start : start + columns] for start in starts for half in (above, below)]
    return _paste(rows, scale, pad, pairs=True)


def captioned(image: Image.Image, caption: str) -> Image.Image:
    """The image with a line of text below it, broken where it would be wider than the image."""
    font, lines = ImageFont.load_default(), [""]
    for word in caption.split():
        line = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(line) > image.width - 2 * CAPTION_PAD:
            lines.append(word)
        else:
            lines[-1] = line
    text = "\n".join(lines)
    measure = ImageDraw.Draw(Image.new("L", (1, 1)))
    height = math.ceil(measure.multiline_textbbox((0, 0), text, font=font)[3])
    page = Image.new(image.mode, (image.width, image.height + height + 2 * CAPTION_PAD), "white")
    page.paste(image, (0, 0))
    ImageDraw.Draw(page).multiline_text((CAPTION_PAD, image.height + CAPTION_PAD), text, fill="black", font=font)
    return page


def check_grid(count: int, columns: int, size: int, *, pairs: bool = False) -> None:
    """Refuse what `image_grid`, or of `pairs` `reconstruction_grid`, would refuse of `count` images of `size` x `size`
    pixels, with their defaults, before minutes are spent on the images.

    Raises:
        InputError: the grid would have more than `MAX_PIXELS` pixels.
    """
    rows = -(-count // columns) * (2 if pairs else 1)
    _page(rows, min(count, columns), SCALE * size, SCALE * size, PAD, pairs)


def save_image(image: Image.Image, path: Path | str) -> None:
    """Write an image as a PNG file, whole or not at all.

    Raises:
        InputError: `path` does not end in .png, or cannot be written.
    """
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    atomic_write(_png(path), buffer.getvalue())


def learning_curve(records: list[dict[str, Any]], path: Path | str, train: str = "", test: str = "") -> None:
    """Mean squared error over the images seen (left) and over the minutes trained (right), as a PNG file.

    Args:
        records: of metrics.jsonl, in the order of training. Keys, each used where it is there: `images` (seen so far),
            `seconds` (trained so far), `mse` (training, the mean since the record before), `test_mse`, `steps` (the T
            in use; a dashed line marks where it changes: at the last record of the T before).
        path: a .png file.
        train, test: what the two errors are of, for the legend: which weights, which images.

    Raises:
        InputError: no record can be drawn (`images`, `seconds`, and `mse` or `test_mse`), or `path` cannot be written.
    """
    target = _png(path)
    usable = [r for r in records if _is_number(r.get("images")) and _is_number(r.get("seconds"))]
    if not any(_is_positive(r.get(key)) for r in usable for key in ("mse", "test_mse")):
        raise InputError("records: none has images, seconds and a positive mse or test_mse; nothing to draw")
    buffer = io.BytesIO()
    _draw_curves(usable, train, test).savefig(buffer, format="png", dpi=150)
    atomic_write(target, buffer.getvalue())


# ------------------------------------------------------------------------------------------------------------- grids


def _to_uint8(images: Tensor, name: str) -> np.ndarray:
    """(N, C, H, W) -> (N, H, W, C) in 0..255."""
    if images.dim() != 4 or images.shape[1] not in (1, 3) or images.numel() == 0:
        raise InputError(f"{name}: shape {_shape(images)}; (N, C, H, W) with N >= 1 and C = 1 or 3 is expected")
    if images.numel() > MAX_PIXELS:
        raise InputError(f"{name}: {images.numel()} values; at most {MAX_PIXELS} fit into a grid")
    if images.is_floating_point():
        images = images.detach().float()
        low, high = images.min().item(), images.max().item()
        if not (low >= -1 and high <= 1):
            raise InputError(f"{name}: values from {low:g} to {high:g}; [-1, 1] is expected for floating point")
        images = ((images + 1) * 127.5).round().to(torch.uint8)
    elif images.dtype != torch.uint8:
        raise InputError(f"{name}: dtype {images.dtype}; floating point or uint8 is expected")
    return images.permute(0, 2, 3, 1).cpu().numpy()


def _page(rows: int, columns: int, height: int, width: int, pad: int, pairs: bool) -> tuple[int, int, list[int]]:
    """Height and width of a grid's page, and the gap below each row: wider below a pair of rows, none but the margin
    below the last."""
    if pad < 0:
        raise InputError(f"pad: {pad}; a number of pixels of at least 0 is expected")
    gaps = [4 * pad if pairs and row % 2 else pad for row in range(rows)]
    page_height, page_width = pad + rows * height + sum(gaps[:-1]) + pad, pad + columns * (width + pad)
    if page_height * page_width > MAX_PIXELS:
        raise InputError(f"images: the grid has {page_width} x {page_height} pixels; at most {MAX_PIXELS} are possible")
    return page_height, page_width, gaps


def _paste(rows: list[np.ndarray], scale: int, pad: int, pairs: bool = False) -> Image.Image:
    """Rows of (n, H, W, C) images, each in a frame, on a white page."""
    _, height, width, channels = rows[0].shape
    height, width = height * scale, width * scale
    page_height, page_width, gaps = _page(len(rows), len(rows[0]), height, width, pad, pairs)
    page = np.full((page_height, page_width, channels), BACKGROUND, dtype=np.uint8)
    top = pad
    for row, gap in zip(rows, gaps, strict=True):
        for column, image in enumerate(row):
            left = pad + column * (width + pad)
            if pad:
                page[top - 1 : top + height + 1, left - 1 : left + width + 1] = FRAME
            page[top : top + height, left : left + width] = image.repeat(scale, axis=0).repeat(scale, axis=1)
        top += height + gap
    return Image.fromarray(page[..., 0] if channels == 1 else page)


def _require_positive(**numbers: int) -> None:
    for name, value in numbers.items():
        if value < 1:
            raise InputError(f"{name}: {value}; a number of at least 1 is expected")


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)


def _png(path: Path | str) -> Path:
    if Path(path).suffix.lower() != ".png":
        raise InputError(f"{path}: the name of a .png file is expected")
    return Path(path)


# ------------------------------------------------------------------------------------------------------------ curves


def _draw_curves(records: list[dict[str, Any]], train: str = "", test: str = "") -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import, so only when a curve is drawn
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharey=True)
    _draw_panel(left, records, lambda r: r["images"] / 1000, "images seen (thousands)")
    _draw_panel(right, records, lambda r: r["seconds"] / 60, "training time (minutes)")
    label_log_axis(left)
    left.set_ylabel("mean squared error per pixel (images in [-1, 1])")
    handles, labels = left.get_legend_handles_labels()
    about = {"training MSE": train, "test MSE": test}
    labels = [f"{label}: {about[label]}" if about[label] else label for label in labels]
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    return figure


def _draw_panel(axes: Axes, records: list[dict[str, Any]], place: Callable[[dict], float], label: str) -> None:
    """Both errors and the changes of T over `place(record)`."""
    train, test = ([(place(r), r[key]) for r in records if _is_positive(r.get(key))] for key in ("mse", "test_mse"))
    axes.set_yscale("log")
    axes.set_xlabel(label)
    axes.grid(color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.margins(x=0.03)
    if train:
        axes.plot(*zip(*train, strict=True), color=BLUE, linewidth=0.8, label="training MSE")
    if test:
        dots = {"markersize": 6, "markeredgecolor": "white"}
        axes.plot(*zip(*test, strict=True), "o", color=VERMILION, label="test MSE", **dots)
    _mark_changes_of_steps(axes, records, place)


def _mark_changes_of_steps(axes: Axes, records: list[dict[str, Any]], place: Callable[[dict], float]) -> None:
    """A dashed line where T changes, labelled above the panel, clear of the data and of the labels before it."""
    with_steps = [r for r in records if _is_number(r.get("steps"))]
    pairs = list(zip([{}, *with_steps], with_steps, strict=False))
    changes = [(before or r, r["steps"]) for before, r in pairs if r["steps"] != before.get("steps")]
    if not changes:
        return
    span = (max(map(place, records)) - min(map(place, records))) or 1.0
    ends: list[float] = []  # of the last label on each level
    for number, (record, steps) in enumerate(changes):  # a record is of the steps that lead up to it
        x = place(record)
        level = next((level for level, end in enumerate(ends) if end <= x), len(ends))
        ends[level : level + 1] = [x + 0.13 * span]
        if number:
            axes.axvline(x, color=GREY, linestyle="--", linewidth=1)
        axes.annotate(
            f"T = {steps}",
            (x, 1),
            xycoords=axes.get_xaxis_transform(),
            xytext=(0, 3 + 12 * level),
            textcoords="offset points",
            color=GREY,
        )


def label_log_axis(axes: Axes) -> None:
    """Plain numbers: at 1, 2 and 5 of each decade, or evenly where the data spans less than a factor of 5."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)) if high / low > 5 else MaxNLocator(6))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_positive(value: Any) -> bool:
    return _is_number(value) and value > 0
