"""ADM: the U-Net of "Diffusion models beat GANs", as EDM trains it on ImageNet-64.

Dhariwal and Nichol 2021 (arXiv 2105.05233) in the form of EDM (Karras et al. 2022, arXiv 2206.00364, table
7): blocks whose normalized features the condition scales and shifts, attention at several sizes with 64
features to a head. Parameters carry the names of the EDM checkpoints below ``model.``. With two time inputs
the features of t and of h = t - r stand side by side, as in the CIFAR-10 network of MeanFlow.

It is the raw network F: scaling its input and reading its output is a preconditioning's business.

Difference from the official code: labels are dropped by whoever calls (unconditional is the vector 0).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.flow.networks.embeddings import second_time, sinusoids
from zoo.flow.networks.unet import Stage, UNet, augmentation, decoder_stages, encoder_stages
from zoo.flow.networks.unet_block import ResampledConv, UNetBlock, group_norm


class DhariwalUNet(UNet):
    """ADM: U-Net F(z, t, h, label) for images of about 64 pixels.

    The defaults are EDM's class-conditional ImageNet-64 network (295.9 million parameters), whose dropout in
    training is .1.

    Weights start as EDM's, from PyTorch's generator: uniform (He, a third of the variance), the second
    convolution of each block, the last layer of each attention and the last convolution at zero, so that the
    output starts at zero.

    Args:
        input_size: Side of the image, in pixels.
        in_channels: Channels of the image.
        width: Features, in units of which the others are given.
        width_multipliers: Features at each size, the largest size first; the side is halved between them.
        blocks: Blocks at each size.
        attention_sizes: Sides at which blocks attend.
        num_classes: Number of classes; label ``num_classes`` means unconditional. None for a network without
            classes.
        dropout: Probability of dropping a feature in each block, in training.
        two_times: Whether there is a second time input h = t - r, as for mean velocities.
        augment_dim: Numbers that describe how an item was augmented; 0 for none.
        head_width: Features of an attention head.
        condition_multiplier: Features of the condition.

    >>> net = DhariwalUNet(8, 3, width=16, width_multipliers=[1, 2], blocks=1, attention_sizes=[4],
    ...                    num_classes=10, head_width=16)
    >>> net(torch.zeros(3, 3, 8, 8), torch.ones(3), torch.ones(3), torch.tensor([0, 9, 10])).shape
    torch.Size([3, 3, 8, 8])
    """

    widened = ("map_layer0.weight", "map_augment.weight")

    def __init__(
        self,
        input_size: int = 64,
        in_channels: int = 3,
        width: int = 192,
        width_multipliers: list[int] = [1, 2, 3, 4],
        blocks: int = 3,
        attention_sizes: list[int] = [32, 16, 8],
        num_classes: int | None = 1000,
        dropout: float = 0.0,
        two_times: bool = True,
        augment_dim: int = 0,
        head_width: int = 64,
        condition_multiplier: int = 4,
    ) -> None:
        super().__init__(input_size, in_channels, width_multipliers, attention_sizes, num_classes, two_times)
        self.width = width
        condition, features = width * condition_multiplier, width * (2 if two_times else 1)
        self.map_augment = nn.Linear(augment_dim, features, bias=False) if augment_dim else None
        self.map_layer0 = nn.Linear(features, condition)
        self.map_layer1 = nn.Linear(condition, condition)
        self.map_label = None if num_classes is None else nn.Linear(num_classes, condition, bias=False)

        def block(stage: Stage) -> UNetBlock:
            attends = stage.kind == "in0" or ("block" in stage.kind and stage.size in attention_sizes)
            if attends and stage.outputs % head_width:
                raise ValueError(
                    f"head_width ({head_width}) must divide the {stage.outputs} features of the blocks that "
                    f"attend at side {stage.size}"
                )
            return UNetBlock(
                stage.inputs,
                stage.outputs,
                condition,
                stage.resample,
                heads=stage.outputs // head_width if attends else 0,
                dropout=dropout,
                scale=1.0,
                eps=1e-5,
                adaptive=True,
                project_resampled=False,
            )

        widths = [width * multiplier for multiplier in width_multipliers]
        first, *down = encoder_stages(input_size, in_channels, widths, blocks, first=widths[0])
        up = decoder_stages(input_size, widths, blocks, [first, *down])
        self.enc = nn.ModuleDict({first.name: ResampledConv(in_channels, widths[0], 3)})
        self.enc.update({stage.name: block(stage) for stage in down})
        self.dec = nn.ModuleDict({stage.name: block(stage) for stage in up})
        self._joins = {stage.name for stage in up if stage.joined}
        self.out_norm = group_norm(widths[0], 1e-5)
        self.out_conv = ResampledConv(widths[0], in_channels, 3)
        self._initialize()

    def _initialize(self) -> None:
        for name, layer in self.named_modules():
            if not isinstance(layer, nn.Linear | nn.Conv2d):
                continue
            last, fan_in = name.rpartition(".")[2], layer.weight[0].numel()
            if last in ("conv1", "proj", "out_conv", "map_augment"):
                nn.init.zeros_(layer.weight)
                bound = 0.0
            elif last == "map_label":  # one class at a time: each column has unit variance
                nn.init.normal_(layer.weight)
                continue
            else:
                bound = 1 / math.sqrt(fan_in)
                nn.init.uniform_(layer.weight, -bound, bound)
            if layer.bias is not None:
                nn.init.uniform_(layer.bias, -bound, bound)

    def condition(self, t: Tensor, h: Tensor | None, label: Tensor | None, augment: Tensor | None) -> Tensor:
        """The condition (B, D) of times (B,), classes (B,) and augmentations (B, augment_dim)."""
        dtype = self.map_layer0.weight.dtype
        h = second_time(self, t, h)
        times = [sinusoids(time, self.width) for time in (t, h) if time is not None]
        features = torch.cat(times, dim=-1).to(dtype)
        features = features + augmentation(self.map_augment, augment, features)
        condition = self.map_layer1(F.silu(self.map_layer0(features)))
        classes = self.one_hot(t, label, dtype)
        if self.map_label is not None and classes is not None:
            condition = condition + self.map_label(classes)
        return F.silu(condition)

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
        x = z.to(self.map_layer0.weight.dtype)
        waiting: list[Tensor] = []
        for layer in self.enc.values():
            x = layer(x, condition) if isinstance(layer, UNetBlock) else layer(x)
            waiting.append(x)
        for name, layer in self.dec.items():
            x = layer(torch.cat([x, waiting.pop()], dim=1) if name in self._joins else x, condition)
        return self.out_conv(F.silu(self.out_norm(x)))
