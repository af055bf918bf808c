"""`bn_lif`: the raw op of the statistics, the autograd function and the public function.

Four passes over y, each a raw op, with what is per channel computed between them in fp64: the statistics
(`bn_lif_statistics`), normalise and scan (`lif_fwd` with gain and bias per channel), back through the scan, with the
sums over channels (`lif_bwd`), and what mean and variance add to the gradient of y (`bn_lif_correct`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, Required, TypedDict, Unpack, overload

import torch
import torch.distributed as dist
from torch import Tensor

from ... import backends, check, layout
from ...library import Autograd, autograd_of, differentiate_twice, eager, register, require
from ...native import DTYPES
from ...reset import Hard, Reset
from ...surrogate import ATan, Surrogate
from ..lif.op import (
    RENAMED,
    Number,
    Options,
    Prepared,
    Readout,
    cotangents_there,
    lif_apply,
    lif_bwd,
    lif_fwd,
    prepare,
    stored_rows,
    wanted_of,
    what_is_there,
    without_gradient,
)
from ..lif.plan import with_shape
from ..lif.reference import AFFINE, Wanted, state_dtype
from . import reference

_GAIN_AND_BIAS = 3  # the bits of both rows of (a, b)


def _require(y: Tensor, channel: int) -> None:
    require(
        0 <= channel < y.dim() and y.dtype in DTYPES, lambda: f"y: got shape {tuple(y.shape)}, {y.dtype}, {channel}"
    )


def _statistics(y: Tensor, channel: int) -> tuple[Tensor, Tensor]:
    _require(y, channel)
    backend, room = backends.room(__package__, y.device)
    if room is None:
        return reference.statistics(y, channel)
    channels_last = layout.is_channels_last(y, channel)
    dense = layout.as_layout(y, channels_last, channel)
    found: tuple[Tensor, Tensor] = room.statistics(backend, dense, channel, channels_last)
    return found


def _statistics_fake(y: Tensor, channel: int) -> tuple[Tensor, Tensor]:
    _require(y, channel)
    mean, variance = (y.new_empty(y.shape[channel], dtype=torch.float64) for _ in range(2))
    return mean, variance


bn_lif_statistics = register(
    "bn_lif_statistics(Tensor y, int channel) -> (Tensor, Tensor)", _statistics, _statistics_fake
)


def _correct(dx: Tensor, y: Tensor, factors: Tensor, channel: int) -> Tensor:
    _require_factors(dx, y, factors, channel)
    backend, room = backends.room(__package__, y.device)
    if room is None:
        return reference.correct(dx, y, factors, channel)
    channels_last = layout.is_channels_last(dx, channel)
    dx, y = (layout.as_layout(tensor, channels_last, channel) for tensor in (dx, y))
    dy = layout.empty(dx.shape, channels_last, channel, dx, dx.dtype)
    room.correct(backend, dx, y, factors.contiguous(), dy, channel, channels_last)
    return dy


def _require_factors(dx: Tensor, y: Tensor, factors: Tensor, channel: int) -> None:
    _require(y, channel)
    require(dx.shape == y.shape and dx.dtype == y.dtype, lambda: f"dx: got {tuple(dx.shape)}, {dx.dtype}, not y's")
    wanted = (2, y.shape[channel])
    right = tuple(factors.shape) == wanted and factors.dtype == state_dtype(y.dtype)
    require(right, lambda: f"factors: got {tuple(factors.shape)}, {factors.dtype}, accepted is {wanted}")
    require(
        dx.device == y.device == factors.device,
        lambda: f"dx, y, factors: got {dx.device}, {y.device}, {factors.device}",
    )


def _correct_fake(dx: Tensor, y: Tensor, factors: Tensor, channel: int) -> Tensor:
    _require_factors(dx, y, factors, channel)
    return layout.empty(dx.shape, layout.is_channels_last(dx, channel), channel, dx, dx.dtype)


bn_lif_correct = register(
    "bn_lif_correct(Tensor dx, Tensor y, Tensor factors, int channel) -> Tensor", _correct, _correct_fake
)


class _BnLif(torch.autograd.Function):
    """In training: (y, v, weight, bias, parameters, readout weights, shape, mean, variance, ...) -> what `lif_fwd`
    returns.

    The gradient of y goes through mean and variance too, which are given so that others than y's own may enter them:
    those of the whole `group`.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        y: Tensor,
        v: Tensor | None,
        weight: Tensor,
        bias: Tensor,
        parameters: Tensor | None,
        weights: Tensor | None,
        shape: Tensor | None,
        mean: Tensor,
        variance: Tensor,
        bits: int,
        scale: float,
        eps: float,
        rows: int,
        options: Options,
        group: dist.ProcessGroup | None,
    ) -> tuple[Tensor, ...]:
        ab = reference.affine(mean, variance, weight, bias, scale, eps).to(state_dtype(y.dtype))
        stacked = reference.with_affine(parameters, ab)
        return lif_fwd(y, v, None, stacked, weights, shape, options.text, options.neuron.steps, rows)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *tensors, ctx.bits, ctx.scale, ctx.eps, _, ctx.options, ctx.group = inputs
        ctx.mark_non_differentiable(*without_gradient(output, ctx.options.neuron))
        ctx.save_for_backward(*tensors, output[-1])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor | None) -> tuple[Tensor | None, ...]:
        dout, dv, di, dmembrane, _ = outputs
        if dout is None and dv is None and dmembrane is None:
            return (None,) * 15
        tensors = ctx.saved_tensors
        y, v, weight, bias, parameters, weights = tensors[:6]
        x, start, _, _, learnt, readout = ctx.needs_input_grad[:6]
        wanted = wanted_of((x, start, False, learnt, readout), (y, v, None, parameters, weights), ctx.bits)
        dout, dv, _, dmembrane = cotangents_there(dout, dv, di, dmembrane, ctx.options.neuron)
        backward: Callable[..., tuple[Tensor, ...]]
        backward = _BnLifBackward.apply if torch.is_grad_enabled() else _BnLifBackward.forward  # see _Lif
        given = (dout, dv, dmembrane, wanted, ctx.scale, ctx.eps, ctx.options, ctx.group)
        arguments: tuple[Any, ...] = (*tensors, *given)
        dy, dv0, dweight, dbias, dparameters, dweights = backward(*arguments)
        return (
            dy if wanted.x else None,
            dv0 if wanted.v else None,
            dweight.to(weight.dtype),
            dbias.to(bias.dtype),
            dparameters.to(parameters.dtype) if wanted.parameters else None,
            dweights if wanted.weights else None,
            *(None,) * 9,
        )


class _BnLifBackward(torch.autograd.Function):
    """The backward as a function of its own, so that it can be differentiated again: through the reference."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        y: Tensor,
        v: Tensor | None,
        weight: Tensor,
        bias: Tensor,
        parameters: Tensor | None,
        weights: Tensor | None,
        shape: Tensor | None,
        mean: Tensor,
        variance: Tensor,
        saved: Tensor,
        dout: Tensor | None,
        dv: Tensor | None,
        dmembrane: Tensor | None,
        wanted: Wanted,
        scale: float,
        eps: float,
        options: Options,
        group: dist.ProcessGroup | None,
    ) -> tuple[Tensor, ...]:
        ab = reference.affine(mean, variance, weight, bias, scale, eps)
        stacked = reference.with_affine(parameters, ab.to(state_dtype(y.dtype)))
        inputs = (y, v, None, stacked, weights, shape, saved, dout, dv, None, dmembrane)
        every, p = parameters is not None, options.neuron
        center, bits = mean.to(stacked.dtype), wanted.parameters | _GAIN_AND_BIAS << AFFINE.start * every
        center = reference.per_neuron(center, stacked.shape[1])
        all_wanted = wanted._replace(parameters=bits)
        dy, dv0, _, sums, dweights = lif_bwd(*inputs, center, options.text, p.steps, *all_wanted)
        # Sums of dm (y - mean) and of dm.
        da, db = reference.per_channel(sums[AFFINE] if every else sums, len(mean))
        rstd = torch.rsqrt(variance + eps)
        if wanted.x:  # dL/dy = a dm + (factor y + offset), of mean and variance
            own = y.numel() // len(mean)
            count: int | Tensor = own
            all_da, all_db = da, db
            if group is not None:
                count, all_da, all_db = _sum_over(group, own, da, db)
            factor = -ab[0] * all_da * rstd.square() / count
            offset = -ab[0] * all_db / count - factor * mean
            dy = bn_lif_correct(dy, y, torch.stack([factor, offset]).to(stacked.dtype), 1 if p.constant else 2)
        return dy, dv0, da * (scale * rstd), db.clone(), sums.clone() if every else sums.new_empty(0), dweights

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *tensors, ctx.wanted, ctx.scale, ctx.eps, ctx.options, ctx.group = inputs
        del tensors[7:10]  # statistics and saved potentials: the reference starts from y and v
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(
        ctx: Any,
        ddy: Tensor | None,
        ddv0: Tensor | None,
        ddweight: Tensor | None,
        ddbias: Tensor | None,
        ddparameters: Tensor | None,
        ddweights: Tensor | None,
    ) -> tuple[Tensor | None, ...]:
        if ctx.group is not None:
            raise NotImplementedError("bn_lif: got a process_group, where second derivatives are not there")
        inputs, shape, cotangents = ctx.saved_tensors[:6], ctx.saved_tensors[6], ctx.saved_tensors[7:]
        wanted, (_, _, weight, bias, parameters, _) = ctx.wanted, inputs
        seconds = (
            ddy if wanted.x else None,
            ddv0 if wanted.v else None,
            None if ddweight is None else ddweight.to(weight.dtype),
            None if ddbias is None else ddbias.to(bias.dtype),
            ddparameters.to(parameters.dtype) if wanted.parameters and ddparameters is not None else None,
            ddweights if wanted.weights else None,
        )
        p = with_shape(ctx.options.neuron, shape)
        first, second = differentiate_twice(
            partial(reference.bn_lif, scale=ctx.scale, eps=ctx.eps, p=p), inputs, cotangents, seconds
        )
        return *first, *(None,) * 4, *second, *(None,) * 5


_EagerBnLif = eager(_BnLif)


class _Common(TypedDict, total=False):
    """The keywords of `bn_lif` that do not change what it returns."""

    training: Required[bool]
    momentum: float
    eps: float
    scale: float
    v: Tensor | None
    steps: int | None
    decay: Required[Number]
    threshold: Required[Number]
    reset: Reset | None
    surrogate: Surrogate
    readout: Readout
    dtype: torch.dtype | None
    fire: Literal[">=", ">"]
    process_group: dist.ProcessGroup | None


@overload
def bn_lif(
    y: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    *,
    record: None = ...,
    **options: Unpack[_Common],
) -> tuple[Tensor, Tensor]: ...
@overload
def bn_lif(
    y: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    *,
    record: Literal["membrane"],
    **options: Unpack[_Common],
) -> tuple[Tensor, Tensor, Tensor]: ...
def bn_lif(
    y: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    *,
    training: bool,
    momentum: float = 0.1,
    eps: float = 1e-5,
    scale: float = 1.0,
    v: Tensor | None = None,
    steps: int | None = None,
    decay: Number,
    threshold: Number,
    reset: Reset | None = Hard(),  # noqa: B008 - frozen
    surrogate: Surrogate = ATan(),  # noqa: B008 - frozen
    readout: Readout = None,
    record: Literal["membrane"] | None = None,
    dtype: torch.dtype | None = None,
    fire: Literal[">=", ">"] = ">=",
    process_group: dist.ProcessGroup | None = None,
    **renamed: object,
) -> tuple[Tensor, ...]:
    """Threshold-dependent batch norm (tdBN; Zheng et al., 2021) and LIF neurons in one; the normalised current is
    never stored.

    Equivalent to::

        x = batch_norm(y.flatten(0, 1), running_mean, running_var, scale * weight, bias, training, momentum, eps)
        spikes, v = lif(x.unflatten(0, (T, N)), v, decay=decay, threshold=threshold, ...)

    with the statistics over T, N and space, in fp64. In training the running buffers are updated in place (the running
    variance with the unbiased one).

    Args:
        y: (T, N, C, *), or with `steps` (N, C, *), the same at every time step: statistics and norm then cost one pass
            over it, not T. fp64, fp32, bf16 or fp16, contiguous or channels-last.
        weight, bias: (C), of any floating dtype.
        running_mean, running_var: (C), of any floating dtype; used in evaluation, updated in training.
        training: normalise by the batch's statistics, with gradients through them.
        momentum, eps: as in torch's batch norm.
        scale: multiplies `weight`; tdBN's alpha * threshold. Default: 1 (of `nn.BNLIF` the threshold).
        v, steps, decay .. fire: as in `lif`, whose gain and bias are the norm's; without a synaptic current, v_min and
            fire="multi_spike".
        process_group: in training take the statistics over the batches of all its ranks, as `torch.nn.SyncBatchNorm`
            does: each rank calls with its share of the batch, whose gradients are those of the sum of all ranks'
            losses; those of weight, bias and the LIF's tensors are this rank's part, for DistributedDataParallel to
            average. First derivatives only. A rank's share may be empty; that there are two values or more in all is
            not checked. Default: y alone.

    Returns:
        What `lif` returns.

    Raises:
        TypeError, ValueError: one line naming the argument, what came and what is accepted.
    """
    if renamed:
        check.renamed("bn_lif", renamed, RENAMED)
    if fire == "multi_spike":  # type: ignore[comparison-overlap]
        raise ValueError("fire: got 'multi_spike', accepted by bn_lif are '>=' and '>'")
    a = prepare(
        y,
        v,
        None,
        steps,
        name="y",
        learnt=(weight, bias),
        decay=decay,
        threshold=threshold,
        reset=reset,
        surrogate=surrogate,
        readout=readout,
        record=record,
        dtype=dtype,
        fire=fire,
    )
    p = a.options.neuron
    channel = 1 if p.constant else 2
    if y.dim() <= channel:
        accepted = "(N, C, *) when steps= is given" if p.constant else "(T, N, C, *)"
        raise ValueError(f"y: got shape {tuple(y.shape)}, accepted is {accepted}")
    channels = (y.shape[channel],)
    for name, tensor in (
        ("weight", weight),
        ("bias", bias),
        ("running_mean", running_mean),
        ("running_var", running_var),
    ):
        check.floating(name, tensor, 1, f"{channels}")
        check.like(name, tensor, channels, tensor.dtype, y.device)
    momentum, scale = (check.number(n, x, "is a finite number") for n, x in (("momentum", momentum), ("scale", scale)))
    if check.number("eps", eps, "is a number of at least 0") < 0:
        raise ValueError(f"eps: got {eps}, accepted is a number of at least 0")
    if not training:
        ab = reference.affine(running_mean.double(), running_var.double(), weight, bias, scale, eps)
        stacked = reference.with_affine(a.parameters, ab.to(state_dtype(y.dtype)))
        return lif_apply(y, v, None, a._replace(parameters=stacked, bits=_bits(a)))
    own = y.numel() // max(channels[0], 1)
    if own < 2 and (process_group is None or process_group.size() == 1):
        raise ValueError(
            f"y: got {own} value per channel in shape {tuple(y.shape)}, accepted in training are 2 or more"
        )
    mode = autograd_of(y, v, weight, bias, a.parameters, a.weights)
    mean, variance = (
        reference.statistics(y.detach(), channel)
        if mode is Autograd.FORWARD
        else bn_lif_statistics(y.detach(), channel)
    )
    count: int | Tensor = own
    if process_group is not None:
        count, mean, variance = _over(process_group, own, mean, variance)
    if momentum:
        _update(running_mean, running_var, mean, variance, momentum, count * (p.steps if steps else 1))
    parameters = a.parameters
    if parameters is not None and parameters.shape[1] == 1:
        parameters = parameters.expand(-1, *channels)  # so that gradients fit
    tensors = (y, v, weight, bias, parameters, a.weights)
    if mode is Autograd.FORWARD:
        if process_group is not None:
            raise NotImplementedError("bn_lif: got a process_group, where forward-mode derivatives are not there")
        out, last, membrane = reference.bn_lif(*tensors, scale, eps, with_shape(p, a.shape))
        return what_is_there((out, last, None, membrane), p)
    rows = stored_rows(p.steps) if mode is not Autograd.NONE and torch.is_grad_enabled() else 0
    arguments = (*tensors, a.shape, mean, variance, a.bits, scale, eps, rows, a.options, process_group)
    run: Callable[..., tuple[Tensor, ...]]
    run = {Autograd.NONE: _BnLif.forward, Autograd.EAGER: _EagerBnLif.apply, Autograd.FULL: _BnLif.apply}[mode]
    return what_is_there(run(*arguments), p)


def _bits(a: Prepared) -> int:
    """Of a stack with (a, b) in it: those too may have a gradient."""
    return _GAIN_AND_BIAS if a.parameters is None else a.bits | _GAIN_AND_BIAS << AFFINE.start


def _over(group: dist.ProcessGroup, count: int, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Count, mean and biased variance of all ranks' values from those of each, (C), in the order of the ranks. A rank
    without values takes part, or the others would wait for it."""
    own = torch.stack([torch.full_like(mean, count), mean, variance]) if count else mean.new_zeros(3, *mean.shape)
    every = own.new_empty(group.size(), *own.shape)
    dist.all_gather(list(every), own, group=group)
    counts, means, variances = every.unbind(1)  # (ranks, C)
    total = counts.sum(0).clamp(min=1)
    mean = (counts * means).sum(0) / total
    return total, mean, (counts * (variances + (means - mean).square())).sum(0) / total


def _sum_over(group: dist.ProcessGroup, count: int, da: Tensor, db: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The sums of count, da and db over all ranks, fp64."""
    sums = torch.cat([da.new_tensor([count]), da, db])
    dist.all_reduce(sums, group=group)
    all_da, all_db = sums[1:].chunk(2)
    return sums[0], all_da, all_db


@torch.no_grad()
def _update(
    running_mean: Tensor, running_var: Tensor, mean: Tensor, variance: Tensor, momentum: float, n: int | Tensor
) -> None:
    running_mean.lerp_(mean.to(running_mean.dtype), momentum)
    others = (n - 1).clamp(min=1) if isinstance(n, Tensor) else n - 1  # over ranks there may be one value in all
    running_var.lerp_((variance * (n / others)).to(running_var.dtype), momentum)
