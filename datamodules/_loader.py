"""One loader for all datamodules: every batch is a function of (seed, position), and the loader has state.

Stock DataLoaders draw the order of each epoch from the global generator and start over on a resume. `Loader`
computes the order from its seed (`zoo.rng.permutation`), shards it over ranks by itself, and gives Lightning
a ``state_dict``, so a run resumed in mid-epoch sees the batches it would have seen. Each batch carries the
global index of its items under ``"index"``.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from zoo import rng

Batch = dict[str, Any]
Transform = Callable[
    [Batch, int], Batch
]  # a batch with its index, and the number of the pass, 0 in evaluation


class Table(Dataset):
    """Items held in memory, one row of each column; a batch is one indexing operation per column.

    Args:
        columns: Names to tensors (N, ...), or to what like them has a length and gives the rows of an index.
    """

    def __init__(self, columns: Mapping[str, Any]) -> None:
        lengths = {name: len(column) for name, column in columns.items()}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"columns must have one length, got {lengths}")
        self.columns = dict(columns)

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, index: int) -> Batch:
        return {name: column[index] for name, column in self.columns.items()}

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        where = torch.as_tensor(indices)
        return {name: column[where] for name, column in self.columns.items()}


class Places(Table):
    """Items that are nothing but a number: a transform draws them when they are asked for."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Batch:
        return {}

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        return {}


class _Indexed(Dataset):
    """A dataset whose batches carry the global indices of their items; it is asked for (pass, indices)."""

    def __init__(self, dataset: Any, collate: Callable[[Any], Any], transform: Transform | None) -> None:
        self.dataset, self.collate, self.transform = dataset, collate, transform

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, where: tuple[int, Sequence[int]]) -> Batch:
        number, indices = where
        if isinstance(self.dataset, Table):
            batch = self.dataset.__getitems__(indices)
        else:
            batch = self.collate([self.dataset[i] for i in indices])
        if not isinstance(batch, dict):
            raise TypeError(f"items must be dicts of fields, got {type(batch).__name__} after collating")
        batch |= {"index": torch.as_tensor(indices)}
        return batch if self.transform is None else self.transform(batch, number)


def _identity(batch: Any) -> Any:
    return batch


class Loader:
    """Batches of a map-style dataset in an order that depends on nothing but (seed, position).

    Training (``train=True``) is one endless stream of passes, each shuffled again, that iterators cut into
    epochs: the next iterator goes on where the last one stopped. The global batch of ``batch_size *
    world_size`` items is dealt out to the ranks in turn, and items that do not fill one more global batch are
    left to later passes. Evaluation: the order is fixed, each iterator starts again and every item comes
    exactly once; all ranks get equally many batches, whose sizes differ by one at most.

    Args:
        dataset: Items as dicts of fields.
        batch_size: Items per batch and rank.
        train: Shuffle, and keep whole batches only.
        seed: Seed of the order.
        rank: This process.
        world_size: Number of processes.
        num_workers: Worker processes that read ahead.
        pin_memory: Copy batches to pinned memory, for GPUs.
        collate: Makes a batch of a list of items; a `Table` needs none.
        transform: From a batch and the number of the pass over the data to a batch, where it is made. Random
            augmentations that draw by `zoo.rng` from (seed, that number, the batch's index) come back
            exactly when a run is resumed. The number is 0 in evaluation.

    Raises:
        ValueError: the dataset has too few items for one batch on every rank.
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int,
        train: bool,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
        pin_memory: bool = False,
        collate: Callable[[Any], Any] = default_collate,
        transform: Transform | None = None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        needed = batch_size * world_size if train else world_size
        if len(dataset) < needed:
            raise ValueError(
                f"{len(dataset)} items cannot fill one batch of {batch_size} on each of {world_size} "
                "processes: lower batch_size or the number of devices"
            )
        self.dataset = dataset
        self.batch_size = batch_size
        self.train = train
        self.seed = seed
        self.rank, self.world_size = rank, world_size
        self.num_workers, self.pin_memory = num_workers, pin_memory
        self.collate, self.transform = collate, transform
        self._position = 0  # batches given out so far, over all passes

    counts_over_epochs = True  # `ExactResume` restores such a loader at the end of an epoch, too

    def __len__(self) -> int:
        """Batches per pass on each rank."""
        per_step = self.batch_size * self.world_size
        if self.train:
            return len(self.dataset) // per_step
        # No rank may get an empty batch: with batch_size 1, a few batches hold two items instead.
        return min(-(-len(self.dataset) // per_step), len(self.dataset) // self.world_size)

    def batches(self, number: int) -> list[Tensor]:
        """The item indices of each batch of pass ``number`` on this rank."""
        if self.train:
            order = rng.permutation(self.seed, number, len(self.dataset))
            per_step = self.batch_size * self.world_size
            whole = order[: len(self) * per_step].reshape(len(self), self.batch_size, self.world_size)
            return list(whole[:, :, self.rank])  # dealt out in turn
        # Near-equal cells, batch-major: cell k * world_size + rank.
        cells = torch.arange(len(self.dataset)).tensor_split(len(self) * self.world_size)
        return list(cells[self.rank :: self.world_size])

    def __iter__(self) -> Iterator[Batch]:
        # A generator body: it runs at the first next(), so a second iter() before that changes nothing.
        number, offset = divmod(self._position if self.train else 0, len(self))
        order = [(number, batch.tolist()) for batch in self.batches(number)[offset:]]
        if offset:  # an epoch that begins inside a pass (limit_train_batches) runs on into the next pass
            order += [(number + 1, batch.tolist()) for batch in self.batches(number + 1)[:offset]]
        loader = DataLoader(
            _Indexed(self.dataset, self.collate, self.transform),
            batch_sampler=order,  # type: ignore[arg-type]
            collate_fn=_identity,
            num_workers=self.num_workers,
            pin_memory=self.pin_memory,
            generator=torch.Generator().manual_seed(0),  # its own: making an iterator draws nothing global
        )
        for batch in loader:
            self._position += 1  # counted when given out: workers may be further ahead
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Where the loader stands: enough to go on with the next batch."""
        return {"position": self._position, "seed": self.seed, "length": len(self)}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Goes on where `state_dict` was taken.

        Raises:
            ValueError: the state is of another seed, or of another number of items, batch size or processes.
        """
        for name, now in (("seed", self.seed), ("length", len(self))):
            if state[name] != now:
                raise ValueError(
                    f"cannot resume the data order: the checkpoint's loader had {name} {state[name]}, "
                    f"this one has {now}. Resume with the same data, seed, batch_size and number of processes"
                )
        self._position = state["position"]
