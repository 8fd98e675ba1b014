"""What `zoo predict` of a generative model leaves: an ``.npz`` that FID tools read, and a picture."""

import shutil
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from typing_extensions import override

from zoo import events
from zoo.callbacks._only_one import only_one
from zoo.callbacks._png import image_grid, point_cloud, save_blocks
from zoo.io import atomic_path
from zoo.metrics.inception import to_bytes

_CHUNK = 1024  # samples that are held in memory at once


class SampleWriter(Callback):
    """Writes the samples of ``zoo predict`` to ``samples.npz``, in the order of their global index.

    ``predict_step`` must return a dict with ``samples`` (B, ...), ``index`` (B,) and, if there are classes,
    ``label`` (B,). Images (N, C, H, W) with one channel or three, in [-1, 1], become ``arr_0`` (N, H, W, 3)
    of uint8, gray repeated, by x * 127.5 + 128 without the rest: what the ADM evaluator, torch-fidelity and
    EDM's scripts take. Anything else becomes ``arr_0`` (N, ...) of float32. Classes are ``arr_1`` (N,) of
    int64.

    Samples pass through files, so that 50,000 images do not sit in memory (give ``--return_predictions
    false`` too). Over several processes each writes its share into the run folder, which they must all see;
    items that a sampler repeated are written once. A run that is interrupted leaves no file;
    neither does a `fast_dev_run`.

    Args:
        picture: How many of the first samples to draw in ``samples.png``; 0 for no picture.
        columns: Images in a row of the picture.
        scale: Width of an image pixel in the picture.
    """

    def __init__(self, picture: int = 100, columns: int = 10, scale: int = 2) -> None:
        for name, value, least in (("picture", picture, 0), ("columns", columns, 1), ("scale", scale, 1)):
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        self.picture, self.columns, self.scale = picture, columns, scale
        self._index: list[Tensor] = []
        self._label: list[Tensor] = []
        self._file: Any = None
        self._writing = False
        self._started = 0.0

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "predict":
            only_one(self, trainer, "they would write the same file")

    @override
    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._writing = not trainer.fast_dev_run  # type: ignore[attr-defined]
        if not self._writing:
            return
        self._started = time.perf_counter()
        folder = self._folder(trainer)
        if trainer.is_global_zero:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        trainer.strategy.barrier("samples")

    @override
    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Appends a batch to this process's share."""
        if not isinstance(outputs, dict) or not {"samples", "index"} <= outputs.keys():
            raise TypeError(
                "SampleWriter needs a predict_step that returns a dict with 'samples' and 'index' (and "
                f"'label'); {type(pl_module).__name__} returned {type(outputs).__name__}"
            )
        if not self._writing:
            return
        values = as_written(outputs["samples"])
        if self._file is None:
            self._file = open(self._folder(trainer) / f"{trainer.global_rank}.bin", "wb")  # noqa: SIM115
        self._file.write(np.ascontiguousarray(values).tobytes())
        self._index.append(outputs["index"].detach().cpu())
        if outputs.get("label") is not None:
            self._label.append(outputs["label"].detach().cpu())
        self._form = (values.dtype, values.shape[1:])

    @override
    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._writing:
            return
        folder = self._folder(trainer)
        if self._file is not None:
            self._file.close()
            share = {
                "index": torch.cat(self._index),
                "label": torch.cat(self._label) if self._label else None,
            }
            torch.save(
                share | {"form": (str(self._form[0]), list(self._form[1]))},
                folder / f"{trainer.global_rank}.pt",
            )
        trainer.strategy.barrier("samples")
        self._forget()
        if trainer.is_global_zero:
            try:
                self._join(trainer, folder)
            finally:
                shutil.rmtree(folder, ignore_errors=True)

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if self._writing:
            if self._file is not None:
                self._file.close()
            self._forget()
            shutil.rmtree(self._folder(trainer), ignore_errors=True)

    def _forget(self) -> None:
        self._index, self._label, self._file, self._writing = [], [], None, False

    def _folder(self, trainer: Trainer) -> Path:
        return events.run_folder(trainer) / ".samples"

    def _join(self, trainer: Trainer, folder: Path) -> None:
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
        seconds = round(time.perf_counter() - self._started, 3)
        message = f"{len(order)} samples: {events.display_path(path)}"
        events.record(trainer, "samples_written", message, path=path.name, count=len(order), seconds=seconds)

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
