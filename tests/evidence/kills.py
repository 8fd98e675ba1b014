"""Kills in the middle of saves, with the temporary folder on another file system, and flipped bytes."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from entry import WORK, write, zoo

from zoo.io import check_archive, checkpoint_files, load_checkpoint

KILLS, FLIPS = 50, 400
OPTIONS = [
    "fit", "--config=quickstart", "--config=often.yaml", "--model.network.init_args.width=192",
    "--trainer.enable_progress_bar=false", "--trainer.limit_val_batches=0", "--data.batch_size=8",
]  # fmt: skip
OFTEN = """
trainer:
  callbacks:
    - class_path: LRSchedule
      init_args: {schedule: {class_path: zoo.schedules.constant}}
    - class_path: ModelCheckpoint
      init_args: {every_n_train_steps: 1, save_top_k: 2, monitor: step, mode: max}
"""
STOCK = "--trainer.plugins=lightning.fabric.plugins.io.TorchCheckpointIO"


def whole(path: Path) -> bool:
    """Whether a file under a final name is what was saved."""
    try:
        check_archive(path)
    except ValueError:
        return False
    return True


def kill(folder: Path, temporary: Path, draw: random.Random, *options: str) -> tuple[int, int, int]:
    """One run, killed at a random moment of its saves: files, damaged ones, bytes in the temporary folder."""
    run = folder / "runs/quickstart"
    shutil.rmtree(run, ignore_errors=True)
    command = [sys.executable, "-m", "zoo", *OPTIONS, *options]
    environment = os.environ | {"TMPDIR": str(temporary)}
    silent: Any = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, cwd=folder, env=environment, **silent)
    started = time.monotonic()
    while len(checkpoint_files(run)) < 2 and process.poll() is None and time.monotonic() < started + 120:
        time.sleep(0.01)
    time.sleep(draw.random())
    if process.poll() is not None:
        raise RuntimeError(f"the run ended by itself with status {process.returncode}")
    process.send_signal(signal.SIGKILL)
    process.wait()
    files = checkpoint_files(run)
    left = sum(path.stat().st_size for path in temporary.rglob("*") if path.is_file())
    shutil.rmtree(temporary)
    temporary.mkdir()
    return len(files), sum(not whole(path) for path in files), left


def campaign(
    folder: Path, temporary: Path, draw: random.Random, name: str, count: int, *options: str
) -> list[tuple[int, int, int]]:
    """Several kills, kept in a file, so that an interrupted experiment goes on."""
    kept = folder / f"{name}.json"
    found = json.loads(kept.read_text()) if kept.is_file() else []
    while len(found) < count:
        found.append(kill(folder, temporary, draw, *options))
        kept.write_text(json.dumps(found))
    return found


def same(one: Any, other: Any) -> bool:
    """Equality of nested values and tensors."""
    if isinstance(one, dict):
        return (
            isinstance(other, dict)
            and one.keys() == other.keys()
            and all(same(one[k], other[k]) for k in one)
        )
    if isinstance(one, list | tuple):
        return isinstance(other, list | tuple) and len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.equal(other)
    return bool(one == other)


def flips(path: Path, folder: Path, draw: random.Random) -> dict[str, int]:
    """What loads make of a checkpoint with one byte flipped: with our check, and PyTorch's own."""
    content, expected = path.read_bytes(), load_checkpoint(path)
    found = {"refused": 0, "unchanged": 0, "changed": 0, "changed for torch.load": 0}
    damaged = folder / "damaged.ckpt"
    for _ in range(FLIPS):
        data = bytearray(content)
        data[draw.randrange(len(data))] ^= draw.randrange(1, 256)
        damaged.unlink(missing_ok=True)
        damaged.write_bytes(data)
        try:
            loaded = load_checkpoint(damaged)
        except ValueError:
            found["refused"] += 1
        else:
            found["unchanged" if same(loaded, expected) else "changed"] += 1
        try:
            found["changed for torch.load"] += not same(torch.load(damaged, weights_only=True), expected)
        except Exception:  # what torch itself refuses
            continue
    return found


def main() -> None:
    """Ours and Lightning's own CheckpointIO, then the flips."""
    draw, shared = random.Random(0), Path("/dev/shm")
    folder = WORK / "kills"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "often.yaml").write_text(OFTEN)
    with tempfile.TemporaryDirectory(dir=shared) as other:
        temporary = Path(other) / "tmp"
        temporary.mkdir()
        if temporary.stat().st_dev == folder.stat().st_dev:
            raise RuntimeError(f"{shared} and {folder} are on one file system: this tells nothing")
        ours = campaign(folder, temporary, draw, "ours", KILLS)
        zoo("fit", "--config", "flow/eight_gaussians", "--trainer.max_steps", "20", cwd=folder)
        flipped = flips(checkpoint_files(folder / "runs/flow")[0], folder, draw)
        stock = campaign(folder, temporary, draw, "stock", KILLS // 2, STOCK)
    shutil.rmtree(folder)
    damaged = [sum(bool(bad) for _, bad, _ in each) for each in (ours, stock)]
    left = [max(size for _, _, size in each) for each in (ours, stock)]
    write(
        "kills",
        [
            {
                "claim": "a checkpoint is whole or absent: kills that left a damaged file",
                "scale": "quickstart, wide, saved each update; temporary folder on another file system",
                "paper": f"Lightning 2.6 itself: {damaged[1]} of {len(stock)} kills; up to "
                f"{left[1] / 1e6:.0f} MB left in the temporary folder",
                "ours": f"{damaged[0]} of {len(ours)} kills; {left[0] / 1e6:.0f} MB left",
            },
            {
                "claim": "no load changes a value silently: a checkpoint with one flipped byte",
                "scale": f"{FLIPS} bytes of a checkpoint of flow/eight_gaussians",
                "paper": f"torch.load: {flipped['changed for torch.load']} load as other values",
                "ours": f"{flipped['refused']} refused, {flipped['unchanged']} unchanged (bytes that nothing "
                f"reads), {flipped['changed']} changed",
            },
        ],
        {"kills": ours, "kills of Lightning's own": stock, "flips": flipped},
    )


if __name__ == "__main__":
    main()
