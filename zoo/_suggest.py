"""Did-you-mean: names that look like one that is unknown."""

import difflib
from collections.abc import Iterable


def suggest(name: str, choices: Iterable[str]) -> str:
    """A tail for a message: the choices that look like ``name``, best first, or nothing.

    >>> suggest("quickstrat", ["quickstart", "flow/digits"])
    '; did you mean quickstart?'
    """
    by_key: dict[str, str] = {}
    for choice in choices:
        by_key.setdefault(choice.lower(), choice)
    found = difflib.get_close_matches(name.lower(), by_key, n=3, cutoff=0.75)
    return f"; did you mean {' or '.join(by_key[key] for key in found)}?" if found else ""
