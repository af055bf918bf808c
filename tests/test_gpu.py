"""What only a GPU has: streams, graphs, waiting for it, its memory, kernels compiled at run time.

Run by `pytest --device cuda`; with `--device cpu:0` what needs no stream runs on the CPU, so that this file is right
where there is no GPU. Unlike in the other tests no default device is set: an op has to make its tensors on x's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from kernel_helpers import BACKENDS, DEVICE, KERNELS, assert_all_same_bits, assert_same_bits, on_gpu, one_line
from parts import bn_lif, lif
from torch import Tensor

from esvae.extras import MissingExtra, needed
from esvae_kernels import available_backends, backends, poisson, use_backend
from esvae_kernels.surrogate import ATan, Sigmoid, StraightThrough

pytestmark = pytest.mark.skipif(torch.device("cpu") == DEVICE, reason="pytest --device cuda")
needs_gpu = pytest.mark.skipif(not on_gpu(), reason="no GPU")
OURS = BACKENDS[1:]
on_ours = pytest.mark.parametrize("backend", OURS, indirect=True)
OPTIONS = {"decay": 0.5, "threshold": 0.4}
CHANNELS = 8


@pytest.fixture(autouse=True)
def _no_default_device() -> Iterator[None]:
    before = torch.get_default_device()
    torch.set_default_device(None)
    yield
    torch.set_default_device(before)


def numbers(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32, device: torch.device = DEVICE) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, device="cpu").to(device, dtype)


def norm(device: torch.device = DEVICE) -> dict[str, Tensor]:
    """Of `bn_lif`: weight and bias with a gradient, and the running statistics."""
    ones, zeros = torch.ones(CHANNELS, device=device), torch.zeros(CHANNELS, device=device)
    weight, bias = ones.clone().requires_grad_(), zeros.clone().requires_grad_()
    return {"weight": weight, "bias": bias, "running_mean": zeros.clone(), "running_var": ones}


def per_channel(device: torch.device = DEVICE) -> dict[str, Tensor]:
    return {
        "decay": torch.linspace(0.3, 0.9, CHANNELS, device=device).requires_grad_(),
        "threshold": torch.linspace(0.2, 0.6, CHANNELS, device=device).requires_grad_(),
    }


class Step:
    """A training step of a sampler, a layer with batch norm, one with parameters per channel and a readout."""

    def __init__(self, seed: Tensor | None, device: torch.device = DEVICE) -> None:
        self.rate = torch.full((16, CHANNELS, 6, 6), 0.5, device=device).requires_grad_()
        self.v = torch.zeros(16, CHANNELS, 6, 6, device=device).requires_grad_()
        self.norm, self.neurons, self.seed = norm(device), per_channel(device), seed

    @property
    def parameters(self) -> list[Tensor]:
        every = (self.rate, self.v, *self.norm.values(), *self.neurons.values())
        return [p for p in every if p.requires_grad]

    def __call__(self) -> tuple[Tensor, ...]:
        """The sampled spikes, the readout, the gradients."""
        spikes = poisson(self.rate, 20, seed=self.seed, surrogate=StraightThrough())
        hidden, _ = bn_lif(spikes, **self.norm, training=True, surrogate=ATan(2.0), **OPTIONS)
        rate, last = lif(hidden, self.v, **self.neurons, reset="soft", readout="mean", surrogate=Sigmoid(3.0))
        gradients = torch.autograd.grad(rate.square().sum() + last.square().mean(), self.parameters)
        with torch.no_grad():
            for parameter, gradient in zip(self.parameters[1:], gradients[1:], strict=True):  # the rates stay
                parameter.sub_(gradient, alpha=1e-3)
        return spikes.detach(), rate.detach(), *gradients


# ---------------------------------------------------------------------------------------------------- backends


def test_the_backends_of_the_device_are_there() -> None:
    """Otherwise every test of the kernels would silently run on the reference."""
    assert set(BACKENDS) <= set(available_backends())
    assert backends.pick(DEVICE) == OURS[0]


@needs_gpu
def test_forced_on_the_wrong_device() -> None:
    with use_backend("cpu"):
        one_line(lambda: lif(numbers(4, 3), **OPTIONS), RuntimeError, "use_backend: got 'cpu', which cannot run")
    for name in KERNELS:
        with use_backend(name):
            call = lambda: lif(numbers(4, 3, device=torch.device("cpu")), **OPTIONS)  # noqa: E731
            one_line(call, RuntimeError, f"use_backend: got {name!r}, which cannot run")


@pytest.mark.parametrize("backend", OURS)
def test_a_backward_runs_on_the_forced_backend(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """autograd runs it in a thread of its own."""
    ran = []
    with use_backend(backend):
        _, room = backends.room("esvae_kernels.ops.lif", DEVICE)
        run = room.lif_backward
        monkeypatch.setattr(room, "lif_backward", lambda *arguments: ran.append(backend) or run(*arguments))
        x = numbers(4, 3).requires_grad_()
        lif(x, **OPTIONS)[0].sum().backward()
    assert ran == [backend]


def test_tensors_on_two_devices_are_refused() -> None:
    x, host = numbers(4, 2, 3), torch.device("cpu")
    one_line(lambda: lif(x, numbers(2, 3, device=host), **OPTIONS), ValueError, "v: got device cpu, accepted is")
    decay = OPTIONS | {"decay": torch.ones(3)}
    one_line(lambda: lif(x, **decay), ValueError, "decay: got device cpu, accepted is")
    one_line(lambda: poisson(x[0], 3, seed=torch.tensor([1])), ValueError, "seed: got device cpu, accepted is")


# -------------------------------------------------------------------------------- against the reference, repeated


@on_ours
@pytest.mark.parametrize("op", ["lif", "bn_lif", "poisson"])
def test_each_op_is_that_of_the_reference(op: str, backend: str) -> None:
    """In fp32, forward and backward: the first look at a new machine, of a variant or two of each kernel."""
    x, dout = numbers(20, 16, CHANNELS, 16, seed=1), numbers(20, 16, CHANNELS, 16, seed=2)

    def run() -> tuple[Tensor, Tensor]:
        state, leaf = norm(), (x[0].sigmoid() if op == "poisson" else x).detach().requires_grad_()
        if op == "lif":
            spikes = lif(leaf, **OPTIONS)[0]
        elif op == "bn_lif":
            spikes = bn_lif(leaf, **state, training=True, **OPTIONS)[0]
        else:
            spikes = poisson(leaf, 20, seed=1)
        return spikes.detach(), torch.autograd.grad(spikes, leaf, dout)[0]

    found = run()
    with use_backend("reference"):
        expected = run()
    assert 0.05 < expected[0].mean() < 0.95
    assert expected[1].any()
    if op != "bn_lif":  # there the mean's last bit decides some spikes at the threshold
        assert_same_bits(found[0], expected[0])
    for a, b in zip(found, expected, strict=True):
        assert (a - b).norm() <= (0.02 if op == "bn_lif" else 1e-5) * b.norm()


@on_ours
def test_a_step_is_that_of_the_reference(backend: str) -> None:
    """With no default device. The sampler's spikes in every bit; rounding decides some of those behind the norm."""
    seed = torch.tensor([5], device=DEVICE)
    found = Step(seed)()
    with use_backend("reference"):
        expected = Step(seed)()
    assert_same_bits(found[0], expected[0])
    for a, b in zip(found, expected, strict=True):
        assert a.device == b.device == seed.device
        assert (a - b).norm() <= 0.02 * b.norm()


@on_ours
@pytest.mark.parametrize("layout", ["contiguous", "channels-last"])
def test_repeated_runs_agree_bit_for_bit(backend: str, layout: str) -> None:
    """Sums over a batch too, of many blocks."""
    y = numbers(20, 16, CHANNELS, 37, 41)
    if layout == "channels-last":
        y = y.movedim(2, -1).contiguous().movedim(-1, 2)
    y.requires_grad_()

    def once() -> list[Tensor]:
        state, neurons, weights = norm(), per_channel(), numbers(20, seed=3).requires_grad_()
        spikes, v = bn_lif(y, **state, training=True, **neurons, readout=weights)
        leaves = (y, state["weight"], state["bias"], *neurons.values(), weights)
        gradients = torch.autograd.grad(spikes.square().sum() + v.square().sum(), leaves)
        return [spikes.detach(), v.detach(), *gradients, state["running_mean"], state["running_var"]]

    first = once()
    for _ in range(4 if on_gpu() else 1):
        assert_all_same_bits(once(), first)


# ----------------------------------------------------------------------------------------------- nothing waits


@contextmanager
def nothing_waits() -> Iterator[None]:
    """Raises where the CPU waits for the GPU."""
    if not on_gpu():
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def all_gradients(outputs: tuple[Tensor, ...], *inputs: Tensor) -> None:
    torch.autograd.grad(outputs, inputs, [torch.ones_like(o) for o in outputs])


def lif_call(device: torch.device = DEVICE, **options) -> Callable[[], None]:
    x = numbers(*((4, CHANNELS, 3) if "steps" in options else (20, 4, CHANNELS, 3)), device=device).requires_grad_()
    v = numbers(4, CHANNELS, 3, seed=1, device=device).requires_grad_()
    learnt = [o for o in options.values() if isinstance(o, Tensor)]
    return lambda: all_gradients(lif(x, v, **(OPTIONS | options)), x, v, *learnt)


def bn_lif_call(training: bool, device: torch.device = DEVICE, **options) -> Callable[[], None]:
    y, state = numbers(20, 4, CHANNELS, 3, device=device).requires_grad_(), norm(device)

    def call() -> None:
        outputs = bn_lif(y, **state, training=training, **(OPTIONS | options))
        all_gradients(outputs, y, state["weight"], state["bias"])

    return call


def poisson_call(device: torch.device = DEVICE, **options) -> Callable[[], None]:
    rate = torch.full((4, 30), 0.5, device=device).requires_grad_()
    return lambda: all_gradients((poisson(rate, 7, **options),), rate)


CALLS = {
    "lif": lif_call,
    "lif-constant-delayed": lambda **d: lif_call(steps=20, reset="delayed", **d),
    "lif-rate-recorded": lambda **d: lif_call(readout="mean", record="membrane", **d),
    "lif-per-channel": lambda device=DEVICE: lif_call(**per_channel(device), device=device),
    "lif-one-element": lambda device=DEVICE: lif_call(
        gain=torch.ones(1, device=device).requires_grad_(), device=device
    ),
    "lif-weights": lambda device=DEVICE: lif_call(
        readout=torch.ones(20, dtype=torch.float64, device=device).requires_grad_(), device=device
    ),
    "bn_lif-training": lambda **d: bn_lif_call(True, **d),
    "bn_lif-evaluation": lambda **d: bn_lif_call(False, **d),
    "bn_lif-per-channel": lambda device=DEVICE: bn_lif_call(True, device=device, **per_channel(device)),
    "poisson-integer": lambda **d: poisson_call(seed=3, **d),
    "poisson-generator": poisson_call,
    "poisson-tensor": lambda device=DEVICE: poisson_call(seed=torch.tensor([3], device=device), device=device),
}
every_call = pytest.mark.parametrize("call", CALLS)


@on_ours
@every_call
def test_nothing_waits_for_the_gpu(call: str, backend: str) -> None:
    """Neither the first time, when kernels are compiled, nor later."""
    run = CALLS[call]()
    for _ in range(2):
        with nothing_waits():
            run()


@needs_gpu
def test_the_check_of_waiting_has_teeth() -> None:
    with nothing_waits(), pytest.raises(RuntimeError, match="synchroni"):
        numbers(1).item()


# ------------------------------------------------------------------------------------------------------ graphs


@contextmanager
def captured(graph: object) -> Iterator[None]:
    with torch.cuda.graph(graph):  # type: ignore[arg-type]
        yield


def record(step: Step) -> tuple[object, tuple[Tensor, ...]]:
    """A graph of one step and what it writes to; three steps were done before."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with captured(graph):
        outputs = step()
    return graph, outputs


@needs_gpu
@on_ours
def test_replays_of_a_captured_step_draw_new_noise(backend: str) -> None:
    graph, outputs = record(Step(None))
    seen = []
    for _ in range(3):
        graph.replay()
        seen.append(outputs[0].clone())
        assert 0.4 < seen[-1].mean() < 0.6
        assert all(o.isfinite().all() for o in outputs)
    assert not torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[1], seen[2])


@needs_gpu
@on_ours
def test_a_captured_step_reads_the_seed_again(backend: str) -> None:
    """And does in every bit what the same steps do without a graph."""
    seed = torch.tensor([1], device=DEVICE)
    captured_step, eager = Step(seed), Step(seed)
    graph, outputs = record(captured_step)
    for _ in range(3):
        eager()
    spikes = []
    for value in (2, 3, 2):
        seed.fill_(value)
        graph.replay()
        assert_all_same_bits(outputs, eager())
        spikes.append(outputs[0].clone())
    assert not torch.equal(spikes[0], spikes[1])
    assert_same_bits(spikes[0], spikes[2])


@on_ours
@pytest.mark.parametrize("prior", ["bottleneck", "mixture"])
def test_images_of_a_graph_are_those_of_calls(backend: str, prior: str) -> None:
    """Seven whole batches, more than it takes until there is a graph, and the rest, which is another one."""
    try:
        with needed("model"):
            from esvae import ESVAE, evaluate
    except MissingExtra as missing:
        pytest.skip(str(missing))
    torch.manual_seed(0)
    model = ESVAE(latent=8, steps=3, prior=prior, mixture_components=4).eval()
    if model.mixture is not None:
        model.mixture.fit(torch.rand(100, 8), seed=0)
    model.to(DEVICE)
    expected, found = (evaluate.generated(model, 7 * evaluate.BATCH + 3, graphs=graphs) for graphs in (False, True))
    assert_same_bits(found, expected)
    batches = [numbers(4, 1, 32, 32, seed=k).clamp(-1, 1) for k in range(6)]
    expected, found = (
        torch.cat(list(evaluate.reconstructions(model, batches, graphs=graphs))) for graphs in (False, True)
    )
    assert_same_bits(found, expected)


# ----------------------------------------------------------------------------------------- streams and devices


@needs_gpu
@on_ours
def test_two_streams_at_once(backend: str) -> None:
    """Each does its own steps while the other does; the results are those of one after the other."""
    torch.cuda.synchronize()
    seeds = [torch.tensor([k], device=DEVICE) for k in range(2)]
    expected = [[Step(seed)() for _ in range(3)] for seed in seeds]
    steps = [[Step(seed) for _ in range(3)] for seed in seeds]
    streams = [torch.cuda.Stream() for _ in seeds]
    torch.cuda.synchronize()
    found: list[list] = [[], []]
    for round_ in range(3):
        for k, stream in enumerate(streams):
            with torch.cuda.stream(stream):
                found[k].append(steps[k][round_]())
    torch.cuda.synchronize()
    for a, b in zip(found[0] + found[1], expected[0] + expected[1], strict=True):
        assert_all_same_bits(a, b)


@needs_gpu
@on_ours
@every_call
def test_kernels_run_on_the_current_stream(call: str, backend: str) -> None:
    """Nothing runs on another one: with the default stream busy, the work of a side stream is done before it."""
    run, side = CALLS[call](), torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(side):
        run()  # takes memory for this stream
    torch.cuda.synchronize()
    torch.cuda._sleep(500_000_000)  # some tenths of a second, on the default stream
    busy, done = torch.cuda.Event(), torch.cuda.Event()
    busy.record()
    with torch.cuda.stream(side):
        run()
        done.record()
    done.synchronize()
    assert not busy.query()
    torch.cuda.synchronize()


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU")
@on_ours
@every_call
def test_tensors_on_a_device_that_is_not_current(call: str, backend: str) -> None:
    run = CALLS[call](device=torch.device("cuda", 1))
    with torch.cuda.device(0):
        run()
        assert torch.cuda.current_device() == 0
    torch.cuda.synchronize(1)


# ------------------------------------------------------------------------------------------------ compiled once


def compiled_kernels() -> dict[str, int]:
    """How many times each Triton kernel of ours was compiled in this process."""
    from triton.runtime.jit import JITFunction

    rooms = [__import__(f"esvae_kernels.ops.{op}.triton", fromlist=["*"]) for op in ("lif", "bn_lif", "poisson")]
    kernels = {id(k): k for room in rooms for k in vars(room).values() if isinstance(k, JITFunction)}
    return {
        f"{k.fn.__module__}.{k.fn.__name__}": sum(len(caches[0]) for caches in k.device_caches.values())
        for k in kernels.values()
    }


# T, samples, elements of a sample: aligned and not, one chunk of time steps and several, at least a block of neurons.
SIZES = [(4, 16, 8192), (20, 16, 8192), (33, 3, 16384), (1, 1, 8192), (7, 3, 8195), (100, 5, 9001), (16, 2, 20011)]


@needs_gpu
@pytest.mark.parametrize("op", ["lif", "poisson"])
def test_another_size_compiles_nothing_anew(op: str) -> None:
    """Of one set of options at most two variants of a kernel, whatever T and N."""
    before = compiled_kernels()
    with use_backend("triton"):
        for steps, *shape in SIZES:
            if op == "lif":
                x = numbers(steps, shape[0] * shape[1], dtype=torch.float16).requires_grad_()
                all_gradients(lif(x, reset="none", surrogate=ATan(1.25), **OPTIONS), x)
            else:
                rate = numbers(*shape, dtype=torch.float16).requires_grad_()
                all_gradients((poisson(rate, steps, seed=steps, surrogate=ATan(1.25)),), rate)
    after = compiled_kernels()
    new = {name: count - before.get(name, 0) for name, count in after.items()}
    assert sum(new.values()) > 0
    assert max(new.values()) <= 2, new


# ------------------------------------------------------------------------------------------------------- memory


@needs_gpu
@on_ours
def test_a_long_tensor_of_more_than_two_to_the_31_elements(backend: str) -> None:
    """Forward and backward, with real spikes: the last columns are those of the same columns alone."""
    steps, n, tail = 16, 2**27 + 2**20 + 3, 1000
    if torch.cuda.mem_get_info()[0] < 30 << 30:
        pytest.skip("less than 30 GiB of memory are free")
    x = torch.empty(steps, n, dtype=torch.bfloat16, device=DEVICE).uniform_(-1, 1).requires_grad_()
    assert x.numel() > 2**31
    few = x[:, -tail:].detach().clone().requires_grad_()
    spikes, last = lif(x, **OPTIONS)
    expected = lif(few, **OPTIONS)
    (dx,) = torch.autograd.grad(spikes, x, torch.ones((), dtype=spikes.dtype, device=DEVICE).expand(steps, n))
    (dfew,) = torch.autograd.grad(expected[0], few, torch.ones_like(expected[0]))
    assert_all_same_bits((spikes[:, -tail:], last[-tail:], dx[:, -tail:]), (*expected, dfew))
    assert 0.05 < expected[0].float().mean() < 0.95
