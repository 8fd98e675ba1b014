"""Errors of the command line: one line on stderr that says where, what, why and what to do; exit status 2."""

import os
import sys
from collections.abc import Iterator

from zoo._suggest import suggest as suggest


class CommandError(SystemExit):
    """A mistake in what the user asked for: ``zoo`` prints its one line and ends with status 2.

    A `SystemExit`, since jsonargparse takes any `Exception` for a branch of a union that does not fit, and
    goes on.
    """

    def __init__(self, message: str) -> None:
        super().__init__(2)
        self.message = shorten(printable(" ".join(str(message).split())), 2000)

    def __str__(self) -> str:
        return self.message


def printable(text: str) -> str:
    r"""A text as one can show it: control characters, which could steer the terminal, are written out.

    >>> printable("a\x1b[31mb")
    'a\\x1b[31mb'
    """
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text
    )


def shorten(text: str, length: int = 80) -> str:
    """A text, cut where it is longer than a message needs.

    >>> shorten("abcdefgh", 6)
    'abc...'
    """
    return text if len(text) <= length else f"{text[: length - 3]}..."


def debugging() -> bool:
    """Whether the user asked for tracebacks (``ZOO_DEBUG=1``)."""
    return os.environ.get("ZOO_DEBUG", "") not in ("", "0")


def print_out(text: str = "") -> None:
    """Writes a line for the user to stdout."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def print_error(text: str) -> None:
    """Writes a line for the user to stderr."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error, what it was raised from, and so on."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def error_text(error: BaseException) -> str:
    """An error's text; with its class, where the text alone says little.

    >>> error_text(ValueError("size must be at least 1")), error_text(KeyError("x")), error_text(ValueError())
    ('size must be at least 1', "KeyError: 'x'", 'ValueError')
    """
    name, text = type(error).__name__, str(error)
    if not text:
        return name
    plain = isinstance(error, ValueError | TypeError | ImportError) or "Misconfiguration" in name
    return text if plain else f"{name}: {text}"
