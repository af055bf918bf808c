"""`lif`: the schema, the raw ops, their autograd function and the public function."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ... import backends, check, layout
from ...library import differentiate, differentiate_twice, one_by_one, register
from ...surrogate import SURROGATES, ATan, Surrogate
from . import reference
from .reference import AFFINE, CHUNK, PARAMETERS, READOUTS, RESETS, Neuron, Wanted, state_dtype

_OPTIONS = (
    "SymInt steps, bool constant, float decay, float gain, float rest, float threshold, float v_reset, float synapse, "
    "bool synaptic, float v_min, int reset, bool strict, bool several, bool detach_reset, int surrogate, float shape, "
    "float scale, float center, bool smooth, int readout, bool record, ScalarType dtype"
)
_INPUTS = "Tensor x, Tensor? v, Tensor? i, Tensor? parameters, Tensor? weights"
_WANTED = "bool want_x, bool want_v, bool want_i, bool want_weights, int want_parameters"


class _Shapes:
    """Shapes and layout of one call's tensors, from x alone: the fake and the real op must agree on them."""

    def __init__(self, x: Tensor, p: Neuron) -> None:
        if p.surrogate not in SURROGATES:  # a raw op can be called by anyone, and the compiled module trusts us
            raise ValueError(f"surrogate: got the id {p.surrogate}, accepted are {sorted(SURROGATES)}")
        self.x, self.p = x, p
        self.channel = 1 if p.constant else 2
        self.channels_last = layout.is_channels_last(x, self.channel)
        self.inner = tuple(x.shape) if p.constant else tuple(x.shape[1:])
        self.state_dtype = state_dtype(x.dtype)

    def _empty(self, leading: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        shape = (*leading, *self.inner)
        return layout.empty(shape, self.channels_last, len(leading) + 1, self.x, dtype)

    def outputs(self, save: bool) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """out, the last v, the last i, the membrane potentials, and the v, then with a synapse the i, that the backward
        starts from: what is not there is of no elements."""
        p = self.p
        out = self._empty((p.steps,) if READOUTS[p.readout] is None else (), p.dtype)
        saved = (p.steps - 1) // CHUNK * (2 if p.synaptic else 1) if save else 0
        return (
            out,
            self._empty((), self.state_dtype),
            self._state(p.synaptic),
            self._empty((p.steps if p.record else 0,), self.state_dtype),
            self._empty((saved,), self.state_dtype),
        )

    def gradients(self, wanted: Wanted) -> tuple[Tensor, Tensor, Tensor]:
        x = self.x
        dx = layout.empty(x.shape, self.channels_last, self.channel, x, x.dtype) if wanted.x else x.new_empty(0)
        return dx, self._state(wanted.v), self._state(wanted.i)

    def _state(self, there: bool) -> Tensor:
        return self._empty((), self.state_dtype) if there else self.x.new_empty(0, dtype=self.state_dtype)

    def dense(self, tensor: Tensor | None) -> Tensor | None:
        """A state, output or input in this call's layout."""
        if tensor is None:
            return None
        return layout.as_layout(tensor, self.channels_last, tensor.dim() - len(self.inner) + 1)


def _lif_fake(x, v, i, parameters, weights, save: bool, *options):
    return _Shapes(x, Neuron(*options)).outputs(save)


def _lif(
    x: Tensor,
    v: Tensor | None,
    i: Tensor | None,
    parameters: Tensor | None,
    weights: Tensor | None,
    save: bool,
    *options,
):
    p = Neuron(*options)
    shapes = _Shapes(x, p)
    results = shapes.outputs(save)
    backend, room = backends.room(__package__, x.device)
    if room is None:
        states: list[tuple[Tensor, Tensor | None]] = []
        found = reference.lif(x, v, i, parameters, weights, p, states)
        starts = states[CHUNK - 1 : -1 : CHUNK] if save else []  # the backward may run on another backend
        for result, value in zip(results, found, strict=False):
            if value is not None:
                result.copy_(value)
        for k, potentials in enumerate(zip(*starts, strict=True)):
            if potentials[0] is not None:
                results[-1][k * len(starts) : (k + 1) * len(starts)].copy_(torch.stack(potentials))
    else:
        outputs = dict(zip(("out", "v", "i", "membrane", "saved"), results, strict=True))
        x, v, i, parameters = shapes.dense(x), shapes.dense(v), shapes.dense(i), _contiguous(parameters)
        room.lif(backend, x, v, i, parameters, weights, outputs, shapes.channels_last, p)
    return results


def _lif_backward_fake(
    x, v, i, parameters, weights, saved, dout, dv, di, dmembrane, center, wx, wv, wi, ww, wp, *options
):
    p = Neuron(*options)
    sums = (len(PARAMETERS), 1) if parameters is None else parameters.shape
    return (
        *_Shapes(x, p).gradients(Wanted(wx, wv, wi, ww, wp)),
        x.new_empty((sums[0], sums[1] if wp else 0), dtype=torch.float64),
        x.new_empty(p.steps if ww else 0, dtype=torch.float64),
    )


def _lif_backward(
    x: Tensor,
    v: Tensor | None,
    i: Tensor | None,
    parameters: Tensor | None,
    weights: Tensor | None,
    saved: Tensor,
    dout: Tensor | None,
    dv: Tensor | None,
    di: Tensor | None,
    dmembrane: Tensor | None,
    center_of_x: Tensor | None,
    want_x: bool,
    want_v: bool,
    want_i: bool,
    want_weights: bool,
    want_parameters: int,
    *options,
):
    p, wanted = Neuron(*options), Wanted(want_x, want_v, want_i, want_weights, want_parameters)
    backend, room = backends.room(__package__, x.device)
    if room is None:
        return _reference_backward(x, v, i, parameters, weights, (dout, dv, di, dmembrane), center_of_x, wanted, p)
    shapes = _Shapes(x, p)
    dx, dv0, di0 = shapes.gradients(wanted)
    inputs = {"saved": saved, "dout": dout, "dv": dv, "di": di, "dmembrane": dmembrane}
    inputs = {name: shapes.dense(tensor) for name, tensor in inputs.items()}
    inputs |= {"center_of_x": center_of_x}
    x, v, i, parameters = shapes.dense(x), shapes.dense(v), shapes.dense(i), _contiguous(parameters)
    outputs = {"dx": dx, "dv0": dv0, "di0": di0}
    sums = room.lif_backward(backend, x, v, i, parameters, weights, inputs, outputs, shapes.channels_last, wanted, p)
    return dx, dv0, di0, *sums


def _reference_backward(x, v, i, parameters, weights, cotangents, center_of_x, wanted: Wanted, p: Neuron):
    start = torch.zeros(_Shapes(x, p).inner, dtype=state_dtype(x.dtype), device=x.device)
    inputs = (x, start if v is None else v, start if i is None else i, parameters, weights)
    found = differentiate(lambda *inputs: reference.lif(*inputs, p), inputs, cotangents)
    empty = _lif_backward_fake(x, v, i, parameters, weights, None, *cotangents, None, *wanted, *p)
    results = [e if f is None or not e.numel() else e.copy_(f) for e, f in zip(empty, found, strict=True)]
    if center_of_x is not None:
        gain, rest = results[3][AFFINE if len(results[3]) == len(PARAMETERS) else slice(None)]
        gain -= center_of_x * rest
    return tuple(results)


def _contiguous(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


# -------------------------------------------------------------------------------------------------------- vmap rules


def _fold(tensor: Tensor | None, dim: int | None, size: int, at: int) -> Tensor | None:
    """The vmapped axis moved into the batch axis `at`: neurons are independent of each other."""
    if tensor is None:
        return None
    tensor = tensor.unsqueeze(at).expand(*tensor.shape[:at], size, *tensor.shape[at:]) if dim is None else tensor
    tensor = tensor if dim is None else tensor.movedim(dim, at)
    return tensor.flatten(at, at + 1) if tensor.dim() > at + 1 else tensor


def _unfolded(tensors: Sequence[Tensor], at: Sequence[int | None], size: int, inner: tuple[int, ...]):
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


def _lif_vmap(info, dims, x, v, i, parameters, weights, save, *options):
    if dims[3] is not None or dims[4] is not None:
        return one_by_one(lif_fwd, info, dims, x, v, i, parameters, weights, save, *options)
    p = Neuron(*options)
    size, time = info.batch_size, 0 if p.constant else 1
    inner = _inner(x, dims[0], time)
    x, v, i = _fold(x, dims[0], size, time), _fold(v, dims[1], size, 0), _fold(i, dims[2], size, 0)
    results = lif_fwd(x, v, i, parameters, weights, save, *options)
    at = (1 if READOUTS[p.readout] is None else 0, 0, 0 if p.synaptic else None, 1, 1)
    return _unfolded(results, at, size, inner), at


def _lif_backward_vmap(info, dims, *arguments):
    options = arguments[16:]
    wanted = Wanted(*arguments[11:16])
    shared = (3, 4, 10)  # parameters, weights, and what batch norm adds
    if any(dims[k] is not None for k in shared) or wanted.weights or wanted.parameters:
        return one_by_one(lif_bwd, info, dims, *arguments)
    x, v, i, parameters, weights, saved, dout, dv, di, dmembrane, center_of_x = arguments[:11]
    p = Neuron(*options)
    size, time = info.batch_size, 0 if p.constant else 1
    inner = _inner(x, dims[0], time)
    *gradients, dparameters, dweights = lif_bwd(
        _fold(x, dims[0], size, time),
        _fold(v, dims[1], size, 0),
        _fold(i, dims[2], size, 0),
        parameters,
        weights,
        _fold(saved, dims[5], size, 1),
        _fold(dout, dims[6], size, 1 if READOUTS[p.readout] is None else 0),
        _fold(dv, dims[7], size, 0),
        _fold(di, dims[8], size, 0),
        _fold(dmembrane, dims[9], size, 1),
        center_of_x,
        *wanted,
        *options,
    )
    at = tuple(a if there else None for a, there in zip((time, 0, 0), wanted[:3], strict=True))
    return (*_unfolded(gradients, at, size, inner), dparameters, dweights), (*at, None, None)


lif_fwd = register(
    f"lif_fwd({_INPUTS}, bool save, {_OPTIONS}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _lif,
    _lif_fake,
    _lif_vmap,
)
lif_bwd = register(
    f"lif_bwd({_INPUTS}, Tensor saved, Tensor? dout, Tensor? dv, Tensor? di, Tensor? dmembrane, Tensor? center_of_x, "
    f"{_WANTED}, {_OPTIONS}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _lif_backward,
    _lif_backward_fake,
    _lif_backward_vmap,
)


# ------------------------------------------------------------------------------------------------ autograd functions


class _Lif(torch.autograd.Function):
    """(x, v, i, parameters, weights, bits of the parameters to differentiate, save, options) -> what `lif_fwd`
    returns."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x, v, i, parameters, weights, bits, save, options):
        return lif_fwd(x, v, i, parameters, weights, save, *options)

    @staticmethod
    def setup_context(ctx, inputs, output):
        *tensors, ctx.bits, _, ctx.options = inputs
        ctx.mark_non_differentiable(*without_gradient(output, ctx.options))
        ctx.save_for_backward(*tensors, output[-1])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, *cotangents):
        tensors, (*cotangents, _) = ctx.saved_tensors, cotangents
        if all(c is None for c in cotangents):
            return (None,) * 8
        wanted = wanted_of(ctx.needs_input_grad[:5], tensors, ctx.bits)
        there = cotangents_there(cotangents, ctx.options)
        # Through autograd only where it may be differentiated again: that costs more than a small kernel.
        backward = _LifBackward.apply if torch.is_grad_enabled() else _LifBackward.forward
        dx, dv0, di0, dparameters, dweights = backward(*tensors, *there, wanted, ctx.options)
        return (
            dx if wanted.x else None,
            dv0 if wanted.v else None,
            di0 if wanted.i else None,
            dparameters.to(tensors[3].dtype) if wanted.parameters else None,
            dweights if wanted.weights else None,
            None,
            None,
            None,
        )


class _LifBackward(torch.autograd.Function):
    """The backward as a function of its own, so that it can be differentiated again: through the reference."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x, v, i, parameters, weights, saved, dout, dv, di, dmembrane, wanted, options):
        return lif_bwd(x, v, i, parameters, weights, saved, dout, dv, di, dmembrane, None, *wanted, *options)

    @staticmethod
    def setup_context(ctx, inputs, output):
        *tensors, ctx.wanted, ctx.options = inputs
        del tensors[5]  # saved potentials: the reference starts from v
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, ddx, ddv0, ddi0, ddparameters, ddweights):
        inputs, cotangents = ctx.saved_tensors[:5], ctx.saved_tensors[5:]
        wanted, parameters = ctx.wanted, inputs[3]
        seconds = (
            ddx if wanted.x else None,
            ddv0 if wanted.v else None,
            ddi0 if wanted.i else None,
            ddparameters.to(parameters.dtype) if wanted.parameters and ddparameters is not None else None,
            ddweights if wanted.weights else None,
        )
        first, second = differentiate_twice(
            lambda *inputs: reference.lif(*inputs, ctx.options), inputs, cotangents, seconds
        )
        return *first, None, *second, None, None


def without_gradient(output: Sequence[Tensor], p: Neuron) -> list[Tensor]:
    """Of what `lif_fwd` returns."""
    return [
        output[4],
        *([] if p.dtype.is_floating_point else [output[0]]),
        *([] if p.synaptic else [output[2]]),
    ]


def cotangents_there(cotangents: Sequence[Tensor | None], p: Neuron) -> tuple[Tensor | None, ...]:
    """Those of spikes, v, i and m, without what autograd makes up for an output that is not there."""
    dout, dv, di, dmembrane = cotangents
    return dout, dv, di if p.synaptic else None, dmembrane if p.record else None


def wanted_of(needs: Sequence[bool], tensors: Sequence[Tensor | None], bits: int) -> Wanted:
    """`needs`, `tensors`: of x, v, i, parameters, weights."""
    x, v, i, parameters, weights = needs
    return Wanted(x, tensors[1] is not None and v, tensors[2] is not None and i, weights, bits if parameters else 0)


# ------------------------------------------------------------------------------------------------ the public function


class Prepared(NamedTuple):
    """Validated arguments of one call, as the autograd functions take them."""

    parameters: Tensor | None  # (2 or 6, C) in the state's type
    bits: int  # which of its rows may have a gradient
    weights: Tensor | None  # (T), fp64
    options: Neuron


def prepare(
    x: Tensor,
    v: Tensor | None,
    steps: int | None,
    *,
    name: str = "x",
    learnt: Sequence[Tensor] = (),
    decay: float | Tensor,
    threshold: float | Tensor,
    gain: float | Tensor = 1.0,
    rest: float | Tensor = 0.0,
    reset: str,
    v_reset: float | Tensor,
    synapse: float | Tensor | None = None,
    i: Tensor | None = None,
    v_min: float | None = None,
    detach_reset: bool,
    strict: bool,
    several: bool = False,
    surrogate: Surrogate,
    readout: str | Tensor | Sequence[float] | None,
    record: str | None,
    dtype: torch.dtype | None,
) -> Prepared:
    """Validates the arguments of `lif`, or of another op whose current is called `name` and depends on `learnt` too."""
    if steps is None:
        check.floating(name, x, 2, "(T, N, *)")
        time, inner = check.steps(f"{name}'s time axis T", x.shape[0]), tuple(x.shape[1:])
    else:
        check.floating(name, x, 1, "(N, *) when steps= is given")
        time, inner = check.steps("steps", steps), tuple(x.shape)
    if v is not None:
        check.like("v", v, inner, state_dtype(x.dtype), x.device)
    if i is not None:
        if synapse is None:
            raise ValueError("i: got a tensor, accepted is None where synapse is None: there is no synaptic current")
        check.like("i", i, inner, state_dtype(x.dtype), x.device)
    v_min = -math.inf if v_min is None else check.number("v_min", v_min, dtype=state_dtype(x.dtype))
    surrogate = check.surrogate(surrogate)
    if reset not in RESETS:
        raise ValueError(f"reset: got {reset!r}, accepted are {', '.join(RESETS)}")
    if record not in (None, "membrane"):
        raise ValueError(f"record: got {record!r}, accepted are None and 'membrane'")
    rate = isinstance(readout, str) and readout == "rate"
    weights = None if readout is None or rate else _weights(readout, time, x.device)
    values = {"decay": decay, "gain": gain, "rest": rest, "threshold": threshold, "v_reset": v_reset}
    values["synapse"] = 0.0 if synapse is None else synapse
    channels = inner[1] if len(inner) > 1 else 1
    state = state_dtype(x.dtype)
    values = {k: check.parameter(k, value, channels, x.device, state) for k, value in values.items()}
    parameters, bits = stack_parameters(values, state)
    if several:
        _check_several(values["threshold"], reset, strict, detach_reset, surrogate)
    zero_or_one = readout is None and not surrogate.smooth and not several
    options = Neuron(
        steps=time,
        constant=steps is not None,
        **{k: 0.0 if isinstance(value, Tensor) else value for k, value in values.items()},
        synaptic=synapse is not None,
        v_min=v_min,
        reset=RESETS.index(reset),
        strict=bool(strict),
        several=bool(several),
        detach_reset=bool(detach_reset),
        surrogate=surrogate.id,
        shape=surrogate.shape,
        scale=float(surrogate.scale),
        center=float(surrogate.center),
        smooth=surrogate.smooth,
        readout=READOUTS.index("weights" if weights is not None else readout),
        record=record is not None,
        dtype=check.spikes_dtype(dtype, x, zero_or_one, v, i, *values.values(), *learnt),
    )
    return Prepared(parameters, bits, weights, options)


def _check_several(
    threshold: float | Tensor, reset: str, strict: bool, detach_reset: bool, surrogate: Surrogate
) -> None:
    if not isinstance(threshold, Tensor) and threshold <= 0:
        raise ValueError(f"threshold: got {threshold}, accepted with several is a number above 0")
    if reset not in ("soft", "none", "hard"):
        raise ValueError(f"reset: got {reset!r}, accepted with several are 'soft', 'none', 'hard'")
    if reset == "hard" and not detach_reset:
        raise ValueError("detach_reset: got False, accepted with several and the hard reset is True")
    if strict:
        raise ValueError("strict: got True, accepted with several is False: it fires at the threshold")
    if surrogate.smooth:
        raise ValueError("surrogate: got a smooth one, accepted with several is one that spikes")


def lif_apply(x: Tensor, v: Tensor | None, i: Tensor | None, a: Prepared) -> tuple[Tensor, ...]:
    """(spikes, v), i where there is a synapse, and m where it is recorded."""
    arguments = (a.parameters, a.weights, a.bits, torch.is_grad_enabled(), a.options)
    return what_is_there(_Lif.apply(x, v, i, *arguments), a.options)


def what_is_there(outputs: Sequence[Tensor], p: Neuron) -> tuple[Tensor, ...]:
    out, last, i, membrane, _ = outputs
    return (out, last, *([i] if p.synaptic else []), *([membrane] if p.record else []))


def stack_parameters(values: dict[str, float | Tensor], dtype: torch.dtype) -> tuple[Tensor | None, int]:
    """Those of the six parameters that are tensors as one (2 or 6, C), differentiably, and a bit for each of them."""
    tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
    if not tensors:
        return None, 0
    names = PARAMETERS[AFFINE] if tensors.keys() <= set(PARAMETERS[AFFINE]) else PARAMETERS
    channels = next((tensor.numel() for tensor in tensors.values() if tensor.numel() != 1), 1)
    like = next(iter(tensors.values()))
    rows = [
        tensors[name].to(dtype).reshape(-1).expand(channels)
        if name in tensors
        else torch.full((channels,), values[name], dtype=dtype, device=like.device)
        for name in names
    ]
    return torch.stack(rows), sum(1 << k for k, name in enumerate(names) if name in tensors)


def _weights(readout: object, steps: int, device: torch.device) -> Tensor:
    if isinstance(readout, str):
        raise ValueError(f"readout: got {readout!r}, accepted are None, 'rate' or {steps} weights")
    try:
        weights = torch.as_tensor(readout, dtype=torch.float64, device=device)  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(
            f"readout: got {type(readout).__name__}, accepted are None, 'rate' or {steps} weights"
        ) from None
    if tuple(weights.shape) != (steps,):
        raise ValueError(f"readout: got weights of shape {tuple(weights.shape)}, accepted is ({steps},)")
    return weights.contiguous()


def lif(
    x: Tensor,
    v: Tensor | None = None,
    *,
    steps: int | None = None,
    decay: float | Tensor,
    threshold: float | Tensor,
    gain: float | Tensor = 1.0,
    rest: float | Tensor = 0.0,
    reset: str = "hard",
    v_reset: float | Tensor = 0.0,
    synapse: float | Tensor | None = None,
    i: Tensor | None = None,
    v_min: float | None = None,
    detach_reset: bool = False,
    strict: bool = False,
    several: bool = False,
    surrogate: Surrogate = ATan(),  # noqa: B008 - frozen
    readout: str | Tensor | Sequence[float] | None = None,
    record: str | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, ...]:
    """Leaky integrate-and-fire neurons over all time steps in one kernel, forward and backward (paper, eq. 1-3).

    Equivalent to::

        for t in range(T):
            m[t] = decay * v + (gain * x[t] + rest)
            s[t] = (m[t] >= threshold)                     # with the surrogate's derivative
            v = m[t] * (1 - s[t]) + v_reset * s[t]         # reset="hard"
                                                           # "soft": v = m[t] - threshold * s[t]; "none": v = m[t]

    `reset="delayed"` subtracts the threshold one step later, undamped: m[t] = decay * v + (gain * x[t] + rest) -
    threshold * (v >= threshold), v = m[t]; with `strict` and `detach_reset` that is snnTorch's subtraction. "at_once"
    corrects it in the same step, v = m[t] - threshold * (s[t] - (v >= threshold)) with the v from before; with `strict`
    that is snnTorch's with reset_delay=False.

    With `synapse` a synaptic current is in front: c = i + x[t] takes the place of x[t], and i = synapse * c.

    Args:
        x: input current, (T, N, *), fp64, fp32, bf16 or fp16; contiguous and channels-last (of (T, N, C, H, W)) are
            read as they are, anything else is copied once. With `steps`, (N, *): a current constant in time.
        v: membrane potential before the first step, (N, *), fp64 for fp64 x, else fp32. Default: 0.
        steps: T, for an x without time axis.
        decay, gain, rest, threshold, v_reset, synapse: finite numbers, or tensors of 1 or C elements (C: axis 2 of x),
            of any floating dtype, read on the device; all with gradients. Sums over a batch are the same for any number
            of threads.
        reset: "hard" (to `v_reset`), "soft" (subtract the threshold), "none", "delayed", "at_once" (see above).
        synapse: what is left of the synaptic current after a step, 0 to 1. Default: no synaptic current.
        i: with `synapse`, the synaptic current that is left from before the first step, (N, *), as v. Default: 0.
        v_min: lifts v to it after each step where it is below, with no gradient there. Default: none.
        detach_reset: no gradient through the spike in the reset.
        strict: fire above the threshold only, not at it.
        several: spikes are counts: s[t] = trunc(m[t] / threshold) where m[t] > 0 (Weidel and Sheik, 2021). With the
            soft or no reset, or the hard one detached (v = v_reset where s[t] > 0), and a threshold above 0 (of a
            tensor it is not checked).
        surrogate: one of `esvae_kernels.surrogate`. Default: `ATan()`.
        readout: None returns the spikes. "rate" returns their mean over time, T numbers (a tensor, which may have a
            gradient, or a sequence) the weighted sum over time; the spikes themselves are then never stored.
        record: "membrane" returns m as well, before the reset.
        dtype: the spikes' (or the readout's) dtype: fp64, fp32, bf16, fp16 (default: x's own), or for spikes that need
            no gradient uint8 (not with `several`).

    Returns:
        (spikes, v), after them with `synapse` i, and last with `record` m: spikes (T, N, *), or with a readout (N, *),
        in x's layout; the last membrane potential and synaptic current (N, *), so that a sequence can be cut anywhere
        and go on; m (T, N, *). v, i and m are fp32 (fp64 for fp64 x).

    Raises:
        TypeError, ValueError: one line naming the argument, what came and what is accepted.
    """
    a = prepare(
        x,
        v,
        steps,
        decay=decay,
        threshold=threshold,
        gain=gain,
        rest=rest,
        reset=reset,
        v_reset=v_reset,
        synapse=synapse,
        i=i,
        v_min=v_min,
        detach_reset=detach_reset,
        strict=strict,
        several=several,
        surrogate=surrogate,
        readout=readout,
        record=record,
        dtype=dtype,
    )
    return lif_apply(x, v, i, a)
