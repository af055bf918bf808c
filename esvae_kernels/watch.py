"""`watch(model)`: which spiking layers are silent or saturated, and where the gradient ends.

Hooks on the layers add up, on their device, what they fire and what gradient reaches them; nothing waits for the device
until a table, `rows`, `to_dict` or `log` asks. Layers see and return the tensors that they would without.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from .nn import BNLIF, LIF, Poisson
from .surrogate import Surrogate

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle
    from torch.utils.tensorboard import SummaryWriter

__all__ = ["Row", "Watch", "watch"]

Kinds = Mapping[type[nn.Module], int] | Iterable[type[nn.Module]] | type[nn.Module]
_INPUTS = ("x", "y", "rate", "input", "input_", "input_tensor", "input_data")  # keywords of inputs, and not of states
_KNOWN = "LIF, BNLIF and Poisson of esvae_kernels.nn, neurons of SpikingJelly, snnTorch, Norse and sinabs, and kinds="


@dataclass(frozen=True)
class Row:
    """What one layer did since the last reset. None: not known, see `words`, or no gradient was asked for."""

    layer: str  # its name in the model, the first where it has several; "" is the model itself
    kind: str  # its class
    calls: int
    rate: float | None  # spikes per neuron and time step; above 1 where a neuron fires several in one
    silent: float | None  # share of neurons that never fired: in no sample, at no step, in no call
    saturated: float | None  # share of neurons that fired at every step of every sample
    grad_output: float | None  # 2-norm of the gradient of its spikes, root mean square over backward passes
    grad_input: float | None  # the same of what it passes on to its input
    words: tuple[str, ...]  # what is wrong: silent, saturated, no gradient, ...


def watch(model: nn.Module, *, kinds: Kinds = (), max_silent: float = 0.5, max_saturated: float = 0.1) -> Watch:
    """Watches firing rates and gradients of the spiking layers of a model, until `remove()` or the end of a `with`.

        with esvae_kernels.watch(model) as watched:
            criterion(model(x), y).backward()
        print(watched)             # a table
        watched.log(writer, step)  # scalars per layer for TensorBoard; starts anew

    Sums go on over calls until `reset()` or `log()`. A neuron is one element of a layer, whatever the sample and the
    time step: of spikes (T, N, C, H, W) there are C H W.

    Watched are `LIF`, `BNLIF` and `Poisson` of `esvae_kernels.nn`, the neurons of SpikingJelly, snnTorch, Norse and
    sinabs (converted by `dropin` or not) but for their integrators without spikes, and subclasses of all these. `nn.LI`
    has no spikes. A layer with the readout "mean" returns the rate itself; from one with weights, or with a smooth
    surrogate (`spiking=False`), no rate can be told. A layer used in several places is one row, and its neurons for
    inputs of one shape are others than for those of another.

    Does not count: calls under `torch.func` transforms, `torch.jit.trace` and `torch.export`; snnTorch's and Norse's
    `sequence`, which hooks do not see. snnTorch's `unroll` refuses layers with hooks. What `torch.compile` has compiled
    before does not call hooks that come later: watch before the first call, at the cost of breaks in the graph, or call
    under `torch.compiler.set_stance("force_eager")`, which is the only way with `fullgraph=True`.

    Args:
        model: any module; a spiking layer too.
        kinds: further classes, whose output, or the first tensor of it, is spikes (T, N, *) with time and batch in any
            order; or {class: number of axes before the neurons'}, 1 for (N, *).
        max_silent: share of neurons that never fired above which a layer is called silent. Default 0.5.
        max_saturated: share of neurons that fired at every step above which it is called saturated. Default 0.1.

    Returns:
        A `Watch`, which prints as a table.

    Raises:
        TypeError: `model` is no module, `kinds` are no classes of modules.
        ValueError: there is no spiking layer, or a share is not in [0, 1].
    """
    return Watch(model, kinds=kinds, max_silent=max_silent, max_saturated=max_saturated)


class Watch:
    """What `watch` returns. As a context manager it ends with `remove()`, after an exception too; entered again, it
    goes on."""

    def __init__(self, model: nn.Module, *, kinds: Kinds, max_silent: float, max_saturated: float) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model: got a {type(model).__name__}, accepted is a torch.nn.Module")
        self._max_silent = _share("max_silent", max_silent)
        self._max_saturated = _share("max_saturated", max_saturated)
        own = _axes_of(kinds)
        layers = [(name, layer, _axes(layer, own)) for name, layer in model.named_modules()]
        self._layers = [(layer, _Record(_plain(name), axes)) for name, layer, axes in layers if axes is not None]
        if not self._layers:
            raise ValueError(f"model: got a {type(model).__name__} without a spiking layer; known are {_KNOWN}")
        self._handles: list[RemovableHandle] = []
        self._install()

    def _install(self) -> None:
        for layer, record in self._layers:
            record.active = True
            self._handles.append(layer.register_forward_pre_hook(_Before(record), with_kwargs=True))
            self._handles.append(layer.register_forward_hook(_After(record), with_kwargs=True))

    def remove(self) -> None:
        """Takes the hooks away; what was counted stays. A backward that comes later is not seen."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        for _, record in self._layers:
            record.active = False  # hooks on tensors live as long as their graph

    def reset(self) -> None:
        """Starts anew."""
        for _, record in self._layers:
            record.reset()

    def __enter__(self) -> Watch:
        if not self._handles:
            self._install()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.remove()

    @property
    def rows(self) -> list[Row]:
        """A row per layer, in the order of `model.named_modules()`. Waits for the device, once."""
        found = _read([record for _, record in self._layers])
        backward = any(totals.out_passes for totals in found)
        return [
            self._row(layer, record, totals, backward)
            for (layer, record), totals in zip(self._layers, found, strict=True)
        ]

    def _row(self, layer: nn.Module, record: _Record, totals: _Totals, backward: bool) -> Row:
        known = totals.values > 0
        silent = totals.silent / totals.neurons if known and totals.neurons else None
        saturated = totals.saturated / totals.neurons if silent is not None and not record.averaged else None
        grad_output = math.sqrt(totals.out_squares / totals.out_passes) if totals.out_passes else None
        grad_input = math.sqrt(totals.in_squares / totals.in_passes) if totals.in_passes else None
        words = [] if totals.calls else [record.unknown or _not_called()]
        if totals.calls and not known and record.unknown:
            words.append(record.unknown)
        if silent is not None and silent > self._max_silent:
            words.append("silent")
        if saturated is not None and saturated > self._max_saturated:
            words.append("saturated")
        if not all(math.isfinite(norm) for norm in (grad_output, grad_input) if norm is not None):
            words.append("gradient not finite")
        elif grad_output == 0 or (grad_output is None and backward and totals.learning):
            words.append("no gradient")
        elif grad_output is not None and grad_input == 0:
            words.append("passes no gradient on")
        return Row(
            layer=record.name,
            kind=type(layer).__name__,
            calls=int(totals.calls),
            rate=totals.spikes / totals.values if known else None,
            silent=silent,
            saturated=saturated,
            grad_output=grad_output,
            grad_input=grad_input,
            words=tuple(words),
        )

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """{layer: {"kind": ..., "calls": ..., "rate": ..., ...}}, the fields of `Row` as plain data."""
        rows = [asdict(row) for row in self.rows]
        return {row.pop("layer"): row for row in rows}

    def log(self, writer: SummaryWriter, step: int | None = None, *, prefix: str = "") -> None:
        """Writes the scalars `firing_rate/<layer>`, `silent_neurons/<layer>`, `saturated_neurons/<layer>`,
        `grad_norm_output/<layer>` and `grad_norm_input/<layer>`, as far as they are known, and starts anew.

        Args:
            writer: a torch.utils.tensorboard.SummaryWriter, or anything with its `add_scalar(tag, value, step)`.
            step: the training step.
            prefix: comes before the tags, for example "train/".

        Raises:
            TypeError: `writer` has no `add_scalar`.
        """
        if not callable(getattr(writer, "add_scalar", None)):
            raise TypeError(
                f"writer: got a {type(writer).__name__}, accepted is a torch.utils.tensorboard.SummaryWriter"
            )
        for row in self.rows:
            for tag, value in (
                ("firing_rate", row.rate),
                ("silent_neurons", row.silent),
                ("saturated_neurons", row.saturated),
                ("grad_norm_output", row.grad_output),
                ("grad_norm_input", row.grad_input),
            ):
                if value is not None:
                    writer.add_scalar(f"{prefix}{tag}/{row.layer or 'model'}", value, step)
        self.reset()

    def __str__(self) -> str:
        def percent(share: float | None) -> str:
            return "-" if share is None else f"{100 * share:.1f} %"

        def norm(value: float | None) -> str:
            return "-" if value is None else f"{value:.2e}"

        head = ("layer", "kind", "rate", "silent", "saturated", "grad output", "grad input", "")
        cells = [
            (
                row.layer or "(the model)",
                row.kind,
                "-" if row.rate is None else f"{row.rate:.4f}",
                percent(row.silent),
                percent(row.saturated),
                norm(row.grad_output),
                norm(row.grad_input),
                ", ".join(row.words),
            )
            for row in self.rows
        ]
        widths = [max(map(len, column)) for column in zip(head, *cells, strict=True)]
        lines = [
            "  ".join(
                cell.rjust(width) if 2 <= k < 7 else cell.ljust(width)
                for k, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in (head, *cells)
        ]
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"<Watch on {len(self._layers)} layers, {'active' if self._handles else 'removed'}>"


# --------------------------------------------------------------------------------------------- what layers return


def _plain(name: str) -> str:
    """A layer's name without what torch.compile puts in front."""
    return ".".join(part for part in name.split(".") if part != "_orig_mod")


def _not_called() -> str:
    compiled = "torch._dynamo" in sys.modules
    return "not called, or compiled before it was watched" if compiled else "not called"


class _Spikes(NamedTuple):
    """The spikes of one call, or their mean over time, and how to read them."""

    spikes: Tensor | None  # None: they cannot be told, see `unknown`
    axes: int = 0  # in front of the neurons' own
    steps: int = 1  # time steps that each value is the mean of
    averaged: bool = False  # whether "at every step" is lost in it
    unknown: str = ""


def _share(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ValueError(f"{name}: got {value!r}, accepted is a share in [0, 1]")
    return float(value)


def _axes_of(kinds: object) -> dict[type, int]:
    """The caller's classes, and how many axes there are before the neurons'."""
    if isinstance(kinds, type):
        kinds = (kinds,)
    if not isinstance(kinds, Iterable):
        raise TypeError(f"kinds: got {kinds!r}, accepted are classes of torch.nn.Module")
    found = dict(kinds) if isinstance(kinds, Mapping) else dict.fromkeys(kinds, 2)
    for kind, axes in found.items():
        if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
            raise TypeError(f"kinds: got {kind!r}, accepted are classes of torch.nn.Module")
        if isinstance(axes, bool) or not isinstance(axes, int) or axes < 0:
            raise ValueError(f"kinds: got {axes!r} axes for {kind.__name__}, accepted is a number from 0 on")
    return found


def _axes(layer: nn.Module, own: Mapping[type, int]) -> int | None:
    """How many axes the spikes of a layer have before those of its neurons, -1 where each call tells; None: none that
    spikes. Other libraries' classes are known by name: they are imported where a model has them, and only there."""
    for kind, axes in own.items():
        if isinstance(layer, kind):
            return axes
    if isinstance(layer, LIF | BNLIF | Poisson):
        return -1
    bases = {f"{cls.__module__.partition('.')[0]}.{cls.__name__}" for cls in type(layer).__mro__}
    if bases & {"spikingjelly.BaseNode", "spikingjelly.SimpleBaseNode", "spikingjelly.PoissonEncoder"}:
        return -1
    if "snntorch.SpikingNeuron" in bases:
        return 1
    if bases & {"norse.SNN", "norse.SNNRecurrent", "norse.SNNCell", "norse.SNNRecurrentCell"}:
        name = type(layer).__name__
        if name.startswith("LI") and not name.startswith("LIF"):  # leaky integrators: potentials
            return None
        return 1 if bases & {"norse.SNNCell", "norse.SNNRecurrentCell"} else 2
    if "sinabs.StatefulLayer" in bases and getattr(layer, "spike_fn", None) is not None:
        return 1 if "sinabs.SqueezeMixin" in bases else 2  # (B T, *), (B, T, *)
    return None


def _spikes(layer: nn.Module, axes: int, args: tuple[Any, ...], kwargs: dict[str, Any], output: object) -> _Spikes:
    out = _first(output)
    if out is None:
        return _Spikes(None, unknown=f"returns a {type(output).__name__}")
    if axes >= 0:
        return _Spikes(out, axes)
    if isinstance(layer, Poisson):
        return _Spikes(out, 2) if layer.surrogate.spiking else _Spikes(None, unknown="no spikes: smooth")
    if not isinstance(layer, LIF | BNLIF):  # SpikingJelly
        return _Spikes(out, 2 if getattr(layer, "step_mode", "s") == "m" else 1)
    if not cast(Surrogate, layer.surrogate).spiking:
        return _Spikes(None, unknown="no spikes: smooth")
    readout = kwargs.get("readout")
    readout = layer.readout if readout is None else readout
    if readout is None:
        return _Spikes(out, 1 if layer.single_step else 2)
    if not isinstance(readout, str):
        return _Spikes(None, unknown="rate unknown: weighted readout")
    several = getattr(layer, "fire", None) == "multi_spike"
    return _Spikes(out, 1, _steps(layer.single_step, args, kwargs), several)


def _steps(single_step: bool, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    if single_step:
        return 1
    if kwargs.get("steps") is not None:
        return int(kwargs["steps"])
    key = _where(args, kwargs)
    x = args[0] if key == 0 else kwargs[key]
    return int(x.shape[0])


def _where(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The place of a layer's input among its arguments: 0, a keyword, or None."""
    if args:
        return 0 if isinstance(args[0], Tensor) else None
    names = [name for name, value in kwargs.items() if isinstance(value, Tensor)]
    return min(names, key=lambda name: name not in _INPUTS) if names else None


def _first(values: object) -> Tensor | None:
    """The tensor, or the first of several."""
    if isinstance(values, tuple | list):
        return next((value for value in values if isinstance(value, Tensor)), None)
    return values if isinstance(values, Tensor) else None


# ------------------------------------------------------------------------------------------------------- the sums


@dataclass
class _Totals:
    """Of one layer, read from the device."""

    calls: float = 0.0
    spikes: float = 0.0
    values: float = 0.0  # neurons times samples times steps
    learning: float = 0.0  # calls whose spikes need a gradient
    out_squares: float = 0.0
    out_passes: float = 0.0
    in_squares: float = 0.0
    in_passes: float = 0.0
    silent: float = 0.0
    saturated: float = 0.0
    neurons: float = 0.0


_SUMS = 8  # the first of them are added up in one tensor


class _Sums:
    """Of one layer on one device. Counts are there as well, so that a CUDA graph's replays count."""

    def __init__(self, device: torch.device) -> None:
        # Not inference tensors: they are added to outside of inference mode too.
        with torch.inference_mode(False):
            dtype = torch.float32 if device.type == "mps" else torch.float64
            self.all = torch.zeros(_SUMS, dtype=dtype, device=device)
            (
                self.calls,
                self.spikes,
                self.values,
                self.learning,
                self.out_squares,
                self.out_passes,
                self.in_squares,
                self.in_passes,
            ) = self.all.unbind()
        self.neurons: dict[torch.Size, tuple[Tensor, Tensor, Tensor]] = {}

    def of(self, shape: torch.Size) -> tuple[Tensor, Tensor, Tensor]:
        """Whether neurons of this shape have been there (), which have fired (*), and which always have (*)."""
        if shape not in self.neurons:
            device = self.all.device
            with torch.inference_mode(False):
                self.neurons[shape] = (
                    torch.zeros((), dtype=torch.bool, device=device),
                    torch.zeros(shape, dtype=torch.bool, device=device),
                    torch.ones(shape, dtype=torch.bool, device=device),
                )
        return self.neurons[shape]

    def read(self) -> Tensor:
        """(len(_Totals))"""
        shares = self.all.new_zeros(3)
        for there, fired, always in self.neurons.values():
            neurons = there.new_full((), fired.numel(), dtype=torch.int64)
            counts = torch.stack([(~fired).sum(), always.sum(), neurons])
            shares += counts * there
        return torch.cat([self.all, shares])

    def reset(self) -> None:
        """In place: a CUDA graph knows the addresses."""
        self.all.zero_()
        for there, fired, always in self.neurons.values():
            there.zero_()
            fired.zero_()
            always.fill_(True)


class _Record:
    """One layer's sums, and what hooks need to know to add to them."""

    def __init__(self, name: str, axes: int) -> None:
        self.name, self.axes, self.active = name, axes, True
        self.sums: dict[torch.device, _Sums] = {}
        self.passes: dict[str, int] = {}
        self.averaged, self.unknown = False, ""

    def on(self, device: torch.device) -> _Sums:
        if device not in self.sums:
            self.sums[device] = _Sums(device)
        return self.sums[device]

    def reset(self) -> None:
        self.averaged, self.unknown = False, ""
        with torch.no_grad():
            for sums in self.sums.values():
                sums.reset()

    def count(self, found: _Spikes, out: Tensor | None) -> None:
        """Adds one call's spikes. `out`: the layer's output, for its device."""
        self.averaged |= found.averaged
        self.unknown = found.unknown or self.unknown
        if out is None:
            return
        sums = self.on(out.device)
        sums.calls.add_(1)
        if out.requires_grad:
            sums.learning.add_(1)
        if found.spikes is None or found.spikes.numel() == 0:
            return
        spikes = found.spikes.detach()
        axes = min(found.axes, spikes.dim())
        # Along the memory: across it, as channels-last, torch's extremes take thirty times as long.
        order = sorted(range(axes, spikes.dim()), key=lambda dim: -spikes.stride()[dim])
        spikes = spikes.permute(*range(axes), *order)
        half = spikes.dtype in (torch.float16, torch.bfloat16)
        sums.spikes.add_(spikes.sum(dtype=torch.float32 if half else None), alpha=found.steps)
        sums.values.add_(spikes.numel() * found.steps)
        # The extremes tell without a mask of the size of the spikes.
        least, most = (extreme(tuple(range(axes))) if axes else spikes for extreme in (spikes.amin, spikes.amax))
        back = [order.index(dim) for dim in range(axes, axes + len(order))]
        least, most = least.permute(back), most.permute(back)
        there, fired, always = sums.of(least.shape)
        there.fill_(True)
        fired.logical_or_((most != 0) | (least != 0))
        always.logical_and_(least >= 1 if found.steps > 1 else least > 0)

    def differentiate(self, tensor: Tensor, which: str) -> None:
        """Adds the gradient of the tensor when it comes. `which`: "out" or "in"."""

        def hook(gradient: Tensor) -> None:
            if not self.active or _elsewhere():
                return
            with torch.no_grad():
                gradient = gradient.detach()
                half = gradient.dtype in (torch.float16, torch.bfloat16)
                norm = torch.linalg.vector_norm(gradient, dtype=torch.float32 if half else None)
                sums = self.on(gradient.device)
                squares, passes = getattr(sums, f"{which}_squares"), getattr(sums, f"{which}_passes")
                squares.add_(norm.to(squares.dtype).square())
                now = torch._C._current_graph_task_id()  # calls of one backward pass are one gradient
                if self.passes.get(which) != now:
                    self.passes[which] = now
                    passes.add_(1)

        tensor.register_hook(hook)


def _read(records: list[_Record]) -> list[_Totals]:
    """All sums, with one transfer per device."""
    found = [[0.0] * (_SUMS + 3) for _ in records]
    with torch.no_grad():
        for device in dict.fromkeys(device for record in records for device in record.sums):
            there = [k for k, record in enumerate(records) if device in record.sums]
            values = torch.stack([records[k].sums[device].read() for k in there]).tolist()
            for k, totals in zip(there, values, strict=True):
                found[k] = [a + b for a, b in zip(found[k], totals, strict=True)]
    return [_Totals(*totals) for totals in found]


# ------------------------------------------------------------------------------------------------------ the hooks


def _elsewhere() -> bool:
    """Whether tensors are not what they will be: in a transform, a trace or an export."""
    return (
        torch._C._are_functorch_transforms_active()
        or torch._C._get_tracing_state() is not None
        or torch.compiler.is_exporting()
    )


class _Hook:
    """Copies and pickles of a watched model are not watched."""

    def __init__(self, record: _Record) -> None:
        self.record = record

    def __reduce__(self) -> tuple[type[_Unwatched], tuple[()]]:
        return _Unwatched, ()


class _Unwatched:
    def __call__(self, *arguments: object) -> None:
        return None


class _Before(_Hook):
    """Sees the gradient that the layer passes on: that of a view of its input, which no other layer has."""

    def __call__(
        self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        return _uncompiled(_before, self.record, args, kwargs) if _compiling() else _before(self.record, args, kwargs)


class _After(_Hook):
    def __call__(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: object) -> None:
        if _compiling():
            _uncompiled(_after, self.record, layer, args, kwargs, output)
        else:
            _after(self.record, layer, args, kwargs, output)


def _before(
    record: _Record, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    if not record.active or not torch.is_grad_enabled() or _elsewhere():
        return None
    key = _where(args, kwargs)
    if key is None or not (x := args[0] if key == 0 else kwargs[key]).requires_grad:
        return None
    x = x.view_as(x)
    record.differentiate(x, "in")
    return ((x, *args[1:]), kwargs) if key == 0 else (args, kwargs | {key: x})


def _after(record: _Record, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: object) -> None:
    if not record.active or _elsewhere():
        return
    out = _first(output)
    with torch.no_grad():
        record.count(_spikes(layer, record.axes, args, kwargs, output), out)
    if out is not None and out.requires_grad and torch.is_grad_enabled():
        record.differentiate(out, "out")


_compiling = torch.compiler.is_compiling


@torch._compile._disable_dynamo
def _uncompiled(function: Any, *arguments: Any) -> Any:
    """Breaks the graph of torch.compile, which would keep neither sums nor hooks on tensors."""
    return function(*arguments)
