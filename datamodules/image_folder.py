"""Folders of image files, cropped and resized as ADM does, read while training goes on."""

import json
import os
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from zoo.datamodules._base import SplitDataModule
from zoo.datamodules._images import RandomFlip
from zoo.datamodules._loader import Batch, Transform

_ENDINGS = frozenset([".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm"])


class ImageFolder(SplitDataModule):
    """Image files below a folder, whose sub-folders are their classes.

    A folder is read in one of three ways, the first that fits: with a ``dataset.json`` as EDM's dataset tool
    makes it, whose ``labels`` are pairs of a file and a class; with images in sub-folders only, which are the
    classes in alphabetical order (unless ``classes`` is false); or with images only, without labels. Other
    files are passed over.

    Images are decoded where they are read, in the workers: halved by averaging while both sides are at least
    twice ``size``, resized bicubically until the shorter side is ``size``, and cropped to the center, as ADM
    does (Dhariwal and Nichol 2021, arXiv 2105.05233). Transparency is dropped; gray images of 16 bits are
    rounded to 8.

    Batches are dicts: ``x`` (B, channels, size, size) float32 in [-1, 1] (bytes divided by 127.5, less 1),
    ``label`` (B,) int64, if there are classes, ``index`` (B,) int64, the place in the order of the paths.
    `reference_dataloader` gives the training images without flips, as FID wants them.

    Args:
        root: The folder of the training images.
        size: Side of the images that come out.
        channels: 3, or 1 for gray.
        test_root: A folder of the same form, with classes of the same names, for validation, test and
            predictions; None for no validation.
        classes: Whether sub-folders are classes. False for folders that only divide files, as FFHQ's.
        flip: Reflect half of the training images, drawn again in each pass.
        batch_size: Images per batch and process.
        num_workers: Worker processes that decode and read ahead.
        seed: Seed of the training order and the flips. None takes the run's, or 0 without one.

    Raises:
        ValueError: a folder is missing, has no images, or mixes images with and without class; while
            training: a file cannot be decoded. The message names it.
    """

    def __init__(
        self,
        root: str,
        size: int,
        channels: Literal[1, 3] = 3,
        test_root: str | None = None,
        classes: bool = True,
        flip: bool = False,
        batch_size: int = 64,
        num_workers: int = 4,
        seed: int | None = None,
    ) -> None:
        super().__init__(batch_size, num_workers, seed)
        self.save_hyperparameters()
        if size < 1 or channels not in (1, 3):
            raise ValueError(f"size must be at least 1 and channels 1 or 3, got {size} and {channels}")
        self.size, self.channels, self.flip = size, channels, flip
        for name, folder in (("root", root), ("test_root", test_root)):
            if folder is not None and not Path(folder).expanduser().is_dir():
                raise ValueError(f"{name}={folder!r}: no such folder")
        self.root, self.test_root, self.classes = root, test_root, classes
        self.class_names: list[str] | None = None
        self.num_classes: int | None = None

    def setup(self, stage: str) -> None:
        """Lists the files.

        Raises:
            ValueError: there are none, or the classes of the two folders are incompatible.
        """
        paths, names = find_images(self.root, "root", self.classes)
        known = sorted(set(names)) if names is not None else None
        self.class_names = None if known is None else [str(name) for name in known]
        # Numbers of dataset.json are classes as they are; some may have no image.
        numbered = names is not None and isinstance(names[0], int)
        order = {name: name if isinstance(name, int) else place for place, name in enumerate(known or [])}
        self.num_classes = None if known is None else (int(known[-1]) + 1 if numbered else len(known))
        self.train_set = _Files(paths, None if names is None else [order[name] for name in names], self)
        if self.test_root is not None:
            paths, names = find_images(self.test_root, "test_root", self.classes)
            if (names is None) != (known is None) or not set(names or []) <= order.keys():
                raise ValueError(
                    f"test_root={self.test_root!r} has the classes {sorted(set(names or []))[:5]}, root has "
                    f"{(known or [])[:5]}: give folders with the same classes"
                )
            self.test_set = _Files(paths, None if names is None else [order[name] for name in names], self)
            self.val_set = self.test_set

    def transform(self, train: bool) -> Transform | None:
        """Flips, in training, if asked for."""
        return RandomFlip(self.seed) if train and self.flip else None


class _Files(Dataset):
    """Images by path, decoded when they are asked for."""

    def __init__(self, paths: list[Path], labels: list[int] | None, like: ImageFolder) -> None:
        self.paths, self.labels = paths, labels
        self.size, self.channels = like.size, like.channels

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Batch:
        x = read_image(self.paths[index], self.size, self.channels)
        return {"x": x} if self.labels is None else {"x": x, "label": self.labels[index]}


def find_images(root: str, argument: str, classes: bool) -> tuple[list[Path], list[Any] | None]:
    """The image files below a folder in the order of their paths, and the class of each (see `ImageFolder`).

    Raises:
        ValueError: there are none, or some have a class and some have none.
    """
    folder = Path(root).expanduser()
    paths = sorted(
        Path(place, name)
        for place, _, names in os.walk(folder)  # rglob would ask the disk about each of a million files
        for name in names
        if os.path.splitext(name)[1].lower() in _ENDINGS
    )
    if not paths:
        raise ValueError(f"{argument}={root!r} holds no images ({', '.join(sorted(_ENDINGS))})")
    if not classes:
        return paths, None
    listing = folder / "dataset.json"
    if listing.is_file():
        return paths, _listed(listing, [path.relative_to(folder).as_posix() for path in paths])
    inner = [path for path in paths if path.parent != folder]
    if not inner:
        return paths, None
    if len(inner) != len(paths):
        lone = next(path for path in paths if path.parent == folder)
        raise ValueError(
            f"{argument}={root!r} has images in sub-folders, which would be classes, and outside of them "
            f"({lone.name}): move those, or give classes=false"
        )
    return paths, [path.relative_to(folder).parts[0] for path in paths]


def _listed(listing: Path, names: list[str]) -> list[int] | None:
    """The class of each file by a ``dataset.json``; None where its labels are null."""
    try:
        pairs = json.loads(listing.read_text(encoding="utf-8"))["labels"]
        labels = None if pairs is None else {str(name): label for name, label in pairs}
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{listing} is not of the form {{'labels': [[file, class], ...]}}: {error}"
        ) from error
    if labels is None:
        return None
    for name in names:
        if type(labels.get(name)) is not int or labels[name] < 0:
            raise ValueError(f"{listing} gives {name} the class {labels.get(name)!r}, not a number from 0 up")
    return [labels[name] for name in names]


def read_image(path: Path, size: int, channels: int) -> Tensor:
    """An image file as (channels, size, size) float32 in [-1, 1], see `ImageFolder`.

    Raises:
        ValueError: it cannot be decoded.
    """
    import numpy as np
    from PIL import Image

    try:
        with Image.open(path) as opened:
            image = _of_bytes(opened).convert("RGB" if channels == 3 else "L")
    # Whatever a decoder says of bytes that it cannot read.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} cannot be decoded as an image: {error}. Replace or remove it") from error
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    width, height = round(image.width * scale), round(image.height * scale)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    pixels = np.array(image.crop((left, top, left + size, top + size)))
    return torch.from_numpy(pixels.reshape(size, size, channels)).permute(2, 0, 1).float() / 127.5 - 1


def _of_bytes(image: Any) -> Any:
    """The image with 8 bits a value. Pillow's own conversion of larger numbers cuts them off at 255."""
    import numpy as np
    from PIL import Image

    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        return Image.fromarray(np.round(np.asarray(image) / 257).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(
            f"its values are 32-bit numbers (mode {image.mode}), of which nobody knows the range: save it "
            "with 8 or 16 bits"
        )
    return image
