"""Who sets the learning rate of a run: a callback with a schedule, or the module's own schedulers."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from zoo.schedules.schedule import RunSchedule

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule
    from lightning.pytorch.utilities.types import LRSchedulerConfig


@runtime_checkable
class SchedulesLR(Protocol):
    """A callback that sets the learning rate from a schedule.

    Attributes:
        given: The schedule of its config.
    """

    given: RunSchedule


def scheduler_conflict(owner: type, module: "LightningModule", configs: "Sequence[LRSchedulerConfig]") -> str:
    """The message where a module has schedulers beside such a callback."""
    names = ", ".join(type(config.scheduler).__name__ for config in configs)
    return (
        f"the learning rate has two owners, {owner.__name__} and {names} of {type(module).__name__}: "
        "leave out the module's scheduler (--model.lr_scheduler null), or this callback"
    )
