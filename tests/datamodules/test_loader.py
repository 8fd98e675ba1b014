"""The loader: order, shards, state."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo import rng
from zoo.datamodules._loader import Loader, Table


def table(size: int) -> Table:
    return Table({"x": torch.arange(size).float(), "label": torch.arange(size) % 3})


def indices(loader: Loader) -> list[list[int]]:
    return [batch["index"].tolist() for batch in loader]


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 60), batch=st.integers(1, 9), world=st.integers(1, 4))
def test_evaluation_sees_every_item_once(size: int, batch: int, world: int) -> None:
    if size < world:
        with pytest.raises(ValueError, match="cannot fill"):
            Loader(table(size), batch, train=False, rank=0, world_size=world)
        return
    shards = [
        indices(Loader(table(size), batch, train=False, rank=r, world_size=world)) for r in range(world)
    ]
    assert sorted(i for shard in shards for part in shard for i in part) == list(range(size))
    assert len({len(shard) for shard in shards}) == 1  # as many batches on every rank
    sizes = {len(part) for shard in shards for part in shard}
    assert max(sizes) <= max(batch, 2) and max(sizes) - min(sizes) <= 1 and min(sizes) > 0
    assert world > 1 or max(sizes) <= batch


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 60), batch=st.integers(1, 9), world=st.integers(1, 4), seed=st.integers(0, 5))
def test_ranks_share_the_global_batches_of_one_process(size: int, batch: int, world: int, seed: int) -> None:
    if size < batch * world:
        with pytest.raises(ValueError, match="lower batch_size"):
            Loader(table(size), batch, train=True, world_size=world)
        return
    whole = indices(Loader(table(size), batch * world, train=True, seed=seed))
    shards = [indices(Loader(table(size), batch, True, seed, rank, world)) for rank in range(world)]
    for k, joined in enumerate(whole):
        assert sorted(joined) == sorted(i for shard in shards for i in shard[k])
    flat = [i for part in whole for i in part]
    assert len(flat) == len(set(flat)) == size // (batch * world) * batch * world


@settings(max_examples=60, deadline=None)
@given(size=st.integers(4, 40), batch=st.integers(1, 4), stop=st.integers(0, 50), seed=st.integers(0, 3))
def test_state_continues_the_stream(size: int, batch: int, stop: int, seed: int) -> None:
    whole = Loader(table(size), batch, train=True, seed=seed)
    stream = [part for _ in range(60 // len(whole) + 2) for part in indices(whole)]
    cut = Loader(table(size), batch, train=True, seed=seed)
    seen: list[list[int]] = []
    while len(seen) < stop:
        for part in cut:
            seen.append(part["index"].tolist())
            if len(seen) == stop:
                break
    resumed = Loader(table(size), batch, train=True, seed=seed)
    resumed.load_state_dict(cut.state_dict())
    assert seen + indices(resumed) == stream[: stop + len(resumed)]


def test_passes_differ_and_seeds_differ() -> None:
    loader = Loader(table(50), 10, train=True)
    assert indices(loader) != indices(loader)
    assert indices(Loader(table(50), 10, True, seed=0)) != indices(Loader(table(50), 10, True, seed=1))


def test_a_second_iterator_before_the_first_batch_changes_nothing() -> None:
    loader = Loader(table(50), 10, train=True)
    iter(loader)
    assert indices(loader) == indices(Loader(table(50), 10, train=True))


def test_batches_hold_the_rows_of_their_index() -> None:
    for batch in Loader(table(20), 4, train=True, seed=3):
        assert batch["x"].equal(batch["index"].float()) and batch["label"].equal(batch["index"] % 3)


class Items(torch.utils.data.Dataset):
    """A plain map-style dataset, as users write them."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> dict[str, object]:
        return {"x": torch.full((2,), float(index)), "label": index}


@pytest.mark.parametrize("workers", [0, 2])
def test_plain_datasets_and_workers(workers: int) -> None:
    loader = Loader(Items(), 4, train=True, num_workers=workers)
    first = next(iter(loader))
    assert first["x"].shape == (4, 2) and first["label"].equal(first["index"])
    # With workers reading ahead, the state still counts what was given out.
    assert loader.state_dict()["position"] == 1


def test_nothing_global_is_drawn() -> None:
    before = torch.get_rng_state()
    indices(Loader(table(20), 4, train=True))
    assert torch.get_rng_state().equal(before)


def test_a_state_of_other_data_is_refused() -> None:
    state = Loader(table(20), 4, train=True, seed=1).state_dict()
    with pytest.raises(ValueError, match="had seed 1, this one has 2"):
        Loader(table(20), 4, train=True, seed=2).load_state_dict(state)
    with pytest.raises(ValueError, match="had length 5, this one has 4"):
        Loader(table(16), 4, train=True, seed=1).load_state_dict(state)


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        Loader(table(4), 0, train=True)
    with pytest.raises(ValueError, match="one length"):
        Table({"x": torch.zeros(3), "label": torch.zeros(4)})
    with pytest.raises(TypeError, match="items must be dicts"):
        next(iter(Loader(torch.arange(5), 2, train=False)))


@pytest.mark.parametrize("workers", [0, 2])
def test_transforms_depend_on_the_pass_and_the_item(workers: int) -> None:
    """An augmentation drawn from (seed, pass, index) is the same for any batch size, and after a resume."""

    def drawn(loader: Loader, count: int) -> dict[tuple[int, int], float]:
        found: dict[tuple[int, int], float] = {}
        while count:
            for batch in loader:
                keys = zip(batch["pass"].tolist(), batch["index"].tolist(), strict=True)
                found |= dict(zip(keys, batch["noise"].tolist(), strict=True))
                count -= 1
                if not count:
                    break
        return found

    def make(batch_size: int) -> Loader:
        return Loader(table(12), batch_size, train=True, num_workers=workers, transform=noise)

    whole, small = drawn(make(4), 9), drawn(make(2), 18)
    assert len(whole) == 36 == len(set(whole.values())) and whole == small
    cut, resumed = make(4), make(4)
    first = drawn(cut, 4)
    resumed.load_state_dict(cut.state_dict())
    assert first | drawn(resumed, 5) == whole


def noise(batch: dict[str, torch.Tensor], number: int) -> dict[str, torch.Tensor]:
    draws = rng.uniform(0, number, batch["index"], (), "noise", torch.float64)
    return batch | {"noise": draws, "pass": torch.full_like(batch["index"], number)}


def test_evaluation_transforms_are_of_pass_zero() -> None:
    loader = Loader(table(5), 2, train=False, transform=noise)
    for _ in range(2):
        assert all(batch["pass"].eq(0).all() for batch in loader)
