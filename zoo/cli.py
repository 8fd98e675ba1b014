"""The ``zoo`` command: one table from verb to function, and nothing imported until a verb is called.

``zoo fit|validate|test|predict`` is a LightningCLI in subclass mode (`zoo._cli.train`) under a strict import
policy (`zoo._cli.policy`); the other verbs are plain typed functions, parsed by `jsonargparse.auto_cli`. A
room's verb is one more row here: its function lives in the room's ``commands.py``.
"""

import errno
import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Literal, NamedTuple

from zoo import __version__
from zoo._cli.errors import CommandError, debugging, print_error, print_out, suggest
from zoo._cli.offline import downloads, split_download
from zoo._cli.policy import import_policy, split_trust


class Verb(NamedTuple):
    """A row of the table: where the function is, what it does, and how it is called.

    A plain function has its arguments parsed; one that takes a run gets a `BuiltRun` as well; a raw one
    parses for itself.
    """

    function: str
    help: str
    takes: Literal["arguments", "run", "words"] = "arguments"


VERBS = {
    "fit": Verb("zoo._cli.train:run", "train a model: zoo fit --config quickstart", takes="words"),
    "validate": Verb("zoo._cli.train:run", "one pass over the validation data", takes="words"),
    "test": Verb(
        "zoo._cli.train:run", "evaluate: zoo test --config RUN/config.yaml --ckpt_path FILE", takes="words"
    ),
    "predict": Verb("zoo._cli.train:run", "run a model over the data", takes="words"),
    "check": Verb("zoo._cli.check:run", "parse configs and build their parts, without data", takes="words"),
    "plan": Verb(
        "zoo.schedules.commands:plan",
        "a config's learning rates, and what each budget costs: zoo plan CONFIG",
        takes="run",
    ),
    "sinks": Verb(
        "zoo.sinks.commands:sinks", "attention sinks of a language model: zoo sinks MODEL_DIR --text FILE"
    ),
    "list": Verb("zoo._cli.verbs:list_names", "name the models, data, callbacks, networks and configs"),
    "show": Verb("zoo._cli.verbs:show", "explain a component, or print a config: zoo show MeanFlow"),
    "cp": Verb("zoo._cli.verbs:copy", "copy a bundled config, to be edited: zoo cp quickstart"),
    "convert": Verb(
        "zoo.flow.commands:convert", "published weights as safetensors: zoo convert X.pkl Y.safetensors"
    ),
}

_FREE = "Make room, and go on with: zoo fit --resume RUN"
_OWN = "Give a folder that you may write to, with --trainer.default_root_dir, or change its rights"
# Errors of the disk, which no config or program is to blame for, and what to do about them.
DISK = {errno.ENOSPC: _FREE, errno.EDQUOT: _FREE, errno.EFBIG: _FREE}
DISK |= {errno.EROFS: _OWN, errno.EACCES: _OWN, errno.EPERM: _OWN}

HELP = f"""usage: zoo VERB [arguments]

{chr(10).join(f"  {name:<10}{verb.help}" for name, verb in VERBS.items())}

  zoo VERB --help       the arguments of a verb
  zoo --version         the version
  zoo fit --resume RUN  go on with an interrupted run, in its folder

Anywhere on the line: --trust PKG[,PKG] lets configs name classes of your own package (ZOO_TRUST does too);
--allow-download lets what configs name be fetched: checkpoints, models, weights (ZOO_ALLOW_DOWNLOAD=1 too).
ZOO_DEBUG=1 shows the traceback behind an error of one line."""


def main(args: Sequence[str] | None = None) -> int:
    """Runs the command.

    Args:
        args: The words after ``zoo``; those of the process if None.

    Returns:
        The exit status: 0, 2 for a mistake in what was asked for, 130 and 143 after an interruption.
    """
    argv = list(sys.argv[1:] if args is None else args)
    try:
        rest, trusted = split_trust(argv)
        rest, fetches = split_download(rest)
        if not rest or rest[0] in ("-h", "--help", "help"):
            print_out(HELP)
            return 0
        if rest[0] in ("-V", "--version"):
            print_out(__version__)
            return 0
        with downloads(fetches):
            return call(rest[0], rest[1:], argv, trusted)
    except CommandError as error:
        if debugging():
            traceback.print_exc()
        print_error(f"error: {error}")
        return 2
    except KeyboardInterrupt:
        print_error("interrupted before anything was done")
        return 130
    except (
        BrokenPipeError
    ):  # of `zoo list | head`: nobody reads on, and Python's own flush would complain too
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        if error.errno not in DISK:
            raise
        if debugging():
            traceback.print_exc()
        print_error(
            f"error: {error.filename or 'a file'} cannot be written: {error.strerror}. {DISK[error.errno]}"
        )
        return 2


def call(name: str, args: list[str], argv: list[str], trusted: list[str]) -> int:
    """Finds the verb's function and calls it under the import policy."""
    if name.startswith("-") and (late := next((word for word in args if word in VERBS), None)):
        before = [word for word in (name, *args) if word != late]
        raise CommandError(f"the verb comes first: zoo {late} {' '.join(before)}")
    if name not in VERBS:
        raise CommandError(f"unknown verb {name!r}{suggest(name, VERBS)} (zoo --help)")
    verb = VERBS[name]
    module, _, function = verb.function.partition(":")
    target = getattr(importlib.import_module(module), function)
    if verb.takes == "words":
        return target(name, args, argv, trusted)
    if verb.takes == "run":
        from zoo._cli import run_verb

        return run_verb.run(target, name, args, argv, trusted)

    import jsonargparse

    from zoo._cli.parser import OneLineParser

    with import_policy(trusted):
        jsonargparse.set_parsing_settings(parse_optionals_as_positionals=True)
        try:
            text = jsonargparse.auto_cli(target, args=args, prog=f"zoo {name}", parser_class=OneLineParser)
        except (ValueError, OSError) as error:  # what a room's verb says of bad input
            raise CommandError(str(error)) from error
    if isinstance(text, str):
        print_out(text)
    return 0
