"""The report of `zoo test` on a model whose samples are known."""

import json
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor
from toys import ToyClassifier

from zoo.callbacks import SampleReport
from zoo.datamodules import Digits


class Oracle(ToyClassifier):
    """Samples are the held-out images themselves, for any number of steps but one, where they are gray."""

    def sample(self, labels: Tensor, steps: int, seed: int = 0, index: Tensor | None = None) -> Tensor:
        assert index is not None
        data = self.trainer.datamodule.test_set.columns  # type: ignore[attr-defined]
        assert data["label"][index].equal(labels)
        return (
            data["x"][index]
            if steps > 1
            else 0.1 * torch.randn(len(labels), 1, 8, 8, generator=torch.Generator().manual_seed(seed))
        )


def test_report(tmp_path: Path) -> None:
    trainer = Trainer(
        accelerator="cpu", logger=CSVLogger(tmp_path, name=None, version=""), enable_progress_bar=False,
        callbacks=[SampleReport(steps=[1, 2], replicates=2)],
    )  # fmt: skip
    [values] = trainer.test(Oracle(), datamodule=Digits(batch_size=100), verbose=False)
    assert values["test/2-step/frechet"] == pytest.approx(values["test/2-step/frechet_floor"], rel=1e-6)
    assert values["test/2-step/recognized"] > 0.97 > 0.3 > values["test/1-step/recognized"]
    report = json.loads((tmp_path / "sample_report.json").read_text())
    assert report.keys() == {"1-step", "2-step"}
    score = report["2-step"]["recognized"]
    assert score["low"] < score["value"] < score["high"] <= 1


def test_each_score_is_shown_once_with_its_interval(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    trainer = Trainer(
        accelerator="cpu", logger=CSVLogger(tmp_path, name=None, version=""), enable_progress_bar=False,
        callbacks=[SampleReport(steps=[1, 2], replicates=2)],
    )  # fmt: skip
    with caplog.at_level("INFO"):
        [values] = trainer.test(Oracle(), datamodule=Digits(batch_size=100))
    shown = caplog.text + capfd.readouterr().out
    assert "Test metric" not in shown  # Lightning's table
    lines = [line.split() for line in shown.splitlines()]
    [row] = [line[line.index("frechet") :] for line in lines if "frechet" in line]
    report = json.loads((tmp_path / "sample_report.json").read_text())
    score = report["1-step"]["frechet"]
    assert row[1:4] == [f"{score['value']:.3g}", f"[{score['low']:.3g},", f"{score['high']:.3g}]"]
    assert row[-1] == f"{values['test/1-step/frechet_floor']:.3g}"
    assert not any("frechet_floor" in word for line in lines for word in line)
    caplog.clear()
    with caplog.at_level("INFO"):
        trainer.test(Oracle(), datamodule=Digits(batch_size=100), verbose=False)
    assert "recognized" not in caplog.text


def test_bad_arguments_and_missing_data(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="replicates must be at least 2"):
        SampleReport(replicates=1)
    with pytest.raises(ValueError, match="steps must be numbers from 1 up"):
        SampleReport(steps=[0])
    data = Digits(batch_size=100)
    data.setup("test")
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, callbacks=[SampleReport()])
    with pytest.raises(ValueError, match="pass a datamodule"):
        trainer.test(ToyClassifier(), data.test_dataloader(), verbose=False)
