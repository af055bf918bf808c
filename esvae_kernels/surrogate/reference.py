"""The surrogate gradients of a spike s = H(u), u = m - threshold: the specification.

Each surrogate is one pair of formulas in u - center: `primitive`, a smooth stand-in for the step, and `derivative`, its
exact derivative, which the backward uses in place of the step's. Both are multiplied by `scale`. With `smooth=True` the
forward returns the primitive itself, so that numerical differentiation can check a whole recurrence (backends
`reference` and `cpu`).

| id | class               | derivative at scale 1, center 0            | area    | whose default                      |
|----|---------------------|--------------------------------------------|---------|------------------------------------|
| 0  | Rectangular(width)  | 1/width where abs(u) < width/2, else 0     | 1       | SpikingJelly Rect: width 1         |
| 1  | StraightThrough()   | 1                                          | none    | snnTorch has it                    |
| 2  | Sigmoid(alpha)      | alpha s (1 - s), s = 1/(1 + exp(-alpha u)) | 1       | SpikingJelly: alpha 4, snnTorch 25 |
| 3  | ATan(alpha)         | alpha/2 / (1 + (pi/2 alpha u)^2)           | 1       | SpikingJelly, snnTorch: alpha 2    |
| 4  | Triangular(width)   | max(0, 1 - abs(u)/width) / width           | 1       | `PiecewiseQuadratic`: width 1      |
| 5  | FastSigmoid(slope)  | 1 / (1 + slope abs(u))^2                   | 2/slope | snnTorch: slope 25; Norse: 1       |
| 6  | Gaussian(sigma)     | exp(-(u/sigma)^2 / 2) / (sigma sqrt(2 pi)) | 1       | sinabs: sigma 0.5                  |
| 7  | PiecewiseExp(alpha) | alpha/2 exp(-alpha abs(u))                 | 1       | SpikingJelly: alpha 1              |

The primitives go from 0 to scale * area, and through the middle of that at the center (StraightThrough's is scale * u).
Functions at the end give other libraries' names to members of a family: `PiecewiseQuadratic` (Triangular), `SoftSign`
and `SuperSpike` (FastSigmoid), `Erf` (Gaussian), `SingleExponential` (PiecewiseExp). SpikingJelly's Rect is Rectangular
of width 1/alpha; snnTorch's spike_rate_escape(beta, slope) is PiecewiseExp(beta, center=1, scale=2 slope/beta).

A new surrogate: a class here with the next free `id`, the same formulas under the same id in csrc/math/surrogate.h.
"""

from __future__ import annotations

import math
import numbers
import sys
from dataclasses import dataclass, fields
from typing import ClassVar

import torch
from torch import Tensor

_COMMON = ("center", "scale", "smooth")


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


class Surrogate:
    """Base class.

    A subclass is a frozen dataclass of at most one shape parameter and of
        center: moves the surrogate's middle away from the threshold, in units of the potential.
        scale: multiplies primitive and derivative.
        smooth: the forward returns the primitive in place of the spike.
    """

    id: ClassVar[int]
    center: float
    scale: float
    smooth: bool

    def __post_init__(self) -> None:
        for field in fields(self):  # type: ignore[arg-type]
            name, value = f"{type(self).__name__}({field.name})", getattr(self, field.name)
            if field.name == "center":
                _check(name, value, -math.inf, "a finite number")
            elif field.name != "smooth":
                _check(name, value)
            elif not isinstance(value, bool):
                raise ValueError(f"{name}: got {value!r}, accepted is True or False")

    @property
    def shape(self) -> float:
        """The one shape parameter, as the kernels take it; 1 where there is none."""
        return 1.0

    def primitive(self, u: Tensor) -> Tensor:
        return self.scale * self._primitive(u)

    def derivative(self, u: Tensor) -> Tensor:
        return self.scale * self._derivative(u)

    def _primitive(self, u: Tensor) -> Tensor:
        """At scale 1, with u already centered."""
        raise NotImplementedError

    def _derivative(self, u: Tensor) -> Tensor:
        raise NotImplementedError


def _distance(u: Tensor) -> Tensor:
    """|u|, with the derivative -1 at 0: that of torch.abs is 0 there, and the primitives made of it are not flat."""
    return torch.where(u > 0, u, -u)


@dataclass(frozen=True)
class Rectangular(Surrogate):
    """1/width where |u| < width/2, else 0 (paper, eq. 8). 0 at NaN."""

    id: ClassVar[int] = 0
    width: float = 1.0
    center: float = 0.0
    scale: float = 1.0
    smooth: bool = False

    @property
    def shape(self) -> float:
        return float(self.width)

    def _primitive(self, u: Tensor) -> Tensor:
        return torch.where(u.abs() < self.width / 2, u * (1 / self.width) + 0.5, (u > 0).to(u.dtype))

    def _derivative(self, u: Tensor) -> Tensor:
        return (u.abs() < self.width / 2).to(u.dtype) * (1 / self.width)


@dataclass(frozen=True)
class StraightThrough(Surrogate):
    """1 everywhere. For the Poisson sampler it is exact: E[z] = r, so dE[z]/dr = 1."""

    id: ClassVar[int] = 1
    center: float = 0.0
    scale: float = 1.0
    smooth: bool = False

    def _primitive(self, u: Tensor) -> Tensor:
        return u

    def _derivative(self, u: Tensor) -> Tensor:
        return torch.ones_like(u)


@dataclass(frozen=True)
class Sigmoid(Surrogate):
    """alpha s (1 - s), s = sigmoid(alpha u): the logistic density. SpikingJelly's alpha is 4, snnTorch's `slope` 25."""

    id: ClassVar[int] = 2
    alpha: float = 4.0
    center: float = 0.0
    scale: float = 1.0
    smooth: bool = False

    @property
    def shape(self) -> float:
        return float(self.alpha)

    def _primitive(self, u: Tensor) -> Tensor:
        return torch.sigmoid(self.alpha * u)

    def _derivative(self, u: Tensor) -> Tensor:
        s = torch.sigmoid(self.alpha * u)
        return self.alpha * s * (1 - s)


@dataclass(frozen=True)
class ATan(Surrogate):
    """(alpha/2) / (1 + (pi alpha u / 2)^2): the Cauchy density. SpikingJelly and snnTorch: alpha 2."""

    id: ClassVar[int] = 3
    alpha: float = 2.0
    center: float = 0.0
    scale: float = 1.0
    smooth: bool = False

    @property
    def shape(self) -> float:
        return float(self.alpha)

    def _primitive(self, u: Tensor) -> Tensor:
        return torch.atan(math.pi / 2 * self.alpha * u) / math.pi + 0.5

    def _derivative(self, u: Tensor) -> Tensor:
        return self.alpha / 2 / (1 + (math.pi / 2 * self.alpha * u) ** 2)


@dataclass(frozen=True)
class Triangular(Surrogate):
    """max(0, 1 - |u|/width) / width: a triangle of area 1 over 2 width."""

    id: ClassVar[int] = 4
    width: float = 1.0
    center: float = 0.0
    scale: float = 1.0
    smooth: bool = False

    @property
    def shape(self) -> float:
        return float(self.width)

    def _primitive(self, u: Tensor) -> Tensor:
        w = (u / self.width).clamp(-1, 1)
        return 0.5 + w - w * w.abs() / 2

    def _derivative(self, u: Tensor) -> Tensor:
        return torch.relu(1 - u.abs() / self.width) / self.width


@dataclass(frozen=True)
class FastSigmoid(Surrogate):
    """1 / (1 + slope |u|)^2: of height 1 and area 2/slope. snnTorch's slope is 25, Norse's ("super") 1."""

    id: ClassVar[int] = 5
    slope: float = 25.0
    center: float = 0.0
    scale: float = 1.0
    smooth: bool = False

    @property
    def shape(self) -> float:
        return float(self.slope)

    def _primitive(self, u: Tensor) -> Tensor:
        tail = 1 / (1 + self.slope * _distance(u))
        return torch.where(u > 0, 2 - tail, tail) / self.slope

    def _derivative(self, u: Tensor) -> Tensor:
        return 1 / (1 + self.slope * u.abs()) ** 2


@dataclass(frozen=True)
class Gaussian(Surrogate):
    """The normal density, exp(-(u/sigma)^2 / 2) / (sigma sqrt(2 pi)). sinabs: sigma 0.5, its `mu` is the center."""

    id: ClassVar[int] = 6
    sigma: float = 0.5
    center: float = 0.0
    scale: float = 1.0
    smooth: bool = False

    @property
    def shape(self) -> float:
        return float(self.sigma)

    def _primitive(self, u: Tensor) -> Tensor:
        return 0.5 + 0.5 * torch.erf(u / (self.sigma * math.sqrt(2)))

    def _derivative(self, u: Tensor) -> Tensor:
        return torch.exp(-0.5 * (u / self.sigma) ** 2) / (self.sigma * math.sqrt(2 * math.pi))


@dataclass(frozen=True)
class PiecewiseExp(Surrogate):
    """(alpha/2) exp(-alpha |u|): the Laplace density. SpikingJelly: alpha 1."""

    id: ClassVar[int] = 7
    alpha: float = 1.0
    center: float = 0.0
    scale: float = 1.0
    smooth: bool = False

    @property
    def shape(self) -> float:
        return float(self.alpha)

    def _primitive(self, u: Tensor) -> Tensor:
        tail = torch.exp(-self.alpha * _distance(u)) / 2
        return torch.where(u > 0, 1 - tail, tail)

    def _derivative(self, u: Tensor) -> Tensor:
        return self.alpha / 2 * torch.exp(-self.alpha * u.abs())


SURROGATES: dict[int, type[Surrogate]] = {
    cls.id: cls
    for cls in (Rectangular, StraightThrough, Sigmoid, ATan, Triangular, FastSigmoid, Gaussian, PiecewiseExp)
}


def from_arguments(id: int, shape: float, scale: float, center: float, smooth: bool) -> Surrogate:
    """The surrogate that a raw op's arguments name."""
    cls = SURROGATES[id]
    own = {f.name: shape for f in fields(cls) if f.name not in _COMMON}  # type: ignore[arg-type]
    return cls(**own, center=center, scale=scale, smooth=smooth)  # type: ignore[call-arg]


def PiecewiseQuadratic(
    alpha: float = 1.0, *, center: float = 0.0, scale: float = 1.0, smooth: bool = False
) -> Triangular:
    """SpikingJelly's PiecewiseQuadratic: alpha - alpha^2 |u| where |u| < 1/alpha, else 0."""
    _check("PiecewiseQuadratic(alpha)", alpha)
    return Triangular(width=1 / alpha, center=center, scale=scale, smooth=smooth)


def Erf(alpha: float = 2.0, *, center: float = 0.0, scale: float = 1.0, smooth: bool = False) -> Gaussian:
    """SpikingJelly's Erf: alpha/sqrt(pi) exp(-alpha^2 u^2)."""
    _check("Erf(alpha)", alpha)
    return Gaussian(sigma=math.sqrt(0.5) / alpha, center=center, scale=scale, smooth=smooth)


def SoftSign(alpha: float = 2.0, *, center: float = 0.0, scale: float = 1.0, smooth: bool = False) -> FastSigmoid:
    """SpikingJelly's SoftSign: (alpha/2) / (1 + |alpha u|)^2, the `FastSigmoid` of area 1."""
    _check("SoftSign(alpha)", alpha)
    _check("SoftSign(scale)", scale)
    return FastSigmoid(slope=alpha, center=center, scale=scale * alpha / 2, smooth=smooth)


def SuperSpike(alpha: float = 1.0, *, center: float = 0.0, smooth: bool = False) -> FastSigmoid:
    """SpikingJelly's SuperSpike: alpha / (1 + |u|)^2. Its alpha is the scale; the slope is 1."""
    _check("SuperSpike(alpha)", alpha)
    return FastSigmoid(slope=1.0, center=center, scale=alpha, smooth=smooth)


def SingleExponential(
    grad_width: float = 0.5,
    grad_scale: float = 1.0,
    *,
    threshold: float = 1.0,
    center: float = 0.0,
    smooth: bool = False,
) -> PiecewiseExp:
    """sinabs' SingleExponential: grad_scale/w exp(-|u|/w), w = grad_width * threshold, of area 2 grad_scale.

    sinabs measures the width in thresholds, so give the neuron's `threshold` where it is not 1.
    """
    _check("SingleExponential(grad_width)", grad_width)
    _check("SingleExponential(grad_scale)", grad_scale)
    _check("SingleExponential(threshold)", threshold)
    return PiecewiseExp(alpha=1 / grad_width / threshold, center=center, scale=2 * grad_scale, smooth=smooth)


class Spike(torch.autograd.Function):
    """`value` going forward, `derivative(u)` as derivative; differentiable any number of times."""

    @staticmethod
    def forward(ctx, u: Tensor, value: Tensor, surrogate: Surrogate) -> Tensor:
        ctx.save_for_backward(u)
        ctx.surrogate = surrogate
        return value.to(u.dtype)

    @staticmethod
    def backward(ctx, ds: Tensor):
        (u,) = ctx.saved_tensors
        return ds * ctx.surrogate.derivative(u), None, None


def spike(u: Tensor, fired: Tensor, surrogate: Surrogate) -> Tensor:
    """The spike of one comparison: `fired` (bool) with the surrogate's gradient in u, or the primitive if `smooth`."""
    value = surrogate.primitive(u.detach()) if surrogate.smooth else fired
    return Spike.apply(u, value, surrogate)
