"""What other libraries keep as tensors, as the kernels take it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from esvae_kernels.dropin import parameters


def test_a_number_on_another_device_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    value, read = torch.ones(()), []
    monkeypatch.setattr(Tensor, "__float__", lambda self: read.append(1) or self.item(), raising=False)
    assert [parameters._cached(value), parameters._cached(value)] == [1.0, 1.0]
    assert len(read) == 1
    value.mul_(2)
    assert [parameters._cached(value), parameters._cached(value)] == [2.0, 2.0]
    assert len(read) == 2
    value.data = torch.tensor(3.0)
    assert parameters._cached(value) == 3.0


def test_channels_are_those_of_axis_1() -> None:
    x = torch.zeros(2, 3, 4, 5)
    shapes = {(3, 1, 1): 3, (1, 3, 1, 1): 3, (3, 4, 1): None, (1, 3): None, (2, 1, 1, 1): None, (): None}
    assert {shape: parameters._channels_of(torch.zeros(shape), x) for shape in shapes} == shapes
    assert parameters._channels_of(torch.zeros(3), x[:, :, 0, 0]) == 3
