"""The Frechet distance of two Gaussians, and the statistics of features."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch
from metric_helpers import assert_one_line, random_spd

from esvae.errors import InputError
from esvae.metrics.frechet import feature_statistics, frechet_distance


def test_distance_of_diagonal_gaussians_has_a_closed_form() -> None:
    mu_a, mu_b = torch.tensor([0.0, 1.0, -2.0]), torch.tensor([3.0, 1.0, 0.0])
    std_a, std_b = torch.tensor([1.0, 2.0, 0.5]), torch.tensor([4.0, 2.0, 0.25])
    distance = frechet_distance(mu_a, torch.diag(std_a**2), mu_b, torch.diag(std_b**2))
    assert distance == pytest.approx(13.0 + 9.0 + 0.0625, rel=1e-12)


def test_distance_of_commuting_covariances_has_a_closed_form() -> None:
    basis = torch.linalg.qr(torch.randn(20, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))[0]
    a, b = torch.linspace(0.1, 3, 20, dtype=torch.float64), torch.linspace(5, 0.2, 20, dtype=torch.float64)
    mu = torch.zeros(20)
    distance = frechet_distance(mu, (basis * a) @ basis.T, mu, (basis * b) @ basis.T)
    assert distance == pytest.approx((a.sqrt() - b.sqrt()).square().sum().item(), rel=1e-10)


@pytest.mark.parametrize("size", [1, 2, 17, 64])
def test_distance_agrees_with_sqrtm(size: int) -> None:
    a, b = random_spd(size, 2), random_spd(size, 3)
    mu_a, mu_b = torch.linspace(-1, 1, size), torch.linspace(2, 0, size)
    root = np.real(scipy.linalg.sqrtm(a.numpy() @ b.numpy()))
    expected = (mu_a - mu_b).double().square().sum().item() + float(np.trace(a.numpy() + b.numpy() - 2 * root))
    assert frechet_distance(mu_a, a, mu_b, b) == pytest.approx(expected, rel=1e-7)
    assert frechet_distance(mu_b, b, mu_a, a) == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize("rank", [64, 63, 5, 1])
def test_distance_to_itself_is_zero_even_if_singular(rank: int) -> None:
    sigma, mu = random_spd(64, 4, rank), torch.ones(64)
    assert 0 <= frechet_distance(mu, sigma, mu, sigma) < 1e-10


def test_distance_between_singular_covariances_of_disjoint_range() -> None:
    a, b = torch.diag(torch.tensor([4.0, 0.0, 0.0])), torch.diag(torch.tensor([0.0, 9.0, 0.0]))
    assert frechet_distance(torch.zeros(3), a, torch.zeros(3), b) == pytest.approx(13.0, abs=1e-12)
    assert frechet_distance(torch.zeros(3), a, torch.ones(3), torch.zeros(3, 3)) == pytest.approx(7.0, abs=1e-12)


@pytest.mark.parametrize(
    ("mu", "sigma"),
    [
        pytest.param(torch.zeros(3), torch.eye(4), id="sizes-differ"),
        pytest.param(torch.zeros(1, 3), torch.eye(3), id="mu-2d"),
        pytest.param(torch.full((3,), torch.nan), torch.eye(3), id="nan-mu"),
        pytest.param(torch.zeros(3), torch.eye(3) * torch.inf, id="inf-sigma"),
        pytest.param(torch.zeros(3), torch.diag(torch.tensor([1.0, 1.0, -0.5])), id="negative-eigenvalue"),
        pytest.param(torch.zeros(3), torch.ones(3, 3).triu(), id="not-symmetric"),
        pytest.param(torch.zeros(2), torch.eye(2), id="other-dimension"),
    ],
)
def test_distance_refuses_what_is_no_gaussian(mu: torch.Tensor, sigma: torch.Tensor) -> None:
    with pytest.raises(InputError) as error:
        frechet_distance(torch.zeros(3), torch.eye(3), mu, sigma)
    assert_one_line(error, "_b")


def test_feature_statistics_are_those_of_numpy() -> None:
    values = torch.randn(100, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    mu, sigma = feature_statistics(values)
    np.testing.assert_allclose(mu, values.numpy().mean(0))
    np.testing.assert_allclose(sigma, np.cov(values.numpy(), rowvar=False))


def test_fewer_images_than_features_are_refused() -> None:
    assert feature_statistics(torch.zeros(64, 64))[1].shape == (64, 64)
    with pytest.raises(InputError) as error:
        feature_statistics(torch.zeros(63, 64))
    assert_one_line(error, "(63, 64)", "64 are needed")
