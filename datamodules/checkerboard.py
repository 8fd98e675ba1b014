"""A checkerboard in the plane: a distribution with sharp edges and corners, flat on every other square."""

import torch
from torch import Tensor

from zoo import rng
from zoo.datamodules._base import SplitDataModule
from zoo.datamodules._loader import Table


class Checkerboard(SplitDataModule):
    """Points spread evenly over the dark squares of a board around the origin.

    Batches are dicts: ``x`` (B, 2) float32, ``label`` (B,) int64, the number of the dark square, row by row
    from the lower left, ``index`` (B,) int64, the row in its split. Every point is a function of its row.
    `density` is the truth.

    Args:
        batch_size: Points per batch and process.
        size: Points in the training split; the held-out split has a quarter as many, drawn apart.
        squares: Squares along a side, an even number; half of all are dark, the lower left one among them.
        half_width: Half the side of the board.
        num_workers: Worker processes that read ahead; the table is in memory, so 0 is fastest.
        seed: Seed of the training order. None takes the run's, or 0 without one.

    Raises:
        ValueError: ``squares`` is not even, or another number is too small.
    """

    def __init__(
        self,
        batch_size: int = 256,
        size: int = 16384,
        squares: int = 4,
        half_width: float = 1.0,
        num_workers: int = 0,
        seed: int | None = None,
    ) -> None:
        super().__init__(batch_size, num_workers, seed)
        self.save_hyperparameters()
        if squares < 2 or squares % 2:
            raise ValueError(f"squares must be an even number of at least 2, got {squares}")
        if size < 4 or half_width <= 0:
            raise ValueError(f"size must be at least 4 and half_width positive, got {size} and {half_width}")
        self.size, self.squares, self.half_width = size, squares, half_width
        self.num_classes = squares**2 // 2

    def density(self, x: Tensor) -> Tensor:
        """The density of the distribution at the points ``x`` (B, 2), as (B,).

        >>> Checkerboard().density(torch.tensor([[-0.9, -0.9], [-0.4, -0.9], [1.1, 0.9]]))
        tensor([0.5000, 0.0000, 0.0000])
        """
        cell = ((x / self.half_width + 1) * self.squares / 2).floor()  # (B, 2)
        dark = (cell.sum(1) % 2 == 0) & ((cell >= 0) & (cell < self.squares)).all(1)
        return dark.to(x.dtype) * (2 / (2 * self.half_width) ** 2)

    def setup(self, stage: str) -> None:
        """Draws both splits, the same for every stage and seed."""
        self.train_set = self._points(self.size, "train")
        self.test_set = self._points(self.size // 4, "test")
        self.val_set = self.test_set

    def _points(self, size: int, split: str) -> Table:
        index = torch.arange(size)
        label = index % self.num_classes
        row = label // (self.squares // 2)
        column = 2 * (label % (self.squares // 2)) + row % 2  # every other one, shifted from row to row
        corner = torch.stack([column, row], dim=1)  # (N, 2)
        place = (corner + rng.uniform(0, 0, index, (2,), split)) * (2 / self.squares) - 1
        return Table({"x": self.half_width * place, "label": label})
