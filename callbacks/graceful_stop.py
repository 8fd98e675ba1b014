"""Ctrl-C and SIGTERM in a fit: finish the batch, save a checkpoint, stop; the next run goes on from there.

Lightning stops in the middle of a batch on Ctrl-C and saves nothing; on SIGTERM its handler starts a
collective operation inside the signal handler and rank zero leaves the loop before the others. Here a signal
only sets a flag. The flag is read when a batch ends; under several processes it is agreed on there (one
number reduced over the ranks, which Lightning does once a step as well), so that all of them save the same
update.
"""

import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from zoo import events
from zoo.callbacks._only_one import only_one

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(SystemExit):
    """What ``trainer.fit`` raises after a signal: the exit status that shells expect, 128 and its number.

    Attributes:
        signum: The signal.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(128 + signum)
        self.signum = signum

    def __str__(self) -> str:
        return f"stopped by {signal.Signals(self.signum).name}"


class GracefulStop(Callback):
    """Stops a fit on Ctrl-C or SIGTERM when the batch ends, with a checkpoint to go on from.

    The checkpoint is ``checkpoints/interrupted.ckpt`` in the run's folder. A validation or an end of an epoch
    that is due after that batch is still carried out, and the checkpoint saved again after it, since a
    resumed run does not repeat them. Gradients that are being accumulated are completed first. Then
    ``trainer.fit`` raises `Interrupted`, a `SystemExit`. A second signal stops at once, unsaved. ``zoo fit``
    adds this callback to every run.

    Under SLURM with automatic requeueing SIGTERM is left to Lightning. In a fit that does not run in the main
    thread, which alone can take signals, this callback does nothing.

    Attributes:
        received: The signal that came, on this process; 0 before.

    Raises:
        ValueError: on starting: there are two of them.
    """

    def __init__(self) -> None:
        self.received = 0
        self._stopping = 0  # the signal that all processes agreed to stop for
        self._before: dict[int, Any] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuses a second one, and moves behind the checkpoint callbacks, whose state it saves."""
        only_one(self, trainer, "a signal has one handler")
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        # A new list: Lightning is iterating over the old one.
        trainer.callbacks = [*(other for other in callbacks if other is not self), self]  # type: ignore[attr-defined]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begins with no signal; the Trainer takes SIGTERM after this hook, so that ours come later."""
        self.received = self._stopping = 0

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes the signals."""
        self._install(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes the signals, where there was no sanity check."""
        self._install(trainer)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Stops, if the batch before was the last."""
        if self._stopping:
            stop = Interrupted(self._stopping)
            saved = "" if _dry(trainer) else f"; saved {events.display_path(interrupted_checkpoint(trainer))}"
            rank_zero_info(f"{stop}{saved}")
            raise stop

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Agrees on whether to stop, and saves."""
        wanted = self.received if trainer.world_size == 1 else _largest(trainer, self.received)
        if wanted and not trainer.fit_loop._should_accumulate():
            self._stopping = wanted
            _save(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves what the validation changed: early stopping, the best checkpoint."""
        if self._stopping:
            _save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves what the end of the epoch changed."""
        if self._stopping:
            _save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gives the signals back to Lightning, before it gives them back itself."""
        self._release()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Gives the signals back, as at the end."""
        self._release()

    def _release(self) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        self._before = {}

    def _install(self, trainer: Trainer) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        environment = trainer._accelerator_connector.cluster_environment
        requeued = isinstance(environment, SLURMEnvironment) and environment.auto_requeue
        for signum in () if self._before else _SIGNALS:
            if signum == signal.SIGTERM and requeued:
                continue  # Lightning's own way under SLURM: SIGUSR1 saves and requeues the job
            self._before[signum] = signal.signal(signum, self._handle)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self.received:
            raise KeyboardInterrupt  # the second time: at once
        self.received = signum


def interrupted_checkpoint(trainer: Trainer) -> Path:
    """Where an interrupted run is saved: on global rank zero, the only one that writes it."""
    return events.run_folder(trainer) / "checkpoints" / "interrupted.ckpt"


def _save(trainer: Trainer) -> None:
    if not _dry(trainer):
        trainer.save_checkpoint(interrupted_checkpoint(trainer))


def _dry(trainer: Trainer) -> bool:
    return bool(trainer.fast_dev_run)  # type: ignore[attr-defined]


def _largest(trainer: Trainer, number: int) -> int:
    flag = torch.tensor(number, device=trainer.strategy.root_device)
    torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
    return int(flag.item())
