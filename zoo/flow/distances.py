"""Distances d(a, b) of two items, for consistency losses: from (B, ...) twice to (B,).

A module takes any of these, or any other module from two (B, ...) to (B,); it is frozen and belongs to no
checkpoint. A distance between features may offer its two halves, ``embed(x)``, a list of tensors (B, ...),
and ``compare(a, b)`` of two such lists: what is compared often is then embedded once (`distance_to_targets`).
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from zoo.flow.weighting import squared_error
from zoo.metrics.features import RandomFeatures


def distance_to_targets(distance: Any, a: Tensor, targets: Tensor) -> Tensor:
    """Distances (N,) where each target stands for N / B rows of ``a``, one item after the other.

    All pairs of a trajectory have one target. The distance is that from ``targets`` repeated; a perceptual
    one runs its network on each target once instead.

    Args:
        distance: (N, ...), (N, ...) -> (N,), maybe with ``embed`` and ``compare``.
        a: (N, ...).
        targets: (B, ...), where B divides N.

    Raises:
        ValueError: it does not.

    >>> rows = torch.tensor([[0.0], [1.0], [2.0], [5.0]])
    >>> distance_to_targets(SquaredDistance(), rows, torch.tensor([[0.0], [5.0]])).tolist()
    [0.0, 1.0, 9.0, 0.0]
    """
    repeats, rest = divmod(len(a), len(targets))
    if rest:
        raise ValueError(f"the number of targets must divide that of rows, got {len(targets)} and {len(a)}")
    if repeats == 1:
        return distance(a, targets)
    if not (hasattr(distance, "embed") and hasattr(distance, "compare")):
        return distance(a, targets.repeat_interleave(repeats, 0))
    features = [part.repeat_interleave(repeats, 0) for part in distance.embed(targets)]
    return distance.compare(distance.embed(a), features)


class SquaredDistance(nn.Module):
    """The mean of the squared differences of an item's values.

    >>> SquaredDistance()(torch.tensor([[3.0, 1.0]]), torch.zeros(1, 2)).item()
    5.0
    """

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Distances (B,) of ``a`` and ``b`` (B, ...)."""
        return squared_error(a, b, "mean")


class RandomFeatureDistance(nn.Module):
    """A perceptual distance without trained weights: features of a fixed random network, scale by scale.

    As in LPIPS (Zhang et al. 2018, arXiv 1801.03924) the features of each position are scaled to unit length
    and their squared differences averaged over positions; the filters are random and all channels weigh
    alike. It stands in for LPIPS where no weights are at hand, and is not LPIPS.

    Args:
        channels: Channels of the images.
        width: Channels of the first scale.
        scales: Number of scales.
        seed: Seed of the filters.
        pixels: Weight of the squared pixel difference, which keeps the brightness.
    """

    def __init__(
        self, channels: int = 3, width: int = 32, scales: int = 3, seed: int = 0, pixels: float = 1.0
    ) -> None:
        super().__init__()
        if pixels < 0:
            raise ValueError(f"pixels must be at least 0, got {pixels}")
        self.features = RandomFeatures(channels, width, scales, seed)
        self.pixels = pixels

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Distances (B,) of ``a`` and ``b`` (B, channels, S, S)."""
        return self.compare(self.embed(a), self.embed(b))

    def embed(self, x: Tensor) -> list[Tensor]:
        """The images ``x`` (B, channels, S, S) themselves, and their feature maps scale by scale."""
        return [x, *self.features.maps(x)]

    def compare(self, a: list[Tensor], b: list[Tensor]) -> Tensor:
        """Distances (B,) of what `embed` gave."""
        total = self.pixels * squared_error(a[0], b[0], "mean")
        for one, other in zip(a[1:], b[1:], strict=True):
            total = total + (one - other).square().sum(1).flatten(1).mean(1)
        return total


class PseudoHuber(nn.Module):
    """sqrt(|a - b|^2 + c^2) - c with the sum of an item's squares (Song and Dhariwal 2023, arXiv 2310.14189).

    Args:
        c: Where the distance turns from quadratic to linear. None takes the 0.00054 sqrt(number of values) of
            iCT; ECT's official code takes 0 on CIFAR-10, whose gradient at a = b is infinite: 1e-8 is the
            same distance without that.

    >>> PseudoHuber(c=3.0)(torch.tensor([[4.0]]), torch.zeros(1, 1)).item()  # 5 - 3
    2.0
    """

    def __init__(self, c: float | None = None) -> None:
        super().__init__()
        if c is not None and not c > 0:
            raise ValueError(f"c must be positive (1e-8 for the plain norm), got {c}")
        self.c = c

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Distances (B,) of ``a`` and ``b`` (B, ...)."""
        c = 0.00054 * math.sqrt(a[0].numel()) if self.c is None else self.c
        squares = squared_error(a, b, "sum")
        # squares / (root + c) is root - c without the cancellation.
        return squares / (torch.sqrt(squares + c**2) + c)
