"""Pictures of what a generative model makes, while it trains and at the end."""

import time

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from typing_extensions import override

from zoo import events
from zoo._modes import evaluating
from zoo.callbacks._modules import averaged
from zoo.callbacks._png import image_grid, point_cloud, save_blocks


class SampleGrid(Callback):
    """Writes a PNG of samples every so many updates and at the end of training.

    The module must have ``sample(labels, steps=..., seed=...)`` that returns images (N, C, H, W) in [-1, 1]
    with one channel or three, or points (N, 2). One picture holds a block for each entry of ``steps``; an
    image block has a row for each label. The averaged weights are used where a `WeightAveraging` callback
    keeps them. Training is not disturbed: samples come from ``seed`` alone, and dropout is off while they are
    drawn.

    Pictures go to ``samples/step=N.png`` in the run folder and, at the end, to ``samples.png``. Only global
    rank zero draws; modules whose weights are sharded over ranks are not supported.

    Args:
        every_n_steps: Updates between pictures; 0 for one at the end only.
        labels: Classes to show, one row each. A model without labels is asked for as many samples.
        per_label: Images in a row, or points for each label.
        steps: Numbers of sampling steps to show side by side.
        seed: Seed of the samples: the same at each picture, so that changes are the model's.
        scale: Width of an image pixel in the picture.
    """

    def __init__(
        self,
        every_n_steps: int = 0,
        labels: list[int] = list(range(10)),
        per_label: int = 8,
        steps: list[int] = [1, 4],
        seed: int = 0,
        scale: int = 4,
    ) -> None:
        for name, value, least in (
            ("every_n_steps", every_n_steps, 0),
            ("per_label", per_label, 1),
            ("scale", scale, 1),
            ("steps", min(steps, default=0), 1),
        ):
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        self.every_n_steps = every_n_steps
        self.labels = labels
        self.per_label = per_label
        self.steps = list(steps)
        self.seed = seed
        self.scale = scale
        self._last_step = -1

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit" and not callable(getattr(pl_module, "sample", None)):
            raise TypeError(
                f"SampleGrid needs a module with sample(labels, steps=..., seed=...); "
                f"{type(pl_module).__name__} has none"
            )

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        """Draws a picture when its step has come."""
        step = trainer.global_step
        if self.every_n_steps and step % self.every_n_steps == 0 and step != self._last_step:
            self._last_step = step  # under accumulation several batches end at one step
            self._save(trainer, pl_module, f"samples/step={step:06d}.png")

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._save(trainer, pl_module, "samples.png")

    def _save(self, trainer: Trainer, pl_module: LightningModule, name: str) -> None:
        if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        started = time.perf_counter()
        module = averaged(trainer, pl_module)
        labels = torch.tensor(self.labels, device=pl_module.device).repeat_interleave(self.per_label)
        path = events.run_folder(trainer) / name
        blocks = []
        with torch.no_grad(), evaluating(module):
            for steps in self.steps:
                samples = module.sample(labels, steps=steps, seed=self.seed)  # type: ignore[operator]
                blocks.append((f"{steps} step{'s' * (steps > 1)}", self._picture(samples)))
        save_blocks(path, blocks)
        seconds = round(time.perf_counter() - started, 3)
        events.record(
            trainer, "samples_drawn", f"samples: {events.display_path(path)}", path=name, seconds=seconds
        )

    def _picture(self, samples: Tensor) -> Tensor:
        if samples.ndim == 4:
            return image_grid(samples, self.per_label, self.scale)
        if samples.ndim == 2 and samples.shape[1] == 2:
            span = samples.abs().max().expand(2)
            return point_cloud(samples, -span, span)
        raise ValueError(f"samples must be images (N, C, H, W) or points (N, 2), got {tuple(samples.shape)}")
