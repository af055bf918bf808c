"""A CUDA graph on the CPU, for tests: records a function's operations on tensors, and does the very same again.

As with a graph, Python does not run again: a number that is not a tensor stays what it was, and a tensor that was made
anew for the recording (instead of changed in place) is the old one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from esvae import arguments

WAITS = ("aten::_local_scalar_dense", "aten::is_nonzero", "aten::equal", "aten::nonzero", "aten::item")


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func._schema.name in WAITS:
            raise RuntimeError(f"{func._schema.name} waits for the device: not allowed in a graph")
        result = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, result))
        return result


class Recording:
    """`function(*inputs)`, run once and recorded; `replay()` runs it again, into the same results."""

    def __init__(self, function: Callable[..., Any], *inputs: Tensor) -> None:
        with pytest.MonkeyPatch.context() as patch, _Recorder() as recorder:
            patch.setattr(arguments, "_may_look", lambda value: False)  # as with tensors on a GPU
            self.results = function(*inputs)
        self.calls = recorder.calls

    def replay(self) -> Any:
        with torch.no_grad():
            for func, args, kwargs, result in self.calls:
                again = func(*args, **kwargs)
                for old, new in zip(_tensors(result), _tensors(again), strict=True):
                    # A view, or a tensor that was changed in place, is the new one already.
                    if new.data_ptr() != old.data_ptr():
                        old.copy_(new)
        return self.results


def _tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]
