"""The examples in the docstrings of zoo, zoo.callbacks and zoo.datamodules."""

import doctest
import importlib
from pathlib import Path

import pytest
from layout import sources

ROOT = Path(__file__).resolve().parents[2]
MODULES = [name for name, path in sources(ROOT) if ">>>" in path.read_text()]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    import torch

    module = importlib.import_module(name)
    failed, attempted = doctest.testmod(
        module, extraglobs={"torch": torch}, optionflags=doctest.NORMALIZE_WHITESPACE
    )
    assert attempted > 0
    assert failed == 0
