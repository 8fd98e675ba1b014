"""The bundled configs, known by bare names (``quickstart``, ``flow/digits``), and names of runs."""

import re
from importlib.resources import files
from pathlib import Path

from zoo._cli.errors import CommandError, suggest

PACKAGE = "zoo.configs"


def folder() -> Path:
    """Where the bundled configs are installed."""
    return Path(str(files(PACKAGE)))


def names() -> list[str]:
    """Names of the bundled configs, in order: a folder's own before those of its sub-folders."""
    root = folder()
    found = [path.relative_to(root).with_suffix("").as_posix() for path in root.rglob("*.yaml")]
    return sorted(found, key=lambda name: (name.count("/"), name))


def find(value: str) -> Path:
    """The file that ``--config value`` means: a path that exists, else a bundled config's name.

    Raises:
        CommandError: it is neither, or it is on another machine.
    """
    if "://" in value:
        raise CommandError(
            f"--config {value}: configs are read from this machine only; download it and look at it"
        )
    path = Path(value)
    if path.is_file():
        return path
    bundled = folder() / f"{value.removesuffix('.yaml')}.yaml"
    if value.removesuffix(".yaml") in names():
        return bundled
    raise CommandError(
        f"--config {value}: neither a file here nor a bundled config{suggest(value, names())} "
        "(`zoo list configs` names them all)"
    )


def first_comment(path: Path) -> str:
    """The first comment line of a config: what it is for."""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            return line.lstrip("# ").strip()
    return ""


def run_name(config: Path | None) -> str:
    """The folder under ``runs/`` for a run of this config.

    A bundled config gives its name with its folder, a file its stem, and the ``config.yaml`` of an earlier
    run the name of that run.

    >>> run_name(Path("mine/fast.yaml")), run_name(Path("runs/flow/digits/version_3/config.yaml"))
    ('fast', 'flow/digits')
    """
    if config is None:
        return "run"
    path = config.resolve()
    if path.is_relative_to(folder().resolve()):
        return path.relative_to(folder().resolve()).with_suffix("").as_posix()
    if path.name == "config.yaml" and re.fullmatch(r"version_\d+", path.parent.name):
        parts = path.parent.parent.parts
        if "runs" in parts:
            start = len(parts) - parts[::-1].index("runs")
            return "/".join(parts[start:]) or "run"
        return path.parent.parent.name
    return path.stem
