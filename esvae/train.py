"""Training on one device or several: a run's folder from a config and data, or an interrupted run taken up again."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import itertools
import json
import math
import os
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from . import data, distributed, figures, noise
from .checkpoint import optimizer_tensors, partial_path, remove_stale, restore_optimizer, sync_folder
from .config import Config, TrainConfig
from .errors import InputError
from .evaluate import autocast, device_of, mean_squared_error, reconstructions
from .extras import needed
from .generate import choose_prior, load_weights
from .graph import Replay
from .layers import keep_rates, share_statistics
from .metrics.cache import digest
from .models import MODELS, Model
from .muon import Muon
from .precision import resolve_precision
from .rates import rate_histograms
from .runs import CONFIG, Run, atomic_write

with needed("model"):
    from PIL import Image
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from safetensors import SafetensorError
    from torch.utils.tensorboard import SummaryWriter

LOG_EVERY = 50  # steps between two records of the training loss
EVALUATIONS = 30  # of a training, about, where epochs are short: of a longer one
SHORT_EPOCH = 20  # one in as many steps, but none within an epoch
CURVE_IMAGES = 2048  # of the test set, for the learning curve; `evaluate` takes all
SHOWN = 64  # samples on a picture; half as many reconstructions
MIXTURE_IMAGES = 30_000  # of the training set, whose rates the mixture prior is fitted to


SAMPLES, RECONSTRUCTIONS, EVALUATION = "samples.png", "reconstructions.png", "evaluation.json"  # that a run ends with


def load_sets(config: Config, download: bool = False) -> dict[str, data.ImageSet]:
    """Both splits of the config's data set."""
    size = config.model.size
    return {split: data.load(config.data, split, size=size, download=download) for split in ("train", "test")}


def train(
    config: Config,
    folder: Path,
    *,
    sets: dict[str, data.ImageSet] | None = None,
    resume: bool = False,
    device: str | torch.device = "cpu",
    download: bool = False,
    checkpoint_minutes: float = 5.0,
    graphs: bool = True,
    progress: bool = True,
) -> Run:
    """Train, and leave everything in `folder`; with `resume`, go on from the folder's last checkpoint.

    At the end there are `model` (the weights and their card), `samples.png` (of the prior that `generate` draws from),
    `reconstructions.png`, `learning-curve.png` and `evaluation.json`: `data`, `train_images`, `test_images`, `prior`,
    `T`, `train_steps`, and of a model with an encoder `mse`, over all test images, and `mean_image_mse`,
    that of the training images' mean in the place of every reconstruction, on the same scale of -1 to 1.

    On the CPU, with as many threads, an interrupted and resumed run ends with the very weights and records of an
    undisturbed one. `sets` spares the loading where `load_sets` was called already.

    With `graphs`, on one GPU the whole step is a CUDA graph (see `Replay`).

    The ranks of `torchrun` share each batch; rank 0 alone writes, and the others need to see `folder`. What is written
    does not depend on their number but for rounding, and a run may go on with another one.

    Raises:
        InputError: the folder, the data or the options cannot be used, the training diverged, or the disk refuses;
            nothing good is overwritten.
    """
    sets = sets or distributed.in_turn(lambda: load_sets(config, download))
    config = for_images(config, len(sets["train"]))
    distributed.first(lambda: _check_sets(config, sets))
    run = distributed.first(lambda: _open(config, folder, resume))
    with ExitStack() as lock:
        distributed.first(lambda: lock.enter_context(run.alone()))
        trainer = trainer_of(config)(config, run, sets, torch.device(device), graphs)
        if distributed.first(run.steps):
            trainer.restore(*distributed.first(run.load))
            distributed.first(lambda: run.cut(trainer.step))
        else:
            distributed.first(lambda: run.cut(-1))
        distributed.first(lambda: run.set_diverged(None))
        trainer.fit(checkpoint_minutes, progress)
    return run


def for_images(config: Config, count: int) -> Config:
    """The config for `count` training images: as many epochs as `min_steps` takes, and a batch that they fill."""
    train = config.train
    if not train.min_steps:
        return config
    batch = max(2, min(train.batch_size, count))
    epochs = max(train.epochs, -(-train.min_steps // max(1, count // batch)))
    return dataclasses.replace(config, train=dataclasses.replace(train, epochs=epochs, batch_size=batch))


def _open(config: Config, folder: Path, resume: bool) -> Run:
    if not resume:
        return Run.create(folder, config.to_dict())
    run = Run.open(folder)
    _require_same(run, config)
    return run


def _check_sets(config: Config, sets: dict[str, data.ImageSet]) -> None:
    for split, images in sets.items():
        channels = images.pixels.shape[1]
        if channels != config.model.channels:
            raise InputError(f"channels: got {config.model.channels}, but {config.data} ({split}) has {channels}")
    count = len(sets["train"])
    if count < config.train.batch_size:
        raise InputError(f"batch_size: got {config.train.batch_size}, accepted is at most the {count} training images")
    if config.train.batch_size % (ranks := distributed.ranks()):
        got = f"batch_size: got {config.train.batch_size} for {ranks} processes"
        raise InputError(f"{got}, accepted are multiples of {ranks}; each takes its share of the batch")
    if config.model.kind == "vae" and ranks > 1:
        raise InputError(
            f"kind: got 'vae' for {ranks} processes, accepted is one: its batch norm sees its images alone"
        )


def _require_same(run: Run, config: Config) -> None:
    """A run goes on by its own config alone; the line names the first option that differs."""
    try:
        own = Config.from_dict(run.config)
    except InputError as error:
        raise InputError(f"{run.folder / CONFIG}: {error}") from None
    for name, value in _flat(own.to_dict()).items():
        asked = _flat(config.to_dict())[name]
        if asked != value:
            raise InputError(f"{name}: got {asked!r}, but {run.folder} holds a run with {value!r}; use another --out")


def _flat(values: dict) -> dict:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    nested = {name: _flat(value) if isinstance(value, dict) else {"": value} for name, value in values.items()}
    return {f"{name}.{inner}".rstrip("."): value for name, part in nested.items() for inner, value in part.items()}


class Trainer:
    """The state of a training run, and its loop. Position and noise follow from the step number alone."""

    def __init__(
        self,
        config: Config,
        run: Run,
        sets: dict[str, data.ImageSet],
        device: torch.device,
        graphs: bool = True,
    ) -> None:
        self.config, self.run, self.device = config, run, device
        self.sets = {split: images.to(device) for split, images in sets.items()}
        if not config.train.flip:
            self.sets["train"] = dataclasses.replace(self.sets["train"], flip=False)
        torch.manual_seed(config.train.seed)
        self.model = MODELS[config.model.kind](**config.to_dict()["model"]).to(device)
        self.average = copy.deepcopy(self.model).requires_grad_(False) if config.train.ema else None
        if config.train.rate_weight:
            keep_rates(self.model)
        if distributed.ranks() > 1:
            share_statistics(self.model)
        self.parallel = self._in_parallel()
        self.graphs = graphs and self.device.type == "cuda" and distributed.ranks() == 1
        self.optimizers = self._make_optimizers()
        self.replays: dict[int, Replay] = {}
        self.step, self.seconds = 0, 0.0
        self.steps_per_epoch = data.batch_count(len(sets["train"]), config.train.batch_size)
        self.total_steps = config.train.epochs * self.steps_per_epoch
        self.stages = self._stages()
        few, short = -(-config.train.epochs // EVALUATIONS), -(-SHORT_EPOCH // self.steps_per_epoch)
        self.evaluate_every = min(few, short)  # epochs
        self.pixels = sets["train"].pixels  # where they were read to
        self.precision = resolve_precision(config.train.precision, device)

    def _stages(self) -> list[tuple[int, int]]:
        """(the step that it ends before, T) of each part of the schedule."""
        stages, share = [], Fraction(0)
        for part, steps in self.config.train.stages(self.config.model.steps):
            share += part
            stages.append((round(share * self.total_steps), steps))
        return stages

    @cached_property
    def digest(self) -> str:
        """Of the training images: a run goes on with those that it began with."""
        return digest([self.pixels])

    def _in_parallel(self) -> nn.Module:
        """The training forward, whose gradients are those of all ranks."""
        if distributed.ranks() == 1:
            return self.model
        # The buffers are the same everywhere as it is. torch 2.13 has a new name for what says so.
        known = inspect.signature(DistributedDataParallel).parameters
        option = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
        return DistributedDataParallel(self.model, **{option: False})

    def _make_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """By the name of their part of a checkpoint."""
        return {"optimizer": make_optimizer(self.model, self.config.train, self.graphs)}

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        return self.optimizers["optimizer"]

    @property
    def best(self) -> Model:
        """The model to evaluate: the average where one is kept."""
        return self.average or self.model

    # ------------------------------------------------------------------------------------------- state

    def save(self) -> None:
        distributed.first(self._save)

    def _save(self) -> None:
        if self.run.steps()[-1:] == [self.step]:
            return
        self.writer.flush()  # a kill must not take events that are older than the checkpoint
        parts = {"model": self.model.state_dict()}
        state = {"seconds": self.seconds, "images": len(self.pixels), "data": self.digest, "noise": noise.VERSION}
        for name, optimizer in self.optimizers.items():
            parts[name], state[name] = optimizer_tensors(optimizer)
        if self.average:
            parts["average"] = self.average.state_dict()
        self.run.save(self.step, parts, state)

    def restore(self, parts: dict[str, dict[str, Tensor]], state: dict) -> None:
        self._require_same_images(state)
        with self.run.offering_the_one_before(self.run.latest()):
            self._restore(parts, state)

    def _require_same_images(self, state: dict) -> None:
        """Outside of `offering_the_one_before`: no checkpoint is of other images. Older ones have no checksum."""
        count, name = len(self.pixels), self.config.data
        way_out = "bring those back, or begin anew with another --out"
        if state.get("images", count) != count:
            got = f"data: got {count} training images of {name}, but the run began with {state['images']!r:.20}"
            raise InputError(f"{got}; {way_out}")
        if "data" in state and state["data"] != self.digest:
            got = f"data: got {count} training images of {name} with other pixels than those that the run began with"
            raise InputError(f"{got}; {way_out}")

    def _restore(self, parts: dict[str, dict[str, Tensor]], state: dict) -> None:
        source = str(self.run.latest())
        load_weights(self.model, parts.get("model", {}), f"{source}, model")
        if self.average:
            load_weights(self.average, parts.get("average", {}), f"{source}, average")
        step, seconds = state.get("step"), state.get("seconds")
        if step != self.run.steps()[-1] or step > self.total_steps or not isinstance(seconds, int | float):
            raise InputError(f"{source}: step {step!r} and seconds {seconds!r} are not those of this run")
        try:
            for name, optimizer in self.optimizers.items():
                restore_optimizer(optimizer, parts.get(name, {}), state.get(name))
        except InputError as error:
            raise InputError(f"{source}: {error}") from error
        self.step, self.seconds = step, seconds

    # -------------------------------------------------------------------------------------------- loop

    def fit(self, checkpoint_minutes: float, progress: bool) -> None:
        columns = [
            TextColumn("epoch {task.fields[epoch]}  T={task.fields[steps]}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[measure]} {task.fields[value]:.4f}  {task.fields[rate]:.0f} images/s"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        ]
        if progress:
            self._announce()
        purge, tells = self.step and self.step + 1, distributed.rank() == 0
        with (
            _no_traceback_of_a_full_disk(),
            SummaryWriter(str(self.run.events), purge_step=purge) if tells else nullcontext() as self.writer,
            Progress(
                *columns, disable=not (progress and tells), refresh_per_second=2, speed_estimate_period=120
            ) as self.bar,
        ):
            fields = {"epoch": "-", "steps": "-", "measure": "loss", "value": math.nan, "rate": math.nan}
            # In units of images times time steps, so that the remaining time allows for the T to come.
            self.task = self.bar.add_task(
                "", total=self._work(self.total_steps), completed=self._work(self.step), **fields
            )
            self.saved = clock()
            for epoch in range(self.step // self.steps_per_epoch, self.config.train.epochs):
                self._epoch(epoch, checkpoint_minutes)
            self._finish()

    def _announce(self) -> None:
        """How many steps there will be, and about how long they take."""
        train, left = self.config.train, self.total_steps - self.step
        times = ", ".join(str(steps) for _, steps in self.stages)
        line = f"{len(self.pixels):,} training images: {left:,} steps of {train.batch_size} images"
        line += f", {train.epochs} epochs in all"
        line += "" if self.config.model.kind == "vae" else f", at T = {times}"
        if left and distributed.ranks() == 1:
            line += f"; {about(self._estimate())} on this machine"
        distributed.first(lambda: print(line, file=sys.stderr))

    def _estimate(self) -> float:
        """Seconds of the steps to come, by some of another trainer's: at the first T and at the last one."""
        trial = type(self)(self.config, self.run, self.sets, self.device, graphs=False)
        torch.manual_seed(self.config.train.seed)
        batch = min(self.config.train.batch_size, len(self.pixels))
        (images,) = data.ordered_batches(self.sets["train"].part(0, batch), batch, self.device)

        def seconds(step: int) -> float:
            trial.step = step
            start = time.perf_counter()
            float(trial._step(images)["loss"])  # which waits for a GPU
            return time.perf_counter() - start

        trial.model.train()
        seconds(0)  # the first one allocates
        (first, few), (last, many) = ((seconds(step), self._steps_at(step)) for step in (0, self.total_steps - 1))
        slope = (last - first) / (many - few) if many != few else 0.0
        ends = [0, *(end for end, _ in self.stages)]
        counts = [max(0, end - max(begin, self.step)) for begin, end in itertools.pairwise(ends)]
        return sum(
            count * max(first + slope * (t - few), min(first, last))
            for count, (_, t) in zip(counts, self.stages, strict=True)
        )

    def _work(self, step: int) -> int:
        """Image time steps up to `step`."""
        work = begin = 0
        for end, steps in self.stages:
            work, begin = work + max(0, min(step, end) - begin) * steps, end
        return work * self.config.train.batch_size

    def _steps_at(self, step: int) -> int:
        """T of the step number `step`, counted from 0."""
        return next((steps for end, steps in self.stages if step < end), self.stages[-1][1])

    def _set_steps(self, steps: int) -> None:
        for model in (self.model, self.average):
            if model and model.steps != steps:
                model.steps = steps

    def _epoch(self, epoch: int, checkpoint_minutes: float) -> None:
        self.model.train()
        first = self.step - epoch * self.steps_per_epoch
        batches = data.batches(
            self.sets["train"],
            self.config.train.batch_size,
            seed=self.config.train.seed,
            epoch=epoch,
            start=first,
            device=self.device,
            rank=distributed.rank(),
            ranks=distributed.ranks(),
        )
        ends = [end for end, _ in self.stages]
        since, logged = clock(), self.step
        sums: dict[str, Tensor] = {}
        for images in batches:
            steps = self._steps_at(self.step)
            self.bar.update(self.task, epoch=f"{epoch + 1}/{self.config.train.epochs}", steps=steps)
            for name, value in self._step(images).items():
                sums[name] = sums.get(name, 0) + value
            # Where T changes, too, so that a record is of one T.
            if self.step % LOG_EVERY == 0 or self.step % self.steps_per_epoch == 0 or self.step in ends:
                now, count = clock(), self.step - logged
                self.seconds += now - since
                record = {name: float(distributed.mean(value)) / count for name, value in sums.items()}
                rate = count * self.config.train.batch_size / (now - since)
                self._log({"epoch": epoch, "steps": steps, "lr": float(self.optimizer.param_groups[0]["lr"]), **record})
                measure = "mse" if "mse" in record else "loss"
                shown = {"measure": measure, "value": record[measure], "rate": rate}
                self.bar.update(self.task, completed=self._work(self.step), **shown)
                sums, since, logged = {}, now, self.step
                # Only here, so that the sums of a resumed run begin where those of an undisturbed one do. Not at the
                # end of the epoch, whose evaluation may be still to come.
                if self.step % self.steps_per_epoch and self._is_due(checkpoint_minutes):
                    self._checkpoint()
                    since = clock()
        evaluated = (epoch + 1) % self.evaluate_every == 0 or epoch + 1 == self.config.train.epochs
        if evaluated:
            self._end_of_epoch(epoch, self.model.steps)
        if evaluated or self._is_due(checkpoint_minutes):
            self._checkpoint()

    def _is_due(self, minutes: float) -> bool:
        return clock() - self.saved >= 60 * minutes

    def _checkpoint(self) -> None:
        self.save()
        self.saved = clock()

    def _step(self, images: Tensor) -> dict[str, Tensor]:
        config = self.config.train
        self._set_steps(self._steps_at(self.step))
        scale = learning_rate_factor(config, self._work(self.step) / self._work(self.total_steps))
        seed = step_seed(config.seed, self.step)
        progress = self.step // self.steps_per_epoch / config.epochs
        self.step += 1
        decay = min(config.ema or 0.0, (1 + self.step) / (10 + self.step))
        if not self.graphs:
            return self._update(images, seed, scale, decay, progress)
        steps = self.model.steps
        if steps not in self.replays:  # T is part of a graph; those of earlier epochs are not needed any more
            self.replays = {steps: Replay(self._update)}
        numbers = torch.tensor([scale, decay, progress], dtype=torch.float64)
        return self.replays[steps](images, torch.tensor([seed]), *numbers)

    def _update(
        self,
        images: Tensor,
        seed: int | Tensor,
        scale: float | Tensor,
        decay: float | Tensor,
        progress: float | Tensor,
    ) -> dict[str, Tensor]:
        """One update of the weights, and of their average. What changes from step to step may be given as tensors, so
        that the whole can be captured as a CUDA graph. `progress`: the share of the epochs that is over."""
        for group in (group for optimizer in self.optimizers.values() for group in optimizer.param_groups):
            rate = group["base_lr"] * scale
            if isinstance(group["lr"], Tensor):
                group["lr"].copy_(rate)
            else:
                group["lr"] = rate
        values = self._learn(images, seed, progress)
        if self.average:
            update_average(self.average, self.model, decay)
        return {name: value.detach() for name, value in values.items()}

    def _learn(self, images: Tensor, seed: int | Tensor, progress: float | Tensor) -> dict[str, Tensor]:
        """The update of the weights by the model's loss; what is worth recording, `loss` among it."""
        with autocast(self.device, self.precision):
            out = self.parallel(images, seed=seed, start=distributed.rank() * len(images), progress=progress)
        values = self.model.loss(out, images, self.config.train)
        return values | {"gradient_norm": self._descend(self.optimizer, values["loss"])}

    def _descend(self, optimizer: torch.optim.Optimizer, loss: Tensor) -> Tensor:
        """A step of the optimizer; the norm of its gradient before it was clipped."""
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        if self.parallel is self.model:
            distributed.average([parameter.grad for parameter in parameters])
        norm = nn.utils.clip_grad_norm_(parameters, self.config.train.clip or math.inf)
        optimizer.step()
        return norm

    def _log(self, values: dict[str, float], histograms: dict[str, list[int]] | None = None) -> None:
        if not all(math.isfinite(v) for v in values.values()):
            why = f"training diverged before step {self.step} (loss {values.get('loss', math.nan)})"
            distributed.first(lambda: self.run.set_diverged(why))
            raise InputError(f"{why}; the same command with a lower --train.lr begins anew")
        distributed.first(lambda: self._record(values, histograms or {}))

    def _record(self, values: dict[str, float], histograms: dict[str, list[int]]) -> None:
        images = self.step * self.config.train.batch_size
        self.run.log(
            {
                "step": self.step,
                "images": images,
                "seconds": round(self.seconds, 3),
                "precision": self.precision,
                **values,
                **histograms,
            }
        )
        for name, value in values.items():
            self.writer.add_scalar(name, value, self.step)

    def _end_of_epoch(self, epoch: int, steps: int) -> None:
        self.best.eval()
        if hasattr(self.best, "reconstruct"):
            some = self.sets["test"].part(0, CURVE_IMAGES)
            error = mean_squared_error(self.best, some, self.precision)
            histograms = {}
            if hasattr(self.best, "latent_spikes"):
                prior, _ = choose_prior(self.best, None)
                histograms = rate_histograms(self.best, some, prior=prior, precision=self.precision)
            self._log({"epoch": epoch, "steps": steps, "test_mse": error}, histograms)
        distributed.first(lambda: self._pictures(epoch))

    def _pictures(self, epoch: int) -> None:
        prior, _ = choose_prior(self.best, None)
        with torch.no_grad(), autocast(self.device, self.precision):
            samples = self.best.generate(SHOWN, seed=self.config.train.seed, prior=prior).float().cpu()
        where = f"epoch {epoch + 1}, T = {self.best.steps}"
        note = "" if prior == self.best.default_prior else f" ({self.best.default_prior} is fitted at the end)"
        grids = {"samples": figures.image_grid(samples, columns=16)}
        captions = {"samples": f"samples, prior {prior}{note}, {where}"}
        if hasattr(self.best, "reconstruct"):
            grids["reconstructions"] = self._reconstruction_grid(self.best, self.precision)
            captions["reconstructions"] = f"test images, each above its reconstruction, {where}"
        for kind, grid in grids.items():
            image = figures.captioned(grid, captions[kind])
            figures.save_image(image, self.run.images / f"{kind}-epoch-{epoch + 1:03d}.png")
            pixels = torch.from_numpy(np.array(image))
            self.writer.add_image(kind, pixels, self.step, dataformats="HW" if pixels.dim() == 2 else "HWC")

    def _reconstruction_grid(self, model: Model, precision: str) -> Image.Image:
        originals = data.normalize(self.sets["test"].pixels[: SHOWN // 2].to(self.device))
        (again,) = reconstructions(model, [originals], precision, graphs=False)
        return figures.reconstruction_grid(originals.cpu(), again.cpu(), columns=16)

    def _finish(self) -> None:
        """The prior that is fitted last, the model as others load it, and what it can do."""
        model = self.best.eval()
        model.steps = self.config.model.steps
        mixture, rates = getattr(model, "mixture", None), []
        if mixture is not None:
            some = self.sets["train"].pixels[:MIXTURE_IMAGES].split(256)
            with torch.no_grad(), autocast(self.device, self.precision):
                rates = distributed.share(
                    some, lambda pixels: model.encode(data.normalize(pixels.to(self.device))).float().cpu()
                )
            distributed.first(lambda: mixture.fit(torch.cat(rates), self.config.train.seed))
        distributed.first(lambda: export(model, self.run.folder / "model", self.config))
        error = mean_squared_error(model, self.sets["test"]) if hasattr(model, "reconstruct") else None
        distributed.first(lambda: self._leave(model, error))

    def _leave(self, model: Model, error: float | None) -> None:
        """Pictures and figures, by the numbers that `generate`, `reconstruct` and `evaluate` compute with."""
        folder, prior = self.run.folder, choose_prior(model, None)[0]
        found: dict[str, Any] = {
            "data": self.config.data,
            "train_images": len(self.pixels),
            "test_images": len(self.sets["test"]),
            "prior": prior,
            "T": model.steps,
            "train_steps": self.step,
        }
        # One process alone draws, while the others wait.
        samples = _drawn(model, prior)
        caption = f"samples, prior {prior}, T = {model.steps}: what esvae generate draws"
        figures.save_image(figures.captioned(figures.image_grid(samples, columns=16), caption), folder / SAMPLES)
        if error is not None:
            found |= {"mse": error, "mean_image_mse": _mean_image_error(self.pixels, self.sets["test"].pixels)}
            caption = f"test images, each above its reconstruction, T = {model.steps}: MSE {error:.4f} over all"
            grid = figures.captioned(self._reconstruction_grid(model, "fp32"), caption)
            figures.save_image(grid, folder / RECONSTRUCTIONS)
            shown = min(CURVE_IMAGES, len(self.sets["test"]))
            figures.learning_curve(
                self.run.metrics(),
                folder / "learning-curve.png",
                train=f"weights as they are, mean of up to {LOG_EVERY} steps",
                test=f"{'averaged weights' if self.average else 'the same weights'}, the first {shown:,} test images",
            )
        atomic_write(folder / EVALUATION, json.dumps(found, indent=2) + "\n")


# ------------------------------------------------------------------------------------------------ parts


def _drawn(model: Model, prior: str) -> Tensor:
    """The images that `generate` draws by default."""
    with torch.no_grad():
        return model.generate(SHOWN, seed=0, prior=prior).float().cpu()


def _mean_image_error(train: Tensor, test: Tensor) -> float:
    """The mean squared error of test images (N, C, H, W), uint8, on the scale of -1 to 1, if each is reconstructed as
    the mean of the training images."""
    train, test = train.cpu(), test.cpu()
    total = sum(part.sum(0, dtype=torch.float64) for part in train.split(1024))
    mean = total / len(train)
    error = sum(float((part.double() - mean).square().sum()) for part in test.split(1024))
    return error / test.numel() * (2 / 255) ** 2


def about(seconds: float) -> str:
    """A duration in words: about 4 minutes."""
    for unit, length in (("day", 86_400), ("hour", 3600), ("minute", 60)):
        if seconds >= 1.5 * length:
            return f"about {round(seconds / length)} {unit}s"
    return "about a minute" if seconds >= 45 else "less than a minute"


def clock() -> float:
    """Seconds since some instant, rank 0's on every rank: what depends on time is decided alike."""
    return distributed.first(time.monotonic)


@contextmanager
def _no_traceback_of_a_full_disk() -> Iterator[None]:
    """TensorBoard writes in a thread, whose OSError the next call of the writer raises; it need not be printed too."""
    before = threading.excepthook
    threading.excepthook = lambda raised: None if isinstance(raised.exc_value, OSError) else before(raised)
    try:
        yield
    finally:
        threading.excepthook = before


def export(model: Model, folder: Path, config: Config | None = None) -> None:
    """`save_pretrained` into `folder`, whole or not at all; what was there is replaced. The model card tells `config`.

    Raises:
        InputError: the disk refuses; `folder` is as before.
    """
    partial, old = partial_path(folder), partial_path(folder.with_name(folder.name + ".old"))
    try:
        for name in (folder.name, f"{folder.name}.old"):
            remove_stale(folder.parent, name)
        model.save_pretrained(partial, model_card_kwargs={"training": config})
        for file in partial.iterdir():
            with file.open("r+b") as opened:  # Windows syncs what is open for writing alone
                os.fsync(opened.fileno())
        sync_folder(partial)
        if folder.exists():
            os.replace(folder, old)
        os.replace(partial, folder)
        sync_folder(folder.parent)
    except (OSError, SafetensorError) as error:
        if old.exists() and not folder.exists():
            os.replace(old, folder)
        raise InputError(f"{folder}: cannot be written: {getattr(error, 'strerror', None) or error}") from error
    finally:
        for rest in (partial, old):
            shutil.rmtree(rest, ignore_errors=True)


def trainer_of(config: Config) -> type[Trainer]:
    """The kind of trainer that the model needs."""
    from .adversarial import AdversarialTrainer  # it is made from the one here

    return AdversarialTrainer if config.model.kind == "gan" else Trainer


def make_optimizer(
    model: Model, config: TrainConfig, in_graph: bool = False, groups: list[dict[str, Any]] | None = None
) -> torch.optim.AdamW:
    """`in_graph`: its steps can be captured, and its learning rates are tensors on the model's device.
    `groups`: what it optimizes; default: the model's `parameter_groups`."""
    groups = [group | {"base_lr": group["lr"]} for group in groups or model.parameter_groups(config)]
    optimizer = torch.optim.AdamW
    if config.optimizer == "muon":
        optimizer = Muon
        groups = [part for group in groups for part in _with_muon(group, model)]
    device = device_of(model)
    for group in groups if in_graph else ():
        group["lr"] = torch.tensor(group["lr"], device=device)
    betas, decay = (config.beta1, config.beta2), config.weight_decay
    capturable = in_graph and device.type == "cuda"
    return optimizer(groups, betas=betas, weight_decay=decay, fused=True, capturable=capturable)


def _with_muon(group: dict[str, Any], model: Model) -> list[dict[str, Any]]:
    """The group's matrices apart from the rest, which is AdamW's: vectors, and weights next to the image or a score."""
    outer = {id(p) for name, p in model.named_parameters() if p.dim() < 2 or name.startswith(model.outer)}
    parts: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for parameter in group["params"]:
        parts[id(parameter) not in outer].append(parameter)
    return [group | {"params": part, "orthogonal": hidden} for hidden, part in parts.items() if part]


def learning_rate_factor(config: TrainConfig, progress: float) -> float:
    """What the learning rates are multiplied by after a share `progress` of all image time steps.

    Counted in time steps, not in updates, a last stage at a larger T still learns at a rate that moves it.
    """
    if config.schedule == "constant":
        return 1.0
    if progress < config.warmup:
        return max(progress / config.warmup, 0.01)
    return 0.5 * (1 + math.cos(math.pi * (progress - config.warmup) / (1 - config.warmup)))


def step_seed(seed: int, step: int) -> int:
    """The noise's seed at one step, without a state to keep: hashed to 63 bits, so that two steps, of this run or of
    another one, share it by a chance of 2^-63. Each who draws has a stream of it, `noise.Stream`."""
    return int(np.random.SeedSequence((seed, step)).generate_state(1, np.uint64)[0] >> np.uint64(1))


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, decay: float | Tensor) -> None:
    """average <- decay * average + (1 - decay) * model, for parameters and running statistics alike."""
    old, new = ([*m.parameters(), *(b for b in m.buffers() if b.is_floating_point())] for m in (average, model))
    if isinstance(decay, Tensor):
        for a, b in zip(old, new, strict=True):
            a.lerp_(b, (1 - decay).to(a.dtype))
    else:
        torch._foreach_lerp_(old, new, 1 - decay)
