"""What nvcc made of the CUDA kernels, read from the compiled module itself: no GPU is needed. See also
test_cuda_emulated.py."""

from __future__ import annotations

import importlib.util
import math
import os
import re
import shutil
import struct
import subprocess
import sys
from collections import Counter
from functools import cache
from pathlib import Path

import pytest
import torch
from kernel_helpers import one_line
from parts import lif

from esvae_kernels import available_backends, native, use_backend

ARCHITECTURES = {"sm_80", "sm_90", "sm_100"}
SPECIAL = ("finish", "batch_sums")  # these read as a thread's vectors fall, not once per thread
CUDA = getattr(native.module, "cuda", None)
needs_cuda = pytest.mark.skipif(CUDA is None, reason=f"the module has no CUDA kernels: {native.why_not_cuda('cuda')}")


def _find_cuobjdump() -> str | None:
    """CUDA's, or the one that Triton comes with."""
    triton = importlib.util.find_spec("triton")
    folders = (
        [Path(place) / "backends/nvidia/bin" for place in (triton.submodule_search_locations or ())] if triton else []
    )
    places = os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/cuda/bin", *map(str, folders)])
    return shutil.which("cuobjdump", path=places)


CUOBJDUMP = _find_cuobjdump()
needs_cuobjdump = pytest.mark.skipif(CUOBJDUMP is None, reason="there is no cuobjdump, of CUDA or of Triton")


def cuobjdump(*arguments: str) -> str:
    assert CUOBJDUMP is not None
    return subprocess.run(
        [CUOBJDUMP, *arguments, native.module.__file__], capture_output=True, text=True, check=True
    ).stdout


def short(mangled: str) -> str:
    """`lif_backward<f32, 4>` for a kernel's mangled name, `lif_backward<f32, 1, extended>` for that of rare options."""
    types = {"f": "f32", "d": "f64", "4bf16E": "bf16", "3f16E": "f16"}
    if found := re.search(r"\d((?:lif|batch|poisson)_[a-z]+)I(?:N\w*?_)?(f|d|4bf16E|3f16E)Li(\d)E(Lb1E)?", mangled):
        return f"{found[1]}<{types[found[2]]}, {found[3]}{', extended' if found[4] else ''}>"
    found = re.search(r"finishILi\dENS\d_\d+Store([A-Z][a-z]+)(?:I(?:N\w*?_)?(f|d|4bf16E|3f16E))?", mangled)
    return f"finish<{found[1]}{', ' + types[found[2]] if found[2] else ''}>"


@cache
def resources() -> dict[tuple[str, str], dict[str, int]]:
    """By kernel and architecture: REG, STACK, SHARED, LOCAL."""
    found, arch, kernel = {}, "", ""
    for line in cuobjdump("--dump-resource-usage").splitlines():
        if match := re.search(r"^arch = (sm_\d+)", line):
            arch = match[1]
        elif match := re.search(r"^\s*Function (\S+):", line):
            kernel = match[1]
        elif "REG:" in line:
            found[kernel, arch] = {
                key: int(value) for key, value in re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", line)
            }
    return found


def test_it_is_built_where_nvcc_is() -> None:
    """Or all that follows would be skipped without a word."""
    if "ESVAE_CUDA=OFF" in native.module.why_no_cuda:
        pytest.skip(native.module.why_no_cuda)
    if shutil.which("nvcc") is None and CUDA is None:
        pytest.skip("there is no nvcc")
    assert CUDA is not None, native.module.why_no_cuda


@needs_cuda
def test_it_tells_the_truth_about_this_machine() -> None:
    """Without a GPU: imported, not available, and why in one line. With one, it runs."""
    assert CUDA.emulated is False
    if torch.cuda.is_available():
        assert ("cuda" in available_backends()) == (CUDA.why_not() == "")
        return
    assert "cuda" not in available_backends()
    assert native.why_not_cuda("cuda") == "torch sees no GPU"
    refused = "use_backend: got 'cuda', which cannot run: it takes tensors on a GPU, this one is on cpu"
    with use_backend("cuda"):
        one_line(lambda: lif(torch.ones(3, 2), decay=0.5, threshold=1.0), RuntimeError, refused)


@needs_cuda
def test_without_a_driver_it_says_so() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert re.fullmatch(
        "there is no NVIDIA (driver|GPU)|the NVIDIA driver supports .*|.*no CUDA.*device.*", CUDA.why_not()
    )
    _, names = CUDA.layouts["lif_forward"]
    values = dict.fromkeys(names, 0) | {"x_dtype": 1, "out_dtype": 1, "x": 16, "out": 16, "x_stride": 4, "size": 4}
    values |= {"decay": 0.5, "gain": 1, "threshold": 1, "v_min": -math.inf, "shape": 1, "scale": 1}
    values |= {"channels": 1, "inner": 4, "steps": 1}
    with pytest.raises(RuntimeError, match=r"^lif_forward: "):  # the caller is trusted to have asked; even so, no crash
        CUDA.lif_forward(struct.pack(CUDA.layouts["lif_forward"][0], *native.in_order("cuda", "lif_forward", values)))


@needs_cuda
def test_a_tensor_on_the_host_is_refused() -> None:
    """What is not for the CPU's kernels is not therefore for these."""
    refused = "lif_forward: got a tensor on cpu, the backend 'cuda' takes those on cuda"
    one_line(lambda: native.call("lif_forward", "cuda", torch.empty(4), 4, {}), RuntimeError, refused)


@needs_cuda
def test_it_is_free_of_torch_and_of_a_shared_cuda_runtime() -> None:
    if sys.platform != "linux":
        pytest.skip("readelf is Linux's")
    needed = re.findall(r"NEEDED.*\[(.*)\]", subprocess.run(
        ["readelf", "-d", native.module.__file__], capture_output=True, text=True, check=True).stdout)  # fmt: skip
    assert needed
    assert not [name for name in needed if re.match("lib(torch|c10|cuda|nv)", name)], needed


@needs_cuda
@needs_cuobjdump
def test_no_kernel_spills() -> None:
    """No stack frame and no local memory, in any kernel for any architecture. `pytest -rP` prints the registers."""
    kernels = sorted({kernel for kernel, _ in resources()}, key=short)
    assert {arch for _, arch in resources()} >= ARCHITECTURES
    counts = Counter(re.sub("<.*", "", short(kernel)) for kernel in kernels)
    every = {"batch_sums": 8, "batch_correction": 8, "poisson_forward": 8, "poisson_backward": 8, "finish": 6}
    every |= {"lif_forward": 12, "lif_backward": 12}  # four types, aligned, not, and extended
    assert counts == every
    print(f"{'registers':<26}" + "".join(f"{arch:>8}" for arch in sorted(ARCHITECTURES)) + "  shared memory")
    for kernel in kernels:
        of = {arch: resources()[kernel, arch] for arch in sorted(ARCHITECTURES)}
        registers = "".join(f"{use['REG']:8}" for use in of.values())
        print(f"{short(kernel):<26}{registers}  {max(use['SHARED'] for use in of.values())}")
        for arch, use in of.items():
            assert use["STACK"] == use["LOCAL"] == 0, f"{short(kernel)} for {arch}: {use}"


@cache
def ptx() -> dict[str, str]:
    """By kernel, for the newest architecture: what its driver and its successors' compile."""
    parts = re.split(r"\.entry ", cuobjdump("-ptx"))[1:]
    return {part.split("(")[0].strip(): part for part in parts}


@needs_cuda
@needs_cuobjdump
def test_nothing_can_be_fused() -> None:
    """Each product and sum in PTX is marked as rounded by itself (`.rn`), which forbids the assembler to contract it.
    What is fused by name is in library functions (exp, atan, erf), which only smooth spikes and slopes call."""
    scans = [text for name, text in ptx().items() if "forward" in name or "lif_backward" in name]
    assert len(scans) == 32
    for text in scans:
        assert re.search(r"\bmul\.rn\.f(32|64)", text)
        loose = re.findall(r"\b(?:mul|add|sub)\.(?:sat\.)?f(?:32|64)\b.*", text)
        assert not loose, loose[:3]


@needs_cuda
@needs_cuobjdump
def test_tensors_move_16_bytes_at_a_time() -> None:
    """In kernels of a whole vector per thread, the loads and stores of the tensor's own type."""
    for name, text in ptx().items():
        kernel = short(name)
        if kernel.startswith(SPECIAL) or ", 1" in kernel:
            continue
        wide = r"v2\.(?:b64|f64|u64)|v4\.(?:b32|f32|u32)|v8\.(?:b16|u16)"
        assert re.search(rf"ld\.global\S*\.(?:{wide})", text), kernel
        assert re.search(rf"st\.global\S*\.(?:{wide})", text), kernel
