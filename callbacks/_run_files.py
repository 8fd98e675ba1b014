"""What each checkpoint of a run notes of the run's files, so that a resume can cut them back to it."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from zoo import events
from zoo.run_files import CHECKPOINT_KEY, files_state


class RunFiles(Callback):
    """Notes in each checkpoint how far ``metrics.csv`` and ``events.jsonl`` got (`zoo.run_files.truncate`).

    Args:
        session: How often the run was begun or resumed before (`zoo.runs.Resume`).
        in_place: The run goes on in its own folder: the checkpoint that it goes on from is one like the
            others, which a `ModelCheckpoint` may remove when it has a later one.
    """

    def __init__(self, session: int = 0, in_place: bool = False) -> None:
        self._session, self._in_place = session, in_place
        self._row = 0
        self._saved = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lets go of the checkpoint that the run goes on from: Lightning never removes what it names."""
        if self._in_place:
            trainer.ckpt_path = None

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Takes the step under which loggers will write this update."""
        self._row = trainer.fit_loop.epoch_loop._batches_that_stepped

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Notes the state of the files."""
        self._saved += 1
        if trainer.is_global_zero:
            folder = events.run_folder(trainer)
            checkpoint[CHECKPOINT_KEY] = files_state(folder, self._row, self._session, self._saved)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Counts a session: the updates of a following sub-run come after these, whatever their numbers."""
        self._session += 1
