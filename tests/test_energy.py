"""Operations and energy: against a loop over connections, and values computed by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from analysis_helpers import OPTIONS, Encoderless, lively_model, one_line_error, saved
from torch import Tensor, nn

from esvae import ESVAE, data, energy
from esvae.cli import main
from esvae.cli.commands import energy_table
from esvae.energy import AC_PJ, MAC_PJ, SLIPS, Counter, Layer, paper_formula
from esvae.errors import InputError
from esvae.layers import SpikingLayer
from esvae.models import VAE

N = 3
NEURON = {"decay": 0.25, "threshold": 0.2, "scale": 1.0}


def fan_out(transform: nn.Module, size: tuple[int, ...]) -> Tensor:
    """Connections of every input element, (H, W) or (): by a loop over outputs and kernel elements."""
    if isinstance(transform, nn.Linear):
        return torch.tensor(float(transform.out_features))
    (k, _), (s, _), (p, _) = transform.kernel_size, transform.stride, transform.padding
    wide = isinstance(transform, nn.ConvTranspose2d)
    side = size[-1]
    outputs = (side - 1) * s - 2 * p + k + transform.output_padding[0] if wide else (side + 2 * p - k) // s + 1
    along = [0] * side  # connections of position i along one axis
    for o in range(outputs):
        for j in range(k):
            for i in range(side):
                along[i] += (i * s - p + j == o) if wide else (o * s - p + j == i)
    line = torch.tensor(along, dtype=torch.float64)
    return line[:, None] * line * (transform.out_channels // transform.groups)


class Recorded:
    """What goes into every map, and what every neuron layer fires, in full: (T, N, *) each."""

    def __init__(self, model: ESVAE) -> None:
        self.inputs: dict[str, list[Tensor]] = {}
        self.spikes: dict[str, list[Tensor]] = {}
        for name, module in model.named_modules():
            if isinstance(module, SpikingLayer):
                module.transform.register_forward_pre_hook(
                    lambda _, args, name=name: self.inputs.setdefault(name, []).append(args[0].double())
                )
                module.neurons.register_forward_hook(self._fired(name), with_kwargs=True)

    def _fired(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Tensor) -> None:
            spikes = module.forward(*args, steps=kwargs.get("steps"))
            self.spikes.setdefault(name, []).append(spikes.double())

        return hook


@pytest.fixture(scope="module")
def model() -> ESVAE:
    return lively_model()


@pytest.fixture(scope="module")
def images() -> data.ImageSet:
    return data.load("digits", "test").part(0, N)


@pytest.fixture(scope="module")
def measured(model: ESVAE, images: data.ImageSet) -> dict[str, Any]:
    return energy.energy(model, images, n=N)


@pytest.fixture(scope="module")
def recorded(images: data.ImageSet) -> Iterator[tuple[ESVAE, Recorded]]:
    """The same encodings and generations, watched."""
    model = lively_model()
    record = Recorded(model)
    with torch.no_grad():
        model.latent_spikes(data.normalize(images.pixels), seed=energy.SEED, sample_ids=torch.arange(N))
        model.generate(N, seed=energy.SEED)
    return model, record


def rows(measured: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for part in ("encode", "generate") for row in measured[part]["layers"]}


# --- against loops -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "transform",
    [
        nn.Conv2d(2, 3, 3, stride=2, padding=1),
        nn.Conv2d(4, 6, 3, padding=1, groups=2),
        nn.Conv2d(2, 3, 3),
        nn.ConvTranspose2d(2, 3, 3, stride=2, padding=1, output_padding=1),
        nn.ConvTranspose2d(2, 3, 4, stride=2, padding=1),
        nn.ConvTranspose2d(2, 3, 3, padding=1),
        nn.Linear(10, 7),
        nn.Linear(10, 7, bias=False),
    ],
    ids=["stride-2", "groups", "no-padding", "transposed-3", "transposed-4", "transposed-1", "linear", "no-bias"],
)
@pytest.mark.parametrize("spiking", [True, False], ids=["spikes", "values"])
def test_every_map_against_a_loop_over_connections(transform: nn.Module, spiking: bool) -> None:
    rows = 5
    shape = (rows, 10) if isinstance(transform, nn.Linear) else (rows, transform.in_channels, 6, 6)
    x = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    x = (x < 0.4).float() if spiking else x
    network = nn.Sequential(transform)
    network.steps = 1
    counter = Counter(network)
    with counter.counting():
        network(x)
    (layer,) = counter.layers.values()
    every = fan_out(transform, shape).expand(shape)
    assert layer.connections == every.sum()
    if spiking:
        assert (layer.synaptic_operations, layer.macs) == ((x * every).sum(), 0)
        assert 0 < layer.synaptic_operations < layer.connections
    else:
        assert (layer.synaptic_operations, layer.macs) == (0, every.sum())


def test_every_layer_of_the_model_against_a_loop_over_connections(
    measured: dict[str, Any], recorded: tuple[ESVAE, Recorded]
) -> None:
    model, record = recorded
    steps, found = OPTIONS["steps"], rows(measured)
    assert list(found) == [
        *(f"encoder.{i}" for i in range(4)),
        *("to_latent", "bottleneck", "from_latent"),
        *(f"decoder.{i}" for i in range(4)),
        "to_image",
    ]
    for name, (x,) in record.inputs.items():
        transform, row = model.get_submodule(name).transform, found[name]
        every = fan_out(transform, x.shape).expand(x.shape)
        assert row["connections"] == every[0].sum(), name
        if name == "encoder.0":
            assert (row["inputs"], row["macs"]) == ("real values", steps * every[0].sum())
            assert row["otherwise"]["energy_uj"] == pytest.approx(float(every[0].sum()) * MAC_PJ * 1e-6)
        else:
            assert row["inputs"] == "spikes"
            assert row["synaptic_operations"] == pytest.approx(float((x * every).sum()) / N, rel=1e-12)
            assert row["synaptic_operations"] > 0, name
            assert row["input_rate"] == pytest.approx(float(x.mean()))
            assert "otherwise" not in row


def test_neurons_and_their_rates(measured: dict[str, Any], recorded: tuple[ESVAE, Recorded]) -> None:
    _, record = recorded
    steps, found = OPTIONS["steps"], rows(measured)
    for name, (spikes,) in record.spikes.items():
        assert found[name]["neurons"] == spikes[0, 0].numel(), name
        assert found[name]["neuron_updates"] == steps * spikes[0, 0].numel()
        assert found[name]["firing_rate"] == pytest.approx(float(spikes.mean()), abs=1e-7), name
    decoder = [s for name, (s,) in record.spikes.items() if name.startswith(("from_latent", "decoder"))]
    fired, neurons = (sum(float(f(s)) for s in decoder) for f in (torch.sum, torch.numel))
    assert measured["generate"]["firing_rate"] == pytest.approx(fired / neurons)


def test_the_readout_is_one_pass_over_sums_of_spikes(
    measured: dict[str, Any], recorded: tuple[ESVAE, Recorded]
) -> None:
    model, record = recorded
    row, (spikes,) = rows(measured)["to_image"], record.spikes["decoder.3"]
    every = fan_out(model.to_image, spikes.shape).expand(spikes.shape[2:])
    assert (row["inputs"], row["macs"]) == ("real values", every.sum())
    assert row["synaptic_operations"] == pytest.approx(float(spikes.sum()) / N, rel=1e-6)
    at_every_step = float((spikes * every).sum()) / N * AC_PJ * 1e-6
    assert row["otherwise"] == {"how": "at every step, on spikes", "energy_uj": pytest.approx(at_every_step)}


# --- by hand -----------------------------------------------------------------------------------------------------


def test_connections_of_the_paper_s_network_by_hand() -> None:
    """Along an axis, a 3x3 kernel of stride 2 reaches 3 of n outputs but 2 at one border; of stride 1 at both."""
    model = lively_model(latent=128, steps=2)
    found = rows(energy.energy(model, data.load("digits", "test"), n=1))
    taps = {side: 3 * side - 1 for side in (2, 4, 8, 16)}  # by the smaller side
    expected = {
        "encoder.0": 32 * taps[16] ** 2,
        "encoder.1": 32 * 64 * taps[8] ** 2,
        "encoder.2": 64 * 128 * taps[4] ** 2,
        "encoder.3": 128 * 256 * taps[2] ** 2,
        "to_latent": 1024 * 128,
        "bottleneck": 128 * 128,
        "from_latent": 128 * 1024,
        "decoder.0": 256 * 128 * taps[2] ** 2,
        "decoder.1": 128 * 64 * taps[4] ** 2,
        "decoder.2": 64 * 32 * taps[8] ** 2,
        "decoder.3": 32 * 32 * taps[16] ** 2,
        "to_image": 32 * (3 * 32 - 2) ** 2,
    }
    assert {name: row["connections"] for name, row in found.items()} == expected
    assert found["bottleneck"]["macs"] == 128**2  # once, though T is 2


def test_totals_are_sums_and_the_energy_that_of_their_operations(measured: dict[str, Any]) -> None:
    for part in (measured["encode"], measured["generate"]):
        for key in ("synaptic_operations", "macs", "energy_uj", "neuron_updates"):
            assert part[key] == pytest.approx(sum(row[key] for row in part["layers"]))
        assert part["energy_uj"] == pytest.approx((0.9 * part["synaptic_operations"] + 4.6 * part["macs"]) / 1e6)
        assert part["twin_macs"] == sum(row["connections"] for row in part["layers"])
        assert part["twin_energy_uj"] == pytest.approx(4.6 * part["twin_macs"] / 1e6)
        assert part["energy_ratio"] == pytest.approx(part["energy_uj"] / part["twin_energy_uj"])
        assert part["neuron_updates_uj"] == pytest.approx(4.6 * part["neuron_updates"] / 1e6)
        both = part["energy_uj"] + part["neuron_updates_uj"]
        assert part["energy_ratio_with_updates"] == pytest.approx(both / part["twin_energy_uj"])
        assert part["energy_ratio_with_updates"] > part["energy_ratio"]
    assert measured["counted"].keys() == {"energy_uj", "energy_ratio_with_updates", "not counted"}
    first, readout = measured["encode"]["layers"][0], measured["generate"]["layers"][-1]
    saved = first["energy_uj"] - first["otherwise"]["energy_uj"]
    assert saved == pytest.approx(first["energy_uj"] * 2 / 3)  # two of the three steps
    energy_uj = measured["encode"]["energy_uj"]
    assert measured["encode"]["energy_range_uj"] == pytest.approx([energy_uj - saved, energy_uj])
    other = measured["generate"]["energy_uj"] - readout["energy_uj"] + readout["otherwise"]["energy_uj"]
    assert measured["generate"]["energy_range_uj"] == pytest.approx(sorted([measured["generate"]["energy_uj"], other]))


def test_the_break_even_rate_is_where_spikes_cost_what_values_do(images: data.ImageSet) -> None:
    model = lively_model()
    model.steps = 16
    assert energy.energy(model, images, n=1)["break_even_rate"] == pytest.approx(0.3194, abs=1e-4)
    network = nn.Sequential(nn.Linear(10, 7))
    network.steps = 16
    counter = Counter(network)
    spikes = torch.zeros(160)
    spikes[:51] = 1  # a rate of 0.319
    with counter.counting():
        network(spikes.view(16, 10))
    result = energy.summary(counter.layers, 1)
    assert result["twin_energy_uj"] == pytest.approx(70 * 4.6e-6)
    assert result["energy_ratio"] == pytest.approx(51 / 160 / 0.3194, rel=1e-3)


def test_a_mixture_costs_a_matrix_per_image(images: data.ImageSet) -> None:
    model = lively_model(prior="mixture")
    model.mixture.fit(torch.rand(20, OPTIONS["latent"]), seed=0)
    result = energy.energy(model, images, n=N, prior="mixture")
    layer = result["generate"]["layers"][0]
    wanted = OPTIONS["latent"] ** 2
    assert (layer["name"], layer["macs"], layer["connections"]) == ("mixture", wanted, wanted)
    assert "bottleneck" not in rows(result)


def test_the_paper_s_formula_by_hand() -> None:
    first = Layer(4, rows=2, connections=100.0, real=True, held=True, updates=40, fired=10.0)
    up = Layer(4, rows=8, events=30.0, connections=200.0, stride=4, updates=16, fired=4.0)
    last = Layer(4, rows=2, connections=50.0, real=True, readout=True, summed=4.0, summed_events=36.0)
    found = paper_formula([first, up, last], images=2, steps=4)
    additions = (100 * 4 + 2 * 40 + 30 * 4 + 2 * 16 + 36) / 2
    multiplications = (100 * 4 + 30 + 12) / 2
    assert found == {
        "firing_rate": 14 / 56,
        "additions": additions,
        "multiplications": multiplications,
        "energy_j": pytest.approx(0.9e-12 * 14 / 56 * 4 * (additions + multiplications)),
        "slips": list(SLIPS),
    }
    real = paper_formula([Layer(1, rows=1, connections=100.0, real=True)], images=1, steps=1)
    assert (real["firing_rate"], real["additions"], real["multiplications"]) == (None, 100, 100)
    assert real["energy_j"] == pytest.approx(200 * 4.6e-12)


def test_the_formula_with_the_counts_printed_in_table_3() -> None:
    """It gives the printed energy of both spiking models, and a tenth of the ANN's."""
    for rate, additions, multiplications, printed in ((0.4491, 1.9e8, 1.8e6, 0.0012), (0.339, 5.0e10, 5.6e8, 0.2468)):
        assert AC_PJ * 1e-12 * rate * 16 * (additions + multiplications) == pytest.approx(printed, rel=0.04)
    assert pytest.approx(0.6808 / 10, rel=1e-3) == MAC_PJ * 1e-12 * 2 * 7.4e9


# --- other models ------------------------------------------------------------------------------------------------


class Stepwise(nn.Module):
    """A spiking network that is run step by step, as an autoregressive prior is, or all steps at once."""

    kind, steps = "toy", 5

    def __init__(self, stepwise: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stepwise = stepwise
        self.first = SpikingLayer(nn.Linear(4, 6, bias=False), 6, NEURON)
        self.second = SpikingLayer(nn.Linear(6, 8, bias=False), 8, NEURON)
        for layer in (self.first, self.second):
            layer.neurons.decay = 0.0  # so that steps do not depend on each other

    def generate(self, n: int, *, seed: int, start: int = 0, prior: str | None = None) -> Tensor:
        noise = torch.rand(self.steps, n, 4, generator=torch.Generator().manual_seed(seed))
        steps = (noise < 0.5).float().split(1 if self.stepwise else self.steps)
        return torch.cat([self.second(self.first(z)) for z in steps])


def test_steps_may_come_one_at_a_time() -> None:
    found = [energy.energy(Stepwise(stepwise), n=N)["generate"] for stepwise in (False, True)]
    assert found[0] == found[1]
    assert [row["name"] for row in found[0]["layers"]] == ["first", "second"]
    assert found[0]["layers"][0]["connections"] == 24
    assert found[0]["layers"][1]["synaptic_operations"] > 0
    assert found[0]["neuron_updates"] == 5 * (6 + 8)


def test_a_model_without_encoder_and_spikes() -> None:
    result = energy.energy(Encoderless(), n=N)
    assert result["encode"] is None
    (layer,) = result["generate"]["layers"]
    assert (layer["name"], layer["macs"], layer["inputs"]) == ("to_image", 36, "real values")
    assert result["generate"]["energy_ratio"] == 1
    assert result["generate"]["firing_rate"] is None
    assert result["paper_formula"]["energy_j"] == pytest.approx(72 * 4.6e-12)


def test_an_attention_like_product_counts_where_it_is() -> None:
    class Attention(Encoderless):
        def generate(self, n: int, **options: Any) -> Tensor:
            x = torch.rand(n, 5, 7)
            return torch.einsum("nij,nkj->nik", x, x)

    (layer,) = energy.energy(Attention(), n=N)["generate"]["layers"]
    assert (layer["name"], layer["macs"]) == ("model", 5 * 5 * 7)


def test_batches_do_not_matter(
    model: ESVAE, images: data.ImageSet, measured: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(energy, "BATCH", 2)
    again = energy.energy(model, images, n=N)
    for a, b in zip(rows(again).values(), rows(measured).values(), strict=True):
        assert a["name"] == b["name"]
        assert a["synaptic_operations"] == pytest.approx(b["synaptic_operations"], rel=1e-3), a["name"]  # of rounding


def test_the_model_is_left_as_it_was(model: ESVAE, measured: dict[str, Any]) -> None:
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


# --- mistakes and the command line -------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [0, N + 1])
def test_n_is_checked(model: ESVAE, images: data.ImageSet, n: int) -> None:
    with pytest.raises(InputError, match=f"n: got {n}, accepted are 1 to {N}"):
        energy.energy(model, images, n=n)


def test_an_encoder_needs_images(model: ESVAE) -> None:
    with pytest.raises(InputError, match="images: got none"):
        energy.energy(model)


def test_json_is_all_that_stdout_has(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = saved(tmp_path / "model")
    capsys.readouterr()
    arguments = ["energy", str(folder), "--data", "digits", "--n", str(N)]
    assert main([*arguments, "--json"]) == 0
    out = capsys.readouterr().out
    result = json.loads(out)
    assert out.count("\n") == 1
    expected = energy.energy(lively_model(), data.load("digits", "test"), n=N, prior="bottleneck")
    assert result == {"weights": str(folder / "model.safetensors")} | expected
    assert main(arguments) == 0
    table = capsys.readouterr().out
    for name in (*rows(result), "encode: ", "generate: ", "the paper's formula"):
        assert name in table, table
    (total,) = (line.split() for line in table.splitlines() if line.startswith("│ generate "))
    assert f"{result['generate']['energy_uj']:.2f}" in total
    ratios = [f"{result['generate'][key]:.2f}" for key in ("energy_ratio", "energy_ratio_with_updates")]
    told = " ".join(table.split())
    assert f"generate: {ratios[0]} of the twin's energy, {ratios[1]} with the updates of the neurons" in told
    assert ("even at a firing rate of" in table) == (result["break_even_rate"] < 1)


def test_what_spikes_cost_is_not_said_of_a_model_without(images: data.ImageSet) -> None:
    without = VAE(latent=4, steps=1).eval()
    caption = energy_table(energy.energy(without, images, n=N)).caption
    assert "even at" not in caption
    assert "updates of the neurons" not in caption
    assert "generate: 1.00 of the twin's energy" in caption


def test_at_few_steps_no_rate_breaks_even(images: data.ImageSet) -> None:
    result = energy.energy(lively_model(), images, n=N) | {"steps": 4, "break_even_rate": 1.28}
    assert "at T = 4 less at any firing rate" in energy_table(result).caption


def test_mistakes_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    failed, folder = one_line_error(capsys), saved(tmp_path / "model")
    assert "data: " in failed("energy", folder)
    assert "n: got 361, accepted are 1 to 360" in failed("energy", folder, "--data", "digits", "--n", 361)
    assert "prior: got 'mixture', accepted are bottleneck" in failed(
        "energy", folder, "--data", "digits", "--n", 1, "--prior", "mixture"
    )


def test_nothing_but_finite_numbers(measured: dict[str, Any]) -> None:
    text = json.dumps(measured, allow_nan=False)
    assert math.isfinite(json.loads(text)["generate"]["energy_uj"])
