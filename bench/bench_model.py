"""The whole network: a training step and generation, of preset `paper` with d = 128 on 32x32 grey images.

A training step is forward, loss, backward and AdamW. Beside ours:

- "ReLU twin": the same network by the same identities, the sampler included, with torch's batch norm and a ReLU for
  every neuron. It costs what convolutions, norms and sampling cost, so that it is the floor for any neuron that is not
  fused with its norm; the aim is at most 1.25 times it.
- "batch_norm + lif": ours with torch's batch norm and then `lif` in place of `bn_lif`, to see what their fusion gains.
- "literal": the network of `tests/literal.py`, every layer and neuron at every time step. The aim is to be at least 5
  times as fast at no more than half the memory.
- "SpikingJelly": torch's batch norm, then its multi-step LIF, with ATan, the surrogate that it has a fast path for.

Peak memory is what a run takes beside weights and AdamW's state, in a process of its own: `python bench/bench_model.py
ENTRY ...` prints it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple, Protocol

import pytest
import torch
import torch.nn.functional as F
from memory import peak_bytes
from peers import lif_contender
from torch import Tensor, nn

import esvae_kernels
from esvae import ESVAE
from esvae.config import preset
from esvae.layers import SpikingLayer
from esvae.losses import mmd
from esvae.train import resolve_precision

# The literal network is the tests' yardstick, and no package. Appended: bench's own conftest has to come first.
sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))
from literal import LiteralESVAE
from literal import loss as literal_loss
from model_helpers import in_double, literal_network, noise, parameter_pairs, random_images, twin

LATENT, SEED = 128, 0
TWIN, UNFUSED, SPIKINGJELLY = "ReLU twin", "batch_norm + lif", "SpikingJelly"
TRAINED = (TWIN, "ours", UNFUSED, SPIKINGJELLY)


class Case(NamedTuple):
    """One group."""

    work: str  # "training step" or "generation"
    steps: int
    images: int
    precision: str = "fp32"
    entries: tuple[str, ...] = (*TRAINED, "literal")

    @property
    def group(self) -> str:
        return f"{self.work}, {self.images} images, T = {self.steps}, {self.precision}"


CASES = (
    Case("training step", 16, 64),
    Case("training step", 4, 64),
    Case("training step", 16, 64, "bf16", TRAINED),  # the literal network knows no autocast
    Case("generation", 16, 128, entries=("ours", UNFUSED, "literal")),
)
ENTRIES = [pytest.param(case, entry, id=f"{case.group}-{entry}") for case in CASES for entry in case.entries]


@pytest.mark.parametrize(("case", "entry"), ENTRIES)
def test_model(case: Case, entry: str, smoke: bool, pytestconfig: pytest.Config, measure: Callable[..., None]) -> None:
    if case.precision == "bf16" and resolve_precision("auto", torch.device("cpu")) != "bf16":
        pytest.skip("this CPU does not multiply in bf16")
    # Starting a process takes longer than all else of a smoke run, which is to see that it works but once.
    fresh = not smoke or (case == CASES[0] and entry == "ours")
    case = case._replace(steps=2, images=4) if smoke else case
    assert_right(entry)
    rounds = 3 if entry == "literal" else None
    info = {"T": case.steps, "images": case.images, "dtype": case.precision}
    untuned = pytestconfig.getoption("--untuned")

    def peak() -> int | None:
        return peak_of_own_process(case, entry, untuned) if fresh else peak_of(case, entry)

    measure(case.group, entry, work(case, entry), peak=peak, rounds=rounds, **info)


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
    options = {k: v for k, v in layer.neurons.options.items() if k not in ("scale", "eps", "momentum", "readout")}
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


def build(entry: str, steps: int) -> ESVAE | LiteralESVAE:
    torch.manual_seed(SEED)
    if entry == "literal":
        return LiteralESVAE(1, 32, LATENT, steps, "paper")
    options = dataclasses.replace(preset("paper", "fashion-mnist").model, latent=LATENT, steps=steps)
    model = ESVAE(**dataclasses.asdict(options))
    return model if entry == "ours" else with_neuron(model, neuron_of(entry))


def work(case: Case, entry: str) -> Callable[[], object]:
    model = build(entry, case.steps)
    return training_step(case, model) if case.work == "training step" else generation(case, model)


def training_step(case: Case, model: ESVAE | LiteralESVAE) -> Callable[[], object]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=6e-4, weight_decay=1e-3, fused=True)
    images = random_images(case.images, 1, 32).float()

    def loss() -> Tensor:
        if isinstance(model, LiteralESVAE):
            out, r_p, r_q, _ = model(images, *literal_noise(case))
            return literal_loss(images, out, r_p, r_q)
        with torch.autocast("cpu", torch.bfloat16, enabled=case.precision == "bf16"):
            out = model(images, seed=SEED)
        return F.mse_loss(out.images.float(), images) + 1e-3 * mmd(out.rates, out.prior_rates)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss().backward()
        optimizer.step()

    return step


def generation(case: Case, model: ESVAE | LiteralESVAE) -> Callable[[], object]:
    model.eval()

    @torch.no_grad()
    def generate() -> Tensor:
        if isinstance(model, LiteralESVAE):
            u, z_n = literal_noise(case)
            return model.generate(z_n, u)
        return model.generate(case.images, seed=SEED)

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
    """The same in a fresh process, where nothing is left over of other entries."""
    arguments = [entry, case.work, case.steps, case.images, case.precision, torch.get_num_threads()]
    command = [sys.executable, __file__, *map(str, arguments), *(["--untuned"] if untuned else [])]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description="Prints the bytes that an entry takes at its peak.")
    parser.add_argument("entry", choices=CASES[0].entries)
    parser.add_argument("work", choices=("training step", "generation"))
    parser.add_argument("steps", type=int)
    parser.add_argument("images", type=int)
    parser.add_argument("precision", choices=("fp32", "bf16"))
    parser.add_argument("threads", type=int)
    parser.add_argument("--untuned", action="store_true", help="leave the C library's allocator at its defaults")
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    if not a.untuned:
        esvae_kernels.tune_allocator()
    print(json.dumps(peak_of(Case(a.work, a.steps, a.images, a.precision), a.entry)))


# ---------------------------------------------------------------------------------------- that it is the same


@cache
def assert_right(entry: str) -> None:
    """At a small size in fp64, the entry's network returns the literal one's images; the twin's with a loop's LIF does.

    The gradients too, but for SpikingJelly's, whose surrogate is another.
    """
    literal = in_double(literal_network(1, 32, 8, 4, "paper"))
    model = twin(literal, "paper")
    if entry == TWIN:
        model = with_neuron(model, plain(lif_contender("loop", "Rectangular(0.5)", None).call))
    elif entry not in ("ours", "literal"):
        model = with_neuron(model, neuron_of(entry))
    images = random_images(3, 1, 32)
    expected, _, expected_rates, _ = literal(images, *noise(3, 8, 4, SEED))
    found, _, found_rates = model(images, seed=SEED)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    if entry == SPIKINGJELLY:
        return
    for out, rates in ((expected, expected_rates), (found, found_rates)):
        (out.square().sum() + rates.square().sum()).backward()
    for name, wanted, got in parameter_pairs(literal, model, grad=True):
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9, msg=lambda m, name=name: f"{name}: {m}")


if __name__ == "__main__":
    main()
