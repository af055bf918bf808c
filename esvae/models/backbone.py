"""What the spiking models share: convolutions with tdBN and LIF neurons on both sides of a latent.

Tensors are time-first (T, N, *), images (N, C, H, W) in [-1, 1]. Four identities save work and change nothing but
rounding (each is tested against a literal implementation):

- the image is the same at every time step, so the first convolution and its norm run once;
- the readout sum_t c_t y_t and the last convolution are both linear, so the spikes are summed first and the convolution
  runs once, with its bias times sum_t c_t (not with TAID, whose weights depend on every y_t);
- of the encoder's last spikes only the rate is used, so only their count is kept;
- a bias in front of tdBN cancels against the mean, so there is none.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..arguments import check_tensor
from ..layers import SpikingLayer, neuron_options
from .base import Model
from .pfa import PFA
from .taid import TAID


class SpikingDecoder(Model):
    """Decoder and readout; a subclass adds where the latent's spikes come from."""

    def __init__(self, **options) -> None:
        super().__init__(**options)
        self._make_layers()

    def _make_layers(self) -> None:
        c = self.config
        neuron, widths, features = neuron_options(c), c.widths, c.features
        self.from_latent = SpikingLayer(nn.Linear(c.latent, features, bias=False), features, neuron)
        down = (*widths[::-1], widths[0])
        self.decoder = nn.ModuleList(
            SpikingLayer(_upsample(i, o, c.upsampling, wide=len(widths) - k <= c.wide_kernels), o, neuron)
            for k, (i, o) in enumerate(pairwise(down))
        )
        self.to_image = nn.ConvTranspose2d(widths[0], c.channels, 3, padding=1)
        learnt = c.readout == "learnt"
        start = self._decaying(c.steps).to(torch.get_default_dtype())
        # Of mean 1, so that a step of the optimizer is as small a part of it at every T.
        self.readout = nn.Parameter(start / start.mean()) if learnt else None
        self.taid = TAID(c.steps) if c.readout == "taid" else None
        self._readouts: dict[tuple[int, torch.device], Tensor] = {}

    def _decaying(self, steps: int) -> Tensor:
        """readout_decay^(steps-1-t), fp64 (steps)."""
        return self.config.readout_decay ** torch.arange(steps - 1, -1, -1, dtype=torch.float64)

    def readout_weights(self) -> Tensor:
        """c_t of the image's readout, (T): fp64, or what is learnt. Their sum is the same at every `steps`: the fixed
        weights of fewer steps are the last ones, scaled; of learnt ones each stands for an equal part of the time."""
        if self.readout is not None:
            parts = _parts_of_time(self.steps, len(self.readout), self.readout)
            return (parts * self.readout).mean(1)  # not a matrix product, which autocast would round
        full, weights = self._decaying(self.config.steps), self._decaying(self.steps)
        return weights * (full.sum() / weights.sum())

    def _readout_on(self, device: torch.device) -> Tensor:
        """The same on `device`, brought there once: to bring it there at every call would wait for a GPU."""
        if self.readout is not None:
            return self.readout_weights()
        key = (self.steps, device)
        if key not in self._readouts:
            self._readouts[key] = self.readout_weights().to(device)
        return self._readouts[key]

    def prior_spikes(
        self, n: int, *, seed: int | Tensor | None = None, start: int | Tensor = 0, prior: str | None = None
    ) -> Tensor:
        """Spikes z_q (T, n, d), what `generate` decodes; the arguments are those of `generate`."""
        raise NotImplementedError

    def generate(
        self, n: int, *, seed: int | Tensor | None = None, start: int | Tensor = 0, prior: str | None = None
    ) -> Tensor:
        return self._decoded(self.prior_spikes(n, seed=seed, start=start, prior=prior))

    def decode(self, spikes: Tensor) -> Tensor:
        """spikes z (T, N, d), of the weights' dtype, values in [0, 1] -> images (N, C, H, W) in [-1, 1].

        Raises:
            InputError: they are of another shape, T, dtype or device, or have values outside.
        """
        check_tensor("spikes", spikes, (self.steps, "N", self.config.latent), self.to_image.weight, 0, 1)
        return self._decoded(spikes)

    def _decoded(self, spikes: Tensor) -> Tensor:
        """`decode` of spikes that the model drew itself."""
        spikes = self.from_latent(spikes)
        spikes = spikes.unflatten(2, (self.config.widths[-1], 2, 2))
        spikes = spikes.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, spikes.shape[:2])
        *rest, last = self.decoder
        for layer in rest:
            spikes = layer(spikes)
        if self.taid is not None:
            spikes = last(spikes)
            images = self.to_image(spikes.flatten(0, 1)).unflatten(0, spikes.shape[:2])
            return torch.tanh(self.taid(images.to(self.to_image.bias.dtype)))
        weights = self._readout_on(spikes.device)
        summed = last(spikes, readout=weights)
        image = F.conv_transpose2d(summed, self.to_image.weight, None, padding=1)
        bias = self.to_image.bias * weights.sum().to(self.to_image.bias.dtype)
        return torch.tanh(image.to(bias.dtype) + bias.view(-1, 1, 1))


class Backbone(SpikingDecoder):
    """Encoder, decoder and readout; a subclass adds what lies between them."""

    def _make_layers(self) -> None:
        c = self.config
        neuron = neuron_options(c)
        self.encoder = nn.ModuleList(
            SpikingLayer(nn.Conv2d(i, o, 3, stride=2, padding=1, bias=False), o, neuron)
            for i, o in zip((c.channels, *c.widths), c.widths, strict=False)
        )
        self.to_latent = SpikingLayer(nn.Linear(c.features, c.latent, bias=False), c.latent, neuron)
        super()._make_layers()
        self.attention = PFA(c.channels, c.steps) if c.attention == "pfa" else None

    def encode(self, images: Tensor) -> Tensor:
        """images (N, C, H, W) in [-1, 1], of the weights' dtype -> the encoder's firing rates r_p (N, d) in
        {0, 1/T, .., 1} (eq. 5).

        Raises:
            InputError: they are of another shape, dtype or device, or have values outside.
        """
        return self.latent(images, readout="mean")

    def latent(self, images: Tensor, readout: str | None = None) -> Tensor:
        """images (N, C, H, W) in [-1, 1] -> the encoder's spikes x_e (T, N, d), or with readout "mean" their mean over
        time (N, d)."""
        self.check_images(images)
        if self.attention is not None:
            images = self.attention(images)
        first, *rest = self.encoder
        spikes = first.repeat(images.contiguous(memory_format=torch.channels_last), self.steps)
        for layer in rest:
            spikes = layer(spikes)
        return self.to_latent(spikes.flatten(2), readout=readout)

    def latent_spikes(
        self, images: Tensor, *, seed: int | Tensor | None = None, sample_ids: Tensor | None = None
    ) -> Tensor:
        """images (N, C, H, W) in [-1, 1] -> spikes z_p (T, N, d) of the posterior: what the decoder is given.

        Args:
            seed: as in `generate`.
            sample_ids: int64 (N), the images' positions in the whole batch, which noise is keyed by; default: 0, 1, ..

        Raises:
            InputError: an argument is none of these.
        """
        raise NotImplementedError

    def reconstruct(
        self, images: Tensor, *, seed: int | Tensor | None = None, sample_ids: Tensor | None = None
    ) -> Tensor:
        """images (N, C, H, W) in [-1, 1] -> their reconstructions, by way of the latent spikes; arguments and errors
        are those of `latent_spikes`."""
        return self._decoded(self.latent_spikes(images, seed=seed, sample_ids=sample_ids))


def _upsample(inputs: int, outputs: int, how: str, wide: bool) -> nn.Module:
    """Doubles the resolution. A 4x4 kernel covers every output pixel equally often; 3x3 (the paper's) does not."""
    if how == "resize":
        return nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(inputs, outputs, 3, padding=1, bias=False))
    if wide:
        return nn.ConvTranspose2d(inputs, outputs, 4, stride=2, padding=1, bias=False)
    return nn.ConvTranspose2d(inputs, outputs, 3, stride=2, padding=1, output_padding=1, bias=False)


def _parts_of_time(rows: int, columns: int, like: Tensor) -> Tensor:
    """(rows, columns): how much of each of `columns` equal parts of the time lies in each of `rows`."""
    row = torch.arange(rows, device=like.device, dtype=like.dtype)[:, None] * (columns / rows)
    column = torch.arange(columns, device=like.device, dtype=like.dtype)
    return (torch.minimum(row + columns / rows, column + 1) - torch.maximum(row, column)).clamp(min=0)
