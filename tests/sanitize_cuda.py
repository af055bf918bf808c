"""Calls every kernel and option of a backend, forward and backward, on small odd shapes: for compute-sanitizer.

`compute-sanitizer --tool memcheck python tests/sanitize_cuda.py --device cuda --backend cuda --seconds 40`. Compares
nothing; what is written nowhere is found by initcheck and by the tests.
"""

from __future__ import annotations

import argparse
import itertools
import random
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from parts import bn_lif, lif
from torch import Tensor

from esvae_kernels import poisson, use_backend
from esvae_kernels.surrogate import SURROGATES

RESETS = ("hard", "soft", "none", "delayed", "at_once")
READOUTS, RECORDS = (None, "mean", "weights"), (None, "membrane")
DTYPES = (torch.float32, torch.bfloat16, torch.float64, torch.float16)
SHAPES = ((20, 33), (17, 3, 7), (35, 2, 5, 3, 3), (4, 2, 8, 4, 4), (3, 1, 130), (1, 2, 3, 5))
NUMBERS = {"decay": 0.9, "threshold": 0.4, "gain": 0.7, "bias": 0.05, "v_reset": -0.1}
Call = Callable[[], None]


def calls() -> Iterator[Call]:
    """All combinations of what selects code; dtype, shape, layout, parameters, surrogate, synapse, v_min and spikes
    that are counted take turns."""
    classes = list(SURROGATES.values())
    grid = itertools.product(RESETS, READOUTS, RECORDS, (False, True), ("numbers", "affine", "all"))
    for index, (reset, readout, record, constant, parameters) in enumerate(grid):
        shape, dtype = SHAPES[index % len(SHAPES)], DTYPES[index // 2 % len(DTYPES)]
        options = {"reset": reset, "record": record, "strict": index % 5 == 0, "detach_reset": index % 3 == 0}
        options["surrogate"] = replace(classes[index % len(classes)](), spiking=index % 7 != 0)
        options |= rare(index, reset, parameters, not options["surrogate"].spiking)
        layout = index % 4 == 0
        yield lambda a=(shape, dtype, constant, layout, readout, parameters), o=options: call_lif(*a, **o)
        if len(shape) > 2 and parameters != "affine":
            yield lambda a=(shape, dtype, constant, layout, readout, index % 3 > 0), o=options: call_bn_lif(*a, **o)
    for index, (cls, dtype, out) in enumerate(itertools.product(classes, DTYPES, (None, *DTYPES))):
        yield lambda i=index, s=cls, d=dtype, o=out: call_poisson(i, s(), d, o)
    for dtype in DTYPES:
        yield lambda d=dtype: call_uint8(d)


def rare(index: int, reset: str, parameters: str, smooth: bool) -> dict:
    """Of the options that a kernel of their own is compiled for: none in a quarter of the calls, else some by lot,
    which falls the same each time. A synapse comes per channel where all parameters do."""
    lot = random.Random(index)
    if lot.random() < 0.25:
        return {}
    options: dict = {"v_min": -0.3} if lot.random() < 0.5 else {}
    if lot.random() < 0.5:
        options["synaptic_decay"] = "all" if parameters == "all" else 0.6
    if lot.random() < 0.6 and reset in ("hard", "soft", "none") and not smooth:
        options |= {"several": True, "strict": False, "detach_reset": True}
    return options


def tensor(*shape: int, dtype: torch.dtype, last: bool = False, channel: int = 2) -> Tensor:
    x = torch.rand(shape).to(dtype)
    if last and len(shape) > channel:
        x = x.movedim(channel, -1).contiguous().movedim(-1, channel)
    return x.requires_grad_()


def differentiate(outputs: tuple[Tensor, ...], *inputs: Tensor | None) -> None:
    wanted = [t for t in inputs if t is not None]
    torch.autograd.grad(outputs, wanted, [torch.ones_like(o) for o in outputs], allow_unused=True)


def read_out(kind: str | None, steps: int) -> str | Tensor | None:
    return tensor(steps, dtype=torch.float64) if kind == "weights" else kind


def current(shape: tuple[int, ...], dtype: torch.dtype, constant: bool, last: bool) -> tuple[Tensor, Tensor, dict]:
    x = tensor(*shape[constant:], dtype=dtype, last=last, channel=1 if constant else 2)
    v = tensor(*shape[1:], dtype=torch.promote_types(dtype, torch.float32), last=last, channel=1)
    return x, v, {"steps": shape[0] if constant else None}


def call_lif(shape, dtype, constant: bool, last: bool, readout: str | None, parameters: str, **options) -> None:
    x, v, steps = current(shape, dtype, constant, last)
    channels = shape[2] if len(shape) > 2 else 1
    names = {"numbers": (), "affine": ("gain", "bias"), "all": tuple(NUMBERS)}[parameters]
    if options.get("synaptic_decay") == "all":
        names = (*names, "synaptic_decay")
    learnt = {name: tensor(channels, dtype=torch.float32) for name in names}
    weights = read_out(readout, shape[0])
    outputs = lif(x, v, readout=weights, **(NUMBERS | steps | options | learnt))
    extra = [weights] if isinstance(weights, Tensor) else []
    differentiate(outputs, x, v, *learnt.values(), *extra)


def call_bn_lif(shape, dtype, constant: bool, last: bool, readout: str | None, training: bool, **options) -> None:
    y, v, steps = current(shape, dtype, constant, last)
    weight, bias, decay = (tensor(shape[2], dtype=torch.float32) for _ in range(3))
    running = {"running_mean": torch.zeros(shape[2]), "running_var": torch.ones(shape[2])}
    options = {name: value for name, value in options.items() if name not in ("synaptic_decay", "v_min", "several")}
    options |= steps | running | {"v": v, "training": training, "readout": read_out(readout, shape[0])}
    differentiate(bn_lif(y, weight, bias, decay=decay, threshold=0.4, **options), y, v, weight, bias, decay)


def call_poisson(index: int, surrogate: object, dtype: torch.dtype, out: torch.dtype | None) -> None:
    rate = tensor(*((3, 7), (2, 64), (1, 5, 3), (5,))[index % 4], dtype=dtype)
    differentiate((poisson(rate, (1, 5, 18)[index % 3], seed=index, surrogate=surrogate, dtype=out),), rate)


@torch.no_grad()
def call_uint8(dtype: torch.dtype) -> None:
    lif(tensor(9, 35, dtype=dtype), decay=0.9, threshold=0.4, dtype=torch.uint8)
    poisson(tensor(3, 35, dtype=dtype), 6, seed=1, dtype=torch.uint8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--backend", default="cuda")
    parser.add_argument("--seconds", type=float, default=40.0, help="begin no further call after so long")
    parser.add_argument("--calls", type=int, help="so many of them, a part of everything; by default all")
    a = parser.parse_args()
    torch.set_default_device(a.device)
    todo, done, start = list(calls()), 0, time.monotonic()
    if a.calls:
        todo = todo[:: -(-len(todo) // a.calls)]
    with use_backend(a.backend):
        for call in todo[::7] + [c for k, c in enumerate(todo) if k % 7]:  # a part of everything first
            if time.monotonic() - start > a.seconds:
                break
            call()
            done += 1
    if a.device == "cuda":
        torch.cuda.synchronize()
    print(f"{done} of {len(todo)} calls")
    if done < len(todo) // 7:
        sys.exit("too few calls in the time given")


if __name__ == "__main__":
    main()
