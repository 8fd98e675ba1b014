"""Learning rates that a callback sets in place of a scheduler, and the optimizer's other arguments."""

from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

import torch
from torch.optim import Optimizer

Arguments = list[list[dict[str, Any]]]  # of each group of each optimizer
_NOT_ARGUMENTS = ("params", "param_names", "lr", "initial_lr")


class LRSetter:
    """The learning rates of optimizers, as multiples of those that they were built with.

    Args:
        optimizers: As built from the config, before a checkpoint brings its own learning rates.
        beta2_in_decay: Adam's second beta while the learning rate decays; None leaves it alone.

    Attributes:
        peaks: The learning rate of each group of each optimizer.
        arguments: What else each group was built with, as plain values.

    Raises:
        ValueError: ``beta2_in_decay`` for an optimizer without betas.
    """

    def __init__(self, optimizers: Sequence[Optimizer], beta2_in_decay: float | None = None) -> None:
        self.peaks = [[float(group["lr"]) for group in each.param_groups] for each in optimizers]
        self._built: Arguments = [
            [{k: v for k, v in group.items() if k not in _NOT_ARGUMENTS} for group in each.param_groups]
            for each in optimizers
        ]
        self.arguments: Arguments = [[_plain(group) for group in each] for each in self._built]
        self._beta2 = beta2_in_decay
        if beta2_in_decay is not None and any("betas" not in group for each in self._built for group in each):
            raise ValueError(
                f"beta2_in_decay={beta2_in_decay} needs optimizers with betas, got "
                f"{', '.join(type(optimizer).__name__ for optimizer in optimizers)}: leave it out"
            )

    def set(self, optimizers: Sequence[Optimizer], factor: float, decaying: bool) -> None:
        """What the next update uses; tensors that compiled optimizers hold are filled, not replaced."""
        for optimizer, peaks, built in zip(optimizers, self.peaks, self._built, strict=True):
            for group, peak, arguments in zip(optimizer.param_groups, peaks, built, strict=True):
                if isinstance(group["lr"], torch.Tensor):
                    group["lr"].fill_(peak * factor)
                else:
                    group["lr"] = peak * factor
                if self._beta2 is not None:
                    betas = arguments["betas"]
                    group["betas"] = (betas[0], self._beta2) if decaying else betas

    def arguments_of(self, optimizers: Sequence[Optimizer]) -> Arguments:
        """The arguments that optimizers have now; betas that `set` changes count as built."""
        found: Arguments = [[_plain(group) for group in each.param_groups] for each in optimizers]
        if self._beta2 is not None:
            for groups, built in zip(found, self.arguments, strict=True):
                for group, arguments in zip(groups, built, strict=True):
                    group["betas"] = arguments["betas"]
        return found

    def restore_arguments(self, optimizers: Sequence[Optimizer]) -> None:
        """Gives optimizers the arguments that they were built with, after a checkpoint has brought others."""
        for optimizer, built in zip(optimizers, self._built, strict=True):
            for group, arguments in zip(optimizer.param_groups, built, strict=True):
                group.update(arguments)


def changed_arguments(old: Arguments, new: Arguments) -> list[str]:
    """What differs between the arguments of two runs' optimizers, each change once.

    >>> changed_arguments([[{"eps": 1e-8, "weight_decay": 0.1}]], [[{"eps": 1e-8, "weight_decay": 0.3}]])
    ['weight_decay was 0.1 and is 0.3']
    """
    flat = zip_longest(*([group for each in side for group in each] for side in (old, new)), fillvalue={})
    found = [
        f"{name} was {before.get(name, 'absent')} and is {after.get(name, 'absent')}"
        for before, after in flat
        for name in sorted(before.keys() | after.keys())
        if (name in before, before.get(name)) != (name in after, after.get(name))
    ]
    return list(dict.fromkeys(found))


def shown_rates(peaks: Sequence[Sequence[float]]) -> str:
    """Peak learning rates as text: one number where all groups have the same.

    >>> shown_rates([[0.1, 0.1], [0.1]]), shown_rates([[0.1, 0.001]])
    ('0.1', '0.1, 0.001')
    """
    flat = [rate for each in peaks for rate in each]
    return f"{flat[0]:g}" if len(set(flat)) == 1 else ", ".join(f"{rate:g}" for rate in flat)


def _plain(group: dict[str, Any]) -> dict[str, Any]:
    """A group's arguments as a checkpoint can hold them and JSON can show them."""

    def plain(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value.tolist()
        if isinstance(value, list | tuple):
            return [plain(item) for item in value]
        if isinstance(value, float) and not isinstance(value, bool):
            return float(value)  # of NumPy's
        return value if isinstance(value, bool | int | str | None) else repr(value)

    return {name: plain(value) for name, value in group.items() if name not in _NOT_ARGUMENTS}
