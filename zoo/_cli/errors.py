"""Errors of the command line: one line on stderr that says where, what, why and what to do; exit status 2."""

import difflib
import os
import sys
from collections.abc import Iterable


class CommandError(SystemExit):
    """A mistake in what the user asked for: ``zoo`` prints its one line and ends with status 2.

    A `SystemExit`, since jsonargparse takes any `Exception` for a branch of a union that does not fit, and
    goes on.
    """

    def __init__(self, message: str) -> None:
        super().__init__(2)
        self.message = " ".join(str(message).split())

    def __str__(self) -> str:
        return self.message


def debugging() -> bool:
    """Whether the user asked for tracebacks (``ZOO_DEBUG=1``)."""
    return os.environ.get("ZOO_DEBUG", "") not in ("", "0")


def say(text: str = "") -> None:
    """Writes a line for the user to stdout."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def complain(text: str) -> None:
    """Writes a line for the user to stderr."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def close(name: str, choices: Iterable[str]) -> str:
    """A tail for a message: the choices that look like ``name``, best first, or nothing.

    >>> close("quickstrat", ["quickstart", "flow/digits"])
    '; did you mean quickstart?'
    """
    by_key: dict[str, str] = {}
    for choice in choices:
        by_key.setdefault(choice.lower(), choice)
    found = difflib.get_close_matches(name.lower(), by_key, n=3, cutoff=0.7)
    return f"; did you mean {' or '.join(by_key[key] for key in found)}?" if found else ""
