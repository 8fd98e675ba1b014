"""Sink levels: the few pairs of (first layer, lifetime) that the sinks of a model have."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Protocol

Level = tuple[int, int]


class HasLevel(Protocol):
    """A sink, of `zoo.sinks.detect` or made of the fields of a file."""

    @property
    def start(self) -> int:
        """The first layer."""

    @property
    def lifetime(self) -> int:
        """How many layers."""


def sink_levels(sinks: Iterable[HasLevel]) -> dict[Level, int]:
    """How many sinks have each (first layer, lifetime), the most frequent level first.

    >>> from types import SimpleNamespace as Sink
    >>> sink_levels([Sink(start=22, lifetime=23), Sink(start=22, lifetime=22), Sink(start=22, lifetime=23)])
    {(22, 23): 2, (22, 22): 1}
    """
    counts = Counter((sink.start, sink.lifetime) for sink in sinks)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def level_entropy(levels: dict[Level, int]) -> float:
    """Entropy in nats of the share of sinks at each level: 0 where all have the same.

    >>> round(level_entropy({(22, 23): 2, (22, 22): 2}), 4)  # ln 2
    0.6931
    """
    total = sum(levels.values())
    return -sum(count / total * math.log(count / total) for count in levels.values()) if total else 0.0


def spearman(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's rank correlation, equal values sharing a rank; NaN where fewer than 3 or all equal.

    >>> spearman([30, 60, 120], [2, 5, 10])
    1.0
    """
    if len(first) != len(second):
        raise ValueError(f"as many values of each are needed, got {len(first)} and {len(second)}")
    if len(first) < 3:
        return math.nan
    a, b = _ranks(first), _ranks(second)
    mean_a, mean_b = sum(a) / len(a), sum(b) / len(b)
    spread = math.sqrt(sum((x - mean_a) ** 2 for x in a) * sum((y - mean_b) ** 2 for y in b))
    if spread == 0:
        return math.nan
    return sum((x - mean_a) * (y - mean_b) for x, y in zip(a, b, strict=True)) / spread


def _ranks(values: Sequence[float]) -> list[float]:
    order = sorted(values)
    return [(order.index(value) + len(order) - 1 - order[::-1].index(value)) / 2 for value in values]
