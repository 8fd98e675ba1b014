"""A progress bar for a whole run, counted in updates rather than in epochs."""

import math
import time
from typing import TYPE_CHECKING

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


class UpdateBar(ProgressBar):
    """One bar for the whole of a fit: updates done, time left, and the values logged with ``prog_bar=True``.

    Lightning's own bars start anew with each epoch, which says little where a pass over the data takes a
    second or a week. ``zoo fit`` uses this one unless a config lists another. It draws with `rich`;
    validation is named while it runs, and tests and predictions have no bar.

    Values are read only when the bar is drawn, so the host waits for the device a few times a second at most.

    Args:
        refresh_seconds: Seconds between two drawings.
    """

    def __init__(self, refresh_seconds: float = 0.25) -> None:
        super().__init__()
        if not refresh_seconds > 0:
            raise ValueError(f"refresh_seconds must be positive, got {refresh_seconds}")
        self.refresh_seconds = refresh_seconds
        self._enabled = True
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._drawn = 0.0

    def enable(self) -> None:
        """Draws from now on."""
        self._enabled = True

    def disable(self) -> None:
        """Draws nothing, as on every rank but the first."""
        self._enabled = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Opens the bar where the run stands."""
        if not self._enabled:
            return
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        total = trainer.estimated_stepping_batches
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[values]}"),
            auto_refresh=False,
        )
        self._progress.start()
        self._task = self._progress.add_task(
            "updates",
            total=total if math.isfinite(total) else None,
            completed=trainer.global_step,
            values="",
        )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        """Draws, if it is time."""
        if time.monotonic() - self._drawn >= self.refresh_seconds:
            self._draw(trainer, "updates")

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Says what keeps the updates waiting."""
        self._draw(trainer, "validating")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws the last state and leaves it on the screen."""
        self._draw(trainer, "updates")
        self._stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Gives the terminal back."""
        self._stop()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Gives the terminal back."""
        self._stop()

    def _draw(self, trainer: Trainer, description: str) -> None:
        if self._progress is None or self._task is None:
            return
        self._drawn = time.monotonic()
        values = "  ".join(
            f"{name} {float(value):.4g}" for name, value in trainer.progress_bar_metrics.items()
        )
        self._progress.update(
            self._task, completed=trainer.global_step, description=description, values=values
        )
        self._progress.refresh()

    def _stop(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
