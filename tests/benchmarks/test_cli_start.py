"""How much longer a fit takes to start under ``zoo`` than under a bare LightningCLI: at most 1.3 times.

Both import torch and Lightning, parse the same config and run one batch (`fast_dev_run`). Runs are
interleaved, and the ratio is that of the fastest of each: what the machine does beside them only adds time.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

BARE = """
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.cli import LightningCLI

import tiny

LightningCLI(
    LightningModule, LightningDataModule, subclass_mode_model=True, subclass_mode_data=True,
    auto_configure_optimizers=False, seed_everything_default=0,
)
"""
TINY = """
import torch
from lightning.pytorch.demos.boring_classes import BoringDataModule, BoringModel


class Model(BoringModel):
    pass


class Data(BoringDataModule):
    pass
"""
CONFIG = """
model: tiny.Model
data: tiny.Data
trainer:
  fast_dev_run: 1
  accelerator: cpu
  devices: 1
  enable_progress_bar: false
  enable_model_summary: false
"""


@pytest.mark.bench
def test_a_fit_starts_within_1_3_of_a_bare_lightning_cli(tmp_path: Path) -> None:
    for name, text in (("bare.py", BARE), ("tiny.py", TINY), ("config.yaml", CONFIG)):
        (tmp_path / name).write_text(text)
    words = ["fit", "--config", "config.yaml"]
    zoo = str(Path(sys.executable).with_name("zoo"))
    commands = {
        "bare": [sys.executable, "bare.py", *words],
        "zoo": [zoo, *words, "--trust", "tiny"],
    }
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for number in range(5):
        for name, command in commands.items():
            start = time.perf_counter()
            subprocess.run(
                command,
                cwd=tmp_path,
                check=True,
                capture_output=True,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            )
            if number > 0:  # the first of each fills the disk cache
                seconds[name].append(time.perf_counter() - start)
    best = {name: min(times) for name, times in seconds.items()}
    ratio = best["zoo"] / best["bare"]
    print(f"\nfit starts: zoo {best['zoo']:.2f} s, bare LightningCLI {best['bare']:.2f} s, ratio {ratio:.2f}")
    assert ratio < 1.3, f"zoo {seconds['zoo']}, bare {seconds['bare']}"
