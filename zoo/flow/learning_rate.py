"""The learning rate of EDM2, which PyTorch has no schedule for that a config can name.

Karras et al. 2023, arXiv 2312.02696: constant for a while, then falling like one over the root of the
updates. ECT (Geng et al. 2024, arXiv 2406.14548) takes it on ImageNet-64.
"""

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


class InverseSquareRootLR(LRScheduler):
    """The optimizer's learning rate over sqrt(max(updates / steps, 1)).

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
