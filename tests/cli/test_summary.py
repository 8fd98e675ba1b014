"""The model summary tells what was counted, and nothing else."""

import pytest
import torch
from lightning.pytorch import Trainer
from toys import ToyClassifier

from zoo._cli.summary import CountedSummary
from zoo.datamodules import Digits

FIT = ("fit", "--trust", "my_model", "--config", "small.yaml", "--trainer.enable_model_summary", "true")


def test_a_fit_prints_no_count_of_zero(zoo, workspace, caplog):
    with caplog.at_level("INFO"):
        result = zoo(*FIT)
    assert result.code == 0, result.err
    said = result.out + caplog.text
    assert "Trainable params" in said and "flops" not in said.lower()


class Model(ToyClassifier):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network(x)


@pytest.mark.parametrize("example", [None, torch.zeros(1, 1, 8, 8)])
def test_flops_are_shown_where_they_were_counted(example, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    model = Model()
    model.example_input_array = example
    trainer = Trainer(accelerator="cpu", fast_dev_run=1, logger=False, callbacks=[CountedSummary()])
    trainer.fit(model, datamodule=Digits(batch_size=200, seed=0))
    said = capsys.readouterr().out
    count = sum(p.numel() for p in model.parameters())
    assert f"Trainable params: {count:,}" in said and "Non-trainable params: 0" in said
    assert ("FLOPs" in said) == (example is not None)
