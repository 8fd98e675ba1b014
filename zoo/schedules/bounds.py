"""A score for any schedule before it is run: the convex bound on the loss of the last iterate.

Schaipp et al. 2025, arXiv 2501.18965: for subgradient descent on a convex function whose subgradients
have at most norm G, from a point at distance D of a minimum, with rates eta_1 ... eta_T, the loss after
T updates is above the minimum by no more than

    D^2 / (2 sum eta) + G^2 sum eta^2 / (2 sum eta)
    + 1/2 sum over k < T of eta_k / (sum over t > k of eta_t)
      * G^2 (sum over t >= k of eta_t^2) / (sum over t >= k of eta_t).

The paper finds that this bound, though no network is convex, orders schedules as measured losses do, and
shows the drop of a decay. With eta = rate * factors its three terms are t1 / rate, rate * t2 and
rate * t3, least at rate = sqrt(t1 / (t2 + t3)). One bound for each schedule, at its own best rate, is the
fair comparison; the numbers are no forecast of a loss (`zoo.schedules.PowerLaw` is).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True)
class ConvexBound:
    """The bound for one schedule, at any base learning rate.

    Attributes:
        distance_term: t1, what is left of the way to the minimum.
        noise_term: t2, of the mean of the iterates.
        last_term: t3, what the last iterate is worse by.
    """

    distance_term: float
    noise_term: float
    last_term: float

    @property
    def rate(self) -> float:
        """The base learning rate at which the bound is least."""
        return math.sqrt(self.distance_term / (self.noise_term + self.last_term))

    @property
    def bound(self) -> float:
        """The bound there: 2 sqrt(t1 (t2 + t3))."""
        return 2 * math.sqrt(self.distance_term * (self.noise_term + self.last_term))

    def at(self, rate: float) -> float:
        """The bound at a base learning rate."""
        return self.distance_term / rate + rate * (self.noise_term + self.last_term)


def convex_bound(
    factors: ArrayLike,
    distance: float = 1.0,
    gradient_norm: float = 1.0,
    lengths: ArrayLike | None = None,
) -> ConvexBound:
    """The convex bound of a schedule, in time linear in its length.

    Args:
        factors: What multiplies the base rate in each update (T,), as `Schedule.factors` gives it.
            Updates at 0 do nothing and count as none.
        distance: D.
        gradient_norm: G.
        lengths: For how many updates each factor is held (T,), whole numbers from 1; None for one each.

    Returns:
        The terms of the bound; ``bound`` and ``rate`` are those of the best base rate.

    Raises:
        ValueError: factors that are negative, not finite or all zero; a D or G that is not positive;
            lengths that are not one for each factor, or below 1.

    >>> from zoo.schedules import Decay, constant, wsd
    >>> plans = constant(1000), wsd([1000], decay=Decay(1.0, min_ratio=0.0))
    >>> [round(convex_bound(plan.factors()).bound, 4) for plan in plans]
    [0.0921, 0.0634]
    """
    values = np.asarray(factors, dtype=np.float64)
    if values.ndim != 1 or not np.isfinite(values).all() or (values < 0).any() or not (values > 0).any():
        raise ValueError(
            "factors must be a list of finite numbers of at least 0, one for each update and not all zero, "
            f"got an array of shape {values.shape}"
        )
    for name, value in (("distance", distance), ("gradient_norm", gradient_norm)):
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} must be a positive number, got {value}")
    held = np.ones(len(values)) if lengths is None else np.asarray(lengths, dtype=np.float64)
    if held.shape != values.shape or not (held >= 1).all() or (held % 1).any():
        raise ValueError(
            f"lengths must be whole numbers from 1, one for each of the {len(values)} factors, got an array "
            f"of shape {held.shape}"
        )
    held, values = held[values > 0], values[values > 0]  # without the others the last sums would be 0 / 0
    sums = np.cumsum((held * values)[::-1])[::-1]  # of factors from each step on
    squares = np.cumsum((held * values**2)[::-1])[::-1]
    last = _last_term(values, held, sums, squares)
    return ConvexBound(
        distance_term=distance**2 / (2 * float(sums[0])),
        noise_term=gradient_norm**2 * float(squares[0] / sums[0]) / 2,
        last_term=gradient_norm**2 * float(last) / 2,
    )


def _last_term(
    values: NDArray[np.float64],
    held: NDArray[np.float64],
    sums: NDArray[np.float64],
    squares: NDArray[np.float64],
) -> float:
    """The sum over all updates but the last of eta_k Q_k / (S_(k+1) S_k), S and Q the sums from k on of the
    factors and of their squares.

    Within a step of n updates at factor v, with S and Q after it, Q_k = v S_k + c for c = Q - v S, and the
    sum has a closed form: c (1 / S - 1 / (S + n v)) + v (psi(S / v + n) - psi(S / v)).
    """
    from scipy.special import digamma

    after, left = sums[1:], squares[1:]
    value, count = values[:-1], held[:-1]
    rest = left - value * after
    # One update's term as it stands: the difference of two digammas would cancel.
    one = value / after * squares[:-1] / sums[:-1]
    total = float(np.sum(one[count == 1]))
    long = count > 1
    if long.any():
        value, count, after, rest = value[long], count[long], after[long], rest[long]
        ratio = after / value
        inverse = count * value / (after * (after + count * value))
        total += float(np.sum(rest * inverse + value * (digamma(ratio + count) - digamma(ratio))))
    # Of the last step's updates all but the last: S_k = Q_k / v there.
    return total + float(values[-1] * (digamma(held[-1]) - digamma(1.0)))


def anytime_bounds(
    factors: ArrayLike,
    stops: Sequence[int],
    rate: float | None = None,
    distance: float = 1.0,
    gradient_norm: float = 1.0,
) -> list[float]:
    """The convex bounds of one run after several numbers of updates: all budgets of one WSD-S, say.

    Args:
        factors: What multiplies the base rate in each update (T,).
        stops: Numbers of updates, each from 1 to T.
        rate: The run's base rate; None takes the best one for the last stop.
        distance: D.
        gradient_norm: G.

    Returns:
        A bound for each stop, all at the same base rate.

    Raises:
        ValueError: no stops, stops beyond the factors, a rate that is not positive, or what
            `convex_bound` refuses.

    >>> from zoo.schedules import wsds
    >>> plan = wsds([500, 1000])
    >>> [round(bound, 4) for bound in anytime_bounds(plan.factors(), [450, 500, 900, 1000])]
    [0.1323, 0.1094, 0.0997, 0.074]
    """
    values = np.asarray(factors, dtype=np.float64)
    if not stops or not 1 <= min(stops) <= max(stops) <= len(values):
        raise ValueError(f"stops must be numbers of updates from 1 to {len(values)}, got {list(stops)}")
    if rate is not None and not (math.isfinite(rate) and rate > 0):
        raise ValueError(f"rate must be a positive number, or None for the best, got {rate}")
    bounds = [convex_bound(values[:stop], distance, gradient_norm) for stop in stops]
    shared = bounds[int(np.argmax(stops))].rate if rate is None else rate
    return [bound.at(shared) for bound in bounds]
