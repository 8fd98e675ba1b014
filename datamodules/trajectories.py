"""Trajectories of a teacher that were solved beforehand: data for mid-training without the teacher."""

from pathlib import Path

import torch
from torch import Tensor

from zoo import rng
from zoo.datamodules._archives import Rows
from zoo.datamodules._base import SplitDataModule
from zoo.datamodules._loader import Batch, Table, Transform
from zoo.flow.trajectories import Shard, StoredTrajectories, path_named, read_shard

_SPLIT_SEED = 0  # of the held-out trajectories: the same for every run, so that numbers compare


class Trajectories(SplitDataModule):
    r"""Stored trajectories for `CMT`, which then calls no teacher.

    What a teacher makes is stored once:

        zoo predict --config flow/digits_trajectories --return_predictions false

    and any CMT config learns from it with ``--data Trajectories --data.path FOLDER``, and
    ``--model.teacher null`` where the teacher is not at hand. Each pass draws other pairs of states of a
    trajectory; but there are only so many trajectories, while a live teacher never makes one twice.

    Files are mapped, not loaded: they may be larger than the memory. A trajectory of M steps takes (M + 1)
    times the numbers of an item, four bytes each, or two in float16: with 16 steps 209 or 104 kB on CIFAR-10,
    so 100,000 of them 21 or 10 GB. Nobody reads such a file as a whole, so the checksums that it carries are
    not looked at (`zoo.io.load_tensors` does that); its lengths are.

    Batches are dicts: ``states`` (B, M + 1, ...) float32 from noise to data, ``label`` (B,) int64, if there
    are any, as the teacher was given them, ``index`` (B,) int64, the number that the trajectory was made
    under, and for all in common ``times``, M + 1 plain numbers, and ``path``, which they live on. A
    trajectory that stands in two files, as processes that share uneven work leave it, comes once.

    Args:
        path: A file, a folder of them, or a folder of runs, of which the one that wrote last is taken.
        batch_size: Trajectories per batch and process.
        val_share: Share of the trajectories that is held out, for validation, test and predictions, the
            same ones for every seed; 0 for no validation.
        num_workers: Worker processes that read ahead.
        seed: Seed of the training order. None takes the run's, or 0 without one.

    Raises:
        ValueError: an argument is out of range; when set up: there are no files, one is damaged or does not
            go together with the others; when read: a state is not finite.
    """

    trajectories: StoredTrajectories | None = None  # once it is set up

    def __init__(
        self,
        path: str,
        batch_size: int = 16,
        val_share: float = 0.1,
        num_workers: int = 0,
        seed: int | None = None,
    ) -> None:
        super().__init__(batch_size, num_workers, seed)
        self.save_hyperparameters()
        if not 0 <= val_share < 1:
            raise ValueError(f"val_share must be in [0, 1), got {val_share}")
        self.path, self.val_share = path, val_share

    def setup(self, stage: str) -> None:
        """Opens the files and splits the trajectories, the same for every stage and seed.

        Raises:
            ValueError: there are none, one is damaged, or they are incompatible.
        """
        files = _files(self.path)
        shards = [read_shard(file) for file in files]
        for file, shard in zip(files, shards, strict=True):
            _check_alike(file, shard, files[0], shards[0])
        index = torch.cat([shard.index for shard in shards])
        order = index.argsort(stable=True)
        new = index[order].diff(prepend=index.new_tensor([-1])) > 0
        rows = order[new]  # (N,) each number once, in order, wherever it was written
        held_out = round(self.val_share * len(rows))
        if self.val_share and not 0 < held_out < len(rows):
            raise ValueError(
                f"val_share={self.val_share} of {len(rows)} trajectories leaves {held_out} for validation "
                f"and {len(rows) - held_out} to train on: store more, or give val_share=0"
            )
        draws = rng.uniform(_SPLIT_SEED, 0, index[rows], (), "trajectories split", torch.float64)
        rank = draws.argsort().argsort()
        labels = [shard.label for shard in shards if shard.label is not None]  # all have them, or none
        label = torch.cat(labels) if labels else None
        states = Rows([shard.states for shard in shards])

        def table(chosen: Tensor) -> Table:
            columns = {"states": _Chosen(states, chosen), "number": index[chosen]}
            return Table(columns if label is None else columns | {"label": label[chosen]})

        self.train_set = table(rows[rank >= held_out])
        self.val_set = self.test_set = table(rows[rank < held_out]) if held_out else None
        self.shard = shards[0]
        self.trajectories = StoredTrajectories(
            count=len(rows) - held_out,
            times=self.shard.times,
            path=path_named(self.shard.path),
            shape=tuple(self.shard.states.shape[2:]),
            num_classes=self.shard.num_classes,
            highest_label=None if label is None else int(label.max()),
        )

    def transform(self, train: bool) -> Transform:
        """Batches with what all trajectories have in common."""
        return _Common(self.shard)


class _Chosen:
    """Some rows of a column: what `Table` needs of one."""

    def __init__(self, column: Rows, rows: Tensor) -> None:
        self.column, self.rows = column, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, where: Tensor) -> Tensor:
        return self.column[self.rows[where]]


class _Common:
    """From a batch of rows to one that a student learns from."""

    def __init__(self, shard: Shard) -> None:
        # Plain numbers: the Trainer moves tensors to its device, and rounds them to its precision.
        self.times, self.path = tuple(shard.times.tolist()), shard.path

    def __call__(self, batch: Batch, number: int) -> Batch:
        """A batch of pass ``number``.

        Raises:
            ValueError: a state is not finite.
        """
        states, index = batch["states"].float(), batch.pop("number")
        finite = states.flatten(1).isfinite().all(1)
        if not bool(finite.all()):
            raise ValueError(
                f"the stored trajectories {index[~finite].tolist()} are not finite: regenerate them "
                "(TrajectoryWriter writes no such file)"
            )
        return batch | {"states": states, "index": index, "times": self.times, "path": self.path}


def _files(path: str) -> list[Path]:
    """The shards that a path names, in the order of their names."""
    place = Path(path).expanduser()
    if place.is_file():
        return [place]
    found = [file for file in place.rglob("trajectories-*.safetensors") if file.is_file()]
    if not found:
        raise ValueError(
            f"path={path!r} is not a file, and no folder with files trajectories-*.safetensors: make them "
            "with zoo predict, the callback TrajectoryWriter and CMT's predict: trajectories, as the config "
            "flow/digits_trajectories does"
        )
    newest = max(found, key=lambda file: file.stat().st_mtime_ns).parent
    return sorted(file for file in found if file.parent == newest)


def _check_alike(file: Path, shard: Shard, first_file: Path, first: Shard) -> None:
    """Refuses a shard that is not of the same making as the first."""
    form, other = (f"{tuple(one.states.shape[1:])} of {one.states.dtype}" for one in (shard, first))
    labels, others = ("labels" if one.label is not None else "no labels" for one in (shard, first))
    for name, mine, wanted in (
        ("times", shard.times.tolist(), first.times.tolist()),
        ("path", shard.path, first.path),
        ("states", form, other),
        ("label", labels, others),
        ("origin", shard.origin, first.origin),
    ):
        if mine != wanted:
            raise ValueError(
                f"{file} is incompatible with {first_file}: its {name} is {mine}, there it is {wanted}. "
                "Keep what one run made in a folder of its own"
            )
