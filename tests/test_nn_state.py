"""Modules that keep their state, take single steps, check their options when they are made, and read older files."""

from __future__ import annotations

import copy

import pytest
import torch
from kernel_helpers import assert_same_bits, cpu_only, one_line, randn
from torch import Tensor

from esvae_kernels import Delayed, Hard, Soft, bn_lif, lif, nn
from esvae_kernels.surrogate import ATan, Sigmoid

NEURON = {"decay": 0.7, "threshold": 0.3}


def layers() -> dict[str, torch.nn.Module]:
    return {
        "lif": nn.LIF(**NEURON, stateful=True),
        "synapse": nn.LIF(**NEURON, synaptic_decay=0.5, reset=Soft(), record="membrane", stateful=True),
        "li": nn.LI(decay=0.9, readout=None, stateful=True),
        "bnlif": nn.BNLIF(4, **NEURON, stateful=True).eval(),
    }


@pytest.mark.parametrize("name", list(layers()))
def test_a_stateful_layer_goes_on_where_it_ended(name: str) -> None:
    """Pieces, and single steps, are the whole; reset() begins anew."""
    x, once = randn(12, 3, 4), layers()[name]
    whole = once(x)
    spikes = whole if isinstance(whole, Tensor) else whole[0]
    once.reset()
    assert_same_bits(torch.cat([first(once(part)) for part in x.split([5, 1, 6])]), spikes)
    assert not torch.equal(first(once(x)), spikes)  # from the last potential
    nn.reset(torch.nn.Sequential(once))
    assert_same_bits(first(once(x)), spikes)
    once.reset()
    once.single_step = True
    assert_same_bits(torch.stack([first(once(x_t)) for x_t in x]), spikes)
    assert once.state_dict().keys() == copy.deepcopy(layers()[name]).state_dict().keys()


def first(outputs: Tensor | tuple[Tensor, ...]) -> Tensor:
    return outputs if isinstance(outputs, Tensor) else outputs[0]


def test_single_steps_without_state() -> None:
    x, v = randn(3, 4), randn(3, 4, seed=1)
    spikes, after = nn.LIF(**NEURON, single_step=True, return_state=True)(x, v)
    expected = lif(x[None], v, **NEURON)
    assert_same_bits(spikes, expected[0][0])
    assert_same_bits(after, expected[1])
    net = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), nn.LIF(**NEURON, single_step=True, stateful=True))
    images = randn(3, 1, 6, 6)
    total = sum(net(images) for _ in range(5))
    nn.reset(net)
    (net[1].single_step, current) = (False, net[0](images))
    assert_same_bits(total, net[1](current.expand(5, *current.shape)).sum(0))
    one_line(lambda: nn.LIF(**NEURON, single_step=True)(x, steps=4), ValueError, "steps: got 4, accepted is None with")


def test_a_given_state_comes_first_and_is_kept() -> None:
    module, x, v = nn.LIF(**NEURON, stateful=True), randn(6, 3, 4), randn(3, 4, seed=1)
    module(x)
    assert_same_bits(module(x, v), lif(x, v, **NEURON)[0])
    assert_same_bits(module(x), lif(x, lif(x, v, **NEURON)[1], **NEURON)[0])
    one_line(lambda: module(x[:, :2]), ValueError, "x: got (2, 4) neurons, accepted are the (3, 4) of the call before")
    module.reset()
    module(x[:, :2])


def test_gradients_through_the_state() -> None:
    """They flow through pieces until detach_state() or reset()."""
    x = randn(6, 3, 4).requires_grad_()
    (whole,) = torch.autograd.grad(lif(x, **NEURON)[0].sum(), x)
    module = nn.LIF(**NEURON, stateful=True)
    (pieces,) = torch.autograd.grad(torch.cat([module(x[:4]), module(x[4:])]).sum(), x)
    assert_same_bits(pieces, whole)
    module.reset()
    module(x[:4])
    module.detach_state()
    (last,) = torch.autograd.grad(module(x[4:]).sum(), x)
    assert last[:4].abs().sum() == 0 != last[4:].abs().sum()


def test_a_state_moves_with_its_module() -> None:
    module = nn.LIF(**NEURON, stateful=True)
    module(randn(4, 3))
    module.to(torch.bfloat16)  # potentials stay fp32
    module(randn(4, 3).bfloat16())
    module.double()
    module(randn(4, 3, dtype=torch.float64))
    assert module.to("meta")(torch.empty(4, 3, device="meta")).device.type == "meta"


@cpu_only("compiled graphs are the same on any device")
def test_compile_a_stateful_module() -> None:
    torch._dynamo.reset()
    module, plain = (nn.LIF(**NEURON, stateful=True) for _ in range(2))
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    for k in range(4):
        x = randn(5, 3, seed=k)
        assert_same_bits(compiled(x), plain(x))


# ------------------------------------------------------------------------------------------------------- construction

BAD = {
    "decay-word": (ValueError, "decay: got 0.5", lambda: nn.LIF(decay="0.5", threshold=1.0)),
    "threshold-nan": (ValueError, "threshold: got nan", lambda: nn.LIF(decay=0.5, threshold=float("nan"))),
    "threshold-integers": (
        TypeError,
        "threshold: got dtype int64",
        lambda: nn.LIF(decay=0.5, threshold=torch.ones(2).long()),
    ),
    "reset-word": (TypeError, "reset: got 'hard'", lambda: nn.LIF(**NEURON, reset="hard")),
    "surrogate-class": (TypeError, "surrogate: got <class", lambda: nn.LIF(**NEURON, surrogate=ATan)),
    "readout-word": (ValueError, "readout: got 'rate'", lambda: nn.LIF(**NEURON, readout="rate")),
    "record": (ValueError, "record: got 'spikes'", lambda: nn.LIF(**NEURON, record="spikes")),
    "fire": (ValueError, "fire: got '>>'", lambda: nn.LIF(**NEURON, fire=">>")),
    "multi_spike": (ValueError, "reset: got Delayed(", lambda: nn.LIF(**NEURON, fire="multi_spike", reset=Delayed())),
    "v_min": (ValueError, "v_min: got -inf", lambda: nn.LIF(**NEURON, v_min=-float("inf"))),
    "out_dtype": (TypeError, "dtype: got torch.int64", lambda: nn.LIF(**NEURON, out_dtype=torch.int64)),
    "spikes-dtype": (
        TypeError,
        "dtype: got torch.uint8, accepted is that of parameters",
        lambda: nn.LIF(**NEURON, dtype=torch.uint8),
    ),
    "gradient": (
        ValueError,
        "decay: got a tensor that needs a gradient, accepted are an nn.Parameter",
        lambda: nn.LIF(decay=torch.ones(1).requires_grad_(), threshold=1.0),
    ),
    "renamed": (
        TypeError,
        "LIF: got the keyword rest, accepted in its place is bias=",
        lambda: nn.LIF(**NEURON, rest=0.0),
    ),
    "return_v": (
        TypeError,
        "LI: got the keyword return_v, accepted in its place is return_state=",
        lambda: nn.LI(decay=0.5, return_v=True),
    ),
    "unknown": (TypeError, "BNLIF: got the unknown keyword gain", lambda: nn.BNLIF(4, **NEURON, gain=1.0)),
    "eps": (ValueError, "eps: got -5", lambda: nn.BNLIF(4, **NEURON, eps=-5)),
    "momentum": (ValueError, "momentum: got None", lambda: nn.BNLIF(4, **NEURON, momentum=None)),
    "channels": (ValueError, "channels: got 0", lambda: nn.BNLIF(0, **NEURON)),
    "poisson-steps": (ValueError, "steps: got 0", lambda: nn.Poisson(0)),
    "poisson-surrogate": (TypeError, "surrogate: got 'atan'", lambda: nn.Poisson(4, surrogate="atan")),
    "poisson-dtype": (TypeError, "dtype: got torch.int64", lambda: nn.Poisson(4, out_dtype=torch.int64)),
    "poisson-renamed": (
        TypeError,
        "Poisson: got the keyword dtype, accepted in its place is out_dtype=",
        lambda: nn.Poisson(4, dtype=torch.uint8),
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_options_are_refused_when_a_module_is_made(case: str) -> None:
    error, start, make = BAD[case]
    one_line(make, error, start)


def test_device_and_dtype_are_those_of_the_parameters() -> None:
    decay, threshold = torch.nn.Parameter(torch.full((4,), 0.5), requires_grad=False), torch.full((4,), 0.3)
    module = nn.LIF(decay=decay, threshold=threshold, device="meta", dtype=torch.float64)
    for tensor in (module.decay, module.threshold):
        assert (tensor.device.type, tensor.dtype) == ("meta", torch.float64)
    assert isinstance(module.decay, torch.nn.Parameter)
    assert not module.decay.requires_grad
    norm = nn.BNLIF(4, **NEURON, device="meta", dtype=torch.bfloat16)
    assert {(t.device.type, t.dtype) for t in norm.state_dict().values()} == {("meta", torch.bfloat16)}
    assert nn.LIF(**NEURON)(randn(3, 4).bfloat16()).dtype == torch.bfloat16
    assert nn.LIF(**NEURON, out_dtype=torch.uint8)(randn(3, 4)).dtype == torch.uint8


def test_two_layers_share_a_parameter_but_no_buffer() -> None:
    tensor, parameter = torch.full((4,), 0.3), torch.nn.Parameter(torch.full((4,), 0.5))
    first, second = (nn.LIF(decay=parameter, threshold=tensor) for _ in range(2))
    assert first.decay is second.decay is parameter
    first.threshold.add_(1)
    assert torch.equal(second.threshold, tensor)
    assert tensor[0] == torch.tensor(0.3)


def test_older_state_dicts() -> None:
    """`rest` and `synapse` of LIF and LI, and torch's batch norm with all of its entries."""
    module = nn.LIF(
        decay=0.5, threshold=0.3, bias=torch.zeros(4), synaptic_decay=torch.zeros(4), reset=Hard(torch.zeros(1))
    )
    old = {"rest": torch.ones(4), "synapse": torch.full((4,), 0.25), "v_reset": torch.full((1,), 0.1)}
    torch.nn.Sequential(module).load_state_dict({f"0.{k}": t for k, t in old.items()})
    assert (module.bias[0], module.synaptic_decay[0], module.v_reset[0]) == (1, 0.25, torch.tensor(0.1))
    norm, layer = torch.nn.BatchNorm1d(4), nn.BNLIF(4, **NEURON)
    norm(randn(5, 4))
    layer.load_state_dict(norm.state_dict(), strict=True)
    assert_same_bits(layer.running_mean, norm.running_mean)


def test_a_leaky_integrator_of_infinities() -> None:
    """The last potential is read as it is: a sum with weights 0 would make NaN of an infinity before it."""
    x = torch.zeros(3, 2)
    x[0] = torch.tensor([float("inf"), 1.0])
    assert nn.LI(decay=0.5)(x).tolist() == [float("inf"), 0.25]


def test_repr_of_what_is_learnt() -> None:
    text = repr(
        nn.LIF(decay=torch.nn.Parameter(torch.ones(4)), threshold=0.3, reset=Hard(torch.zeros(4)), stateful=True)
    )
    assert "decay=tensor(4,)" in text
    assert "reset=Hard(tensor(4,), detach=False)" in text
    assert text.endswith("stateful=True)")


def test_bn_lif_takes_the_options_of_the_module() -> None:
    layer, y = nn.BNLIF(4, **NEURON, reset=Soft(detach=True), fire=">", surrogate=Sigmoid()), randn(5, 3, 4)
    running = (torch.zeros(4), torch.ones(4))
    options = NEURON | {"reset": Soft(detach=True), "fire": ">", "surrogate": Sigmoid(), "scale": NEURON["threshold"]}
    assert_same_bits(layer(y), bn_lif(y, torch.ones(4), torch.zeros(4), *running, training=True, **options)[0])
