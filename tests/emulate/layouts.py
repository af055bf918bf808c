"""How threads are laid over tensors, where that differs from the CPU's kernels: run by ../test_cuda_emulated.py."""

from __future__ import annotations

import itertools

import pytest
import torch
from kernel_helpers import DTYPES, assert_gradients, assert_same_bits, assert_sums, channels_last, flat, randn, run_lif
from kernel_helpers import parameters as per_channel
from torch import Tensor

from esvae_kernels import poisson, use_backend
from esvae_kernels.ops.bn_lif import native as bn_native
from esvae_kernels.ops.bn_lif import reference as bn_reference

SHAPES = {
    "one block": (2, 8, 4, 4),
    "channels narrower than a group of 8 vectors": (3, 40, 5, 2),
    "channels that make no whole vectors": (2, 7, 3, 3),
    "places that make no whole vectors": (5, 6, 7, 7),
    "many blocks": (9, 16, 14, 14),
}
LAYOUTS = {"contiguous": lambda x: x, "channels-last": channels_last}


def shifted(tensor: Tensor) -> Tensor:
    """The same values in the same layout, one element away from any alignment."""
    room = tensor.new_empty(tensor.numel() + 1)
    return room[1:].as_strided(tensor.shape, tensor.stride(), 1).copy_(tensor)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_sums_by_channel(shape: tuple[int, ...], layout: str) -> None:
    """Every parameter's gradient, over two chunks; the same in every run, and whichever vectors the tensor allows."""
    for dtype in (torch.float32, torch.float64):
        x, v = (
            LAYOUTS[layout](randn(18, *shape, dtype=dtype)),
            LAYOUTS[layout](randn(*shape, seed=1, dtype=dtype)[None])[0],
        )
        for reset in ("soft", "delayed", "at_once"):  # at once, and a synapse: the extended kernels
            options = per_channel(shape[1], dtype=dtype, synaptic_decay=reset == "at_once")
            options |= {"readout": torch.linspace(0.1, 1, 18, dtype=torch.float64)}
            *outputs, gradients = run_lif("cuda", x, v, reset=reset, **options)
            *expected, wanted = run_lif("reference", x, v, reset=reset, **options)
            for a, e in zip(outputs, expected, strict=True):
                assert_same_bits(a, e)
            assert_gradients(gradients[:2], wanted[:2])
            assert_sums(gradients[2:], wanted[2:], terms=x.numel(), computed_in=dtype)
            again = flat(run_lif("cuda", x, v, reset=reset, **options))
            for a, e in zip(again, (*outputs, *gradients), strict=True):
                assert_same_bits(a, e)


@pytest.mark.parametrize(("x_dtype", "out_dtype"), [*itertools.product(DTYPES.values(), repeat=2)])
def test_vectors_and_single_elements_agree(x_dtype: torch.dtype, out_dtype: torch.dtype) -> None:
    x = randn(19, 3, 8, 64, dtype=x_dtype)
    options = {"decay": 0.9, "threshold": 0.4, "reset": "soft", "record": "membrane", "dtype": out_dtype}
    results = [flat(run_lif(backend, t, **options)) for backend, t in
               (("cuda", x), ("cuda", shifted(x)), ("reference", x))]  # fmt: skip
    for vectors, single, expected in zip(*results, strict=True):
        assert_same_bits(vectors, single)
        torch.testing.assert_close(vectors, expected)
    rate = randn(5, 64, seed=3, dtype=x_dtype).sigmoid()
    spikes = []
    for backend, r in (("cuda", rate), ("cuda", shifted(rate)), ("reference", rate)):
        with use_backend(backend):
            spikes.append(poisson(r, 6, seed=5, dtype=out_dtype))
    assert torch.equal(spikes[0], spikes[1])
    assert torch.equal(spikes[0], spikes[2])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_statistics_and_correction(shape: tuple[int, ...], layout: str) -> None:
    y = LAYOUTS[layout](randn(5, *shape) + 100)
    for tensor in (y, shifted(y)):
        moments = bn_native.statistics("cuda", tensor, 2, layout != "contiguous")
        dy, factors = torch.empty_like(y), randn(2, shape[1], seed=2)
        bn_native.correct("cuda", tensor, y, factors, dy, 2, layout != "contiguous")
        for a, e in zip(moments, bn_reference.statistics(y, 2), strict=True):
            torch.testing.assert_close(a, e, rtol=1e-12, atol=1e-12)
        assert_same_bits(dy, bn_reference.correct(y, y, factors, 2))
