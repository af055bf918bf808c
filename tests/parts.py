"""`lif` and `bn_lif` with reset and fire in their parts, as the kernels have them, so that tests can vary each by
itself: `reset` "hard", "soft", "none", "delayed" or "at_once", `v_reset`, `detach_reset`, `strict` and `several`."""

from __future__ import annotations

from torch import Tensor

import esvae_kernels
from esvae_kernels.reset import by_name


def whole(
    *,
    reset: str = "hard",
    v_reset: float | Tensor = 0.0,
    detach_reset: bool = False,
    strict: bool = False,
    several: bool = False,
    **options,
) -> dict:
    """The public keywords."""
    fire = "multi_spike" if several else ">" if strict else ">="
    return options | {"reset": by_name(reset, v_reset, detach_reset), "fire": fire}


def lif(x: Tensor, v: Tensor | None = None, **options) -> tuple[Tensor, ...]:
    return esvae_kernels.lif(x, v, **whole(**options))


def bn_lif(y: Tensor, *tensors: Tensor, **options) -> tuple[Tensor, ...]:
    return esvae_kernels.bn_lif(y, *tensors, **whole(**options))


def LIF(**options) -> esvae_kernels.nn.LIF:
    return esvae_kernels.nn.LIF(**whole(**options))


def BNLIF(channels: int, **options) -> esvae_kernels.nn.BNLIF:
    return esvae_kernels.nn.BNLIF(channels, **whole(**options))
