"""The Triton kernels under Triton's interpreter: what it needs, and whether it is on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from esvae_kernels import use_backend

triton = pytest.importorskip("triton", reason="Triton is missing")
if not triton.knobs.runtime.interpret:
    pytest.skip("run by itself: TRITON_INTERPRET=1 pytest tests/test_triton_*.py", allow_module_level=True)


def _elementwise(function: Callable[..., np.ndarray]) -> Callable[..., Any]:
    """A function of libdevice, which the interpreter lacks, by numpy; arguments are broadcast."""
    import triton.language as tl
    from triton.runtime.interpreter import TensorHandle

    def call(*tensors: Any) -> Any:
        with np.errstate(all="ignore"):
            data = function(*(t.handle.data for t in tensors))
        handle = TensorHandle(data, tensors[-1].dtype)
        return tl.tensor(handle, tensors[-1].type)

    return call


def _launch(kernel: Any, grid: tuple[int], *, num_warps: int, maxnreg: int | None = None, **arguments: Any) -> None:
    """`tiles.launch` for the interpreter, which would take a Python float for fp32."""
    import triton.language as tl
    from triton.runtime.interpreter import TensorHandle

    def exact(value: Any) -> Any:
        if not isinstance(value, float):
            return value
        return tl.tensor(TensorHandle(np.array([value], np.float64), tl.float64), tl.float64)

    if grid[0]:
        with np.errstate(all="ignore"):  # infinities and NaN are tested too
            kernel[grid](**{name: exact(value) for name, value in arguments.items()})


def _splat(builder: Any, ret_ty: Any, arg: Any) -> Any:
    """`create_splat` that leaves the result of a comparison what it is; the interpreter makes numbers of it."""
    from triton.runtime.interpreter import TensorHandle, _get_np_dtype

    element = ret_ty.scalar
    return TensorHandle(np.full(ret_ty.shape, arg.data.flat[0], dtype=_get_np_dtype(element)), element)


def _cast(cast: Callable[..., Any]) -> Callable[..., Any]:
    """`cast_impl` that rounds to bf16 as the hardware does; the interpreter drops the low bits."""
    import triton.language as tl
    from triton.runtime.interpreter import TensorHandle

    def call(builder: Any, src: Any, dst_type: Any) -> Any:
        if dst_type.scalar != tl.bfloat16 or src.dtype.scalar not in (tl.float32, tl.float64):
            return cast(builder, src, dst_type)
        rounded = torch.from_numpy(np.ascontiguousarray(src.data)).to(torch.bfloat16).view(torch.int16)
        return TensorHandle(rounded.numpy().view(np.uint16), tl.bfloat16)

    return call


def _whole_numbers(patch: Callable[..., None]) -> Callable[..., None]:
    """`_patch_lang_tensor` whose tensors of one element are integers to `range`; numpy 2.4 refuses Triton 3.6's way."""

    def call(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    return call


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The backend `triton` under the interpreter, with what that lacks."""
    from triton.language.extra import libdevice
    from triton.runtime import interpreter
    from triton.runtime.interpreter import InterpreterBuilder

    from esvae_kernels import backends, tiles

    if triton.__version__.startswith("3.6."):
        monkeypatch.setattr(interpreter, "_patch_lang_tensor", _whole_numbers(interpreter._patch_lang_tensor))

    able = backends._BACKENDS["triton"]._replace(why_not=lambda device: None)  # with what follows
    monkeypatch.setitem(backends._BACKENDS, "triton", able)
    monkeypatch.setattr(tiles, "launch", _launch)
    monkeypatch.setattr(libdevice, "atan", _elementwise(np.arctan))
    monkeypatch.setattr(libdevice, "tanh", _elementwise(np.tanh))
    monkeypatch.setattr(libdevice, "trunc", _elementwise(np.trunc))
    monkeypatch.setattr(libdevice, "fast_dividef", _elementwise(np.divide))
    monkeypatch.setattr(InterpreterBuilder, "create_splat", _splat)
    monkeypatch.setattr(InterpreterBuilder, "cast_impl", _cast(InterpreterBuilder.cast_impl))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with use_backend("triton"):
        yield
    torch.set_num_threads(threads)
