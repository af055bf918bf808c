"""Encoder and decoder as modules of whole sequences and as NIR graphs, and `esvae export`."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import torch
from kernel_helpers import one_line
from model_helpers import random_images
from torch import nn

from esvae import cli
from esvae.errors import InputError
from esvae.export import Decoder, Encoder, export
from esvae.layers import SpikingLayer, neuron_options
from esvae.models import ESVAE


@pytest.fixture(scope="module")
def model() -> ESVAE:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ESVAE(latent=8, steps=4).eval()
        for layer in model.modules():
            if isinstance(layer, SpikingLayer):
                layer.neurons.running_var.uniform_(0.01, 0.05), nn.init.normal_(layer.neurons.bias, 0.1, 0.1)
    return model


def latent(model: ESVAE, n: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.bernoulli(torch.full((model.steps, n, model.config.latent), 0.3), generator=generator)


@torch.no_grad()
def test_halves_are_the_model(model: ESVAE) -> None:
    images = random_images(2, 1, 32).float()
    spikes = Encoder(model)(images.expand(model.steps, *images.shape))
    assert torch.allclose(spikes.mean(0), model.encode(images), atol=1e-6)
    assert 0.02 < spikes.mean() < 0.98
    z = latent(model)
    potentials = Decoder(model)(z)
    assert torch.allclose(torch.tanh(potentials[-1]), model.decode(z), atol=1e-5)
    model.steps = 2  # the readout's weights have the same sum
    try:
        assert torch.allclose(torch.tanh(Decoder(model)(z[:2])[-1]), model.decode(z[:2]), atol=1e-5)
    finally:
        model.steps = 4


@torch.no_grad()
def test_the_encoder_comes_back(model: ESVAE, tmp_path: Path) -> None:
    nir = pytest.importorskip("esvae_kernels.dropin.nir", reason="nir is not installed", exc_type=ImportError)
    export(model, "encoder", tmp_path / "encoder.nir", accept=[">="])
    network = nir.from_nir(nir.read(tmp_path / "encoder.nir"))
    x = random_images(2, 1, 32).float().expand(model.steps, 2, 1, 32, 32)
    assert torch.equal(network(x), Encoder(model)(x))


@torch.no_grad()
def test_the_decoder_comes_back(model: ESVAE, tmp_path: Path) -> None:
    """One of fewer channels: the whole one's matrices take minutes and gigabytes."""
    nir = pytest.importorskip("esvae_kernels.dropin.nir", reason="nir is not installed", exc_type=ImportError)
    line = (
        "layer 'decoder.2.transform' (ConvTranspose2d): NIR has no transposed convolutions; as a matrix it takes 8192"
    )
    one_line(lambda: export(model, "decoder", tmp_path / "decoder.nir", accept=[">="]), InputError, line)
    neuron = neuron_options(model.config)
    half = Decoder(model)
    half.pixels = (4, 2, 2)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        half.from_latent = SpikingLayer(nn.Linear(8, 16, bias=False), 16, neuron)
        up = nn.ConvTranspose2d(4, 3, 3, stride=2, padding=1, output_padding=1, bias=False)
        half.decoder = nn.ModuleList([SpikingLayer(up, 3, neuron)])
        half.to_image = nn.ConvTranspose2d(3, 1, 3, padding=1)
    half.eval()
    expected = half(latent(model))
    found = nir.from_nir(nir.to_nir(half, (8,), accept=[">="]))(latent(model))
    assert expected.std() > 0.01
    assert torch.allclose(found, expected.flatten(2), atol=1e-5)


def test_the_model_that_comes_along_as_the_readme_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("esvae_kernels.dropin.nir", reason="nir is not installed", exc_type=ImportError)
    readme = Path(__file__).resolve().parent.parent / "README.md"
    (line,) = [line for line in readme.read_text().splitlines() if line.startswith("esvae export ")]
    command = shlex.split(line, comments=True)
    command[command.index("runs/fashion")] = "fashion-mnist"
    command[command.index("encoder.nir")] = str(tmp_path / "encoder.nir")
    assert cli.main(command[1:]) == 0
    at = command.index("reset")
    del command[at - 1 : at + 1]
    assert cli.main(command[1:]) == 2
    assert "its reset is 'soft', NIR's is 'hard': --accept 'reset' writes a hard reset" in capsys.readouterr().err


def test_command(model: ESVAE, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nir = pytest.importorskip("esvae_kernels.dropin.nir", reason="nir is not installed", exc_type=ImportError)
    model.save_pretrained(tmp_path / "model")
    out = tmp_path / "encoder.nir"
    arguments = ["export", str(tmp_path / "model"), "--out", str(out)]
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("esvae: error: layer 'encoder.0.neurons' (BNLIF): it fires at the threshold")
    assert len(error.splitlines()) == 1
    assert not out.exists()
    assert cli.main([*arguments, "--accept", ">=", "--dt", "1e-3"]) == 0
    assert nir.read(out).nodes["to_latent_neurons"].tau[0] == pytest.approx(1e-3 / 0.75)
    assert cli.main(["export", str(tmp_path / "model"), "--out", "x.txt"]) == 2
    assert "out: got x.txt, accepted is .nir" in capsys.readouterr().err
    assert cli.main([*arguments, "--part", "decoder", "--accept", ">="]) == 2
    assert "max_matrix" in capsys.readouterr().err
