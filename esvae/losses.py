"""The training loss: MSE(x, x_hat) + lambda * MMD^2(r_p, r_q) (paper, eq. 10 and 11)."""

from __future__ import annotations

import torch
from torch import Tensor


def mmd(a: Tensor, b: Tensor) -> Tensor:
    """MMD^2 of two sets of rates (N, d), as published: a biased V-statistic with five radial basis functions.

    k(x, y) = sum_i exp(-|x - y|^2 / b_i), b_i = b * (1/4, 1/2, 1, 2, 4), b the (detached) mean of all squared distances
    within the joined batch. Equal points give 0.
    """
    joined = torch.cat([a, b])
    distances = (joined.unsqueeze(0) - joined.unsqueeze(1)).square().sum(-1)  # (2N, 2N)
    n = len(joined)
    bandwidth = (distances.detach().sum() / (n * n - n)).clamp_min(torch.finfo(distances.dtype).tiny * 8)
    kernel = sum(torch.exp(-distances / (bandwidth * 2.0**i)) for i in range(-2, 3))
    m = len(a)
    return kernel[:m, :m].mean() + kernel[m:, m:].mean() - 2 * kernel[:m, m:].mean()
