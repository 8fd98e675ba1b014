"""Callbacks for any LightningModule: one run-time behaviour, one file."""

if __name__ != "zoo.callbacks":
    raise ImportError("this folder installs as zoo.callbacks: import zoo.callbacks, after `pip install -e .`")

from typing import TYPE_CHECKING

from zoo._lazy import attach

if TYPE_CHECKING:
    pass

__getattr__, __dir__, __all__ = attach(__name__, __file__)
