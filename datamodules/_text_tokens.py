"""Tokenizers of `Text`: bytes, byte-pair encoding trained on the text itself, or one from a file."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from zoo.io import atomic_write

BYTES = 256
_FORM = "bpe-1"  # of the cache: another number when training changes


class Tokenizer(Protocol):
    """Text to token ids and back."""

    size: int  # ids are 0 to size - 1

    def encode(self, texts: Sequence[str]) -> NDArray[Any]:
        """The ids (N,) of texts one after another."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; bytes that are no UTF-8 become U+FFFD."""
        ...


class Bytes:
    """UTF-8: a token is a byte."""

    size = BYTES

    def encode(self, texts: Sequence[str]) -> NDArray[Any]:
        """The bytes (N,) of texts one after another."""
        return np.frombuffer("".join(texts).encode(), dtype=np.uint8)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of bytes."""
        return bytes(ids).decode("utf-8", errors="replace")


class Subwords:
    """A tokenizer of the `tokenizers` package, without special tokens around a text.

    Args:
        tokenizer: The tokenizer.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.size = 1 + max(tokenizer.get_vocab(with_added_tokens=True).values())

    def encode(self, texts: Sequence[str]) -> NDArray[Any]:
        """The ids (N,) of texts one after another, each encoded by itself."""
        kind = np.uint16 if self.size <= 1 << 16 else np.uint32
        encoded = self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return np.concatenate([np.asarray(text.ids, dtype=kind) for text in encoded] or [np.zeros(0, kind)])

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens included."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=False)


def train_bpe(texts: Iterable[str], vocab_size: int) -> Subwords:
    """Byte-pair encoding on bytes, as GPT-2's but for its vocabulary: any text comes back from its tokens.

    Args:
        texts: What to train on; the same texts give the same tokenizer.
        vocab_size: Ids: the 256 bytes, and the most frequent merges.

    Raises:
        ValueError: the texts have too few different pairs for so many ids.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        show_progress=False,
        special_tokens=[],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator(texts, trainer)
    if (found := tokenizer.get_vocab_size()) < vocab_size:
        raise ValueError(
            f"vocab_size={vocab_size}: the training text has pairs for {found} tokens only. Lower vocab_size "
            "or give more text"
        )
    return Subwords(tokenizer)


def cache_file(folder: str | Path, texts: Iterable[str], vocab_size: int) -> Path:
    """The file that holds the tokenizer of these texts and this size in a cache folder."""
    import tokenizers

    digest = hashlib.sha256(f"{_FORM} {tokenizers.__version__} {vocab_size}".encode())
    for text in texts:
        digest.update(hashlib.sha256(text.encode()).digest())
    return Path(folder).expanduser() / f"bpe-{digest.hexdigest()[:32]}.json"


def store(file: Path, tokenizer: Subwords) -> None:
    """Writes a tokenizer with its checksum, whole or not at all."""
    text = tokenizer.tokenizer.to_str()
    atomic_write(file, json.dumps({"sha256": hashlib.sha256(text.encode()).hexdigest(), "tokenizer": text}))


def restore(file: Path) -> Subwords | None:
    """The tokenizer of a cache file, or None where there is none, or one that is damaged: retrain it."""
    if not file.is_file():
        return None
    from tokenizers import Tokenizer

    try:
        kept = json.loads(file.read_bytes())
    except ValueError:
        kept = None
    text = kept.get("tokenizer") if isinstance(kept, dict) else None
    if not isinstance(text, str) or hashlib.sha256(text.encode()).hexdigest() != kept.get("sha256"):
        from lightning.pytorch.utilities import rank_zero_warn

        rank_zero_warn(f"{file} is damaged: the tokenizer is retrained and the file replaced")
        return None
    return Subwords(Tokenizer.from_str(text))


def from_file(path: str) -> Subwords:
    """The tokenizer of a ``tokenizer.json``, or of a transformers folder that holds one. Nothing is fetched.

    Raises:
        ValueError: the file does not exist, or it is none.
    """
    from tokenizers import Tokenizer

    place = Path(path).expanduser()
    file = place / "tokenizer.json" if place.is_dir() else place
    if not file.is_file():
        raise ValueError(
            f"tokenizer={path!r}: no file {file.name} there; expected 'bytes', 'bpe', a tokenizer.json, or a "
            "folder with one (AutoTokenizer.from_pretrained(...).save_pretrained(folder) writes it)"
        )
    try:
        return Subwords(Tokenizer.from_str(file.read_text(encoding="utf-8")))
    except Exception as error:  # the package raises nothing more special
        raise ValueError(f"tokenizer={path!r}: {file} is not a tokenizer of transformers: {error}") from error
