"""What several callbacks need of the module they work on."""

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging


def averaged(trainer: Trainer, pl_module: LightningModule) -> LightningModule:
    """The copy with averaged weights where a `WeightAveraging` callback keeps one, else the module."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, WeightAveraging) and callback._average_model is not None:
            module = callback._average_model.module
            assert isinstance(module, LightningModule)
            return module
    return pl_module
