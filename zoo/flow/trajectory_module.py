"""Where a LightningModule has trajectories from: a teacher that solves them, or batches of stored ones."""

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor
from typing_extensions import override

from zoo.events import record
from zoo.flow.cmt import TrajectoryDraws
from zoo.flow.cmt_checks import check_datamodule
from zoo.flow.flow_module import FlowModule
from zoo.flow.solvers import Trajectory
from zoo.flow.trajectories import StoredTrajectories, batch_trajectory, origin


@dataclass
class Counts:
    """What a training has used so far, over all processes."""

    pairs: int = 0
    trajectories: int = 0
    teacher_calls: int = 0

    def add(self, trajectories: int, pairs: int, calls: int) -> None:
        """Counts trajectories with ``pairs`` pairs and ``calls`` network evaluations each."""
        self.pairs += trajectories * pairs
        self.trajectories += trajectories
        self.teacher_calls += trajectories * calls


class TrajectoryModule(FlowModule):
    """A module that learns from trajectories, and may predict those of its teacher.

    A subclass sets the attributes, and the teacher.

    Attributes:
        trajectories: Where the teacher's trajectories start, and how many pairs of each are learned.
        two_times: Whether the student has a second time input.
        predict: What `zoo predict` makes: "samples" of the student, or "trajectories" of the teacher.
    """

    trajectories: TrajectoryDraws
    two_times: bool
    predict: Literal["samples", "trajectories"]

    @override
    def setup(self, stage: str) -> None:
        """Checks the teacher, or the stored trajectories, against the student.

        Raises:
            ValueError: there is neither, or it does not fit.
        """
        super().setup(stage)
        teacher, stored = self.teacher, self._stored
        if stage == "predict":
            if teacher is not None and self.predict == "trajectories":
                teacher.load().check_student(self.shape, self.num_classes)
            return
        if stored is not None:
            stored.check_student(self.shape, self.num_classes, self.path)
            self.trajectories.check(stored.steps, self.two_times)
        elif teacher is not None:
            teacher.check_path(self.path)
        else:
            check_datamodule(self.trainer.datamodule)  # type: ignore[attr-defined]

    @property
    def _stored(self) -> StoredTrajectories | None:
        """What the datamodule says of the trajectories in its batches, if there are any."""
        return getattr(self.trainer.datamodule, "trajectories", None)  # type: ignore[attr-defined]

    @override
    def on_fit_start(self) -> None:
        super().on_fit_start()
        if (stored := self._stored) is not None:
            record(
                self.trainer,
                "trajectories_stored",
                f"learning from {stored.count:,} stored trajectories of {stored.steps} steps; the teacher is "
                "not called",
                count=stored.count,
                steps=stored.steps,
            )

    @override
    def on_predict_start(self) -> None:
        if self.predict == "trajectories":
            self._place_frozen()
            assert self.teacher is not None
            made = {"start": self.trajectories.start, "label_dropout": self.label_dropout, "seed": self.seed}
            self._origin = origin(self.teacher, **made)

    @property
    def needs_checkpoint(self) -> bool:
        """Not for the teacher's trajectories."""
        return self.predict != "trajectories"

    @override
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
        if self.teacher is None:
            raise ValueError("CMT has no teacher, and the batch has no 'states': give one of the two")
        items = self._prepare(batch, batch_idx, stage, step)
        return (
            self.teacher.trajectory(items.noise, items.label, items.x if self.needs_data else None),
            items.label,
            items.index,
        )

    def _trajectories(
        self, batch: Any, batch_idx: int, stage: str, step: int
    ) -> tuple[Trajectory, Tensor | None, Tensor]:
        """Those of a batch on this module's path, solved or stored, with their labels and numbers (B,)."""
        if not _is_stored(batch):
            trajectory, label, index = self._solve(batch, batch_idx, stage, step)
            return trajectory.on(self.path), label, index
        _, label, index = self._unpack(batch, batch_idx, data=False)
        dtype = next(self.network.parameters()).dtype
        trajectory = batch_trajectory(batch, self.shape, self.path, dtype)
        return trajectory, None if label is None else label.to(self.device), index

    def _teacher_calls(self, batch: Any) -> int:
        """Network evaluations that one trajectory of a batch took."""
        return 0 if _is_stored(batch) or self.teacher is None else self.teacher.calls_per_trajectory


def _is_stored(batch: Any) -> bool:
    return isinstance(batch, dict) and "states" in batch
