"""The checkpoints of a schedule's budgets, and the ledger that says which is what."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer

from zoo.events import record, shown
from zoo.io import save_tensors
from zoo.schedules.ledger import Entry, Kind, write_ledger
from zoo.schedules.schedule import Budget


class BudgetFiles:
    """Saves the checkpoints of budgets in one folder; all processes call it alike.

    Args:
        name: What the files' names begin with.
        folder: Where they go, the same on all processes.
        parent: The checkpoint that the run went on from; None from scratch.
        ledger: What earlier runs on the way have saved.
    """

    def __init__(self, name: str, folder: Path, parent: str | None, ledger: list[Entry]) -> None:
        self.name, self.folder = name, folder
        self.parent = None if parent is None else self.relative(parent)
        self.ledger = ledger

    def relative(self, path: str) -> str:
        """A path as the ledger has it: the name alone, if the file lies beside it."""
        whole = Path(path).absolute()
        return whole.name if whole.parent == self.folder.absolute() else str(whole)

    def state(self) -> dict[str, Any]:
        """The way to here, as plain values."""
        entries = [vars(entry) for entry in self.ledger]
        return {"folder": str(self.folder.absolute()), "parent": self.parent, "ledger": entries}

    def join(self, state: dict[str, Any]) -> None:
        """Takes over what a checkpoint knows of the way to it; its run may have been in another folder."""

        def here(path: str | None) -> str | None:
            return None if path is None else self.relative(str(Path(state["folder"]) / path))

        passed = [
            Entry(**(entry | {"path": here(entry["path"]), "parent": here(entry["parent"])}))
            for entry in state["ledger"]
        ]
        known = {entry.path for entry in self.ledger}
        self.ledger = [*self.ledger, *(entry for entry in passed if entry.path not in known)]
        parent = here(state["parent"])
        if parent is not None and self.parent not in {entry.path for entry in passed}:
            self.parent = parent  # a checkpoint in between: the way leads back to the last entry

    def save(
        self, trainer: Trainer, kind: Kind, budget: Budget, step: int, spent: int, schedule: str
    ) -> None:
        """Saves a checkpoint that holds its own entry, then the entry.

        Args:
            trainer: The Trainer.
            kind: What it is.
            budget: Whose it is.
            step: Updates done.
            spent: Updates computed, discarded branches included.
            schedule: The schedule's hash.
        """
        path = self.folder / f"{self.name}-budget{budget.updates}-{kind}-step{step}.ckpt"
        entry = Entry(path.name, kind, budget.updates, step, spent, self.parent, schedule)
        self.ledger = [*(other for other in self.ledger if other.path != entry.path), entry]
        self.parent = entry.path
        trainer.save_checkpoint(path, weights_only=False)  # that is, with the optimizer
        self._tell(trainer, entry)

    def snapshot(self, trainer: Trainer, step: int) -> None:
        """Saves the current weights, to be merged."""
        weights = trainer.strategy.lightning_module_state_dict()
        if trainer.is_global_zero:
            save_tensors(self.snapshot_path(step), weights)

    def snapshot_path(self, step: int) -> Path:
        """Where the weights after ``step`` updates are kept."""
        return self.folder / f"{self.name}-snapshot-step{step}.safetensors"

    def _tell(self, trainer: Trainer, entry: Entry) -> None:
        if trainer.is_global_zero:
            write_ledger(self.folder, [entry])
        path = self.folder / entry.path
        what = {
            "pre": "about to decay",
            "post": f"done, {entry.updates_spent} updates computed in all",
            "merged": f"merged, {entry.updates_spent} updates computed in all",
        }[entry.kind]
        record(
            trainer,
            "branch_point_saved" if entry.kind == "pre" else "budget_reached",
            f"{self.name}: budget {entry.budget} {what}: {shown(path)}",
            budget=entry.budget,
            path=str(path),
            updates_spent=entry.updates_spent,
        )
