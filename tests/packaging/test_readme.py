"""The README and the pages of the rooms say what is true: names, examples, configs, numbers, pictures."""

import importlib
import json
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
PAGES = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in (
        *(ROOT / "zoo").glob("*/README.md"), ROOT / "callbacks/README.md", ROOT / "datamodules/README.md",
    )
}  # fmt: skip
NAMES = [
    name for page in PAGES.values() for name in re.findall(r"^\| `(zoo\.[\w.]+)`[^|]* \|", page, flags=re.M)
]
EXAMPLES = [
    example
    for page in (README, *PAGES.values())
    for example in re.findall(r"```python\n(.*?)```", page, flags=re.S)
]
RESULTS = [
    (name, text, script)
    for name, page in {"README.md": README, **PAGES}.items()
    for text, script in re.findall(r"^\| (.*) \| `python tests/evidence/(\w+)\.py` \|$", page, flags=re.M)
]


def test_the_tables_are_read() -> None:
    assert len(NAMES) > 60 and len(EXAMPLES) == 3
    assert sum(name == "README.md" for name, _, _ in RESULTS) == 5


def test_the_readme_is_short_and_names_every_page() -> None:
    assert len(README.encode()) <= 12_000
    for name in PAGES:
        assert f"({name})" in README


@pytest.mark.parametrize("name", PAGES)
def test_a_page_has_its_parts_in_order(name: str) -> None:
    """Callbacks and datamodules are shared by all rooms, whose pages have their evidence."""
    wanted = ["Parts", "Configs"]
    if name.startswith("zoo/"):
        wanted += ["Differences from the official code", "Evidence"]
    assert re.findall(r"^## (.*)$", PAGES[name], flags=re.M) == wanted
    assert "```" in PAGES[name].split("## Parts")[0]  # its picture


@pytest.mark.parametrize("name", NAMES)
def test_names_exist_and_are_documented(name: str) -> None:
    module, _, attribute = name.rpartition(".")
    assert getattr(importlib.import_module(module), attribute).__doc__


@pytest.mark.parametrize("package", ["callbacks", "datamodules"])
def test_every_public_name_of_the_front_rooms_is_in_their_table(package: str) -> None:
    for name in dir(importlib.import_module(f"zoo.{package}")):
        assert f"`zoo.{package}.{name}`" in PAGES[f"{package}/README.md"]


@pytest.mark.parametrize("source", EXAMPLES)
def test_examples_run(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(source, "README.md", "exec"), {})


def test_configs_named_exist_and_all_are_named() -> None:
    texts = [page.split("## Configs")[1].split("\n## ")[0] for page in PAGES.values()]
    texts += [page.split("## Differences")[1] for page in PAGES.values() if "## Differences" in page]
    named = {
        word
        for text in texts
        for word in re.findall(r"`((?:flow|lm|vision|callbacks)/[\w/]+|quickstart)`", text)
    }
    configs = ROOT / "configs"
    assert named == {str(path.relative_to(configs).with_suffix("")) for path in configs.rglob("*.yaml")}


@pytest.mark.parametrize(("name", "text", "script"), RESULTS)
def test_every_number_of_a_result_was_measured(name: str, text: str, script: str) -> None:
    rows = json.loads((ROOT / f"tests/evidence/results/{script}.json").read_text())["rows"]
    measured = " ".join(" ".join(row.values()) for row in rows)
    for number in re.findall(r"(?<![\w.])-?\d+(?:\.\d+)?", text):
        assert re.search(rf"(?<![\d.]){re.escape(number)}(?![\d.]*\d)", measured), (name, number)


def test_the_page_of_evidence_is_the_measured_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path, str(ROOT / "tests" / "evidence")])
    table = importlib.import_module("table")
    assert (ROOT / table.TABLE).read_text() == table.table()
    results = {path.stem for path in table.RESULTS.glob("*.json")}
    assert results <= {name for names in table.ROOMS.values() for name in names}


def test_pictures_and_pages_exist() -> None:
    for name, page in {"README.md": README, **PAGES}.items():
        for path in re.findall(r"!?\[[^\]]*\]\((?!http)([^)#]*)", page):
            assert ((ROOT / name).parent / path).is_file(), (name, path)


def test_nothing_of_a_machine_is_said() -> None:
    """The project speaks of itself alone."""
    folders = ("zoo", "callbacks", "datamodules", "configs", "notebooks", "tests/evidence", "tests/configs")
    paths = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file()]
    for path in [*ROOT.glob("*.*"), *paths]:
        if path.suffix in {".md", ".toml", ".txt", ".py", ".yaml", ".json", ".ipynb"}:
            assert not re.search(r"(^|[\s\"'(])/(root|work|home)/", path.read_text()), path
