"""LightningDataModules: one source of data, one file. Each has a default that needs no download."""

if __name__ != "zoo.datamodules":
    raise ImportError("this folder installs as zoo.datamodules: import zoo.datamodules, after `pip install -e .`")

from typing import TYPE_CHECKING

from zoo._lazy import attach

if TYPE_CHECKING:
    from zoo.datamodules.digits import Digits
    from zoo.datamodules.eight_gaussians import EightGaussians

__getattr__, __dir__, __all__ = attach(__name__, __file__)
