"""The base classes: plain hyperparameters, injected optimizers, a start from other weights."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable, ReduceLROnPlateau
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn

from zoo.base import ZooDataModule, ZooModule, as_dataclass, load_weights, run_seed
from zoo.datamodules import Digits
from zoo.io import read_json_lines


class Host(ZooModule):
    """A classifier whose network is injected."""

    def __init__(
        self,
        network: nn.Module,
        head: nn.Module | None = None,
        scale: float = 1.0,
        sizes: tuple[int, ...] = (1, 2),
        optimizer: OptimizerCallable = torch.optim.AdamW,
        lr_scheduler: LRSchedulerCallable | None = None,
        init_from: str | None = None,
        init_weights: Any = "ema",
        seed: int | None = None,
    ) -> None:
        super().__init__(
            optimizer=optimizer,
            lr_scheduler=lr_scheduler,
            init_from=init_from,
            init_weights=init_weights,
            seed=seed,
        )
        self.save_hyperparameters()
        self.network = network
        self.head = head

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = nn.functional.cross_entropy(self.network(batch["x"]), batch["label"])
        self.log("train/loss", loss)
        return loss


def network(width: int = 10) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.Linear(width, 10))


def trainer(folder: Path, steps: int = 3, **options: Any) -> Trainer:
    saves = ModelCheckpoint(folder, "{step}", every_n_train_steps=1, save_top_k=-1)
    logger = CSVLogger(folder, name=None, version="")
    return Trainer(
        accelerator="cpu", max_steps=steps, callbacks=[EMAWeightAveraging(decay=0.5), saves], logger=logger,
        enable_progress_bar=False, enable_model_summary=False, **options,
    )  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of a short run with an average, from Python."""
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    trainer(folder).fit(
        Host(network(), optimizer=lambda p: torch.optim.SGD(p, lr=0.5)), datamodule=Digits(100, seed=0)
    )
    return folder / "step=3.ckpt"


class Enumlike(str):
    """A str in name only: pickled as an object of its class."""


def test_only_plain_values_are_kept() -> None:
    class Everything(ZooModule):
        def __init__(self, a: Any, b: Any, c: Any, d: Any, e: Any, f: Any, g: Any, h: Any) -> None:
            super().__init__()
            self.save_hyperparameters()

    made = Everything(
        a={"x": [1, 2.0, None, "s", (True, torch.ones(2))]}, b=np.float64(1.0), c=[nn.Linear(1, 1)], d={1: 2},
        e=Enumlike("x"), f=nn.Parameter(torch.ones(1)), g=torch.optim.SGD, h=Path("x"),
    )  # fmt: skip
    assert set(made.hparams) == {"a", "not_saved"}
    assert made.hparams["not_saved"] == ["b", "c", "d", "e", "f", "g", "h"]
    assert set(made.hparams_initial) == {"a", "not_saved"}


@dataclass(frozen=True)
class Guidance:
    omega: float = 1.0
    other: Any = None

    def __post_init__(self) -> None:
        if self.omega < 0:
            raise ValueError(f"omega must be at least 0, got {self.omega}")


class Grouped(ZooModule):
    def __init__(self, guidance: Guidance = Guidance(), seed: int | None = None) -> None:
        super().__init__(seed=seed)
        self.save_hyperparameters()
        self.guidance = as_dataclass(Guidance, guidance, "guidance")


def test_dataclasses_are_kept_as_dicts(tmp_path: Path) -> None:
    """Also one that is the default; the constructor makes them again."""
    for made, omega in ((Grouped(Guidance(2.0, [1, {"a": None}])), 2.0), (Grouped(), 1.0)):
        assert type(made.hparams["guidance"]) is dict and made.hparams["guidance"]["omega"] == omega
        run = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
        run.strategy.connect(made)
        run.save_checkpoint(tmp_path / "run.ckpt")
        assert torch.load(tmp_path / "run.ckpt", weights_only=True)["hyper_parameters"]["guidance"]
        loaded = Grouped.load_from_checkpoint(tmp_path / "run.ckpt")
        assert loaded.guidance == made.guidance
        assert Grouped.load_from_checkpoint(tmp_path / "run.ckpt", guidance=Guidance(3.0)).guidance.omega == 3
    assert set(Grouped(Guidance(other=nn.Linear(1, 1))).hparams) == {"seed", "not_saved"}


def test_a_dict_that_is_not_the_dataclass_is_refused() -> None:
    with pytest.raises(ValueError, match="guidance: Guidance has no field 'omga'; did you mean omega"):
        Grouped({"omga": 1.0})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="guidance: omega must be at least 0, got -1"):
        Grouped({"omega": -1.0})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"guidance must be a Guidance or a dict of its fields, got 2\.0"):
        Grouped(2.0)  # type: ignore[arg-type]


def test_checkpoint_and_logger_see_plain_values(run: Path) -> None:
    saved = torch.load(run, weights_only=True)["hyper_parameters"]
    assert saved["scale"] == 1.0 and saved["not_saved"] == ["network", "optimizer"]
    assert "!!python" not in (run.parent / "hparams.yaml").read_text().replace("!!python/tuple", "")


def test_dropped_arguments_are_asked_for_even_with_a_default(run: Path) -> None:
    with pytest.raises(
        TypeError, match=r"constructor arguments network, optimizer of Host.*network=\.\.\., optimizer"
    ):
        Host.load_from_checkpoint(run)
    with pytest.raises(TypeError, match="constructor arguments optimizer of Host"):
        Host.load_from_checkpoint(run, network=network())  # would come back as AdamW
    loaded = Host.load_from_checkpoint(run, network=network(), optimizer=torch.optim.SGD, scale=2.0)
    assert loaded.hparams["scale"] == 2.0 and loaded.optimizer is torch.optim.SGD
    assert loaded.network[1].weight.equal(
        torch.load(run, weights_only=True)["state_dict"]["network.1.weight"]
    )


def test_datamodules_keep_plain_values_too() -> None:
    class Data(ZooDataModule):
        def __init__(self, path: Path, size: int) -> None:
            super().__init__()
            self.save_hyperparameters()

    assert dict(Data(Path("x"), 3).hparams) == {"size": 3, "not_saved": ["path"]}


def test_the_index_stays_on_the_cpu() -> None:
    batch = {"x": torch.zeros(2), "index": torch.arange(2)}
    moved = ZooDataModule().transfer_batch_to_device(batch, torch.device("meta"), 0)
    assert moved["x"].device.type == "meta" and moved["index"] is batch["index"]
    assert ZooDataModule().transfer_batch_to_device([batch["x"]], torch.device("meta"), 0)[0].is_meta


@pytest.mark.parametrize(("weights", "key"), [("ema", "state_dict"), ("raw", "current_model_state")])
def test_load_weights_takes_the_average_or_the_raw_ones(run: Path, weights: Any, key: str) -> None:
    host = Host(network())
    report = load_weights(host, run, weights)
    assert str(report) == "4 tensors matched"
    saved = torch.load(run, weights_only=True)
    assert host.network[1].weight.equal(saved[key]["network.1.weight"])
    assert not saved["state_dict"]["network.1.weight"].equal(saved["current_model_state"]["network.1.weight"])


def test_the_report_names_what_did_not_match(run: Path) -> None:
    host = Host(nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.Linear(10, 7), nn.Linear(7, 10)))
    before = host.network[2].weight.clone()
    report = load_weights(host, run)
    assert report.matched == ("network.1.weight", "network.1.bias")
    assert report.mismatched == ("network.2.weight", "network.2.bias")
    assert report.missing == ("network.3.weight", "network.3.bias")
    assert "2 mismatched (network.2.weight, network.2.bias)" in str(report)
    assert host.network[2].weight.equal(before)
    with pytest.raises(ValueError, match=r"no tensor of .* fits Linear: .*4 unexpected"):
        load_weights(nn.Linear(2, 2), run)
    with pytest.raises(ValueError, match="'ema' or 'raw', got 'average'"):
        load_weights(host, run, "average")  # type: ignore[arg-type]


def test_init_from_starts_a_fit_and_a_resume_ignores_it(run: Path, tmp_path: Path) -> None:
    saved = torch.load(run, weights_only=True)["current_model_state"]
    host = Host(
        network(), optimizer=lambda p: torch.optim.SGD(p, lr=0.0), init_from=str(run), init_weights="raw"
    )
    trainer(tmp_path / "a").fit(host, datamodule=Digits(100, seed=0))
    assert host.network[1].weight.equal(saved["network.1.weight"])  # with lr 0 the start is the end
    [event] = read_json_lines(tmp_path / "a" / "events.jsonl")
    assert event["event"] == "weights_loaded" and event["matched"] == 4 and event["weights"] == "raw"

    again = Host(network(), optimizer=lambda p: torch.optim.SGD(p, lr=0.5), init_from=str(run))
    trainer(tmp_path / "b", steps=4).fit(
        again, datamodule=Digits(100, seed=0), ckpt_path=tmp_path / "a" / "step=3.ckpt", weights_only=True
    )
    assert not (tmp_path / "b" / "events.jsonl").exists()


def test_init_from_takes_the_newest_of_a_folder(run: Path, tmp_path: Path) -> None:
    (tmp_path / "runs" / "version_0").mkdir(parents=True)
    old = tmp_path / "runs" / "version_0" / "old.ckpt"
    saved = torch.load(run, weights_only=True)
    torch.save(saved | {"state_dict": {k: v + 1 for k, v in saved["state_dict"].items()}}, old)
    os.utime(old, (0, 0))
    shutil.copy(run, tmp_path / "runs" / "new.ckpt")
    host = Host(network(), optimizer=lambda p: torch.optim.SGD(p, lr=0.0), init_from=str(tmp_path / "runs"))
    trainer(tmp_path / "a").fit(host, datamodule=Digits(100, seed=0))
    assert host.network[1].weight.equal(saved["state_dict"]["network.1.weight"])


def test_a_start_that_is_not_there_is_refused_before_training(tmp_path: Path) -> None:
    """Only then: a config whose start is gone can still be checked, tested and resumed."""
    (tmp_path / "empty").mkdir()
    for start, message in (("nowhere.ckpt", "no checkpoint at"), ("empty", "holds no checkpoint")):
        host = Host(network(), init_from=str(tmp_path / start))
        with pytest.raises(ValueError, match=f"init_from='.*{start}': .*{message}"):
            trainer(tmp_path / "a").fit(host, datamodule=Digits(100, seed=0))
        assert not host.trainer.global_step


def test_schedules_step_per_update(tmp_path: Path) -> None:
    def decay(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)

    host = Host(network(), optimizer=lambda p: torch.optim.SGD(p, lr=1.0), lr_scheduler=decay)
    run = trainer(tmp_path, steps=4)
    run.fit(host, datamodule=Digits(100, seed=0))
    assert run.optimizers[0].param_groups[0]["lr"] == 0.5**4
    plateau = Host(network(), lr_scheduler=lambda o: ReduceLROnPlateau(o, monitor="train/loss"))  # type: ignore[arg-type, return-value]
    assert plateau.configure_optimizers()["lr_scheduler"]["monitor"] == "train/loss"


def test_frozen_parameters_get_no_optimizer() -> None:
    host = Host(network(), head=nn.Linear(3, 3).requires_grad_(False))
    assert sum(len(group["params"]) for group in host.configure_optimizers().param_groups) == 4


def test_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    assert (run_seed(None), run_seed(3)) == (0, 3)
    monkeypatch.setenv("PL_GLOBAL_SEED", "11")
    assert (run_seed(None), run_seed(3)) == (11, 3)
    assert Host(network()).seed == 11


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"init_weights": "mean"}, "init_weights must be 'ema' or 'raw', got 'mean'"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Host(network(), **arguments)
