"""Precision and recall (Kynkaanniemi et al. 2019, arXiv 1904.06991, eq. 1 and 2), density and coverage (Naeem et al.
2020, arXiv 2002.09797, eq. 4 and 5): where generated images lie among real ones, in the space of some features.

A set's manifold is the union of balls around its points, each out to the point's k-th nearest neighbour in the set.

    precision  share of generated points in the real manifold: are they realistic
    recall     share of real points in the generated manifold: is everything drawn
    density    in how many real balls a generated point lies, over k; may be above 1
    coverage   share of real balls with a generated point in them

A point on a ball's surface lies in it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from esvae.errors import InputError

NEIGHBOURS = 5  # k of Naeem et al.
ROWS = 1024  # distances are taken of so many points at a time


def prdc(real: Tensor, generated: Tensor, k: int = NEIGHBOURS) -> dict[str, float]:
    """{"precision", "recall", "density", "coverage"} of features real (N, D) and generated (M, D), in fp64.

    All four depend on N and M: compare values of the same N = M alone. Raises `InputError` for other shapes, sets of k
    points or fewer, and values that are not finite.
    """
    real, generated = real.double(), generated.double()
    if real.ndim != 2 or generated.shape[1:] != real.shape[1:] or min(len(real), len(generated)) <= k:
        got = f"{tuple(real.shape)} and {tuple(generated.shape)}"
        raise InputError(f"real, generated: shapes (N, D) and (M, D) with N and M above {k} are wanted, not {got}")
    if not (real.isfinite().all() and generated.isfinite().all()):
        raise InputError("real, generated: some values are not finite")
    real_radii, generated_radii = _radii(real, k), _radii(generated, k)
    balls = torch.zeros(len(generated), dtype=torch.int64)  # real ones that a generated point lies in
    recalled, covered = [], []
    for some, radii in zip(real.split(ROWS), real_radii.split(ROWS), strict=True):
        apart = _distances(some, generated)
        inside = apart <= radii[:, None]
        balls += inside.sum(0)
        covered.append(inside.any(1))
        recalled.append((apart <= generated_radii).any(1))
    return {
        "precision": (balls > 0).double().mean().item(),
        "recall": torch.cat(recalled).double().mean().item(),
        "density": balls.double().mean().item() / k,
        "coverage": torch.cat(covered).double().mean().item(),
    }


def _radii(points: Tensor, k: int) -> Tensor:
    """The distance of each point to its k-th nearest neighbour, itself not counted."""
    return torch.cat([_distances(some, points).kthvalue(k + 1).values for some in points.split(ROWS)])


def _distances(a: Tensor, b: Tensor) -> Tensor:
    # Not through a^2 - 2ab + b^2, which would not give 0 for equal points.
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
