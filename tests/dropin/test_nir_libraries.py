"""`dropin.nir` against the libraries' own layers, exporters and importers, each where it is installed.

Potentials are exact in fp32 (`nir_helpers`) and do not meet the thresholds, so that spikes are equal whatever the order
of operations; where `>=` is tested, they do.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from kernel_helpers import one_line
from torch import Tensor, nn

pytest.importorskip("esvae_kernels.dropin.nir", reason="nir is not installed, or too old", exc_type=ImportError)
import nir
from nir_helpers import STEPS, N, PerStep, assert_same_spikes, eighths, with_eighths
from parts import LIF

from esvae_kernels import Hard, dropin
from esvae_kernels.dropin.nir import from_nir, to_nir
from esvae_kernels.reset import name_of

CUBA = {"decay": 0.5, "threshold": 0.3, "synaptic_decay": 0.5}


@pytest.fixture(autouse=True)
def without_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nirtorch's, that its own functions are deprecated
        yield


def written(graph: nir.NIRGraph, folder: Path) -> nir.NIRGraph:
    nir.write(folder / "graph.nir", graph)
    return nir.read(folder / "graph.nir")


def stepwise(net: nn.Module, x: Tensor) -> Tensor:
    """A network of one time step that takes and returns its state."""
    state, outputs = None, []
    for row in x:
        y, state = net(row, state)
        outputs.append(y[0] if isinstance(y, tuple) else y)
    return torch.stack(outputs).detach()


def dense(*neurons: nn.Module) -> nn.Sequential:
    layers = [layer for neuron in neurons for layer in (nn.Linear(6, 6), neuron)]
    return with_eighths(nn.Sequential(*layers))


def ours(strict: bool = True) -> nn.Module:
    """Layers of `esvae_kernels.nn` that NIR can say, with gains and a threshold at which spikes differ without `>=`."""
    at = {"decay": 0.5, "strict": strict, "threshold": 0.3 if strict else 0.5}
    return dense(LIF(**at), LIF(**at, gain=torch.tensor([1.0, 0.5, 0.5, 0.25, 1.0, 2.0])), LIF(**at, gain=0.5))


# ------------------------------------------------------------------------------------------------------- SpikingJelly


@pytest.fixture
def sj() -> object:
    pytest.importorskip("spikingjelly", reason="SpikingJelly is not installed")
    from spikingjelly.activation_based import functional, layer, neuron, nir_exchange

    class Library:
        pass

    library = Library()
    library.layer, library.neuron, library.functional, library.nir = layer, neuron, functional, nir_exchange
    return library


def sj_network(sj: object, **neuron: object) -> nn.Module:
    layers = (
        sj.layer.Conv2d(1, 4, 3, padding=1, bias=False),
        sj.layer.BatchNorm2d(4),
        sj.neuron.LIFNode(tau=2.0, v_threshold=0.5, **neuron),
        sj.layer.AvgPool2d(2),
        sj.layer.Flatten(),
        sj.layer.Dropout(0.5),
        sj.layer.Linear(16, 6),
        sj.neuron.ParametricLIFNode(init_tau=2.0, v_threshold=0.5, decay_input=False, **neuron),
        sj.layer.Linear(6, 6, bias=False),
        sj.neuron.IFNode(v_threshold=1.0, **neuron),
    )
    model = with_eighths(nn.Sequential(*layers)).eval()
    model[6].weight.data += 0.25  # else few spikes get through
    return model


@pytest.mark.parametrize("mode", ["s", "m"])
@pytest.mark.parametrize("converted", [False, True], ids=["original", "drop-in"])
@pytest.mark.parametrize("v_reset", [0.0, -0.125, None], ids=["hard", "below 0", "soft"])
def test_spikingjelly_layers(sj: object, mode: str, converted: bool, v_reset: float | None, tmp_path: Path) -> None:
    model = sj_network(sj, v_reset=v_reset)
    model[1].running_var.fill_(1 - model[1].eps)
    sj.functional.set_step_mode(model, "m")
    x = eighths(STEPS, N, 1, 4, 4)
    expected = model(x).detach()
    sj.functional.reset_net(model), sj.functional.set_step_mode(model, mode)
    if converted:
        assert not dropin.convert(model).kept
    graph = to_nir(model, (1, 4, 4), accept=[">=", "reset", "start"])
    assert_same_spikes(from_nir(written(graph, tmp_path))(x), expected)
    lacking = "it fires at the threshold"
    one_line(lambda: to_nir(model, (1, 4, 4)), ValueError, f"layer '2' ({type(model[2]).__name__}): {lacking}")
    if v_reset != 0:
        one_line(lambda: to_nir(model, (1, 4, 4), accept=[">="]), ValueError, f"layer '2' ({type(model[2]).__name__})")


def test_spikingjelly_containers_and_sums(sj: object) -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = sj.layer.SeqToANNContainer(nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 2, 1))
            self.node = sj.neuron.IFNode(v_threshold=1.0)

        def forward(self, x: Tensor) -> Tensor:
            return self.node(self.conv(x)) + x

    model = with_eighths(nn.Sequential(sj.neuron.IFNode(), Block(), Block(), sj.neuron.IFNode()))
    sj.functional.set_step_mode(model, "m")
    x = eighths(STEPS, N, 2, 4, 4)
    assert_same_spikes(from_nir(to_nir(model, (2, 4, 4), accept=[">="]))(x), model(x).detach())


@pytest.mark.parametrize("fold", [False, True], ids=["as it is", "folded"])
def test_spikingjelly_reads_what_is_written(sj: object, fold: bool, tmp_path: Path) -> None:
    """Thresholds included: SpikingJelly fires at them, and they are one fp32 lower. With gains it takes r = 1 alone."""
    model = (
        ours(strict=False) if fold else dense(LIF(decay=0.5, threshold=0.5), LIF(decay=0.5, threshold=0.5, gain=0.5))
    )
    model.extend([nn.Linear(6, 6), LIF(**CUBA), nn.Linear(6, 6), LIF(decay=1.0, threshold=0.7)])
    with_eighths(model)
    graph = written(to_nir(model, (6,), accept=[">="], fold=fold), tmp_path)
    x = eighths(STEPS, N, 6)
    assert_same_spikes(stepwise(sj.nir.import_from_nir(graph), x), model(x).detach())


def test_what_spikingjelly_writes(sj: object, tmp_path: Path) -> None:
    """It writes neurons that fire at the threshold as such above it: equal where potentials do not meet it."""
    model = sj_network(sj)
    model = nn.Sequential(model[0], *model[2:5], *model[6:])
    for k in (1, 5, 7):
        model[k].v_threshold = 0.3
    x = eighths(STEPS, N, 1, 4, 4)
    graph = written(sj.nir.export_to_nir(model, x[0]), tmp_path)
    sj.functional.reset_net(model), sj.functional.set_step_mode(model, "m")
    assert_same_spikes(from_nir(graph, dt=1e-4)(x), model(x).detach())


# ----------------------------------------------------------------------------------------------------------- snnTorch


@pytest.fixture
def snn() -> Iterator[object]:
    library = pytest.importorskip("snntorch", reason="snnTorch is not installed")
    import snntorch.export_nir
    import snntorch.import_nir
    import snntorch.utils

    before, snntorch.SpikingNeuron.instances = snntorch.SpikingNeuron.instances, []
    yield library
    snntorch.SpikingNeuron.instances = before


def snn_loop(snn: object, net: nn.Module, x: Tensor) -> Tensor:
    snn.utils.reset(net)
    outputs = [net(row) for row in x]
    return torch.stack([y[0] if isinstance(y, tuple) else y for y in outputs]).detach()


SNN_RESETS = [
    ("subtract", True, "delayed"),
    ("subtract", False, "at_once"),
    ("zero", True, "hard"),
    ("zero", False, "hard"),
    ("none", True, "none"),
]


@pytest.mark.parametrize("converted", [False, True], ids=["original", "drop-in"])
@pytest.mark.parametrize(("mechanism", "delay", "reset"), SNN_RESETS)
def test_snntorch_layers(snn: object, mechanism: str, delay: bool, reset: str, converted: bool, tmp_path: Path) -> None:
    options = {"reset_mechanism": mechanism, "reset_delay": delay, "init_hidden": True}
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        snn.Leaky(beta=0.9, threshold=0.3, **options),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16, 6),
        snn.Leaky(beta=torch.linspace(0.2, 0.8, 6), threshold=torch.linspace(0.1, 0.3, 6), output=True, **options),
    )
    model[0].weight.data, model[4].weight.data = eighths(4, 1, 3, 3) * 0.37, eighths(6, 16) * 0.73
    x = eighths(STEPS, N, 1, 4, 4)
    expected = snn_loop(snn, model, x)
    if converted:
        assert not dropin.convert(model).kept
    graph = to_nir(model, (1, 4, 4), accept=["reset"])
    network = from_nir(written(graph, tmp_path))
    assert name_of(network.layers[1].reset_rule) == reset
    assert_same_spikes(network(x), expected)  # bit for bit, though no value here is dyadic
    if reset != "hard":
        one_line(lambda: to_nir(model, (1, 4, 4)), ValueError, f"layer '1' (Leaky): its reset is {reset!r}, NIR's is")


def test_snntorch_model_of_one_step(snn: object) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.lif = nn.Linear(6, 6), snn.Leaky(beta=0.5, threshold=0.3, reset_mechanism="zero")

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            mem = self.lif.reset_mem()
            return self.lif(self.fc(x), mem)

    class Loop(Net):
        def forward(self, x: Tensor) -> Tensor:
            mem = self.lif.reset_mem()
            for _ in range(3):
                spikes, mem = self.lif(self.fc(x), mem)
            return spikes

    assert set(to_nir(Net(), (6,)).edges) == {("input", "fc"), ("fc", "lif"), ("lif", "output")}
    one_line(lambda: to_nir(Loop(), (6,)), ValueError, "layer 'lif' (Leaky): it is called more than once")
    net = nn.Sequential(snn.Leaky(beta=0.5, graded_spikes_factor=2.0, reset_mechanism="zero", init_hidden=True))
    one_line(lambda: to_nir(net, (6,)), ValueError, "layer '0' (Leaky): its graded_spikes_factor is not 1")
    net = nn.Sequential(snn.Synaptic(alpha=0.5, beta=0.5, init_hidden=True))
    one_line(lambda: to_nir(net, (6,)), ValueError, "layer '0' (Synaptic): NIR has no node for it, or it is not known")


@pytest.mark.parametrize("fold", [False, True], ids=["as it is", "folded"])
def test_snntorch_reads_what_is_written(
    snn: object, fold: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also `>=`: snnTorch fires above the threshold, and ours is one fp32 lower. It takes one gain for all neurons."""
    at = {"decay": 0.5, "threshold": 0.5}
    model = ours(strict=False) if fold else dense(LIF(**at), LIF(**at, gain=0.5))
    model.append(with_eighths(nn.Linear(6, 6))).append(LIF(**CUBA))
    graph = written(to_nir(model, (6,), accept=[">="], fold=fold), tmp_path)
    x = eighths(STEPS, N, 6)
    assert_same_spikes(stepwise(snn.import_nir.import_from_nir(graph), x).float(), model(x).detach())


def test_what_snntorch_writes(snn: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Per-neuron values alone: of others nir refuses the types. The reset is not looked at: here it is NIR's."""
    options = {"threshold": torch.full((6,), 0.3), "reset_mechanism": "zero", "init_hidden": True}
    model = dense(snn.Leaky(beta=torch.full((6,), 0.5), **options), snn.Leaky(beta=torch.full((6,), 0.5), **options))
    graph = written(snn.export_nir.export_to_nir(model, torch.zeros(1, 6), ignore_dims=[0]), tmp_path)
    x = eighths(STEPS, N, 6)
    assert_same_spikes(from_nir(graph, dt=1e-4)(x), snn_loop(snn, model, x))
    model[1] = snn.RLeaky(beta=0.5, threshold=0.3, all_to_all=True, linear_features=6, init_hidden=True)
    graph = snn.export_nir.export_to_nir(model, torch.zeros(1, 6), ignore_dims=[0])
    one_line(lambda: from_nir(graph, dt=1e-4), ValueError, "graph: got a cycle, ")


# -------------------------------------------------------------------------------------------------------------- Norse


@pytest.fixture
def norse() -> object:
    return pytest.importorskip("norse.torch", reason="Norse is not installed")


def norse_parameters(kind: type, **values: float) -> object:
    return kind(**{name: torch.tensor(value) for name, value in values.items()})


def test_norse_layers(norse: object, tmp_path: Path) -> None:
    """Steps of 1/2 and 1/4, exact in fp32: dt = 2^-10."""
    dt, at = 2.0**-10, {"tau_mem_inv": 2.0**9, "v_th": 0.3, "v_leak": 0.125, "v_reset": -0.25}
    cells = (
        norse.LIFBoxCell(norse_parameters(norse.LIFBoxParameters, **at), dt=dt),
        norse.LIFCell(norse_parameters(norse.LIFParameters, **at, tau_syn_inv=2.0**8), dt=dt),
        norse.IAFCell(norse_parameters(norse.IAFParameters, v_th=1.3, v_reset=-0.25), dt=dt),
    )
    model = norse.SequentialState(*dense(*cells))
    x = eighths(STEPS, N, 6)
    network = from_nir(written(to_nir(model, (6,), dt=dt, accept=["start"]), tmp_path))
    assert_same_spikes(network(x), stepwise(model, x))
    one_line(lambda: to_nir(model, (6,)), ValueError, "layer '1' (LIFBoxCell): its potential starts at 0.125, of which")
    readout = norse.SequentialState(*dense(norse.LIBoxCell(norse_parameters(norse.LIBoxParameters, v_leak=0.125))))
    network = from_nir(written(to_nir(readout, (6,), accept=["start"]), tmp_path))
    assert torch.allclose(network(x), stepwise(readout, x), atol=1e-6)


def test_norse_sequences(norse: object) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = with_eighths(nn.Conv2d(1, 2, 3))
            self.lif = norse.LIF(norse_parameters(norse.LIFParameters, v_th=0.1))

        def forward(self, x: Tensor) -> Tensor:
            spikes, _ = self.lif(self.conv(x.flatten(0, 1)).unflatten(0, x.shape[:2]))
            return spikes.flatten(2)

    model, x = Net(), eighths(STEPS, N, 1, 5, 5)
    assert_same_spikes(from_nir(to_nir(model, (1, 5, 5)))(x), model(x).detach())


def test_norse_reads_what_is_written(norse: object, tmp_path: Path) -> None:
    """Folded: Norse takes r for 1, with a warning. It flattens the samples too, so that there is one, without axis."""
    at = {"decay": 0.5, "threshold": 0.5}
    model = with_eighths(
        nn.Sequential(
            PerStep(nn.Conv2d(1, 4, 3, padding=1)),
            LIF(**at, bias=0.125),
            nn.Flatten(2),
            nn.Linear(64, 6),
            LIF(**at, gain=torch.tensor([1.0, 0.5, 0.5, 0.25, 1.0, 2.0])),
            nn.Linear(6, 6),
            LIF(**CUBA),
        )
    )
    graph = written(to_nir(model, (1, 4, 4), dt=2.0**-10, accept=[">="], fold=True), tmp_path)
    x = eighths(STEPS, 1, 1, 4, 4)
    theirs = norse.from_nir(graph, dt=2.0**-10)
    assert_same_spikes(stepwise(theirs, x[:, 0]), model(x)[:, 0].detach())


def test_what_norse_writes(norse: object) -> None:
    """tau = dt / tau_mem_inv, which is dt^2 of its own time: refused at its dt, right for LIFBoxCell at dt^2."""
    x = eighths(STEPS, N, 6)
    model = norse.SequentialState(*dense(norse.LIFBoxCell(norse_parameters(norse.LIFBoxParameters, v_th=0.1))))
    graph = norse.to_nir(model, torch.zeros(6))
    one_line(
        lambda: from_nir(graph, dt=1e-3), ValueError, "node '1' (LIF): its tau is 1e-05, accepted is at least dt ="
    )
    assert_same_spikes(from_nir(graph, dt=1e-6)(x), stepwise(model, x))
    model = norse.SequentialState(*dense(norse.LIFCell()))
    graph = norse.to_nir(model, torch.zeros(6))
    one_line(lambda: from_nir(graph, dt=1e-3), ValueError, "node '1' (CubaLIF): its tau_mem is 1e-05, accepted is at")


# ------------------------------------------------------------------------------------------------------------- sinabs


@pytest.fixture
def sl() -> object:
    return pytest.importorskip("sinabs.layers", reason="sinabs is not installed")


def sinabs_layers(sl: object) -> dict[str, Callable[[], nn.Module]]:
    from sinabs.activation import MembraneReset, SingleSpike

    single = {"spike_fn": SingleSpike, "reset_fn": MembraneReset()}
    return {
        "LIF": lambda: sl.LIF(tau_mem=20.0, spike_threshold=torch.tensor(0.1)),
        "LIF of neurons": lambda: sl.LIF(tau_mem=torch.linspace(5, 20, 6), norm_input=False, train_alphas=True),
        "synapse, floor": lambda: sl.LIF(tau_mem=20.0, tau_syn=5.0, spike_threshold=torch.tensor(0.1), min_v_mem=-0.1),
        "IAF": lambda: sl.IAF(spike_threshold=torch.tensor(0.7), min_v_mem=-1.0),
        "single": lambda: sl.LIF(tau_mem=20.0, norm_input=False, **single),
        "leak": lambda: sl.ExpLeak(tau_mem=10.0),
    }


def test_sinabs_layers(sl: object, tmp_path: Path) -> None:
    for name, make in sinabs_layers(sl).items():
        model = with_eighths(nn.Sequential(nn.Linear(6, 6), make()))
        x = eighths(N, STEPS, 6)
        expected = model(x).detach()
        graph = to_nir(model, (6,), accept=[">=", "reset", "multi_spike", "v_min"])
        found = from_nir(written(graph, tmp_path))(x.transpose(0, 1)).transpose(0, 1)
        assert expected.any(), name
        close = torch.isclose(found, expected, atol=1e-6)
        assert close.all() if name == "leak" else (found == expected).all(), name
        if name not in ("leak", "single"):
            line = "layer '1' (IAF)" if name == "IAF" else "layer '1' (LIF)"
            one_line(lambda model=model: to_nir(model, (6,)), ValueError, f"{line}: its reset is 'soft'")


def test_sinabs_convolutional(sl: object) -> None:
    layers = (nn.Conv2d(1, 4, 3), sl.IAFSqueeze(batch_size=N), sl.SumPool2d(2), nn.Flatten(), nn.Linear(16, 6))
    model = with_eighths(nn.Sequential(*layers, sl.LIFSqueeze(tau_mem=20.0, norm_input=False, batch_size=N)))
    x = eighths(N, STEPS, 1, 6, 6)
    graph = to_nir(model, (1, 6, 6), accept=["reset", "multi_spike"])
    assert isinstance(graph.nodes["2"], nir.SumPool2d)
    found = from_nir(graph)(x.transpose(0, 1)).transpose(0, 1)
    assert torch.equal(found, model(x.flatten(0, 1)).unflatten(0, (N, STEPS)))


def test_what_sinabs_writes(sl: object) -> None:
    """tau in steps, r = 1, and nothing of soft reset, several spikes and norm_input: it comes in as what it says."""
    from sinabs.nir import to_nir as theirs

    model = nn.Sequential(nn.Linear(6, 6), sl.LIF(tau_mem=20.0), nn.Linear(6, 6), sl.IAF())
    x = eighths(N, STEPS, 6)
    model(x)
    network = from_nir(theirs(model, x), dt=1.0, input_shape=(6,))
    assert network.layers[1].decay == pytest.approx(1 - 1 / 20)
    assert (network.layers[1].reset_rule, network.layers[3].decay, network.layers[3].gain) == (Hard(), 1.0, 1.0)
