"""What the tests of robustness, classify and energy share: models whose neurons fire, without a training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from esvae import ESVAE, data
from esvae.cli import main
from esvae_kernels.nn import BNLIF

OPTIONS = {"latent": 6, "steps": 3, "mixture_components": 2}


def lively_model(seed: int = 0, **options: Any) -> ESVAE:
    """An untrained ESVAE for grey images of 32x32, with the running statistics of a batch of digits."""
    torch.manual_seed(seed)
    model = ESVAE(**OPTIONS | options)
    for module in model.modules():
        if isinstance(module, BNLIF):
            module.momentum = 1.0
    with torch.no_grad():
        model.bottleneck.weight.mul_(5)
        model(data.normalize(data.load("digits", "train").pixels[:16]), seed=1)
    return model.eval()


def saved(folder: Path, **options: Any) -> Path:
    """Such a model in a folder that the command line takes."""
    lively_model(**options).save_pretrained(folder)
    return folder


class Encoderless(nn.Module):
    """A model of a kind that the analyses know nothing of: a latent of noise, one map, no neurons."""

    kind = "toy"

    def __init__(self) -> None:
        super().__init__()
        self.steps = 1
        self.to_image = nn.Linear(4, 9)

    def generate(self, n: int, *, seed: int, start: int = 0, prior: str | None = None) -> Tensor:
        noise = torch.randn(n, 4, generator=torch.Generator().manual_seed(seed + start))
        return torch.tanh(self.to_image(noise)).view(n, 1, 3, 3)


def one_line_error(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    def check(*arguments: object, code: int = 2) -> str:
        """Run a command that must fail with this exit code and one line, and return that line."""
        capsys.readouterr()
        assert main([str(argument) for argument in arguments]) == code
        out, err = capsys.readouterr()
        assert (out, len(err.splitlines())) == ("", 1), err
        assert err.startswith("esvae: error: ")
        return err.rstrip()

    return check
