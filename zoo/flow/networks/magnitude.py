"""Layers that keep the magnitude of what they are given: the parts of EDM2's network.

Karras et al. 2023, arXiv 2312.02696, appendix B; equation numbers are theirs. The magnitude of a tensor is
the root of its mean square. Activations have magnitude 1 in expectation because weights are normalized before
use, so that no layer needs a group norm or a bias.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SILU_MAGNITUDE = 0.596  # of silu(x) for normal x, as the paper rounds it (equation 81)


def normalize(x: Tensor, dim: int | None = None, eps: float = 1e-4) -> Tensor:
    """Divides by the magnitude over one dimension, or over all but the first.

    Args:
        x: Any tensor.
        dim: The dimension; None for all but the first, as for weights.
        eps: Added to the magnitude.

    >>> normalize(torch.tensor([[3.0, 4.0]]), eps=0.0).square().mean().item()
    1.0
    """
    over = list(range(1, x.ndim)) if dim is None else dim
    count = x[0].numel() if dim is None else x.shape[dim]
    precise = torch.promote_types(x.dtype, torch.float32)
    norm = torch.linalg.vector_norm(x, dim=over, keepdim=True, dtype=precise)
    return x / torch.add(eps, norm, alpha=1 / math.sqrt(count)).to(x.dtype)


def mp_silu(x: Tensor) -> Tensor:
    """The function silu, divided by its magnitude for normal ``x`` (equation 81)."""
    return F.silu(x) / SILU_MAGNITUDE


def mp_sum(a: Tensor, b: Tensor, t: float | Tensor = 0.5) -> Tensor:
    """(1 - t) a + t b, divided by the magnitude that it has where ``a`` and ``b`` have 1 (equation 88).

    >>> mp_sum(torch.tensor(3.0), torch.tensor(1.0), t=0.0).item()
    3.0
    """
    size = math.hypot(1 - t, t)
    return a * ((1 - t) / size) + b * (t / size)


def mp_cat(a: Tensor, b: Tensor, t: float = 0.5) -> Tensor:
    """Joins channels (B, C, ...), scaled so that ``a`` and ``b`` contribute as 1 - t to t (equation 103)."""
    count_a, count_b = a.shape[1], b.shape[1]
    scale = math.sqrt(count_a + count_b) / math.hypot(1 - t, t)
    return torch.cat(
        [a * (scale * (1 - t) / math.sqrt(count_a)), b * (scale * t / math.sqrt(count_b))], dim=1
    )


class MPFourier(nn.Module):
    """Cosines of a time at random frequencies and phases, of magnitude 1 (equation 75).

    Args:
        size: Features.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.freqs: Tensor
        self.phases: Tensor
        self.register_buffer("freqs", 2 * math.pi * torch.randn(size))
        self.register_buffer("phases", 2 * math.pi * torch.rand(size))

    def forward(self, t: Tensor) -> Tensor:
        """Times (B,) -> (B, size)."""
        angles = t[:, None] * self.freqs.to(t.dtype) + self.phases.to(t.dtype)
        return angles.cos() * math.sqrt(2)


class MPConv(nn.Module):
    """A convolution, or for ``kernel`` 0 a linear map, with weights normalized before use (equation 47).

    Args:
        inputs: Input features.
        outputs: Output features.
        kernel: Side of the kernel, odd, or 0.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int = 0) -> None:
        super().__init__()
        self.kernel = kernel
        self.weight = nn.Parameter(torch.randn(outputs, inputs, *(2 * [kernel] if kernel else [])))

    def forward(self, x: Tensor, gain: Any = 1.0) -> Tensor:
        """``x`` (B, inputs, ...) -> (B, outputs, ...), times ``gain``: a number, or a tensor of one."""
        precise = torch.promote_types(self.weight.dtype, torch.float32)
        weight = normalize(self.weight.to(precise)) * (gain / math.sqrt(self.weight[0].numel()))
        weight = weight.to(x.dtype)
        return F.conv2d(x, weight, padding=self.kernel // 2) if self.kernel else F.linear(x, weight)

    @torch.no_grad()
    def normalize_weight(self) -> None:
        """Puts the normalized weights in the place of the weights: the "forced weight normalization" (66)."""
        precise = torch.promote_types(self.weight.dtype, torch.float32)
        self.weight.copy_(normalize(self.weight.to(precise)))
