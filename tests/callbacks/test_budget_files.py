"""What a kill leaves undone among the files of budgets, and what the next run in that folder makes of it."""

import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from toys import ToyClassifier

import zoo.callbacks._budget_files as budget_files
from zoo.callbacks import WSDS, ExactResume
from zoo.datamodules import Digits
from zoo.io import load_checkpoint, read_json_lines
from zoo.schedules import Schedule, read_ledger, wsds, wsm

MERGES = wsm([10, 20], warmup=2, snapshots=4, decay=0.6)


def fit(folder: Path, plan: Schedule, checkpoint: Path | None = None) -> LightningModule:
    torch.manual_seed(0)
    module = ToyClassifier()
    trainer = Trainer(
        accelerator="cpu", callbacks=[WSDS(plan), ExactResume()], max_steps=20, enable_progress_bar=False,
        logger=CSVLogger(folder, name=None, version=""), enable_model_summary=False, log_every_n_steps=1,
        enable_checkpointing=False,
    )  # fmt: skip
    trainer.fit(module, datamodule=Digits(batch_size=100, seed=0), ckpt_path=checkpoint, weights_only=True)
    return module


def _killed_in(function: str, call: int, folder: Path, plan: Schedule) -> None:
    """A run that dies in the ``call``-th call of a function of `budget_files`, before it does anything."""
    torch.set_num_threads(1)
    calls = []

    def die(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return whole(*args, **kwargs)

    whole = getattr(budget_files, function)
    setattr(budget_files, function, die)
    fit(folder, plan)


def killed_in(*args: Any) -> None:
    process = multiprocessing.get_context("fork").Process(target=_killed_in, args=args)
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL


def rows(folder: Path) -> list[tuple[str, int, int, int, str | None]]:
    return [(e.kind, e.budget, e.step, e.updates_spent, e.parent) for e in read_ledger(folder)]


def events(folder: Path, name: str) -> list[str]:
    return [e["message"] for e in read_json_lines(folder / "events.jsonl") if e["event"] == name]


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with two merges that nothing disturbs."""
    folder = tmp_path_factory.mktemp("merged")
    fit(folder, MERGES)
    return folder / "checkpoints"


@pytest.mark.parametrize(("call", "total"), [(1, 10), (2, 20)])  # in mid-run, and after the last update
def test_a_merge_that_was_killed_is_made_on_resume(
    call: int, total: int, merged: Path, tmp_path: Path
) -> None:
    killed_in("merge_checkpoints", call, tmp_path, MERGES)
    folder = tmp_path / "checkpoints"
    name = f"wsds-budget{total}-merged-step{total}.ckpt"
    assert not (folder / name).exists()
    fit(tmp_path, MERGES, checkpoint=folder / f"wsds-budget{total}-pre-step{total}.ckpt")
    assert set(rows(folder)) == set(rows(merged))
    one, other = (load_checkpoint(path / name)["state_dict"] for path in (folder, merged))
    assert all(torch.equal(value, one[key]) for key, value in other.items())
    assert sum(f"budget {total} merged" in text for text in events(tmp_path, "budget_reached")) == 1


def test_a_merge_that_was_removed_is_not_made_again(merged: Path, tmp_path: Path) -> None:
    fit(tmp_path, MERGES)
    folder = tmp_path / "checkpoints"
    (folder / "wsds-budget10-merged-step10.ckpt").unlink()
    fit(tmp_path, MERGES, checkpoint=folder / "wsds-budget10-pre-step10.ckpt")
    assert not (folder / "wsds-budget10-merged-step10.ckpt").exists()


def test_a_merge_whose_snapshots_are_gone_is_told(tmp_path: Path) -> None:
    killed_in("merge_checkpoints", 1, tmp_path, MERGES)
    folder = tmp_path / "checkpoints"
    (folder / "wsds-budget10-snapshot-step6.safetensors").unlink()
    fit(tmp_path, MERGES, checkpoint=folder / "wsds-budget10-pre-step10.ckpt")
    [text] = events(tmp_path, "merge_lost")
    assert text == "wsds: budget 10 was never merged, and snapshots of the updates 6 are gone"


def test_another_folders_merges_are_left_alone(merged: Path, tmp_path: Path) -> None:
    fit(tmp_path, MERGES, checkpoint=merged / "wsds-budget10-pre-step10.ckpt")
    assert not (tmp_path / "checkpoints" / "wsds-budget10-merged-step10.ckpt").exists()


@pytest.mark.parametrize("call", [1, 2, 4])  # the first row, one in mid-run, the last
def test_a_checkpoint_without_its_row_is_listed_on_resume(call: int, tmp_path: Path) -> None:
    plan = wsds([10, 20], decay=0.2)
    fit(tmp_path / "whole", plan)
    run = tmp_path / "killed"
    killed_in("write_ledger", call, run, plan)
    folder = run / "checkpoints"
    newest = max(folder.glob("*.ckpt"), key=lambda path: int(path.stem.split("step")[1]))
    assert newest.name not in {entry.path for entry in read_ledger(folder)}
    fit(run, plan, checkpoint=newest)
    assert set(rows(folder)) == set(rows(tmp_path / "whole" / "checkpoints"))
    [text] = events(run, "ledger_completed")
    assert text.endswith(f"{newest.name} was missing in the ledger")


def test_a_damaged_checkpoint_stops_no_resume(tmp_path: Path) -> None:
    plan = wsds([10, 20], decay=0.2)
    killed_in("write_ledger", 2, tmp_path, plan)
    folder = tmp_path / "checkpoints"
    stump = folder / "wsds-budget10-post-step10.ckpt"
    stump.write_bytes(stump.read_bytes()[:1000])
    fit(tmp_path, plan, checkpoint=folder / "wsds-budget10-pre-step8.ckpt")
    [text] = events(tmp_path, "checkpoint_damaged")
    assert str(stump) in text and text.endswith("Remove it.")
    assert load_checkpoint(stump)["global_step"] == 10  # rewritten
