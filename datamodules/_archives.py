"""Arrays in ``.npz`` and ``.safetensors`` files, mapped into memory where the file allows it."""

import struct
import tokenize
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

ENDINGS = (".npz", ".safetensors")


class Rows:
    """The rows of several tensors one after another, without a copy: what `Table` needs of a column.

    Args:
        parts: Tensors (N_i, ...) of one shape but for the first dimension.
    """

    def __init__(self, parts: Sequence[Tensor]) -> None:
        self.parts = list(parts)
        self.ends = torch.tensor([len(part) for part in self.parts]).cumsum(0)

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, where: Tensor) -> Tensor:
        """Rows (B, ...) by their numbers (B,)."""
        number = torch.bucketize(where, self.ends, right=True)
        first = self.parts[0]
        rows = torch.empty(len(where), *first.shape[1:], dtype=first.dtype)
        for part in number.unique().tolist():
            mine = number == part
            start = int(self.ends[part]) - len(self.parts[part])
            rows[mine] = self.parts[part][where[mine] - start]
        return rows


def read_archive(path: Path) -> dict[str, Tensor]:
    """The arrays of a file by name. Pickled objects are refused.

    ``.safetensors`` and uncompressed ``.npz`` files are mapped: they may be larger than the memory.

    Raises:
        ValueError: the file is damaged, or holds what is not an array of numbers.
    """
    try:
        return _safetensors(path) if path.suffix == ".safetensors" else _npz(path)
    except (
        ValueError,
        TypeError,
        KeyError,
        OSError,
        EOFError,
        RuntimeError,  # a member that says it is encrypted
        NotImplementedError,  # or packed in a way that is not known
        OverflowError,
        MemoryError,  # an array that says it is larger than any memory
        tokenize.TokenError,  # a header that is not a Python literal
        struct.error,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise ValueError(f"{path} cannot be read: {error}. A file cut short is damaged") from error


def _safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt", device="cpu") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no __iter__)
    except SafetensorError as error:
        raise ValueError(str(error)) from error


def _npz(path: Path) -> dict[str, Tensor]:
    found = {}
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            name = member.filename.removesuffix(".npy")
            if member.compress_type == zipfile.ZIP_STORED:
                array = _mapped(path, member)
            else:
                with archive.open(member) as file:
                    array = np.lib.format.read_array(file, allow_pickle=False)
            found[name] = torch.from_numpy(array)
    return found


def _mapped(path: Path, member: zipfile.ZipInfo) -> np.ndarray:
    """An array that lies in the archive as it is; its pages are read when they are used."""
    with open(path, "rb") as file:
        file.seek(member.header_offset)
        header = file.read(30)
        if header[:4] != b"PK\x03\x04":
            raise ValueError(f"{member.filename} is not where the archive says")
        name, extra = struct.unpack("<HH", header[26:30])
        file.seek(name + extra, 1)
        begin = file.tell()
        version = np.lib.format.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"{member.filename} is of numpy's format {version}, which is not known here")
        read = (
            np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        )
        shape, column_major, dtype = read(file)
        if dtype.hasobject:
            raise ValueError(f"{member.filename} holds Python objects, which are not read")
        offset = file.tell()
    if offset - begin + dtype.itemsize * int(np.prod(shape)) != member.file_size:
        raise ValueError(f"{member.filename} has another length than its header says")
    # Copy on write: torch wants an array that could be written.
    return np.memmap(path, dtype, "c", offset, shape, "F" if column_major else "C")
