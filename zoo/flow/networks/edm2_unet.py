"""EDM2: the magnitude-preserving U-Net.

Karras et al. 2023, arXiv 2312.02696, config G; also the network of ECT, CMT and AYF on ImageNet. Every
activation and every weight keeps magnitude 1, so that there are no biases, no group norms and no drift of
magnitudes in training. Parameters carry the names of the EDM2 checkpoints below ``unet.``; the learned
uncertainty (``logvar_*``) is not a part of the network.

It is the raw network F: scaling its input and reading its output is a preconditioning's business.

Differences from the official code:

* Labels are dropped by whoever calls (unconditional is the vector 0).
* Weights are forced to magnitude 1 when the network is called in training mode *and* a gradient is taken: a
  self-teacher's pass, which takes none, leaves the weights alone, as ECT's ImageNet code arranges by hand.
* With two time inputs the features of h = t - r are added to those of t with a gain that starts at zero, and
  divided so that the sum has magnitude 1 at every gain: (a + g b) / sqrt(1 + g^2).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.flow.networks.embeddings import second_time
from zoo.flow.networks.magnitude import MPConv, MPFourier, mp_cat, mp_silu, mp_sum, normalize
from zoo.flow.networks.unet import (
    Stage,
    UNet,
    decoder_stages,
    downsample,
    encoder_stages,
    join_heads,
    split_heads,
    upsample,
)


class EDM2Block(nn.Module):
    """A block of the way down, which normalizes its input's pixels, or of the way up, which does not.

    Args:
        stage: Where it stands.
        condition: Features of the condition.
        decoder: Whether it is of the way up.
        heads: Attention heads; 0 for none.
        dropout: Probability of dropping a feature before the second convolution, in training.
        residual_balance: Weight of the new part in the sum with the old.
        attention_balance: The same for attention.
        limit: Largest absolute value of an activation.
    """

    def __init__(
        self,
        stage: Stage,
        condition: int,
        decoder: bool,
        heads: int,
        dropout: float,
        residual_balance: float = 0.3,
        attention_balance: float = 0.3,
        limit: float = 256.0,
    ) -> None:
        super().__init__()
        inputs, outputs = stage.inputs, stage.outputs
        self.resample, self.decoder, self.heads = stage.resample, decoder, heads
        self.residual_balance, self.attention_balance = residual_balance, attention_balance
        self.limit = limit
        self.emb_gain = nn.Parameter(torch.zeros([]))
        self.conv_res0 = MPConv(inputs if decoder else outputs, outputs, 3)
        self.emb_linear = MPConv(condition, outputs)
        self.dropout = nn.Dropout(dropout)
        self.conv_res1 = MPConv(outputs, outputs, 3)
        self.conv_skip = MPConv(inputs, outputs, 1) if inputs != outputs else None
        if heads:
            self.attn_qkv = MPConv(outputs, 3 * outputs, 1)
            self.attn_proj = MPConv(outputs, outputs, 1)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """``x`` (B, inputs, H, W), ``condition`` (B, D) -> (B, outputs, H', W')."""
        if self.resample != "keep":
            x = downsample(x) if self.resample == "down" else upsample(x)
        if not self.decoder:
            if self.conv_skip is not None:
                x = self.conv_skip(x)
            x = normalize(x, dim=1)
        y = self.conv_res0(mp_silu(x))
        scale = self.emb_linear(condition, gain=self.emb_gain) + 1  # (B, outputs)
        y = self.conv_res1(self.dropout(mp_silu(y * scale[:, :, None, None])))
        if self.decoder and self.conv_skip is not None:
            x = self.conv_skip(x)
        x = mp_sum(x, y, self.residual_balance)
        if self.heads:
            # Queries, keys and values are normalized by pixel: "cosine attention".
            q, k, v = (normalize(part, dim=-1) for part in split_heads(self.attn_qkv(x), self.heads))
            y = self.attn_proj(join_heads(F.scaled_dot_product_attention(q, k, v), x))
            x = mp_sum(x, y, self.attention_balance)
        return x.clamp(-self.limit, self.limit)


class EDM2UNet(UNet):
    """EDM2: magnitude-preserving U-Net F(z, t, h, label) for latents or images of about 64 pixels.

    The defaults are EDM2-S for latents of ImageNet-512. The sizes of the paper differ in ``width``: 64 (XXS),
    128 (XS), 192 (S), 256 (M), 320 (L), 384 (XL), 448 (XXL). For pixels of ImageNet-64 give
    ``in_channels: 3``. In training, M and larger take dropout .1; ECT takes .4 with ``dropout_size: 16``.

    Weights start as normal numbers and gains at zero, from PyTorch's generator, so that the output starts at
    zero. In training the weights are forced back to magnitude 1 at the start of each call that takes a
    gradient, which changes them in place: between two updates call the network for a gradient once, or set
    ``force_weights: false`` and call `normalize_weights` after each update yourself.

    Args:
        input_size: Side of the image or latent, in pixels.
        in_channels: Channels of the image or latent.
        width: Features, in units of which the others are given.
        width_multipliers: Features at each size, the largest size first; the side is halved between them.
        blocks: Blocks at each size.
        attention_sizes: Sides at which blocks attend.
        num_classes: Number of classes; label ``num_classes`` means unconditional. None for a network without
            classes.
        dropout: Probability of dropping a feature in each block, in training.
        two_times: Whether there is a second time input h = t - r, as for mean velocities.
        dropout_size: Largest side at which features are dropped; None for every side.
        head_width: Features of an attention head.
        label_balance: Weight of the label in its sum with the time.
        concat_balance: Weight of what joins from the way down.
        force_weights: Whether weights are forced to magnitude 1 in training.

    >>> net = EDM2UNet(8, 4, width=16, width_multipliers=[1, 2], blocks=1, attention_sizes=[4], num_classes=3,
    ...                head_width=16)
    >>> net(torch.zeros(2, 4, 8, 8), torch.ones(2), torch.ones(2), torch.tensor([0, 3])).shape
    torch.Size([2, 4, 8, 8])
    """

    def __init__(
        self,
        input_size: int = 64,
        in_channels: int = 4,
        width: int = 192,
        width_multipliers: list[int] = [1, 2, 3, 4],
        blocks: int = 3,
        attention_sizes: list[int] = [16, 8],
        num_classes: int | None = 1000,
        dropout: float = 0.0,
        two_times: bool = True,
        dropout_size: int | None = None,
        head_width: int = 64,
        label_balance: float = 0.5,
        concat_balance: float = 0.5,
        force_weights: bool = True,
    ) -> None:
        super().__init__(input_size, in_channels, width_multipliers, attention_sizes, num_classes, two_times)
        self.label_balance, self.concat_balance = label_balance, concat_balance
        self.force_weights = force_weights
        widths = [width * multiplier for multiplier in width_multipliers]
        condition = max(widths)
        self.out_gain = nn.Parameter(torch.zeros([]))
        self.emb_fourier = MPFourier(widths[0])
        self.emb_noise = MPConv(widths[0], condition)
        self.emb_label = None if num_classes is None else MPConv(num_classes, condition)
        self.h_fourier = MPFourier(widths[0]) if two_times else None
        self.h_noise = MPConv(widths[0], condition) if two_times else None
        self.h_gain = nn.Parameter(torch.zeros([])) if two_times else None

        def block(stage: Stage, decoder: bool) -> EDM2Block:
            attends = stage.kind == "in0" or ("block" in stage.kind and stage.size in attention_sizes)
            if attends and stage.outputs % head_width:
                raise ValueError(
                    f"head_width ({head_width}) must divide the {stage.outputs} features of the blocks that "
                    f"attend at side {stage.size}"
                )
            dropped = dropout if dropout_size is None or stage.size <= dropout_size else 0.0
            heads = stage.outputs // head_width if attends else 0
            return EDM2Block(stage, condition, decoder, heads, dropped)

        # One more channel of ones stands in for the bias of the first convolution.
        first, *down = encoder_stages(input_size, in_channels + 1, widths, blocks, first=widths[0])
        up = decoder_stages(input_size, widths, blocks, [first, *down])
        self.enc = nn.ModuleDict({first.name: MPConv(first.inputs, first.outputs, 3)})
        self.enc.update({stage.name: block(stage, decoder=False) for stage in down})
        self.dec = nn.ModuleDict({stage.name: block(stage, decoder=True) for stage in up})
        self._joins = {stage.name for stage in up if stage.joined}
        self.out_conv = MPConv(widths[0], in_channels, 3)

    def normalize_weights(self) -> None:
        """Forces all weights to magnitude 1, in place."""
        for layer in self.modules():
            if isinstance(layer, MPConv):
                layer.normalize_weight()

    def condition(self, t: Tensor, h: Tensor | None, label: Tensor | None) -> Tensor:
        """The condition (B, D) of times (B,) and classes (B,)."""
        dtype = self.emb_noise.weight.dtype
        condition = self.emb_noise(self.emb_fourier(t).to(dtype))
        h = second_time(self, t, h)
        if h is not None:
            step = self.h_noise(self.h_fourier(h).to(dtype))  # type: ignore[misc]
            condition = (condition + self.h_gain * step) / (1 + self.h_gain.square()).sqrt()  # type: ignore
        classes = self.one_hot(t, label, dtype)
        if self.emb_label is not None and classes is not None:
            of_class = self.emb_label(classes * math.sqrt(classes.shape[-1]))
            condition = mp_sum(condition, of_class, self.label_balance)
        return mp_silu(condition)

    def forward(self, z: Tensor, t: Tensor, h: Tensor | None = None, label: Tensor | None = None) -> Tensor:
        """The network's raw output F.

        Args:
            z: Scaled states (B, C, S, S).
            t: Times (B,), as the preconditioning names them.
            h: Steps t - r (B,), where 0 asks for the velocity at t; None for one time input.
            label: Classes (B,) in [0, num_classes]; None means unconditional for all.

        Returns:
            (B, C, S, S).
        """
        if self.force_weights and self.training and torch.is_grad_enabled():
            self.normalize_weights()
        condition = self.condition(t, h, label)  # (B, D)
        x = z.to(self.emb_noise.weight.dtype)
        x = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)
        waiting: list[Tensor] = []
        for layer in self.enc.values():
            x = layer(x, condition) if isinstance(layer, EDM2Block) else layer(x)
            waiting.append(x)
        for name, layer in self.dec.items():
            x = layer(mp_cat(x, waiting.pop(), self.concat_balance) if name in self._joins else x, condition)
        return self.out_conv(x, gain=self.out_gain)

    def two_time_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The state with two time inputs that computes, at every h, what ``state`` does with one.

        The gain of the second time input is zero in it, and moves with the first update.

        Args:
            state: State dict of the same network with one time input.
        """
        own = {name: value for name, value in self.state_dict().items() if name.startswith("h_")}
        return {**state, **own, "h_gain": torch.zeros_like(own["h_gain"])} if own else dict(state)
