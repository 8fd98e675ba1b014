"""The LightningModule `Diffusion`: from a batch to the loss of `zoo.flow.diffusion`, and to samples."""

from typing import Any, Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from typing_extensions import override

from zoo.base import as_dataclass
from zoo.flow.diffusion import diffusion_error
from zoo.flow.flow_module import FlowModule
from zoo.flow.noise_levels import LogNormalLevels, UniformLevels
from zoo.flow.paths import Path
from zoo.flow.preconditioning import EDMPreconditioning, Preconditioning
from zoo.flow.samplers import ODESampler
from zoo.flow.uncertainty import LogVariance


class Diffusion(FlowModule):
    """Trains a denoiser or a velocity: EDM, EDM2, or flow matching (arXiv 2206.00364, 2312.02696,
    2210.02747).

    Batches are those of every module of this room: dicts with ``x``, ``label`` and ``index``, or tuples.

    Logs ``train/loss`` and ``train/mse``, the squared error per value in the space of the loss; ``val/`` and
    ``test/`` alike, with fixed draws.

    Args:
        network: F(z, t, None, label) with one time input, for example ``zoo.flow.DiT`` with
            ``two_times=False``.
        preconditioning: What the network's output means: EDM's if not given; `VelocityPrediction` for flow
            matching; `DataPrediction`.
        path: Path of the states; the preconditioning's own if not given.
        levels: Draws noise levels; EDM's if not given. On the linear path these are logit-normal times.
        loss: Where errors are squared: in the network's "output" (EDM's weight; for velocities that is the
            velocity), in the denoised "data", or in the "velocity".
        uncertainty: EDM2's learned variance of each noise level; None for none.
        label_dropout: Probability that an item trains unconditionally, for guidance.
        sampler: Steps, solver and times of `sample` and `predict`.
        compile: Compile the network for the training pass.
        optimizer: Builds the optimizer from the trainable parameters.
        lr_scheduler: Builds a schedule from the optimizer; it is stepped after every update.
        init_from: Checkpoint, or folder of runs, whose network this run starts from.
        init_weights: Which weights of ``init_from``: the average ("ema") or what the optimizer updated
            ("raw").
        seed: Seed of the draws. None takes the run's, or 0 without one.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        preconditioning: Preconditioning | None = None,
        path: Path | None = None,
        levels: LogNormalLevels | UniformLevels | None = None,
        loss: Literal["output", "data", "velocity"] = "output",
        uncertainty: LogVariance | None = None,
        label_dropout: float = 0.1,
        sampler: ODESampler = ODESampler(),
        compile: bool = False,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        lr_scheduler: LRSchedulerCallable | None = None,
        init_from: str | None = None,
        init_weights: Literal["ema", "raw"] = "ema",
        seed: int | None = None,
    ) -> None:
        super().__init__(
            network,
            preconditioning=EDMPreconditioning() if preconditioning is None else preconditioning,
            path=path,
            two_times=False,
            label_dropout=label_dropout,
            sampler=as_dataclass(ODESampler, sampler, "sampler"),
            compile=compile,
            optimizer=optimizer,
            lr_scheduler=lr_scheduler,
            init_from=init_from,
            init_weights=init_weights,
            seed=seed,
        )
        self.save_hyperparameters()
        if getattr(self.preconditioning, "boundary", 0) > 0:
            raise ValueError(
                f"{self.preconditioning} has the boundary of a consistency model: leave it 0 here"
            )
        if loss not in ("output", "data", "velocity"):
            raise ValueError(f"loss must be 'output', 'data' or 'velocity', got {loss!r}")
        self.levels = LogNormalLevels() if levels is None else levels
        self.space = loss
        self.uncertainty = uncertainty

    @override
    def _loss(self, batch: Any, batch_idx: int, stage: str, step: int) -> Tensor:
        items = self._prepare(batch, batch_idx, stage, step)
        t = items.place(self.path.time_of(self.levels(self.seed, step, items.index, f"{stage}/")))
        loss = error = diffusion_error(self.model, items, t, self.space)  # (B,)
        if self.uncertainty is not None:
            log_variance = self.uncertainty(self.path.level_of(t))
            loss = error * torch.exp(-log_variance) + log_variance
        loss, size, sync = loss.mean(), len(items.x), stage != "train"
        self.log(f"{stage}/loss", loss.detach(), batch_size=size, sync_dist=sync)
        self.log(f"{stage}/mse", error.detach().mean(), batch_size=size, sync_dist=sync, prog_bar=not sync)
        return loss
