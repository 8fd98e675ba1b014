"""Paths against their definitions, times against the distributions they are drawn from."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from zoo.flow import LinearPath, MeanFlowTimes, VarianceExplodingPath

INDEX = torch.arange(20_000)
unit = st.floats(0, 1)


@given(unit, unit)
@settings(max_examples=30, deadline=None, derandomize=True)
def test_slopes_are_divided_differences_and_derivatives(t: float, r: float) -> None:
    for path in (LinearPath(), VarianceExplodingPath()):
        a = torch.tensor(t, dtype=torch.float64, requires_grad=True)
        b = torch.tensor(r, dtype=torch.float64)
        for value, slope in ((path.alpha, path.alpha_slope), (path.sigma, path.sigma_slope)):
            assert torch.allclose((a - b) * slope(a, b), value(a) - value(b), atol=1e-15)
            probe = value(a) + 0 * a  # the variance-exploding alpha does not depend on t
            [derivative] = torch.autograd.grad(probe, a)
            assert slope(a, a) == derivative


@given(unit)
@settings(max_examples=30, deadline=None, derandomize=True)
def test_linear_path_runs_from_data_to_noise_at_constant_speed(t: float) -> None:
    path, generator = LinearPath(), torch.Generator().manual_seed(0)
    x, noise = torch.randn(2, 4, 3, 2, dtype=torch.float64, generator=generator)
    times = torch.full((4,), t, dtype=torch.float64)
    z = path.interpolate(x, noise, times)
    assert torch.allclose(z, path.alpha(times[0]) * x + path.sigma(times[0]) * noise, atol=1e-15)
    assert torch.allclose(z - times[0] * path.velocity(x, noise), x, atol=1e-15)


def test_times_of_the_imagenet_setting() -> None:
    t, r = MeanFlowTimes()(seed=1, step=2, index=INDEX)
    assert t.dtype == torch.float64 and bool(((r > 0) & (r <= t) & (t < 1)).all())
    apart = r < t
    # 20,000 coins of 1/4: a standard error of 0.003; five of them.
    assert abs(apart.double().mean() - 0.25) < 0.0153
    # The larger of two: F^2; the smaller: 1 - (1 - F)^2, with F the logit-normal distribution.
    distribution = stats.norm(-0.4, 1.0)
    assert stats.kstest(t.logit(), lambda x: distribution.cdf(x) ** 2).pvalue > 1e-3
    assert stats.kstest(r[apart].logit(), lambda x: 1 - distribution.sf(x) ** 2).pvalue > 1e-3


def test_times_of_the_cifar_setting_mask_first_and_clip_then() -> None:
    t, r = MeanFlowTimes(-0.6, 1.6, -4, 1.6, prob_r_neq_t=0.75, order="clip")(seed=0, step=0, index=INDEX)
    # t keeps its own distribution whatever r is: with order="sort" it would not.
    assert stats.kstest(t.logit(), stats.norm(-0.6, 1.6).cdf).pvalue > 1e-3
    # r < t only where the coin says so and the draw of r lies below t: logit r - logit t ~ N(-3.4, 2 *
    # 1.6^2).
    expected = 0.75 * stats.norm.cdf(3.4 / (1.6 * math.sqrt(2)))
    assert abs((r < t).double().mean() - expected) < 5 * math.sqrt(0.21 / len(INDEX))


@pytest.mark.parametrize("size", [1, 7, 128])
def test_a_fixed_count_is_exact(size: int) -> None:
    for share in (0.0, 0.25, 0.6, 1.0):
        t, r = MeanFlowTimes(prob_r_neq_t=share, fixed_count=True)(seed=3, step=5, index=torch.arange(size))
        assert int((r < t).sum()) == round(share * size)


@given(st.integers(0, 2**40), st.permutations(range(8)), st.integers(1, 7))
@settings(max_examples=25, deadline=None, derandomize=True)
def test_an_items_times_do_not_depend_on_its_batch(seed: int, order: list[int], cut: int) -> None:
    times, index = MeanFlowTimes(prob_r_neq_t=0.5), torch.arange(100, 108)
    t, r = times(seed, 3, index)
    for part in (torch.tensor(order[:cut]), torch.tensor(order[cut:])):
        t_part, r_part = times(seed, 3, index[part])
        assert t_part.equal(t[part]) and r_part.equal(r[part])
    other, _ = times(seed, 4, index)
    assert not other.equal(t)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prob_r_neq_t": 1.5}, "prob_r_neq_t must be in"),
        ({"t_std": -1.0}, "t_std must be at least 0"),
        ({"r_std": -1.0}, "r_std must be at least 0"),
        ({"order": "max"}, "order must be 'sort' or 'clip', got 'max'"),
    ],
)
def test_bad_times_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MeanFlowTimes(**arguments)
