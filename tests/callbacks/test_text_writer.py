"""TextWriter: texts in order from one process and two, tokens without a tokenizer, nothing after an error."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from pool import Pool
from ranks import write_texts_on_rank
from torch.utils.data import DataLoader

from zoo.callbacks import TextWriter
from zoo.datamodules import Text
from zoo.hf import Generation
from zoo.io import read_json_lines
from zoo.lm import CausalLM

NETWORK = {
    "model_type": "llama", "vocab_size": 256, "hidden_size": 16, "intermediate_size": 32,
    "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip


def trainer(folder: Path, **options: Any) -> Trainer:
    return Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=folder,
        callbacks=[TextWriter()], **options,
    )  # fmt: skip


def test_continuations_of_prompts(tmp_path: Path) -> None:
    model = CausalLM(NETWORK, generation=Generation(max_new_tokens=5), seed=0)
    data = Text(context=32, prompt_tokens=8, batch_size=4)
    made = trainer(tmp_path, limit_predict_batches=3).predict(model, datamodule=data)
    lines = read_json_lines(tmp_path / "texts.jsonl")
    assert [line["index"] for line in lines] == list(range(12))
    assert [line["text"] for line in lines] == [text for batch in made for text in batch["text"]]  # type: ignore
    assert not (tmp_path / ".texts").exists()
    [event] = read_json_lines(tmp_path / "events.jsonl")
    assert event["event"] == "texts_written" and event["count"] == 12
    assert repr(lines[0]["text"][:20])[:-1] in event["message"]


def test_tokens_where_there_is_no_tokenizer(tmp_path: Path) -> None:
    """A file of token ids has none of its own: the tokens are kept."""
    torch.arange(3000).remainder(256).to(torch.uint16).numpy().tofile(tmp_path / "ids.bin")
    data = Text(str(tmp_path / "ids.bin"), vocab_size=256, context=32, prompt_tokens=8, batch_size=4)
    trainer(tmp_path, limit_predict_batches=1).predict(
        CausalLM(NETWORK, generation=Generation(max_new_tokens=5)), datamodule=data
    )
    lines = read_json_lines(tmp_path / "texts.jsonl")
    assert [list(line) for line in lines] == [["index", "tokens"]] * 4
    assert all(len(line["tokens"]) == 13 for line in lines)


class Fails(LightningModule):
    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        if batch_idx == 1:
            raise RuntimeError("no more")
        return {"tokens": batch, "index": torch.arange(len(batch))}


class NoDict(LightningModule):
    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        return batch


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    data = DataLoader(torch.zeros(4, 3, dtype=torch.int64), batch_size=2)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="no more"):
        trainer(tmp_path).predict(Fails(), data)
    with pytest.raises(TypeError, match="needs a predict_step that returns a dict with 'tokens' and 'index'"):
        trainer(tmp_path).predict(NoDict(), data)
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith("lightning")] == []


@pytest.mark.slow
def test_two_processes(pool: Pool, tmp_path: Path) -> None:
    pool.run(write_texts_on_rank, str(tmp_path))
    lines = [json.loads(line) for line in (tmp_path / "texts.jsonl").read_text().splitlines()]
    assert lines == [{"index": k, "text": f"item {k} é"} for k in range(11)]
