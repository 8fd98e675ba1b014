"""The LightningModule `ConsistencyModel`: from a batch to a consistency objective's loss, and to samples."""

import copy
from typing import Any, Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from zoo.flow.consistency import consistency_target, continuous_tangent
from zoo.flow.consistency_objectives import ContinuousConsistency, DiscreteConsistency
from zoo.flow.flow_module import FlowModule, checked_levels, frozen, with_boundary
from zoo.flow.paths import Path, TrigonometricPath
from zoo.flow.preconditioned_network import PreconditionedNetwork
from zoo.flow.preconditioning import DataPrediction, EDMPreconditioning, Preconditioning
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
        sample_steps: Steps of the samples that `predict` makes.
        sample_levels: Noise levels of the first steps of samples; with more steps than levels, they are in
            geometric progression from 80 to 0.002.
        sample_boundary: Noise level up to which sampling keeps data as they are; null for that of training.
            ECT's official code trains with none and samples with 0.003.
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
        preconditioning: Preconditioning | None = None,
        objective: DiscreteConsistency | ContinuousConsistency | None = None,
        teacher: Teacher | None = None,
        path: Path | None = None,
        sigma_data: float | None = None,
        label_dropout: float = 0.0,
        sample_steps: int = 1,
        sample_levels: list[float] = [80.0, 0.8],
        sample_boundary: float | None = None,
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
        if isinstance(chosen, DataPrediction):
            raise ValueError(
                "DataPrediction does not keep clean data as they are, which a consistency model must: use "
                "EDMPreconditioning or VelocityPrediction"
            )
        scale = float(getattr(chosen, "sigma_data", 0.5)) if sigma_data is None else sigma_data
        states = path
        if isinstance(goal, ContinuousConsistency):
            if path is not None and not isinstance(path, TrigonometricPath):
                raise ValueError(f"a continuous objective trains on the trigonometric path, got path={path}")
            if getattr(chosen, "boundary", 0) > 0:
                raise ValueError(f"a continuous objective keeps data at the level 0, got {chosen}")
            states = TrigonometricPath(scale) if path is None else path
        super().__init__(
            network,
            chosen,
            states,
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
        self.objective = goal
        self.sigma_data = scale
        self._trained = 0
        self._sampling = with_boundary(chosen, sample_boundary)
        self.sample_levels = checked_levels(sample_levels)
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

    def on_fit_start(self) -> None:
        """Takes the initial weights, for the average that gives the targets too."""
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

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Remembers how far training was: a test draws the levels of that moment."""
        self._trained = int(checkpoint["global_step"])

    @property
    def progress(self) -> int:
        """Updates so far."""
        return max(self._trained, self.trainer.global_step)

    def _loss(self, batch: Any, batch_idx: int, stage: str, step: int) -> Tensor:
        x, label, index = self._unpack(batch, batch_idx)
        index = index.cpu()  # waits for the device only where the index was moved there
        if label is not None:
            label, _ = self._drop_labels(label, index, stage, step)
        noise = self._noise(self.seed, step, index, f"{stage}/noise", x.dtype)
        if isinstance(self.objective, DiscreteConsistency):
            loss, mse = self._discrete(self.objective, x, noise, label, index, stage, step)
        else:
            loss, mse = self._continuous(self.objective, x, noise, label, index, stage, step)
        training = stage == "train"
        self.log(f"{stage}/loss", loss.detach(), batch_size=len(x), sync_dist=not training)
        self.log(f"{stage}/mse", mse, batch_size=len(x), sync_dist=not training, prog_bar=training)
        return loss

    def _discrete(
        self,
        objective: DiscreteConsistency,
        x: Tensor,
        noise: Tensor,
        label: Tensor | None,
        index: Tensor,
        stage: str,
        step: int,
    ) -> tuple[Tensor, Tensor]:
        # The gap of the levels follows the training's progress, also where a validation draws fixed ones.
        levels = objective.levels(self.seed, step, index, f"{stage}/", self.progress)
        s, lower = (self._to_device(level, x.dtype) for level in levels)
        t, r = (self._to_device(self.path.time_of(level), x.dtype) for level in levels)
        model = self.model
        z = self.path.interpolate(x, noise, t)
        if self.teacher is None:
            end = self.path.interpolate(x, noise, r)
        else:
            end = self.teacher.step(self.path, z, t, r, label, objective.second_order)
        of = self.network if self.target_network is None else self.target_network
        target = consistency_target(
            PreconditionedNetwork(of, self.preconditioning, self.path), end, r, label, self.network
        )
        output = model.denoise(z, t, label)
        weights = objective.weigh(s, lower, self.sigma_data)
        loss = (weights * self._frozen["distance"](output, target)).mean()
        return loss, (output.detach() - target).square().mean()

    def _continuous(
        self,
        objective: ContinuousConsistency,
        x: Tensor,
        noise: Tensor,
        label: Tensor | None,
        index: Tensor,
        stage: str,
        step: int,
    ) -> tuple[Tensor, Tensor]:
        levels = objective.levels(self.seed, step, index, f"{stage}/")
        s, t = self._to_device(levels, x.dtype), self._to_device(self.path.time_of(levels), x.dtype)
        z = self.path.interpolate(x, noise, t)
        if self.teacher is None:
            velocity = self.path.velocity(x, noise, t)
        else:
            velocity = self.teacher.velocity(self.path, z, t, label)
        model = self.model
        output = model.velocity(z, t, label)  # sd F
        warmup = 1.0 if objective.warmup == 0 else min(1.0, self.progress / objective.warmup)
        tangent = continuous_tangent(
            model, z, t, output.detach(), velocity, label, objective.derivative, warmup, objective.eps
        )
        sd = self.path.sigma_data  # type: ignore[attr-defined]
        error = (output / sd - (output / sd + tangent).detach()).square().flatten(1).mean(1)  # (B,)
        weights = 1 / s if objective.weight == "noise" else torch.ones_like(s)
        loss = weights * error
        if self.uncertainty is not None:
            log_variance = self.uncertainty(s)
            loss = loss * torch.exp(-log_variance) + log_variance
        return loss.mean(), error.detach().mean()

    def _sample(self, index: Tensor, label: Tensor | None, steps: int, seed: int) -> Tensor:
        return self._sample_consistency(index, label, steps, seed, self.sample_levels, self._sampling)
