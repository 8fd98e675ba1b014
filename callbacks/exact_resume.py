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
    """Saves every rank's random state in each checkpoint and restores it on a resume.

    With it, a train loader that has state (ours have) and deterministic kernels, a resumed run is the
    uninterrupted
    run: weights, optimizer, averages, logged losses, in mid-epoch and with dropout, under any
    LightningModule. A stock DataLoader without state resumes exactly from an end of an epoch, shuffling
    included; in mid-epoch it starts its data anew, which is said once. ``zoo fit`` adds this callback to
    every run.

    Validation runs on a random stream of its own: training goes on after it as if it had not run, so a
    checkpoint saved before a validation and one saved after it continue alike.

    Not covered: the generators of loader workers (random augmentations should draw from `zoo.rng`), gradients
    that were accumulated but not yet applied (Lightning does not save them: save at updates), and draws that
    a module makes in its own ``on_train_start``. A resume with another number of processes is refused.

    The state takes under 8 kB a rank, and nothing is done per step.
    """

    def __init__(self) -> None:
        self._to_restore: list[State] | None = None
        self._epoch_ended = False
        self._before_validation: State | None = None

    @property
    def state_key(self) -> str:
        """One key for all instances: the random state is the process's, not the callback's."""
        return "ExactResume"

    def state_dict(self) -> State:
        """Every rank's random state; a collective call, as checkpointing itself is."""
        mine = self._before_validation or get_random_state()
        if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
            return {"ranks": [mine]}
        ranks: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(ranks, mine)
        return {"ranks": ranks}

    def load_state_dict(self, state_dict: State) -> None:
        """Keeps the states until training is about to go on."""
        self._to_restore = state_dict["ranks"]

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: State) -> None:
        """Notes whether the checkpoint stands at the end of an epoch."""
        progress = checkpoint.get("loops", {}).get("fit_loop", {}).get("epoch_loop.batch_progress", {})
        self._epoch_ended = bool(progress.get("is_last_batch", False))

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuses a resume that cannot be exact; restores the state if an epoch is about to begin."""
        if self._to_restore is not None and len(self._to_restore) != trainer.world_size:
            raise ValueError(
                f"the checkpoint holds the random states of {len(self._to_restore)} processes, this run "
                f"has {trainer.world_size}: resume with {len(self._to_restore)} processes, or start a new "
                "run from its weights"
            )
        if self._epoch_ended:  # the next epoch's iterator draws its order first
            self._restore(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restores the state in mid-epoch, where the uninterrupted run makes no new iterator."""
        self._continue_loaders(trainer)
        if self._to_restore is None:
            return
        loader = trainer.train_dataloader
        if not hasattr(loader, "state_dict"):
            rank_zero_warn(
                f"ExactResume: the train loader ({type(loader).__name__}) has no state_dict, so the epoch "
                "that was interrupted starts its data anew and this is not quite the run it would have been. "
                "A loader with state_dict and load_state_dict (torchdata's StatefulDataLoader, the zoo's "
                "datamodules) cures it."
            )
        self._restore(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Puts the training stream aside."""
        if trainer.state.fn == "fit":
            self._before_validation = get_random_state()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes the training stream up again."""
        if self._before_validation is not None:
            set_random_state(self._before_validation)
            self._before_validation = None

    @staticmethod
    def _continue_loaders(trainer: Trainer) -> None:
        """Gives loaders that count over all epochs their state at the end of an epoch, too.

        There Lightning drops it (for max_epochs; not for max_steps), since a loader that counts within an
        epoch starts anew. Ours would give the first epoch's order again.
        """
        loop = trainer.fit_loop
        states, loaders = loop._combined_loader_states_to_load, loop._combined_loader
        if states and loaders is not None:
            if all(getattr(loader, "counts_over_epochs", False) for loader in loaders.flattened):
                loaders._load_state_dicts(states)
            loop._combined_loader_states_to_load = []

    def _restore(self, trainer: Trainer) -> None:
        if self._to_restore is not None:
            set_random_state(self._to_restore[trainer.global_rank])
            self._to_restore = None
