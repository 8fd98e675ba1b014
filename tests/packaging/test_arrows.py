"""Who may import whom (the rooms of the house), read from the code."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from layout import sources

from zoo._lazy import table

ROOMS = {"flow", "schedules", "recovery", "sinks", "instability", "vlm", "memory", "lm", "vision"}
GROUND = {
    "_hyperparameters", "_lazy", "_modes", "_suggest", "archives", "attention", "base", "checkpoint_io",
    "events", "hf", "import_policy", "io", "metrics", "pickles", "rng", "run_files", "run_logger", "runs",
    "state_dicts",
}  # fmt: skip
COMMAND_LINE = {"cli", "_cli", "__main__"}


def imports(source: str) -> set[str]:
    """Modules of the zoo that a source imports anywhere, lazily too; the PEP 562 table is among them."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module or ""}
    return {name for name in found if name.split(".")[0] == "zoo"}


def forbidden(module: str, target: str) -> str | None:
    """Why ``module`` may not import ``target``, or None."""
    here, there = [*module.split("."), ""][1], [*target.split("."), ""][1]
    if there in COMMAND_LINE and here not in COMMAND_LINE:
        return "only the command line imports the command line"
    if there in {"callbacks", "datamodules"} and here not in COMMAND_LINE:
        if here != there:
            return f"only the command line and {there} themselves import {there}"
        inside = target.split(".")[2:]
        package = module == f"zoo.{here}"
        if inside and not inside[0].startswith("_") and not package and target != module:
            return "siblings share only helpers whose name starts with _"
    if there in ROOMS:
        if here in GROUND:
            return "the ground imports no room"
        if here in ROOMS and here != there:
            return "rooms never import each other"
    return None


def test_no_forbidden_arrow(root: Path) -> None:
    wrong = [
        f"{module} imports {target}: {reason}"
        for module, path in sources(root)
        for target in imports(path.read_text())
        if (reason := forbidden(module, target))
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("zoo.flow.x", "from zoo.memory import MemoryStore"),
        ("zoo.rng", "def f():\n    import zoo.flow"),
        ("zoo.metrics.x", "from zoo import flow"),
        ("zoo.flow.x", "from zoo.callbacks import SampleGrid"),
        ("zoo.callbacks.x", "from zoo.callbacks.sample_grid import SampleGrid"),
        ("zoo.callbacks.x", "from zoo.datamodules import Digits"),
        ("zoo.flow.x", "import zoo.cli"),
        ("zoo.flow", "if TYPE_CHECKING:\n    from zoo.lm.host import CausalLM"),
    ],
)
def test_forbidden_arrows_are_seen(module: str, source: str) -> None:
    assert any(forbidden(module, target) for target in imports(source))


def test_every_package_has_a_room(root: Path) -> None:
    known = ROOMS | GROUND | COMMAND_LINE | {"callbacks", "datamodules", "zoo", ""}
    assert {[*module.split("."), ""][1] for module, _ in sources(root)} <= known


def lower_floors(root: Path) -> list[str]:
    """Modules of the rooms that hold functions of tensors and nn.Modules.

    LightningModules live in files of their own, whose names end in ``_module``.
    """
    return [
        module
        for module, path in sources(root)
        if [*module.split("."), ""][1] in ROOMS | {"rng", "io", "run_files", "runs", "pickles", "archives"}
        and not module.endswith(("commands", "_module"))
    ]


def test_lower_floors_leave_lightning_alone(root: Path) -> None:
    """Functions and networks import neither Lightning nor the heavy packages; every lazy name resolves."""
    modules = lower_floors(root)
    assert "zoo.flow.networks.dit" in modules
    heavy = [
        "lightning",
        "pytorch_lightning",
        "torchmetrics",
        "transformers",
        "timm",
        "faiss",
        "sklearn",
        "scipy",
        "matplotlib",
    ]
    code = (
        f"import importlib, sys\nfor name in {modules!r}: importlib.import_module(name)\n"
        f"print([name for name in {heavy!r} if name in sys.modules])"
    )
    seen = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert seen.strip() == "[]"


def test_importing_the_package_costs_nothing() -> None:
    names = "zoo, zoo.flow, zoo.callbacks, zoo.datamodules, zoo.metrics"
    code = f"import sys, {names}; print('torch' in sys.modules)"
    seen = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert seen.strip() == "False"


def test_lazy_names_resolve_and_others_are_refused(root: Path) -> None:
    import importlib

    for module, path in sources(root):
        if path.name == "__init__.py":
            package = importlib.import_module(module)
            names = table(path.read_text())
            for name, target in names.items():
                assert getattr(package, name) is getattr(importlib.import_module(target), name)
            if names:
                assert dir(package) == sorted(names)
                with pytest.raises(AttributeError, match="NoSuchName"):
                    _ = package.NoSuchName
