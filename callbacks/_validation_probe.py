"""Callbacks that look at a model every few updates, on validation batches that are read once."""

import itertools
from abc import abstractmethod
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.seed import isolate_rng
from typing_extensions import override


class ValidationProbe(Callback):
    """Looks at the model on the first batches of the validation data, every N updates.

    The batches are read once, when training begins; reading them leaves the random states as they were.

    Args:
        every_n_steps: Updates between two looks.
        batches: How many batches of each process.

    Raises:
        ValueError: numbers below 1; when training begins: the run has no validation data.
    """

    def __init__(self, every_n_steps: int, batches: int) -> None:
        for name, value in (("every_n_steps", every_n_steps), ("batches", batches)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.every_n_steps = every_n_steps
        self.batches = batches
        self._kept: list[Any] = []
        self._before = 0

    @abstractmethod
    def look(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Looks at the model on `_kept`; called on all processes."""

    def check_method(self, pl_module: LightningModule, argument: str, name: str, what: str) -> None:
        """Refuses a module without a method that an argument names.

        Args:
            pl_module: The module.
            argument: The argument.
            name: The method.
            what: What the method does, for the message.
        """
        if not callable(getattr(pl_module, name, None)):
            raise ValueError(
                f"{type(self).__name__}({argument}={name!r}) needs a method of {type(pl_module).__name__} of "
                f"this name, {what}; it has none: name the one that it has, or write it"
            )

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._before = trainer.global_step
        name, loaders = type(self).__name__, trainer.val_dataloaders
        if not loaders:
            raise ValueError(
                f"{name} needs validation data, and this run has none: give the datamodule a val_dataloader, "
                "and leave limit_val_batches above 0"
            )
        if isinstance(loaders, dict):
            loaders = list(loaders.values())
        flat = loaders if isinstance(loaders, list | tuple) else [loaders]
        with isolate_rng():  # an iterator of a stock DataLoader draws a seed
            self._kept = list(itertools.islice(itertools.chain.from_iterable(flat), self.batches))
        if not self._kept:
            raise ValueError(f"{name} needs validation data, and this run's val_dataloader gives no batch")

    @override
    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Notes the updates done: under accumulation a batch makes none, with two optimizers two."""
        self._before = trainer.global_step

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Looks, if this batch passed a multiple of ``every_n_steps``."""
        if trainer.global_step // self.every_n_steps > self._before // self.every_n_steps:
            self.look(trainer, pl_module)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._kept = []

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._kept = []
