"""Shapes against the printed table (1.4 of the notes on the paper), and their means against sums."""

import math
from itertools import pairwise

import pytest

from zoo.schedules.shapes import SHAPES, Shape, check_shape, level, mean_level

PRINTED = {  # p = .25 and .5, mean; r = .1
    "linear": (0.775, 0.55, 0.55),
    "inv": (0.307692, 0.181818, 0.255843),
    "exp": (0.562341, 0.316228, 0.390865),
    "cosine": (0.868198, 0.55, 0.55),
    "1-sqrt": (0.55, 0.363604, 0.4),
    "1-square": (0.94375, 0.775, 0.7),
    "mirror_cosine": (0.681802, 0.55, 0.55),
}
PARAMETERS = {"power": 2.5, "lowered_linear": 0.7}


@pytest.mark.parametrize("shape", PRINTED)
def test_printed_values(shape: Shape) -> None:
    quarter, half, mean = PRINTED[shape]
    found = level(shape, 0.25), level(shape, 0.5), mean_level(shape)
    assert found == pytest.approx((quarter, half, mean), abs=5e-7)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("ends", [(1.0, 0.1), (1.0, 0.01), (0.8, 0.3)])
def test_means_are_those_of_the_levels(shape: Shape, ends: tuple[float, float]) -> None:
    """The midpoint rule on 20,000 points; the root has an infinite slope at 0, which costs it an order."""
    parameter = PARAMETERS.get(shape)
    count = 20_000
    numeric = math.fsum(level(shape, (j + 0.5) / count, *ends, parameter) for j in range(count)) / count
    assert mean_level(shape, *ends, parameter) == pytest.approx(numeric, rel=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_ends_and_order(shape: Shape) -> None:
    parameter = PARAMETERS.get(shape)
    levels = [level(shape, j / 100, 1.0, 0.1, parameter) for j in range(101)]
    first = {"inv_greedy": 0.5, "lowered_linear": 0.7}.get(shape, 1.0)
    assert levels[0] == pytest.approx(first, abs=1e-12) and levels[-1] == pytest.approx(0.1, abs=1e-12)
    assert all(after < before for before, after in pairwise(levels))


def test_power_is_what_others_are() -> None:
    """(1 - p) ** q: linear at 1; one over the rate is linear in p under inv, the rate itself under linear."""
    for p in (0.0, 0.3, 0.7, 1.0):
        assert level("power", p, 1.0, 0.1, 1.0) == pytest.approx(level("linear", p))
        assert 1 / level("inv", p) == pytest.approx(1 + p * 9)
        assert math.log(level("exp", p)) == pytest.approx(p * math.log(0.1))
        assert 1 / level("inv_greedy", p) == pytest.approx(2 + p * 8)


def test_ramps_also_rise() -> None:
    assert [level("linear", p, 0.0, 1.0) for p in (0, 0.5, 1)] == [0, 0.5, 1]
    assert level("cosine", 0.5, 0.0, 1.0) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("cubic", 1.0, 0.1), "shape must be one of linear, inv"),
        (("inv", 1.0, 0.0), "never reaches zero: give a min_ratio above 0"),
        (("exp", 1.0, 0.0), "never reaches zero"),
        (("inv_greedy", 1.0, 0.6), "at most 0.5, or take inv"),
        (("power", 1.0, 0.1), "needs its exponent as parameter"),
        (("lowered_linear", 1.0, 0.1, 1.5), r"parameter, in \(0, 1\]"),
        (("linear", 1.0, 0.1, 2.0), "has no parameter"),
        (("linear", 1.0, -0.1), "last level must be a finite number of at least 0"),
        (("linear", math.nan, 0.1), "first level must be a finite number"),
    ],
)
def test_refusals(arguments: tuple, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        check_shape(*arguments)
