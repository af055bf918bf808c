"""What a spike does to the membrane potential: `Hard`, `Soft`, `Delayed`, or None for no reset at all.

With m = decay v + (gain x + bias) and the spike s, a step ends so:

| reset                   | potential after the step             | known from                     |
|-------------------------|--------------------------------------|--------------------------------|
| Hard(v_reset)           | v = m (1 - s) + v_reset s            | SpikingJelly, Norse, the paper |
| Soft()                  | v = m - threshold s                  | SpikingJelly, sinabs           |
| Delayed()               | v = m; the next m is threshold lower | snnTorch                       |
| Delayed(corrected=True) | v = m - threshold (s - earlier s)    | snnTorch, reset_delay=False    |
| None                    | v = m                                | leaky integrators              |
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .surrogate.reference import real


class Reset:
    """Base class. `detach`: no gradient flows through the spike in the reset."""

    detach: bool

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name != "v_reset" and not isinstance(value, bool):
                raise ValueError(f"{type(self).__name__}({name}): got {value!r}, accepted is True or False")


@dataclass(frozen=True)
class Hard(Reset):
    """To `v_reset`: a finite number or, as the other parameters of a neuron, a tensor, which may be learnt."""

    v_reset: float | Tensor = 0.0
    detach: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.v_reset, Tensor) and not abs(real(self.v_reset)) <= torch.finfo(torch.float64).max:
            got = " ".join(repr(self.v_reset).split())[:80]
            raise ValueError(f"Hard(v_reset): got {got}, accepted are a finite number and a tensor")


@dataclass(frozen=True)
class Soft(Reset):
    """The threshold is subtracted."""

    detach: bool = False


@dataclass(frozen=True)
class Delayed(Reset):
    """The threshold is subtracted one step later, and the decay takes nothing of it.

    `corrected`: in the same step, and what the later subtraction of the step before was is added again; through that
    one no gradient flows.
    """

    detach: bool = False
    corrected: bool = False


def by_name(name: str, v_reset: float | Tensor = 0.0, detach: bool = False) -> Reset | None:
    """The reset that the kernels call "hard", "soft", "none", "delayed" or "at_once"."""
    if name == "hard":
        return Hard(v_reset, detach)
    if name == "soft":
        return Soft(detach)
    return None if name == "none" else Delayed(detach, corrected=name == "at_once")


def name_of(reset: Reset | None) -> str:
    """The kernels' name of it (`ops.lif.reference.RESETS`)."""
    if isinstance(reset, Delayed):
        return "at_once" if reset.corrected else "delayed"
    return {Hard: "hard", Soft: "soft", type(None): "none"}[type(reset)]
