"""The network against the literal implementation, forward and backward; its interface, options, prior and files."""

from __future__ import annotations

import copy
import dataclasses
import functools
import itertools
import json
import math
import pickle
import re
import shlex
import shutil
import socket
import time
from fractions import Fraction
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import scipy.stats
import torch
import torch.nn.functional as F
import tyro
from huggingface_hub import ModelCard, hub_mixin
from huggingface_hub.errors import EntryNotFoundError
from literal import LiteralESVAE, loss
from literal import mmd as literal_mmd
from model_helpers import (
    buffer_pairs,
    in_double,
    layers,
    literal_network,
    noise,
    parameter_pairs,
    random_images,
    twin,
)
from safetensors.torch import load_file, save_file
from torch import Tensor

from esvae import ESVAE, data
from esvae.cli.commands import Train, _train_defaults
from esvae.config import PRESETS, Config, ModelConfig, SurrogateName, TrainConfig, full_name, preset
from esvae.errors import InputError
from esvae.losses import mmd
from esvae.models import MODELS
from esvae.models import hub as model_hub
from esvae.noise import Stream, normal
from esvae.prior import MixturePrior
from esvae.runs import Run
from esvae_kernels.nn import BNLIF

D, T, N, SEED = 8, 4, 3, 11
EXACT = {"rtol": 1e-9, "atol": 1e-9}  # of fp64: any identity that were not one would show
PRESET_NAMES = ["paper", "official"]
SHAPES = [pytest.param(1, 32, id="grey-32"), pytest.param(3, 32, id="color-32"), pytest.param(3, 64, id="color-64")]


def small(**options: object) -> ESVAE:
    """A small network with the same weights for every set of options that has the same layers."""
    torch.manual_seed(0)
    model = ESVAE(**{"latent": D, "steps": T} | options)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.bias"):
                parameter.uniform_(0, 0.2)
    return model


def both(preset_name: str, channels: int = 1, size: int = 32, steps: int = T) -> tuple[LiteralESVAE, ESVAE]:
    literal = in_double(literal_network(channels, size, D, steps, preset_name))
    return literal, twin(literal, preset_name)


def close(found: Tensor, expected: Tensor, name: str) -> None:
    assert found.shape == expected.shape, name
    torch.testing.assert_close(found, expected, **EXACT, msg=lambda m: f"{name}: {m}")


def time_first(x: Tensor) -> Tensor:
    return x.movedim(-1, 0)


def random_spikes(*shape: int) -> Tensor:
    """fp64, time last."""
    return (torch.rand(shape, generator=torch.Generator().manual_seed(1)) < 0.3).double()


# The whole network and each of its identities, against the literal one


@pytest.mark.few(3)
@pytest.mark.parametrize("preset_name", PRESET_NAMES)
@pytest.mark.parametrize(("channels", "size"), SHAPES)
def test_training_step_is_the_literal_one(preset_name: str, channels: int, size: int) -> None:
    literal, ours = both(preset_name, channels, size)
    images = random_images(N, channels, size)
    u, z_n = noise(N, D, T, SEED)
    expected, r_p, r_q, _ = literal(images, u, z_n)
    found = ours(images, seed=SEED)
    close(found.rates, r_p, "rates")
    close(found.prior_rates, r_q, "prior rates")
    close(found.images, expected, "images")
    assert 0.05 < r_p.mean() < 0.95
    loss(images, expected, r_p, r_q, mmd_weight=0.1).backward()
    (F.mse_loss(found.images, images) + 0.1 * mmd(found.rates, found.prior_rates)).backward()
    names = set()
    for name, a, b in parameter_pairs(literal, ours, grad=True):
        assert a.abs().max() > 1e-8, name  # a gradient of 0 on both sides would say nothing
        close(b, a, name)
        names.add(name)
    assert names == {name for name, _ in ours.named_parameters()}
    for name, a, b in buffer_pairs(literal, ours):
        close(b, a, name)


@pytest.mark.parametrize("preset_name", PRESET_NAMES)
def test_evaluation_is_the_literal_one(preset_name: str) -> None:
    literal, ours = both(preset_name)
    literal.eval(), ours.eval()
    images = random_images(N, 1, 32)
    u, z_n = noise(N, D, T, SEED)
    before = copy.deepcopy(ours.state_dict())
    with torch.no_grad():
        close(ours.reconstruct(images, seed=SEED), literal(images, u, z_n)[0], "reconstruction")
        close(ours(images, seed=SEED).images, literal(images, u, z_n)[0], "forward")
        u, z_n = noise(N, D, T, SEED, Stream.PRIOR_SPIKES)
        expected = literal.generate(z_n, u)
        close(ours.generate(N, seed=SEED), expected, "generated")
    assert all(torch.equal(value, before[key]) for key, value in ours.state_dict().items())


@pytest.mark.parametrize("preset_name", PRESET_NAMES)
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_first_convolution_runs_once(preset_name: str, steps: int) -> None:
    literal, ours = both(preset_name, 3, 32, steps)
    theirs, layer = literal.encoder[0], ours.encoder[0]
    x = random_images(N, 3, 32)
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    expected = theirs(a.unsqueeze(-1).expand(*a.shape, steps))
    found = layer.repeat(b, steps)
    close(found, time_first(expected), "spikes")
    weights = torch.randn(expected.shape, dtype=torch.float64)
    (expected * weights).sum().backward()
    (found * time_first(weights)).sum().backward()
    close(b.grad, a.grad, "image gradient")
    close(layer.transform.weight.grad, theirs.weight.grad.squeeze(-1), "weight gradient")
    close(layer.neurons.weight.grad, theirs.bn.weight.grad, "tdBN weight gradient")
    close(layer.neurons.bias.grad, theirs.bn.bias.grad, "tdBN bias gradient")
    close(layer.neurons.running_mean, theirs.bn.running_mean - theirs.bias.detach(), "running mean")
    close(layer.neurons.running_var, theirs.bn.running_var, "running variance")


def test_running_variance_of_a_repeated_input_counts_every_step() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 2, 1)
    once, repeated = (BNLIF(3, decay=0.25, threshold=0.2) for _ in range(2))
    spikes = once(x.expand(5, *x.shape))
    torch.testing.assert_close(repeated(x, steps=5), spikes)
    torch.testing.assert_close(repeated.running_var, once.running_var)
    torch.testing.assert_close(repeated.running_mean, once.running_mean)
    unbiased = 0.9 + 0.1 * x.var((0, 2, 3), correction=0) * 20 / 19  # n = T * N * H * W = 20
    torch.testing.assert_close(repeated.running_var, unbiased)


@pytest.mark.few(3)
@pytest.mark.parametrize("preset_name", PRESET_NAMES)
@pytest.mark.parametrize(("channels", "size"), SHAPES)
def test_last_convolution_and_readout_commute(preset_name: str, channels: int, size: int) -> None:
    literal, ours = both(preset_name, channels, size)
    z = random_spikes(N, D, T)
    a, b = z.clone().requires_grad_(), time_first(z).clone().requires_grad_()
    expected, found = literal.decode(a), ours.decode(b)
    close(found, expected, "images")
    assert expected.std() > 0.01
    weights = torch.randn(expected.shape, dtype=torch.float64)
    (expected * weights).sum().backward()
    (found * weights).sum().backward()
    close(b.grad, time_first(a.grad), "latent gradient")
    last = literal.final_layer[1]
    close(ours.to_image.weight.grad, last.weight.grad.squeeze(-1), "last weight's gradient")
    close(ours.to_image.bias.grad, last.bias.grad, "last bias's gradient")
    close(ours.decoder[-1].transform.weight.grad, literal.final_layer[0].weight.grad.squeeze(-1), "gradient before it")


def test_the_last_bias_counts_at_every_step() -> None:
    literal, ours = both("paper")
    for bias in (literal.final_layer[1].bias, ours.to_image.bias):
        bias.data.fill_(0.3)
    for weight in (literal.final_layer[1].weight, ours.to_image.weight):
        weight.data.zero_()
    expected = math.tanh(0.3 * (1 + 0.8 + 0.64 + 0.512))
    z = random_spikes(N, D, T)
    for images in (literal.decode(z), ours.decode(time_first(z))):
        close(images, torch.full_like(images, expected), "images")


@pytest.mark.parametrize("preset_name", PRESET_NAMES)
def test_rate_readout_of_the_encoder(preset_name: str) -> None:
    literal, ours = both(preset_name)
    theirs, layer = literal.before_latent_layer, ours.to_latent
    spikes = random_spikes(N, 1024, T)
    a, b = spikes.clone().requires_grad_(), time_first(spikes).clone().requires_grad_()
    expected, found = theirs(a).mean(-1), layer(b, readout="mean")
    assert torch.equal(found, expected)
    weights = torch.randn(expected.shape, dtype=torch.float64)
    (expected * weights).sum().backward()
    (found * weights).sum().backward()
    close(b.grad, time_first(a.grad), "spike gradient")
    close(layer.transform.weight.grad, theirs.weight.grad, "weight gradient")
    close(layer.neurons.weight.grad, theirs.bn.weight.grad, "tdBN weight gradient")
    close(layer.neurons.bias.grad, theirs.bn.bias.grad, "tdBN bias gradient")
    close(layer.neurons.running_var, theirs.bn.running_var, "running variance")


@pytest.mark.few(6)
@pytest.mark.parametrize("preset_name", PRESET_NAMES)
@pytest.mark.parametrize("index", range(9))
def test_no_bias_in_front_of_tdbn(preset_name: str, index: int) -> None:
    literal, ours = both(preset_name)
    name, theirs, layer = list(layers(literal, ours))[1:][index]
    inputs = theirs.weight.shape[1 if name.startswith("encoder") or theirs.weight.dim() == 2 else 0]
    space = () if theirs.weight.dim() == 2 else (4, 4)
    assert theirs.bias.abs().max() > 0.3
    for _ in range(2):
        spikes = random_spikes(N, inputs, *space, T)
        a, b = spikes.clone().requires_grad_(), time_first(spikes).clone().requires_grad_()
        expected, found = theirs(a), layer(b)
        assert torch.equal(found, time_first(expected))
    weights = torch.randn(expected.shape, dtype=torch.float64)
    (expected * weights).sum().backward()
    (found * time_first(weights)).sum().backward()
    assert theirs.bias.grad.abs().max() < 1e-9 * theirs.weight.grad.abs().max()  # it cancels
    weight_gradient = theirs.weight.grad.squeeze(-1) if space else theirs.weight.grad
    close(b.grad, time_first(a.grad), "spike gradient")
    close(layer.transform.weight.grad, weight_gradient, "weight gradient")
    close(layer.neurons.weight.grad, theirs.bn.weight.grad, "tdBN weight gradient")
    close(layer.neurons.bias.grad, theirs.bn.bias.grad, "tdBN bias gradient")
    close(layer.neurons.running_mean, theirs.bn.running_mean - theirs.bias.detach(), "running mean")
    close(layer.neurons.running_var, theirs.bn.running_var, "running variance")


# Presets and configs


DATA_SETS = ["mnist", "fashion-mnist", "digits", "cifar10", "celeba", "folder:pictures"]


def test_preset_paper_has_the_values_of_the_paper() -> None:
    for name in DATA_SETS:
        model, train = preset("paper", name).model, preset("paper", name).train
        assert (model.decay, model.threshold, model.strict, model.reset) == (0.25, 0.2, False, "hard")
        assert not model.detach_reset
        assert (model.lif_surrogate, model.lif_shape, model.lif_center) == ("rectangular", 0.5, 0.0)
        assert (model.sampler_surrogate, model.sampler_shape) == ("rectangular", 0.5)
        assert (model.latent, model.steps, model.readout_decay, model.wide_kernels) == (128, 16, 0.8, 0)
        assert model.prior == "bottleneck"
        assert (train.lr, train.weight_decay, train.bottleneck_lr, train.epochs) == (6e-4, 1e-3, 6e-3, 300)
        assert (train.mmd_weight, train.schedule, train.clip, train.ema) == (1e-3, "constant", 0, 0)


@pytest.mark.parametrize(
    ("name", "latent", "batch", "lr"),
    [
        ("mnist", 32, 256, 3e-3 * 256 / 250),
        ("fashion-mnist", 32, 256, 3e-3 * 256 / 250),
        ("cifar10", 128, 256, 6e-4 * 256 / 250),
        ("celeba", 128, 64, 1e-3 * 64 / 250),
    ],
)
def test_preset_official_has_the_values_of_the_published_code(name: str, latent: int, batch: int, lr: float) -> None:
    model, train = preset("official", name).model, preset("official", name).train
    assert (model.decay, model.threshold, model.strict, model.reset) == (0.25, 0.2, True, "hard")
    assert not model.detach_reset
    assert (model.lif_surrogate, model.lif_shape) == ("rectangular", 1.0)
    assert model.threshold + model.lif_center == 0  # centred on 0
    assert (model.sampler_surrogate, model.sampler_shape) == ("rectangular", 1.0)
    assert (model.latent, model.steps, model.readout_decay, model.wide_kernels) == (latent, 16, 0.8, 0)
    assert train.lr == pytest.approx(lr)
    assert train.bottleneck_lr == pytest.approx(10 * lr)
    assert (train.batch_size, train.epochs, train.beta1, train.beta2) == (batch, 300, 0.9, 0.999)
    assert (train.mmd_weight, train.schedule, train.clip) == (1e-3, "constant", 0)


OF_ESVAE = [name for name in PRESETS if preset(name, "mnist").model.kind == "esvae"]


@pytest.mark.parametrize("name", PRESETS)
def test_presets_fit_their_data_sets(name: str) -> None:
    for data_set in DATA_SETS:
        config = preset(name, data_set)
        assert (config.data, config.preset) == (full_name(data_set), name)
        assert config.model.channels == (3 if data_set in ("cifar10", "celeba") else 1)
        assert config.model.size == (64 if data_set == "celeba" else 32)
        assert config.train.stages(config.model.steps)[-1][1] == config.model.steps


def test_unknown_preset() -> None:
    with pytest.raises(InputError, match=r"preset: got 'ours', accepted are paper, official, best"):
        preset("ours", "mnist")


@pytest.mark.parametrize("name", PRESETS)
def test_config_round_trip(name: str) -> None:
    config = preset(name, "celeba")
    assert Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    changed = dataclasses.replace(config, train=dataclasses.replace(config.train, seed=7))
    assert Config.from_dict(changed.to_dict()) != config


BAD_CONFIGS = {
    "unknown-part": ({"modell": {}}, "modell"),
    "unknown-option": ({"model": {"latnet": 3}}, "latnet"),
    "no-model": ({"model": None}, "model"),
    "train-is-a-list": ({"train": [1]}, "train"),
    "data-is-a-number": ({"data": 3}, "data"),
    "preset-is-none": ({"preset": None}, "preset"),
    "float-for-integer": ({"model": {"latent": 8.0}}, "latent"),
    "boolean-for-integer": ({"model": {"steps": True}}, "steps"),
    "integer-for-boolean": ({"model": {"strict": 1}}, "strict"),
    "text-for-number": ({"train": {"lr": "1e-3"}}, "lr"),
    "boolean-for-number": ({"train": {"lr": True}}, "lr"),
    "nan": ({"model": {"decay": math.nan}}, "decay"),
    "infinite": ({"train": {"lr": math.inf}}, "lr"),
    "choice": ({"model": {"reset": "half"}}, "reset"),
    "list-for-choice": ({"model": {"reset": ["hard"]}}, "reset"),
    "size": ({"model": {"size": 48}}, "size"),
    "channels": ({"model": {"channels": 2}}, "channels"),
    "latent": ({"model": {"latent": 0}}, "latent"),
    "steps": ({"model": {"steps": 0}}, "steps"),
    "threshold": ({"model": {"threshold": 0.0}}, "threshold"),
    "lif-shape": ({"model": {"lif_shape": 0}}, "lif_shape"),
    "sampler-shape": ({"model": {"sampler_shape": -1}}, "sampler_shape"),
    "readout-decay": ({"model": {"readout_decay": 1.1}}, "readout_decay"),
    "wide-kernels": ({"model": {"wide_kernels": 5}}, "wide_kernels"),
    "mixture-components": ({"model": {"mixture_components": 0}}, "mixture_components"),
    "epochs": ({"train": {"epochs": 0}}, "epochs"),
    "batch-of-one": ({"train": {"batch_size": 1}}, "batch_size"),
    "lr": ({"train": {"lr": 0}}, "lr"),
    "weight-decay": ({"train": {"weight_decay": -1e-3}}, "weight_decay"),
    "ema": ({"train": {"ema": 1.0}}, "ema"),
    "seed": ({"train": {"seed": -1}}, "seed"),
    "time-steps": ({"train": {"epochs": 5, "time_steps": "4@x"}}, "time_steps"),
    "time-steps' end": ({"train": {"epochs": 5, "time_steps": "3/5@2,2/5@8"}}, "time_steps"),
    "time-steps' T": ({"train": {"epochs": 5, "time_steps": "3@100000000,2@16"}}, "time_steps"),
    "min-steps": ({"train": {"min_steps": -1}}, "min_steps"),
    "huge": ({"model": {"latent": 10**12}}, "latent"),
    "long": ({"model": {"steps": 10**12}}, "steps"),
}


def assert_one_line(error: pytest.ExceptionInfo[InputError], *words: str) -> None:
    message = str(error.value)
    assert "\n" not in message
    assert "<class" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize("bad", BAD_CONFIGS)
def test_bad_configs_are_named(bad: str) -> None:
    change, word = BAD_CONFIGS[bad]
    values = Config().to_dict()
    for name, value in change.items():
        merge = isinstance(value, dict) and name in values
        values[name] = values[name] | value if merge else value
    with pytest.raises(InputError) as error:
        Config.from_dict(values)
    assert_one_line(error, f"{word}: got" if "unknown" not in bad else word)


@pytest.mark.parametrize("values", [None, [], "paper", 3], ids=str)
def test_config_of_something_else(values: object) -> None:
    with pytest.raises(InputError, match="config: got"):
        Config.from_dict(values)  # type: ignore[arg-type]


def test_unknown_option_of_the_model() -> None:
    with pytest.raises(InputError, match="'latents'"):
        ESVAE(latents=3)


def test_stages() -> None:
    config = TrainConfig(epochs=60, time_steps="1/2@4,0.25@8,1/4@16")
    assert config.stages(16) == [(Fraction(1, 2), 4), (Fraction(1, 4), 8), (Fraction(1, 4), 16)]
    assert sum(share for share, _ in TrainConfig(time_steps="0.33@2,0.33@4,0.33@8").stages(8)) == 1
    assert TrainConfig(epochs=6).stages(12) == [(1, 12)]


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("4", "SHARE@T"),
        ("5@4@3", "SHARE@T"),
        ("5@", "SHARE@T"),
        ("x@4", "SHARE@T"),
        ("1@4,", "SHARE@T"),
        ("0@4,1@4", "SHARE@T"),
        ("1@0", "SHARE@T"),
        ("2@4,-1@2", "SHARE@T"),
        ("1/0@4", "SHARE@T"),
        ("1e9@4", "SHARE@T"),
        ("1/3@4,1/3@2", "sum to 1, not 2/3"),
        ("3@2,3@4,3@8", "sum to 1, not 9"),
    ],
)
def test_bad_stages(text: str, word: str) -> None:
    with pytest.raises(InputError) as error:
        TrainConfig(epochs=5, time_steps=text)
    assert_one_line(error, "time_steps", word)


@pytest.mark.parametrize(
    ("epochs", "old", "new"),
    [
        (9, "3@2,3@4,3@8", "1/3@2,1/3@4,1/3@8"),
        (22, "20@4,2@8", "10/11@4,1/11@8"),
        (5, "5@8", "1@8"),
        (1, "1@8", "1@8"),
        (60, "1/2@2,1/2@8", "1/2@2,1/2@8"),
        (60, "", ""),
    ],
)
def test_a_schedule_in_epochs_of_an_older_config_is_read(epochs: int, old: str, new: str) -> None:
    values = preset("best", "digits").to_dict()
    values["train"] |= {"epochs": epochs, "time_steps": old}
    del values["train"]["min_steps"]
    config = Config.from_dict(values)
    assert (config.train.time_steps, config.train.epochs, config.train.min_steps) == (new, epochs, 0)
    values["train"]["epochs"] = epochs + 1
    if old.partition("@")[0].isdecimal() and old != "1@8":
        with pytest.raises(InputError, match="time_steps: got"):
            Config.from_dict(values)


def test_the_name_of_a_folder_is_kept_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    for given, kept in {"pics": "pics", "a/../pics/": "pics", "~/pics": "home/pics"}.items():
        assert Config(data=f"folder:{given}").data == f"folder:{tmp_path}/{kept}"
    assert Config(data="folder:pics?background=#fff").data == f"folder:{tmp_path}/pics?background=#fff"
    assert Config(data="digits").data == "digits"


@pytest.mark.parametrize("preset_name", OF_ESVAE)
@pytest.mark.parametrize(("channels", "size"), SHAPES)
def test_shapes_and_ranges(preset_name: str, channels: int, size: int) -> None:
    options = dataclasses.asdict(preset(preset_name, "mnist").model)
    model = small(**options | {"channels": channels, "size": size, "latent": D, "steps": T})
    images = random_images(N, channels, size).float()
    rates = model.encode(images)
    assert rates.shape == (N, D)
    assert torch.isin(rates, torch.arange(T + 1) / T).all()
    assert len(rates.unique()) > 2
    spikes = model.sample(rates, seed=SEED)
    assert spikes.shape == (T, N, D)
    assert torch.isin(spikes, torch.tensor([0.0, 1.0])).all()
    out = model(images, seed=SEED)
    assert out.rates.shape == out.prior_rates.shape == (N, D)
    assert ((out.prior_rates > 0) & (out.prior_rates < 1)).all()
    generated = model.generate(N, seed=SEED, prior="bottleneck")
    for result in (model.decode(spikes), model.reconstruct(images, seed=SEED), generated, out.images):
        assert result.shape == images.shape
        assert result.abs().max() <= 1
        assert result.std() > 0


@pytest.mark.parametrize(
    ("channels", "size", "latent", "expected"),
    [(1, 32, 32, 854_113), (3, 32, 128, 1_067_523), (3, 64, 128, 3_692_547)],
    ids=["fashion-mnist", "cifar10", "celeba"],
)
def test_parameter_counts(channels: int, size: int, latent: int, expected: int) -> None:
    ours = ESVAE(channels=channels, size=size, latent=latent, steps=1)
    literal = LiteralESVAE(channels, size, latent, steps=1)
    biases = sum(len(theirs.bias) for _, theirs, _ in layers(literal, ours))
    found = sum(p.numel() for p in ours.parameters())
    assert found == sum(p.numel() for p in literal.parameters()) - biases == expected


@pytest.fixture(scope="module")
def settled() -> ESVAE:
    """In evaluation mode with running statistics of its own, fp64, so that the batch's split moves no spike."""
    return twin(in_double(literal_network(1, 32, D, T, "paper")), "paper").eval()


def test_generation_follows_the_seed_and_not_the_split(settled: ESVAE) -> None:
    with torch.no_grad():
        whole = settled.generate(7, seed=3)
        parts = [settled.generate(n, seed=3, start=start) for start, n in ((0, 2), (2, 4), (6, 1))]
        other = settled.generate(7, seed=4)
    torch.testing.assert_close(torch.cat(parts), whole, **EXACT)
    assert ((whole - other).flatten(1).abs().amax(1) > 1e-3).all()
    assert ((whole[1:] - whole[:-1]).flatten(1).abs().amax(1) > 1e-3).all()


def test_generation_leaves_the_random_state_alone(settled: ESVAE) -> None:
    before = torch.get_rng_state()
    with torch.no_grad():
        first, again = settled.generate(2, seed=3), settled.generate(2, seed=3)
    assert torch.equal(first, again)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("seed", [0, -1, 2**63 - 1])
def test_any_seed_is_taken(settled: ESVAE, seed: int) -> None:
    with torch.no_grad():
        assert settled.generate(2, seed=seed).isfinite().all()
        assert settled(random_images(2, 1, 32), seed=seed).images.isfinite().all()


def test_reconstruction_follows_the_seed_and_not_the_split(settled: ESVAE) -> None:
    images = random_images(7, 1, 32)
    ids = torch.arange(7)
    with torch.no_grad():
        whole = settled.reconstruct(images, seed=3)
        order = torch.tensor([4, 0, 6, 2])
        some = settled.reconstruct(images[order], seed=3, sample_ids=ids[order])
        other = settled.reconstruct(images, seed=4)
    torch.testing.assert_close(some, whole[order], **EXACT)
    assert (whole - other).abs().max() > 1e-3


def test_readout_keeps_its_gain_when_the_steps_change() -> None:
    model = small(steps=16)
    plain = model.readout_weights()
    assert plain.sum().item() == pytest.approx(4.8593, abs=5e-5)
    torch.testing.assert_close(plain, 0.8 ** torch.arange(15, -1, -1, dtype=torch.float64))
    for steps in (1, 2, 4, 32):
        model.steps = steps
        weights = model.readout_weights()
        assert weights.shape == (steps,)
        assert weights.sum().item() == pytest.approx(plain.sum().item(), rel=1e-12)
        torch.testing.assert_close(weights[:-1], weights[1:] * 0.8)


def test_steps_in_use_are_those_of_every_part() -> None:
    model = small(steps=16)
    model.steps = 3
    images = random_images(N, 1, 32).float()
    rates = model.encode(images)
    assert torch.isin(rates, torch.tensor([0, 1 / 3, 2 / 3, 1])).all()
    assert model.sample(rates, seed=0).shape == (3, N, D)
    z = model.sample(rates, seed=0)
    assert model.decode(z).shape == images.shape
    assert model.config.steps == 16


def test_bfloat16_under_autocast() -> None:
    model = small()
    images = random_images(4, 1, 32).float()
    with torch.autocast("cpu", torch.bfloat16):
        out = model(images, seed=SEED)
        assert model.encode(images).dtype == torch.bfloat16
    assert out.rates.dtype == out.prior_rates.dtype == torch.float32
    (out.images.float().square().mean() + mmd(out.rates, out.prior_rates)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.dtype == torch.float32, name
        assert parameter.grad.isfinite().all(), name


# Options

OPTIONS = {
    "decay": 0.9,
    "threshold": 0.5,
    "reset": "soft",
    "detach_reset": True,
    "lif_surrogate": "atan",
    "lif_shape": 2.0,
    "lif_center": -0.2,
    "sampler_surrogate": "straight-through",
    "sampler_shape": 0.1,
    "readout_decay": 0.5,
    "wide_kernels": 1,
    "channels": 3,
    "size": 64,
    "latent": 9,
    "steps": 5,
}
FORWARD = {"decay", "threshold", "reset", "readout_decay", "wide_kernels", "steps", "latent"}  # they change the images
STRUCTURE = {"channels", "size"}
ELSEWHERE = {"strict", "prior", "mixture_components"}  # tested below
OTHER_FILES = {  # test_options.py, test_kinds.py, test_readout_attention.py, test_fsvae.py
    *("learn_decay", "upsampling", "bottleneck_layers"),
    *("kind", "readout", "attention", "branches"),
}


def step(model: ESVAE) -> tuple[Tensor, Tensor]:
    """Images, and the gradient of the first convolution's weights."""
    for module in model.modules():
        if isinstance(module, BNLIF):  # without a bias, tdBN scales with the threshold, and the spikes stay the same
            module.bias.data.fill_(0.05)
    images = random_images(N, model.config.channels, model.config.size).float()
    found = model(images, seed=SEED).images
    (found - images).square().mean().backward()
    return found.detach(), model.encoder[0].transform.weight.grad


def test_every_option_is_tested() -> None:
    assert OPTIONS.keys() | ELSEWHERE | OTHER_FILES == {f.name for f in dataclasses.fields(ModelConfig)}


@pytest.fixture(scope="module")
def plain_step() -> tuple[Tensor, Tensor]:
    return step(small())


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_does_something(option: str, plain_step: tuple[Tensor, Tensor]) -> None:
    images, gradient = step(small(**{option: OPTIONS[option]}))
    if option in STRUCTURE:
        assert images.shape != plain_step[0].shape
        return
    assert not torch.allclose(gradient, plain_step[1])
    assert torch.equal(images, plain_step[0]) == (option not in FORWARD)


def test_strict_decides_at_the_threshold() -> None:
    for strict, expected in ((False, 1.0), (True, 0.0)):
        layer = small(strict=strict, threshold=0.25, latent=1).eval().to_latent
        layer.transform.weight.data.zero_()
        layer.neurons.bias.data.fill_(0.25)
        assert layer(torch.zeros(1, 1, 1024)).item() == expected


def test_surrogate_names_reach_the_kernels() -> None:
    for name in get_args(SurrogateName):
        kind = "".join(word.capitalize() for word in name.split("-")).replace("Atan", "ATan")
        model = small(lif_surrogate=name, lif_shape=3.0, lif_center=0.1, sampler_surrogate=name, sampler_shape=2.0)
        used = model.encoder[0].neurons.surrogate
        assert type(used).__name__ == type(model.sampler_surrogate).__name__ == kind
        assert (used.shift, model.sampler_surrogate.shift) == (0.1, 0.0)
        if kind != "StraightThrough":
            assert (used.parameter, model.sampler_surrogate.parameter) == (3.0, 2.0)


@pytest.mark.parametrize("size", [32, 64])
def test_wide_kernels_are_the_last_ones(size: int) -> None:
    stages = {32: 4, 64: 5}[size]
    for wide in (0, 1, 2, stages):
        model = small(size=size, wide_kernels=wide)
        sides = [layer.transform.kernel_size[0] for layer in model.decoder]
        assert sides == [3] * (stages - wide) + [4] * wide
        assert model.generate(2, seed=0).shape[-1] == size


# Losses


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["f64", "f32"])
@pytest.mark.parametrize("n", [2, 5, 32])
def test_mmd_is_the_literal_one(n: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(n)
    inputs = [torch.rand(n, D, generator=generator, dtype=dtype) for _ in range(2)]
    a, b = ([x.clone().requires_grad_() for x in inputs] for _ in range(2))
    expected, found = literal_mmd(*a), mmd(*b)
    tolerance = EXACT if dtype == torch.float64 else {"rtol": 1e-5, "atol": 1e-6}
    torch.testing.assert_close(found, expected, **tolerance)
    expected.backward()
    found.backward()
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(y.grad, x.grad, **tolerance)


def test_mmd_of_different_rates_is_positive() -> None:
    a = torch.rand(64, D, generator=torch.Generator().manual_seed(0))
    assert mmd(a, a * 0.5).item() > 0.01
    assert mmd(a, a.flip(0)).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_mmd_of_equal_rows_is_zero(value: float) -> None:
    a, b = (torch.full((4, D), value, requires_grad=True) for _ in range(2))
    result = mmd(a, b)
    assert result.item() == 0
    result.backward()
    assert a.grad.isfinite().all()
    assert b.grad.isfinite().all()


# Priors


def test_normal_noise_is_normal_and_independent() -> None:
    noise = normal(torch.arange(400), 50, 5, Stream.PRIOR)
    assert noise.shape == (400, 50)
    assert noise.dtype == torch.float32
    assert scipy.stats.kstest(noise.flatten().numpy(), "norm").pvalue > 0.01
    assert noise.mean().item() == pytest.approx(0, abs=0.03)
    assert noise.std().item() == pytest.approx(1, abs=0.03)
    off_diagonal = torch.corrcoef(noise.T) - torch.eye(50)
    assert off_diagonal.abs().max() < 5 / math.sqrt(400)


def test_normal_noise_is_finite_at_the_ends_of_the_uniforms(monkeypatch: pytest.MonkeyPatch) -> None:
    ends = torch.tensor([[[0.0, 1 - 2.0**-24]]], dtype=torch.float64)
    monkeypatch.setattr("esvae.noise.uniforms", lambda *_: ends)
    low, high = normal(torch.arange(1), 2, 0, Stream.PRIOR).flatten().tolist()
    assert 5 < high < 6
    assert low == pytest.approx(-high)


def test_normal_noise_is_keyed_by_sample() -> None:
    whole = normal(torch.arange(10), D, 5, Stream.PRIOR)
    order = torch.tensor([7, 2, 2**40, 9])
    some = normal(order, D, 5, Stream.PRIOR)
    assert torch.equal(some[[0, 1, 3]], whole[[7, 2, 9]])
    assert not torch.isin(some[2], whole).any()
    assert not torch.isin(normal(torch.arange(10), D, 6, Stream.PRIOR), whole).any()


@pytest.fixture(scope="module")
def synthetic() -> tuple[np.ndarray, Tensor, Tensor, Tensor]:
    """Two clusters of 3-dimensional rates, weights .25 and .75: weights, means, covariances, rates."""
    rng = np.random.default_rng(0)
    means = np.array([[0.3, 0.3, 0.6], [0.7, 0.6, 0.3]])
    roots = np.array(
        [[[0.05, 0, 0], [0.03, 0.04, 0], [0, -0.02, 0.03]], [[0.06, 0, 0], [-0.04, 0.03, 0], [0.01, 0, 0.04]]]
    )
    which = (rng.random(20_000) < 0.75).astype(int)
    rates = means[which] + np.einsum("nij,nj->ni", roots[which], rng.standard_normal((20_000, 3)))
    covariances = torch.from_numpy(roots @ roots.transpose(0, 2, 1))
    return np.array([0.25, 0.75]), torch.from_numpy(means), covariances, torch.from_numpy(rates).float()


def test_mixture_recovers_the_rates_it_is_fitted_to(synthetic: tuple) -> None:
    weights, means, covariances, rates = synthetic
    prior = MixturePrior(2, 3)
    assert not prior.fitted
    prior.fit(rates, seed=0)
    assert prior.fitted
    order = prior.weights.argsort()
    torch.testing.assert_close(prior.weights[order].double(), torch.from_numpy(weights), rtol=0, atol=0.02)
    torch.testing.assert_close(prior.means[order].double(), means, rtol=0, atol=0.01)
    found = prior.factors @ prior.factors.mT
    torch.testing.assert_close(found[order].double(), covariances, rtol=0, atol=5e-4)
    samples = prior(torch.arange(20_000), seed=1)
    assert samples.shape == (20_000, 3)
    assert ((samples >= 0) & (samples <= 1)).all()
    torch.testing.assert_close(samples.mean(0), rates.mean(0), rtol=0, atol=0.01)
    torch.testing.assert_close(samples.T.cov(), rates.T.cov(), rtol=0, atol=1e-3)
    near_first = (samples[:, 2] > 0.45).float().mean().item()  # the clusters are drawn by their weights
    assert near_first == pytest.approx(0.25, abs=0.02)


def test_mixture_samples_are_keyed(synthetic: tuple) -> None:
    prior = MixturePrior(2, 3)
    prior.fit(synthetic[3][:500], seed=0)
    whole = prior(torch.arange(10), seed=1)
    assert torch.equal(prior(torch.tensor([3, 8]), seed=1), whole[[3, 8]])
    assert not torch.equal(prior(torch.arange(10), seed=2), whole)
    again = MixturePrior(2, 3)
    again.fit(synthetic[3][:500], seed=0)
    assert torch.equal(again(torch.arange(10), seed=1), whole)


def test_mixture_with_few_rates_uses_fewer_components(synthetic: tuple) -> None:
    prior = MixturePrior(50, 3)
    prior.fit(synthetic[3][:9], seed=0)
    assert int((prior.weights > 0).sum()) == 4
    assert prior.weights.sum().item() == pytest.approx(1)
    assert prior(torch.arange(500), seed=0).isfinite().all()
    prior.fit(torch.full((20, 3), 0.5), seed=0)  # all the same
    assert prior(torch.arange(500), seed=0).mean().item() == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(
    "rates",
    [torch.rand(1, 3), torch.rand(9, 4), torch.rand(9), torch.full((9, 3), torch.nan), np.ones((9, 3))],
    ids=["one", "other-length", "1d", "nan", "numpy"],
)
def test_mixture_refuses_other_rates(rates: Tensor) -> None:
    prior = MixturePrior(2, 3)
    with pytest.raises(InputError, match="rates: got"):
        prior.fit(rates, seed=0)
    assert not prior.fitted


def test_generating_from_the_mixture() -> None:
    model = small(prior="mixture", mixture_components=2).double()
    for module in model.modules():
        if isinstance(module, BNLIF):
            module.momentum = 1.0  # else no neuron fires in evaluation mode yet
    model(random_images(N, 1, 32), seed=SEED)
    model.eval()
    with pytest.raises(InputError, match="fitted"):
        model.generate(2, seed=0)
    from_bottleneck = model.generate(2, seed=0, prior="bottleneck")
    model.mixture.fit(torch.rand(100, D, generator=torch.Generator().manual_seed(0)), seed=0)
    with torch.no_grad():
        whole = model.generate(5, seed=0)
        torch.testing.assert_close(model.generate(2, seed=0, start=3), whole[3:], **EXACT)
    assert not torch.equal(whole[:2], from_bottleneck)
    assert torch.equal(model.generate(2, seed=0, prior="bottleneck"), from_bottleneck)
    with pytest.raises(InputError, match="prior: got 'mixture', accepted are bottleneck"):
        small().generate(2, seed=0, prior="mixture")
    with pytest.raises(InputError, match="prior: got 'gauss'"):
        model.generate(2, seed=0, prior="gauss")


# Layout and learning


def is_channels_last(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
def test_convolutions_get_channels_last(precision: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small(channels=3)
    images = random_images(N, 3, 32).float().contiguous(memory_format=torch.channels_last)
    seen = []
    for name in ("conv2d", "conv_transpose2d"):
        original = getattr(F, name)

        def watched(x: Tensor, weight: Tensor, *args: object, original=original, **options: object) -> Tensor:
            out = original(x, weight, *args, **options)
            seen.append((f"{original.__name__} of {tuple(x.shape)}", is_channels_last(x), is_channels_last(weight)))
            if out.shape[1] > 3:  # the loss makes the images' own, small gradient
                out.register_hook(
                    lambda grad: seen.append((f"gradient {tuple(grad.shape)}", is_channels_last(grad), True))
                )
            return out

        monkeypatch.setattr(F, name, watched)
    with torch.autocast("cpu", precision, enabled=precision == torch.bfloat16):
        out = model(images, seed=SEED)
    F.mse_loss(out.images.float(), images).backward()
    layers = len(model.encoder) + len(model.decoder)
    assert len(seen) == 2 * layers + 1  # forward and backward of each, and the last convolution's forward
    assert all(x and weight for _, x, weight in seen), [entry for entry in seen if not all(entry[1:])]


def test_training_reduces_the_loss_on_digits() -> None:
    torch.manual_seed(0)
    model = ESVAE(latent=16, steps=2)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    images = data.load("digits", "train")
    losses = []
    for number, batch in enumerate(itertools.islice(data.batches(images, 16, seed=0, epoch=0), 30)):
        out = model(batch, seed=number)
        value = F.mse_loss(out.images, batch) + 1e-3 * mmd(out.rates, out.prior_rates)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(value.item())
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5]), losses


# Files


def saved(model: ESVAE, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("kind", MODELS)
def test_model_card(kind: str, training: bool, tmp_path: Path) -> None:
    """It says what is known and has no placeholder; its Python runs, its command trains by the same config."""
    config = preset({"esvae": "best"}.get(kind, kind), "digits")
    few = {"mixture_components": 2} if kind == "esvae" else {}
    config = dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, latent=4, **few),
        train=dataclasses.replace(config.train, seed=7, flip=False, epochs=9),
    )
    model = MODELS[kind](**dataclasses.asdict(config.model))
    if kind == "esvae":
        model.mixture.fit(torch.rand(50, 4), seed=0)
    model.save_pretrained(tmp_path, model_card_kwargs={"training": config} if training else None)
    text = (tmp_path / "README.md").read_text()
    for placeholder in ("More Information", "None", "{{", "[]"):
        assert placeholder not in text
    assert ModelCard(text).data.library_name == "esvae"
    assert f"{sum(p.numel() for p in model.parameters()):,} parameters" in text
    (python,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(python.replace("FOLDER", str(tmp_path)).replace("64", "2"), "README.md", "exec"), names)
    assert names["images"].shape == (2, 1, 32, 32)
    commands = re.findall(r"^esvae train (.*)$", text, re.MULTILINE)
    assert len(commands) == training
    for line in commands:
        arguments = shlex.split(line)
        assert tyro.cli(Train, args=arguments, default=_train_defaults(arguments)).config == config


@pytest.mark.parametrize("preset_name", OF_ESVAE)
def test_saved_models_come_back(preset_name: str, tmp_path: Path) -> None:
    options = dataclasses.asdict(preset(preset_name, "mnist").model) | {
        "latent": D,
        "steps": T,
        "mixture_components": 3,
    }
    model = small(**options)
    images = random_images(N, 1, 32).float()
    with torch.no_grad():
        model(images, seed=SEED)
    if model.mixture is not None:
        model.mixture.fit(torch.rand(50, D), seed=0)
    model.eval()
    folder = saved(model, tmp_path / "model")
    assert {path.name for path in folder.iterdir()} == {"README.md", "config.json", "model.safetensors"}
    again = ESVAE.from_pretrained(folder)
    assert again.config == model.config
    assert not again.training
    with torch.no_grad():
        assert torch.equal(again.generate(3, seed=1), model.generate(3, seed=1))
        assert torch.equal(again.reconstruct(images, seed=1), model.reconstruct(images, seed=1))
    assert is_channels_last(again.encoder[1].transform.weight)


def test_the_whole_config_is_saved(tmp_path: Path) -> None:
    folder = saved(ESVAE(latent=D), tmp_path / "model")
    assert json.loads((folder / "config.json").read_text()) == dataclasses.asdict(ModelConfig(latent=D))


def damage(folder: Path, how: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    weights = folder / "model.safetensors"
    if how == "no-config":
        (folder / "config.json").unlink()
    elif how == "unknown-option":
        (folder / "config.json").write_text(json.dumps(config | {"colour": True}))
    elif how == "bad-option":
        (folder / "config.json").write_text(json.dumps(config | {"latent": "8"}))
    elif how == "other-latent":
        (folder / "config.json").write_text(json.dumps(config | {"latent": 9}))
    elif how == "huge-latent":
        (folder / "config.json").write_text(json.dumps(config | {"latent": 65536}))
    elif how == "other-prior":
        (folder / "config.json").write_text(json.dumps(config | {"prior": "mixture"}))
    elif how == "no-object":
        (folder / "config.json").write_text("[]")
    elif how == "torn-config":
        (folder / "config.json").write_text("{")
    elif how == "beyond-floats":
        (folder / "config.json").write_text(json.dumps(config | {"decay": 10**400}))
    elif how == "integers":
        save_file({key: value.long() for key, value in load_file(weights).items()}, weights)
    elif how in SPOILT:
        tensors = load_file(weights)
        name, value = SPOILT[how]
        tensors[name].view(-1)[-1] = value
        save_file(tensors, weights)
    elif how == "truncated":
        weights.write_bytes(weights.read_bytes()[:-10])
    elif how == "no-weights":
        weights.unlink()
    elif how == "pickle":
        weights.unlink()
        torch.save(ESVAE(**config).state_dict(), folder / "pytorch_model.bin")
    elif how == "pickle-in-its-place":
        weights.write_bytes(pickle.dumps({"to_image.bias": 0}))


SPOILT = {  # the last number of a tensor
    "nan": ("encoder.1.transform.weight", float("nan")),
    "infinite": ("to_image.bias", -float("inf")),
    "infinite-statistic": ("to_latent.neurons.running_mean", float("inf")),
    "variance": ("decoder.0.neurons.running_var", -1.0),
}
DAMAGE = {
    "nan": "'encoder.1.transform.weight' holds NaN or infinity, accepted are finite numbers",
    "infinite": "'to_image.bias' holds NaN or infinity",
    "infinite-statistic": "'to_latent.neurons.running_mean' holds NaN or infinity",
    "variance": "'decoder.0.neurons.running_var' holds negative numbers, accepted is a variance of 0 or above",
    "no-config": "config.json",
    "unknown-option": "'colour'",
    "bad-option": "latent: got '8'",
    "other-latent": "'bottleneck.bias'",
    "huge-latent": "'bottleneck.bias'",
    "other-prior": "'mixture.factors'",
    "no-object": "config.json",
    "torn-config": "config.json",
    "beyond-floats": "decay: got 1000000",
    "integers": "is torch.int64, should be torch.float32",
    "truncated": "model.safetensors",
    "no-weights": "model.safetensors",
    "pickle": "model.safetensors",
    "pickle-in-its-place": "pickle",
}


@pytest.fixture(scope="module")
def small_model() -> ESVAE:
    return small()


@pytest.mark.parametrize("how", DAMAGE)
def test_other_folders_are_refused(how: str, small_model: ESVAE, tmp_path: Path) -> None:
    folder = saved(small_model, tmp_path / "model")
    damage(folder, how)
    with pytest.raises(InputError) as error:
        ESVAE.from_pretrained(folder)
    assert_one_line(error, DAMAGE[how])


def test_of_the_folder_of_a_run(small_model: ESVAE, tmp_path: Path) -> None:
    saved(small_model, tmp_path / "model")
    (tmp_path / "config.json").write_text("{}")  # the run's own
    again = ESVAE.from_pretrained(tmp_path)
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in small_model.state_dict().items())


def test_of_a_run_that_has_not_ended(tmp_path: Path) -> None:
    Run.create(tmp_path / "run", preset("best", "digits").to_dict())
    with pytest.raises(InputError) as error:
        ESVAE.from_pretrained(tmp_path / "run")
    assert_one_line(error, f"{tmp_path / 'run'}: a run that has not ended")


@pytest.mark.parametrize("name", ["./nothing", "/no/such/folder", "fashion", "a/b/c", "someone/"])
def test_a_folder_that_is_not_there(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody's repository has such a name, so that the hub is not asked."""
    monkeypatch.setattr(model_hub, "get_hf_file_metadata", lambda *_, **__: pytest.fail("asked the hub"))
    with pytest.raises(InputError) as error:
        ESVAE.from_pretrained(name)
    assert_one_line(error, f"{name}: no such folder, shipped model or repository")
    assert "a run's folder, fashion-mnist, or OWNER/NAME on the hub" in str(error.value)


def test_a_hub_that_does_not_answer_is_asked_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Its own retries take half a minute, and print each of them."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]  # nothing listens on it any more
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("tried again"))
    url = functools.partial(model_hub.hf_hub_url, endpoint=f"http://127.0.0.1:{port}")
    monkeypatch.setattr(model_hub, "hf_hub_url", url)
    with pytest.raises(InputError) as error:
        ESVAE.from_pretrained("someone/unknown", cache_dir=tmp_path)
    assert_one_line(error, "someone/unknown: no such folder, shipped model or repository: ")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("there", [("config.json",), ("config.json", "model.safetensors")], ids=["half", "whole"])
def test_without_a_network_what_was_downloaded_is_read(
    there: tuple[str, ...],
    small_model: ESVAE,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Of a half of it the other half was asked for again and again."""
    saved(small_model, tmp_path / "saved")
    cached = tmp_path / "cache" / "models--someone--model"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("abc")
    (cached / "snapshots" / "abc").mkdir(parents=True)
    for name in there:
        shutil.copy(tmp_path / "saved" / name, cached / "snapshots" / "abc")

    def unreachable(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(model_hub, "get_hf_file_metadata", unreachable)
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("tried again"))
    if len(there) == 2:
        again = ESVAE.from_pretrained("someone/model", cache_dir=tmp_path / "cache")
        assert torch.equal(again.to_image.bias, small_model.to_image.bias)
    else:
        with pytest.raises(InputError) as error:
            ESVAE.from_pretrained("someone/model", cache_dir=tmp_path / "cache")
        assert_one_line(error, "someone/model: no such folder, shipped model or repository: no network")
    assert capfd.readouterr() == ("", "")


def test_the_card_names_a_folder_without_its_place(tmp_path: Path) -> None:
    config = dataclasses.replace(preset("best", "digits"), data="folder:/home/someone/cats")
    small().save_pretrained(tmp_path, model_card_kwargs={"training": config})
    text = (tmp_path / "README.md").read_text()
    assert "# ESVAE, trained on the image folder cats\n" in text
    assert "[More Information Needed]" not in text


@pytest.mark.parametrize("shape", [(2, 1, 28, 28), (2, 3, 32, 32), (1, 32, 32), (1, 2, 1, 32, 32)])
def test_images_of_another_size_are_refused(small_model: ESVAE, shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError) as error:
        small_model.reconstruct(torch.zeros(shape))
    assert_one_line(error, f"images: got shape {shape}, accepted is (N, 1, 32, 32)")


@pytest.fixture
def hub(small_model: ESVAE, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository of the hub: the folder that its files are downloaded from."""
    folder = saved(small_model, tmp_path / "model")

    @functools.wraps(hub_mixin.hf_hub_download)
    def download(repo_id: str, filename: str, **_: object) -> str:
        assert repo_id == "someone/model"
        if not (folder / filename).exists():
            raise EntryNotFoundError(filename)
        return str(folder / filename)

    for module in (hub_mixin, model_hub):
        monkeypatch.setattr(module, "hf_hub_download", download)
    monkeypatch.setattr(model_hub, "get_hf_file_metadata", lambda *_, **__: None)
    return folder


def test_models_come_from_the_hub(hub: Path, small_model: ESVAE) -> None:
    again = ESVAE.from_pretrained("someone/model", revision="main")
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in small_model.state_dict().items())


def test_a_pickle_from_the_hub_is_not_opened(hub: Path) -> None:
    damage(hub, "pickle")
    with pytest.raises(InputError) as error:
        ESVAE.from_pretrained("someone/model")
    assert_one_line(error, "someone/model: no model.safetensors")
