"""What batch norm adds to the Triton LIF, under Triton's interpreter, against the reference; then both together."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from kernel_helpers import DTYPES, NEAR, SURROGATES, assert_near, assert_same_bits, channels_last, name, randn
from parts import bn_lif
from torch import Tensor
from triton_helpers import interpreted  # noqa: F401 - a fixture

from esvae_kernels import use_backend
from esvae_kernels.ops.bn_lif import reference
from esvae_kernels.ops.bn_lif import triton as room
from esvae_kernels.ops.lif.reference import RESETS, state_dtype

ops = torch.ops.esvae_kernels
pytestmark = pytest.mark.usefixtures("poisoned", "interpreted")
LAYOUTS = {"contiguous": lambda y, channel=2: y, "channels-last": channels_last}
SHAPES = [  # (T, N, C, *)
    (5, 4, 7),
    (3, 2, 1),
    (2, 3, 1, 6, 5),
    (4, 3, 3, 5, 2),  # several channels in a tile, each in several rows
    (3, 5, 130, 2),  # more channels than a tile has rows
    (3, 2, 8, 16),  # accessed 16 bytes at once
    (7, 5, 16, 2, 4),
    (1, 1, 2, 33, 16),  # more columns than a tile has
    (1, 2, 3),
]
on_shapes = pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
in_both_layouts = pytest.mark.parametrize("layout", LAYOUTS)


def each_of(dtypes: dict, shape: tuple) -> torch.dtype:
    return list(dtypes.values())[SHAPES.index(shape) % len(dtypes)]


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """A quarter as many threads: several tiles, and several programs, in little time."""
    monkeypatch.setattr(room, "_WARPS", 1)


def check_statistics(y: Tensor, channel: int = 2) -> None:
    mean, variance = ops.bn_lif_statistics(y, channel)
    expected = reference.statistics(y, channel)
    torch.testing.assert_close(mean, expected[0], rtol=1e-12, atol=1e-13 * float(y.double().abs().max()))
    torch.testing.assert_close(variance, expected[1], rtol=1e-12, atol=0)


@on_shapes
@in_both_layouts
@pytest.mark.parametrize("programs", [1, 2, 512], ids=lambda n: f"P{n}")
@pytest.mark.usefixtures("small_tiles")
def test_statistics(shape: tuple, layout: str, programs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """By one program that walks all of y, by two that share it, and by as many as there are."""
    monkeypatch.setattr(room, "_PROGRAMS", programs)
    y = randn(*shape, seed=1).mul(2).add(0.5).to(each_of(DTYPES, shape))
    check_statistics(LAYOUTS[layout](y))


@in_both_layouts
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_statistics_of_a_mean_far_from_zero(dtype: torch.dtype, layout: str) -> None:
    """1e4 standard deviations, in what the dtype holds of it."""
    y = randn(5, 4, 3, 8, seed=1, dtype=torch.float64).add(1e4).to(dtype)
    mean, variance = ops.bn_lif_statistics(LAYOUTS[layout](y), 2)
    expected = reference.statistics(y, 2)
    torch.testing.assert_close(mean, expected[0], rtol=1e-12, atol=0)
    torch.testing.assert_close(variance, expected[1], rtol=1e-12, atol=0)


@in_both_layouts
def test_statistics_of_a_constant_current(layout: str) -> None:
    check_statistics(LAYOUTS[layout](randn(6, 5, 7, seed=2), 1), 1)


@in_both_layouts
def test_statistics_are_the_same_in_every_run(layout: str) -> None:
    y = LAYOUTS[layout](randn(4, 3, 3, 5, 2))
    for a, b in zip(ops.bn_lif_statistics(y, 2), ops.bn_lif_statistics(y.clone(), 2), strict=True):
        assert_same_bits(a, b)


def test_a_channel_that_never_changes_has_no_variance() -> None:
    mean, variance = ops.bn_lif_statistics(torch.full((3, 4, 2, 5), 0.1), 2)
    assert mean.tolist() == [torch.tensor(0.1).item()] * 2
    assert variance.tolist() == [0, 0]


def test_what_is_not_finite_stays_in_its_channel() -> None:
    y = randn(3, 4, 3, 5)
    y[1, 2, 1, 3] = float("nan")
    mean, variance = ops.bn_lif_statistics(y, 2)
    assert mean.isnan().tolist() == variance.isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("shape", [(4, 0, 3, 2), (4, 2, 0), (4, 2, 3, 0)], ids=str)
def test_statistics_and_correction_of_nothing(shape: tuple) -> None:
    y = torch.zeros(shape)
    mean, variance = ops.bn_lif_statistics(y, 2)
    assert mean.shape == variance.shape == (shape[2],)
    assert bool(mean.isnan().all() & variance.isnan().all())
    assert ops.bn_lif_correct(y, y, torch.zeros(2, shape[2]), 2).shape == shape


@on_shapes
@in_both_layouts
@pytest.mark.parametrize("turn", [0, 1])
@pytest.mark.usefixtures("small_tiles")
def test_correction(shape: tuple, layout: str, turn: int) -> None:
    dtype = list(DTYPES.values())[(SHAPES.index(shape) + turn + 2 * (layout == "contiguous")) % 4]
    y, dx = (LAYOUTS[layout](randn(*shape, seed=seed, dtype=dtype)) for seed in (1, 2))
    factors = randn(2, shape[2], seed=3, dtype=state_dtype(dtype))
    actual = ops.bn_lif_correct(dx, y, factors, 2)
    assert actual.stride() == dx.stride() or 1 in shape
    assert_same_bits(actual, reference.correct(dx, y, factors, 2))


# --------------------------------------------------------------------------------------------------- with the LIF

WHOLE = list(product((True, False), (False, True), LAYOUTS))  # training, constant, layout; all else in turn


@pytest.mark.parametrize(
    ("training", "constant", "layout"),
    WHOLE,
    ids=[f"{'training' if t else 'evaluation'}-{'constant' if c else 'sequence'}-{layout}" for t, c, layout in WHOLE],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=name)
def test_bn_lif(dtype: torch.dtype, training: bool, constant: bool, layout: str) -> None:
    """Outputs, gradients of y, v, weight, bias and decay, and running buffers. y is coarse: what differs in the last
    place of the norm flips no spike."""
    index = WHOLE.index((training, constant, layout))
    steps, channels = 5, 3
    shape = (2, channels, 4, 2)
    y = LAYOUTS[layout](randn(*shape if constant else (steps, *shape), seed=4).to(dtype), 1 if constant else 2)
    results = []
    for backend in ("reference", "triton"):
        leaves = {
            "y": y.clone(),
            "v": randn(*shape, seed=1, dtype=dtype),
            "weight": randn(channels, seed=2, dtype=dtype) * 0.3 + 1,
            "bias": randn(channels, seed=3, dtype=dtype) * 0.2,
            "decay": torch.linspace(0.3, 0.95, channels, dtype=dtype),
        }
        running = {"running_mean": torch.full((channels,), 0.1), "running_var": torch.full((channels,), 1.5)}
        with use_backend(backend):
            outputs = bn_lif(
                **{key: leaf.requires_grad_() for key, leaf in leaves.items()},
                **running,
                training=training,
                scale=0.7,
                steps=steps if constant else None,
                threshold=0.4,
                v_reset=-0.1,
                reset=RESETS[index % 4],
                detach_reset=index % 3 == 0,
                surrogate=SURROGATES[index],
                readout=(None, "mean")[index // 2 % 2],
            )
            cotangents = [randn(*o.shape, seed=7 + k, dtype=o.dtype) for k, o in enumerate(outputs)]
            gradients = torch.autograd.grad(outputs, leaves.values(), cotangents)
        results.append([*(o.detach() for o in outputs), *gradients, *running.values()])
    assert torch.equal(results[0][0], results[1][0])
    for expected, actual in zip(*results, strict=True):
        assert_near(actual, expected, 10 * NEAR[dtype])
    assert results[0][2].abs().max() > 0
