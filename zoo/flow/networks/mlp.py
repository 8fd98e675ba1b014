"""A residual perceptron with two time inputs, for points in a few dimensions."""

import torch.nn.functional as F
from torch import Tensor, nn

from zoo.flow.networks.embeddings import FlowNetwork


class ResidualLayer(nn.Module):
    """x + W2 silu(W1 x + condition)."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, width)
        self.fc2 = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """``x`` (B, D), ``condition`` (B, D) -> (B, D)."""
        return x + self.dropout(self.fc2(F.silu(self.fc1(x) + condition)))


class MLP(FlowNetwork):
    """Residual perceptron u(z, t, h, label) for points (B, dim).

    Args:
        dim: Coordinates of a point.
        width: Features, a multiple of 2.
        depth: Number of residual layers.
        num_classes: Number of classes; label ``num_classes`` means unconditional. None for a network without
            classes.
        dropout: Probability of dropping a feature in each residual layer, in training.
        two_times: Whether there is a second time input h = t - r, as for mean velocities.
        guidance: Whether the network knows how its output is to be guided.

    >>> MLP(dim=2, width=16, depth=1)(torch.zeros(5, 2), torch.ones(5), torch.ones(5)).shape
    torch.Size([5, 2])
    """

    def __init__(
        self,
        dim: int = 2,
        width: int = 128,
        depth: int = 3,
        num_classes: int | None = None,
        dropout: float = 0.0,
        two_times: bool = True,
        guidance: bool = False,
    ) -> None:
        super().__init__((dim,), width, num_classes, two_times, frequencies=64, guidance=guidance)
        self.z_embedder = nn.Linear(dim, width)
        self.layers = nn.ModuleList(ResidualLayer(width, dropout) for _ in range(depth))
        self.final_layer = nn.Linear(width, dim)
        nn.init.zeros_(self.final_layer.weight)
        nn.init.zeros_(self.final_layer.bias)

    def forward(
        self,
        z: Tensor,
        t: Tensor,
        h: Tensor | None = None,
        label: Tensor | None = None,
        guidance: Tensor | None = None,
    ) -> Tensor:
        """The network's output F, for example the mean velocity of ``z`` between the times t - h and t.

        Args:
            z: Points (B, dim).
            t: Times (B,) in [0, 1].
            h: Steps t - r (B,), where 0 asks for the velocity at t; None for one time input.
            label: Classes (B,) in [0, num_classes]; None means unconditional for all.
            guidance: Strength, first and last time of guidance (B, 3), for a network that knows it; None
                for none.

        Returns:
            (B, dim).
        """
        condition = self.condition(t, h, label, guidance)  # (B, D)
        x = self.z_embedder(z.to(self.z_embedder.weight.dtype)) + condition
        for layer in self.layers:
            x = layer(x, condition)
        return self.final_layer(F.silu(x))
