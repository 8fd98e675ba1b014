"""Learning rates that a callback sets in place of a scheduler."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.optim import Optimizer


class OwnedRates:
    """The learning rates of optimizers, as multiples of those that they were built with.

    Args:
        optimizers: As built from the config, before a checkpoint brings its own learning rates.
        beta2_in_decay: Adam's second beta while the learning rate decays; None leaves it alone.

    Raises:
        ValueError: ``beta2_in_decay`` for an optimizer without betas.
    """

    def __init__(self, optimizers: Sequence[Optimizer], beta2_in_decay: float | None) -> None:
        self.peaks = [[float(group["lr"]) for group in each.param_groups] for each in optimizers]
        self._betas: list[list[Any]] = [
            [group.get("betas") for group in each.param_groups] for each in optimizers
        ]
        self._beta2 = beta2_in_decay
        if beta2_in_decay is not None and any(None in each for each in self._betas):
            raise ValueError(
                f"beta2_in_decay={beta2_in_decay} needs optimizers with betas, got "
                f"{', '.join(type(optimizer).__name__ for optimizer in optimizers)}: leave it out"
            )

    def set(self, optimizers: Sequence[Optimizer], factor: float, decaying: bool) -> None:
        """What the next update uses; tensors that compiled optimizers hold are filled, not replaced."""
        for optimizer, peaks, all_betas in zip(optimizers, self.peaks, self._betas, strict=True):
            for group, peak, betas in zip(optimizer.param_groups, peaks, all_betas, strict=True):
                if isinstance(group["lr"], torch.Tensor):
                    group["lr"].fill_(peak * factor)
                else:
                    group["lr"] = peak * factor
                if self._beta2 is not None:
                    group["betas"] = (betas[0], self._beta2) if decaying else betas


def shown_rates(peaks: Sequence[Sequence[float]]) -> str:
    """Peak learning rates as text: one number where all groups have the same.

    >>> shown_rates([[0.1, 0.1], [0.1]]), shown_rates([[0.1, 0.001]])
    ('0.1', '0.1, 0.001')
    """
    flat = [rate for each in peaks for rate in each]
    return f"{flat[0]:g}" if len(set(flat)) == 1 else ", ".join(f"{rate:g}" for rate in flat)
