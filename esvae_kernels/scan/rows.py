"""From a step to its row program: the words that the CPU's engine runs (csrc/cpu/program.h)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .. import native
from ..dynamics.graph import Graph, Node, Ref, Step
from ..dynamics.lower import lowered

_MASKED = {"spike": "le", "spike_above": "lt"}  # m >= threshold is threshold <= m


class Constants:
    """The literals of a program; one row each. 0.0 and -0.0 are two."""

    def __init__(self) -> None:
        self.values: list[float] = []
        self._at: dict[str, int] = {}

    def index(self, value: float) -> int:
        at = self._at.setdefault(repr(value), len(self.values))
        if at == len(self.values):
            self.values.append(value)
        return at


def program(
    graph: Graph, records: Sequence[str], adjoint: Step | None, smooth: bool, single: bool
) -> tuple[list[int], list[float]]:
    """The counts of kinds, then the sections, without what describes inputs and parameters, which is `words`'. And the
    literals. `adjoint`: of graph.step(records), to go backward. `single`: the states are of fp32."""
    constants = Constants()
    forward = graph.step(records if adjoint is None else ())
    parts = [forward] if adjoint is None else [forward, adjoint]
    sections = [_compiled(lowered(part) if single else part, smooth) for part in parts]
    for nodes, wanted in sections:  # all literals are known before rows are numbered
        for _, args in nodes:
            for arg in args:
                if isinstance(arg, float):
                    constants.index(arg)
        for _, ref in wanted:
            if isinstance(ref, float):
                constants.index(ref)
    counts = [len(graph.inputs), len(graph.states), len(graph.parameters), len(constants.values)]
    counts += [len(graph.outputs), len(records)]
    first = {leaf: k for k, leaf in enumerate(graph.leaves)}
    outs = [f"out{k}" for k in range(len(graph.outputs))]
    nexts = [f"next{k}" for k in range(len(graph.next))]
    results = [*outs, *(f"record_{name}" for name in records), *nexts]
    base = len(first) + len(constants.values)
    code: list[int] = []
    code += _section(*sections[0], first, {name: base + k for k, name in enumerate(results)}, constants, base, results)
    if adjoint is not None:
        given = first | {f"d_{name}": base + k for k, name in enumerate(results)}
        gradients = [f"d_{name}" for name in (*graph.inputs, *graph.state_names)]
        base_of_results = base + len(results)
        rows = {name: base_of_results + k for k, name in enumerate(gradients)}
        sums = {f"d_{name}": k for k, name in enumerate(graph.parameters)}
        code += _section(*sections[1], given, rows, constants, base_of_results, gradients, sums, len(first))
    return counts + code, constants.values


def _compiled(step: Step, smooth: bool) -> tuple[list[Node], list[tuple[str, Ref]]]:
    """The operations of the engine: spikes as comparisons, products and sums in one; each rounded as it was."""
    nodes: list[Node] = []
    at: dict[Ref, Ref] = {}
    for k, (op, args) in enumerate(step.nodes):
        args = tuple(at.get(a, a) for a in args)
        if op == "detach":
            at[f"t{k}"] = args[0]
        elif op in _MASKED and len(args) == 3:
            at[f"t{k}"] = args[2]
        elif op in _MASKED:
            at[f"t{k}"] = _add(nodes, "primitive", args) if smooth else _add(nodes, _MASKED[op], args[::-1])
        else:
            at[f"t{k}"] = _add(nodes, op, args)
    results = [(name, at.get(ref, ref)) for name, ref in step.results]
    for rewrite in (_differences, _fused):
        nodes, results = _without_unused(*rewrite(nodes, results))
    return nodes, results


def _add(nodes: list[Node], op: str, args: tuple[Ref, ...]) -> str:
    nodes.append(Node(op, args))
    return f"t{len(nodes) - 1}"


def _node(nodes: Sequence[Node], ref: Ref, op: str) -> Node | None:
    if isinstance(ref, str) and ref[:1] == "t" and ref[1:].isdigit() and nodes[int(ref[1:])].op == op:
        return nodes[int(ref[1:])]
    return None


def _differences(nodes: list[Node], results: list[tuple[str, Ref]]) -> tuple[list[Node], list[tuple[str, Ref]]]:
    """a + (-b) and -b + a are a - b, a - (-b) is a + b, bit for bit."""
    changed = []
    for op, args in nodes:
        if op in ("add", "sub"):
            (a, b), other = args, "sub" if op == "add" else "add"
            if negated := _node(nodes, b, "neg"):
                op, args = other, (a, negated.args[0])
            elif op == "add" and (negated := _node(nodes, a, "neg")):
                op, args = "sub", (b, negated.args[0])
        changed.append(Node(op, args))
    return changed, results


def _fused(nodes: list[Node], results: list[tuple[str, Ref]]) -> tuple[list[Node], list[tuple[str, Ref]]]:
    """A product that one sum alone needs is computed with it, and is rounded first as it was."""
    uses: dict[Ref, int] = {}
    for node in nodes:
        for arg in node.args:
            uses[arg] = uses.get(arg, 0) + 1
    for _, ref in results:
        uses[ref] = uses.get(ref, 0) + 1
    changed = []
    for op, args in nodes:
        if op in ("add", "sub"):
            a, b = args
            left, right = _node(nodes, a, "mul"), _node(nodes, b, "mul")
            if left and uses[a] == 1:
                op, args = ("mul_add" if op == "add" else "mul_sub"), (*left.args, b)
            elif right and uses[b] == 1:
                op, args = ("mul_add" if op == "add" else "sub_mul"), (*right.args, a)
        changed.append(Node(op, args))
    return changed, results


def _without_unused(nodes: list[Node], results: list[tuple[str, Ref]]) -> tuple[list[Node], list[tuple[str, Ref]]]:
    step = Step((), tuple(nodes), tuple(results)).pruned([name for name, _ in results])
    return list(step.nodes), list(step.results)


def _section(
    nodes: list[Node],
    results: list[tuple[str, Ref]],
    leaves: Mapping[str, int],
    rows: Mapping[str, int],
    constants: Constants,
    first_result: int,
    written: Sequence[str],
    sums: Mapping[str, int] | None = None,
    first_constant: int | None = None,
) -> list[int]:
    """`rows`: those of the results. `sums`: results that are added up over time, by the number of their parameter."""
    at: dict[Ref, int] = dict(leaves.items())
    literals = first_result - len(constants.values) if first_constant is None else first_constant
    first_scratch = first_result + len(written)
    wanted: dict[Ref, str] = {}
    for name, ref in results:
        if name in rows and isinstance(ref, str) and ref not in leaves:
            wanted.setdefault(ref, name)  # computed in its place; where it is wanted twice the others are copies
    last = {arg: k for k, node in enumerate(nodes) for arg in node.args}
    kept = {ref for name, ref in results}
    free: list[int] = []
    used = 0

    def row(ref: Ref) -> int:
        return literals + constants.index(ref) if isinstance(ref, float) else at[ref]

    code: list[int] = []
    count = 0

    def emit(op: str, dst: int, operands: Sequence[int]) -> None:
        nonlocal count
        code.extend((native.module.scan_ops[op], dst, *operands, *[0] * (3 - len(operands))))  # type: ignore[union-attr]
        count += 1

    for k, (op, args) in enumerate(nodes):
        operands = [row(a) for a in args]
        ref = f"t{k}"
        if ref in wanted:
            at[ref] = rows[wanted[ref]]
        else:
            if not free:
                free.append(first_scratch + used)
                used += 1
            at[ref] = free.pop()
        emit(op, at[ref], operands)
        for arg in set(args):
            if isinstance(arg, str) and last[arg] == k and arg not in kept and at[arg] >= first_scratch:
                free.append(at[arg])
        if ref not in last and ref not in kept:
            free.append(at[ref])
    for name, ref in results:
        if sums is not None and name in sums:
            emit("accumulate", sums[name], [row(ref)])
        elif wanted.get(ref) != name:
            emit("copy", rows[name], [row(ref)])
    return [used, count, *code]


def words(program: Sequence[int], constant: Sequence[bool], shapes: Sequence[tuple[int, int]]) -> list[int]:
    """A program with what it is told of its inputs (constant in time) and parameters (channels, inner)."""
    return [*program[:6], *map(int, constant), *(n for shape in shapes for n in shape), *program[6:]]
