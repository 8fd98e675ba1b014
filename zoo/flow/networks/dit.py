"""DiT with two time inputs: a transformer on patches whose blocks are modulated by (t, t - r, label).

The network of DiT (Peebles and Xie 2022, arXiv 2212.09748, "adaLN-Zero") and SiT, with the second time
embedder of MeanFlow (Geng et al. 2025, arXiv 2505.13447): the embeddings of t, of h = t - r and of the label
are summed. Parameters carry the names of SiT and REPA checkpoints, `h_embedder` that of the MeanFlow JAX
code; positions are fixed. Differences: attention runs through `scaled_dot_product_attention`, and labels are
dropped by whoever calls (the row ``num_classes`` of the table means unconditional), not in here.

For improved mean flow (Geng et al. 2025, arXiv 2512.02012) it may know guidance, and have a second head for
the instantaneous velocity with some last blocks of its own. Theirs is another transformer (conditions as
tokens, rotary positions); here guidance is one more summand of the condition.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.flow.networks.embeddings import FlowNetwork, grid_sinusoids


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Shifts and scales the features of each token of ``x`` (B, T, D) by ``shift`` and ``scale`` (B, D)."""
    return torch.addcmul(shift[:, None], x, 1 + scale[:, None])


class PatchEmbed(nn.Module):
    """Cuts images (B, C, S, S) into patches and embeds each: (B, T, D)."""

    def __init__(self, patch_size: int, in_channels: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, width, kernel_size=patch_size, stride=patch_size)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, S, S) -> (B, T, D)."""
        return self.proj(x).flatten(2).transpose(1, 2)


class Attention(nn.Module):
    """Multi-head self-attention over all tokens."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        q, k, v = (
            self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        )  # each (B, H, T, D / H)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Two layers with a GELU between them (tanh form, as in DiT), applied to each token."""

    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        return self.dropout(self.fc2(F.gelu(self.fc1(x), approximate="tanh")))


class Block(nn.Module):
    """A transformer block whose two branches are shifted, scaled and gated by the condition (adaLN-Zero)."""

    def __init__(self, width: int, heads: int, mlp_ratio: float, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.mlp = Mlp(width, int(width * mlp_ratio), dropout)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """``x`` (B, T, D), ``condition`` (B, D) -> (B, T, D)."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(condition).chunk(6, dim=-1)
        x = torch.addcmul(x, gate1[:, None], self.attn(modulate(self.norm1(x), shift1, scale1)))
        return torch.addcmul(x, gate2[:, None], self.mlp(modulate(self.norm2(x), shift2, scale2)))


class FinalLayer(nn.Module):
    """Modulates the tokens once more and maps each to the values of its patch."""

    def __init__(self, width: int, patch_size: int, channels: int) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.linear = nn.Linear(width, patch_size * patch_size * channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """``x`` (B, T, D), ``condition`` (B, D) -> (B, T, patch * patch * C)."""
        shift, scale = self.adaLN_modulation(condition).chunk(2, dim=-1)
        return self.linear(modulate(self.norm_final(x), shift, scale))


class DiT(FlowNetwork):
    """Diffusion transformer u(z, t, h, label) for square images or latents.

    The published sizes (B/2 means width 768, patch 2; 32 x 32 x 4 latents, 1000 classes): S is (384, 12, 6),
    B (768, 12, 12), L (1024, 24, 16) and XL (1152, 28, 16) in (width, depth, heads). SiT is the same network
    with ``two_times: false``; its second half of outputs, a learned variance, is left out here.

    Args:
        input_size: Side of the image or latent, in pixels.
        in_channels: Channels of the image or latent.
        patch_size: Side of a patch, in pixels.
        width: Features per token, a multiple of 4 and of ``heads``.
        depth: Number of blocks.
        heads: Attention heads.
        num_classes: Number of classes; label ``num_classes`` means unconditional. None for a network without
            classes.
        dropout: Probability of dropping a feature after each perceptron, in training.
        mlp_ratio: Hidden features of the perceptrons, in units of ``width``.
        two_times: Whether there is a second time input h = t - r, as for mean velocities.
        guidance: Whether the network knows how its output is to be guided.
        velocity_depth: Last blocks that a second head, for velocities, has for itself; 0 for no such head.

    >>> net = DiT(input_size=8, width=32, depth=2, heads=2)
    >>> net(torch.zeros(3, 1, 8, 8), torch.ones(3), torch.ones(3), torch.tensor([0, 9, 10])).shape
    torch.Size([3, 1, 8, 8])
    """

    def __init__(
        self,
        input_size: int = 8,
        in_channels: int = 1,
        patch_size: int = 2,
        width: int = 128,
        depth: int = 4,
        heads: int = 4,
        num_classes: int | None = 10,
        dropout: float = 0.0,
        mlp_ratio: float = 4.0,
        two_times: bool = True,
        guidance: bool = False,
        velocity_depth: int = 0,
    ) -> None:
        if not 0 <= velocity_depth <= depth:
            raise ValueError(f"velocity_depth must be from 0 to depth ({depth}), got {velocity_depth}")
        if input_size % patch_size:
            raise ValueError(f"input_size ({input_size}) must be a multiple of patch_size ({patch_size})")
        if width % heads or width % 4:
            raise ValueError(f"width ({width}) must be a multiple of heads ({heads}) and of 4")
        shape = (in_channels, input_size, input_size)
        super().__init__(shape, width, num_classes, two_times, guidance=guidance)
        self.patch_size = patch_size
        self.x_embedder = PatchEmbed(patch_size, in_channels, width)
        self.pos_embed: Tensor
        self.register_buffer("pos_embed", grid_sinusoids(width, input_size // patch_size)[None])  # (1, T, D)
        self.blocks = nn.ModuleList(Block(width, heads, mlp_ratio, dropout) for _ in range(depth))
        self.final_layer = FinalLayer(width, patch_size, in_channels)
        self.velocity_blocks = nn.ModuleList(
            Block(width, heads, mlp_ratio, dropout) for _ in range(velocity_depth)
        )
        self.velocity_layer = FinalLayer(width, patch_size, in_channels) if velocity_depth else None
        self._initialize()

    @property
    def velocity_head(self) -> bool:
        """Whether it has a head for velocities."""
        return self.velocity_layer is not None

    def _initialize(self) -> None:
        blocks: list[nn.Module] = [*self.blocks, *self.velocity_blocks]
        finals = [layer for layer in (self.final_layer, self.velocity_layer) if layer is not None]
        for part in (*blocks, *finals, self.x_embedder):
            for layer in part.modules():
                if isinstance(layer, nn.Linear | nn.Conv2d):
                    nn.init.xavier_uniform_(layer.weight.flatten(1))
                    nn.init.zeros_(layer.get_parameter("bias"))
        # Zero gates make each block the identity at first, and a zero last layer makes the output zero.
        for name, parameter in self.named_parameters():
            if ".adaLN_modulation." in name or "_layer.linear." in name:
                nn.init.zeros_(parameter)

    def unpatchify(self, tokens: Tensor) -> Tensor:
        """(B, T, patch * patch * C) -> (B, C, S, S)."""
        channels, size, _ = self.shape
        side, patch = size // self.patch_size, self.patch_size
        x = tokens.reshape(-1, side, side, patch, patch, channels)
        return x.permute(0, 5, 1, 3, 2, 4).reshape(-1, channels, size, size)

    def complete_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """``state`` with what guidance and a head for velocities begin as, where it has none.

        The head begins as a copy of the last blocks: at h = 0 both heads are the same function.

        Args:
            state: State dict of this network, or of the same one without guidance or such a head.
        """
        state = super().complete_state(state)
        if self.velocity_layer is None or any(name.startswith("velocity_") for name in state):
            return state
        shared = len(self.blocks) - len(self.velocity_blocks)
        copies = {}
        for name, value in state.items():
            kind, _, rest = name.partition(".")
            if kind == "final_layer":
                copies[f"velocity_layer.{rest}"] = value.clone()
            elif kind == "blocks" and (number := int(rest.split(".")[0])) >= shared:
                copies[f"velocity_blocks.{number - shared}.{rest.partition('.')[2]}"] = value.clone()
        return state | copies

    def forward(
        self,
        z: Tensor,
        t: Tensor,
        h: Tensor | None = None,
        label: Tensor | None = None,
        guidance: Tensor | None = None,
        head: Literal["mean", "velocity", "both"] = "mean",
    ) -> Tensor:
        """The network's output F, for example the mean velocity of ``z`` between the times t - h and t.

        Args:
            z: States (B, C, S, S).
            t: Times (B,) in [0, 1].
            h: Steps t - r (B,), where 0 asks for the velocity at t; None for one time input.
            label: Classes (B,) in [0, num_classes]; None means unconditional for all.
            guidance: Strength, first and last time of guidance (B, 3), for a network that knows it; None
                for none.
            head: The output "mean", the head for velocities, or both.

        Returns:
            (B, C, S, S); (2, B, C, S, S) for both, the mean velocities first.
        """
        condition = self.condition(t, h, label, guidance)  # (B, D)
        x = self.x_embedder(z.to(self.pos_embed.dtype)) + self.pos_embed  # (B, T, D)
        shared = len(self.blocks) - len(self.velocity_blocks)
        for block in self.blocks[:shared]:
            x = block(x, condition)
        outputs = []
        if head != "velocity":
            outputs.append(self._branch(x, condition, self.blocks[shared:], self.final_layer))
        if head != "mean":
            if self.velocity_layer is None:
                raise ValueError(f"this DiT has no head for velocities (head={head!r}): give velocity_depth")
            outputs.append(self._branch(x, condition, self.velocity_blocks, self.velocity_layer))
        return torch.stack(outputs) if len(outputs) == 2 else outputs[0]

    def _branch(self, x: Tensor, condition: Tensor, blocks: nn.ModuleList, layer: FinalLayer) -> Tensor:
        for block in blocks:
            x = block(x, condition)
        return self.unpatchify(layer(x, condition))
