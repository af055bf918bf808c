"""Convolutional networks of Norse's layers on real images: trained beside their converted copies."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from kernel_helpers import assert_near
from torch import Tensor, nn

pytest.importorskip("norse", reason="Norse is not installed")
import norse.torch as norse
from real_data import images as real_images

from esvae_kernels import dropin
from esvae_kernels.dropin import norse as ours

TIME, BATCH, STEPS = 5, 24, 8
PARAMETERS = {"tau_mem_inv": torch.tensor(400.0), "v_th": torch.tensor(0.5)}


@cache
def batch(size: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Images (size, 1, 8, 8) in [0, 2], and their labels."""
    images, labels = real_images(size, dtype=dtype)
    return 2 * images, labels


def in_time(width: int = 8) -> nn.Module:
    """Time first: `Lift` around what knows no time."""
    p = norse.LIFParameters(**PARAMETERS)
    return norse.SequentialState(
        norse.Lift(nn.Conv2d(1, width, 3, padding=1)),
        norse.LIF(p),
        norse.Lift(nn.MaxPool2d(2)),
        norse.Lift(nn.Conv2d(width, 2 * width, 3, padding=1)),
        norse.LIF(p, record_states=True),
        nn.Flatten(2),
        norse.Lift(nn.Linear(32 * width, 10)),
        norse.LI(),
    )


def of_cells(width: int = 8) -> nn.Module:
    """A network of one time step; v_th of the second layer is learnt."""
    learnt = nn.Parameter(torch.full((2 * width, 1, 1), 0.5))
    net = norse.SequentialState(
        nn.Conv2d(1, width, 3, padding=1),
        norse.LIFBoxCell(norse.LIFBoxParameters(**PARAMETERS)),
        nn.MaxPool2d(2),
        nn.Conv2d(width, 2 * width, 3, padding=1),
        norse.LIFCell(norse.LIFParameters(**PARAMETERS | {"v_th": learnt}, method="triangle", alpha=1.0)),
        nn.Flatten(),
        nn.Linear(32 * width, 10),
        norse.LICell(),
    )
    net.register_parameter("v_th", learnt)
    return net


def call(net: nn.Module, x: Tensor) -> Tensor:
    return net(x)[0]


def loop(net: nn.Module, x: Tensor) -> Tensor:
    return norse.Lift(net)(x)[0]


def unroll(net: nn.Module, x: Tensor) -> Tensor:
    return ours.unroll(net, x)[0]


Run = Callable[[nn.Module, Tensor], Tensor]
MODELS = {"in-time": (in_time, call, call), "loop": (of_cells, loop, loop), "unroll": (of_cells, loop, unroll)}
on_models = pytest.mark.parametrize(("make", "their_run", "run"), MODELS.values(), ids=MODELS)


def train_step(
    net: nn.Module, optimiser: torch.optim.Optimizer, run: Run, images: Tensor, labels: Tensor, time: int
) -> float:
    potentials = run(net, images.expand(time, *images.shape))
    loss = F.cross_entropy(10 * potentials.mean(0), labels)
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    return loss.item()


def losses(net: nn.Module, run: Run, dtype: torch.dtype) -> list[float]:
    images, labels = batch(4 * BATCH, dtype)
    optimiser = torch.optim.Adam(net.parameters(), lr=1e-2)
    batches = list(zip(images.split(BATCH), labels.split(BATCH), strict=True))
    return [train_step(net, optimiser, run, *batches[k % len(batches)], TIME) for k in range(STEPS)]


def pair(make: Callable[[], nn.Module], dtype: torch.dtype) -> tuple[nn.Module, nn.Module]:
    """Norse's, and one that starts the same and is converted."""
    nets = []
    for _ in range(2):
        torch.manual_seed(0)
        nets.append(make().to(dtype))
    assert len(dropin.convert(nets[1]).replaced) == 2
    return nets[0], nets[1]


@on_models
def test_the_same_losses_in_fp64(make: Callable, their_run: Run, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ours.LEAST_ELEMENTS, "cpu", 0)
    theirs, net = pair(make, torch.float64)
    expected = losses(theirs, their_run, torch.float64)
    assert losses(net, run, torch.float64) == pytest.approx(expected, rel=1e-8)
    assert expected[-1] < 0.9 * expected[0]
    for p, q in zip(theirs.parameters(), net.parameters(), strict=True):
        assert_near(q, p, 1e-6)


@on_models
def test_the_same_losses_in_fp32(make: Callable, their_run: Run, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Closely at first; then single spikes at the threshold make a difference that training does not feel."""
    monkeypatch.setitem(ours.LEAST_ELEMENTS, "cpu", 0)
    theirs, net = pair(make, torch.float32)
    expected, found = losses(theirs, their_run, torch.float32), losses(net, run, torch.float32)
    assert found[:2] == pytest.approx(expected[:2], rel=1e-3)
    assert found == pytest.approx(expected, rel=0.05)


@on_models
def test_a_model_that_changes_midway(make: Callable, their_run: Run, run: Run) -> None:
    """Converted and reverted between training steps, its optimiser goes on."""
    theirs, net = pair(make, torch.float64)
    images, labels = batch(BATCH, torch.float64)
    optimisers = [torch.optim.Adam(model.parameters(), lr=5e-3) for model in (theirs, net)]
    for k in range(5):
        (dropin.revert, dropin.convert)[k % 2](net)
        expected, found = (
            train_step(model, optimiser, each, images, labels, TIME)
            for model, optimiser, each in zip((theirs, net), optimisers, (their_run, run), strict=True)
        )
        assert found == pytest.approx(expected, rel=1e-9)


def test_evaluation() -> None:
    theirs, net = pair(in_time, torch.float64)
    losses(theirs, call, torch.float64)
    net.load_state_dict(theirs.state_dict())
    images, _ = batch(64, torch.float64)
    with torch.no_grad():
        outputs = [copy.deepcopy(model).eval()(images.expand(TIME, *images.shape)) for model in (theirs, net)]
    assert_near(outputs[1][0], outputs[0][0], 1e-12)
