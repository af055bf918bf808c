"""A trained model from a folder, and images drawn from it."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from . import data, figures, pretrained
from .checkpoint import read_json, whole_folder
from .config import Config, ModelConfig, build
from .errors import InputError
from .models import MODELS, Model
from .models.hub import WEIGHTS, require_weights_of
from .runs import CONFIG, Run, atomic_write

MAX_IMAGES = 100_000  # in one call: they are held in memory


class Loaded(NamedTuple):
    """A model, and what its folder says of it."""

    model: Model  # in evaluation mode
    data: str | None  # the data set that it was trained on, where the folder knows
    source: str  # which weights these are
    notes: list[str]  # what the user should know


def load_model(folder: Path | str, device: str | torch.device = "cpu") -> Loaded:
    """The model of a run, of any folder with `model.safetensors` and `config.json`, or of a name in `pretrained`.

    Of a run that has ended: the exported `model`, with its fitted prior. Of one that has not: the newest checkpoint,
    the average of its weights where one is kept, at the T in use there.

    Raises:
        InputError: the folder holds no model, or a file of it is damaged, foreign or a pickle.
    """
    folder = pretrained.find(folder) or Path(folder)
    if not folder.is_dir():
        known = f"or the name of a model that comes with esvae ({', '.join(pretrained.names())})"
        raise InputError(f"{folder}: no such folder; a run's, one with {WEIGHTS} and {CONFIG}, {known} is expected")
    if os.path.lexists(folder / WEIGHTS):
        return Loaded(_exported(folder, device), None, str(folder / WEIGHTS), [])
    if not os.path.lexists(folder / CONFIG):
        raise InputError(f"{folder}: holds no model: neither a run's {CONFIG} nor {WEIGHTS}")
    run = Run.open(folder)
    config = run_config(run)
    if os.path.lexists(folder / "model" / WEIGHTS):
        return Loaded(_exported(folder / "model", device), config.data, str(folder / "model" / WEIGHTS), [])
    return _checkpointed(run, config, device)


def run_config(run: Run) -> Config:
    """The typed config of a run."""
    try:
        return Config.from_dict(run.config)
    except InputError as error:
        raise InputError(f"{run.folder / CONFIG}: {error}") from None


def _exported(folder: Path, device: str | torch.device) -> Model:
    options = read_json(folder / CONFIG, "the config.json of a model")
    try:
        kind = build(ModelConfig, options, "model").kind
    except InputError as error:
        raise InputError(f"{folder / CONFIG}: {error}") from None
    return MODELS[kind].from_pretrained(str(folder)).to(device)


def _checkpointed(run: Run, config: Config, device: str | torch.device) -> Loaded:
    parts, state = run.load()
    part = "average" if "average" in parts else "model"
    with torch.device("meta"):  # memory is taken once the shapes are known to fit
        model = MODELS[config.model.kind](**config.to_dict()["model"])
    load_weights(model, parts.get(part, {}), f"{run.latest()}, {part}", assign=True)
    model = model.to(device, memory_format=torch.channels_last).eval()
    known = [record["steps"] for record in run.metrics() if record["step"] <= state["step"] and "steps" in record]
    model.steps = known[-1] if known and type(known[-1]) is int else config.model.steps
    note = f"{run.folder}: has not ended; these are the weights of step {state['step']}, trained at T = {model.steps}"
    return Loaded(model, config.data, f"{run.latest()} ({part})", [note])


def load_weights(model: Model, tensors: dict[str, Tensor], source: str, *, assign: bool = False) -> None:
    """`load_state_dict` that says in one line what does not fit or is no finite number."""
    require_weights_of(model.state_dict(), tensors, source)
    model.load_state_dict(tensors, assign=assign)


def choose_prior(model: Model, asked: str | None) -> tuple[str, list[str]]:
    """The prior to draw from, and a note where it is not the config's, because that one is not fitted yet."""
    prior = model.chosen_prior(asked)
    if asked is None and prior == "mixture" and not model.mixture.fitted:
        return "bottleneck", ["prior: bottleneck, since the mixture is fitted at the end of training"]
    return prior, []


# ------------------------------------------------------------------------------------------------------------ writing


def write_images(images: Tensor, path: Path, columns: int) -> None:
    """Generated images as a grid (a .png file), as the array `images` of a .npz file, or as a folder of PNG files.

    Args:
        images: (N, C, H, W) in [-1, 1]. In a .npz file they are uint8 (N, C, H, W).
        path: replaced as a whole where it is a file; a folder must be new.

    Raises:
        InputError: the values are no images, or `path` cannot be written; then nothing is left of it.
    """
    if path.suffix.lower() == ".png":
        figures.save_image(figures.image_grid(images, columns), path)
    elif path.suffix.lower() == ".npz":
        buffer = io.BytesIO()
        np.savez_compressed(buffer, images=data.to_uint8(images).numpy())
        atomic_write(path, buffer.getvalue())
    else:
        _write_folder(images, path)


def check_out(path: Path, suffixes: tuple[str, ...]) -> None:
    """Refuse a bad `--out` before minutes are spent; `suffixes` has "" where a new folder is accepted."""
    accepted = " or ".join(s or "a new folder (no suffix)" for s in suffixes)
    if path.suffix.lower() not in suffixes:
        raise InputError(f"out: got {path}, accepted is {accepted}")
    if not path.parent.is_dir():
        raise InputError(f"out: got {path}, but there is no folder {path.parent}")
    if path.is_dir() if path.suffix else os.path.lexists(path):
        raise InputError(f"out: {path} exists already; accepted is {accepted}")


def _write_folder(images: Tensor, folder: Path) -> None:
    with whole_folder(folder, "cannot be written", stale=folder.name) as partial:
        for index, image in enumerate(images.split(1)):
            figures.image_grid(image, 1, scale=1, pad=0).save(partial / f"{index:05d}.png")
