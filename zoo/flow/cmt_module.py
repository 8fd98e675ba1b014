"""The LightningModule `CMT`: consistency mid-training, between diffusion and few-step training."""

from typing import Any, Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from typing_extensions import override

from zoo.base import as_dataclass
from zoo.flow.cmt import TrajectoryDraws, draw_pairs, mid_training_error
from zoo.flow.cmt_checks import check_student_arguments
from zoo.flow.distances import SquaredDistance
from zoo.flow.frozen_module import frozen
from zoo.flow.paths import LinearPath
from zoo.flow.preconditioning import EDMPreconditioning, Preconditioning, VelocityPrediction
from zoo.flow.samplers import ConsistencySampler, MeanFlowSampler
from zoo.flow.teacher import Teacher
from zoo.flow.trajectory_module import Counts, TrajectoryModule


class CMT(TrajectoryModule):
    """Consistency mid-training (arXiv 2509.24526): the student learns the teacher's trajectories.

    A network with one time input becomes a consistency student on the preconditioning's own path, one with
    two a mean-flow student on the linear path. Start it from the teacher's weights (``init_from``); the
    second time input is then zero-initialized, so the student is the teacher.

    Every item of a batch starts one trajectory from the prior, which needs no data: of a batch only ``label``
    (where the network has classes) and ``index`` are used, unless ``trajectories.start`` is "data".

    Trajectories may also be solved once and learned from many times: `zoo predict` with
    ``predict="trajectories"`` and the callback `TrajectoryWriter` stores what the teacher makes, and the
    datamodule `Trajectories` gives it back. Batches that carry ``states`` (B, M + 1, ...), the solver's
    ``times``, the ``path`` they live on, ``index`` and ``label`` need no teacher. Their labels are those that
    the teacher was given; ``label_dropout`` had its turn there and is left out.

    Logs ``train/loss`` and counts, over all processes and since the start: ``train/pairs`` (what papers call
    images seen), ``train/trajectories`` and ``train/teacher_calls`` (network evaluations on one item).

    Args:
        network: F(z, t, h, label), with ``two_times`` for a mean-flow student.
        teacher: The frozen model with its solver. It may be left out, and is not called, where batches carry
            trajectories.
        preconditioning: What the network's output means; it must be the teacher's for the student to start as
            the teacher. EDM's if not given, or `VelocityPrediction` for a network with two time inputs.
        trajectories: Where trajectories start, and how many pairs of states of each are learned.
        distance: d of the consistency loss, a module from two (N, ...) to (N,); the squared distance if not
            given. Mean-flow students always take the squared one.
        label_dropout: Probability that a trajectory is made, and learned, unconditionally.
        predict: What `zoo predict` makes: "samples" of the student, or "trajectories" of the teacher, those
            of the first update of a training on the same items.
        sampler: How `sample` and `predict` draw; a mean-flow student takes its steps alone.
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
        teacher: Teacher | None = None,
        *,
        preconditioning: Preconditioning | None = None,
        trajectories: TrajectoryDraws = TrajectoryDraws(),
        distance: nn.Module | None = None,
        label_dropout: float = 0.1,
        predict: Literal["samples", "trajectories"] = "samples",
        sampler: ConsistencySampler = ConsistencySampler(),
        compile: bool = False,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        lr_scheduler: LRSchedulerCallable | None = None,
        init_from: str | None = None,
        init_weights: Literal["ema", "raw"] = "ema",
        seed: int | None = None,
    ) -> None:
        two_times = bool(getattr(network, "two_times", False))
        # Arguments keep their values here: what a checkpoint keeps is what was given.
        default = VelocityPrediction() if two_times else EDMPreconditioning()
        chosen = as_dataclass(ConsistencySampler, sampler, "sampler")
        super().__init__(
            network,
            preconditioning=default if preconditioning is None else preconditioning,
            path=LinearPath() if two_times else None,
            label_dropout=label_dropout,
            sampler=MeanFlowSampler(chosen.steps) if two_times else chosen,
            compile=compile,
            optimizer=optimizer,
            lr_scheduler=lr_scheduler,
            init_from=init_from,
            init_weights=init_weights,
            seed=seed,
        )
        self.save_hyperparameters()
        check_student_arguments(two_times, distance, chosen, predict, teacher)
        chosen.preconditioning(self.preconditioning)  # refuses a boundary that it does not have
        self.two_times, self.predict = two_times, predict
        self.trajectories = as_dataclass(TrajectoryDraws, trajectories, "trajectories")
        self.needs_data = self.trajectories.start == "data"
        if teacher is not None:
            self.trajectories.check(teacher.steps, two_times)
            self._frozen["teacher"] = teacher
        if not two_times:
            self._frozen["distance"] = frozen(SquaredDistance() if distance is None else distance)
        self._counts = Counts()

    @override
    def setup(self, stage: str) -> None:
        """Checks the teacher, or the stored trajectories, against the student; loads the distance's weights.

        Raises:
            ValueError: there is neither, or it does not fit; or a weight file is missing.
        """
        super().setup(stage)
        load = getattr(self._frozen.get("distance"), "load", None)
        if load is not None and stage != "predict":
            load()

    @override
    def _loss(self, batch: Any, batch_idx: int, stage: str, step: int) -> Tensor:
        trajectory, label, index = self._trajectories(batch, batch_idx, stage, step)
        places = index.to(self.device, non_blocking=True)
        steps, pairs = len(trajectory.times) - 1, self.trajectories.pairs
        i, j = draw_pairs(self.seed, step, places, steps, self.two_times, pairs, f"{stage}/")  # (B, K) twice
        distance = self._frozen.get("distance")
        loss = mid_training_error(self.model, trajectory, i, j, label, distance=distance).mean()
        training, size = stage == "train", i.numel()
        self.log(f"{stage}/loss", loss.detach(), batch_size=size, sync_dist=not training, prog_bar=training)
        if training:
            trajectories = len(index) * self.trainer.world_size
            self._counts.add(trajectories, pairs=i.shape[1], calls=self._teacher_calls(batch))
            for name, count in vars(self._counts).items():
                self.log(f"train/{name}", float(count), batch_size=1)
        return loss

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["flow"]["counts"] = dict(vars(self._counts))

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._counts = Counts(**checkpoint.get("flow", {}).get("counts", {}))
