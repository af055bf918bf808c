"""Precision, recall, density and coverage against their definitions, point by point."""

from __future__ import annotations

import pytest
import torch
from metric_helpers import assert_one_line
from torch import Tensor

from esvae.errors import InputError
from esvae.metrics import neighbours
from esvae.metrics.neighbours import prdc


def points(count: int, seed: int, size: int = 3) -> Tensor:
    return torch.randn(count, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def naive(real: Tensor, generated: Tensor, k: int) -> dict[str, float]:
    """The sums of both papers, written out."""

    def radius(points: Tensor, index: int) -> Tensor:
        others = [torch.dist(points[index], points[j]) for j in range(len(points)) if j != index]
        return torch.stack(others).sort().values[k - 1]

    def inside(point: Tensor, ball: Tensor, size: Tensor) -> bool:
        return bool(torch.dist(point, ball) <= size)

    real_radii = [radius(real, i) for i in range(len(real))]
    generated_radii = [radius(generated, j) for j in range(len(generated))]
    hits = [[inside(y, x, r) for y in generated] for x, r in zip(real, real_radii, strict=True)]
    recalled = [any(inside(x, y, r) for y, r in zip(generated, generated_radii, strict=True)) for x in real]
    return {
        "precision": sum(any(column) for column in zip(*hits, strict=True)) / len(generated),
        "recall": sum(recalled) / len(real),
        "density": sum(map(sum, hits)) / (k * len(generated)),
        "coverage": sum(map(any, hits)) / len(real),
    }


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize(("n", "m", "apart"), [(30, 30, 0.0), (41, 17, 0.5), (7, 23, 2.0)])
def test_is_the_definition(n: int, m: int, apart: float, k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "ROWS", 8)  # neither a divisor of n nor of m
    real, generated = points(n, 0), points(m, 1) * 0.7 + apart
    found = prdc(real, generated, k)
    assert found == pytest.approx(naive(real, generated, k), abs=1e-12)
    assert len({*found.values()}) > 1


def test_the_same_points_score_one() -> None:
    """Each lies in its own ball, and in those of its neighbours: k + 1 balls on average."""
    x = points(200, 2)
    assert prdc(x, x) == {"precision": 1.0, "recall": 1.0, "density": pytest.approx(6 / 5), "coverage": 1.0}


def test_collapsed_onto_one_real_point() -> None:
    """All realistic, hardly anything covered; balls of radius 0 hold the point that they are of."""
    real = points(200, 3)
    generated = real[:1].expand(200, -1)
    found = prdc(real, generated)
    assert (found["precision"], found["recall"]) == (1.0, 1 / 200)
    assert found["coverage"] < 0.1


def test_far_away_scores_zero() -> None:
    assert set(prdc(points(50, 4), points(50, 5) + 100).values()) == {0.0}


@pytest.mark.parametrize(
    ("real", "generated", "word"),
    [
        pytest.param(torch.zeros(5, 3), torch.zeros(9, 3), "above 5", id="as-few-as-k"),
        pytest.param(torch.zeros(9, 3), torch.zeros(9, 4), "(9, 4)", id="other-features"),
        pytest.param(torch.zeros(9), torch.zeros(9), "(9,)", id="1d"),
        pytest.param(torch.zeros(9, 3), torch.full((9, 3), torch.nan), "not finite", id="nan"),
    ],
)
def test_what_does_not_fit_is_refused(real: Tensor, generated: Tensor, word: str) -> None:
    with pytest.raises(InputError) as error:
        prdc(real, generated)
    assert_one_line(error, "real, generated", word)
