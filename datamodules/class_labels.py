"""Requests for samples: what `zoo predict` asks of a generative model, without any data."""

from typing import Any

import torch
from torch.utils.data import Dataset

from zoo.datamodules._base import SplitDataModule
from zoo.datamodules._loader import Loader, Table


class _Unlabeled(Dataset):
    """Items without fields: their index is all they are."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {}


class ClassLabels(SplitDataModule):
    r"""Asks for ``count`` samples, for `zoo predict` alone: each class in turn.

    Batches are dicts: ``label`` (B,) int64, if there are classes, and ``index`` (B,) int64, which numbers the
    samples from 0. What a model of the zoo draws depends on its seed, the index and the label, and not on the
    batch size or the number of processes. 50,000 samples for FID:

        zoo predict --config RUN/config.yaml --ckpt_path RUN/checkpoints/X.ckpt --return_predictions false \
            --data ClassLabels --data.count 50000 --data.num_classes 10

    Args:
        count: Samples in all.
        num_classes: Number of classes, of which sample i gets i modulo that; None for a model without.
        labels: Classes to take in turn instead, in this order; one may stand there more than once.
        batch_size: Samples per batch and process.

    Raises:
        ValueError: a number is too small, a label is out of range, or ``labels`` has no ``num_classes`` to be
            checked against.
    """

    def __init__(
        self,
        count: int,
        num_classes: int | None = None,
        labels: list[int] | None = None,
        batch_size: int = 256,
    ) -> None:
        super().__init__(batch_size)
        self.save_hyperparameters()
        if count < 1:
            raise ValueError(f"count must be at least 1, got {count}")
        if num_classes is not None and num_classes < 1:
            raise ValueError(f"num_classes must be at least 1 (None for no classes), got {num_classes}")
        if labels is not None:
            if num_classes is None:
                raise ValueError("labels need num_classes beside them, the number of classes of the model")
            if not labels or not 0 <= min(labels) <= max(labels) < num_classes:
                raise ValueError(f"labels must be classes 0 to {num_classes - 1}, got {labels}")
        self.count, self.num_classes, self.labels = count, num_classes, labels

    def setup(self, stage: str) -> None:
        """Numbers the requests.

        Raises:
            ValueError: something other than predictions is asked for.
        """
        if stage != "predict":
            name = getattr(stage, "value", stage)  # Lightning gives an enum
            raise ValueError(f"ClassLabels has no data to {name} on; it is for `zoo predict`")
        if self.num_classes is None:
            self.test_set = _Unlabeled(self.count)
            return
        turns = torch.tensor(self.labels or list(range(self.num_classes)), dtype=torch.int64)
        self.test_set = Table({"label": turns[torch.arange(self.count) % len(turns)]})

    def predict_dataloader(self) -> Loader:
        """Every request once, in order."""
        return self._loader(self.test_set, train=False)
