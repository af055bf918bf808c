"""What the compiled kernels are to their callers: one packed argument, a stack of which they need little, and threads
that compute alike."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from kernel_helpers import cpu_only, needs_compiled, one_line

from esvae_kernels import native

pytestmark = [needs_compiled, cpu_only("of the CPU's kernels")]


def test_a_call_is_packed_by_names() -> None:
    form, names = native.module.layouts["batch_correction"]
    assert names == ("dtype", "dx", "y", "factors", "dy", "size", "channels", "inner", "threads", "device", "stream")
    assert form == "=qQQQQqqqqqQ"
    given = {"inner": -1, "dtype": 2, "y": 2**64 - 1, "size": 3, "channels": 4}
    values = native.in_order("cpu", "batch_correction", given)
    assert struct.unpack(form, struct.pack(form, *values)) == (2, 0, 2**64 - 1, 0, 0, 3, 4, -1, 1, 0, 0)
    assert native.module.layouts.keys() >= {"lif_forward", "lif_backward", "poisson_forward", "batch_statistics"}
    for form, names in native.module.layouts.values():
        assert len(form) - 1 == len(set(names)) == len(names)


def test_unknown_and_missing_names_are_refused() -> None:
    name, given = "batch_correction", {"dtype": 1, "size": 0, "channels": 1, "inner": 1}

    def refused(names: str, changed: dict[str, object]) -> None:
        one_line(lambda: native.in_order("cpu", name, changed), TypeError, f"{name}: unknown or missing: {names}")

    refused("colour", given | {"colour": 1})
    refused("size", {key: value for key, value in given.items() if key != "size"})
    renamed = {{"size": "length"}.get(key, key): value for key, value in given.items()}
    refused("length, size", renamed)
    with pytest.raises(KeyError, match="colour"):
        native.Call(name, "cpu", torch.device("cpu"), 4, given)((), {"colour": 1})
    with pytest.raises(KeyError, match="colour"):
        native.Call(name, "cpu", torch.device("cpu"), 4, given, ("colour",))


@pytest.mark.parametrize("packed", [b"", b"\0" * 80, b"\0" * 96])
def test_a_call_of_another_size_is_refused(packed: bytes) -> None:
    """As of a package and a module of different versions."""
    refused = f"batch_correction: got {len(packed)} bytes, accepted are 88"
    one_line(lambda: native.module.batch_correction(packed), ValueError, refused)
    with pytest.raises(TypeError):
        native.module.batch_correction()


def test_a_tensor_elsewhere_is_refused() -> None:
    """Whatever was picked, and by whom: the kernels would take its address for one of this process."""
    tensor = torch.empty(4, device="meta")
    refused = "batch_correction: got a tensor on meta, the backend 'cpu' takes those on cpu"
    one_line(lambda: native.call("batch_correction", "cpu", tensor, 4, {}), RuntimeError, refused)
    with pytest.raises(KeyError, match="tpu"):
        native.call("batch_correction", "tpu", torch.empty(4), 4, {})


def run_python(code: str, **environment: str) -> str:
    """What a process of its own prints."""
    where = {"cwd": Path(__file__).parent, "capture_output": True, "text": True}  # where `parts` is
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | environment, **where)
    assert done.returncode == 0, f"exit status {done.returncode}\n{done.stderr[-3000:]}"
    return done.stdout


SMALL_STACK = """
import threading, torch
from esvae_kernels import poisson
from parts import bn_lif, lif

def numbers(*shape, dtype=torch.float32, low=-1.0):
    return torch.empty(*shape, dtype=dtype).uniform_(low, 1.0).requires_grad_()

def backward(outputs):
    sum(o.double().sum() for o in outputs).backward()

def calls():
    options = {"decay": 0.5, "threshold": 0.5}
    x = numbers(40, 16, 512)
    backward(lif(x, **options))
    for dtype in (torch.float64, torch.bfloat16):
        backward(lif(numbers(40, 16, 512, dtype=dtype), **options))
    for dtype in (torch.float32, torch.float64):
        x = numbers(40, 16, 512, dtype=dtype)
        learnt = {k: numbers(512, low=0.1) for k in ("decay", "threshold", "gain", "bias", "v_reset", "synaptic_decay")}
        backward(lif(x, **learnt, reset="soft", readout=numbers(40), record="membrane"))
    for reset in ("hard", "delayed"):
        backward(lif(numbers(512, 32), **options, steps=100, readout="mean", v_min=-0.5, reset=reset))
    y, scale, shift = numbers(20, 16, 64, 8, 4), numbers(64), numbers(64)
    backward(bn_lif(y, scale, shift, torch.zeros(64), torch.ones(64), training=True, **options))
    for dtype in (torch.float32, torch.float64):
        poisson(numbers(64, 512, dtype=dtype, low=0.0), 20, seed=1).double().sum().backward()
    print("done")

torch.set_num_threads(THREADS)
threading.stack_size(256 << 10)
thread = threading.Thread(target=calls)
thread.start()
thread.join()
"""


@pytest.mark.parametrize("threads", [1, 2])
def test_a_stack_of_256_kib_is_enough(threads: int) -> None:
    """For the thread that calls and for those that help it; a larger frame does not compile (CMakeLists.txt)."""
    printed = run_python(SMALL_STACK.replace("THREADS", str(threads)), OMP_STACKSIZE="256k")
    assert printed == "done\n"


FLUSHED = """
import torch
from esvae_kernels import poisson, use_backend
from parts import bn_lif, lif
from esvae_kernels.surrogate import StraightThrough

def bits(tensor):
    return tensor.detach().contiguous().view({8: torch.int64, 4: torch.int32, 2: torch.int16}[tensor.element_size()])

def same(found, expected, why):
    for k, (f, e) in enumerate(zip(found, expected, strict=True)):
        wrong = int((bits(f) != bits(e)).sum())
        assert not wrong, f"{why}: {wrong} of {f.numel()} elements of output {k} differ"

def with_gradients(op, x, *rest, **options):
    leaves = [t.detach().requires_grad_() for t in (x, *rest)]
    outputs = [o for o in op(*leaves, **options) if o.is_floating_point()]
    cotangents = [torch.randn(o.shape, generator=torch.Generator().manual_seed(3)).to(o.dtype) for o in outputs]
    return [*outputs, *torch.autograd.grad(outputs, leaves, cotangents)]

def sampled(rate, **options):
    return [poisson(rate, **options)]

def batch_norm(y, weight, bias, **options):
    return bn_lif(y, weight, bias, torch.zeros(len(weight)), torch.ones(len(weight)), training=True, **options)

everything = torch.arange(1 << 16).to(torch.int16).view(torch.float16)
finite = everything[everything.isfinite()]
rows = torch.stack([finite, finite.flip(0)])
tiny = everything[1:1024]  # all positive subnormal numbers
generator = torch.Generator().manual_seed(0)
normal = torch.randn(8, 4, 8192, generator=generator)
halves = (normal * 2.0 ** torch.randint(-25, 3, normal.shape, generator=generator)).half()
one = {"decay": 0.5, "threshold": 2.0**-24, "reset": "none", "surrogate": StraightThrough()}
calls = {  # whose numbers are no subnormal ones in fp32: equal whatever the mode
    "every half": lambda: lif(rows.flatten()[None], **one),
    "halves": lambda: with_gradients(lif, halves, decay=0.5, threshold=2.0**-16, reset="soft"),
    "rates": lambda: with_gradients(sampled, tiny.repeat(64)[None], steps=64, seed=2),
    "batch norm": lambda: with_gradients(
        batch_norm, tiny.repeat(264).reshape(8, 11, 31, 99), torch.ones(31), torch.zeros(31), decay=0.5, threshold=0.005
    ),
}
narrowed = torch.cat([normal.flatten() * 2.0**k for k in (-26, -24, -20, -15, 0, 15)])[None]

def gradients_in_half():
    x = torch.zeros(narrowed.shape, dtype=torch.float16, requires_grad=True)
    return torch.autograd.grad(lif(x, **one, dtype=torch.float32)[0], x, narrowed)

calls["gradients"] = gradients_in_half
# And these depend on the mode, but not on the number of threads.
small = normal * 2.0 ** torch.randint(-150, -120, normal.shape, generator=generator)
in_mode = {
    "fp32": lambda: with_gradients(lif, small, decay=0.5, threshold=2.0**-126, reset="soft"),
    "bf16": lambda: with_gradients(lif, small.bfloat16(), decay=0.5, threshold=2.0**-126, readout="mean"),
    "rates": lambda: sampled(small.abs()[0], steps=5, seed=2),
    "fp64": lambda: with_gradients(lif, normal.double() * 2.0**-1022, decay=0.5, threshold=2.0**-1022),
}

torch.set_num_threads(2)  # they start here, before the mode is another one
wide = rows.flatten().float()
expected = {name: call() for name, call in calls.items()}
same([expected["every half"][1]], [torch.where(wide == 0, 0.0, wide)], "every half, widened")
same([expected["every half"][0]], [(wide >= 2.0**-24).half()[None]], "every half, its spikes")
same(expected["gradients"], [narrowed.half()], "gradients, narrowed")
assert expected["rates"][0].sum() > 50
before = {name: call() for name, call in in_mode.items()}
assert torch.set_flush_denormal(True)
flushed = {}
for threads in (2, 1):
    torch.set_num_threads(threads)
    for name, call in calls.items():
        same(call(), expected[name], f"{name}, {threads} threads")
    for name, call in in_mode.items():
        same(call(), flushed.setdefault(name, call()), f"{name}, {threads} threads")
assert any(not torch.equal(a, b) for a, b in zip(before["fp32"], flushed["fp32"]))
torch.set_flush_denormal(False)
torch.set_num_threads(2)
for name, call in in_mode.items():
    same(call(), before[name], f"{name}, afterwards")
print("done")
"""


def test_subnormal_numbers_where_they_count_as_zero() -> None:
    """`torch.set_flush_denormal` holds for the calling thread alone: its helpers follow it, and go back."""
    assert run_python(FLUSHED) == "done\n"
