"""Muon for the weights of hidden layers and AdamW for all else, as one optimizer.

Muon (Jordan et al., 2024, https://kellerjordan.github.io/posts/muon/) moves a weight matrix along its momentum with all
singular values set to about 1, so that no direction of a layer learns more slowly than the others; the lead "AdamW" of
bench/leads.py is the preset without it, at learning rates that suit AdamW. The size of a step is that of Liu et al.
(2025, arXiv 2502.16982), 0.2 in the root mean square per unit of the learning rate, as AdamW's are: learning rate and
weight decay serve for both.

torch.optim.Muon takes matrices alone, not kernels of convolutions, and multiplies in bf16, which takes a CPU without
instructions for it some twenty times as long as fp32; hence this one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

MOMENTUM = 0.95
STEP = 0.2  # root mean square of an update at a learning rate of 1
ITERATIONS = 5
QUINTIC = (3.4445, -4.7750, 2.0315)  # of Jordan et al.: steepest at 0, where singular values are small


def orthogonalized(matrix: Tensor) -> Tensor:
    """(m, n) -> (m, n) of the same singular vectors, its singular values roughly between 0.7 and 1.2.

    Newton and Schulz's iteration with an odd polynomial of degree 5; only products of matrices, so it runs anywhere.
    Singular values below some thousandths of the matrix's norm come out smaller.
    """
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.t() if tall else matrix
    x = x / (x.norm() + 1e-7)
    a, b, c = QUINTIC
    for _ in range(ITERATIONS):
        gram = x @ x.t()
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.t() if tall else x


class Muon(torch.optim.AdamW):
    """AdamW, but in groups with `"orthogonal": True` Muon; those hold parameters of two or more dimensions, of which
    all but the first are taken as one."""

    def __init__(self, groups: list[dict[str, Any]], **options) -> None:
        super().__init__([{"orthogonal": False} | group for group in groups], **options)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        groups = self.param_groups
        for group in (group for group in groups if group["orthogonal"]):
            for parameter in (parameter for parameter in group["params"] if parameter.grad is not None):
                self._move(parameter, group["lr"], group["weight_decay"])
        self.param_groups = [group for group in groups if not group["orthogonal"]]
        try:
            super().step()
        finally:
            self.param_groups = groups

    def _move(self, parameter: Tensor, lr: float | Tensor, weight_decay: float) -> None:
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
            state["step"] = torch.zeros(())  # of no use here; AdamW, loading, expects it in every state
        momentum = state["momentum"].mul_(MOMENTUM).add_(parameter.grad)
        ahead = parameter.grad + MOMENTUM * momentum  # Nesterov's
        matrix = ahead.flatten(1)
        update = orthogonalized(matrix).view_as(ahead) * (STEP * max(matrix.shape) ** 0.5)
        parameter.mul_(1 - lr * weight_decay).sub_(lr * update)
