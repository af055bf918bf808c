"""The spiking GAN: its critic against a literal one, spectral norms, the losses of a step, the two optimizers."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from literal import LIF, lif
from model_helpers import random_images
from torch import Tensor

from esvae import data, train
from esvae.config import preset
from esvae.models import GAN
from esvae.noise import Stream, normal
from esvae.runs import Run

N, T = 4, 3


def model(**options) -> GAN:
    torch.manual_seed(0)
    return GAN(**{"latent": 5, "steps": T} | options).double()


def spectral_norm(weight: Tensor) -> float:
    return float(torch.linalg.matrix_norm(weight.detach().flatten(1), 2))


@pytest.mark.parametrize("channels", [1, 3])
def test_the_critic_is_the_literal_one(channels: int) -> None:
    """Convolutions, spikes and rates at every time step; each image alone."""
    net, images = model(channels=channels).eval(), random_images(N, channels, 32)
    spike = partial(lif, **LIF["paper"])
    x = images.unsqueeze(-1).expand(*images.shape, T)
    for convolution in net.critic.convolutions:
        x = spike(torch.stack([F.conv2d(s, convolution.weight, convolution.bias, 2, 1) for s in x.unbind(-1)], -1))
    rates = x.flatten(1, 3).mean(-1)
    assert 0 < rates.mean() < 1
    expected = rates @ net.critic.to_score.weight.squeeze(0) + net.critic.to_score.bias
    torch.testing.assert_close(net.criticise(images), expected, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(net.criticise(images[2:3]), expected[2:3], rtol=1e-9, atol=1e-11)


def test_all_maps_of_the_critic_have_spectral_norm_1() -> None:
    net = model()
    for _ in range(30):  # a step of the power iteration each
        net.criticise(random_images(1, 1, 32))
    for layer in (*net.critic.convolutions, net.critic.to_score):
        original = layer.parametrizations.weight.original
        assert spectral_norm(layer.weight) == pytest.approx(1, abs=0.02)
        torch.testing.assert_close(layer.weight, original / spectral_norm(original), rtol=0.02, atol=1e-6)


def trainer(tmp_path: Path, **options) -> train.Trainer:
    config = preset("gan", "digits")
    small = dataclasses.replace(config.model, latent=5, steps=T)
    rates = dataclasses.replace(config.train, **{"batch_size": 8, "ema": 0.0, "precision": "fp32"} | options)
    config = dataclasses.replace(config, model=small, train=rates)
    pixels = data.load("digits", "train").pixels[:64]
    sets = {split: data.ImageSet("digits", pixels, flip=False) for split in ("train", "test")}
    made = train.trainer_of(config)(config, Run(tmp_path, {}), sets, torch.device("cpu"))
    made.model.train()
    return made


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_the_losses_of_a_step(noise: float, tmp_path: Path) -> None:
    """The hinge loss of the critic before its step, the generator's by the critic behind it, of the same images and
    the same noise on them."""
    made, literal = (trainer(tmp_path, critic_noise=noise) for _ in range(2))
    images = data.normalize(made.sets["train"].pixels[:8])
    seed = train.step_seed(0, 0)
    found = made._step(images)

    fakes = literal.model.generate(8, seed=seed)
    on_real, on_fakes = (
        noise * normal(torch.arange(8), 32 * 32, seed, stream).view(8, 1, 32, 32)
        for stream in (Stream.CRITIC_IMAGES, Stream.CRITIC_FAKES)
    )
    assert abs(float(torch.corrcoef(torch.stack([on_real.flatten(), on_fakes.flatten()]))[0, 1])) < 0.05 or not noise
    images, fakes = images + on_real, fakes + on_fakes
    real, fake = literal.model.criticise(torch.cat([images, fakes.detach()])).chunk(2)
    critic_loss = (1 - real).clamp(min=0).mean() + (1 + fake).clamp(min=0).mean()
    assert found["loss"] == critic_loss
    critic_loss.backward()
    assert all(p.grad is None for n, p in literal.model.named_parameters() if not n.startswith("critic."))
    literal.optimizers["critic_optimizer"].step()
    generator_loss = -literal.model.criticise(fakes).mean()
    assert found["generator_loss"] == generator_loss
    generator_loss.backward()
    literal.optimizer.step()
    for (name, a), b in zip(made.model.named_parameters(), literal.model.parameters(), strict=True):
        assert torch.equal(a, b), name


def test_each_optimizer_moves_its_own(tmp_path: Path) -> None:
    made = trainer(tmp_path, lr=1e-2, critic_lr=1e-30)
    before = {name: p.detach().clone() for name, p in made.model.named_parameters()}
    made._step(data.normalize(made.sets["train"].pixels[:8]))
    for name, parameter in made.model.named_parameters():
        assert torch.equal(parameter, before[name]) == name.startswith("critic."), name
        assert parameter.requires_grad


@pytest.mark.parametrize(("rate", "loss"), [("critic_lr", "loss"), ("lr", "generator_loss")])
def test_each_of_the_two_learns(rate: str, loss: str, tmp_path: Path) -> None:
    """While the other stays as it is: the critic to tell real digits from images, the generator to please it."""
    made = trainer(tmp_path, **{"lr": 1e-30, "critic_lr": 1e-30, rate: 2e-3})
    images = data.normalize(made.sets["train"].pixels[:8])
    losses = [float(made._step(images)[loss]) for _ in range(8)]
    assert max(losses[-2:]) < losses[0] - 0.1
