"""`Schedule`: a learning-rate schedule as plain data, whose cost can be inspected before running it.

A schedule is the trunk of a run, cut into segments, and the budgets whose models it makes. WSD (Hu et al.
2024, arXiv 2404.06395) decays beside the trunk: each budget but the last has a branch that starts at a point
of the trunk and is thrown away after its end. WSD-S (Wen et al. 2024,
arXiv 2410.05192) decays on the trunk itself.

Everything is counted in updates of the optimizer; ``factor(k)`` multiplies the peak learning rate in
update number k, counted from 0. Nothing here needs torch or Lightning. Learning rates are functions of
the update alone, so there is nothing to save for a resume, and two schedules that agree up to update k
are the same schedule to a run that stands at k. A `RunSchedule` leaves its length to the run.
"""

import hashlib
import json
import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from zoo.schedules.decay import Decay
from zoo.schedules.segments import Budget, Inclusive, Merge, Phase, Segment, whole

AfterEnd = Literal["hold", "peak"]
_FORMAT = 2  # of the JSON
_CHUNK = 1 << 18  # updates at once: 2 MB


@dataclass(frozen=True)
class SubRun:
    """A part of a plan that runs without going back.

    Args:
        start: The update that it goes on from: 0, or that of an earlier budget's pre-decay checkpoint.
        schedule: The schedule from update 0 to this sub-run's end, without branches.
    """

    start: int
    schedule: "Schedule"


class RunSchedule:
    """A schedule that is as long as the run: what `constant`, `cosine` and `one_cycle` make without
    ``updates``.

    `zoo.callbacks.LRSchedule` and `zoo.callbacks.WSDS` give it the Trainer's number of updates. A `Schedule`
    is one, whose length no run changes.

    Args:
        build: Makes the schedule of a number of updates.

    >>> from zoo.schedules import cosine
    >>> run = RunSchedule(lambda updates: cosine(updates, warmup=updates // 20))
    >>> run.for_run(100).segments[0].end
    5
    """

    def __init__(self, build: Callable[[int], "Schedule"]) -> None:
        self._build = build

    def for_run(self, updates: int) -> "Schedule":
        """The schedule of a run.

        Raises:
            ValueError: it does not fit into so few updates.
        """
        return self._build(whole("updates", updates))


class Schedule(RunSchedule):
    """A learning-rate schedule: segments of a run, and the budgets that it serves.

    The builders (`wsds`, `wsd`, `cosine`, ...) are the usual way to make one.

    Args:
        segments: The trunk, from update 0, without gaps.
        budgets: By number of updates.
        after_end: The factor after the last segment: that segment's last level (``hold``) or 1 (``peak``).

    Raises:
        ValueError: gaps or overlaps, or budgets that the segments do not serve.

    >>> from zoo.schedules import wsds
    >>> plan = wsds([500, 1000, 2000], warmup=50)
    >>> [round(plan.factor(step), 3) for step in (24, 49, 449, 450, 499, 500)]
    [0.5, 1.0, 1.0, 0.982, 0.1, 1.0]
    >>> plan.total_updates, [(budget.pre, budget.post) for budget in plan.budgets]
    (2000, [(450, 500), (900, 1000), (1800, 2000)])
    """

    # No dataclass: configs may then name the functions that build one (jsonargparse closes dataclasses
    # to them).
    def __init__(
        self, segments: Sequence[Segment], budgets: Sequence[Budget] = (), after_end: AfterEnd = "hold"
    ) -> None:
        self.segments, self.budgets, self.after_end = tuple(segments), tuple(budgets), after_end
        self._starts = [segment.start for segment in self.segments]
        if self.after_end not in get_args(AfterEnd):
            raise ValueError(
                f"after_end must be one of {', '.join(get_args(AfterEnd))}, got {self.after_end!r}"
            )
        if not self.segments:
            raise ValueError("a schedule needs at least one segment")
        expected = 0
        for segment in self.segments:
            if segment.start != expected:
                raise ValueError(
                    f"a segment starts at update {segment.start}; the one before it ends at {expected}"
                )
            expected = segment.end
        for before, budget in zip((None, *self.budgets), self.budgets, strict=False):
            if before is not None and not before.updates < budget.updates:
                raise ValueError(
                    f"budgets must increase, got {before.updates} and then {budget.updates}: sort "
                    "them, and name each once"
                )
            self._check_budget(budget)
        starts = [budget.branch.start for budget in self.budgets if budget.branch is not None]
        if starts != sorted(starts):
            raise ValueError(f"branches must leave the trunk in the order of their budgets, got {starts}")

    def _check_budget(self, budget: Budget) -> None:
        branch = budget.branch
        if branch is not None and (branch.start, branch.end) != (budget.pre, budget.post):
            raise ValueError(
                f"the branch of budget {budget.updates} runs from {branch.start} to {branch.end}, its "
                f"checkpoints stand at {budget.pre} and {budget.post}"
            )
        if budget.merge is not None and budget.merge.end != budget.post:
            raise ValueError(
                f"the merge of budget {budget.updates} ends at {budget.merge.end}, not at {budget.post}"
            )
        last = budget.pre if branch is not None and budget.pre is not None else budget.post
        if not 0 < last <= self.end or (budget.pre is not None and not 0 <= budget.pre <= budget.post):
            raise ValueError(
                f"budget {budget.updates}: its checkpoints at {budget.pre} and {budget.post} do not "
                f"lie in the {self.end} updates of the schedule"
            )

    def __eq__(self, other: object) -> bool:
        """Whether the segments, the budgets and what follows the end are the same."""
        return isinstance(other, Schedule) and self._fields() == other._fields()

    def __hash__(self) -> int:
        """Of the fields."""
        return hash(self._fields())

    def __repr__(self) -> str:
        """As Python would build it."""
        return f"Schedule({list(self.segments)}, {list(self.budgets)}, {self.after_end!r})"

    def _fields(self) -> tuple[tuple[Segment, ...], tuple[Budget, ...], AfterEnd]:
        return self.segments, self.budgets, self.after_end

    def for_run(self, updates: int) -> "Schedule":
        """Itself, however long the run is."""
        return self

    @property
    def end(self) -> int:
        """Updates of the trunk."""
        return self.segments[-1].end

    @property
    def total_updates(self) -> int:
        """Updates that have to be computed in all, those of branches included."""
        return self.end + sum(len(budget.branch) for budget in self.budgets if budget.branch is not None)

    def factor(self, step: int) -> float:
        """What multiplies the peak learning rate in update number ``step`` (from 0) of the trunk."""
        segment = self._segment(step)
        if segment is not None:
            return segment.factor(step)
        return 1.0 if self.after_end == "peak" else self.segments[-1].end_factor

    def phase(self, step: int) -> Phase:
        """The phase of update number ``step``; past the end, stable at the peak and decay if the last
        level holds.
        """
        segment = self._segment(step)
        if segment is not None:
            return segment.phase
        return "stable" if self.after_end == "peak" else self.segments[-1].phase

    def _segment(self, step: int) -> Segment | None:
        if step < 0:
            raise ValueError(f"updates are counted from 0, got {step}")
        if step >= self.end:
            return None
        return self.segments[bisect_right(self._starts, step) - 1]

    def factors(self, stop: int | None = None) -> list[float]:
        """The factors of updates 0 to ``stop - 1``, or of the whole trunk."""
        stop = self.end if stop is None else stop
        inside = [
            segment.factor(k)
            for segment in self.segments
            for k in range(segment.start, min(segment.end, stop))
        ]
        return inside + [self.factor(self.end)] * max(stop - self.end, 0)

    def factors_at(self, steps: NDArray[Any]) -> NDArray[np.float64]:
        """The factors of many updates (N,) of the trunk, up to rounding; a fraction is a point between
        two.
        """
        found = np.full(len(steps), self.factor(self.end))
        place = np.searchsorted(self._starts, steps, side="right") - 1
        for number, segment in enumerate(self.segments):
            own = (place == number) & (steps < self.end)
            found[own] = segment.factors_at(steps[own])
        return found

    def river_time(self, stop: int | None = None) -> float:
        """The sum of the factors of updates 0 to ``stop - 1``: progress along the river, in updates at
        the peak.

        Below the edge of stability, gradient descent moves along the valley's floor by the sum of its
        learning rates (arXiv 2410.05192, section 3), whatever their order.
        """
        stop = self.end if stop is None else stop
        held = max(stop - self.end, 0) * self.factor(self.end)
        return math.fsum([*(segment.sum(stop) for segment in self.segments), held])

    @property
    def sub_runs(self) -> tuple[SubRun, ...]:
        """What to run, in order: each branch from the branch point before, then the rest of the
        trunk.
        """
        sub_runs: list[SubRun] = []
        start = 0
        done: list[Budget] = []
        for budget in self.budgets:
            if budget.branch is not None:
                cut = self.cut(budget.branch.start)
                own = [b for b in self.budgets if b.branch is None and b.post <= budget.branch.start]
                made = replace(budget, branch=None)
                branch = Schedule((*cut.segments, budget.branch), _by_updates([*own, made]))
                sub_runs.append(SubRun(start, branch))
                start = budget.branch.start
            else:
                done.append(budget)
        return (*sub_runs, SubRun(start, Schedule(self.segments, tuple(done), self.after_end)))

    def cut(self, stop: int) -> "Schedule":
        """The first ``stop`` updates as a schedule of their own, with the same factors.

        Raises:
            ValueError: there are no updates before ``stop``, or it lies within a ramp, which cannot be cut.
        """
        kept: list[Segment] = []
        for segment in self.segments:
            if segment.end <= stop:
                kept.append(segment)
            elif segment.start < stop:
                if segment.start_factor != segment.end_factor:
                    raise ValueError(
                        f"update {stop} lies within the {segment.phase} from {segment.start} to "
                        f"{segment.end}: a schedule can be cut in a stable phase or at the end of a "
                        "ramp"
                    )
                kept.append(replace(segment, end=stop))
        inside = [b for b in self.budgets if b.branch is None and b.post <= stop]
        return Schedule(tuple(kept), tuple(inside))

    def with_decay(
        self,
        step: int,
        updates: int,
        decay: Decay | None = None,
        inclusive: Inclusive = "end",
        then: Literal["stop", "continue"] = "stop",
    ) -> "Schedule":
        """The same past with a decay that begins now: what a run does when it is told to decay.

        Args:
            step: The update at which it begins, in a stable phase.
            updates: Its length.
            decay: How it falls, by default linearly to a tenth; the length that it names is not used.
            inclusive: See `Segment`.
            then: ``stop`` ends the schedule after the decay; ``continue`` goes back to the plan, as
                WSD-S does.

        Raises:
            ValueError: ``step`` lies in a ramp, or the plan that would go on has another decay in these
                updates.
        """
        before = self.cut(step) if step <= self.end else self._held(step)
        top = before.segments[-1].end_factor
        ramp_down = (decay or Decay()).segment(step, step + updates, inclusive, top)
        made = Budget(step + updates, step, step + updates)
        if then == "stop":
            return Schedule((*before.segments, ramp_down), _by_updates([*before.budgets, made]))
        for ramp in self.segments:
            if ramp.start_factor != ramp.end_factor and step < ramp.end and ramp.start < ramp_down.end:
                raise ValueError(
                    f"a decay of {updates} updates from update {step} runs into the {ramp.phase} that "
                    f"begins at update {ramp.start}: give it at most {ramp.start - step} updates, or "
                    "let the run stop after it"
                )
        rest = [segment for segment in self.segments if segment.end > ramp_down.end]
        after = [replace(segment, start=max(segment.start, ramp_down.end)) for segment in rest]
        later = [
            budget for budget in self.budgets if budget.branch is not None or budget.post > ramp_down.end
        ]
        kept = _by_updates([*before.budgets, made, *later])
        return Schedule((*before.segments, ramp_down, *after), kept, self.after_end)

    def _held(self, step: int) -> "Schedule":
        """The trunk drawn out to ``step`` updates, beyond its end."""
        held = self.factor(self.end)
        tail = Segment(self.phase(self.end), self.end, step, held, held)
        return Schedule((*self.segments, tail), self.budgets, self.after_end)

    def first_difference(self, other: "Schedule", stop: int) -> int | None:
        """The first of the updates 0 to ``stop - 1`` whose factors differ between two trunks; None if
        none does.
        """
        edges = {0, stop, *self._starts, *other._starts, self.end, other.end}
        for start, end in pairwise(sorted(edge for edge in edges if edge <= stop)):
            if self._curve(start) == other._curve(start):
                continue
            for first in range(start, end, _CHUNK):
                steps = np.arange(first, min(first + _CHUNK, end))
                # Up to rounding; the factors that a run uses decide.
                for k in steps[self.factors_at(steps) != other.factors_at(steps)].tolist():
                    if self.factor(k) != other.factor(k):
                        return k
        return None

    def _curve(self, step: int) -> tuple[Any, ...]:
        segment = self._segment(step)
        return (self.factor(step),) if segment is None else segment.curve

    def to_json(self) -> str:
        """The schedule as JSON; `from_json` gives back an equal one."""
        segments, budgets = map(asdict, self.segments), map(asdict, self.budgets)
        data = {"segments": list(segments), "budgets": list(budgets), "after_end": self.after_end}
        return json.dumps({"format": _FORMAT, **data})

    @staticmethod
    def from_json(text: str) -> "Schedule":
        """The schedule that `to_json` wrote.

        Raises:
            ValueError: it is not such a text, or has another format.
        """
        try:
            data: dict[str, Any] = json.loads(text)
            if data["format"] != _FORMAT:
                raise ValueError(f"format {data['format']} is not known here, which reads {_FORMAT}")
            budgets = tuple(
                Budget(
                    **{
                        **budget,
                        "branch": budget["branch"] and Segment(**budget["branch"]),
                        "merge": budget["merge"] and Merge(**budget["merge"]),
                    }
                )
                for budget in data["budgets"]
            )
            return Schedule(
                tuple(Segment(**segment) for segment in data["segments"]), budgets, data["after_end"]
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"this is not a schedule of the zoo: {error}") from error

    @property
    def hash(self) -> str:
        """Twelve hexadecimal digits that equal schedules share."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:12]


def _by_updates(budgets: list[Budget]) -> tuple[Budget, ...]:
    return tuple(sorted(budgets, key=lambda budget: budget.updates))
