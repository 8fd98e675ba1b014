"""Interrupted runs: the run that was stopped and resumed is the run that was not, bitwise."""

import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from zoo.io import load_checkpoint, read_json_lines

FIT = ("fit", "--trust", "my_model", "--config", "small.yaml")


def _signal(step: int, name: str = "SIGINT") -> str:
    return f'[{{"class_path": "my_model.Signal", "init_args": {{"step": {step}, "name": "{name}"}}}}]'


def _final(run: Path) -> dict:
    paths = [path for path in (run / "checkpoints").glob("*.ckpt") if path.name != "interrupted.ckpt"]
    return max(map(load_checkpoint, paths), key=lambda checkpoint: checkpoint["global_step"])


def _assert_same(one: dict, other: dict) -> None:
    assert one["global_step"] == other["global_step"]
    for key, value in one["state_dict"].items():
        assert torch.equal(value, other["state_dict"][key]), key


# 15 updates in 3 epochs of 5. Steps 4 and 9 are the last of their epochs; with val_check_interval 2 a
# validation follows steps 1, 3, 6, 8, ...
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


def test_ctrl_c_before_a_validation_keeps_what_it_decides(zoo, workspace):
    """Early stopping and the best checkpoint see the validation that follows the interrupted batch once."""
    watching = (
        '[{"class_path": "EarlyStopping", "init_args": {"monitor": "val/loss", "patience": 9}},'
        ' {"class_path": "ModelCheckpoint", "init_args": {"monitor": "val/loss", "save_top_k": -1}}]'
    )
    assert zoo(*FIT, "--trainer.callbacks", watching).code == 0
    assert zoo(*FIT, "--trainer.callbacks", watching, "--trainer.callbacks+", _signal(4)).code == 130
    run = Path("runs/small/version_1")
    resumed = zoo("fit", "--resume", str(run), "--trust", "my_model", "--trainer.callbacks", watching)
    assert resumed.code == 0, resumed.err
    one, other = _final(Path("runs/small/version_0"))["callbacks"], _final(run)["callbacks"]
    assert one.keys() == other.keys()
    for key, state in one.items():
        for name in ("wait_count", "best_score", "best_model_score"):
            if name in state:
                assert state[name] == other[key][name], (key, name)
        if "best_k_models" in state:
            assert sorted(state["best_k_models"].values()) == sorted(other[key]["best_k_models"].values())


@pytest.mark.slow
def test_a_killed_run_goes_on_from_its_newest_whole_checkpoint(zoo, start, workspace, rows):
    every = '[{"class_path": "ModelCheckpoint", "init_args": {"every_n_train_steps": 3, "save_top_k": -1}}]'
    assert zoo(*FIT, "--trainer.callbacks", every).code == 0
    whole, run = Path("runs/small/version_0"), Path("runs/small/version_1")
    process = start(*FIT, "--trainer.callbacks", every, "--trainer.callbacks+", _signal(10, "SIGKILL"))
    process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL
    assert [step for step, _ in rows(run, "train/loss")] == list(range(10))  # no row was lost
    # What a kill at a worse moment leaves behind: half a line, and half a checkpoint.
    with open(run / "metrics.csv", "a") as file:
        file.write("1,0.")
    (run / "events.jsonl").write_text('{"step": 99, "event": "after the checkpoint"}\n{"step": 3')
    newest = next((run / "checkpoints").glob("*step=9.ckpt"))
    (run / "checkpoints/broken.ckpt").write_bytes(newest.read_bytes()[:-100])
    resumed = zoo("fit", "--resume", str(run), "--trust", "my_model", "--trainer.callbacks", every)
    assert resumed.code == 0, resumed.err
    assert "passed over" in resumed.err
    assert "broken.ckpt" in resumed.err
    (run / "checkpoints/broken.ckpt").unlink()
    _assert_same(_final(whole), _final(run))
    for column in ("train/loss", "val/loss"):
        assert rows(run, column) == rows(whole, column)
    events = [(event["event"], event["step"]) for event in read_json_lines(run / "events.jsonl")]
    assert events == [("resumed", 9), ("completed", 15)]


@pytest.mark.slow
def test_ctrl_c_from_outside_and_a_folder_in_use(zoo, start, workspace, rows):
    long = ("--trainer.max_epochs", "60", "--trainer.check_val_every_n_epoch", "60")
    assert zoo(*FIT, *long).code == 0
    whole, run = Path("runs/small/version_0"), Path("runs/small/version_1")
    slow = '[{"class_path": "my_model.Slow", "init_args": {"seconds": 0.02}}]'
    process = start(*FIT, *long, "--trainer.callbacks", slow)
    _wait(lambda: (run / "metrics.csv").is_file() and len(rows(run, "train/loss")) >= 5)
    refused = zoo("fit", "--resume", str(run), "--trust", "my_model")
    assert refused.code == 2
    assert f"is in use by a run that is alive (process {process.pid})" in refused.err
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert f"go on with: zoo fit --resume {run} --trust my_model" in err
    assert "Traceback" not in err
    assert zoo("fit", "--resume", str(run), "--trust", "my_model", "--trainer.callbacks", "null").code == 0
    _assert_same(_final(whole), _final(run))
    assert rows(run, "train/loss") == rows(whole, "train/loss")


def _wait(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


def test_a_second_ctrl_c_stops_at_once(zoo, workspace):
    twice = '[{"class_path": "my_model.Signal", "init_args": {"step": 1, "times": 2}}]'
    result = zoo(*FIT, "--trainer.callbacks", twice)
    assert result.code == 130
    assert "stopped at once, without saving" in result.err
    assert not list(Path("runs").rglob("interrupted.ckpt"))


def test_a_csv_logger_of_the_users_own_goes_on_in_its_folder(zoo, workspace, rows):
    logger = '{"class_path": "CSVLogger", "init_args": {"save_dir": "logs", "name": "mine"}}'
    assert zoo(*FIT, "--trainer.logger", logger).code == 0
    assert zoo(*FIT, "--trainer.logger", logger, "--trainer.callbacks+", _signal(6)).code == 130
    whole, run = Path("logs/mine/version_0"), Path("logs/mine/version_1")
    assert zoo("fit", "--resume", str(run), "--trust", "my_model", "--trainer.callbacks", "null").code == 0
    assert rows(run, "train/loss") == rows(whole, "train/loss")
    _assert_same(_final(whole), _final(run))


def test_without_a_folder_of_its_own_a_run_goes_on_from_the_file(zoo, workspace):
    result = zoo(*FIT, "--trainer.logger", "false", "--trainer.callbacks+", _signal(1))
    assert result.code == 130
    line = result.err.splitlines()[-1]
    assert line.startswith("go on with: zoo fit --trust my_model --config small.yaml ")
    assert line.endswith(" --ckpt_path checkpoints/interrupted.ckpt")
    assert load_checkpoint("checkpoints/interrupted.ckpt")["global_step"] == 2


def test_a_checkpoint_that_has_made_all_updates_is_refused(zoo, workspace):
    """Lightning would say nothing and end; a run that is over may be resumed, which changes nothing."""
    assert zoo(*FIT, "--trainer.max_steps", "5").code == 0
    run = Path("runs/small/version_0")
    [path] = (run / "checkpoints").glob("*.ckpt")
    for limit in ("3", "5"):
        refused = zoo(*FIT, "--trainer.max_steps", limit, "--ckpt_path", str(path))
        assert refused.code == 2
        line = (
            f"error: ckpt_path: {path} has 5 updates already and trainer.max_steps is {limit}, so nothing is"
        )
        assert refused.err.splitlines()[-1].startswith(line)
    assert [folder.name for folder in run.parent.iterdir()] == ["version_0"]
    before = _final(run)
    assert zoo("fit", "--resume", str(run), "--trust", "my_model").code == 0
    _assert_same(before, _final(run))
    assert zoo("fit", "--resume", str(run), "--trust", "my_model", "--trainer.max_steps", "4").code == 2
    assert zoo(*FIT, "--trainer.max_steps", "7", "--ckpt_path", str(path)).code == 0


def test_resume_needs_a_run(zoo, workspace):
    for words, said in (
        (["--resume"], "--resume needs the folder of a run"),
        (["--resume", "nowhere"], "no config.yaml there, so it is not a run"),
    ):
        result = zoo("fit", *words)
        assert result.code == 2
        assert said in result.err
    Path("run").mkdir()
    Path("run/config.yaml").write_text("{}")
    result = zoo("fit", "--resume", "run")
    assert result.code == 2
    assert "holds no complete checkpoint to go on from" in result.err
