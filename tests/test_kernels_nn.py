"""The modules are the functions, with their options kept."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from kernel_helpers import (
    BACKENDS,
    DEVICE,
    assert_near,
    assert_same_bits,
    bn_lif_by_torch,
    channels_last,
    one_line,
    randn,
    uniform,
)
from parts import BNLIF, LIF, bn_lif, lif, whole
from sklearn.datasets import load_digits
from torch import Tensor

from esvae_kernels import nn, poisson
from esvae_kernels.surrogate import ATan, Rectangular, Sigmoid, StraightThrough

on_both = pytest.mark.parametrize("backend", BACKENDS, indirect=True)
OPTIONS = {
    "decay": 0.9,
    "threshold": 0.4,
    "gain": 0.7,
    "bias": 0.05,
    "reset": "soft",
    "v_reset": -0.1,
    "synaptic_decay": None,
    "v_min": None,
    "detach_reset": True,
    "strict": True,
    "several": False,
    "surrogate": Sigmoid(alpha=2.0),
}


def without(options: dict, name: str) -> dict:
    return {key: value for key, value in options.items() if key != name}


@pytest.mark.parametrize("readout", [None, "mean", [0.5] * 20], ids=["spikes", "rate", "weights"])
def test_lif_is_the_function(readout: object) -> None:
    x, v = randn(20, 6, 5).requires_grad_(), randn(6, 5, seed=1).requires_grad_()
    module = LIF(**OPTIONS, readout=readout, return_state=True)
    outputs, expected = module(x, v), lif(x, v, **OPTIONS, readout=readout)
    for a, b in zip(outputs, expected, strict=True):
        assert_same_bits(a, b)
    gradients = [torch.autograd.grad([o.sum() for o in pair], (x, v)) for pair in (outputs, expected)]
    for a, b in zip(*gradients, strict=True):
        assert_same_bits(a, b)


def test_every_option_reaches_the_function() -> None:
    """With each option changed alone, the module still equals the function."""
    x = randn(20, 50).requires_grad_()
    changes = {"decay": 0.5, "threshold": 0.6, "gain": 1.1, "bias": 0.0, "reset": "hard", "v_reset": 0.2}
    changes |= {"detach_reset": False, "strict": False, "surrogate": Rectangular(0.5)}
    changes |= {"synaptic_decay": 0.5, "v_min": -0.2, "several": True}
    assert set(changes) == set(OPTIONS)
    for name, value in changes.items():
        options = OPTIONS | {"reset": "hard", "strict": name != "several"} | {name: value}
        spikes, expected = LIF(**options)(x), lif(x, **options)[0]
        assert_same_bits(spikes, expected)
        gradients = [torch.autograd.grad((s * randn(20, 50, seed=1)).sum(), x)[0] for s in (spikes, expected)]
        assert_same_bits(*gradients)


def test_lif_defaults_are_those_of_the_function() -> None:
    x = randn(20, 6).requires_grad_()
    spikes, expected = LIF(decay=0.5, threshold=0.3)(x), lif(x, decay=0.5, threshold=0.3)[0]
    assert_same_bits(spikes, expected)
    assert_same_bits(*(torch.autograd.grad(s.sum(), x)[0] for s in (spikes, expected)))


def test_lif_returns_v_on_request_and_keeps_no_state() -> None:
    module, x = LIF(decay=0.5, threshold=0.3), randn(20, 6)
    first = module(x)
    assert isinstance(first, torch.Tensor)
    assert_same_bits(module(x), first)
    with_v = LIF(decay=0.5, threshold=0.3, return_state=True)
    start, v = with_v(x[:7])
    rest, v = with_v(x[7:], v)
    assert_same_bits(torch.cat([start, rest]), first)
    assert_same_bits(v, with_v(x)[1])
    assert module.state_dict() == {}
    assert list(module.parameters()) == []


def test_lif_with_a_constant_current() -> None:
    x = randn(6, 5)
    assert_same_bits(LIF(**OPTIONS)(x, steps=9), lif(x, steps=9, **OPTIONS)[0])


def test_repr_tells_the_options() -> None:
    text = repr(LIF(**OPTIONS, readout="mean"))
    for name, value in whole(**OPTIONS).items():
        assert f"{name}={value!r}" in text
    assert "readout='mean'" in text
    text = repr(nn.Poisson(16, surrogate=StraightThrough()))
    assert text == f"Poisson(steps=16, surrogate={StraightThrough()!r})"
    assert repr(nn.Poisson(16, stream=3)) == f"Poisson(steps=16, surrogate={Rectangular(0.5)!r}, stream=3)"


def test_poisson_is_the_function() -> None:
    rate = uniform(5, 3).requires_grad_()
    ids = torch.arange(5) + 100
    for surrogate in (Rectangular(0.5), StraightThrough()):
        spikes = nn.Poisson(7, surrogate=surrogate)(rate, sample_ids=ids, seed=3)
        expected = poisson(rate, 7, surrogate=surrogate, sample_ids=ids, seed=3)
        assert_same_bits(spikes, expected)
        assert_same_bits(*(torch.autograd.grad(s.sum(), rate)[0] for s in (spikes, expected)))
    generators = [torch.Generator(DEVICE).manual_seed(4) for _ in range(2)]
    assert_same_bits(nn.Poisson(7)(rate, generator=generators[0]), poisson(rate, 7, generator=generators[1]))


def test_poisson_defaults_are_those_of_the_function() -> None:
    rate = uniform(5, 3).requires_grad_()
    spikes, expected = nn.Poisson(7)(rate, seed=3), poisson(rate, 7, seed=3)
    assert_same_bits(*(torch.autograd.grad(s.sum(), rate)[0] for s in (spikes, expected)))


def test_poisson_has_a_stream() -> None:
    rate = uniform(5, 3)
    assert_same_bits(nn.Poisson(7, stream=2)(rate, seed=3), poisson(rate, 7, seed=3, stream=2))
    with pytest.raises(ValueError, match=r"^stream: got -1"):
        nn.Poisson(7, stream=-1)


def test_poisson_encodes_images_as_rates() -> None:
    images = uniform(2, 3, 8, 8)
    spikes = nn.Poisson(2000)(images, seed=1)
    assert spikes.shape == (2000, 2, 3, 8, 8)
    assert set(spikes.unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(spikes.mean(0), images, rtol=0, atol=0.06)  # 5 standard deviations


def test_poisson_checks_rates_on_request() -> None:
    with pytest.raises(ValueError, match=r"^rate: got values that are NaN or outside \[0, 1\]"):
        nn.Poisson(4, check_rates=True)(torch.tensor([0.5, 1.5]), seed=1)
    assert nn.Poisson(4)(torch.tensor([-1.0, 1.5]), seed=1).mean(0).tolist() == [0, 1]


def test_modules_compose() -> None:
    model = torch.nn.Sequential(nn.Poisson(6), torch.nn.Linear(5, 4), LIF(decay=0.5, threshold=0.1, readout="mean"))
    rate = uniform(3, 5).requires_grad_()
    out = model(rate)
    assert out.shape == (3, 4)
    out.sum().backward()
    assert rate.grad.isfinite().all()
    assert model[1].weight.grad.abs().sum() > 0


# -------------------------------------------------------------------------------- options that are tensors


def tensor_options() -> dict[str, Tensor]:
    """Two parameters, two buffers, of one element and per channel."""
    return {
        "decay": torch.nn.Parameter(torch.linspace(0.3, 0.9, 6)),
        "threshold": torch.linspace(0.2, 0.6, 6),
        "bias": torch.nn.Parameter(torch.tensor([0.05])),
        "gain": torch.tensor([0.7]),
    }


def learnt_lif(**more) -> nn.LIF:
    return LIF(**tensor_options(), reset="soft", surrogate=Sigmoid(alpha=2.0), **more)


def test_tensors_are_buffers_and_parameters() -> None:
    module, x = learnt_lif(), randn(20, 4, 6)
    assert {k for k, _ in module.named_parameters()} == {"decay", "bias"}
    assert {k for k, _ in module.named_buffers()} == {"threshold", "gain"}
    given = tensor_options()
    expected, _ = lif(x, **given, reset="soft", surrogate=Sigmoid(alpha=2.0))
    assert_same_bits(module(x), expected)
    module(x).square().sum().backward()
    expected.square().sum().backward()
    for key in ("decay", "bias"):
        assert given[key].grad.abs().sum() > 0
        assert_same_bits(getattr(module, key).grad, given[key].grad)
    text = repr(module)
    assert "decay=tensor(6,)" in text
    assert "reset=Soft(detach=False)" in text


def test_a_learnt_option_is_the_one_that_is_used() -> None:
    module, x = learnt_lif(), randn(20, 4, 6)
    before = module(x)
    with torch.no_grad():
        module.threshold += 0.5
        module.decay *= 0.5
    changed = {k: t.detach() for k, t in module.options.items() if isinstance(t, Tensor)}
    assert not torch.equal(module(x), before)
    assert_same_bits(module(x), lif(x, **changed, reset="soft", surrogate=Sigmoid(alpha=2.0))[0])


def test_state_dict_round_trip() -> None:
    module, x = learnt_lif(readout=torch.nn.Parameter(randn(20, dtype=torch.float64))), randn(20, 4, 6)
    assert set(module.state_dict()) == {"decay", "bias", "threshold", "gain", "readout"}
    other = LIF(
        decay=torch.nn.Parameter(torch.zeros(6)),
        threshold=torch.zeros(6),
        bias=torch.nn.Parameter(torch.zeros(1)),
        gain=torch.zeros(1),
        reset="soft",
        surrogate=Sigmoid(alpha=2.0),
        readout=torch.nn.Parameter(torch.zeros(20, dtype=torch.float64)),
    )
    assert not torch.equal(other(x), module(x))
    other.load_state_dict(module.state_dict())
    assert_same_bits(other(x), module(x))


def copies(module: torch.nn.Module) -> list[torch.nn.Module]:
    return [copy.deepcopy(module), pickle.loads(pickle.dumps(module))]


def test_copies_of_a_lif_are_independent() -> None:
    module, x = learnt_lif(readout="mean", out_dtype=torch.bfloat16), randn(20, 4, 6)
    before = module(x)
    for other in copies(module):
        assert_same_bits(other(x), before)
        with torch.no_grad():
            other.threshold += 1
            other.decay.zero_()
        assert not torch.equal(other(x), before)
        assert_same_bits(module(x), before)


def test_to_another_dtype() -> None:
    module, x = learnt_lif().double(), randn(20, 4, 6, dtype=torch.float64)
    assert {t.dtype for t in module.state_dict().values()} == {torch.float64}
    options = {k: t.double() for k, t in tensor_options().items()}
    assert_same_bits(module(x), lif(x, **options, reset="soft", surrogate=Sigmoid(alpha=2.0))[0])
    half = learnt_lif().to(torch.bfloat16)
    options = {k: t.bfloat16() for k, t in tensor_options().items()}
    assert_same_bits(half(x.bfloat16()), lif(x.bfloat16(), **options, reset="soft")[0])


@pytest.mark.parametrize("return_state", [False, True], ids=["spikes", "with-v"])
@pytest.mark.parametrize("record", [None, "membrane"], ids=["plain", "recorded"])
@pytest.mark.parametrize("synapse", [None, 0.5], ids=["", "synapse"])
@pytest.mark.parametrize("readout", [None, "mean", [0.5] * 20], ids=["all", "rate", "weights"])
def test_what_a_lif_returns(readout: object, synapse: float | None, record: str | None, return_state: bool) -> None:
    x, i = randn(20, 4, 6), None if synapse is None else randn(4, 6, seed=1)
    options = OPTIONS | {"readout": readout, "record": record, "synaptic_decay": synapse, "dtype": torch.float64}
    outputs = lif(x, i=i, **options)
    membrane = outputs[-1:] if record else ()
    expected = outputs if return_state else (outputs[0], *membrane)
    options["out_dtype"] = options.pop("dtype")
    actual = LIF(**options, return_state=return_state)(x, i=i)
    assert isinstance(actual, tuple) == (len(expected) > 1)
    for a, b in zip(actual if isinstance(actual, tuple) else [actual], expected, strict=True):
        assert_same_bits(a, b)


def test_readout_weights_are_learnt() -> None:
    weights, x = torch.nn.Parameter(randn(20, dtype=torch.float64)), randn(20, 4, 6)
    module = LIF(decay=0.5, threshold=0.3, readout=weights)
    module(x).sum().backward()
    spikes, _ = lif(x, decay=0.5, threshold=0.3)
    torch.testing.assert_close(module.readout.grad, spikes.double().sum((1, 2)))


# ------------------------------------------------------------------------------------------------------------ LI


def integrate(x: Tensor, v: Tensor | None, decay: object, gain: object = 1.0, rest: object = 0.0) -> Tensor:
    """All potentials (T, N, C), step by step."""
    v, potentials = torch.zeros_like(x[0]) if v is None else v, []
    for current in x:
        v = decay * v + (gain * current + rest)
        potentials.append(v)
    return torch.stack(potentials)


READOUTS = {
    "last": ("last", lambda v: v[-1]),
    "mean": ("mean", lambda v: v.mean(0)),
    "weights": ([0.5, -1.0, 2.0, 0.25, 1.0], lambda v: (torch.tensor([0.5, -1, 2, 0.25, 1]).view(5, 1, 1) * v).sum(0)),
    "all": (None, lambda v: v),
}


@on_both
@pytest.mark.parametrize("start", [False, True], ids=["from-0", "from-v"])
@pytest.mark.parametrize("constant", [False, True], ids=["sequence", "constant"])
@pytest.mark.parametrize("readout", READOUTS)
def test_li_is_a_loop(backend: str, readout: str, constant: bool, start: bool) -> None:
    given, read = READOUTS[readout]
    decay = torch.nn.Parameter(torch.linspace(0.3, 0.9, 4, dtype=torch.float64))
    module = nn.LI(decay=decay, gain=0.7, bias=0.1, readout=given, return_state=True)
    x = randn(*(3, 4) if constant else (5, 3, 4), dtype=torch.float64).requires_grad_()
    v = randn(3, 4, seed=1, dtype=torch.float64).requires_grad_() if start else None
    out, last = module(x, v, steps=5 if constant else None)
    loop = integrate(x.expand(5, 3, 4), v, decay, 0.7, 0.1)
    assert_near(out, read(loop), 1e-14)
    assert_near(last, loop[-1], 1e-14)
    inputs = [t for t in (x, v, decay) if t is not None]
    cotangents = [randn(*o.shape, seed=2, dtype=torch.float64) for o in (out, last)]
    actual = torch.autograd.grad((out, last), inputs, cotangents)
    for a, b in zip(actual, torch.autograd.grad((read(loop), loop[-1]), inputs, cotangents), strict=True):
        assert_near(a, b, 1e-13)
    assert isinstance(nn.LI(decay=decay, readout=given)(x, v, steps=5 if constant else None), Tensor)


@on_both
@pytest.mark.parametrize("readout", ["last", "mean", "learnt", None], ids=str)
def test_gradcheck_of_li(backend: str, readout: str | None) -> None:
    learnt = torch.nn.Parameter(randn(3, dtype=torch.float64)) if readout == "learnt" else readout
    parameters = [torch.nn.Parameter(randn(2, seed=k, dtype=torch.float64)) for k in range(3)]
    module = nn.LI(**dict(zip(("decay", "gain", "bias"), parameters, strict=True)), readout=learnt)
    assert len(list(module.parameters())) == 3 + (readout == "learnt")
    x, v = (randn(*s, seed=5, dtype=torch.float64).requires_grad_() for s in ((3, 2, 2), (2, 2)))
    names = [k for k, _ in module.named_parameters()]

    def function(x: Tensor, v: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(module, dict(zip(names, values, strict=True)), (x, v))

    assert torch.autograd.gradcheck(function, (x, v, *(p.detach().requires_grad_() for p in module.parameters())))


def test_li_of_halves() -> None:
    """The potential is fp32, what is read out rounded once, or of the dtype that is asked for."""
    x = randn(5, 3, 4, dtype=torch.bfloat16)
    loop = integrate(x.float(), None, 0.9)
    for readout, expected in (("last", loop[-1]), (None, loop)):
        out, v = nn.LI(decay=0.9, readout=readout, return_state=True)(x)
        assert_same_bits(out, expected.bfloat16())
        assert_same_bits(v, loop[-1])
        assert_same_bits(nn.LI(decay=0.9, readout=readout, out_dtype=torch.float32)(x), expected)


def test_li_copies_and_words() -> None:
    module, x = nn.LI(decay=torch.nn.Parameter(torch.tensor([0.9])), readout="mean"), randn(5, 3, 4)
    for other in copies(module):
        assert_same_bits(other(x), module(x))
        assert list(other.state_dict()) == ["decay"]
    one_line(lambda: nn.LI(decay=0.9, readout="rate"), ValueError, "readout: got 'rate', accepted are None, 'last'")
    with pytest.raises(ValueError, match="readout: got weights"):
        nn.LI(decay=0.9, readout=[1.0, 2.0])(x)
    for readout in ("last", "mean"):
        li = nn.LI(decay=0.9, readout=readout)
        for steps in (2.5, "a", 0):
            one_line(lambda li=li, steps=steps: li(x, steps=steps), ValueError, f"steps: got {steps!r}, accepted is")
        one_line(lambda li=li: li(None), TypeError, "x: got NoneType, accepted is a tensor (T, N, *)")
        one_line(lambda li=li: li(torch.tensor(1.0)), ValueError, "x: got shape (), accepted is (T, N, *)")


# --------------------------------------------------------------------------------------------------------- BNLIF

NEURON = {"decay": 0.6, "threshold": 0.5, "reset": "soft", "surrogate": ATan(alpha=1.5)}


@on_both
@pytest.mark.parametrize("kind", ["1d", "2d", "2d-channels-last"])
def test_bnlif_is_batch_norm_and_lif(backend: str, kind: str) -> None:
    """Torch's own module, from which the state is taken over, with the threshold in its weight."""
    shape = (5, 3, 4) if kind == "1d" else (5, 3, 4, 6, 2)
    norm = (torch.nn.BatchNorm1d if kind == "1d" else torch.nn.BatchNorm2d)(4, eps=1e-3, momentum=0.2).double()
    with torch.no_grad():
        for k, tensor in enumerate((norm.weight, norm.bias, norm.running_mean, norm.running_var)):
            tensor.copy_(randn(4, seed=k, dtype=torch.float64).abs() + 0.5)
    module = BNLIF(4, eps=1e-3, momentum=0.2, return_state=True, **NEURON).double()
    keys = ["weight", "bias", "running_mean", "running_var"]
    assert list(module.state_dict()) == keys
    module.load_state_dict({k: norm.state_dict()[k] for k in keys})
    threshold = NEURON["threshold"]
    for step in range(4):
        module.train(step < 3), norm.train(step < 3)
        y = randn(*shape, seed=step, dtype=torch.float64) * 2 + 1
        y = (channels_last(y) if kind == "2d-channels-last" else y).requires_grad_()
        spikes, v = module(y)
        x = threshold * (norm(y.flatten(0, 1)) - norm.bias.view(-1, *(1,) * (y.dim() - 3)))
        x = (x + norm.bias.view(-1, *(1,) * (y.dim() - 3))).unflatten(0, shape[:2])
        expected, last = lif(x, **NEURON)
        assert torch.equal(spikes, expected)
        assert_near(v, last, 1e-11)
        cotangents = [randn(*o.shape, seed=9, dtype=torch.float64) for o in (spikes, v)]
        actual = torch.autograd.grad((spikes, v), (y, module.weight, module.bias), cotangents)
        truth = torch.autograd.grad((expected, last), (y, norm.weight, norm.bias), cotangents)
        for a, b in zip(actual, truth, strict=True):
            assert_near(a, b, 1e-10)
        for key in keys:
            assert_near(module.state_dict()[key], norm.state_dict()[key], 1e-12)


def test_evaluation_leaves_the_buffers_alone() -> None:
    module, y = BNLIF(4, **NEURON), randn(5, 3, 4) + 2
    trained = module(y)
    state = {k: t.clone() for k, t in module.state_dict().items()}
    assert not torch.equal(state["running_mean"], torch.zeros(4))
    evaluated = module.eval()(y)
    assert not torch.equal(evaluated, trained)
    for key, tensor in state.items():
        assert_same_bits(module.state_dict()[key], tensor)


def test_defaults_of_bnlif() -> None:
    """The threshold is the scale where it is a number; then every default is that of the function."""
    y, state = randn(5, 3, 4) + 0.5, {"weight": torch.ones(4), "bias": torch.zeros(4)}

    def running() -> dict[str, Tensor]:
        return {"running_mean": torch.zeros(4), "running_var": torch.ones(4)}

    for threshold, given, scale in ((0.5, None, 0.5), (torch.full((4,), 0.5), None, 1.0), (0.5, 0.8, 0.8)):
        module, buffers = BNLIF(4, decay=0.6, threshold=threshold, scale=given), running()
        expected = bn_lif(y, **state, **buffers, training=True, decay=0.6, threshold=threshold, scale=scale)
        assert_same_bits(module(y), expected[0])
        for key, tensor in buffers.items():
            assert_same_bits(getattr(module, key), tensor)
        assert module.scale == scale


def test_every_option_of_bnlif_reaches_the_function() -> None:
    options = {"scale": 0.7, "eps": 0.1, "momentum": 0.5, "v_reset": -0.2, "detach_reset": True, "strict": True}
    options |= {"decay": torch.nn.Parameter(torch.linspace(0.3, 0.9, 4)), "threshold": torch.linspace(0.2, 0.6, 4)}
    options |= {"reset": "hard", "surrogate": Rectangular(0.8), "record": "membrane", "dtype": torch.float64}
    y, v = randn(20, 3, 4).requires_grad_(), randn(3, 4, seed=1)
    module = BNLIF(4, readout="mean", return_state=True, out_dtype=options["dtype"], **without(options, "dtype"))
    assert set(module.state_dict()) == {"weight", "bias", "running_mean", "running_var", "decay", "threshold"}
    state = {"weight": torch.ones(4), "bias": torch.zeros(4)}
    state |= {"running_mean": torch.zeros(4), "running_var": torch.ones(4)}
    for steps in (None, 20):
        current = y if steps is None else y[0]
        actual = module(current, v, steps=steps)
        expected = bn_lif(current, **state, training=True, v=v, steps=steps, readout="mean", **options)
        for a, b in zip((*actual, module.running_var), (*expected, state["running_var"]), strict=True):
            assert_same_bits(a, b)
        gradients = [
            torch.autograd.grad(sum(o.sum() for o in pair), (y, options["decay"])) for pair in (actual, expected)
        ]
        for a, b in zip(*gradients, strict=True):
            assert_same_bits(a, b)
    assert repr(module).startswith("BNLIF(4, scale=0.7")


def test_readout_for_one_call() -> None:
    y = randn(5, 3, 4)
    module = BNLIF(4, readout="mean", **NEURON).eval()
    rate = module(y)
    spikes = BNLIF(4, **NEURON).eval()(y)
    torch.testing.assert_close(rate, spikes.mean(0))
    assert_same_bits(BNLIF(4, **NEURON).eval()(y, readout="mean"), rate)
    weights = torch.tensor([1.0, 2, 0, -1, 0.5])
    torch.testing.assert_close(module(y, readout=weights), (weights.view(5, 1, 1) * spikes).sum(0))
    assert_same_bits(module(y), rate)


def test_copies_of_bnlif_are_independent() -> None:
    module, y = BNLIF(4, **NEURON), randn(5, 3, 4) + 1
    module(y)
    before = module.eval()(y)
    for other in copies(module):
        assert_same_bits(other(y), before)
        other.train()(y + 5)
        assert not torch.equal(other.running_mean, module.running_mean)
    assert_same_bits(module(y), before)


def test_bnlif_in_bf16() -> None:
    """Weights and buffers of the module in bf16, the arithmetic as ever."""
    module, y = BNLIF(4, return_state=True, **NEURON).to(torch.bfloat16), randn(5, 3, 4).bfloat16()
    spikes, v = module(y)
    state = [t.double() for t in (torch.ones(4), torch.zeros(4), torch.zeros(4), torch.ones(4))]
    expected = bn_lif_by_torch(y.double(), *state, training=True, scale=0.5, **NEURON)
    assert spikes.dtype == module.running_mean.dtype == torch.bfloat16
    assert torch.equal(spikes.double(), expected[0])
    assert_near(v, expected[1], 1e-6)


# ------------------------------------------------------------------------------------------------------ a network


class Net(torch.nn.Module):
    """Digits as constant currents, one strided convolution of spikes, a leaky integrator that reads out."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = torch.nn.Conv2d(1, 8, 3, padding=1, bias=False)
        self.first_neurons = BNLIF(8, decay=0.5, threshold=1.0, surrogate=Rectangular(2.0))
        self.second = torch.nn.Conv2d(8, 16, 3, stride=2, bias=False)
        self.second_neurons = BNLIF(16, decay=torch.nn.Parameter(torch.full((16,), 0.5)), threshold=1.0)
        self.last = torch.nn.Linear(16 * 9, 10)
        self.readout = nn.LI(decay=torch.nn.Parameter(torch.full((10,), 0.9)), readout="mean")

    def forward(self, images: Tensor) -> Tensor:
        spikes = self.first_neurons(self.first(images), steps=4)
        y = self.second(spikes.flatten(0, 1)).unflatten(0, spikes.shape[:2])
        return self.readout(self.last(self.second_neurons(y).flatten(2)))


def test_a_network_learns_digits() -> None:
    digits = load_digits()
    images = torch.tensor(digits.images[:256] / 16.0, dtype=torch.float32).unsqueeze(1)
    labels = torch.tensor(digits.target[:256])
    model = Net()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(p.grad.abs().sum() > 0 for p in model.parameters())
    assert losses[0] > 2  # log 10 is that of a guess
    assert losses[-1] < 0.5
    right = (model.eval()(images).argmax(1) == labels).float().mean()
    assert right > 0.8  # with the running statistics
