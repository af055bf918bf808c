"""The distances of rates against loops over pairs."""

from __future__ import annotations

import math

import pytest
import torch
from literal import mmd as literal_mmd
from torch import Tensor

from esvae.losses import DISTANCES, PROJECTIONS, imq, mmd, sliced_wasserstein, unbiased_mmd


def rates(n: int, d: int, seed: int) -> Tensor:
    return torch.rand(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def by_loops(a: Tensor, b: Tensor, kernel: str, biased: bool) -> float:
    points = [*a.tolist(), *b.tolist()]
    squared = [[math.dist(x, y) ** 2 for y in points] for x in points]
    n, m = len(points), len(a)
    bandwidth = sum(map(sum, squared)) / (n * n - n)

    def k(i: int, j: int) -> float:
        widths = [bandwidth * factor for factor in (0.25, 0.5, 1, 2, 4)]
        return sum(math.exp(-squared[i][j] / w) if kernel == "rbf" else w / (w + squared[i][j]) for w in widths)

    def mean(rows: range, columns: range, with_self: bool) -> float:
        values = [k(i, j) for i in rows for j in columns if with_self or i != j]
        return sum(values) / len(values)

    first, second = range(m), range(m, n)
    return mean(first, first, biased) + mean(second, second, biased) - 2 * mean(first, second, True)


def test_mmd_is_the_literal_one() -> None:
    a, b = rates(5, 3, 0), rates(5, 3, 1)
    assert mmd(a, b).item() == pytest.approx(literal_mmd(a, b).item(), rel=1e-12)


@pytest.mark.parametrize(
    ("distance", "kernel", "biased"), [(mmd, "rbf", True), (unbiased_mmd, "rbf", False), (imq, "imq", True)]
)
def test_kernel_distances_by_loops(distance, kernel: str, biased: bool) -> None:
    a, b = rates(5, 3, 0), rates(5, 3, 1) ** 2
    assert distance(a, b).item() == pytest.approx(by_loops(a, b, kernel, biased), rel=1e-12)


def test_unbiased_is_0_on_average_for_equal_distributions() -> None:
    values = torch.stack(
        [torch.stack([f(rates(8, 4, 2 * i), rates(8, 4, 2 * i + 1)) for f in (unbiased_mmd, mmd)]) for i in range(300)]
    )
    mean, error = values.mean(0), values.std(0) / math.sqrt(300)
    assert abs(mean[0]) < 4 * error[0]
    assert mean[1] > 4 * error[1]


def test_sliced_wasserstein_of_a_shift() -> None:
    a = rates(7, 5, 0)
    shift = torch.zeros(5, dtype=torch.float64)
    shift[2] = 0.3
    found = sliced_wasserstein(a, (a + shift).flip(0)).item()
    # Each projection moves by <direction, shift>, whose mean square is |shift|^2 / d up to the choice of directions.
    assert found == pytest.approx(0.09 / 5, rel=4 * math.sqrt(2 / PROJECTIONS))
    assert sliced_wasserstein(a, a.flip(0)).item() < 1e-20


@pytest.mark.parametrize("distance", DISTANCES.values(), ids=DISTANCES)
def test_gradients(distance) -> None:
    a, b = rates(4, 3, 0).requires_grad_(), rates(4, 3, 1).requires_grad_()
    value = distance(a, b)
    value.backward()
    with torch.no_grad():
        assert distance(a - 1e-3 * a.grad, b - 1e-3 * b.grad) < value
    assert min(a.grad.abs().max(), b.grad.abs().max()) > 1e-3


@pytest.mark.parametrize("distance", DISTANCES.values(), ids=DISTANCES)
def test_equal_points_are_no_nan(distance) -> None:
    a = torch.full((4, 3), 0.5, requires_grad=True)
    value = distance(a, a.detach())
    value.backward()
    assert value.abs() < 1e-6
    assert a.grad.isfinite().all()
