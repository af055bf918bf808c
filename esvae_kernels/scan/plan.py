"""What a call of a scan needs to know beside its tensors' addresses: it is kept from call to call."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor

from .. import layout
from ..library import require
from ..native import DTYPES
from ..ops.lif.plan import KEPT
from ..ops.lif.reference import READOUTS, state_dtype
from .options import Options, decoded
from .reference import CHUNK

_Form: TypeAlias = tuple[tuple[int, ...], tuple[int, ...], torch.dtype]  # shape, strides, dtype of what is to be made
_KINDS = ("inputs", "states", "parameters", "numbers")
_There = TypeVar("_There", Tensor, Tensor | None)


class Plan:
    """Shapes and layout of one call's tensors, from its inputs alone: the fake and the real op must agree on them."""

    def __init__(self, x: Tensor, options: Options, steps: int) -> None:
        self.options, self.steps, self.device, self.x_dtype = options, steps, x.device, x.dtype
        self.shape, self.channel = tuple(x.shape), 1 if options.constant else 2
        require(len(self.shape) >= self.channel and x.dtype in DTYPES, lambda: f"inputs: got {self.shape}, {x.dtype}")
        self.channels_last = layout.is_channels_last(x, self.channel)
        self.inner = self.shape if options.constant else self.shape[1:]
        self.state_dtype = state_dtype(x.dtype)
        right = steps >= 1 and (options.constant or self.shape[0] == steps)
        require(right, lambda: f"steps: got {steps} for an input {self.shape}")
        graph = options.graph
        self.counts = len(graph.inputs), len(graph.states), len(graph.parameters), len(graph.parameters)
        self.kept: dict[Any, Any] = {}  # what a backend makes of it once
        self._forms: dict[Any, list[_Form | None]] = {}

    def size(self) -> int:
        return math.prod(self.inner)

    def per_sample(self) -> int:
        return math.prod(self.inner[1:])

    def channels(self) -> int:
        return self.inner[1] if len(self.inner) > 1 else 1

    def check(
        self,
        inputs: Sequence[Tensor],
        states: Sequence[Tensor | None],
        parameters: Sequence[Tensor | None],
        numbers: Sequence[float],
        weights: Tensor | None,
    ) -> None:
        """What the kernels take for granted: they have addresses alone."""
        for what, found, count in zip(_KINDS, (inputs, states, parameters, numbers), self.counts, strict=True):
            if len(found) != count:
                raise ValueError(f"{what}: got {len(found)}, accepted are {count}")
        for tensor in inputs[1:]:
            self.require("inputs", tensor, self.shape, self.x_dtype)
        for state, (name, initial) in zip(states, self.options.graph.states, strict=True):
            if state is not None:
                self.require("states", state, self.inner, self.state_dtype)
            elif isinstance(initial, str):
                raise ValueError(f"states: got none for {name}, accepted is a tensor: it starts at {initial}")
        for parameter in parameters:
            if parameter is not None:
                count = parameter.numel()
                right = parameter.dim() == 1 and (count == 1 or count == self.channels() or count == self.per_sample())
                require(right, lambda p=parameter: f"parameters: got shape {tuple(p.shape)} for inputs {self.shape}")  # type: ignore[misc]  # fmt: skip
                self.require("parameters", parameter, parameter.shape, self.state_dtype)
        if (READOUTS[self.options.readout] == "weights") is not (weights is not None):
            require(False, lambda: "weights: got them or none, against the neuron's readout")
        if weights is not None:
            self.require("weights", weights, (self.steps,), torch.float64)

    def check_saved(self, saved: Tensor | None, rows: int | None = None) -> None:
        """Of a backward's tensor, or of the number of rows that a forward is to keep, 0 or enough."""
        least = (self.steps - 1) // CHUNK
        if saved is not None:
            shape = (len(self.options.graph.states), saved.shape[1], *self.inner)
            self.require("saved", saved, shape, self.state_dtype)
            rows = saved.shape[1]
        elif type(rows) is int and rows == 0:
            return
        require(rows is not None and rows >= least, lambda: f"saved_rows: got {rows}, accepted are 0 and {least}")

    def check_cotangents(
        self, outputs: Sequence[Tensor | None], last: Sequence[Tensor | None], records: Sequence[Tensor | None]
    ) -> None:
        every = (self.steps, *self.inner)
        for k, tensor in enumerate(outputs):
            if tensor is not None:
                self.require(
                    "douts", tensor, self.inner if k == 0 and self.options.readout else every, self.options.dtype
                )
        for tensor in last:
            if tensor is not None:
                self.require("dlast", tensor, self.inner, self.state_dtype)
        for tensor in records:
            if tensor is not None:
                self.require("drecords", tensor, every, self.state_dtype)

    def require(self, name: str, tensor: Tensor, shape: Sequence[int], dtype: torch.dtype) -> None:
        require(
            tuple(tensor.shape) == tuple(shape) and tensor.dtype == dtype and tensor.device == self.device,
            lambda: (
                f"{name}: got shape {tuple(tensor.shape)}, {tensor.dtype}, on {tensor.device}, accepted is"
                f" {tuple(shape)}, {dtype}, on {self.device}"
            ),
        )

    def outputs(self, saved_rows: int) -> list[Tensor]:
        """Outputs, last states, records, saved."""
        if type(saved_rows) is not int:  # a symbol, which has no hash
            return self._made(self._output_forms(saved_rows))  # type: ignore[return-value]
        forms = self._forms.get(saved_rows)
        if forms is None:
            forms = self._forms[saved_rows] = self._output_forms(saved_rows)
        return self._made(forms)  # type: ignore[return-value]

    def gradients(self, wanted: Sequence[bool]) -> list[Tensor | None]:
        """Of inputs, states and, per neuron, parameters."""
        key = tuple(wanted)
        forms = self._forms.get(key)
        if forms is None:
            inputs, states, parameters, _ = self.counts
            kinds = [self._form(() if self.options.constant else (self.steps,), self.x_dtype)] * inputs
            kinds += [self._form((), self.state_dtype)] * (states + parameters)
            forms = [kind if there else None for kind, there in zip(kinds, key, strict=True)]
            self._forms[key] = forms
        return self._made(forms)

    def _output_forms(self, saved_rows: int) -> list[_Form | None]:
        o, state, steps = self.options, self.state_dtype, (self.steps,)
        forms: list[_Form | None] = [
            self._form(() if k == 0 and o.readout else steps, o.dtype) for k in range(len(o.graph.outputs))
        ]
        forms += [self._form((), state)] * self.counts[1] + [self._form(steps, state)] * len(o.record)
        return [*forms, self._form((self.counts[1], saved_rows), state)]

    def _form(self, leading: tuple[int, ...], dtype: torch.dtype) -> _Form:
        shape = (*leading, *self.inner)
        return shape, layout.strides(shape, self.channels_last, len(leading) + 1), dtype

    def _made(self, forms: Sequence[_Form | None]) -> list[Tensor | None]:
        empty, device = torch.empty_strided, self.device
        return [None if f is None else empty(f[0], f[1], dtype=f[2], device=device) for f in forms]

    def dense(self, tensor: _There) -> _There:
        """A tensor in this call's layout."""
        if tensor is None:
            return None
        return layout.as_layout(tensor, self.channels_last, tensor.dim() - len(self.inner) + 1)

    def in_memory(self, parameter: Tensor | None) -> Tensor | None:
        """One per neuron in the order in which neurons lie in memory."""
        if parameter is None:
            return None
        if self.channels_last and parameter.numel() not in (0, 1, self.channels()):
            parameter = parameter.unflatten(0, (self.channels(), -1)).transpose(0, 1).flatten()
        return parameter.contiguous()

    def summed(self, sums: Tensor, parameter: Tensor | None) -> Tensor:
        """From a sum per neuron (N, *) to one per element of the parameter, fp64."""
        count = 1 if parameter is None else parameter.numel()
        sums = sums.double()
        if count == 1:
            return sums.sum().reshape(1)
        if count == self.channels():
            return sums.flatten(2).sum((0, 2)) if sums.dim() > 2 else sums.sum(0)
        return sums.sum(0).flatten()


_PLANS: dict[Any, Plan] = {}


def plan_of(x: Tensor, text: str, steps: int) -> Plan:
    """The plan of a call with real tensors."""
    key = (text, steps, x.shape, x.dtype, x.device, None if x.is_contiguous() else x.stride())
    plan = _PLANS.get(key)
    if plan is None:
        if len(_PLANS) >= KEPT:
            _PLANS.clear()
        plan = _PLANS[key] = Plan(x, decoded(text), steps)
    return plan
