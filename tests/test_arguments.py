"""What users call models and analyses with: one line names the argument, what came and what is accepted."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from esvae import ESVAE, arguments, classify, data, energy, evaluate, rates, robustness
from esvae.config import ModelConfig
from esvae.errors import InputError
from esvae.models import FSVAE, GAN, MODELS, VAE, Model

N, D, T = 2, 5, 3
NAN = float("nan")


@pytest.fixture(scope="module")
def models() -> dict[str, Model]:
    torch.manual_seed(0)
    made = {kind: make(latent=D, **({} if kind == "vae" else {"steps": T})).eval() for kind, make in MODELS.items()}
    return {kind: model.requires_grad_(False) for kind, model in made.items()}


def images(value: float = 0.5, dtype: torch.dtype = torch.float32, channels: int = 1) -> Tensor:
    return torch.full((N, channels, 32, 32), value, dtype=torch.float64).to(dtype)


def with_one(tensor: Tensor, value: float) -> Tensor:
    """The last element is `value`."""
    tensor = tensor.clone()
    tensor.view(-1)[-1] = value
    return tensor


IMAGES: dict[str, tuple[Any, str]] = {
    "uint8": (images(1, torch.uint8), "got dtype uint8, accepted is float32; esvae.data.normalize"),
    "fp64": (images(dtype=torch.float64), "got dtype float64, accepted is float32"),
    "bf16": (images(dtype=torch.bfloat16), "got dtype bfloat16, accepted is float32"),
    "numpy": (images().numpy(), r"got ndarray, accepted is a tensor \(N, 1, 32, 32\)"),
    "colour": (images(channels=3), r"got shape \(2, 3, 32, 32\), accepted is \(N, 1, 32, 32\)"),
    "one": (images()[0], r"got shape \(1, 32, 32\), accepted is \(N, 1, 32, 32\)"),
    "0-255": (with_one(images(), 255.0), "got values from 0.5 to 255, accepted are finite values from -1 to 1"),
    "below": (with_one(images(), -1.001), "got values from -1.001 to 0.5, accepted are finite values from -1 to 1"),
    "nan": (with_one(images(), NAN), "got NaN, accepted are finite values from -1 to 1"),
    "elsewhere": (images().to("meta"), "got device meta, accepted is the model's, cpu"),
}


@pytest.mark.parametrize("bad", IMAGES)
@pytest.mark.parametrize("kind", ["esvae", "fsvae", "vae"])
def test_images(kind: str, bad: str, models: dict[str, Model]) -> None:
    value, line = IMAGES[bad]
    model = models[kind]
    calls: list[Callable[[Any], Any]] = [model.encode, model.reconstruct, lambda x: model(x, seed=0)]
    for call in calls if kind == "vae" else [*calls, model.latent_spikes]:
        with pytest.raises(InputError, match=f"^images: {line}"):
            call(value)


SPIKES: dict[str, tuple[Any, str]] = {
    "d": (torch.zeros(T, N, D + 1), r"got shape \(3, 2, 6\), accepted is \(3, N, 5\)"),
    "T": (torch.zeros(T + 1, N, D), r"got shape \(4, 2, 5\), accepted is \(3, N, 5\)"),
    "no T": (torch.zeros(N, D), r"got shape \(2, 5\), accepted is \(3, N, 5\)"),
    "uint8": (torch.zeros(T, N, D, dtype=torch.uint8), "got dtype uint8, accepted is float32"),
    "fp64": (torch.zeros(T, N, D).double(), "got dtype float64, accepted is float32"),
    "two": (with_one(torch.zeros(T, N, D), 2.0), "got values from 0 to 2, accepted are finite values from 0 to 1"),
    "nan": (with_one(torch.zeros(T, N, D), NAN), "got NaN, accepted are finite values from 0 to 1"),
}


@pytest.mark.parametrize("bad", SPIKES)
@pytest.mark.parametrize("kind", ["esvae", "fsvae", "gan"])
def test_spikes(kind: str, bad: str, models: dict[str, Model]) -> None:
    value, line = SPIKES[bad]
    with pytest.raises(InputError, match=f"^spikes: {line}"):
        models[kind].decode(value)


RATES: dict[str, tuple[Any, str]] = {
    "above": (with_one(torch.zeros(N, D), 2.0), "got values from 0 to 2, accepted are finite values from 0 to 1"),
    "nan": (with_one(torch.zeros(N, D), NAN), "got NaN, accepted are finite values from 0 to 1"),
    "d": (torch.zeros(N, D + 1), r"got shape \(2, 6\), accepted is \(N, 5\)"),
    "integers": (torch.zeros(N, D, dtype=torch.int64), "got dtype int64, accepted are float64, float32"),
    "list": ([0.5], r"got list, accepted is a tensor \(N, 5\)"),
}


@pytest.mark.parametrize("bad", RATES)
@pytest.mark.parametrize("kind", ["esvae", "gan"])
def test_rates(kind: str, bad: str, models: dict[str, Model]) -> None:
    value, line = RATES[bad]
    with pytest.raises(InputError, match=f"^rates: {line}"):
        models[kind].sample(value)


def test_the_latent_of_the_vae(models: dict[str, Model]) -> None:
    model, zeros = models["vae"], torch.zeros(N, D)
    for bad, line in ((with_one(zeros, NAN), "got NaN"), (zeros[:, 1:], "got shape"), (zeros.double(), "got dtype")):
        with pytest.raises(InputError, match=f"^latent: {line}"):
            model.decode(bad)
    with pytest.raises(InputError, match=r"^mean: got values from 0 to inf, accepted are finite values$"):
        model.sample(with_one(zeros, float("inf")), zeros)
    with pytest.raises(InputError, match=r"^log_variance: got shape"):
        model.sample(zeros, zeros[0])


NUMBERS: dict[str, tuple[str, dict[str, Any]]] = {
    "n-negative": ("n: got -1, accepted are integers of at least 0", {"n": -1}),
    "n-float": ("n: got 2.0, accepted are integers of at least 0", {"n": 2.0}),
    "n-bool": ("n: got True, accepted are integers", {"n": True}),
    "seed-float": ("seed: got 1.5, accepted are integers", {"seed": 1.5}),
    "seed-large": ("seed: got 18446744073709551616, accepted are -9223372036854775808 to", {"seed": 2**64}),
    "seed-tensor": (r"seed: got a tensor \(2,\) of int64, accepted is", {"seed": torch.zeros(2, dtype=torch.int64)}),
    "start-negative": ("start: got -1, accepted are 0 to", {"start": -1}),
    "start-tensor": (r"start: got a tensor \(1,\) of float32, accepted is an int64 tensor", {"start": torch.zeros(1)}),
    "prior": ("prior: got 'gauss', accepted are", {"prior": "gauss"}),
}


@pytest.mark.parametrize("bad", NUMBERS)
@pytest.mark.parametrize("kind", MODELS)
def test_numbers(kind: str, bad: str, models: dict[str, Model]) -> None:
    line, options = NUMBERS[bad]
    with pytest.raises(InputError, match=f"^{line}"):
        models[kind].generate(**{"n": 2, "seed": 0} | options)


@pytest.mark.parametrize("ids", [torch.arange(3), torch.arange(2.0), [0, 1]], ids=["length", "float", "list"])
@pytest.mark.parametrize("kind", ["esvae", "fsvae", "vae"])
def test_sample_ids(kind: str, ids: Any, models: dict[str, Model]) -> None:
    with pytest.raises(InputError, match=r"^sample_ids: got .*, accepted is an int64 tensor of shape \(2,\)"):
        models[kind].reconstruct(images(), seed=0, sample_ids=ids)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", MODELS)
def test_integers_of_numpy(kind: str, models: dict[str, Model]) -> None:
    """They draw what Python's draw."""
    model = models[kind]
    drawn = model.generate(np.int64(2), seed=np.int64(7), start=np.uint8(3))
    assert torch.equal(drawn, model.generate(2, seed=7, start=3))
    if kind != "gan":
        assert torch.equal(model.reconstruct(images(), seed=np.int32(7)), model.reconstruct(images(), seed=7))
        for a, b in zip(model(images(), seed=np.int64(7)), model(images(), seed=7), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("kind", MODELS)
def test_without_a_seed_torch_draws_one(kind: str, models: dict[str, Model]) -> None:
    model = models[kind]
    calls: list[Callable[[], Tensor]] = [lambda: model.generate(2)]
    if kind != "gan":
        calls.append(lambda: model.reconstruct(images()))
    if kind in ("esvae", "gan"):
        calls.append(lambda: model.sample(torch.full((N, D), 0.5)))
    if kind == "vae":
        calls.append(lambda: model.sample(torch.zeros(N, D), torch.zeros(N, D)))
    for call in calls:
        torch.manual_seed(3)
        first = call()
        torch.manual_seed(3)
        before = torch.get_rng_state()
        assert torch.equal(call(), first)
        assert not torch.equal(torch.get_rng_state(), before)


def test_steps() -> None:
    model = ESVAE(latent=D, steps=T)
    model.steps = np.int64(2)
    assert type(model.steps) is int
    for bad in (2.0, True, 0, "2", 1001):
        with pytest.raises(InputError, match=f"^steps: got {bad!r}, accepted"):
            model.steps = bad


def test_a_config_takes_the_numbers_of_numpy() -> None:
    config = ModelConfig(latent=np.int64(8), steps=np.int32(4), threshold=np.float32(0.25), decay=np.float64(0.5))
    assert config == ModelConfig(latent=8, steps=4, threshold=0.25, decay=0.5)
    assert [type(v) for v in (config.latent, config.steps, config.threshold)] == [int, int, float]
    json.dumps(ESVAE(latent=np.int64(8), steps=np.int64(2))._hub_mixin_config)
    for bad in (np.float32(8), np.array(8), torch.tensor(8)):
        with pytest.raises(InputError, match=r"^latent: got .*, accepted is int"):
            ModelConfig(latent=bad)


def test_numbers_of_the_analyses(models: dict[str, Model]) -> None:
    """Refused in a line, and what they return can be written as JSON where NumPy's were given."""
    model, some = models["esvae"], data.load("digits", "test", labels=True).part(0, 20)
    for call in (
        lambda **options: evaluate.generated(model, 2, **options),
        lambda **options: evaluate.evaluate(model, "digits", prior="bottleneck", **options),
        lambda **options: robustness.robustness(model, some, **options),
        lambda **options: classify.classify(model, some, some, **options),
        lambda **options: energy.energy(model, some, **options),
        lambda **options: rates.rates(model, some, prior="bottleneck", **options),
    ):
        with pytest.raises(InputError, match=r"^seed: got 1\.5, accepted are integers"):
            call(seed=1.5)
    for bad in (-1, 0, 2.0):
        with pytest.raises(InputError, match=f"^count: got {bad}, accepted are integers of at least 1"):
            evaluate.generated(model, bad)
    with pytest.raises(InputError, match=r"^n: got 2\.0, accepted are integers 1 to 20"):
        energy.energy(model, some, n=2.0)
    seed = np.int64(3)
    json.dumps(energy.energy(model, some, n=np.int64(2), seed=seed))
    json.dumps(robustness.robustness(model, some, probabilities=np.array([0.5]), seeds=np.int64(2), seed=seed))
    json.dumps(rates.rates(model, some, prior="bottleneck", seed=seed))


def test_a_precision_that_is_none(models: dict[str, Model]) -> None:
    """Nothing but bf16 was asked for by its name: another word was fp32 without a word."""
    with pytest.raises(InputError, match=r"^precision: got 'fp16', accepted are fp32, bf16"):
        evaluate.generated(models["esvae"], 1, precision="fp16")


def test_autocast_may_change_the_dtype(models: dict[str, Model]) -> None:
    model = models["esvae"]
    with torch.autocast("cpu", torch.bfloat16):
        decoded = model.decode(model.sample(model.encode(images()), seed=0))
    assert decoded.shape == (N, 1, 32, 32)


def test_values_are_not_looked_at_where_nobody_can() -> None:
    """Under torch's transforms, and where looking would wait for a GPU."""
    looked: list[bool] = []

    def function(x: Tensor) -> Tensor:
        looked.append(arguments._may_look(x))
        arguments.check_tensor("x", x, (D,), None, 0, 1)
        return x.sum()

    torch.func.vmap(function)(torch.zeros(N, D))
    torch.compile(function, backend="eager", fullgraph=True)(torch.zeros(D))
    assert looked == [False, False]
    assert arguments._may_look(torch.zeros(1))
    assert not arguments._may_look(torch.zeros(1, device="meta"))


def test_all_kinds_are_here(models: dict[str, Model]) -> None:
    assert [type(model) for model in models.values()] == [ESVAE, FSVAE, VAE, GAN]
