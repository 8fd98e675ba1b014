"""Schedules of one model, as long as the run or not; OneCycleLR's curve against torch's own."""

import json
import time

import numpy as np
import pytest
import torch
import yaml
from bundled import FOLDER, NAMES
from torch.optim.lr_scheduler import OneCycleLR

from zoo.schedules import (
    Decay,
    DecayOnDemand,
    RunSchedule,
    Schedule,
    ScheduleLR,
    Segment,
    constant,
    cosine,
    one_cycle,
    wsd,
    wsds,
    wsm,
)


def torch_rates(updates: int, **options: float) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = OneCycleLR(optimizer, max_lr=1.0, total_steps=updates, cycle_momentum=False, **options)
    found = []
    for _ in range(updates):
        found.append(float(scheduler.get_last_lr()[0]))
        optimizer.step()
        scheduler.step()
    return found


# Lengths at which the peak is an update, and at which it lies between two, or before the first.
@pytest.mark.parametrize("updates", [1, 2, 7, 101, 400, 1001, 4000])
@pytest.mark.parametrize("share", [0.0, 0.07, 0.3, 0.9])
def test_one_cycle_is_torchs(updates: int, share: float) -> None:
    options = {"pct_start": share, "div_factor": 10.0, "final_div_factor": 100.0}
    plan = one_cycle(updates, **options)
    assert plan.end == updates
    assert plan.factors() == pytest.approx(torch_rates(updates, **options), abs=1e-12)
    assert plan.factors_at(np.arange(updates)) == pytest.approx(plan.factors(), abs=1e-12)


def one_cycle_configs() -> list[str]:
    return [name for name in NAMES if "zoo.schedules.one_cycle" in (FOLDER / f"{name}.yaml").read_text()]


def test_ten_configs_have_it() -> None:
    assert len(one_cycle_configs()) == 10
    for name in NAMES:
        assert "total_steps" not in (FOLDER / f"{name}.yaml").read_text()


@pytest.mark.parametrize("name", one_cycle_configs())
def test_configs_keep_the_rates_that_were_measured(name: str) -> None:
    """The numbers are those of the OneCycleLR that the configs had."""
    config = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    [made] = [c for c in config["trainer"]["callbacks"] if c["class_path"] == "LRSchedule"]
    options = made["init_args"]["schedule"]["init_args"]
    share = {"quickstart": 0.07, "flow/eight_gaussians": 0.05}.get(name, 0.1)
    updates = config["trainer"]["max_steps"]
    found = one_cycle(**options).for_run(updates).factors()
    assert found == pytest.approx(torch_rates(updates, pct_start=share), abs=1e-12)


def test_one_cycle_refuses() -> None:
    for options, says in (
        ({"updates": 0}, "updates must be at least 1, got 0"),
        ({"updates": 10, "pct_start": 1.5}, "pct_start must be a share of the updates"),
        ({"updates": 10, "div_factor": 0.0}, "div_factor must be a positive number"),
    ):
        with pytest.raises(ValueError, match=says):
            one_cycle(**options)  # type: ignore[call-overload]


@pytest.mark.parametrize("make", [constant, cosine])
def test_as_long_as_the_run(make) -> None:
    without = make(warmup=0.05)
    assert type(without) is RunSchedule
    assert without.for_run(200) == make(200, warmup=10)
    assert make(warmup=10).for_run(200) == make(200, warmup=10)
    assert make(200).for_run(50) == make(200)  # its length is its own
    with pytest.raises(ValueError, match=r"a warm-up of 300 updates does not fit"):
        make(warmup=300).for_run(200)


def test_a_scheduler_needs_a_length() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    assert ScheduleLR(optimizer, cosine(10)).get_last_lr() == [0.9 * (1 + np.cos(np.pi / 10)) / 2 + 0.1]
    with pytest.raises(ValueError, match="does not know how long the run is: give the schedule its updates"):
        ScheduleLR(optimizer, cosine())


@pytest.mark.parametrize(
    "plan", [one_cycle(333), wsd([100, 200], 10), wsm([100], 10, snapshots=4, decay=0.6), cosine(50)]
)
def test_json(plan: Schedule) -> None:
    again = Schedule.from_json(plan.to_json())
    assert again == plan and again.hash == plan.hash


def test_a_span_covers_its_segment() -> None:
    with pytest.raises(ValueError, match=r"span must cover the updates 0 to 9, got 1\.0 to 9\.0"):
        Segment("warmup", 0, 10, span=(1, 9))


@pytest.mark.parametrize("kind", [np.int64, np.int32, float, np.float32])
def test_whole_numbers_of_any_type(kind) -> None:
    plan = wsds([kind(20), kind(40)], warmup=kind(4), decay=Decay((kind(2), kind(4)), of="explicit"))
    assert plan == wsds([20, 40], warmup=4, decay=Decay([2, 4], of="explicit"))
    budget = plan.budgets[0]
    assert type(budget.pre) is type(budget.post) is type(plan.segments[0].end) is int
    assert json.loads(plan.to_json())["budgets"][0]["updates"] == 20
    assert wsm(np.array([20, 40]), snapshots=kind(4), decay=0.6) == wsm([20, 40], snapshots=4, decay=0.6)
    assert one_cycle(kind(30)) == one_cycle(30) and cosine(kind(30), kind(3)) == cosine(30, 3)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: wsds([20.5]), "budgets must be a whole number of updates, got 20.5"),
        (lambda: wsds([20], warmup=2.5), "warmup must be a whole number of updates, got 2.5"),
        (lambda: wsd(["20"]), "budgets must be a whole number of updates, got '20'"),
        (lambda: cosine(20, warmup=2.5), "warmup must be a whole number of updates, got 2.5"),
        (
            lambda: wsds([20], decay=Decay(min_ratio=1.5)),
            "min_ratio must be a share of the peak learning rate from 0 to 1",
        ),
        (lambda: cosine(20, min_ratio=2.0), "min_ratio must be a share of the peak"),
        (
            lambda: wsm([20], snapshots=4, decay=Decay(0.6, min_ratio=1.5)),
            "min_ratio must be a share of the peak",
        ),
        (lambda: DecayOnDemand(decay=Decay(min_ratio=1.5)), "min_ratio must be a share of the peak"),
        (lambda: wsds([20], decay=Decay(min_ratio=float("nan"))), "min_ratio must be a share of the peak"),
    ],
)
def test_refused_when_it_is_made(make, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make()


def test_long_schedules_are_compared_by_segments() -> None:
    one, other = (
        wsds([10**6, 10**7], warmup=2000, decay=Decay(share, shape="1-sqrt")) for share in (0.1, 0.11)
    )
    begun = time.perf_counter()
    assert one.first_difference(wsds([10**6, 10**7], 2000, decay=Decay(shape="1-sqrt")), 10**7) is None
    assert one.first_difference(other, 10**7) == 890_000
    longer = wsds([10**6, 2 * 10**7], warmup=2000, decay=Decay(shape="1-sqrt"))
    assert longer.first_difference(one, 10**7) == 9_000_000
    assert time.perf_counter() - begun < 1  # update by update it takes ten and more


@pytest.mark.parametrize(
    "plan", [one_cycle(101), cosine(77, 5), wsd([40, 90], 4, decay=Decay(shape="inv")), wsds([50])]
)
def test_first_difference_is_that_of_the_factors(plan: Schedule) -> None:
    for other in (
        one_cycle(100),
        cosine(77, 4),
        wsd([90], 4, decay=Decay(shape="inv")),
        wsds([50], decay=Decay(shape="1-sqrt")),
    ):
        for stop in (1, 30, 77, 130):
            found = next((k for k in range(stop) if plan.factor(k) != other.factor(k)), None)
            assert plan.first_difference(other, stop) == found
