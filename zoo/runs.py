"""The folder of a run: who is using it, how far it got, and how to go on with it.

``zoo fit --resume RUN`` takes RUN's own config and its whole checkpoint of most updates, cuts what the run
will write again off ``metrics.csv`` and ``events.jsonl``, and goes on in the same folder.
"""

import fcntl
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

from zoo._suggest import suggest
from zoo.events import EVENTS_FILE
from zoo.io import (
    check_archive,
    checkpoint_files,
    peek_checkpoint,
    read_json_lines,
    remove_temporary,
)
from zoo.run_files import CHECKPOINT_KEY, METRICS_FILE

RUN_LOCK = ".lock"  # in the folder of a run of `zoo fit`, while it lives and after
CONFIG_FILE = "config.yaml"
HPARAMS_FILE = "hparams.yaml"
FIRST_FILES = {CONFIG_FILE, EVENTS_FILE, HPARAMS_FILE, RUN_LOCK, METRICS_FILE}  # there before any update
_ENDS = ("resumed", "completed")  # the last of these events says whether a run is complete


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


def find_checkpoint(path: str | Path) -> Path:
    """The checkpoint that ``path`` names: a file, or that of the newest complete run below a folder.

    A run of ``zoo fit`` is complete when it has said so in its ``events.jsonl``; the newest is the one that
    completed last, and its checkpoint the one of most updates. Runs of other programs say nothing, and count
    as complete at the time of their last file.

    Raises:
        FileNotFoundError: there is none.
    """
    path = Path(path)
    if path.is_file():
        return path
    if not path.is_dir():
        raise FileNotFoundError(f"no checkpoint at {path}, and no folder of that name to look in")
    runs: dict[Path, list[Path]] = {}
    for file in checkpoint_files(path):
        runs.setdefault(_run_of(file), []).append(file)
    if not runs:
        raise FileNotFoundError(f"the folder {path} holds no checkpoint (no .ckpt file)")
    completed = {run: time for run, files in runs.items() if (time := _completed(run, files)) is not None}
    if not completed:
        raise FileNotFoundError(
            f"no run below {path} is complete ({', '.join(sorted(map(str, runs)))}): finish one with zoo fit "
            "--resume RUN, or name a checkpoint file"
        )
    return max(runs[max(completed, key=lambda run: completed[run])], key=updates_of)


def _run_of(checkpoint: Path) -> Path:
    """The folder of the run that saved a checkpoint, if ``zoo fit`` did; else the folder that holds it."""
    return next(filter(_says_when_complete, checkpoint.parents), checkpoint.parent)


def _completed(run: Path, checkpoints: list[Path]) -> float | None:
    """When a run completed, in seconds of the clock; None if it did not."""
    if not _says_when_complete(run):
        return max(file.stat().st_mtime for file in checkpoints)
    events = run / EVENTS_FILE
    ends = [row for row in read_json_lines(events) if row["event"] in _ENDS] if events.is_file() else []
    return ends[-1]["time"] if ends and ends[-1]["event"] == "completed" else None


def updates_of(checkpoint: Path) -> int:
    """The updates that a checkpoint has; -1 if it cannot be read, which whoever loads it will say."""
    try:
        return int(peek_checkpoint(checkpoint)["global_step"])
    except (ValueError, KeyError, TypeError):
        return -1


def _says_when_complete(folder: Path) -> bool:
    """Whether a folder is that of a run of ``zoo fit``, whose lock stays in it."""
    return (folder / RUN_LOCK).is_file() and (folder / CONFIG_FILE).is_file()


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
