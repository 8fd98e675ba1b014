"""pyproject.toml and constraints.txt admit no version that is known to be bad, and agree with each other."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

BAD = [
    ("lightning", "2.6.5"),  # code execution in load_from_checkpoint, CVE-2026-58659
    ("lightning", "2.6.3"),  # malware
    ("lightning", "2.6.2"),  # malware
    ("torch", "2.9.1"),  # memory corruption in the weights_only unpickler, CVE-2026-24747
    ("transformers", "5.4.0"),  # CVE-2026-5241
    ("jsonargparse", "4.51.0"),  # no import policy
    ("jsonargparse", "5.0.0"),  # lacks functions that LightningCLI calls
]


def requirements(root: Path) -> dict[str, Requirement]:
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    return {item.name: item for item in map(Requirement, project["dependencies"])}


@pytest.mark.parametrize(("name", "version"), BAD)
def test_no_known_bad_version(root: Path, name: str, version: str) -> None:
    assert version not in requirements(root)[name].specifier
    assert f"{name}=={version}" not in (root / "constraints.txt").read_text().splitlines()


def test_only_known_breaks_are_pinned_from_above(root: Path) -> None:
    capped = {name for name, item in requirements(root).items() if "<" in str(item.specifier)}
    assert capped == {"jsonargparse", "lightning"}


def test_constraints_are_exact_and_satisfy_the_project(root: Path) -> None:
    lines = [line for line in (root / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.!+]+", line) for line in lines)  # names and versions only
    exact = dict(line.lower().replace("_", "-").split("==") for line in lines)
    for name, item in requirements(root).items():
        assert exact[name] in item.specifier


def test_version_is_one(root: Path) -> None:
    import zoo

    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    assert project["version"] == zoo.__version__
    assert f"## {zoo.__version__}" in (root / "CHANGELOG.md").read_text()
