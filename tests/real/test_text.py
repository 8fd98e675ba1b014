"""`Text` on the usual small corpora, where they are at hand."""

import os
from pathlib import Path

import pytest

from zoo.datamodules import Text
from zoo.datamodules._text_documents import paragraphs
from zoo.datamodules._text_split import content

FOLDER = Path(os.environ.get("ZOO_REAL_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data")


def corpus(name: str) -> str:
    if not (FOLDER / name).is_file():
        pytest.skip(f"{name} is not in {FOLDER}; name its folder in the environment variable ZOO_REAL_DATA")
    return str(FOLDER / name)


def parts(data: Text) -> dict[str, str]:
    return {
        name: data.decode(getattr(data, f"{name}_set").tokens.tolist()) for name in ("train", "val", "test")
    }


def test_tinyshakespeare() -> None:
    data = Text(corpus("tinyshakespeare.txt"), tokenizer="bpe", vocab_size=1024, seed=0)
    data.setup("fit")
    found, whole = parts(data), Path(corpus("tinyshakespeare.txt")).read_text()
    assert len(whole) == 1_115_394 and whole.endswith(found["val"] + found["test"])
    assert len(found["val"]) / len(whole) == pytest.approx(0.1, abs=0.003)
    held = {content(piece) for name in ("val", "test") for piece in paragraphs(found[name])}
    assert not held & {content(piece) for piece in paragraphs(found["train"])}
    assert len(found["train"]) > 0.84 * len(whole)  # next to nothing comes twice
    assert data.bytes_per_token == pytest.approx(2.31, abs=0.02)  # as measured; bytes have 1
    assert next(iter(data.train_dataloader()))["tokens"].shape == (16, 129)


def test_wikitext_2() -> None:
    data = Text(
        corpus("wikitext-2/valid.txt"), test_source=corpus("wikitext-2/test.txt"), test_fraction=0, seed=0
    )
    data.setup("fit")
    found = parts(data)
    assert found["test"] == Path(corpus("wikitext-2/test.txt")).read_text()
    held = {content(piece) for name in ("val", "test") for piece in paragraphs(found[name])}
    assert not held & {content(piece) for piece in paragraphs(found["train"])}
    assert (len(data.train_set), len(data.test_set)) == (7846, 9816) and data.vocab_size == 256
