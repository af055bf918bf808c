"""A training step of every kind of model: it learns, and a CUDA graph can replay it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from kinds import BATCH, CASES, config_of, digits
from recording import Recording

from esvae import data, train
from esvae.models import MODELS, Model
from esvae.runs import Run


@pytest.fixture(scope="module")
def sets() -> dict[str, data.ImageSet]:
    return digits()


def trainer_of(
    case: str, tmp_path: Path, sets: dict[str, data.ImageSet], steps: int | None = None, **options
) -> train.Trainer:
    config = config_of(case, **options)
    if steps:
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, steps=steps))
    return train.trainer_of(config)(config, Run(tmp_path, {}), sets, torch.device("cpu"))


@pytest.mark.parametrize("case", [case for case in CASES if case != "gan"])
def test_the_loss_falls(case: str, tmp_path: Path, sets: dict[str, data.ImageSet]) -> None:
    made = trainer_of(case, tmp_path, sets, lr=5e-3)
    images = data.normalize(sets["train"].pixels[:BATCH])
    losses = [float(made._step(images)["loss"]) for _ in range(10)]
    assert min(losses[-3:]) < 0.8 * losses[0], losses
    start = MODELS[made.model.kind](**dataclasses.asdict(made.model.config))
    moved = [n for n, p in made.model.named_parameters() if not torch.equal(p, start.get_parameter(n))]
    assert len(moved) == len(list(start.parameters()))


@pytest.mark.few(3)
@pytest.mark.parametrize("case", CASES)
def test_a_training_step_as_a_graph(case: str, tmp_path: Path, sets: dict[str, data.ImageSet]) -> None:
    """Recorded once and replayed: no operation waits for the device, and each step is the one that Python would do."""
    images = [data.normalize(part) for part in sets["train"].pixels.split(BATCH)]

    def made() -> train.Trainer:
        steps = 7 if case == "fsvae" else None  # so that scheduled sampling takes place
        new = trainer_of(case, tmp_path, sets, steps, schedule="one-cycle", clip=1.0)
        new.model.double(), new.average.double(), new.model.train()
        return new

    plain, recorded = made(), made()
    for optimizer in recorded.optimizers.values():
        for group in optimizer.param_groups:
            group["lr"] = torch.tensor(group["lr"])
    given = [images[0].double(), torch.tensor([1]), *torch.zeros(3, dtype=torch.float64)]
    seeds, numbers = (5, 6, 7), [(0.5, 0.0, 0.0), (1.0, 0.3, 0.5), (0.7, 0.5, 1.0)]

    def give(index: int) -> None:
        values = (images[index].double(), torch.tensor([seeds[index]]), *map(torch.tensor, numbers[index]))
        for own, value in zip(given, values, strict=True):
            own.copy_(value)

    give(0)
    expected = plain._update(images[0].double(), seeds[0], *numbers[0])
    found = recorded._update(*given)  # makes the optimizers' states
    recording = None
    for index in (1, 2):
        give(index)
        expected = plain._update(images[index].double(), seeds[index], *numbers[index])
        if recording is None:
            recording = Recording(recorded._update, *given)
            found = recording.results
        else:
            found = recording.replay()
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-8, msg=name)
    assert_close(plain.model, recorded.model)
    assert_close(plain.average, recorded.average)


def assert_close(a: Model, b: Model) -> None:
    for (name, expected), found in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-8, msg=name)
