"""The modules are the functions, with their options kept."""

from __future__ import annotations

import pytest
import torch
from kernel_helpers import assert_same_bits, randn

from esvae_kernels import lif, nn, poisson
from esvae_kernels.surrogate import Rectangular, Sigmoid, StraightThrough

OPTIONS = {
    "decay": 0.9,
    "threshold": 0.4,
    "gain": 0.7,
    "rest": 0.05,
    "reset": "soft",
    "v_reset": -0.1,
    "detach_reset": True,
    "strict": True,
    "surrogate": Sigmoid(alpha=2.0),
}


@pytest.mark.parametrize("readout", [None, "rate", [0.5] * 20], ids=["spikes", "rate", "weights"])
def test_lif_is_the_function(readout: object) -> None:
    x, v = randn(20, 6, 5).requires_grad_(), randn(6, 5, seed=1).requires_grad_()
    module = nn.LIF(**OPTIONS, readout=readout, return_v=True)
    outputs, expected = module(x, v), lif(x, v, **OPTIONS, readout=readout)
    for a, b in zip(outputs, expected, strict=True):
        assert_same_bits(a, b)
    gradients = [torch.autograd.grad([o.sum() for o in pair], (x, v)) for pair in (outputs, expected)]
    for a, b in zip(*gradients, strict=True):
        assert_same_bits(a, b)


def test_every_option_reaches_the_function() -> None:
    """With each option changed alone, the module still equals the function."""
    x = randn(20, 50).requires_grad_()
    changes = {"decay": 0.5, "threshold": 0.6, "gain": 1.1, "rest": 0.0, "reset": "hard", "v_reset": 0.2}
    changes |= {"detach_reset": False, "strict": False, "surrogate": Rectangular(0.5)}
    assert set(changes) == set(OPTIONS)
    for name, value in changes.items():
        options = OPTIONS | {"reset": "hard"} | {name: value}
        spikes, expected = nn.LIF(**options)(x), lif(x, **options)[0]
        assert_same_bits(spikes, expected)
        gradients = [torch.autograd.grad((s * randn(20, 50, seed=1)).sum(), x)[0] for s in (spikes, expected)]
        assert_same_bits(*gradients)


def test_lif_defaults_are_those_of_the_function() -> None:
    x = randn(20, 6).requires_grad_()
    spikes, expected = nn.LIF(decay=0.5, threshold=0.3)(x), lif(x, decay=0.5, threshold=0.3)[0]
    assert_same_bits(spikes, expected)
    assert_same_bits(*(torch.autograd.grad(s.sum(), x)[0] for s in (spikes, expected)))


def test_lif_returns_v_on_request_and_keeps_no_state() -> None:
    module, x = nn.LIF(decay=0.5, threshold=0.3), randn(20, 6)
    first = module(x)
    assert isinstance(first, torch.Tensor)
    assert_same_bits(module(x), first)
    with_v = nn.LIF(decay=0.5, threshold=0.3, return_v=True)
    start, v = with_v(x[:7])
    rest, v = with_v(x[7:], v)
    assert_same_bits(torch.cat([start, rest]), first)
    assert_same_bits(v, with_v(x)[1])
    assert module.state_dict() == {}
    assert list(module.parameters()) == []


def test_lif_with_a_constant_current() -> None:
    x = randn(6, 5)
    assert_same_bits(nn.LIF(**OPTIONS)(x, steps=9), lif(x, steps=9, **OPTIONS)[0])


def test_repr_tells_the_options() -> None:
    text = repr(nn.LIF(**OPTIONS, readout="rate"))
    for name, value in OPTIONS.items():
        assert f"{name}={value!r}" in text
    assert "readout='rate'" in text
    text = repr(nn.Poisson(16, surrogate=StraightThrough()))
    assert text == f"Poisson(steps=16, surrogate={StraightThrough()!r})"


def test_poisson_is_the_function() -> None:
    rate = torch.rand(5, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    ids = torch.arange(5) + 100
    for surrogate in (Rectangular(0.5), StraightThrough()):
        spikes = nn.Poisson(7, surrogate=surrogate)(rate, sample_ids=ids, seed=3)
        expected = poisson(rate, 7, surrogate=surrogate, sample_ids=ids, seed=3)
        assert_same_bits(spikes, expected)
        assert_same_bits(*(torch.autograd.grad(s.sum(), rate)[0] for s in (spikes, expected)))
    generators = [torch.Generator().manual_seed(4) for _ in range(2)]
    assert_same_bits(nn.Poisson(7)(rate, generator=generators[0]), poisson(rate, 7, generator=generators[1]))


def test_poisson_defaults_are_those_of_the_function() -> None:
    rate = torch.rand(5, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    spikes, expected = nn.Poisson(7)(rate, seed=3), poisson(rate, 7, seed=3)
    assert_same_bits(*(torch.autograd.grad(s.sum(), rate)[0] for s in (spikes, expected)))


def test_poisson_encodes_images_as_rates() -> None:
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    spikes = nn.Poisson(2000)(images, seed=1)
    assert spikes.shape == (2000, 2, 3, 8, 8)
    assert set(spikes.unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(spikes.mean(0), images, rtol=0, atol=0.06)  # 5 standard deviations


def test_poisson_checks_rates_on_request() -> None:
    with pytest.raises(ValueError, match=r"^rate: got values that are NaN or outside \[0, 1\]"):
        nn.Poisson(4, check_rates=True)(torch.tensor([0.5, 1.5]), seed=1)
    assert nn.Poisson(4)(torch.tensor([-1.0, 1.5]), seed=1).mean(0).tolist() == [0, 1]


def test_modules_compose() -> None:
    model = torch.nn.Sequential(nn.Poisson(6), torch.nn.Linear(5, 4), nn.LIF(decay=0.5, threshold=0.1, readout="rate"))
    rate = torch.rand(3, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    out = model(rate)
    assert out.shape == (3, 4)
    out.sum().backward()
    assert rate.grad.isfinite().all()
    assert model[1].weight.grad.abs().sum() > 0
