"""The Triton LIF under Triton's interpreter, against the reference: on few neurons, as it takes milliseconds a step."""

from __future__ import annotations

import itertools

import pytest
import torch
from kernel_helpers import (
    DTYPES,
    SMOOTH,
    SURROGATES,
    assert_all_same_bits,
    assert_gradients,
    assert_same_bits_or_nan,
    assert_sums,
    channels_last,
    flat,
    name,
    near_threshold,
    neuron,
    parameters,
    randn,
    raw,
    run_lif,
)
from parts import lif
from torch import Tensor
from triton_helpers import interpreted  # noqa: F401 - a fixture

from esvae_kernels import use_backend
from esvae_kernels.ops.lif import reference
from esvae_kernels.ops.lif.reference import PARAMETERS, RESETS
from esvae_kernels.surrogate import Sigmoid, Surrogate

RICH = {"decay": 0.9, "threshold": 0.4, "gain": 0.7, "bias": 0.05, "v_reset": -0.1}
ops = torch.ops.esvae_kernels
STEPS = (1, 3, 4, 7, 16, 17, 20, 33)
ROWS = (
    (5,),
    (64,),
    (3, 5, 3),
    (2, 3, 4),
    (2, 8, 2, 4),
)  # (N, *): odd ones, and such that are accessed 16 bytes at once
pytestmark = pytest.mark.usefixtures("poisoned", "interpreted")


def check(x: Tensor, v: Tensor | None = None, i: Tensor | None = None, **options) -> None:
    """Outputs equal in every bit, gradients within their tolerance; of smooth spikes outputs within that too, as exp,
    atan and erf differ in the last place between numpy and torch."""
    state = reference.state_dtype(x.dtype)
    v, i = (None if t is None else t.to(state) for t in (v, i))
    *outputs, gradients = run_lif("reference", x, v, i=i, **options)
    *actual, found = run_lif("triton", x, v, i=i, **options)
    own = 1 + (v is not None) + (i is not None)
    smooth = "surrogate" in options and not options["surrogate"].spiking
    (assert_gradients if smooth else assert_all_same_bits)(actual, outputs)
    assert_gradients(found[:own], gradients[:own])
    assert_sums(found[own:], gradients[own:], x.numel() * (options.get("steps") or 1), state)


def pairwise(**axes: tuple) -> list[dict]:
    """A few combinations in which every two values of two axes meet, or nearly so: greedily, of random ones."""
    import random

    draw, names = random.Random(0), list(axes)
    pairs = {
        (a, i, b, j)
        for a, b in itertools.combinations(names, 2)
        for i, j in itertools.product(range(len(axes[a])), range(len(axes[b])))
    }
    rows = []
    while pairs:
        candidates = [{n: draw.randrange(len(axes[n])) for n in names} for _ in range(30)]
        met = [{(a, c[a], b, c[b]) for a, b in itertools.combinations(names, 2)} & pairs for c in candidates]
        best = max(range(len(met)), key=lambda k: len(met[k]))
        if not met[best]:
            continue
        pairs -= met[best]
        rows.append({n: axes[n][candidates[best][n]] for n in names})
    return rows


GRID = pairwise(
    reset=RESETS,
    strict=(False, True),
    detach_reset=(False, True),
    dtype=tuple(DTYPES.values()),
    steps=STEPS,
    row=ROWS,
    readout=(None, "mean", "weights"),
    record=(None, "membrane"),
    constant=(False, True),
    v=(False, True),
    surrogate=tuple(SURROGATES),
    learnt=("", "one", "gain-bias", "some", "all"),
    last=(False, True),
)


def learnt_of(kind: str, channels: int) -> dict[str, Tensor]:
    """Those of the parameters that are tensors."""
    own = PARAMETERS[:-1]
    names = {"": (), "one": own, "gain-bias": own[1:3], "some": own[::3], "all": own, "synapse": PARAMETERS}[kind]
    return {k: parameters(1 if kind == "one" else channels, synaptic_decay=True)[k] for k in names}


def check_case(case: dict, index: int) -> None:
    case = dict(case)
    steps, row, dtype, constant = (case.pop(k) for k in ("steps", "row", "dtype", "constant"))
    x = randn(*row, seed=index, dtype=dtype) if constant else randn(steps, *row, seed=index, dtype=dtype)
    if case.pop("last") and len(row) > 2:
        x = channels_last(x, 1 if constant else 2)
    v, i = (randn(*row, seed=index + 1 + k) if case.pop(name, False) else None for k, name in enumerate("vi"))
    if case["readout"] == "weights":
        case["readout"] = randn(steps, seed=3)
    channels = row[1] if len(row) > 1 else 1
    options = RICH | {"decay": (0.25, 0.3, 0.9)[index % 3]} | case | learnt_of(case.pop("learnt"), channels)
    del options["learnt"]
    check(x, v, i, steps=steps if constant else None, **options)


@pytest.mark.few(20)
@pytest.mark.parametrize("case", GRID, ids=[str(k) for k in range(len(GRID))])
def test_equals_the_reference(case: dict) -> None:
    check_case(case, GRID.index(case))


SPIKING = [{"reset": reset} for reset in RESETS]
SPIKING += [{"reset": reset, "several": True, "detach_reset": reset == "hard"} for reset in RESETS[:3]]
EXTENDED = pairwise(
    spiking=SPIKING,
    v_min=(None, -0.2, 0.6),  # 0.6: above the threshold
    synapse=({"synaptic_decay": 0.6, "i": True}, {"synaptic_decay": 0.6, "i": False}, {}),
    steps=(3, 9, 17),
    dtype=(torch.float32, torch.float64, torch.bfloat16),
    row=ROWS[1:4],
    readout=(None, "mean", "weights"),
    record=(None, "membrane"),
    constant=(False, True),
    v=(False, True),
    learnt=("", "gain-bias", "all"),
    last=(False, True),
)


@pytest.mark.few(12)
@pytest.mark.parametrize("case", EXTENDED, ids=[str(k) for k in range(len(EXTENDED))])
def test_synapse_counts_and_floor_equal_the_reference(case: dict) -> None:
    case, index = dict(case), EXTENDED.index(case)
    synapse = case.pop("synapse")
    if synapse and case["learnt"] == "all":
        case["learnt"] = "synapse"
    check_case(case | case.pop("spiking") | synapse, index)


@pytest.mark.parametrize("reset", RESETS)
def test_smooth_spikes_above_a_floor(reset: str) -> None:
    """Where the floor is so high that the spike at v is not that at m."""
    x, v = randn(5, 40, dtype=torch.float64), randn(40, seed=1, dtype=torch.float64)
    check(x, v, **(RICH | parameters(1) | {"reset": reset, "v_min": 0.5, "surrogate": Sigmoid(3.0, spiking=False)}))


@pytest.mark.few(8)
@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=name)
@pytest.mark.parametrize("decay", [0.25, 0.3, 0.9])
def test_one_unit_in_the_last_place_of_the_threshold(decay: float, dtype: torch.dtype, reset: str) -> None:
    for strict, affine in ((False, {}), (True, {"gain": 0.7, "bias": 0.1})):
        options = {"decay": decay, "threshold": 0.2, "reset": reset, "strict": strict} | affine
        check(*near_threshold((6, 512), dtype, **options), **options)


@pytest.mark.parametrize("surrogate", SURROGATES + SMOOTH, ids=lambda s: f"{name(s)}{'-smooth' * (not s.spiking)}")
def test_surrogates(surrogate: Surrogate) -> None:
    for dtype, reset in ((torch.float64, "hard"), (torch.float32, "delayed"), (torch.float64, "soft")):
        x, v = randn(5, 40, dtype=dtype) / 2, randn(40, seed=1, dtype=dtype) / 2
        options = RICH | {"surrogate": surrogate, "reset": reset, "threshold": torch.tensor([0.4], dtype=dtype)}
        check(x, v, **options)


@pytest.mark.few(10)
@pytest.mark.parametrize("out", [*DTYPES.values(), torch.uint8], ids=[*DTYPES, "u8"])
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_dtype_of_the_spikes(dtype: torch.dtype, out: torch.dtype) -> None:
    x, options = randn(5, 3, 24, dtype=dtype), RICH | {"dtype": out}
    if out.is_floating_point:
        return check(x, **options)
    results = []
    for backend in ("triton", "reference"):
        with use_backend(backend):
            results.append(lif(x, **options))
    return assert_all_same_bits(*results)


# Several programs, along both axes of the matrix; rows that end within a tile; one channel, channels of one neuron.
CHANNELS = {
    "T3-N2-C2-15x20": (3, 2, 2, 15, 20),
    "T3-N2-C1-20x20": (3, 2, 1, 20, 20),
    "T2-N5-C130": (2, 5, 130),
    "T2-N1-C96-2x2": (2, 1, 96, 2, 2),
}


@pytest.mark.few(5)
@pytest.mark.parametrize("layout", ["contiguous", "channels-last"])
@pytest.mark.parametrize("case", CHANNELS)
def test_parameters_per_channel(case: str, layout: str) -> None:
    shape = CHANNELS[case]
    for index, dtype in enumerate((torch.float32, torch.bfloat16)):
        x, v = randn(*shape, seed=index, dtype=dtype), randn(*shape[1:], seed=9)
        x = channels_last(x) if layout == "channels-last" else x
        learnt = parameters(shape[2], synaptic_decay=True)
        learnt = learnt if index else {k: learnt[k] for k in ("gain", "bias")}
        check(x, v, reset=RESETS[index], **(RICH | learnt))


@pytest.mark.parametrize("names", [("gain", "bias"), PARAMETERS], ids=["affine", "all"])
def test_the_center_of_the_current(names: tuple[str, ...]) -> None:
    """The gradient of the gain is that of gain * (x - center)."""
    x, center = randn(18, 3, 4, 6), randn(4, seed=5)
    options = neuron(steps=18, **RICH)
    values = torch.stack([parameters(4, synaptic_decay=True)[k] for k in names])
    saved, dout = randn(1, 3, 4, 6, seed=2), randn(18, 3, 4, 6, seed=3)
    with use_backend("reference"):
        saved = ops.lif_fwd(x[:16], None, None, values, None, None, *raw(options._replace(steps=16)), 0)[1][None]
    wanted = reference.Wanted(x=True, v=False, i=False, weights=False, parameters=(1 << len(names)) - 1)
    arguments = (x, None, None, values, None, None, saved, dout, None, None, None, center, *raw(options), *wanted)
    results = []
    for backend in ("triton", "reference"):
        with use_backend(backend):
            results.append(ops.lif_bwd(*arguments))
    assert_gradients(results[0][:1], results[1][:1])
    assert_sums(results[0][3:4], results[1][3:4], x.numel(), torch.float32)


@pytest.mark.parametrize("argument", [*PARAMETERS, "readout"])
def test_gradient_of_one_parameter_alone(argument: str) -> None:
    steps = 5
    values = parameters(3, synaptic_decay=True) | {"readout": randn(steps, seed=3)}
    for reset in RESETS:
        check(randn(steps, 4, 3, 2), **(RICH | {"reset": reset, argument: values[argument]}))
    if argument in ("gain", "synaptic_decay"):  # sums over the filtered current
        options = RICH | {"synaptic_decay": 0.6, argument: values[argument]}
        check(randn(33, 4, 3, 2), None, randn(4, 3, 2, seed=2), **options)


@pytest.mark.parametrize("reset", RESETS)
def test_infinities_and_nan(reset: str) -> None:
    special = torch.tensor([float("inf"), -float("inf"), float("nan"), -0.0, 3e38, -3e38, 1e-45])
    x, v = randn(6, 28), randn(28, seed=1)
    x[1, ::4], v[:7] = special, special
    more = [{}, {"strict": True}, {"synaptic_decay": 0.5, "v_min": -0.2}]
    more += [{"several": True, "detach_reset": True}] if reset in RESETS[:3] else []
    for extra in more:
        options = RICH | {"reset": reset, "record": "membrane"} | extra
        results = []
        for backend in ("triton", "reference"):
            with use_backend(backend):
                results.append(lif(x, v, **options))
        for actual, expected in zip(*results, strict=True):
            assert_same_bits_or_nan(actual, expected)


@pytest.mark.parametrize("shape", [(3, 0), (3, 2, 0), (3, 0, 4, 2)], ids=str)
def test_nothing(shape: tuple[int, ...]) -> None:
    for learnt in ({}, {k: torch.tensor([0.5]) for k in PARAMETERS}):
        check(torch.empty(shape), torch.empty(shape[1:]), **(RICH | learnt))
        check(torch.empty(shape[1:]), steps=3, readout=randn(3), **(RICH | learnt))


def test_sums_are_the_same_in_every_run() -> None:
    x, options = randn(3, 40, 3, 12), RICH | parameters(3) | {"readout": randn(3)}
    first, second = (run_lif("triton", x, **options) for _ in range(2))
    assert_all_same_bits(flat(first), flat(second))


def test_gradients_that_nobody_asks_for() -> None:
    """Through one output alone, to one input alone."""
    x, v = randn(17, 8), randn(8, seed=1)
    for output, inputs in itertools.product((0, 1), ((0,), (1,), (0, 1))):
        results = []
        for backend in ("triton", "reference"):
            with use_backend(backend):
                tensors = [x.clone(), v.clone()]
                for k in inputs:
                    tensors[k].requires_grad_()
                o = lif(*tensors, **RICH)[output]
                results.append(torch.autograd.grad(o, [tensors[k] for k in inputs], randn(*o.shape, seed=7)))
        assert_gradients(*results)


@pytest.mark.parametrize("dtype", ["f32", "f64"])
def test_a_count_in_parts(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As over more than 2^24 steps, here in parts of 8."""
    import triton.language as tl

    from esvae_kernels.ops.lif import triton as kernels

    monkeypatch.setattr(kernels, "COUNTED", 8)
    monkeypatch.setattr(kernels, "_COUNTED", tl.constexpr(8))
    monkeypatch.setattr(reference, "COUNTED", 8)
    counts_on, kind = [], kernels._Kind
    monkeypatch.setattr(kernels, "_Kind", lambda **known: counts_on.append(known["COUNTS_ON"]) or kind(**known))
    for steps in (8, 9, 23):
        check(randn(steps, 3, 5, dtype=DTYPES[dtype]), readout="mean", **RICH)
    assert set(counts_on[:1]) == {False}
    assert set(counts_on[-1:]) == {True}  # as a sum in fp32 would do for so few steps, but not for 2^24
