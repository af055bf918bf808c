"""The training step and generation as CUDA graphs: that a replay is another call, seen by a recording on the CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from kernel_helpers import needs_compiled
from model_helpers import random_images
from recording import Recording
from torch import Tensor

from esvae import ESVAE, train
from esvae.config import Config, ModelConfig, TrainConfig
from esvae.data import ImageSet
from esvae.evaluate import reconstruct_by
from esvae.graph import Replay
from esvae.runs import Run


def model() -> ESVAE:
    torch.manual_seed(0)
    return ESVAE(size=32, latent=16, steps=3)


def seed(number: int) -> Tensor:
    return torch.tensor([number])


def test_recording_finds_a_number_that_stays() -> None:
    """The stand-in itself: what is a tensor changes with the input, what is none does not."""
    x, calls = torch.ones(3), []

    def function(x: Tensor) -> Tensor:
        calls.append(1)
        return x * 2 + len(calls)

    recording = Recording(function, x)
    x.fill_(5.0)
    assert recording.replay().tolist() == [11.0] * 3
    assert len(calls) == 1
    with pytest.raises(RuntimeError, match="waits for the device"):
        Recording(lambda x: x.sum().item(), x)


def test_a_seed_may_be_a_tensor() -> None:
    """The same noise, prior and images as of the number."""
    net, images = model().eval(), random_images(2, 1, 32).float()
    for number in (0, 7, 2**40 + 3, 2**63 - 1):
        for a, b in zip(net(images, seed=number), net(images, seed=seed(number)), strict=True):
            assert torch.equal(a, b)
        assert torch.equal(net.generate(3, seed=number, start=5), net.generate(3, seed=seed(number), start=seed(5)))


def test_generation_is_replayed_with_new_seeds() -> None:
    net = model().eval()
    number, start = seed(1), seed(0)
    with torch.no_grad():
        net.generate(4, seed=1)  # brings to the device what is brought once
        recording = Recording(lambda s, first: net.generate(4, seed=s, start=first), number, start)
        for n, first in ((1, 0), (5, 0), (5, 8)):
            number.fill_(n), start.fill_(first)
            assert torch.equal(recording.replay(), net.generate(4, seed=n, start=first))


def test_generation_from_the_mixture_is_replayed() -> None:
    torch.manual_seed(0)
    net = ESVAE(latent=6, steps=3, prior="mixture", mixture_components=4).eval()
    net.mixture.fit(torch.rand(100, 6), seed=0)
    ids = torch.arange(4)
    with torch.no_grad():
        expected = [net.generate(4, seed=1, start=first) for first in (0, 8)]
        # What a capture on a GPU leaves out, and with it the wait for the device.
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(net.mixture), "fitted", True)
            recording = Recording(lambda ids: net.generate(len(ids), seed=1, start=ids[:1]), ids)
        for first, images in zip((0, 8), expected, strict=True):
            ids.copy_(torch.arange(first, first + 4))
            assert torch.equal(recording.replay(), images)


def test_reconstruction_is_replayed() -> None:
    net = model().eval()
    reconstruct = reconstruct_by(net, seed=3, graphs=False)
    images, ids = random_images(4, 1, 32).float(), torch.arange(4)
    others = random_images(4, 1, 32, seed=6).float()
    reconstruct(images, ids)  # brings to the device what is brought once
    recording = Recording(reconstruct, images, ids)
    expected = reconstruct(others, ids + 4).clone()
    images.copy_(others), ids.add_(4)
    assert torch.equal(recording.replay(), expected)


def test_elsewhere_the_function_is_called_as_it_is() -> None:
    replay, x = Replay(lambda x: x + 1), torch.zeros(2)
    for k in range(6):
        assert replay(x + k).tolist() == [k + 1.0] * 2
    assert replay.graph is None


def trainer(tmp_path: Path, in_graph: bool, optimizer: str) -> train.Trainer:
    """`in_graph`: as on a GPU, with the learning rates in tensors."""
    config = Config(
        "digits",
        "paper",
        ModelConfig(size=32, latent=8, steps=2),
        TrainConfig(epochs=2, batch_size=8, ema=0.9, clip=1.0, schedule="one-cycle", warmup=0.2, optimizer=optimizer),
    )
    pixels = torch.randint(256, (32, 1, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    sets = {split: ImageSet("digits", pixels, flip=False) for split in ("train", "test")}
    made = train.Trainer(config, Run(tmp_path, {}), sets, torch.device("cpu"))
    made.optimizers = {"optimizer": train.make_optimizer(made.model, config.train, in_graph=in_graph)}
    made.model.train()
    return made


@needs_compiled
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_training_step_is_replayed(tmp_path: Path, optimizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights, their average, statistics and metrics after six steps, of which a recording did the last three."""
    eager, recorded = trainer(tmp_path, False, optimizer), trainer(tmp_path, True, optimizer)
    recorded.graphs = True

    class Recorded(Replay):
        """With a recording in the place of the graph."""

        def __call__(self, *inputs: Tensor) -> dict[str, Tensor]:
            self.inputs = self.inputs or [i.clone() for i in inputs]
            for own, given in zip(self.inputs, inputs, strict=True):
                own.copy_(given)
            self.calls += 1
            if self.calls < 3:
                return self.function(*self.inputs)
            if self.graph is None:
                self.graph = Recording(self.function, *self.inputs)
                return self.graph.results
            return self.graph.replay()

    monkeypatch.setattr(train, "Replay", Recorded)
    generator = torch.Generator().manual_seed(1)
    for _ in range(6):
        images = torch.rand(8, 1, 32, 32, generator=generator) * 2 - 1
        expected, found = eager._step(images), recorded._step(images)
        assert expected.keys() == found.keys()
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6, msg=name)
    assert recorded.replays[2].calls == 6
    for a, b in ((eager.model, recorded.model), (eager.average, recorded.average)):
        for (name, expected), found in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5, msg=name)
