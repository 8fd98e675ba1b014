"""Probability paths z_t = alpha(t) x + sigma(t) e between data x and Gaussian noise e.

Time is dimensionless and belongs to its path: data at t = 0, noise at t = 1 on the linear path; t is the
noise level itself on the variance-exploding path. A bare number never crosses from one path to another.

Each path also has the divided differences (alpha(t) - alpha(r)) / (t - r) and the same of sigma, written
without the
cancellation: they are the derivatives at r = t, and they make the closed forms of `zoo.flow.analytic` exact
there.

The linear path is that of rectified flow (Liu, Gong, Liu 2022, arXiv 2209.03003) in the clock of MeanFlow
(Geng et al. 2025, arXiv 2505.13447, section 3): z_t = (1 - t) x + t e, v = e - x. SiT runs the opposite
clock.
"""

from typing import Protocol

import torch
from torch import Tensor


def expand(t: Tensor, like: Tensor) -> Tensor:
    """Views ``t`` (B,) or () so that it multiplies ``like`` (B, ...) item by item.

    >>> expand(torch.tensor([1.0, 2.0]), torch.zeros(2, 3, 4)).shape
    torch.Size([2, 1, 1])
    """
    return t.reshape(t.shape + (1,) * (like.ndim - t.ndim)) if t.ndim else t


class Path(Protocol):
    """What a path is asked for; all methods are elementwise in the times."""

    def alpha(self, t: Tensor) -> Tensor:
        """The factor of the data."""

    def sigma(self, t: Tensor) -> Tensor:
        """The factor of the noise."""

    def alpha_slope(self, t: Tensor, r: Tensor) -> Tensor:
        """(alpha(t) - alpha(r)) / (t - r), and the derivative at r = t."""

    def sigma_slope(self, t: Tensor, r: Tensor) -> Tensor:
        """(sigma(t) - sigma(r)) / (t - r), and the derivative at r = t."""


class LinearPath:
    """z_t = (1 - t) x + t e for t in [0, 1]: data at t = 0, noise at t = 1.

    >>> path = LinearPath()
    >>> x, e = torch.tensor([[2.0], [2.0]]), torch.tensor([[-1.0], [0.0]])
    >>> path.interpolate(x, e, torch.tensor([0.5, 0.25])).tolist()
    [[0.5], [1.5]]
    >>> path.velocity(x, e).tolist()
    [[-3.0], [-2.0]]
    """

    def alpha(self, t: Tensor) -> Tensor:
        """1 - t."""
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:
        """The time itself."""
        return t

    def alpha_slope(self, t: Tensor, r: Tensor) -> Tensor:
        """-1 everywhere."""
        return -torch.ones_like(t + r)

    def sigma_slope(self, t: Tensor, r: Tensor) -> Tensor:
        """1 everywhere."""
        return torch.ones_like(t + r)

    def interpolate(self, x: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """The state z_t between ``x`` (B, ...) and ``noise`` (B, ...) at times ``t`` (B,)."""
        t = expand(t, x)
        return (1 - t) * x + t * noise

    def velocity(self, x: Tensor, noise: Tensor) -> Tensor:
        """dz_t/dt of one pair of data and noise: e - x, the same at all times."""
        return noise - x


class VarianceExplodingPath:
    """x_s = x + s e, the path of EDM (Karras et al. 2022, arXiv 2206.00364), whose time is the noise level s
    >= 0.

    >>> VarianceExplodingPath().sigma(torch.tensor(80.0)).item()
    80.0
    """

    def alpha(self, t: Tensor) -> Tensor:
        """1 everywhere."""
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        """The time itself."""
        return t

    def alpha_slope(self, t: Tensor, r: Tensor) -> Tensor:
        """0 everywhere."""
        return torch.zeros_like(t + r)

    def sigma_slope(self, t: Tensor, r: Tensor) -> Tensor:
        """1 everywhere."""
        return torch.ones_like(t + r)
