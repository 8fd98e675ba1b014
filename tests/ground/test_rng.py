"""Counter-based draws: their law, and that place and company do not matter."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from zoo import rng

MASK = (1 << 64) - 1


def splitmix64(state: int, count: int) -> list[int]:
    """The published generator in plain Python integers."""
    out = []
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) & MASK
        z = state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        out.append(z ^ (z >> 31))
    return out


def test_the_reference_is_splitmix64() -> None:
    """The generator's published first outputs for seed 1234567."""
    assert splitmix64(1234567, 3) == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_streams_are_splitmix64() -> None:
    """The count draws of an item are consecutive outputs of splitmix64 from that item's state."""
    index = torch.tensor([0, 1, 77, 2**40])
    draws = rng.bits(seed=3, step=9, index=index, count=5, name="noise")
    import zlib

    key = rng._mix_int((3 + 0x9E3779B97F4A7C15 * (zlib.crc32(b"noise") + 1)) & MASK)
    key = rng._mix_int(((key ^ 9) + 0x9E3779B97F4A7C15) & MASK)
    for row, item in zip(draws, index.tolist(), strict=True):
        state = rng._mix_int(((item ^ key) + 0x9E3779B97F4A7C15) & MASK)
        assert [value & MASK for value in row.tolist()] == splitmix64(state, 5)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(-(2**70), 2**70),
    step=st.integers(0, 2**40),
    size=st.integers(1, 40),
    width=st.integers(1, 9),
    order=st.randoms(use_true_random=False),
)
def test_place_and_company_do_not_matter(seed: int, step: int, size: int, width: int, order: object) -> None:
    index = torch.arange(size) * 3 + 1
    whole = rng.normal(seed, step, index, (width,))
    places = list(range(size))
    order.shuffle(places)  # type: ignore[attr-defined]
    assert rng.normal(seed, step, index[places], (width,)).equal(whole[places])
    for k in range(size):
        assert rng.normal(seed, step, index[k : k + 1], (width,)).equal(whole[k : k + 1])


def test_every_argument_matters() -> None:
    index = torch.arange(50)
    base = rng.uniform(0, 0, index, (4,), "a")
    for other in (
        rng.uniform(1, 0, index, (4,), "a"),
        rng.uniform(0, 1, index, (4,), "a"),
        rng.uniform(0, 0, index + 50, (4,), "a"),
        rng.uniform(0, 0, index, (4,), "b"),
    ):
        assert (base != other).all()
    # A longer draw begins with the shorter one: shapes may grow without changing what was there.
    assert rng.uniform(0, 0, index, (9,), "a")[:, :4].equal(base)


@pytest.mark.parametrize("vary", ["index", "step", "seed", "position"])
def test_uniform_law_along_each_counter(vary: str) -> None:
    """Kolmogorov-Smirnov and lag-1 correlation along each counter, 20,000 draws at fixed seeds."""
    count = 20_000
    if vary == "index":
        draws = rng.uniform(0, 0, torch.arange(count), dtype=torch.float64)
    elif vary == "position":
        draws = rng.uniform(0, 0, torch.tensor([5]), (count,), dtype=torch.float64)[0]
    else:
        one = torch.tensor([5])
        draws = torch.cat(
            [
                rng.uniform(*((k, 0) if vary == "seed" else (0, k)), one, dtype=torch.float64)
                for k in range(count)
            ]
        )
    assert stats.kstest(draws.numpy(), "uniform").pvalue > 1e-3
    correlation = np.corrcoef(draws[:-1], draws[1:])[0, 1]
    assert abs(correlation) < 4 / count**0.5  # four standard errors
    assert draws.unique().numel() == count


def test_normal_law() -> None:
    draws = rng.normal(0, 0, torch.arange(2000), (100,), dtype=torch.float64).flatten()
    assert stats.kstest(draws.numpy(), "norm").pvalue > 1e-3
    # Moments to five standard errors: Var(z^2) = 2, Var(z^4) = 96.
    assert abs(draws.mean()) < 5 / len(draws) ** 0.5
    assert abs(draws.square().mean() - 1) < 5 * (2 / len(draws)) ** 0.5
    assert abs(draws.pow(4).mean() - 3) < 5 * (96 / len(draws)) ** 0.5
    pairs = draws.reshape(-1, 2)  # Box-Muller's two halves are independent
    assert abs((pairs[:, 0] * pairs[:, 1]).mean()) < 5 / len(pairs) ** 0.5
    assert abs((pairs[:, 0].square() * pairs[:, 1].square()).mean() - 1) < 5 * (8 / len(pairs)) ** 0.5


@pytest.mark.parametrize(("dtype", "bits"), [(torch.float32, 24), (torch.float64, 53)])
def test_uniform_fills_the_mantissa_and_never_reaches_one(dtype: torch.dtype, bits: int) -> None:
    draws = rng.uniform(0, 0, torch.arange(5000), (20,), dtype=dtype)
    assert draws.dtype == dtype and draws.min() >= 0 and draws.max() < 1
    scaled = draws.double() * 2.0**bits
    assert scaled.equal(scaled.round()) and (scaled % 2 == 1).double().mean() > 0.4


def test_odd_sizes_and_scalars() -> None:
    index = torch.arange(3)
    assert rng.normal(0, 0, index).shape == (3,)
    assert rng.normal(0, 0, index, (1, 3, 5)).shape == (3, 1, 3, 5)
    assert rng.normal(0, 0, index[:0], (4,)).shape == (0, 4)


def test_float_index_is_refused() -> None:
    with pytest.raises(TypeError, match="global item indices"):
        rng.uniform(0, 0, torch.tensor([0.5]))


def test_permutation() -> None:
    first, second = rng.permutation(0, 0, 1000), rng.permutation(0, 1, 1000)
    assert first.sort().values.equal(torch.arange(1000)) and not first.equal(second)
    # Where item 0 ends up is uniform over passes.
    places = torch.stack([(rng.permutation(0, epoch, 10) == 0).nonzero()[0, 0] for epoch in range(2000)])
    assert stats.chisquare(torch.bincount(places, minlength=10).numpy()).pvalue > 1e-3


def test_no_global_state() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = rng.normal(0, 0, torch.arange(4), (4,))
    assert torch.get_rng_state().equal(before)
    torch.manual_seed(1)
    assert rng.normal(0, 0, torch.arange(4), (4,)).equal(first)
