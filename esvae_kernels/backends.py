"""Which backends there are, and which one runs. The only reader of `ESVAE_BACKEND`.

A new backend: a file per room under `ops/`, and a row in `_WHY_NOT` and `_ORDER`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

from . import native

# Per backend: None if it can run on that device type, else the reason why not, in words.
_WHY_NOT: dict[str, Callable[[str], str | None]] = {
    "reference": lambda device: None,
    "cpu": lambda device: (
        native.why_missing or (None if device == "cpu" else f"it takes tensors on the CPU, this one is on {device}")
    ),
}
_ORDER = {"cpu": ("cpu", "reference")}  # by device type, the fastest first; elsewhere the reference
_forced: ContextVar[str | None] = ContextVar("esvae_backend", default=None)


def available_backends() -> list[str]:
    """The backends that can run in this process, e.g. `["reference", "cpu"]`."""
    return [name for name, why_not in _WHY_NOT.items() if why_not(name if name != "reference" else "cpu") is None]


def _checked(name: str, source: str) -> str:
    if name not in _WHY_NOT:
        raise ValueError(f"{source}: got {name!r}, accepted are {', '.join(_WHY_NOT)}")
    return name


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Forces a backend within a `with` block; an op raises there if it cannot run. Overrides `ESVAE_BACKEND`."""
    token = _forced.set(_checked(name, "use_backend"))
    try:
        yield
    finally:
        _forced.reset(token)


def pick(device: torch.device) -> str:
    """The backend for a tensor on `device`: the forced one, else the fastest that runs."""
    forced = _forced.get()
    if forced is None and (name := os.environ.get("ESVAE_BACKEND")):
        forced = _checked(name, "ESVAE_BACKEND")
    if forced is None:
        return next(name for name in _ORDER.get(device.type, ("reference",)) if _WHY_NOT[name](device.type) is None)
    if why := _WHY_NOT[forced](device.type):
        raise RuntimeError(f"backend {forced!r} was asked for but cannot run: {why}")
    return forced
