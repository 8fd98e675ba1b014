"""What each checkpoint of a run notes of the run's files, and how a resume cuts them back to it."""

import csv
import io
import json
from pathlib import Path
from typing import Any

from zoo.events import EVENTS_FILE
from zoo.io import atomic_write

CHECKPOINT_KEY = "run_files"
METRICS_FILE = "metrics.csv"


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
