"""The folder of a run: who is using it, how far it got, and how to go on with it.

``zoo fit --resume RUN`` takes RUN's own config and its newest complete checkpoint, cuts what was written
after that checkpoint off ``metrics.csv`` and ``events.jsonl``, and goes on in the same folder.
"""

import csv
import fcntl
import io
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zoo._cli.errors import CommandError, close, complain
from zoo.events import EVENTS_FILE
from zoo.io import atomic_write, load_checkpoint

CHECKPOINT_KEY = "run_files"
CONFIG_FILE = "config.yaml"
LOCK_FILE = ".lock"
METRICS_FILE = "metrics.csv"
HPARAMS_FILE = "hparams.yaml"
FIRST_FILES = {CONFIG_FILE, EVENTS_FILE, HPARAMS_FILE, LOCK_FILE, METRICS_FILE}  # there before any update


class Lock:
    """An advisory lock on a run's folder, for as long as the process lives.

    The kernel releases it when the process dies, however it dies. Forked children (loader workers) let go of
    it at once, so that they do not keep it alive.

    Args:
        run: The folder.

    Raises:
        CommandError: a live process holds the lock.
    """

    def __init__(self, run: Path) -> None:
        self.path = run / LOCK_FILE
        self._handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.pread(self._handle, 32, 0).decode().strip()
            os.close(self._handle)
            raise CommandError(
                f"{run} is in use by a run that is alive (process {pid}): wait for it, or stop it with "
                f"kill {pid}"
            ) from None
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


@dataclass
class Resume:
    """A run to go on with.

    Args:
        run: Its folder.
        checkpoint: Where it goes on; None if the user names it.
        lock: The lock on the folder, on the process of global rank zero.
    """

    run: Path
    checkpoint: Path | None
    lock: Lock | None


def is_run(folder: Path) -> bool:
    """Whether a folder is a run's, and not one where somebody keeps a config."""
    made = (METRICS_FILE, LOCK_FILE)
    return (folder / CONFIG_FILE).is_file() and any((folder / name).is_file() for name in made)


def split_resume(args: Sequence[str]) -> tuple[list[str], str | None]:
    """Takes ``--resume RUN`` out of the words after ``fit``.

    Raises:
        CommandError: no folder follows.
    """
    rest: list[str] = []
    run: str | None = None
    words = iter(args)
    for word in words:
        if word == "--resume":
            run = next(words, "")
        elif word.startswith("--resume="):
            run = word.removeprefix("--resume=")
        else:
            rest.append(word)
    if run is not None and (not run or run.startswith("-")):
        raise CommandError("--resume needs the folder of a run: zoo fit --resume runs/quickstart/version_0")
    return rest, run


def open_run(folder: str, newest: bool = True) -> Resume:
    """Finds what a resume needs and, on the process that starts the others, locks the folder.

    Args:
        folder: The run's folder.
        newest: Look for the newest complete checkpoint; else the user has named one.

    Raises:
        CommandError: it is no run's folder, a live run uses it, or it has no complete checkpoint.
    """
    run = Path(folder)
    if not (run / CONFIG_FILE).is_file():
        known = [str(path.parent) for path in Path("runs").glob(f"**/{CONFIG_FILE}")]
        raise CommandError(
            f"--resume {folder}: no {CONFIG_FILE} there, so it is no run{close(folder, known)}"
        )
    lock = Lock(run) if starts_others() else None
    path = newest_checkpoint(run) if newest else None
    if newest and path is None:
        if lock is not None:
            lock.release()
        raise CommandError(
            f"{run} holds no complete checkpoint to go on from: start anew with "
            f"zoo fit --config {run / CONFIG_FILE}"
        )
    return Resume(run, path, lock)


def starts_others() -> bool:
    """Whether this process is the first of its run, by the variables that launchers set."""
    for name in ("RANK", "SLURM_PROCID"):
        if name in os.environ:
            return os.environ[name] == "0"
    return all(os.environ.get(name, "0") == "0" for name in ("LOCAL_RANK", "NODE_RANK"))


def newest_checkpoint(run: Path) -> Path | None:
    """The last written checkpoint of a run that is whole; what is passed over is said.

    By the time of writing rather than by step: where a run went back to an earlier checkpoint, the later
    steps of the abandoned branch are not what the user means.
    """
    files = [path for path in run.rglob("*.ckpt") if path.is_file()]
    for path in sorted(files, key=lambda path: path.stat().st_mtime_ns, reverse=True):
        try:
            load_checkpoint(path)
        except ValueError as error:
            complain(f"passed over {path}: {error}")
        else:
            return path
    return None


def files_state(run: Path, row: int) -> dict[str, int]:
    """What a checkpoint notes of the run's files.

    Args:
        run: The folder.
        row: The ``step`` under which loggers write the update that the checkpoint ends with.
    """
    return {"row": row, "rows": max(_lines(run / METRICS_FILE) - 1, 0), "events": _lines(run / EVENTS_FILE)}


def truncate(run: Path, checkpoint: dict[str, Any]) -> None:
    """Cuts off ``metrics.csv`` and ``events.jsonl`` what a run resumed from ``checkpoint`` will write again.

    Rows and events that were there when the checkpoint was saved stay. So do rows written after it for the
    updates that it holds: Lightning logs an update after the hook in which checkpoints are saved, and a
    resumed run does not log it again. A last line that a crash cut short goes. Files are replaced as a whole.

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
        kept = [row for n, row in enumerate(rows) if n < state["rows"] or int(row["step"]) <= state["row"]]
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
        if state["events"] is None:
            lines = [line for line in lines if json.loads(line)["step"] <= step]
        else:
            lines = lines[: state["events"]]
        if (kept_text := "".join(lines)) != text:
            atomic_write(log, kept_text)


def _lines(path: Path) -> int:
    """Whole lines of a file; none if there is no file."""
    return path.read_bytes().count(b"\n") if path.is_file() else 0
