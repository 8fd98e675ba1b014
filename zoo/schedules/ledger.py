"""The ledger of a run's budgets: which checkpoint is what, and what it cost.

One JSON file beside the checkpoints, replaced as a whole with each entry.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from zoo.io import atomic_write

LEDGER_FILE = "ledger.json"
Kind = Literal["pre", "post", "snapshot", "merged"]


@dataclass(frozen=True)
class LedgerEntry:
    """A checkpoint that a schedule asked for.

    Args:
        path: The file: its name if it lies beside the ledger, else its path.
        kind: ``pre``: the state before a decay, to branch from; ``post``: the model of a budget;
            ``snapshot``: weights to be merged; ``merged``: the model of a budget, as their mean.
        budget: The budget, in updates.
        step: Updates on the way from the first weights to this file.
        updates_spent: Updates computed until then in all, those of discarded branches included.
        parent: The entry, or the checkpoint of another run, that its run passed through before; None
            from scratch.
        schedule: The hash of the schedule that it was made under.
    """

    path: str
    kind: Kind
    budget: int
    step: int
    updates_spent: int
    parent: str | None
    schedule: str


def read_ledger(folder: str | Path) -> list[LedgerEntry]:
    """The entries of a folder, in the order of their making; none if it has no ledger.

    Raises:
        ValueError: the file is not a ledger.
    """
    path = Path(folder) / LEDGER_FILE
    if not path.is_file():
        return []
    try:
        return [LedgerEntry(**entry) for entry in json.loads(path.read_text(encoding="utf-8"))["entries"]]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a ledger ({error}): move it away, and a new one is begun") from error


def write_ledger(folder: str | Path, entries: Iterable[LedgerEntry]) -> None:
    """Adds entries to a folder's ledger; an entry takes the place of an older one of the same file."""
    merged = {entry.path: entry for entry in [*read_ledger(folder), *entries]}
    text = json.dumps({"entries": [asdict(entry) for entry in merged.values()]}, indent=1)
    atomic_write(Path(folder) / LEDGER_FILE, text + "\n")
