"""Runs that crash right after a checkpoint is saved and are resumed, in every combination that users have.

A cell is a way to train. `outcome` trains it three times (whole, up to the crash, resumed in the crashed
run's folder) and says what differs from the whole run: nothing, where `ExactResume` keeps its promise.
"""

import csv
import itertools
import warnings
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from zoo.callbacks import ExactResume
from zoo.datamodules._loader import Loader, Table
from zoo.run_logger import RunLogger

ITEMS, BATCH, EPOCHS = 192, 16, 4

LENGTHS = ("max_steps", "max_epochs")
LOADERS = ("ours", "stock", "stateful", "stateful with a sampler")
PLACES = ("mid-epoch", "last batch", "validation", "epoch's end")
SCHEDULERS = ("step", "epoch")
PROCESSES = (1, 2)


@dataclass(frozen=True)
class Cell:
    """A way to train, and the place of the checkpoint after which it crashes.

    Args:
        length: What ends the run: ``max_steps`` in mid-epoch, or ``max_epochs``.
        loader: ours, stock, or stateful (torchdata's), which under ddp may have a DistributedSampler of its
            own.
        place: Where the checkpoint is saved.
        scheduler: What the learning rate's scheduler is stepped by.
        processes: 1 or 2.
    """

    length: str
    loader: str
    place: str
    scheduler: str
    processes: int

    @property
    def warns(self) -> bool:
        """Whether exactness is not promised, and a warning is."""
        wrapped = self.loader == "stateful" and self.processes == 2
        return wrapped or (self.loader == "stock" and self.place == "mid-epoch")

    def __str__(self) -> str:
        return ", ".join(map(str, astuple(self)))


def cells() -> Iterator[Cell]:
    """Every combination."""
    for cell in itertools.starmap(Cell, itertools.product(LENGTHS, LOADERS, PLACES, SCHEDULERS, PROCESSES)):
        if cell.processes == 2 or cell.loader != "stateful with a sampler":
            yield cell


class Crash(Exception):
    """Stands for a kill right after a save."""


class Points(Dataset):
    """Items as a user's own dataset gives them."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(ITEMS, 6, generator=generator)
        self.y = self.x.sum(1, keepdim=True).tanh()

    def __len__(self) -> int:
        return ITEMS

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"x": self.x[index], "y": self.y[index]}


class Model(LightningModule):
    """A regression with dropout, whose validation draws at random, too."""

    def __init__(self, scheduler: str) -> None:
        super().__init__()
        self.interval = scheduler
        self.network = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Dropout(0.3), nn.Linear(8, 1))

    def on_train_epoch_start(self) -> None:
        self.shift = torch.rand(1).item()  # a draw of the module's own

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = nn.functional.mse_loss(self.network(batch["x"] + 0.01 * torch.randn(6)), batch["y"])
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        x = batch["x"] + 0.01 * torch.randn_like(batch["x"])
        self.log("val/loss", nn.functional.mse_loss(self.network(x), batch["y"]), sync_dist=True)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 5 if self.interval == "step" else 1, 0.7)
        return [optimizer], [{"scheduler": scheduler, "interval": self.interval}]


class Record(Callback):
    """What each update used: its number, epoch, batch, learning rate and data."""

    def __init__(self) -> None:
        self.seen: list[tuple[Any, ...]] = []

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        self.seen.append(
            (trainer.global_step, trainer.current_epoch, batch_idx, rate, float(batch["x"].double().sum()))
        )


def train_loader(kind: str, rank: int, world_size: int) -> Any:
    """The cell's train loader; under ddp Lightning deals out the items of the last two to the processes."""
    points = Points()
    if kind == "ours":
        columns = {"x": points.x, "y": points.y}
        return Loader(Table(columns), BATCH, train=True, rank=rank, world_size=world_size)
    if kind.startswith("stateful"):
        from torchdata.stateful_dataloader import StatefulDataLoader

        if kind == "stateful":
            return StatefulDataLoader(points, BATCH, shuffle=True)
        return StatefulDataLoader(points, BATCH, sampler=DistributedSampler(points, world_size, rank))
    return DataLoader(points, BATCH, shuffle=True)


def names(cell: Cell) -> tuple[int, str]:
    """Updates of an epoch, and the name of the checkpoint of the second epoch after which the run crashes."""
    n = ITEMS // BATCH // cell.processes
    step = n + n // 3 if cell.place == "mid-epoch" else 2 * n
    prefix = {"validation": "val-", "epoch's end": "end-"}.get(cell.place, "")
    return n, f"{prefix}epoch=1-step={step}.ckpt"


def fit(
    cell: Cell, folder: Path, crash: str | None = None, resume: Path | None = None, seed: int = 0
) -> Record:
    """One training; ``crash`` is the name of the checkpoint after which it dies on all processes."""
    n, _ = names(cell)
    torch.manual_seed(seed)
    model, record = Model(cell.scheduler), Record()
    saves = folder / "checkpoints"
    callbacks: list[Callback] = [
        ExactResume(),
        record,
        ModelCheckpoint(saves, "{epoch}-{step}", every_n_train_steps=n // 3, save_top_k=-1),
        ModelCheckpoint(
            saves, "val-{epoch}-{step}", monitor="val/loss", save_on_train_epoch_end=False, save_top_k=-1
        ),
        ModelCheckpoint(saves, "end-{epoch}-{step}", save_on_train_epoch_end=True, save_top_k=-1),
    ]
    # With validations in the epoch for one of the schedulers, at its end for the other.
    often: dict[str, Any] = {"val_check_interval": n // 3} if cell.scheduler == "step" else {}
    limit = {"max_steps": 3 * n + n // 2} if cell.length == "max_steps" else {"max_epochs": EPOCHS}
    trainer = Trainer(
        accelerator="cpu", devices=cell.processes, strategy="ddp" if cell.processes > 1 else "auto",
        callbacks=callbacks, logger=RunLogger(str(folder), "", "csv"), log_every_n_steps=1,
        enable_progress_bar=False, enable_model_summary=False, **limit, **often,
    )  # fmt: skip
    save = trainer.save_checkpoint

    def save_and_crash(path: Any, *args: Any, **kwargs: Any) -> None:
        save(path, *args, **kwargs)
        if Path(path).name == crash:
            raise Crash

    trainer.save_checkpoint = save_and_crash  # type: ignore[method-assign]
    loader = train_loader(cell.loader, trainer.global_rank, trainer.world_size)
    torch.manual_seed(seed + 1 + trainer.global_rank)
    try:
        trainer.fit(model, loader, DataLoader(Points(), 48), ckpt_path=resume, weights_only=True)
    except Crash:
        return record
    trainer.save_checkpoint(folder / "final.ckpt", weights_only=False)
    return record


def rows(folder: Path) -> list[dict[str, str]]:
    """The lines of a run's metrics.csv."""
    with open(folder / "csv" / "metrics.csv", newline="") as file:
        return [{key: value for key, value in row.items() if value} for row in csv.DictReader(file)]


def flat(value: Any, path: str = "") -> dict[str, Any]:
    """Nested plain values by their paths."""
    if isinstance(value, dict):
        children: Any = value.items()
    elif isinstance(value, list | tuple):
        children = enumerate(value)
    else:
        return {path: value}
    return {key: leaf for name, item in children for key, leaf in flat(item, f"{path}.{name}").items()}


def outcome(cell: Cell, folder: Path) -> tuple[list[str], bool]:
    """What differs between a whole run and one that crashed and was resumed, and whether that warned."""
    _, name = names(cell)
    whole, broken = folder / "whole", folder / "broken"
    expected = fit(cell, whole).seen
    before = fit(cell, broken, crash=name).seen
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        after = fit(cell, broken, resume=broken / "checkpoints" / name, seed=77).seen
    warned = any("ExactResume" in str(warning.message) for warning in seen)
    if torch.distributed.is_initialized() and torch.distributed.get_rank():
        return [], warned
    differences = []
    for at, (one, other) in enumerate(itertools.zip_longest(expected, [*before, *after])):
        if one != other:
            differences.append(f"update {at} was {one} and is {other}")
            break
    left, right = (torch.load(each / "final.ckpt", weights_only=True) for each in (whole, broken))
    for key in ("epoch", "global_step", "loops", "state_dict", "optimizer_states", "lr_schedulers"):
        one, other = flat(left[key]), flat(right[key])
        for path in sorted(one.keys() | other.keys()):
            a, b = one.get(path), other.get(path)
            if not (a.equal(b) if isinstance(a, Tensor) and isinstance(b, Tensor) else a == b):
                shown = "" if isinstance(a, Tensor) else f" was {a} and is {b}"
                differences.append(f"{key}{path}{shown}")
    files = [{path.name for path in each.rglob("*.ckpt")} for each in (whole, broken)]
    differences += [f"file {path}" for path in sorted(files[0] ^ files[1])]
    # Lightning logs an update after the hook that saves it, so a crash there loses the last update's row.
    made = rows(broken)
    lost = str(before[-1][0])
    differences += [f"row {row}" for row in made if row not in rows(whole)]
    differences += [f"no row {row}" for row in rows(whole) if row not in made and row["step"] != lost]
    return differences, warned


def outcome_on_rank(cell: Cell, folder: str) -> tuple[list[str], bool]:
    """`outcome` in a process of the pool."""
    return outcome(cell, Path(folder))
