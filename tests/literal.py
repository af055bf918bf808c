"""The ESVAE network written out literally in plain PyTorch: the yardstick against which the fast model is tested.

Time is the last axis, (N, C, H, W, T); every layer runs at every time step, every tensor is stored, nothing is folded
and none of the model's identities is used. It shares no line with `esvae` or `esvae_kernels`.

The names and shapes of its state dict are those of the published code (GitHub `QgZhan/ESVAE`, classes `ESVAE` for 32x32
and `ESVAELarge` for 64x64 images). C = image channels, d = latent length, T = steps; L = 4 (32x32) or 5 (64x64) stages,
w = (32, 64, 128, 256[, 512]) their widths, F = 4 w[L-1] features at 2x2 pixels, v = w reversed.

    key                                        shape                         what
    encoder.{i}.weight, .bias      i < L       (w[i], w[i-1] or C, 3, 3, 1)  3x3 convolution, stride 2, padding 1
    before_latent_layer.weight, .bias          (d, F)                        linear on features flattened as (C, H, W)
    prior.*, posterior.*                                                     never run; only with dead_weights=True
    decoder_input.weight, .bias                (F, d)                        linear, then viewed as (w[L-1], 2, 2)
    decoder.{i}.weight, .bias      i < L - 1   (v[i], v[i+1], 3, 3, 1)       transposed convolution, stride 2, padding 1
    final_layer.0.weight, .bias                (32, 32, 3, 3, 1)             one more, output padding 1 in all of them
    final_layer.1.weight, .bias                (32, C, 3, 3, 1)              transposed convolution, stride 1, padding 1
    membrane_output_layer.coef     buffer      (1, 1, 1, 1, T)               0.8^(T-1-t), fp32
    sample_layer.0.weight, .bias               (d, d)                        bottleneck: noise -> rate, then a sigmoid

Every layer but final_layer.1 and sample_layer.0 has a tdBN behind it, with the layer's name and `.bn.`: weight, bias
and the buffers running_mean, running_var, each (outputs,), and num_batches_tracked, () int64. All biases are
(outputs,); all parameters start at the defaults of torch.nn (tdBN at weight 1, bias 0).

Symbols as in the paper: r_p is the rate of the encoded image, r_q that of the prior (the published code swaps the two).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DECAY, THRESHOLD = 0.25, 0.2
WIDTHS = {32: (32, 64, 128, 256), 64: (32, 64, 128, 256, 512)}  # by image size
LIF = {  # the published window of the LIF is centred on 0, not on the threshold
    "official": {"strict": True, "center": 0.0, "width": 1.0},
    "paper": {"strict": False, "center": THRESHOLD, "width": 0.5},
}
SAMPLER_WIDTH = {"official": 1.0, "paper": 0.5}


class Spike(torch.autograd.Function):
    """[m > threshold] (`strict`) or [m >= threshold]; its gradient is 1/width where |m - center| < width/2, else 0."""

    @staticmethod
    def forward(
        ctx, m: Tensor, threshold: float | Tensor, strict: bool, center: float | Tensor, width: float
    ) -> Tensor:
        ctx.slope = ((m - center).abs() < width / 2).to(m.dtype) / width
        return (m > threshold if strict else m >= threshold).to(m.dtype)

    @staticmethod
    def backward(ctx, do: Tensor) -> tuple[Tensor, None, None, None, None]:
        return do * ctx.slope, None, None, None, None


def lif(
    x: Tensor, decay: float = DECAY, threshold: float = THRESHOLD, *, strict: bool, center: float, width: float
) -> Tensor:
    """m_t = decay * v_{t-1} + x_t, o_t = spike(m_t), v_t = m_t (1 - o_t), v_{-1} = 0; gradient through the reset."""
    v, spikes = torch.zeros_like(x[..., 0]), []
    for t in range(x.shape[-1]):
        m = decay * v + x[..., t]
        o = Spike.apply(m, threshold, strict, center, width)
        v = m * (1 - o)
        spikes.append(o)
    return torch.stack(spikes, dim=-1)  # as x: (..., T)


def sample(rate: Tensor, u: Tensor, width: float) -> Tensor:
    """z_t = [u_t < rate], the gradient of each z_t being 1/width where |rate - u_t| < width/2."""
    rates = rate.unsqueeze(-1).expand_as(u)  # (N, d, T)
    return Spike.apply(rates, u, True, u, width)


class TdBN(nn.Module):
    """weight * scale * (x - mean) / sqrt(var + 1e-5) + bias, per channel over every other axis, time included."""

    def __init__(self, channels: int, scale: float = THRESHOLD) -> None:
        super().__init__()
        self.scale = scale
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:  # (N, C, H, W, T) or (N, C, T)
        mean, var = self.batch_statistics(x) if self.training else (self.running_mean, self.running_var)
        ones = [1] * (x.ndim - 2)
        mean, var, weight, bias = (a.view(-1, *ones) for a in (mean, var, self.weight, self.bias))  # (C, 1, ..)
        return weight * (self.scale * (x - mean) / torch.sqrt(var + 1e-5)) + bias

    def batch_statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        rest = [0, *range(2, x.ndim)]
        mean, var = x.mean(rest), x.var(rest, unbiased=False)  # (C,)
        with torch.no_grad():
            n = x.numel() // x.shape[1]
            self.running_mean.copy_(0.1 * mean + 0.9 * self.running_mean)
            self.running_var.copy_(0.1 * var * n / (n - 1) + 0.9 * self.running_var)
            self.num_batches_tracked += 1
        return mean, var


class TdConv(nn.Conv3d):
    """Convolution halving the image at every time step -> tdBN -> spikes."""

    def __init__(self, inputs: int, outputs: int, spike: Callable[[Tensor], Tensor]) -> None:
        super().__init__(inputs, outputs, (3, 3, 1), stride=(2, 2, 1), padding=(1, 1, 0))
        self.bn, self.spike = TdBN(outputs), spike

    def forward(self, x: Tensor) -> Tensor:
        return self.spike(self.bn(super().forward(x)))  # (N, I, 2H, 2W, T) -> (N, O, H, W, T)


class TdConvTranspose(nn.ConvTranspose3d):
    """Transposed convolution doubling the image at every time step -> tdBN -> spikes."""

    def __init__(self, inputs: int, outputs: int, spike: Callable[[Tensor], Tensor]) -> None:
        super().__init__(inputs, outputs, (3, 3, 1), stride=(2, 2, 1), padding=(1, 1, 0), output_padding=(1, 1, 0))
        self.bn, self.spike = TdBN(outputs), spike

    def forward(self, x: Tensor) -> Tensor:
        return self.spike(self.bn(super().forward(x)))  # (N, I, H, W, T) -> (N, O, 2H, 2W, T)


class TdLinear(nn.Linear):
    """Linear layer at every time step -> tdBN -> spikes."""

    def __init__(self, inputs: int, outputs: int, spike: Callable[[Tensor], Tensor], scale: float = THRESHOLD) -> None:
        super().__init__(inputs, outputs)
        self.bn, self.spike = TdBN(outputs, scale), spike

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x.transpose(1, 2)).transpose(1, 2)  # (N, I, T) -> (N, O, T)
        return self.spike(self.bn(y))


class Readout(nn.Module):
    """sum_t 0.8^(T-1-t) y_t: the last membrane potential of a neuron that leaks and never fires."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.register_buffer("coef", (0.8 ** torch.arange(steps - 1, -1, -1)).view(1, 1, 1, 1, steps))

    def forward(self, y: Tensor) -> Tensor:
        return (y * self.coef).sum(-1)  # (N, C, H, W, T) -> (N, C, H, W)


class DeadWeights(nn.Module):
    """The latent networks of FSVAE that the published ESVAE carries along and never runs; k = 20 outputs per latent."""

    def __init__(self, inputs: int, latent: int, spike: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        sizes = (inputs, 2 * latent, 4 * latent, 20 * latent)
        self.layers = nn.Sequential(*(TdLinear(i, o, spike, 2 * THRESHOLD) for i, o in pairwise(sizes)))
        self.register_buffer("initial_input", torch.zeros(1, latent, 1))


def mmd(p: Tensor, q: Tensor) -> Tensor:
    """Squared maximum mean discrepancy of p and q, (N, d): V-statistic, the sum of five Gaussian kernels."""
    x = torch.cat([p, q])  # (2N, d)
    n = len(x)
    distance = (x[:, None] - x[None]).square().sum(-1)  # (2N, 2N), squared
    bandwidth = distance.detach().sum() / (n * n - n)
    k = sum(torch.exp(-distance / (bandwidth * factor)) for factor in (0.25, 0.5, 1, 2, 4))
    pp, pq, qp, qq = k[: len(p), : len(p)], k[: len(p), len(p) :], k[len(p) :, : len(p)], k[len(p) :, len(p) :]
    return pp.mean() - pq.mean() - qp.mean() + qq.mean()


def loss(images: Tensor, reconstruction: Tensor, r_p: Tensor, r_q: Tensor, mmd_weight: float = 1e-3) -> Tensor:
    """Mean squared error of images in [-1, 1] + mmd_weight * MMD^2 of the rates."""
    return F.mse_loss(reconstruction, images) + mmd_weight * mmd(r_p, r_q)


class LiteralESVAE(nn.Module):
    """The network of the published code. Randomness comes in as arguments: uniforms u (N, d, T), normal z_n (N, d)."""

    def __init__(
        self,
        channels: int,
        size: int,
        latent: int,
        steps: int,
        preset: str = "official",
        dead_weights: bool = False,
    ) -> None:
        super().__init__()
        spike, widths = partial(lif, **LIF[preset]), WIDTHS[size]
        features = widths[-1] * 2 * 2
        self.steps, self.sampler_width = steps, SAMPLER_WIDTH[preset]
        self.encoder = nn.Sequential(*(TdConv(i, o, spike) for i, o in pairwise((channels, *widths))))
        self.before_latent_layer = TdLinear(features, latent, spike)
        if dead_weights:
            self.prior = DeadWeights(latent, latent, spike)
            self.posterior = DeadWeights(2 * latent, latent, spike)
        self.decoder_input = TdLinear(latent, features, spike)
        self.decoder = nn.Sequential(*(TdConvTranspose(i, o, spike) for i, o in pairwise(widths[::-1])))
        self.final_layer = nn.Sequential(
            TdConvTranspose(widths[0], widths[0], spike),
            nn.ConvTranspose3d(widths[0], channels, (3, 3, 1), padding=(1, 1, 0)),
        )
        self.membrane_output_layer = Readout(steps)
        self.sample_layer = nn.Sequential(nn.Linear(latent, latent), nn.Sigmoid())

    def encode_spikes(self, images: Tensor) -> Tensor:
        x = images.unsqueeze(-1).repeat(1, 1, 1, 1, self.steps)  # (N, C, H, W, T), the same current at every step
        return self.before_latent_layer(self.encoder(x).flatten(1, 3))  # x_e (N, d, T)

    def encode(self, images: Tensor) -> Tensor:
        return self.encode_spikes(images).mean(-1)  # r_p (N, d)

    def prior_rate(self, z_n: Tensor) -> Tensor:
        return self.sample_layer(z_n)  # r_q (N, d)

    def sample(self, rate: Tensor, u: Tensor) -> Tensor:
        return sample(rate, u, self.sampler_width)  # (N, d), (N, d, T) -> z (N, d, T)

    def decode(self, z: Tensor) -> Tensor:
        x = self.decoder_input(z)  # (N, 4w, T)
        x = self.decoder(x.view(len(x), -1, 2, 2, self.steps))  # (N, 32, H/2, W/2, T)
        return torch.tanh(self.membrane_output_layer(self.final_layer(x)))  # (N, C, H, W)

    def generate(self, z_n: Tensor, u: Tensor) -> Tensor:
        return self.decode(self.sample(self.prior_rate(z_n), u))

    def forward(self, images: Tensor, u: Tensor, z_n: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        r_p = self.encode(images)
        z = self.sample(r_p, u)
        return self.decode(z), r_p, self.prior_rate(z_n), z
