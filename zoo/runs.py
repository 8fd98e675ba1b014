"""The folder of a run: who is using it, how far it got, and how to go on with it.

``zoo fit --resume RUN`` takes RUN's own config and its whole checkpoint of most updates, cuts what the run
will write again off ``metrics.csv`` and ``events.jsonl``, and goes on in the same folder.
"""

import csv
import fcntl
import io
import json
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

from zoo._suggest import suggest
from zoo.events import EVENTS_FILE
from zoo.io import RUN_LOCK, atomic_write, check_archive, checkpoint_files, peek_checkpoint, remove_temporary

CHECKPOINT_KEY = "run_files"
CONFIG_FILE = "config.yaml"
METRICS_FILE = "metrics.csv"
HPARAMS_FILE = "hparams.yaml"
FIRST_FILES = {CONFIG_FILE, EVENTS_FILE, HPARAMS_FILE, RUN_LOCK, METRICS_FILE}  # there before any update


class RunError(ValueError):
    """A run's folder that cannot be used as it was meant to."""


@runtime_checkable
class MultiPartRun(Protocol):
    """A callback whose run is several fits in a row, each from a checkpoint of one before."""

    def next_sub_run(self) -> str | None:
        """After a fit: the checkpoint that the next one goes on from; None if there is none."""


@runtime_checkable
class NamesFiles(Protocol):
    """A callback or module that says which files it wrote, for what a run prints at its end."""

    def written_files(self) -> dict[str, Path]:
        """A word for each file: ``{"ledger": path}``; files that do not exist are passed over."""


class RunLock:
    """An advisory lock on a run's folder, for as long as the process lives.

    The kernel releases it when the process dies, however it dies. Forked children (loader workers) let go of
    it at once, so that they do not keep it alive.

    Args:
        run: The folder.

    Raises:
        RunError: a live process holds the lock.
    """

    def __init__(self, run: Path) -> None:
        self.path = run / RUN_LOCK
        self._handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = _alive(os.pread(self._handle, 32, 0).decode().strip())
            os.close(self._handle)
            who = f" (process {pid}): wait for it, or stop it with kill {pid}" if pid else ": wait for it"
            raise RunError(f"{run} is in use by a run that is alive{who}") from None
        os.ftruncate(self._handle, 0)
        os.pwrite(self._handle, f"{os.getpid()}\n".encode(), 0)
        os.register_at_fork(after_in_child=self._close)

    def release(self) -> None:
        """Lets another run have the folder."""
        if self._handle >= 0:
            fcntl.flock(self._handle, fcntl.LOCK_UN)
            self._close()

    def _close(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1


def _alive(pid: str) -> str:
    """The process number in a lock, if it is one that lives: its holder writes it after it has the lock."""
    return pid if pid.isdigit() and Path(f"/proc/{pid}").exists() else ""


@dataclass
class Resume:
    """A run to go on with.

    Args:
        run: Its folder.
        checkpoint: Where it goes on; None if the user names it.
        lock: The lock on the folder, on the process of global rank zero.
        session: How often the run was begun or gone on with, this time included.
    """

    run: Path
    checkpoint: Path | None
    lock: RunLock | None
    session: int = 0


def is_run(folder: Path) -> bool:
    """Whether a folder is a run's, and not one where somebody keeps a config."""
    made = (METRICS_FILE, RUN_LOCK)
    return (folder / CONFIG_FILE).is_file() and any((folder / name).is_file() for name in made)


def open_run(folder: str, newest: bool = True, warn: Callable[[str], object] = warnings.warn) -> Resume:
    """Finds what a resume needs and, on the process that starts the others, locks the folder.

    Args:
        folder: The run's folder.
        newest: Look for the checkpoint to go on from; else the user has named one.
        warn: Told of each checkpoint that cannot be read.

    Raises:
        RunError: it is not a run's folder, a live run uses it, or it has no complete checkpoint.
    """
    run = Path(folder)
    if not (run / CONFIG_FILE).is_file():
        known = [str(path.parent) for path in Path("runs").glob(f"**/{CONFIG_FILE}")]
        raise RunError(
            f"--resume {folder}: no {CONFIG_FILE} there, so it is not a run{suggest(folder, known)}"
        )
    lock = RunLock(run) if is_launcher() else None
    if lock is not None:
        remove_temporary(run)
    saved = saves(run, warn)
    path = newest_checkpoint(saved, warn) if newest else None
    if newest and path is None:
        if lock is not None:
            lock.release()
        raise RunError(
            f"{run} holds no complete checkpoint to go on from: start again with "
            f"zoo fit --config {run / CONFIG_FILE}"
        )
    return Resume(run, path, lock, 1 + max((save.session for save in saved), default=0))


def is_launcher() -> bool:
    """Whether this process is the first of its run, by the variables that launchers set."""
    for name in ("RANK", "SLURM_PROCID"):
        if name in os.environ:
            return os.environ[name] == "0"
    return all(os.environ.get(name, "0") == "0" for name in ("LOCAL_RANK", "NODE_RANK"))


class Save(NamedTuple):
    """A checkpoint of a run, in the run's own count of time.

    A session that went back to an earlier checkpoint makes the later steps of the session before void.
    """

    session: int
    step: int
    order: int  # of the checkpoints of a session
    path: Path


def saves(run: Path, warn: Callable[[str], object] = warnings.warn) -> list[Save]:
    """The checkpoints of a run, the last saved first; what cannot be read is passed over and said.

    By the counts in the files: times of modification change with a copy or a clock.
    """
    found: list[Save] = []
    for path in checkpoint_files(run):
        try:
            checkpoint = peek_checkpoint(path)
            state = checkpoint.get(CHECKPOINT_KEY) or {}
            if "merged" not in checkpoint:
                session, order = state.get("session", 0), state.get("order", 0)
                found.append(Save(session, int(checkpoint["global_step"]), order, path))
        except (ValueError, KeyError, TypeError) as error:
            warn(f"passed over {path}: {error}")
    return sorted(found, reverse=True)


def newest_checkpoint(found: Sequence[Save], warn: Callable[[str], object] = warnings.warn) -> Path | None:
    """The first of a run's checkpoints that is undamaged; what is passed over is said."""
    for save in found:
        try:
            check_archive(save.path)
        except ValueError as error:
            warn(f"passed over {save.path}: {error}")
        else:
            return save.path
    return None


def files_state(run: Path, row: int, session: int, order: int) -> dict[str, int]:
    """What a checkpoint notes of the run's files.

    Args:
        run: The folder.
        row: The ``step`` under which loggers write the update that the checkpoint ends with.
        session: See `Resume`.
        order: The number of the checkpoint in its session.
    """
    rows, events = max(_lines(run / METRICS_FILE) - 1, 0), _lines(run / EVENTS_FILE)
    return {"row": row, "rows": rows, "events": events, "session": session, "order": order}


def truncate(run: Path, checkpoint: dict[str, Any]) -> None:
    """Cuts off ``metrics.csv`` and ``events.jsonl`` what a run resumed from ``checkpoint`` will write again.

    Rows and events that were there when the checkpoint was saved stay. So do those written after it for the
    updates that it holds: Lightning logs an update after the hook in which checkpoints are saved, an event
    says what was saved once it is, and a resumed run writes neither again. Rows that the resumed run repeats
    are left to `RunLogger`. A last line that a crash cut short goes. Files are replaced as a whole.

    Args:
        run: The folder.
        checkpoint: Its contents. One that was not written by ``zoo fit`` is judged by its ``global_step``
            alone.
    """
    step = int(checkpoint["global_step"])
    state = checkpoint.get(CHECKPOINT_KEY) or {"row": step - 1, "rows": 0, "events": None}
    metrics = run / METRICS_FILE
    if metrics.is_file():
        text = metrics.read_text(encoding="utf-8")
        rows = list(csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1])))
        there = state["rows"]
        kept = [
            row for n, row in enumerate(rows) if n < there or int(row["step"]) <= _last_step(row, state, step)
        ]
        if len(kept) < len(rows) or not metrics.read_bytes().endswith(b"\n"):
            out = io.StringIO()
            writer = csv.DictWriter(out, fieldnames=list(rows[0]) if rows else [])
            writer.writeheader()
            writer.writerows(kept)
            atomic_write(metrics, out.getvalue() if rows else "")
    log = run / EVENTS_FILE
    if log.is_file():
        text = log.read_text(encoding="utf-8")
        lines = text[: text.rfind("\n") + 1].splitlines(keepends=True)
        there = state["events"] or 0
        lines = [line for n, line in enumerate(lines) if n < there or json.loads(line)["step"] <= step]
        if (kept_text := "".join(lines)) != text:
            atomic_write(log, kept_text)


def _last_step(row: dict[str, str], state: dict[str, Any], updates: int) -> int:
    """Up to which step a row is the past of a checkpoint; events are logged by updates done."""
    event = any(name.startswith("event/") and value for name, value in row.items())
    return updates if event else state["row"]


def _lines(path: Path) -> int:
    """Whole lines of a file; none if there is no file."""
    return path.read_bytes().count(b"\n") if path.is_file() else 0
