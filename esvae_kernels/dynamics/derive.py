"""The adjoint of a step, by reverse mode: nobody writes one.

The adjoint is a step as well. Its leaves are those of the step and the gradients of its results, its results the
gradients of the leaves. What the way back needs of the step itself is computed again.

Conventions: minimum and maximum give half to each at a tie; abs has 0 at 0; nothing flows through a condition, floor,
trunc, sign and detach; a spike has the surrogate's derivative at m - (threshold + shift).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from .functions import cos, exp, sign, sin, where
from .graph import Ref, Step
from .trace import Symbol, Tracer, apply

_TWO_OVER_ROOT_PI = 2 / math.sqrt(math.pi)


def _spike(g: Symbol, m: Any, threshold: Any, *value: Any) -> tuple[Any, ...]:
    flow = g * apply("slope", m, threshold)
    return (flow, -flow, *(None for _ in value))


def _nothing(g: Symbol, *args: Any) -> tuple[None, ...]:
    return (None,) * (len(args) - 1)


# From the gradient of a result to those of its arguments. y is the result.
_RULES: dict[str, Callable[..., tuple[Any, ...]]] = {
    "add": lambda g, a, b, y: (g, g),
    "sub": lambda g, a, b, y: (g, -g),
    "mul": lambda g, a, b, y: (g * b, g * a),
    "div": lambda g, a, b, y: (g / b, -((g * y) / b)),
    "neg": lambda g, a, y: (-g,),
    "abs": lambda g, a, y: (g * sign(a),),
    "sqrt": lambda g, a, y: ((0.5 * g) / y,),
    "exp": lambda g, a, y: (g * y,),
    "log": lambda g, a, y: (g / a,),
    "tanh": lambda g, a, y: (g * (1 - y * y),),
    "sigmoid": lambda g, a, y: (g * (y * (1 - y)),),
    "atan": lambda g, a, y: (g / (1 + a * a),),
    "erf": lambda g, a, y: (g * (_TWO_OVER_ROOT_PI * exp(-(a * a))),),
    "sin": lambda g, a, y: (g * cos(a),),
    "cos": lambda g, a, y: (-(g * sin(a)),),
    "minimum": lambda g, a, b, y: (
        where(_lt(a, b), g, where(_lt(b, a), 0.0, 0.5 * g)),
        where(_lt(b, a), g, where(_lt(a, b), 0.0, 0.5 * g)),
    ),
    "maximum": lambda g, a, b, y: (
        where(_lt(b, a), g, where(_lt(a, b), 0.0, 0.5 * g)),
        where(_lt(a, b), g, where(_lt(b, a), 0.0, 0.5 * g)),
    ),
    "where": lambda g, c, a, b, y: (None, where(c, g, 0.0), where(c, 0.0, g)),
    "spike": lambda g, *args: _spike(g, *args[:-1]),
    "spike_above": lambda g, *args: _spike(g, *args[:-1]),
    **dict.fromkeys(("floor", "trunc", "sign", "detach", "lt", "le", "eq", "ne", "and", "or", "not"), _nothing),
}


def _lt(a: Any, b: Any) -> Symbol:
    return apply("lt", a, b)


def adjoint(step: Step, wanted: Sequence[str]) -> Step:
    """Leaves: those of the step, and d_<result> for each of its results. Results: d_<leaf> of the wanted leaves; what
    nothing flows to is 0."""
    tracer = Tracer("adjoint")
    values: dict[Ref, Any] = {leaf: Symbol(tracer, leaf) for leaf in step.leaves}

    def value(ref: Ref) -> Any:
        return ref if isinstance(ref, float) else values[ref]

    # A step's own operations, numbered as they were: of those that are not needed the last line lets go.
    for k, (op, args) in enumerate(step.nodes):
        values[f"t{k}"] = Symbol(tracer, tracer.add(op, *[_ref_of(value(a)) for a in args]))
    gradients: dict[Ref, Any] = {}

    def add(ref: Ref, gradient: Any) -> None:
        if not isinstance(ref, float) and gradient is not None:
            gradients[ref] = gradients[ref] + gradient if ref in gradients else gradient

    for name, ref in step.results:
        add(ref, Symbol(tracer, f"d_{name}"))
    reaches = _reached(step, wanted)
    for k in range(len(step.nodes) - 1, -1, -1):
        ref, node = f"t{k}", step.nodes[k]
        if ref not in gradients or ref not in reaches:
            continue
        found = _RULES[node.op](gradients[ref], *[value(a) for a in node.args], values[ref])
        for arg, gradient in zip(node.args, found, strict=True):
            if arg in reaches:
                add(arg, gradient)
    leaves = (*step.leaves, *(f"d_{name}" for name, _ in step.results))
    results = tuple((f"d_{leaf}", _ref_of(gradients.get(leaf, 0.0))) for leaf in wanted)
    whole = Step(leaves, tuple(tracer.nodes), results)
    return whole.pruned([name for name, _ in results])


def _reached(step: Step, wanted: Sequence[str]) -> set[Ref]:
    """The wanted leaves, and the operations that depend on them."""
    reached: set[Ref] = set(wanted)
    for k, node in enumerate(step.nodes):
        if any(a in reached for a in node.args):
            reached.add(f"t{k}")
    return reached


def _ref_of(value: Any) -> Ref:
    return value.ref if isinstance(value, Symbol) else float(value)
