"""Eight Gaussians on a circle: a two-dimensional distribution with separate modes, in closed form."""

import math

import torch

from zoo import rng
from zoo.datamodules._base import SplitDataModule
from zoo.datamodules._loader import Table


class EightGaussians(SplitDataModule):
    """Points of eight equal Gaussians whose means stand on a circle.

    Batches are dicts: ``x`` (B, 2) float32, ``label`` (B,) int64, the component 0..7 counted from the x axis
    against the clock, ``index`` (B,) int64, the row in its split. Every point is a function of its row.

    Args:
        batch_size: Points per batch and process.
        size: Points in the training split; the held-out split has a quarter as many, drawn apart.
        radius: Radius of the circle.
        std: Standard deviation of each component, per coordinate.
        num_workers: Worker processes that read ahead; the table is in memory, so 0 is fastest.
        seed: Seed of the training order. None takes the run's, or 0 without one.
    """

    num_classes = 8

    def __init__(
        self,
        batch_size: int = 256,
        size: int = 16384,
        radius: float = 1.0,
        std: float = 0.1,
        num_workers: int = 0,
        seed: int | None = None,
    ) -> None:
        super().__init__(batch_size, num_workers, seed)
        self.save_hyperparameters()
        if size < 4 or radius <= 0 or std <= 0:
            raise ValueError(f"size must be at least 4, radius and std positive; got {size}, {radius}, {std}")
        self.size, self.radius, self.std = size, radius, std

    def setup(self, stage: str) -> None:
        """Draws both splits, the same for every stage and seed."""
        self.train_set = self._points(self.size, "train")
        self.test_set = self._points(self.size // 4, "test")
        self.val_set = self.test_set

    def _points(self, size: int, split: str) -> Table:
        index = torch.arange(size)
        label = index % self.num_classes
        angle = label * (2 * math.pi / self.num_classes)
        means = self.radius * torch.stack([angle.cos(), angle.sin()], dim=1)  # (N, 2)
        return Table({"x": means + self.std * rng.normal(0, 0, index, (2,), split), "label": label})
