"""`EMAGap`: how much better the averaged weights are than the current ones, while training goes on."""

import time

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.utilities import move_data_to_device
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from typing_extensions import override

from zoo._modes import evaluating
from zoo.callbacks._modules import averaged
from zoo.callbacks._validation_probe import ValidationProbe


class EMAGap(ValidationProbe):
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
        super().__init__(every_n_steps, batches)
        self.loss = loss

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
        self.check_method(pl_module, "loss", self.loss, "from a batch to a scalar loss")

    @override
    def look(self, trainer: Trainer, pl_module: LightningModule) -> None:
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
