"""The residual block of DDPM++, NCSN++ and ADM: two convolutions between group norms, conditioned, attention.

The block of EDM's networks (Karras et al. 2022, arXiv 2206.00364, appendix F.2), whose settings make it the
one of DDPM++ and NCSN++ (Song et al. 2021, arXiv 2011.13456) or of ADM (Dhariwal and Nichol 2021, arXiv
2105.05233). Parameters carry the names of the EDM checkpoints. Differences: attention runs through
`scaled_dot_product_attention`, and the filter [1, 1] is a mean or a repetition of pixels, which is the same
and faster.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.flow.networks.unet import Resampling, downsample, filter_kernel, join_heads, split_heads, upsample


class Resample(nn.Module):
    """Halves or doubles the sides of its input (B, C, H, W), or keeps them.

    Args:
        resample: What to do.
        taps: Taps of the low-pass filter.
    """

    def __init__(self, resample: Resampling, taps: Sequence[int]) -> None:
        super().__init__()
        self.resample = resample
        self.box = len(set(taps)) == 1 and len(taps) == 2
        self.resample_filter: Tensor
        self.register_buffer("resample_filter", filter_kernel(taps))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H / 2, W / 2) or (B, C, 2 H, 2 W)."""
        kernel = None if self.box else self.resample_filter
        return downsample(x, kernel) if self.resample == "down" else upsample(x, kernel)


class ResampledConv(nn.Conv2d):
    """A convolution that keeps the side, after its input was halved or doubled.

    Args:
        inputs: Input channels.
        outputs: Output channels.
        kernel: Side of the kernel, odd.
        resample: What happens to the side.
        taps: Taps of the low-pass filter.
        conv_first: Convolve first and halve then, without padding in between.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        resample: Resampling = "keep",
        taps: Sequence[int] = (1, 1),
        conv_first: bool = False,
    ) -> None:
        border = (len(taps) - 1) // 2 if conv_first else 0
        super().__init__(inputs, outputs, kernel, padding=kernel // 2 + border)
        self.resample = resample
        self.conv_first = conv_first
        self.box = len(set(taps)) == 1 and len(taps) == 2
        if resample != "keep":
            self.resample_filter: Tensor
            self.register_buffer("resample_filter", filter_kernel(taps))

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, H', W')."""
        if self.resample == "keep":
            return super().forward(x)
        kernel = None if self.box else self.resample_filter
        if self.conv_first:
            return downsample(super().forward(x), kernel, padded=False)
        return super().forward(downsample(x, kernel) if self.resample == "down" else upsample(x, kernel))


def group_norm(channels: int, eps: float) -> nn.GroupNorm:
    """Normalization over at most 32 groups of at least 4 channels."""
    groups = min(32, channels // 4)
    if groups < 1 or channels % groups:
        raise ValueError(
            f"width must give every layer features that divide into min(32, features / 4) groups, and gives "
            f"one layer {channels}: take a multiple of 4 up to 128, of 32 above"
        )
    return nn.GroupNorm(groups, channels, eps=eps)


class UNetBlock(nn.Module):
    """x -> s (skip(x) + conv1(silu(norm1(conv0(silu(norm0(x))), condition)))), then attention, likewise.

    Args:
        inputs: Input features.
        outputs: Output features.
        condition: Features of the condition.
        resample: What happens to the side.
        heads: Attention heads; 0 for none.
        dropout: Probability of dropping a feature before the second convolution, in training.
        scale: The factor s of each sum.
        eps: Added to the variances of the group norms.
        taps: Taps of the low-pass filter.
        adaptive: Whether the condition scales and shifts the normalized features, as in ADM, or is added
            before they are normalized, as in DDPM++.
        project_resampled: Whether a skip connection that changes the side alone has a convolution too.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        condition: int,
        resample: Resampling,
        heads: int,
        dropout: float,
        scale: float,
        eps: float,
        taps: Sequence[int] = (1, 1),
        adaptive: bool = False,
        project_resampled: bool = True,
    ) -> None:
        super().__init__()
        if heads and outputs % heads:
            raise ValueError(f"width must give features that divide into the heads: {outputs} into {heads}")
        self.heads = heads
        self.scale = scale
        self.adaptive = adaptive
        self.norm0 = group_norm(inputs, eps)
        self.conv0 = ResampledConv(inputs, outputs, 3, resample, taps)
        self.affine = nn.Linear(condition, outputs * (2 if adaptive else 1))
        self.norm1 = group_norm(outputs, eps)
        self.dropout = nn.Dropout(dropout)
        self.conv1 = ResampledConv(outputs, outputs, 3)
        self.skip: nn.Module | None = None
        if inputs != outputs or (resample != "keep" and project_resampled):
            self.skip = ResampledConv(inputs, outputs, 1, resample, taps)
        elif resample != "keep":
            self.skip = Resample(resample, taps)
        if heads:
            self.norm2 = group_norm(outputs, eps)
            self.qkv = ResampledConv(outputs, 3 * outputs, 1)
            self.proj = ResampledConv(outputs, outputs, 1)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """``x`` (B, inputs, H, W), ``condition`` (B, D) -> (B, outputs, H', W')."""
        y = self.conv0(F.silu(self.norm0(x)))
        offset = self.affine(condition)[:, :, None, None]  # (B, outputs or 2 outputs, 1, 1)
        if self.adaptive:
            scale, shift = offset.chunk(2, dim=1)
            y = torch.addcmul(shift, self.norm1(y), scale + 1)
        else:
            y = self.norm1(y + offset)
        y = self.conv1(self.dropout(F.silu(y)))
        x = self._sum(x if self.skip is None else self.skip(x), y)
        if self.heads:
            q, k, v = split_heads(self.qkv(self.norm2(x)), self.heads)
            x = self._sum(x, self.proj(join_heads(F.scaled_dot_product_attention(q, k, v), x)))
        return x

    def _sum(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y if self.scale == 1 else (x + y) * self.scale
