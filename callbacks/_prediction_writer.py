"""What callbacks that write the output of ``predict_step`` have in common."""

import shutil
import time
from abc import abstractmethod
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

from zoo import events
from zoo.callbacks._only_one import only_one


class PredictionWriter(Callback):
    """Writes what ``predict_step`` returns, and nothing in a `fast_dev_run`.

    Attributes:
        required: Keys that the dict of ``predict_step`` must have.
        optional: Keys that it may have.
    """

    required: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()

    def __init__(self) -> None:
        self._writing = False
        self._started = 0.0

    @abstractmethod
    def start(self, trainer: Trainer) -> None:
        """Makes ready to write; on all processes."""

    @abstractmethod
    def prepare(self, outputs: dict[str, Any]) -> Any:
        """What is to be written of a batch, checked and on the CPU; called in a `fast_dev_run` too."""

    @abstractmethod
    def write(self, trainer: Trainer, prepared: Any) -> None:
        """Writes a batch."""

    @abstractmethod
    def finish(self, trainer: Trainer) -> None:
        """Writes the rest, and reports; on all processes."""

    @abstractmethod
    def discard(self, trainer: Trainer) -> None:
        """Removes what is not whole, after an error."""

    def seconds(self) -> float:
        """Since the predictions began."""
        return round(time.perf_counter() - self._started, 3)

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "predict":
            only_one(self, trainer, "they would write the same file")

    @override
    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._writing = not trainer.fast_dev_run  # type: ignore[attr-defined]
        self._started = time.perf_counter()
        if self._writing:
            self.start(trainer)

    @override
    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Writes a batch.

        Raises:
            TypeError: ``predict_step`` did not return a dict with the required keys.
        """
        if not isinstance(outputs, dict) or not set(self.required) <= outputs.keys():
            found = f"a dict with {sorted(outputs)}" if isinstance(outputs, dict) else type(outputs).__name__
            raise TypeError(
                f"{type(self).__name__} needs a predict_step that returns a dict with "
                f"{_listed(self.required)} (and {_listed(self.optional)}); "
                f"{type(pl_module).__name__} returned {found}"
            )
        prepared = self.prepare(outputs)
        if self._writing:
            self.write(trainer, prepared)

    @override
    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._writing:
            self._writing = False
            self.finish(trainer)

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if self._writing:
            self._writing = False
            self.discard(trainer)


def _listed(names: tuple[str, ...]) -> str:
    *others, last = [repr(name) for name in names]
    return f"{', '.join(others)} and {last}" if others else last


class JoiningWriter(PredictionWriter):
    """A writer of one file: each process writes its share into the run folder, and rank zero joins them.

    All processes must see the run folder. A run that is interrupted leaves nothing.

    Attributes:
        shares: Name of the hidden folder.
    """

    shares: str

    def __init__(self) -> None:
        super().__init__()
        self._folder = Path()

    @abstractmethod
    def close(self, trainer: Trainer) -> None:
        """Ends this process's share; also after an error."""

    @abstractmethod
    def join(self, trainer: Trainer) -> None:
        """Writes the file from all shares, and reports; on rank zero."""

    @override
    def start(self, trainer: Trainer) -> None:
        # Only rank zero's answer counts: elsewhere a logger may not know its version.
        self._folder = Path(trainer.strategy.broadcast(str(events.run_folder(trainer) / self.shares)))
        if trainer.is_global_zero:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder.mkdir(parents=True)
        trainer.strategy.barrier(self.shares)

    @override
    def finish(self, trainer: Trainer) -> None:
        self.close(trainer)
        trainer.strategy.barrier(self.shares)
        if trainer.is_global_zero:
            try:
                self.join(trainer)
            finally:
                shutil.rmtree(self._folder, ignore_errors=True)

    @override
    def discard(self, trainer: Trainer) -> None:
        self.close(trainer)
        shutil.rmtree(self._folder, ignore_errors=True)
