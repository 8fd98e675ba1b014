"""Embeddings that condition a network: times, class labels and patch positions.

The sinusoids are those of DiT (Peebles and Xie 2022, arXiv 2212.09748), cosines first. As in MeanFlow (Geng
et al. 2025, arXiv 2505.13447) times lie in [0, 1] and are *not* multiplied by 1000.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn


def sinusoids(t: Tensor, size: int, max_period: float = 10_000.0, endpoint: bool = False) -> Tensor:
    """Cosines and sines of ``t`` at ``size / 2`` frequencies from 1 down to nearly 1 / max_period.

    Args:
        t: Times or positions (B,).
        size: Features, even.
        max_period: Longest period, in units of 2 pi.
        endpoint: Whether the lowest frequency is 1 / max_period itself, as in DDPM++.

    Returns:
        (B, size) in the dtype of ``t``: cosines, then sines.

    >>> sinusoids(torch.tensor([0.0, 1.0], dtype=torch.float64), 4).round(decimals=4).tolist()
    [[1.0, 1.0, 0.0, 0.0], [0.5403, 1.0, 0.8415, 0.01]]
    """
    if size % 2:
        raise ValueError(f"size must be even (half cosines, half sines), got {size}")
    half = size // 2
    if endpoint and half < 2:
        raise ValueError(f"size must be at least 4 with endpoint=True (two frequencies), got {size}")
    powers = torch.arange(half, device=t.device, dtype=t.dtype) / (half - 1 if endpoint else half)
    angles = t[:, None] * torch.exp(-math.log(max_period) * powers)  # (B, size / 2)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def grid_sinusoids(width: int, side: int) -> Tensor:
    """Fixed positions of a square grid: half of the features tell the column, half the row, sines first.

    Args:
        width: Features, a multiple of 4.
        side: Cells along each side.

    Returns:
        (side * side, width) float32, row by row.

    >>> grid_sinusoids(4, 2).double().round(decimals=2).tolist()
    [[0.0, 1.0, 0.0, 1.0], [0.84, 0.54, 0.0, 1.0], [0.0, 1.0, 0.84, 0.54], [0.84, 0.54, 0.84, 0.54]]
    """
    if width % 4:
        raise ValueError(f"width must be a multiple of 4 (sine and cosine of column and row), got {width}")
    axis = torch.arange(side, dtype=torch.float64)
    features = sinusoids(axis, width // 2)  # (side, width / 2)
    cosine, sine = features.chunk(2, dim=-1)
    features = torch.cat([sine, cosine], dim=-1)
    column = features.repeat(side, 1)  # (side * side, width / 2)
    row = features.repeat_interleave(side, dim=0)
    return torch.cat([column, row], dim=-1).float()


class TimeEmbedder(nn.Module):
    """Sinusoids of a time followed by a two-layer perceptron.

    Args:
        width: Output features.
        frequencies: Number of sinusoidal features, even.
    """

    def __init__(self, width: int, frequencies: int = 256) -> None:
        super().__init__()
        self.frequencies = frequencies
        first, second = nn.Linear(frequencies, width), nn.Linear(width, width)
        for layer in (first, second):
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
        self.mlp = nn.Sequential(first, nn.SiLU(), second)

    def forward(self, t: Tensor) -> Tensor:
        """Embeds times (B,) as (B, width)."""
        features = sinusoids(t, self.frequencies)  # in the dtype of t: bfloat16 would blur the times
        return self.mlp(features.to(next(self.mlp.parameters()).dtype))


class LabelEmbedder(nn.Module):
    """A table of class embeddings whose last row, number ``num_classes``, stands for unconditional.

    Args:
        num_classes: Number of classes.
        width: Output features.
    """

    def __init__(self, num_classes: int, width: int) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(num_classes + 1, width)
        nn.init.normal_(self.embedding_table.weight, std=0.02)

    def forward(self, label: Tensor) -> Tensor:
        """Embeds labels (B,) in [0, num_classes] as (B, width)."""
        return self.embedding_table(label)


class GuidanceEmbedder(nn.Module):
    """Embeds how strongly, and from when to when, a network's own output is to be guided.

    As in improved mean flow (Geng et al. 2025, arXiv 2512.02012) the strength w >= 1 enters as 1 - 1 / w,
    which is 0 without guidance and stays below 1. The last layers are zero at first: a network that gains
    this embedder computes what it did.

    Args:
        width: Output features.
        frequencies: Number of sinusoidal features of each of the three numbers.
    """

    def __init__(self, width: int, frequencies: int = 256) -> None:
        super().__init__()
        self.parts = nn.ModuleList(TimeEmbedder(width, frequencies) for _ in range(3))
        for part in self.parts:
            nn.init.zeros_(part.mlp[2].weight)  # type: ignore[union-attr, index]

    def forward(self, guidance: Tensor) -> Tensor:
        """Embeds strengths, first and last times (B, 3) as (B, width)."""
        omega, start, end = guidance.unbind(1)
        strength, first, last = self.parts
        return strength(1 - 1 / omega) + first(start) + last(end)


class FlowNetwork(nn.Module):
    """What the networks of flows share: the condition, a sum of the embeddings of t, h and the label.

    A network F(z, t, h, label) has one time input, as denoisers and velocities do, or two, as mean velocities
    do. With one it must be given ``h=None``. With two, ``h=None`` means 0. One that knows guidance also takes
    ``guidance`` (B, 3): strength, first and last time; None stands for none, (1, 0, 1).

    Args:
        shape: Shape of one item.
        width: Features of the condition.
        num_classes: Number of classes; label ``num_classes`` means unconditional. None for a network without
            classes.
        two_times: Whether there is a second time input h = t - r.
        frequencies: Number of sinusoidal features of each time.
        guidance: Whether it knows how its output is to be guided.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        width: int,
        num_classes: int | None,
        two_times: bool = True,
        frequencies: int = 256,
        guidance: bool = False,
    ) -> None:
        super().__init__()
        check_classes(num_classes)
        self.shape = shape
        self.num_classes = num_classes
        self.two_times = two_times
        self.t_embedder = TimeEmbedder(width, frequencies)
        self.h_embedder = TimeEmbedder(width, frequencies) if two_times else None
        self.y_embedder = None if num_classes is None else LabelEmbedder(num_classes, width)
        if guidance and num_classes is None:
            raise ValueError("guidance leads away from unconditional samples: give num_classes")
        self.guidance_embedder = GuidanceEmbedder(width, frequencies) if guidance else None

    def condition(
        self, t: Tensor, h: Tensor | None, label: Tensor | None, guidance: Tensor | None = None
    ) -> Tensor:
        """The condition (B, width) of times ``t``, steps ``h``, classes ``label``, each (B,), and guidance
        (B, 3).

        Raises:
            ValueError: the network has no second time input, classes or guidance, and is given such.
        """
        embedding = self.t_embedder(t)
        h = second_time(self, t, h)
        if h is not None and self.h_embedder is not None:
            embedding = embedding + self.h_embedder(h)
        label = known_label(self, t, label)
        if label is not None and self.y_embedder is not None:
            embedding = embedding + self.y_embedder(label)
        if self.guidance_embedder is not None:
            one = torch.ones_like(t)
            none = torch.stack([one, torch.zeros_like(t), one], dim=1)
            embedding = embedding + self.guidance_embedder(none if guidance is None else guidance)
        elif guidance is not None:
            raise ValueError(
                f"this {type(self).__name__} knows no guidance: pass guidance=None, or build it with "
                "guidance=True"
            )
        return embedding

    def complete_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """``state`` with the embedder of guidance, zero-initialized, where it has none and this network has.

        Args:
            state: State dict of this network, or of the same one without guidance.
        """
        own = {k: v for k, v in self.state_dict().items() if k.startswith("guidance_embedder.")}
        zero = {k: torch.zeros_like(v) for k, v in own.items() if ".mlp.2." in k}
        return state if own.keys() & state.keys() else {**state, **own, **zero}

    def two_time_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The state with two time inputs that computes, at every h, what ``state`` does with one.

        The last layer of the embedder of h is zero in it, and learns from the first update on.

        Args:
            state: State dict of the same network with one time input.
        """
        own = {name: value for name, value in self.state_dict().items() if name.startswith("h_embedder.")}
        zero = {name: torch.zeros_like(value) for name, value in own.items() if ".mlp.2." in name}
        return {**state, **own, **zero}


def check_classes(num_classes: int | None) -> None:
    """Refuses a number of classes below 1."""
    if num_classes is not None and num_classes < 1:
        raise ValueError(
            f"num_classes must be at least 1, or null for a network without classes; got {num_classes}"
        )


def second_time(network: Any, t: Tensor, h: Tensor | None) -> Tensor | None:
    """The ``h`` that a network takes: 0 for None with two time inputs, None with one.

    Raises:
        ValueError: a network with one time input was given h.
    """
    if network.two_times:
        return torch.zeros_like(t) if h is None else h
    if h is not None:
        raise ValueError(
            f"this {type(network).__name__} has one time input (two_times: false) and takes no h: pass "
            "h=None, or build it with two_times=True"
        )
    return None


def known_label(network: Any, t: Tensor, label: Tensor | None) -> Tensor | None:
    """The labels (B,) a network works with: unconditional where one with classes got None.

    Raises:
        ValueError: a network without classes was given labels.
    """
    if network.num_classes is None:
        if label is not None:
            raise ValueError(
                f"this {type(network).__name__} has num_classes=null and takes no labels: pass label=None, "
                "or build it with num_classes"
            )
        return None
    if label is None:
        return torch.full(t.shape, network.num_classes, device=t.device)
    return label
