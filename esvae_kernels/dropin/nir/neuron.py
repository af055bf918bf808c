"""One neuron layer between `lif`'s arguments and NIR's, which are of continuous time; an Euler step of dt ties them:

    LIF      tau dv/dt = v_leak - v + r x       decay = 1 - dt/tau, gain = r dt/tau, rest = v_leak dt/tau
    IF, I    dv/dt = r x                        decay = 1, gain = r dt, rest = 0
    CubaLIF  LIF on c in the place of x,        synapse = 1 - dt/tau_syn, and gain times w_in dt/tau_syn,
             tau_syn dc/dt = w_in x - c         with c of this step: c_t = synapse c_{t-1} + x_t
    LI, CubaLI                                  the same without spikes

What NIR cannot say goes into the node's metadata under `esvae_kernels.`, along with the exact decay, gain, ... of which
tau, r, ... are rounded: numbers there count where they agree with the node's own to 1e-6, else the node's do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import nir
import numpy as np
import torch

from ...ops.lif.reference import RESETS
from ...surrogate import Surrogate
from ...surrogate.reference import from_arguments

METADATA = "esvae_kernels."
SPIKING, SYNAPTIC = (nir.LIF, nir.IF, nir.CubaLIF), (nir.CubaLIF, nir.CubaLI)
NODES = (*SPIKING, nir.LI, nir.I, nir.CubaLI)
NAMES = {"rest": "bias", "synapse": "synaptic_decay"}  # of files, and what `lif` calls them
NUMBERS = ("decay", "gain", "rest", "threshold", "v_reset", "synapse")

# What NIR cannot say, by the name that accepts it, and what is written then.
INEXPRESSIBLE = {
    ">=": "it fires at the threshold, NIR's neurons above it: accept=[{0!r}] writes the next lower fp32",
    "reset": "its reset is {reset!r}, NIR's is 'hard': accept=[{0!r}] writes a hard reset to 0",
    "multi_spike": "it fires several spikes in a step, NIR's neurons one: accept=[{0!r}] writes such neurons",
    "spiking": "its output is its surrogate's primitive (spiking=False), NIR's is spikes: accept=[{0!r}] writes spikes",
    "v_min": "it has a floor v_min, which NIR lacks: accept=[{0!r}] leaves it out",
    "start": "its potential starts at {start:.6g}, of which NIR says nothing: accept=[{0!r}] leaves it out",
    "readout": "it has a readout over time, which NIR lacks: accept=[{0!r}] writes the output of every step",
}

Value = float | np.ndarray  # of the neurons' shape, or broadcasting to it


@dataclass(frozen=True)
class Neuron:
    """What a layer computes, fp64, in the words of our files' metadata."""

    decay: Value
    gain: Value = 1.0
    rest: Value = 0.0
    threshold: Value | None = None  # None: a leaky integrator
    v_reset: Value = 0.0
    synapse: Value | None = None
    reset: str = "hard"
    strict: bool = True
    several: bool = False
    v_min: float | None = None
    start: float = 0.0  # v before the first step
    detach_reset: bool = False
    surrogate: Surrogate | None = None  # None: unknown
    readout: str | tuple[float, ...] | None = None
    pair: bool = False  # a call of the layer returns its state too

    @property
    def spikes(self) -> bool:
        return self.threshold is not None

    def inexpressible(self) -> list[str]:
        found = {
            ">=": self.spikes and not self.strict and not self.several,
            "reset": self.spikes and self.reset != "hard",
            "multi_spike": self.several,
            "spiking": self.spikes and self.surrogate is not None and not self.surrogate.spiking,
            "v_min": self.v_min is not None,
            "start": self.start != 0,
            "readout": self.readout is not None,
        }
        return [name for name, there in found.items() if there]


def to_node(neuron: Neuron, shape: tuple[int, ...], nir_shape: tuple[int, ...], dt: float) -> nir.NIRNode:
    """The node of neurons of `shape`, whose values NIR has as `nir_shape`."""

    def full(name: str, value: Value) -> np.ndarray:
        try:
            array = np.broadcast_to(np.asarray(value, dtype=np.float64), shape)
        except ValueError:
            raise ValueError(f"its {name} has shape {np.shape(value)}, accepted are 1 and that of {shape}") from None
        if not np.isfinite(array).all():
            raise ValueError(f"its {name} is not finite")
        return array.reshape(nir_shape).copy()

    values = {name: full(name, value) for name in NUMBERS if (value := getattr(neuron, name)) is not None}
    decay, gain, rest = values["decay"], values["gain"], values["rest"]
    if (decay < 0).any() or (decay > 1).any():
        raise ValueError(f"its decay is from {decay.min():.6g} to {decay.max():.6g}, accepted is 0 to 1")
    integrates = bool((decay == 1).all())
    if not integrates and (decay == 1).any():
        raise ValueError("its decay is 1 for some neurons and below for others, which are different nodes in NIR")
    if integrates and rest.any():
        raise ValueError("its decay is 1 and its rest is not 0, which NIR's IF lacks")
    fields: dict[str, np.ndarray] = {}
    if integrates:
        fields["r"] = gain / dt
    else:
        fields |= {"tau": dt / (1 - decay), "r": gain / (1 - decay), "v_leak": rest / (1 - decay)}
    if neuron.synapse is not None:
        synapse = values["synapse"]
        if integrates or (synapse < 0).any() or (synapse >= 1).any():
            raise ValueError("it has a synapse, where NIR takes decays of 0 to below 1 of both current and potential")
        fields |= {"tau_mem": fields.pop("tau"), "tau_syn": dt / (1 - synapse), "w_in": 1 / (1 - synapse)}
    if neuron.spikes:
        threshold = values["threshold"]
        at = neuron.several or not neuron.strict
        fields["v_threshold"] = _below(threshold) if at else threshold
        fields["v_reset"] = values["v_reset"] if neuron.reset == "hard" else np.zeros(nir_shape)
    names = ("CubaLIF", "IF", "LIF") if neuron.spikes else ("CubaLI", "I", "LI")
    kind = names[0 if neuron.synapse is not None else 1 if integrates else 2]
    return getattr(nir, kind)(**fields, metadata=_metadata(neuron, values, dt))


def _below(threshold: np.ndarray) -> np.ndarray:
    """m >= threshold is m > this, for fp32 potentials and the fp32 threshold that they are compared with."""
    return np.nextafter(threshold.astype(np.float32), np.float32(-np.inf)).astype(np.float64)


def _metadata(neuron: Neuron, values: dict[str, np.ndarray], dt: float) -> dict[str, Any]:
    found: dict[str, Any] = {"dt": dt}
    for name, array in values.items():
        found[name] = array.flat[0] if (array == array.flat[0]).all() else array
    if neuron.spikes:
        found |= {"reset": neuron.reset, "strict": int(neuron.strict), "several": int(neuron.several)}
        found["detach_reset"] = int(neuron.detach_reset)
        if neuron.surrogate is not None:
            s = neuron.surrogate
            found["surrogate"] = np.array([s.id, float(s.parameter), s.scale, s.shift, not s.spiking], dtype=np.float64)
    if neuron.v_min is not None:
        found["v_min"] = neuron.v_min
    if neuron.start:
        found["start"] = neuron.start
    if neuron.readout is not None:
        found["readout"] = neuron.readout if isinstance(neuron.readout, str) else np.array(neuron.readout)
    return {METADATA + name: value for name, value in found.items()}


def from_node(node: nir.NIRNode, shape: tuple[int, ...], dt: float) -> Neuron:
    """The neurons of `shape` that the node means at a step of dt."""

    def value(name: str) -> np.ndarray:
        found = getattr(node, name, None)
        try:
            array = np.asarray(found, dtype=np.float64)
        except (TypeError, ValueError):
            raise ValueError(f"its {name} is {type(found).__name__}, accepted are numbers") from None
        if array.size != 1 and array.shape != shape:
            raise ValueError(f"its {name} has shape {array.shape}, accepted is that of its input, {shape}")
        if not np.isfinite(array).all():
            raise ValueError(f"its {name} is not finite")
        return array if array.size != 1 else array.reshape(())

    def per_step(name: str) -> np.ndarray:
        tau = value(name)
        if (tau < dt * (1 - 1e-6)).any():
            raise ValueError(
                f"its {name} is {tau.min():.6g}, accepted is at least dt = {dt:.6g}: a step of Euler's method goes "
                "beyond the rest potential otherwise"
            )
        return np.minimum(dt / tau, 1.0)

    found: dict[str, Any] = {}
    if isinstance(node, nir.IF | nir.I):
        found |= {"decay": np.ones(()), "gain": value("r") * dt, "rest": np.zeros(())}
    else:
        step = per_step("tau_mem" if isinstance(node, SYNAPTIC) else "tau")
        found |= {"decay": 1 - step, "gain": value("r") * step, "rest": value("v_leak") * step}
    if isinstance(node, SYNAPTIC):
        step = per_step("tau_syn")
        with np.errstate(over="ignore"):
            found |= {"synapse": 1 - step, "gain": found["gain"] * (value("w_in") * step)}
    if isinstance(node, SPIKING):
        found |= {"threshold": value("v_threshold"), "v_reset": value("v_reset")}
    for name, array in found.items():
        if not np.isfinite(array).all():
            raise ValueError(f"its {name} at a step of {dt:.6g} is not finite")
    said = {k.removeprefix(METADATA): v for k, v in node.metadata.items() if k.startswith(METADATA)}
    options = _said(said, isinstance(node, SPIKING))
    exact = {name: _refined(array, said.get(name), shape) for name, array in found.items()}
    if "threshold" in said and exact["threshold"] is found.get("threshold"):
        options["strict"] = True  # someone has changed the threshold since
    return Neuron(**exact, **options)


def _refined(value: np.ndarray, exact: object, shape: tuple[int, ...]) -> np.ndarray:
    """The metadata's value where it is the node's but for rounding, else `value` itself."""
    if not isinstance(exact, float | int | np.number | np.ndarray):
        return value
    array = np.asarray(exact)
    if array.dtype.kind not in "fiu" or array.shape not in ((), shape):
        return value
    array = array.astype(np.float64)
    return array if np.allclose(value, array, rtol=1e-6, atol=1e-12) else value


def _said(said: dict[str, object], spikes: bool) -> dict[str, Any]:
    """The options in a node's metadata, checked: the file may be anyone's."""

    def read(name: str, accepted: str, make: Callable[[Any], Any]) -> Any:
        try:
            return make(np.asarray(said[name])[()])
        except (TypeError, ValueError, KeyError, OverflowError, IndexError):
            raise ValueError(
                f"its metadata {METADATA}{name} is {str(said[name])[:80]!r}, accepted is {accepted}"
            ) from None

    def one_of(*names: str) -> Callable[[Any], str]:
        return lambda value: names[names.index(str(value))]

    def finite(value: Any) -> float:
        if not math.isfinite(value):
            raise ValueError
        return float(value)

    def readout(value: Any) -> str | tuple[float, ...]:
        if isinstance(value, str):
            return one_of("rate" if spikes else "last", "rate" if spikes else "mean")(value)
        return tuple(finite(x) for x in value)

    def surrogate(value: Any) -> Surrogate:
        id, shape, scale, center, smooth = (float(x) for x in value)
        return from_arguments(int(id), shape, scale, center, not smooth)

    makers: dict[str, tuple[str, Callable[[Any], Any]]] = {
        "start": ("a finite number", finite),
        "readout": ("a readout", readout),
    }
    if spikes:
        makers |= {
            "reset": (", ".join(RESETS), one_of(*RESETS)),
            **{name: ("0 or 1", lambda value: bool(int(value))) for name in ("strict", "several", "detach_reset")},
            "v_min": ("a finite number", finite),
            "surrogate": ("id, shape, scale, center, smooth", surrogate),
        }
    return {name: read(name, *how) for name, how in makers.items() if name in said}


def folded(neuron: Neuron) -> tuple[np.ndarray, np.ndarray, Neuron]:
    """(a, b, the rest): neurons with r = 1 and v_leak = 0 that see a x + b; IF with r = 1/dt."""
    decay = np.asarray(neuron.decay, dtype=np.float64)
    unit = np.where(decay == 1, 1.0, 1 - decay)
    if neuron.synapse is not None:
        if np.any(neuron.rest):
            raise ValueError("it has a synapse and a rest potential, which cannot be folded into what is in front")
        return np.asarray(neuron.gain) / 1.0, np.zeros(()), replace(neuron, gain=1.0)
    return neuron.gain / unit, neuron.rest / unit, replace(neuron, gain=unit, rest=0.0)


def reduce(value: Value, shape: Sequence[int], dtype: torch.dtype) -> float | torch.Tensor:
    """A number, one per channel (the first axis of `shape`), or one per neuron: what the kernels take."""
    array = np.asarray(value, dtype=np.float64)
    if array.size == 0 or (array == array.flat[0]).all():
        return float(array.flat[0]) if array.size else 0.0
    every = np.broadcast_to(array, shape)
    rows = every.reshape(shape[0], -1)
    return torch.tensor(rows[:, 0] if (rows == rows[:, :1]).all() else every.copy(), dtype=dtype)
