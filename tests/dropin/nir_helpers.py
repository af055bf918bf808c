"""Networks whose potentials are exact in fp32, whatever the order of operations: multiples of a small power of 2, with
thresholds between them, or on them where `>=` is meant."""

from __future__ import annotations

import torch
from torch import Tensor, nn

STEPS, N = 10, 3


def eighths(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(-8, 9, shape, generator=torch.Generator().manual_seed(seed)) / 8.0


def with_eighths(model: nn.Module) -> nn.Module:
    for k, parameter in enumerate(
        p for layer in model.modules() if isinstance(layer, MAPS) for p in layer.parameters()
    ):
        parameter.data = eighths(*parameter.shape, seed=k)
    return model


MAPS = (nn.Linear, nn.Conv2d, nn.Conv1d)


def assert_same_spikes(a: Tensor, b: Tensor) -> None:
    assert a.shape == b.shape
    assert 0.02 < a.mean() < 0.9  # there is something to compare
    assert torch.equal(a, b)


class PerStep(nn.Module):
    """A layer that treats each sample by itself, in a network over sequences."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.flatten(0, 1)).unflatten(0, x.shape[:2])
