"""What the processes of test_distributed.py run: `distributed_worker.py NAME ARGUMENTS`, started by torchrun."""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from metric_helpers import Small
from torch import Tensor

import esvae.models.esvae
import esvae.models.poisson
from esvae import cli, data, distributed, evaluate, train
from esvae.config import Config, ModelConfig, TrainConfig
from esvae.errors import InputError, TellsRankZero
from esvae.losses import mmd
from esvae.noise import normal
from esvae.runs import Run
from esvae_kernels import nn, poisson
from esvae_kernels.ops.poisson.reference import uniforms

MODEL = ModelConfig(latent=8, steps=3, sampler_surrogate="straight-through")
TRAIN = TrainConfig(epochs=1, batch_size=8, clip=0.5, ema=0.9, mmd_weight=0.1, precision="fp32")
CONFIG = Config("digits", "best", MODEL, TRAIN)
FSVAE = Config(
    "digits",
    "fsvae",
    ModelConfig(kind="fsvae", latent=4, steps=7, branches=3),
    dataclasses.replace(TRAIN, mmd_weight=1.0, seed=1),
)
GAN = Config("digits", "gan", ModelConfig(kind="gan", latent=8, steps=3), dataclasses.replace(TRAIN, mmd_weight=1e-3))
CASES = {  # what is compared with one process
    "fp64": (CONFIG, torch.float64),
    "fp32": (CONFIG, torch.float32),
    "fsvae": (FSVAE, torch.float64),
    "gan": (GAN, torch.float64),
}
STEPS = 3
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}  # for losses; seen: 6e-16 and 4e-7


def image_sets(images: int) -> dict[str, data.ImageSet]:
    sets = {split: data.load("digits", split) for split in ("train", "test")}
    return {split: data.ImageSet(s.name, s.pixels[:images], flip=True) for split, s in sets.items()}


def all_equal(tensor: Tensor) -> bool:
    """Whether every rank has the same bits."""
    every = [torch.empty_like(tensor) for _ in range(distributed.ranks())]
    dist.all_gather(every, tensor.contiguous())
    return all(torch.equal(tensor, other) for other in every)


@contextmanager
def noise_recorded() -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    """The uniforms that the sampler compares with (T, N, d), and z_n (N, d), of every call by the model."""
    sampled, drawn = [], []

    def recording_poisson(rate: Tensor, steps: int, *, seed: int, stream: int, sample_ids: Tensor, **options):
        sampled.append(uniforms(sample_ids, rate.shape[1], steps, seed, torch.float64, stream))
        return poisson(rate, steps, seed=seed, stream=stream, sample_ids=sample_ids, **options)

    def recording_normal(sample_ids: Tensor, length: int, seed: int, stream: int) -> Tensor:
        drawn.append(normal(sample_ids, length, seed, stream))
        return drawn[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(esvae.models.poisson, "poisson", recording_poisson)
        for module in (esvae.models.poisson, esvae.models.esvae):
            patch.setattr(module, "normal", recording_normal)
        yield sampled, drawn


def some_steps(config: Config, dtype: torch.dtype) -> dict[str, Any]:
    """Training steps on real images: their records, the weights, averages and statistics behind them, the noise."""
    torch.set_default_dtype(dtype)
    try:
        trainer = train.trainer_of(config)(config, Run(Path(), {}), image_sets(8 * STEPS), torch.device("cpu"))
        rank, ranks = distributed.rank(), distributed.ranks()
        batches = data.batches(trainer.sets["train"], TRAIN.batch_size, seed=0, epoch=0, rank=rank, ranks=ranks)
        with noise_recorded() as (sampled, drawn):
            records = [trainer._step(images.to(dtype)) for images in batches]
    finally:
        torch.set_default_dtype(torch.float32)
    means = [{name: float(distributed.mean(value)) for name, value in record.items()} for record in records]
    state = {f"{m}.{k}": t for m in ("model", "average") for k, t in getattr(trainer, m).state_dict().items()}
    return {"records": means, "state": state, "uniforms": sampled, "z_n": drawn}


def check_steps(config: Config, dtype: torch.dtype, alone: dict[str, Any]) -> None:
    """Noise bit for bit, losses and weights within rounding, the same weights on every rank."""
    together, tolerance = some_steps(config, dtype), TOLERANCE[dtype]
    for noise in ("uniforms", "z_n"):
        for whole, own in zip(alone[noise], together[noise], strict=True):
            assert torch.equal(whole.chunk(distributed.ranks(), dim=-2)[distributed.rank()], own), noise
    for step, (record, other) in enumerate(zip(alone["records"], together["records"], strict=True)):
        for name, value in record.items():
            assert abs(value - other[name]) <= tolerance * abs(value), (step, name, value, other[name])
    for name, tensor in alone["state"].items():
        assert all_equal(together["state"][name]), name
        torch.testing.assert_close(together["state"][name], tensor, rtol=tolerance, atol=10 * tolerance, msg=name)


def measures() -> tuple[float, Tensor, dict[str, Any]]:
    """The error of test images, the last batch smaller, generated images, and what Inception sees, of a fresh model."""
    trainer = train.Trainer(CONFIG, Run(Path(), {}), image_sets(21), torch.device("cpu"))
    model, evaluate.BATCH = trainer.best.eval(), 8
    test, images = trainer.sets["test"], evaluate.generated(model, 10, prior="bottleneck")
    yardsticks = evaluate._Yardsticks("digits", test, torch.device("cpu"), False, None, evaluate.untracked)
    yardsticks.inception, yardsticks.train = Small(features=6), trainer.sets["train"]
    return evaluate.mean_squared_error(model, test), images, yardsticks.measure({"": images})


def alone() -> dict[str, Any]:
    """What `checks` expects: all that is compared with one process."""
    steps = {name: some_steps(*case) for name, case in CASES.items()}
    return steps | {"measures": measures()}


def layer_and_inputs() -> tuple[nn.BNLIF, Tensor, Tensor]:
    torch.manual_seed(0)
    layer = nn.BNLIF(5, decay=torch.nn.Parameter(torch.full((5,), 0.6)), threshold=0.3).double()
    y = torch.randn(3, 11, 5, 2, dtype=torch.float64) * 2 + 1
    return layer, y, torch.randn_like(y)


def check_layer() -> None:
    """Unequal parts of a batch, under the group, against the whole batch; of one rank also an empty part."""
    for least in (2, 0):
        _check_layer(least)


def _check_layer(least: int) -> None:
    (layer, y, cotangent), (whole, _, _) = layer_and_inputs(), layer_and_inputs()
    expected = whole(y.requires_grad_())
    (expected * cotangent).sum().backward()
    rank, ranks = distributed.rank(), distributed.ranks()
    cuts = [0, *(least + 2 * r for r in range(ranks - 1)), 11]
    part = slice(cuts[rank], cuts[rank + 1])
    layer.process_group = dist.group.WORLD
    own = y.detach()[:, part].requires_grad_()
    spikes = layer(own)
    (spikes * cotangent[:, part]).sum().backward()
    assert torch.equal(spikes, expected[:, part])
    torch.testing.assert_close(own.grad, y.grad[:, part], rtol=0, atol=1e-12)
    for (name, parameter), other in zip(layer.named_parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(distributed.mean(parameter.grad) * ranks, other.grad, rtol=0, atol=1e-11, msg=name)
    for name, buffer in layer.named_buffers():
        assert all_equal(buffer), name
        torch.testing.assert_close(buffer, whole.get_buffer(name), rtol=0, atol=1e-13, msg=name)


def check_mmd() -> None:
    """Value and gradient of gathered rates; equal ones (bandwidth 0) give 0."""
    torch.manual_seed(0)
    rank, ranks = distributed.rank(), distributed.ranks()
    whole = [torch.rand(8, 6, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    parts = [t.detach().chunk(ranks)[rank].requires_grad_() for t in whole]
    expected, actual = mmd(*whole), mmd(*(distributed.gather(t) for t in parts))
    assert actual == expected
    expected.backward()
    actual.backward()
    for t, part in zip(whole, parts, strict=True):
        torch.testing.assert_close(part.grad / ranks, t.grad.chunk(ranks)[rank], rtol=1e-12, atol=1e-15)
    same = torch.full((2, 6), 0.25, requires_grad=True)
    nothing = mmd(distributed.gather(same), distributed.gather(same.detach()))
    nothing.backward()
    assert nothing == 0
    assert torch.equal(same.grad, torch.zeros(2, 6))


def check_helpers() -> None:
    rank, ranks = distributed.rank(), distributed.ranks()
    calls: list[int] = []
    assert distributed.first(lambda: calls.append(rank) or os.getpid()) == distributed.first(os.getpid)
    assert calls == [0] * (rank == 0)
    for count in (0, 1, 7):
        assert distributed.share(range(count), lambda item: (item, item % ranks)) == [
            (i, i % ranks) for i in range(count)
        ]
    assert distributed.in_turn(lambda: rank) == rank
    with pytest.raises(InputError, match="no space") as raised:
        distributed.first(full_disk)
    assert isinstance(raised.value, TellsRankZero) == (rank > 0)


def full_disk() -> None:
    raise InputError("no space")


def check_batch_size() -> None:
    config = dataclasses.replace(CONFIG, train=dataclasses.replace(TRAIN, batch_size=7))
    vae = Config("digits", "vae", ModelConfig(kind="vae", steps=1), TrainConfig(batch_size=8))
    ranks = distributed.ranks()
    with pytest.raises(InputError, match=f"kind: got 'vae' for {ranks} processes, accepted is one"):
        train.train(vae, Path("nowhere"), sets=image_sets(8))
    with pytest.raises(InputError, match=f"batch_size: got 7 for {ranks} processes, accepted are multiples of {ranks}"):
        train.train(config, Path("nowhere"), sets=image_sets(8))


def checks(expected: str) -> None:
    """All in one start of the processes, which takes longer than the checks."""
    found = torch.load(expected)
    with distributed.processes("cpu"):
        check_helpers()
        check_batch_size()
        check_layer()
        check_mmd()
        for name, case in CASES.items():
            check_steps(*case, found[name])
        error, images, figures = measures()
        assert error == found["measures"][0]
        assert torch.equal(images, found["measures"][1])
        assert figures == found["measures"][2]
        assert figures.keys() >= {"fid", "fid_floor", "inception_score"}


def dying(step: str, *arguments: str) -> None:
    """The command line, whose rank 1 is killed behind a training step."""
    done = train.Trainer._step

    def last(trainer: train.Trainer, images: Tensor) -> dict[str, Tensor]:
        values = done(trainer, images)
        if trainer.step == int(step) and distributed.rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return values

    train.Trainer._step, train.LOG_EVERY = last, 2
    sys.exit(cli.main(arguments))


def silent() -> None:
    """Rank 1 never takes part in what rank 0 waits for."""
    distributed.TIMEOUT = timedelta(seconds=3)
    with distributed.processes("cpu"):
        if distributed.rank() == 1:
            time.sleep(600)
        distributed.first(lambda: None)
        distributed.mean(torch.ones(1))


if __name__ == "__main__":
    {"checks": checks, "dying": dying, "silent": silent}[sys.argv[1]](*sys.argv[2:])
