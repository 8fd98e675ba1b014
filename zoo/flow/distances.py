"""Distances d(a, b) of two items, for consistency losses: from (B, ...) twice to (B,).

A module takes any of these, or a perceptual one of `zoo.metrics` (LPIPS from local weights, random features);
they are frozen and belong to no checkpoint.
"""

import math

import torch
from torch import Tensor, nn

from zoo.flow.mean_flow import squared_error


class SquaredDistance(nn.Module):
    """The mean of the squared differences of an item's values.

    >>> SquaredDistance()(torch.tensor([[3.0, 1.0]]), torch.zeros(1, 2)).item()
    5.0
    """

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Distances (B,) of ``a`` and ``b`` (B, ...)."""
        return squared_error(a, b, "mean")


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
