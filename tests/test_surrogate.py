"""Every surrogate on every backend and dtype: one formula, its exact derivative, its area, height, center and scale.

The aliases are compared with their formulas written out, and both with the gradients of the libraries that have them.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from kernel_helpers import BACKENDS, DTYPES, KERNELS, SMOOTH, SURROGATES, TOLERANCE, name, one_line, randn, use_kernel
from parts import lif
from scipy.integrate import quad
from torch import Tensor

from esvae_kernels import surrogate
from esvae_kernels.ops.lif.reference import state_dtype
from esvae_kernels.surrogate import SURROGATES as BY_ID
from esvae_kernels.surrogate import (
    ATan,
    Erf,
    FastSigmoid,
    Gaussian,
    PiecewiseExp,
    PiecewiseQuadratic,
    Rectangular,
    Sigmoid,
    SingleExponential,
    SoftSign,
    StraightThrough,
    SuperSpike,
    Surrogate,
    Triangular,
)
from esvae_kernels.surrogate.reference import from_arguments

Formula = Callable[[Tensor], Tensor]
INF, NAN = float("inf"), float("nan")
OWN_PARAMETER = {  # the shape parameter of each class
    Rectangular: "width",
    Sigmoid: "alpha",
    ATan: "alpha",
    Triangular: "width",
    FastSigmoid: "slope",
    Gaussian: "sigma",
    PiecewiseExp: "alpha",
}
ALIASES = [PiecewiseQuadratic, Erf, SoftSign, SuperSpike, SingleExponential]
# The centers and the kinks of what SURROGATES holds, both sides of Rectangular's, far out.
EDGES = [0.0, -0.0, 0.1, -0.2, 0.399, 0.401, -0.399, -0.401, 1.2, -1.2, 30.0, -30.0, 1e4, -1e4]

every = pytest.mark.parametrize("s", SURROGATES, ids=name)
every_dtype = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
on_both = pytest.mark.parametrize("backend", BACKENDS, indirect=True)


def through_the_op(s: Surrogate, u: Tensor) -> tuple[Tensor, Tensor]:
    """Value and derivative at u, as the op computes them: one step, no leak, threshold 0, no reset to flow through."""
    u = u.detach().requires_grad_()
    value, _ = lif(u[None], decay=0.0, threshold=0.0, reset="soft", detach_reset=True, surrogate=s)
    return value[0].detach(), torch.autograd.grad(value.sum(), u)[0]


def label(s: Surrogate) -> str:
    return f"{name(s)}-{s.parameter:g}-{s.scale:g}"


# -------------------------------------------------------------------------------------------------- the catalogue


def test_ids_are_unique_and_complete() -> None:
    classes = Surrogate.__subclasses__()
    assert len({cls.id for cls in classes}) == len(classes)
    assert {cls.id: cls for cls in classes} == BY_ID
    assert {type(s) for s in SURROGATES} == {type(s) for s in SMOOTH} == set(classes), "a surrogate without tests"
    assert set(OWN_PARAMETER) | {StraightThrough} == set(classes)
    for cls in classes:
        assert getattr(surrogate, cls.__name__) is cls
        assert cls.__name__ in surrogate.__all__


def test_every_alias_is_tested() -> None:
    exported = {value for key in surrogate.__all__ if inspect.isfunction(value := getattr(surrogate, key))}
    assert exported == set(ALIASES)


@pytest.mark.parametrize("s", SURROGATES + SMOOTH, ids=lambda s: f"{name(s)}{'-smooth' * (not s.spiking)}")
def test_arguments_name_the_surrogate(s: Surrogate) -> None:
    assert from_arguments(s.id, s.parameter, s.scale, s.shift, s.spiking) == s


@pytest.mark.parametrize("cls", BY_ID.values(), ids=lambda cls: cls.__name__)
def test_fields(cls: type[Surrogate]) -> None:
    """The shape parameter comes first; the others are the same, in the same order, everywhere."""
    own = [OWN_PARAMETER[cls]] if cls in OWN_PARAMETER else []
    assert list(inspect.signature(cls).parameters) == [*own, "shift", "scale", "spiking"]
    s = cls(**dict.fromkeys(own, 3.0), shift=-0.5, scale=2.0, spiking=False)
    assert (s.parameter, s.shift, s.scale, s.spiking) == (3.0 if own else 1.0, -0.5, 2.0, False)
    assert (cls().shift, cls().scale, cls().spiking) == (0.0, 1.0, True)


def test_surrogates_are_values() -> None:
    assert ATan(2.0) == ATan() != ATan(3.0)
    assert ATan(scale=2.0) != ATan()
    assert Rectangular() != Triangular()
    assert len({Sigmoid(), Sigmoid(4.0), Sigmoid(4.0, shift=0.1)}) == 2
    with pytest.raises(AttributeError):
        ATan().alpha = 3.0


# --------------------------------------------------------------------------------------------------- the formulas


@every
def test_derivative_is_that_of_the_primitive(s: Surrogate) -> None:
    u = torch.cat([randn(200, dtype=torch.float64), torch.tensor([*EDGES, INF, -INF], dtype=torch.float64)])
    u.requires_grad_()
    (by_autograd,) = torch.autograd.grad(s.primitive(u).sum(), u)
    torch.testing.assert_close(s.derivative(u), by_autograd, rtol=1e-12, atol=1e-14)
    step, finite = 1e-6, u.detach()[:-2]
    by_difference = (s.primitive(finite + step) - s.primitive(finite - step)) / (2 * step)
    torch.testing.assert_close(s.derivative(finite), by_difference, rtol=1e-5, atol=5e-7)  # at a kink: step / 2


@on_both
@every_dtype
@every
def test_backends_compute_the_formulas(s: Surrogate, dtype: torch.dtype, backend: str) -> None:
    u = torch.cat([randn(1000), torch.tensor([*EDGES, INF, -INF, NAN])]).to(dtype)
    centered = u.to(state_dtype(dtype)) - s.shift
    tolerance = {**TOLERANCE[dtype], "atol": max(TOLERANCE[dtype]["atol"], 1e-7), "equal_nan": True}
    value, of_the_smooth = through_the_op(replace(s, spiking=False), u)
    torch.testing.assert_close(value, s.primitive(centered).to(dtype), **tolerance)
    spikes, derivative = through_the_op(s, u)
    assert torch.equal(spikes, (u >= 0).to(dtype))
    torch.testing.assert_close(derivative, s.derivative(centered).to(dtype), **tolerance)
    torch.testing.assert_close(derivative, of_the_smooth, rtol=0, atol=0, equal_nan=True)


def check_infinity_and_nan(s: Surrogate, area: float, dtype: torch.dtype) -> None:
    u = torch.tensor([INF, -INF, NAN], dtype=dtype).repeat(33)  # whole vectors of any width, and what is left over
    value, derivative = through_the_op(replace(s, spiking=False), u)
    spikes, of_the_step = through_the_op(s, u)
    assert spikes.view(33, 3).eq(torch.tensor([1, 0, 0])).all()
    at_infinity = [INF, -INF] if isinstance(s, StraightThrough) else [area, 0.0]
    at_nan = 0.0 if isinstance(s, Rectangular) else NAN
    expected = torch.tensor([*at_infinity, at_nan], dtype=dtype).repeat(33)
    torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-6, equal_nan=True)
    slopes = [s.scale] * 3 if isinstance(s, StraightThrough) else [0.0, 0.0, at_nan]
    for got in (derivative, of_the_step):
        expected = torch.tensor(slopes, dtype=dtype).repeat(33)
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=0, equal_nan=True)


@on_both
@every_dtype
@every
def test_infinity_and_nan(s: Surrogate, dtype: torch.dtype, backend: str) -> None:
    """Nothing flows infinitely far from the threshold; NaN stays NaN where the formula computes with u."""
    area = s.scale * (2 / s.parameter if isinstance(s, FastSigmoid) else 1)
    check_infinity_and_nan(s, area, dtype)
    for kernel in KERNELS if backend == "cpu" else []:
        with use_kernel(kernel):
            check_infinity_and_nan(s, area, dtype)


@on_both
def test_exponentials_reach_zero(backend: str) -> None:
    """Around the end of fp32's range an exponential is right to the smallest normal number, 1.2e-38."""
    u = torch.linspace(70, 110, 1001)
    expected = torch.exp(-u.double())
    for s, at in [(PiecewiseExp(1.0, scale=2.0), u), (Gaussian(1.0, scale=math.sqrt(2 * math.pi)), (2 * u).sqrt())]:
        derivative = through_the_op(s, at)[1].double()
        torch.testing.assert_close(derivative, expected, rtol=5e-5, atol=1e-38)
    torch.testing.assert_close(
        through_the_op(Sigmoid(1.0, spiking=False), -u)[0].double(), expected, rtol=5e-5, atol=1e-38
    )


def area_under(s: Surrogate) -> float:
    def derivative(u: float) -> float:
        return s.derivative(torch.tensor(u, dtype=torch.float64)).item()

    edge = {Rectangular: s.parameter / 2, Triangular: s.parameter}.get(type(s), 1.0)
    return sum(quad(derivative, *piece)[0] for piece in [(-INF, -edge), (-edge, 0), (0, edge), (edge, INF)])


@pytest.mark.parametrize(
    "s",
    [
        *(cls(shape) for cls in OWN_PARAMETER if cls is not FastSigmoid for shape in (0.5, 2.0)),
        *(alias(shape) for alias in (PiecewiseQuadratic, Erf, SoftSign) for shape in (0.5, 2.0)),
    ],
    ids=label,
)
def test_area_is_one(s: Surrogate) -> None:
    """A surrogate stands in for the step's derivative, so it integrates to the height of the step."""
    assert area_under(s) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(
    ("s", "area"),
    [
        (FastSigmoid(25.0), 2 / 25),
        (FastSigmoid(2.0, scale=1.5), 1.5),
        (SuperSpike(0.7), 1.4),
        (SingleExponential(), 2.0),
        (SingleExponential(0.3, 0.7, threshold=0.2), 1.4),
        *((cls(scale=3.0), 3.0) for cls in OWN_PARAMETER if cls is not FastSigmoid),
    ],
    ids=str,
)
def test_area_is_as_stated(s: Surrogate, area: float) -> None:
    assert area_under(s) == pytest.approx(area, abs=1e-6)


@pytest.mark.parametrize(
    ("s", "peak"),
    [
        (Rectangular(0.5), 2.0),
        (StraightThrough(), 1.0),
        (Sigmoid(4.0), 1.0),
        (ATan(2.0), 1.0),
        (Triangular(0.5), 2.0),
        (FastSigmoid(25.0), 1.0),
        (Gaussian(0.5), 0.7978845608),
        (PiecewiseExp(3.0), 1.5),
        (StraightThrough(scale=0.5), 0.5),
        (FastSigmoid(25.0, scale=0.3), 0.3),
        (SingleExponential(grad_width=0.5, grad_scale=1.0, threshold=0.2), 10.0),
    ],
    ids=str,
)
def test_height_at_the_threshold(s: Surrogate, peak: float) -> None:
    assert s.derivative(torch.zeros(())).item() == pytest.approx(peak)


@on_both
@every
def test_center_shifts(s: Surrogate, backend: str) -> None:
    u = randn(50, dtype=torch.float64)
    for smooth in (False, True):
        shifted = through_the_op(replace(s, shift=0.25, spiking=not smooth), u)
        plain = through_the_op(replace(s, shift=0.0, spiking=not smooth), u - 0.25)
        torch.testing.assert_close(shifted[1], plain[1], rtol=1e-12, atol=1e-14)
        if smooth:
            torch.testing.assert_close(shifted[0], plain[0], rtol=1e-12, atol=1e-14)
        else:  # the spike itself stays where it is
            assert torch.equal(shifted[0], (u >= 0).double())


@on_both
@every
def test_scale_scales(s: Surrogate, backend: str) -> None:
    u = randn(50, dtype=torch.float64)
    for smooth in (False, True):
        scaled = through_the_op(replace(s, scale=2.5, spiking=not smooth), u)
        plain = through_the_op(replace(s, scale=1.0, spiking=not smooth), u)
        torch.testing.assert_close(scaled[1], 2.5 * plain[1], rtol=1e-12, atol=1e-14)
        factor = 2.5 if smooth else 1.0  # a spike is 0 or 1 at any scale
        torch.testing.assert_close(scaled[0], factor * plain[0], rtol=1e-12, atol=1e-14)


# ---------------------------------------------------------------------------------- aliases, and other libraries


@pytest.mark.parametrize(
    ("s", "formula"),
    [
        (PiecewiseQuadratic(alpha=1.7), lambda u: (1.7 - 1.7**2 * u.abs()) * (u.abs() < 1 / 1.7)),
        (PiecewiseQuadratic(), lambda u: (1 - u.abs()) * (u.abs() < 1)),
        (Erf(alpha=1.7), lambda u: 1.7 / math.sqrt(math.pi) * torch.exp(-(1.7**2) * u**2)),
        (Erf(), lambda u: 2 / math.sqrt(math.pi) * torch.exp(-4 * u**2)),
        (SoftSign(alpha=1.7), lambda u: 1.7 / 2 / (1 + (1.7 * u).abs()) ** 2),
        (SoftSign(), lambda u: 1 / (1 + (2 * u).abs()) ** 2),
        (SuperSpike(alpha=1.7), lambda u: 1.7 / (1 + u.abs()) ** 2),
        (SuperSpike(), lambda u: 1 / (1 + u.abs()) ** 2),
        (SingleExponential(), lambda u: 1 / 0.5 * torch.exp(-u.abs() / 0.5)),
        (
            SingleExponential(grad_width=0.7, grad_scale=0.9, threshold=0.2),
            lambda u: 0.9 / (0.2 * 0.7) * torch.exp(-u.abs() / (0.2 * 0.7)),
        ),
    ],
    ids=lambda value: label(value) if isinstance(value, Surrogate) else "",
)
def test_aliases_equal_their_formulas(s: Surrogate, formula: Formula) -> None:
    u = torch.cat([randn(200, dtype=torch.float64), torch.tensor(EDGES, dtype=torch.float64)])
    torch.testing.assert_close(s.derivative(u), formula(u), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("alias", ALIASES, ids=lambda alias: alias.__name__)
def test_aliases_hand_on_what_they_are_given(alias: Callable[..., Surrogate]) -> None:
    s = alias(shift=0.3, spiking=False)
    assert (s.shift, s.spiking) == (0.3, False)
    assert s == replace(alias(), shift=0.3, spiking=False)
    if "scale" in inspect.signature(alias).parameters:
        assert alias(scale=2.5) == replace(alias(), scale=2.5 * alias().scale)


def peer_gradient(spike: Formula, u: Tensor) -> Tensor:
    u = u.detach().requires_grad_()
    return torch.autograd.grad(spike(u).sum(), u)[0]


@pytest.mark.parametrize("alpha", [None, 1.7], ids=["default", "1.7"])
@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("Sigmoid", Sigmoid),
        ("ATan", ATan),
        ("PiecewiseExp", PiecewiseExp),
        ("PiecewiseQuadratic", PiecewiseQuadratic),
        ("Erf", Erf),
        ("SoftSign", SoftSign),
        ("SuperSpike", SuperSpike),
        ("Rect", lambda alpha=1.0: Rectangular(width=1 / alpha)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_equal_to_spikingjelly(theirs: str, ours: Callable[..., Surrogate], alpha: float | None) -> None:
    peers = pytest.importorskip("spikingjelly.activation_based.surrogate")
    u = randn(500, dtype=torch.float64)
    s = ours() if alpha is None else ours(alpha=alpha)
    peer = getattr(peers, theirs)() if alpha is None else getattr(peers, theirs)(alpha=alpha)
    torch.testing.assert_close(s.derivative(u), peer_gradient(peer, u), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("theirs", "arguments", "s"),
    [
        ("fast_sigmoid", {}, FastSigmoid()),
        ("fast_sigmoid", {"slope": 3}, FastSigmoid(slope=3)),
        ("sigmoid", {}, Sigmoid(alpha=25)),
        ("atan", {}, ATan()),
        ("atan", {"alpha": 1.7}, ATan(alpha=1.7)),
        ("straight_through_estimator", {}, StraightThrough()),
        ("spike_rate_escape", {"beta": 2, "slope": 3}, PiecewiseExp(alpha=2, shift=1.0, scale=3.0)),
    ],
    ids=str,
)
def test_equal_to_snntorch(theirs: str, arguments: dict[str, float], s: Surrogate) -> None:
    peers = pytest.importorskip("snntorch.surrogate")
    u = randn(500, dtype=torch.float64)
    peer = getattr(peers, theirs)(**arguments)
    torch.testing.assert_close(s.derivative(u - s.shift), peer_gradient(peer, u), rtol=1e-6, atol=1e-9)


# ----------------------------------------------------------------------------------------------------- validation


@pytest.mark.parametrize("value", [0, 0.0, -1.0, NAN, INF, 10**400, None, "1", True, torch.ones(2, 2)], ids=repr)
@pytest.mark.parametrize(
    ("make", "parameter"),
    [
        *OWN_PARAMETER.items(),
        *((cls, "scale") for cls in BY_ID.values()),
        *((alias, "alpha") for alias in (PiecewiseQuadratic, Erf, SoftSign, SuperSpike)),
        (SoftSign, "scale"),
        *((SingleExponential, key) for key in ("grad_width", "grad_scale", "threshold")),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_bad_shapes_and_scales_are_refused(make: Callable[..., Surrogate], parameter: str, value: object) -> None:
    one_line(lambda: make(**{parameter: value}), ValueError, f"{make.__name__}({parameter}): got ")


@pytest.mark.parametrize("value", [NAN, INF, -INF, 10**400, None, "1", False], ids=repr)
@pytest.mark.parametrize("cls", BY_ID.values(), ids=lambda cls: cls.__name__)
def test_bad_centers_are_refused(cls: type[Surrogate], value: object) -> None:
    one_line(lambda: cls(shift=value), ValueError, f"{cls.__name__}(shift): got ")


@pytest.mark.parametrize("value", [0, 1, None, "no"], ids=repr)
def test_bad_smooth_is_refused(value: object) -> None:
    one_line(lambda: ATan(spiking=value), ValueError, "ATan(spiking): got ")
