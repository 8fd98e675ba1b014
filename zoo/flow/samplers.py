"""From noise to data: how a trained network draws samples.

* `sample_mean_flow` (Geng et al. 2025, arXiv 2505.13447, equation 12 and algorithm 2): z_r = z_t - (t - r)
  u(z_t, r, t), in one step from t = 1 to r = 0 or along an even grid of times.
* the samplers of the LightningModules, plain data: `MeanFlowSampler`, `ConsistencySampler`, `ODESampler` (and
  `zoo.flow.GuidedMeanFlowSampler`). Each is called with a model, a function that gives the standard normal
  noise (B, ...) of step number 0, 1, ..., the labels, and the number of steps.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor

from zoo.flow.consistency import sample_consistency
from zoo.flow.preconditioned_network import PreconditionedNetwork
from zoo.flow.preconditioning import EDMPreconditioning, Preconditioning
from zoo.flow.solvers import Solver, default_solver, integrate
from zoo.flow.time_grids import Grid, LogGrid, check_steps, default_grid

Noise = Callable[[int], Tensor]
Network = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]


@torch.no_grad()
def sample_mean_flow(network: Network, noise: Tensor, label: Tensor | None = None, steps: int = 1) -> Tensor:
    """Carries noise at t = 1 to data at t = 0 in ``steps`` equal steps.

    Args:
        network: u(z, t, h, label) with h = t - r.
        noise: Standard normal states (B, ...).
        label: Classes (B,), or None.
        steps: Number of steps, and of network evaluations.

    Returns:
        Samples (B, ...).

    Raises:
        ValueError: ``steps`` is less than 1.

    >>> halve = lambda z, t, h, label: z / 2  # a step of length h takes away the share h / 2
    >>> sample_mean_flow(halve, torch.ones(1, 1), steps=2).item()
    0.5625
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    z = noise
    ones = torch.ones(len(z), device=z.device, dtype=torch.promote_types(z.dtype, torch.float32))  # (B,)
    grid = [1 - i / steps for i in range(steps)] + [0.0]
    for t, r in pairwise(grid):
        z = z - (t - r) * network(z, t * ones, (t - r) * ones, label)
    return z


class Sampler(Protocol):
    """How a module draws samples."""

    @property
    def steps(self) -> int:
        """Steps, where the caller asks for no other number."""

    def __call__(self, model: Any, noise: Noise, label: Tensor | None, steps: int | None = None) -> Tensor:
        """Samples (B, ...) for the labels (B,), in ``steps`` or its own number of steps."""


@dataclass(frozen=True)
class MeanFlowSampler:
    """Samples along an even grid of times, by the mean velocity of each step.

    Args:
        steps: Number of steps.
    """

    steps: int = 1

    def __post_init__(self) -> None:
        check_steps(self.steps)

    def __call__(self, model: Any, noise: Noise, label: Tensor | None, steps: int | None = None) -> Tensor:
        """Samples (B, ...) of ``model``, which is u(z, t, h, label)."""
        return sample_mean_flow(model, noise(0), label, self.steps if steps is None else steps)


@dataclass(frozen=True)
class ConsistencySampler:
    """Samples of a denoiser, with new noise between steps (arXiv 2303.01469, algorithm 1).

    Args:
        steps: Number of steps.
        levels: Noise levels of the first steps; with more steps than levels, they are in geometric
            progression from 80 to 0.002.
        boundary: Noise level up to which sampling keeps data as they are; null for that of training. The
            official codes of ECT and CMT train with none and sample with 0.003.
    """

    steps: int = 1
    levels: list[float] = field(default_factory=lambda: [80.0, 0.8])
    boundary: float | None = None

    def __post_init__(self) -> None:
        check_steps(self.steps)
        if not self.levels or min(self.levels) <= 0 or any(a <= b for a, b in pairwise(self.levels)):
            raise ValueError(f"levels must be positive noise levels that decrease, got {self.levels}")

    def preconditioning(self, trained: Preconditioning) -> Preconditioning:
        """The preconditioning of samples: that of training, with ``boundary`` if there is one.

        Raises:
            ValueError: ``trained`` has no boundary to change, or the new one is out of range.
        """
        if self.boundary is None:
            return trained
        if not isinstance(trained, EDMPreconditioning):
            raise ValueError(f"a sampler's boundary needs EDMPreconditioning, got {trained}")
        return EDMPreconditioning(**{**vars(trained), "boundary": self.boundary})

    def __call__(
        self, model: PreconditionedNetwork, noise: Noise, label: Tensor | None, steps: int | None = None
    ) -> Tensor:
        """Samples (B, ...) of the denoiser of ``model``."""
        steps, path = self.steps if steps is None else steps, model.path
        model = PreconditionedNetwork(model.network, self.preconditioning(model.preconditioning), path)
        if steps <= len(self.levels):
            times = path.time_of(torch.tensor(self.levels[:steps], dtype=torch.float64))
        else:
            times = LogGrid()(steps, path)[:-1]
        return sample_consistency(model, noise, times, label)


@dataclass(frozen=True)
class ODESampler:
    """Samples by a solver of the probability-flow ODE.

    Args:
        steps: Number of steps.
        solver: The solver; DPM-Solver++ if not given.
        grid: Its times, from noise to data; by default even ones on the linear path, and logarithmic ones
            from 80 to .002 on the variance-exploding path.
    """

    steps: int = 12
    solver: Solver | None = None
    grid: Grid | None = None

    def __post_init__(self) -> None:
        check_steps(self.steps)

    def __call__(
        self, model: PreconditionedNetwork, noise: Noise, label: Tensor | None, steps: int | None = None
    ) -> Tensor:
        """Samples (B, ...) of the field ``model``."""
        steps, path = self.steps if steps is None else steps, model.path
        times = (default_grid(path) if self.grid is None else self.grid)(steps, path)
        solver = default_solver(steps) if self.solver is None else self.solver
        return integrate(model, solver, float(path.sigma(times[0])) * noise(0), times, label)
