"""Parameter counts of the published networks, built without memory."""

from typing import Any

import pytest
import torch
from torch import nn

from zoo.flow import DhariwalUNet, DiT, EDM2UNet, SongUNet

WIDE_FILTER = {"resample_filter": [1, 3, 3, 1], "time_multiplier": 2}


def count(kind: type[nn.Module], **arguments: Any) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in kind(**arguments).parameters())


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"two_times": False}, 55_732_739),
        ({"two_times": False, "augment_dim": 9}, 55_733_891),
        ({"two_times": False, "augment_dim": 9, "num_classes": 10}, 55_735_299),
        (
            {"two_times": False, "augment_dim": 9, "input_size": 64, "width_multipliers": [1, 2, 2, 2]},
            61_805_571,
        ),
        ({"augment_dim": 6, **WIDE_FILTER}, 55_932_419),  # MeanFlow on CIFAR-10
    ],
)
def test_song_unet(arguments: dict[str, Any], expected: int) -> None:
    assert count(SongUNet, **arguments) == expected


def test_dhariwal_unet() -> None:
    assert count(DhariwalUNet, two_times=False) == 295_899_267


@pytest.mark.parametrize(
    ("width", "expected"),
    [
        (64, 31_308_901),
        (128, 124_713_125),
        (192, 280_212_709),
        (256, 497_807_653),
        (320, 777_497_957),
        (384, 1_119_283_621),
        (448, 1_523_164_645),
    ],
)
def test_edm2_unet(width: int, expected: int) -> None:
    """XXS to XXL on latents, as the official network counts; the paper rounds to 125, 280, 498 million."""
    assert count(EDM2UNet, width=width, two_times=False) == expected


SIZES = {"S": (384, 12, 6), "B": (768, 12, 12), "L": (1024, 24, 16), "XL": (1152, 28, 16)}


def dit(size: str, patch: int, two_times: bool) -> dict[str, Any]:
    width, depth, heads = SIZES[size]
    return {
        "input_size": 32, "in_channels": 4, "patch_size": patch, "width": width, "depth": depth,
        "heads": heads, "num_classes": 1000, "two_times": two_times,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("size", "patch", "expected"),
    [("B", 4, 131_165_248), ("B", 2, 131_091_472), ("L", 2, 459_137_040), ("XL", 2, 676_440_592)],
)
def test_dit_of_mean_flow(size: str, patch: int, expected: int) -> None:
    assert count(DiT, **dit(size, patch, two_times=True)) == expected


@pytest.mark.parametrize(("size", "millions"), [("S", 32.96), ("B", 130.51), ("L", 458.10), ("XL", 675.13)])
def test_dit_of_sit(size: str, millions: float) -> None:
    """SiT counts its positions, fixed as they are, and twice as many outputs (a learned variance)."""
    width = SIZES[size][0]
    positions, variance = 16 * 16 * width, 2 * 2 * 4 * (width + 1)
    assert round((count(DiT, **dit(size, 2, two_times=False)) + positions + variance) / 1e6, 2) == millions
