"""`bn_lif` against the copy of its bytes and against its peers: torch's batch norm, then the LIF of that name.

The entry "unfused" is torch's batch norm, then our `lif`. Tensors are (T, N, 64, 16, 16). Each entry first has to
agree: ours with the reference on a sixteenth of the batch, a peer with ours on all of it.
"""

from __future__ import annotations

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
from peers import DECAY, SURROGATES, THRESHOLD, batch_norm_contender
from torch import Tensor

from esvae_kernels import bn_lif, use_backend

PEERS = {  # by layout; compiling takes longer than all else
    "channels-last": ("unfused", "loop", "compiled loop", "SpikingJelly"),
    "contiguous": ("unfused", "SpikingJelly"),
}
FP32, BF16 = torch.float32, torch.bfloat16
SURROGATE = "ATan(2)"

VARIANTS = {
    # Statistics, then normalise and scan. Backward: the sums over dx, then dy. All of them read y.
    "": Bytes(4 + 8, 8 + 12, scans=1),
    "rate readout": Bytes(4 + 4, 4 + 8, scans=1),
    "evaluation": Bytes(8, 12),
    # y has no time axis: what has one are the spikes, written once, and their gradient, read twice.
    "constant input": Bytes(4, 4 + 4, scans=1),
}


def gpu_peers(layout: str, steps: int, dtype: torch.dtype) -> tuple[str, ...]:
    """The loops take long: at one T, in the layout that convolutions like best."""
    if layout == "contiguous":
        return PEERS[layout] if steps == 16 else ()
    return PEERS[layout] if (steps, dtype) == (16, FP32) else ("unfused", "SpikingJelly")


class Case(NamedTuple):
    """One group."""

    passes: str
    variant: str = ""
    layout: str = "channels-last"
    peers: tuple[str, ...] = ()
    steps: int = 16
    dtype: torch.dtype = FP32

    @property
    def group(self) -> str:
        name = " ".join(filter(None, ["bn_lif", self.variant]))
        return f"{name}, {self.layout}, T = {self.steps}, {DTYPES[self.dtype]}, {self.passes}"


ON_CPU = (
    *(
        Case(p, "", layout, PEERS[layout] if t == 16 and p != "backward" else (), t, d)
        for layout in PEERS
        for d in DTYPES
        for t in STEPS
        for p in PASSES
    ),
    *(
        Case(p, variant, layout, dtype=d)
        for variant in VARIANTS
        if variant
        for layout in PEERS
        for d in DTYPES
        for p in PASSES[:2]
    ),
)
ON_GPU = (
    Case(p, "", layout, gpu_peers(layout, t, d), t, d)
    for layout in PEERS
    for d in DTYPES
    for t in STEPS
    for p in PASSES
)
CASES = tuple(ON_GPU) if GPU else ON_CPU
ENTRIES = [
    pytest.param(case, entry, id=f"{case.group}-{entry}") for case in CASES for entry in (*BACKENDS, *case.peers)
]


@pytest.fixture(scope="module")
def noise(elements: int) -> tuple[Tensor, Tensor]:
    """A convolution's output, as far as a norm can tell, and a gradient of spikes."""
    generator = torch.Generator(DEVICE).manual_seed(0)
    y, dspikes = (uniform(elements, generator) for _ in range(2))
    return y.add_(0.3), dspikes


@pytest.mark.parametrize(("case", "entry"), ENTRIES)
def test_bn_lif(
    case: Case, entry: str, noise: tuple[Tensor, Tensor], smoke: bool, measure: Callable[..., None]
) -> None:
    if smoke:
        case = case._replace(steps=min(case.steps, 20))
    backward = case.passes != "forward"
    y, dout = (shaped(tensor, case.steps, case.layout).to(case.dtype) for tensor in noise)
    info = {
        "op": "bn_lif",
        "variant": case.variant,
        "layout": case.layout,
        "passes": case.passes,
        "surrogate": SURROGATE if backward else "",
        "T": case.steps,
        "N": y[0].numel(),
        "dtype": DTYPES[case.dtype],
        "bytes": VARIANTS[case.variant].of(case.passes, case.steps, case.dtype),
        "elements": y.numel(),
    }
    if case.variant == "constant input":
        y = y[0]
    if case.variant == "rate readout":
        dout = dout[0]
    mean, variance = torch.full((CHANNELS,), 0.3), torch.full((CHANNELS,), 1 / 3)
    ours = ours_of(case, mean, variance)
    # About a third fires. bf16 weights would be rounded otherwise by torch than by us; nobody has them anyway.
    weight, bias = torch.linspace(0.2, 0.4, CHANNELS), torch.linspace(0.0, 0.2, CHANNELS)
    inputs = tuple(tensor.detach().requires_grad_(backward) for tensor in (y, weight, bias))
    with on_backend(entry):
        if entry in BACKENDS:
            call = ours
            assert_ours_agrees(ours, case, inputs, dout)
        else:
            call = batch_norm_contender(entry, SURROGATE, mean, variance)
            assert_peer_agrees(entry, call, ours, case, inputs, dout)
        measure_passes(measure, case.group, entry, call, inputs, dout, **info)


def ours_of(case: Case, mean: Tensor, variance: Tensor) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """(y, weight, bias) -> spikes or their readout."""
    options = {
        "running_mean": mean,
        "running_var": variance,
        "training": case.variant != "evaluation",
        "steps": case.steps if case.variant == "constant input" else None,
        "readout": "mean" if case.variant == "rate readout" else None,
        "decay": DECAY,
        "threshold": THRESHOLD,
        "surrogate": SURROGATES[SURROGATE],
    }
    return lambda y, weight, bias: bn_lif(y, weight, bias, **options)[0]


def assert_ours_agrees(ours: Callable[..., Tensor], case: Case, inputs: tuple[Tensor, ...], dout: Tensor) -> None:
    y, weight, bias = inputs
    axis = 0 if case.variant == "constant input" else 1
    few = y.shape[axis] // 16 or 1
    y = y.detach().narrow(axis, 0, few).requires_grad_(y.requires_grad)
    dout = dout.narrow(0 if case.variant == "rate readout" else 1, 0, few)
    got = run(ours, (y, weight, bias), dout, case.passes)
    with use_backend("reference"):
        wanted = run(ours, (y, weight, bias), dout, case.passes)
    assert_agree("ours and the reference", got, wanted, 1e-5, 1e-3 if case.dtype == FP32 else 2**-6)


def assert_peer_agrees(
    entry: str,
    peer: Callable[..., Tensor],
    ours: Callable[..., Tensor],
    case: Case,
    inputs: tuple[Tensor, ...],
    dout: Tensor,
) -> None:
    # Torch's batch norm rounds the current to bf16, and SpikingJelly its potentials as well.
    flips, relative = (1e-4, 1e-3) if case.dtype == FP32 else (0.02, 0.1)
    got, wanted = (run(call, inputs, dout, case.passes) for call in (peer, ours))
    assert_agree(f"{entry} and ours", got, wanted, flips, relative)
