"""Schedules for one or several budgets, as functions that return a `Schedule`; a config names them as
``class_path``. `zoo.schedules.curves` has those of a single model.

Budgets T_1 < T_2 < ... are updates. A decay of budget i takes d_i updates, 10 % of the budget in the
paper's runs (Wen et al. 2024, arXiv 2410.05192; the breakpoints of the authors' own configs are tests
of these functions):

* `wsd`: falls from T_i - d_i to T_i on a branch; T_n plus the d_i of all budgets but the last.
* `wsds`: falls from T_i - d_i to T_i on the trunk; T_n updates. Matched in compute, budget i ends at
  E_i = T_i plus the d_j before it, which is what `wsd` has computed by then.
* `cyclic_cosine`: falls from T_(i-1) + warm-up to T_i, and warms up again; T_n updates.
* `wsm`: never falls; the model is a mean of snapshots before T_i; T_n updates.

Which end of a ramp has an update of its own differs by library. With a warm-up of W, a decay of D and updates
counted from 0 (`tests/schedules/test_peers.py` has them all, equal to rounding):

* transformers, optax, Levanter, lingua, nanotron, and Megatron-LM (which counts samples): k / W, and j / D
  for number j of the decay: ``inclusive: start``.
* OLMo-core: (k + 1) / W and (j + 1) / D, as steps are counted from 1 and a boundary belongs to the period
  before it: ``inclusive: end``, the default, with a decay ``of: period``. To zero, its last update does
  nothing; ours aim one update further.
* torchtitan: (k + 1) / W, and a decay of D that is ours of D - 1 updates to ``min_ratio: 0``.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Literal

from zoo.schedules._ramps import stable_segments, warmup_segments
from zoo.schedules.decay import Decay
from zoo.schedules.schedule import AfterEnd, Schedule
from zoo.schedules.segments import Budget, Inclusive, Merge, Segment, whole
from zoo.schedules.shapes import Shape

_MERGED = Decay(min_ratio=0.0)  # what equal weights imitate


def cyclic_cosine(
    budgets: list[int],
    warmup: int = 0,
    min_ratio: float = 0.1,
    rewarmup: int | None = None,
    rewarmup_from: Literal["zero", "previous"] = "zero",
    inclusive: Inclusive = "end",
    warmup_start: float = 0.0,
    after_end: AfterEnd = "hold",
) -> Schedule:
    """Half a cosine to each budget, one after the other in one run.

    Args:
        budgets: Updates, increasing.
        warmup: Updates of linear warm-up.
        min_ratio: The last factor of each cosine.
        rewarmup: Updates of warm-up of the later cycles; None takes ``warmup``.
        rewarmup_from: Where they come from: ``zero`` as in the authors' runs, though the factor was
            ``min_ratio`` one update earlier, or the ``previous`` level.
        inclusive: Which end of a ramp has an update of its own (`Segment`).
        warmup_start: The factor that the first warm-up comes from.
        after_end: What follows the end.

    Raises:
        ValueError: budgets that do not increase, or a warm-up that fills its cycle.
    """
    budgets, warmup = _checked(budgets), whole("warmup", warmup)
    rewarmup = warmup if rewarmup is None else whole("rewarmup", rewarmup)
    fall = Decay(shape="cosine", min_ratio=min_ratio)
    segments: list[Segment] = []
    for start, end in pairwise([0, *budgets]):
        length = warmup if start == 0 else rewarmup
        low = warmup_start if start == 0 else min_ratio if rewarmup_from == "previous" else 0.0
        segments += warmup_segments(length, low, inclusive, end - start, start)
        if start + length == end:
            raise ValueError(
                f"a warm-up of {length} updates leaves nothing of the cycle from {start} to {end}"
            )
        segments.append(fall.segment(start + length, end, inclusive))
    return Schedule(tuple(segments), tuple(Budget(end, None, end) for end in budgets), after_end)


def wsd(
    budgets: list[int],
    warmup: int = 0,
    decay: Decay | float | list[float] = 0.1,
    inclusive: Inclusive = "end",
    warmup_start: float = 0.0,
    after_end: AfterEnd = "hold",
) -> Schedule:
    """Warmup-stable-decay: each budget decays on a branch of its own, from a checkpoint of the stable phase.

    With one budget there is no branch: warm-up, constant, cooldown.

    Args:
        budgets: Updates, increasing.
        warmup: Updates of linear warm-up.
        decay: How long the decays are, and how they fall; a number is a length (`Decay`).
        inclusive: ``end``: the first update of a decay is already lower and the last is at ``min_ratio``
            (one short of it where that is 0, which would be an update that does nothing); ``start``: as
            in optax and transformers.
        warmup_start: The factor that the warm-up comes from.
        after_end: What follows the last budget.

    Raises:
        ValueError: budgets that do not increase, or decays that begin before the warm-up is over.
    """
    budgets, warmup = _checked(budgets), whole("warmup", warmup)
    decay = Decay.given(decay)
    lengths = decay.updates(budgets)
    made: list[Budget] = []
    for total, length in zip(budgets, lengths, strict=True):
        pre = total - length
        _check_room(total, length, warmup, f"the warm-up of {warmup} updates")
        branch = None
        if length and total != budgets[-1]:
            branch = decay.segment(pre, total, inclusive)
        made.append(Budget(total, pre, total, branch))
    if any(after.pre < before.pre for before, after in pairwise(made)):  # type: ignore[operator]
        raise ValueError(
            f"decays of {lengths} updates would begin after {[budget.pre for budget in made]} updates: a "
            "later budget must not branch off before an earlier one; give its decay fewer updates"
        )
    start, end = budgets[-1] - lengths[-1], budgets[-1]
    trunk = [*warmup_segments(warmup, warmup_start, inclusive, end), *stable_segments(warmup, start)]
    if lengths[-1]:
        trunk.append(decay.segment(start, end, inclusive))
    return Schedule(tuple(trunk), tuple(made), after_end)


def wsds(
    budgets: list[int],
    warmup: int = 0,
    decay: Decay | float | list[float] = 0.1,
    compute_matched: bool = False,
    rewarmup: int = 0,
    inclusive: Inclusive = "end",
    warmup_start: float = 0.0,
    after_end: AfterEnd = "hold",
) -> Schedule:
    """WSD-S: every decay on the trunk, and after it the learning rate jumps back to its peak.

    Args:
        budgets: Updates, increasing.
        warmup: Updates of linear warm-up.
        decay: How long the decays are, and how they fall; a number is a length (`Decay`).
        compute_matched: Give each budget the updates that `wsd` spends on all budgets up to it: budget
            i ends at T_i plus the decays before it (the authors' 12,500, 26,250, 53,750 for 12,500,
            25,000, 50,000).
        rewarmup: Updates from a decay's end back to the peak. The authors use none.
        inclusive: ``end``: the first update of a decay is already lower and the last is at ``min_ratio``
            (one short of it where that is 0, which would be an update that does nothing); ``start``: as
            in optax and transformers.
        warmup_start: The factor that the warm-up comes from.
        after_end: What follows the last budget.

    Raises:
        ValueError: budgets that do not increase, or decays for which there is no room.
    """
    budgets, warmup, rewarmup = _checked(budgets), whole("warmup", warmup), whole("rewarmup", rewarmup)
    decay = Decay.given(decay)
    lengths = decay.updates(budgets)
    segments = warmup_segments(warmup, warmup_start, inclusive, budgets[-1])
    made: list[Budget] = []
    spent = 0
    for total, length in zip(budgets, lengths, strict=True):
        end = total + (spent if compute_matched else 0)
        busy = segments[-1].end if segments else 0
        if made and rewarmup and made[-1].post == busy:
            segments += warmup_segments(rewarmup, decay.min_ratio, inclusive, end - busy, busy)
            busy += rewarmup
        before = f"budget {made[-1].updates}" if made else f"the warm-up of {warmup} updates"
        _check_room(total, length, busy, before, end)
        segments += stable_segments(busy, end - length)
        if length:
            segments.append(decay.segment(end - length, end, inclusive))
        made.append(Budget(total, end - length, end))
        spent += length
    return Schedule(tuple(segments), tuple(made), after_end)


def wsm(
    budgets: list[int],
    warmup: int = 0,
    decay: Decay | float | list[float] = 0.1,
    snapshots: int = 10,
    inclusive: Inclusive = "end",
    warmup_start: float = 0.0,
) -> Schedule:
    """Warmup-stable-merge (arXiv 2507.17634): no decay at all; a weighted mean of snapshots stands in for it.

    A linear decay to 0, the default, weighs all snapshots alike, which is LAWA and SWA.

    Args:
        budgets: Updates, increasing.
        warmup: Updates of linear warm-up.
        decay: The decay that the mean imitates (`Decay`), whose length is the window that is averaged over; a
            number is a length, of a linear decay to 0. In the paper the length matters most, before the
            number of snapshots.
        snapshots: How many are merged, the first at the window's start and the last at the budget. The
            window is shortened to a multiple of their distance.
        inclusive: Which end of the warm-up has an update of its own (`Segment`).
        warmup_start: The factor that the warm-up comes from.

    Raises:
        ValueError: budgets that do not increase, fewer than two snapshots, or windows too short for them.
    """
    budgets, warmup, snapshots = _checked(budgets), whole("warmup", warmup), whole("snapshots", snapshots)
    decay = replace(_MERGED, length=decay) if not isinstance(decay, Decay) else decay
    lengths = decay.updates(budgets)
    if snapshots < 2:
        raise ValueError(f"a merge needs at least 2 snapshots, got {snapshots}")
    made = []
    for total, length in zip(budgets, lengths, strict=True):
        every = length // (snapshots - 1)
        if every < 1:
            raise ValueError(
                f"the window of budget {total} has {length} updates, too few for {snapshots} "
                "snapshots: lengthen the decay or take fewer snapshots"
            )
        first = total - every * (snapshots - 1)
        _check_room(total, total - first, warmup, f"the warm-up of {warmup} updates")
        merge = Merge(first, total, every, decay.shape, decay.min_ratio, decay.parameter)
        made.append(Budget(total, total, total, merge=merge))
    head = warmup_segments(warmup, warmup_start, inclusive, budgets[-1])
    return Schedule((*head, *stable_segments(warmup, budgets[-1])), tuple(made), after_end="peak")


def from_breakpoints(
    points: list[int],
    shapes: list[Literal["constant", "warmup"] | Shape],
    warmup: int = 0,
    min_ratio: float = 0.1,
    parameter: float | None = None,
    inclusive: Inclusive = "end",
    warmup_start: float = 0.0,
    after_end: AfterEnd = "hold",
) -> Schedule:
    """A schedule by the points where its segments end, as the authors' configs write them (``haps``).

    Args:
        points: Updates at which the segments end, increasing; the last is the end of the run.
        shapes: What each segment is: ``constant`` at the peak, a ``warmup`` from 0 to it, or a decay's shape.
        warmup: Updates of linear warm-up, at the beginning of the first segment.
        min_ratio: The level that decays end at.
        parameter: The number that some shapes need.
        inclusive: Which end of a ramp has an update of its own (`Segment`).
        warmup_start: The factor that the first warm-up comes from.
        after_end: What follows the end.

    Returns:
        The schedule. Each decay's end is a budget, branched from its beginning if a constant segment
        leads to it.

    Raises:
        ValueError: points that do not increase, or not one shape for each.

    >>> plan = from_breakpoints([11250, 12500, 23750, 26250], ["constant", "linear"] * 2, warmup=2000)
    >>> [(budget.pre, budget.post) for budget in plan.budgets]
    [(11250, 12500), (23750, 26250)]
    """
    if len(shapes) != len(points):
        raise ValueError(
            f"each point ends a segment of one shape, got {len(points)} points and {len(shapes)} shapes"
        )
    points, warmup = [whole("points", point) for point in points], whole("warmup", warmup)
    if not points or any(after <= before for before, after in pairwise([0, *points])):
        raise ValueError(f"points must be numbers of updates that increase, got {points}")
    segments = warmup_segments(warmup, warmup_start, inclusive, points[0])
    budgets: list[Budget] = []
    for number, (start, end, shape) in enumerate(zip([warmup, *points], points, shapes, strict=False)):
        if shape == "constant":
            segments += stable_segments(start, end)
        elif shape == "warmup":
            segments += warmup_segments(end - start, 0.0, inclusive, end - start, start)
        elif start < end:
            fall = Decay(shape=shape, min_ratio=min_ratio, parameter=parameter)
            segments.append(fall.segment(start, end, inclusive))
            steady = number > 0 and shapes[number - 1] == "constant"
            budgets.append(Budget(end, start if steady else None, end))
    return Schedule(tuple(segments), tuple(budgets), after_end)


def _checked(budgets: Sequence[int]) -> list[int]:
    """Budgets as Python integers that increase."""
    totals = [whole("budgets", total) for total in budgets]
    if not totals or totals[0] < 1:
        raise ValueError(f"budgets must be numbers of updates, at least one, got {totals}")
    for before, after in pairwise(totals):
        if after <= before:
            raise ValueError(
                f"budgets must increase, got {before} and then {after}: sort them, and name each once"
            )
    return totals


def _check_room(total: int, length: int, busy: int, before: str, end: int | None = None) -> None:
    """Refuses a decay that would begin before ``busy``."""
    start = (total if end is None else end) - length
    if start < busy:
        raise ValueError(
            f"budget {total}: its decay of {length} updates would begin after update {start}, but "
            f"{before} lasts until {busy}. Shorten the decay (of: period takes a share of what lies "
            "between two budgets), or move the budget"
        )
