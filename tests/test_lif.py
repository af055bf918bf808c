"""The LIF room: the reference against a trace by hand, the kernel against the reference, and every way to call it."""

from __future__ import annotations

import itertools
import random
import sys
import threading
import time
from collections.abc import Callable

import kernel_helpers
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernel_helpers import (
    BACKENDS,
    DEVICE,
    DTYPES,
    KERNELS,
    SMOOTH,
    SURROGATES,
    assert_all_same_bits,
    assert_gradients,
    assert_near,
    assert_same_bits,
    assert_same_bits_or_nan,
    assert_sums,
    channels_last,
    cpu_only,
    flat,
    in_turn,
    name,
    near_threshold,
    needs_compiled,
    neuron,
    on_gpu,
    one_line,
    parameters,
    randint,
    randn,
    raw,
    run_lif,
    uniform,
    use_kernel,
)
from parts import lif
from torch import Tensor

import esvae_kernels
from esvae_kernels import Delayed, Hard, Reset, Soft, use_backend
from esvae_kernels.layout import is_channels_last
from esvae_kernels.native import SERIAL_BELOW
from esvae_kernels.ops.lif import reference
from esvae_kernels.ops.lif.op import stored_rows
from esvae_kernels.ops.lif.reference import CHUNK, PARAMETERS, RESETS
from esvae_kernels.surrogate import Rectangular, Sigmoid, StraightThrough, Surrogate

OPTIONS = {"decay": 0.3, "threshold": 0.5}
RICH = {"decay": 0.9, "threshold": 0.4, "gain": 0.7, "bias": 0.05, "v_reset": -0.1}
WEIGHTS = [0.5, -1.0, 2.0, 0.3]
ops = torch.ops.esvae_kernels
pytestmark = pytest.mark.usefixtures("poisoned")
on_both = pytest.mark.parametrize("backend", BACKENDS, indirect=True)
on_kernels = pytest.mark.parametrize("kernel", KERNELS, indirect=True)


def readout_of(kind: str | None, steps: int) -> str | Tensor | None:
    return randn(steps, seed=3) if kind == "weights" else kind


# ---------------------------------------------------------------------------------------------- the definition


# v = .5; m_0 = .25 + .5 + .25 = 1 is a tie. Every number is exact in binary.
@pytest.mark.parametrize(
    ("reset", "strict", "spikes", "last"),
    [
        ("hard", False, [1, 0, 1], -0.5),
        ("hard", True, [0, 1, 0], 1.0),
        ("soft", False, [1, 0, 1], 0.625),
        ("soft", True, [0, 1, 1], 0.375),
        ("none", False, [1, 1, 1], 1.875),
        ("none", True, [0, 1, 1], 1.875),
        ("delayed", False, [1, 0, 1], 1.375),
        ("delayed", True, [0, 1, 0], 0.875),
        ("at_once", False, [1, 0, 1], 0.625),
        ("at_once", True, [0, 1, 1], 0.375),
    ],
    ids=[f"{reset}{strict}" for reset in RESETS for strict in ("", "-strict")],
)
@on_both
def test_a_trace_computed_by_hand(backend: str, reset: str, strict: bool, spikes: list[int], last: float) -> None:
    x, v = torch.tensor([[0.25], [0.25], [0.5]]), torch.tensor([0.5])
    options = {"decay": 0.5, "gain": 2, "bias": 0.25, "threshold": 1, "v_reset": -0.5, "reset": reset, "strict": strict}
    s, v1 = lif(x, v, **options)
    assert s.flatten().tolist() == spikes
    assert v1.item() == last
    assert lif(x, v, readout="mean", **options)[0].item() == torch.tensor(sum(spikes)).div(3).item()
    weighted = spikes[0] * 0.5 + spikes[1] * 0.25 + spikes[2] * 2
    assert lif(x, v, readout=[0.5, 0.25, 2.0], **options)[0].item() == weighted


@on_both
def test_the_delayed_reset_by_hand(backend: str) -> None:
    """snnTorch's subtraction: one step late, and the leak takes nothing of it; also after a v that is above."""
    x, options = torch.full((5, 1), 0.8, dtype=torch.float64), {"decay": 0.5, "threshold": 1, "strict": True}
    spikes, last, m = lif(x, reset="delayed", record="membrane", **options)
    assert m.flatten().tolist() == pytest.approx([0.8, 1.2, 0.4, 1.0, 1.3])
    assert spikes.flatten().tolist() == [0, 1, 0, 0, 1]
    assert last.item() == m[-1].item()
    v = torch.tensor([1.5, 1.0], dtype=torch.float64)  # above, and at the threshold
    for strict, expected in ((True, [0.0, 0.75]), (False, [0.0, -0.25])):
        (m,) = lif(
            x[:1, 0].expand(1, 2) * 0.3125, v, reset="delayed", record="membrane", **options | {"strict": strict}
        )[2]
        assert m.tolist() == expected


@on_both
def test_subtraction_at_once_by_hand(backend: str) -> None:
    """snnTorch's without delay: of a v that is above, the threshold is taken for m and given back to v."""
    x, v = torch.tensor([[0.25, 0.5], [0.5, 2.0]]), torch.tensor([2.5, 1.0])
    spikes, last, m = lif(x, v, decay=0.5, threshold=1, reset="at_once", record="membrane")
    assert m.tolist() == [[0.5, 0.0], [0.25, 1.5]]
    assert spikes.tolist() == [[0, 0], [0, 1]]
    assert last.tolist() == [1.25, 1.5]


@on_both
def test_a_synaptic_current_by_hand(backend: str) -> None:
    x = torch.tensor([[1.0], [0.0], [0.5]])
    spikes, v, i, m = lif(x, synaptic_decay=0.5, decay=0.5, threshold=1, record="membrane")
    assert m.flatten().tolist() == [1.0, 0.5, 1.0]  # currents 1, 0.5, 0.25 + 0.5
    assert spikes.flatten().tolist() == [1, 0, 1]
    assert (v.item(), i.item()) == (0.0, 0.375)
    spikes, v, i = lif(x[:1], synaptic_decay=0.5, i=torch.tensor([0.75]), decay=0.5, threshold=2)
    assert (spikes.item(), v.item(), i.item()) == (0, 1.75, 0.875)


@on_both
@pytest.mark.parametrize(
    ("reset", "spikes", "last"),
    [("soft", [2, 0, 2], 0.40625), ("none", [2, 0, 3], 1.65625), ("hard", [2, 0, 2], -0.5)],
    ids=str,
)
def test_several_spikes_by_hand(backend: str, reset: str, spikes: list[int], last: float) -> None:
    x = torch.tensor([[1.125], [-0.25], [1.5]])
    options = {"decay": 0.5, "threshold": 0.5, "v_reset": -0.5, "reset": reset, "detach_reset": True}
    s, v = lif(x, several=True, **options)
    assert s.flatten().tolist() == spikes
    assert v.item() == last
    below = lif(torch.tensor([[-3.0, 0.0, 0.49]]), several=True, **options)[0]
    assert below.tolist() == [[0, 0, 0]]


@on_both
def test_a_floor_under_the_potential_by_hand(backend: str) -> None:
    x = torch.tensor([[-1.0], [0.5], [-0.375]]).requires_grad_()
    _, last, m = lif(x, v_min=-0.25, decay=0.5, threshold=1, detach_reset=True, record="membrane")
    assert m.flatten().tolist() == [-1.0, 0.375, -0.1875]
    assert last.item() == -0.1875
    (dx,) = torch.autograd.grad(last, x)
    assert dx.flatten().tolist() == [0.0, 0.5, 1.0]


@on_both
def test_recorded_potentials_are_those_before_the_reset(backend: str) -> None:
    x, v = torch.tensor([[0.25], [0.25], [0.5]]), torch.tensor([0.5])
    options = {"decay": 0.5, "gain": 2, "bias": 0.25, "threshold": 1, "v_reset": -0.5, "record": "membrane"}
    traces = {
        "hard": [1.0, 0.5, 1.5],
        "soft": [1.0, 0.75, 1.625],
        "none": [1.0, 1.25, 1.875],
        "delayed": [1.0, 0.25, 1.375],
        "at_once": [1.0, 0.75, 1.625],
    }
    for reset, expected in traces.items():
        assert lif(x, v, reset=reset, **options)[2].flatten().tolist() == expected
        assert lif(x, v, reset=reset, readout="mean", **options)[2].flatten().tolist() == expected
    one = {k: torch.tensor([float(options[k])]) for k in ("decay", "gain", "bias", "v_reset")}
    assert lif(x, v, **(options | one))[2].flatten().tolist() == traces["hard"]


@pytest.mark.parametrize("mechanism", ["subtract", "zero"])
def test_equals_snntorch(mechanism: str) -> None:
    """Leaky's default, and its reset to zero: spikes and potentials in every bit, the gradients of what it learns."""
    snntorch = pytest.importorskip("snntorch")
    x, steps, channels = randn(25, 7, 5).mul_(2).requires_grad_(), 25, 5
    beta, threshold = (parameters(channels)[key].requires_grad_() for key in ("decay", "threshold"))
    theirs = snntorch.Leaky(beta, threshold, learn_beta=True, learn_threshold=True, reset_mechanism=mechanism)
    spikes, membrane, mem = [], [], theirs.reset_mem()
    for t in range(steps):
        s, mem = theirs(x[t], mem)
        spikes.append(s), membrane.append(mem)
    reset = {"subtract": "delayed", "zero": "hard"}[mechanism]
    options = {"reset": reset, "strict": True, "detach_reset": True, "record": "membrane"}
    s, _, m = lif(x, decay=beta, threshold=threshold, **options)
    assert_same_bits(s, torch.stack(spikes))
    assert_same_bits(m, torch.stack(membrane))
    assert s.mean() > 0.1
    cotangents = [randn(*s.shape, seed=1), randn(*m.shape, seed=2)]
    actual = torch.autograd.grad((s, m), (x, beta, threshold), cotangents)
    stacked = torch.stack(spikes), torch.stack(membrane)
    expected = torch.autograd.grad(stacked, (x, theirs.beta, theirs.threshold), cotangents)
    assert_gradients(actual[:1], expected[:1])
    assert_sums(actual[1:], expected[1:], x.numel(), torch.float32)


@on_both
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_a_rate_is_never_above_one(backend: str, dtype: torch.dtype) -> None:
    for steps in (1, 3, 10, 49, 1000):
        rate, _ = lif(torch.ones(3, dtype=dtype), steps=steps, decay=0.0, threshold=0.5, readout="mean")
        assert rate.tolist() == [1, 1, 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=name)
@pytest.mark.parametrize("kernel", KERNELS, indirect=True)
def test_a_rate_over_17_million_steps(kernel: str, dtype: torch.dtype) -> None:
    """fp32 counts to 2^24. With x = 3 a neuron fires at each step, with x = 1 at every second one."""
    x = torch.tensor([3.0, 1.0], dtype=dtype)
    rate, _ = lif(x, steps=(1 << 24) + (1 << 20), decay=0.5, threshold=1.2, readout="mean", dtype=torch.float64)
    assert rate.tolist() == [1, 0.5]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=name)
def test_a_count_in_parts(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """The specification's, in parts of 8 steps: where a count is exact it is the same."""
    x, options = randn(23, 50, dtype=dtype), OPTIONS | {"readout": "mean"}
    with use_backend("reference"):
        whole = lif(x, **options)
        monkeypatch.setattr(reference, "COUNTED", 8)
        assert_all_same_bits(lif(x, **options), whole)


# ------------------------------------------------------------------------------- bits and gradients of the kernel

SHAPES = list(itertools.product((1, 7, 16, 17, 63), (1, 1023, 4097), DTYPES.values(), RESETS))


@pytest.mark.parametrize(
    ("steps", "n", "dtype", "reset"), SHAPES, ids=[f"T{t}-N{n}-{name(dtype)}-{r}" for t, n, dtype, r in SHAPES]
)
def test_equals_the_reference(steps: int, n: int, dtype: torch.dtype, reset: str) -> None:
    index = SHAPES.index((steps, n, dtype, reset))
    options = RICH | {
        "reset": reset,
        "decay": (0.25, 0.3, 0.9)[index % 3],
        "surrogate": SURROGATES[index // 3 % len(SURROGATES)],
    }
    check_equal(randn(steps, n, seed=index, dtype=dtype), randn(n, seed=index + 1), **options)


CHOICES = list(
    itertools.product(RESETS, ("", "strict"), ("", "detach"), (None, "mean", "weights"), ("", "constant"), ("", "v"))
)


@pytest.mark.parametrize(
    ("reset", "strict", "detach", "readout", "constant", "state"),
    CHOICES,
    ids=["-".join(filter(None, choice)) for choice in CHOICES],
)
def test_options_equal_the_reference(
    reset: str, strict: str, detach: str, readout: str | None, constant: str, state: str
) -> None:
    index = CHOICES.index((reset, strict, detach, readout, constant, state))
    steps, n = (17, 1023) if index % 2 else (33, 65)
    options = RICH | {
        "reset": reset,
        "strict": bool(strict),
        "detach_reset": bool(detach),
        "readout": readout_of(readout, steps),
        "surrogate": SURROGATES[index % len(SURROGATES)],
        "steps": steps if constant else None,
    }
    for dtype in in_turn(DTYPES.values(), index):
        x = randn(n, seed=index, dtype=dtype) if constant else randn(steps, n, seed=index, dtype=dtype)
        check_equal(x, randn(n, seed=1) if state else None, **options)


# What few calls use: a synapse, with a current from before or without; a floor under v, below rest or above the
# threshold; several spikes a step.
RARE = [
    choice
    for choice in itertools.product(RESETS, ("", "several"), ("", "synapse", "synapse-i"), ("", -0.3, -0.02, 0.45))
    if any(choice[1:]) and not (choice[1] and choice[0] in ("delayed", "at_once"))
]


@pytest.mark.few(24)
@pytest.mark.parametrize(
    ("reset", "several", "synapse", "v_min"),
    RARE,
    ids=["-".join(str(part) for part in choice if part) for choice in RARE],
)
def test_rare_options_equal_the_reference(reset: str, several: str, synapse: str, v_min: float | str) -> None:
    index = RARE.index((reset, several, synapse, v_min))
    draw = random.Random(index)
    for dtype in in_turn(DTYPES.values(), index):
        steps, inner = draw.choice((1, 15, 16, 17, 33, 49)), draw.choice(((1023,), (3, 5, 7), (2, 4, 3, 4)))
        options = RICH | {
            "reset": reset,
            "several": bool(several),
            "strict": not several and draw.random() < 0.5,
            "detach_reset": bool(several and reset == "hard") or draw.random() < 0.5,
            "v_min": v_min or None,
            "readout": readout_of(draw.choice((None, "mean", "weights")), steps),
            "record": draw.choice((None, "membrane")),
            "surrogate": draw.choice(SURROGATES),
            "steps": draw.choice((None, steps)),
        }
        learnt = parameters(draw.choice((1, inner[1] if len(inner) > 1 else 1)), index, synaptic_decay=True)
        options |= {k: p for k, p in learnt.items() if draw.random() < 0.5} | (
            {"synaptic_decay": 0.6} if synapse else {}
        )
        options |= {"synaptic_decay": learnt["synaptic_decay"]} if synapse and draw.random() < 0.5 else {}
        if not synapse:
            options.pop("synaptic_decay", None)
        x = 2 * randn(*inner, seed=index, dtype=dtype) if options["steps"] else 2 * randn(steps, *inner, dtype=dtype)
        if draw.random() < 0.5 and len(inner) > 2:
            x = channels_last(x, 1 if options["steps"] else 2)
        v = draw.choice((None, randn(*inner, seed=1)))
        check_equal(x, v, i=randn(*inner, seed=2) if synapse.endswith("i") else None, **options)


def check_equal(x: Tensor, v: Tensor | None, kernels: list[str] = KERNELS, i: Tensor | None = None, **options) -> None:
    """Outputs equal in every bit, on every kernel; gradients within their tolerance."""
    state = reference.state_dtype(x.dtype)
    v, i = (None if t is None else t.to(state) for t in (v, i))
    *outputs, gradients = run_lif("reference", x, v, i=i, **options)
    own = 1 + (v is not None) + (i is not None)
    for kernel in kernels:
        with use_kernel(kernel) as backend:
            *actual, found = run_lif(backend, x, v, i=i, **options)
        assert_all_same_bits(actual, outputs)
        assert_gradients(found[:own], gradients[:own])
        assert_sums(found[own:], gradients[own:], x.numel() * (options.get("steps") or 1), state)


@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=name)
@pytest.mark.parametrize(("gain", "bias"), [(1.0, 0.0), (0.7, 0.1)], ids=["plain", "gain-bias"])
@pytest.mark.parametrize("decay", [0.25, 0.3, 0.9])
def test_one_unit_in_the_last_place_of_the_threshold(
    decay: float, gain: float, bias: float, dtype: torch.dtype, reset: str
) -> None:
    for strict in (False, True):
        options = {"decay": decay, "gain": gain, "bias": bias, "threshold": 0.2, "reset": reset, "strict": strict}
        check_equal(*near_threshold((8, 1031), dtype, **options), **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=name)
def test_counts_at_multiples_of_the_threshold_equal_the_reference(dtype: torch.dtype) -> None:
    """The quotient is rounded once: not a product with the reciprocal, which is another at some of them."""
    threshold = torch.tensor(0.7, dtype=dtype)
    multiples = torch.arange(1, 200, dtype=dtype) * threshold
    v = torch.cat([torch.nextafter(multiples, multiples + side) for side in (-1, 0, 1)])
    nothing = torch.full((1, *v.shape), -0.0, dtype=dtype)  # m is v
    check_equal(nothing, v, decay=1.0, bias=-0.0, threshold=0.7, several=True, reset="soft", record="membrane")
    spikes, _, m = lif(nothing, v, decay=1.0, bias=-0.0, threshold=0.7, several=True, reset="soft", record="membrane")
    assert_same_bits(m[0], v)
    assert (spikes[0] != torch.trunc(v * (1 / threshold))).any()


@pytest.mark.parametrize("decay", [0.3, 0.9])
def test_a_fused_multiply_add_would_show(decay: float) -> None:
    """The inputs of the test above have teeth: contraction, or the other comparison, flips spikes."""
    x, v = near_threshold((8, 4097), torch.float32, decay=decay, threshold=0.2)
    threshold = torch.tensor(0.2)
    fused = (torch.tensor(decay).double() * v.double() + x[0].double()).float()  # rounded once
    spikes, _ = lif(x[:1], v, decay=decay, threshold=0.2)
    strict, _ = lif(x[:1], v, decay=decay, threshold=0.2, strict=True)
    assert ((fused >= threshold) != spikes[0].bool()).any()
    assert (spikes != strict).any()


@pytest.mark.few(16)
@cpu_only("there are no vector widths on a GPU")
@on_kernels
@pytest.mark.parametrize("surrogate", SURROGATES + SMOOTH, ids=lambda s: f"{name(s)}{'-smooth' * (not s.spiking)}")
def test_vector_widths_agree_bit_for_bit(kernel: str, surrogate: Surrogate) -> None:
    for dtype, reset in itertools.product(DTYPES.values(), RESETS):
        x, v = randn(19, 11, 103, dtype=dtype), randn(11, 103, seed=1, dtype=reference.state_dtype(dtype))
        learnt = parameters(103) if reset in ("hard", "delayed") else {}
        options = RICH | learnt | {"surrogate": surrogate, "reset": reset, "record": "membrane"}
        options |= {"synaptic_decay": 0.4, "v_min": -0.2} if reset in ("hard", "at_once") else {}
        options |= {"several": reset == "none" and surrogate.spiking}
        if not surrogate.spiking:  # smooth spikes of any height feed back: small inputs keep them bounded
            x, v = x / 10, v / 10
        here = flat(run_lif("cpu", x, v, **options))
        with use_kernel("baseline"):
            there = flat(run_lif("cpu", x, v, **options))
        assert_all_same_bits(here, there)


@pytest.mark.parametrize(("steps", "dtype"), [(3, torch.float32), (6, torch.bfloat16)], ids=["f32", "bf16"])
def test_tensors_beyond_the_cache(steps: int, dtype: torch.dtype) -> None:
    """More than 8 MiB a tensor, at an odd width: the stores that bypass the cache, unaligned rows."""
    x = randn(steps, 700_001, dtype=dtype)
    check_equal(x, None, **RICH)
    with use_backend("reference"):
        expected = lif(x, record="membrane", dtype=torch.float16, **RICH)
    for backend in BACKENDS[1:]:
        with use_backend(backend):
            assert_all_same_bits(lif(x, record="membrane", dtype=torch.float16, **RICH), expected)


@on_both
def test_infinities_and_nan(backend: str) -> None:
    x = torch.tensor([[float("inf"), -float("inf"), float("nan"), 0.0]] * 2)
    spikes, v = lif(x, reset="soft", **OPTIONS)
    assert spikes.tolist() == [[1, 0, 0, 0]] * 2
    assert v[:2].tolist() == [float("inf"), -float("inf")]
    assert v[2].isnan()


# ------------------------------------------------------------- parameters per channel, weights, record, dtypes

CHANNELS = {  # (T, N, C, *): one block and more, more channels than a block has neurons, more neurons than a block
    "T5-N3-C1": (5, 3, 1),
    "T18-N5-C3": (18, 5, 3),
    "T17-N201-C7": (17, 201, 7),
    "T5-N40-C130": (5, 40, 130),
    "T3-N11-C3001": (3, 11, 3001),
    "T3-N1-C2-L5": (3, 1, 2, 5),
    "T17-N1-C130-L9": (17, 1, 130, 9),
    "T3-N20-C7-L5": (3, 20, 7, 5),
    "T2-N2-C3-61x67": (2, 2, 3, 61, 67),
    "T3-N5-C7-11x13": (3, 5, 7, 11, 13),
    "T2-N3-C1-50x51": (2, 3, 1, 50, 51),
    "T2-N1-C2500-2x7": (2, 1, 2500, 2, 7),
}


@pytest.mark.few(24)
@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("layout", ["contiguous", "channels-last"])
@pytest.mark.parametrize("case", CHANNELS)
def test_parameters_per_channel_equal_the_reference(case: str, layout: str, reset: str) -> None:
    shape = CHANNELS[case]
    number = list(CHANNELS).index(case) + RESETS.index(reset)
    for index, dtype in in_turn(enumerate((torch.float32, torch.float64, torch.bfloat16)), number):
        x, v = randn(*shape, seed=index, dtype=dtype), randn(*shape[1:], seed=9)
        x = channels_last(x) if layout == "channels-last" else x
        options = {"reset": reset, "detach_reset": index == 1, "strict": index == 2, "record": "membrane"}
        surrogate = SURROGATES[(list(CHANNELS).index(case) + 3 * index) % len(SURROGATES)]
        learnt, i = parameters(shape[2], synaptic_decay=index == 2), randn(*shape[1:], seed=8) if index == 2 else None
        check_equal(x, v, i=i, surrogate=surrogate, **learnt, **options)


@pytest.mark.few(16)
@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("count", [1, 5], ids=["one", "per-channel"])
@pytest.mark.parametrize("argument", [*PARAMETERS, "gain-bias"])
def test_some_parameters_are_tensors(argument: str, count: int, reset: str) -> None:
    """The others stay numbers; each tensor has a dtype of its own."""
    turn = RESETS.index(reset) + [*PARAMETERS, "gain-bias"].index(argument) + count
    for index, (detach, constant) in in_turn(enumerate(itertools.product((False, True), repeat=2)), turn):
        x, v = randn(*(18, 7, 5, 3)[constant:], seed=index), randn(7, 5, 3, seed=9)
        dtypes = list(DTYPES.values())[index:] * 2
        learnt = {
            k: parameters(count, synaptic_decay=True)[k].to(dtype)
            for k, dtype in zip(argument.split("-"), dtypes, strict=False)
        }
        options = RICH | learnt | {"reset": reset, "detach_reset": detach, "steps": 18 if constant else None}
        check_equal(x, v, **options)


@on_both
def test_a_tensor_is_its_number(backend: str) -> None:
    """Numbers, tensors of no axis, of one element and of the same one for each channel."""
    x, v = randn(20, 4, 3), randn(4, 3, seed=1)
    expected = lif(x, v, record="membrane", **RICH)
    for shape in ((), (1,), (3,)):
        learnt = {key: torch.full(shape, value) for key, value in RICH.items()}
        assert_all_same_bits(lif(x, v, record="membrane", **learnt), expected)
    shared = torch.tensor([RICH["decay"], 0.0])[:1].expand(3)
    strided = torch.stack([torch.full((3,), RICH["bias"]), torch.zeros(3)], -1)[:, 0]
    assert_all_same_bits(lif(x, v, record="membrane", **RICH | {"decay": shared, "bias": strided}), expected)


@on_both
@pytest.mark.parametrize("argument", [*PARAMETERS, "readout"])
def test_gradient_of_one_parameter_alone(backend: str, argument: str) -> None:
    """The same as among all of them, with x and v without one."""
    x, v = randn(20, 4, 3), randn(4, 3, seed=1)
    options = parameters(3, synaptic_decay=True) | {"readout": randn(20, seed=2)}
    every = run_lif(backend, x, v, **options)[-1][2 + list(options).index(argument)]
    leaf = options[argument].clone().requires_grad_()
    outputs = lif(x, v, **(options | {argument: leaf}))
    cotangents = [randn(*o.shape, seed=7 + i) for i, o in enumerate(outputs)]
    torch.autograd.backward(outputs, cotangents)
    assert_same_bits(leaf.grad, every)
    assert every.count_nonzero() > 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=name)
@pytest.mark.parametrize("readout", [None, "mean", "weights"], ids=str)
@pytest.mark.parametrize("reset", RESETS)
def test_recorded_potentials_have_a_gradient(reset: str, readout: str | None, dtype: torch.dtype) -> None:
    """Through each output alone, and through all; together they are the sum."""
    x, v = randn(19, 4, 3, dtype=dtype), randn(4, 3, seed=1, dtype=reference.state_dtype(dtype))
    options = parameters(3) | {"reset": reset, "record": "membrane", "readout": readout_of(readout, 19)}
    check_equal(x, v, **options)
    gradients: dict[str, list[tuple[Tensor, ...]]] = {backend: [] for backend in BACKENDS}
    for backend, output in itertools.product(BACKENDS, range(3)):
        leaves = [t.clone().requires_grad_() for t in (x, v, options["decay"], options["threshold"])]
        with use_backend(backend):
            out = lif(*leaves[:2], **(options | {"decay": leaves[2], "threshold": leaves[3]}))[output]
            cotangent = randn(*out.shape, seed=7 + output, dtype=out.dtype)
            gradients[backend].append(torch.autograd.grad(out, leaves, cotangent))
    for backend in BACKENDS[1:]:
        for expected, actual in zip(gradients["reference"], gradients[backend], strict=True):
            assert_gradients(actual[:2], expected[:2])
            assert_sums(actual[2:], expected[2:], x.numel(), v.dtype)
            assert all(g.count_nonzero() > 0 for g in actual[:3])
        if dtype == torch.float64:
            *_, whole = run_lif(backend, x, v, **options)
            assert_gradients([sum(g[0] for g in gradients[backend])], whole[:1])


@on_both
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("out", [*DTYPES.values(), torch.uint8], ids=[*DTYPES, "u8"])
def test_dtype_of_the_spikes(backend: str, out: torch.dtype, dtype: torch.dtype) -> None:
    """The gradient arrives in the spikes' dtype, and leaves in x's."""
    x = randn(20, 1031, dtype=dtype)
    expected, last = lif(x, **RICH)
    with torch.no_grad():
        spikes, v = lif(x.clone().requires_grad_(), dtype=out, **RICH)
    assert_same_bits(spikes, expected.to(out))
    assert_same_bits(v, last)
    if out == torch.uint8:
        return
    if backend == BACKENDS[-1]:
        check_equal(x, None, dtype=out, **RICH)
        check_equal(5 * x, None, dtype=out, several=True, reset="soft", **RICH)
        check_equal(x, None, dtype=out, readout=randn(20, seed=1), record="membrane", **RICH)
    leaf = x.clone().requires_grad_()
    spikes, _ = lif(leaf, dtype=out, **RICH)
    (dx,) = torch.autograd.grad(spikes, leaf, torch.ones_like(spikes))
    assert (spikes.dtype, dx.dtype) == (out, dtype)
    assert_gradients([dx], torch.autograd.grad(lif(leaf, **RICH)[0].sum(), leaf))


# --------------------------------------------------------------------------------------------- properties

properties = settings(
    derandomize=True,
    deadline=None,
    # A GPU's kernels are compiled for each example, four of them at most.
    max_examples=4 if on_gpu() else 15 if kernel_helpers.sampled else 150,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
seeds = st.integers(0, 2**31)


@st.composite
def strided(draw: st.DrawFn, shape: tuple[int, ...], dtype: torch.dtype, channel: int) -> Tensor:
    """Random numbers of any shape and strides."""
    x = randn(*shape, seed=draw(seeds), dtype=dtype)
    kind = draw(st.sampled_from(["contiguous", "permuted", "sliced", "expanded", "channels-last"]))
    if kind == "permuted":
        order = draw(st.permutations(range(x.dim())))
        return x.permute(order).contiguous().permute(torch.tensor(order).argsort().tolist())
    if kind == "sliced":
        return torch.stack([x, x + 1], -1).repeat_interleave(2, 0)[::2, ..., 0]
    if kind == "expanded":
        axis = draw(st.integers(0, x.dim() - 1))
        return x.narrow(axis, 0, min(1, shape[axis])).expand(shape)
    return channels_last(x, channel) if kind == "channels-last" and x.dim() > channel else x


@st.composite
def calls(draw: st.DrawFn) -> dict:
    """Arguments of `lif`."""
    dtype, constant = draw(st.sampled_from(list(DTYPES.values()))), draw(st.booleans())
    steps, inner = draw(st.integers(1, 35)), tuple(draw(st.lists(st.integers(0, 7), min_size=1, max_size=4)))
    x = draw(strided(inner if constant else (steps, *inner), dtype, 1 if constant else 2))
    call = {"x": x, "steps": steps if constant else None, "reset": draw(st.sampled_from(RESETS))}
    call["v"] = draw(st.none() | strided(inner, reference.state_dtype(dtype), 1))
    channels = inner[1] if len(inner) > 1 else 1
    for key, number in RICH.items():
        kind = draw(st.sampled_from(["number", "one", "per-channel"]))
        count, parameter = 1 if kind == "one" else channels, draw(st.sampled_from(list(DTYPES.values())))
        call[key] = number if kind == "number" else parameters(count, draw(seeds), parameter)[key]
    call |= {key: draw(st.booleans()) for key in ("strict", "detach_reset")}
    if call["reset"] not in ("delayed", "at_once") and draw(st.booleans()):
        call |= {"several": True, "strict": False, "detach_reset": call["detach_reset"] or call["reset"] == "hard"}
    if draw(st.booleans()):
        call["synaptic_decay"] = draw(
            st.just(0.5) | st.just(parameters(channels, synaptic_decay=True)["synaptic_decay"])
        )
        call["i"] = draw(st.none() | strided(inner, reference.state_dtype(dtype), 1))
    call["v_min"] = draw(st.none() | st.sampled_from([-1.0, -0.1, 0.5]))
    call["surrogate"] = draw(st.sampled_from(SURROGATES))
    call["readout"] = readout_of(draw(st.sampled_from([None, "mean", "weights"])), steps)
    call["record"] = draw(st.sampled_from([None, "membrane"]))
    call["dtype"] = draw(st.sampled_from([None, *DTYPES.values()]))
    return call


@needs_compiled
@properties
@given(calls(), st.sampled_from(KERNELS))
def test_any_call_equals_the_reference(call: dict, kernel: str) -> None:
    check_equal(kernels=[kernel], **call)


@properties
@given(
    st.sampled_from([torch.float32, torch.float64]), st.sampled_from(RESETS), st.booleans(), st.integers(1, 40), seeds
)
def test_thresholds_per_channel_are_met_to_the_last_place(
    dtype: torch.dtype, reset: str, strict: bool, channels: int, seed: int
) -> None:
    options = {"reset": reset, "strict": strict, **parameters(channels, seed, dtype)}
    x, v = near_threshold((4, 20, channels), dtype, **options)
    options["record"] = "membrane"
    check_equal(x, v, **options)
    m = lif(x, v, **options)[2]
    apart = (m[::2].double() - options["threshold"].double()).abs()
    assert (apart < 4 * torch.finfo(dtype).eps).double().mean() > 0.5
    assert 0 < lif(x, v, **options)[0][::2].mean() < 1


@properties
@given(st.data(), st.sampled_from(RESETS), st.sampled_from(list(DTYPES.values())), st.booleans(), st.booleans())
def test_infinities_and_nan_anywhere(
    data: st.DataObject, reset: str, dtype: torch.dtype, strict: bool, learnt: bool
) -> None:
    x, v = randn(18, 5, 7, dtype=dtype), randn(5, 7, seed=1, dtype=reference.state_dtype(dtype))
    places = st.lists(st.tuples(st.integers(0, 34), st.sampled_from([float("nan"), float("inf"), -float("inf")])))
    for tensor in (*x.unbind(0)[::4], v):
        for place, value in data.draw(places):
            tensor.view(-1)[place] = value
    options = RICH | (parameters(7) if learnt else {}) | {"reset": reset, "strict": strict, "record": "membrane"}
    if data.draw(st.booleans()):
        options |= {"synaptic_decay": 0.5, "v_min": -0.2, "several": not strict and reset in ("soft", "none")}
    with use_backend("reference"):
        expected = lif(x, v, **options)
    for kernel in KERNELS:
        with use_kernel(kernel):
            for a, e in zip(lif(x, v, **options), expected, strict=True):
                assert_same_bits_or_nan(a, e)


# ------------------------------------------------------------------------------------------------ half precision


def every_pattern(dtype: torch.dtype) -> Tensor:
    return torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)


@on_kernels
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=name)
def test_every_half_is_read_as_torch_reads_it(kernel: str, dtype: torch.dtype) -> None:
    x = every_pattern(dtype)
    zero = torch.full(x.shape, -0.0)  # -0 + x is x, -0 included
    _, v = lif(x[None], zero, decay=1.0, bias=-0.0, threshold=3.4e38, reset="soft")
    expected = x.float()
    number = ~expected.isnan()
    assert torch.equal(v.isnan(), ~number)
    assert_same_bits(v[number], expected[number])


@on_kernels
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=name)
def test_every_half_is_written_as_torch_writes_it(kernel: str, dtype: torch.dtype) -> None:
    """Every half, every tie between two, their fp32 neighbours, and a million random patterns."""
    halves = every_pattern(dtype).float()
    ties = (halves.view(torch.int32)[:, None] + torch.tensor([0x1000, 0x8000])).flatten().view(torch.float32)
    exact = torch.cat([halves, ties])
    around = [torch.nextafter(exact, torch.tensor(side * float("inf"))) for side in (-1, 1)]
    random = randint(-(2**31), 2**31, (2**20,)).int()
    edges = torch.tensor([65519.996, 65520.0, 3.3953e38, 3.4028e38, 2.0**-24, 2.0**-25, 1e-45, 0.0, -0.0])
    m = torch.cat([exact, *around, random.view(torch.float32), edges])
    nothing = torch.full(m.shape, -0.0, dtype=dtype)
    surrogate = StraightThrough(spiking=False)  # the output is m - threshold
    out, _ = lif(nothing[None], m, decay=1.0, bias=-0.0, threshold=0.0, surrogate=surrogate)
    expected = m.to(dtype)
    number = ~m.isnan()
    assert torch.equal(out[0].isnan(), ~number)
    assert_same_bits(out[0][number], expected[number])


# ----------------------------------------------------------------------------------------------------- gradients


def by_definition(
    x: Tensor, v: Tensor, i: Tensor | None, learnt: dict[str, Tensor], weights: Tensor | None, **options
) -> tuple[Tensor, ...]:
    """The differentiable reference itself, all of whose parameters are per channel."""
    synapse = None if i is None else 0.0
    p = neuron(readout=None if weights is None else "weights", synaptic_decay=synapse, **(RICH | options))
    rows = [learnt.get(name, torch.zeros_like(learnt["decay"])) for name in PARAMETERS]
    return tuple(o for o in reference.lif(x, v, i, torch.stack(rows), weights, p) if o is not None)


@pytest.mark.few(24)
@pytest.mark.parametrize("surrogate", SURROGATES + SMOOTH, ids=lambda s: f"{name(s)}{'-smooth' * (not s.spiking)}")
@pytest.mark.parametrize("reset", RESETS)
def test_backward_is_the_derivative_of_the_forward(reset: str, surrogate: Surrogate) -> None:
    """Autograd of the differentiable reference, against both backends, for everything that has a gradient."""
    steps, shape = 20, (3, 4, 2)
    turn = 3 * (SURROGATES + SMOOTH).index(surrogate) + RESETS.index(reset)
    for detach, constant, weighted, rare in in_turn(itertools.product((False, True), repeat=4), turn):
        x = randn(*shape if constant else (steps, *shape), dtype=torch.float64)
        v = randn(*shape, seed=1, dtype=torch.float64)
        if not surrogate.spiking:  # smooth spikes of any height feed back: small positive inputs keep them bounded
            x, v = x.abs() / 10, v.abs() / 10
        i = v.flip(0) if rare else None
        learnt = parameters(4, dtype=torch.float64, synaptic_decay=rare)
        weights = randn(steps, seed=3, dtype=torch.float64) if weighted else None
        options = {"reset": reset, "detach_reset": detach, "surrogate": surrogate} | ({"v_min": 0.02} if rare else {})
        wanted = [t.requires_grad_() for t in (x, v, i, *learnt.values(), weights) if t is not None]
        raw = {"steps": steps, "constant": constant, "record": True, "dtype": torch.float64}
        outputs = by_definition(x, v, i, learnt, weights, **raw, **options)
        cotangents = [randn(*o.shape, seed=7 + i, dtype=torch.float64) for i, o in enumerate(outputs)]
        expected = torch.autograd.grad(outputs, wanted, cotangents, allow_unused=True, materialize_grads=True)
        options |= {"record": "membrane", "steps": steps if constant else None, **learnt, "readout": weights}
        for backend in BACKENDS:
            actual = run_lif(backend, x, v, i=i, **options)[-1]
            assert_gradients(actual[: 2 + rare], expected[: 2 + rare])
            assert_sums(actual[2 + rare :], expected[2 + rare :], 20 * 24)


DIFFERENTIABLE = RESETS[:4]  # "at_once" takes the earlier spike as a constant


def small(constant: bool, steps: int, readout: str | None, synapse: bool) -> tuple[list[str], list[Tensor]]:
    """Inputs of a numerical derivative: x, v, the parameters and weights, fp64, of two channels.

    Smooth spikes of any height feed back: small positive inputs keep them bounded."""
    values = {"x": randn(*(1, 2) if constant else (steps, 1, 2), dtype=torch.float64).abs() / 5}
    values |= {key: randn(1, 2, seed=1, dtype=torch.float64).abs() / 5 for key in ("v", "i")[: 1 + synapse]}
    values |= parameters(2, seed=2, dtype=torch.float64, synaptic_decay=synapse)
    if readout == "weights":
        values["readout"] = randn(steps, seed=3, dtype=torch.float64)
    return list(values), [value.requires_grad_() for value in values.values()]


@on_both
@pytest.mark.parametrize("record", [None, "membrane"], ids=["", "record"])
@pytest.mark.parametrize("readout", [None, "mean", "weights"], ids=str)
@pytest.mark.parametrize("reset", DIFFERENTIABLE)
def test_gradcheck_through_time(backend: str, reset: str, readout: str | None, record: str | None) -> None:
    """Over x, v, all parameters and weights; over chunk borders too (`fast_mode`: in a random direction)."""
    torch.manual_seed(0)
    turn = RESETS.index(reset) + 3 * (record is not None) + 5 * (readout is not None)
    for index, surrogate in in_turn(enumerate(SMOOTH), turn):
        constant, steps, rare = index % 3 == 0, 3 if index % 2 else 18, index % 4 > 1
        names, inputs = small(constant, steps, readout, rare)
        options = {"reset": reset, "surrogate": surrogate, "record": record, "steps": steps if constant else None}
        options |= {"v_min": 0.1} if rare else {}
        options |= {"readout": "mean"} if readout == "mean" else {}

        def outputs(*values: Tensor, names: list[str] = names, options: dict = options) -> tuple[Tensor, ...]:
            return lif(**dict(zip(names, values, strict=True)), **options)

        assert torch.autograd.gradcheck(outputs, inputs, fast_mode=steps > 3)


@pytest.mark.parametrize("readout", [None, "weights"], ids=str)
@pytest.mark.parametrize("rare", [{}, {"v_min": 0.1}], ids=["", "synapse-v_min"])
@pytest.mark.parametrize("reset", DIFFERENTIABLE)
def test_gradgradcheck_through_time(reset: str, rare: dict, readout: str | None) -> None:
    names, inputs = small(False, 3, readout, bool(rare))
    options = {"reset": reset, "surrogate": SMOOTH[2], "record": "membrane"} | rare
    torch.manual_seed(0)
    assert torch.autograd.gradgradcheck(
        lambda *values: lif(**dict(zip(names, values, strict=True)), **options), inputs, fast_mode=True
    )


@pytest.mark.few(16)
@on_both
@pytest.mark.parametrize("surrogate", SURROGATES, ids=name)
@pytest.mark.parametrize("reset", RESETS)
def test_second_derivatives_of_real_spikes(backend: str, reset: str, surrogate: Surrogate) -> None:
    options = {"reset": reset, "surrogate": surrogate}
    options |= {"several": True} if reset in ("soft", "none") else {"v_min": -0.1}
    x = randn(18, 5, 2, dtype=torch.float64).requires_grad_()
    v, i = (randn(5, 2, seed=k, dtype=torch.float64).requires_grad_() for k in (1, 4))
    learnt = {k: p.requires_grad_() for k, p in parameters(2, dtype=torch.float64, synaptic_decay=True).items()}
    weights = randn(18, seed=3, dtype=torch.float64).requires_grad_()
    wanted = (x, v, i, *learnt.values(), weights)

    def twice(readout: Tensor, last: Tensor, current: Tensor, membrane: Tensor) -> tuple[Tensor, ...]:
        loss = (readout * randn(5, 2, seed=2, dtype=torch.float64)).sum() + last.square().sum()
        loss = loss + current.square().sum() + membrane.square().mean()
        first = torch.autograd.grad(loss, wanted, create_graph=True, allow_unused=True, materialize_grads=True)
        penalty = sum(g.square().sum() for g in first)
        return torch.autograd.grad(penalty, wanted, allow_unused=True, materialize_grads=True)

    actual = twice(*lif(x, v, i=i, **learnt, readout=weights, record="membrane", **options))
    expected = twice(*by_definition(x, v, i, learnt, weights, steps=18, record=True, dtype=torch.float64, **options))
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-11, atol=1e-12 * max(1, e.abs().max().item()))


@on_both
@pytest.mark.parametrize("output", [0, 1], ids=["spikes", "potential"])
def test_gradient_through_one_output_alone(backend: str, output: int) -> None:
    x, v = randn(20, 9, dtype=torch.float64).requires_grad_(), randn(9, seed=1, dtype=torch.float64).requires_grad_()
    for readout, steps in itertools.product((None, "mean"), (None, 20)):
        inputs = (x if steps is None else x[0].detach().requires_grad_(), v)
        out = lif(*inputs, readout=readout, steps=steps, **RICH)[output]
        weights = None if readout is None else readout
        p = neuron(steps=20, constant=steps is not None, readout=weights, dtype=torch.float64, **RICH)
        expected = reference.lif(*inputs, None, None, None, p)[output]
        assert_gradients(
            torch.autograd.grad(out.square().sum(), inputs), torch.autograd.grad(expected.square().sum(), inputs)
        )


@on_both
def test_gradient_of_one_input_alone(backend: str) -> None:
    x, v, i = randn(20, 9), randn(9, seed=1), randn(9, seed=2)
    options = RICH | {"synaptic_decay": 0.5}
    each = run_lif(backend, x, v, i=i, **options)[-1]
    for k in range(3):
        inputs = [t.clone().requires_grad_(k == at) for at, t in enumerate((x, v, i))]
        outputs = lif(*inputs[:2], i=inputs[2], **options)
        cotangents = [randn(*o.shape, seed=7 + at) for at, o in enumerate(outputs)]
        torch.autograd.backward(outputs, cotangents)
        assert_same_bits(inputs[k].grad, each[k])
        assert [t.grad is None for t in inputs] == [at != k for at in range(3)]


@cpu_only("of a GPU's backends are the tests in test_gpu.py")
@pytest.mark.parametrize(
    "options", [{}, {"synaptic_decay": 0.5}, {"readout": "mean"}], ids=["plain", "synapse", "rate"]
)
@pytest.mark.parametrize("backward", BACKENDS)
@pytest.mark.parametrize("forward", BACKENDS)
def test_forward_and_backward_on_different_backends(forward: str, backward: str, options: dict) -> None:
    """The backward starts again from potentials that the forward saved."""
    x = randn(3 * CHUNK + 2, 3, 4)

    def gradient(forward: str, backward: str) -> Tensor:
        leaf = x.clone().requires_grad_()
        with use_backend(forward):
            out, v, *_ = lif(leaf, decay=0.9, threshold=1.0, reset="soft", **options)
        with use_backend(backward):
            ((out * randn(*out.shape, seed=1)).sum() + v.sum()).backward()
        return leaf.grad

    assert_near(gradient(forward, backward), gradient("reference", "reference"), 1e-5)


def test_no_graph_without_need() -> None:
    spikes, v = lif(randn(20, 3), **OPTIONS)
    assert not spikes.requires_grad
    assert not v.requires_grad
    with torch.no_grad():
        assert lif(randn(20, 3).requires_grad_(), **OPTIONS)[0].grad_fn is None


# ---------------------------------------------------------------------------------------- long and cut sequences


@on_both
def test_a_thousand_steps(backend: str) -> None:
    """The backward starts again from 62 stored potentials."""
    x, v = randn(1000, 33, dtype=torch.float64), randn(33, seed=1, dtype=torch.float64)
    spikes, last, gradients = run_lif(backend, x, v, **RICH)
    x, v = x.requires_grad_(), v.requires_grad_()
    expected = reference.lif(x, v, None, None, None, neuron(steps=1000, dtype=torch.float64, **RICH))[:2]
    assert_same_bits(spikes, expected[0])
    assert_same_bits(last, expected[1])
    cotangents = [randn(*o.shape, seed=7 + i, dtype=torch.float64) for i, o in enumerate(expected)]
    assert_gradients(gradients, torch.autograd.grad(expected, (x, v), cotangents))


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("cuts", [(1,), (5, 20), (16, 32), (15, 17, 39)], ids=str)
@on_both
def test_a_cut_sequence_is_the_whole_one(backend: str, cuts: tuple[int, ...], dtype: torch.dtype) -> None:
    x, v = randn(40, 101, dtype=dtype), randn(101, seed=1, dtype=reference.state_dtype(dtype))
    whole, last, gradients = run_lif(backend, x, v, **RICH)
    leaf_x, leaf_v = x.clone().requires_grad_(), v.clone().requires_grad_()
    pieces, state = [], leaf_v
    for piece in leaf_x.tensor_split(cuts):
        spikes, state = lif(piece, state, **RICH)
        pieces.append(spikes)
    joined = torch.cat(pieces)
    assert_same_bits(joined, whole)
    assert_same_bits(state, last)
    cotangents = [randn(*o.shape, seed=7 + i, dtype=o.dtype) for i, o in enumerate((joined, state))]
    for actual, expected in zip(
        torch.autograd.grad((joined, state), (leaf_x, leaf_v), cotangents), gradients, strict=True
    ):
        assert_same_bits(actual, expected)


@pytest.mark.parametrize("cuts", [(1,), (16, 32), (15, 17, 39)], ids=str)
@pytest.mark.parametrize("reset", RESETS)
@on_both
def test_a_cut_sequence_with_a_synapse_is_the_whole_one(backend: str, reset: str, cuts: tuple[int, ...]) -> None:
    x, v, i = randn(40, 101), randn(101, seed=1), randn(101, seed=2)
    options = RICH | {"reset": reset, "synaptic_decay": 0.5, "v_min": -0.1}
    *whole, gradients = run_lif(backend, x, v, i=i, **options)
    leaves = [t.clone().requires_grad_() for t in (x, v, i)]
    pieces, (v, i) = [], leaves[1:]
    for piece in leaves[0].tensor_split(cuts):
        spikes, v, i = lif(piece, v, i=i, **options)
        pieces.append(spikes)
    outputs = (torch.cat(pieces), v, i)
    assert_all_same_bits(outputs, whole)
    cotangents = [randn(*o.shape, seed=7 + k) for k, o in enumerate(outputs)]
    assert_gradients(torch.autograd.grad(outputs, leaves, cotangents), gradients)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=name)
@pytest.mark.parametrize("steps", [16, 64])
def test_saved_bytes(steps: int, dtype: torch.dtype) -> None:
    """x, and the potential (with a synapse the current too) of every 16th step: nothing per step beyond x."""

    def saved(call: Callable[[], object]) -> int:
        total = 0

        def pack(tensor: Tensor) -> Tensor:
            nonlocal total
            total += tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            call()
        return total

    n = 257
    x = randn(steps, n, dtype=dtype).requires_grad_()
    potentials = (steps // 16 - 1) * n * 4
    assert saved(lambda: lif(x, **OPTIONS)) == x.nbytes + potentials
    assert saved(lambda: lif(x, readout="mean", **OPTIONS)) == x.nbytes + potentials
    assert saved(lambda: lif(x, record="membrane", **OPTIONS)) == x.nbytes + potentials
    assert (
        saved(lambda: lif(x, synaptic_decay=0.5, v_min=-1.0, several=True, reset="soft", **OPTIONS))
        == x.nbytes + 2 * potentials
    )
    weights = torch.ones(steps, dtype=torch.float64)
    assert saved(lambda: lif(x, readout=weights, **OPTIONS)) == x.nbytes + potentials + weights.nbytes
    learnt = OPTIONS | {"decay": torch.tensor([0.5]).requires_grad_()}
    assert saved(lambda: lif(x, record="membrane", **learnt)) == x.nbytes + potentials + 6 * 4
    row = x[0].detach().requires_grad_()
    assert saved(lambda: lif(row, steps=steps, **OPTIONS)) == row.nbytes + potentials


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS[1:], indirect=True)
def test_beyond_two_to_the_31_elements(backend: str) -> None:
    steps, n = 2050, 2**20 + 3
    x = randn(n, dtype=torch.bfloat16)
    spikes, last = lif(x, steps=steps, decay=0.9, threshold=2.0)
    assert spikes.numel() > 2**31
    expected, expected_last = lif(x[-1000:], steps=steps, decay=0.9, threshold=2.0)
    assert_same_bits(spikes[:, -1000:], expected)
    assert_same_bits(last[-1000:], expected_last)


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS[1:], indirect=True)
def test_gradients_beyond_two_to_the_31_elements(backend: str) -> None:
    """A real (T, N) tensor of 4 GiB, which repeats one of 4099 columns: so must all that comes out of it."""
    steps, columns, copies = 64, 4099, 8192
    few = randn(steps, columns, dtype=torch.bfloat16)
    x = few[:, None].expand(steps, copies, columns).reshape(steps, copies * columns).requires_grad_()
    assert x.numel() > 2**31
    options = {"decay": 0.9, "threshold": 2.0, "readout": "mean"}
    rate, last = lif(x, **options)
    cotangent = randn(columns, seed=1, dtype=torch.bfloat16)
    (dx,) = torch.autograd.grad(rate, x, cotangent.expand(copies, columns).reshape(-1))
    few.requires_grad_()
    expected = lif(few, **options)
    (expected_dx,) = torch.autograd.grad(expected[0], few, cotangent)
    for actual, one in zip((rate, last, *dx), (*expected, *expected_dx), strict=True):
        assert torch.equal(actual.view(copies, columns), one.expand(copies, columns))


# --------------------------------------------------------------------------------------------- memory and layout


def layouts() -> dict[str, Tensor]:
    return {
        "transposed": randn(33, 20).T,
        "strided": randn(40, 66)[::2, ::2],
        "offset": randn(21, 34)[1:, 1:],
        "expanded-time": randn(1, 33).expand(20, 33),
        "expanded-batch": randn(20, 1).expand(20, 33),
        "permuted": randn(4, 20, 3, 5).permute(1, 3, 0, 2),
        "size-1": randn(20, 1, 7, 1).transpose(1, 3),
        "broadcast-scalar": randn(1).expand(20, 3, 4, 4),
    }


@on_both
@pytest.mark.parametrize("layout", layouts())
def test_any_strides(backend: str, layout: str) -> None:
    x = layouts()[layout]
    v = randn(*x.shape[1:], seed=1)
    strided_v = torch.stack([v, v], -1)[..., 0]
    assert x.dim() == 2 or not x.is_contiguous() or layout == "size-1"
    for options in ({}, {"readout": "mean"}):
        actual = run_lif(backend, x, strided_v, **RICH, **options)
        expected = run_lif(backend, x.contiguous(), v, **RICH, **options)
        for a, b in zip(flat(actual), flat(expected), strict=True):
            assert_same_bits(a, b)


@on_both
def test_any_strides_of_the_gradients(backend: str) -> None:
    x, v = randn(20, 6, 5).requires_grad_(), randn(6, 5, seed=1).requires_grad_()
    outputs = lif(x, v, **RICH)
    dense = [randn(20, 6, 5, seed=2), randn(6, 5, seed=3)]
    odd = [dense[0].transpose(0, 2).contiguous().transpose(0, 2), dense[1].T.contiguous().T]
    scalar = [torch.tensor(0.5).expand(20, 6, 5), torch.tensor(2.0).expand(6, 5)]
    for cotangents in (odd, scalar):
        actual = torch.autograd.grad(outputs, (x, v), cotangents, retain_graph=True)
        expected = torch.autograd.grad(outputs, (x, v), [c.contiguous() for c in cotangents], retain_graph=True)
        for a, b in zip(actual, expected, strict=True):
            assert_same_bits(a, b)


@on_both
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=name)
@pytest.mark.parametrize(
    ("inner", "memory_format"),
    [((3, 5, 4, 6), torch.channels_last), ((3, 5, 2, 4, 6), torch.channels_last_3d)],
    ids=["channels-last", "channels-last-3d"],
)
def test_channels_last_stays(
    backend: str, inner: tuple[int, ...], memory_format: torch.memory_format, dtype: torch.dtype
) -> None:
    dense = randn(20, *inner, dtype=dtype)
    x = dense.flatten(0, 1).contiguous(memory_format=memory_format).unflatten(0, (20, inner[0]))
    assert is_channels_last(x, 2)
    v = randn(*inner, seed=1)
    spikes, last, (dx, dv) = run_lif(backend, x, v, **RICH)
    for t in (spikes, dx):
        assert t.stride() == x.stride()
        assert t.flatten(0, 1).is_contiguous(memory_format=memory_format)
    for t in (last, dv):
        assert t.stride() == x[0].stride()
    for a, b in zip((spikes, last, dx, dv), flat(run_lif(backend, dense, v, **RICH)), strict=True):
        assert_same_bits(a, b)
    for options in ({"readout": "mean"}, {"steps": 20}):  # the readout, and a constant current
        current, like = (x[0], x) if "steps" in options else (x, x[0])
        rate, _, (dx, _) = run_lif(backend, current, v, **RICH, **options)
        assert rate.stride() == like.stride()
        assert dx.stride() == current.stride()
        expected = flat(run_lif(backend, current.contiguous(), v, **RICH, **options))
        assert_same_bits(rate, expected[0])
        assert_same_bits(dx, expected[2])


@on_both
def test_any_layout_of_a_synaptic_current(backend: str) -> None:
    x, i, options = randn(20, 2, 3, 4, 5), randn(2, 3, 4, 5, seed=1), RICH | {"synaptic_decay": 0.5}
    expected = flat(run_lif(backend, x, i=i, **options))
    for layout in (lambda t: t, channels_last):
        for current in (channels_last(i, 1), torch.stack([i, i], -1)[..., 0]):
            actual = run_lif(backend, layout(x), i=current, **options)
            assert_all_same_bits(flat(actual), expected)
            assert actual[2].stride() == actual[1].stride() == actual[3][1].stride() == layout(x)[0].stride()


@on_both
@pytest.mark.parametrize("shape", [(3, 0), (40, 0), (3, 0, 2, 4, 4), (3, 2, 0), (3, 2, 4, 0), (3, 2, 4, 0, 5)], ids=str)
def test_empty(backend: str, shape: tuple[int, ...]) -> None:
    for options in ({}, {"readout": "mean"}, {"readout": [0.5] * shape[0]}):
        spikes, last, (dx, dv) = run_lif(backend, torch.zeros(shape), torch.zeros(shape[1:]), **OPTIONS, **options)
        assert spikes.shape == (shape if not options else shape[1:])
        assert last.shape == dv.shape == shape[1:]
        assert dx.shape == shape
    learnt = parameters(shape[2] if len(shape) > 2 else 1, synaptic_decay=True) | {
        "gain": torch.ones(1),
        "readout": torch.ones(shape[0]),
    }
    *_, gradients = run_lif(backend, torch.zeros(shape), None, **learnt, record="membrane")
    assert [g.tolist() for g in gradients[1:]] == [[0.0] * value.numel() for value in learnt.values()]
    x = torch.zeros(shape[1:]).requires_grad_()
    spikes, _ = lif(x, steps=3, **OPTIONS)
    (first,) = torch.autograd.grad(spikes.sum(), x, create_graph=True)
    assert torch.autograd.grad(first.sum(), x)[0].shape == shape[1:]


def test_lazily_negated_inputs() -> None:
    x, v = torch._neg_view(randn(20, 8)), torch._neg_view(randn(8, seed=1))
    for a, b in zip(lif(x, v, **RICH), lif(x.resolve_neg(), v.resolve_neg(), **RICH), strict=True):
        assert_same_bits(a, b)


# ---------------------------------------------------------------------------------------------------- concurrency


@needs_compiled
@cpu_only("it sets the number of CPU threads")
@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("layout", ["contiguous", "channels-last"])
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_deterministic_for_any_thread_count(dtype: torch.dtype, layout: str) -> None:
    """Also the sums over a batch, of parameters of another dtype."""
    x, v = randn(17, 23, 33, 11, dtype=dtype), randn(23, 33, 11, seed=1, dtype=reference.state_dtype(dtype))
    x = channels_last(x) if layout == "channels-last" else x
    assert x.numel() > 2 * SERIAL_BELOW
    options = parameters(33, dtype=torch.float64) | {"decay": torch.tensor([0.9], dtype=torch.bfloat16)}
    options |= {"readout": randn(17, seed=2), "record": "membrane", "reset": "delayed"}
    options |= (
        {"synaptic_decay": torch.tensor([0.4], dtype=torch.float64), "v_min": -0.1} if layout == "channels-last" else {}
    )
    results = []
    for count in (1, 1, 2, 2, 3):
        torch.set_num_threads(count)
        results.append(flat(run_lif("cpu", x, v, **options)))
    for other in results[1:]:
        assert_all_same_bits(other, results[0])


@pytest.mark.parametrize("backend", BACKENDS[1:])  # in other threads none is forced, so it is given to each call
def test_two_python_threads_at_once(backend: str) -> None:
    inputs = [(randn(40, 5000, seed=i), randn(5000, seed=9 + i)) for i in range(2)]
    expected = [flat(run_lif(backend, *pair, **RICH)) for pair in inputs]
    wrong: list[int] = []

    def work(i: int) -> None:
        for _ in range(10):
            if not all(map(torch.equal, flat(run_lif(backend, *inputs[i], **RICH)), expected[i])):
                wrong.append(i)

    workers = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert wrong == []


@cpu_only("a launch does not wait for its kernel")
@pytest.mark.usefixtures("threads")
def test_the_interpreter_goes_on_during_a_kernel() -> None:
    """Another Python thread ticks while a kernel runs: it could not, were the interpreter's lock held."""
    torch.set_num_threads(1)
    x = randn(2**18, dtype=torch.bfloat16)
    ticks: list[float] = []
    stop = threading.Event()

    def tick() -> None:
        while not stop.wait(0.001):
            ticks.append(time.perf_counter())

    def ticks_during_a_call() -> int:
        start = time.perf_counter()
        lif(x, steps=600, readout="mean", **OPTIONS)
        end = time.perf_counter()
        return sum(start < moment < end for moment in list(ticks))

    ticker = threading.Thread(target=tick)
    ticker.start()
    interval = sys.getswitchinterval()
    sys.setswitchinterval(10.0)  # so that none of the Python code around the kernel gives the lock away
    try:
        assert any(ticks_during_a_call() >= 3 for _ in range(20))  # a busy machine may need a second try
    finally:
        sys.setswitchinterval(interval)
        stop.set()
        ticker.join()


# ------------------------------------------------------------------------------- torch's machinery: ops, compile

RAW = {
    "plain": {},
    "bf16-to-f32": {"dtype": torch.bfloat16, "out": torch.float32},
    "uint8": {"out": torch.uint8},
    "soft-no-state": {"shape": (7, 6), "reset": "soft", "state": False},
    "rate": {"readout": "mean"},
    "weights": {"readout": "weights", "reset": "soft"},
    "constant": {"shape": (6,), "constant": True},
    "channels-last": {"shape": (20, 2, 3, 4, 4), "channels_last": True},
    "empty": {"shape": (20, 0)},
    "synaptic_decay": {"synaptic_decay": 0.5, "record": True},
    "synapse-parameters": {"shape": (20, 2, 3), "synaptic_decay": 0.5, "parameters": 3, "dtype": torch.bfloat16},
    "several": {"several": True, "reset": "soft", "v_min": -0.1},
    "at-once": {"reset": "at_once", "readout": "mean"},
    "record": {"record": True, "reset": "none"},
    "record-rate": {"record": True, "readout": "mean", "reset": "delayed", "dtype": torch.bfloat16},
    "parameters": {"shape": (20, 2, 3), "parameters": 3, "reset": "delayed"},
    "affine": {"shape": (20, 2, 3, 4), "parameters": 3, "affine": True, "record": True},
    "one-of-each": {"shape": (20, 2, 3, 4), "parameters": 1, "dtype": torch.float64},
    "everything": {
        "shape": (20, 2, 3, 4, 4), "channels_last": True, "parameters": 3, "readout": "weights", "record": True,
        "reset": "delayed",
    },
}  # fmt: skip


@pytest.mark.few(6)
@pytest.mark.parametrize("case", RAW)
def test_opcheck(case: str) -> None:
    c = {"shape": (20, 6), "dtype": torch.float32, "constant": False, "reset": "hard"} | RAW[case]
    x = randn(*c["shape"], dtype=c["dtype"])
    x = channels_last(x) if c.get("channels_last") else x
    inner = x.shape if c["constant"] else x.shape[1:]
    state = reference.state_dtype(x.dtype)
    v = randn(*inner, seed=1, dtype=state) if c.get("state", True) else None
    weights = torch.linspace(0, 1, 20, dtype=torch.float64) if c.get("readout") == "weights" else None
    i = randn(*inner, seed=2, dtype=state) if c.get("synaptic_decay") is not None else None
    learnt = parameters(c["parameters"], dtype=state, synaptic_decay=True) if "parameters" in c else None
    learnt = None if learnt is None else torch.stack(list(learnt.values()))
    learnt = learnt[reference.AFFINE] if c.get("affine") else learnt
    steps = 20 if c["constant"] else len(x)
    options = {"constant": c["constant"], "reset": c["reset"], "readout": c.get("readout"), "steps": steps}
    options |= {key: c[key] for key in ("synaptic_decay", "several", "v_min") if key in c}
    p = neuron(**options, record=c.get("record", False), dtype=c.get("out", x.dtype), **RICH)
    rows = stored_rows(p.steps)  # all of which are written
    torch.library.opcheck(ops.lif_fwd, (x, v, i, learnt, weights, None, *raw(p), rows))
    out, last, current, m, saved = ops.lif_fwd(x, v, i, learnt, weights, None, *raw(p), rows)
    cotangents = (
        out if p.dtype.is_floating_point else None,
        last if v is not None else None,
        current if p.synaptic else None,
        m if p.record else None,
    )
    bits = 0 if learnt is None else 2 ** len(learnt) - 1
    weighted = weights is not None
    for wanted in ((True, v is not None, i is not None, weighted, bits), (False, False, False, weighted, bits)):
        arguments = (x, v, i, learnt, weights, None, saved, *cotangents, None, *raw(p), *wanted)
        torch.library.opcheck(ops.lif_bwd, arguments)


@cpu_only("the reference is the same on any device")
def test_the_reference_differentiates_within_a_compiled_graph() -> None:
    """Such a graph runs with autograd's dispatch keys turned off, and what it differentiates within was all zeros."""
    torch._dynamo.reset()
    x, v = randn(20, 6), randn(6, seed=1)
    p = neuron(steps=20, **RICH)
    with use_backend("reference"):
        out, last, _, _, saved = ops.lif_fwd(x, v, None, None, None, None, *raw(p), 1)

        def backward(x: Tensor, v: Tensor, saved: Tensor, out: Tensor, last: Tensor) -> tuple[Tensor, ...]:
            wanted = (True, True, False, False, 0)
            return ops.lif_bwd(x, v, None, None, None, None, saved, out, last, None, None, None, *raw(p), *wanted)

        expected = backward(x, v, saved, out, last)
        assert expected[0].count_nonzero() > 0
        actual = torch.compile(backward, backend="aot_eager")(x, v, saved, out, last)
    assert_all_same_bits(actual, expected)


def train(function: Callable, x: Tensor, v: Tensor, **learnt: Tensor) -> tuple[Tensor, ...]:
    """Outputs and gradients of a (compiled) forward, with the backward outside of it."""
    x, v = x.clone().requires_grad_(), v.clone().requires_grad_()
    learnt = {key: value.clone().requires_grad_() for key, value in learnt.items()}
    outputs = function(x, v, **learnt)
    sum((o * randn(*o.shape, seed=5 + i)).sum() for i, o in enumerate(outputs)).backward()
    return *(o.detach() for o in outputs), x.grad, v.grad, *(value.grad for value in learnt.values())


@pytest.mark.few(2)
@pytest.mark.parametrize("readout", [None, "weights"], ids=str)
@pytest.mark.parametrize("kind", ["all", "affine", "one"])
def test_compile_with_tensors(kind: str, readout: str | None) -> None:
    torch._dynamo.reset()
    learnt = parameters(1 if kind == "one" else 5)
    if kind == "affine":
        learnt = {key: learnt[key] for key in ("gain", "bias")}
    learnt.pop("v_reset", None)  # which the delayed reset lacks
    if readout:
        learnt["readout"] = randn(20, seed=3)

    def layer(x: Tensor, v: Tensor, **learnt: Tensor) -> tuple[Tensor, ...]:
        return lif(x, v, **(RICH | learnt), record="membrane", reset="delayed", dtype=torch.float64)

    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x, v = randn(20, 6, 5), randn(6, 5, seed=1)
    assert_all_same_bits(train(compiled, x, v, **learnt), train(layer, x, v, **learnt))
    with torch.no_grad():
        assert_all_same_bits(compiled(x, v, **learnt), layer(x, v, **learnt))


@pytest.mark.few(3)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"readout": "mean"},
        {"reset": "soft", "surrogate": Rectangular(width=0.5), "detach_reset": True},
        {"synaptic_decay": 0.5, "i": randn(6, 5, seed=2), "v_min": -0.1},
        {"synaptic_decay": torch.tensor([0.5]), "reset": "at_once"},
        {"several": True, "reset": "soft"},
    ],
    ids=["plain", "rate", "soft-detached", "synapse-v_min", "synapse-at_once", "several"],
)
def test_compile(options: dict) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(lambda x, v: lif(x, v, **RICH, **options), fullgraph=True, backend="aot_eager")
    x, v = randn(20, 6, 5), randn(6, 5, seed=1)
    for a, b in zip(train(compiled, x, v), train(lambda x, v: lif(x, v, **RICH, **options), x, v), strict=True):
        assert_same_bits(a, b)
    with torch.no_grad():
        for a, b in zip(compiled(x, v), lif(x, v, **RICH, **options), strict=True):
            assert_same_bits(a, b)


def test_compile_a_constant_current_and_channels_last() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(lambda x, v: lif(x, v, steps=18, **RICH), fullgraph=True, backend="aot_eager")
    x, v = randn(2, 3, 4, 4).to(memory_format=torch.channels_last), randn(2, 3, 4, 4, seed=1)
    actual, expected = train(compiled, x, v), train(lambda x, v: lif(x, v, steps=18, **RICH), x, v)
    for a, b in zip(actual, expected, strict=True):
        assert_same_bits(a, b)
    assert actual[0].stride() == expected[0].stride()


def test_compile_without_state() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: lif(x, **RICH)[0], fullgraph=True, backend="aot_eager")
    x = randn(20, 6)
    assert_same_bits(compiled(x), lif(x, **RICH)[0])


def test_compile_dynamic_time_and_batch() -> None:
    """T and N stay symbols: `mark_dynamic` raises where a graph is made for one of their values."""
    torch._dynamo.reset()
    compiled = torch.compile(lambda x, v: lif(x, v, **RICH), fullgraph=True, backend="aot_eager")
    for steps, n in ((33, 7), (50, 9), (20, 12), (5, 6)):
        x, v = randn(steps, n), randn(n, seed=1)
        torch._dynamo.mark_dynamic(x, (0, 1))
        torch._dynamo.mark_dynamic(v, 0)
        for a, b in zip(compiled(x, v), lif(x, v, **RICH), strict=True):
            assert_same_bits(a, b)
        for a, b in zip(train(compiled, x, v), train(lambda x, v: lif(x, v, **RICH), x, v), strict=True):
            assert_same_bits(a, b)


def test_compile_of_layers_with_other_channels() -> None:
    """The second makes their number a symbol."""
    torch._dynamo.reset()
    compiled = torch.compile(lambda x, decay: lif(x, decay=decay, threshold=1.0), fullgraph=True, backend="aot_eager")
    for channels in (4, 6, 9):
        x, decay = randn(5, 3, channels), uniform(channels)
        for a, b in zip(compiled(x, decay), lif(x, decay=decay, threshold=1.0), strict=True):
            assert_same_bits(a, b)


def test_compile_with_every_number_dynamic() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(lambda x, v: lif(x, v, **RICH), fullgraph=True, dynamic=True, backend="aot_eager")
    x, v = randn(20, 6), randn(6, seed=1)
    for a, b in zip(compiled(x, v), lif(x, v, **RICH), strict=True):
        assert_same_bits(a, b)


@pytest.mark.slow
def test_compile_with_inductor() -> None:
    torch._dynamo.reset()

    def layer(x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        spikes, last = lif(x * 2, v, **RICH)
        return spikes * 3, last

    x, v = randn(20, 6), randn(6, seed=1)
    for a, b in zip(train(torch.compile(layer, fullgraph=True), x, v), train(layer, x, v), strict=True):
        torch.testing.assert_close(a, b)


# ------------------------------------------------------------------------------------------------ torch.func, vmap


@on_both
@pytest.mark.parametrize("readout", [None, "mean", "weights"], ids=str)
@pytest.mark.parametrize("in_dims", [(1, None), (None, 0), (0, 0), (2, 1)], ids=str)
def test_vmap(backend: str, in_dims: tuple, readout: str | None) -> None:
    size, options = 3, RICH | {"readout": readout_of(readout, 20)}
    x, v = randn(size, 20, 4, 5), randn(size, 4, 5, seed=1)
    each_x = x if in_dims[0] is not None else x[:1].expand(x.shape)
    each_v = v if in_dims[1] is not None else v[:1].expand(v.shape)
    moved = (
        x[0] if in_dims[0] is None else x.movedim(0, in_dims[0]),
        v[0] if in_dims[1] is None else v.movedim(0, in_dims[1]),
    )
    spikes, last = torch.vmap(lambda x, v: lif(x, v, **options), in_dims=in_dims)(*moved)
    for k in range(size):
        expected = lif(each_x[k], each_v[k], **options)
        assert_same_bits(spikes[k], expected[0])
        assert_same_bits(last[k], expected[1])


@on_both
@pytest.mark.parametrize("in_dims", [(0, None), (None, 1), (0, 0)], ids=str)
def test_vmap_with_a_synapse(backend: str, in_dims: tuple) -> None:
    """Over x and i, outputs and gradients of both."""
    x, i, options = randn(3, 20, 4, 5), randn(3, 4, 5, seed=1), RICH | {"synaptic_decay": 0.5}
    given = [t[0] if dim is None else t.movedim(0, dim) for t, dim in zip((x, i), in_dims, strict=True)]

    def loss(x: Tensor, i: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        outputs = lif(x, i=i, **options)
        return sum(o.square().sum() for o in outputs), outputs

    gradients, outputs = torch.vmap(torch.func.grad(loss, argnums=(0, 1), has_aux=True), in_dims=in_dims)(*given)
    for k in range(3):
        each = [t[0 if dim is None else k].clone().requires_grad_() for t, dim in zip((x, i), in_dims, strict=True)]
        total, expected = loss(*each)
        assert_all_same_bits([o[k] for o in outputs], [o.detach() for o in expected])
        assert_gradients([g[k] for g in gradients], torch.autograd.grad(total, each))


@on_both
@pytest.mark.parametrize("in_dims", [(0, None), (None, 0), (0, 0)], ids=str)
@pytest.mark.parametrize("constant", ["sequence", "constant"])
def test_vmap_of_grad(backend: str, constant: str, in_dims: tuple) -> None:
    steps = 20 if constant == "constant" else None
    x = randn(3, 4) if steps else randn(3, 20, 4)
    v = randn(3, 4, seed=1)

    def loss(x: Tensor, v: Tensor) -> Tensor:
        spikes, last = lif(x, v, steps=steps, **RICH)
        return spikes.sum() + last.square().sum()

    inputs = [t if dim == 0 else t[0] for t, dim in zip((x, v), in_dims, strict=True)]
    both = torch.vmap(torch.func.grad(loss, argnums=(0, 1)), in_dims=in_dims)(*inputs)
    for k in range(3):
        each = [t[k if dim == 0 else 0].clone().requires_grad_() for t, dim in zip((x, v), in_dims, strict=True)]
        expected = torch.autograd.grad(loss(*each), each)
        assert_gradients([g[k] for g in both], expected)


def test_gradient_of_a_shared_input_under_vmap() -> None:
    """x is shared by all copies: its gradient is the sum of theirs."""
    x, v = randn(20, 4, dtype=torch.float64), randn(3, 4, seed=1, dtype=torch.float64)
    dx = torch.func.grad(lambda x: torch.vmap(lambda v: lif(x, v, **RICH)[0])(v).square().sum())(x)
    each = [torch.func.grad(lambda x, v=v[k]: lif(x, v, **RICH)[0].square().sum())(x) for k in range(3)]
    assert_gradients([dx], [sum(each)])


@on_both
def test_vjp_and_jacobian(backend: str) -> None:
    x, v = randn(5, 3, dtype=torch.float64), randn(3, seed=1, dtype=torch.float64)
    outputs, pull = torch.func.vjp(lambda x, v: lif(x, v, **RICH), x, v)
    spikes, last, gradients = run_lif(backend, x, v, **RICH)
    assert_same_bits(outputs[0], spikes)
    assert_same_bits(outputs[1], last)
    cotangents = tuple(randn(*o.shape, seed=7 + i, dtype=o.dtype) for i, o in enumerate(outputs))
    assert_gradients(pull(cotangents), gradients)
    jacobian = torch.func.jacrev(lambda x: lif(x, v, **RICH)[1])(x)
    assert_gradients([jacobian], [torch.autograd.functional.jacobian(lambda x: lif(x, v, **RICH)[1], x)])


@on_both
@pytest.mark.parametrize("argument", [*PARAMETERS, "readout"])
def test_vmap_over_parameters(backend: str, argument: str) -> None:
    x = randn(20, 4, 3)
    options = RICH | parameters(3, synaptic_decay=True) | {"readout": randn(20, seed=1), "record": "membrane"}
    many = torch.stack([options[argument] * factor for factor in (0.5, 1.0, 1.1)])
    together = torch.vmap(lambda value: lif(x, **(options | {argument: value})))(many)
    for k in range(3):
        assert_all_same_bits([o[k] for o in together], lif(x, **(options | {argument: many[k]})))


@on_both
@pytest.mark.parametrize("arguments", [("x", "decay"), ("decay", "threshold"), ("v", "gain", "readout")], ids="-".join)
def test_gradients_per_sample(backend: str, arguments: tuple[str, ...]) -> None:
    """Of what the samples share: x is each sample's own, parameters and weights are not."""
    shared = parameters(3) | {"v": randn(4, 3, seed=1), "readout": randn(20, seed=2)}
    samples = randn(5, 20, 4, 3)

    def loss(x: Tensor, values: dict[str, Tensor]) -> Tensor:
        readout, last, m = lif(**({"x": x} | shared | values), record="membrane", reset="delayed")
        return readout.square().sum() + last.sum() + m.square().sum()

    values = {key: shared[key] for key in arguments if key != "x"}
    together = torch.vmap(torch.func.grad(loss, argnums=1), in_dims=(0, None))(samples, values)
    for k in range(5):
        each = {key: value.clone().requires_grad_() for key, value in values.items()}
        expected = torch.autograd.grad(loss(samples[k], each), list(each.values()))
        assert_gradients([together[key][k] for key in values], expected)


@on_both
@pytest.mark.parametrize("argument", ["v", *PARAMETERS, "readout"])
def test_jacobian_of_every_argument(backend: str, argument: str) -> None:
    x = randn(6, 2, 3, dtype=torch.float64)
    options = parameters(3, dtype=torch.float64, synaptic_decay=True) | {"v": randn(2, 3, seed=1, dtype=torch.float64)}
    options |= {"readout": randn(6, seed=2, dtype=torch.float64)}

    def outputs(value: Tensor) -> tuple[Tensor, ...]:
        return lif(x, **(options | {argument: value}), record="membrane")

    actual = torch.func.jacrev(outputs)(options[argument])
    assert_gradients(actual, torch.autograd.functional.jacobian(outputs, options[argument]))
    assert any(jacobian.abs().sum() > 0 for jacobian in actual)


@on_both
def test_autocast_around_a_convolution(backend: str) -> None:
    torch.manual_seed(0)
    conv = torch.nn.Conv2d(2, 3, 3, padding=1).to(memory_format=torch.channels_last)
    images = randn(6 * 4, 2, 5, 5).to(memory_format=torch.channels_last)
    with torch.autocast(DEVICE.type, torch.bfloat16):
        current = conv(images).unflatten(0, (6, 4))
        current.retain_grad()
        spikes, v = lif(current, **OPTIONS)
        assert lif(randn(3, 2), **OPTIONS)[0].dtype == torch.float32  # fp32 stays what it is
    assert current.dtype == spikes.dtype == torch.bfloat16
    assert v.dtype == torch.float32
    assert spikes.stride() == current.stride()
    (spikes.float().square().sum() + v.sum()).backward()
    expected = current.detach().requires_grad_()
    with use_backend("reference"):
        spikes, v = lif(expected, **OPTIONS)
        (spikes.float().square().sum() + v.sum()).backward()
    assert_gradients([current.grad], [expected.grad])
    assert conv.weight.grad.abs().sum() > 0


def test_meta_tensors() -> None:
    x = torch.empty(20, 3, 4, device="meta", dtype=torch.bfloat16)
    learnt = {key: value.to("meta") for key, value in parameters(4).items()}
    for options in (OPTIONS, learnt):
        spikes, v, m = lif(x, record="membrane", **options)
        assert (spikes.shape, spikes.dtype, spikes.device.type) == ((20, 3, 4), torch.bfloat16, "meta")
        assert (v.shape, v.dtype, v.device.type) == ((3, 4), torch.float32, "meta")
        assert (m.shape, m.dtype, m.device.type) == ((20, 3, 4), torch.float32, "meta")
    rate, _ = lif(x, readout="mean", dtype=torch.float64, **OPTIONS)
    assert (rate.shape, rate.dtype) == ((3, 4), torch.float64)
    assert lif(x, dtype=torch.uint8, **OPTIONS)[0].dtype == torch.uint8


# -------------------------------------------------------------------------------------------------------- bad input


class Mine(Sigmoid):
    """Whose formulas the kernels would not see."""


X = torch.zeros(4, 3)
MULTIPLE = {"fire": "multi_spike", "reset": Soft()}
MULTIPLE = {"fire": "multi_spike", "reset": Soft()}
BAD = {
    "x-list": (TypeError, "x: got list", {"x": [1.0]}),
    "x-integer": (TypeError, "x: got dtype int64", {"x": X.long()}),
    "x-complex": (TypeError, "x: got dtype complex64", {"x": X.cfloat()}),
    "x-one-axis": (ValueError, "x: got shape (3,)", {"x": X[0]}),
    "x-scalar": (ValueError, "x: got shape ()", {"x": X[0, 0], "steps": 3}),
    "x-no-time": (ValueError, "x's time axis T: got 0", {"x": X[:0]}),
    "x-sparse": (TypeError, "x: ", {"x": X.to_sparse()}),
    "steps-0": (ValueError, "steps: got 0", {"x": X[0], "steps": 0}),
    "steps-negative": (ValueError, "steps: got -1", {"x": X[0], "steps": -1}),
    "steps-float": (ValueError, "steps: got 3.0", {"x": X[0], "steps": 3.0}),
    "steps-bool": (ValueError, "steps: got True", {"x": X[0], "steps": True}),
    "v-list": (TypeError, "v: got list", {"v": [0.0] * 3}),
    "v-shape": (ValueError, "v: got shape (4,), accepted is (3,)", {"v": torch.zeros(4)}),
    "v-broadcast": (ValueError, "v: got shape (1,)", {"v": torch.zeros(1)}),
    "v-dtype": (TypeError, "v: got dtype torch.float64", {"v": torch.zeros(3, dtype=torch.float64)}),
    "v-half": (TypeError, "v: got dtype torch.bfloat16", {"x": X.bfloat16(), "v": torch.zeros(3).bfloat16()}),
    "v-device": (ValueError, "v: got device meta, accepted is cpu", {"v": torch.zeros(3, device="meta")}),
    "i-without-synapse": (
        ValueError,
        "i: got a tensor, accepted is None where synaptic_decay is None",
        {"i": torch.zeros(3)},
    ),
    "i-shape": (ValueError, "i: got shape (4,), accepted is (3,)", {"synaptic_decay": 0.5, "i": torch.zeros(4)}),
    "i-dtype": (
        TypeError,
        "i: got dtype torch.float64",
        {"synaptic_decay": 0.5, "i": torch.zeros(3, dtype=torch.float64)},
    ),
    "i-list": (TypeError, "i: got list", {"synaptic_decay": 0.5, "i": [0.0] * 3}),
    "v_min-infinite": (ValueError, "v_min: got -inf", {"v_min": -float("inf")}),
    "v_min-nan": (ValueError, "v_min: got nan", {"v_min": float("nan")}),
    "v_min-word": (ValueError, "v_min: got low", {"v_min": "low"}),
    "multi_spike-delayed": (
        ValueError,
        "reset: got Delayed(detach=False, corrected=False), accepted with fire='multi_spike' are",
        MULTIPLE | {"reset": Delayed()},
    ),
    "multi_spike-hard": (ValueError, "reset: got Hard(), whose spikes have", MULTIPLE | {"reset": Hard()}),
    "multi_spike-smooth": (
        ValueError,
        "surrogate: got one with spiking=False",
        MULTIPLE | {"surrogate": Sigmoid(spiking=False)},
    ),
    "multi_spike-uint8": (ValueError, "dtype: got torch.uint8", MULTIPLE | {"dtype": torch.uint8}),
    "multi_spike-threshold-0": (
        ValueError,
        "threshold: got 0.0, accepted with fire='multi_spike' is a number above 0",
        MULTIPLE | {"threshold": 0},
    ),
    "fire-unknown": (ValueError, "fire: got '>>', accepted are '>=', '>', 'multi_spike'", {"fire": ">>"}),
    "fire-list": (ValueError, "fire: got ['>']", {"fire": [">"]}),
    "unknown": (TypeError, "lif: got the unknown keyword treshold", {"treshold": 1.0}),
    "renamed-rest": (TypeError, "lif: got the keyword rest, accepted in its place is bias=", {"rest": 0.0}),
    "renamed-synapse": (TypeError, "lif: got the keyword synapse, accepted in its place", {"synapse": 0.5}),
    "renamed-v_reset": (
        TypeError,
        "lif: got the keyword v_reset, accepted in its place is reset=Hard",
        {"v_reset": 0.0},
    ),
    "renamed-strict": (TypeError, 'lif: got the keyword strict, accepted in its place is fire=">"', {"strict": True}),
    "threshold-float32": (ValueError, "threshold: got 1e+39, accepted", {"threshold": 1e39}),
    "v_min-float32": (ValueError, "v_min: got -1e+39, accepted is a finite number (in float32)", {"v_min": -1e39}),
    "reset-word": (TypeError, "reset: got 'hard', accepted are Hard(), Soft(), Delayed() of esvae", {"reset": "hard"}),
    "reset-base": (TypeError, "reset: got ", {"reset": Reset()}),
    "reset-class": (TypeError, "reset: got <class", {"reset": Hard}),
    "reset-list": (TypeError, "reset: got [Hard(", {"reset": [Hard()]}),
    "surrogate-class": (TypeError, "surrogate: got <class", {"surrogate": Sigmoid}),
    "surrogate-string": (TypeError, "surrogate: got 'atan'", {"surrogate": "atan"}),
    "surrogate-subclass": (TypeError, "surrogate: got Mine(", {"surrogate": Mine()}),
    "surrogate-base": (TypeError, "surrogate: ", {"surrogate": Surrogate()}),
    "readout-word": (ValueError, "readout: got 'rate', accepted are None, 'mean' or 4 weights", {"readout": "rate"}),
    "readout-short": (ValueError, "readout: got weights of shape (3,), accepted is (4,)", {"readout": [1.0] * 3}),
    "readout-matrix": (ValueError, "readout: got weights of shape (4, 1)", {"readout": torch.ones(4, 1)}),
    "readout-number": (ValueError, "readout: ", {"readout": 0.5}),
    "readout-words": (TypeError, "readout: ", {"readout": [1.0, "a", 2.0, 3.0]}),
    "readout-object": (TypeError, "readout: ", {"readout": object()}),
    "readout-meta": (TypeError, "readout: ", {"readout": torch.ones(4, device="meta")}),
    "record-spikes": (ValueError, "record: got 'spikes', accepted are None and 'membrane'", {"record": "spikes"}),
    "record-bool": (ValueError, "record: got True", {"record": True}),
    "dtype-integer": (TypeError, "dtype: got torch.int64, accepted are float64", {"dtype": torch.int64}),
    "dtype-word": (TypeError, "dtype: got 'float32'", {"dtype": "float32"}),
    "dtype-list": (TypeError, "dtype: got []", {"dtype": []}),
    "uint8-gradient": (ValueError, "dtype: got torch.uint8", {"x": X.clone().requires_grad_(), "dtype": torch.uint8}),
    "uint8-gradient-of-v": (
        ValueError,
        "dtype: got torch.uint8",
        {"v": torch.zeros(3).requires_grad_(), "dtype": torch.uint8},
    ),
    "uint8-gradient-of-decay": (
        ValueError,
        "dtype: got torch.uint8",
        {"decay": torch.ones(1).requires_grad_(), "dtype": torch.uint8},
    ),
    "uint8-rate": (ValueError, "dtype: got torch.uint8", {"readout": "mean", "dtype": torch.uint8}),
    "uint8-weights": (ValueError, "dtype: got torch.uint8", {"readout": [1.0] * 4, "dtype": torch.uint8}),
    "uint8-smooth": (ValueError, "dtype: got torch.uint8", {"surrogate": Sigmoid(spiking=False), "dtype": torch.uint8}),
}


@cpu_only("arguments are validated before a backend is chosen")
@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named_in_one_line(case: str) -> None:
    error, start, arguments = BAD[case]
    one_line(lambda: esvae_kernels.lif(**({"x": X} | OPTIONS | arguments)), error, start)


@cpu_only("arguments are validated before a backend is chosen")
@pytest.mark.parametrize("argument", PARAMETERS)
def test_bad_parameters(argument: str) -> None:
    x = torch.zeros(4, 2, 3, 5)  # three channels
    name = "Hard(v_reset)" if argument == "v_reset" else argument

    def refuses(value: object, error: type[Exception], what: str, x: Tensor = x) -> None:
        one_line(lambda: lif(x, **(OPTIONS | {argument: value})), error, f"{name}: got {what}")

    for value in (float("nan"), float("inf"), np.float32("inf"), None, "0.5", True, 1j, [0.5], 10**400, 1e39):
        if value is not None or argument != "synaptic_decay":  # None: no synapse
            refuses(value, ValueError, "")
    for shape in ((0,), (2,), (4,), (3, 1), (1, 1)):
        refuses(torch.ones(shape), ValueError, f"shape {shape}, accepted are a number, (1,), (3,) or (3, 5)")
    refuses(torch.ones(3), ValueError, "shape (3,), accepted are a number, (1,)", x[:, :, 0, 0])  # (T, N): no channels
    for dtype in (torch.int64, torch.bool, torch.complex64):
        refuses(torch.ones(3, dtype=dtype), TypeError, f"dtype {str(dtype).removeprefix('torch.')}")
    refuses(torch.ones(3, device="meta"), ValueError, "device meta, accepted is cpu")
    refuses(torch.ones(3).to_sparse(), TypeError, "layout torch.sparse_coo")


def test_accepted_forms() -> None:
    """What looks alike is alike: weights as list, tensor or array; T as an argument; the spikes' own dtype."""
    x = randn(4, 3)
    expected, _ = lif(x, readout=WEIGHTS, **OPTIONS)
    for weights in (
        tuple(WEIGHTS),
        torch.tensor(WEIGHTS, dtype=torch.float64),
        torch.tensor(WEIGHTS).double().cpu().numpy(),
    ):
        assert_same_bits(lif(x, readout=weights, **OPTIONS)[0], expected)
    assert_same_bits(lif(x, dtype=torch.float32, **OPTIONS)[0], lif(x, **OPTIONS)[0])
    assert_same_bits(
        lif(x[0], steps=4, **OPTIONS)[0], lif(x[:1].expand(4, 3), torch.zeros(3), decay=0.3, threshold=0.5)[0]
    )


def test_raw_op_refuses_an_unknown_surrogate() -> None:
    p = neuron(steps=3, **OPTIONS)._replace(surrogate=99)
    with pytest.raises(ValueError, match="neuron: got surrogate=99, accepted are 0 to 7"):
        ops.lif_fwd(torch.zeros(3, 2), None, None, None, None, None, *raw(p), 0)
