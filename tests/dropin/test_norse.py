"""`dropin.norse` beside Norse's own layers: spikes, states and every gradient, in single steps and over time.

In fp64 the two round so finely that all spikes are equal. In fp32 a spike may differ where the potential is within
rounding of the threshold.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Sequence
from types import SimpleNamespace

import pytest
import torch
from kernel_helpers import (
    assert_flips_at_crossings,
    assert_gradients,
    assert_near,
    assert_same_bits,
    channels_last,
    one_line,
    randn,
)
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

pytest.importorskip("norse", reason="Norse is not installed")
import norse.torch as theirs
from norse.torch.functional import lif as lif_functional
from norse.torch.functional import lif_box as lif_box_functional
from norse.torch.functional.reset import reset_subtract

from esvae_kernels.dropin import convert, revert
from esvae_kernels.dropin import norse as ours

T, N = 18, (4, 6)  # longer than a chunk of the kernels
VALUES = {"tau_mem_inv": 300.0, "v_leak": 0.1, "v_th": 0.6, "v_reset": -0.1}
METHODS = ("super", "triangle", "tanh", "heavi_erfc")
OTHER_METHODS = ("circ", "heaviside")


def box(dt: float = 0.001, **p: object) -> nn.Module:
    return theirs.LIFBoxCell(theirs.LIFBoxParameters(**VALUES_AS_TENSORS | p), dt=dt)


def soft_box(dt: float = 0.001, **p: object) -> nn.Module:
    return box(dt, reset_method=reset_subtract, **p)


def cell(dt: float = 0.001, **p: object) -> nn.Module:
    return theirs.LIFCell(theirs.LIFParameters(**VALUES_AS_TENSORS | p), dt=dt)


def layer_in_time(dt: float = 0.001, record_states: bool = False, **p: object) -> nn.Module:
    return theirs.LIF(theirs.LIFParameters(**VALUES_AS_TENSORS | p), dt=dt, record_states=record_states)


VALUES_AS_TENSORS = {name: torch.tensor(value) for name, value in VALUES.items()}
LAYERS = {"LIFBoxCell": box, "LIFBoxCell-soft": soft_box, "LIFCell": cell, "LIF": layer_in_time}
CELLS = {name: make for name, make in LAYERS.items() if name != "LIF"}
on_layers = pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
on_cells = pytest.mark.parametrize("make", CELLS.values(), ids=CELLS)
WAYS = {  # of going through time, one of them Norse's
    **{f"{name}-steps": (make, "steps") for name, make in CELLS.items()},
    **{f"{name}-sequence": (make, "sequence") for name, make in CELLS.items()},
    "LIF": (layer_in_time, "call"),
}
on_ways = pytest.mark.parametrize(("make", "way"), WAYS.values(), ids=WAYS)


@pytest.fixture(autouse=True)
def in_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Single steps of any size, which Norse's own ops would run faster."""
    monkeypatch.setitem(ours.LEAST_ELEMENTS, "cpu", 0)


@pytest.fixture
def no_code_of_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Norse's neurons cannot run."""

    def fail(*_: object) -> None:
        raise AssertionError("Norse's code ran")

    for module in (lif_functional, lif_box_functional):
        monkeypatch.setattr(module, "threshold", fail)


def twins(layer: nn.Module) -> tuple[nn.Module, nn.Module]:
    """Norse's and ours, with the same parameters."""
    converted = copy.deepcopy(layer)
    converted.p = layer.p
    assert convert(converted, strict=True).replaced
    return layer, converted


def current(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return (1.5 * randn(*shape, seed=seed, dtype=dtype) + 0.5).to(dtype)


def state_of(layer: nn.Module, *shape: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    """In the middle of a sequence, partly above the threshold."""
    v, i = (0.7 * randn(*shape, seed=seed, dtype=dtype) for seed in (21, 22))
    if isinstance(layer, theirs.LIFBoxCell):
        return lif_box_functional.LIFBoxFeedForwardState(v=v)
    return lif_functional.LIFFeedForwardState(v=v, i=i)


def initial_state(layer: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    return layer.state_fallback(x if isinstance(layer, theirs.LIF) else x[0])


def through_time(layer: nn.Module, x: Tensor, state: tuple | None, way: str) -> tuple[Tensor, tuple]:
    if way == "sequence" and hasattr(layer, "sequence"):
        return layer.sequence(x, state)
    if isinstance(layer, theirs.LIF):
        return layer(x, state)
    spikes = []
    for x_t in x:
        spike, state = layer(x_t, state)
        spikes.append(spike)
    return torch.stack(spikes), state


def leaves(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [tensor.detach().requires_grad_() for tensor in tensors]


def learnt(layer: nn.Module) -> list[Tensor]:
    return [value for value in layer.p if isinstance(value, Tensor) and value.requires_grad]


def results(layer: nn.Module, xs: Sequence[Tensor], state: tuple | None, way: str) -> tuple[list, list]:
    """Spikes and states of calls in a row, the state going on; the gradients of currents, state and parameters."""
    xs, inputs = leaves(xs), leaves(state or ())
    state = type(state)(*inputs) if state else None
    outputs = []
    for x in xs:
        spikes, state = through_time(layer, x, state, way)
        outputs += [spikes, *state]
    cotangents = [randn(*o.shape, seed=50 + k, dtype=o.dtype) for k, o in enumerate(outputs)]
    live = [(o, c) for o, c in zip(outputs, cotangents, strict=True) if o.requires_grad]
    live_outputs, live_cotangents = zip(*live, strict=True)
    wanted = [*xs, *inputs, *learnt(layer)]
    gradients = torch.autograd.grad(live_outputs, wanted, live_cotangents, allow_unused=True)
    return [o.detach() for o in outputs], list(gradients)


def assert_same(
    pair: tuple[nn.Module, nn.Module],
    *xs: Tensor,
    state: tuple | None = None,
    way: str,
    computed_in: torch.dtype = torch.float64,
) -> None:
    """In fp64: equal spikes, and states and gradients within its rounding. The kernels run it."""
    for x in xs:
        assert pair[1].why_slow(x[0], state or initial_state(pair[1], x)) is None
    (expected, expected_gradients), (outputs, gradients) = (results(layer, xs, state, way) for layer in pair)
    assert 0.02 < outputs[0].mean() < 0.9
    assert torch.equal(outputs[0], expected[0])
    for output, wanted in zip(outputs, expected, strict=True):
        assert output.dtype == wanted.dtype
        assert_near(output, wanted, 1e-13, floor=1.0)
    assert_same_gradients(gradients, expected_gradients, computed_in)


def assert_same_gradients(actual: Sequence[Tensor | None], expected: Sequence[Tensor | None], computed_in=None) -> None:
    """The same of them there, of the same dtypes."""
    assert [g is None for g in actual] == [g is None for g in expected]
    actual, expected = ([g for g in gradients if g is not None] for gradients in (actual, expected))
    assert [g.dtype for g in actual] == [g.dtype for g in expected]
    assert_gradients(actual, expected, computed_in)


# ------------------------------------------------------------------------------------------- spikes, states, gradients


@on_ways
@pytest.mark.parametrize("given", [False, True], ids=["initial", "given"])
@pytest.mark.parametrize("dt", [0.001, 0.0017])
def test_calls_in_a_row(make: Callable, way: str, given: bool, dt: float) -> None:
    """The state goes on from call to call, with its graph."""
    pair = twins(make(dt))
    state = state_of(pair[0], *N) if given else None
    assert_same(pair, current(T, *N), current(3, *N, seed=1), state=state, way=way)


def of_shape(shape: tuple[int, ...], seed: int, dtype: torch.dtype) -> Tensor:
    return randn(1, *shape, seed=seed, dtype=dtype)[0]


SHAPES = {
    "scalars": ((4, 6), ()),
    "one-element": ((4, 6), (1,)),
    "features": ((4, 6), (6,)),
    "channels": ((2, 3, 2, 4), (3, 1, 1)),
    "neurons": ((2, 3, 2, 4), (3, 2, 4)),
    "columns": ((2, 3, 2, 4), (4,)),
    "samples": ((4, 6), (4, 1)),
    "samples-and-neurons": ((4, 6), (4, 6)),
    "no-batch": ((6,), (6,)),
}


@on_ways
@pytest.mark.parametrize("learn", [False, True], ids=["", "learnt"])
@pytest.mark.parametrize(("shape", "of_parameters"), SHAPES.values(), ids=SHAPES)
def test_parameters(make: Callable, way: str, shape: tuple, of_parameters: tuple, learn: bool) -> None:
    """Tensors of any shape that broadcasts to a step, with gradients in all of them."""
    values = dict(VALUES) if make in (box, soft_box) else VALUES | {"tau_syn_inv": 250.0}
    p = {
        name: (value * (1 + 0.1 * of_shape(of_parameters, seed, torch.float64))).requires_grad_(learn)
        for seed, (name, value) in enumerate(values.items())
    }
    assert_same(twins(make(**p)), current(T, *shape), state=state_of(make(), *shape), way=way)


@on_ways
@pytest.mark.parametrize("name", ["tau_mem_inv", "v_leak", "v_th", "v_reset", "tau_syn_inv"])
def test_one_parameter_is_learnt(make: Callable, way: str, name: str) -> None:
    """The usual fp32 nn.Parameter, while x is fp64; its gradient comes back in fp32."""
    if name == "tau_syn_inv" and make in (box, soft_box):
        pytest.skip("no synapse")
    value = nn.Parameter(torch.tensor((VALUES | {"tau_syn_inv": 250.0})[name]))
    pair = twins(make(**{name: value}))
    (expected, expected_gradients), (outputs, gradients) = (results(n, [current(T, *N)], None, way) for n in pair)
    assert torch.equal(outputs[0], expected[0])
    assert_same_gradients(gradients, expected_gradients, torch.float32)


@on_ways
def test_numbers_for_parameters(make: Callable, way: str) -> None:
    pair = twins(make(**{name: value for name, value in VALUES.items() if name != "v_leak"}))
    assert_same(pair, current(T, *N), way=way)


@on_layers
def test_flips_of_fp32_are_at_crossings(make: Callable) -> None:
    expected_layer, layer = twins(make())
    x, state, membrane = current(T, 200, 50, dtype=torch.float32), None, []
    with torch.no_grad():
        spikes, _ = through_time(layer, x, None, "sequence")
        expected, after = [], initial_state(expected_layer, x)
        for x_t in x:  # potentials before the reset, of Norse's
            membrane.append(charged(expected_layer, x_t, after))
            z, after = expected_layer.activation(x_t, after, expected_layer.p, expected_layer.dt)
            expected.append(z)
    flipped = assert_flips_at_crossings(
        spikes, torch.stack(expected), torch.stack(membrane), expected_layer.p.v_th, ulps=8
    )
    assert flipped.float().mean() < 1e-3
    assert_near(through_time(layer, x, state, "sequence")[1].v[~flipped], after.v[~flipped], 1e-6)


def charged(layer: nn.Module, x: Tensor, state: tuple) -> Tensor:
    p = layer.p
    c = x if isinstance(layer, theirs.LIFBoxCell) else x + state.i
    return state.v + layer.dt * p.tau_mem_inv * (p.v_leak - state.v + c)


@on_ways
def test_gradients_of_fp32(make: Callable, way: str) -> None:
    pair = twins(make(tau_mem_inv=torch.tensor(300.0, requires_grad=True)))
    x = [current(T, *N, dtype=torch.float32)]
    (expected, expected_gradients), (outputs, gradients) = (results(layer, x, None, way) for layer in pair)
    assert torch.equal(outputs[0], expected[0])
    for output, wanted in zip(outputs, expected, strict=True):
        assert output.dtype == wanted.dtype == torch.float32
    assert_same_gradients(gradients, expected_gradients)


@on_ways
@pytest.mark.parametrize("alpha", [100.0, 3.0])
@pytest.mark.parametrize("method", METHODS)
def test_surrogates(make: Callable, way: str, method: str, alpha: float) -> None:
    """Norse has pi in fp32."""
    pair = twins(make(method=method, alpha=torch.tensor(alpha)))
    assert_same(pair, current(T, *N), way=way, computed_in=torch.float32 if method == "heavi_erfc" else torch.float64)


@on_ways
@pytest.mark.parametrize("alpha", [2, 2.0, torch.tensor([2.0]), nn.Parameter(torch.tensor(2.0))])
def test_forms_of_alpha(make: Callable, way: str, alpha: object) -> None:
    assert_same(twins(make(method="triangle", alpha=alpha)), current(T, *N), way=way)


@on_ways
def test_gradient_of_the_initial_state(make: Callable, way: str) -> None:
    """It wants one: a scalar v of the cells, a full one of LIF; what is computed from it has a graph, whatever x is."""
    found = []
    for layer in twins(make()):
        x = current(T, *N)
        state = initial_state(layer, x)
        spikes, after = through_time(layer, x, state, way)
        assert through_time(layer, x, None, way)[0].requires_grad
        found.append(torch.autograd.grad(spikes.sum() + after.v.square().sum(), state.v)[0])
    assert found[1].shape == found[0].shape
    assert_same_gradients(found[1:], found[:1], torch.float32)


@on_ways
@pytest.mark.parametrize("shapes", [((), (6,)), ((4, 1), (4, 6)), ((1, 6), (6,))], ids=str)
def test_states_that_broadcast(make: Callable, way: str, shapes: tuple) -> None:
    """And of another dtype than x."""
    pair = twins(make())
    state = state_of(pair[0], *N)
    state = type(state)(
        *(of_shape(shape, 30 + k, torch.float32) for k, (shape, _) in enumerate(zip(shapes, state, strict=False)))
    )
    (expected, expected_gradients), (outputs, gradients) = (results(n, [current(T, *N)], state, way) for n in pair)
    assert torch.equal(outputs[0], expected[0])
    assert_near(outputs[1], expected[1], 1e-13)
    assert_same_gradients(gradients, expected_gradients, torch.float32)


@pytest.mark.parametrize("given", [False, True], ids=["initial", "given"])
@pytest.mark.parametrize("per_feature", [False, True], ids=["scalars", "features"])
def test_recorded_states(given: bool, per_feature: bool) -> None:
    values = VALUES | {"tau_syn_inv": 250.0}
    p = {name: torch.full((6,) if per_feature else (), v).requires_grad_() for name, v in values.items()}
    pair = twins(layer_in_time(record_states=True, **p))
    state = state_of(pair[0], *N) if given else None
    if per_feature and not given:  # Norse's initial state is of one v_leak
        pair[0].p = pair[1].p = pair[0].p._replace(v_leak=torch.tensor(0.1))
    (expected, expected_gradients), (outputs, gradients) = (results(n, [current(T, *N)], state, "call") for n in pair)
    assert torch.equal(outputs[0], expected[0])
    for output, wanted in zip(outputs, expected, strict=True):
        assert output.shape == (T, *N)
        assert_near(output, wanted, 1e-13 if not per_feature else 1e-6, floor=1.0)
    assert_same_gradients(gradients, expected_gradients, torch.float32)
    last = pair[1](current(T, *N), state)[1]
    pair[1].record_states = False
    for recorded, kept in zip(last, pair[1](current(T, *N), state)[1], strict=True):
        assert_near(recorded[-1], kept, 1e-13)


@on_ways
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "f16"])
def test_half_precision(make: Callable, way: str, dtype: torch.dtype) -> None:
    """The dtypes of Norse: fp32 of LIFCell and LIF, whose current starts in it; x's of LIFBoxCell, of which each call
    computes in fp32."""
    expected_layer, layer = twins(make())
    x = current(T, *N, dtype=dtype)
    wanted = through_time(expected_layer, x, None, way)
    spikes, state = through_time(layer, x, None, way)
    assert spikes.dtype == wanted[0].dtype
    assert [s.dtype for s in state] == [s.dtype for s in wanted[1]]
    exact, exact_state = through_time(expected_layer, x.float(), None, way)
    if spikes.dtype == torch.float32 or way == "sequence":
        assert torch.equal(spikes.float(), exact)
        for value, expected in zip(state, exact_state, strict=True):
            assert_near(value, expected, 1e-6)
    else:  # each step returns a rounded state
        assert (spikes.float() != exact).float().mean() < 0.05
    x = x.requires_grad_()
    assert torch.autograd.grad(through_time(layer, x, None, way)[0].sum(), x)[0].dtype == dtype


@on_ways
def test_channels_last(make: Callable, way: str) -> None:
    assert_same(twins(make()), channels_last(current(T, 2, 3, 4, 5)), way=way)


@on_ways
def test_without_gradients(make: Callable, way: str) -> None:
    expected_layer, layer = twins(make(v_th=nn.Parameter(torch.tensor(0.6))).eval())
    with torch.no_grad():
        spikes, state = through_time(layer, current(T, *N), None, way)
        expected, _ = through_time(expected_layer, current(T, *N), None, way)
    assert torch.equal(spikes, expected)
    assert not any(tensor.requires_grad for tensor in (spikes, *state))


@on_layers
def test_kernels_run(make: Callable, no_code_of_theirs: None) -> None:
    """What is compared in this file is not Norse's code called by ours."""
    layer = twins(make())[1]
    for way in ("steps", "sequence"):
        through_time(layer, current(T, *N), None, way)
    revert(layer)
    with pytest.raises(AssertionError, match="Norse's code ran"):
        through_time(layer, current(T, *N), None, "steps")


# -------------------------------------------------------------------------------------------- what Norse goes on to do


@on_ways
@pytest.mark.parametrize("method", OTHER_METHODS)
def test_other_methods_run_exactly_as_theirs(make: Callable, way: str, method: str) -> None:
    layer = make(method=method)
    assert "the kernels know" in convert(layer).kept[0].why_not
    direct = {"LIFBoxCell": ours.LIFBoxCell, "LIFCell": ours.LIFCell, "LIF": ours.LIF}[type(layer).__name__](layer.p)
    x = [current(T, *N, dtype=torch.float32), current(2, *N, dtype=torch.float32)]
    state = state_of(layer, *N, dtype=torch.float32)
    for actual, expected in zip(results(direct, x, state, way), results(layer, x, state, way), strict=True):
        for one, other in zip(actual, expected, strict=True):
            assert (one is None) == (other is None)
            if one is not None:
                assert_same_bits(one, other)


@pytest.mark.parametrize("make", [cell, layer_in_time], ids=["LIFCell", "LIF"])
def test_adjoint_fails_as_theirs_does(make: Callable) -> None:
    """In Norse 1.1.0 the adjoint step asks for a threshold of that name, which there is not."""
    layer = make(method="adjoint")
    for one in (layer, {theirs.LIFCell: ours.LIFCell, theirs.LIF: ours.LIF}[type(layer)](layer.p)):
        with pytest.raises(ValueError, match="threshold function adjoint"):
            one(current(T, *N, dtype=torch.float32))


def _lacking() -> dict[str, nn.Module]:
    own = cell()
    own.activation = lambda x, state, p, dt: (x, state)
    return {
        "activation: got _lacking.<locals>.<lambda>, the kernels know lif_feed_forward_step": own,
        "activation: got lif_feed_forward_adjoint_step, the ": layer_in_time(method="adjoint"),
        "p.method: got 'circ' with alpha tensor(100.), the kernels know heavi_erfc, super, tanh, triangle, ": cell(
            method="circ"
        ),
        "p.method: got 'tanh' with alpha tensor(-1.)": box(method="tanh", alpha=torch.tensor(-1.0)),
        "p.method: got 'tanh' with alpha a tensor of shape (6,)": box(method="tanh", alpha=torch.ones(6)),
        "p.method: got 'no such'": box(method="no such"),
        "p.reset_method: got _lacking.<locals>.<lambda>, ": box(reset_method=lambda z, v, reset, th: v),
        "p.v_th: got None, the kernels take": box(v_th=None),
    }


@pytest.mark.parametrize("why", _lacking())
def test_what_is_not_replaced(why: str) -> None:
    layer = _lacking()[why]
    model = theirs.SequentialState(nn.Linear(6, 6), layer, cell())
    with pytest.raises(ValueError, match=r"model: 1 neuron layers cannot be replaced: 1 \(norse ") as raised:
        convert(model, strict=True)
    assert "\n" not in str(raised.value)
    assert type(model[2]) is theirs.LIFCell
    (kept,) = convert(model).kept
    assert kept.why_not.startswith(why), kept.why_not
    assert type(layer).__module__.startswith("norse")
    assert type(model[2]) is ours.LIFCell


@on_ways
def test_an_option_changed_later_is_heeded(make: Callable, way: str) -> None:
    """After `convert`: other numbers, a method that the kernels lack, an own activation and initial state."""
    pair = twins(make())
    x = current(T, *N)
    for layer in pair:
        layer.dt, layer.p = 0.002, layer.p._replace(v_th=torch.tensor(0.4))
    assert_same(pair, x, way=way)
    for layer in pair:
        layer.state_fallback = lambda x: state_of(make(), *N)
    assert_same(pair, x, way=way)
    for layer in pair:
        layer.p = layer.p._replace(method="circ")
    for one, other in zip(results(pair[1], [x], None, way)[1], results(pair[0], [x], None, way)[1], strict=True):
        assert_same_bits(one, other)
    for layer in pair:
        layer.activation = lambda x, state, p, dt: (2 * x, state)
    assert torch.equal(through_time(pair[1], x, None, way)[0], 2 * x)


@on_ways
def test_other_inputs(make: Callable, way: str) -> None:
    """As Norse does, its errors included: integers, no neurons, a state of the wrong or of a larger shape."""
    pair = twins(make())
    larger = state_of(pair[0], 3, *N)
    for x, state in (
        (torch.ones(T, *N, dtype=torch.int64), None),
        (torch.zeros(T, 0, 3), None),
        (current(T, *N), larger),
        (current(T, *N), type(larger)(*(s.float().to(torch.complex64) for s in state_of(pair[0], *N)))),
    ):
        if x.is_floating_point() and state is not None and state.v.is_complex():
            for layer in pair:
                with pytest.raises(RuntimeError):
                    through_time(layer, x, state, way)
            continue
        found, expected = (through_time(layer, x, state, way) for layer in (pair[1], pair[0]))
        assert_same_bits(found[0], expected[0])
        for one, other in zip(found[1], expected[1], strict=True):
            assert_same_bits(one, other)
    for layer in pair:
        with pytest.raises(RuntimeError, match="must match"):
            through_time(layer, current(T, *N), state_of(layer, 5, 7), way)


@pytest.mark.parametrize("make", [cell, layer_in_time], ids=["LIFCell", "LIF"])
def test_sparse_spikes(make: Callable) -> None:
    x = (current(T, *N, dtype=torch.float32) > 0.5).float().to_sparse()
    x = x if make is layer_in_time else x[0]
    (spikes, state), (expected, expected_state) = (layer(x) for layer in twins(make()))
    assert spikes.is_sparse == expected.is_sparse
    assert torch.equal(spikes.to_dense(), expected.to_dense())
    for one, other in zip(state, expected_state, strict=True):
        assert torch.equal(one.to_dense(), other.to_dense())


def test_neurons_of_other_kinds_are_left_alone() -> None:
    class Mine(theirs.LIFCell):
        def forward(self, x, state=None):
            return x * 0 + 7, state

    model = nn.Sequential(Mine(), theirs.LICell(), theirs.LIFRecurrentCell(2, 2), theirs.LIFRefracCell(), theirs.IAF())
    before = [type(m) for m in model]
    why = [entry.why_not for entry in convert(model).kept]
    assert why == ["a subclass of LIFCell, left alone"] + ["no kernel for it"] * 4
    assert [type(m) for m in model] == before


def test_small_steps_run_by_norses_ops(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step below the limit; a sequence always runs in the kernel."""
    layer = twins(cell())[1]
    monkeypatch.setitem(ours.LEAST_ELEMENTS, "cpu", 24)
    calls = []
    monkeypatch.setattr(ours, "lif", lambda *a, **o: calls.append(1) or pytest.skip.Exception)
    layer(current(23))
    assert not calls
    with pytest.raises(TypeError):
        layer(current(24))
    with pytest.raises(TypeError):
        layer.sequence(current(2, 3))
    assert len(calls) == 2


@on_cells
def test_sequence_refuses(make: Callable) -> None:
    layer = twins(make())[1]
    one_line(lambda: layer.sequence(torch.ones(3)), ValueError, "x: got shape (3,), accepted is (T, N, *)")
    one_line(lambda: layer.sequence(torch.ones(0, 3)), ValueError, "x: got shape (0, 3), accepted is")
    one_line(lambda: layer.sequence([1.0]), ValueError, "x: got list, accepted is (T, N, *)")


# ------------------------------------------------------------------------------------------------ Norse's own functions


@pytest.mark.parametrize("before", [False, True], ids=["converted-later", "converted-before"])
def test_sequential_state_and_lift(before: bool) -> None:
    """SequentialState looks at the signatures of its layers' `forward` when it is made."""
    torch.manual_seed(0)
    layers = [nn.Linear(6, 8), box(), nn.Linear(8, 5), cell(), theirs.LICell()]
    expected_net = theirs.SequentialState(*copy.deepcopy(layers)).double()
    if before:
        convert(nn.ModuleList(layers))
    net = theirs.SequentialState(*layers).double()
    assert len(convert(net).replaced) == 2
    assert net.stateful_layers == expected_net.stateful_layers == [False, True, False, True, True]
    found, wanted = (theirs.Lift(n)(2 * current(T, 4, 6)) for n in (net, expected_net))
    assert_near(found[0], wanted[0], 1e-12)
    for state, expected in zip(found[1], wanted[1], strict=True):
        for one, other in zip(state or (), expected or (), strict=True):
            assert_near(one, other, 1e-12)


def test_nir_export() -> None:
    to_nir = pytest.importorskip("norse.torch.utils.export_nir").to_nir
    graphs = []
    for converted in (False, True):
        torch.manual_seed(0)
        net = theirs.SequentialState(nn.Linear(3, 4), box(), nn.Linear(4, 5), cell())
        if converted:
            convert(net, strict=True)
        graphs.append(to_nir(net, torch.randn(1, 3)))
    assert [type(node) for node in graphs[0].nodes.values()] == [type(node) for node in graphs[1].nodes.values()]
    assert sorted(type(node).__name__ for node in graphs[1].nodes.values()) == [
        *("Affine", "Affine", "CubaLIF", "Input", "LIF", "Output")
    ]


# ------------------------------------------------------------------------------------------------ copies and compiling


@on_ways
def test_copies(make: Callable, way: str) -> None:
    """A deepcopy has its own initial state; `revert` in the middle of a sequence."""
    layer = twins(make())[1]
    x = current(T, *N)
    twin = copy.deepcopy(layer)
    assert type(twin) is type(layer)
    assert twin.state_fallback.__self__ is twin
    _, state = through_time(layer, x, None, way)
    revert(twin)
    for one, other in zip(through_time(layer, x, state, way)[1], through_time(twin, x, state, way)[1], strict=True):
        assert_near(one, other, 1e-13)


def test_pickle() -> None:
    """As Norse's: its LIFParameters and LIFBoxParameters cannot be pickled, parameters of one's own can."""
    layer = box()
    p = {name: getattr(layer.p, name) for name in (*VALUES, "method", "alpha", "reset_method")}
    for layer in twins(theirs.LIFBoxCell(SimpleNamespace(**p))):
        loaded = pickle.loads(pickle.dumps(layer))
        assert type(loaded) is type(layer)
        assert torch.equal(loaded(current(*N))[0], layer(current(*N))[0])
    for layer in twins(box()):
        with pytest.raises(pickle.PicklingError):
            pickle.dumps(layer)


def test_state_dicts_are_theirs() -> None:
    model = theirs.SequentialState(nn.Linear(6, 6), *(make() for make in LAYERS.values()))
    other = copy.deepcopy(model)
    convert(model, strict=True)
    assert model.state_dict().keys() == other.state_dict().keys()
    with torch.no_grad():
        other[0].weight.fill_(0.3)
    model.load_state_dict(other.state_dict())
    assert (model[0].weight == 0.3).all()
    assert repr(model) == repr(other)


@pytest.mark.few(3)
@on_ways
@pytest.mark.parametrize("learn", [False, True], ids=["", "learnt"])
def test_compile(make: Callable, way: str, learn: bool) -> None:
    """In one graph, from a state."""
    torch.compiler.reset()
    x, pair = current(2, *N).requires_grad_(), twins(make(v_th=torch.tensor(0.6, requires_grad=learn)))
    state, found = state_of(pair[0], *N), []
    compiled = torch.compile(lambda x, state: through_time(pair[1], x, state, way), fullgraph=True, backend="aot_eager")
    for spikes, after in (compiled(x, state), through_time(pair[0], x, state, way)):
        gradients = torch.autograd.grad(spikes.sum() + after.v.sum(), [x, *learnt(pair[0])])
        found.append((spikes, after, gradients))
    (spikes, after, gradients), (expected, expected_after, expected_gradients) = found
    assert torch.equal(spikes, expected)
    for one, other in zip(after, expected_after, strict=True):
        assert_near(one, other, 1e-13)
    assert_same_gradients(gradients, expected_gradients, torch.float32)


@pytest.mark.few(2)
@on_layers
def test_compile_from_the_initial_state(make: Callable) -> None:
    """Norse's `initial_state` is not to be traced, and is called between graphs: ours as theirs."""
    torch.compiler.reset()
    layer = twins(make())[1]
    x = current(*((2,) if make is layer_in_time else ()), *N)
    assert torch.equal(torch.compile(layer, backend="aot_eager")(x)[0], layer(x)[0])


# --------------------------------------------------------------------------------------------------------- direct use


@pytest.mark.parametrize("name", ["LIFBoxCell", "LIFCell", "LIF"])
def test_direct_use(name: str) -> None:
    for options in ({}, {"dt": 0.002}):
        expected_layer, layer = (getattr(module, name)(**options) for module in (theirs, ours))
        assert isinstance(layer, type(expected_layer))
        assert repr(layer) == repr(expected_layer)
        assert_same((expected_layer, layer), 10 * current(T, *N), way="sequence")
        assert convert(layer).replaced
    with pytest.raises(TypeError):
        getattr(ours, name)(no_such_option=1)


@on_ways
def test_several_optimiser_steps(make: Callable, way: str) -> None:
    """Between two linear layers, all its parameters learnt, the state kept over the steps, detached."""
    values = VALUES if make in (box, soft_box) else VALUES | {"tau_syn_inv": 250.0}
    losses: list[list[float]] = []
    kept = []
    for converted in (False, True):
        torch.manual_seed(0)
        p = {name: nn.Parameter(torch.full((20,), value, dtype=torch.float64)) for name, value in values.items()}
        first, layer, last = nn.Linear(6, 20).double(), make(**p), nn.Linear(20, 3).double()
        groups = [
            {"params": [*first.parameters(), *last.parameters(), *(q for n, q in p.items() if n[:3] != "tau")]},
            {"params": [q for n, q in p.items() if n[:3] == "tau"], "lr": 5.0},
        ]
        optimiser, state, history = torch.optim.Adam(groups, lr=0.02), state_of(layer, 4, 20), []
        if converted:
            convert(layer, strict=True)
        for step in range(8):
            x, target = current(T, *N, seed=step), randn(4, 3, seed=100 + step, dtype=torch.float64)
            spikes, state = through_time(layer, first(x), state, way)
            state = type(state)(*(s.detach() for s in state))
            loss = (last(spikes).mean(0) - target).square().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            history.append(loss.item())
        losses.append(history)
        kept.append([*first.parameters(), *p.values(), *last.parameters(), *state])
        moved = {name: (p[name] - value).abs().max() > 1e-3 for name, value in values.items()}
        assert all(moved.values()) or (make is soft_box and [n for n in moved if not moved[n]] == ["v_reset"])
    assert losses[1] == pytest.approx(losses[0], rel=1e-10)
    for a, e in zip(kept[1], kept[0], strict=True):
        assert_near(a, e, 1e-9)


# ----------------------------------------------------------------------------------------------------- a loop over time


class Noise(nn.Module):
    """Unknown, and different at each step."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.rand(())


def with_hook(module: nn.Module, calls: list) -> nn.Module:
    module.register_forward_hook(lambda *_: calls.append(1))
    return module


UNROLLED: dict[str, tuple[Callable[[], list[nn.Module]], tuple[int, ...]]] = {
    "linear": (lambda: [nn.Linear(6, 8), box(), nn.Linear(8, 5), cell(), theirs.LICell()], N),
    "convolutions": (
        lambda: [
            *(nn.Conv2d(2, 3, 3), nn.Sequential(nn.BatchNorm2d(3).eval(), nn.ReLU()), soft_box(), nn.MaxPool2d(2)),
            *(nn.Dropout(0.3).eval(), theirs.SequentialState(nn.Flatten(), cell()), nn.Linear(12, 4), box()),
        ],
        (4, 2, 6, 6),
    ),
    "no-batch": (lambda: [nn.Conv2d(2, 3, 3), box(), nn.AvgPool2d(2), nn.Flatten(0), nn.Linear(12, 4)], (2, 6, 6)),
    "features-alone": (lambda: [nn.Linear(6, 8), cell(), nn.Linear(8, 5)], (6,)),
    "mixed-samples": (lambda: [nn.Linear(6, 8), box(), nn.Flatten(0), nn.Linear(32, 5)], N),
    "batch-norm": (lambda: [nn.Linear(6, 8), nn.BatchNorm1d(8), box(), nn.Linear(8, 5)], N),
    "random": (lambda: [nn.Linear(6, 8), Noise(), box()], N),
    "other-cells": (lambda: [theirs.LIFRefracCell(), nn.Linear(6, 8), theirs.LIFRecurrentCell(8, 5), cell()], N),
}


@pytest.mark.parametrize("case", UNROLLED)
def test_unroll_is_the_loop(case: str) -> None:
    """Outputs, states, the state going on, gradients, and what a layer keeps."""
    make, shape = UNROLLED[case]
    torch.manual_seed(0)
    net = theirs.SequentialState(*make()).double()
    expected_net, net = copy.deepcopy(net), copy.deepcopy(net)  # Norse's hooks on weights are not copied
    convert(net)
    found = []
    for network, run in ((expected_net, lambda n, x, s: theirs.Lift(n)((x, s))), (net, ours.unroll)):
        torch.manual_seed(1)
        x = (3 * current(T, *shape)).requires_grad_()
        first, state = run(network, x, None)
        second, state = run(network, x, state)
        wanted = [x, *network.parameters()]
        gradients = torch.autograd.grad(first.sum() + second.square().sum(), wanted)
        found.append([first, second, *tree_leaves(state), *gradients, *network.buffers()])
    for one, other in zip(*found, strict=True):
        if isinstance(other, Tensor) and other.is_floating_point():
            assert one.dtype == other.dtype
            assert_near(one.detach(), other.detach(), 1e-6, floor=1e-6)
        else:  # the state of a layer without one; batches counted
            assert one is other is None or torch.equal(one, other)


def test_unroll_calls_hooked_layers_step_by_step() -> None:
    calls: list[int] = []
    layers = [with_hook(nn.Linear(6, 6), calls), with_hook(box(), calls), nn.Linear(6, 6)]
    net = theirs.SequentialState(*layers).double()
    convert(net, strict=True)
    out, _ = ours.unroll(net, current(T, *N))
    assert len(calls) == 2 * T
    assert_near(out, theirs.Lift(net)(current(T, *N))[0], 1e-12)
    ours.unroll(with_hook(net, calls), current(T, *N))
    assert len(calls) == 7 * T


def test_unroll_runs_the_kernels(no_code_of_theirs: None) -> None:
    net = theirs.SequentialState(nn.Linear(6, 8), box(), nn.Linear(8, 5), cell()).double()
    convert(net, strict=True)
    assert ours.unroll(net, current(T, *N))[0].shape == (T, 4, 5)
    out, state = ours.unroll(nn.Linear(6, 8).double(), current(T, *N))
    assert (out.shape, state) == ((T, 4, 8), None)
    one_line(lambda: ours.unroll(net, torch.ones(3)), ValueError, "x: got shape (3,), accepted is (T, N, *)")
