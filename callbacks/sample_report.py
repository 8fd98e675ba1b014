"""`zoo test` of a generative model: its samples against held-out data, with intervals and floors."""

import json
import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from typing_extensions import override

from zoo import events
from zoo._modes import evaluating
from zoo.io import atomic_write
from zoo.metrics import Interval, SampleQuality


class SampleReport(Callback):
    """Scores samples during ``zoo test`` by `zoo.metrics.SampleQuality`, for each number of sampling steps.

    Every test batch asks the module for samples of its labels, ``replicates`` times. The module must have
    ``sample(labels, steps=..., seed=..., index=...)``; the datamodule must have ``reference_dataloader()``
    (the zoo's have it), or else its ``train_dataloader()`` is read once. Batches are dicts with ``x``,
    ``label`` and ``index``.

    Values are logged as ``test/1-step/recognized`` and so on; with their 95 % intervals they go to
    ``sample_report.json`` in the run folder and, rounded and beside what real data score, to the terminal, in
    place of Lightning's own table. Works over several processes, each of which samples for its share.

    Args:
        steps: Numbers of sampling steps to score.
        replicates: Independent sets of samples, each as large as the test split; two at least, for intervals.
        seed: Seed of the first replicate.
    """

    def __init__(self, steps: list[int] = [1, 2, 4], replicates: int = 10, seed: int = 0) -> None:
        if not steps or min(steps) < 1:
            raise ValueError(f"steps must be numbers from 1 up, got {steps}")
        if replicates < 2:
            raise ValueError(f"replicates must be at least 2 to give intervals, got {replicates}")
        self.steps = list(steps)
        self.replicates = replicates
        self.seed = seed
        self._quality: dict[int, SampleQuality] = {}
        self._seconds = 0.0  # spent in sampling and scoring
        self._table, self._shows = "", True

    @override
    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Its table would have each number of `test_step` and of this report alone, with all digits.
        self._shows, trainer.test_loop.verbose = trainer.test_loop.verbose, False
        datamodule = trainer.datamodule  # type: ignore[attr-defined]
        if datamodule is None:
            raise ValueError(
                "SampleReport compares samples with the training split: pass a datamodule to trainer.test "
                "(datamodule=...)"
            )
        self._quality = {steps: SampleQuality().to(pl_module.device) for steps in self.steps}
        reference = getattr(datamodule, "reference_dataloader", datamodule.train_dataloader)()
        for batch in reference:
            for quality in self._quality.values():
                quality.update(batch["x"], batch["label"], "train")

    @override
    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: object,
        batch: dict[str, Any],
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Draws samples for the batch's labels."""
        started = time.perf_counter()
        label = batch["label"]
        with torch.no_grad(), evaluating(pl_module):
            for steps, quality in self._quality.items():
                quality.update(batch["x"], label, "held_out")
                for replicate in range(self.replicates):
                    samples = pl_module.sample(  # type: ignore[operator]
                        label, steps=steps, seed=self.seed + replicate, index=batch["index"]
                    )
                    quality.update(samples, label, "samples", replicate)
        self._seconds += time.perf_counter() - started

    @override
    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        started = time.perf_counter()
        report = {f"{steps}-step": quality.compute() for steps, quality in self._quality.items()}
        for name, scores in report.items():
            pl_module.log_dict(
                {f"test/{name}/{key}": score.value for key, score in scores.items()}, rank_zero_only=True
            )
        self._quality = {}
        self._table = table(report)
        if trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            seconds = round(self._seconds + time.perf_counter() - started, 3)
            path = events.run_folder(trainer) / "sample_report.json"
            plain = {
                name: {key: score._asdict() for key, score in scores.items()}
                for name, scores in report.items()
            }
            atomic_write(path, json.dumps(plain, indent=1))
            events.record(
                trainer,
                "samples_scored",
                f"scores with intervals: {events.display_path(path)}",
                path=path.name,
                seconds=seconds,
            )

    @override
    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        others = {
            name: value
            for name, value in trainer.callback_metrics.items()
            if not any(name.startswith(f"test/{steps}-step/") for steps in self.steps)
        }
        if self._shows and self._table:
            for line in self._table.splitlines():
                rank_zero_info(line)
            for name, value in others.items():
                rank_zero_info(f"{name}  {float(value):.4g}")
        self._table = ""

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Lets go of the scores, which hold images."""
        self._quality = {}


def table(report: dict[str, dict[str, Interval]]) -> str:
    """Scores with their intervals, one row a score; what real data score stands in the last column.

    Args:
        report: Scores by number of steps, as `SampleQuality` names them.

    >>> scores = {"frechet": Interval(1.8462, 1.8, 1.9), "frechet_floor": Interval(0.3757, 0.3757, 0.3757)}
    >>> print(table({"1-step": scores}))
    score    1-step           real data
    frechet  1.85 [1.8, 1.9]  0.376
    """
    first = next(iter(report.values()))
    real = {name: f"{name}{end}" for name in first for end in ("_real", "_floor") if f"{name}{end}" in first}
    rows = [["score", *report, "real data"]]
    for name in first:
        if name not in real.values():
            cells = [_shown(scores[name]) for scores in report.values()]
            rows.append([name, *cells, _shown(first[real[name]]) if name in real else ""])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(line.rstrip() for line in lines)


def _shown(score: Interval) -> str:
    whole = f"{score.value:.3g}"
    return whole if score.low == score.high else f"{whole} [{score.low:.3g}, {score.high:.3g}]"
