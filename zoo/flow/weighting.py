"""Squared errors of items, and the adaptive weight of mean flow (arXiv 2505.13447, appendix B.2)."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


def squared_error(prediction: Tensor, target: Tensor, reduction: Literal["sum", "mean"]) -> Tensor:
    """Squared error of each item (B,), summed or averaged over its values.

    >>> squared_error(torch.tensor([[3.0, 1.0]]), torch.zeros(1, 2), "sum").item()
    10.0
    """
    difference = prediction - target
    precise = torch.promote_types(difference.dtype, torch.float32)  # a sum of squares drowns in bfloat16
    squares = difference.to(precise).square().flatten(1)  # (B, values)
    return squares.sum(1) if reduction == "sum" else squares.mean(1)


def adaptive(error: Tensor, power: float, eps: float) -> Tensor:
    """Weighs each item's error L by 1 / (L + eps)^power, a number without gradient.

    The size of L matters here: a sum over an item's values is as many times the mean as there are values, so
    ``eps`` means another thing with each reduction.

    Args:
        error: L (B,), not negative.
        power: p; 0 leaves the error as it is, 1 makes all items pull alike.
        eps: Keeps the weight of a perfect item finite.

    Returns:
        (B,).

    >>> adaptive(torch.tensor([3.0]), power=0.5, eps=1.0).item()
    1.5
    """
    if power == 0:
        return error
    return error / (error.detach() + eps) ** power


@dataclass(frozen=True)
class AdaptiveWeighting:
    """The weight 1 / (L + eps)^power of an item's squared error L (arXiv 2505.13447, appendix B.2).

    The weight follows each item's own error, so over few values (points rather than images) it draws the
    average velocity towards a median: use power 0 where the exact flow matters.

    Args:
        power: Power p; 0 for the plain squared error.
        eps: Keeps the weight of a perfect item finite.
        reduction: Whether an item's L is the sum or the mean of its squared errors.

    >>> AdaptiveWeighting(power=0.5, eps=1.0)(torch.tensor([3.0])).item()
    1.5
    """

    power: float = 1.0
    eps: float = 0.01
    reduction: Literal["sum", "mean"] = "sum"

    def __post_init__(self) -> None:
        if self.power < 0:
            raise ValueError(f"power must be at least 0 (0 for the plain squared error), got {self.power}")
        if self.eps <= 0:
            raise ValueError(
                f"eps must be positive (it keeps the weight of a perfect item finite), got {self.eps}"
            )
        if self.reduction not in ("sum", "mean"):
            raise ValueError(f"reduction must be 'sum' or 'mean', got {self.reduction!r}")

    def __call__(self, error: Tensor) -> Tensor:
        """The weighted errors (B,) of ``error`` (B,)."""
        return adaptive(error, self.power, self.eps)
