"""Energy per image, from the operations of a model's layers (paper, section IV-E, Table III, on equal terms).

Each layer is charged for what its inputs are:

    spikes        a synaptic operation (an addition, AC) for every measured spike and connection that it goes out on
    real values   a multiply-accumulate (MAC) for every connection: images, the prior's noise, the sums of the readout

at 4.6 pJ a MAC and 0.9 pJ an AC (32 bit floating point, 45 nm; Horowitz, ISSCC 2014). Connections are counted one by
one, so those that a border cuts off are none. The norm is folded into the weights and the threshold. Beside it stands
the ANN twin: the same layers, each run once, with a MAC for every connection.

This package computes two things once that hardware may do at each of the T steps, and the layers say so:

    the first layer   an image is the same at all steps. It is charged T times; `otherwise` is once, the current held.
    the readout       the last spikes are weighted and summed (an AC for each), and the last map runs once on the sums
                      (MACs). `otherwise` is that map at every step, on spikes.

Not counted: memory, random numbers, activations and products of single elements. Updates of neurons are counted (a MAC
each for leak and sum) but stand apart.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from esvae_kernels.nn import BNLIF

from . import data
from .arguments import integer
from .errors import InputError
from .evaluate import BATCH, SEED, Track, batch_at, device_of, untracked
from .models import Model

MAC_PJ = 4.6
AC_PJ = 0.9
IMAGES = 1000

SLIPS = (
    "the counts contain spikes and time steps already, and the formula multiplies by rate and T again",
    "Table III divides the counts of FSVAE and of the ANN by the number of batches (of 250 images), those of ESVAE by "
    "the number of images",
    "transposed convolutions are counted stride^2 times too often",
    "4.6 pJ is a multiplication and an addition; the formula charges it for each of the two",
    "the ANN's 0.6808 J is ten times what the formula gives for the counts printed beside it",
)

COUNTED = {
    "energy_uj": "synaptic operations (ACs) and multiply-accumulates (MACs) of all layers, as energy_ratio",
    "energy_ratio_with_updates": "the same and the updates of the neurons, a MAC per neuron and time step",
    "not counted": "memory, random numbers, the twin's activations",
}


def energy(
    model: Model,
    images: data.ImageSet | None = None,
    *,
    n: int | None = None,
    prior: str | None = None,
    seed: int = SEED,
    track: Track = untracked,
) -> dict[str, Any]:
    """Operations and energy per image, apart for encoding an image and for generating one; fp32.

    Args:
        model: of any kind.
        images: those to encode, the first `n` of them; may be None for a model without an encoder.
        n: images to encode and to generate; default: 1,000, or all where there are fewer.
        prior: what `generate` draws from, where the model has several; default: its config's.
        seed: of all noise.

    Returns:
        `steps` (T), `images` (n), `seed`, `prior`, `counted` (what the energy contains, and what it leaves out: each a
        line), `mac_pj`, `ac_pj`, `break_even_rate` (MAC / (AC T): at this firing
        rate an AC at each spike of T steps costs what one MAC does; a mean rate below it proves no saving, since
        fan-outs differ and the ends are MACs), `encode` (images to latent; None without an encoder), `generate` (prior
        and decoder), `paper_formula`.

        `encode` and `generate` hold `layers` and, of all of them, `synaptic_operations`, `macs`, `energy_uj`,
        `energy_range_uj` (with the smaller and the larger of the two ways to run first layer and readout), `twin_macs`,
        `twin_energy_uj`, `energy_ratio` (to the twin's), `firing_rate` (spikes per neuron and step), `neuron_updates`,
        `neuron_updates_uj` (not in `energy_uj`), `energy_ratio_with_updates` (with them). Each layer has `name`,
        `inputs` ("spikes" or "real values"), `connections`, `input_rate` (of spikes), `synaptic_operations`, `macs`,
        `energy_uj`, `twin_energy_uj`, `neurons`, `firing_rate` (of its own neurons), `neuron_updates`, and where it can
        be run otherwise `otherwise` with `how` and `energy_uj`. All counts are means over the images.

        `paper_formula` is eq. 12 as Table III uses it, `slips` and all, for comparison with Table III alone:
        `energy_j` = 0.9 pJ * `firing_rate` * T * (`additions` + `multiplications`), of encoding and generating.

    Raises:
        InputError: `n` is not accepted or more than the images, or a model with an encoder was given none.
    """
    most = 100_000 if images is None else len(images)
    n = min(IMAGES, most) if n is None else integer("n", n, 1, most)
    seed = integer("seed", seed, 0, 2**63 - 1)
    model.eval()
    device = device_of(model)
    starts = range(0, n, BATCH)
    encoded = None
    if hasattr(model, "encode"):
        if images is None:
            raise InputError(f"images: got none, accepted are some to encode with a model of kind {model.kind!r}")
        encoded, images = Counter(model), images.part(0, n)
        for start in track(starts, description="encoding", total=len(starts)):
            batch, ids = batch_at(images, start, BATCH, device)
            with encoded.counting():
                if hasattr(model, "latent_spikes"):
                    model.latent_spikes(batch, seed=seed, sample_ids=ids)
                else:
                    model.encode(batch)
    generated = Counter(model)
    for start in track(starts, description="generating", total=len(starts)):
        with generated.counting():
            model.generate(min(BATCH, n - start), seed=seed, start=start, prior=prior)
    parts = [counter for counter in (encoded, generated) if counter is not None]
    return {
        "steps": model.steps,
        "images": n,
        "seed": seed,
        "prior": prior,
        "counted": dict(COUNTED),
        "mac_pj": MAC_PJ,
        "ac_pj": AC_PJ,
        "break_even_rate": MAC_PJ / (AC_PJ * model.steps),
        "encode": None if encoded is None else summary(encoded.layers, n),
        "generate": summary(generated.layers, n),
        "paper_formula": paper_formula([layer for part in parts for layer in part.layers.values()], n, model.steps),
    }


# ----------------------------------------------------------------------------------------------------------- counting


@dataclass
class Layer:
    """What was counted of one layer, summed over all images."""

    steps: int  # T of the model
    rows: int = 0  # inputs that the map was applied to: images, times T where it runs at every step
    connections: float = 0.0  # of all rows
    positions: int = 0  # elements of all inputs
    real: bool = False  # an input was no spike train
    held: bool = False  # the map ran once for all T steps
    spikes: float = 0.0  # that came in
    events: float = 0.0  # spikes times the connections that each goes out on
    readout: bool = False  # the inputs were weighted sums of spikes over time
    summed: float = 0.0  # those spikes
    summed_events: float = 0.0  # times the connections that each would go out on at its own step
    stride: int = 1  # product of a transposed convolution's strides
    updates: int = 0  # of its neurons
    fired: float = 0.0  # spikes of its neurons

    @property
    def synaptic_operations(self) -> float:
        return self.summed if self.real else self.events

    @property
    def macs(self) -> float:
        return self.connections * (self.steps if self.held else 1) if self.real else 0.0

    def otherwise(self) -> tuple[str, float] | None:
        """The other way to run it, and its energy in pJ."""
        if self.held and self.steps > 1:
            return "once, the current held for all steps", self.connections * MAC_PJ
        if self.readout:
            return "at every step, on spikes", self.summed_events * AC_PJ
        return None

    def once(self, images: int) -> float:
        """Connections of the layer in one pass, as the ANN twin runs it."""
        every_step = not self.real or self.rows == images * self.steps
        return self.connections * images / self.rows if self.rows and every_step else self.connections


class Counter(TorchDispatchMode):
    """Counts the operations of a model's maps and neurons within `counting()`, in `layers` by name.

    Maps are seen as torch computes them (convolutions, matrix products), so that none is missed however it is called;
    a layer is known by its weights, and where those are computed, by the module that is running.
    """

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model
        self.layers: dict[str, Layer] = {}
        self._names = {tensor.data_ptr(): _layer_name(name) for name, tensor in model.named_parameters()}
        self._running = ["model"]
        self._sums: Tensor | None = None  # (N, *): spikes over time of neurons whose weighted sum was just returned

    @contextmanager
    def counting(self) -> Iterator[None]:
        hooks = []
        for name, module in self.model.named_modules():
            hooks.append(module.register_forward_pre_hook(partial(self._enter, name)))
            if isinstance(module, BNLIF):
                hooks.append(module.register_forward_hook(self._neurons, with_kwargs=True))
            hooks.append(module.register_forward_hook(self._leave, always_call=True))
        try:
            with torch.no_grad(), self:
                yield
        finally:
            for hook in hooks:
                hook.remove()

    def _enter(self, name: str, *_: object) -> None:
        self._running.append(name)

    def _leave(self, *_: object) -> None:
        self._running.pop()

    def _layer(self, name: str) -> Layer:
        return self.layers.setdefault(name, Layer(self.model.steps))

    def _neurons(self, module: BNLIF, args: tuple, kwargs: dict[str, Any], output: object) -> None:
        layer = self._layer(_layer_name(self._running[-1]))
        found = module.forward(*args, **kwargs | {"readout": "mean"})  # whatever was asked for, the same spikes
        rates = found[0] if isinstance(found, tuple) else found
        steps = kwargs.get("steps") or len(args[0])
        spikes = (rates.double() * steps).round()
        layer.held |= kwargs.get("steps") is not None
        layer.updates += rates.numel() * steps
        layer.fired += float(spikes.sum())
        self._sums = spikes if isinstance(kwargs.get("readout"), Tensor) else None

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        aten = torch.ops.aten
        if function is aten.convolution.default:
            self._convolution(*args)
        elif function is aten.addmm.default:
            self._product(*args[1:3])
        elif function is aten.mm.default:
            self._product(*args[:2])
        elif function.overloadpacket in flop_registry:  # products without weights: no spikes go in
            flops = flop_registry[function.overloadpacket](*args, **(kwargs or {}), out_val=output)
            layer = self._layer(self._name(*args))
            layer.real = True
            layer.connections += flops / 2
        return output

    def _name(self, *tensors: object) -> str:
        known = (self._names.get(t.data_ptr()) for t in tensors if isinstance(t, Tensor))
        return next((name for name in known if name is not None), None) or _layer_name(self._running[-1])

    def _convolution(
        self, x, weight, bias, stride, padding, dilation, transposed: bool, output_padding, groups: int
    ) -> None:
        outputs = weight.shape[1] if transposed else weight.shape[0] // groups  # per channel of x
        ones = torch.ones(1, 1, *weight.shape[2:], dtype=torch.float64)
        options = (None, stride, padding, dilation, transposed, output_padding, 1)

        def events(spikes: Tensor) -> float:  # (C, H, W): those that arrive, under weights of one
            return outputs * float(torch.ops.aten.convolution(spikes.sum(0)[None, None], ones, *options).sum())

        layer = self._map(self._name(weight), x, events)
        layer.stride = stride[0] * stride[1] if transposed else 1

    def _product(self, x: Tensor, weight: Tensor) -> None:
        self._map(self._name(weight, x), x, lambda spikes: float(spikes.sum()) * weight.shape[1])

    def _map(self, name: str, x: Tensor, events: Callable[[Tensor], float]) -> Layer:
        """A linear map of x (rows, *). `events`: of spikes summed over rows, how many connections they go out on."""
        layer = self._layer(name)
        total = x.sum(0, dtype=torch.float64).cpu()
        layer.rows += len(x)
        layer.connections += events(torch.ones_like(total)) * len(x)
        sums, self._sums = self._sums, None
        if sums is not None and sums.shape == x.shape:
            layer.real = layer.readout = True
            layer.summed += float(sums.sum())
            layer.summed_events += events(sums.sum(0).cpu())
        elif bool(((x == 0) | (x == 1)).all()):
            layer.positions += x.numel()
            layer.spikes += float(total.sum())
            layer.events += events(total)
        else:
            layer.real = True
        return layer


def _layer_name(name: str) -> str:
    """Of a module or parameter: encoder.0.transform.weight and encoder.0.neurons belong to the layer encoder.0."""
    return re.sub(r"\.(transform\b.*|neurons\b.*|weight|bias)$", "", name)


# ---------------------------------------------------------------------------------------------------------- reporting


def summary(layers: dict[str, Layer], images: int) -> dict[str, Any]:
    """What `energy` returns of one part."""
    rows = [_row(name, layer, images) for name, layer in layers.items()]
    result: dict[str, Any] = {"layers": rows}
    for key in ("synaptic_operations", "macs", "energy_uj"):
        result[key] = sum(row[key] for row in rows)
    ways = [(row["energy_uj"], row.get("otherwise", row)["energy_uj"]) for row in rows]
    result["energy_range_uj"] = [sum(map(min, ways)), sum(map(max, ways))]
    result["twin_macs"] = sum(row["connections"] for row in rows)
    result["twin_energy_uj"] = result["twin_macs"] * MAC_PJ * 1e-6
    result["energy_ratio"] = result["energy_uj"] / result["twin_energy_uj"]
    result["firing_rate"] = _rate(list(layers.values()))
    result["neuron_updates"] = sum(row["neuron_updates"] for row in rows)
    result["neuron_updates_uj"] = result["neuron_updates"] * MAC_PJ * 1e-6
    result["energy_ratio_with_updates"] = ratio_with_updates(result)
    return result


def ratio_with_updates(part: dict[str, Any]) -> float:
    """Of a part of what `energy` returns: its energy with the updates of its neurons, over the twin's. A result that
    was kept before the ratio was in it has what it is made of."""
    return (part["energy_uj"] + part["neuron_updates_uj"]) / part["twin_energy_uj"]


def _row(name: str, layer: Layer, images: int) -> dict[str, Any]:
    operations, macs = layer.synaptic_operations / images, layer.macs / images
    connections = layer.once(images) / images
    row = {
        "name": name,
        "inputs": "real values" if layer.real else "spikes",
        "connections": connections,
        "input_rate": None if layer.real or not layer.positions else layer.spikes / layer.positions,
        "synaptic_operations": operations,
        "macs": macs,
        "energy_uj": (operations * AC_PJ + macs * MAC_PJ) * 1e-6,
        "twin_energy_uj": connections * MAC_PJ * 1e-6,
        "neurons": layer.updates / (images * layer.steps),
        "firing_rate": _rate([layer]),
        "neuron_updates": layer.updates / images,
    }
    if other := layer.otherwise():
        row["otherwise"] = {"how": other[0], "energy_uj": other[1] / images * 1e-6}
    return row


def _rate(layers: list[Layer]) -> float | None:
    updates = sum(layer.updates for layer in layers)
    return sum(layer.fired for layer in layers) / updates if updates else None


def paper_formula(layers: list[Layer], images: int, steps: int) -> dict[str, Any]:
    """Eq. 12 with additions and multiplications counted as in Table III; see `SLIPS`.

    A spiking layer: an addition per spike and connection, a transposed convolution's stride^2 times, and one per neuron
    and step for the bias; a neuron: an addition at each step, and a multiplication where it did not fire. Of a model
    without spikes, as in the table's row of the ANN: a multiplication and an addition per connection, 4.6 pJ each.
    """
    rate = _rate(layers)
    additions = multiplications = 0.0
    for layer in layers:
        spikes, macs = layer.synaptic_operations, layer.macs
        if layer.readout:  # at every step, on spikes
            spikes, macs = layer.summed_events, 0.0
        additions += spikes * layer.stride + macs + 2 * layer.updates
        multiplications += macs + layer.updates - layer.fired
    additions, multiplications = additions / images, multiplications / images
    flops = additions + multiplications
    joules = 1e-12 * (MAC_PJ * flops if rate is None else AC_PJ * rate * steps * flops)
    return {
        "firing_rate": rate,
        "additions": additions,
        "multiplications": multiplications,
        "energy_j": joules,
        "slips": list(SLIPS),
    }
