"""What of a scan is no tensor: the neuron's graph and the options of a call, as one text that a raw op takes."""

from __future__ import annotations

from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import torch

from ..dynamics.derive import adjoint
from ..dynamics.graph import Graph, Step
from ..native import OUT_DTYPES
from ..ops.lif.reference import READOUTS
from ..surrogate import Surrogate
from ..surrogate.reference import SURROGATES, from_arguments

_DTYPES = {str(dtype): dtype for dtype in OUT_DTYPES}


class _Fields(NamedTuple):
    graph_text: str
    surrogate: int
    shape: float  # the surrogate's parameter, where it is no tensor
    scale: float
    shift: float
    spiking: bool
    readout: int
    dtype: torch.dtype  # of the outputs
    constant: bool  # the inputs have no time axis
    record: tuple[str, ...]


class Options(_Fields):
    """The options of a call, but the numbers of its parameters."""

    def text(self) -> str:
        words = [f"{name}={value}" for name, value in zip(self._fields[1:-1], self[1:-1], strict=True)]
        return "\n".join([" ".join([*words, "record=" + ",".join(self.record)]), self.graph_text])

    @property
    def graph(self) -> Graph:
        return Graph.from_text(self.graph_text)

    @property
    def surrogate_object(self) -> Surrogate:
        return from_arguments(self.surrogate, self.shape, self.scale, self.shift, self.spiking)

    @cached_property
    def step(self) -> Step:
        return self.graph.step(self.record)

    @cached_property
    def adjoint(self) -> Step:
        return adjoint(self.step, self.graph.leaves)


@lru_cache(maxsize=4096)
def decoded(text: str) -> Options:
    """`Options.text` undone.

    Raises:
        ValueError: it is no such text; a raw op can be called by anyone.
    """
    head, _, graph = text.partition("\n")
    try:
        words = dict(word.split("=") for word in head.split(" "))
        values: dict[str, Any] = {
            "graph_text": Graph.from_text(graph).text(),
            "surrogate": int(words.pop("surrogate")),
            "spiking": words.pop("spiking") == "True",
            "readout": int(words.pop("readout")),
            "dtype": _DTYPES[words.pop("dtype")],
            "constant": words.pop("constant") == "True",
            "record": tuple(name for name in words.pop("record").split(",") if name),
        }
        values |= {name: float(value) for name, value in words.items()}
        options = Options(**values)
        known = dict(options.graph.records)
        if not (0 <= options.surrogate < len(SURROGATES) and 0 <= options.readout < len(READOUTS)):
            raise ValueError
        if not all(name in known for name in options.record):
            raise ValueError
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"neuron: got {head[:200]!r}, accepted is what Options.text() returns ({error})") from None
    return options
