"""The CUDA kernels, compiled as C++ and run on host memory (emulate/), against the reference: the kernel tests' grids
of options, in a process of their own where `_esvae_kernels.cuda` is the emulated one. With `--all` they run all there,
too, and under sanitizers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from sampling import COMPARISONS, takes_all

TESTS = Path(__file__).parent
FEW_COMPARISONS = "(equal_the_reference or equals_the_reference or batch_norm_and_lif or align_with_blocks)"
pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux") or shutil.which("g++") is None, reason="the emulator needs g++ and Linux"
)


def run(*arguments: str, **environment: str) -> None:
    command = [sys.executable, "-m", "pytest", "-p", "emulate.plugin", "-p", "no:cacheprovider", "-q", "-x", *arguments]
    path = os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        command, cwd=TESTS.parent, env=os.environ | {"PYTHONPATH": path} | environment, capture_output=True, text=True
    )
    report = done.stdout[-6000:] + done.stderr[-3000:]
    assert done.returncode == 0, report
    print(done.stdout.splitlines()[-1])


def test_kernels_equal_the_reference(pytestconfig: pytest.Config) -> None:
    files = [str(TESTS / f"test_{op}.py") for op in ("lif", "bn_lif", "poisson", "surrogate")]
    everything = takes_all(pytestconfig)
    chosen = COMPARISONS if everything else FEW_COMPARISONS
    # A block for each of 17001 channels takes long here.
    run(*files, "-m", "not slow", *["--all"] * everything, "-k", f"{chosen} and not C17001")


@pytest.mark.slow
def test_layouts_within_bounds() -> None:
    """Under AddressSanitizer and UndefinedBehaviorSanitizer: every access to a tensor, to a block's shared memory, and
    its alignment. Python is not built with them, so the runtime is preloaded, with libstdc++, or it does not find what
    throws."""
    find = [["g++", f"-print-file-name=lib{name}.so"] for name in ("asan", "stdc++")]
    libraries = [subprocess.run(f, capture_output=True, text=True, check=True).stdout.strip() for f in find]
    if not all(map(os.path.isabs, libraries)):
        pytest.skip("g++ has no AddressSanitizer")
    run(
        str(TESTS / "emulate/layouts.py"),
        "--capture=sys",
        EMULATE_SANITIZE="address,undefined",
        LD_PRELOAD=" ".join(libraries),
        ASAN_OPTIONS="detect_leaks=0",
        UBSAN_OPTIONS="print_stacktrace=1",
    )
