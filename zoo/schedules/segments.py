"""What a `Schedule` is made of: segments of the run, and the budgets whose models it makes.

Numbers of updates are kept as Python integers, whatever a caller gives: NumPy's integers and whole floats
are converted, anything else is refused here, before a run starts.
"""

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from zoo.schedules.shapes import Shape, check_shape, level

Phase = Literal["warmup", "stable", "decay"]
Inclusive = Literal["start", "end", "neither"]
_CHUNK = 1 << 18  # updates at once: 2 MB


def whole(name: str, value: Any) -> int:
    """A number of updates as a Python integer.

    Args:
        name: The argument, for the error.
        value: An integer of any type, or a float such as 400.0.

    Raises:
        ValueError: it is not a whole number.

    >>> whole("warmup", 400.0)
    400
    """
    if hasattr(value, "__index__"):
        return operator.index(value)
    if isinstance(value, Real) and float(value).is_integer():
        return int(float(value))
    raise ValueError(f"{name} must be a whole number of updates, got {value!r}")


def check_ratio(name: str, value: float) -> None:
    """Refuses a level that a decay cannot end at.

    Raises:
        ValueError: it is above the peak, below 0 or no number.
    """
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be a share of the peak learning rate from 0 to 1, got {value}")


def _convert(made: Any, to: Callable[[str, Any], Any], *names: str) -> None:
    """Gives fields of a frozen dataclass the types that they are declared with, which JSON needs, too."""
    for name in names:
        object.__setattr__(made, name, to(name, getattr(made, name)))


def _number(name: str, value: Any) -> float | None:
    return None if value is None else float(value)


@dataclass(frozen=True)
class Segment:
    """Updates ``start`` to ``end - 1``, whose factors go from one level to another.

    Args:
        phase: What the segment is: warmup, stable or decay.
        start: Its first update.
        end: The first update after it.
        start_factor: The level that it comes from, as a multiple of the peak learning rate.
        end_factor: The level that it goes to.
        shape: How it goes there (`zoo.schedules.level`).
        parameter: The number that the shapes ``power`` and ``lowered_linear`` need.
        inclusive: Which of the two levels an update of the segment has. With n updates, number j of them
            stands at j / n (``start``; optax, transformers), (j + 1) / n (``end``) or (j + 1) / (n + 1)
            (``neither``).
        span: The updates at which the ramp is at ``start_factor`` and at ``end_factor``, where these are
            fractions or lie elsewhere (`zoo.schedules.one_cycle`); None takes them from ``inclusive``.

    Raises:
        ValueError: no updates, a span that does not cover them, or a shape that cannot go from
            ``start_factor`` to ``end_factor``.
    """

    phase: Phase
    start: int
    end: int
    start_factor: float = 1.0
    end_factor: float = 1.0
    shape: Shape = "linear"
    parameter: float | None = None
    inclusive: Inclusive = "end"
    span: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        _convert(self, whole, "start", "end")
        _convert(self, _number, "start_factor", "end_factor", "parameter")
        for name, value, known in (("phase", self.phase, Phase), ("inclusive", self.inclusive, Inclusive)):
            if value not in get_args(known):
                raise ValueError(f"{name} must be one of {', '.join(get_args(known))}, got {value!r}")
        if not 0 <= self.start < self.end:
            raise ValueError(
                f"a segment needs at least one update, from a start of 0 or more, got {self.start} to "
                f"{self.end}"
            )
        if self.span is not None:
            first, last = map(float, self.span)
            if not (math.isfinite(last - first) and first <= self.start and self.end - 1 <= last > first):
                raise ValueError(
                    f"span must cover the updates {self.start} to {self.end - 1}, got {first} to {last}"
                )
            object.__setattr__(self, "span", (first, last))  # of a list, as JSON has it
        check_shape(self.shape, self.start_factor, self.end_factor, self.parameter)

    def __len__(self) -> int:
        """Its updates."""
        return self.end - self.start

    @property
    def curve(self) -> tuple[Any, ...]:
        """What its factors depend on beside the update: segments of one curve agree where both are."""
        if self.is_constant:
            return (self.end_factor,)
        return (self.shape, self.start_factor, self.end_factor, self.parameter, *self._ends())

    @property
    def is_constant(self) -> bool:
        """Whether all its factors are the same."""
        return self.start_factor == self.end_factor and self.shape != "lowered_linear"

    def factor(self, step: int) -> float:
        """The factor of update number ``step`` of the run."""
        start, end = self._ends()
        return level(
            self.shape, (step - start) / (end - start), self.start_factor, self.end_factor, self.parameter
        )

    def factors_at(self, steps: NDArray[Any]) -> NDArray[np.float64]:
        """The factors of many updates (N,); a fraction is a point between two."""
        if self.is_constant:
            return np.full(len(steps), self.end_factor)
        start, end = self._ends()
        p = np.asarray((steps - start) / (end - start), dtype=np.float64)
        return level(self.shape, p, self.start_factor, self.end_factor, self.parameter)

    def sum(self, stop: int) -> float:
        """The sum of its factors before update number ``stop``."""
        stop = min(stop, self.end)
        count = max(stop - self.start, 0)
        if self.is_constant or count == 0:
            return count * self.end_factor
        if self.shape == "linear":
            return count * (self.factor(self.start) + self.factor(stop - 1)) / 2
        pieces = (np.arange(k, min(k + _CHUNK, stop)) for k in range(self.start, stop, _CHUNK))
        return math.fsum(float(self.factors_at(piece).sum()) for piece in pieces)

    def _ends(self) -> tuple[float, float]:
        """The updates at which the ramp is at its first and its last level."""
        if self.span is not None:
            return self.span
        shift = int(self.inclusive != "start")
        return self.start - shift, self.end - shift + (self.inclusive == "neither")


@dataclass(frozen=True)
class Merge:
    """Weights saved on the way, whose weighted mean stands in for a decay (WSM, arXiv 2507.17634).

    Args:
        start: Updates done at the first snapshot.
        end: Updates done at the last, where the merge is made.
        every: Updates between two snapshots.
        shape: The decay that the weights of the mean imitate (`zoo.schedules.merge_weights`).
        min_ratio: The level that this decay ends at.
        parameter: The number that some shapes need.

    Raises:
        ValueError: the snapshots do not fill the window, or the shape cannot do this.
    """

    start: int
    end: int
    every: int
    shape: Shape = "linear"
    min_ratio: float = 0.0
    parameter: float | None = None

    def __post_init__(self) -> None:
        _convert(self, whole, "start", "end", "every")
        _convert(self, _number, "min_ratio", "parameter")
        if not (0 <= self.start < self.end and self.every > 0 and (self.end - self.start) % self.every == 0):
            raise ValueError(
                f"snapshots every {self.every} updates must fill the window from {self.start} to "
                f"{self.end}: its length must be a multiple of them"
            )
        check_ratio("min_ratio", self.min_ratio)
        check_shape(self.shape, 1.0, self.min_ratio, self.parameter)

    @property
    def steps(self) -> range:
        """Updates done at each snapshot."""
        return range(self.start, self.end + 1, self.every)


@dataclass(frozen=True)
class Budget:
    """A number of updates that a model is wanted for, and where on the trunk it is made.

    Args:
        updates: The budget's name: what a run for it alone would spend.
        pre: Updates done where the decay begins: the checkpoint to branch from; None without a stable phase.
        post: Updates done (along the branch, if there is one) where the model is made.
        branch: The decay beside the trunk, if it is not on it.
        merge: The snapshots whose mean is the model, if it is merged.
    """

    updates: int
    pre: int | None
    post: int
    branch: Segment | None = None
    merge: Merge | None = None

    def __post_init__(self) -> None:
        _convert(self, whole, "updates", "post", *([] if self.pre is None else ["pre"]))
