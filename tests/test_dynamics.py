"""The language in which a neuron is written: its graph, the text of it, and the adjoint that is derived from it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import pytest
import torch
from kernel_helpers import assert_near, one_line, randn, uniform
from torch import Tensor

from esvae_kernels import Hard, lif
from esvae_kernels import dynamics as d
from esvae_kernels.dynamics import trace as tracing
from esvae_kernels.dynamics.derive import adjoint
from esvae_kernels.dynamics.graph import OPS, Graph, Node, Step, evaluate
from esvae_kernels.dynamics.in_torch import operations
from esvae_kernels.dynamics.lower import lowered
from esvae_kernels.surrogate import ATan, Triangular

SURROGATE = ATan(1.5, shift=0.1)


def trace(function: Callable[..., object], states: Mapping[str, float | str]) -> Graph:
    return tracing.trace(function, states)[0]


def alif(x, v, a, *, decay, threshold, jump, decay_a):
    m = decay * v + x
    s = d.spike(m, threshold + jump * a)
    return s, (m * (1 - s), decay_a * a + s), {"membrane": m}


def literal(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def test_text() -> None:
    graph = trace(alif, {"v": 0.0, "a": "jump"})
    assert graph.text() == "\n".join(
        (
            "inputs x",
            "states v=0.0 a=jump",
            "parameters decay threshold jump decay_a",
            "t0 = mul decay v",
            "t1 = add t0 x",
            "t2 = mul jump a",
            "t3 = add threshold t2",
            "t4 = spike t1 t3",
            "t5 = sub 1.0 t4",
            "t6 = mul t1 t5",
            "t7 = mul decay_a a",
            "t8 = add t7 t4",
            "outputs t4",
            "next t6 t8",
            "record membrane=t1",
        )
    )
    assert Graph.from_text(graph.text()) == graph


def test_what_is_computed_twice_or_for_nobody_is_not_there() -> None:
    def neuron(x, v, *, decay):
        unused = d.exp(v)
        m = 1 * (decay * v + x) - 0.0
        del unused
        return (decay * v + x) * m, m

    graph = trace(neuron, {"v": 0})
    assert [node.op for node in graph.nodes] == ["mul", "add", "mul"]
    signed = trace(lambda x, v: (x * 0.0, x * -0.0 + v), {"v": 0.0})
    assert [node.args for node in signed.nodes[:2]] == [("x", 0.0), ("x", -0.0)]


@pytest.mark.parametrize(
    "change",
    [
        ("mul decay v", "mul decay t9"),
        ("mul decay v", "fma decay v x"),
        ("mul decay v", "mul decay"),
        ("t1 = ", "t7 = "),
        ("outputs t4", "outputs"),
        ("next t6 t8", "next t6"),
        ("inputs x", "inputs x x"),
        ("a=0.0", "a=nan"),
        ("a=0.0", "a=colour"),
        ("spike t1 t3", "lt t1 t3"),
    ],
    ids=lambda change: change[1],
)
def test_a_wrong_text_is_refused(change: tuple[str, str]) -> None:
    text = trace(alif, {"v": 0.0, "a": 0.0}).text()
    assert change[0] in text
    one_line(lambda: Graph.from_text(text.replace(*change)), ValueError, "graph: got 'inputs ")


# ------------------------------------------------------------------------------------------------- what is refused


def branch(x, v):
    if x > 0:
        return x, v
    return v, v


def chained(x, v):
    return d.where(0 < x < v, x, v), v


REFUSED = {
    "branch": (branch, r"neuron branch, .*test_dynamics.py:\d+ \(if x > 0:\): got a branch on data"),
    "chained": (chained, "got a branch on data"),
    "loop": (lambda x, v: (sum(x), v), "got a loop over a value"),
    "matmul": (lambda x, v: (x @ v, v), "got a matrix product"),
    "torch": (lambda x, v: (torch.relu(x), v), "got torch's relu"),
    "method": (lambda x, v: (x.relu(), v), "got the method .relu"),
    "tensor": (lambda x, v: (x * torch.ones(3), v), "got a tensor from outside"),
    "text": (lambda x, v: (x * "2", v), "got str '2'"),
    "bool": (lambda x, v: (x * True, v), "got bool True"),
    "mask": (lambda x, v: (x * (x > v), v), "got a condition that is used as a number"),
    "number": (lambda x, v: (d.where(x, v, x), v), "got a number where a condition belongs"),
    "power": (lambda x, v: (x**0.5, v), "got the power 0.5"),
    "float": (lambda x, v: (float(x), v), "got a value that is to become a number"),
    "index": (lambda x, v: (x[0], v), "got an index"),
    "results": (lambda x, v: x, "returned Symbol, accepted is"),
    "states": (lambda x, v: (x, (v, v)), "returned 2 new states"),
    "output": (lambda x, v: (x > v, v), "got Symbol among the outputs"),
    "records": (lambda x, v: (x, v, {"m": None}), "got NoneType among the records"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_expressed_is_one_line(name: str) -> None:
    function, line = REFUSED[name]
    with pytest.raises(d.NeuronError, match=line) as raised:
        trace(function, {"v": 0.0})
    assert "\n" not in str(raised.value)


def test_wrong_states_and_arguments() -> None:
    for states, line in (
        ({"w": 0.0}, "got the state w"),
        ({"v": "decay"}, "got v='decay'"),
        ({"v": True}, "got v=True"),
        ({"x": 0.0, "v": 0.0}, "got no input"),
    ):
        one_line(lambda states=states: trace(lambda x, v: (x, v), states), d.NeuronError, f"neuron <lambda>: {line}")
    one_line(
        lambda: trace(lambda t0, v: (t0, v), {"v": 0.0}), d.NeuronError, "neuron <lambda>: got an argument named t0"
    )
    one_line(lambda: trace(lambda *x: x, {}), d.NeuronError, "neuron <lambda>: got *arguments")


# ------------------------------------------------------------------------------------------------------ the adjoint

STEPS = {
    "alif": (alif, ("v", "a")),
    "arithmetic": (lambda x, v, *, p: (x / p - v, -(x * v) + p**3), ("v",)),
    "exponential": (lambda x, v, *, p: (d.exp(x) * d.sigmoid(p), d.tanh(v) + d.log(p * p + 1)), ("v",)),
    "trigonometric": (lambda x, v, *, p: (d.sin(x) * d.cos(p), d.atan(v * p)), ("v",)),
    "erf": (lambda x, v, *, p: (d.erf(x) * p, d.sqrt(v * v + 1)), ("v",)),
    "choice": (
        lambda x, v, *, p: (d.where((x >= v) & ~(v > p) | (x == 0), x * x, v), d.where(x != v, d.minimum(x, p), v)),
        ("v",),
    ),
    "ties": (lambda x, v, *, p: (d.maximum(x, x * 1.0) + d.minimum(x, x + 0.0), d.abs(v) * p), ("v",)),
    "steps": (lambda x, v, *, p: (d.floor(x) + d.trunc(v) * x + d.sign(x), d.detach(v) * p + 0.5), ("v",)),
    "several": (lambda x, v, *, p: (d.spike(v, p, value=d.where(v > 0, d.trunc(v / p), 0.0)), x + v), ("v",)),
    "two spikes": (
        lambda x, v, *, p: ((d.spike(v, p), d.spike(-v, p, strict=True)), v - d.spike(v, p) * p),
        ("v",),
    ),
    "number": (lambda x, v, *, p: (1.0, v * x), ("v",)),
}


@pytest.mark.parametrize("name", STEPS)
def test_the_adjoint_is_that_of_autograd(name: str) -> None:
    function, states = STEPS[name]
    graph = trace(function, dict.fromkeys(states, 0.0))
    step, ops = graph.step([name for name, _ in graph.records]), operations(SURROGATE)
    leaves = {leaf: randn(50, seed=k, dtype=torch.float64).requires_grad_() for k, leaf in enumerate(step.leaves)}
    results = {k: v.expand(50) for k, v in evaluate(step, leaves, ops, literal).items()}
    cotangents = {f"d_{k}": randn(50, seed=9 + j, dtype=torch.float64) for j, k in enumerate(results)}
    flows = [
        (result, c) for result, c in zip(results.values(), cotangents.values(), strict=True) if result.requires_grad
    ]
    wanted = torch.autograd.grad(
        [r for r, _ in flows], list(leaves.values()), [c for _, c in flows], allow_unused=True, materialize_grads=True
    )
    with torch.no_grad():
        back = adjoint(step, step.leaves)
        found = evaluate(back, {k: v.detach() for k, v in leaves.items()} | cotangents, ops, literal)
    for leaf, gradient in zip(step.leaves, wanted, strict=True):
        assert_near(found[f"d_{leaf}"].expand(50), gradient, 1e-12)
    only = adjoint(step, step.leaves[:1])
    assert [k for k, _ in only.results] == [f"d_{step.leaves[0]}"]
    assert len(only.nodes) <= len(back.nodes)


def test_every_operation_has_a_rule_and_a_meaning() -> None:
    used = {
        node.op for function, states in STEPS.values() for node in trace(function, dict.fromkeys(states, 0.0)).nodes
    }
    assert used | {"slope"} == OPS.keys()
    assert OPS.keys() <= operations(SURROGATE).keys()
    for op, counts in OPS.items():
        assert op in used or op == "slope"
        assert Node(op, ("x",) * counts[0]).op == op


def test_a_lif_of_the_language_is_lif() -> None:
    """Bit for bit going forward, near `lif` going back, over several steps."""

    def neuron(x, v, *, decay, threshold, v_reset):
        m = decay * v + x
        s = d.spike(m, threshold)
        return s, m * (1 - s) + v_reset * s

    surrogate = Triangular(1.3)
    step, ops = trace(neuron, {"v": 0.0}).step(), operations(surrogate)
    x = uniform(5, 4, 6).double().requires_grad_()
    numbers = {"decay": 0.7, "threshold": 0.6, "v_reset": 0.1}
    leaves = {name: literal(value) for name, value in numbers.items()}
    v, spikes = torch.zeros(4, 6, dtype=torch.float64), []
    for x_t in x:
        found = evaluate(step, leaves | {"x": x_t, "v": v}, ops, literal)
        v = found["next0"]
        spikes.append(found["out0"])
    ours, last = lif(x, decay=0.7, threshold=0.6, reset=Hard(0.1), surrogate=surrogate)
    assert torch.equal(torch.stack(spikes), ours)
    assert torch.equal(v, last)
    gradients = [
        torch.autograd.grad((s * x.detach()).sum() + v.sum(), x)[0] for s, v in ((torch.stack(spikes), v), (ours, last))
    ]
    assert_near(*gradients, 1e-12)


def _hard(v_reset: float):
    from esvae_kernels import Hard

    return Hard(v_reset)


# ------------------------------------------------------------------------------------------------ the functions in fp32

RANGES = {  # lowest, highest, the largest error in units in the last place, or in absolute terms
    "exp": (-110, 95, 1.0, 0),
    "log": (1e-40, 1e3, 1.0, 0),
    "tanh": (-10, 10, 1.5, 0),
    "sigmoid": (-88, 110, 2.5, 0),
    "atan": (-50, 50, 3.0, 0),
    "erf": (-5, 5, 3.0, 0),
    "sin": (-(2**13), 2**13, 0, 1e-7),
    "cos": (-(2**13), 2**13, 0, 1e-7),
}


@pytest.mark.parametrize("name", RANGES)
def test_functions_in_fp32(name: str) -> None:
    low, high, most, absolute = RANGES[name]
    x = torch.cat(
        [uniform(200_000).double() * (high - low) + low, randn(50_000).double(), 1e-3 * randn(50_000).double()]
    )
    x = x.float().abs() if name == "log" else x.float()
    found, wanted = operations(SURROGATE)[name](x), getattr(torch, name)(x.double())
    nearest = wanted.float().abs()
    unit = (torch.nextafter(nearest, torch.tensor(math.inf)) - nearest).double()
    there = nearest.isfinite()
    assert (found.isfinite() == there).all()
    error = (found.double() - wanted).abs()
    assert (error <= (unit * most if most else absolute))[there].all()


@pytest.mark.parametrize("name", RANGES)
def test_functions_of_special_values(name: str) -> None:
    tiny, huge = 1e-42, 3e38
    x = torch.tensor([0.0, math.inf, -math.inf, math.nan, tiny, -tiny, huge, -huge])
    found, wanted = operations(SURROGATE)[name](x), getattr(torch, name)(x.double()).float()
    if name in ("sin", "cos"):
        wanted[-2:] = math.nan  # beyond 2^13
    assert_near(torch.nan_to_num(found, nan=7.0), torch.nan_to_num(wanted, nan=7.0), 3e-7)


@pytest.mark.parametrize("name", RANGES)
def test_derivatives_of_functions(name: str) -> None:
    x = (uniform(50) + 0.1).requires_grad_()
    grad, other = (torch.autograd.grad(f(x).sum(), x)[0] for f in (operations(SURROGATE)[name], getattr(torch, name)))
    assert_near(grad, other, 1e-6)
    step, ops = Step(("x",), (Node(name, ("x",)),), (("y", "t0"),)), operations(SURROGATE)
    plain, spelt_out = (evaluate(s, {"x": x.detach()}, ops, torch.tensor)["y"] for s in (step, lowered(step)))
    assert torch.equal(plain, spelt_out)
