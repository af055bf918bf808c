"""The Poisson spike sampler: the specification (paper, eq. 7 and 8).

    z_{t,n,i} = [u_{t,n,i} < r_{n,i}],   u uniform in [0, 1)

u comes from Philox4x32-10 (Salmon et al., SC'11), so that the same seed gives the same spikes on every backend, device
and split of the batch:

    key      the seed's low and high 32 bits
    counter  (i, t // 4, id_n low 32 bits, id_n high 32 bits)
    u        (word[t % 4] >> 8) * 2^-24

i counts the elements within a sample in logical (row-major) order, id_n is the sample's position in the global batch.
The derivative of z in r is the surrogate's at r - u. A rate <= 0 or NaN never fires, a rate >= 1 always does.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...surrogate.reference import Surrogate, spike
from ..lif.reference import state_dtype

_WORD = 0xFFFFFFFF


def philox(counter: list[Tensor], key: tuple[int | Tensor, int | Tensor]) -> list[Tensor]:
    """Four words per counter; words are int64 tensors with values in [0, 2^32)."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        a, b = 0xD2511F53 * c0, 0xCD9E8D57 * c2  # int64 wraps modulo 2^64, as wanted
        c0, c1, c2, c3 = (b >> 32) & _WORD ^ c1 ^ k0, b & _WORD, (a >> 32) & _WORD ^ c3 ^ k1, a & _WORD
        k0, k1 = (k0 + 0x9E3779B9) & _WORD, (k1 + 0xBB67AE85) & _WORD
    return [c0, c1, c2, c3]


def uniforms(ids: Tensor, elements: int, steps: int, seed: int | Tensor, dtype: torch.dtype) -> Tensor:
    """u (T, N, elements) for the samples `ids` (N). The seed: a number, or an int64 tensor of one element."""
    groups = -(-steps // 4)
    shape = (groups, len(ids), elements)
    element = torch.arange(elements, device=ids.device).expand(shape)
    group = torch.arange(groups, device=ids.device).view(-1, 1, 1).expand(shape)
    low, high = ((ids >> s & _WORD).view(1, -1, 1).expand(shape) for s in (0, 32))
    words = philox([element, group, low, high], (seed & _WORD, seed >> 32 & _WORD))
    lanes = torch.stack(words, 1).flatten(0, 1)[:steps]  # (T, N, elements)
    return (lanes >> 8).to(dtype) * 2.0**-24


def poisson(
    rate: Tensor, ids: Tensor, seed: int, steps: int, surrogate: Surrogate, dtype: torch.dtype | None = None
) -> Tensor:
    """rate (N, *) -> spikes (T, N, *) in `dtype` (default: rate's), compared in fp32 (fp64 for fp64 rates)."""
    r = rate.to(state_dtype(rate.dtype))
    u = uniforms(ids, math.prod(rate.shape[1:]), steps, seed, r.dtype).view(steps, *rate.shape)
    return spike(r - u - surrogate.shift, u < r, surrogate).to(dtype or rate.dtype)


def poisson_backward(rate: Tensor, ids: Tensor, seed: int, dspikes: Tensor, surrogate: Surrogate) -> Tensor:
    """The gradient of the rates, in their dtype, from that of the spikes."""
    r = rate.to(state_dtype(rate.dtype))
    u = uniforms(ids, math.prod(rate.shape[1:]), len(dspikes), seed, r.dtype).view(dspikes.shape)
    return (dspikes.to(r.dtype) * surrogate.derivative(r - u - surrogate.shift)).sum(0).to(rate.dtype)
