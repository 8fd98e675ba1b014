"""The constants of the multi-power law for a model of your own, from a few of its loss curves.

Luo et al. 2025, arXiv 2503.12811, fit theirs to three runs: a constant rate, a cosine, and one that drops
to a lower rate midway. Their objective is taken here too, the Huber loss (delta 1e-3) of the logarithms
of forecast over measured; the minimum is sought by least squares in the logarithms of the constants,
with rates in units of the peak, from a few starts.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from zoo.schedules.power_law import PowerLaw

Array = NDArray[np.float64]
_DELTA = 1e-3


class TrainingCurve(NamedTuple):
    """A measured run.

    Args:
        rates: Absolute learning rates (T,), from the first update on, warm-up included.
        at: Numbers of updates done (N,). Leave the warm-up out, and thin a long curve: hundreds do.
        losses: The loss after each (N,), smoothed or on validation data.
    """

    rates: ArrayLike
    at: ArrayLike
    losses: ArrayLike


def fit_power_law(curves: Sequence[TrainingCurve], evaluations: int = 100) -> PowerLaw:
    """Fits the law to runs of one model on one data set with one batch size.

    Curves should differ in shape: a constant rate alone says nothing of what a decay gains, and the
    constants B, C, beta and gamma would be arbitrary then.

    Args:
        curves: At least two.
        evaluations: Steps of the least squares, from each of four starts.

    Returns:
        The constants of the best fit. Forecast a run that was not among ``curves`` to see how good it is.

    Raises:
        ValueError: fewer than two curves or ten losses, or losses that are not positive numbers, one for
            each number of updates.
    """
    from scipy.optimize import least_squares

    losses = [np.asarray(curve.losses, dtype=np.float64) for curve in curves]
    if len(curves) < 2 or sum(map(np.size, losses)) < 10:
        raise ValueError(
            f"a fit of seven constants needs at least 2 curves and 10 losses, got {len(curves)} curves and "
            f"{sum(map(np.size, losses))} losses"
        )
    for number, (curve, loss) in enumerate(zip(curves, losses, strict=True)):
        if loss.shape != np.shape(curve.at) or not (np.isfinite(loss) & (loss > 0)).all():
            raise ValueError(
                f"curve {number}: losses must be positive numbers, one for each of the {np.size(curve.at)} "
                f"numbers of updates in at, got {loss.shape} from {loss.min()} to {loss.max()}"
            )
    peak = max(float(np.max(curve.rates)) for curve in curves)

    def law(x: Array) -> PowerLaw:
        floor, a, alpha, b, c, beta = map(float, np.exp(x[:6]))
        gamma = float(1 / (1 + np.exp(-x[6])))
        return PowerLaw(floor, a * peak**alpha, alpha, b / peak, c * peak ** (gamma - 1), beta, gamma)

    def errors(x: Array) -> Array:
        made = law(x)
        pairs = zip(curves, losses, strict=True)
        return np.concatenate([np.log(made.loss(curve.rates, curve.at) / loss) for curve, loss in pairs])

    lowest = min(float(loss.min()) for loss in losses)
    bounds = ([-20.0] * 6 + [-6.0], [20.0] * 6 + [6.0])
    fits = [
        least_squares(
            errors,
            [*np.log([floor * lowest, 2 * lowest, 0.45, 0.05 * lowest, speed, 0.6]), 0.6],
            loss="huber",
            f_scale=_DELTA,
            bounds=bounds,
            x_scale=0.3,
            max_nfev=evaluations,
        )
        for floor in (0.9, 0.8)
        for speed in (0.1, 1.0)
    ]
    return law(min(fits, key=lambda fit: float(fit.cost)).x)
