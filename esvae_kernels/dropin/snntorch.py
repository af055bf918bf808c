"""snnTorch's Leaky on the fused kernels, a sequence call for it, and `unroll`, a loop over time as one call.

    mem = beta * mem + x - R * threshold     R = [mem > threshold] of the step before, a constant; "subtract"
    mem = beta * (1 - R) * mem + x           "zero";   without R: "none";   beta clamped to [0, 1]
    spk = graded_spikes_factor * [mem > threshold]

and with `reset_delay=False` the reset of this step at once: mem -= (spk / graded_spikes_factor - R) * threshold, or
* mem, through which gradients flow.

What the kernels have no form for runs by snnTorch's own code: `Leaky.why_not` and `Leaky.why_slow` say what and why.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import CodeType, FunctionType
from typing import NamedTuple

import snntorch
import torch
from snntorch import surrogate as theirs
from torch import Tensor, nn

from ..native import DTYPES
from ..ops.lif import lif
from ..ops.lif.reference import state_dtype
from ..reset import Delayed, Hard
from ..surrogate import ATan, FastSigmoid, PiecewiseExp, Sigmoid, StraightThrough, Surrogate
from . import parameters
from .folding import BATCH_STATISTICS, RANDOM, STATELESS, fixed_statistics, hooked

__all__ = ["NEURONS", "REPLACEMENTS", "Leaky", "unroll"]

# Single steps of fewer elements run by snnTorch's ten small ops: a call of the kernel takes longer to start. CPU, one
# thread (2026-12-01): with 2^15 elements the three resets take 0.66 to 1.03 of its time, forward or forward and
# backward, with 2^16 0.45 to 0.91; elsewhere not measured, but from the time to start those ops.
LEAST_ELEMENTS = {"cpu": 1 << 16}
LEAST_ELEMENTS_ELSEWHERE = 1 << 22

# What a subclass changes when it changes the dynamics.
DYNAMICS = (
    "fire",
    "fire_inhibition",
    "mem_reset",
    "_base_state_function",
    "_base_sub",
    "_base_zero",
    "_base_int",
)
MECHANISMS = {
    snntorch.Leaky._base_sub: "subtract",
    snntorch.Leaky._base_zero: "zero",
    snntorch.Leaky._base_int: "none",
}

# Ours with the same derivative as snnTorch's, for what it is called with.
SURROGATES: dict[str, Callable[..., Surrogate]] = {
    "atan": lambda alpha: ATan(alpha),
    "fast_sigmoid": lambda slope: FastSigmoid(slope),
    "sigmoid": lambda slope: Sigmoid(slope),
    "spike_rate_escape": lambda beta, slope: PiecewiseExp(beta, shift=1.0, scale=2 * slope / beta),
    "straight_through_estimator": StraightThrough,
}
# They are closures over these arguments, to be known by their code.
_BY_CODE: list[tuple[CodeType, Callable[..., Surrogate]]] = [
    (getattr(theirs, name)().__code__, make) for name, make in SURROGATES.items()
]


def surrogate_of(spike_grad: object) -> Surrogate | None:
    """Ours with the same derivative; None where there is none.

    One difference: the derivative of their sigmoid is NaN more than 89 / slope below the threshold, where exp
    overflows; ours is 0.
    """
    if not isinstance(spike_grad, FunctionType) or spike_grad.__globals__ is not vars(theirs):
        return None
    values = [cell.cell_contents for cell in spike_grad.__closure__ or ()]
    for value in values:
        if not isinstance(value, int | float) or not 0 < value < math.inf:
            return None
    for code, make in _BY_CODE:
        if spike_grad.__code__ is code:
            return make(*values)
    return None


def _overridden(layer: snntorch.Leaky) -> str | None:
    """The first method of the dynamics that the layer, or its class, has its own of."""
    cls = type(layer)
    for name in DYNAMICS:
        if name in layer.__dict__ or getattr(cls, name) is not getattr(snntorch.Leaky, name):
            return name
    return None


class _Neuron(NamedTuple):
    """What one call takes from the layer, as `lif` takes it."""

    decay: float | Tensor
    threshold: float | Tensor
    surrogate: Surrogate
    blind: bool  # surrogate_disable: no gradient through the spikes

    def options(self, **own: object) -> dict[str, object]:
        options = {"decay": self.decay, "threshold": self.threshold, "surrogate": self.surrogate, "fire": ">"}
        return options | {"dtype": torch.float32} | own  # their spikes are fp32 whatever x is


class Leaky(snntorch.Leaky):
    """`snntorch.Leaky`, the same in every argument, attribute and return, and `sequence`.

    Spikes and potentials are equal to snnTorch's bit for bit. The one attribute that is not kept is `reset`, which
    snnTorch leaves behind after a step.
    """

    @staticmethod
    def why_not(layer: snntorch.Leaky) -> str | None:
        """Why the kernels can run none of `layer`'s calls; None where they can."""
        if layer.state_quant:
            return "state_quant: the kernels do not quantise the membrane potential"
        if layer.inhibition:
            return "inhibition: the kernels know no neighbours"
        if layer.spike_grad is not snntorch.SpikingNeuron._surrogate_bypass and surrogate_of(layer.spike_grad) is None:
            return f"spike_grad: got {_shown(layer.spike_grad)}, the kernels know {', '.join(SURROGATES)}"
        changed = _overridden(layer)
        if changed:
            return f"{changed}: replaced by an own one"
        if _mechanism(layer) is None:
            return f"state_function: got {_shown(layer.state_function)}, the kernels know snnTorch's three resets"
        for name in ("beta", "threshold"):
            reason = parameters.why_never(name, getattr(layer, name))
            if reason:
                return reason
        return None

    def why_slow(self, x: Tensor, mem: Tensor | None = None) -> str | None:
        """Why a step with the current x (N, *) runs by snnTorch's own code; None where it runs in the kernels."""
        if not isinstance(x, Tensor) or x.layout != torch.strided or x.dtype not in DTYPES or not x.dim():
            return "x: the kernels take dense tensors of floating point, with an axis N"
        reason = Leaky.why_not(self)
        if reason:
            return reason
        state, mem = state_dtype(x.dtype), self.mem if mem is None else mem
        if not isinstance(mem, Tensor) or {mem.device, self.beta.device, self.threshold.device} != {x.device}:
            return "mem: not a tensor, or the layer, its state and x are on different devices"
        if mem.shape == x.shape and mem.dtype != state:
            return f"mem: got {mem.dtype}, the kernels keep {state} for {x.dtype}"
        if x.dtype.itemsize == 2 and _mechanism(self) == "none":
            return f"reset_mechanism: 'none' keeps the potential in {x.dtype}, the kernels in {state}"
        for name in ("beta", "threshold"):
            reason = parameters.why_not(name, getattr(self, name), x, state)
            if reason:
                return reason
        return None

    def forward(self, input_: Tensor, mem: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        least = LEAST_ELEMENTS.get(input_.device.type, LEAST_ELEMENTS_ELSEWHERE)
        if input_.numel() < least or (mem is not None and self.init_hidden) or self.why_slow(input_, mem) is not None:
            return super().forward(input_, mem)
        spikes, self.mem = self._step(input_, self._state(input_.shape, mem))
        self._forget_reset()
        spikes = self._graded(spikes)
        return spikes if self.init_hidden and not self.output else (spikes, self.mem)

    def sequence(
        self, x: Tensor, mem: Tensor | None = None, *, steps: int | None = None, record: bool = True
    ) -> tuple[Tensor, Tensor]:
        """All time steps in one kernel.

        Equivalent to::

            for t in range(T):
                spk[t], mem[t] = mem_t = layer(x[t], mem_t)      # or with init_hidden layer(x[t]), layer.mem

        Args:
            x: (T, N, *); with `steps` (N, *), a current that is the same at every step.
            mem: the potential before the first step, (N, *), or what `reset_mem()` returned. Default: as in a call, the
                layer's own, or 0 where its shape is another one.
            steps: T, for an x without time axis.
            record: False returns the last potential alone, which takes less memory.

        Returns:
            (spikes, mem), each (T, N, *), mem (N, *) without `record`; spikes in fp32 as snnTorch's are. The last
            potential is kept as `layer.mem`. The layer's hooks expect single steps, and are not called.

        `reset_delay=False` with "zero" runs step by step where the threshold is below 0 or the given potential above
        it; with "subtract" the potentials, where they are recorded, take a few small ops a step beside the kernel.
        """
        time = self._check_sequence(x, mem, steps)
        inner = x if steps is not None else x[0]
        slow = self.why_slow(inner, mem) is not None
        state = None if slow else self._state(inner.shape, mem)
        if slow or not self._is_one_call(state):
            return self._step_by_step(x.expand(time, *x.shape) if steps is not None else x, mem, record)
        spikes, potentials, self.mem = self._fused(x, state, steps, record)
        self._forget_reset()
        return self._graded(spikes), potentials if record else self.mem

    def _check_sequence(self, x: Tensor, mem: Tensor | None, steps: int | None) -> int:
        """T. A state of another shape is refused here, though a single step silently starts at 0 with it."""
        if mem is not None and self.init_hidden:
            raise TypeError("`mem` should not be passed as an argument while `init_hidden=True`")
        if not isinstance(x, Tensor) or x.dim() < (2 if steps is None else 1):
            got = f"shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(f"x: got {got}, accepted is {'(T, N, *)' if steps is None else '(N, *) with steps'}")
        time, inner = (x.shape[0], x.shape[1:]) if steps is None else (steps, x.shape)
        if time < 1:
            name = "x's time axis T" if steps is None else "steps"
            raise ValueError(f"{name}: got {time}, accepted is an integer of at least 1")
        if mem is not None and mem.numel() and mem.shape != inner:
            raise ValueError(f"mem: got shape {tuple(mem.shape)}, accepted is {tuple(inner)}, as x has it")
        return time

    def _state(self, shape: torch.Size, mem: Tensor | None) -> Tensor | None:
        """The potential to start from; None is 0."""
        mem = self.mem if mem is None else mem
        return mem if mem.shape == shape else None

    def _neuron(self, x: Tensor) -> _Neuron:
        blind = self.spike_grad is snntorch.SpikingNeuron._surrogate_bypass
        surrogate = StraightThrough() if blind else surrogate_of(self.spike_grad)
        decay, threshold = (parameters.as_value(value, state_dtype(x.dtype)) for value in (self.beta, self.threshold))
        decay = decay.clamp(0, 1) if isinstance(decay, Tensor) else min(max(decay, 0.0), 1.0)
        return _Neuron(decay, threshold, surrogate, blind)

    def _step(self, x: Tensor, mem: Tensor | None) -> tuple[Tensor, Tensor]:
        """(spikes before grading, mem). The potential is that before the reset, which the next step does."""
        n, mechanism = self._neuron(x), _mechanism(self)
        at_once = not self.reset_delay
        if mechanism == "zero":
            earlier = self._above(mem).to(torch.float32)
            mem = None if mem is None else (1 - earlier) * mem
        reset = Delayed(n.blind or not at_once, corrected=at_once) if mechanism == "subtract" else None
        options = n.options(reset=reset, readout="mean")  # of one step: the spikes
        spikes, mem = lif(x, mem, steps=1, **options)
        spikes = spikes.detach() if n.blind else spikes
        if at_once and mechanism == "zero":
            mem = mem - (spikes - earlier) * mem
        return spikes, mem

    def _fused(
        self, x: Tensor, mem: Tensor | None, steps: int | None, record: bool
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """(spikes before grading, the potentials where recorded, the last of them)."""
        n, mechanism = self._neuron(x), _mechanism(self)
        at_once = not self.reset_delay
        detach = n.blind or not at_once
        reset = {"subtract": Delayed(detach, corrected=at_once), "zero": Hard(detach=detach), "none": None}[mechanism]
        if mechanism == "zero" and mem is not None and not at_once:
            mem = (1 - self._above(mem).to(torch.float32)) * mem  # the kernel resets at the end of a step
        record = record or (mechanism == "zero" and not at_once)
        options = n.options(reset=reset, record="membrane" if record else None)
        spikes, last, *recorded = lif(x, mem, steps=steps, **options)
        spikes = spikes.detach() if n.blind else spikes
        if not recorded:
            return spikes, None, last
        (potentials,) = recorded
        if at_once and mechanism == "zero":
            return spikes, potentials - spikes * potentials, last
        if at_once and mechanism == "subtract":
            return spikes, self._subtracted(potentials, spikes, mem), last
        return spikes, potentials, potentials[-1].clone() if mechanism == "zero" else last

    def _subtracted(self, potentials: Tensor, spikes: Tensor, mem: Tensor | None) -> Tensor:
        """The potentials after the subtraction of each step, which looks at that of the step before."""
        earlier = []
        with torch.no_grad():
            for m, s in zip(potentials, spikes, strict=True):
                earlier.append(self._above(mem).to(torch.float32).expand_as(m))
                mem = m - (s - earlier[-1]) * self.threshold
        return potentials - (spikes - torch.stack(earlier)) * self.threshold

    def _step_by_step(self, x: Tensor, mem: Tensor | None, record: bool) -> tuple[Tensor, Tensor]:
        spikes, potentials = [], []
        for t, x_t in enumerate(x.unbind(0)):
            out = Leaky.forward(self, x_t, mem if t == 0 else None)
            spikes.append(out[0] if isinstance(out, tuple) else out)
            if record:
                potentials.append(self.mem)
        return torch.stack(spikes), torch.stack(potentials) if record else self.mem

    def _above(self, mem: Tensor | None) -> Tensor:
        """R, which has no gradient."""
        return self.threshold < 0 if mem is None else mem > self.threshold

    def _is_one_call(self, mem: Tensor | None) -> bool:
        """Whether the kernels have a form for a sequence. For the reset to zero at once: if no potential is above the
        threshold after it, so that R is always 0. Looks at the data, where it depends on it."""
        if self.reset_delay or _mechanism(self) != "zero":
            return True
        if torch.compiler.is_compiling():
            return False
        return not self._above(None if mem is None else mem.clamp(min=0)).any()

    def _graded(self, spikes: Tensor) -> Tensor:
        return spikes if _is_one(self.graded_spikes_factor) else spikes * self.graded_spikes_factor

    def _forget_reset(self) -> None:
        if "reset" in self.__dict__:
            del self.reset


REPLACEMENTS: dict[type, type] = {snntorch.Leaky: Leaky}
NEURONS: tuple[type, ...] = (snntorch.SpikingNeuron,)


def _mechanism(layer: snntorch.Leaky) -> str | None:
    """The reset that the layer does. Its `state_function` is chosen when it is made, and a state_dict or a new
    `reset_mechanism` change the part after the spike alone: None where the two differ and both count."""
    made = MECHANISMS.get(getattr(layer.state_function, "__func__", None))
    if made is None or layer.reset_delay:
        return made
    return made if snntorch.SpikingNeuron.reset_dict[made] == int(layer.reset_mechanism_val) else None


def _is_one(factor: Tensor) -> bool:
    """Whether `factor` is a plain 1; False also where that cannot be told at once."""
    if factor.numel() != 1 or factor.requires_grad or torch.compiler.is_compiling():
        return False
    return (factor.is_cpu or not factor.is_inference()) and parameters.number(factor) == 1


def _shown(function: object) -> str:
    return getattr(function, "__qualname__", None) or type(function).__name__


# ---------------------------------------------------------------------------------------------- a loop over time


def unroll(
    net: nn.Module, x: Tensor, *, steps: int | None = None, stateless: Iterable[type[nn.Module]] = ()
) -> Tensor | tuple[Tensor, Tensor]:
    """A loop over time of a whole network: each layer once, over all time steps.

    Equivalent to `torch.stack([net(x[t]) for t in range(T)])`, of a pair each by itself; with `steps` `net(x)` instead,
    x (N, *) the same at every step.

    `net` is a layer, or an `nn.Sequential` (of such too) of converted Leaky layers with init_hidden and of layers that
    treat each sample by itself, which see time as part of the batch: sums may be rounded otherwise than a step at a
    time, so that spikes can differ where a potential meets the threshold. Leaky layers go on from their state and keep
    it, as in the loop. Dropout draws masks of the same distribution.

    Args:
        x: (T, N, *), or with `steps` (N, *). Layers before the first Leaky then run once in all.
        stateless: your own modules that treat each sample by itself; a batch norm in training, if its statistics may be
            those of all time steps together.

    Raises:
        ValueError: a layer whose steps cannot be put together, by its name: batch norm in training, another neuron,
            an unknown module, hooks. The states are then as they were before.
    """
    layers = list(_flat(net, ""))
    declared = tuple(stateless)
    for k, (name, layer) in enumerate(layers):
        reason = _why_not_unrolled(layer, k == len(layers) - 1, declared)
        if reason is None and isinstance(layer, Leaky) and any(layer is other for _, other in layers[:k]):
            reason = "is used twice, and its state goes from one use to the other within a time step"
        if reason:
            raise ValueError(f"unroll: {_named(name, layer)} {reason}")
    with _restored_states(layer for _, layer in layers):
        return _run(layers, x, steps)


def _flat(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    if type(module).forward is not nn.Sequential.forward:
        yield name, module
        return
    if hooked(module):
        raise ValueError(f"unroll: {_named(name, module)} has hooks, which expect one time step at a time")
    for child, layer in module._modules.items():
        yield from _flat(layer, f"{name}.{child}" if name else child)


def _why_not_unrolled(layer: nn.Module, last: bool, declared: tuple[type, ...]) -> str | None:
    kind = type(layer)
    if hooked(layer):
        return "has hooks, which expect one time step at a time"
    if isinstance(layer, Leaky) and kind.forward is Leaky.forward:
        ends_well = last or (layer.init_hidden and not layer.output)
        return None if ends_well else "returns a pair: accepted before the last layer is init_hidden without output"
    if kind in declared or kind in STATELESS or kind in RANDOM:
        return None
    if kind in BATCH_STATISTICS:
        return None if fixed_statistics(layer) else (
            "takes statistics of each time step by itself in training: accepted are evaluation, or, for statistics of "
            f"all steps together, stateless=[nn.{kind.__name__}]"
        )  # fmt: skip
    if kind is snntorch.Leaky:
        return "is not converted: esvae_kernels.dropin.convert(net) does it, or says why not"
    return "is not known to treat each sample by itself: accepted is it in stateless=[...] if it does"


def _named(name: str, module: nn.Module) -> str:
    return f"layer {name!r} ({type(module).__name__})" if name else f"the net ({type(module).__name__})"


@contextmanager
def _restored_states(layers: Iterable[nn.Module]) -> Iterator[None]:
    """After an error, Leaky layers have the state that they had before."""
    states = [(layer, layer.mem) for layer in layers if isinstance(layer, Leaky)]
    try:
        yield
    except BaseException:
        for layer, mem in states:
            layer.mem = mem
        raise


def _run(layers: list[tuple[str, nn.Module]], x: Tensor, steps: int | None) -> Tensor | tuple[Tensor, Tensor]:
    constant = steps is not None  # x still lacks its time axis
    for k, (name, layer) in enumerate(layers):
        if isinstance(layer, Leaky):
            pair = layer.output or not layer.init_hidden
            try:
                x, mem = layer.sequence(x, steps=steps if constant else None, record=pair)
            except (TypeError, ValueError) as error:
                raise type(error)(f"unroll: {_named(name, layer)}: {error}") from None
            constant = False
            if pair and k == len(layers) - 1:
                return x, mem
        elif constant and not (type(layer) in RANDOM and layer.training):
            x = layer(x)
        else:
            x = _folded(name, layer, x.expand(steps, *x.shape) if constant else x)
            constant = False
    return x.expand(steps, *x.shape) if constant else x


def _folded(name: str, layer: nn.Module, x: Tensor) -> Tensor:
    """The layer on x (T, N, *) with time in the batch."""
    time, n = x.shape[:2]
    out = layer(x.flatten(0, 1))
    if not isinstance(out, Tensor) or not out.dim() or out.shape[0] != time * n:
        got = f"shape {tuple(out.shape)}" if isinstance(out, Tensor) else type(out).__name__
        raise ValueError(
            f"unroll: {_named(name, layer)} returned {got} for a batch of {time * n}, accepted is that batch"
        )
    return out.unflatten(0, (time, n))
