"""What happened in a run: a line in ``events.jsonl``, a point in the logger, a line in the terminal."""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.io import append_json

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

_FIELDS = {"time", "step", "epoch", "event", "message"}  # of every event

EVENTS_FILE = "events.jsonl"


def run_folder(trainer: "Trainer") -> Path:
    """The folder of a run: the first logger's, else ``default_root_dir``.

    Unlike `trainer.log_dir` this is not a collective call, so one rank alone may ask. Only the answer on
    global rank zero counts: on the others a logger may not know its version.
    """
    for logger in trainer.loggers:
        for name in ("log_dir", "save_dir"):
            folder = getattr(logger, name, None)
            if isinstance(folder, str | Path):  # a DummyLogger answers to any name
                return Path(folder)
    return Path(trainer.default_root_dir)


def display_path(path: str | Path) -> str:
    """A path as short as it can be typed from here: relative where it lies below the current folder."""
    path = Path(os.path.abspath(path))
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _check(facts: Mapping[str, Any]) -> None:
    if clash := sorted(_FIELDS & facts.keys()):
        raise ValueError(f"facts {clash} have the names of fields that every event has")


def write_event(
    folder: str | Path,
    event: str,
    message: str,
    *,
    step: int,
    epoch: int | None = None,
    **facts: str | int | float | bool | None,
) -> None:
    """Adds an event to the file of a run; one process of a run does so, with or without a Trainer.

    Args:
        folder: The folder of the run.
        event: What happened, in one or two words with underscores: ``"branch_saved"``.
        message: What happened, in a line for people.
        step: Optimizer updates so far.
        epoch: Passes over the data so far, if they are counted.
        **facts: Plain values, kept as they are.

    Raises:
        ValueError: a fact has the name of a field that every event has.
    """
    _check(facts)
    entry = {"time": round(time.time(), 3), "step": step, "epoch": epoch, "event": event, "message": message}
    append_json(Path(folder) / EVENTS_FILE, entry | facts)


def record(trainer: "Trainer", event: str, message: str, **facts: str | int | float | bool | None) -> None:
    """Records an event of a run on global rank zero; the other ranks may call it too and write nothing.

    Args:
        trainer: The running Trainer.
        event: What happened, in one or two words with underscores: ``"branch_saved"``.
        message: The terminal's line.
        **facts: Plain values for the file, kept as they are.

    The logger gets ``event/<event> = 1`` at this step. A `fast_dev_run` leaves no file behind.
    """
    if not trainer.is_global_zero:
        return
    from lightning.pytorch.utilities import rank_zero_info

    _check(facts)
    step, epoch = trainer.global_step, trainer.current_epoch
    if not trainer.fast_dev_run:  # type: ignore[attr-defined]
        write_event(run_folder(trainer), event, message, step=step, epoch=epoch, **facts)
    for logger in trainer.loggers:
        logger.log_metrics({f"event/{event}": 1.0}, step=step)
    rank_zero_info(message)
