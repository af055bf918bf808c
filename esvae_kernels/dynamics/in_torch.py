"""The operations of a graph in PyTorch: the specification of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..surrogate import Surrogate
from ..surrogate.reference import spike

_SAME_NAME = (
    *("abs", "sign", "floor", "trunc", "sqrt", "minimum", "maximum", "exp", "log", "tanh", "sigmoid", "atan", "erf"),
    *("sin", "cos", "lt", "le", "eq", "ne", "sub", "mul", "div", "neg", "add", "where"),
)


def operations(surrogate: Surrogate) -> Mapping[str, Callable[..., Any]]:
    """By their names in `graph.OPS`. Literals have to be tensors of the state's type: on a GPU torch divides by a
    number through its reciprocal."""

    def spiked(above: bool) -> Callable[..., Tensor]:
        def run(m: Tensor, threshold: Tensor, value: Tensor | None = None) -> Tensor:
            fired = m > threshold if above else m >= threshold
            return spike(m - (threshold + surrogate.shift), fired if value is None else value.detach(), surrogate)

        return run

    return {name: getattr(torch, name) for name in _SAME_NAME} | {
        "and": torch.logical_and,
        "or": torch.logical_or,
        "not": torch.logical_not,
        "detach": torch.detach,
        "spike": spiked(False),
        "spike_above": spiked(True),
        "slope": lambda m, threshold: surrogate.derivative(m - (threshold + surrogate.shift)),
    }
