"""The Triton sampler under Triton's interpreter, against the reference: few programs, as each takes milliseconds."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from kernel_helpers import DTYPES, SMOOTH, SURROGATES, assert_gradients, assert_same_bits, name, randn
from torch import Tensor
from triton_helpers import interpreted  # noqa: F401 - a fixture

from esvae_kernels import poisson, use_backend
from esvae_kernels.ops.poisson import triton as room
from esvae_kernels.surrogate import Rectangular, StraightThrough, Surrogate

pytestmark = pytest.mark.usefixtures("poisoned", "interpreted")
SEEDS = [0, 1, -1, 2**32 + 5, 2**63 + 5, -(2**63), 2**64 - 1]
IDS = torch.tensor([2**40 + 3, -1, 0])
OUT = [torch.uint8, *DTYPES.values()]


def rates(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Rates in [-0.1, 1.1], every seventh at an end: such as never fire or always do."""
    u = torch.rand(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 1.2 - 0.1
    ends = torch.tensor([float("nan"), 1.0, 0.0, float("inf"), -float("inf"), 2.0**-140], dtype=torch.float64)
    some = u.view(-1)[3::7]
    some.copy_(ends.repeat(len(some) // len(ends) + 1)[: len(some)])
    return u.to(dtype)


def both(rate: Tensor, steps: int, gradient: bool = False, **options) -> list[list[Tensor]]:
    """By the reference and by Triton: spikes, and the rate's gradient for a fixed cotangent."""
    results = []
    for backend in ("reference", "triton"):
        with use_backend(backend):
            leaf = rate.detach().requires_grad_(gradient)
            spikes = poisson(leaf, steps, **options)
            results.append([spikes.detach()])
            if gradient:
                cotangent = randn(*spikes.shape, seed=7, dtype=spikes.dtype)
                results[-1] += torch.autograd.grad(spikes, leaf, cotangent)
    return results


CASES = list(product((1, 5, 8, 130), (1, 3, 4, 5, 17)))  # elements, steps; all else in turn


@pytest.mark.few(10)
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"N3x{case[0]}-T{case[1]}")
def test_spikes_equal_the_reference(case: tuple[int, int]) -> None:
    (elements, steps), index = case, CASES.index(case)
    dtype, out = list(DTYPES.values())[index % 4], OUT[(index + index // 5) % 5]
    expected, actual = both(rates(3, elements, dtype=dtype), steps, sample_ids=IDS, seed=SEEDS[index % 7], dtype=out)
    assert_same_bits(actual[0], expected[0])
    assert steps * elements < 20 or 0 < expected[0].float().mean() < 1


@pytest.mark.parametrize("seed", SEEDS)
def test_seeds_and_ids_of_64_bits(seed: int) -> None:
    ids = torch.tensor([0, 1, 2**32, 2**40 + 3, 2**63 - 1, -1, -(2**63)])
    expected, actual = both(torch.full((7, 24), 0.5), 5, sample_ids=ids, seed=seed)
    assert_same_bits(actual[0], expected[0])


@pytest.mark.parametrize("stream", [0, 1, 2, 2**32 + 3, 2**63 - 1])
@pytest.mark.parametrize("seed", [5, -(2**63) + 1])
def test_streams(seed: int, stream: int) -> None:
    """Spikes and gradients, whose uniforms are drawn anew."""
    options = {"seed": seed, "stream": stream, "surrogate": SURROGATES[3]}
    expected, actual = both(torch.full((3, 24), 0.5), 5, True, sample_ids=IDS, **options)
    assert_same_bits(actual[0], expected[0])
    assert_gradients(actual[1:], expected[1:])


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_the_comparison_is_exact(dtype: torch.dtype) -> None:
    """Rates at their own uniforms, and one unit in the last place above and below. Some of the words are the largest
    with their uniform: 1 in 256."""
    with use_backend("reference"):
        options = {"seed": 5, "surrogate": StraightThrough(spiking=False)}
        u = -poisson(torch.zeros(1, 4096, dtype=torch.float64), 1, **options)[0]
    integers = {8: torch.int64, 4: torch.int32, 2: torch.int16}[dtype.itemsize]
    at = u.to(dtype).view(integers)
    for rate in (at - 1, at, at + 1):
        spikes = poisson(rate.view(dtype), 1, seed=5)[0]
        assert torch.equal(spikes.bool(), u < rate.view(dtype).double())


@pytest.mark.parametrize("shape", [(4, 130), (3, 8), (2, 3, 2, 4)], ids=str)
def test_several_programs_and_shares_of_time(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """A tile of 128 elements, and one counter per program: programs along all three axes, the last one in part."""
    monkeypatch.setattr(room, "_PER_THREAD", 1)
    monkeypatch.setattr(room, "_SHARE", 1)
    monkeypatch.setattr(room, "_UNALIGNED", 1)
    launches = []
    launch = room.tiles.launch
    monkeypatch.setattr(room.tiles, "launch", lambda *a, **k: (launches.append(a[1]), launch(*a, **k)))
    expected, actual = both(rates(*shape), 9, seed=3)
    assert_same_bits(actual[0], expected[0])
    assert launches[0][1] == 3
    assert launches[0][0] > 1 or shape != (4, 130)


def test_splits_of_a_batch() -> None:
    rate = rates(5, 6)
    whole = poisson(rate, 5, seed=3)
    parts = [poisson(rate[k], 5, sample_ids=torch.tensor(k), seed=3) for k in ([0], [4, 1], [3, 2])]
    for part, k in zip(parts, ([0], [4, 1], [3, 2]), strict=True):
        assert_same_bits(part, whole[:, k])


@pytest.mark.few(8)
@pytest.mark.parametrize("index", range(len(SURROGATES)), ids=[name(s) for s in SURROGATES])
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_surrogates_equal_the_reference(dtype: torch.dtype, index: int) -> None:
    """Spikes of another dtype than the rates' now and then; NaN has no gradient to compare."""
    rate = rates(3, 40, dtype=dtype).nan_to_num(0.3, 1.5, -0.5)
    out = dtype if index % 2 else torch.float32
    expected, actual = both(rate, 6, True, sample_ids=IDS, seed=3, surrogate=SURROGATES[index], dtype=out)
    assert_same_bits(actual[0], expected[0])
    assert_gradients(actual[1:], expected[1:])
    assert expected[1].abs().max() > 0


@pytest.mark.few(8)
@pytest.mark.parametrize("surrogate", SMOOTH, ids=name)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=name)
def test_smooth_spikes(dtype: torch.dtype, surrogate: Surrogate) -> None:
    rate = rates(2, 24, dtype=dtype).nan_to_num(0.3, 1.5, -0.5)
    expected, actual = both(rate, 5, True, seed=3, surrogate=surrogate)
    assert_gradients(actual, expected)


@pytest.mark.few(4)
@pytest.mark.parametrize("elements", [1, 5, 130])
@pytest.mark.parametrize("steps", [1, 4, 17])
def test_gradients_over_shapes(steps: int, elements: int) -> None:
    rate = rates(3, elements).nan_to_num(0.3, 1.5, -0.5)
    expected, actual = both(rate, steps, True, seed=-3, surrogate=Rectangular(0.8, shift=0.1))
    assert_gradients(actual[1:], expected[1:])


def test_a_rate_that_is_nan() -> None:
    """It never fires; its slope is NaN, or 0 for a rectangle."""
    rate = torch.full((2, 8), float("nan"))
    for surrogate in (Rectangular(), SURROGATES[3]):
        expected, actual = both(rate, 5, True, seed=1, surrogate=surrogate)
        assert not actual[0].any()
        torch.testing.assert_close(actual[1], expected[1], equal_nan=True)


def test_empty_rates() -> None:
    for shape in ((0, 4), (3, 0)):
        expected, actual = both(torch.zeros(shape), 3, True, seed=1)
        assert actual[0].shape == expected[0].shape
        assert actual[1].shape == shape


def test_the_same_call_gives_the_same_spikes() -> None:
    rate = rates(2, 40)
    first, second, other = (both(rate, 5, True, seed=seed)[1] for seed in (3, 3, 4))
    for a, b in zip(first, second, strict=True):
        assert_same_bits(a, b)
    assert not torch.equal(first[0], other[0])
