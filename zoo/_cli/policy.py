"""What a config, a flag or a checkpoint may import: a strict allow-list, and the user's own word for more.

jsonargparse imports a ``class_path`` before it looks at its type, so naming a module runs it. The policy is
checked for the path that is written and for the place where the object is defined, so a re-export opens
nothing. More is allowed only by the person at the keyboard (``--trust`` or ``ZOO_TRUST``), never by a config.
"""

import os
import pkgutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import zoo
from zoo._cli.errors import CommandError

ALLOWED = (
    "zoo",
    "torch.optim",
    "torch.nn",
    "torchmetrics",
    "lightning.pytorch.callbacks",
    "lightning.pytorch.loggers",
    "lightning.pytorch.strategies",
    "lightning.pytorch.profilers",
    "lightning.pytorch.plugins",
    "lightning.fabric.plugins",
    "lightning.pytorch.cli.ReduceLROnPlateau",
)


def split_trust(args: Sequence[str]) -> tuple[list[str], list[str]]:
    """Takes ``--trust PKG[,PKG]`` out of a command line, wherever it stands, and adds what ZOO_TRUST names.

    Returns:
        The other arguments, and the packages.

    Raises:
        CommandError: a package name is missing or is no import path.

    >>> split_trust(["fit", "--trust", "mine,yours", "--config", "x"])
    (['fit', '--config', 'x'], ['mine', 'yours'])
    """
    rest: list[str] = []
    named = [os.environ.get("ZOO_TRUST", "")]
    words = iter(args)
    for word in words:
        if word == "--trust":
            value = next(words, "")
            if not value or value.startswith("-"):
                raise CommandError("--trust needs the name of a package: --trust my_package")
            named.append(value)
        elif word.startswith("--trust="):
            named.append(word.removeprefix("--trust="))
        else:
            rest.append(word)
    packages = [name.strip() for value in named for name in value.split(",") if name.strip()]
    for name in packages:
        if not all(part.isidentifier() for part in name.split(".")):
            raise CommandError(f"--trust {name}: expected the import path of a package, such as my_package")
        if name.split(".")[0] == "jsonargparse":
            raise CommandError("--trust jsonargparse: the parser itself cannot be trusted to configs")
    return rest, list(dict.fromkeys(packages))


def denied_modules() -> list[str]:
    """The parts of the zoo that are commands, not components: they act when they are called."""
    commands = [
        f"zoo.{info.name}.commands"
        for info in pkgutil.iter_modules(zoo.__path__)
        if info.ispkg and any((Path(root) / info.name / "commands.py").is_file() for root in zoo.__path__)
    ]
    return ["zoo.cli", "zoo._cli", "zoo.__main__", *commands]


@contextmanager
def import_policy(trusted: Sequence[str]) -> Iterator[None]:
    """Within the block, parsing imports the allow-list and ``trusted`` only, under `bounds`.

    No config comes from the network.

    Trust also puts the current folder at the *end* of ``sys.path``, so that a user's own file is found and
    shadows nothing. The settings before are restored at the end.
    """
    import jsonargparse
    from jsonargparse import _common, _optionals

    from zoo._cli.bounds import bounded

    # jsonargparse has setters only; a run inside another program must leave the program's own policy as it
    # was.
    before = dict(_common.parsing_settings)
    mode = {name: getattr(_optionals, name) for name in ("_config_read_mode",)}
    folder = os.getcwd()
    add_folder = bool(trusted) and folder not in sys.path
    try:
        jsonargparse.set_parsing_settings(
            import_path_denylist=["*", *denied_modules()],
            import_path_allowlist=[*ALLOWED, *trusted],
            instantiate_subclass_spec_in_any=False,
            config_read_mode_fsspec_enabled=False,
        )
        if add_folder:
            sys.path.append(folder)
        with bounded():
            yield
    finally:
        _common.parsing_settings.clear()
        _common.parsing_settings.update(before)
        for name, value in mode.items():
            setattr(_optionals, name, value)
        if add_folder and folder in sys.path:
            sys.path.remove(folder)
