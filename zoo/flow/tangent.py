"""The derivative of a mean velocity along its own flow, by forward-mode differentiation.

du/dt = v . grad_z u + du/dt + du/dh along (v, 1, 1) in the coordinates (z, t, h = t - r), since r stands
still: MeanFlow (Geng et al. 2025, arXiv 2505.13447), equation 8.
"""

import functools
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.autograd.forward_ad as fwAD
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from zoo.flow.dual_rules import FastRules


@contextmanager
def evaluating(network: Any) -> Iterator[None]:
    """Switches the modules of ``network`` that are in training mode to evaluation, and back at the end."""
    modules = [m for m in network.modules() if m.training] if isinstance(network, nn.Module) else []
    for module in modules:
        module.training = False
    try:
        yield
    finally:
        for module in modules:
            module.training = True


@functools.cache
def _load_forward_mode() -> None:
    """Has PyTorch set up forward mode, which at the first dual number warns about its own code."""
    with warnings.catch_warnings(), fwAD.dual_level():
        warnings.filterwarnings("ignore", message=".*torch.jit.script.*", category=FutureWarning)
        fwAD.make_dual(torch.zeros(1), torch.zeros(1))


def total_derivative(
    network: Any, z: Tensor, t: Tensor, h: Tensor, velocity: Tensor, label: Tensor | None
) -> Tensor:
    """d/dt u(z_t, t, t - r) along dz/dt = velocity with r fixed; no gradient flows through it.

    The network runs in evaluation mode, without autocast, by its own `forward`: a compiled call, the hooks of
    a wrapper and fused attention kernels know no forward-mode derivative, so the attention takes the plain
    kernel here (and only here).

    Args:
        network: u(z, t, h, label).
        z: States (B, ...).
        t: Times (B,).
        h: Steps t - r (B,).
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
    forward = network.forward if isinstance(network, nn.Module) else network
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
        ]
        tangent = fwAD.unpack_dual(forward(*duals, label)).tangent
        return torch.zeros_like(z) if tangent is None else tangent
