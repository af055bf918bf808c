"""The Frechet Autoencoder Distance (FAD) with the published feature networks and test-set statistics.

The Frechet distance (`esvae.metrics.frechet`) of features of an autoencoder trained on the data set. The published code
never calls `eval()`: its BatchNorm normalises every batch with the batch's own statistics, which hides global contrast
from it. Both readings are therefore given: `fad_paper` (each batch's own statistics) and `fad_eval` (running ones).
Neither means much without `floors`, the same two figures for real training images.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from esvae.data import normalize
from esvae.errors import InputError
from esvae.metrics.frechet import feature_statistics, frechet_distance
from esvae.untrusted import check_archive, read_pth

Mode = Literal["paper", "eval"]

FEATURES = 64
IMAGE_SIZE = 32
FLOOR_IMAGES = 5120  # 40 batches of 128, as many as the published evaluation generates


class Published(NamedTuple):
    """A feature network of github.com/QgZhan/ESVAE (folders metrics/stat_checkpoints and metrics/stats), and what it
    takes and gives."""

    weights: str
    statistics: str
    channels: int = 1
    size: int = IMAGE_SIZE
    features: int = FEATURES

    @property
    def files(self) -> tuple[str, str]:
        return self.weights, self.statistics


PUBLISHED = {
    "fashion-mnist": Published("fashion_64.pth", "fashion_test_64.npz"),
    "mnist": Published("mnist_64.pth", "mnist_test_64.npz"),
    "cifar10": Published("cifar10_128.pth", "cifar10_test_128.npz", channels=3, features=128),
    "celeba": Published("celeba_128.pth", "celeba_test_128.npz", channels=3, size=64, features=128),
}


class FeatureNetwork(nn.Module):
    """The published feature encoder: stages of [Conv2d 3x3 s2 p1, BatchNorm2d, LeakyReLU(0.01)] down to 2x2 pixels, of
    32, 64, 128, .. channels, then a Linear layer: at 32x32 four stages and Linear(1024, 64).

    Takes images (N, channels, size, size) in [-1, 1], returns features (N, features); size a power of two, at least 4.
    The parameter names are those of the published files (`encoder.{0,1,..}.{0,1}.*`, `latent_layer.*`).
    """

    def __init__(self, channels: int = 1, size: int = IMAGE_SIZE, features: int = FEATURES) -> None:
        super().__init__()
        self.image_shape = (channels, size, size)
        self.features = features
        self.widths = tuple(32 << stage for stage in range(size.bit_length() - 2))
        self.encoder = nn.Sequential(*(_stage(i, o) for i, o in pairwise((channels, *self.widths))))
        self.latent_layer = nn.Linear(self.widths[-1] * 4, features)

    def forward(self, images: Tensor) -> Tensor:
        return self.latent_layer(self.encoder(images).flatten(1))

    @classmethod
    def from_file(
        cls, path: Path, channels: int = 1, size: int = IMAGE_SIZE, features: int = FEATURES
    ) -> FeatureNetwork:
        """The network stored in a published .pth file, on the CPU and in eval mode; decoder weights are ignored.

        Raises `InputError` where the file is missing, damaged, carries pickled objects or holds another network.
        """
        state = read_pth(path)
        with torch.device("meta"):
            network = cls(channels, size, features)
        found = {key: value for key, value in state.items() if str(key).startswith(("encoder.", "latent_layer."))}
        load_exactly(network, found, f"{path}: not the published feature network")
        return network.eval()


def load_exactly(network: nn.Module, found: dict[object, object], failure: str) -> None:
    """`load_state_dict` of a file's content: plain finite tensors of the network's own names, shapes and types.

    The network, which may be on the meta device, comes to the CPU. Raises `InputError`, `failure` and the first entry
    that does not fit.
    """
    expected = network.state_dict()
    for key in sorted(expected.keys() | found.keys(), key=str):
        if key not in found or key not in expected or not _is_like(found[key], expected[key]):
            want = f"a tensor {tuple(expected[key].shape)}" if key in expected else "no such entry"
            raise InputError(f"{failure}: {key!r:.80} should be {want}")
    network.to_empty(device="cpu").load_state_dict(found)


def _stage(inputs: int, outputs: int) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.LeakyReLU(0.01))


def _is_like(value: object, model: Tensor) -> bool:
    same = isinstance(value, Tensor) and value.layout == torch.strided and value.device.type == "cpu"
    same = same and value.shape == model.shape and value.dtype == model.dtype
    return same and bool(torch.isfinite(value).all())


@dataclass(frozen=True, eq=False)
class Reference:
    """What a data set is compared with: its feature network, and mu (F), sigma (F, F) of its test set's features, fp64.

    mu and sigma were taken in train mode, in batches of 256 (covariance with N - 1). Move `network` to run elsewhere.
    """

    dataset: str
    network: FeatureNetwork
    mu: Tensor
    sigma: Tensor


def reference_folder() -> Path | None:
    """The folder that the environment variable ESVAE_FAD_DIR names, if it names one."""
    variable = os.environ.get("ESVAE_FAD_DIR", "")
    return Path(variable).expanduser() if variable else None


def load_reference(dataset: str, folder: Path | None = None) -> Reference | None:
    """The published network and statistics of a data set in `PUBLISHED`.

    `folder` (default: the environment variable ESVAE_FAD_DIR) holds its two files. None where neither names a folder,
    or nothing is published for the data set. Raises `InputError` where a folder is named and its files are missing or
    unusable.
    """
    folder = folder or reference_folder()
    if folder is None or dataset not in PUBLISHED:
        return None
    known = PUBLISHED[dataset]
    mu, sigma = _read_statistics(Path(folder) / known.statistics, known.features)
    network = FeatureNetwork.from_file(Path(folder) / known.weights, known.channels, known.size, known.features)
    return Reference(dataset, network, mu, sigma)


def _read_statistics(path: Path, features: int) -> tuple[Tensor, Tensor]:
    check_archive(path)
    try:
        with zipfile.ZipFile(path) as archive:
            mu = _read_array(archive, "mu.npy", (features,))
            sigma = _read_array(archive, "sigma.npy", (features, features))
    except Exception as error:  # damaged archives raise anything, from KeyError to zlib.error
        raise InputError(
            f"{path}: not a file of mu ({features},) and sigma ({features}, {features}) ({type(error).__name__})"
        ) from error
    return mu, sigma


def _read_array(archive: zipfile.ZipFile, name: str, shape: tuple[int, ...]) -> Tensor:
    """One floating-point array of a .npz file in fp64; its header is checked before memory is allocated for it."""
    with archive.open(name) as file:
        version = np.lib.format.read_magic(file)
        if version != (1, 0):  # the later headers are for structured and very large arrays
            raise ValueError(name)
        found, _, dtype = np.lib.format.read_array_header_1_0(file)
        if found != shape or dtype.kind != "f":
            raise ValueError(name)
    with archive.open(name) as file:
        array = np.lib.format.read_array(file, allow_pickle=False)
    if not np.isfinite(array).all():
        raise ValueError(name)
    return torch.from_numpy(np.array(array, dtype=np.float64, order="C"))


@contextmanager
def _training_flags_kept(network: nn.Module) -> Iterator[None]:
    flags = {module: module.training for module in network.modules()}
    try:
        yield
    finally:
        for module, flag in flags.items():
            module.training = flag


def features(network: FeatureNetwork, batches: Iterable[Tensor], mode: Mode) -> Tensor:
    """Features (N, F), fp64, on the CPU, of batches of float images in [-1, 1], those that the network takes.

    mode "paper": BatchNorm normalises with each batch's own statistics, so the order and size of the batches matter and
    a batch needs two images; "eval": with the running statistics. The network's parameters, running statistics and
    mode are left as they were. Raises `InputError` for other modes and for images that do not fit the network.
    """
    if mode not in ("paper", "eval"):
        raise InputError(f"mode: 'paper' or 'eval', not {mode!r}")
    parameter = next(network.parameters())
    # Train mode updates the running statistics in place: let it update copies.
    buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
    blocks = [torch.empty(0, network.features, dtype=torch.float64)]
    with _training_flags_kept(network), torch.no_grad(), torch.autocast(parameter.device.type, enabled=False):
        network.train(mode == "paper")
        for images in batches:
            _check_images(images, network.image_shape)
            if mode == "paper" and len(images) < 2:
                raise InputError(f"batches: mode 'paper' needs at least 2 images in a batch, not {len(images)}")
            block = functional_call(network, buffers, (images.to(parameter.device, parameter.dtype),))
            blocks.append(block.cpu().double())
    return torch.cat(blocks)


def _check_images(images: Tensor, shape: tuple[int, ...]) -> None:
    if images.shape[1:] != shape or not images.is_floating_point():
        want = f"float (N, {', '.join(map(str, shape))})"
        raise InputError(f"images: {want} is wanted, not {images.dtype} {tuple(images.shape)}")
    # A little beyond 1 for rounding in half precision; NaN fails the comparison too.
    if images.numel() and not images.abs().amax() <= 1.01:
        raise InputError("images: values in [-1, 1] are wanted (uint8 pixels are normalised by `fad`)")


def fad(reference: Reference, images: Tensor, batch_size: int = 128) -> dict[str, float]:
    """FAD of images, uint8 in 0..255 or float in [-1, 1], at least as many as features: {"fad_paper", "fad_eval"}.

    Both are distances to the same shipped statistics, which were taken in train mode; so the figures can be set beside
    Table I (`fad_paper` with batch_size 128 and 5,120 images), and real test images do not score 0 in `fad_eval` (of
    Fashion-MNIST about 0.43). In paper mode a last batch of one image is left out. Raises `InputError` for images that
    do not fit.
    """
    return {f"fad_{mode}": distance(reference, images, mode, batch_size) for mode in ("paper", "eval")}


def distance(reference: Reference, images: Tensor, mode: Mode, batch_size: int = 128) -> float:
    """The Frechet distance of the images' features in one mode from the reference; images as in `fad`."""
    found = image_features(reference.network, images, mode, batch_size)
    return frechet_distance(*feature_statistics(found), reference.mu, reference.sigma)


def image_features(network: FeatureNetwork, images: Tensor, mode: Mode = "eval", batch_size: int = 128) -> Tensor:
    """`features` of one tensor of images, uint8 in 0..255 or float in [-1, 1]."""
    if batch_size < 2:
        raise InputError(f"batch_size: at least 2, not {batch_size}")
    return features(network, _batches(images, batch_size, 2 if mode == "paper" else 1), mode)


def _batches(images: Tensor, size: int, smallest: int) -> Iterator[Tensor]:
    for batch in images.split(size):
        if len(batch) >= smallest:
            yield normalize(batch) if batch.dtype == torch.uint8 else batch


def floors(reference: Reference, train_pixels: Tensor) -> dict[str, float]:
    """FAD of real images: of the first 5,120 training images, uint8 (N, C, H, W), in batches of 128.

    Returns {"fad_paper_floor", "fad_eval_floor"}: 0.869 and 1.315 for Fashion-MNIST, where other draws of 5,120
    training images lie between 0.75 and 1.0 in paper mode. Raises `InputError` for fewer images or another dtype.
    """
    if train_pixels.dtype != torch.uint8 or len(train_pixels) < FLOOR_IMAGES:
        got = f"{train_pixels.dtype} {tuple(train_pixels.shape)}"
        raise InputError(f"train_pixels: at least {FLOOR_IMAGES} uint8 images are wanted, not {got}")
    return {f"{name}_floor": value for name, value in fad(reference, train_pixels[:FLOOR_IMAGES]).items()}
