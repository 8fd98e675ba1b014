"""Callbacks for any LightningModule: one run-time behaviour, one file."""

if __name__ != "zoo.callbacks":
    raise ImportError(
        "import zoo.callbacks, not callbacks: this folder installs inside zoo (pip install -e .)"
    )

from typing import TYPE_CHECKING

from zoo._lazy import attach

if TYPE_CHECKING:
    pass

__getattr__, __dir__, __all__ = attach(__name__, __file__)
