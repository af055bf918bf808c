"""Makes a neuron's Triton kernels (printed.py), and launches them."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import stat
import sys
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import triton
from torch import Tensor

from .. import tiles
from ..native import package_version
from .options import Options
from .plan import Plan
from .printed import Printed, printed

_WARPS = 4
_THREADS = 32 * _WARPS


@cache
def _folder() -> Path:
    """Where the source lies that Triton needs in a file: the user's own cache, that nobody else can write to, or where
    that cannot be had a temporary folder of this process."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = base / "esvae_kernels" / "neurons"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
        own = not hasattr(os, "getuid") or found.st_uid == os.getuid()
        if own and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and os.access(folder, os.W_OK):
            return folder
    except OSError:
        pass
    return Path(tempfile.mkdtemp(prefix="esvae_kernels-"))


@cache
def _kernels(o: Options, single: bool) -> tuple[ModuleType, Printed]:
    text = printed(o, single)
    known = f"{package_version()} {triton.__version__}\n{text.text}"
    name = f"neuron_{hashlib.sha256(known.encode()).hexdigest()[:32]}"
    path = _folder() / f"{name}.py"
    if not path.exists() or path.read_text(encoding="utf-8") != text.text:
        handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text.text)
        Path(temporary).replace(path)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None  # noqa: PT018
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module, text


def _arguments(
    plan: Plan, text: Printed, parameters: Sequence[Tensor | None], numbers: Sequence[float], shape: float | None
) -> dict[str, Any]:
    o, graph = plan.options, plan.options.graph
    found: dict[str, Any] = {}
    for name, parameter, number in zip(graph.parameters, parameters, numbers, strict=True):
        count = 1 if parameter is None else parameter.numel()
        inner = 1 if plan.channels_last or count == 1 else max(plan.per_sample() // count, 1)
        found |= {f"number_{name}": number, f"channels_{name}": count, f"inner_{name}": inner}
    found |= {f"start_{name}": 0.0 if isinstance(value, str) else value for name, value in graph.states}
    found |= {f"literal{k}": value for k, value in enumerate(text.literals)}
    found |= {
        "shift": o.shift,
        "shape": o.shape if shape is None else shape,
        "scale": o.scale,
        "steps": plan.steps,
        "size": plan.size(),
        "SURROGATE": o.surrogate,
        "DOUBLE": plan.state_dtype.itemsize == 8,
        "CONSTANT": o.constant,
        "ALIGNED": plan.size() % tiles.VECTOR.value == 0,
    }
    return found


def _launch(kernel: Any, plan: Plan, per_thread: int, arguments: dict[str, Any]) -> None:
    block = _THREADS * per_thread
    tiles.launch(kernel, (triton.cdiv(plan.size(), block),), num_warps=_WARPS, BLOCK=block, **arguments)


def scan(
    plan: Plan,
    inputs: Sequence[Tensor],
    states: Sequence[Tensor | None],
    parameters: Sequence[Tensor | None],
    numbers: Sequence[float],
    weights: Tensor | None,
    shape: float | None,
    results: Sequence[Tensor | None],
) -> None:
    """Fills `results`: outputs, last states, records and, where it is there, what is saved for the backward."""
    module, text = _kernels(plan.options, plan.state_dtype.itemsize == 4)
    arguments = _arguments(plan, text, parameters, numbers, shape)
    arguments |= dict(zip(text.read, (*inputs, *states, *parameters), strict=True))
    arguments |= dict(zip(text.written, results, strict=True))
    saved = results[-1]
    arguments |= {"weights": weights, "stored": 0 if saved is None else saved.shape[1]}
    _launch(module.forward, plan, 16 // plan.x_dtype.itemsize, arguments)


def scan_backward(
    plan: Plan,
    inputs: Sequence[Tensor],
    states: Sequence[Tensor | None],
    parameters: Sequence[Tensor | None],
    numbers: Sequence[float],
    weights: Tensor | None,
    shape: float | None,
    saved: Tensor | None,
    cotangents: Sequence[Tensor | None],
    gradients: Sequence[Tensor | None],
) -> None:
    """Fills `gradients` of inputs, states and, per neuron, parameters, where they are there. `cotangents`: of outputs,
    last states and records."""
    module, text = _kernels(plan.options, plan.state_dtype.itemsize == 4)
    arguments = _arguments(plan, text, parameters, numbers, shape)
    arguments |= dict(zip(text.read, (*inputs, *states, *parameters), strict=True))
    names = [f"d_{name}" for name in (*text.written[:-1], *text.read)]
    arguments |= dict(zip(names, (*cotangents, *gradients), strict=True))
    arguments |= {"saved": saved, "weights": weights, "stored": 0 if saved is None else saved.shape[1]}
    # 8 bytes of each state: those of a span fit in the registers.
    _launch(module.backward, plan, 8 // plan.state_dtype.itemsize, arguments)
