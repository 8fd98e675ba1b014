"""Images as bytes, and their reflections: what the image datamodules share."""

from collections.abc import Sequence

import torch

from zoo import rng
from zoo.datamodules._loader import Batch, Table


class ByteImages(Table):
    """A table whose column ``x`` (N, C, H, W) of bytes is given out as float32 in [-1, 1]: x / 127.5 - 1."""

    def __getitem__(self, index: int) -> Batch:
        item = super().__getitem__(index)
        return item | {"x": item["x"].float() / 127.5 - 1}

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        batch = super().__getitems__(indices)
        return batch | {"x": batch["x"].float() / 127.5 - 1}


class RandomFlip:
    """Reflects half of the images left to right, drawn again in each pass: drawn from (seed, pass, index).

    Args:
        seed: Seed of the draws.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def __call__(self, batch: Batch, number: int) -> Batch:
        """A batch with ``x`` (B, C, H, W) and ``index`` in pass ``number``."""
        turned = rng.uniform(self.seed, number, batch["index"], (), "flip") < 0.5
        x = batch["x"]
        return batch | {"x": torch.where(turned[:, None, None, None], x.flip(-1), x)}
