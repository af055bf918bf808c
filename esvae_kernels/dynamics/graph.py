"""The graph of one time step: a list of operations in the order in which they are computed.

A graph is made by `trace`, differentiated by `derive`, and run by whoever knows the operations of `OPS`: torch
(`evaluate`), or a backend that prints it. Its canonical text is what the raw op takes, so that a compiled or exported
program runs where the neuron was never defined:

    inputs x
    states v=0.0 a=0.0
    parameters decay threshold jump decay_a
    t0 = mul decay v
    t1 = add t0 x
    ...
    outputs t4
    next t6 t9
    record membrane=t1

A name in the place of a state's initial value is that of a parameter. Numbers are literals in the state's type.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, TypeAlias

Ref: TypeAlias = str | float  # a leaf's name, "t<k>" of the operation k, or a literal

# How many arguments an operation takes. Comparisons, "and", "or", "not" give masks, which only "where" and they take.
OPS: dict[str, tuple[int, ...]] = {
    "add": (2,),
    "sub": (2,),
    "mul": (2,),
    "div": (2,),
    "neg": (1,),
    "abs": (1,),
    "sign": (1,),
    "floor": (1,),
    "trunc": (1,),
    "sqrt": (1,),
    "minimum": (2,),
    "maximum": (2,),
    "exp": (1,),
    "log": (1,),
    "tanh": (1,),
    "sigmoid": (1,),
    "atan": (1,),
    "erf": (1,),
    "sin": (1,),
    "cos": (1,),
    "lt": (2,),
    "le": (2,),
    "eq": (2,),
    "ne": (2,),
    "and": (2,),
    "or": (2,),
    "not": (1,),
    "where": (3,),
    "detach": (1,),
    "spike": (2, 3),  # m, threshold, and what is returned in the place of m >= threshold
    "spike_above": (2, 3),  # m > threshold
    "slope": (2,),  # the surrogate's derivative at m - (threshold + shift); of adjoints alone
}
MASKS = frozenset(("lt", "le", "eq", "ne", "and", "or", "not"))
SPIKES = frozenset(("spike", "spike_above"))


class Node(NamedTuple):
    """One operation."""

    op: str
    args: tuple[Ref, ...]


class Step(NamedTuple):
    """Operations on leaves, and which of their values are the results."""

    leaves: tuple[str, ...]
    nodes: tuple[Node, ...]
    results: tuple[tuple[str, Ref], ...]  # by name

    def result(self, name: str) -> Ref:
        return dict(self.results)[name]

    def pruned(self, results: Sequence[str]) -> Step:
        """With these results alone, and what they need."""
        kept = {name: ref for name, ref in self.results if name in results}
        needed: set[Ref] = set(kept.values())
        for k in range(len(self.nodes) - 1, -1, -1):
            if f"t{k}" in needed:
                needed.update(self.nodes[k].args)
        at: dict[Ref, str] = {}
        nodes: list[Node] = []
        for k, node in enumerate(self.nodes):
            if f"t{k}" in needed:
                at[f"t{k}"] = f"t{len(nodes)}"
                nodes.append(Node(node.op, tuple(at.get(a, a) for a in node.args)))
        return Step(self.leaves, tuple(nodes), tuple((name, at.get(ref, ref)) for name, ref in kept.items()))


class Graph(NamedTuple):
    """A neuron's step: from inputs, states and parameters to outputs, the next states and what can be recorded."""

    inputs: tuple[str, ...]
    states: tuple[tuple[str, str | float], ...]  # names and initial values: numbers, or names of parameters
    parameters: tuple[str, ...]
    nodes: tuple[Node, ...]
    outputs: tuple[Ref, ...]
    next: tuple[Ref, ...]
    records: tuple[tuple[str, Ref], ...]

    @property
    def leaves(self) -> tuple[str, ...]:
        return (*self.inputs, *self.state_names, *self.parameters)

    @property
    def state_names(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.states)

    def step(self, records: Sequence[str] = ()) -> Step:
        """Results: out0, ..., next0, ..., record_<name>, ... of those asked for."""
        results = [(f"out{k}", ref) for k, ref in enumerate(self.outputs)]
        results += [(f"next{k}", ref) for k, ref in enumerate(self.next)]
        results += [(f"record_{name}", ref) for name, ref in self.records if name in records]
        return Step(self.leaves, self.nodes, tuple(results))

    def text(self) -> str:
        lines = ["inputs " + " ".join(self.inputs)]
        lines.append("states " + " ".join(f"{name}={_written(value)}" for name, value in self.states))
        lines.append("parameters " + " ".join(self.parameters))
        lines += [f"t{k} = {node.op} {' '.join(map(_written, node.args))}" for k, node in enumerate(self.nodes)]
        lines.append("outputs " + " ".join(map(_written, self.outputs)))
        lines.append("next " + " ".join(map(_written, self.next)))
        lines.append("record " + " ".join(f"{name}={_written(ref)}" for name, ref in self.records))
        return "\n".join(line.rstrip() for line in lines)

    @staticmethod
    def from_text(text: str) -> Graph:
        """`text` undone.

        Raises:
            ValueError: it is not the text of a graph; a raw op can be called by anyone.
        """
        return _parsed(text)


def _written(ref: Ref) -> str:
    return ref if isinstance(ref, str) else repr(float(ref))


def _ref(word: str) -> Ref:
    try:
        return float(word)
    except ValueError:
        return word


@lru_cache(maxsize=1024)
def _parsed(text: str) -> Graph:
    try:
        head, *lines = text.split("\n")
        states, parameters, *rest = lines
        *equations, outputs, following, record = rest
        nodes = []
        for k, line in enumerate(equations):
            name, equals, op, *args = line.split(" ")
            _require(name == f"t{k}" and equals == "=" and len(args) in OPS[op], line)
            nodes.append(Node(op, tuple(map(_ref, args))))
        graph = Graph(
            _words(head, "inputs"),
            tuple((name, _ref(value)) for name, value in _pairs(states, "states")),
            _words(parameters, "parameters"),
            tuple(nodes),
            tuple(map(_ref, _words(outputs, "outputs"))),
            tuple(map(_ref, _words(following, "next"))),
            tuple((name, _ref(value)) for name, value in _pairs(record, "record")),
        )
        _check(graph)
    except (KeyError, ValueError) as error:
        raise ValueError(f"graph: got {text[:200]!r}, accepted is what Graph.text() returns ({error})") from None
    return graph


def _require(condition: bool, got: object) -> None:
    if not condition:
        raise ValueError(f"at {got}")


def _words(line: str, keyword: str) -> tuple[str, ...]:
    first, *words = line.split(" ")
    _require(first == keyword, line)
    return tuple(words)


def _pairs(line: str, keyword: str) -> list[list[str]]:
    pairs = [word.split("=") for word in _words(line, keyword)]
    _require(all(len(pair) == 2 for pair in pairs), line)
    return pairs


def _check(graph: Graph) -> None:
    """Each value is known before it is used, numbers are numbers and masks are masks."""
    leaves = graph.leaves
    _require(len(set(leaves)) == len(leaves) and all(name.isidentifier() for name in leaves), leaves)
    _require(not any(name[0] == "t" and name[1:].isdigit() for name in leaves), leaves)
    masks: dict[Ref, bool] = dict.fromkeys(leaves, False)
    for k, (op, args) in enumerate(graph.nodes):
        for j, arg in enumerate(args):
            wanted = op in ("and", "or", "not") or (op == "where" and j == 0)
            _require(masks.get(arg, False) == wanted and (isinstance(arg, float) or arg in masks), f"t{k}: {arg}")
        masks[f"t{k}"] = op in MASKS
    found = (*graph.outputs, *graph.next, *(ref for _, ref in graph.records))
    for ref in found:
        _require((isinstance(ref, float) or ref in masks) and not masks.get(ref, False), ref)
    _require(len(graph.outputs) >= 1 and len(graph.next) == len(graph.states) and len(graph.inputs) >= 1, "outputs")
    for name, value in graph.states:
        _require(value in graph.parameters if isinstance(value, str) else math.isfinite(value), name)


def evaluate(
    step: Step,
    leaves: Mapping[str, Any],
    operations: Mapping[str, Callable[..., Any]],
    literal: Callable[[float], Any],
) -> dict[str, Any]:
    """The results by name. `operations`: what computes each op; `literal`: what makes a value of a number."""
    values: dict[Ref, Any] = {}
    values.update(leaves.items())

    def value(ref: Ref) -> Any:
        return literal(ref) if isinstance(ref, float) else values[ref]

    for k, (op, args) in enumerate(step.nodes):
        values[f"t{k}"] = operations[op](*[value(arg) for arg in args])
    return {name: value(ref) for name, ref in step.results}
