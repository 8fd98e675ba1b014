"""Pictures as PNG files: grids of images and clouds of points, without matplotlib."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from zoo.io import atomic_path

_TEXT_HEIGHT = 14  # pixels, of Pillow's built-in font


def image_grid(images: Tensor, columns: int, scale: int = 1) -> Tensor:
    """Tiles images row by row, with white gaps.

    Args:
        images: (N, C, H, W) in [-1, 1], C = 1 or 3; values beyond are clipped.
        columns: Images in a row.
        scale: Width of one pixel.

    Returns:
        (rows, columns, 3) uint8 pixels.

    Raises:
        ValueError: the images have neither one channel nor three.

    >>> image_grid(torch.zeros(6, 1, 8, 8), columns=3, scale=2).shape
    torch.Size([34, 52, 3])
    """
    count, channels, height, width = images.shape
    if channels not in (1, 3):
        raise ValueError(f"a picture needs 1 or 3 channels, got images of shape {tuple(images.shape)}")
    gap, height, width = 2, height * scale, width * scale
    rows = -(-count // columns)
    grid = torch.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, dtype=torch.uint8)
    pixels = (images.detach().float().cpu().clamp(-1, 1) * 127.5 + 127.5).round().to(torch.uint8)
    pixels = pixels.expand(-1, 3, -1, -1).permute(0, 2, 3, 1)  # (N, H, W, 3)
    pixels = pixels.repeat_interleave(scale, 1).repeat_interleave(scale, 2)
    for number, image in enumerate(pixels):
        top, left = number // columns * (height + gap), number % columns * (width + gap)
        grid[top : top + height, left : left + width] = image
    return grid


def point_cloud(points: Tensor, low: Tensor, high: Tensor, size: int = 256) -> Tensor:
    """Counts points in a square of bins, dark where there are many.

    Args:
        points: (N, 2).
        low: (2,) the lower left corner of the square.
        high: (2,) its upper right corner; points outside are left out.
        size: Bins, and pixels, in a row.

    Returns:
        (size, size, 3) uint8 pixels, the second coordinate upwards.
    """
    points, low, high = points.detach().float().cpu(), low.float().cpu(), high.float().cpu()
    cell = ((points - low) / (high - low) * size).floor().long()  # (N, 2)
    column, row = cell[((cell >= 0) & (cell < size)).all(1)].unbind(1)
    count = torch.bincount((size - 1 - row) * size + column, minlength=size * size).float()
    shade = 255 - 255 * (count / count.max().clamp(min=1)).sqrt()  # the root keeps single points visible
    return shade.round().to(torch.uint8).reshape(size, size, 1).expand(-1, -1, 3)


def save_blocks(path: str | Path, blocks: Sequence[tuple[str, Tensor]]) -> None:
    """Writes pictures side by side, each under its title, as one PNG.

    Args:
        path: The file to make.
        blocks: Titles and pictures (H, W, 3) uint8.
    """
    from PIL import Image, ImageDraw

    margin = 10
    width = sum(picture.shape[1] + margin for _, picture in blocks) + margin
    height = max(picture.shape[0] for _, picture in blocks) + _TEXT_HEIGHT + 2 * margin
    page = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(page)
    left = margin
    for title, picture in blocks:
        draw.text((left, margin // 2), title, fill="black")
        page.paste(Image.fromarray(picture.contiguous().numpy()), (left, margin + _TEXT_HEIGHT))
        left += picture.shape[1] + margin
    with atomic_path(path) as temporary:
        page.save(temporary, format="PNG")
