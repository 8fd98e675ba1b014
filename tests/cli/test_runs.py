"""The folder of a run: names, locks, what is cut off before a resume, and what is said at the end."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from zoo._cli.report import command
from zoo.cli import main
from zoo.run_files import files_state, truncate
from zoo.run_logger import RunLogger
from zoo.runs import RunError, RunLock, is_launcher, newest_checkpoint, saves

FIT = ("fit", "--trust", "my_model", "--config", "small.yaml")


def _log(logger: RunLogger, rows: list[dict[str, float]]) -> None:
    for row in rows:
        row = dict(row)
        logger.log_metrics(row, step=int(row.pop("step")))


def test_a_logger_goes_on_with_the_rows_that_are_there(tmp_path):
    _log(RunLogger(str(tmp_path), "", "run"), [{"step": 0, "a": 1.0}, {"step": 1, "a": 2.0}])
    _log(RunLogger(str(tmp_path), "", "run"), [{"step": 2, "a": 3.0}, {"step": 3, "b": 4.0}])
    assert (tmp_path / "run/metrics.csv").read_text().split() == [
        "a,b,step",
        "1.0,,0",
        "2.0,,1",
        "3.0,,2",
        ",4.0,3",
    ]


def test_two_runs_that_start_together_get_two_folders(tmp_path):
    loggers = [RunLogger(str(tmp_path), "name") for _ in range(3)]
    assert [logger.version for logger in loggers] == [0, 1, 2]
    assert [Path(logger.log_dir).is_dir() for logger in loggers] == [True] * 3


STEPS = [{"step": n, "loss": n / 10} for n in range(6)]
EVENTS = [{"step": n, "event": "x"} for n in (0, 3, 3, 5)]


def _files(run: Path) -> Path:
    _log(RunLogger(str(run.parent), "", run.name), STEPS)
    (run / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in EVENTS))
    return run


def _steps(run: Path) -> tuple[list[int], list[int]]:
    rows = (run / "metrics.csv").read_text().split()[1:]
    events = (run / "events.jsonl").read_text().splitlines()
    return [int(row.split(",")[1]) for row in rows], [json.loads(line)["step"] for line in events]


def test_truncate_by_what_the_checkpoint_noted(tmp_path):
    """Saved when update 3 ended, with its row not yet written; an event that followed the save stays, too."""
    run = _files(tmp_path / "run")
    truncate(run, {"global_step": 4, "run_files": {"row": 3, "rows": 3, "events": 2}})
    assert _steps(run) == ([0, 1, 2, 3], [0, 3, 3])


def test_truncate_keeps_what_an_event_of_the_checkpoints_own_update_logged(tmp_path):
    """`budget_reached` is recorded once its checkpoint is saved, under the number of updates done."""
    run = tmp_path / "run"
    logged = [{"step": 3, "loss": 1}, {"step": 4, "event/budget_reached": 1}, {"step": 4, "loss": 1}]
    _log(RunLogger(str(tmp_path), "", "run"), logged)
    truncate(run, {"global_step": 4, "run_files": {"row": 3, "rows": 0, "events": 0}})
    assert (run / "metrics.csv").read_text().split() == ["event/budget_reached,loss,step", ",1,3", "1,,4"]


def test_rows_that_a_resumed_run_repeats_are_written_once(tmp_path):
    _log(RunLogger(str(tmp_path), "", "run"), [{"step": 3, "loss": 1}, {"step": 3, "val/loss": 2}])
    again = [{"step": 3, "val/loss": 2}, {"step": 4, "loss": 3}, {"step": 3, "val/loss": 5}]
    _log(RunLogger(str(tmp_path), "", "run"), again)
    rows = (tmp_path / "run/metrics.csv").read_text().split()
    assert rows == ["loss,step,val/loss", "1,3,", ",3,2", "3,4,", ",3,5"]


def test_truncate_by_the_step_of_a_foreign_checkpoint(tmp_path):
    run = _files(tmp_path / "run")
    truncate(run, {"global_step": 3})
    assert _steps(run) == ([0, 1, 2], [0, 3, 3])


def test_truncate_keeps_rows_that_were_there_whatever_their_step(tmp_path):
    """An event's row stands at the update's number, one past the update's own row."""
    run = tmp_path / "run"
    _log(
        RunLogger(str(tmp_path), "", "run"),
        [{"step": 0, "loss": 1}, {"step": 1, "event": 1}, {"step": 1, "loss": 1}],
    )
    truncate(run, {"global_step": 1, "run_files": {"row": 0, "rows": 2, "events": 0}})
    assert (run / "metrics.csv").read_text().split() == ["event,loss,step", ",1,0", "1,,1"]


@pytest.mark.parametrize("cut", range(1, 8))
def test_truncate_after_a_kill_in_the_middle_of_a_line(tmp_path, cut):
    run = _files(tmp_path / "run")
    for name in ("metrics.csv", "events.jsonl"):
        content = (run / name).read_bytes()
        (run / name).write_bytes(content[:-cut])
    truncate(run, {"global_step": 6, "run_files": {"row": 5, "rows": 6, "events": 4}})
    kept = [0, 1, 2, 3, 4] + [5] * (cut == 1)  # csv ends lines with two characters: with one the row is whole
    assert _steps(run) == (kept, [0, 3, 3])
    _log(RunLogger(str(tmp_path), "", "run"), [{"step": 6, "loss": 1.0}])  # and a new row is a row of its own
    assert _steps(run)[0] == [*kept, 6]
    assert (run / "metrics.csv").read_bytes().count(b"\r\n") == len(kept) + 2


def test_truncate_leaves_whole_files_alone_and_needs_none(tmp_path):
    run = _files(tmp_path / "run")
    before = [(run / name).stat().st_mtime_ns for name in ("metrics.csv", "events.jsonl")]
    truncate(run, {"global_step": 6, "run_files": {"row": 5, **_counts(run)}})
    assert [(run / name).stat().st_mtime_ns for name in ("metrics.csv", "events.jsonl")] == before
    truncate(tmp_path, {"global_step": 6})


def _counts(run: Path) -> dict[str, int]:
    state = files_state(run, 5, session=2, order=3)
    assert state == {"row": 5, "rows": 6, "events": 4, "session": 2, "order": 3}
    return {"rows": state["rows"], "events": state["events"]}


def _save(path: Path, step: int, session: int | None = None, **more) -> None:
    state = {} if session is None else {"run_files": {"session": session}}
    torch.save({"state_dict": {"w": torch.zeros(1000)}, "global_step": step, **state, **more}, path)


def test_newest_checkpoint_is_the_whole_one_of_most_updates_whatever_the_clock_said(tmp_path):
    for number, name in enumerate(("a", "b", "c")):
        _save(tmp_path / f"{name}.ckpt", 1 + number)
        os.utime(tmp_path / f"{name}.ckpt", ns=(9 - number, 9 - number))
    _save(tmp_path / ".tmp-d-x1.ckpt", 4)  # a killed process did not finish it
    _save(tmp_path / "merged.ckpt", 4, merged={})  # a mean is not a state to go on from
    assert newest_checkpoint(saves(tmp_path)) == tmp_path / "c.ckpt"
    content = bytearray((tmp_path / "c.ckpt").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "c.ckpt").write_bytes(content)
    with pytest.warns(UserWarning, match="passed over"):
        assert newest_checkpoint(saves(tmp_path)) == tmp_path / "b.ckpt"
    assert newest_checkpoint(saves(tmp_path / "empty")) is None


def test_a_run_that_went_back_goes_on_from_its_last_session(tmp_path):
    _save(tmp_path / "long.ckpt", 90, session=0)
    _save(tmp_path / "back.ckpt", 30, session=1)
    assert newest_checkpoint(saves(tmp_path)) == tmp_path / "back.ckpt"


def test_a_lock_is_held_once_and_dies_with_its_process(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from zoo.runs import RunLock; "
        "lock = RunLock(Path(sys.argv[1])); print('held', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    with pytest.raises(RunError, match=f"process {process.pid}"):
        RunLock(tmp_path)
    process.kill()
    process.wait()
    process.stdout.close()
    lock = RunLock(tmp_path)
    child = os.fork()
    if child == 0:  # a forked loader worker does not keep the lock
        os._exit(0 if lock._handle == -1 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    lock.release()
    RunLock(tmp_path).release()


@pytest.mark.parametrize(
    ("environment", "first"),
    [
        ({}, True),
        ({"LOCAL_RANK": "1"}, False),
        ({"NODE_RANK": "1"}, False),
        ({"RANK": "0", "LOCAL_RANK": "0"}, True),
        ({"RANK": "2", "LOCAL_RANK": "0"}, False),
        ({"SLURM_PROCID": "1"}, False),
    ],
)
def test_the_process_that_owns_a_run(monkeypatch, environment, first):
    for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert is_launcher() == first


def test_a_run_says_where_things_are_and_its_last_command_works(zoo, workspace, rows):
    result = zoo(*FIT, "--trainer.callbacks+", '{"class_path": "LossCurve"}')
    run = Path("runs/small/version_0")
    lines = result.out.splitlines()
    assert lines[0] == f"fit: done, in {run}"
    told = [line.split()[1] for line in lines[1:-1]]
    assert told[:3] == [f"{run}/loss.png", f"{run}/metrics.csv", f"{run}/events.jsonl"]
    assert all(Path(path).is_file() for path in told)
    assert yaml.safe_load((run / "config.yaml").read_text())["trainer"]["logger"] is None
    head, advice = lines[-1].split(": ", 1)
    assert head == "evaluate it"
    words = shlex.split(advice)
    assert words[:2] == ["zoo", "test"]
    tested = zoo(*words[1:])
    assert tested.code == 0, tested.err
    assert f"test: done, in {run}/test/version_0" in tested.out
    assert rows(run / "test/version_0", "test/loss")
    assert "was" not in tested.err


def test_advice_names_a_command_that_the_users_shell_finds(monkeypatch, workspace):
    script = Path(sys.executable).with_name("zoo")
    assert command("list") == "zoo list"
    monkeypatch.setenv("PATH", "/nowhere")
    assert command("cp", "a b") == f"{script} cp 'a b'"
    monkeypatch.chdir(script.parent.parent)
    assert command("list") == "bin/zoo list"
    monkeypatch.setattr(sys, "argv", ["zoo/__main__.py"])
    assert command("list") == "bin/python -m zoo list".replace("python", Path(sys.executable).name)


def test_an_evaluation_goes_into_the_run_it_evaluates(zoo, workspace):
    """Also into one that logged nothing; but not into any folder that has a config."""
    words = ("--trust", "my_model", "--config")
    assert zoo("fit", *words, "small.yaml", "--trainer.max_epochs", "1").code == 0
    run = Path("runs/small/version_0")
    (run / "metrics.csv").unlink()
    assert zoo("test", "--untrained", *words, str(run / "config.yaml")).code == 0
    assert (run / "test" / "version_0").is_dir() and not Path("runs/small/version_1").exists()
    assert zoo("test", *words, "small.yaml", "--untrained").code == 0
    assert not Path("test").exists()


def test_fast_dev_run_leaves_nothing_and_says_nothing_of_it(zoo, workspace):
    before = sorted(path.name for path in workspace.iterdir() if path.name != "__pycache__")
    result = zoo(*FIT, "--trainer.fast_dev_run", "1")
    assert result.code == 0
    assert "done, in" not in result.out
    assert "evaluate" not in result.out
    assert sorted(path.name for path in workspace.iterdir() if path.name != "__pycache__") == before


def test_layers_and_bundled_names(zoo, workspace):
    Path("more.yaml").write_text("trainer:\n  callbacks+:\n    - class_path: LossCurve\n  max_steps: 1\n")
    assert zoo(*FIT, "--config", "more.yaml").code == 0
    saved = yaml.safe_load(Path("runs/small/version_0/config.yaml").read_text())
    assert [c["class_path"] for c in saved["trainer"]["callbacks"]] == ["zoo.callbacks.LossCurve"]
    result = zoo(
        "fit", "--config", "flow/eight_gaussians", "--trainer.max_steps", "2", "--trainer.callbacks", "null",
        "--trainer.enable_progress_bar", "false",
    )  # fmt: skip
    assert result.code == 0, result.err
    assert Path("runs/flow/eight_gaussians/version_0/config.yaml").is_file()


@pytest.mark.parametrize("early", [True, False])
def test_another_class_has_its_own_defaults(zoo, workspace, capsys, early):
    """AdamW's weight decay of 0.01 does not apply to RAdam; what was asked for stays."""
    words = ["--model", "my_model.Net", "--model.width", "7", "--model.optimizer.lr", "0.25"]
    chosen = ["--model.optimizer", "RAdam"] if early else []
    with pytest.raises(SystemExit, match="0"):
        main(["fit", "--trust", "my_model", *words[:4], *chosen, *words[4:],
              *([] if early else ["--model.optimizer", "RAdam"]), "--print_config"])  # fmt: skip
    model = yaml.safe_load(capsys.readouterr().out)["model"]["init_args"]
    assert model["width"] == 7 and model["optimizer"]["class_path"] == "torch.optim.RAdam"
    arguments = model["optimizer"]["init_args"]
    assert (arguments["lr"], arguments["weight_decay"]) == (0.25, 0.0)


def test_nothing_useless_is_said(zoo, workspace, caplog, recwarn):
    """A fit, a resume and a test of averaged weights warn of nothing that the user could put right."""
    average = '[{"class_path": "EMAWeightAveraging"}]'
    words = ("--trainer.callbacks", average, "--model.act", "ReLU")
    fit = zoo(*FIT, *words, "--trainer.max_epochs", "1")
    resume = zoo(
        "fit", "--resume", "runs/small/version_0", "--trust", "my_model", "--trainer.max_epochs", "2"
    )
    command = shlex.split(resume.out.splitlines()[-1].split(": ", 1)[1])
    test = zoo(*command[1:])
    assert [result.code for result in (fit, resume, test)] == [0, 0, 0], fit.err + resume.err + test.err
    said = caplog.text + "\n".join(str(warning.message) for warning in recwarn)
    assert "Restoring states" in said  # what is left
    for noise in (
        "deprecat",
        "Deprecat",
        "Tip:",
        "LeafSpec",
        "already saved during",
        "outside the 'fit' stage",
        "many workers",
        "add the following callbacks",
        "dirpath has changed",
        "is not empty",
    ):
        assert noise not in said


@pytest.mark.parametrize("name", ["small.yaml", "quickstart"])
def test_a_printed_config_is_the_same_config(zoo, workspace, capsys, name):
    printed = []
    for config in (name, "printed.yaml"):
        with pytest.raises(SystemExit) as stop:
            zoo("fit", "--trust", "my_model", "--config", config, "--print_config")
        assert stop.value.code == 0
        printed.append(capsys.readouterr().out)
        Path("printed.yaml").write_text(printed[-1])
    assert printed[0] == printed[1]
    assert "class_path" in printed[0]
