"""EMAGap: the two losses it compares, when it looks, and what it refuses."""

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from callback_tester import assert_same_run
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging
from lightning.pytorch.loggers import CSVLogger
from pool import Pool
from ranks import gap_on_rank
from torch.utils.data import DataLoader, TensorDataset
from toys import ManualToy, ToyClassifier

from zoo.callbacks import EMAGap
from zoo.datamodules import Digits
from zoo.schedules import stationary_hill


class Watch(Callback):
    """What a callback sees in the trainer's metrics, and both losses as one would write them down."""

    def __init__(self, batches: int) -> None:
        self.batches = batches
        self.seen: dict[int, float] = {}
        self.expected: dict[int, float] = {}
        self.next: dict[int, float | None] = {}

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        value = trainer.callback_metrics.get("ema_gap")
        self.next[trainer.global_step] = None if value is None else float(value)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if "ema_gap" not in trainer.callback_metrics:
            return
        self.seen[trainer.global_step] = float(trainer.callback_metrics["ema_gap"])
        [ema] = [each for each in trainer.callbacks if isinstance(each, EMAWeightAveraging)]  # type: ignore[attr-defined]
        assert ema._average_model is not None
        losses = []
        with torch.no_grad():
            for weights in (ema._average_model.module.state_dict(), pl_module.state_dict()):
                model = ToyClassifier().eval()
                model.load_state_dict(weights)
                batches = list(trainer.val_dataloaders)[: self.batches]  # type: ignore[arg-type]
                losses.append(sum(float(model.loss(batch)) for batch in batches) / len(batches))
        self.expected[trainer.global_step] = losses[0] - losses[1]


def fit(
    folder: Path,
    callbacks: list[Callback],
    module: type[LightningModule] = ToyClassifier,
    average: Callback | None = None,
    max_steps: int = 40,
    **options: Any,
) -> LightningModule:
    torch.manual_seed(0)
    model = module()
    trainer = Trainer(
        accelerator="cpu", max_steps=max_steps, logger=CSVLogger(folder, name=None, version=""),
        callbacks=[average or EMAWeightAveraging(decay=0.8), *callbacks], enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, **options,
    )  # fmt: skip
    trainer.fit(model, datamodule=Digits(batch_size=100, seed=0))
    return model


def rows(folder: Path) -> dict[int, tuple[float, float, float]]:
    with open(folder / "metrics.csv") as file:
        return {
            int(row["step"]): (
                float(row["ema_gap"]),
                float(row["ema_gap/loss"]),
                float(row["ema_gap/seconds"]),
            )
            for row in csv.DictReader(file)
            if row["ema_gap"]
        }


def test_the_gap_is_what_it_says(tmp_path: Path) -> None:
    """Over three epochs with validations, which swap the weights; the logger writes rarely by itself."""
    watch = Watch(batches=2)
    fit(tmp_path, [EMAGap(every_n_steps=5, batches=2), watch], log_every_n_steps=7)
    logged = rows(tmp_path)
    assert list(logged) == [5, 10, 15, 20, 25, 30, 35, 40]
    for step, (gap, current, seconds) in logged.items():
        assert gap == pytest.approx(watch.expected[step], abs=1e-5)
        assert watch.seen[step] == pytest.approx(gap, abs=1e-6)
        assert current > 0 and 0 < seconds < 5
    # Who looks in between, or after a validation, finds the last value too.
    for step, value in watch.next.items():
        assert value == (None if step < 5 else pytest.approx(logged[step // 5 * 5][0], abs=1e-6)), step


class Hill(LightningModule):
    """SGD on 0.5 |x|^2 with unit noise in each of 800 coordinates; validation sees no noise."""

    def __init__(self) -> None:
        super().__init__()
        self.x = torch.nn.Parameter(torch.full((800,), 3.0))

    def loss(self, batch: Any) -> torch.Tensor:
        return 0.5 * (self.x - batch["noise"][0]).square().sum()

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self.loss(batch)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Validation exists; the batch is what counts."""

    def train_dataloader(self) -> Any:
        noise = torch.randn(100, 800, generator=torch.Generator().manual_seed(0))
        return DataLoader([{"noise": row} for row in noise])  # type: ignore[arg-type]

    def val_dataloader(self) -> Any:
        return DataLoader([{"noise": torch.zeros(800)}])  # type: ignore[arg-type]

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.5)


def test_the_gap_is_the_height_of_a_hill_that_is_known(tmp_path: Path) -> None:
    trainer = Trainer(
        accelerator="cpu", max_steps=100, callbacks=[EMAWeightAveraging(decay=0.9), EMAGap(50, 1)],
        logger=CSVLogger(tmp_path, name=None, version=""), enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Hill())
    hill = stationary_hill(0.5)
    # x is an AR(1) process of correlation 0.5 from step to step, of which an average with decay b keeps
    # (1 - b) / (1 + b) * (1 + 0.5 b) / (1 - 0.5 b) of the variance.
    kept = 0.1 / 1.9 * 1.45 / 0.55
    gap, current, _ = rows(tmp_path)[100]
    # The standard error of a mean of 800 squares is 5 %.
    assert current / 800 == pytest.approx(hill, rel=0.15)
    assert gap / 800 == pytest.approx(-(1 - kept) * hill, rel=0.15)


def test_looks_under_accumulation_and_with_two_optimizers(tmp_path: Path) -> None:
    fit(tmp_path / "a", [EMAGap(every_n_steps=2, batches=1)], max_steps=6, accumulate_grad_batches=3)
    assert list(rows(tmp_path / "a")) == [2, 4, 6]
    # Two optimizers count two updates a batch, which pass over the odd multiples of 5.
    fit(tmp_path / "b", [EMAGap(every_n_steps=5, batches=1)], ManualToy, max_steps=20)
    assert list(rows(tmp_path / "b")) == [6, 10, 16, 20]


def test_no_gap_before_the_average_has_begun(tmp_path: Path) -> None:
    late = EMAWeightAveraging(decay=0.8, update_starting_at_step=6)
    fit(tmp_path, [EMAGap(every_n_steps=3, batches=1)], average=late, max_steps=12)
    assert list(rows(tmp_path)) == [9, 12]


class Stock(ToyClassifier):
    """With dropout, and a loader that draws its iterator's seed from the global generator."""

    def val_dataloader(self) -> Any:
        x, label = torch.ones(30, 64), torch.arange(30) % 10

        def collate(items: Any) -> dict[str, torch.Tensor]:
            left, right = zip(*items, strict=True)
            return {"x": torch.stack(left), "label": torch.stack(right)}

        return DataLoader(TensorDataset(x, label), batch_size=10, shuffle=True, collate_fn=collate)

    def train_dataloader(self) -> Any:
        return self.val_dataloader()


@pytest.mark.parametrize("every", [1, 4])
def test_training_goes_on_as_if_nobody_looked(every: int, tmp_path: Path) -> None:
    def stock(callbacks: list[Callback]) -> LightningModule:
        torch.manual_seed(0)
        model = Stock(dropout=0.5)
        trainer = Trainer(
            accelerator="cpu", max_steps=12, callbacks=[EMAWeightAveraging(), *callbacks], logger=False,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(model)
        return model

    assert_same_run(stock([]), stock([EMAGap(every, batches=2)]))


def test_two_processes_log_their_mean(pool: Pool, tmp_path: Path) -> None:
    (logged, own), (other_logged, other_own) = pool.run(gap_on_rank, str(tmp_path))
    assert logged == other_logged == pytest.approx((own + other_own) / 2, abs=1e-6)
    assert abs(own - other_own) > 1e-4  # each has data of its own


def test_what_it_refuses(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"add to.*\n- class_path: lightning.*EMAWeightAveraging\n  init_args"
    ):
        fit(tmp_path, [EMAGap()], average=Callback())
    with pytest.raises(ValueError, match=r"EMAGap\(loss='cost'\) needs a method of ToyClassifier"):
        fit(tmp_path, [EMAGap(loss="cost")])
    with pytest.raises(ValueError, match="leave limit_val_batches above 0"):
        fit(tmp_path, [EMAGap()], limit_val_batches=0)
    with pytest.raises(ValueError, match="every_n_steps must be at least 1, got 0"):
        EMAGap(every_n_steps=0)
    with pytest.raises(ValueError, match="batches must be at least 1, got 0"):
        EMAGap(batches=0)
