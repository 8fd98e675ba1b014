"""A schedule as a staircase of few steps, for sums over all updates of long runs.

The convex bound and the multi-power law are sums over every update, dominated by the last ones. A staircase
has a step for each of the last updates and ever longer ones before them, so its size grows with the logarithm
of the run's length, and it is exact for short runs.
"""

import numpy as np
from numpy.typing import NDArray

from zoo.schedules.schedule import Schedule

_EXACT = 1 << 14  # updates up to which each has its own step
_TAIL = 1 << 12  # updates at the end of a longer run that have
_SHARE = 1 << 11  # a step's distance from the end over its length, at least
_PARTS = 1 << 10  # steps of a ramp, at least


def staircase(schedule: Schedule, stop: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The factors of updates 0 to ``stop - 1`` as levels, and for how many updates each is held.

    The steps respect the segments; a step's level is the factor in its middle.

    >>> from zoo.schedules import constant
    >>> levels, lengths = staircase(constant(10_000_000), 10_000_000)
    >>> bool(len(levels) < 30_000), int(lengths.sum()), float(levels @ lengths)
    (True, 10000000, 10000000.0)
    """
    if stop <= _EXACT:
        return schedule.factors_at(np.arange(stop)), np.ones(stop, dtype=np.int64)
    distances = [*range(_TAIL + 1)]
    while distances[-1] < stop:
        distances.append(distances[-1] + distances[-1] // _SHARE)
    edges = [0, stop, schedule.end, *(stop - distance for distance in distances)]
    for segment in schedule.segments:
        parts = 1 if segment.is_constant else min(len(segment), _PARTS)
        edges += [segment.start + len(segment) * part // parts for part in range(parts)]
    places = np.unique([edge for edge in edges if 0 <= edge <= stop])
    lengths = np.diff(places)
    return schedule.factors_at(places[:-1] + (lengths - 1) / 2), lengths
