"""The neuron layers that `to_nir` knows, as `Neuron`s: ours and, where they are imported, those of other libraries and
the drop-ins for them.

    reader(layer, shape) -> Neuron        shape: of the layer's neurons, channels first

What a reader finds that it cannot say is a ValueError without the layer's name, which the caller adds.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType

import numpy as np
import torch
from torch import Tensor, nn

from ... import nn as ours
from ...ops.bn_lif.reference import affine
from ...reset import name_of
from .neuron import NAMES, NUMBERS, Neuron, Value

Shape = tuple[int, ...]
Reader = Callable[[nn.Module, Shape], Neuron]


def library_class(layer: nn.Module) -> type | None:
    """The class that a reader is for, among `layer`'s and what it derives from."""
    readers = _readers()
    return next((cls for cls in type(layer).__mro__ if cls in readers), None)


def reader_of(layer: nn.Module) -> Reader | None:
    """None where it is no known neuron layer, or of a subclass, whose dynamics may be its own; drop-ins are known."""
    cls = library_class(layer)
    ours = type(layer).__module__.startswith(__package__.rpartition(".")[0])
    return _readers()[cls] if cls is not None and (type(layer) is cls or ours) else None


def _readers() -> dict[type, Reader]:
    found = dict(OURS)
    for library, readers in LIBRARIES.items():
        if library in sys.modules:
            found |= readers(sys.modules[library])
    return found


def sees_sequences(layer: nn.Module) -> bool:
    """Whether the layer takes two axes, of time and samples, in front of its neurons' shape."""
    if isinstance(layer, ours._Neuron) or getattr(layer, "step_mode", None) == "m":
        return True
    if any((cls.__module__, cls.__name__) == ("norse.torch.module.snn", "SNN") for cls in type(layer).__mro__):
        return True
    sinabs = sys.modules.get("sinabs.layers")
    return sinabs is not None and isinstance(layer, sinabs.StatefulLayer) and not isinstance(layer, sinabs.SqueezeMixin)


# ----------------------------------------------------------------------------------------------------------- our own


def _per_channel(value: float | Tensor, shape: Shape) -> Value:
    if not isinstance(value, Tensor):
        return value
    array = value.detach().double().cpu().numpy()
    if array.size == 1 or array.ndim > 1:  # one per neuron
        return array.reshape(()) if array.size == 1 else array
    return array.reshape(-1, *(1,) * (len(shape) - 1))


def _options(layer: ours._Neuron, shape: Shape) -> dict[str, object]:
    """The dynamics among the layer's options."""
    options = layer.options
    values = {n: options.get(NAMES.get(n, n)) for n in NUMBERS}
    if "reset" in options:
        reset = options["reset"]
        values["v_reset"] = getattr(reset, "v_reset", 0.0)
        found = {"reset": name_of(reset), "detach_reset": reset is not None and reset.detach}
        found |= {"strict": options["fire"] == ">", "several": options["fire"] == "multi_spike"}
        found |= {n: options[n] for n in ("v_min", "surrogate") if n in options}
    else:
        found = {}
    found |= {n: _per_channel(value, shape) for n, value in values.items() if value is not None}
    readout = options["readout"]
    if isinstance(layer, ours.LI) and layer.last:
        readout = "last"
    elif readout == "mean" and not isinstance(layer, ours.LI):
        readout = "rate"  # the file's word
    if readout is not None and not isinstance(readout, str):
        readout = tuple(float(c) for c in readout)
    return found | {"readout": readout, "pair": layer.return_state or options.get("record") is not None}


def _lif(layer: ours.LIF, shape: Shape) -> Neuron:
    return Neuron(**_options(layer, shape))


def _bn_lif(layer: ours.BNLIF, shape: Shape) -> Neuron:
    """In evaluation: gain and rest are the norm's."""
    statistics = (layer.running_mean.double(), layer.running_var.double())
    a, b = affine(*statistics, layer.weight.detach(), layer.bias.detach(), layer.scale, layer.eps)
    return Neuron(**_options(layer, shape), gain=_per_channel(a, shape), rest=_per_channel(b, shape))


class Started(nn.Module):
    """A LIF or LI whose potential starts at `start`, not at 0."""

    def __init__(self, layer: ours.LIF | ours.LI, start: float) -> None:
        super().__init__()
        self.layer, self.start = layer, start

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        return self.layer(x, torch.full_like(x[0], self.start, dtype=dtype))

    def extra_repr(self) -> str:
        return f"start={self.start}"


def _started(layer: Started, shape: Shape) -> Neuron:
    return Neuron(**_options(layer.layer, shape), start=layer.start)


OURS: dict[type, Reader] = {ours.LIF: _lif, ours.LI: _lif, ours.BNLIF: _bn_lif, Started: _started}


# ------------------------------------------------------------------------------------------------------ SpikingJelly


def _spikingjelly(library: ModuleType) -> dict[type, Reader]:
    from .. import spikingjelly as dropin

    def reader(layer: nn.Module, shape: Shape) -> Neuron:
        kind = next(own for cls, own in dropin.REPLACEMENTS.items() if isinstance(layer, cls))
        _refuse(kind.why_not(layer))
        charge = {k: v.detach() if isinstance(v, Tensor) else v for k, v in kind._charge(layer).items()}
        charge["rest"] = charge.pop("bias", 0.0)
        return Neuron(
            **{name: _per_channel(value, shape) for name, value in charge.items()},
            threshold=layer.v_threshold,
            v_reset=layer.v_reset or 0.0,
            start=layer.v_reset or 0.0,
            reset="soft" if layer.v_reset is None else "hard",
            strict=False,
            detach_reset=layer.detach_reset,
            surrogate=dropin.surrogate_of(layer.surrogate_function),
        )

    return dict.fromkeys(dropin.REPLACEMENTS, reader)


# ---------------------------------------------------------------------------------------------------------- snnTorch


def _snntorch(library: ModuleType) -> dict[type, Reader]:
    from .. import snntorch as dropin

    def reader(layer: nn.Module, shape: Shape) -> Neuron:
        _refuse(dropin.Leaky.why_not(layer))
        mechanism, delay = dropin._mechanism(layer), layer.reset_delay
        if (layer.graded_spikes_factor != 1).any():
            raise ValueError("its graded_spikes_factor is not 1, and NIR's spikes are 1")
        threshold = _behind_batch("threshold", layer.threshold, shape)
        if mechanism == "zero" and not delay and (threshold < 0).any():
            raise ValueError("its threshold is below 0, where reset_delay=False resets twice")
        subtract = "delayed" if delay else "at_once"
        return Neuron(
            decay=_behind_batch("beta", layer.beta.clamp(0, 1), shape),
            threshold=threshold,
            reset={"subtract": subtract, "zero": "hard", "none": "none"}[mechanism],
            detach_reset=delay,
            surrogate=dropin.surrogate_of(layer.spike_grad),
            pair=not layer.init_hidden or layer.output,
        )

    return {library.Leaky: reader}


# ------------------------------------------------------------------------------------------------------------- Norse


def _norse(library: ModuleType) -> dict[type, Reader]:
    from norse.torch.functional.reset import reset_subtract, reset_value
    from norse.torch.module import iaf, leaky_integrator_box, lif, lif_box

    resets = {reset_value: "hard", reset_subtract: "soft"}

    def reader(layer: nn.Module, shape: Shape) -> Neuron:
        p = layer.p
        values = {name: _behind_batch(name, value, shape) for name, value in _tensors(p)}
        found: dict[str, object] = {"pair": True, "decay": 1.0, "start": values.get("v_leak", values.get("v_reset"))}
        if "tau_mem_inv" in values:
            step = _behind_batch("tau_mem_inv", layer.dt * p.tau_mem_inv, shape)
            found |= {"decay": 1 - step, "gain": step, "rest": step * values["v_leak"]}
        if "tau_syn_inv" in values:
            found["synapse"] = 1 - _behind_batch("tau_syn_inv", layer.dt * p.tau_syn_inv, shape)
        if "v_th" in values:
            method = getattr(p, "reset_method", reset_value)
            if method not in resets:
                raise ValueError(f"its reset_method is {method!r}, accepted are reset_value and reset_subtract")
            found |= {"threshold": values["v_th"], "v_reset": values["v_reset"], "reset": resets[method]}
        start = np.asarray(found["start"])
        if (start != start.flat[0]).any():
            raise ValueError("its potentials start at different values, accepted is one")
        return Neuron(**found | {"start": float(start.flat[0])})

    cells = (lif_box.LIFBoxCell, lif.LIFCell, lif.LIF, iaf.IAFCell, leaky_integrator_box.LIBoxCell)
    return dict.fromkeys(cells, reader)


def _tensors(parameters: object) -> list[tuple[str, Tensor | float]]:
    names = ("tau_syn_inv", "tau_mem_inv", "v_leak", "v_th", "v_reset")
    return [(name, getattr(parameters, name)) for name in names if hasattr(parameters, name)]


# ------------------------------------------------------------------------------------------------------------ sinabs


def _sinabs(library: ModuleType) -> dict[type, Reader]:
    from sinabs.activation import MembraneReset, MembraneSubtract, MultiSpike, SingleSpike

    def reader(layer: nn.Module, shape: Shape) -> Neuron:
        alpha = _behind_batch("tau_mem", layer.alpha_mem_calculated, shape)
        found: dict[str, object] = {"decay": alpha, "gain": 1 - alpha if layer.norm_input else 1.0}
        if layer.min_v_mem is not None:
            if layer.min_v_mem.numel() != 1:
                raise ValueError(f"its min_v_mem has shape {tuple(layer.min_v_mem.shape)}, accepted is one number")
            found["v_min"] = float(layer.min_v_mem)
        if layer.spike_fn is None:
            if "v_min" in found:
                raise ValueError("it has a min_v_mem, which our leaky integrators lack")
            return Neuron(**found)
        if layer.alpha_syn_calculated is not None:
            # The membrane sees the current after its decay.
            found["synapse"] = _behind_batch("tau_syn", layer.alpha_syn_calculated, shape)
            found["gain"] *= found["synapse"]
        if layer.spike_fn not in (MultiSpike, SingleSpike):
            raise ValueError(f"its spike_fn is {layer.spike_fn!r}, accepted are MultiSpike and SingleSpike")
        hard = layer.reset_fn == MembraneReset(0.0)
        if not hard and layer.reset_fn != MembraneSubtract(None):
            raise ValueError(f"its reset_fn is {layer.reset_fn!r}, accepted are MembraneSubtract() and MembraneReset()")
        return Neuron(
            **found,
            threshold=_behind_batch("spike_threshold", layer.spike_threshold, shape),
            reset="hard" if hard else "soft",
            strict=False,
            several=layer.spike_fn is MultiSpike,
            detach_reset=hard,
        )

    classes = ("LIF", "LIFSqueeze", "IAF", "IAFSqueeze", "ExpLeak", "ExpLeakSqueeze")
    return {getattr(library, name): reader for name in classes}


LIBRARIES: dict[str, Callable[[ModuleType], dict[type, Reader]]] = {
    "spikingjelly": _spikingjelly,
    "snntorch": _snntorch,
    "norse.torch": _norse,
    "sinabs.layers": _sinabs,
}


def _refuse(reason: str | None) -> None:
    if reason is not None:
        raise ValueError(reason)


def _behind_batch(name: str, value: Tensor | float, shape: Shape) -> np.ndarray:
    """A value that broadcasts with (N, *shape) and is the same for all N: of `shape`, or one number."""
    array = torch.as_tensor(value).detach().double().cpu().numpy()
    if array.size == 1:
        return array.reshape(())
    try:
        return np.broadcast_to(array, (1, *shape))[0]
    except ValueError:
        raise ValueError(f"its {name} has shape {array.shape}, accepted is one that broadcasts to {shape}") from None
