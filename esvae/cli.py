"""The command line: `esvae demo | train | generate | reconstruct | evaluate | export`.

Options are the fields of one dataclass per command. A mistake is one line on stderr and exit code 2.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import itertools
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.table import Table

from .config import Config, preset
from .errors import InputError, TellsRankZero

if TYPE_CHECKING:
    import torch

    from .generate import Loaded

OVERVIEW = """usage: esvae COMMAND [OPTIONS]

The Efficient Spiking Variational Autoencoder (arXiv 2310.14839).

  demo         train on handwritten digits for some minutes and show what comes out; needs no data
  train        train on a data set, or go on with an interrupted training
  generate     draw images from a trained model
  reconstruct  show test images beside their reconstructions
  evaluate     measure the reconstruction error and the distance of generated images from real ones
  export       write encoder or decoder as a NIR graph, for other simulators and neuromorphic chips

`esvae COMMAND --help` explains every option.

  esvae train --preset best --data fashion-mnist --out runs/fashion
  esvae generate runs/fashion --n 64 --out samples.png
  esvae evaluate runs/fashion --json

train and evaluate run on several devices as `torchrun --nproc-per-node N -m esvae train ...`.
"""

Prior = Literal["bottleneck", "mixture"]
Precision = Literal["fp32", "bf16"]
RunFolder = Annotated[Path, tyro.conf.arg(metavar="RUN")]


@dataclass(frozen=True)
class Generate:
    """Draw images from a trained model: image number i of a seed is always the same one.

    Example: esvae generate runs/fashion --n 64 --out samples.png
    """

    run: tyro.conf.Positional[RunFolder]
    """A run's folder, or any folder with model.safetensors and config.json."""
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
    """A run's folder, or any folder with model.safetensors and config.json."""
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
    """Measure a model on the whole test set: the mean squared error of its reconstructions and, for Fashion-MNIST and
    MNIST with the published feature networks in the folder that ESVAE_FAD_DIR names, the Frechet autoencoder distance
    (FAD) of 5,120 generated images, beside that of real training images.

    Example: ESVAE_FAD_DIR=fad esvae evaluate runs/fashion --json
    """

    run: Annotated[Path | None, tyro.conf.arg(metavar="RUN"), tyro.conf.Positional] = None
    """A run's folder, or any folder with model.safetensors and config.json."""
    real: str | None = None
    """Instead of a model: the distances of this data set's real images alone, as a yardstick and a check."""
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
class Export:
    """Write the encoder or the decoder of a trained model as a graph of the Neuromorphic Intermediate Representation
    (NIR), for other simulators and neuromorphic chips. Needs the package `nir`.

    Example: esvae export runs/fashion --accept ">=" --out encoder.nir
    """

    run: tyro.conf.Positional[RunFolder]
    """A run's folder, or any folder with model.safetensors and config.json."""
    part: Literal["encoder", "decoder"] = "encoder"
    """`encoder`: from the image, at every time step, to the latent spikes, whose mean over time is the rate. `decoder`:
    from latent spikes to potentials; the image is tanh of the last ones."""
    out: Path = Path("model.nir")
    """A .nir file."""
    dt: float = 1e-4
    """The time step in seconds."""
    accept: tuple[str, ...] = ()
    """What the model has and NIR cannot say: `>=` (neurons that fire at the threshold), `reset` (soft reset)."""
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

    Examples: esvae train --preset best --data fashion-mnist --out runs/fashion; esvae train --resume --out runs/fashion

    Presets: `paper` (the paper's settings), `official` (the published code's), `best` (ours). Every option below starts
    from the preset for the data set, and its default is shown for the preset and data set on this command line.
    """

    out: Path
    """The run's folder: new or empty, except with --resume."""
    config: Annotated[Config, tyro.conf.arg(name="")] = field(default_factory=Config)
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
    """Train on the handwritten digits that ship with scikit-learn, for about two minutes on two cores; write samples
    and reconstructions, and print what was measured. An interrupted demo goes on when it is called again.

    Example: esvae demo --out demo
    """

    out: Path = Path("demo")
    """The folder; where it holds a finished demo, one with a number behind its name is taken."""
    epochs: int | None = None
    """Passes over the training images; by default as many as fit the two minutes."""
    device: str = "cpu"
    """`cpu`, `cuda`, ..."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0, 2 after a mistake, 130 after Ctrl-C."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(OVERVIEW, end="")
        return 0 if arguments else 2
    command, *rest = arguments
    try:
        if command not in COMMANDS:
            raise InputError(f"command: got {command!r}, accepted are {', '.join(COMMANDS)}")
        import esvae_kernels

        from . import distributed

        if command not in SHARED and distributed.launched() > 1:
            raise InputError(f"command: got {command!r} under torchrun, accepted there are {', '.join(SHARED)}")
        esvae_kernels.tune_allocator()
        COMMANDS[command](rest)
    except InputError as error:
        return 2 if isinstance(error, TellsRankZero) else _fail(str(error))
    except BrokenPipeError:  # the reader, `head` say, has what it wanted
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - for the interpreter's last flush
        return 0
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _fail(f"{where}{error.strerror or error}")
    except KeyboardInterrupt:
        again = {"train": "; `esvae train --resume` with the same --out goes on", "demo": "; `esvae demo` goes on"}
        return _fail(f"interrupted{again.get(command, '')}", 130)
    return 0


def _fail(message: str, code: int = 2) -> int:
    print(f"esvae: error: {' '.join(message.split())}", file=sys.stderr)
    return code


def _options(command: type, arguments: list[str], **defaults: Any) -> Any:
    """The command's dataclass from its arguments; what does not parse is an InputError, `--help` ends the program."""
    name, printed = f"esvae {command.__name__.lower()}", io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            return tyro.cli(command, prog=name, args=arguments, **defaults)
    except SystemExit as stop:
        if not stop.code:
            raise
        # A box: title, message, a line, hints.
        lines = [line.strip("│ ") for line in printed.getvalue().splitlines() if not line.startswith(("╭", "╰"))]
        message = itertools.takewhile(lambda line: not line.startswith("──"), lines)
        raise InputError(f"{' '.join(message)}; see {name} --help") from None


# ----------------------------------------------------------------------------------------------------------- commands


def _generate(arguments: list[str]) -> None:
    options = _options(Generate, arguments)
    from .evaluate import generated
    from .generate import MAX_IMAGES, check_out, choose_prior, write_images

    _require(1 <= options.n <= MAX_IMAGES, "n", options.n, f"1 to {MAX_IMAGES}")
    _require(options.columns >= 1, "columns", options.columns, "at least 1")
    check_out(options.out, (".png", ".npz", ""))
    loaded = _load(options)
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
    from . import figures
    from .data import normalize
    from .evaluate import BATCH, load_for, reconstructions
    from .generate import check_out

    check_out(options.out, (".png",))
    _require(options.columns >= 1, "columns", options.columns, "at least 1")
    loaded = _load(options)
    name = _data_of(loaded, options)
    images = load_for(loaded.model, name, "test", options.download)
    _require(1 <= options.n <= len(images), "n", options.n, f"1 to {len(images)}, the test images of {name}")
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
    from . import distributed

    with distributed.processes(options.device) as device:
        result = _measure(dataclasses.replace(options, device=device))
        if distributed.rank() == 0:
            if options.json:
                print(json.dumps(result, allow_nan=False))
            else:
                Console().print(metrics_table(result))


def _measure(options: Evaluate) -> dict[str, Any]:
    from . import distributed
    from .evaluate import evaluate, find_reference, real
    from .generate import choose_prior

    if options.real is not None:
        result = distributed.first(lambda: real(options.real, options.download))
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
        )
        if not result["generated"]:
            _say(find_reference(name)[1] or f"no FAD: the feature network of {name} takes images of 32x32 alone")
    return result


def _export(arguments: list[str]) -> None:
    options = _options(Export, arguments)
    from .export import export
    from .generate import check_out, load_model

    check_out(options.out, (".nir",))
    _check_steps(options.steps)
    loaded = load_model(options.run)
    loaded.model.steps = options.steps or loaded.model.steps
    limits = {"dt": options.dt, "accept": options.accept, "fold": options.fold, "max_matrix": options.max_matrix}
    export(loaded.model, options.part, options.out, **limits)
    _say(*loaded.notes, f"{options.out}: the {options.part}, from {loaded.source}")


def _load(options: Generate | Reconstruct | Evaluate) -> Loaded:
    """The model that RUN names, on the device and at the T that the options ask for."""
    _require(0 <= options.seed < 2**63, "seed", options.seed, f"0 to {2**63 - 1}")
    _check_steps(options.steps)
    from .generate import load_model

    loaded = load_model(options.run, _device(options.device))
    if options.steps is not None:
        loaded.model.steps = options.steps
    return loaded


def _check_steps(steps: int | None) -> None:
    _require(steps is None or 1 <= steps <= 1000, "steps", steps, "1 to 1000")


def _data_of(loaded: Loaded, options: Reconstruct | Evaluate) -> str:
    name = options.data or loaded.data
    if name is None:
        raise InputError(f"data: {options.run} does not say what the model was trained on; accepted is --data NAME")
    return name


def metrics_table(result: dict[str, Any]) -> Table:
    """What `evaluate` or `real` returned, for reading; the distance of real images beside each distance."""
    if "mse" in result:
        about = f"{result['data']}, prior {result['prior']}, T = {result['steps']}, {result['precision']}"
        table = Table("", "model", "real images", title=about, title_justify="left")
        table.add_row(f"mean squared error of {result['images']} test images", f"{result['mse']:.5f}", "")
    else:
        table = Table("", "real images", title=result["data"], title_justify="left")
    for mode, meaning in (("paper", "batch statistics"), ("eval", "running statistics")):
        floor = result.get(f"fad_{mode}_floor")
        if floor is None:
            continue
        if "mse" not in result:
            table.add_row(f"fad_{mode} of 5120 training images ({meaning})", f"{floor:.4f}")
            continue
        for key, images in (("", "generated images"), ("_reconstructions", "reconstructions")):
            table.add_row(f"fad_{mode} of {images} ({meaning})", f"{result[f'fad_{mode}{key}']:.4f}", f"{floor:.4f}")
    if "test_fad_paper_256" in result:
        table.add_row("test set against itself (below 0.001)", f"{result['test_fad_paper_256']:.6f}")
    return table


def _require(holds: bool, name: str, got: object, accepted: str) -> None:
    if not holds:
        raise InputError(f"{name}: got {got}, accepted is {accepted}")


def _say(*lines: str) -> None:
    from . import distributed

    for line in lines if distributed.rank() == 0 else ():
        print(line, file=sys.stderr)


def _track() -> Any:
    from rich.progress import track

    from . import distributed

    console = Console(stderr=True)
    shown = console.is_terminal and distributed.rank() == 0
    return partial(track, console=console, transient=True, disable=not shown)


def _device(name: str) -> torch.device:
    import torch

    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(f"device: got {name!r}, which this machine or torch cannot use: {error}") from None
    return device


# ----------------------------------------------------------------------------------------------------------- training


def _train(arguments: list[str]) -> None:
    options = _options(Train, arguments, default=_train_defaults(arguments))
    _require(options.checkpoint_minutes >= 0, "checkpoint_minutes", options.checkpoint_minutes, "0 or above")
    from . import distributed

    with distributed.processes(options.device) as device:
        _train_on(_device(device), options, arguments)


def _train_on(device: torch.device, options: Train, arguments: list[str]) -> None:
    from . import distributed
    from .train import load_sets, train

    config = options.config
    sets = distributed.in_turn(lambda: load_sets(config, options.download))
    given = any(argument.partition("=")[0] == "--model.channels" for argument in arguments)
    if config.data.startswith("folder:") and not given:
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
    _say(f"{run.folder}: done; the model is in {run.folder / 'model'}, grids of every epoch in {run.images}")


def _train_defaults(arguments: list[str]) -> Train:
    """What every option starts from: the run's own config with --resume, else the preset for the data set."""
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    early.add_argument("--preset", default="paper")
    early.add_argument("--data", default="fashion-mnist")
    early.add_argument("--out")
    early.add_argument("--resume", action="store_true")
    try:
        known, _ = early.parse_known_args(arguments)
    except argparse.ArgumentError as error:
        raise InputError(f"{error.argument_name}: {error.message}") from None
    if known.resume and known.out:
        from .generate import run_config
        from .runs import Run

        config = run_config(Run.open(known.out))
    else:
        config = preset(known.preset, known.data)
    return Train(out=tyro.MISSING, config=config)


def demo_config(epochs: int | None = None) -> Config:
    """`best`, smaller: what two cores train in about two minutes."""
    config = preset("best", "digits")
    model = dataclasses.replace(config.model, latent=64, steps=8, mixture_components=20)
    epochs = 20 if epochs is None else epochs
    time_steps = f"{epochs - 2}@4,2@8" if epochs > 2 else ""
    train = dataclasses.replace(config.train, epochs=epochs, batch_size=32, time_steps=time_steps, ema=0.99)
    return dataclasses.replace(config, model=model, train=train)


def _demo(arguments: list[str]) -> None:
    options = _options(Demo, arguments)
    from . import data, figures
    from .evaluate import evaluate, generated, reconstructions
    from .train import train

    config, device = demo_config(options.epochs), _device(options.device)
    folder, resume = _demo_folder(options.out, config)
    _say(f"training on digits for {config.train.epochs} epochs, into {folder}")
    run = train(config, folder, resume=resume, device=device)
    from .generate import load_model

    model = load_model(run.folder, device).model
    originals = data.normalize(data.load("digits", "test").pixels[:32])
    (again,) = reconstructions(model, [originals.to(device)])
    grids = {
        "reconstructions.png": figures.reconstruction_grid(originals, again.cpu(), columns=16),
        "samples.png": figures.image_grid(generated(model, 64), columns=16),
    }
    for name, grid in grids.items():
        figures.save_image(grid, run.folder / name)
    result = evaluate(model, "digits", prior=model.config.prior, track=_track())
    Console().print(metrics_table(result))
    for name in (*grids, "learning-curve.png"):
        print(run.folder / name)


def _demo_folder(out: Path, config: Config) -> tuple[Path, bool]:
    """Where a demo goes, and whether it goes on with one that was interrupted; a finished one is left alone."""
    from .generate import run_config
    from .runs import CONFIG, Run

    folder, number = out, 1
    while (folder / CONFIG).exists():
        if not (folder / "samples.png").exists() and run_config(Run.open(folder)) == config:
            return folder, True
        number += 1
        folder = out.with_name(f"{out.name}-{number}")
    return folder, False


COMMANDS = {
    "demo": _demo,
    "train": _train,
    "generate": _generate,
    "reconstruct": _reconstruct,
    "evaluate": _evaluate,
    "export": _export,
}
SHARED = ("train", "evaluate")  # by the processes of torchrun
