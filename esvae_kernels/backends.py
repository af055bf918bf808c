"""Which backends there are, and which one runs. The only reader of `ESVAE_BACKEND`.

A new backend: a file per room under `ops/`, and a row in `_BACKENDS` and `_ORDER`.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import NamedTuple

import torch

from . import native


@cache
def _triton(device: str) -> str | None:
    if find_spec("triton") is None:
        return "Triton is missing; `pip install triton`"
    from triton import knobs

    if knobs.runtime.interpret:  # TRITON_INTERPRET=1: the kernels run in Python, on any device
        return None
    if device != "cuda":
        return f"it takes tensors on a GPU, this one is on {device}"
    return None if torch.cuda.is_available() else "torch sees no GPU"


class _Backend(NamedTuple):
    file: str  # in each room
    home: str  # the type of device that it is for
    why_not: Callable[[str], str | None]  # None if it can run on that type of device, else the reason, in words


_BACKENDS = {
    "reference": _Backend("reference", "cpu", lambda device: None),
    "cpu": _Backend("native", "cpu", native.why_not_cpu),
    "triton": _Backend("triton", "cuda", _triton),
    "cuda": _Backend("native", "cuda", native.why_not_cuda),
}
# By device type, the fastest first; elsewhere the reference.
_ORDER = {"cpu": ("cpu", "reference"), "cuda": ("triton", "cuda", "reference")}
# The innermost last. Of the process, not of a thread: autograd runs a GPU's backward in a thread of its own.
_forced: list[str] = []


def available_backends() -> list[str]:
    """The backends that can run in this process, e.g. `["reference", "cpu"]`."""
    return [name for name, why in why_not().items() if why is None]


def why_not() -> dict[str, str | None]:
    """For every backend why it cannot run in this process; None where it can."""
    return {name: backend.why_not(backend.home) for name, backend in _BACKENDS.items()}


def _checked(name: str, source: str) -> str:
    if name not in _BACKENDS:
        raise ValueError(f"{source}: got {name!r}, accepted are {', '.join(_BACKENDS)}")
    return name


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Forces a backend within a `with` block, in all threads; an op raises there if it cannot run. Overrides
    `ESVAE_BACKEND`. A backward that comes behind the block runs on what is picked then, and gives the same."""
    _forced.append(_checked(name, "use_backend"))
    try:
        yield
    finally:
        _forced.pop()


def forced() -> str | None:
    """The backend that `use_backend` forces, or else `ESVAE_BACKEND`; None where the fastest one is to run."""
    if _forced:
        return _forced[-1]
    name = os.environ.get("ESVAE_BACKEND")
    return _checked(name, "ESVAE_BACKEND") if name else None


def pick(device: torch.device) -> str:
    """The backend for a tensor on `device`: the forced one, else the fastest that runs."""
    asked = forced()
    if asked is None:
        order = _ORDER.get(device.type, ("reference",))
        name = next(name for name in order if _BACKENDS[name].why_not(device.type) is None)
        if name == "reference" != order[0]:
            _say_that_it_is_slow(device.type)
        return name
    if why := _BACKENDS[asked].why_not(device.type):
        raise RuntimeError(f"backend {asked!r} was asked for but cannot run: {why}")
    return asked


@cache
def _say_that_it_is_slow(device: str) -> None:
    """Once for each type of device: everything still works, many times slower."""
    reasons = "; ".join(f"{name}: {_BACKENDS[name].why_not(device)}" for name in _ORDER[device][:-1])
    warnings.warn(f"esvae_kernels runs on the slow reference, no other backend can run ({reasons})", stacklevel=2)


def room(package: str, device: torch.device) -> tuple[str, ModuleType | None]:
    """The backend for a tensor on `device`, and the file of an op's room that runs it, whose functions are told the
    backend; None for the reference, which has other arguments."""
    name = pick(device)
    return name, None if name == "reference" else import_module(f"{package}.{_BACKENDS[name].file}")
