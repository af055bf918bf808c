"""`watch`: its numbers are those of the spikes and gradients themselves, and it changes neither."""

from __future__ import annotations

import contextlib
import copy
import pickle
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from kernel_helpers import assert_same_bits, channels_last, one_line, randn
from recording import Recording
from torch import Tensor, nn

import esvae_kernels as ek
from esvae_kernels import dropin
from esvae_kernels.nn import BNLIF, LI, LIF, Poisson
from esvae_kernels.surrogate import Rectangular, Sigmoid
from esvae_kernels.watch import Row, Watch

NEURON = {"decay": 0.5, "threshold": 0.6}


def only(watched: Watch) -> Row:
    (row,) = watched.rows
    return row


class Block(nn.Module):
    """Two spiking layers, a skip around the second, and a readout."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.first = Poisson(6), nn.Linear(5, 7)
        self.lif, self.norm, self.readout = LIF(**NEURON), BNLIF(7, **NEURON), LI(decay=0.9)

    def forward(self, rate: Tensor) -> Tensor:
        spikes = self.lif(self.first(self.encode(rate, seed=3)))
        return self.readout(self.norm(spikes) + spikes)


def block() -> Block:
    torch.manual_seed(0)
    return Block()


def test_rates_and_shares_are_those_of_the_spikes() -> None:
    layer, calls = LIF(**NEURON), [randn(6, 4, 3, 5, seed=k) for k in range(3)]
    for x in calls:
        x[:, :, 0, 0], x[:, :, 1, :2] = -1.0, 2.0  # one neuron of 15 is silent, two are saturated
    with ek.watch(layer) as watched:
        spikes = torch.cat([layer(x) for x in calls])
    row, fired = only(watched), spikes.flatten(0, 1) > 0
    assert (row.layer, row.kind, row.calls) == ("", "LIF", 3)
    assert row.rate == pytest.approx(spikes.double().mean().item(), rel=1e-6)
    assert row.silent == (~fired).all(0).double().mean() == 1 / 15
    assert row.saturated == fired.all(0).double().mean() == 2 / 15
    assert row.grad_output is row.grad_input is None
    assert row.words == ("saturated",)


def test_neurons_of_both_layouts_are_the_same() -> None:
    layer, x = LIF(**NEURON), randn(3, 2, 4, 5, 3)
    with ek.watch(layer) as watched:
        spikes = [layer(x), layer(channels_last(randn(3, 2, 4, 5, 3, seed=1)))]
    fired = torch.cat(spikes).flatten(0, 1) > 0
    assert not spikes[1].is_contiguous()
    assert 0 < only(watched).silent == (~fired).all(0).double().mean()


def test_nothing_changes() -> None:
    """Outputs, gradients and random numbers, bit for bit, in a model with a skip."""
    images, found = torch.rand(4, 5), []
    for watched in (False, True):
        model, rate = block(), images.clone().requires_grad_()
        torch.manual_seed(1)
        if watched:
            with ek.watch(model):
                out = model(rate)
                out.square().sum().backward()
        else:
            out = model(rate)
            out.square().sum().backward()
        found.append([out, rate.grad, torch.rand(3), *(p.grad for p in model.parameters()), *model.buffers()])
    for a, b in zip(*found, strict=True):
        assert_same_bits(a, b)


def test_gradients_are_those_of_each_layer_alone() -> None:
    """What a layer passes on, without what reaches its input through the skip."""
    model, rate = block(), torch.rand(4, 5, requires_grad=True)
    with ek.watch(model) as watched:
        model(rate).square().sum().backward()
    encode, lif, norm = watched.rows
    spikes = model.encode(rate, seed=3)
    x = model.first(spikes)
    s = model.lif(x)
    inner = s.detach().requires_grad_()
    out = model.norm(inner)
    total = out.detach() + s
    total.retain_grad(), s.retain_grad(), x.retain_grad(), spikes.retain_grad()
    model.readout(total).square().sum().backward()
    out.backward(total.grad)
    assert norm.grad_output == pytest.approx(total.grad.norm().item(), rel=1e-5)
    assert norm.grad_input == pytest.approx(inner.grad.norm().item(), rel=1e-5)
    dx = torch.autograd.grad(model.lif(x), x, total.grad + inner.grad)[0]
    assert lif.grad_output == pytest.approx((total.grad + inner.grad).norm().item(), rel=1e-5)
    assert lif.grad_input == pytest.approx(dx.norm().item(), rel=1e-5)
    assert encode.grad_output == pytest.approx((dx @ model.first.weight).norm().item(), rel=1e-5)
    assert encode.grad_input is not None


def test_step_by_step_is_the_whole_sequence() -> None:
    """Calls of one backward pass are one gradient; of several passes it is the root mean square."""
    x = randn(6, 4, 5).requires_grad_()
    whole, steps = LIF(**NEURON), LIF(**NEURON, single_step=True, stateful=True)
    with ek.watch(whole) as of_whole, ek.watch(steps) as of_steps:
        for scale in (1.0, 3.0):
            (scale * whole(x)).square().sum().backward()
            steps.reset()
            (scale * torch.stack([steps(current) for current in x])).square().sum().backward()
    a, b = only(of_whole), only(of_steps)
    assert (a.calls, b.calls) == (2, 12)
    assert (a.rate, a.silent, a.saturated) == (pytest.approx(b.rate), b.silent, b.saturated)
    assert b.grad_output == pytest.approx(a.grad_output, rel=1e-5)
    squares = [(2 * scale**2 * whole(x)).square().sum() for scale in (1.0, 3.0)]
    assert a.grad_output == pytest.approx((sum(squares) / 2).sqrt().item(), rel=1e-5)


@pytest.mark.parametrize("norm", [False, True], ids=["lif", "bn_lif"])
@pytest.mark.parametrize("constant", [False, True], ids=["sequence", "constant"])
@pytest.mark.parametrize("how", ["mean", "for-one-call", "uint8", "bf16", "tuple", "no-grad", "inference"])
def test_every_form_of_the_same_spikes(how: str, constant: bool, norm: bool) -> None:
    make = (
        (lambda **options: BNLIF(5, **NEURON, **options).eval()) if norm else lambda **options: LIF(**NEURON, **options)
    )
    x = randn(4, 5) if constant else randn(6, 4, 5)
    x[..., 0], x[..., 1] = -1.0, 2.0
    steps, kwargs = {"steps": 6} if constant else {}, {}
    options: dict[str, object] = {"mean": {"readout": "mean"}, "uint8": {"out_dtype": torch.uint8}}.get(how, {})
    options |= {"tuple": {"return_state": True, "record": "membrane"}, "bf16": {"out_dtype": torch.bfloat16}}.get(
        how, {}
    )
    if how == "for-one-call":
        if not norm:
            pytest.skip("only BNLIF takes a readout with a call")
        kwargs = {"readout": "mean"}
    layer, plain = make(**options), make()
    with ek.watch(layer) as watched, torch.inference_mode() if how == "inference" else torch.no_grad():
        layer(x, **steps, **kwargs)
    with ek.watch(plain) as expected, torch.no_grad():
        plain(x, **steps)
        layer(x, **steps, **kwargs)  # hooks are gone: not counted
    a, b = only(watched), only(expected)
    assert (a.calls, a.silent, a.saturated) == (1, b.silent, b.saturated)
    assert b.silent > 0
    assert a.rate == pytest.approx(b.rate, rel=1e-6)
    assert a.grad_output is None


def test_rates_of_calls_of_different_lengths_weigh_by_their_steps() -> None:
    layer = LIF(**NEURON, readout="mean")
    with ek.watch(layer) as watched:
        layer(torch.full((2, 1, 1), 9.0)), layer(x=torch.full((6, 1, 1), -9.0), v=torch.zeros(1, 1))
    assert only(watched).rate == 0.25


def test_several_spikes_a_step() -> None:
    options = {"decay": 0.5, "threshold": 1.0, "fire": "multi_spike", "reset": ek.Soft()}
    x, layer, mean = torch.full((4, 2, 3), 2.5), LIF(**options), LIF(**options, readout="mean")
    with ek.watch(nn.ModuleList([layer, mean])) as watched:
        spikes = layer(x)
        mean(x)
    counts, rates = watched.rows
    assert counts.rate == rates.rate == spikes.mean() > 1
    assert (counts.saturated, rates.saturated) == (1.0, None)  # a mean does not tell


@pytest.mark.parametrize(
    ("layer", "word"),
    [
        (LIF(**NEURON, readout=[0.5, 0.1, 0.4]), "rate unknown: weighted readout"),
        (LIF(**NEURON, surrogate=Sigmoid(spiking=False)), "no spikes: smooth"),
        (Poisson(3, surrogate=Sigmoid(spiking=False)), "no spikes: smooth"),
    ],
    ids=["weights", "smooth", "smooth-poisson"],
)
def test_what_has_no_rate_has_gradients(layer: nn.Module, word: str) -> None:
    x = torch.rand(2, 4) if isinstance(layer, Poisson) else randn(3, 2, 4)
    with ek.watch(layer) as watched:
        layer(x.requires_grad_()).square().sum().backward()
    row = only(watched)
    assert row.rate is row.silent is row.saturated is None
    assert row.words == (word,)
    assert row.grad_output > 0
    assert row.grad_input > 0


def test_words_and_thresholds() -> None:
    x = torch.full((4, 2, 10), -1.0)
    x[..., :3] = 5.0
    for options, words in (({}, ("silent", "saturated")), ({"max_silent": 0.7, "max_saturated": 0.3}, ())):
        with ek.watch(layer := LIF(**NEURON), **options) as watched:
            layer(x)
        assert only(watched).words == words
        assert (only(watched).silent, only(watched).saturated) == (0.7, 0.3)


def test_words_on_gradients() -> None:
    narrow = {"surrogate": Rectangular(1e-3)}
    model = nn.ModuleDict({k: LIF(**NEURON, **narrow) for k in ("cut", "far", "inf", "idle")})
    x = randn(4, 2, 3).requires_grad_()
    with ek.watch(model) as watched:
        cut, far, inf = (model[k](x) for k in ("cut", "far", "inf"))
        (cut.detach().sum() + far.sum()).backward()
        (inf.sum() * float("inf")).backward()
    words = {row.layer: row.words for row in watched.rows}
    assert words["cut"] == ("no gradient",)
    assert words["far"] == ("passes no gradient on",)
    assert words["inf"] == ("gradient not finite",)
    assert words["idle"][0].startswith("not called")


def test_a_shared_layer_has_neurons_of_each_shape() -> None:
    model = nn.Sequential(layer := LIF(**NEURON), nn.Linear(5, 3), layer)
    x = randn(4, 2, 5)
    with ek.watch(model) as watched:
        spikes = layer(x)
        model(x)
    row = only(watched)
    assert (row.layer, row.calls) == ("0", 3)
    last = model(x)
    silent = sum((s == 0).flatten(0, 1).all(0).sum().item() for s in (spikes, last))
    assert row.silent == silent / 8


def test_empty_calls_and_scalars() -> None:
    layer = LIF(**NEURON)
    with ek.watch(layer) as watched:
        layer(torch.empty(4, 0, 3))
        assert (only(watched).calls, only(watched).rate) == (1, None)
        layer(torch.ones(4, 2))
    assert (only(watched).rate, only(watched).saturated) == (1.0, 1.0)


class Mine(nn.Module):
    def __init__(self, fields: Callable[[Tensor], object] = lambda spikes: spikes) -> None:
        super().__init__()
        self.fields = fields

    def forward(self, x: Tensor) -> object:
        return self.fields((x > 0).to(x.dtype))


def test_classes_of_the_caller() -> None:
    x = randn(6, 4, 5)
    x[..., 0] = -1.0
    with ek.watch(layer := Mine(), kinds=(Mine,)) as whole, ek.watch(layer, kinds={Mine: 1}) as steps:
        layer(x)
    assert only(whole).silent == 0.2
    assert only(steps).silent == (x <= 0).all(0).double().mean()
    with ek.watch(layer := Mine(lambda s: (s, {"v": s})), kinds=Mine) as watched:
        layer(x)
    assert only(watched).rate == only(whole).rate
    with ek.watch(layer := Mine(lambda s: {"spikes": s}), kinds=Mine) as watched:
        layer(x)
    assert only(watched).rate is None
    assert only(watched).words == ("returns a dict",)


def test_hooks_end_with_the_block() -> None:
    model, x = block(), torch.rand(4, 5)
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    watched = ek.watch(model)
    with contextlib.suppress(KeyError), watched:
        out = model(x)
        raise KeyError
    assert [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()] == hooks
    out.sum().backward()
    assert [row.grad_output for row in watched.rows] == [None] * 3
    watched.remove()  # once more does no harm
    with watched:  # goes on
        model(x)
    assert [row.calls for row in watched.rows] == [2] * 3
    watched.reset()
    assert [row.calls for row in watched.rows] == [0] * 3


def test_copies_are_not_watched() -> None:
    model = LIF(**NEURON)
    with ek.watch(model) as watched:
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            other(randn(4, 2, 3))
    assert only(watched).calls == 0


def test_nothing_waits_for_the_device() -> None:
    """And what a CUDA graph replays is counted: its second run is the same as without a graph."""
    model, rate = block(), torch.rand(4, 5, requires_grad=True)

    def step() -> None:
        torch.autograd.grad(model(rate).square().sum(), list(model.parameters()))

    with ek.watch(model) as watched, ek.watch(model) as plain:
        step()  # sums are made
    watched.reset(), plain.reset()
    with watched:
        recorded = Recording(step)
        recorded.replay()
    with plain:
        step(), step()
    for a, b in zip(watched.rows, plain.rows, strict=True):
        assert (a.calls, a.rate, a.silent, a.saturated) == (b.calls, b.rate, b.silent, b.saturated)
        assert a.grad_output == pytest.approx(b.grad_output) if b.grad_output else a.grad_output is None
    assert watched.rows[1].calls == 2


def test_transforms_pass_by() -> None:
    layer, x = LIF(**NEURON), randn(3, 4, 2, 5)
    with ek.watch(layer) as watched:
        gradient = torch.func.vmap(torch.func.grad(lambda x: layer(x).sum()))(x)
    assert only(watched).calls == 0
    assert_same_bits(gradient, torch.func.vmap(torch.func.grad(lambda x: layer(x).sum()))(x))


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing(reentrant: bool) -> None:
    layer, x = LIF(**NEURON), randn(4, 2, 5).requires_grad_()
    with ek.watch(layer) as watched:
        torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=reentrant).square().sum().backward()
    with ek.watch(layer) as expected:
        layer(x).square().sum().backward()
    a, b = only(watched), only(expected)
    assert (a.rate, a.silent, a.grad_output, a.grad_input) == (b.rate, b.silent, b.grad_output, b.grad_input)


def test_compiled() -> None:
    """Watched before the first call, or eager; compiled before, the layers say so."""
    torch._dynamo.reset()
    model, rate = block(), torch.rand(4, 5, requires_grad=True)
    with ek.watch(model) as expected:
        model(rate).square().sum().backward()
    with ek.watch(model) as watched:
        compiled = torch.compile(model, backend="aot_eager")
        compiled(rate).square().sum().backward()
    compiled(rate)  # after the end nothing is counted
    for a, b in zip(watched.rows, expected.rows, strict=True):
        assert (a.layer, a.calls, a.silent) == (b.layer, b.calls, b.silent)
        assert a.grad_input == pytest.approx(b.grad_input, rel=1e-5)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    compiled(rate)
    with ek.watch(compiled) as late:
        compiled(rate)
        assert late.rows[0].words == ("not called, or compiled before it was watched",)
        with torch.compiler.set_stance("force_eager"):
            compiled(rate)
    assert [(row.layer, row.calls) for row in late.rows] == [("encode", 1), ("lif", 1), ("norm", 1)]
    torch._dynamo.reset()


def test_table_and_plain_data() -> None:
    model = block()
    with ek.watch(model) as watched:
        model(torch.rand(4, 5)).square().sum().backward()
    lines = str(watched).splitlines()
    assert lines[0].split() == ["layer", "kind", "rate", "silent", "saturated", "grad", "output", "grad", "input"]
    assert [line.split()[:2] for line in lines[1:]] == [["encode", "Poisson"], ["lif", "LIF"], ["norm", "BNLIF"]]
    assert lines[1].split()[-2:] == ["-", "-"]  # images need no gradient
    found = watched.to_dict()
    assert found["lif"] == {k: v for k, v in vars(watched.rows[1]).items() if k != "layer"}
    assert "3 layers, removed" in repr(watched)


def test_tensorboard(tmp_path) -> None:
    from torch.utils.tensorboard import SummaryWriter

    model = block()
    with SummaryWriter(tmp_path) as writer, ek.watch(model) as watched:
        for step in range(2):
            model(torch.rand(4, 5)).square().sum().backward()
            rows = watched.rows
            watched.log(writer, step, prefix="train/")
            assert [row.calls for row in watched.rows] == [0, 0, 0]
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(tmp_path)).Reload()
    assert len(events.Tags()["scalars"]) == 3 * 3 + 2 * 2
    assert events.Scalars("train/firing_rate/norm")[-1].value == pytest.approx(rows[2].rate, rel=1e-6)
    assert [event.step for event in events.Scalars("train/grad_norm_input/norm")] == [0, 1]


def test_what_is_refused() -> None:
    one_line(lambda: ek.watch([LIF(**NEURON)]), TypeError, "model: got a list, accepted is a torch.nn.Module")
    start = "model: got a Sequential without a spiking layer; known are LIF, BNLIF and Poisson of esvae_kernels.nn, "
    one_line(lambda: ek.watch(nn.Sequential(nn.ReLU(), LI(decay=0.9))), ValueError, start)
    layer = LIF(**NEURON)
    for share in (-0.1, 1.5, "a", True, float("nan")):
        one_line(lambda s=share: ek.watch(layer, max_silent=s), ValueError, f"max_silent: got {share!r}, accepted is a")
    for kinds in (3, ("LIF",), (int,), "LIF"):
        one_line(lambda k=kinds: ek.watch(layer, kinds=k), TypeError, "kinds: got ")
    one_line(lambda: ek.watch(layer, kinds={Mine: -1}), ValueError, "kinds: got -1 axes for Mine, accepted is a number")
    with ek.watch(layer) as watched:
        one_line(lambda: watched.log("run"), TypeError, "writer: got a str, accepted is a torch.utils.tensorboard")
    watched.log(SimpleNamespace(add_scalar=print))  # nothing was called, nothing is written


# ------------------------------------------------------------------------------------------- other libraries' neurons


def expect(watched: Watch, spikes: Tensor, axes: int) -> None:
    (row,) = [row for row in watched.rows if row.calls]
    assert row.rate == pytest.approx(spikes.double().mean().item(), rel=1e-6)
    assert row.silent == (spikes == 0).flatten(0, axes - 1).all(0).double().mean()


@pytest.mark.parametrize("converted", [False, True], ids=["theirs", "ours"])
@pytest.mark.parametrize("mode", ["s", "m"])
def test_spikingjelly(mode: str, converted: bool) -> None:
    neuron = pytest.importorskip("spikingjelly.activation_based.neuron")
    model, x = nn.Sequential(nn.Identity(), neuron.LIFNode(step_mode=mode)), randn(6, 4, 5) * 2
    if converted:
        assert dropin.convert(model).replaced
    with ek.watch(model) as watched:
        spikes = model(x) if mode == "m" else torch.stack([model(current) for current in x])
    expect(watched, spikes, 2)


@pytest.mark.parametrize("converted", [False, True], ids=["theirs", "ours"])
def test_snntorch(converted: bool) -> None:
    snntorch = pytest.importorskip("snntorch")
    model, x = nn.ModuleList([snntorch.Leaky(beta=0.9)]), randn(6, 4, 5).requires_grad_()
    if converted:
        assert dropin.convert(model).replaced
    with ek.watch(model) as watched:
        mem, spikes = model[0].reset_mem(), []
        for current in x:
            spk, mem = model[0](current, mem)
            spikes.append(spk)
        torch.stack(spikes).square().sum().backward()
    expect(watched, torch.stack(spikes), 2)
    assert only(watched).grad_output == pytest.approx(2 * torch.stack(spikes).norm().item(), rel=1e-5)


@pytest.mark.parametrize("converted", [False, True], ids=["theirs", "ours"])
def test_norse(converted: bool) -> None:
    norse = pytest.importorskip("norse.torch")
    model, x = norse.SequentialState(norse.LIF(), nn.Linear(5, 3), norse.LI()), randn(30, 4, 5) * 5
    cells = norse.SequentialState(norse.LIFCell(), norse.LICell())
    if converted:
        assert dropin.convert(model).replaced
        assert dropin.convert(cells).replaced
    with ek.watch(model) as watched, ek.watch(cells) as of_cells:
        model(x)
        cells(x[0])
    assert [row.layer for row in (*watched.rows, *of_cells.rows)] == ["0", "0"]
    expect(watched, model[0](x)[0], 2)
    expect(of_cells, cells[0](x[0])[0], 1)


@pytest.mark.parametrize("converted", [False, True], ids=["theirs", "ours"])
def test_sinabs(converted: bool) -> None:
    layers = pytest.importorskip("sinabs.layers")
    x = randn(4, 6, 5)
    for layer, y, axes in (
        (layers.LIF(tau_mem=5.0), x, 2),
        (layers.IAFSqueeze(batch_size=4), x.flatten(0, 1), 1),
    ):
        model = nn.Sequential(layer, layers.ExpLeak(tau_mem=5.0))
        if converted:
            assert dropin.convert(model).replaced
        with ek.watch(model) as watched:
            spikes = layer(y)
        expect(watched, spikes, axes)
        assert only(watched).layer == "0"
