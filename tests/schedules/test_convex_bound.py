"""The convex bound against its sums written out, and against closed forms."""

import math

import numpy as np
import pytest

from zoo.schedules import Decay, anytime_bounds, constant, convex_bound, cosine, wsd, wsds


def reference(factors: list[float], distance: float, gradient_norm: float, rate: float) -> float:
    """The bound of the paper, each sum by its own loop."""
    eta = [rate * factor for factor in factors]
    total = math.fsum(eta)
    first = distance**2 / (2 * total) + gradient_norm**2 * math.fsum(e * e for e in eta) / (2 * total)
    last = 0.0
    for k in range(len(eta) - 1):
        noise = gradient_norm**2 * math.fsum(e * e for e in eta[k:]) / math.fsum(eta[k:])
        last += eta[k] / math.fsum(eta[k + 1 :]) * noise
    return first + last / 2


PLANS = {
    "constant": constant(120, 10),
    "cosine": cosine(150, 20),
    "wsds": wsds([50, 100, 200], 10, decay=Decay(shape="1-sqrt", min_ratio=0.02)),
}


@pytest.mark.parametrize("name", PLANS)
def test_against_the_double_loop(name: str) -> None:
    factors = PLANS[name].factors()
    found = convex_bound(factors, distance=3.0, gradient_norm=0.7)
    for rate in (0.01, found.rate, 2.0):
        assert found.at(rate) == pytest.approx(reference(factors, 3.0, 0.7, rate), rel=1e-12)
    assert found.bound == pytest.approx(found.at(found.rate), rel=1e-12)
    assert found.bound < min(found.at(0.98 * found.rate), found.at(1.02 * found.rate))


def test_closed_forms_of_constant_and_linear() -> None:
    """With harmonic numbers H: the last iterate pays log T at a constant rate, and nothing on a line to 0."""
    for updates in (2, 10, 1000):
        harmonic = math.fsum(1 / k for k in range(1, updates))
        flat = convex_bound(np.ones(updates)).bound
        assert flat == pytest.approx(math.sqrt((1 + harmonic) / updates), rel=1e-12)
        line = convex_bound(np.arange(updates, 0, -1)).bound
        expected = 2 * math.sqrt((updates - 0.5 + harmonic) / (updates * (updates + 1)))
        assert line == pytest.approx(expected, rel=1e-12)
    assert line < 0.7 * flat
    assert line * math.sqrt(updates) == pytest.approx(2, rel=0.01)  # of the order D G / sqrt(T)


def test_order_of_the_usual_schedules() -> None:
    plans = [
        wsd([4000], 100, decay=Decay(0.975, min_ratio=0.0)),  # linear to zero
        wsd([4000], 100, decay=Decay(0.2, min_ratio=0.0)),
        wsd([4000], 100, 0.1),
        constant(4000, 100),
    ]
    bounds = [convex_bound(plan.factors()).bound for plan in plans]
    assert bounds == sorted(bounds)


def test_scales() -> None:
    factors = PLANS["cosine"].factors()
    one = convex_bound(factors)
    doubled = convex_bound(2 * np.array(factors), distance=5.0, gradient_norm=3.0)
    assert doubled.bound == pytest.approx(15 * one.bound, rel=1e-12)  # the base rate takes the 2 up
    assert doubled.rate == pytest.approx(one.rate * 5 / 3 / 2, rel=1e-12)


def test_updates_that_do_nothing_count_as_none() -> None:
    assert convex_bound([0.0, 1.0, 0.0, 0.5, 0.0, 0.0]) == convex_bound([1.0, 0.5])


def test_stops_of_one_run_share_its_rate() -> None:
    plan = wsds([500, 1000, 2000], 50)
    stops = [450, 500, 900, 1000, 1800, 2000]
    bounds = anytime_bounds(plan.factors(), stops)
    whole = convex_bound(plan.factors())
    assert bounds[-1] == whole.bound
    for stop, bound in zip(stops, bounds, strict=True):
        assert bound == pytest.approx(reference(plan.factors(stop), 1.0, 1.0, whole.rate), rel=1e-12)
    assert all(after < 0.9 * before for before, after in zip(bounds[::2], bounds[1::2], strict=True))
    assert anytime_bounds(plan.factors(), [500], rate=0.5) == [convex_bound(plan.factors(500)).at(0.5)]


def test_a_million_updates() -> None:
    """A moment; the sums written out would take days."""
    assert convex_bound(np.arange(10**6, 0, -1)).bound == pytest.approx(2e-3, rel=1e-4)


def test_bad_input_is_refused() -> None:
    for factors in ([], [0.0, 0.0], [1.0, -1.0], [math.inf], [[1.0]]):
        with pytest.raises(ValueError, match="factors must be a list of finite numbers"):
            convex_bound(factors)
    with pytest.raises(ValueError, match="distance must be a positive number, got 0"):
        convex_bound([1.0], distance=0)
    with pytest.raises(ValueError, match=r"from 1 to 2, got \[0, 2\]"):
        anytime_bounds([1.0, 1.0], [0, 2])
    with pytest.raises(ValueError, match="rate must be a positive number"):
        anytime_bounds([1.0, 1.0], [2], rate=-1.0)
