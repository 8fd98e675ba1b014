"""One forward of a network with its hooks: the order in which they are called."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from zoo.hf.cache import cache_argument
from zoo.hf.losses import log_partition, next_log_probs, next_token_losses
from zoo.lm.hook_points import HookPoints
from zoo.lm.hooks import IGNORED, call_hook, check_output, has_hook, with_hook


@dataclass(frozen=True)
class Prediction:
    """What a network and its hooks say of the next tokens."""

    network_logits: Tensor  # (B, T, V), in the network's dtype
    network_log_probs: Tensor  # (B, T, V) float32
    log_probs: Tensor  # (B, T, V) float32, after the hooks


def forward_with_hooks(
    network: nn.Module,
    hooks: nn.ModuleList,
    hook_points: HookPoints,
    tokens: Tensor,
    index: Tensor | None,
    cache: Any = None,
) -> Prediction:
    """Predicts the token after each of ``tokens`` (B, T); the caller tells `on_forward_end`.

    Args:
        network: A transformers causal language model.
        hooks: Its hooks.
        hook_points: Those of the two.
        tokens: Inputs (B, T).
        index: Numbers of the items (B,), for the hooks.
        cache: transformers' cache of the keys and values before ``tokens``, which it is filled with. With one
            only the token after the last is predicted, so the result has T = 1.
    """
    call_hook(hooks, "on_forward_start", tokens, index)
    options = {} if cache is None else {cache_argument(network): cache, "logits_to_keep": 1}
    with hook_points.attached():
        logits = network(input_ids=tokens, use_cache=cache is not None, **options).logits
    own = log_probs = next_log_probs(logits)
    if hook_points.feed_forward is not None:
        hidden = hook_points.feed_forward.take(len(tokens))  # (B, T, D)
        call_hook(hooks, "on_ffn_input", hidden)
        hidden = hidden[:, -log_probs.shape[1] :]  # (B, 1, D) with a cache
        for hook in with_hook(hooks, "on_log_probs"):
            returned = hook.on_log_probs(log_probs, hidden)  # type: ignore[operator]
            log_probs = check_output(hook, "on_log_probs", returned, log_probs)
    return Prediction(logits, own, log_probs)


def losses_with_hooks(
    batch: Mapping[str, Any],
    predict: Callable[[Tensor, Tensor | None], Prediction],
    hooks: nn.ModuleList,
    with_partition: bool,
) -> tuple[Tensor, Tensor | None]:
    """Cross-entropies (B, T) of a batch and, if asked for, logsumexp of the network's logits (B, T).

    Args:
        batch: ``tokens`` (B, T + 1); ``index`` (B,) and ``mask`` (B, T), if there are any.
        predict: From inputs (B, T) and their numbers to a `Prediction`.
        hooks: Told the targets afterwards.
        with_partition: Whether the logsumexp is asked for.

    Raises:
        ValueError: the batch has no tokens.
    """
    if "tokens" not in batch:
        raise ValueError(
            "CausalLM needs batches with 'tokens' (B, T + 1), as the datamodule Text gives; this one has "
            f"{sorted(batch)}"
        )
    tokens, index, mask = batch["tokens"], batch.get("index"), batch.get("mask")
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    made = predict(inputs, index)
    losses = next_token_losses(made.log_probs, targets)
    if has_hook(hooks, "on_forward_end"):
        unmasked = targets if mask is None else targets.masked_fill(~mask.bool(), IGNORED)
        call_hook(hooks, "on_forward_end", inputs, unmasked, index)
    if not with_partition:
        return losses, None
    return losses, log_partition(made.network_logits, made.network_log_probs, targets)


@contextmanager
def generation_hooks(hooks: nn.ModuleList, index: Tensor) -> Iterator[None]:
    """Tells hooks when prompts numbered ``index`` (B,) are continued; compiled code is not used meanwhile."""
    call_hook(hooks, "on_generation_start", index)
    try:
        # Lengths change with every token: compiled code would be rebuilt for them.
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        call_hook(hooks, "on_generation_end")
