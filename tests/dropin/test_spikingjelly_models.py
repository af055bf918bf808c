"""Whole networks of SpikingJelly's layers: as they are, and converted, trained side by side on real images."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from kernel_helpers import assert_near
from torch import nn

pytest.importorskip("spikingjelly.activation_based", reason="SpikingJelly is not installed")
from real_data import images as real_images
from spikingjelly.activation_based import functional
from spikingjelly_models import lif, plif, sew_resnet, train_step, vgg

from esvae_kernels.dropin import convert, revert

MODELS = {
    "VGG-LIF": lambda: vgg(),
    "VGG-PLIF": lambda: vgg(spiking=plif),
    "SEW-ResNet-IF": lambda: sew_resnet(),
    "SEW-ResNet-PLIF": lambda: sew_resnet(spiking=plif),
}
BATCH, STEPS, TIME = 16, 13, 4  # the last step sees the first one's images
on_models = pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)


@pytest.fixture(autouse=True)
def one_thread(threads: None) -> None:
    """Threads that wait for each other take longer than these layers."""
    torch.set_num_threads(1)


def pair(make: Callable[[], nn.Module], dtype: torch.dtype) -> tuple[nn.Module, nn.Module]:
    """The same network twice, the second converted."""
    torch.manual_seed(0)
    theirs = make().to(dtype)
    ours = copy.deepcopy(theirs)
    assert len(convert(ours, strict=True).replaced) >= 5
    return theirs, ours


def losses(model: nn.Module, dtype: torch.dtype, steps: int = STEPS) -> list[float]:
    images, labels = real_images(BATCH * 4, dtype=dtype)
    optimiser = torch.optim.Adam(model.parameters(), lr=2e-2)
    batches = list(zip(images.split(BATCH), labels.split(BATCH), strict=True))
    return [train_step(model, optimiser, *batches[k % len(batches)], TIME) for k in range(steps)]


@pytest.mark.few(2)
@on_models
def test_the_same_losses_in_fp64(make: Callable[[], nn.Module]) -> None:
    theirs, ours = pair(make, torch.float64)
    expected = losses(theirs, torch.float64)
    assert losses(ours, torch.float64) == pytest.approx(expected, rel=1e-9)
    assert expected[-1] < 0.9 * expected[0]
    for p, q in zip(theirs.state_dict().values(), ours.state_dict().values(), strict=True):
        assert_near(q.double(), p.double(), 1e-7)


@pytest.mark.few(2)
@on_models
def test_the_same_losses_in_fp32(make: Callable[[], nn.Module]) -> None:
    """Closely at first; then single spikes at the threshold make a difference that training does not feel."""
    theirs, ours = pair(make, torch.float32)
    expected, found = losses(theirs, torch.float32), losses(ours, torch.float32)
    assert found[:2] == pytest.approx(expected[:2], rel=1e-3)
    assert found == pytest.approx(expected, rel=0.05)


@pytest.mark.few(2)
@on_models
def test_evaluation(make: Callable[[], nn.Module]) -> None:
    theirs, ours = pair(make, torch.float64)
    losses(theirs, torch.float64, 4)
    ours.load_state_dict(theirs.state_dict())
    images, _ = real_images(64, dtype=torch.float64)
    with torch.no_grad():
        outputs = [model.eval()(images.expand(TIME, *images.shape)) for model in (theirs, ours)]
    assert_near(outputs[1], outputs[0], 1e-12)


def test_a_model_that_changes_midway() -> None:
    """Converted and reverted between training steps, its optimiser goes on."""
    theirs, ours = (vgg().double() for _ in range(2))
    ours.load_state_dict(theirs.state_dict())
    images, labels = real_images(BATCH, dtype=torch.float64)
    optimisers = [torch.optim.Adam(model.parameters(), lr=5e-3) for model in (theirs, ours)]
    for k in range(6):
        (convert, revert)[k % 2](ours)
        expected, found = (
            train_step(model, optimiser, images, labels, TIME)
            for model, optimiser in zip((theirs, ours), optimisers, strict=True)
        )
        assert found == pytest.approx(expected, rel=1e-10)


def test_step_by_step_is_multi_step() -> None:
    """A loop over single steps of a converted network, as in many tutorials."""
    torch.manual_seed(0)
    model = sew_resnet(spiking=lif).double().eval()
    convert(model, strict=True)
    images, _ = real_images(16, dtype=torch.float64)
    with torch.no_grad():
        at_once = model(images.expand(TIME, *images.shape))
        functional.reset_net(model)
        functional.set_step_mode(model, "s")
        one_by_one = torch.stack([model(images) for _ in range(TIME)])
    assert at_once.std() > 0.01
    assert_near(one_by_one, at_once, 1e-12)
