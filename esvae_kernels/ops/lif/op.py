"""`lif`: the schema, the raw ops, their autograd function and the public function."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Literal, NamedTuple, Required, TypeAlias, TypedDict, TypeVar, Unpack, cast, overload

import torch
from torch import Tensor

from ... import backends, check, layout
from ...library import (
    Autograd,
    autograd_of,
    differentiate,
    differentiate_twice,
    eager,
    learning,
    one_by_one,
    register,
    require,
)
from ...native import DTYPES
from ...reset import Delayed, Hard, Reset, Soft, name_of
from ...surrogate import ATan, Surrogate
from ...surrogate.reference import with_parameter
from . import reference
from .reference import AFFINE, CHUNK, PARAMETERS, READOUTS, RESETS, Neuron, Wanted, decoded, state_dtype

# x (T, N, *), or (N, *) of a constant neuron; v, i (N, *); parameters (2 or 6, 1 or C or one per neuron); weights (T);
# shape: the surrogate's shape parameter where it is a tensor; neuron: Neuron.text().
_INPUTS = "Tensor x, Tensor? v, Tensor? i, Tensor? parameters, Tensor? weights, Tensor? shape"
_OPTIONS = "str neuron, SymInt steps"
_COTANGENTS = "Tensor? dout, Tensor? dv, Tensor? di, Tensor? dmembrane"
_WANTED = "bool want_x, bool want_v, bool want_i, bool want_weights, int want_parameters"

_Want: TypeAlias = tuple[bool, bool, bool, bool, int]  # the fields of Wanted
_There = TypeVar("_There", Tensor, Tensor | None)


def _neuron(text: str, steps: int, shape: Tensor | None) -> Neuron:
    """What a raw op's arguments stand for. The fake gives no `shape`, and may have a symbol for the steps."""
    p = decoded(text, steps) if type(steps) is int else Neuron.from_text(text)._replace(steps=steps)
    return with_shape(p, shape)


def with_shape(p: Neuron, shape: Tensor | None) -> Neuron:
    """The neuron with the surrogate's shape parameter, where that is a tensor."""
    if shape is None:
        return p
    value = float(shape)
    if not 0 < value < math.inf:
        raise ValueError(f"surrogate: got {value} in the tensor of its shape parameter, accepted is a number above 0")
    return p._replace(shape=value)


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


class _Shapes:
    """Shapes and layout of one call's tensors, from x alone: the fake and the real op must agree on them."""

    __slots__ = ("channel", "channels_last", "inner", "p", "state_dtype", "x")

    def __init__(self, x: Tensor, p: Neuron) -> None:
        self.x, self.p = x, p
        self.channel = 1 if p.constant else 2
        require(x.dim() >= self.channel and x.dtype in DTYPES, lambda: f"x: got shape {tuple(x.shape)}, {x.dtype}")
        self.channels_last = layout.is_channels_last(x, self.channel)
        shape = tuple(x.shape)
        self.inner = shape if p.constant else shape[1:]
        self.state_dtype = state_dtype(x.dtype)
        require(p.steps >= 1 and (p.constant or shape[0] == p.steps), lambda: f"steps: got {p.steps} for x {shape}")

    def check(self, v: Tensor | None, i: Tensor | None, parameters: Tensor | None, weights: Tensor | None) -> None:
        """What the kernels take for granted: they have addresses alone."""
        if v is not None:
            self.require("v", v, self.inner, self.state_dtype)
        if i is not None:
            self.require("i", i, self.inner, self.state_dtype)
        if parameters is not None:
            rows, columns = parameters.shape if parameters.dim() == 2 else (0, 0)
            accepted = columns == 1 or columns == self.channels() or columns == math.prod(self.inner[1:])
            require(
                rows in (2, len(PARAMETERS)) and accepted,
                lambda: f"parameters: got shape {tuple(parameters.shape)} for x {tuple(self.x.shape)}",
            )
            self.require("parameters", parameters, parameters.shape, self.state_dtype)
        if (READOUTS[self.p.readout] == "weights") is not (weights is not None):
            require(False, lambda: "weights: got them or none, against the neuron's readout")
        if weights is not None:
            self.require("weights", weights, (self.p.steps,), torch.float64)

    def check_rows(self, rows: int) -> None:
        least = (self.p.steps - 1) // CHUNK
        if type(rows) is int and rows == 0:
            return
        require(rows >= least, lambda: f"saved_rows: got {rows}, accepted are 0 and {least}")

    def check_saved(self, saved: Tensor | None) -> None:
        least = (self.p.steps - 1) // CHUNK * (2 if self.p.synaptic else 1)
        if saved is None:
            require(least == 0, lambda: f"saved: got none, accepted are {least} rows")
            return
        require(
            saved.shape[1:] == self.inner and saved.shape[0] >= least and saved.dtype == self.state_dtype,
            lambda: f"saved: got shape {tuple(saved.shape)}, {saved.dtype}, accepted are {least} rows",
        )

    def check_cotangents(
        self, dout: Tensor | None, dv: Tensor | None, di: Tensor | None, dmembrane: Tensor | None
    ) -> None:
        p, state, every_step = self.p, self.state_dtype, (self.p.steps, *self.inner)
        if dout is not None:
            self.require("dout", dout, every_step if READOUTS[p.readout] is None else self.inner, p.dtype)
        if dmembrane is not None:
            self.require("dmembrane", dmembrane, every_step, state)
        for name, tensor in (("dv", dv), ("di", di)):
            if tensor is not None:
                self.require(name, tensor, self.inner, state)

    def require(self, name: str, tensor: Tensor, shape: Sequence[int], dtype: torch.dtype) -> None:
        require(
            tuple(tensor.shape) == tuple(shape) and tensor.dtype == dtype and tensor.device == self.x.device,
            lambda: (
                f"{name}: got shape {tuple(tensor.shape)}, {tensor.dtype}, on {tensor.device}, accepted is"
                f" {tuple(shape)}, {dtype}, on {self.x.device}"
            ),
        )

    def channels(self) -> int:
        return self.inner[1] if len(self.inner) > 1 else 1

    def _empty(self, leading: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        shape = (*leading, *self.inner)
        return layout.empty(shape, self.channels_last, len(leading) + 1, self.x, dtype)

    def outputs(self, saved_rows: int, every: bool) -> tuple[Tensor | None, ...]:
        """out, the last v, the last i, the membrane potentials, and the v, then with a synapse the i, that the backward
        starts from. What is not there is None, or with `every` of no elements."""
        p, state = self.p, self.state_dtype
        return (
            self._empty((p.steps,) if READOUTS[p.readout] is None else (), p.dtype),
            self._empty((), state),
            self._state(p.synaptic, every),
            self._empty((p.steps if p.record else 0,), state) if p.record or every else None,
            self._empty((saved_rows * (2 if p.synaptic else 1),), state) if saved_rows or every else None,
        )

    def gradients(self, wanted: Wanted, every: bool) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, dx = self.x, None
        if wanted.x:
            dx = layout.empty(x.shape, self.channels_last, self.channel, x, x.dtype)
        elif every:
            dx = x.new_empty(0)
        return dx, self._state(wanted.v, every), self._state(wanted.i, every)

    def _state(self, there: bool, every: bool) -> Tensor | None:
        if there:
            return self._empty((), self.state_dtype)
        return self.x.new_empty(0, dtype=self.state_dtype) if every else None

    def dense(self, tensor: _There) -> _There:
        """A state, output or input in this call's layout."""
        if tensor is None:
            return None
        return layout.as_layout(tensor, self.channels_last, tensor.dim() - len(self.inner) + 1)

    def in_memory(self, parameters: Tensor | None) -> Tensor | None:
        """Those of one per neuron in the order in which neurons lie in memory."""
        if parameters is not None and self._per_neuron(parameters):
            parameters = parameters.unflatten(1, (self.channels(), -1)).transpose(1, 2).flatten(1)
        return None if parameters is None else parameters.contiguous()

    def in_order(self, parameters: Tensor) -> Tensor:
        """`in_memory` undone."""
        if self._per_neuron(parameters):
            parameters = parameters.unflatten(1, (-1, self.channels())).transpose(1, 2).flatten(1)
        return parameters

    def _per_neuron(self, parameters: Tensor) -> bool:
        return self.channels_last and parameters.shape[1] not in (0, 1, self.channels())


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
    shapes = _Shapes(x, _neuron(text, steps, None))
    shapes.check(v, i, parameters, weights)
    shapes.check_rows(saved_rows)
    return cast("tuple[Tensor, ...]", shapes.outputs(saved_rows, True))


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
    p = _neuron(text, steps, shape)
    shapes = _Shapes(x, p)
    shapes.check(v, i, parameters, weights)
    shapes.check_rows(saved_rows)
    results = shapes.outputs(saved_rows, every)
    backend, room = backends.room(__package__, x.device)
    if room is None:
        states: list[tuple[Tensor, Tensor | None]] = []
        found = reference.lif(x, v, i, parameters, weights, p, states)
        starts = states[CHUNK - 1 : -1 : CHUNK] if saved_rows else []  # the backward may run on another backend
        for result, value in zip(results, found, strict=False):
            if value is not None and result is not None:
                result.copy_(value)
        for k, potentials in enumerate(zip(*starts, strict=True)):
            if potentials[0] is not None:
                kept = cast("Tensor", results[-1])
                kept[k * len(starts) : (k + 1) * len(starts)].copy_(torch.stack(potentials))
    else:
        outputs = dict(zip(("out", "v", "i", "membrane", "saved"), results, strict=True))
        x, v, i, parameters = shapes.dense(x), shapes.dense(v), shapes.dense(i), shapes.in_memory(parameters)
        room.lif(backend, x, v, i, parameters, weights, outputs, shapes.channels_last, p)
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
    shapes = _Shapes(x, _neuron(text, steps, None))
    shapes.check(v, i, parameters, weights)
    shapes.check_saved(saved)
    shapes.check_cotangents(dout, dv, di, dmembrane)
    return _gradients(shapes, parameters, Wanted(*want))


def _gradients(shapes: _Shapes, parameters: Tensor | None, wanted: Wanted) -> tuple[Tensor, ...]:
    return *shapes.gradients(wanted, True), *_sums(shapes, parameters, wanted)  # type: ignore[return-value]


def _sums(shapes: _Shapes, parameters: Tensor | None, wanted: Wanted) -> tuple[Tensor, Tensor]:
    x, sums = shapes.x, (len(PARAMETERS), 1) if parameters is None else parameters.shape
    return (
        x.new_empty((sums[0], sums[1] if wanted.parameters else 0), dtype=torch.float64),
        x.new_empty(shapes.p.steps if wanted.weights else 0, dtype=torch.float64),
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
    p, wanted = _neuron(text, steps, shape), Wanted(*want)
    shapes, cotangents = _Shapes(x, p), (dout, dv, di, dmembrane)
    shapes.check(v, i, parameters, weights)
    shapes.check_cotangents(*cotangents)
    backend, room = backends.room(__package__, x.device)
    if room is None:
        return _reference_backward(shapes, (x, v, i, parameters, weights), cotangents, center_of_x, wanted)
    shapes.check_saved(saved)
    dx, dv0, di0 = shapes.gradients(wanted, every)
    if center_of_x is not None:
        center_of_x = shapes.in_memory(center_of_x.unsqueeze(0))
    inputs = {
        "dout": shapes.dense(dout),
        "dv": shapes.dense(dv),
        "di": shapes.dense(di),
        "dmembrane": shapes.dense(dmembrane),
        "saved": shapes.dense(saved),
        "center_of_x": center_of_x,
    }
    x, v, i, parameters = shapes.dense(x), shapes.dense(v), shapes.dense(i), shapes.in_memory(parameters)
    outputs = {"dx": dx, "dv0": dv0, "di0": di0}
    dparameters, dweights = room.lif_backward(
        backend, x, v, i, parameters, weights, inputs, outputs, shapes.channels_last, wanted, p
    )
    if every and dparameters is None:  # neither is wanted
        dparameters, dweights = _sums(shapes, parameters, wanted)
    if wanted.parameters:
        dparameters = shapes.in_order(dparameters)
    return dx, dv0, di0, dparameters, dweights


def _reference_backward(
    shapes: _Shapes,
    inputs: tuple[Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None],
    cotangents: Sequence[Tensor | None],
    center_of_x: Tensor | None,
    wanted: Wanted,
) -> tuple[Tensor, ...]:
    x, v, i, parameters, weights = inputs
    start = torch.zeros(shapes.inner, dtype=shapes.state_dtype, device=x.device)
    inputs = (x, start if v is None else v, start if i is None else i, parameters, weights)
    found = differentiate(lambda x, v, i, a, w: reference.lif(x, v, i, a, w, shapes.p), inputs, cotangents)
    empty = _gradients(shapes, parameters, wanted)
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
    p = _neuron(text, steps, None)
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
    p = _neuron(text, steps, None)
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
        tensors, (*cotangents, _) = ctx.saved_tensors, outputs
        if all(c is None for c in cotangents):
            return (None,) * 9
        wanted = wanted_of(ctx.needs_input_grad[:5], tensors, ctx.bits)
        there = cotangents_there(cotangents, ctx.options.neuron)
        # Through autograd only where it may be differentiated again: that costs more than a small kernel.
        backward: Callable[..., tuple[Tensor, ...]]
        backward = _LifBackward.apply if torch.is_grad_enabled() else _LifBackward.forward
        arguments: tuple[Any, ...] = (*tensors, *there, wanted, ctx.options)
        dx, dv0, di0, dparameters, dweights = backward(*arguments)
        return (
            dx if wanted.x else None,
            dv0 if wanted.v else None,
            di0 if wanted.i else None,
            dparameters.to(tensors[3].dtype) if wanted.parameters else None,
            dweights if wanted.weights else None,
            *(None,) * 4,
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


def cotangents_there(cotangents: Sequence[Tensor | None], p: Neuron) -> tuple[Tensor | None, ...]:
    """Those of spikes, v, i and m, without what autograd makes up for an output that is not there."""
    dout, dv, di, dmembrane = cotangents
    return dout, dv, di if p.synaptic else None, dmembrane if p.record else None


def wanted_of(needs: Sequence[bool], tensors: Sequence[Tensor | None], bits: int) -> Wanted:
    """`needs`, `tensors`: of x, v, i, parameters, weights."""
    x, v, i, parameters, weights = needs
    return Wanted(x, tensors[1] is not None and v, tensors[2] is not None and i, weights, bits if parameters else 0)


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


_ATTACHED, _DETACHED = Hard(), Hard(detach=True)
_FIVE = struct.Struct("5d").pack  # as bytes, in a quarter of the 2 us that their text takes


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
    """Validates the arguments of `lif`, or of another op whose current is called `name` and depends on `learnt` too."""
    if steps is None:
        check.floating(name, x, 2, "(T, N, *)")
        time, inner = check.steps(f"{name}'s time axis T", x.shape[0]), x.shape[1:]
    else:
        check.floating(name, x, 1, "(N, *) when steps= is given")
        time, inner = check.steps("steps", steps), x.shape
    state = state_dtype(x.dtype)
    if v is not None:
        check.like("v", v, inner, state, x.device)
    if i is not None:
        if synaptic_decay is None:
            raise ValueError("i: got a tensor, accepted is None where synaptic_decay is None: there is no such current")
        check.like("i", i, inner, state, x.device)
    weights: Tensor | None = None
    kind: str | None = None
    if isinstance(readout, str) and readout == "mean":
        kind = "mean"
    elif readout is not None:
        weights, kind = _weights(readout, time, x.device), "weights"
    v_reset: Number = 0.0
    if type(reset) is Hard:  # its potential is among the numbers
        v_reset, reset = reset.v_reset, _DETACHED if reset.detach else _ATTACHED
    numbers: tuple[Number | None, ...] = (decay, gain, bias, threshold, v_reset, synaptic_decay)
    tensors: dict[str, Tensor] = {}
    for parameter, number in zip(PARAMETERS, numbers, strict=True):
        if type(number) is not float and isinstance(number, Tensor):  # of a float the second takes 0.3 us
            check.parameter(NAMES[parameter], number, inner, x.device)
            tensors[parameter] = number
    if tensors:
        numbers = tuple([1.0 if isinstance(number, Tensor) else number for number in numbers])
    shape = getattr(surrogate, "parameter", None)
    if type(shape) is not float and isinstance(shape, Tensor):
        surrogate = with_parameter(surrogate, 1.0)
    else:
        shape = None
    learns = dtype is torch.uint8 and learning(x, v, i, *tensors.values(), *learnt)
    given = (reset, surrogate, kind, record, dtype, fire, v_min, learns)
    arguments: tuple[Any, ...] = (x.dtype, time, steps is not None, *numbers, *given)
    if torch.compiler.is_compiling():
        options = describe(*arguments)
    else:
        try:
            told_apart = _FIVE(*numbers[:5]), *map(type, numbers), repr(synaptic_decay), repr(v_min)
            options = _described(*arguments, told_apart)  # 0.0 and -0.0, 1 and True are equal
        except (TypeError, struct.error):  # what cannot be hashed, or is no number, is wrong, and told of here
            options = describe(*arguments)
    parameters, bits = stack_parameters(tensors, options.neuron, inner, state) if tensors else (None, 0)
    return Prepared(parameters, bits, weights, shape, options)


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


@lru_cache(maxsize=4096)
def _described(*arguments: Any) -> Options:
    """`describe`, as most calls have the options of the call before; the last argument only tells equals apart."""
    return describe(*arguments[:-1])


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


def _weights(readout: object, steps: int, device: torch.device) -> Tensor:
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
