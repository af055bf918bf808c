"""Which backend runs, how one is forced, and what is said where it cannot run."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import ClassVar

import pytest
import torch
from kernel_helpers import BACKENDS, cpu_only, needs_compiled, one_line
from torch.utils.checkpoint import checkpoint

from esvae_kernels import available_backends, backends, lif, native, poisson, tune_allocator, use_backend
from esvae_kernels.ops.lif import native as lif_native
from esvae_kernels.ops.lif import reference as lif_reference
from esvae_kernels.ops.poisson import native as poisson_native
from esvae_kernels.ops.poisson import reference as poisson_reference

pytestmark = [needs_compiled, cpu_only("of a GPU's backends are the tests in test_gpu.py")]
CPU = torch.device("cpu")
MISSING = "the compiled module is missing (no such module)"


def call_lif() -> torch.Tensor:
    x = torch.ones(3, 2, requires_grad=True)
    return torch.autograd.grad(lif(x, decay=0.5, threshold=1.0)[0].sum(), x)[0]


def call_poisson() -> torch.Tensor:
    rate = torch.full((3, 2), 0.5, requires_grad=True)
    return torch.autograd.grad(poisson(rate, 3, seed=1).sum(), rate)[0]


CALLS = {"lif": (call_lif, lif_native, lif_reference), "poisson": (call_poisson, poisson_native, poisson_reference)}


@pytest.fixture(autouse=True)
def _no_environment(environment_anew: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ESVAE_BACKEND", raising=False)


def test_the_compiled_backend_is_there() -> None:
    """Otherwise every test of the kernels would silently run on the reference."""
    assert available_backends() == ["reference", "cpu"] == BACKENDS
    assert native.why_missing == ""
    assert native.module.__version__ == native.package_version()
    assert native.module.isa() in native.module.isas()


def test_unknown_vector_width() -> None:
    before = native.module.isa()
    one_line(lambda: native.module.set_isa("mmx"), ValueError, "isa: got 'mmx'")
    assert native.module.isa() == before


@needs_compiled
def test_a_variable_forces_the_vector_width() -> None:
    code = "import _esvae_kernels as m; from esvae_kernels import native; print(m.isa())"
    for width, line in (("baseline", "baseline"), ("mmx", "ValueError: ESVAE_ISA: got 'mmx', this processor runs")):
        where = {"env": os.environ | {"ESVAE_ISA": width}, "capture_output": True, "text": True}
        done = subprocess.run([sys.executable, "-c", code], **where)
        assert line in (done.stdout + done.stderr).strip().split("\n")[-1]


def test_the_fastest_runs_by_default() -> None:
    assert backends.pick(CPU) == "cpu"
    assert backends.pick(torch.device("meta")) == "reference"


@pytest.mark.parametrize("function", ["", "_backward"], ids=["forward", "backward"])
@pytest.mark.parametrize("op", CALLS)
def test_each_backend_runs_its_own_code(op: str, function: str, monkeypatch: pytest.MonkeyPatch) -> None:
    call, native_room, reference_room = CALLS[op]
    ran: set[str] = set()

    def spy(name: str, original: Callable) -> Callable:
        def wrapped(*arguments: object) -> object:
            ran.add(name)
            return original(*arguments)

        return wrapped

    for name, room in (("cpu", native_room), ("reference", reference_room)):
        # A reference without a backward of its own is differentiated.
        function_name = op + function if hasattr(room, op + function) else op
        monkeypatch.setattr(room, function_name, spy(name, getattr(room, function_name)))
    for name in BACKENDS:
        ran.clear()
        with use_backend(name):
            call()
        assert ran == {name}
    ran.clear()
    call()
    assert ran == {"cpu"}


@pytest.mark.parametrize("name", BACKENDS)
def test_environment_variable(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ESVAE_BACKEND", name)
    assert backends.pick(CPU) == name
    with use_backend("reference"):  # overrides it
        assert backends.pick(CPU) == "reference"


def test_empty_environment_variable_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ESVAE_BACKEND", "")
    assert backends.pick(CPU) == "cpu"


@pytest.mark.parametrize("op", CALLS)
def test_unknown_backend(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    one_line(lambda: use_backend("tpu").__enter__(), ValueError, "use_backend: got 'tpu', accepted are reference, cpu")
    monkeypatch.setenv("ESVAE_BACKEND", "tpu")
    one_line(CALLS[op][0], ValueError, "ESVAE_BACKEND: got 'tpu', accepted are reference, cpu")


def test_use_backend_nests_and_restores() -> None:
    with use_backend("reference"):
        with use_backend("cpu"):
            assert backends.pick(CPU) == "cpu"
        assert backends.pick(CPU) == "reference"
        with pytest.raises(ZeroDivisionError), use_backend("cpu"):
            raise ZeroDivisionError
        assert backends.pick(CPU) == "reference"
    assert backends.pick(CPU) == "cpu"
    with pytest.raises(ZeroDivisionError), use_backend("reference"):
        raise ZeroDivisionError
    assert backends.pick(CPU) == "cpu"


def test_use_backend_holds_for_its_thread_alone() -> None:
    seen: list[str] = []
    with use_backend("reference"):
        other = threading.Thread(target=lambda: seen.append(backends.pick(CPU)))
        other.start()
        other.join()
        assert backends.pick(CPU) == "reference"
    assert seen == ["cpu"]


def test_use_backend_of_one_thread_leaves_calls_of_another_alone() -> None:
    """Of a choice for the whole process, 13 of 26,000 such calls picked one backend and ran on another."""
    stop, x = threading.Event(), torch.randn(4, 2, 3)

    def toggle() -> None:
        while not stop.is_set():
            with use_backend("reference"):
                pass

    interval, seen = sys.getswitchinterval(), set()
    other = threading.Thread(target=toggle)
    sys.setswitchinterval(1e-6)
    other.start()
    try:
        for _ in range(300):
            lif(x, decay=0.5, threshold=0.5)
            poisson(x[0].sigmoid(), 4, seed=1)
            seen.add(backends.pick(CPU))
    finally:
        sys.setswitchinterval(interval)
        stop.set()
        other.join()
    assert seen == {"cpu"}


class Noting(torch.autograd.Function):
    """The identity, whose backward notes its thread and the backend that is picked there."""

    noted: ClassVar[list[tuple[int, str]]] = []

    @staticmethod
    def forward(ctx, x: torch.Tensor) -> torch.Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx, dx: torch.Tensor) -> torch.Tensor:
        Noting.noted.append((threading.get_ident(), backends.pick(CPU)))
        return dx


def test_use_backend_holds_in_the_threads_of_autograd() -> None:
    """Of a GPU autograd runs each backward in a thread of its own; on the CPU those that are nested deeper than 60."""

    def nested(x: torch.Tensor, depth: int) -> torch.Tensor:
        return checkpoint(nested, x, depth - 1, use_reentrant=True) if depth else Noting.apply(x)

    out = nested(torch.ones(2, requires_grad=True), 70)
    Noting.noted.clear()
    with use_backend("reference"):
        out.sum().backward()
    ((thread, backend),) = Noting.noted
    assert thread != threading.get_ident()
    assert backend == "reference"


def test_use_backend_in_generators_that_interleave() -> None:
    def forced(name: str) -> Iterator[str]:
        with use_backend(name):
            while True:
                yield backends.pick(CPU)

    first, second = forced("reference"), forced("cpu")
    assert [next(first), next(second)] == ["reference", "cpu"]
    first.close()  # which was entered first
    assert backends.pick(CPU) == "cpu"
    assert backends.forced() == "cpu"
    second.close()
    assert backends.forced() is None


def test_use_backend_decorates_and_is_entered_again() -> None:
    @use_backend("reference")
    def picked(depth: int = 0) -> str:
        return picked(depth - 1) if depth else backends.pick(CPU)

    assert picked(2) == "reference"
    assert backends.forced() is None


@needs_compiled
def test_use_backend_around_and_within_a_compiled_call() -> None:
    """Around it holds at each call; within it is refused, or the function runs uncompiled."""
    calls: list[str] = []
    x, kernel = torch.randn(4, 3), lif_native.lif

    def compiled(**options) -> Callable:
        torch._dynamo.reset()
        return torch.compile(lambda: lif(x, decay=0.5, threshold=0.5)[0], backend="aot_eager", **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lif_native, "lif", lambda *a, **k: (calls.append("cpu"), kernel(*a, **k)))
        run = compiled(fullgraph=True)
        run()
        with use_backend("reference"):
            run()
        assert calls == ["cpu"]

        def within() -> torch.Tensor:
            with use_backend("reference"):
                return lif(x, decay=0.5, threshold=0.5)[0]

        torch._dynamo.reset()
        with pytest.raises(Exception, match="use_backend"):
            torch.compile(within, fullgraph=True, backend="aot_eager")()
        torch.compile(within, backend="aot_eager")()
        assert calls == ["cpu"]


@pytest.mark.parametrize("op", CALLS)
def test_without_the_compiled_module(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By default the reference steps in; a forced backend says why it cannot run."""
    call = CALLS[op][0]
    expected = call()
    monkeypatch.setattr(native, "why_missing", MISSING)
    monkeypatch.setattr(native, "module", None)
    assert available_backends() == ["reference"]
    torch.testing.assert_close(call(), expected)
    refused = f"use_backend: got 'cpu', which cannot run: {MISSING}"
    with use_backend("cpu"):
        one_line(call, RuntimeError, refused)
    monkeypatch.setenv("ESVAE_BACKEND", "cpu")
    one_line(call, RuntimeError, refused.replace("use_backend", "ESVAE_BACKEND"))


def test_forced_on_the_wrong_device() -> None:
    with use_backend("cpu"):
        one_line(lambda: backends.pick(torch.device("meta")), RuntimeError, "use_backend: got 'cpu', which cannot run")
        with pytest.raises(RuntimeError, match="this one is on meta"):
            backends.pick(torch.device("meta"))


def test_loading_says_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    built = native.module.__version__
    monkeypatch.setattr(native, "package_version", lambda: "9.8.7")
    module, why = native._load()
    assert module is None
    assert built in why
    assert "9.8.7" in why
    assert "pip install ." in why
    monkeypatch.setitem(sys.modules, "_esvae_kernels", None)  # an import then raises ImportError
    module, why = native._load()
    assert module is None
    assert why.startswith("the compiled module is missing")
    assert "pip install ." in why


@pytest.mark.usefixtures("threads")
def test_small_work_stays_on_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """And more takes as many as torch has when it is called."""
    values = {"dtype": 1, "size": 0, "channels": 1, "inner": 1}
    seen = []
    for work in (native.SERIAL_BELOW - 1, native.SERIAL_BELOW):
        call = native.Call("batch_correction", "cpu", CPU, work, values)
        monkeypatch.setattr(call, "_pack", lambda *row: seen.append(row) or b"")
        monkeypatch.setattr(call, "_run", lambda packed: None)
        for threads in (2, 1):
            torch.set_num_threads(threads)
            call()
    at = native.module.layouts["batch_correction"][1].index("threads")
    assert [row[at] for row in seen] == [1, 1, 2, 1]


def test_tune_allocator(monkeypatch: pytest.MonkeyPatch) -> None:
    """True with glibc, False elsewhere, never an error."""
    accepted: list[tuple[int, int]] = []

    class Glibc:
        @staticmethod
        def mallopt(parameter: int, value: int) -> int:
            accepted.append((parameter, value))
            return 1

    monkeypatch.setattr(ctypes, "CDLL", lambda name: Glibc)
    assert tune_allocator() is True
    assert accepted == [(-3, 1 << 30), (-1, (1 << 31) - 1)]
    monkeypatch.setattr(Glibc, "mallopt", staticmethod(lambda parameter, value: 0))
    assert tune_allocator() is False
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    assert tune_allocator() is False

    def unavailable(name: object) -> None:
        raise OSError

    monkeypatch.setattr(ctypes, "CDLL", unavailable)
    assert tune_allocator() is False
    monkeypatch.undo()
    assert isinstance(tune_allocator(), bool)


def test_triton_is_not_offered_under_its_interpreter() -> None:
    """It lacks functions that the kernels call: `lif` raised from within Triton."""
    pytest.importorskip("triton", reason="Triton is missing")
    code = "import esvae_kernels; print(esvae_kernels.available_backends(), esvae_kernels.backends.why_not()['triton'])"
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("['reference', 'cpu'] TRITON_INTERPRET is set")
