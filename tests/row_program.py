"""Row programs written by hand, by names, and their calls (csrc/cpu/program.h has the rules)."""

from __future__ import annotations

import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from esvae_kernels import native

CHUNK = 16
READOUTS = {"none": 0, "rate": 1, "weights": 2}  # esvae::Readout
Instructions = Sequence[tuple[str, ...]]  # an op, its result, its operands


@dataclass
class RowProgram:
    """Names are of rows. `state'` is the state after the step, `d_name` a gradient; any other name is a scratch row."""

    forward: Instructions
    adjoint: Instructions = ()
    advance: Instructions | None = None  # None: what goes forward
    inputs: Sequence[str] = ("x",)
    states: Mapping[str, float] = field(default_factory=dict)
    parameters: Sequence[str] = ()
    constants: Mapping[str, float] = field(default_factory=dict)
    outs: Sequence[str] = ("s",)
    records: Sequence[str] = ()

    def section(self, instructions: Instructions, adjoint: bool) -> list[int]:
        known = [*self.inputs, *self.states, *self.parameters, *self.constants]
        after = [f"{s}'" for s in self.states]
        steps = [*self.outs, *self.records, *after]
        known += [f"d_{s}" for s in [*steps, *self.inputs, *self.states]] if adjoint else steps
        row = {name: k for k, name in enumerate(known)}
        parameter = {name: k for k, name in enumerate(self.parameters)}
        code: list[int] = []
        for op, result, *operands in instructions:
            places = [row[name] for name in operands] + [0] * (3 - len(operands))
            if op == "accumulate":
                code += [native.module.scan_ops[op], parameter[result], *places]
            else:
                code += [native.module.scan_ops[op], row.setdefault(result, len(row)), *places]
        return [len(row) - len(known), len(instructions), *code]

    def words(self, constant: Sequence[bool], shapes: Sequence[tuple[int, int]], backward: bool) -> list[int]:
        kinds = (self.inputs, self.states, self.parameters, self.constants, self.outs, self.records)
        head = [len(kind) for kind in kinds] + [int(c) for c in constant] + [n for shape in shapes for n in shape]
        if not backward:
            return head + self.section(self.forward, False)
        advance = self.forward if self.advance is None else self.advance
        return head + self.section(advance, False) + self.section(self.adjoint, True)


@dataclass
class Run:
    """A row program on tensors: inputs (T, size), or (size); parameters by name: a number, or (values, inner)."""

    program: RowProgram
    inputs: Sequence[Tensor]
    steps: int
    parameters: Mapping[str, Any] = field(default_factory=dict)
    initial: Mapping[str, Tensor] = field(default_factory=dict)
    out_dtype: torch.dtype | None = None
    readout: str = "none"
    weights: Sequence[float] = ()
    surrogate: tuple[int, float, float, float] = (3, 2.0, 1.0, 0.0)  # id (ATan), shape, scale, shift

    def __post_init__(self) -> None:
        p, x = self.program, self.inputs[0]
        self.size = x.shape[-1]
        self.state_dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        self.out_dtype = self.out_dtype or x.dtype
        self.constant = [t.dim() == 1 for t in self.inputs]
        given = [self.parameters[name] for name in p.parameters]
        self.values = [v[0].to(self.state_dtype) if isinstance(v, tuple) else None for v in given]
        shapes = [(v[0].numel(), v[1]) if isinstance(v, tuple) else (0, 0) for v in given]
        self.shapes = shapes
        numbers = [0.0 if isinstance(v, tuple) else float(v) for v in given]
        self.numbers = array.array("d", [*p.states.values(), *numbers, *p.constants.values()])
        self.saved = self.state(len(p.states), (self.steps - 1) // CHUNK, self.size)
        self.calls: dict[str, Any] = {}

    def state(self, *shape: int) -> Tensor:
        return torch.full(shape, float("nan"), dtype=self.state_dtype)

    def _call(self, name: str, tensors: Sequence[Tensor | None]) -> None:
        """The tensors' addresses; the arrays live until the next call of the same kind."""
        backward = name == "scan_backward"
        words = array.array("q", self.program.words(self.constant, self.shapes, backward))
        addresses = array.array("q", [0 if t is None else t.data_ptr() for t in tensors])
        weights = array.array("d", self.weights)
        surrogate, shape, scale, shift = self.surrogate
        values = {
            "x_dtype": native.DTYPES[self.inputs[0].dtype],
            "out_dtype": native.OUT_DTYPES[self.out_dtype],
            "size": self.size,
            "steps": self.steps,
            "readout": READOUTS[self.readout],
            "weights": weights.buffer_info()[0] if self.weights else 0,
            "program": words.buffer_info()[0],
            "numbers": self.numbers.buffer_info()[0],
            "tensors": addresses.buffer_info()[0],
            "surrogate": surrogate,
            "shape": shape,
            "scale": scale,
            "shift": shift,
        }
        work = self.size * self.steps
        call = native.Call(name, "cpu", self.inputs[0].device, work, values)
        self.calls[name] = (call, words, addresses, weights, tensors)
        call()

    def _shape(self, k: int) -> tuple[int, ...]:
        return (self.size,) if k == 0 and self.readout != "none" else (self.steps, self.size)

    def forward(self, record: bool = True) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
        """Outputs, last states, records, by name."""
        p = self.program
        outs = {o: torch.empty(self._shape(k), dtype=self.out_dtype) for k, o in enumerate(p.outs)}
        last = {s: self.state(self.size) for s in p.states}
        records = {r: self.state(self.steps, self.size) for r in p.records if record}
        initial = [self.initial.get(s) for s in p.states]
        self._call(
            "scan_forward",
            [
                *self.inputs,
                *initial,
                *self.values,
                *outs.values(),
                *last.values(),
                *map(records.get, p.records),
                self.saved,
            ],
        )
        return outs, last, records

    def backward(self, cotangents: Mapping[str, Tensor], wanted: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Gradients by name (of inputs, states, parameters: per neuron), from those of outs, states after, records."""
        p = self.program
        names = [*p.inputs, *p.states, *p.parameters]
        results = {x: torch.empty_like(t) for x, t in zip(p.inputs, self.inputs, strict=True)}
        results |= {name: self.state(self.size) for name in names[len(p.inputs) :]}
        results = {name: t for name, t in results.items() if wanted is None or name in wanted}
        given = [cotangents.get(name) for name in [*p.outs, *(f"{s}'" for s in p.states), *p.records]]
        initial = [self.initial.get(s) for s in p.states]
        self._call(
            "scan_backward",
            [*self.inputs, *initial, *self.values, self.saved, *given, *map(results.get, names)],
        )
        return results


# m = decay v + x; s = m >= threshold + jump a; v' = m (1 - s); a' = decay_a a + s.
_ALIF_STEP = [
    ("mul_add", "m", "decay", "v", "x"),
    ("mul_add", "level", "jump", "a", "threshold"),
    ("le", "s", "level", "m"),
    ("not", "rest", "s"),
    ("mul", "v'", "m", "rest"),
]
# Back: e = ds slope with ds = d_s + d_a' - m d_v'; d_x = dm = e + (1 - s) d_v'.
ALIF = RowProgram(
    forward=[*_ALIF_STEP, ("mul_add", "a'", "decay_a", "a", "s")],
    adjoint=[
        *_ALIF_STEP[:4],
        ("slope", "k", "m", "level"),
        ("add", "e", "d_s", "d_a'"),
        ("sub_mul", "e", "m", "d_v'", "e"),
        ("mul", "e", "e", "k"),
        ("mul_add", "d_x", "rest", "d_v'", "e"),
        ("add", "d_x", "d_x", "d_m"),
        ("mul", "d_v", "decay", "d_x"),
        ("mul", "f", "jump", "e"),
        ("mul_sub", "d_a", "decay_a", "d_a'", "f"),
        ("mul", "of_decay", "v", "d_x"),
        ("accumulate", "decay", "of_decay"),
        ("neg", "of_threshold", "e"),
        ("accumulate", "threshold", "of_threshold"),
        ("mul", "of_jump", "a", "of_threshold"),
        ("accumulate", "jump", "of_jump"),
        ("mul", "of_decay_a", "a", "d_a'"),
        ("accumulate", "decay_a", "of_decay_a"),
    ],
    states={"v": 0.0, "a": 0.0},
    parameters=("decay", "threshold", "jump", "decay_a"),
    records=("m",),
)

_LIF_STEP = [("mul_add", "m", "decay", "v", "x"), ("le", "s", "threshold", "m"), ("not", "rest", "s")]
LIF = RowProgram(
    forward=[*_LIF_STEP, ("mul", "v'", "m", "rest")],
    adjoint=[
        *_LIF_STEP,
        ("slope", "k", "m", "threshold"),
        ("sub_mul", "e", "m", "d_v'", "d_s"),
        ("mul", "e", "e", "k"),
        ("mul_add", "d_x", "rest", "d_v'", "e"),
        ("mul", "d_v", "decay", "d_x"),
    ],
    states={"v": 0.0},
    parameters=("decay", "threshold"),
)
