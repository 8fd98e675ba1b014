"""The order of the channels that a U-Net's attention reads as queries, keys and values.

EDM's networks, and ours, let the three alternate channel by channel; MeanFlow's CIFAR-10 network, which is
EDM's otherwise, has all queries first, then all keys, then all values. Both have one head.
"""

from collections.abc import Mapping

from torch import Tensor


def join_attention(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict with the channels of every ``qkv`` alternating, from one with them one after another.

    >>> import torch
    >>> join_attention({"a.qkv.bias": torch.tensor([1, 2, 10, 20, 100, 200])})["a.qkv.bias"].tolist()
    [1, 10, 100, 2, 20, 200]
    """
    return {name: _reorder(value, 3) if ".qkv." in name else value for name, value in state.items()}


def split_attention(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The other way around."""
    return {
        name: _reorder(value, len(value) // 3) if ".qkv." in name else value for name, value in state.items()
    }


def _reorder(value: Tensor, groups: int) -> Tensor:
    """Takes the first of each group of channels, then the second of each, and so on."""
    return value.unflatten(0, (groups, -1)).transpose(0, 1).flatten(0, 1).contiguous()
