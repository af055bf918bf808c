"""What surrounds the kernels' arithmetic: forward-mode derivatives, traces and exports, schedules, parameters per
neuron, and raw ops that are called with what they cannot take."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.utils._python_dispatch
from kernel_helpers import (
    BACKENDS,
    assert_near,
    assert_same_bits,
    channels_last,
    cpu_only,
    neuron,
    one_line,
    randn,
    raw,
    uniform,
)
from torch import Tensor

from esvae_kernels import Delayed, Hard, Soft, bn_lif, lif, nn, poisson, use_backend
from esvae_kernels.ops.lif import op, plan
from esvae_kernels.surrogate import ATan, Gaussian, PiecewiseExp, Rectangular, Sigmoid, Surrogate, Triangular

ops = torch.ops.esvae_kernels
on_both = pytest.mark.parametrize("backend", BACKENDS, indirect=True)
NEURON = {"decay": 0.7, "threshold": 0.4}
SMOOTH = NEURON | {"surrogate": ATan(1.5, spiking=False)}

# ------------------------------------------------------------------------------------------- forward-mode derivatives


def functions() -> dict[str, tuple[Callable[..., Tensor], tuple[Tensor, ...]]]:
    """Of x and a parameter, fp64 and smooth, so that differences can check them."""
    x, per_channel = randn(4, 3, 2, dtype=torch.float64), torch.tensor([0.3, 0.5], dtype=torch.float64)
    state = [torch.ones(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)]

    def normed(y: Tensor, weight: Tensor) -> Tensor:
        running = (torch.zeros(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64))
        return bn_lif(y, weight, state[1], *running, training=True, **SMOOTH)[0]

    return {
        "lif": (lambda x, t: lif(x, **(SMOOTH | {"threshold": t}), reset=Soft())[0], (x, per_channel)),
        "lif-mean": (lambda x, t: lif(x, **(SMOOTH | {"decay": t}), readout="mean")[0], (x, per_channel)),
        "bn_lif": (normed, (x, per_channel + 0.5)),
        "poisson": (lambda r, _: poisson(r, 5, seed=1, surrogate=Sigmoid(spiking=False)), (uniform(3, 2).double(), x)),
    }


@pytest.mark.parametrize("name", ["lif", "lif-mean", "bn_lif", "poisson"])
def test_forward_mode_derivatives(name: str) -> None:
    """jvp against central differences, jacfwd against jacrev, the Hessian against differences of gradients."""
    function, inputs = functions()[name]
    tangents = tuple(randn(*t.shape, seed=3, dtype=torch.float64) for t in inputs)
    out, derivative = torch.func.jvp(function, inputs, tangents)
    assert_near(out, function(*inputs), 1e-14)
    step = 1e-6
    sides = [function(*(t + side * step * d for t, d in zip(inputs, tangents, strict=True))) for side in (1, -1)]
    assert_near(derivative, (sides[0] - sides[1]) / (2 * step), 1e-7)
    forward, reverse = (jac(function)(*inputs) for jac in (torch.func.jacfwd, torch.func.jacrev))
    assert_near(forward, reverse, 1e-12)
    with torch.autograd.forward_ad.dual_level():
        duals = [torch.autograd.forward_ad.make_dual(t, d) for t, d in zip(inputs, tangents, strict=True)]
        assert_near(torch.autograd.forward_ad.unpack_dual(function(*duals)).tangent, derivative, 1e-12)

    def loss(*inputs: Tensor) -> Tensor:
        return function(*inputs).square().sum()

    hessian = torch.func.hessian(loss)(*inputs)
    count = inputs[0].numel()
    by_reverse = torch.autograd.functional.hessian(lambda x: loss(x, *inputs[1:]), inputs[0])
    assert_near(hessian.reshape(count, count), by_reverse.reshape(count, count), 1e-10)


@on_both
def test_forward_mode_of_real_spikes(backend: str) -> None:
    """The derivative is the surrogate's, as backwards: <jvp, c> = <tangent, vjp of c>."""
    x, tangent = randn(9, 3, 2), randn(9, 3, 2, seed=1)
    (spikes, v), (ds, dv) = torch.func.jvp(lambda x: lif(x, **NEURON), (x,), (tangent,))
    leaf = x.clone().requires_grad_()
    outputs = lif(leaf, **NEURON)
    assert_same_bits(spikes, outputs[0])
    assert_same_bits(v, outputs[1])
    cotangents = [randn(*o.shape, seed=2 + k) for k, o in enumerate(outputs)]
    (dx,) = torch.autograd.grad(outputs, leaf, cotangents)
    forward = (ds * cotangents[0]).sum() + (dv * cotangents[1]).sum()
    torch.testing.assert_close(forward, (dx * tangent).sum(), rtol=1e-4, atol=1e-5)


# ----------------------------------------------------------------------------------------------- traces and exports


@cpu_only("traces are the same on any device")
def test_jit_trace() -> None:
    x, net = randn(5, 3, 4), torch.nn.Sequential(torch.nn.Linear(4, 4), nn.LIF(**NEURON), nn.BNLIF(4, **NEURON).eval())
    with torch.no_grad():
        traced = torch.jit.trace(net, x)
        assert_same_bits(traced(x + 1), net(x + 1))
        rates = torch.jit.trace(lambda r: poisson(r, 4, seed=1), uniform(3, 2))
        assert_same_bits(rates(uniform(3, 2, seed=1)), poisson(uniform(3, 2, seed=1), 4, seed=1))
    with pytest.raises(RuntimeError, match=r"^torch.jit.trace: got tensors that need a gradient, .* torch.no_grad"):
        torch.jit.trace(net, x)


def modules() -> dict[str, tuple[torch.nn.Module, tuple[int, ...]]]:
    learnt = torch.nn.Parameter(torch.linspace(0.3, 0.9, 4))
    return {
        "lif": (nn.LIF(**NEURON), (4,)),
        "lif-learnt": (nn.LIF(decay=learnt, threshold=0.3, synaptic_decay=0.5, reset=Soft(), readout="mean"), (4,)),
        "li-last": (nn.LI(decay=0.9), (4,)),
        "li-mean": (nn.LI(decay=learnt, readout="mean"), (4,)),
        "li-all": (nn.LI(decay=0.9, readout=None), (4,)),
        "bnlif": (nn.BNLIF(4, **NEURON), (4, 2, 2)),
        "bnlif-evaluated": (nn.BNLIF(4, **NEURON).eval(), (4, 2, 2)),
    }


@cpu_only("exports are the same on any device")
@pytest.mark.parametrize("name", list(modules()))
@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
def test_export_with_dynamic_time(name: str, grad: bool) -> None:
    module, inner = modules()[name]
    x = randn(20, 3, *inner)
    time = torch.export.Dim("time", min=2, max=4096)
    names = {"bnlif": "y", "bnlif-evaluated": "y"}
    with torch.set_grad_enabled(grad):
        exported = torch.export.export(module, (x,), dynamic_shapes={names.get(name, "x"): {0: time}})
        for steps in (2, 16, 17, 33, 100):
            x = randn(steps, 3, *inner, seed=steps)
            assert_same_bits(exported.module()(x), module(x))


@cpu_only("compiled graphs are the same on any device")
@pytest.mark.parametrize("name", list(modules()))
def test_compile_with_dynamic_time(name: str) -> None:
    """One graph for all lengths, forward and backward."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    module, inner = modules()[name]
    compiled = torch.compile(module, backend="aot_eager", dynamic=True, fullgraph=True)
    for steps in (20, 2, 16, 17, 33, 100):
        x = randn(steps, 3, *inner, seed=steps)
        found, expected = x.clone().requires_grad_(), x.clone().requires_grad_()
        out, truth = compiled(found), module(expected)
        assert_same_bits(out, truth)
        out.sum().backward()
        truth.sum().backward()
        assert_same_bits(found.grad, expected.grad)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


# --------------------------------------------------------------------------------------------------------- schedules


@on_both
@pytest.mark.parametrize("cls", [ATan, Gaussian, PiecewiseExp, Rectangular, Triangular])
def test_a_shape_parameter_in_a_tensor(backend: str, cls: type) -> None:
    alpha, x = torch.tensor(1.5, device="cpu"), randn(20, 3, 4)
    for value in (1.5, 3.0):
        alpha.fill_(value)
        results = []
        for surrogate in (cls(alpha), cls(value)):
            leaf = x.clone().requires_grad_()
            spikes, _ = lif(leaf, **NEURON, surrogate=surrogate)
            results.append((spikes, *torch.autograd.grad(spikes.square().sum(), leaf, create_graph=True)))
            results[-1] += torch.autograd.grad(results[-1][1].square().sum(), leaf)
        for a, b in zip(*results, strict=True):
            assert_same_bits(a, b)
    alpha.fill_(-1)
    with pytest.raises(ValueError, match=r"^surrogate: got -1\.0 in the tensor of its shape parameter, accepted is"):
        lif(x, **NEURON, surrogate=cls(alpha))
    for bad in (torch.ones(2), torch.tensor(1), torch.ones(1, device="meta")):
        with pytest.raises(ValueError, match=rf"^{cls.__name__}\(\w+\): got a tensor"):
            cls(bad)


@cpu_only("compiled graphs are the same on any device")
def test_a_schedule_recompiles_nothing() -> None:
    """Threshold and surrogate change from step to step in tensors."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    threshold, alpha = torch.tensor(0.2), torch.tensor(1.0)
    module = nn.LIF(decay=0.5, threshold=threshold, surrogate=ATan(alpha))
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    for k in range(12):
        module.threshold.fill_(0.2 + 0.05 * k)
        alpha.fill_(1.0 + k)
        x = randn(6, 5, seed=k).requires_grad_()
        (dx,) = torch.autograd.grad(compiled(x).sum(), x)
        fixed = {"threshold": float(module.threshold), "surrogate": ATan(float(alpha))}
        assert_same_bits(dx, torch.autograd.grad(lif(x, decay=0.5, **fixed)[0].sum(), x)[0])
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


# ------------------------------------------------------------------------------------------- parameters per neuron


@on_both
@pytest.mark.parametrize("layout", ["contiguous", "channels-last", "constant"])
@pytest.mark.parametrize(
    "names", [("threshold",), ("gain", "bias"), ("decay", "v_reset", "synaptic_decay")], ids="-".join
)
def test_parameters_per_neuron(backend: str, layout: str, names: tuple[str, ...]) -> None:
    """They are those of as many channels; with others that are per channel or numbers."""
    shape, steps = (3, 4, 2, 5), 20
    x = randn(*shape) if layout == "constant" else randn(steps, *shape)
    x = channels_last(x) if layout == "channels-last" else x
    options: dict = {"decay": 0.6, "threshold": torch.linspace(0.2, 0.5, 4), "v_reset": 0.1}
    options |= {name: uniform(*shape[1:], seed=k) * 0.5 + 0.2 for k, name in enumerate(names)}
    leaves = {k: t.clone().requires_grad_() for k, t in options.items() if isinstance(t, Tensor)}

    def run(x: Tensor, values: dict, steps: int | None) -> list[Tensor]:
        values = dict(values)
        reset = Hard(values.pop("v_reset"))
        current = x.detach().requires_grad_()
        outputs = lif(current, reset=reset, steps=steps, **values)
        cotangents = [
            randn(*o.shape[:-3], 40, seed=k).reshape(o.shape) if o.dim() > 3 else o for k, o in enumerate(outputs)
        ]
        return [*outputs, *torch.autograd.grad(outputs, [current, *leaves.values()], cotangents)]

    time = steps if layout == "constant" else None
    found = run(x, options | leaves, time)
    one = {
        k: t.view(4, 1, 1).expand(4, 2, 5) if t.shape == (4,) else t
        for k, t in (options | leaves).items()
        if isinstance(t, Tensor)
    }
    with use_backend("reference"):
        flat = lambda t: t.reshape(*t.shape[:-3], 40)  # noqa: E731
        current = flat(x.contiguous()).requires_grad_()
        values = options | leaves | {k: t.reshape(-1) for k, t in one.items()}
        outputs = lif(current, reset=Hard(values.pop("v_reset")), steps=time, **values)
        cotangents = [randn(*o.shape, seed=k) for k, o in enumerate(outputs)]
        truth = [*outputs, *torch.autograd.grad(outputs, [current, *leaves.values()], cotangents)]
    for k, (a, b) in enumerate(zip(found, truth, strict=True)):
        if k < len(outputs):
            assert_same_bits(a.contiguous(), b.reshape(a.shape))
        else:
            assert_near(a, b.reshape(a.shape), 2e-5)


@on_both
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels-last"])
def test_bn_lif_with_thresholds_per_neuron(backend: str, last: bool) -> None:
    y = randn(6, 3, 4, 2, 5, dtype=torch.float64)
    y = (channels_last(y) if last else y).requires_grad_()
    threshold = (uniform(4, 2, 5, dtype=torch.float64) * 0.5 + 0.2).requires_grad_()
    weight, bias = (randn(4, seed=k, dtype=torch.float64).requires_grad_() for k in (1, 2))
    running = lambda: (torch.zeros(4, dtype=torch.float64), torch.ones(4, dtype=torch.float64))  # noqa: E731
    options = {"decay": 0.6, "threshold": threshold}
    found = bn_lif(y, weight, bias, *running(), training=True, **options)
    x = torch.nn.functional.batch_norm(y.flatten(0, 1), *running(), weight, bias, True).unflatten(0, (6, 3))
    truth = lif(x, **options)
    inputs = (y, threshold, weight, bias)
    cotangents = [randn(*o.shape, seed=k, dtype=torch.float64) for k, o in enumerate(truth)]
    assert torch.equal(found[0], truth[0])
    for a, b in zip(
        torch.autograd.grad(found, inputs, cotangents), torch.autograd.grad(truth, inputs, cotangents), strict=True
    ):
        assert_near(a, b, 1e-9)


# ----------------------------------------------------------------------------------------------------------- raw ops


P = neuron(steps=4, **NEURON)
WEIGHTED, SYNAPTIC = (neuron(steps=4, **NEURON, **o) for o in ({"readout": "weights"}, {"synaptic_decay": 0.5}))
X, V, FP64 = torch.zeros(4, 3, 2), torch.zeros(3, 2), torch.float64
FORWARD = {  # x, v, i, parameters, weights, neuron, steps, saved_rows
    "short-v": (X, torch.zeros(3, 1), None, None, None, P, 4, 0),
    "v-of-another-type": (X, V.double(), None, None, None, P, 4, 0),
    "short-i": (X, None, torch.zeros(1, 2), None, None, SYNAPTIC, 4, 0),
    "no-weights": (X, None, None, None, None, WEIGHTED, 4, 0),
    "weights-for-nothing": (X, None, None, None, torch.zeros(4, dtype=FP64), P, 4, 0),
    "short-weights": (X, None, None, None, torch.zeros(3, dtype=FP64), WEIGHTED, 4, 0),
    "weights-of-another-type": (X, None, None, None, torch.zeros(4), WEIGHTED, 4, 0),
    "more-steps": (X, None, None, None, None, P, 9, 0),
    "no-steps": (X[:0], None, None, None, None, P, 0, 0),
    "parameters-of-three-rows": (X, None, None, torch.zeros(3, 2), None, P, 4, 0),
    "parameters-of-other-channels": (X, None, None, torch.zeros(6, 5), None, P, 4, 0),
    "parameters-of-another-type": (X, None, None, torch.zeros(6, 2, dtype=FP64), None, P, 4, 0),
    "an-integer-x": (X.long(), None, None, None, None, P, 4, 0),
    "no-batch": (X[:, 0, 0], None, None, None, None, P, 4, 0),
    "few-rows": (torch.zeros(40, 3, 2), None, None, None, None, P, 40, 1),
}


@pytest.mark.parametrize("case", FORWARD)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_raw_forward_refuses(case: str, device: str) -> None:
    *tensors, p, steps, rows = FORWARD[case]
    tensors = [None if t is None else t.to(device) for t in tensors]
    with pytest.raises(RuntimeError, match=r"^\w+: got "):
        ops.lif_fwd(*tensors, None, p.text(), steps, rows)


BACKWARD = {  # saved, dout, dv, di, dmembrane
    "no-saved": (20, torch.zeros(0, 3, 2), torch.zeros(20, 3, 2), None, None, None),
    "short-saved": (40, torch.zeros(1, 3, 2), torch.zeros(40, 3, 2), None, None, None),
    "short-dout": (4, torch.zeros(0, 3, 2), torch.zeros(3, 3, 2), None, None, None),
    "dout-of-another-type": (4, torch.zeros(0, 3, 2), torch.zeros(4, 3, 2, dtype=FP64), None, None, None),
    "short-dv": (4, torch.zeros(0, 3, 2), None, torch.zeros(2), None, None),
    "short-dmembrane": (4, torch.zeros(0, 3, 2), None, None, None, torch.zeros(3, 2)),
}


@pytest.mark.parametrize("case", BACKWARD)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_raw_backward_refuses(case: str, device: str) -> None:
    steps, *tensors = BACKWARD[case]
    tensors = [None if t is None else t.to(device) for t in tensors]
    x = torch.zeros(steps, 3, 2, device=device)
    with pytest.raises(RuntimeError, match=r"^\w+: got "):
        ops.lif_bwd(x, None, None, None, None, None, *tensors, None, P.text(), steps, True, False, False, False, 0)


@pytest.mark.parametrize(
    "text", ["", "decay=0.5", "decay=x threshold=1.0", "decay=0.5 threshold=1.0 color=red", "decay"]
)
def test_raw_ops_refuse_what_is_no_neuron(text: str) -> None:
    with pytest.raises(ValueError, match=r"^neuron: got .*, accepted is what Neuron\.text\(\) returns"):
        ops.lif_fwd(X, None, None, None, None, None, text, 4, 0)


def test_the_text_of_a_neuron_is_exact() -> None:
    for options in ({}, {"decay": 0.1 + 0.2, "threshold": -0.0, "v_min": -1e-300, "gain": 1e308, "several": True}):
        p = neuron(**(NEURON | options), steps=7, dtype=torch.bfloat16, surrogate=Sigmoid(math.pi, shift=-0.25))
        again = type(p).from_text(p.text())._replace(steps=7)
        assert repr(again) == repr(p)  # in which -0.0 is not 0.0
    assert raw(p) == (p.text(), 7)


def test_options_that_compare_equal_are_told_apart() -> None:
    """A call's options are kept for the next: 0.0 and -0.0, 1 and True are equal, and mean different things."""
    x = torch.full((1, 2), -0.0)
    zeros = [lif(x, decay=0.5, threshold=1.0, bias=bias, reset=None)[1] for bias in (0.0, -0.0, 0.0)]
    with use_backend("reference"):
        truth = [lif(x, decay=0.5, threshold=1.0, bias=bias, reset=None)[1] for bias in (0.0, -0.0, 0.0)]
    for a, b in zip(zeros, truth, strict=True):
        assert_same_bits(a, b)
    lif(x, decay=1, threshold=1)
    with pytest.raises(ValueError, match=r"^decay: got True, accepted"):
        lif(x, decay=True, threshold=1)


def test_a_kept_choice_of_reset() -> None:
    assert Hard(0.5) == Hard(0.5) != Hard(0.5, detach=True)
    assert Delayed() != Delayed(corrected=True)
    for call, name in (
        (lambda: Hard("a"), "v_reset"),
        (lambda: Hard(0.0, 1), "detach"),
        (lambda: Hard(math.inf), "v_reset"),
    ):
        with pytest.raises(ValueError, match=rf"^Hard\({name}\): got "):
            call()


# ------------------------------------------------------------------------------------------------- who waits for an op


class Seen(torch.utils._python_dispatch.TorchDispatchMode):
    """Which ops are called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


class Wrapped(Tensor):
    """A tensor whose calls go through `__torch_function__` alone."""


def test_modes_profilers_and_subclasses_see_the_ops() -> None:
    """Where nobody looks on, a call goes past torch's dispatcher."""
    x = randn(4, 3, 2)
    with Seen() as seen:
        lif(x, **NEURON)
        poisson(uniform(3, 2), 4, seed=1)
    assert {"esvae_kernels.lif_fwd.default", "esvae_kernels.poisson_fwd.default"} <= set(seen.names)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        spikes, _ = lif(x.requires_grad_(), **NEURON)
        spikes.sum().backward()
    names = {event.name for event in profile.events()}
    assert {"esvae_kernels::lif_fwd", "esvae_kernels::lif_bwd"} <= names
    x = x.detach()
    with torch._subclasses.FakeTensorMode() as mode:
        fake = mode.from_tensor(x)
        assert lif(fake, **NEURON)[0].shape == x.shape
    assert lif(fake, **NEURON)[0].shape == x.shape  # outside of its mode
    wrapped = x.as_subclass(Wrapped)
    assert_same_bits(lif(wrapped, **NEURON)[0].as_subclass(Tensor), lif(x, **NEURON)[0])


# ----------------------------------------------------------------------------------- what is kept from call to call


def test_what_is_kept_tells_equals_apart() -> None:
    """0.0 and -0.0, 1 and True, a number and a tensor in its place: each call gets what it asks for, also after one
    that differs in that alone."""
    x = uniform(3, 2, 4) - 1
    for zero in (0.0, -0.0, 0.0):
        _, v = lif(-torch.ones(1, 1, 1), decay=0.5, threshold=-2.0, reset=Hard(zero))
        assert math.copysign(1, v.item()) == math.copysign(1, zero)
    lif(x, decay=1.0, threshold=1.0)
    for wrong in (True, "1", None):
        one_line(lambda wrong=wrong: lif(x, decay=wrong, threshold=1.0), ValueError, f"decay: got {wrong}")
    lif(x[0], decay=1.0, threshold=1.0, steps=1)
    one_line(lambda: lif(x[0], decay=1.0, threshold=1.0, steps=True), ValueError, "steps: got True")
    lif(x, decay=1.0, threshold=1.0, reset=Hard(detach=True))
    one_line(lambda: lif(x, decay=1.0, threshold=1.0, reset=True), TypeError, "reset: got True")
    lif(x, decay=1.0, threshold=1.0, v_min=0.0)
    one_line(lambda: lif(x, decay=1.0, threshold=1.0, v_min=False), ValueError, "v_min: got False")
    learnt = torch.ones(4, requires_grad=True)
    lif(x, decay=learnt, threshold=1.0)[1].sum().backward()
    assert learnt.grad is not None
    one_line(lambda: lif(x.to_sparse(), decay=1.0, threshold=1.0), TypeError, "x: got layout")
    low, high = (lif(x, decay=0.5, threshold=0.1, surrogate=ATan(alpha))[0] for alpha in (torch.tensor(2.0), 2.0))
    assert_same_bits(low, high)


@pytest.mark.parametrize("make", [lambda a: ATan(a), lambda a: ATan(torch.tensor(a))], ids=["number", "tensor"])
def test_a_surrogate_made_anew_in_each_call(make: Callable[[float], Surrogate]) -> None:
    """Is found again by its values, and the one before is not taken for it."""
    x = uniform(3, 2, 4)
    gradients = []
    for alpha in (2.0, 5.0, 2.0):
        leaf = x.clone().requires_grad_()
        before = len(op._PREPARED)
        lif(leaf, decay=0.5, threshold=0.5, surrogate=make(alpha))[0].sum().backward()
        gradients.append(leaf.grad)
    assert len(op._PREPARED) == before
    assert_same_bits(gradients[0], gradients[2])
    assert not torch.equal(gradients[0], gradients[1])


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a threshold has another value in each call."""
    monkeypatch.setattr(op, "KEPT", 3)
    monkeypatch.setattr(plan, "KEPT", 3)
    x = uniform(2, 1, 3)
    for k in range(10):
        out, _ = lif(x, decay=0.5, threshold=0.1 + k)
        assert len(op._PREPARED) <= 3
        assert len(plan._PLANS) <= 3
        with use_backend("reference"):
            assert_same_bits(lif(x, decay=0.5, threshold=0.1 + k)[0], out)
