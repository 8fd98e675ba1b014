"""The LightningModule `CMT`: consistency mid-training, between diffusion and few-step training."""

from typing import Any, Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from zoo.events import record
from zoo.flow.cmt import (
    consistency_error,
    draw_pairs,
    mean_flow_pair_error,
    pair_count,
    take_pairs,
    take_states,
)
from zoo.flow.distances import SquaredDistance
from zoo.flow.flow_module import FlowModule, checked_levels, frozen, with_boundary
from zoo.flow.paths import LinearPath
from zoo.flow.preconditioning import EDMPreconditioning, Preconditioning, VelocityPrediction
from zoo.flow.samplers import sample_mean_flow
from zoo.flow.solvers import Trajectory
from zoo.flow.teacher import Teacher
from zoo.flow.trajectories import StoredTrajectories, batch_trajectory, origin


class CMT(FlowModule):
    """Consistency mid-training (arXiv 2509.24526): the student learns the teacher's trajectories.

    A network with one time input becomes a consistency student on the preconditioning's own path, one with
    two a mean-flow student on the linear path. Start it from the teacher's weights (``init_from``); the
    second time input is then zero-initialized, so the student is the teacher.

    Every item of a batch starts one trajectory from the prior, which needs no data: of a batch only ``label``
    (where the network has classes) and ``index`` are used, unless ``start`` is "data".

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
        pairs_per_trajectory: Pairs drawn from each trajectory; null takes all M, or M (M + 1) / 2.
        distance: d of the consistency loss, a module from two (N, ...) to (N,); the squared distance if not
            given. Mean-flow students always take the squared one.
        start: Where trajectories start: at the "prior", as in the paper, or at "data" with noise, as in its
            official code.
        label_dropout: Probability that a trajectory is made, and learned, unconditionally.
        predict: What `zoo predict` makes: "samples" of the student, or "trajectories" of the teacher, those
            of the first update of a training on the same items.
        sample_steps: Steps of the samples that `predict` makes.
        sample_levels: Noise levels of the first steps of a consistency student's samples; with more steps
            than levels, they are in geometric progression from 80 to 0.002.
        sample_boundary: Noise level up to which sampling keeps data as they are, for a consistency student;
            null for that of training. The official code trains with none and samples with 0.003.
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
        preconditioning: Preconditioning | None = None,
        pairs_per_trajectory: int | None = None,
        distance: nn.Module | None = None,
        start: Literal["prior", "data"] = "prior",
        label_dropout: float = 0.1,
        predict: Literal["samples", "trajectories"] = "samples",
        sample_steps: int = 1,
        sample_levels: list[float] = [80.0, 0.8],
        sample_boundary: float | None = None,
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
        super().__init__(
            network,
            default if preconditioning is None else preconditioning,
            LinearPath() if two_times else None,
            None,
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
        self.two_times = two_times
        self.needs_data = start == "data"
        if start not in ("prior", "data"):
            raise ValueError(f"start must be 'prior' or 'data', got {start!r}")
        if self.two_times and distance is not None:
            raise ValueError(
                "distance is for consistency students; a network with two time inputs learns mean "
                "velocities by the squared error: leave distance out, or build the network with "
                "two_times=False"
            )
        if predict not in ("samples", "trajectories"):
            raise ValueError(f"predict must be 'samples' or 'trajectories', got {predict!r}")
        if predict == "trajectories" and teacher is None:
            raise ValueError("predict='trajectories' solves the teacher's flow: give teacher")
        self.predict = predict
        self.pairs_per_trajectory = pairs_per_trajectory
        if teacher is not None:
            self._check_pairs(teacher.steps)
        self.start = start
        self.sample_levels = checked_levels(sample_levels)
        if sample_boundary is not None and two_times:
            raise ValueError(
                "sample_boundary is for consistency students, and the network has two time inputs: leave it "
                "out"
            )
        self._sampling = with_boundary(self.preconditioning, sample_boundary)
        if teacher is not None:
            self._frozen["teacher"] = teacher
        self._frozen["distance"] = frozen(SquaredDistance() if distance is None else distance)
        self._counts = {"pairs": 0, "trajectories": 0, "teacher_calls": 0}

    def setup(self, stage: str) -> None:
        """Checks the teacher, or the stored trajectories, against the student; loads the distance's weights.

        Raises:
            ValueError: there is neither, or it does not fit; or a weight file is missing.
        """
        super().setup(stage)
        teacher = self.teacher
        if stage == "predict":
            if teacher is not None and self.predict == "trajectories":
                teacher.load().check_student(self.shape, self.num_classes)
            return
        load = getattr(self._frozen["distance"], "load", None)
        if load is not None:
            load()
        if self._stored is not None:
            self._stored.check_student(self.shape, self.num_classes, self.path)
            self._check_pairs(self._stored.steps)
        elif teacher is not None:
            teacher.check_path(self.path)
        elif self.trainer.datamodule is not None:  # type: ignore[attr-defined]
            name = type(self.trainer.datamodule).__name__  # type: ignore[attr-defined]
            raise ValueError(
                f"CMT has no teacher, and {name} has no stored trajectories: give teacher, or the data "
                "Trajectories"
            )

    @property
    def _stored(self) -> StoredTrajectories | None:
        """What the datamodule says of the trajectories in its batches, if there are any."""
        return getattr(self.trainer.datamodule, "trajectories", None)  # type: ignore[attr-defined]

    def _check_pairs(self, steps: int) -> None:
        total, count = pair_count(steps, self.two_times), self.pairs_per_trajectory
        if count is not None and not 1 <= count <= total:
            raise ValueError(
                f"pairs_per_trajectory must be from 1 to {total}, which is what {steps} steps of the "
                f"teacher give; got {count}"
            )

    def on_fit_start(self) -> None:
        """Takes the initial weights, and records how many trajectories there are to learn from."""
        super().on_fit_start()
        if self._stored is not None:
            stored = self._stored
            record(
                self.trainer,
                "trajectories_stored",
                f"learning from {stored.count:,} stored trajectories of {stored.steps} steps; the teacher is "
                "not called",
                count=stored.count,
                steps=stored.steps,
            )

    def on_predict_start(self) -> None:
        """Puts the teacher where this module is, and notes what it is."""
        if self.predict == "trajectories":
            self._place_frozen()
            assert self.teacher is not None
            made = {"start": self.start, "label_dropout": self.label_dropout, "seed": self.seed}
            self._origin = origin(self.teacher, **made)

    @property
    def needs_checkpoint(self) -> bool:
        """Not for the teacher's trajectories."""
        return self.predict != "trajectories"

    def predict_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        """Samples of a batch's labels, or trajectories of the teacher.

        Returns:
            As every stage, ``samples`` (B, ...), ``label`` (B,) and ``index`` (B,); or what
            `TrajectoryWriter` writes: ``states`` (B, M + 1, ...), ``times`` (M + 1,), ``path``, ``origin``,
            ``label`` (B,), as the teacher was given it, and ``index`` (B,).
        """
        if self.predict == "samples":
            return super().predict_step(batch, batch_idx)
        trajectory, label, index = self._solve(batch, batch_idx, "train", 0)
        return {
            "states": trajectory.states.transpose(0, 1),
            "times": trajectory.times,
            "path": repr(trajectory.path),
            "origin": self._origin,
            "label": label,
            "index": index,
        }

    def _solve(
        self, batch: Any, batch_idx: int, stage: str, step: int
    ) -> tuple[Trajectory, Tensor | None, Tensor]:
        """The teacher's trajectories for a batch on its own path, with the labels it was given."""
        teacher = self.teacher
        if teacher is None:
            raise ValueError("CMT has no teacher, and the batch has no 'states': give one of the two")
        x, label, index = self._unpack(batch, batch_idx)
        index = index.cpu()  # waits for the device only where the index was moved there
        if label is not None:
            label, _ = self._drop_labels(label.to(self.device), index, stage, step)
        noise = self._noise(self.seed, step, index, f"{stage}/noise")
        return teacher.trajectory(noise, label, x if self.start == "data" else None), label, index

    def _loss(self, batch: Any, batch_idx: int, stage: str, step: int) -> Tensor:
        if stored := isinstance(batch, dict) and "states" in batch:
            _, label, index = self._unpack(batch, batch_idx, data=False)
            dtype = next(self.network.parameters()).dtype
            trajectory = batch_trajectory(batch, self.shape, self.path, dtype)
            label = None if label is None else label.to(self.device)
        else:
            trajectory, label, index = self._solve(batch, batch_idx, stage, step)
            trajectory = trajectory.on(self.path)
        i, j = draw_pairs(
            self.seed,
            step,
            index.to(self.device, non_blocking=True),
            len(trajectory.times) - 1,
            self.two_times,
            self.pairs_per_trajectory,
            f"{stage}/",
        )  # (B, K) twice
        pairs = i.shape[1]
        label = None if label is None else label.repeat_interleave(pairs)
        model = self.model
        if self.two_times:
            z, end, t, r = take_pairs(trajectory, i, j)
            error = mean_flow_pair_error(model, z, t, end, r, label)
        else:
            z, t = take_states(trajectory, i)
            error = consistency_error(model, z, t, trajectory.states[-1], self._frozen["distance"], label)
        loss = error.mean()
        training = stage == "train"
        self.log(f"{stage}/loss", loss.detach(), batch_size=len(t), sync_dist=not training, prog_bar=training)
        if training:
            calls = 0 if stored or self.teacher is None else self.teacher.calls_per_trajectory
            self._count(len(index), pairs, calls)
        return loss

    def _count(self, trajectories: int, pairs: int, calls: int) -> None:
        trajectories *= self.trainer.world_size
        self._counts["pairs"] += trajectories * pairs
        self._counts["trajectories"] += trajectories
        self._counts["teacher_calls"] += trajectories * calls
        for name, count in self._counts.items():
            self.log(f"train/{name}", float(count), batch_size=1)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps the counts."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["flow"]["counts"] = dict(self._counts)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Goes on counting."""
        self._counts.update(checkpoint.get("flow", {}).get("counts", {}))

    def _sample(self, index: Tensor, label: Tensor | None, steps: int, seed: int) -> Tensor:
        if self.two_times:
            noise = self._noise(seed, 0, index, "sample/noise")
            return sample_mean_flow(self.model, noise, label, steps)
        return self._sample_consistency(index, label, steps, seed, self.sample_levels, self._sampling)
