"""Ctrl-C and SIGTERM in a fit: finish the batch, save a checkpoint, stop; the next run goes on from there.

Lightning stops in the middle of a batch on Ctrl-C and saves nothing; on SIGTERM its handler starts a
collective operation inside the signal handler and rank zero leaves the loop before the others. Here a signal
only sets a flag. The flag is looked at when a batch ends; under several processes it is agreed on there (one
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

from zoo import events
from zoo._cli.runs import CHECKPOINT_KEY, files_state

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(BaseException):
    """Training stopped after a signal, with a checkpoint saved. No `Exception`: only the command takes it."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.signum = signum


class Interrupt(Callback):
    """Saves ``checkpoints/interrupted.ckpt`` when the batch ends in which a signal came, and stops.

    A validation or an end of an epoch that is due after that batch is still carried out, and the checkpoint
    saved again after it, since a resumed run does not repeat them. A second signal stops at once. Gradients
    that are being accumulated are completed first. Each checkpoint of the run also notes how far the run's
    files had got, for `zoo._cli.runs.truncate`.

    Args:
        session: How often the run was begun or gone on with (`zoo._cli.runs.Resume`).
        in_place: The run goes on in its own folder: the checkpoint that it goes on from is one like the
            others, which a `ModelCheckpoint` may remove when it has a later one.
    """

    def __init__(self, session: int = 0, in_place: bool = False) -> None:
        self.session, self.in_place = session, in_place
        self.received = 0  # the signal, on this process
        self.stopping = 0  # the signal that all processes agreed to stop for
        self._row = 0
        self._saved = 0
        self._before: dict[int, Any] = {}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes the signals; `Trainer` takes SIGTERM after this hook, and `on_train_start` takes it back."""
        self._install(trainer)

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes the signals back."""
        self._install(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes the signals back."""
        self._install(trainer)
        if self.in_place:
            trainer.ckpt_path = None  # for Lightning, the one file never to remove

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Stops, if the batch before was the last."""
        if self.stopping:
            raise Interrupted(self.stopping)
        self._row = trainer.fit_loop.epoch_loop._batches_that_stepped  # the step that loggers will write

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Agrees on whether to stop, and saves."""
        wanted = self.received if trainer.world_size == 1 else _largest(trainer, self.received)
        if wanted and not trainer.fit_loop._should_accumulate():
            self.stopping = wanted
            self._save(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves what the validation changed: early stopping, the best checkpoint."""
        if self.stopping:
            self._save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves what the end of the epoch changed."""
        if self.stopping:
            self._save(trainer)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Notes how far the run's files have got."""
        self._saved += 1
        if trainer.is_global_zero:
            folder = events.run_folder(trainer)
            checkpoint[CHECKPOINT_KEY] = files_state(folder, self._row, self.session, self._saved)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Gives the signals back."""
        self.release()

    def release(self) -> None:
        """Gives the signals back. The command calls it too: Lightning calls no `teardown` after an error."""
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        self._before = {}

    def _save(self, trainer: Trainer) -> None:
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            trainer.save_checkpoint(checkpoint_path(trainer), weights_only=False)

    def _install(self, trainer: Trainer) -> None:
        if threading.current_thread() is not threading.main_thread():
            return  # only the main thread can take signals
        environment = trainer._accelerator_connector.cluster_environment
        requeued = isinstance(environment, SLURMEnvironment) and environment.auto_requeue
        for signum in _SIGNALS:
            if signum == signal.SIGTERM and requeued:
                continue  # Lightning's own way under SLURM: SIGUSR1 saves and requeues the job
            before = signal.signal(signum, self._handle)
            self._before.setdefault(signum, before)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self.received:
            raise KeyboardInterrupt  # the second time: at once
        self.received = signum


def checkpoint_path(trainer: Trainer) -> Path:
    """Where an interrupted run is saved: on global rank zero, the only one that writes it."""
    return events.run_folder(trainer) / "checkpoints" / "interrupted.ckpt"


def _largest(trainer: Trainer, number: int) -> int:
    flag = torch.tensor(number, device=trainer.strategy.root_device)
    torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
    return int(flag.item())
