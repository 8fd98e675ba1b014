"""Frozen modules beside a LightningModule: a teacher, a distance. They follow its device, unsaved."""

import copy
from typing import Any, Self

import torch
from torch import nn
from typing_extensions import override

from zoo.base import ZooModule
from zoo.events import display_path, record
from zoo.flow.teacher import Teacher


def frozen(module: nn.Module) -> nn.Module:
    """The module without gradient, in evaluation mode."""
    return module.requires_grad_(False).eval()


class Frozen(dict[str, Any]):
    """Modules beside a LightningModule: not its parameters, not in its checkpoints, shared by its copies."""

    def to(self, device: torch.device) -> None:
        """Moves them."""
        for module in self.values():
            if isinstance(module, nn.Module):
                module.to(device)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """The same modules: they never change."""
        return copy.copy(self)


class WithFrozenParts(ZooModule):
    """A LightningModule with frozen modules beside it, which are put where it is when a stage starts."""

    # A subclass sets these.
    _frozen: Frozen
    shape: tuple[int, ...]
    num_classes: int | None

    @property
    def teacher(self) -> Teacher | None:
        """The teacher, which is not a part of this module's parameters."""
        return self._frozen.get("teacher")

    @override
    def setup(self, stage: str) -> None:
        super().setup(stage)
        if self.teacher is not None and stage != "predict":
            self.teacher.load().check_student(self.shape, self.num_classes)

    @override
    def on_fit_start(self) -> None:
        super().on_fit_start()
        self._place_frozen()
        if self.teacher is not None and self.teacher.file is not None:
            file, weights = self.teacher.file, self.teacher.weights
            record(
                self.trainer,
                "teacher_loaded",
                f"the teacher has the {weights} weights of {display_path(file)}",
                source=str(file),
                weights=weights,
            )

    @override
    def on_validation_start(self) -> None:
        self._place_frozen()

    @override
    def on_test_start(self) -> None:
        self._place_frozen()

    def _place_frozen(self) -> None:
        self._frozen.to(self.device)
