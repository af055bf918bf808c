"""Calls the CPU's engine of row programs (csrc/cpu/scan.cpp)."""

from __future__ import annotations

import array
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import native
from . import rows
from .plan import Plan

Shape = tuple[int, int]


def _shape_of(parameter: Tensor | None, plan: Plan) -> Shape:
    """(channels, inner): neuron i has element (i / inner) % channels."""
    if parameter is None:
        return 0, 0
    count = parameter.numel()
    if count == 1:
        return 1, max(plan.size(), 1)
    return count, 1 if plan.channels_last else max(plan.per_sample() // count, 1)


class _Program:
    """The words and numbers of a plan's calls in one direction, kept where the module can read them."""

    def __init__(self, plan: Plan, shapes: Sequence[Shape], numbers: Sequence[float], backward: bool) -> None:
        o = plan.options
        single, adjoint = plan.state_dtype == torch.float32, o.adjoint if backward else None
        code, literals = rows.program(o.graph, o.record, adjoint, not o.spiking, single)
        constant = [o.constant] * len(o.graph.inputs)
        self.words = array.array("q", rows.words(code, constant, shapes))
        # A state whose initial value is a parameter is always given as a tensor.
        initial = [0.0 if isinstance(value, str) else value for _, value in o.graph.states]
        self.numbers = array.array("d", [*initial, *numbers, *literals])
        values = {
            "x_dtype": native.DTYPES[plan.x_dtype],
            "out_dtype": native.OUT_DTYPES[o.dtype],
            "size": plan.size(),
            "steps": plan.steps,
            "readout": o.readout,
            "program": self.words.buffer_info()[0],
            "numbers": self.numbers.buffer_info()[0],
            "tensors": 0,
            "surrogate": o.surrogate,
            "shape": o.shape,
            "scale": o.scale,
            "shift": o.shift,
        }
        name = "scan_backward" if backward else "scan_forward"
        self._call = native.Call(name, "cpu", plan.device, plan.size() * plan.steps, values, ("weights",))

    def __call__(self, tensors: Sequence[Tensor | None], weights: Tensor | None, shape: float | None) -> None:
        addresses = array.array("q", [0 if tensor is None else tensor.data_ptr() for tensor in tensors])
        values: dict[str, Any] = {"tensors": addresses.buffer_info()[0]}
        if shape is not None:
            values["shape"] = shape
        self._call((weights,), values)


def _program(plan: Plan, parameters: Sequence[Tensor | None], numbers: Sequence[float], backward: bool) -> _Program:
    shapes = tuple([_shape_of(parameter, plan) for parameter in parameters])
    key = backward, shapes, array.array("d", numbers).tobytes()  # as bytes: 0.0 and -0.0 are equal
    program: _Program | None = plan.kept.get(key)
    if program is None:
        if len(plan.kept) >= 64:  # a schedule
            plan.kept.clear()
        program = plan.kept[key] = _Program(plan, shapes, numbers, backward)
    return program


def scan(
    plan: Plan,
    inputs: Sequence[Tensor],
    states: Sequence[Tensor | None],
    parameters: Sequence[Tensor | None],
    numbers: Sequence[float],
    weights: Tensor | None,
    shape: float | None,
    results: Sequence[Tensor | None],
) -> None:
    """Fills `results`: outputs, last states, records and, where it is there, what is saved for the backward."""
    if plan.size():
        program = _program(plan, parameters, numbers, False)
        program([*inputs, *states, *parameters, *results], weights, shape)


def scan_backward(
    plan: Plan,
    inputs: Sequence[Tensor],
    states: Sequence[Tensor | None],
    parameters: Sequence[Tensor | None],
    numbers: Sequence[float],
    weights: Tensor | None,
    shape: float | None,
    saved: Tensor | None,
    cotangents: Sequence[Tensor | None],
    gradients: Sequence[Tensor | None],
) -> None:
    """Fills `gradients` of inputs, states and, per neuron, parameters, where they are there. `cotangents`: of outputs,
    last states and records."""
    if plan.size():
        program = _program(plan, parameters, numbers, True)
        program([*inputs, *states, *parameters, saved, *cotangents, *gradients], weights, shape)
    else:
        for gradient in gradients:
            if gradient is not None:
                gradient.zero_()
