"""Every Triton kernel, as it would be launched on a GPU, compiled without one: registers, spills, accesses, fma.

The public functions and their backwards run on meta tensors; what they would launch is caught, and compiled for
NVIDIA's sm_80, sm_90 and sm_100 and for AMD's gfx90a and gfx942. The registers are printed as a table. Without `--all`:
each op in fp32, for sm_90 alone.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import re
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import parts
import pytest
import torch
from sampling import takes_all

import esvae_kernels as ek
from esvae_kernels import dynamics, layout
from esvae_kernels.neurons import alif
from esvae_kernels.surrogate import ATan, Rectangular, Sigmoid, StraightThrough

triton = pytest.importorskip("triton", reason="Triton is not installed")
sys.path.append(str(Path(__file__).resolve().parent.parent / "bench"))
from launches import Launch, compiled, cuobjdump, recording  # noqa: E402

pytestmark = pytest.mark.skipif(triton.knobs.runtime.interpret, reason="the interpreter is on: nothing is compiled")

NVIDIA = [("cuda", arch, 32) for arch in (80, 90, 100)]
AMD = [("hip", arch, 64) for arch in ("gfx90a", "gfx942")]


class Compiled(NamedTuple):
    registers: int
    stack: int
    wide: int  # loads and stores of 16 bytes
    narrowest: int  # bytes of such an access
    fused: int  # fused multiply-adds


def compile_for(launch: Launch, target: tuple) -> Compiled:
    """In a process of its own, as a rule."""
    asm = compiled(launch, target)
    return _nvidia(asm) if target[0] == "cuda" else _amd(asm)


def _nvidia(asm: dict[str, Any]) -> Compiled:
    usage = cuobjdump(asm["cubin"], "--dump-resource-usage")
    found = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    accesses = re.findall(r"(?:ld|st)\.global\S*?((?:\.v\d)?)\.[bfsu](\d+)", asm["ptx"])
    sizes = [int(vector[2:] or 1) * int(width) // 8 for vector, width in accesses]
    fused = len(re.findall(r"\bfma\.", asm["ptx"]))
    return Compiled(found["REG"], found["STACK"] + found["LOCAL"], sum(size >= 16 for size in sizes), min(sizes), fused)


def _amd(asm: dict[str, Any]) -> Compiled:
    text = asm["amdgcn"]

    def number(key: str) -> int:
        return int(re.search(rf"\.{key}:\s+(\d+)", text)[1])

    accesses = re.findall(r"(?:global|buffer)_(?:load|store)_(\w+)", text)
    sizes = [4 * int(re.sub(r"dwordx?", "", a) or 1) if a.startswith("dword") else 2 for a in accesses]
    fused = len(re.findall(r"\bv_(?:pk_)?fmac?_", text))
    return Compiled(number("vgpr_count"), number("private_segment_fixed_size"), sizes.count(16), min(sizes), fused)


# ---------------------------------------------------------------------------------------------------------- the cases

F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16
NEURON = {"decay": 0.25, "threshold": 0.3, "surrogate": Rectangular(0.5)}


def _empty(*shape: int, dtype: torch.dtype = F32, last: bool = False) -> torch.Tensor:
    """A tensor to differentiate in; `last`: channels-last."""
    strides = layout.strides(shape, last, 2)
    return torch.empty_strided(shape, strides, dtype=dtype, device="meta", requires_grad=True)


def _differentiate(*outputs: torch.Tensor) -> None:
    outputs = tuple(out for out in outputs if out.requires_grad)
    torch.autograd.backward(outputs, [torch.empty_like(out) for out in outputs])


def _lif(dtype: torch.dtype = F32, shape: tuple = (6, 4, 8, 16), **options: Any) -> None:
    _differentiate(*parts.lif(_empty(*shape, dtype=dtype), **(NEURON | options)))


def _lif_channels(last: bool, dtype: torch.dtype = F32, **options: Any) -> None:
    state = F64 if dtype == F64 else F32
    values = {name: _empty(64, dtype=state) for name in ("decay", "gain", "bias", "threshold", "v_reset")}
    _differentiate(*parts.lif(_empty(6, 4, 64, 16, dtype=dtype, last=last), **(NEURON | values | options)))


def _bn_lif(last: bool, dtype: torch.dtype = F32, **options: Any) -> None:
    y, weight, bias = _empty(6, 4, 64, 16, dtype=dtype, last=last), _empty(64), _empty(64)
    buffers = (_empty(64).detach() for _ in range(2))
    _differentiate(*parts.bn_lif(y, weight, bias, *buffers, **({"training": True} | NEURON | options)))


def _poisson(dtype: torch.dtype = F32, shape: tuple = (8, 128), steps: int = 6, **options: Any) -> None:
    _differentiate(ek.poisson(_empty(*shape, dtype=dtype), steps, **options))


def _no_gradient() -> None:
    """Spikes of one byte."""
    parts.lif(_empty(6, 4, 8, 16).detach(), **NEURON, dtype=torch.uint8)
    ek.poisson(_empty(8, 128).detach(), 6, dtype=torch.uint8)


class Case(NamedTuple):
    """`wide`: every access of every kernel in it is of 16 bytes (none moves a small tensor), or of 4 numbers."""

    call: Callable[[], None]
    wide: bool = False


PLAIN = {
    "lif-f32": Case(_lif, True),
    "lif-bf16": Case(lambda: _lif(BF16), True),
    "bn_lif-last-f32": Case(lambda: _bn_lif(True)),
    "bn_lif-last-bf16": Case(lambda: _bn_lif(True, BF16)),
    "poisson-f32": Case(_poisson),
    "poisson-bf16": Case(lambda: _poisson(BF16)),
}
OPTIONS = {
    "lif-f64": Case(lambda: _lif(F64), True),
    "lif-f16-atan": Case(lambda: _lif(F16, surrogate=ATan()), True),
    "lif-soft-sigmoid": Case(lambda: _lif(reset="soft", surrogate=Sigmoid()), True),
    "lif-delayed-strict": Case(lambda: _lif(reset="delayed", strict=True), True),
    "lif-at_once": Case(lambda: _lif(reset="at_once"), True),
    "lif-none-smooth": Case(lambda: _lif(reset="none", surrogate=StraightThrough(spiking=False)), True),
    "lif-several": Case(lambda: _lif(reset="soft", several=True), True),
    "lif-synapse-floor": Case(lambda: _lif(synaptic_decay=0.5, v_min=-1.0), True),
    "lif-synapse-i-bf16": Case(lambda: _lif(BF16, synaptic_decay=0.5, i=_empty(4, 8, 16)), True),
    "lif-synapse-at_once-f64": Case(lambda: _lif(F64, synaptic_decay=0.5, reset="at_once", readout="mean")),
    "lif-delayed-floor": Case(lambda: _lif(reset="delayed", v_min=-1.0), True),
    "lif-rate-bf16": Case(lambda: _lif(BF16, readout="mean")),
    "lif-weights-recorded": Case(lambda: _lif(readout=_empty(6, dtype=F64), record="membrane")),
    "lif-recorded-at_once": Case(lambda: _lif(reset="at_once", record="membrane"), True),
    "lif-constant": Case(lambda: _lif(shape=(4, 8, 16), steps=6)),
    "u8": Case(_no_gradient),
    "lif-unaligned": Case(lambda: _lif(shape=(6, 3, 7, 5))),
    "lif-v": Case(lambda: _lif(shape=(6, 4, 64), v=_empty(4, 64)), True),
    "lif-channels": Case(lambda: _lif_channels(False)),
    "lif-channels-last-delayed": Case(lambda: _lif_channels(True, reset="delayed")),
    "lif-channels-last-bf16": Case(lambda: _lif_channels(True, BF16)),
    "lif-channels-at_once-recorded": Case(lambda: _lif_channels(False, reset="at_once", record="membrane")),
    "lif-channels-several-floor": Case(
        lambda: _lif_channels(False, detach_reset=True, several=True, v_min=-1.0, surrogate=Sigmoid())
    ),
    "lif-channels-synapse": Case(lambda: _lif_channels(False, synaptic_decay=_empty(64), i=_empty(4, 64, 16))),
    "lif-channels-last-synapse-bf16": Case(
        lambda: _lif_channels(True, BF16, synaptic_decay=_empty(64), reset="delayed")
    ),
    "bn_lif-f32": Case(lambda: _bn_lif(False)),
    "bn_lif-f64": Case(lambda: _bn_lif(False, F64)),
    "poisson-f64-straight-through": Case(lambda: _poisson(F64, surrogate=StraightThrough())),
    "poisson-smooth": Case(lambda: _poisson(surrogate=ATan(spiking=False))),
}
ALL = PLAIN | OPTIONS
FEW = ("lif-f32", "bn_lif-last-f32", "poisson-f32")


def launches_of(case: Case) -> list[Launch]:
    with recording() as launches:
        case.call()
    assert launches
    return launches


class Row(NamedTuple):
    case: str
    target: tuple
    launch: Launch
    compiled: Compiled


@pytest.fixture(scope="session")
def rows(pytestconfig: pytest.Config) -> list[Row]:
    """All that is compiled: the plain cases for every target, the others for sm_90."""
    everything, sm_90 = takes_all(pytestconfig), ("cuda", 90, 32)
    wanted = []
    for name, case in ALL.items():
        if everything or name in FEW:
            for target in NVIDIA + AMD if everything and name in PLAIN else [sm_90]:
                wanted += [(name, target, launch) for launch in launches_of(case)]
    jobs = list(dict.fromkeys((launch, target) for _, target, launch in wanted))
    # A process takes 3 s to start, a kernel 1 s to compile.
    processes = min(os.cpu_count() or 1, -(-len(jobs) // 10))
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        found = dict(zip(jobs, pool.map(compile_for, *zip(*jobs, strict=True)), strict=True))
    return [Row(name, target, launch, found[launch, target]) for name, target, launch in wanted]


def test_no_kernel_spills(rows: list[Row]) -> None:
    assert [r for r in rows if r.compiled.stack] == []


def test_nothing_is_contracted(rows: list[Row]) -> None:
    """A fused multiply-add would round once where the reference rounds twice. (AMD's division is made of them, and so
    is the arc tangent of smooth spikes.)"""
    assert [r for r in rows if r.compiled.fused and r.target[0] == "cuda" and r.case != "poisson-smooth"] == []


def test_every_kernel_has_accesses_of_16_bytes(rows: list[Row]) -> None:
    small = ("_bn_finish",)  # its tensor has a number per channel and program
    assert [r for r in rows if not r.compiled.wide and r.case != "lif-unaligned" and r.launch.kernel not in small] == []


def test_plain_kernels_have_no_others(rows: list[Row]) -> None:
    """But that the backward of 2-byte numbers takes 4 of them at once: it has to keep 16 potentials of each neuron."""

    def least(launch: Launch) -> int:
        return 8 if launch.kernel == "_lif_backward" and dict(launch.types)["x"] in ("*bf16", "*fp16") else 16

    plain = [r for r in rows if ALL[r.case].wide and r.target[0] == "cuda"]
    assert [r for r in plain if r.compiled.narrowest < least(r.launch)] == []


@ek.neuron(states={"v": 0.0, "u": 0.0, "w": 0.0})
def three_states(x, v, u, w, *, decay, jump):
    m = decay * v + u + x
    s = dynamics.spike(m, 1.0 + jump * w)
    return s, (m * (1 - s), decay * u + x, dynamics.minimum(jump * w + s, 2.0))


@pytest.mark.parametrize("dtype", [F32, BF16], ids=["f32", "bf16"])
@pytest.mark.parametrize("name", ["alif", "three_states"])
def test_neurons_from_equations(name: str, dtype: torch.dtype, pytestconfig: pytest.Config) -> None:
    """Neither fused multiply-adds nor local memory, and accesses of 16 bytes, for up to three states."""
    function = {"alif": alif, "three_states": three_states}[name]
    options = {"decay": 0.9, "jump": 0.1} | ({"threshold": 1.0, "decay_a": 0.9} if name == "alif" else {})
    with recording() as launches:
        outputs, _ = function(_empty(40, 64, 128, dtype=dtype), **options)
        _differentiate(outputs)
    assert [launch.kernel for launch in launches] == ["forward", "backward"]
    for launch in launches:
        for target in NVIDIA + AMD if takes_all(pytestconfig) else [("cuda", 90, 32)]:
            found = compile_for(launch, target)
            assert (found.stack, found.wide > 0 or launch.kernel == "backward") == (0, True), (launch.kernel, found)
            assert found.fused == 0 or target[0] == "hip"


@pytest.mark.parametrize("dtype", [F32, BF16], ids=["f32", "bf16"])
def test_two_variants_serve_any_length_and_size(dtype: torch.dtype) -> None:
    """Any T and N: what Triton compiles is the same, but for whether rows are aligned."""
    found: dict[str, set[Launch]] = {}
    for steps, n in itertools.product((1, 2, 4, 16, 17, 256), (1, 5, 16, 1000, 1024, 4097)):
        with recording() as launches:
            _lif(dtype, (steps, n))
            _poisson(dtype, (n, 128), steps)
        for launch in launches:
            found.setdefault(launch.kernel, set()).add(launch)
    assert len(found) == 4  # forward and backward of both
    assert {name: len(variants) for name, variants in found.items() if len(variants) > 2} == {}


def test_print_the_registers(rows: list[Row], capsys: pytest.CaptureFixture[str]) -> None:
    targets = [str(target[1]) for target in NVIDIA + AMD]
    table: dict[tuple[str, str], dict[str, str]] = {}
    for r in rows:
        table.setdefault((r.case, r.launch.kernel), {})[str(r.target[1])] = str(r.compiled.registers)
    with capsys.disabled():
        print(f"\n{'registers a thread':60}", *(f"{target:>7}" for target in targets))
        for (case, kernel), registers in table.items():
            print(f"{case + ' ' + kernel:60}", *(f"{registers.get(target, ''):>7}" for target in targets))
