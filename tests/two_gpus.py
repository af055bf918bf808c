"""Two GPUs in Python, of which tensors are on the second and the first is current: finds what is launched, recorded or
waited for on the current GPU where it should be that of the tensors.

`TwoGpus` takes the place of what `torch.cuda` has of devices, streams and graphs. `OnSecond` has every tensor of the
CPU say that it is on `cuda:1`, and lets our ops see it so too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from esvae_kernels.ops.bn_lif import op as bn_lif
from esvae_kernels.ops.lif import op as lif
from esvae_kernels.ops.poisson import op as poisson

SECOND = torch.device("cuda", 1)
RUN = {
    "lif_fwd": lif._lif,
    "lif_bwd": lif._lif_backward,
    "bn_lif_statistics": bn_lif._statistics,
    "bn_lif_correct": bn_lif._correct,
    "poisson_fwd": poisson._poisson,
    "poisson_bwd": poisson._poisson_backward,
}


class OnSecond(TorchFunctionMode):
    def __torch_function__(
        self, function: Callable, types: object, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        if function == Tensor.device.__get__:  # type: ignore[attr-defined]
            return SECOND
        if function == Tensor.is_cuda.__get__:  # type: ignore[attr-defined]
            return True
        args = tuple("cpu" if isinstance(a, torch.device) else a for a in args)
        kwargs = {name: "cpu" if isinstance(a, torch.device) else a for name, a in (kwargs or {}).items()}
        if getattr(function, "namespace", None) == "esvae_kernels":
            with self:  # an op that torch calls would see its tensors on the CPU
                return RUN[function._opname](*args, **kwargs)
        return function(*args, **kwargs)


class Stream:
    def __init__(self, gpus: TwoGpus, device: torch.device | int | None) -> None:
        self.device = torch.device("cuda", gpus.index(device))
        self.cuda_stream = len(gpus.made) + 1
        gpus.made.append(self)

    def wait_stream(self, other: Stream) -> None:
        assert self.device == other.device, "a stream waits for one of another GPU"


class Graph:
    def __init__(self) -> None:
        self.work: list[Callable[[], None]] = []

    def replay(self) -> None:
        for work in self.work:
            work()


class TwoGpus:
    """Attributes: `current`, the number of the current GPU; `streams`, each GPU's current one; `made`, all streams."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.current, self.made = 0, []
        self.streams = [Stream(self, 0), Stream(self, 1)]
        self.recording: tuple[Graph, Stream] | None = None
        patch.setattr(torch.cuda, "is_available", lambda: True)
        patch.setattr(torch.cuda, "device", self.device)
        patch.setattr(torch.cuda, "device_of", lambda tensor: self.device(tensor.device))
        patch.setattr(torch.cuda, "Stream", lambda device=None: Stream(self, device))
        patch.setattr(torch.cuda, "current_stream", lambda device=None: self.streams[self.index(device)])
        patch.setattr(torch.cuda, "stream", self.stream)
        patch.setattr(torch.cuda, "CUDAGraph", Graph)
        patch.setattr(torch.cuda, "graph", self.graph)

    def index(self, device: torch.device | int | None) -> int:
        if isinstance(device, torch.device):
            device = device.index
        return self.current if device is None else device

    @contextmanager
    def device(self, device: torch.device | int) -> Iterator[None]:
        before, self.current = self.current, self.index(device)
        try:
            yield
        finally:
            self.current = before

    @contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        with self.device(stream.device):
            before, self.streams[self.current] = self.streams[self.current], stream
            try:
                yield
            finally:
                self.streams[stream.device.index] = before

    @contextmanager
    def graph(self, graph: Graph, stream: Stream | None = None) -> Iterator[None]:
        stream = stream or Stream(self, None)
        with self.stream(stream):
            self.recording = graph, stream
            try:
                yield
            finally:
                self.recording = None

    def launch(self, tensor: Tensor, work: Callable[[], Any]) -> None:
        """What torch's own operations do: they run on the tensor's GPU in its current stream, or are recorded there."""
        graph, recorded = self.recording or (None, None)
        if graph and self.streams[tensor.device.index] is recorded:
            graph.work.append(work)
        else:
            work()
