"""`neuron`: a neuron from its equations, fused over all time steps."""

from __future__ import annotations

import inspect
import struct
from collections.abc import Callable, Mapping, Sequence
from functools import update_wrapper
from typing import Any

import torch
from torch import Tensor

from . import check
from .dynamics.trace import NeuronError, trace
from .library import learning
from .ops.lif.op import Number, Readout, read_weights, stored_rows
from .ops.lif.plan import KEPT
from .ops.lif.reference import READOUTS, state_dtype
from .scan.op import Call, scan_apply
from .scan.options import Options
from .surrogate import ATan, Surrogate

_OWN = ("surrogate", "readout", "record", "dtype", "steps")  # keywords of every neuron


def neuron(*, states: Mapping[str, float | str]) -> Callable[[Callable[..., Any]], Neuron]:
    """Makes a neuron of a plain function of one time step.

    The function's positional arguments are inputs, and states where they are named in `states`; its keywords are
    parameters. It returns its output (or a tuple of them), the new states, and if it likes a dict of what can be
    recorded. It may use Python's operators and the functions of `esvae_kernels.dynamics`::

        @neuron(states={"v": 0.0, "a": 0.0})
        def alif(x, v, a, *, decay, threshold, jump, decay_a):
            m = decay * v + x
            s = spike(m, threshold + jump * a)
            return s, (m * (1 - s), decay_a * a + s), {"membrane": m}

        spikes, (v, a) = alif(x, decay=0.9, threshold=1.0, jump=0.1, decay_a=0.97)

    The result is called with x (T, N, *) and does all time steps at once, forward and backward; `Neuron.__call__`
    explains its options.

    Args:
        states: names of states, and what they are before the first step: a number, or a parameter's name.

    Raises:
        NeuronError: the function holds what cannot be expressed; the message names its line.
    """
    return lambda function: Neuron(function, states)


class Neuron:
    """What `neuron` returns: a function of sequences."""

    __name__: str
    __qualname__: str

    def __init__(self, function: Callable[..., Any], states: Mapping[str, float | str]) -> None:
        self.graph, self._shapes = trace(function, states)
        self._text = self.graph.text()
        signature = inspect.signature(function).parameters.values()
        self._positional = [p.name for p in signature if p.kind is not p.KEYWORD_ONLY]
        self._defaults = {p.name: p.default for p in signature if p.kind is p.KEYWORD_ONLY and p.default is not p.empty}
        # A call with one input, numbers for parameters, and states at initial values that are numbers.
        self._calls: dict[Any, Call] = {}
        ready = len(self.graph.inputs) == 1 and not any(isinstance(value, str) for _, value in self.graph.states)
        self._alone = 1 + len(self.graph.parameters) if ready else -1
        self._needed_in_order = (*self.graph.inputs, *self.graph.parameters)
        self._needed = frozenset(self._needed_in_order)
        self._form = f"{len(self.graph.parameters)}d"
        self._nothing = (None,) * (len(self.graph.states) + len(self.graph.parameters) + 2)
        for name in (*self._positional, *self.graph.parameters):
            if name in _OWN:
                raise NeuronError(f"neuron {function.__name__}: got an argument named {name}, which every neuron has")
        update_wrapper(self, function)

    def __repr__(self) -> str:
        return f"<neuron {self.__name__}>"

    def __reduce__(self) -> str | tuple[Any, ...]:
        return self.__qualname__ if "." not in self.__qualname__ else object.__reduce_ex__(self, 2)

    def __call__(
        self,
        *tensors: Tensor | None,
        surrogate: Surrogate = ATan(),  # noqa: B008 - frozen
        readout: Readout = None,
        record: str | Sequence[str] = (),
        dtype: torch.dtype | None = None,
        steps: int | None = None,
        **named: Any,
    ) -> tuple[Any, ...]:
        """All time steps of the neuron.

        Args:
            tensors: inputs and states in the order of the neuron's function; inputs (T, N, *), fp64, fp32, bf16 or
                fp16, states (N, *), fp64 for fp64 inputs, else fp32. A state that is not given starts at its initial
                value.
            surrogate: one of `esvae_kernels.surrogate`, for every spike of the neuron. Default: `ATan()`.
            readout: of the first output: None, "mean" over time, or T weights of a sum over time; it is then (N, *).
            record: names of records to return, over all time steps.
            dtype: of the outputs: fp64, fp32, bf16, fp16 (default: the inputs' own), or for spikes that need no
                gradient uint8.
            steps: T, for inputs (N, *) without time axis, which are constant in time.
            named: the neuron's parameters: finite numbers, or tensors of one element, of C (C: axis 2 of the inputs),
                or of one per neuron, with gradients. Inputs and states can be given by their names as well.

        Returns:
            (output, states), as the function returns them: outputs (T, N, *), the last states (N, *). With `record` a
            dict of tensors (T, N, *) comes third.

        Raises:
            TypeError, ValueError: one line naming the argument, what came and what is accepted.
        """
        given = self._bound(tensors, named)
        graph, key, call = self.graph, None, None
        x = given[graph.inputs[0]]
        records = (record,) if isinstance(record, str) else tuple(record)
        # What is found of a call is kept for the next one with the same numbers, options and shape, as most are.
        alone = len(given) == self._alone and type(x) is Tensor and (readout is None or type(readout) is str)
        if alone and not torch.compiler.is_compiling() and torch._C._get_tracing_state() is None:
            values = [given[name] for name in graph.parameters]
            try:
                options = (readout, records, dtype, steps, type(steps), getattr(surrogate, "key", None))
                types = tuple(map(type, values))
                if Tensor not in types and torch.nn.Parameter not in types:
                    key = (x.shape, x.dtype, x.layout, struct.pack(self._form, *values), types, *options)
                    call = self._calls.get(key)
            except (TypeError, struct.error):  # tensors among them, or wrong: told of below
                key = None
        shape = weights = None
        kept: Sequence[Tensor | None] = ()
        if call is None:
            call, kept, weights, shape = self._prepared(given, surrogate, readout, records, dtype, steps)
            if key is not None and shape is None:
                if len(self._calls) >= KEPT:
                    self._calls.clear()
                self._calls[key] = call
        learnt = weights is not None and call.options.readout == 0  # by them, which the ops give no gradient
        flat = (*kept, None if learnt else weights, shape) if kept else (x, *self._nothing)
        found = scan_apply(call, flat, stored_rows(call.steps))
        a = len(graph.outputs)
        b = a + len(graph.states)
        outs, last = found[:a], found[a:b]
        if learnt and weights is not None:
            outs = (torch.tensordot(weights.to(outs[0].dtype), outs[0], 1), *outs[1:])
        one_output, one_state = self._shapes
        results = (outs[0] if one_output else outs, last[0] if one_state else last)
        return (*results, dict(zip(records, found[b:], strict=True))) if records else results

    def _prepared(
        self,
        given: Mapping[str, Any],
        surrogate: Surrogate,
        readout: Readout,
        records: tuple[str, ...],
        dtype: torch.dtype | None,
        steps: int | None,
    ) -> tuple[Call, tuple[Tensor | None, ...], Tensor | None, Tensor | None]:
        """Checks a call: what of it is no tensor, its tensors, readout weights, and the surrogate's shape."""
        graph = self.graph
        inputs = [given[name] for name in graph.inputs]
        for name, x in zip(graph.inputs, inputs, strict=True):
            check.floating(name, x, 2 if steps is None else 1, "(T, N, *)" if steps is None else "(N, *) with steps=")
        x, first = inputs[0], graph.inputs[0]
        for name, other in zip(graph.inputs[1:], inputs[1:], strict=True):
            check.like(name, other, tuple(x.shape), x.dtype, x.device)
        time = check.steps(f"{first}'s time axis T", x.shape[0]) if steps is None else check.steps("steps", steps)
        inner, state = x.shape[1:] if steps is None else x.shape, state_dtype(x.dtype)
        parameters, numbers = self._parameters(given, inner, state, x.device)
        held = []
        for name, initial in graph.states:
            value = given.get(name)
            if value is not None:
                check.like(name, value, tuple(inner), state, x.device)
            elif isinstance(initial, str):
                value = self._spread(parameters[initial], numbers[initial], inner, state, x.device)
            held.append(value)
        surrogate = check.surrogate(surrogate)
        shape = surrogate.parameter if isinstance(surrogate.parameter, Tensor) else None
        for name in records:
            if name not in dict(graph.records):
                known = ", ".join(repr(r) for r, _ in graph.records) or "nothing"
                raise ValueError(f"record: got {name!r}, accepted is {known}")
        if not surrogate.spiking and any(len(n.args) == 3 for n in graph.nodes if n.op.startswith("spike")):
            raise ValueError("surrogate: got one with spiking=False, accepted for several spikes is one that spikes")
        weights: Tensor | None = None
        kind = readout if readout is None or (isinstance(readout, str) and readout == "mean") else "weights"
        if kind == "weights":
            weights = read_weights(readout, time, x.device)
            if learning(weights):  # the ops give them no gradient
                kind = None
        tensors = (*inputs, *held, *parameters.values())
        learns = dtype is torch.uint8 and learning(*tensors)
        spikes = kind is None and surrogate.spiking and all(self._spikes(k) for k in range(len(graph.outputs)))
        options = Options(
            self._text,
            surrogate.id,
            1.0 if isinstance(surrogate.parameter, Tensor) else surrogate.parameter,
            float(surrogate.scale),
            float(surrogate.shift),
            surrogate.spiking,
            READOUTS.index(kind),
            check.spikes_dtype(dtype, x.dtype, spikes, learns),
            steps is not None,
            records,
        )
        first_state, first_parameter = len(graph.inputs), len(graph.inputs) + len(graph.states)
        counts = first_state, first_parameter, first_parameter + len(graph.parameters)
        call = Call(options, options.text(), tuple(numbers.values()), time, counts)
        return call, tensors, weights, shape

    def _bound(self, tensors: Sequence[Any], named: dict[str, Any]) -> dict[str, Any]:
        """Arguments by name: every input and parameter, and the states that are given."""
        name, positional = self.__name__, self._positional
        if len(tensors) > len(positional):
            raise TypeError(f"{name}: got {len(tensors)} tensors, accepted are {', '.join(positional)}")
        given = {**self._defaults, **dict(zip(positional, tensors, strict=False)), **named}
        if len(given) != self._alone or not given.keys() >= self._needed:
            for argument in named:
                if argument not in self.graph.leaves:
                    known = ", ".join((*self.graph.parameters, *_OWN))
                    raise TypeError(f"{name}: got the unknown keyword {argument}, accepted are {known}")
            for argument in self._needed_in_order:
                if argument not in given:
                    raise TypeError(f"{name}: got no {argument}, accepted is a call with it")
        for argument in positional[: len(tensors)]:
            if argument in named:
                raise TypeError(f"{name}: got {argument} twice, accepted is once")
        return given

    def _parameters(
        self, given: Mapping[str, Any], inner: Sequence[int], dtype: torch.dtype, device: torch.device
    ) -> tuple[dict[str, Tensor | None], dict[str, float]]:
        """Each as a flat tensor of the states' type, or None, and as a number, or 0."""
        tensors: dict[str, Tensor | None] = {}
        numbers: dict[str, float] = {}
        for name in self.graph.parameters:
            value: Number = given[name]
            tensors[name], numbers[name] = None, 0.0
            if isinstance(value, Tensor):
                check.parameter(name, value, inner, device)
                tensors[name] = value.to(dtype).reshape(-1)
            else:
                numbers[name] = check.number(name, value, dtype=dtype)
        return tensors, numbers

    @staticmethod
    def _spread(
        value: Tensor | None, number: float, inner: Sequence[int], dtype: torch.dtype, device: torch.device
    ) -> Tensor:
        """A parameter that is a state's initial value, per neuron."""
        if value is None:
            return torch.full(tuple(inner), number, dtype=dtype, device=device)
        channels = inner[1] if len(inner) > 1 else 1
        if value.numel() == 1:
            return value.reshape(()).expand(inner)
        return value.reshape((-1, *(1,) * (len(inner) - 2)) if value.numel() == channels else inner[1:]).expand(inner)

    def _spikes(self, k: int) -> bool:
        """Whether an output is 0 or 1."""
        ref = self.graph.outputs[k]
        node = self.graph.nodes[int(ref[1:])] if isinstance(ref, str) and ref not in self.graph.leaves else None
        return node is not None and node.op.startswith("spike") and len(node.args) == 2
