"""Interrupted runs: the run that was stopped and resumed is the run that was not, bitwise."""

from pathlib import Path

import pytest
import torch

from zoo.io import load_checkpoint

FIT = ("fit", "--trust", "my_model", "--config", "small.yaml")


def _signal(step: int, name: str = "SIGINT") -> str:
    return f'[{{"class_path": "my_model.Signal", "init_args": {{"step": {step}, "name": "{name}"}}}}]'


def _final(run: Path) -> dict:
    paths = [path for path in (run / "checkpoints").glob("*.ckpt") if path.name != "interrupted.ckpt"]
    return load_checkpoint(max(paths, key=lambda path: path.stat().st_mtime_ns))


def _assert_same(one: dict, other: dict) -> None:
    assert one["global_step"] == other["global_step"]
    for key, value in one["state_dict"].items():
        assert torch.equal(value, other["state_dict"][key]), key


# 15 updates in 3 epochs of 5. Steps 4 and 9 are the last of their epochs; with val_check_interval 2 a validation
# follows steps 1, 3, 6, 8, ...
@pytest.mark.parametrize("interval", [[], ["--trainer.val_check_interval", "2"]])
def test_ctrl_c_at_any_update_changes_nothing(zoo, workspace, rows, interval):
    assert zoo(*FIT, *interval).code == 0
    whole = Path("runs/small/version_0")
    for number, step in enumerate((0, 1, 4, 6), start=1):
        name = "SIGINT" if step % 2 == 0 else "SIGTERM"
        stopped = zoo(*FIT, *interval, "--trainer.callbacks+", _signal(step, name))
        run = Path(f"runs/small/version_{number}")
        assert stopped.code == (130 if name == "SIGINT" else 143)
        assert f"zoo fit --resume {run} --trust my_model" in stopped.err
        assert load_checkpoint(run / "checkpoints/interrupted.ckpt")["global_step"] == step + 1
        resumed = zoo("fit", "--resume", str(run), "--trust", "my_model", "--trainer.callbacks", "null")
        assert resumed.code == 0, resumed.err
        _assert_same(_final(whole), _final(run))
        for column in ("train/loss", "val/loss"):
            assert rows(run, column) == rows(whole, column), (step, column)
