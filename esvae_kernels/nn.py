"""Modules over the ops.

An option that is a number stays one. A tensor of 1 or C elements, or of one per neuron, becomes a buffer, an
`nn.Parameter` a parameter that is learnt, for example `LIF(decay=nn.Parameter(torch.full((64,), 0.9)), threshold=1.0)`.
Options are checked when a module is made. As in torch's modules, `device` and `dtype` are those of its parameters and
buffers; spikes have the input's dtype, or `out_dtype`.

Each returns its spikes alone, so that it fits into `nn.Sequential`, and keeps nothing between calls, unless told:

- `return_state=True` returns the membrane potential (and synaptic current) after the last step too;
- `stateful=True` goes on where the last call ended, until `reset()`; for input that comes in pieces;
- `single_step=True` takes and returns one time step, (N, *) in the place of (T, N, *).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Never

import torch
from torch import Tensor, nn

from . import check
from .ops.bn_lif import bn_lif
from .ops.lif import lif
from .ops.lif.op import NAMES, RENAMED, Fire, Number, Readout, describe
from .ops.lif.reference import state_dtype
from .ops.poisson import poisson
from .ops.poisson.op import check_stream
from .reset import Hard, Reset
from .surrogate import ATan, Rectangular, StraightThrough, Surrogate

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup  # a torch built without it has none

__all__ = ["BNLIF", "LI", "LIF", "Poisson", "reset"]

_RENAMED = RENAMED | {"return_v": "return_state="}
_RESET = Hard()
_SURROGATE = ATan()


class _Neuron(nn.Module):
    """Holds the options of an op as attributes, buffers or parameters, and where it is stateful its state."""

    def __init__(
        self,
        options: dict[str, Any],
        renamed: Mapping[str, object],
        *,
        return_state: bool,
        stateful: bool,
        single_step: bool,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        if renamed:
            check.renamed(type(self).__name__, renamed, _RENAMED)
        if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            raise TypeError(f"dtype: got {dtype!r}, accepted is that of parameters; that of spikes is out_dtype")
        self.return_state, self.stateful, self.single_step = return_state, stateful, single_step
        self._state: tuple[Tensor | None, ...] = (None, None)
        if "reset" in options:  # its potential apart, since it may be learnt, and since reset() is a method
            reset = options.pop("reset")
            options["v_reset"] = reset.v_reset if isinstance(reset, Hard) else 0.0
            self.reset_rule = Hard(detach=reset.detach) if isinstance(options["v_reset"], Tensor) else reset
        self._names = tuple(options)
        for name, value in options.items():
            self._hold(name, value, device, dtype)
        self._check()

    def _hold(self, name: str, value: object, device: torch.device | str | None, dtype: torch.dtype | None) -> None:
        if isinstance(value, Tensor):
            check.floating(NAMES.get(name, name), value, 0, "of floating point")
        if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
            if value.requires_grad:
                raise ValueError(
                    f"{NAMES.get(name, name)}: got a tensor that needs a gradient, accepted are an nn.Parameter, which"
                    " is learnt, and a tensor without, which is not"
                )
            self.register_buffer(name, value.to(device, dtype, copy=True))
        elif isinstance(value, nn.Parameter) and (device is not None or dtype is not None):
            setattr(self, name, nn.Parameter(value.detach().to(device, dtype), value.requires_grad))
        else:
            setattr(self, name, value)

    def _check(self) -> None:
        """What of the options can be checked without an input."""
        options: dict[str, Any] = {k: 1.0 if isinstance(value, Tensor) else value for k, value in self.options.items()}
        reset = options.get("reset", Hard())
        v_reset = reset.v_reset if isinstance(reset, Hard) and not isinstance(reset.v_reset, Tensor) else 0.0
        readout = options.get("readout")
        if isinstance(readout, str) and readout != "mean":
            raise ValueError(f"readout: got {readout!r}, accepted are None, 'mean' and T weights")
        describe(
            torch.float64,
            1,
            False,
            options["decay"],
            options.get("gain", 1.0),
            options.get("bias", 0.0),
            options.get("threshold", 1.0),
            v_reset,
            options.get("synaptic_decay"),
            reset,
            options.get("surrogate", _SURROGATE),
            "weights" if readout not in (None, "mean") else readout,
            options.get("record"),
            options.get("dtype"),
            options.get("fire", ">="),
            options.get("v_min"),
        )

    @property
    def options(self) -> dict[str, Any]:
        """The op's arguments, as they are now."""
        found = {name: getattr(self, name) for name in self._names}
        if "v_reset" in found:
            v_reset, rule = found.pop("v_reset"), self.reset_rule
            same = not isinstance(rule, Hard) or rule.v_reset is v_reset  # to make one takes 3 us
            found["reset"] = rule if same else Hard(v_reset, rule.detach)
        if "out_dtype" in found:
            found["dtype"] = found.pop("out_dtype")
        return found

    def reset(self) -> None:
        """Forgets the state: the next call starts at 0."""
        self._state = (None, None)

    def detach_state(self) -> None:
        """No gradient flows to what was before: for truncated backpropagation through time."""
        self._state = tuple(None if state is None else state.detach() for state in self._state)

    def _run(
        self, op: Callable[..., tuple[Tensor, ...]], x: Tensor, states: tuple[Tensor | None, ...], **options: Any
    ) -> Tensor | tuple[Tensor, ...]:
        """What `forward` returns. `op(x, v, i, steps=..., ...)` -> (spikes, v, i where there is a synaptic current, m
        where it is recorded)."""
        steps = options.get("steps")
        if self.single_step:
            if steps is not None:
                raise ValueError(f"steps: got {steps}, accepted is None with single_step=True")
            steps = options["steps"] = 1
        if self.stateful and states == (None, None):
            states = self._kept(x if steps is not None else x[0])
        outputs = op(x, *states, **options)
        count = 1 if options.get("synaptic_decay") is None else 2
        if self.stateful:
            self._state = (*outputs[1 : 1 + count], *(None,) * (2 - count))
        if self.single_step:
            timed = options.get("readout") is None
            outputs = (
                outputs[0][0] if timed else outputs[0],
                *outputs[1 : 1 + count],
                *(m[0] for m in outputs[1 + count :]),
            )
        kept = outputs if self.return_state else (outputs[0], *outputs[1 + count :])
        return kept if len(kept) > 1 else kept[0]

    def _kept(self, inner: Tensor) -> tuple[Tensor | None, ...]:
        for state in self._state:
            if state is not None and state.shape != inner.shape:
                raise ValueError(
                    f"x: got {tuple(inner.shape)} neurons, accepted are the {tuple(state.shape)} of the call before, or"
                    " reset() between the two"
                )
        dtype = state_dtype(inner.dtype)  # another where inputs have become fp64
        return tuple(None if state is None else state.to(dtype) for state in self._state)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._state = tuple(None if state is None else fn(state).to(state.dtype) for state in self._state)
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        for old, new in (("rest", "bias"), ("synapse", "synaptic_decay")):  # names of version 0.1
            if prefix + old in state_dict and new in self._names:
                state_dict[prefix + new] = state_dict.pop(prefix + old)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def extra_repr(self) -> str:
        def shown(value: object) -> str:
            return f"tensor{tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)

        options = self.options
        if isinstance(reset := options.get("reset"), Hard) and isinstance(reset.v_reset, Tensor):
            options |= {"reset": f"Hard({shown(reset.v_reset)}, detach={reset.detach})"}
        words = [f"{k}={v if k == 'reset' else shown(v)}" for k, v in options.items()]
        words += [f"{k}=True" for k in ("return_state", "stateful", "single_step") if getattr(self, k)]
        return ", ".join(words)


class LIF(_Neuron):
    """Leaky integrate-and-fire neurons over a whole sequence; `esvae_kernels.lif` explains the options.

    m_t = decay v_{t-1} + (gain x_t + bias), s_t = [m_t >= threshold], v_t = m_t (1 - s_t) + v_reset s_t.

    Equivalent to: `spikes, v = lif(x, v, decay=decay, threshold=threshold, ...)`.

    Shapes: x (T, N, *), or (N, *) with `steps` or `single_step`; v, and with `synaptic_decay` i, (N, *) or None;
    returns spikes (T, N, *), or (N, *) with a readout or `single_step`; with `return_state=True` (spikes, v), with
    `synaptic_decay` (spikes, v, i), and with `record="membrane"` m (T, N, *) as the last.

    Defaults: gain 1, bias 0, hard reset to 0 with gradient, no synaptic current, no `v_min`, one spike a step, at the
    threshold too, `ATan()`, spikes in x's dtype.
    """

    def __init__(
        self,
        *,
        decay: Number,
        threshold: Number,
        gain: Number = 1.0,
        bias: Number = 0.0,
        synaptic_decay: Number | None = None,
        reset: Reset | None = _RESET,
        surrogate: Surrogate = _SURROGATE,
        readout: Readout = None,
        record: Literal["membrane"] | None = None,
        out_dtype: torch.dtype | None = None,
        fire: Fire = ">=",
        v_min: float | None = None,
        return_state: bool = False,
        stateful: bool = False,
        single_step: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **renamed: Never,
    ) -> None:
        options: dict[str, Any] = {
            "decay": decay,
            "threshold": threshold,
            "gain": gain,
            "bias": bias,
            "synaptic_decay": synaptic_decay,
            "reset": reset,
            "surrogate": surrogate,
            "readout": readout,
            "record": record,
            "out_dtype": out_dtype,
            "fire": fire,
            "v_min": v_min,
        }
        super().__init__(
            options,
            renamed,
            return_state=return_state,
            stateful=stateful,
            single_step=single_step,
            device=device,
            dtype=dtype,
        )

    def forward(
        self, x: Tensor, v: Tensor | None = None, i: Tensor | None = None, *, steps: int | None = None
    ) -> Tensor | tuple[Tensor, ...]:
        return self._run(lif, x, (v, i), steps=steps, **self.options)


class LI(_Neuron):
    """Leaky integrators without spikes: the readout of a spiking network.

    v_t = decay v_{t-1} + (gain x_t + bias), or with `synaptic_decay` of the current c_t = i_{t-1} + x_t,
    i_t = synaptic_decay c_t.

    Equivalent to: `for t in range(T): v = decay * v + (gain * x[t] + bias)`, and of v the last, the mean, a weighted
    sum, or all.

    Shapes: x (T, N, *), or (N, *) with `steps` or `single_step`; v (N, *) or None, and i likewise where there is a
    `synaptic_decay`. `readout="last"` (the default) returns v_{T-1} (N, *), "mean" the mean over time (N, *), T weights
    (a tensor, which may be learnt, or a sequence) sum_t c_t v_t (N, *), None all v (T, N, *), of a single step (N, *);
    in x's dtype, or `out_dtype`. With `return_state=True` that and the last v, fp32 (fp64 for fp64 x), and the last i.

    Defaults: gain 1, bias 0, no synaptic current.
    """

    def __init__(
        self,
        *,
        decay: Number,
        gain: Number = 1.0,
        bias: Number = 0.0,
        synaptic_decay: Number | None = None,
        readout: Literal["last", "mean"] | Tensor | Sequence[float] | None = "last",
        out_dtype: torch.dtype | None = None,
        return_state: bool = False,
        stateful: bool = False,
        single_step: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **renamed: Never,
    ) -> None:
        if isinstance(readout, str) and readout not in ("last", "mean"):
            raise ValueError(f"readout: got {readout!r}, accepted are None, 'last', 'mean' or T weights")
        self.last = isinstance(readout, str) and readout == "last"
        options: dict[str, Any] = {
            "decay": decay,
            "gain": gain,
            "bias": bias,
            "synaptic_decay": synaptic_decay,
            "readout": "mean" if self.last else readout,
            "out_dtype": out_dtype,
        }
        super().__init__(
            options,
            renamed,
            return_state=return_state,
            stateful=stateful,
            single_step=single_step,
            device=device,
            dtype=dtype,
        )

    def forward(
        self, x: Tensor, v: Tensor | None = None, i: Tensor | None = None, *, steps: int | None = None
    ) -> Tensor | tuple[Tensor, ...]:
        return self._run(self._integrate, x, (v, i), steps=steps, **self.options)

    def _integrate(self, x: Tensor, v: Tensor | None, i: Tensor | None, **options: Any) -> tuple[Tensor, ...]:
        # The "spike" of a StraightThrough that does not spike is m - threshold, that is the potential itself.
        outputs: tuple[Tensor, ...] = lif(x, v, i, threshold=0.0, reset=None, surrogate=_INTEGRATED, **options)
        if not self.last:
            return outputs
        return outputs[1].to(options["dtype"] or x.dtype), *outputs[1:]


_INTEGRATED = StraightThrough(spiking=False)


class BNLIF(_Neuron):
    """Threshold-dependent batch norm (tdBN; Zheng et al., 2021) and LIF neurons in one; see `esvae_kernels.bn_lif`.

    x_t = weight scale (y_t - mean) / sqrt(var + eps) + bias per channel, with mean and biased variance over T, N and
    space (in evaluation the running ones; the running variance is the unbiased one); then the LIF on x. The normalised
    current is never stored.

    Equivalent to: `lif(batch_norm(y, running_mean, running_var, scale * weight, bias, ...), ...)`.

    Shapes: y (T, N, C, *), or (N, C, *) with `steps`, the same at every time step, or with `single_step`; otherwise as
    in `LIF`. It reads the state dict of a batch norm of torch.

    Defaults: `scale` is the threshold if that is a number, else 1; eps 1e-5, momentum 0.1; weight 1, bias 0.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(
        self,
        channels: int,
        *,
        decay: Number,
        threshold: Number,
        scale: float | None = None,
        eps: float = 1e-5,
        momentum: float = 0.1,
        reset: Reset | None = _RESET,
        surrogate: Surrogate = _SURROGATE,
        readout: Readout = None,
        record: Literal["membrane"] | None = None,
        out_dtype: torch.dtype | None = None,
        fire: Literal[">=", ">"] = ">=",
        process_group: ProcessGroup | None = None,
        return_state: bool = False,
        stateful: bool = False,
        single_step: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **renamed: Never,
    ) -> None:
        if scale is None:
            scale = 1.0 if isinstance(threshold, Tensor) else threshold
        for name, value, least in (("scale", scale, -float("inf")), ("eps", eps, 0.0), ("momentum", momentum, 0.0)):
            accepted = "is a finite number" if least < 0 else "is a number of at least 0"
            if check.number(name, value, accepted) < least:
                raise ValueError(f"{name}: got {value}, accepted {accepted}")
        options: dict[str, Any] = {
            "scale": scale,
            "eps": eps,
            "momentum": momentum,
            "decay": decay,
            "threshold": threshold,
            "reset": reset,
            "surrogate": surrogate,
            "readout": readout,
            "record": record,
            "out_dtype": out_dtype,
            "fire": fire,
            "process_group": process_group,
        }
        super().__init__(
            options,
            renamed,
            return_state=return_state,
            stateful=stateful,
            single_step=single_step,
            device=device,
            dtype=dtype,
        )
        channels = check.steps("channels", channels)
        self.weight = nn.Parameter(torch.ones(channels, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(channels, device=device, dtype=dtype))
        self.register_buffer("running_mean", torch.zeros(channels, device=device, dtype=dtype))
        self.register_buffer("running_var", torch.ones(channels, device=device, dtype=dtype))

    def forward(
        self, y: Tensor, v: Tensor | None = None, *, steps: int | None = None, readout: Readout = None
    ) -> Tensor | tuple[Tensor, ...]:
        """`readout`, where given, takes the place of the module's for this call."""
        options = self.options if readout is None else self.options | {"readout": readout}
        return self._run(self._normalised, y, (v, None), steps=steps, **options)

    def _normalised(self, y: Tensor, v: Tensor | None, i: None, **options: Any) -> tuple[Tensor, ...]:
        state = (self.weight, self.bias, self.running_mean, self.running_var)
        return bn_lif(y, *state, training=self.training, v=v, **options)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        state_dict.pop(f"{prefix}num_batches_tracked", None)  # of torch's batch norm
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def extra_repr(self) -> str:
        return f"{len(self.weight)}, {super().extra_repr()}"


def reset(model: nn.Module) -> None:
    """Forgets the state of all stateful layers of a model."""
    for module in model.modules():
        if isinstance(module, _Neuron):
            module.reset()


class Poisson(nn.Module):
    """Spikes at given rates over `steps` time steps; see `esvae_kernels.poisson`. Also a rate encoder of images.

    Equivalent to: `(torch.rand(steps, *rate.shape) < rate)`, differentiable in the rate.

    Shapes: rate (N, *) in [0, 1]; returns spikes (steps, N, *) in `out_dtype` (default: the rates' own).

    Args:
        stream: of the noise; where several layers are given one seed, each takes a stream of its own.
    """

    def __init__(
        self,
        steps: int,
        *,
        surrogate: Surrogate = Rectangular(0.5),  # noqa: B008 - frozen
        stream: int = 0,
        out_dtype: torch.dtype | None = None,
        check_rates: bool = False,
        **renamed: object,
    ) -> None:
        super().__init__()
        if renamed:
            check.renamed("Poisson", renamed, {"dtype": "out_dtype="})
        self.steps, self.surrogate = check.steps("steps", steps), check.surrogate(surrogate)
        self.stream, self.check_rates = check_stream(stream), check_rates
        check.spikes_dtype(out_dtype, torch.float32, surrogate.spiking, False)
        self.out_dtype = out_dtype

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
            dtype=self.out_dtype,
            check_rates=self.check_rates,
        )

    def extra_repr(self) -> str:
        stream = f", stream={self.stream}" if self.stream else ""
        dtype = "" if self.out_dtype is None else f", out_dtype={self.out_dtype}"
        return f"steps={self.steps}, surrogate={self.surrogate!r}{stream}{dtype}"
