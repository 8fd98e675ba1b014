"""Probability paths z_t = alpha(t) x + sigma(t) e between data x and Gaussian noise e, and their bridges.

Time is dimensionless and belongs to its path: data at t = 0, noise at t = 1 on the linear path, at pi / 2 on
the trigonometric one; t is the noise level itself on the variance-exploding path. A bare number never crosses
from one path to another. What all paths share is the *noise level* s = sigma / alpha (the sigma of EDM), and
`bridge` carries a state from one path to another at equal s, which is exact: z / alpha is the same there.

Each path also has the divided differences (alpha(t) - alpha(r)) / (t - r) and the same of sigma, written
without the cancellation: they are the derivatives at r = t, and they make the closed forms of
`zoo.flow.analytic` exact there.

* linear: rectified flow (Liu, Gong, Liu 2022, arXiv 2209.03003) in the time of MeanFlow (Geng et al. 2025,
  arXiv 2505.13447, section 3): z_t = (1 - t) x + t e, v = e - x. SiT runs the opposite direction of time.
* variance exploding: EDM (Karras et al. 2022, arXiv 2206.00364), x_s = x + s e.
* trigonometric: TrigFlow (Lu and Song 2024, arXiv 2410.11081), x_t = cos t x + sin t sigma_data e.
"""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor


def expand(t: Tensor, like: Tensor) -> Tensor:
    """Views ``t`` (B,) or () so that it multiplies ``like`` (B, ...) item by item.

    >>> expand(torch.tensor([1.0, 2.0]), torch.zeros(2, 3, 4)).shape
    torch.Size([2, 1, 1])
    """
    return t.reshape(t.shape + (1,) * (like.ndim - t.ndim)) if t.ndim else t


class Path(ABC):
    """What a path is asked for; all functions of time are elementwise.

    Attributes:
        end: The time of pure noise; infinite on the variance-exploding path.
    """

    end: float

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """The factor of the data."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """The factor of the noise."""

    @abstractmethod
    def alpha_slope(self, t: Tensor, r: Tensor) -> Tensor:
        """(alpha(t) - alpha(r)) / (t - r), and the derivative at r = t."""

    @abstractmethod
    def sigma_slope(self, t: Tensor, r: Tensor) -> Tensor:
        """(sigma(t) - sigma(r)) / (t - r), and the derivative at r = t."""

    @abstractmethod
    def time_of(self, level: Tensor) -> Tensor:
        """The time whose noise level sigma / alpha is ``level``, which may be infinite."""

    def level_of(self, t: Tensor) -> Tensor:
        """The noise level sigma / alpha at time ``t``; infinite at the end of the path."""
        return self.sigma(t) / self.alpha(t)

    def interpolate(self, x: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """The state z_t between ``x`` (B, ...) and ``noise`` (B, ...) at times ``t`` (B,)."""
        return expand(self.alpha(t), x) * x + expand(self.sigma(t), x) * noise

    def velocity(self, x: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """dz_t/dt of one pair of data and noise: alpha' x + sigma' e."""
        return expand(self.alpha_slope(t, t), x) * x + expand(self.sigma_slope(t, t), x) * noise

    def __repr__(self) -> str:
        """As it is written."""
        return f"{type(self).__name__}()"


class LinearPath(Path):
    """z_t = (1 - t) x + t e for t in [0, 1]: data at t = 0, noise at t = 1.

    >>> path = LinearPath()
    >>> x, e = torch.tensor([[2.0], [2.0]]), torch.tensor([[-1.0], [0.0]])
    >>> path.interpolate(x, e, torch.tensor([0.5, 0.25])).tolist()
    [[0.5], [1.5]]
    >>> path.velocity(x, e).tolist()
    [[-3.0], [-2.0]]
    >>> path.time_of(torch.tensor([0.0, 1.0, math.inf])).tolist()
    [0.0, 0.5, 1.0]
    """

    end = 1.0

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

    def time_of(self, level: Tensor) -> Tensor:
        """The share s / (1 + s)."""
        return 1 - 1 / (1 + level)

    def velocity(self, x: Tensor, noise: Tensor, t: Tensor | None = None) -> Tensor:
        """dz_t/dt of one pair of data and noise: e - x, the same at all times."""
        return noise - x


class VarianceExplodingPath(Path):
    """x_s = x + s e, the path of EDM, whose time is the noise level s >= 0.

    >>> VarianceExplodingPath().sigma(torch.tensor(80.0)).item()
    80.0
    """

    end = math.inf

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

    def time_of(self, level: Tensor) -> Tensor:
        """The level itself."""
        return level


class TrigonometricPath(Path):
    """x_t = cos t x + sin t sigma_data e for t in [0, pi / 2], the path of TrigFlow.

    All its states have one scale if the data have the standard deviation ``sigma_data``.

    Args:
        sigma_data: Standard deviation of the data's values.

    >>> TrigonometricPath(0.5).time_of(torch.tensor([0.0, 0.5, math.inf])).mul(4 / math.pi).tolist()
    [0.0, 1.0, 2.0]
    """

    end = math.pi / 2

    def __init__(self, sigma_data: float = 0.5) -> None:
        if not sigma_data > 0:
            raise ValueError(f"sigma_data must be positive (a standard deviation), got {sigma_data}")
        self.sigma_data = sigma_data

    def alpha(self, t: Tensor) -> Tensor:
        """The cosine of t."""
        return t.cos()

    def sigma(self, t: Tensor) -> Tensor:
        """sigma_data sin t."""
        return self.sigma_data * t.sin()

    def alpha_slope(self, t: Tensor, r: Tensor) -> Tensor:
        """-sin((t + r) / 2) sinc((t - r) / 2)."""
        return -((t + r) / 2).sin() * torch.sinc((t - r) / (2 * math.pi))

    def sigma_slope(self, t: Tensor, r: Tensor) -> Tensor:
        """sigma_data cos((t + r) / 2) sinc((t - r) / 2)."""
        return self.sigma_data * ((t + r) / 2).cos() * torch.sinc((t - r) / (2 * math.pi))

    def time_of(self, level: Tensor) -> Tensor:
        """The arc tangent of s / sigma_data."""
        return (level / self.sigma_data).atan()

    def level_of(self, t: Tensor) -> Tensor:
        """sigma_data tan t."""
        return self.sigma_data * t.tan()

    def __repr__(self) -> str:
        """As it is written."""
        return f"TrigonometricPath(sigma_data={self.sigma_data})"


def bridge(t: Tensor, source: Path, target: Path) -> tuple[Tensor, Tensor]:
    """The time on ``target`` of equal noise level, and the factor of states: z_target = factor z_source.

    Args:
        t: Times on ``source``, any shape; float64 keeps the times near the noise end exact.
        source: Where the states are.
        target: Where they go.

    Returns:
        ``(time, factor)``, each of the shape of ``t``. They are infinite only where ``target`` is variance
        exploding and ``t`` the end of ``source``.

    >>> time, factor = bridge(torch.tensor(80.0).double(), VarianceExplodingPath(), LinearPath())
    >>> round(time.item(), 5), round(factor.item(), 5)  # 80 / 81, and 1 - 80 / 81
    (0.98765, 0.01235)
    """
    if repr(source) == repr(target):
        return t, torch.ones_like(t)
    time = target.time_of(source.level_of(t))
    # alpha_target / alpha_source and sigma_target / sigma_source are equal; this form has neither zero.
    factor = torch.hypot(target.alpha(time), target.sigma(time)) / torch.hypot(
        source.alpha(t), source.sigma(t)
    )
    return time, factor
