"""What runs here, and why the rest does not: `python -m esvae_kernels.info`, for the first lines of a bug report."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import sys
from collections.abc import Iterable
from pathlib import Path

import torch

from . import native
from .backends import forced, why_not

LIBRARIES = ("spikingjelly", "snntorch", "norse", "sinabs", "nir", "nirtorch")  # what `dropin` is for


def lines() -> list[tuple[str, str]]:
    """(label, text) of versions, the compiled module, the backends, threads, GPUs and the libraries of `dropin`."""
    return [
        ("esvae_kernels", f"{native.package_version()}, {Path(__file__).parent}"),
        ("Python", f"{platform.python_version()} {platform.python_implementation()}, {sys.executable}"),
        ("system", platform.platform()),
        ("torch", f"{torch.__version__}, {_build()}"),
        *((name, version or "missing") for name, version in versions(("numpy", "triton")).items()),
        ("compiled module", _compiled()),
        *((f"backend {name}", "runs" if why is None else f"cannot run: {why}") for name, why in why_not().items()),
        ("backend in use", _in_use()),
        ("threads", _threads()),
        ("GPUs", _gpus()),
        *((name, version) for name, version in versions(LIBRARIES).items() if version),
    ]


def versions(names: Iterable[str]) -> dict[str, str | None]:
    """The installed version of each package, None where it is missing."""
    found: dict[str, str | None] = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def _build() -> str:
    for name, version in (("CUDA", torch.version.cuda), ("ROCm", torch.version.hip)):
        if version:
            return f"built for {name} {version}"
    return "built without CUDA and ROCm"


def _compiled() -> str:
    if native.module is None:
        return native.why_missing
    widths = ", ".join(native.module.isas())
    return f"{native.module.__file__}, vector width {native.module.isa()} of {widths}"


def _in_use() -> str:
    try:
        return forced() or "on each device the fastest that runs"
    except ValueError as error:
        return str(error)


def _threads() -> str:
    one = native.module.why_one_thread if native.module else ""
    return f"{torch.get_num_threads()} of torch" + (f"; the kernels have one: {one}" if one else "")


def _gpus() -> str:
    if not torch.cuda.is_available():
        return "torch sees none"
    found = [torch.cuda.get_device_properties(k) for k in range(torch.cuda.device_count())]
    return ", ".join(f"{gpu.name} (capability {gpu.major}.{gpu.minor})" for gpu in found)


def show(pairs: list[tuple[str, str]], as_json: bool = False) -> str:
    """The pairs as aligned lines, or as one JSON object."""
    if as_json:
        return json.dumps(dict(pairs), indent=2)
    width = max(len(label) for label, _ in pairs)
    return "\n".join(f"{label + ':':{width + 1}} {text}" for label, text in pairs)


if __name__ == "__main__":
    print(show(lines()))
