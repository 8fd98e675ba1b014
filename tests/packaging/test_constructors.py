"""LightningModules stay shells with constructors that read well: few lines, few arguments, given by name."""

import importlib
import inspect
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest
from layout import sources
from lightning.pytorch import LightningModule

MOST_LINES, MOST_ARGUMENTS = 200, 14
POSITIONAL = {"network", "teacher", "config", "n"}  # what a module is of


def modules(root: Path) -> dict[str, type[LightningModule]]:
    """Every LightningModule that the zoo defines, base classes too."""
    found = {}
    for name, _ in sources(root):
        if name.split(".")[1:2] not in [["callbacks"], ["datamodules"], ["_cli"], ["cli"], ["__main__"]]:
            module = importlib.import_module(name)
            for cls in vars(module).values():
                if isinstance(cls, type) and issubclass(cls, LightningModule) and cls.__module__ == name:
                    found[f"{name}.{cls.__name__}"] = cls
    return found


@pytest.fixture(scope="module")
def found(root: Path) -> dict[str, type[LightningModule]]:
    return modules(root)


def test_modules_are_found(found: dict[str, type[LightningModule]]) -> None:
    names = {cls.__name__ for cls in found.values()}
    assert {"ZooModule", "FlowModule", "MeanFlow", "CMT", "CausalLM", "BigramTable"} <= names


def test_modules_are_short(found: dict[str, type[LightningModule]]) -> None:
    lines = {name: len(Path(inspect.getfile(cls)).read_text().splitlines()) for name, cls in found.items()}
    assert {name: count for name, count in lines.items() if count > MOST_LINES} == {}


def test_constructors_have_few_arguments(found: dict[str, type[LightningModule]]) -> None:
    counts = {name: len(inspect.signature(cls).parameters) for name, cls in found.items()}
    assert {name: count for name, count in counts.items() if count > MOST_ARGUMENTS} == {}


def test_arguments_are_given_by_name(found: dict[str, type[LightningModule]]) -> None:
    """But for what a module is of: its network (or the config of one), and CMT's teacher."""
    wrong = {
        name: [p.name for p in inspect.signature(cls).parameters.values() if p.kind != p.KEYWORD_ONLY]
        for name, cls in found.items()
    }
    assert {name: names for name, names in wrong.items() if not set(names) <= POSITIONAL} == {}


def test_groups_of_arguments_are_frozen_and_documented(found: dict[str, type[LightningModule]]) -> None:
    groups = {
        type(parameter.default)
        for cls in found.values()
        for parameter in inspect.signature(cls).parameters.values()
        if is_dataclass(parameter.default)
    }
    assert len(groups) >= 9
    for group in groups:
        assert group.__dataclass_params__.frozen, group  # type: ignore[attr-defined]
        for field in fields(group):
            assert f"        {field.name}: " in (inspect.getsource(group)), (group, field.name)
