"""The LIF room: the reference against a trace by hand, the kernel against the reference, and every way to call it."""

from __future__ import annotations

import itertools
import sys
import threading
import time
from collections.abc import Callable

import pytest
import torch
from kernel_helpers import (
    BACKENDS,
    DTYPES,
    ISAS,
    SMOOTH,
    SURROGATES,
    assert_gradients,
    assert_same_bits,
    flat,
    name,
    neuron,
    one_line,
    randn,
    run_lif,
    vector_width,
)
from torch import Tensor

from esvae_kernels import lif, use_backend
from esvae_kernels.layout import is_channels_last
from esvae_kernels.ops.lif import reference
from esvae_kernels.surrogate import ATan, Rectangular, Sigmoid, StraightThrough, Surrogate

OPTIONS = {"decay": 0.3, "threshold": 0.5}
RICH = {"decay": 0.9, "threshold": 0.4, "gain": 0.7, "rest": 0.05, "v_reset": -0.1}
RESETS = ["hard", "soft"]
WEIGHTS = [0.5, -1.0, 2.0, 0.3]
ops = torch.ops.esvae_kernels
pytestmark = pytest.mark.usefixtures("poisoned")
on_both = pytest.mark.parametrize("backend", BACKENDS, indirect=True)
on_isas = pytest.mark.parametrize("isa", ISAS, indirect=True)


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
    ],
    ids=["hard", "hard-strict", "soft", "soft-strict"],
)
@on_both
def test_a_trace_computed_by_hand(backend: str, reset: str, strict: bool, spikes: list[int], last: float) -> None:
    x, v = torch.tensor([[0.25], [0.25], [0.5]]), torch.tensor([0.5])
    options = {"decay": 0.5, "gain": 2, "rest": 0.25, "threshold": 1, "v_reset": -0.5, "reset": reset, "strict": strict}
    s, v1 = lif(x, v, **options)
    assert s.flatten().tolist() == spikes
    assert v1.item() == last
    assert lif(x, v, readout="rate", **options)[0].item() == torch.tensor(sum(spikes)).div(3).item()
    weighted = spikes[0] * 0.5 + spikes[1] * 0.25 + spikes[2] * 2
    assert lif(x, v, readout=[0.5, 0.25, 2.0], **options)[0].item() == weighted


@on_both
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_a_rate_is_never_above_one(backend: str, dtype: torch.dtype) -> None:
    for steps in (1, 3, 10, 49, 1000):
        rate, _ = lif(torch.ones(3, dtype=dtype), steps=steps, decay=0.0, threshold=0.5, readout="rate")
        assert rate.tolist() == [1, 1, 1]


# ------------------------------------------------------------------------------- bits and gradients of the kernel

SHAPES = list(itertools.product((1, 7, 16, 17, 63), (1, 1023, 4097), DTYPES.items(), RESETS))


@pytest.mark.parametrize(
    ("index", "steps", "n", "dtype", "reset"),
    [(i, t, n, d, r) for i, (t, n, (_, d), r) in enumerate(SHAPES)],
    ids=[f"T{t}-N{n}-{key}-{r}" for t, n, (key, _), r in SHAPES],
)
def test_equals_the_reference(index: int, steps: int, n: int, dtype: torch.dtype, reset: str) -> None:
    options = RICH | {"reset": reset, "decay": (0.25, 0.3, 0.9)[index % 3], "surrogate": SURROGATES[index // 2 % 4]}
    check_equal(randn(steps, n, seed=index, dtype=dtype), randn(n, seed=index + 1), **options)


CHOICES = list(
    itertools.product(RESETS, ("", "strict"), ("", "detach"), (None, "rate", "weights"), ("", "constant"), ("", "v"))
)


@pytest.mark.parametrize(
    ("index", "choice"),
    list(enumerate(CHOICES)),
    ids=["-".join(str(part) for part in choice if part) for choice in CHOICES],
)
def test_options_equal_the_reference(index: int, choice: tuple) -> None:
    reset, strict, detach, readout, constant, state = choice
    steps, n = (17, 1023) if index % 2 else (33, 65)
    options = RICH | {
        "reset": reset,
        "strict": bool(strict),
        "detach_reset": bool(detach),
        "readout": readout_of(readout, steps),
        "surrogate": SURROGATES[index % 4],
        "steps": steps if constant else None,
    }
    for dtype in DTYPES.values():
        x = randn(n, seed=index, dtype=dtype) if constant else randn(steps, n, seed=index, dtype=dtype)
        check_equal(x, randn(n, seed=1) if state else None, **options)


def check_equal(x: Tensor, v: Tensor | None, **options) -> None:
    """Spikes and v equal in every bit, on every vector width; gradients within their tolerance."""
    v = None if v is None else v.to(reference.state_dtype(x.dtype))
    expected = run_lif("reference", x, v, **options)
    for isa in ISAS:
        with vector_width(isa):
            spikes, last, gradients = run_lif("cpu", x, v, **options)
        assert_same_bits(spikes, expected[0])
        assert_same_bits(last, expected[1])
        assert_gradients(gradients, expected[2])


def near_threshold(decay: float, gain: float, rest: float, reset: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """x (8, 4097) and v whose every second membrane potential is the threshold or a neighbour of it."""
    threshold, numbers = torch.tensor(0.2, dtype=dtype), {"decay": decay, "gain": gain, "rest": rest, "threshold": 0.2}
    targets = torch.stack(
        [threshold, *(torch.nextafter(threshold, torch.tensor(side * 1.0, dtype=dtype)) for side in (-1, 1))]
    )
    x, start = randn(8, 4097, seed=1, dtype=dtype), randn(4097, seed=2, dtype=dtype)
    v, p = start, neuron(steps=1, reset=reset, **numbers)
    for t in range(8):
        if t % 2 == 0:
            target = targets[torch.randint(3, (4097,), generator=torch.Generator().manual_seed(t))]
            x[t] = ((target.double() - rest - (decay * v).double()) / gain).to(dtype)
        _, v = reference.lif(x[t : t + 1], v, None, p)
    return x, start


@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=name)
@pytest.mark.parametrize(("gain", "rest"), [(1.0, 0.0), (0.7, 0.1)], ids=["plain", "gain-rest"])
@pytest.mark.parametrize("decay", [0.25, 0.3, 0.9])
def test_one_unit_in_the_last_place_of_the_threshold(
    decay: float, gain: float, rest: float, dtype: torch.dtype, reset: str
) -> None:
    x, v = near_threshold(decay, gain, rest, reset, dtype)
    for strict in (False, True):
        options = {"decay": decay, "gain": gain, "rest": rest, "threshold": 0.2, "reset": reset, "strict": strict}
        check_equal(x, v, **options)


@pytest.mark.parametrize("decay", [0.3, 0.9])
def test_a_fused_multiply_add_would_show(decay: float) -> None:
    """The inputs of the test above have teeth: contraction, or the other comparison, flips spikes."""
    x, v = near_threshold(decay, 1.0, 0.0, "hard", torch.float32)
    threshold = torch.tensor(0.2)
    fused = (torch.tensor(decay).double() * v.double() + x[0].double()).float()  # rounded once
    spikes, _ = lif(x[:1], v, decay=decay, threshold=0.2)
    strict, _ = lif(x[:1], v, decay=decay, threshold=0.2, strict=True)
    assert ((fused >= threshold) != spikes[0].bool()).any()
    assert (spikes != strict).any()


@on_isas
@pytest.mark.parametrize("surrogate", SURROGATES + SMOOTH, ids=lambda s: f"{name(s)}{'-smooth' * s.smooth}")
def test_vector_widths_agree_bit_for_bit(isa: str, surrogate: Surrogate) -> None:
    for dtype in DTYPES.values():
        x, v = randn(19, 1031, dtype=dtype), randn(1031, seed=1, dtype=reference.state_dtype(dtype))
        here = flat(run_lif("cpu", x, v, surrogate=surrogate, **RICH))
        with vector_width("baseline"):
            there = flat(run_lif("cpu", x, v, surrogate=surrogate, **RICH))
        for a, b in zip(here, there, strict=True):
            assert_same_bits(a, b)


@pytest.mark.parametrize(("steps", "dtype"), [(3, torch.float32), (6, torch.bfloat16)], ids=["f32", "bf16"])
def test_tensors_beyond_the_cache(steps: int, dtype: torch.dtype) -> None:
    """More than 8 MiB a tensor, at an odd width: the stores that bypass the cache, unaligned rows."""
    check_equal(randn(steps, 700_001, dtype=dtype), None, **RICH)


@on_both
def test_infinities_and_nan(backend: str) -> None:
    x = torch.tensor([[float("inf"), -float("inf"), float("nan"), 0.0]] * 2)
    spikes, v = lif(x, reset="soft", **OPTIONS)
    assert spikes.tolist() == [[1, 0, 0, 0]] * 2
    assert v[:2].tolist() == [float("inf"), -float("inf")]
    assert v[2].isnan()


# ------------------------------------------------------------------------------------------------ half precision


def every_pattern(dtype: torch.dtype) -> Tensor:
    return torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)


@on_isas
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=name)
def test_every_half_is_read_as_torch_reads_it(isa: str, dtype: torch.dtype) -> None:
    x = every_pattern(dtype)
    zero = torch.full(x.shape, -0.0)  # -0 + x is x, -0 included
    _, v = lif(x[None], zero, decay=1.0, rest=-0.0, threshold=3.4e38, reset="soft")
    expected = x.float()
    number = ~expected.isnan()
    assert torch.equal(v.isnan(), ~number)
    assert_same_bits(v[number], expected[number])


@on_isas
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=name)
def test_every_half_is_written_as_torch_writes_it(isa: str, dtype: torch.dtype) -> None:
    """Every half, every tie between two, their fp32 neighbours, and a million random patterns."""
    halves = every_pattern(dtype).float()
    ties = (halves.view(torch.int32)[:, None] + torch.tensor([0x1000, 0x8000])).flatten().view(torch.float32)
    exact = torch.cat([halves, ties])
    around = [torch.nextafter(exact, torch.tensor(side * float("inf"))) for side in (-1, 1)]
    random = torch.randint(-(2**31), 2**31, (2**20,), generator=torch.Generator().manual_seed(0)).int()
    edges = torch.tensor([65519.996, 65520.0, 3.3953e38, 3.4028e38, 2.0**-24, 2.0**-25, 1e-45, 0.0, -0.0])
    m = torch.cat([exact, *around, random.view(torch.float32), edges])
    nothing = torch.full(m.shape, -0.0, dtype=dtype)
    surrogate = StraightThrough(smooth=True)  # the output is m - threshold
    out, _ = lif(nothing[None], m, decay=1.0, rest=-0.0, threshold=0.0, surrogate=surrogate)
    expected = m.to(dtype)
    number = ~m.isnan()
    assert torch.equal(out[0].isnan(), ~number)
    assert_same_bits(out[0][number], expected[number])


# ----------------------------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("readout", [None, "rate", "weights"], ids=str)
@pytest.mark.parametrize("surrogate", SURROGATES + SMOOTH, ids=lambda s: f"{name(s)}{'-smooth' * s.smooth}")
def test_backward_is_the_derivative_of_the_forward(surrogate: Surrogate, readout: str | None) -> None:
    """Autograd of the differentiable reference, against its hand-written backward and against both backends."""
    steps, n = 20, 37
    weights = randn(steps, seed=3, dtype=torch.float64) if readout == "weights" else None
    public = weights if readout == "weights" else readout
    for reset, detach, constant in itertools.product(RESETS, (False, True), (False, True)):
        options = RICH | {"reset": reset, "detach_reset": detach, "surrogate": surrogate}
        p = neuron(steps=steps, constant=constant, readout=readout, **options)
        x = randn(*(n,) if constant else (steps, n), dtype=torch.float64)
        v = randn(n, seed=1, dtype=torch.float64)
        if surrogate.smooth:  # smooth spikes of any height feed back: small positive inputs keep them bounded
            x, v = x.abs() / 10, v.abs() / 10
        x.requires_grad_(), v.requires_grad_()
        out, last = reference.lif(x, v, weights, p)
        dout, dv = (randn(*o.shape, seed=7 + i, dtype=torch.float64) for i, o in enumerate((out, last)))
        expected = torch.autograd.grad((out, last), (x, v), (dout, dv))
        with torch.no_grad():
            assert_gradients(reference.lif_backward(x, v, weights, dout, dv, p), expected)
        options |= {"readout": public, "steps": steps if constant else None}
        for backend in BACKENDS:
            assert_gradients(run_lif(backend, x, v, **options)[2], expected)


@on_both
@pytest.mark.parametrize("constant", ["sequence", "constant"])
@pytest.mark.parametrize("readout", [None, "rate", "weights"], ids=str)
@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("surrogate", SMOOTH, ids=name)
def test_gradcheck_through_time(
    backend: str, surrogate: Surrogate, reset: str, readout: str | None, constant: str
) -> None:
    steps = 3
    x = randn(*(2,) if constant == "constant" else (steps, 2), dtype=torch.float64).requires_grad_()
    v = randn(2, seed=1, dtype=torch.float64).requires_grad_()
    options = RICH | {"reset": reset, "surrogate": surrogate, "steps": steps if constant == "constant" else None}
    options["readout"] = WEIGHTS[:steps] if readout == "weights" else readout

    def spikes_and_potential(x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return lif(x, v, **options)

    assert torch.autograd.gradcheck(spikes_and_potential, (x, v))
    if backend == "cpu":  # the second derivative is the reference's on both
        assert torch.autograd.gradgradcheck(spikes_and_potential, (x, v))


@on_both
@pytest.mark.parametrize("surrogate", SURROGATES, ids=name)
@pytest.mark.parametrize("reset", RESETS)
def test_second_derivatives_of_real_spikes(backend: str, reset: str, surrogate: Surrogate) -> None:
    options = RICH | {"reset": reset, "surrogate": surrogate}
    x = randn(18, 5, dtype=torch.float64).requires_grad_()
    v = randn(5, seed=1, dtype=torch.float64).requires_grad_()

    def twice(spikes: Tensor, last: Tensor) -> tuple[Tensor, ...]:
        loss = (spikes * randn(18, 5, seed=2, dtype=torch.float64)).sum() + last.square().sum()
        first = torch.autograd.grad(loss, (x, v), create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), (x, v))

    assert_gradients(twice(*lif(x, v, **options)), twice(*reference.lif(x, v, None, neuron(steps=18, **options))))


@on_both
@pytest.mark.parametrize("output", [0, 1], ids=["spikes", "potential"])
def test_gradient_through_one_output_alone(backend: str, output: int) -> None:
    x, v = randn(20, 9, dtype=torch.float64).requires_grad_(), randn(9, seed=1, dtype=torch.float64).requires_grad_()
    for readout, steps in itertools.product((None, "rate"), (None, 20)):
        inputs = (x if steps is None else x[0].detach().requires_grad_(), v)
        out = lif(*inputs, readout=readout, steps=steps, **RICH)[output]
        weights = None if readout is None else readout
        p = neuron(steps=20, constant=steps is not None, readout=weights, **RICH)
        expected = reference.lif(*inputs, None, p)[output]
        assert_gradients(
            torch.autograd.grad(out.square().sum(), inputs), torch.autograd.grad(expected.square().sum(), inputs)
        )


@on_both
def test_gradient_of_one_input_alone(backend: str) -> None:
    x, v = randn(20, 9), randn(9, seed=1)
    both = run_lif(backend, x, v, **RICH)[2]
    for k in range(2):
        inputs = [t.clone().requires_grad_(i == k) for i, t in enumerate((x, v))]
        outputs = lif(*inputs, **RICH)
        cotangents = [randn(*o.shape, seed=7 + i) for i, o in enumerate(outputs)]
        torch.autograd.backward(outputs, cotangents)
        assert_same_bits(inputs[k].grad, both[k])
        assert inputs[1 - k].grad is None


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
    expected = reference.lif(x, v, None, neuron(steps=1000, surrogate=ATan(), **RICH))
    assert_same_bits(spikes, expected[0])
    assert_same_bits(last, expected[1])
    cotangents = [randn(*o.shape, seed=7 + i, dtype=torch.float64) for i, o in enumerate(expected)]
    assert_gradients(gradients, torch.autograd.grad(expected, (x, v), cotangents))


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("cuts", [(1,), (5, 20), (16, 32), (15, 17, 39)], ids=str)
def test_a_cut_sequence_is_the_whole_one(cuts: tuple[int, ...], dtype: torch.dtype) -> None:
    x, v = randn(40, 101, dtype=dtype), randn(101, seed=1, dtype=reference.state_dtype(dtype))
    whole, last, gradients = run_lif("cpu", x, v, **RICH)
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=name)
@pytest.mark.parametrize("steps", [16, 64])
def test_saved_bytes(steps: int, dtype: torch.dtype) -> None:
    """x, and the potential of every 16th step: nothing per step beyond x."""

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
    assert saved(lambda: lif(x, readout="rate", **OPTIONS)) == x.nbytes + potentials
    row = x[0].detach().requires_grad_()
    assert saved(lambda: lif(row, steps=steps, **OPTIONS)) == row.nbytes + potentials


@pytest.mark.slow
def test_beyond_two_to_the_31_elements() -> None:
    steps, n = 2050, 2**20 + 3
    x = randn(n, dtype=torch.bfloat16)
    spikes, last = lif(x, steps=steps, decay=0.9, threshold=2.0)
    assert spikes.numel() > 2**31
    expected, expected_last = lif(x[-1000:], steps=steps, decay=0.9, threshold=2.0)
    assert_same_bits(spikes[:, -1000:], expected)
    assert_same_bits(last[-1000:], expected_last)


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
    for options in ({}, {"readout": "rate"}):
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
    for options in ({"readout": "rate"}, {"steps": 20}):  # the readout, and a constant current
        current, like = (x[0], x) if "steps" in options else (x, x[0])
        rate, _, (dx, _) = run_lif(backend, current, v, **RICH, **options)
        assert rate.stride() == like.stride()
        assert dx.stride() == current.stride()
        expected = flat(run_lif(backend, current.contiguous(), v, **RICH, **options))
        assert_same_bits(rate, expected[0])
        assert_same_bits(dx, expected[2])


@on_both
@pytest.mark.parametrize("shape", [(3, 0), (40, 0), (3, 0, 2, 4, 4), (3, 2, 0)], ids=str)
def test_empty(backend: str, shape: tuple[int, ...]) -> None:
    for options in ({}, {"readout": "rate"}, {"readout": [0.5] * shape[0]}):
        spikes, last, (dx, dv) = run_lif(backend, torch.zeros(shape), torch.zeros(shape[1:]), **OPTIONS, **options)
        assert spikes.shape == (shape if not options else shape[1:])
        assert last.shape == dv.shape == shape[1:]
        assert dx.shape == shape
    x = torch.zeros(shape[1:]).requires_grad_()
    spikes, _ = lif(x, steps=3, **OPTIONS)
    (first,) = torch.autograd.grad(spikes.sum(), x, create_graph=True)
    assert torch.autograd.grad(first.sum(), x)[0].shape == shape[1:]


def test_lazily_negated_inputs() -> None:
    x, v = torch._neg_view(randn(20, 8)), torch._neg_view(randn(8, seed=1))
    for a, b in zip(lif(x, v, **RICH), lif(x.resolve_neg(), v.resolve_neg(), **RICH), strict=True):
        assert_same_bits(a, b)


# ---------------------------------------------------------------------------------------------------- concurrency


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_deterministic_for_any_thread_count(dtype: torch.dtype) -> None:
    x, v = randn(16, 4097, dtype=dtype), randn(4097, seed=1, dtype=reference.state_dtype(dtype))
    results = []
    for count in (1, 1, 2):
        torch.set_num_threads(count)
        results.append(flat(run_lif("cpu", x, v, **RICH)))
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert_same_bits(a, b)


def test_two_python_threads_at_once() -> None:
    inputs = [(randn(40, 5000, seed=i), randn(5000, seed=9 + i)) for i in range(2)]
    expected = [flat(run_lif("cpu", *pair, **RICH)) for pair in inputs]
    wrong: list[int] = []

    def work(i: int) -> None:
        for _ in range(10):
            if not all(map(torch.equal, flat(run_lif("cpu", *inputs[i], **RICH)), expected[i])):
                wrong.append(i)

    workers = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert wrong == []


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
        lif(x, steps=600, readout="rate", **OPTIONS)
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
    "plain": ((20, 6), "hard", None, False, True),
    "plain-bf16": ((20, 6), "hard", None, False, True),
    "soft-no-state": ((7, 6), "soft", None, False, False),
    "rate": ((20, 6), "hard", "rate", False, True),
    "weights": ((20, 6), "soft", "weights", False, True),
    "constant": ((6,), "hard", None, True, True),
    "channels-last": ((20, 2, 3, 4, 4), "hard", None, False, True),
    "empty": ((20, 0), "hard", None, False, True),
}


@pytest.mark.parametrize("case", RAW)
def test_opcheck(case: str) -> None:
    shape, reset, readout, constant, state = RAW[case]
    dtype = torch.bfloat16 if case == "plain-bf16" else torch.float32
    x = randn(*shape, dtype=dtype)
    if case == "channels-last":
        x = x.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, shape[:2])
    inner = x.shape if constant else x.shape[1:]
    v = randn(*inner, seed=1, dtype=reference.state_dtype(dtype)) if state else None
    weights = torch.linspace(0, 1, 20, dtype=torch.float64) if readout == "weights" else None
    p = neuron(steps=20 if constant else shape[0], constant=constant, reset=reset, readout=readout, **RICH)
    torch.library.opcheck(ops.lif_fwd, (x, v, weights, True, *p))
    out, last, saved = ops.lif_fwd(x, v, weights, True, *p)
    torch.library.opcheck(ops.lif_bwd, (x, v, saved, weights, out, last if state else None, *p))


def train(function: Callable, x: Tensor, v: Tensor) -> tuple[Tensor, ...]:
    """Outputs and gradients of a (compiled) forward, with the backward outside of it."""
    x, v = x.clone().requires_grad_(), v.clone().requires_grad_()
    spikes, last = function(x, v)
    ((spikes * randn(*spikes.shape, seed=5)).sum() + last.square().sum()).backward()
    return spikes.detach(), last.detach(), x.grad, v.grad


@pytest.mark.parametrize(
    "options",
    [{}, {"readout": "rate"}, {"reset": "soft", "surrogate": Rectangular(width=0.5), "detach_reset": True}],
    ids=["plain", "rate", "soft-detached"],
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
@pytest.mark.parametrize("readout", [None, "rate", "weights"], ids=str)
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


def test_vmap_over_readout_weights_is_refused() -> None:
    x, p = randn(4, 6), neuron(steps=4, readout="weights", **RICH)
    call = torch.vmap(lambda w: ops.lif_fwd(x, None, w, False, *p)[0])
    one_line(lambda: call(torch.ones(2, 4, dtype=torch.float64)), NotImplementedError, "readout: ")


@on_both
def test_autocast_around_a_convolution(backend: str) -> None:
    torch.manual_seed(0)
    conv = torch.nn.Conv2d(2, 3, 3, padding=1).to(memory_format=torch.channels_last)
    images = randn(6 * 4, 2, 5, 5).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
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
    spikes, v = lif(torch.empty(20, 3, 4, device="meta", dtype=torch.bfloat16), **OPTIONS)
    assert (spikes.shape, spikes.dtype, spikes.device.type) == ((20, 3, 4), torch.bfloat16, "meta")
    assert (v.shape, v.dtype, v.device.type) == ((3, 4), torch.float32, "meta")


# -------------------------------------------------------------------------------------------------------- bad input

X = torch.zeros(4, 3)
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
    "reset-delayed": (NotImplementedError, "reset: 'delayed'", {"reset": "delayed"}),
    "reset-none": (NotImplementedError, "reset: 'none'", {"reset": "none"}),
    "reset-unknown": (ValueError, "reset: got 'zero', accepted are hard, soft", {"reset": "zero"}),
    "reset-None": (ValueError, "reset: got None", {"reset": None}),
    "surrogate-class": (TypeError, "surrogate: got <class", {"surrogate": Sigmoid}),
    "surrogate-string": (TypeError, "surrogate: got 'atan'", {"surrogate": "atan"}),
    "surrogate-base": (TypeError, "surrogate: ", {"surrogate": Surrogate()}),
    "readout-word": (ValueError, "readout: got 'mean'", {"readout": "mean"}),
    "readout-short": (ValueError, "readout: got weights of shape (3,), accepted is (4,)", {"readout": [1.0] * 3}),
    "readout-matrix": (ValueError, "readout: got weights of shape (4, 1)", {"readout": torch.ones(4, 1)}),
    "readout-number": (ValueError, "readout: ", {"readout": 0.5}),
    "readout-words": (TypeError, "readout: ", {"readout": [1.0, "a", 2.0, 3.0]}),
    "readout-object": (TypeError, "readout: ", {"readout": object()}),
    "readout-gradient": (NotImplementedError, "readout: got weights that", {"readout": torch.ones(4).requires_grad_()}),
    "record": (NotImplementedError, "record: got 'membrane'", {"record": "membrane"}),
    "dtype": (NotImplementedError, "dtype: got torch.uint8", {"dtype": torch.uint8}),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named_in_one_line(case: str) -> None:
    error, start, arguments = BAD[case]
    one_line(lambda: lif(**({"x": X} | OPTIONS | arguments)), error, start)


@pytest.mark.parametrize("argument", ["decay", "gain", "rest", "threshold", "v_reset"])
def test_bad_parameters(argument: str) -> None:
    x = torch.zeros(4, 2, 3, 5)  # three channels

    def call(value: object) -> Callable[[], object]:
        return lambda: lif(x, **(OPTIONS | {argument: value}))

    for value in (float("nan"), float("inf"), None, "0.5", True, 1j, [0.5], 10**400):
        one_line(call(value), ValueError, f"{argument}: got ")
    for shape in ((2,), (4,), (3, 1), ()):
        if shape:
            one_line(call(torch.ones(shape)), ValueError, f"{argument}: got shape {shape}")
    for shape in ((1,), (3,)):
        one_line(call(torch.ones(shape)), NotImplementedError, f"{argument}: got a tensor")


def test_accepted_forms() -> None:
    """What looks alike is alike: weights as list, tensor or array; T as an argument; the spikes' own dtype."""
    x = randn(4, 3)
    expected, _ = lif(x, readout=WEIGHTS, **OPTIONS)
    for weights in (tuple(WEIGHTS), torch.tensor(WEIGHTS, dtype=torch.float64), torch.tensor(WEIGHTS).double().numpy()):
        assert_same_bits(lif(x, readout=weights, **OPTIONS)[0], expected)
    assert_same_bits(lif(x, dtype=torch.float32, **OPTIONS)[0], lif(x, **OPTIONS)[0])
    assert_same_bits(
        lif(x[0], steps=4, **OPTIONS)[0], lif(x[:1].expand(4, 3), torch.zeros(3), decay=0.3, threshold=0.5)[0]
    )


def test_raw_op_refuses_an_unknown_surrogate() -> None:
    options = (3, False, 0, 0.5, 1.0, 0.0, 1.0, 0.0, False, False, 99, 1.0, 0.0, False, 0)
    with pytest.raises(ValueError, match="surrogate: got the id 99"):
        torch.ops.esvae_kernels.lif_fwd(torch.zeros(3, 2), None, None, False, *options)
