"""The surrogate gradients of a spike s = H(u), u = m - threshold: the specification.

Each surrogate is one pair of formulas in u - shift: `primitive`, a smooth stand-in for the step, and `derivative`, its
exact derivative, which the backward uses in place of the step's. Both are multiplied by `scale`. With `spiking=False`
the forward returns the primitive itself, so that numerical differentiation can check a whole recurrence (backends
`reference` and `cpu`).

| id | class               | derivative at scale 1, shift 0             | area    | whose default                      |
|----|---------------------|--------------------------------------------|---------|------------------------------------|
| 0  | Rectangular(width)  | 1/width where abs(u) < width/2, else 0     | 1       | SpikingJelly Rect: width 1         |
| 1  | StraightThrough()   | 1                                          | none    | snnTorch has it                    |
| 2  | Sigmoid(alpha)      | alpha s (1 - s), s = 1/(1 + exp(-alpha u)) | 1       | SpikingJelly: alpha 4, snnTorch 25 |
| 3  | ATan(alpha)         | alpha/2 / (1 + (pi/2 alpha u)^2)           | 1       | SpikingJelly, snnTorch: alpha 2    |
| 4  | Triangular(width)   | max(0, 1 - abs(u)/width) / width           | 1       | `PiecewiseQuadratic`: width 1      |
| 5  | FastSigmoid(slope)  | 1 / (1 + slope abs(u))^2                   | 2/slope | snnTorch: slope 25; Norse: 1       |
| 6  | Gaussian(sigma)     | exp(-(u/sigma)^2 / 2) / (sigma sqrt(2 pi)) | 1       | sinabs: sigma 0.5                  |
| 7  | PiecewiseExp(alpha) | alpha/2 exp(-alpha abs(u))                 | 1       | SpikingJelly: alpha 1              |

The primitives go from 0 to scale * area, and through the middle of that at u = shift (StraightThrough's is scale * u).
Functions at the end give other libraries' names to members of a family: `PiecewiseQuadratic` (Triangular), `SoftSign`
and `SuperSpike` (FastSigmoid), `Erf` (Gaussian), `SingleExponential` (PiecewiseExp). SpikingJelly's Rect is Rectangular
of width 1/alpha; snnTorch's spike_rate_escape(beta, slope) is PiecewiseExp(beta, shift=1, scale=2 slope/beta).

A new surrogate: a class here with the next free `id`, the same formulas under the same id in csrc/math/surrogate.h.
"""

from __future__ import annotations

import math
import numbers
import struct
import sys
from collections.abc import Callable
from dataclasses import Field, dataclass, fields
from functools import cached_property
from typing import Any, ClassVar, TypedDict, Unpack

import torch
from torch import Tensor

_COMMON = ("shift", "scale", "spiking")
_RENAMED = {"center": "shift", "smooth": "spiking, its opposite"}


def real(value: object) -> float:
    """As a float: NaN where it is no number, infinite where it is too large for one.

    What is compared with bounds: a scalar of NumPy would be in its own type, where the largest float may be infinite.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _check(name: str, value: object, above: float = 0.0, accepted: str = "a number above 0") -> None:
    if not above < real(value) <= sys.float_info.max:
        raise ValueError(f"{name}: got {' '.join(repr(value).split())[:80]}, accepted is {accepted}")


def _check_tensor(name: str, value: Tensor) -> None:
    if value.numel() != 1 or not value.is_floating_point() or not value.is_cpu:
        got = f"a tensor {tuple(value.shape)}, {value.dtype}, on {value.device}"
        raise ValueError(f"{name}: got {got}, accepted are a number above 0 and one floating-point number on the CPU")


class Surrogate:
    """Base class.

    A subclass is a frozen dataclass of at most one shape parameter and of
        shift: moves the surrogate's middle above the threshold, in units of the potential.
        scale: multiplies primitive and derivative.
        spiking: False: the forward returns the primitive in place of the spike.

    The shape parameter is a number, or for one that changes from call to call a tensor of one element on the CPU, which
    has no gradient: `alpha = torch.tensor(2.0)`, `ATan(alpha)`, and later `alpha.fill_(4.0)`, which recompiles nothing.
    """

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]  # of the subclass
    id: ClassVar[int]
    shift: float
    scale: float
    spiking: bool

    def __new__(cls, *args: object, **options: object) -> Surrogate:
        for old in _RENAMED.keys() & options.keys():
            raise TypeError(f"{cls.__name__}({old}): got {options[old]!r}, its name is now {_RENAMED[old]}")
        return super().__new__(cls)

    def __post_init__(self) -> None:
        for field in fields(self):
            name, value = f"{type(self).__name__}({field.name})", getattr(self, field.name)
            if field.name == "shift":
                _check(name, value, -math.inf, "a finite number")
            elif field.name == "spiking":
                if not isinstance(value, bool):
                    raise ValueError(f"{name}: got {value!r}, accepted is True or False")
            elif field.name != "scale" and isinstance(value, Tensor):
                _check_tensor(name, value)
            else:
                _check(name, value)

    @property
    def parameter(self) -> float | Tensor:
        """The one shape parameter, as the kernels take it; 1 where there is none."""
        return 1.0

    @cached_property
    def key(self) -> tuple[object, ...]:
        """What tells it from others, but for a shape parameter in a tensor: a hash of it takes a tenth of its own."""
        shape = self.parameter
        numbers = (math.nan if isinstance(shape, Tensor) else shape, self.scale, self.shift)
        return type(self), struct.pack("3d", *numbers), self.spiking

    def primitive(self, u: Tensor) -> Tensor:
        return self.scale * self._primitive(u)

    def derivative(self, u: Tensor) -> Tensor:
        return self.scale * self._derivative(u)

    def _primitive(self, u: Tensor) -> Tensor:
        """At scale 1, with u already shifted."""
        raise NotImplementedError

    def _derivative(self, u: Tensor) -> Tensor:
        raise NotImplementedError


def _parameter(value: float | Tensor) -> float | Tensor:
    return value if isinstance(value, Tensor) else float(value)


def _distance(u: Tensor) -> Tensor:
    """|u|, with the derivative -1 at 0: that of torch.abs is 0 there, and the primitives made of it are not flat."""
    return torch.where(u > 0, u, -u)


@dataclass(frozen=True)
class Rectangular(Surrogate):
    """1/width where |u| < width/2, else 0 (paper, eq. 8). 0 at NaN."""

    id: ClassVar[int] = 0
    width: float | Tensor = 1.0
    shift: float = 0.0
    scale: float = 1.0
    spiking: bool = True

    @property
    def parameter(self) -> float | Tensor:
        return _parameter(self.width)

    def _primitive(self, u: Tensor) -> Tensor:
        return torch.where(u.abs() < self.width / 2, u * (1 / self.width) + 0.5, (u > 0).to(u.dtype))

    def _derivative(self, u: Tensor) -> Tensor:
        return (u.abs() < self.width / 2).to(u.dtype) * (1 / self.width)


@dataclass(frozen=True)
class StraightThrough(Surrogate):
    """1 everywhere. For the Poisson sampler it is exact: E[z] = r, so dE[z]/dr = 1."""

    id: ClassVar[int] = 1
    shift: float = 0.0
    scale: float = 1.0
    spiking: bool = True

    def _primitive(self, u: Tensor) -> Tensor:
        return u

    def _derivative(self, u: Tensor) -> Tensor:
        return torch.ones_like(u)


@dataclass(frozen=True)
class Sigmoid(Surrogate):
    """alpha s (1 - s), s = sigmoid(alpha u): the logistic density. SpikingJelly's alpha is 4, snnTorch's `slope` 25."""

    id: ClassVar[int] = 2
    alpha: float | Tensor = 4.0
    shift: float = 0.0
    scale: float = 1.0
    spiking: bool = True

    @property
    def parameter(self) -> float | Tensor:
        return _parameter(self.alpha)

    def _primitive(self, u: Tensor) -> Tensor:
        return torch.sigmoid(self.alpha * u)

    def _derivative(self, u: Tensor) -> Tensor:
        s = torch.sigmoid(self.alpha * u)
        return self.alpha * s * (1 - s)


@dataclass(frozen=True)
class ATan(Surrogate):
    """(alpha/2) / (1 + (pi alpha u / 2)^2): the Cauchy density. SpikingJelly and snnTorch: alpha 2."""

    id: ClassVar[int] = 3
    alpha: float | Tensor = 2.0
    shift: float = 0.0
    scale: float = 1.0
    spiking: bool = True

    @property
    def parameter(self) -> float | Tensor:
        return _parameter(self.alpha)

    def _primitive(self, u: Tensor) -> Tensor:
        return torch.atan(math.pi / 2 * self.alpha * u) / math.pi + 0.5

    def _derivative(self, u: Tensor) -> Tensor:
        return self.alpha / 2 / (1 + (math.pi / 2 * self.alpha * u) ** 2)


@dataclass(frozen=True)
class Triangular(Surrogate):
    """max(0, 1 - |u|/width) / width: a triangle of area 1 over 2 width."""

    id: ClassVar[int] = 4
    width: float | Tensor = 1.0
    shift: float = 0.0
    scale: float = 1.0
    spiking: bool = True

    @property
    def parameter(self) -> float | Tensor:
        return _parameter(self.width)

    def _primitive(self, u: Tensor) -> Tensor:
        w = (u / self.width).clamp(-1, 1)
        return 0.5 + w - w * w.abs() / 2

    def _derivative(self, u: Tensor) -> Tensor:
        return torch.relu(1 - u.abs() / self.width) / self.width


@dataclass(frozen=True)
class FastSigmoid(Surrogate):
    """1 / (1 + slope |u|)^2: of height 1 and area 2/slope. snnTorch's slope is 25, Norse's ("super") 1."""

    id: ClassVar[int] = 5
    slope: float | Tensor = 25.0
    shift: float = 0.0
    scale: float = 1.0
    spiking: bool = True

    @property
    def parameter(self) -> float | Tensor:
        return _parameter(self.slope)

    def _primitive(self, u: Tensor) -> Tensor:
        tail = 1 / (1 + self.slope * _distance(u))
        return torch.where(u > 0, 2 - tail, tail) / self.slope

    def _derivative(self, u: Tensor) -> Tensor:
        return 1 / (1 + self.slope * u.abs()) ** 2


@dataclass(frozen=True)
class Gaussian(Surrogate):
    """The normal density, exp(-(u/sigma)^2 / 2) / (sigma sqrt(2 pi)). sinabs: sigma 0.5, its `mu` is the shift."""

    id: ClassVar[int] = 6
    sigma: float | Tensor = 0.5
    shift: float = 0.0
    scale: float = 1.0
    spiking: bool = True

    @property
    def parameter(self) -> float | Tensor:
        return _parameter(self.sigma)

    def _primitive(self, u: Tensor) -> Tensor:
        return 0.5 + 0.5 * torch.erf(u / (self.sigma * math.sqrt(2)))

    def _derivative(self, u: Tensor) -> Tensor:
        return torch.exp(-0.5 * (u / self.sigma) ** 2) / (self.sigma * math.sqrt(2 * math.pi))


@dataclass(frozen=True)
class PiecewiseExp(Surrogate):
    """(alpha/2) exp(-alpha |u|): the Laplace density. SpikingJelly: alpha 1."""

    id: ClassVar[int] = 7
    alpha: float | Tensor = 1.0
    shift: float = 0.0
    scale: float = 1.0
    spiking: bool = True

    @property
    def parameter(self) -> float | Tensor:
        return _parameter(self.alpha)

    def _primitive(self, u: Tensor) -> Tensor:
        tail = torch.exp(-self.alpha * _distance(u)) / 2
        return torch.where(u > 0, 1 - tail, tail)

    def _derivative(self, u: Tensor) -> Tensor:
        return self.alpha / 2 * torch.exp(-self.alpha * u.abs())


SURROGATES: dict[int, type[Surrogate]] = {
    cls.id: cls
    for cls in (Rectangular, StraightThrough, Sigmoid, ATan, Triangular, FastSigmoid, Gaussian, PiecewiseExp)
}


_OWN = {id: [f.name for f in fields(cls) if f.name not in _COMMON] for id, cls in SURROGATES.items()}


def from_arguments(id: int, parameter: float, scale: float, shift: float, spiking: bool) -> Surrogate:
    """The surrogate that a raw op's arguments name."""
    cls = SURROGATES[id]
    own = dict.fromkeys(_OWN[id], parameter)
    return cls(**own, shift=shift, scale=scale, spiking=spiking)


class _Unscaled(TypedDict, total=False):
    shift: float
    spiking: bool


class _Common(_Unscaled, total=False):
    scale: float


def PiecewiseQuadratic(alpha: float = 1.0, **common: Unpack[_Common]) -> Triangular:
    """SpikingJelly's PiecewiseQuadratic: alpha - alpha^2 |u| where |u| < 1/alpha, else 0."""
    _check("PiecewiseQuadratic(alpha)", alpha)
    return Triangular(width=1 / alpha, **common)


def Erf(alpha: float = 2.0, **common: Unpack[_Common]) -> Gaussian:
    """SpikingJelly's Erf: alpha/sqrt(pi) exp(-alpha^2 u^2)."""
    _check("Erf(alpha)", alpha)
    return Gaussian(sigma=math.sqrt(0.5) / alpha, **common)


def SoftSign(alpha: float = 2.0, scale: float = 1.0, **common: Unpack[_Unscaled]) -> FastSigmoid:
    """SpikingJelly's SoftSign: (alpha/2) / (1 + |alpha u|)^2, the `FastSigmoid` of area 1."""
    _check("SoftSign(alpha)", alpha)
    _check("SoftSign(scale)", scale)
    return FastSigmoid(slope=alpha, scale=scale * alpha / 2, **common)


def SuperSpike(alpha: float = 1.0, **common: Unpack[_Unscaled]) -> FastSigmoid:
    """SpikingJelly's SuperSpike: alpha / (1 + |u|)^2. Its alpha is the scale; the slope is 1."""
    _check("SuperSpike(alpha)", alpha)
    return FastSigmoid(slope=1.0, scale=alpha, **common)


def SingleExponential(
    grad_width: float = 0.5, grad_scale: float = 1.0, *, threshold: float = 1.0, **common: Unpack[_Unscaled]
) -> PiecewiseExp:
    """sinabs' SingleExponential: grad_scale/w exp(-|u|/w), w = grad_width * threshold, of area 2 grad_scale.

    sinabs measures the width in thresholds, so give the neuron's `threshold` where it is not 1.
    """
    _check("SingleExponential(grad_width)", grad_width)
    _check("SingleExponential(grad_scale)", grad_scale)
    _check("SingleExponential(threshold)", threshold)
    return PiecewiseExp(alpha=1 / grad_width / threshold, scale=2 * grad_scale, **common)


class Spike(torch.autograd.Function):
    """`value` going forward, `derivative(u)` as derivative; differentiable any number of times."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, value: Tensor, surrogate: Surrogate) -> Tensor:
        ctx.save_for_backward(u)
        ctx.surrogate = surrogate
        return value.to(u.dtype)

    @staticmethod
    def backward(ctx: Any, ds: Tensor) -> tuple[Tensor | None, ...]:
        (u,) = ctx.saved_tensors
        return ds * ctx.surrogate.derivative(u), None, None


class DualSpike(torch.autograd.Function):
    """`Spike` with a forward-mode derivative, which `Spike` lacks since torch.compile refuses a function with one."""

    generate_vmap_rule = True
    backward = Spike.backward

    @staticmethod
    def forward(u: Tensor, value: Tensor, surrogate: Surrogate) -> Tensor:
        return value.to(u.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        u, _, ctx.surrogate = inputs
        ctx.save_for_backward(u)
        ctx.save_for_forward(u)

    @staticmethod
    def jvp(ctx: Any, du: Tensor, *others: object) -> Tensor:
        (u,) = ctx.saved_tensors
        derivative: Tensor = ctx.surrogate.derivative(u)
        return du * derivative


def forward_mode() -> bool:
    """Whether derivatives are taken in forward mode, by `torch.func.jvp`, `jacfwd`, `hessian` or dual numbers."""
    return torch.autograd.forward_ad._current_level >= 0


def spike(u: Tensor, fired: Tensor, surrogate: Surrogate) -> Tensor:
    """The spike of one comparison: `fired` (bool) with the surrogate's gradient in u, or the primitive of a surrogate
    with spiking=False."""
    value = fired if surrogate.spiking else surrogate.primitive(u.detach())
    apply: Callable[..., Tensor] = DualSpike.apply if forward_mode() else Spike.apply
    return apply(u, value, surrogate)
