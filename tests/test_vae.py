"""The VAE without spikes: its network against torch's functions, its divergence against torch's, its noise."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from model_helpers import random_images
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from esvae.config import TrainConfig, preset
from esvae.losses import gaussian_divergence
from esvae.models import VAE
from esvae.noise import Stream, normal

N, D = 4, 6


def model(**options) -> VAE:
    torch.manual_seed(0)
    made = VAE(latent=D, **options).double()
    made(random_images(N, made.config.channels, made.config.size), seed=0)
    return made


def layer(x: Tensor, block: torch.nn.Sequential, convolve) -> Tensor:
    transform, norm, _ = block
    y = convolve(x, transform.weight)
    mean, var = y.mean((0, 2, 3), keepdim=True), y.var((0, 2, 3), unbiased=False, keepdim=True)
    y = (y - mean) / (var + 1e-5).sqrt() * norm.weight.view(-1, 1, 1) + norm.bias.view(-1, 1, 1)
    return torch.where(y > 0, y, 0.01 * y)


@pytest.mark.parametrize(("channels", "size"), [(1, 32), (3, 64)])
def test_a_training_step_is_its_formulas(channels: int, size: int) -> None:
    net, images = model(channels=channels, size=size), random_images(N, channels, size)
    x = images
    for block in net.encoder[:-1]:
        x = layer(x, block, lambda x, w: F.conv2d(x, w, stride=2, padding=1))
    assert x.shape == (N, {32: 256, 64: 512}[size], 2, 2)
    mean = x.flatten(1) @ net.to_mean.weight.T + net.to_mean.bias
    log_variance = x.flatten(1) @ net.to_log_variance.weight.T + net.to_log_variance.bias
    z = mean + log_variance.exp().sqrt() * normal(torch.arange(5, 5 + N), D, 7, Stream.POSTERIOR)
    y = F.linear(z, net.from_latent[0].weight, net.from_latent[0].bias).view(x.shape)
    for block in net.decoder:
        y = layer(y, block, lambda y, w: F.conv_transpose2d(y, w, stride=2, padding=1, output_padding=1))
    expected = torch.tanh(F.conv_transpose2d(y, net.to_image.weight, net.to_image.bias, padding=1))
    out = net(images, seed=7, start=5)
    for a, b in zip(out, (expected, mean, log_variance), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)
    loss = net.loss(out, images, TrainConfig(kl_weight=0.3))
    divergence = kl_divergence(Normal(mean, (log_variance / 2).exp()), Normal(0.0, 1.0)).sum(1).mean()
    torch.testing.assert_close(loss["loss"], (images - expected).square().mean() + 0.3 * divergence)
    torch.testing.assert_close(loss["kl"], divergence)


def test_the_divergence_of_the_standard_normal_is_zero() -> None:
    assert gaussian_divergence(torch.zeros(3, D), torch.zeros(3, D)) == 0
    assert gaussian_divergence(torch.ones(3, D), torch.zeros(3, D)) == D / 2


def test_noise_is_keyed_and_the_code_is_the_mean() -> None:
    net, images = model().eval(), random_images(N, 1, 32)
    with torch.no_grad():
        whole = net.reconstruct(images, seed=3, sample_ids=torch.arange(N))
        part = net.reconstruct(images[1:], seed=3, sample_ids=torch.arange(1, N))
        torch.testing.assert_close(part, whole[1:])
        assert not torch.allclose(net.reconstruct(images, seed=4), whole)
        assert torch.equal(net.encode(images), net.distribution(images)[0])
        z = normal(torch.arange(2, 4), D, 9, Stream.PRIOR).double()
        torch.testing.assert_close(net.generate(2, seed=9, start=2), net.decode(z))


@pytest.mark.parametrize(
    ("data", "batches"), [("mnist", 240), ("fashion-mnist", 240), ("cifar10", 200), ("celeba", 651), ("digits", 5)]
)
def test_the_divergence_weighs_one_over_the_batches(data: str, batches: int) -> None:
    config = preset("vae", data)
    assert config.train.kl_weight == pytest.approx(1 / batches)
    assert (config.train.lr, config.train.batch_size, config.train.epochs) == (1e-3, 250, 150)


def test_parameters() -> None:
    """As many as the published network's: its stages 32 to 256, 1024 features, twice the latent."""
    convolutions = 9 * (32 + 32 * 64 + 64 * 128 + 128 * 256) + 9 * (256 * 128 + 128 * 64 + 64 * 32 + 32 * 32)
    norms = 2 * (32 + 64 + 128 + 256 + 128 + 64 + 32 + 32)
    latent = 2 * (1024 * 128 + 128) + (128 * 1024 + 1024)
    last = 9 * 32 + 1
    assert sum(p.numel() for p in VAE(latent=128).parameters()) == convolutions + norms + latent + last
