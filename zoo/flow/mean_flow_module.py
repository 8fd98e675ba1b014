"""The LightningModule `MeanFlow`: from a batch to the loss of `zoo.flow.mean_flow`, and to samples."""

from functools import partial
from typing import Any, Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from typing_extensions import override

from zoo.base import as_dataclass
from zoo.flow.flow_module import FlowModule
from zoo.flow.mean_flow import Guidance, MeanFlowTarget, mean_flow_error
from zoo.flow.mean_flow_times import MeanFlowTimes
from zoo.flow.paths import LinearPath
from zoo.flow.preconditioning import Preconditioning, VelocityPrediction
from zoo.flow.samplers import MeanFlowSampler
from zoo.flow.tangent import total_derivative
from zoo.flow.weighting import AdaptiveWeighting


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
        target: What the mean velocity regresses on: a teacher in place of the data, tangent and derivative.
        guidance: Guidance of the data's velocity; a teacher has its own.
        weighting: The adaptive weight of an item's squared error.
        label_dropout: Probability that an item trains unconditionally (and without guidance).
        sampler: How `sample` and `predict` draw.
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
        times: MeanFlowTimes | None = None,
        preconditioning: Preconditioning | None = None,
        target: MeanFlowTarget = MeanFlowTarget(),
        guidance: Guidance = Guidance(),
        weighting: AdaptiveWeighting = AdaptiveWeighting(),
        label_dropout: float = 0.1,
        sampler: MeanFlowSampler = MeanFlowSampler(),
        compile: bool = False,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        lr_scheduler: LRSchedulerCallable | None = None,
        init_from: str | None = None,
        init_weights: Literal["ema", "raw"] = "ema",
        seed: int | None = None,
    ) -> None:
        super().__init__(
            network,
            preconditioning=VelocityPrediction() if preconditioning is None else preconditioning,
            path=LinearPath(),
            two_times=True,
            label_dropout=label_dropout,
            sampler=as_dataclass(MeanFlowSampler, sampler, "sampler"),
            compile=compile,
            optimizer=optimizer,
            lr_scheduler=lr_scheduler,
            init_from=init_from,
            init_weights=init_weights,
            seed=seed,
        )
        self.save_hyperparameters()
        self.times = MeanFlowTimes() if times is None else times
        self.target = as_dataclass(MeanFlowTarget, target, "target")
        self.guidance = as_dataclass(Guidance, guidance, "guidance")
        self.weighting = as_dataclass(AdaptiveWeighting, weighting, "weighting")
        if self.target.teacher is not None:
            self._frozen["teacher"] = self.target.teacher
        if self.guidance.active:
            self._check_guidance()

    def _check_guidance(self) -> None:
        given = f"guidance.omega={self.guidance.omega}, guidance.kappa={self.guidance.kappa}"
        if self.teacher is not None:
            raise ValueError(
                f"{given} guides the data's velocity, but the velocities come from the teacher: guide the "
                "teacher (its own omega), and leave omega=1 and kappa=0 here"
            )
        if self.num_classes is None:
            raise ValueError(
                f"{given} asks for guidance, but the network has no classes: give it num_classes, or leave "
                "omega=1 and kappa=0"
            )

    def probe(self, batch: Any) -> Tensor:
        """The velocity (B, ...) of a batch with noise of levels from .1 to 10: one plain call of the network.

        For callbacks that look inside, and whose ``probe`` names this method (`zoo.callbacks.SinkLogger`).
        """
        x, label, index = self._unpack(batch, 0, data=True)
        noise = self._noise(self.seed, 0, index, "probe/noise", x.dtype)
        t = self.path.time_of(torch.logspace(-1, 1, len(x), dtype=x.dtype, device=x.device))
        return self.model(self.path.interpolate(x, noise, t), t, None, label)

    @override
    def _loss(self, batch: Any, batch_idx: int, stage: str, step: int) -> Tensor:
        items = self._prepare(batch, batch_idx, stage, step, self.times)
        teacher, derivative = self.teacher, self.target.derivative
        error = mean_flow_error(
            self._sampling_model(),
            items,
            guidance=self.guidance,
            teacher=None if teacher is None else partial(teacher.velocity, self.path),
            tangent=self.target.tangent,
            derivative=total_derivative if derivative is None else derivative,
            reduction=self.weighting.reduction,
        )  # (B,)
        loss = self.weighting(error).mean()
        per_value = (
            error.detach() if self.weighting.reduction == "mean" else error.detach() / items.x[0].numel()
        )
        self._log(stage, loss.detach(), per_value, items.count or 0)
        return loss

    @override
    def _sampling_model(self) -> nn.Module:
        # u(z, t, h, label): the network itself, where its output already is the velocity.
        is_velocity = isinstance(self.preconditioning, VelocityPrediction)
        return self.network if is_velocity else self.model

    def _log(self, stage: str, loss: Tensor, error: Tensor, count: int) -> None:
        training, size = stage == "train", len(error)
        sync = not training
        self.log(f"{stage}/loss", loss, batch_size=size, sync_dist=sync)
        self.log(f"{stage}/mse", error.mean(), batch_size=size, sync_dist=sync, prog_bar=training)
        if count < size or sync:  # all processes must take part in an epoch's mean, with weight 0 if need be
            still = error[count:].sum() / max(size - count, 1)
            self.log(f"{stage}/velocity_mse", still, batch_size=size - count, sync_dist=sync)
