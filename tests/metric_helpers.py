"""What the tests of the metrics share."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from esvae.errors import InputError


class Small(nn.Module):
    """A network in Inception's place: images in color -> features, and logits of 4 classes; counts its calls."""

    def __init__(self, features: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.conv, self.fc = nn.Conv2d(3, features, 5), nn.Linear(features, 4)
        for parameter in self.parameters():
            nn.init.normal_(parameter, generator=generator)
        self.calls = 0

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        self.calls += 1
        features = self.conv(images.expand(-1, 3, -1, -1)).relu().mean((2, 3))
        return features, self.fc(features)


def random_spd(size: int, seed: int, rank: int | None = None) -> Tensor:
    root = torch.randn(size, rank or size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return root @ root.T / size


def assert_one_line(error: pytest.ExceptionInfo[InputError], *words: object) -> None:
    message = str(error.value)
    assert "\n" not in message
    assert len(message) < 400
    for word in words:
        assert str(word) in message
