"""The testers find what they are there to find: components with one fault each fail the right test."""

import inspect
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from callback_tester import HOSTS, Baselines, CallbackCase, CallbackTester, fit
from evaluation_tester import EvaluationCallbackTester, EvaluationCase, evaluate
from lightning.pytorch import Callback, LightningModule, Trainer
from module_tester import ModuleCase, ModuleTester
from pool import Pool
from ranks import SaysOnEachRank

from zoo import events
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


class MovesQueries(Callback):
    """Changes the queries of attention at each step, where there are any."""

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *rest: Any) -> None:
        for name, parameter in pl_module.named_parameters():
            if name.endswith("q.weight"):
                parameter.data.mul_(0.9)


def test_a_global_draw_is_found(baselines: Baselines, tmp_path: Path) -> None:
    case = CallbackCase(active=DrawsGlobally, inactive=DrawsGlobally)
    with pytest.raises(AssertionError, match="differs by up to"):
        CallbackTester().test_inactive_is_neutral(case, baselines.run(case.automatic), tmp_path)


@pytest.mark.parametrize("host", ["classifier", "attention"])
def test_a_lost_state_is_found(host: Any, tmp_path: Path) -> None:
    case = CallbackCase(active=Forgets, inactive=Forgets, observer=False, host=host)
    whole = fit(tmp_path / "whole", [ExactResume(), Forgets()], case.automatic)
    with pytest.raises(AssertionError, match="differs by up to"):
        CallbackTester().test_resume_is_bitwise(case, (whole, tmp_path / "whole"), 7, tmp_path / "resumed")


@pytest.mark.parametrize("host", ["classifier", "attention"])
def test_a_host_sync_is_found(host: Any, baselines: Baselines, tmp_path: Path) -> None:
    case = CallbackCase(active=Waits, inactive=Waits, host=host)
    with pytest.raises(AssertionError):
        CallbackTester().test_no_host_sync_per_step(case, baselines, tmp_path)


def test_what_only_attention_shows_is_found_in_the_attention_host(
    baselines: Baselines, tmp_path: Path
) -> None:
    tester = CallbackTester()
    idle = CallbackCase(active=MovesQueries, inactive=MovesQueries)
    tester.test_observer_is_neutral_at_work(idle, baselines.run(idle.automatic), tmp_path / "idle")
    case = CallbackCase(active=MovesQueries, inactive=MovesQueries, host="attention")
    with pytest.raises(AssertionError, match="differs by up to"):
        tester.test_observer_is_neutral_at_work(case, baselines.run(case.automatic), tmp_path / "automatic")
    with pytest.raises(AssertionError, match="differs by up to"):
        tester.test_manual_optimization(case, baselines, tmp_path / "manual")


def test_the_attention_host_has_four_equal_blocks() -> None:
    """And it learns, so that there is something to disturb."""
    for module in HOSTS["attention"]:
        shapes = [
            {name: value.shape for name, value in block.named_parameters()}
            for block in module().network.blocks  # type: ignore[union-attr, operator]
        ]
        assert len(shapes) == 4 and shapes == shapes[:1] * 4


def test_baselines_are_made_once(baselines: Baselines) -> None:
    """But once for each host and for each choice of options."""
    runs = [
        baselines.run(module, **options)
        for module in (HOSTS["classifier"][0], HOSTS["attention"][0])
        for options in ({}, {"gradient_clip_val": 0.1}, {})
    ]
    assert runs[0] is runs[2] and runs[3] is runs[5] and len({id(run) for run in runs}) == 4
    assert all(float(run.losses[-1]) < float(run.losses[0]) for run in runs)  # type: ignore[index, arg-type]


class Notes(Callback):
    """Writes how much was predicted, with one fault or none."""

    def __init__(self, fault: str = "") -> None:
        self.fault, self.count, self.kept = fault, 0, []  # type: ignore[var-annotated]

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.fault != "goes on counting":
            self.count = 0

    def on_predict_batch_end(self, trainer: Trainer, pl_module: LightningModule, *rest: Any) -> None:
        self.count += len(rest[0]["index"])
        if self.fault == "draws globally":
            torch.rand(1)
        if self.fault == "changes predictions":
            rest[0]["logits"].mul_(2)
        if self.fault == "changes weights":
            next(pl_module.parameters()).data.mul_(0.5)
        if self.fault == "keeps predictions":
            self.kept.append(rest[0])
        if self.fault == "writes half a file":
            (events.run_folder(trainer) / "notes.txt").write_text("half")

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.fast_dev_run and self.fault != "writes in a fast_dev_run":  # type: ignore[attr-defined]
            return
        folder = events.run_folder(trainer)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "notes.txt").write_text(str(self.count))
        if self.fault == "leaves a temporary file":
            (folder / ".notes").touch()
        events.record(trainer, "noted", "notes were written", count=self.count)


class NotesInTraining(Notes):
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.count += 1


class NotesWithState(Notes):
    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count}


def run_evaluation_test(name: str, make: Any, baselines: Baselines, folder: Path) -> None:
    case = EvaluationCase(make, "predict", ["notes.txt"])
    callback = case.make()
    given: dict[str, Any] = {"case": case, "baselines": baselines, "tmp_path": folder / "test"}
    if name in (
        "weights_metrics_and_draws_are_left_alone",
        "it_leaves_its_files_and_nothing_else",
        "it_works_twice",
    ):
        given["at_work"] = callback, evaluate(folder / "work", "predict", [callback]), folder / "work"
    test = getattr(EvaluationCallbackTester(), f"test_{name}")
    test(**{name: value for name, value in given.items() if name in inspect.signature(test).parameters})


FAULTS = {
    "draws globally": "weights_metrics_and_draws_are_left_alone",
    "changes predictions": "weights_metrics_and_draws_are_left_alone",
    "changes weights": "weights_metrics_and_draws_are_left_alone",
    "keeps predictions": "it_leaves_its_files_and_nothing_else",
    "leaves a temporary file": "it_leaves_its_files_and_nothing_else",
    "goes on counting": "it_works_twice",
    "writes in a fast_dev_run": "a_fast_dev_run_leaves_no_file",
    "writes half a file": "an_interruption_leaves_no_file",
    "has a state": "it_has_no_part_in_training",
    "acts in training": "it_has_no_part_in_training",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_in_evaluation_are_found(fault: str, baselines: Baselines, tmp_path: Path) -> None:
    """Each by its test, which the same callback without the fault passes."""
    run_evaluation_test(FAULTS[fault], Notes, baselines, tmp_path / "right")
    kinds = {"acts in training": NotesInTraining, "has a state": NotesWithState}
    make = kinds.get(fault) or partial(Notes, fault)
    with pytest.raises(AssertionError):
        run_evaluation_test(FAULTS[fault], make, baselines, tmp_path / "wrong")


@pytest.mark.slow
def test_what_every_process_says_is_found(pool: Pool, tmp_path: Path) -> None:
    case = EvaluationCase(SaysOnEachRank, "predict", [])
    callback = case.make()
    work = callback, evaluate(tmp_path / "work", "predict", [callback]), tmp_path / "work"
    with pytest.raises(AssertionError):
        EvaluationCallbackTester().test_two_processes(case, work, pool, tmp_path / "two")


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
