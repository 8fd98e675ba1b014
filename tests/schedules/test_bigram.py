"""The bi-gram toy of section 3.4 through the real callback and Trainer, against its table and closed forms.

A short version of tests/evidence/bigram.py, whose `run` it takes: four seeds, the table's.
"""

import importlib
import statistics
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from zoo.datamodules import Bigram
from zoo.schedules import Schedule, constant, cosine, wsd, wsds

pytestmark = pytest.mark.slow
SEEDS = range(4)
W = 50


@pytest.fixture(scope="module")
def toy(root: Path) -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(root / "tests" / "evidence"))
        return importlib.import_module("bigram")


def means(toy: ModuleType, plan: Schedule, peak: float, at: list[int]) -> dict[int, dict[str, float]]:
    """Mean losses over the seeds after each number of updates."""
    runs = [toy.run(plan, peak, seed, at)[0] for seed in SEEDS]
    return {
        step: {kind: statistics.mean(found[step][kind] for found in runs) for kind in runs[0][step]}
        for step in at
    }


# Peak, and the table's excess of certain and uncertain tokens after 1,800 and 2,000 updates.
TABLE: dict[str, tuple[Schedule, float, tuple[float, float, float, float]]] = {
    "constant 8": (constant(2000, W), 8, (0.0022, 0.0202, 0.0020, 0.0153)),
    "linear": (wsd([2000], W), 8, (0.0023, 0.0202, 0.0021, 0.0040)),
    "inv": (wsd([2000], W, shape="inv"), 8, (0.0023, 0.0202, 0.0022, 0.0023)),
    "cosine": (cosine(2000, W), 8, (0.0038, 0.0024, 0.0037, 0.0016)),
}


def test_the_table(toy: ModuleType) -> None:
    found: dict[str, Any] = {}
    for name, (plan, peak, (before, hill, after, left)) in TABLE.items():
        at = means(toy, plan, peak, [1800, 2000])
        found[name] = at
        # The river has no noise to speak of, but the table prints two digits.
        assert at[1800]["certain"] == pytest.approx(before, rel=0.05), name
        assert at[2000]["certain"] == pytest.approx(after, rel=0.05), name
        # One seed's end spreads by 23 %: three standard errors of four seeds, ours and the table's.
        assert at[1800]["uncertain"] == pytest.approx(hill, rel=3 * 0.23 * (2 / 4) ** 0.5), name
        assert at[2000]["uncertain"] == pytest.approx(left, rel=3 * 0.23 * (2 / 4) ** 0.5), name
        rates = [peak * factor for factor in plan.factors()]
        assert at[2000]["certain"] == pytest.approx(Bigram().certain_excess(rates), rel=0.1), name
    decayed = found["inv"]
    assert decayed[1800]["uncertain"] / decayed[2000]["uncertain"] > 3  # all that a decay gains is the hill's
    assert decayed[1800]["certain"] / decayed[2000]["certain"] < 1.1
    assert found["cosine"][2000]["certain"] > 1.5 * decayed[2000]["certain"]  # the cosine loses the river


def test_the_stationary_hill(toy: ModuleType) -> None:
    """Its mean over 2,000 updates: eta / (8 B) is 8 % too low at a rate of 8."""
    at = list(range(1020, 3001, 20))
    found = means(toy, constant(3000, W), 8, at)
    mean = statistics.mean(each["uncertain"] for each in found.values())
    assert mean == pytest.approx(0.0169, rel=0.08)
    assert mean == pytest.approx(Bigram().uncertain_excess(8), rel=0.15)


def test_jumps_bring_the_hill_back_and_keep_the_river(toy: ModuleType) -> None:
    table = {450: 0.0135, 500: 0.0081, 505: 0.0117, 520: 0.0133, 900: 0.0105, 1000: 0.0052}
    table |= {1800: 0.0091, 2000: 0.0035}
    river = {450: 0.0096, 500: 0.0090, 520: 0.0086, 900: 0.0048, 1000: 0.0045, 1800: 0.0024, 2000: 0.0022}
    found = means(toy, wsds([500, 1000, 2000], W), 8, list(table))
    for step, mean in table.items():
        assert found[step]["mean"] == pytest.approx(mean, rel=0.35), step  # the hill's share spreads as above
    for step, certain in river.items():
        assert found[step]["certain"] == pytest.approx(certain, rel=0.05), step
    certain = [each["certain"] for each in found.values()]
    assert certain == sorted(certain, reverse=True)
    for low, high in ((500, 520), (1000, 1800)):
        assert found[high]["uncertain"] > 1.5 * found[low]["uncertain"]
