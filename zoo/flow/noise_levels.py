"""Draws of noise levels s = sigma / alpha, which every path turns into its own time.

* `LogNormalLevels`: EDM (Karras et al. 2022, arXiv 2206.00364, table 1) and all that follows it. On the
  linear path logit(t) = ln(s), so a log-normal level *is* a logit-normal time with the same two numbers.
* `UniformLevels`: uniform times of the linear path.
"""

import torch
from torch import Tensor

from zoo import rng


class LogNormalLevels:
    """ln(s) is normal: EDM's (-1.2, 1.2), EDM2's (-0.4, 1.0) on latents and (-0.8, 1.6) on ImageNet-64.

    Args:
        mean: Mean of ln(s), which on the linear path is logit(t).
        std: Standard deviation of ln(s).

    >>> levels = LogNormalLevels(-1.2, 1.2)(seed=0, step=0, index=torch.arange(10_000))
    >>> round(levels.log().mean().item(), 1), round(levels.log().std().item(), 1)
    (-1.2, 1.2)
    """

    def __init__(self, mean: float = -1.2, std: float = 1.2) -> None:
        if not std >= 0:
            raise ValueError(f"std must be at least 0 (a standard deviation of ln(s)), got {std}")
        self.mean, self.std = mean, std

    def __call__(self, seed: int, step: int, index: Tensor, name: str = "") -> Tensor:
        """Levels (B,) in float64 for the items ``index`` (B,), a pure function of all arguments."""
        normal = rng.normal(seed, step, index, (), name + "level", torch.float64)
        return (self.mean + self.std * normal).exp()


class UniformLevels:
    """The time of the linear path, s / (1 + s), is uniform.

    Args:
        low: Least time of the linear path.
        high: Largest time of the linear path; drawn times are below it.

    >>> s = UniformLevels()(seed=0, step=0, index=torch.arange(10_000))
    >>> round((s / (1 + s)).mean().item(), 1)
    0.5
    """

    def __init__(self, low: float = 0.0, high: float = 1.0) -> None:
        if not 0 <= low < high <= 1:
            raise ValueError(f"low and high must satisfy 0 <= low < high <= 1, got {low} and {high}")
        self.low, self.high = low, high

    def __call__(self, seed: int, step: int, index: Tensor, name: str = "") -> Tensor:
        """Levels (B,) in float64 for the items ``index`` (B,), a pure function of all arguments."""
        t = self.low + (self.high - self.low) * rng.uniform(
            seed, step, index, (), name + "level", torch.float64
        )
        return t / (1 - t)
