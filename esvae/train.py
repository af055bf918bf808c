"""Training on one device or several: a run's folder from a config and data, or an interrupted run taken up again."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import math
import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
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
from .models import MODELS, Model
from .muon import Muon
from .precision import resolve_precision
from .prior import MixturePrior
from .rates import rate_histograms
from .runs import CONFIG, Run

with needed("model"):
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
CURVE_IMAGES = 2048  # of the test set, for the learning curve; `evaluate` takes all
MIXTURE_IMAGES = 30_000  # of the training set, whose rates the mixture prior is fitted to


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
        trainer.fit(checkpoint_minutes, progress)
    return run


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
        self.stages = config.train.stages(config.model.steps)
        self.precision = resolve_precision(config.train.precision, device)

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
        state = {"seconds": self.seconds, "images": len(self.sets["train"]), "noise": noise.VERSION}
        for name, optimizer in self.optimizers.items():
            parts[name], state[name] = optimizer_tensors(optimizer)
        if self.average:
            parts["average"] = self.average.state_dict()
        self.run.save(self.step, parts, state)

    def restore(self, parts: dict[str, dict[str, Tensor]], state: dict) -> None:
        with self.run.offering_the_one_before(self.run.latest()):
            self._restore(parts, state)

    def _restore(self, parts: dict[str, dict[str, Tensor]], state: dict) -> None:
        source = str(self.run.latest())
        load_weights(self.model, parts.get("model", {}), f"{source}, model")
        if self.average:
            load_weights(self.average, parts.get("average", {}), f"{source}, average")
        step, seconds = state.get("step"), state.get("seconds")
        if step != self.run.steps()[-1] or step > self.total_steps or not isinstance(seconds, int | float):
            raise InputError(f"{source}: step {step!r} and seconds {seconds!r} are not those of this run")
        count = len(self.sets["train"])
        if state.get("images", count) != count:
            got = f"data: got {count} training images of {self.config.data}"
            raise InputError(f"{got}, but the run began with {state['images']!r:.20}; it goes on with those, or anew")
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
            for epoch in range(self.step // self.steps_per_epoch, self.config.train.epochs):
                self._epoch(epoch, checkpoint_minutes)
            self._finish()

    def _work(self, step: int) -> int:
        """Image time steps up to `step`."""
        work = 0
        for epochs, steps in self.stages:
            done = min(step, epochs * self.steps_per_epoch)
            work, step = work + done * steps, step - done
        return work * self.config.train.batch_size

    def _set_steps(self, epoch: int) -> int:
        steps = self.config.train.steps_in_epoch(epoch, self.config.model.steps)
        for model in (self.model, self.average):
            if model:
                model.steps = steps
        return steps

    def _epoch(self, epoch: int, checkpoint_minutes: float) -> None:
        steps = self._set_steps(epoch)
        self.bar.update(self.task, epoch=f"{epoch + 1}/{self.config.train.epochs}", steps=steps)
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
        saved = since = clock()
        logged = self.step
        sums: dict[str, Tensor] = {}
        for images in batches:
            for name, value in self._step(images).items():
                sums[name] = sums.get(name, 0) + value
            if self.step % LOG_EVERY == 0 or self.step % self.steps_per_epoch == 0:
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
                # end of the epoch, whose evaluation is still to come: `_epoch` ends with a checkpoint of its own.
                if self.step % self.steps_per_epoch and now - saved >= 60 * checkpoint_minutes:
                    self.save()
                    saved = since = clock()
        self._end_of_epoch(epoch, steps)
        self.save()

    def _step(self, images: Tensor) -> dict[str, Tensor]:
        config = self.config.train
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
            loss = values.get("loss", math.nan)
            raise InputError(f"training diverged before step {self.step} (loss {loss}); try a lower --train.lr")
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
        distributed.first(lambda: self._pictures(f"epoch-{epoch + 1:03d}"))

    def _pictures(self, name: str) -> None:
        prior, _ = choose_prior(self.best, None)
        with torch.no_grad(), autocast(self.device, self.precision):
            samples = self.best.generate(64, seed=self.config.train.seed, prior=prior).float().cpu()
        grids = {"samples": figures.image_grid(samples, columns=16)}
        if hasattr(self.best, "reconstruct"):
            originals = data.normalize(self.sets["test"].pixels[:32].to(self.device))
            (again,) = reconstructions(self.best, [originals], self.precision)
            grids["reconstructions"] = figures.reconstruction_grid(originals.cpu(), again.cpu(), columns=16)
        for kind, image in grids.items():
            figures.save_image(image, self.run.images / f"{kind}-{name}.png")
            pixels = torch.from_numpy(np.array(image))
            self.writer.add_image(kind, pixels, self.step, dataformats="HW" if pixels.dim() == 2 else "HWC")

    def _finish(self) -> None:
        """The prior that is fitted last, the curve, and the model as others load it."""
        self._set_steps(self.config.train.epochs - 1)
        model = self.best.eval()
        model.steps = self.config.model.steps
        mixture, rates = getattr(model, "mixture", None), []
        if mixture is not None:
            some = self.sets["train"].pixels[:MIXTURE_IMAGES].split(256)
            with torch.no_grad(), autocast(self.device, self.precision):
                rates = distributed.share(
                    some, lambda pixels: model.encode(data.normalize(pixels.to(self.device))).float().cpu()
                )
        distributed.first(lambda: self._leave(model, mixture, rates))

    def _leave(self, model: Model, mixture: MixturePrior | None, rates: list[Tensor]) -> None:
        if mixture is not None:
            mixture.fit(torch.cat(rates), self.config.train.seed)
        export(model, self.run.folder / "model", self.config)
        if hasattr(model, "reconstruct"):  # the curve is that of the error
            figures.learning_curve(self.run.metrics(), self.run.folder / "learning-curve.png")


# ------------------------------------------------------------------------------------------------ parts


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
