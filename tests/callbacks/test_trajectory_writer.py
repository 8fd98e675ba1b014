"""The shards that `zoo predict` leaves: form, sizes, interruption, two processes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from pool import Pool
from ranks import store_on_rank
from torch import Tensor
from torch.utils.data import DataLoader

from zoo.callbacks import TrajectoryWriter
from zoo.flow import CMT, MLP
from zoo.flow.trajectories import read_shard
from zoo.io import load_tensors, read_json_lines

TIMES = torch.tensor([80.0, 1.0 / 3.0, 0.002], dtype=torch.float64)


class Solves(LightningModule):
    """Predicts trajectories whose states are the number of the item; fails at a batch if told to."""

    def __init__(self, fails_at: int | None = None, value: float = 1.0, labels: bool = True) -> None:
        super().__init__()
        self.fails_at, self.value, self.labels = fails_at, value, labels

    def predict_step(self, batch: dict[str, Tensor], batch_idx: int) -> Any:
        if batch_idx == self.fails_at:
            raise RuntimeError("stopped")
        index = batch["index"]
        states = self.value * (index[:, None, None] + 0.1).expand(-1, 3, 4)
        label = index % 5 if self.labels else None
        shared = {"times": TIMES, "path": "VarianceExplodingPath()", "origin": '{"seed": 0}'}
        return {"states": states, "label": label, "index": index, **shared}


def predict(run: Path, count: int, module: LightningModule | None = None, **options: Any) -> None:
    batches: Any = [{"index": part} for part in torch.arange(count).split(4)]
    trainer = Trainer(
        accelerator="cpu", default_root_dir=run, logger=False, enable_progress_bar=False,
        callbacks=[TrajectoryWriter(**options)],
    )  # fmt: skip
    trainer.predict(module or Solves(), DataLoader(batches, batch_size=None), return_predictions=False)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_shards_hold_what_was_made(dtype: Any, tmp_path: Path) -> None:
    predict(tmp_path, 21, dtype=dtype, shard_size=8)
    files = sorted(tmp_path.glob("*.safetensors"))
    assert [file.name for file in files] == [f"trajectories-0-{k:05d}.safetensors" for k in range(3)]
    shards = [read_shard(file) for file in files]
    assert [len(shard.index) for shard in shards] == [8, 8, 5]
    index = torch.cat([shard.index for shard in shards])
    assert index.equal(torch.arange(21))
    states = torch.cat([shard.states for shard in shards])
    expected = (index[:, None, None] + 0.1).expand(-1, 3, 4)
    assert states.equal(expected.to(getattr(torch, dtype)))
    for shard in shards:
        assert shard.times.equal(TIMES) and shard.path == "VarianceExplodingPath()"
        assert shard.label is not None and shard.label.equal(shard.index % 5)
        assert shard.origin == '{"seed": 0}'
        load_tensors(files[0])  # its checksums hold
    size = sum(file.stat().st_size for file in files)
    [event] = read_json_lines(tmp_path / "events.jsonl")
    assert event["event"] == "trajectories_written" and event["count"] == 21 and event["bytes"] == size
    assert "21 trajectories of 2 steps" in event["message"] and "3 files" in event["message"]


def test_without_labels_in_another_folder(tmp_path: Path) -> None:
    predict(tmp_path / "run", 3, Solves(labels=False), folder=str(tmp_path / "there"))
    assert names(tmp_path / "there") == ["trajectories-0-00000.safetensors"]
    assert read_shard(tmp_path / "there" / "trajectories-0-00000.safetensors").label is None
    assert names(tmp_path / "run") == ["events.jsonl"]


def test_an_interruption_leaves_whole_shards_alone(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="stopped"):
        predict(tmp_path / "early", 20, Solves(fails_at=1), shard_size=8)
    assert not (tmp_path / "early").exists()
    with pytest.raises(RuntimeError, match="stopped"):
        predict(tmp_path / "late", 20, Solves(fails_at=3), shard_size=8)
    assert names(tmp_path / "late") == ["trajectories-0-00000.safetensors"]
    assert len(read_shard(tmp_path / "late" / "trajectories-0-00000.safetensors").index) == 8


def test_a_failed_write_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import safetensors.torch

    def cut_short(tensors: Any, path: Path, metadata: Any) -> None:
        path.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", cut_short)
    with pytest.raises(OSError, match="No space left"):
        predict(tmp_path, 4)
    assert names(tmp_path) == []


def test_a_folder_with_trajectories_is_refused(tmp_path: Path) -> None:
    """Two runs in one folder would be read as one."""
    predict(tmp_path, 4)
    before = names(tmp_path)
    with pytest.raises(ValueError, match="holds trajectories already: give another folder, or delete them"):
        predict(tmp_path, 4)
    assert names(tmp_path) == before


@pytest.mark.parametrize(
    ("value", "dtype", "message"),
    [
        (float("nan"), "float32", r"\[0, 1, 2, 3\] are not finite in float32: the teacher's solver diverged"),
        (1e6, "float16", r"\[0, 1, 2, 3\] are not finite in float16.*65504"),
    ],
)
def test_states_that_are_not_finite_are_refused(
    value: float, dtype: Any, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        predict(tmp_path, 4, Solves(value=value), dtype=dtype)
    assert names(tmp_path) == []


def test_two_processes_leave_a_shard_each(tmp_path: Path, pool: Pool) -> None:
    """Eleven items over two ranks: the sampler repeats one, and the datamodule takes it once."""
    from zoo.datamodules import Trajectories

    pool.run(store_on_rank, str(tmp_path))
    assert [name for name in names(tmp_path) if name != "events.jsonl"] == [
        "trajectories-0-00000.safetensors", "trajectories-1-00000.safetensors"
    ]  # fmt: skip
    data = Trajectories(str(tmp_path), batch_size=11, val_share=0, seed=0)
    data.setup("fit")
    [batch] = list(data.reference_dataloader())
    assert batch["index"].equal(torch.arange(11)) and batch["label"].equal(torch.arange(11) % 3)
    assert batch["states"][:, 0, 0].equal(torch.arange(11).float())
    [event] = read_json_lines(tmp_path / "events.jsonl")
    assert event["count"] == 11


def test_other_predictions_are_refused(tmp_path: Path) -> None:
    class Plain(Solves):
        def predict_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
            return batch["index"]

    with pytest.raises(TypeError, match="Plain returned Tensor"):
        predict(tmp_path, 4, Plain())
    student = CMT(MLP(2, 8, 1, None))
    with pytest.raises(ValueError, match=r"CMT makes samples: set predict to trajectories \(--model.predict"):
        predict(tmp_path, 4, student)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shard_size": 0}, "shard_size must be at least 1, got 0"),
        ({"dtype": "bfloat16"}, "dtype must be 'float32' or 'float16', got 'bfloat16'"),
    ],
)
def test_bad_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrajectoryWriter(**options)
