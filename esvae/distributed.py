"""One program on several devices: the processes that `torchrun` starts, or the only one there is.

A process per device, a rank each (torch.distributed: nccl on GPUs, gloo on the CPU). Without torchrun, and outside of
`processes`, everything here is what it is in one process: rank 0 of 1.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from .errors import InputError, TellsRankZero

TIMEOUT = timedelta(minutes=30)  # that a rank waits for another one; rank 0 fits the mixture prior alone meanwhile

T = TypeVar("T")
R = TypeVar("R")


def launched() -> int:
    """How many processes `torchrun` has started; 1 without it."""
    return int(os.environ["WORLD_SIZE"]) if dist.is_available() and dist.is_torchelastic_launched() else 1


@contextmanager
def processes(device: str) -> Iterator[str]:
    """Joins the processes of `torchrun` for as long as the block runs; gives the device of this one.

    Of `cuda` that is the GPU with the number of the process on its machine.

    Raises:
        InputError: there is no such device, or another process ended or does not answer.
    """
    if launched() == 1:
        yield device
        return
    local, (kind, _, index) = int(os.environ["LOCAL_RANK"]), device.partition(":")
    if kind == "cuda":
        if index:
            raise InputError(f"device: got {device!r}, accepted under torchrun is 'cuda': a GPU for each process")
        if local >= torch.cuda.device_count():
            raise InputError(f"device: process {local} of this machine has no GPU, it has {torch.cuda.device_count()}")
        device = f"cuda:{local}"
        torch.cuda.set_device(local)
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo", timeout=TIMEOUT)
        yield device
        dist.destroy_process_group()  # not after an error: it may wait for a rank that is no more
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error).lower():
            raise
        reason = str(error).splitlines()[0].partition(". ")[0]
        raise InputError(
            f"rank {os.environ['RANK']}: another process ended or does not answer ({reason}); a training goes on from "
            "its last checkpoint with --resume, in any number of processes"
        ) from error


def rank() -> int:
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def ranks() -> int:
    """How many there are."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def first(function: Callable[[], R]) -> R:
    """What `function` returns on rank 0, which alone calls it, on every rank; likewise an InputError."""
    if ranks() == 1:
        return function()
    outcome: list[Any] = [None, None]
    if rank() == 0:
        try:
            outcome[0] = function()
        except InputError as error:
            dist.broadcast_object_list([None, str(error)])
            raise
    dist.broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise TellsRankZero(outcome[1])
    return outcome[0]


def in_turn(function: Callable[[], R]) -> R:
    """`function` on rank 0, and then on the others: what it leaves on the disk the first time, they find there."""
    kept: list[R] = []
    first(lambda: kept.append(function()))
    return kept[0] if kept else function()


def share(
    items: Sequence[T], function: Callable[[T], R], track: Callable[[Sequence[T]], Iterable[T]] = iter
) -> list[R]:
    """`function` of every item, each on one of the ranks; all results, in order, on every rank."""
    count = ranks()
    own = [function(item) for item in track(items[rank() :: count])]
    if count == 1:
        return own
    parts: list[Any] = [None] * count
    dist.all_gather_object(parts, own)
    return [parts[index % count][index // count] for index in range(len(items))]


def gather(x: Tensor) -> Tensor:
    """x (N, *) of every rank in one tensor (ranks N, *), with gradient: that of the sum of all ranks' losses."""
    return x if ranks() == 1 else _Gather.apply(x)


def mean(x: Tensor) -> Tensor:
    """The mean over the ranks, without gradient."""
    if ranks() == 1:
        return x
    total = x.clone()
    dist.all_reduce(total)
    return total / ranks()


def average(tensors: Sequence[Tensor]) -> None:
    """Puts the mean over the ranks in the place of each, in one exchange."""
    if ranks() == 1:
        return
    total = mean(torch.cat([tensor.flatten() for tensor in tensors]))
    for tensor, values in zip(tensors, total.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(values.view(tensor.shape))


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        every = x.new_empty(ranks(), *x.shape)
        dist.all_gather(list(every), x.contiguous())
        return every.flatten(0, 1)

    @staticmethod
    def backward(ctx, dx: Tensor) -> Tensor:
        total = dx.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total.chunk(ranks())[rank()]
