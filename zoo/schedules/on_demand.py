"""`DecayOnDemand`: when a decay begins that no plan foresaw.

OLMo-core's ``override_decay`` as two triggers: a file that somebody makes, or a number that has settled. The
gap between the loss of averaged and of current weights (`zoo.callbacks.EMAGap`, watched with ``mode: min``)
estimates the height of the hill that a decay would come down: it falls below zero as the hill builds up, and
where it has settled, waiting adds river only (Marin 8B, report of 2025).
"""

import math
from typing import Literal

from zoo.schedules.decay import Decay
from zoo.schedules.schedule import Schedule
from zoo.schedules.segments import Inclusive, whole


class DecayOnDemand:
    """Begins a decay when a file appears, or when a logged number has settled.

    Args:
        file: The file, looked for in the run's folder if the path is relative; it is deleted when the
            decay begins.
        monitor: The logged number, ``ema_gap`` say. None watches none.
        mode: Whether the number grows (``max``) or falls (``min``) until it settles.
        patience: Looks without a new extreme until the decay begins.
        min_delta: By what share of the extreme a value must lie beyond it to be a new one.
        every: Updates between two looks: the period at which ``monitor`` is logged.
        decay: The decay (`Decay`): its length is a share of the updates that will have been made at its end;
            a number is a length.
        inclusive: Which end of the decay has an update of its own (`zoo.schedules.Segment`).
        then: ``stop`` the run after it, or ``continue`` with the plan.

    Raises:
        ValueError: nothing to look for, or numbers out of range.
    """

    def __init__(
        self,
        file: str | None = "decay.now",
        monitor: str | None = None,
        mode: Literal["max", "min"] = "max",
        patience: int = 5,
        min_delta: float = 0.01,
        every: int = 10,
        decay: Decay | float = 0.1,
        inclusive: Inclusive = "end",
        then: Literal["stop", "continue"] = "stop",
    ) -> None:
        if file is None and monitor is None:
            raise ValueError("DecayOnDemand needs a file to look for or a monitor to watch")
        patience, every = whole("patience", patience), whole("every", every)
        if patience < 1 or every < 1 or min_delta < 0:
            raise ValueError(
                f"patience and every must be at least 1 and min_delta at least 0, got {patience}, {every}, "
                f"{min_delta}"
            )
        if mode not in ("max", "min"):
            raise ValueError(f"mode must be 'max' or 'min', got {mode!r}")
        decay = Decay.given(decay)
        if decay.of != "budget" or not isinstance(decay.length, float) or not 0 < decay.length < 1:
            raise ValueError(f"decay must be a share between 0 and 1, got {decay.length} of {decay.of}")
        self.file, self.monitor, self.every = file, monitor, every
        self.mode, self.patience, self.min_delta = mode, patience, min_delta
        self.decay, self.inclusive, self.then = decay, inclusive, then
        self.best, self.waited = -math.inf, 0

    def stalled(self, value: float) -> bool:
        """Takes the next value of the monitor; True if it was the last of ``patience`` without an extreme."""
        value = value if self.mode == "max" else -value  # the extreme is a maximum from here on
        if not math.isfinite(self.best) or value > self.best + self.min_delta * abs(self.best):
            self.best, self.waited = value, 0
        else:
            self.waited += 1
        return self.waited >= self.patience

    def begin(self, trunk: Schedule, step: int) -> Schedule:
        """The trunk with a decay that begins at ``step``; monitoring restarts.

        Raises:
            ValueError: the plan has no room for it.
        """
        share = float(self.decay.length)  # type: ignore[arg-type]
        updates = max(int(step * share / (1 - share) + 0.5), 1)
        made = trunk.with_decay(step, updates, self.decay, self.inclusive, self.then)
        self.best, self.waited = -math.inf, 0
        return made
