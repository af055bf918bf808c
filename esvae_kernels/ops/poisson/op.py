"""`poisson`: the schema, the raw ops, their autograd function and the public function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ... import backends, check
from ...library import learning, register
from ...surrogate import Rectangular, Surrogate
from ...surrogate.reference import from_arguments
from . import reference

_Options: TypeAlias = tuple[int, float, float, float, bool]  # the arguments of `from_arguments`
_OPTIONS = "int surrogate, float shape, float scale, float shift, bool spiking"


def _seed(seed: Tensor) -> int:
    return int(seed) & 0xFFFFFFFFFFFFFFFF


def _poisson_fake(rate: Tensor, ids: Tensor, seed: Tensor, steps: int, dtype: torch.dtype, *options: object) -> Tensor:
    return rate.new_empty((steps, *rate.shape), dtype=dtype)


def _poisson(rate: Tensor, ids: Tensor, seed: Tensor, steps: int, dtype: torch.dtype, *options: *_Options) -> Tensor:
    out = _poisson_fake(rate, ids, seed, steps, dtype)
    surrogate = from_arguments(*options)
    if rate.numel() == 0:
        return out
    backend, room = backends.room(__package__, rate.device)
    if room is None:
        return out.copy_(reference.poisson(rate, ids, _seed(seed), steps, surrogate, dtype))
    room.poisson(backend, rate.contiguous(), ids.contiguous(), seed, out, surrogate)
    return out


def _poisson_backward_fake(rate: Tensor, ids: Tensor, seed: Tensor, dspikes: Tensor, *options: object) -> Tensor:
    return rate.new_empty(rate.shape)


def _poisson_backward(rate: Tensor, ids: Tensor, seed: Tensor, dspikes: Tensor, *options: *_Options) -> Tensor:
    drate = _poisson_backward_fake(rate, ids, seed, dspikes)
    surrogate = from_arguments(*options)
    if rate.numel() == 0:
        return drate
    backend, room = backends.room(__package__, rate.device)
    if room is None:
        return drate.copy_(reference.poisson_backward(rate, ids, _seed(seed), dspikes, surrogate))
    room.poisson_backward(backend, rate.contiguous(), ids.contiguous(), seed, dspikes.contiguous(), drate, surrogate)
    return drate


def _front(tensor: Tensor, dim: int | None, size: int) -> Tensor:
    return tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)


def _poisson_vmap(
    info: Any,
    dims: Sequence[int | None],
    rate: Tensor,
    ids: Tensor,
    seed: Tensor,
    steps: int,
    dtype: torch.dtype,
    *options: object,
) -> tuple[Tensor, int]:
    _unbatched_seed(dims[2])
    rate, ids = (_front(t, d, info.batch_size) for t, d in ((rate, dims[0]), (ids, dims[1])))
    spikes = poisson_fwd(rate.flatten(0, 1), ids.flatten(), seed, steps, dtype, *options)
    return spikes.unflatten(1, rate.shape[:2]), 1


def _poisson_backward_vmap(
    info: Any,
    dims: Sequence[int | None],
    rate: Tensor,
    ids: Tensor,
    seed: Tensor,
    dspikes: Tensor,
    *options: object,
) -> tuple[Tensor, int]:
    _unbatched_seed(dims[2])
    rate, ids = (_front(t, d, info.batch_size) for t, d in ((rate, dims[0]), (ids, dims[1])))
    dspikes = _front(dspikes, dims[3], info.batch_size).movedim(0, 1)
    drate = poisson_bwd(rate.flatten(0, 1), ids.flatten(), seed, dspikes.flatten(1, 2), *options)
    return drate.unflatten(0, rate.shape[:2]), 0


def _unbatched_seed(dim: int | None) -> None:
    if dim is not None:
        raise NotImplementedError("seed: vmap over seeds is not supported; give different sample_ids instead")


poisson_fwd = register(
    f"poisson_fwd(Tensor rate, Tensor ids, Tensor seed, SymInt steps, ScalarType dtype, {_OPTIONS}) -> Tensor",
    _poisson,
    _poisson_fake,
    _poisson_vmap,
)
poisson_bwd = register(
    f"poisson_bwd(Tensor rate, Tensor ids, Tensor seed, Tensor dspikes, {_OPTIONS}) -> Tensor",
    _poisson_backward,
    _poisson_backward_fake,
    _poisson_backward_vmap,
)


class _Poisson(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(rate: Tensor, ids: Tensor, seed: Tensor, steps: int, dtype: torch.dtype, options: _Options) -> Tensor:
        return poisson_fwd(rate, ids, seed, steps, dtype, *options)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        rate, ids, seed, _, _, ctx.options = inputs
        ctx.save_for_backward(rate, ids, seed)

    @staticmethod
    def backward(ctx: Any, dspikes: Tensor) -> tuple[Tensor | None, ...]:
        apply: Callable[..., Tensor] = _PoissonBackward.apply
        return apply(*ctx.saved_tensors, dspikes, ctx.options), None, None, None, None, None


class _PoissonBackward(torch.autograd.Function):
    """The backward as a function of its own, so that it can be differentiated again: through the reference."""

    generate_vmap_rule = True

    @staticmethod
    def forward(rate: Tensor, ids: Tensor, seed: Tensor, dspikes: Tensor, options: _Options) -> Tensor:
        return poisson_bwd(rate, ids, seed, dspikes, *options)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        rate, ids, seed, dspikes, ctx.options = inputs
        ctx.save_for_backward(rate, ids, seed, dspikes)

    @staticmethod
    def backward(ctx: Any, ddrate: Tensor) -> tuple[Tensor | None, ...]:
        rate, ids, seed, dspikes = ctx.saved_tensors
        again = torch.is_grad_enabled()
        with torch.enable_grad():
            rate, dspikes = (t.view_as(t) if t.requires_grad else t.detach().requires_grad_() for t in (rate, dspikes))
            drate = reference.poisson_backward(rate, ids, _seed(seed), dspikes, from_arguments(*ctx.options))
            second = torch.autograd.grad(
                drate, (rate, dspikes), ddrate, create_graph=again, allow_unused=True, materialize_grads=True
            )
        return second[0], None, None, second[1], None


def poisson(
    rate: Tensor,
    steps: int,
    *,
    sample_ids: Tensor | None = None,
    surrogate: Surrogate = Rectangular(0.5),  # noqa: B008 - frozen
    generator: torch.Generator | None = None,
    seed: int | Tensor | None = None,
    dtype: torch.dtype | None = None,
    check_rates: bool = False,
) -> Tensor:
    """Spikes that fire at given rates, drawn inside the kernel and differentiable in the rates (paper, eq. 6-8).

    Equivalent to::

        u = torch.rand(T, *rate.shape)
        z = (u < rate)                      # dz/drate: the surrogate's derivative at rate - u

    but u comes from Philox4x32-10 keyed by seed, sample, element and time (see `reference.py`), is never stored, and is
    drawn again in the backward.

    Args:
        rate: firing rates per time step, (N, *), fp64, fp32, bf16 or fp16. Rates <= 0 and NaN never fire, rates >= 1
            always do.
        steps: T, at least 1.
        sample_ids: int64 (N): each sample's position in the global batch. Default: 0 .. N-1.
        surrogate: one of `esvae_kernels.surrogate`. Default: `Rectangular(0.5)`, the paper's.
        generator: draws the seed; default: torch's generator of the rates' device.
        seed: an integer, or an int64 tensor of one element on the rates' device, instead of drawing one.
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
    apply: Callable[..., Tensor] = _Poisson.apply
    return apply(rate, sample_ids, seed_tensor(seed, generator, rate.device), steps, dtype, options)


def seed_tensor(seed: int | Tensor | None, generator: torch.Generator | None, device: torch.device) -> Tensor:
    """The 64-bit seed as the raw op takes it: int64, one element, on the device (a captured graph re-reads it)."""
    if isinstance(seed, Tensor):
        check.like("seed", seed, (1,), torch.int64, device)
        return seed
    if seed is None:
        source = generator.device if generator is not None else device
        return torch.randint(-(2**63), 2**63 - 1, (1,), generator=generator, device=source).to(device)
    if isinstance(seed, bool) or not isinstance(seed, int) or not -(2**63) <= seed < 2**64:
        raise ValueError(f"seed: got {seed!r}, accepted is an integer of 64 bits")
    # Filled on the device: a copy from the host would wait for it, and could not be captured in a graph.
    return torch.full((1,), seed - 2**64 if seed >= 2**63 else seed, dtype=torch.int64, device=device)
