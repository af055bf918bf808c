"""What can be chosen, as dataclasses, and the presets. The command line is made from these (esvae/cli.py)."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_type_hints

from .errors import InputError

SurrogateName = Literal[
    "rectangular", "straight-through", "sigmoid", "atan", "triangular", "fast-sigmoid", "gaussian", "piecewise-exp"
]


@dataclass(frozen=True)
class ModelConfig:
    """The network: paper, section IV-B, and the options that the paper leaves open."""

    kind: Literal["esvae"] = "esvae"
    """Which model, of those in esvae/models."""
    channels: int = 1
    """Channels of the images: 1 grey, 3 colour."""
    size: Literal[32, 64] = 32
    """Side of the images in pixels; 64 adds a stage of 512 channels on both sides."""
    latent: int = 128
    """Length d of the latent spike train."""
    steps: int = 16
    """Time steps T."""
    decay: float = 0.25
    """Membrane decay per time step."""
    threshold: float = 0.2
    """Firing threshold, in units of the membrane potential; tdBN scales its output by it."""
    strict: bool = False
    """Fire above the threshold only (the published code), not at it (the paper)."""
    learn_decay: bool = False
    """Learn the membrane decay, one per channel, starting from `decay`."""
    reset: Literal["hard", "soft"] = "hard"
    """To 0, or by subtracting the threshold."""
    detach_reset: bool = False
    """No gradient through the spike in the reset."""
    lif_surrogate: SurrogateName = "rectangular"
    """Surrogate gradient of the neurons."""
    lif_shape: float = 0.5
    """Its shape: the width of `rectangular` and `triangular`, the alpha of `sigmoid`, `atan` and `piecewise-exp`, the
    slope of `fast-sigmoid`, the sigma of `gaussian`."""
    lif_center: float = 0.0
    """Its middle, as a distance from the threshold (the published code: minus the threshold)."""
    sampler_surrogate: SurrogateName = "rectangular"
    """Surrogate gradient of the Poisson sampler."""
    sampler_shape: float = 0.5
    """Its shape."""
    readout_decay: float = 0.8
    """The image is tanh(sum_t readout_decay^(T-1-t) y_t)."""
    wide_kernels: int = 0
    """How many of the last stride-2 transposed convolutions are 4x4 instead of 3x3 (no checkerboard)."""
    upsampling: Literal["transposed", "resize"] = "transposed"
    """Of the decoder: stride-2 transposed convolutions, or nearest neighbours and then a 3x3 convolution, which takes
    four times the multiplications."""
    bottleneck_layers: int = 1
    """Layers of the bottleneck prior: the paper's one, or more of them with a leaky ReLU in between."""
    prior: Literal["bottleneck", "mixture"] = "bottleneck"
    """What `generate` draws rates from: the paper's bottleneck, or a Gaussian mixture fitted to the training rates."""
    mixture_components: int = 50
    """Components of the mixture prior, fitted once training is done."""

    def __post_init__(self) -> None:
        _validate(self)
        _require(self.channels in (1, 3), "channels", self.channels, "1 or 3")
        _require(self.latent >= 1, "latent", self.latent, "at least 1")
        _require(self.steps >= 1, "steps", self.steps, "at least 1")
        _require(self.threshold > 0, "threshold", self.threshold, "above 0")
        _require(self.lif_shape > 0, "lif_shape", self.lif_shape, "above 0")
        _require(self.sampler_shape > 0, "sampler_shape", self.sampler_shape, "above 0")
        _require(not self.learn_decay or 0 < self.decay < 1, "decay", self.decay, "between 0 and 1 to be learnt")
        wide = self.wide_kernels == 0 or self.upsampling == "transposed"
        _require(wide, "wide_kernels", self.wide_kernels, "0 with upsampling 'resize'")
        _require(1 <= self.bottleneck_layers <= 8, "bottleneck_layers", self.bottleneck_layers, "1 to 8")
        _require(0 < self.readout_decay <= 1, "readout_decay", self.readout_decay, "in (0, 1]")
        _require(0 <= self.wide_kernels <= len(self.widths), "wide_kernels", self.wide_kernels, "0 to the stages")
        _require(1 <= self.mixture_components <= 1000, "mixture_components", self.mixture_components, "1 to 1000")

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of the encoder's convolutions."""
        return (32, 64, 128, 256) if self.size == 32 else (32, 64, 128, 256, 512)


@dataclass(frozen=True)
class TrainConfig:
    """The optimisation."""

    epochs: int = 300
    """Passes over the training images."""
    batch_size: int = 256
    """Images per step; the last incomplete batch is left out."""
    lr: float = 6e-4
    """Learning rate of AdamW."""
    bottleneck_lr: float = 6e-3
    """Learning rate of the prior's bottleneck."""
    weight_decay: float = 1e-3
    """Weight decay of AdamW."""
    beta1: float = 0.9
    beta2: float = 0.999
    schedule: Literal["constant", "one-cycle"] = "constant"
    """`one-cycle`: linear warm-up over the first `warmup` of all image time steps, then a half cosine down to 0."""
    warmup: float = 0.1
    """Share of all image time steps that `one-cycle` warms up over."""
    clip: float = 0.0
    """Largest gradient norm; 0 does not clip."""
    distance: Literal["mmd", "unbiased-mmd", "imq", "sliced-wasserstein"] = "mmd"
    """Of posterior and prior rates, in the loss (esvae/losses.py)."""
    mmd_weight: float = 1e-3
    """Lambda, the weight of that distance."""
    rate_weight: float = 0.0
    """Weight of the mean firing rate of all layers in the loss: fewer spikes cost less energy."""
    ema: float = 0.0
    """Decay per step of an average of the weights, which evaluation then uses; 0 keeps none."""
    time_steps: str = ""
    """Time-step schedule as EPOCHS@T joined by commas, e.g. `20@4,2@16`; empty: every epoch at the model's T."""
    seed: int = 0
    """Seed of everything random: weights, order, flips, noise."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Type of convolutions and spikes; `auto` takes bf16 where the device computes in it."""

    def __post_init__(self) -> None:
        _validate(self)
        for name in ("epochs", "batch_size"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        _require(self.batch_size >= 2, "batch_size", self.batch_size, "at least 2 (tdBN and the MMD need company)")
        for name in ("lr", "bottleneck_lr"):
            _require(getattr(self, name) > 0, name, getattr(self, name), "above 0")
        for name in ("weight_decay", "clip", "mmd_weight", "rate_weight"):
            _require(getattr(self, name) >= 0, name, getattr(self, name), "0 or above")
        for name in ("beta1", "beta2", "ema", "warmup"):
            _require(0 <= getattr(self, name) < 1, name, getattr(self, name), "in [0, 1)")
        _require(0 <= self.seed < 2**32, "seed", self.seed, "0 to 4294967295")
        self.stages(1)

    def stages(self, steps: int) -> list[tuple[int, int]]:
        """(epochs, T) in order; `steps` is the model's T."""
        if not self.time_steps:
            return [(self.epochs, steps)]
        try:
            stages = [tuple(int(n) for n in part.split("@")) for part in self.time_steps.split(",")]
            good = all(len(s) == 2 and s[0] >= 1 and s[1] >= 1 for s in stages)
        except ValueError:
            good = False
        _require(good, "time_steps", self.time_steps, "EPOCHS@T joined by commas, e.g. 20@4,2@16")
        total = sum(s[0] for s in stages)
        _require(total == self.epochs, "time_steps", self.time_steps, f"epochs that sum to {self.epochs}, not {total}")
        return stages  # type: ignore[return-value]

    def steps_in_epoch(self, epoch: int, steps: int) -> int:
        """T in use in `epoch`, counted from 0."""
        for epochs, t in self.stages(steps):
            if epoch < epochs:
                return t
            epoch -= epochs
        return t


@dataclass(frozen=True)
class Config:
    """One run."""

    data: str = "fashion-mnist"
    """fashion-mnist, mnist, cifar10, celeba, digits, or folder:PATH."""
    preset: str = "paper"
    """The preset that the rest started from."""
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        _validate(self)

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Config:
        """The inverse of `to_dict`; anything unknown or of a wrong type is an InputError."""
        if isinstance(values, dict):
            parts = {"model": ModelConfig, "train": TrainConfig}
            values = values | {name: build(part, values.get(name), name) for name, part in parts.items()}
        return build(cls, values, "config")


def build(cls: type, values: object, name: str):
    """The dataclass `cls` from a dictionary that may come from a file; `name` says in the error what it is."""
    if not isinstance(values, dict):
        raise InputError(f"{name}: got {values!r}, accepted is an object of options")
    known = {f.name for f in dataclasses.fields(cls)}
    if unknown := sorted(set(values) - known):
        raise InputError(f"{name}: got the unknown option {unknown[0]!r}, accepted are {', '.join(sorted(known))}")
    return cls(**values)


def _require(holds: bool, name: str, got: object, accepted: str) -> None:
    if not holds:
        raise InputError(f"{name}: got {got!r}, accepted is {accepted}")


def _validate(config: object) -> None:
    """Types and choices, since a config can come from a file; integers serve where floats are wanted."""
    for name, hint in get_type_hints(type(config)).items():
        value = getattr(config, name)
        if choices := get_args(hint):
            _require(value in choices, name, value, ", ".join(map(str, choices)))
        elif hint is float:
            good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            _require(good, name, value, "a finite number")
        else:
            good = isinstance(value, hint) and (hint is bool or not isinstance(value, bool))
            _require(good, name, value, hint.__name__)


SIZES = {"celeba": 64}
CHANNELS = {"cifar10": 3, "celeba": 3}


def _paper(data: str) -> Config:
    """The paper, sections III and IV-B; what it does not give is as in the published code."""
    model = ModelConfig(channels=CHANNELS.get(data, 1), size=SIZES.get(data, 32))
    return Config(data, "paper", model, TrainConfig())


def _official(data: str) -> Config:
    """The published code's settings."""
    latent = 32 if data in ("mnist", "fashion-mnist", "digits") else 128
    batch = 64 if data == "celeba" else 256
    lr = {"cifar10": 6e-4, "celeba": 1e-3}.get(data, 3e-3) * batch / 250
    model = ModelConfig(
        channels=CHANNELS.get(data, 1),
        size=SIZES.get(data, 32),
        latent=latent,
        strict=True,
        lif_shape=1.0,
        lif_center=-0.2,
        sampler_shape=1.0,
    )
    return Config(data, "official", model, TrainConfig(batch_size=batch, lr=lr, bottleneck_lr=10 * lr))


def _best(data: str) -> Config:
    """Ours: what of it is better, and by how much, is in the README."""
    model = ModelConfig(
        channels=CHANNELS.get(data, 1),
        size=SIZES.get(data, 32),
        sampler_surrogate="straight-through",
        wide_kernels=2,
        prior="mixture",
    )
    train = TrainConfig(
        epochs=14,
        batch_size=64,
        lr=4e-3,
        bottleneck_lr=2e-2,
        schedule="one-cycle",
        clip=1.0,
        ema=0.999,
        time_steps="12@4,2@16",
    )
    return Config(data, "best", model, train)


PRESETS = {"paper": _paper, "official": _official, "best": _best}


def preset(name: str, data: str) -> Config:
    """The preset `name` for the data set `data`."""
    if name not in PRESETS:
        raise InputError(f"preset: got {name!r}, accepted are {', '.join(PRESETS)}")
    return PRESETS[name](data)
