"""Why a class is not imported, and the one command that allows it and all others that the configs name."""

import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zoo._cli import configs
from zoo._cli.bounds import load_config
from zoo._cli.errors import CommandError
from zoo._cli.trace import class_path


@dataclass(frozen=True)
class Line:
    """A command that was typed.

    Attributes:
        retry: As it is to be typed again.
        files: The configs on it, as full paths: the parser changes into the folder of a config that it reads.
        folder: Where it was typed.
    """

    retry: str = ""
    files: Sequence[Path] = ()
    folder: Path = Path()


def refusal(path: str, entry: str, line: Line) -> str:
    """Why a class is not imported, and what allows it where that makes sense.

    Args:
        path: The import path.
        entry: The entry of the deny-list that it falls under.
        line: The command that was typed.
    """
    if entry != "*":
        return f"{path} is refused: configs and checkpoints never import {entry}"
    package = path.partition(".")[0]
    if not is_here(package, line.folder):
        return f"{path}: there is no module named {package!r} {_elsewhere(package, line)}"
    others = sorted(name for name in packages(line.files) - {package} if is_here(name, line.folder))
    named = [package, *others]
    return (
        f"{path} is not imported, since configs name parts of the zoo, torch.nn, torch.optim, torchmetrics "
        f"and Lightning only. If you trust {' and '.join(named)}, run: {line.retry} --trust {','.join(named)}"
    )


def is_here(package: str, folder: Path) -> bool:
    """Whether a package is installed or lies in the folder, where ``--trust`` looks for it."""
    here = (folder / package).is_dir() or (folder / f"{package}.py").is_file()
    return here or importlib.util.find_spec(package) is not None


def _elsewhere(package: str, line: Line) -> str:
    """Where a package was looked for, and where it lies if that is beside a config."""
    looked = f"(modules are sought in the current folder, {line.folder}, and among what is installed)"
    for file in line.files:
        for folder in file.parents:
            if (folder / f"{package}.py").is_file() or (folder / package / "__init__.py").is_file():
                return f"{looked}: it lies in {folder}, so cd there, and run this with --trust {package}"
    return looked


def packages(files: Sequence[Path]) -> set[str]:
    """The packages of all classes in some configs that the policy refuses and that trust would allow."""
    from jsonargparse._common import denying_import_path_entry

    return {
        path.partition(".")[0]
        for file in files
        for path in _class_paths(load_config(file))
        if denying_import_path_entry(path) == "*"
    }


def files_on(args: Sequence[str]) -> list[Path]:
    """The configs on a line; one that is not found, or no config, is told when the parser reaches it."""
    found: list[Path] = []
    words = iter(args)
    for word in words:
        flag, _, value = word.partition("=")
        if flag in ("--config", "-c"):
            with suppress(CommandError):
                file = configs.find(value or next(words, "")).resolve()
                load_config(file)
                found.append(file)
    return found


def _class_paths(value: Any) -> Iterator[str]:
    """Every class path in a config that a package could have: dotted, of plain names."""
    if isinstance(value, dict):
        path = class_path(value)
        if "." in path and all(part.isidentifier() for part in path.split(".")):
            yield path
        for item in value.values():
            yield from _class_paths(item)
    elif isinstance(value, list):
        for item in value:
            yield from _class_paths(item)
