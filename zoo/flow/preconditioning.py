"""What a network's output means: preconditionings, each of which reads it on any path.

A preconditioning turns the raw output F = network(c_in z, time label) into the denoised data D(z, t), an
affine function c_skip z + c_out F, or into the velocity v(z, t) of the path the states live on, another one.
Every coefficient is written out for a general path (alpha, sigma), so that a network trained on one path is
read on another with no detour and no cancellation: this *is* the exact bridge between the times.

* `EDMPreconditioning`: Karras et al. 2022, arXiv 2206.00364, table 1. With q^2 = sigma^2 + sd^2 alpha^2 it
  reads D = sd^2 alpha / q^2 z + sigma sd / q F(z / q, ln(s) / 4) and
  v = (sigma' sigma + sd^2 alpha' alpha) / q^2 z + sd (alpha' sigma - sigma' alpha) / q F. On the
  trigonometric path this is TrigFlow (Lu and Song 2024, arXiv 2410.11081) with F_trig = -F. Consistency
  models may keep the data at a least level b > 0 rather than at 0 (Song et al. 2023, arXiv 2303.01469):
  c_skip = sd^2 / ((s - b)^2 + sd^2), c_out = (s - b) sd / sqrt(s^2 + sd^2).
* `VelocityPrediction`: the network gives the velocity e - x of the linear path, as SiT and MeanFlow do.
* `DataPrediction`: the network gives the data, from states and times of the linear path.
"""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from zoo.flow.paths import LinearPath, Path, VarianceExplodingPath, expand

Coefficient = Tensor | None
"""A factor (B,); None stands for 1 as an input factor and as an output factor, for 0 as a skip factor."""


class Preconditioning(ABC):
    """How a network's output is read, on any path.

    Attributes:
        path: The path it is native to; a `zoo.flow.Diffusion` trains there.
    """

    path: Path

    @abstractmethod
    def inputs(self, path: Path, t: Tensor) -> tuple[Coefficient, Tensor]:
        """``(c_in, label)``: the factor of the state, and what the network is given as its time."""

    @abstractmethod
    def denoiser(self, path: Path, t: Tensor) -> tuple[Coefficient, Coefficient]:
        """``(c_skip, c_out)`` of the denoised data."""

    @abstractmethod
    def velocity(self, path: Path, t: Tensor) -> tuple[Coefficient, Coefficient]:
        """``(skip, out)`` of the velocity on ``path``."""

    @abstractmethod
    def target(self, path: Path, x: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """The output F at which the denoised data are ``x`` (B, ...), for z = alpha x + sigma e."""

    def describe(self) -> dict[str, Any]:
        """Name and numbers as plain values: what a checkpoint keeps, and what must agree at a hand-over."""
        return {"class": type(self).__name__, **{k: v for k, v in vars(self).items() if k != "path"}}

    def __repr__(self) -> str:
        """As it is written."""
        plain = {k: v for k, v in self.describe().items() if k != "class"}
        return f"{type(self).__name__}({', '.join(f'{name}={value}' for name, value in plain.items())})"


class EDMPreconditioning(Preconditioning):
    """The preconditioning of EDM: unit variance goes into the network, and its targets have unit variance.

    Args:
        sigma_data: Standard deviation of the data's values; EDM's 0.5. Compute it for other data.
        sigma_min: The network is told no noise level below this one (so that s = 0 has a label).
        sigma_max: The network is told no noise level above this one (so that pure noise has a label); EDM's
            largest. It matters above that level only: at EDM's largest, states are noise to one part in 160.
        boundary: Noise level b up to which data are kept as they are, for consistency models: 0.002 in the
            first ones. At 0, as everywhere else, this is EDM's preconditioning.

    >>> edm, s = EDMPreconditioning(sigma_data=0.5), torch.tensor([0.5])
    >>> [round(c.item(), 4) for c in edm.denoiser(edm.path, s)]
    [0.5, 0.3536]
    """

    path: Path = VarianceExplodingPath()

    def __init__(
        self,
        sigma_data: float = 0.5,
        sigma_min: float = 1e-8,
        sigma_max: float = 80.0,
        boundary: float = 0.0,
    ) -> None:
        if not sigma_data > 0:
            raise ValueError(f"sigma_data must be positive (a standard deviation), got {sigma_data}")
        if not 0 < sigma_min < sigma_max:
            raise ValueError(f"0 < sigma_min < sigma_max must hold, got {sigma_min} and {sigma_max}")
        if not 0 <= boundary < sigma_max:
            raise ValueError(f"boundary must be a noise level from 0 up to sigma_max, got {boundary}")
        self.sigma_data, self.sigma_min, self.sigma_max = sigma_data, sigma_min, sigma_max
        self.boundary = boundary

    def _share(self, path: Path, t: Tensor) -> Tensor | float:
        """(s - b) / s, the share of the noise that is above the boundary; 0 below it."""
        return 1.0 if self.boundary == 0 else (1 - self.boundary / path.level_of(t)).clamp(min=0)

    def _scale(self, path: Path, t: Tensor) -> Tensor:
        return torch.hypot(path.sigma(t), self.sigma_data * path.alpha(t))  # q

    def inputs(self, path: Path, t: Tensor) -> tuple[Coefficient, Tensor]:
        """1 / q, and a quarter of the logarithm of the noise level."""
        level = path.level_of(t).clamp(self.sigma_min, self.sigma_max)
        return 1 / self._scale(path, t), level.log() / 4

    def denoiser(self, path: Path, t: Tensor) -> tuple[Coefficient, Coefficient]:
        """sd^2 alpha / q^2 and sigma sd / q; with sigma (s - b) / s in place of sigma, but in q."""
        alpha, above = path.alpha(t), self._share(path, t) * path.sigma(t)
        variance = above**2 + (self.sigma_data * alpha) ** 2
        return self.sigma_data**2 * alpha / variance, above * self.sigma_data / self._scale(path, t)

    def velocity(self, path: Path, t: Tensor) -> tuple[Coefficient, Coefficient]:
        """(sigma' sigma + sd^2 alpha' alpha) / q^2 and sd (alpha' sigma - sigma' alpha) / q."""
        sd, share = self.sigma_data, self._share(path, t)
        alpha, sigma = path.alpha(t), path.sigma(t)
        alpha_rate, sigma_rate = path.alpha_slope(t, t), path.sigma_slope(t, t)
        variance = (share * sigma) ** 2 + (sd * alpha) ** 2  # q^2
        skip = (share**2 * sigma_rate * sigma + sd**2 * alpha_rate * alpha) / variance
        return skip, share * sd * (alpha_rate * sigma - sigma_rate * alpha) / self._scale(path, t)

    def target(self, path: Path, x: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """(sigma x - sd^2 alpha e) / (sd q), which does not divide by the noise level.

        Raises:
            ValueError: data are kept below a boundary, where the output counts for nothing.
        """
        if self.boundary > 0:
            raise ValueError(
                f"boundary={self.boundary} is for consistency models: a diffusion model takes boundary=0"
            )
        q, sd = self._scale(path, t), self.sigma_data
        return expand(path.sigma(t) / (sd * q), x) * x - expand(sd * path.alpha(t) / q, x) * noise


class VelocityPrediction(Preconditioning):
    """The network gives the velocity e - x of the linear path, from its states and times.

    >>> at_home = VelocityPrediction()
    >>> at_home.velocity(LinearPath(), torch.tensor([0.3]))  # the output itself
    (None, None)
    """

    path: Path = LinearPath()

    def inputs(self, path: Path, t: Tensor) -> tuple[Coefficient, Tensor]:
        """1 / (alpha + sigma), and the time on the linear path."""
        if isinstance(path, LinearPath):
            return None, t
        alpha, sigma = path.alpha(t), path.sigma(t)
        return 1 / (alpha + sigma), sigma / (alpha + sigma)

    def denoiser(self, path: Path, t: Tensor) -> tuple[Coefficient, Coefficient]:
        """1 / (alpha + sigma) and -sigma / (alpha + sigma)."""
        alpha, sigma = path.alpha(t), path.sigma(t)
        return 1 / (alpha + sigma), -sigma / (alpha + sigma)

    def velocity(self, path: Path, t: Tensor) -> tuple[Coefficient, Coefficient]:
        """(alpha' + sigma') / (alpha + sigma) and (sigma' alpha - alpha' sigma) / (alpha + sigma)."""
        if isinstance(path, LinearPath):
            return None, None
        alpha, sigma = path.alpha(t), path.sigma(t)
        alpha_rate, sigma_rate = path.alpha_slope(t, t), path.sigma_slope(t, t)
        total = alpha + sigma
        return (alpha_rate + sigma_rate) / total, (sigma_rate * alpha - alpha_rate * sigma) / total

    def target(self, path: Path, x: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """The velocity e - x, at all times."""
        return noise - x


class DataPrediction(Preconditioning):
    """The network gives the data, from states and times of the linear path.

    The velocity divides by the noise, so it is not asked for at t = 0 (by no solver here). The network itself
    does not keep clean data as they are, so this is not a preconditioning for consistency models.
    """

    path: Path = LinearPath()

    def inputs(self, path: Path, t: Tensor) -> tuple[Coefficient, Tensor]:
        """1 / (alpha + sigma), and the time on the linear path."""
        return VelocityPrediction().inputs(path, t)

    def denoiser(self, path: Path, t: Tensor) -> tuple[Coefficient, Coefficient]:
        """0 and 1."""
        return None, None

    def velocity(self, path: Path, t: Tensor) -> tuple[Coefficient, Coefficient]:
        """The ratios sigma' / sigma and alpha' - sigma' alpha / sigma."""
        ratio = path.sigma_slope(t, t) / path.sigma(t)
        return ratio, path.alpha_slope(t, t) - ratio * path.alpha(t)

    def target(self, path: Path, x: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """The data, at all times."""
        return x
