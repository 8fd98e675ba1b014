"""ExactResume beyond the tester: states, foreign loaders, other numbers of processes, two ranks."""

import random
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from pool import Pool
from ranks import resume_on_rank
from resume_matrix import Cell, cells, outcome, outcome_on_rank
from torch.utils.data import DataLoader
from toys import ToyClassifier

from zoo.callbacks import ExactResume
from zoo.callbacks.exact_resume import get_random_state, set_random_state
from zoo.datamodules import Digits


def draws() -> list[float]:
    python = [random.random(), random.gauss(0, 1)]
    return [*python, np.random.rand(), np.random.randn(), torch.rand(1).item(), torch.randn(1).item()]


def test_states_round_trip(tmp_path: Path) -> None:
    random.gauss(0, 1)  # leaves a cached second value, as randn of NumPy does
    np.random.randn()
    path = tmp_path / "state.pt"
    torch.save(get_random_state(), path)
    first = draws()
    set_random_state(torch.load(path, weights_only=True))
    assert draws() == first
    assert path.stat().st_size < 32_000


class Items(torch.utils.data.Dataset):
    """Digits as plain items, with noise from the global generator: a user's own augmentation."""

    def __init__(self) -> None:
        data = Digits()
        data.setup("fit")
        self.columns = data.train_set.columns

    def __len__(self) -> int:
        return 500

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {
            "x": self.columns["x"][index] + 0.1 * torch.randn(1, 8, 8),
            "label": self.columns["label"][index],
        }


def fit_stock(folder: Path, checkpoint: Path | None = None) -> LightningModule:
    """15 updates (three epochs) on a stock shuffled DataLoader, with validation that draws at random."""
    torch.manual_seed(0)
    model = ToyClassifier()
    model.validation_step = lambda batch, batch_idx: torch.rand(3)  # type: ignore[method-assign, assignment]
    trainer = Trainer(
        accelerator="cpu", max_steps=15, logger=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[ExactResume(), ModelCheckpoint(folder, "{step}", every_n_train_steps=1, save_top_k=-1)],
    )  # fmt: skip
    items = Items()
    train = DataLoader(items, 100, shuffle=True)  # type: ignore[var-annotated]
    trainer.fit(model, train, DataLoader(items, 500), ckpt_path=checkpoint, weights_only=True)
    return model


def test_stock_loader_resumes_exactly_at_an_epochs_end(tmp_path: Path) -> None:
    whole = fit_stock(tmp_path / "whole")
    for step in (5, 10):
        resumed = fit_stock(tmp_path / str(step), tmp_path / "whole" / f"step={step}.ckpt")
        for name, value in whole.state_dict().items():
            assert value.equal(resumed.state_dict()[name]), name


def test_our_loader_goes_on_after_an_epoch_of_a_run_counted_in_epochs(tmp_path: Path) -> None:
    """Lightning's default checkpoint, at the end of an epoch; each epoch has an order of its own."""

    def fit(checkpoint: Path | None) -> LightningModule:
        torch.manual_seed(0)
        model = ToyClassifier()
        saves = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
        trainer = Trainer(
            accelerator="cpu", max_epochs=4, callbacks=[ExactResume(), saves], logger=False,
            enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(model, datamodule=Digits(200, seed=0), ckpt_path=checkpoint, weights_only=True)
        return model

    whole = fit(None)
    for epoch in (0, 2):
        resumed = fit(tmp_path / f"epoch={epoch}.ckpt")
        for name, value in whole.state_dict().items():
            assert value.equal(resumed.state_dict()[name]), name


def test_stock_loader_in_mid_epoch_is_said_once(tmp_path: Path) -> None:
    fit_stock(tmp_path / "whole")
    with pytest.warns(UserWarning, match="DataLoader.* has no state_dict") as seen:
        fit_stock(tmp_path / "resumed", tmp_path / "whole" / "step=7.ckpt")
    assert sum("ExactResume" in str(warning.message) for warning in seen) == 1


def test_two_ranks_resume_bitwise_with_their_own_dropout(pool: Pool, tmp_path: Path) -> None:
    (whole, resumed, states), (whole_1, resumed_1, _) = pool.run(resume_on_rank, str(tmp_path))
    for name, value in whole.items():
        assert value.equal(resumed[name]) and value.equal(whole_1[name]) and value.equal(resumed_1[name])
    assert len(states) == 2 and not states[0]["torch"].equal(states[1]["torch"])


SEEDED = random.Random(12).sample(list(cells()), 12)


@pytest.mark.parametrize("cell", SEEDED, ids=str)
def test_a_crashed_run_resumes_as_the_whole_run_or_warns(cell: Cell, pool: Pool, tmp_path: Path) -> None:
    """Weights, rates, data, counters, metrics.csv and names of checkpoints; the evidence has all cells."""
    if cell.processes == 1:
        differences, warned = outcome(cell, tmp_path)
    else:
        differences, warned = pool.run(outcome_on_rank, cell, str(tmp_path))[0]
    assert warned == cell.warns
    assert cell.warns or differences == []


def fit_longer(
    folder: Path, steps: int, checkpoint: Path | None = None, **options: object
) -> LightningModule:
    """A run on digits of 14 updates an epoch, saved at its end."""
    torch.manual_seed(0)
    model = ToyClassifier()
    trainer = Trainer(
        accelerator="cpu", max_steps=steps, callbacks=[ExactResume()], logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        **options,  # type: ignore[arg-type]
    )  # fmt: skip
    trainer.fit(model, datamodule=Digits(100, seed=0), ckpt_path=checkpoint, weights_only=True)
    trainer.save_checkpoint(folder / f"{steps}.ckpt", weights_only=False)
    return model


@pytest.mark.parametrize("steps", [9, 14, 20])
@pytest.mark.parametrize("options", [{}, {"val_check_interval": 3, "check_val_every_n_epoch": None}], ids=str)
def test_a_run_that_max_steps_ended_is_continued_inside_its_epoch(
    steps: int, options: dict, tmp_path: Path
) -> None:
    whole = fit_longer(tmp_path, 30, **options)
    expected = torch.load(tmp_path / "30.ckpt", weights_only=True)
    fit_longer(tmp_path, steps, **options)
    resumed = fit_longer(tmp_path, 30, tmp_path / f"{steps}.ckpt", **options)
    for name, value in whole.state_dict().items():
        assert value.equal(resumed.state_dict()[name]), name
    loops = torch.load(tmp_path / "30.ckpt", weights_only=True)["loops"]
    assert loops["fit_loop"] == expected["loops"]["fit_loop"]


def test_a_monitored_average_over_the_epoch_leaves_out_its_end_with_a_warning(tmp_path: Path) -> None:
    """Lightning saves no averages, and a callback that monitors one would end the run with an error."""

    class Averages(ToyClassifier):
        def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
            loss = super().training_step(batch, batch_idx)
            self.log("train/average", loss, on_epoch=True, on_step=False)
            return loss

    def fit(checkpoint: Path | None) -> Trainer:
        saves = [
            ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=7, save_top_k=-1),
            ModelCheckpoint(tmp_path, "best", monitor="train/average", save_on_train_epoch_end=True),
        ]
        trainer = Trainer(
            accelerator="cpu", max_epochs=3, callbacks=[ExactResume(), *saves], logger=False,
            enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0,
        )  # fmt: skip
        trainer.fit(Averages(), datamodule=Digits(100, seed=0), ckpt_path=checkpoint, weights_only=True)
        return trainer

    fit(None)
    with pytest.warns(UserWarning, match="end of the interrupted epoch is left out.* monitor train/average"):
        assert fit(tmp_path / "step=28.ckpt").current_epoch == 3


def test_a_checkpoint_without_random_states_is_said(tmp_path: Path) -> None:
    options = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    trainer = Trainer(accelerator="cpu", max_steps=3, **options)  # type: ignore[arg-type]
    trainer.fit(ToyClassifier(), datamodule=Digits(100, seed=0))
    trainer.save_checkpoint(tmp_path / "plain.ckpt")
    with pytest.warns(UserWarning, match="saved by a run without ExactResume"):
        fit_longer(tmp_path, 5, tmp_path / "plain.ckpt")


def test_another_number_of_processes_is_refused_or_asked_for(pool: Pool, tmp_path: Path) -> None:
    pool.run(resume_on_rank, str(tmp_path))

    def fit(strict: bool) -> Trainer:
        trainer = Trainer(
            accelerator="cpu", max_steps=30, callbacks=[ExactResume(strict=strict)], logger=False,
            enable_progress_bar=False, enable_checkpointing=False,
        )  # fmt: skip
        path = tmp_path / "step=3.ckpt"
        trainer.fit(ToyClassifier(), datamodule=Digits(50, seed=0), ckpt_path=path, weights_only=True)
        return trainer

    with pytest.raises(ValueError, match=r"random states of 2 processes, this run has 1.*strict: false"):
        fit(strict=True)
    with pytest.warns(UserWarning, match="saved by 2 processes and this run has 1, so it goes on with a new"):
        trainer = fit(strict=False)
    assert trainer.global_step == 30
    assert trainer.fit_loop.epoch_loop.batch_progress.current.completed == 27  # of the new epoch


def test_nothing_is_said_of_an_exact_resume(tmp_path: Path) -> None:
    fit_longer(tmp_path, 9)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="ExactResume")
        fit_longer(tmp_path, 20, tmp_path / "9.ckpt")
