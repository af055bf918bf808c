"""Projected-full attention (PFA) on the repeated image in front of the encoder.

    s = sigmoid(Conv3x3(mean_c X)),  t = sigmoid(Linear(mean_hw X)),  c = sigmoid(Linear((mean_hw X)^T))
    A[t,c,h,w] = sum_r t[t,r] c[c,r] s[r,h,w],  Y = relu(A X)

The convolution and the second linear map take the T steps to R ranks, the first the C channels. X is the image at each
step, so that t[t,r], and with it A and Y, is the same at every t: it is computed once.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

RANK = 64


class PFA(nn.Module):
    """images (N, C, H, W) -> Y (N, C, H, W), the same at every time step. `steps`: T, also where fewer are in use."""

    def __init__(self, channels: int, steps: int, rank: int = RANK) -> None:
        super().__init__()
        self.steps = steps
        self.space = nn.Conv2d(steps, rank, 3, padding=1)
        self.time = nn.Linear(channels, rank)
        self.channel = nn.Linear(steps, rank)

    def forward(self, images: Tensor) -> Tensor:
        means = images.mean((2, 3))  # (N, C)
        s = torch.sigmoid(self.space(images.mean(1, keepdim=True).expand(-1, self.steps, -1, -1)))  # (N, R, H, W)
        t = torch.sigmoid(self.time(means))  # (N, R), of any time step
        c = torch.sigmoid(self.channel(means.unsqueeze(-1).expand(-1, -1, self.steps)))  # (N, C, R)
        attention = torch.einsum("nr,ncr,nrhw->nchw", t, c, s)
        return torch.relu(attention.to(images.dtype) * images)
