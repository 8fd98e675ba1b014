"""Problems whose runs are known without running them: truths that a schedule can be held against.

The river valley (Wen et al. 2024, arXiv 2410.05192) in its simplest forms. The loss is a river, which
descends with the sum of the learning rates, and a hill, on which the noise of the gradients holds the
weights at a height that grows with the learning rate:

* `hill_losses`, `stationary_hill`, `greedy_rates`: one hill coordinate, loss 0.5 curvature x^2, exactly;
* `spectrum_losses`: many coordinates from river to hill, of curvatures i^-1.5 say, exactly in
  expectation;
* `valley_run`: hill and river in a curved valley of two dimensions, by simulation. The formula is ours:
  that of the paper's figure was not at hand.

The bi-gram, whose rivers and hills are tokens, is `zoo.datamodules.Bigram`.

All take absolute learning rates, one for each update: ``[peak * factor for factor in plan.factors()]``.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


def _rates(rates: ArrayLike) -> Array:
    values = np.asarray(rates, dtype=np.float64)
    if values.ndim != 1 or not (np.isfinite(values).all() and (values >= 0).all()):
        raise ValueError(
            "rates must be a list of learning rates, finite and at least 0, one for each update, got an "
            f"array of shape {values.shape} from {values.min(initial=0)} to {values.max(initial=0)}"
        )
    return values


def stationary_hill(rate: float, curvature: float = 1.0, noise: float = 1.0) -> float:
    """The expected hill loss that SGD at a constant learning rate settles at.

    Args:
        rate: Learning rate, below 2 / curvature.
        curvature: Second derivative of the loss.
        noise: Standard deviation of the gradient's noise.

    Returns:
        rate noise^2 / (2 (2 - rate curvature)).

    Raises:
        ValueError: at this rate SGD diverges.

    >>> round(stationary_hill(0.5), 6)
    0.166667
    """
    if not 0 <= rate * curvature < 2:
        raise ValueError(
            f"rate times curvature must lie in [0, 2), where SGD is stable, got {rate} times {curvature}"
        )
    return rate * noise**2 / (2 * (2 - rate * curvature))


def hill_losses(
    rates: ArrayLike, curvature: float = 1.0, noise: float = 1.0, start: float | None = None
) -> Array:
    """The expected hill loss before the first update and after each.

    With loss 0.5 curvature x^2 and gradients curvature x + noise: E x^2 goes to
    (1 - rate curvature)^2 E x^2 + rate^2 noise^2.

    Args:
        rates: Learning rates (T,).
        curvature: Second derivative of the loss.
        noise: Standard deviation of the gradient's noise.
        start: The expected loss at the start; None takes the stationary one of the first rate.

    Returns:
        (T + 1,) expected losses.

    Raises:
        ValueError: rates that are negative or not finite.

    >>> hill_losses([0.25, 0.2], start=stationary_hill(0.5)).round(6).tolist()
    [0.166667, 0.125, 0.1]
    """
    steps = _rates(rates)
    first = stationary_hill(float(steps[0]), curvature, noise) if start is None else start
    square = 2 * first / curvature  # E x^2
    squares = [square]
    for rate in steps:
        square = (1 - rate * curvature) ** 2 * square + rate**2 * noise**2
        squares.append(square)
    return 0.5 * curvature * np.array(squares)


def greedy_rates(rate: float, count: int, curvature: float = 1.0) -> Array:
    """The learning rates that lower the hill loss the most in each update, from stationarity at ``rate``.

    The first is half of ``rate``; from then on 1 / rate grows by ``curvature`` with each: the shape
    ``inv_greedy``. Before update k of them the hill loss is
    rate noise^2 / (2 (2 + (k - 1) rate curvature)), for k = 0 and all others.

    Args:
        rate: The constant learning rate until then.
        count: Updates.
        curvature: Second derivative of the loss.

    Returns:
        (count,) rate / (2 + k rate curvature).

    >>> greedy_rates(0.5, 3).round(6).tolist()
    [0.25, 0.2, 0.166667]
    """
    return rate / (2 + np.arange(count, dtype=np.float64) * rate * curvature)


def spectrum_losses(
    rates: ArrayLike,
    at: Sequence[int],
    modes: int = 2000,
    exponent: float = 1.5,
    noise: float = 0.05,
    start: float = 1.0,
) -> list[float]:
    """The expected excess loss of SGD on a quadratic of many curvatures.

    Mode i = 1, 2, ... has curvature i^-exponent, E w^2 = ``start`` at first, and gradient noise whose
    variance is ``noise`` times its curvature, as label noise has it. The small curvatures are the river,
    the large ones the hill. Which schedule wins depends on ``noise``: a little, and constant rates with a
    short decay win; ten times as much, and the cosine does.

    Args:
        rates: Learning rates (T,), below 2 (the largest curvature is 1).
        at: Numbers of updates, of any order.
        modes: How many.
        exponent: Of the curvatures' decrease.
        noise: Variance of the gradient's noise over the curvature.
        start: Expected square of each coordinate at first.

    Returns:
        The loss, 0.5 sum of curvature times E w^2, after each number of updates in ``at``.

    Raises:
        ValueError: rates that are negative or not finite, or ``at`` beyond them.

    >>> [round(loss, 4) for loss in spectrum_losses([0.5] * 100, at=[0, 10, 100])]
    [1.2838, 0.4013, 0.1862]
    """
    steps, wanted = _rates(rates), set(at)
    if wanted and not 0 <= min(wanted) <= max(wanted) <= len(steps):
        raise ValueError(f"at must lie within the {len(steps)} updates of rates, got {sorted(wanted)}")
    curvature = np.arange(1, modes + 1, dtype=np.float64) ** -exponent
    squares = np.full(modes, start)
    losses: dict[int, float] = {}
    for done in range(max(wanted, default=-1) + 1):
        if done in wanted:
            losses[done] = float(0.5 * curvature @ squares)
        if done < len(steps):
            rate = steps[done]
            squares *= (1 - rate * curvature) ** 2
            squares += rate**2 * noise * curvature
    return [losses[done] for done in at]


@dataclass(frozen=True)
class ValleyLosses:
    """Expected losses in the valley.

    Attributes:
        hill: (T + 1,) height above the river.
        river: (T + 1,) the river's own loss.
    """

    hill: Array
    river: Array

    @property
    def total(self) -> Array:
        """(T + 1,) their sum."""
        return self.hill + self.river


def valley_run(
    rates: ArrayLike,
    generator: np.random.Generator,
    replicas: int = 400,
    curvature: float = 1.0,
    slope: float = 0.05,
    noise: float = 1.0,
) -> ValleyLosses:
    """SGD in the valley 0.5 curvature (x - sin y)^2 - slope y, with noise across it, from the origin.

    The river x = sin y winds, so noise on the hill also turns into progress lost along the river.

    Args:
        rates: Learning rates (T,).
        generator: Draws the noise.
        replicas: Independent runs, whose mean is returned.
        curvature: Of the hill.
        slope: Of the river.
        noise: Standard deviation of the noise on the gradient of x.

    Returns:
        Losses before the first update and after each.

    Raises:
        ValueError: rates that are negative or not finite.

    >>> run = valley_run([0.5] * 300, np.random.default_rng(0))
    >>> bool(0.1 < run.hill[100:].mean() < stationary_hill(0.5))  # the bends of the river take a part
    True
    """
    steps = _rates(rates)
    x, y = np.zeros(replicas), np.zeros(replicas)
    hill, river = np.zeros(len(steps) + 1), np.zeros(len(steps) + 1)
    for done, rate in enumerate(steps, start=1):
        above = x - np.sin(y)
        gradient = curvature * above + noise * generator.standard_normal(replicas)
        # Both coordinates move from the same point.
        x, y = x - rate * gradient, y + rate * (curvature * above * np.cos(y) + slope)
        hill[done] = 0.5 * curvature * np.mean((x - np.sin(y)) ** 2)
        river[done] = -slope * np.mean(y)
    return ValleyLosses(hill, river)
