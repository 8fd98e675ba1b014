"""The multi-power law: the loss that a learning-rate schedule will lead to, before it is run.

Luo et al. 2025, arXiv 2503.12811. With rates eta_1 ... eta_t, eta_0 = 0 and S_k = eta_k + ... + eta_t,

    L(t) = L0 + A S_1^-alpha - B sum over k of (eta_(k-1) - eta_k) G(C eta_k^-gamma S_k),
    G(x) = 1 - (1 + x)^-beta.

The sum runs over *all* changes of the learning rate. The first is from 0, and the increases of a warm-up
are among them: with the published constants they add about B times the peak, .13, to every later loss, so
a forecast that leaves them out is far too good (2.860 for a measured 2.979 and a forecast of 2.990).

Constants are fits to one model, data set and batch size each. They were fitted to runs whose learning
rate never rises after its warm-up, so for WSD-S the jumps back to the peak are extrapolation.
"""

import math
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import ArrayLike, NDArray

_BLOCK = 1 << 20  # numbers at once: 8 MB


@dataclass(frozen=True)
class PowerLaw:
    """The constants of the multi-power law for one model.

    Attributes:
        L0: The loss after infinitely many updates.
        A: Factor of what training at a constant rate still gains.
        alpha: Exponent of it.
        B: Loss per unit of learning rate that a decay to zero gains in the end.
        C: How fast it gains it.
        beta: Exponent of it.
        gamma: Exponent of the rates within it.
    """

    L0: float
    A: float
    alpha: float
    B: float
    C: float
    beta: float
    gamma: float

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{field.name} must be a positive number, got {value}")
        if self.gamma >= 1:
            raise ValueError(f"gamma must be below 1, or a decay to zero has no limit, got {self.gamma}")

    def loss(
        self, rates: ArrayLike, at: ArrayLike | None = None, lengths: ArrayLike | None = None
    ) -> NDArray[np.float64]:
        """Forecasts the loss after numbers of updates.

        Args:
            rates: Absolute learning rates (T,), from the run's first update, warm-up included. The first
                update of all must not be cut off, but its rate may be 0.
            at: Numbers of updates done (N,), from 1 to T, not before the first rate above 0; None takes T.
                With ``lengths``, numbers of rates.
            lengths: For how many updates each rate is held (T,); None for one each.

        Returns:
            (N,) losses. The time taken is N times the number of changes of the rate.

        Raises:
            ValueError: rates that are negative or not finite, or numbers of updates out of range.

        >>> from zoo.schedules import constant, wsd
        >>> from zoo.schedules.power_law import MULTI_POWER_LAW
        >>> plans = constant(24_000, 2160), wsd([24_000], 2160)
        >>> rates = [[3e-4 * factor for factor in plan.factors()] for plan in plans]
        >>> [MULTI_POWER_LAW["100M"].loss(each).round(3).item() for each in rates]
        [3.033, 2.933]
        """
        values = np.asarray(rates, dtype=np.float64)
        if values.ndim != 1 or not np.isfinite(values).all() or (values < 0).any():
            raise ValueError(
                "rates must be a list of learning rates, finite and at least 0, one for each update, got an "
                f"array of shape {values.shape}"
            )
        done = np.atleast_1d(np.asarray(len(values) if at is None else at))
        begin = int(np.argmax(values > 0)) + 1 if (values > 0).any() else len(values) + 1
        if done.dtype.kind not in "iu" or not ((done >= begin) & (done <= len(values))).all():
            raise ValueError(
                f"at must be whole numbers of updates from {begin} (the first with a rate above 0) to "
                f"{len(values)} (all rates), got {done.tolist() if done.size < 10 else done}"
            )
        held = values if lengths is None else values * np.asarray(lengths, dtype=np.float64)
        total = np.concatenate([[0.0], np.cumsum(held)])  # (T + 1,) after each number of updates
        change = np.diff(values, prepend=0.0)
        moved = np.flatnonzero(change)
        with np.errstate(divide="ignore"):  # a rate of 0 takes all that a decay can gain at once
            speed = self.C * values[moved] ** -self.gamma
        losses = np.empty(len(done))
        width = max(_BLOCK // max(len(moved), 1), 1)
        for first in range(0, len(done), width):
            block = done[first : first + width]
            after = total[block][:, None] - total[moved]  # (N, K) S_k, not positive where k is still to come
            seen = after > 0
            x = np.multiply(after, speed, out=np.zeros_like(after), where=seen)
            gained = (1 - (1 + x) ** -self.beta) @ change[moved]
            losses[first : first + width] = self.L0 + self.A * total[block] ** -self.alpha + self.B * gained
        return losses


MULTI_POWER_LAW = {
    "25M": PowerLaw(3.04045406, 0.52468604, 0.50786857, 363.78751622, 2.06560812, 0.58279013, 0.64142257),
    "100M": PowerLaw(2.6514477, 0.60115152, 0.45295811, 437.9464276, 2.13245612, 0.59785199, 0.65523644),
    "400M": PowerLaw(2.37474466, 0.65421216, 0.42878731, 523.42464371, 2.02462735, 0.59350493, 0.63472457),
}
"""The authors' fits (github.com/thu-yao-01-luo/MultiPowerLaw, ``src/config.py``), for their models of 25, 100
and 400 million parameters, at a peak of 3e-4 (never below 3e-5) after 2,160 updates of warm-up, up to 72,000
updates.
"""
