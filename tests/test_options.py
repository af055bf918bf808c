"""Options beyond the paper's: learnt decays, a penalty on firing rates, resizing, deep bottlenecks."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import torch
from model_helpers import random_images
from torch import Tensor, nn

from esvae import ESVAE, data
from esvae.config import Config, ModelConfig, TrainConfig
from esvae.errors import InputError
from esvae.generate import load_model
from esvae.layers import SpikingLayer, keep_rates, mean_rate
from esvae.train import train

SMALL = {"latent": 6, "steps": 3}


def model_of(**options) -> ESVAE:
    torch.manual_seed(0)
    return ESVAE(**SMALL, **options).double()


def result(model: ESVAE) -> tuple[Tensor, ...]:
    return model(random_images(4, 1, 32), seed=1)


def test_a_learnt_decay_starts_at_the_options() -> None:
    plain, learnt = model_of(decay=0.4), model_of(decay=0.4, learn_decay=True)
    for a, b in zip(result(plain), result(learnt), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)  # the logistic of the logit of 0.4
    decays = [layer.neurons.decay for layer in learnt.modules() if isinstance(layer, SpikingLayer)]
    assert [len(d) for d in decays] == [32, 64, 128, 256, 6, 1024, 128, 64, 32, 32]


def test_a_learnt_decay_moves_and_stays_in_its_interval() -> None:
    model = model_of(learn_decay=True)
    images = random_images(4, 1, 32)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e3)
    before = [layer.neurons.decay.detach() for layer in model.encoder]
    for _ in range(3):
        optimizer.zero_grad()
        (model(images, seed=1).images - images).square().mean().backward()
        optimizer.step()
    for old, layer in zip(before, model.encoder, strict=True):
        assert not torch.allclose(old, layer.neurons.decay, atol=1e-3)
        assert ((layer.neurons.decay >= 0) & (layer.neurons.decay <= 1)).all()


def test_a_learnt_decay_comes_back(tmp_path: Path) -> None:
    model = ESVAE(**SMALL, learn_decay=True).eval()
    with torch.no_grad():
        model.encoder[0].neurons.parametrizations.decay.original.uniform_(-1, 1)
    model.save_pretrained(tmp_path / "model")
    again = ESVAE.from_pretrained(str(tmp_path / "model"))
    assert torch.equal(again.encoder[0].neurons.decay, model.encoder[0].neurons.decay)


@pytest.mark.parametrize("steps", [1, 3])
def test_mean_rate_is_that_of_all_spikes(steps: int) -> None:
    model = model_of()
    model.steps = steps
    keep_rates(model)
    found: list[Tensor] = []
    for layer in model.modules():
        if isinstance(layer, SpikingLayer):
            layer.neurons.register_forward_hook(lambda module, inputs, output: found.append(output.detach()))
    result(model)
    *inner, last = found  # the last one is read out, by weights
    expected = [s.float().mean() for s in inner] + [last.float().mean() / model.readout_weights().sum()]
    assert len(expected) == 10
    torch.testing.assert_close(mean_rate(model), torch.stack([e.float() for e in expected]).mean())


def test_mean_rate_has_a_gradient() -> None:
    model = model_of()
    keep_rates(model)
    result(model)
    mean_rate(model).backward()
    assert all(layer.neurons.bias.grad.abs().max() > 0 for layer in (*model.encoder, *model.decoder, model.to_latent))


def test_resizing_doubles_like_the_transposed_convolutions() -> None:
    model = model_of(upsampling="resize")
    assert result(model).images.shape == (4, 1, 32, 32)
    layer = model.decoder[0].transform
    x = torch.randn(2, 256, 2, 2, dtype=torch.float64)
    bigger = x.repeat_interleave(2, -1).repeat_interleave(2, -2)
    torch.testing.assert_close(layer(x), nn.functional.conv2d(bigger, layer[1].weight, padding=1))


def test_a_deep_bottleneck() -> None:
    model = model_of(bottleneck_layers=3)
    assert [type(m).__name__ for m in model.bottleneck] == ["Linear", "LeakyReLU", "Linear", "LeakyReLU", "Linear"]
    rates = model.prior_rates(torch.randn(5, 6))
    assert ((rates > 0) & (rates < 1)).all()
    rest, own = model.parameter_groups(TrainConfig())
    assert len(own["params"]) == 6
    assert len(rest["params"]) + 6 == len(list(model.parameters()))


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"decay": 0.0, "learn_decay": True}, "decay: got 0.0, accepted is between 0 and 1 to be learnt"),
        ({"upsampling": "resize", "wide_kernels": 1}, "wide_kernels: got 1, accepted is 0 with upsampling 'resize'"),
        ({"bottleneck_layers": 0}, "bottleneck_layers: got 0, accepted is 1 to 8"),
        ({"upsampling": "bilinear"}, "upsampling: got 'bilinear', accepted is transposed, resize"),
    ],
)
def test_bad_options(options: dict, line: str) -> None:
    with pytest.raises(InputError, match=re.escape(line)):
        ESVAE(**options)


def test_training_with_all_of_them(tmp_path: Path) -> None:
    options = {"learn_decay": True, "upsampling": "resize", "bottleneck_layers": 2}
    few = TrainConfig(epochs=2, batch_size=16, lr=3e-3, distance="imq", rate_weight=0.05, ema=0.5, precision="fp32")
    config = Config("digits", "paper", ModelConfig(**SMALL, **options), few)
    loaded = {split: data.load("digits", split) for split in ("train", "test")}
    sets = {split: dataclasses.replace(s, pixels=s.pixels[:96]) for split, s in loaded.items()}
    run = train(config, tmp_path / "run", sets=sets, progress=False)
    first, last = (record for record in run.metrics() if "loss" in record)
    assert last["mse"] < first["mse"]
    assert last["loss"] == pytest.approx(last["mse"] + 1e-3 * last["mmd"] + 0.05 * last["layer_rate"], rel=1e-5)
    again = load_model(run.folder).model
    assert again.generate(2, seed=0).shape == (2, 1, 32, 32)
