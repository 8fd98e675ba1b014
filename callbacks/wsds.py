"""Runs a schedule of learning rates under any LightningModule, and saves what each budget asks for.

WSD-S: Wen et al. 2024, arXiv 2410.05192. Lightning's own schedulers put their state into the
checkpoint, so that budgets, peaks and decays of the config are ignored on a resume; here the learning
rate is a function of the update, and a checkpoint only says what was done, so that the past can be
compared and the future changed.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities.types import LRSchedulerConfig

from zoo.callbacks._budget_files import BudgetFiles
from zoo.callbacks._only_one import only_one
from zoo.callbacks._owned_rates import OwnedRates, shown_rates
from zoo.events import record, run_folder, shown
from zoo.schedules import DecayOnDemand, Schedule

State = dict[str, Any]
_FORMAT = 1


class WSDS(Callback):
    """Owns the learning rate, update by update, and saves checkpoints before and after each decay.

    Each group of parameters keeps its own peak, the learning rate that its optimizer was built with, and the
    `Schedule` multiplies it. For each budget two checkpoints are saved,
    ``<name>-budget<T>-pre-step<s>.ckpt``, from which a run may branch, and ``...-post-step<s>.ckpt``,
    the budget's model; ``ledger.json`` beside them says which is what.

    **Resume and branch.** A resumed run (``--ckpt_path``, ``zoo fit --resume``) may have another
    schedule if it agrees with the old one on every update that was made: budgets may be added or moved
    in the future. Otherwise it is refused, and the first update that differs is named. A branch is
    nothing else: ``--ckpt_path ...-pre-step22500.ckpt`` with another config.

    **Merges.** Under `zoo.schedules.wsm` nothing decays: snapshots of the weights are saved on the way, and
    their weighted mean is the budget's model, ``...-merged-step<s>.ckpt``. Snapshots stay on the disk.

    **Branches of WSD.** A schedule with branches (`zoo.schedules.wsd` of several budgets) is run leg by
    leg: to the end of the first branch, then from the checkpoint before it to the end of the next. The
    command line runs all legs; in Python `WSDS.fit` does, where ``trainer.fit`` would run one. Later legs
    repeat update numbers in the logs, where the value ``wsds/leg`` tells them apart; the ledger charges
    what branches cost.

    Counts updates of the first optimizer; with automatic optimization that is ``trainer.global_step``.
    Works with gradient accumulation, several groups and optimizers, averaged weights (a branch goes on
    from the current ones) and ddp. The learning rate of update k + 1 is set after update k, so that
    monitors see it in any order of callbacks. No learning-rate scheduler may be in the run. A run
    without `zoo.callbacks.ExactResume` branches as exactly as Lightning resumes.

    Args:
        schedule: The plan; `zoo plan` draws it.
        name: What the files' names begin with.
        dirpath: Folder of the checkpoints and the ledger; ``checkpoints`` in the run's folder if None.
        save_pre: Save the state before each decay.
        save_post: Save the model of each budget.
        stop_at_end: Stop the run after the last budget, whatever ``max_steps`` says. False goes on at
            what the schedule's ``beyond`` says.
        beta2_in_decay: Adam's second beta during decays (up to .9999 in Dremov et al. 2025, arXiv
            2508.01483).
        decay_on_demand: Begins a decay that was not planned.
        allow_new_peak: Let a resumed run have other peak learning rates than its checkpoint's run.
        allow_new_past: Let it have a schedule that differs in the past, too.

    Raises:
        ValueError: a beta that is none, or decays on demand in a schedule with branches. On starting: a
            second owner of the learning rate, a resume that contradicts its checkpoint, or a plan that
            leaves updates at a learning rate of zero.
    """

    def __init__(
        self,
        schedule: Schedule,
        name: str = "wsds",
        dirpath: str | None = None,
        save_pre: bool = True,
        save_post: bool = True,
        stop_at_end: bool = True,
        beta2_in_decay: float | None = None,
        decay_on_demand: DecayOnDemand | None = None,
        allow_new_peak: bool = False,
        allow_new_past: bool = False,
    ) -> None:
        if beta2_in_decay is not None and not 0 <= beta2_in_decay < 1:
            raise ValueError(f"beta2_in_decay must be in [0, 1), got {beta2_in_decay}")
        self.legs = schedule.legs
        merges = any(budget.merge is not None for budget in schedule.budgets)
        if not save_pre and (merges or len(self.legs) > 1):
            raise ValueError(
                "save_pre: false leaves a schedule with branches nothing to branch from, and a merge without "
                "its last checkpoint"
            )
        if decay_on_demand is not None and len(self.legs) > 1:
            raise ValueError(
                "decay_on_demand needs a schedule on one road (wsds, constant), and this one has "
                "branches: take wsds, or run one budget at a time"
            )
        self.schedule = schedule
        self.name, self.dirpath = name, dirpath
        self.save_pre, self.save_post = save_pre, save_post
        self.stop_at_end = stop_at_end
        self.beta2_in_decay = beta2_in_decay
        self.decay_on_demand = decay_on_demand
        self.allow_new_peak, self.allow_new_past = allow_new_peak, allow_new_past
        self.leg = 0
        self.road = self.legs[0].schedule  # of this leg, with decays on demand
        self._going_on = False  # `next_leg` has chosen the leg
        self._finished = False
        self._step = 0  # updates done
        self._counted = 0  # the first optimizer's updates, under manual optimization
        self._saved: State | None = None  # what a checkpoint brought, until it is compared
        self._run = Path()
        self._rates: OwnedRates | None = None
        self._files = BudgetFiles(name, Path(), None, [])

    @property
    def state_key(self) -> str:
        """One for each ``name``."""
        return self._generate_state_key(name=self.name)

    def fit(
        self,
        trainer: Trainer,
        model: LightningModule,
        train_dataloaders: Any = None,
        val_dataloaders: Any = None,
        datamodule: LightningDataModule | None = None,
        ckpt_path: str | Path | None = None,
    ) -> None:
        """``trainer.fit`` for every leg of the schedule: WSD's tree in one call.

        Args:
            trainer: A Trainer that has this callback.
            model: As in ``trainer.fit``.
            train_dataloaders: As in ``trainer.fit``.
            val_dataloaders: As in ``trainer.fit``.
            datamodule: As in ``trainer.fit``.
            ckpt_path: A checkpoint to go on from, of any leg.
        """
        path: str | Path | None = ckpt_path
        while True:
            trainer.fit(model, train_dataloaders, val_dataloaders, datamodule, path, weights_only=True)
            path = self.next_leg()
            if path is None:
                return

    def next_leg(self) -> str | None:
        """After a fit: the checkpoint that the next leg goes on from; None if the last leg is over, or
        none is.

        The next fit is then that leg's.
        """
        if not self._finished or self.leg + 1 >= len(self.legs):
            return None
        start = self.legs[self.leg + 1].start
        self.leg += 1
        self._going_on = True
        [entry] = [entry for entry in self._files.ledger if entry.kind == "pre" and entry.step == start][-1:]
        return str(self._files.folder / entry.path)

    def state_dict(self) -> State:
        """What was done; nothing of it is needed to know a learning rate."""
        demand = self.decay_on_demand
        return {
            "format": _FORMAT,
            "plan": self.schedule.hash,
            "road": self.road.to_json(),
            "leg": self.leg,
            "step": self._step,
            "updates_spent": self._spent(),
            "peaks": [] if self._rates is None else self._rates.peaks,
            "files": self._files.state(),
            "watch": [demand.best, demand.waited] if demand is not None else None,
        }

    def load_state_dict(self, state_dict: State) -> None:
        """Kept until everything is known that it is compared with."""
        self._saved = state_dict

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Takes its place: behind whatever changes after an update, before the checkpoint callbacks."""
        if stage != "fit":
            return
        everyone: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        others = [callback for callback in everyone if callback is not self]
        only_one(self, trainer, "the learning rate has one owner")
        place = next((n for n, other in enumerate(others) if isinstance(other, Checkpoint)), len(others))
        # A new list: this hook is called in a loop over the old one.
        trainer.callbacks = [*others[:place], self, *others[place:]]  # type: ignore[attr-defined]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes the peaks, before a checkpoint brings its own learning rates."""
        if trainer.lr_scheduler_configs:
            raise ValueError(two_owners(pl_module, trainer.lr_scheduler_configs))
        if not trainer.optimizers:
            raise ValueError(f"{type(pl_module).__name__} has no optimizer for WSDS to own")
        self._rates = OwnedRates(trainer.optimizers, self.beta2_in_decay)
        self._run = Path(trainer.strategy.broadcast(str(run_folder(trainer))))
        folder = self._run / "checkpoints" if self.dirpath is None else Path(self.dirpath)
        parent = None if trainer.ckpt_path is None else str(trainer.ckpt_path)
        self._files = BudgetFiles(self.name, folder, parent, self._files.ledger if self._going_on else [])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compares the schedule with the past, and sets the first learning rate."""
        saved, self._saved = self._saved, None
        self._counted = saved["step"] if saved is not None else 0
        self._step = self._updates(trainer)
        if saved is None:
            self._begin(trainer)
        else:
            self._resume(trainer, saved)
        self._going_on = False
        self._files.check_snapshots(self.road.budgets, self._step)
        self._check_length(trainer)
        self._set(trainer)
        if len(self.legs) > 1:
            where = f"leg {self.leg + 1} of {len(self.legs)}, updates {self._step} to {self.road.end}"
            record(trainer, "leg_begun", f"{self.name}: {where}", leg=self.leg, end=self.road.end)
        self._stop_if_done(trainer)

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Counts, where ``global_step`` is the sum over several optimizers."""
        self._counted += optimizer is trainer.optimizers[0]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Saves what this update completes, and sets the learning rate of the next one."""
        if len(self.legs) > 1:
            pl_module.log("wsds/leg", float(self.leg))
        before, self._step = self._step, self._updates(trainer)
        if self._step == before:
            return  # gradients are being accumulated
        self._decay_if_asked(trainer)
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self._save(trainer, before)
        self._set(trainer)
        self._stop_if_done(trainer)

    def _updates(self, trainer: Trainer) -> int:
        """Updates that the first optimizer has made."""
        return self._counted if _several(trainer) else trainer.global_step

    def _spent(self) -> int:
        """Updates computed in all: branches that were left behind count."""
        left = zip(self.legs[: self.leg], self.legs[1:], strict=False)
        return self._step + sum(leg.schedule.end - following.start for leg, following in left)

    def _leg_at(self, step: int) -> int:
        """The first leg that does not end before ``step``."""
        return next((n for n, leg in enumerate(self.legs) if leg.schedule.end > step), len(self.legs) - 1)

    def _begin(self, trainer: Trainer) -> None:
        """A run from scratch, or from a checkpoint that no WSDS has seen."""
        if trainer.ckpt_path is not None:
            source = shown(str(trainer.ckpt_path))
            if _several(trainer):
                raise ValueError(
                    f"{source} was saved without WSDS (name {self.name!r}), and under manual "
                    "optimization with several optimizers nothing else counts the updates: start from "
                    "its weights instead"
                )
            text = (
                f"{self.name}: {source} was saved without WSDS, so its {self._step} updates are not checked"
            )
            record(trainer, "past_unknown", text)
        self.leg = self._leg_at(self._step)
        self.road = self.legs[self.leg].schedule

    def _resume(self, trainer: Trainer, saved: State) -> None:
        """Takes up the state of a checkpoint, if this run's schedule agrees with it."""
        if saved["format"] != _FORMAT:
            raise ValueError(f"the checkpoint's WSDS state has format {saved['format']}, this is {_FORMAT}")
        past = Schedule.from_json(saved["road"])
        same_plan = saved["plan"] == self.schedule.hash
        if not self._going_on:
            self.leg = saved["leg"] if same_plan else self._leg_at(self._step)
        self.road = self.legs[self.leg].schedule
        if same_plan and self.leg == saved["leg"]:
            self.road = past  # with the decays on demand
            if self.decay_on_demand is not None and saved["watch"] is not None:
                self.decay_on_demand.best, self.decay_on_demand.waited = saved["watch"]
        self._compare(trainer, past, saved["peaks"])
        self._files.join(saved["files"])

    def _compare(self, trainer: Trainer, past: Schedule, old_peaks: list[list[float]]) -> None:
        """Refuses another past, and peaks that nobody said would change."""
        assert self._rates is not None
        step, peaks = self._step, self._rates.peaks
        different = self.road.first_difference(past, step)
        if different is not None and not self.allow_new_past:
            raise ValueError(
                f"the schedule contradicts the checkpoint's past: in update {different} its factor is "
                f"{self.road.factor(different):.6g}, and the checkpoint's run had "
                f"{past.factor(different):.6g}. The future may change, from update {step} on; for "
                "another past say allow_new_past: true"
            )
        if old_peaks != peaks:
            old, new = shown_rates(old_peaks), shown_rates(peaks)
            if not self.allow_new_peak:
                raise ValueError(
                    f"the checkpoint's run had the peak learning rate {old}, the config has {new}: give the "
                    f"old one, or say allow_new_peak: true to change it from update {step} on"
                )
            text = f"{self.name}: peak learning rate {old} until update {step}, {new} from there on"
            record(trainer, "peak_changed", text)

    def _check_length(self, trainer: Trainer) -> None:
        """Tells of budgets that the run will not reach, and refuses updates that would do nothing."""
        stop, end = trainer.max_steps, self.road.end
        if stop < 0 or _several(trainer):
            return
        missed = ", ".join(str(budget.updates) for budget in self.road.budgets if budget.post > stop)
        if missed:
            text = f"{self.name}: max_steps {stop} ends the run before budget {missed} (update {end})"
            record(trainer, "budgets_missed", text)
        if not self.stop_at_end and stop > end and self.road.factor(end) == 0:
            raise ValueError(
                f"max_steps {stop} goes beyond the schedule's {end} updates, whose last learning rate "
                "is 0: the rest would do nothing. Let the run stop (stop_at_end: true), or give the "
                "schedule beyond: peak"
            )

    def _decay_if_asked(self, trainer: Trainer) -> None:
        """Begins a decay on demand."""
        demand, step = self.decay_on_demand, self._step
        if demand is None or step % demand.every or self.road.phase(step) != "stable":
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
        self.road = demand.begin(self.road, step)
        if file is not None and trainer.is_global_zero:
            file.unlink(missing_ok=True)
        [made] = [budget for budget in self.road.budgets if budget.pre == step]
        text = f"{self.name}: asked to decay, from update {step} to {made.post}"
        record(trainer, "decay_on_demand", text, start=step, end=made.post)

    def _save(self, trainer: Trainer, before: int) -> None:
        """Saves what the updates after ``before`` have completed."""
        now, files = self._step, self._files

        def passed(step: int | None) -> bool:
            return step is not None and before < step <= now

        for budget in self.road.budgets:
            merge = budget.merge
            snapshot = merge is not None and now < merge.end and any(map(passed, merge.steps))
            pre, post = self.save_pre and passed(budget.pre), self.save_post and passed(budget.post)
            if not (snapshot or pre or post):
                continue
            facts = (budget, now, self._spent(), self.road.hash)
            if snapshot:
                files.snapshot(trainer, *facts)
            if pre:
                files.save(trainer, "pre", *facts)
            if post and merge is not None:
                files.merge(trainer, *facts)
            elif post:
                files.save(trainer, "post", *facts)

    def _set(self, trainer: Trainer) -> None:
        """The learning rate of the next update."""
        assert self._rates is not None
        step = self._step
        self._rates.set(trainer.optimizers, self.road.factor(step), self.road.phase(step) == "decay")

    def _stop_if_done(self, trainer: Trainer) -> None:
        """Stops after the last update of the leg."""
        self._finished = self._step >= self.road.end
        if self._finished and (self.stop_at_end or self.leg + 1 < len(self.legs)):
            trainer.should_stop = True


def two_owners(module: LightningModule, configs: Sequence[LRSchedulerConfig]) -> str:
    """What is said where a module also has schedulers."""
    names = ", ".join(type(config.scheduler).__name__ for config in configs)
    return (
        f"the learning rate has two owners, WSDS and {names} of {type(module).__name__}: leave out the "
        "module's scheduler (--model.lr_scheduler null), or this callback"
    )


def _several(trainer: Trainer) -> bool:
    """Whether ``global_step`` is the sum over several optimizers."""
    return not trainer.lightning_module.automatic_optimization and len(trainer.optimizers) > 1
