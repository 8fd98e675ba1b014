"""Files that are either whole or absent, and loads that execute nothing and notice damage.

Every file the zoo writes goes to a temporary name in the same folder, is flushed to disk, and then renamed,
so a crash leaves the old file or the new one. Tensors are kept as safetensors with a sha256 for each tensor
in the header; checkpoints are compared with the checksums in their archive and read with
``weights_only=True``, never any other way. `AtomicCheckpointIO` gives any Trainer both.
"""

import hashlib
import json
import os
import pickle
import re
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from zoo.archives import Damage, damage_of_archive, is_archive, listed
from zoo.archives import check_archive as check_archive

if TYPE_CHECKING:
    from zoo.checkpoint_io import AtomicCheckpointIO as AtomicCheckpointIO

TEMPORARY = ".tmp-"  # what the names of unfinished files begin with; a killed process leaves one behind
_SHA = "sha256:"  # prefix of our keys in a safetensors header


def __getattr__(name: str) -> Any:
    if name != "AtomicCheckpointIO":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from zoo.checkpoint_io import AtomicCheckpointIO  # imports Lightning, which the rest does without

    return AtomicCheckpointIO


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary path to write to; it becomes ``path`` when the block ends without an error.

    Args:
        path: The file to make. Missing parent folders are made.

    Yields:
        The temporary path, in the same folder and with the same suffix.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f"{TEMPORARY}{path.stem}-", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    try:
        yield Path(name)
        # Flush before the rename: after a power cut the new name holds new bytes.
        with open(name, "rb+") as file:
            os.fsync(file.fileno())
        os.chmod(name, 0o666 & ~_umask())  # mkstemp makes private files
        os.replace(name, path)
        _flush_folder(path.parent)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(name)


def _flush_folder(folder: Path) -> None:
    """Makes a rename survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_temporary(folder: str | Path) -> None:
    """Deletes what killed processes left unfinished below a folder that no living process writes to."""
    for path in Path(folder).rglob(f"{TEMPORARY}*"):
        path.unlink(missing_ok=True)


def atomic_write(path: str | Path, content: str | bytes) -> None:
    """Writes ``content`` (text as UTF-8) to ``path``, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def append_json(path: str | Path, record: Mapping[str, Any]) -> None:
    """Appends one JSON line in one write, so that readers never see half a line of a living process."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    line = (json.dumps(record) + "\n").encode()
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        os.write(handle, line)
    finally:
        os.close(handle)


def read_json_lines(path: str | Path) -> list[dict[str, Any]]:
    """The records of a JSON-lines file; a last line cut short by a crash is left out.

    Raises:
        ValueError: a line other than the last is not JSON.
    """
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number < len(lines):
                raise ValueError(f"{path}, line {number} is not JSON: {error}") from error
    return records


def sha256(tensor: Tensor) -> str:
    """Checksum of a tensor's dtype, shape and values.

    >>> sha256(torch.zeros(2)) == sha256(torch.zeros(2)), sha256(torch.zeros(2)) == sha256(torch.zeros(1, 2))
    (True, False)
    """
    digest = hashlib.sha256(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    if flat.numel():
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def save_tensors(
    path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Saves tensors as one safetensors file that carries the sha256 of each tensor in its header.

    Args:
        path: The file to make.
        tensors: Names to tensors; views and shared memory are written out in full.
        metadata: Further text for the header.
    """
    from safetensors.torch import save_file

    whole = {
        name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
    }
    header = dict(metadata or {}) | {_SHA + name: sha256(tensor) for name, tensor in whole.items()}
    with atomic_path(path) as temporary:
        save_file(whole, temporary, metadata=header)


def load_tensors(
    path: str | Path, device: str = "cpu", lazy: bool = False
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Loads a safetensors file and compares each tensor with its checksum, where the file has one.

    Args:
        path: The file.
        device: Where to put the tensors.
        lazy: Map the file rather than read it, and compare no checksum: for files larger than the memory.

    Returns:
        The tensors, and the header's metadata without the checksums.

    Raises:
        ValueError: the file is not safetensors, or tensors are not those that were saved; all are named.
    """
    with _open_safetensors(path) as file:
        metadata = dict(file.metadata() or {})
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no __iter__)
    sums = _checksums(metadata)
    if damage := _damage(tensors.keys(), None if lazy else tensors.__getitem__, sums):
        raise ValueError(f"{path} is damaged: {listed(damage)}")
    plain = {key: value for key, value in metadata.items() if not key.startswith(_SHA)}
    return {name: tensor.to(device) for name, tensor in tensors.items()}, plain


def verify_tensors(path: str | Path) -> list[Damage]:
    """Which tensors of a file are damaged, all of them: for a repair, or a report.

    Args:
        path: A safetensors file of `save_tensors`, which is read a tensor at a time, or a checkpoint (a file
            of `torch.save`), whose damaged records are traced to the tensors that they hold. Files without
            checksums are warned of.

    Returns:
        One entry for each; none if the file is whole.

    Raises:
        ValueError: the file is neither, or is cut short.
    """
    if is_archive(path):
        return damage_of_archive(Path(path))
    with _open_safetensors(path) as tensors:
        sums = _checksums(tensors.metadata() or {})
        if not sums:
            warnings.warn(f"{path} has no checksums: damage would go unnoticed", stacklevel=2)
        return _damage(set(tensors.keys()), tensors.get_tensor, sums)


@contextmanager
def _open_safetensors(path: str | Path) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt", device="cpu") as file:
            yield file
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}") from error


def _checksums(metadata: Mapping[str, str]) -> dict[str, str]:
    return {key.removeprefix(_SHA): value for key, value in metadata.items() if key.startswith(_SHA)}


def _damage(names: Set[str], read: Callable[[str], Tensor] | None, sums: Mapping[str, str]) -> list[Damage]:
    """Tensors that are missing and, with ``read``, those that differ from their checksums."""
    missing = [Damage(name, "is missing") for name in sorted(sums.keys() - names)]
    if read is None:
        return missing
    changed = [name for name in sorted(sums) if name in names and sha256(read(name)) != sums[name]]
    return missing + [Damage(name, "differs from its sha256") for name in changed]


def checkpoint_files(folder: str | Path) -> list[Path]:
    """The ``.ckpt`` files below a folder, unfinished ones left out."""
    found = Path(folder).rglob("*.ckpt")
    return sorted(path for path in found if path.is_file() and not path.name.startswith(TEMPORARY))


def load_checkpoint(path: str | Path, lazy: bool = False) -> dict[str, Any]:
    """Reads a Lightning checkpoint on the CPU, tensors and plain values only.

    Args:
        path: A local file.
        lazy: Map the file rather than hold it: cheap in memory where only a few entries are wanted.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, is not a checkpoint, or holds objects beyond tensors and plain
            values.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    check_archive(path)
    return peek_checkpoint(path, lazy)


def peek_checkpoint(path: Path, lazy: bool = True) -> dict[str, Any]:
    """`load_checkpoint` without comparing checksums: for the counters in many large files.

    Raises:
        ValueError: as there.
    """
    try:
        mapped = lazy and zipfile.is_zipfile(path)  # PyTorch's old format cannot be mapped
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise ValueError(
            f"{path} cannot be loaded as tensors and plain values ({_cause(error)}). A file cut short is "
            "damaged; one that holds Python objects is refused, since loading it could run code."
        ) from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise ValueError(f"{path} is not a Lightning checkpoint: it has no 'state_dict'")
    return checkpoint


def _cause(error: BaseException) -> str:
    """What torch's reader found, without its advice to switch the safety off."""
    if isinstance(error, pickle.UnpicklingError):
        named = re.search(r"GLOBAL (\S+) was not an allowed global", str(error))
        return f"it names {named[1]}" if named else "it is no file of torch.save"
    return str(error).partition("\n")[0] or type(error).__name__


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
