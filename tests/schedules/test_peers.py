"""What other libraries do, restated here from their sources, against the builders; their differences by name.

Sections 4.1 to 4.10 of the notes on the paper. transformers is installed, so that one is run.
"""

import math

import pytest
import torch
from transformers import get_wsd_schedule

from zoo.schedules import Decay, cosine, wsd, wsds

TOTAL, WARM, DECAY = 1000, 50, 100


def transformers_factors(count: int, **options: object) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = get_wsd_schedule(optimizer, num_warmup_steps=WARM, num_decay_steps=DECAY, **options)
    found = []
    for _ in range(count):
        found.append(float(scheduler.get_last_lr()[0]))
        optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize("shape", ["linear", "cosine", "1-sqrt"])
@pytest.mark.parametrize("floor", [0.1, 0.0])
def test_transformers(shape: str, floor: float) -> None:
    """4.7: first convention, the warm-up comes from the last level, which is held after the end."""
    theirs = transformers_factors(TOTAL + 20, num_training_steps=TOTAL, decay_type=shape, min_lr_ratio=floor)
    plan = wsd(
        [TOTAL],
        WARM,
        inclusive="start",
        warmup_start=floor,
        decay=Decay([DECAY], of="explicit", shape=shape, min_ratio=floor),
    )
    assert plan.factors(TOTAL + 20) == pytest.approx(theirs, abs=1e-12)


def test_transformers_by_default_ends_in_updates_that_do_nothing() -> None:
    """Its last level is 0 unless asked otherwise; ours is .1 as in the paper, and a run stops at its
    plan's end."""
    assert transformers_factors(TOTAL + 5, num_training_steps=TOTAL)[-5:] == [0.0] * 5
    assert wsd([TOTAL]).factors(TOTAL + 5)[-5:] == [0.1] * 5


def torchtitan(step: int, ratio: str = "linear") -> float:
    """4.8: one virtual step at the end, so that the last factor is 1 / D."""
    stable = TOTAL + 1 - WARM - DECAY
    if step < WARM:
        return (step + 1) / WARM
    if step < WARM + stable:
        return 1.0
    progress = (step + 1 - WARM - stable) / DECAY
    return {
        "linear": 1 - progress,
        "sqrt": 1 - math.sqrt(progress),
        "cosine": (1 + math.cos(math.pi * progress)) / 2,
    }[ratio]


@pytest.mark.parametrize(("theirs", "ours"), [("linear", "linear"), ("sqrt", "1-sqrt"), ("cosine", "cosine")])
def test_torchtitan(theirs: str, ours: str) -> None:
    """Its decay of D is ours of D - 1 to zero, aimed one update beyond the end."""
    plan = wsd([TOTAL], WARM, decay=Decay([DECAY - 1], of="explicit", shape=ours, min_ratio=0.0))
    found = [torchtitan(k, theirs) for k in range(TOTAL)]
    assert plan.factors() == pytest.approx(found, abs=1e-12)
    assert found[-1] == pytest.approx({"linear": 1 / DECAY}.get(theirs, plan.factor(TOTAL - 1)))


def olmo(step: int, periods: list[int], share: float, floor: float) -> float:
    """4.3: steps counted from 1; the boundary belongs to the period before it; shares of the period."""
    start = 0
    for length in periods:
        end = start + length
        if step <= end:
            decay = round(share * length)
            if start == 0 and step <= WARM:
                return step / WARM
            return 1.0 if step <= end - decay else floor + (1 - floor) * (end - step) / decay
        start = end
    return floor


def test_olmo_core() -> None:
    periods = [500, 500, 1000]
    plan = wsds([500, 1000, 2000], WARM, decay=Decay(0.1, of="period", min_ratio=0.05))
    assert plan.factors() == pytest.approx([olmo(k + 1, periods, 0.1, 0.05) for k in range(2000)], abs=1e-12)
    # With its default, decay_min_lr 0, each period ends in an update that does nothing; ours aims one beyond.
    zero = wsds([500, 1000, 2000], WARM, decay=Decay(0.1, of="period", min_ratio=0.0))
    assert olmo(500, periods, 0.1, 0.0) == 0 and zero.factor(499) == pytest.approx(1 / 51)


def levanter_cycles(total: int, length: int) -> list[int]:
    """4.2: ends of cycles of one length; where it does not divide the total, the last cycle takes the
    rest."""
    ends = [length * (n + 1) for n in range(total // length)]
    ends[-1] = total
    return ends


def levanter(step: int, ends: list[int], share: float, floor: float) -> float:
    start = 0
    for end in ends:
        if step < end:
            decay = int(share * (end - start))
            if start == 0 and step < WARM:
                return step / WARM
            return 1.0 if step < end - decay else 1 - (1 - floor) * (step - (end - decay)) / decay
        start = end
    return floor


def test_levanter() -> None:
    """The documented cycles decay for 1,250, 1,250, 2,500 updates, not the paper's 1,250, 2,500, 5,000."""
    ends = [12_500, 25_000, 50_000]
    plan = wsds(ends, WARM, inclusive="start", decay=Decay(0.1, of="period"))
    assert plan.factors() == pytest.approx([levanter(k, ends, 0.1, 0.1) for k in range(50_000)], abs=1e-12)
    assert levanter_cycles(35_000, 10_000) == [10_000, 20_000, 35_000]  # it warns of a shorter cycle
    assert wsds([10_000, 20_000, 30_000, 35_000], decay=Decay(of="period")).budgets[-1].updates == 35_000


def lingua(step: int, total: int, cycle: float, share: float, floor: float) -> float:
    """4.4: equal cycles, inv only, the share of the cumulative budget."""
    length = int(total * cycle)
    number = step // length + 1
    end = length * number
    decay = int(end * share)
    if step == total:
        end = length * (number - 1)
    if step < WARM:
        return step / WARM
    if step <= end - decay:
        return 1.0
    progress = (step - (end - decay)) / decay
    return 1 / (progress / floor + (1 - progress))


def test_lingua() -> None:
    plan = wsds([250, 500, 750, 1000], WARM, inclusive="start", decay=Decay(0.1, shape="inv"))
    assert plan.factors() == pytest.approx([lingua(k, 1000, 0.25, 0.1, 0.1) for k in range(1000)], abs=1e-12)
    # A cycle that does not divide the run leaves its tail without a decay; with us the last budget is
    # the end.
    assert {lingua(k, 1000, 0.3, 0.1, 0.1) for k in range(900, 1000)} == {1.0}
    tail = wsds([300, 600, 900, 1000], WARM, decay=Decay(0.1, shape="inv"))
    assert tail.factor(999) == pytest.approx(0.1) and tail.budgets[-1].updates == 1000
    with pytest.raises(ZeroDivisionError):
        lingua(245, 1000, 0.25, 0.1, 0.0)
    with pytest.raises(ValueError, match="never reaches zero"):
        wsds([250], WARM, decay=Decay(shape="inv", min_ratio=0.0))


def accelerated_checkpoints(total: int, number: int) -> list[int]:
    """4.5: a quarter of the run, then doubled, as long as it fits."""
    found, step = [], total // 4
    while step <= total and len(found) < number:
        found.append(step)
        step *= 2
    return found


def test_pytorch_accelerated() -> None:
    """Two checkpoints of 100,000 stop half-way, and the rate stays at its minimum; four give three."""
    assert accelerated_checkpoints(100_000, 2) == [25_000, 50_000]
    assert accelerated_checkpoints(100_000, 4) == [25_000, 50_000, 100_000]
    plan = wsds([25_000, 50_000, 100_000], decay=Decay(of="period", shape="1-sqrt"))
    assert plan.factor(60_000) == 1.0 and plan.budgets[-1].post == 100_000


def test_minicpm_and_megatron() -> None:
    """4.6: a half-life is the shape exp with the level it reaches; 4.9: exponential is a power of two,
    rescaled."""
    half_life = 30
    plan = wsd(
        [TOTAL],
        0,
        inclusive="start",
        decay=Decay([DECAY], of="explicit", shape="exp", min_ratio=0.5 ** (DECAY / half_life)),
    )
    found = [0.5 ** (j / half_life) for j in range(DECAY)]
    assert plan.factors()[-DECAY:] == pytest.approx(found, rel=1e-12)
    megatron = [2 * 0.5 ** (j / DECAY) - 1 for j in range(DECAY)]  # from 1 to 0; not offered here
    minus_sqrt = [1 - math.sqrt(j / DECAY) for j in range(DECAY)]
    ours = wsd(
        [TOTAL], 0, inclusive="start", decay=Decay([DECAY], of="explicit", shape="1-sqrt", min_ratio=0.0)
    ).factors()[-DECAY:]
    assert ours == pytest.approx(minus_sqrt, abs=1e-12)
    assert max(abs(a - b) for a, b in zip(megatron, ours, strict=True)) > 0.1


def nanotron(step: int, style: str, floor: float) -> float:
    """Its ``lr_lambda``, with a constant phase before ``lr_decay_starting_step``."""
    start = TOTAL - DECAY
    if step <= WARM:
        return step / WARM
    if step < start:
        return 1.0
    p = (step - start) / DECAY
    height = {"linear": 1 - p, "cosine": (1 + math.cos(math.pi * p)) / 2, "1-sqrt": 1 - math.sqrt(p)}[style]
    return floor + (1 - floor) * height


def megatron(step: int, style: str, floor: float) -> float:
    """Its WSD in samples, here one for each update: the decay begins after the last one at the peak."""
    anneal_start = TOTAL - DECAY
    if step <= WARM:
        return step / WARM
    if step <= anneal_start:
        return 1.0
    p = (step - anneal_start) / DECAY
    height = {"linear": 1 - p, "cosine": (1 + math.cos(math.pi * p)) / 2, "1-sqrt": 1 - math.sqrt(p)}[style]
    return floor + (1 - floor) * height


@pytest.mark.parametrize("theirs", [nanotron, megatron])
@pytest.mark.parametrize("style", ["linear", "cosine", "1-sqrt"])
@pytest.mark.parametrize("floor", [0.0, 0.1])
def test_nanotron_and_megatron(theirs, style: str, floor: float) -> None:
    plan = wsd(
        [TOTAL], WARM, inclusive="start", decay=Decay([DECAY], of="explicit", shape=style, min_ratio=floor)
    )
    assert plan.factors() == pytest.approx([theirs(k, style, floor) for k in range(TOTAL)], abs=1e-12)


def test_mirror_and_square_of_epfml() -> None:
    """4.10: its cooldown shapes at the same points, and the cosine of everybody."""
    for shape, theirs in {
        "1-square": lambda p: 1 - p**2,
        "mirror_cosine": lambda p: 2 * (1 - p) - (1 + math.cos(math.pi * p)) / 2,
    }.items():
        plan = wsd(
            [TOTAL], 0, inclusive="start", decay=Decay([DECAY], of="explicit", shape=shape, min_ratio=0.0)
        )
        assert plan.factors()[-DECAY:] == pytest.approx([theirs(j / DECAY) for j in range(DECAY)], abs=1e-12)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    annealing = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, TOTAL, eta_min=0.1)
    found = []
    for _ in range(TOTAL):
        found.append(annealing.get_last_lr()[0])
        optimizer.step()
        annealing.step()
    # torch's is a recursion, whose rounding errors add up.
    assert cosine(TOTAL, inclusive="start").factors() == pytest.approx(found, abs=1e-9)
