"""The operations of a graph in PyTorch: the specification of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..surrogate import Surrogate
from ..surrogate.reference import forward_mode, spike
from .graph import evaluate
from .lower import FORMULAS

_SAME_NAME = (
    *("abs", "sign", "floor", "trunc", "minimum", "maximum", "lt", "le", "eq", "ne", "sub", "mul", "div"),
    *("neg", "add", "where"),
)


def _scale2(a: Tensor, n: Tensor) -> Tensor:
    """a * 2^n, rounded once: the product is exact in fp64."""
    return (a.double() * torch.exp2(n.double())).to(a.dtype)


_BASE: dict[str, Callable[..., Tensor]] = {name: getattr(torch, name) for name in _SAME_NAME} | {
    "and": torch.logical_and,
    "or": torch.logical_or,
    "not": torch.logical_not,
    "detach": torch.detach,
    "sqrt": lambda x: x.double().sqrt().to(x.dtype),  # torch's of fp32 is not correctly rounded on every processor
    "scale2": _scale2,
    "mantissa": lambda x: torch.frexp(x).mantissa,
    "exponent": lambda x: torch.where(x.isfinite(), torch.frexp(x).exponent.to(x.dtype), x.new_zeros(())),
}


class _Valued(torch.autograd.Function):
    """`value` going forward, with the derivatives of `like`."""

    @staticmethod
    def forward(ctx: Any, like: Tensor, value: Tensor) -> Tensor:
        return value

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


class _DualValued(torch.autograd.Function):
    """`_Valued` with a forward-mode derivative, which torch.compile refuses a function with."""

    generate_vmap_rule = True
    backward = _Valued.backward

    @staticmethod
    def forward(like: Tensor, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def jvp(ctx: Any, like: Tensor, value: object) -> Tensor:
        return like.clone()


def _function(name: str) -> Callable[[Tensor], Tensor]:
    """Of fp32 by the formula that all backends share, of fp64 torch's own."""

    def run(x: Tensor) -> Tensor:
        found: Tensor = getattr(torch, name)(x)
        if x.dtype != torch.float32:
            return found
        with torch.no_grad():
            literal = lambda value: torch.tensor(value, dtype=x.dtype, device=x.device)  # noqa: E731
            value = evaluate(FORMULAS[name], {"x": x.detach()}, _BASE, literal)["y"]
        apply: Callable[..., Tensor] = _DualValued.apply if forward_mode() else _Valued.apply
        return apply(found, value)

    return run


def operations(surrogate: Surrogate) -> Mapping[str, Callable[..., Any]]:
    """By their names in `graph.OPS`. Literals have to be tensors of the state's type: on a GPU torch divides by a
    number through its reciprocal."""

    def spiked(above: bool) -> Callable[..., Tensor]:
        def run(m: Tensor, threshold: Tensor, value: Tensor | None = None) -> Tensor:
            fired = m > threshold if above else m >= threshold
            return spike(m - (threshold + surrogate.shift), fired if value is None else value.detach(), surrogate)

        return run

    return (
        _BASE
        | {name: _function(name) for name in FORMULAS}
        | {
            "spike": spiked(False),
            "spike_above": spiked(True),
            "slope": lambda m, threshold: surrogate.derivative(m - (threshold + surrogate.shift)),
        }
    )
