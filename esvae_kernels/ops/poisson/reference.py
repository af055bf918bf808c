"""The Poisson spike sampler: the specification (paper, eq. 7 and 8).

    z_{t,n,i} = [u_{t,n,i} < r_{n,i}],   u uniform in [0, 1)

u comes from Philox4x32-10 (Salmon et al., SC'11), so that the same seed gives the same spikes on every backend, device
and split of the batch:

    key      low and high 32 bits of K: the seed itself in stream 0, in stream k > 0 the k-th number (64 bits) that
             SplitMix64 (Steele et al., OOPSLA'14) gives from the state `seed`
    counter  (i, t // 4, id_n low 32 bits, id_n high 32 bits)
    u        (word[t % 4] >> 8) * 2^-24

i counts the elements within a sample in logical (row-major) order, id_n is the sample's position in the global batch.
The derivative of z in r is the surrogate's at r - u. A rate <= 0 or NaN never fires, a rate >= 1 always does.

What SplitMix64 gives is a bijection of seed + k * 0x9E3779B97F4A7C15 modulo 2^64. So in one stream different seeds
have different keys. Streams k and l, neither of them 0, share a key only where two seeds differ by (l - k) times that
constant, modulo 2^64. Up to |l - k| = 2^30 that is more than 2^62 / |l - k|: seeds below 2^32 never do. That a key is
another seed, which is its own key in stream 0, has a chance of 2^-64.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...surrogate.reference import Surrogate, spike
from ..lif.reference import state_dtype

_WORD = 0xFFFFFFFF
_GOLDEN = 0x9E3779B97F4A7C15


def key(seed: int | Tensor, stream: int = 0) -> int | Tensor:
    """K, whose lower 64 bits count: of a number, or of an int64 tensor, which wraps modulo 2^64 as wanted."""
    if stream == 0:
        return seed
    z = seed + _signed(stream * _GOLDEN)
    z = (z ^ _shifted(z, 30)) * _signed(0xBF58476D1CE4E5B9)
    z = (z ^ _shifted(z, 27)) * _signed(0x94D049BB133111EB)
    return z ^ _shifted(z, 31)


def _signed(number: int) -> int:
    """The number as int64, modulo 2^64."""
    return (number + 2**63) % 2**64 - 2**63


def _shifted(number: int | Tensor, bits: int) -> int | Tensor:
    """Its lower 64 bits to the right, zeros moving in."""
    return number >> bits & (1 << 64 - bits) - 1


def philox(counter: list[Tensor], key: tuple[int | Tensor, int | Tensor]) -> list[Tensor]:
    """Four words per counter; words are int64 tensors with values in [0, 2^32)."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        a, b = 0xD2511F53 * c0, 0xCD9E8D57 * c2  # int64 wraps modulo 2^64, as wanted
        c0, c1, c2, c3 = (b >> 32) & _WORD ^ c1 ^ k0, b & _WORD, (a >> 32) & _WORD ^ c3 ^ k1, a & _WORD
        k0, k1 = (k0 + 0x9E3779B9) & _WORD, (k1 + 0xBB67AE85) & _WORD
    return [c0, c1, c2, c3]


def uniforms(ids: Tensor, elements: int, steps: int, seed: int | Tensor, dtype: torch.dtype, stream: int = 0) -> Tensor:
    """u (T, N, elements) for the samples `ids` (N). The seed: a number, or an int64 tensor of one element."""
    groups = -(-steps // 4)
    shape = (groups, len(ids), elements)
    element = torch.arange(elements, device=ids.device).expand(shape)
    group = torch.arange(groups, device=ids.device).view(-1, 1, 1).expand(shape)
    low, high = ((ids >> s & _WORD).view(1, -1, 1).expand(shape) for s in (0, 32))
    k = key(seed, stream)
    words = philox([element, group, low, high], (k & _WORD, k >> 32 & _WORD))
    lanes = torch.stack(words, 1).flatten(0, 1)[:steps]  # (T, N, elements)
    return (lanes >> 8).to(dtype) * 2.0**-24


def poisson(
    rate: Tensor,
    ids: Tensor,
    seed: int | Tensor,
    steps: int,
    surrogate: Surrogate,
    dtype: torch.dtype | None = None,
    stream: int = 0,
) -> Tensor:
    """rate (N, *) -> spikes (T, N, *) in `dtype` (default: rate's), compared in fp32 (fp64 for fp64 rates)."""
    r = rate.to(state_dtype(rate.dtype))
    u = uniforms(ids, math.prod(rate.shape[1:]), steps, seed, r.dtype, stream).view(steps, *rate.shape)
    return spike(r - u - surrogate.shift, u < r, surrogate).to(dtype or rate.dtype)


def poisson_backward(
    rate: Tensor, ids: Tensor, seed: int | Tensor, dspikes: Tensor, surrogate: Surrogate, stream: int = 0
) -> Tensor:
    """The gradient of the rates, in their dtype, from that of the spikes."""
    r = rate.to(state_dtype(rate.dtype))
    u = uniforms(ids, math.prod(rate.shape[1:]), len(dspikes), seed, r.dtype, stream).view(dspikes.shape)
    return (dspikes.to(r.dtype) * surrogate.derivative(r - u - surrogate.shift)).sum(0).to(rate.dtype)
