"""What whole and checked checkpoints cost: a save of 200 MB over `torch.save` at most 1.3, a check .1 s."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lightning.fabric.plugins.io import TorchCheckpointIO

from zoo.io import AtomicCheckpointIO, check_archive

ROUNDS = 15


@pytest.mark.bench
def test_saving(tmp_path: Path) -> None:
    """Ours waits for the disk, the others do not. Interleaved; the ratio is that of the fastest of each."""
    checkpoint = {"state_dict": {str(n): torch.randn(5_000_000) for n in range(10)}}
    ways: dict[str, Callable[[Path], None]] = {
        "torch.save": lambda path: torch.save(checkpoint, path),
        "AtomicCheckpointIO": lambda path: AtomicCheckpointIO().save_checkpoint(checkpoint, path),
        "Lightning's own": lambda path: TorchCheckpointIO().save_checkpoint(checkpoint, path),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, save in ways.items():
            started = time.perf_counter()
            save(tmp_path / f"{name}.ckpt")
            seconds[name].append(time.perf_counter() - started)
    best = {name: min(times) for name, times in seconds.items()}
    ratios = {name: round(value / best["torch.save"], 2) for name, value in best.items()}
    started = time.perf_counter()
    check_archive(tmp_path / "AtomicCheckpointIO.ckpt")
    print(f"\nsaving 200 MB over torch.save: {ratios}; checking {time.perf_counter() - started:.3f} s")
    assert ratios["AtomicCheckpointIO"] < 1.3
