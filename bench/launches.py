"""What the ops launch on a GPU, caught on meta tensors and compiled without one."""

from __future__ import annotations

import contextlib
import importlib
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

import esvae_kernels as ek
from esvae_kernels import backends
from esvae_kernels.ops.bn_lif import op as bn_lif_op
from esvae_kernels.ops.lif import op as lif_op
from esvae_kernels.ops.poisson import op as poisson_op
from esvae_kernels.scan import op as scan_op

REPLACED = {  # the raw ops by what they run on a device; of meta tensors torch would ask for the shapes alone
    lif_op: {"lif_fwd": lif_op._lif, "lif_bwd": lif_op._lif_backward},
    bn_lif_op: {
        "lif_fwd": lif_op._lif,
        "lif_bwd": lif_op._lif_backward,
        "bn_lif_statistics": bn_lif_op._statistics,
        "bn_lif_correct": bn_lif_op._correct,
    },
    scan_op: {"scan_fwd": scan_op._scan, "scan_bwd": scan_op._scan_backward},
    poisson_op: {"poisson_fwd": poisson_op._poisson, "poisson_bwd": poisson_op._poisson_backward},
}


class Launch(NamedTuple):
    """One launch of a kernel, in what can be pickled: arguments by name, options, and the types of tensors."""

    module: str
    kernel: str
    constants: tuple[tuple[str, Any], ...]
    types: tuple[tuple[str, str], ...]
    options: tuple[tuple[str, Any], ...]


@contextlib.contextmanager
def recording() -> Iterator[list[Launch]]:
    """What the ops launch on meta tensors, in place of launching it."""
    launches: list[Launch] = []

    def record(kernel: Any, *_: object, grid: tuple, warmup: bool, **given: object) -> None:
        names = [p.name for p in kernel.params]
        assert given.keys() >= set(names), f"{kernel.__name__}: {set(names) - given.keys()} are missing"
        constants, types = {}, {}
        for p in kernel.params:
            value = given[p.name]
            if isinstance(value, torch.Tensor):
                assert value.is_meta, f"{kernel.__name__}: {p.name} is on {value.device}, not that of the inputs"
                dtype = str(value.dtype).removeprefix("torch.")
                types[p.name] = "*" + triton.runtime.jit.type_canonicalisation_dict[dtype]
            elif p.is_constexpr or value is None:
                constants[p.name] = value
            else:
                assert p.annotation_type, f"{kernel.__name__}: {p.name} would be compiled anew for other numbers"
                assert p.do_not_specialize, f"{kernel.__name__}: {p.name} would be specialised"
                types[p.name] = p.annotation_type
        options = {name: value for name, value in given.items() if name not in names}
        fn = kernel.fn
        launches.append(Launch(fn.__module__, fn.__name__, *(tuple(d.items()) for d in (constants, types, options))))

    with pytest.MonkeyPatch.context() as patch, ek.use_backend("triton"):
        patch.setattr(triton.runtime.jit.JITFunction, "run", record)
        patch.setattr(torch.cuda, "device_of", lambda tensor: contextlib.nullcontext())
        patch.setitem(backends._BACKENDS, "triton", backends._BACKENDS["triton"]._replace(why_not=lambda device: None))
        for module, functions in REPLACED.items():
            for name, function in functions.items():
                patch.setattr(module, name, function)
        yield launches


def compiled(launch: Launch, target: tuple) -> dict[str, Any]:
    """What the compiler makes of it, by name: "cubin", "ptx", "amdgcn" and others."""
    kernel = getattr(importlib.import_module(launch.module), launch.kernel)
    constants, types = dict(launch.constants), dict(launch.types)
    signature = {p.name: types.get(p.name, "constexpr") for p in kernel.params}
    # Of a launch Triton knows that the addresses are multiples of 16: torch's allocator aligns to 512.
    aligned = {(i,): [["tt.divisibility", 16]] for i, t in enumerate(signature.values()) if t.startswith("*")}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
    options = dict(launch.options)
    if target[0] == "hip":  # what `tiles.launch` says there
        options["num_warps"] //= 2
        options.pop("maxnreg", None)
    return triton.compile(source, target=GPUTarget(*target), options=options).asm


def cuobjdump(cubin: bytes, option: str) -> str:
    """Of the tool that comes with Triton."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([tool, option, file.name], capture_output=True, text=True, check=True).stdout
