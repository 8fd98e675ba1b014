"""The LightningModule `ConsistencyModel`: from a batch to a consistency objective's loss, and to samples."""

import copy
from typing import Any, Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from typing_extensions import override

from zoo.base import as_dataclass
from zoo.flow.consistency_losses import continuous_loss, discrete_loss
from zoo.flow.consistency_objectives import ContinuousConsistency, DiscreteConsistency, objective_path
from zoo.flow.flow_module import FlowModule
from zoo.flow.frozen_module import frozen
from zoo.flow.paths import Path
from zoo.flow.preconditioning import EDMPreconditioning, Preconditioning
from zoo.flow.samplers import ConsistencySampler
from zoo.flow.teacher import Teacher


class ConsistencyModel(FlowModule):
    """Trains f(z, t) to map a state to the end of its trajectory: CT, iCT, ECT, sCT; or CD, ECD, sCD.

    Logs ``train/loss`` and ``train/mse``, the mean square of f(z_t, t) less its target for a discrete
    objective; ``val/`` and ``test/`` alike, with fixed draws.

    Args:
        network: F(z, t, None, label) with one time input.
        preconditioning: What the network's output means; EDM's if not given. It must keep clean data.
        objective: `DiscreteConsistency`, ECT by default, or `ContinuousConsistency`.
        teacher: A frozen model, for distillation; None trains from data alone.
        path: Path of the states of a discrete objective; the preconditioning's own if not given. A continuous
            one always takes the trigonometric path.
        sigma_data: Standard deviation of the data's values, for the trigonometric path and the "edm" weight;
            the preconditioning's if it has one, else 0.5.
        label_dropout: Probability that an item trains unconditionally.
        sampler: How `sample` and `predict` draw.
        compile: Compile the network for the training pass.
        optimizer: Builds the optimizer from the trainable parameters.
        lr_scheduler: Builds a schedule from the optimizer; it is stepped after every update.
        init_from: Checkpoint, or folder of runs, whose network this run starts from.
        init_weights: Which weights of ``init_from``: the average ("ema") or the optimizer's own ("raw").
        seed: Seed of the draws. None takes the run's, or 0 without one.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        preconditioning: Preconditioning | None = None,
        objective: DiscreteConsistency | ContinuousConsistency | None = None,
        teacher: Teacher | None = None,
        path: Path | None = None,
        sigma_data: float | None = None,
        label_dropout: float = 0.0,
        sampler: ConsistencySampler = ConsistencySampler(),
        compile: bool = False,
        optimizer: OptimizerCallable = torch.optim.RAdam,
        lr_scheduler: LRSchedulerCallable | None = None,
        init_from: str | None = None,
        init_weights: Literal["ema", "raw"] = "ema",
        seed: int | None = None,
    ) -> None:
        # Arguments keep their values here: what a checkpoint keeps is what was given.
        chosen = EDMPreconditioning() if preconditioning is None else preconditioning
        goal = DiscreteConsistency() if objective is None else objective
        drawn = as_dataclass(ConsistencySampler, sampler, "sampler")
        drawn.preconditioning(chosen)  # refuses a boundary that it does not have
        scale = float(getattr(chosen, "sigma_data", 0.5)) if sigma_data is None else sigma_data
        super().__init__(
            network,
            preconditioning=chosen,
            path=objective_path(goal, chosen, path, scale),
            two_times=False,
            label_dropout=label_dropout,
            sampler=drawn,
            compile=compile,
            optimizer=optimizer,
            lr_scheduler=lr_scheduler,
            init_from=init_from,
            init_weights=init_weights,
            seed=seed,
        )
        self.save_hyperparameters()
        self.objective = goal
        self.sigma_data = scale
        self._trained = 0
        if teacher is not None:
            self._frozen["teacher"] = teacher
        self.target_network: nn.Module | None = None
        self.uncertainty: nn.Module | None = None
        if isinstance(goal, DiscreteConsistency):
            self._frozen["distance"] = frozen(goal.distance)
            if goal.target_decay is not None:
                self.target_network = copy.deepcopy(network).requires_grad_(False)
        else:
            self.uncertainty = goal.uncertainty

    @override
    def on_fit_start(self) -> None:
        super().on_fit_start()
        if self.target_network is not None and self.trainer.ckpt_path is None:
            self.target_network.load_state_dict(self.network.state_dict())

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """The update, after which the average that gives the targets moves."""
        super().optimizer_step(*args, **kwargs)
        if self.target_network is None or not isinstance(self.objective, DiscreteConsistency):
            return
        decay = self.objective.decay(self.progress)
        with torch.no_grad():
            averages = tuple(self.target_network.parameters())
            torch._foreach_lerp_(averages, tuple(self.network.parameters()), 1 - decay)

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Remembers how far training was: a test draws the levels of that moment."""
        self._trained = int(checkpoint["global_step"])

    @property
    def progress(self) -> int:
        """Updates so far."""
        return max(self._trained, self.trainer.global_step)

    @override
    def _loss(self, batch: Any, batch_idx: int, stage: str, step: int) -> Tensor:
        items = self._prepare(batch, batch_idx, stage, step)
        draws = (self.seed, step, items.index, f"{stage}/")
        if isinstance(self.objective, DiscreteConsistency):
            loss, mse = discrete_loss(
                self.model,
                items,
                self.objective,
                # Their gap follows the training's progress, also where a validation draws fixed ones.
                self.objective.levels(*draws, self.progress),
                teacher=self.teacher,
                target_network=self.target_network,
                distance=self._frozen["distance"],
                sigma_data=self.sigma_data,
            )
        else:
            loss, mse = continuous_loss(
                self.model,
                items,
                self.objective,
                self.objective.levels(*draws),
                teacher=self.teacher,
                uncertainty=self.uncertainty,
                progress=self.progress,
            )
        training, size = stage == "train", len(items.x)
        self.log(f"{stage}/loss", loss.detach(), batch_size=size, sync_dist=not training)
        self.log(f"{stage}/mse", mse, batch_size=size, sync_dist=not training, prog_bar=training)
        return loss
