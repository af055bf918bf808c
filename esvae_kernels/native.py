"""Loads the compiled module `_esvae_kernels` and holds what its callers share."""

from __future__ import annotations

import ctypes
import importlib.metadata
from collections.abc import Callable
from functools import cache
from pathlib import Path
from struct import Struct
from types import ModuleType
from typing import Any, NamedTuple

import torch  # first: the module then shares torch's OpenMP threads instead of starting its own
from torch import Tensor

DTYPES = {torch.float64: 0, torch.float32: 1, torch.bfloat16: 2, torch.float16: 3}  # esvae::DType
OUT_DTYPES = DTYPES | {torch.uint8: 4}  # what spikes can be stored as
SERIAL_BELOW = 1 << 15  # elements under which starting threads costs more than it saves


def package_version() -> str:
    try:
        return importlib.metadata.version("esvae")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _load() -> tuple[ModuleType | None, str]:
    try:
        import _esvae_kernels as module
    except ImportError as error:
        note = Path(__file__).with_name("not_built.txt")  # setup.py's, where it could not build the module
        if note.exists():
            return None, f"the compiled module could not be built: {note.read_text(encoding='utf-8').strip()}"
        return None, f"the compiled module is missing ({error}); `pip install .` builds it"
    built, package = module.__version__, package_version()
    if built != package:
        return None, f"the compiled module is of version {built}, the package of {package}; `pip install .` again"
    return module, ""


module, why_missing = _load()


def why_not_cpu(device: str) -> str | None:
    return why_missing or (None if device == "cpu" else f"it takes tensors on the CPU, this one is on {device}")


def why_not_cuda(device: str) -> str | None:
    if why_missing:
        return why_missing
    cuda = getattr(module, "cuda", None)
    if cuda is None:
        return f"the compiled module has no CUDA kernels: {module.why_no_cuda}"  # type: ignore[union-attr]
    if device != ("cpu" if cuda.emulated else "cuda"):
        return f"it takes tensors on a GPU, this one is on {device}"
    if not cuda.emulated and not torch.cuda.is_available():
        return "torch sees no GPU"
    return cuda.why_not() or None


class _Function(NamedTuple):
    """A function of the compiled module, and how its one argument is packed (csrc/bindings.h)."""

    run: Callable[[bytes], Any]
    home: str  # the type of device whose tensors it takes
    pack: Callable[..., bytes]  # the values in order
    at: dict[str, int]  # a name's place in that order
    null: dict[str, int]  # every address, as it is where a call does not name it


@cache
def _function(backend: str, name: str) -> _Function:
    homes = {"cpu": (module, "cpu")}
    if cuda := getattr(module, "cuda", None):
        homes["cuda"] = (cuda, "cpu" if cuda.emulated else "cuda")  # tests emulate a GPU on host memory
    compiled, home = homes[backend]
    form, names = compiled.layouts[name]  # type: ignore[union-attr]
    null = {name: 0 for name, code in zip(names, form[1:], strict=True) if code == "Q"}
    at = {name: k for k, name in enumerate(names)}
    return _Function(getattr(compiled, name), home, Struct(form).pack, at, null)


def in_order(backend: str, function: str, values: dict[str, Any]) -> list[Any]:
    """The values of a call in the order in which they are packed. `values`: by the names of csrc/calls.h; an address
    that is not among them is null, the place the first GPU or one thread."""
    f = _function(backend, function)
    every = f.null | values | {"threads": 1, "device": 0, "stream": 0}
    if every.keys() != f.at.keys():
        raise TypeError(f"{function}: unknown or missing: {', '.join(sorted(every.keys() ^ f.at.keys()))}")
    return [every[name] for name in f.at]


def call(
    function: str,
    backend: str,
    tensor: Tensor,
    work: int,
    values: dict[str, Any],
    rest: list[Any] | None = None,
) -> Any:
    """Calls a function of the compiled module: on `cpu` with torch's threads for `work` elements, on `cuda` on the
    tensor's device, in torch's current stream. `rest`: of `in_order`, what `values` changes a part of; it is kept."""
    f = _function(backend, function)
    device, at = tensor.device, f.at
    if device.type != f.home:
        raise RuntimeError(f"{function}: got a tensor on {device}, the backend {backend!r} takes those on {f.home}")
    if rest is None:
        packed = in_order(backend, function, values)
    else:
        packed = rest.copy()
        for name, value in values.items():
            packed[at[name]] = value
    if f.home == "cpu":
        packed[at["threads"]] = threads(work)
        return f.run(f.pack(*packed))
    with torch.cuda.device(device):
        packed[at["device"]], packed[at["stream"]] = device.index, torch.cuda.current_stream().cuda_stream
        return f.run(f.pack(*packed))


def address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def threads(work: int) -> int:
    """Torch's thread count, or 1 where `work` elements are too few to share."""
    return torch.get_num_threads() if work >= SERIAL_BELOW else 1


def tune_allocator() -> bool:
    """Lets glibc keep freed memory instead of returning it to the system after every large tensor.

    Fresh pages cost more than the bytes that a kernel moves (the README has figures). It holds for the whole process
    and is never done at import. Returns whether it was done (False where the C library is not glibc).
    """
    m_trim_threshold, m_mmap_threshold, m_mmap_max = -1, -3, -4
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    kept = bool(mallopt(m_mmap_threshold, 1 << 30)) or bool(mallopt(m_mmap_max, 0))  # older glibc caps the first
    return bool(mallopt(m_trim_threshold, (1 << 31) - 1)) and kept
