"""Distances of two sets of rates: what the loss adds to the reconstruction error (paper, eq. 10 and 11), and others."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

PROJECTIONS = 256  # of the sliced Wasserstein distance


def mmd(a: Tensor, b: Tensor) -> Tensor:
    """MMD^2 of two sets of rates (N, d), as published: a biased V-statistic with five radial basis functions.

    k(x, y) = sum_i exp(-|x - y|^2 / b_i), b_i = b * (1/4, 1/2, 1, 2, 4), b the (detached) mean of all squared distances
    within the joined batch. Equal points give 0.
    """
    return _biased(_kernels(a, b, lambda ratio: torch.exp(-ratio)), len(a))


def unbiased_mmd(a: Tensor, b: Tensor) -> Tensor:
    """`mmd` as a U-statistic: no point is compared with itself, so that it is 0 on average for equal distributions, and
    may be negative. N at least 2."""
    kernel, m = _kernels(a, b, lambda ratio: torch.exp(-ratio)), len(a)
    same = kernel[:m, :m].triu(1).sum() + kernel[m:, m:].triu(1).sum()
    return 2 * same / (m * (m - 1)) - 2 * kernel[:m, m:].mean()


def imq(a: Tensor, b: Tensor) -> Tensor:
    """`mmd` with inverse multiquadratics, k(x, y) = sum_i b_i / (b_i + |x - y|^2), whose tails reach further
    (Tolstikhin et al., 2018, section 4)."""
    return _biased(_kernels(a, b, lambda ratio: 1 / (1 + ratio)), len(a))


def sliced_wasserstein(a: Tensor, b: Tensor) -> Tensor:
    """The squared 2-Wasserstein distance of the points' projections, its mean over 256 directions (Kolouri et al.,
    2019). The directions are random once, and the same ones at every call."""
    directions = _directions(a.shape[1], a.dtype, a.device)
    return ((a @ directions).sort(dim=0)[0] - (b @ directions).sort(dim=0)[0]).square().mean()


@cache
def _directions(d: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Unit vectors (d, 256), made and brought to the device once: a CUDA graph can do neither."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(d, PROJECTIONS, generator=generator, dtype=torch.float64)
    return (directions / directions.norm(dim=0)).to(device, dtype)


def trace_mmd(p: Tensor, q: Tensor) -> Tensor:
    """MMD^2 of the traces of two sequences of probabilities (T, N, d), as FSVAE has it: the mean of
    (PSP(p) - PSP(q))^2, where PSP_t = PSP_{t-1} + (x_t - PSP_{t-1}) / 2 from 0."""
    trace, total = torch.zeros_like(p[0]), torch.zeros((), dtype=p.dtype, device=p.device)
    for difference in (p - q).unbind():  # the trace is linear
        trace = trace + (difference - trace) / 2
        total = total + trace.square().mean()
    return total / len(p)


def bernoulli_divergence(p: Tensor, q: Tensor) -> Tensor:
    """KL(p, q) of probabilities (T, N, d) that spikes fire, summed over T and d, mean over N; with 1e-2 inside the
    logarithms, as FSVAE has it."""
    fires = p * ((p + 1e-2) / (q + 1e-2)).log()
    silent = (1 - p) * ((1 - p + 1e-2) / (1 - q + 1e-2)).log()
    return (fires + silent).sum((0, 2)).mean()


def gaussian_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL of normal distributions (N, d) from the standard one, summed over d, mean over N."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1).mean()


DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mmd": mmd,
    "unbiased-mmd": unbiased_mmd,
    "imq": imq,
    "sliced-wasserstein": sliced_wasserstein,
}


def _kernels(a: Tensor, b: Tensor, kernel: Callable[[Tensor], Tensor]) -> Tensor:
    """The sum of `kernel`(|x - y|^2 / b_i) over the five bandwidths, for all pairs of the joined batch (2N, 2N)."""
    joined = torch.cat([a, b])
    distances = (joined.unsqueeze(0) - joined.unsqueeze(1)).square().sum(-1)
    n = len(joined)
    bandwidth = (distances.detach().sum() / (n * n - n)).clamp_min(torch.finfo(distances.dtype).tiny * 8)
    return sum(kernel(distances / (bandwidth * 2.0**i)) for i in range(-2, 3))  # type: ignore[return-value]


def _biased(kernel: Tensor, m: int) -> Tensor:
    return kernel[:m, :m].mean() + kernel[m:, m:].mean() - 2 * kernel[:m, m:].mean()
