"""The checkpoints of a schedule's budgets, and the ledger that says which is what."""

from collections.abc import Sequence
from glob import escape
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer

from zoo.events import display_path, record
from zoo.io import load_checkpoint, save_tensors
from zoo.schedules import merge_checkpoints, weights_of
from zoo.schedules.ledger import Kind, LedgerEntry, read_ledger, write_ledger
from zoo.schedules.segments import Budget, Merge


class BudgetFiles:
    """Saves the checkpoints of budgets in one folder; all processes call it alike.

    Args:
        name: What the files' names begin with.
        folder: Where they go, the same on all processes.
        parent: The checkpoint that the run went on from; None from scratch.
        ledger: What earlier runs on the way have saved.
        state_key: Where checkpoints hold the state of the callback that saves them.
    """

    def __init__(
        self, name: str, folder: Path, parent: str | None, ledger: list[LedgerEntry], state_key: str
    ) -> None:
        self.name, self.folder, self.state_key = name, folder, state_key
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
            LedgerEntry(**(entry | {"path": here(entry["path"]), "parent": here(entry["parent"])}))
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
            kind: ``pre`` or ``post``.
            budget: Whose it is.
            step: Updates done.
            spent: Updates computed, discarded branches included.
            schedule: The schedule's hash.
        """
        entry = self._enter(kind, budget, step, spent, schedule)
        self.parent = entry.path
        trainer.save_checkpoint(self.folder / entry.path, weights_only=False)  # that is, with the optimizer
        self._tell(trainer, entry)

    def snapshot(self, trainer: Trainer, budget: Budget, step: int, spent: int, schedule: str) -> None:
        """Saves the current weights, to be merged; once, where several budgets need them."""
        if self._snapshot(step) is not None:
            return
        entry = self._enter("snapshot", budget, step, spent, schedule)
        weights = trainer.strategy.lightning_module_state_dict()
        if trainer.is_global_zero:
            save_tensors(self.folder / entry.path, weights)
            write_ledger(self.folder, [entry])

    def merge(self, trainer: Trainer, budget: Budget, step: int, spent: int, schedule: str) -> None:
        """Merges the snapshots of a budget with the checkpoint that was just saved, its last."""
        assert budget.merge is not None
        assert self.parent is not None
        last = self.folder / self.parent
        entry = self._enter("merged", budget, step, spent, schedule)
        if trainer.is_global_zero:
            files = [*(self._snapshot(at) for at in budget.merge.steps[:-1]), last]
            found = [file for file in files if file is not None]
            merge_checkpoints(found, weights_of(budget.merge), self.folder / entry.path)
        trainer.strategy.barrier()
        self._tell(trainer, entry)

    def complete(self, trainer: Trainer, budgets: Sequence[Budget]) -> None:
        """Makes up for what a kill has left undone in this folder: rows of the ledger, and merges.

        Args:
            trainer: The Trainer, which goes on from a checkpoint of this folder or of another.
            budgets: Those that the run has passed.
        """
        if trainer.is_global_zero and self.folder.is_dir():
            listed = {entry.path for entry in read_ledger(self.folder)}
            for path in sorted(self.folder.glob(f"{escape(self.name)}-budget*-p*-step*.ckpt")):
                if path.name not in listed:
                    self._list(trainer, path)
            for budget in budgets:
                if budget.merge is not None:
                    self._complete_merge(trainer, budget, budget.merge)
        self.ledger = trainer.strategy.broadcast(self.ledger)

    def _list(self, trainer: Trainer, path: Path) -> None:
        """Adds a checkpoint of this folder to the ledger, by the entry that it holds itself."""
        try:
            checkpoint = load_checkpoint(path, lazy=True)
        except ValueError as error:
            record(trainer, "checkpoint_damaged", f"{self.name}: {error} Remove it.", path=str(path))
            return
        state = checkpoint.get("callbacks", {}).get(self.state_key, {"files": {"ledger": []}})["files"]
        own = [entry for entry in state["ledger"] if entry["path"] == path.name]
        if own:  # else it is not a checkpoint of ours
            write_ledger(self.folder, [LedgerEntry(**entry) for entry in own])
            text = f"{self.name}: {display_path(path)} was missing in the ledger"
            record(trainer, "ledger_completed", text, path=str(path))

    def _complete_merge(self, trainer: Trainer, budget: Budget, merge: Merge) -> None:
        """Makes the merged model of a budget that was not made, from the run's own files."""
        listed = {entry.path: entry for entry in read_ledger(self.folder)}
        path = self._path("merged", budget.updates, merge.end)
        before = listed.get(self._path("pre", budget.updates, merge.end))
        if path in listed or before is None or not (self.folder / before.path).is_file():
            return  # made (and removed since, maybe), or the run of another folder
        missing = [at for at in merge.steps[:-1] if self._snapshot(at) is None]
        if missing:
            text = f"{self.name}: budget {budget.updates} was never merged, and snapshots of the updates "
            record(
                trainer, "merge_lost", f"{text}{', '.join(map(str, missing))} are gone", budget=budget.updates
            )
            return
        entry = LedgerEntry(
            path, "merged", budget.updates, merge.end, before.updates_spent, before.path, before.schedule
        )
        if not (self.folder / path).is_file():
            files = [self._snapshot(at) or Path() for at in merge.steps[:-1]]
            merge_checkpoints([*files, self.folder / before.path], weights_of(merge), self.folder / path)
        self.ledger = [*self.ledger, entry]
        self._tell(trainer, entry)

    def check_snapshots(self, budgets: Sequence[Budget], step: int) -> None:
        """Refuses to begin within a merge whose first snapshots are not there.

        Raises:
            ValueError: one is missing.
        """
        for merge in (budget.merge for budget in budgets if budget.merge is not None):
            passed = [at for at in merge.steps if at <= step < merge.end]
            missing = [at for at in passed if self._snapshot(at) is None]
            if missing:
                raise ValueError(
                    f"the merge at update {merge.end} needs snapshots of the updates "
                    f"{', '.join(map(str, missing))}, which the run at update {step} has passed, and "
                    f"{self.folder} has none: begin before update {merge.start}, or leave that budget out"
                )

    def _snapshot(self, step: int) -> Path | None:
        """Where the weights after ``step`` updates are, in this run's folder or an earlier one's."""
        found = [entry for entry in self.ledger if entry.kind == "snapshot" and entry.step == step]
        paths = [self.folder / entry.path for entry in found]
        return next((path for path in paths if path.is_file()), None)

    def _enter(self, kind: Kind, budget: Budget, step: int, spent: int, schedule: str) -> LedgerEntry:
        path = self._path(kind, budget.updates, step)
        entry = LedgerEntry(path, kind, budget.updates, step, spent, self.parent, schedule)
        self.ledger = [*(other for other in self.ledger if other.path != path), entry]
        return entry

    def _path(self, kind: Kind, updates: int, step: int) -> str:
        ending = "safetensors" if kind == "snapshot" else "ckpt"
        return f"{self.name}-budget{updates}-{kind}-step{step}.{ending}"

    def _tell(self, trainer: Trainer, entry: LedgerEntry) -> None:
        if trainer.is_global_zero:
            write_ledger(self.folder, [entry])
        path = self.folder / entry.path
        what = {
            "pre": "can be branched from here" if entry.step == entry.budget else "about to decay",
            "post": f"done, {entry.updates_spent} updates computed in all",
            "merged": f"merged, {entry.updates_spent} updates computed in all",
        }[entry.kind]
        record(
            trainer,
            "branch_point_saved" if entry.kind == "pre" else "budget_reached",
            f"{self.name}: budget {entry.budget} {what}: {display_path(path)}",
            budget=entry.budget,
            path=str(path),
            updates_spent=entry.updates_spent,
        )
