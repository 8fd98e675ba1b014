"""Events go to one file, the logger and the terminal, once."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from toys import ToyClassifier

from zoo import events
from zoo.datamodules import Digits
from zoo.io import read_json_lines


class Talker(Callback):
    """Records an event at its step."""

    def __init__(self, **facts: Any) -> None:
        self.facts = facts

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *rest: Any) -> None:
        if trainer.global_step == 2:
            events.record(trainer, "alarm", "an alarm was raised", **self.facts)


def run(folder: Path, callback: Callback, **options: Any) -> None:
    options = {"logger": CSVLogger(folder, name=None, version=""), "default_root_dir": folder} | options
    trainer = Trainer(
        accelerator="cpu", max_steps=3, callbacks=[callback], enable_progress_bar=False,
        enable_checkpointing=False, enable_model_summary=False, log_every_n_steps=1,
        limit_val_batches=0, **options,
    )  # fmt: skip
    trainer.fit(ToyClassifier(), datamodule=Digits(100, seed=0))


def test_an_event_is_told_once_in_each_place(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="lightning.pytorch.utilities.rank_zero"):
        run(tmp_path, Talker(level=0.5, layer=3, name="x", maybe=None))
    [event] = read_json_lines(tmp_path / "events.jsonl")
    assert event.pop("time") > 1.7e9
    assert event == {
        "step": 2, "epoch": 0, "event": "alarm", "message": "an alarm was raised",
        "level": 0.5, "layer": 3, "name": "x", "maybe": None,
    }  # fmt: skip
    assert caplog.text.count("an alarm was raised") == 1
    header, *rows = (tmp_path / "metrics.csv").read_text().splitlines()
    column = header.split(",").index("event/alarm")
    assert [row.split(",")[column] for row in rows if row.split(",")[column]] == ["1.0"]


def test_without_a_logger_the_default_folder_is_used(tmp_path: Path) -> None:
    run(tmp_path, Talker(), logger=False)
    assert len(read_json_lines(tmp_path / "events.jsonl")) == 1


def test_a_fast_dev_run_leaves_nothing(tmp_path: Path) -> None:
    run(tmp_path, Talker(), fast_dev_run=3)
    assert not (tmp_path / "events.jsonl").exists()


def test_reserved_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\['step'\] have the names of fields"):
        run(tmp_path, Talker(step=torch.tensor(1)))


def test_reserved_names_are_refused_in_a_fast_dev_run_too(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\['epoch', 'time'\] have the names of fields"):
        run(tmp_path, Talker(time=1, epoch=2), fast_dev_run=3)


def test_events_without_a_trainer(tmp_path: Path) -> None:
    """In the form of those of a Trainer, so that whoever reads the file need not ask who wrote it."""
    events.write_event(tmp_path / "run", "stage_lost", "stage 2 was lost", step=7, stage=2)
    events.write_event(str(tmp_path / "run"), "completed", "training is complete", step=9, epoch=1)
    first, second = read_json_lines(tmp_path / "run" / "events.jsonl")
    assert first.pop("time") <= second.pop("time")
    assert first == {
        "step": 7, "epoch": None, "event": "stage_lost", "message": "stage 2 was lost", "stage": 2,
    }  # fmt: skip
    assert second == {"step": 9, "epoch": 1, "event": "completed", "message": "training is complete"}
    with pytest.raises(ValueError, match=r"\['time'\] have the names of fields"):
        events.write_event(tmp_path, "late", "too late", step=1, time=3)
    assert not (tmp_path / "events.jsonl").exists()


def test_events_need_no_lightning(tmp_path: Path) -> None:
    code = (
        "import sys; from zoo.events import write_event; write_event(sys.argv[1], 'x', 'y', step=0)\n"
        "print([name for name in ('lightning', 'pytorch_lightning') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]" and len(read_json_lines(tmp_path / "events.jsonl")) == 1


def test_other_ranks_are_silent(tmp_path: Path) -> None:
    class Other:
        is_global_zero = False

    events.record(Other(), "alarm", "never seen")  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []
