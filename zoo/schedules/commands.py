"""The verb ``zoo plan``: the learning rates of a config, and what each budget costs, before it is run."""

from dataclasses import fields
from pathlib import Path

import torch
from lightning.pytorch.core.optimizer import _init_optimizers_and_lr_schedulers
from lightning.pytorch.utilities.types import LRSchedulerConfig

from zoo.base import BuiltRun
from zoo.events import display_path
from zoo.schedules import RunSchedule, Schedule
from zoo.schedules.owner import SchedulesLR, scheduler_conflict
from zoo.schedules.plot import ascii_plot, save_plot
from zoo.schedules.power_law import MULTI_POWER_LAW, PowerLaw
from zoo.schedules.report import report
from zoo.schedules.stepped import stepped


def plan(run: BuiltRun, png: str | None = None, tokens: int | None = None, law: str | None = None) -> str:
    """A config's schedule of learning rates: segments, checkpoints, updates, tokens, and what to expect.

    The convex bound of the last iterate stands beside other ways to serve the same budgets.

    Args:
        run: The config, built.
        png: Draw the schedule into this file, too.
        tokens: Tokens of an update; else from batch_size and context of the data.
        law: Forecast losses by a multi-power law: 25M, 100M or 400M (its authors' models), or the seven
            numbers L0,A,alpha,B,C,beta,gamma.

    Returns:
        The text.

    Raises:
        ValueError: a schedule whose length is not known, two owners of the learning rate, or a law of other
            numbers.
    """
    power_law = _law(law)
    owner = next((callback for callback in run.callbacks if isinstance(callback, SchedulesLR)), None)
    peaks, schedulers = _optimizers(run)
    if owner is not None and schedulers:
        raise ValueError(scheduler_conflict(type(owner), run.model, schedulers))
    if schedulers:
        pieces = stepped(run.model, schedulers, run.trainer)
        return "\n".join(piece if "\n" in piece else f"{run.name}: {piece}" for piece in pieces)
    if owner is None:
        rates = " and ".join(f"{peak:g}" for peak in dict.fromkeys(peaks))
        return f"{run.name}: no schedule, the learning rate is {rates} throughout"
    schedule = _of_run(owner.given, run)
    tokens = _tokens(run) if tokens is None else tokens
    lines = [f"{run.name}: {report(schedule, peaks, tokens, power_law)}", "", ascii_plot(schedule)]
    lines += _where_it_ends(schedule, run.trainer.max_steps)
    if png:
        save_plot(png, schedule, run.name)
        lines.append(f"drawn in {display_path(Path(png))}")
    return "\n".join(lines)


def _of_run(source: RunSchedule, run: BuiltRun) -> Schedule:
    """The schedule of a config's run; the data are not read for it.

    Raises:
        ValueError: the run's length follows from the data, or is too short for the schedule.
    """
    if isinstance(source, Schedule):
        return source
    updates = run.trainer.max_steps
    if updates < 0:
        raise ValueError(
            f"{run.name}: the schedule is as long as the run, whose length follows from the data "
            "(max_epochs) or is not given: say --trainer.max_steps N to see it for N updates"
        )
    try:
        return source.for_run(updates)
    except ValueError as error:
        raise ValueError(f"{run.name}: {error} (trainer.max_steps is {updates})") from error


def _where_it_ends(schedule: Schedule, stop: int) -> list[str]:
    """Where ``max_steps`` differs from the schedule's end, and what that costs."""
    if stop < 0 or stop == schedule.end:
        return []
    line = f"max_steps is {stop:,}, and the schedule has {schedule.end:,} updates"
    cut = [f"{budget.updates:,}" for budget in schedule.budgets if budget.post > stop]
    return [f"{line}: no model for budget {', '.join(cut)}" if cut else line]


def _law(text: str | None) -> PowerLaw | None:
    if text is None or text in MULTI_POWER_LAW:
        return None if text is None else MULTI_POWER_LAW[text]
    names = [field.name for field in fields(PowerLaw)]
    try:
        numbers = [float(word) for word in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != len(names):
        raise ValueError(
            f"--law {text}: give one of {', '.join(MULTI_POWER_LAW)}, or the seven numbers {','.join(names)}"
        )
    try:
        return PowerLaw(*numbers)
    except ValueError as error:
        raise ValueError(f"--law {text}: {error}") from error


def _optimizers(run: BuiltRun) -> tuple[list[float], list[LRSchedulerConfig]]:
    """The learning rates that the config's optimizers are built with, and the module's own schedulers."""
    with torch.device("meta"):
        optimizers, schedulers = _init_optimizers_and_lr_schedulers(run.model)
    peaks = [
        float(group.get("initial_lr", group["lr"])) for each in optimizers for group in each.param_groups
    ]
    return peaks, schedulers


def _tokens(run: BuiltRun) -> int | None:
    """Tokens of an update, where the data say how many a batch has."""
    size, context = (getattr(run.datamodule, name, None) for name in ("batch_size", "context"))
    if size is None or context is None:
        return None
    settings = run.config
    devices = settings["devices"] if isinstance(settings["devices"], int) and settings["devices"] > 0 else 1
    return int(size * context * devices * settings["num_nodes"] * settings["accumulate_grad_batches"])
