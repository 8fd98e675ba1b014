"""Tiny models and data of language, for the tests of this folder."""

from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from zoo.base import ZooDataModule
from zoo.lm import CausalLM

VOCABULARY, CONTEXT = 37, 16
SIZES: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": VOCABULARY,
    "max_position_embeddings": 48,
}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": SIZES | {"model_type": "llama", "intermediate_size": 48, "num_key_value_heads": 2},
    "gpt2": SIZES | {"model_type": "gpt2"},
    "gpt_neox": SIZES | {"model_type": "gpt_neox", "intermediate_size": 48},
    "qwen2": SIZES | {"model_type": "qwen2", "intermediate_size": 48, "num_key_value_heads": 2},
    "qwen3": SIZES
    | {"model_type": "qwen3", "intermediate_size": 48, "num_key_value_heads": 2, "head_dim": 8},
    "opt": SIZES | {"model_type": "opt", "ffn_dim": 48, "word_embed_proj_dim": 32},
}
LLAMA = CONFIGS["llama"]


def batch_of(size: int = 4, length: int = CONTEXT, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(VOCABULARY, (size, length + 1), generator=generator)
    return {"tokens": tokens, "index": torch.arange(size) + 10}


class Windows(ZooDataModule):
    """Random tokens; validation batches of unequal sizes, the prompts of `predict` are of six tokens."""

    def __init__(self, masked: bool = False, vocab_size: int = VOCABULARY, context: int = CONTEXT) -> None:
        super().__init__(0)
        self.masked, self.vocab_size, self.context = masked, vocab_size, context
        self.bytes_per_token = 2.0

    def batches(self, sizes: tuple[int, ...]) -> DataLoader:
        batches = [batch_of(size, self.context, number) for number, size in enumerate(sizes)]
        for number, batch in enumerate(batches):
            if self.masked:
                batch["mask"] = torch.arange(self.context).expand(len(batch["tokens"]), -1) > 3 * number
        return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]

    def train_dataloader(self) -> DataLoader:
        return self.batches((4, 4, 4, 4))

    def val_dataloader(self) -> DataLoader:
        return self.batches((4, 4, 1))

    def test_dataloader(self) -> DataLoader:
        return self.batches((4, 1))

    def predict_dataloader(self) -> DataLoader:
        prompts = [{"tokens": batch_of(3, 5)["tokens"], "index": torch.arange(3)}]
        return DataLoader(prompts, batch_size=None)  # type: ignore[arg-type]

    def decode(self, tokens: Tensor) -> str:
        return " ".join(str(token) for token in tokens.tolist())


def trainer(**options: Any) -> Trainer:
    return Trainer(
        **{
            "accelerator": "cpu", "max_steps": 3, "logger": False, "enable_checkpointing": False,
            "enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0,
        }
        | options
    )  # fmt: skip


def fitted(model: CausalLM, data: Any = None, **options: Any) -> Trainer:
    made = trainer(**options)
    torch.manual_seed(0)
    made.fit(model, datamodule=Windows() if data is None else data)
    return made
