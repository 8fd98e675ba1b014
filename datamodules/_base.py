"""The four loaders of a datamodule whose `setup` fills ``train_set``, ``val_set`` and ``test_set``."""

import os
from typing import Any

import torch

from zoo.base import ZooDataModule
from zoo.datamodules._loader import Loader, Transform

# More would fill the memory before they read a batch, and a mistyped number would take the machine down.
MAX_WORKERS = max(64, 8 * (os.cpu_count() or 1))


class SplitDataModule(ZooDataModule):
    """A datamodule over map-style datasets, with loaders that a resumed run continues (`Loader`).

    A subclass fills ``train_set``, ``val_set`` and ``test_set`` in `setup`; where one of the latter two stays
    None, there is no validation, and a test is refused. Without a Trainer the loaders are those of one
    process.

    Args:
        batch_size: Items per batch and process.
        num_workers: Worker processes that read ahead; at most 8 for each core of the machine, or 64.
        seed: Seed of the training order. None takes the run's, or 0 without one.
    """

    train_set: Any = None
    val_set: Any = None
    test_set: Any = None

    def __init__(self, batch_size: int, num_workers: int = 0, seed: int | None = None) -> None:
        super().__init__(seed)
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if not 0 <= num_workers <= MAX_WORKERS:
            raise ValueError(
                f"num_workers must be 0 to {MAX_WORKERS} (8 a core, and at least 64), got {num_workers}"
            )
        self.batch_size = batch_size
        self.num_workers = num_workers

    def train_dataloader(self) -> Loader:
        """Shuffled whole batches, without end over the epochs."""
        return self._loader(self.train_set, train=True)

    def val_dataloader(self) -> Loader | list[Any]:
        """Every validation item once, in order."""
        return [] if self.val_set is None else self._loader(self.val_set, train=False)

    def test_dataloader(self) -> Loader:
        """Every test item once, in order."""
        return self._loader(self.test_set, train=False)

    def reference_dataloader(self) -> Loader:
        """Every training item once, in order: what generated samples are compared with."""
        return self._loader(self.train_set, train=False)

    def predict_dataloader(self) -> Loader:
        """The test items: their labels are what is asked of a generative model."""
        return self._loader(self.test_set, train=False)

    def transform(self, train: bool) -> Transform | None:
        """What is done to each batch where it is read (`Loader`), in training or elsewhere; nothing here."""
        return None

    def _loader(self, dataset: Any, train: bool) -> Loader:
        if dataset is None:
            raise ValueError(
                f"{type(self).__name__} was given no data to test on. To sample with `zoo predict` without "
                "any, use the datamodule ClassLabels"
            )
        trainer = self.trainer
        return Loader(
            dataset,
            self.batch_size,
            train=train,
            seed=self.seed,
            rank=trainer.global_rank if trainer else 0,
            world_size=trainer.world_size if trainer else 1,
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
            transform=self.transform(train),
        )
