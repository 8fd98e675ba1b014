"""The LightningModule `ImprovedMeanFlow`: from a batch to the loss of `zoo.flow.improved_mean_flow`."""

from typing import Any, Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from typing_extensions import override

from zoo.base import as_dataclass
from zoo.flow.flow_module import FlowModule
from zoo.flow.improved_mean_flow import (
    GuidanceDraws,
    GuidedMeanFlowSampler,
    improved_mean_flow_error,
    knows_guidance,
)
from zoo.flow.mean_flow_times import MeanFlowTimes
from zoo.flow.paths import LinearPath
from zoo.flow.preconditioning import Preconditioning, VelocityPrediction
from zoo.flow.tangent import FiniteDifference, total_derivative
from zoo.flow.weighting import AdaptiveWeighting


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
        weighting: The adaptive weight of an item's squared errors.
        sampler: How `sample` and `predict` draw, and how strongly they are guided.
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
        *,
        times: MeanFlowTimes | None = None,
        guidance: GuidanceDraws | None = None,
        preconditioning: Preconditioning | None = None,
        derivative: FiniteDifference | None = None,
        label_dropout: float = 0.1,
        weighting: AdaptiveWeighting = AdaptiveWeighting(),
        sampler: GuidedMeanFlowSampler = GuidedMeanFlowSampler(),
        compile: bool = False,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        lr_scheduler: LRSchedulerCallable | None = None,
        init_from: str | None = None,
        init_weights: Literal["ema", "raw"] = "ema",
        seed: int | None = None,
    ) -> None:
        sampler = as_dataclass(GuidedMeanFlowSampler, sampler, "sampler")
        super().__init__(
            network,
            preconditioning=VelocityPrediction() if preconditioning is None else preconditioning,
            path=LinearPath(),
            two_times=True,
            label_dropout=label_dropout,
            sampler=sampler,
            compile=compile,
            optimizer=optimizer,
            lr_scheduler=lr_scheduler,
            init_from=init_from,
            init_weights=init_weights,
            seed=seed,
        )
        self.save_hyperparameters()
        if not knows_guidance(network) and (guidance is not None or sampler.omega != 1):
            raise ValueError(
                f"the network knows no guidance, but sampler.omega={sampler.omega} and guidance={guidance} "
                "were given: build it with guidance=true, or leave both out"
            )
        self.times = MeanFlowTimes(prob_r_neq_t=0.5) if times is None else times
        self.draws = GuidanceDraws() if guidance is None else guidance
        self.derivative = total_derivative if derivative is None else derivative
        self.weighting = as_dataclass(AdaptiveWeighting, weighting, "weighting")

    @override
    def _loss(self, batch: Any, batch_idx: int, stage: str, step: int) -> Tensor:
        items = self._prepare(batch, batch_idx, stage, step, self.times)
        guidance, count = None, items.count or 0
        if knows_guidance(self.network):
            guidance = self.draws(self.seed, step, items.index, f"{stage}/")  # (B, 3)
            # Where r = t, velocities are guided at all times.
            guidance[count:, 1], guidance[count:, 2] = 0.0, 1.0
        error, velocity_error = improved_mean_flow_error(
            self.model,
            items,
            guidance=guidance,
            derivative=self.derivative,
            reduction=self.weighting.reduction,
        )  # (B,) each
        loss = self.weighting(error)
        if velocity_error is not None:
            loss = loss + self.weighting(velocity_error)
        self._log(stage, loss.detach().mean(), error.detach(), velocity_error, count, items.x[0].numel())
        return loss.mean()

    def _log(
        self, stage: str, loss: Tensor, error: Tensor, velocity_error: Tensor | None, count: int, values: int
    ) -> None:
        training, size = stage == "train", len(error)
        sync, scale = not training, 1 if self.weighting.reduction == "mean" else 1 / values
        self.log(f"{stage}/loss", loss, batch_size=size, sync_dist=sync)
        self.log(f"{stage}/mse", scale * error.mean(), batch_size=size, sync_dist=sync, prog_bar=training)
        if velocity_error is not None:
            mse = scale * velocity_error.detach().mean()
            self.log(f"{stage}/velocity_mse", mse, batch_size=size, sync_dist=sync)
        elif count < size or sync:
            # All processes must take part in an epoch's mean, with weight 0 if need be.
            still = scale * error[count:].sum() / max(size - count, 1)
            self.log(f"{stage}/velocity_mse", still, batch_size=size - count, sync_dist=sync)
