"""Evaluation of a model on a data set: reconstruction error, and how far its samples are from real images."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import data, distributed
from .arguments import integer
from .errors import InputError
from .graph import Replay
from .metrics import cache, fid
from .metrics.fad import PUBLISHED, Reference, distance, fad, floors, image_features, load_reference, reference_folder
from .metrics.inception import WEIGHTS, inception_weights, load_inception
from .metrics.neighbours import NEIGHBOURS, prdc
from .metrics.own_features import OwnReference, own_reference
from .models import Model, require

BATCH = 128
GENERATED = 5120  # images that a distance is measured on: 40 batches of 128 (spec of the published metric)
SEED = 2024  # of the noise of every evaluation

Track = Callable[..., Iterable]  # as rich.progress.track: (iterable, description, total)


def untracked(iterable: Iterable, description: str, total: int) -> Iterable:
    return iterable


def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    if precision not in ("fp32", "bf16"):
        raise InputError(f"precision: got {precision!r}, accepted are fp32, bf16")
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def device_of(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def batch_at(images: data.ImageSet, start: int, size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The batch (N, C, H, W) of up to `size` images that begins at `start`, and their positions (N), which noise is
    keyed by."""
    (batch,) = data.ordered_batches(images.part(start, start + size), size, device)
    return batch, torch.arange(start, start + len(batch), device=device)


def reconstruct_by(
    model: Model, precision: str = "fp32", seed: int = SEED, graphs: bool = True
) -> Callable[[Tensor, Tensor], Tensor]:
    """A function of images (N, C, H, W) and their positions in the sequence (N), which noise is keyed by: the images'
    reconstructions, fp32. On a GPU, unless `graphs` is false, a CUDA graph, whose results the next call overwrites."""

    @torch.no_grad()
    def function(images: Tensor, ids: Tensor) -> Tensor:
        with autocast(images.device, precision):
            return model.reconstruct(images, seed=seed, sample_ids=ids).float()

    return Replay(function) if graphs else function


def reconstructions(
    model: Model, batches: Iterable[Tensor], precision: str = "fp32", seed: int = SEED, graphs: bool = True
) -> Iterator[Tensor]:
    """The reconstruction of each batch (N, C, H, W), fp32. Noise is keyed by the image's position in the sequence."""
    reconstruct, start = reconstruct_by(model, precision, seed, graphs), 0
    for images in batches:
        again = reconstruct(images, torch.arange(start, start + len(images), device=images.device))
        start += len(images)
        yield again.clone()


def mean_squared_error(model: Model, images: data.ImageSet, precision: str = "fp32") -> float:
    """The mean over all images and pixels of (x - x_hat)^2, on the scale [-1, 1].

    Raises:
        InputError: the model has no encoder.
    """
    require(model, "reconstruct", "the reconstruction error")
    reconstruct = reconstruct_by(model, precision, graphs=False)
    return _reconstruct_all(reconstruct, images, device_of(model), untracked, keep=0)[0]


def _reconstruct_all(
    reconstruct: Callable[[Tensor, Tensor], Tensor],
    images: data.ImageSet,
    device: torch.device,
    track: Track,
    keep: int,
) -> tuple[float, Tensor]:
    """The mean squared error over all images, and the reconstructions of the first `keep` (fp32, on the CPU)."""

    def one_batch(start: int) -> tuple[float, Tensor]:
        original, ids = batch_at(images, start, BATCH, device)
        again = reconstruct(original, ids)
        return float((original - again).square().sum(dtype=torch.float64)), again[: max(keep - start, 0)].cpu().clone()

    found = _share_batches(len(images), one_batch, track, "reconstructing")
    total = 0.0
    for error, _ in found:  # not by `sum`, which newer Pythons round differently
        total += error
    return total / images.pixels.numel(), torch.cat([again for _, again in found])


def _share_batches(count: int, function: Callable[[int], Any], track: Track, description: str) -> list:
    """`function` of the position that each batch of `count` images starts at, shared among the ranks."""
    starts = range(0, count, BATCH)
    own = -(-len(starts) // distributed.ranks())
    return distributed.share(starts, function, partial(track, description=description, total=own))


@torch.no_grad()
def generated(
    model: Model,
    count: int,
    *,
    seed: int = SEED,
    precision: str = "fp32",
    prior: str | None = None,
    graphs: bool = True,
    track: Track = untracked,
) -> Tensor:
    """`count` generated images (count, C, H, W), fp32 on the CPU: the same for a seed, however many come after them.

    On a GPU, unless `graphs` is false, by a CUDA graph.

    Raises:
        InputError: `count` is no integer of at least 1, or `seed`, `precision` or `prior` is not accepted.
    """
    device, count = device_of(model), integer("count", count, 1)

    def draw(ids: Tensor) -> Tensor:
        with autocast(device, precision):
            return model.generate(len(ids), seed=seed, start=ids[:1], prior=prior).float()

    replay = Replay(draw) if graphs else draw

    def one_batch(start: int) -> Tensor:
        return replay(torch.arange(start, min(start + BATCH, count), device=device)).cpu()

    return torch.cat(_share_batches(count, one_batch, track, "generating"))


def load_for(model: Model, name: str, split: str, download: bool = False, labels: bool = False) -> data.ImageSet:
    """A split of a data set in the model's size; other channels than the model's are an InputError."""
    images = data.load(name, split, size=model.config.size, download=download, labels=labels)
    if images.pixels.shape[1] != model.config.channels:
        got = f"{name} with {images.pixels.shape[1]} channels"
        raise InputError(f"data: got {got}, accepted are images of {model.config.channels}, those of the model")
    return images


def evaluate(
    model: Model,
    name: str,
    *,
    prior: str,
    precision: str = "fp32",
    seed: int = SEED,
    download: bool = False,
    graphs: bool = True,
    own_features: bool = False,
    inception: Path | None = None,
    track: Track = untracked,
) -> dict[str, Any]:
    """Every figure of a model on the data set `name`, and what it takes to measure them again.

    The ranks of `torchrun` share the work, and all return the same.

    Args:
        own_features: also measure `fad_own`; its network is trained the first time (`esvae.metrics.own_features`).
        inception: the file of Inception weights; by default the one that ESVAE_INCEPTION names, if it names one.

    Returns:
        `data`, `images` (of the test set: all), `prior`, `steps` (T), `seed`, `precision`, `device`, `batch_size`,
        `generated` (images drawn; 0 without any network), `mse` (scale [-1, 1]); `not_measured`, a line for each of
        `fad`, `fad_own`, `fad_own_floor`, `prdc`, `fid` and `inception_score` that is not there; and, of the generated
        images and, as `KEY_floor`, of the first real training images, as many if there are so many:

        - `fad_paper`, `fad_eval` with a published reference (`find_reference`), also of the first 5,120 test images'
          reconstructions as `KEY_reconstructions`;
        - `fad_own`, also of reconstructions, `fad_own_weights` (which network) and `fad_own_mse` (of its autoencoder);
        - `prdc_precision`, `prdc_recall`, `prdc_density`, `prdc_coverage` against test images, of `prdc_images` images
          each, by the features of `prdc_features` (`fad`, else `fad_own`) in eval mode;
        - `fid`, `inception_score`, `inception_score_std` of the first 5,000 images, and `fid_implementation`.

        A model without an encoder has no `mse` and no figures of reconstructions.

    Raises:
        InputError: the data set is not there or does not fit the model, an argument is not accepted, nothing can be
            measured, or the mean squared error is not finite.
    """
    seed = integer("seed", seed, 0, 2**63 - 1)
    model.eval()
    test = distributed.in_turn(lambda: load_for(model, name, "test", download))
    yardsticks = _Yardsticks(name, test, device_of(model), own_features, inception, track)
    yardsticks.load(lambda: load_for(model, name, "train", download))
    if not yardsticks.usable and not hasattr(model, "reconstruct"):
        raise InputError(yardsticks.why_nothing)
    keep = min(GENERATED, len(test)) if yardsticks.has_features else 0
    error = again = None
    if hasattr(model, "reconstruct"):
        reconstruct = reconstruct_by(model, precision, seed, graphs)
        error, again = _reconstruct_all(reconstruct, test, device_of(model), track, keep)
        if not math.isfinite(error):
            raise InputError(f"mse: is {error}; the model's weights give no images")
    result = {
        "data": name,
        "images": len(test),
        "prior": prior,
        "steps": model.steps,
        "seed": seed,
        "precision": precision,
        "device": device_of(model).type,
        "batch_size": BATCH,
        "generated": GENERATED if yardsticks.usable else 0,
    }
    if error is not None:
        result["mse"] = error
    if yardsticks.usable:
        images = generated(model, GENERATED, seed=seed, precision=precision, prior=prior, graphs=graphs, track=track)
        result |= yardsticks.measure({"": images} | ({} if again is None else {"_reconstructions": again}))
    return result | {"not_measured": yardsticks.not_measured}


def real(
    name: str,
    download: bool = False,
    *,
    own_features: bool = False,
    inception: Path | None = None,
    device: str | torch.device = "cpu",
    track: Track = untracked,
) -> dict[str, Any]:
    """The distances of real images alone: what a perfect model would score, and a check of the whole measurement.

    Returns:
        every `KEY_floor` of `evaluate`; with a published reference also `test_fad_paper_256`, the test set in batches
        of 256 against its own published statistics: below 0.001 where data, network and distance are the published
        ones; and `not_measured`.

    Raises:
        InputError: nothing can be measured: there is no network, or the data set cannot be read.
    """
    if not (own_features or inception_weights(inception)):
        published, note = find_reference(name)
        if published is None:  # told before the data set is looked for
            if name.partition(":")[0] not in data.SOURCES:
                data.load(name, "test")  # says which there are
            raise InputError(note)
    test = distributed.in_turn(lambda: data.load(name, "test", download=download))
    yardsticks = _Yardsticks(name, test, torch.device(device), own_features, inception, track)
    yardsticks.load(lambda: data.load(name, "train", download=download))
    if not yardsticks.usable:
        raise InputError(yardsticks.why_nothing)
    count = min(GENERATED, len(yardsticks.train))
    result = {"data": name, "real_images": count, "batch_size": BATCH, **yardsticks.measure({})}
    if yardsticks.published:
        check = partial(distance, yardsticks.published, test.pixels, "paper", 256)
        result["test_fad_paper_256"] = distributed.first(check)
    return result | {"not_measured": yardsticks.not_measured}


class _Yardsticks:
    """The networks that images of a data set can be measured by, and why others cannot.

    Every rank of `torchrun` holds one and calls the same methods. What is little work rank 0 does alone.
    """

    def __init__(
        self,
        name: str,
        test: data.ImageSet,
        device: torch.device,
        own_features: bool,
        inception: Path | None,
        track: Track,
    ) -> None:
        self.name, self.test, self.device, self.track = name, test, device, track
        self.own_features, self.weights = own_features, inception_weights(inception)
        self.source = "ESVAE_INCEPTION" if inception is None else "inception"
        self.train: data.ImageSet | None = None
        self.published: Reference | None = None
        self.own: OwnReference | None = None
        self.inception: nn.Module | None = None
        self.not_measured: dict[str, str] = {}

    @property
    def has_features(self) -> bool:
        return bool(self.published or self.own)

    @property
    def usable(self) -> bool:
        return self.has_features or self.inception is not None

    @property
    def why_nothing(self) -> str:
        """One line, where no network is there."""
        return "; ".join(dict.fromkeys(self.not_measured.values()))

    def load(self, train: Callable[[], data.ImageSet]) -> None:
        """Find, or train, the networks; `train` reads the training images, which the floors are of."""
        self.published = self._attempt(["fad"], self._find_published)
        if self.own_features or self.published or self.weights:
            self.train = distributed.in_turn(train)
        if self.own_features:
            own = partial(own_reference, self.train, self.test, self.track, self.device)
            self.own = self._attempt(["fad_own"], lambda: distributed.first(own))
        if not self.has_features:
            self.not_measured["prdc"] = self.not_measured.get("fad_own", self.not_measured["fad"])
        self.inception = self._attempt(["fid", "inception_score"], self._find_inception)

    def _attempt(self, names: list[str], function: Callable[[], Any]) -> Any:
        """What `function` returns, or None and the line of its InputError for these metrics."""
        try:
            return function()
        except InputError as error:
            self.not_measured |= dict.fromkeys(names, str(error))
            return None

    def _find_published(self) -> Reference:
        reference, note = find_reference(self.name)
        if reference is None:
            raise InputError(note)
        shape, wanted = tuple(self.test.pixels.shape[1:]), reference.network.image_shape
        if shape != wanted:
            raise InputError(f"no FAD: the feature network of {self.name} takes images of {wanted}, not of {shape}")
        return reference

    def _find_inception(self) -> nn.Module:
        if self.weights is None:
            raise InputError(f"no FID, no Inception Score: set ESVAE_INCEPTION, or --inception, to the file {WEIGHTS}")
        try:
            return load_inception(self.weights).to(self.device)
        except InputError as error:
            raise InputError(f"{self.source}: got {error}") from None

    def measure(self, groups: dict[str, Tensor]) -> dict[str, Any]:
        """Every figure of the real training images, `KEY_floor`, and of others: {suffix of the key: images}."""
        result: dict[str, Any] = {}

        def add(names: list[str], function: Callable[[], dict[str, Any]]) -> None:
            result.update(self._attempt(names, function) or {})

        if self.published:
            add(["fad"], lambda: distributed.first(lambda: self._fad(groups)))
        if self.own:
            add(["fad_own"], lambda: distributed.first(lambda: self._fad_own(groups)))
            add(["fad_own_floor"], lambda: distributed.first(self._fad_own_floor))
        if self.has_features:
            add(["prdc"], lambda: distributed.first(lambda: self._prdc(groups)))
        if self.inception is not None:
            add(["fid", "inception_score"], lambda: self._inception(groups))
        return result

    def _fad(self, groups: dict[str, Tensor]) -> dict[str, float]:
        result = floors(self.published, self.train.pixels)
        for suffix, images in groups.items():
            found = fad(self.published, images, BATCH)
            result |= {f"{key}{suffix}": value for key, value in found.items()}
        return result

    def _fad_own(self, groups: dict[str, Tensor]) -> dict[str, Any]:
        result = {"fad_own_weights": self.own.weights, "fad_own_mse": self.own.error}
        for suffix, images in groups.items():
            result[f"fad_own{suffix}"] = distance(self.own.reference, images, "eval", BATCH)
        return result

    def _fad_own_floor(self) -> dict[str, float]:
        images, needed = self.train.pixels[:GENERATED], len(self.own.reference.mu)
        if len(images) < needed:  # of the drawn images there are enough
            raise InputError(f"{len(images)} training images of {self.name}, needed are {needed}, one per feature")
        return {"fad_own_floor": distance(self.own.reference, images, "eval", BATCH)}

    def _prdc(self, groups: dict[str, Tensor]) -> dict[str, Any]:
        reference = self.published or self.own.reference
        count = min(GENERATED, len(self.test), len(self.train))
        real = image_features(reference.network, self.test.pixels[:count])
        result = {"prdc_images": count, "prdc_k": NEIGHBOURS, "prdc_features": "fad" if self.published else "fad_own"}
        for suffix, images in {**groups, "_floor": self.train.pixels}.items():
            if suffix != "_reconstructions":
                found = prdc(real, image_features(reference.network, images[:count]))
                result |= {f"prdc_{key}{suffix}": value for key, value in found.items()}
        return result

    def _inception(self, groups: dict[str, Tensor]) -> dict[str, Any]:
        network = cache.digest(self.inception.state_dict().values())
        test = self._real_summary(network, self.test.pixels, "test images")
        summaries = {"_floor": self._real_summary(network, self.train.pixels[: fid.IMAGES], "training images")}
        if "" in groups:
            summaries[""] = self._summary(groups[""][: fid.IMAGES], "generated images")
        result: dict[str, Any] = {}
        for suffix, summary in summaries.items():
            score, std = summary["score"].tolist()
            result |= {f"inception_score{suffix}": score, f"inception_score{suffix}_std": std}
        distances = self._attempt(
            ["fid"],
            lambda: distributed.first(lambda: {f"fid{suffix}": fid.fid(s, test) for suffix, s in summaries.items()}),
        )
        return result | {"fid_implementation": fid.IMPLEMENTATION} | (distances or {})

    def _summary(self, images: Tensor, what: str) -> dict[str, Tensor]:
        """By Inception's features; the images are shared out among the ranks."""
        # Before the work is shared: what is no image must be refused on every rank.
        pixels = images if images.dtype == torch.uint8 else data.to_uint8(images)
        found = _share_batches(
            len(pixels),
            lambda start: fid.outputs(self.inception, pixels[start : start + BATCH]),
            self.track,
            f"Inception on {what}",
        )
        features, logits = (torch.cat(parts) for parts in zip(*found, strict=True))
        return fid.summary(features, logits)

    def _real_summary(self, network: str, pixels: Tensor, what: str) -> dict[str, Tensor]:
        """The same of real images, kept in the cache: it takes minutes on a CPU."""
        identity = {"kind": "inception", "version": 1, "network": network, "images": cache.digest([pixels])}
        found = distributed.first(lambda: cache.read(identity))
        if found:
            return found[0]
        distributed.first(lambda: cache.require_writable(identity))
        made = self._summary(pixels, what)
        distributed.first(lambda: cache.write(identity, made))
        return made


def find_reference(name: str) -> tuple[Reference | None, str]:
    """The published feature network for `name`, or None and a line that says how to get it."""
    if name not in PUBLISHED:
        known = ", ".join(PUBLISHED)
        return None, f"no FAD: no feature network is published for {name}, only for {known}; --own-features trains one"
    files = " and ".join(PUBLISHED[name].files)
    folder = reference_folder()
    if folder is None:
        source = "of github.com/QgZhan/ESVAE (metrics/stat_checkpoints and metrics/stats)"
        return None, f"no FAD: set ESVAE_FAD_DIR to a folder with {files} {source}"
    if not any((folder / file).exists() for file in PUBLISHED[name].files):
        return None, f"no FAD: ESVAE_FAD_DIR={folder} has no {files}"
    return load_reference(name), ""
