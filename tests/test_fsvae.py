"""FSVAE against the specification written out literally; its noise, and its step as a CUDA graph would replay it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from literal import LIF, THRESHOLD, LiteralESVAE, TdLinear, lif
from model_helpers import layers, random_images
from recording import Recording
from torch import Tensor, nn

from esvae.config import TrainConfig
from esvae.losses import bernoulli_divergence, trace_mmd
from esvae.models import FSVAE
from esvae.models.fsvae import FIRST_SCHEDULED
from esvae.noise import Stream, normal
from esvae_kernels.nn import BNLIF
from esvae_kernels.ops.poisson.reference import uniforms

N, D, K, T = 3, 3, 5, 8
SEED = 12  # with it scheduled sampling takes place in step 5 of 5 and 6, at a chance of .3
EXACT = {"rtol": 1e-9, "atol": 1e-11}


class LiteralFSVAE(nn.Module):
    """Time is the last axis, (N, C, T); every pass is over all steps so far, and nothing is kept between passes."""

    def __init__(self, steps: int = T) -> None:
        super().__init__()
        self.images = LiteralESVAE(1, 32, D, steps, "paper")
        self.posterior, self.prior = self.network(2 * D), self.network(D)

    @staticmethod
    def network(inputs: int) -> nn.Sequential:
        spike = partial(lif, **LIF["paper"])
        return nn.Sequential(
            *(TdLinear(i, o, spike, 2 * THRESHOLD) for i, o in pairwise((inputs, 2 * D, 4 * D, K * D)))
        )

    @staticmethod
    def outputs(network: nn.Sequential, inputs: Tensor) -> Tensor:
        return network(inputs).view(len(inputs), D, K, inputs.shape[-1])  # o (N, d, k, T)

    @staticmethod
    def chosen(o: Tensor, j: Tensor) -> Tensor:
        """o (N, d, k) and J (N, d) -> z (N, d)."""
        return torch.stack([torch.stack([o[n, c, int(j[n, c])] for c in range(D)]) for n in range(len(o))])

    def sample(self, network: nn.Sequential, j: Tensor, steps: int, x: Tensor | None = None) -> list[Tensor]:
        """z_0 .. z_steps."""
        z = [torch.zeros(len(j), D, dtype=torch.float64)]
        for t in range(steps):
            inputs = torch.stack(z, -1)
            if x is not None:
                inputs = torch.cat([x[..., : t + 1], inputs], 1)
            z.append(self.chosen(self.outputs(network, inputs)[..., t], j[..., t]))
        return z

    def encoded(self, images: Tensor, j: Tensor) -> tuple[Tensor, Tensor]:
        """z_p (N, d, T) and o_q (N, d, k, T)."""
        x = self.images.encode_spikes(images)
        with torch.no_grad():
            before = torch.stack(self.sample(self.posterior, j, x.shape[-1] - 1, x), -1)
        o = self.outputs(self.posterior, torch.cat([x, before], 1))
        return torch.stack([self.chosen(o[..., t], j[..., t]) for t in range(x.shape[-1])], -1), o

    def forward(self, images: Tensor, j: Tensor, replaced: list[bool], n: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Images, pi_q and pi_p (N, d, T), for J and n (N, d, T)."""
        z, o = self.encoded(images, j)
        with torch.no_grad():
            before = [torch.zeros_like(z[..., 0])]
            for t in range(z.shape[-1] - 1):
                if t >= 5 and replaced[t]:
                    pi = self.outputs(self.prior, torch.stack(before, -1))[..., -1].mean(-1)
                    before.append((pi + 1e-3 * n[..., t] > 0.5).double())
                else:
                    before.append(z[..., t].detach())
        p = self.outputs(self.prior, torch.stack(before, -1))
        return self.images.decode(z), o.mean(2), p.mean(2)


def psp(x: Tensor) -> Tensor:
    """(N, d, T)"""
    trace, traces = torch.zeros_like(x[..., 0]), []
    for t in range(x.shape[-1]):
        trace = trace + (x[..., t] - trace) / 2
        traces.append(trace)
    return torch.stack(traces, -1)


def literal_loss(images: Tensor, found: Tensor, q: Tensor, p: Tensor, how: str) -> Tensor:
    mse = ((images - found) ** 2).mean()
    if how == "mmd":
        return mse + ((psp(q) - psp(p)) ** 2).mean()
    kl = q * torch.log((q + 1e-2) / (p + 1e-2)) + (1 - q) * torch.log((1 - q + 1e-2) / (1 - p + 1e-2))
    return mse + 1e-4 * kl.sum((1, 2)).mean()


def noise(
    ids: Tensor, seed: int, steps: int, progress: float, stream: Stream = Stream.POSTERIOR
) -> tuple[Tensor, list[bool], Tensor]:
    """J (N, d, T), whether a step is replaced (T), n (N, d, T)."""
    j = (uniforms(ids, D, steps, seed, torch.float64, stream) * K).floor().permute(1, 2, 0)
    chance = uniforms(torch.tensor([0]), 1, steps, seed, torch.float64, Stream.SCHEDULE).flatten()
    n = torch.stack([normal(ids, D, seed, Stream.PREDICTION + t) for t in range(steps)], -1)
    return j, (chance < 0.1 + 0.2 * progress).tolist(), n.double()


def model(**options) -> FSVAE:
    """fp64, in training mode, with random tdBN and the running statistics of a batch."""
    torch.manual_seed(0)
    made = FSVAE(**{"latent": D, "steps": T, "branches": K} | options).double()
    for module in made.modules():
        if isinstance(module, BNLIF):
            module.weight.data.uniform_(0.6, 1.4)
            module.bias.data.uniform_(0, 0.2)
            module.momentum = 1.0
    made(random_images(N, 1, 32), seed=0)
    for module in made.modules():
        if isinstance(module, BNLIF):
            module.momentum = 0.1
    return made


def pairs(literal: LiteralFSVAE, ours: FSVAE, what: str) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Every parameter (`data`), gradient (`grad`) or running statistic (`buffers`) of both."""
    every = list(layers(literal.images, ours))
    for name in ("posterior", "prior"):
        networks = zip(literal.get_submodule(name), ours.get_submodule(f"{name}_network").layers, strict=True)
        every += [(f"{name}.{i}", a, b) for i, (a, b) in enumerate(networks)]
    for name, a, b in every:
        if what == "buffers":
            yield f"{name}.mean", a.bn.running_mean, b.neurons.running_mean
            yield f"{name}.var", a.bn.running_var, b.neurons.running_var
            continue
        weight = getattr(a.weight, what)
        yield f"{name}.weight", weight.squeeze(-1) if weight.dim() == 5 else weight, getattr(b.transform.weight, what)
        for part in ("weight", "bias"):
            own = getattr(b.neurons, part)
            yield f"{name}.bn.{part}", getattr(getattr(a.bn, part), what), getattr(own, what)
    if what != "buffers":
        last = literal.images.final_layer[1]
        yield "to_image.weight", getattr(last.weight, what).squeeze(-1), getattr(ours.to_image.weight, what)
        yield "to_image.bias", getattr(last.bias, what), getattr(ours.to_image.bias, what)


def twin(ours: FSVAE) -> LiteralFSVAE:
    literal = LiteralFSVAE(ours.steps).double().train(ours.training)
    coefficients = 0.8 ** torch.arange(ours.steps - 1, -1, -1, dtype=torch.float64)
    literal.images.membrane_output_layer.coef.copy_(coefficients.view(1, 1, 1, 1, -1))
    with torch.no_grad():
        for name, parameter in literal.named_parameters():
            if name.endswith("bias") and ".bn." not in name:
                parameter.zero_()
        for what in ("data", "buffers"):
            for _, a, b in pairs(literal, ours, what):
                a.copy_(b)
    return literal


@pytest.mark.parametrize(("how", "progress"), [("mmd", 1.0), ("mmd", 0.0), ("kl", 1.0)])
def test_training_step_is_the_literal_one(how: str, progress: float) -> None:
    """Images, probabilities, loss, every gradient and every running statistic, that of the passes over prefixes too."""
    ours, images, start = model(), random_images(N, 1, 32), 3
    literal = twin(ours)
    j, replaced, n = noise(torch.arange(start, start + N), SEED, T, progress)
    assert replaced[FIRST_SCHEDULED : T - 1] == ([True, False] if progress else [False, False])
    expected, q, p = literal(images, j, replaced, n)
    out = ours(images, seed=SEED, start=start, progress=progress)
    torch.testing.assert_close(out.images, expected, **EXACT)
    for a, b in ((out.posterior, q), (out.prior, p)):
        torch.testing.assert_close(a.permute(1, 2, 0), b, **EXACT)
        assert 0.05 < b.mean() < 0.95
    loss = ours.loss(out, images, TrainConfig(latent_loss=how, mmd_weight=1.0, kl_weight=1e-4))["loss"]
    wanted = literal_loss(images, expected, q, p, how)
    torch.testing.assert_close(loss, wanted, rtol=1e-6, atol=0)  # the mean squared error is of fp32
    loss.backward()
    wanted.backward()
    for name, a, b in pairs(literal, ours, "grad"):
        assert a.any(), name
        torch.testing.assert_close(b, a, rtol=1e-6, atol=1e-8, msg=name)
    for name, a, b in pairs(literal, ours, "buffers"):
        torch.testing.assert_close(b, a, **EXACT, msg=name)


def test_evaluation_is_the_literal_one() -> None:
    """Potentials that are kept instead of passes over prefixes; both networks."""
    ours = model().eval()
    literal, images, ids = twin(ours), random_images(N, 1, 32), torch.tensor([7, 0, 2])
    with torch.no_grad():
        j, _, _ = noise(ids, SEED, T, 0.0)
        z, _ = literal.encoded(images, j)
        assert 0 < z.mean() < 1
        found = ours.latent_spikes(images, seed=SEED, sample_ids=ids)
        assert torch.equal(found.permute(1, 2, 0), z)
        again = ours.reconstruct(images, seed=SEED, sample_ids=ids)
        torch.testing.assert_close(again, literal.images.decode(z), **EXACT)
        j, _, _ = noise(torch.arange(5, 5 + N), SEED, T, 0.0, Stream.PRIOR_SPIKES)
        drawn = torch.stack(literal.sample(literal.prior, j, T)[1:], -1)
        assert 0 < drawn.mean() < 1
        assert torch.equal(ours.prior_spikes(N, seed=SEED, start=5).permute(1, 2, 0), drawn)
        torch.testing.assert_close(ours.generate(N, seed=SEED, start=5), literal.images.decode(drawn), **EXACT)
        torch.testing.assert_close(ours.encode(images), literal.images.encode(images), **EXACT)


@pytest.mark.parametrize("steps", [1, 3])
def test_few_steps(steps: int) -> None:
    ours, images = model(), random_images(N, 1, 32)
    ours.steps = steps
    out = ours(images, seed=1, progress=1.0)
    assert out.posterior.shape == out.prior.shape == (steps, N, D)
    assert ours.eval().generate(2, seed=0).shape == (2, 1, 32, 32)


def test_noise_is_keyed_by_seed_and_position() -> None:
    ours, images = model().eval(), random_images(N, 1, 32)
    with torch.no_grad():
        whole = ours.latent_spikes(images, seed=3)
        part = ours.latent_spikes(images[2:], seed=3, sample_ids=torch.tensor([2]))
        assert torch.equal(part, whole[:, 2:])
        assert not torch.equal(ours.latent_spikes(images, seed=4), whole)
        assert torch.equal(ours.prior_spikes(3, seed=3, start=2), ours.prior_spikes(5, seed=3)[:, 2:])


@pytest.mark.parametrize(("progress", "chance"), [(0.0, 0.1), (0.5, 0.2), (1.0, 0.3)])
def test_scheduled_sampling_becomes_more_frequent(progress: float, chance: float) -> None:
    net, steps = FSVAE(latent=1, steps=300, branches=1), []
    net.prior_network.register_forward_hook(lambda _, inputs, __: steps.append(len(inputs[0])))
    net._scheduled(torch.zeros(300, 1, 1), torch.arange(1), SEED, progress)
    assert min(steps) > FIRST_SCHEDULED
    assert len(steps) / 294 == pytest.approx(chance, abs=0.05)


@pytest.mark.parametrize("progress", [0.0, 1.0])
def test_a_step_is_replayed(progress: float) -> None:
    """Seed and progress in tensors, as in a CUDA graph: the same results and running statistics as of numbers."""
    plain, recorded, images = model(), model(), random_images(N, 1, 32)
    number, share = torch.tensor([1]), torch.tensor(0.5, dtype=torch.float64)
    recording = Recording(lambda s, p: recorded(images, seed=s, progress=p), number, share)
    recorded.load_state_dict(plain.state_dict())
    for seed in (SEED, 3):
        number.fill_(seed), share.fill_(progress)
        for a, b in zip(recording.replay(), plain(images, seed=seed, progress=progress), strict=True):
            torch.testing.assert_close(a, b, **EXACT)
        for (name, a), b in zip(recorded.named_buffers(), plain.buffers(), strict=True):
            torch.testing.assert_close(a, b, **EXACT, msg=name)


def test_bfloat16_under_autocast() -> None:
    ours, images = model().float(), random_images(N, 1, 32).float()
    with torch.autocast("cpu", torch.bfloat16):
        out = ours(images, seed=SEED, progress=1.0)
    assert all(part.dtype == torch.float32 for part in out)
    ours.loss(out, images, TrainConfig())["loss"].backward()
    for name, parameter in ours.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_losses_are_zero_for_equal_probabilities_and_positive_otherwise() -> None:
    p, q = torch.rand(T, N, D), torch.rand(T, N, D)
    assert trace_mmd(p, p) == 0
    assert trace_mmd(p, q) > 0
    assert F.l1_loss(bernoulli_divergence(p, p), torch.zeros(())) < 1e-6
    assert bernoulli_divergence(p, q) > 0
