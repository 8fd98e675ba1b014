"""LightningDataModules: one source of data, one file. Each has a default that needs no download."""

if __name__ != "zoo.datamodules":
    raise ImportError(
        "import zoo.datamodules, not datamodules: this folder installs inside zoo (pip install -e .)"
    )

from typing import TYPE_CHECKING

from zoo._lazy import attach

if TYPE_CHECKING:
    from zoo.datamodules.bigram import Bigram as Bigram
    from zoo.datamodules.bigram_backcopy import BigramBackcopy as BigramBackcopy
    from zoo.datamodules.checkerboard import Checkerboard as Checkerboard
    from zoo.datamodules.cifar10 import CIFAR10 as CIFAR10
    from zoo.datamodules.class_labels import ClassLabels as ClassLabels
    from zoo.datamodules.digits import Digits as Digits
    from zoo.datamodules.eight_gaussians import EightGaussians as EightGaussians
    from zoo.datamodules.image_folder import ImageFolder as ImageFolder
    from zoo.datamodules.latents import Latents as Latents
    from zoo.datamodules.mixture_1d import Mixture1D as Mixture1D
    from zoo.datamodules.text import Text as Text
    from zoo.datamodules.trajectories import Trajectories as Trajectories

__getattr__, __dir__, __all__ = attach(__name__, __file__)
