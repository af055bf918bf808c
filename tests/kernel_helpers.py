"""What the kernel tests share: the device, the grid of options, bitwise comparison, tolerances beside their dtype."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TypeVar

import pytest
import torch
import torch.nn.functional as F
from parts import lif
from torch import Tensor

from esvae_kernels import backends, native, use_backend
from esvae_kernels.ops.lif import reference
from esvae_kernels.surrogate import (
    ATan,
    FastSigmoid,
    Gaussian,
    PiecewiseExp,
    Rectangular,
    Sigmoid,
    StraightThrough,
    Surrogate,
    Triangular,
)

DEVICE = torch.device("cpu")  # what tensors are made on; `run_on` changes it before any test is imported
BACKENDS = ["reference", "cpu"] if native.module else ["reference"]  # those of DEVICE
KERNELS = native.module.isas() if native.module else []  # the vector widths of the cpu backend; on a GPU the backends
DTYPES = {"f64": torch.float64, "f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
SURROGATES = [
    Rectangular(width=0.8),
    StraightThrough(scale=0.7),
    Sigmoid(alpha=3.0),
    ATan(alpha=1.5, shift=0.1),
    Triangular(width=1.2, scale=1.3),
    FastSigmoid(slope=2.5, shift=-0.2, scale=1.5),
    Gaussian(sigma=0.6),
    PiecewiseExp(alpha=2.0, scale=0.5),
]
sampled = False  # whether a sample of the tests is run; conftest.py says so before any test is imported
SMOOTH = [replace(s, spiking=False) for s in (Rectangular(width=2.5), *SURROGATES[1:])]
TOLERANCE = {  # of gradients: a few units in the last place, plus the rounding of a sum over time
    torch.float64: {"rtol": 1e-12, "atol": 1e-13},
    torch.float32: {"rtol": 2e-5, "atol": 2e-6},
    torch.bfloat16: {"rtol": 1.6e-2, "atol": 1e-5},
    torch.float16: {"rtol": 2e-3, "atol": 1e-5},
}
Value = TypeVar("Value")
_INTEGERS = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.uint8}


def run_on(device: str, without: Sequence[str] = ()) -> None:
    """Called once, before tests are imported: they then make their tensors on `device`, "cpu" or "cuda"."""
    global DEVICE
    DEVICE = torch.device(device)
    if DEVICE.type == "cuda":
        DEVICE = torch.device("cuda", torch.cuda.current_device())
        KERNELS[:] = [name for name in ("triton", "cuda") if name not in without]
        backends._ORDER["cuda"] = (*KERNELS, "reference")  # also where a test forces none
        BACKENDS[:] = ["reference", *KERNELS]


def on_gpu() -> bool:
    return DEVICE.type == "cuda"


def cpu_only(reason: str) -> pytest.MarkDecorator:
    """For tests of what only the CPU's kernels have, or of what is the same on any device."""
    return pytest.mark.skipif(on_gpu(), reason=reason)


needs_compiled = pytest.mark.skipif(native.module is None, reason="there are no compiled kernels here")


def in_turn(values: Iterable[Value], index: int) -> list[Value]:
    """All of the values; in a sample of the tests, and on a GPU, where kernels are compiled anew for each, the one
    whose turn it is."""
    values = list(values)
    return [values[index % len(values)]] if sampled or on_gpu() else values


def name(value: object) -> str:
    """A readable id: `ATan`, `f32`, `soft`."""
    if isinstance(value, Surrogate):
        return type(value).__name__
    for key, dtype in DTYPES.items():
        if value is dtype:
            return key
    return str(value)


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """The same numbers on every device."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64, device="cpu").to(DEVICE, dtype)


def uniform(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(*shape, generator=generator, dtype=torch.float64, device="cpu").to(DEVICE, dtype)


def randint(low: int, high: int, shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(seed), device="cpu").to(DEVICE)


def bits(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().view(_INTEGERS[tensor.element_size()])


def assert_same_bits(actual: Tensor, expected: Tensor) -> None:
    """Equal as bit patterns: unlike `torch.equal`, -0 differs from 0."""
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    assert torch.equal(bits(actual), bits(expected))


def assert_all_same_bits(actual: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    for a, e in zip(actual, expected, strict=True):
        assert_same_bits(a, e)


def assert_same_bits_or_nan(actual: Tensor, expected: Tensor) -> None:
    """Equal as bit patterns, except that one NaN is as good as another."""
    number = ~expected.isnan()
    assert torch.equal(actual.isnan(), ~number)
    assert_same_bits(actual[number], expected[number])


@contextmanager
def use_kernel(kernel: str) -> Iterator[str]:
    """Forces one of KERNELS; its backend."""
    if on_gpu():
        with use_backend(kernel):
            yield kernel
        return
    before = native.module.isa()
    native.module.set_isa(kernel)
    try:
        with use_backend("cpu"):
            yield "cpu"
    finally:
        native.module.set_isa(before)


def assert_gradients(
    actual: Sequence[Tensor], expected: Sequence[Tensor], computed_in: torch.dtype | None = None
) -> None:
    """Within the tolerance of their dtype, or of the dtype that they were computed in; relative to the largest one."""
    assert len(actual) == len(expected)
    for a, e in zip(actual, expected, strict=True):
        tolerance = TOLERANCE[computed_in or a.dtype]
        largest = max(1.0, e.detach().abs().max().item()) if e.numel() else 1.0
        torch.testing.assert_close(a, e.to(a.dtype), rtol=tolerance["rtol"], atol=tolerance["atol"] * largest)


def assert_sums(
    actual: Sequence[Tensor], expected: Sequence[Tensor], terms: int, computed_in: torch.dtype = torch.float64
) -> None:
    """Gradients that are sums over `terms` elements in all: rounding grows as the root of their number."""
    assert len(actual) == len(expected)
    for a, e in zip(actual, expected, strict=True):
        rtol = max(TOLERANCE[a.dtype]["rtol"], TOLERANCE[computed_in]["rtol"])
        atol = 10 * TOLERANCE[computed_in]["rtol"] * max(1, terms / max(1, a.numel())) ** 0.5
        torch.testing.assert_close(a, e, rtol=rtol, atol=atol)


def parameters(
    channels: int, seed: int = 0, dtype: torch.dtype = torch.float32, synaptic_decay: bool = False
) -> dict[str, Tensor]:
    """The five parameters of a neuron and that of its synapse, one value per channel."""
    ranges = {"decay": (0.2, 0.95), "gain": (0.5, 1.5), "bias": (-0.1, 0.2), "threshold": (0.3, 0.6)}
    ranges |= {"v_reset": (-0.2, 0.1)} | ({"synaptic_decay": (0.2, 0.8)} if synaptic_decay else {})
    unit = uniform(len(ranges), channels, seed=seed, dtype=torch.float64)
    return {
        key: (low + (high - low) * row).to(dtype) for (key, (low, high)), row in zip(ranges.items(), unit, strict=True)
    }


def run_lif(
    backend: str, x: Tensor, v: Tensor | None = None, *, i: Tensor | None = None, op: Callable = lif, **options
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Spikes, last potential (current, recorded potentials), and the gradients for fixed cotangents of all outputs: of
    x, v, i, and the options that are tensors of floating point, in their order."""
    with use_backend(backend):
        inputs = [None if t is None else t.detach().requires_grad_() for t in (x, v, i)]
        learnt = {k: t.detach().requires_grad_() for k, t in options.items() if isinstance(t, Tensor)}
        outputs = op(*inputs[:2], **({} if i is None else {"i": inputs[2]}), **(options | learnt))
        cotangents = [randn(*o.shape, seed=7 + k, dtype=o.dtype) for k, o in enumerate(outputs)]
        wanted = [t for t in (*inputs, *learnt.values()) if t is not None]
        gradients = torch.autograd.grad(outputs, wanted, cotangents, allow_unused=True, materialize_grads=True)
    return *(o.detach() for o in outputs), list(gradients)


def flat(result: tuple) -> tuple[Tensor, ...]:
    """What `run_lif` returns, as one tuple."""
    return (*result[:-1], *result[-1])


def near_threshold(shape: tuple[int, ...], dtype: torch.dtype, **options) -> tuple[Tensor, Tensor]:
    """x (T, N, *) and v, of which every second membrane potential is the threshold or a neighbour of it."""
    values = {"gain": 1.0, "bias": 0.0} | options
    decay, gain, rest, threshold = (torch.as_tensor(values[k], dtype=dtype) for k in reference.PARAMETERS[:4])
    targets = torch.stack([threshold, *(torch.nextafter(threshold, threshold + side) for side in (-1, 1))])
    x, start = randn(*shape, seed=1, dtype=dtype), randn(*shape[1:], seed=2, dtype=dtype)
    v = start
    for t in range(len(x)):
        if t % 2 == 0:
            pick = randint(0, 3, shape[1:], seed=t)
            target = targets.movedim(0, -1).expand(*shape[1:], 3).gather(-1, pick[..., None])[..., 0]
            if options.get("reset") in ("delayed", "at_once"):
                target = target + threshold * (v > threshold if options.get("strict") else v >= threshold)
            x[t] = ((target.double() - rest.double() - (decay * v).double()) / gain.double()).to(dtype)
        with use_backend("reference"):
            _, v = lif(x[t : t + 1], v, **options)
    return x, start


def neuron(
    *,
    reset: str = "hard",
    readout: str | None = None,
    surrogate: Surrogate = ATan(),  # noqa: B008 - frozen
    synaptic_decay: float | None = None,
    **options,
) -> reference.Neuron:
    """The reference's options in the words of `parts.lif`. `readout`: None, "mean" or "weights"."""
    return reference.Neuron(
        synaptic=synaptic_decay is not None,
        synaptic_decay=synaptic_decay or 0.0,
        reset=reference.RESETS.index(reset),
        surrogate=surrogate.id,
        shape=surrogate.parameter,
        scale=surrogate.scale,
        shift=surrogate.shift,
        smooth=not surrogate.spiking,
        readout=reference.READOUTS.index(readout),
        **options,
    )


def raw(p: reference.Neuron) -> tuple[str, int]:
    """As the raw ops take it."""
    return p.text(), p.steps


def one_line(call: Callable[[], object], error: type[Exception], start: str) -> None:
    """`call` raises exactly `error`, in one line that starts with the argument's name."""
    with pytest.raises(error) as raised:
        call()
    assert raised.type is error
    assert str(raised.value).startswith(start), str(raised.value)
    assert "\n" not in str(raised.value)


# ------------------------------------------------------------------------------------------------ batch norm and LIF

NEAR = {  # of the largest element: sums over a batch differ in their order
    torch.float64: 1e-11,
    torch.float32: 2e-5,
    torch.bfloat16: 2e-5,  # computed in fp32, rounded once at the end
    torch.float16: 2e-5,
}


def channels_last(x: Tensor, channel: int = 2) -> Tensor:
    """The same values, with axis `channel` innermost in memory."""
    return x.movedim(channel, -1).contiguous().movedim(-1, channel)


def assert_near(actual: Tensor, expected: Tensor, tolerance: float, floor: float = 0.0) -> None:
    """Within `tolerance` of the largest expected element (of `floor`, if that is larger) and one rounding of the
    dtype."""
    assert actual.shape == expected.shape
    if not actual.numel():
        return
    assert expected.isfinite().all()
    error = (actual.double() - expected.double()).abs()
    rounding = torch.finfo(actual.dtype).eps * expected.double().abs() + torch.finfo(actual.dtype).tiny
    allowed = tolerance * max(expected.double().abs().max().item(), floor) + rounding
    worst = (error - allowed).max().item()
    assert worst <= 0, f"off by {error.max().item():.3g}, allowed is {allowed.max().item():.3g}"


def bn_lif_by_torch(
    y: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    *,
    training: bool,
    momentum: float = 0.1,
    eps: float = 1e-5,
    scale: float = 1.0,
    v: Tensor | None = None,
    steps: int | None = None,
    **options,
) -> tuple[Tensor, ...]:
    """What `bn_lif` says it is equivalent to; with `steps` y is repeated in full."""
    y = y if steps is None else y.expand(steps, *y.shape)
    x = F.batch_norm(y.flatten(0, 1), running_mean, running_var, scale * weight, bias, training, momentum, eps)
    return lif(x.unflatten(0, y.shape[:2]), v, **options)


def assert_flips_at_crossings(actual: Tensor, spikes: Tensor, membrane: Tensor, threshold: Tensor, ulps: int) -> Tensor:
    """Each neuron's spikes (T, N, C, *) are the reference's up to a step at which the reference's membrane potential is
    at most `ulps` units in the last place from the threshold (C). After that its state is another one, and anything
    goes. Returns which neurons flipped."""
    differ = actual.bool() != spikes.bool()
    first = differ & (differ.cumsum(0) == 1)
    threshold = threshold.view(-1, *(1,) * (spikes.dim() - 3)).to(membrane.dtype)
    size = torch.maximum(membrane.abs(), threshold.abs()).clamp(min=1)
    near = (membrane - threshold).abs() <= ulps * torch.finfo(membrane.dtype).eps * size
    assert not (first & ~near).any(), "a spike differs away from the threshold"
    return differ.any(0)
