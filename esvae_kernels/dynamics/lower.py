"""exp and its kin in fp32, written once, of operations that every backend rounds alike: the same bits everywhere.

In fp64 they are those of each library, which differ in the last bit. Polynomials and splittings are those of Cephes
(Moshier, https://www.netlib.org/cephes, its single precision). The largest errors, in units in the last place: exp 1,
log 1, tanh 1.5, atan 3, erf 3, sigmoid 2.5 (below -88 it is 0); of sin and cos 1e-7 in absolute terms, and NaN beyond
2^13 (tests/test_dynamics.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from .functions import abs, floor, maximum, minimum, where
from .graph import Node, Ref, Step
from .trace import Symbol, Tracer, apply

_ROUND = 1.5 * 2**23  # added and taken away again, it leaves an integer


def _polynomial(x: Any, *coefficients: float) -> Any:
    """The highest power first."""
    total: Any = coefficients[0]
    for coefficient in coefficients[1:]:
        total = total * x + coefficient
    return total


def _nearest(x: Any) -> Any:
    return (x + _ROUND) - _ROUND


def _exp(x: Any) -> Any:
    x = minimum(maximum(x, -104.0), 89.0)  # beyond, the result is 0 or infinite
    n = _nearest(x * 1.44269504)
    r = (x - n * 0.693359375) - n * -2.12194440e-4
    p = _polynomial(r, 1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 0.5)
    return apply("scale2", (p * (r * r) + r) + 1.0, n)


def _log(x: Any) -> Any:
    m, e = apply("mantissa", x), apply("exponent", x)
    small = m < math.sqrt(0.5)
    e = where(small, e - 1.0, e)
    f = where(small, m + m, m) - 1.0
    z = f * f
    p = _polynomial(
        f,
        *(7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1),
        *(-1.6668057665e-1, 2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1),
    )
    y = ((p * f) * z + e * -2.12194440e-4) - 0.5 * z
    found = (f + y) + e * 0.693359375
    found = where(x > 0.0, found, where(x < 0.0, math.nan, -math.inf))
    return where((x < math.inf) & (x == x), found, x)  # infinity and NaN are what they are


def _sigmoid(x: Any) -> Any:
    return 1.0 / (1.0 + _exp(-x))


def _tanh(x: Any) -> Any:
    z, size = x * x, abs(x)
    p = _polynomial(z, -5.70498872745e-3, 2.06390887954e-2, -5.37397155531e-2, 1.33314422036e-1, -3.33332819422e-1)
    large = 1.0 - 2.0 / (_exp(size + size) + 1.0)
    return where(size < 0.625, (p * z) * x + x, where(x < 0.0, -large, large))


def _atan(x: Any) -> Any:
    size = abs(x)
    large, middle = size > 2.414213562373095, size > 0.4142135623730950
    reduced = where(large, -1.0 / size, where(middle, (size - 1.0) / (size + 1.0), size))
    start = where(large, math.pi / 2, where(middle, math.pi / 4, 0.0))
    z = reduced * reduced
    p = _polynomial(z, 8.05374449538e-2, -1.38776856032e-1, 1.99777106478e-1, -3.33329491539e-1)
    found = start + ((p * z) * reduced + reduced)
    return where(x < 0.0, -found, found)


def _erf(x: Any) -> Any:
    size = minimum(abs(x), 5.0)  # from 3.9 on it is 1
    z = x * x
    small = x * _polynomial(
        z,
        *(7.853861353153693e-5, -8.010193625184903e-4, 5.188327685732524e-3, -2.685381193529856e-2),
        *(1.128358514861418e-1, -3.761262582423300e-1, 1.128379165726710),
    )
    q = 1.0 / size
    y = q * q
    below_two = _polynomial(
        y,
        *(2.326819970068386e-2, -1.387039388740657e-1, 3.687424674597105e-1, -5.824733027278666e-1),
        *(6.210004621745983e-1, -4.944515323274145e-1, 3.404879937665872e-1, -2.741127028184656e-1),
        5.638259427386472e-1,
    )
    above = _polynomial(
        y,
        *(-1.047766399936249e1, 1.297719955372516e1, -7.495518717768503, 2.921019019210786),
        *(-1.015265279202700, 4.218463358204948e-1, -2.820767439740514e-1, 5.641895067754075e-1),
    )
    large = 1.0 - (_exp(-(size * size)) * q) * where(size < 2.0, below_two, above)
    return where(abs(x) < 1.0, small, where(x < 0.0, -large, large))


def _quadrants(x: Any) -> tuple[Any, Any, Any]:
    """The quadrant, 0 to 3, and sine and cosine of what is left of x, at most pi/4. Beyond 2^13 NaN: the parts of
    n pi/2 are no longer exact."""
    x = where(abs(x) <= 2.0**13, x, math.nan)
    n = _nearest(x * (2 / math.pi))
    r = ((x - n * 1.5703125) - n * 4.837512969970703125e-4) - n * 7.54978994885e-8
    z = r * r
    sine = (_polynomial(z, -1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1) * z) * r + r
    cosine = (
        (_polynomial(z, 2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2) * z) * z - 0.5 * z
    ) + 1.0
    return n - 4.0 * floor(n * 0.25), sine, cosine


def _sin(x: Any) -> Any:
    n, sine, cosine = _quadrants(x)
    found = where((n == 1.0) | (n == 3.0), cosine, sine)
    return where(n > 1.0, -found, found)


def _cos(x: Any) -> Any:
    n, sine, cosine = _quadrants(x)
    found = where((n == 1.0) | (n == 3.0), sine, cosine)
    return where((n == 1.0) | (n == 2.0), -found, found)


def _formula(function: Callable[[Any], Any]) -> Step:
    tracer = Tracer(function.__name__)
    ref = function(Symbol(tracer, "x")).ref
    return Step(("x",), tuple(tracer.nodes), (("y", ref),)).pruned(["y"])


FORMULAS = {
    name: _formula(function)
    for name, function in {
        "exp": _exp,
        "log": _log,
        "tanh": _tanh,
        "sigmoid": _sigmoid,
        "atan": _atan,
        "erf": _erf,
        "sin": _sin,
        "cos": _cos,
    }.items()
}


def lowered(step: Step) -> Step:
    """The same step with the formulas in the place of the functions."""
    nodes: list[Node] = []
    at: dict[Ref, Ref] = {}
    for k, (op, args) in enumerate(step.nodes):
        given = tuple(at.get(a, a) for a in args)
        if op not in FORMULAS:
            nodes.append(Node(op, given))
            at[f"t{k}"] = f"t{len(nodes) - 1}"
            continue
        formula, inner = FORMULAS[op], {"x": given[0]}
        for j, node in enumerate(formula.nodes):
            nodes.append(Node(node.op, tuple(inner.get(a, a) if isinstance(a, str) else a for a in node.args)))
            inner[f"t{j}"] = f"t{len(nodes) - 1}"
        at[f"t{k}"] = inner[str(formula.result("y"))]
    return Step(step.leaves, tuple(nodes), tuple((name, at.get(ref, ref)) for name, ref in step.results))
