"""Windows of tokens: what a language model is trained on, cut from memory or from a mapped file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zoo.datamodules._loader import Batch, Table


class TokenFile:
    """A part of a file of tokens without a header, mapped into memory; only pages that are used are read.

    The mapping is opened where it is used, so that workers get a path and not its contents.

    Args:
        path: The file.
        dtype: ``"uint16"`` or ``"uint32"``, little-endian, as nanoGPT writes them.
        start: First token of the part.
        stop: The one behind its last.
    """

    def __init__(self, path: Path, dtype: str, start: int, stop: int) -> None:
        self.path, self.dtype, self.start, self.stop = path, np.dtype(dtype).newbyteorder("<"), start, stop
        self._array: NDArray[Any] | None = None

    @classmethod
    def whole(cls, path: Path, dtype: str, argument: str) -> "TokenFile":
        """A file from its first token to its last.

        Raises:
            ValueError: the file is missing or empty, or ends within a token.
        """
        if not path.is_file():
            raise ValueError(f"{argument}={str(path)!r}: no such file")
        size, width = path.stat().st_size, np.dtype(dtype).itemsize
        if size == 0 or size % width:
            raise ValueError(
                f"{argument}={str(path)!r} has {size} bytes, which is not a number of tokens of {width} "
                f"bytes ({dtype}), at least one: the file is empty or cut short, or dtype is another"
            )
        return cls(path, dtype, 0, size // width)

    def part(self, start: int, stop: int) -> "TokenFile":
        """The tokens from ``start`` to ``stop`` of this part."""
        return TokenFile(self.path, self.dtype.name, self.start + start, self.start + stop)

    def __len__(self) -> int:
        return self.stop - self.start

    def __getitem__(self, where: Any) -> NDArray[Any]:
        if self._array is None:
            self._array = np.asarray(np.memmap(self.path, self.dtype, "r"))[self.start : self.stop]
        return self._array[where]

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_array": None}


class Windows(Table):
    """Windows of ``context + 1`` tokens; each shares one token with the next, which is its last target.

    Args:
        tokens: Ids (N,).
        context: Inputs of a window; its targets are one token further.
        vocab_size: Ids must be below it.
        name: What the tokens come from, for messages.
        length: Tokens that are given out of each window; None gives all. Prompts are shorter.
    """

    def __init__(
        self,
        tokens: "NDArray[Any] | TokenFile",
        context: int,
        vocab_size: int,
        name: str,
        length: int | None = None,
    ) -> None:
        self.tokens, self.context, self.vocab_size, self.name = tokens, context, vocab_size, name
        self.length = context + 1 if length is None else length

    def __len__(self) -> int:
        return max(len(self.tokens) - 1, 0) // self.context

    def __getitem__(self, index: int) -> Batch:
        return {"tokens": self._rows(torch.tensor([index]))[0]}

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        return {"tokens": self._rows(torch.as_tensor(indices))}

    def _rows(self, index: Tensor) -> Tensor:
        starts = index.numpy()[:, None] * self.context
        tokens = self.tokens[starts + np.arange(self.length)]  # (B, length)
        if (highest := int(tokens.max())) >= self.vocab_size:
            raise ValueError(
                f"{self.name} has the token {highest}, but vocab_size={self.vocab_size}: give the vocab_size "
                "of the tokenizer that made the file, or its dtype, if that is another"
            )
        return torch.from_numpy(tokens.astype(np.int64))

    def prompts(self, length: int) -> "Windows":
        """The first ``length`` tokens of each window."""
        return Windows(self.tokens, self.context, self.vocab_size, self.name, length)
