"""ExactResume beyond the tester: states, foreign loaders, other numbers of processes, two ranks."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from pool import Pool
from ranks import resume_on_rank
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


def test_another_number_of_processes_is_refused(pool: Pool, tmp_path: Path) -> None:
    pool.run(resume_on_rank, str(tmp_path))
    trainer = Trainer(
        accelerator="cpu", max_steps=9, callbacks=[ExactResume()], logger=False, enable_progress_bar=False
    )
    with pytest.raises(ValueError, match="random states of 2 processes, this run has 1"):
        trainer.fit(ToyClassifier(), datamodule=Digits(50, seed=0), ckpt_path=tmp_path / "step=3.ckpt")
