"""A user's own model and data, outside the zoo: tests copy this file to a temporary folder."""

import os
import signal
import time

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torch.utils.data import DataLoader


class Net(LightningModule):
    """A perceptron with dropout on digits.

    Args:
        width: Hidden units.
        depth: Not used.
        act: The nonlinearity.
        optimizer: Builds the optimizer.
    """

    def __init__(
        self,
        width: int = 4,
        depth: int | None = None,
        act: nn.Module | None = None,
        optimizer: OptimizerCallable = torch.optim.AdamW,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.optimizer = optimizer
        self.net = nn.Sequential(
            nn.Flatten(), nn.Linear(64, width), act or nn.ReLU(), nn.Dropout(0.3), nn.Linear(width, 1)
        )

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        return (self.net(batch["x"])[:, 0] - batch["label"]).square().mean()

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.log("val/loss", self.loss(batch))

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.log("test/loss", self.loss(batch))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optimizer(self.parameters())


class Data(LightningDataModule):
    """Noise in the form of digits.

    Args:
        size: Number of items.
    """

    def __init__(self, size: int = 64) -> None:
        super().__init__()
        if size < 1:
            raise ValueError(f"size must be at least 1, got {size}")
        self.size = size

    def train_dataloader(self) -> DataLoader:
        x = torch.randn(self.size, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        return DataLoader([{"x": item, "label": torch.tensor(1.0)} for item in x], batch_size=16)

    val_dataloader = test_dataloader = predict_dataloader = train_dataloader


class Signal(Callback):
    """Sends this process a signal in the middle of an update, as a user or a scheduler would.

    Args:
        step: The update, counted from 0.
        name: The signal.
        times: How often.
    """

    def __init__(self, step: int, name: str = "SIGINT", times: int = 1) -> None:
        self.step, self.name, self.times = step, name, times

    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:  # type: ignore[no-untyped-def]
        for _ in range(self.times if trainer.global_step == self.step and trainer.is_global_zero else 0):
            os.kill(os.getpid(), getattr(signal, self.name))
            time.sleep(0.05)  # Python runs the handler of a signal a moment later


class Slow(Callback):
    """Makes updates slow enough to be interrupted from outside.

    Args:
        seconds: Rest before each update.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:  # type: ignore[no-untyped-def]
        time.sleep(self.seconds)
