"""`poisson`: the schema, the raw ops, their autograd function and the public function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from numbers import Integral
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ... import backends, check
from ...library import Autograd, autograd_of, eager, learning, one_by_one, register, require
from ...native import DTYPES, OUT_DTYPES
from ...surrogate import SURROGATES, Rectangular, Surrogate
from ...surrogate.reference import from_arguments
from . import reference

_Options: TypeAlias = tuple[int, float, float, float, bool]  # the arguments of `from_arguments`
_OPTIONS = "int surrogate, float shape, float scale, float shift, bool spiking"


def _require(rate: Tensor, ids: Tensor, seed: Tensor, stream: int, surrogate: int) -> None:
    """What the kernels take for granted: they have addresses alone."""
    require(rate.dim() >= 1 and rate.dtype in DTYPES, lambda: f"rate: got shape {tuple(rate.shape)}, {rate.dtype}")
    for name, tensor, shape in (("ids", ids, tuple(rate.shape[:1])), ("seed", seed, (1,))):
        right = tuple(tensor.shape) == shape and tensor.dtype == torch.int64 and tensor.device == rate.device
        require(right, lambda n=name, t=tensor: f"{n}: got shape {tuple(t.shape)}, {t.dtype}, on {t.device}")  # type: ignore[misc]
    require(stream >= 0, lambda: f"stream: got {stream}")
    require(surrogate in SURROGATES, lambda: f"surrogate: got the id {surrogate}")


def _poisson_fake(
    rate: Tensor, ids: Tensor, seed: Tensor, stream: int, steps: int, dtype: torch.dtype, *options: *_Options
) -> Tensor:
    _require(rate, ids, seed, stream, options[0])
    require(steps >= 1, lambda: f"steps: got {steps}")
    require(dtype in OUT_DTYPES, lambda: f"dtype: got {dtype}")
    return rate.new_empty((steps, *rate.shape), dtype=dtype)


def _poisson(
    rate: Tensor, ids: Tensor, seed: Tensor, stream: int, steps: int, dtype: torch.dtype, *options: *_Options
) -> Tensor:
    out = _poisson_fake(rate, ids, seed, stream, steps, dtype, *options)
    surrogate = from_arguments(*options)
    if rate.numel() == 0:
        return out
    backend, room = backends.room(__package__, rate.device)
    if room is None:
        return out.copy_(reference.poisson(rate, ids, seed, steps, surrogate, dtype, stream))
    room.poisson(backend, rate.contiguous(), ids.contiguous(), seed, stream, out, surrogate)
    return out


def _poisson_backward_fake(
    rate: Tensor, ids: Tensor, seed: Tensor, stream: int, dspikes: Tensor, *options: *_Options
) -> Tensor:
    _require(rate, ids, seed, stream, options[0])
    right = dspikes.dim() == rate.dim() + 1 and dspikes.shape[1:] == rate.shape and dspikes.dtype in DTYPES
    right = right and dspikes.shape[0] >= 1 and dspikes.device == rate.device
    require(right, lambda: f"dspikes: got shape {tuple(dspikes.shape)}, {dspikes.dtype}, on {dspikes.device}")
    return rate.new_empty(rate.shape)


def _poisson_backward(
    rate: Tensor, ids: Tensor, seed: Tensor, stream: int, dspikes: Tensor, *options: *_Options
) -> Tensor:
    drate = _poisson_backward_fake(rate, ids, seed, stream, dspikes, *options)
    surrogate = from_arguments(*options)
    if rate.numel() == 0:
        return drate
    backend, room = backends.room(__package__, rate.device)
    if room is None:
        return drate.copy_(reference.poisson_backward(rate, ids, seed, dspikes, surrogate, stream))
    rate, ids, dspikes = rate.contiguous(), ids.contiguous(), dspikes.contiguous()
    room.poisson_backward(backend, rate, ids, seed, stream, dspikes, drate, surrogate)
    return drate


def _front(tensor: Tensor, dim: int | None, size: int) -> Tensor:
    return tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)


def _poisson_vmap(
    info: Any,
    dims: Sequence[int | None],
    rate: Tensor,
    ids: Tensor,
    seed: Tensor,
    stream: int,
    steps: int,
    dtype: torch.dtype,
    *options: object,
) -> tuple[Any, Any]:
    if dims[2] is not None:  # a kernel reads one seed
        return one_by_one(poisson_fwd, info, dims, rate, ids, seed, stream, steps, dtype, *options)
    rate, ids = (_front(t, d, info.batch_size) for t, d in ((rate, dims[0]), (ids, dims[1])))
    spikes = poisson_fwd(rate.flatten(0, 1), ids.flatten(), seed, stream, steps, dtype, *options)
    return spikes.unflatten(1, rate.shape[:2]), 1


def _poisson_backward_vmap(
    info: Any,
    dims: Sequence[int | None],
    rate: Tensor,
    ids: Tensor,
    seed: Tensor,
    stream: int,
    dspikes: Tensor,
    *options: object,
) -> tuple[Any, Any]:
    if dims[2] is not None:
        return one_by_one(poisson_bwd, info, dims, rate, ids, seed, stream, dspikes, *options)
    rate, ids = (_front(t, d, info.batch_size) for t, d in ((rate, dims[0]), (ids, dims[1])))
    dspikes = _front(dspikes, dims[4], info.batch_size).movedim(0, 1)
    drate = poisson_bwd(rate.flatten(0, 1), ids.flatten(), seed, stream, dspikes.flatten(1, 2), *options)
    return drate.unflatten(0, rate.shape[:2]), 0


poisson_fwd = register(
    "poisson_fwd(Tensor rate, Tensor ids, Tensor seed, int stream, SymInt steps, ScalarType dtype, "
    f"{_OPTIONS}) -> Tensor",
    _poisson,
    _poisson_fake,
    _poisson_vmap,
)
poisson_bwd = register(
    f"poisson_bwd(Tensor rate, Tensor ids, Tensor seed, int stream, Tensor dspikes, {_OPTIONS}) -> Tensor",
    _poisson_backward,
    _poisson_backward_fake,
    _poisson_backward_vmap,
)


class _Poisson(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        rate: Tensor, ids: Tensor, seed: Tensor, stream: int, steps: int, dtype: torch.dtype, options: _Options
    ) -> Tensor:
        return poisson_fwd(rate, ids, seed, stream, steps, dtype, *options)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        rate, ids, seed, ctx.stream, _, _, ctx.options = inputs
        ctx.save_for_backward(rate, ids, seed)

    @staticmethod
    def backward(ctx: Any, dspikes: Tensor) -> tuple[Tensor | None, ...]:
        # Through autograd only where it may be differentiated again.
        run: Callable[..., Tensor] = _PoissonBackward.apply if torch.is_grad_enabled() else _PoissonBackward.forward
        return run(*ctx.saved_tensors, ctx.stream, dspikes, ctx.options), *(None,) * 6


class _PoissonBackward(torch.autograd.Function):
    """The backward as a function of its own, so that it can be differentiated again: through the reference."""

    generate_vmap_rule = True

    @staticmethod
    def forward(rate: Tensor, ids: Tensor, seed: Tensor, stream: int, dspikes: Tensor, options: _Options) -> Tensor:
        return poisson_bwd(rate, ids, seed, stream, dspikes, *options)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        rate, ids, seed, ctx.stream, dspikes, ctx.options = inputs
        ctx.save_for_backward(rate, ids, seed, dspikes)

    @staticmethod
    def backward(ctx: Any, ddrate: Tensor) -> tuple[Tensor | None, ...]:
        rate, ids, seed, dspikes = ctx.saved_tensors
        again = torch.is_grad_enabled()
        with torch.enable_grad():
            rate, dspikes = (t.view_as(t) if t.requires_grad else t.detach().requires_grad_() for t in (rate, dspikes))
            surrogate = from_arguments(*ctx.options)
            drate = reference.poisson_backward(rate, ids, seed, dspikes, surrogate, ctx.stream)
            second = torch.autograd.grad(
                drate, (rate, dspikes), ddrate, create_graph=again, allow_unused=True, materialize_grads=True
            )
        return second[0], None, None, None, second[1], None


_EagerPoisson = eager(_Poisson)


def poisson(
    rate: Tensor,
    steps: int,
    *,
    sample_ids: Tensor | None = None,
    surrogate: Surrogate = Rectangular(0.5),  # noqa: B008 - frozen
    generator: torch.Generator | None = None,
    seed: int | Tensor | None = None,
    stream: int = 0,
    dtype: torch.dtype | None = None,
    check_rates: bool = False,
) -> Tensor:
    """Spikes that fire at given rates, drawn inside the kernel and differentiable in the rates (paper, eq. 6-8).

    Equivalent to::

        u = torch.rand(T, *rate.shape)
        z = (u < rate)                      # dz/drate: the surrogate's derivative at rate - u

    but u comes from Philox4x32-10 keyed by seed, stream, sample, element and time (see `reference.py`), is never
    stored, and is drawn again in the backward.

    Args:
        rate: firing rates per time step, (N, *), fp64, fp32, bf16 or fp16. Rates <= 0 and NaN never fire, rates >= 1
            always do.
        steps: T, at least 1.
        sample_ids: int64 (N): each sample's position in the global batch. Default: 0 .. N-1.
        surrogate: one of `esvae_kernels.surrogate`, whose shape parameter is read here where it is a tensor. Default:
            `Rectangular(0.5)`, the paper's.
        generator: draws the seed; default: torch's generator of the rates' device.
        seed: an integer, or an int64 tensor of one element on the rates' device, instead of drawing one.
        stream: 0 to 2^63 - 1, which of the seed's streams of noise. Where several draws are given one seed, give each a
            stream of its own: noise of different streams, of this seed and others, is independent.
        dtype: the spikes' dtype: fp64, fp32, bf16 or fp16, or uint8 where no gradient flows. Default: the rates' own.
            The rates' gradient comes back in the rates' dtype.
        check_rates: raise if a rate is NaN or outside [0, 1] (waits for the device).

    Returns:
        spikes (T, N, *), 0 or 1.

    Raises:
        TypeError, ValueError: one line naming the argument, what came and what is accepted.
    """
    check.floating("rate", rate, 1, "(N, *)")
    steps = check.steps("steps", steps)
    surrogate = check.surrogate(surrogate)
    stream = check_stream(stream)
    dtype = check.spikes_dtype(dtype, rate.dtype, surrogate.spiking, learning(rate))
    if seed is not None and generator is not None:
        raise ValueError("seed, generator: got both, accepted is one of them")
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(f"generator: got {type(generator).__name__}, accepted is a torch.Generator")
    if check_rates and not bool(((rate >= 0) & (rate <= 1)).all()):
        raise ValueError("rate: got values that are NaN or outside [0, 1], accepted are rates in [0, 1]")
    if sample_ids is None:
        sample_ids = torch.arange(rate.shape[0], device=rate.device)
    else:
        check.like("sample_ids", sample_ids, (rate.shape[0],), torch.int64, rate.device)
    numbers = (float(surrogate.parameter), float(surrogate.scale), float(surrogate.shift))
    options = (surrogate.id, *numbers, surrogate.spiking)
    arguments = (rate, sample_ids, seed_tensor(seed, generator, rate.device), stream, steps, dtype)
    mode = autograd_of(rate)
    if mode is Autograd.FORWARD:
        return reference.poisson(*arguments[:3], steps, surrogate, dtype, stream)
    if mode is Autograd.NONE:
        return poisson_fwd(*arguments, *options)
    function = _EagerPoisson if mode is Autograd.EAGER else _Poisson
    apply: Callable[..., Tensor] = function.apply
    return apply(*arguments, options)


def check_stream(stream: object) -> int:
    if isinstance(stream, bool) or not isinstance(stream, Integral) or not 0 <= int(stream) < 2**63:
        raise ValueError(f"stream: got {stream!r}, accepted is an integer from 0 to 2^63 - 1")
    return int(stream)


def seed_tensor(seed: int | Tensor | None, generator: torch.Generator | None, device: torch.device) -> Tensor:
    """The 64-bit seed as the raw op takes it: int64, one element, on the device (a captured graph re-reads it)."""
    if isinstance(seed, Tensor):
        if seed.dim() == 0:
            seed = seed.reshape(1)
        check.like("seed", seed, (1,), torch.int64, device)
        return seed
    if seed is None:
        source = generator.device if generator is not None else device
        return torch.randint(-(2**63), 2**63 - 1, (1,), generator=generator, device=source).to(device)
    if isinstance(seed, bool) or not isinstance(seed, Integral) or not -(2**63) <= seed < 2**64:
        raise ValueError(f"seed: got {seed!r}, accepted is an integer of 64 bits")
    seed = int(seed)
    # Filled on the device: a copy from the host would wait for it, and could not be captured in a graph.
    return torch.full((1,), seed - 2**64 if seed >= 2**63 else seed, dtype=torch.int64, device=device)
