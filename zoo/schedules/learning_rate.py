"""Schedules for modules that build their own: what `configure_optimizers` or ``lr_scheduler:`` takes."""

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from zoo.schedules.schedule import RunSchedule, Schedule


class ScheduleLR(LRScheduler):
    """The learning rates of a `Schedule`, as torch's own schedulers give them.

    Its state is the number of the update and nothing else, so a resumed run follows the schedule that
    it is given now. (The callbacks `zoo.callbacks.LRSchedule` and `WSDS` also check a resume, know the run's
    length, and save a checkpoint for each budget.)

    Args:
        optimizer: The optimizer; a config leaves it out, the module gives it.
        schedule: What multiplies its learning rates in each update.

    Raises:
        ValueError: the schedule is as long as the run, which a scheduler does not know.

    >>> import torch
    >>> from zoo.schedules import wsds
    >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    >>> scheduler, rates = ScheduleLR(optimizer, wsds([4, 8], decay=0.5)), []
    >>> for _ in range(8):
    ...     rates.append(scheduler.get_last_lr()[0])
    ...     optimizer.step()
    ...     scheduler.step()
    >>> [round(rate, 3) for rate in rates]
    [2.0, 2.0, 1.1, 0.2, 1.55, 1.1, 0.65, 0.2]
    """

    def __init__(self, optimizer: Optimizer, schedule: RunSchedule) -> None:
        if not isinstance(schedule, Schedule):
            raise ValueError(
                "a scheduler does not know how long the run is: give the schedule its updates, or give it to "
                "the callback LRSchedule"
            )
        self.schedule = schedule
        super().__init__(optimizer)

    def get_lr(self) -> list[float | Tensor]:
        """The learning rate of each group of parameters in update number `last_epoch`."""
        factor = self.schedule.factor(self.last_epoch)
        return [rate * factor for rate in self.base_lrs]

    def state_dict(self) -> dict[str, int]:
        """The number of the update."""
        return {"last_epoch": self.last_epoch}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Goes on at an update; peaks and schedule stay those that the constructors were given."""
        self.last_epoch = state_dict["last_epoch"]
        for group, rate in zip(self.optimizer.param_groups, self.get_lr(), strict=True):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate


class InverseSquareRootLR(LRScheduler):
    """The optimizer's learning rate over sqrt(max(updates / steps, 1)): constant, then falling.

    EDM2's (Karras et al. 2023, arXiv 2312.02696); ECT (Geng et al. 2024, arXiv 2406.14548) takes it on
    ImageNet-64. It has no end, so it is not a `Schedule`.

    Args:
        optimizer: The optimizer; a config leaves it out, the module gives it.
        steps: Updates at the full learning rate: 70,000 for EDM2 on ImageNet-512, 35,000 on ImageNet-64;
            2,000 for ECT.

    Raises:
        ValueError: ``steps`` is below 1.

    >>> import torch
    >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    >>> schedule, rates = InverseSquareRootLR(optimizer, steps=2), []
    >>> for _ in range(9):
    ...     rates.append(schedule.get_last_lr()[0])
    ...     optimizer.step()
    ...     schedule.step()
    >>> [round(rate, 3) for rate in rates]
    [1.0, 1.0, 1.0, 0.816, 0.707, 0.632, 0.577, 0.535, 0.5]
    """

    def __init__(self, optimizer: Optimizer, steps: int) -> None:
        if steps < 1:
            raise ValueError(f"steps must be at least 1 update, got {steps}")
        self.steps = steps
        super().__init__(optimizer)

    def get_lr(self) -> list[float | Tensor]:
        """The learning rate of each group of parameters after `last_epoch` updates."""
        return [rate * max(self.last_epoch / self.steps, 1.0) ** -0.5 for rate in self.base_lrs]
