"""Guidance of a field: away from what another field says, at the noise levels where that helps.

* classifier-free guidance (Ho and Salimans 2022, arXiv 2207.12598): the other is the same network without a
  class;
* autoguidance (Karras et al. 2024, arXiv 2406.02507): the other is a weaker network, with the class;
* an interval of noise levels (Kynkaanniemi et al. 2024, arXiv 2404.07724) outside of which nothing is guided.

Denoised data, velocities and scores of one state are affine in each other with coefficients that do not
depend on the network, so guiding one of them guides the others by the same factor.
"""

import math
from typing import Any

import torch
from torch import Tensor

from zoo.flow.paths import Path, expand


class Guided:
    """The field f_other + omega (f - f_other).

    Args:
        field: A model with ``num_classes``.
        omega: Strength; 1 disables guidance.
        low: Guide only at noise levels of at least this.
        high: Guide only at noise levels of at most this.
        guide: The other field, for autoguidance; None takes ``field``, unconditional.

    Raises:
        ValueError: classifier-free guidance of a field without classes, fields on two paths, or bad numbers.
    """

    def __init__(
        self, field: Any, omega: float, low: float = 0.0, high: float = math.inf, guide: Any = None
    ) -> None:
        check_guidance(omega, low, high)
        if guide is None and field.num_classes is None:
            raise ValueError(
                f"omega={omega} asks for guidance away from unconditional samples, but the network has no "
                "classes: leave omega=1, or give another network as guide"
            )
        if guide is not None and repr(guide.path) != repr(field.path):
            raise ValueError(f"the guide's path {guide.path} is not the path {field.path} of what it guides")
        self.field, self.guide = field, guide
        self.omega, self.low, self.high = omega, low, high
        self.path: Path = field.path
        self.num_classes: int | None = field.num_classes

    def on(self, path: Path) -> "Guided":
        """The same on another path."""
        guide = None if self.guide is None else self.guide.on(path)
        return Guided(self.field.on(path), self.omega, self.low, self.high, guide)

    def velocity(self, z: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        """v(z, t), guided."""
        return self._guided("velocity", z, t, label)

    def denoise(self, z: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        """D(z, t), guided."""
        return self._guided("denoise", z, t, label)

    def evaluations(self, t: Tensor) -> int:
        """Network evaluations that one call at time ``t`` takes."""
        return 2 if t.ndim or self._inside(t) else 1

    def _inside(self, t: Tensor) -> Tensor:
        level = self.path.level_of(t)
        return (self.low <= level) & (level <= self.high)

    def _guided(self, name: str, z: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        ask = getattr(self.field, name)
        inside = self._inside(t)
        if not t.ndim and not inside:
            return ask(z, t, label)
        if self.guide is not None:
            value, other = ask(z, t, label), getattr(self.guide, name)(z, t, label)
        else:
            if label is None:
                raise ValueError("classifier-free guidance needs labels: pass label (B,)")
            null = torch.full_like(label, self.num_classes)  # type: ignore[arg-type]
            twice = torch.cat([t, t]) if t.ndim else t
            value, other = ask(torch.cat([z, z]), twice, torch.cat([label, null])).chunk(2)
        if not t.ndim:
            return torch.lerp(other, value, self.omega)
        omega = torch.where(inside, self.omega, 1.0).to(value.dtype)
        return torch.lerp(other, value, expand(omega, value))


def check_guidance(omega: float, low: float, high: float) -> None:
    """Refuses what is not a guidance strength or interval of noise levels."""
    if not math.isfinite(omega):
        raise ValueError(f"omega must be a finite number (1 disables guidance), got {omega}")
    if not 0 <= low <= high:
        raise ValueError(f"low and high must satisfy 0 <= low <= high (noise levels), got {low} and {high}")
