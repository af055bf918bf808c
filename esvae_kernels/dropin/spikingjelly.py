"""SpikingJelly's neurons on our kernels (SpikingJelly 2.0 or later; this module imports it).

`LIFNode`, `IFNode`, `ParametricLIFNode` and `PoissonEncoder` are subclasses of SpikingJelly's, with the same arguments,
attributes and state. With q = 1/tau, or sigmoid(w) of `ParametricLIFNode`, and r = v_reset, or 0 where that is None:

    h = v + q (x - (v - r))    = (1 - q) v + (q x + q r)
    h = v - q (v - r) + x      = (1 - q) v + (x + q r)      decay_input=False
    h = v + x                                               IFNode

Ours computes what is on the right, in fp32 (fp64 for fp64 x), so that of LIF neurons a spike can differ where h is
within rounding of the threshold; IF neurons are equal bit for bit. For fp16 and bf16 x, SpikingJelly computes in that
dtype; ours is as exact as in fp32, and only `v` and `v_seq` are rounded to x's dtype, which SpikingJelly gives them.

What the kernels lack (a surrogate, a precision profile, a threshold that is a tensor, ...) runs in SpikingJelly's own
code, call by call, and `convert` does not replace such a layer.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import ClassVar

import torch
from spikingjelly.activation_based import encoding, neuron, surrogate
from torch import Tensor, nn

from ..native import DTYPES
from ..ops.lif import lif
from ..ops.lif.reference import state_dtype
from ..ops.poisson import poisson
from ..reset import Hard, Soft
from ..surrogate import (
    ATan,
    Erf,
    PiecewiseExp,
    PiecewiseQuadratic,
    Rectangular,
    Sigmoid,
    SoftSign,
    StraightThrough,
    SuperSpike,
    Surrogate,
)
from .parameters import is_number, number, readable

__all__ = ["IFNode", "LIFNode", "ParametricLIFNode", "PoissonEncoder"]

if not hasattr(neuron.BaseNode, "materialize_states"):
    raise ImportError("spikingjelly: got a version before 2.0, accepted is 2.0 or later")

SURROGATES = {  # SpikingJelly's class -> (alpha, spiking) to ours
    surrogate.Sigmoid: lambda alpha, spiking: Sigmoid(alpha, spiking=spiking),
    surrogate.ATan: lambda alpha, spiking: ATan(alpha, spiking=spiking),
    surrogate.PiecewiseQuadratic: lambda alpha, spiking: PiecewiseQuadratic(alpha, spiking=spiking),
    surrogate.PiecewiseExp: lambda alpha, spiking: PiecewiseExp(alpha, spiking=spiking),
    surrogate.SoftSign: lambda alpha, spiking: SoftSign(alpha, spiking=spiking),
    surrogate.SuperSpike: lambda alpha, spiking: SuperSpike(alpha, spiking=spiking),
    surrogate.Erf: lambda alpha, spiking: Erf(alpha, spiking=spiking),
    surrogate.Rect: lambda alpha, spiking: Rectangular(1 / alpha, spiking=spiking),
    surrogate.DeterministicPass: lambda alpha, spiking: StraightThrough(spiking=spiking),
}

# A single step of fewer elements, in step mode "s" or with T = 1, runs by SpikingJelly's small ops: a call of the
# kernel takes longer to start. CPU, one thread (2026-12-01): with 2^13 elements LIFNode and IFNode take 0.87 to 1.18 of
# the original's time, forward without gradients or forward and backward, with 2^14 0.68 to 0.88, with 2^15 0.44 to
# 0.79. ParametricLIFNode, whose decay is learnt, takes 1.1 to 1.2 with 2^15 and 0.33 to 1.0 with 2^16; of few elements
# 1.3 of the time at T = 2, 0.9 at T = 3. Elsewhere not measured.
LEAST_ELEMENTS = {"cpu": 1 << 14}
LEAST_ELEMENTS_ELSEWHERE = 0

_DYNAMICS = ("materialize_states", "single_step_functional_forward", "multi_step_functional_forward")
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def surrogate_of(function: nn.Module) -> Surrogate | None:
    """Ours for SpikingJelly's `function`, or None."""
    alpha = getattr(function, "alpha", 1.0)
    if type(function) not in SURROGATES or not is_number(alpha) or not 0 < alpha < math.inf:
        return None
    make = _made.__wrapped__ if torch.compiler.is_compiling() else _made
    return make(type(function), float(alpha), bool(function.spiking))


@lru_cache(maxsize=256)
def _made(cls: type, alpha: float, spiking: bool) -> Surrogate:
    return SURROGATES[cls](alpha, spiking)


def _least_elements(x: Tensor) -> int:
    return LEAST_ELEMENTS["cpu"] if x.is_cpu else LEAST_ELEMENTS_ELSEWHERE


def _is_finite(value: object) -> bool:
    return is_number(value) and abs(value) < math.inf


def _short(value: object) -> str:
    return f"a {type(value).__name__}" if isinstance(value, Tensor) else repr(value)[:80]


class _Node:
    """What runs otherwise, in front of SpikingJelly's class."""

    _library: ClassVar[type]
    _few: ClassVar[int] = 1  # time steps in one call for which LEAST_ELEMENTS holds
    _cost: ClassVar[int] = 1  # of the way to the kernel: multiplies LEAST_ELEMENTS

    def __init__(self, *args: object, backend: str | None = None, **kwargs: object) -> None:
        """SpikingJelly's arguments; `backend`, of its earlier versions, is accepted and ignored."""
        super().__init__(*args, **kwargs)

    def single_step_forward(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        if args or kwargs or not self._runs(x, 1):
            return super().single_step_forward(x, *args, **kwargs)
        spikes, self.v, _ = self._run(x.unsqueeze(0), self.v)
        if self.store_v_seq:
            self._append_v_seq(self.v)
        return spikes.squeeze(0)

    def multi_step_forward(self, x_seq: Tensor, *args: object, **kwargs: object) -> Tensor:
        if args or kwargs or not self._runs(x_seq, 2):
            return super().multi_step_forward(x_seq, *args, **kwargs)
        spikes, self.v, self.v_seq = self._run(x_seq, self.v, self.store_v_seq)
        return spikes

    def functional_forward(
        self, inputs: tuple[Tensor, ...], states: tuple[object, ...], **kwargs: object
    ) -> tuple[tuple[Tensor, ...], tuple[object, ...]]:
        single = self.step_mode == "s"
        if kwargs or len(inputs) != 1 or not self._runs(inputs[0], 1 if single else 2):
            return super().functional_forward(inputs, states, **kwargs)
        spikes, v, _ = self._run(inputs[0].unsqueeze(0) if single else inputs[0], states[0])
        return (spikes.squeeze(0) if single else spikes,), (v, *states[1:])

    def _runs(self, x: Tensor, least_dims: int) -> bool:
        """Whether this call is one for the kernels; SpikingJelly's own code has the rest, its errors included."""
        if x.dim() < least_dims or not (time := len(x)) or x.dtype not in DTYPES:
            return False
        if (time <= self._few or least_dims == 1) and x.numel() < self._cost * _least_elements(x):
            return False
        return self.why_not(self) is None

    def _run(self, x: Tensor, v: object, store_v_seq: bool = False) -> tuple[Tensor, Tensor, Tensor | None]:
        """x (T, N, *) and the state -> spikes (T, N, *), the next state (N, *), and if it is stored that after each
        step (T, N, *)."""
        soft, dtype = self.v_reset is None, state_dtype(x.dtype)
        at_zero = isinstance(v, float) and v == 0  # the kernels then read no state
        v = None if at_zero else self.materialize_states((x,), (v,), "m")[0].to(dtype)
        # An infinite threshold is never reached: neither is the largest number.
        threshold = min(self.v_threshold, torch.finfo(dtype).max)
        spikes, last, *membrane = lif(
            x,
            v,
            **self._charge(),
            threshold=threshold,
            reset=Soft(self.detach_reset) if soft else Hard(self.v_reset, self.detach_reset),
            surrogate=surrogate_of(self.surrogate_function),
            record="membrane" if store_v_seq else None,
        )
        v_seq = self._after_reset(membrane[0], spikes, threshold).to(x.dtype) if store_v_seq else None
        return spikes, last.to(x.dtype), v_seq

    def _after_reset(self, m: Tensor, spikes: Tensor, threshold: float) -> Tensor:
        """The state after each step, in one pass."""
        s = (spikes.detach() if self.detach_reset else spikes).to(m.dtype)
        if self.v_reset is None:
            return torch.sub(m, s, alpha=threshold)
        return torch.lerp(m, m.new_full((), self.v_reset), s)  # exact where s is 0 or 1

    def _charge(self) -> dict[str, float | Tensor]:
        """decay, gain and bias of h = decay v + (gain x + bias)."""
        raise NotImplementedError

    @classmethod
    def why_not(cls, layer: nn.Module) -> str | None:
        """What `layer`, SpikingJelly's or ours, has that the kernels lack, or None."""
        function = layer.surrogate_function
        for name in _DYNAMICS:
            if getattr(getattr(layer, name), "__func__", None) is not getattr(cls._library, name):
                return f"its {name} is its own"
        if not isinstance(layer.v, float | Tensor):
            return f"its state v is {_short(layer.v)}, accepted are a float and a tensor"
        if layer._neuron_precision is not None:
            return "it has a precision profile of SpikingJelly's own kernels"
        if not isinstance(function, nn.Module) or surrogate_of(function) is None:
            return f"the kernels lack the surrogate {function!r}"
        if "forward" in function.__dict__ or any(getattr(function, hooks) for hooks in _HOOKS):
            return "its surrogate_function has hooks, which the kernels would not call"
        if not function.spiking and type(function) is surrogate.SuperSpike:
            return "SuperSpike has no primitive in SpikingJelly"
        if layer.v_reset is not None and not _is_finite(layer.v_reset):
            return f"its v_reset is {_short(layer.v_reset)}, accepted are a finite number and None"
        never_fires = is_number(layer.v_threshold) and layer.v_threshold == math.inf
        if not _is_finite(layer.v_threshold) and not (never_fires and layer.v_reset is not None and function.spiking):
            return f"its v_threshold is {_short(layer.v_threshold)}, accepted is a finite number"
        return None


class LIFNode(_Node, neuron.LIFNode):
    """SpikingJelly's `LIFNode`."""

    _library = neuron.LIFNode

    def _charge(self) -> dict[str, float | Tensor]:
        q = 1 / self.tau
        return {"decay": 1 - q, "gain": q if self.decay_input else 1.0, "bias": q * (self.v_reset or 0.0)}

    @classmethod
    def why_not(cls, layer: nn.Module) -> str | None:
        if not is_number(layer.tau) or not layer.tau > 0:
            return f"its tau is {_short(layer.tau)}, accepted is a number above 0"
        return super().why_not(layer)


class IFNode(_Node, neuron.IFNode):
    """SpikingJelly's `IFNode`."""

    _library = neuron.IFNode

    def _charge(self) -> dict[str, float | Tensor]:
        return {"decay": 1.0}


class ParametricLIFNode(_Node, neuron.ParametricLIFNode):
    """SpikingJelly's `ParametricLIFNode`: 1/tau = sigmoid(w) is learnt."""

    _library = neuron.ParametricLIFNode
    _few, _cost = 2, 4

    def _charge(self) -> dict[str, float | Tensor]:
        q: float | Tensor = self.w.to(state_dtype(self.w.dtype)).sigmoid()
        if readable(self.w) and not torch._C._are_functorch_transforms_active():
            q = number(q)  # rounded as it is; what is made of it is rounded once too, by the kernel
        return {
            "decay": 1 - q,
            "gain": q if self.decay_input else 1.0,
            "bias": q * self.v_reset if self.v_reset else 0.0,
        }

    def _runs(self, x: Tensor, least_dims: int) -> bool:
        return super()._runs(x, least_dims) and self.w.device == x.device

    @classmethod
    def why_not(cls, layer: nn.Module) -> str | None:
        if layer.w.dim() != 0:
            return f"its w has shape {tuple(layer.w.shape)}, accepted is one number"
        return super().why_not(layer)


class PoissonEncoder(encoding.PoissonEncoder):
    """SpikingJelly's `PoissonEncoder`: spikes of x's shape and dtype at the rates x, without gradient.

    Other random numbers of the same seed (`torch.manual_seed`), which is why `convert` leaves the encoder alone. For
    fp16 and bf16 rates they are as fine as for fp32; a rate of 0 never fires.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype not in DTYPES or not x.dim():
            return super().forward(x)
        return poisson(x.detach(), 1).squeeze(0)


REPLACEMENTS: dict[type, type] = {ours._library: ours for ours in (LIFNode, IFNode, ParametricLIFNode)}
NEURONS: tuple[type, ...] = (neuron.BaseNode, neuron.SimpleBaseNode)
