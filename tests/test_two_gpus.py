"""On a GPU that is not the current one: graphs and kernels, seen by a stand-in for `torch.cuda`."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor
from two_gpus import SECOND, OnSecond, TwoGpus

from esvae.graph import WARM, Replay


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Iterator[TwoGpus]:
    with OnSecond():
        yield TwoGpus(monkeypatch)


# ------------------------------------------------------------------------------------------------------------- graphs


def doubling(gpus: TwoGpus, currents: list[int] | None = None) -> Callable[[Tensor], Tensor]:
    """A function of one launch; `currents` gets the GPU that is current at each call."""

    def function(x: Tensor) -> Tensor:
        (currents if currents is not None else []).append(gpus.current)
        out = torch.zeros_like(x)
        gpus.launch(x, lambda: out.copy_(2 * x))
        return out

    return function


def test_a_graph_on_a_gpu_that_is_not_current(gpus: TwoGpus) -> None:
    """It is replayed with every new input, and Python runs no more than for warm-up and capture."""
    currents: list[int] = []
    replay = Replay(doubling(gpus, currents))
    for k in range(WARM + 4):
        assert replay(torch.full((3,), float(k))).tolist() == [2.0 * k] * 3
    assert currents == [SECOND.index] * (WARM + 1)
    assert gpus.current == 0


def test_one_stream_for_warm_up_and_capture(gpus: TwoGpus) -> None:
    """Each keeps the memory of its activations; that of other shapes is taken over."""
    before, replay = len(gpus.made), Replay(doubling(gpus))
    for size in (3, 5):
        for _ in range(WARM + 2):
            replay(torch.zeros(size))
    (made,) = gpus.made[before:]
    assert made.device == SECOND


@pytest.mark.parametrize("raised", [RuntimeError, KeyboardInterrupt])
def test_a_capture_that_fails_is_told_and_done_again(gpus: TwoGpus, raised: type[BaseException]) -> None:
    double, fails = doubling(gpus), True

    def function(x: Tensor) -> Tensor:
        if gpus.recording and fails:
            raise raised("in the capture")
        return double(x)

    replay = Replay(function)
    for k in range(WARM):
        replay(torch.full((3,), float(k)))
    with pytest.raises(raised, match="in the capture"):
        replay(torch.ones(3))
    assert replay.graph is None
    fails = False
    for k in range(WARM + 3):
        assert replay.graph is None or k > WARM
        assert replay(torch.full((3,), float(k))).tolist() == [2.0 * k] * 3
    assert replay.graph is not None
