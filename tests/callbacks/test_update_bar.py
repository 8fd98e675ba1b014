"""What the bar shows, drawn on a terminal that is a string."""

import io
from pathlib import Path

import pytest
import rich.progress
import torch
from lightning.pytorch import Trainer
from rich.console import Console
from toys import ToyClassifier

from zoo.callbacks import UpdateBar
from zoo.datamodules import Digits


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What rich would draw on a terminal of 100 columns."""
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=100)
    monkeypatch.setattr(rich.progress, "get_console", lambda: console)
    return text


class Shouting(ToyClassifier):
    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        loss = self.loss(batch)
        self.log("train/loss", loss, prog_bar=True)
        if self.trainer.global_step == 11 and self.trainer.max_steps == 12:
            raise RuntimeError("stop here")
        return loss


def fit(folder: Path, **options: object) -> None:
    torch.manual_seed(0)
    settings = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    trainer = Trainer(accelerator="cpu", callbacks=[UpdateBar(1e-6)], **settings, **options)  # type: ignore[arg-type]
    trainer.fit(Shouting(), datamodule=Digits(batch_size=200, seed=0))


def test_one_bar_for_all_epochs(tmp_path: Path, screen: io.StringIO) -> None:
    fit(tmp_path, max_steps=20)
    text = screen.getvalue()
    for step in (1, 7, 8, 20):
        assert f"{step}/20" in text
    assert "train/loss" in text and "validating" in text


def test_epochs_are_counted_in_updates(tmp_path: Path, screen: io.StringIO) -> None:
    fit(tmp_path, max_epochs=2, accumulate_grad_batches=2)
    assert "8/8" in screen.getvalue()  # seven batches make four updates, the last of one batch


def test_an_error_gives_the_terminal_back(tmp_path: Path, screen: io.StringIO) -> None:
    with pytest.raises(RuntimeError, match="stop here"):
        fit(tmp_path, max_steps=12)
    assert screen.getvalue().rstrip().endswith("\x1b[?25h")  # the cursor is shown again


def test_bad_argument() -> None:
    with pytest.raises(ValueError, match="refresh_seconds must be positive, got 0"):
        UpdateBar(0)
