"""What every callback is put through that acts only in test or predict: one more `EvaluationCase` in
tests/components."""

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from callback_tester import Baselines, assert_same_run, fit, same
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from pool import Pool
from toys import ToyClassifier, ToyGenerator

from zoo.datamodules import Digits
from zoo.io import load_tensors, read_json_lines


@dataclass(frozen=True)
class EvaluationCase:
    """How to make one callback; its class and arguments can be sent to another process.

    Args:
        callback: Its class.
        verb: When it acts.
        files: What it leaves in the run folder.
        arguments: Of the class.
        single: What the refusal of a second instance says, where a run can have one only.
        metrics: What the names of the metrics begin with that it logs itself.
    """

    callback: Callable[..., Callback]
    verb: Literal["test", "predict"]
    files: Sequence[str]
    arguments: dict[str, Any] = field(default_factory=dict)
    single: str | None = None
    metrics: str = "nothing"

    def make(self) -> Callback:
        return self.callback(**self.arguments)


@dataclass
class Evaluation:
    """What a run gave."""

    weights: dict[str, Any]
    metrics: dict[str, Any]
    predictions: Any
    next_draw: torch.Tensor  # of the global generator
    training: bool


def evaluate(
    folder: Path,
    verb: str,
    callbacks: Sequence[Callback] = (),
    module: type[LightningModule] = ToyGenerator,
    **options: Any,
) -> Evaluation:
    """Tests a toy on digits, or predicts with it."""
    torch.manual_seed(0)
    model = module().train()
    trainer = Trainer(
        **{
            "accelerator": "cpu", "callbacks": list(callbacks), "limit_test_batches": 2,
            "limit_predict_batches": 2, "enable_progress_bar": False, "enable_model_summary": False,
            "logger": CSVLogger(folder, name=None, version=""), "default_root_dir": folder, **options,
        }
    )  # fmt: skip
    predictions = getattr(trainer, verb)(model, datamodule=Digits(batch_size=100, seed=0))
    return Evaluation(
        {name: value.clone() for name, value in model.state_dict().items()},
        dict(trainer.callback_metrics),
        predictions if verb == "predict" else None,
        torch.rand(3),
        model.training,
    )


def content(path: Path) -> Any:
    """What a file holds, without the times at which things happened."""
    if path.name == "events.jsonl":
        passing = ("time", "seconds", "message", "path")
        return [{name: row[name] for name in row.keys() - passing} for row in read_json_lines(path)]
    if path.suffix == ".npz":
        return {name: value.tolist() for name, value in np.load(io.BytesIO(path.read_bytes())).items()}
    if path.suffix == ".safetensors":
        tensors, header = load_tensors(path)
        return {name: value.tolist() for name, value in tensors.items()}, header
    return json.loads(path.read_text()) if path.suffix == ".json" else path.read_bytes()


def files(folder: Path) -> dict[str, Any]:
    """All files below a folder but the logger's."""
    found = [path for path in folder.rglob("*") if path.is_file()]
    return {
        path.relative_to(folder).as_posix(): content(path)
        for path in sorted(found)
        if path.name not in ("metrics.csv", "hparams.yaml")
    }


def held(value: Any) -> list[str]:
    """The kinds of what an object holds that costs memory or a handle: tensors, open files, modules."""
    if isinstance(value, dict):
        return [kind for item in value.values() for kind in held(item)]
    if isinstance(value, list | tuple | set):
        return [kind for item in value for kind in held(item)]
    if isinstance(value, torch.Tensor | np.ndarray | torch.nn.Module | io.IOBase | Trainer):
        return [type(value).__name__]
    return []


def evaluate_on_rank(case: EvaluationCase, folder: str) -> None:
    """An evaluation by two processes."""
    options: dict[str, Any] = {"strategy": "ddp", "devices": 2}
    evaluate(Path(folder), case.verb, [case.make()], **options)


class Stops(Exception):
    """An interruption."""


class StopsAt(Callback):
    """Raises an error in the second batch, after the callbacks before it."""

    def _stop(self, trainer: Trainer, pl_module: LightningModule, *rest: Any) -> None:
        if rest[2] == 1:
            raise Stops

    on_test_batch_end = on_predict_batch_end = _stop


class EvaluationCallbackTester:
    """The guarantees of every callback that acts only in test or predict. Its test file has a class-scoped
    fixture `case`."""

    @pytest.fixture(scope="class")
    @classmethod
    def at_work(
        cls, case: EvaluationCase, tmp_path_factory: pytest.TempPathFactory
    ) -> tuple[Callback, Evaluation, Path]:
        """A run with the callback."""
        folder, callback = tmp_path_factory.mktemp("work"), case.make()
        return callback, evaluate(folder, case.verb, [callback]), folder

    def test_it_has_no_part_in_training(
        self, case: EvaluationCase, baselines: Baselines, tmp_path: Path
    ) -> None:
        """By its hooks, and in a run: neither the other phases nor checkpoints can differ with it."""
        callback = case.make()
        others = {"setup", "teardown", "on_exception"}
        for name in vars(Callback).keys() - others:
            if not name.startswith(("_", f"on_{case.verb}_")):
                assert getattr(type(callback), name) is getattr(Callback, name), f"it has {name}"
        assert_same_run(baselines.run(ToyClassifier), fit(tmp_path, [callback]))
        saved = torch.load(next(tmp_path.glob("*.ckpt")), weights_only=True)["callbacks"]
        assert callback.state_key not in saved and not callback.state_dict()
        assert not held(vars(callback))

    def test_weights_metrics_and_draws_are_left_alone(
        self, case: EvaluationCase, at_work: tuple[Callback, Evaluation, Path], tmp_path: Path
    ) -> None:
        plain, run = evaluate(tmp_path, case.verb), at_work[1]
        assert same(plain.weights, run.weights) and plain.training == run.training
        own = {name for name in run.metrics if name.startswith(case.metrics)}
        assert same(plain.metrics, {name: run.metrics[name] for name in run.metrics.keys() - own})
        assert same(plain.predictions, run.predictions)
        assert plain.next_draw.equal(run.next_draw)
        assert plain.metrics or plain.predictions

    def test_it_leaves_its_files_and_nothing_else(
        self, case: EvaluationCase, at_work: tuple[Callback, Evaluation, Path]
    ) -> None:
        callback, _, folder = at_work
        assert sorted(files(folder)) == sorted([*case.files, "events.jsonl"])
        assert not [path for path in folder.rglob("*") if path.is_dir() and not any(path.iterdir())]
        assert not held(vars(callback)), "it holds on to what it needed in the run"
        assert not callback.state_dict()

    def test_it_works_twice(
        self, case: EvaluationCase, at_work: tuple[Callback, Evaluation, Path], tmp_path: Path
    ) -> None:
        """In one process: the same callback in another Trainer, and a new one."""
        used, _, folder = at_work
        for number, callback in enumerate((used, case.make())):
            evaluate(tmp_path / str(number), case.verb, [callback])
            assert files(tmp_path / str(number)) == files(folder)

    def test_two_instances(self, case: EvaluationCase, tmp_path: Path) -> None:
        both = [case.make(), case.make()]
        if case.single:
            with pytest.raises(Exception, match=case.single):
                evaluate(tmp_path, case.verb, both)
            assert not files(tmp_path)
        else:
            evaluate(tmp_path, case.verb, both)
            assert set(files(tmp_path)) == {*case.files, "events.jsonl"}

    def test_a_fast_dev_run_leaves_no_file(self, case: EvaluationCase, tmp_path: Path) -> None:
        callback = case.make()
        evaluate(tmp_path, case.verb, [callback], fast_dev_run=2)
        assert not files(tmp_path) and not held(vars(callback))

    def test_an_interruption_leaves_no_file(self, case: EvaluationCase, tmp_path: Path) -> None:
        callback = case.make()
        with pytest.raises(Stops):
            evaluate(tmp_path, case.verb, [callback, StopsAt()])
        assert not files(tmp_path) and not held(vars(callback))
        evaluate(tmp_path, case.verb, [callback])  # and it can be used again
        assert set(files(tmp_path)) == {*case.files, "events.jsonl"}

    def test_without_a_logger(self, case: EvaluationCase, tmp_path: Path) -> None:
        evaluate(tmp_path, case.verb, [case.make()], logger=False)
        assert set(files(tmp_path)) == {*case.files, "events.jsonl"}

    @pytest.mark.slow
    def test_two_processes(
        self, case: EvaluationCase, at_work: tuple[Callback, Evaluation, Path], pool: Pool, tmp_path: Path
    ) -> None:
        """Both take part, and say once what happened."""
        pool.run(evaluate_on_rank, case, str(tmp_path))
        made, alone = files(tmp_path), files(at_work[2])
        assert {Path(name).suffix for name in made} == {Path(name).suffix for name in alone}
        assert [row["event"] for row in made["events.jsonl"]] == [
            row["event"] for row in alone["events.jsonl"]
        ]
        assert not list(tmp_path.rglob(".*"))
