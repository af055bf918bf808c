"""Learnt readouts, TAID and PFA against their formulas written out, in both spiking autoencoders."""

from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F
from model_helpers import random_images
from torch import Tensor

from esvae.config import Config, ModelConfig, TrainConfig
from esvae.errors import InputError
from esvae.models import ESVAE, FSVAE, MODELS, Model
from esvae.models.pfa import PFA
from esvae.models.taid import TAID
from esvae_kernels.nn import BNLIF

N, T = 3, 4
EXACT = {"rtol": 1e-10, "atol": 1e-12}
both = pytest.mark.parametrize("kind", ["esvae", "fsvae"])


def model(kind: str, **options) -> ESVAE | FSVAE:
    """fp64, in training mode, with neurons that fire."""
    torch.manual_seed(0)
    branches = {"branches": 2} if kind == "fsvae" else {}
    made = MODELS[kind](**{"latent": 5, "steps": T} | branches | options).double()
    for module in made.modules():
        if isinstance(module, BNLIF):
            module.bias.data.fill_(0.1)
    return made


def decoded(net: Model) -> tuple[Tensor, Tensor]:
    """The image of random latent spikes, and the potentials y_t (T, N, C, H, W) that it is read out of."""
    z = (torch.rand(net.steps, N, 5, generator=torch.Generator().manual_seed(1)) < 0.5).double()
    image = net.decode(z)
    y = net.from_latent(z).unflatten(2, (256, 2, 2))
    for layer in net.decoder:
        y = layer(y)
    steps = [F.conv_transpose2d(s, net.to_image.weight, net.to_image.bias, padding=1) for s in y]
    return image, torch.stack(steps)


# Learnt readouts


@both
def test_a_learnt_readout_starts_at_the_decay(kind: str) -> None:
    """With a sum of 1."""
    plain, learnt = model(kind), model(kind, readout="learnt")
    fixed = 0.8 ** torch.arange(T - 1.0, -1, -1).double()
    torch.testing.assert_close(learnt.readout_weights().data, fixed / fixed.sum(), rtol=1e-6, atol=0)
    with torch.no_grad():
        plain.to_image.weight /= fixed.sum()
        plain.to_image.bias /= fixed.sum()
    torch.testing.assert_close(decoded(learnt)[0], decoded(plain)[0], rtol=1e-5, atol=1e-6)


@both
def test_a_learnt_readout_is_a_weighted_sum(kind: str) -> None:
    net = model(kind, readout="learnt", channels=3)
    net.readout.data.copy_(torch.tensor([0.3, -0.2, 0.9, 0.5]))
    image, y = decoded(net)
    c = net.readout.detach().clone().requires_grad_()
    expected = torch.tanh(torch.einsum("t,tnchw->nchw", c / T, y))
    torch.testing.assert_close(image, expected, **EXACT)
    cotangent = torch.rand_like(image)
    (gradient,) = torch.autograd.grad((image * cotangent).sum(), net.readout)
    (wanted,) = torch.autograd.grad((expected * cotangent).sum(), c)
    torch.testing.assert_close(gradient, wanted, **EXACT)


@pytest.mark.parametrize(
    ("steps", "weights"),
    [
        (1, [2.0]),
        (2, [0.5, 1.5]),
        (3, [0.3 + 0.2 / 3, 2 / 3 * 0.2 + 2 / 3 * 0.9, 0.9 / 3 + 0.6]),
        (8, [0.15, 0.15, 0.1, 0.1, 0.45, 0.45, 0.3, 0.3]),
    ],
)
def test_a_learnt_readout_at_other_steps(steps: int, weights: list[float]) -> None:
    """Each weight stands for its part of the time: of half as many, one for two."""
    net = model("esvae", readout="learnt")
    net.readout.data.copy_(torch.tensor([0.3, 0.2, 0.9, 0.6]))
    net.steps = steps
    torch.testing.assert_close(net.readout_weights().data, torch.tensor(weights).double() / T, rtol=1e-6, atol=0)
    image, y = decoded(net)
    torch.testing.assert_close(image, torch.tanh(torch.einsum("t,tnchw->nchw", net.readout_weights(), y)), **EXACT)


def test_a_learnt_readout_is_not_rounded() -> None:
    net = model("esvae", readout="learnt").float()
    net.steps = 3
    with torch.autocast("cpu", torch.bfloat16):
        weights = net.readout_weights()
    assert weights.dtype == torch.float32
    assert torch.equal(weights, net.readout_weights())


# TAID


def test_taid_is_its_formula() -> None:
    x, taid = torch.randn(T, N, 3, 4, 5, dtype=torch.float64), TAID(T).double()
    assert taid.mix.weight.shape == (T, T)
    assert taid.mix.bias is None
    m = torch.einsum("tnchw->nct", x) / 20
    a = torch.sigmoid(torch.einsum("st,nct->ncs", taid.mix.weight, m))
    torch.testing.assert_close(taid(x), torch.einsum("nct,tnchw->nchw", a, x), **EXACT)


@both
@pytest.mark.parametrize("channels", [1, 3])
def test_taid_reads_the_image_out(kind: str, channels: int) -> None:
    net = model(kind, readout="taid", channels=channels)
    image, y = decoded(net)
    torch.testing.assert_close(image, torch.tanh(net.taid(y)), **EXACT)
    image.sum().backward()
    assert net.taid.mix.weight.grad.any()


def test_taid_is_made_for_one_number_of_steps() -> None:
    net = model("esvae", readout="taid")
    with pytest.raises(InputError, match="steps: got 3, accepted is 4, which readout 'taid' is made for"):
        net.steps = 3
    train = TrainConfig(epochs=2, time_steps="1/2@2,1/2@4")
    with pytest.raises(InputError, match="time_steps: got 2, accepted is 4, which readout 'taid' is made for"):
        Config(model=net.config, train=train)


# PFA


def literal_pfa(pfa: PFA, x: Tensor) -> Tensor:
    """On X (T, N, C, H, W), the image at every step; Y likewise."""
    s = torch.sigmoid(F.conv2d(x.mean(2).movedim(0, 1), pfa.space.weight, pfa.space.bias, padding=1))  # (N, R, H, W)
    means = x.mean((3, 4))  # (T, N, C)
    t = torch.sigmoid(torch.einsum("tnc,rc->tnr", means, pfa.time.weight) + pfa.time.bias)
    c = torch.sigmoid(torch.einsum("tnc,rt->ncr", means, pfa.channel.weight) + pfa.channel.bias)
    return torch.relu(torch.einsum("tnr,ncr,nrhw->tnchw", t, c, s) * x)


@both
@pytest.mark.parametrize("channels", [1, 3])
def test_pfa_on_the_repeated_image(kind: str, channels: int) -> None:
    """Attention, first convolution and norm run once, where the formula has them at every step; gradients too."""
    net, images = model(kind, attention="pfa", channels=channels), random_images(N, channels, 32)
    assert net.attention.space.weight.shape == (64, T, 3, 3)
    rates = net.encode(images)
    gradients = torch.autograd.grad(rates.sum(), list(net.attention.parameters()))
    x = literal_pfa(net.attention, images.expand(T, *images.shape))
    torch.testing.assert_close(net.attention(images).expand_as(x), x, **EXACT)
    for layer in net.encoder:
        x = layer(x)
    expected = net.to_latent(x.flatten(2)).mean(0)
    assert 0 < rates.mean() < 1
    torch.testing.assert_close(rates, expected, **EXACT)
    wanted = torch.autograd.grad(expected.sum(), list(net.attention.parameters()))
    for a, b in zip(gradients, wanted, strict=True):
        assert b.any()
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-10)


# Both


@both
@pytest.mark.parametrize("readout", ["learnt", "taid"])
def test_a_training_step_in_bfloat16(kind: str, readout: str) -> None:
    net, images = model(kind, readout=readout, attention="pfa").float(), random_images(N, 1, 32).float()
    with torch.autocast("cpu", torch.bfloat16):
        out = net(images, seed=1)
    assert out.images.dtype == torch.float32
    net.loss(out, images, TrainConfig())["loss"].backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"kind": "vae", "steps": 1, "readout": "taid"}, "readout: got 'taid', accepted is 'decay': kind 'vae' has no"),
        (
            {"kind": "gan", "attention": "pfa"},
            "attention: got 'pfa', accepted is 'none': kind 'gan' has no such option",
        ),
        ({"kind": "fsvae", "prior": "mixture"}, "prior: got 'mixture', accepted is 'bottleneck': kind 'fsvae' has no"),
        ({"branches": 10}, "branches: got 10, accepted is 20: kind 'esvae' has no such option"),
        ({"kind": "vae"}, "steps: got 16, accepted is 1: kind 'vae' knows no time"),
        ({"kind": "fsvae", "branches": 0}, "branches: got 0, accepted is 1 to 1000"),
        ({"kind": "svae"}, "kind: got 'svae', accepted is esvae, fsvae, vae, gan"),
    ],
)
def test_options_that_a_kind_has_not(options: dict, line: str) -> None:
    with pytest.raises(InputError, match=re.escape(line)):
        ModelConfig(**options)


@pytest.mark.parametrize(
    ("model", "train", "line"),
    [
        ({}, {"latent_loss": "kl"}, "latent_loss: got 'kl', accepted is 'mmd': kind 'esvae' has no such option"),
        ({"kind": "gan"}, {"mmd_weight": 1.0}, "mmd_weight: got 1.0, accepted is 0.001: kind 'gan' has no such option"),
        (
            {"kind": "vae", "steps": 1},
            {"epochs": 1, "time_steps": "1@1"},
            "time_steps: got '1@1', accepted is '': kind",
        ),
        ({}, {"critic_lr": 0.0}, "critic_lr: got 0.0, accepted is above 0"),
    ],
)
def test_training_options_that_a_kind_has_not(model: dict, train: dict, line: str) -> None:
    with pytest.raises(InputError, match=re.escape(line)):
        Config(model=ModelConfig(**model), train=TrainConfig(**train))
