"""Where a resumed run goes on: Lightning's loop progress, rewritten to what the uninterrupted run had.

A checkpoint is saved inside a hook, before Lightning has finished what the hook belongs to: the batch, the
validation or the epoch. Lightning's restart then repeats or drops the rest of it, in ways that differ between
``max_steps`` and ``max_epochs`` (seen in 2.6: a second pass inside the ended epoch, a validation that is
never made up for, a step or an epoch counted twice). Here the saved progress is read once (`ResumePoint.of`),
and the loops are set so that what remains is done once and nothing else is.

All private names of Lightning's loops that resuming needs stand in this file.
"""

import copy
from dataclasses import dataclass
from typing import Any, Literal, Self

from lightning.fabric.utilities.data import _set_sampler_epoch
from lightning.fabric.utilities.distributed import DistributedSamplerWrapper
from lightning.pytorch import Trainer
from lightning.pytorch.loops.evaluation_loop import RestartStage

State = dict[str, Any]


@dataclass(frozen=True)
class ResumePoint:
    """What a checkpoint's loop progress says is done.

    Args:
        next: What comes next: another ``batch`` of the epoch, the ``epoch_end`` (its last batch is done, its
            hooks are not), or a new ``epoch``.
        validated: Whether a validation that was due after the last batch has been run.
        progress: The ``fit_loop`` entry of the checkpoint's loops, in which all that was done is completed.
        loaders: The states of the train loaders.
        counted: Whether `_batches_that_stepped` already counts the last batch.
    """

    next: Literal["batch", "epoch_end", "epoch"]
    validated: bool
    progress: State
    loaders: list[State]
    counted: bool

    @classmethod
    def of(cls, fit_loop: State, new_epoch: bool = False) -> Self:
        """Reads the progress of a checkpoint.

        Args:
            fit_loop: ``checkpoint["loops"]["fit_loop"]``; left as it is.
            new_epoch: Go on with a new epoch, whatever is left of the interrupted one.
        """
        progress = copy.deepcopy(fit_loop)
        batch, epoch = progress["epoch_loop.batch_progress"], progress["epoch_progress"]
        in_batch_end = batch["current"]["completed"] < batch["current"]["processed"]
        in_epoch = epoch["current"]["processed"] < epoch["current"]["started"]
        last = batch["is_last_batch"]
        for kind in ("total", "current"):
            batch[kind]["completed"] = batch[kind]["processed"]
        following: Literal["batch", "epoch_end", "epoch"]
        if new_epoch or (last and not in_epoch):
            following, done = "epoch", 0
        else:
            # A run that max_steps ended in mid-epoch had its epoch's end, but a longer run goes on in the
            # epoch.
            following, done = ("epoch_end" if last else "batch"), 1
        for kind in ("total", "current"):
            epoch[kind]["processed"] = epoch[kind]["completed"] = epoch[kind]["started"] - done
        if in_batch_end:  # the validation that may follow has not begun
            progress["epoch_loop.val_loop.batch_progress"]["current"] = dict.fromkeys(batch["current"], 0)
        loaders = progress["state_dict"].pop("combined_loader", [])
        return cls(following, not in_batch_end, progress, loaders, counted=not in_epoch)

    def prepare(self, trainer: Trainer) -> str:
        """Sets the loops, in ``on_train_start``: after Lightning has restored them, before the first batch.

        Returns:
            Why the data are not those of the uninterrupted run; empty if they are.
        """
        fit_loop = trainer.fit_loop
        epoch_loop, val_loop = fit_loop.epoch_loop, fit_loop.epoch_loop.val_loop
        loader, fetcher = fit_loop._combined_loader, fit_loop._data_fetcher
        assert loader is not None
        assert fetcher is not None
        # A resumed epoch's order is drawn by its own number, and its loaders stand where they stood. An
        # iterator consumes the state; in a new epoch Lightning makes the iterator after this one, as it
        # always does.
        for each in loader.flattened:
            _set_sampler_epoch(each, trainer.current_epoch)
        loader._load_state_dicts(self.loaders)
        fit_loop._combined_loader_states_to_load = []
        iter(fetcher)

        epoch_loop._batches_that_stepped = self.progress["epoch_loop.state_dict"]["_batches_that_stepped"]
        stepped = not epoch_loop._should_accumulate()
        fit_loop._restarting = False  # else an epoch-wise ReduceLROnPlateau is left out at the epoch's end
        if self.next == "epoch":
            epoch_loop.restarting = False
            fit_loop._resuming_from_checkpoint = False
            epoch_loop._batches_that_stepped += stepped and not self.counted
            return _drawn_anew(loader.flattened)
        if epoch_loop._should_check_val_fx(fetcher):
            # Lightning's epoch loop ends such a batch, with the validation or without it, and counts it.
            if not self.validated:
                val_loop._restart_stage = RestartStage.RESTARTED_MID_EVALUATION
            epoch_loop._batches_that_stepped -= stepped and self.counted
        else:
            epoch_loop._batches_that_stepped += stepped and not self.counted
            val_loop._has_run = True  # in an ended epoch: else Lightning trains on one more batch
        if self.next == "batch" and not self.loaders:
            return (
                f"the train loader ({type(trainer.train_dataloader).__name__}) has no state_dict, so the "
                "epoch that was interrupted starts its data again. A loader with state_dict and "
                "load_state_dict (torchdata's StatefulDataLoader, the zoo's datamodules) cures it; so does "
                "a checkpoint at an epoch's end"
            )
        return _drawn_anew(loader.flattened)


def epoch_metrics(trainer: Trainer) -> list[str]:
    """Names of training metrics that are averaged over the epoch that runs; Lightning saves no averages."""
    metas = [result.meta for result in trainer.fit_loop.epoch_loop._results.values()]
    return sorted({name for meta in metas if meta.on_epoch for name in (meta.name, f"{meta.name}_epoch")})


def _drawn_anew(loaders: list[Any]) -> str:
    """Why the order of an epoch is not that of (seed, epoch) alone.

    Under ddp Lightning puts any sampler but torch's own into a wrapper that shuffles what the sampler drew,
    on each process by itself, and whose state no loader saves.
    """
    for loader in loaders:
        sampler = getattr(getattr(loader, "batch_sampler", None), "sampler", None)
        if isinstance(sampler, DistributedSamplerWrapper):
            return (
                f"under ddp Lightning wraps the random sampler of {type(loader).__name__}, which draws "
                "another order. Give the loader a torch DistributedSampler in place of shuffle=True"
            )
    return ""
