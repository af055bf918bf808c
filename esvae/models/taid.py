"""Attention over time in the readout: temporal attention in the image decoding (TAID)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class TAID(nn.Module):
    """sum_t a[t,c] X[t,c] with a = sigmoid(W m), m[t,c] the mean of X[t,c] over its pixels, W in R^(TxT).

    Shapes: X (T, N, C, H, W), of the T that it is made for -> (N, C, H, W).
    """

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.mix = nn.Linear(steps, steps, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        means = x.mean((3, 4))  # (T, N, C)
        weights = torch.sigmoid(self.mix(means.movedim(0, -1))).movedim(-1, 0)
        return (weights.to(x.dtype)[..., None, None] * x).sum(0)
