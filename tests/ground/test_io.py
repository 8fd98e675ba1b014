"""Files are whole or absent; damage is found; nothing is executed."""

import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from zoo import io


def test_atomic_write_leaves_the_old_file_when_it_fails(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file.txt"
    io.atomic_write(path, "old")

    def fail() -> None:
        with io.atomic_path(path) as temporary:
            temporary.write_text("half of the new")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert path.read_text() == "old"
    assert os.listdir(path.parent) == ["file.txt"]
    io.atomic_write(path, b"new")
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o666 & ~io._umask()


def test_an_atomic_write_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """First the file, then its name, then the folder that holds the name."""
    done: list[str] = []
    flush, rename = os.fsync, os.replace

    def noted_flush(handle: int) -> None:
        done.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file")
        flush(handle)

    def noted_rename(old: str, new: Path) -> None:
        done.append("name")
        rename(old, new)

    monkeypatch.setattr(os, "fsync", noted_flush)
    monkeypatch.setattr(os, "replace", noted_rename)
    io.atomic_write(tmp_path / "x.txt", "content")
    assert done == ["file", "name", "folder"]


def test_a_killed_writer_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file.bin"
    io.atomic_write(path, "old")
    code = (
        "import sys, time; from zoo.io import atomic_path\n"
        f"with atomic_path({str(path)!r}) as temporary:\n"
        "    temporary.write_bytes(b'x' * 1000); print('writing', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert path.read_text() == "old"


def test_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "events.jsonl"
    for step in range(3):
        io.append_json(path, {"step": step, "message": "grüße"})
    assert [record["step"] for record in io.read_json_lines(path)] == [0, 1, 2]
    with open(path, "a") as file:
        file.write('{"step": 3, "mess')  # a crash in mid-line
    assert len(io.read_json_lines(path)) == 3
    path.write_text('{"step": 0}\nnot json\n{"step": 1}\n')
    with pytest.raises(ValueError, match="line 2"):
        io.read_json_lines(path)


TENSORS = {
    "weight": torch.arange(12.0).reshape(3, 4).T,  # a view that is not contiguous
    "half": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "count": torch.tensor(7),
    "empty": torch.zeros(0, 3),
    "mask": torch.tensor([True, False]),
}


def test_tensors_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    io.save_tensors(path, TENSORS, {"source": "here"})
    loaded, metadata = io.load_tensors(path)
    assert metadata == {"source": "here"}
    assert loaded.keys() == TENSORS.keys()
    assert all(
        loaded[name].equal(value) and loaded[name].dtype == value.dtype for name, value in TENSORS.items()
    )


def test_every_flipped_byte_is_found(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    io.save_tensors(path, TENSORS)
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    for place in range(header, len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="damaged"):
            io.load_tensors(path)


def test_every_damaged_tensor_is_named(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    io.save_tensors(path, {f"w{k}": torch.full((1000,), float(k)) for k in range(8)})
    assert io.verify_tensors(path) == []
    whole = bytearray(path.read_bytes())
    first = 8 + int.from_bytes(whole[:8], "little")
    for place in (2, 5):
        whole[first + 4000 * place + 17] ^= 4
    path.write_bytes(whole)
    damage = io.verify_tensors(path)
    assert [(part.name, part.kind, part.reason) for part in damage] == [
        ("w2", "tensor", "differs from its sha256"),
        ("w5", "tensor", "differs from its sha256"),
    ]
    with pytest.raises(ValueError, match="tensor 'w2' differs from its sha256, tensor 'w5' differs from its"):
        io.load_tensors(path)
    path.write_bytes(whole.replace(b'"w7"', b'"v7"'))  # in the header: there is no w7, but a sum of it
    assert str(io.verify_tensors(path)[0]) == "tensor 'w7' is missing"
    for lazy in (False, True):
        with pytest.raises(ValueError, match="damaged: tensor 'w7' is missing"):
            io.load_tensors(path, lazy=lazy)
    for place in range(8):
        whole[first + 4000 * place] ^= 1
    path.write_bytes(whole)
    with pytest.raises(ValueError, match=r"'w4' differs from its sha256, and 3 more$"):
        io.load_tensors(path)


def test_verifying_reads_a_tensor_at_a_time(tmp_path: Path) -> None:
    """Files larger than the memory can be verified; ours has 100 MB."""
    path = tmp_path / "large.safetensors"
    io.save_tensors(path, {f"w{k}": torch.zeros(2_500_000) for k in range(10)})
    code = (
        "import re, sys; from zoo.io import sha256, verify_tensors; import torch, safetensors.torch\n"
        "def peak(): return int(re.search(r'RssAnon:\\s+(\\d+) kB', open('/proc/self/status').read())[1])\n"
        "before = peak(); import zoo.io as io; seen = []\n"
        "io.sha256 = lambda tensor: (sha256(tensor), seen.append(peak()))[0]\n"
        "assert verify_tensors(sys.argv[1]) == []; print(max(seen) - before)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 40_000


def test_what_cannot_be_verified_is_said(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"w": torch.ones(3)}, tmp_path / "x.safetensors")
    with pytest.warns(UserWarning, match="no checksums"):
        assert io.verify_tensors(tmp_path / "x.safetensors") == []
    (tmp_path / "x.txt").write_text("neither")
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        io.verify_tensors(tmp_path / "x.txt")


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_a_file_cut_short_is_found(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "weights.safetensors"
    io.save_tensors(path, TENSORS)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        io.load_tensors(path)


def test_a_mapped_file_is_read_where_it_is_used(tmp_path: Path) -> None:
    """Lazily no sum is compared, but a file cut short is found."""
    path = tmp_path / "x.safetensors"
    io.save_tensors(path, {"x": torch.arange(100.0)}, {"note": "kept"})
    tensors, metadata = io.load_tensors(path, lazy=True)
    assert tensors["x"].equal(torch.arange(100.0)) and metadata == {"note": "kept"}
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    changed, _ = io.load_tensors(path, lazy=True)
    assert not changed["x"].equal(torch.arange(100.0))
    with pytest.raises(ValueError, match="differs from its sha256"):
        io.load_tensors(path)
    path.write_bytes(content[:-1])
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        io.load_tensors(path, lazy=True)


def test_sums_see_dtype_and_shape() -> None:
    zeros = torch.zeros(4)
    sums = {io.sha256(t) for t in (zeros, zeros.reshape(2, 2), zeros.int(), zeros.double(), zeros + 1)}
    assert len(sums) == 5
    assert io.sha256(zeros.expand(3, 4)) == io.sha256(torch.zeros(3, 4))


def test_checkpoints_execute_nothing(tmp_path: Path) -> None:
    marker = tmp_path / "ran"

    class Hostile:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(marker),)

    path = tmp_path / "evil.ckpt"
    torch.save({"state_dict": {}, "x": Hostile()}, path)
    for lazy in (False, True):
        with pytest.raises(ValueError, match="could run code"):
            io.load_checkpoint(path, lazy=lazy)
    assert not marker.exists()


def test_checkpoint_errors_say_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        io.load_checkpoint(tmp_path / "none.ckpt")
    path = tmp_path / "a.ckpt"
    torch.save({"state_dict": {"w": torch.ones(1000)}}, path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match="is damaged or was cut short"):
        io.load_checkpoint(path)
    torch.save([1, 2], path)
    with pytest.raises(ValueError, match="not a Lightning checkpoint"):
        io.load_checkpoint(path)


def test_appending_is_one_write_per_line(tmp_path: Path) -> None:
    """Two processes that append at once never mix their lines."""
    path = tmp_path / "events.jsonl"
    code = (
        "import sys; from zoo.io import append_json\n"
        f"for k in range(200): append_json({str(path)!r}, {{'who': sys.argv[1], 'k': k, 'pad': 'x' * 300}})"
    )
    writers = [subprocess.Popen([sys.executable, "-c", code, who]) for who in "ab"]
    deadline = time.monotonic() + 60
    for writer in writers:
        assert writer.wait(deadline - time.monotonic()) == 0
    records = [json.loads(line) for line in path.read_text().splitlines()]
    for who in "ab":
        assert [record["k"] for record in records if record["who"] == who] == list(range(200))
