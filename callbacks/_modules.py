"""What several callbacks need of the module they work on."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch.nn import Module


def averaged(trainer: Trainer, pl_module: LightningModule) -> LightningModule:
    """The copy with averaged weights where a `WeightAveraging` callback keeps one, else the module."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, WeightAveraging) and callback._average_model is not None:
            module = callback._average_model.module
            assert isinstance(module, LightningModule)
            return module
    return pl_module


@contextmanager
def evaluating(module: Module) -> Iterator[None]:
    """Evaluation mode and no gradients within the block; each submodule gets back the mode it had."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, training in modes:
            part.training = training
