"""`lif`: the schema, the raw ops, their autograd function and the public function."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ... import backends, check, layout
from ...library import register
from ...surrogate import SURROGATES, ATan, Surrogate
from . import native, reference
from .reference import READOUTS, RESETS, Neuron, state_dtype

_OPTIONS = (
    "SymInt steps, bool constant, int reset, float decay, float gain, float rest, float threshold, float v_reset, "
    "bool strict, bool detach_reset, int surrogate, float shape, float center, bool smooth, int readout"
)


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

    def state(self, *leading: int) -> Tensor:
        shape = (*leading, *self.inner)
        return layout.empty(shape, self.channels_last, len(leading) + 1, self.x, self.state_dtype)

    def output(self) -> Tensor:
        shape = (self.p.steps, *self.inner) if READOUTS[self.p.readout] is None else self.inner
        channel = len(shape) - len(self.inner) + 1
        return layout.empty(shape, self.channels_last, channel, self.x, self.x.dtype)

    def dx(self) -> Tensor:
        return layout.empty(self.x.shape, self.channels_last, self.channel, self.x, self.x.dtype)

    def saved(self, save: bool) -> Tensor:
        return self.state((self.p.steps - 1) // native.CHUNK if save else 0)

    def dense(self, tensor: Tensor | None) -> Tensor | None:
        """A state, output or input in this call's layout."""
        if tensor is None:
            return None
        return layout.as_layout(tensor, self.channels_last, tensor.dim() - len(self.inner) + 1)


def _lif_fake(x: Tensor, v: Tensor | None, weights: Tensor | None, save: bool, *options):
    shapes = _Shapes(x, Neuron(*options))
    return shapes.output(), shapes.state(), shapes.saved(save)


def _lif(x: Tensor, v: Tensor | None, weights: Tensor | None, save: bool, *options):
    p = Neuron(*options)
    shapes = _Shapes(x, p)
    out, last, saved = shapes.output(), shapes.state(), shapes.saved(save)
    if backends.pick(x.device) == "reference":
        for result, value in zip((out, last), reference.lif(x, v, weights, p), strict=True):
            result.copy_(value)
        saved.zero_()
    else:
        native.lif(shapes.dense(x), shapes.dense(v), weights, out, last, saved, p)
    return out, last, saved


def _lif_backward_fake(x, v, saved, weights, dout, dv, *options):
    shapes = _Shapes(x, Neuron(*options))
    return shapes.dx(), shapes.state()


def _lif_backward(
    x: Tensor, v: Tensor | None, saved: Tensor, weights: Tensor | None, dout: Tensor, dv: Tensor | None, *options
):
    p = Neuron(*options)
    shapes = _Shapes(x, p)
    dx, dv0 = shapes.dx(), shapes.state()
    if backends.pick(x.device) == "reference":
        for result, value in zip((dx, dv0), reference.lif_backward(x, v, weights, dout, dv, p), strict=True):
            result.copy_(value)
    else:
        tensors = [shapes.dense(t) for t in (x, v, saved)]
        native.lif_backward(*tensors, weights, shapes.dense(dout), shapes.dense(dv), dx, dv0, p)
    return dx, dv0


def _fold(tensor: Tensor | None, dim: int | None, size: int, at: int) -> Tensor | None:
    """The vmapped axis moved into the batch axis `at`: neurons are independent of each other."""
    if tensor is None:
        return None
    tensor = tensor.unsqueeze(at).expand(*tensor.shape[:at], size, *tensor.shape[at:]) if dim is None else tensor
    tensor = tensor if dim is None else tensor.movedim(dim, at)
    return tensor.flatten(at, at + 1) if tensor.dim() > at + 1 else tensor


def _lif_vmap(info, dims, x, v, weights, save, *options):
    p = Neuron(*options)
    _unbatched_weights(dims[2])
    size, time = info.batch_size, 0 if p.constant else 1
    inner = _inner(x, dims[0], time)
    out, last, saved = lif_fwd(_fold(x, dims[0], size, time), _fold(v, dims[1], size, 0), weights, save, *options)
    out_time = 1 if READOUTS[p.readout] is None else 0
    results = (_unfold(out, out_time, size, inner), _unfold(last, 0, size, inner), _unfold(saved, 1, size, inner))
    return results, (out_time, 0, 1)


def _lif_backward_vmap(info, dims, x, v, saved, weights, dout, dv, *options):
    p = Neuron(*options)
    _unbatched_weights(dims[3])
    size, time = info.batch_size, 0 if p.constant else 1
    inner = _inner(x, dims[0], time)
    out_time = 1 if READOUTS[p.readout] is None else 0
    dx, dv0 = lif_bwd(
        _fold(x, dims[0], size, time),
        _fold(v, dims[1], size, 0),
        _fold(saved, dims[2], size, 1),
        weights,
        _fold(dout, dims[4], size, out_time),
        _fold(dv, dims[5], size, 0),
        *options,
    )
    return (_unfold(dx, time, size, inner), _unfold(dv0, 0, size, inner)), (time, 0)


def _unbatched_weights(dim: int | None) -> None:
    if dim is not None:
        raise NotImplementedError("readout: vmap over the weights is not supported, give the same to every call")


def _inner(x: Tensor, dim: int | None, time: int) -> tuple[int, ...]:
    shape = list(x.shape)
    if dim is not None:
        del shape[dim]
    return tuple(shape[time:])


def _unfold(tensor: Tensor, at: int, size: int, inner: tuple[int, ...]) -> Tensor:
    return tensor.reshape(*tensor.shape[:at], size, *inner)


lif_fwd = register(
    f"lif_fwd(Tensor x, Tensor? v, Tensor? weights, bool save, {_OPTIONS}) -> (Tensor, Tensor, Tensor)",
    _lif,
    _lif_fake,
    _lif_vmap,
)
lif_bwd = register(
    "lif_bwd(Tensor x, Tensor? v, Tensor saved, Tensor? weights, Tensor dout, Tensor? dv, "
    f"{_OPTIONS}) -> (Tensor, Tensor)",
    _lif_backward,
    _lif_backward_fake,
    _lif_backward_vmap,
)


class _Lif(torch.autograd.Function):
    """(x, v, weights, save, options) -> (out, last v, saved potentials)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x, v, weights, save, options):
        return lif_fwd(x, v, weights, save, *options)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, v, weights, _, ctx.options = inputs
        ctx.mark_non_differentiable(output[2])
        ctx.save_for_backward(x, v, weights, output[2])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, dout, dv, _):
        x, v, weights, saved = ctx.saved_tensors
        if dout is None and dv is None:
            return (None,) * 5
        if dout is None:
            p = ctx.options
            dout = x.new_zeros(x.shape if READOUTS[p.readout] is None or p.constant else x.shape[1:])
            dout = dout.expand(p.steps, *x.shape) if READOUTS[p.readout] is None and p.constant else dout
        dx, dv0 = _LifBackward.apply(x, v, saved, weights, dout, dv, ctx.options)
        return dx, None if v is None else dv0, None, None, None


class _LifBackward(torch.autograd.Function):
    """The backward as a function of its own, so that it can be differentiated again: through the reference."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x, v, saved, weights, dout, dv, options):
        return lif_bwd(x, v, saved, weights, dout, dv, *options)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, v, _, weights, dout, dv, ctx.options = inputs
        ctx.save_for_backward(x, v, weights, dout, dv)

    @staticmethod
    def backward(ctx, ddx, ddv0):
        x, v, weights, dout, dv = ctx.saved_tensors
        p = ctx.options
        again = torch.is_grad_enabled()
        with torch.enable_grad():
            x, v, dout, dv = (
                None if t is None else t.view_as(t) if t.requires_grad else t.detach().requires_grad_()
                for t in (x, v, dout, dv)
            )
            out, last = reference.lif(x, v, weights, p)
            inputs = [t for t in (x, v) if t is not None]
            outputs = [(out, dout)] if dv is None else [(out, dout), (last, dv)]
            first = torch.autograd.grad(
                [o for o, _ in outputs], inputs, [g for _, g in outputs], create_graph=True, materialize_grads=True
            )
            wanted = [t for t in (x, v, dout, dv) if t is not None]
            second = iter(
                torch.autograd.grad(
                    first, wanted, [ddx, ddv0][: len(inputs)], create_graph=again, materialize_grads=True
                )
            )
        dx, dv0, ddout, ddv = (None if t is None else next(second) for t in (x, v, dout, dv))
        return dx, dv0, None, None, ddout, ddv, None


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
    detach_reset: bool = False,
    strict: bool = False,
    surrogate: Surrogate = ATan(),  # noqa: B008 - frozen
    readout: str | Tensor | Sequence[float] | None = None,
    record: str | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """Leaky integrate-and-fire neurons over all time steps in one kernel, forward and backward (paper, eq. 1-3).

    Equivalent to::

        for t in range(T):
            m = decay * v + gain * x[t] + rest
            s[t] = (m >= threshold)                     # with the surrogate's derivative
            v = m * (1 - s[t]) + v_reset * s[t]         # reset="hard"; "soft": v = m - threshold * s[t]

    Args:
        x: input current, (T, N, *), fp64, fp32, bf16 or fp16; contiguous and channels-last (of (T, N, C, H, W)) are
            read as they are, anything else is copied once. With `steps`, (N, *): a current constant in time.
        v: membrane potential before the first step, (N, *), fp64 for fp64 x, else fp32. Default: 0.
        steps: T, for an x without time axis.
        decay, gain, rest, threshold, v_reset: finite numbers, the same for all neurons.
        reset: "hard" (to `v_reset`) or "soft" (subtract the threshold).
        detach_reset: no gradient through the spike in the reset.
        strict: fire above the threshold only, not at it.
        surrogate: one of `esvae_kernels.surrogate`. Default: `ATan()`.
        readout: None returns the spikes. "rate" returns their mean over time, T numbers (a tensor or a sequence; no
            gradient) the weighted sum over time; the spikes themselves are then never stored.
        record: reserved for "membrane".
        dtype: the spikes' dtype; this version serves x's own.

    Returns:
        (spikes, v): spikes (T, N, *), or with a readout (N, *), in x's dtype and layout; the last membrane potential
        (N, *), so that a sequence can be cut anywhere and go on.

    Raises:
        TypeError, ValueError: one line naming the argument, what came and what is accepted.
        NotImplementedError: for what the signature has and this version does not.
    """
    if steps is None:
        check.floating("x", x, 2, "(T, N, *)")
        time, inner = check.steps("x's time axis T", x.shape[0]), tuple(x.shape[1:])
    else:
        check.floating("x", x, 1, "(N, *) when steps= is given")
        time, inner = check.steps("steps", steps), tuple(x.shape)
    channels = inner[1] if len(inner) > 1 else 1
    if v is not None:
        check.like("v", v, inner, state_dtype(x.dtype), x.device)
    surrogate = check.surrogate(surrogate)
    if reset in ("none", "delayed"):
        raise NotImplementedError(f"reset: {reset!r} is not there yet; accepted are {', '.join(RESETS)}")
    if reset not in RESETS:
        raise ValueError(f"reset: got {reset!r}, accepted are {', '.join(RESETS)}")
    if record is not None:
        raise NotImplementedError(f"record: got {record!r}; this version records nothing, accepted is None")
    if dtype not in (None, x.dtype):
        raise NotImplementedError(f"dtype: got {dtype}; this version returns spikes in x's dtype, {x.dtype}")
    weights = (
        None
        if readout is None or (isinstance(readout, str) and readout == "rate")
        else _weights(readout, time, x.device)
    )
    p = Neuron(
        steps=time,
        constant=steps is not None,
        reset=RESETS.index(reset),
        decay=check.number("decay", decay, channels),
        gain=check.number("gain", gain, channels),
        rest=check.number("rest", rest, channels),
        threshold=check.number("threshold", threshold, channels),
        v_reset=check.number("v_reset", v_reset, channels),
        strict=bool(strict),
        detach_reset=bool(detach_reset),
        surrogate=surrogate.id,
        shape=surrogate.shape,
        center=float(surrogate.center),
        smooth=surrogate.smooth,
        readout=READOUTS.index("weights" if weights is not None else readout),
    )
    out, last, _ = _Lif.apply(x, v, weights, torch.is_grad_enabled(), p)
    return out, last


def _weights(readout: object, steps: int, device: torch.device) -> Tensor:
    if isinstance(readout, str):
        raise ValueError(f"readout: got {readout!r}, accepted are None, 'rate' or {steps} weights")
    if isinstance(readout, Tensor) and readout.requires_grad:
        raise NotImplementedError("readout: got weights that require a gradient; this version takes constants")
    try:
        weights = torch.as_tensor(readout, dtype=torch.float64, device=device)  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(
            f"readout: got {type(readout).__name__}, accepted are None, 'rate' or {steps} weights"
        ) from None
    if tuple(weights.shape) != (steps,):
        raise ValueError(f"readout: got weights of shape {tuple(weights.shape)}, accepted is ({steps},)")
    return weights.contiguous()
