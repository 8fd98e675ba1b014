"""What `zoo plan` says and draws, from the functions behind it."""

from pathlib import Path

import pytest
from PIL import Image

from zoo.schedules import Decay, Schedule, convex_bound, cosine, cyclic_cosine, wsd, wsds, wsm
from zoo.schedules.plot import ascii_plot, save_plot
from zoo.schedules.power_law import MULTI_POWER_LAW
from zoo.schedules.report import alternatives, branch_to, report, score

BUDGETS = [1250, 2500, 5000]


def test_alternatives_are_the_builders() -> None:
    plan = wsds(BUDGETS, 100, decay=Decay(shape="1-sqrt", min_ratio=0.02))
    ways = alternatives(plan)
    assert ways["WSD-S"] == [plan]
    assert ways["WSD"] == [wsd(BUDGETS, 100, decay=Decay(shape="1-sqrt", min_ratio=0.02))]
    assert ways["WSD-S, WSD's compute"][0].total_updates == ways["WSD"][0].total_updates == 5375
    assert ways["cyclic cosine"] == [cyclic_cosine(BUDGETS, 100, 0.02)]
    assert ways["cosine, a run each"] == [cosine(total, 100, 0.02) for total in BUDGETS]
    for other in (cyclic_cosine(BUDGETS, 100), wsm(BUDGETS, 100), cosine(5000, 100)):
        assert alternatives(other)["WSD-S"][0].segments[-1].shape == "linear"


@pytest.mark.parametrize("make", [wsd, wsds])
def test_roads_lead_to_the_models(make) -> None:
    plan = make(BUDGETS, 100)
    for budget, total in zip(plan.budgets, BUDGETS, strict=True):
        branch = branch_to(plan, budget)
        assert budget.post == total and branch.factor(total - 1) == pytest.approx(0.1)
    with pytest.raises(ValueError, match="no budget of 7 updates"):
        branch_to(plan, cosine(7).budgets[0])


def test_scores() -> None:
    """By hand: each cosine has the bound of its own run, at its own rate; a forecast takes absolute rates."""
    law = MULTI_POWER_LAW["100M"]
    runs = [cosine(total, 100) for total in BUDGETS]
    found = score(runs, 3e-4, law)
    assert found.updates == sum(BUDGETS)
    assert found.bounds == pytest.approx([convex_bound(run.factors()).bound for run in runs], rel=1e-12)
    assert found.losses == pytest.approx(
        [law.loss([3e-4 * factor for factor in run.factors()])[0] for run in runs], rel=1e-12
    )
    plan = wsds(BUDGETS, 100)
    one_road = score([plan])
    rate = convex_bound(plan.factors()).rate
    assert one_road.bounds == pytest.approx(
        [convex_bound(plan.factors(total)).at(rate) for total in BUDGETS], rel=1e-12
    )
    # 1.3: at equal compute WSD-S beats WSD, at equal budgets it loses a little; a run for each wins.
    ways = {name: score(plans).bounds[-1] for name, plans in alternatives(plan).items()}
    assert ways["cosine, a run each"] < ways["WSD-S, WSD's compute"] < ways["WSD"] < ways["WSD-S"]


def test_report() -> None:
    text = report(wsd(BUDGETS, 100), [3e-4, 1e-4], 2048, MULTI_POWER_LAW["100M"])
    lines = text.splitlines()
    assert lines[0] == "5,375 updates in all (375 of them on branches), 11M tokens of 2,048 an update"
    assert lines[1] == "peak learning rate 0.0003 and 0.0001"
    assert "1,125 - 1,250  decay (branch)  1 -> 0.1  linear" in lines
    [row] = [line.split() for line in lines if line.startswith("2,500 ")]
    assert row == [
        "2,500",
        "2,250",
        "2,500",
        "2,625",
        "2,338",
        "5.12M",
    ]  # 2,450.5 - .45 x 249 updates at the peak
    [plan] = [line.split() for line in lines if line.startswith("this plan")]
    assert plan[2] == "5,375" and plan[5] == "1.000" and len(plan) == 9
    assert "merge of 10" in report(wsm(BUDGETS))
    plain = report(wsds(BUDGETS))
    assert "tokens" not in plain and "loss" not in plain and "peak learning rate" not in plain


@pytest.mark.parametrize("plan", [wsds(BUDGETS, 100), wsd(BUDGETS, 100), wsm(BUDGETS), cosine(7)], ids=str)
def test_pictures(plan: Schedule, tmp_path: Path) -> None:
    lines = ascii_plot(plan, 60, 6).splitlines()
    assert len(lines) == 7 and all(len(line) <= 5 + 60 for line in lines[:-1])
    assert lines[0].startswith("1.0 |") and lines[5].startswith("0.0 |####")
    assert lines[6].count("^") == len(plan.budgets)
    assert ("." in "".join(line[5:] for line in lines[:6])) == (len(plan.sub_runs) > 1)
    save_plot(tmp_path / "plan.png", plan, "a plan")
    with Image.open(tmp_path / "plan.png") as picture:
        assert picture.size[0] > 800 and len(set(picture.convert("RGB").getdata())) > 20


def test_a_plot_needs_room() -> None:
    with pytest.raises(ValueError, match="at least 10 characters and 2 lines"):
        ascii_plot(cosine(10), 5)
