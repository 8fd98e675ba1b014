"""What `zoo predict` of mid-training leaves when it makes trajectories: shards for a datamodule to read."""

from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from typing_extensions import override

from zoo import events
from zoo.callbacks._prediction_writer import PredictionWriter
from zoo.flow.trajectories import Shard, read_shard, write_shard

_DTYPES = {"float32": torch.float32, "float16": torch.float16}


class TrajectoryWriter(PredictionWriter):
    """Writes the trajectories of ``zoo predict`` to safetensors files, for the datamodule `Trajectories`.

    ``predict_step`` must return a dict with ``states`` (B, M + 1, ...), ``times`` (M + 1,), ``path``,
    ``origin``, ``index`` (B,) and, if there are classes, ``label`` (B,): `CMT` with
    ``predict="trajectories"`` does.

    A trajectory takes (M + 1) times the numbers of an item, four bytes each, or two in float16: with 16 steps
    209 or 104 kB on CIFAR-10, 1.1 MB or 557 kB on latents of 64 x 64 x 4. Float16 keeps a relative 5e-4 of
    each number, which is less than what a solver of so few steps errs by.

    Shards ``trajectories-RANK-NUMBER.safetensors`` are written as they fill up (give ``--return_predictions
    false`` too, or all states gather in memory); each is whole or absent. Over several processes each writes
    its own. A run that is interrupted leaves the shards that it finished, which can be used; a `fast_dev_run`
    leaves none.

    Args:
        folder: Where the shards go; the run's own folder if not given. It must not hold any before.
        dtype: How states are stored. There is no bfloat16, whose eight bits are less than a solver gives.
        shard_size: Trajectories that a process gathers in memory before it writes a shard.
    """

    required, optional = ("states", "times", "path", "origin", "index"), ("label",)

    def __init__(
        self,
        folder: str | None = None,
        dtype: Literal["float32", "float16"] = "float32",
        shard_size: int = 1024,
    ) -> None:
        if dtype not in _DTYPES:
            raise ValueError(f"dtype must be 'float32' or 'float16', got {dtype!r}")
        if shard_size < 1:
            raise ValueError(f"shard_size must be at least 1, got {shard_size}")
        super().__init__()
        self.folder, self.dtype, self.shard_size = folder, dtype, shard_size
        self._place = Path()
        self._parts: list[dict[str, Tensor]] = []
        self._common: dict[str, Any] = {}
        self._written = 0

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Finds the folder.

        Raises:
            ValueError: it holds trajectories already, the module was not told to make any, or there are two
                writers.
        """
        super().setup(trainer, pl_module, stage)
        if stage != "predict":
            return
        if getattr(pl_module, "predict", "trajectories") != "trajectories":
            raise ValueError(
                f"TrajectoryWriter writes trajectories, but {type(pl_module).__name__} makes "
                f"{pl_module.predict}: set predict to trajectories (--model.predict trajectories)"
            )
        # Global rank zero alone is sure of the run's folder.
        place = events.run_folder(trainer) if self.folder is None else Path(self.folder).expanduser()
        self._place = Path(trainer.strategy.broadcast(str(place)))
        if self._shards():
            raise ValueError(
                f"{events.display_path(self._place)} holds trajectories already: give another folder, or "
                "delete them"
            )

    @override
    def start(self, trainer: Trainer) -> None:
        self._parts, self._written = [], 0
        trainer.strategy.barrier("trajectories")  # nobody writes before all have looked at the folder

    @override
    def prepare(self, outputs: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
        # Copies: what is kept must not keep, or be, a view of more.
        part = {"states": outputs["states"].detach().to("cpu", _DTYPES[self.dtype], copy=True)}
        part["index"] = outputs["index"].detach().to("cpu", torch.int64, copy=True)
        if outputs.get("label") is not None:
            part["label"] = outputs["label"].detach().to("cpu", torch.int64, copy=True)
        finite = part["states"].flatten(1).isfinite().all(1)
        if not bool(finite.all()):
            raise ValueError(
                f"the trajectories {part['index'][~finite].tolist()} are not finite in {self.dtype}: the "
                "teacher's solver diverged, or float16, which ends at 65504, is too small for its states"
            )
        return part, {"times": outputs["times"].cpu(), "path": outputs["path"], "origin": outputs["origin"]}

    @override
    def write(self, trainer: Trainer, prepared: tuple[dict[str, Tensor], dict[str, Any]]) -> None:
        part, self._common = prepared
        self._parts.append(part)
        if sum(len(part["index"]) for part in self._parts) >= self.shard_size:
            self._write_shard(trainer)

    @override
    def finish(self, trainer: Trainer) -> None:
        if self._parts:
            self._write_shard(trainer)
        self._common = {}
        trainer.strategy.barrier("trajectories")
        if trainer.is_global_zero and (files := self._shards()):
            shards = [read_shard(file) for file in files]
            count = len(torch.cat([shard.index for shard in shards]).unique())
            size = sum(file.stat().st_size for file in files)
            events.record(
                trainer,
                "trajectories_written",
                f"{count:,} trajectories of {len(shards[0].times) - 1} steps, {size / 1e6:,.1f} MB in "
                f"{len(files)} file{'s' * (len(files) > 1)}: {events.display_path(self._place)}",
                path=str(self._place),
                count=count,
                bytes=size,
                seconds=self.seconds(),
            )

    @override
    def discard(self, trainer: Trainer) -> None:
        self._parts, self._common = [], {}

    def _write_shard(self, trainer: Trainer) -> None:
        whole = {name: torch.cat([part[name] for part in self._parts]) for name in self._parts[0]}
        self._parts = []
        file = self._place / f"trajectories-{trainer.global_rank}-{self._written:05d}.safetensors"
        shard = Shard(whole["states"], index=whole["index"], label=whole.get("label"), **self._common)
        write_shard(file, shard)
        self._written += 1

    def _shards(self) -> list[Path]:
        return sorted(self._place.glob("trajectories-*.safetensors"))
