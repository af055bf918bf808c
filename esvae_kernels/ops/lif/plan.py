"""What a call of the raw ops needs to know beside its tensors' addresses: it is kept from call to call."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor

from ... import layout
from ...library import require
from ...native import DTYPES
from .reference import CHUNK, PARAMETERS, READOUTS, Neuron, Wanted, decoded, state_dtype

_There = TypeVar("_There", Tensor, Tensor | None)
_Form: TypeAlias = tuple[tuple[int, ...], tuple[int, ...], torch.dtype]  # shape, strides, dtype of what is to be made


class Plan:
    """Shapes and layout of one call's tensors, from x alone: the fake and the real op must agree on them."""

    def __init__(self, x: Tensor, p: Neuron) -> None:
        self.p, self.shape, self.x_dtype, self.device = p, tuple(x.shape), x.dtype, x.device
        self.channel = 1 if p.constant else 2
        require(len(self.shape) >= self.channel and x.dtype in DTYPES, lambda: f"x: got shape {self.shape}, {x.dtype}")
        self.channels_last = layout.is_channels_last(x, self.channel)
        self.inner = self.shape if p.constant else self.shape[1:]
        self.state_dtype = state_dtype(x.dtype)
        right = p.steps >= 1 and (p.constant or self.shape[0] == p.steps)
        require(right, lambda: f"steps: got {p.steps} for x {self.shape}")
        self._forms: dict[Any, tuple[_Form | None, ...]] = {}
        self.kept: dict[Any, Any] = {}  # what a backend makes of it once

    def check(self, v: Tensor | None, i: Tensor | None, parameters: Tensor | None, weights: Tensor | None) -> None:
        """What the kernels take for granted: they have addresses alone."""
        if v is not None:
            self.require("v", v, self.inner, self.state_dtype)
        if i is not None:
            self.require("i", i, self.inner, self.state_dtype)
        if parameters is not None:
            rows, columns = parameters.shape if parameters.dim() == 2 else (0, 0)
            accepted = columns == 1 or columns == self.channels() or columns == math.prod(self.inner[1:])
            require(
                rows in (2, len(PARAMETERS)) and accepted,
                lambda: f"parameters: got shape {tuple(parameters.shape)} for x {self.shape}",
            )
            self.require("parameters", parameters, parameters.shape, self.state_dtype)
        if (READOUTS[self.p.readout] == "weights") is not (weights is not None):
            require(False, lambda: "weights: got them or none, against the neuron's readout")
        if weights is not None:
            self.require("weights", weights, (self.p.steps,), torch.float64)

    def check_rows(self, rows: int) -> None:
        if type(rows) is int and rows == 0:
            return
        least = (self.p.steps - 1) // CHUNK
        require(rows >= least, lambda: f"saved_rows: got {rows}, accepted are 0 and {least}")

    def check_saved(self, saved: Tensor | None) -> None:
        least = (self.p.steps - 1) // CHUNK * (2 if self.p.synaptic else 1)
        if saved is None:
            require(least == 0, lambda: f"saved: got none, accepted are {least} rows")
            return
        require(
            saved.shape[1:] == self.inner and saved.shape[0] >= least and saved.dtype == self.state_dtype,
            lambda: f"saved: got shape {tuple(saved.shape)}, {saved.dtype}, accepted are {least} rows",
        )

    def check_cotangents(
        self, dout: Tensor | None, dv: Tensor | None, di: Tensor | None, dmembrane: Tensor | None
    ) -> None:
        p, state = self.p, self.state_dtype
        if dout is not None:
            self.require("dout", dout, self._every_step() if READOUTS[p.readout] is None else self.inner, p.dtype)
        if dmembrane is not None:
            self.require("dmembrane", dmembrane, self._every_step(), state)
        if dv is not None:
            self.require("dv", dv, self.inner, state)
        if di is not None:
            self.require("di", di, self.inner, state)

    def require(self, name: str, tensor: Tensor, shape: Sequence[int], dtype: torch.dtype) -> None:
        require(
            tensor.shape == shape and tensor.dtype == dtype and tensor.device == self.device,
            lambda: (
                f"{name}: got shape {tuple(tensor.shape)}, {tensor.dtype}, on {tensor.device}, accepted is"
                f" {tuple(shape)}, {dtype}, on {self.device}"
            ),
        )

    def channels(self) -> int:
        return self.inner[1] if len(self.inner) > 1 else 1

    def size(self) -> int:
        return math.prod(self.inner)

    def outputs(self, saved_rows: int, every: bool) -> tuple[Tensor | None, ...]:
        """out, the last v, the last i, the membrane potentials, and the v, then with a synapse the i, that the backward
        starts from. What is not there is None, or with `every` of no elements."""
        if type(saved_rows) is not int:  # a symbol, which has no hash
            return self._made(self._output_forms(saved_rows, every))
        forms = self._forms.get((saved_rows, every))
        if forms is None:
            forms = self._forms[saved_rows, every] = self._output_forms(saved_rows, every)
        return self._made(forms)

    def gradients(self, wanted: Wanted, every: bool) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Of x, v and i, likewise."""
        forms = self._forms.get((wanted, every))
        if forms is None:
            forms = self._forms[wanted, every] = self._gradient_forms(wanted, every)
        return self._made(forms)  # type: ignore[return-value]

    def _output_forms(self, saved_rows: int, every: bool) -> tuple[_Form | None, ...]:
        p, state = self.p, self.state_dtype
        return (
            self._form((p.steps,) if READOUTS[p.readout] is None else (), p.dtype),
            self._form((), state),
            self._state_form(p.synaptic, every),
            self._form((p.steps if p.record else 0,), state) if p.record or every else None,
            self._form((saved_rows * (2 if p.synaptic else 1),), state) if saved_rows or every else None,
        )

    def _gradient_forms(self, wanted: Wanted, every: bool) -> tuple[_Form | None, ...]:
        dx: _Form | None = ((0,), (1,), self.x_dtype) if every else None
        if wanted.x:
            dx = self._form(() if self.p.constant else self.shape[:1], self.x_dtype)
        return dx, self._state_form(wanted.v, every), self._state_form(wanted.i, every)

    def _state_form(self, there: bool, every: bool) -> _Form | None:
        if there:
            return self._form((), self.state_dtype)
        return ((0,), (1,), self.state_dtype) if every else None

    def _form(self, leading: tuple[int, ...], dtype: torch.dtype) -> _Form:
        shape = (*leading, *self.inner)
        return shape, layout.strides(shape, self.channels_last, len(leading) + 1), dtype

    def _made(self, forms: tuple[_Form | None, ...]) -> tuple[Tensor | None, ...]:
        empty, device = torch.empty_strided, self.device
        return tuple([None if f is None else empty(f[0], f[1], dtype=f[2], device=device) for f in forms])

    def _every_step(self) -> tuple[int, ...]:
        return (self.p.steps, *self.inner)

    def dense(self, tensor: _There) -> _There:
        """A state, output or input in this call's layout."""
        if tensor is None:
            return None
        return layout.as_layout(tensor, self.channels_last, tensor.dim() - len(self.inner) + 1)

    def in_memory(self, parameters: Tensor | None) -> Tensor | None:
        """Those of one per neuron in the order in which neurons lie in memory."""
        if parameters is None:
            return None
        if self._per_neuron(parameters):
            parameters = parameters.unflatten(1, (self.channels(), -1)).transpose(1, 2).flatten(1)
        return parameters.contiguous()

    def in_order(self, parameters: Tensor) -> Tensor:
        """`in_memory` undone."""
        if self._per_neuron(parameters):
            parameters = parameters.unflatten(1, (-1, self.channels())).transpose(1, 2).flatten(1)
        return parameters

    def _per_neuron(self, parameters: Tensor) -> bool:
        return self.channels_last and parameters.shape[1] not in (0, 1, self.channels())


def neuron_of(text: str, steps: int, shape: Tensor | None) -> Neuron:
    """What a raw op's arguments stand for. The fake gives no `shape`, and may have a symbol for the steps."""
    p = decoded(text, steps) if type(steps) is int else Neuron.from_text(text)._replace(steps=steps)
    return with_shape(p, shape)


def with_shape(p: Neuron, shape: Tensor | None) -> Neuron:
    """The neuron with the surrogate's shape parameter, where that is a tensor."""
    if shape is None:
        return p
    value = float(shape)
    if not 0 < value < math.inf:
        raise ValueError(f"surrogate: got {value} in the tensor of its shape parameter, accepted is a number above 0")
    return p._replace(shape=value)


KEPT = 4096  # calls of different shapes and options, at most
_PLANS: dict[Any, Plan] = {}


def plan_of(x: Tensor, text: str, steps: int, shape: Tensor | None) -> Plan:
    """The plan of a call of a raw op with real tensors. To make one takes 6 us, to find it 1."""
    if shape is not None:
        return Plan(x, neuron_of(text, steps, shape))
    key = (text, steps, x.shape, x.dtype, x.device, None if x.is_contiguous() else x.stride())
    plan = _PLANS.get(key)
    if plan is None:
        plan = Plan(x, neuron_of(text, steps, None))
        if len(_PLANS) >= KEPT:
            _PLANS.clear()
        _PLANS[key] = plan
    return plan
