"""`lif`: the schema, the raw ops, their autograd function and the public function."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, Required, TypeAlias, TypedDict, TypeVar, Unpack, cast, overload

import torch
from torch import Tensor

from ... import backends, check
from ...library import (
    Autograd,
    autograd_of,
    differentiate,
    differentiate_twice,
    eager,
    learning,
    one_by_one,
    register,
)
from ...reset import Delayed, Hard, Reset, Soft, name_of
from ...surrogate import ATan, Surrogate
from . import reference
from .plan import KEPT, Plan, neuron_of, plan_of, with_shape
from .reference import AFFINE, CHUNK, PARAMETERS, READOUTS, RESETS, Neuron, Wanted, state_dtype

# x (T, N, *), or (N, *) of a constant neuron; v, i (N, *); parameters (2 or 6, 1 or C or one per neuron); weights (T);
# shape: the surrogate's shape parameter where it is a tensor; neuron: Neuron.text().
_INPUTS = "Tensor x, Tensor? v, Tensor? i, Tensor? parameters, Tensor? weights, Tensor? shape"
_OPTIONS = "str neuron, SymInt steps"
_COTANGENTS = "Tensor? dout, Tensor? dv, Tensor? di, Tensor? dmembrane"
_WANTED = "bool want_x, bool want_v, bool want_i, bool want_weights, int want_parameters"

_Want: TypeAlias = tuple[bool, bool, bool, bool, int]  # the fields of Wanted
_There = TypeVar("_There", Tensor, Tensor | None)


def stored_rows(steps: int) -> int:
    """Rows of potentials (and as many of currents) that a forward of so many steps keeps for its backward; for a
    symbolic number two more at most, so that what is compiled holds for all lengths: a size of 0 or 1 would not."""
    return (steps - 1) // CHUNK if _is_number(steps) else (steps + 2 * CHUNK - 1) // CHUNK


def _is_number(steps: int) -> bool:
    """Whether it is no symbol; to torch.compile a symbol's type is int."""
    if torch.compiler.is_compiling():
        from torch.fx.experimental.symbolic_shapes import has_static_value  # imports sympy, for half a second

        return has_static_value(steps)
    return type(steps) is int


def _lif_fake(
    x: Tensor,
    v: Tensor | None,
    i: Tensor | None,
    parameters: Tensor | None,
    weights: Tensor | None,
    shape: Tensor | None,
    text: str,
    steps: int,
    saved_rows: int,
) -> tuple[Tensor, ...]:
    plan = Plan(x, neuron_of(text, steps, None))
    plan.check(v, i, parameters, weights)
    plan.check_rows(saved_rows)
    return cast("tuple[Tensor, ...]", plan.outputs(saved_rows, True))


def _lif(*arguments: Any) -> tuple[Tensor, ...]:
    return cast("tuple[Tensor, ...]", _lif_there(*arguments, every=True))  # type: ignore[misc]


def _lif_there(
    x: Tensor,
    v: Tensor | None,
    i: Tensor | None,
    parameters: Tensor | None,
    weights: Tensor | None,
    shape: Tensor | None,
    text: str,
    steps: int,
    saved_rows: int,
    every: bool = False,
) -> tuple[Tensor | None, ...]:
    """What `lif_fwd` returns; without `every`, None is what has no elements."""
    plan = plan_of(x, text, steps, shape)
    plan.check(v, i, parameters, weights)
    plan.check_rows(saved_rows)
    results = plan.outputs(saved_rows, every)
    backend, room = backends.room(__package__, plan.device)
    if room is None:
        states: list[tuple[Tensor, Tensor | None]] = []
        found = reference.lif(x, v, i, parameters, weights, plan.p, states)
        starts = states[CHUNK - 1 : -1 : CHUNK] if saved_rows else []  # the backward may run on another backend
        for result, value in zip(results, found, strict=False):
            if value is not None and result is not None:
                result.copy_(value)
        for k, potentials in enumerate(zip(*starts, strict=True)):
            if potentials[0] is not None:
                kept = cast("Tensor", results[-1])
                kept[k * len(starts) : (k + 1) * len(starts)].copy_(torch.stack(potentials))
    else:
        dense = plan.dense
        room.lif(backend, plan, dense(x), dense(v), dense(i), plan.in_memory(parameters), weights, *results)
    return results


def _lif_backward_fake(
    x: Tensor,
    v: Tensor | None,
    i: Tensor | None,
    parameters: Tensor | None,
    weights: Tensor | None,
    shape: Tensor | None,
    saved: Tensor,
    dout: Tensor | None,
    dv: Tensor | None,
    di: Tensor | None,
    dmembrane: Tensor | None,
    center_of_x: Tensor | None,
    text: str,
    steps: int,
    *want: *_Want,
) -> tuple[Tensor, ...]:
    plan = Plan(x, neuron_of(text, steps, None))
    plan.check(v, i, parameters, weights)
    plan.check_saved(saved)
    plan.check_cotangents(dout, dv, di, dmembrane)
    return _gradients(plan, x, parameters, Wanted(*want))


def _gradients(plan: Plan, x: Tensor, parameters: Tensor | None, wanted: Wanted) -> tuple[Tensor, ...]:
    return *plan.gradients(wanted, True), *_sums(plan, x, parameters, wanted)  # type: ignore[return-value]


def _sums(plan: Plan, x: Tensor, parameters: Tensor | None, wanted: Wanted) -> tuple[Tensor, Tensor]:
    sums = (len(PARAMETERS), 1) if parameters is None else parameters.shape
    return (
        x.new_empty((sums[0], sums[1] if wanted.parameters else 0), dtype=torch.float64),
        x.new_empty(plan.p.steps if wanted.weights else 0, dtype=torch.float64),
    )


def _lif_backward(*arguments: Any) -> tuple[Tensor, ...]:
    return cast("tuple[Tensor, ...]", _lif_backward_there(*arguments, every=True))


def _lif_backward_there(
    x: Tensor,
    v: Tensor | None,
    i: Tensor | None,
    parameters: Tensor | None,
    weights: Tensor | None,
    shape: Tensor | None,
    saved: Tensor | None,
    dout: Tensor | None,
    dv: Tensor | None,
    di: Tensor | None,
    dmembrane: Tensor | None,
    center_of_x: Tensor | None,
    text: str,
    steps: int,
    *want: *_Want,
    every: bool = False,
) -> tuple[Tensor | None, ...]:
    """What `lif_bwd` returns; without `every`, None may be what has no elements."""
    plan, wanted = plan_of(x, text, steps, shape), Wanted(*want)
    plan.check(v, i, parameters, weights)
    plan.check_cotangents(dout, dv, di, dmembrane)
    backend, room = backends.room(__package__, plan.device)
    if room is None:
        cotangents = dout, dv, di, dmembrane
        return _reference_backward(plan, (x, v, i, parameters, weights), cotangents, center_of_x, wanted)
    plan.check_saved(saved)
    if center_of_x is not None:
        center_of_x = plan.in_memory(center_of_x.unsqueeze(0))
    dense, parameters = plan.dense, plan.in_memory(parameters)
    inputs = dense(saved), dense(dout), dense(dv), dense(di), dense(dmembrane), center_of_x
    gradients = plan.gradients(wanted, every)
    given = dense(x), dense(v), dense(i), parameters, weights
    dparameters, dweights = room.lif_backward(backend, plan, *given, *inputs, wanted, *gradients)
    if every and dparameters is None:  # neither is wanted
        dparameters, dweights = _sums(plan, x, parameters, wanted)
    if wanted.parameters:
        dparameters = plan.in_order(dparameters)
    return *gradients, dparameters, dweights


def _reference_backward(
    plan: Plan,
    inputs: tuple[Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None],
    cotangents: Sequence[Tensor | None],
    center_of_x: Tensor | None,
    wanted: Wanted,
) -> tuple[Tensor, ...]:
    x, v, i, parameters, weights = inputs
    start = torch.zeros(plan.inner, dtype=plan.state_dtype, device=x.device)
    inputs = (x, start if v is None else v, start if i is None else i, parameters, weights)
    found = differentiate(lambda x, v, i, a, w: reference.lif(x, v, i, a, w, plan.p), inputs, cotangents)
    empty = _gradients(plan, x, parameters, wanted)
    results = [e if f is None or not e.numel() else e.copy_(f) for e, f in zip(empty, found, strict=True)]
    if center_of_x is not None:
        gain, bias = results[3][AFFINE if len(results[3]) == len(PARAMETERS) else slice(None)]
        gain -= center_of_x * bias
    return tuple(results)


# -------------------------------------------------------------------------------------------------------- vmap rules


def _fold(tensor: _There, dim: int | None, size: int, at: int) -> _There:
    """The vmapped axis moved into the batch axis `at`: neurons are independent of each other."""
    if tensor is None:
        return None
    tensor = tensor.unsqueeze(at).expand(*tensor.shape[:at], size, *tensor.shape[at:]) if dim is None else tensor
    tensor = tensor if dim is None else tensor.movedim(dim, at)
    return tensor.flatten(at, at + 1) if tensor.dim() > at + 1 else tensor


def _unfolded(
    tensors: Sequence[Tensor], at: Sequence[int | None], size: int, inner: tuple[int, ...]
) -> tuple[Tensor, ...]:
    """`_fold` undone; None: a tensor that has no elements."""
    return tuple(
        tensor if a is None else tensor.reshape(*tensor.shape[:a], size, *inner)
        for tensor, a in zip(tensors, at, strict=True)
    )


def _inner(x: Tensor, dim: int | None, time: int) -> tuple[int, ...]:
    shape = list(x.shape)
    if dim is not None:
        del shape[dim]
    return tuple(shape[time:])


def _lif_vmap(
    info: Any,
    dims: Sequence[int | None],
    x: Tensor,
    v: Tensor | None,
    i: Tensor | None,
    parameters: Tensor | None,
    weights: Tensor | None,
    shape: Tensor | None,
    text: str,
    steps: int,
    saved_rows: int,
) -> tuple[object, object]:
    if any(dim is not None for dim in dims[3:6]):
        return one_by_one(lif_fwd, info, dims, x, v, i, parameters, weights, shape, text, steps, saved_rows)
    p = neuron_of(text, steps, None)
    size, time = info.batch_size, 0 if p.constant else 1
    inner = _inner(x, dims[0], time)
    x, v, i = _fold(x, dims[0], size, time), _fold(v, dims[1], size, 0), _fold(i, dims[2], size, 0)
    results = lif_fwd(x, v, i, parameters, weights, shape, text, steps, saved_rows)
    at = (1 if READOUTS[p.readout] is None else 0, 0, 0 if p.synaptic else None, 1, 1)
    return _unfolded(results, at, size, inner), at


def _lif_backward_vmap(info: Any, dims: Sequence[int | None], *arguments: Any) -> tuple[object, object]:
    *tensors, text, steps, want_x, want_v, want_i, want_weights, want_parameters = arguments
    wanted = Wanted(want_x, want_v, want_i, want_weights, want_parameters)
    shared = (3, 4, 5, 11)  # parameters, weights, shape, and what batch norm adds
    if any(dims[k] is not None for k in shared) or wanted.weights or wanted.parameters:
        return one_by_one(lif_bwd, info, dims, *arguments)
    x, v, i, parameters, weights, shape, saved, dout, dv, di, dmembrane, center_of_x = tensors
    p = neuron_of(text, steps, None)
    size, time = info.batch_size, 0 if p.constant else 1
    inner = _inner(x, dims[0], time)
    *gradients, dparameters, dweights = lif_bwd(
        _fold(x, dims[0], size, time),
        _fold(v, dims[1], size, 0),
        _fold(i, dims[2], size, 0),
        parameters,
        weights,
        shape,
        _fold(saved, dims[6], size, 1),
        _fold(dout, dims[7], size, 1 if READOUTS[p.readout] is None else 0),
        _fold(dv, dims[8], size, 0),
        _fold(di, dims[9], size, 0),
        _fold(dmembrane, dims[10], size, 1),
        center_of_x,
        text,
        steps,
        *wanted,
    )
    at = tuple(a if there else None for a, there in zip((time, 0, 0), wanted[:3], strict=True))
    return (*_unfolded(gradients, at, size, inner), dparameters, dweights), (*at, None, None)


lif_fwd = register(
    f"lif_fwd({_INPUTS}, {_OPTIONS}, SymInt saved_rows) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _lif,
    _lif_fake,
    _lif_vmap,
    _lif_there,
)
lif_bwd = register(
    f"lif_bwd({_INPUTS}, Tensor? saved, {_COTANGENTS}, Tensor? center_of_x, {_OPTIONS}, {_WANTED})"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _lif_backward,
    _lif_backward_fake,
    _lif_backward_vmap,
    _lif_backward_there,
)


# ------------------------------------------------------------------------------------------------ autograd functions


class _Lif(torch.autograd.Function):
    """(x, v, i, parameters, weights, shape, bits of the parameters to differentiate, saved_rows, options) -> what
    `lif_fwd` returns."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor,
        v: Tensor | None,
        i: Tensor | None,
        parameters: Tensor | None,
        weights: Tensor | None,
        shape: Tensor | None,
        bits: int,
        saved_rows: int,
        options: Options,
    ) -> tuple[Tensor, ...]:
        return lif_fwd(x, v, i, parameters, weights, shape, options.text, options.neuron.steps, saved_rows)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *tensors, ctx.bits, _, ctx.options = inputs
        ctx.mark_non_differentiable(*without_gradient(output, ctx.options.neuron))
        ctx.save_for_backward(*tensors, output[-1])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor | None) -> tuple[Tensor | None, ...]:
        dout, dv, di, dmembrane, _ = outputs
        if dout is None and dv is None and di is None and dmembrane is None:
            return (None,) * 9
        tensors, p = ctx.saved_tensors, ctx.options.neuron
        wanted = wanted_of(ctx.needs_input_grad, tensors, ctx.bits)
        # Through autograd only where it may be differentiated again: that costs more than a small kernel.
        backward: Callable[..., tuple[Tensor, ...]]
        backward = _LifBackward.apply if torch.is_grad_enabled() else _LifBackward.forward
        cotangents = cotangents_there(dout, dv, di, dmembrane, p)
        arguments: tuple[Any, ...] = (*tensors, *cotangents, wanted, ctx.options)
        dx, dv0, di0, dparameters, dweights = backward(*arguments)
        return (
            dx if wanted.x else None,
            dv0 if wanted.v else None,
            di0 if wanted.i else None,
            dparameters.to(tensors[3].dtype) if wanted.parameters else None,
            dweights if wanted.weights else None,
            None,
            None,
            None,
            None,
        )


class _LifBackward(torch.autograd.Function):
    """The backward as a function of its own, so that it can be differentiated again: through the reference."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor,
        v: Tensor | None,
        i: Tensor | None,
        parameters: Tensor | None,
        weights: Tensor | None,
        shape: Tensor | None,
        saved: Tensor,
        dout: Tensor | None,
        dv: Tensor | None,
        di: Tensor | None,
        dmembrane: Tensor | None,
        wanted: Wanted,
        options: Options,
    ) -> tuple[Tensor, ...]:
        inputs = (x, v, i, parameters, weights, shape, saved, dout, dv, di, dmembrane, None)
        return lif_bwd(*inputs, options.text, options.neuron.steps, *wanted)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *tensors, ctx.wanted, ctx.options = inputs
        del tensors[6]  # saved potentials: the reference starts from v
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(
        ctx: Any,
        ddx: Tensor | None,
        ddv0: Tensor | None,
        ddi0: Tensor | None,
        ddparameters: Tensor | None,
        ddweights: Tensor | None,
    ) -> tuple[Tensor | None, ...]:
        inputs, shape, cotangents = ctx.saved_tensors[:5], ctx.saved_tensors[5], ctx.saved_tensors[6:]
        wanted, parameters = ctx.wanted, inputs[3]
        seconds = (
            ddx if wanted.x else None,
            ddv0 if wanted.v else None,
            ddi0 if wanted.i else None,
            ddparameters.to(parameters.dtype) if wanted.parameters and ddparameters is not None else None,
            ddweights if wanted.weights else None,
        )
        p = with_shape(ctx.options.neuron, shape)
        first, second = differentiate_twice(
            lambda x, v, i, a, w: reference.lif(x, v, i, a, w, p), inputs, cotangents, seconds
        )
        return *first, None, None, *second, None, None


_EagerLif = eager(_Lif)


def without_gradient(output: Sequence[Tensor | None], p: Neuron) -> list[Tensor]:
    """Of what `lif_fwd` returns."""
    found = [
        output[4],
        None if p.dtype.is_floating_point else output[0],
        None if p.synaptic else output[2],
    ]
    return [tensor for tensor in found if tensor is not None]


def cotangents_there(
    dout: Tensor | None, dv: Tensor | None, di: Tensor | None, dmembrane: Tensor | None, p: Neuron
) -> tuple[Tensor | None, ...]:
    """Those of spikes, v, i and m, without what autograd makes up for an output that is not there."""
    return dout, dv, di if p.synaptic else None, dmembrane if p.record else None


def wanted_of(needs: Sequence[bool], tensors: Sequence[Tensor | None], bits: int) -> Wanted:
    """`needs`, `tensors`: of x, v, i, parameters, weights, first of all."""
    v = needs[1] and tensors[1] is not None
    i = needs[2] and tensors[2] is not None
    return Wanted(needs[0], v, i, needs[4], bits if needs[3] else 0)


# ------------------------------------------------------------------------------------------------ the public function


Number: TypeAlias = float | Tensor
Readout: TypeAlias = Literal["mean"] | Tensor | Sequence[float] | None
Fire: TypeAlias = Literal[">=", ">", "multi_spike"]
FIRES = (">=", ">", "multi_spike")
NAMES = dict(zip(PARAMETERS, PARAMETERS, strict=True)) | {"v_reset": "Hard(v_reset)"}
RENAMED = {  # old keyword: what it is now
    "rest": "bias=",
    "v_reset": "reset=Hard(v_reset)",
    "detach_reset": "reset=Hard(detach=True) or Soft(detach=True)",
    "strict": 'fire=">"',
    "several": 'fire="multi_spike"',
    "synapse": "synaptic_decay=",
}


_HARD = ((Hard, False), (Hard, True))
_SEVEN = struct.Struct("7d").pack


class Options(NamedTuple):
    """What of a call is neither a tensor nor a symbol."""

    neuron: Neuron
    text: str  # of the neuron


class Prepared(NamedTuple):
    """Validated arguments of one call, as the autograd functions take them."""

    parameters: Tensor | None  # (2 or 6, 1 or C or one per neuron) in the state's type
    bits: int  # which of its rows may have a gradient
    weights: Tensor | None  # (T), fp64
    shape: Tensor | None  # the surrogate's shape parameter, where it is a tensor
    options: Options


_PREPARED: dict[tuple[Any, ...], Prepared] = {}  # none with tensors


def prepare(
    x: Tensor,
    v: Tensor | None,
    i: Tensor | None,
    steps: int | None,
    *,
    name: str = "x",
    learnt: Sequence[Tensor] = (),
    decay: Number,
    threshold: Number,
    gain: Number = 1.0,
    bias: Number = 0.0,
    synaptic_decay: Number | None = None,
    reset: Reset | None,
    surrogate: Surrogate,
    readout: Readout,
    record: str | None,
    dtype: torch.dtype | None,
    fire: str,
    v_min: float | None = None,
) -> Prepared:
    """Validates the arguments of `lif`, or of another op whose current is called `name` and depends on `learnt` too.

    What it finds is kept for the next call with the same options and shape of x, as most are.
    """
    v_reset: Number = 0.0
    which: object = reset
    if type(reset) is Hard:  # its potential is among the numbers
        v_reset, which = reset.v_reset, _HARD[reset.detach]
    numbers: list[Any] = [decay, gain, bias, threshold, v_reset, synaptic_decay, v_min]
    tensors: dict[str, Tensor] = {}
    others: list[Any] = []  # those that are no float, and their types: 1 and True are equal
    for k, number in enumerate(numbers):
        if type(number) is not float:
            if isinstance(number, Tensor) and k < len(PARAMETERS):
                tensors[PARAMETERS[k]], numbers[k] = number, 1.0
            else:
                others += k, type(number)
    kind = readout if readout is None or (type(readout) is str and readout == "mean") else "weights"
    learns = dtype is torch.uint8 and learning(x, v, i, *tensors.values(), *learnt)
    prepared: Prepared | None = None
    key: tuple[Any, ...] | None = None
    if type(x) is Tensor and not torch.compiler.is_compiling() and torch._C._get_tracing_state() is None:
        try:
            # The numbers as bytes: 0.0 and -0.0 are equal.
            values = _SEVEN(*[0.0 if number is None else number for number in numbers])
            shape = x.shape, x.dtype, x.layout, steps, type(steps)
            key = (*shape, values, tuple(others), which, surrogate.key, kind, record, dtype, fire, learns)
            prepared = _PREPARED.get(key)
        except (AttributeError, OverflowError, TypeError, struct.error):  # wrong: told of below
            key = None
    if prepared is None:
        if steps is None:
            check.floating(name, x, 2, "(T, N, *)")
            time = check.steps(f"{name}'s time axis T", x.shape[0])
        else:
            check.floating(name, x, 1, "(N, *) when steps= is given")
            time = check.steps("steps", steps)
        given: list[Any] = [reset, surrogate, kind, record, dtype, fire, numbers[6], learns]
        prepared = Prepared(None, 0, None, None, describe(x.dtype, time, steps is not None, *numbers[:6], *given))
        if key is not None:
            if len(_PREPARED) >= KEPT:
                _PREPARED.clear()
            _PREPARED[key] = prepared
    slope = surrogate.parameter if isinstance(surrogate.parameter, Tensor) else None
    if v is None and i is None and slope is None and kind != "weights" and not tensors:
        return prepared
    inner, state, options = x.shape if steps is not None else x.shape[1:], state_dtype(x.dtype), prepared.options
    if v is not None:
        check.like("v", v, inner, state, x.device)
    if i is not None:
        if synaptic_decay is None:
            raise ValueError("i: got a tensor, accepted is None where synaptic_decay is None: there is no such current")
        check.like("i", i, inner, state, x.device)
    for parameter, number in tensors.items():
        check.parameter(NAMES[parameter], number, inner, x.device)
    stacked, bits = stack_parameters(tensors, options.neuron, inner, state) if tensors else (None, 0)
    weights = read_weights(readout, options.neuron.steps, x.device) if kind == "weights" else None
    return Prepared(stacked, bits, weights, slope, options)


def describe(
    x_dtype: torch.dtype,
    steps: int,
    constant: bool,
    decay: float,
    gain: float,
    bias: float,
    threshold: float,
    v_reset: float,
    synaptic_decay: float | None,
    reset: Reset | None,
    surrogate: Surrogate,
    readout: str | None,
    record: str | None,
    dtype: torch.dtype | None,
    fire: str,
    v_min: float | None,
    learns: bool = False,
) -> Options:
    """Validates what of a call, or of a module, is no tensor. `learns`: whether a gradient is to flow."""
    state = state_dtype(x_dtype)
    surrogate = check.surrogate(surrogate)
    if reset is not None and type(reset) not in (Hard, Soft, Delayed):  # of a subclass the kernels know nothing
        raise TypeError(f"reset: got {reset!r}, accepted are Hard(), Soft(), Delayed() of esvae_kernels and None")
    if record not in (None, "membrane"):
        raise ValueError(f"record: got {record!r}, accepted are None and 'membrane'")
    if fire not in FIRES:
        raise ValueError(f"fire: got {fire!r}, accepted are {', '.join(map(repr, FIRES))}")
    numbers = (decay, gain, bias, threshold, v_reset, 0.0 if synaptic_decay is None else synaptic_decay)
    values = {k: check.number(NAMES[k], number, dtype=state) for k, number in zip(PARAMETERS, numbers, strict=True)}
    several, shape = fire == "multi_spike", surrogate.parameter
    if several:
        _check_several(values["threshold"], reset, surrogate)
    zero_or_one = readout is None and surrogate.spiking and not several
    neuron = Neuron(
        **values,
        synaptic=synaptic_decay is not None,
        v_min=-math.inf if v_min is None else check.number("v_min", v_min, "is a finite number", state),
        reset=RESETS.index(name_of(reset)),
        strict=fire == ">",
        several=several,
        detach_reset=reset is not None and reset.detach,
        surrogate=surrogate.id,
        shape=1.0 if isinstance(shape, Tensor) else shape,  # its value goes a way of its own
        scale=float(surrogate.scale),
        shift=float(surrogate.shift),
        smooth=not surrogate.spiking,
        readout=READOUTS.index(readout),
        record=record is not None,
        constant=constant,
        dtype=check.spikes_dtype(dtype, x_dtype, zero_or_one, learns),
        steps=steps,
    )
    return Options(neuron, neuron.text())


def _check_several(threshold: float, reset: Reset | None, surrogate: Surrogate) -> None:
    if threshold <= 0:
        raise ValueError(f"threshold: got {threshold}, accepted with fire='multi_spike' is a number above 0")
    if isinstance(reset, Delayed) or (isinstance(reset, Hard) and not reset.detach):
        got = "Hard(), whose spikes have a gradient" if isinstance(reset, Hard) else repr(reset)
        raise ValueError(f"reset: got {got}, accepted with fire='multi_spike' are Soft(), Hard(detach=True) and None")
    if not surrogate.spiking:
        raise ValueError("surrogate: got one with spiking=False, accepted with fire='multi_spike' is one that spikes")


def lif_apply(x: Tensor, v: Tensor | None, i: Tensor | None, a: Prepared) -> tuple[Tensor, ...]:
    """(spikes, v), i where there is a synapse, and m where it is recorded."""
    p, tensors = a.options.neuron, (x, v, i, a.parameters, a.weights)
    mode = autograd_of(*tensors)
    outputs: Sequence[Tensor | None]
    if mode is Autograd.FORWARD:
        outputs = reference.lif(*tensors, with_shape(p, a.shape))
    elif mode is Autograd.NONE:
        outputs = lif_fwd(*tensors, a.shape, a.options.text, p.steps, 0)
    else:
        rows = stored_rows(p.steps) if torch.is_grad_enabled() else 0
        apply: Callable[..., tuple[Tensor, ...]] = (_EagerLif if mode is Autograd.EAGER else _Lif).apply
        outputs = apply(*tensors, a.shape, a.bits, rows, a.options)
    return what_is_there(outputs, p)


def what_is_there(outputs: Sequence[Any], p: Neuron) -> tuple[Tensor, ...]:
    """Without those of the four that are None, or have no elements."""
    out, last, i, membrane = outputs[:4]
    return (out, last, *([i] if p.synaptic else []), *([membrane] if p.record else []))


def stack_parameters(
    tensors: dict[str, Tensor], p: Neuron, inner: Sequence[int], dtype: torch.dtype
) -> tuple[Tensor, int]:
    """Those of the six parameters that are tensors as one (2 or 6, 1 or C or one per neuron), differentiably, and a bit
    for each of them."""
    names = PARAMETERS[AFFINE] if tensors.keys() <= set(PARAMETERS[AFFINE]) else PARAMETERS
    numbers = dict(zip(PARAMETERS, p.numbers(), strict=True))
    sizes = [tensor.numel() for tensor in tensors.values() if tensor.numel() != 1]
    size = max(sizes) if sizes else 1
    like = next(iter(tensors.values()))
    rows = [
        _columns(tensors[name].to(dtype), size, inner)
        if name in tensors
        else torch.full((size,), numbers[name], dtype=dtype, device=like.device)
        for name in names
    ]
    return torch.stack(rows), sum(1 << k for k, name in enumerate(names) if name in tensors)


def _columns(value: Tensor, size: int, inner: Sequence[int]) -> Tensor:
    """One element, one per channel, or one per neuron -> (size)."""
    if size == 1:
        return value.reshape(1)
    if value.dim() < 2 and value.numel() not in (1, size):  # per channel, where others are per neuron
        value = value.view(-1, *(1,) * (len(inner) - 2)).expand(inner[1:])
    return value.reshape(-1).expand(size)


def read_weights(readout: object, steps: int, device: torch.device) -> Tensor:
    if isinstance(readout, str):
        raise ValueError(f"readout: got {readout!r}, accepted are None, 'mean' or {steps} weights")
    try:
        weights = torch.as_tensor(readout, dtype=torch.float64, device=device)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(
            f"readout: got {type(readout).__name__}, accepted are None, 'mean' or {steps} weights"
        ) from None
    if tuple(weights.shape) != (steps,):
        raise ValueError(f"readout: got weights of shape {tuple(weights.shape)}, accepted is ({steps},)")
    return weights.contiguous()


# ------------------------------------------------------------------------------------------------ the public function


class _Common(TypedDict, total=False):
    """The keywords of `lif` that do not change what it returns."""

    decay: Required[Number]
    threshold: Required[Number]
    gain: Number
    bias: Number
    reset: Reset | None
    surrogate: Surrogate
    readout: Readout
    dtype: torch.dtype | None
    steps: int | None
    fire: Fire
    v_min: float | None


_Two: TypeAlias = tuple[Tensor, Tensor]
_Three: TypeAlias = tuple[Tensor, Tensor, Tensor]
_Four: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor]


@overload
def lif(
    x: Tensor,
    v: Tensor | None = ...,
    i: None = ...,
    *,
    synaptic_decay: None = ...,
    record: None = ...,
    **options: Unpack[_Common],
) -> _Two: ...
@overload
def lif(
    x: Tensor,
    v: Tensor | None = ...,
    i: None = ...,
    *,
    synaptic_decay: None = ...,
    record: Literal["membrane"],
    **options: Unpack[_Common],
) -> _Three: ...
@overload
def lif(
    x: Tensor,
    v: Tensor | None = ...,
    i: Tensor | None = ...,
    *,
    synaptic_decay: Number,
    record: None = ...,
    **options: Unpack[_Common],
) -> _Three: ...
@overload
def lif(
    x: Tensor,
    v: Tensor | None = ...,
    i: Tensor | None = ...,
    *,
    synaptic_decay: Number,
    record: Literal["membrane"],
    **options: Unpack[_Common],
) -> _Four: ...
def lif(
    x: Tensor,
    v: Tensor | None = None,
    i: Tensor | None = None,
    *,
    decay: Number,
    threshold: Number,
    gain: Number = 1.0,
    bias: Number = 0.0,
    synaptic_decay: Number | None = None,
    reset: Reset | None = Hard(),  # noqa: B008 - frozen
    surrogate: Surrogate = ATan(),  # noqa: B008 - frozen
    readout: Readout = None,
    record: Literal["membrane"] | None = None,
    dtype: torch.dtype | None = None,
    steps: int | None = None,
    fire: Fire = ">=",
    v_min: float | None = None,
    **renamed: object,
) -> tuple[Tensor, ...]:
    """Leaky integrate-and-fire neurons over all time steps in one kernel, forward and backward (paper, eq. 1-3).

    Equivalent to::

        for t in range(T):
            m[t] = decay * v + (gain * x[t] + bias)
            s[t] = (m[t] >= threshold)                     # with the surrogate's derivative
            v = m[t] * (1 - s[t]) + v_reset * s[t]         # reset=Hard(v_reset)
                                                           # Soft(): v = m[t] - threshold * s[t]; None: v = m[t]

    With `synaptic_decay` a synaptic current is in front: c = i + x[t] takes the place of x[t], and
    i = synaptic_decay * c.

    Args:
        x: input current, (T, N, *), fp64, fp32, bf16 or fp16; contiguous and channels-last (of (T, N, C, H, W)) are
            read as they are, anything else is copied once. With `steps`, (N, *): a current constant in time.
        v: membrane potential before the first step, (N, *), fp64 for fp64 x, else fp32. Default: 0.
        i: with `synaptic_decay`, the synaptic current before the first step, (N, *), as v. Default: 0.
        decay, threshold, gain, bias: finite numbers, or tensors of one element, of C (C: axis 2 of x), or of
            x.shape[2:], one per neuron; of any floating dtype, read on the device; with gradients. Sums over a batch
            are the same for any number of threads.
        synaptic_decay: what is left of the synaptic current after a step, 0 to 1; a number or tensor, as those.
            Default: no synaptic current.
        reset: `Hard(v_reset, detach)`, `Soft(detach)` or None, of `esvae_kernels`; v_reset as those above. `detach`: no
            gradient flows through the spike in the reset. Default: `Hard()`, to 0.
        surrogate: one of `esvae_kernels.surrogate`. Default: `ATan()`.
        readout: None returns the spikes. "mean" returns their mean over time, T numbers (a tensor, which may have a
            gradient, or a sequence) the weighted sum over time; the spikes themselves are then never stored.
        record: "membrane" returns m as well, before the reset.
        dtype: the spikes' (or the readout's) dtype: fp64, fp32, bf16, fp16 (default: x's own), or for spikes that need
            no gradient uint8.
        steps: T, for an x without time axis.

    For the neurons of other libraries:
        reset: `Delayed()` subtracts the threshold one step later, undamped: m[t] = decay * v + (gain * x[t] + bias) -
            threshold * (v >= threshold), v = m[t]; `Delayed(corrected=True)` corrects that in the same step,
            v = m[t] - threshold * (s[t] - (v >= threshold)) with the v from before (snnTorch).
        fire: ">=" at the threshold and above it, ">" above it alone (snnTorch), "multi_spike" with any number of spikes
            a step, s[t] = trunc(m[t] / threshold) where m[t] > 0 (sinabs; Weidel and Sheik, 2021): with `Soft`, None or
            `Hard(detach=True)`, and a threshold above 0 (of a tensor it is not checked).
        v_min: lifts v to it after each step where it is below, with no gradient there (sinabs). Default: none.

    Returns:
        (spikes, v), after them with `synaptic_decay` i, and last with `record` m: spikes (T, N, *), or with a readout
        (N, *), in x's layout; the last membrane potential and synaptic current (N, *), so that a sequence can be cut
        anywhere and go on; m (T, N, *). v, i and m are fp32 (fp64 for fp64 x).

    Raises:
        TypeError, ValueError: one line naming the argument, what came and what is accepted.
    """
    if renamed:
        check.renamed("lif", renamed, RENAMED)
    a = prepare(
        x,
        v,
        i,
        steps,
        decay=decay,
        threshold=threshold,
        gain=gain,
        bias=bias,
        synaptic_decay=synaptic_decay,
        reset=reset,
        surrogate=surrogate,
        readout=readout,
        record=record,
        dtype=dtype,
        fire=fire,
        v_min=v_min,
    )
    return lif_apply(x, v, i, a)
