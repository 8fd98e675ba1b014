"""Distributions whose flows are known in closed form, to compare trained models and solvers with.

The probability-flow ODE dz/dt = v(z, t) of a path z_t = alpha x + sigma e has v(z, t) = E[alpha' x + sigma' e
| z_t]. Its flow map Psi carries z_t to z_r, and u = (z_t - Psi(z_t)) / (t - r) is the mean velocity that mean
flow learns.

* `Gaussian`: everything in closed form, in any dimension, for any path.
* `GaussianMixture`: velocity and score in any dimension. In one dimension the flow keeps the order of points,
  so Psi = F_r^{-1} o F_t with the distribution functions F of the marginals.

All methods take states (B, d), of the dtype of the distribution's own tensors, and times () or (B,); flow
maps of mixtures want float64. Everything is differentiable, also in forward mode.
"""

import math
from typing import Self

import torch
from torch import Tensor

from zoo.flow.paths import LinearPath, Path


def _column(t: Tensor | float, z: Tensor) -> Tensor:
    """Times () or (B,) as a column that multiplies states (B, d)."""
    t = torch.as_tensor(t, dtype=z.dtype, device=z.device)
    return t[:, None] if t.ndim else t


class Gaussian:
    """Data from N(mean, covariance). At time t the state has covariance C_t = alpha^2 S + sigma^2 I.

    Psi(z) = alpha_r mean + C_r^{1/2} C_t^{-1/2} (z - alpha_t mean), and v = alpha' mean + C' C^{-1} (z -
    alpha mean) / 2.

    Args:
        mean: (d,).
        covariance: (d, d), symmetric and positive semi-definite.
        path: Linear unless given.

    >>> distribution = Gaussian(torch.tensor([1.0]), torch.tensor([[0.25]]))
    >>> distribution.flow_map(torch.tensor([[2.0]]), t=1.0, r=0.0).item()  # 1 + 0.5 * 2
    2.0
    >>> distribution.mean_velocity(torch.tensor([[2.0]]), t=1.0, r=0.0).item()
    0.0
    """

    def __init__(self, mean: Tensor, covariance: Tensor, path: Path | None = None) -> None:
        if covariance.shape != (len(mean), len(mean)):
            raise ValueError(
                f"covariance must be ({len(mean)}, {len(mean)}) as mean is, got {tuple(covariance.shape)}"
            )
        self.mean = mean
        self.variances, self.axes = torch.linalg.eigh(covariance)  # (d,), (d, d)
        if self.variances.min() < -1e-6 * self.variances.max():
            raise ValueError(f"covariance has the negative eigenvalue {self.variances.min().item():.3g}")
        self.variances = self.variances.clamp(min=0)
        self.path = LinearPath() if path is None else path

    def _spread(self, t: Tensor) -> Tensor:
        """Eigenvalues of C_t."""
        return self.path.alpha(t) ** 2 * self.variances + self.path.sigma(t) ** 2

    def flow_map(self, z: Tensor, t: Tensor | float, r: Tensor | float) -> Tensor:
        """Psi: where the flow carries the states ``z`` (B, d) of time t by time r."""
        t, r = _column(t, z), _column(r, z)
        y = (z - self.path.alpha(t) * self.mean) @ self.axes
        return self.path.alpha(r) * self.mean + (self._spread(r) / self._spread(t)).sqrt() * y @ self.axes.mT

    def mean_velocity(self, z: Tensor, t: Tensor | float, r: Tensor | float) -> Tensor:
        """u(z, t, t - r), also at r = t, where it is the velocity. Written without the cancellation."""
        t, r = _column(t, z), _column(r, z)
        a, s = self.path.alpha_slope(t, r), self.path.sigma_slope(t, r)
        # (C_t - C_r) / (t - r), eigenvalues
        slope = a * (self.path.alpha(t) + self.path.alpha(r)) * self.variances
        slope = slope + s * (self.path.sigma(t) + self.path.sigma(r))
        root_t, root_r = self._spread(t).sqrt(), self._spread(r).sqrt()
        y = (z - self.path.alpha(t) * self.mean) @ self.axes
        return a * self.mean + (slope / (root_t * (root_t + root_r)) * y) @ self.axes.mT

    def velocity(self, z: Tensor, t: Tensor | float) -> Tensor:
        """v(z, t)."""
        return self.mean_velocity(z, t, t)

    def denoise(self, z: Tensor, t: Tensor | float) -> Tensor:
        """D(z, t) = E[x | z_t = z]."""
        t = _column(t, z)
        y = (z - self.path.alpha(t) * self.mean) @ self.axes
        return self.mean + (self.path.alpha(t) * self.variances / self._spread(t) * y) @ self.axes.mT

    def mean_flow_floor(self, t: Tensor | float, r: Tensor | float) -> Tensor:
        """The expected squared error, summed over dimensions, that mean flow keeps at the exact u.

        The regression target holds the velocity of one pair (x, e), whose variance given z_t cannot be
        learned: with q the eigenvalues of C, it leaves (alpha' sigma - alpha sigma')^2 S q_r / q_t^2.

        >>> distribution = Gaussian(torch.zeros(1), torch.tensor([[0.25]]))
        >>> distribution.mean_flow_floor(1.0, 0.0).item()
        0.0625
        """
        t, r = (torch.as_tensor(time, dtype=self.mean.dtype)[..., None] for time in (t, r))
        turn = self.path.alpha_slope(t, t) * self.path.sigma(t) - self.path.alpha(t) * self.path.sigma_slope(
            t, t
        )
        return (turn**2 * self.variances * self._spread(r) / self._spread(t) ** 2).sum(-1)


class GaussianMixture:
    """Data from a mixture of isotropic Gaussians.

    Args:
        weights: (K,), positive; normalized here.
        means: (K, d).
        stds: (K,), positive, per coordinate.
        path: Linear unless given.

    >>> two = GaussianMixture(torch.ones(2), torch.tensor([[-1.0], [1.0]]), torch.full((2,), 0.5))
    >>> two.velocity(torch.tensor([[0.0]]), t=0.5).item()
    0.0
    """

    def __init__(self, weights: Tensor, means: Tensor, stds: Tensor, path: Path | None = None) -> None:
        if means.ndim != 2 or weights.shape != stds.shape or weights.shape != means.shape[:1]:
            shapes = f"{tuple(weights.shape)}, {tuple(means.shape)} and {tuple(stds.shape)}"
            raise ValueError(f"weights, means and stds must be (K,), (K, d) and (K,), got {shapes}")
        if not (weights > 0).all() or not (stds > 0).all():
            raise ValueError(f"weights and stds must be positive, got {weights.tolist()} and {stds.tolist()}")
        self.weights = weights / weights.sum()
        self.means, self.stds = means, stds
        self.path = LinearPath() if path is None else path

    @classmethod
    def eight_gaussians(
        cls, radius: float = 1.0, std: float = 0.1, dtype: torch.dtype = torch.float64
    ) -> Self:
        """Eight equal Gaussians whose means stand on a circle, counted from the x axis against the clock.

        >>> GaussianMixture.eight_gaussians().means[2].round().tolist()
        [0.0, 1.0]
        """
        angle = torch.arange(8, dtype=dtype) * (2 * math.pi / 8)
        means = radius * torch.stack([angle.cos(), angle.sin()], dim=1)
        return cls(torch.ones(8, dtype=dtype), means, torch.full((8,), std, dtype=dtype))

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Points (count, d) of the data distribution."""
        component = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        noise = torch.randn(count, self.means.shape[1], generator=generator, dtype=self.means.dtype)
        return self.means[component] + self.stds[component, None] * noise

    def _variances(self, t: Tensor) -> Tensor:
        """Per component, (1 or B, K)."""
        return self.path.alpha(t) ** 2 * self.stds**2 + self.path.sigma(t) ** 2

    def _responsibilities(self, z: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """P(component | z_t = z) (B, K), and z less the means of the components (B, K, d)."""
        offsets = z[:, None] - (self.path.alpha(t) * self.means.new_ones(len(z), 1))[..., None] * self.means
        variances = self._variances(t)
        logits = self.weights.log() - offsets.square().sum(-1) / (2 * variances)
        return (logits - 0.5 * z.shape[1] * variances.log()).softmax(-1), offsets

    def score(self, z: Tensor, t: Tensor | float) -> Tensor:
        """The gradient of the log-density of z_t at the states ``z`` (B, d)."""
        t = _column(t, z)
        share, offsets = self._responsibilities(z, t)
        return -((share / self._variances(t))[..., None] * offsets).sum(1)

    def velocity(self, z: Tensor, t: Tensor | float) -> Tensor:
        """v(z, t): the components' Gaussian velocities, weighed by their share in z."""
        t = _column(t, z)
        share, offsets = self._responsibilities(z, t)
        a, s = self.path.alpha_slope(t, t), self.path.sigma_slope(t, t)
        growth = (a * self.path.alpha(t) * self.stds**2 + s * self.path.sigma(t)) / self._variances(t)
        return a * (share @ self.means) + ((share * growth)[..., None] * offsets).sum(1)

    def denoise(self, z: Tensor, t: Tensor | float) -> Tensor:
        """D(z, t) = E[x | z_t = z]: the components' expectations, weighed by their share in z."""
        t = _column(t, z)
        share, offsets = self._responsibilities(z, t)
        pull = self.path.alpha(t) * self.stds**2 / self._variances(t)
        return share @ self.means + ((share * pull)[..., None] * offsets).sum(1)

    def _tails(self, z: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """P(z_t <= z) and P(z_t > z) for ``z`` (B, 1), each to full relative precision."""
        scaled = (z - self.path.alpha(t) * self.means[:, 0]) / self._variances(t).sqrt()  # (B, K)
        tails = (torch.special.erfc(sign * scaled / math.sqrt(2)) / 2 @ self.weights for sign in (-1, 1))
        lower, upper = (tail[:, None] for tail in tails)
        return lower, upper

    def flow_map(self, z: Tensor, t: Tensor | float, r: Tensor | float) -> Tensor:
        """Psi = F_r^{-1}(F_t(z)) for states ``z`` (B, 1) of a one-dimensional mixture, by bisection.

        >>> weights, stds = torch.tensor([0.3, 0.7]).double(), torch.tensor([0.2, 0.35]).double()
        >>> distribution = GaussianMixture(weights, torch.tensor([[-1.0], [0.8]]).double(), stds)
        >>> round(distribution.flow_map(torch.tensor([[-1.2]]).double(), t=1.0, r=0.0).item(), 6)
        -1.059226
        """
        if self.means.shape[1] != 1:
            raise ValueError(
                f"the flow map is known in one dimension only, this distribution has {self.means.shape[1]}"
            )
        t, r = _column(t, z), _column(r, z)
        lower, upper = self._tails(z, t)
        # The smaller tail keeps its digits: far out to the right P(z_t <= z) is 1 less nothing.
        left = lower < upper
        with torch.no_grad():
            centers, reach = (
                self.path.alpha(r) * self.means[:, 0],
                40 * self._variances(r).sqrt(),
            )  # (1 or B, K)
            low = (centers - reach).min(-1, keepdim=True).values.expand(z.shape).clone()
            high = (centers + reach).max(-1, keepdim=True).values.expand(z.shape).clone()
            for _ in range(80):  # 2^-80 of the bracket is below the spacing of float64
                middle = (low + high) / 2
                below, above = self._tails(middle, r)
                short = torch.where(left, below < lower, above > upper)
                low, high = torch.where(short, middle, low), torch.where(short, high, middle)
            root = (low + high) / 2
            density = self._density(root, r)
        # One Newton step changes the value by rounding only, and gives it the derivatives of the inverse
        # function.
        below, above = self._tails(root, r)
        return root - torch.where(left, below - lower, upper - above) / density

    def _density(self, z: Tensor, t: Tensor) -> Tensor:
        variances = self._variances(t)
        squares = (z - self.path.alpha(t) * self.means[:, 0]) ** 2 / variances
        return ((-squares / 2).exp() / (2 * math.pi * variances).sqrt() @ self.weights)[:, None]

    def mean_velocity(self, z: Tensor, t: Tensor | float, r: Tensor | float) -> Tensor:
        """u(z, t, t - r) for states ``z`` (B, 1) of a one-dimensional mixture; the velocity where r = t.

        It divides a difference by t - r, so it loses as many digits as that is small.
        """
        h = _column(t, z) - _column(r, z)
        still = h == 0
        step = (z - self.flow_map(z, t, r)) / torch.where(still, torch.ones_like(h), h)
        return torch.where(still, self.velocity(z, t), step)
