"""Schedules of one model: constant, cosine and one cycle, as functions that a config names as ``class_path``.

Without ``updates`` they are as long as the run: a `RunSchedule`, which a schedule callback asks for the
schedule of the Trainer's number of updates.
"""

import math
from functools import partial
from typing import Any, overload

from zoo.schedules._ramps import stable_segments, warmup_segments
from zoo.schedules.builders import cyclic_cosine
from zoo.schedules.schedule import AfterEnd, RunSchedule, Schedule
from zoo.schedules.segments import Budget, Inclusive, Segment, whole


@overload
def constant(
    updates: int, warmup: float = ..., warmup_start: float = ..., inclusive: Inclusive = ...
) -> Schedule: ...
@overload
def constant(
    updates: None = ..., warmup: float = ..., warmup_start: float = ..., inclusive: Inclusive = ...
) -> RunSchedule: ...
def constant(
    updates: int | None = None, warmup: float = 0, warmup_start: float = 0.0, inclusive: Inclusive = "end"
) -> RunSchedule:
    """Warm-up, then the peak learning rate, also after the end.

    Args:
        updates: How long the schedule is; None for as long as the run.
        warmup: Linear warm-up in updates, or as a share of the schedule, below 1.
        warmup_start: The factor that the warm-up comes from.
        inclusive: Whether the warm-up's last update is at the peak (``end``) or its first at ``warmup_start``
            (``start``).

    Raises:
        ValueError: the warm-up is longer than the schedule.
    """
    if updates is None:
        return RunSchedule(partial(constant, warmup=warmup, warmup_start=warmup_start, inclusive=inclusive))
    updates = whole("updates", updates)
    length = _length(warmup, updates)
    head = warmup_segments(length, warmup_start, inclusive, updates)
    return Schedule((*head, *stable_segments(length, updates)), after_end="peak")


@overload
def cosine(
    updates: int, warmup: float = ..., min_ratio: float = ..., inclusive: Inclusive = ...,
    warmup_start: float = ..., after_end: AfterEnd = ...,
) -> Schedule: ...  # fmt: skip
@overload
def cosine(
    updates: None = ..., warmup: float = ..., min_ratio: float = ..., inclusive: Inclusive = ...,
    warmup_start: float = ..., after_end: AfterEnd = ...,
) -> RunSchedule: ...  # fmt: skip
def cosine(
    updates: int | None = None,
    warmup: float = 0,
    min_ratio: float = 0.1,
    inclusive: Inclusive = "end",
    warmup_start: float = 0.0,
    after_end: AfterEnd = "hold",
) -> RunSchedule:
    """Warm-up and half a cosine: one model, for one budget.

    Args:
        updates: The budget; None for as long as the run.
        warmup: Linear warm-up in updates, or as a share of the budget, below 1.
        min_ratio: The last factor.
        inclusive: Which end of a ramp has an update of its own (`Segment`).
        warmup_start: The factor that the warm-up comes from.
        after_end: What follows the end.

    Raises:
        ValueError: the warm-up is as long as the budget or longer.
    """
    options: dict[str, Any] = {
        "min_ratio": min_ratio,
        "inclusive": inclusive,
        "warmup_start": warmup_start,
        "after_end": after_end,
    }
    if updates is None:
        return RunSchedule(partial(cosine, warmup=warmup, **options))
    updates = whole("updates", updates)
    return cyclic_cosine([updates], _length(warmup, updates), **options)


@overload
def one_cycle(
    updates: int, pct_start: float = ..., div_factor: float = ..., final_div_factor: float = ...
) -> Schedule: ...
@overload
def one_cycle(
    updates: None = ..., pct_start: float = ..., div_factor: float = ..., final_div_factor: float = ...
) -> RunSchedule: ...
def one_cycle(
    updates: int | None = None,
    pct_start: float = 0.3,
    div_factor: float = 25.0,
    final_div_factor: float = 1e4,
) -> RunSchedule:
    """One cosine up and one down, as `torch.optim.lr_scheduler.OneCycleLR` has them; momentum stays as it is.

    The factor of update k (from 0) rises from 1 / div_factor at k = 0 to 1 at k = pct_start * updates - 1
    and falls to 1 / (div_factor * final_div_factor) at the last update. The learning rate of the optimizer
    is the peak, which torch calls ``max_lr``.

    Args:
        updates: How long the schedule is (``total_steps``); None for as long as the run.
        pct_start: Share of the updates in which the learning rate rises.
        div_factor: The peak over the first learning rate.
        final_div_factor: The first learning rate over the last.

    Raises:
        ValueError: no updates, a share beyond [0, 1], or factors that are not positive.

    >>> [round(factor, 3) for factor in one_cycle(10, pct_start=0.3).factors()]
    [0.04, 0.52, 1.0, 0.95, 0.812, 0.611, 0.389, 0.188, 0.05, 0.0]
    """
    if updates is None:
        return RunSchedule(
            partial(
                one_cycle,
                pct_start=pct_start,
                div_factor=div_factor,
                final_div_factor=final_div_factor,
            )
        )
    updates = whole("updates", updates)
    if updates < 1:
        raise ValueError(f"updates must be at least 1, got {updates}")
    if not 0 <= pct_start <= 1:
        raise ValueError(f"pct_start must be a share of the updates from 0 to 1, got {pct_start}")
    for name, value in (("div_factor", div_factor), ("final_div_factor", final_div_factor)):
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} must be a positive number, got {value}")
    first = 1 / div_factor
    peak = float(pct_start * updates) - 1  # the update at the peak, a fraction maybe, as in torch
    rising = max(math.floor(peak) + 1, 0) if peak > 0 else 0
    segments = []
    if rising:
        segments.append(Segment("warmup", 0, rising, first, 1.0, "cosine", span=(0, peak)))
    if rising < updates:
        last, span = first / final_div_factor, (peak, updates - 1)
        segments.append(Segment("decay", rising, updates, 1.0, last, "cosine", span=span))
    return Schedule(segments, [Budget(updates, None, updates)])


def _length(warmup: float, updates: int) -> int:
    """A warm-up in updates, of a share of them or of their number."""
    return round(warmup * updates) if 0 < warmup < 1 else whole("warmup", warmup)
