"""The builders against the authors' own numbers (1.2 and 1.3 of the notes), and the edges of their
arguments."""

import pytest

from zoo.schedules import Decay, Schedule, constant, cosine, cyclic_cosine, from_breakpoints, wsd, wsds, wsm

BUDGETS = [12_500, 25_000, 50_000]
W = 2000


def points(plan: Schedule) -> list[int]:
    """Where the segments after the warm-up end: what the authors' configs call haps, and the end."""
    return [segment.end for segment in plan.segments if segment.phase != "warmup"]


def test_authors_breakpoints() -> None:
    """The ends of their configs are one update later, so that the last evaluation sees the last budget."""
    assert points(wsd(BUDGETS[:1], W)) == [11_250, 12_500]
    assert points(wsd([25_000], W)) == [22_500, 25_000]
    matched = wsds(BUDGETS, W, compute_matched=True)
    assert points(matched) == [11_250, 12_500, 23_750, 26_250, 48_750, 53_750]
    assert points(wsds(BUDGETS[:2], W, compute_matched=True)) == [11_250, 12_500, 23_750, 26_250]
    assert points(wsds(BUDGETS[:2], W)) == [11_250, 12_500, 22_500, 25_000]
    longer = wsds(BUDGETS[:2], W, decay=Decay([1250, 3500], of="explicit"))
    assert points(longer) == [11_250, 12_500, 21_500, 25_000]
    # 100M at 4e-3 and 8e-3: decays of 10, 20 and 30 %; the second and third end later than compute-matched.
    high = from_breakpoints([11_250, 12_500, 21_250, 26_250, 41_250, 56_250], ["constant", "linear"] * 3, W)
    assert [budget.post - budget.pre for budget in high.budgets] == [1250, 5000, 15_000]


@pytest.mark.parametrize("shape", ["linear", "inv"])
def test_breakpoints_are_the_builders(shape: str) -> None:
    matched = wsds(BUDGETS, W, compute_matched=True, decay=Decay(shape=shape))
    shapes = ["constant", shape] * 3
    assert from_breakpoints(points(matched), shapes, W).segments == matched.segments
    cyclic = cyclic_cosine([12_500, 25_000], W)
    restated = from_breakpoints([W, 12_500, 14_500, 25_000], ["warmup", "cosine", "warmup", "cosine"])
    assert restated.segments == cyclic.segments
    assert [budget.pre for budget in restated.budgets] == [None, None]


def test_compute_totals() -> None:
    assert sum(cosine(total, W).total_updates for total in BUDGETS) == 87_500
    assert wsd(BUDGETS, W).total_updates == 53_750
    assert wsds(BUDGETS, W, compute_matched=True).total_updates == 53_750
    assert wsds(BUDGETS, W).total_updates == cyclic_cosine(BUDGETS, W).total_updates == 50_000
    assert wsm(BUDGETS, W).total_updates == 50_000


def test_reference_values() -> None:
    """Section 1.3, first convention: linear to .1, compute-matched."""
    plan = wsds(BUDGETS, W, compute_matched=True, inclusive="start")
    expected = {0: 0, 1000: 0.5, 2000: 1, 11_250: 1, 11_875: 0.55, 12_499: 0.10072, 12_500: 1, 23_750: 1}
    expected |= {25_000: 0.55, 26_249: 0.10036, 26_250: 1, 51_250: 0.55, 53_749: 0.10018}
    assert {k: plan.factor(k) for k in expected} == pytest.approx(expected, abs=5e-6)
    inv = wsds(BUDGETS, W, inclusive="start", decay=Decay(shape="inv"))
    assert [inv.factor(k) for k in (11_875, 23_750, 47_500)] == pytest.approx([0.181818] * 3, abs=5e-7)


def test_river_time_of_equal_compute() -> None:
    """At equal compute WSD-S is ahead of WSD by the mean of the shape times the decays before (1.3)."""
    along = wsds(BUDGETS, W, compute_matched=True).river_time()
    beside = wsd(BUDGETS, W).sub_runs[-1].schedule.river_time()
    assert along - beside == pytest.approx(0.55 * (1250 + 2500), abs=2)
    exact = wsds(BUDGETS, W).river_time()
    assert beside - exact == pytest.approx(0.45 * (1250 + 2500), abs=2)


def test_conventions() -> None:
    """First: the first decayed update is at the peak. Second: the last is at r, or one short of 0."""
    first, second = wsds([20], decay=0.5, inclusive="start"), wsds([20], decay=0.5)
    assert first.factors()[10:] == pytest.approx([1 - 0.9 * j / 10 for j in range(10)])
    assert second.factors()[10:] == pytest.approx([1 - 0.9 * j / 10 for j in range(1, 11)])
    to_zero = wsds([20], decay=Decay(0.5, min_ratio=0.0))
    assert to_zero.factors()[10:] == pytest.approx([1 - j / 11 for j in range(1, 11)])
    assert constant(4, warmup=4).factors() == [0.25, 0.5, 0.75, 1]
    assert constant(4, warmup=4, inclusive="start").factors() == [0, 0.25, 0.5, 0.75]
    assert constant(4, warmup=4, warmup_start=0.2).factors() == pytest.approx([0.4, 0.6, 0.8, 1])


def test_edges() -> None:
    assert wsds([100], warmup=0).factor(0) == 1
    assert wsds([100, 200], decay=0.0).factors() == [1.0] * 200  # constant
    assert [budget.pre for budget in wsds([100, 200], decay=0.0).budgets] == [100, 200]
    sawtooth = wsds([100, 200], decay=Decay(1.0, of="period"))
    assert [segment.phase for segment in sawtooth.segments] == ["decay", "decay"]
    assert (sawtooth.factor(99), sawtooth.factor(100)) == (0.1, pytest.approx(0.991))
    # Levanter's documented cycles, by period: 1,250, 1,250 and 2,500 where the paper has 1,250, 2,500, 5,000.
    by_period = wsds(BUDGETS, W, decay=Decay(of="period"))
    assert [budget.post - budget.pre for budget in by_period.budgets] == [1250, 1250, 2500]
    again = wsds([100, 200], warmup=10, rewarmup=5)
    assert again.factors()[100:106] == pytest.approx([0.28, 0.46, 0.64, 0.82, 1, 1])
    assert wsd([100, 200], decay=[0.1, 0.0]).sub_runs[-1].schedule.factors() == [1.0] * 200
    shares = wsds(BUDGETS, W, decay=[0.1, 0.2, 0.3])
    assert [budget.post - budget.pre for budget in shares.budgets] == [1250, 5000, 15_000]


def test_cyclic_cosine() -> None:
    plan = cyclic_cosine([100, 200], warmup=10)
    assert plan.factors()[98:101] == pytest.approx([0.1 + 0.45 * (1 - 0.99985) * 1.83, 0.1, 0.1], abs=3e-4)
    assert plan.factors()[100:110] == pytest.approx([j / 10 for j in range(1, 11)])
    previous = cyclic_cosine([100, 200], warmup=10, rewarmup_from="previous", rewarmup=3)
    assert previous.factors()[100:103] == pytest.approx([0.4, 0.7, 1])


def test_wsm() -> None:
    plan = wsm([100, 205], snapshots=5, decay=0.2)
    merges = [budget.merge for budget in plan.budgets]
    assert [list(merge.steps) for merge in merges] == [
        [80, 85, 90, 95, 100],
        [165, 175, 185, 195, 205],
    ]
    assert plan.factors() == [1.0] * 205 and plan.after_end == "peak"


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (
            lambda: wsds([1000, 1050]),
            "would begin after update 945, but budget 1000 lasts until 1000. Shorten the decay",
        ),
        (lambda: wsds([100, 100]), "budgets must increase, got 100 and then 100"),
        (lambda: wsds([200, 100]), "budgets must increase, got 200 and then 100"),
        (lambda: wsds([]), "at least one"),
        (lambda: wsds([0]), "at least one"),
        (lambda: wsds([100], warmup=95), "the warm-up of 95 updates lasts until 95"),
        (lambda: wsd([100], warmup=95), "the warm-up of 95 updates lasts until 95"),
        (lambda: wsds([100], warmup=101), "does not fit"),
        (lambda: wsds([100], warmup=-1), "does not fit"),
        (lambda: wsds([100], decay=Decay(shape="inv", min_ratio=0.0)), "give a min_ratio above 0"),
        (
            lambda: wsds([100], decay=10),
            "between 0 and 1, got .10.: for numbers of updates say of: explicit",
        ),
        (lambda: wsds([100], decay=0.001), "rounds to none"),
        (lambda: wsds([100, 200], decay=[0.1]), "one for each of the 2, got 1"),
        (lambda: wsds([100], decay=Decay(2.5, of="explicit")), "must be a whole number of updates, got 2.5"),
        (lambda: wsds([100], decay=Decay(of="cycle")), "of must be"),
        (
            lambda: wsd([100, 110], decay=Decay([5, 50], of="explicit")),
            "must not branch off before an earlier one",
        ),
        (lambda: cosine(100, warmup=100), "leaves nothing of the cycle"),
        (lambda: constant(10, warmup=11), "does not fit"),
        (lambda: constant(10, warmup=5, warmup_start=2.0), "warmup_start must be a factor between 0 and 1"),
        (lambda: wsd([100], decay=Decay(shape="inv", min_ratio=0.0)), "never reaches zero"),
        (lambda: wsm([100], snapshots=1), "at least 2 snapshots"),
        (lambda: wsm([100], snapshots=50), "too few for 50 snapshots"),
        (lambda: wsm([100], warmup=95), "lasts until 95"),
        (
            lambda: from_breakpoints([10, 5], ["constant", "linear"]),
            "must be numbers of updates that increase",
        ),
        (lambda: from_breakpoints([10], ["constant", "linear"]), "got 1 points and 2 shapes"),
    ],
)
def test_refusals(make, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make()
