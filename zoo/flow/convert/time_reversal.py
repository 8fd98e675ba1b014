"""Reverses the time of a velocity network, in its weights.

SiT has the data at t = 1 and its velocity is data - noise; here, as in MeanFlow, the data are at t = 0 and it
is noise - data: v(z, t) = -v_SiT(z, 1 - t). The features of a time are [cos(f t), sin(f t)], and those of
1 - t are a rotation and a reflection of them, so the first layer [C, S] of the time's embedder becomes
[C cos f + S sin f, C sin f - S cos f], exactly and at no cost at run time. Twice is not at all.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

FIRST = "t_embedder.mlp.0.weight"
LAST = ("final_layer.linear.weight", "final_layer.linear.bias")


def reverse_time(state: Mapping[str, Tensor], max_period: float = 10_000.0) -> dict[str, Tensor]:
    """The weights of a DiT of one time input with the times t and 1 - t exchanged and the output negated.

    Args:
        state: State dict of a `DiT`.
        max_period: Longest period of its sinusoids, in units of 2 pi.

    >>> state = {FIRST: torch.tensor([[1.0, 2.0]]), LAST[0]: torch.ones(1, 1), LAST[1]: torch.ones(1)}
    >>> [round(x, 4) for x in reverse_time(state)[FIRST][0].tolist()]  # cos 1 + 2 sin 1, sin 1 - 2 cos 1
    [2.2232, -0.2391]
    """
    if missing := [name for name in (FIRST, *LAST) if name not in state]:
        raise ValueError(f"the time cannot be reversed: the state has no {', '.join(missing)}")
    if any(name.startswith("h_embedder.") for name in state):
        raise ValueError(
            "the time of a network with two time inputs cannot be reversed: h = t - r would be r - t"
        )
    weight = state[FIRST].double()  # (D, frequencies)
    half = weight.shape[1] // 2
    powers = torch.arange(half, dtype=torch.float64, device=weight.device) / half
    cosine, sine = (f(torch.exp(-math.log(max_period) * powers)) for f in (torch.cos, torch.sin))
    c, s = weight[:, :half], weight[:, half:]
    turned = torch.cat([c * cosine + s * sine, c * sine - s * cosine], dim=1)
    flipped = {FIRST: turned.to(state[FIRST].dtype), **{name: -state[name] for name in LAST}}
    return {**state, **flipped}


def drop_variance(state: Mapping[str, Tensor], patch: int, channels: int) -> dict[str, Tensor]:
    """The weights without the outputs of a learned variance: the second half of each pixel's channels.

    Args:
        state: State dict of a DiT whose last layer gives 2 ``channels`` for each pixel of a patch.
        patch: Side of a patch.
        channels: Channels of the image.
    """
    kept = {}
    for name in LAST:
        rows = state[name].unflatten(0, (patch * patch, 2 * channels))
        kept[name] = rows[:, :channels].flatten(0, 1)
    return {**state, **kept}
