"""The LightningModule `MeanFlow`: from a batch to the loss of `zoo.flow.mean_flow`, and to samples."""

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from zoo.flow.flow_module import FlowModule
from zoo.flow.mean_flow import adaptive, mean_flow_error
from zoo.flow.mean_flow_times import MeanFlowTimes
from zoo.flow.paths import LinearPath
from zoo.flow.preconditioning import Preconditioning, VelocityPrediction
from zoo.flow.samplers import sample_mean_flow
from zoo.flow.tangent import FiniteDifference, total_derivative
from zoo.flow.teacher import Teacher


@dataclass(frozen=True)
class FlowBatch:
    """A batch with its draws, those with a derivative first.

    Attributes:
        x: Data (B, ...).
        noise: Standard normal (B, ...).
        t: Times (B,).
        h: Steps t - r (B,).
        label: Classes (B,) of which some were dropped, or None.
        count: How many items have h > 0.
        index: Numbers of the items (B,), on the CPU.
        times: Times (B,) in float64, on the CPU.
        dropped: Which labels were dropped (B,), on the CPU; none without classes.
    """

    x: Tensor
    noise: Tensor
    t: Tensor
    h: Tensor
    label: Tensor | None
    count: int
    index: Tensor
    times: Tensor
    dropped: Tensor


def draw_items(
    module: FlowModule, times: MeanFlowTimes, batch: Any, batch_idx: int, stage: str, step: int
) -> FlowBatch:
    """What a loss of mean flow needs of a batch; what is counted is counted on the CPU, without a sync."""
    x, label, index = module._unpack(batch, batch_idx)
    index = index.cpu()  # waits for the device only where the index was moved there
    t, r = times(module.seed, step, index, f"{stage}/")
    order = (r < t).argsort(descending=True, stable=True)
    count = int((r < t).sum())
    t, r, index = t[order], r[order], index[order]
    rows = order.to(x.device, non_blocking=True)
    x = x[rows]
    noise = module._noise(module.seed, step, index, f"{stage}/noise", x.dtype)
    dropped = torch.zeros(len(index), dtype=torch.bool)
    if label is not None:
        label, dropped = module._drop_labels(label[rows], index, stage, step)
    moved = module._to_device(t, x.dtype), module._to_device(t - r, x.dtype)
    return FlowBatch(x, noise, *moved, label, count, index, t, dropped)


class MeanFlow(FlowModule):
    """Trains a network to jump from noise to data in one step, or in a few (Geng et al. 2025, arXiv
    2505.13447).

    Batches are dicts with ``x`` (B, ...), ``label`` (B,) if the network has classes, and ``index`` (B,), the
    global index of each item, on which all draws depend. Tuples ``(x,)`` and ``(x, label)`` work too: their
    items are then numbered by place (batch, process, position), so draws depend on the batch size and the
    number of processes.

    Logs ``train/loss`` (adaptively weighted: about flat by design), ``train/mse`` (the squared error behind
    it, per value) and ``train/velocity_mse`` (the same where r = t); ``val/`` and ``test/`` alike, with fixed
    draws.

    Args:
        network: u(z, t, h, label) with attributes ``shape`` and ``num_classes``, for example `zoo.flow.DiT`.
        times: Draws (t, r); null takes `MeanFlowTimes` with its defaults, the paper's for ImageNet.
        preconditioning: What the network's output means; a velocity if not given. Take that of the network
            you start from.
        teacher: A frozen model whose (guided) velocities take the place of the data's e - x, as in MFD: the
            target has no variance then. None trains from data, as in MFT.
        tangent: Along what the derivative is taken: the velocity that is learned ("data"), or the network's
            own velocity at h = 0 ("network"), as in improved mean flow.
        derivative: How it is taken; exactly, by forward mode, if not given.
        omega: Guidance: share of the data's velocity. 1 with kappa 0 disables guidance.
        kappa: Guidance: share of the network's own conditional velocity; the effective scale is omega / (1 -
            kappa).
        guidance_start: Guide only where t is at least this.
        guidance_end: Guide only where t is at most this.
        label_dropout: Probability that an item trains unconditionally (and without guidance).
        power: Power p of the adaptive weight 1 / (L + eps)^p; 0 for the plain squared error. The weight
            follows each item's own error, so over few values (points rather than images) it draws the
            average velocity towards a median: use 0 where the exact flow matters.
        eps: The eps of the adaptive weight.
        reduction: Whether an item's L is the sum or the mean of its squared errors.
        sample_steps: Steps of the samples that `predict` makes.
        compile: Compile the network for the training pass.
        optimizer: Builds the optimizer from the trainable parameters.
        lr_scheduler: Builds a schedule from the optimizer; it is stepped after every update.
        init_from: Checkpoint whose weights this run starts from.
        init_weights: Which weights of ``init_from``: the average ("ema") or what the optimizer updated
            ("raw").
        seed: Seed of the draws. None takes the run's, or 0 without one.
    """

    def __init__(
        self,
        network: nn.Module,
        times: MeanFlowTimes | None = None,
        preconditioning: Preconditioning | None = None,
        teacher: Teacher | None = None,
        tangent: Literal["data", "network"] = "data",
        derivative: FiniteDifference | None = None,
        omega: float = 1.0,
        kappa: float = 0.0,
        guidance_start: float = 0.0,
        guidance_end: float = 1.0,
        label_dropout: float = 0.1,
        power: float = 1.0,
        eps: float = 0.01,
        reduction: Literal["sum", "mean"] = "sum",
        sample_steps: int = 1,
        compile: bool = False,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        lr_scheduler: LRSchedulerCallable | None = None,
        init_from: str | None = None,
        init_weights: Literal["ema", "raw"] = "ema",
        seed: int | None = None,
    ) -> None:
        super().__init__(
            network,
            VelocityPrediction() if preconditioning is None else preconditioning,
            LinearPath(),
            True,
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
        self.times = MeanFlowTimes() if times is None else times
        self.omega, self.kappa = omega, kappa
        self.guidance_start, self.guidance_end = guidance_start, guidance_end
        self.power, self.eps, self.reduction = power, eps, reduction
        self.derivative = total_derivative if derivative is None else derivative
        self.tangent: Literal["data", "network"] = tangent
        if teacher is not None:
            self._frozen["teacher"] = teacher
        self._check()

    def _check(self) -> None:
        if self.tangent not in ("data", "network"):
            raise ValueError(f"tangent must be 'data' or 'network', got {self.tangent!r}")
        if self.teacher is not None and self.guided:
            raise ValueError(
                f"omega={self.omega}, kappa={self.kappa} guides the data's velocity, but the velocities come "
                "from the teacher: guide the teacher (its own omega), and leave omega=1 and kappa=0 here"
            )
        if self.power < 0:
            raise ValueError(f"power must be at least 0 (0 for the plain squared error), got {self.power}")
        if self.eps <= 0:
            raise ValueError(
                f"eps must be positive (it keeps the weight of a perfect item finite), got {self.eps}"
            )
        if self.reduction not in ("sum", "mean"):
            raise ValueError(f"reduction must be 'sum' or 'mean', got {self.reduction!r}")
        if not 0 <= self.guidance_start <= self.guidance_end <= 1:
            raise ValueError(
                "guidance_start and guidance_end must satisfy 0 <= start <= end <= 1, got "
                f"{self.guidance_start} and {self.guidance_end}"
            )
        if self.guided and self.num_classes is None:
            raise ValueError(
                f"omega={self.omega}, kappa={self.kappa} asks for guidance, but the network has "
                "no classes: give it num_classes, or leave omega=1 and kappa=0"
            )

    @property
    def guided(self) -> bool:
        """Whether the target is guided at all."""
        return self.omega != 1 or self.kappa != 0

    def _loss(self, batch: Any, batch_idx: int, stage: str, step: int) -> Tensor:
        items = draw_items(self, self.times, batch, batch_idx, stage, step)
        guided = None
        if self.guided:
            t = items.times
            inside = (self.guidance_start <= t) & (t <= self.guidance_end) & ~items.dropped
            guided = inside.nonzero()[:, 0].to(items.x.device, non_blocking=True)
        teacher = self.teacher
        error = mean_flow_error(
            self._mean_velocity(),
            items.x,
            items.noise,
            items.t,
            items.h,
            items.label,
            items.count,
            guided,
            self.omega,
            self.kappa,
            self.reduction,
            None if teacher is None else partial(teacher.velocity, self.path),
            self.tangent,
            self.derivative,
        )  # (B,)
        loss = adaptive(error, self.power, self.eps).mean()
        per_value = error.detach() if self.reduction == "mean" else error.detach() / items.x[0].numel()
        self._log(stage, loss.detach(), per_value, items.count)
        return loss

    def _mean_velocity(self) -> nn.Module:
        """u(z, t, h, label): the network itself, where its output already is the velocity."""
        at_home = isinstance(self.preconditioning, VelocityPrediction)
        return self.network if at_home else self.model

    def _sample(self, index: Tensor, label: Tensor | None, steps: int, seed: int) -> Tensor:
        return sample_mean_flow(
            self._mean_velocity(), self._noise(seed, 0, index, "sample/noise"), label, steps
        )

    def _log(self, stage: str, loss: Tensor, error: Tensor, count: int) -> None:
        training, size = stage == "train", len(error)
        sync = not training
        self.log(f"{stage}/loss", loss, batch_size=size, sync_dist=sync)
        self.log(f"{stage}/mse", error.mean(), batch_size=size, sync_dist=sync, prog_bar=training)
        if count < size or sync:  # all processes must take part in an epoch's mean, with weight 0 if need be
            still = error[count:].sum() / max(size - count, 1)
            self.log(f"{stage}/velocity_mse", still, batch_size=size - count, sync_dist=sync)
