"""Trajectories in files: what a teacher solved once, for a student of CMT (arXiv 2509.24526) to learn from.

A shard is a safetensors file with ``states`` (N, M + 1, ...) from noise to data, the ``times`` (M + 1,) at
which the solver had them (float64), ``index`` (N,) and, where there are classes, ``label`` (N,); its header
names the path that states and times live on, and what made them. Labels are those that the teacher was given:
the number of classes stands for unconditional. Times travel with their states in the file and in every batch,
so nobody can read the states with other times.
"""

import hashlib
import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path as FilePath
from typing import Any

import torch
from torch import Tensor

import zoo
from zoo.events import display_path
from zoo.flow.paths import LinearPath, Path, TrigonometricPath, VarianceExplodingPath, bridge
from zoo.flow.solvers import Trajectory
from zoo.flow.teacher import Teacher
from zoo.io import load_tensors, save_tensors, sha256
from zoo.runs import find_checkpoint

_PATHS: dict[str, type[Path]] = {
    made.__name__: made for made in (LinearPath, VarianceExplodingPath, TrigonometricPath)
}


@cache
def path_named(text: str) -> Path:
    """The path whose ``repr`` is ``text``.

    Raises:
        ValueError: it is not a path of `zoo.flow`.

    >>> path_named("TrigonometricPath(sigma_data=0.5)").sigma_data
    0.5
    """
    found = re.fullmatch(r"(\w+)\((?:(\w+)=([\d.e+-]+))?\)", text)
    if found is None or found[1] not in _PATHS:
        raise ValueError(
            f"path must be one of {', '.join(sorted(_PATHS))} as it is written, such as 'LinearPath()'; got "
            f"{text!r}"
        )
    try:
        return _PATHS[found[1]](**({found[2]: float(found[3])} if found[2] else {}))
    except (TypeError, ValueError) as error:
        raise ValueError(f"path {text!r} cannot be made: {error}") from error


def checked_times(times: Any) -> Tensor:
    """Times of a trajectory as float64 (M + 1,) on the CPU.

    Args:
        times: At least two numbers, or a tensor of them in float32 or float64.

    Raises:
        ValueError: they are fewer, are not finite, do not decrease, or come in a type that blurs them.
    """
    if isinstance(times, Tensor) and times.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"times must be float32 or float64, got {times.dtype}, which has blurred them: give them as "
            "plain numbers, which no precision setting of the Trainer converts"
        )
    times = torch.as_tensor(times, dtype=torch.float64, device="cpu")
    if times.ndim != 1 or len(times) < 2 or not bool((times.isfinite().all()) & (times.diff() < 0).all()):
        raise ValueError(
            "times must be those of a trajectory, at least two finite numbers that decrease from noise to "
            f"data; got {times.tolist()}"
        )
    return times


def batch_trajectory(
    batch: dict[str, Any], shape: tuple[int, ...], path: Path, dtype: torch.dtype
) -> Trajectory:
    """The trajectories of a batch, read on a student's path.

    Args:
        batch: ``states`` (B, M + 1, ...), ``times`` (M + 1 numbers), ``path`` (as it is written).
        shape: Shape of one item of the student.
        path: The student's path.
        dtype: Type of the student's numbers.

    Raises:
        ValueError: a field is missing, or the states have another shape.
    """
    if missing := sorted({"times", "path", "index"} - batch.keys()):
        raise ValueError(f"a batch with 'states' needs {missing} beside them; it has {sorted(batch)}")
    states, times = batch["states"], checked_times(batch["times"])
    expected = (len(times), *shape)
    if tuple(states.shape[1:]) != expected:
        raise ValueError(
            f"states must be (B, {', '.join(map(str, expected))}), one of the student's shape for each of "
            f"{len(times)} times; got {tuple(states.shape)}"
        )
    states = states.to(dtype).transpose(0, 1)  # (M + 1, B, ...)
    return Trajectory(states, times, path_named(str(batch["path"]))).on(path)


@dataclass(frozen=True)
class StoredTrajectories:
    """What a student must fit before it learns from stored trajectories.

    A datamodule whose batches carry states says this under the name ``trajectories`` once it is set up.

    Attributes:
        count: Distinct trajectories to train on.
        times: (M + 1,), float64, as `checked_times` gives them.
        path: The path of states and times.
        shape: Shape of one state.
        num_classes: Classes of the teacher that made them; None without.
        highest_label: The highest label that came with them; None without labels.
    """

    count: int
    times: Tensor
    path: Path
    shape: tuple[int, ...]
    num_classes: int | None = None
    highest_label: int | None = None

    @property
    def steps(self) -> int:
        """The solver's steps M."""
        return len(self.times) - 1

    def check_student(self, shape: tuple[int, ...], num_classes: int | None, path: Path) -> None:
        """Refuses a student that these trajectories cannot teach.

        Raises:
            ValueError: another shape of items, other classes, or a path without a place for the first state.
        """
        if tuple(self.shape) != tuple(shape):
            raise ValueError(
                f"the stored trajectories have states of shape {tuple(self.shape)}, the student takes "
                f"{tuple(shape)}"
            )
        if self.num_classes is not None and self.num_classes != num_classes:
            raise ValueError(
                f"the stored trajectories are of a teacher with {self.num_classes} classes, the student's "
                f"network has num_classes={num_classes}: they must agree"
            )
        if num_classes is not None and self.highest_label is None:
            raise ValueError(
                f"the network has {num_classes} classes, but the stored trajectories have no labels: make "
                "them again with labels, or give a network with num_classes=null"
            )
        if num_classes is not None and self.highest_label is not None and self.highest_label > num_classes:
            raise ValueError(
                f"the stored trajectories have labels up to {self.highest_label}, the network has "
                f"{num_classes} classes (label {num_classes} is unconditional)"
            )
        times, factor = bridge(self.times, self.path, path)
        if not bool((times.isfinite() & factor.isfinite()).all()):
            raise ValueError(
                f"the stored trajectories begin at pure noise on {self.path}, which has no finite time on "
                f"the student's {path}: regenerate them with a grid that begins later, such as LogGrid"
            )


@dataclass(frozen=True)
class Shard:
    """Trajectories as a file holds them.

    Attributes:
        states: (N, M + 1, ...), from noise to data.
        times: (M + 1,) decreasing, float64.
        index: (N,) int64, the numbers of the trajectories.
        label: (N,) int64, or None.
        path: The path's ``repr``.
        origin: What made them, as JSON (`origin`); empty if nobody said.
    """

    states: Tensor
    times: Tensor
    index: Tensor
    label: Tensor | None
    path: str
    origin: str = ""

    @property
    def num_classes(self) -> int | None:
        """Classes of the teacher, if the origin says."""
        return _facts(self.origin).get("num_classes")


def _facts(origin: str) -> dict[str, Any]:
    try:
        facts = json.loads(origin) if origin else {}
    except json.JSONDecodeError:
        facts = None
    if not isinstance(facts, dict):
        raise ValueError(f"origin must be a JSON object, got {origin!r}")
    return facts


def write_shard(file: FilePath, shard: Shard) -> None:
    """Writes a shard, whole or not at all."""
    tensors = {"states": shard.states, "times": shard.times, "index": shard.index}
    if shard.label is not None:
        tensors["label"] = shard.label
    save_tensors(file, tensors, {"path": shard.path, "origin": shard.origin})


def read_shard(file: FilePath) -> Shard:
    """A shard with its states mapped, not loaded: they are read where they are used.

    Raises:
        ValueError: the file is damaged, or is not a shard of trajectories.
    """
    tensors, header = load_tensors(file, lazy=True)
    if missing := sorted({"states", "times", "index"} - tensors.keys()):
        raise ValueError(f"{file} lacks {missing}, so it holds no trajectories: it has {sorted(tensors)}")
    states, index, label = tensors["states"], tensors["index"], tensors.get("label")
    try:
        times = checked_times(tensors["times"])
        path_named(header.get("path", ""))
        _facts(header.get("origin", ""))
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    if not states.is_floating_point() or states.ndim < 3 or states.shape[1] != len(times):
        raise ValueError(
            f"{file}: states must be floats (N, {len(times)}, ...), one for each of its {len(times)} times; "
            f"got {tuple(states.shape)} of {states.dtype}"
        )
    for name, numbers in (("index", index), ("label", label)):
        if numbers is None:
            continue
        if numbers.is_floating_point() or numbers.shape != (len(states),) or bool((numbers < 0).any()):
            raise ValueError(
                f"{file}: {name} must be ({len(states)},), whole numbers from 0 up; it is "
                f"{tuple(numbers.shape)} of {numbers.dtype}"
            )
    label = None if label is None else label.long()
    return Shard(states, times, index.long(), label, header["path"], header.get("origin", ""))


def origin(teacher: Teacher, **more: str | int | float | bool | None) -> str:
    """What made trajectories, as JSON: the teacher with a checksum of its weights, its solver, its guidance.

    Args:
        teacher: The teacher.
        **more: Further facts, such as the seed.
    """
    digest = hashlib.sha256()
    for tensor in (*teacher.load().parameters(), *teacher.buffers()):
        digest.update(sha256(tensor).encode())
    facts = {
        "teacher": None if teacher.checkpoint is None else display_path(find_checkpoint(teacher.checkpoint)),
        "weights": teacher.weights,
        "sha256": digest.hexdigest(),
        "num_classes": teacher.num_classes,
        "solver": type(teacher.solver).__name__,
        "order": getattr(teacher.solver, "order", None),
        "steps": teacher.steps,
        "omega": teacher.omega,
        "low": teacher.low,
        "high": str(teacher.high),  # infinity is not valid JSON
        "guide": None if teacher.guide is None else teacher.guide.checkpoint,
        "zoo": zoo.__version__,
    }
    return json.dumps(facts | more)
