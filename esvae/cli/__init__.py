"""The command line, `esvae COMMAND`: what is said without a command, and how each one ends.

A mistake is one line on stderr and exit code 2. The commands are in `commands`, imported where one is run: help and
version need Python alone, and `info` needs no extra.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence

from ..errors import InputError, TellsRankZero
from ..extras import PACKAGE, MissingExtra, installed, needed

COMMANDS = {  # in the order of the overview
    "demo": "draw images from the shipped model, or train a small one on digits; needs no data",
    "train": "train on a data set, or go on with an interrupted training",
    "generate": "draw images from a trained model",
    "reconstruct": "show test images beside their reconstructions",
    "evaluate": "measure the reconstruction error and the distance of generated images from real ones",
    "robustness": "measure reconstructions from latent spikes that are shuffled, flipped or noisy",
    "classify": "measure how much of the image's class the encoder keeps",
    "energy": "count operations and energy per image, beside the same network without spikes",
    "report": "the paper's tables and figures from trained runs",
    "export": "write encoder or decoder as a NIR graph, for other simulators and neuromorphic chips",
    "info": "versions, backends, data and caches: the first thing a bug report contains",
}
LESS_MEMORY = {  # the options of each command that it takes memory by
    "train": "a smaller --train.batch-size, --model.steps or --model.latent",
    "generate": "a smaller --n or --steps",
    "reconstruct": "a smaller --n or --steps",
    "evaluate": "a smaller --steps",
    "robustness": "a smaller --n or --steps",
    "classify": "a smaller --steps",
    "energy": "a smaller --n or --steps",
    "report": "a smaller --images, or fewer runs,",
    "export": "a smaller --max-matrix",
}
CALLED = {"name": ("data", "real"), "probabilities": ("a",)}  # arguments in Python that options call otherwise
LISTED = "\n".join(f"  {name:<12} {what}" for name, what in COMMANDS.items())
OVERVIEW = f"""usage: esvae COMMAND [OPTIONS]

The Efficient Spiking Variational Autoencoder (arXiv 2310.14839).

{LISTED}

`esvae COMMAND --help` explains every option; `esvae --version` prints the version.

  esvae generate fashion-mnist --n 64 --out samples.png       the shipped model
  esvae train --data folder:pictures --out runs/mine            your own images
  esvae evaluate runs/fashion --json

train and evaluate run on several devices as `torchrun --nproc-per-node N -m esvae train ...`.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0, 2 after a mistake, 130 after Ctrl-C."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(OVERVIEW, end="")
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(PACKAGE, installed(PACKAGE) or "unknown")
        return 0
    command, *rest = arguments
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _warn
            _run(command, rest)
    except TellsRankZero:
        return 2
    except (InputError, MissingExtra) as error:
        return _fail(_as_typed(str(error), rest, command))
    except BrokenPipeError:  # the reader, `head` say, has what it wanted
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - for the interpreter's last flush
        return 0
    except (MemoryError, RuntimeError, ValueError) as error:
        if _is_out_of_memory(error):
            less = LESS_MEMORY.get(command)
            return _fail(f"out of memory{f': {less} takes less' if less else ''}")
        if not _is_refused_by_a_kernel(error):
            raise
        return _fail(_as_typed(str(error), rest, command))
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _fail(f"{where}{error.strerror or error}")
    except KeyboardInterrupt:
        again = {"train": "; `esvae train --resume` with the same --out goes on"}
        if "--train" in rest:
            again["demo"] = "; `esvae demo` with the same options goes on"
        return _fail(f"interrupted{again.get(command, '')}", 130)
    return 0


def _run(command: str, arguments: list[str]) -> None:
    if command not in COMMANDS:
        raise InputError(f"command: got {command!r}, accepted are {', '.join(COMMANDS)}")
    if command == "info":
        from .info import info

        return info(arguments)
    with needed("model"):
        from .commands import RUN

        RUN[command](arguments)


def _is_out_of_memory(error: Exception) -> bool:
    """torch has a class for it on a GPU alone."""
    known = isinstance(error, MemoryError)
    if "torch" in sys.modules:
        import torch

        known = known or isinstance(error, torch.OutOfMemoryError)
    return known or "can't allocate memory" in str(error) or "not enough memory" in str(error)


def _is_refused_by_a_kernel(error: Exception) -> bool:
    """Whether a check of esvae_kernels raised it, of an argument ("decay: got ...") or of the backend that was asked
    for. What torch or Python raises in the frame of a kernel is a mistake of ours, and keeps its traceback."""
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    module = last.tb_frame.f_globals.get("__name__", "") if last else ""
    if isinstance(error, RuntimeError):
        return module == "esvae_kernels.backends"
    return module.partition(".")[0] == "esvae_kernels" and ": got " in str(error)


def _as_typed(message: str, arguments: list[str], command: str) -> str:
    """A message on an option begins with the option as it was typed: `--model.latent: got 0`, not `latent: got 0`; on
    one of `train` that was not, with the option that it can be typed as."""
    name = message.partition(": got ")[0]
    option = typed(name, arguments)
    if option is None and command == "train" and name != message:
        from ..config import option_of

        option = option_of(name)
    return message if option is None else option + message[len(name) :]


def typed(name: str, arguments: Sequence[str]) -> str | None:
    """The option that stands for an argument called `name` in Python, as it was typed; None where it was not."""
    names = (name, *CALLED.get(name, ()))
    for argument in arguments:
        option = argument.partition("=")[0]
        known = option.removeprefix("--").replace("-", "_")
        if option.startswith("--") and (known in names or known.rpartition(".")[2] in names):
            return option
    return None


def _warn(message: Warning | str, *where: object, **options: object) -> None:
    """In the place of `warnings.showwarning`, which adds a line of source."""
    print(f"esvae: warning: {' '.join(str(message).split())}", file=sys.stderr)


def _fail(message: str, code: int = 2) -> int:
    print(f"esvae: error: {' '.join(message.split())}", file=sys.stderr)
    return code
