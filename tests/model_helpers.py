"""What the tests of the model share: a literal network, its twin in `esvae`, and the noise that both are given."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

import torch
from literal import LiteralESVAE
from torch import Tensor, nn

from esvae import ESVAE
from esvae.config import preset
from esvae.noise import Stream, normal
from esvae_kernels.ops.poisson.reference import uniforms

GRID = 2.0**-12  # biases and running means are multiples of it: their differences are exact in fp32


class Pair(NamedTuple):
    """Tensors of the literal network and of ours that belong together."""

    name: str
    literal: Tensor
    ours: Tensor


def literal_network(
    channels: int, size: int, latent: int, steps: int, preset: str = "official", seed: int = 0, dead: bool = False
) -> LiteralESVAE:
    """A literal network, fp32, in training mode, with random tdBN and the running statistics of two batches."""
    torch.manual_seed(seed)
    model = LiteralESVAE(channels, size, latent, steps, preset, dead_weights=dead)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bn.weight"):
                parameter.uniform_(0.6, 1.4)
            elif name.endswith("bn.bias"):
                parameter.uniform_(0, 0.2)
            elif name.endswith("bias"):
                parameter.copy_((parameter.uniform_(-0.5, 0.5) / GRID).round() * GRID)
        for _ in range(2):
            images = torch.rand(4, channels, size, size) * 2 - 1
            model(images, torch.rand(4, latent, steps), torch.randn(4, latent))
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_((buffer / GRID).round() * GRID)
    return model


def in_double(literal: LiteralESVAE) -> LiteralESVAE:
    """In fp64, the readout's coefficients not rounded to fp32 either."""
    literal.double()
    steps = torch.arange(literal.steps - 1, -1, -1, dtype=torch.float64)
    literal.membrane_output_layer.coef.copy_((0.8**steps).view(1, 1, 1, 1, -1))
    return literal


def layers(literal: LiteralESVAE, ours: ESVAE) -> Iterator[tuple[str, nn.Module, nn.Module]]:
    """The layers with tdBN: (our name, the literal layer, ours)."""
    theirs = [*literal.encoder, literal.before_latent_layer, literal.decoder_input, *literal.decoder]
    theirs.append(literal.final_layer[0])
    names = [f"encoder.{i}" for i in range(len(ours.encoder))] + ["to_latent", "from_latent"]
    names += [f"decoder.{i}" for i in range(len(ours.decoder))]
    for name, layer in zip(names, theirs, strict=True):
        yield name, layer, ours.get_submodule(name)


def _squeezed(weight: Tensor) -> Tensor:
    return weight.squeeze(-1) if weight.dim() == 5 else weight


def parameter_pairs(literal: LiteralESVAE, ours: ESVAE, grad: bool = False) -> Iterator[Pair]:
    """Every parameter of ours, or its gradient, beside the literal one."""

    def pair(name: str, a: nn.Parameter, b: nn.Parameter) -> Pair:
        a, b = (a.grad, b.grad) if grad else (a.data, b.data)
        return Pair(name, _squeezed(a), b)

    for name, a, b in layers(literal, ours):
        yield pair(f"{name}.transform.weight", a.weight, b.transform.weight)
        yield pair(f"{name}.neurons.weight", a.bn.weight, b.neurons.weight)
        yield pair(f"{name}.neurons.bias", a.bn.bias, b.neurons.bias)
    for name, a in (("to_image", literal.final_layer[1]), ("bottleneck", literal.sample_layer[0])):
        b = ours.get_submodule(name)
        yield pair(f"{name}.weight", a.weight, b.weight)
        yield pair(f"{name}.bias", a.bias, b.bias)


def buffer_pairs(literal: LiteralESVAE, ours: ESVAE) -> Iterator[Pair]:
    """The running statistics; the literal mean is that of x + bias, ours of x."""
    for name, a, b in layers(literal, ours):
        yield Pair(f"{name}.neurons.running_mean", a.bn.running_mean - a.bias.detach(), b.neurons.running_mean)
        yield Pair(f"{name}.neurons.running_var", a.bn.running_var, b.neurons.running_var)


def twin(literal: LiteralESVAE, preset_name: str) -> ESVAE:
    """Our network with the literal one's weights, in its dtype and mode."""
    first, latent = literal.encoder[0], literal.sample_layer[0]
    model = dataclasses.replace(
        preset(preset_name, "mnist").model,
        channels=first.in_channels,
        size={4: 32, 5: 64}[len(literal.encoder)],
        latent=latent.in_features,
        steps=literal.steps,
    )
    ours = ESVAE(**dataclasses.asdict(model)).to(first.weight.dtype)
    for pairs in (parameter_pairs, buffer_pairs):
        for _, a, b in pairs(literal, ours):
            b.copy_(a)
    return ours.train(literal.training)


def noise(n: int, latent: int, steps: int, seed: int, stream: Stream = Stream.POSTERIOR) -> tuple[Tensor, Tensor]:
    """What `ESVAE.forward` draws with `seed`, fp64, as the literal network takes it: u (N, d, T) and z_n (N, d)."""
    ids = torch.arange(n)
    u = uniforms(ids, latent, steps, seed, torch.float64, stream).permute(1, 2, 0)
    return u, normal(ids, latent, seed, Stream.PRIOR).double()


def random_images(n: int, channels: int, size: int, seed: int = 5) -> Tensor:
    """fp64 in [-1, 1]."""
    return (
        torch.rand(n, channels, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    )
