"""Grids of times from noise to data, for solvers: each is given in noise levels and works on any path.

A grid is called with the number of steps and the path, and returns ``steps + 1`` decreasing times of that
path in float64 on the CPU.
"""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from zoo.flow.paths import Path


class Grid(ABC):
    """A function from the number of steps and a path to times (steps + 1,)."""

    # No Protocol: a config's parser takes one with a `__call__` alone for a factory of what that returns.
    @abstractmethod
    def __call__(self, steps: int, path: Path) -> Tensor:
        """Decreasing times of ``path``, float64."""


def _from_levels(levels: Tensor, path: Path) -> Tensor:
    times = path.time_of(levels)
    if not times.isfinite().all():
        raise ValueError(
            f"the grid begins at pure noise, which {path} has no finite time for: give the grid another start"
        )
    return times


def check_steps(steps: int) -> None:
    """Refuses less than one step."""
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")


class LogGrid(Grid):
    """Noise levels in geometric progression: even in ln(s), as in DPM-Solver and CMT's official code.

    Args:
        start: First noise level.
        end: Last noise level, positive.

    >>> from zoo.flow import VarianceExplodingPath
    >>> LogGrid()(16, VarianceExplodingPath())[[0, 7, 16]].tolist()
    [80.0, 0.775690978994743, 0.002]
    """

    def __init__(self, start: float = 80.0, end: float = 0.002) -> None:
        if not 0 < end < start < math.inf:
            raise ValueError(f"start and end must satisfy 0 < end < start < inf, got {start} and {end}")
        self.start, self.end = start, end

    def __call__(self, steps: int, path: Path) -> Tensor:
        """Decreasing times of ``path`` (steps + 1,), float64."""
        check_steps(steps)
        share = torch.arange(steps + 1, dtype=torch.float64) / steps
        return _from_levels(self.start * (self.end / self.start) ** share, path)


class KarrasGrid(Grid):
    """The grid of EDM (Karras et al. 2022, arXiv 2206.00364, equation 5): even in s^(1 / rho), then 0.

    Args:
        start: First noise level.
        end: Last positive noise level; one more step leads from it to 0.
        rho: 7 in EDM; larger ones spend more steps near the data.

    >>> from zoo.flow import VarianceExplodingPath
    >>> [round(s, 3) for s in KarrasGrid()(3, VarianceExplodingPath()).tolist()]
    [80.0, 2.515, 0.002, 0.0]
    """

    def __init__(self, start: float = 80.0, end: float = 0.002, rho: float = 7.0) -> None:
        if not 0 < end < start < math.inf:
            raise ValueError(f"start and end must satisfy 0 < end < start < inf, got {start} and {end}")
        if rho <= 0:
            raise ValueError(f"rho must be positive, got {rho}")
        self.start, self.end, self.rho = start, end, rho

    def __call__(self, steps: int, path: Path) -> Tensor:
        """Decreasing times of ``path`` (steps + 1,), float64."""
        check_steps(steps)
        first, last = self.start ** (1 / self.rho), self.end ** (1 / self.rho)
        share = torch.arange(steps, dtype=torch.float64) / max(steps - 1, 1)
        levels = (first + share * (last - first)) ** self.rho
        return _from_levels(torch.cat([levels, levels.new_zeros(1)]), path)


class EvenGrid(Grid):
    """Even times of the linear path, if wanted shifted towards the noise: t' = S t / (1 + (S - 1) t).

    The shift is that of SD3 (Esser et al. 2024, arXiv 2403.03206) for larger images, and of RAE.

    Args:
        start: First time of the linear path; 1 is pure noise.
        end: Last time of the linear path; 0 is data.
        shift: S; 1 leaves the grid even. It applies to the ends too.

    >>> from zoo.flow import LinearPath
    >>> EvenGrid()(4, LinearPath()).tolist()
    [1.0, 0.75, 0.5, 0.25, 0.0]
    >>> EvenGrid(shift=3.0)(2, LinearPath()).tolist()
    [1.0, 0.75, 0.0]
    """

    def __init__(self, start: float = 1.0, end: float = 0.0, shift: float = 1.0) -> None:
        if not 0 <= end < start <= 1:
            raise ValueError(f"start and end must satisfy 0 <= end < start <= 1, got {start} and {end}")
        if shift <= 0:
            raise ValueError(f"shift must be positive, got {shift}")
        self.start, self.end, self.shift = start, end, shift

    def __call__(self, steps: int, path: Path) -> Tensor:
        """Decreasing times of ``path`` (steps + 1,), float64."""
        check_steps(steps)
        even = self.start + (self.end - self.start) * torch.arange(steps + 1, dtype=torch.float64) / steps
        # In levels, t / (1 - t), the shift is a factor.
        return _from_levels(self.shift * even / (1 - even), path)


def default_grid(path: Path) -> Grid:
    """Even times where the path has a finite noise end, logarithmic steps over EDM's levels elsewhere."""
    return EvenGrid() if math.isfinite(path.end) else LogGrid()
