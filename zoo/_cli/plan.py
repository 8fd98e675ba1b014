"""``zoo plan CONFIG``: the learning rates of a config before they are paid for."""

import argparse
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import NoReturn

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.core.optimizer import _init_optimizers_and_lr_schedulers
from lightning.pytorch.utilities.types import LRSchedulerConfig

from zoo._cli.check import CheckCLI
from zoo._cli.errors import CommandError, print_out
from zoo._cli.noise import MACHINE, quiet
from zoo._cli.policy import import_policy
from zoo._cli.stepped import stepped
from zoo._cli.trainer_cli import build
from zoo.callbacks import LRSchedule
from zoo.callbacks._lr_schedule import scheduler_conflict
from zoo.events import display_path
from zoo.schedules import RunSchedule, Schedule
from zoo.schedules.plot import ascii_plot, save_plot
from zoo.schedules.power_law import MULTI_POWER_LAW, PowerLaw
from zoo.schedules.report import report


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise CommandError(f"zoo plan: {message}")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="zoo plan",
        usage="zoo plan CONFIG... [--png FILE] [--tokens N] [--law LAW] [--trust PKG] [--KEY of the config]\n"
        "CONFIG: a file or the name of a bundled config, with --config before it or without",
        description="Prints a config's schedule of learning rates: segments, checkpoints, updates, tokens, "
        "and the convex bound of the last iterate beside other ways to serve its budgets.",
        allow_abbrev=False,
    )
    parser.add_argument("-c", "--config", action="append", default=[], metavar="CONFIG", help="as in zoo fit")
    parser.add_argument("--png", metavar="FILE", help="draw the schedule into this file, too")
    tokens = "tokens of an update (else from batch_size and context of the data)"
    parser.add_argument("--tokens", type=int, metavar="N", help=tokens)
    law = f"forecast losses by a multi-power law: {', '.join(MULTI_POWER_LAW)} (its authors' models)"
    parser.add_argument("--law", metavar="LAW", help=f"{law}, or L0,A,alpha,B,C,beta,gamma of your own")
    return parser


def run(verb: str, args: list[str], words: Sequence[str], trusted: Sequence[str]) -> int:
    """Prints the plan of a config.

    Args:
        verb: plan.
        args: Configs, options of this verb, and keys of the config.
        words: The whole line, for advice.
        trusted: Packages that configs may name.

    Returns:
        0.

    Raises:
        CommandError: a mistake in the config or on the line, or a schedule whose length is not known.
    """
    # Bare configs come first, so that the value of a config's key is not taken for one.
    count = next((n for n, word in enumerate(args) if word.startswith("-")), len(args))
    options, rest = _parser().parse_known_args(args[count:])
    configs = [*args[:count], *options.config]
    if not configs:
        raise CommandError("zoo plan: give a CONFIG, a file or a bundled config's name (zoo list configs)")
    law = _law(options.law)
    name = ", ".join(configs)
    with import_policy(trusted), quiet(MACHINE):
        given = [word for config in configs for word in ("--config", config)]
        cli = build(lambda: CheckCLI(["fit", *given, *rest]), words)
        callbacks = cli.trainer.callbacks  # type: ignore[attr-defined]
        owner = next((callback for callback in callbacks if isinstance(callback, LRSchedule)), None)
        peaks, schedulers = _optimizers(cli)
        if owner is not None and schedulers:
            raise CommandError(scheduler_conflict(type(owner), cli.model, schedulers))
        if schedulers:
            for line in stepped(cli.model, schedulers, cli.trainer):
                print_out(f"{name}: {line}" if "\n" not in line else line)
            return 0
        if owner is None:
            rates = " and ".join(f"{peak:g}" for peak in dict.fromkeys(peaks))
            print_out(f"{name}: no schedule, the learning rate is {rates} throughout")
            return 0
        schedule = _of_run(owner.given, cli.trainer, name)
        tokens = options.tokens if options.tokens is not None else _tokens(cli)
        print_out(f"{name}: {report(schedule, peaks, tokens, law)}")
        print_out("")
        print_out(ascii_plot(schedule))
        _say_where_it_ends(schedule, cli.trainer)
        if options.png:
            save_plot(options.png, schedule, name)
            print_out(f"drawn in {display_path(Path(options.png))}")
    return 0


def _of_run(source: RunSchedule, trainer: Trainer, name: str) -> Schedule:
    """The schedule of a config's run; the data are not read for it.

    Raises:
        CommandError: the run's length follows from the data, or is too short for the schedule.
    """
    if isinstance(source, Schedule):
        return source
    if trainer.max_steps < 0:
        raise CommandError(
            f"{name}: the schedule is as long as the run, whose length follows from the data (max_epochs) or "
            "is not given: say --trainer.max_steps N to see it for N updates"
        )
    try:
        return source.for_run(trainer.max_steps)
    except ValueError as error:
        raise CommandError(f"{name}: {error} (trainer.max_steps is {trainer.max_steps})") from error


def _say_where_it_ends(schedule: Schedule, trainer: Trainer) -> None:
    """Says where ``max_steps`` differs from the schedule's end, and what that costs."""
    stop = trainer.max_steps
    if stop < 0 or stop == schedule.end:
        return
    line = f"max_steps is {stop:,}, and the schedule has {schedule.end:,} updates"
    cut = [f"{budget.updates:,}" for budget in schedule.budgets if budget.post > stop]
    print_out(f"{line}: no model for budget {', '.join(cut)}" if cut else line)


def _law(text: str | None) -> PowerLaw | None:
    if text is None or text in MULTI_POWER_LAW:
        return None if text is None else MULTI_POWER_LAW[text]
    names = [field.name for field in fields(PowerLaw)]
    try:
        numbers = [float(word) for word in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != len(names):
        raise CommandError(
            f"--law {text}: give one of {', '.join(MULTI_POWER_LAW)}, or the seven numbers {','.join(names)}"
        )
    try:
        return PowerLaw(*numbers)
    except ValueError as error:
        raise CommandError(f"--law {text}: {error}") from error


def _optimizers(cli: CheckCLI) -> tuple[list[float], list[LRSchedulerConfig]]:
    """The learning rates that the config's optimizers are built with, and the module's own schedulers."""
    with torch.device("meta"):
        optimizers, schedulers = _init_optimizers_and_lr_schedulers(cli.model)
    peaks = [
        float(group.get("initial_lr", group["lr"])) for each in optimizers for group in each.param_groups
    ]
    return peaks, schedulers


def _tokens(cli: CheckCLI) -> int | None:
    """Tokens of an update, where the data say how many a batch has."""
    size, context = (getattr(cli.datamodule, name, None) for name in ("batch_size", "context"))
    if size is None or context is None:
        return None
    trainer = cli.config["fit"]["trainer"]
    devices = trainer["devices"] if isinstance(trainer["devices"], int) and trainer["devices"] > 0 else 1
    return int(size * context * devices * trainer["num_nodes"] * trainer["accumulate_grad_batches"])
