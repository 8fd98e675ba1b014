"""Names that load on first use (PEP 562), from one list that type checkers, `zoo list` and Python all read.

A package's ``__init__.py`` imports its public names under ``if TYPE_CHECKING:`` and hands itself to `attach`,
which reads those import statements from the source. Nothing is imported until a name is asked for, so
``import zoo.flow`` costs nothing and stays free of Lightning.
"""

import ast
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any


def table(source: str) -> dict[str, str]:
    r"""Maps each name imported under ``if TYPE_CHECKING:`` in ``source`` to the module that defines it.

    >>> table("if TYPE_CHECKING:\n    from zoo.flow.mean_flow_times import TimeSampler as TimeSampler")
    {'TimeSampler': 'zoo.flow.mean_flow_times'}
    """
    names: dict[str, str] = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            for statement in node.body:
                if isinstance(statement, ast.ImportFrom) and statement.module and statement.level == 0:
                    names |= {alias.asname or alias.name: statement.module for alias in statement.names}
    return names


def attach(package: str, file: str) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Returns ``(__getattr__, __dir__, __all__)`` for the package whose ``__init__.py`` is ``file``."""
    names = table(Path(file).read_text(encoding="utf-8"))

    def __getattr__(name: str) -> Any:
        if name not in names:
            raise AttributeError(
                f"module {package!r} has no attribute {name!r}; it has {', '.join(sorted(names))}"
            )
        return getattr(importlib.import_module(names[name]), name)

    return __getattr__, lambda: sorted(names), sorted(names)
