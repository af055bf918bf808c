"""Norse's LIFBoxCell, LIFCell and LIF on the fused kernels (Norse 1.1; this module imports it); `sequence` for the
cells, all time steps in one call, and `unroll`, a loop over time of a whole network.

They are subclasses of Norse's, with the same arguments, attributes, states and returns. With g = dt tau_mem_inv and
q = dt tau_syn_inv:

    LIFBoxCell       v = v + g (x + v_leak - v)                   = (1 - g) v + (g x + g v_leak)
    LIFCell, LIF     c = i + x
                     v = v + g ((v_leak - v) + c)                 = (1 - g) v + (g c + g v_leak)
                     i = c - q c                                  = (1 - q) c
    all              z = [v > v_th];  v = (1 - z) v + z v_reset   or with `reset_subtract` v - z v_th

Ours computes what is on the right, in fp32 (fp64 for fp64 x), so that a spike can differ where the potential is within
rounding of the threshold. Where x and all states are fp16 or bf16, to which `LIFBoxCell` comes by itself, Norse
computes in that dtype; ours is as exact as in fp32, and only the spikes and the state that come back are rounded.

What the kernels have no form for runs by Norse's own code: `why_not` and `why_slow` of the classes say what and why.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import reduce
from typing import ClassVar

import norse.torch as norse
import torch
from norse.torch.functional.lif import LIFFeedForwardState, lif_feed_forward_step
from norse.torch.functional.lif_box import LIFBoxFeedForwardState, lif_box_feed_forward_step
from norse.torch.functional.reset import reset_subtract, reset_value
from norse.torch.functional.superspike import super_fn
from norse.torch.module.snn import SNN, SNNCell, SNNRecurrent, SNNRecurrentCell
from norse.torch.utils.state import _is_module_stateful
from torch import Tensor, nn

from ..native import DTYPES
from ..ops.lif import lif
from ..ops.lif.reference import state_dtype
from ..reset import Hard, Soft
from ..surrogate import Erf, FastSigmoid, Sigmoid, Surrogate, Triangular
from .folding import BATCH_STATISTICS, RANDOM, STATELESS, fixed_statistics, hooked
from .parameters import is_number, readable

__all__ = ["LIF", "LIFBoxCell", "LIFCell", "unroll"]

# Single steps of fewer elements run by Norse's ten small ops: a call of the kernel takes longer to start. CPU, one
# thread (2026-12-01): with 2^16 elements LIFCell and LIFBoxCell take 0.76 to 1.17 of its time, forward or forward and
# backward, with 2^17 0.55 to 0.97; elsewhere not measured, as for snnTorch.
LEAST_ELEMENTS = {"cpu": 1 << 17}
LEAST_ELEMENTS_ELSEWHERE = 1 << 22

RESETS = {reset_value: "hard", reset_subtract: "soft"}


def _alpha_counts() -> bool:
    """Whether the derivative of "super" is 1 / (1 + alpha |u|)^2; in Norse 1.1.0 it is 1 / (1 + |u|)^2."""
    u = torch.ones((), requires_grad=True)
    (derivative,) = torch.autograd.grad(super_fn(u, torch.tensor(3.0)), u)
    return derivative.item() < 1 / 5  # 1/16 or 1/4


SURROGATES: dict[str, Callable[[float], Surrogate]] = {  # Norse's method -> alpha to ours
    "triangle": lambda alpha: Triangular(1.0, scale=alpha),
    "tanh": lambda alpha: Sigmoid(2 * alpha, scale=2 / alpha),
    "heavi_erfc": lambda alpha: Erf(alpha, scale=2 / alpha),
}
ALPHA_UNUSED: dict[str, Surrogate] = {}
if _alpha_counts():
    SURROGATES["super"] = FastSigmoid
else:
    ALPHA_UNUSED["super"] = FastSigmoid(1.0)


def surrogate_of(method: object, alpha: object) -> Surrogate | None:
    """Ours with the same derivative; None where there is none, or alpha cannot be read at once."""
    if method in ALPHA_UNUSED:
        return ALPHA_UNUSED[method]
    if isinstance(alpha, Tensor):
        if alpha.numel() != 1 or not alpha.is_cpu or torch.compiler.is_compiling():
            return None
        alpha = alpha.item()
    known = method in SURROGATES and is_number(alpha) and 0 < alpha < math.inf
    return SURROGATES[method](float(alpha)) if known else None


class _Neuron:
    """What runs otherwise, in front of Norse's class."""

    _activation: ClassVar[Callable]
    _state: ClassVar[type]
    _parameters: ClassVar[tuple[str, ...]] = ("tau_mem_inv", "v_leak", "v_th", "v_reset")

    @classmethod
    def why_not(cls, layer: nn.Module) -> str | None:
        """Why the kernels can run none of the calls of `layer`, Norse's or ours; None where they can."""
        p = layer.p
        if layer.activation is not cls._activation:
            return f"activation: got {_shown(layer.activation)}, the kernels know {cls._activation.__name__}"
        for name in cls._parameters:
            value = getattr(p, name, None)
            if not is_number(value) and (not isinstance(value, Tensor) or value.is_complex()):
                return f"p.{name}: got {_shown(value)}, the kernels take real numbers and tensors"
        if surrogate_of(p.method, p.alpha) is None:
            known = ", ".join(sorted({*SURROGATES, *ALPHA_UNUSED}))
            return (
                f"p.method: got {p.method!r} with alpha {_shown(p.alpha)}, the kernels know {known}, with one number "
                "above 0 on the CPU"
            )
        if cls._reset(p) is None:
            return f"p.reset_method: got {_shown(p.reset_method)}, the kernels know reset_value and reset_subtract"
        return None

    def why_slow(self, x: Tensor, state: object) -> str | None:
        """Why a step with the current x (N, *) from `state` runs by Norse's own code; None where the kernels run it."""
        if not isinstance(x, Tensor) or x.layout != torch.strided or x.dtype not in DTYPES or not x.dim():
            return "x: the kernels take dense tensors of floating point, with an axis N"
        reason = "x: is empty" if not x.numel() else self.why_not(self)
        if reason:
            return reason
        states = {f"state.{name}": getattr(state, name, None) for name in self._state._fields}
        for name, value in states.items():
            if not isinstance(value, Tensor):
                return f"{name}: got {_shown(value)}, the kernels take tensors"
        parameters = self._tensors()
        for name, value in ({f"p.{name}": value for name, value in parameters.items()} | states).items():
            if value.layout != torch.strided or not _broadcasts(value, x.shape):
                return f"{name}: got {_shown(value)}, the kernels take what broadcasts to {tuple(x.shape)}"
            if value.device != x.device and (value.dim() or not value.is_cpu):
                return f"{name}: got {value.device}, x is on {x.device}"
        dtype = _promoted(x, *parameters.values(), *states.values())
        if dtype not in DTYPES or state_dtype(dtype) != state_dtype(x.dtype):
            return f"x: got {x.dtype}, which the parameters or the state turn into {dtype}"
        return None

    @classmethod
    def _reset(cls, p: object) -> str | None:
        """ "hard" or "soft"; None: another."""
        return "hard"

    def _tensors(self) -> dict[str, Tensor]:
        """The parameters that are tensors."""
        values = {name: getattr(self.p, name) for name in self._parameters}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}

    def _values(self, x: Tensor) -> dict[str, float | Tensor]:
        """The numbers of the equation as `lif` calls them; tensors have the shapes of Norse's."""
        gain = _value(self.dt * self.p.tau_mem_inv, x)
        return {
            "decay": 1 - gain,
            "gain": gain,
            "bias": gain * _value(self.p.v_leak, x),
            "threshold": _value(self.p.v_th, x),
            "v_reset": _value(self.p.v_reset, x),
        }

    def _dtypes(self, x: Tensor, states: dict[str, Tensor]) -> dict[str, torch.dtype]:
        """Of the states that come back; spikes have that of v."""
        return {"v": _promoted(x, *self._tensors().values(), *states.values())}

    def _run(self, x: Tensor, state: object, record_states: bool = False) -> tuple[Tensor, object]:
        """x (T, N, *) -> spikes (T, N, *), and the last state (N, *) or, recorded, that after each step (T, N, *)."""
        inner, values = x.shape[1:], self._values(x)
        states = {name: getattr(state, name) for name in self._state._fields}
        dtypes = self._dtypes(x, states)
        shape = _kernel_shape(values, inner)
        parameters = {name: _kernel_parameter(value, shape, inner) for name, value in values.items()}
        reset = Soft() if self._reset(self.p) == "soft" else Hard(parameters.pop("v_reset"))
        current = x.reshape(len(x), *shape)
        first = {
            name: value.to(x.device, state_dtype(x.dtype)).expand(inner).reshape(shape)
            for name, value in states.items()
        }
        spikes, *after = lif(
            current,
            **first,
            **parameters,
            reset=reset,
            fire=">",
            surrogate=surrogate_of(self.p.method, self.p.alpha),
            record="membrane" if record_states else None,
            dtype=dtypes["v"],
        )
        spikes = spikes.reshape(x.shape)
        if record_states:
            inner = x.shape
            v = _after_reset(after[-1].reshape(inner), spikes, values["v_reset"])
            after = [v, _currents(current, first["i"], parameters["synaptic_decay"])]
        after = zip(states, after, strict=True)
        return spikes, self._state(**{name: value.reshape(inner).to(dtypes[name]) for name, value in after})


class _Cell(_Neuron):
    def forward(self, input_tensor: Tensor, state: object = None) -> tuple[Tensor, object]:
        state = state if state is not None else self.state_fallback(input_tensor)
        least = LEAST_ELEMENTS.get(input_tensor.device.type, LEAST_ELEMENTS_ELSEWHERE)
        if input_tensor.numel() < least or self.why_slow(input_tensor, state) is not None:
            return super().forward(input_tensor, state)
        spikes, state = self._run(input_tensor.unsqueeze(0), state)
        return spikes.squeeze(0), state

    def sequence(self, x: Tensor, state: object = None) -> tuple[Tensor, object]:
        """All time steps in one kernel.

        Equivalent to::

            for t in range(T):
                spikes[t], state = cell(x[t], state)

        Args:
            x: (T, N, *).
            state: that before the first step. Default: the cell's initial one.

        Returns:
            (spikes, state): spikes (T, N, *), the state after the last step. The cell's hooks expect single steps, and
            are not called.

        Raises:
            ValueError: an x without time or neurons.
        """
        if not isinstance(x, Tensor) or x.dim() < 2 or not len(x):
            got = f"shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(f"x: got {got}, accepted is (T, N, *) with T of at least 1")
        state = state if state is not None else self.state_fallback(x[0])
        if self.why_slow(x[0], state) is None:
            return self._run(x, state)
        spikes = []
        for x_t in x.unbind(0):
            spike, state = super().forward(x_t, state)
            spikes.append(spike)
        return torch.stack(spikes), state


class LIFBoxCell(_Cell, norse.LIFBoxCell):
    """Norse's `LIFBoxCell`, and `sequence`."""

    _activation = staticmethod(lif_box_feed_forward_step)
    _state = LIFBoxFeedForwardState

    @classmethod
    def _reset(cls, p: object) -> str | None:
        return RESETS.get(getattr(p, "reset_method", None))

    def _values(self, x: Tensor) -> dict[str, float | Tensor]:
        values = super()._values(x)
        if self._reset(self.p) == "soft":
            del values["v_reset"]  # Norse's gradient of it is None too
        return values


class _Synaptic(_Neuron):
    """A synaptic current in front of the membrane."""

    _activation = staticmethod(lif_feed_forward_step)
    _state = LIFFeedForwardState
    _parameters = ("tau_syn_inv", *_Neuron._parameters)

    def _values(self, x: Tensor) -> dict[str, float | Tensor]:
        return super()._values(x) | {"synaptic_decay": 1 - _value(self.dt * self.p.tau_syn_inv, x)}

    def _dtypes(self, x: Tensor, states: dict[str, Tensor]) -> dict[str, torch.dtype]:
        current = [states["i"], *(t for name, t in self._tensors().items() if name == "tau_syn_inv")]
        return super()._dtypes(x, states) | {"i": _promoted(x, *current)}


class LIFCell(_Synaptic, _Cell, norse.LIFCell):
    """Norse's `LIFCell`, and `sequence`."""


class LIF(_Synaptic, norse.LIF):
    """Norse's `LIF`: all time steps in one kernel, with `record_states` in two."""

    def forward(self, input_tensor: Tensor, state: object = None) -> tuple[Tensor, object]:
        state = state if state is not None else self.state_fallback(input_tensor)
        if not input_tensor.shape[0] or self.why_slow(input_tensor[0], state) is not None:
            return super().forward(input_tensor, state)
        return self._run(input_tensor, state, self.record_states)


REPLACEMENTS: dict[type, type] = {
    norse.LIFBoxCell: LIFBoxCell,
    norse.LIFCell: LIFCell,
    norse.LIF: LIF,
}
NEURONS: tuple[type, ...] = (SNNCell, SNN, SNNRecurrentCell, SNNRecurrent)


def _value(value: float | Tensor, x: Tensor) -> float | Tensor:
    dtype = state_dtype(x.dtype)
    if isinstance(value, Tensor):
        if not readable(value):
            return value.to(x.device, dtype)
        value = value.item()
    return float(value) if math.isfinite(value) else x.new_full((), value, dtype=dtype)


def _broadcasts(value: Tensor, shape: torch.Size) -> bool:
    sizes = zip(reversed(value.shape), reversed(shape), strict=False)
    return value.dim() <= len(shape) and all(size == 1 or size == wanted for size, wanted in sizes)


def _promoted(*tensors: Tensor) -> torch.dtype:
    """Of what is computed from all of them: those without axes do not count."""
    return reduce(torch.promote_types, [tensor.dtype for tensor in tensors if tensor.dim()])


def _kernel_shape(values: dict[str, float | Tensor], inner: torch.Size) -> tuple[int, ...]:
    """A step (N, *) as the kernel sees it. It has one parameter per channel (axis 1): where parameters differ along
    other axes, those become channels, (N, all others) or, if they differ along N, (1, all)."""
    tensors = [value for value in values.values() if isinstance(value, Tensor)]
    along = {len(inner) - k for value in tensors for k, size in enumerate(reversed(value.shape), 1) if size != 1}
    if along <= {1}:
        return tuple(inner)
    batch = 0 if 0 in along else 1
    return math.prod(inner[:batch]), math.prod(inner[batch:])


def _kernel_parameter(value: float | Tensor, shape: tuple[int, ...], inner: torch.Size) -> float | Tensor:
    if not isinstance(value, Tensor):
        return value
    if value.numel() == 1 or shape == inner:
        return value.reshape(-1)
    return value.expand(inner if shape[0] == 1 else (1, *inner[1:])).reshape(-1)


def _after_reset(m: Tensor, spikes: Tensor, v_reset: float | Tensor) -> Tensor:
    """Exact, as spikes are 0 or 1."""
    return torch.lerp(m, torch.as_tensor(v_reset, dtype=m.dtype, device=m.device), spikes.to(m.dtype))


def _currents(x: Tensor, i: Tensor, decay: float | Tensor) -> Tensor:
    """The synaptic current after each step: i = decay i + decay x, a neuron that never resets."""
    return lif(x, i, decay=decay, gain=decay, threshold=1.0, reset=None, readout="mean", record="membrane")[-1]


def _shown(value: object) -> str:
    if isinstance(value, Tensor) and value.dim():
        return f"a tensor of shape {tuple(value.shape)} and layout {value.layout}"
    return getattr(value, "__qualname__", None) or repr(value)[:80]


# ---------------------------------------------------------------------------------------------- a loop over time


def unroll(net: nn.Module, x: Tensor, state: object = None) -> tuple[Tensor, object]:
    """A loop over time of a network of cells: each layer through all time steps before the next one starts.

    Equivalent to Norse's `Lift(net)((x, state))`, that is to::

        for t in range(T):
            out[t], state = net(x[t], state)

    `net` is a `SequentialState` (of such too) or a layer. In it, converted cells run all time steps in one kernel, and
    layers that treat each sample by itself see time as part of the batch: sums may be rounded otherwise than a step at
    a time, so that spikes can differ where a potential meets the threshold. All others, those with hooks among them,
    are called step by step; random numbers are so drawn layer by layer.

    Args:
        x: (T, N, *).
        state: the net's, as it returned it. Default: the initial one.

    Returns:
        (out, state): (T, N, *), and the state after the last step, None of a net that has none.

    Raises:
        ValueError: an x without time.
    """
    if not isinstance(x, Tensor) or x.dim() < 2 or not len(x):
        got = f"shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"x: got {got}, accepted is (T, N, *) with T of at least 1")
    return _over_time(net, x, state)


def _over_time(layer: nn.Module, x: Tensor, state: object) -> tuple[Tensor, object]:
    forward = type(layer).forward
    if not hooked(layer):
        if forward is norse.SequentialState.forward and not layer.return_hidden:
            states = [None] * len(layer) if state is None else list(state)
            for index, child in enumerate(layer):
                x, states[index] = _over_time(child, x, states[index])
            return x, states
        if forward is nn.Sequential.forward and not any(map(_is_module_stateful, layer)):
            for child in layer:
                x, _ = _over_time(child, x, None)
            return x, None
        if forward is _Cell.forward:
            return layer.sequence(x, state)
        out = layer(x.flatten(0, 1)) if _by_sample(layer, x) else None
        if isinstance(out, Tensor) and out.dim() and out.shape[0] == x.shape[0] * x.shape[1]:
            return out.unflatten(0, x.shape[:2]), None
    return _step_by_step(layer, x, state)


def _by_sample(layer: nn.Module, x: Tensor) -> bool:
    """Whether `layer` treats each sample by itself, and x (T, N, *) has an axis N."""
    kind = type(layer)
    if kind in STATELESS or (kind in RANDOM and not layer.training):
        known = True
    else:
        known = kind in BATCH_STATISTICS and fixed_statistics(layer)
    spatial = kind.__name__[-2:] in ("1d", "2d", "3d")  # these take a sample without N too
    return known and (x.dim() == int(kind.__name__[-2]) + 3 if spatial else x.dim() > 2)


def _step_by_step(layer: nn.Module, x: Tensor, state: object) -> tuple[Tensor, object]:
    out, stateful = [], _is_module_stateful(layer)
    for x_t in x.unbind(0):
        result = layer(x_t, state) if stateful else layer(x_t)
        if stateful:
            result, state = result
        out.append(result)
    return torch.stack(out), state
