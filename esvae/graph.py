"""A function of tensors as a CUDA graph: launched once, where a GPU would wait for each of its hundreds of kernels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

WARM = 3  # calls before the capture: optimizers make their state, libraries choose their kernels


class Replay:
    """`function(*inputs)`, captured after a few calls with inputs of the same shapes, and replayed from then on.

    Of the function it asks that all it needs beside its inputs (weights, buffers, an optimizer's state) stays where it
    is in memory and is changed in place; that a number which changes from call to call is an input tensor; and that it
    never waits for the GPU. The results of a replay are overwritten by the next call.

    Inputs of other shapes or on another GPU start anew, and so does the call after a capture that failed. Where the
    first input is not on a GPU, the function is called as it is; where it is, the others are brought there, and that
    GPU is the current one for the function.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.inputs: list[Tensor] = []
        self.calls = 0
        self.stream: Any = None  # one for warm-up and capture: each stream keeps the memory of its activations
        self.graph: Any = None
        self.results: Any = None

    def __call__(self, *inputs: Tensor) -> Any:
        if not inputs[0].is_cuda:
            return self.function(*inputs)
        with torch.cuda.device(inputs[0].device):  # else a capture is of another GPU, and empty
            return self._call(inputs)

    def _call(self, inputs: Sequence[Tensor]) -> Any:
        device = inputs[0].device
        if self.stream is None or self.stream.device != device:
            self.stream, self.inputs = torch.cuda.Stream(device), []
        if _shapes(inputs) != _shapes(self.inputs):
            self.inputs = [i.to(device, copy=True) for i in inputs]
            self.calls, self.graph, self.results = 0, None, None
        for own, given in zip(self.inputs, inputs, strict=True):
            own.copy_(given, non_blocking=True)
        self.calls += 1
        if self.calls <= WARM:
            return self._warm()
        if self.graph is None:
            self._capture()
        self.graph.replay()
        return self.results

    def _warm(self) -> Any:
        """Not in the current stream, as a capture has to be prepared."""
        current = torch.cuda.current_stream()
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            results = self.function(*self.inputs)
        current.wait_stream(self.stream)
        return results

    def _capture(self) -> None:
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=self.stream):  # records, and runs nothing
                results = self.function(*self.inputs)
        except BaseException:
            self.calls = 0
            raise
        self.graph, self.results = graph, results


def _shapes(tensors: Sequence[Tensor]) -> list[tuple]:
    return [(t.shape, t.stride(), t.dtype) for t in tensors]
