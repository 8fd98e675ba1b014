"""Checkpoint files of PyTorch, read without executing them: plain pickles, and both formats of `torch.save`.

A tensor in a pickle is a call of one of PyTorch's helpers on a storage, which is a file of the archive, a
stretch behind the pickle, or (in a plain pickle) a whole file of the old format as bytes. The calls are read
as `StoredTensor`, and a tensor is made only of numbers that are there.
"""

import io
import mmap
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from zoo.flow.convert.stored import Storage, StoredTensor
from zoo.pickles import Global, Inert, Stream, describe, read_pickle

_MAGIC = 0x1950A86A20F9469CFC6C  # first value of a file of torch.save's old format
_ZIP = b"PK\x03\x04"
_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_NAMED = {str(dtype).removeprefix("torch."): dtype for dtype in _DTYPES.values()}


def read_checkpoint(path: str | Path) -> Any:
    """Reads a checkpoint file of PyTorch, of any of its formats.

    Args:
        path: The file.

    Returns:
        Plain values, containers, `StoredTensor`, and `Global` and `Inert` where objects would have been.

    Raises:
        ValueError: there is no such file, or it cannot be read as one.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no file {path}: give the checkpoint's file")
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty: it was not written, or not copied, to its end")
    file = open(path, "rb")  # noqa: SIM115 (stays open for the tensors, which are read when they are wanted)
    # Mapped, a length that is not there costs nothing; a file would make room for it first.
    stream: Stream = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if stream[:4] == _ZIP:
        stream = file
    try:
        return _read(stream, nested=False)
    except ValueError as error:
        raise ValueError(f"{path} cannot be read as a checkpoint: {_line(error)}") from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _read(stream: Stream, nested: bool) -> Any:
    start = stream.read(4)
    stream.seek(0)
    if start == _ZIP:
        return _read_archive(stream, nested)
    value = read_pickle(stream, _caller(nested))
    return _read_old(stream, nested) if value == _MAGIC else value


def _read_archive(stream: Stream, nested: bool) -> Any:
    """The format of today: a zip archive with ``data.pkl`` and one file for each storage."""
    try:
        archive = zipfile.ZipFile(stream)
    except (zipfile.BadZipFile, NotImplementedError) as error:
        raise ValueError(f"its archive is cut short or damaged ({error})") from error
    entries = {entry.filename: entry for entry in archive.infolist()}
    roots = [name.removesuffix("data.pkl") for name in entries if name.endswith("/data.pkl")]
    if len(roots) != 1:
        raise ValueError("it is a zip archive, but not of torch.save (it has no data.pkl of its own)")
    root = roots[0]

    def content(name: str) -> bytes:
        entry = entries.get(root + name)
        if entry is None:
            raise ValueError(f"its archive lacks {name}")
        # torch.save never compresses, and what is stored as it is cannot be larger than the file.
        if entry.compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"{name} of its archive is compressed, which torch.save never does")
        try:
            return archive.read(entry)
        # What zipfile raises at a damaged or encrypted entry, long after the archive was opened.
        except (zipfile.BadZipFile, RuntimeError, NotImplementedError, EOFError, OSError) as error:
            raise ValueError(f"{name} of its archive is damaged ({error})") from error

    if f"{root}byteorder" in entries and content("byteorder").strip() != sys.byteorder.encode():
        raise ValueError("its numbers are in the byte order of another kind of machine")

    def persistent(key: Any) -> Storage:
        dtype, name, count = _storage_id(key)
        return Storage(lambda: content(f"data/{name}"), dtype, count)

    return read_pickle(io.BytesIO(content("data.pkl")), _caller(nested), persistent)


def _read_old(stream: Stream, nested: bool) -> Any:
    """The old format, behind its magic number: version, machine, pickle, names of storages, storages."""
    inert = _caller(nested)
    version, machine = read_pickle(stream, inert), read_pickle(stream, inert)
    if version != 1001 or not isinstance(machine, dict):
        raise ValueError(
            f"it is of version {describe(version)} of torch.save's old format, and 1001 is known"
        )
    if machine.get("little_endian", True) != (sys.byteorder == "little"):
        raise ValueError("its numbers are in the byte order of another kind of machine")
    contents: dict[str, bytes] = {}
    sizes: dict[str, int] = {}

    def persistent(key: Any) -> Any:
        if isinstance(key, tuple) and len(key) == 4 and key[0] == "module" and isinstance(key[1], Global):
            return key[1]  # a class, with its source code
        dtype, name, count = _storage_id(key)
        if dtype is None:
            raise ValueError("it holds a storage without a type")
        if sizes.setdefault(name, dtype.itemsize) != dtype.itemsize:
            raise ValueError("it reads one storage as two types")
        return Storage(lambda: contents[name], dtype, count)

    value = read_pickle(stream, inert, persistent)
    names = read_pickle(stream, inert)
    if not isinstance(names, list) or not all(isinstance(name, str) and name in sizes for name in names):
        raise ValueError("its list of storages is damaged")
    for name in names:
        count = int.from_bytes(stream.read(8), sys.byteorder)
        rest = stream.read(min(count * sizes[name], 2**62))
        if len(rest) != count * sizes[name]:
            raise ValueError(
                f"it ends within the data of a tensor ({len(rest)} of {count * sizes[name]} bytes)"
            )
        contents[name] = rest
    if missing := sorted(sizes.keys() - contents.keys()):
        raise ValueError(f"it lacks the data of {len(missing)} of its {len(sizes)} storages")
    return value


def _storage_id(key: Any) -> tuple[torch.dtype | None, str, int | None]:
    """Type, name and length of ``("storage", class, name, device, length)``."""
    if not isinstance(key, tuple) or len(key) not in (5, 6) or key[0] != "storage":
        raise ValueError("it refers to data by something other than a storage")
    kind, name, count = key[1], key[2], key[4]
    if key[5:] not in ((), (None,)):
        raise ValueError("it holds a view of a storage, as versions of PyTorch before 0.4 made them")
    if not isinstance(kind, Global) or not isinstance(name, str) or type(count) is not int or count < 0:
        raise ValueError("it refers to a storage by something that names none")
    if kind.module not in ("torch", "torch.storage") or kind.name not in (*_DTYPES, "UntypedStorage"):
        raise ValueError(f"it holds a storage of the unknown kind {kind}")
    return _DTYPES.get(kind.name), name, count


def _caller(nested: bool) -> Callable[[Global, tuple[Any, ...]], Any]:
    """What calls stand for; within the bytes of a storage no further bytes are read."""

    def call(function: Global, arguments: tuple[Any, ...]) -> Any:
        known = _CALLS.get(function)
        if known is None:
            return NotImplemented
        if known is _bytes_storage and nested:
            raise ValueError("it holds a storage within a storage, which PyTorch never writes")
        try:
            return known(*arguments)
        except TypeError as error:
            raise ValueError(f"it calls {function} with arguments that do not fit: it is damaged") from error

    return call


def _bytes_storage(data: Any) -> Storage:
    """What a plain pickle holds for a storage: a file of torch.save as bytes."""
    if not isinstance(data, bytes):
        raise ValueError("it holds a storage that is no bytes")
    value = _read(io.BytesIO(data), nested=True)
    if not isinstance(value, Storage):
        raise ValueError("it holds bytes for a storage that hold something else")
    return value


def _tensor(storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> StoredTensor:
    return StoredTensor(storage, offset, shape, stride)


def _tensor_of_type(
    storage: Any, offset: Any, shape: Any, stride: Any, grad: Any, hooks: Any, dtype: Any, *_: Any
) -> StoredTensor:
    if not isinstance(dtype, Global) or dtype.module != "torch" or dtype.name not in _NAMED:
        raise ValueError(f"it holds a tensor of the unknown type {describe(dtype)}")
    return StoredTensor(storage, offset, shape, stride, _NAMED[dtype.name])


def _with_attributes(function: Any, kind: Any, arguments: Any, state: Any) -> Any:
    """A tensor with attributes of its own, which are left out."""
    if not isinstance(function, Global) or not isinstance(arguments, tuple) or function not in _CALLS:
        return Inert(function, (kind, arguments, state))
    if _CALLS[function] not in (_tensor, _tensor_of_type):
        raise ValueError(f"it makes a tensor by {function}")
    return _CALLS[function](*arguments)


def _first(value: Any, *_: Any) -> Any:
    return value


def _ordered(*pairs: Any) -> dict[Any, Any]:
    if pairs:
        raise ValueError("it fills an OrderedDict in a way that no checkpoint does")
    return {}


def _encoded(text: Any, encoding: Any = "latin1") -> bytes:
    """How bytes are written in protocols that have none."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise ValueError("it holds bytes in an encoding that pickles do not use")
    try:
        return text.encode("latin1")
    except UnicodeEncodeError as error:
        raise ValueError("it holds bytes beyond 255: it is damaged") from error


_CALLS: dict[Global, Callable[..., Any]] = {
    Global("torch.storage", "_load_from_bytes"): _bytes_storage,
    Global("torch._utils", "_rebuild_tensor"): _tensor,
    Global("torch._utils", "_rebuild_tensor_v2"): _tensor,
    Global("torch._utils", "_rebuild_tensor_v3"): _tensor_of_type,
    Global("torch._utils", "_rebuild_parameter"): _first,
    Global("torch._utils", "_rebuild_parameter_with_state"): _first,
    Global("torch._tensor", "_rebuild_from_type_v2"): _with_attributes,
    Global("collections", "OrderedDict"): _ordered,
    Global("_codecs", "encode"): _encoded,
}
