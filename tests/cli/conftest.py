"""A user's folder to run ``zoo`` in: the user's own model, a config, and the command in this process."""

import csv
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import lightning.pytorch  # noqa: F401 (here, since its log handler keeps the stderr that it is imported under)
import pytest

from zoo.cli import main

CONFIG = """# A small run on real digits.
model:
  class_path: my_model.Net
  init_args:
    optimizer:
      class_path: torch.optim.AdamW
      init_args:
        lr: 0.01
data:
  class_path: zoo.datamodules.Digits
  init_args:
    batch_size: 256
trainer:
  accelerator: cpu
  devices: 1
  max_epochs: 3
  log_every_n_steps: 1
  num_sanity_val_steps: 0
  enable_progress_bar: false
  enable_model_summary: false
"""


class Result(NamedTuple):
    """What a command did."""

    code: int
    out: str
    err: str


Zoo = Callable[..., Result]


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with ``my_model.py`` and ``small.yaml``, which is the current folder."""
    shutil.copy(Path(__file__).with_name("my_model.py"), tmp_path)
    (tmp_path / "small.yaml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    # An activated environment: the shell knows `zoo`.
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("ZOO_TRUST", raising=False)
    monkeypatch.delenv("ZOO_DEBUG", raising=False)
    path = list(sys.path)
    handlers = [signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)]
    yield tmp_path
    assert handlers == [signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)]
    assert sys.path == path, "the command left sys.path changed"


@pytest.fixture
def zoo(workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Zoo:
    """``zoo WORDS`` in this process."""

    def run(*words: str) -> Result:
        monkeypatch.setattr(sys, "argv", ["zoo", *words])
        capsys.readouterr()
        code = main()
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return run


@pytest.fixture
def start() -> Callable[..., subprocess.Popen[str]]:
    """``zoo WORDS`` in a process of its own, as a user starts it."""
    return _start


@pytest.fixture
def rows() -> Callable[[Path, str], list[tuple[int, float]]]:
    """(step, value) of a column of ``metrics.csv``, in the file's order."""
    return _rows


def _start(*words: str) -> subprocess.Popen[str]:
    """``zoo WORDS`` in a process of its own, as a user starts it."""
    return subprocess.Popen(
        [str(Path(sys.executable).with_name("zoo")), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def _rows(run: Path, column: str) -> list[tuple[int, float]]:
    """(step, value) of a column of ``metrics.csv``, in the file's order."""
    with open(run / "metrics.csv", newline="") as file:
        return [(int(row["step"]), float(row[column])) for row in csv.DictReader(file) if row.get(column)]
