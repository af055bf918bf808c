"""Modules to NIR graphs: `to_nir`."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import nir
import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.func import functional_call
from torch.utils._pytree import tree_leaves

from . import neuron as neurons
from .layers import library_class, reader_of, sees_sequences
from .network import Network, Scale, checked
from .neuron import INEXPRESSIBLE, METADATA, to_node

# Sizes of the axes in front of the neurons' shape while shapes are found, on no device: not those of any layer.
TIME, SAMPLES = 10007, 10009

PASS = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
VIEWS = (nn.Flatten, nn.Unflatten)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
POOLS = (nn.AvgPool2d, nn.LPPool2d)
STATELESS = (*PASS, *VIEWS, *NORMS, *CONVOLUTIONS, *TRANSPOSED, *POOLS, nn.Linear, Scale)
LIBRARIES = ("torch", "esvae_kernels", "spikingjelly", "snntorch", "norse", "sinabs")

QUERIES = {"size", "dim", "ndimension", "numel", "is_contiguous"}
RESHAPES = {"flatten", "unflatten", "reshape", "view", "squeeze", "unsqueeze", "contiguous", "clone", "detach"}
ADDS = {"add", "iadd", "add_"}


def to_nir(
    model: nn.Module,
    input_shape: Sequence[int],
    *,
    dt: float = 1e-4,
    accept: Iterable[str] = (),
    fold: bool = False,
    max_matrix: int = 1 << 24,
) -> nir.NIRGraph:
    """The model, in evaluation, as a NIR graph; `nir.write(path, graph)` writes it to a file.

    The model is traced (`torch.fx`), not run: layers in any order, sums of their outputs, and views between them.
    Known are the neurons of `esvae_kernels.nn`, those of SpikingJelly, snnTorch, Norse and sinabs that `convert` knows
    (as they are, or converted), Norse's IAFCell and LIBoxCell, sinabs' ExpLeak, and torch's Linear, Conv1d and 2d,
    ConvTranspose, AvgPool2d, LPPool2d of norm 1 (a sum), Flatten, batch norm and Dropout. Models that see one time step
    at a time are exported as one step. Hooks are not called, states and parameters not touched.

    Batch norm in front of our neurons (`BNLIF`) becomes their r and v_leak, exactly; `nn.BatchNorm` is folded into the
    map in front of it. NIR has neither transposed convolutions nor a way back from Flatten: from the first of them on,
    maps are written as matrices (Affine) over flattened neurons, zeros included, up to `max_matrix` elements each.

    Args:
        model: with `input_shape` of one sample at one time step.
        dt: the step in NIR's time; SpikingJelly and snnTorch read 1e-4, Norse 1e-3.
        accept: what NIR cannot say and the model may have nevertheless, of ">=", "reset", "multi_spike", "spiking",
            "v_min", "start", "readout". It is kept in the nodes' metadata for `from_nir`; what others read is in the
            README.
        fold: gain, rest and norm of neurons go into the map in front of them, so that r = 1 and v_leak = 0 (IF: 1/dt),
            which is what other libraries can read; rounds otherwise.
        max_matrix: the most elements of a matrix that stands for a convolution.

    Raises:
        ValueError: one line with the layer's name: what NIR, or this function, lacks.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: got {type(model).__name__}, accepted is a torch.nn.Module")
    shape = _checked_shape("input_shape", input_shape)
    check_dt(dt)
    accept = (accept,) if isinstance(accept, str) else tuple(accept)
    for name in accept:
        if name not in INEXPRESSIBLE:
            raise ValueError(f"accept: got {name!r}, accepted are {', '.join(INEXPRESSIBLE)}")
    root, training = _Root(model), [layer for layer in model.modules() if layer.training]
    try:
        graph = _Tracer().trace(root.eval())
    except (fx.proxy.TraceError, TypeError, AttributeError) as error:
        raise ValueError(
            f"model: torch.fx cannot trace {type(model).__name__}.forward: {_line(error)}; accepted are layers, sums "
            "of their outputs and views, without decisions by values"
        ) from None
    finally:
        for layer in training:
            layer.training = True
    builder = _Builder(fx.GraphModule(root, graph), model, shape, dt, frozenset(accept), fold, max_matrix)
    return builder.build()


def check_dt(dt: object) -> None:
    if isinstance(dt, bool) or not isinstance(dt, float | int) or not 0 < dt < math.inf:
        raise ValueError(f"dt: got {dt!r}, accepted is a number above 0")


def _checked_shape(name: str, shape: object) -> tuple[int, ...]:
    try:
        sizes = tuple(operator.index(size) for size in shape)  # type: ignore[attr-defined]
    except TypeError:
        raise TypeError(f"{name}: got {shape!r}, accepted are integers, the shape of one sample") from None
    if not sizes or min(sizes) < 1:
        raise ValueError(f"{name}: got {sizes}, accepted are one or more sizes above 0")
    return sizes


class _Root(nn.Module):
    """So that a layer alone, too, is a call of a module, and arguments beyond the first keep their defaults."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> object:
        return self.model(x)


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        known = _stateless_kind(m) is not None or library_class(m) is not None
        if known or super().is_leaf_module(m, module_qualified_name):
            return True
        return type(m).__module__.partition(".")[0] in LIBRARIES and next(m.children(), None) is None


def _stateless_kind(layer: nn.Module) -> type | None:
    """torch's class, also of SpikingJelly's layers with a step mode and of sinabs' SumPool2d."""
    own = type(layer).__module__
    if type(layer) in STATELESS:
        return type(layer)
    if own.startswith("spikingjelly.activation_based.layer") and type(layer).__name__ in ("Dropout", "Dropout2d"):
        return nn.Dropout
    if own.startswith(("spikingjelly.activation_based.layer", "sinabs.layers.pool2d")):
        return next((kind for kind in STATELESS if isinstance(layer, kind)), None)
    return None


@dataclass(frozen=True)
class _Signal:
    """What flows between layers: its shape, and where it comes from."""

    tensor: Tensor  # on no device, with the axes of time and samples
    sources: tuple[str, ...]  # nodes, whose outputs are summed
    folds: tuple[int, ...]  # how many layers were folded into each of them when this came out of it
    shape: tuple[int, ...]  # of a sample in NIR: that of `tensor`, or flat
    final: str | None = None  # the layer that has summed up time

    @property
    def features(self) -> tuple[int, ...]:
        shape = tuple(self.tensor.shape)
        if shape[:2] == (TIME, SAMPLES):
            return shape[2:]
        if shape and shape[0] in (SAMPLES, TIME * SAMPLES, TIME):
            return shape[1:]
        raise ValueError(f"mixes time steps or samples: {shape}, where those are {TIME} and {SAMPLES}")


@dataclass(frozen=True)
class _State:
    """What a neuron layer returns beside its spikes."""

    layer: str


class _Builder(fx.Interpreter):
    """Runs the traced graph on shapes alone, and makes a node of each layer."""

    def __init__(
        self,
        module: fx.GraphModule,
        model: nn.Module,
        shape: tuple[int, ...],
        dt: float,
        accept: frozenset[str],
        fold: bool,
        max_matrix: int,
    ) -> None:
        super().__init__(module)
        self.root, self.shape, self.dt, self.accept = model, shape, dt, accept
        self.fold, self.max_matrix = fold, max_matrix
        self.nodes: dict[str, nir.NIRNode] = {}
        self.edges: list[tuple[str, str]] = []
        self.folds: list[int] = []  # of each edge: how many layers were folded into its source in front of it
        self.folded: dict[str, list[str]] = {}  # by node, the layers that are folded into it
        self.called: set[str] = set()
        self.extra_traceback = False

    def build(self) -> nir.NIRGraph:
        sequences = any(isinstance(layer, Network) or sees_sequences(layer) for layer in self.root.modules())
        lead = (TIME, SAMPLES) if sequences else (SAMPLES,)
        x = torch.empty(*lead, *self.shape, device="meta")
        self.nodes["input"] = nir.Input(input_type={"input": np.array(self.shape)})
        with torch.no_grad():
            result = self.run(_Signal(x, ("input",), (0,), self.shape))
        result, *others = result if isinstance(result, tuple | list) else (result,)
        if not isinstance(result, _Signal) or _signals(others):
            raise ValueError("model: returns other than one output, and states behind it, which is accepted")
        self.nodes["output"] = nir.Output(output_type={"output": np.array(result.shape)})
        self.connect(result, "output")
        for (source, _), folds in zip(self.edges, self.folds, strict=True):
            if layers := self.folded.get(source, [])[folds:]:
                what = f"{layers[0]} would be folded into node {source!r}"
                raise ValueError(f"{what}, whose output goes elsewhere as well")
        try:
            return nir.NIRGraph(self.nodes, self.edges, metadata={METADATA + "dt": self.dt})
        except ValueError as error:
            raise ValueError(f"model: nir refuses its graph: {_line(error)}") from None

    # ------------------------------------------------------------------------------------------- what fx calls

    def call_module(self, target: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> object:
        layer, path = self.fetch_attr(target), target.removeprefix("model").removeprefix(".")
        where = f"layer {path!r} ({type(layer).__name__})" if path else f"the model ({type(layer).__name__})"
        try:
            return self.layer(layer, self.name_of(path), where, args, kwargs)
        except (ValueError, RuntimeError, TypeError, IndexError) as error:
            raise ValueError(f"{where}: {_line(error)}") from None

    def call_function(self, target: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> object:
        if target is getattr and isinstance(args[0], _Signal):
            return getattr(args[0].tensor, args[1])
        if target is checked:
            return args[0]
        if target is operator.getitem and isinstance(args[0], tuple):  # of what a layer returns
            return args[0][args[1]]
        return self.function(getattr(target, "__name__", str(target)), target, args, kwargs)

    def call_method(self, target: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> object:
        return self.function(target, lambda x, *more, **named: getattr(x, target)(*more, **named), args, kwargs)

    def function(self, name: str, run: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> object:
        """A function or method between layers."""
        signals = _signals((args, kwargs))
        if not signals:
            return run(*args, **kwargs)
        where = f"model: {name} on the output of {' and '.join(map(repr, signals[0].sources))}"
        first = signals[0]
        alone = len(signals) == 1 and args and args[0] is first
        if alone and name in QUERIES:
            return run(first.tensor, *args[1:], **kwargs)
        try:
            if alone and name in RESHAPES:
                return self.view(first, run(first.tensor, *args[1:], **kwargs), name)
            if name in ADDS and len(args) == 2 and len(signals) == 2 and not kwargs:
                return _sum(*signals)
        except (ValueError, RuntimeError, TypeError, IndexError) as error:
            raise ValueError(f"{where}: {_line(error)}") from None
        raise ValueError(f"{where}: NIR has no node for it, accepted are sums, views and layers")

    # ---------------------------------------------------------------------------------------------- layers

    def name_of(self, path: str) -> str:
        if isinstance(self.root, Network) and path.startswith("layers."):
            path = self.root.names[int(path.split(".")[1])]
        return self.free(path.replace(".", "_").replace("/", "_") or type(self.root).__name__.lower())

    def free(self, name: str) -> str:
        """`name`, or with a number behind it."""
        taken = {*self.nodes, "input", "output"}
        return next(n for k in range(len(taken) + 1) if (n := f"{name}_{k}" if k else name) not in taken)

    def connect(self, signal: _Signal, name: str) -> None:
        if len(set(signal.sources)) != len(signal.sources):
            raise ValueError(f"node {name!r} would see one output twice, which NIR's edges cannot say")
        if signal.final is not None and name != "output":
            raise ValueError(f"it comes behind the readout of {signal.final}, where there is no time any more")
        self.edges += [(source, name) for source in signal.sources]
        self.folds += signal.folds

    def add(self, name: str, node: nir.NIRNode, x: _Signal, out: Tensor, shape: tuple[int, ...]) -> _Signal:
        """The signal behind a new node, which has `shape` in NIR."""
        self.connect(x, name)
        self.nodes[name] = node
        result = _Signal(out, (name,), (0,), shape)
        types = (node.input_type["input"], node.output_type["output"])
        for kind, expected in zip(types, (x.shape, shape), strict=True):
            if kind is not None and tuple(kind) != expected:
                raise ValueError(f"nir {nir.version} takes its shape for {tuple(kind)}, it is {expected}")
        return result

    def layer(self, layer: nn.Module, name: str, where: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> object:
        x = args[0] if args else None
        if not isinstance(x, _Signal):
            raise ValueError("its input is not the output of a layer")
        read = reader_of(layer)
        if read is not None:
            return self.neuron(layer, read(layer, x.features), name, where, x, (args[1:], kwargs))
        kind, library = _stateless_kind(layer), library_class(layer)
        if library is not None:
            raise ValueError(f"a subclass of {library.__name__}, whose dynamics may be its own")
        if kind is None:
            raise ValueError("NIR has no node for it, or it is not known here")
        if _signals((args[1:], kwargs)):
            raise ValueError("it takes one input")
        if kind in PASS:
            return x
        if kind in NORMS:
            return self.norm(layer, where, x)
        out = _shape_of(layer, x.tensor)
        if kind in VIEWS:
            return self.view(x, out, name)
        if kind in POOLS:
            return self.pool(layer, name, x, out)
        if kind is Scale:
            scale = np.broadcast_to(_array(layer.scale), x.features).reshape(x.shape)
            return self.add(name, nir.Scale(scale.copy()), x, out, x.shape)
        weight, bias = _array(layer.weight), None if layer.bias is None else _array(layer.bias)
        if kind is nn.Linear:
            if len(x.features) != 1:
                raise ValueError(f"its input has shape {x.features}, accepted is one axis (flatten first)")
            return self.add(name, _affine(weight, bias), x, out, (len(weight),))
        if kind in TRANSPOSED or x.shape != x.features:
            return self.matrix(layer, name, x, out)
        return self.convolution(layer, weight, bias, name, x, out)

    def neuron(
        self, layer: nn.Module, found: neurons.Neuron, name: str, where: str, x: _Signal, more: tuple[Any, Any]
    ) -> object:
        if where in self.called:
            raise ValueError("it is called more than once, accepted is a model of one time step or of a whole sequence")
        self.called.add(where)
        positional, named = more
        if named.get("steps") is not None:
            raise ValueError("it is called with steps=, a current that is constant in time, which NIR lacks")
        state = (positional, {key: value for key, value in named.items() if key not in ("steps", "readout")})
        for leaf in tree_leaves(state):
            if leaf is not None and not (isinstance(leaf, Tensor) and not leaf.any()):
                raise ValueError("it is called with a state that is not 0, which NIR lacks")
        if named.get("readout") is not None:
            raise ValueError("it is called with readout=, accepted is that of the layer")
        lacking = [name for name in found.inexpressible() if name not in self.accept]
        if lacking:
            texts = (INEXPRESSIBLE[name].format(name, reset=found.reset, start=found.start) for name in lacking)
            raise ValueError("; ".join(texts))
        if self.fold:
            a, b, found = neurons.folded(found)
            if (np.asarray(a) != 1).any() or np.any(b):
                x = self.into_the_map(np.asarray(a), np.asarray(b), where, x, "fold=True takes")
        node = to_node(found, x.features, x.shape, self.dt)
        out = x.tensor if found.readout is None else x.tensor[0]
        result = self.add(name, node, x, out, x.shape)
        result = replace(result, final=None if found.readout is None else where)
        return (result, _State(where)) if found.pair else result

    def norm(self, layer: nn.BatchNorm2d, where: str, x: _Signal) -> _Signal:
        if layer.running_mean is None:
            raise ValueError("it has no running statistics, which evaluation needs")
        a = 1 / torch.sqrt(layer.running_var.double() + layer.eps)
        b = -layer.running_mean.double() * a
        if layer.affine:
            a, b = a * layer.weight.double(), b * layer.weight.double() + layer.bias.double()
        axes = (-1, *(1,) * (len(x.features) - 1))
        return self.into_the_map(_array(a).reshape(axes), _array(b).reshape(axes), where, x, "accepted is")

    def into_the_map(self, a: np.ndarray, b: np.ndarray, where: str, x: _Signal, accepted: str) -> _Signal:
        """The map's output times a plus b, which broadcast to x's features."""
        source = x.sources[0]
        node = self.nodes[source]
        if len(x.sources) != 1 or not isinstance(node, nir.Linear | nir.Affine | nir.Conv1d | nir.Conv2d):
            raise ValueError(f"{accepted} a Linear or a convolution right in front of it, into which it is folded")
        self.folded.setdefault(source, []).append(where)
        a, b = (np.broadcast_to(value, x.features) for value in (a, b))
        convolution = isinstance(node, nir.Conv1d | nir.Conv2d)
        rows = (len(node.weight), -1) if convolution else (-1, 1)
        a, b = a.reshape(rows), b.reshape(rows)
        if (a != a[:, :1]).any() or (b != b[:, :1]).any():
            raise ValueError("it differs within a channel, and cannot be folded into a convolution")
        a, b = a[:, 0], b[:, 0]
        dtype, bias = node.weight.dtype, getattr(node, "bias", None)
        weight = (node.weight * a.reshape(-1, *(1,) * (node.weight.ndim - 1))).astype(dtype)
        bias = (b if bias is None else bias * a + b).astype(dtype)
        if convolution:
            node.weight, node.bias = weight, bias
        else:
            self.nodes[source] = _affine(weight, bias)
        return replace(x, folds=(len(self.folded[source]),))

    def convolution(
        self, layer: nn.Conv2d, weight: np.ndarray, bias: np.ndarray | None, name: str, x: _Signal, out: Tensor
    ) -> _Signal:
        if layer.padding_mode != "zeros":
            raise ValueError(f"its padding_mode is {layer.padding_mode!r}, accepted is 'zeros'")
        bias = np.zeros(len(weight), dtype=weight.dtype) if bias is None else bias
        flat = weight.ndim == 3

        def sizes(value: Any) -> Any:
            return value if isinstance(value, str) else value[0] if flat else tuple(value)

        node = (nir.Conv1d if flat else nir.Conv2d)(
            input_shape=x.features[1] if flat else x.features[1:],
            weight=weight,
            stride=sizes(layer.stride),
            padding=sizes(layer.padding),
            dilation=sizes(layer.dilation),
            groups=layer.groups,
            bias=bias,
        )
        return self.add(name, node, x, out, replace(x, tensor=out).features)

    def matrix(self, layer: nn.Module, name: str, x: _Signal, out: Tensor) -> _Signal:
        """A linear layer as a matrix over flattened neurons."""
        features, result = x.features, replace(x, tensor=out).features
        inputs, outputs = math.prod(features), math.prod(result)
        if inputs * outputs > self.max_matrix:
            kind = "transposed convolutions" if isinstance(layer, TRANSPOSED) else "convolutions behind an Unflatten"
            raise ValueError(
                f"NIR has no {kind}; as a matrix it takes {outputs} x {inputs} = {inputs * outputs} elements, accepted "
                f"are {self.max_matrix} (max_matrix)"
            )
        if len(x.shape) != 1:
            x = self.view(x, x.tensor.flatten(-len(features)), f"{name}_flatten")
        eye = torch.eye(inputs, dtype=layer.weight.dtype, device=layer.weight.device).unflatten(1, features)
        sequences = x.tensor.shape[:2] == (TIME, SAMPLES)
        rows = (layer(eye[None])[0] if sequences else layer(eye)).flatten(1)
        bias = None
        if layer.bias is not None:
            bias = layer.bias.reshape(-1, *(1,) * (len(result) - 1)).expand(result).flatten()
            rows = rows - bias
        node = _affine(_array(rows.T.contiguous()), None if bias is None else _array(bias))
        return self.add(name, node, x, out, (outputs,))

    def pool(self, layer: nn.AvgPool2d | nn.LPPool2d, name: str, x: _Signal, out: Tensor) -> _Signal:
        if x.shape != x.features:
            raise ValueError("it comes behind an Unflatten or a transposed convolution, where NIR's values are flat")
        padding = _pair(getattr(layer, "padding", 0))
        if layer.ceil_mode or getattr(layer, "norm_type", 1) != 1:
            raise ValueError("it has ceil_mode or a norm other than 1, which NIR's pools lack")
        total = isinstance(layer, nn.LPPool2d) or layer.divisor_override == 1
        if not total and (layer.divisor_override is not None or (any(padding) and not layer.count_include_pad)):
            raise ValueError("it divides by something else than the kernel's size, which NIR's AvgPool2d does")
        sizes = (_pair(layer.kernel_size), _pair(layer.stride or layer.kernel_size), padding)
        kernel, stride, padding = (np.array(size) for size in sizes)
        node = (nir.SumPool2d if total else nir.AvgPool2d)(kernel_size=kernel, stride=stride, padding=padding)
        shape = replace(x, tensor=out).features
        node.input_type, node.output_type = {"input": np.array(x.shape)}, {"output": np.array(shape)}
        return self.add(name, node, x, out, shape)

    # ----------------------------------------------------------------------------------------------- views

    def view(self, x: _Signal, out: Tensor, name: str) -> _Signal:
        """x in another shape: Flatten; nothing where only the axes of time and samples change, or back from flat."""
        before, after = x.features, replace(x, tensor=out).features
        if math.prod(before) != math.prod(after):
            raise ValueError(f"it makes {after} of {before}")
        if before == after or len(x.shape) == 1:
            return replace(x, tensor=out)
        start = next(k for k, size in enumerate(before) if after[k : k + 1] != (size,))
        end = start + len(before) - len(after)
        if end <= start or after != (*before[:start], math.prod(before[start : end + 1]), *before[end + 1 :]):
            start, end, after = 0, len(before) - 1, (math.prod(before),)
        name, end = self.free(name), end if end < len(before) - 1 else -1
        node = nir.Flatten(input_type={"input": np.array(before)}, start_dim=start, end_dim=end)
        return self.add(name, node, x, out, after)


def _signals(values: object) -> list[_Signal]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, _Signal)]


def _sum(a: _Signal, b: _Signal) -> _Signal:
    if a.tensor.shape != b.tensor.shape or a.shape != b.shape:
        raise ValueError(f"the shapes differ: {a.shape} and {b.shape}")
    return _Signal(a.tensor, a.sources + b.sources, a.folds + b.folds, a.shape, a.final or b.final)


def _shape_of(layer: nn.Module, x: Tensor) -> Tensor:
    """The layer's output for x, of which there is only the shape."""
    state = {name: value.to("meta") for name, value in (*layer.named_parameters(), *layer.named_buffers())}
    return functional_call(layer, state, (x,))


def _affine(weight: np.ndarray, bias: np.ndarray | None) -> nir.NIRNode:
    return nir.Linear(weight) if bias is None else nir.Affine(weight, bias)


def _array(tensor: Tensor) -> np.ndarray:
    array = tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32)).cpu().contiguous().numpy()
    if not np.isfinite(array).all():
        raise ValueError("its parameters are not finite")
    return array.copy()


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)


def _line(error: BaseException) -> str:
    text, sizes = " ".join(str(error).split())[:400], f"{TIME}, {SAMPLES}, "
    if sizes in text:
        text = f"{text.replace(sizes, 'T, N, ')}; time goes into the batch, by flatten(0, 1), around layers without it"
    return text
