"""Distances by pairs against double loops and closed forms."""

import math

import pytest
import torch
from torch import Tensor

from zoo.metrics import energy_distance, mmd


def sets(n: int = 30, m: int = 20, dim: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, dim, generator=generator), 1.5 * torch.randn(m, dim, generator=generator) + 0.3


def loops(x: Tensor, y: Tensor, function: object) -> tuple[float, float, float]:
    """Means over pairs between, within x, within y, one pair at a time."""
    value = lambda a, b: function(float((a.double() - b.double()).square().sum().sqrt()))  # type: ignore[operator] # noqa: E731
    between = sum(value(a, b) for a in x for b in y) / (len(x) * len(y))
    within = [
        sum(value(a, b) for i, a in enumerate(z) for j, b in enumerate(z) if i != j) / (len(z) * (len(z) - 1))
        for z in (x, y)
    ]
    return between, within[0], within[1]


@pytest.mark.parametrize("chunk", [4096, 7])
def test_energy_distance_by_loops(chunk: int) -> None:
    x, y = sets()
    between, within_x, within_y = loops(x, y, lambda d: d)
    assert energy_distance(x, y, chunk).item() == pytest.approx(2 * between - within_x - within_y, rel=1e-12)


@pytest.mark.parametrize("chunk", [4096, 7])
def test_mmd_by_loops(chunk: int) -> None:
    x, y = sets()
    for bandwidths in ([0.7], [0.5, 2.0]):
        kernel = lambda d, b=bandwidths: sum(math.exp(-d * d / (2 * s * s)) for s in b) / len(b)  # noqa: E731
        between, within_x, within_y = loops(x, y, kernel)
        found = mmd(x, y, bandwidths, chunk).item()
        assert found == pytest.approx(within_x + within_y - 2 * between, rel=1e-10)


def test_default_bandwidths_come_from_the_second_set() -> None:
    x, y = sets()
    median = torch.pdist(y.double()).median().item()
    expected = mmd(x, y, [f * median for f in (0.25, 0.5, 1, 2, 4)])
    assert mmd(x, y).item() == expected.item() and mmd(100 * x, y).item() != mmd(100 * x, 100 * x + 1).item()


def test_closed_forms_of_two_normal_laws() -> None:
    """N(0, 1) against N(m, 1) in one dimension, by 4,000 points each."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 4000, 1, dtype=torch.float64, generator=generator)
    m, s = 1.0, 0.8

    def absolute(mean: float) -> float:
        """E|N(mean, 2)|."""
        scale = math.sqrt(2)
        return scale * math.sqrt(2 / math.pi) * math.exp(-(mean**2) / 4) + mean * math.erf(mean / 2)

    energy = 2 * absolute(m) - 2 * absolute(0)
    wide = math.sqrt(s**2 / (s**2 + 2))
    kernel = 2 * wide - 2 * wide * math.exp(-(m**2) / (2 * (s**2 + 2)))
    # Their standard errors, from 200 repeats, are .018 and .0061; four of them.
    assert energy_distance(x, y + m).item() == pytest.approx(energy, abs=0.072)
    assert mmd(x, y + m, [s]).item() == pytest.approx(kernel, abs=0.025)
    assert abs(energy_distance(x, y).item()) < 0.01 and abs(mmd(x, y, [s]).item()) < 0.003


def test_unbiased_estimates_of_equal_laws_scatter_around_zero() -> None:
    generator = torch.Generator().manual_seed(1)
    for function in (energy_distance, lambda a, b: mmd(a, b, [1.0])):
        values = torch.stack(
            [function(*torch.randn(2, 20, 2, dtype=torch.float64, generator=generator)) for _ in range(300)]
        )
        assert (values < 0).any() and abs(values.mean()) < 4 * values.std() / 300**0.5


def test_bad_input() -> None:
    x, y = sets()
    with pytest.raises(ValueError, match="bandwidths must be positive"):
        mmd(x, y, [0.0])
    with pytest.raises(ValueError, match="median distance of equal rows is 0"):
        mmd(x, torch.ones(5, 3))
    for function in (energy_distance, mmd):
        with pytest.raises(ValueError, match="two vectors at least"):
            function(x[:1], y)
