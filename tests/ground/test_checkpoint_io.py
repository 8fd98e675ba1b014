"""AtomicCheckpointIO in a Trainer of one's own; archives that are damaged, bombs, or without checksums."""

import errno
import io
import pickle
import random
import resource
import signal
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import CONTEXT, save_forever
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import BatchSizeFinder, ModelCheckpoint
from toys import ToyClassifier

from zoo.callbacks._resume_point import State
from zoo.datamodules import Digits
from zoo.io import AtomicCheckpointIO, check_archive, load_checkpoint, remove_temporary


def content(size: int = 100) -> State:
    generator = torch.Generator().manual_seed(0)
    weights = {name: torch.randn(size, generator=generator) for name in ("a", "b")}
    return {"state_dict": weights, "global_step": 7, "note": "text", "rates": [0.1, 0.2]}


def same(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    return one.equal(other) if isinstance(one, torch.Tensor) else bool(one == other)


def trainer(folder: Path, steps: int, **options: Any) -> Trainer:
    return Trainer(
        accelerator="cpu", max_steps=steps, logger=False, plugins=[AtomicCheckpointIO()],
        callbacks=[ModelCheckpoint(folder, "{step}", every_n_train_steps=2, save_top_k=-1)],
        enable_progress_bar=False, enable_model_summary=False, **options,
    )  # fmt: skip


def test_any_trainer_saves_and_resumes_with_it(tmp_path: Path) -> None:
    trainer(tmp_path, 4).fit(ToyClassifier(), datamodule=Digits(100))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step=2.ckpt", "step=4.ckpt"]
    check_archive(tmp_path / "step=2.ckpt")
    again = trainer(tmp_path / "again", 6)
    again.fit(ToyClassifier(), datamodule=Digits(100), ckpt_path=tmp_path / "step=4.ckpt")
    assert again.global_step == 6


def test_a_resume_from_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    trainer(tmp_path, 2).fit(ToyClassifier(), datamodule=Digits(100))
    path = tmp_path / "step=2.ckpt"
    record = max(zipfile.ZipFile(path).infolist(), key=lambda item: item.file_size)
    data = bytearray(path.read_bytes())
    data[record.header_offset + 200] ^= 64
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"step=2.ckpt is damaged: .*differs from its checksum"):
        trainer(tmp_path / "again", 4).fit(ToyClassifier(), datamodule=Digits(100), ckpt_path=path)


def test_no_flipped_byte_changes_a_value_silently(tmp_path: Path) -> None:
    """400 bytes; without the checksums most of them load as other values."""
    path = tmp_path / "x.ckpt"
    AtomicCheckpointIO().save_checkpoint(content(2000), path)
    whole, draw = path.read_bytes(), random.Random(0)
    silent = refused = 0
    for _ in range(400):
        data = bytearray(whole)
        data[draw.randrange(len(data))] ^= draw.randrange(1, 256)
        damaged = tmp_path / "damaged.ckpt"
        damaged.unlink(missing_ok=True)
        damaged.write_bytes(data)
        try:
            loaded = load_checkpoint(damaged)
        except ValueError:
            refused += 1
        else:
            assert same(loaded, content(2000))  # a byte between the records, which nothing reads
        try:
            unchecked = torch.load(io.BytesIO(data), weights_only=True)
            silent += not same(unchecked, content(2000))
        except Exception:  # what torch itself sees
            continue
    assert refused > 300
    assert silent > 300  # the trap is real


@pytest.mark.parametrize("lazy", [False, True])
def test_a_small_file_that_unpacks_to_a_large_one_is_refused(tmp_path: Path, lazy: bool) -> None:
    path = tmp_path / "bomb.ckpt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"state_dict": {}}) + bytes(30_000_000))
        archive.writestr("archive/version", "3")
    with pytest.raises(ValueError, match="unpacks to more than its size"):
        load_checkpoint(path, lazy=lazy)


def test_files_without_checksums_are_said(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(content(), tmp_path / "none.ckpt")
    finally:
        torch.serialization.set_crc32_options(True)
    with pytest.warns(UserWarning, match="saved without checksums: damage would go unnoticed"):
        assert same(load_checkpoint(tmp_path / "none.ckpt"), content())
    torch.save(content(), tmp_path / "old.ckpt", _use_new_zipfile_serialization=False)
    with pytest.warns(UserWarning, match=r"has no checksums \(no zip archive\)"):
        assert same(load_checkpoint(tmp_path / "old.ckpt"), content())


def test_objects_are_refused_whatever_the_caller_asks(tmp_path: Path) -> None:
    torch.save({"state_dict": {}, "x": Path("/")}, tmp_path / "object.ckpt")
    for weights_only in (None, False):
        with pytest.raises(ValueError, match="tensors and plain values") as refused:
            AtomicCheckpointIO().load_checkpoint(tmp_path / "object.ckpt", weights_only=weights_only)
        assert "weights_only" not in str(refused.value)  # no advice to switch the safety off


def test_no_load_of_lightnings_callbacks_unpickles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """BatchSizeFinder loads the file that it saved, and does not ask for weights_only itself."""
    asked: list[Any] = []
    load = torch.load
    monkeypatch.setattr(torch, "load", lambda *a, **k: asked.append(k.get("weights_only")) or load(*a, **k))
    model = ToyClassifier()
    finder = BatchSizeFinder(max_trials=2, steps_per_trial=1, init_val=8)
    run = Trainer(
        accelerator="cpu", max_steps=1, logger=False, plugins=[AtomicCheckpointIO()], callbacks=[finder],
        default_root_dir=tmp_path, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    run.fit(model, datamodule=Digits(8))
    assert finder.optimal_batch_size == 16 and asked == [True]


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    """A limit on file sizes stands for it: another error of the system, the same way of failing."""
    path = tmp_path / "x.ckpt"
    AtomicCheckpointIO().save_checkpoint(content(), path)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limit[1]))
    try:
        with pytest.raises(OSError, match=r"cannot save a checkpoint: File too large: '.*x.ckpt'") as full:
            AtomicCheckpointIO().save_checkpoint(content(100_000), path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    assert full.value.errno == errno.EFBIG
    assert same(load_checkpoint(path), content())
    assert [item.name for item in tmp_path.iterdir()] == ["x.ckpt"]


def test_a_kill_leaves_a_whole_file(tmp_path: Path) -> None:
    path, draw = tmp_path / "x.ckpt", random.Random(0)
    for _ in range(20):
        ours, theirs = CONTEXT.Pipe()
        process = CONTEXT.Process(target=save_forever, args=(path, theirs))
        process.start()
        assert ours.poll(60) and ours.recv() == 1
        time.sleep(0.05 * draw.random())
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        loaded = load_checkpoint(path)
        assert all(bool((value == loaded["n"]).all()) for value in loaded["state_dict"].values())
    remove_temporary(tmp_path)
    assert [item.name for item in tmp_path.iterdir()] == ["x.ckpt"]
