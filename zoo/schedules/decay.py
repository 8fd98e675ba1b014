"""`Decay`: how long, and how, a learning rate falls before a budget."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from zoo.schedules.segments import Inclusive, Segment, check_ratio, whole
from zoo.schedules.shapes import Shape, check_shape

DecayOf = Literal["budget", "period", "explicit"]


@dataclass(frozen=True)
class Decay:
    """The fall of a learning rate before a budget: 10 % of it, linear to a tenth, as in WSD-S's paper.

    In a config: ``decay: {length: 0.2, shape: 1-sqrt, min_ratio: 0}``, or the length alone, ``decay: 0.2``.

    Args:
        length: How long it is: a share of what ``of`` says, or updates. One number for all budgets, or one
            for each.
        of: What ``length`` is a share of: the ``budget`` (as in the paper), the ``period`` since the budget
            before (as in Levanter and OLMo-core); or ``explicit``: it is a number of updates.
        shape: How it falls (`zoo.schedules.level`).
        min_ratio: The level that it ends at, as a share of the peak.
        parameter: The number that some shapes need.

    Raises:
        ValueError: lengths, a level or a parameter out of range.

    >>> Decay(0.1).updates([1000, 4000]), Decay(0.1, of="period").updates([1000, 4000])
    ([100, 400], [100, 300])
    """

    length: float | list[float] = 0.1
    of: DecayOf = "budget"
    shape: Shape = "linear"
    min_ratio: float = 0.1
    parameter: float | None = None

    def __post_init__(self) -> None:
        if self.of not in ("budget", "period", "explicit"):
            raise ValueError(f"of must be 'budget', 'period' or 'explicit', got {self.of!r}")
        check_ratio("min_ratio", self.min_ratio)
        check_shape(self.shape, 1.0, self.min_ratio, self.parameter)
        lengths = self._lengths(1)
        if self.of == "explicit":
            lengths = [whole("length (of: explicit)", value) for value in lengths]
            if any(value < 0 for value in lengths):
                raise ValueError(f"decays of explicit length are numbers of updates from 0, got {lengths}")
        elif any(not 0 <= value <= 1 for value in lengths):
            raise ValueError(
                f"decays are shares of the {self.of} between 0 and 1, got {lengths}: for numbers of updates "
                "say of: explicit"
            )

    @classmethod
    def given(cls, decay: "Decay | float | Sequence[float]") -> "Decay":
        """A decay, or one of a given length that is otherwise the default."""
        if isinstance(decay, Decay):
            return decay
        return cls([*decay] if isinstance(decay, Sequence | np.ndarray) else decay)

    def updates(self, budgets: Sequence[int]) -> list[int]:
        """The length of each budget's decay in updates.

        Raises:
            ValueError: not one length for each budget, or a decay that rounds to no update.
        """
        each = self._lengths(len(budgets))
        if len(each) != len(budgets):
            raise ValueError(
                f"give one decay for all budgets or one for each of the {len(budgets)}, got {len(each)}"
            )
        if self.of == "explicit":
            return [int(value) for value in each]
        found = []
        for before, total, share in zip([0, *budgets], budgets, each, strict=False):
            length = total if self.of == "budget" else total - before
            found.append(int(share * length + 0.5))
            if share > 0 and found[-1] == 0:
                raise ValueError(
                    f"a decay of {share:g} of {length} updates rounds to none: lengthen it, or say decay: 0"
                )
        return found

    def segment(self, start: int, end: int, inclusive: Inclusive = "end", top: float = 1.0) -> Segment:
        """The ramp from ``top`` down over the updates ``start`` to ``end`` - 1."""
        # An update at a learning rate of zero would do nothing: the ramp to zero is aimed one update further.
        aimed = "neither" if inclusive == "end" and self.min_ratio == 0 else inclusive
        return Segment("decay", start, end, top, self.min_ratio, self.shape, self.parameter, aimed)

    def _lengths(self, count: int) -> list[float]:
        many = isinstance(self.length, Sequence | np.ndarray)
        return [*self.length] if many else [self.length] * count  # type: ignore[misc, list-item]
