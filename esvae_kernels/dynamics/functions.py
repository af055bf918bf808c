"""The functions of the language, beside Python's operators: on symbols they become part of a graph, on tensors they are
torch's, so that a neuron's function can be called on tensors to look at a step."""

from __future__ import annotations

from typing import Any

import torch

from .trace import NeuronError, Symbol, apply

__all__ = [
    "abs",
    "atan",
    "cos",
    "detach",
    "erf",
    "exp",
    "floor",
    "log",
    "maximum",
    "minimum",
    "sigmoid",
    "sign",
    "sin",
    "spike",
    "sqrt",
    "tanh",
    "trunc",
    "where",
]


def _call(op: str, *args: Any) -> Any:
    if any(isinstance(a, Symbol) for a in args):
        return apply(op, *args)
    like = next((a for a in args if isinstance(a, torch.Tensor) and a.is_floating_point()), None)
    if like is None:
        raise NeuronError(f"{op}: got {', '.join(type(a).__name__ for a in args)}, accepted are values of a neuron")
    tensors = [a if isinstance(a, torch.Tensor) else like.new_full((), a) for a in args]
    return getattr(torch, op)(*tensors)


def exp(x: Any) -> Any:
    """e^x."""
    return _call("exp", x)


def log(x: Any) -> Any:
    """The natural logarithm."""
    return _call("log", x)


def tanh(x: Any) -> Any:
    """The hyperbolic tangent."""
    return _call("tanh", x)


def sigmoid(x: Any) -> Any:
    """1 / (1 + e^-x)."""
    return _call("sigmoid", x)


def atan(x: Any) -> Any:
    """The arc tangent."""
    return _call("atan", x)


def erf(x: Any) -> Any:
    """The error function."""
    return _call("erf", x)


def sqrt(x: Any) -> Any:
    """The square root, correctly rounded."""
    return _call("sqrt", x)


def sin(x: Any) -> Any:
    """The sine of x in radians. In fp32 NaN where |x| > 2^13."""
    return _call("sin", x)


def cos(x: Any) -> Any:
    """The cosine of x in radians. In fp32 NaN where |x| > 2^13."""
    return _call("cos", x)


def abs(x: Any) -> Any:
    """The absolute value; its derivative at 0 is 0."""
    return _call("abs", x)


def sign(x: Any) -> Any:
    """-1, 0 or 1; no gradient flows."""
    return _call("sign", x)


def floor(x: Any) -> Any:
    """The next integer below; no gradient flows."""
    return _call("floor", x)


def trunc(x: Any) -> Any:
    """The next integer towards 0; no gradient flows."""
    return _call("trunc", x)


def minimum(a: Any, b: Any) -> Any:
    """The smaller one; where they are equal half of the gradient flows to each."""
    return _call("minimum", a, b)


def maximum(a: Any, b: Any) -> Any:
    """The larger one; where they are equal half of the gradient flows to each."""
    return _call("maximum", a, b)


def where(condition: Any, a: Any, b: Any) -> Any:
    """a where the condition holds, else b. Nothing flows through the condition."""
    return _call("where", condition, a, b)


def detach(x: Any) -> Any:
    """x, through which no gradient flows."""
    return apply("detach", x) if isinstance(x, Symbol) else x.detach()


def spike(m: Any, threshold: Any, strict: bool = False, value: Any = None) -> Any:
    """1 where m >= threshold, else 0, with the surrogate's derivative at m - threshold.

    Args:
        m: a value of the neuron, in general the membrane potential.
        threshold: what it is compared with. m and threshold are compared, never their difference with 0.
        strict: m > threshold.
        value: what is returned in the place of 0 and 1, for example `where(m > 0, trunc(m / threshold), 0.0)` for
            several spikes a step. The gradient is that of the spike.
    """
    if not any(isinstance(a, Symbol) for a in (m, threshold, value)):
        raise NeuronError("spike: got tensors, accepted are values of a neuron that is being traced")
    return apply("spike_above" if strict else "spike", m, threshold, *([] if value is None else [value]))
