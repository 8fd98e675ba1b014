"""What WSDS costs: the time inside its hooks over the time of the updates of the small language model.

Two runs that differ by half a percent cannot be told apart; the hooks' own clock can, and takes nothing out.
"""

import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer

from zoo.callbacks import WSDS
from zoo.datamodules import Text
from zoo.lm import CausalLM
from zoo.schedules import wsds

UPDATES = 60
NETWORK: dict[str, Any] = {
    "model_type": "llama", "vocab_size": 256, "hidden_size": 64, "intermediate_size": 176,
    "num_hidden_layers": 4, "num_attention_heads": 4, "max_position_embeddings": 128,
}  # fmt: skip


class Timed(WSDS):
    """WSDS with a clock around what it does at every update."""

    seconds = 0.0

    def on_before_optimizer_step(self, *args: Any) -> None:
        start = time.perf_counter()
        super().on_before_optimizer_step(*args)
        self.seconds += time.perf_counter() - start

    def on_train_batch_end(self, *args: Any) -> None:
        start = time.perf_counter()
        super().on_train_batch_end(*args)
        self.seconds += time.perf_counter() - start


class Clock(Callback):
    """From the beginning of update 10, when caches are warm, to the end of the last."""

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step == 10:
            [owner] = [callback for callback in trainer.callbacks if isinstance(callback, Timed)]  # type: ignore
            owner.seconds = 0.0
            self.start = time.perf_counter()

    def on_train_end(self, *args: Any) -> None:
        self.seconds = time.perf_counter() - self.start


@pytest.mark.bench
def test_wsds_costs_less_than_half_a_percent(tmp_path: Path) -> None:
    owner, clock = Timed(wsds([UPDATES // 2, UPDATES], 5), save_pre=False, save_post=False), Clock()
    trainer = Trainer(
        accelerator="cpu", max_steps=UPDATES, logger=False, enable_checkpointing=False, limit_val_batches=0,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
        callbacks=[owner, clock],
    )  # fmt: skip
    model = CausalLM(NETWORK, optimizer=partial(torch.optim.AdamW, lr=1e-3), seed=0)
    trainer.fit(model, datamodule=Text(seed=0))
    ratio = owner.seconds / clock.seconds
    print(f"WSDS {owner.seconds / (UPDATES - 10) * 1e6:.0f} us an update, {ratio:.4%} of it")
    assert trainer.global_step == UPDATES
    assert ratio < 0.005
