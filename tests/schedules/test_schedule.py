"""`Schedule` as data: its values, its cuts, its JSON, and what it refuses."""

import json

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from zoo.schedules import (
    Budget,
    Decay,
    Merge,
    Schedule,
    Segment,
    constant,
    cosine,
    cyclic_cosine,
    wsd,
    wsds,
    wsm,
)

PLANS = {
    "constant": constant(100, warmup=10),
    "cosine": cosine(100, warmup=10),
    "cyclic": cyclic_cosine([50, 100, 200], warmup=10),
    "wsd": wsd([50, 100, 200], warmup=10),
    "wsds": wsds([50, 100, 200], warmup=10, decay=Decay(shape="1-sqrt", min_ratio=0.0)),
    "matched": wsds([50, 100, 200], warmup=10, compute_matched=True, rewarmup=3),
    "wsm": wsm([50, 100, 200], warmup=10, snapshots=4),
}


@pytest.mark.parametrize("name", PLANS)
def test_json_round_trip(name: str) -> None:
    plan = PLANS[name]
    again = Schedule.from_json(plan.to_json())
    assert again == plan and again.hash == plan.hash and hash(again) == hash(plan)
    assert again.factors() == plan.factors()
    assert len({each.hash for each in PLANS.values()}) == len(PLANS)
    assert (
        eval(repr(plan), {"Schedule": Schedule, "Segment": Segment, "Budget": Budget, "Merge": Merge}) == plan
    )


def test_json_of_something_else() -> None:
    for text in (
        "",
        "{}",
        "[]",
        '{"format": 3}',
        json.dumps({"format": 2, "segments": [], "budgets": [], "after_end": 1}),
    ):
        with pytest.raises(ValueError, match="this is not a schedule of the zoo"):
            Schedule.from_json(text)


@pytest.mark.parametrize("name", PLANS)
def test_factors_is_factor(name: str) -> None:
    plan = PLANS[name]
    assert plan.factors(plan.end + 5) == [plan.factor(k) for k in range(plan.end + 5)]
    assert plan.factors(17) == plan.factors()[:17]
    assert plan.river_time() == pytest.approx(sum(plan.factors()), rel=1e-12)
    assert all(0 <= factor <= 1 for factor in plan.factors())


def test_phases() -> None:
    plan = wsds([50, 100], warmup=10)
    found = [plan.phase(k) for k in (0, 9, 10, 44, 45, 49, 50, 89, 90, 99)]
    assert found == ["warmup"] * 2 + ["stable"] * 2 + ["decay"] * 2 + ["stable"] * 2 + ["decay"] * 2


def test_beyond() -> None:
    held, peak = wsds([100]), wsds([100], after_end="peak")
    assert (held.factor(100), held.factor(10**6), held.phase(100)) == (0.1, 0.1, "decay")
    assert (peak.factor(100), peak.factor(10**6), peak.phase(100)) == (1.0, 1.0, "stable")
    assert wsds([100], decay=Decay(min_ratio=0.0)).factor(100) == 0.0


@settings(derandomize=True, deadline=None, max_examples=50)
@given(
    gaps=st.lists(st.integers(20, 400), min_size=1, max_size=5),
    share=st.floats(0.02, 0.9),
    warmup=st.integers(0, 5),
    matched=st.booleans(),
)
def test_closed_form_of_the_river_time(gaps: list[int], share: float, warmup: int, matched: bool) -> None:
    """T - (1 - mean) x (decays): the sum of a linear ramp from above r to r is known exactly."""
    budgets = [sum(gaps[: n + 1]) for n in range(len(gaps))]
    assume(warmup < round(gaps[0] * (1 - share)) and share * min(gaps) >= 0.5)
    plan = wsds(budgets, warmup, compute_matched=matched, decay=Decay(share, of="period"))
    lengths = [budget.post - budget.pre for budget in plan.budgets]
    r, d = 0.1, sum(lengths)
    # Factors 1 - (1 - r) j / n for j = 1..n have the mean 1 - (1 - r) (n + 1) / (2 n).
    lost = sum((1 - r) * (n + 1) / 2 for n in lengths) + (warmup - 1) / 2 * (warmup > 0)
    assert plan.river_time() == pytest.approx(plan.end - lost, rel=1e-9)
    assert plan.end == budgets[-1] + (sum(lengths[:-1]) if matched else 0)
    # ... and the notes' approximation by the mean of the shape is off by half an update a decay.
    assert plan.river_time() == pytest.approx(plan.end - 0.45 * d - warmup / 2, abs=len(lengths) + 1)


def test_legs_of_a_tree() -> None:
    plan = wsd([50, 100, 200], warmup=10)
    assert [sub_run.start for sub_run in plan.sub_runs] == [0, 45, 90]
    for sub_run, total in zip(plan.sub_runs, [50, 100, 200], strict=True):
        alone = wsd([total], warmup=10)
        assert sub_run.schedule.factors() == alone.factors()
        assert sub_run.schedule.budgets == alone.budgets
    assert plan.total_updates == 200 + 5 + 10
    [sub_run] = PLANS["wsds"].sub_runs
    assert (sub_run.start, sub_run.schedule) == (0, PLANS["wsds"])


def test_cut() -> None:
    plan = wsds([50, 100], warmup=10)
    assert plan.cut(30).factors() == plan.factors()[:30] and plan.cut(30).budgets == ()
    assert plan.cut(50).budgets == plan.budgets[:1]
    for inside in (5, 47):
        with pytest.raises(ValueError, match="can be cut in a stable phase or at the end of a ramp"):
            plan.cut(inside)
    with pytest.raises(ValueError, match="at least one segment"):
        plan.cut(0)


def test_first_difference() -> None:
    old, later = wsds([50, 100], warmup=10), wsds([50, 100, 400], warmup=10)
    assert old.first_difference(later, 100) is None
    assert old.first_difference(later, 101) == 100  # held at .1 there, at the peak here
    assert wsds([50, 120], warmup=10).first_difference(old, 90) is None
    assert wsds([50, 120], warmup=10).first_difference(old, 120) == 90
    assert wsds([50, 100], warmup=9).first_difference(old, 1) == 0


def test_with_decay() -> None:
    plan = wsds([100, 200], warmup=10)
    stopped = plan.with_decay(40, 10)
    assert stopped.end == 50 and stopped.budgets == (Budget(50, 40, 50),)
    assert stopped.factors()[:40] == plan.factors()[:40]
    assert stopped.factors()[40:] == pytest.approx([1 - 0.09 * j for j in range(1, 11)])
    going_on = plan.with_decay(40, 10, then="continue")
    assert [budget.updates for budget in going_on.budgets] == [50, 100, 200]
    assert going_on.factors()[50:] == plan.factors()[50:]
    # Past the end of a plan that stays at its peak.
    forever = constant(30)
    late = forever.with_decay(40, 10)
    assert late.factors() == [1.0] * 40 + stopped.factors()[40:]
    assert forever.with_decay(25, 10, then="continue").factors(45)[35:] == [1.0] * 10


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((5, 10), "lies within the warmup"),
        ((95, 3), "lies within the decay"),
        ((85, 10, None, "end", "continue"), "runs into the decay that begins at update 90"),
        ((85, 50, None, "end", "continue"), "runs into the decay that begins at update 90"),
    ],
)
def test_with_decay_refuses(arguments: tuple, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        wsds([100, 200], warmup=10).with_decay(*arguments)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Schedule(()), "at least one segment"),
        (lambda: Schedule((Segment("stable", 1, 5),)), "starts at update 1; the one before it ends at 0"),
        (lambda: Schedule((Segment("stable", 0, 5), Segment("stable", 6, 9))), "starts at update 6"),
        (lambda: Segment("stable", 5, 5), "at least one update"),
        (lambda: Segment("rest", 0, 5), "phase must be one of warmup, stable, decay"),
        (lambda: Segment("decay", 0, 5, inclusive="both"), "inclusive must be one of"),
        (lambda: Schedule((Segment("stable", 0, 5),), after_end="zero"), "after_end must be one of"),
        (lambda: Schedule((Segment("stable", 0, 5),), (Budget(9, 1, 9),)), "do not lie in the 5 updates"),
        (
            lambda: Schedule((Segment("stable", 0, 5),), (Budget(4, 1, 4), Budget(3, 1, 3))),
            "budgets must increase, got 4 and then 3",
        ),
        (lambda: wsds([100]).factor(-1), "counted from 0"),
        (lambda: Merge(0, 10, 3), "must be a multiple"),
    ],
)
def test_refusals(make, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make()


def test_a_million_updates_are_cheap() -> None:
    """No list of a million numbers is kept: a schedule is its segments."""
    plan = wsds([10**6, 2 * 10**6, 4 * 10**6], warmup=2000)
    assert len(plan.to_json()) < 3000
    assert plan.factor(3_799_999) == pytest.approx(0.55, rel=1e-12)
