"""A progress bar for a whole run, counted in updates rather than in epochs."""

import math
import time
from typing import TYPE_CHECKING

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from typing_extensions import override

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID


class UpdateBar(ProgressBar):
    """One bar for the whole of a fit: updates done, time left, and the values logged with ``prog_bar=True``.

    Lightning's own bars start again with each epoch, which says little where a pass over the data takes a
    second or a week. ``zoo fit`` uses this one unless a config lists another. It draws with `rich`;
    validation is named while it runs, and tests and predictions have no bar.

    Where the output is not a terminal (a file, a pipe) there is a plain line instead, at each tenth of the
    run and whenever ``line_seconds`` have passed::

        updates 300/1500  train/loss 0.42  12.3/s  1 min 38 s left

    Values are read only when the bar is drawn, so the host waits for the device a few times a second at most.

    Args:
        refresh_seconds: Seconds between two drawings.
        line_seconds: Most seconds between two lines, where the output is not a terminal.
    """

    def __init__(self, refresh_seconds: float = 0.25, line_seconds: float = 30.0) -> None:
        super().__init__()
        for name, seconds in (("refresh_seconds", refresh_seconds), ("line_seconds", line_seconds)):
            if not seconds > 0:
                raise ValueError(f"{name} must be positive, got {seconds}")
        self.refresh_seconds, self.line_seconds = refresh_seconds, line_seconds
        self._enabled = True
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._drawn = 0.0
        self._lines: _Lines | None = None

    def enable(self) -> None:
        """Draws from now on."""
        self._enabled = True

    def disable(self) -> None:
        """Draws nothing, as on every rank but the first."""
        self._enabled = False

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._enabled:
            return
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        total = trainer.estimated_stepping_batches
        progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[values]}"),
            auto_refresh=False,
        )
        console = progress.console
        if not (console.is_terminal or console.is_jupyter):
            self._lines = _Lines(console, trainer.global_step, total, self.line_seconds)
            return
        self._progress = progress
        self._progress.start()
        self._task = self._progress.add_task(
            "updates",
            total=total if math.isfinite(total) else None,
            completed=trainer.global_step,
            values="",
        )

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        """Draws, if it is time."""
        if self._lines is not None:
            self._lines.tell(trainer)
        elif time.monotonic() - self._drawn >= self.refresh_seconds:
            self._draw(trainer, "updates")

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._draw(trainer, "validating")

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._lines is not None:
            self._lines.tell(trainer)
        self._draw(trainer, "updates")
        self._stop()

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._stop()

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._stop()

    def _draw(self, trainer: Trainer, description: str) -> None:
        if self._progress is None or self._task is None:
            return
        self._drawn = time.monotonic()
        self._progress.update(
            self._task, completed=trainer.global_step, description=description, values=_values(trainer)
        )
        self._progress.refresh()

    def _stop(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
        self._lines = None


class _Lines:
    """Plain lines on a console that is not a terminal.

    Args:
        console: Where they go.
        done: Updates at the start.
        total: Updates of the whole run; may be infinite.
        seconds: Most seconds between two lines.
    """

    def __init__(self, console: "Console", done: int, total: float, seconds: float) -> None:
        self.console, self.first, self.total, self.seconds = console, done, total, seconds
        self.started = self.told = time.monotonic()
        self.tenth, self.done = self._tenth(done), done

    def _tenth(self, done: int) -> int:
        return int(10 * done / self.total) if math.isfinite(self.total) and self.total else 0

    def tell(self, trainer: Trainer) -> None:
        """Prints a line, if it is time and there is something new to tell."""
        now, done = time.monotonic(), trainer.global_step
        if done == self.done or (now - self.told < self.seconds and self._tenth(done) == self.tenth):
            return
        self.told, self.tenth, self.done = now, self._tenth(done), done
        rate = (done - self.first) / max(now - self.started, 1e-9)
        parts = [f"updates {done}", _values(trainer), f"{rate:.3g}/s"]
        if math.isfinite(self.total):
            parts[0] += f"/{int(self.total)}"
            if done < self.total:
                parts.append(f"{_duration((self.total - done) / rate)} left")
        line = "  ".join(part for part in parts if part)
        self.console.print(line, highlight=False, markup=False, soft_wrap=True)


def _values(trainer: Trainer) -> str:
    return "  ".join(f"{name} {float(value):.4g}" for name, value in trainer.progress_bar_metrics.items())


def _duration(seconds: float) -> str:
    """Seconds in the two largest units that they fill.

    >>> [_duration(s) for s in (3.2, 98, 7500, 200_000)]
    ['3 s', '1 min 38 s', '2 h 5 min', '2 d 7 h']
    """
    rest, units = round(seconds), [(86400, "d"), (3600, "h"), (60, "min"), (1, "s")]
    largest = next((i for i, (size, _) in enumerate(units) if rest >= size), 3)
    words = []
    for size, unit in units[largest : largest + 2]:
        words.append(f"{rest // size} {unit}")
        rest %= size
    return " ".join(words)
