"""The testers find what they are there to find: components with one fault each fail the right test."""

from pathlib import Path
from typing import Any

import pytest
import torch
from callback_tester import CallbackCase, CallbackTester, fit
from lightning.pytorch import Callback, LightningModule, Trainer
from module_tester import ModuleCase, ModuleTester
from pool import Pool

from zoo.callbacks import ExactResume


class DrawsGlobally(Callback):
    """Takes a number from the global generator at each step."""

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *rest: Any) -> None:
        torch.rand(1)


class Forgets(Callback):
    """Changes the weights by a count of steps that no checkpoint keeps."""

    def __init__(self) -> None:
        self.steps = 0

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *rest: Any) -> None:
        self.steps += 1
        for parameter in pl_module.parameters():
            parameter.data.mul_(1 - 1e-3 * self.steps)


class Waits(Callback):
    """Reads the loss at each step."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *rest: Any
    ) -> None:
        outputs["loss"].item()


def test_a_global_draw_is_found(tmp_path: Path) -> None:
    case = CallbackCase(active=DrawsGlobally, inactive=DrawsGlobally)
    with pytest.raises(AssertionError, match="differs by up to"):
        CallbackTester().test_inactive_is_neutral(case, fit(tmp_path / "plain"), tmp_path / "with")


def test_a_lost_state_is_found(tmp_path: Path) -> None:
    case = CallbackCase(active=Forgets, inactive=Forgets, observer=False)
    whole = fit(tmp_path / "whole", [ExactResume(), Forgets()])
    with pytest.raises(AssertionError, match="differs by up to"):
        CallbackTester().test_resume_is_bitwise(case, (whole, tmp_path / "whole"), 7, tmp_path / "resumed")


def test_a_host_sync_is_found(tmp_path: Path) -> None:
    case = CallbackCase(active=Waits, inactive=Waits)
    with pytest.raises(AssertionError):
        CallbackTester().test_no_host_sync_per_step(case, tmp_path)


def test_a_step_that_depends_on_the_number_of_processes_is_found(pool: Pool) -> None:
    """A fixed number of items of each rank's batch is not a function of the items alone."""
    times = {"class_path": "zoo.flow.MeanFlowTimes", "init_args": {"prob_r_neq_t": 0.5, "fixed_count": True}}
    network = {"class_path": "zoo.flow.MLP", "init_args": {"width": 8, "depth": 1}}
    case = ModuleCase(
        model={
            "class_path": "zoo.flow.MeanFlow",
            "init_args": {"network": network, "times": times, "seed": 0},
        },
        data={"class_path": "zoo.datamodules.EightGaussians", "init_args": {"size": 256, "seed": 0}},
    )
    with pytest.raises(AssertionError, match="not close"):
        ModuleTester().test_two_processes_equal_one(case, pool)
