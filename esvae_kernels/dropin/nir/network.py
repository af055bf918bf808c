"""NIR graphs to modules: `from_nir`."""

from __future__ import annotations

from collections.abc import Sequence
from graphlib import CycleError, TopologicalSorter
from typing import Any

import nir
import numpy as np
import torch
from torch import Tensor, fx, nn

from ...nn import LI, LIF
from ...reset import by_name
from ...surrogate import ATan, Surrogate
from .layers import Started
from .neuron import METADATA, NAMES, NODES, NUMBERS, from_node, reduce

Shape = tuple[int, ...]


def checked(x: Tensor, shape: Shape) -> Tensor:
    """x (T, N, *shape)."""
    if not isinstance(x, Tensor) or tuple(x.shape[2:]) != shape or x.dim() < 3:
        got = f"shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"x: got {got}, accepted is (T, N, {', '.join(map(str, shape))})")
    return x


fx.wrap("checked")


class Network(nn.Module):
    """The layers of a NIR graph over a whole sequence: (T, N, *) in and out, from the same start at every call.

    `names[k]` is the node of `layers[k]`; they are in an order in which they can run.
    """

    def __init__(
        self, names: Sequence[str], layers: Sequence[nn.Module], sources: Sequence[Sequence[int]], input_shape: Shape
    ) -> None:
        super().__init__()
        self.names = tuple(names)
        self.layers = nn.ModuleList(layers)
        self.sources = tuple(tuple(of) for of in sources)  # per layer, then of the output; 0: x, k + 1: layer k
        self.input_shape = tuple(input_shape)

    def forward(self, x: Tensor) -> Tensor:
        values = [checked(x, self.input_shape)]
        for layer, sources in zip(self.layers, self.sources, strict=False):
            value = self._sum(values, sources)
            if isinstance(layer, LIF | LI | Started):
                values.append(layer(value))
            else:
                values.append(layer(value.flatten(0, 1)).unflatten(0, value.shape[:2]))
        return self._sum(values, self.sources[-1])

    def _sum(self, values: list[Tensor], sources: Sequence[int]) -> Tensor:
        first, *others = (values[k] for k in sources)
        for other in others:
            first = first + other
        return first

    def extra_repr(self) -> str:
        return f"input_shape={self.input_shape}"


class Scale(nn.Module):
    """x times a value per neuron."""

    def __init__(self, scale: Tensor) -> None:
        super().__init__()
        self.scale = nn.Parameter(scale)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


def from_nir(
    graph: nir.NIRGraph,
    *,
    dt: float | None = None,
    input_shape: Sequence[int] | None = None,
    surrogate: Surrogate = ATan(),  # noqa: B008 - frozen
    dtype: torch.dtype = torch.float32,
) -> Network:
    """A module that runs the graph over whole sequences, x (T, N, *) -> (T, N, *): `esvae_kernels.nn` and torch layers.

    Neurons take Euler steps of `dt`: decay = 1 - dt/tau and so on; they start at 0, of which NIR says nothing. Their
    parameters are one value, one per channel (the first axis), or one per neuron. Of what `to_nir` has written, resets,
    thresholds, starts, readouts (a readout's output has no time axis) and exact values come back from the metadata.

    Args:
        graph: without cycles and subgraphs, with one Input and one Output.
        dt: the time step. Default: what the metadata of `to_nir`'s graphs says.
        input_shape: of one sample at one time step, where the Input node says something else (others write the axes of
            time and samples into it).
        surrogate: of spiking neurons whose metadata has none.
        dtype: of all parameters.

    Raises:
        ValueError: one line with the node's name: unsupported nodes, cycles, edges to nowhere, shapes that do not fit,
            values that are not finite, a tau of less than dt, parameters that differ within a channel.
    """
    from .export import _checked_shape, check_dt

    if not isinstance(graph, nir.NIRGraph):
        raise TypeError(f"graph: got {type(graph).__name__}, accepted is a nir.NIRGraph")
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise TypeError(f"dtype: got {dtype!r}, accepted is a floating-point dtype")
    if dt is None:
        dt = graph.metadata.get(METADATA + "dt")
        dt = float(dt) if isinstance(dt, float | np.floating) else None
        if dt is None:
            raise ValueError("dt: got None, accepted is a number above 0: this graph's metadata has none")
    check_dt(dt)
    order, before = _order(graph)
    inputs = [name for name in order if isinstance(graph.nodes[name], nir.Input)]
    outputs = [name for name in order if isinstance(graph.nodes[name], nir.Output)]
    for kind, names in (("Input", inputs), ("Output", outputs)):
        if len(names) != 1:
            raise ValueError(f"graph: got {len(names)} {kind} nodes ({', '.join(names)[:80]}), accepted is one")
    given = graph.nodes[inputs[0]].input_type["input"] if input_shape is None else input_shape
    shape = _checked_shape(f"node {inputs[0]!r} (Input)" if input_shape is None else "input_shape", given)
    shapes, index, names, layers = {inputs[0]: shape}, {inputs[0]: 0}, [], []
    read_out: str | None = None
    for name in order:
        node = graph.nodes[name]
        if name == inputs[0]:
            continue
        where = f"node {name!r} ({type(node).__name__})"
        if not before[name]:
            raise ValueError(f"{where} has no edge into it, accepted is Input alone")
        found = {shapes[source] for source in before[name]}
        if len(found) != 1:
            raise ValueError(f"{where} sums outputs of different shapes: {', '.join(map(str, sorted(found)))}")
        (features,) = found
        if read_out is not None and name != outputs[0]:
            raise ValueError(f"{where} comes behind the readout of node {read_out!r}, where there is no time any more")
        if name == outputs[0]:
            continue
        try:
            layer, shapes[name] = _layer(node, features, dt, surrogate, dtype)
        except (ValueError, TypeError, RuntimeError, AttributeError, IndexError, OverflowError) as error:
            raise ValueError(f"{where}: {' '.join(str(error).split())[:300]}") from None
        options = layer.layer if isinstance(layer, Started) else layer
        read_out = name if getattr(options, "readout", None) is not None else read_out
        index[name] = len(layers) + 1
        names.append(name), layers.append(layer)
    unused = set(graph.nodes) - {source for source, _ in graph.edges} - {outputs[0]}
    if unused:
        raise ValueError(f"node {min(unused)!r} has no edge out of it, accepted is Output alone")
    sources = [[index[source] for source in before[name]] for name in (*names, outputs[0])]
    return Network(names, layers, sources, shape)


def _order(graph: nir.NIRGraph) -> tuple[list[str], dict[str, list[str]]]:
    """The nodes in an order in which they can run, and for each those in front of it."""
    before: dict[str, list[str]] = {name: [] for name in graph.nodes}
    for source, target in graph.edges:
        for name in (source, target):
            if name not in before:
                raise ValueError(f"edge ({source!r}, {target!r}): there is no node {name!r}")
        if source in before[target]:
            raise ValueError(f"edge ({source!r}, {target!r}): is there twice")
        before[target].append(source)
    try:
        return list(TopologicalSorter(before).static_order()), before
    except CycleError as error:
        cycle = " -> ".join(map(repr, reversed(error.args[1])))
        raise ValueError(f"graph: got a cycle, {cycle}, accepted are graphs without recurrent connections") from None


# -------------------------------------------------------------------------------------------------------------- layers


def _layer(
    node: nir.NIRNode, shape: Shape, dt: float, surrogate: Surrogate, dtype: torch.dtype
) -> tuple[nn.Module, Shape]:
    """The node's layer for an input of `shape`, and the shape of its output."""
    if isinstance(node, NODES):
        return _neurons(node, shape, dt, surrogate, dtype), shape
    if isinstance(node, nir.Scale):
        scale = _tensor("scale", node.scale, dtype)
        if tuple(scale.shape) != shape:
            raise ValueError(f"its scale has shape {tuple(scale.shape)}, its input {shape}")
        return Scale(scale), shape
    # On no device: torch checks, and finds the shape, before anything is allocated.
    with torch.device("meta"):
        layer, parameters = _stateless(node, shape, dtype)
        out = layer(torch.empty(1, *shape, dtype=dtype))
    layer.load_state_dict(parameters, assign=True)
    return layer, tuple(out.shape[1:])


def _stateless(node: nir.NIRNode, shape: Shape, dtype: torch.dtype) -> tuple[nn.Module, dict[str, Tensor]]:
    if isinstance(node, nir.Flatten):
        start, end = _integer("start_dim", node.start_dim), _integer("end_dim", node.end_dim)
        return nn.Flatten(start + 1 if start >= 0 else start, end + 1 if end >= 0 else end), {}
    if isinstance(node, nir.AvgPool2d | nir.SumPool2d):
        if len(shape) != 3:
            raise ValueError(f"its input has shape {shape}, accepted is (C, H, W)")
        kernel, stride, padding = (_sizes(n, getattr(node, n), 2) for n in ("kernel_size", "stride", "padding"))
        divisor = 1 if isinstance(node, nir.SumPool2d) else None
        return nn.AvgPool2d(kernel, stride, padding, divisor_override=divisor), {}
    if not isinstance(node, nir.Linear | nir.Affine | nir.Conv1d | nir.Conv2d):
        raise ValueError("there is no layer for this node")
    weight = _tensor("weight", node.weight, dtype)
    bias = None if getattr(node, "bias", None) is None else _tensor("bias", node.bias, dtype)
    parameters = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
    axes = weight.dim() - 2
    expected = {nir.Conv1d: 1, nir.Conv2d: 2}.get(type(node), 0)
    if axes != expected or len(shape) != expected + 1:
        raise ValueError(
            f"its weight has shape {tuple(weight.shape)} and its input {shape}, accepted are {2 + expected} axes and "
            f"{1 + expected}"
        )
    if bias is not None and tuple(bias.shape) != (len(weight),):
        raise ValueError(f"its bias has shape {tuple(bias.shape)}, accepted is {(len(weight),)}")
    if not axes:
        return nn.Linear(weight.shape[1], len(weight), bias=bias is not None, dtype=dtype), parameters
    groups = _integer("groups", node.groups)
    padding = node.padding if isinstance(node.padding, str) else _sizes("padding", node.padding, axes)
    layer = (nn.Conv1d if axes == 1 else nn.Conv2d)(
        weight.shape[1] * groups,
        len(weight),
        tuple(weight.shape[2:]),
        _sizes("stride", node.stride, axes),
        padding,
        _sizes("dilation", node.dilation, axes),
        groups,
        bias=bias is not None,
        dtype=dtype,
    )
    return layer, parameters


def _neurons(node: nir.NIRNode, shape: Shape, dt: float, surrogate: Surrogate, dtype: torch.dtype) -> nn.Module:
    neuron = from_node(node, shape, dt)
    options: dict[str, Any] = {
        NAMES.get(name, name): reduce(value, shape, dtype)
        for name in NUMBERS
        if (value := getattr(neuron, name)) is not None
    }
    v_reset = options.pop("v_reset")
    if neuron.spikes:
        layer: nn.Module = LIF(
            **options,
            reset=by_name(neuron.reset, v_reset, neuron.detach_reset),
            fire="multi_spike" if neuron.several else ">" if neuron.strict else ">=",
            v_min=neuron.v_min,
            readout="mean" if neuron.readout == "rate" else neuron.readout,
            surrogate=neuron.surrogate or surrogate,
        )
    else:
        layer = LI(**{k: v for k, v in options.items() if k != "threshold"}, readout=neuron.readout)
    steps = len(neuron.readout) if isinstance(neuron.readout, tuple) else 1
    layer(torch.zeros(steps, 1, *shape, dtype=dtype))  # the kernels refuse what does not go together
    return layer if neuron.start == 0 else Started(layer, neuron.start)


def _tensor(name: str, value: object, dtype: torch.dtype) -> Tensor:
    array = np.asarray(value)
    if array.dtype.kind not in "fiub":
        raise ValueError(f"its {name} is of {array.dtype}, accepted are numbers")
    if not np.isfinite(array).all():
        raise ValueError(f"its {name} is not finite")
    tensor = torch.tensor(array, dtype=dtype, device="cpu")
    if not tensor.isfinite().all():
        raise ValueError(f"its {name} is not finite in {dtype}")
    return tensor


def _integer(name: str, value: object) -> int:
    array = np.asarray(value)
    if array.size != 1 or array.dtype.kind not in "iu":
        raise ValueError(f"its {name} is {str(value)[:80]!r}, accepted is an integer")
    return int(array.reshape(()))


def _sizes(name: str, value: object, axes: int) -> tuple[int, ...]:
    array = np.asarray(value).reshape(-1)
    if array.dtype.kind not in "iu" or array.size not in (1, axes) or array.min() < 0 or array.max() > 1 << 20:
        raise ValueError(f"its {name} is {str(value)[:80]!r}, accepted are {axes} integers")
    return tuple(int(size) for size in (array if array.size == axes else [*array] * axes))
