"""What an evaluation, a start and a teacher take: weights that somebody named, of runs that are complete."""

from pathlib import Path

import pytest
import torch

from zoo.io import load_checkpoint, read_json_lines
from zoo.runs import find_checkpoint

FIT = ("fit", "--trust", "my_model", "--config", "small.yaml")


@pytest.mark.parametrize("verb", ["test", "validate"])
def test_random_weights_are_evaluated_when_they_are_asked_for(zoo, workspace, verb):
    words = ("--trust", "my_model", "--config", "small.yaml")
    refused = zoo(verb, *words)
    assert refused.code == 2
    assert (
        f"ckpt_path: none is given, so zoo {verb} would use the weights that Net was built with"
        in refused.err
    )
    assert "--untrained" in refused.err
    assert not Path("runs").exists()
    assert zoo(verb, *words, "--untrained").code == 0


def test_the_last_checkpoint_is_that_of_the_run_whose_config_is_given(zoo, workspace):
    refused = zoo("test", "--trust", "my_model", "--config", "small.yaml", "--ckpt_path", "last")
    assert refused.code == 2 and "--config RUN/config.yaml" in refused.err
    assert zoo(*FIT).code == 0
    run = Path("runs/small/version_0")
    words = ("--trust", "my_model", "--config", str(run / "config.yaml"), "--ckpt_path", "last")
    tested = zoo("test", *words)
    assert tested.code == 0, tested.err
    assert f"test: done, in {run}/test/version_0" in tested.out
    for path in run.rglob("*.ckpt"):
        path.unlink()
    assert "holds no checkpoint" in zoo("test", *words).err


def test_a_folder_of_runs_gives_its_newest_complete_run(zoo, workspace):
    assert zoo(*FIT).code == 0
    signal = '[{"class_path": "my_model.Signal", "init_args": {"step": 6, "name": "SIGINT"}}]'
    assert zoo(*FIT, "--trainer.callbacks+", signal).code == 130
    whole, stopped = Path("runs/small/version_0"), Path("runs/small/version_1")
    found = find_checkpoint("runs/small")
    assert whole in found.parents and load_checkpoint(found)["global_step"] == 15
    with pytest.raises(FileNotFoundError, match=r"no run below .*version_1 is complete .*--resume RUN"):
        find_checkpoint(stopped)
    assert (
        zoo("fit", "--resume", str(stopped), "--trust", "my_model", "--trainer.callbacks", "null").code == 0
    )
    assert stopped in find_checkpoint("runs/small").parents
    events = [event["event"] for event in read_json_lines(stopped / "events.jsonl")]
    assert events == ["resumed", "completed"]


def test_a_resumed_run_keeps_the_files_of_the_whole_one(zoo, workspace):
    """Neither the checkpoint that it went on from nor that of the interruption stays."""
    every = '[{"class_path": "ModelCheckpoint", "init_args": {"every_n_train_steps": 3}}]'
    assert zoo(*FIT, "--trainer.callbacks", every).code == 0
    signal = '[{"class_path": "my_model.Signal", "init_args": {"step": 6, "name": "SIGINT"}}]'
    assert zoo(*FIT, "--trainer.callbacks", every, "--trainer.callbacks+", signal).code == 130
    run = Path("runs/small/version_1")
    (run / "checkpoints/interrupted.ckpt").unlink()  # as if it had been killed: on from the one of update 6
    (run / "checkpoints/.tmp-half-x.ckpt").write_bytes(b"PK")
    resumed = zoo("fit", "--resume", str(run), "--trust", "my_model", "--trainer.callbacks", every)
    assert resumed.code == 0, resumed.err
    names = [
        sorted(path.name for path in Path(f"runs/small/version_{n}/checkpoints").iterdir()) for n in (0, 1)
    ]
    assert names[0] == names[1] == ["epoch=2-step=15.ckpt"]


def test_checkpoints_of_a_fit_are_checked_when_they_are_resumed(zoo, workspace):
    assert zoo(*FIT).code == 0
    path = next(Path("runs/small/version_0/checkpoints").iterdir())
    data = bytearray(path.read_bytes())
    place = data.find(load_checkpoint(path)["state_dict"]["net.1.weight"].numpy().tobytes())
    data[place] ^= 1
    path.write_bytes(data)
    assert torch.load(path, weights_only=True)  # PyTorch sees nothing
    refused = zoo(*FIT, "--ckpt_path", str(path), "--trainer.max_epochs", "4")
    assert refused.code == 2
    assert "is damaged" in refused.err and "differs from its checksum" in refused.err
