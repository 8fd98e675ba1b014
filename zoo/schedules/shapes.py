"""The shapes of a ramp between two levels of the learning rate: how a decay falls, how a warm-up rises.

A shape gives the level at p in [0, 1], from ``first`` at p = 0 to ``last`` at p = 1. Sources: linear,
the decay of all runs of the paper (Wen et al. 2024, arXiv 2410.05192); inv, one over the learning rate
is linear in p, the form of its analysis of a quadratic (lingua, Levanter); inv_greedy, the same after
the halving with which the optimum on a quadratic begins (`zoo.schedules.greedy_rates`); 1-sqrt, Hägele
et al. 2024, arXiv 2405.18392; power, the optimum of the functional scaling laws, arXiv 2602.06797;
1-square, mirror_cosine and exp, Hägele et al.'s code; lowered_linear, Dremov et al. 2025, arXiv
2508.01483, whose exact formula was not at hand: here it falls at once to ``parameter`` times ``first``
and is linear from there.
"""

import math
from typing import Any, Literal, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

Shape = Literal[
    "linear",
    "inv",
    "inv_greedy",
    "exp",
    "cosine",
    "1-sqrt",
    "1-square",
    "mirror_cosine",
    "power",
    "lowered_linear",
]
SHAPES: tuple[Shape, ...] = get_args(Shape)
P = TypeVar("P", float, NDArray[np.float64])


def check_shape(shape: Shape, first: float, last: float, parameter: float | None = None) -> None:
    """Refuses what a shape cannot do.

    Raises:
        ValueError: an unknown shape, a level that is negative or not finite, a last level of zero under
            ``inv``, ``inv_greedy`` or ``exp``, or a parameter that the shape needs or cannot take.
    """
    if shape not in SHAPES:
        raise ValueError(f"shape must be one of {', '.join(SHAPES)}, got {shape!r}")
    for name, level in (("first", first), ("last", last)):
        if not (math.isfinite(level) and level >= 0):
            raise ValueError(f"the {name} level must be a finite number of at least 0, got {level}")
    if shape in ("inv", "inv_greedy", "exp") and not (first > 0 and last > 0):
        raise ValueError(
            f"the shape {shape!r} never reaches zero: give a min_ratio above 0 (.1 in the paper, .01 "
            "for a long decay), or take linear or 1-sqrt, which do"
        )
    if shape == "inv_greedy" and not last <= first / 2:
        raise ValueError(
            f"the shape 'inv_greedy' begins by halving the level, so it cannot go from {first} to {last}: "
            f"give a min_ratio of at most {first / 2}, or take inv"
        )
    if shape == "power" and not (parameter is not None and parameter > 0):
        raise ValueError(f"the shape 'power' needs its exponent as parameter, above 0, got {parameter}")
    if shape == "lowered_linear" and not (parameter is not None and 0 < parameter <= 1):
        raise ValueError(
            "the shape 'lowered_linear' needs the share of the level that it begins at as parameter, "
            f"in (0, 1] (.7 in Dremov et al.), got {parameter}"
        )
    if parameter is not None and shape not in ("power", "lowered_linear"):
        raise ValueError(f"the shape {shape!r} has no parameter, got {parameter}")


def level(shape: Shape, p: P, first: float = 1.0, last: float = 0.1, parameter: float | None = None) -> P:
    """The level of a ramp at ``p``.

    Args:
        shape: How it goes.
        p: Where, from 0 to 1; a number or an array.
        first: The level at p = 0 (``inv_greedy`` is at half of it there, ``lowered_linear`` at
            ``parameter`` of it).
        last: The level at p = 1.
        parameter: The exponent of ``power``; the first share of ``lowered_linear``.

    Returns:
        The level, as a multiple of the peak learning rate.

    >>> [round(level(shape, 0.5), 6) for shape in ("linear", "inv", "exp", "cosine", "1-sqrt", "1-square")]
    [0.55, 0.181818, 0.316228, 0.55, 0.363604, 0.775]
    """
    if shape == "inv":
        return 1 / (p / last + (1 - p) / first)
    if shape == "inv_greedy":
        return first / (2 + p * (first / last - 2))
    if shape == "exp":
        return first ** (1 - p) * last**p
    if shape == "lowered_linear":
        assert parameter is not None
        return last + (parameter * first - last) * (1 - p)
    return last + (first - last) * _height(shape, p, parameter)


def mean_level(shape: Shape, first: float = 1.0, last: float = 0.1, parameter: float | None = None) -> float:
    """The mean of `level` over p in [0, 1], in closed form: how much of the peak a decay spends.

    >>> [round(mean_level(shape), 6) for shape in ("linear", "inv", "exp", "1-sqrt")]
    [0.55, 0.255843, 0.390865, 0.4]
    """
    if shape == "inv_greedy":
        rest = first / last - 2
        return first * math.log1p(rest / 2) / rest if rest else first / 2
    if shape == "lowered_linear":
        assert parameter is not None
        return (parameter * first + last) / 2
    if first == last:
        return first
    if shape == "inv":
        return math.log(first / last) / (1 / last - 1 / first)
    if shape == "exp":
        return (first - last) / math.log(first / last)
    heights = {"1-sqrt": 1 / 3, "1-square": 2 / 3, "power": 1 / ((parameter or 1.0) + 1)}
    return last + (first - last) * heights.get(shape, 1 / 2)  # the others are symmetric


def _height(shape: Shape, p: P, parameter: float | None) -> P:
    """From 1 at p = 0 to 0 at p = 1: the shapes that scale with the distance of the two levels."""
    xp: Any = np if isinstance(p, np.ndarray) else math
    if shape == "linear":
        return 1 - p
    if shape == "cosine":
        return (1 + xp.cos(math.pi * p)) / 2
    if shape == "mirror_cosine":
        return 2 * (1 - p) - (1 + xp.cos(math.pi * p)) / 2
    if shape == "1-sqrt":
        return 1 - xp.sqrt(p)
    if shape == "1-square":
        return 1 - p * p
    assert parameter is not None
    return (1 - p) ** parameter
