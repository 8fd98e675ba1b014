"""CIFAR-10 from a local folder, in either of the two forms in which it is distributed."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo.datamodules._base import SplitDataModule
from zoo.datamodules._images import ByteImages, RandomFlip
from zoo.datamodules._loader import Transform
from zoo.pickles import Global, Inert, read_pickle

_PICTURE = 3 * 32 * 32
_FILES = {
    "cifar-10-batches-py": ([f"data_batch_{k}" for k in range(1, 6)], ["test_batch"]),
    "cifar-10-batches-bin": ([f"data_batch_{k}.bin" for k in range(1, 6)], ["test_batch.bin"]),
}


class CIFAR10(SplitDataModule):
    """CIFAR-10 (Krizhevsky 2009): 50,000 training and 10,000 test images of 32 x 32 in ten classes.

    It is not downloaded: unpack ``cifar-10-python.tar.gz`` or ``cifar-10-binary.tar.gz`` from
    https://www.cs.toronto.edu/~kriz/cifar.html. The files of the former are pickles; they are read without
    executing them.

    Batches are dicts: ``x`` (B, 3, 32, 32) float32 in [-1, 1] (bytes divided by 127.5, less 1), ``label``
    (B,) int64, ``index`` (B,) int64, the row in its split, in the order of the files. The test images serve
    for validation, too. `reference_dataloader` gives the training images without flips, as FID wants them.

    Args:
        root: The unpacked folder (``cifar-10-batches-py`` or ``cifar-10-batches-bin``), or the one around it.
        batch_size: Images per batch and process.
        flip: Reflect half of the training images, drawn again in each pass.
        num_workers: Worker processes that read ahead; the images are in memory, so few are needed.
        seed: Seed of the training order and the flips. None takes the run's, or 0 without one.

    Raises:
        ValueError: ``root`` has no such folder, or a file is missing; when set up: a file is damaged.
    """

    num_classes = 10

    def __init__(
        self,
        root: str,
        batch_size: int = 128,
        flip: bool = False,
        num_workers: int = 0,
        seed: int | None = None,
    ) -> None:
        super().__init__(batch_size, num_workers, seed)
        self.save_hyperparameters()
        self.flip = flip
        self.folder = _find(root)

    def setup(self, stage: str) -> None:
        """Reads all files.

        Raises:
            ValueError: a file is damaged; the message names it.
        """
        train, test = next(files for files in _FILES.values() if (self.folder / files[1][0]).is_file())
        self.train_set = _table([self.folder / name for name in train])
        self.test_set = _table([self.folder / name for name in test])
        self.val_set = self.test_set

    def transform(self, train: bool) -> Transform | None:
        """Flips, in training, if asked for."""
        return RandomFlip(self.seed) if train and self.flip else None


def _find(root: str) -> Path:
    """The folder that holds the files of either form."""
    place = Path(root).expanduser()
    for folder in (place, *(place / name for name in _FILES)):
        for train, test in _FILES.values():
            if (folder / test[0]).is_file():
                for name in train:
                    if not (folder / name).is_file():
                        raise ValueError(
                            f"root={root!r} is not whole: {folder / name} is missing. Unpack it again"
                        )
                return folder
    raise ValueError(
        f"root={root!r} holds no CIFAR-10: expected test_batch or test_batch.bin in it, or in a folder "
        f"{' or '.join(_FILES)} below it. Unpack cifar-10-python.tar.gz or cifar-10-binary.tar.gz there"
    )


def _table(paths: list[Path]) -> ByteImages:
    parts = [read_batch(path) for path in paths]
    return ByteImages(
        {"x": torch.cat([x for x, _ in parts]), "label": torch.cat([label for _, label in parts])}
    )


def read_batch(path: Path) -> tuple[Tensor, Tensor]:
    """The images (N, 3, 32, 32) uint8 and labels (N,) int64 of one file, a pickle unless it ends in .bin.

    Raises:
        ValueError: the file is damaged, or no file of CIFAR-10.
    """
    try:
        x, label = _binary(path.read_bytes()) if path.suffix == ".bin" else _pickled(path)
        if not len(label) or label.min() < 0 or label.max() > 9:
            raise ValueError("its labels are not 0 to 9")
    except ValueError as error:
        raise ValueError(f"{path} is damaged, or no file of CIFAR-10: {error}") from error
    return x.reshape(-1, 3, 32, 32), label


def _binary(data: bytes) -> tuple[Tensor, Tensor]:
    if len(data) % (_PICTURE + 1):
        raise ValueError(f"{len(data)} bytes are no whole number of records of {_PICTURE + 1}")
    rows = (
        torch.frombuffer(bytearray(data), dtype=torch.uint8).reshape(-1, _PICTURE + 1)
        if data
        else torch.empty(0, 1)
    )
    return rows[:, 1:].contiguous(), rows[:, 0].long()


def _pickled(path: Path) -> tuple[Tensor, Tensor]:
    """A dict with ``data``, an array (N, 3072) of bytes, and ``labels``; of Python 2, so text is bytes."""
    with open(path, "rb") as file:
        value = read_pickle(file, _call)
    if not isinstance(value, dict):
        raise ValueError(f"it holds a {type(value).__name__}, not a dict")
    value = {key.decode("latin-1") if isinstance(key, bytes) else key: item for key, item in value.items()}
    data, labels = _array(value.get("data")), value.get("labels")
    if not isinstance(labels, list) or any(type(label) is not int for label in labels):
        raise ValueError("it has no list of 'labels'")
    if len(labels) != len(data):
        raise ValueError(f"it has {len(data)} images and {len(labels)} labels")
    return data, torch.tensor(labels, dtype=torch.int64)


def _call(function: Global, arguments: tuple[Any, ...]) -> Any:
    # How Python 3 writes bytes in the protocols of Python 2.
    if function == ("_codecs", "encode") and len(arguments) == 2 and isinstance(arguments[0], str):
        return arguments[0].encode("latin-1")
    return NotImplemented


def _array(value: Any) -> Tensor:
    """An array (N, 3072) of bytes, as numpy pickles it: (version, shape, dtype, column-major, content)."""
    state = value.state if isinstance(value, Inert) else None
    if not isinstance(state, tuple) or len(state) != 5:
        raise ValueError("it has no array 'data'")
    _, shape, dtype, column_major, content = state
    kind = dtype.arguments[:1] if isinstance(dtype, Inert) else None
    content = content.encode("latin-1") if isinstance(content, str) else content
    if kind not in (("u1",), ("B",)) or column_major or not isinstance(content, bytes):
        raise ValueError("its 'data' is not an array of bytes, row by row")
    if shape != (len(content) // _PICTURE, _PICTURE) or len(content) % _PICTURE or not content:
        raise ValueError(
            f"its 'data' should have shape (N, {_PICTURE}), and has {shape} of {len(content)} bytes"
        )
    return torch.frombuffer(bytearray(content), dtype=torch.uint8).reshape(shape)
