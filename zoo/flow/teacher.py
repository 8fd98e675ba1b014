"""A frozen model with a solver: states along the flow, together with the times the solver really used.

A teacher reads its network from a checkpoint when it is needed, not when it is built: a config that names a
teacher can be checked, and its student tested, where the file is not. It belongs to no module's parameters,
is never copied (an average of the student's weights shares it), and stays out of checkpoints.
"""

import math
from pathlib import Path as FilePath
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from zoo.flow.guidance import Guided, check_guidance
from zoo.flow.handover import check_preconditioning
from zoo.flow.paths import Path, bridge, expand
from zoo.flow.preconditioned_network import PreconditionedNetwork
from zoo.flow.preconditioning import Preconditioning
from zoo.flow.solvers import MeanFlowSteps, Solver, Trajectory, default_solver, solve
from zoo.flow.stored_network import read_stored_network
from zoo.flow.time_grids import Grid, check_steps, default_grid
from zoo.runs import find_checkpoint


class Teacher(nn.Module):
    """Solves the probability-flow ODE of a trained network: the teacher of CMT, CD, ECD, sCD and MFD.

    Args:
        checkpoint: Checkpoint of a module of zoo.flow; or a folder of runs, whose newest is taken; or a
            .safetensors file that ``zoo convert`` made of a published checkpoint.
        weights: The averaged weights of it ("ema") or what the optimizer updated ("raw").
        network: The network of the checkpoint; needed where it was not trained by the command line, which
            keeps the network's arguments in the checkpoint.
        preconditioning: What the network's output means; the checkpoint's own if not given.
        path: Path of the states; the preconditioning's own if not given.
        solver: DPM-Solver++ if not given, of order 2 in up to 12 steps and 3 in more. A teacher that is
            itself a model of mean velocities takes `MeanFlowSteps`.
        grid: Times of the solver; by default even ones on the linear path, and logarithmic ones from 80 to
            .002 on the variance-exploding path.
        steps: Number of the solver's steps M; a trajectory has M + 1 states.
        omega: Strength of guidance; 1 is none.
        low: Guide only at noise levels of at least this.
        high: Guide only at noise levels of at most this.
        guide: A weaker teacher, for autoguidance; None guides away from unconditional samples.

    Attributes:
        file: The file that was read, once there is one.
    """

    def __init__(
        self,
        checkpoint: str | None = None,
        weights: Literal["ema", "raw"] = "ema",
        network: nn.Module | None = None,
        preconditioning: Preconditioning | None = None,
        path: Path | None = None,
        solver: Solver | None = None,
        grid: Grid | None = None,
        steps: int = 16,
        omega: float = 1.0,
        low: float = 0.0,
        high: float = math.inf,
        guide: "Teacher | None" = None,
    ) -> None:
        super().__init__()
        check_steps(steps)
        check_guidance(omega, low, high)
        if guide is not None and omega == 1:
            raise ValueError("a guide was given, but omega=1 does not look at it: give omega")
        self.checkpoint, self.weights = checkpoint, weights
        self.network, self.preconditioning, self.path = network, preconditioning, path
        self.steps, self.grid = steps, grid
        self.solver: Solver = default_solver(steps) if solver is None else solver
        self.omega, self.low, self.high, self.guide = omega, low, high, guide
        self.train()
        self._field: Any = None
        self._plain: Any = None
        self.calls_per_trajectory = 0
        self.file: FilePath | None = None

    @classmethod
    def of(cls, field: Any, **arguments: Any) -> Self:
        """A teacher that solves a given field: a `PreconditionedNetwork`, or anything with its methods.

        Args:
            field: `path`, ``velocity(z, t, label)``, ``denoise(z, t, label)``, and `num_classes`.
            **arguments: ``solver``, ``grid``, ``steps``, ``omega`` and the others of guidance.
        """
        made = cls(**arguments)
        made._set_field(field)
        return made

    def train(self, mode: bool = True) -> Self:
        """Stays in evaluation mode."""
        return super().train(False)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Itself: it never changes."""
        return self

    def load(self) -> Self:
        """Reads the checkpoint, once.

        Raises:
            ValueError: the file is missing or not of a module of zoo.flow, or does not fit what was given.
        """
        if self._field is not None:
            return self
        if self.checkpoint is None:
            raise ValueError(
                "a teacher needs checkpoint (a file or a folder of runs), or is made by Teacher.of"
            )
        try:
            file = find_checkpoint(self.checkpoint)
        except FileNotFoundError as error:
            raise ValueError(f"teacher checkpoint={self.checkpoint!r}: {error}") from error
        stored = read_stored_network(file, self.weights)
        network = stored.build() if self.network is None else self.network
        preconditioning = (
            stored.build_preconditioning() if self.preconditioning is None else self.preconditioning
        )
        check_preconditioning(preconditioning, stored.preconditioning, str(file))
        try:
            network.load_state_dict(stored.state)
        except RuntimeError as error:
            raise ValueError(f"teacher checkpoint {file}: {error}") from error
        self.network, self.file = network, file
        self._set_field(PreconditionedNetwork(network, preconditioning, self.path))
        return self

    def _set_field(self, field: Any) -> None:
        if isinstance(self.solver, MeanFlowSteps) and self.omega != 1:
            raise ValueError(
                "MeanFlowSteps asks for mean velocities, which omega does not guide: leave omega=1"
            )
        if isinstance(field, nn.Module):
            field.requires_grad_(False).eval()
        guide = None if self.guide is None else self.guide.load()._field
        # Past nn.Module's own bookkeeping: a guided field is not a module.
        object.__setattr__(self, "_plain", field)
        guided = field if self.omega == 1 else Guided(field, self.omega, self.low, self.high, guide)
        object.__setattr__(self, "_field", guided)
        if isinstance(field, nn.Module):
            self.add_module("model", field)
        self.path = field.path

    @property
    def field(self) -> Any:
        """The (guided) field: `path`, `velocity`, `denoise`."""
        return self.load()._field

    @property
    def shape(self) -> tuple[int, ...] | None:
        """Shape of one item, where the field knows it."""
        return getattr(self.load()._plain, "shape", None)

    @property
    def num_classes(self) -> int | None:
        """Number of classes of the network, or None."""
        return self.load()._plain.num_classes

    def times(self) -> Tensor:
        """The solver's times (M + 1,), float64, in the time of `field.path`."""
        path = self.field.path
        grid = default_grid(path) if self.grid is None else self.grid
        return grid(self.steps, path)

    @torch.no_grad()
    def trajectory(self, noise: Tensor, label: Tensor | None = None, x: Tensor | None = None) -> Trajectory:
        """The flow from noise to data.

        Args:
            noise: Standard normal (B, ...).
            label: Classes (B,), or None.
            x: Data (B, ...) that the first state is noised from, as in CMT's official code; None draws it
                from the prior, N(0, sigma(T)^2).

        Returns:
            The M + 1 states with the times of the solver.
        """
        field, times = self.field, self.times()
        state = float(field.path.sigma(times[0])) * noise
        if x is not None:
            state = state + float(field.path.alpha(times[0])) * x
        counted = _Counted(field)
        trajectory = solve(counted, self.solver, state, times, self._known(label))
        self.calls_per_trajectory = counted.calls
        return trajectory

    def field_on(self, path: Path) -> Any:
        """The (guided) field read on another path.

        Raises:
            ValueError: the teacher was made of a field that knows its own path only.
        """
        field = self.field
        if repr(path) == repr(field.path):
            return field
        if not hasattr(field, "on"):
            raise ValueError(f"the teacher's field lives on {field.path}, and is asked for on {path}")
        return field.on(path)

    def velocity(self, path: Path, z: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        """v(z, t) on ``path``, guided, without gradient.

        Args:
            path: The path of states and times.
            z: States (B, ...).
            t: Times (B,).
            label: Classes (B,), or None.
        """
        with torch.no_grad():
            return self.field_on(path).velocity(z, t, self._known(label))

    def step(
        self, path: Path, z: Tensor, t: Tensor, r: Tensor, label: Tensor | None, second_order: bool
    ) -> Tensor:
        """One step of each item from its own time to its own, cleaner one, without gradient.

        Args:
            path: The path of states and times.
            z: States (B, ...).
            t: Times (B,).
            r: Times (B,), r <= t.
            label: Classes (B,), or None.
            second_order: Heun's rule, except where r has no noise; else Euler's.
        """
        with torch.no_grad():
            slope = self.velocity(path, z, t, label)
            gap = expand(r - t, z)
            ahead = z + gap * slope
            if not second_order:
                return ahead
            noisy = path.sigma(r) > 0
            safe = torch.where(noisy, r, t)  # no noise may mean no velocity: ask elsewhere, and drop that
            corrected = z + gap * (slope + self.velocity(path, ahead, safe, label)) / 2
            return torch.where(expand(noisy, z), corrected, ahead)

    def _known(self, label: Tensor | None) -> Tensor | None:
        """The labels that the network takes."""
        return None if self.num_classes is None else label

    def check_path(self, path: Path) -> None:
        """Refuses a student's path on which the first state has no place.

        Raises:
            ValueError: the trajectory begins at pure noise, and ``path`` has no finite time for that.
        """
        times, _ = bridge(self.times(), self.field.path, path)
        if not times.isfinite().all():
            raise ValueError(
                f"the teacher's trajectories begin at pure noise on {self.field.path}, which has no finite "
                f"time on the student's {path}: give the teacher a grid that begins later, such as LogGrid"
            )

    def check_student(self, shape: tuple[int, ...], num_classes: int | None) -> None:
        """Refuses a student that this teacher cannot teach.

        Raises:
            ValueError: another shape of items, or classes that only one of the two has.
        """
        if self.shape is not None and tuple(self.shape) != tuple(shape):
            raise ValueError(
                f"the teacher makes items of shape {self.shape}, the student takes {tuple(shape)}"
            )
        if self.num_classes is not None and self.num_classes != num_classes:
            raise ValueError(
                f"the teacher has {self.num_classes} classes, the student's network has "
                f"num_classes={num_classes}: they must agree (one without classes may teach any student)"
            )


class _Counted:
    """A field that counts network evaluations per item."""

    def __init__(self, field: Any) -> None:
        self.field = field
        self.path = field.path
        self.calls = 0

    def _count(self, t: Tensor) -> None:
        self.calls += self.field.evaluations(t) if hasattr(self.field, "evaluations") else 1

    def velocity(self, z: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        self._count(t)
        return self.field.velocity(z, t, label)

    def denoise(self, z: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        self._count(t)
        return self.field.denoise(z, t, label)

    def mean_velocity(self, z: Tensor, t: Tensor, h: Tensor, label: Tensor | None = None) -> Tensor:
        self._count(t)
        return self.field.mean_velocity(z, t, h, label)
