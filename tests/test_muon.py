"""Muon: what an update is, which weights it moves, and that the others are AdamW's."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from esvae import train
from esvae.checkpoint import optimizer_tensors, restore_optimizer
from esvae.config import ModelConfig, TrainConfig
from esvae.models import MODELS
from esvae.muon import MOMENTUM, STEP, Muon, orthogonalized

LR, DECAY = 0.05, 0.1


@pytest.mark.parametrize("shape", [(24, 24), (16, 90), (90, 16), (1, 7)], ids=str)
def test_singular_vectors_stay_and_singular_values_come_near_one(shape: tuple[int, int]) -> None:
    u, s, v = torch.linalg.svd(torch.randn(shape, generator=torch.manual_seed(0)), full_matrices=False)
    s = torch.linspace(1.0, 0.05, len(s))  # down to a twentieth: what the five iterations reach
    across = u.t() @ orthogonalized(u @ torch.diag(s) @ v * 37) @ v.t()
    assert torch.allclose(across, torch.diag(across.diagonal()), atol=1e-4)
    assert across.diagonal().min() > 0.6
    assert across.diagonal().max() < 1.3


def test_a_gradient_of_zero_moves_nothing_but_by_weight_decay() -> None:
    weight = nn.Parameter(torch.ones(4, 3))
    weight.grad = torch.zeros(4, 3)
    Muon([{"params": [weight], "orthogonal": True}], lr=LR, weight_decay=DECAY).step()
    assert torch.allclose(weight, torch.full((4, 3), 1 - LR * DECAY))


def test_steps_are_those_of_their_definition() -> None:
    """Nesterov's momentum, orthogonalized as (out, in * height * width), at 0.2 in the root mean square."""
    generator = torch.manual_seed(1)
    start = torch.randn(6, 4, 3, 3, generator=generator)
    weight = nn.Parameter(start.clone(memory_format=torch.channels_last))
    optimizer = Muon([{"params": [weight], "orthogonal": True}], lr=LR, weight_decay=DECAY)
    expected, momentum = start.clone(), torch.zeros_like(start)
    for _ in range(3):
        gradient = torch.randn(6, 4, 3, 3, generator=generator)
        weight.grad = gradient.clone(memory_format=torch.channels_last)
        optimizer.step()
        momentum = MOMENTUM * momentum + gradient
        direction = orthogonalized((gradient + MOMENTUM * momentum).reshape(6, 36)).reshape(6, 4, 3, 3)
        expected = expected * (1 - LR * DECAY) - LR * STEP * 36**0.5 * direction
    assert torch.allclose(weight, expected, atol=1e-5)
    update = (STEP * 36**0.5 * direction).square().mean().sqrt()  # 6 of 36 singular values, each about 1
    assert 0.7 * STEP < update < 1.2 * STEP


def test_the_rest_is_adamw_s() -> None:
    generator = torch.manual_seed(2)
    ours, theirs, matrix = (nn.Parameter(torch.ones(5)) for _ in range(3))
    matrix = nn.Parameter(torch.eye(4))
    options = {"lr": LR, "weight_decay": DECAY, "betas": (0.8, 0.9)}
    muon = Muon([{"params": [matrix], "orthogonal": True}, {"params": [ours]}], **options)
    adamw = torch.optim.AdamW([theirs], **options)
    for _ in range(3):
        ours.grad = theirs.grad = torch.randn(5, generator=generator)
        matrix.grad = torch.randn(4, 4, generator=generator)
        muon.step()
        adamw.step()
    assert torch.equal(ours, theirs)
    assert set(muon.state[ours]) == {"step", "exp_avg", "exp_avg_sq"}
    assert set(muon.state[matrix]) == {"step", "momentum"}


OPTIONS = [{"kind": kind} for kind in sorted(MODELS)] + [{"attention": "pfa", "readout": "taid"}]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: " ".join(options.values()))
def test_it_moves_the_weights_of_hidden_layers_alone(options: dict[str, str]) -> None:
    kind = options.get("kind", "esvae")
    model = MODELS[kind](**dataclasses.asdict(ModelConfig(**options, latent=2, channels=3, steps=1)))
    config = TrainConfig(optimizer="muon")
    groups = train.make_optimizer(model, config).param_groups
    if kind == "gan":
        groups += train.make_optimizer(model, config, groups=model.critic_groups(config)).param_groups
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    by_muon = {names[id(p)] for group in groups if group["orthogonal"] for p in group["params"]}
    by_adamw = {names[id(p)] for group in groups if not group["orthogonal"] for p in group["params"]}
    assert not by_muon & by_adamw
    assert by_muon | by_adamw == set(names.values())
    touching = ("to_image", "encoder.0.", "critic.convolutions.0.", "critic.to_score", "attention", "taid")
    hidden = {n for n, p in model.named_parameters() if p.dim() >= 2 and not n.startswith(touching)}
    assert by_muon == hidden
    assert any(name.startswith("decoder.") for name in by_muon)
    assert {group["base_lr"] for group in groups} == {group["lr"] for group in groups}


def test_its_state_comes_back_from_a_checkpoint() -> None:
    def made(seed: int) -> tuple[nn.Parameter, nn.Parameter, Muon]:
        matrix = nn.Parameter(torch.randn(4, 3, generator=torch.manual_seed(seed)))
        bias = nn.Parameter(torch.zeros(3))
        groups = [{"params": [matrix], "orthogonal": True}, {"params": [bias], "orthogonal": False}]
        return matrix, bias, Muon(groups, lr=LR)

    def step(matrix: nn.Parameter, bias: nn.Parameter, optimizer: Muon) -> None:
        matrix.grad, bias.grad = torch.ones(4, 3) * matrix.detach() + 1, torch.ones(3)
        optimizer.step()

    first, second = made(3), made(4)
    step(*first)
    restore_optimizer(second[2], *optimizer_tensors(first[2]))
    with torch.no_grad():
        for ours, theirs in zip(second[:2], first[:2], strict=True):
            ours.copy_(theirs)
    for each in (first, second):
        step(*each)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
