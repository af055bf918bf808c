"""Replaces the neuron layers of a model by ours, in place, and back.

Our layer is a subclass of the library's which only runs otherwise, so that to replace a layer is to change its
`__class__`: parameters, buffers, hooks, state and every reference to it stay as they are by construction.

A library is a row in `LIBRARIES`. Its module here has

    REPLACEMENTS: dict[type, type]    the library's class -> ours, with `why_not(layer) -> str | None` on ours
    NEURONS: tuple[type, ...]         base classes of what is worth a line in the report
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType

from torch import nn

LIBRARIES = (
    ("spikingjelly", "esvae_kernels.dropin.spikingjelly"),
    ("snntorch", "esvae_kernels.dropin.snntorch"),
    ("norse", "esvae_kernels.dropin.norse"),
    ("sinabs", "esvae_kernels.dropin.sinabs"),
)


@dataclass(frozen=True)
class Entry:
    """One neuron layer of a model."""

    name: str  # in the model; "" is the model itself
    layer: str  # library and class
    why_not: str | None  # why it was not replaced; None: it was

    def __str__(self) -> str:
        return f"{self.name or '(the model)'} ({self.layer}): {self.why_not or 'replaced'}"


@dataclass(frozen=True)
class Report:
    """What `convert` found, in the order of `model.named_modules()`; prints as a table."""

    entries: tuple[Entry, ...]

    @property
    def replaced(self) -> tuple[Entry, ...]:
        return tuple(entry for entry in self.entries if entry.why_not is None)

    @property
    def kept(self) -> tuple[Entry, ...]:
        return tuple(entry for entry in self.entries if entry.why_not is not None)

    def __str__(self) -> str:
        total = f"{len(self.replaced)} of {len(self.entries)} neuron layers replaced"
        rows = [(entry.name or "(the model)", entry.layer, entry.why_not or "replaced") for entry in self.entries]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join([*lines, total])


def convert(model: nn.Module, *, strict: bool = False) -> Report:
    """Replaces, in place, each neuron layer of other libraries that ours replaces exactly.

    Parameters (the same objects: optimisers keep working), buffers, hooks, training mode, state and the keys of the
    state_dict stay. A layer of a subclass is left alone: its dynamics may be its own. The whole model is looked at
    before anything is changed. To convert twice is to convert once.

    Args:
        model: any module; a neuron layer too.
        strict: raise if a neuron layer cannot be replaced, and change nothing.

    Returns:
        A line per neuron layer: replaced, or why not.

    Raises:
        ValueError: with `strict`, naming the layers and what they lack.
    """
    entries: list[Entry] = []
    swaps: list[tuple[nn.Module, type[nn.Module]]] = []
    for name, layer, module in _neurons(model):
        cls: type = type(layer)
        library, why_not = _library_class(cls, module), None
        if cls in module.REPLACEMENTS:
            ours = module.REPLACEMENTS[cls]
            why_not = _on_several_devices(layer) or ours.why_not(layer)
            if why_not is None:
                swaps.append((layer, ours))
        elif library is not None and cls in module.REPLACEMENTS.values():  # replaced before
            cls = library
        else:
            why_not = "no kernel for it" if library is None else f"a subclass of {library.__name__}, left alone"
        entries.append(Entry(name, f"{_name(module)} {cls.__name__}", why_not))
    report = Report(tuple(entries))
    if strict and report.kept:
        raise ValueError(
            f"model: {len(report.kept)} neuron layers cannot be replaced: {'; '.join(map(str, report.kept))}"
        )
    for layer, ours in swaps:
        layer.__class__ = ours
    return report


def revert(model: nn.Module) -> None:
    """Gives every layer of ours in the model its library's class back: what `convert` did, undone.

    State, parameters and everything else stay as they are now. A layer that was made as ours is changed as well.
    """
    for _, layer, module in _neurons(model):
        for library, ours in module.REPLACEMENTS.items():
            if type(layer) is ours:
                layer.__class__ = library


def _neurons(model: nn.Module) -> Iterator[tuple[str, nn.Module, ModuleType]]:
    """Name, layer and our module of each neuron layer; of a library that the model has nothing of, ours is not
    imported."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: got {type(model).__name__}, accepted is a torch.nn.Module")
    there = {cls.__module__.partition(".")[0] for layer in model.modules() for cls in type(layer).__mro__}
    modules = [import_module(ours) for library, ours in LIBRARIES if library in there]
    for name, layer in model.named_modules():
        for module in modules:
            if isinstance(layer, module.NEURONS):
                yield name, layer, module


def _on_several_devices(layer: nn.Module) -> str | None:
    devices = {str(tensor.device) for tensor in (*layer.parameters(), *layer.buffers())}
    return f"its tensors are on several devices: {', '.join(sorted(devices))}" if len(devices) > 1 else None


def _library_class(cls: type, module: ModuleType) -> type | None:
    """The class that ours replaces, among `cls` and what it derives from."""
    return next((base for base in cls.__mro__ if base in module.REPLACEMENTS), None)


def _name(module: ModuleType) -> str:
    return module.__name__.rpartition(".")[2]
