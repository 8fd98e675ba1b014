"""Distances against closed forms and other people's code."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import linalg, stats

from zoo.metrics import coverage, frechet_distance, memorization, sliced_wasserstein, wasserstein_1d


def points(count: int, width: int, seed: int) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("count", "width"), [(50, 3), (200, 20), (10, 20)])  # the last: singular covariances
def test_frechet_against_scipy_and_torchmetrics(count: int, width: int) -> None:
    from torchmetrics.image.fid import _compute_fid

    x, y = points(count, width, 0), 2 * points(count + 7, width, 1) + 0.3
    mx, my, sx, sy = x.mean(0).numpy(), y.mean(0).numpy(), np.cov(x.T.numpy()), np.cov(y.T.numpy())
    mine = float(frechet_distance(x, y))
    root = linalg.sqrtm(linalg.sqrtm(sx) @ sy @ linalg.sqrtm(sx))
    reference = float(((mx - my) ** 2).sum() + np.trace(sx + sy - 2 * root.real))
    theirs = float(_compute_fid(*map(torch.from_numpy, (mx, sx, my, sy))))
    # sqrtm of a singular matrix is exact to about the root of the rounding error.
    tolerance = 1e-9 if count > width else 1e-5
    assert mine == pytest.approx(reference, rel=tolerance)
    assert mine == pytest.approx(theirs, rel=tolerance)


def test_frechet_closed_form_and_invariance() -> None:
    x = points(500, 4, 0)
    assert float(frechet_distance(x, x)) == pytest.approx(0, abs=1e-12)
    assert float(frechet_distance(x, x + 2)) == pytest.approx(16, rel=1e-12)  # |shift|^2
    variance = float(torch.cov(x.T).trace())
    assert float(frechet_distance(x, 3 * x - 2 * x.mean(0))) == pytest.approx(4 * variance, rel=1e-12)
    rotation = torch.linalg.qr(points(4, 4, 1)).Q
    y = points(300, 4, 2) * torch.tensor([1.0, 2.0, 0.5, 0.1])
    assert float(frechet_distance(x @ rotation, y @ rotation)) == pytest.approx(float(frechet_distance(x, y)))


@settings(max_examples=50, deadline=None)
@given(n=st.integers(1, 12), m=st.integers(1, 12), seed=st.integers(0, 1000))
def test_wasserstein_1d_against_scipy_and_by_replication(n: int, m: int, seed: int) -> None:
    x, y = points(n, 1, seed), points(m, 1, seed + 1)
    assert float(wasserstein_1d(x, y, p=1)) == pytest.approx(
        stats.wasserstein_distance(x[:, 0].numpy(), y[:, 0].numpy()), abs=1e-12
    )
    # Copying every point keeps the laws; sets of one size match in sorted order.
    many_x, many_y = x.repeat(m, 1).sort(0).values, y.repeat(n, 1).sort(0).values
    assert float(wasserstein_1d(x, y, p=2)) == pytest.approx(
        float((many_x - many_y).square().mean().sqrt()), abs=1e-12
    )


def test_sliced_wasserstein_of_gaussians() -> None:
    """From N(0, I) to N(a, s^2 I): W2^2 = <a, line>^2 + (s - 1)^2, on average |a|^2 / D + (s - 1)^2."""
    width, shift, scale = 5, 2.0, 1.5
    x, y = points(2000, width, 0), scale * points(2000, width, 1)
    y[:, 0] += shift
    expected = math.sqrt(shift**2 / width + (scale - 1) ** 2)
    # 2,000 directions and points: relative errors near sqrt(2 / 2000) each; 0.1 is three of them.
    assert float(sliced_wasserstein(x, y, directions=2000)) == pytest.approx(expected, rel=0.1)
    assert float(sliced_wasserstein(x, x)) == 0
    assert float(sliced_wasserstein(x, y, seed=3)) == float(sliced_wasserstein(x, y, seed=3))


def brute_coverage(real: torch.Tensor, samples: torch.Tensor, k: int) -> float:
    covered = 0
    for i, item in enumerate(real):
        others = sorted(float((item - other).norm()) for j, other in enumerate(real) if j != i)
        covered += any(float((item - sample).norm()) <= others[k - 1] for sample in samples)
    return covered / len(real)


@settings(max_examples=30, deadline=None)
@given(n=st.integers(3, 12), m=st.integers(1, 12), k=st.integers(1, 2), seed=st.integers(0, 1000))
def test_coverage_against_loops(n: int, m: int, k: int, seed: int) -> None:
    real, samples = points(n, 2, seed), points(m, 2, seed + 1)
    assert float(coverage(real, samples, k)) == pytest.approx(brute_coverage(real, samples, k))


def test_coverage_sees_a_missing_mode() -> None:
    modes = torch.tensor([[0.0, 0.0], [10.0, 0.0]]).double()
    real = torch.cat([mode + 0.1 * points(50, 2, k) for k, mode in enumerate(modes)])
    both = torch.cat([mode + 0.1 * points(200, 2, 9 + k) for k, mode in enumerate(modes)])
    assert float(coverage(real, both)) > 0.95
    assert 0.45 < float(coverage(real, both[:200])) <= 0.5


def test_memorization_of_copies_new_draws_and_noise() -> None:
    train, held_out, fresh = points(300, 2, 0), points(300, 2, 1), points(300, 2, 2)
    assert float(memorization(train, held_out, train)) > 0.99
    # Both sets are draws of one law: 1/2 up to the standard error of a two-sample rank statistic, times four.
    assert abs(float(memorization(train, held_out, fresh)) - 0.5) < 4 * (1 / (6 * 300)) ** 0.5
    assert float(memorization(train, held_out, fresh + 20)) < 0.01


def test_bad_sets() -> None:
    with pytest.raises(ValueError, match=r"\(4, 2\) and \(4, 3\)"):
        frechet_distance(torch.zeros(4, 2), torch.zeros(4, 3))
    with pytest.raises(ValueError, match="two vectors at least"):
        sliced_wasserstein(torch.zeros(1, 2), torch.zeros(4, 2))
    with pytest.raises(ValueError, match="k=5 neighbors need more than 5"):
        coverage(torch.zeros(5, 2), torch.zeros(4, 2))
