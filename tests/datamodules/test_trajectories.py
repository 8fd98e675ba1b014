"""Stored trajectories: order, split, what belongs together, what is refused."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from zoo.datamodules import Trajectories
from zoo.flow.trajectories import Shard, write_shard

TIMES = torch.tensor([1.0, 2.0 / 3.0, 0.1, 0.0], dtype=torch.float64)


def shard(items: list[int], **changes: Any) -> Shard:
    """Trajectory number k has states k, k + 0.25, ..., and the label k modulo 4."""
    numbers = torch.tensor(items)
    states = numbers[:, None, None] + 0.25 * torch.arange(4.0)[None, :, None].expand(-1, -1, 2)
    made = Shard(states, TIMES, numbers, numbers % 4, "LinearPath()", '{"num_classes": 3}')
    return replace(made, **changes)


def store(folder: Path, *shards: Shard) -> str:
    for number, made in enumerate(shards):
        write_shard(folder / f"trajectories-0-{number:05d}.safetensors", made)
    return str(folder)


def everything(data: Trajectories) -> dict[str, Any]:
    data.setup("fit")
    batches = list(data.reference_dataloader())
    joined = {name: torch.cat([batch[name] for batch in batches]) for name in ("states", "label", "index")}
    return joined | {name: batches[0][name] for name in ("times", "path")}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("workers", [0, 1])
def test_batches(dtype: torch.dtype, workers: int, tmp_path: Path) -> None:
    made = shard(list(range(10)))
    path = store(tmp_path, replace(made, states=made.states.to(dtype)))
    found = everything(Trajectories(path, batch_size=4, val_share=0, num_workers=workers))
    assert found["states"].equal(made.states) and found["states"].dtype == torch.float32
    assert found["index"].equal(made.index) and found["label"].equal(made.index % 4)
    assert found["times"] == tuple(TIMES.tolist()) and found["path"] == "LinearPath()"


def test_numbers_order_the_trajectories_and_each_comes_once(tmp_path: Path) -> None:
    """However many processes wrote them; an index keeps its number, also where one is missing."""
    path = store(tmp_path, shard([6, 2, 0]), shard([1, 2, 9]), shard([4]))
    found = everything(Trajectories(path, batch_size=2, val_share=0))
    assert found["index"].tolist() == [0, 1, 2, 4, 6, 9]
    assert found["states"].equal(shard([0, 1, 2, 4, 6, 9]).states)


def test_the_split_is_the_same_for_every_seed_and_batch_size(tmp_path: Path) -> None:
    path = store(tmp_path, shard(list(range(25))), shard(list(range(25, 40))))
    splits = []
    for seed, batch_size in ((0, 4), (7, 9)):
        data = Trajectories(path, batch_size=batch_size, val_share=0.2, seed=seed)
        train = everything(data)
        held_out = list(data.val_dataloader())
        index = torch.cat([batch["index"] for batch in held_out])
        states = torch.cat([batch["states"] for batch in held_out])
        assert states.equal(shard(index.tolist()).states) and len(index) == 8
        assert sorted(train["index"].tolist() + index.tolist()) == list(range(40))
        assert data.trajectories is not None and data.trajectories.count == 32
        assert len({int(k) % 4 for k in index}) > 1  # not every so-many-th, which may be of one class
        splits.append(index)
    assert splits[0].equal(splits[1])


def test_what_a_student_must_fit(tmp_path: Path) -> None:
    data = Trajectories(store(tmp_path, shard(list(range(8)))), val_share=0.25)
    assert data.trajectories is None
    data.setup("fit")
    form = data.trajectories
    assert form is not None and (form.count, form.steps, form.shape) == (6, 3, (2,))
    assert (form.num_classes, form.highest_label, repr(form.path)) == (3, 3, "LinearPath()")
    assert form.times.equal(TIMES)


def test_a_folder_of_runs_means_the_one_that_wrote_last(tmp_path: Path) -> None:
    for version, numbers in ((0, [0, 1]), (1, [5, 6, 7]), (2, [8])):
        store(tmp_path / f"version_{version}", shard(numbers))
    newest = tmp_path / "version_1" / "trajectories-0-00000.safetensors"
    later = newest.stat().st_mtime + 10
    os.utime(newest, (later, later))
    (tmp_path / "version_1" / "other.safetensors").write_bytes(b"not one of them")
    assert everything(Trajectories(str(tmp_path), 1, 0))["index"].tolist() == [5, 6, 7]
    assert everything(Trajectories(str(tmp_path / "version_0"), 1, 0))["index"].tolist() == [0, 1]
    assert everything(Trajectories(str(newest), 1, 0))["index"].tolist() == [5, 6, 7]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"times": TIMES * 0.999}, r"00001.* is incompatible with .*00000.*its times is \[0.999"),
        ({"path": "TrigonometricPath(sigma_data=0.5)"}, r"its path is Trig.*, there it is LinearPath\(\)"),
        ({"states": torch.zeros(1, 4, 3)}, r"its states is \(4, 3\) of torch.float32, there it is \(4, 2\)"),
        ({"states": torch.zeros(1, 4, 2).half()}, r"its states is \(4, 2\) of torch.float16"),
        ({"label": None}, "its label is no labels, there it is labels"),
        ({"origin": '{"omega": 2}'}, r"its origin is \{\"omega\": 2\}.*Keep what one run made in a folder"),
    ],
)  # fmt: skip
def test_shards_must_go_together(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    data = Trajectories(store(tmp_path, shard([0, 1]), shard([2], **changes)), val_share=0)
    with pytest.raises(ValueError, match=message):
        data.setup("fit")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"times": TIMES.flip(0)}, "00000.safetensors: times must be .* decrease from noise to data"),
        ({"times": TIMES[:1], "states": torch.zeros(2, 1, 2)}, "at least two finite numbers"),
        ({"times": TIMES.half()}, "got torch.float16, which has blurred them"),
        ({"path": "Nowhere()"}, "path must be one of"),
        ({"states": torch.zeros(2, 3, 2)}, r"states must be floats \(N, 4, ...\).*got \(2, 3, 2\)"),
        ({"states": torch.zeros(2, 4, 2).long()}, "must be floats .* torch.int64"),
        ({"index": torch.tensor([0, -1])}, r"index must be \(2,\), whole numbers from 0 up"),
        ({"index": torch.arange(3)}, r"index must be \(2,\)"),
        ({"label": torch.tensor([0.0, 1.0])}, r"label must be \(2,\), whole numbers.*float32"),
        ({"origin": "made by hand"}, "00000.safetensors: origin must be a JSON object, got 'made by hand'"),
        ({"origin": "[1]"}, r"origin must be a JSON object, got '\[1\]'"),
    ],
)  # fmt: skip
def test_what_is_no_shard(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    data = Trajectories(store(tmp_path, shard([0, 1], **changes)), val_share=0)
    with pytest.raises(ValueError, match=message):
        data.setup("fit")


def test_files_that_are_damaged_or_missing(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"path='nowhere' is not a file, and no folder with files traj.*zoo predict"
    ):
        Trajectories("nowhere").setup("fit")
    file = Path(store(tmp_path, shard([0, 1]))) / "trajectories-0-00000.safetensors"
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(ValueError, match="is not a whole safetensors file"):
        Trajectories(str(tmp_path)).setup("fit")
    save_file({"latents": torch.zeros(2)}, file)
    with pytest.raises(
        ValueError, match=r"lacks \['index', 'states', 'times'\], so it holds no trajectories"
    ):
        Trajectories(str(tmp_path)).setup("fit")


def test_states_that_are_not_finite(tmp_path: Path) -> None:
    """No writer of ours leaves any; a file from elsewhere is found out where its batch is read."""
    made = shard([3, 4, 5])
    made.states[1, 2, 0] = float("nan")
    data = Trajectories(store(tmp_path, made), batch_size=3, val_share=0)
    data.setup("fit")
    with pytest.raises(ValueError, match=r"the stored trajectories \[4\] are not finite"):
        next(iter(data.train_dataloader()))


def test_bad_arguments(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"val_share must be in \[0, 1\), got 1.0"):
        Trajectories("x", val_share=1.0)
    with pytest.raises(ValueError, match=r"val_share=0.1 of 3 trajectories leaves 0 for validation and 3 to"):
        Trajectories(store(tmp_path, shard([0, 1, 2]))).setup("fit")
    data = Trajectories(str(tmp_path), val_share=0)
    data.setup("test")
    with pytest.raises(ValueError, match="was given no data to test on"):
        data.test_dataloader()


def test_states_are_mapped_not_loaded(tmp_path: Path) -> None:
    """A cache may be larger than the memory: 64 MB of states on disk, a few rows of them in memory."""
    count = 2000
    wide = Shard(torch.zeros(count, 4, 2000), TIMES, torch.arange(count), None, "LinearPath()")
    path = store(tmp_path, wide)

    def resident() -> int:
        status = Path("/proc/self/status").read_text()
        return sum(
            int(line.split()[1]) for line in status.splitlines() if line.startswith(("RssAnon", "RssFile"))
        )

    before = resident()
    data = Trajectories(path, batch_size=4, val_share=0)
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert batch["states"].shape == (4, 4, 2000)
    assert resident() - before < 16_000  # kB; the states alone would be 62,500
