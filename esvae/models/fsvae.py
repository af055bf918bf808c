"""The Fully Spiking Variational Autoencoder (FSVAE): posterior and prior are spiking networks that run over time.

Both are given the latent spikes before: o_t = f_q([x_t ; z_{t-1}]) of the encoder's spikes x for the posterior,
o_t = f_p(z_{t-1}) for the prior, z_0 = 0, o_t in {0,1}^(d x k). A latent spike is one of its k branches, at random:
z_t[c] = o_t[c, J]; their mean pi_t[c] is the probability that it fires.

In training mode tdBN's statistics are those of all steps at once, so that a step of the network is a pass over all
steps up to it: z_1 .. z_{T-1} are unrolled on a growing prefix without gradient, then one pass over all T steps has it,
with the same J. The passes over prefixes change the running statistics too, as in the published code. In evaluation
mode potentials are kept from step to step, and there is one pass.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from esvae_kernels.ops.poisson.reference import uniforms

from ..arguments import ids_of, seed_of
from ..config import ModelConfig, TrainConfig
from ..layers import SpikingLayer, at_least_fp32, neuron_options
from ..losses import bernoulli_divergence, trace_mmd
from ..noise import Stream, normal
from .backbone import Backbone

FIRST_SCHEDULED = 5  # the first step, counted from 0, whose spikes scheduled sampling may replace
CHANCES = (0.1, 0.3)  # that it does, at the beginning and at the end of the training


class Distributions(NamedTuple):
    """What the training forward returns, and the loss needs."""

    images: Tensor  # (N, C, H, W), in [-1, 1]
    posterior: Tensor  # pi_q (T, N, d)
    prior: Tensor  # pi_p (T, N, d)


class FSVAE(Backbone):
    """Encoder, posterior and prior networks, decoder; see `ModelConfig` for the options."""

    kind = "fsvae"
    priors = ("autoregressive",)

    def __init__(self, **options) -> None:
        super().__init__(**options)
        c = self.config
        self.posterior_network = LatentNetwork(2 * c.latent, c)
        self.prior_network = LatentNetwork(c.latent, c)
        self.to(memory_format=torch.channels_last)

    def latent_spikes(
        self, images: Tensor, *, seed: int | Tensor | None = None, sample_ids: Tensor | None = None
    ) -> Tensor:
        spikes = self.latent(images)
        ids = ids_of(sample_ids, len(images), images.device)
        chosen = self._chosen(ids, seed_of(seed), Stream.POSTERIOR)
        if self.training:
            return self._posterior(spikes, chosen)[0]
        return self.posterior_network.unroll(chosen, spikes)[1:]

    def prior_spikes(
        self, n: int, *, seed: int | Tensor | None = None, start: int | Tensor = 0, prior: str | None = None
    ) -> Tensor:
        self.chosen_prior(prior)
        ids = self.drawn_ids(n, start)
        return self.prior_network.unroll(self._chosen(ids, seed_of(seed), Stream.PRIOR_SPIKES))[1:]

    def forward(
        self, images: Tensor, *, seed: int | Tensor, start: int = 0, progress: float | Tensor = 0.0
    ) -> Distributions:
        """The training forward. All noise is keyed by this step's `seed`, and J and n by the image's position too.

        Seed and progress may be tensors on the images' device, which a CUDA graph reads at each replay.
        `start`: the position of the first image in the whole batch. `progress`: the share of the epochs that is over,
        which scheduled sampling becomes more frequent with.
        """
        ids, seed = torch.arange(start, start + len(images), device=images.device), seed_of(seed)
        z, fired = self._posterior(self.latent(images), self._chosen(ids, seed, Stream.POSTERIOR))
        before = self._scheduled(z.detach(), ids, seed, progress)
        expected, _ = self.prior_network(before)
        return Distributions(self._decoded(z), probabilities(fired), probabilities(expected))

    def loss(self, out: Distributions, images: Tensor, config: TrainConfig) -> dict[str, Tensor]:
        """MSE(x, x_hat) + the weighted MMD of the traces, or divergence, of pi_q and pi_p."""
        mse = F.mse_loss(out.images.float(), images)
        if config.latent_loss == "kl":
            name, weight, distance = "kl", config.kl_weight, bernoulli_divergence(out.posterior, out.prior)
        else:
            name, weight, distance = "mmd", config.mmd_weight, trace_mmd(out.posterior, out.prior)
        return {"loss": mse + weight * distance, "mse": mse, name: distance, "rate": out.posterior.mean()}

    def _chosen(self, ids: Tensor, seed: int | Tensor, stream: Stream) -> Tensor:
        """J (T, N, d), uniform in 0 .. k-1."""
        u = uniforms(ids, self.config.latent, self.steps, seed, torch.float64, stream)
        return (u * self.config.branches).long()

    def _posterior(self, spikes: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """x_e (T, N, d) -> z_p (T, N, d) and the outputs (T, N, d, k) that it is drawn from, both with gradient."""
        with torch.no_grad():
            before = self.posterior_network.unroll(chosen[:-1], spikes)
        outputs, _ = self.posterior_network(torch.cat([spikes, before], 2))
        return choose(outputs, chosen), outputs

    @torch.no_grad()
    def _scheduled(self, z: Tensor, ids: Tensor, seed: int | Tensor, progress: float | Tensor) -> Tensor:
        """z_0 .. z_{T-1} (T, N, d), the prior's input: the posterior's spikes z, of which scheduled sampling replaces
        those of some steps, for the whole batch, by what the prior makes of the ones before: [pi_p + 1e-3 n > 1/2]."""
        everyone = torch.zeros_like(ids[:1]) if isinstance(seed, Tensor) else torch.zeros(1, dtype=torch.int64)
        chances = uniforms(everyone, 1, len(z), seed, torch.float64, Stream.SCHEDULE).flatten()
        replaced = chances < CHANCES[0] + (CHANCES[1] - CHANCES[0]) * progress
        before = [torch.zeros_like(z[0])]
        for t in range(len(z) - 1):
            spikes, stream = z[t], Stream.PREDICTION + t
            if t >= FIRST_SCHEDULED:
                if isinstance(seed, Tensor):  # in a graph nothing can depend on it but values
                    spikes = torch.where(replaced[t], self._predicted(before, ids, seed, stream, replaced[t]), spikes)
                elif replaced[t]:
                    spikes = self._predicted(before, ids, seed, stream)
            before.append(spikes)
        return torch.stack(before)

    def _predicted(
        self, before: list[Tensor], ids: Tensor, seed: int | Tensor, stream: int, counts: Tensor | None = None
    ) -> Tensor:
        """The next spikes (N, d) by the prior; its running statistics change only where `counts` is true."""
        kept = [buffer.clone() for buffer in self.prior_network.buffers()] if counts is not None else []
        outputs, _ = self.prior_network(torch.stack(before))
        for buffer, old in zip(self.prior_network.buffers(), kept, strict=False):
            buffer.copy_(torch.where(counts, buffer, old))
        noise = normal(ids, self.config.latent, seed, stream)
        return (probabilities(outputs[-1]) + 1e-3 * noise > 0.5).to(before[0].dtype)


class LatentNetwork(nn.Module):
    """`inputs` -> 2d -> 4d -> k d spikes: f_q or f_p."""

    def __init__(self, inputs: int, config: ModelConfig) -> None:
        super().__init__()
        d, k = config.latent, config.branches
        neuron = neuron_options(config) | {"scale": 2 * config.threshold, "return_state": True}
        sizes = (inputs, 2 * d, 4 * d, k * d)
        self.layers = nn.ModuleList(SpikingLayer(nn.Linear(i, o, bias=False), o, neuron) for i, o in pairwise(sizes))
        self.shape = (d, k)

    def forward(self, x: Tensor, potentials: list[Tensor] | None = None) -> tuple[Tensor, list[Tensor]]:
        """x (T, N, inputs) -> o (T, N, d, k), and the layers' last potentials, from which the next steps go on."""
        after = []
        for layer, v in zip(self.layers, potentials or [None] * len(self.layers), strict=True):
            x, v = layer(x, v=v)
            after.append(v)
        return x.unflatten(2, self.shape), after

    def unroll(self, chosen: Tensor, given: Tensor | None = None) -> Tensor:
        """z_0 .. z_S (S + 1, N, d) for the branches J (S, N, d), from `given` (at least S, N, d) and the z before."""
        like = self.layers[0].transform.weight if given is None else given
        z = [torch.zeros(chosen.shape[1:], dtype=like.dtype, device=like.device)]
        potentials = None
        for t in range(len(chosen)):
            past = slice(0, t + 1) if self.training else slice(t, t + 1)
            x = torch.stack(z[past])
            x = x if given is None else torch.cat([given[past], x], 2)
            outputs, potentials = self(x, None if self.training else potentials)
            z.append(choose(outputs[-1], chosen[t]))
        return torch.stack(z)


def choose(outputs: Tensor, chosen: Tensor) -> Tensor:
    """o (*, d, k), J (*, d) -> o[.., J] (*, d)."""
    return outputs.gather(-1, chosen.unsqueeze(-1)).squeeze(-1)


def probabilities(outputs: Tensor) -> Tensor:
    """o (*, d, k) -> pi (*, d), at least fp32."""
    return at_least_fp32(outputs).mean(-1)
