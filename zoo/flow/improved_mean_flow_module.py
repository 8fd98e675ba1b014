"""The LightningModule `ImprovedMeanFlow`: from a batch to the loss of `zoo.flow.improved_mean_flow`."""

from functools import partial
from typing import Any, Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from zoo.flow.flow_module import FlowModule
from zoo.flow.improved_mean_flow import GuidanceDraws, improved_mean_flow_error
from zoo.flow.mean_flow import adaptive
from zoo.flow.mean_flow_module import draw_items
from zoo.flow.mean_flow_times import MeanFlowTimes
from zoo.flow.paths import LinearPath
from zoo.flow.preconditioning import Preconditioning, VelocityPrediction
from zoo.flow.samplers import sample_mean_flow
from zoo.flow.tangent import FiniteDifference, total_derivative


class ImprovedMeanFlow(FlowModule):
    """Mean flow whose target does not depend on the network, and whose guidance is chosen when sampling (Geng
    et al. 2025, arXiv 2512.02012).

    The network may know guidance (``guidance: true``; its strength and times are then drawn in training, and
    given to samples) and have a head for velocities (``velocity_depth``), as the paper's has both. With
    neither, this is mean flow along the network's own velocity at h = 0, without guidance.

    Logs ``train/loss`` (adaptively weighted: about flat by design), ``train/mse`` (the squared error of V
    behind it, per value) and ``train/velocity_mse`` (the same of the head for velocities, or where r = t);
    ``val/`` and ``test/`` alike, with fixed draws.

    Args:
        network: u(z, t, h, label) with two time inputs, for example a `zoo.flow.DiT` with ``guidance`` and
            ``velocity_depth``.
        times: Draws (t, r); null takes `MeanFlowTimes` with r = t for half of the items, as the paper does.
        guidance: Draws strength and times of guidance, for a network that knows it; `GuidanceDraws` with its
            defaults if not given.
        preconditioning: What the network's output means; a velocity if not given. Take that of the network
            you start from.
        derivative: How the derivative is taken; exactly, by forward mode, if not given.
        label_dropout: Probability that an item trains unconditionally (and without guidance).
        power: Power p of the adaptive weight 1 / (L + eps)^p; 0 for the plain squared error.
        eps: The eps of the adaptive weight.
        reduction: Whether an item's L is the sum or the mean of its squared errors.
        omega: Strength of guidance in samples; 1 is none. In training it is drawn.
        guidance_start: First time of guidance in samples.
        guidance_end: Last time of guidance in samples.
        sample_steps: Steps of the samples that `predict` makes.
        compile: Compile the network for the training pass.
        optimizer: Builds the optimizer from the trainable parameters.
        lr_scheduler: Builds a schedule from the optimizer; it is stepped after every update.
        init_from: Checkpoint, or folder of runs, whose network this run starts from; guidance has no
            effect at first, and the head for velocities a copy of its last blocks.
        init_weights: Which weights of ``init_from``: the average ("ema") or the optimizer's own ("raw").
        seed: Seed of the draws. None takes the run's, or 0 without one.
    """

    def __init__(
        self,
        network: nn.Module,
        times: MeanFlowTimes | None = None,
        guidance: GuidanceDraws | None = None,
        preconditioning: Preconditioning | None = None,
        derivative: FiniteDifference | None = None,
        label_dropout: float = 0.1,
        power: float = 1.0,
        eps: float = 0.01,
        reduction: Literal["sum", "mean"] = "sum",
        omega: float = 1.0,
        guidance_start: float = 0.0,
        guidance_end: float = 1.0,
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
        self.knows_guidance = getattr(network, "guidance_embedder", None) is not None
        if not self.knows_guidance and (guidance is not None or omega != 1):
            raise ValueError(
                f"the network knows no guidance, but omega={omega} and guidance={guidance} were given: build "
                "it with guidance=true, or leave both out"
            )
        if not omega >= 1:
            raise ValueError(f"omega must be at least 1 (1 disables guidance), got {omega}")
        if not 0 <= guidance_start <= guidance_end <= 1:
            raise ValueError(
                "guidance_start and guidance_end must satisfy 0 <= start <= end <= 1, got "
                f"{guidance_start} and {guidance_end}"
            )
        if power < 0 or eps <= 0:
            raise ValueError(f"power must be at least 0 and eps positive, got {power} and {eps}")
        if reduction not in ("sum", "mean"):
            raise ValueError(f"reduction must be 'sum' or 'mean', got {reduction!r}")
        self.times = MeanFlowTimes(prob_r_neq_t=0.5) if times is None else times
        self.draws = GuidanceDraws() if guidance is None else guidance
        self.derivative = total_derivative if derivative is None else derivative
        self.power, self.eps, self.reduction = power, eps, reduction
        self.sample_guidance = (omega, guidance_start, guidance_end)

    def _loss(self, batch: Any, batch_idx: int, stage: str, step: int) -> Tensor:
        items = draw_items(self, self.times, batch, batch_idx, stage, step)
        x, count = items.x, items.count
        given = omega = guided = None
        if self.knows_guidance:
            drawn = self.draws(self.seed, step, items.index, f"{stage}/")  # (B, 3)
            drawn[count:, 1], drawn[count:, 2] = 0.0, 1.0  # where r = t, velocities are guided at all times
            inside = (drawn[:, 1] <= items.times) & (items.times <= drawn[:, 2])
            strength = torch.where(inside, drawn[:, 0], 1.0)
            guided = ((strength > 1) & ~items.dropped).nonzero()[:, 0].to(x.device, non_blocking=True)
            given, omega = self._to_device(drawn, x.dtype), self._to_device(strength, x.dtype)
        error, velocity_error = improved_mean_flow_error(
            self.model,
            x,
            items.noise,
            items.t,
            items.h,
            items.label,
            given,
            omega,
            count,
            guided,
            self.reduction,
            self.derivative,
        )
        loss = adaptive(error, self.power, self.eps)
        if velocity_error is not None:
            loss = loss + adaptive(velocity_error, self.power, self.eps)
        self._log(stage, loss.detach().mean(), error.detach(), velocity_error, count, x[0].numel())
        return loss.mean()

    def _log(
        self, stage: str, loss: Tensor, error: Tensor, velocity_error: Tensor | None, count: int, values: int
    ) -> None:
        training, size = stage == "train", len(error)
        sync, scale = not training, 1 if self.reduction == "mean" else 1 / values
        self.log(f"{stage}/loss", loss, batch_size=size, sync_dist=sync)
        self.log(f"{stage}/mse", scale * error.mean(), batch_size=size, sync_dist=sync, prog_bar=training)
        if velocity_error is not None:
            mse = scale * velocity_error.detach().mean()
            self.log(f"{stage}/velocity_mse", mse, batch_size=size, sync_dist=sync)
        elif (
            count < size or sync
        ):  # all processes must take part in an epoch's mean, with weight 0 if need be
            still = scale * error[count:].sum() / max(size - count, 1)
            self.log(f"{stage}/velocity_mse", still, batch_size=size - count, sync_dist=sync)

    def _sample(self, index: Tensor, label: Tensor | None, steps: int, seed: int) -> Tensor:
        function: Any = self.model
        if self.knows_guidance:
            given = torch.tensor([self.sample_guidance], device=self.device).expand(len(index), -1)
            function = partial(self.model, guidance=given)
        return sample_mean_flow(function, self._noise(seed, 0, index, "sample/noise"), label, steps)
