"""What the U-Nets share: the order and the names of their stages, resampling, labels as vectors, attention.

The U-Nets of DDPM, NCSN++, ADM and EDM2 have one skeleton: at each size some blocks, between sizes a block
that halves or doubles the side, and every output of the way down is joined to an input of the way up.
`encoder_stages` and `decoder_stages` list it, under the names that the published checkpoints of EDM (Karras
et al. 2022, arXiv 2206.00364) and EDM2 (Karras et al. 2023, arXiv 2312.02696) use.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.flow.networks.embeddings import check_classes, known_label

Resampling = Literal["keep", "down", "up"]
Kind = Literal["conv", "in0", "in1", "block", "last_block", "down", "up"]


@dataclass(frozen=True)
class Stage:
    """One layer of a U-Net: where it stands and what it joins."""

    name: str  # as in the checkpoints
    inputs: int  # features, those joined from the way down included
    outputs: int
    size: int  # side of the output, in pixels
    kind: Kind
    joined: int = 0  # features that come from the way down

    @property
    def resample(self) -> Resampling:
        """What it does to the side."""
        return self.kind if self.kind in ("down", "up") else "keep"


def encoder_stages(size: int, channels: int, widths: Sequence[int], blocks: int, first: int) -> list[Stage]:
    """The way down: a convolution, then ``blocks`` blocks at each size.

    Args:
        size: Side of the input, in pixels.
        channels: Channels of the input.
        widths: Features at each size, the largest first.
        blocks: Blocks at each size.
        first: Features after the first convolution.

    >>> [stage.name for stage in encoder_stages(8, 3, [4, 8], 1, 4)]
    ['8x8_conv', '8x8_block0', '4x4_down', '4x4_block0']
    """
    stages, width = [Stage(f"{size}x{size}_conv", channels, first, size, "conv")], first
    for level, outputs in enumerate(widths):
        side = size >> level
        if level:
            stages.append(Stage(f"{side}x{side}_down", width, width, side, "down"))
        for index in range(blocks):
            stages.append(Stage(f"{side}x{side}_block{index}", width, outputs, side, "block"))
            width = outputs
    return stages


def decoder_stages(size: int, widths: Sequence[int], blocks: int, encoder: Sequence[Stage]) -> list[Stage]:
    """The way up: ``blocks`` + 1 blocks at each size, each of which joins one output of the way down.

    >>> down = encoder_stages(8, 3, [4, 8], 1, 4)
    >>> [(stage.name, stage.joined) for stage in decoder_stages(8, [4, 8], 1, down)][:4]
    [('4x4_in0', 0), ('4x4_in1', 0), ('4x4_block0', 8), ('4x4_block1', 4)]
    """
    stages, waiting, width = [], [stage.outputs for stage in encoder], encoder[-1].outputs
    for level in reversed(range(len(widths))):
        side = size >> level
        starts: tuple[Kind, ...] = ("in0", "in1") if level == len(widths) - 1 else ("up",)
        stages += [Stage(f"{side}x{side}_{kind}", width, width, side, kind) for kind in starts]
        for index in range(blocks + 1):
            joined, outputs = waiting.pop(), widths[level]
            name, last = f"{side}x{side}_block{index}", index == blocks
            kind: Kind = "last_block" if last else "block"
            stages.append(Stage(name, width + joined, outputs, side, kind, joined))
            width = outputs
    return stages


class UNet(nn.Module):
    """Attributes and checks of every U-Net; its layers are the subclass's.

    Args:
        input_size: Side of the image or latent, in pixels.
        in_channels: Channels of the image or latent.
        width_multipliers: Features at each size, in units of the width.
        attention_sizes: Sides at which blocks attend.
        num_classes: Number of classes, or None.
        two_times: Whether there is a second time input h = t - r.
    """

    widened: tuple[str, ...] = ()  # tensors that a second time input makes larger; new entries start at zero

    def __init__(
        self,
        input_size: int,
        in_channels: int,
        width_multipliers: Sequence[int],
        attention_sizes: Sequence[int],
        num_classes: int | None,
        two_times: bool,
    ) -> None:
        super().__init__()
        check_classes(num_classes)
        if not width_multipliers:
            raise ValueError("width_multipliers is empty: give one number for each size, the largest first")
        halvings = len(width_multipliers) - 1
        if input_size < 1 or input_size % 2**halvings:
            raise ValueError(
                f"input_size ({input_size}) must be a multiple of {2**halvings}: width_multipliers has "
                f"{halvings + 1} entries, and the side is halved between them"
            )
        sizes = [input_size >> level for level in range(halvings + 1)]
        if unknown := [size for size in attention_sizes if size not in sizes]:
            raise ValueError(
                f"attention_sizes holds {unknown}, and this network has the sizes {sizes} only: name some of "
                "these, or none"
            )
        self.shape = (in_channels, input_size, input_size)
        self.num_classes = num_classes
        self.two_times = two_times

    def one_hot(self, t: Tensor, label: Tensor | None, dtype: torch.dtype) -> Tensor | None:
        """Labels as unit vectors (B, num_classes), unconditional as zeros; None without classes."""
        label = known_label(self, t, label)
        if label is None or self.num_classes is None:
            return None
        return F.one_hot(label, self.num_classes + 1)[:, : self.num_classes].to(dtype)

    def two_time_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The state with two time inputs that computes, at every h, what ``state`` does with one.

        What the second time input adds to the first layer is zero in it, and learns from the first update on.

        Args:
            state: State dict of the same network with one time input.
        """
        own, wide = self.state_dict(), dict(state)
        for name in self.widened:
            if name in state and name in own and _fits(state[name], own[name]):
                wide[name] = state[name].new_zeros(own[name].shape)
                wide[name][tuple(slice(n) for n in state[name].shape)] = state[name]
        return wide


def _fits(small: Tensor, large: Tensor) -> bool:
    return small.ndim == large.ndim and all(a <= b for a, b in zip(small.shape, large.shape, strict=True))


def filter_kernel(taps: Sequence[int]) -> Tensor:
    """The separable low-pass filter (1, 1, K, K) of sum 1 with these taps.

    >>> filter_kernel([1, 1]).flatten().tolist()
    [0.25, 0.25, 0.25, 0.25]
    """
    if not taps or len(taps) % 2 or sum(taps) == 0:
        raise ValueError(
            f"resample_filter must hold an even number of taps whose sum is not 0, such as [1, 1] or "
            f"[1, 3, 3, 1]; got {list(taps)}"
        )
    line = torch.tensor(taps, dtype=torch.float32)
    return (line.outer(line) / line.sum() ** 2)[None, None]


def downsample(x: Tensor, kernel: Tensor | None = None, padded: bool = True) -> Tensor:
    """Halves the sides of ``x`` (B, C, H, W): filters each channel, then keeps every other pixel.

    Args:
        x: Images, features.
        kernel: Filter (1, 1, K, K); None for the mean of two by two pixels.
        padded: Whether to pad with zeros, so that the side is halved exactly.
    """
    if kernel is None:
        return F.avg_pool2d(x, 2)
    size, channels = kernel.shape[-1], x.shape[1]
    weight = kernel.to(x.dtype).expand(channels, 1, size, size)
    return F.conv2d(x, weight, stride=2, padding=(size - 1) // 2 if padded else 0, groups=channels)


def upsample(x: Tensor, kernel: Tensor | None = None) -> Tensor:
    """Doubles the sides of ``x`` (B, C, H, W): puts zeros between pixels, then filters each channel.

    Args:
        x: Images, features.
        kernel: Filter (1, 1, K, K), made four times as large here; None repeats each pixel two by two times.
    """
    if kernel is None:
        return F.interpolate(x, scale_factor=2, mode="nearest")
    size, channels = kernel.shape[-1], x.shape[1]
    weight = (4 * kernel).to(x.dtype).expand(channels, 1, size, size)
    return F.conv_transpose2d(x, weight, stride=2, padding=(size - 1) // 2, groups=channels)


def split_heads(qkv: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values (B, heads, H W, C / heads) of features (B, 3 C, H, W).

    Their channels are ordered as in the EDM checkpoints: heads, then channels, then query, key, value.
    """
    rows = qkv.flatten(2).unflatten(1, (heads, -1, 3)).permute(3, 0, 1, 4, 2)  # (3, B, heads, H W, C / heads)
    # One copy: the fused attention kernels want the features side by side.
    q, k, v = rows.contiguous()
    return q, k, v


def join_heads(x: Tensor, like: Tensor) -> Tensor:
    """(B, heads, H W, C / heads) -> (B, C, H, W), the shape of ``like``."""
    return x.transpose(2, 3).reshape(like.shape)


def augmentation(layer: nn.Linear | None, augment: Tensor | None, features: Tensor) -> Tensor | float:
    """What augmentations (B, augment_dim) add to ``features`` (B, D); none at all adds 0.

    Raises:
        ValueError: the network knows no augmentations, or another number of them.
    """
    if layer is None:
        if augment is not None:
            raise ValueError(
                "augment was given to a network with augment_dim=0: pass None, or set augment_dim"
            )
        return 0.0
    if augment is None:  # the layer takes part all the same: DDP wants every parameter in the graph
        augment = features.new_zeros(len(features), layer.in_features)
    if augment.shape != (len(features), layer.in_features):
        raise ValueError(
            f"augment must be of shape {(len(features), layer.in_features)} (items, augment_dim), got "
            f"{tuple(augment.shape)}"
        )
    return layer(augment.to(layer.weight.dtype))
