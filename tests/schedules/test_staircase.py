"""Sums over long runs by a staircase: exact for short runs, near enough for what is printed, and cheap."""

import subprocess
import sys

import numpy as np
import pytest

from zoo.schedules import Decay, convex_bound, cosine, wsd, wsds
from zoo.schedules.power_law import MULTI_POWER_LAW
from zoo.schedules.report import report
from zoo.schedules.staircase import staircase

LONG = 300_000
PLANS = {
    "cosine": cosine(LONG, 2000),
    "to zero": wsd([LONG], 2000, decay=Decay(0.2, min_ratio=0.0)),
    "1-sqrt": wsd([LONG], 2000, decay=Decay(0.2, shape="1-sqrt", min_ratio=0.0)),
    "inv": wsds([LONG // 4, LONG], 2000, decay=Decay(0.1, shape="inv", min_ratio=0.01)),
    "WSD-S": wsds([LONG // 4, LONG // 2, LONG], 2000),
}


def test_lengths_are_repetitions() -> None:
    """The bound and the forecast of a staircase are those of all its updates, in any order of levels."""
    levels = np.array([0.2, 1.0, 0.0, 0.7, 1.0, 0.1, 0.05])
    for lengths in ([1] * 7, [3, 40, 2, 1, 17, 5, 1], [1, 2, 3, 4, 5, 6, 7]):
        every = np.repeat(levels, lengths)
        one, other = convex_bound(levels, 2.0, 3.0, lengths=lengths), convex_bound(every, 2.0, 3.0)
        assert one.distance_term == pytest.approx(other.distance_term, rel=1e-12)
        assert one.noise_term == pytest.approx(other.noise_term, rel=1e-12)
        assert one.last_term == pytest.approx(other.last_term, rel=1e-12)
        law = MULTI_POWER_LAW["100M"]
        assert law.loss(3e-4 * levels, lengths=lengths) == pytest.approx(law.loss(3e-4 * every), rel=1e-12)
    for lengths in ([1, 2], [1, 1, 1, 1, 1, 1, 0], [1.5] * 7):
        with pytest.raises(ValueError, match="lengths must be whole numbers from 1, one for each of the 7"):
            convex_bound(levels, lengths=lengths)


def test_a_short_run_is_exact() -> None:
    plan = wsds([400, 1000], 50)
    levels, lengths = staircase(plan, 1000)
    assert levels == pytest.approx(plan.factors(), abs=1e-15) and set(lengths) == {1}


@pytest.mark.parametrize("name", PLANS)
def test_a_long_run_is_near(name: str) -> None:
    plan = PLANS[name]
    exact = plan.factors_at(np.arange(LONG))
    for stop in (LONG // 4, LONG):
        levels, lengths = staircase(plan, stop)
        assert len(levels) < 25_000 and lengths.sum() == stop
        near, true = convex_bound(levels, lengths=lengths), convex_bound(exact[:stop])
        assert near.bound == pytest.approx(true.bound, rel=1e-5)
        assert near.rate == pytest.approx(true.rate, rel=1e-5)
        found, expected = (
            MULTI_POWER_LAW["100M"].loss(3e-4 * rates, lengths=held)[0]
            for rates, held in ((levels, lengths), (exact[:stop], None))
        )
        assert found == pytest.approx(expected, abs=1e-4)
        assert plan.river_time(stop) == pytest.approx(exact[:stop].sum(), rel=1e-12)


def test_what_is_printed_is_the_exact_number(monkeypatch: pytest.MonkeyPatch) -> None:
    law = MULTI_POWER_LAW["100M"]
    plan = wsds([25_000, 50_000, 100_000], 2000, decay=Decay(shape="1-sqrt", min_ratio=0.02))
    text = report(plan, [3e-4], law=law)
    monkeypatch.setattr("zoo.schedules.staircase._EXACT", 10**6)  # each update by itself
    assert report(plan, [3e-4], law=law) == text


def test_ten_million_updates_are_cheap() -> None:
    """Beyond its imports: no list of all updates, whose factors alone would take 80 MB."""
    code = """
import re, time
from zoo.schedules import Decay, cosine, wsds
from zoo.schedules.plot import ascii_plot
from zoo.schedules.report import report
import scipy.special
def used():  # the peak; getrusage's is inherited from the process that started this one
    return int(re.search(r'VmHWM:\\s+(\\d+) kB', open('/proc/self/status').read())[1]) / 1024
before, begun = used(), time.process_time()
plan = wsds([2_500_000, 5_000_000, 10_000_000], 10_000, Decay(shape="1-sqrt"))
report(plan, [1e-3], 1 << 20)
ascii_plot(plan)
ascii_plot(cosine(10_000_000, 10_000))
print(time.process_time() - begun, used() - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, megabytes = map(float, done.stdout.split())
    assert seconds < 2 and megabytes < 200, done.stdout
