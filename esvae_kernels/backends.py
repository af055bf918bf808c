"""Which backends there are, and which one runs. The only reader of `ESVAE_BACKEND`.

A new backend: a file per room under `ops/`, and a row in `_BACKENDS` and `_ORDER`.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from contextlib import ContextDecorator
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

    if knobs.runtime.interpret:
        return "TRITON_INTERPRET is set, and Triton's interpreter lacks functions that the kernels call"
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
# What `use_backend` forces, the innermost last, is kept in the state that torch has for each thread and that autograd
# takes along into its own threads, where it runs a GPU's backward.
_FORCED = "esvae_kernels.use_backend"


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


class use_backend(ContextDecorator):
    """Forces a backend within a `with` block or a decorated function; an op raises there if it cannot run. Overrides
    `ESVAE_BACKEND`.

    It holds for the thread that enters it, for autograd's threads where `backward` is called in the block, and for
    functions that are compiled and called in it. Blocks nest. A backward that comes behind the block runs on what is
    picked then, and gives the same.

    Raises:
        ValueError: there is no such backend.
        RuntimeError: it is entered within torch.compile, which would keep the choice in the compiled code.
    """

    def __init__(self, name: str) -> None:
        self.name = _checked(name, "use_backend")
        self._entered: list[_Choice] = []

    def __enter__(self) -> None:
        if torch.compiler.is_compiling():
            raise RuntimeError("use_backend: got a call within torch.compile, accepted is one around the compiled call")
        choice = _Choice(self.name)
        self._entered.append(choice)
        torch._C._stash_obj_in_tls(_FORCED, (*_choices(), choice))

    def __exit__(self, *error: object) -> None:
        ended = self._entered.pop()  # this one, also where another was entered later: generators may interleave
        torch._C._stash_obj_in_tls(_FORCED, tuple(choice for choice in _choices() if choice is not ended))


class _Choice:
    """One entry into a block."""

    def __init__(self, name: str) -> None:
        self.name = name


def _choices() -> tuple[_Choice, ...]:
    return torch._C._get_obj_in_tls(_FORCED) if torch._C._is_key_in_tls(_FORCED) else ()


def forced() -> str | None:
    """The backend that `use_backend` forces, or else `ESVAE_BACKEND`; None where the fastest one is to run."""
    if choices := _choices():
        return choices[-1].name
    return environment()


@cache
def environment() -> str | None:
    """`ESVAE_BACKEND`, as it is at the first call: to look it up takes 4 us."""
    name = os.environ.get("ESVAE_BACKEND")
    return _checked(name, "ESVAE_BACKEND") if name else None


def pick(device: torch.device) -> str:
    """The backend for a tensor on `device`: the forced one, else the fastest that runs."""
    return _pick(device.type, forced())


@cache
def _pick(kind: str, asked: str | None) -> str:
    """Kept: what can run stays so in a process, and to ask takes 1 us."""
    if asked is None:
        order = _ORDER.get(kind, ("reference",))
        for name in order:
            if _BACKENDS[name].why_not(kind) is None:
                break
        if name == "reference" != order[0]:
            _say_that_it_is_slow(kind)
        return name
    if why := _BACKENDS[asked].why_not(kind):
        source = "use_backend" if _choices() else "ESVAE_BACKEND"
        raise RuntimeError(f"{source}: got {asked!r}, which cannot run: {why}")
    return asked


def _say_that_it_is_slow(device: str) -> None:
    """Everything still works, many times slower."""
    reasons = "; ".join(f"{name}: {_BACKENDS[name].why_not(device)}" for name in _ORDER[device][:-1])
    warnings.warn(f"esvae_kernels runs on the slow reference, no other backend can run ({reasons})", stacklevel=2)


def room(package: str, device: torch.device) -> tuple[str, ModuleType | None]:
    """The backend for a tensor on `device`, and the file of an op's room that runs it, whose functions are told the
    backend; None for the reference, which has other arguments."""
    name = pick(device)
    return name, _file(package, name)


@cache
def _file(package: str, name: str) -> ModuleType | None:
    return None if name == "reference" else import_module(f"{package}.{_BACKENDS[name].file}")
