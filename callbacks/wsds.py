"""Runs a schedule for several budgets under any LightningModule, and saves what each budget asks for.

WSD-S: Wen et al. 2024, arXiv 2410.05192. The learning rate and its past are `LRSchedule`'s; here are the
budgets: their checkpoints, the branches of WSD, merges, and decays that nobody planned.
"""

from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from typing_extensions import override

from zoo.callbacks._budget_files import BudgetFiles
from zoo.callbacks._lr_schedule import LRSchedule, State
from zoo.callbacks._lr_setter import LRSetter
from zoo.events import record, run_folder
from zoo.schedules import Budget, DecayOnDemand, RunSchedule, Schedule, SubRun
from zoo.schedules.ledger import LEDGER_FILE


class WSDS(LRSchedule):
    """An `LRSchedule` that saves checkpoints before and after each decay: a model for each budget.

    For each budget two checkpoints are saved, ``<name>-budget<T>-pre-step<s>.ckpt``, from which a run may
    branch, and ``...-post-step<s>.ckpt``, the budget's model; ``ledger.json`` beside them says which is what.

    **Resume and branch.** As with any `LRSchedule` the past must agree: budgets may be added or moved in the
    future. A branch is nothing else: ``--ckpt_path ...-pre-step22500.ckpt`` with another config. What a kill
    has left undone in the run's folder is made up for: a merge whose snapshots are there, and a checkpoint
    that the ledger does not list.

    **Merges.** Under `zoo.schedules.wsm` nothing decays: snapshots of the weights are saved on the way, and
    their weighted mean is the budget's model, ``...-merged-step<s>.ckpt``. Snapshots stay on the disk.

    **Branches of WSD.** A schedule with branches (`zoo.schedules.wsd` of several budgets) is run in
    sub-runs: to the end of the first branch, then from the checkpoint before it to the end of the next. The
    command line runs all sub-runs; in Python `WSDS.fit` does, where ``trainer.fit`` would run one. Later
    sub_runs repeat update numbers in the logs, where the value ``wsds/sub_run`` tells them apart; the ledger
    charges what branches cost.

    A run without `zoo.callbacks.ExactResume` branches as exactly as Lightning resumes.

    Args:
        schedule: The plan; `zoo plan` draws it.
        name: What the files' names begin with.
        dirpath: Folder of the checkpoints and the ledger; ``checkpoints`` in the run's folder if None.
        save_pre: Save the state before each decay.
        save_post: Save the model of each budget.
        stop_at_end: Stop the run after the last budget, whatever ``max_steps`` says. False goes on at
            what the schedule's ``after_end`` says.
        beta2_in_decay: Adam's second beta during decays (up to .9999 in Dremov et al. 2025, arXiv
            2508.01483).
        decay_on_demand: Begins a decay that was not planned.
        allow_new_peak: Let a resumed run have other peak learning rates than its checkpoint's run.
        allow_new_past: Let it have a schedule that differs in the past, too.
        allow_new_optimizer_arguments: Let it have other arguments of the optimizer; the config's are used.

    Raises:
        ValueError: a beta that is none, or decays on demand in a schedule with branches. On starting: what
            `LRSchedule` refuses.
    """

    def __init__(
        self,
        schedule: RunSchedule,
        name: str = "wsds",
        dirpath: str | None = None,
        save_pre: bool = True,
        save_post: bool = True,
        stop_at_end: bool = True,
        beta2_in_decay: float | None = None,
        decay_on_demand: DecayOnDemand | None = None,
        allow_new_peak: bool = False,
        allow_new_past: bool = False,
        allow_new_optimizer_arguments: bool = False,
    ) -> None:
        if beta2_in_decay is not None and not 0 <= beta2_in_decay < 1:
            raise ValueError(f"beta2_in_decay must be in [0, 1), got {beta2_in_decay}")
        self.name, self.dirpath = name, dirpath
        self.save_pre, self.save_post = save_pre, save_post
        self.beta2_in_decay = beta2_in_decay
        self.decay_on_demand = decay_on_demand
        self.sub_runs: tuple[SubRun, ...] = ()
        self.sub_run = 0
        self._going_on = False  # `next_sub_run` has chosen the sub-run
        self._run = Path()
        self._files = BudgetFiles(name, Path(), None, [], self.state_key)
        super().__init__(schedule, stop_at_end, allow_new_peak, allow_new_past, allow_new_optimizer_arguments)

    @property
    @override
    def state_key(self) -> str:
        """One for each ``name``."""
        return self._generate_state_key(name=self.name)

    @property
    def label(self) -> str:
        """The name."""
        return self.name

    def fit(
        self,
        trainer: Trainer,
        model: LightningModule,
        train_dataloaders: Any = None,
        val_dataloaders: Any = None,
        datamodule: LightningDataModule | None = None,
        ckpt_path: str | Path | None = None,
    ) -> None:
        """``trainer.fit`` for every sub-run of the schedule: WSD's tree in one call.

        Args:
            trainer: A Trainer that has this callback.
            model: As in ``trainer.fit``.
            train_dataloaders: As in ``trainer.fit``.
            val_dataloaders: As in ``trainer.fit``.
            datamodule: As in ``trainer.fit``.
            ckpt_path: A checkpoint to go on from, of any sub-run.
        """
        path: str | Path | None = ckpt_path
        while True:
            trainer.fit(model, train_dataloaders, val_dataloaders, datamodule, path, weights_only=True)
            path = self.next_sub_run()
            if path is None:
                return

    def next_sub_run(self) -> str | None:
        """After a fit: the checkpoint that the next sub-run goes on from; None if the last sub-run is over,
        or none is.

        The next fit is then that sub-run's.
        """
        if not self._finished or self.sub_run + 1 >= len(self.sub_runs):
            return None
        start = self.sub_runs[self.sub_run + 1].start
        self.sub_run += 1
        self._going_on = True
        [entry] = [entry for entry in self._files.ledger if entry.kind == "pre" and entry.step == start][-1:]
        return str(self._files.folder / entry.path)

    def written_files(self) -> dict[str, Path]:
        """The ledger (`zoo.runs.NamesFiles`)."""
        return {"ledger": self._files.folder / LEDGER_FILE}

    @override
    def state_dict(self) -> State:
        """What was done; nothing of it is needed to know a learning rate."""
        demand = self.decay_on_demand
        return super().state_dict() | {
            "sub_run": self.sub_run,
            "updates_spent": self._spent(),
            "files": self._files.state(),
            "watch": [demand.best, demand.waited] if demand is not None else None,
        }

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Finds the folder, and makes up for what a kill has left undone in it."""
        super().on_fit_start(trainer, pl_module)
        self._run = Path(trainer.strategy.broadcast(str(run_folder(trainer))))
        folder = self._run / "checkpoints" if self.dirpath is None else Path(self.dirpath)
        parent = None if trainer.ckpt_path is None else str(trainer.ckpt_path)
        passed = self._files.ledger if self._going_on else []
        self._files = BudgetFiles(self.name, folder, parent, passed, self.state_key)
        budgets: list[Budget] = []
        if self._saved is not None:
            self._files.join(self._saved["files"])
            made = Schedule.from_json(self._saved["schedule"]).budgets
            budgets = [budget for budget in made if budget.post <= self._saved["step"]]
        if not self._going_on and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self._files.complete(trainer, budgets)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compares the schedule with the past, and sets the first learning rate."""
        super().on_train_start(trainer, pl_module)
        self._going_on = False
        self._files.check_snapshots(self.active.budgets, self._step)
        if len(self.sub_runs) > 1:
            number, end = self.sub_run, self.active.end
            text = f"sub-run {number + 1} of {len(self.sub_runs)}, updates {self._step} to {end}"
            record(trainer, "sub_run_started", f"{self.name}: {text}", sub_run=number, end=end)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Saves what this update completes, and sets the learning rate of the next one."""
        if len(self.sub_runs) > 1:
            pl_module.log("wsds/sub_run", float(self.sub_run))
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def _adopt(self, schedule: Schedule) -> None:
        sub_runs = schedule.sub_runs
        merges = any(budget.merge is not None for budget in schedule.budgets)
        if not self.save_pre and (merges or len(sub_runs) > 1):
            raise ValueError(
                "save_pre: false leaves a schedule with branches nothing to branch from, and a merge without "
                "its last checkpoint"
            )
        if self.decay_on_demand is not None and len(sub_runs) > 1:
            raise ValueError(
                "decay_on_demand needs a schedule without branches (wsds, constant), and this one has "
                "branches: take wsds, or run one budget at a time"
            )
        super()._adopt(schedule)
        self.sub_runs = sub_runs
        self._active = sub_runs[min(self.sub_run, len(sub_runs) - 1)].schedule

    def _own(self, trainer: Trainer) -> LRSetter:
        return LRSetter(trainer.optimizers, self.beta2_in_decay)

    def _spent(self) -> int:
        """Updates computed in all: branches that were left behind count."""
        left = zip(self.sub_runs[: self.sub_run], self.sub_runs[1:], strict=False)
        return self._step + sum(sub_run.schedule.end - following.start for sub_run, following in left)

    def _sub_run_at(self, step: int) -> int:
        """The first sub-run that does not end before ``step``."""
        return next(
            (n for n, sub_run in enumerate(self.sub_runs) if sub_run.schedule.end > step),
            len(self.sub_runs) - 1,
        )

    def _begin(self, trainer: Trainer) -> None:
        """A run from scratch, or from a checkpoint that no WSDS has seen."""
        super()._begin(trainer)
        self.sub_run = self._sub_run_at(self._step)
        self._active = self.sub_runs[self.sub_run].schedule

    def _resume(self, trainer: Trainer, saved: State) -> None:
        """Takes up the state of a checkpoint, if this run's schedule agrees with it."""
        same_plan = saved["plan"] == self.schedule.hash
        if not self._going_on:
            self.sub_run = saved["sub_run"] if same_plan else self._sub_run_at(self._step)
        self._active = self.sub_runs[self.sub_run].schedule
        if same_plan and self.sub_run == saved["sub_run"]:
            self._active = Schedule.from_json(saved["schedule"])  # with the decays on demand
            if self.decay_on_demand is not None and saved["watch"] is not None:
                self.decay_on_demand.best, self.decay_on_demand.waited = saved["watch"]
        super()._resume(trainer, saved)

    def _after_update(self, trainer: Trainer, before: int) -> None:
        """Begins a decay that was asked for, and saves what budgets need."""
        self._decay_if_asked(trainer)
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self._save(trainer, before)

    def _decay_if_asked(self, trainer: Trainer) -> None:
        """Begins a decay on demand."""
        demand, step = self.decay_on_demand, self._step
        if demand is None or step % demand.every or self.active.phase(step) != "stable":
            return
        file = None if demand.file is None else self._run / demand.file
        asked = file is not None and trainer.is_global_zero and file.is_file()
        if demand.monitor is not None:
            logged = trainer.callback_metrics
            if demand.monitor not in logged:
                raise ValueError(
                    f"decay_on_demand watches {demand.monitor!r}, which nothing has logged by update "
                    f"{step}; there is {', '.join(sorted(logged)) or 'nothing'}"
                )
            asked |= demand.stalled(float(logged[demand.monitor]))
        if not trainer.strategy.reduce_boolean_decision(asked, all=False):
            return
        self._active = demand.begin(self.active, step)
        if file is not None and trainer.is_global_zero:
            file.unlink(missing_ok=True)
        [made] = [budget for budget in self.active.budgets if budget.pre == step]
        text = f"{self.name}: asked to decay, from update {step} to {made.post}"
        record(trainer, "decay_on_demand", text, start=step, end=made.post)

    def _save(self, trainer: Trainer, before: int) -> None:
        """Saves what the updates after ``before`` have completed."""
        now, files = self._step, self._files

        def passed(step: int | None) -> bool:
            return step is not None and before < step <= now

        for budget in self.active.budgets:
            merge = budget.merge
            snapshot = merge is not None and now < merge.end and any(map(passed, merge.steps))
            pre, post = self.save_pre and passed(budget.pre), self.save_post and passed(budget.post)
            if not (snapshot or pre or post):
                continue
            facts = (budget, now, self._spent(), self.active.hash)
            if snapshot:
                files.snapshot(trainer, *facts)
            if pre:
                files.save(trainer, "pre", *facts)
            if post and merge is not None:
                files.merge(trainer, *facts)
            elif post:
                files.save(trainer, "post", *facts)

    def _stop_if_done(self, trainer: Trainer) -> None:
        """Stops after the last update of the sub-run."""
        super()._stop_if_done(trainer)
        if self._finished and self.sub_run + 1 < len(self.sub_runs):
            trainer.should_stop = True
