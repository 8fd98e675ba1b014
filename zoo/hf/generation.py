"""Text one token at a time: each draw depends on (seed, item, position) alone, not on the rest of a batch."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from zoo import rng


@dataclass(frozen=True)
class Generation:
    """How prompts are continued: for how long, and from which distribution tokens are drawn.

    Args:
        max_new_tokens: Tokens that are added to each prompt.
        temperature: Divides the log-probabilities; 0 is greedy.
        top_k: Only the k most probable tokens may come; null for all.
    """

    max_new_tokens: int = 64
    temperature: float = 1.0
    top_k: int | None = None

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, got {self.max_new_tokens}")
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ValueError(f"temperature must be 0 (greedy) or more, got {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k must be at least 1, or null for all tokens, got {self.top_k}")


def next_token(
    log_probs: Tensor, seed: int, position: int, index: Tensor, temperature: float, top_k: int | None
) -> Tensor:
    """The next token of each sequence, drawn from tempered log-probabilities by the inverse of their sums.

    Args:
        log_probs: (B, V), or logits.
        seed: The run's seed.
        position: Place of the token in its sequence, the prompt included.
        index: Numbers of the items (B,).
        temperature: Divides the log-probabilities; 0 takes the largest (the first of equal ones).
        top_k: Only the k most probable tokens may come; None for all.

    Returns:
        (B,) int64.

    >>> next_token(torch.tensor([[0.1, 0.7, 0.2]]).log(), 0, 5, torch.tensor([3]), 0.0, None).tolist()
    [1]
    """
    if temperature == 0:
        return log_probs.argmax(-1)
    scores = log_probs.double() / temperature  # float64: sums over a large vocabulary keep its rare tokens
    if top_k is not None and top_k < scores.shape[-1]:
        kept = scores.topk(top_k, dim=-1)
        scores = torch.full_like(scores, -torch.inf).scatter(-1, kept.indices, kept.values)
    sums = scores.softmax(-1).cumsum(-1)  # (B, V)
    draws = rng.uniform(seed, position, index.to(scores.device), (1,), "generate", torch.float64)  # (B, 1)
    return torch.searchsorted(sums, draws * sums[:, -1:], right=True)[:, 0]


def generate(
    step: Callable[[Tensor], Tensor],
    prompts: Tensor,
    index: Tensor,
    max_new_tokens: int,
    seed: int = 0,
    temperature: float = 1.0,
    top_k: int | None = None,
) -> Tensor:
    """Continues prompts.

    Args:
        step: From tokens (B, T) that follow all it was given before, the prompts at first and one token each
            time after, to log-probabilities (B, V) of the token after them.
        prompts: (B, P) int64, P at least 1.
        index: Numbers of the items (B,), on which the draws depend.
        max_new_tokens: How many tokens to add.
        seed: Seed of the draws.
        temperature: Divides the log-probabilities; 0 is greedy.
        top_k: Only the k most probable tokens may come; None for all.

    Returns:
        Prompts and continuations (B, P + max_new_tokens).
    """
    tokens, new = prompts, prompts
    for _ in range(max_new_tokens):
        new = next_token(step(new), seed, tokens.shape[1], index, temperature, top_k)[:, None]  # (B, 1)
        tokens = torch.cat([tokens, new], dim=1)
    return tokens
