"""The raw ops of a scan, one per direction for every neuron there is, and their autograd function."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import backends
from ..library import Autograd, autograd_of, differentiate, differentiate_twice, eager, learning, register
from ..ops.lif.reference import COUNTED, READOUTS
from . import reference
from .options import Options, decoded
from .plan import Plan, plan_of

_GIVEN = (
    "str neuron, Tensor[] inputs, Tensor?[] states, Tensor?[] parameters, float[] numbers, Tensor? weights,"
    " Tensor? shape"
)
_Maybe = Sequence[Tensor | None]


def _with_shape(o: Options, shape: Tensor | None) -> Options:
    """With the surrogate's shape parameter, where that is a tensor."""
    if shape is None:
        return o
    value = float(shape)
    if not 0 < value < math.inf:
        raise ValueError(f"surrogate: got {value} in the tensor of its shape parameter, accepted is a number above 0")
    return o._replace(shape=value)


def _scan_fake(
    text: str,
    inputs: Sequence[Tensor],
    states: _Maybe,
    parameters: _Maybe,
    numbers: Sequence[float],
    weights: Tensor | None,
    shape: Tensor | None,
    steps: int,
    saved_rows: int,
) -> list[Tensor]:
    plan = Plan(inputs[0], decoded(text), steps)
    plan.check(inputs, states, parameters, numbers, weights)
    plan.check_saved(None, saved_rows)
    return plan.outputs(saved_rows)


def _scan(
    text: str,
    inputs: Sequence[Tensor],
    states: _Maybe,
    parameters: _Maybe,
    numbers: Sequence[float],
    weights: Tensor | None,
    shape: Tensor | None,
    steps: int,
    saved_rows: int,
) -> list[Tensor]:
    plan = plan_of(inputs[0], text, steps)
    plan.check(inputs, states, parameters, numbers, weights)
    plan.check_saved(None, saved_rows)
    results = plan.outputs(saved_rows)
    options, saved = _with_shape(plan.options, shape), results[-1]
    backend, room = backends.room(__package__, plan.device)
    if room is None or not _runs(backend, options, steps):
        every: list[tuple[Tensor, ...]] = []
        found = reference.scan(inputs, states, parameters, numbers, weights, options, steps, every)
        for result, value in zip(results, (t for kind in found for t in kind), strict=False):
            result.copy_(value)
        for k, start in enumerate(every[reference.CHUNK :: reference.CHUNK] if saved_rows else ()):
            for j, state in enumerate(start):
                saved[j, k].copy_(state)
        return results
    dense = plan.dense
    room.scan(
        plan,
        [dense(x) for x in inputs],
        [dense(state) for state in states],
        [plan.in_memory(parameter) for parameter in parameters],
        numbers,
        weights,
        None if shape is None else options.shape,
        results if saved_rows else [*results[:-1], None],
    )
    return results


def _runs(backend: str, o: Options, steps: int) -> bool:
    """Whether it has kernels for equations; Triton's count spikes in the state's type."""
    counts_on = READOUTS[o.readout] == "mean" and steps > COUNTED
    return backend == "cpu" or (backend == "triton" and not counts_on)


def _kept_for_backward(gradients: Sequence[Tensor | None], plan: Plan, parameters: _Maybe, x: Tensor) -> list[Tensor]:
    """Of inputs and states as they are, of parameters summed; of no elements where nobody wants it."""
    first = len(gradients) - len(parameters)
    found = []
    for k, gradient in enumerate(gradients):
        if gradient is None:
            found.append(x.new_empty(0, dtype=x.dtype if k < len(plan.options.graph.inputs) else torch.float64))
        else:
            found.append(gradient if k < first else plan.summed(gradient, parameters[k - first]))
    return found


def _scan_backward_fake(
    text: str,
    inputs: Sequence[Tensor],
    states: _Maybe,
    parameters: _Maybe,
    numbers: Sequence[float],
    weights: Tensor | None,
    shape: Tensor | None,
    saved: Tensor,
    douts: _Maybe,
    dlast: _Maybe,
    drecords: _Maybe,
    wanted: Sequence[bool],
    steps: int,
) -> list[Tensor]:
    plan = Plan(inputs[0], decoded(text), steps)
    plan.check(inputs, states, parameters, numbers, weights)
    plan.check_saved(saved)
    plan.check_cotangents(douts, dlast, drecords)
    return _kept_for_backward(plan.gradients(wanted), plan, parameters, inputs[0])


def _scan_backward(
    text: str,
    inputs: Sequence[Tensor],
    states: _Maybe,
    parameters: _Maybe,
    numbers: Sequence[float],
    weights: Tensor | None,
    shape: Tensor | None,
    saved: Tensor,
    douts: _Maybe,
    dlast: _Maybe,
    drecords: _Maybe,
    wanted: Sequence[bool],
    steps: int,
) -> list[Tensor]:
    plan = plan_of(inputs[0], text, steps)
    plan.check(inputs, states, parameters, numbers, weights)
    plan.check_cotangents(douts, dlast, drecords)
    options, cotangents = _with_shape(plan.options, shape), [*douts, *dlast, *drecords]
    gradients = plan.gradients(wanted)
    backend, room = backends.room(__package__, plan.device)
    if room is None or not _runs(backend, options, steps):
        given = [*inputs, *states, *_elements(parameters, numbers, plan)]
        found = differentiate(_reference(options, steps, len(inputs), len(states), numbers, weights), given, cotangents)
        first = len(inputs) + len(states)
        sums = [f if f is None or not w else f.double() for f, w in zip(found[first:], wanted[first:], strict=True)]
        results = _kept_for_backward(gradients, plan, parameters, inputs[0])
        for result, value in zip(results, [*found[:first], *sums], strict=True):
            if result.numel():
                result.zero_() if value is None else result.copy_(value)
        return results
    plan.check_saved(saved)
    dense = plan.dense
    room.scan_backward(
        plan,
        [dense(x) for x in inputs],
        [dense(state) for state in states],
        [plan.in_memory(parameter) for parameter in parameters],
        numbers,
        weights,
        None if shape is None else options.shape,
        _dense_rows(saved, plan),
        [dense(c) for c in cotangents],
        gradients,
    )
    return _kept_for_backward(gradients, plan, parameters, inputs[0])


def _dense_rows(saved: Tensor, plan: Plan) -> Tensor | None:
    return plan.dense(saved) if saved.shape[1] else None


def _elements(parameters: _Maybe, numbers: Sequence[float], plan: Plan) -> list[Tensor]:
    """Numbers as tensors of one element, so that they have a gradient."""
    return [
        torch.full((1,), number, dtype=plan.state_dtype, device=plan.device) if value is None else value
        for value, number in zip(parameters, numbers, strict=True)
    ]


def _reference(
    options: Options, steps: int, inputs: int, states: int, numbers: Sequence[float], weights: Tensor | None
) -> Callable[..., list[Tensor]]:
    """The specification as a function of inputs, states and parameters alone."""

    def run(*tensors: Tensor | None) -> list[Tensor]:
        xs, held, parameters = tensors[:inputs], tensors[inputs : inputs + states], tensors[inputs + states :]
        outs, last, records = reference.scan(xs, held, parameters, numbers, weights, options, steps)  # type: ignore[arg-type]
        return [*outs, *last, *records]

    return run


# -------------------------------------------------------------------------------------------------------- vmap rules


def _picked(value: Any, dim: Any, k: int) -> Any:
    if isinstance(value, (list, tuple)) and isinstance(dim, (list, tuple)):
        return [_picked(v, d, k) for v, d in zip(value, dim, strict=True)]
    return value if dim is None else value.select(dim, k)


def _by_sample(op: Callable[..., list[Tensor]]) -> Callable[..., tuple[list[Tensor], list[int]]]:
    """The vmap rule that calls the op for each sample."""

    def rule(info: Any, dims: Sequence[Any], *arguments: Any) -> tuple[list[Tensor], list[int]]:
        calls = [op(*(_picked(a, d, k) for a, d in zip(arguments, dims, strict=True))) for k in range(info.batch_size)]
        results = [torch.stack(tensors) for tensors in zip(*calls, strict=True)]
        return results, [0] * len(results)

    return rule


scan_fwd: Callable[..., list[Tensor]] = register(
    f"scan_fwd({_GIVEN}, SymInt steps, SymInt saved_rows) -> Tensor[]",
    _scan,
    _scan_fake,
    lambda *call: _by_sample(scan_fwd)(*call),
)
scan_bwd: Callable[..., list[Tensor]] = register(
    f"scan_bwd({_GIVEN}, Tensor saved, Tensor?[] douts, Tensor?[] dlast, Tensor?[] drecords, bool[] wanted,"
    " SymInt steps) -> Tensor[]",
    _scan_backward,
    _scan_backward_fake,
    lambda *call: _by_sample(scan_bwd)(*call),
)


# ------------------------------------------------------------------------------------------------ autograd functions


class Call(NamedTuple):
    """What of a call is no tensor."""

    options: Options
    text: str
    numbers: tuple[float, ...]  # of the parameters
    steps: int

    counts: tuple[int, int, int]  # of inputs; and states; and parameters

    def kinds(self, tensors: Sequence[Any]) -> tuple[list[Any], ...]:
        """(inputs, states, parameters, [weights, shape]) of the tensors of an autograd function."""
        a, b, c = self.counts
        return list(tensors[:a]), list(tensors[a:b]), list(tensors[b:c]), list(tensors[c : c + 2])


class _Scan(torch.autograd.Function):
    """(call, saved_rows, inputs, states, parameters, readout weights, the surrogate's shape) -> what scan_fwd returns.
    Flat: autograd does not see tensors in a list."""

    generate_vmap_rule = True

    @staticmethod
    def forward(call: Call, saved_rows: int, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        inputs, states, parameters, (weights, shape) = call.kinds(tensors)
        given = (inputs, states, parameters, list(call.numbers), weights, shape)
        return tuple(scan_fwd(call.text, *given, call.steps, saved_rows))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.call, _, *tensors = inputs
        count = len(ctx.call.options.graph.outputs)
        constant = [] if ctx.call.options.dtype.is_floating_point else list(output[:count])
        ctx.mark_non_differentiable(*constant, output[-1])
        ctx.save_for_backward(*tensors, output[-1])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        *tensors, saved = ctx.saved_tensors
        nothing = (None,) * (2 + len(tensors))
        if all(c is None for c in cotangents[:-1]):
            return nothing
        call: Call = ctx.call
        wanted = tuple(n and t is not None for n, t in zip(ctx.needs_input_grad[2:-2], tensors, strict=False))
        backward: Callable[..., tuple[Tensor, ...]]
        backward = _ScanBackward.apply if torch.is_grad_enabled() else _ScanBackward.forward
        found = backward(call, wanted, saved, *tensors, *cotangents[:-1])
        gradients = [
            g.to(t.dtype) if w else None for g, w, t in zip(found, wanted, tensors, strict=False)
        ]  # of parameters they are fp64
        return None, None, *gradients, None, None


class _ScanBackward(torch.autograd.Function):
    """The backward as a function of its own, so that it can be differentiated again: through the reference."""

    generate_vmap_rule = True

    @staticmethod
    def forward(call: Call, wanted: tuple[bool, ...], saved: Tensor, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        graph = call.options.graph
        count = len(graph.leaves) + 2
        inputs, states, parameters, (weights, shape) = call.kinds(tensors)
        cotangents = list(tensors[count:])
        outs, states_there = len(graph.outputs), len(graph.states)
        kinds = cotangents[:outs], cotangents[outs : outs + states_there], cotangents[outs + states_there :]
        given = (inputs, states, parameters, list(call.numbers), weights, shape, saved)
        return tuple(scan_bwd(call.text, *given, *kinds, list(wanted), call.steps))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.call, ctx.wanted, _, *tensors = inputs
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *seconds: Tensor | None) -> tuple[Tensor | None, ...]:
        call: Call = ctx.call
        graph, count = call.options.graph, len(call.options.graph.leaves)
        tensors = ctx.saved_tensors
        given, (weights, shape), cotangents = tensors[:count], tensors[count : count + 2], tensors[count + 2 :]
        there = [
            s.to(t.dtype) if w and s is not None and t is not None else None
            for s, w, t in zip(seconds, ctx.wanted, given, strict=True)
        ]
        options = _with_shape(call.options, shape)
        run = _reference(options, call.steps, len(graph.inputs), len(graph.states), call.numbers, weights)
        first, second = differentiate_twice(run, given, cotangents, there)
        return None, None, None, *first, None, None, *second


_EagerScan = eager(_Scan)


def scan_apply(call: Call, tensors: Sequence[Tensor | None], rows: int) -> tuple[Tensor, ...]:
    """Outputs, last states and records. `tensors`: inputs, states, parameters, readout weights, the surrogate's
    shape."""
    mode = autograd_of(*tensors)
    if mode is Autograd.FORWARD:
        inputs, states, parameters, (weights, shape) = call.kinds(tensors)
        options = _with_shape(call.options, shape)
        found = reference.scan(inputs, states, parameters, call.numbers, weights, options, call.steps)
        return tuple(tensor for kind in found for tensor in kind)
    if mode is Autograd.NONE or (torch.compiler.is_compiling() and not learning(*tensors)):
        # Without a gradient torch.compile counts a function's arguments, to which *tensors is one.
        return _Scan.forward(call, 0, *tensors)[:-1]
    function = _EagerScan if mode is Autograd.EAGER else _Scan
    apply: Callable[..., tuple[Tensor, ...]] = function.apply
    return apply(call, rows if torch.is_grad_enabled() else 0, *tensors)[:-1]
