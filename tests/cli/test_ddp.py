"""Two processes, started by Lightning from the command line that the user typed."""

from pathlib import Path

import pytest
import torch

from zoo.io import load_checkpoint

DDP = ("--trainer.strategy", "ddp", "--trainer.devices", "2", "--trainer.accelerator", "cpu")


@pytest.mark.slow
def test_two_processes_keep_trust_and_resume_after_sigterm_bitwise(start, workspace, rows):
    """The relaunched process trusts as the first does; when one is told to stop, both save one update."""
    Path("whole.yaml").write_text(Path("small.yaml").read_text())
    # Rank 0 alone gets the signal, as from `kill`: the other process must learn of it.
    hit = '[{"class_path": "my_model.Signal", "init_args": {"step": 3, "name": "SIGTERM"}}]'
    whole = start("fit", "--trust", "my_model", "--config", "whole.yaml", *DDP)
    stopped = start("fit", "--config", "small.yaml", *DDP, "--trainer.callbacks", hit, "--trust=my_model")
    out, err = whole.communicate(timeout=120)
    assert whole.returncode == 0, err
    assert out.count("evaluate it:") == 1  # rank 0 alone speaks
    out, err = stopped.communicate(timeout=120)
    assert stopped.returncode == 143, err
    run = Path("runs/small/version_0")
    assert f"go on with: zoo fit --resume {run} --trust my_model" in err
    assert load_checkpoint(run / "checkpoints/interrupted.ckpt")["global_step"] == 4
    resumed = start("fit", "--resume", str(run), "--trust", "my_model", "--trainer.callbacks", "null")
    out, err = resumed.communicate(timeout=120)
    assert resumed.returncode == 0, err
    first, second = (
        load_checkpoint(next(Path(f"runs/{name}/version_0/checkpoints").glob("epoch=2*.ckpt")))
        for name in ("whole", "small")
    )
    for key, value in first["state_dict"].items():
        assert torch.equal(value, second["state_dict"][key]), key
    assert rows(run, "train/loss") == rows(Path("runs/whole/version_0"), "train/loss")
