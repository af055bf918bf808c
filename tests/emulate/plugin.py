"""A pytest plugin (`-p emulate.plugin`): kernel tests run on the CUDA kernels, which an emulator runs on host memory.

The sources of csrc/cuda are compiled as C++ with this folder's cuda_runtime.h, and the module takes the place of
`_esvae_kernels.cuda`. Where EMULATE_SANITIZE names sanitizers it is built with them (the runtime has to be preloaded).
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import kernel_helpers
import pybind11

from esvae_kernels import native, use_backend

HERE = Path(__file__).parent
CSRC = HERE.parent.parent / "csrc"
NAME = "emulated_cuda"


def build() -> Path:
    """The module, compiled anew where a source or a flag has changed."""
    cxx, sanitizers = os.environ.get("CXX", "g++"), os.environ.get("EMULATE_SANITIZE")
    optimize = "-O0" if sanitizers else "-O1"  # with sanitizers the compiler takes longer than the tests
    flags = ["-std=c++17", optimize, "-fPIC", "-ffp-contract=off", "-fno-strict-aliasing", "-fvisibility=hidden"]
    flags += [f"-I{folder}" for folder in (HERE, pybind11.get_include(), sysconfig.get_path("include"))]
    if sanitizers:
        flags += ["-g1", f"-fsanitize={sanitizers}", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer"]
    sources = [*sorted((CSRC / "cuda").glob("*.cu")), HERE / "module.cpp"]
    seen = [*sources, *sorted(CSRC.rglob("*.h")), HERE / "cuda_runtime.h"]
    key = hashlib.sha256(repr([cxx, flags, *(path.read_text() for path in seen)]).encode()).hexdigest()[:16]
    folder = CSRC.parent / "build" / "emulate" / key
    module = folder / f"{NAME}.so"
    if module.exists():
        return module
    folder.mkdir(parents=True, exist_ok=True)
    objects = [folder / f"{source.stem}.o" for source in sources]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda s, o: _run(cxx, *flags, "-x", "c++", "-c", str(s), "-o", str(o)), sources, objects))
    unfinished = folder / "unfinished.so"
    _run(cxx, *flags, "-shared", *map(str, objects), "-o", str(unfinished))
    unfinished.rename(module)
    return module


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location(NAME, build())
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextmanager
def _use_kernel(kernel: str):
    with use_backend(kernel):
        yield kernel


native.module.cuda = load()  # type: ignore[union-attr]
kernel_helpers.BACKENDS[:] = ["reference", "cuda"]
kernel_helpers.KERNELS[:] = ["cuda"]
kernel_helpers.use_kernel = _use_kernel
kernel_helpers.on_gpu = lambda: True
