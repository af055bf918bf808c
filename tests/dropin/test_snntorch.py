"""`dropin.snntorch` against snnTorch: single steps, sequences, states, and a loop over time as one call."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from itertools import product

import pytest
import torch
from kernel_helpers import assert_gradients, assert_same_bits, assert_sums, one_line, randn
from torch import Tensor, nn

pytest.importorskip("snntorch", reason="snnTorch is not installed")
import snntorch
from parts import lif
from snntorch import surrogate, utils

from esvae_kernels import dropin
from esvae_kernels.dropin import snntorch as ours
from esvae_kernels.dropin.snntorch import Leaky, unroll

T, SHAPE = 9, (4, 3, 2, 5)
RESETS = list(product(("subtract", "zero", "none"), (True, False)))
RESET_IDS = [f"{mechanism}-{'delayed' if delay else 'at_once'}" for mechanism, delay in RESETS]
WAYS = ["steps", "sequence"]


@pytest.fixture(autouse=True)
def in_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Single steps of any size, which snnTorch's own ops would run faster."""
    monkeypatch.setitem(ours.LEAST_ELEMENTS, "cpu", 0)


@pytest.fixture(autouse=True)
def own_instances() -> Iterator[None]:
    """snnTorch keeps every layer for ever, and resets them all together."""
    before = snntorch.SpikingNeuron.instances
    snntorch.SpikingNeuron.instances = []
    yield
    snntorch.SpikingNeuron.instances = before


def loop(layer: snntorch.Leaky, x: Tensor, mem: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """What a user writes: the layer in a loop over time, its spikes and potentials stacked."""
    spikes, potentials = [], []
    for t in range(len(x)):
        if layer.init_hidden:
            out = layer(x[t])
            spike, mem = out if layer.output else (out, layer.mem)
        else:
            spike, mem = layer(x[t], mem) if mem is not None else layer(x[t])
        spikes.append(spike), potentials.append(mem)
    return torch.stack(spikes), torch.stack(potentials)


def run(layer: snntorch.Leaky, x: Tensor, mem: Tensor | None, way: str) -> tuple[list[Tensor], list[Tensor]]:
    """Spikes, potentials and the last of them; gradients of x, mem and what is learnt."""
    inputs = [t.detach().requires_grad_() for t in (x, mem) if t is not None]
    outputs = [*(loop(layer, *inputs) if way == "steps" else layer.sequence(*inputs)), layer.mem]
    cotangents = [randn(*o.shape, seed=3 + k, dtype=o.dtype) for k, o in enumerate(outputs)]
    live = [(o, c) for o, c in zip(outputs, cotangents, strict=True) if o.requires_grad]
    live_outputs, live_cotangents = zip(*live, strict=True)
    wanted = [*inputs, *layer.parameters()]
    gradients = torch.autograd.grad(live_outputs, wanted, live_cotangents, allow_unused=True)
    return [o.detach() for o in outputs], list(gradients)


def assert_equal(
    one: Leaky, other: snntorch.Leaky, x: Tensor, mem: Tensor | None, way: str, fused: bool = True
) -> None:
    """The outputs in every bit, the gradients within rounding. `fused`: the kernels run it."""
    assert (one.why_slow(x[0], mem) is None) == fused, one.why_slow(x[0], mem)
    (outputs, gradients), (expected, expected_gradients) = run(one, x, mem, way), run(other, x, mem, "steps")
    for actual, wanted in zip(outputs, expected, strict=True):
        assert_same_bits(actual + 0.0, wanted + 0.0)  # -0 is as good as 0
    assert 0.05 < (outputs[0] != 0).float().mean() < 0.95
    number = 1 + (mem is not None)
    assert_gradients(gradients[:number], expected_gradients[:number], torch.promote_types(x.dtype, torch.float32))
    learnt, wanted = gradients[number:], expected_gradients[number:]
    assert [g is None for g in learnt] == [g is None for g in wanted]
    keep = [k for k, g in enumerate(learnt) if g is not None]
    assert_sums([learnt[k] for k in keep], [wanted[k] for k in keep], x.numel(), torch.float32)


def pair(*args: object, **options: object) -> tuple[Leaky, snntorch.Leaky]:
    def fresh(value: object) -> object:
        return value.clone() if isinstance(value, Tensor) else value

    one, other = (
        cls(*map(fresh, args), **{k: fresh(v) for k, v in options.items()}) for cls in (Leaky, snntorch.Leaky)
    )
    return one, other


def current(dtype: torch.dtype = torch.float32) -> Tensor:
    """With potentials far below and far above the threshold."""
    return (1.5 * randn(T, *SHAPE)).to(dtype)


def per_channel(low: float, high: float) -> Tensor:
    return torch.linspace(low, high, SHAPE[1]).view(-1, 1, 1)


PARAMETERS = {
    "numbers": lambda: {"beta": 0.8, "threshold": 0.6},
    "clamped-above": lambda: {"beta": 1.3, "threshold": 0.6},
    "clamped-below": lambda: {"beta": -0.3, "threshold": 0.6},
    "integers": lambda: {"beta": 1, "threshold": 1},
    "learnt": lambda: {"beta": torch.tensor(0.8), "threshold": torch.tensor([0.6]), "learn": True},
    "channels": lambda: {"beta": per_channel(0.3, 0.9), "threshold": per_channel(0.4, 0.8)},
    "channels-learnt": lambda: {
        "beta": per_channel(-0.3, 1.2)[None],  # clamped below and above
        "threshold": per_channel(0.4, 0.8),
        "learn": True,
    },
}


def options_of(parameters: str) -> dict[str, object]:
    options = PARAMETERS[parameters]()
    learn = options.pop("learn", False)
    return options | {"learn_beta": learn, "learn_threshold": learn}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("given", [False, True], ids=["from-0", "from-mem"])
@pytest.mark.parametrize("parameters", PARAMETERS)
@pytest.mark.parametrize(("mechanism", "delay"), RESETS, ids=RESET_IDS)
def test_equals_snntorch(mechanism: str, delay: bool, parameters: str, given: bool, way: str) -> None:
    one, other = pair(**options_of(parameters), reset_mechanism=mechanism, reset_delay=delay)
    mem = randn(*SHAPE, seed=1) if given else None  # partly above the threshold
    assert_equal(one, other, current(), mem, way)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("mechanism", "delay"), RESETS, ids=RESET_IDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_dtypes(dtype: torch.dtype, mechanism: str, delay: bool, way: str) -> None:
    """snnTorch's spikes are fp32 (and gradients through them, of fp64 too), and with a reset so are the potentials of
    half-precision currents."""
    one, other = pair(0.8, 0.6, reset_mechanism=mechanism, reset_delay=delay)
    half = dtype.itemsize == 2
    x, fused = current(dtype), not (half and mechanism == "none")
    assert (one.why_slow(x[0]) is None) == fused
    outputs, gradients = run(one, x, None, way)
    expected, wanted = run(other, x, None, "steps")
    for a, e in zip(outputs, expected, strict=True):
        assert_same_bits(a + 0.0, e + 0.0)
    assert_gradients(gradients, wanted, dtype if half else torch.float32)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("mechanism", "delay"), RESETS, ids=RESET_IDS)
def test_at_the_threshold_nothing_fires(mechanism: str, delay: bool, way: str) -> None:
    one, other = pair(0.5, 0.5, reset_mechanism=mechanism, reset_delay=delay)
    x = (2 * current()).round() / 4
    assert (loop(other, x)[1] == 0.5).any()
    other.reset_mem()
    assert_equal(one, other, x, None, way)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("given", [False, True], ids=["from-0", "from-below-it"])
def test_a_threshold_below_zero(given: bool, way: str) -> None:
    """Where nothing is at rest, a reset to zero at once is another thing than one kernel does."""
    one, other = pair(0.8, -0.3, reset_mechanism="zero", reset_delay=False)
    assert_equal(one, other, current() - 1, torch.full(SHAPE, -0.5) if given else None, way)


KNOWN = {
    "atan": surrogate.atan(alpha=3.0),
    "fast_sigmoid": surrogate.fast_sigmoid(slope=5),
    "sigmoid": surrogate.sigmoid(slope=4),
    "straight_through_estimator": surrogate.straight_through_estimator(),
    "spike_rate_escape": surrogate.spike_rate_escape(beta=2, slope=3),
}


def own_surrogate(u: Tensor) -> Tensor:
    return surrogate.ATan.apply(u, 2.0)


UNKNOWN = {
    "triangular": surrogate.triangular(),
    "heaviside": surrogate.heaviside(),
    "SFS": surrogate.SFS(slope=5, B=0.1),
    "custom": surrogate.custom_surrogate(lambda u, grad, spikes: grad * 0.5),
    "own": own_surrogate,
    "lambda": lambda u: surrogate.ATan.apply(u, 2.0),
    "tensor-slope": surrogate.fast_sigmoid(torch.tensor(5.0)),
    "negative-slope": surrogate.atan(-2.0),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("delay", [True, False], ids=["delayed", "at_once"])
@pytest.mark.parametrize("name", [*KNOWN, *UNKNOWN])
def test_surrogates(name: str, delay: bool, way: str) -> None:
    one, other = pair(0.8, 0.6, spike_grad=(KNOWN | UNKNOWN)[name], reset_delay=delay)
    assert_equal(one, other, current(), None, way, fused=name in KNOWN)
    reason = Leaky.why_not(other)
    assert (reason is None) == (name in KNOWN)
    assert reason is None or reason.startswith("spike_grad: got ")


def test_every_known_surrogate_is_tested() -> None:
    assert KNOWN.keys() == ours.SURROGATES.keys()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("mechanism", "delay"), RESETS, ids=RESET_IDS)
def test_surrogate_disable(mechanism: str, delay: bool, way: str) -> None:
    """The spikes have no gradient, the potentials have."""
    one, other = pair(0.8, 0.6, surrogate_disable=True, reset_mechanism=mechanism, reset_delay=delay)
    assert_equal(one, other, current(), None, way)
    assert not loop(one, current().requires_grad_())[0].requires_grad


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("learn", [False, True])
@pytest.mark.parametrize("delay", [True, False])
@pytest.mark.parametrize("factor", [1.0, 2, 0.7, per_channel(0.5, 1.5)], ids=["1", "2", "0.7", "channels"])
def test_graded_spikes(factor: object, delay: bool, learn: bool, way: str) -> None:
    if learn and isinstance(factor, int):
        factor = float(factor)  # nn.Parameter takes no integers
    one, other = pair(0.8, 0.6, graded_spikes_factor=factor, learn_graded_spikes_factor=learn, reset_delay=delay)
    assert_equal(one, other, current(), None, way)


SLOW = {
    "per-neuron-beta": ({"beta": torch.linspace(0.3, 0.9, 5)}, "beta: got shape (5,)"),
    "per-pixel-beta": ({"beta": torch.linspace(0.3, 0.9, 10).view(2, 5)}, "beta: got shape (2, 5)"),
    "wide-threshold": ({"beta": 0.8, "threshold": per_channel(0.4, 0.8).double()}, "threshold: got torch.float64"),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", SLOW)
def test_what_the_kernels_do_not_take(case: str, way: str) -> None:
    options, reason = SLOW[case]
    one, other = pair(**({"threshold": 0.6} | options), learn_beta=True)
    assert one.why_slow(current()[0]).startswith(reason)
    assert_equal(one, other, current(), None, way, fused=False)


@pytest.mark.parametrize("way", WAYS)
def test_quantised_state_and_inhibition(way: str) -> None:
    x = current()[..., 0, 0]
    quantised, other = pair(0.8, 0.6, state_quant=lambda mem: torch.round(4 * mem) / 4)
    assert Leaky.why_not(quantised).startswith("state_quant: ")
    assert_equal(quantised, other, x, None, way, fused=False)
    with pytest.warns(UserWarning, match="Inhibition"):
        inhibited, other = pair(0.8, 0.6, inhibition=True)
    assert Leaky.why_not(inhibited).startswith("inhibition: ")
    assert_equal(inhibited, other, x, None, way, fused=False)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("shape", [(6,), (6, 3), (6, 3, 4), (2, 3, 4, 5, 2)], ids=str)
def test_shapes(shape: tuple[int, ...], way: str) -> None:
    assert_equal(*pair(0.8, 0.6), 1.5 * randn(T, *shape), None, way)


@pytest.mark.parametrize("way", WAYS)
def test_features_of_a_dense_layer(way: str) -> None:
    """(C,) is one per feature of (N, C), and of an x (N,) one per sample, which no kernel has."""
    beta = torch.linspace(0.3, 0.9, 6)
    assert_equal(*pair(beta, 0.6, learn_beta=True), 1.5 * randn(T, 4, 6), None, way)
    assert_equal(*pair(beta, 0.6, learn_beta=True), 1.5 * randn(T, 6), None, way, fused=False)
    with pytest.raises(RuntimeError, match="must match"):  # snnTorch's own error
        Leaky(beta, 0.6)(randn(4, 5))


def test_a_constant_current() -> None:
    for mechanism, delay in RESETS:
        one, other = pair(0.8, 0.6, reset_mechanism=mechanism, reset_delay=delay)
        x = current()[0]
        for a, e in zip(one.sequence(x, steps=T), loop(other, x.expand(T, *x.shape)), strict=True):
            assert_same_bits(a + 0.0, e + 0.0)


@pytest.mark.parametrize(("mechanism", "delay"), RESETS, ids=RESET_IDS)
def test_the_last_potential_alone(mechanism: str, delay: bool) -> None:
    one, other = pair(0.8, 0.6, reset_mechanism=mechanism, reset_delay=delay)
    spikes, mem = one.sequence(current(), record=False)
    expected, potentials = loop(other, current())
    assert_same_bits(spikes, expected)
    assert_same_bits(mem + 0.0, potentials[-1] + 0.0)
    assert one.mem is mem


@pytest.mark.parametrize("record", [True, False])
@pytest.mark.parametrize(("mechanism", "delay"), RESETS, ids=RESET_IDS)
def test_a_sequence_is_one_call(mechanism: str, delay: bool, record: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def counted(*args: object, **options: object) -> tuple[Tensor, ...]:
        calls.append(options)
        return lif(*args, **options)

    monkeypatch.setattr(ours, "lif", counted)
    Leaky(0.8, 0.6, reset_mechanism=mechanism, reset_delay=delay).sequence(current(), record=record)
    assert len(calls) == 1


# ------------------------------------------------------------------------------------------------------- the state


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("mechanism", "delay"), RESETS, ids=RESET_IDS)
def test_the_state_goes_on(mechanism: str, delay: bool, way: str) -> None:
    """Over calls with and without `mem`, another batch size, reset_mem, utils.reset and detach_hidden."""
    for hidden in (False, True):
        one, other = pair(0.8, 0.6, reset_mechanism=mechanism, reset_delay=delay, init_hidden=hidden)
        net, other_net = nn.Sequential(one), nn.Sequential(other)

        def advance(layer: snntorch.Leaky, x: Tensor) -> tuple[Tensor, Tensor]:
            return layer.sequence(x) if layer is one and way == "sequence" else loop(layer, x)  # noqa: B023

        def both(x: Tensor) -> None:
            for a, e in zip(advance(one, x), advance(other, x), strict=True):  # noqa: B023
                assert_same_bits(a + 0.0, e + 0.0)

        x = current().requires_grad_()
        both(x[:4]), both(x[4:])
        both(x[:3, :2])  # another batch size: from 0
        snntorch.Leaky.detach_hidden()
        assert not one.mem.requires_grad
        both(x[:, :2])
        assert one.reset_mem() is one.mem
        assert not one.mem.any()
        other.reset_mem()
        both(x[:, :2])
        utils.reset(net), utils.reset(other_net)
        assert not one.mem.any()
        assert not one.mem.requires_grad
        both(x[:, :2])


@pytest.mark.parametrize("way", WAYS)
def test_what_reset_mem_returned_is_zero_for_any_shape(way: str) -> None:
    one, other = pair(0.8, 0.6)
    got = one.sequence(current(), one.reset_mem()) if way == "sequence" else loop(one, current(), one.reset_mem())
    for a, e in zip(got, loop(other, current(), other.reset_mem()), strict=True):
        assert_same_bits(a, e)


def test_hidden_state_and_output() -> None:
    for hidden, output in product((False, True), (False, True)):
        one, other = pair(0.8, 0.6, init_hidden=hidden, output=output)
        got, wanted = one(current()[0]), other(current()[0])
        assert isinstance(got, tuple) == isinstance(wanted, tuple)
        pairs = zip(got, wanted, strict=True) if isinstance(got, tuple) else [(got, wanted)]
        for a, e in pairs:
            assert_same_bits(a, e)
    for call in (lambda: one(current()[0], one.mem), lambda: one.sequence(current(), one.mem)):
        with pytest.raises(TypeError, match="should not be passed"):
            call()


def test_a_state_of_another_dtype_runs_by_snntorch() -> None:
    one, other = pair(0.8, 0.6)
    x, mem = current(torch.bfloat16), randn(*SHAPE, seed=1).bfloat16()
    assert one.why_slow(x[0], mem).startswith("mem: got torch.bfloat16")
    for a, e in zip(one(x[0], mem), other(x[0], mem), strict=True):
        assert_same_bits(a, e)


@pytest.mark.parametrize("detached", [False, True])
def test_no_grad_and_evaluation(detached: bool) -> None:
    one, other = pair(0.8, 0.6, learn_beta=True)
    one.eval(), other.eval()
    context = torch.inference_mode() if detached else torch.no_grad()
    with context:
        assert_same_bits(one.sequence(current())[0], loop(other, current())[0])
        assert_same_bits(loop(one, current())[1], loop(other, current())[1])
    assert not one.mem.requires_grad


def test_the_stale_reset_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    one = Leaky(0.8)
    monkeypatch.setitem(ours.LEAST_ELEMENTS, "cpu", 10**9)
    one(current()[0])
    assert one.reset.shape == SHAPE  # of snnTorch's own step
    monkeypatch.setitem(ours.LEAST_ELEMENTS, "cpu", 0)
    one(current()[0])
    assert not hasattr(one, "reset")


# -------------------------------------------------------------------------------------- copies, converted layers


def test_deepcopy_state_dict_and_pickle() -> None:
    one, other = pair(per_channel(0.3, 0.9), 0.6, learn_beta=True, surrogate_disable=True)
    loop(one, current()), loop(other, current())
    assert list(one.state_dict()) == list(other.state_dict())
    one.mem, other.mem = one.mem.detach(), other.mem.detach()
    again = pickle.loads(pickle.dumps(one))
    loaded = Leaky(torch.zeros(3, 1, 1), learn_beta=True, surrogate_disable=True)
    loaded.load_state_dict(other.state_dict())
    loaded.mem = other.mem
    expected = loop(copy.deepcopy(other), current())
    for layer in (copy.deepcopy(one), again, loaded):
        assert type(layer) is Leaky
        assert layer.why_slow(current()[0]) is None
        for a, e in zip(loop(layer, current()), expected, strict=True):
            assert_same_bits(a, e)


@pytest.mark.parametrize("hidden", [False, True])
def test_convert_and_revert(hidden: bool) -> None:
    _, layer = pair(0.8, 0.6, learn_beta=True, learn_threshold=True, init_hidden=hidden)
    reference = copy.deepcopy(layer)
    net = nn.Sequential(layer)
    loop(layer, current()[:3]), loop(reference, current()[:3])
    before = dict(layer.__dict__), list(layer.parameters()), layer.mem, list(net.state_dict())
    report = dropin.convert(net, strict=True)
    assert len(report.replaced) == 1
    assert isinstance(layer, Leaky)
    assert [p is q for p, q in zip(layer.parameters(), before[1], strict=True)] == [True, True]
    assert layer.mem is before[2]
    assert list(net.state_dict()) == before[3]
    for a, e in zip(layer.sequence(current()), loop(reference, current()), strict=True):
        assert_same_bits(a, e)
    dropin.revert(net)
    assert type(layer) is snntorch.Leaky
    assert layer.__dict__.keys() <= before[0].keys()
    for a, e in zip(loop(layer, current()), loop(reference, current()), strict=True):
        assert_same_bits(a, e)


class OwnFire(snntorch.Leaky):
    def fire(self, mem: Tensor) -> Tensor:
        return 2 * super().fire(mem)


def test_what_is_not_converted() -> None:
    net = nn.Sequential(
        snntorch.Leaky(0.8),
        snntorch.Leaky(0.8, spike_grad=surrogate.triangular()),
        snntorch.Leaky(0.8, state_quant=lambda mem: mem),
        snntorch.Leaky(torch.ones(2, 5)),
        OwnFire(0.8),
        snntorch.Synaptic(0.8, 0.9),
    )
    before = [type(layer) for layer in net]
    with pytest.raises(ValueError, match="spike_grad: got triangular"):
        dropin.convert(net, strict=True)
    assert [type(layer) for layer in net] == before
    report = dropin.convert(net)
    assert [type(layer) for layer in net] == [Leaky, *before[1:]]
    assert len(report.kept) == 5


def test_own_dynamics_are_never_skipped() -> None:
    class Twice(Leaky):
        def fire(self, mem: Tensor) -> Tensor:
            return 2 * super().fire(mem)

    layer, plain = Twice(0.8, 0.6), Leaky(0.8, 0.6)
    assert Leaky.why_not(layer) == "fire: replaced by an own one"
    assert_same_bits(layer.sequence(current())[0], 2 * plain.sequence(current())[0])
    patched, plain = pair(0.8, 0.6)
    patched.fire = lambda mem: 3 * plain.fire(mem)
    assert Leaky.why_not(patched) == "fire: replaced by an own one"
    assert_same_bits(loop(patched, current())[0], 3 * loop(plain, current())[0])


@pytest.mark.parametrize("delay", [True, False])
def test_a_mechanism_set_afterwards(delay: bool) -> None:
    """snnTorch goes on with the one that it was made with, but for the part after the spike."""
    one, other = pair(0.8, 0.6, reset_delay=delay)
    one.reset_mechanism = other.reset_mechanism = "zero"
    assert_equal(one, other, current(), None, "sequence", fused=delay)


# --------------------------------------------------------------------------------------------------- torch.compile


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.few(1)
@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("mechanism", ["subtract", "zero"])
def test_compile(mechanism: str, way: str) -> None:
    """In one graph, as snnTorch's; the surrogate's slope is part of what is compiled."""

    def call(layer: Leaky, x: Tensor) -> tuple[Tensor, Tensor]:
        return layer.sequence(x) if way == "sequence" else layer(x[0])

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    for slope in (2.0, 5.0):
        one, other = pair(0.8, 0.6, spike_grad=surrogate.atan(slope), reset_mechanism=mechanism, learn_beta=True)
        x = current().requires_grad_()
        got, wanted = compiled(one, x), loop(other, x if way == "sequence" else x[:1])
        for a, e in zip(got, wanted, strict=True):
            assert_same_bits(a.reshape(e.shape) + 0.0, e + 0.0)
        gradients = [torch.autograd.grad(o[0].sum(), (x, m.beta)) for o, m in ((got, one), (wanted, other))]
        assert_gradients(gradients[0][:1], gradients[1][:1])
        assert_sums(gradients[0][1:], gradients[1][1:], x.numel(), torch.float32)


# ------------------------------------------------------------------------------------------------------- bad input


def test_bad_sequences() -> None:
    layer, x = Leaky(0.8), current()
    one_line(
        lambda: layer.sequence(x, torch.zeros(2, 3)), ValueError, "mem: got shape (2, 3), accepted is (4, 3, 2, 5)"
    )
    one_line(lambda: layer.sequence(x[0, 0, 0, 0]), ValueError, "x: got shape (5,), accepted is (T, N, *)")
    one_line(lambda: layer.sequence([1.0]), ValueError, "x: got list")
    one_line(lambda: layer.sequence(x[0], steps=0), ValueError, "steps: got 0")
    one_line(lambda: layer.sequence(x[:0]), ValueError, "x's time axis T: got 0")
    assert layer.mem.shape == (0,)


def test_mixed_devices_are_snntorchs_error() -> None:
    assert Leaky(0.8).why_slow(torch.zeros(2, 3, device="meta")).startswith("mem: ")


# --------------------------------------------------------------------------------------------- a loop over time


def network(**options: object) -> nn.Sequential:
    torch.manual_seed(0)
    hidden = {"init_hidden": True} | options
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.GroupNorm(2, 4),
        snntorch.Leaky(0.8, 0.3, **hidden),
        nn.Sequential(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 10), snntorch.Leaky(0.9, 0.3, **hidden)),
        nn.Linear(10, 5),
        snntorch.Leaky(0.7, 0.2, output=True, **hidden),
    )


def net_loop(net: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    return tuple(torch.stack(rows) for rows in zip(*(net(x_t) for x_t in x), strict=True))


def assert_few_flips(actual: Tensor, expected: Tensor) -> None:
    """Sums over another batch may round otherwise, so that a few spikes in a thousand may differ."""
    assert actual.shape == expected.shape
    assert ((actual - expected).abs() > 1e-5).float().mean() < 2e-3


@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize(("mechanism", "delay"), RESETS, ids=RESET_IDS)
def test_unroll(mechanism: str, delay: bool, constant: bool) -> None:
    net, expected = (network(reset_mechanism=mechanism, reset_delay=delay) for _ in range(2))
    dropin.convert(net, strict=True)
    x = 2 * randn(T, 8, 2, 6, 6)
    for _ in range(2):  # the second from the state that the first left
        got = unroll(net, x[0], steps=T) if constant else unroll(net, x)
        wanted = net_loop(expected, x[:1].expand(x.shape) if constant else x)
        for a, e in zip(got, wanted, strict=True):
            assert_few_flips(a, e)
        assert 0.05 < wanted[0].mean() < 0.95
    for a, e in zip(
        *([m.mem for m in n.modules() if isinstance(m, snntorch.Leaky)] for n in (net, expected)), strict=True
    ):
        assert_few_flips(a, e)
    (got[0].sum() + got[1].sum()).backward()
    (wanted[0].sum() + wanted[1].sum()).backward()
    for a, e in zip(net.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(a.grad, e.grad, rtol=1e-3, atol=1e-3 * e.grad.abs().max().item())


def test_unroll_of_single_layers() -> None:
    x, convolution, layer = randn(T, 4, 2, 6, 6), nn.Conv2d(2, 3, 3), Leaky(0.8)
    torch.testing.assert_close(unroll(convolution, x), torch.stack([convolution(x_t) for x_t in x]))
    assert unroll(convolution, x[0], steps=T).shape == (T, 4, 3, 4, 4)
    for a, e in zip(unroll(layer, x), loop(Leaky(0.8), x), strict=True):
        assert_same_bits(a, e)


def test_unroll_draws_a_mask_per_step() -> None:
    net = nn.Sequential(nn.Dropout(0.5), Leaky(0.5, init_hidden=True))
    spikes = unroll(net, 3 * torch.ones(50, 40), steps=T)
    assert (spikes[1:] != spikes[:-1]).any()
    assert unroll(net.eval(), 3 * torch.ones(2, 40), steps=T).shape == (T, 2, 40)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.linear(x)


def with_hook(module: nn.Module) -> nn.Module:
    module.register_forward_hook(lambda *_: None)
    return module


def shared() -> nn.Module:
    layer = Leaky(0.8, init_hidden=True)
    return nn.Sequential(layer, nn.Linear(5, 5), layer)


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "batch-norm": (
        lambda: nn.Sequential(nn.BatchNorm1d(5)),
        "layer '0' (BatchNorm1d) takes statistics of each time step",
    ),
    "nested": (
        lambda: nn.Sequential(nn.Linear(5, 5), nn.Sequential(nn.BatchNorm1d(5))),
        "layer '1.0' (BatchNorm1d) takes statistics",
    ),
    "tracked-instance-norm": (
        lambda: nn.Sequential(nn.Unflatten(1, (5, 1)), nn.InstanceNorm1d(5, track_running_stats=True)),
        "layer '1' (InstanceNorm1d) takes statistics",
    ),
    "unconverted": (lambda: nn.Sequential(snntorch.Leaky(0.8)), "layer '0' (Leaky) is not converted"),
    "other-neuron": (
        lambda: nn.Sequential(snntorch.Synaptic(0.8, 0.9, init_hidden=True)),
        "layer '0' (Synaptic) is not",
    ),
    "unknown": (lambda: nn.Sequential(Residual()), "layer '0' (Residual) is not known to treat each sample by itself"),
    "own-net": (Residual, "the net (Residual) is not known"),
    "recurrent": (lambda: nn.Sequential(nn.RNN(5, 5)), "layer '0' (RNN) is not known"),
    "hook": (lambda: nn.Sequential(with_hook(nn.Linear(5, 5))), "layer '0' (Linear) has hooks"),
    "hook-of-the-net": (lambda: with_hook(nn.Sequential(nn.Linear(5, 5))), "the net (Sequential) has hooks"),
    "pair-inside": (lambda: nn.Sequential(Leaky(0.8), nn.Linear(5, 5)), "layer '0' (Leaky) returns a pair"),
    "used-twice": (shared, "layer '2' (Leaky) is used twice"),
    "mixed-batch": (lambda: nn.Sequential(nn.Flatten(0)), "layer '0' (Flatten) returned shape (180,)"),
    "indices": (
        lambda: nn.Sequential(nn.MaxPool1d(2, return_indices=True)),
        "layer '0' (MaxPool1d) returned tuple",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_unroll_refuses(case: str) -> None:
    make, start = REFUSED[case]
    net = make()
    first = Leaky(0.8, init_hidden=True)
    whole = nn.Sequential(first, *net) if type(net) is nn.Sequential and case not in ("hook-of-the-net",) else net
    unroll(first, randn(2, 4, 5))
    before = first.mem
    one_line(lambda: unroll(net, randn(T, 4, 5)), ValueError, f"unroll: {start}")
    with pytest.raises(ValueError, match="unroll: "):
        unroll(whole, randn(T, 4, 5))
    assert first.mem is before


def test_unroll_takes_what_is_declared() -> None:
    x = randn(T, 4, 5)
    block, norm = Residual(), nn.BatchNorm1d(5)
    torch.testing.assert_close(unroll(block, x, stateless=[Residual]), torch.stack([block(x_t) for x_t in x]))
    torch.testing.assert_close(
        unroll(norm, x, stateless=[nn.BatchNorm1d]), nn.BatchNorm1d(5)(x.flatten(0, 1)).view(x.shape)
    )
    torch.testing.assert_close(unroll(norm.eval(), x), torch.stack([norm(x_t) for x_t in x]))
    with pytest.raises(ValueError, match=r"layer '0' \(Leaky\): x: got"):
        unroll(nn.Sequential(Leaky(0.8)), randn(3))
