"""The commands. The options of each are the fields of a dataclass; torch is imported once they have been parsed."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import itertools
import json
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.table import Table

from ..config import FOLDER, MAX_STEPS, PRESETS, Config, option_of, preset
from ..errors import InputError
from . import typed

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ..generate import Loaded
    from ..models import Model

DEMO_MODEL = "fashion-mnist"
DEMO_DONE = "samples.png"  # a demo's last file
DEMO_SAMPLES = 64
Prior = Literal["bottleneck", "mixture"]
Precision = Literal["fp32", "bf16"]
RunFolder = Annotated[Path, tyro.conf.arg(metavar="RUN")]


@dataclass(frozen=True)
class Generate:
    """Draw images from a trained model: image number i of a seed is always the same one.

    Example: esvae generate runs/fashion --n 64 --out samples.png
    """

    run: tyro.conf.Positional[RunFolder]
    """A run's folder, any folder with model.safetensors and config.json, or `fashion-mnist`, the shipped model."""
    n: int = 64
    """How many images."""
    out: Path = Path("samples.png")
    """A .png file (one grid), a .npz file (array `images`, uint8 (N, C, H, W)), or a new folder (one PNG file each)."""
    seed: int = 0
    """Of all noise."""
    prior: Prior | None = None
    """Where rates are drawn from; by default what the model was trained for."""
    steps: int | None = None
    """Time steps T; by default those of the training."""
    columns: int = 8
    """Images per row of a grid."""
    precision: Precision = "fp32"
    """Type of convolutions and spikes."""
    device: str = "cpu"
    """`cpu`, `cuda`, ..."""
    graphs: bool = True
    """On a GPU, the whole computation as a CUDA graph."""


@dataclass(frozen=True)
class Reconstruct:
    """Write test images and, below each, its reconstruction as one grid, and print their mean squared error.

    Example: esvae reconstruct runs/fashion --n 32 --out reconstructions.png
    """

    run: tyro.conf.Positional[RunFolder]
    """A run's folder, any folder with model.safetensors and config.json, or `fashion-mnist`, the shipped model."""
    data: str | None = None
    """A data set as for `esvae train`; by default the run's."""
    n: int = 32
    """How many images, the first ones of the test set."""
    out: Path = Path("reconstructions.png")
    """A .png file."""
    seed: int = 0
    """Of the noise."""
    steps: int | None = None
    """Time steps T; by default those of the training."""
    columns: int = 16
    """Images per row."""
    precision: Precision = "fp32"
    """Type of convolutions and spikes."""
    device: str = "cpu"
    """`cpu`, `cuda`, ..."""
    graphs: bool = True
    """On a GPU, the whole computation as a CUDA graph."""
    download: bool = False
    """Fetch the data set where it is not on this machine."""


@dataclass(frozen=True)
class Evaluate:
    """Measure a model on the whole test set: the mean squared error of its reconstructions and, of 5,120 generated
    images beside real training images, what there is a network for. Frechet autoencoder distance (FAD), precision,
    recall, density and coverage: for Fashion-MNIST, MNIST, CIFAR10 and CelebA by the published networks in the folder
    that ESVAE_FAD_DIR names, for any data set by our own with --own-features. FID and Inception Score: the weights that
    ESVAE_INCEPTION names.

    Example: ESVAE_FAD_DIR=fad esvae evaluate runs/fashion --json
    """

    run: Annotated[Path | None, tyro.conf.arg(metavar="RUN"), tyro.conf.Positional] = None
    """A run's folder, any folder with model.safetensors and config.json, or `fashion-mnist`, the shipped model."""
    real: str | None = None
    """Instead of a model: the distances of this data set's real images alone, as a yardstick and a check."""
    own_features: bool = False
    """Also measure FAD by a feature network of our own, `fad_own`, which is trained the first time: minutes."""
    inception: Path | None = None
    """The file pt_inception-2015-12-05-6726825d.pth of pytorch-fid, for FID and Inception Score; by default
    ESVAE_INCEPTION."""
    json: bool = False
    """Print one JSON object, and nothing else, on stdout."""
    data: str | None = None
    """A data set as for `esvae train`; by default the run's."""
    prior: Prior | None = None
    """Where rates are drawn from; by default what the model was trained for."""
    steps: int | None = None
    """Time steps T; by default those of the training."""
    seed: int = 2024
    """Of all noise."""
    precision: Precision = "fp32"
    """Type of convolutions and spikes."""
    device: str = "cpu"
    """`cpu`, `cuda`, ...; under torchrun `cuda` gives each process a GPU."""
    graphs: bool = True
    """On a GPU, the whole computation as a CUDA graph."""
    download: bool = False
    """Fetch the data set where it is not on this machine."""


@dataclass(frozen=True)
class Robustness:
    """Disturb the latent spikes of test images in five ways and measure how far their reconstructions move: the mean
    squared error against the original images and against the vanilla reconstructions, those of undisturbed spikes
    (paper, Table II and Fig. 5). Mean and standard deviation over seeds; each draws spikes and disturbances anew.

    time_shuffle: the time steps in another order, one for all neurons of an image. time_shuffle_neurons: an order of
    its own for every neuron. length_shuffle: the neurons in another order. flips: each spike flips with probability a.
    noise: with probability a a spike gets Gaussian noise, and is a spike again at 1/2 or above.

    Every disturbance decodes all images anew, 20 times per seed: on two cores try --n 1000 first.

    Example: esvae robustness runs/fashion --n 1000 --a 0.05 0.1 0.2
    """

    run: tyro.conf.Positional[RunFolder]
    """A run's folder, any folder with model.safetensors and config.json, or `fashion-mnist`, the shipped model;
    of a kind with latent spikes."""
    json: bool = False
    """Print one JSON object, and nothing else, on stdout."""
    n: int | None = None
    """How many images, the first ones of the test set; by default all."""
    a: tuple[float, ...] = ()
    """Probabilities of flips and noise, above 0 and at most 1; by default 0.01 0.02 0.05 0.1 0.2 0.3 0.4 0.5."""
    seeds: int = 3
    """How many repetitions, at least 2."""
    data: str | None = None
    """A data set as for `esvae train`; by default the run's."""
    steps: int | None = None
    """Time steps T; by default those of the training."""
    seed: int = 2024
    """Of all noise: the first of the seeds."""
    precision: Precision = "fp32"
    """Type of convolutions and spikes."""
    device: str = "cpu"
    """`cpu`, `cuda`, ..."""
    download: bool = False
    """Fetch the data set where it is not on this machine."""


@dataclass(frozen=True)
class Classify:
    """Train classifiers on the firing rates that the frozen encoder gives for the training images, and measure their
    accuracy on the test images (paper, Table IV): the paper's, of four fully connected layers, trained by SGD, several
    times from other weights, and a linear probe (logistic regression). Needs labels: Fashion-MNIST, MNIST, CIFAR10,
    digits, or a folder with a subfolder for each class.

    Example: esvae classify runs/fashion --json
    """

    run: tyro.conf.Positional[RunFolder]
    """A run's folder, any folder with model.safetensors and config.json, or `fashion-mnist`, the shipped model;
    of a kind with an encoder."""
    json: bool = False
    """Print one JSON object, and nothing else, on stdout."""
    seeds: int = 3
    """How many classifiers, at least 2."""
    epochs: int = 200
    """Of each; the paper's are 200. The accuracy is that after the last one."""
    data: str | None = None
    """A data set as for `esvae train`; by default the run's."""
    steps: int | None = None
    """Time steps T; by default those of the training."""
    seed: int = 2024
    """Of weights and order: the first of the seeds."""
    precision: Precision = "fp32"
    """Type of convolutions and spikes of the encoder."""
    device: str = "cpu"
    """`cpu`, `cuda`, ..."""
    download: bool = False
    """Fetch the data set where it is not on this machine."""


@dataclass(frozen=True)
class Energy:
    """Count the operations per image of every layer and charge them: 0.9 pJ for the addition (AC) that a spike causes
    at each connection it goes out on, 4.6 pJ for the multiply-accumulate (MAC) of a real value at each (45 nm). Spikes
    are measured, on test images that are encoded and on images that are generated. The ANN twin has the same layers,
    each run once on real values.

    The energy is that of these operations. The updates of the neurons, a MAC at each time step, are printed apart, and
    the ratio to the twin without and with them. Memory and random numbers are not counted. Also printed: the paper's
    formula, which counts spikes and time steps twice and serves for a comparison with its Table III alone.

    Example: esvae energy runs/fashion
    """

    run: tyro.conf.Positional[RunFolder]
    """A run's folder, any folder with model.safetensors and config.json, or `fashion-mnist`, the shipped model."""
    json: bool = False
    """Print one JSON object, and nothing else, on stdout."""
    n: int | None = None
    """How many test images to encode, and images to generate; by default 1000, or all where there are fewer."""
    prior: Prior | None = None
    """Where rates are drawn from; by default what the model was trained for."""
    data: str | None = None
    """A data set as for `esvae train`; by default the run's."""
    steps: int | None = None
    """Time steps T; by default those of the training."""
    seed: int = 2024
    """Of all noise."""
    device: str = "cpu"
    """`cpu`, `cuda`, ..."""
    download: bool = False
    """Fetch the data set where it is not on this machine."""


@dataclass(frozen=True)
class Report:
    """The paper's tables and figures from trained runs, beside the published figures where there are some of the data
    set: Markdown, PNG, SVG, JSON, and one HTML page that needs nothing else. Runs that differ by their seed alone are
    one row, with mean and spread.

    What is measured on a run is kept in its folder `report`, and measured again when weights or settings change. What
    cannot be measured is named in the report, which goes on without it.

    Example: ESVAE_FAD_DIR=fad esvae report all runs/fashion runs/fsvae runs/vae --out report
    """

    what: tyro.conf.Positional[
        Literal[
            "table1", "table2", "table3", "table4", "table5", "fig1", "fig4", "fig5", "fig6", "fig7", "grids", "all"
        ]
    ]
    """Quality (table1, with attention modules table5), shuffled latents (table2, fig1), energy (table3), classification
    of the rates (table4), latent spikes (fig4), noise (fig5), firing rates (fig6, by epochs fig7), images (grids)."""
    runs: tyro.conf.Positional[tuple[Annotated[Path, tyro.conf.arg(metavar="RUN")], ...]]
    """Folders of runs of any kind, folders with model.safetensors and config.json, or `fashion-mnist`, which comes
    along."""
    out: Path | None = None
    """The folder that is written into; by default `report` in the first run's folder, or here where that comes
    along."""
    data: str | None = None
    """A data set as for `esvae train`; by default each run's."""
    images: int | None = None
    """How many test images robustness, energy and rates are measured on; by default all, and for energy 1,000."""
    classifier_epochs: int = 200
    """Epochs of the classifiers of table4; the paper's are 200."""
    own_features: bool = False
    """Also measure FAD by a feature network of our own, `fad_own`, which is trained the first time: minutes."""
    inception: Path | None = None
    """The file of Inception weights, as for `esvae evaluate`; by default ESVAE_INCEPTION."""
    seed: int = 2024
    """Of all noise."""
    precision: Precision = "fp32"
    """Type of convolutions and spikes."""
    device: str = "cpu"
    """`cpu`, `cuda`, ..."""
    download: bool = False
    """Fetch a data set where it is not on this machine."""


@dataclass(frozen=True)
class Export:
    """Write the encoder or the decoder of a trained model as a graph of the Neuromorphic Intermediate Representation
    (NIR), for other simulators and neuromorphic chips. Needs the package `nir`.

    Example: esvae export runs/fashion --accept ">=" --accept reset --out encoder.nir
    """

    run: tyro.conf.Positional[RunFolder]
    """A run's folder, any folder with model.safetensors and config.json, or `fashion-mnist`, the shipped model."""
    part: Literal["encoder", "decoder"] = "encoder"
    """`encoder`: from the image, at every time step, to the latent spikes, whose mean over time is the rate. `decoder`:
    from latent spikes to potentials; the image is tanh of the last ones."""
    out: Path = Path("model.nir")
    """A .nir file."""
    dt: float = 1e-4
    """The time step in seconds."""
    accept: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """What the model has and NIR cannot say, each behind an --accept of its own: `>=` (neurons that fire at the
    threshold), `reset` (the soft reset of the preset `best`: NIR's is to 0, and elsewhere its neurons lose what is
    above the threshold)."""
    fold: bool = False
    """Fold the norm into the weights, which is all that most simulators can read; rounds otherwise."""
    max_matrix: int = 2**24
    """The most elements of a matrix; NIR has no transposed convolution, so that the decoder's are matrices."""
    steps: int | None = None
    """Time steps T, which the decoder's readout is scaled by; by default those of the training."""


@dataclass(frozen=True)
class Train:
    """Train a model, and leave config, checkpoints, metrics, images and the model itself in a folder. Interrupted,
    however it is, the training goes on with `--resume` as if nothing had happened.

    On several devices: torchrun --nproc-per-node 2 -m esvae train --device cuda ... The batch is shared out among the
    processes; loss, noise and statistics are those of one process, and --resume takes any number of them.

    Examples: esvae train --data folder:pictures --out runs/mine; esvae train --data fashion-mnist --out runs/fashion;
    esvae train --resume --out runs/fashion

    Presets: `best` (ours, the default), `paper` (the paper's settings), `official` (the published code's); and what
    ESVAE is compared with: `fsvae`, `fsvae-kl` (FSVAE with the MMD, with the Kullback-Leibler divergence), `vae`
    (without spikes), `gan` (a spiking GAN).

    Where `paper` departs from the paper's text: eq. 1 divides the potential by tau = 0.25, a factor of 4; here tau is
    the decay that it is multiplied by. The last convolution has no tdBN. Batch size, the MMD's weight and kernel and
    the readout's weights, which the text does not give, are the published code's.

    Every option below starts from the preset for the data set, and its default is shown for the preset and data set
    on this command line.
    """

    out: Path
    """The run's folder: new or empty, except with --resume."""
    config: Annotated[Config, tyro.conf.arg(name="")] = field(default_factory=Config)
    data_background: str | None = None
    """With folder:PATH, the colour that is put behind transparent images: by name, or as #rrggbb; by default white."""
    resume: bool = False
    """Go on with the run in --out, by its own config."""
    device: str = "cpu"
    """`cpu`, `cuda`, ...; under torchrun `cuda` gives each process a GPU."""
    download: bool = False
    """Fetch the data set where it is not on this machine."""
    checkpoint_minutes: float = 5.0
    """Minutes between two checkpoints within an epoch; each epoch ends with one."""
    graphs: bool = True
    """On one GPU, the whole training step as a CUDA graph."""
    quiet: bool = False
    """No progress bar."""


@dataclass(frozen=True)
class Demo:
    """Draw images from the shipped model, `fashion-mnist`, reconstruct the test images that ship
    with it, and print what was measured: seconds. Needs no data.

    With --train instead: train on the handwritten digits that ship with scikit-learn, for about four minutes on two
    cores; write samples and reconstructions, and print what was measured. Interrupted, it goes on when it is called
    again.

    Examples: esvae demo; esvae demo --train --out demo
    """

    out: Path = Path("demo")
    """The folder; where it holds a finished demo, one with a number behind its name is taken."""
    train: bool = False
    """Train on digits."""
    epochs: int | None = None
    """With --train: passes over the training images; by default 15, which fit the four minutes."""
    device: str = "cpu"
    """`cpu`, `cuda`, ..."""


def _options(command: type, arguments: list[str], **defaults: Any) -> Any:
    """The command's dataclass from its arguments, and then what every command needs before it works.

    What does not parse is an InputError, `--help` ends the program: before torch is imported, which takes seconds.
    """
    options = _parsed(command, arguments, **defaults)
    import esvae_kernels

    from .. import distributed

    name = command.__name__.lower()
    if name not in SHARED and distributed.launched() > 1:
        raise InputError(f"command: got {name!r} under torchrun, accepted there are {', '.join(SHARED)}")
    esvae_kernels.backends.environment()  # a backend that there is not is told before any work
    esvae_kernels.tune_allocator()
    return options


def _parsed(command: type, arguments: list[str], **defaults: Any) -> Any:
    name, printed = f"esvae {command.__name__.lower()}", io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            return tyro.cli(command, prog=name, args=arguments, **defaults)
    except SystemExit as stop:
        if not stop.code:
            raise
        # A box: title, message, a line, hints. Where stdout may not take its lines it has no frame, and hyphens.
        lines = [line.strip("│ ") for line in printed.getvalue().splitlines() if not line.startswith(("╭", "╰"))]
        underlined = len(lines) > 1 and lines[1].startswith("--")
        message = " ".join(
            itertools.takewhile(lambda line: not line.startswith(("──", "---")), lines[2 * underlined :])
        )
        refused = re.match(r"Error parsing config(\.\w+)?: ", message)  # by the config itself, which says it all
        raise InputError(message[refused.end() :] if refused else f"{message}; see {name} --help") from None


# ----------------------------------------------------------------------------------------------------------- commands


def _generate(arguments: list[str]) -> None:
    options = _options(Generate, arguments)
    from .. import figures
    from ..evaluate import generated
    from ..generate import MAX_IMAGES, check_out, choose_prior, write_images

    _require(1 <= options.n <= MAX_IMAGES, "n", options.n, f"1 to {MAX_IMAGES}")
    _require(options.columns >= 1, "columns", options.columns, "at least 1")
    check_out(options.out, (".png", ".npz", ""))
    loaded = _load(options)
    if options.out.suffix.lower() == ".png":
        figures.check_grid(options.n, options.columns, loaded.model.config.size)
    prior, notes = choose_prior(loaded.model, options.prior)
    _say(*loaded.notes, *notes)
    images = generated(
        loaded.model,
        options.n,
        seed=options.seed,
        precision=options.precision,
        prior=prior,
        graphs=options.graphs,
        track=_track(),
    )
    write_images(images, options.out, options.columns)
    _say(f"{options.out}: {options.n} images, prior {prior}, T = {loaded.model.steps}, from {loaded.source}")


def _reconstruct(arguments: list[str]) -> None:
    options = _options(Reconstruct, arguments)
    from .. import figures
    from ..data import normalize
    from ..evaluate import BATCH, load_for, reconstructions
    from ..generate import check_out
    from ..models import require

    check_out(options.out, (".png",))
    _require(options.columns >= 1, "columns", options.columns, "at least 1")
    _require(options.n >= 1, "n", options.n, "at least 1")
    loaded = _load(options)
    require(loaded.model, "reconstruct", "reconstruct")
    name = _data_of(loaded, options)
    images = load_for(loaded.model, name, "test", options.download)
    _require(1 <= options.n <= len(images), "n", options.n, f"1 to {len(images)}, the test images of {name}")
    figures.check_grid(options.n, options.columns, loaded.model.config.size, pairs=True)
    import torch

    originals = normalize(images.pixels[: options.n])
    batches = originals.to(options.device).split(BATCH)
    settings = (options.precision, options.seed, options.graphs)
    again = torch.cat(list(reconstructions(loaded.model, batches, *settings))).cpu()
    figures.save_image(figures.reconstruction_grid(originals, again, options.columns), options.out)
    _say(*loaded.notes, f"{options.out}: the first {options.n} test images of {name}, from {loaded.source}")
    print(f"mse {(originals - again).square().mean(dtype=torch.float64):.6f}")


def _evaluate(arguments: list[str]) -> None:
    options = _options(Evaluate, arguments)
    _require((options.run is None) != (options.real is None), "RUN", options.run, "either RUN or --real DATA")
    if options.real is not None:
        for name in ("data", "prior", "steps", "seed", "precision", "graphs"):
            got = getattr(options, name)
            _require(got == getattr(Evaluate, name), name, got, "none with --real, which runs no model")
    _check_inception(options.inception)
    from .. import distributed

    with distributed.processes(options.device) as device:
        result = _measure(dataclasses.replace(options, device=device))
        if distributed.rank() == 0:
            _show(result, options.json, metrics_table)


def _measure(options: Evaluate) -> dict[str, Any]:
    from .. import distributed
    from ..evaluate import evaluate, real
    from ..generate import choose_prior

    networks = {"own_features": options.own_features, "inception": options.inception}
    if options.real is not None:
        device = _device(options.device)
        result = real(options.real, options.download, device=device, track=_track(), **networks)
    else:
        loaded = distributed.in_turn(lambda: _load(options))
        name = _data_of(loaded, options)
        prior, notes = choose_prior(loaded.model, options.prior)
        _say(*loaded.notes, *notes)
        result = {"weights": loaded.source} | evaluate(
            loaded.model,
            name,
            prior=prior,
            precision=options.precision,
            seed=options.seed,
            download=options.download,
            graphs=options.graphs,
            track=_track(),
            **networks,
        )
    _say(*dict.fromkeys(result["not_measured"].values()))
    return result


def _robustness(arguments: list[str]) -> None:
    options = _options(Robustness, arguments)
    from ..evaluate import load_for
    from ..robustness import PROBABILITIES, check_arguments, robustness

    probabilities = options.a or PROBABILITIES
    check_arguments(probabilities, options.seeds, options.seed)
    _require(options.n is None or options.n >= 1, "n", options.n, "at least 1")
    loaded = _load(options)
    images = load_for(loaded.model, _data_of(loaded, options), "test", options.download)
    n = len(images) if options.n is None else options.n
    _require(1 <= n <= len(images), "n", n, f"1 to {len(images)}, the test images of {images.name}")
    _say(*loaded.notes)
    result = robustness(
        loaded.model,
        images.part(0, n),
        probabilities=probabilities,
        seeds=options.seeds,
        seed=options.seed,
        precision=options.precision,
        track=_track(),
    )
    _show({"weights": loaded.source} | result, options.json, robustness_table)


def _classify(arguments: list[str]) -> None:
    options = _options(Classify, arguments)
    from ..classify import check_arguments, classify
    from ..evaluate import load_for

    check_arguments(options.seeds, options.epochs, options.seed)
    loaded = _load(options)
    name = _data_of(loaded, options)
    train, test = (load_for(loaded.model, name, split, options.download, labels=True) for split in ("train", "test"))
    _say(*loaded.notes)
    result = classify(
        loaded.model,
        train,
        test,
        seeds=options.seeds,
        epochs=options.epochs,
        seed=options.seed,
        precision=options.precision,
        track=_track(),
    )
    _show({"weights": loaded.source} | result, options.json, classify_table)


def _energy(arguments: list[str]) -> None:
    options = _options(Energy, arguments)
    from ..energy import energy
    from ..evaluate import load_for
    from ..generate import choose_prior

    _require(options.n is None or options.n >= 1, "n", options.n, "at least 1")
    loaded = _load(options)
    model, images = loaded.model, None
    if hasattr(model, "encode"):
        images = load_for(model, _data_of(loaded, options), "test", options.download)
    prior, notes = choose_prior(model, options.prior)
    _say(*loaded.notes, *notes)
    result = energy(model, images, n=options.n, prior=prior, seed=options.seed, track=_track())
    _show({"weights": loaded.source} | result, options.json, energy_table)


def _show(result: dict[str, Any], as_json: bool, table: Callable[[dict[str, Any]], Table]) -> None:
    if as_json:
        print(json.dumps(result, allow_nan=False))
    else:
        Console().print(table(result))


def robustness_table(result: dict[str, Any]) -> Table:
    """What `robustness` returned, for reading."""
    about = f"mean squared error: {result['data']}, {result['images']} images, T = {result['steps']}, "
    about += f"{result['seeds']} seeds"
    table = Table("spikes", "a", "vs original", "vs vanilla", "changed", title=about, title_justify="left")

    def add(name: str, entry: dict[str, Any]) -> None:
        errors = [f"{entry[key]['mean']:.4f} ± {entry[key]['sd']:.4f}" for key in ("original", "vanilla")]
        table.add_row(name, f"{entry['a']:g}" if "a" in entry else "", *errors, f"{entry['changed']:.2%}")

    vanilla = result["vanilla"]["original"]
    table.add_row("vanilla", "", f"{vanilla['mean']:.4f} ± {vanilla['sd']:.4f}")
    for name in ("time_shuffle", "time_shuffle_neurons", "length_shuffle"):
        add(name, result[name])
    for name in ("flips", "noise"):
        table.add_section()
        for entry in result[name][1:]:
            add(name, entry)
    return table


def classify_table(result: dict[str, Any]) -> Table:
    """What `classify` returned, for reading."""
    about = f"{result['data']}, rates of length {result['latent']}, T = {result['steps']}"
    table = Table("accuracy on the test images", "%", title=about, title_justify="left")
    classifier, probe = result["classifier"], result["linear_probe"]
    layers = "-".join(map(str, classifier["layers"]))
    seeds = len(classifier["accuracy"])
    table.add_row(
        f"{layers}, {classifier['epochs']} epochs, {seeds} seeds", f"{classifier['mean']:.2f} ± {classifier['sd']:.2f}"
    )
    note = "" if probe["converged"] else " (has not converged)"
    table.add_row(f"linear probe{note}", f"{probe['accuracy']:.2f}")
    table.add_row("the commonest class of the training images, always", f"{result['majority']:.2f}")
    return table


def energy_table(result: dict[str, Any]) -> Table:
    """What `energy` returned, for reading."""
    about = f"per image, means over {result['images']}; T = {result['steps']}"
    columns = ("layer", "inputs", "rate", "ACs", "MACs", "µJ", "twin µJ", "fires")
    table = Table(*columns, title=about, title_justify="left", caption_justify="left")
    for column in table.columns[2:]:
        column.justify = "right"
    notes = []

    def add(name: str, row: dict[str, Any]) -> None:
        rates = ["" if rate is None else f"{rate:.3f}" for rate in (row.get("input_rate"), row["firing_rate"])]
        counts = [_short(row[key]) for key in ("synaptic_operations", "macs")]
        costs = [f"{row[key]:.2f}" for key in ("energy_uj", "twin_energy_uj")]
        table.add_row(name, row.get("inputs", "").removeprefix("real "), rates[0], *counts, *costs, rates[1])

    for part in ("encode", "generate"):
        total = result[part]
        if total is None:
            continue
        table.add_section()
        for row in total["layers"]:
            add(row["name"], row)
        add(part, total)
        low, high = total["energy_range_uj"]
        note = f"{part}: {total['energy_ratio']:.2f} of the twin's energy"
        if total["firing_rate"] is not None:
            note += (
                f", {total['energy_ratio_with_updates']:.2f} with the updates of the neurons "
                f"({total['neuron_updates_uj']:.2f} µJ, not in the table); {low:.2f} to {high:.2f} µJ with first layer "
                "and readout run the other way"
            )
        notes.append(note)
    spiking, rate = result["generate"]["firing_rate"] is not None, result["break_even_rate"]
    even = f"even at a firing rate of {rate:.3f}" if rate < 1 else f"at T = {result['steps']} less at any firing rate"
    notes += [
        f"AC {result['ac_pj']} pJ, MAC {result['mac_pj']} pJ{f': {even}' if spiking else ''}",
        f"the paper's formula, for its Table III alone: {result['paper_formula']['energy_j']:.2g} J",
    ]
    table.caption = "\n".join(notes)
    return table


def _short(count: float) -> str:
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= unit:
            return f"{count / unit:.3g}{name}"
    return f"{count:.3g}"


def _write_report(arguments: list[str]) -> None:
    options = _options(Report, arguments)
    _require(0 <= options.seed < 2**63, "seed", options.seed, f"0 to {2**63 - 1}")
    _require(options.images is None or options.images >= 1, "images", options.images, "at least 1")
    _require(1 <= options.classifier_epochs <= 10_000, "classifier_epochs", options.classifier_epochs, "1 to 10000")
    _require(bool(options.runs), "RUN", "none", "folders of runs")
    _check_inception(options.inception)
    from .. import pretrained
    from ..report import FOLDER, Settings, command_line, report

    _device(options.device)
    first = options.runs[0]
    shipped = pretrained.find(first) is not None
    if options.out is None and not shipped and not first.is_dir():
        raise InputError(f"{first}: no such folder; without --out the report is written into the first RUN's folder")
    out = options.out or (Path(FOLDER) if shipped else first / FOLDER)
    names = [field.name for field in dataclasses.fields(Settings)]
    values = {"out": out} | {name: getattr(options, name) for name in ("data", *names, "device")}
    changed = {name: value for name, value in values.items() if value != getattr(Report, name)}
    written = report(
        options.what,
        options.runs,
        out,
        command=command_line(options.what, options.runs, changed),
        settings=Settings(**{name: getattr(options, name) for name in names}),
        data=options.data,
        device=options.device,
        say=_say,
        track=_track(),
    )
    for path in written:
        print(path)


def _export(arguments: list[str]) -> None:
    options = _options(Export, arguments)
    from ..export import export
    from ..generate import check_out, load_model

    check_out(options.out, (".nir",))
    _check_steps(options.steps)
    loaded = load_model(options.run)
    loaded.model.steps = options.steps or loaded.model.steps
    limits = {"dt": options.dt, "accept": options.accept, "fold": options.fold, "max_matrix": options.max_matrix}
    try:
        export(loaded.model, options.part, options.out, **limits)
    except InputError as error:  # as the option is written here
        raise InputError(re.sub(r"accept=\['(.+?)'\]", r"--accept '\1'", str(error))) from None
    _say(*loaded.notes, f"{options.out}: the {options.part}, from {loaded.source}")


def _load(options: Generate | Reconstruct | Evaluate | Robustness | Classify | Energy) -> Loaded:
    """The model that RUN names, on the device and at the T that the options ask for."""
    _require(0 <= options.seed < 2**63, "seed", options.seed, f"0 to {2**63 - 1}")
    _check_steps(options.steps)
    from ..generate import load_model

    loaded = load_model(options.run, _device(options.device))
    if options.steps is not None:
        loaded.model.steps = options.steps
    return loaded


def _check_inception(path: Path | None) -> None:
    """A file that --inception names has to be the one; what ESVAE_INCEPTION names is measured by where it is."""
    from ..metrics.inception import read_weights

    if path is not None:
        try:
            read_weights(path)
        except InputError as error:
            raise InputError(f"inception: got {error}") from None


def _check_steps(steps: int | None) -> None:
    _require(steps is None or 1 <= steps <= MAX_STEPS, "steps", steps, f"1 to {MAX_STEPS}")


def _data_of(loaded: Loaded, options: Reconstruct | Evaluate | Robustness | Classify | Energy) -> str:
    name = options.data or loaded.data
    if name is None:
        raise InputError(f"data: {options.run} does not say what the model was trained on; accepted is --data NAME")
    return name


METRICS = {  # in the order of the table: what each says, and its digits
    "fad_paper": ("batch statistics", 4),
    "fad_eval": ("running statistics", 4),
    "fad_own": ("our own feature network", 4),
    "prdc_precision": ("how many look real", 3),
    "prdc_recall": ("how much of the real is drawn", 3),
    "prdc_density": ("how many real ones lie around each", 3),
    "prdc_coverage": ("how many real ones have one near", 3),
    "fid": ("as pytorch-fid, 5000 images", 2),
    "inception_score": ("standard, 5000 images", 3),
}


def metrics_table(result: dict[str, Any]) -> Table:
    """What `evaluate` or `real` returned, for reading; the figure of real training images beside each one."""
    if "prior" in result:
        about = f"{result['data']}, prior {result['prior']}, T = {result['steps']}, {result['precision']}"
        table = Table("", "model", "real images", title=about, title_justify="left")
        if "mse" in result:
            table.add_row(f"mean squared error of {result['images']} test images", f"{result['mse']:.5f}", "")
        kinds = {"": "generated images", "_reconstructions": "reconstructions"}
    else:
        table = Table("", "real images", title=result["data"], title_justify="left")
        kinds = {"_floor": "training images"}
    for metric, (meaning, digits) in METRICS.items():
        for suffix, images in kinds.items():
            keys = dict.fromkeys([metric + suffix, f"{metric}_floor"])
            if all(key in result for key in keys):
                table.add_row(f"{metric} of {images} ({meaning})", *(f"{result[key]:.{digits}f}" for key in keys))
    if "test_fad_paper_256" in result:
        table.add_row("test set against itself (below 0.001)", f"{result['test_fad_paper_256']:.6f}")
    return table


def _require(holds: bool, name: str, got: object, accepted: str) -> None:
    if not holds:
        raise InputError(f"{name}: got {got}, accepted is {accepted}")


def _say(*lines: str) -> None:
    from .. import distributed

    for line in lines if distributed.rank() == 0 else ():
        print(line, file=sys.stderr)


def _track() -> Any:
    from rich.progress import track

    from .. import distributed

    console = Console(stderr=True)
    shown = console.is_terminal and distributed.rank() == 0
    return partial(track, console=console, transient=True, disable=not shown)


def _device(name: str) -> torch.device:
    import torch

    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # which what is not really there, "meta", has none of
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
        why = str(error).partition(". ")[0]  # torch goes on with tables of all that it has
        raise InputError(f"device: got {name!r:.80}, which this machine or torch cannot use: {why:.300}") from None
    import esvae_kernels

    esvae_kernels.backends.pick(device)  # one that is forced and cannot run there is told before any work
    return device


# ----------------------------------------------------------------------------------------------------------- training


def _train(arguments: list[str]) -> None:
    default = _train_defaults(arguments)
    try:
        options = _options(Train, arguments, default=default)
    except InputError as error:
        raise InputError(_kind_to_blame(str(error), arguments, default.config)) from None
    _require(options.checkpoint_minutes >= 0, "checkpoint_minutes", options.checkpoint_minutes, "0 or above")
    from .. import distributed

    with distributed.processes(options.device) as device:
        _train_on(_device(device), options, arguments)


def _train_on(device: torch.device, options: Train, arguments: list[str]) -> None:
    from .. import distributed
    from ..checkpoint import read_json
    from ..data.folder import BACKGROUND
    from ..train import EVALUATION, SAMPLES, load_sets, train

    config = options.config
    given = {argument.partition("=")[0].replace("_", "-") for argument in arguments}
    if options.data_background is not None:
        _require(config.data.startswith(FOLDER), "data_background", options.data_background, "one with folder:PATH")
        path = config.data.partition(BACKGROUND)[0]
        config = dataclasses.replace(config, data=f"{path}{BACKGROUND}{options.data_background}")
    if "--train.epochs" in given and "--train.min-steps" not in given and not options.resume:
        config = dataclasses.replace(config, train=dataclasses.replace(config.train, min_steps=0))
    sets = distributed.in_turn(lambda: load_sets(config, options.download))
    if config.data.startswith(FOLDER) and "--model.channels" not in given:
        channels = sets["train"].pixels.shape[1]
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, channels=channels))
    run = train(
        config,
        options.out,
        sets=sets,
        resume=options.resume,
        device=device,
        checkpoint_minutes=options.checkpoint_minutes,
        graphs=options.graphs,
        progress=not options.quiet,
    )
    _say(f"{run.folder}: done; look at {run.folder / SAMPLES}; the model and its card are in {run.folder / 'model'}")
    if distributed.rank() == 0:
        found = read_json(run.folder / EVALUATION, "what was measured at the end of a run")
        if "mse" in found:
            print(
                f"mse {found['mse']:.6f} of {found['test_images']:,} test images; the mean training image's is "
                f"{found['mean_image_mse']:.6f}"
            )


def _kind_to_blame(message: str, arguments: list[str], config: Config) -> str:
    """On an option that the preset sets and the kind on the command line has not: it is the kind that was typed."""
    name, kind = message.partition(": got ")[0], re.search(r"kind '(\w+)' (?:has no|knows no) .*$", message)
    if kind is None or kind[1] == config.model.kind or typed(name, arguments):
        return message
    presets = [f"--preset {name}" for name in PRESETS if preset(name, config.data).model.kind == kind[1]]
    accepted = f"{config.model.kind!r} with preset {config.preset}, which sets {option_of(name)}"
    return f"kind: got {kind[1]!r}, accepted is {accepted}; kind {kind[1]!r} is that of {' and of '.join(presets)}"


def _train_defaults(arguments: list[str]) -> Train:
    """What every option starts from: the run's own config with --resume, else the preset for the data set."""
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    early.add_argument("--preset", default="best")
    early.add_argument("--data", default="fashion-mnist")
    early.add_argument("--out")
    early.add_argument("--resume", action="store_true")
    try:
        known, _ = early.parse_known_args(arguments)
    except argparse.ArgumentError as error:
        raise InputError(f"{error.argument_name}: {error.message}") from None
    if known.resume and known.out:
        from ..generate import run_config
        from ..runs import Run

        config = run_config(Run.open(known.out))
    else:
        config = preset(known.preset, known.data)
    return Train(out=tyro.MISSING, config=config)


def demo_config(epochs: int | None = None) -> Config:
    """`best`, smaller: what two cores train in about four minutes (measured on two of an AMD EPYC, Zen 3)."""
    config = preset("best", "digits")
    model = dataclasses.replace(config.model, latent=64)
    epochs = 15 if epochs is None else epochs
    time_steps = f"{epochs - 2}/{epochs}@4,2/{epochs}@8" if epochs > 2 else ""
    changes = {"epochs": epochs, "min_steps": 0, "batch_size": 32, "time_steps": time_steps, "ema": 0.99}
    train = dataclasses.replace(config.train, **changes)
    return dataclasses.replace(config, model=model, train=train)


def _demo(arguments: list[str]) -> None:
    options = _options(Demo, arguments)
    _require(options.train or options.epochs is None, "epochs", options.epochs, "a number with --train alone")
    device = _device(options.device)
    if options.train:
        _demo_of_training(options, device)
    else:
        _demo_of_the_trained(_demo_folder(options.out)[0], device)


def _demo_of_training(options: Demo, device: torch.device) -> None:
    from .. import data
    from ..evaluate import evaluate
    from ..generate import load_model
    from ..train import train

    config = demo_config(options.epochs)
    folder, resume = _demo_folder(options.out, config)
    _say(f"training on digits for {config.train.epochs} epochs, into {folder}")
    train(config, folder, resume=resume, device=device)
    model = load_model(folder, device).model
    _demo_grids(model, folder, data.normalize(data.load("digits", "test").pixels[:32]))
    result = evaluate(model, "digits", prior=model.default_prior, track=_track())
    Console().print(metrics_table(result))
    _demo_end(folder, "reconstructions.png", "learning-curve.png")


def _demo_of_the_trained(folder: Path, device: torch.device) -> None:
    import torch

    from .. import data, pretrained
    from ..checkpoint import read_json
    from ..data.images import resize_all
    from ..generate import load_model
    from ..runs import make_folder

    model = load_model(DEMO_MODEL, device).model
    measured = read_json(pretrained.FOLDER / DEMO_MODEL / pretrained.EVALUATION, "what was measured on the model")
    images = torch.from_numpy(resize_all(pretrained.test_images(DEMO_MODEL), model.config.size))
    make_folder(folder)
    found = _demo_grids(model, folder, data.normalize(images))
    Console().print(demo_table(found, measured))
    _demo_end(folder, "reconstructions.png")


def _demo_end(folder: Path, *others: str) -> None:
    print(*(folder / name for name in (*others, DEMO_DONE)), sep="\n")
    print(
        f"next: open {folder / DEMO_DONE}; then train on images of your own:\n"
        "esvae train --data folder:PATH --out runs/mine"
    )


def _demo_grids(model: Model, folder: Path, originals: Tensor) -> dict[str, Any]:
    """Reconstructions of images (N, C, H, W) in [-1, 1], and samples, as two grids; what they say of the model."""
    import torch

    from .. import figures
    from ..evaluate import device_of, generated, reconstructions

    there = originals.to(device_of(model))
    start = time.perf_counter()
    again = next(reconstructions(model, [there])).cpu()
    middle = time.perf_counter()
    samples = generated(model, DEMO_SAMPLES)
    end = time.perf_counter()
    with torch.no_grad():
        rate = model.encode(there).mean().item()
    grids = {
        "reconstructions.png": figures.reconstruction_grid(originals, again, columns=16),
        DEMO_DONE: figures.image_grid(samples, columns=16),
    }
    for name, grid in grids.items():
        figures.save_image(grid, folder / name)
    return {
        "images": len(originals),
        "mse": (originals - again).square().mean().item(),
        "firing_rate": rate,
        "reconstruct_seconds": (middle - start) / len(originals),
        "generate_seconds": (end - middle) / DEMO_SAMPLES,
    }


def demo_table(found: dict[str, Any], measured: dict[str, Any]) -> Table:
    """What the demo found on its images, beside what was measured on the model when it was trained."""
    figures = next(iter(measured["evaluate"].values()))  # of the prior that it draws from
    energy = measured["energy"]
    (latent,) = [layer for layer in energy["encode"]["layers"] if layer["name"] == "to_latent"]
    table = Table("", f"here, {found['images']} images", "measured when it was trained", caption_justify="left")
    table.add_row("MSE of reconstructions", f"{found['mse']:.4f}", f"{figures['mse']:.4f}")
    table.add_row("firing rate, latent neurons", f"{found['firing_rate']:.3f}", f"{latent['firing_rate']:.3f}")
    table.add_row("seconds per reconstruction", f"{found['reconstruct_seconds']:.4f}")
    table.add_row("seconds per drawn image", f"{found['generate_seconds']:.4f}")
    table.add_row("FAD of drawn images", "", f"{figures['fad_paper']:.2f}")
    table.add_row("FAD of real images", "", f"{figures['fad_paper_floor']:.2f}")
    spent = energy["generate"]
    table.add_row("energy per drawn image", "", f"{spent['energy_uj']:.1f} µJ")
    table.add_row("with updates of neurons", "", f"{spent['energy_uj'] + spent['neuron_updates_uj']:.1f} µJ")
    table.add_row("energy without spikes", "", f"{spent['twin_energy_uj']:.1f} µJ")
    table.caption = (
        f"Measured {measured['date']}: MSE, on the scale of -1 to 1, of {figures['images']:,} test images, rate and"
        f" energy of {energy['images']:,}, FAD of {figures['generated']:,}."
    )
    return table


def _demo_folder(out: Path, config: Config | None = None) -> tuple[Path, bool]:
    """Where a demo goes, and whether it goes on with a training of `config` that was interrupted; what else is there is
    left alone."""
    from ..generate import run_config
    from ..runs import CONFIG, Run

    folder, number = out, 1
    while (folder / CONFIG).exists() or (folder / DEMO_DONE).exists():
        if not (folder / DEMO_DONE).exists() and run_config(Run.open(folder)) == config:
            return folder, True
        number += 1
        folder = out.with_name(f"{out.name}-{number}")
    return folder, False


RUN = {
    "demo": _demo,
    "train": _train,
    "generate": _generate,
    "reconstruct": _reconstruct,
    "evaluate": _evaluate,
    "robustness": _robustness,
    "classify": _classify,
    "energy": _energy,
    "report": _write_report,
    "export": _export,
}
SHARED = ("train", "evaluate")  # by the processes of torchrun
