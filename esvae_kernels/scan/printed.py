"""A neuron's Triton kernels as text: one forward, one backward, with the neuron's own names.

A program takes a block of neurons through the whole sequence. The backward goes through it in spans, from the last to
the first: it computes a span's states again from the last stored ones before it, keeps them in registers, and walks
back over them. What is None where a kernel is called is known when it is compiled, and costs nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ..dynamics.derive import adjoint
from ..dynamics.graph import Ref, Step
from ..dynamics.lower import lowered
from ..ops.lif.reference import READOUTS
from .options import Options
from .reference import CHUNK

_HEAD = '''"""Made by esvae_kernels from the equations of a neuron; it is made again where it is missing."""

from __future__ import annotations

import triton.language as tl

from esvae_kernels.scan.language import (
    divided,
    exponent,
    larger,
    libdevice,
    mantissa,
    power_of_two,
    signed,
    smaller,
    square_root,
)
from esvae_kernels.surrogate.triton import slope, smooth
from esvae_kernels.tiles import aligned, jit
'''

_FORMATS = {
    "add": "{} + {}",
    "sub": "{} - {}",
    "mul": "{} * {}",
    "div": "divided({}, {})",
    "neg": "{} * negative",  # a minus sign is a difference with 0, which has another zero
    "abs": "tl.abs({})",
    "sign": "signed({})",
    "floor": "tl.floor({})",
    "trunc": "libdevice.trunc({})",
    "sqrt": "square_root({})",
    "minimum": "smaller({}, {})",
    "maximum": "larger({}, {})",
    "exp": "tl.exp({})",
    "log": "tl.log({})",
    "tanh": "libdevice.tanh({})",
    "sigmoid": "tl.sigmoid({})",
    "atan": "libdevice.atan({})",
    "erf": "tl.erf({})",
    "sin": "tl.sin({})",
    "cos": "tl.cos({})",
    "lt": "{} < {}",
    "le": "{} <= {}",
    "eq": "{} == {}",
    "ne": "{} != {}",
    "and": "{} & {}",
    "or": "{} | {}",
    "not": "{} == 0",
    "where": "tl.where({}, {}, {})",
    "scale2": "power_of_two({}, {})",
    "mantissa": "mantissa({})",
    "exponent": "exponent({})",
    "slope": "slope({} - ({} + shift), SURROGATE, shape, scale)",
    "primitive": "smooth({} - ({} + shift), SURROGATE, shape, scale)",
    "spike": "({} >= {}).to(R)",
    "spike_above": "({} > {}).to(R)",
}


class Printed(NamedTuple):
    """The text, the names of its tensors, and the literals that its kernels take as numbers: written out, one of fp64
    would be rounded to fp32."""

    text: str
    read: list[str]
    written: list[str]
    literals: tuple[float, ...]


def span_of(states: int) -> int:
    """Time steps whose states are kept in registers: 16, 8 or 4, for one state, two, or more."""
    return {1: CHUNK, 2: CHUNK // 2}.get(max(states, 1), CHUNK // 4)


def printed(o: Options, single: bool) -> Printed:
    """`single`: the states are of fp32, and exp and its kin are written out."""
    graph = o.graph
    forward, advance = o.step, graph.step().pruned([f"next{k}" for k in range(len(graph.next))])
    back = adjoint(forward, graph.leaves)
    writer = _Writer(o)
    if single:
        forward, advance, back = lowered(forward), lowered(advance), lowered(back)
    for step in (forward, advance, back):
        writer.know(step)
    span = span_of(len(graph.states))
    lines = [_HEAD, *writer.forward(forward), "", "", *writer.backward(advance, back, span)]
    return Printed("\n".join(lines) + "\n", _read(o), _written(o), tuple(writer.literals))


class _Writer:
    def __init__(self, o: Options) -> None:
        self.o, self.graph = o, o.graph
        self.literals: list[float] = []
        self._names: dict[str, str] = {}

    def know(self, step: Step) -> None:
        """Each literal becomes an argument of the kernels."""
        refs = [a for node in step.nodes for a in node.args] + [ref for _, ref in step.results]
        for ref in refs:
            if isinstance(ref, float) and repr(ref) not in self._names:
                self._names[repr(ref)] = f"literal{len(self.literals)}"
                self.literals.append(ref)

    def name(self, ref: Ref, suffix: str, leaves: Sequence[str]) -> str:
        if isinstance(ref, float):
            return self._names[repr(ref)]
        return f"n_{ref}" if ref in leaves else f"{ref}{suffix}"

    def body(self, step: Step, indent: str, suffix: str = "") -> Iterator[str]:
        """The operations; the values are named t<k><suffix>, leaves n_<name>."""
        for k, (op, args) in enumerate(step.nodes):
            names = [self.name(a, suffix, step.leaves) for a in args]
            yield f"{indent}t{k}{suffix} = {self._expression(op, names)}"

    def _expression(self, op: str, names: list[str]) -> str:
        if op == "detach":
            return names[0]
        if op in ("spike", "spike_above") and len(names) == 3:
            return names[2]
        if op in ("spike", "spike_above") and not self.o.spiking:
            return _FORMATS["primitive"].format(*names)
        return _FORMATS[op].format(*names)

    def result(self, step: Step, name: str, suffix: str = "") -> str:
        return self.name(step.result(name), suffix, step.leaves)

    # ---------------------------------------------------------------------------------------------------- arguments

    def _arguments(self, tensors: Sequence[str], name: str) -> Iterator[str]:
        graph = self.graph
        yield "@jit"
        yield f"def {name}("
        yield f"    {', '.join(tensors)},"
        for parameter in graph.parameters:
            numbers = f"number_{parameter}: tl.float64, channels_{parameter}: tl.int64, inner_{parameter}: tl.int64"
            yield f"    {numbers},"
        for state in graph.state_names:
            yield f"    start_{state}: tl.float64,"
        for k in range(len(self.literals)):
            yield f"    literal{k}: tl.float64,"
        yield "    shift: tl.float64, shape: tl.float64, scale: tl.float64, steps: tl.int64, stored: tl.int64,"
        constants = ", ".join(
            f"{word}: tl.constexpr" for word in ("SURROGATE", "DOUBLE", "CONSTANT", "ALIGNED", "BLOCK")
        )
        yield f"    size: tl.int64, {constants}"
        yield "):  # fmt: skip"

    def _start(self) -> Iterator[str]:
        yield "    R: tl.constexpr = tl.float64 if DOUBLE else tl.float32"
        yield "    size = aligned(size, ALIGNED)"
        yield "    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)"
        yield "    there = at < size"
        yield "    zero = tl.zeros([BLOCK], R)"
        yield "    negative = tl.cast(-1, R)"
        yield "    shift = tl.cast(shift, R)"
        yield "    stride = size * 0 if CONSTANT else size"
        for k in range(len(self.literals)):
            yield f"    literal{k} = tl.cast(literal{k}, R)"
        for name in self.graph.parameters:
            yield f"    if of_{name} is not None:"
            where = f"of_{name} + at // inner_{name} % channels_{name}"
            yield f"        n_{name} = tl.load({where}, mask=there, other=0)"
            yield "    else:"
            yield f"        n_{name} = tl.cast(number_{name}, R)"

    def _starts(self, indent: str) -> Iterator[str]:
        """The states before the first step."""
        for name in self.graph.state_names:
            yield f"{indent}if initial_{name} is not None:"
            yield f"{indent}    n_{name} = tl.load(initial_{name} + at, mask=there, other=0)"
            yield f"{indent}else:"
            yield f"{indent}    n_{name} = tl.where(there, tl.cast(start_{name}, R), zero)"

    def _loads(self, indent: str, active: str = "") -> Iterator[str]:
        mask = f"there & {active}" if active else "there"
        for name in self.graph.inputs:
            yield f"{indent}n_{name} = tl.load(in_{name} + at + t * stride, mask={mask}, other=0).to(R)"

    # ------------------------------------------------------------------------------------------------------ kernels

    def forward(self, step: Step) -> Iterator[str]:
        graph, readout = self.graph, READOUTS[self.o.readout]
        yield from self._arguments([*_read(self.o), *_written(self.o), "weights"], "forward")
        yield from self._start()
        yield from self._starts("    ")
        if readout:
            yield "    total = zero"
        yield "    for t in range(steps):"
        if graph.states:
            yield "        if saved is not None:"
            yield f"            kept = there & (t % {CHUNK} == 0) & (t > 0)"
            for k, name in enumerate(graph.state_names):
                where = f"saved + ({k} * stored + t // {CHUNK} - 1) * size + at"
                yield f"            tl.store({where}, n_{name}, mask=kept)"
        yield from self._loads("        ")
        yield from self.body(step, "        ")
        for name, _ in step.results:
            value = self.result(step, name)
            if name == "out0" and readout == "mean":
                yield f"        total = total + {value}"
            elif name == "out0" and readout:
                yield f"        total = total + tl.load(weights + t).to(R) * {value}"
            elif not name.startswith("next"):
                stored = f"tl.where(there, {value}, zero).to({name}.dtype.element_ty)"
                yield f"        tl.store({name} + at + t * size, {stored}, mask=there)"
        yield from self._next(step, "        ")
        if readout:
            total = "divided(total, zero + steps)" if readout == "mean" else "total"
            yield f"    tl.store(out0 + at, ({total}).to(out0.dtype.element_ty), mask=there)"
        for name in graph.state_names:
            yield f"    tl.store(last_{name} + at, n_{name}, mask=there)"

    def _next(self, step: Step, indent: str) -> Iterator[str]:
        """All at once: a new state may be another one's old value."""
        names = self.graph.state_names
        for k, name in enumerate(names):
            yield f"{indent}next_{name} = tl.where(there, {self.result(step, f'next{k}')}, zero)"
        for name in names:
            yield f"{indent}n_{name} = next_{name}"

    def backward(self, advance: Step, back: Step, span: int) -> Iterator[str]:
        graph, names = self.graph, self.graph.state_names
        given = [f"d_{name}" for name in _written(self.o)[:-1]]
        results = [f"d_{name}" for name in _read(self.o)]
        yield from self._arguments([*_read(self.o), "saved", "weights", *given, *results], "backward")
        yield from self._start()
        for name in names:
            yield f"    flow_{name} = zero"
            yield f"    if d_last_{name} is not None:"
            yield f"        flow_{name} = tl.load(d_last_{name} + at, mask=there, other=0)"
        for name in (*graph.parameters, *graph.inputs):
            yield f"    sum_{name} = zero"
        yield from self._readout_back()
        yield f"    spans = (steps + {span - 1}) // {span}"
        yield "    for past in range(spans):"
        yield f"        first = (spans - 1 - past) * {span}"
        yield f"        chunk = first // {CHUNK}"
        yield from self._starts("        ")
        for k, name in enumerate(names):
            where = f"saved + ({k} * stored + chunk - 1) * size + at"
            yield "        if saved is not None:"
            yield f"            kept = tl.load({where}, mask=there & (chunk > 0), other=0)"
            yield f"            n_{name} = tl.where(chunk > 0, kept, n_{name})"
        if span < CHUNK:
            yield f"        for t in range(chunk * {CHUNK}, first):"
            yield from self._loads("            ")
            yield from self.body(advance, "            ")
            yield from self._next(advance, "            ")
        for j in range(span):
            yield f"        t = first + {j}"
            yield f"        active{j} = t < steps"
            yield from self._loads("        ", f"active{j}")
            for name in (*graph.inputs, *names):
                yield f"        at{j}_{name} = n_{name}"
            if j < span - 1 and names:
                yield from self.body(advance, "        ")
                yield from self._next(advance, "        ")
        for j in reversed(range(span)):
            yield f"        t = first + {j}"
            yield f"        now = there & active{j}"
            yield from self._step_back(back, j)
        for name in graph.inputs:
            yield f"    if d_in_{name} is not None:"
            yield "        if CONSTANT:"
            yield f"            tl.store(d_in_{name} + at, sum_{name}.to(d_in_{name}.dtype.element_ty), mask=there)"
        for name in names:
            yield f"    if d_initial_{name} is not None:"
            yield f"        tl.store(d_initial_{name} + at, flow_{name}, mask=there)"
        for name in graph.parameters:
            yield f"    if d_of_{name} is not None:"
            yield f"        tl.store(d_of_{name} + at, sum_{name}, mask=there)"

    def _readout_back(self) -> Iterator[str]:
        readout = READOUTS[self.o.readout]
        if readout:
            yield "    read = zero"
            yield "    if d_out0 is not None:"
            yield "        read = tl.load(d_out0 + at, mask=there, other=0).to(R)"
            if readout == "mean":
                yield "        read = divided(read, zero + steps)"

    def _step_back(self, back: Step, j: int) -> Iterator[str]:
        """Step `j` of a span."""
        graph, readout, names = self.graph, READOUTS[self.o.readout], self.graph.state_names
        for name in (*graph.inputs, *names):
            yield f"        n_{name} = at{j}_{name}"
        for name, _ in self.o.step.results:
            if name == "out0" and readout == "mean":
                yield "        n_d_out0 = read"
            elif name == "out0" and readout:
                yield f"        n_d_out0 = tl.load(weights + t, mask=active{j}, other=0).to(R) * read"
            elif not name.startswith("next"):
                yield f"        n_d_{name} = zero"
                yield f"        if d_{name} is not None:"
                yield f"            n_d_{name} = tl.load(d_{name} + at + t * size, mask=now, other=0).to(R)"
        for k, name in enumerate(names):
            yield f"        n_d_next{k} = flow_{name}"
        yield from self.body(back, "        ")
        for name in graph.inputs:
            value = self.result(back, f"d_{name}")
            yield f"        if d_in_{name} is not None:"
            yield "            if CONSTANT:"
            yield f"                sum_{name} = tl.where(now, sum_{name} + {value}, sum_{name})"
            yield "            else:"
            stored = f"tl.where(there, {value}, zero).to(d_in_{name}.dtype.element_ty)"
            yield f"                tl.store(d_in_{name} + at + t * size, {stored}, mask=now)"
        for name in graph.parameters:
            value = self.result(back, f"d_{name}")
            yield f"        if d_of_{name} is not None:"
            yield f"            sum_{name} = tl.where(now, sum_{name} + {value}, sum_{name})"
        for name in names:
            yield f"        before_{name} = tl.where(now, {self.result(back, f'd_{name}')}, flow_{name})"
        for name in names:
            yield f"        flow_{name} = before_{name}"


def _read(o: Options) -> list[str]:
    """What the kernels call the tensors that a scan reads. A neuron's names come last: none is then another one's."""
    graph = o.graph
    found = [f"in_{name}" for name in graph.inputs] + [f"initial_{name}" for name in graph.state_names]
    return found + [f"of_{name}" for name in graph.parameters]


def _written(o: Options) -> list[str]:
    graph = o.graph
    found = [f"out{k}" for k in range(len(graph.outputs))] + [f"last_{name}" for name in graph.state_names]
    return [*found, *(f"record_{name}" for name in o.record), "saved"]
