"""What the bar shows, drawn on a terminal that is a string."""

import io
import re
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
    with pytest.raises(ValueError, match="line_seconds must be positive, got -1"):
        UpdateBar(line_seconds=-1)


def test_plain_lines_where_there_is_no_terminal(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One at each tenth of the run, without control characters."""
    text = io.StringIO()
    monkeypatch.setattr(rich.progress, "get_console", lambda: Console(file=text, width=40))
    fit(tmp_path, max_steps=20)
    lines = text.getvalue().splitlines()
    assert "\r" not in text.getvalue() and "\x1b" not in text.getvalue()
    assert [line.split()[1] for line in lines] == [f"{step}/20" for step in range(2, 21, 2)]
    number = r"[\d.e+]+"
    for line in lines[:-1]:
        assert re.fullmatch(rf"updates \d+/20  train/loss {number}  {number}/s  \d+ s left", line), line
    assert lines[-1].endswith("/s")
