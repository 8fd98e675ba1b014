"""A network with a preconditioning on a path: denoised data, velocities and mean velocities."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from zoo.flow.paths import Path, expand
from zoo.flow.preconditioning import Coefficient, Preconditioning


class PreconditionedNetwork(nn.Module):
    """D(z, t) and v(z, t) of a network with one time input, and u(z, t, h) of one with two.

    Calling it gives velocities: ``model(z, t, h, label)`` is the mean velocity over the last h = t - r where
    the network has two time inputs, with the coefficients of the velocity at t. A network whose output does
    not depend on h is therefore the same function with one time input or two.

    Times are (B,), or single numbers () on the CPU that all items share.

    Args:
        network: F(z, t, h, label) with the attributes of `zoo.flow.networks`.
        preconditioning: What F means.
        path: Where the states live; the preconditioning's own if not given.

    >>> from zoo.flow import EDMPreconditioning
    >>> zero = lambda z, t, h, label: torch.zeros_like(z)
    >>> model = PreconditionedNetwork(zero, EDMPreconditioning(sigma_data=0.5))
    >>> round(model.denoise(torch.ones(1, 1), torch.tensor([0.5])).item(), 4)  # c_skip
    0.5
    """

    def __init__(
        self, network: Callable[..., Tensor], preconditioning: Preconditioning, path: Path | None = None
    ) -> None:
        super().__init__()
        self.network = network
        self.preconditioning = preconditioning
        self.path = preconditioning.path if path is None else path

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one item."""
        return tuple(self.network.shape)  # type: ignore[attr-defined]

    @property
    def num_classes(self) -> int | None:
        """Number of classes, or None; label ``num_classes`` means unconditional."""
        return getattr(self.network, "num_classes", None)

    @property
    def boundary(self) -> float:
        """Noise level up to which the denoiser keeps a state as it is: above 0 in some consistency models."""
        return float(getattr(self.preconditioning, "boundary", 0.0))

    def on(self, path: Path) -> "PreconditionedNetwork":
        """The same network read on another path."""
        return PreconditionedNetwork(self.network, self.preconditioning, path)

    def output(self, z: Tensor, t: Tensor, h: Tensor | None = None, label: Tensor | None = None) -> Tensor:
        """F itself (B, ...)."""
        return self._output(self.network, z, t, h, label)

    def denoise(self, z: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        """D(z, t): the expected data of states ``z`` (B, ...) at times ``t``."""
        return _affine(self.preconditioning.denoiser(self.path, t), z, self.output(z, t, None, label))

    def velocity(self, z: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        """v(z, t): the expected dz/dt of states ``z`` (B, ...) at times ``t``."""
        return self.forward(z, t, None, label)

    def mean_velocity(self, z: Tensor, t: Tensor, h: Tensor, label: Tensor | None = None) -> Tensor:
        """u(z, t, h): the mean velocity of states ``z`` (B, ...) over the last ``h`` = t - r."""
        return self.forward(z, t, h, label)

    def forward(
        self, z: Tensor, t: Tensor, h: Tensor | None = None, label: Tensor | None = None, **more: Any
    ) -> Tensor:
        """The mean velocity over the last ``h`` = t - r, or the velocity where ``h`` is None.

        ``more`` is for networks that know more: ``guidance`` and ``head`` of a `zoo.flow.DiT`. Both heads
        together come out as (2, B, ...).
        """
        output = self._output(self.network, z, t, h, label, **more)
        return _affine(self.preconditioning.velocity(self.path, t), z, output)

    def eager(
        self, z: Tensor, t: Tensor, h: Tensor | None = None, label: Tensor | None = None, **more: Any
    ) -> Tensor:
        """The same past the network's compiled call and hooks, which know no forward-mode derivative."""
        network = self.network.forward if isinstance(self.network, nn.Module) else self.network
        output = self._output(network, z, t, h, label, **more)
        return _affine(self.preconditioning.velocity(self.path, t), z, output)

    def _output(
        self, network: Any, z: Tensor, t: Tensor, h: Tensor | None, label: Tensor | None, **more: Any
    ) -> Tensor:
        factor, time = self.preconditioning.inputs(self.path, t)
        scaled = z if factor is None else expand(factor, z) * z
        if not t.ndim:  # one number for all; made where the states are, without waiting for the device
            time = _filled(time, z)
            h = None if h is None else _filled(h, z)
        return network(scaled, time, h, label, **more)


def _filled(number: Tensor, z: Tensor) -> Tensor:
    precise = torch.promote_types(z.dtype, torch.float32)  # bfloat16 would blur the times
    return torch.full((len(z),), float(number), dtype=precise, device=z.device)


def _affine(coefficients: tuple[Coefficient, Coefficient], z: Tensor, output: Tensor) -> Tensor:
    skip, out = coefficients
    if out is not None:
        output = expand(out, z) * output  # also of two heads (2, B, ...)
    return output if skip is None else output + expand(skip, z) * z
