"""Pictures of schedules: in a terminal, and as PNG."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from zoo.io import atomic_path
from zoo.schedules.schedule import Schedule

_SAMPLES = 256  # updates that a character's mean is taken over, at most
_POINTS = 1 << 14  # updates that a picture shows, at most


def ascii_plot(plan: Schedule, width: int = 72, height: int = 8) -> str:
    """The factors over the updates as text: bars for the trunk, dots for branches, ``^`` where models
    are made.

    Args:
        plan: The schedule.
        width: Characters of the plot; each shows the mean over its updates.
        height: Lines of it.

    Returns:
        Lines, the first at a factor of 1.

    Raises:
        ValueError: fewer than 10 characters or 2 lines.

    >>> from zoo.schedules import wsds
    >>> print(ascii_plot(wsds([50, 100], warmup=10, decay=0.2), width=40, height=4))
    1.0 |   ##############   ##############
        |  ################  ################
        | ################## ###################
    0.0 |########################################
        0                   ^                   ^ 100
    """
    if width < 10 or height < 2:
        raise ValueError(f"a plot needs at least 10 characters and 2 lines, got {width} and {height}")
    edges = [n * plan.end // width for n in range(width + 1)]
    trunk = _means(plan, edges, 0)
    branches = [0.0] * width
    for sub_run, following in pairwise(plan.sub_runs):
        heights = _means(sub_run.schedule, edges, following.start)
        branches = [max(pair) for pair in zip(branches, heights, strict=True)]
    marks = [" "] * width
    for budget in plan.budgets:
        marks[min((budget.post - 1) * width // plan.end, width - 1)] = "^"
    return bars(trunk, plan.end, height, branches, "".join(marks))


def bars(
    heights: Sequence[float], end: int, height: int = 8, dots: Sequence[float] = (), marks: str = ""
) -> str:
    """A plot of heights from 0 to 1 as text.

    Args:
        heights: Of each column of ``#``.
        end: What the axis ends at.
        height: Lines.
        dots: Of each column of ``.``, which stand before a higher ``#``.
        marks: Characters below the axis.

    Returns:
        Lines, the first at a height of 1.
    """
    lines = []
    for row in range(height):
        low = (height - row - 1) / height
        cells = (
            "." if dot > low and dot < bar else "#" if bar > low else " "
            for bar, dot in zip(heights, dots or [0.0] * len(heights), strict=True)
        )
        label = "1.0" if row == 0 else "0.0" if row == height - 1 else "   "
        lines.append(f"{label} |{''.join(cells)}".rstrip())
    return "\n".join([*lines, f"    0{marks.ljust(len(heights))} {end:,}"])


def _means(plan: Schedule, edges: Sequence[int], start: int) -> list[float]:
    """The mean factor between each two edges, of updates from ``start`` to the plan's end."""
    means = []
    for first, last in pairwise(edges):
        steps = np.unique(np.linspace(first, max(last - 1, first), _SAMPLES).round())
        inside = (steps >= start) & (steps < plan.end)
        means.append(float(np.where(inside, plan.factors_at(steps), 0.0).mean()))
    return means


def save_plot(path: str | Path, plan: Schedule, title: str = "") -> None:
    """Draws a schedule as PNG: factor over updates, branches dashed, the checkpoints of its budgets marked.

    Args:
        path: The file to make.
        plan: The schedule.
        title: Written above it.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.2), layout="constrained")
    axes = figure.add_subplot()
    _stairs(axes, plan, 0, color="C0", linewidth=1.5)
    for sub_run, following in pairwise(plan.sub_runs):
        _stairs(axes, sub_run.schedule, following.start, color="C0", linewidth=1, linestyle="--")
    for sub_run in plan.sub_runs:
        for budget in sub_run.schedule.budgets:
            if budget.pre:
                axes.plot(budget.pre, sub_run.schedule.factor(budget.pre - 1), "o", color="C2", zorder=3)
            height = sub_run.schedule.factor(budget.post - 1)
            axes.plot(budget.post, height, "s", color="C3", zorder=3)
            place = (7, -4) if height < 1 else (-8, 7)  # beside the line that leads to it
            axes.annotate(f"{budget.updates:,}", (budget.post, height), place, textcoords="offset points")
            if budget.merge is not None:
                axes.plot(budget.merge.steps, [1.0] * len(budget.merge.steps), "|", color="C1", markersize=10)
    axes.plot([], [], "o", color="C2", label="saved to branch from")
    axes.plot([], [], "s", color="C3", label="the budget's model")
    axes.set(xlabel="updates", ylabel="factor of the peak rate", ylim=(0, 1.16))
    axes.set_title(title, loc="left")
    axes.margins(x=0.08)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    figure.legend(loc="outside upper right", ncols=2)
    FigureCanvasAgg(figure)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")


def _stairs(axes: Any, plan: Schedule, start: int, **style: Any) -> None:
    """Each update's factor as a step; a branch begins at the level that it leaves."""
    edges = [k for segment in plan.segments for k in (segment.start, segment.end - 1) if k >= start]
    steps = np.unique([*np.linspace(start, plan.end - 1, _POINTS).round(), *edges])
    factors = plan.factors_at(steps).tolist()
    before = plan.factor(start - 1) if start else factors[0]
    axes.step([start, *steps, plan.end], [before, *factors, factors[-1]], where="post", **style)
