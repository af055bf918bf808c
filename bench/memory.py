"""Bytes: what autograd keeps for the backward, what a function adds to the resident memory (on a GPU: to what torch has
allocated there) at its peak, what is left; page faults."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

try:
    import resource
except ImportError:  # not on Windows
    resource = None  # type: ignore[assignment]


def saved_bytes(forward: Callable[[], object]) -> int:
    """Bytes of all storages that autograd keeps for the backward of `forward`."""
    storages = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage  # kept, so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = forward()
    del output
    return sum(storage.nbytes() for storage in storages.values())


def peak_bytes(run: Callable[[], object]) -> int | None:
    """What `run`, not run for the first time, adds to the resident memory; None where Linux and glibc do not tell."""
    if torch.get_default_device().type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        return torch.cuda.max_memory_allocated() - before
    try:
        trim()  # memory kept by the allocator would hide what is taken from it
        Path("/proc/self/clear_refs").write_text("5")  # starts the high-water mark afresh
    except (AttributeError, OSError):
        return None
    before = _bytes_of("/proc/self/status", "VmRSS")
    run()
    return max(_bytes_of("/proc/self/status", "VmHWM") - before, 0)


def available_bytes() -> int | None:
    """What can be taken of the device's memory without swapping; None where Linux does not tell."""
    if torch.get_default_device().type == "cuda":
        return torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    try:
        trim()
        return _bytes_of("/proc/meminfo", "MemAvailable")
    except (AttributeError, OSError, StopIteration):
        return None


@contextmanager
def limited(more: int | None) -> Iterator[None]:
    """Makes what takes so many bytes more than now fail, also in processes begun here: Linux would kill the process."""
    if resource is None or more is None or torch.get_default_device().type == "cuda":
        yield
        return
    before = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (_bytes_of("/proc/self/status", "VmData") + more, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def trim() -> None:
    """Gives memory that the allocator keeps back to the system; AttributeError where the C library is not glibc."""
    ctypes.CDLL(None).malloc_trim(0)


def settle(run: Callable[[], object], at_least: int = 2, seconds: float = 2.0) -> None:
    """Runs `run` until three times in a row it needed no new memory from the system, at most for so many seconds.

    With memory that is kept, glibc often does not find a place for an aligned tensor in the hole that the last one of
    its size left: it takes some ten runs until there are holes enough, and those before take up to four times as long.
    """
    start, runs, calm = time.perf_counter(), 0, 0
    while runs < at_least or (calm < 3 and time.perf_counter() - start < seconds):
        before = _faults()
        run()
        calm = calm + 1 if _faults() - before < 1000 else 0
        runs += 1


def _faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt if resource else 0


def _bytes_of(file: str, field: str) -> int:
    lines = Path(file).read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))
