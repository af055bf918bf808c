"""The Poisson room: the generator against published vectors, the kernel against the reference, the noise itself."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from kernel_helpers import (
    BACKENDS,
    DEVICE,
    DTYPES,
    KERNELS,
    SMOOTH,
    SURROGATES,
    assert_gradients,
    assert_same_bits,
    cpu_only,
    in_turn,
    name,
    needs_compiled,
    on_gpu,
    one_line,
    randn,
    uniform,
    use_kernel,
)
from scipy import stats
from torch import Tensor

from esvae_kernels import native, poisson, use_backend
from esvae_kernels.ops.poisson import reference
from esvae_kernels.surrogate import Rectangular, Sigmoid, StraightThrough, Surrogate

ops = torch.ops.esvae_kernels
pytestmark = pytest.mark.usefixtures("poisoned")
on_both = pytest.mark.parametrize("backend", BACKENDS, indirect=True)
on_kernels = pytest.mark.parametrize("kernel", KERNELS, indirect=True)
WORD = 0xFFFFFFFF
STREAMS = [0, 1, 2, 2**32 + 3, 2**63 - 1]
SEEDS = [0, 1, -1, 2**32 + 5, 2**63 + 5, -(2**63), 2**64 - 1]
RECTANGULAR = (0, 0.5, 1.0, 0.0, False)  # the raw ops' arguments


def rates(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Rates in [-0.1, 1.1], so that both ends are met as well."""
    return (uniform(*shape, seed=seed, dtype=torch.float64) * 1.2 - 0.1).to(dtype)


def uniforms(
    elements: int, steps: int, ids: Tensor, seed: int, dtype: torch.dtype = torch.float32, stream: int = 0
) -> Tensor:
    """u (T, N, elements), as the op draws them: the smooth straight-through spike at rate 0 is -u."""
    zero = torch.zeros(len(ids), elements, dtype=dtype)
    return -poisson(zero, steps, sample_ids=ids, seed=seed, stream=stream, surrogate=StraightThrough(spiking=False))


# ------------------------------------------------------------------------------------------------- the generator

KNOWN = {  # the known-answer vectors that the Random123 library publishes for philox4x32-10
    "zeros": ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    "ones": ([WORD] * 4, [WORD] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    "pi": (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
}


@needs_compiled
@pytest.mark.parametrize("vector", KNOWN)
def test_philox_known_answers(vector: str) -> None:
    counter, key, expected = KNOWN[vector]
    assert native.module.philox(counter, key) == expected
    words = reference.philox([torch.tensor([word]) for word in counter], (key[0], key[1]))
    assert [word.item() for word in words] == expected


@needs_compiled
def test_philox_wants_four_and_two_words() -> None:
    one_line(lambda: native.module.philox([0] * 3, [0] * 2), ValueError, "philox: ")
    one_line(lambda: native.module.philox([0] * 4, [0] * 3), ValueError, "philox: ")


# The first numbers of SplitMix64 from the state 1234567, as its author's C code prints them.
SPLITMIX = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]


def splitmix(seed: int, stream: int) -> int:
    """The same of any seed, in Python's integers."""
    z = (seed + stream * 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
    return z ^ z >> 31


@needs_compiled
def test_keys_of_streams_are_those_of_splitmix64() -> None:
    assert [splitmix(1234567, k) for k in range(1, 6)] == SPLITMIX
    for seed, stream in itertools.product(SEEDS, STREAMS):
        expected = splitmix(seed, stream) if stream else seed % 2**64
        assert native.module.stream_key(seed % 2**64, stream) == expected
        as_tensor = torch.tensor([(seed + 2**63) % 2**64 - 2**63])
        for found in (reference.key(seed, stream), reference.key(as_tensor, stream)):
            assert int(found) % 2**64 == expected


# k of u = k 2^-24 at (t, n, i) = (0, 0, 0), (1, 1, 0), (3, 2, 1), (4, 0, 69), (5, 1, 33), (5, 2, 69), as the sampler
# drew them before it had streams, for the samples 0, 2^40 + 3 and -1; and the sum of all k, each times its position.
BEFORE_STREAMS = {
    0: ([6694888, 1908363, 10623031, 4066224, 5222301, 2707244], 0x623FD652AF3),
    5: ([12851048, 14730712, 11240555, 5786378, 4655846, 12537254], 0x5FBFD93EAF8),
    -1: ([7513207, 15164269, 11847996, 7067418, 10783537, 3058412], 0x5F9A78FC024),
    2**63 + 5: ([16285740, 10531261, 9630542, 6741325, 10774046, 15127993], 0x63F419CC191),
}


@on_both
@pytest.mark.parametrize("seed", BEFORE_STREAMS)
def test_stream_0_is_the_sequence_from_before_streams(seed: int, backend: str) -> None:
    u = uniforms(70, 6, torch.tensor([0, 2**40 + 3, -1]), seed)
    k = (u.double() * 2**24).long()
    places = ((0, 0, 0), (1, 1, 0), (3, 2, 1), (4, 0, 69), (5, 1, 33), (5, 2, 69))
    assert ([k[at].item() for at in places], int((k.flatten() * torch.arange(1, k.numel() + 1)).sum())) == (
        BEFORE_STREAMS[seed]
    )


@needs_compiled
@on_both
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=name)
@pytest.mark.parametrize("seed", SEEDS)
def test_the_counter_is_the_one_that_is_documented(seed: int, dtype: torch.dtype, backend: str) -> None:
    ids = [0, 1, 77, 2**32, 2**40 + 3, 2**63 - 1, -1]
    stream = STREAMS[SEEDS.index(seed) % len(STREAMS)]
    u = uniforms(1500, 11, torch.tensor(ids), seed, dtype, stream)
    mixed = splitmix(seed, stream) if stream else seed
    key = [mixed & WORD, mixed >> 32 & WORD]
    for (n, sample), i, t in itertools.product(enumerate(ids), (0, 1, 1023, 1024, 1499), (0, 3, 4, 10)):
        words = native.module.philox([i, t // 4, sample & WORD, sample >> 32 & WORD], key)
        assert u[t, n, i].item() == (words[t % 4] >> 8) * 2.0**-24


@on_both
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=name)
def test_fires_below_the_rate(dtype: torch.dtype, backend: str) -> None:
    """At r = u it does not fire, one unit in the last place above it does."""
    ids = torch.arange(3)
    u = uniforms(100, 1, ids, 5, dtype)[0]
    above = torch.nextafter(u, torch.ones((), dtype=dtype))
    assert not poisson(u, 1, seed=5).any()
    assert poisson(above, 1, seed=5).all()


# Counters whose word is at an end or in the middle: k of u = k 2^-24, by sample id and time, for seed 0 and element 0.
EXACT = {
    0: (9373564, 1),
    1: (296355, 0),
    2: (4178694, 1),
    2**23: (12125520, 0),
    2**24 - 1: (1205178, 0),
}


def neighbours(rate: Tensor) -> Tensor:
    """The rates, and one unit in the last place above and below each."""
    bits = rate.view({8: torch.int64, 4: torch.int32, 2: torch.int16}[rate.element_size()])
    return torch.cat([rate, (bits + 1).view(rate.dtype), (bits - 1).view(rate.dtype)])


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("k", EXACT)
def test_the_comparison_is_exact(k: int, dtype: torch.dtype) -> None:
    """At the least, the largest and a middle uniform: rates at it and beside it, at the ends of the dtype and 1."""
    sample, t = EXACT[k]
    kind = torch.finfo(dtype)
    around = [j * 2.0**-24 for j in (0, 1, 2, 3, 2**23 - 1, 2**23, 2**23 + 1, 2**24 - 1, 2**24)]
    between = [j * 2.0**-25 for j in (1, 3, 5, 2**24 - 1, 2**24 + 1, 2**25 - 3, 2**25 - 1)]
    ends = [kind.tiny, kind.smallest_normal / 2, kind.eps, kind.max, float("inf"), 1 + kind.eps]
    rate = neighbours(torch.tensor([*around, *between, *ends], dtype=torch.float64).to(dtype))
    rate = torch.cat([rate, -rate, torch.tensor([float("nan")], dtype=dtype)])
    ids = torch.full((len(rate),), sample)
    assert uniforms(1, t + 1, ids[:1], 0).flatten()[t] == k * 2.0**-24
    expected = k * 2.0**-24 < rate.double()
    assert expected.any()
    assert not expected.all()
    for force in (use_backend("reference"), *map(use_kernel, KERNELS)):
        with force:
            assert torch.equal(poisson(rate, t + 1, sample_ids=ids, seed=0)[t].bool(), expected)


@on_kernels
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_fires_below_rates_that_the_dtype_rounds(dtype: torch.dtype, kernel: str) -> None:
    """Uniforms against themselves in the rates' dtype, and against that one's neighbours."""
    u = uniforms(1 << 20, 1, torch.arange(1), 5, torch.float64)[0]
    middle = u.to(dtype)
    assert (middle.double() == u).sum() > 3  # some are exact, the others above or below
    for rate in neighbours(middle[0]).view(3, 1, -1):
        assert torch.equal(poisson(rate, 1, seed=5)[0].bool(), u < rate.double())


@on_both
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_rates_at_the_ends(dtype: torch.dtype, backend: str) -> None:
    never = torch.tensor([[0.0, -0.0, -1.0, -float("inf"), float("nan")]], dtype=dtype)
    always = torch.tensor([[1.0, 1.5, float("inf")]], dtype=dtype)
    assert not poisson(never, 4001, seed=1).any()
    assert (poisson(always, 4001, seed=1) == 1).all()


# ------------------------------------------------------------------------------- bits and gradients of the kernel

SHAPES = [(1,), (5, 1), (3, 1023), (2, 4097), (300, 7), (4, 3, 5, 2)]
STEPS = [1, 3, 4, 7, 16, 18]


def run(backend: str, rate: Tensor, steps: int, **options) -> tuple[Tensor, Tensor]:
    """Spikes, and the rate's gradient for a fixed cotangent."""
    with use_backend(backend):
        rate = rate.detach().requires_grad_()
        spikes = poisson(rate, steps, **options)
        (gradient,) = torch.autograd.grad(spikes, rate, randn(*spikes.shape, seed=7, dtype=spikes.dtype))
    return spikes.detach(), gradient


def check_equal(rate: Tensor, steps: int, **options) -> None:
    """Equal in every bit, on every kernel; gradients within their tolerance."""
    expected = run("reference", rate, steps, **options)
    for kernel in KERNELS:
        with use_kernel(kernel) as backend:
            spikes, gradient = run(backend, rate, steps, **options)
        assert_same_bits(spikes, expected[0])
        assert_gradients([gradient], [expected[1]])


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "N" + "x".join(map(str, shape)))
@pytest.mark.parametrize("steps", STEPS, ids=lambda steps: f"T{steps}")
def test_equals_the_reference(steps: int, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    check_equal(rates(*shape, dtype=dtype), steps, seed=SEEDS[(steps + len(shape)) % len(SEEDS)])


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("surrogate", SURROGATES, ids=name)
def test_surrogates_equal_the_reference(surrogate: Surrogate, dtype: torch.dtype) -> None:
    check_equal(rates(3, 1030, dtype=dtype), 10, seed=3, surrogate=surrogate)


@pytest.mark.parametrize(("steps", "dtype"), [(3, torch.float32), (6, torch.bfloat16)], ids=["f32", "bf16"])
def test_tensors_beyond_the_cache(steps: int, dtype: torch.dtype) -> None:
    """More than 8 MiB of spikes, at an odd width: the stores that bypass the cache, unaligned rows."""
    check_equal(rates(7, 100_003, dtype=dtype), steps, seed=3)


@pytest.mark.parametrize("dtype", [*DTYPES.values(), torch.uint8], ids=[*DTYPES, "u8"])
def test_aligned_tensors_beyond_the_cache(dtype: torch.dtype) -> None:
    """The same with rows that begin on whole vectors, and a last block that does not end on one where it can."""
    rate = rates(1, (1 << 18) + 64 // dtype.itemsize)
    steps = (9 << 20) // (rate.numel() * dtype.itemsize) + 1
    with use_backend("reference"):
        expected = poisson(rate, steps, seed=3)
    for kernel in KERNELS:
        with use_kernel(kernel):
            assert torch.equal(poisson(rate, steps, seed=3, dtype=dtype), expected.to(dtype))


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("spikes_dtype", DTYPES.values(), ids=lambda d: "to-" + name(d))
def test_spikes_of_another_dtype_equal_the_reference(spikes_dtype: torch.dtype, dtype: torch.dtype) -> None:
    rate = rates(3, 349, dtype=dtype)
    turn = sum(map(list(DTYPES.values()).index, (spikes_dtype, dtype)))
    for surrogate in in_turn((Rectangular(0.5), StraightThrough(), Sigmoid(), StraightThrough(spiking=False)), turn):
        check_equal(rate, 6, seed=3, surrogate=surrogate, dtype=spikes_dtype)
    spikes, gradient = run(BACKENDS[-1], rate, 6, seed=3, dtype=spikes_dtype)
    assert (spikes.dtype, gradient.dtype) == (spikes_dtype, dtype)
    assert torch.equal(spikes, poisson(rate, 6, seed=3).to(spikes_dtype))


@on_kernels
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_spikes_of_one_byte(dtype: torch.dtype, kernel: str) -> None:
    rate = rates(3, 349, dtype=dtype)
    with use_backend("reference"):
        expected = poisson(rate, 6, seed=3, dtype=torch.uint8)
    spikes = poisson(rate, 6, seed=3, dtype=torch.uint8)
    assert spikes.dtype == torch.uint8
    assert torch.equal(spikes, expected)
    assert torch.equal(spikes, poisson(rate, 6, seed=3).byte())
    with torch.no_grad():
        assert torch.equal(poisson(rate.clone().requires_grad_(), 6, seed=3, dtype=torch.uint8), expected)


@pytest.mark.parametrize("seed", SEEDS)
def test_seeds_and_samples_of_64_bits_equal_the_reference(seed: int) -> None:
    ids = torch.tensor([0, 2**32 - 1, 2**32, 2**50 + 7, 2**63 - 1, -1])
    check_equal(rates(6, 40), 9, seed=seed, sample_ids=ids)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("stream", STREAMS)
def test_streams_equal_the_reference(stream: int, dtype: torch.dtype) -> None:
    """Spikes, smooth ones, and gradients, at a seed that the key wraps for."""
    for surrogate in (Rectangular(0.5), Sigmoid(), StraightThrough(spiking=False)):
        check_equal(rates(3, 130, dtype=dtype), 6, seed=-(2**63) + 1, stream=stream, surrogate=surrogate)


@needs_compiled
@cpu_only("it chooses the CPU's vector width")
@pytest.mark.parametrize("stream", STREAMS)
def test_streams_are_the_same_at_each_vector_width(stream: int) -> None:
    rate, widest = rates(3, 349), native.module.isa()
    expected = run("reference", rate, 6, seed=3, stream=stream, surrogate=Sigmoid())
    try:
        for isa in native.module.isas():
            native.module.set_isa(isa)
            spikes, gradient = run("cpu", rate, 6, seed=3, stream=stream, surrogate=Sigmoid())
            assert_same_bits(spikes, expected[0])
            assert_gradients([gradient], [expected[1]])
    finally:
        native.module.set_isa(widest)


def test_seeds_are_taken_modulo_64_bits() -> None:
    rate = rates(3, 50)
    assert torch.equal(poisson(rate, 5, seed=-1), poisson(rate, 5, seed=2**64 - 1))
    assert torch.equal(poisson(rate, 5, seed=torch.tensor([-1])), poisson(rate, 5, seed=-1))
    assert not torch.equal(poisson(rate, 5, seed=5), poisson(rate, 5, seed=5 + 2**32))  # the high word counts


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=name)
def test_half_rates_are_compared_in_fp32(dtype: torch.dtype) -> None:
    rate = rates(5, 500, dtype=dtype)
    assert torch.equal(poisson(rate, 9, seed=1).float(), poisson(rate.float(), 9, seed=1))


@on_kernels
@pytest.mark.parametrize("splits", [(2, 6), (1, 1, 1, 5), (7, 1)], ids=str)
def test_any_split_of_the_batch_gives_the_same_spikes(splits: tuple[int, ...], kernel: str) -> None:
    rate, ids = rates(8, 300), torch.arange(8)
    whole, gradient = run(kernel, rate, 9, seed=3)
    parts = [poisson(r, 9, seed=3, sample_ids=i) for r, i in zip(rate.split(splits), ids.split(splits), strict=True)]
    assert torch.equal(torch.cat(parts, 1), whole)
    leaf = rate.clone().requires_grad_()
    parts = [poisson(r, 9, seed=3, sample_ids=i) for r, i in zip(leaf.split(splits), ids.split(splits), strict=True)]
    assert_same_bits(torch.autograd.grad(torch.cat(parts, 1), leaf, randn(9, 8, 300, seed=7))[0], gradient)
    order = uniform(8).argsort()
    assert torch.equal(poisson(rate[order], 9, seed=3, sample_ids=order), whole[:, order])


def test_a_longer_run_begins_alike() -> None:
    rate = rates(3, 50)
    assert torch.equal(poisson(rate, 18, seed=1)[:5], poisson(rate, 5, seed=1))


@on_both
def test_straight_through_gradient_is_the_sum_over_time(backend: str) -> None:
    rate = rates(3, 7, dtype=torch.float64).requires_grad_()
    cotangent = randn(10, 3, 7, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(poisson(rate, 10, seed=1, surrogate=StraightThrough()), rate, cotangent)
    assert_gradients([gradient], [cotangent.sum(0)])


@on_both
@pytest.mark.parametrize("surrogate", SURROGATES, ids=name)
def test_gradient_is_the_slope_at_rate_minus_u(surrogate: Surrogate, backend: str) -> None:
    rate, ids = rates(3, 7, dtype=torch.float64).requires_grad_(), torch.arange(3)
    cotangent = randn(10, 3, 7, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(poisson(rate, 10, seed=1, surrogate=surrogate), rate, cotangent)
    u = uniforms(7, 10, ids, 1, torch.float64)
    expected = (cotangent * surrogate.derivative(rate.detach() - u - surrogate.shift)).sum(0)
    assert_gradients([gradient], [expected])


@pytest.mark.few(8)
@on_both
@pytest.mark.parametrize("surrogate", SMOOTH, ids=name)
def test_gradcheck(surrogate: Surrogate, backend: str) -> None:
    rate = rates(2, 3, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda r: poisson(r, 5, seed=1, surrogate=surrogate), rate)
    assert torch.autograd.gradgradcheck(lambda r: poisson(r, 5, seed=1, surrogate=surrogate), rate)


@on_both
@pytest.mark.parametrize("surrogate", SURROGATES, ids=name)
def test_second_derivatives_of_real_spikes(surrogate: Surrogate, backend: str) -> None:
    """The cotangent depends on the rate as well, as under any loss that is not linear in the spikes."""
    rate = rates(3, 7, dtype=torch.float64).requires_grad_()

    def twice(spikes: Tensor) -> Tensor:
        loss = (spikes.sum(0) * rate).square().sum()
        (first,) = torch.autograd.grad(loss, rate, create_graph=True)
        return torch.autograd.grad(first.square().sum(), rate)[0]

    expected = reference.poisson(rate, torch.arange(3), 1, 5, surrogate)
    assert_gradients([twice(poisson(rate, 5, seed=1, surrogate=surrogate))], [twice(expected)])


@on_both
def test_derivatives_are_those_of_the_stream(backend: str) -> None:
    """The first and the second, by a seed that is a number or a tensor."""
    rate = rates(3, 7, dtype=torch.float64).requires_grad_()

    def both(spikes: Tensor) -> tuple[Tensor, Tensor]:
        (first,) = torch.autograd.grad((spikes.sum(0) * rate).square().sum(), rate, create_graph=True)
        return first, torch.autograd.grad(first.square().sum(), rate)[0]

    for stream in STREAMS[:3]:
        expected = both(reference.poisson(rate, torch.arange(3), 1, 5, Sigmoid(), stream=stream))
        for seed in (1, torch.tensor([1]), torch.tensor(1)):
            assert_gradients(both(poisson(rate, 5, seed=seed, stream=stream, surrogate=Sigmoid())), expected)
    smooth = Sigmoid(spiking=False)
    assert torch.autograd.gradcheck(lambda r: poisson(r, 5, seed=1, stream=3, surrogate=smooth), rate)
    assert torch.autograd.gradgradcheck(lambda r: poisson(r, 5, seed=1, stream=3, surrogate=smooth), rate)


@on_both
def test_second_derivatives_through_another_dtype(backend: str) -> None:
    rate = rates(3, 7, dtype=torch.float64).requires_grad_()
    weights = randn(5, 3, 7)

    def twice(spikes: Tensor) -> Tensor:
        loss = (spikes.double() * weights).sum(0).mul(rate).square().sum()
        (first,) = torch.autograd.grad(loss, rate, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), rate)
        assert (spikes.dtype, first.dtype, second.dtype) == (torch.float32, torch.float64, torch.float64)
        return second

    expected = reference.poisson(rate, torch.arange(3), 1, 5, Sigmoid(), torch.float32)
    actual = poisson(rate, 5, seed=1, surrogate=Sigmoid(), dtype=torch.float32)
    torch.testing.assert_close(twice(actual), twice(expected), rtol=1e-5, atol=1e-6)  # of fp32 gradients


@needs_compiled
@cpu_only("it sets the number of CPU threads")
@pytest.mark.usefixtures("threads")
def test_deterministic_for_any_thread_count() -> None:
    rate, results = rates(5, 4097), []
    for count in (1, 1, 2):
        torch.set_num_threads(count)
        results.append(run("cpu", rate, 16, seed=1, surrogate=Sigmoid()))
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert_same_bits(a, b)


# ------------------------------------------------------------------------------------------------------ chance


@pytest.fixture(scope="module")
def noise() -> np.ndarray:
    """(T, N, elements) uniforms of neighbouring steps, samples and elements."""
    return uniforms(257, 64, torch.arange(32), 2024).cpu().numpy()


def test_uniforms_are_uniform(noise: np.ndarray) -> None:
    assert noise.min() >= 0
    assert noise.max() < 1
    assert stats.kstest(noise.ravel(), "uniform").pvalue > 0.01
    for shift in (24, 20, 8):  # the top byte, and bytes further down
        words = (noise.ravel() * 2.0**24).astype(np.int64) << 8
        counts = np.bincount(words >> shift & 0xFF, minlength=256)
        assert stats.chisquare(counts).pvalue > 0.01


def test_neighbours_are_independent(noise: np.ndarray) -> None:
    for axis, lag in itertools.product(range(3), (1, 2, 4)):
        a = np.delete(noise, range(lag), axis).ravel()
        b = np.delete(noise, range(-lag, 0), axis).ravel()
        assert abs(np.corrcoef(a, b)[0, 1]) < 3.5 / np.sqrt(a.size)


@pytest.mark.parametrize("other", [2025, 2024 + 2**32], ids=["low-word", "high-word"])
def test_neighbouring_seeds_are_independent(noise: np.ndarray, other: int) -> None:
    second = uniforms(257, 64, torch.arange(32), other).cpu().numpy()
    assert abs(np.corrcoef(noise.ravel(), second.ravel())[0, 1]) < 3.5 / np.sqrt(noise.size)


def most_alike(a: np.ndarray, b: np.ndarray, axis: int, lag: int = 0) -> float:
    """The correlation of two arrays of noise, b moved along an axis, in standard errors."""
    if lag:
        a, b = np.delete(a, range(lag), axis), np.delete(b, range(-lag, 0), axis)
    return abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) * np.sqrt(a.size)


@pytest.mark.parametrize("begin", [0, 1000, 2**62], ids=["first", "later", "far"])
def test_neighbouring_streams_and_seeds_are_independent(begin: int) -> None:
    """Each of 16 pairs of seed and stream against each, and against its neighbours in time and among the elements:
    1,080 correlations and 4.5 standard errors, which chance passes once in 140,000."""
    noise = [
        uniforms(129, 16, torch.arange(16), seed, stream=begin + stream).cpu().numpy()
        for seed, stream in itertools.product(range(5, 9), range(4))
    ]
    for a, b in itertools.combinations(noise, 2):
        assert most_alike(a, b, 0) < 4.5
        for axis, lag in itertools.product((0, 2), (1, 2)):
            assert most_alike(a, b, axis, lag) < 4.5
            assert most_alike(b, a, axis, lag) < 4.5


def test_a_stream_is_uniform_and_its_neighbours_are_independent() -> None:
    noise = uniforms(257, 64, torch.arange(32), 2024, stream=1).cpu().numpy()
    assert stats.kstest(noise.ravel(), "uniform").pvalue > 0.01
    for axis, lag in itertools.product(range(3), (1, 2, 4)):
        assert most_alike(noise, noise, axis, lag) < 4


def test_no_two_keys_of_small_seeds_and_streams_are_alike() -> None:
    seeds = torch.arange(1000)[:, None]
    keys = torch.cat([reference.key(seeds, stream) for stream in range(200)], 1)
    assert len(keys.unique()) == keys.numel()


@pytest.mark.parametrize("rate", [0.003, 0.37, 0.98])
def test_the_mean_is_the_rate(rate: float) -> None:
    spikes = poisson(torch.full((100, 100), rate), 50, seed=9)
    fired = int(spikes.sum())
    assert stats.binomtest(fired, spikes.numel(), rate).pvalue > 0.01


# ------------------------------------------------------------------------------------------ seeds and generators


def test_generators() -> None:
    rate = rates(3, 50)
    default = torch.cuda.default_generators[DEVICE.index] if on_gpu() else torch.default_generator
    generator = torch.Generator(DEVICE).manual_seed(1)
    first, second = (poisson(rate, 4, generator=generator) for _ in range(2))
    assert not torch.equal(first, second)
    generator.manual_seed(1)
    assert torch.equal(poisson(rate, 4, generator=generator), first)
    torch.manual_seed(1)
    state = default.get_state()
    assert torch.equal(poisson(rate, 4), first)  # torch's own generator, equally seeded
    assert torch.equal(poisson(rate, 4), second)
    default.set_state(state)
    poisson(rate, 4, seed=1), poisson(rate, 4, generator=generator)
    assert torch.equal(default.get_state(), state)  # which neither a seed nor another generator touches


def test_the_backward_draws_the_same_noise() -> None:
    """The op keeps the seed it drew: whatever is drawn in between, the gradient belongs to the forward's u."""
    rate = rates(3, 50).requires_grad_()
    torch.manual_seed(3)
    spikes = poisson(rate, 8, surrogate=Rectangular(0.5))
    poisson(rate, 8)
    (gradient,) = torch.autograd.grad(spikes.sum(), rate)
    torch.manual_seed(3)
    assert_same_bits(torch.autograd.grad(poisson(rate, 8, surrogate=Rectangular(0.5)).sum(), rate)[0], gradient)


# --------------------------------------------------------------------------------------------- memory and layout


def layouts() -> dict[str, Tensor]:
    return {
        "transposed": rates(40, 6).T,
        "strided": rates(12, 80)[::2, ::2],
        "offset": rates(7, 41)[1:, 1:],
        "expanded": rates(6, 1).expand(6, 40),
        "channels-last": rates(6, 3, 4, 5).contiguous(memory_format=torch.channels_last),
    }


@on_both
@pytest.mark.parametrize("layout", layouts())
def test_noise_follows_the_logical_order(layout: str, backend: str) -> None:
    rate = layouts()[layout]
    assert not rate.is_contiguous()
    strided_ids = torch.arange(0, 24).view(2, 12)[:, ::2].flatten()[:6].repeat_interleave(2)[::2]
    assert not strided_ids.is_contiguous()
    actual = run(backend, rate, 6, seed=1, sample_ids=strided_ids)
    expected = run(backend, rate.contiguous(), 6, seed=1, sample_ids=strided_ids.contiguous())
    for a, b in zip(actual, expected, strict=True):
        assert_same_bits(a, b)


@on_both
def test_any_strides_of_the_gradient(backend: str) -> None:
    rate = rates(4, 5).requires_grad_()
    spikes = poisson(rate, 6, seed=1)
    dense = randn(6, 4, 5)
    for cotangent in (dense.transpose(0, 2).contiguous().transpose(0, 2), torch.tensor(0.5).expand(6, 4, 5)):
        actual, expected = (
            torch.autograd.grad(spikes, rate, c, retain_graph=True)[0] for c in (cotangent, cotangent.contiguous())
        )
        assert_same_bits(actual, expected)


@on_both
@pytest.mark.parametrize("shape", [(0,), (0, 3), (2, 0)], ids=str)
def test_empty(shape: tuple[int, ...], backend: str) -> None:
    rate = torch.zeros(shape).requires_grad_()
    spikes = poisson(rate, 4, seed=1)
    assert spikes.shape == (4, *shape)
    (first,) = torch.autograd.grad(spikes.sum(), rate, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), rate)
    assert first.shape == second.shape == shape


def test_lazily_negated_rates() -> None:
    rate = torch._neg_view(-rates(3, 50))
    assert torch.equal(poisson(rate, 6, seed=1), poisson(rate.resolve_neg(), 6, seed=1))


def test_saved_bytes() -> None:
    """The rate, the samples' ids and the seed: nothing per time step."""
    saved: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor.nbytes)
        return tensor

    rate = rates(5, 100).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        poisson(rate, 64, seed=1)
    assert sum(saved) == rate.nbytes + 5 * 8 + 8


# ----------------------------------------------------------------------------------------------- torch's machinery


@pytest.mark.parametrize("shape", [(3, 5), (2, 3, 4), (4,), (0, 3)], ids=str)
@pytest.mark.parametrize(("dtype", "stream"), [(torch.float32, 2**40), (torch.bfloat16, 0)], ids=name)
def test_opcheck(dtype: torch.dtype, stream: int, shape: tuple[int, ...]) -> None:
    rate, ids, seed = rates(*shape, dtype=dtype), torch.arange(shape[0]), torch.tensor([3])
    torch.library.opcheck(ops.poisson_fwd, (rate, ids, seed, stream, 6, dtype, *RECTANGULAR))
    torch.library.opcheck(ops.poisson_bwd, (rate, ids, seed, stream, randn(6, *shape, dtype=dtype), *RECTANGULAR))


@pytest.mark.parametrize("spikes_dtype", [torch.float64, torch.bfloat16, torch.uint8], ids=str)
def test_opcheck_of_another_dtype(spikes_dtype: torch.dtype) -> None:
    rate, ids, seed = rates(3, 5), torch.arange(3), torch.tensor([3])
    torch.library.opcheck(ops.poisson_fwd, (rate, ids, seed, 1, 6, spikes_dtype, *RECTANGULAR))
    if spikes_dtype.is_floating_point:
        torch.library.opcheck(ops.poisson_bwd, (rate, ids, seed, 1, randn(6, 3, 5, dtype=spikes_dtype), *RECTANGULAR))


def train(function: Callable, rate: Tensor) -> tuple[Tensor, Tensor]:
    rate = rate.clone().requires_grad_()
    spikes = function(rate)
    (spikes * randn(*spikes.shape, seed=5)).sum().backward()
    return spikes.detach(), rate.grad


@pytest.mark.parametrize("stream", [0, 3])
@pytest.mark.parametrize("seed", ["integer", "tensor", "0-dim-tensor", "default-generator"])
def test_compile(seed: str, stream: int) -> None:
    torch._dynamo.reset()
    given = {"integer": 2**63 + 1, "tensor": torch.tensor([7]), "0-dim-tensor": torch.tensor(7)}.get(seed)
    ids = torch.tensor([5, 2**40, 1])

    def sample(rate: Tensor) -> Tensor:
        return poisson(rate, 6, seed=given, stream=stream, sample_ids=ids)

    compiled = torch.compile(sample, fullgraph=True, backend="aot_eager")
    torch.manual_seed(1)
    actual = train(compiled, rates(3, 20))
    torch.manual_seed(1)
    for a, b in zip(actual, train(sample, rates(3, 20)), strict=True):
        assert_same_bits(a, b)
    again = compiled(rates(3, 20))
    assert torch.equal(again, actual[0]) == (seed != "default-generator")  # new noise in every run


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.uint8], ids=str)
def test_compile_with_another_dtype(dtype: torch.dtype) -> None:
    torch._dynamo.reset()

    def sample(rate: Tensor) -> Tensor:
        return poisson(rate, 6, seed=1, dtype=dtype)

    compiled = torch.compile(sample, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        spikes = compiled(rates(3, 20).requires_grad_())
        assert spikes.dtype == dtype
        assert torch.equal(spikes, sample(rates(3, 20)))
    if dtype.is_floating_point:
        for a, b in zip(train(compiled, rates(3, 20)), train(sample, rates(3, 20)), strict=True):
            assert_same_bits(a, b)


def test_compile_dynamic_steps_and_batch() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda r, t, stream=0: poisson(r, t, seed=1, stream=stream), fullgraph=True, dynamic=True, backend="aot_eager"
    )
    assert torch.equal(compiled(rates(3, 20), 5, 2), poisson(rates(3, 20), 5, seed=1, stream=2))
    for n, steps in ((5, 6), (7, 9), (4, 5)):
        rate = rates(n, 20)
        torch._dynamo.mark_dynamic(rate, 0)
        for a, b in zip(
            train(lambda r, t=steps: compiled(r, t), rate),
            train(lambda r, t=steps: poisson(r, t, seed=1), rate),
            strict=True,
        ):
            assert_same_bits(a, b)


@on_both
@pytest.mark.parametrize("in_dims", [(0, None), (None, 0), (0, 0), (2, 1)], ids=str)
def test_vmap(in_dims: tuple, backend: str) -> None:
    rate, ids = rates(3, 4, 5), torch.arange(12).view(3, 4) + 2**33
    moved = [t[0] if dim is None else t.movedim(0, dim) for t, dim in zip((rate, ids), in_dims, strict=True)]
    spikes = torch.vmap(lambda r, i: poisson(r, 6, seed=1, sample_ids=i), in_dims=in_dims)(*moved)
    for k in range(3):
        one = [t[0 if dim is None else k] for t, dim in zip((rate, ids), in_dims, strict=True)]
        assert_same_bits(spikes[k], poisson(one[0], 6, seed=1, sample_ids=one[1]))


@on_both
@pytest.mark.parametrize("in_dims", [(0, None), (None, 0), (0, 0)], ids=str)
def test_vmap_of_grad(in_dims: tuple, backend: str) -> None:
    rate, ids = rates(3, 4, 5), torch.arange(12).view(3, 4)

    def loss(rate: Tensor, ids: Tensor) -> Tensor:
        return poisson(rate, 6, seed=1, sample_ids=ids, surrogate=Sigmoid()).sum(0).square().sum()

    inputs = [t[0] if dim is None else t for t, dim in zip((rate, ids), in_dims, strict=True)]
    gradients = torch.vmap(torch.func.grad(loss), in_dims=in_dims)(*inputs)
    for k in range(3):
        leaf = rate[0 if in_dims[0] is None else k].clone().requires_grad_()
        expected = torch.autograd.grad(loss(leaf, ids[0 if in_dims[1] is None else k]), leaf)
        assert_gradients([gradients[k]], expected)


@on_both
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.uint8], ids=str)
def test_vmap_with_another_dtype(dtype: torch.dtype, backend: str) -> None:
    rate = rates(2, 3, 5)
    spikes = torch.vmap(lambda r: poisson(r, 6, seed=1, dtype=dtype))(rate)
    assert spikes.dtype == dtype
    assert torch.equal(spikes, torch.stack([poisson(r, 6, seed=1, dtype=dtype) for r in rate]))

    def loss(rate: Tensor) -> Tensor:
        return poisson(rate, 6, seed=1, dtype=dtype, surrogate=Sigmoid()).float().square().sum()

    if dtype == torch.uint8:
        one_line(
            lambda: torch.func.grad(loss)(rate[0]), ValueError, "dtype: got torch.uint8, through which no gradient"
        )
        return
    gradients = torch.vmap(torch.func.grad(loss))(rate)
    for k in range(2):
        leaf = rate[k].clone().requires_grad_()
        assert gradients.dtype == leaf.dtype
        assert_gradients([gradients[k]], torch.autograd.grad(loss(leaf), leaf))


@on_both
def test_vjp_and_jacobian(backend: str) -> None:
    rate = rates(2, 3, dtype=torch.float64)
    jacobian = torch.func.jacrev(lambda r: poisson(r, 4, seed=1, surrogate=Sigmoid()))(rate)
    slopes = Sigmoid().derivative(rate - uniforms(3, 4, torch.arange(2), 1, torch.float64))
    expected = torch.diag_embed(slopes.flatten(1)).view(4, 2, 3, 2, 3)
    assert_gradients([jacobian], [expected])


@on_both
@pytest.mark.parametrize("shape", [(5,), (5, 1)], ids=str)
def test_vmap_over_seeds(shape: tuple[int, ...], backend: str) -> None:
    rate, seeds = rates(5, 2, 3), torch.arange(5).view(shape)

    def loss(rate: Tensor, seed: Tensor) -> Tensor:
        return poisson(rate, 4, seed=seed, stream=2, surrogate=Sigmoid()).sum(0).square().sum()

    for dim, inputs in ((0, rate), (None, rate[0])):
        spikes = torch.vmap(lambda r, s: poisson(r, 4, seed=s, stream=2), (dim, 0))(inputs, seeds)
        gradients = torch.vmap(torch.func.grad(loss), (dim, 0))(inputs, seeds)
        for k in range(5):
            leaf = (rate[0] if dim is None else rate[k]).clone().requires_grad_()
            assert_same_bits(spikes[k], poisson(leaf.detach(), 4, seed=k, stream=2))
            assert_gradients([gradients[k]], torch.autograd.grad(loss(leaf, seeds[k]), leaf))


@on_both
@pytest.mark.parametrize("own", [False, True], ids=["default-generator", "generator"])
def test_vmap_draws_as_torch_does(own: bool, backend: str) -> None:
    """One seed for all, or one for each, as `randomness` says; the gradient belongs to what was drawn."""
    rate, generator = torch.full((4, 3, 50), 0.5), torch.Generator(DEVICE).manual_seed(1) if own else None

    def sample(rate: Tensor) -> Tensor:
        return poisson(rate, 6, generator=generator, surrogate=Sigmoid())

    same = torch.vmap(sample, randomness="same")(rate)
    assert all(torch.equal(same[0], other) for other in same[1:])
    assert 0.4 < same.mean() < 0.6
    different = torch.vmap(sample, randomness="different")(rate)
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(different, 2))
    with pytest.raises(RuntimeError, match="randomness error mode"):
        torch.vmap(sample, randomness="error")(rate)

    torch.manual_seed(3)
    leaf = rate.clone().requires_grad_()
    spikes = torch.vmap(lambda r: poisson(r, 6, surrogate=Sigmoid()), randomness="different")(leaf)
    (gradient,) = torch.autograd.grad(spikes.sum(), leaf)
    torch.manual_seed(3)
    again = torch.func.grad(lambda r: poisson(r, 6, surrogate=Sigmoid()).sum())
    assert_gradients([torch.vmap(again, randomness="different")(rate)], [gradient])


def test_integers_of_numpy() -> None:
    rate = rates(3, 5)
    found = poisson(rate, np.int64(4), seed=np.uint64(2**63), stream=np.int32(2))
    assert torch.equal(found, poisson(rate, 4, seed=2**63, stream=2))


def test_autocast_leaves_the_rates_dtype() -> None:
    with torch.autocast(DEVICE.type, torch.bfloat16):
        assert poisson(rates(3, 5), 4, seed=1).dtype == torch.float32
        assert poisson(rates(3, 5).bfloat16(), 4, seed=1).dtype == torch.bfloat16


def test_meta_tensors() -> None:
    spikes = poisson(torch.empty(3, 4, device="meta", dtype=torch.float16), 5, seed=1)
    assert (spikes.shape, spikes.dtype, spikes.device.type) == ((5, 3, 4), torch.float16, "meta")
    assert poisson(torch.empty(3, 4, device="meta"), 5, seed=1, dtype=torch.uint8).dtype == torch.uint8


# -------------------------------------------------------------------------------------------------------- bad input

RATE = torch.full((3, 2), 0.5)
BAD = {
    "rate-list": (TypeError, "rate: got list", {"rate": [0.5]}),
    "rate-integer": (TypeError, "rate: got dtype uint8", {"rate": RATE.byte()}),
    "rate-scalar": (ValueError, "rate: got shape ()", {"rate": RATE[0, 0]}),
    "rate-sparse": (TypeError, "rate: ", {"rate": RATE.to_sparse()}),
    "steps-0": (ValueError, "steps: got 0", {"steps": 0}),
    "steps-float": (ValueError, "steps: got 2.0", {"steps": 2.0}),
    "steps-bool": (ValueError, "steps: got True", {"steps": True}),
    "steps-None": (ValueError, "steps: got None", {"steps": None}),
    "ids-list": (TypeError, "sample_ids: got list", {"sample_ids": [0, 1, 2]}),
    "ids-shape": (ValueError, "sample_ids: got shape (2,), accepted is (3,)", {"sample_ids": torch.arange(2)}),
    "ids-dtype": (TypeError, "sample_ids: got dtype torch.int32", {"sample_ids": torch.arange(3).int()}),
    "ids-device": (ValueError, "sample_ids: got device meta", {"sample_ids": torch.arange(3, device="meta")}),
    "surrogate-class": (TypeError, "surrogate: got <class", {"surrogate": Sigmoid}),
    "surrogate-base": (TypeError, "surrogate: ", {"surrogate": Surrogate()}),
    "seed-float": (ValueError, "seed: got 1.0", {"seed": 1.0}),
    "seed-bool": (ValueError, "seed: got True", {"seed": True}),
    "seed-65-bits": (ValueError, "seed: got 18446744073709551616", {"seed": 2**64}),
    "seed-too-low": (ValueError, "seed: got -9223372036854775809", {"seed": -(2**63) - 1}),
    "seed-tensor-shape": (ValueError, "seed: got shape (2,), accepted is (1,)", {"seed": torch.tensor([1, 2])}),
    "seed-numpy-bool": (ValueError, "seed: got ", {"seed": np.True_}),
    "steps-numpy-bool": (ValueError, "steps: got ", {"steps": np.True_}),
    "stream-negative": (ValueError, "stream: got -1, accepted is an integer from 0", {"stream": -1}),
    "stream-64-bits": (ValueError, "stream: got 9223372036854775808", {"stream": 2**63}),
    "stream-bool": (ValueError, "stream: got True", {"stream": True}),
    "stream-float": (ValueError, "stream: got 1.0", {"stream": 1.0}),
    "stream-tensor": (ValueError, "stream: got tensor(1)", {"stream": torch.tensor(1)}),
    "seed-tensor-dtype": (TypeError, "seed: got dtype torch.int32", {"seed": torch.tensor([1]).int()}),
    "seed-and-generator": (ValueError, "seed, generator: got both", {"generator": torch.Generator()}),
    "generator": (TypeError, "generator: got ", {"seed": None, "generator": 5}),
    "dtype-integer": (TypeError, "dtype: got torch.int8, accepted are float64, ", {"dtype": torch.int8}),
    "dtype-complex": (TypeError, "dtype: got torch.complex64", {"dtype": torch.complex64}),
    "dtype-name": (TypeError, "dtype: got 'float32'", {"dtype": "float32"}),
    "dtype-gradient": (
        ValueError,
        "dtype: got torch.uint8, through which no gradient flows",
        {"rate": RATE.clone().requires_grad_(), "dtype": torch.uint8},
    ),
    "dtype-smooth": (
        ValueError,
        "dtype: got torch.uint8, which holds spikes",
        {"dtype": torch.uint8, "surrogate": Sigmoid(spiking=False)},
    ),
    "check-above": (ValueError, "rate: got values", {"rate": RATE + 0.51, "check_rates": True}),
    "check-below": (ValueError, "rate: got values", {"rate": RATE - 0.51, "check_rates": True}),
    "check-nan": (ValueError, "rate: got values", {"rate": RATE * float("nan"), "check_rates": True}),
}


@cpu_only("arguments are validated before a backend is chosen")
@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named_in_one_line(case: str) -> None:
    error, start, arguments = BAD[case]
    one_line(lambda: poisson(**({"rate": RATE, "steps": 4, "seed": 1} | arguments)), error, start)


def test_checked_rates_pass() -> None:
    rate = torch.tensor([0.0, 0.5, 1.0])
    assert torch.equal(poisson(rate, 4, seed=1, check_rates=True), poisson(rate, 4, seed=1))
    assert poisson(torch.zeros(0), 4, seed=1, check_rates=True).shape == (4, 0)
