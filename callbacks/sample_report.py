"""`zoo test` of a generative model: its samples against held-out data, with intervals and floors."""

import json
import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from zoo import events
from zoo.callbacks._modules import evaluating
from zoo.io import atomic_write
from zoo.metrics import SampleQuality


class SampleReport(Callback):
    """Scores samples during ``zoo test`` by `zoo.metrics.SampleQuality`, for each number of sampling steps.

    Every test batch asks the module for samples of its labels, ``replicates`` times. The module must have
    ``sample(labels, steps=..., seed=..., index=...)``; the datamodule must have ``reference_dataloader()``
    (the zoo's have it), or else its ``train_dataloader()`` is read once. Batches are dicts with ``x``,
    ``label`` and ``index``.

    Values are logged as ``test/1-step/recognized`` and so on; with their 95 % intervals they go to
    ``sample_report.json`` in the run folder. Works over several processes, each of which samples for its
    share.

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

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reads the training split."""
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
        with evaluating(pl_module):
            for steps, quality in self._quality.items():
                quality.update(batch["x"], label, "held_out")
                for replicate in range(self.replicates):
                    samples = pl_module.sample(  # type: ignore[operator]
                        label, steps=steps, seed=self.seed + replicate, index=batch["index"]
                    )
                    quality.update(samples, label, "samples", replicate)
        self._seconds += time.perf_counter() - started

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Computes, logs and writes the report."""
        started = time.perf_counter()
        report = {f"{steps}-step": quality.compute() for steps, quality in self._quality.items()}
        for name, scores in report.items():
            pl_module.log_dict(
                {f"test/{name}/{key}": score.value for key, score in scores.items()}, rank_zero_only=True
            )
        self._quality = {}
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
                f"scores with intervals: {events.shown(path)}",
                path=path.name,
                seconds=seconds,
            )
