"""The logger of a run's folder: a CSVLogger that goes on with the rows that are there."""

import csv
import os
import shutil
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.utilities import rank_zero_only

from zoo.io import atomic_path
from zoo.runs import FIRST_FILES


class _Rows(ExperimentWriter):
    """Appends to ``metrics.csv``. Lightning's own writer deletes the file of an earlier session.

    A run that goes on repeats the validation and the epoch's end that followed its checkpoint; rows of these
    that are there already are not written twice.
    """

    def __init__(self, log_dir: str) -> None:
        self._last_step = -1
        self._last_rows: set[frozenset[str]] = set()  # names in each row of that step
        super().__init__(log_dir)

    def _check_log_dir_exists(self) -> None:
        path = Path(self.metrics_file_path)
        if not path.is_file():
            return
        with open(path, newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
            self.metrics_keys = list(reader.fieldnames or [])
        self._last_step = int(rows[-1]["step"]) if rows else -1
        last = [row for row in rows if int(row["step"]) == self._last_step]
        self._last_rows = {frozenset(name for name, value in row.items() if value) for row in last}

    def log_metrics(self, metrics_dict: dict[str, Any], step: int | None = None) -> None:
        """Keeps a row until it is flushed."""
        if step != self._last_step:
            self._last_rows = set()
        elif frozenset((*metrics_dict, "step")) in self._last_rows:
            return
        super().log_metrics(metrics_dict, step)

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        with open(self.metrics_file_path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        with atomic_path(self.metrics_file_path) as temporary, open(temporary, "w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=fieldnames)
            writer.writeheader()
            writer.writerows(rows)


class RunLogger(CSVLogger):
    """Logs to ``metrics.csv`` of a folder ``<save_dir>/<name>/version_N``, each row as it comes.

    Unlike `CSVLogger` it keeps the rows of an earlier session in the same folder, it claims a new folder so
    that two runs that start together get two, and a killed run has lost no row.

    Args:
        save_dir: The folder of all runs.
        name: The folder of this config's runs.
        version: The run's own folder name; the next free ``version_N`` if None.
        prefix: Put before the names of metrics.
    """

    def __init__(self, save_dir: str, name: str = "", version: str | None = None, prefix: str = "") -> None:
        super().__init__(save_dir, name=name, version=version, prefix=prefix, flush_logs_every_n_steps=1)
        self._claimed = False

    @property
    def version(self) -> int | str:
        """The run's folder name; a new folder is made on global rank zero when it is first asked for."""
        if self._version is None:
            self._version = self._get_next_version()
            while rank_zero_only.rank == 0:  # type: ignore[attr-defined]
                try:
                    os.makedirs(os.path.join(self.root_dir, f"version_{self._version}"))
                    self._claimed = True
                    break
                except FileExistsError:
                    self._version += 1
        return self._version

    def discard(self) -> None:
        """Deletes the folder, if this logger made it and it holds no more than a run's first files."""
        if self._claimed and {path.name for path in Path(self.log_dir).iterdir()} <= FIRST_FILES:
            shutil.rmtree(self.log_dir)
            folder, top = Path(self.root_dir), Path(self.save_dir)
            while folder.is_relative_to(top) and not os.listdir(folder):
                folder.rmdir()
                folder = folder.parent

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The writer on global rank zero; elsewhere one that does nothing."""
        if self._experiment is None:
            self._experiment = _Rows(log_dir=self.log_dir)
        return self._experiment
