"""`EMAGap`: how much better the averaged weights are than the current ones, while training goes on."""

import itertools
import time
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, WeightAveraging
from lightning.pytorch.utilities import move_data_to_device
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from typing_extensions import override

from zoo._modes import evaluating
from zoo.callbacks._modules import averaged


class EMAGap(Callback):
    """Logs the loss of the averaged weights minus that of the current ones, on a few validation batches.

    The cheapest look at the hill of the river valley (arXiv 2410.05192): an average stands at the river's
    floor, the weights on its hillside, so the gap is about minus the height that a decay would come down.
    While the loss falls fast the average lags behind, and the gap is positive; at a constant learning rate
    it becomes negative and settles (Marin 8B: about .015 bits per byte), and it closes as the rate decays.

    Needs a `WeightAveraging` callback (Lightning's ``EMAWeightAveraging``), listed before this one so that
    the average holds the update just made, and a method of the module from a batch to its loss. The batches
    are the first of each process's validation data, read once when training begins and kept on the CPU;
    under DDP the gap is the mean over processes. Both losses are taken in evaluation mode.

    Logs ``ema_gap`` (also to ``trainer.callback_metrics``), ``ema_gap/loss`` of the current weights, and
    ``ema_gap/seconds``, what the look took. Until the average has taken in an update there is no gap.

    Not supported: sharded strategies, which weight averaging does not support either.

    Args:
        every_n_steps: Updates between two looks.
        batches: Validation batches of each process to look at.
        loss: Name of the module's method from a batch to a scalar. It must not log.

    Raises:
        ValueError: numbers below 1.
    """

    def __init__(self, every_n_steps: int = 100, batches: int = 8, loss: str = "loss") -> None:
        for name, value in (("every_n_steps", every_n_steps), ("batches", batches)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.every_n_steps = every_n_steps
        self.batches = batches
        self.loss = loss
        self._kept: list[Any] = []
        self._before = 0

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuses a run without an average or a module without the method.

        Raises:
            ValueError: either is missing.
        """
        if stage != "fit":
            return
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        if not any(isinstance(callback, WeightAveraging) for callback in callbacks):
            raise ValueError(
                "EMAGap compares averaged weights with current ones, and this run keeps no average: add to "
                "trainer.callbacks, before EMAGap,\n"
                "- class_path: lightning.pytorch.callbacks.EMAWeightAveraging\n"
                "  init_args: {decay: 0.999}"
            )
        if not callable(getattr(pl_module, self.loss, None)):
            raise ValueError(
                f"EMAGap(loss={self.loss!r}) needs a method of {type(pl_module).__name__} of this name, from "
                "a batch to a scalar loss; it has none: name the one that it has, or write it"
            )

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reads the batches.

        Raises:
            ValueError: the run has no validation data.
        """
        self._before = trainer.global_step
        loaders = trainer.val_dataloaders
        if not loaders:
            raise ValueError(
                "EMAGap needs validation data, and this run has none: give the datamodule a val_dataloader, "
                "and leave limit_val_batches above 0"
            )
        if isinstance(loaders, dict):
            loaders = list(loaders.values())
        flat = loaders if isinstance(loaders, list | tuple) else [loaders]
        with isolate_rng():  # an iterator of a stock DataLoader draws a seed
            self._kept = list(itertools.islice(itertools.chain.from_iterable(flat), self.batches))
        if not self._kept:
            raise ValueError("EMAGap needs validation data, and this run's val_dataloader gives no batch")

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
            self._look(trainer, pl_module)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._kept = []

    def _look(self, trainer: Trainer, pl_module: LightningModule) -> None:
        started = time.perf_counter()
        average = averaged(trainer, pl_module)
        keeper = next(
            callback
            for callback in trainer.callbacks  # type: ignore[attr-defined]
            if isinstance(callback, WeightAveraging)
        )
        assert keeper._average_model is not None
        if int(keeper._average_model.n_averaged) == 0:
            return
        with isolate_rng():  # whatever a loss draws, training goes on with its own stream
            current = self._mean_loss(trainer, pl_module)
            gap = self._mean_loss(trainer, average).to(current) - current
        gap, current = (trainer.strategy.reduce(value, reduce_op="mean") for value in (gap, current))
        # For those who watch: `log` alone would reach the loggers at log_every_n_steps only.
        pl_module.log("ema_gap", gap, on_step=True, on_epoch=False, logger=False, batch_size=1)
        if trainer.is_global_zero:
            values = {"ema_gap": gap.item(), "ema_gap/loss": current.item()}
            values["ema_gap/seconds"] = time.perf_counter() - started
            for logger in trainer.loggers:
                logger.log_metrics(values, step=trainer.global_step)

    def _mean_loss(self, trainer: Trainer, module: LightningModule) -> Tensor:
        """The mean over the kept batches (), in float32, on the module's device."""
        device = next(module.parameters()).device  # an average may be kept on the CPU
        losses = []
        with torch.no_grad(), evaluating(module), trainer.precision_plugin.val_step_context():
            for batch in self._kept:
                moved = move_data_to_device(trainer.precision_plugin.convert_input(batch), device)
                losses.append(getattr(module, self.loss)(moved).detach().float())
        return torch.stack(losses).mean()
