"""Data whose distribution is known: the draws follow it."""

import math

import pytest
import torch
from scipy import stats

from zoo.datamodules import Checkerboard, Mixture1D

# The draws are the same in each run, and a dozen tests of them are made: one at 1 in 1,000 is no surprise. A
# mean moved by a tenth of its width, or a weight by 0.03, is below 1e-15 with these numbers.
CHANCE = 1e-4


def test_mixture_follows_its_law() -> None:
    data = Mixture1D(weights=[1.0, 3.0], means=[-2.0, 1.0], stds=[0.5, 0.25], size=20000)
    data.setup("fit")
    x, label = data.train_set.columns["x"], data.train_set.columns["label"]
    assert x.shape == (20000, 1) and data.num_classes == 2

    def cdf(values: object) -> object:
        return 0.25 * stats.norm.cdf(values, -2.0, 0.5) + 0.75 * stats.norm.cdf(values, 1.0, 0.25)

    assert stats.kstest(x[:, 0].numpy(), cdf).pvalue > CHANCE
    assert stats.kstest(data.test_set.columns["x"][:, 0].numpy(), cdf).pvalue > CHANCE
    share = float((label == 0).float().mean())
    assert abs(share - 0.25) < 5 * math.sqrt(0.25 * 0.75 / 20000)
    for component, mean, std in ((0, -2.0, 0.5), (1, 1.0, 0.25)):
        mine = x[label == component, 0]
        assert stats.kstest(mine.numpy(), "norm", (mean, std)).pvalue > CHANCE
        assert abs(float(mine.std()) - std) < 5 * std / (2 * len(mine)) ** 0.5  # five standard errors
    # Of some 2^24 possible numbers a few are drawn twice.
    assert torch.isin(data.test_set.columns["x"], x).double().mean() < 0.01


def test_the_flow_map_carries_noise_to_the_data() -> None:
    """Psi from t = 1 to 0 of normal draws has the distribution of the data."""
    data = Mixture1D(size=4000)
    data.setup("fit")
    noise = torch.randn(4000, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    carried = data.distribution.flow_map(noise, t=1.0, r=0.0)[:, 0].numpy()
    assert stats.ks_2samp(carried, data.train_set.columns["x"][:, 0].numpy()).pvalue > CHANCE


def test_products_have_independent_coordinates() -> None:
    data = Mixture1D(dim=3, size=8000)
    data.setup("fit")
    x = data.train_set.columns["x"]
    assert x.shape == (8000, 3) and "label" not in data.train_set.columns and data.num_classes is None
    correlation = torch.corrcoef(x.T) - torch.eye(3)
    assert correlation.abs().max() < 5 / 8000**0.5
    one = Mixture1D(size=8000)
    one.setup("fit")
    for coordinate in x.T:
        assert stats.ks_2samp(coordinate.numpy(), one.train_set.columns["x"][:, 0].numpy()).pvalue > CHANCE


def test_checkerboard_follows_its_law() -> None:
    data = Checkerboard(size=16000, squares=4, half_width=2.0)
    data.setup("fit")
    x, label = data.train_set.columns["x"], data.train_set.columns["label"]
    assert data.num_classes == 8 and torch.bincount(label).tolist() == [2000] * 8
    assert (data.density(x) == 2 / 16).all()
    cell = (x + 2).floor()  # squares of side one
    assert ((cell >= 0) & (cell < 4)).all() and (cell.sum(1) % 2 == 0).all()
    number = 2 * cell[:, 1] + (cell[:, 0] / 2).floor()
    assert number.long().equal(label)
    within = (x + 2 - cell).flatten().double().numpy()
    assert stats.kstest(within, "uniform").pvalue > CHANCE
    # Of 2^24 possible numbers a few are drawn twice.
    assert torch.isin(data.test_set.columns["x"][:, 0], x[:, 0]).double().mean() < 0.01


def test_checkerboard_density_is_one_in_all() -> None:
    data = Checkerboard(squares=6, half_width=1.5)
    axis = torch.linspace(-2, 2, 801, dtype=torch.float64)[:-1] + 0.0025
    grid = torch.cartesian_prod(axis, axis)
    assert float(data.density(grid).mean() * 16) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Mixture1D(weights=[1.0]), r"one length of at least 1, got \(1, 2, 2\) entries"),
        (lambda: Mixture1D([], [], []), "one length of at least 1"),
        (lambda: Mixture1D(weights=[0.0, 1.0]), "weights and stds must be positive"),
        (lambda: Mixture1D(stds=[-1.0, 1.0]), "weights and stds must be positive"),
        (lambda: Mixture1D(dim=0), "dim at least 1"),
        (lambda: Checkerboard(squares=3), "squares must be an even number of at least 2, got 3"),
        (lambda: Checkerboard(half_width=0), "half_width positive"),
    ],
)
def test_bad_arguments(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]
