"""Every surrogate on every backend and dtype: one formula, its exact derivative, its area and its center."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from kernel_helpers import BACKENDS, DTYPES, SMOOTH, SURROGATES, TOLERANCE, name, one_line, randn
from scipy.integrate import quad
from torch import Tensor

from esvae_kernels import lif, surrogate
from esvae_kernels.ops.lif.reference import state_dtype
from esvae_kernels.surrogate import SURROGATES as BY_ID
from esvae_kernels.surrogate import ATan, Rectangular, Sigmoid, StraightThrough, Surrogate
from esvae_kernels.surrogate.reference import from_arguments

every = pytest.mark.parametrize("s", SURROGATES, ids=name)
on_both = pytest.mark.parametrize("backend", BACKENDS, indirect=True)
EDGES = [
    0.0,
    -0.0,
    0.399,
    0.401,
    -0.399,
    -0.401,
    30.0,
    -30.0,
    1e4,
    -1e4,
]  # beside the kinks of Rectangular(0.8), far out


def through_the_op(s: Surrogate, u: Tensor) -> tuple[Tensor, Tensor]:
    """Value and derivative at u, as the op computes them: one step, no leak, threshold 0, no reset to flow through."""
    u = u.detach().requires_grad_()
    value, _ = lif(u[None], decay=0.0, threshold=0.0, detach_reset=True, surrogate=s)
    return value[0].detach(), torch.autograd.grad(value.sum(), u)[0]


def test_ids_are_unique_and_complete() -> None:
    classes = Surrogate.__subclasses__()
    assert len({cls.id for cls in classes}) == len(classes)
    assert {cls.id: cls for cls in classes} == BY_ID
    assert {type(s) for s in SURROGATES} == {type(s) for s in SMOOTH} == set(classes), "a surrogate without tests"
    for cls in classes:
        assert getattr(surrogate, cls.__name__) is cls
        assert cls.__name__ in surrogate.__all__


@pytest.mark.parametrize("s", SURROGATES + SMOOTH, ids=lambda s: f"{name(s)}{'-smooth' * s.smooth}")
def test_arguments_name_the_surrogate(s: Surrogate) -> None:
    assert from_arguments(s.id, s.shape, s.center, s.smooth) == s


@every
def test_derivative_is_that_of_the_primitive(s: Surrogate) -> None:
    u = torch.cat([randn(200, dtype=torch.float64), torch.tensor(EDGES, dtype=torch.float64)]).requires_grad_()
    (by_autograd,) = torch.autograd.grad(s.primitive(u).sum(), u)
    torch.testing.assert_close(s.derivative(u), by_autograd, rtol=1e-12, atol=1e-14)
    step = 1e-6
    with torch.no_grad():
        by_difference = (s.primitive(u + step) - s.primitive(u - step)) / (2 * step)
    torch.testing.assert_close(s.derivative(u), by_difference, rtol=1e-6, atol=1e-8)


@on_both
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@every
def test_backends_compute_the_formulas(s: Surrogate, dtype: torch.dtype, backend: str) -> None:
    u = torch.cat([randn(1000), torch.tensor(EDGES)]).to(dtype)
    centered = u.to(state_dtype(dtype)) - s.center
    tolerance = dict(TOLERANCE[dtype]) | {"atol": max(TOLERANCE[dtype]["atol"], 1e-7)}
    value, _ = through_the_op(replace(s, smooth=True), u)
    torch.testing.assert_close(value, s.primitive(centered).to(dtype), **tolerance)
    spikes, derivative = through_the_op(s, u)
    assert torch.equal(spikes, (u >= 0).to(dtype))
    torch.testing.assert_close(derivative, s.derivative(centered).to(dtype), **tolerance)
    _, of_the_smooth = through_the_op(replace(s, smooth=True), u)
    assert torch.equal(derivative, of_the_smooth)


@on_both
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("s", [s for s in SURROGATES if not isinstance(s, StraightThrough)], ids=name)
def test_far_from_the_threshold_nothing_flows(s: Surrogate, dtype: torch.dtype, backend: str) -> None:
    u = torch.tensor([float("inf"), -float("inf")], dtype=dtype)
    value, derivative = through_the_op(replace(s, smooth=True), u)
    torch.testing.assert_close(value, torch.tensor([1.0, 0.0], dtype=dtype), rtol=1e-6, atol=1e-6)
    assert derivative.double().abs().max() < 1e-30


@pytest.mark.parametrize(
    "s",
    [Rectangular(0.5), Rectangular(2.0), Sigmoid(4.0), Sigmoid(0.7), ATan(2.0), ATan(5.0)],
    ids=lambda s: f"{name(s)}-{s.shape}",
)
def test_area_is_one(s: Surrogate) -> None:
    """A surrogate stands in for the step's derivative, so it integrates to the height of the step."""

    def derivative(u: float) -> float:
        return s.derivative(torch.tensor(u, dtype=torch.float64)).item()

    edge = s.shape / 2 if isinstance(s, Rectangular) else 1.0
    pieces = [(-math.inf, -edge), (-edge, edge), (edge, math.inf)]
    assert sum(quad(derivative, *piece)[0] for piece in pieces) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(
    ("s", "peak"), [(Rectangular(0.5), 2.0), (Sigmoid(4.0), 1.0), (ATan(2.0), 1.0), (StraightThrough(), 1.0)], ids=name
)
def test_height_at_the_threshold(s: Surrogate, peak: float) -> None:
    assert s.derivative(torch.zeros(())).item() == pytest.approx(peak)


@on_both
@every
def test_center_shifts(s: Surrogate, backend: str) -> None:
    u = randn(50, dtype=torch.float64)
    for smooth in (False, True):
        shifted = through_the_op(replace(s, center=0.25, smooth=smooth), u)
        plain = through_the_op(replace(s, center=0.0, smooth=smooth), u - 0.25)
        torch.testing.assert_close(shifted[1], plain[1], rtol=1e-12, atol=1e-14)
        if smooth:
            torch.testing.assert_close(shifted[0], plain[0], rtol=1e-12, atol=1e-14)
        else:  # the spike itself stays where it is
            assert torch.equal(shifted[0], (u >= 0).double())


@pytest.mark.parametrize("value", [0, 0.0, -1.0, float("nan"), float("inf"), None, "1"], ids=repr)
@pytest.mark.parametrize(("cls", "field"), [(Rectangular, "width"), (Sigmoid, "alpha"), (ATan, "alpha")], ids=name)
def test_bad_shapes_are_refused(cls: type[Surrogate], field: str, value: object) -> None:
    one_line(lambda: cls(**{field: value}), ValueError, f"{cls.__name__}({field}): got ")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None, "1"], ids=repr)
@pytest.mark.parametrize("cls", BY_ID.values(), ids=lambda cls: cls.__name__)
def test_bad_centers_are_refused(cls: type[Surrogate], value: object) -> None:
    one_line(lambda: cls(center=value), ValueError, f"{cls.__name__}(center): got ")


def test_surrogates_are_values() -> None:
    assert ATan(2.0) == ATan() != ATan(3.0)
    assert len({Sigmoid(), Sigmoid(4.0), Sigmoid(4.0, center=0.1)}) == 2
    with pytest.raises(AttributeError):
        ATan().alpha = 3.0
