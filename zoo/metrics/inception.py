"""FID of Heusel et al. 2017, arXiv 1706.08500, by the Inception network that published numbers are made with.

The network is torch-fidelity's port of ``inception-2015-12-05`` in torchmetrics' frame (``pip install
lightning-zoo[fid]``), with a local weight file. Where this differs from their defaults:

* Images are resized as TensorFlow 1 did. torchmetrics antialiases unless told otherwise, and numbers made
  like that do not compare with the literature.
* torch-fidelity unpickles whatever a weight file holds. Here the file is read as tensors first, and it sees
  a copy of those.
* A reference is its mean and covariance; torchmetrics takes images alone.
"""

import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from zoo.metrics._weights import read_weights
from zoo.metrics.frechet import FrechetDistance, load_moments


class InceptionFeatures(nn.Module):
    """The 2,048 pooled features of Inception-v3, as FID has them.

    For `FrechetDistance`, or for ``torchmetrics.image.fid.FrechetInceptionDistance(feature=...)``.

    Args:
        weights: ``weights-inception-2015-12-05-6726825d.pth`` of torch-fidelity, or a ``.safetensors`` file
            of the same names.

    Raises:
        ModuleNotFoundError: torch-fidelity is not installed.
        ValueError: the file is missing, damaged, or holds other weights.
    """

    num_features = 2048  # what torchmetrics asks an extractor for

    def __init__(self, weights: str) -> None:
        super().__init__()
        from torchmetrics.image.fid import NoTrainInceptionV3
        from torchmetrics.utilities.imports import _TORCH_FIDELITY_AVAILABLE

        if not _TORCH_FIDELITY_AVAILABLE:
            raise ModuleNotFoundError(
                "InceptionFeatures needs torch-fidelity: pip install 'lightning-zoo[fid]'. Without it, use "
                "FrechetDistance with other features, such as zoo.metrics.RandomFeatures"
            )
        state = read_weights(weights, "weights")
        with tempfile.TemporaryDirectory() as folder:
            clean = str(Path(folder) / "inception.pth")
            torch.save(state, clean)
            try:
                self.network = NoTrainInceptionV3("inception-v3-compat", ["2048"], clean, antialias=False)
            except RuntimeError as error:
                cause = " ".join(str(error).split())[:300]
                raise ValueError(f"weights={weights!r} is not the network of FID: {cause}") from error
        self.requires_grad_(False).eval()

    def forward(self, x: Tensor) -> Tensor:
        """Features of images.

        Args:
            x: (B, C, H, W), C = 3 or 1 (gray is repeated): floats in [-1, 1], which are rounded to bytes as
                the protocol asks (`to_bytes`), or bytes.

        Returns:
            (B, 2048).

        Raises:
            ValueError: they are no such images.
        """
        if x.ndim != 4 or x.shape[1] not in (1, 3) or not (x.is_floating_point() or x.dtype == torch.uint8):
            raise ValueError(
                "images must be (B, 3, H, W) or (B, 1, H, W), floats in [-1, 1] or uint8, got "
                f"{tuple(x.shape)} of {x.dtype}"
            )
        return self.network(to_bytes(x).expand(-1, 3, -1, -1))


def to_bytes(x: Tensor) -> Tensor:
    """Values in [-1, 1] as bytes: x * 127.5 + 128 without the rest. Bytes stay as they are.

    >>> to_bytes(torch.tensor([-1.0, -0.5, 0.0, 1.0, 2.0])).tolist()
    [0, 64, 128, 255, 255]
    """
    return x if x.dtype == torch.uint8 else (x * 127.5 + 128).clamp(0, 255).to(torch.uint8)


def fid(samples: str, weights: str, reference: str, batch_size: int = 64, device: str = "cpu") -> float:
    """The FID of the images in a file. Published values take 50,000; fewer score worse by their number alone.

    Args:
        samples: ``.npz`` with ``arr_0`` (N, H, W, 3) of uint8, as `SampleWriter` leaves it. It is read batch
            by batch.
        weights: What `InceptionFeatures` takes.
        reference: ``.npz`` with ``mu`` (2048,) and ``sigma`` (2048, 2048), as EDM publishes them.
        batch_size: Images at a time.
        device: Where the network runs.

    Raises:
        ModuleNotFoundError: torch-fidelity is not installed.
        ValueError: a file is missing, damaged, or holds something else.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    batches = read_images(samples, batch_size)
    first = next(batches)  # what is wrong with the samples is said before the network is loaded
    if (width := len(load_moments(reference)[0])) != InceptionFeatures.num_features:
        raise ValueError(f"reference={reference!r} has {width} features, not the 2048 of FID's network")
    metric = FrechetDistance(InceptionFeatures(weights), reference).to(device)
    metric.update(first.to(device), real=False)
    for batch in batches:
        metric.update(batch.to(device), real=False)
    return metric.compute().item()


def read_images(path: str | Path, batch_size: int) -> Iterator[Tensor]:
    """The images of an ``.npz``, a batch at a time, however large it is.

    Args:
        path: File with ``arr_0`` (N, H, W, 3) of uint8.
        batch_size: Images at a time.

    Yields:
        (B, 3, H, W) uint8; the last batch may be smaller.

    Raises:
        ValueError: the file is missing, no such archive, or cut short.
    """
    if not Path(path).is_file():
        raise ValueError(f"samples={str(path)!r}: no such file. `zoo predict` with SampleWriter makes one")
    try:
        with zipfile.ZipFile(path) as archive, archive.open("arr_0.npy") as member:
            version = np.lib.format.read_magic(member)
            header = {
                (1, 0): np.lib.format.read_array_header_1_0,
                (2, 0): np.lib.format.read_array_header_2_0,
            }
            shape, fortran, dtype = header[version](member)
            if dtype != np.uint8 or fortran or len(shape) != 4 or shape[3] != 3 or not shape[0]:
                raise ValueError(f"expected arr_0 (N, H, W, 3) of uint8, got {shape} of {dtype}")
            size = shape[1] * shape[2] * 3
            for start in range(0, shape[0], batch_size):
                count = min(batch_size, shape[0] - start)
                data = bytearray(member.read(count * size))
                images = torch.frombuffer(data, dtype=torch.uint8).reshape(count, *shape[1:])
                yield images.permute(0, 3, 1, 2)
    except (KeyError, ValueError, RuntimeError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"samples={str(path)!r} is not an .npz of images: {error}") from error
