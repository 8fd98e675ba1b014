"""How many updates a run has, by the Trainer's limits."""

import math

from lightning.pytorch import Trainer


def last_update(trainer: Trainer) -> tuple[float, str]:
    """Updates at which the Trainer's limits end a run, infinite if none does, and the limit's name."""
    epochs, steps = trainer.max_epochs, trainer.max_steps
    total = trainer.estimated_stepping_batches
    if total < 0:  # data of unknown length, and no max_steps
        return math.inf, "the Trainer"
    by_steps = steps >= 0 and total == steps
    return total, f"max_steps {steps}" if by_steps or epochs is None else f"max_epochs {epochs}"


def run_length(trainer: Trainer) -> int:
    """The number of updates of a run, by the Trainer's limits.

    Raises:
        ValueError: the run has no end, or its data no length.
    """
    stop = last_update(trainer)[0]
    if math.isinf(stop):
        raise ValueError(
            "the schedule is as long as the run, and the run has no length: give trainer.max_steps, or "
            "max_epochs with data whose number of batches is known, or give the schedule updates"
        )
    return int(stop)


def several_optimizers(trainer: Trainer) -> bool:
    """Whether ``global_step`` is the sum over several optimizers."""
    return not trainer.lightning_module.automatic_optimization and len(trainer.optimizers) > 1
