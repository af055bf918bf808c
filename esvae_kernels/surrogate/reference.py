"""The surrogate gradients of a spike s = H(u), u = m - threshold: the specification.

Each surrogate is one pair of formulas in u - center: `primitive`, a smooth stand-in for the step, and `derivative`, its
exact derivative, which the backward uses in place of the step's. With `smooth=True` the forward returns the primitive
itself, so that numerical differentiation can check a whole recurrence (backends `reference` and `cpu`).

A new surrogate: a class here with the next free `id`, the same formulas under the same id in csrc/math/surrogate.h.
"""

from __future__ import annotations

import math
import numbers
from dataclasses import dataclass, fields
from typing import ClassVar

import torch
from torch import Tensor


@dataclass(frozen=True)
class Surrogate:
    """Base class. `center` shifts the surrogate's middle away from the threshold, in units of the potential."""

    id: ClassVar[int]

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            least = -math.inf if field.name == "center" else 0
            if field.name == "smooth":
                good, accepted = isinstance(value, bool), "True or False"
            else:
                good = isinstance(value, numbers.Real) and not isinstance(value, bool) and least < value < math.inf
                accepted = "a finite number" if field.name == "center" else "a number above 0"
            if not good:
                raise ValueError(f"{type(self).__name__}({field.name}): got {value!r}, accepted is {accepted}")

    @property
    def shape(self) -> float:
        """The one shape parameter, as the kernels take it."""
        return 1.0

    def primitive(self, u: Tensor) -> Tensor:
        raise NotImplementedError

    def derivative(self, u: Tensor) -> Tensor:
        raise NotImplementedError


@dataclass(frozen=True)
class Rectangular(Surrogate):
    """1/width where |u - center| < width/2, else 0 (paper, eq. 8). Shape: `width` > 0."""

    id: ClassVar[int] = 0
    width: float = 1.0
    center: float = 0.0
    smooth: bool = False

    @property
    def shape(self) -> float:
        return float(self.width)

    def primitive(self, u: Tensor) -> Tensor:
        return torch.where(u.abs() < self.width / 2, u * (1 / self.width) + 0.5, (u > 0).to(u.dtype))

    def derivative(self, u: Tensor) -> Tensor:
        return (u.abs() < self.width / 2).to(u.dtype) * (1 / self.width)


@dataclass(frozen=True)
class StraightThrough(Surrogate):
    """1 everywhere. For the Poisson sampler it is exact: E[z] = r, so dE[z]/dr = 1."""

    id: ClassVar[int] = 1
    center: float = 0.0
    smooth: bool = False

    def primitive(self, u: Tensor) -> Tensor:
        return u

    def derivative(self, u: Tensor) -> Tensor:
        return torch.ones_like(u)


@dataclass(frozen=True)
class Sigmoid(Surrogate):
    """alpha s (1 - s), s = sigmoid(alpha (u - center)). Shape: `alpha` > 0 (SpikingJelly's default is 4)."""

    id: ClassVar[int] = 2
    alpha: float = 4.0
    center: float = 0.0
    smooth: bool = False

    @property
    def shape(self) -> float:
        return float(self.alpha)

    def primitive(self, u: Tensor) -> Tensor:
        return torch.sigmoid(self.alpha * u)

    def derivative(self, u: Tensor) -> Tensor:
        s = torch.sigmoid(self.alpha * u)
        return self.alpha * s * (1 - s)


@dataclass(frozen=True)
class ATan(Surrogate):
    """(alpha/2) / (1 + (pi alpha (u - center) / 2)^2). Shape: `alpha` > 0 (SpikingJelly, snnTorch: 2)."""

    id: ClassVar[int] = 3
    alpha: float = 2.0
    center: float = 0.0
    smooth: bool = False

    @property
    def shape(self) -> float:
        return float(self.alpha)

    def primitive(self, u: Tensor) -> Tensor:
        return torch.atan(math.pi / 2 * self.alpha * u) / math.pi + 0.5

    def derivative(self, u: Tensor) -> Tensor:
        return self.alpha / 2 / (1 + (math.pi / 2 * self.alpha * u) ** 2)


SURROGATES: dict[int, type[Surrogate]] = {cls.id: cls for cls in (Rectangular, StraightThrough, Sigmoid, ATan)}


def from_arguments(id: int, shape: float, center: float, smooth: bool) -> Surrogate:
    """The surrogate that a raw op's arguments name."""
    cls = SURROGATES[id]
    own = {f.name: shape for f in fields(cls) if f.name not in ("center", "smooth")}
    return cls(**own, center=center, smooth=smooth)  # type: ignore[call-arg]


class Spike(torch.autograd.Function):
    """`fired` as forward value, `derivative(u)` as derivative; differentiable any number of times."""

    @staticmethod
    def forward(ctx, u: Tensor, fired: Tensor, surrogate: Surrogate) -> Tensor:
        ctx.save_for_backward(u)
        ctx.surrogate = surrogate
        return fired.to(u.dtype)

    @staticmethod
    def backward(ctx, ds: Tensor):
        (u,) = ctx.saved_tensors
        return ds * ctx.surrogate.derivative(u), None, None


def spike(u: Tensor, fired: Tensor, surrogate: Surrogate) -> Tensor:
    """The spike of one comparison: `fired` (bool) with the surrogate's gradient in u, or the primitive if `smooth`."""
    return surrogate.primitive(u) if surrogate.smooth else Spike.apply(u, fired, surrogate)
