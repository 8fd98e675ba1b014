"""The learning rate of every update as a function of the update, under any LightningModule.

Lightning's own schedulers put their state into the checkpoint, so that lengths, peaks and decays of the
config are ignored on a resume; here the learning rate is a function of the update, and a checkpoint only
says what was done, so that the past can be compared and the future changed.
"""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from typing_extensions import override

from zoo.callbacks._lr_setter import LRSetter, changed_arguments, shown_rates
from zoo.callbacks._only_one import only_one
from zoo.callbacks._run_length import last_update, run_length, several_optimizers
from zoo.events import display_path, record
from zoo.schedules import RunSchedule, Schedule
from zoo.schedules.owner import scheduler_conflict

State = dict[str, Any]
_FORMAT = 2


class LRSchedule(Callback):
    """Sets the learning rate of every update from a `Schedule`.

    Each group of parameters keeps its own peak, the learning rate that its optimizer was built with, and the
    schedule multiplies it. A schedule without a length (`zoo.schedules.one_cycle`, `cosine` or `constant`
    without ``updates``) is as long as the run: ``max_steps`` updates, or those of ``max_epochs``. A schedule
    with one ends the run, and gives a Trainer without limit (``max_steps`` and ``max_epochs`` -1) its length.

    **Resume.** A resumed run (``--ckpt_path``, ``zoo fit --resume``) may have another schedule if it agrees
    with the old one on every update that was made. Otherwise it is refused, and the first update that differs
    is named. Peaks and the optimizer's other arguments (weight decay, betas) must be the old ones, too.

    Counts updates of the first optimizer; with automatic optimization that is ``trainer.global_step``. Works
    with gradient accumulation, several groups and optimizers, averaged weights and ddp. The learning rate of
    update k + 1 is set after update k, so that monitors see it in any order of callbacks. No learning-rate
    scheduler may be in the run.

    Args:
        schedule: The schedule; `zoo plan` draws it.
        stop_at_end: Stop the run after a schedule that has a length, whatever ``max_steps`` says. False goes
            on at what the schedule's ``after_end`` says.
        allow_new_peak: Let a resumed run have other peak learning rates than its checkpoint's run.
        allow_new_past: Let it have a schedule that differs in the past, too.
        allow_new_optimizer_arguments: Let it have other arguments of the optimizer; the config's are used.

    Raises:
        ValueError: on starting: a second owner of the learning rate, a run without a length for a schedule
            that has none, a resume that contradicts its checkpoint, or a schedule that leaves updates at a
            learning rate of zero.
    """

    def __init__(
        self,
        schedule: RunSchedule,
        stop_at_end: bool = True,
        allow_new_peak: bool = False,
        allow_new_past: bool = False,
        allow_new_optimizer_arguments: bool = False,
    ) -> None:
        self.given = schedule  # maybe without a length
        self.stop_at_end = stop_at_end
        self.allow_new_peak = allow_new_peak
        self.allow_new_optimizer_arguments = allow_new_optimizer_arguments
        self.allow_new_past = allow_new_past
        self._schedule: Schedule | None = None
        self._active: Schedule | None = None
        self._step = 0  # updates done
        self._counted = 0  # the first optimizer's updates, under manual optimization
        self._finished = False
        self._gave_length = False
        self._told_missed: set[int] = set()
        self._saved: State | None = None  # what a checkpoint brought, until it is compared
        self._rates: LRSetter | None = None
        if isinstance(schedule, Schedule):
            self._adopt(schedule)

    @property
    def schedule(self) -> Schedule:
        """The schedule; one that is as long as the run is known from ``on_fit_start`` on.

        Raises:
            ValueError: the run has not begun.
        """
        if self._schedule is None:
            raise ValueError(
                "the schedule is as long as the run and known when a fit has begun: give it updates"
            )
        return self._schedule

    @property
    def active(self) -> Schedule:
        """What the run follows: the schedule, without branches and with the decays that were asked for."""
        return self.schedule if self._active is None else self._active

    @property
    def label(self) -> str:
        """What events begin with."""
        return type(self).__name__

    def schedule_for(self, trainer: Trainer) -> Schedule:
        """The schedule of the run that a Trainer is set to.

        Raises:
            ValueError: the schedule is as long as the run, and the run has no length.
        """
        return self.given if isinstance(self.given, Schedule) else self.given.for_run(run_length(trainer))

    @override
    def state_dict(self) -> State:
        """What was done; nothing of it is needed to know a learning rate."""
        rates = self._rates
        return {
            "format": _FORMAT,
            "plan": None if self._schedule is None else self._schedule.hash,
            "schedule": None if self._schedule is None else self.active.to_json(),
            "step": self._step,
            "peaks": [] if rates is None else rates.peaks,
            "arguments": [] if rates is None else rates.arguments,
        }

    @override
    def load_state_dict(self, state_dict: State) -> None:
        """Kept until everything is known that it is compared with."""
        self._saved = state_dict

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Takes its place: behind whatever changes after an update, before the checkpoint callbacks."""
        if stage != "fit":
            return
        everyone: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        others = [callback for callback in everyone if callback is not self]
        only_one(self, trainer, "the learning rate has one owner", LRSchedule)
        place = next((n for n, other in enumerate(others) if isinstance(other, Checkpoint)), len(others))
        # A new list: this hook is called in a loop over the old one.
        trainer.callbacks = [*others[:place], self, *others[place:]]  # type: ignore[attr-defined]
        self._give_length(trainer, pl_module)

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Builds a schedule that is as long as the run, and notes the optimizer's arguments, before a
        checkpoint brings its own.
        """
        if trainer.lr_scheduler_configs:
            raise ValueError(scheduler_conflict(type(self), pl_module, trainer.lr_scheduler_configs))
        if not trainer.optimizers:
            raise ValueError(
                f"{type(pl_module).__name__} has no optimizer for {type(self).__name__} to set the rate of"
            )
        if not isinstance(self.given, Schedule):
            if several_optimizers(trainer):
                raise ValueError(
                    "under manual optimization with several optimizers the number of updates is not known in "
                    "advance: give the schedule its updates (of the first optimizer)"
                )
            self._adopt(self.schedule_for(trainer))
        self._rates = self._own(trainer)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compares the schedule with the past, and sets the first learning rate."""
        saved, self._saved = self._saved, None
        self._counted = saved["step"] if saved is not None else 0
        self._step = self._updates(trainer)
        if saved is None:
            self._begin(trainer)
        else:
            self._resume(trainer, saved)
        self._check_length(trainer)
        self._set(trainer)
        self._stop_if_done(trainer)

    @override
    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Counts, where ``global_step`` is the sum over several optimizers."""
        self._counted += optimizer is trainer.optimizers[0]

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Sets the learning rate of the next update."""
        before, self._step = self._step, self._updates(trainer)
        if self._step == before:
            return  # gradients are being accumulated
        self._after_update(trainer, before)
        self._set(trainer)
        self._stop_if_done(trainer)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tells of budgets that the run has not reached and that nobody could foresee."""
        self._tell_missed(trainer, self._step, f"the run ended at update {self._step},")

    def _adopt(self, schedule: Schedule) -> None:
        """Takes a schedule that can be run."""
        self._schedule = schedule

    def _own(self, trainer: Trainer) -> LRSetter:
        return LRSetter(trainer.optimizers)

    def _give_length(self, trainer: Trainer, module: LightningModule) -> None:
        """Makes the schedule's length the run's, where the Trainer has no limit of its own."""
        unlimited = trainer.max_steps == -1 and trainer.max_epochs == -1
        owns = isinstance(self.given, Schedule) and self.stop_at_end and module.automatic_optimization
        if owns and (unlimited or self._gave_length):
            self._gave_length = True
            trainer.fit_loop.epoch_loop.max_steps = self.schedule.end

    def _updates(self, trainer: Trainer) -> int:
        """Updates that the first optimizer has made."""
        return self._counted if several_optimizers(trainer) else trainer.global_step

    def _begin(self, trainer: Trainer) -> None:
        """A run from scratch, or from a checkpoint without this callback's state."""
        if trainer.ckpt_path is None:
            return
        without = f"{display_path(str(trainer.ckpt_path))} was saved without {type(self).__name__}"
        if several_optimizers(trainer):
            raise ValueError(
                f"{without}, and under manual optimization with several optimizers nothing else counts the "
                "updates: start from its weights instead"
            )
        text = f"{self.label}: {without}, so its {self._step} updates are not checked"
        record(trainer, "past_unknown", text)
        assert self._rates is not None
        self._compare_arguments(trainer, self._rates.arguments_of(trainer.optimizers))

    def _resume(self, trainer: Trainer, saved: State) -> None:
        """Takes up the state of a checkpoint, if this run agrees with it."""
        if saved["format"] != _FORMAT:
            raise ValueError(
                f"the checkpoint's {type(self).__name__} has format {saved['format']}, and {_FORMAT} is read "
                "here: go on with the version of the zoo that wrote it"
            )
        assert self._rates is not None
        self._compare_past(trainer, Schedule.from_json(saved["schedule"]))
        self._compare_peaks(trainer, saved["peaks"])
        # Older checkpoints have no arguments beside the optimizer's own state.
        old = saved.get("arguments")
        self._compare_arguments(trainer, self._rates.arguments_of(trainer.optimizers) if old is None else old)

    def _compare_past(self, trainer: Trainer, past: Schedule) -> None:
        """Refuses another past that nobody allowed."""
        step, active = self._step, self.active
        different = active.first_difference(past, step)
        if different is None:
            return
        new, old = active.factor(different), past.factor(different)
        if not self.allow_new_past:
            length = ""
            if not isinstance(self.given, Schedule) and past.end != active.end:
                length = (
                    f" (it is as long as the run: {past.end:,} updates then, {active.end:,} now; leave the "
                    "length as it was, or)"
                )
            raise ValueError(
                f"the schedule contradicts the checkpoint's past{length}: in update {different} its factor "
                f"is {new:.6g}, and the checkpoint's run had {old:.6g}. The future may change, from update "
                f"{step} on; for another past say allow_new_past: true"
            )
        text = (
            f"{self.label}: another past was allowed: in update {different} the factor is {new:.6g}, and was "
            f"{old:.6g}"
        )
        record(trainer, "past_changed", text, first=different, new=new, old=old)

    def _compare_peaks(self, trainer: Trainer, old_peaks: list[list[float]]) -> None:
        """Refuses other peaks that nobody allowed."""
        assert self._rates is not None
        step, peaks = self._step, self._rates.peaks
        if old_peaks == peaks:
            return
        old, new = shown_rates(old_peaks), shown_rates(peaks)
        if not self.allow_new_peak:
            raise ValueError(
                f"the checkpoint's run had the peak learning rate {old}, the config has {new}: give the "
                f"old one, or say allow_new_peak: true to change it from update {step} on"
            )
        text = f"{self.label}: peak learning rate {old} until update {step}, {new} from there on"
        record(trainer, "peak_changed", text)

    def _compare_arguments(self, trainer: Trainer, old: list[list[dict[str, Any]]]) -> None:
        """Refuses other arguments of the optimizer that nobody allowed; the checkpoint brought its own."""
        assert self._rates is not None
        changes = changed_arguments(old, self._rates.arguments)
        if not changes:
            return
        told = ", ".join(changes)
        if not self.allow_new_optimizer_arguments:
            raise ValueError(
                f"the optimizer's arguments are not those of the checkpoint's run: {told}. Give the old "
                f"ones, or say allow_new_optimizer_arguments: true to change them from update {self._step} on"
            )
        self._rates.restore_arguments(trainer.optimizers)
        text = f"{self.label}: optimizer arguments changed from update {self._step} on: {told}"
        record(trainer, "optimizer_arguments_changed", text)

    def _check_length(self, trainer: Trainer) -> None:
        """Tells of budgets that the run will not reach, and refuses updates that would do nothing."""
        if several_optimizers(trainer):
            return  # on_train_end tells
        stop, limit = last_update(trainer)
        self._tell_missed(trainer, stop, f"{limit} ends the run")
        end = self.active.end
        if not self.stop_at_end and stop > end and self.active.factor(end) == 0:
            raise ValueError(
                f"{limit} goes beyond the schedule's {end} updates, whose last learning rate "
                "is 0: the rest would do nothing. Let the run stop (stop_at_end: true), or give the "
                "schedule after_end: peak"
            )

    def _tell_missed(self, trainer: Trainer, stop: float, why: str) -> None:
        """Records the budgets that lie behind ``stop``, each once."""
        budgets = self.active.budgets
        missed = [b.updates for b in budgets if b.post > stop and b.updates not in self._told_missed]
        if missed:
            self._told_missed |= set(missed)
            names = ", ".join(map(str, missed))
            text = f"{self.label}: {why} before budget {names} (update {self.active.end})"
            record(trainer, "budgets_missed", text)

    def _after_update(self, trainer: Trainer, before: int) -> None:
        """What a subclass does between an update and the next learning rate."""

    def _set(self, trainer: Trainer) -> None:
        """The learning rate of the next update."""
        assert self._rates is not None
        step = self._step
        self._rates.set(trainer.optimizers, self.active.factor(step), self.active.phase(step) == "decay")

    def _stop_if_done(self, trainer: Trainer) -> None:
        """Stops after the last update of a schedule that has a length of its own."""
        self._finished = self._step >= self.active.end
        if self._finished and self.stop_at_end and isinstance(self.given, Schedule):
            trainer.should_stop = True
