"""The drop-in layers beside sinabs' own, call by call: spikes, states, recordings and every gradient.

Where ours computes the same in the same order, spikes and states are equal bit for bit in fp32. Elsewhere (a floor
under the potential that is not 0; a synaptic current that is normed) a count of spikes may differ where the potential
is within rounding of a multiple of the threshold; in fp64 all are equal. sinabs' gradients of fp64 are of fp32's
precision.
"""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pytest
import torch
from kernel_helpers import assert_gradients, assert_near, assert_same_bits, assert_sums, channels_last, one_line, randn
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

sinabs = pytest.importorskip("sinabs", reason="sinabs is not installed")
from sinabs import activation, layers  # noqa: E402
from sinabs.layers import functional  # noqa: E402

from esvae_kernels.dropin import convert, revert  # noqa: E402
from esvae_kernels.dropin import sinabs as ours  # noqa: E402

B, T, N = 4, 18, (3, 2, 5)  # longer than a chunk of the kernels
THRESHOLD = 0.75  # its multiples are exact in fp32, of which sinabs' spikes are


def per_channel(low: float, high: float) -> Tensor:
    return torch.linspace(low, high, N[0]).view(-1, 1, 1)


NEURONS = {
    "LIF": lambda **o: layers.LIF(5.0, **o),
    "LIF-not-normed": lambda **o: layers.LIF(5.0, norm_input=False, **o),
    "LIF-alphas": lambda **o: layers.LIF(4.0, train_alphas=True, **o),
    "LIF-channels": lambda **o: layers.LIF(per_channel(2, 9), **o),
    "IAF": lambda **o: layers.IAF(**o),
}
SYNAPSES = {"": {}, "syn": {"tau_syn": 3.0}}
SPIKES = {"multi": activation.MultiSpike, "single": activation.SingleSpike}
RESETS = {"subtract": activation.MembraneSubtract(), "reset": activation.MembraneReset()}
FLOORS = {"": None, "floor-0": 0.0, "floor": -0.3}


@pytest.fixture(autouse=True)
def in_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any number of steps of any size, of which sinabs' own ops would run few and small ones faster."""
    monkeypatch.setitem(ours.LEAST_ELEMENTS, "cpu", 0)


on_neurons = pytest.mark.parametrize("make", NEURONS.values(), ids=NEURONS)
on_synapses = pytest.mark.parametrize("synapse", SYNAPSES.values(), ids=SYNAPSES)
on_spikes = pytest.mark.parametrize("spike", SPIKES.values(), ids=SPIKES)
on_resets = pytest.mark.parametrize("reset", RESETS.values(), ids=RESETS)
on_floors = pytest.mark.parametrize("floor", FLOORS.values(), ids=FLOORS)


@contextmanager
def only_kernels() -> Iterator[None]:
    """sinabs' neurons cannot run."""

    def fail(**_: object) -> None:
        raise AssertionError("sinabs' code ran")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(functional, "lif_forward", fail)
        yield


def twins(layer: nn.Module) -> tuple[nn.Module, nn.Module]:
    """sinabs' and ours."""
    one = copy.deepcopy(layer)
    assert convert(one, strict=True).replaced
    return layer, one


def current(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Under which neurons fire every few steps, now and then several times."""
    return (2.5 * randn(*shape, seed=seed, dtype=torch.float64) + 0.8).to(dtype)


def sequences(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Two calls, one of another batch (it starts from random samples' states), one of another shape (from 0)."""
    shapes = [(B, T, *N), (B, 3, *N), (6, 2, *N), (2, 4, N[0], 1, 1)]
    return [current(*shape, seed=k, dtype=dtype) for k, shape in enumerate(shapes)]


def outputs_of(layer: nn.Module, x: Tensor) -> list[Tensor]:
    spikes = layer(x)
    return [spikes, layer.firing_rate, *layer.buffers(), *layer.recordings.values()]


def results(layer: nn.Module, xs: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """What calls in a row give; for fixed cotangents of it all the gradients of the xs and of the parameters."""
    torch.manual_seed(0)
    xs = [x.detach().requires_grad_() for x in xs]
    outputs = [output for x in xs for output in outputs_of(layer, x)]
    cotangents = [randn(1, *o.shape, seed=50 + i, dtype=o.dtype)[0] for i, o in enumerate(outputs)]
    learnt = [p for p in layer.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(outputs, [*xs, *learnt], cotangents)
    return [o.detach() for o in outputs], list(gradients[: len(xs)]), list(gradients[len(xs) :])


def assert_equal(actual: Tensor, expected: Tensor) -> None:
    """Bit for bit, -0 being as good as 0."""
    assert_same_bits(actual + 0.0, expected + 0.0)


def assert_same(theirs: nn.Module, one: nn.Module, xs: Sequence[Tensor], within: float = 0.0) -> None:
    """Equal bit for bit, or states within a tolerance; gradients within fp32's rounding."""
    with only_kernels():
        found = results(one, xs)
    expected = results(theirs, xs)
    assert 0.05 < expected[0][0].mean() < 6
    for output, wanted in zip(found[0], expected[0], strict=True):
        if within:
            assert output.dtype == wanted.dtype
            assert_near(output, wanted, within, floor=1.0)
        else:
            assert_equal(output, wanted)
        assert output.stride() == wanted.stride()
    assert_gradients(found[1], expected[1], torch.float32)
    assert_sums(found[2], expected[2], xs[0].numel(), torch.float32)


# ------------------------------------------------------------------------------- spikes, states, recordings, gradients


@on_neurons
@on_synapses
@on_spikes
@on_resets
@on_floors
def test_calls_in_a_row(make: Callable, synapse: dict, spike: type, reset: object, floor: float | None) -> None:
    """The state goes on from call to call, with its graph."""
    theirs, one = twins(
        make(
            spike_threshold=THRESHOLD,
            spike_fn=spike,
            reset_fn=reset,
            min_v_mem=floor,
            record_states=not synapse,
            **synapse,
        )
    )
    if floor or (synapse and theirs.norm_input):
        assert_same(theirs, one, sequences(torch.float64), within=1e-12)
    else:
        assert_same(theirs, one, sequences())


@on_neurons
@on_synapses
@on_spikes
@on_resets
def test_flips_of_fp32_are_at_multiples_of_the_threshold(
    make: Callable, synapse: dict, spike: type, reset: object
) -> None:
    """With a floor. Before its first flip a neuron's potential is within rounding, which an IAF neuron keeps adding
    up, of sinabs'; after it, its state is another one."""
    options = {"spike_threshold": 0.7, "spike_fn": spike, "reset_fn": reset, "min_v_mem": -0.3}
    theirs, one = make(**options, record_states=True, **synapse), twins(make(**options, **synapse))[1]
    x = current(200, T, *N)
    with torch.no_grad():
        with only_kernels():
            spikes = one(x)
        expected = theirs(x)
        before = torch.cat([torch.zeros_like(x[:, :1]), theirs.recordings["v_mem"][:, :-1]], 1)
        a, charge = theirs.alpha_mem_calculated, theirs.recordings.get("i_syn", x)
        membrane = a * before + ((1 - a) * charge if theirs.norm_input else charge)
    differ = spikes != expected
    first = differ & (differ.cumsum(1) == 1)
    multiple = (membrane / 0.7).round().clamp(min=1, max=1 if spike is activation.SingleSpike else None)
    near = (membrane - 0.7 * multiple).abs() <= 2 * T * torch.finfo(torch.float32).eps * membrane.abs().clamp(min=1)
    assert not (first & ~near).any(), "spikes differ away from a multiple of the threshold"
    assert differ.any(1).float().mean() < 1e-3
    assert_near(one.v_mem[~differ.any(1)], theirs.v_mem[~differ.any(1)], 1e-5, floor=1.0)


@on_synapses
@pytest.mark.parametrize("name", ["LIFSqueeze", "IAFSqueeze"])
@pytest.mark.parametrize("given", ["batch_size", "num_timesteps"])
def test_squeezed(name: str, synapse: dict, given: str) -> None:
    """(B T, *), as the layers in front of it and behind give and take."""
    options = {given: B if given == "batch_size" else T} | synapse
    options |= {"tau_mem": 5.0, "norm_input": False} if name == "LIFSqueeze" else {}
    theirs, one = twins(getattr(layers, name)(**options))
    assert_same(theirs, one, [current(B * T, *N), current(B * T, *N, seed=1)])
    assert copy.deepcopy(one).arg_dict[given] == options[given]


PARAMETERS = {
    "threshold-per-channel": {"spike_threshold": per_channel(0.5, 1.5), "surrogate_grad_fn": activation.Gaussian()},
    "threshold-integer": {"spike_threshold": 1, "min_v_mem": 0},
    "threshold-of-one-element": {"spike_threshold": torch.tensor([0.7]), "min_v_mem": torch.zeros(1)},
    "tau-one-element": {"tau_mem": torch.tensor([4.0])},
    "tau-batch-axis": {"tau_mem": per_channel(2, 9)[None], "tau_syn": per_channel(2, 9), "norm_input": False},
    "alphas-per-channel": {"tau_mem": per_channel(2, 9), "tau_syn": per_channel(3, 1), "train_alphas": True},
    "tau-0-and-infinite": {"tau_mem": torch.tensor([0.0, 3.0, torch.inf]).view(-1, 1, 1), "norm_input": False},
}


@pytest.mark.parametrize("options", PARAMETERS.values(), ids=PARAMETERS)
def test_parameters(options: dict[str, object]) -> None:
    theirs, one = twins(layers.LIF(**{"tau_mem": 5.0, "spike_threshold": THRESHOLD} | options))
    exact = not (theirs.norm_input and "tau_syn" in options)
    xs = [current(B, T, *N, dtype=torch.float32 if exact else torch.float64)]
    if not theirs.tau_mem_calculated.all():  # sinabs' gradient is NaN
        theirs.requires_grad_(False), one.requires_grad_(False)
    assert_same(theirs, one, xs, within=0.0 if exact else 1e-12)


def test_frozen_parameters() -> None:
    theirs, one = twins(layers.LIF(5.0, tau_syn=3.0, norm_input=False))
    for layer in (theirs, one):
        layer.requires_grad_(False)
    assert_same(theirs, one, [current(B, T, *N)])


SURROGATES = {
    "exponential": activation.SingleExponential(),
    "exponential-wide": activation.SingleExponential(grad_width=1.5, grad_scale=0.4),
    "gaussian": activation.Gaussian(),
    "gaussian-shifted": activation.Gaussian(mu=-0.2, sigma=0.8, grad_scale=3.0),
}
UNKNOWN = {
    "multi-gaussian": activation.MultiGaussian(),
    "heaviside": activation.Heaviside(),
    "periodic": activation.PeriodicExponential(),
    "own": lambda v_mem, spike_threshold: torch.ones_like(v_mem),
    "no-width": activation.SingleExponential(grad_width=-1.0),
}


@pytest.mark.parametrize("function", SURROGATES.values(), ids=SURROGATES)
@on_spikes
def test_surrogates(function: object, spike: type) -> None:
    layer = layers.LIF(5.0, spike_threshold=0.7, surrogate_grad_fn=function, spike_fn=spike, norm_input=False)
    assert_same(*twins(layer), [current(B, T, *N)])


@pytest.mark.parametrize("threshold", [0.5, 1.0, 2.0])
def test_the_width_of_the_exponential_is_measured_in_thresholds(threshold: float) -> None:
    """Also in one that was changed since."""
    theirs, one = twins(layers.IAF())
    for layer in (theirs, one):
        with torch.no_grad():
            layer.spike_threshold.copy_(threshold)
    assert_same(theirs, one, [current(B, T, *N)])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "f16"])
@pytest.mark.parametrize("name", ["IAF", "LIF-not-normed", "LIF-channels"])
@on_synapses
def test_half_precision(name: str, synapse: dict, dtype: torch.dtype) -> None:
    """sinabs' states and spikes are fp32 then; x's gradient has its dtype."""
    if synapse and name == "LIF-channels":
        synapse = synapse | {"norm_input": False}
    theirs, one = twins(NEURONS[name](**synapse))
    found, expected = (results(layer, [current(B, T, *N, dtype=dtype)]) for layer in (one, theirs))
    for output, wanted in zip(found[0], expected[0], strict=True):
        assert_equal(output, wanted)
    assert found[1][0].dtype == dtype
    assert_gradients(found[1], expected[1])
    assert_sums(found[2], expected[2], T * B, torch.float32)


def test_half_precision_of_a_normed_input() -> None:
    """sinabs rounds the normed current to x's dtype; ours are its spikes of fp32."""
    theirs, one = twins(layers.LIF(5.0, spike_threshold=THRESHOLD))
    x = current(B, T, *N, dtype=torch.bfloat16)
    with only_kernels():
        spikes = one(x)
    assert_equal(spikes, theirs(x.float()))
    assert_equal(one.v_mem, theirs.v_mem)
    assert_near(theirs(x), theirs(x.float()), 10)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=["bf16", "f64"])
def test_parameters_of_another_precision(dtype: torch.dtype) -> None:
    """A whole model's, which leaves the state in fp32. (sinabs also rounds the surrogate's width: not of 0.5.)"""
    theirs, one = twins(layers.LIF(5.0, spike_threshold=0.5, norm_input=False).to(dtype))
    assert_same(theirs, one, [current(B, T, *N)])
    assert one.tau_mem.dtype == dtype
    channels = layers.LIF(per_channel(2, 9)).double()
    theirs, one = twins(channels)
    x = current(B, T, *N)
    one._shape_states(x)
    assert one.why_slow(x).startswith("tau_mem: got torch.float64, which turns the potentials into it")
    assert_equal(one(x), theirs(x))


def test_layouts() -> None:
    """Channels-last, and what is no dense tensor."""
    for x in (channels_last(current(B, T, *N)), current(T, B, *N).transpose(0, 1), current(B, 2 * T, *N)[:, ::2]):
        assert_same(*twins(layers.IAF()), [x])
    assert_same(*twins(layers.IAF()), [current(B, T)])
    assert_same(*twins(layers.LIF(torch.tensor([2.0, 3.0, 4.0]))), [current(B, T, 3)])


def test_few_small_steps_run_by_sinabs_ops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ours.LEAST_ELEMENTS, "cpu", 60)
    one, calls, run = convert_fresh(layers.LIF(tau_mem=20.0)), [], ours.lif
    monkeypatch.setattr(ours, "lif", lambda *a, **o: calls.append(1) or run(*a, **o))
    for steps, size, expected in ((4, 14, 0), (4, 15, 1), (5, 1, 2)):
        one.reset_states()
        one(current(1, steps, size))
        assert len(calls) == expected


def test_without_gradients() -> None:
    theirs, one = twins(layers.LIF(5.0, norm_input=False).eval())
    x = current(B, T, *N)
    with torch.no_grad(), only_kernels():
        spikes = one(x)
    assert_equal(spikes, theirs(x))
    assert not one.v_mem.requires_grad
    with torch.inference_mode():
        assert_equal(convert_fresh(layers.LIF(5.0, norm_input=False))(x), spikes)


def convert_fresh(layer: nn.Module) -> nn.Module:
    convert(layer, strict=True)
    return layer


# ---------------------------------------------------------------------------------- what sinabs' own code goes on to do


def _lacking() -> dict[str, nn.Module]:
    class Mine(torch.autograd.Function):
        required_states = ("v_mem",)

        @staticmethod
        def forward(ctx, v_mem, spike_threshold, surrogate_grad_fn):
            return (v_mem > spike_threshold).float()

    patched = layers.LIF(5.0)
    patched.forward = lambda x: x
    learnt, floor = layers.IAF(), layers.IAF(min_v_mem=-1.0)
    learnt.spike_threshold.requires_grad_()
    floor.min_v_mem.requires_grad_()
    per_neuron = torch.rand(N) + 0.5
    return {
        "its forward is its own": patched,
        "spike_fn: got MaxSpike(max_num_spikes_per_bin=2)": layers.IAF(spike_fn=activation.MaxSpike(2)),
        "spike_fn: got _lacking.<locals>.Mine": layers.IAF(spike_fn=Mine),
        "spike_fn: got None": layers.IAF(spike_fn=None),
        "reset_fn: got MembraneSubtract(subtract_value=0.5)": layers.IAF(reset_fn=activation.MembraneSubtract(0.5)),
        "reset_fn: got MembraneReset(reset_value=0.1)": layers.IAF(reset_fn=activation.MembraneReset(0.1)),
        "surrogate_grad_fn: got MultiGaussian(": layers.IAF(surrogate_grad_fn=UNKNOWN["multi-gaussian"]),
        "SingleExponential with one threshold only": layers.IAF(spike_threshold=per_channel(0.5, 1.5)),
        "spike_threshold: got shape (3, 2, 5)": layers.IAF(spike_threshold=per_neuron),
        "tau_mem: got shape (3, 2, 5)": layers.LIF(per_neuron),
        "spike_threshold: got None": layers.IAF(spike_threshold=None, spike_fn=activation.SingleSpike),
        "spike_threshold: got inf": layers.IAF(spike_threshold=torch.tensor(torch.inf)),
        "spike_threshold: has a gradient": learnt,
        "min_v_mem: has a gradient": floor,
        "min_v_mem: got a tensor of shape (3, 1, 1)": layers.IAF(min_v_mem=per_channel(-2, -1)),
        "min_v_mem: got -inf": layers.IAF(min_v_mem=-torch.inf),
        "record_states: the kernels record no synaptic currents": layers.LIF(5.0, tau_syn=3.0, record_states=True),
    }


@pytest.mark.parametrize("why", _lacking())
def test_what_is_not_replaced(why: str) -> None:
    layer = _lacking()[why]
    model = nn.Sequential(nn.Identity(), layer, layers.IAF())
    one_line(
        lambda: convert(model, strict=True),
        ValueError,
        "model: 1 neuron layers cannot be replaced: 1 (sinabs ",
    )
    assert type(model[2]) is layers.IAF
    (kept,) = convert(model).kept
    assert kept.name == "1"
    assert why in kept.why_not
    assert type(layer).__module__.startswith("sinabs")
    assert type(model[2]) is ours.IAF


@pytest.mark.parametrize("why", [why for why in _lacking() if "forward" not in why and "None" not in why])
def test_what_the_kernels_lack_runs_exactly_as_theirs(why: str) -> None:
    """In a layer of ours that was made with it."""
    theirs = _lacking()[why]
    one = {layers.LIF: ours.LIF, layers.IAF: ours.IAF}[type(theirs)](**theirs.arg_dict)
    one.load_state_dict(theirs.state_dict())
    for name, parameter in theirs.named_parameters():
        getattr(one, name).requires_grad_(parameter.requires_grad)
    x = current(B, T, *N)
    for actual, expected in zip(outputs_of(one, x), outputs_of(theirs, x), strict=True):
        assert torch.equal(actual.nan_to_num(), expected.nan_to_num())


@pytest.mark.parametrize("function", UNKNOWN.values(), ids=UNKNOWN)
def test_an_option_changed_later_is_heeded(function: object) -> None:
    theirs, one = twins(layers.LIF(5.0, norm_input=False))
    for layer in (theirs, one):
        layer.surrogate_grad_fn, layer.spike_fn = function, activation.SingleSpike
    for actual, expected in zip(results(one, sequences()), results(theirs, sequences()), strict=True):
        for a, e in zip(actual, expected, strict=True):
            assert_equal(a, e)


def test_other_inputs() -> None:
    """Counts of spikes as integers, no time steps, one axis, no tensor: as sinabs does, its errors included."""
    for x in (torch.ones(2, 3, 4, dtype=torch.int64), torch.zeros(0, 3, 4), torch.ones(2, 3, 0)):
        theirs, one = twins(layers.LIF(5.0))
        assert torch.equal(one(x), theirs(x))
        assert_equal(one.v_mem, theirs.v_mem)
    for x in (torch.zeros(2, 0, 4), torch.zeros(3), None):
        errors = []
        for layer in twins(layers.LIF(5.0)):
            with pytest.raises((RuntimeError, ValueError, AttributeError)) as raised:
                layer(x)
            errors.append(str(raised.value))
        assert errors[0] == errors[1]


def test_mixed_devices_are_sinabs_error() -> None:
    one = convert_fresh(layers.LIF(5.0))
    assert one.why_slow(torch.zeros(2, 3, 4, device="meta")) == "tau_mem: got cpu, x is on meta"


def test_neurons_of_other_kinds_are_left_alone() -> None:
    class Mine(layers.LIF):
        def forward(self, input_data: Tensor) -> Tensor:
            return input_data * 0 + 7

    model = nn.Sequential(Mine(5.0), layers.ExpLeak(5.0), layers.IAFRecurrent(nn.Linear(2, 2)), layers.ALIF(5.0, 5.0))
    before = [type(m) for m in model]
    why = [entry.why_not for entry in convert(model).kept]
    assert why == ["a subclass of LIF, left alone"] * 3 + ["no kernel for it"]
    assert [type(m) for m in model] == before


# --------------------------------------------------------------------------------------------------------------- states


@on_synapses
def test_states_are_reset_and_let_go_of(synapse: dict) -> None:
    """sinabs' own functions, for one layer and for a model; a reset before the backward too."""
    models = [nn.Sequential(nn.Linear(5, 5), layer) for layer in twins(layers.LIF(5.0, norm_input=False, **synapse))]
    models[1][0].load_state_dict(models[0][0].state_dict())
    x, gradients = current(B, T, *N), []
    for model in models:
        spikes = model(x)
        sinabs.reset_states(model)
        assert not any(state.any() or state.requires_grad for state in model[1].buffers())
        spikes.sum().backward()
        gradients.append(model[0].weight.grad)
        model(x)
        assert model[1].v_mem.requires_grad
        sinabs.zero_grad(model)
        assert not model[1].v_mem.requires_grad
        assert model[1].v_mem.any()
        model(x).sum().backward()  # not through the call before
        with pytest.raises(RuntimeError, match="backward through the graph a second time"):
            model(x).sum().backward()
        model[1].reset_states(randomize=True, value_ranges={"v_mem": (-1.0, -0.5)})
        assert -1 <= model[1].v_mem.min() <= model[1].v_mem.max() <= -0.5
    assert_gradients([gradients[1]], [gradients[0]])


def test_a_state_that_is_given_is_used() -> None:
    theirs, one = twins(layers.IAF(shape=(B, *N)))
    for layer in (theirs, one):
        layer.v_mem = current(B, *N, seed=5)
    assert_same(theirs, one, [current(B, T, *N)])


# ------------------------------------------------------------------------------------------------ copies and compiling


@on_neurons
@on_synapses
def test_copies_go_on_from_the_same_state(make: Callable, synapse: dict) -> None:
    """deepcopy, pickle and torch.save of a converted layer; `revert` in the middle of a sequence."""
    one = twins(make(**synapse))[1]
    library = type(one).__bases__[1]
    with torch.no_grad():
        one(current(B, T, *N))
    buffer = io.BytesIO()
    torch.save(one, buffer)
    buffer.seek(0)
    copies = [copy.deepcopy(one), pickle.loads(pickle.dumps(one)), torch.load(buffer, weights_only=False)]
    copies.append(copy.deepcopy(one))
    revert(copies[3])
    assert [type(layer) for layer in copies] == [type(one)] * 3 + [library]
    x = current(B, T, *N, seed=1)
    expected = one(x)
    for layer in copies:
        assert torch.equal(layer(x), expected)
        assert_near(layer.v_mem, one.v_mem, 1e-5, floor=1.0)


def test_state_dicts_are_theirs() -> None:
    model = nn.Sequential(*(make(**synapse) for make in NEURONS.values() for synapse in SYNAPSES.values()))
    other = copy.deepcopy(model)
    convert(model, strict=True)
    assert repr(model) == repr(other)
    for part in (model, other):
        with torch.no_grad():
            for layer in part:
                layer(current(B, T, *N))
    assert model.state_dict().keys() == other.state_dict().keys()
    with torch.no_grad():
        other[0].tau_mem.fill_(3.0), other[0].v_mem.fill_(0.5)
    model.load_state_dict(other.state_dict())
    other.load_state_dict(model.state_dict())
    assert (model[0].tau_mem, model[0].v_mem.mean()) == (3.0, 0.5)


@pytest.mark.few(1)
@on_synapses
def test_compile(synapse: dict) -> None:
    """sinabs' layers, and so ours, are a break in the graph."""
    torch.compiler.reset()
    models = [nn.Sequential(nn.Linear(5, 5), layer) for layer in twins(layers.LIF(5.0, norm_input=False, **synapse))]
    models[1][0].load_state_dict(models[0][0].state_dict())
    squeezed = layers.IAFSqueeze(batch_size=B)
    models += [nn.Sequential(nn.Flatten(0, 1), layer) for layer in twins(squeezed)]
    x, found = current(B, 4, *N), []
    for model in models:
        compiled = torch.compile(model, backend="aot_eager")
        outputs = torch.stack([compiled(x) for _ in range(3)])
        gradients = torch.autograd.grad(outputs.sum(), list(model[0].parameters())) if model is models[1] else []
        found.append((outputs, gradients, model[1].v_mem))
    assert found[0][0].mean() > 0.05
    for theirs, one in (found[:2], found[2:]):
        assert_equal(one[0], theirs[0])
        assert_equal(one[2], theirs[2])


def test_convert_after_compile() -> None:
    """A model that is compiled already notices."""
    torch.compiler.reset()
    model, x = nn.Sequential(nn.Linear(5, 5), layers.IAF()), current(B, 4, *N)
    compiled = torch.compile(model, backend=CompileCounter())
    expected = compiled(x)
    model[1].reset_states()
    convert(compiled, strict=True)
    with only_kernels():
        assert_equal(compiled(x), expected)


def test_autocast() -> None:
    model = nn.Sequential(nn.Linear(5, 5), layers.LIF(5.0))
    convert(model, strict=True)
    with torch.autocast("cpu", torch.bfloat16), only_kernels():
        spikes = model(10 * current(B, T, *N))
    assert spikes.dtype == model[1].v_mem.dtype == torch.float32
    spikes.sum().backward()
    assert model[0].weight.grad.abs().sum() > 0


# ---------------------------------------------------------------------------------------------------------- direct use


@pytest.mark.parametrize("name", ["LIF", "IAF", "LIFSqueeze", "IAFSqueeze"])
def test_direct_use(name: str) -> None:
    options = {"spike_threshold": 0.5, "spike_fn": activation.SingleSpike, "min_v_mem": 0.0}
    options |= {"tau_mem": 4.0} if name.startswith("LIF") else {}
    options |= {"num_timesteps": T} if name.endswith("Squeeze") else {}
    theirs, one = (getattr(library, name)(**options) for library in (layers, ours))
    assert isinstance(one, type(theirs))
    assert repr(one) == repr(theirs)
    shape = (B * T, *N) if name.endswith("Squeeze") else (B, T, *N)
    assert_same(theirs, one, [current(*shape)])
    with pytest.raises(TypeError):
        getattr(ours, name)(no_such_option=1, **options)


def test_a_subclass_of_ours_runs_on_the_kernels() -> None:
    class Mine(ours.LIF):
        @property
        def alpha_mem_calculated(self) -> Tensor:
            return self.tau_mem / 10

    theirs, one = layers.LIF(5.0, norm_input=False), Mine(5.0, norm_input=False)
    with torch.no_grad():
        theirs.tau_mem.copy_(-1 / torch.tensor(0.5).log())
    with only_kernels():
        spikes = one(current(B, T, *N))
    assert_equal(spikes, theirs(current(B, T, *N)))


@on_neurons
@on_synapses
def test_several_optimiser_steps(make: Callable, synapse: dict) -> None:
    """Between two linear layers, the state kept over the steps, without its graph."""
    torch.manual_seed(0)
    theirs = nn.Sequential(
        nn.Linear(6, 3), nn.Unflatten(-1, (3, 1, 1)), make(**synapse), nn.Flatten(2), nn.Linear(3, 2)
    )
    one = copy.deepcopy(theirs)
    optimisers = [torch.optim.Adam(model.parameters(), lr=0.02) for model in (theirs, one)]
    convert(one, strict=True)
    losses: list[list[float]] = [[], []]
    for step in range(8):
        x, target = 4 * current(B, T, 6, seed=step), randn(B, 2, seed=100 + step)
        for model, optimiser, history in zip((theirs, one), optimisers, losses, strict=True):
            optimiser.zero_grad()
            sinabs.zero_grad(model)
            loss = (model(x).mean(1) - target).square().mean()
            loss.backward()
            optimiser.step()
            history.append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    for p, q in zip(theirs.parameters(), one.parameters(), strict=True):
        assert_near(q, p, 1e-3)
