"""A learned variance of each noise level: the loss weights of EDM2 (Karras et al. 2023, arXiv 2312.02696).

An error e at log-variance u costs e / exp(u) + u, which is least at exp(u) = E[e]: every noise level then
weighs as much as its errors are certain. Section 2.2 of that paper, after Kendall et al. 2018.
"""

import math

import torch
from torch import Tensor, nn


class LogVariance(nn.Module):
    """u(s), a linear function of random Fourier features of ln(s) / 4; zero at first.

    Args:
        features: Number of Fourier features.
        seed: Seed of their frequencies and phases, which are fixed.

    >>> LogVariance()(torch.tensor([0.1, 80.0])).tolist()
    [0.0, 0.0]
    """

    def __init__(self, features: int = 128, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.frequencies: Tensor
        self.phases: Tensor
        self.register_buffer("frequencies", 2 * math.pi * torch.randn(features, generator=generator))
        self.register_buffer("phases", 2 * math.pi * torch.rand(features, generator=generator))
        self.weight = nn.Parameter(torch.zeros(features))

    def forward(self, level: Tensor) -> Tensor:
        """Log-variances (B,) at the noise levels ``level`` (B,)."""
        time = level.log().to(self.frequencies.dtype) / 4
        features = (time[:, None] * self.frequencies + self.phases).cos() * math.sqrt(2)  # (B, features)
        return features @ self.weight / math.sqrt(len(self.weight))
