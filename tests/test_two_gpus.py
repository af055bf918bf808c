"""On a GPU that is not the current one: graphs and kernels, seen by a stand-in for `torch.cuda`."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest
import torch
from kernel_helpers import needs_compiled
from parts import bn_lif, lif
from torch import Tensor
from two_gpus import SECOND, OnSecond, TwoGpus

from esvae.graph import WARM, Replay
from esvae.precision import resolve_precision
from esvae_kernels import backends, native, poisson, use_backend


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Iterator[TwoGpus]:
    monkeypatch.setattr(torch.autograd, "has_torch_function", lambda tensors: False)  # or `grad` leaves OnSecond
    with OnSecond():
        yield TwoGpus(monkeypatch)


# ------------------------------------------------------------------------------------------------------------- graphs


def doubling(gpus: TwoGpus, currents: list[int] | None = None) -> Callable[[Tensor], Tensor]:
    """A function of one launch; `currents` gets the GPU that is current at each call."""

    def function(x: Tensor) -> Tensor:
        (currents if currents is not None else []).append(gpus.current)
        out = torch.zeros_like(x)
        gpus.launch(x, lambda: out.copy_(2 * x))
        return out

    return function


def test_a_graph_on_a_gpu_that_is_not_current(gpus: TwoGpus) -> None:
    """It is replayed with every new input, and Python runs no more than for warm-up and capture."""
    currents: list[int] = []
    replay = Replay(doubling(gpus, currents))
    for k in range(WARM + 4):
        assert replay(torch.full((3,), float(k))).tolist() == [2.0 * k] * 3
    assert currents == [SECOND.index] * (WARM + 1)
    assert gpus.current == 0


def test_one_stream_for_warm_up_and_capture(gpus: TwoGpus) -> None:
    """Each keeps the memory of its activations; that of other shapes is taken over."""
    before, replay = len(gpus.made), Replay(doubling(gpus))
    for size in (3, 5):
        for _ in range(WARM + 2):
            replay(torch.zeros(size))
    (made,) = gpus.made[before:]
    assert made.device == SECOND


@pytest.mark.parametrize("raised", [RuntimeError, KeyboardInterrupt])
def test_a_capture_that_fails_is_told_and_done_again(gpus: TwoGpus, raised: type[BaseException]) -> None:
    double, fails = doubling(gpus), True

    def function(x: Tensor) -> Tensor:
        if gpus.recording and fails:
            raise raised("in the capture")
        return double(x)

    replay = Replay(function)
    for k in range(WARM):
        replay(torch.full((3,), float(k)))
    with pytest.raises(raised, match="in the capture"):
        replay(torch.ones(3))
    assert replay.graph is None
    fails = False
    for k in range(WARM + 3):
        assert replay.graph is None or k > WARM
        assert replay(torch.full((3,), float(k))).tolist() == [2.0 * k] * 3
    assert replay.graph is not None


def test_precision_is_that_of_the_gpu_that_trains(gpus: TwoGpus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: gpus.current == SECOND.index)
    assert resolve_precision("auto", SECOND) == "bf16"
    assert resolve_precision("auto", torch.device("cuda")) == "fp32"


# ------------------------------------------------------------------------------------------------------------ kernels

OPTIONS = {"decay": 0.5, "threshold": 0.4}
CHANNELS = 8


def gradients(outputs: tuple[Tensor, ...], *inputs: Tensor) -> None:
    torch.autograd.grad(outputs, inputs, [torch.ones_like(output) for output in outputs])


def run_lif() -> None:
    x, decay = (torch.ones(s).requires_grad_() for s in ((20, 4, CHANNELS, 6), (CHANNELS,)))
    gradients(lif(x, **OPTIONS | {"decay": decay}), x, decay)


def run_bn_lif() -> None:
    y, weight, bias = (torch.ones(s).requires_grad_() for s in ((20, 4, CHANNELS, 6), (CHANNELS,), (CHANNELS,)))
    mean, variance = torch.zeros(CHANNELS), torch.ones(CHANNELS)
    gradients(bn_lif(y, weight, bias, mean, variance, training=True, **OPTIONS), y, weight, bias)


def run_poisson() -> None:
    rate = torch.full((4, 30), 0.5).requires_grad_()
    gradients((poisson(rate, 7, seed=3),), rate)


CALLS = {  # and the kernels of Triton, the functions of the compiled module
    "lif": (run_lif, ["_lif_forward", "_lif_backward"], ["lif_forward", "lif_backward"]),
    "bn_lif": (
        run_bn_lif,
        ["_bn_moments", "_bn_finish", "_lif_forward", "_lif_backward", "_bn_correct"],
        ["batch_statistics", "lif_forward", "lif_backward", "batch_correction"],
    ),
    "poisson": (run_poisson, ["_poisson_forward", "_poisson_backward"], ["poisson_forward", "poisson_backward"]),
}
every_call = pytest.mark.parametrize("op", CALLS)


@every_call
def test_triton_launches_on_the_tensors_gpu(op: str, gpus: TwoGpus, monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton takes the current one."""
    jit = pytest.importorskip("triton.runtime.jit", reason="Triton is missing")
    if jit.knobs.runtime.interpret:
        pytest.skip("the interpreter launches nothing")
    run, kernels, _ = CALLS[op]
    launched: list[tuple[str, int]] = []
    monkeypatch.setattr(
        jit.JITFunction, "run", lambda kernel, *a, **k: launched.append((kernel.__name__, gpus.current))
    )
    monkeypatch.setitem(
        backends._BACKENDS, "triton", backends._BACKENDS["triton"]._replace(why_not=lambda device: None)
    )
    with use_backend("triton"):
        run()
    assert launched == [(kernel, SECOND.index) for kernel in kernels]
    assert gpus.current == 0


class Compiled:
    """In the place of the compiled module's CUDA part."""

    emulated = False

    def __init__(self, gpus: TwoGpus) -> None:
        self.gpus, self.launched, self.layouts = gpus, [], native.module.layouts

    def why_not(self) -> str:
        return ""

    def __getattr__(self, function: str) -> Callable[[bytes], int]:
        def call(packed: bytes) -> int:
            form, names = self.layouts[function]
            values = dict(zip(names, struct.unpack(form, packed), strict=True))
            if not function.endswith("_workspace"):
                self.launched.append((function, self.gpus.current, values["device"], values["stream"]))
            return 1

        return call


@needs_compiled
@every_call
def test_cuda_launches_on_the_tensors_gpu(op: str, gpus: TwoGpus, monkeypatch: pytest.MonkeyPatch) -> None:
    """In that one's current stream."""
    run, _, functions = CALLS[op]
    compiled = Compiled(gpus)
    monkeypatch.setattr(native, "why_missing", "")
    monkeypatch.setattr(native, "module", SimpleNamespace(cuda=compiled))
    monkeypatch.setattr(native, "_function", native._function.__wrapped__)  # which are kept
    with use_backend("cuda"):
        run()
    stream = gpus.streams[SECOND.index].cuda_stream
    assert compiled.launched == [(function, SECOND.index, SECOND.index, stream) for function in functions]
    assert gpus.current == 0
