"""The drop-in layers beside SpikingJelly's own, call by call: spikes, state and every gradient.

In fp64 the two round so finely that all spikes are equal. In fp32 a spike of an LIF neuron may differ where its
potential is within rounding of the threshold; in bf16 and fp16, ours is compared with SpikingJelly in fp32.
"""

from __future__ import annotations

import copy
import inspect
import io
import math
import pickle
from collections.abc import Callable, Sequence

import pytest
import torch
from kernel_helpers import (
    assert_flips_at_crossings,
    assert_gradients,
    assert_near,
    assert_same_bits,
    channels_last,
    randn,
)
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

neuron = pytest.importorskip("spikingjelly.activation_based.neuron", reason="SpikingJelly is not installed")
from spikingjelly.activation_based import base, encoding, functional, surrogate  # noqa: E402

from esvae_kernels.dropin import convert, revert, spikingjelly  # noqa: E402

T, N = 18, (4, 6)  # longer than a chunk of the kernels
NODES = {
    "LIF": lambda **o: neuron.LIFNode(**{"tau": 1.7} | o),
    "LIF-undamped-input": lambda **o: neuron.LIFNode(**{"tau": 1.7, "decay_input": False} | o),
    "IF": lambda **o: neuron.IFNode(**o),
    "PLIF": lambda **o: neuron.ParametricLIFNode(**{"init_tau": 1.7} | o),
    "PLIF-undamped-input": lambda **o: neuron.ParametricLIFNode(**{"init_tau": 1.7, "decay_input": False} | o),
}
RESETS = {"to-0": 0.0, "to-0.2": 0.2, "soft": None}
KNOWN = [*spikingjelly.SURROGATES]
UNKNOWN = [  # every other surrogate that needs no argument and has a gradient
    cls
    for _, cls in inspect.getmembers(surrogate, inspect.isclass)
    if issubclass(cls, surrogate.SurrogateFunctionBase)
    and cls not in (*KNOWN, surrogate.SurrogateFunctionBase, surrogate.MultiLevelSpikeCount, surrogate.PoissonPass)
]

on_nodes = pytest.mark.parametrize("make", NODES.values(), ids=NODES)
on_modes = pytest.mark.parametrize("mode", ["s", "m"])


@pytest.fixture(autouse=True)
def in_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Single steps of any size, which SpikingJelly's own ops would run faster."""
    monkeypatch.setitem(spikingjelly.LEAST_ELEMENTS, "cpu", 0)


@pytest.fixture
def no_code_of_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    """SpikingJelly's neurons cannot run."""

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("SpikingJelly's code ran")

    for name in ("lif_multi_step", "plif_multi_step", "if_multi_step", "lif_step", "plif_step", "if_step"):
        monkeypatch.setattr(functional, name, fail)


def twins(layer: nn.Module) -> tuple[nn.Module, nn.Module]:
    """SpikingJelly's and ours."""
    ours = copy.deepcopy(layer)
    assert convert(ours, strict=True).replaced
    return layer, ours


def current(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Under which a neuron of threshold 1 fires every few steps."""
    return (1.5 * randn(*shape, seed=seed, dtype=dtype) + 0.5).to(dtype)


def call(layer: nn.Module, x: Tensor) -> Tensor:
    """All of a sequence, step by step if that is the layer's mode."""
    return layer(x) if layer.step_mode == "m" else torch.stack([layer(x_t) for x_t in x])


def results(layer: nn.Module, xs: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Spikes, states and stored states of calls in a row, and the gradients of everything for fixed cotangents."""
    xs = [x.detach().requires_grad_() for x in xs]
    outputs = []
    for x in xs:
        outputs += [call(layer, x), layer.v] + ([layer.v_seq] if layer.store_v_seq else [])
    cotangents = [randn(*o.shape, seed=50 + i, dtype=o.dtype) for i, o in enumerate(outputs)]
    wanted = [*xs, *layer.parameters()]
    return [o.detach() for o in outputs], list(torch.autograd.grad(outputs, wanted, cotangents))


def assert_same(theirs: nn.Module, ours: nn.Module, *xs: Tensor) -> None:
    """In fp64: equal spikes, and states and gradients within its rounding."""
    (outputs, gradients), (expected, expected_gradients) = results(ours, xs), results(theirs, xs)
    assert 0.02 < outputs[0].mean() < 0.9
    for output, wanted in zip(outputs, expected, strict=True):
        assert output.dtype == wanted.dtype
        assert_near(output, wanted, 1e-13, floor=1.0)
    assert torch.equal(outputs[0], expected[0])
    assert_gradients(gradients, expected_gradients)


# ------------------------------------------------------------------------------------------- spikes, state, gradients


@on_nodes
@on_modes
@pytest.mark.parametrize("v_reset", RESETS.values(), ids=RESETS)
@pytest.mark.parametrize("detach_reset", [False, True], ids=["", "detached"])
@pytest.mark.parametrize("store_v_seq", [False, True], ids=["", "stored"])
def test_calls_in_a_row(
    make: Callable, mode: str, v_reset: float | None, detach_reset: bool, store_v_seq: bool
) -> None:
    """The state goes on from call to call, with its graph; where the shape changes, it starts again."""
    layer = make(
        v_reset=v_reset, v_threshold=0.9, detach_reset=detach_reset, step_mode=mode, store_v_seq=store_v_seq
    ).double()
    assert_same(*twins(layer), current(T, *N), current(3, *N, seed=1), current(2, 5, 3, 2, seed=2))


@on_nodes
@pytest.mark.parametrize("v_reset", RESETS.values(), ids=RESETS)
def test_flips_of_fp32_are_at_crossings(make: Callable, v_reset: float | None) -> None:
    theirs, ours = twins(make(v_reset=v_reset, step_mode="m", store_v_seq=True))
    x = current(T, 200, 50, dtype=torch.float32)
    with torch.no_grad():
        spikes, expected = ours(x), theirs(x)
        before = torch.cat([torch.full_like(x[:1], v_reset or 0.0), theirs.v_seq[:-1]])
        membrane = charged(theirs, x, before)
    flipped = assert_flips_at_crossings(spikes, expected, membrane, torch.tensor([1.0]), ulps=8)
    assert flipped.float().mean() < 1e-3
    assert_near(ours.v_seq[:, ~flipped], theirs.v_seq[:, ~flipped], 1e-6)
    if isinstance(theirs, neuron.IFNode):
        assert torch.equal(spikes, expected)
        assert torch.equal(ours.v_seq, theirs.v_seq)


def charged(layer: nn.Module, x: Tensor, v: Tensor) -> Tensor:
    if isinstance(layer, neuron.IFNode):
        return v + x
    tau = layer.tau if isinstance(layer, neuron.LIFNode) else (1 / layer.w.sigmoid()).item()
    return functional.lif_charge(x, v, tau, layer.decay_input, layer.v_reset)


@on_nodes
def test_gradients_of_fp32(make: Callable) -> None:
    """Against SpikingJelly's own fused backward."""
    layer = make(step_mode="m", v_reset=None, surrogate_function=surrogate.ATan())
    (outputs, gradients), (expected, expected_gradients) = [results(m, [current(T, *N).float()]) for m in twins(layer)]
    assert torch.equal(outputs[0], expected[0])
    assert_gradients(gradients, expected_gradients)


@on_nodes
@on_modes
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "f16"])
def test_half_precision_is_that_of_fp32(make: Callable, mode: str, dtype: torch.dtype) -> None:
    """SpikingJelly's state has x's dtype, and so does ours; the spikes are those that it fires in fp32."""
    theirs, ours = twins(make(step_mode="m", store_v_seq=True))
    x = current(T, *N, dtype=dtype)
    expected, spikes = theirs(x.float()), ours(x)
    assert ours.v.dtype == ours.v_seq.dtype == spikes.dtype == dtype
    assert torch.equal(spikes, expected.to(dtype))
    assert_near(ours.v_seq, theirs.v_seq, 1e-6, floor=1.0)
    functional.reset_net(theirs), functional.reset_net(ours)
    theirs.step_mode = ours.step_mode = mode
    assert call(theirs, x).dtype == call(ours, x).dtype == dtype
    assert theirs.v.dtype == ours.v.dtype == dtype


@pytest.mark.parametrize("make", NODES.values(), ids=NODES)
def test_half_precision_parameters(make: Callable) -> None:
    """A whole model in bf16: its parameters are taken as they are, and computed with in fp32."""
    ours = make(step_mode="m", store_v_seq=True).bfloat16()
    theirs = copy.deepcopy(ours).float()
    convert(ours, strict=True)
    x = current(T, *N, dtype=torch.bfloat16)
    spikes = ours(x)
    assert torch.equal(spikes.float(), theirs(x.float()))
    assert_near(ours.v_seq, theirs.v_seq, 1e-6, floor=1.0)
    for p in ours.parameters():
        assert torch.autograd.grad(spikes.sum(), p)[0].dtype == torch.bfloat16


@pytest.mark.parametrize("spiking", [True, False], ids=["spikes", "smooth"])
@pytest.mark.parametrize("cls", KNOWN, ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("alpha", [None, 3.0], ids=["default", "3"])
def test_surrogates(cls: type, alpha: float | None, spiking: bool) -> None:
    has_alpha = cls is not surrogate.DeterministicPass
    function = cls(**({"alpha": alpha} if alpha and has_alpha else {}), spiking=spiking)
    layer = neuron.LIFNode(surrogate_function=function, step_mode="m", v_reset=None, tau=1.7).double()
    if cls is surrogate.SuperSpike and not spiking:
        assert "no primitive" in convert(layer).kept[0].why_not
        return
    (outputs, gradients), (expected, expected_gradients) = [results(m, [current(T, *N)]) for m in twins(layer)]
    for output, wanted in zip(outputs, expected, strict=True):
        assert_near(output, wanted, 1e-12, floor=1.0)
    assert_gradients(gradients, expected_gradients)


@pytest.mark.parametrize("cls", KNOWN, ids=lambda cls: cls.__name__)
def test_a_threshold_that_is_never_reached(cls: type) -> None:
    """Infinity, as in networks that read out potentials."""
    layer = neuron.LIFNode(v_threshold=math.inf, surrogate_function=cls(), step_mode="m", store_v_seq=True)
    for dtype in (torch.float32, torch.float64):
        (outputs, gradients), (expected, expected_gradients) = [
            results(m, [current(T, *N, dtype=dtype)]) for m in twins(layer)
        ]
        for output, wanted in zip(outputs, expected, strict=True):
            assert_near(output, wanted, 1e-6)
        assert_gradients(gradients, expected_gradients)
        layer.reset()


def test_channels_last() -> None:
    theirs, ours = twins(neuron.LIFNode(tau=1.7, step_mode="m").double())
    x = channels_last(current(T, 2, 3, 4, 5))
    assert torch.equal(ours(x), theirs(x))
    assert_near(ours.v, theirs.v, 1e-13)
    x = x[0]
    theirs.step_mode = ours.step_mode = "s"
    assert torch.equal(ours(x), theirs(x))


def test_without_gradients() -> None:
    theirs, ours = twins(neuron.ParametricLIFNode(step_mode="m").double().eval())
    x = current(T, *N)
    with torch.no_grad():
        assert torch.equal(ours(x), theirs(x))
    assert not ours.v.requires_grad


# ------------------------------------------------------------------------- what SpikingJelly's own code goes on to do


@pytest.mark.parametrize("cls", UNKNOWN, ids=lambda cls: cls.__name__)
@on_modes
def test_other_surrogates_run_exactly_as_theirs(cls: type, mode: str) -> None:
    theirs = neuron.LIFNode(surrogate_function=cls(), step_mode=mode, store_v_seq=True, v_reset=None)
    ours = spikingjelly.LIFNode(surrogate_function=cls(), step_mode=mode, store_v_seq=True, v_reset=None)
    xs = [current(T, *N).float(), current(3, *N).float()]
    for pair in zip(results(theirs, xs), results(ours, xs), strict=True):
        for expected, actual in zip(*pair, strict=True):
            assert_same_bits(actual, expected)
    why_not = convert(nn.Sequential(theirs)).kept[0].why_not
    assert why_not.startswith(f"the kernels lack the surrogate {cls.__name__}(")


def _lacking() -> dict[str, nn.Module]:
    hooked = neuron.LIFNode(surrogate_function=surrogate.ATan())
    hooked.surrogate_function.register_forward_hook(lambda *_: None)
    margin = neuron.IFNode()
    functional.set_threshold_margin(margin, torch.eye(6)[:4])
    patched = neuron.LIFNode()
    patched.single_step_functional_forward = lambda inputs, states: (inputs, states)
    profile = neuron.LIFNode()
    profile._neuron_precision = (torch.float16, "fp32", "fp32")
    stateless = neuron.LIFNode()
    stateless.v = None
    learnt = neuron.LIFNode()
    learnt.tau = nn.Parameter(torch.tensor(2.0))
    several = neuron.ParametricLIFNode()
    several.w = nn.Parameter(torch.zeros(6))
    return {
        "has hooks": hooked,
        "v_threshold is a Tensor": margin,
        "v_threshold is inf": neuron.LIFNode(v_threshold=math.inf, v_reset=None),
        "v_reset is nan": neuron.LIFNode(v_reset=math.nan),
        "single_step_functional_forward is its own": patched,
        "precision profile": profile,
        "state v is None": stateless,
        "tau is a Parameter": learnt,
        "w has shape (6,)": several,
        "lack the surrogate Sigmoid(alpha=-1.0": neuron.LIFNode(surrogate_function=surrogate.Sigmoid(-1.0)),
    }


@pytest.mark.parametrize("why", _lacking())
def test_what_is_not_replaced(why: str) -> None:
    layer = _lacking()[why]
    model = nn.Sequential(nn.Linear(6, 6), layer, neuron.IFNode())
    with pytest.raises(ValueError, match=r"model: 1 neuron layers cannot be replaced: 1 \(spikingjelly ") as raised:
        convert(model, strict=True)
    assert "\n" not in str(raised.value)
    assert type(model[2]) is neuron.IFNode
    (kept,) = convert(model).kept
    assert kept.name == "1"
    assert why in kept.why_not
    assert type(layer).__module__.startswith("spikingjelly")
    assert type(model[2]) is spikingjelly.IFNode


def test_an_option_changed_later_is_heeded() -> None:
    """A threshold per sample, and a surrogate that the kernels lack, after `convert`."""
    theirs, ours = twins(neuron.LIFNode(step_mode="m", surrogate_function=surrogate.ATan()).double())
    x = current(T, *N)
    for layer in (theirs, ours):
        functional.set_threshold_margin(layer, torch.eye(6)[:4].double())
    assert_same_bits(ours(x), theirs(x))
    functional.reset_net(theirs), functional.reset_net(ours)
    for layer in (theirs, ours):
        layer.v_threshold, layer.surrogate_function, layer.tau = 0.7, surrogate.S2NN(), 1.5
    assert_same(theirs, ours, x)


def test_other_inputs() -> None:
    """No dimension, no time steps, no neurons, another argument: as SpikingJelly does, its errors included."""
    theirs, ours = twins(neuron.LIFNode(tau=1.7))
    assert ours(torch.tensor(3.0)) == theirs(torch.tensor(3.0)) == 1
    assert ours.v == theirs.v
    for layer in (theirs, ours):
        layer.step_mode = "m"
        with pytest.raises((RuntimeError, IndexError, ValueError)):
            layer(torch.zeros(0, 3))
        layer.reset()
        with pytest.raises((TypeError, AttributeError)):
            layer(None)
    assert ours(torch.zeros(3, 0)).shape == (3, 0)


@on_nodes
def test_small_steps_run_by_spikingjellys_ops(make: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step below the limit, in every way to call one, bit for bit as theirs; a sequence always runs in the kernel."""
    monkeypatch.setitem(spikingjelly.LEAST_ELEMENTS, "cpu", 25)
    theirs, ours = twins(make(store_v_seq=True))
    calls = []
    run = spikingjelly.lif
    monkeypatch.setattr(spikingjelly, "lif", lambda *a, **o: calls.append(1) or run(*a, **o))
    x = current(3, *N, dtype=torch.float32)  # steps of 24 elements
    for pair in zip(results(theirs, [x]), results(ours, [x]), strict=True):
        for expected, actual in zip(*pair, strict=True):
            assert_same_bits(actual, expected)
    base.to_functional_forward(ours)((x[0],), (0.0,))
    for layer in (theirs, ours):
        layer.reset()
        layer.step_mode = "m"
    assert_same_bits(ours(x[:1]), theirs(x[:1]))
    base.to_functional_forward(ours)((x[:1],), (0.0,))
    assert not calls
    ours(x)
    ours.step_mode = "s"
    ours(current(100))  # a learnt decay costs more to start with
    assert len(calls) == 2


def test_neurons_of_other_kinds_are_left_alone() -> None:
    class Mine(neuron.LIFNode):
        def single_step_functional_forward(self, inputs, states, **kwargs):
            return (inputs[0] * 0 + 7,), states

    model = nn.Sequential(Mine(), neuron.QIFNode(), neuron.SimpleLIFNode(2.0, True), encoding.PoissonEncoder())
    before = [type(m) for m in model]
    why = [entry.why_not for entry in convert(model).kept]
    assert why == ["a subclass of LIFNode, left alone", "no kernel for it", "no kernel for it"]
    assert [type(m) for m in model] == before


class _Doubling:
    """A neuron whose state doubles what comes in."""

    def single_step_functional_forward(self, inputs, states, **kwargs):
        return (inputs[0] * 2,), (inputs[0] * 2,)


class _Halving:
    def multi_step_functional_forward(self, inputs, states, **kwargs):
        return (inputs[0] / 2,), (inputs[0][-1] / 2,)


class _FromOne:
    def materialize_states(self, inputs, states, step_mode):
        return (torch.ones_like(inputs[0][0] if step_mode == "m" else inputs[0]),)


@on_modes
@pytest.mark.parametrize("mixin", [_Doubling, _Halving, _FromOne], ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("store_v_seq", [False, True], ids=["", "stored"])
def test_a_subclass_of_ours_may_have_dynamics_of_its_own(mixin: type, mode: str, store_v_seq: bool) -> None:
    """It runs as the same subclass of SpikingJelly's class does."""
    x = current(T, *N)
    theirs, ours = (
        type("Mine", (mixin, library.LIFNode), {})(step_mode=mode, store_v_seq=store_v_seq)
        for library in (neuron, spikingjelly)
    )
    assert_same_bits(call(ours, x), call(theirs, x))
    assert_same_bits(ours.v, theirs.v)


def test_a_subclass_of_ours_runs_on_the_kernels(no_code_of_theirs: None) -> None:
    class Mine(spikingjelly.LIFNode):
        def extra_repr(self) -> str:
            return "mine"

    Mine(step_mode="m")(current(T, *N))


# --------------------------------------------------------------------------------------- SpikingJelly's own functions


@on_nodes
def test_kernels_run(make: Callable, no_code_of_theirs: None) -> None:
    """What is compared in this file is not SpikingJelly's code called by ours."""
    ours = twins(make(step_mode="m"))[1]
    for mode in ("m", "s"):
        ours.step_mode = mode
        call(ours, current(T, *N))
    base.to_functional_forward(ours)((current(*N),), (0.0,))
    revert(ours)
    with pytest.raises(AssertionError, match="SpikingJelly's code ran"):
        ours(current(*N))


@on_modes
def test_reset_detach_and_memories(mode: str) -> None:
    theirs, ours = (nn.Sequential(m) for m in twins(neuron.LIFNode(tau=1.7, step_mode=mode, store_v_seq=True).double()))
    x = current(T, *N).requires_grad_()
    for model in (theirs, ours):
        call(model[0], x)
        assert model[0].v.requires_grad
        functional.detach_net(model)
        assert not model[0].v.requires_grad
        assert not model[0].v_seq.requires_grad
    for (name, value), (same, expected) in zip(base.named_memories(ours), base.named_memories(theirs), strict=True):
        assert name == same
        assert_near(value, expected, 1e-13)
    for model in (theirs, ours):
        functional.reset_net(model)
        assert (model[0].v, model[0].v_seq) == (0.0, None)


def test_set_step_mode() -> None:
    model = nn.Sequential(*(make() for make in NODES.values()))
    convert(model, strict=True)
    functional.set_step_mode(model, "m")
    assert {m.step_mode for m in model} == {"m"}
    with pytest.raises(ValueError, match="step_mode"):
        model[0].step_mode = "x"


@on_nodes
@on_modes
def test_functional_forward(make: Callable, mode: str) -> None:
    """One layer, a Sequential of layers, and with vmap: the state is an argument, the layer's own is not touched."""
    theirs, ours = twins(make(step_mode=mode).double())
    x, v = current(*((T,) if mode == "m" else ()), *N), current(*N, seed=3)
    (spikes,), (after,) = base.to_functional_forward(ours)((x,), (v,))
    (expected,), (expected_after,) = base.to_functional_forward(theirs)((x,), (v,))
    assert torch.equal(spikes, expected)
    assert_near(after, expected_after, 1e-13)
    assert ours.v == 0.0
    models = [nn.Sequential(nn.Identity(), layer, copy.deepcopy(layer)) for layer in (ours, theirs)]
    outputs = [base.to_functional_forward(model)((x,), (v, v)) for model in models]
    assert torch.equal(outputs[0][0][0], outputs[1][0][0])
    assert_near(outputs[0][1][1], outputs[1][1][1], 1e-13)


def test_the_state_that_is_given_is_used() -> None:
    """`node.v = tensor`, of another dtype too, and memories loaded into a converted model."""
    theirs, ours = twins(neuron.LIFNode(tau=1.7, step_mode="m").double())
    v, x = current(*N, seed=5).float(), current(T, *N)
    for layer in (theirs, ours):
        layer.v = v.clone()
    assert torch.equal(ours(x), theirs(x))
    assert_near(ours.v, theirs.v, 1e-13)
    base.load_memories(ours, [v.clone()]), base.load_memories(theirs, [v.clone()])
    assert torch.equal(ours(x), theirs(x))


# ----------------------------------------------------------------------------------------------- copies and compiling


@on_nodes
def test_copies_go_on_from_the_same_state(make: Callable) -> None:
    """deepcopy, pickle and torch.save of a converted layer; `revert` in the middle of a sequence."""
    ours = twins(make(step_mode="m").double())[1]
    with torch.no_grad():
        ours(current(T, *N))
    buffer = io.BytesIO()
    torch.save(ours, buffer)
    buffer.seek(0)
    copies = [
        copy.deepcopy(ours),
        pickle.loads(pickle.dumps(ours)),
        torch.load(buffer, weights_only=False),
        copy.deepcopy(ours),
    ]
    revert(copies[3])
    assert [type(layer) for layer in copies] == [type(ours)] * 3 + [type(ours)._library]
    x = current(T, *N, seed=1)
    expected = ours(x)
    for layer in copies:
        assert torch.equal(layer(x), expected)
        assert_near(layer.v, ours.v, 1e-13)


def test_state_dicts_are_theirs() -> None:
    model = nn.Sequential(nn.Linear(6, 6), *(make() for make in NODES.values()))
    other = copy.deepcopy(model)
    convert(model, strict=True)
    assert model.state_dict().keys() == other.state_dict().keys()
    with torch.no_grad():
        other[4].w.fill_(0.3)
    model.load_state_dict(other.state_dict())
    other.load_state_dict(model.state_dict())
    assert model[4].w == 0.3
    assert repr(model) == repr(other)


@pytest.mark.few(2)
@on_nodes
@on_modes
def test_compile(make: Callable, mode: str) -> None:
    """In one graph where SpikingJelly's is, from the first call (no state yet) and from a state."""
    torch.compiler.reset()
    layers = [nn.Sequential(layer) for layer in twins(make(step_mode=mode).double())]
    eager = copy.deepcopy(layers[1])
    x = (1 + current(*((3,) if mode == "m" else ()), *N)).requires_grad_()  # few steps: SpikingJelly's are unrolled
    for layer in layers:
        compiled, found = torch.compile(layer, fullgraph=True, backend="aot_eager"), []
        for _ in range(3):
            found.append(compiled(x))
        expected = [eager(x) for _ in range(3)]
        functional.reset_net(eager)
        assert torch.stack(found).mean() > 0.1
        for spikes, wanted in zip(found, expected, strict=True):
            assert torch.equal(spikes, wanted)
        gradients = torch.autograd.grad(torch.stack(found).sum(), [x, *layer.parameters()])
        assert_gradients(gradients, torch.autograd.grad(torch.stack(expected).sum(), [x, *eager.parameters()]))


def test_convert_after_compile() -> None:
    """A model that is compiled already notices: it compiles again."""
    torch.compiler.reset()
    model, counter = nn.Sequential(neuron.LIFNode(step_mode="m")), CompileCounter()
    compiled, x = torch.compile(model, backend=counter), current(T, *N)
    compiled(x)
    functional.reset_net(model)
    before = counter.frame_count
    compiled(x)
    assert counter.frame_count == before
    functional.reset_net(model)
    convert(compiled, strict=True)
    compiled(x)
    assert counter.frame_count > before


def test_autocast() -> None:
    model = nn.Sequential(nn.Linear(6, 6), neuron.LIFNode(step_mode="m"))
    convert(model, strict=True)
    with torch.autocast("cpu", torch.bfloat16):
        spikes = model(current(T, *N).float())
    assert spikes.dtype == model[1].v.dtype == torch.bfloat16
    spikes.float().sum().backward()
    assert model[0].weight.grad.abs().sum() > 0


# -------------------------------------------------------------------------------------------------------- direct use


@pytest.mark.parametrize("name", ["LIFNode", "IFNode", "ParametricLIFNode"])
def test_direct_use(name: str) -> None:
    """The same arguments, and `backend` of earlier versions."""
    options = {"v_threshold": 0.8, "v_reset": None, "detach_reset": True, "step_mode": "m", "store_v_seq": True}
    theirs = getattr(neuron, name)(**options).double()
    ours = getattr(spikingjelly, name)(**options, backend="cupy").double()
    assert isinstance(ours, type(theirs))
    assert repr(ours) == repr(theirs)
    assert_same(theirs, ours, current(T, *N))
    with pytest.raises(TypeError):
        getattr(spikingjelly, name)(no_such_option=1)


@on_nodes
def test_several_optimiser_steps(make: Callable) -> None:
    """Between two linear layers, the state kept over the steps, detached."""
    torch.manual_seed(0)
    theirs = nn.Sequential(nn.Linear(6, 20), make(step_mode="m"), nn.Linear(20, 3)).double()
    ours = copy.deepcopy(theirs)
    optimisers = [torch.optim.Adam(model.parameters(), lr=0.02) for model in (theirs, ours)]
    convert(ours, strict=True)
    losses: list[list[float]] = [[], []]
    for step in range(8):
        x, target = current(T, *N, seed=step), randn(4, 3, seed=100 + step, dtype=torch.float64)
        for model, optimiser, history in zip((theirs, ours), optimisers, losses, strict=True):
            loss = (model(x).mean(0) - target).square().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            functional.detach_net(model)
            history.append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-10)
    for p, q in zip(theirs.parameters(), ours.parameters(), strict=True):
        assert_near(q, p, 1e-9)


# ----------------------------------------------------------------------------------------------------------- encoder


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_poisson_encoder(dtype: torch.dtype) -> None:
    """The same shape, dtype and rates; reproducible by torch's seed; new noise at each call and time step."""
    encoder = spikingjelly.PoissonEncoder(step_mode="m")
    assert isinstance(encoder, encoding.PoissonEncoder)
    rates = torch.linspace(0, 1, 5, dtype=dtype).expand(4, 20_000, 5)
    torch.manual_seed(0)
    spikes, again = encoder(rates), encoder(rates)
    assert (spikes.shape, spikes.dtype) == (rates.shape, dtype)
    assert set(spikes.unique().tolist()) == {0.0, 1.0}
    assert not torch.equal(spikes, again)
    assert not torch.equal(spikes[0], spikes[1])
    torch.testing.assert_close(spikes.double().mean((0, 1)), rates[0, 0].double(), rtol=0, atol=0.01)
    torch.manual_seed(0)
    assert torch.equal(encoder(rates), spikes)


def test_poisson_encoder_has_no_gradient() -> None:
    x = torch.rand(3, requires_grad=True)
    for encoder in (encoding.PoissonEncoder(), spikingjelly.PoissonEncoder()):
        assert not encoder(x).requires_grad
    assert spikingjelly.PoissonEncoder()(torch.tensor(1.0)).shape == ()
