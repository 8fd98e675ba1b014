"""Files of `torch.save` compared with their checksums: they are zip archives, and PyTorch compares nothing.

Without this, most flipped bytes load as other values. A damaged record is traced to the tensors whose numbers
it holds by reading the archive's pickle inertly (`zoo.pickles`).
"""

import io
import warnings
import zipfile
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

from zoo.pickles import Inert, read_pickle

_SHOWN = 5  # damaged parts that a message names
_LONGEST = 200  # characters of a tensor's name


class Damage(NamedTuple):
    """A part of a file that is not what was saved.

    Attributes:
        name: Of the tensor; of the record where it belongs to no tensor, or nobody knows to which.
        reason: What is wrong with it.
        kind: Which of the two it is.
    """

    name: str
    reason: str
    kind: Literal["tensor", "record"] = "tensor"

    def __str__(self) -> str:
        return f"{self.kind} {self.name!r} {self.reason}"


class _Storage(NamedTuple):
    """What stands in a pickle for the numbers of a tensor."""

    record: str


def check_archive(path: str | Path) -> None:
    """Compares each record of a file of `torch.save` with its CRC-32.

    Files without checksums (PyTorch's old format, or ``torch.serialization.set_crc32_options(False)``) are
    warned of: nothing can be said of them. A whole file is read once a process, unless it changes; 200 MB
    take .1 s.

    Args:
        path: A local file.

    Raises:
        ValueError: a record differs from its checksum (the message names its tensors), the archive is not
            whole, or it is compressed: `torch.save` never compresses, and a small file could inflate to fill
            the memory.
    """
    path = Path(path).absolute()
    state = path.stat()
    _check_archive(path, state.st_size, state.st_mtime_ns, state.st_ino)


@lru_cache(maxsize=256)
def _check_archive(path: Path, *identity: int) -> None:
    if damage := damage_of_archive(path):
        raise ValueError(f"{path} is damaged: {listed(damage)}")


def listed(damage: list[Damage]) -> str:
    """Damaged parts in one line, the first ones if there are many."""
    rest = f", and {len(damage) - _SHOWN} more" if len(damage) > _SHOWN else ""
    return ", ".join(map(str, damage[:_SHOWN])) + rest


def is_archive(path: str | Path) -> bool:
    """Whether a file begins as those of `torch.save` do, its old format left out."""
    with open(path, "rb") as file:
        return file.read(4) == b"PK\x03\x04"


def damage_of_archive(path: Path) -> list[Damage]:
    """What differs from its checksum in a file of `torch.save`, by tensors where they are known.

    Raises:
        ValueError: the archive is not whole, or it is compressed.
    """
    if not is_archive(path):
        warnings.warn(f"{path} has no checksums (no zip archive): damage would go unnoticed", stacklevel=4)
        return []
    try:
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
            if any(record.compress_type != zipfile.ZIP_STORED for record in records) or (
                sum(record.file_size for record in records) > path.stat().st_size
            ):
                raise ValueError(
                    f"{path} is refused: it unpacks to more than its size, which torch.save never makes"
                )
            if all(record.CRC == 0 for record in records):
                warnings.warn(f"{path} was saved without checksums: damage would go unnoticed", stacklevel=4)
                return []
            damaged = [record.filename for record in records if not _is_whole(archive, record)]
            names = _tensor_names(archive, damaged) if damaged else {}
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, OSError) as error:
        raise ValueError(f"{path} is damaged or was cut short: {error}") from error
    reason = "differs from its checksum"
    return [
        Damage(name, reason, "tensor" if record in names else "record")
        for record in damaged
        for name in names.get(record, [record])
    ]


def _is_whole(archive: zipfile.ZipFile, record: zipfile.ZipInfo) -> bool:
    try:
        with archive.open(record) as file:
            while file.read(1 << 20):
                pass
    except zipfile.BadZipFile:
        return False
    return True


def _tensor_names(archive: zipfile.ZipFile, damaged: Iterable[str]) -> dict[str, list[str]]:
    """Names of the tensors of a file by the record that holds their numbers; none if they cannot be known."""
    pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
    if len(pickles) != 1 or pickles[0] in damaged:
        return {}
    try:
        found = storages(read_pickle(io.BytesIO(archive.read(pickles[0])), persistent=_storage))
    except ValueError:  # not a pickle of torch.save, which whoever loads it will say
        return {}
    root = pickles[0].removesuffix("data.pkl")
    return {f"{root}data/{record}": sorted(names) for record, names in found.items()}


def _storage(key: Any) -> _Storage:
    """The record of ``("storage", class, record, device, length)``."""
    if not isinstance(key, tuple) or len(key) < 3 or not isinstance(key[2], str):
        raise ValueError("it refers to a storage by something that names none")
    return _Storage(key[2])


def storages(value: Any) -> dict[str, list[str]]:
    """The names of each storage in a value that was read inertly: keys and places with dots between them.

    A container that is reached by several names has one of them.
    """
    found: dict[str, list[str]] = {}
    seen: set[int] = set()
    waiting: list[tuple[str, Any]] = [("", value)]
    while waiting:
        name, value = waiting.pop()
        if isinstance(value, _Storage):
            found.setdefault(value.record, []).append(name.removeprefix("."))
            continue
        if id(value) in seen:
            continue
        seen.add(id(value))
        parts: Iterable[tuple[Any, Any]] = ()
        if isinstance(value, Inert):
            waiting += [(name, part) for part in (*value.arguments, value.state)]
            parts = [*value.pairs.items(), *enumerate(value.items)]
        elif isinstance(value, dict):
            parts = value.items()
        elif isinstance(value, list | tuple):
            parts = enumerate(value)
        waiting += [(f"{name}.{_shown(key)}"[:_LONGEST], part) for key, part in parts]
    return found


def _shown(key: Any) -> str:
    return key[:_LONGEST] if isinstance(key, str) else f"{key}" if isinstance(key, int) else "?"
