"""A neuron over all time steps in PyTorch: the specification of a scan."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..dynamics.graph import evaluate
from ..dynamics.in_torch import operations
from ..ops.lif.reference import READOUTS, read_out, state_dtype
from .options import Options

CHUNK = 16


def scan(
    inputs: Sequence[Tensor],
    states: Sequence[Tensor | None],
    parameters: Sequence[Tensor | None],
    numbers: Sequence[float],
    weights: Tensor | None,
    options: Options,
    steps: int,
    every: list[tuple[Tensor, ...]] | None = None,
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Outputs (T, N, *), or with a readout the first (N, *); the last states (N, *); records (T, N, *). Everything is
    computed in the states' type. `every`: takes the states before each step."""
    graph, like = options.graph, inputs[0]
    dtype, device = state_dtype(like.dtype), like.device
    inner = like.shape if options.constant else like.shape[1:]

    def literal(value: float) -> Tensor:
        return torch.tensor(value, dtype=dtype, device=device)

    given = {
        name: literal(number) if value is None else _spread(value.to(dtype), inner)
        for name, value, number in zip(graph.parameters, parameters, numbers, strict=True)
    }
    held = [
        literal(initial).expand(inner) if state is None and not isinstance(initial, str)
        else given[str(initial)].expand(inner) if state is None else state
        for state, (_, initial) in zip(states, graph.states, strict=True)
    ]  # fmt: skip
    rows = [[x.to(dtype)] * steps if options.constant else x.to(dtype).unbind(0) for x in inputs]
    ops: Mapping[str, Callable[..., Any]] = operations(options.surrogate_object)
    outputs: list[list[Tensor]] = [[] for _ in graph.outputs]
    records: list[list[Tensor]] = [[] for _ in options.record]
    for t in range(steps):
        if every is not None:
            every.append(tuple(held))
        leaves = given | {name: row[t] for name, row in zip(graph.inputs, rows, strict=True)}
        leaves |= dict(zip(graph.state_names, held, strict=True))
        found = evaluate(options.step, leaves, ops, literal)
        held = [found[f"next{k}"].expand(inner) for k in range(len(held))]
        for k, output in enumerate(outputs):
            output.append(found[f"out{k}"].expand(inner))
        for name, record in zip(options.record, records, strict=True):
            record.append(found[f"record_{name}"].expand(inner))
    results = [torch.stack(output) for output in outputs]
    if READOUTS[options.readout] is not None:
        results[0] = read_out(outputs[0], weights, READOUTS[options.readout])
    return [result.to(options.dtype) for result in results], held, [torch.stack(record) for record in records]


def _spread(value: Tensor, inner: Sequence[int]) -> Tensor:
    """One element, one per channel, or one per neuron, flat, so that it broadcasts with (N, *)."""
    if value.numel() == 1:
        return value.reshape(())
    channels = inner[1] if len(inner) > 1 else 1
    return value.reshape((-1, *(1,) * (len(inner) - 2)) if value.numel() == channels else tuple(inner[1:]))
