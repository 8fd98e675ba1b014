"""The reader: what honest files hold, and nothing at all of what hostile ones would do."""

import builtins
import io
import os
import pickle
import random
import struct
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import UNETS, preconditioned, write_pickle

from zoo.flow.convert import read_checkpoint
from zoo.flow.convert.stored import StoredTensor
from zoo.pickles import Global, Inert


def load(value: Any, tmp_path: Path, protocol: int = 4) -> Any:
    path = tmp_path / "file.pkl"
    path.write_bytes(value if isinstance(value, bytes) else pickle.dumps(value, protocol))
    return read_checkpoint(path)


@pytest.mark.parametrize("protocol", range(6))
def test_every_protocol(protocol: int, tmp_path: Path) -> None:
    shared = ["a", 1.5, -3, 2**70, None, True, "é\n", ("x",), (1, 2), (1, 2, 3), (1, 2, 3, 4), {}]
    value = {"one": shared, "two": shared, 3: {"bytes": b"\x00\xff", "ordered": OrderedDict(b=1, a=2)}}
    got = load(value, tmp_path, protocol)
    assert got == value
    assert got["one"] is got["two"]  # what was one object is one object


def tensors() -> dict[str, torch.Tensor]:
    base = torch.arange(24.0)
    return {
        "whole": base.reshape(2, 3, 4),
        "view": base[5:9],
        "turned": base.reshape(4, 6).T,
        "number": torch.tensor(3.5, dtype=torch.float64),
        "empty": torch.zeros(0, 3),
        "half": torch.randn(3).half(),
        "bfloat16": torch.randn(3).bfloat16(),
        "integers": torch.tensor([1, -2]),
        "bytes": torch.tensor([1, 255], dtype=torch.uint8),
        "flags": torch.tensor([True, False]),
        "parameter": torch.nn.Parameter(torch.randn(2, 2)),
        "one of many": torch.randn(4, 1, 1),
    }


def save_old(value: Any, path: Path) -> None:
    torch.save(value, path, _use_new_zipfile_serialization=False)


WRITERS: dict[str, Callable[[Any, Path], Any]] = {
    "zip": torch.save,
    "old": save_old,
    **{
        f"pickle {n}": lambda value, path, n=n: path.write_bytes(pickle.dumps(value, n)) for n in (2, 3, 4, 5)
    },
}


@pytest.mark.parametrize("writer", WRITERS)
def test_tensors_of_every_format(writer: str, tmp_path: Path) -> None:
    expected = tensors()
    WRITERS[writer](expected, tmp_path / "x.pt")
    got = read_checkpoint(tmp_path / "x.pt")
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        assert isinstance(got[name], StoredTensor) and got[name].shape == tuple(value.shape)
        tensor = got[name].read()
        assert tensor.dtype == value.dtype and tensor.equal(value.detach()), name


def test_modules_stay_records(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 3), tmp_path / "x.pt")
    got = read_checkpoint(tmp_path / "x.pt")
    assert isinstance(got, Inert) and str(got.made_by) == "torch.nn.modules.linear.Linear"
    assert got.state["_parameters"]["weight"].shape == (3, 2) and got.state["in_features"] == 2


class Call:
    """Pickles as a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def by_hand(*parts: bytes) -> bytes:
    return b"\x80\x02" + b"".join(parts) + b"."


CANARY = "canary"
COMMAND = f"open({CANARY!r}, 'w').close()"


def hostile() -> dict[str, bytes]:
    """Files each of which makes the canary where it is unpickled."""
    text = b"X" + struct.pack("<I", len(COMMAND)) + COMMAND.encode()
    nested = io.BytesIO()
    pickle.dump(Call(builtins.exec, COMMAND), nested)
    archive = io.BytesIO()
    torch.save({"a": Call(builtins.exec, COMMAND)}, archive)
    old = io.BytesIO()
    torch.save({"a": Call(builtins.exec, COMMAND)}, old, _use_new_zipfile_serialization=False)
    chain = (
        b"cbuiltins\ngetattr\n(cbuiltins\n__import__\n(Vbuiltins\ntRVexec\ntR(V" + COMMAND.encode() + b"\ntR."
    )
    return {
        "exec": pickle.dumps(Call(builtins.exec, COMMAND)),
        "eval": pickle.dumps({"ema": [Call(builtins.eval, COMMAND)]}),
        "system": pickle.dumps(Call(os.system, f"touch {CANARY}")),
        "protocol 0": pickle.dumps(Call(builtins.exec, COMMAND), 0),
        "getattr chain": chain,
        "inst": b"(S" + repr(COMMAND).encode() + b"\nibuiltins\nexec\n.",
        "obj": by_hand(b"(cbuiltins\nexec\n", text, b"o"),
        "storage bytes": pickle.dumps(Call(pickle.loads, nested.getvalue())),
        "zip": archive.getvalue(),
        "old format": old.getvalue(),
    }


@pytest.fixture(scope="module")
def watched() -> Iterator[list[str]]:
    """What the interpreter is asked to do: names found by pickle, code run, processes started, imports."""
    seen: list[str] = []
    on = [True]

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        names = (
            "pickle.find_class",
            "exec",
            "compile",
            "import",
            "os.system",
            "os.exec",
            "os.posix_spawn",
            "subprocess.Popen",
        )
        if on[0] and event in names:
            seen.append(f"{event} {arguments!r:.200}")

    sys.addaudithook(hook)  # there is no way to take it off again, so it is switched off
    yield seen
    on[0] = False


@pytest.mark.parametrize("name", hostile())
def test_hostile_files_do_nothing(name: str, tmp_path: Path, watched: list[str]) -> None:
    path = tmp_path / "x.pkl"
    path.write_bytes(hostile()[name])
    read_checkpoint(path)  # whatever has to be imported, once
    watched.clear()
    got = read_checkpoint(path)
    assert watched == [], watched
    assert not (tmp_path / CANARY).exists()
    assert isinstance(got, Inert | dict | tuple | Global)
    # It would have: this is what the reader is for.
    if name in ("zip", "old format"):
        torch.load(path, weights_only=False)
    else:
        pickle.loads(hostile()[name])
    assert (tmp_path / CANARY).exists()


def stored(data: bytes) -> bytes:
    """A pickle of a tensor whose storage is these bytes."""
    storage = Call(torch.storage._load_from_bytes, data)
    return pickle.dumps(Call(torch._utils._rebuild_tensor_v2, storage, 0, (2,), (1,), False, OrderedDict()))


def whole_storage() -> bytes:
    buffer = io.BytesIO()
    memory = torch.arange(2.0).untyped_storage()
    storage = torch.storage.TypedStorage(wrap_storage=memory, dtype=torch.float32, _internal=True)
    torch.save(storage, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def zipped(change: Callable[[str, bytes], bytes | None], how: int = zipfile.ZIP_STORED) -> bytes:
    """An archive of torch.save with its files changed."""
    source, made = io.BytesIO(), io.BytesIO()
    torch.save({"a": torch.zeros(1000)}, source)
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(made, "w", how) as new:
        for entry in old.infolist():
            content = change(entry.filename, old.read(entry))
            if content is not None:
                new.writestr(entry.filename, content)
    return made.getvalue()


def tensor_call(offset: Any = 0, shape: Any = (2,), stride: Any = (1,)) -> bytes:
    storage = Call(torch.storage._load_from_bytes, whole_storage())
    return pickle.dumps(
        Call(torch._utils._rebuild_tensor_v2, storage, offset, shape, stride, False, OrderedDict())
    )


def nested_tuple(depth: int = 60) -> bytes:
    """A key whose hash would take 2^depth steps."""
    return by_hand(b"}", b")", b"q\x00h\x00\x86" * depth, b"Ns")


REFUSED: dict[str, tuple[bytes, str]] = {
    "text": (b"hello world\n", "cannot be read as a checkpoint"),
    "picture": (b"\x89PNG\r\n\x1a\n" + bytes(20), "cannot be read as a checkpoint"),
    "safetensors": (struct.pack("<Q", 2) + b"{}", "cut short or not a pickle"),
    "a bytes object of 2^62": (by_hand(b"\x8e" + struct.pack("<Q", 2**62)), "cut short or not a pickle"),
    "a text of 2^31": (by_hand(b"X" + struct.pack("<I", 2**31 - 1) + b"abc"), "cut short or not a pickle"),
    "empty stack": (by_hand(b"a"), "list index out of range"),
    "no mark": (by_hand(b"Nt"), "pop from empty list"),
    "unknown memo": (by_hand(b"h\x07"), "Memo value not found at index 7"),
    "append to a number": (by_hand(b"K\x01Na"), "puts items into a value of type int"),
    "odd items": (by_hand(b"}(Nu"), "list index out of range"),
    "list as a key": (by_hand(b"}]Ns"), "list as a key"),
    "key of tuples": (nested_tuple(), "tuple as a key"),
    "extension": (by_hand(b"\x82\x01"), "extension code"),
    "future protocol": (b"\x80\x09N.", "protocol: 9"),
    "persistent id": (by_hand(b"NQ"), "persistent id"),
    "call with a list": (by_hand(b"cos\nsystem\n]R"), "list for arguments"),
    "name of no text": (b"\x80\x04K\x01K\x02\x93.", "requires str"),
    "hostile storage": (stored(pickle.dumps(Call(builtins.exec, COMMAND))), "hold something else"),
    "storage in a storage": (
        stored(pickle.dumps(Call(torch.storage._load_from_bytes, b"x"))),
        "within a storage",
    ),
    "storage cut short": (stored(whole_storage()[:-1]), "ends within the data"),
    "storage of text": (pickle.dumps(Call(torch.storage._load_from_bytes, "x")), "is no bytes"),
    "negative offset": (tensor_call(offset=-1), "cannot be"),
    "shape of text": (tensor_call(shape=("a",)), "cannot be"),
    "strides missing": (tensor_call(stride=()), "cannot be"),
    "too few arguments": (pickle.dumps(Call(torch._utils._rebuild_tensor_v2, 1)), "that do not fit"),
    "archive without data": (
        zipped(lambda name, data: None if "/data/" in name else data),
        "archive lacks data/0",
    ),
    "archive without pickle": (
        zipped(lambda name, data: None if name.endswith(".pkl") else data),
        "not of torch.save",
    ),
    "compressed archive": (zipped(lambda name, data: data, zipfile.ZIP_DEFLATED), "is compressed"),
    "other byte order": (
        zipped(lambda name, data: b"big" if name.endswith("byteorder") else data),
        "byte order of another kind",
    ),
}  # fmt: skip


def read_whole(path: Path) -> None:
    """Reads all tensors, whose data are read when they are wanted."""
    value = read_checkpoint(path)
    for item in value.values() if isinstance(value, dict) else (value,):
        if isinstance(item, StoredTensor):
            item.read()


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    content, message = REFUSED[name]
    (tmp_path / "x.pkl").write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_whole(tmp_path / "x.pkl")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


@pytest.mark.parametrize(
    "arguments",
    [
        {"shape": (3,)},
        {"offset": 1},
        {"shape": (10**12,), "stride": (0,)},
        {"shape": (2, 2), "stride": (1, 0)},
        {"shape": (0, 2**40), "stride": (1, 1)},
    ],
)
def test_a_tensor_is_made_of_numbers_that_are_there(arguments: dict[str, Any], tmp_path: Path) -> None:
    tensor = load(tensor_call(**arguments), tmp_path)
    with pytest.raises(ValueError, match=r"would reach to number|absurd shape"):
        tensor.read()


def test_files_that_are_not_there_or_empty(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.pkl", tmp_path):
        with pytest.raises(ValueError, match="there is no file"):
            read_checkpoint(path)
    (tmp_path / "empty.pkl").touch()
    with pytest.raises(ValueError, match="is empty"):
        read_checkpoint(tmp_path / "empty.pkl")


@pytest.mark.parametrize("writer", ["zip", "old", "pickle 4"])
def test_files_cut_short_or_damaged_say_so_and_nothing_worse(writer: str, tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    WRITERS[writer]({"a": torch.randn(20), "b": torch.zeros(3).half(), "c": {"d": [1, "x"]}}, path)
    content = path.read_bytes()
    for end in range(1, len(content), max(1, len(content) // 60)):
        path.write_bytes(content[:end])
        with pytest.raises(ValueError, match=r"cannot be read as a checkpoint|cut short|lacks data"):
            read_whole(path)
    draw = random.Random(0)
    refused = 0
    for _ in range(300):
        damaged = bytearray(content)
        for _ in range(draw.randint(1, 4)):
            damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        path.write_bytes(damaged)
        try:
            read_whole(path)
        except ValueError:
            refused += 1
    assert refused > 20


def test_a_damaged_pickle_of_modules(tmp_path: Path) -> None:
    from zoo.flow.convert import convert_checkpoint

    path = write_pickle(tmp_path / "x.pkl", {"ema": preconditioned(UNETS["ddpm++"]())})
    content, draw = path.read_bytes(), random.Random(1)
    for _ in range(25):
        damaged = bytearray(content)
        for _ in range(20):
            damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        path.write_bytes(damaged)
        with suppress(ValueError):  # and nothing else
            convert_checkpoint(path, tmp_path / "x.safetensors")
