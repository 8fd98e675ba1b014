"""The derivative of a mean velocity along its own flow, by forward-mode differentiation or by differences.

du/dt = v . grad_z u + du/dt + du/dh along (v, 1, 1) in the coordinates (z, t, h = t - r), since r stands
still: MeanFlow (Geng et al. 2025, arXiv 2505.13447), equation 8.
"""

import functools
import warnings
from typing import Any, Protocol

import torch
import torch.autograd.forward_ad as fwAD
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from zoo._modes import evaluating
from zoo.flow.dual_rules import FastRules
from zoo.flow.paths import expand


def eager(network: Any) -> Any:
    """The function of a network without its compiled call and hooks."""
    if not isinstance(network, nn.Module):
        return network
    return network.eager if hasattr(network, "eager") else network.forward


@functools.cache
def _load_forward_mode() -> None:
    """Has PyTorch set up forward mode, which at the first dual number warns about its own code."""
    with warnings.catch_warnings(), fwAD.dual_level():
        warnings.filterwarnings("ignore", message=".*torch.jit.script.*", category=FutureWarning)
        fwAD.make_dual(torch.zeros(1), torch.zeros(1))


class Derivative(Protocol):
    """A way to take d/dt u(z_t, t, t - r): `total_derivative`, which is exact, or a `FiniteDifference`."""

    def __call__(
        self, network: Any, z: Tensor, t: Tensor, h: Tensor | None, velocity: Tensor, label: Tensor | None
    ) -> Tensor:
        """The derivative (B, ...), without gradient."""


def total_derivative(
    network: Any, z: Tensor, t: Tensor, h: Tensor | None, velocity: Tensor, label: Tensor | None
) -> Tensor:
    """d/dt u(z_t, t, t - r) along dz/dt = velocity with r fixed; no gradient flows through it.

    The network runs in evaluation mode, without autocast, by its own `forward`: a compiled call, the hooks of
    a wrapper and fused attention kernels know no forward-mode derivative, so the attention takes the plain
    kernel here (and only here).

    Args:
        network: u(z, t, h, label).
        z: States (B, ...).
        t: Times (B,).
        h: Steps t - r (B,); None for a network with one time input.
        velocity: dz/dt (B, ...).
        label: Classes (B,), or None.

    Returns:
        (B, ...), the derivative.

    >>> u = lambda z, t, h, label: z * (t + 2 * h)[:, None]
    >>> z, velocity, one = torch.tensor([[5.0]]), torch.tensor([[2.0]]), torch.ones(1)
    >>> total_derivative(u, z, one, 0 * one, velocity, None).item()  # 2 * 1 + 5 * (1 + 2)
    17.0
    """
    _load_forward_mode()
    forward = eager(network)
    # Forward-mode differentiation does nothing inside inference mode (where a Trainer validates), and not
    # with tensors that were made there: leave it, and copy.
    with (
        torch.inference_mode(False),
        torch.no_grad(),
        torch.autocast(z.device.type, enabled=False),
        sdpa_kernel(SDPBackend.MATH),
        evaluating(network),
        fwAD.dual_level(),
        FastRules(),
    ):
        one = torch.ones_like(t)
        duals = [
            fwAD.make_dual(primal.clone(), tangent.clone().to(primal.dtype))
            for primal, tangent in ((z, velocity), (t, one), (h, one))
            if primal is not None
        ]
        inputs = duals if h is not None else [*duals, None]
        tangent = fwAD.unpack_dual(forward(*inputs, label)).tangent
        return torch.zeros_like(z) if tangent is None else tangent


class FiniteDifference:
    """The same derivative from two more evaluations, for networks that forward mode cannot differentiate.

    (u(z + a v, t + a, h + a) - u(z - b v, t - b, h - b)) / (a + b), in evaluation mode and without gradient.
    Central where there is room; at the noise end a is cut off, near r the step back is (it does not pass r,
    where the network was never trained). The error is of second order in the step, except at the noise end,
    where it is of first. Where h is shorter than the step, mean flow multiplies the error by h, so it is of
    second order there too. Both evaluations see the same labels and no dropout (in the official mean-flow
    code for RAE latents they drop labels independently, which adds spurious differences).

    Args:
        step: The step in time; 0.005 was the best of .0001 to .01 in RAE latents, by the authors' own
            account.

    >>> u = lambda z, t, h, label: z * (t + 2 * h)[:, None]
    >>> z, velocity, one = torch.tensor([[5.0]]), torch.tensor([[2.0]]), torch.ones(1)
    >>> round(FiniteDifference()(u, z, 0.5 * one, 0.5 * one, velocity, None).item(), 3)  # 2 * 1.5 + 5 * 3
    18.0
    """

    def __init__(self, step: float = 5e-3) -> None:
        if not step > 0:
            raise ValueError(f"step must be positive (a step in time), got {step}")
        self.step = step

    def __call__(
        self, network: Any, z: Tensor, t: Tensor, h: Tensor | None, velocity: Tensor, label: Tensor | None
    ) -> Tensor:
        """The derivative (B, ...), without gradient; arguments as in `total_derivative`."""
        forward = eager(network)
        path = getattr(network, "path", None)
        end = 1.0 if path is None else path.end
        # In float64 the two times are as far apart as the difference is divided by.
        times = t.double()
        ahead = (times + self.step).clamp(max=end)
        back = times - (torch.full_like(times, self.step) if h is None else h.double().clamp(max=self.step))
        if h is None:
            back = back.clamp(min=0)
        ahead, back = ahead.to(t.dtype), back.to(t.dtype)
        with torch.no_grad(), evaluating(network):
            values = []
            for other in (ahead, back):
                gap = other - t
                # r stands still; rounding must not carry h below 0.
                step = None if h is None else (h + gap).clamp(min=0)
                values.append(forward(z + expand(gap, z) * velocity, other, step, label))
            return (values[0] - values[1]) / expand(ahead - back, z)
