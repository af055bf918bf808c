"""Loads the compiled module `_esvae_kernels` and holds what its callers share."""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
from collections.abc import Callable, Mapping, Sequence
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
    if width := os.environ.get("ESVAE_ISA"):
        try:
            module.set_isa(width)
        except ValueError as error:
            raise ValueError(f"ESVAE_ISA: {str(error).removeprefix('isa: ')}") from None
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


def in_order(backend: str, function: str, values: Mapping[str, Any]) -> list[Any]:
    """The values of a call in the order in which they are packed. `values`: by the names of csrc/calls.h; an address
    that is not among them is null, the place the first GPU or one thread."""
    f = _function(backend, function)
    every = f.null | dict(values) | {"threads": 1, "device": 0, "stream": 0}
    if every.keys() != f.at.keys():
        raise TypeError(f"{function}: unknown or missing: {', '.join(sorted(every.keys() ^ f.at.keys()))}")
    return [every[name] for name in f.at]


class Call:
    """A function of the compiled module with all that its calls share: they add addresses, and few numbers.

    It runs on `cpu` with torch's threads for `work` elements, on `cuda` on `device`, in torch's current stream. To pack
    46 values by their names takes 5 us, to change some in a row of them 1.
    """

    def __init__(
        self,
        function: str,
        backend: str,
        device: torch.device,
        work: int,
        values: Mapping[str, Any],
        tensors: Sequence[str] = (),
    ) -> None:
        """`values`: see `in_order`. `tensors`: the names of the addresses that a call adds, in its order."""
        f = _function(backend, function)
        if device.type != f.home:
            raise RuntimeError(f"{function}: got a tensor on {device}, the backend {backend!r} takes those on {f.home}")
        self._run, self._pack, self._at = f.run, f.pack, f.at
        self._row = in_order(backend, function, values)
        self._places = [f.at[name] for name in tensors]
        self._device, self._shared = device, work >= SERIAL_BELOW

    def __call__(self, tensors: Sequence[Tensor | None] = (), values: Mapping[str, Any] | None = None) -> Any:
        """`tensors`: in the order of their names; None is null. `values`: of this call alone."""
        row = self._row.copy()
        for place, tensor in zip(self._places, tensors, strict=True):
            if tensor is not None:
                row[place] = tensor.data_ptr()
        if values:
            for name, value in values.items():
                row[self._at[name]] = value
        if self._device.type == "cpu":
            if self._shared:
                row[self._at["threads"]] = torch.get_num_threads()
            return self._run(self._pack(*row))
        with torch.cuda.device(self._device):
            row[self._at["device"]] = self._device.index
            row[self._at["stream"]] = torch.cuda.current_stream().cuda_stream
            return self._run(self._pack(*row))


def call(function: str, backend: str, tensor: Tensor, work: int, values: Mapping[str, Any]) -> Any:
    """One call of it, with nothing kept, where `tensor` is."""
    return Call(function, backend, tensor.device, work, values)()


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
