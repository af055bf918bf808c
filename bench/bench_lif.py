"""`lif` against the copy of its bytes and against its peers: every option, forward and backward, short and long.

Each entry first has to agree: ours with the reference on a sixteenth of the neurons, a peer with ours on all of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from passes import (
    BACKENDS,
    CHANNELS,
    DEVICE,
    DTYPES,
    GPU,
    PASSES,
    STEPS,
    Bytes,
    assert_agree,
    measure_passes,
    on_backend,
    run,
    shaped,
    uniform,
)
from peers import DECAY, SURROGATES, THRESHOLD, Contender, lif_contender, lif_ours
from torch import Tensor

from esvae_kernels import Delayed, Soft, lif, use_backend

LOOPS = ("loop", "compiled loop")
PEERS = (*LOOPS, "SpikingJelly", "snnTorch")
FP32, BF16 = torch.float32, torch.bfloat16


class Variant(NamedTuple):
    """An option of `lif`; its arguments are in `Ours`."""

    bytes: Bytes = Bytes(8, 12)
    layout: str = ""  # "": (T, N), no channels


VARIANTS = {
    "": Variant(),
    "rate readout": Variant(Bytes(4, 8)),
    "readout weights": Variant(Bytes(4, 8)),
    "soft reset": Variant(),
    "delayed reset": Variant(),
    "recorded membrane": Variant(Bytes(12, 16)),
    "decay and threshold per channel, contiguous": Variant(layout="contiguous"),
    "decay and threshold per channel, channels-last": Variant(layout="channels-last"),
    "constant input": Variant(Bytes(4, 4)),
    "uint8 spikes": Variant(Bytes(5, 0)),
}


class Case(NamedTuple):
    """One group."""

    passes: str
    variant: str = ""
    peers: tuple[str, ...] = ()
    surrogate: str = "Rectangular(0.5)"
    steps: int = 16
    dtype: torch.dtype = FP32

    @property
    def group(self) -> str:
        name = " ".join(filter(None, ["lif", self.variant]))
        surrogate = "" if self.passes == "forward" else f", {self.surrogate}"
        return f"{name}, T = {self.steps}, {DTYPES[self.dtype]}, {self.passes}{surrogate}"


COMPARED = (  # with ATan all of them: SpikingJelly is fast with it alone, and it is snnTorch's default
    Case("forward", "", PEERS, "ATan(2)"),
    Case("forward+backward", "", LOOPS),
    Case("forward+backward", "", PEERS, "ATan(2)"),
    Case("forward", "rate readout", PEERS, "ATan(2)"),
    Case("forward+backward", "rate readout", LOOPS),
    Case("forward", "", LOOPS, "ATan(2)", dtype=BF16),
    Case("forward+backward", "", PEERS, "ATan(2)", dtype=BF16),
)
ALONE = (
    *(Case(p, steps=t, dtype=d) for d in DTYPES for t in STEPS for p in PASSES),
    *(Case(p, variant) for variant in VARIANTS for p in PASSES if variant != "uint8 spikes" or p == "forward"),
    *(Case("backward", surrogate=surrogate) for surrogate in SURROGATES),
)
GPU_VARIANTS = ("", "rate readout", *(v for v in VARIANTS if "per channel" in v))


def gpu_peers(passes: str, steps: int, dtype: torch.dtype) -> tuple[str, ...]:
    """The compiled loop takes long to compile."""
    compiled = steps in (4, 16) if dtype == FP32 else (steps, passes) == (16, "forward+backward")
    return tuple(peer for peer in PEERS if peer != "compiled loop" or compiled)


ON_GPU = (
    Case(p, variant, () if variant else gpu_peers(p, t, d), "ATan(2)", t, d)
    for variant, d, t, p in itertools.product(GPU_VARIANTS, DTYPES, STEPS, PASSES)
)
CASES = tuple(ON_GPU) if GPU else (*ALONE, *COMPARED)
CASES = tuple({case.group: case for case in CASES}.values())  # of the same name, the compared one
ENTRIES = [
    pytest.param(case, entry, id=f"{case.group}-{entry}") for case in CASES for entry in (*BACKENDS, *case.peers)
]


class Ours:
    """`lif` with the case's options, and the tensors among them, which may have a gradient."""

    def __init__(self, case: Case) -> None:
        self.options = {"decay": DECAY, "threshold": THRESHOLD, "surrogate": SURROGATES[case.surrogate]}
        if case.variant == "rate readout":
            self.options["readout"] = "mean"
        elif case.variant == "readout weights":
            self.options["readout"] = torch.linspace(0.5, 1, case.steps)
        elif case.variant in ("soft reset", "delayed reset"):
            self.options["reset"] = Soft() if case.variant == "soft reset" else Delayed()
        elif case.variant == "recorded membrane":
            self.options["record"] = "membrane"
        elif "per channel" in case.variant:
            self.options["decay"] = torch.linspace(0.2, 0.3, CHANNELS)
            self.options["threshold"] = torch.linspace(0.1, 0.3, CHANNELS)
        elif case.variant == "constant input":
            self.options["steps"] = case.steps
        elif case.variant == "uint8 spikes":
            self.options["dtype"] = torch.uint8
        self.parameters = [option for option in self.options.values() if isinstance(option, Tensor)]
        for parameter in self.parameters:
            parameter.requires_grad_(case.passes != "forward")

    def __call__(self, x: Tensor, *_: Tensor) -> tuple[Tensor, ...]:
        spikes, _, *membrane = lif(x, **self.options)
        return spikes, *membrane


@pytest.fixture(scope="module")
def noise(elements: int) -> tuple[Tensor, Tensor]:
    """A current under which about half of the neurons fire at each step, and a gradient of their spikes."""
    generator = torch.Generator(DEVICE).manual_seed(0)
    x, dspikes = (uniform(elements, generator) for _ in range(2))
    return x.mul_(0.5).add_(0.2), dspikes


@pytest.mark.parametrize(("case", "entry"), ENTRIES)
def test_lif(case: Case, entry: str, noise: tuple[Tensor, Tensor], smoke: bool, measure: Callable[..., None]) -> None:
    if smoke:
        case = case._replace(steps=min(case.steps, 20))
    variant, backward = VARIANTS[case.variant], case.passes != "forward"
    x, dout = (shaped(tensor, case.steps, variant.layout).to(case.dtype) for tensor in noise)
    info = {
        "op": "lif",
        "variant": case.variant,
        "passes": case.passes,
        "surrogate": case.surrogate if backward else "",
        "T": case.steps,
        "N": x[0].numel(),
        "dtype": DTYPES[case.dtype],
        "bytes": variant.bytes.of(case.passes, case.steps, case.dtype),
        "elements": x.numel(),
    }
    if case.variant == "constant input":
        x = x[0]
    if "readout" in case.variant:
        dout = dout[0]
    x = x.detach().requires_grad_(backward)
    with on_backend(entry):
        if entry in BACKENDS:
            call = Ours(case)
            assert_ours_agrees(call, case, x, dout)
            inputs = (x, *call.parameters)
        else:
            contender = lif_contender(entry, case.surrogate, "mean" if case.variant == "rate readout" else None)
            assert_peer_agrees(entry, contender, case, x, dout)
            call, inputs = contender.call, (x,)
        measure_passes(measure, case.group, entry, call, inputs, dout, **info)


def assert_ours_agrees(ours: Ours, case: Case, x: Tensor, dout: Tensor) -> None:
    axis = 0 if case.variant == "constant input" else 1
    few = x.shape[axis] // 16 or 1
    x = x.detach().narrow(axis, 0, few).requires_grad_(x.requires_grad)
    dout = dout.narrow(0 if "readout" in case.variant else 1, 0, few)
    arguments = (ours, (x, *ours.parameters), dout, case.passes)
    got = run(*arguments)
    with use_backend("reference"):
        wanted = run(*arguments)
    assert_agree("ours and the reference", got, wanted, 0, 1e-4 if case.dtype == FP32 else 2**-7)


def assert_peer_agrees(entry: str, contender: Contender, case: Case, x: Tensor, dout: Tensor) -> None:
    ours = lif_ours(case.surrogate, "mean" if case.variant == "rate readout" else None, **contender.ours)
    flips, relative = contender.flips, 1e-4
    if case.dtype == BF16:  # the libraries' potentials are rounded to bf16 at every step, ours and the loops' are not
        flips, relative = (0.02, 0.1) if entry in ("SpikingJelly", "snnTorch") else (flips, 2**-7)
    got, wanted = (run(call, (x,), dout, case.passes) for call in (contender.call, ours))
    assert_agree(f"{entry} and ours", got, wanted, flips, relative)
