"""From noise to data in a few steps of the mean velocity.

MeanFlow (Geng et al. 2025, arXiv 2505.13447), equation 12 and algorithm 2: z_r = z_t - (t - r) u(z_t, r, t),
in one step from t = 1 to r = 0 or along an even grid of times.
"""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

Network = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]


@torch.no_grad()
def sample_mean_flow(network: Network, noise: Tensor, label: Tensor | None = None, steps: int = 1) -> Tensor:
    """Carries noise at t = 1 to data at t = 0 in ``steps`` equal steps.

    Args:
        network: u(z, t, h, label) with h = t - r.
        noise: Standard normal states (B, ...).
        label: Classes (B,), or None.
        steps: Number of steps, and of network evaluations.

    Returns:
        Samples (B, ...).

    Raises:
        ValueError: ``steps`` is less than 1.

    >>> halve = lambda z, t, h, label: z / 2  # a step of length h takes away the share h / 2
    >>> sample_mean_flow(halve, torch.ones(1, 1), steps=2).item()
    0.5625
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    z = noise
    ones = torch.ones(len(z), device=z.device, dtype=torch.promote_types(z.dtype, torch.float32))  # (B,)
    grid = [1 - i / steps for i in range(steps)] + [0.0]
    for t, r in pairwise(grid):
        z = z - (t - r) * network(z, t * ones, (t - r) * ones, label)
    return z
