"""The Triton kernels of neurons from equations, under Triton's interpreter, against the reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from kernel_helpers import assert_near, assert_same_bits, channels_last, randn, uniform
from test_neuron import ALIF, KINDS, NEURONS, TOLERANCE, inputs_of, outcome, parameters_of
from triton_helpers import interpreted  # noqa: F401

from esvae_kernels.neurons import alif
from esvae_kernels.scan import triton as kernels
from esvae_kernels.scan.printed import printed
from esvae_kernels.surrogate import Sigmoid, Triangular

pytestmark = pytest.mark.usefixtures("interpreted")
DTYPES = (torch.float32, torch.float64, torch.bfloat16)


def agree(name: str, tensors: list[torch.Tensor], **options: Any) -> None:
    outputs, gradients = outcome("triton", name, tensors, **options)
    wanted, expected = outcome("reference", name, tensors, **options)
    for ours, theirs in zip(outputs, wanted, strict=True):
        if name == "exponential" and tensors[0].dtype == torch.float64:
            assert_near(ours, theirs, 1e-12)
        else:
            assert_same_bits(ours, theirs)
    for ours, theirs in zip(gradients, expected, strict=True):
        scale = max(1.0, theirs.abs().max().item()) if theirs.numel() else 1.0
        assert_near(ours / scale, theirs / scale, TOLERANCE[tensors[0].dtype])


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NEURONS)
def test_equals_the_reference(name: str, kind: str, dtype: torch.dtype) -> None:
    state = torch.float64 if dtype == torch.float64 else torch.float32
    for steps, inner in ((1, (3, 2)), (19, (2, 3, 5)), (35, (1, 4))):
        tensors = [t.requires_grad_() for t in inputs_of(name, (steps, *inner), dtype)]
        agree(name, tensors, **parameters_of(name, kind, inner, state))


@pytest.mark.parametrize("name", NEURONS)
def test_options(name: str) -> None:
    options = NEURONS[name][2]
    tensors = [t.requires_grad_() for t in inputs_of(name, (18, 2, 3))]
    agree(name, tensors, surrogate=Sigmoid(3.0, shift=0.1), **options)
    agree(name, tensors, readout="mean", **options)
    agree(name, tensors, readout=[0.1 * k for k in range(18)], surrogate=Triangular(1.2), **options)
    constant = [t.requires_grad_() for t in inputs_of(name, (2, 3))]
    agree(name, constant, steps=21, **options)
    last = [channels_last(t).detach().requires_grad_() for t in inputs_of(name, (5, 2, 3, 4, 4))]
    for kind in ("channel", "neuron"):
        agree(name, last, **parameters_of(name, kind, (2, 3, 4, 4), torch.float32))


def test_states_and_a_part() -> None:
    x, v = randn(40, 2, 3), uniform(2, 3).requires_grad_()
    agree("alif", [x, v, randn(2, 3, seed=2).requires_grad_()], **ALIF)
    agree("alif", [x], **(ALIF | {"jump": torch.full((3,), 0.2, requires_grad=True)}))


def test_the_source_lies_in_a_folder_of_ones_own(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    kernels._folder.cache_clear()
    kernels._kernels.cache_clear()
    try:
        alif(randn(3, 2, 3), **ALIF)
        (path,) = (tmp_path / "esvae_kernels" / "neurons").iterdir()
        text = path.read_text()
        assert path.parent.stat().st_mode & 0o777 == 0o700
        assert "n_decay * n_v" in text
        path.write_text("raise SystemError")  # what is there is compared with what belongs there
        kernels._kernels.cache_clear()
        alif(randn(3, 2, 3), **ALIF)
        assert path.read_text() == text
        path.parent.chmod(0o777)
        kernels._folder.cache_clear()
        assert kernels._folder() != path.parent
    finally:
        kernels._folder.cache_clear()
        kernels._kernels.cache_clear()


def test_the_text_is_that_of_the_neuron() -> None:
    from esvae_kernels.scan.options import Options

    o = Options(alif.graph.text(), 3, 2.0, 1.0, 0.0, True, 0, torch.float32, False, ("membrane",))
    made = printed(o, True)
    assert made == printed(o, True)
    compile(made.text, "neuron.py", "exec")
    assert made.literals == (1.0,) or set(made.literals) <= {0.0, 1.0}
