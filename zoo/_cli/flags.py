"""Flags that stand anywhere on the line, taken off before the parser sees it."""

from collections.abc import Sequence

from zoo._cli.errors import CommandError


def take_flag(argv: Sequence[str], flag: str) -> tuple[list[str], bool]:
    """The other words, and whether the flag was among them.

    >>> take_flag(["fit", "--untrained", "x"], "--untrained")
    (['fit', 'x'], True)
    """
    rest = [word for word in argv if word != flag]
    return rest, len(rest) < len(argv)


def take_option(argv: Sequence[str], flag: str, wanted: str) -> tuple[list[str], list[str]]:
    """The other words, and the values that were given to an option.

    Args:
        argv: The words.
        flag: The option: ``--trust``.
        wanted: What a value is, and an example, for the error.

    Raises:
        CommandError: no value follows.

    >>> take_option(["fit", "--trust", "a", "--trust=b", "x"], "--trust", "a package: --trust my_package")
    (['fit', 'x'], ['a', 'b'])
    """
    rest: list[str] = []
    values: list[str] = []
    words = iter(argv)
    for word in words:
        name, equals, value = word.partition("=")
        if name != flag:
            rest.append(word)
            continue
        value = value if equals else next(words, "")
        if not value or value.startswith("-"):
            raise CommandError(f"{flag} needs {wanted}")
        values.append(value)
    return rest, values
