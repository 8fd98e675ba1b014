"""Closed forms of the hill, the valley and the spectrum against the printed numbers and slow references."""

import numpy as np
import pytest

from zoo.schedules import (
    Decay,
    Schedule,
    constant,
    cosine,
    cyclic_cosine,
    greedy_rates,
    hill_losses,
    spectrum_losses,
    stationary_hill,
    valley_run,
    wsd,
    wsds,
)

BUDGETS = [1250, 2500, 5000]


def peaked(plan: Schedule, peak: float) -> list[float]:
    return [peak * factor for factor in plan.factors()]


def test_stationary_hill_is_where_the_recursion_stands() -> None:
    for rate, curvature, noise in ((0.5, 1.0, 1.0), (0.1, 3.0, 0.2), (1.9, 1.0, 2.0)):
        height = stationary_hill(rate, curvature, noise)
        losses = hill_losses([rate] * 5, curvature, noise)
        assert losses == pytest.approx([height] * 6, rel=1e-12)
        settled = hill_losses([rate] * 2000, curvature, noise, start=7.0)[-1]
        assert settled == pytest.approx(height, rel=1e-12)


def test_greedy_rates_halve_and_then_fall_as_inv() -> None:
    rate, curvature, noise = 0.5, 1.0, 1.0
    rates = greedy_rates(rate, 6, curvature)
    assert rates[0] == rate / 2
    assert 1 / rates[1:] == pytest.approx(1 / rates[:-1] + curvature, rel=1e-12)
    losses = hill_losses(rates, curvature, noise, start=stationary_hill(rate, curvature, noise))
    assert losses[:6] == pytest.approx([1 / 6, 1 / 8, 1 / 10, 1 / 12, 1 / 14, 1 / 16], rel=1e-12)
    k = np.arange(7)
    assert losses == pytest.approx(rate / (2 * (2 + (k - 1) * rate * curvature)), rel=1e-12)


@pytest.mark.parametrize("curvature", [0.3, 2.0])
def test_no_other_rate_is_better_than_the_greedy_one(curvature: float) -> None:
    rate = 0.4
    start = stationary_hill(rate, curvature)
    for chosen in greedy_rates(rate, 5, curvature):
        after = {
            scale: hill_losses([chosen * scale], curvature, start=start)[-1] for scale in (0.9, 1.0, 1.1)
        }
        assert after[1.0] < min(after[0.9], after[1.1])
        start = after[1.0]


def test_the_shape_inv_greedy_is_the_greedy_decay() -> None:
    """A decay of d updates to r = 1 / (2 + d eta gamma) follows the greedy rates, one update on."""
    rate, length = 0.5, 100
    plan = wsd(
        [1000], inclusive="start", decay=Decay(0.1, shape="inv_greedy", min_ratio=1 / (2 + length * rate))
    )
    assert peaked(plan, rate)[900:] == pytest.approx(greedy_rates(rate, length), rel=1e-12)


# Schedule, peak; hill after 900 and 1000 updates, river and total after 1000.
VALLEY = {
    "constant .05": (constant(1000, 20), 0.05, 0.0086, 0.0105, -0.0804, -0.0698),
    "constant .5": (constant(1000, 20), 0.5, 0.1356, 0.1454, -1.0833, -0.9378),
    "WSD .5": (wsd([1000], 20, decay=Decay(min_ratio=0.0)), 0.5, 0.1356, 0.0102, -1.0081, -0.9979),
    "WSD inv .5": (
        wsd([1000], 20, decay=Decay(shape="inv", min_ratio=0.02)),
        0.5,
        0.1356,
        0.0035,
        -0.9622,
        -0.9587,
    ),
    "WSD .05": (wsd([1000], 20, decay=Decay(min_ratio=0.0)), 0.05, 0.0086, 0.0038, -0.0746, -0.0708),
}


def test_valley() -> None:
    totals = {}
    for name, (plan, peak, *expected) in VALLEY.items():
        run = valley_run(peaked(plan, peak), np.random.default_rng(0))
        found = [run.hill[900], run.hill[1000], run.river[1000], run.total[1000]]
        # The mean of 400 squares has a standard error of 7 %, so two tables may differ by 15 %.
        assert found == pytest.approx(expected, rel=0.15), name
        totals[name] = (found[0], found[1], found[2], found[3])
    stable, small = totals["constant .5"], totals["constant .05"]
    assert 0.75 < stable[1] / stationary_hill(0.5) < 1  # the bends of the river take a part
    assert stable[2] / small[2] == pytest.approx(13, rel=0.15)  # progress along the river
    assert totals["WSD .5"][1] < 0.1 * totals["WSD .5"][0]  # the decay takes over 90 % of the hill
    assert min(totals, key=lambda name: totals[name][3]) == "WSD .5"
    # At a small rate there is hardly a hill, and the decay gains almost nothing.
    assert abs(totals["WSD .05"][3] - small[3]) < 0.01 < 0.05 < stable[3] - totals["WSD .5"][3]


def reference_spectrum(rates: list[float], noise: float, modes: int) -> float:
    """One coordinate after the other, from its own recursion in plain floats."""
    total = 0.0
    for i in range(1, modes + 1):
        curvature, square = i**-1.5, 1.0
        for rate in rates:
            square = (1 - rate * curvature) ** 2 * square + rate**2 * noise * curvature
        total += 0.5 * curvature * square
    return total


def test_spectrum_against_one_coordinate_at_a_time() -> None:
    rates = peaked(wsds([30, 70], warmup=5), 0.9)
    found = spectrum_losses(rates, [70, 0], modes=40, noise=0.3)
    assert found[0] == pytest.approx(reference_spectrum(rates, 0.3, 40), rel=1e-12)
    assert found[1] == pytest.approx(reference_spectrum([], 0.3, 40), rel=1e-12)


def by_budget(plan: Schedule, peak: float = 0.8, modes: int = 2000, noise: float = 0.05) -> list[float]:
    """The loss of each budget's model, branches and all."""
    losses = {}
    for sub_run in plan.sub_runs:
        stops = [budget.post for budget in sub_run.schedule.budgets]
        found = spectrum_losses(peaked(sub_run.schedule, peak), stops, modes=modes, noise=noise)
        losses |= dict(zip((budget.updates for budget in sub_run.schedule.budgets), found, strict=True))
    return [losses[budget.updates] for budget in plan.budgets]


SPECTRUM = {
    "WSD": (wsd(BUDGETS, 200), [0.05947, 0.04249, 0.02964]),
    "WSD-S": (wsds(BUDGETS, 200), [0.05947, 0.04295, 0.03017]),
    "WSD-S at equal compute": (wsds(BUDGETS, 200, compute_matched=True), [0.05947, 0.04193, 0.02902]),
    # The printed cyclic cosine warms up again from where the cosine before it ended.
    "cyclic": (cyclic_cosine(BUDGETS, 200, rewarmup_from="previous"), [0.06852, 0.05074, 0.03625]),
}


@pytest.mark.parametrize("name", SPECTRUM)
def test_spectrum_table(name: str) -> None:
    plan, expected = SPECTRUM[name]
    assert by_budget(plan) == pytest.approx(expected, abs=1e-5)


def test_spectrum_of_the_cosine_oracle() -> None:
    found = [by_budget(cosine(budget, 200))[0] for budget in BUDGETS]
    assert found == pytest.approx([0.06852, 0.05018, 0.03584], abs=1e-5)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ("linear", [0.0314, 0.0296, 0.0287, 0.0284, 0.0294, 0.0359]),
        ("1-sqrt", [0.0306, 0.0290, 0.0283, 0.0285, 0.0303, 0.0431]),
    ],
)
def test_length_of_the_decay(shape: str, expected: list[float]) -> None:
    shares = [0.02, 0.05, 0.1, 0.2, 0.4, 0.96]
    found = [
        by_budget(wsd([5000], 200, decay=Decay(share, shape=shape, min_ratio=0.0)))[0] for share in shares
    ]  # type: ignore[arg-type]
    assert found == pytest.approx(expected, abs=6e-5)  # printed to four digits
    assert int(np.argmin(found)) == int(np.argmin(expected))


def test_with_ten_times_the_noise_the_cosine_wins() -> None:
    """Where noise and not the river limits the loss, WSD-S has no advantage, each at its best rate."""

    def best(plan: Schedule) -> list[float]:
        grid = [by_budget(plan, peak, modes=400, noise=0.5) for peak in (0.2, 0.3, 0.4, 0.6)]
        return [min(column) for column in zip(*grid, strict=True)]

    found = {
        "oracle": [best(cosine(budget, 200))[0] for budget in BUDGETS],
        "cyclic": best(cyclic_cosine(BUDGETS, 200, rewarmup_from="previous")),
        "WSD-S": best(wsds(BUDGETS, 200)),
        "WSD-S inv": best(wsds(BUDGETS, 200, decay=Decay(shape="inv"))),
    }
    printed = {
        "oracle": [0.0768, 0.0554, 0.0391],
        "cyclic": [0.0768, 0.0600, 0.0419],
        "WSD-S": [0.0885, 0.0631, 0.0440],
        "WSD-S inv": [0.0828, 0.0597, 0.0411],
    }
    for name, expected in printed.items():
        assert found[name] == pytest.approx(expected, rel=0.01), name  # another grid of rates
    assert all(a < b for a, b in zip(found["oracle"], found["WSD-S inv"], strict=True))
    longer = [
        min(best(wsd([5000], 200, decay=Decay(share, min_ratio=0.0)))) for share in (0.1, 0.2, 0.4)
    ]  # ever longer decays help
    assert longer == pytest.approx([0.0409, 0.0362, 0.0320], rel=0.01)


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="where SGD is stable, got 2 times 1"):
        stationary_hill(2, 1)
    with pytest.raises(ValueError, match="at least 0"):
        hill_losses([0.1, -0.1])
    with pytest.raises(ValueError, match="one for each update"):
        valley_run([[0.1]], np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"within the 2 updates of rates, got \[3\]"):
        spectrum_losses([0.1, 0.1], [3])
