"""What the kernel tests share: the grid of options, bitwise comparison, tolerances beside their dtype."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from esvae_kernels import lif, native, use_backend
from esvae_kernels.ops.lif import reference
from esvae_kernels.surrogate import ATan, Rectangular, Sigmoid, StraightThrough, Surrogate

BACKENDS = ["reference", "cpu"]
ISAS = native.module.isas() if native.module else []
DTYPES = {"f64": torch.float64, "f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
SURROGATES = [Rectangular(width=0.8), StraightThrough(), Sigmoid(alpha=3.0), ATan(alpha=1.5, center=0.1)]
SMOOTH = [
    Rectangular(width=2.5, smooth=True),
    StraightThrough(smooth=True),
    Sigmoid(alpha=3.0, smooth=True),
    ATan(alpha=1.5, center=0.1, smooth=True),
]
TOLERANCE = {  # of gradients: a few units in the last place, plus the rounding of a sum over time
    torch.float64: {"rtol": 1e-12, "atol": 1e-13},
    torch.float32: {"rtol": 2e-5, "atol": 2e-6},
    torch.bfloat16: {"rtol": 1.6e-2, "atol": 1e-5},
    torch.float16: {"rtol": 2e-3, "atol": 1e-5},
}
_INTEGERS = {8: torch.int64, 4: torch.int32, 2: torch.int16}


def name(value: object) -> str:
    """A readable id: `ATan`, `f32`, `soft`."""
    if isinstance(value, Surrogate):
        return type(value).__name__
    for key, dtype in DTYPES.items():
        if value is dtype:
            return key
    return str(value)


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def bits(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().view(_INTEGERS[tensor.element_size()])


def assert_same_bits(actual: Tensor, expected: Tensor) -> None:
    """Equal as bit patterns: unlike `torch.equal`, -0 differs from 0."""
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    assert torch.equal(bits(actual), bits(expected))


@contextmanager
def vector_width(isa: str) -> Iterator[None]:
    """The compiled kernels of one vector width."""
    before = native.module.isa()
    native.module.set_isa(isa)
    try:
        yield
    finally:
        native.module.set_isa(before)


def assert_gradients(actual: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    assert len(actual) == len(expected)
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e.to(a.dtype), **TOLERANCE[a.dtype])


def run_lif(backend: str, x: Tensor, v: Tensor | None = None, **options) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Spikes, last potential, and the gradients of x (and v) for fixed cotangents of both outputs."""
    with use_backend(backend):
        inputs = [t.detach().requires_grad_() for t in (x, v) if t is not None]
        outputs = lif(*inputs, **options)
        cotangents = [randn(*o.shape, seed=7 + i, dtype=o.dtype) for i, o in enumerate(outputs)]
        gradients = torch.autograd.grad(outputs, inputs, cotangents)
    return outputs[0].detach(), outputs[1].detach(), list(gradients)


def flat(result: tuple[Tensor, Tensor, list[Tensor]]) -> tuple[Tensor, ...]:
    """What `run_lif` returns, as one tuple."""
    return (*result[:2], *result[2])


def neuron(
    *,
    steps: int,
    decay: float,
    threshold: float,
    constant: bool = False,
    reset: str = "hard",
    readout: str | None = None,
    surrogate: Surrogate = ATan(),  # noqa: B008 - frozen
    **numbers,
) -> reference.Neuron:
    """The reference's options, written as the public function takes them. `readout`: None, "rate" or "weights"."""
    defaults = {"gain": 1.0, "rest": 0.0, "v_reset": 0.0, "strict": False, "detach_reset": False} | numbers
    return reference.Neuron(
        steps=steps,
        constant=constant,
        reset=reference.RESETS.index(reset),
        decay=decay,
        threshold=threshold,
        surrogate=surrogate.id,
        shape=surrogate.shape,
        center=surrogate.center,
        smooth=surrogate.smooth,
        readout=reference.READOUTS.index(readout),
        **defaults,
    )


def one_line(call: Callable[[], object], error: type[Exception], start: str) -> None:
    """`call` raises exactly `error`, in one line that starts with the argument's name."""
    with pytest.raises(error) as raised:
        call()
    assert raised.type is error
    assert str(raised.value).startswith(start), str(raised.value)
    assert "\n" not in str(raised.value)
