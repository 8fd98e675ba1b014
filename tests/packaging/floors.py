"""Prints pip constraints that pin each dependency of pyproject.toml to its floor (`make test-floors`)."""

import re
import tomllib
from pathlib import Path


def floors(pyproject: Path) -> dict[str, str]:
    """Names of the run-time dependencies and their lowest admitted versions."""
    project = tomllib.loads(pyproject.read_text())["project"]
    found = {}
    for requirement in project["dependencies"]:
        match = re.match(r"([\w-]+)(?:\[[\w,]+\])?>=([\d.]+)", requirement)
        if match is None:
            raise ValueError(f"dependency {requirement!r} declares no floor")
        found[match[1]] = match[2]
    return found


if __name__ == "__main__":
    for name, version in floors(Path(__file__).resolve().parents[2] / "pyproject.toml").items():
        print(f"{name}=={version}")
