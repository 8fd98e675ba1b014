"""What `zoo plan` says of a schedule, as text: its segments, its checkpoints, its cost, and how it compares.

The comparison is the convex bound of the last iterate (`zoo.schedules.convex_bound`) at each budget,
and, given the constants of a multi-power law, the loss that it forecasts.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from zoo.schedules.bounds import convex_bound
from zoo.schedules.builders import cyclic_cosine, wsd, wsds
from zoo.schedules.curves import cosine
from zoo.schedules.decay import Decay
from zoo.schedules.power_law import PowerLaw
from zoo.schedules.schedule import Schedule
from zoo.schedules.segments import Budget
from zoo.schedules.staircase import staircase


@dataclass(frozen=True)
class Scored:
    """How a way to serve the budgets is expected to do.

    Args:
        updates: Updates computed in all.
        bounds: The convex bound at each budget, for the base rate that is best for the last budget
            of a schedule without branches.
        losses: The forecast loss at each budget; empty without a law.
    """

    updates: int
    bounds: tuple[float, ...]
    losses: tuple[float, ...] = ()


def alternatives(plan: Schedule) -> dict[str, list[Schedule]]:
    """Other ways to serve a schedule's budgets, with its warm-up and its decays.

    Args:
        plan: The schedule. Budgets that it does not decay for get decays of 10 % to .1.

    Returns:
        Names to schedules, one for each run, none where budgets lie too close together for their decays or
        warm-ups. WSD-S comes by the budget and by WSD's compute; the cosine needs
        a run for each budget.
    """
    budgets = [budget.updates for budget in plan.budgets]
    warmup = plan.segments[0].end if plan.segments[0].phase == "warmup" else 0
    falling = [
        s for s in (*plan.segments, *(b.branch for b in plan.budgets)) if s is not None and s.phase == "decay"
    ]
    low = falling[-1].end_factor if falling else 0.1
    lengths: list[float] = [
        budget.post - budget.pre
        if budget.pre is not None and budget.pre < budget.post
        else round(0.1 * budget.updates)
        for budget in plan.budgets
    ]
    steady = [segment for segment in falling if segment.shape != "cosine"]
    shape, parameter = (steady[-1].shape, steady[-1].parameter) if steady else ("linear", None)

    def decay() -> Decay:
        return Decay(lengths, "explicit", shape, low, parameter)

    builders: dict[str, Callable[[], list[Schedule]]] = {
        "WSD": lambda: [wsd(budgets, warmup, decay())],
        "WSD-S": lambda: [wsds(budgets, warmup, decay())],
        "WSD-S, WSD's compute": lambda: [wsds(budgets, warmup, decay(), compute_matched=True)],
        "cyclic cosine": lambda: [cyclic_cosine(budgets, warmup, low)],
        "cosine, a run each": lambda: [cosine(total, warmup, low) for total in budgets],
    }
    found: dict[str, list[Schedule]] = {}
    for name, make in builders.items():
        try:
            found[name] = make()
        except ValueError:  # the report says so
            found[name] = []
    return found


def score(plans: Sequence[Schedule], peak: float = 1.0, law: PowerLaw | None = None) -> Scored:
    """The convex bounds and the forecast losses of one way to serve budgets.

    Args:
        plans: Its runs.
        peak: The peak learning rate, for the forecast.
        law: The constants of a model; None forecasts nothing.

    Returns:
        The scores, by budget. Merged models are scored as their last snapshot is.
    """
    bounds: list[float] = []
    losses: list[float] = []
    for plan in plans:
        levels, lengths = staircase(plan, plan.end)
        rate = convex_bound(levels, lengths=lengths).rate
        for budget in plan.budgets:
            levels, lengths = staircase(branch_to(plan, budget), budget.post)
            bounds.append(convex_bound(levels, lengths=lengths).at(rate))
            if law is not None:
                losses.append(float(law.loss(peak * levels, lengths=lengths)[0]))
    return Scored(sum(plan.total_updates for plan in plans), tuple(bounds), tuple(losses))


def branch_to(plan: Schedule, budget: Budget) -> Schedule:
    """The schedule of the sub-run that a budget's model is made on."""
    for sub_run in plan.sub_runs:
        if any(other.updates == budget.updates for other in sub_run.schedule.budgets):
            return sub_run.schedule
    raise ValueError(f"the schedule has no budget of {budget.updates} updates")


def report(
    plan: Schedule,
    peaks: Sequence[float] = (),
    tokens: int | None = None,
    law: PowerLaw | None = None,
) -> str:
    """A schedule in words and tables.

    Args:
        plan: The schedule.
        peaks: The peak learning rates of the groups of parameters.
        tokens: Tokens (or items) of an update.
        law: Constants for a forecast, for which the first peak is taken.

    Returns:
        Lines of text.
    """
    many = f", {_short(plan.total_updates * tokens)} tokens of {tokens:,} an update" if tokens else ""
    beside = plan.total_updates - plan.end
    extra = f" ({beside:,} of them on branches)" if beside else ""
    rates = " and ".join(f"{peak:g}" for peak in dict.fromkeys(peaks))
    lines = [f"{plan.total_updates:,} updates in all{extra}{many}"]
    lines += [f"peak learning rate {rates}"] if rates else []
    lines += ["", *_table(("updates", "phase", "factor", "shape"), [*_segments(plan)])]
    if plan.budgets:
        head = (
            "budget",
            "decays from",
            "made after",
            "computed by then",
            "river time",
            *(["tokens"] if tokens else []),
        )
        lines += ["", *_table(head, [*_budgets(plan, tokens)])]
        lines += ["", *_comparison(plan, peaks[0] if peaks else 1.0, law)]
    return "\n".join(lines)


def _segments(plan: Schedule) -> list[tuple[str, ...]]:
    rows = [(segment, "") for segment in plan.segments]
    rows += [(b.branch, " (branch)") for b in plan.budgets if b.branch is not None]
    return [
        (
            f"{segment.start:,} - {segment.end:,}",
            segment.phase + note,
            f"{segment.start_factor:g}"
            if segment.start_factor == segment.end_factor
            else f"{segment.start_factor:g} -> {segment.end_factor:g}",
            "" if segment.start_factor == segment.end_factor else segment.shape,
        )
        for segment, note in rows
    ]


def _budgets(plan: Schedule, tokens: int | None) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    left = 0
    for budget in plan.budgets:
        made = f"{budget.post:,}" + (f" (merge of {len(budget.merge.steps)})" if budget.merge else "")
        start = "" if budget.pre is None or budget.merge else f"{budget.pre:,}"
        river = f"{branch_to(plan, budget).river_time(budget.post):,.0f}"
        rows.append((f"{budget.updates:,}", start, made, f"{left + budget.post:,}", river))
        if tokens:
            rows[-1] = (*rows[-1], _short(budget.post * tokens))
        left += len(budget.branch) if budget.branch is not None else 0
    return rows


def _comparison(plan: Schedule, peak: float, law: PowerLaw | None) -> list[str]:
    """The plan beside its alternatives."""
    ways = {"this plan": [plan]} | alternatives(plan)
    names = [f"{budget.updates:,}" for budget in plan.budgets]
    scores = {name: score(plans, peak, law) for name, plans in ways.items() if plans}
    unit = scores["this plan"].bounds[-1]
    rows = [
        (
            name,
            f"{s.updates:,}",
            *(f"{bound / unit:.3f}" for bound in s.bounds),
            *(f"{loss:.3f}" for loss in s.losses),
        )
        for name, s in scores.items()
    ]
    head = (
        "convex bound",
        "updates",
        *names,
        *([f"loss {name}" for name in names] if law else []),
    )
    notes = [
        "Bounds are those of the last iterate on a convex problem, in units of this plan's at its last",
        "budget; each way has its own best base rate for its last budget. Merges count as if not merged.",
    ]
    notes += [f"{name}: the budgets lie too close together for it." for name in ways if name not in scores]
    if law is not None:
        notes.append("Losses are the multi-power law's, which was fitted without jumps back to the peak.")
    return [*_table(head, rows), *notes]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = []
    for row in (head, *rows):
        cells = [
            cell.ljust(width) if n == 0 else cell.rjust(width)
            for n, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return lines


def _short(number: float) -> str:
    """A large number with one unit letter.

    >>> _short(2_048_000), _short(52.43e9)
    ('2.05M', '52.4B')
    """
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{letter}"
    return f"{number:g}"
