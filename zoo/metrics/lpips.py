"""LPIPS, the learned perceptual distance of two images, from local weight files.

Zhang, Isola, Efros, Shechtman and Wang 2018, arXiv 1801.03924, equation 1, version 0.1 on VGG16. CMT (arXiv
2509.24526) trains its consistency students on images with it. Unlike the ``lpips`` package it downloads
nothing, and the weight files are read as tensors only.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.metrics._weights import fill, read_weights

# VGG16 before its classifier, as torchvision numbers it: channels of a convolution with its ReLU, or a pool.
_VGG16 = (64, 64, "pool", 128, 128, "pool", 256, 256, 256, "pool", 512, 512, 512, "pool", 512, 512, 512)
_TAPS = (3, 8, 15, 22, 29)  # the last activation of each scale: relu1_2, relu2_2, relu3_3, relu4_3, relu5_3
_WIDTHS = (64, 128, 256, 512, 512)
# Images in [-1, 1] to what VGG16 was trained on, rounded as the package has it.
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)


class LPIPS(nn.Module):
    """Perceptual distance of two images: smaller is more alike; 0 for equal ones.

    At five depths of VGG16 the features of each position are scaled to unit length; their squared
    differences, weighed by channel, are averaged over positions and summed over depths. Differentiable;
    the weights are frozen and dropout, which the package has while it is trained, is absent.

    As CMT does, images go in at their own size and are not clamped to [-1, 1].

    The files are read by `load`, at first use at the latest, so that a config can be checked where they are
    not. `zoo.flow.CMT` loads them before training starts. On the meta device, which holds no values, none is
    read.

    Args:
        weights: VGG16 as torchvision publishes it (``vgg16-397923af.pth``), or a ``.safetensors`` file of the
            same names; its classifier is not needed.
        heads: The channels' weights, ``lpips/weights/v0.1/vgg.pth`` of the package. None takes the copy that
            torchmetrics carries.
        resize: Side to which images are resized, bilinearly; OpenAI's consistency models take 224. None
            leaves them as they are.
        clamp: Clamp the images to [-1, 1] first.

    Raises:
        ValueError: ``resize`` is too small.
    """

    shift: Tensor
    scale: Tensor

    def __init__(
        self, weights: str, heads: str | None = None, resize: int | None = None, clamp: bool = False
    ) -> None:
        super().__init__()
        if resize is not None and resize < 16:
            raise ValueError(f"resize must be at least 16, which four poolings make 1, got {resize}")
        self.resize, self.clamp = resize, clamp
        self.weights_file, self.heads_file = weights, packaged_heads() if heads is None else heads
        self._loaded = False
        # Made without values: `load` gives them, and random ones would be drawn for nothing.
        with torch.device("meta"):
            layers: list[nn.Module] = []
            channels = 3
            for width in _VGG16:
                if isinstance(width, int):
                    layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
                    channels = width
                else:
                    layers.append(nn.MaxPool2d(2))
            self.features = nn.Sequential(*layers)
            self.heads = nn.ModuleList(nn.Conv2d(width, 1, 1, bias=False) for width in _WIDTHS)
        self.to_empty(device=torch.get_default_device())
        for name, values in (("shift", _SHIFT), ("scale", _SCALE)):
            self.register_buffer(name, torch.tensor(values)[:, None, None], persistent=False)
        self.requires_grad_(False).eval()

    def load(self) -> Self:
        """Reads the weight files, once.

        Raises:
            ValueError: a file is missing, damaged, or holds other weights; or this module is on the meta
                device.
        """
        if self._loaded:
            return self
        if self.shift.is_meta:
            raise ValueError("LPIPS is on the meta device, which holds no values: build it on another one")
        trunk = {
            name.removeprefix("features."): tensor
            for name, tensor in read_weights(self.weights_file, "weights").items()
            if name.startswith("features.")
        }
        fill(self.features, trunk, f"weights={self.weights_file!r} (names features.0.weight, ...)")
        linear = read_weights(self.heads_file, "heads")
        # lin0.model.1.weight, since dropout is model.0
        renamed = {name.removeprefix("lin").replace(".model.1", ""): value for name, value in linear.items()}
        fill(self.heads, renamed, f"heads={str(self.heads_file)!r} (names lin0.model.1.weight, ...)")
        self._loaded = True
        return self

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Distances of images, pair by pair.

        Args:
            a: (B, C, H, W) in [-1, 1], C = 3 or 1 (gray is repeated), H and W at least 16.
            b: (B, C, H, W).

        Returns:
            (B,), at least 0.

        Raises:
            ValueError: they are no images of one shape, or too small; or a weight file cannot be read.
        """
        if a.shape != b.shape:
            raise ValueError(f"a and b must have one shape, got {tuple(a.shape)} and {tuple(b.shape)}")
        return self.compare(self.embed(a), self.embed(b))

    def compare(self, a: list[Tensor], b: list[Tensor]) -> Tensor:
        """Distances (B,) of what `embed` gave for two sets of images."""
        total = a[0].new_zeros(len(a[0]))
        for head, one, other in zip(self.heads, a, b, strict=True):
            total = total + head((one - other).square()).flatten(1).mean(1)
        return total

    def embed(self, x: Tensor) -> list[Tensor]:
        """Features (B, width, h, w) at each depth, of unit length at each position.

        Args:
            x: Images (B, C, H, W), as `forward` takes them.
        """
        if not self._loaded and not self.shift.is_meta:
            self.load()
        if x.ndim != 4 or x.shape[1] not in (1, 3) or (self.resize is None and min(x.shape[2:]) < 16):
            raise ValueError(
                f"LPIPS takes images (B, 3, H, W) or (B, 1, H, W) with sides of at least 16 (or resize=...), "
                f"got {tuple(x.shape)}"
            )
        x = x.clamp(-1, 1) if self.clamp else x
        x = (x.expand(-1, 3, -1, -1) - self.shift) / self.scale
        if self.resize is not None:
            x = F.interpolate(x, (self.resize, self.resize), mode="bilinear", align_corners=False)
        found = []
        for number, layer in enumerate(self.features):
            x = layer(x)
            if number in _TAPS:
                found.append(x / (x.norm(dim=1, keepdim=True) + 1e-10))
        return found


def packaged_heads() -> Path:
    """The channels' weights for VGG16 that torchmetrics carries; torchmetrics itself is not imported.

    >>> packaged_heads().name
    'vgg.pth'
    """
    spec = find_spec("torchmetrics")
    assert spec is not None  # a dependency
    return Path(str(spec.origin)).parent / "functional" / "image" / "lpips_models" / "vgg.pth"
