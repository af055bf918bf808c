"""Image grids pixel by pixel; learning curves: the file opens, the series and marks are there, nothing is clipped."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from esvae import figures
from esvae.errors import InputError
from esvae.figures import image_grid, learning_curve, reconstruction_grid, save_image


def fails(match: str, call, *args, **kwargs) -> None:
    with pytest.raises(InputError, match=match) as caught:
        call(*args, **kwargs)
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------------------------------- grids


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
@pytest.mark.parametrize(("count", "columns", "cells"), [(6, 3, (3, 2)), (7, 3, (3, 3)), (2, 5, (2, 1))])
def test_size_and_mode(channels: int, mode: str, count: int, columns: int, cells: tuple[int, int]) -> None:
    grid = image_grid(torch.zeros(count, channels, 5, 4), columns, scale=3, pad=1)
    assert grid.mode == mode
    assert grid.size == (1 + cells[0] * (4 * 3 + 1), 1 + cells[1] * (5 * 3 + 1))


def test_pixels() -> None:
    images = torch.tensor([[[[-1.0, 0.0], [0.5, 1.0]]], [[[1.0, 1.0], [-1.0, -1.0]]], [[[0.0, 0.0], [0.0, 0.0]]]])
    pixels = np.asarray(image_grid(images, 2, scale=2, pad=1))
    grey, white = figures.FRAME, 255
    assert pixels[0].tolist() == [grey] * 11
    assert pixels[1].tolist() == [grey, 0, 0, 128, 128, grey, 255, 255, 255, 255, grey]
    assert pixels[3].tolist() == pixels[4].tolist() == [grey, 191, 191, 255, 255, grey, 0, 0, 0, 0, grey]
    assert pixels[6].tolist() == [grey] + [128] * 4 + [grey] + [white] * 5  # the fourth cell is empty


@pytest.mark.parametrize("value", [-1.0, 1.0])
def test_images_of_any_colour_have_borders_that_are_seen(value: float) -> None:
    """White images ran into each other, and into the page."""
    images = torch.full((4, 1, 3, 3), value)
    for grid in (image_grid(images, 2), reconstruction_grid(images[:2], images[2:], 2)):
        pixels = np.asarray(grid).astype(int)
        inside = 0 if value < 0 else 255
        places = [(y, x) for y, x in np.argwhere(pixels == figures.FRAME)]
        assert len(places) == 4 * 4 * 7  # a frame around each image of 6x6 pixels
        assert abs(figures.FRAME - inside) > 80
        assert abs(figures.FRAME - 255) > 80
        assert (pixels == inside).sum() >= 4 * 36


def test_bytes_come_back_as_they_were() -> None:
    raw = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    for images in (raw, raw.float() / 127.5 - 1, (raw.double() / 255 * 2 - 1).requires_grad_()):
        assert np.array_equal(np.asarray(image_grid(images, 1, scale=1, pad=0)), raw[0, 0].numpy())


def test_colours_stay_in_their_channels() -> None:
    image = torch.tensor([255, 0, 7], dtype=torch.uint8).reshape(1, 3, 1, 1)
    assert image_grid(image, 1, scale=1, pad=0).getpixel((0, 0)) == (255, 0, 7)


def test_reconstructions_stand_below_their_originals() -> None:
    originals = torch.arange(5, dtype=torch.uint8).reshape(5, 1, 1, 1)
    grid = np.asarray(reconstruction_grid(originals, originals + 100, 2, scale=1, pad=1))
    rows = [[int(v) for v in row if v not in (255, figures.FRAME)] for row in grid]
    assert [row for row in rows if row] == [[0, 1], [100, 101], [2, 3], [102, 103], [4], [104]]
    tops = [y for y, row in enumerate(rows) if row]
    assert tops == [1, 3, 8, 10, 15, 17]  # pairs are closer than strangers
    assert grid.shape[0] == 19


@pytest.mark.parametrize(
    ("images", "what"),
    [
        (torch.zeros(4, 28, 28), r"shape \(4, 28, 28\)"),
        (torch.zeros(4, 2, 8, 8), r"C = 1 or 3"),
        (torch.zeros(0, 1, 8, 8), r"N >= 1"),
        (torch.full((1, 1, 2, 2), 1.5), r"values from 1.5 to 1.5; \[-1, 1\]"),
        (torch.full((1, 1, 2, 2), math.nan), r"values from nan"),
        (torch.zeros(1, 1, 2, 2, dtype=torch.int64), "dtype torch.int64"),
        (torch.zeros(1, 1, 1, 1).expand(1 << 20, 1, 28, 28), "822083584 values; at most"),
    ],
    ids=["3-d", "channels", "none", "range", "nan", "dtype", "huge"],
)
def test_images_that_are_none(images: torch.Tensor, what: str) -> None:
    fails(what, image_grid, images, 4)


@pytest.mark.parametrize("numbers", [{"columns": 0}, {"columns": 1, "scale": 0}, {"columns": 1, "pad": -1}], ids=str)
def test_numbers_that_are_too_small(numbers: dict) -> None:
    fails(list(numbers)[-1], image_grid, torch.zeros(1, 1, 2, 2), **numbers)


def test_grid_that_would_not_fit_into_memory() -> None:
    fails("the grid has 200004 x 200004 pixels", image_grid, torch.zeros(1, 1, 2, 2), 1, scale=100_000)


def test_reconstructions_of_another_shape() -> None:
    fails("reconstructions: shape", reconstruction_grid, torch.zeros(2, 1, 4, 4), torch.zeros(3, 1, 4, 4), 2)


def test_saved_image_opens(tmp_path: Path) -> None:
    grid = image_grid(torch.rand(4, 3, 8, 8), 2)
    save_image(grid, tmp_path / "grid.png")
    with Image.open(tmp_path / "grid.png") as opened:
        assert opened.format == "PNG"
        assert np.array_equal(np.asarray(opened), np.asarray(grid))
    assert [path.name for path in tmp_path.iterdir()] == ["grid.png"]
    fails("a .png file is expected", save_image, grid, tmp_path / "grid.jpg")
    fails("cannot be written", save_image, grid, tmp_path / "no" / "grid.png")


# ------------------------------------------------------------------------------------------------------------ curves


def records(changes: tuple[int, ...] = (40,)) -> list[dict]:
    made = []
    for i in range(50):
        steps = 4 * 2 ** sum(i >= change for change in changes)
        record = {"step": i, "images": 64 * (i + 1), "seconds": 0.5 * (i + 1), "steps": steps, "mse": 0.3 / (i + 1)}
        if i % 10 == 9:
            record["test_mse"] = 0.4 / (i + 1)
        made.append(record)
    return made


def test_curve_is_a_picture(tmp_path: Path) -> None:
    learning_curve(records(), tmp_path / "curve.png")
    with Image.open(tmp_path / "curve.png") as opened:
        opened.load()
        assert opened.format == "PNG"
        page = np.asarray(opened.convert("RGB"))
    assert page.shape[1] > page.shape[0] > 400
    for colour in (figures.BLUE, figures.VERMILION):
        rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        assert (page == rgb).all(axis=-1).sum() > 20, colour
    # Nothing runs off the page: its margin is white.
    assert all((edge == 255).all() for edge in (page[:2], page[-2:], page[:, :2], page[:, -2:]))


@pytest.mark.parametrize("changes", [(), (40,), (5, 7, 9, 30)], ids=lambda changes: f"{len(changes)}-changes")
def test_series_and_marks(changes: tuple[int, ...]) -> None:
    made = records(changes)
    figure = figures._draw_curves(made)
    left, right = figure.axes
    for axes, key, unit in ((left, "images", 1000), (right, "seconds", 60)):
        lines = {line.get_label(): line.get_xydata() for line in axes.lines}
        assert np.allclose(lines["training MSE"], [(r[key] / unit, r["mse"]) for r in made])
        assert np.allclose(lines["test MSE"], [(r[key] / unit, r["test_mse"]) for r in made if "test_mse" in r])
        dashed = [line.get_xdata()[0] for line in axes.lines if line.get_linestyle() == "--"]
        assert np.allclose(
            dashed, [made[change - 1][key] / unit for change in changes]
        )  # the last record of the T before
        assert [text.get_text() for text in axes.texts] == [f"T = {4 * 2**i}" for i in range(len(changes) + 1)]
        assert axes.get_yscale() == "log"


def test_labels_and_legend_cover_nothing() -> None:
    figure = figures._draw_curves(records((5, 7, 9, 30, 47)))
    figure.canvas.draw()
    page = figure.bbox
    legend = figure.legends[0].get_window_extent()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["training MSE", "test MSE"]
    for axes in figure.axes:
        panel = axes.get_window_extent()
        assert not axes.get_tightbbox().overlaps(legend)
        boxes = [text.get_window_extent() for text in axes.texts]
        for i, box in enumerate(boxes):
            assert not box.overlaps(panel)
            assert page.x0 <= box.x0 < box.x1 <= page.x1
            assert box.y1 <= page.y1
            assert not any(box.overlaps(other) for other in boxes[:i])


def test_the_legend_says_what_the_errors_are_of() -> None:
    figure = figures._draw_curves(records(), "mean of 50 steps", "the first 63 test images")
    found = [text.get_text() for text in figure.legends[0].get_texts()]
    assert found == ["training MSE: mean of 50 steps", "test MSE: the first 63 test images"]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("columns", [1, 8])
def test_a_caption_stands_below_the_image(channels: int, columns: int) -> None:
    grid = image_grid(torch.rand(8, channels, 32, 32) * 2 - 1, columns)
    page = np.asarray(figures.captioned(grid, "samples, prior mixture, T = 8"))
    assert np.array_equal(page[: grid.height], np.asarray(grid))
    below = page[grid.height :]
    assert (below < 128).any()
    assert all((edge == 255).all() for edge in (below[:2], below[-2:], below[:, :2], below[:, -2:]))
    assert page.shape[1] == grid.width


def test_curve_from_few_records(tmp_path: Path) -> None:
    """One record, no T, no test; then values that a logarithmic axis cannot show."""
    learning_curve([{"step": 1, "images": 64, "seconds": 1.0, "mse": 0.3}], tmp_path / "one.png")
    odd = [*records(), {"step": 60, "images": 4000, "seconds": 40, "mse": math.nan}, {"step": 61, "mse": 1.0}]
    learning_curve(odd, tmp_path / "odd.png")
    assert len(figures._draw_curves(odd[:-1]).axes[0].lines[0].get_xdata()) == 50
    assert {path.name for path in tmp_path.iterdir()} == {"one.png", "odd.png"}


@pytest.mark.parametrize(
    "nothing",
    [[], [{"step": 1, "mse": 0.1}], [{"images": 1, "seconds": 1, "mse": math.nan}]],
    ids=["none", "no-x", "nan"],
)
def test_curve_of_nothing(tmp_path: Path, nothing: list[dict]) -> None:
    fails("nothing to draw", learning_curve, nothing, tmp_path / "curve.png")
    fails("a .png file is expected", learning_curve, records(), tmp_path / "curve.gif")
    assert list(tmp_path.iterdir()) == []


def test_matplotlib_is_imported_only_for_curves() -> None:
    code = "import sys, esvae.figures; assert 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(figures.__file__).parents[1])
