"""Modules over the ops. They hold options and parameters, and no state between calls: potentials go in and come out.

An option that is a number stays one. A tensor of 1 or C elements becomes a buffer, an `nn.Parameter` a parameter that
is learnt, for example `LIF(decay=nn.Parameter(torch.full((64,), 0.9)), threshold=1.0)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from . import check
from .ops.bn_lif import bn_lif
from .ops.lif import lif
from .ops.poisson import poisson
from .ops.poisson.op import check_stream
from .surrogate import ATan, Rectangular, StraightThrough, Surrogate

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup  # a torch built without it has none

__all__ = ["BNLIF", "LI", "LIF", "Poisson"]


class _Neuron(nn.Module):
    """Holds the options of an op as attributes, buffers or parameters."""

    def __init__(self, return_v: bool, **options: object) -> None:
        super().__init__()
        self.return_v = return_v
        self._names = tuple(options)
        for name, value in options.items():
            if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
                self.register_buffer(name, value)
            else:
                setattr(self, name, value)

    @property
    def options(self) -> dict[str, object]:
        """The op's arguments, as they are now."""
        return {name: getattr(self, name) for name in self._names}

    def extra_repr(self) -> str:
        shown = {k: f"tensor{tuple(v.shape)}" if isinstance(v, Tensor) else repr(v) for k, v in self.options.items()}
        return ", ".join(f"{name}={value}" for name, value in shown.items())


class LIF(_Neuron):
    """Leaky integrate-and-fire neurons over a whole sequence; `esvae_kernels.lif` explains the options.

    m_t = decay v_{t-1} + (gain x_t + rest), s_t = [m_t >= threshold], v_t = m_t (1 - s_t) + v_reset s_t.

    Equivalent to: `spikes, v = lif(x, v, decay=decay, threshold=threshold, ...)`.

    Shapes: x (T, N, *), or (N, *) with `steps`; v, and with `synapse` i, (N, *) or None; returns spikes (T, N, *), or
    (N, *) with a readout; with `return_v=True` (spikes, v), with `synapse` (spikes, v, i), and with
    `record="membrane"` m (T, N, *) as the last.

    Defaults: gain 1, rest 0, hard reset to 0 with gradient, no synaptic current, no `v_min`, one spike a step, at the
    threshold too, `ATan()`, spikes in x's dtype.
    """

    def __init__(
        self,
        *,
        decay: float | Tensor,
        threshold: float | Tensor,
        gain: float | Tensor = 1.0,
        rest: float | Tensor = 0.0,
        reset: str = "hard",
        v_reset: float | Tensor = 0.0,
        synapse: float | Tensor | None = None,
        v_min: float | None = None,
        detach_reset: bool = False,
        strict: bool = False,
        several: bool = False,
        surrogate: Surrogate = ATan(),  # noqa: B008 - frozen
        readout: str | Tensor | Sequence[float] | None = None,
        record: str | None = None,
        dtype: torch.dtype | None = None,
        return_v: bool = False,
    ) -> None:
        super().__init__(
            return_v,
            decay=decay,
            threshold=threshold,
            gain=gain,
            rest=rest,
            reset=reset,
            v_reset=v_reset,
            synapse=synapse,
            v_min=v_min,
            detach_reset=detach_reset,
            strict=strict,
            several=several,
            surrogate=surrogate,
            readout=readout,
            record=record,
            dtype=dtype,
        )

    def forward(
        self, x: Tensor, v: Tensor | None = None, i: Tensor | None = None, *, steps: int | None = None
    ) -> Tensor | tuple[Tensor, ...]:
        outputs = lif(x, v, i=i, steps=steps, **self.options)  # type: ignore[arg-type]
        return _outputs(outputs, self.return_v, states=1 if self.synapse is None else 2)


class LI(_Neuron):
    """Leaky integrators without spikes: the readout of a spiking network.

    v_t = decay v_{t-1} + (gain x_t + rest), or with a `synapse` of the current c_t = i_{t-1} + x_t, i_t = synapse c_t.

    Equivalent to: `for t in range(T): v = decay * v + (gain * x[t] + rest)`, and of v the last, the mean, a weighted
    sum, or all.

    Shapes: x (T, N, *), or (N, *) with `steps`; v (N, *) or None, and i likewise where there is a `synapse`.
    `readout="last"` (the default) returns v_{T-1} (N, *), "mean" the mean over time (N, *), T weights (a tensor, which
    may be learnt, or a sequence) sum_t c_t v_t (N, *), None all v (T, N, *); in x's dtype, or `dtype`. With
    `return_v=True` that and the last v, fp32 (fp64 for fp64 x), and the last i.

    Defaults: gain 1, rest 0, no synapse.
    """

    def __init__(
        self,
        *,
        decay: float | Tensor,
        gain: float | Tensor = 1.0,
        rest: float | Tensor = 0.0,
        synapse: float | Tensor | None = None,
        readout: str | Tensor | Sequence[float] | None = "last",
        dtype: torch.dtype | None = None,
        return_v: bool = False,
    ) -> None:
        if isinstance(readout, str) and readout not in ("last", "mean"):
            raise ValueError(f"readout: got {readout!r}, accepted are None, 'last', 'mean' or T weights")
        super().__init__(return_v, decay=decay, gain=gain, rest=rest, synapse=synapse, readout=readout, dtype=dtype)

    def forward(
        self, x: Tensor, v: Tensor | None = None, *, i: Tensor | None = None, steps: int | None = None
    ) -> Tensor | tuple[Tensor, ...]:
        options = self.options
        if isinstance(self.readout, str):
            check.floating("x", x, 1, "(T, N, *), or (N, *) when steps= is given")
            time = len(x) if steps is None else check.steps("steps", steps)
            options["readout"] = "rate" if self.readout == "mean" else [0.0] * (time - 1) + [1.0]
        # The "spike" of a smooth StraightThrough is m - threshold, that is the potential itself.
        options |= {"threshold": 0.0, "reset": "none", "surrogate": StraightThrough(smooth=True)}
        outputs = lif(x, v, i=i, steps=steps, **options)  # type: ignore[arg-type]
        return _outputs(outputs, self.return_v, states=1 if self.synapse is None else 2)


class BNLIF(_Neuron):
    """Threshold-dependent batch norm (tdBN; Zheng et al., 2021) and LIF neurons in one; see `esvae_kernels.bn_lif`.

    x_t = weight scale (y_t - mean) / sqrt(var + eps) + bias per channel, with mean and biased variance over T, N and
    space (in evaluation the running ones; the running variance is the unbiased one); then the LIF on x. The normalised
    current is never stored.

    Equivalent to: `lif(batch_norm(y, running_mean, running_var, scale * weight, bias, ...), ...)`.

    Shapes: y (T, N, C, *), or (N, C, *) with `steps`, the same at every time step; otherwise as in `LIF`.

    Defaults: `scale` is the threshold if that is a number, else 1; eps 1e-5, momentum 0.1; weight 1, bias 0.
    """

    def __init__(
        self,
        channels: int,
        *,
        decay: float | Tensor,
        threshold: float | Tensor,
        scale: float | None = None,
        eps: float = 1e-5,
        momentum: float = 0.1,
        reset: str = "hard",
        v_reset: float | Tensor = 0.0,
        detach_reset: bool = False,
        strict: bool = False,
        surrogate: Surrogate = ATan(),  # noqa: B008 - frozen
        readout: str | Tensor | Sequence[float] | None = None,
        record: str | None = None,
        dtype: torch.dtype | None = None,
        process_group: ProcessGroup | None = None,
        return_v: bool = False,
    ) -> None:
        if scale is None:
            scale = 1.0 if isinstance(threshold, Tensor) else threshold
        super().__init__(
            return_v,
            scale=scale,
            eps=eps,
            momentum=momentum,
            decay=decay,
            threshold=threshold,
            reset=reset,
            v_reset=v_reset,
            detach_reset=detach_reset,
            strict=strict,
            surrogate=surrogate,
            readout=readout,
            record=record,
            dtype=dtype,
            process_group=process_group,
        )
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(
        self,
        y: Tensor,
        v: Tensor | None = None,
        *,
        steps: int | None = None,
        readout: str | Tensor | Sequence[float] | None = None,
    ) -> Tensor | tuple[Tensor, ...]:
        """`readout`, where given, takes the place of the module's for this call."""
        options = self.options if readout is None else self.options | {"readout": readout}
        state = (self.weight, self.bias, self.running_mean, self.running_var)
        outputs = bn_lif(y, *state, training=self.training, v=v, steps=steps, **options)  # type: ignore[arg-type]
        return _outputs(outputs, self.return_v)

    def extra_repr(self) -> str:
        return f"{len(self.weight)}, {super().extra_repr()}"


class Poisson(nn.Module):
    """Spikes at given rates over `steps` time steps; see `esvae_kernels.poisson`. Also a rate encoder of images.

    Equivalent to: `(torch.rand(steps, *rate.shape) < rate)`, differentiable in the rate.

    Shapes: rate (N, *) in [0, 1]; returns spikes (steps, N, *) in `dtype` (default: the rates' own).

    Args:
        stream: of the noise; where several layers are given one seed, each takes a stream of its own.
    """

    def __init__(
        self,
        steps: int,
        *,
        surrogate: Surrogate = Rectangular(0.5),  # noqa: B008 - frozen
        stream: int = 0,
        dtype: torch.dtype | None = None,
        check_rates: bool = False,
    ) -> None:
        super().__init__()
        self.steps, self.surrogate, self.stream = steps, surrogate, check_stream(stream)
        self.dtype, self.check_rates = dtype, check_rates

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
            stream=self.stream,
            dtype=self.dtype,
            check_rates=self.check_rates,
        )

    def extra_repr(self) -> str:
        stream = f", stream={self.stream}" if self.stream else ""
        dtype = "" if self.dtype is None else f", dtype={self.dtype}"
        return f"steps={self.steps}, surrogate={self.surrogate!r}{stream}{dtype}"


def _outputs(outputs: tuple[Tensor, ...], return_v: bool, states: int = 1) -> Tensor | tuple[Tensor, ...]:
    """What `lif` returned, without v and i if they are not asked for."""
    kept = outputs if return_v else (outputs[0], *outputs[1 + states :])
    return kept if len(kept) > 1 else kept[0]
