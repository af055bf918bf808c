"""Modules over the ops. They hold options, and no state between calls: potentials go in and come out."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .ops.lif import lif
from .ops.poisson import poisson
from .surrogate import ATan, Rectangular, Surrogate

__all__ = ["LIF", "Poisson"]


class LIF(nn.Module):
    """Leaky integrate-and-fire neurons over a whole sequence; see `esvae_kernels.lif` for the options.

    Equivalent to: `spikes, v = lif(x, v, decay=decay, threshold=threshold, ...)`.

    Shapes: x (T, N, *), or (N, *) with `steps`; v (N, *) or None; returns spikes (T, N, *), or (N, *) with a readout,
    and with `return_v=True` the pair (spikes, v).
    """

    def __init__(
        self,
        *,
        decay: float,
        threshold: float,
        gain: float = 1.0,
        rest: float = 0.0,
        reset: str = "hard",
        v_reset: float = 0.0,
        detach_reset: bool = False,
        strict: bool = False,
        surrogate: Surrogate = ATan(),  # noqa: B008 - frozen
        readout: str | None = None,
        return_v: bool = False,
    ) -> None:
        super().__init__()
        self.options = {
            "decay": decay,
            "threshold": threshold,
            "gain": gain,
            "rest": rest,
            "reset": reset,
            "v_reset": v_reset,
            "detach_reset": detach_reset,
            "strict": strict,
            "surrogate": surrogate,
            "readout": readout,
        }
        self.return_v = return_v

    def forward(
        self, x: Tensor, v: Tensor | None = None, *, steps: int | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        spikes, v = lif(x, v, steps=steps, **self.options)  # type: ignore[arg-type]
        return (spikes, v) if self.return_v else spikes

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.options.items())


class Poisson(nn.Module):
    """Spikes at given rates over `steps` time steps; see `esvae_kernels.poisson`. Also a rate encoder of images.

    Equivalent to: `(torch.rand(steps, *rate.shape) < rate)`, differentiable in the rate.

    Shapes: rate (N, *) in [0, 1]; returns spikes (steps, N, *).
    """

    def __init__(
        self,
        steps: int,
        *,
        surrogate: Surrogate = Rectangular(0.5),  # noqa: B008 - frozen
        check_rates: bool = False,
    ) -> None:
        super().__init__()
        self.steps, self.surrogate, self.check_rates = steps, surrogate, check_rates

    def forward(
        self,
        rate: Tensor,
        *,
        sample_ids: Tensor | None = None,
        generator: torch.Generator | None = None,
        seed: int | Tensor | None = None,
    ) -> Tensor:
        return poisson(
            rate,
            self.steps,
            sample_ids=sample_ids,
            surrogate=self.surrogate,
            generator=generator,
            seed=seed,
            check_rates=self.check_rates,
        )

    def extra_repr(self) -> str:
        return f"steps={self.steps}, surrogate={self.surrogate!r}"
