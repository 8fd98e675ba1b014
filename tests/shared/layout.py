"""Where the modules of the package lie: three folders, one import package."""

from collections.abc import Iterator
from pathlib import Path

FOLDERS = {"zoo": "zoo", "callbacks": "zoo.callbacks", "datamodules": "zoo.datamodules"}


def sources(root: Path) -> Iterator[tuple[str, Path]]:
    """Every module of the package with its import name."""
    for folder, package in FOLDERS.items():
        for path in sorted((root / folder).rglob("*.py")):
            parts = path.relative_to(root / folder).with_suffix("").parts
            name = ".".join((package, *parts))
            yield name.removesuffix(".__init__"), path
