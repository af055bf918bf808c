"""The Efficient Spiking Variational Autoencoder (arXiv 2310.14839): encoder, Poisson latent, decoder, prior.

Tensors are time-first (T, N, *), images (N, C, H, W) in [-1, 1]. Four identities save work and change nothing but
rounding (each is tested against a literal implementation):

- the image is the same at every time step, so the first convolution and its norm run once;
- the readout sum_t c_t y_t and the last convolution are both linear, so the spikes are summed first and the convolution
  runs once, with its bias times sum_t c_t;
- of the encoder's last spikes only the rate is used, so only their count is kept;
- a bias in front of tdBN cancels against the mean, so there is none.
"""

from __future__ import annotations

import dataclasses
import inspect
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from huggingface_hub import PyTorchModelHubMixin, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from torch import Tensor, nn

from esvae_kernels import poisson

from ..checkpoint import load_safetensors
from ..config import ModelConfig, build
from ..errors import InputError
from ..layers import SpikingLayer, at_least_fp32, make_surrogate, neuron_options
from ..prior import MixturePrior, normal

WEIGHTS = "model.safetensors"


class Reconstruction(NamedTuple):
    """What the training forward returns, and the loss needs."""

    images: Tensor  # (N, C, H, W), in [-1, 1]
    rates: Tensor  # r_p (N, d), of the posterior
    prior_rates: Tensor  # r_q (N, d)


class ESVAE(nn.Module, PyTorchModelHubMixin, library_name="esvae", tags=["spiking-neural-network", "vae"]):
    """Encoder, sampler, decoder and prior; see `ModelConfig` for the options."""

    def __init__(self, **options) -> None:
        super().__init__()
        self.config = c = build(ModelConfig, options, "model")
        self._hub_mixin_config = dataclasses.asdict(c)  # all of it: defaults may change after a model is saved
        neuron = neuron_options(c)
        self.steps = c.steps
        widths = c.widths
        self.encoder = nn.ModuleList(
            SpikingLayer(nn.Conv2d(i, o, 3, stride=2, padding=1, bias=False), o, neuron)
            for i, o in zip((c.channels, *widths), widths, strict=False)
        )
        features = widths[-1] * 4  # 2x2 pixels are left
        self.to_latent = SpikingLayer(nn.Linear(features, c.latent, bias=False), c.latent, neuron)
        self.from_latent = SpikingLayer(nn.Linear(c.latent, features, bias=False), features, neuron)
        down = (*widths[::-1], widths[0])
        self.decoder = nn.ModuleList(
            SpikingLayer(_upsample(i, o, wide=len(widths) - k <= c.wide_kernels), o, neuron)
            for k, (i, o) in enumerate(pairwise(down))
        )
        self.to_image = nn.ConvTranspose2d(widths[0], c.channels, 3, padding=1)
        self.bottleneck = nn.Linear(c.latent, c.latent)
        self.mixture = MixturePrior(c.mixture_components, c.latent) if c.prior == "mixture" else None
        self.sampler_surrogate = make_surrogate(c.sampler_surrogate, c.sampler_shape)
        self._readouts: dict[tuple[int, torch.device], Tensor] = {}
        self.to(memory_format=torch.channels_last)

    def readout_weights(self) -> Tensor:
        """c_t of the image's readout, fp64 (T). Their sum is that of the config's T at every `steps` in use."""
        t = torch.arange(self.steps - 1, -1, -1, dtype=torch.float64)
        weights = self.config.readout_decay**t
        full = torch.arange(self.config.steps, dtype=torch.float64)
        return weights * ((self.config.readout_decay**full).sum() / weights.sum())

    def _readout_on(self, device: torch.device) -> Tensor:
        """The same on `device`, brought there once: to bring it there at every call would wait for a GPU."""
        key = (self.steps, device)
        if key not in self._readouts:
            self._readouts[key] = self.readout_weights().to(device)
        return self._readouts[key]

    def encode(self, images: Tensor) -> Tensor:
        """images (N, C, H, W) in [-1, 1] -> firing rates r_p (N, d) in {0, 1/T, .., 1} (eq. 5)."""
        first, *rest = self.encoder
        spikes = first.repeat(images.contiguous(memory_format=torch.channels_last), self.steps)
        for layer in rest:
            spikes = layer(spikes)
        return self.to_latent(spikes.flatten(2), readout="rate")

    def sample(self, rates: Tensor, *, seed: int | Tensor | None = None, sample_ids: Tensor | None = None) -> Tensor:
        """rates (N, d) -> Poisson spikes z (T, N, d) (eq. 7). `sample_ids`: positions in the whole batch."""
        return poisson(rates, self.steps, seed=seed, sample_ids=sample_ids, surrogate=self.sampler_surrogate)

    def decode(self, spikes: Tensor) -> Tensor:
        """spikes z (T, N, d) -> images (N, C, H, W) in [-1, 1]."""
        spikes = self.from_latent(spikes)
        spikes = spikes.unflatten(2, (self.config.widths[-1], 2, 2))
        spikes = spikes.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, spikes.shape[:2])
        weights = self._readout_on(spikes.device)
        *rest, last = self.decoder
        for layer in rest:
            spikes = layer(spikes)
        summed = last(spikes, readout=weights)
        image = F.conv_transpose2d(summed, self.to_image.weight, None, padding=1)
        bias = self.to_image.bias * weights.sum().to(self.to_image.bias.dtype)
        return torch.tanh(image.to(bias.dtype) + bias.view(-1, 1, 1))

    def prior_rates(self, noise: Tensor) -> Tensor:
        """z_n (N, d), standard normal -> rates r_q (N, d) of the bottleneck prior."""
        return torch.sigmoid(self.bottleneck(noise.to(self.bottleneck.weight.dtype)))

    def reconstruct(
        self, images: Tensor, *, seed: int | Tensor | None = None, sample_ids: Tensor | None = None
    ) -> Tensor:
        """images (N, C, H, W) -> their reconstructions, through the sampler."""
        return self.decode(self.sample(self.encode(images), seed=seed, sample_ids=sample_ids))

    def generate(self, n: int, *, seed: int | Tensor, start: int | Tensor = 0, prior: str | None = None) -> Tensor:
        """Images number `start` .. `start + n - 1` of the sequence that `seed` names; (n, C, H, W) in [-1, 1].

        `prior`: "bottleneck" or "mixture"; default: the config's.
        """
        ids = start + torch.arange(n, device=self.to_image.weight.device)
        prior = prior or self.config.prior
        if prior not in ("bottleneck", "mixture"):
            raise InputError(f"prior: got {prior!r}, accepted are bottleneck, mixture")
        if prior == "bottleneck":
            rates = self.prior_rates(normal(ids, self.config.latent, seed))
        elif self.mixture is None:
            raise InputError("prior: got 'mixture', but this model was built without one; accepted is 'bottleneck'")
        else:
            rates = self.mixture(ids, seed)
        return self.decode(self.sample(rates, seed=following(seed), sample_ids=ids))

    def forward(self, images: Tensor, *, seed: int | Tensor, start: int = 0) -> Reconstruction:
        """The training forward. `seed` is this step's: noise of sampler and prior are keyed by it and the position.

        A seed that is an int64 tensor (1) on the images' device is read there, at each replay of a CUDA graph anew.
        `start`: the position of the first image in the whole batch, of which `images` may be a part.
        """
        rates = self.encode(images)
        ids = torch.arange(start, start + len(images), device=images.device)
        noise = normal(ids, self.config.latent, following(seed))
        images = self.decode(self.sample(rates, seed=seed, sample_ids=ids))
        return Reconstruction(images, at_least_fp32(rates), at_least_fp32(self.prior_rates(noise)))

    @classmethod
    def _from_pretrained(cls, *, model_id: str, map_location: str = "cpu", **arguments) -> ESVAE:
        """What `from_pretrained` calls with its own arguments and the options from config.json.

        The hub's own way would take `strict` for itself, fall back to a pickle, keep random weights where the file
        lacks some, and build the default model where config.json is missing.
        """
        download = {k: arguments.pop(k) for k in inspect.signature(hf_hub_download).parameters if k in arguments}
        if not arguments:
            raise InputError(f"{model_id}: no config.json with the model's options")
        with torch.device("meta"):  # the shapes alone: memory is taken once the file's are the same
            expected = cls(**arguments).state_dict()
        path = Path(model_id, WEIGHTS)
        if not Path(model_id).is_dir():
            try:
                path = Path(hf_hub_download(model_id, WEIGHTS, **download))
            except EntryNotFoundError:
                raise InputError(f"{model_id}: no {WEIGHTS}; other formats are not read") from None
        tensors = load_safetensors(path)
        require_same_shapes(tensors, expected, str(path))
        model = cls(**arguments)
        model.load_state_dict(tensors)
        return model.to(map_location).eval()


def following(seed: int | Tensor) -> int | Tensor:
    """Another stream of noise of the same step or sequence."""
    return (seed + 1) & (2**63 - 1)


def require_same_shapes(tensors: dict[str, Tensor], expected: dict[str, Tensor], source: str) -> None:
    """That a state dict from `source` fits, or an InputError that names the first tensor that does not."""
    for name in sorted(tensors.keys() | expected.keys()):
        if name not in tensors or name not in expected or tensors[name].shape != expected[name].shape:
            wanted = f"the shape {tuple(expected[name].shape)}" if name in expected else "no such tensor"
            raise InputError(f"{source}: not the weights of this config: {name!r:.80} should be {wanted}")


def _upsample(inputs: int, outputs: int, wide: bool) -> nn.ConvTranspose2d:
    """Doubles the resolution. A 4x4 kernel covers every output pixel equally often; 3x3 (the paper's) does not."""
    if wide:
        return nn.ConvTranspose2d(inputs, outputs, 4, stride=2, padding=1, bias=False)
    return nn.ConvTranspose2d(inputs, outputs, 3, stride=2, padding=1, output_padding=1, bias=False)
