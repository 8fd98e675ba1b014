"""The LightningModule `Diffusion`: denoising score matching and flow matching, the first stage of all others.

One loss serves them: the squared error of the network's output F against the output at which the model would
be right (`Preconditioning.target`).

* EDM (Karras et al. 2022, arXiv 2206.00364): F with unit weight *is* the loss lambda(s) |D - x|^2 with
  lambda = (s^2 + sd^2) / (s sd)^2, since lambda c_out^2 = 1; the target is written without dividing by the
  noise.
* EDM2 (Karras et al. 2023, arXiv 2312.02696): the same over a learned variance of each noise level.
* flow matching (Lipman et al. 2022, arXiv 2210.02747): the velocity e - x.
"""

from typing import Any, Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from zoo.flow.flow_module import FlowModule
from zoo.flow.mean_flow import squared_error
from zoo.flow.noise_levels import LogNormalLevels, UniformLevels
from zoo.flow.paths import Path
from zoo.flow.preconditioning import EDMPreconditioning, Preconditioning
from zoo.flow.solvers import Solver, default_solver, integrate
from zoo.flow.time_grids import Grid, default_grid
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
        solver: Solver of `sample`; DPM-Solver++ if not given.
        grid: Its times, from noise to data.
        sample_steps: Steps of the samples that `predict` makes.
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
        preconditioning: Preconditioning | None = None,
        path: Path | None = None,
        levels: LogNormalLevels | UniformLevels | None = None,
        loss: Literal["output", "data", "velocity"] = "output",
        uncertainty: LogVariance | None = None,
        label_dropout: float = 0.1,
        solver: Solver | None = None,
        grid: Grid | None = None,
        sample_steps: int = 12,
        compile: bool = False,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        lr_scheduler: LRSchedulerCallable | None = None,
        init_from: str | None = None,
        init_weights: Literal["ema", "raw"] = "ema",
        seed: int | None = None,
    ) -> None:
        super().__init__(
            network,
            EDMPreconditioning() if preconditioning is None else preconditioning,
            path,
            False,
            label_dropout,
            sample_steps,
            compile,
            optimizer,
            lr_scheduler,
            init_from,
            init_weights,
            seed,
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
        self.solver, self.grid = solver, grid

    def _loss(self, batch: Any, batch_idx: int, stage: str, step: int) -> Tensor:
        x, label, index = self._unpack(batch, batch_idx)
        index = index.cpu()  # waits for the device only where the index was moved there
        if label is not None:
            label, _ = self._drop_labels(label, index, stage, step)
        t = self._to_device(self.path.time_of(self.levels(self.seed, step, index, f"{stage}/")), x.dtype)
        noise = self._noise(self.seed, step, index, f"{stage}/noise", x.dtype)
        model = self.model
        z = self.path.interpolate(x, noise, t)
        target = self.preconditioning.target(self.path, x, noise, t)
        error = squared_error(model.output(z, t, None, label), target, "mean")  # (B,)
        if self.space != "output":
            preconditioning = self.preconditioning
            _, out = (preconditioning.denoiser if self.space == "data" else preconditioning.velocity)(
                self.path, t
            )
            error = error if out is None else error * out.square()
        loss = error
        if self.uncertainty is not None:
            log_variance = self.uncertainty(self.path.level_of(t))
            loss = error * torch.exp(-log_variance) + log_variance
        loss = loss.mean()
        sync = stage != "train"
        self.log(f"{stage}/loss", loss.detach(), batch_size=len(x), sync_dist=sync)
        self.log(f"{stage}/mse", error.detach().mean(), batch_size=len(x), sync_dist=sync, prog_bar=not sync)
        return loss

    def _sample(self, index: Tensor, label: Tensor | None, steps: int, seed: int) -> Tensor:
        times = (default_grid(self.path) if self.grid is None else self.grid)(steps, self.path)
        solver = default_solver(steps) if self.solver is None else self.solver
        noise = self._noise(seed, 0, index, "sample/noise")
        return integrate(self.model, solver, float(self.path.sigma(times[0])) * noise, times, label)
