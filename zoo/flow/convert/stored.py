"""Tensors of a checkpoint before their numbers are read, which are made only of numbers that are there."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class Storage:
    """A stretch of numbers: where they come from, and their type (None where the tensor says it)."""

    def __init__(self, read: Callable[[], bytes], dtype: torch.dtype | None, count: int | None) -> None:
        self._read, self.dtype, self.count = read, dtype, count
        self._tensors: dict[torch.dtype, Tensor] = {}

    def numbers(self, dtype: torch.dtype) -> Tensor:
        """All of them, flat."""
        if dtype not in self._tensors:
            data = self._read()
            whole = len(data) // dtype.itemsize
            if self.count is not None and self.dtype is not None:
                if self.count > whole:
                    raise ValueError(
                        f"a tensor's data are cut short: {whole} of {self.count} numbers are there"
                    )
                whole = self.count
            flat = torch.empty(0, dtype=dtype)
            if whole:
                flat = torch.frombuffer(bytearray(memoryview(data)[: whole * dtype.itemsize]), dtype=dtype)
            self._tensors[dtype] = flat
        return self._tensors[dtype]


class StoredTensor:
    """A tensor of a checkpoint before its numbers are read.

    Attributes:
        shape: Its shape.
    """

    def __init__(self, storage: Any, offset: Any, shape: Any, stride: Any, dtype: Any = None) -> None:
        numbers = (offset, *(shape if isinstance(shape, tuple) else [None]))
        numbers += stride if isinstance(stride, tuple) else (None,)
        whole = all(type(number) is int and number >= 0 for number in numbers)
        if not isinstance(storage, Storage) or not whole or len(shape) != len(stride) or len(shape) > 32:
            raise ValueError("it describes a tensor that cannot be: it is damaged, or made to be")
        dtype = storage.dtype if dtype is None else dtype
        if not isinstance(dtype, torch.dtype):
            raise ValueError("it describes a tensor whose numbers have no known type")
        self.shape: tuple[int, ...] = shape
        self._storage, self._offset, self._stride, self._dtype = storage, offset, stride, dtype

    def read(self) -> Tensor:
        """The tensor.

        Raises:
            ValueError: it would need numbers that are not there, or more of them than there are.
        """
        flat = self._storage.numbers(self._dtype)
        count = math.prod(self.shape)
        pairs = zip(self.shape, self._stride, strict=True)
        last = self._offset + sum((size - 1) * step for size, step in pairs)
        if count and (last >= len(flat) or count > len(flat)):
            raise ValueError(
                f"a tensor of shape {self.shape} would reach to number {last} of {len(flat)} that are stored"
            )
        if not count:
            return torch.empty(self.shape, dtype=self._dtype) if max(self.shape) < 2**31 else _too_large()
        return flat.as_strided(self.shape, self._stride, self._offset).contiguous()


def _too_large() -> Tensor:
    raise ValueError("it describes an empty tensor of an absurd shape")
