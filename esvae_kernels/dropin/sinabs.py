"""sinabs' LIF and IAF on our kernels (sinabs 3.1; this module imports it).

`LIF`, `IAF`, `LIFSqueeze` and `IAFSqueeze` are subclasses of sinabs', with the same arguments, attributes and state.
With a = exp(-1/tau_mem), of IAF 1, g = 1 - a with norm_input, else 1, and b = exp(-1/tau_syn):

    i = b (i + x)                     with tau_syn; without, i = x
    v = a v + g i
    s = trunc(v / threshold) where v > 0, else 0      MultiSpike;    or [v >= threshold], SingleSpike
    v = v - threshold s               MembraneSubtract;    or v where s = 0, else 0, MembraneReset
    v = max(v, min_v_mem)

Ours computes the same in the same order, so that spikes and state in fp32 are equal bit for bit, but for two roundings:
sinabs' floor is relu(v - min_v_mem) + min_v_mem, and with tau_syn and norm_input ours multiplies by g b at once. For
fp16 and bf16 x, sinabs without tau_syn rounds g x to that dtype where tau_mem is one number; ours does not. For fp64 x,
sinabs' spikes, what they subtract and the gradient through that are of fp32.

What the kernels lack (another spike function, reset or surrogate, a threshold per neuron, ...) runs in sinabs' own
code, call by call, and `convert` does not replace such a layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Real

import sinabs.activation as theirs
import torch
from sinabs import layers
from torch import Tensor, nn

from ..native import DTYPES
from ..ops.lif import lif
from ..ops.lif.reference import state_dtype
from ..reset import Hard, Soft
from ..surrogate import Gaussian, SingleExponential, Surrogate
from . import parameters

__all__ = ["IAF", "LIF", "NEURONS", "REPLACEMENTS", "IAFSqueeze", "LIFSqueeze"]

# So few time steps of fewer elements in all run by sinabs' own ops: a call of the kernel takes longer to start. CPU,
# one thread (2026-12-01): with 10 elements a step LIF and IAF take 1.8 to 2.6 of sinabs' time at T = 1, forward or
# forward and backward, 0.8 to 1.2 at T = 4, 0.5 to 0.7 at T = 8; with 2^16 elements in all 0.7 to 1.2 at T = 1.
# Elsewhere not measured.
FEW_STEPS = 4
LEAST_ELEMENTS = {"cpu": 1 << 16}

# Ours with the same derivative as sinabs' function, at a threshold.
SURROGATES: dict[type, Callable[..., Surrogate]] = {
    theirs.SingleExponential: lambda f, threshold: SingleExponential(f.grad_width, f.grad_scale, threshold=threshold),
    theirs.Gaussian: lambda f, threshold: Gaussian(f.sigma, shift=f.mu, scale=f.grad_scale),
}


def surrogate_of(function: object, threshold: float | None) -> Surrogate | None:
    """Ours for sinabs' `function`, or None. `threshold` None: there are several, and the surrogate may be of none."""
    if type(function) not in SURROGATES:
        return None
    try:
        return SURROGATES[type(function)](function, threshold)
    except ValueError:  # a width of 0, say
        return None


def _is_small(x: Tensor) -> bool:
    return x.shape[1] <= FEW_STEPS and x.numel() < LEAST_ELEMENTS.get(x.device.type, 0)


class _Layer:
    """What runs otherwise, in front of sinabs' class."""

    @torch.compiler.disable  # sinabs' is no single graph either, and to trace this one numbers would have to be read
    def forward(self, input_data: Tensor) -> Tensor:
        if not _is_sequence(input_data) or _is_small(input_data):
            return layers.LIF.forward(self, input_data)
        self._shape_states(input_data)
        if self.why_slow(input_data) is not None:
            return layers.LIF.forward(self, input_data)
        spikes, self.v_mem, self.i_syn, self.recordings = self._run(input_data)
        self.firing_rate = spikes.mean()
        return spikes

    def _shape_states(self, x: Tensor) -> None:
        """As sinabs does: from 0 where they have another shape, states of random samples where the batch has."""
        batch, _, *trailing = x.shape
        if not self.is_state_initialised() or not self.has_trailing_dimension(trailing):
            self.init_state_with_shape((batch, *trailing))
        elif not self.state_has_shape((batch, *trailing)):
            self.handle_state_batch_size_mismatch(batch)

    def _run(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None, dict[str, Tensor]]:
        """Spikes (B, T, *), the states after the last step (B, *), and the recordings."""
        dtype, subtract = state_dtype(x.dtype), type(self.reset_fn) is theirs.MembraneSubtract
        decay, gain, synapse = self._charge(dtype)
        threshold, v_min = self.spike_threshold, self.min_v_mem
        threshold = parameters.number(threshold) if threshold.numel() == 1 else threshold.to(dtype).reshape(-1)
        spikes, v, *others = lif(
            x.transpose(0, 1).contiguous(),  # here, for what the backward saves to be what the kernels read
            self.v_mem.to(dtype),
            decay=decay,
            gain=gain,
            synaptic_decay=synapse,
            i=None if synapse is None else self.i_syn.to(dtype),
            threshold=threshold,
            v_min=None if v_min is None else parameters.number(v_min),
            reset=Soft() if subtract else Hard(detach=True),
            fire="multi_spike" if self.spike_fn is theirs.MultiSpike else ">=",
            surrogate=surrogate_of(self.surrogate_grad_fn, threshold if isinstance(threshold, float) else None),
            record="membrane" if self.record_states else None,
            dtype=torch.float32,  # theirs are, whatever x is
        )
        recordings = {"v_mem": _batch_first(self._after_step(spikes, others[-1]))} if self.record_states else {}
        return _batch_first(spikes), v, None if synapse is None else others[0], recordings

    def _charge(self, dtype: torch.dtype) -> tuple[float | Tensor, float | Tensor, float | Tensor | None]:
        """decay, gain and synapse of c = i + x, v = decay v + gain c, i = synapse c: sinabs' i is theirs times b."""
        a, b = self.alpha_mem_calculated, self.alpha_syn_calculated
        decay, gain = parameters.as_value(a, dtype), parameters.as_value(1 - a, dtype) if self.norm_input else 1.0
        if b is None:
            return decay, gain, None
        synapse = parameters.as_value(b, dtype)
        return decay, gain * synapse, synapse

    def _after_step(self, spikes: Tensor, m: Tensor) -> Tensor:
        """The potential after reset and floor, of every step, with gradient."""
        v = self.reset_fn(spikes, {"v_mem": m}, self.spike_threshold)["v_mem"]
        return v if self.min_v_mem is None else torch.where(v > self.min_v_mem, v, self.min_v_mem.to(v.dtype))

    def why_slow(self, x: Tensor) -> str | None:
        """Why a call with x (B, T, *), the states being of its shape, runs by sinabs' own code; None where it runs in
        the kernels."""
        reason, dtype = self.why_not(self), state_dtype(x.dtype)
        if reason:
            return reason
        for name, value in _parameters(self).items():
            if value.device != x.device:
                return f"{name}: got {value.device}, x is on {x.device}"
            reason = parameters.why_not(name, value, self.v_mem, dtype)
            if reason:
                return reason
        for name, state in self.named_buffers():
            if state.device != x.device or torch.promote_types(state.dtype, dtype) != dtype:
                return f"{name}: got {state.dtype} on {state.device}, the kernels keep {dtype}, on {x.device}"
        return None

    @staticmethod
    def why_not(layer: nn.Module) -> str | None:
        """What `layer`, sinabs' or ours, has that the kernels lack, or None."""
        if "forward" in layer.__dict__:
            return "its forward is its own"
        if layer.spike_fn is not theirs.MultiSpike and layer.spike_fn is not theirs.SingleSpike:
            return f"spike_fn: got {_shown(layer.spike_fn)}, the kernels know MultiSpike and SingleSpike"
        if not _is_known(layer.reset_fn):
            return f"reset_fn: got {_shown(layer.reset_fn)}, the kernels know MembraneSubtract() and MembraneReset()"
        if layer.spike_threshold is None:
            return "spike_threshold: got None, accepted are numbers above 0"
        for name, value in _parameters(layer).items():
            reason = parameters.why_never(name, value)
            if reason:
                return reason
        for name in ("spike_threshold", "min_v_mem"):
            value = getattr(layer, name)
            if value is not None and value.requires_grad:
                return f"{name}: has a gradient, which in sinabs does not go through the spikes"
        if layer.record_states and layer.alpha_syn_calculated is not None:
            return "record_states: the kernels record no synaptic currents"
        return _why_not_numbers(layer)


class LIF(_Layer, layers.LIF):
    """sinabs' `LIF`."""


class IAF(_Layer, layers.IAF):
    """sinabs' `IAF`."""


class LIFSqueeze(_Layer, layers.LIFSqueeze):
    """sinabs' `LIFSqueeze`: (B T, *) in and out."""

    def forward(self, input_data: Tensor) -> Tensor:
        return self.squeeze_forward(input_data, super().forward)


class IAFSqueeze(_Layer, layers.IAFSqueeze):
    """sinabs' `IAFSqueeze`: (B T, *) in and out."""

    def forward(self, input_data: Tensor) -> Tensor:
        return self.squeeze_forward(input_data, super().forward)


REPLACEMENTS: dict[type, type] = {ours.__bases__[1]: ours for ours in (LIF, IAF, LIFSqueeze, IAFSqueeze)}
NEURONS: tuple[type, ...] = (layers.StatefulLayer,)


def _is_sequence(x: object) -> bool:
    """(B, T, *), of what the kernels take; sinabs' own code has the rest, its errors included."""
    return isinstance(x, Tensor) and x.layout == torch.strided and x.dtype in DTYPES and x.dim() > 1 and x.shape[1] > 0


def _batch_first(tensor: Tensor) -> Tensor:
    return tensor.transpose(0, 1).contiguous()


def _parameters(layer: nn.Module) -> dict[str, Tensor]:
    """Those that the layer has: without gradient the last two."""
    names = ("tau_mem", "tau_syn", "alpha_mem", "alpha_syn", "spike_threshold", "min_v_mem")
    return {name: value for name in names if (value := getattr(layer, name, None)) is not None}


def _is_known(reset: object) -> bool:
    if type(reset) is theirs.MembraneSubtract:
        return reset.subtract_value is None
    return type(reset) is theirs.MembraneReset and isinstance(reset.reset_value, Real) and reset.reset_value == 0


def _why_not_numbers(layer: nn.Module) -> str | None:
    """Of those that the kernels take as numbers."""
    threshold, v_min = layer.spike_threshold, layer.min_v_mem
    if v_min is not None and not (v_min.numel() == 1 and math.isfinite(parameters.number(v_min))):
        return f"min_v_mem: got {_shown(v_min)}, accepted is a finite number"
    single = parameters.number(threshold) if threshold.numel() == 1 else None
    if single is not None and not 0 < single < math.inf:
        return f"spike_threshold: got {single}, accepted are finite numbers above 0"
    if surrogate_of(layer.surrogate_grad_fn, single) is None:
        several = "" if single is not None else " (SingleExponential with one threshold only)"
        known = ", ".join(cls.__name__ for cls in SURROGATES)
        return f"surrogate_grad_fn: got {_shown(layer.surrogate_grad_fn)}, the kernels know {known}{several}"
    return None


def _shown(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}" if value.numel() != 1 else str(value.item())
    return getattr(value, "__qualname__", None) or " ".join(repr(value).split())[:80]
