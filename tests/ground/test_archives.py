"""Damage in checkpoints is traced to the tensors that have it."""

import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from zoo import archives
from zoo.archives import Damage, check_archive
from zoo.io import load_checkpoint, verify_tensors

CHECKSUM = "differs from its checksum"


def damage(path: Path, *records: str) -> None:
    """Flips a bit in the middle of records."""
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        for record in records:
            entry = archive.getinfo(f"{path.stem}/{record}")
            start = entry.header_offset + 26  # lengths of the name and of what comes before the content
            name, extra = (int.from_bytes(content[k : k + 2], "little") for k in (start, start + 2))
            content[entry.header_offset + 30 + name + extra + entry.file_size // 2] ^= 4
    path.write_bytes(content)


def record_of(path: Path, tensor: str) -> str:
    """Where a tensor's numbers are, by their value: each is filled with its own."""
    with zipfile.ZipFile(path) as archive:
        wanted = torch.load(path, weights_only=True)
        for key in tensor.split("/"):
            wanted = wanted[int(key) if key.isdigit() else key]
        data = wanted.contiguous().view(torch.uint8).numpy().tobytes()
        found = [name for name in archive.namelist() if archive.read(name) == data]
    return found[0].partition("/")[2]


def checkpoint(path: Path) -> Path:
    """A checkpoint as Lightning saves it, with an optimizer's state."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(20, 30), nn.Linear(30, 20))
    optimizer = torch.optim.AdamW(network.parameters())
    network(torch.randn(5, 20)).square().sum().backward()
    optimizer.step()
    state = {f"network.{name}": value for name, value in network.state_dict().items()}
    tied = {"tied.a": network[0].weight.detach(), "tied.b": network[0].weight.detach()[:5]}
    ordered = network.state_dict()  # an OrderedDict with attributes
    torch.save(
        {"state_dict": state | tied, "optimizer_states": [optimizer.state_dict()], "ema": ordered}, path
    )
    return path


def test_damaged_tensors_are_named(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "x.ckpt")
    assert verify_tensors(path) == []
    load_checkpoint(path)
    average = "optimizer_states/0/state/3/exp_avg"
    damage(path, record_of(path, average), record_of(path, "state_dict/network.1.bias"))
    names = {"optimizer_states.0.state.3.exp_avg", "state_dict.network.1.bias", "ema.1.bias"}
    assert {str(part) for part in verify_tensors(path)} == {f"tensor {name!r} {CHECKSUM}" for name in names}
    for refuse in (check_archive, load_checkpoint):
        with pytest.raises(ValueError, match=rf"x.ckpt is damaged: tensor 'ema.1.bias' {CHECKSUM}, tensor"):
            refuse(path)


def test_tensors_that_share_their_numbers_are_all_named(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "x.ckpt")
    damage(path, record_of(path, "state_dict/tied.a"))
    names = ["ema.0.weight", "state_dict.network.0.weight", "state_dict.tied.a", "state_dict.tied.b"]
    assert verify_tensors(path) == [Damage(name, CHECKSUM) for name in names]


def test_parameters_and_modules_are_traced(tmp_path: Path) -> None:
    """What a training script may have saved."""
    path = tmp_path / "x.pt"
    torch.save([nn.Linear(3, 4), {"p": nn.Parameter(torch.ones(7))}], path)
    with zipfile.ZipFile(path) as archive:
        records = [name.partition("/")[2] for name in archive.namelist() if "/data/" in name]
    damage(path, *records)
    found = {part.name for part in verify_tensors(path)}
    assert found == {"0._parameters.weight", "0._parameters.bias", "1.p"}


def test_a_damaged_pickle_leaves_the_names_of_records(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "x.ckpt")
    damage(path, "data.pkl", "data/0", "version")
    found = [
        ("x/data.pkl", CHECKSUM, "record"),
        ("x/data/0", CHECKSUM, "record"),
        ("x/version", CHECKSUM, "record"),
    ]
    assert sorted(verify_tensors(path)) == found
    with pytest.raises(ValueError, match=r"is damaged: record 'x/data.pkl' differs from its checksum"):
        check_archive(path)


def test_whole_files_are_not_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = checkpoint(tmp_path / "x.ckpt")
    monkeypatch.setattr(archives, "read_pickle", None)
    check_archive(path)
    damage(path, "data/1")
    with pytest.raises(TypeError):
        check_archive(path)


def hostile(content: Any) -> bytes:
    return content if isinstance(content, bytes) else pickle.dumps(content, 2)


LOOP: list[Any] = []
LOOP += [LOOP, {"again": LOOP}]
SHARED: Any = []
for _ in range(100):
    SHARED = [SHARED, SHARED]
LONG: Any = {}
for _ in range(300):
    LONG = {"k" * 10_000: LONG}


@pytest.mark.parametrize(
    "content",
    [b"no pickle", b"\x80\x02NQ.", b"\x80\x02cos\nsystem\nX\x01\x00\x00\x00a\x85R.", LOOP, SHARED, LONG],
    ids=["no pickle", "no storage", "a call", "a loop", "shared", "long"],
)
def test_hostile_pickles_name_records_cheaply(content: Any, tmp_path: Path) -> None:
    """The pickle of a file with a damaged record may be as its attacker likes, with a checksum that fits."""
    path = tmp_path / "x.ckpt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", hostile(content))
        archive.writestr("x/data/0", bytes(range(200)))
    damage(path, "data/0")
    assert verify_tensors(path) == [Damage("x/data/0", CHECKSUM, "record")]


def test_names_have_a_bounded_length() -> None:
    nested: Any = archives._Storage("0")
    for _ in range(300):
        nested = {"k" * 10_000: nested}
    [[name]] = archives.storages(nested).values()
    assert len(name) < 250
