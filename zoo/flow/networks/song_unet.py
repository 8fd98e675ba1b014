"""DDPM++ and NCSN++: the U-Nets of score-based models, as EDM trains them.

Song et al. 2021 (arXiv 2011.13456) in the form of EDM (Karras et al. 2022, arXiv 2206.00364, table 7), also
the network of ECT and CMT on CIFAR-10, FFHQ and AFHQ. With two time inputs it is the CIFAR-10 network of
MeanFlow (Geng et al. 2025, arXiv 2505.13447): the features of t and of h = t - r side by side. Parameters
carry the names of the EDM checkpoints below ``model.``.

It is the raw network F: scaling its input and reading its output is a preconditioning's business, and the
time it is given is what the preconditioning says (c_noise = ln(sigma) / 4 for EDM).

Differences from the official code: labels are dropped by whoever calls (unconditional is the vector 0), and
the variants that no checkpoint has (skip connections of images in the decoder) are left out.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.flow.networks.embeddings import second_time, sinusoids
from zoo.flow.networks.unet import Stage, UNet, augmentation, decoder_stages, encoder_stages
from zoo.flow.networks.unet_block import ResampledConv, UNetBlock, group_norm


class Sinusoids(nn.Module):
    """Sines and cosines of a time at frequencies from 1 down to 1 / 10,000, both included.

    Args:
        size: Features, a multiple of 2 and at least 4.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, t: Tensor) -> Tensor:
        """Times (B,) -> (B, size): sines, then cosines."""
        cosine, sine = sinusoids(t, self.size, endpoint=True).chunk(2, dim=-1)
        return torch.cat([sine, cosine], dim=-1)


class FourierFeatures(nn.Module):
    """Sines and cosines of a time at random frequencies, normal with standard deviation 16.

    Args:
        size: Features, a multiple of 2.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.freqs: Tensor
        self.register_buffer("freqs", torch.randn(size // 2) * 16)

    def forward(self, t: Tensor) -> Tensor:
        """Times (B,) -> (B, size): sines, then cosines."""
        angles = t[:, None] * (2 * math.pi * self.freqs.to(t.dtype))  # (B, size / 2)
        return torch.cat([angles.sin(), angles.cos()], dim=-1)


class SongUNet(UNet):
    """DDPM++ or NCSN++: U-Net F(z, t, h, label) for images of up to about 64 pixels.

    The defaults are EDM's unconditional CIFAR-10 network (DDPM++, 55.7 million parameters). Others:

    * EDM, FFHQ and AFHQv2 at 64 x 64: ``input_size: 64, width_multipliers: [1, 2, 2, 2]``.
    * NCSN++: ``embedding: fourier, encoder: residual, resample_filter: [1, 3, 3, 1], time_multiplier: 2``.
    * MeanFlow on CIFAR-10: ``resample_filter: [1, 3, 3, 1], time_multiplier: 2, augment_dim: 6``.

    EDM's dropout is .13 on CIFAR-10, .05 on FFHQ and .25 on AFHQv2; ECT, CMT and MeanFlow take .2.

    Weights start as EDM's, from PyTorch's generator: uniform (Xavier), the second convolution of each block
    and the last one 100,000 times as small, so that the output starts near zero; biases at zero.

    Args:
        input_size: Side of the image, in pixels.
        in_channels: Channels of the image.
        width: Features, in units of which the others are given.
        width_multipliers: Features at each size, the largest size first; the side is halved between them.
        blocks: Blocks at each size.
        attention_sizes: Sides at which blocks attend, with one head.
        num_classes: Number of classes; label ``num_classes`` means unconditional. None for a network without
            classes.
        dropout: Probability of dropping a feature in each block, in training.
        two_times: Whether there is a second time input h = t - r, as for mean velocities.
        augment_dim: Numbers that describe how an item was augmented (EDM's networks have 9); 0 for none.
        embedding: Features of a time: fixed sinusoids (DDPM++) or random frequencies (NCSN++).
        encoder: Whether the way down is fed shrunken images too (residual, NCSN++).
        resample_filter: Taps of the filter with which sides are halved and doubled.
        time_multiplier: Features of each time.
        condition_multiplier: Features of the condition.

    >>> net = SongUNet(input_size=8, width=8, width_multipliers=[1, 2], blocks=1, attention_sizes=[4])
    >>> net(torch.zeros(3, 3, 8, 8), torch.ones(3), torch.ones(3)).shape
    torch.Size([3, 3, 8, 8])
    """

    widened = ("map_layer0.weight", "map_label.weight", "map_label.bias", "map_augment.weight")

    def __init__(
        self,
        input_size: int = 32,
        in_channels: int = 3,
        width: int = 128,
        width_multipliers: list[int] = [2, 2, 2],
        blocks: int = 4,
        attention_sizes: list[int] = [16],
        num_classes: int | None = None,
        dropout: float = 0.0,
        two_times: bool = True,
        augment_dim: int = 0,
        embedding: Literal["sinusoids", "fourier"] = "sinusoids",
        encoder: Literal["plain", "residual"] = "plain",
        resample_filter: list[int] = [1, 1],
        time_multiplier: int = 1,
        condition_multiplier: int = 4,
    ) -> None:
        super().__init__(input_size, in_channels, width_multipliers, attention_sizes, num_classes, two_times)
        if embedding not in ("sinusoids", "fourier"):
            raise ValueError(f"embedding must be 'sinusoids' or 'fourier', got {embedding!r}")
        if encoder not in ("plain", "residual"):
            raise ValueError(f"encoder must be 'plain' or 'residual', got {encoder!r}")
        condition, features = width * condition_multiplier, width * time_multiplier
        self.map_noise = Sinusoids(features) if embedding == "sinusoids" else FourierFeatures(features)
        features *= 2 if two_times else 1
        self.map_label = None if num_classes is None else nn.Linear(num_classes, features)
        self.map_augment = nn.Linear(augment_dim, features, bias=False) if augment_dim else None
        self.map_layer0 = nn.Linear(features, condition)
        self.map_layer1 = nn.Linear(condition, condition)

        def block(stage: Stage, attends: bool) -> UNetBlock:
            return UNetBlock(
                stage.inputs,
                stage.outputs,
                condition,
                stage.resample,
                heads=int(attends),
                dropout=dropout,
                scale=math.sqrt(0.5),
                eps=1e-6,
                taps=resample_filter,
            )

        widths = [width * multiplier for multiplier in width_multipliers]
        self.enc = nn.ModuleDict()
        down = encoder_stages(input_size, in_channels, widths, blocks, first=width)
        image = in_channels  # features of the shrunken image
        for stage in down:
            if stage.kind == "conv":
                self.enc[stage.name] = ResampledConv(stage.inputs, stage.outputs, 3)
                continue
            self.enc[stage.name] = block(stage, stage.kind == "block" and stage.size in attention_sizes)
            if stage.kind == "down" and encoder == "residual":
                name = f"{stage.size}x{stage.size}_aux_residual"
                self.enc[name] = ResampledConv(
                    image, stage.outputs, 3, "down", resample_filter, conv_first=True
                )
                image = stage.outputs
        self.dec = nn.ModuleDict()
        up = decoder_stages(input_size, widths, blocks, down)
        for stage in up:
            # The lowest size attends at its start, the others at their last block.
            attends = stage.kind == "in0" or (stage.kind == "last_block" and stage.size in attention_sizes)
            self.dec[stage.name] = block(stage, attends)
        self._joins = {stage.name for stage in up if stage.joined}
        self.dec[f"{input_size}x{input_size}_aux_norm"] = group_norm(widths[0], 1e-6)
        self.dec[f"{input_size}x{input_size}_aux_conv"] = ResampledConv(widths[0], in_channels, 3)
        self._initialize()

    def _initialize(self) -> None:
        gains = {"qkv": math.sqrt(0.2), "conv1": 1e-5, "proj": 1e-5, "aux_conv": 1e-5}
        for name, layer in self.named_modules():
            if isinstance(layer, nn.Linear | nn.Conv2d):
                last = "aux_conv" if name.endswith("_aux_conv") else name.rpartition(".")[2]
                nn.init.xavier_uniform_(layer.weight, gain=gains.get(last, 1.0))
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def condition(self, t: Tensor, h: Tensor | None, label: Tensor | None, augment: Tensor | None) -> Tensor:
        """The condition (B, D) of times (B,), classes (B,) and augmentations (B, augment_dim)."""
        dtype = self.map_layer0.weight.dtype
        h = second_time(self, t, h)
        times = [self.map_noise(t)] if h is None else [self.map_noise(t), self.map_noise(h)]
        features = torch.cat(times, dim=-1).to(dtype)
        classes = self.one_hot(t, label, dtype)
        if self.map_label is not None and classes is not None:
            features = features + self.map_label(classes * math.sqrt(classes.shape[-1]))
        features = features + augmentation(self.map_augment, augment, features)
        return F.silu(self.map_layer1(F.silu(self.map_layer0(features))))

    def forward(
        self,
        z: Tensor,
        t: Tensor,
        h: Tensor | None = None,
        label: Tensor | None = None,
        augment: Tensor | None = None,
    ) -> Tensor:
        """The network's raw output F.

        Args:
            z: Scaled states (B, C, S, S).
            t: Times (B,), as the preconditioning names them.
            h: Steps t - r (B,), where 0 asks for the velocity at t; None for one time input.
            label: Classes (B,) in [0, num_classes]; None means unconditional for all.
            augment: How the items were augmented (B, augment_dim); None means not at all.

        Returns:
            (B, C, S, S).
        """
        condition = self.condition(t, h, label, augment)  # (B, D)
        x = image = z.to(self.map_layer0.weight.dtype)
        waiting: list[Tensor] = []
        for name, layer in self.enc.items():
            if name.endswith("_aux_residual"):
                x = image = waiting[-1] = (x + layer(image)) * math.sqrt(0.5)
            else:
                x = layer(x, condition) if isinstance(layer, UNetBlock) else layer(x)
                waiting.append(x)
        for name, layer in self.dec.items():
            if name.endswith("_aux_norm"):
                x = F.silu(layer(x))
            elif name.endswith("_aux_conv"):
                x = layer(x)
            else:
                x = layer(torch.cat([x, waiting.pop()], dim=1) if name in self._joins else x, condition)
        return x
