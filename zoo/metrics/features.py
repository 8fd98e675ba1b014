"""Features of images from a fixed random network: no weights to download, the same on every machine.

A random convolutional network is not a substitute for a trained one, but its features see local structure
that pixels do not, and distances between sets of them rank generators sensibly at small scale. What they are
worth on a data set is for their user to show.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RandomFeatures(nn.Module):
    """Convolutions with fixed random orthogonal filters, at several scales.

    ``forward`` gives vectors for `frechet_distance` and its like: the mean and the standard deviation of
    every channel at every scale. `maps` gives the feature maps, each position scaled to unit length, for
    distances of pairs (`zoo.flow.RandomFeatureDistance`).

    Args:
        channels: Channels of the images.
        width: Channels of the first scale, doubled at each further one.
        scales: Number of scales; images of side S need S >= 2^(scales - 1).
        seed: Seed of the filters.

    >>> RandomFeatures(channels=1, width=8, scales=2)(torch.zeros(5, 1, 8, 8)).shape
    torch.Size([5, 48])
    """

    def __init__(self, channels: int = 3, width: int = 32, scales: int = 3, seed: int = 0) -> None:
        super().__init__()
        if min(channels, width, scales) < 1:
            raise ValueError(
                f"channels, width and scales must be at least 1, got {channels}, {width}, {scales}"
            )
        generator = torch.Generator().manual_seed(seed)
        sizes = [channels, *(width * 2**scale for scale in range(scales))]
        self.layers = nn.ModuleList()
        for before, after in pairwise(sizes):
            layer = nn.Conv2d(before, after, 3, padding=1)
            nn.init.orthogonal_(layer.weight, gain=2**0.5, generator=generator)
            assert layer.bias is not None
            nn.init.normal_(layer.bias, std=0.1, generator=generator)
            self.layers.append(layer)
        self.channels = channels
        self.requires_grad_(False).eval()

    def _scales(self, x: Tensor) -> list[Tensor]:
        if x.ndim != 4 or x.shape[1] != self.channels:
            raise ValueError(f"x must be images (B, {self.channels}, S, S), got {tuple(x.shape)}")
        if min(x.shape[2:]) < 2 ** (len(self.layers) - 1):
            raise ValueError(
                f"images of {tuple(x.shape[2:])} are too small for {len(self.layers)} scales: give fewer"
            )
        maps = []
        for number, layer in enumerate(self.layers):
            x = F.leaky_relu(layer(F.avg_pool2d(x, 2) if number else x), 0.2)
            maps.append(x)
        return maps

    def maps(self, x: Tensor) -> list[Tensor]:
        """Feature maps (B, width, S, S), (B, 2 width, S / 2, S / 2), ..., of unit length at each position."""
        return [F.normalize(scale, dim=1, eps=1e-6) for scale in self._scales(x)]

    def forward(self, x: Tensor) -> Tensor:
        """Vectors (B, features) of images (B, channels, S, S)."""
        parts = []
        for scale in self._scales(x):
            flat = scale.flatten(2)
            # The root's derivative at a map that is constant would be infinite.
            parts += [flat.mean(2), (flat.var(2, unbiased=False) + 1e-12).sqrt()]
        return torch.cat(parts, dim=1)
