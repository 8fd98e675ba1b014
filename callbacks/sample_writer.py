"""What `zoo predict` of a generative model leaves: an ``.npz`` that FID tools read, and a picture."""

import zipfile
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer
from torch import Tensor
from typing_extensions import override

from zoo import events
from zoo.callbacks._png import image_grid, point_cloud, save_blocks
from zoo.callbacks._prediction_writer import JoiningWriter
from zoo.io import atomic_path
from zoo.metrics.inception import to_bytes

_CHUNK = 1024  # samples that are held in memory at once


class SampleWriter(JoiningWriter):
    """Writes the samples of ``zoo predict`` to ``samples.npz``, in the order of their global index.

    ``predict_step`` must return a dict with ``samples`` (B, ...), ``index`` (B,) and, if there are classes,
    ``label`` (B,). Images (N, C, H, W) with one channel or three, in [-1, 1], become ``arr_0`` (N, H, W, 3)
    of uint8, gray repeated, by x * 127.5 + 128 without the rest: what the ADM evaluator, torch-fidelity and
    EDM's scripts take. Anything else becomes ``arr_0`` (N, ...) of float32. Classes are ``arr_1`` (N,) of
    int64.

    Samples pass through files, so that 50,000 images do not sit in memory (give ``--return_predictions
    false`` too). Over several processes each writes its share into the run folder, which they must all see;
    items that a sampler repeated are written once. A run that is interrupted leaves no file, and neither does
    a `fast_dev_run`.

    Args:
        picture: How many of the first samples to draw in ``samples.png``; 0 for no picture.
        columns: Images in a row of the picture.
        scale: Width of an image pixel in the picture.
    """

    required, optional = ("samples", "index"), ("label",)
    shares = ".samples"

    def __init__(self, picture: int = 100, columns: int = 10, scale: int = 2) -> None:
        for name, value, least in (("picture", picture, 0), ("columns", columns, 1), ("scale", scale, 1)):
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        super().__init__()
        self.picture, self.columns, self.scale = picture, columns, scale
        self._index: list[Tensor] = []
        self._label: list[Tensor] = []
        self._file: Any = None

    @override
    def prepare(self, outputs: dict[str, Any]) -> tuple[np.ndarray, Tensor, Tensor | None]:
        label = outputs.get("label")
        values = np.ascontiguousarray(as_written(outputs["samples"]))
        return values, outputs["index"].detach().cpu(), None if label is None else label.detach().cpu()

    @override
    def write(self, trainer: Trainer, prepared: tuple[np.ndarray, Tensor, Tensor | None]) -> None:
        values, index, label = prepared
        if self._file is None:
            self._file = open(self._folder / f"{trainer.global_rank}.bin", "wb")  # noqa: SIM115
        self._file.write(values.tobytes())
        self._index.append(index)
        if label is not None:
            self._label.append(label)
        self._form = (str(values.dtype), list(values.shape[1:]))

    @override
    def close(self, trainer: Trainer) -> None:
        if self._file is not None:
            self._file.close()
            label = torch.cat(self._label) if self._label else None
            share = {"index": torch.cat(self._index), "label": label, "form": self._form}
            torch.save(share, self._folder / f"{trainer.global_rank}.pt")
        self._index, self._label, self._file = [], [], None

    @override
    def join(self, trainer: Trainer) -> None:
        folder = self._folder
        ranks = sorted(int(path.stem) for path in folder.glob("*.pt"))
        if not ranks:
            return
        shares = [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in ranks]
        dtype, shape = np.dtype(shares[0]["form"][0]), tuple(shares[0]["form"][1])
        data = [
            np.memmap(folder / f"{rank}.bin", dtype, "r", shape=(len(share["index"]), *shape))
            for rank, share in zip(ranks, shares, strict=True)
        ]
        # Each index once, in order: (index, share, row).
        places = {
            int(index): (number, row)
            for number, share in reversed(list(enumerate(shares)))
            for row, index in reversed(list(enumerate(share["index"])))
        }
        order = sorted(places)
        path = events.run_folder(trainer) / "samples.npz"
        with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
            with archive.open("arr_0.npy", "w", force_zip64=True) as member:
                header = {"descr": dtype.str, "fortran_order": False, "shape": (len(order), *shape)}
                np.lib.format.write_array_header_1_0(member, header)
                for start in range(0, len(order), _CHUNK):
                    rows = [data[n][row] for n, row in map(places.__getitem__, order[start : start + _CHUNK])]
                    member.write(np.stack(rows).tobytes())
            if all(share["label"] is not None for share in shares):
                labels = [int(shares[n]["label"][row]) for n, row in map(places.__getitem__, order)]
                with archive.open("arr_1.npy", "w") as member:
                    np.lib.format.write_array(member, np.array(labels, dtype=np.int64))
        self._draw(trainer, [data[n][row] for n, row in map(places.__getitem__, order[: self.picture])])
        message = f"{len(order)} samples: {events.display_path(path)}"
        count, seconds = len(order), self.seconds()
        events.record(trainer, "samples_written", message, path=path.name, count=count, seconds=seconds)

    def _draw(self, trainer: Trainer, samples: list[np.ndarray]) -> None:
        """The first samples, if they can be drawn."""
        if not samples:
            return
        block = torch.from_numpy(np.stack(samples))
        if block.ndim == 4 and block.dtype == torch.uint8:
            picture = image_grid(block.permute(0, 3, 1, 2) / 127.5 - 1, self.columns, self.scale)
        elif block.ndim == 2 and block.shape[1] == 2:
            span = block.abs().max().expand(2)
            picture = point_cloud(block, -span, span)
        else:
            return
        path = events.run_folder(trainer) / "samples.png"
        save_blocks(path, [(f"the first {len(samples)}", picture)])


def as_written(samples: Tensor) -> np.ndarray:
    """Samples as the file holds them.

    >>> as_written(torch.tensor([-1.0, 0.0, 1.0]).reshape(3, 1, 1, 1))[:, 0, 0].tolist()
    [[0, 0, 0], [128, 128, 128], [255, 255, 255]]
    """
    samples = samples.detach().float().cpu()
    if samples.ndim == 4 and samples.shape[1] in (1, 3):
        return to_bytes(samples).expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy()
    return samples.numpy()
