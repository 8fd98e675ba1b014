"""Handwritten digits: 1,797 real 8 x 8 gray images in ten classes, shipped inside scikit-learn."""

import torch

from zoo import rng
from zoo.datamodules._base import SplitDataModule
from zoo.datamodules._loader import Table

_SPLIT_SEED = 0  # of the held-out rows: the same for every run, so that numbers compare


class Digits(SplitDataModule):
    """UCI handwritten digits (Alpaydin and Kaynak 1998): the 1,797 images that scikit-learn ships.

    Batches are dicts: ``x`` (B, 1, 8, 8) float32 in [-1, 1] (the pixels are whole numbers 0..16, divided by
    8, less 1), ``label`` (B,) int64, ``index`` (B,) int64, the row in its split. A fifth of each class (355
    images), the same for every seed, is held out for validation and test.

    Args:
        batch_size: Items per batch and process.
        num_workers: Worker processes that read ahead; the table is in memory, so 0 is fastest.
        seed: Seed of the training order. None takes the run's, or 0 without one.
    """

    num_classes = 10

    def __init__(self, batch_size: int = 128, num_workers: int = 0, seed: int | None = None) -> None:
        super().__init__(batch_size, num_workers, seed)
        self.save_hyperparameters()

    def setup(self, stage: str) -> None:
        """Reads the table and splits it, the same for every stage and seed."""
        from sklearn.datasets import load_digits

        pixels, labels = load_digits(return_X_y=True)
        x = torch.tensor(pixels, dtype=torch.float32).reshape(-1, 1, 8, 8) / 8 - 1  # (N, 1, 8, 8)
        label = torch.tensor(labels, dtype=torch.int64)
        held_out = torch.zeros(len(label), dtype=torch.bool)
        order = rng.permutation(_SPLIT_SEED, 0, len(label), "digits split")
        for digit in range(self.num_classes):
            rows = order[label[order] == digit]
            held_out[rows[: len(rows) // 5]] = True
        self.train_set = Table({"x": x[~held_out], "label": label[~held_out]})
        self.test_set = Table({"x": x[held_out], "label": label[held_out]})
        self.val_set = self.test_set
