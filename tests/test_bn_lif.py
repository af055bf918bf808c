"""Batch norm and LIF in one: against torch's batch norm, the kernels against the reference, every way to call it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import hypothesis
import hypothesis.strategies as st
import kernel_helpers
import pytest
import torch
from kernel_helpers import (
    BACKENDS,
    DEVICE,
    DTYPES,
    KERNELS,
    NEAR,
    SMOOTH,
    SURROGATES,
    assert_flips_at_crossings,
    assert_near,
    assert_same_bits,
    bn_lif_by_torch,
    channels_last,
    cpu_only,
    in_turn,
    name,
    needs_compiled,
    neuron,
    on_gpu,
    one_line,
    randn,
    raw,
    use_kernel,
)
from parts import bn_lif, lif
from torch import Tensor

import esvae_kernels
from esvae_kernels import use_backend
from esvae_kernels.layout import is_channels_last
from esvae_kernels.ops.bn_lif import reference
from esvae_kernels.ops.lif.reference import state_dtype
from esvae_kernels.surrogate import ATan, Gaussian, Sigmoid

NEURON = {"decay": 0.9, "threshold": 0.4, "v_reset": -0.1}
RESETS = ["hard", "soft", "none", "delayed"]
LAYOUTS = {"contiguous": lambda y, channel: y, "channels-last": channels_last}
ops = torch.ops.esvae_kernels
pytestmark = pytest.mark.usefixtures("poisoned")
on_both = pytest.mark.parametrize("backend", BACKENDS, indirect=True)
on_kernels = pytest.mark.parametrize("kernel", KERNELS, indirect=True)
in_both_layouts = pytest.mark.parametrize("layout", LAYOUTS)
in_both_modes = pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])


class Result(NamedTuple):
    outputs: tuple[Tensor, ...]
    gradients: dict[str, Tensor]  # by argument
    running: tuple[Tensor, Tensor]  # afterwards

    def tensors(self) -> list[Tensor]:
        return [*self.outputs, *self.gradients.values(), *self.running]


def run(op: Callable[..., tuple[Tensor, ...]], arguments: dict) -> Result:
    """Calls `op` on copies, with gradients of all tensors for fixed cotangents that every dtype holds exactly."""
    running = {k: arguments[k].clone() for k in ("running_mean", "running_var")}
    leaves = {
        k: t.detach().requires_grad_() for k, t in arguments.items() if isinstance(t, Tensor) and k not in running
    }
    outputs = op(**(arguments | leaves | running))
    cotangents = [randn(*o.shape, seed=7 + k).mul(32).round().div(32).to(o.dtype) for k, o in enumerate(outputs)]
    found = torch.autograd.grad(outputs, leaves.values(), cotangents, allow_unused=True, materialize_grads=True)
    return Result(tuple(o.detach() for o in outputs), dict(zip(leaves, found, strict=True)), tuple(running.values()))


def on(backend: str, arguments: dict) -> Result:
    with use_backend(backend):
        return run(bn_lif, arguments)


def in_fp64(arguments: dict) -> dict:
    """The same numbers in fp64."""
    return {k: a.double() if isinstance(a, Tensor) else a for k, a in arguments.items()} | {"dtype": None}


def norm(channels: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> dict:
    """Weights, bias and running statistics that fit a y of mean 0.5 and standard deviation 2."""
    return {
        "weight": randn(channels, seed=seed + 11, dtype=dtype) * 0.3 + 1,
        "bias": randn(channels, seed=seed + 12, dtype=dtype) * 0.2,
        "running_mean": randn(channels, seed=seed + 13, dtype=dtype) * 0.1 + 0.5,
        "running_var": randn(channels, seed=seed + 14, dtype=dtype).abs() + 3,
    }


def per_channel(channels: int, dtype: torch.dtype = torch.float64) -> dict:
    return {
        "decay": torch.linspace(0.3, 0.95, channels, dtype=dtype),
        "threshold": torch.linspace(0.6, 0.2, channels, dtype=dtype),
        "v_reset": torch.linspace(-0.1, 0.1, channels, dtype=dtype),
    }


def call(
    shape: Sequence[int],
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    training: bool = True,
    constant: bool = False,
    layout: str = "contiguous",
    parameters: str = "numbers",
    readout: str | None = None,
    start: bool = True,
    **options,
) -> dict:
    """The arguments of `bn_lif` for a sequence of `shape` (T, N, C, *); `constant`: of equal steps.

    `parameters`: "numbers", "one" element each or one "per channel". `readout`: None, "mean" or "weights".
    """
    steps, *inner = shape
    channels, state = shape[2], state_dtype(dtype)
    y = randn(*(inner if constant else shape), seed=seed).mul(2).add(0.5).to(dtype)
    neurons = per_channel(channels, state) if parameters == "per channel" else NEURON
    if parameters == "one":
        neurons = {k: torch.tensor([value], dtype=state) for k, value in NEURON.items()}
    return {
        "y": LAYOUTS[layout](y, 1 if constant else 2),
        "v": randn(*inner, seed=seed + 1, dtype=state) if start else None,
        "training": training,
        "steps": steps if constant else None,
        "scale": 0.7,
        "momentum": 0.3,
        "readout": randn(steps, seed=3, dtype=torch.float64) if readout == "weights" else readout,
        "surrogate": SURROGATES[seed % len(SURROGATES)],
        **norm(channels, seed, state),
        **neurons,
        **options,
    }


def assert_equal(actual: Result, expected: Result, tolerance: float, floor: float = 0.0) -> None:
    """Outputs, gradients and running buffers; spikes that are not rounded have to be the same ones."""
    assert actual.gradients.keys() == expected.gradients.keys()
    for a, e in zip(actual.outputs, expected.outputs, strict=True):
        assert_near(a, e, tolerance)
    for key, gradient in actual.gradients.items():
        assert_near(gradient, expected.gradients[key], tolerance, floor if key == "y" else 0)
    for a, e in zip(actual.running, expected.running, strict=True):
        assert_near(a, e, 1e-12)


# -------------------------------------------------------------------------------------------------- against torch

SHAPES = [(5, 4, 7), (18, 3, 3, 9), (7, 4, 6, 5, 3), (33, 2, 1, 3, 2), (1, 6, 5, 2, 2), (16, 1, 4, 7)]
GRID = list(
    itertools.product(
        ("training", "evaluation"), RESETS, (None, "mean", "weights"), ("", "recorded"), ("sequence", "constant")
    )
)


@on_both
@pytest.mark.parametrize(
    ("mode", "reset", "readout", "record", "constant"),
    GRID,
    ids=["-".join(str(c) for c in choice if c != "") for choice in GRID],
)
def test_is_batch_norm_and_lif(
    backend: str, mode: str, reset: str, readout: str | None, record: str, constant: str
) -> None:
    index = GRID.index((mode, reset, readout, record, constant))
    arguments = call(
        SHAPES[index % 6],
        seed=index,
        training=mode == "training",
        reset=reset,
        readout=readout,
        record="membrane" if record else None,
        constant=constant == "constant",
        layout=list(LAYOUTS)[index // 2 % 2],
        parameters=("per channel", "one", "numbers")[index // 3 % 3],
        detach_reset=index % 5 == 0,
        start=index % 7 != 0,
    )
    assert_equal(on(backend, arguments), run(bn_lif_by_torch, arguments), 1e-11)


# Blocks are of 1024 doubles or 2048 floats in the LIF, of 16384 elements in the statistics, pieces of 512 in both.
ODD_SIZES = {
    "C1": (3, 5, 1, 61, 67),
    "C3-inner-667": (3, 5, 3, 23, 29),
    "C7-inner-667": (2, 5, 7, 23, 29),
    "C130-inner-143": (2, 2, 130, 11, 13),
    "C130-no-space": (5, 65, 130),
    "C7-no-space": (2, 2501, 7),
    "C3-channel-beyond-blocks": (1, 2, 3, 20011),
    "C2100-beyond-a-block-of-neurons": (3, 5, 2100),
    "C17001-beyond-a-block-of-statistics": (2, 2, 17001),
}


@in_both_layouts
@pytest.mark.parametrize("case", ODD_SIZES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=name)
def test_channels_that_do_not_align_with_blocks(dtype: torch.dtype, case: str, layout: str) -> None:
    """fp32 against fp64 of the same inputs."""
    for constant in (False, True)[: 1 + (dtype == torch.float32)]:
        arguments = call(ODD_SIZES[case], dtype=dtype, layout=layout, constant=constant, parameters="per channel")
        arguments |= norm(ODD_SIZES[case][2])  # fp64: what is rounded is not the running buffers
        expected = run(bn_lif_by_torch, in_fp64(arguments))
        for backend in BACKENDS[1:]:
            assert_equal(on(backend, arguments), expected, 5 * NEAR[dtype])


@on_both
@pytest.mark.parametrize("momentum", [0.1, 1.0, 0.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=name)
@pytest.mark.parametrize("constant", [False, True], ids=["sequence", "constant"])
def test_running_buffers_over_steps(backend: str, constant: bool, dtype: torch.dtype, momentum: float) -> None:
    """They are updated in place, and what evaluation then takes; nothing else of the norm changes."""
    mine, theirs = norm(5, dtype=dtype), norm(5)
    before = {k: t.clone() for k, t in mine.items()}
    for seed in range(3):
        arguments = call((4, 3, 5, 2, 3), seed=seed, constant=constant, momentum=momentum, dtype=dtype)
        bn_lif(**(arguments | mine))
        bn_lif_by_torch(**(in_fp64(arguments) | theirs))
    evaluation = call((4, 3, 5, 2, 3), seed=3, training=False, constant=constant)
    spikes, v = bn_lif(**(evaluation | mine))
    expected = bn_lif_by_torch(**(evaluation | theirs))
    for key in ("running_mean", "running_var"):
        assert_near(mine[key], theirs[key], 1e-12 if dtype == torch.float64 else 1e-6)
        assert torch.equal(mine[key], before[key]) == (momentum == 0)
    assert_near(v, expected[1], 1e-11 if dtype == torch.float64 else 1e-5)
    assert torch.equal(spikes, expected[0])
    for key in ("weight", "bias"):
        assert_same_bits(mine[key], before[key])


@on_both
def test_the_running_variance_counts_time(backend: str) -> None:
    """A y of 1 and 3, at 3 equal steps: 6 values of mean 2 and variance 1, unbiased 6/5."""
    mean, variance = torch.zeros(1), torch.zeros(1)
    y = torch.tensor([[1.0], [3.0]])
    for arguments in ({"y": y, "steps": 3}, {"y": y.expand(3, 2, 1)}):
        bn_lif(
            **arguments,
            weight=torch.ones(1),
            bias=torch.zeros(1),
            running_mean=mean.zero_(),
            running_var=variance.zero_(),
            training=True,
            momentum=1.0,
            **NEURON,
        )
        assert mean.item() == 2
        assert variance.item() == pytest.approx(1.2)


@on_both
@in_both_modes
def test_mean_far_from_zero(backend: str, training: bool) -> None:
    """mean = 1000 standard deviations, in fp32, against fp64 of the same numbers. a y + b loses 1000 of the 2^24 of a
    float, 6e-5 of a standard deviation; smooth spikes pass that on without flips."""
    arguments = call(
        (9, 8, 3, 11, 13), dtype=torch.float32, training=training, surrogate=Sigmoid(alpha=2.0, spiking=False)
    )
    arguments |= {"y": randn(9, 8, 3, 11, 13) + 1000, "decay": 0.5}
    arguments |= norm(3) | {"running_mean": torch.full((3,), 1000.0, dtype=torch.float64)}
    actual, expected = on(backend, arguments), run(bn_lif_by_torch, in_fp64(arguments))
    for a, e in zip(actual.outputs, expected.outputs, strict=True):
        assert_near(a, e, 2e-4)
    for key, gradient in actual.gradients.items():
        assert_near(gradient, expected.gradients[key], 1e-3)
    for a, e in zip(actual.running, expected.running, strict=True):
        assert_near(a, e, 1e-9)


@on_both
@in_both_layouts
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_a_constant_channel(backend: str, dtype: torch.dtype, layout: str) -> None:
    """Of variance 0: its x is the bias, its gradient finite."""
    arguments = call((4, 3, 3, 5, 2), dtype=dtype, layout=layout, momentum=1.0) | norm(3)
    arguments["y"][:, :, 1] = 0.3
    value = arguments["y"][0, 0, 1, 0, 0].item()
    actual, expected = on(backend, arguments), run(bn_lif_by_torch, in_fp64(arguments))
    assert actual.running[0][1].item() == pytest.approx(value, rel=1e-15)
    assert actual.running[1][1].item() == 0
    a = 0.7 * arguments["weight"][1] / math.sqrt(1e-5)  # rounding of a y + b is that of its summands
    for got, e in zip(actual.outputs, expected.outputs, strict=True):
        assert_near(got, e, NEAR[dtype], floor=float(a) * value)
    for key, gradient in actual.gradients.items():
        assert_near(gradient, expected.gradients[key], 10 * NEAR[dtype], floor=float(a))


@on_both
@in_both_layouts
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("value", ["inf", "-inf", "nan"])
@pytest.mark.parametrize("place", [0, -1], ids=["first", "last"])
def test_a_channel_that_is_not_finite(backend: str, place: int, value: str, dtype: torch.dtype, layout: str) -> None:
    """All else is as without it, in every bit."""
    clean = call((4, 3, 3, 5, 2), dtype=dtype, layout=layout)
    dirty = clean | {"y": clean["y"].clone()}
    dirty["y"][place, place, 1, place, place] = float(value)
    a, b = (on(backend, arguments) for arguments in (clean, dirty))
    others = torch.tensor([0, 2])
    for x, y in zip(
        (*a.outputs, a.gradients["y"], a.gradients["v"]), (*b.outputs, b.gradients["y"], b.gradients["v"]), strict=True
    ):
        assert_same_bits(x.index_select(x.dim() - 3, others), y.index_select(y.dim() - 3, others))
    for x, y in zip(
        (a.gradients["weight"], a.gradients["bias"], *a.running),
        (b.gradients["weight"], b.gradients["bias"], *b.running),
        strict=True,
    ):
        assert_same_bits(x[others], y[others])
    assert b.outputs[1][:, 1].isnan().all()
    assert not b.running[0][1].isfinite()
    assert b.running[1][1].isnan()


# ------------------------------------------------------------------------------------ the kernels and the reference


@in_both_layouts
@pytest.mark.parametrize("parameters", ["numbers", "per channel"])
@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_evaluation_equals_the_reference_bit_for_bit(
    dtype: torch.dtype, reset: str, parameters: str, layout: str
) -> None:
    """Half of y brings its neuron to the threshold, or as near to it as the dtype goes."""
    arguments = call((7, 4, 7, 13, 5), training=False, dtype=dtype, reset=reset, parameters=parameters)
    a, b = reference.affine(
        *(arguments[k].double() for k in ("running_mean", "running_var", "weight", "bias")), 0.7, 1e-5
    )
    threshold = torch.as_tensor(arguments["threshold"]).double().view(-1, 1, 1)
    near = ((threshold - b.view(-1, 1, 1)) / a.view(-1, 1, 1)).to(dtype).expand(arguments["y"].shape)
    at = randn(*near.shape, seed=5) > 0
    arguments["y"] = LAYOUTS[layout](torch.where(at, near, arguments["y"]), 2)
    arguments["v"] = torch.zeros(4, 7, 13, 5, dtype=state_dtype(dtype))
    for strict in in_turn((False, True), RESETS.index(reset) + list(DTYPES.values()).index(dtype)):
        arguments["strict"] = strict
        expected = on("reference", arguments)
        for kernel in KERNELS:
            with use_kernel(kernel) as backend:
                actual = on(backend, arguments)
            for k in range(2):
                assert_same_bits(actual.outputs[k], expected.outputs[k])
            for key, gradient in actual.gradients.items():
                assert_near(gradient, expected.gradients[key], NEAR[dtype])


def assert_same_but_for_crossings(backend: str, arguments: dict, ulps: int = 16) -> None:
    """A backend and the reference, whose statistics may differ in the last places: spikes, potentials, and where no
    spike flipped gradients too."""
    time = arguments["y"].shape[0] if arguments["steps"] is None else arguments["steps"]
    membrane = on("reference", arguments | {"record": "membrane", "readout": None})
    actual = on(backend, arguments | {"record": "membrane", "readout": None})
    channels = len(arguments["weight"])
    threshold = torch.as_tensor(arguments["threshold"], dtype=torch.float64).reshape(-1).expand(channels)
    assert len(actual.outputs[0]) == time
    flipped = assert_flips_at_crossings(actual.outputs[0], membrane.outputs[0], membrane.outputs[2], threshold, ulps)
    tolerance = NEAR[arguments["y"].dtype]
    assert_near(actual.outputs[1][~flipped], membrane.outputs[1][~flipped], tolerance)
    assert_near(actual.outputs[2][:, ~flipped], membrane.outputs[2][:, ~flipped], tolerance)
    if not flipped.any():
        y = arguments["y"].double()
        axes = [k for k in range(y.dim()) if k != (2 if arguments["steps"] is None else 1)]
        a = arguments["weight"] / (y.var(axes, correction=0) + 1e-5).sqrt()
        floor = 10 * a.abs().max().item()
        assert_equal(on(backend, arguments), on("reference", arguments), 5 * tolerance, floor)


@in_both_layouts
@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_training_equals_the_reference_but_for_crossings(dtype: torch.dtype, reset: str, layout: str) -> None:
    arguments = call((19, 3, 7, 13, 5), dtype=dtype, reset=reset, parameters="per channel", layout=layout)
    arguments |= norm(7)
    for kernel in KERNELS:
        with use_kernel(kernel) as backend:
            assert_same_but_for_crossings(backend, arguments)


def test_the_check_of_crossings_has_teeth() -> None:
    threshold = torch.tensor([0.5, 0.5])
    membrane = torch.tensor([0.5, 0.7]).repeat(3, 1, 1)
    spikes = (membrane >= threshold).float()
    at_the_threshold, elsewhere = spikes.clone(), spikes.clone()
    at_the_threshold[1, 0, 0] = at_the_threshold[2, 0, 0] = 0
    elsewhere[1, 0, 1] = 0
    flipped = assert_flips_at_crossings(at_the_threshold, spikes, membrane, threshold, 4)
    assert flipped.tolist() == [[True, False]]
    with pytest.raises(AssertionError, match="away from the threshold"):
        assert_flips_at_crossings(elsewhere, spikes, membrane, threshold, 4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=name)
@pytest.mark.parametrize("readout", [None, "mean", "weights"], ids=str)
@on_both
def test_halves_against_fp64(backend: str, readout: str | None, dtype: torch.dtype) -> None:
    """Of the same inputs: one rounding of what is stored, and a second of y's gradient, before its correction."""
    arguments = call((17, 4, 5, 3, 7), dtype=dtype, readout=readout, parameters="per channel") | norm(5)
    half_a_unit = torch.finfo(dtype).eps / 2
    assert_equal(on(backend, arguments), run(bn_lif_by_torch, in_fp64(arguments)), NEAR[dtype] + half_a_unit)


# ------------------------------------------------------------------------------------------------------ statistics


@on_kernels
@in_both_layouts
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_statistics_are_those_of_fp64(kernel: str, dtype: torch.dtype, layout: str) -> None:
    for shape, offset in zip([(2, 3), *ODD_SIZES.values()], itertools.cycle((0.5, 100.0)), strict=False):
        channel = min(len(shape) - 1, 2)
        y = LAYOUTS[layout](randn(*shape, seed=len(shape)).add(offset).to(dtype), channel)
        mean, variance = ops.bn_lif_statistics(y, channel)
        axes = [k for k in range(len(shape)) if k != channel]
        expected = torch.var_mean(y.double(), axes, correction=0)
        assert mean.dtype == variance.dtype == torch.float64
        torch.testing.assert_close(mean, expected[1], rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(variance, expected[0], rtol=1e-12 * offset, atol=1e-12)


@on_both
def test_statistics_with_a_first_value_far_away(backend: str) -> None:
    """The first value of a channel, from which the others are counted, is the border's: 0 where all else is 1000."""
    y = randn(1, 4, 3, 50, 50) + 1000
    y[0, 0, :, 0, 0] = 0
    mean, variance = ops.bn_lif_statistics(y, 2)
    expected = torch.var_mean(y.double(), [0, 1, 3, 4], correction=0)
    torch.testing.assert_close((variance, mean), expected, rtol=1e-10, atol=0)  # 1e-16 1000^2 where all else is 1


@on_both
def test_statistics_of_floats_whose_squares_overflow(backend: str) -> None:
    y = randn(2, 3, 4) * 1e30
    mean, variance = ops.bn_lif_statistics(y, 2)
    torch.testing.assert_close((variance, mean), torch.var_mean(y.double(), [0, 1], correction=0), rtol=1e-12, atol=0)


@needs_compiled
@cpu_only("it sets the number of CPU threads")
@pytest.mark.usefixtures("threads")
@in_both_layouts
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_deterministic_for_any_thread_count(dtype: torch.dtype, layout: str) -> None:
    """Everything, in every bit."""
    arguments = call((5, 3, 7, 23, 29), dtype=dtype, layout=layout, parameters="per channel", readout="weights")
    results, statistics = [], []
    for count in (1, 1, 2, 2):
        torch.set_num_threads(count)
        results.append(on("cpu", arguments).tensors())
        statistics.append(ops.bn_lif_statistics(arguments["y"], 2))
    for first, other in ((group[0], o) for group in (results, statistics) for o in group[1:]):
        for a, b in zip(first, other, strict=True):
            assert_same_bits(a, b)


@cpu_only("there are no vector widths on a GPU")
def test_vector_widths_agree_bit_for_bit() -> None:
    for dtype, layout in itertools.product(DTYPES.values(), LAYOUTS):
        arguments = call((5, 3, 7, 23, 29), dtype=dtype, layout=layout, parameters="per channel", readout="weights")
        results = []
        for kernel in KERNELS:
            with use_kernel(kernel):
                results.append(on("cpu", arguments).tensors())
        for other in results[1:]:
            for a, b in zip(results[0], other, strict=True):
                assert_same_bits(a, b)


# ------------------------------------------------------------------------------------------------------- gradients


def smooth_call(index: int, training: bool, shape: Sequence[int] = (3, 2, 2, 2)) -> tuple[Callable, list[Tensor]]:
    """A smooth function of all tensors that have a gradient, and those tensors."""
    arguments = call(
        shape,
        seed=index,
        training=training,
        momentum=0.0,
        reset=RESETS[index % 4],
        readout=(None, "weights", "mean")[index % 3],
        parameters=("per channel", "one", "numbers")[index // 2 % 3],
        constant=index % 5 == 0,
        record="membrane" if index % 2 else None,
        surrogate=SMOOTH[index % len(SMOOTH)],
    )
    arguments["v"] = arguments["v"] / 4
    running = ("running_mean", "running_var")
    names = [k for k, a in arguments.items() if isinstance(a, Tensor) and k not in running]

    def function(*tensors: Tensor) -> tuple[Tensor, ...]:
        return bn_lif(**(arguments | dict(zip(names, tensors, strict=True))))

    return function, [arguments[k].clone().requires_grad_() for k in names]


@pytest.mark.few(8)
@on_both
@in_both_modes
@pytest.mark.parametrize("index", range(12), ids=lambda i: f"{name(SMOOTH[i % len(SMOOTH)])}-{RESETS[i % 4]}-{i}")
def test_gradcheck(backend: str, training: bool, index: int) -> None:
    function, tensors = smooth_call(index, training)
    assert torch.autograd.gradcheck(function, tensors)


SECOND = [i for i in range(12) if isinstance(SMOOTH[i % len(SMOOTH)], Sigmoid | ATan | Gaussian)]


@pytest.mark.few(5)
@in_both_modes
@pytest.mark.parametrize("index", SECOND, ids=lambda i: f"{name(SMOOTH[i % len(SMOOTH)])}-{RESETS[i % 4]}-{i}")
def test_gradgradcheck(training: bool, index: int) -> None:
    function, tensors = smooth_call(index, training, (2, 2, 2))
    assert torch.autograd.gradgradcheck(function, tensors)


@on_both
def test_second_derivatives_of_real_spikes(backend: str) -> None:
    """Against torch's batch norm: through the surrogate's slope, whose own derivative the reference has."""
    for parameters, constant in itertools.product(("per channel", "one"), (False, True)):
        arguments = call(
            (18, 3, 2, 2), parameters=parameters, constant=constant, momentum=0.0, surrogate=ATan(alpha=1.5)
        )
        leaves = {k: arguments[k].clone().requires_grad_() for k in ("y", "v", "weight", "bias", "decay", "threshold")}

        def twice(op: Callable, arguments: dict = arguments, leaves: dict = leaves) -> tuple[Tensor, ...]:
            spikes, last = op(**(arguments | leaves))
            loss = (spikes * randn(*spikes.shape, seed=2)).sum() + last.square().sum()
            first = torch.autograd.grad(loss, leaves.values(), create_graph=True)
            return torch.autograd.grad(sum(g.square().sum() for g in first), leaves.values())

        for a, b in zip(twice(bn_lif), twice(bn_lif_by_torch), strict=True):
            assert_near(a, b, 1e-9)


@on_both
@in_both_modes
def test_gradient_of_one_input_alone(backend: str, training: bool) -> None:
    arguments = call((20, 3, 4), training=training, parameters="per channel", readout="weights")
    every = on(backend, arguments).gradients
    for key in every:
        leaf = arguments[key].clone().requires_grad_()
        running = {k: arguments[k].clone() for k in ("running_mean", "running_var")}
        outputs = bn_lif(**(arguments | running | {key: leaf}))
        cotangents = [randn(*o.shape, seed=7 + k).mul(32).round().div(32).to(o.dtype) for k, o in enumerate(outputs)]
        assert_same_bits(torch.autograd.grad(outputs, leaf, cotangents)[0], every[key])


@on_both
@pytest.mark.parametrize("output", [0, 1, 2], ids=["spikes", "potential", "membrane"])
def test_gradient_through_one_output_alone(backend: str, output: int) -> None:
    arguments = call((20, 3, 4), record="membrane", parameters="per channel")
    actual = run(lambda **a: (bn_lif(**a)[output],), arguments)
    assert_equal(actual, run(lambda **a: (bn_lif_by_torch(**a)[output],), arguments), 1e-11)


def test_no_graph_without_need() -> None:
    arguments = call((4, 3, 2), parameters="per channel")
    assert all(not o.requires_grad for o in bn_lif(**arguments))
    arguments["y"].requires_grad_()
    assert all(o.requires_grad for o in bn_lif(**arguments))
    with torch.no_grad():
        assert all(not o.requires_grad for o in bn_lif(**arguments))
        assert bn_lif(**arguments, dtype=torch.uint8)[0].dtype == torch.uint8


# ------------------------------------------------------------------------------------------------- memory and layout


def saved(function: Callable[[], object]) -> dict[int, Tensor]:
    """The tensors that a forward keeps for its backward, by address."""
    found: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.numel():
            found[tensor.data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        function()
    return found


@in_both_modes
@pytest.mark.parametrize("constant", [False, True], ids=["sequence", "constant"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=name)
@pytest.mark.parametrize("steps", [16, 17, 64])
def test_saved_bytes(steps: int, dtype: torch.dtype, constant: bool, training: bool) -> None:
    """y, the potential of every 16th step, and what is of a channel."""
    shape = (steps, 3, 4, 5, 7)
    arguments = call(shape, dtype=dtype, constant=constant, training=training, start=False, parameters="per channel")
    y, neurons = arguments["y"].requires_grad_(), math.prod(shape[1:])
    arguments["weight"].requires_grad_(), arguments["bias"].requires_grad_()
    kept = saved(lambda: bn_lif(**arguments))
    assert y.data_ptr() in kept
    large = sum(t.nbytes for t in kept.values() if t.numel() > 6 * 4)
    assert large == y.nbytes + (steps - 1) // 16 * neurons * 4
    assert sum(t.nbytes for t in kept.values()) - large < 1000


class Layer(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = torch.nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = norm(8, dtype=torch.float32)

    def forward(self, x: Tensor, readout: str | None = None) -> Tensor:
        y = self.conv(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        return bn_lif(y, **self.norm, training=True, readout=readout, **NEURON)[0]


def test_a_layer_keeps_nothing_between_the_convolution_and_the_spikes() -> None:
    layer, x = Layer(), randn(4, 2, 3, 16, 16).requires_grad_()
    kept = saved(lambda: layer(x))
    large = sorted(t.numel() for t in kept.values() if t.numel() > 500)
    assert large == [x.numel(), 4 * 2 * 8 * 16 * 16]  # the convolution's input and its output


def peak(function: Callable[[], object]) -> int:
    """The most bytes that `function` holds at once beyond what was there."""
    function()
    if on_gpu():
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        function()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        kept = function()
    changes = [(e.start_ns(), e.nbytes()) for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    assert changes
    del kept
    return max(itertools.accumulate(change for _, change in sorted(changes)))


@needs_compiled
def test_nothing_of_the_size_of_y_is_allocated_but_the_spikes() -> None:
    arguments = call((8, 4, 16, 16, 16), dtype=torch.float32, start=False)
    y, slack = arguments["y"].requires_grad_(), 2**16  # statistics and potentials: a small part of y's 512 KiB
    row = y[0].nbytes
    assert peak(lambda: bn_lif(**arguments)) < y.nbytes + row + slack
    assert peak(lambda: bn_lif(**(arguments | {"readout": "mean"}))) < 2 * row + slack
    spikes, v = bn_lif(**arguments)
    ds, dv = randn(*spikes.shape), randn(*v.shape, seed=1)
    backward = lambda: torch.autograd.grad((spikes, v), y, (ds, dv), retain_graph=True)  # noqa: E731
    assert peak(backward) < 2 * y.nbytes + 2 * row + slack  # the gradient before and after its correction


def odd_strides() -> dict[str, Tensor]:
    return {
        "transposed": randn(3, 20, 5).transpose(0, 1),
        "strided": randn(40, 6, 5)[::2, ::2],
        "offset": randn(21, 4, 6)[1:, 1:, 1:],
        "expanded-time": randn(1, 3, 5).expand(20, 3, 5),
        "expanded-batch": randn(20, 1, 5).expand(20, 3, 5),
        "permuted": randn(4, 20, 3, 5).permute(1, 3, 0, 2),
        "size-1": randn(20, 1, 7, 1).transpose(1, 3),
        "channel-first": randn(5, 20, 3, 2, 2).movedim(0, 2),
    }


@on_both
@in_both_modes
@pytest.mark.parametrize("layout", odd_strides())
def test_any_strides(backend: str, layout: str, training: bool) -> None:
    """Of every tensor, and running buffers that are views are updated where they are."""
    y = odd_strides()[layout]
    assert not y.is_contiguous() or layout == "size-1"
    arguments = call((*y.shape[:2], y.shape[2], *y.shape[3:]), dtype=torch.float32, training=training)
    arguments |= {"y": y.contiguous()} | per_channel(y.shape[2], torch.float32)
    expected = on(backend, arguments)
    wide = {k: torch.stack([t, t], -1)[..., 0] for k, t in arguments.items() if isinstance(t, Tensor)}
    actual = on(backend, arguments | wide | {"y": y})
    for a, b in zip(actual.tensors(), expected.tensors(), strict=True):
        assert_same_bits(a, b)
    views = {k: torch.stack([arguments[k], arguments[k]], -1) for k in ("running_mean", "running_var")}
    bn_lif(**(arguments | {k: t[..., 0] for k, t in views.items()}))
    for key, after in zip(views, expected.running, strict=True):
        assert_same_bits(views[key][:, 0], after)
        assert_same_bits(views[key][:, 1], arguments[key])


@on_both
@in_both_modes
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=name)
@pytest.mark.parametrize("space", [(4, 6), (6,), (2, 4, 6)], ids=["HW", "L", "DHW"])
def test_channels_last_stays(backend: str, space: tuple[int, ...], dtype: torch.dtype, training: bool) -> None:
    for constant, readout in itertools.product((False, True), (None, "mean")):
        arguments = call((5, 3, 5, *space), dtype=dtype, training=training, constant=constant, readout=readout)
        dense, channel = on(backend, arguments), 1 if constant else 2
        last = on(backend, arguments | {"y": channels_last(arguments["y"], channel)})
        assert is_channels_last(last.outputs[0], 1 if readout else 2)
        assert is_channels_last(last.outputs[1], 1)
        assert is_channels_last(last.gradients["y"], channel)
        assert is_channels_last(last.gradients["v"], 1)
        for a, b in zip(last.outputs, dense.outputs, strict=True):
            assert_near(a, b, NEAR[dtype])
        for key, gradient in last.gradients.items():  # sums in another order: one rounding of a half apart
            assert_near(gradient, dense.gradients[key], NEAR[dtype])


@on_both
@pytest.mark.parametrize("shape", [(3, 0, 2), (40, 0, 2), (3, 0, 2, 4, 4), (3, 2, 2, 0), (3, 2, 0)], ids=str)
def test_empty_in_evaluation(backend: str, shape: tuple[int, ...]) -> None:
    for readout in (None, "mean", "weights"):
        arguments = call(shape, training=False, readout=readout, dtype=torch.float32, parameters="per channel")
        result = on(backend, arguments)
        assert result.outputs[0].shape == (shape if readout is None else shape[1:])
        assert result.outputs[1].shape == shape[1:]
        for key, gradient in result.gradients.items():
            assert gradient.shape == arguments[key].shape
            assert not gradient.any()


@on_both
@pytest.mark.filterwarnings("ignore:var_mean")
@pytest.mark.parametrize("shape", [(2, 0, 3), (2, 3, 0), (2, 3, 4, 0)], ids=str)
def test_statistics_of_nothing(backend: str, shape: tuple[int, ...]) -> None:
    for statistic in ops.bn_lif_statistics(torch.zeros(shape), 2):
        assert statistic.shape == shape[2:3]
        assert statistic.isnan().all()


# ------------------------------------------------------------------------------- torch's machinery: ops, compile, func


@pytest.mark.few(4)
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@in_both_layouts
def test_opcheck_of_the_statistics(dtype: torch.dtype, layout: str) -> None:
    torch.library.opcheck(ops.bn_lif_statistics, (LAYOUTS[layout](randn(3, 2, 5, 4, dtype=dtype), 2), 2))
    torch.library.opcheck(ops.bn_lif_statistics, (LAYOUTS[layout](randn(2, 5, 4, dtype=dtype), 1), 1))


@pytest.mark.few(2)
@pytest.mark.parametrize("constant", [False, True], ids=["sequence", "constant"])
@pytest.mark.parametrize("rows", [2, 6], ids=["gain-rest", "all"])
@in_both_layouts
def test_opcheck_of_the_lif_as_it_is_called_here(layout: str, rows: int, constant: bool) -> None:
    channels, steps = 3, 20
    y = LAYOUTS[layout](randn(*(2, channels, 4) if constant else (steps, 2, channels, 4)), 1 if constant else 2)
    v, parameters = randn(2, channels, 4, seed=1), randn(rows, channels, seed=2).abs()
    p = neuron(steps=steps, constant=constant, decay=0.5, threshold=0.4, record=True)
    torch.library.opcheck(ops.lif_fwd, (y, v, None, parameters, None, None, *raw(p), 1))
    out, last, _, membrane, kept = ops.lif_fwd(y, v, None, parameters, None, None, *raw(p), 1)
    inputs = (y, v, None, parameters, None, None, kept, out, last, None, membrane)
    center, factors = randn(channels, seed=4), randn(2, channels, seed=5)
    bits = 3 if rows == 2 else 0b10111
    for want_y in (False, True):
        torch.library.opcheck(ops.lif_bwd, (*inputs, center, *raw(p), want_y, True, False, False, bits))
    torch.library.opcheck(ops.bn_lif_correct, (y + 1, y, factors, 1 if constant else 2))


@pytest.mark.few(6)
@on_both
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=name)
@in_both_layouts
def test_correction(layout: str, dtype: torch.dtype, backend: str) -> None:
    """dx + (factor y + offset) per channel, rounded once; beyond a block and the cache, at sizes that do not align."""
    for shape in ((3, 2, 5, 7), (2, 3, 130, 9), (5, 4, 7, 301, 100)):
        dx, y = (LAYOUTS[layout](randn(*shape, seed=k, dtype=dtype), 2) for k in (0, 1))
        factors = randn(2, shape[2], seed=2, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
        dy = ops.bn_lif_correct(dx, y, factors, 2)
        assert dy.stride() == dx.stride()
        factor, offset = factors.view(2, -1, *(1,) * (len(shape) - 3))
        assert torch.equal(dy, (dx.to(factors.dtype) + (factor * y.to(factors.dtype) + offset)).to(dtype))


@on_both
def test_center_of_the_raw_backward(backend: str) -> None:
    """The gradient of the gain is that of gain * (x - center)."""
    channels, steps = 3, 20
    for constant in (False, True):
        y = randn(*(2, channels, 4) if constant else (steps, 2, channels, 4), dtype=torch.float64)
        v, parameters = randn(2, channels, 4, seed=1).double(), randn(2, channels, seed=2).abs().double()
        p = neuron(steps=steps, constant=constant, decay=0.5, threshold=0.4, dtype=torch.float64)
        out, last, _, _, kept = ops.lif_fwd(y, v, None, parameters, None, None, *raw(p), 1)
        inputs = (y, v, None, parameters, None, None, kept, out, last, None, None)
        center = randn(channels, seed=4).double()
        sums = ops.lif_bwd(*inputs, None, *raw(p), True, False, False, False, 3)[3]
        centered = ops.lif_bwd(*inputs, center, *raw(p), False, False, False, False, 3)[3]
        assert_near(centered, torch.stack([sums[0] - center * sums[1], sums[1]]), 1e-12)


def train(function: Callable[..., tuple[Tensor, ...]], arguments: dict) -> list[Tensor]:
    """Outputs, gradients and buffers of a (compiled) forward, with the backward outside of it."""
    return run(lambda **a: function(**a), arguments).tensors()


COMPILED = {
    "plain": {},
    "rate": {"readout": "mean"},
    "constant": {"constant": True},
    "channels-last": {"layout": "channels-last"},
    "per-channel": {"parameters": "per channel"},
    "one-element": {"parameters": "one"},
    "no-update": {"momentum": 0.0},
}


@needs_compiled
@pytest.mark.few(4)
@pytest.mark.parametrize("options", COMPILED.values(), ids=COMPILED)
@in_both_modes
def test_compile(training: bool, options: dict) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(bn_lif, fullgraph=True, backend="aot_eager")
    arguments = call((20, 3, 5, 4, 4), dtype=torch.float32, training=training, **options)
    before = arguments["running_mean"].clone()
    actual, expected = train(compiled, arguments), train(bn_lif, arguments)
    for a, b in zip(actual, expected, strict=True):
        assert_same_bits(a, b)
        assert a.stride() == b.stride()
    assert torch.equal(actual[-2], before) != (training and options.get("momentum") != 0)
    with torch.no_grad():
        for a, b in zip(
            compiled(**(arguments | {"momentum": 0.0})), bn_lif(**(arguments | {"momentum": 0.0})), strict=True
        ):
            assert_same_bits(a, b)


@on_both
@in_both_modes
def test_functional_gradients(backend: str, training: bool) -> None:
    for parameters in ("per channel", "one"):
        arguments = call((20, 3, 4), training=training, momentum=0.0, parameters=parameters)
        leaves = {k: arguments[k] for k in ("y", "v", "weight", "bias", "decay", "threshold")}

        def loss(leaves: dict, op: Callable = bn_lif, arguments: dict = arguments) -> Tensor:
            spikes, v = op(**(arguments | leaves))
            return (spikes * randn(*spikes.shape, seed=5)).sum() + v.square().sum()

        actual, expected = (torch.func.grad(lambda x, op=op: loss(x, op))(leaves) for op in (bn_lif, bn_lif_by_torch))
        for key in leaves:
            assert_near(actual[key], expected[key], 1e-11)


@on_both
@in_both_modes
@pytest.mark.parametrize("constant", [False, True], ids=["sequence", "constant"])
@pytest.mark.parametrize("in_dims", [(0, None), (0, 0), (2, 0), (None, 0)], ids=str)
def test_vmap(backend: str, in_dims: tuple, constant: bool, training: bool) -> None:
    """Over y and v: in training each sample has its own statistics (and buffers are left alone, with momentum 0)."""
    arguments = call((18, 3, 4, 5), training=training, momentum=0.0, constant=constant)
    y = torch.stack([arguments["y"], randn(*arguments["y"].shape, seed=5, dtype=torch.float64) * 3 - 1])
    v = torch.stack([arguments["v"], randn(*arguments["v"].shape, seed=6, dtype=torch.float64)])
    each = [(y[k if in_dims[0] is not None else 0], v[k if in_dims[1] is not None else 0]) for k in range(2)]
    moved = [t[0] if d is None else t.movedim(0, d) for t, d in zip((y, v), in_dims, strict=True)]

    cotangents = [randn(*shape, seed=7) for shape in ((18, 3, 4, 5), (3, 4, 5))]

    def loss(y: Tensor, v: Tensor, weight: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        outputs = bn_lif(**(arguments | {"y": y, "v": v, "weight": weight}))
        return sum((o * c).sum() for o, c in zip(outputs, cotangents, strict=True)), outputs

    both = torch.func.grad(loss, argnums=(0, 1, 2), has_aux=True)
    actual = torch.vmap(both, in_dims=(*in_dims, None))(*moved, arguments["weight"])
    for k in range(2):
        expected = both(*each[k], arguments["weight"])
        for group in range(2):
            for a, b in zip(actual[group], expected[group], strict=True):
                assert_near(a[k], b, 1e-11)


@on_both
@in_both_modes
def test_autocast_around_a_convolution(backend: str, training: bool) -> None:
    torch.manual_seed(0)
    conv = torch.nn.Conv2d(2, 3, 3, padding=1).to(memory_format=torch.channels_last)
    images = randn(6 * 4, 2, 5, 5).to(memory_format=torch.channels_last)
    arguments = {k: t.float() for k, t in norm(3).items()} | NEURON | {"training": training, "momentum": 0.0}
    weight = arguments["weight"].requires_grad_()
    with torch.autocast(DEVICE.type, torch.bfloat16):
        y = conv(images).unflatten(0, (6, 4))
        y.retain_grad()
        spikes, v = bn_lif(y, **arguments)
    assert y.dtype == spikes.dtype == torch.bfloat16
    assert v.dtype == torch.float32
    assert spikes.stride() == y.stride()
    (spikes.float() * randn(*spikes.shape, seed=3)).sum().backward()
    leaves = [t.detach().double().requires_grad_() for t in (y, weight)]
    spikes, _ = bn_lif_by_torch(leaves[0], **(in_fp64(arguments) | {"weight": leaves[1]}))
    # The cotangent of bf16 spikes is rounded to bf16.
    dy, dweight = torch.autograd.grad(spikes, leaves, randn(*spikes.shape, seed=3).bfloat16().double())
    assert_near(y.grad, dy, NEAR[torch.bfloat16])
    assert_near(weight.grad, dweight, NEAR[torch.bfloat16])
    assert conv.weight.grad.abs().sum() > 0


@in_both_modes
def test_meta_tensors(training: bool) -> None:
    state = {k: t.to("meta") for k, t in norm(3).items()}
    y = torch.empty(20, 2, 3, 4, device="meta", dtype=torch.bfloat16)
    spikes, v, m = bn_lif(y, **state, training=training, record="membrane", **NEURON)
    assert (spikes.shape, spikes.dtype, spikes.device.type) == ((20, 2, 3, 4), torch.bfloat16, "meta")
    assert (v.shape, v.dtype, v.device.type) == ((2, 3, 4), torch.float32, "meta")
    assert (m.shape, m.dtype, m.device.type) == ((20, 2, 3, 4), torch.float32, "meta")


# ------------------------------------------------------------------------------------------------------ any call


@st.composite
def calls(draw: st.DrawFn) -> dict:
    integers, choose = (lambda low, high: draw(st.integers(low, high))), (lambda *of: draw(st.sampled_from(of)))
    space = draw(st.lists(st.integers(1, 6), max_size=3))
    shape = (choose(1, 2, 5, 16, 17, 33), integers(1, 5), choose(1, 2, 3, 7, 65), *space)
    constant, training = draw(st.booleans()), draw(st.booleans())
    hypothesis.assume(not training or math.prod(shape[constant:]) // shape[2] >= 2)
    arguments = call(
        shape,
        seed=integers(0, 1000),
        dtype=choose(*DTYPES.values()),
        training=training,
        constant=constant,
        layout=choose(*LAYOUTS),
        parameters=choose("numbers", "one", "per channel"),
        readout=choose(None, "mean", "weights"),
        start=draw(st.booleans()),
        reset=choose(*RESETS),
        strict=draw(st.booleans()),
        detach_reset=draw(st.booleans()),
        record=choose(None, "membrane"),
        surrogate=choose(*SURROGATES),
    )
    return arguments | norm(shape[2], seed=integers(0, 1000))


@hypothesis.given(calls())
@hypothesis.settings(
    derandomize=True,
    deadline=None,
    # A GPU's kernels are compiled for each example, four of them.
    max_examples=4 if on_gpu() else 15 if kernel_helpers.sampled else 100,
)
def test_any_call_equals_the_reference(arguments: dict) -> None:
    for backend in BACKENDS[1:]:
        assert_same_but_for_crossings(backend, arguments)


# ------------------------------------------------------------------------------------------------------- bad input

Y = torch.zeros(4, 2, 3, 5)
C3 = torch.ones(3)
BAD = {
    "y-list": (TypeError, "y: got list", {"y": [1.0]}),
    "y-integer": (TypeError, "y: got dtype int64", {"y": Y.long()}),
    "y-sparse": (TypeError, "y: ", {"y": Y.to_sparse()}),
    "y-one-axis": (ValueError, "y: got shape (5,)", {"y": Y[0, 0, 0]}),
    "y-no-channels": (ValueError, "y: got shape (4, 2), accepted is (T, N, C, *)", {"y": Y[..., 0, 0]}),
    "y-constant-no-channels": (
        ValueError,
        "y: got shape (2,), accepted is (N, C, *) when steps= is given",
        {"y": Y[0, :, 0, 0], "steps": 3},
    ),
    "y-no-time": (ValueError, "y's time axis T: got 0", {"y": Y[:0]}),
    "y-one-value": (ValueError, "y: got 1 value per channel in shape (1, 1, 3)", {"y": Y[:1, :1, :, 0]}),
    "y-one-constant-value": (
        ValueError,
        "y: got 1 value per channel in shape (1, 3)",
        {"y": Y[0, :1, :, 0], "steps": 4},
    ),
    "y-no-value": (ValueError, "y: got 0 value", {"y": Y[:, :0]}),
    "steps": (ValueError, "steps: got 0", {"y": Y[0], "steps": 0}),
    "v-shape": (ValueError, "v: got shape (2, 3), accepted is (2, 3, 5)", {"v": torch.zeros(2, 3)}),
    "v-dtype": (TypeError, "v: got dtype torch.float64", {"v": torch.zeros(2, 3, 5).double()}),
    "v-device": (ValueError, "v: got device meta", {"v": torch.zeros(2, 3, 5, device="meta")}),
    "reset": (TypeError, "reset: got 'hard'", {"reset": "hard"}),
    "multi_spike": (ValueError, "fire: got 'multi_spike', accepted by bn_lif are", {"fire": "multi_spike"}),
    "eps": (ValueError, "eps: got -5, accepted is a number of at least 0", {"eps": -5}),
    "renamed": (TypeError, "bn_lif: got the keyword strict, accepted in its place", {"strict": True}),
    "surrogate": (TypeError, "surrogate: got 'atan'", {"surrogate": "atan"}),
    "readout": (ValueError, "readout: got 'rate'", {"readout": "rate"}),
    "record": (ValueError, "record: got 'spikes'", {"record": "spikes"}),
    "dtype": (TypeError, "dtype: got torch.int32", {"dtype": torch.int32}),
    "decay": (ValueError, "decay: got nan", {"decay": math.nan}),
    "threshold-shape": (ValueError, "threshold: got shape (5,), accepted are", {"threshold": torch.ones(5)}),
}
for key in ("weight", "bias", "running_mean", "running_var"):
    BAD |= {
        f"{key}-list": (TypeError, f"{key}: got list", {key: [1.0] * 3}),
        f"{key}-None": (TypeError, f"{key}: got NoneType", {key: None}),
        f"{key}-integer": (TypeError, f"{key}: got dtype int64", {key: C3.long()}),
        f"{key}-scalar": (ValueError, f"{key}: got shape (), accepted is (3,)", {key: C3[0]}),
        f"{key}-shape": (ValueError, f"{key}: got shape (5,), accepted is (3,)", {key: torch.ones(5)}),
        f"{key}-broadcast": (ValueError, f"{key}: got shape (1,), accepted is (3,)", {key: torch.ones(1)}),
        f"{key}-device": (ValueError, f"{key}: got device meta, accepted is cpu", {key: C3.to("meta")}),
    }
for key, value in itertools.product(
    ("momentum", "eps", "scale"), (math.nan, math.inf, None, "1", True, 10**400, C3[:1])
):
    kind = type(value).__name__ if not isinstance(value, float) else str(value)
    BAD[f"{key}-{kind}"] = (ValueError, f"{key}: got ", {key: value})


@cpu_only("arguments are validated before a backend is chosen")
@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named_in_one_line(case: str) -> None:
    error, start, arguments = BAD[case]
    running = {"running_mean": torch.full((3,), 5.0), "running_var": torch.full((3,), 6.0)}
    good = {"y": Y, "weight": C3, "bias": C3, **running, "training": True, "decay": 0.9, "threshold": 0.4}
    one_line(lambda: esvae_kernels.bn_lif(**(good | arguments)), error, start)
    assert running["running_mean"].tolist() == [5.0] * 3  # refused before anything is written
    assert running["running_var"].tolist() == [6.0] * 3


def test_one_value_per_channel_is_enough_in_evaluation() -> None:
    arguments = call((1, 1, 3), training=False)
    spikes, v = bn_lif(**arguments)
    expected = bn_lif_by_torch(**arguments)
    assert torch.equal(spikes, expected[0])
    assert_near(v, expected[1], 1e-12)


@pytest.mark.parametrize("backend", BACKENDS[1:])
def test_accepted_forms(backend: str) -> None:
    """Numbers of any kind, parameters of any floating dtype, each to itself."""
    arguments = call((5, 2, 3), momentum=1, eps=1, scale=2, dtype=torch.float32)
    same = arguments | {"momentum": 1.0, "eps": 1.0, "scale": 2.0}
    for a, b in zip(on(backend, arguments).tensors(), on(backend, same).tensors(), strict=True):
        assert_same_bits(a, b)
    mixed = {
        "weight": torch.float64,
        "bias": torch.bfloat16,
        "running_mean": torch.float16,
        "running_var": torch.float64,
    }
    arguments |= {k: arguments[k].to(dtype) for k, dtype in mixed.items()}
    result = on(backend, arguments)
    assert result.gradients["weight"].dtype == torch.float64
    assert result.gradients["bias"].dtype == torch.bfloat16
    assert [t.dtype for t in result.running] == [torch.float16, torch.float64]
    exact = run(bn_lif_by_torch, in_fp64(arguments))
    for key, gradient in result.gradients.items():
        assert_near(gradient, exact.gradients[key], NEAR[torch.float32])


def test_scale_multiplies_the_weight() -> None:
    arguments = call((5, 2, 3), training=False, scale=1.0)
    for a, b in zip(
        bn_lif(**(arguments | {"scale": 0.5})), bn_lif(**(arguments | {"weight": arguments["weight"] / 2})), strict=True
    ):
        assert_same_bits(a, b)
    ab = reference.affine(*(arguments[k] for k in ("running_mean", "running_var", "weight", "bias")), 1.0, 1e-5)
    x = arguments["y"] * ab[0] + ab[1]
    assert_same_bits(bn_lif(**arguments)[0], lif(x, arguments["v"], surrogate=arguments["surrogate"], **NEURON)[0])
