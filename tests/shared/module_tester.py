"""What every LightningModule of the zoo is put through. A new module is one more `ModuleCase` in
tests/components.

A case is written as the config a user would write (class paths and init args), so that the same one is built
by the command line, from Python, and inside the pool's workers.
"""

import copy
import importlib
import math
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from pool import Pool

from zoo.base import load_weights
from zoo.callbacks import ExactResume

Config = dict[str, Any]
STEPS = 7


@dataclass(frozen=True)
class ModuleCase:
    """One module with data that fit it.

    Args:
        model: Its config, small, with dropout where it has any.
        data: The datamodule's config, whose training batches are ``batch_size`` items.
        batch_size: Items per batch; even, since two processes share a batch.
        without_dropout: Dotted paths into ``model`` and the values that switch dropout off.
        compile_flag: Dotted path of the flag that compiles the inner network.
    """

    model: Config
    data: Config
    batch_size: int = 32
    without_dropout: dict[str, Any] = field(default_factory=dict)
    compile_flag: str | None = "init_args.compile"


def with_values(config: Config, changes: dict[str, Any]) -> Config:
    """A copy of a config with the values at dotted paths replaced."""
    config = copy.deepcopy(config)
    for path, value in changes.items():
        *parents, last = path.split(".")
        node = config
        for name in parents:
            node = node.setdefault(name, {})
        node[last] = value
    return config


def build(config: Any) -> Any:
    """What plain Python code would build: classes called with their arguments."""
    if isinstance(config, dict) and "class_path" in config:
        module, name = config["class_path"].rsplit(".", 1)
        arguments = {key: build(value) for key, value in config.get("init_args", {}).items()}
        return getattr(importlib.import_module(module), name)(**arguments)
    return {key: build(value) for key, value in config.items()} if isinstance(config, dict) else config


def build_model(config: Config) -> LightningModule:
    """The module, with weights that depend on nothing but the config."""
    torch.manual_seed(0)
    model = build(config)
    assert isinstance(model, LightningModule)
    return model


def fit(
    model: LightningModule,
    data: LightningDataModule,
    folder: Path | None = None,
    steps: int = STEPS,
    checkpoint: str | Path | None = None,
    ema: bool = False,
    **options: Any,
) -> Trainer:
    """Trains for ``steps`` updates; with a folder, a checkpoint after each."""
    callbacks: list[Any] = [ExactResume()]
    if ema:
        callbacks.append(EMAWeightAveraging(decay=0.9))
    if folder is not None:
        callbacks.append(
            ModelCheckpoint(dirpath=folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)
        )
    with TemporaryDirectory() as elsewhere:  # for the events of a run that has no folder
        trainer = Trainer(
            accelerator="cpu",
            max_steps=steps,
            callbacks=callbacks,
            logger=CSVLogger(folder, name=None, version="") if folder is not None else False,
            enable_checkpointing=folder is not None,
            default_root_dir=folder or elsewhere,
            log_every_n_steps=1,
            num_sanity_val_steps=0,
            enable_progress_bar=False,
            enable_model_summary=False,
            **options,
        )
        torch.manual_seed(1)
        trainer.fit(model, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    return trainer


def logged(folder: Path) -> list[str]:
    """Header of metrics.csv."""
    return (folder / "metrics.csv").read_text().splitlines()[0].split(",")


def with_plain_sgd(module: LightningModule) -> LightningModule:
    """Plain SGD, so that a step shows the gradient itself, its scale included."""
    sgd = torch.optim.SGD(module.parameters(), lr=0.1)
    module.configure_optimizers = lambda: sgd  # type: ignore[method-assign]
    return module


def train_on_rank(model: Config, data: Config, steps: int) -> dict[str, torch.Tensor]:
    """A worker's share of a two-process run in float64."""
    module = with_plain_sgd(build_model(model))
    fit(module, build(data), steps=steps, precision="64-true", strategy="ddp", devices=2, limit_val_batches=0)
    return {name: value.clone() for name, value in module.state_dict().items()}


class ModuleTester:
    """The guarantees of every LightningModule. Its test file has a class-scoped fixture `case`."""

    @staticmethod
    def data(case: ModuleCase) -> LightningDataModule:
        data = build(case.data)
        assert isinstance(data, LightningDataModule)
        return data

    @pytest.fixture(scope="class")
    @classmethod
    def run(cls, case: ModuleCase, tmp_path_factory: pytest.TempPathFactory) -> tuple[LightningModule, Path]:
        """A short run from Python with dropout, an average and all checkpoints."""
        folder = tmp_path_factory.mktemp("run")
        model = build_model(case.model)
        fit(model, ModuleTester.data(case), folder, ema=True)
        return model, folder

    def test_fit_validates_and_logs(self, case: ModuleCase, run: tuple[LightningModule, Path]) -> None:
        model, folder = run
        start = build_model(case.model).state_dict()
        moved = [name for name, value in model.named_parameters() if not value.equal(start[name])]
        # A module's own average of weights moves without gradient.
        frozen = [
            name
            for name, value in model.named_parameters()
            if not value.requires_grad and not name.startswith("target_network.")
        ]
        assert moved and not set(moved) & set(frozen)
        assert all(value.isfinite().all() for value in model.parameters())
        assert "train/loss" in logged(folder)

    def test_validate_test_predict(self, case: ModuleCase, run: tuple[LightningModule, Path]) -> None:
        model, _ = run
        trainer = Trainer(
            accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
            limit_val_batches=2, limit_test_batches=2, limit_predict_batches=2,
        )  # fmt: skip
        [validated] = trainer.validate(model, datamodule=ModuleTester.data(case), verbose=False)
        [tested] = trainer.test(model, datamodule=ModuleTester.data(case), verbose=False)
        assert math.isfinite(validated["val/loss"]) and math.isfinite(tested["test/loss"])
        again = trainer.validate(model, datamodule=ModuleTester.data(case), verbose=False)[0]
        assert again == validated  # evaluation draws nothing from the global state
        predicted = trainer.predict(model, datamodule=ModuleTester.data(case))
        assert predicted is not None and len(predicted) == 2 and predicted[0] is not None

    def test_checkpoint_is_plain(self, case: ModuleCase, run: tuple[LightningModule, Path]) -> None:
        _, folder = run
        checkpoint = torch.load(folder / f"step={STEPS}.ckpt", weights_only=True)
        assert "optimizer" in checkpoint["hyper_parameters"].get("not_saved", ["optimizer"])
        hparams = (folder / "hparams.yaml").read_text()
        assert "!!python" not in hparams and len(hparams) < 10_000

    def test_load_from_checkpoint_from_python(
        self, case: ModuleCase, run: tuple[LightningModule, Path]
    ) -> None:
        model, folder = run
        path = folder / f"step={STEPS}.ckpt"
        dropped = torch.load(path, weights_only=True)["hyper_parameters"].get("not_saved", [])
        arguments = {name: build(case.model["init_args"][name]) for name in dropped if name != "optimizer"}
        if "optimizer" in dropped:
            arguments["optimizer"] = torch.optim.SGD
        for name in dropped:
            with pytest.raises(TypeError, match=name):
                type(model).load_from_checkpoint(path, **{k: v for k, v in arguments.items() if k != name})
        loaded = type(model).load_from_checkpoint(path, **arguments)
        for name, value in model.state_dict().items():
            assert value.equal(loaded.state_dict()[name]), name

    def test_load_from_checkpoint_from_command_line(
        self, case: ModuleCase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from zoo.cli import main

        monkeypatch.chdir(tmp_path)
        trainer = {
            "accelerator": "cpu", "max_steps": 2, "limit_val_batches": 1, "enable_progress_bar": False,
            "enable_model_summary": False, "log_every_n_steps": 1,
        }  # fmt: skip
        Path("case.yaml").write_text(
            yaml.safe_dump({"model": case.model, "data": case.data, "trainer": trainer})
        )
        assert main(["fit", "--config", "case.yaml"]) == 0
        [path] = Path("runs/case/version_0/checkpoints").glob("*.ckpt")
        cls = type(build(case.model))
        loaded = cls.load_from_checkpoint(path)  # no arguments: the config is in the checkpoint
        saved = torch.load(path, weights_only=True)["state_dict"]
        assert saved.keys() == loaded.state_dict().keys()
        assert all(value.equal(loaded.state_dict()[name]) for name, value in saved.items())
        other = cls.load_from_checkpoint(path, seed=123)  # an argument passed again wins
        assert other.seed == 123

    @pytest.mark.parametrize("step", [1, 4])
    def test_resume_is_bitwise(
        self, case: ModuleCase, run: tuple[LightningModule, Path], step: int, tmp_path: Path
    ) -> None:
        whole, folder = run
        resumed = build_model(case.model)
        fit(resumed, ModuleTester.data(case), tmp_path, checkpoint=folder / f"step={step}.ckpt", ema=True)
        for name, value in whole.state_dict().items():
            assert value.equal(resumed.state_dict()[name]), name
        ends = [torch.load(path / f"step={STEPS}.ckpt", weights_only=True) for path in (folder, tmp_path)]
        for name, value in ends[0]["current_model_state"].items():
            assert value.equal(ends[1]["current_model_state"][name]), name

    def test_init_from(self, case: ModuleCase, run: tuple[LightningModule, Path]) -> None:
        _, folder = run
        path = folder / f"step={STEPS}.ckpt"
        checkpoint = torch.load(path, weights_only=True)
        for weights, key in (("ema", "state_dict"), ("raw", "current_model_state")):
            fresh = build_model(case.model)
            report = load_weights(fresh, path, weights)  # type: ignore[arg-type]
            assert not report.missing and not report.unexpected and not report.mismatched
            assert all(value.equal(fresh.state_dict()[name]) for name, value in checkpoint[key].items())

    def test_two_processes_equal_one(self, case: ModuleCase, pool: Pool) -> None:
        """Two ranks on half the batch each take the step of one process on the whole (float64, SGD)."""
        model = with_values(case.model, case.without_dropout)
        half = with_values(case.data, {"init_args.batch_size": case.batch_size // 2})
        left, right = pool.run(train_on_rank, model, half, 3)
        single = with_plain_sgd(build_model(model))
        data = build(with_values(case.data, {"init_args.batch_size": case.batch_size}))
        fit(single, data, steps=3, precision="64-true", limit_val_batches=0)
        start = build_model(model).double().state_dict()
        for name, value in single.state_dict().items():
            assert left[name].equal(right[name]), f"the ranks drifted apart in {name}"
            torch.testing.assert_close(left[name], value, rtol=1e-9, atol=1e-12)
        assert any(not value.equal(start[name]) for name, value in single.state_dict().items())

    def test_compile_agrees(self, case: ModuleCase, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        """The compiled network trains as the plain one does. Traced by dynamo and AOT autograd; the code
        generator behind them needs a C++ compiler, which a bare machine lacks."""
        if case.compile_flag is None:
            return
        compiled: list[torch.nn.Module] = []
        original = torch.nn.Module.compile

        def compile_without_inductor(module: torch.nn.Module, *args: Any, **kwargs: Any) -> None:
            compiled.append(module)
            original(module, *args, **{**kwargs, "backend": "aot_eager"})

        monkeypatch.setattr(torch.nn.Module, "compile", compile_without_inductor)
        models = []
        for flag in (False, True):
            model = with_values(case.model, {**case.without_dropout, case.compile_flag: flag})
            models.append(build_model(model))
            fit(models[-1], ModuleTester.data(case), steps=2, limit_val_batches=0)
        assert compiled and all(module in set(models[1].modules()) for module in compiled)
        for name, value in models[0].state_dict().items():
            # The traced graph may reorder float32 sums; Adam's division then shows a few 1e-6 of a step.
            torch.testing.assert_close(models[1].state_dict()[name], value, rtol=1e-4, atol=1e-5)
