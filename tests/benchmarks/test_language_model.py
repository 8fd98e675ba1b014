"""What `CausalLM` adds to the model of transformers inside it, and `Text` to the updates it feeds.

One network, with the same first weights in every turn; the modules' own losses run, only the Trainer is left
out. Turns alternate, so that whatever else the machine does falls on all alike.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from zoo.datamodules import Text
from zoo.lm import CausalLM

REPEATS, UPDATES = 9, 3
NETWORK: dict[str, Any] = {
    "model_type": "llama", "vocab_size": 512, "hidden_size": 64, "intermediate_size": 176,
    "num_hidden_layers": 4, "num_attention_heads": 4, "max_position_embeddings": 128,
}  # fmt: skip


class Listener(nn.Module):
    """A hook that hears everything and changes nothing."""

    layer = 1

    def on_attention(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float, output: Tensor
    ) -> Tensor:
        return output

    def on_ffn_input(self, hidden: Tensor) -> None:
        pass

    def on_log_probs(self, log_probs: Tensor, hidden: Tensor) -> Tensor:
        return log_probs

    def on_forward_end(self, tokens: Tensor, targets: Tensor | None, index: Tensor | None) -> None:
        pass


def updates(loss: Callable[[Tensor], Tensor], parameters: Any) -> Callable[[], None]:
    """A turn: some updates on the same tokens."""
    optimizer = torch.optim.AdamW(parameters, lr=1e-4)
    tokens = torch.randint(512, (16, 129), generator=torch.Generator().manual_seed(0))

    def turn() -> None:
        for _ in range(UPDATES):
            optimizer.zero_grad()
            loss(tokens).backward()
            optimizer.step()

    return turn


def bare() -> Callable[[], None]:
    """transformers' own training step: its network, and its loss, which shifts the labels itself."""
    network: Any = CausalLM(NETWORK, seed=0).network.train()
    return updates(
        lambda tokens: network(input_ids=tokens[:, :-1], labels=tokens[:, :-1], use_cache=False).loss,
        network.parameters(),
    )


def ours(**options: Any) -> Callable[[], None]:
    module = CausalLM(NETWORK, seed=0, **options).train()
    module.log = lambda *args, **kwargs: None  # type: ignore[assignment, method-assign]
    index = torch.arange(16)
    return updates(
        lambda tokens: module.training_step({"tokens": tokens, "index": index}, 0), module.parameters()
    )


def ratios(base: Callable[[], None], others: dict[str, Callable[[], None]]) -> dict[str, float]:
    """Median times of turns over those of the first's, all taken in alternation."""
    turns = {"base": base, **others}
    times: dict[str, list[float]] = {name: [] for name in turns}
    for repeat in range(REPEATS + 1):
        for name, turn in turns.items():
            start = time.perf_counter()
            turn()
            if repeat:  # the first warms up
                times[name].append(time.perf_counter() - start)
    middle = {name: statistics.median(each) for name, each in times.items()}
    return {name: middle[name] / middle["base"] for name in others}


@pytest.mark.bench
def test_an_update_costs_what_transformers_own_costs() -> None:
    found = ratios(
        bare(), {"CausalLM": ours(), "z-loss": ours(z_loss=1e-4), "hook": ours(hooks=[Listener()])}
    )
    print("over transformers' own update: " + ", ".join(f"{name} {each:.3f}" for name, each in found.items()))
    # Its own work is a view and a gather; the rest of the limit is the noise of nine turns.
    assert found["CausalLM"] < 1.05
    # The z-loss reads logsumexp off the log-probabilities; another pass over the vocabulary would show.
    assert found["z-loss"] < 1.10
    assert found["hook"] < 1.10


@pytest.mark.bench
def test_batches_of_text_take_a_hundredth_of_an_update() -> None:
    data = Text(seed=0)
    data.prepare_data()
    data.setup("fit")
    turn = ours()
    turn()
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        turn()
        seconds.append((time.perf_counter() - start) / UPDATES)
    batches = iter(data.train_dataloader())
    next(batches)
    start = time.perf_counter()
    for _ in range(50):
        next(batches)
    ratio = (time.perf_counter() - start) / 50 / statistics.median(seconds)
    print(f"a batch of Text takes {ratio:.2%} of an update")
    assert ratio < 0.01
