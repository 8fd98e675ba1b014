"""Verbs that look at a run: functions of a room that take a `BuiltRun`, which is built here and passed in."""

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

from zoo._cli.check import CheckCLI
from zoo._cli.errors import CommandError, print_out
from zoo._cli.noise import MACHINE, quiet
from zoo._cli.parser import OneLineParser
from zoo._cli.policy import import_policy
from zoo._cli.trainer_cli import build
from zoo.base import BuiltRun


def run(
    function: Callable[..., str], verb: str, args: list[str], argv: Sequence[str], trusted: Sequence[str]
) -> int:
    """Builds the run that the words describe, and prints what the function says of it.

    Args:
        function: Takes a `BuiltRun` and options, and returns a text.
        verb: Its name.
        args: Configs, the function's options, and keys of the config.
        argv: The whole line, for advice.
        trusted: Packages that configs may name.

    Returns:
        0.

    Raises:
        CommandError: a mistake in the config or on the line, or what the function refuses.
    """
    parser = OneLineParser(prog=f"zoo {verb}", usage=f"zoo {verb} CONFIG... [options] [--KEY of the config]")
    parser.add_function_arguments(function, skip={"run"}, as_group=False)
    own, rest = _split(args, set(inspect.signature(function).parameters))
    options = parser.parse_args(own)
    configs, words = config_words(rest)
    if not configs:
        raise CommandError(f"zoo {verb}: give a CONFIG, a file or a bundled config's name (zoo list configs)")
    with import_policy(trusted), quiet(MACHINE):
        cli = build(partial(CheckCLI, ["fit", *words]), argv)
        built = BuiltRun(
            ", ".join(configs), cli.model, cli.datamodule, cli.trainer, cli.config["fit"]["trainer"]
        )
        try:
            print_out(function(built, **options.as_dict()))
        except ValueError as error:
            raise CommandError(str(error)) from error
    return 0


def _split(args: Sequence[str], names: set[str]) -> tuple[list[str], list[str]]:
    """The words of the function's own options, with their values; and the others."""
    own: list[str] = []
    rest: list[str] = []
    words = iter(args)
    for word in words:
        if word in ("-h", "--help"):
            own.append(word)
        elif word.startswith("--") and word[2:].partition("=")[0] in names:
            own += [word] if "=" in word else [word, *([value] if (value := next(words, None)) else [])]
        else:
            rest.append(word)
    return own, rest


def config_words(args: Sequence[str]) -> tuple[list[str], list[str]]:
    """The configs' names, and the words that `zoo fit` would take: configs may stand bare, at the front.

    >>> config_words(["a", "--config", "b", "--model.lr", "1"])
    (['a', 'b'], ['--config', 'a', '--config', 'b', '--model.lr', '1'])
    """
    # At the front, so that the value of a config's key is not taken for one.
    bare = next((n for n, word in enumerate(args) if word.startswith("-")), len(args))
    words = [word for config in args[:bare] for word in ("--config", config)]
    words += [part for word in args[bare:] for part in _parts(word)]
    names = [value for flag, value in pairwise(words) if flag in ("--config", "-c")]
    return names, words


def _parts(word: str) -> list[str]:
    flag, equals, value = word.partition("=")
    return [flag, value] if equals and flag in ("--config", "-c") else [word]
