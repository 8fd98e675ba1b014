"""The bi-gram toy of section 3.4 against its table and closed forms; through callback and Trainer, briefly.

The table's runs are SGD written out in float64, all schedules and seeds at once. That the Trainer does the
same is tested on the first updates; tests/evidence/bigram.py goes through it throughout.
"""

import importlib
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch

from zoo.datamodules import Bigram
from zoo.schedules import Decay, Schedule, constant, cosine, wsd, wsds

SEEDS = range(4)
W = 50
UPDATES = 3000
JUMPS = [450, 500, 505, 520, 900, 1000, 1800, 2000]
PLANS: dict[str, tuple[Schedule, float]] = {
    "constant 8": (constant(UPDATES, W), 8),
    "linear": (wsd([2000], W), 8),
    "inv": (wsd([2000], W, decay=Decay(shape="inv")), 8),
    "cosine": (cosine(2000, W), 8),
    "WSD-S": (wsds([500, 1000, 2000], W), 8),
}
# The table's excess of certain and uncertain tokens after 1,800 and 2,000 updates.
TABLE = {
    "constant 8": (0.0022, 0.0202, 0.0020, 0.0153),
    "linear": (0.0023, 0.0202, 0.0021, 0.0040),
    "inv": (0.0023, 0.0202, 0.0022, 0.0023),
    "cosine": (0.0038, 0.0024, 0.0037, 0.0016),
}
Losses = dict[str, dict[int, dict[str, list[float]]]]


@pytest.fixture(scope="module")
def losses() -> Losses:
    """Excess by schedule, updates made and kind of token, of each seed."""
    data = [Bigram(seed=seed) for seed in SEEDS]
    for each in data:
        each.setup("fit")
    distribution = data[0].distribution  # (n, 2)
    entropy = -torch.xlogy(distribution, distribution).sum(1)
    batches = [list(_first(each, UPDATES)) for each in data]
    size, n = data[0].batch_size, data[0].n
    # All seeds in one table: rows of seed s begin at s n.
    first = torch.stack(
        [torch.cat([b["first"] + s * n for s, b in enumerate(each)]) for each in zip(*batches, strict=True)]
    )
    after = torch.stack([torch.cat([b["next"] for b in each]) for each in zip(*batches, strict=True)])
    rates = torch.zeros(UPDATES, len(PLANS), 1, 1, dtype=torch.float64)
    for number, (plan, peak) in enumerate(PLANS.values()):
        rates[: plan.end, number, 0, 0] = peak * torch.tensor(plan.factors())
    theta = torch.zeros(len(PLANS), len(data) * n, 2, dtype=torch.float64)
    noted = {*JUMPS, *range(1020, UPDATES + 1, 20)}
    found: Losses = {name: {} for name in PLANS}
    for step in range(UPDATES):
        error = theta[:, first[step]].softmax(-1) - torch.nn.functional.one_hot(after[step], 2)
        gradient = torch.zeros_like(theta).index_add_(1, first[step], error / size)
        theta -= rates[step] * gradient
        if step + 1 in noted:
            tables = theta.unflatten(1, (len(data), n)).log_softmax(-1)
            excess = -(distribution * tables).sum(-1) - entropy  # (plans, seeds, n)
            for name, table in zip(PLANS, excess, strict=True):
                found[name][step + 1] = {
                    "certain": table[:, : data[0].certain].mean(1).tolist(),
                    "uncertain": table[:, data[0].certain :].mean(1).tolist(),
                    "mean": table.mean(1).tolist(),
                }
    return found


def _first(data: Bigram, count: int) -> Any:
    passes = 0
    while passes < count:
        for batch in data.train_dataloader():
            yield batch
            passes += 1
            if passes == count:
                return


def means(losses: Losses, name: str) -> dict[int, dict[str, float]]:
    """Mean over the seeds."""
    return {
        step: {kind: statistics.mean(each) for kind, each in at.items()} for step, at in losses[name].items()
    }


def test_the_trainer_does_the_same(losses: Losses, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(root / "tests" / "evidence"))
    run = importlib.import_module("bigram").run
    found = run(wsds([500, 1000], W), 8, 0, JUMPS[:6])[0]
    for step in JUMPS[:6]:
        for kind, value in found[step].items():
            assert value == pytest.approx(losses["WSD-S"][step][kind][0], rel=1e-3), (step, kind)


def test_the_table(losses: Losses) -> None:
    found: dict[str, Any] = {}
    for name, (before, hill, after, left) in TABLE.items():
        at = found[name] = means(losses, name)
        plan, peak = PLANS[name]
        # The river has no noise to speak of, but the table prints two digits.
        assert at[1800]["certain"] == pytest.approx(before, rel=0.05), name
        assert at[2000]["certain"] == pytest.approx(after, rel=0.05), name
        # One seed's end spreads by 23 %: three standard errors of four seeds, ours and the table's.
        assert at[1800]["uncertain"] == pytest.approx(hill, rel=3 * 0.23 * (2 / 4) ** 0.5), name
        assert at[2000]["uncertain"] == pytest.approx(left, rel=3 * 0.23 * (2 / 4) ** 0.5), name
        rates = [peak * factor for factor in plan.factors()[:2000]]
        assert at[2000]["certain"] == pytest.approx(Bigram().certain_excess(rates), rel=0.1), name
    decayed = found["inv"]
    assert decayed[1800]["uncertain"] / decayed[2000]["uncertain"] > 3  # all that a decay gains is the hill's
    assert decayed[1800]["certain"] / decayed[2000]["certain"] < 1.1
    assert found["cosine"][2000]["certain"] > 1.5 * decayed[2000]["certain"]  # the cosine loses the river


def test_the_stationary_hill(losses: Losses) -> None:
    """Its mean over 2,000 updates: eta / (8 B) is 8 % too low at a rate of 8."""
    found = means(losses, "constant 8")
    mean = statistics.mean(found[step]["uncertain"] for step in range(1020, UPDATES + 1, 20))
    assert mean == pytest.approx(0.0169, rel=0.08)
    assert mean == pytest.approx(Bigram().uncertain_excess(8), rel=0.15)


def test_jumps_bring_the_hill_back_and_keep_the_river(losses: Losses) -> None:
    table = {450: 0.0135, 500: 0.0081, 505: 0.0117, 520: 0.0133, 900: 0.0105, 1000: 0.0052}
    table |= {1800: 0.0091, 2000: 0.0035}
    river = {450: 0.0096, 500: 0.0090, 520: 0.0086, 900: 0.0048, 1000: 0.0045, 1800: 0.0024, 2000: 0.0022}
    found = means(losses, "WSD-S")
    for step, mean in table.items():
        assert found[step]["mean"] == pytest.approx(mean, rel=0.35), step  # the hill's share spreads as above
    for step, certain in river.items():
        assert found[step]["certain"] == pytest.approx(certain, rel=0.05), step
    falling = [found[step]["certain"] for step in table]
    assert falling == sorted(falling, reverse=True)
    for low, high in ((500, 520), (1000, 1800)):
        assert found[high]["uncertain"] > 1.5 * found[low]["uncertain"]
