"""Archives of latents: what an autoencoder made of images beforehand."""

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from zoo import rng
from zoo.datamodules._archives import ENDINGS, Rows, read_archive
from zoo.datamodules._base import SplitDataModule
from zoo.datamodules._loader import Batch, Table, Transform


class Latents(SplitDataModule):
    """Latents with their classes from ``.npz`` or ``.safetensors`` files, one or a folder of shards.

    A file holds ``latents`` (N, C, H, W), maybe ``labels`` (N,), and maybe ``latents_flipped``, the latents
    of the reflected images, which are not the reflected latents. What comes out is
    ``scale * (latents - mean) / std``, channel by channel:

    * Stable Diffusion's autoencoder, as DiT and SiT use it: ``scale: 0.18215`` on raw latents;
    * EDM2: ``scale: 0.5``, ``mean: [5.81, 3.25, 0.12, -2.15]``, ``std: [4.17, 4.62, 3.71, 3.28]`` on raw
      ones.

    Archives of the encoder's distribution hold twice the channels, the mean and then the standard deviation
    (``moments: std``; EDM2, REPA) or the logarithm of the variance (``moments: logvar``; what the autoencoder
    itself puts out). A latent is then drawn from it again in each pass, from (seed, pass, index); in
    evaluation the draws are always the same, and others than in training.

    Uncompressed files are mapped, not loaded: they may be larger than the memory. Nobody reads such a file
    as a whole, so the check sums that an ``.npz`` carries are not looked at; its lengths are.

    Batches are dicts: ``x`` (B, C, H, W) float32, ``label`` (B,) int64, if there are labels, ``index`` (B,)
    int64, the row, counted through the shards in the order of their names.

    Args:
        path: A file, or a folder of shards.
        test_path: Likewise, for validation, test and predictions; None for no validation.
        scale: Factor of the result.
        mean: Of each channel of the latents; zeros if not given.
        std: Of each channel of the latents; ones if not given.
        moments: What the second half of the channels is.
        flip: Take ``latents_flipped`` for half of the items, drawn again in each pass.
        batch_size: Items per batch and process.
        num_workers: Worker processes that read ahead.
        seed: Seed of the training order, the draws and the flips. None takes the run's, or 0 without one.

    Raises:
        ValueError: ``path`` names no archive; when set up: a file is damaged, lacks what is asked for, or
            is incompatible with the others.
    """

    def __init__(
        self,
        path: str,
        test_path: str | None = None,
        scale: float = 1.0,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        moments: Literal["none", "std", "logvar"] = "none",
        flip: bool = False,
        batch_size: int = 64,
        num_workers: int = 0,
        seed: int | None = None,
    ) -> None:
        super().__init__(batch_size, num_workers, seed)
        self.save_hyperparameters()
        if not scale > 0 or (std is not None and not min(std, default=0) > 0):
            raise ValueError(f"scale and every std must be positive, got {scale} and {std}")
        if moments not in ("none", "std", "logvar"):
            raise ValueError(f"moments must be 'none', 'std' or 'logvar', got {moments!r}")
        self.scale, self.mean, self.std = scale, mean, std
        self.moments: Literal["none", "std", "logvar"] = moments
        self.flip = flip
        self.files = _files(path, "path")
        self.test_files = None if test_path is None else _files(test_path, "test_path")

    def setup(self, stage: str) -> None:
        """Opens the files.

        Raises:
            ValueError: one is damaged, lacks what is asked for, or is incompatible with the others.
        """
        self.train_set = self._table(self.files, self.flip)
        if self.test_files is not None:
            self.val_set = self.test_set = self._table(self.test_files, flip=False)

    def transform(self, train: bool) -> Transform:
        """The draw of a latent, and its scale."""
        return _Latent(self, train)

    def _table(self, files: list[Path], flip: bool) -> Table:
        parts = [self._part(path, flip) for path in files]
        form = {name: (column.dtype, column.shape[1:]) for name, column in parts[0].items()}
        for path, part in zip(files, parts, strict=True):
            mine = {name: (column.dtype, column.shape[1:]) for name, column in part.items()}
            if mine != form:
                raise ValueError(f"{path} holds {_told(mine)}, but {files[0]} holds {_told(form)}")
        return Table({name: Rows([part[name] for part in parts]) for name in form})

    def _part(self, path: Path, flip: bool) -> dict[str, Tensor]:
        """The columns of a file, checked."""
        arrays = read_archive(path)
        names = {"latents": "x", "labels": "label"} | ({"latents_flipped": "x_flipped"} if flip else {})
        if missing := (names.keys() - {"labels"}) - arrays.keys():
            raise ValueError(f"{path} lacks {sorted(missing)}: it holds {sorted(arrays)}")
        columns = {names[name]: arrays[name] for name in names if name in arrays}
        x = columns["x"]
        if x.ndim != 4 or not x.is_floating_point():
            raise ValueError(
                f"{path}: latents must be floats (N, C, H, W), got {tuple(x.shape)} of {x.dtype}"
            )
        channels = x.shape[1] if self.moments == "none" else x.shape[1] / 2
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values is not None and len(values) != channels:
                raise ValueError(
                    f"{name} has {len(values)} entries, but the latents of {path} have {channels} channels"
                )
        if channels % 1:
            raise ValueError(
                f"{path}: moments={self.moments!r} needs an even number of channels, got {x.shape[1]}"
            )
        if flip and (other := tuple(columns["x_flipped"].shape)) != tuple(x.shape):
            raise ValueError(f"{path}: latents_flipped must be {tuple(x.shape)} as latents are, got {other}")
        label = columns.get("label")
        if label is not None:
            whole = not label.is_floating_point() and label.shape == (len(x),)
            if not whole or (len(label) and label.min() < 0):
                raise ValueError(
                    f"{path}: labels must be ({len(x)},), whole numbers from 0 up; they are "
                    f"{tuple(label.shape)} of {label.dtype}"
                )
            columns["label"] = label.long()
        return columns


class _Latent:
    """From a batch of rows to a batch of latents: choose the reflected one, draw, scale."""

    def __init__(self, like: Latents, train: bool) -> None:
        self.seed, self.moments, self.scale = like.seed, like.moments, like.scale
        self.flip = like.flip and train
        self.draw = "latent" if train else "latent/evaluation"
        self.mean, self.std = (
            None if values is None else torch.tensor(values)[:, None, None]
            for values in (like.mean, like.std)
        )

    def __call__(self, batch: Batch, number: int) -> Batch:
        """A batch of pass ``number``."""
        index = batch["index"]
        flipped = batch.pop("x_flipped", None)
        x = batch["x"].float()  # (B, C, H, W), or (B, 2 C, H, W)
        if self.flip and flipped is not None:
            turned = rng.uniform(self.seed, number, index, (), "flip") < 0.5
            x = torch.where(turned[:, None, None, None], flipped.float(), x)
        if self.moments != "none":
            x, spread = x.chunk(2, dim=1)
            # Autoencoders clamp the logarithm like this where they draw.
            deviation = spread if self.moments == "std" else (spread.clamp(-30, 20) / 2).exp()
            x = x + deviation * rng.normal(self.seed, number, index, tuple(x.shape[1:]), self.draw)
        x = x if self.mean is None else x - self.mean
        x = x if self.std is None else x / self.std
        return batch | {"x": x * self.scale}


def _files(path: str, argument: str) -> list[Path]:
    """The archives that a path names, in the order of their names."""
    place = Path(path).expanduser()
    files = sorted(file for file in place.iterdir() if file.suffix in ENDINGS) if place.is_dir() else [place]
    if not files or not all(file.is_file() and file.suffix in ENDINGS for file in files):
        raise ValueError(
            f"{argument}={path!r} is not an .npz or .safetensors file, and no folder of such files"
        )
    return files


def _told(form: dict[str, tuple[torch.dtype, torch.Size]]) -> str:
    names = {"x": "latents", "label": "labels", "x_flipped": "latents_flipped"}
    return ", ".join(
        f"{names[name]} (N, {', '.join(map(str, shape))}) of {dtype}" for name, (dtype, shape) in form.items()
    )
