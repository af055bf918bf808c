"""`neuron`: neurons from their equations, on every backend that runs them, against the reference and against `lif`."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import given as drawn
from hypothesis import strategies as st
from kernel_helpers import (
    BACKENDS,
    assert_near,
    assert_same_bits,
    channels_last,
    cpu_only,
    one_line,
    randn,
    uniform,
)
from torch import Tensor

from esvae_kernels import Hard, Soft, lif, neuron, use_backend
from esvae_kernels import dynamics as d
from esvae_kernels.neurons import alif
from esvae_kernels.scan.options import Options
from esvae_kernels.surrogate import ATan, Gaussian, PiecewiseExp, Rectangular, Sigmoid, Triangular

pytestmark = cpu_only("of the CPU's engine, on a GPU it is the reference")
ALIF = {"decay": 0.9, "threshold": 0.6, "jump": 0.1, "decay_a": 0.97}
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}
ops = torch.ops.esvae_kernels


@neuron(states={"v": "v_rest"})
def rest(x, v, *, decay, threshold, v_rest):
    m = v_rest + decay * (v - v_rest) + x
    s = d.spike(m, threshold, strict=True)
    return s, d.where(s > 0, v_rest, m)


@neuron(states={"v": 0.0, "u": -0.5})
def two(current, gate, v, u, *, p, q=0.3):
    """Two inputs, two outputs."""
    u = d.minimum(p * u + gate, 1.0) - d.abs(q * v)
    m = d.maximum(v * (1 - q), -2.0) + u * current / (1.5 + u**2)
    up, down = d.spike(m, 0.5), d.spike(-m, p)
    return (up, up - down), (m - 0.5 * up + p * down, d.where((u > 0) & ~(m > 1), u, q * u)), {"u": u, "m": m}


@neuron(states={"v": 0.0})
def graded(x, v, *, threshold, v_min):
    m = v + x
    s = d.spike(m, threshold, value=d.where(m > 0, d.trunc(m / threshold), 0.0))
    return s, d.maximum(m - threshold * s, v_min)


@neuron(states={"v": -0.2, "w": 0.0})
def exponential(x, v, w, *, slope, decay, period):
    """With every function that there is."""
    m = v + decay * (slope * d.exp((v - 0.5) / slope) - v - w) + x
    m = d.minimum(m, 2.0) + 0.01 * (d.sin(period * m) + d.cos(m))
    s = d.spike(m, d.sigmoid(w) + 0.3 * d.erf(w))
    w = decay * d.tanh(w + s) + 0.1 * d.atan(v) + 0.05 * d.log(1.1 + w * w) - 0.01 * d.sqrt(d.abs(v) + 1.0)
    return s, (m * (1 - s), w), {"m": m}


NEURONS: dict[str, tuple[Any, tuple[str, ...], dict[str, float]]] = {
    "alif": (alif, ("x",), ALIF),
    "rest": (rest, ("x",), {"decay": 0.8, "threshold": 0.7, "v_rest": -0.3}),
    "two": (two, ("current", "gate"), {"p": 0.6, "q": 0.2}),
    "exponential": (exponential, ("x",), {"slope": 0.4, "decay": 0.3, "period": 3.0}),
    "graded": (graded, ("x",), {"threshold": 0.7, "v_min": -1.0}),
}
KINDS = ("number", "element", "channel", "neuron")


def parameters_of(name: str, kind: str, inner: tuple[int, ...], dtype: torch.dtype) -> dict[str, Any]:
    shapes = {"element": (1,), "channel": (inner[1],), "neuron": inner[1:]}
    values = NEURONS[name][2]
    if kind == "number":
        return dict(values)
    spread = {k: v + 0.1 * uniform(*shapes[kind], seed=j).to(dtype) for j, (k, v) in enumerate(values.items())}
    return {k: v.requires_grad_() for k, v in spread.items()}


def outcome(backend: str, name: str, tensors: list[Tensor], **options: Any) -> tuple[list[Tensor], list[Tensor]]:
    """What comes out, and the gradients of whatever needs one."""
    graph = NEURONS[name][0].graph
    options.setdefault("record", [k for k, _ in graph.records])
    leaves = [t for t in (*tensors, *options.values()) if isinstance(t, Tensor) and t.requires_grad]
    with use_backend(backend):
        found = NEURONS[name][0](*tensors, **options)
        outputs, states, *records = found
        flat = [outputs] if isinstance(outputs, Tensor) else list(outputs)
        flat += [states] if isinstance(states, Tensor) else list(states)
        flat += list(records[0].values()) if records else []
        there = [t for t in flat if t.requires_grad]
        cotangents = [randn(*t.shape, seed=50 + k).to(t.dtype) for k, t in enumerate(there)]
        gradients = torch.autograd.grad(there, leaves, cotangents, allow_unused=True, materialize_grads=True)
    return flat, list(gradients)


def agree(name: str, tensors: list[Tensor], **options: Any) -> None:
    outputs, gradients = outcome("cpu", name, tensors, **options)
    wanted, expected = outcome("reference", name, tensors, **options)
    for ours, theirs in zip(outputs, wanted, strict=True):
        if name == "exponential" and tensors[0].dtype == torch.float64:  # by functions of two libraries
            assert_near(ours, theirs, 1e-12)
        else:
            assert_same_bits(ours, theirs)
    for ours, theirs in zip(gradients, expected, strict=True):
        scale = max(1.0, theirs.abs().max().item()) if theirs.numel() else 1.0
        assert_near(ours / scale, theirs / scale, TOLERANCE[tensors[0].dtype])


def inputs_of(name: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [randn(*shape, seed=k, dtype=dtype) for k in range(len(NEURONS[name][1]))]


# ------------------------------------------------------------------------------------------ against the reference


@pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NEURONS)
def test_equals_the_reference(name: str, kind: str, dtype: torch.dtype) -> None:
    state = torch.float64 if dtype == torch.float64 else torch.float32
    for steps, inner in ((1, (3, 2)), (17, (2, 3, 5)), (35, (1, 700))):
        tensors = [t.requires_grad_() for t in inputs_of(name, (steps, *inner), dtype)]
        agree(name, tensors, **parameters_of(name, kind, inner, state))


@pytest.mark.parametrize(
    "surrogate", [Rectangular(0.8), Sigmoid(3.0), Triangular(1.1), Gaussian(0.4), PiecewiseExp(2.0)]
)
@pytest.mark.parametrize("name", NEURONS)
def test_surrogates(name: str, surrogate: Any) -> None:
    tensors = [t.requires_grad_() for t in inputs_of(name, (20, 2, 3))]
    agree(name, tensors, surrogate=surrogate, **NEURONS[name][2])
    shifted = type(surrogate)(surrogate.parameter, shift=0.2, scale=1.7)
    agree(name, tensors, surrogate=shifted, **NEURONS[name][2])


@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize("layout", ["channels-last", "strided"])
@pytest.mark.parametrize("name", NEURONS)
def test_layouts(name: str, layout: str, constant: bool) -> None:
    shape = (2, 3, 4, 4) if constant else (18, 2, 3, 4, 4)
    tensors = inputs_of(name, shape)
    change = {
        "channels-last": lambda x: channels_last(x, 1 if constant else 2),
        "strided": lambda x: x.transpose(-1, -2),
    }
    tensors = [change[layout](x).detach().requires_grad_() for x in tensors]
    options = {"steps": 18} if constant else {}
    for kind in KINDS:
        agree(name, tensors, **parameters_of(name, kind, (2, 3, 4, 4), torch.float32), **options)


@pytest.mark.parametrize(
    "readout", ["mean", [0.1 * k for k in range(19)], torch.linspace(0, 1, 19, requires_grad=True)]
)
@pytest.mark.parametrize("name", NEURONS)
def test_readouts(name: str, readout: Any) -> None:
    tensors = [t.requires_grad_() for t in inputs_of(name, (19, 2, 3))]
    if isinstance(readout, Tensor):
        whole = NEURONS[name][0](*tensors, **NEURONS[name][2])[0]
        whole = whole if isinstance(whole, Tensor) else whole[0]
        found = NEURONS[name][0](*tensors, readout=readout, **NEURONS[name][2])[0]
        found = found if isinstance(found, Tensor) else found[0]
        assert_near(found, (readout[:, None, None] * whole).sum(0), 1e-6)
        assert torch.autograd.grad(found.sum(), readout)[0].shape == readout.shape
    else:
        agree(name, tensors, readout=readout, **NEURONS[name][2])


@pytest.mark.parametrize("name", NEURONS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_sequence_can_be_cut(backend: str, name: str) -> None:
    tensors, options = inputs_of(name, (40, 2, 3)), NEURONS[name][2]
    with use_backend(backend):
        (outputs, states), held = NEURONS[name][0](*tensors, **options), ()
        pieces = []
        for a, b in ((0, 1), (1, 17), (17, 40)):
            order = [x[a:b] for x in tensors]
            out, held = NEURONS[name][0](*order, *(held if isinstance(held, tuple) else (held,)), **options)
            pieces.append(out)
    whole = outputs if isinstance(outputs, tuple) else (outputs,)
    for k, output in enumerate(whole):
        assert_same_bits(torch.cat([p[k] if isinstance(p, tuple) else p for p in pieces]), output)
    for last, wanted in zip(*[s if isinstance(s, tuple) else (s,) for s in (held, states)], strict=True):
        assert_same_bits(last, wanted)


def test_gradients_of_states_and_of_a_part() -> None:
    x, v = randn(20, 2, 3), randn(2, 3, seed=1).requires_grad_()
    agree("alif", [x, v, randn(2, 3, seed=2).requires_grad_()], **ALIF)
    decay = torch.tensor(0.9, requires_grad=True)
    agree("alif", [x], **(ALIF | {"decay": decay}))
    agree("two", [x.requires_grad_(), randn(20, 2, 3, seed=5)], p=0.6)


def test_empty_batches_and_bytes() -> None:
    spikes, (v, a) = alif(torch.zeros(5, 0, 3, requires_grad=True), **ALIF)
    assert (spikes.shape, v.shape, a.shape) == ((5, 0, 3), (0, 3), (0, 3))
    spikes.sum().backward()
    x = randn(20, 4, 5)
    spikes, _ = alif(x, dtype=torch.uint8, **ALIF)
    assert spikes.dtype == torch.uint8
    assert_same_bits(spikes.float(), alif(x, **ALIF)[0])


def test_the_same_for_any_number_of_threads() -> None:
    x = randn(20, 64, 100).requires_grad_()
    decay = torch.full((100,), 0.9, requires_grad=True)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            spikes, (v, a) = alif(x, **(ALIF | {"decay": decay}))
            found.append([spikes, v, a, *torch.autograd.grad(spikes.sum() + a.sum(), [x, decay])])
    finally:
        torch.set_num_threads(before)
    for one, other in zip(*found, strict=True):
        assert_same_bits(one, other)


# --------------------------------------------------------------------------------------------------- against lif


def written_again(kind: str) -> Any:
    def hard(x, v, *, decay, threshold, v_reset):
        m = decay * v + x
        s = d.spike(m, threshold)
        return s, m * (1 - s) + v_reset * s

    def soft(x, v, *, decay, threshold):
        m = decay * v + x
        s = d.spike(m, threshold)
        return s, m - threshold * s

    def none(x, v, *, decay, threshold):
        m = decay * v + x
        return d.spike(m, threshold), m

    def detached(x, v, *, decay, threshold):
        m = decay * v + x
        s = d.spike(m, threshold)
        r = d.detach(s)
        return s, m * (1 - r)

    def synaptic(x, v, i, *, decay, threshold, synaptic_decay):
        c = i + x
        m = decay * v + c
        s = d.spike(m, threshold)
        return s, (m * (1 - s), synaptic_decay * c)

    def several(x, v, *, decay, threshold):
        m = decay * v + x
        s = d.spike(m, threshold, value=d.where(m > 0, d.trunc(m / threshold), 0.0))
        return s, m - threshold * s

    states = {"v": 0.0, "i": 0.0} if kind == "synaptic" else {"v": 0.0}
    return neuron(states=states)({f.__name__: f for f in (hard, soft, none, detached, synaptic, several)}[kind])


LIFS = {
    "hard": ({"v_reset": -0.2}, {"reset": Hard(-0.2)}),
    "soft": ({}, {"reset": Soft()}),
    "none": ({}, {"reset": None}),
    "detached": ({}, {"reset": Hard(detach=True)}),
    "synaptic": ({"synaptic_decay": 0.6}, {"synaptic_decay": 0.6}),
    "several": ({}, {"reset": Soft(), "fire": "multi_spike"}),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", LIFS)
def test_lif_written_again(kind: str, backend: str) -> None:
    mine, theirs = LIFS[kind]
    x, decay = randn(35, 3, 40).requires_grad_(), torch.full((40,), 0.8, requires_grad=True)
    common = {"decay": decay, "threshold": 0.7, "surrogate": ATan(1.5)}
    with use_backend(backend):
        spikes, last = written_again(kind)(x, **common, **mine)
        wanted, *states = lif(x, **common, **theirs)
        assert_same_bits(spikes, wanted)
        for ours, other in zip(last if isinstance(last, tuple) else (last,), states, strict=True):
            assert_same_bits(ours, other)
        cotangent = randn(*x.shape, seed=3)
        ours, other = (torch.autograd.grad((s * cotangent).sum(), [x, decay]) for s in (spikes, wanted))
    for one, two_ in zip(ours, other, strict=True):
        assert_near(one, two_, 2e-4)


# ------------------------------------------------------------------------------------------------- random neurons

UNARY = (
    *("neg", "abs", "floor", "square", "sign", "detach"),
    *("tanh", "exp", "sigmoid", "atan", "erf", "sin", "cos", "log"),
)
BINARY = ("add", "sub", "mul", "minimum", "maximum", "where", "spike", "div")


@st.composite
def steps(draw: st.DrawFn) -> list[tuple[str, int, int]]:
    """Operations on what is there: x, v, p, 0.5, and the results before."""
    count = draw(st.integers(3, 9))
    return [
        (draw(st.sampled_from(UNARY + BINARY)), *draw(st.tuples(*[st.integers(0, 3 + k)] * 2))) for k in range(count)
    ]


def made(found: list[tuple[str, int, int]]) -> Callable[..., Any]:
    def step(x, v, *, p):
        values: list[Any] = [x, v, p, x * 0.5]
        for op, j, k in found:
            a, b = values[j], values[k]
            values.append(
                {
                    "add": lambda a, b: a + b,
                    "sub": lambda a, b: a - b,
                    "mul": lambda a, b: a * b,
                    "div": lambda a, b: a / (1.5 + b * b),
                    "where": lambda a, b: d.where((a > b) | (a == 0.0), a, 0.25 - b),
                    "spike": lambda a, b: d.spike(a, b),
                    "minimum": d.minimum,
                    "maximum": d.maximum,
                    "neg": lambda a, b: -a,
                    "abs": lambda a, b: d.abs(a),
                    "floor": lambda a, b: d.floor(a) * 0.1,
                    "sign": lambda a, b: d.sign(a),
                    "square": lambda a, b: a**2,
                    "detach": lambda a, b: d.detach(a),
                    "exp": lambda a, b: d.exp(d.minimum(a, 2.0)),
                    "log": lambda a, b: d.log(1.0 + a * a),
                    "sigmoid": lambda a, b: d.sigmoid(a),
                    "tanh": lambda a, b: d.tanh(a),
                    "atan": lambda a, b: d.atan(a),
                    "erf": lambda a, b: d.erf(a),
                    "sin": lambda a, b: d.sin(a),
                    "cos": lambda a, b: d.cos(a),
                }[op](a, b)
            )
        bounded = d.minimum(d.maximum(values[-1], -3.0), 3.0)
        return values[-1], 0.5 * bounded + 0.1 * v, {"middle": values[-2]}

    return step


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@drawn(steps())
def test_random_neurons(found: list[tuple[str, int, int]]) -> None:
    function = neuron(states={"v": 0.1})(made(found))
    results = []
    for backend in ("cpu", "reference"):
        x, p = randn(18, 2, 3).requires_grad_(), torch.full((3,), 0.4, requires_grad=True)
        with use_backend(backend):
            out, v, records = function(x, p=p, record="middle")
            flow = (out * 0.3).sum() + v.sum() + records["middle"].sum() * 0.1
            gradients = torch.autograd.grad(flow, [x, p], allow_unused=True, materialize_grads=True)
        results.append(([out, v, records["middle"]], gradients))
    for ours, theirs in zip(results[0][0], results[1][0], strict=True):
        assert_same_bits(ours.detach(), theirs.detach())
    for ours, theirs in zip(results[0][1], results[1][1], strict=True):
        scale = max(1.0, theirs.abs().max().item())
        assert_near(ours / scale, theirs / scale, 1e-4)


# ---------------------------------------------------------------------------------------------------- transforms


def smooth(x: Tensor, decay: Tensor, v: Tensor) -> Tensor:
    surrogate = ATan(2.0, spiking=False)
    spikes, (v, a), more = alif(x, v, **(ALIF | {"decay": decay}), surrogate=surrogate, record="membrane")
    return spikes.sum(0) + v * a + more["membrane"].square().sum(0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradcheck(backend: str) -> None:
    x, v = (randn(*shape, dtype=torch.float64).requires_grad_() for shape in ((18, 2, 3), (2, 3)))
    decay = torch.full((3,), 0.8, dtype=torch.float64, requires_grad=True)
    with use_backend(backend):
        assert torch.autograd.gradcheck(smooth, (x, decay, v))
        assert torch.autograd.gradgradcheck(smooth, (x[:4].detach().requires_grad_(), decay, v))


def test_transforms() -> None:
    x, decay = randn(20, 2, 3), torch.full((3,), 0.8)
    run = lambda x, decay: alif(x, **(ALIF | {"decay": decay}))[0]  # noqa: E731
    batch = randn(20, 4, 2, 3)
    assert_same_bits(
        torch.func.vmap(run, (1, None))(batch, decay), torch.stack([run(b, decay) for b in batch.unbind(1)])
    )
    loss = lambda x: run(x, decay).square().sum()  # noqa: E731
    leaf = x.clone().requires_grad_()
    assert_same_bits(torch.func.grad(loss)(x), torch.autograd.grad(loss(leaf), leaf)[0])
    per_sample = torch.func.vmap(torch.func.grad(loss))(batch.movedim(1, 0))
    assert_same_bits(per_sample[1], torch.func.grad(loss)(batch[:, 1]))
    double = x.double()
    of_smooth = lambda x: smooth(x, decay.double(), torch.zeros(2, 3, dtype=torch.float64))  # noqa: E731
    out, tangent = torch.func.jvp(of_smooth, (double,), (double,))
    step = 1e-6
    numeric = (of_smooth(double * (1 + step)) - of_smooth(double * (1 - step))) / (2 * step)
    assert_near(tangent / numeric.abs().max(), numeric / numeric.abs().max(), 1e-7)
    assert_near(out, of_smooth(double), 1e-12)


@pytest.mark.parametrize("learns", [False, True])
def test_compile_with_any_length(learns: bool) -> None:
    decay = torch.full((3,), 0.8)
    run = lambda x: alif(x, **(ALIF | {"decay": decay}), record="membrane")  # noqa: E731
    compiled = torch.compile(run, fullgraph=True, dynamic=True, backend="aot_eager")
    for steps_ in (20, 7, 33):
        x = randn(steps_, 2, 3, seed=steps_).requires_grad_(learns)
        (spikes, (v, a), _), (wanted, (v2, a2), _) = compiled(x), run(x)
        for ours, theirs in ((spikes, wanted), (v, v2), (a, a2)):
            assert_same_bits(ours.detach(), theirs.detach())
        if learns:
            ours, theirs = (torch.autograd.grad(s.sum(), x)[0] for s in (spikes, wanted))
            assert_same_bits(ours, theirs)


class Layer(torch.nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        spikes: Tensor = alif(x, **ALIF)[0]
        return spikes


@pytest.mark.parametrize("learns", [False, True])
def test_export_with_any_length(learns: bool) -> None:
    x = randn(20, 2, 3).requires_grad_(learns)
    exported = torch.export.export(Layer(), (x,), dynamic_shapes=({0: torch.export.Dim("T", min=2, max=1000)},))
    for steps_ in (2, 50):
        y = randn(steps_, 2, 3, seed=steps_)
        assert_same_bits(exported.module()(y).detach(), alif(y, **ALIF)[0])


def test_opcheck() -> None:
    x, a = randn(20, 2, 3), randn(2, 3)
    for readout, record in ((0, ("membrane",)), (1, ())):
        text = Options(alif.graph.text(), 3, 2.0, 1.0, 0.0, True, readout, torch.float32, False, record).text()
        given = (
            text,
            [x],
            [None, a],
            [torch.full((3,), 0.8), None, None, torch.ones(1)],
            [0.0, 0.6, 0.1, 0.0],
            None,
            None,
        )
        torch.library.opcheck(ops.scan_fwd.default, (*given, 20, 1))
        dout = randn(2, 3) if readout else x
        cotangents = ([dout], [a, None], [x] if record else [])
        wanted = [True, False, True, True, False, False, True]
        torch.library.opcheck(ops.scan_bwd.default, (*given, torch.zeros(2, 1, 2, 3), *cotangents, wanted, 20))


def test_raw_ops_refuse_what_they_cannot_take() -> None:
    x = randn(20, 2, 3)
    text = Options(alif.graph.text(), 3, 2.0, 1.0, 0.0, True, 0, torch.float32, False, ()).text()
    right = [text, [x], [None, None], [None] * 4, [0.9, 0.6, 0.1, 0.9], None, None, 20, 1]
    ops.scan_fwd(*right)
    for k, wrong, line in (
        (0, "x", "neuron: got 'x'"),
        (1, [x, x], "inputs: got 2, accepted are 1"),
        (1, [x.int()], "inputs: got"),
        (2, [None, x], "states: got shape"),
        (2, [None], "states: got 1, accepted are 2"),
        (3, [torch.ones(5), None, None, None], "parameters: got shape"),
        (4, [0.9], "numbers: got 1, accepted are 4"),
        (5, torch.ones(20), "weights: got them or none"),
        (7, 19, "steps: got 19"),
        (8, 7, None),
    ):
        arguments = [*right[:k], wrong, *right[k + 1 :]]
        if line is None:
            assert ops.scan_fwd(*arguments)[-1].shape[1] == wrong
        else:
            with pytest.raises((RuntimeError, ValueError), match=line):
                ops.scan_fwd(*arguments)


def test_copies() -> None:
    x = randn(5, 2, 3)
    for other in (copy.deepcopy(alif), pickle.loads(pickle.dumps(alif))):
        assert_same_bits(other(x, **ALIF)[0], alif(x, **ALIF)[0])
    assert repr(alif) == "<neuron alif>"
    assert "threshold" in alif.__doc__


# -------------------------------------------------------------------------------------------------------- errors

X = torch.zeros(4, 2, 3)
WRONG = {
    "missing": (lambda: alif(X, decay=0.5), "alif: got no threshold"),
    "no input": (lambda: alif(**ALIF), "alif: got no x"),
    "unknown": (lambda: alif(X, colour=1, **ALIF), "alif: got the unknown keyword colour, accepted are decay"),
    "twice": (lambda: alif(X, x=X, **ALIF), "alif: got x twice"),
    "many": (lambda: alif(X, X[0], X[0], X[0], **ALIF), "alif: got 4 tensors, accepted are x, v, a"),
    "dtype": (lambda: alif(X.int(), **ALIF), "x: got dtype int32"),
    "dims": (lambda: alif(X[0, 0], **ALIF), "x: got shape (3,)"),
    "state": (lambda: alif(X, X, **ALIF), "v: got shape (4, 2, 3), accepted is (2, 3)"),
    "bool": (lambda: alif(X, **(ALIF | {"decay": True})), "decay: got True"),
    "nan": (lambda: alif(X, **(ALIF | {"jump": float("nan")})), "jump: got nan"),
    "size": (lambda: alif(X, **(ALIF | {"jump": torch.ones(2)})), "jump: got shape (2,), accepted are"),
    "record": (lambda: alif(X, record="m", **ALIF), "record: got 'm', accepted is 'membrane'"),
    "readout": (lambda: alif(X, readout="sum", **ALIF), "readout: got 'sum'"),
    "steps": (lambda: alif(X, steps=0, **ALIF), "steps: got 0"),
    "surrogate": (lambda: alif(X, surrogate=ATan, **ALIF), "surrogate: got <class"),
    "smooth": (
        lambda: graded(X, threshold=1.0, v_min=0.0, surrogate=ATan(spiking=False)),
        "surrogate: got one with spiking=False",
    ),
    "bytes": (lambda: two(X, X, p=0.5, dtype=torch.uint8), "dtype: got torch.uint8"),
    "other input": (lambda: two(X, X[:2], p=0.5), "gate: got shape (2, 2, 3), accepted is (4, 2, 3)"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_call_is_one_line(name: str) -> None:
    call, line = WRONG[name]
    with pytest.raises((TypeError, ValueError)) as raised:
        call()
    assert str(raised.value).startswith(line)
    assert "\n" not in str(raised.value)


def test_an_argument_with_a_name_of_every_neuron() -> None:
    one_line(
        lambda: neuron(states={})(lambda x, *, dtype: (x, ())),
        d.NeuronError,
        "neuron <lambda>: got an argument named dtype, which every neuron has",
    )
