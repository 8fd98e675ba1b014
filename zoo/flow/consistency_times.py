"""Draws of two noise levels s > s' on one path of noise, for the discrete consistency losses.

* `RatioLevels`: easy consistency tuning (ECT; Geng et al. 2024, arXiv 2406.14548): s log-normal, and
  s' = s max(0, 1 - n(s) / q^(stage + 1)) with n(s) = 1 + k sigmoid(-b s), where the stage grows with the
  updates.
* `GridLevels`: neighbors on EDM's grid of N levels: of consistency models (Song et al. 2023, arXiv
  2303.01469; uniform on a fixed grid, or on one that grows like the root of the updates) and of improved
  consistency training (iCT; Song and Dhariwal 2023, arXiv 2310.14189; log-normal on a grid that doubles from
  10 to 1280 steps).
"""

import math

import torch
from torch import Tensor

from zoo import rng
from zoo.flow.noise_levels import LogNormalLevels
from zoo.flow.paths import VarianceExplodingPath
from zoo.flow.time_grids import KarrasGrid


class RatioLevels:
    """The pairs of ECT: a level and a share of it that approaches 1 as training goes on.

    Args:
        mean: Mean of ln(s).
        std: Standard deviation of ln(s).
        q: Base of the ratio: 2 on CIFAR-10 and 4 on ImageNet-64 with stages; 256 and more without.
        double_every: Updates of a stage; null stays in the first one.
        k: How much wider the gap is near the data: 1 + k / 2 times at s = 0.
        b: How fast that fades with s.
        max_ratio: Largest s' / s, whatever the stage, so that no q^(stage + 1) above 1 / (1 - max_ratio) has
            an effect. The official code has none (1.0); 0.999 keeps the step above what float32 can tell
            apart.

    >>> levels = RatioLevels(q=256)
    >>> [round(levels.ratio(torch.tensor(s).double(), 0).item(), 6) for s in (0.01, 1.0, 80.0)]
    [0.980547, 0.987689, 0.996094]
    """

    def __init__(
        self,
        mean: float = -1.1,
        std: float = 2.0,
        q: float = 2.0,
        double_every: int | None = None,
        k: float = 8.0,
        b: float = 1.0,
        max_ratio: float = 0.999,
    ) -> None:
        if q <= 1:
            raise ValueError(
                f"q must be above 1 (the gap is a share n / q^(stage + 1) of the level), got {q}"
            )
        if double_every is not None and double_every < 1:
            raise ValueError(f"double_every must be at least 1 update, or null, got {double_every}")
        if not 0 < max_ratio <= 1:
            raise ValueError(f"max_ratio must be in (0, 1], got {max_ratio}")
        self.levels = LogNormalLevels(mean, std)
        self.q, self.double_every, self.k, self.b, self.max_ratio = q, double_every, k, b, max_ratio

    def ratio(self, level: Tensor, step: int) -> Tensor:
        """The share s' / s of the levels ``level`` after ``step`` updates."""
        stage = 0 if self.double_every is None else step // self.double_every
        gap = (1 + self.k / (1 + (self.b * level).exp())) * self.q ** -(stage + 1.0)
        return (1 - gap).clamp(0, self.max_ratio)

    def __call__(
        self, seed: int, step: int, index: Tensor, name: str = "", progress: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Levels ``(s, s')``, each (B,) float64, of the items ``index``; ``progress`` counts updates."""
        level = self.levels(seed, step, index, name)
        return level, level * self.ratio(level, step if progress is None else progress)


class GridLevels:
    """Neighbors on a grid of noise levels, uniform or log-normal, whose number of steps may grow.

    CT on CIFAR-10 is ``first: 1, last: 150, grow_over: <all updates>, mean: null``.

    Args:
        first: Steps of the grid at the start, one less than its levels.
        last: Steps at most.
        double_every: Updates after which the number of steps doubles, as in iCT; null for no doubling.
        grow_over: Updates K over which it grows from ``first`` to ``last``, as in CT: after k of them it is
            ceil(sqrt(k / K ((last + 1)^2 - (first + 1)^2) + (first + 1)^2) - 1). Null for no growth.
        mean: Mean of the log-normal distribution of iCT; null draws neighbors uniformly.
        std: Its standard deviation.
        start: Largest noise level.
        end: Smallest noise level.
        rho: Exponent of EDM's grid.
    """

    def __init__(
        self,
        first: int = 10,
        last: int = 1280,
        double_every: int | None = None,
        grow_over: int | None = None,
        mean: float | None = -1.1,
        std: float = 2.0,
        start: float = 80.0,
        end: float = 0.002,
        rho: float = 7.0,
    ) -> None:
        if not 1 <= first <= last:
            raise ValueError(f"first and last must satisfy 1 <= first <= last, got {first} and {last}")
        if double_every is not None and double_every < 1:
            raise ValueError(f"double_every must be at least 1 update, or null, got {double_every}")
        if grow_over is not None and grow_over < 1:
            raise ValueError(f"grow_over must be at least 1 update, or null, got {grow_over}")
        if double_every is not None and grow_over is not None:
            raise ValueError("double_every and grow_over are two ways to grow: give one")
        if not std > 0:
            raise ValueError(f"std must be positive, got {std}")
        self.first, self.last = first, last
        self.double_every, self.grow_over = double_every, grow_over
        self.mean, self.std = mean, std
        self.grid = KarrasGrid(start, end, rho)

    def steps(self, step: int) -> int:
        """Steps of the grid after ``step`` updates."""
        if self.grow_over is not None:
            done = min(step / self.grow_over, 1.0)
            low, high = (self.first + 1) ** 2, (self.last + 1) ** 2
            steps = math.sqrt(low + done * (high - low)) - 1
            return min(math.ceil(steps - 1e-9), self.last)  # rounding makes no step of its own
        doublings = 0 if self.double_every is None else step // self.double_every
        # Past 64 doublings every grid has its last size; a larger power would be a useless huge number.
        return min(self.first * 2 ** min(doublings, 64), self.last)

    def levels(self, step: int) -> Tensor:
        """The grid after ``step`` updates: decreasing levels (steps + 1,), float64."""
        return self.grid(self.steps(step) + 1, VarianceExplodingPath())[:-1]

    def probabilities(self, levels: Tensor) -> Tensor:
        """Of each pair of neighbors of ``levels`` (N + 1,): (N,)."""
        if self.mean is None:
            return torch.full((len(levels) - 1,), 1 / (len(levels) - 1), dtype=levels.dtype)
        scaled = torch.erf((levels.log() - self.mean) / (math.sqrt(2) * self.std))
        mass = scaled[:-1] - scaled[1:]
        return mass / mass.sum()

    def __call__(
        self, seed: int, step: int, index: Tensor, name: str = "", progress: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Levels ``(s, s')``, each (B,) float64, of the items ``index``; ``progress`` counts updates."""
        levels = self.levels(step if progress is None else progress).to(index.device)
        draw = rng.uniform(seed, step, index, (), name + "level", torch.float64)
        bounds = self.probabilities(levels).cumsum(0)
        place = torch.searchsorted(bounds, draw, right=True).clamp(max=len(bounds) - 1)
        return levels[place], levels[place + 1]
