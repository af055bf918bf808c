"""A pytest plugin (`-p emulate.launches`): kernel tests run on the backend `triton` without a GPU, to count what a GPU
would compile.

The launchers run as they are, but what they launch is noted in the place of being launched; the results are then the
compiled CPU kernels'. At the end the number of different kernels is printed.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import kernel_helpers
import pytest
import torch

from esvae_kernels import backends, tiles, use_backend
from esvae_kernels.ops.bn_lif import native as bn_lif_native
from esvae_kernels.ops.bn_lif import triton as bn_lif_triton
from esvae_kernels.ops.lif import native as lif_native
from esvae_kernels.ops.lif import triton as lif_triton
from esvae_kernels.ops.poisson import native as poisson_native
from esvae_kernels.ops.poisson import triton as poisson_triton

ROOMS = {
    (lif_triton, lif_native): ("lif", "lif_backward"),
    (bn_lif_triton, bn_lif_native): ("statistics", "correct"),
    (poisson_triton, poisson_native): ("poisson", "poisson_backward"),
}
variants: set[tuple] = set()  # what Triton tells apart


def _launch(kernel: Any, grid: tuple[int, ...], **given: Any) -> None:
    if grid[0]:
        kinds = ((name, _kind(value, name.isupper())) for name, value in sorted(given.items()))
        variants.add((kernel.__name__, *kinds))


def _kind(value: Any, constant: bool) -> Any:
    """Of a tensor its type and whether it is aligned; of a number nothing, but for constants and options."""
    if isinstance(value, torch.Tensor):
        return value.dtype, value.data_ptr() % 16 == 0
    return value if constant or value is None or isinstance(value, bool) else ""


def _both(triton: ModuleType, native: ModuleType, name: str) -> Callable:
    launcher, run = getattr(triton, name), getattr(native, name)

    def call(backend: str, *arguments: Any) -> Any:
        launcher(backend, *arguments)
        return run("cpu", *arguments)

    return call


@contextmanager
def _use_kernel(kernel: str):
    with use_backend(kernel):
        yield kernel


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.write_line(f"{len(variants)} different Triton kernels")


tiles.launch = _launch
for (triton, native), names in ROOMS.items():
    for name in names:
        setattr(triton, name, _both(triton, native, name))
backends._BACKENDS["triton"] = backends._BACKENDS["triton"]._replace(why_not=lambda device: None)
backends._ORDER["cpu"] = ("triton", "reference")  # where a test forces none
kernel_helpers.BACKENDS[:] = ["reference", "triton"]
kernel_helpers.KERNELS[:] = ["triton"]
kernel_helpers.use_kernel = _use_kernel
kernel_helpers.on_gpu = lambda: True
