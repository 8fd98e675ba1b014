"""Text for language models: English and sources that ship with Python, local files, or files of tokens."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from torch import Tensor

from zoo.datamodules._base import SplitDataModule
from zoo.datamodules._loader import Loader
from zoo.datamodules._text_documents import library_sources, read_documents, topics
from zoo.datamodules._text_split import Split, split_text
from zoo.datamodules._text_tokens import (
    BYTES,
    Bytes,
    Tokenizer,
    cache_file,
    from_file,
    restore,
    store,
    train_bpe,
)
from zoo.datamodules._text_windows import TokenFile, Windows


class Text(SplitDataModule):
    r"""Windows of tokens of a text, for `zoo.lm.CausalLM`.

    Sources, none of which is downloaded:

    * ``"pydoc_topics"``: the help texts of the Python language, 470 kB of English in 79 documents;
    * ``"stdlib"``: the sources of Python's standard library without its tests, 12 MB; other Pythons, other
      text. Its files differ much (some are tables of character sets, easy to predict), and so do the losses
      of its parts: compare runs on the same part;
    * a ``.txt`` file (one long text), a ``.jsonl`` file (a document per line), or a folder of such files
      (each ``.txt`` a document); UTF-8;
    * a ``.bin`` file of token ids without a header, as nanoGPT writes them, mapped and never read as a whole.

    **The split** depends on the text alone, not on the seed. Of documents whole ones are held out, by the
    sha256 of their content; of one long text its last paragraphs (parted by blank lines), the test behind the
    validation. Equal documents count once, and what is held out is left out of training wherever else it
    stands: no document (of one long text: no paragraph) of validation or test is one of training, white
    space aside. Of a ``.bin`` file the last tokens are held out, and no window reaches from one part into
    another; its contents are not compared. Each part may have a file of its own instead.

    Documents, each tokenized alone, are joined by a blank line and cut into windows of ``context + 1``
    tokens, each of which shares one token with the next; tokens after the last whole window are left out.
    Batches are dicts: ``tokens`` (B, context + 1) int64, of which the first ``context`` are inputs and the
    last ``context`` targets, and ``index`` (B,) int64, the window's number in its part. `predict_dataloader`
    gives prompts: ``tokens`` (B, prompt_tokens), the beginnings of the test's windows.

    After `setup`: ``vocab_size``; ``bytes_per_token`` of the validation's text (of the training's where there
    is none), which turns nats per token into bits per byte, None for ``.bin`` files; `encode` and `decode`.

    Args:
        source: What to train on, as above.
        tokenizer: ``"bytes"`` for the 256 bytes; ``"bpe"`` for byte-pair encoding that is trained on the
            training part; or the path of a ``tokenizer.json`` or of a transformers folder with one. For a
            ``.bin`` file such a path serves to decode, and "bytes" means none.
        vocab_size: Token ids: to be given for "bpe" and for ``.bin`` files, known of the others.
        context: Inputs of a window, in tokens.
        batch_size: Windows per batch and process.
        val_fraction: Share of the characters (of a ``.bin``: tokens) held out for validation; 0 for none.
        test_fraction: Share held out for the test; 0 tests on the validation.
        val_source: A file or folder for validation instead of a share, of the kind of ``source``.
        test_source: The same for the test.
        text_field: Field of a JSON line that holds the text.
        dtype: Type of the ids of a ``.bin`` file.
        prompt_tokens: Length of the prompts; None takes a quarter of ``context``.
        cache: Folder to keep the trained tokenizer in, under a name made of the training text and
            ``vocab_size``; None trains in each process that sets up.
        num_workers: Worker processes that read ahead; windows are cheap to cut, so 0 is fastest.
        seed: Seed of the training order. None takes the run's, or 0 without one.

    Raises:
        ValueError: an argument is out of range or contradicts another; when set up: a file is missing,
            empty, not UTF-8 or not what it should be, or a part is too short for one window on every process;
            when read: a ``.bin`` file has ids beyond ``vocab_size``.
    """

    def __init__(
        self,
        source: str = "pydoc_topics",
        tokenizer: str = "bytes",
        vocab_size: int | None = None,
        context: int = 128,
        batch_size: int = 16,
        val_fraction: float = 0.1,
        test_fraction: float = 0.05,
        val_source: str | None = None,
        test_source: str | None = None,
        text_field: str = "text",
        dtype: Literal["uint16", "uint32"] = "uint16",
        prompt_tokens: int | None = None,
        cache: str | None = None,
        num_workers: int = 0,
        seed: int | None = None,
    ) -> None:
        super().__init__(batch_size, num_workers, seed)
        self.save_hyperparameters()
        if context < 1:
            raise ValueError(f"context must be at least 1 token, got {context}")
        if prompt_tokens is not None and not 1 <= prompt_tokens <= context:
            raise ValueError(f"prompt_tokens must be from 1 to context={context}, got {prompt_tokens}")
        for name, fraction in (("val_fraction", val_fraction), ("test_fraction", test_fraction)):
            if not 0 <= fraction < 1:
                raise ValueError(f"{name} must be in [0, 1), got {fraction}")
        if val_fraction + test_fraction >= 1:
            raise ValueError(
                f"val_fraction={val_fraction} and test_fraction={test_fraction} leave nothing to train on: "
                "their sum must be below 1"
            )
        self.binary = source.endswith(".bin")
        for name, other in (("val_source", val_source), ("test_source", test_source)):
            if other is not None and other.endswith(".bin") != self.binary:
                raise ValueError(
                    f"{name}={other!r} and source={source!r}: either all are .bin files of tokens, or none is"
                )
        if dtype not in ("uint16", "uint32"):
            raise ValueError(f"dtype must be 'uint16' or 'uint32', got {dtype!r}")
        _check_vocabulary(tokenizer, vocab_size, self.binary, dtype)
        self.source, self.val_source, self.test_source = source, val_source, test_source
        self.tokenizer, self.context = tokenizer, context
        self.prompt_tokens = max(context // 4, 1) if prompt_tokens is None else prompt_tokens
        self.val_fraction, self.test_fraction = val_fraction, test_fraction
        self.text_field, self.dtype, self.cache = text_field, dtype, cache
        self.vocab_size = BYTES if tokenizer == "bytes" and not self.binary else vocab_size
        self.bytes_per_token: float | None = None
        self._codec: Tokenizer | None = None

    @property
    def own_vocabulary(self) -> bool:
        """Whether the tokens are bytes or of a tokenizer trained here, which no pretrained model knows."""
        return self.tokenizer in ("bytes", "bpe") and not self.binary

    def setup(self, stage: str) -> None:
        """Reads and splits the text, the same for every stage and seed.

        Raises:
            ValueError: a file is missing or damaged, or a part is too short.
        """
        if self.train_set is None:
            parts = self._map_tokens() if self.binary else self._read_text()
            self.train_set, self.val_set, self.test_set = (parts[name] for name in ("train", "val", "test"))
            self.test_set = self.val_set if self.test_set is None else self.test_set
        processes = self.trainer.world_size if self.trainer else 1
        for name, windows, needed in (
            ("training", self.train_set, self.batch_size * processes),
            ("validation", self.val_set, processes),
            ("test", self.test_set, processes),
        ):
            if windows is not None and len(windows) < needed:
                raise ValueError(
                    f"the {name} part of {self.source!r} has {len(windows.tokens)} tokens, {len(windows)} "
                    f"windows of context={self.context} and one more; {processes} processes with "
                    f"batch_size={self.batch_size} need {needed}. Give more text, or lower context or "
                    "batch_size"
                )

    def encode(self, text: str) -> list[int]:
        """The tokens of a text, without special ones."""
        return self._decoder().encode([text]).tolist()

    @property
    def decodes(self) -> bool:
        """Whether `decode` has a tokenizer; a ``.bin`` file has none of its own."""
        return self._codec is not None

    def decode(self, tokens: Tensor | Sequence[int]) -> str:
        """The text of tokens (T,); bytes that are no UTF-8 become U+FFFD."""
        ids = tokens.tolist() if isinstance(tokens, Tensor) else list(tokens)
        return self._decoder().decode(ids)

    def predict_dataloader(self) -> Loader:
        """Prompts: the beginnings of the test's windows, in order."""
        prompts = None if self.test_set is None else self.test_set.prompts(self.prompt_tokens)
        return self._loader(prompts, train=False)

    def _decoder(self) -> Tokenizer:
        if self._codec is None:
            raise ValueError(
                f"Text has no tokenizer for {self.source!r}: call setup first, and for a .bin file give "
                "tokenizer the path of a tokenizer.json"
            )
        return self._codec

    def _read_text(self) -> dict[str, Windows | None]:
        split = self._split()
        codec, unkept = self._make_codec(split)
        parts: dict[str, Windows | None] = {}
        for name in ("train", "val", "test"):
            texts: list[str] = getattr(split, name)
            tokens = codec.encode(texts) if texts else None
            where = f"the {name} part of {self.source!r}"
            parts[name] = None if tokens is None else Windows(tokens, self.context, codec.size, where)
        measured = "val" if parts["val"] is not None else "train"
        size = sum(len(text.encode()) for text in getattr(split, measured))
        windows = parts[measured]
        assert windows is not None  # there is always something to train on
        self.bytes_per_token = size / len(windows.tokens)
        self._codec, self.vocab_size = codec, codec.size
        if unkept is not None:  # last, when nothing can be wrong any more
            store(unkept, codec)  # type: ignore[arg-type]  # only trained tokenizers are to be kept
        return parts

    def _split(self) -> Split:
        def documents(source: str | None, argument: str) -> list[str] | None:
            if source is None:
                return None
            return read_documents(Path(source).expanduser(), argument, self.text_field)

        named = {"pydoc_topics": topics, "stdlib": library_sources}
        train = named[self.source]() if self.source in named else documents(self.source, "source")
        return split_text(
            train or [],
            self.val_fraction,
            self.test_fraction,
            documents(self.val_source, "val_source"),
            documents(self.test_source, "test_source"),
        )

    def _make_codec(self, split: Split) -> tuple[Tokenizer, Path | None]:
        """The tokenizer, and the file of the cache to keep it in, if it is not there."""
        if self.tokenizer == "bytes":
            return Bytes(), None
        if self.tokenizer != "bpe":
            return from_file(self.tokenizer), None
        assert self.vocab_size is not None  # checked when constructed
        if self.cache is None:
            return train_bpe(split.train, self.vocab_size), None
        file = cache_file(self.cache, split.train, self.vocab_size)
        kept = restore(file)
        return (train_bpe(split.train, self.vocab_size), file) if kept is None else (kept, None)

    def _map_tokens(self) -> dict[str, Windows | None]:
        codec = None if self.tokenizer == "bytes" else from_file(self.tokenizer)
        size = self.vocab_size if self.vocab_size is not None else codec.size if codec else 0
        whole = TokenFile.whole(Path(self.source).expanduser(), self.dtype, "source")
        parts: dict[str, TokenFile | None] = {}
        end = len(whole)
        for name, source, fraction in (
            ("test", self.test_source, self.test_fraction),
            ("val", self.val_source, self.val_fraction),
        ):
            count = round(fraction * len(whole)) if source is None else 0
            parts[name] = whole.part(end - count, end) if count else None
            if source is not None:
                parts[name] = TokenFile.whole(Path(source).expanduser(), self.dtype, f"{name}_source")
            end -= count
        parts["train"] = whole.part(0, end)
        windows = {
            name: None if tokens is None else Windows(tokens, self.context, size, str(tokens.path))
            for name, tokens in parts.items()
        }
        for part in windows.values():
            if part:
                part[0]  # ids beyond the vocabulary show themselves in the first window, mostly
        self._codec, self.vocab_size = codec, size
        return windows


def _check_vocabulary(tokenizer: str, vocab_size: int | None, binary: bool, dtype: str) -> None:
    """Refuses a ``vocab_size`` that is incompatible with the tokenizer."""
    if binary and tokenizer == "bpe":
        raise ValueError("tokenizer='bpe' is trained on text, and a .bin file holds tokens: leave it out")
    if (tokenizer == "bpe" or (binary and tokenizer == "bytes")) and vocab_size is None:
        what = "a .bin file of tokens" if binary else "tokenizer='bpe'"
        raise ValueError(f"{what} needs vocab_size, the number of token ids; got None")
    if vocab_size is None:
        return
    if binary:
        if not 1 <= vocab_size <= 1 << (16 if dtype == "uint16" else 32):
            raise ValueError(f"vocab_size must be at least 1 and fit dtype={dtype}, got {vocab_size}")
    elif tokenizer != "bpe":
        raise ValueError(
            f"vocab_size={vocab_size} is for tokenizer='bpe' and .bin files; tokenizer={tokenizer!r} has its "
            "own: leave it out"
        )
    elif vocab_size <= BYTES:
        raise ValueError(
            f"vocab_size must be above {BYTES}, the bytes that 'bpe' starts from, got {vocab_size}"
        )
