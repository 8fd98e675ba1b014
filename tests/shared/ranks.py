"""What the pool's workers run for tests of several rooms."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from toys import ToyClassifier

from zoo import events
from zoo.callbacks import ExactResume
from zoo.datamodules import Digits


def resume_on_rank(folder: str) -> tuple[dict[str, Any], dict[str, Any], list[Any]]:
    """A two-process run of 8 updates, the same resumed after 3, and the random states of the checkpoint."""

    def fit(checkpoint: Path | None) -> LightningModule:
        torch.manual_seed(torch.distributed.get_rank() if checkpoint is None else 99)
        model = ToyClassifier()
        torch.manual_seed(100 + torch.distributed.get_rank())
        saves = ModelCheckpoint(folder, "{step}", every_n_train_steps=3, save_top_k=-1)
        callbacks = [ExactResume(), *([saves] if checkpoint is None else [])]
        trainer = Trainer(
            accelerator="cpu", strategy="ddp", devices=2, max_steps=8, callbacks=callbacks, logger=False,
            enable_checkpointing=checkpoint is None, enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(model, datamodule=Digits(50, seed=0), ckpt_path=checkpoint, weights_only=True)
        return model

    whole = fit(None)
    path = Path(folder) / "step=3.ckpt"
    resumed = fit(path)
    states = torch.load(path, weights_only=True)["callbacks"]["ExactResume"]["ranks"]
    return whole.state_dict(), resumed.state_dict(), states


def frechet_on_rank(real: torch.Tensor, made: torch.Tensor) -> float:
    """A Frechet distance of which each of two processes takes in every second item."""
    from zoo.metrics import FrechetDistance

    rank = torch.distributed.get_rank()
    metric = FrechetDistance()
    metric.update(real[rank::2], real=True)
    metric.update(made[rank::2], real=False)
    return float(metric.compute())


class _Numbered(LightningModule):
    """Predicts the numbers of its items."""

    def predict_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> dict[str, torch.Tensor]:
        index = batch["index"]
        return {"samples": index[:, None].float(), "label": index % 3, "index": index}


def predict_on_rank(folder: str) -> None:
    """A two-process prediction of eleven items, written by SampleWriter."""
    from torch.utils.data import DataLoader

    from zoo.callbacks import SampleWriter

    items: Any = [{"index": torch.tensor(k)} for k in range(11)]
    trainer = Trainer(
        accelerator="cpu", strategy="ddp", devices=2, default_root_dir=folder, logger=False,
        enable_progress_bar=False, callbacks=[SampleWriter()],
    )  # fmt: skip
    trainer.predict(_Numbered(), DataLoader(items, batch_size=2), return_predictions=False)


class _Solves(LightningModule):
    """Predicts trajectories whose states are the numbers of their items."""

    def predict_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> dict[str, Any]:
        index = batch["index"]
        states = index[:, None, None].float().expand(-1, 3, 2)
        shared = {"times": torch.tensor([2.0, 1.0, 0.5]), "path": "VarianceExplodingPath()", "origin": ""}
        return {"states": states, "label": index % 3, "index": index, **shared}


def store_on_rank(folder: str) -> None:
    """Trajectories of eleven items by two processes, written by TrajectoryWriter."""
    from torch.utils.data import DataLoader

    from zoo.callbacks import TrajectoryWriter

    items: Any = [{"index": torch.tensor(k)} for k in range(11)]
    trainer = Trainer(
        accelerator="cpu", strategy="ddp", devices=2, default_root_dir=folder, logger=False,
        enable_progress_bar=False, callbacks=[TrajectoryWriter()],
    )  # fmt: skip
    trainer.predict(_Solves(), DataLoader(items, batch_size=2), return_predictions=False)


def schedule_on_rank(folder: str) -> tuple[list[float], dict[str, torch.Tensor]]:
    """A two-process run whose first process is asked to decay; the learning rate of every update."""
    from zoo.callbacks import WSDS
    from zoo.schedules import DecayOnDemand, constant

    class Rates(Callback):
        def __init__(self) -> None:
            self.seen: list[float] = []

        def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
            self.seen.append(trainer.optimizers[0].param_groups[0]["lr"])
            if trainer.global_step == 13 and trainer.is_global_zero:
                (Path(folder) / "decay.now").touch()

    torch.manual_seed(0)
    rates, demand = Rates(), DecayOnDemand(every=8, decay=0.2)
    trainer = Trainer(
        accelerator="cpu", strategy="ddp", devices=2, max_steps=40, logger=False, default_root_dir=folder,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[rates, WSDS(constant(40), decay_on_demand=demand)],
    )  # fmt: skip
    model = ToyClassifier()
    trainer.fit(model, datamodule=Digits(50, seed=0))
    return rates.seen, model.state_dict()


def gap_on_rank(folder: str) -> tuple[float, float]:
    """The gap that a two-process run logs after six updates, and this rank's own."""
    from lightning.pytorch.callbacks import EMAWeightAveraging

    from zoo.callbacks import EMAGap

    class Own(EMAGap):
        def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
            super().on_train_batch_end(trainer, pl_module, *args)
            if trainer.global_step == 6:
                logged = float(trainer.callback_metrics["ema_gap"])
                assert isinstance(average._average_model.module, ToyClassifier)
                with torch.no_grad():
                    models = [model.eval() for model in (average._average_model.module, pl_module)]
                    losses = [float(model.loss(self._kept[0])) for model in models]  # type: ignore[operator]
                pl_module.train()
                found.append((logged, losses[0] - losses[1]))

    torch.manual_seed(0)
    found: list[tuple[float, float]] = []
    average: Any = EMAWeightAveraging(decay=0.8)
    trainer = Trainer(
        accelerator="cpu", strategy="ddp", devices=2, max_steps=6, logger=False, default_root_dir=folder,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[average, Own(every_n_steps=3, batches=1)],
    )  # fmt: skip
    trainer.fit(ToyClassifier(), datamodule=Digits(50, seed=0))
    return found[0]


class SaysOnEachRank(Callback):
    """Records an event in every process, which one should."""

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        events.write_event(events.run_folder(trainer), "done", "it is done", step=0)


class _Writes(LightningModule):
    """Predicts a text that names its item."""

    def predict_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> dict[str, Any]:
        index = batch["index"]
        return {"tokens": index[:, None], "index": index, "text": [f"item {k} é" for k in index.tolist()]}


def write_texts_on_rank(folder: str) -> None:
    """Texts of eleven items by two processes, written by TextWriter."""
    from torch.utils.data import DataLoader

    from zoo.callbacks import TextWriter

    items: Any = [{"index": torch.tensor(k)} for k in range(11)]
    trainer = Trainer(
        accelerator="cpu", strategy="ddp", devices=2, default_root_dir=folder, logger=False,
        enable_progress_bar=False, callbacks=[TextWriter()],
    )  # fmt: skip
    trainer.predict(_Writes(), DataLoader(items, batch_size=2), return_predictions=False)


def look_for_sinks_on_rank(folder: str) -> tuple[dict[str, Any], dict[str, Any], dict[str, float] | None]:
    """Weights of two processes with a SinkLogger and without, and what this process's one reported."""
    from lightning.pytorch.loggers import CSVLogger
    from toys import AttentionToy

    from zoo.callbacks import SinkLogger

    ends = []
    logger = SinkLogger(every_n_steps=2, sequences=3, queries=None)
    for callbacks in ([logger], []):
        torch.manual_seed(0)
        model = AttentionToy()
        trainer = Trainer(
            accelerator="cpu", strategy="ddp", devices=2, max_steps=4, callbacks=callbacks,
            logger=CSVLogger(folder, "looks" if callbacks else "plain", ""), enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, limit_val_batches=1,
        )  # fmt: skip
        trainer.fit(model, datamodule=Digits(50, seed=0))
        ends.append(model.state_dict())
    return ends[0], ends[1], None if logger.report is None else logger.report.scalars
