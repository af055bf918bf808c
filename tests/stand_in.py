"""A part of the CPU in the place of a GPU: finds tensors that a test makes on the wrong device where there is no GPU.

`pytest --device cpu:0` names the CPU differently: to torch `cpu:0` is the CPU, but `cpu:0 != cpu`. Under `StandIn`
every tensor is known to have been made here or there; `.device` tells, mixing both raises, and so does what needs a
copy to the host first. What cannot be known (made by C++ or in a transform of `torch.func`) is let through.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils._pytree import tree_leaves

HOST = torch.device("cpu")
_ON_HOST_ONLY = ("Tensor.numpy", "Tensor.__array__")
_ACROSS = ("Tensor.copy_", "Tensor.__getitem__", "Tensor.__setitem__", "Tensor.type_as")  # torch allows it


class StandIn(TorchFunctionMode):
    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device

    def __torch_function__(
        self, function: Callable, types: Iterable[type], args: tuple = (), kwargs: dict | None = None
    ) -> object:
        kwargs = kwargs or {}
        name = (resolve_name(function) or "").removeprefix("torch.")
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        if function == Tensor.device.__get__:  # type: ignore[attr-defined]
            real = function(*args)
            return real if real.type != "cpu" or home(args[0]) == HOST else self.device
        result = function(*args, **kwargs)
        asked = self._asked(name, args, kwargs, bool(given))
        if asked is None:
            asked = self._common(name, given)
        elif isinstance(result, Tensor) and any(result is t for t in given) and home(result) not in (None, asked):
            result = result.clone()  # there, it would have been a copy
        if asked is not None:
            for tensor in tree_leaves(result):
                if isinstance(tensor, Tensor):
                    tensor._home = asked
        return result

    def _asked(self, name: str, args: tuple, kwargs: dict, is_given: bool) -> torch.device | None:
        """The device that the call names, or is the default of one that makes a tensor from nothing."""
        if name == "Tensor.cpu":
            return HOST
        device = kwargs.get("device")
        if name == "Tensor.to":
            device = next((a for a in (*args[1:], device) if isinstance(a, str | torch.device)), None)
        if name == "from_numpy":
            device = HOST
        if device is None and not is_given:
            device = torch.get_default_device()
        if kwargs.get("generator") is not None and device is not None and torch.device(device) == self.device:
            raise RuntimeError(f"{name}: a generator of the CPU for a tensor on {self.device}")
        return None if device is None else torch.device(device)

    def _common(self, name: str, given: list[Tensor]) -> torch.device | None:
        homes = {home(t) for t in given} - {None}
        if self.device in homes:
            if name in _ON_HOST_ONLY:
                raise TypeError(f"{name}: of a tensor on {self.device}")
            if name not in _ACROSS and any(home(t) == HOST and t.dim() for t in given):
                raise RuntimeError(f"{name}: tensors on both {self.device} and {HOST}")
            return self.device
        return homes.pop() if len(homes) == 1 else None


def home(tensor: Tensor) -> torch.device | None:
    return getattr(tensor, "_home", None)
