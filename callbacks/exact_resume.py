"""Exact resume: a run of N steps, resumed for N more, equals a run of 2N steps, bitwise on the CPU.

Stock Lightning restores weights, optimizer, schedules and counters, but no random state: dropout masks and
shuffled orders differ after a resume, so runs agree only when they were cut at an epoch's end and draw
nothing at random.
"""

import random
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from typing_extensions import override

from zoo.callbacks._resume_point import ResumePoint, epoch_metrics

State = dict[str, Any]


def get_random_state() -> State:
    """The global generators of Python, NumPy, torch and the current CUDA device, as plain values."""
    version, words, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)  # noqa: NPY002
    state: State = {
        "python": [version, list(words), gauss],
        "numpy": [
            str(kind),
            torch.tensor(np.asarray(keys).astype(np.int64)),
            int(position),
            int(has_gauss),
            cached,
        ],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: State) -> None:
    """Restores what `get_random_state` returned; a CUDA state is left out where there is no CUDA device."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))  # noqa: NPY002
    torch.set_rng_state(state["torch"].cpu())
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())


class ExactResume(Callback):
    """Makes a resumed run the uninterrupted one: N updates and N more are 2N updates, bitwise on the CPU.

    Every rank's random state is saved in each checkpoint and restored on a resume, and Lightning's loops go
    on at exactly what the checkpoint leaves to do: the next batch, the validation that was due, the epoch's
    end, or the next epoch. Weights, optimizer, averages, learning rates, counters, logged steps and
    checkpoint names are those of the uninterrupted run, with dropout, under ``max_steps`` and ``max_epochs``,
    under any LightningModule, if kernels are deterministic. ``zoo fit`` adds this callback to every run.

    What resumes exactly, by train loader and place of the checkpoint:

    ============================================  ===========  ================
    train loader                                  mid-epoch    end of an epoch
    ============================================  ===========  ================
    the zoo's datamodules                         exact        exact
    torchdata's ``StatefulDataLoader``            exact        exact
    the same, ``shuffle=True`` under ddp          warns        warns
    ``DataLoader`` and others without state       warns        exact
    ============================================  ===========  ================

    Rows hold on one process and under ddp, where nothing else is said. A warning says once why the data are
    not those of the uninterrupted run; a loader without state starts the interrupted epoch's data again.

    Validation runs on a random stream of its own: training goes on after it as if it had not run, so a
    checkpoint saved before a validation and one saved after it continue alike.

    Not covered: the generators of loader workers (random augmentations should draw from `zoo.rng`), gradients
    that were accumulated but not yet applied (Lightning does not save them: save at updates), metrics
    averaged over the interrupted epoch (they cover its part after the resume), a ``ReduceLROnPlateau`` that
    was due in the hook that saved, and draws that a module makes in its own ``on_train_start``.

    The state takes under 8 kB a rank, and nothing is done per step.

    Args:
        strict: Refuse to resume with another number of processes. False goes on with a new epoch and new
            random streams instead, which is not the run it would have been.
    """

    def __init__(self, strict: bool = True) -> None:
        self.strict = strict
        self._to_restore: list[State] = []
        self._point: ResumePoint | None = None
        self._before_validation: State | None = None

    @property
    @override
    def state_key(self) -> str:
        """One key for all instances: the random state is the process's, not the callback's."""
        return "ExactResume"

    @override
    def state_dict(self) -> State:
        """Every rank's random state; a collective call, as checkpointing itself is."""
        mine = self._before_validation or get_random_state()
        if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
            return {"ranks": [mine]}
        ranks: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(ranks, mine)
        return {"ranks": ranks}

    @override
    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: State) -> None:
        """Notes the averages over the current epoch, which a resumed run lacks."""
        if self.state_key in checkpoint.get("callbacks", {}):
            checkpoint["callbacks"][self.state_key]["epoch_metrics"] = epoch_metrics(trainer)

    @override
    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: State) -> None:
        """Reads where the run goes on, before Lightning restores its loops.

        Raises:
            ValueError: another number of processes, and ``strict``.
        """
        if trainer.state.fn != "fit" or "loops" not in checkpoint:
            return
        state = checkpoint.get("callbacks", {}).get(self.state_key, {})
        self._to_restore = state.get("ranks", [])
        saved, now = len(self._to_restore), trainer.world_size
        changed = bool(saved) and saved != now
        if changed and self.strict:
            raise ValueError(
                f"the checkpoint holds the random states of {saved} processes, this run has {now}: resume "
                f"with {saved} processes, or give the callback ExactResume with strict: false to go on with "
                "a new epoch and new random streams"
            )
        if changed:
            rank_zero_warn(
                f"ExactResume: the checkpoint was saved by {saved} processes and this run has {now}, so it "
                "goes on with a new epoch and new random streams."
            )
            self._to_restore = []
        elif not saved:
            rank_zero_warn(
                "ExactResume: the checkpoint was saved by a run without ExactResume and holds no random "
                "states, so this is not quite the run it would have been."
            )
        self._point = ResumePoint.of(checkpoint["loops"]["fit_loop"], new_epoch=changed)
        if changed:
            self._point.loaders.clear()
        elif self._point.next == "epoch_end" and (names := self._awaited(trainer, state)):
            rank_zero_warn(
                "ExactResume: the end of the interrupted epoch is left out, since callbacks monitor "
                f"{names}, whose average over the epoch no checkpoint holds."
            )
            self._point = ResumePoint.of(checkpoint["loops"]["fit_loop"], new_epoch=True)
        checkpoint["loops"]["fit_loop"] = self._point.progress

    @staticmethod
    def _awaited(trainer: Trainer, state: State) -> str:
        """Averages over the interrupted epoch that callbacks monitor."""
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        monitored = {getattr(callback, "monitor", None) for callback in callbacks}
        return ", ".join(name for name in state.get("epoch_metrics", []) if name in monitored)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Sets loops, loaders and random state to what the uninterrupted run had here."""
        if self._point is None:
            return
        reason, self._point = self._point.prepare(trainer), None
        if reason:
            rank_zero_warn(f"ExactResume: {reason}. This is not quite the run it would have been.")
        if self._to_restore:
            set_random_state(self._to_restore[trainer.global_rank])
        self._to_restore = []

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit":
            self._before_validation = get_random_state()

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._before_validation is not None:
            set_random_state(self._before_validation)
            self._before_validation = None
