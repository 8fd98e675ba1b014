"""Text: its sources, its split, its tokens, its windows, and what it says of bad files."""

import json
import pickle
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from zoo.datamodules import Text
from zoo.datamodules._text_documents import library_sources, paragraphs, topics
from zoo.datamodules._text_split import SEPARATOR, content, split_text
from zoo.datamodules._text_tokens import store, train_bpe
from zoo.datamodules._text_windows import TokenFile

PARTS = ("train", "val", "test")


def ready(**options: Any) -> Text:
    data = Text(**({"seed": 0} | options))
    data.setup("fit")
    return data


def written(data: Text) -> dict[str, str]:
    """The text of each part, as its tokens say it."""
    return {name: data.decode(np.asarray(getattr(data, f"{name}_set").tokens).tolist()) for name in PARTS}


def long_text(count: int = 60) -> str:
    return "".join(f"Paragraph {k % 50}, which says {k % 50 * 7919}.\n\n" for k in range(count))


@pytest.fixture
def jsonl(tmp_path: Path) -> Path:
    """Eighty documents, of which twenty stand there twice, with other white space."""
    texts = [f"Document {k}.\n\nIt has {k * k} words." for k in range(60)]
    texts += [f"  {text}\n" for text in texts[:20]]
    path = tmp_path / "text.jsonl"
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts) + "\n")
    return path


def test_windows_follow_one_another_and_share_a_token() -> None:
    data = ready(context=64, batch_size=7)
    windows, text = data.train_set, written(data)["train"]
    assert len(windows) == (len(text.encode()) - 1) // 64 and data.vocab_size == 256
    first, second = windows[0]["tokens"], windows[1]["tokens"]
    assert first.shape == (65,) and first.dtype == torch.int64 and first[-1] == second[0]
    assert data.decode(torch.cat([first[:-1], second])).encode() == text.encode()[:129]
    batch = next(iter(data.train_dataloader()))
    assert batch["tokens"].shape == (7, 65) and set(batch) == {"tokens", "index"}
    for row, index in zip(batch["tokens"], batch["index"].tolist(), strict=True):
        assert bytes(row.tolist()) == text.encode()[index * 64 : index * 64 + 65]


def test_prompts_are_beginnings_of_the_test() -> None:
    data = ready(context=64, prompt_tokens=10)
    batch = next(iter(data.predict_dataloader()))
    whole = next(iter(data.test_dataloader()))
    assert batch["tokens"].equal(whole["tokens"][:, :10]) and batch["index"].equal(whole["index"])


def test_the_order_depends_on_the_seed_and_the_split_does_not() -> None:
    one, other = ready(), ready(seed=5)
    assert all(
        np.array_equal(getattr(one, f"{name}_set").tokens, getattr(other, f"{name}_set").tokens)
        for name in PARTS
    )
    batches = [next(iter(data.train_dataloader()))["index"] for data in (one, other, ready())]
    assert not batches[0].equal(batches[1]) and batches[0].equal(batches[2])


def test_a_resumed_loader_goes_on() -> None:
    loader, again = ready().train_dataloader(), ready().train_dataloader()
    stream = iter(loader)
    for _ in range(5):
        next(stream)
    again.load_state_dict(loader.state_dict())
    resumed = iter(again)
    for _ in range(5):
        wanted, got = next(stream), next(resumed)
        assert wanted["tokens"].equal(got["tokens"]) and wanted["index"].equal(got["index"])


def test_processes_share_the_batches_of_one() -> None:
    def indices(rank: int, processes: int, batch_size: int) -> list[list[int]]:
        data = Text(batch_size=batch_size, seed=0)
        data.trainer = SimpleNamespace(world_size=processes, global_rank=rank)  # type: ignore[assignment]
        data.setup("fit")
        return [batch["index"].tolist() for batch in data.train_dataloader()]

    whole, left, right = indices(0, 1, 16), indices(0, 2, 8), indices(1, 2, 8)
    assert [sorted(one + other) for one, other in zip(left, right, strict=True)] == [sorted(b) for b in whole]
    with pytest.raises(ValueError, match=r"400 processes with batch_size=8 need 3200. Give more text"):
        indices(0, 400, 8)


def test_documents_are_held_out_whole_and_once(jsonl: Path) -> None:
    data = ready(source=str(jsonl), context=16, batch_size=2, val_fraction=0.2, test_fraction=0.1)
    found = {
        name: {content(document) for document in re.split(r"\n\n(?=Document)", text.strip())}
        for name, text in written(data).items()
    }
    assert sum(map(len, found.values())) == 60 == len(set.union(*found.values()))  # disjoint, nothing lost
    assert written(data)["train"].count("Document") == len(found["train"])  # no copies
    sizes = {name: len(text) for name, text in written(data).items()}
    total = sum(sizes.values())
    assert 0.15 < sizes["val"] / total <= 0.2 and 0.05 < sizes["test"] / total <= 0.1


def test_the_split_does_not_depend_on_the_order_of_documents(jsonl: Path, tmp_path: Path) -> None:
    lines = jsonl.read_text().splitlines()
    (tmp_path / "turned.jsonl").write_text("\n".join(reversed(lines)))
    options: dict[str, Any] = {"context": 16, "batch_size": 2, "val_fraction": 0.2}
    one, other = (
        written(ready(source=str(tmp_path / name), **options)) for name in ("text.jsonl", "turned.jsonl")
    )
    words = [sorted(re.findall(r"Document \d+", text["val"])) for text in (one, other)]
    assert words[0] == words[1] != []


def test_no_window_holds_a_held_out_document() -> None:
    """In the default text none stands within a larger one either."""
    split = split_text(topics(), 0.1, 0.05)
    train = "".join(split.train)
    assert (
        len(split.val) > 3
        and split.test
        and all(piece.strip() not in train for piece in split.val + split.test)
    )


def test_of_one_text_the_tail_is_held_out(tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text(long_text())
    data = ready(
        source=str(tmp_path / "long.txt"), context=8, batch_size=2, val_fraction=0.1, test_fraction=0.1
    )
    text = written(data)
    assert long_text().endswith(text["val"] + text["test"])
    held = {content(piece) for name in ("val", "test") for piece in paragraphs(text[name])}
    kept = [content(piece) for piece in paragraphs(text["train"])]
    # The last ten repeat the first ten: these are left out of training, and nothing else is.
    assert not held & set(kept) and len(held) >= 10 and len(kept) == 60 - 2 * 10 - (len(held) - 10)
    assert "".join(paragraphs(text["train"])) == text["train"]


def test_parts_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text(long_text(40))
    (tmp_path / "val.txt").write_text(long_text(5))
    data = ready(
        source=str(tmp_path / "train.txt"), val_source=str(tmp_path / "val.txt"), test_fraction=0, context=8,
        batch_size=2,
    )  # fmt: skip
    assert written(data)["val"] == long_text(5) == written(data)["test"]
    assert written(data)["train"] == long_text(40)[len(long_text(5)) :]  # what is validated on is not learned


def test_bpe_gives_any_text_back_and_is_the_same_each_time() -> None:
    data = ready(tokenizer="bpe", vocab_size=400)
    strange = "héllo \n\n\t wörld 漢字 \x00 end"
    assert data.decode(data.encode(strange)) == strange
    assert data.vocab_size == 400 and int(data.train_set.tokens.max()) < 400
    again = ready(tokenizer="bpe", vocab_size=400)
    assert np.array_equal(data.train_set.tokens, again.train_set.tokens)
    text = written(data)
    assert text == written(ready())  # the tokenizer changes no character
    assert data.bytes_per_token == len(text["val"].encode()) / len(data.val_set.tokens)
    assert 1.5 < data.bytes_per_token < 3 and ready().bytes_per_token == 1


def test_bpe_is_trained_on_the_training_part_alone(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text(long_text(50))
    (tmp_path / "val.txt").write_text("zq zq zq zq zq\n" * 100)
    data = ready(
        source=str(tmp_path / "train.txt"), val_source=str(tmp_path / "val.txt"), test_fraction=0.1,
        tokenizer="bpe", vocab_size=280, context=8, batch_size=2,
    )  # fmt: skip
    assert len(data.encode("zq")) == 2 and len(data.encode("Paragraph")) < 9


def test_the_cache_is_used_if_whole_and_replaced_if_damaged(tmp_path: Path) -> None:
    options: dict[str, Any] = {"tokenizer": "bpe", "vocab_size": 300, "cache": str(tmp_path / "cache")}
    first = ready(**options)
    [file] = (tmp_path / "cache").iterdir()
    kept = file.read_bytes()
    other = train_bpe(["another text " * 500 + "with its pairs, " * 300], 262)
    # A whole file is taken as it is: one that says otherwise shows that nothing was trained.
    store(file, other)
    assert ready(**options).vocab_size == 262
    for damage in (kept[:-40], kept.replace(b"merges", b"mergee"), b"", b"[1]"):
        file.write_bytes(damage)
        with pytest.warns(UserWarning, match="is damaged: the tokenizer is retrained"):
            data = ready(**options)
        assert np.array_equal(data.train_set.tokens, first.train_set.tokens)
        assert file.read_bytes() == kept
    ready(**(options | {"vocab_size": 301}))
    assert len(list((tmp_path / "cache").iterdir())) == 2  # another size, another name


def test_a_tokenizer_from_a_file(tmp_path: Path) -> None:
    made = ready(tokenizer="bpe", vocab_size=300)
    assert made._codec is not None
    made._codec.tokenizer.save(str(tmp_path / "tokenizer.json"))  # type: ignore[attr-defined]
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        data = ready(tokenizer=str(path))
        assert data.vocab_size == 300 and np.array_equal(data.train_set.tokens, made.train_set.tokens)


def test_the_standard_library() -> None:
    texts = library_sources()
    assert sum(map(len, texts)) > 5_000_000 and len(texts) > 300
    assert any("class Fraction(" in text for text in texts)
    assert not any("class FractionTest(" in text for text in texts)  # no tests


@pytest.fixture
def bins(tmp_path: Path) -> Path:
    """Files of the ids 0, 1, 2, ... in both types."""
    np.arange(1000, dtype="<u2").tofile(tmp_path / "ids16.bin")
    np.arange(70_000, 71_000, dtype="<u4").tofile(tmp_path / "ids32.bin")
    return tmp_path


def test_token_files(bins: Path) -> None:
    data = ready(source=str(bins / "ids16.bin"), vocab_size=1000, context=10, batch_size=4, test_fraction=0.1)
    assert (len(data.train_set), len(data.val_set), len(data.test_set)) == (79, 9, 9)
    assert data.train_set[3]["tokens"].tolist() == list(range(30, 41))
    assert data.val_set[0]["tokens"].tolist() == list(range(800, 811))
    assert data.test_set[0]["tokens"].tolist() == list(range(900, 911))
    assert int(max(batch["tokens"].max() for batch in data.reference_dataloader())) < 800
    assert data.bytes_per_token is None and data.vocab_size == 1000
    wide = ready(source=str(bins / "ids32.bin"), dtype="uint32", vocab_size=71_000, context=10, batch_size=4)
    assert wide.train_set[0]["tokens"].tolist() == list(range(70_000, 70_011))
    own = ready(
        source=str(bins / "ids16.bin"), val_source=str(bins / "ids16.bin"), test_fraction=0, vocab_size=1000,
        context=10, batch_size=4,
    )  # fmt: skip
    assert len(own.train_set) == len(own.val_set) == 99 and own.test_set is own.val_set


def test_token_files_are_mapped_and_workers_get_the_path(bins: Path) -> None:
    huge = bins / "huge.bin"
    with open(huge, "wb") as file:
        file.truncate(1 << 36)  # 64 GiB of zeros that take no room
    data = ready(source=str(huge), vocab_size=5, context=1024, batch_size=2)
    assert len(data.train_set) > 20_000_000 and data.train_set[20_000_000]["tokens"].sum() == 0
    assert len(pickle.dumps(data.train_set)) < 2000
    small = ready(source=str(bins / "ids16.bin"), vocab_size=1000, context=10, batch_size=4, num_workers=2)
    plain = ready(source=str(bins / "ids16.bin"), vocab_size=1000, context=10, batch_size=4)
    for one, other in zip(small.train_dataloader(), plain.train_dataloader(), strict=True):
        assert one["tokens"].equal(other["tokens"]) and one["index"].equal(other["index"])


def test_ids_beyond_the_vocabulary(bins: Path) -> None:
    data = Text(source=str(bins / "ids16.bin"), vocab_size=500, context=10, batch_size=4)
    with pytest.raises(ValueError, match=r"has the token \d+, but vocab_size=500: give the vocab_size of"):
        data.setup("fit")  # the held-out end shows it at once
    hidden = np.zeros(1000, dtype="<u2")
    hidden[555] = 7
    hidden.tofile(bins / "hidden.bin")
    late = ready(source=str(bins / "hidden.bin"), vocab_size=7, context=10, batch_size=4)
    with pytest.raises(ValueError, match=r"hidden.bin has the token 7, but vocab_size=7"):
        list(late.reference_dataloader())


def test_a_mapped_part_is_a_range(bins: Path) -> None:
    whole = TokenFile.whole(bins / "ids16.bin", "uint16", "source")
    part = whole.part(100, 200).part(10, 20)
    assert len(part) == 10 and part[np.arange(10)].tolist() == list(range(110, 120))


@pytest.mark.parametrize(
    ("name", "contents", "options", "message"),
    [
        ("x.txt", None, {}, r"source='.*x.txt': no such file or folder; expected 'pydoc_topics', 'stdlib'"),
        ("x.bin", None, {"vocab_size": 9}, r"source='.*x.bin': no such file"),
        ("x.txt", b" \n\n ", {}, "holds no text: every document in it is empty"),
        ("x.jsonl", b"\n\n", {}, "holds no text"),
        ("x.csv", b"a", {}, r"ends in '.csv': expected .txt, .jsonl \(one document per line\) or .bin"),
        ("x.txt", b"abc \xff", {}, "x.txt is not UTF-8: byte 4 is 0xff"),
        ("x.jsonl", b'{"text": "a"}\n{"text": \n', {}, "x.jsonl, line 2 is not JSON.*one object per line"),
        (
            "x.jsonl",
            b'{"body": "a"}\n',
            {},
            r"line 1 has the fields \['body'\], but no field 'text': name the",
        ),
        ("x.jsonl", b"[1]\n", {}, "line 1 has list, but no field 'text'"),
        ("x.jsonl", b'\n{"text": 5}\n', {}, "line 2: the field 'text' is int, expected a string"),
        ("x.jsonl", b'{"text": "\\ud800"}\n', {}, "line 1: the field 'text' is not Unicode text"),
        ("x.txt", b"one paragraph alone", {}, "cannot be held out in whole paragraphs.*the source has 1 of"),
        (
            "x.txt",
            b"a b\n\nc d\n\ne f",
            {"val_fraction": 0.3},
            "the training part of .* windows of context=128",
        ),
        ("x.bin", b"", {"vocab_size": 9}, "has 0 bytes, which is not a number of tokens of 2 bytes"),
        ("x.bin", b"abc", {"vocab_size": 9}, "has 3 bytes.*cut short, or dtype is another"),
        ("x.bin", b"ab" * 90, {}, "a .bin file of tokens needs vocab_size"),
    ],
)
def test_bad_files(name: str, contents: bytes | None, options: dict, message: str, tmp_path: Path) -> None:
    if contents is not None:
        (tmp_path / name).write_bytes(contents)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=message):
        ready(source=str(tmp_path / name), cache=str(tmp_path / "cache"), **options)
    assert sorted(tmp_path.rglob("*")) == before  # nothing was written


def test_a_folder_is_read_in_order(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is a folder without .txt or .jsonl files"):
        ready(source=str(tmp_path))
    (tmp_path / "b").mkdir()
    for k, name in enumerate(["a.txt", "b/c.txt", "d.txt"]):
        (tmp_path / name).write_text(f"file {k} " * 20)
    (tmp_path / "e.jsonl").write_text(json.dumps({"text": "line " * 30}))
    (tmp_path / "f.md").write_text("no text of ours")
    data = ready(source=str(tmp_path), val_fraction=0, test_fraction=0, context=8, batch_size=2)
    text = data.decode(data.train_set.tokens.tolist())
    assert text == SEPARATOR.join([*("file 0 " * 20, "file 1 " * 20, "file 2 " * 20), "line " * 30, ""])
    assert data.val_dataloader() == [] and data.bytes_per_token == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"context": 0}, "context must be at least 1 token, got 0"),
        ({"prompt_tokens": 129}, "prompt_tokens must be from 1 to context=128, got 129"),
        ({"val_fraction": 1.0}, r"val_fraction must be in \[0, 1\), got 1.0"),
        ({"val_fraction": 0.5, "test_fraction": 0.5}, "leave nothing to train on"),
        ({"val_source": "a.bin"}, "val_source='a.bin' and source='pydoc_topics': either all are .bin"),
        ({"source": "a.bin", "vocab_size": 5, "dtype": "uint8"}, "dtype must be 'uint16' or 'uint32'"),
        ({"source": "a.bin", "vocab_size": 1 << 17}, "fit dtype=uint16, got 131072"),
        ({"source": "a.bin", "vocab_size": 9, "tokenizer": "bpe"}, "trained on text, and a .bin file holds"),
        ({"tokenizer": "bpe"}, "tokenizer='bpe' needs vocab_size, the number of token ids; got None"),
        ({"tokenizer": "bpe", "vocab_size": 256}, "vocab_size must be above 256.*got 256"),
        ({"vocab_size": 100}, "vocab_size=100 is for tokenizer='bpe' and .bin files"),
    ],
)
def test_bad_arguments(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Text(**options)


def test_bad_tokenizers(tmp_path: Path, bins: Path) -> None:
    with pytest.raises(ValueError, match=r"no file tokenizer.json there; expected 'bytes', 'bpe'"):
        ready(tokenizer=str(tmp_path))
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="is not a tokenizer of transformers"):
        ready(tokenizer=str(tmp_path))
    with pytest.raises(ValueError, match="vocab_size=100000: the training text has pairs for"):
        ready(tokenizer="bpe", vocab_size=100_000)
    with pytest.raises(ValueError, match=r"no tokenizer for .*: call setup first, and for a .bin"):
        ready(source=str(bins / "ids16.bin"), vocab_size=1000, context=10, batch_size=4).decode([1])
