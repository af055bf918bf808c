"""A convolutional network of snnTorch layers on real images: trained beside its converted copy."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

pytest.importorskip("snntorch", reason="snnTorch is not installed")
import snntorch
from real_data import images as real_images
from snntorch import utils

from esvae_kernels import dropin
from esvae_kernels.dropin import snntorch as ours

Run = Callable[[nn.Module, Tensor, int], tuple[Tensor, Tensor]]


def batch(number: int, size: int) -> tuple[Tensor, Tensor]:
    """Images (size, 1, 8, 8) in [0, 2], and their labels."""
    images, labels = real_images(size, first=number * size)
    return 2 * images, labels


def network(width: int = 8) -> nn.Sequential:
    torch.manual_seed(0)
    beta = torch.full((2 * width, 1, 1), 0.8)
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1),
        snntorch.Leaky(0.8, init_hidden=True, learn_beta=True),
        nn.MaxPool2d(2),
        nn.Conv2d(width, 2 * width, 3, padding=1),
        snntorch.Leaky(beta, init_hidden=True, learn_beta=True, reset_mechanism="zero"),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(8 * width, 10),
        snntorch.Leaky(0.9, init_hidden=True, output=True, learn_threshold=True),
    )


def loop(net: nn.Module, images: Tensor, time: int) -> tuple[Tensor, Tensor]:
    spikes, potentials = zip(*(net(images) for _ in range(time)), strict=True)
    return torch.stack(spikes), torch.stack(potentials)


def fused(net: nn.Module, images: Tensor, time: int) -> tuple[Tensor, Tensor]:
    return ours.unroll(net, images, steps=time)


def train_step(
    net: nn.Module, optimizer: torch.optim.Optimizer, run: Run, images: Tensor, labels: Tensor, time: int
) -> float:
    utils.reset(net)
    _, potentials = run(net, images, time)
    loss = F.cross_entropy(potentials.flatten(0, 1), labels.repeat(time))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


@pytest.mark.parametrize("run", [loop, fused])
def test_the_same_losses(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The optimiser was made before the network was converted."""
    monkeypatch.setitem(ours.LEAST_ELEMENTS, "cpu", 0)
    original, net = network(), network()
    optimizers = [torch.optim.Adam(n.parameters(), lr=5e-3) for n in (original, net)]
    assert len(dropin.convert(net, strict=True).replaced) == 3
    batches = [batch(k % 2, 32) for k in range(5)]
    expected = [train_step(original, optimizers[0], loop, *batch, time=5) for batch in batches]
    losses = [train_step(net, optimizers[1], run, *batch, time=5) for batch in batches]
    assert expected[-1] < expected[0]
    torch.testing.assert_close(losses, expected, rtol=2e-3, atol=0)
    for a, e in zip(net.parameters(), original.parameters(), strict=True):
        assert (a - e).norm() <= 0.02 * e.norm() + 1e-6
    dropin.revert(net)
    expected, loss = (
        train_step(n, optimizer, loop, *batches[0], time=5)
        for n, optimizer in zip((original, net), optimizers, strict=True)
    )
    assert loss == pytest.approx(expected, rel=5e-3)
