"""Convolutional networks of sinabs' layers on real images: trained beside their converted copies."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

pytest.importorskip("sinabs", reason="sinabs is not installed")
import sinabs
from real_data import images as real_images
from sinabs import activation, layers
from sinabs.from_torch import from_model

from esvae_kernels.dropin import convert, revert
from esvae_kernels.dropin import sinabs as ours

BATCH, STEPS, TIME = 32, 8, 6


@pytest.fixture(autouse=True)
def one_thread(threads: None) -> None:
    """Threads that wait for each other take longer than these layers."""
    torch.set_num_threads(1)


def from_ann(batch: int, width: int = 8, neurons: type[nn.Module] = layers.IAFSqueeze) -> nn.Module:
    """A network with ReLUs, made spiking by sinabs: IAF neurons that fire several times a step, above a floor."""
    torch.manual_seed(0)
    ann = nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Conv2d(width, 2 * width, 3, padding=1),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.LazyLinear(8 * width),
        nn.ReLU(),
        nn.Linear(8 * width, 10),
    )
    ann(torch.zeros(1, 1, 8, 8))
    options = {"min_v_mem": -1.0, "spike_threshold": torch.tensor(0.5), "spike_layer_class": neurons}
    return from_model(ann, batch_size=batch, **options)


def leaky(batch: int, width: int = 8) -> nn.Module:
    """LIF neurons, their time constants learnt: per channel, with a synaptic current, with one spike a step."""
    torch.manual_seed(0)
    options = {"batch_size": batch, "spike_threshold": torch.tensor(0.3)}
    tau = torch.linspace(2, 6, 2 * width).view(-1, 1, 1)
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1),
        layers.LIFSqueeze(tau_mem=3.0, norm_input=False, **options),
        nn.MaxPool2d(2),
        nn.Conv2d(width, 2 * width, 3, padding=1),
        layers.LIFSqueeze(tau_mem=tau, tau_syn=2.0, train_alphas=True, norm_input=False, **options),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(8 * width, 10),
        layers.LIFSqueeze(tau_mem=5.0, spike_fn=activation.SingleSpike, reset_fn=activation.MembraneReset(), **options),
    )


NETWORKS = {"IAF": from_ann, "LIF": leaky}
on_networks = pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)


def train_step(net: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor, time: int) -> float:
    """The image at every time step; the mean of the last layer's outputs decides."""
    sinabs.reset_states(net)
    x = images.unsqueeze(1).expand(-1, time, *images.shape[1:]).flatten(0, 1)
    loss = F.cross_entropy(10 * net(x).unflatten(0, (len(images), time)).mean(1), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


def data(number: int) -> tuple[Tensor, Tensor]:
    return real_images(BATCH, first=BATCH * (number % 2))


@pytest.mark.few(1)
@on_networks
def test_the_same_losses(make: Callable[[int], nn.Module]) -> None:
    """Closely at first; then single spikes at a threshold make a difference that training does not feel. The optimiser
    was made before the network was converted, and goes on after it is reverted."""
    original, net = make(BATCH), make(BATCH)
    optimizers = [torch.optim.Adam(n.parameters(), lr=5e-3) for n in (original, net)]
    assert len(convert(net, strict=True).replaced) == 3
    expected = [train_step(original, optimizers[0], *data(k), TIME) for k in range(STEPS)]
    losses = [train_step(net, optimizers[1], *data(k), TIME) for k in range(STEPS - 1)]
    revert(net)
    losses.append(train_step(net, optimizers[1], *data(STEPS - 1), TIME))
    assert expected[-1] < 0.9 * expected[0]
    assert losses[:2] == pytest.approx(expected[:2], rel=1e-4)
    assert losses == pytest.approx(expected, rel=0.02)
    for p, q in zip(net.parameters(), original.parameters(), strict=True):
        assert (p - q).norm() <= 0.02 * q.norm() + 1e-6


@on_networks
def test_evaluation(make: Callable[[int], nn.Module]) -> None:
    """The state goes on over two calls; firing rates are there to be read."""
    theirs, net = make(BATCH).eval(), make(BATCH).eval()
    convert(net, strict=True)
    x = data(0)[0].repeat_interleave(TIME, 0)
    with torch.no_grad():
        expected, found = (torch.stack([n(x), n(x)]) for n in (theirs, net))
    assert expected.std() > 0.01
    assert (found - expected).norm() <= 1e-3 * expected.norm()
    rates = [[m.firing_rate for m in n.modules() if isinstance(m, layers.StatefulLayer)] for n in (theirs, net)]
    torch.testing.assert_close(rates[1], rates[0], rtol=1e-3, atol=0)


def test_sinabs_own_network_class() -> None:
    """Made of our neurons from the start; its reset, and a state of another batch."""
    net = from_ann(BATCH, neurons=ours.IAFSqueeze)
    x = data(0)[0].repeat_interleave(TIME, 0)
    first = net(x)
    assert not torch.equal(net(x), first)
    net.reset_states()
    assert torch.equal(net(x), first)
    sinabs.set_batch_size(net, 8)
    assert net(x[: 8 * TIME]).shape == (8 * TIME, 10)
