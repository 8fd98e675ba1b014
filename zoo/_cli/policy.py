"""The import policy of a command (`zoo.import_policy`), and the user's own word for more: ``--trust``."""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from zoo._cli.errors import CommandError
from zoo._cli.flags import take_option
from zoo.import_policy import VARIABLE, allowed_imports


def split_trust(args: Sequence[str]) -> tuple[list[str], list[str]]:
    """Takes ``--trust PKG[,PKG]`` out of a command line, wherever it stands, and adds what ZOO_TRUST names.

    Returns:
        The other arguments, and the packages.

    Raises:
        CommandError: a package name is missing or is not an import path.

    >>> split_trust(["fit", "--trust", "mine,yours", "--config", "x"])
    (['fit', '--config', 'x'], ['mine', 'yours'])
    """
    rest, named = take_option(args, "--trust", "the name of a package: --trust my_package")
    named.insert(0, os.environ.get(VARIABLE, ""))
    packages = [name.strip() for value in named for name in value.split(",") if name.strip()]
    for name in packages:
        if not all(part.isidentifier() for part in name.split(".")):
            raise CommandError(f"--trust {name}: expected the import path of a package, such as my_package")
        if name.split(".")[0] == "jsonargparse":
            raise CommandError("--trust jsonargparse: the parser itself cannot be trusted to configs")
    return rest, list(dict.fromkeys(packages))


@contextmanager
def import_policy(trusted: Sequence[str]) -> Iterator[None]:
    """Within the block, parsing imports the allow-list and ``trusted`` only, under `bounds`.

    No config comes from the network.

    Trust also puts the current folder at the *end* of ``sys.path``, so that a user's own file is found and
    shadows nothing. The settings before are restored at the end.
    """
    from zoo._cli.bounds import bounded

    folder = os.getcwd()
    add_folder = bool(trusted) and folder not in sys.path
    try:
        if add_folder:
            sys.path.append(folder)
        with allowed_imports(trusted), bounded():
            yield
    finally:
        if add_folder and folder in sys.path:
            sys.path.remove(folder)
