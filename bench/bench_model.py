"""The whole network: a training step and generation, of preset `paper` with d = 128 on grey images.

A training step is forward, loss, backward and AdamW. Beside ours:

- "ReLU twin": the same network by the same identities, the sampler included, with torch's batch norm and a ReLU for
  every neuron. It costs what convolutions, norms and sampling cost, so that it is the floor for any neuron that is not
  fused with its norm; the aim is at most 1.25 times it.
- "batch_norm + lif": ours with torch's batch norm and then `lif` in place of `bn_lif`, to see what their fusion gains.
- "literal": the network of `tests/literal.py`, every layer and neuron at every time step. The aim is to be at least 5
  times as fast at no more than half the memory.
- "compiled literal": `torch.compile` of it, in training; it unrolls the T steps, so that at a large T it compiles for
  long.
- "SpikingJelly": torch's batch norm, then its multi-step LIF, with ATan, the surrogate that it has a fast path for.

`--cases matrix` takes both sizes, T in {4, 16, 64} and 64 and 256 images, `--cases growth` what plot_model.py draws.
What does not fit into memory, or takes too long, is skipped with the reason, which then stands in the table.

Peak memory is what a run takes beside weights, gradients and AdamW's state. On the CPU it is that of a process of its
own: `python bench/bench_model.py ENTRY ...` prints it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple, Protocol
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from memory import available_bytes, is_out_of_memory, limited, peak_bytes
from passes import DEVICE, GPU
from peers import lif_contender
from table import GENERATION, OURS, TRAINING, TWIN
from torch import Tensor, nn

import esvae_kernels
from esvae import ESVAE
from esvae.config import ModelConfig, preset
from esvae.graph import Replay
from esvae.layers import SpikingLayer
from esvae.losses import mmd
from esvae.precision import resolve_precision

# The literal network is the tests' yardstick, and no package. Appended: bench's own conftest has to come first.
sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))
import literal
from literal import LiteralESVAE
from model_helpers import in_double, literal_network, noise, parameter_pairs, twin

LATENT, SEED = 128, 0
UNFUSED, SPIKINGJELLY, LITERAL, COMPILED = "batch_norm + lif", "SpikingJelly", "literal", "compiled literal"
TRAINED = (TWIN, OURS, UNFUSED, SPIKINGJELLY)
GRAPH = ", graph"  # behind an entry: captured as a CUDA graph, as `esvae train` does
PEERS = (TWIN, OURS, *((TWIN + GRAPH, OURS + GRAPH) if GPU else ()), SPIKINGJELLY, LITERAL)
KILOBYTES = {  # per image and time step of a training step at 32x32 in fp32, measured at T = 16 and 64 images
    OURS: 640,
    UNFUSED: 940,
    TWIN: 1110,
    SPIKINGJELLY: 2660,
    LITERAL: 3810,
    COMPILED: 3810,
}
COMPILED_STEPS = 4  # more of them compile for long
OWN_PROCESS_SECONDS = 300  # in which it has to do two runs, and to compile


class Case(NamedTuple):
    """One group."""

    work: str  # TRAINING or GENERATION
    steps: int
    images: int
    precision: str = "fp32"
    entries: tuple[str, ...] = (*TRAINED, LITERAL)
    size: int = 32  # 32 or 64
    width: float = 1.0  # of all layers, relative to the preset's

    @property
    def group(self) -> str:
        size = "" if self.size == 32 else f" of {self.size}x{self.size}"
        width = "" if self.width == 1 else f", width x {self.width:g}"
        return f"{self.work}, {self.images} images{size}{width}, T = {self.steps}, {self.precision}"


BASE = (
    Case(TRAINING, 16, 64),
    Case(TRAINING, 4, 64),
    Case(TRAINING, 16, 64, "bf16", TRAINED),  # the literal network knows no autocast
    Case(GENERATION, 16, 128, entries=(OURS, UNFUSED, LITERAL)),
)


def compared(work: str, steps: int, images: int, precision: str = "fp32", size: int = 32) -> Case:
    """With every peer that there is for such a case."""
    entries = PEERS if work == GENERATION else (*PEERS, COMPILED)
    if precision == "bf16":
        entries = tuple(entry for entry in entries if entry not in (LITERAL, COMPILED))
    return Case(work, steps, images, precision, entries, size)


BASE_ON_GPU = (
    compared(TRAINING, 16, 256, "bf16"),
    compared(GENERATION, 16, 256, "fp32"),
)
if DEVICE.type == "cuda":  # a dry run has seen enough
    BASE_ON_GPU += (
        *(compared(TRAINING, 16, 256, "fp32", size) for size in (32, 64)),
        compared(TRAINING, 16, 256, "bf16", 64),
        *(compared(TRAINING, t, 256, precision) for t in (4, 64) for precision in ("bf16", "fp32")),
        compared(GENERATION, 16, 256, "bf16"),
    )
MATRIX = tuple(  # small ones first
    compared(work, steps, images, precision, size)
    for work in (TRAINING, GENERATION)
    for size in (32, 64)
    for precision in (("bf16", "fp32") if GPU else ("fp32",))
    for images in (64, 256)
    for steps in (4, 16, 64)
)
GROWTH = (  # one of T, images and width at a time
    *(Case(TRAINING, steps, 64, entries=(TWIN, OURS, LITERAL)) for steps in (4, 8, 16, 32, 64)),
    *(Case(TRAINING, 16, images, entries=(TWIN, OURS, LITERAL)) for images in (16, 32, 128, 256)),
    *(Case(TRAINING, 16, 64, entries=(TWIN, OURS, LITERAL), width=width) for width in (0.5, 2.0)),
)
CASES = {"base": BASE_ON_GPU if GPU else BASE, "matrix": MATRIX, "growth": GROWTH}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    cases = CASES[metafunc.config.getoption("--cases")]
    entries = [pytest.param(case, entry, id=f"{case.group}-{entry}") for case in cases for entry in case.entries]
    metafunc.parametrize(("case", "entry"), entries)


def test_model(case: Case, entry: str, smoke: bool, pytestconfig: pytest.Config, measure: Callable[..., None]) -> None:
    if case.precision == "bf16" and not smoke and resolve_precision("auto", DEVICE) != "bf16":
        pytest.skip("this device does not multiply in bf16")
    # Starting a process takes longer than all else of a smoke run, which is to see that it works but once.
    fresh = not smoke or (case == BASE[0] and entry == OURS)
    case = case._replace(steps=2, images=4) if smoke else case
    available = available_bytes()
    if why := reason_to_skip(case, entry, available):
        pytest.skip(why)
    assert_right(entry.removesuffix(GRAPH))
    info = {"T": case.steps, "images": case.images, "dtype": case.precision, "size": case.size, "width": case.width}
    if not GPU:  # there nothing is left over of other entries, and torch counts the bytes
        untuned = pytestconfig.getoption("--untuned")
        info["peak"] = partial(peak_of_own_process, case, entry, untuned) if fresh else partial(peak_of, case, entry)
        info["rounds"] = 3 if entry in (LITERAL, COMPILED) or needed_bytes(case, entry) > 3e9 else None
    try:
        with limited(available):
            measure(case.group, entry, work(case, entry), **info)
        return
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
    pytest.skip("out of memory")  # here nothing of it is held


def needed_bytes(case: Case, entry: str) -> float:
    """An estimate of the peak: in proportion to T, images, pixels and width."""
    generation = 0.4 if case.work == GENERATION else 1.0
    precision = 0.55 if case.precision == "bf16" else 1.0
    images = case.images * (case.size / 32) ** 2
    return KILOBYTES[entry.removesuffix(GRAPH)] * 1e3 * generation * precision * case.steps * images * case.width


def reason_to_skip(case: Case, entry: str, available: int | None) -> str:
    """Why an entry is not measured where so many bytes are left; empty if it is."""
    if entry == COMPILED and case.steps > COMPILED_STEPS:
        return f"compiles for long beyond T = {COMPILED_STEPS}"
    needed = needed_bytes(case, entry)
    if available is not None and needed > 0.9 * available:
        return f"needs about {needed / 1e9:.0f} of {available / 1e9:.0f} GB"
    return ""


# ---------------------------------------------------------------------------------------------- what is timed


class WithNeuron(nn.Module):
    """A SpikingLayer with the same weights, torch's batch norm and another neuron."""

    def __init__(self, layer: SpikingLayer, neuron: Neuron) -> None:
        super().__init__()
        self.transform, self.neurons, self.neuron = layer.transform, layer.neurons, neuron

    def forward(self, spikes: Tensor, readout: str | Tensor | None = None) -> Tensor:
        x = self.norm(self.transform(spikes.flatten(0, 1)))
        return self.neuron(x.unflatten(0, spikes.shape[:2]), readout=readout)

    def repeat(self, x: Tensor, steps: int) -> Tensor:
        return self.neuron(self.norm(self.transform(x)), steps=steps)

    def norm(self, x: Tensor) -> Tensor:
        """tdBN; for `repeat`, the running variance is unbiased as if of one step."""
        n = self.neurons
        weight = n.weight * n.scale
        return F.batch_norm(x, n.running_mean, n.running_var, weight, n.bias, self.training, n.momentum, n.eps)


class Neuron(Protocol):
    """x (T, N, *), or with `steps` (N, *) -> spikes (T, N, *), or with a readout (N, *)."""

    def __call__(self, x: Tensor, *, readout: str | Tensor | None = None, steps: int | None = None) -> Tensor: ...


def unfused(layer: SpikingLayer) -> Neuron:
    """Our `lif` as `layer` has it behind its norm."""
    options = {
        k: v
        for k, v in layer.neurons.options.items()
        if k not in ("scale", "eps", "momentum", "process_group", "readout")
    }
    return lambda x, readout=None, steps=None: esvae_kernels.lif(x, steps=steps, readout=readout, **options)[0]


def plain(function: Callable[[Tensor], Tensor]) -> Callable[[SpikingLayer], Neuron]:
    """`function`, (T, N, *) -> (T, N, *), as a neuron of any layer."""

    def neuron(x: Tensor, readout: str | Tensor | None = None, steps: int | None = None) -> Tensor:
        return read_out(function(x if steps is None else x.expand(steps, *x.shape)), readout)

    return lambda layer: neuron


def read_out(y: Tensor, readout: str | Tensor | None) -> Tensor:
    if readout is None:
        return y
    if isinstance(readout, str):
        return y.mean(0)
    last = y.movedim(2, -1)  # (T, N, H, W, C), as it lies in memory: the cheapest sum over time is a product
    return (readout.to(y.dtype) @ last.flatten(1)).unflatten(0, last.shape[1:]).movedim(-1, 1)


def with_neuron(model: ESVAE, make: Callable[[SpikingLayer], Neuron]) -> ESVAE:
    for name, layer in list(model.named_modules()):
        if isinstance(layer, SpikingLayer):
            model.set_submodule(name, WithNeuron(layer, make(layer)))
    return model


def neuron_of(entry: str) -> Callable[[SpikingLayer], Neuron]:
    """Skips the test where the entry's library is missing."""
    if entry == UNFUSED:
        return unfused
    return plain(torch.relu if entry == TWIN else lif_contender(entry, "ATan(2)", None).call)


def build(case: Case, entry: str) -> ESVAE | LiteralESVAE:
    torch.manual_seed(SEED)
    with widened(case.width):
        if entry in (LITERAL, COMPILED):
            model = LiteralESVAE(1, case.size, LATENT, case.steps, "paper")
            return compiled(model) if entry == COMPILED else model
        paper = preset("paper", "fashion-mnist").model
        model = ESVAE(**dataclasses.asdict(dataclasses.replace(paper, size=case.size, latent=LATENT, steps=case.steps)))
        model.config = Widened(model.config, model.config.widths)
    return model if entry == OURS else with_neuron(model, neuron_of(entry))


@contextmanager
def widened(width: float) -> Iterator[None]:
    """Networks made in this context have layers so many times as wide as their config says, but for the latent ones."""
    ours = ModelConfig.widths.fget
    wider = {size: tuple(round(width * w) for w in widths) for size, widths in literal.WIDTHS.items()}
    property_ = property(lambda config: tuple(round(width * w) for w in ours(config)))
    with patch.dict(literal.WIDTHS, wider), patch.object(ModelConfig, "widths", property_):
        yield


class Widened:
    """A config with other `widths` than it says."""

    def __init__(self, config: ModelConfig, widths: tuple[int, ...]) -> None:
        self.config, self.widths = config, widths

    def __getattr__(self, name: str) -> object:
        return getattr(self.config, name)


def compiled(model: LiteralESVAE) -> LiteralESVAE:
    torch.compiler.reset()  # no entry may run what was compiled for another one's shapes
    model.sample = torch.compiler.disable(model.sample)  # dynamo takes no function that is given a tensor twice
    model.compile(dynamic=False)
    return model


def work(case: Case, entry: str) -> Callable[[], object]:
    model, seed = build(case, entry.removesuffix(GRAPH)), torch.tensor([SEED])
    if case.work == GENERATION:
        function, inputs = generation(case, model), (seed,)
    else:
        images = torch.rand(case.images, 1, case.size, case.size) * 2 - 1
        function, inputs = training_step(case, model), (images, seed)
    return partial(Replay(function) if entry.endswith(GRAPH) else function, *inputs)


def training_step(case: Case, model: ESVAE | LiteralESVAE) -> Callable[[Tensor, Tensor], Tensor]:
    """(images, seed) -> loss. All else that it needs stays in its place, as a CUDA graph asks for."""
    capturable = DEVICE.type == "cuda"
    optimizer = torch.optim.AdamW(model.parameters(), lr=6e-4, weight_decay=1e-3, fused=True, capturable=capturable)

    def loss(images: Tensor, seed: Tensor) -> Tensor:
        if isinstance(model, LiteralESVAE):
            out, r_p, r_q, _ = model(images, *literal_noise(case))
            return literal.loss(images, out, r_p, r_q)
        with autocast(case):
            out = model(images, seed=seed)
        return F.mse_loss(out.images.float(), images) + 1e-3 * mmd(out.rates, out.prior_rates)

    def step(images: Tensor, seed: Tensor) -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        value = loss(images, seed)
        value.backward()
        optimizer.step()
        return value.detach()

    return step


def autocast(case: Case) -> torch.autocast:
    return torch.autocast(DEVICE.type, torch.bfloat16, enabled=case.precision == "bf16")


def generation(case: Case, model: ESVAE | LiteralESVAE) -> Callable[[Tensor], Tensor]:
    """seed -> images."""
    model.eval()

    @torch.no_grad()
    def generate(seed: Tensor) -> Tensor:
        if isinstance(model, LiteralESVAE):
            u, z_n = literal_noise(case)
            return model.generate(z_n, u)
        with autocast(case):
            return model.generate(case.images, seed=seed)

    return generate


def literal_noise(case: Case) -> tuple[Tensor, Tensor]:
    return torch.rand(case.images, LATENT, case.steps), torch.randn(case.images, LATENT)


# -------------------------------------------------------------------------------------------------- its memory


def peak_of(case: Case, entry: str) -> int | None:
    """Bytes that a run takes at its peak, beside what stays: libraries, weights, their gradients, AdamW's state."""
    run = work(case, entry)
    run()
    return peak_bytes(run)


def peak_of_own_process(case: Case, entry: str, untuned: bool) -> int | None:
    """The same in a fresh process, where nothing is left over of other entries. Skips the test if that takes long."""
    arguments = [entry, case.work, case.steps, case.images, case.precision, case.size, case.width]
    command = [sys.executable, __file__, *map(str, arguments), str(torch.get_num_threads())]
    command += ["--untuned"] if untuned else []
    available_bytes()  # what this process keeps and does not use is free for that one
    try:
        run = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True, timeout=OWN_PROCESS_SECONDS)
    except subprocess.TimeoutExpired:
        pytest.skip(f"two steps take more than {OWN_PROCESS_SECONDS} s")
    return json.loads(run.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description="Prints the bytes that an entry takes at its peak.")
    parser.add_argument("entry", choices=KILOBYTES)
    parser.add_argument("work", choices=(TRAINING, GENERATION))
    parser.add_argument("steps", type=int)
    parser.add_argument("images", type=int)
    parser.add_argument("precision", choices=("fp32", "bf16"))
    parser.add_argument("size", type=int, choices=(32, 64))
    parser.add_argument("width", type=float)
    parser.add_argument("threads", type=int)
    parser.add_argument("--untuned", action="store_true", help="leave the C library's allocator at its defaults")
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    if not a.untuned:
        esvae_kernels.tune_allocator()
    try:
        peak = peak_of(Case(a.work, a.steps, a.images, a.precision, (), a.size, a.width), a.entry)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        peak = None  # whoever times it will see the same
    print(json.dumps(peak))


# ---------------------------------------------------------------------------------------- that it is the same


@cache
def assert_right(entry: str) -> None:
    """At a small size in fp64, the entry's network returns the literal one's images; the twin's with a loop's LIF does.

    The gradients too, but for SpikingJelly's, whose surrogate is another.
    """
    yardstick = in_double(literal_network(1, 32, 8, 4, "paper"))
    model = twin(yardstick, "paper")
    if entry == TWIN:
        model = with_neuron(model, plain(lif_contender("loop", "Rectangular(0.5)", None).call))
    elif entry not in (OURS, LITERAL, COMPILED):
        model = with_neuron(model, neuron_of(entry))
    images = torch.rand(3, 1, 32, 32, dtype=torch.float64) * 2 - 1
    if entry == COMPILED:
        compiled(yardstick)
    expected, _, expected_rates, _ = yardstick(images, *noise(3, 8, 4, SEED))
    found, _, found_rates = model(images, seed=SEED)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    if entry == SPIKINGJELLY:
        return
    for out, rates in ((expected, expected_rates), (found, found_rates)):
        (out.square().sum() + rates.square().sum()).backward()
    for name, wanted, got in parameter_pairs(yardstick, model, grad=True):
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9, msg=lambda m, name=name: f"{name}: {m}")


if __name__ == "__main__":
    main()
