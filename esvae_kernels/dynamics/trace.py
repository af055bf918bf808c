"""From a plain Python function of one time step to its graph: the function runs once, on symbols."""

from __future__ import annotations

import inspect
import linecache
import math
import numbers
import re
import sys
from collections.abc import Callable, Mapping
from types import CodeType, FrameType
from typing import Any, NoReturn

import torch

from .graph import MASKS, Graph, Node, Ref


class NeuronError(TypeError):
    """A neuron that cannot be expressed; the message names the line of the user's code."""


class Tracer:
    """The operations that were asked for so far. An operation that was there already is not computed again."""

    def __init__(self, name: str, code: CodeType | None = None) -> None:
        self.name, self.code = name, code
        self.nodes: list[Node] = []
        self._known: dict[Node, Ref] = {}

    def add(self, op: str, *args: Ref) -> Ref:
        node = Node(op, args)
        # repr: 0.0 and -0.0 are equal, NaN is not
        key: Any = (op, *(repr(a) for a in args))
        if key not in self._known:
            self._known[key] = f"t{len(self.nodes)}"
            self.nodes.append(node)
        return self._known[key]

    def is_mask(self, ref: Ref) -> bool:
        return isinstance(ref, str) and ref[:1] == "t" and ref[1:].isdigit() and self.nodes[int(ref[1:])].op in MASKS

    def fail(self, got: str, accepted: str) -> NoReturn:
        raise NeuronError(f"{self._where()}: got {got}, accepted is {accepted}")

    def _where(self) -> str:
        frame: FrameType | None = sys._getframe()
        while frame is not None and frame.f_code is not self.code:
            frame = frame.f_back
        if frame is None:
            return f"neuron {self.name}"
        file, line = frame.f_code.co_filename, frame.f_lineno
        text = linecache.getline(file, line).strip()
        return f"neuron {self.name}, {file}:{line}" + (f" ({text})" if text else "")


class Symbol:
    """A value of the step that is being traced: of a number, or a mask."""

    __slots__ = ("ref", "tracer")
    __array_ufunc__ = None  # NumPy leaves it alone

    def __init__(self, tracer: Tracer, ref: Ref) -> None:
        self.tracer, self.ref = tracer, ref

    # Numbers

    def __add__(self, other: Any) -> Symbol:
        return apply("add", self, other)

    def __radd__(self, other: Any) -> Symbol:
        return apply("add", other, self)

    def __sub__(self, other: Any) -> Symbol:
        return apply("sub", self, other)

    def __rsub__(self, other: Any) -> Symbol:
        return apply("sub", other, self)

    def __mul__(self, other: Any) -> Symbol:
        return apply("mul", self, other)

    def __rmul__(self, other: Any) -> Symbol:
        return apply("mul", other, self)

    def __truediv__(self, other: Any) -> Symbol:
        return apply("div", self, other)

    def __rtruediv__(self, other: Any) -> Symbol:
        return apply("div", other, self)

    def __neg__(self) -> Symbol:
        return apply("neg", self)

    def __pos__(self) -> Symbol:
        return self

    def __abs__(self) -> Symbol:
        return apply("abs", self)

    def __pow__(self, power: Any) -> Symbol:
        """By repeated squaring, from the lowest bit on."""
        if isinstance(power, bool) or not isinstance(power, numbers.Integral) or not 1 <= int(power) <= 64:
            self.tracer.fail(f"the power {power!r}"[:80], "an integer from 1 to 64")
        left, square, result = int(power), self, None
        while left:
            if left & 1:
                result = square if result is None else result * square
            left >>= 1
            if left:
                square = square * square
        assert result is not None
        return result

    def __rpow__(self, base: Any) -> NoReturn:
        self.tracer.fail(f"a power of {base!r}", "exp(...) of a product")

    # Masks

    def __lt__(self, other: Any) -> Symbol:
        return apply("lt", self, other)

    def __le__(self, other: Any) -> Symbol:
        return apply("le", self, other)

    def __gt__(self, other: Any) -> Symbol:
        return apply("lt", other, self)

    def __ge__(self, other: Any) -> Symbol:
        return apply("le", other, self)

    def __eq__(self, other: object) -> Symbol:  # type: ignore[override]
        return apply("eq", self, other)

    def __ne__(self, other: object) -> Symbol:  # type: ignore[override]
        return apply("ne", self, other)

    __hash__ = object.__hash__

    def __and__(self, other: Any) -> Symbol:
        return apply("and", self, other)

    def __or__(self, other: Any) -> Symbol:
        return apply("or", self, other)

    def __invert__(self) -> Symbol:
        return apply("not", self)

    # What a graph cannot hold

    def __bool__(self) -> bool:
        self.tracer.fail("a branch on data", "where(condition, a, b); of conditions &, | and ~")

    def __matmul__(self, other: Any) -> NoReturn:
        self.tracer.fail("a matrix product", "operations of each neuron by itself")

    __rmatmul__ = __matmul__

    def __float__(self) -> float:
        self.tracer.fail("a value that is to become a number", "operations of the language, such as exp of this module")

    __int__ = __index__ = __float__

    def __getitem__(self, index: Any) -> NoReturn:
        self.tracer.fail("an index", "operations of each neuron by itself")

    def __iter__(self) -> NoReturn:
        self.tracer.fail("a loop over a value", "operations of each neuron by itself")

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        self.tracer.fail(f"the method .{name}", "operators and the functions of esvae_kernels.dynamics")

    @classmethod
    def __torch_function__(cls, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Of torch those functions that the language has too."""
        from . import functions

        name = getattr(function, "__name__", str(function))
        ours = getattr(functions, name, None) if name in functions.__all__ else None
        if ours is None or kwargs:
            symbol = next(a for a in args if isinstance(a, Symbol))
            symbol.tracer.fail(f"torch's {name}", f"those of esvae_kernels.dynamics: {', '.join(functions.__all__)}")
        return ours(*args)


def apply(op: str, *args: Any) -> Symbol:
    """An operation on symbols and numbers. Exact: x * 1 and x - 0 are x."""
    tracer = next(a.tracer for a in args if isinstance(a, Symbol))
    refs = [_ref(tracer, op, k, a) for k, a in enumerate(args)]
    if op == "mul":
        for one, other in (refs, refs[::-1]):
            if one == 1.0 and isinstance(one, float):
                return Symbol(tracer, other)
    if op == "sub" and isinstance(refs[1], float) and refs[1] == 0.0 and math.copysign(1, refs[1]) == 1:
        return Symbol(tracer, refs[0])
    return Symbol(tracer, tracer.add(op, *refs))


def _ref(tracer: Tracer, op: str, k: int, value: Any) -> Ref:
    wants_mask = op in ("and", "or", "not") or (op == "where" and k == 0)
    if isinstance(value, Symbol):
        if value.tracer is not tracer:
            tracer.fail("a value of another neuron", "the function's own arguments")
        if tracer.is_mask(value.ref) != wants_mask:
            if wants_mask:
                tracer.fail("a number where a condition belongs", "a comparison, such as m > 0")
            tracer.fail("a condition that is used as a number", "where(condition, 1.0, 0.0), or spike(m, threshold)")
        return value.ref
    if isinstance(value, torch.Tensor):
        tracer.fail("a tensor from outside", "a parameter of the neuron")
    if wants_mask or isinstance(value, bool) or not isinstance(value, numbers.Real):
        tracer.fail(f"{type(value).__name__} {value!r}"[:80], "a comparison" if wants_mask else "a number")
    return float(value)


def trace(function: Callable[..., Any], states: Mapping[str, str | float]) -> tuple[Graph, tuple[bool, bool]]:
    """The graph of a function: its positional arguments that are no states are inputs, its keywords are parameters. And
    whether it returns its output, and its state, alone in the place of a tuple.

    Raises:
        NeuronError, ValueError: one line, that names the line of the function where there is one.
    """
    name = function.__name__
    signature = inspect.signature(function).parameters.values()
    positional = [p.name for p in signature if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    parameters = tuple(p.name for p in signature if p.kind is p.KEYWORD_ONLY)
    if len(positional) + len(parameters) != len(signature):
        raise NeuronError(f"neuron {name}: got *arguments or **keywords, accepted are named ones")
    for state, initial in states.items():
        if state not in positional:
            raise NeuronError(f"neuron {name}: got the state {state}, accepted are arguments: {', '.join(positional)}")
        if isinstance(initial, str) and initial not in parameters:
            known = ", ".join(parameters)
            raise NeuronError(f"neuron {name}: got {state}={initial!r}, accepted are a number and parameters: {known}")
        if not isinstance(initial, str) and (isinstance(initial, bool) or not isinstance(initial, numbers.Real)):
            raise NeuronError(f"neuron {name}: got {state}={initial!r}, accepted is a number or a parameter's name")
    inputs = tuple(p for p in positional if p not in states)
    if not inputs:
        raise NeuronError(f"neuron {name}: got no input, accepted is at least one argument that is no state")
    for argument in (*positional, *parameters):
        if re.fullmatch(r"t\d+|d_(out|next)\d+|d_record_.*", argument):  # names of a graph's own
            accepted = "any but t0, d_out0, d_next0, d_record_..., and the like"
            raise NeuronError(f"neuron {name}: got an argument named {argument}, accepted is {accepted}")
    tracer = Tracer(name, function.__code__)
    symbols = {argument: Symbol(tracer, argument) for argument in (*positional, *parameters)}
    found = function(*[symbols[p] for p in positional], **{p: symbols[p] for p in parameters})
    outputs, following, records = _taken_apart(name, found, states)
    alone = not isinstance(found[0], tuple), not isinstance(found[1], tuple)

    def refs(what: str, values: tuple[Any, ...]) -> tuple[Ref, ...]:
        result = []
        for value in values:
            if isinstance(value, Symbol) and value.tracer is tracer and not tracer.is_mask(value.ref):
                result.append(value.ref)
            elif isinstance(value, numbers.Real) and not isinstance(value, bool):
                result.append(float(value))
            else:
                raise NeuronError(f"neuron {name}: got {type(value).__name__} among the {what}, accepted are numbers")
        return tuple(result)

    outs, nexts = refs("outputs", outputs), refs("new states", following)
    recorded = dict(zip(records, refs("records", tuple(records.values())), strict=True))
    graph = Graph(
        inputs,
        tuple((state, value if isinstance(value, str) else float(value)) for state, value in states.items()),
        parameters,
        tuple(tracer.nodes),
        outs,
        nexts,
        tuple(recorded.items()),
    )
    return Graph.from_text(_pruned(graph).text()), alone  # as whoever reads its text has it


def _taken_apart(
    name: str, found: Any, states: Mapping[str, Any]
) -> tuple[tuple[Any, ...], tuple[Any, ...], dict[str, Any]]:
    """(outputs, new states, records) of what the function returned."""
    accepted = f"(output, new states) or (output, new states, records), with {len(states)} new states in a tuple"
    if not isinstance(found, tuple) or len(found) not in (2, 3):
        got = f"{type(found).__name__}" + (f" of {len(found)}" if isinstance(found, tuple) else "")
        raise NeuronError(f"neuron {name}: returned {got}, accepted is {accepted}")
    outputs, following, *rest = found
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    following = following if isinstance(following, tuple) else (following,)
    records = rest[0] if rest else {}
    if len(following) != len(states) or not outputs:
        raise NeuronError(f"neuron {name}: returned {len(following)} new states, accepted is {accepted}")
    if not isinstance(records, dict) or not all(isinstance(k, str) and k.isidentifier() for k in records):
        raise NeuronError(f"neuron {name}: returned {records!r}"[:200] + ", accepted as records is {name: value}")
    return outputs, following, records


def _pruned(graph: Graph) -> Graph:
    """Without what nobody needs."""
    step = graph.step([name for name, _ in graph.records])
    step = step.pruned([name for name, _ in step.results])
    results = dict(step.results)
    return graph._replace(
        nodes=step.nodes,
        outputs=tuple(results[f"out{k}"] for k in range(len(graph.outputs))),
        next=tuple(results[f"next{k}"] for k in range(len(graph.next))),
        records=tuple((name, results[f"record_{name}"]) for name, _ in graph.records),
    )
