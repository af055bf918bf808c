"""`dropin.nir`: modules to NIR graphs, files and back; what NIR means by its nodes; graphs and files that are wrong."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from kernel_helpers import one_line
from torch import Tensor, nn

pytest.importorskip("esvae_kernels.dropin.nir", reason="nir is not installed, or too old", exc_type=ImportError)
import h5py
import nir
from nir_helpers import STEPS, N, PerStep, assert_same_spikes, eighths, with_eighths
from parts import BNLIF, LIF, whole

from esvae_kernels import Hard, Soft
from esvae_kernels.dropin.nir import Network, from_nir, read, to_nir
from esvae_kernels.nn import LI
from esvae_kernels.nn import LIF as nn_LIF
from esvae_kernels.surrogate import ATan, Sigmoid

ALL = (">=", "reset", "multi_spike", "spiking", "v_min", "start", "readout")
DT = 1e-4


def through_a_file(graph: nir.NIRGraph, folder: Path) -> nir.NIRGraph:
    nir.write(folder / "graph.nir", graph)
    return read(folder / "graph.nir")


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make().eval()


# ---------------------------------------------------------------------------------------------------------- round trips


def bn_lif(channels: int, **options: object) -> BNLIF:
    layer = BNLIF(channels, **options)
    nn.init.uniform_(layer.weight, 0.5, 1.5), nn.init.normal_(layer.bias, 0.2, 0.2)
    layer.running_mean.normal_(0, 0.2), layer.running_var.uniform_(0.2, 1.0)
    return layer


class Residual(nn.Module):
    """A block in SEW-ResNet's way."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.a, self.b = PerStep(nn.Conv2d(channels, channels, 3, padding=1)), LIF(decay=0.7, threshold=0.3)
        self.c, self.d = PerStep(nn.Conv2d(channels, channels, 1)), LIF(decay=0.6, threshold=0.2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.b(self.a(x))
        return self.d(self.c(y)) + y


NEURONS: dict[str, dict[str, object]] = {
    "plain": {"decay": 0.9, "threshold": 0.4},
    "strict": {"decay": 0.3, "threshold": 0.4, "strict": True},
    "integrate": {"decay": 1.0, "threshold": 0.9, "gain": 0.7},
    "no memory": {"decay": 0.0, "threshold": 0.4},
    "gain, rest, v_reset": {"decay": 0.9, "threshold": 0.4, "gain": 0.3, "bias": 0.05, "v_reset": -0.1},
    "soft": {"decay": 0.9, "threshold": 0.4, "reset": "soft"},
    "none": {"decay": 0.9, "threshold": 0.4, "reset": "none"},
    "delayed": {"decay": 0.9, "threshold": 0.4, "reset": "delayed"},
    "at once": {"decay": 0.9, "threshold": 0.4, "reset": "at_once"},
    "synapse": {"decay": 0.9, "threshold": 0.8, "gain": 0.3, "synaptic_decay": 0.7},
    "several": {"decay": 0.9, "threshold": 0.3, "reset": "soft", "several": True},
    "floor": {"decay": 0.9, "threshold": 0.4, "v_min": -0.3},
    "per channel": {
        "decay": torch.tensor([0.1, 0.5, 0.9]),
        "threshold": torch.tensor([0.2, 0.4, 0.5]),
        "gain": torch.tensor([1.0, 0.9, 0.8]),
        "synaptic_decay": torch.tensor([0.1, 0.3, 0.2]),
        "v_reset": torch.tensor([0.1, 0.0, -0.3]),
    },
    "per neuron": {
        "decay": torch.tensor([[0.1, 0.5], [0.9, 0.8], [0.7, 0.3]]),
        "threshold": torch.tensor([0.2, 0.4, 0.5]),
        "v_reset": torch.tensor([[0.1, 0.0], [0.0, -0.3], [0.2, 0.2]]),
    },
    "training": {"decay": 0.9, "threshold": 0.4, "detach_reset": True, "surrogate": Sigmoid(3.0, shift=0.1, scale=2)},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
@pytest.mark.parametrize("name", NEURONS)
def test_round_trip_of_a_neuron(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    layer = LIF(**NEURONS[name]).to(dtype)
    again = from_nir(through_a_file(to_nir(layer, (3, 2), accept=ALL), tmp_path), dtype=dtype)
    x = noise(STEPS, N, 3, 2).to(dtype)
    assert_same_spikes(layer(x).clamp(max=1), again(x).clamp(max=1))
    assert torch.equal(layer(x), again(x))
    options = again.layers[0].options
    reset, known = options.pop("reset"), layer.options
    for key, value in known.items():
        if key != "reset":
            assert torch.equal(options[key], value) if isinstance(value, Tensor) else options[key] == value, key
    assert type(reset) is type(known["reset"])
    assert getattr(reset, "detach", None) == getattr(known["reset"], "detach", None)
    if isinstance(reset, Hard):
        assert torch.equal(torch.as_tensor(reset.v_reset), torch.as_tensor(known["reset"].v_reset))
    x, y = x.clone().requires_grad_(), x.clone().requires_grad_()
    layer(x).sum().backward(), again(y).sum().backward()
    assert torch.equal(x.grad, y.grad)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "convolutional": (
        lambda: nn.Sequential(
            PerStep(nn.Sequential(nn.Conv2d(2, 4, 3, stride=2, padding=1, dilation=1, bias=False), nn.Dropout(0.5))),
            bn_lif(4, decay=0.9, threshold=0.3),
            PerStep(nn.AvgPool2d(2, stride=2, padding=1)),
            LIF(decay=0.8, threshold=0.2),
            PerStep(nn.AvgPool2d(2, stride=1, divisor_override=1)),
            LIF(decay=0.5, threshold=1.5),
            nn.Flatten(2),
            nn.Linear(16, 5),
            LI(decay=0.7, gain=0.3, bias=0.1, readout=None),
        ),
        (2, 8, 8),
    ),
    "residual": (lambda: nn.Sequential(Residual(3), Residual(3), nn.Flatten(2), nn.Linear(48, 4)), (3, 4, 4)),
    "one axis": (
        lambda: nn.Sequential(
            PerStep(nn.Conv1d(2, 3, 3, padding="same")), LIF(decay=0.9, threshold=0.3), PerStep(nn.Flatten(1, -1)),
            nn.Linear(21, 4, bias=False), LI(decay=1.0, readout=None),
        ),
        (2, 7),
    ),
    "partly flat": (
        lambda: nn.Sequential(PerStep(nn.Flatten(2)), PerStep(nn.Conv1d(2, 3, 5)), LIF(decay=0.9, threshold=0.3)),
        (2, 3, 4),
    ),
    "synaptic readout": (lambda: nn.Sequential(nn.Linear(6, 4), LI(decay=0.7, synaptic_decay=0.6, readout=None)), (6,)),
    "readout": (lambda: nn.Sequential(nn.Linear(6, 4), LI(decay=0.7)), (6,)),
    "weights": (lambda: nn.Sequential(nn.Linear(6, 4), LIF(decay=0.7, threshold=0.1, readout=[0.1] * STEPS)), (6,)),
    "rate": (lambda: nn.Sequential(nn.Linear(6, 4), LIF(decay=0.7, threshold=0.1, readout="mean")), (6,)),
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_round_trip_of_a_network(name: str, tmp_path: Path) -> None:
    make, shape = NETWORKS[name]
    model = seeded(make)
    graph = to_nir(model, shape, accept=ALL)
    again = from_nir(through_a_file(graph, tmp_path))
    x = noise(STEPS, N, *shape)
    with torch.no_grad():
        expected = model(x)
        assert expected.any()
        assert torch.equal(again(x), expected)
        third = to_nir(again, shape, accept=ALL)
        assert torch.equal(from_nir(third)(x), expected)
    assert third.nodes.keys() == graph.nodes.keys()
    assert set(third.edges) == set(graph.edges)


def test_the_file_is_one_that_nir_reads(tmp_path: Path) -> None:
    make, shape = NETWORKS["convolutional"]
    model = seeded(make)
    nir.write(tmp_path / "graph.nir", to_nir(model, shape, accept=ALL))
    x = noise(STEPS, N, *shape)
    assert torch.equal(from_nir(nir.read(tmp_path / "graph.nir"))(x), model(x))


def test_a_network_learns() -> None:
    network = from_nir(to_nir(nn.Sequential(nn.Linear(6, 4), LIF(decay=0.7, threshold=0.1)), (6,), accept=[">="]))
    network(noise(STEPS, N, 6)).sum().backward()
    assert network.layers[0].weight.grad.any()


def test_export_leaves_the_model_alone() -> None:
    make, shape = NETWORKS["convolutional"]
    model = seeded(make).train()
    model[1].eval()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [layer.training for layer in model.modules()]
    graph = to_nir(model, shape, accept=ALL)
    graph.nodes["0_layer_0"].weight[:] = 7
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    assert [layer.training for layer in model.modules()] == modes


# ---------------------------------------------------------------------------------------------------- what nodes mean


def euler(node: nir.NIRNode, x: np.ndarray, dt: float) -> np.ndarray:
    """NIR's equations, a step of dt each, fp64; x (T, N, *)."""
    v, c, outputs = np.zeros_like(x[0]), np.zeros_like(x[0]), []
    for current in x:
        if hasattr(node, "tau_syn"):
            c = c + dt / node.tau_syn * (node.w_in * current - c)
            current = c
        if isinstance(node, nir.IF | nir.I):
            v = v + dt * node.r * current
        else:
            tau = node.tau_mem if hasattr(node, "tau_mem") else node.tau
            v = v + dt / tau * (node.v_leak - v + node.r * current)
        if not hasattr(node, "v_threshold"):
            outputs.append(v)
            continue
        z = (v > node.v_threshold) * 1.0
        v = np.where(z, node.v_reset, v)
        outputs.append(z)
    return np.stack(outputs)


def arrays(shape: tuple[int, ...], **values: object) -> dict[str, np.ndarray]:
    """Numbers for all neurons, lists for the channels."""
    columns = {k: np.reshape(value, (-1, *(1,) * (len(shape) - 1))) for k, value in values.items()}
    return {k: np.broadcast_to(column, shape).astype(float) for k, column in columns.items()}


LEAKY = {"r": [2.0, 1.0, 4.0], "v_leak": [0.125, 0.0, -0.25]}
FIRES = {"v_threshold": [0.3, 0.7, 0.4], "v_reset": [-0.5, 0.0, 0.125]}
NODES = {
    "LIF": lambda shape: nir.LIF(**arrays(shape, tau=[2 * DT, 4 * DT, DT], **LEAKY, **FIRES)),
    "IF": lambda shape: nir.IF(**arrays(shape, r=[1 / DT, 2 / DT, 0.5 / DT], **FIRES)),
    "CubaLIF": lambda shape: nir.CubaLIF(
        **arrays(shape, tau_mem=2 * DT, tau_syn=[2 * DT, 4 * DT, DT], w_in=[2.0, 1.0, -0.5], **LEAKY, **FIRES)
    ),
    "LI": lambda shape: nir.LI(**arrays(shape, tau=[2 * DT, 4 * DT, DT], **LEAKY)),
    "I": lambda shape: nir.I(**arrays(shape, r=[1 / DT, 2 / DT, 0.5 / DT])),
    "CubaLI": lambda shape: nir.CubaLI(**arrays(shape, tau_mem=2 * DT, tau_syn=4 * DT, w_in=2.0, **LEAKY)),
}


def graph_of(*nodes: nir.NIRNode, shape: tuple[int, ...], output: tuple[int, ...] | None = None) -> nir.NIRGraph:
    names = [f"n{k}" for k in range(len(nodes))]
    found = {"in": nir.Input(np.array(shape)), **dict(zip(names, nodes, strict=True))}
    path = ["in", *names, "out"]
    found["out"] = nir.Output(np.array(shape if output is None else output))
    return nir.NIRGraph(found, list(pairwise(path)), type_check=False)


@pytest.mark.parametrize("shape", [(3,), (3, 2)], ids=["C", "CH"])
@pytest.mark.parametrize("name", NODES)
def test_nodes_of_others_mean_their_equations(name: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    node = NODES[name](shape)
    graph = through_a_file(graph_of(node, shape=shape), tmp_path)
    x = eighths(STEPS, N, *shape)
    expected = torch.tensor(euler(node, x.double().numpy(), DT), dtype=torch.float32)
    assert expected.unique().numel() > 1
    found = from_nir(graph, dt=DT)(x)
    assert torch.equal(found, expected) if hasattr(node, "v_threshold") else torch.allclose(found, expected)
    if name != "LIF":  # and it is written as it was read
        return
    again = to_nir(from_nir(graph, dt=DT), shape).nodes["n0"]
    for key in ("tau", "r", "v_leak", "v_threshold", "v_reset"):
        assert np.allclose(getattr(again, key), getattr(node, key)), key


@pytest.mark.parametrize("name", ["plain", "integrate", "gain, rest, v_reset", "synapse", "no memory", "per channel"])
def test_what_is_written_means_the_layer(name: str) -> None:
    """Also at the threshold: with dyadic values, potentials meet it."""
    options = NEURONS[name] | {"decay": 1.0 if name == "integrate" else 0.5, "threshold": 0.5, "gain": 0.5}
    options |= {"bias": 0.125, "v_reset": -0.125} if "bias" in options else {}
    options |= {"synaptic_decay": 0.5} if "synaptic_decay" in options else {}
    layer, shape = LIF(**options), (3,)
    x = eighths(STEPS, 64, *shape)
    node = to_nir(layer, shape, accept=[">="]).nodes["lif"]
    spikes = layer(x)
    assert_same_spikes(spikes, torch.tensor(euler(node, x.double().numpy(), DT), dtype=torch.float32))
    above = LIF(**options | {"strict": True})(x)
    assert not torch.equal(spikes, above)  # some potential meets the threshold


def test_numbers_for_all_neurons() -> None:
    """0-d arrays and arrays of one element, as Norse and snnTorch write them."""
    values = {"tau": 2 * DT, "r": 1.0, "v_leak": 0.0, "v_threshold": 0.3, "v_reset": 0.0}
    x = eighths(STEPS, N, 4)
    outputs = [
        from_nir(graph_of(nir.LIF(**{k: make(v) for k, v in values.items()}), shape=(4,)), dt=DT)(x)
        for make in (np.array, lambda v: np.array([v]), torch.tensor, lambda v: np.full(4, v))
    ]
    assert_same_spikes(outputs[0], outputs[3])
    assert all(torch.equal(outputs[0], other) for other in outputs)


def test_another_dt_is_another_step() -> None:
    graph = to_nir(LIF(decay=0.75, threshold=0.3, strict=True), (4,), dt=1e-3)
    assert from_nir(graph).layers[0].decay == 0.75
    assert from_nir(graph, dt=2e-3).layers[0].decay == pytest.approx(0.5)


def test_metadata_that_a_node_contradicts_gives_way() -> None:
    graph = to_nir(LIF(decay=0.75, threshold=0.3), (4,), accept=[">="])
    node = graph.nodes["lif"]
    node.tau, node.v_threshold = node.tau / 2, np.full(4, 0.5)
    layer = from_nir(graph).layers[0]
    assert layer.decay == pytest.approx(0.5)
    assert (layer.threshold, layer.fire) == (0.5, ">")


def test_sizes_and_pools_of_others() -> None:
    """Integers for all axes, and arrays."""
    conv = nir.Conv2d((6, 6), eighths(2, 1, 3, 3).numpy(), 1, 1, 1, 1, eighths(2).numpy())
    pool = nir.SumPool2d(kernel_size=np.array([2, 2]), stride=np.array([2, 2]), padding=np.array([0, 0]))
    flat = nir.Flatten(input_type={"input": np.array([2, 3, 3])}, start_dim=0, end_dim=-1)
    scale = nir.Scale(np.linspace(1, 2, 18))
    network = from_nir(graph_of(conv, pool, flat, scale, shape=(1, 6, 6), output=(18,)), dt=DT)
    x = eighths(STEPS, N, 1, 6, 6)
    weights = (torch.tensor(conv.weight), torch.tensor(conv.bias))
    y = nn.functional.conv2d(x.flatten(0, 1), *weights, padding=1)
    y = 4 * nn.functional.avg_pool2d(y, 2).flatten(1) * torch.linspace(1, 2, 18, dtype=torch.float64).float()
    assert torch.allclose(network(x), y.unflatten(0, (STEPS, N)))


# ------------------------------------------------------------------------------------------------ folding, and matrices


def test_fold() -> None:
    model = nn.Sequential(
        PerStep(nn.Conv2d(1, 4, 3, padding=1)),
        LIF(decay=0.5, threshold=0.3, gain=torch.tensor([1.0, 0.5, 0.25, 2.0]), bias=0.125, strict=True),
        nn.Flatten(2),
        nn.Linear(64, 4, bias=False),
        LIF(decay=0.5, threshold=0.3, bias=0.25, strict=True),
        nn.Linear(4, 4),
        LIF(decay=1.0, threshold=0.7, gain=0.5, strict=True),
        nn.Linear(4, 4),
        LIF(decay=0.5, threshold=0.3, gain=0.5, synaptic_decay=0.5, strict=True),
    )
    with_eighths(model)
    graph = to_nir(model, (1, 4, 4), fold=True)
    nodes = graph.nodes
    for name in ("1", "4"):
        assert (nodes[name].r == 1).all()
        assert (nodes[name].v_leak == 0).all()
    assert np.allclose(nodes["6"].r, 1 / DT)
    assert np.allclose(nodes["8"].r, nodes["8"].tau_mem / DT)
    assert isinstance(nodes["3"], nir.Affine)
    x = eighths(STEPS, N, 1, 4, 4)
    assert_same_spikes(model(x), from_nir(graph)(x))


def test_batch_norm_of_torch_is_folded() -> None:
    maps = nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(27, 5, bias=False), nn.BatchNorm1d(5)
    model = seeded(lambda: nn.Sequential(*maps))
    for norm in (model[1], model[4]):
        norm.running_mean.normal_(), norm.running_var.uniform_(0.5, 2), nn.init.normal_(norm.weight)
    x = noise(STEPS, N, 2, 5, 5)
    found = from_nir(to_nir(model, (2, 5, 5)))(x)
    assert torch.allclose(found.flatten(0, 1), model(x.flatten(0, 1)), rtol=1e-4, atol=1e-5)


class Shortcut(nn.Module):
    """Two readers of a norm; with `early` one of what is in front of it too."""

    def __init__(self, early: bool = False) -> None:
        super().__init__()
        self.early, self.fc, self.norm, self.deep = early, nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4)
        self.lif = LIF(decay=0.5, threshold=0.3, strict=True)

    def forward(self, x: Tensor) -> Tensor:
        before = self.fc(x)
        y = self.norm(before.flatten(0, 1)).unflatten(0, before.shape[:2])
        return y + self.deep(self.lif(before if self.early else y))


def test_a_norm_with_two_readers_is_folded() -> None:
    model = seeded(Shortcut)
    model.norm.running_mean.normal_(), model.norm.running_var.uniform_(0.5, 2)
    x = noise(STEPS, N, 4)
    assert torch.allclose(from_nir(to_nir(model, (4,)))(x), model(x), rtol=1e-4, atol=1e-5)


def up(kernel: int, **options: int) -> PerStep:
    return PerStep(nn.ConvTranspose2d(2, 2, kernel, padding=1, **options))


def test_transposed_convolutions_are_matrices() -> None:
    model = seeded(
        lambda: nn.Sequential(
            up(3, stride=2, output_padding=1),
            LIF(decay=0.5, threshold=torch.tensor([0.3, 0.1]), strict=True),
            up(4, stride=2),
            bn_lif(2, decay=0.9, threshold=0.2),
            PerStep(nn.Conv2d(2, 1, 3, padding=1)),
            LI(decay=0.8, readout=None),
        )
    )
    graph = to_nir(model, (2, 3, 3), accept=[">="])
    kinds = [nir.Input, nir.Flatten, nir.Affine, nir.LIF, nir.Affine, nir.LIF, nir.Affine, nir.LI, nir.Output]
    assert [type(node) for node in graph.nodes.values()] == kinds
    x = noise(STEPS, N, 2, 3, 3)
    expected, found = model(x), from_nir(graph)(x)
    assert torch.allclose(found, expected.flatten(2), rtol=1e-4, atol=1e-5)
    one_line(
        lambda: to_nir(model, (2, 3, 3), accept=[">="], max_matrix=1000),
        ValueError,
        "layer '0.layer' (ConvTranspose2d): NIR has no transposed convolutions; as a matrix it takes 72 x 18 = 1296",
    )


# ---------------------------------------------------------------------------------------------- models that are refused


class Squares(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x) ** 2


class Decides(Squares):
    def forward(self, x: Tensor) -> Tensor:
        return self.first(x) if x.sum() > 0 else x


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lif = LIF(decay=0.5, threshold=0.3, strict=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.lif(self.lif(x))


class FromState(Twice):
    def forward(self, x: Tensor) -> Tensor:
        return self.lif(x, torch.ones(3, 4))


class Constant(Twice):
    def forward(self, x: Tensor) -> Tensor:
        return self.lif(x[0], steps=4)


class WithPotential(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lif = LIF(decay=0.5, threshold=0.3, strict=True, return_state=True)

    def forward(self, x: Tensor) -> Tensor:
        spikes, v = self.lif(x)
        return spikes + v


class Mine(nn_LIF):
    pass


class Both(nn.Module):
    """Two readers of one map, of which one would be folded."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.lif = nn.Linear(4, 4), LIF(decay=0.5, threshold=0.3, strict=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(x)
        return self.lif(y) + y


PLAIN = {"decay": 0.5, "threshold": 0.3, "strict": True}
REFUSED: dict[str, tuple[Callable[[], nn.Module], dict[str, object], str]] = {
    ">=": (lambda: LIF(decay=0.5, threshold=0.3), {}, "the model (LIF): it fires at the threshold, NIR's neurons abov"),
    "soft": (lambda: nn.Sequential(LIF(**PLAIN, reset="soft")), {}, "layer '0' (LIF): its reset is 'soft', NIR's"),
    "both": (lambda: LIF(decay=0.5, threshold=0.3, reset="soft"), {"accept": "reset"}, "the model (LIF): it fires at"),
    "several": (
        lambda: LIF(decay=0.5, threshold=0.3, several=True, reset="soft"),
        {"accept": [">=", "reset"]},
        "the model (LIF): it fires several spikes in a step",
    ),
    "smooth": (lambda: LIF(**PLAIN, surrogate=ATan(spiking=False)), {}, "the model (LIF): its output is its surrogate"),
    "floor": (lambda: LIF(**PLAIN, v_min=-1), {}, "the model (LIF): it has a floor v_min"),
    "readout": (lambda: LI(decay=0.5), {}, "the model (LI): it has a readout over time"),
    "behind": (lambda: nn.Sequential(LI(decay=0.5), nn.Linear(4, 4)), {"accept": ALL}, "layer '1' (Linear): it comes"),
    "decay": (lambda: LIF(**PLAIN | {"decay": 1.5}), {}, "the model (LIF): its decay is from 1.5 to 1.5, accepted is"),
    "mixed": (
        lambda: LIF(**PLAIN | {"decay": torch.tensor([1.0, 1.0, 1.0, 0.5])}),
        {},
        "the model (LIF): its decay is 1 for some neurons",
    ),
    "bias": (lambda: LIF(**PLAIN | {"decay": 1.0, "bias": 0.1}), {}, "the model (LIF): its decay is 1 and its rest is"),
    "nan": (lambda: LIF(**PLAIN | {"decay": torch.tensor(torch.nan)}), {}, "the model (LIF): its decay is not finite"),
    "channels": (lambda: LIF(**PLAIN | {"decay": torch.full((3,), 0.5)}), {}, "the model (LIF): its decay has shape"),
    "infinite weights": (
        lambda: nn.Sequential(nn.Linear(4, 4).requires_grad_(False).apply(lambda m: m.weight.fill_(torch.inf))),
        {},
        "layer '0' (Linear): its parameters are not finite",
    ),
    "shapes": (lambda: nn.Sequential(nn.Linear(5, 4)), {}, "layer '0' (Linear): "),
    "time in a convolution": (
        lambda: nn.Sequential(nn.Conv2d(1, 4, 3), LIF(**PLAIN)),
        {"input_shape": (1, 8, 8)},
        "layer '0' (Conv2d): Expected 3D (unbatched) or 4D (batched) input to conv2d, but got input of size: [T, N, 1,",
    ),
    "unknown": (lambda: nn.Sequential(nn.Linear(4, 4), nn.ReLU()), {}, "layer '1' (ReLU): NIR has no node for it"),
    "function": (Squares, {}, "model: pow on the output of 'first': NIR has no node for it"),
    "decision": (Decides, {}, "model: torch.fx cannot trace Decides.forward: "),
    "twice": (Twice, {}, "layer 'lif' (LIF): it is called more than once"),
    "state": (FromState, {}, "layer 'lif' (LIF): it is called with a state that is not 0"),
    "steps": (Constant, {}, "model: getitem on the output of 'input'"),
    "potential": (WithPotential, {}, "model: add on the output of 'lif': NIR has no node for it"),
    "subclass": (lambda: nn.Sequential(Mine(**whole(**PLAIN))), {}, "layer '0' (Mine): a subclass of LIF, whose"),
    "grouped": (
        lambda: nn.Sequential(PerStep(nn.Conv2d(4, 4, 3, padding=1, groups=2)), LIF(**PLAIN)),
        {"input_shape": (4, 5, 5)},
        "layer '0.layer' (Conv2d): nir 1.",
    ),
    "circular": (
        lambda: nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular")),
        {"input_shape": (4, 5, 5)},
        "layer '0' (Conv2d): its padding_mode is 'circular'",
    ),
    "ceil": (lambda: nn.AvgPool2d(2, ceil_mode=True), {"input_shape": (1, 5, 5)}, "the model (AvgPool2d): it has ceil"),
    "pad": (
        lambda: nn.AvgPool2d(2, padding=1, count_include_pad=False),
        {"input_shape": (1, 4, 4)},
        "the model (AvgPool2d): it divides by something else",
    ),
    "norm": (lambda: nn.Sequential(LIF(**PLAIN), PerStep(nn.BatchNorm1d(4))), {}, "layer '1.layer' (BatchNorm1d): acc"),
    "no statistics": (
        lambda: nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, track_running_stats=False)),
        {},
        "layer '1' (BatchNorm1d): it has no running statistics",
    ),
    "fold": (lambda: LIF(**PLAIN), {"fold": True}, "the model (LIF): fold=True takes a Linear or a convolution right"),
    "fold of both": (Both, {"fold": True}, "layer 'lif' (LIF) would be folded into node 'fc', whose output goes"),
    "norm behind a reader": (
        lambda: Shortcut(early=True),
        {},
        "layer 'norm' (BatchNorm1d) would be folded into node 'fc', whose output goes elsewhere",
    ),
    "dt": (lambda: LIF(**PLAIN), {"dt": 0}, "dt: got 0, accepted is a number above 0"),
    "accept": (lambda: LIF(**PLAIN), {"accept": ["all"]}, "accept: got 'all', accepted are >=, reset"),
    "input_shape": (lambda: LIF(**PLAIN), {"input_shape": ()}, "input_shape: got ()"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_models_that_nir_cannot_say(name: str) -> None:
    make, options, line = REFUSED[name]
    options = {"input_shape": (4,), **options}
    one_line(lambda: to_nir(make(), **options), ValueError, line)


def test_what_is_no_model() -> None:
    one_line(lambda: to_nir(torch.relu, (4,)), TypeError, "model: got ")
    one_line(lambda: to_nir(LIF(**PLAIN), 4), TypeError, "input_shape: got 4")
    one_line(lambda: from_nir(LIF(**PLAIN)), TypeError, "graph: got LIF")


# ---------------------------------------------------------------------------------------------- graphs that are refused


def lif(shape: tuple[int, ...] = (4,), **values: object) -> nir.LIF:
    known = {"tau": 2 * DT, "r": 1.0, "v_leak": 0.0, "v_threshold": 0.3, "v_reset": 0.0}
    return nir.LIF(**{k: v if isinstance(v, np.ndarray) else np.full(shape, v) for k, v in (known | values).items()})


def changed(edges: list[tuple[str, str]] | None = None, **nodes: nir.NIRNode) -> nir.NIRGraph:
    graph = graph_of(lif(), lif(), shape=(4,))
    graph.nodes.update(nodes)
    graph.edges = graph.edges if edges is None else edges
    return graph


def said(**metadata: object) -> nir.NIRGraph:
    node = lif()
    node.metadata = {f"esvae_kernels.{key}": value for key, value in metadata.items()}
    return graph_of(node, shape=(4,))


ONE = {"v_threshold": 1.0, "v_reset": 0.0}
CHAIN = [("in", "n0"), ("n0", "n1"), ("n1", "out")]
BAD: dict[str, tuple[Callable[[], nir.NIRGraph], str]] = {
    "delay": (lambda: changed(n1=nir.Delay(np.ones(4))), "node 'n1' (Delay): there is no layer for this node"),
    "threshold": (lambda: changed(n1=nir.Threshold(np.ones(4))), "node 'n1' (Threshold): there is no layer for this"),
    "subgraph": (lambda: changed(n1=graph_of(lif(), shape=(4,))), "node 'n1' (NIRGraph): there is no layer"),
    "cycle": (lambda: changed([*CHAIN, ("n1", "n0")]), "graph: got a cycle, 'n"),
    "missing node": (lambda: changed([*CHAIN, ("n0", "n7")]), "edge ('n0', 'n7'): there is no node 'n7'"),
    "edge twice": (lambda: changed([*CHAIN, ("n0", "n1")]), "edge ('n0', 'n1'): is there twice"),
    "no edge in": (lambda: changed([("in", "n0"), ("n0", "out"), ("n1", "out")]), "node 'n1' (LIF) has no edge into i"),
    "no edge out": (lambda: changed([("in", "n0"), ("in", "n1"), ("n0", "out")]), "node 'n1' has no edge out of it"),
    "two inputs": (
        lambda: changed([*CHAIN, ("in2", "n1")], in2=nir.Input(np.array([4]))),
        "graph: got 2 Input nodes (in, in2), accepted is one",
    ),
    "no output": (lambda: nir.NIRGraph({"in": nir.Input(np.array([4]))}, [], type_check=False), "graph: got 0 Output"),
    "sum": (
        lambda: changed([*CHAIN, ("n2", "n1"), ("in", "n2")], n2=nir.Linear(np.ones((3, 4)))),
        "node 'n1' (LIF) sums outputs of different shapes: (3,), (4,)",
    ),
    "nan": (lambda: changed(n0=lif(r=np.nan)), "node 'n0' (LIF): its r is not finite"),
    "tau 0": (lambda: changed(n0=lif(tau=0.0)), "node 'n0' (LIF): its tau is 0, accepted is at least dt = 0.0001"),
    "tau below dt": (lambda: changed(n0=lif(tau=DT / 2)), "node 'n0' (LIF): its tau is 5e-05, accepted is at least dt"),
    "overflow": (
        lambda: changed(n0=nir.CubaLIF(**arrays((4,), tau_mem=DT, tau_syn=DT, r=1e200, w_in=1e200, v_leak=0, **ONE))),
        "node 'n0' (CubaLIF): its gain at a step of 0.0001 is not finite",
    ),
    "shape": (lambda: changed(n1=lif((5,))), "node 'n1' (LIF): its tau has shape (5,), accepted is that of its input"),
    "strings": (lambda: changed(n0=lif(r=np.array(["a"] * 4))), "node 'n0' (LIF): its r is ndarray"),
    "linear": (lambda: changed(n1=nir.Linear(np.ones((4, 5)))), "node 'n1' (Linear): "),
    "linear of blocks": (lambda: changed(n1=nir.Linear(np.ones((2, 4, 4)))), "node 'n1' (Linear): its weight has shap"),
    "weights": (lambda: changed(n1=nir.Linear(np.full((4, 4), np.inf))), "node 'n1' (Linear): its weight is not finit"),
    "too large": (lambda: changed(n1=nir.Linear(np.full((4, 4), 1e200))), "node 'n1' (Linear): its weight is not fini"),
    "bias": (lambda: changed(n1=nir.Affine(np.ones((4, 4)), np.ones(3))), "node 'n1' (Affine): its bias has shape (3,"),
    "convolution": (
        lambda: changed(n1=nir.Conv1d(None, np.ones((2, 1, 3)), 1, 0, 1, 1, np.ones(2))),
        "node 'n1' (Conv1d): its weight has shape (2, 1, 3) and its input (4,)",
    ),
    "kernel": (
        lambda: graph_of(nir.Conv1d(None, np.ones((2, 1, 9)), 1, 0, 1, 1, np.ones(2)), shape=(1, 4)),
        "node 'n0' (Conv1d): ",
    ),
    "stride": (
        lambda: graph_of(nir.Conv1d(None, np.ones((2, 1, 3)), -1, 0, 1, 1, np.ones(2)), shape=(1, 4)),
        "node 'n0' (Conv1d): its stride is '-1'",
    ),
    "groups": (
        lambda: graph_of(nir.Conv1d(None, np.ones((2, 1, 3)), 1, 0, 1, 0, np.ones(2)), shape=(1, 4)),
        "node 'n0' (Conv1d): ",
    ),
    "pool": (
        lambda: changed(n1=nir.AvgPool2d(np.array([2, 2]), np.array([2, 2]), np.array([0, 0]))),
        "node 'n1' (AvgPool2d): its input has shape (4,)",
    ),
    "flatten": (lambda: changed(n1=nir.Flatten(None, 3, 5)), "node 'n1' (Flatten): "),
    "reset": (lambda: said(reset="hardly"), "node 'n0' (LIF): its metadata esvae_kernels.reset is 'hardly', accepted"),
    "surrogate": (lambda: said(surrogate=np.array([99.0, 1, 1, 0, 0])), "node 'n0' (LIF): its metadata esvae_kernels."),
    "together": (lambda: said(several=1, reset="at_once"), "node 'n0' (LIF): reset: got Delayed("),
    "input": (lambda: changed(**{"in": nir.Input(np.array([0]))}), "node 'in' (Input): got (0,)"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_graphs(name: str) -> None:
    make, line = BAD[name]
    one_line(lambda: from_nir(make(), dt=DT), ValueError, line)


def test_dt_is_asked_for() -> None:
    one_line(lambda: from_nir(changed()), ValueError, "dt: got None, accepted is a number above 0: this graph's")
    one_line(lambda: from_nir(changed(), dt=-1.0), ValueError, "dt: got -1.0")
    one_line(lambda: from_nir(changed(), dt=float("nan")), ValueError, "dt: got nan")


def test_input_of_another_shape() -> None:
    network = from_nir(changed(), dt=DT)
    one_line(lambda: network(torch.zeros(5, 2, 3)), ValueError, "x: got shape (5, 2, 3), accepted is (T, N, 4)")
    graph = changed(**{"in": nir.Input(np.array([7, 2, 4]))})
    one_line(lambda: from_nir(graph, dt=DT), ValueError, "node 'n0' (LIF): its tau has shape (4,), accepted is that of")
    assert isinstance(from_nir(graph, dt=DT, input_shape=(4,)), Network)


# ---------------------------------------------------------------------------------------------------------------- files


@pytest.fixture
def path(tmp_path: Path) -> Path:
    nir.write(tmp_path / "graph.nir", graph_of(lif(), nir.Linear(np.ones((4, 4))), shape=(4,)))
    return tmp_path / "graph.nir"


def rewritten(path: Path, name: str, **how: object) -> None:
    with h5py.File(path, "r+") as file:
        del file[f"node/{name}"]
        if how:
            file.create_dataset(f"node/{name}", **how)


def test_sizes_are_looked_at_before_anything_is_read(path: Path) -> None:
    rewritten(path, "nodes/n1/weight", shape=(1 << 20, 1 << 18), dtype="f8", chunks=True, compression="gzip")
    assert path.stat().st_size < 1 << 20
    one_line(lambda: read(path), ValueError, f"{path}: node/nodes/n1/weight: 2199023255")
    one_line(lambda: read(path, max_bytes=100), ValueError, f"{path}: node/nodes/n0/")


def test_strings_are_counted(path: Path) -> None:
    rewritten(path, "edges", data=[["x" * 1000, "y"]] * 1000)
    one_line(lambda: read(path, max_bytes=1 << 19), ValueError, f"{path}: node/edges: ")


@pytest.mark.parametrize("kind", ["external", "soft", "raw", "virtual", "cycle", "type", "many"])
def test_hostile_files(kind: str, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rewritten(path, "nodes/n1/weight")
    (tmp_path / "secret").write_bytes(bytes(128))
    at = f"{path}: node/nodes/n1/weight: "
    with h5py.File(path, "r+") as file:
        n1 = file["node/nodes/n1"]
        if kind == "external":
            n1["weight"] = h5py.ExternalLink("other.h5", "/x")
        elif kind == "soft":
            n1["weight"] = h5py.SoftLink("/node/nodes/n0/tau")
        elif kind == "raw":
            n1.create_dataset("weight", (4, 4), "f8", external=[(str(tmp_path / "secret"), 0, 128)])
        elif kind == "virtual":
            layout = h5py.VirtualLayout((4,), "f8")
            layout[:] = h5py.VirtualSource("other.h5", "x", (4,))
            n1.create_virtual_dataset("weight", layout)
        elif kind == "cycle":
            n1["weight"] = file["node/nodes"]
            at = f"{path}: node/nodes/n1/weight/n1/weight/"
        elif kind == "type":
            n1["weight"] = np.zeros(4, dtype=[("a", "f8")])
        else:
            monkeypatch.setattr("esvae_kernels.dropin.nir.file.MOST_NODES", 5)
            at = f"{path}: node/"
    one_line(lambda: read(path), ValueError, at)


@pytest.mark.parametrize(
    ("name", "how", "line"),
    [
        ("edges", {}, "no nodes, or no edges of two names each"),
        ("edges", {"data": np.zeros(3)}, "no nodes, or no edges of two names each"),
        ("nodes/n0/type", {}, "node 'n0' has no type"),
        ("nodes/n0/type", {"data": "Sigmoid"}, "node 'n0' is of the unknown type 'Sigmoid'"),
        ("nodes/n0/type", {"data": "NIRNode"}, "node 'n0' (NIRNode): "),
        ("nodes/n0/type", {"data": "Dict"}, "node 'n0' is of the unknown type 'Dict'"),
        ("nodes/n0/tau", {}, "node 'n0' (LIF): "),
        ("nodes/n0/tau", {"data": "long"}, "node 'n0' (LIF): "),
        ("nodes/n0/more", {"data": 3}, "node 'n0' (LIF): "),
        ("nodes/n0/metadata", {"data": 3}, "node 'n0' (LIF) has metadata that is no group"),
        ("type", {"data": "LIF"}, "got 'LIF' at its top, accepted is a NIRGraph"),
    ],
)
def test_files_of_something_else(name: str, how: dict[str, object], line: str, path: Path) -> None:
    with h5py.File(path, "r+") as file:
        if f"node/{name}" not in file:
            file[f"node/{name}"] = 0
    rewritten(path, name, **how)
    one_line(lambda: read(path), ValueError, f"{path}: {line}")


def test_files_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "text.nir").write_text("a graph")
    one_line(lambda: read(tmp_path / "text.nir"), ValueError, f"{tmp_path / 'text.nir'}: not a file in HDF5")
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "none.nir")
    with h5py.File(tmp_path / "empty.nir", "w"):
        pass
    one_line(lambda: read(tmp_path / "empty.nir"), ValueError, f"{tmp_path / 'empty.nir'}: node: missing")
    one_line(lambda: read(tmp_path / "empty.nir", reset="none"), ValueError, "reset: got 'none'")


def test_files_from_before_v_reset(path: Path) -> None:
    """nir up to 1.0.5 has no v_reset, and means a soft reset; later ones read 0."""
    rewritten(path, "nodes/n0/v_reset")
    one_line(lambda: read(path), ValueError, f"{path}: node 'n0' (LIF) has no v_reset, as before nir 1.0.6")
    assert from_nir(read(path, reset="soft"), dt=DT).layers[0].reset_rule == Soft()
    layer = from_nir(read(path, reset="hard"), dt=DT).layers[0]
    assert (layer.reset_rule, layer.v_reset) == (Hard(), 0.0)


# -------------------------------------------------------------------------------------------------------------- package


def test_nir_is_not_needed_by_the_package() -> None:
    code = "import sys, esvae_kernels.dropin; assert not {'nir', 'h5py', 'nirtorch'} & set(sys.modules); "
    code += "import esvae_kernels.dropin.nir; assert 'nirtorch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_surrogate_of_graphs_without_one() -> None:
    assert from_nir(changed(), dt=DT).layers[0].surrogate == ATan()
    assert from_nir(changed(), dt=DT, surrogate=Sigmoid(3.0)).layers[0].surrogate == Sigmoid(3.0)
