"""``zoo plan CONFIG``: the learning rates of a config before they are paid for."""

import argparse
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

import torch
from lightning.pytorch.core.optimizer import _init_optimizers_and_lr_schedulers

from zoo._cli.check import CheckCLI
from zoo._cli.errors import CommandError, say
from zoo._cli.noise import MACHINE, quiet
from zoo._cli.policy import import_policy
from zoo._cli.trainer_cli import build
from zoo.callbacks import WSDS
from zoo.callbacks.wsds import two_owners
from zoo.events import shown
from zoo.schedules.plot import ascii_plot, save_plot
from zoo.schedules.power_law import MULTI_POWER_LAW, PowerLaw
from zoo.schedules.report import report


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise CommandError(f"zoo plan: {message}")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="zoo plan",
        usage="zoo plan CONFIG... [--png FILE] [--tokens N] [--law LAW] [--trust PKG] [--KEY of the config]",
        description="Prints the schedule of a config's WSDS callback: segments, checkpoints, updates, "
        "tokens, and the convex bound of the last iterate beside other ways to serve its budgets.",
        allow_abbrev=False,
    )
    parser.add_argument("configs", nargs="+", metavar="CONFIG", help="files, or names of bundled configs")
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
        CommandError: no schedule in the config, or a mistake in it or on the line.
    """
    # The configs come first, so that the value of a config's key is not taken for one.
    count = next((n for n, word in enumerate(args) if word.startswith("-")), len(args))
    options, rest = _parser().parse_known_args(args)
    law = _law(options.law)
    configs = [word for config in options.configs[:count] for word in ("--config", config)]
    rest = [*options.configs[count:], *rest]
    with import_policy(trusted), quiet(MACHINE):
        cli = build(lambda: CheckCLI(["fit", *configs, *rest]), words)
        owner = next((c for c in _callbacks(cli) if isinstance(c, WSDS)), None)
        if owner is None:
            raise CommandError(
                f"{' '.join(options.configs[:count])}: there is no WSDS callback, and so no plan (zoo "
                "show WSDS; or put --config callbacks/wsds after the config)"
            )
        tokens = options.tokens if options.tokens is not None else _tokens(cli)
        name = ", ".join(options.configs[:count])
        say(f"{name}: {report(owner.schedule, _peaks(cli), tokens, law)}")
        say("")
        say(ascii_plot(owner.schedule))
        stop = cli.trainer.max_steps
        if 0 <= stop != owner.schedule.end:
            say(f"max_steps is {stop:,}, and the schedule has {owner.schedule.end:,} updates")
        if options.png:
            save_plot(options.png, owner.schedule, name)
            say(f"drawn in {shown(Path(options.png))}")
    return 0


def _callbacks(cli: CheckCLI) -> list[Any]:
    return list(cli.trainer.callbacks)  # type: ignore[attr-defined]


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


def _peaks(cli: CheckCLI) -> list[float]:
    """The learning rates that the config's optimizers are built with.

    Raises:
        CommandError: a scheduler would own them, too.
    """
    with torch.device("meta"):
        optimizers, schedulers = _init_optimizers_and_lr_schedulers(cli.model)
    if schedulers:
        raise CommandError(two_owners(cli.model, schedulers))
    return [float(group["lr"]) for optimizer in optimizers for group in optimizer.param_groups]


def _tokens(cli: CheckCLI) -> int | None:
    """Tokens of an update, where the data say how many a batch has."""
    size, context = (getattr(cli.datamodule, name, None) for name in ("batch_size", "context"))
    if size is None or context is None:
        return None
    trainer = cli.config["fit"]["trainer"]
    devices = trainer["devices"] if isinstance(trainer["devices"], int) and trainer["devices"] > 0 else 1
    return int(size * context * devices * trainer["num_nodes"] * trainer["accumulate_grad_batches"])
