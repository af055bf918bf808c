"""What the compiled kernels are to their callers: how little of a thread's stack they need, and how they compute in it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from kernel_helpers import cpu_only, needs_compiled

pytestmark = [needs_compiled, cpu_only("of the CPU's kernels")]


def run_python(code: str, **environment: str) -> str:
    """What a process of its own prints."""
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | environment, capture_output=True, text=True)
    assert done.returncode == 0, f"exit status {done.returncode}\n{done.stderr[-3000:]}"
    return done.stdout


SMALL_STACK = """
import threading, torch
from esvae_kernels import bn_lif, lif, poisson

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
        learnt = {k: numbers(512, low=0.1) for k in ("decay", "threshold", "gain", "rest", "v_reset", "synapse")}
        backward(lif(x, **learnt, reset="soft", readout=numbers(40), record="membrane"))
    for reset in ("hard", "delayed"):
        backward(lif(numbers(512, 32), **options, steps=100, readout="rate", v_min=-0.5, reset=reset))
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
