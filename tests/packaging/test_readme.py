"""The README says what is true: names exist, examples run, the evidence table is the measured one."""

import importlib
import re
import sys
from pathlib import Path

import pytest

README = (Path(__file__).resolve().parents[2] / "README.md").read_text()
NAMES = re.findall(r"^\| `(zoo\.[\w.]+)` \|", README, flags=re.M)
EXAMPLES = re.findall(r"```python\n(.*?)```", README, flags=re.S)


def test_the_tables_are_read() -> None:
    assert len(NAMES) > 10 and len(EXAMPLES) == 2


@pytest.mark.parametrize("name", NAMES)
def test_names_exist_and_are_documented(name: str) -> None:
    module, _, attribute = name.rpartition(".")
    assert getattr(importlib.import_module(module), attribute).__doc__


def test_every_public_name_of_the_front_rooms_is_in_the_table() -> None:
    for package in ("zoo.callbacks", "zoo.datamodules"):
        for name in dir(importlib.import_module(package)):
            assert f"`{package}.{name}`" in README


@pytest.mark.parametrize("source", EXAMPLES)
def test_examples_run(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(source, "README.md", "exec"), {})


def test_configs_named_exist(root: Path) -> None:
    [paragraph] = re.findall(r"^Configs: (.*?)\n\n", README, flags=re.M | re.S)
    named = set(re.findall(r"`([\w/]+)`", paragraph))
    configs = root / "configs"
    assert named == {str(path.relative_to(configs).with_suffix("")) for path in configs.rglob("*.yaml")}


def test_the_evidence_table_is_the_measured_one(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path, str(root / "tests" / "evidence")])
    table = importlib.import_module("table")
    assert f"{table.START}\n{table.table()}\n{table.END}" in README


def test_pictures_exist(root: Path) -> None:
    for path in re.findall(r"!\[.*?\]\((.*?)\)", README):
        assert (root / path).is_file()


def test_nothing_of_a_machine_is_said(root: Path) -> None:
    """The project speaks of itself alone."""
    folders = ("zoo", "callbacks", "datamodules", "configs", "notebooks", "tests/evidence", "tests/configs")
    paths = [path for folder in folders for path in (root / folder).rglob("*") if path.is_file()]
    for path in [*root.glob("*.*"), *paths]:
        if path.suffix in {".md", ".toml", ".txt", ".py", ".yaml", ".json", ".ipynb"}:
            assert not re.search(r"(^|[\s\"'(])/(root|work|home)/", path.read_text()), path
