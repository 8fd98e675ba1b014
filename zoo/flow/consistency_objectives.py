"""The two objectives of consistency models, discrete and continuous in time: what a loss is made of, by name.

Their losses are in `zoo.flow.consistency`. Sources: Song et al. 2023, arXiv 2303.01469 (CD, CT); Song and
Dhariwal 2023, arXiv 2310.14189 (iCT); Geng et al. 2024, arXiv 2406.14548 (ECT); Lu and Song 2024, arXiv
2410.11081 (sCT, sCD).
"""

from typing import Literal

import torch
from torch import Tensor, nn

from zoo.flow.consistency_times import GridLevels, RatioLevels
from zoo.flow.distances import PseudoHuber
from zoo.flow.noise_levels import LogNormalLevels, UniformLevels
from zoo.flow.paths import Path, TrigonometricPath
from zoo.flow.preconditioning import DataPrediction, Preconditioning
from zoo.flow.tangent import FiniteDifference, total_derivative
from zoo.flow.uncertainty import LogVariance


class DiscreteConsistency:
    """d(f(z_t, t), sg f(z_r, r)) over pairs of noise levels: CT, iCT, ECT; with a teacher CD and ECD.

    | method | levels | distance | teacher |
    |---|---|---|---|
    | ECT (default) | `RatioLevels` | the plain norm | none |
    | ECD | `RatioLevels` | the plain norm | one Euler step |
    | iCT | `GridLevels` with ``double_every`` | `PseudoHuber` | none |
    | CT | `GridLevels` with ``grow_over``, ``mean: null`` | any; ``target_decay``, ``decay_grows`` | none |
    | CD | the same, ``first: 18`` | any; with ``target_decay`` | one Heun step |

    Args:
        levels: Draws the pairs; `RatioLevels` if not given.
        distance: A module from two (B, ...) to (B,); `PseudoHuber` with c = 1e-8, the plain norm, if not
            given.
        weight: Of each item: 1 / (s - s') for "gap" (ECT on CIFAR-10, iCT), (s^2 + sd^2) / (s sd)^2 for "edm"
            (ECT on ImageNet-64), 1 for "none".
        target_decay: Decay of the average of weights that gives the targets; null takes the weights
            themselves, as all methods from iCT on do.
        decay_grows: Raise that decay to the power (first + 1) / (N + 1) while the N steps of `GridLevels`
            grow, as CT does, so that the average gets slower.
        second_order: Whether the teacher's step is Heun's, as in CD, or Euler's, as in ECD.
    """

    def __init__(
        self,
        levels: RatioLevels | GridLevels | None = None,
        distance: nn.Module | None = None,
        weight: Literal["gap", "edm", "none"] = "gap",
        target_decay: float | None = None,
        decay_grows: bool = False,
        second_order: bool = False,
    ) -> None:
        if weight not in ("gap", "edm", "none"):
            raise ValueError(f"weight must be 'gap', 'edm' or 'none', got {weight!r}")
        if target_decay is not None and not 0 <= target_decay < 1:
            raise ValueError(f"target_decay must be in [0, 1), or null, got {target_decay}")
        if decay_grows and (target_decay is None or not isinstance(levels, GridLevels)):
            raise ValueError(
                "decay_grows needs a target_decay, and GridLevels for levels, whose steps it follows; got "
                f"{target_decay} and {type(levels).__name__}"
            )
        self.levels = RatioLevels() if levels is None else levels
        self.distance = PseudoHuber(1e-8) if distance is None else distance
        self.weight: Literal["gap", "edm", "none"] = weight
        self.target_decay, self.decay_grows = target_decay, decay_grows
        self.second_order = second_order

    def decay(self, step: int) -> float:
        """The decay of the targets' average after ``step`` updates.

        Raises:
            ValueError: the average does not exist.
        """
        if self.target_decay is None:
            raise ValueError("target_decay is null: the weights themselves give the targets")
        if not self.decay_grows or not isinstance(self.levels, GridLevels):
            return self.target_decay
        return self.target_decay ** ((self.levels.first + 1) / (self.levels.steps(step) + 1))

    def weigh(self, s: Tensor, lower: Tensor, sigma_data: float) -> Tensor:
        """Weights (B,) of the noise levels ``s`` and ``lower`` (B,)."""
        if self.weight == "gap":
            return 1 / (s - lower)
        return torch.ones_like(s) if self.weight == "none" else (s**2 + sigma_data**2) / (s * sigma_data) ** 2


class ContinuousConsistency:
    """The continuous limit on the trigonometric path: sCT; with a teacher sCD (arXiv 2410.11081).

    Args:
        levels: Draws noise levels; log-normal (-1, 1.4) if not given.
        warmup: Updates over which the second term of the tangent grows from 0 to its full weight.
        eps: Bounds the normalized tangent of nearly perfect items.
        weight: Of each item: 1 / s for "noise", or "none".
        derivative: How the tangent is differentiated; exactly if not given.
        uncertainty: A learned variance of each noise level; None for none.
    """

    def __init__(
        self,
        levels: LogNormalLevels | UniformLevels | None = None,
        warmup: int = 10_000,
        eps: float = 0.1,
        weight: Literal["noise", "none"] = "noise",
        derivative: FiniteDifference | None = None,
        uncertainty: LogVariance | None = None,
    ) -> None:
        if warmup < 0:
            raise ValueError(f"warmup must be at least 0 updates, got {warmup}")
        if not eps > 0:
            raise ValueError(f"eps must be positive, got {eps}")
        if weight not in ("noise", "none"):
            raise ValueError(f"weight must be 'noise' or 'none', got {weight!r}")
        self.levels = LogNormalLevels(-1.0, 1.4) if levels is None else levels
        self.warmup, self.eps = warmup, eps
        self.weight: Literal["noise", "none"] = weight
        self.derivative = total_derivative if derivative is None else derivative
        self.uncertainty = uncertainty


def objective_path(
    objective: DiscreteConsistency | ContinuousConsistency,
    preconditioning: Preconditioning,
    path: Path | None,
    sigma_data: float,
) -> Path | None:
    """The path that an objective trains on: a continuous one the trigonometric, a discrete one the given.

    Raises:
        ValueError: a continuous objective was given another path or a boundary, or the preconditioning does
            not keep clean data.
    """
    if isinstance(preconditioning, DataPrediction):
        raise ValueError(
            "DataPrediction does not keep clean data as they are, which a consistency model must: use "
            "EDMPreconditioning or VelocityPrediction"
        )
    if isinstance(objective, DiscreteConsistency):
        return path
    if path is not None and not isinstance(path, TrigonometricPath):
        raise ValueError(f"a continuous objective trains on the trigonometric path, got path={path}")
    if getattr(preconditioning, "boundary", 0) > 0:
        raise ValueError(f"a continuous objective keeps data at the level 0, got {preconditioning}")
    return TrigonometricPath(sigma_data) if path is None else path
