"""The loss curve of a run as a PNG, drawn when training ends."""

import csv
import time
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities import rank_zero_warn
from typing_extensions import override

from zoo import events
from zoo.io import atomic_path


class LossCurve(Callback):
    """Draws columns of ``metrics.csv`` against the step, into ``loss.png`` in the run folder, at the end.

    It reads the file that the `CSVLogger` wrote, so a resumed run shows the whole curve; with no `CSVLogger`
    there is nothing to draw, and that is said once.

    Args:
        keys: Logged values to draw, each in a panel of its own.
        log_scale: Whether the vertical axes are logarithmic.
    """

    def __init__(self, keys: list[str] = ["train/loss", "val/loss"], log_scale: bool = True) -> None:
        if not keys:
            raise ValueError("keys must name at least one logged value, got none")
        self.keys = list(keys)
        self.log_scale = log_scale

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        logger = next((logger for logger in trainer.loggers if isinstance(logger, CSVLogger)), None)
        if logger is None:
            rank_zero_warn("LossCurve reads metrics.csv and this run has no CSVLogger: no curve is drawn")
            return
        started = time.perf_counter()
        logger.save()
        curves = read_curves(logger.experiment.metrics_file_path, self.keys)
        if not curves:
            rank_zero_warn(f"LossCurve: none of {self.keys} was logged, no curve is drawn")
            return

        from matplotlib.figure import Figure  # not pyplot: no display, no global state
        from matplotlib.ticker import MaxNLocator, NullLocator, ScalarFormatter

        figure = Figure(figsize=(4.5 * len(curves), 3.2), layout="constrained")
        panels = figure.subplots(1, len(curves), squeeze=False)[0]
        for panel, (key, (steps, values)) in zip(panels, curves.items(), strict=True):
            panel.plot(steps, values, linewidth=1)
            panel.set(title=key, xlabel="update")
            if self.log_scale and min(values) > 0:
                panel.set_yscale("log")
                if max(values) < 10 * min(values):  # no power of ten to mark, or one: plain numbers
                    panel.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
                    panel.yaxis.set_major_formatter(ScalarFormatter())
                    panel.yaxis.set_minor_locator(NullLocator())
            panel.grid(alpha=0.3)
        path = events.run_folder(trainer) / "loss.png"
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format="png", dpi=110)
        seconds = round(time.perf_counter() - started, 3)
        events.record(
            trainer,
            "loss_drawn",
            f"loss curve: {events.display_path(path)}",
            path="loss.png",
            seconds=seconds,
        )


def read_curves(path: str, keys: list[str]) -> dict[str, tuple[list[int], list[float]]]:
    """Steps and values of the logged columns of a ``metrics.csv``.

    Args:
        path: The file.
        keys: Column names; Lightning's ``_step`` and ``_epoch`` forms of a name stand in for it.

    Returns:
        For each key that has values: the steps and the values.
    """
    if not Path(path).is_file():  # a run that ended before the first row was due
        return {}
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    curves: dict[str, tuple[list[int], list[float]]] = {}
    for key in keys:
        column = next(
            (name for name in (key, f"{key}_step", f"{key}_epoch") if rows and name in rows[0]), None
        )
        pairs = [(int(row["step"]), float(row[column])) for row in rows if column and row[column]]
        if pairs:
            steps, values = zip(*pairs, strict=True)
            curves[key] = (list(steps), list(values))
    return curves
